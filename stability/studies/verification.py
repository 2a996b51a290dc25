"""Stored cells computed again and compared with what is stored, number by number."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeGuard

from stability.checks import check_positive, check_whole
from stability.errors import UsageError
from stability.studies.cell import run_cell
from stability.studies.identity import key
from stability.studies.store import Store
from stability.studies.study import Cell, Study, cell_identity

__all__ = ["TOLERANCE", "Agreement", "Checked", "StoredCell", "compared", "differences", "stored_cells", "verify"]

TOLERANCE = 1e-4
"""The relative difference that is still called rounding. Other processors, libraries and numbers of threads sum in other orders."""

_SMALL = 0.01
"""Differences of smaller numbers are relative to this: a noise floor of 1e-7 is itself rounding."""

_DRIFTS = frozenset({"distance", "per_example.distance"})
"""Columns that rounding alone can change by more than any tolerance. AdamW divides by the size of the gradient: a parameter whose
gradient is zero but for rounding, such as the bias of attention's keys, moves by rounding alone and changes no loss."""

_NEVER_COMPARED = frozenset({"seconds", "cell_seconds", "software", "device", "threads"})
"""What a record says of how long it took, and of what computed it."""


class Agreement(StrEnum):
    """How far a cell that was computed again agrees with the stored one.

    Attributes:
        EQUAL: every number is equal bit for bit.
        ROUNDING: some numbers differ, none by more than the tolerance. Only how far the parameters moved may differ by more: under
            AdamW a parameter whose gradient is zero moves by rounding alone.
        DIFFERENT: some number differs by more, or something that is no number differs.
    """

    EQUAL = "equal"
    ROUNDING = "rounding"
    DIFFERENT = "different"


@dataclass(frozen=True)
class StoredCell:
    """A finished cell of a study, and what its store holds of it.

    Attributes:
        cell: what was measured.
        record: what was found, as plain values.
    """

    cell: Cell
    record: Mapping[str, Any]

    @property
    def numbers(self) -> int:
        """How many numbers the record holds."""
        return _numbers(self.record)


@dataclass(frozen=True)
class Checked:
    """A cell that was computed again.

    Attributes:
        stored: the cell, and what is stored of it.
        differences: what came out otherwise, by the name of the column, each with the stored and the new value. Of lists and tables
            there are the entries, under ``column.place``.
        tolerance: the relative difference that is still called rounding.
    """

    stored: StoredCell
    differences: Mapping[str, tuple[Any, Any]]
    tolerance: float

    @property
    def agreement(self) -> Agreement:
        """How far the cell agrees."""
        if not self.differences:
            return Agreement.EQUAL
        apart = (size for name, size in self.by_column.items() if math.isinf(size) or name not in _DRIFTS)
        return Agreement.ROUNDING if max(apart, default=0.0) <= self.tolerance else Agreement.DIFFERENT

    @property
    def by_column(self) -> dict[str, float]:
        """The largest relative difference in each column that differs; infinite where a value is no number, or is missing.

        It is relative to the larger of the two sizes, or to 0.01 where both are smaller.
        """
        found: dict[str, float] = {}
        for name, (old, new) in self.differences.items():
            column = ".".join(part for part in name.split(".") if not part.isdecimal())
            found[column] = max(found.get(column, 0.0), _relative(old, new))
        return found

    @property
    def largest(self) -> float:
        """The largest relative difference in any column; 0 where all are equal."""
        return max(self.by_column.values(), default=0.0)

    @property
    def worst(self) -> str:
        """The column of the largest difference; empty where all are equal."""
        found = self.by_column
        return max(found, key=found.__getitem__) if found else ""


def stored_cells(study: Study, store: Store) -> list[StoredCell]:
    """The finished cells of a study, in its order, without those that the next run tries again.

    Args:
        study: the study that the store holds.
        store: the store.

    Raises:
        StabilityError: the store is of an older version, or holds another study.

    Example:
        >>> from stability.studies import STUDIES
        >>> len(stored_cells(STUDIES["discontinuity"], Store("figures/discontinuity.sqlite")))
        9
    """
    store.check_complete("its cells cannot be verified")
    identity = study.identity()
    store.check(identity)
    finished = store.finished()
    records = {name: record for mine, record in store.cells() if (name := key(mine)) in finished}
    keyed = ((cell, key(cell_identity(study, cell, identity))) for cell in study.cells())
    return [StoredCell(cell, records[name]) for cell, name in keyed if name in records]


