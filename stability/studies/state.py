"""How far a study is: which of its cells are finished, which failed, and how long the rest will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from stability.studies.results import CellStatus, records_of
from stability.studies.store import Store, key

__all__ = ["MethodState", "State", "state_of"]

_PAUSE = 60.0  # seconds besides three times its own that a cell may take before it is taken for the first after a pause


@dataclass(frozen=True, kw_only=True)
class MethodState:
    """How far a study is with one method.

    Attributes:
        method: the method's name.
        total: its cells.
        measured: those that are finished and were measured.
        failed: those whose measurement failed.
        seconds: the mean time of a measured cell; NaN where there is none.
    """

    method: str
    total: int
    measured: int
    failed: int
    seconds: float

    @property
    def missing(self) -> int:
        """Cells that were not tried yet."""
        return self.total - self.measured - self.failed


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a study is.

    Attributes:
        study: the study's name.
        methods: each of its methods, in its order.
        failures: of each kind of failure and its reason, the number of cells.
        last: when the last cell was finished; None where none is.
        rate: cells an hour over the time in which the store was worked on; NaN where it is not known.
        remaining: seconds that the missing cells will take at that pace; NaN where it is not known.
    """

    study: str
    methods: tuple[MethodState, ...]
    failures: Mapping[tuple[str, str], int]
    last: datetime | None
    rate: float
    remaining: float

    @property
    def total(self) -> int:
        """The study's cells."""
        return sum(one.total for one in self.methods)

    @property
    def measured(self) -> int:
        """The cells that were measured."""
        return sum(one.measured for one in self.methods)

    @property
    def failed(self) -> int:
        """The cells whose measurement failed."""
        return sum(one.failed for one in self.methods)

    @property
    def missing(self) -> int:
        """Cells that were not tried yet."""
        return sum(one.missing for one in self.methods)


def state_of(store: Store) -> State:
    """How far the study of a store is. Another process may be writing to it.

    Args:
        store: the store.

    Returns:
        Counts by method, and the pace: that of all the time between two finished cells, without pauses.

    Raises:
        StabilityError: the store is damaged.

    Example:
        >>> found = state_of(Store("figures/discontinuity.sqlite"))
        >>> found.total, found.measured, found.failed, found.missing, found.remaining
        (9, 9, 0, 0, 0.0)
    """
    identity, (records, _) = store.identity, records_of(store)
    each = len(identity["seeds"]) * len(identity.get("samples", [0])) * max(1, len(identity.get("problems", {})))
    methods = {key(one): one["selector"]["name"] for one in identity["algorithms"]}
    names = {key(record["algorithm"]): record["method"] for record in records if "method" in record}
    methods = {mine: names.get(mine, name) for mine, name in methods.items()}
    totals = Counter(methods.values())
    ended = Counter((methods[key(record["algorithm"])], record["status"]) for record in records)
    weights = {name: _mean_seconds([r for r in records if methods[key(r["algorithm"])] == name]) for name in totals}
    found = tuple(
        MethodState(
            method=name,
            total=each * count,
            measured=ended[name, CellStatus.OK],
            failed=ended[name, CellStatus.FAILED],
            seconds=weights[name],
        )
        for name, count in totals.items()
    )
    failures = Counter(
        (record.get("failure", "method"), record["reason"]) for record in records if record["status"] != CellStatus.OK
    )
    times = store.times()
    timed = [(times[name], _seconds(record)) for name, record in _keyed(store) if name in times]
    timed.sort(key=lambda one: one[0])
    busy = _busy(timed)
    return State(
        study=identity["study"],
        methods=found,
        failures=failures,
        last=max(times.values(), default=None),
        rate=3600 * (len(timed) - 1) / busy if busy > 0 else np.nan,
        remaining=_remaining(found, timed, busy),
    )


def _keyed(store: Store) -> list[tuple[str, dict[str, Any]]]:
    return [(key(identity), record) for identity, record in store.cells()]


def _seconds(record: Mapping[str, Any]) -> float | None:
    """Of the whole cell where it tells that, or of its trainings and evaluations."""
    found: float | None = record.get("cell_seconds", record.get("seconds"))
    return found


def _mean_seconds(records: Sequence[Mapping[str, Any]]) -> float:
    known = [seconds for record in records if (seconds := _seconds(record)) is not None]
    return float(np.mean(known)) if known else np.nan


def _busy(timed: Sequence[tuple[datetime, float | None]]) -> float:
    """Seconds between the first and the last finished cell, each pause counted as the time of the cell that ended it."""
    total = 0.0
    for (before, _), (after, own) in pairwise(timed):
        gap, most = (after - before).total_seconds(), 3 * (own or 0.0) + _PAUSE
        total += gap if gap <= most else own or 0.0
    return total


def _remaining(methods: Sequence[MethodState], timed: Sequence[tuple[datetime, float | None]], busy: float) -> float:
    """The missing cells' own time, at the pace at which the finished cells' own time passed."""
    missing = [one for one in methods if one.missing]
    if not missing:
        return 0.0
    own = [seconds for _, seconds in timed[1:] if seconds is not None]
    known = [one.seconds for one in methods if not np.isnan(one.seconds)]
    if not known:
        return np.nan
    usual = float(np.mean(known))
    work = sum(one.missing * (usual if np.isnan(one.seconds) else one.seconds) for one in missing)
    return work * (busy / sum(own) if own and busy > 0 else 1.0)