def compared(study: Study, cells: Sequence[StoredCell], device: str = "cpu", tolerance: float = TOLERANCE) -> Iterator[Checked]:
    """Compute cells again, one after the other in this process, and compare each with what is stored.

    Args:
        study: the study.
        cells: finished cells of it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tolerance: the relative difference that is still called rounding.

    Yields:
        Each cell when it has been computed.

    Example:
        >>> import tempfile
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit
        >>> from stability.studies import run
        >>> one = (FineTuning(BitFit(), steps=2),)
        >>> study = Study("mine", "digits", one, (0,), problem_settings={"n": 20}, check_replicas=None, measured_seeds=0)
        >>> path = f"{tempfile.mkdtemp()}/mine.sqlite"
        >>> results = run(study, path, device="cpu", workers=1)
        >>> [checked.agreement.value for checked in compared(study, stored_cells(study, Store(path)))]
        ['equal']
    """
    for stored in cells:
        again = json.loads(json.dumps(run_cell(study, stored.cell, device)))  # as a store gives it back
        yield Checked(stored, dict(differences(stored.record, again)), tolerance)


def verify(
    study: Study, store: Store, cells: int = 3, *, seed: int = 0, device: str = "cpu", tolerance: float = TOLERANCE
) -> Iterator[Checked]:
    """Compute a random sample of a store's finished cells again, and compare each with what is stored.

    Args:
        study: the study that the store holds.
        store: the store.
        cells: how many cells to compute; all of them where there are fewer.
        seed: draws the sample.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tolerance: the relative difference that is still called rounding.

    Returns:
        Each cell when it has been computed.

    Raises:
        StabilityError: the store is of an older version, or holds another study.
        UsageError: a number out of range, or the store has no finished cell.

    Example:
        >>> from stability.studies import STUDIES
        >>> checks = verify(STUDIES["discontinuity"], Store("figures/discontinuity.sqlite"), cells=2)
        >>> all(checked.agreement == "equal" for checked in checks)  # doctest: +SKIP
        True
    """
    check_whole(1, cells=cells)
    check_positive(tolerance=tolerance)
    check_whole(0, seed=seed)
    every = stored_cells(study, store)
    if not every:
        raise UsageError(f"{store.path} has no finished cell to verify: run the study first")
    drawn = sorted(random.Random(seed).sample(range(len(every)), min(cells, len(every))))
    return compared(study, [every[place] for place in drawn], device, tolerance)


def differences(stored: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What is stored and came out otherwise, or came out besides. Times, software and device are left out.

    Args:
        stored: a record.
        again: the same record, computed again. A column of it that the stored one lacks, as those of older versions do, is no
            difference.

    Yields:
        The name, and the stored and the new value.

    Example:
        >>> dict(differences({"gap": 0.5, "losses": [1, 2], "seconds": 3}, {"gap": 0.5, "losses": [1, 4], "seconds": 9}))
        {'losses.1': (2, 4)}
    """
    for name, old in stored.items():
        if name not in _NEVER_COMPARED:
            yield from _apart(name, old, again.get(name))


def _apart(name: str, old: Any, new: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from ((f"{name}.{inner}", pair) for inner, pair in differences(old, new))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _apart(f"{name}.{place}", a, b)
    elif old != new:
        yield name, (old, new)


def _relative(old: object, new: object) -> float:
    """|new − old| over the larger of the two sizes, or over :data:`_SMALL`; infinite where one is no number."""
    if not (_is_number(old) and _is_number(new)):
        return math.inf
    return abs(new - old) / max(abs(old), abs(new), _SMALL)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any) -> int:
    if isinstance(value, (dict, list)):
        return sum(map(_numbers, value.values() if isinstance(value, dict) else value))
    return int(_is_number(value))
