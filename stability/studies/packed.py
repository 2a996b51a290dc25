"""A cell in three parts, so that the numbers of a million cells are read at once.

Most cells of a study say the same in words and differ in numbers. So a cell is kept as a *form*, which is the cell with 0 for each
number and with empty lists, as *numbers*, which are the form's numbers in their order, and as *details*, which are its lists.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from stability.studies.identity import as_json, from_json

__all__ = ["Packed", "is_number", "listed", "lists_of", "packed", "unpacked"]

_EXACT = 2**53  # whole numbers below are exact in 64 bits of floating point


class Packed(NamedTuple):
    """A cell.

    Attributes:
        form: JSON of a list of two, identity and record, with 0 or 0.0 for each of their own numbers. What the record holds in
            lists and dictionaries is empty there.
        numbers: those numbers, eight bytes each, floating point with the least byte first.
        details: JSON of what the record holds in lists and dictionaries, by name.
    """

    form: str
    numbers: bytes
    details: str


def is_number(value: object) -> bool:
    """Whether a value of a form stands for one of the numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


def packed(identity: Mapping[str, Any], record: Mapping[str, Any]) -> Packed:
    """A cell in its three parts.

    Args:
        identity: what defines it, as JSON gives it back.
        record: what was measured, likewise.

    Example:
        >>> packed({"seed": 3}, {"status": "ok", "loss": 0.5, "each": [1, 2]}).form
        '[{"seed": 0}, {"status": "ok", "loss": 0.0, "each": []}]'
    """
    numbers: list[float] = []

    def emptied(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, int) and abs(value) >= _EXACT):
            return value
        numbers.append(value)
        return type(value)(0)

    mine = {name: emptied(value) for name, value in identity.items()}
    details = lists_of(record)
    measured = {name: type(value)() if name in details else emptied(value) for name, value in record.items()}
    return Packed(
        as_json([mine, measured], sort_keys=False),
        struct.pack(f"<{len(numbers)}d", *numbers),
        as_json(details, sort_keys=False),
    )


def lists_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record holds in lists and dictionaries.

    Args:
        record: what was measured.

    Example:
        >>> lists_of({"status": "ok", "each": [1, 2]})
        {'each': [1, 2]}
    """
    return {name: value for name, value in record.items() if isinstance(value, list | dict)}


def unpacked(form: str, numbers: bytes, details: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Identity and record of a cell.

    Args:
        form: as of :class:`Packed`.
        numbers: likewise.
        details: likewise.

    Raises:
        ValueError: the parts do not fit together.

    Example:
        >>> unpacked(*packed({"seed": 3}, {"status": "ok", "loss": 0.5, "each": [1, 2]}))
        ({'seed': 3}, {'status': 'ok', 'loss': 0.5, 'each': [1, 2]})
    """
    try:
        (identity, record), lists, left = (
            from_json(form),
            from_json(details),
            iter(struct.unpack(f"<{len(numbers) // 8}d", numbers)),
        )
        for part in (identity, record):
            part.update({name: type(value)(next(left)) for name, value in part.items() if is_number(value)})
        record.update((name, lists[name]) for name in record if isinstance(record[name], list | dict))
    except (struct.error, StopIteration, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"form, numbers and lists of a cell do not fit together ({error})") from error
    if next(left, None) is not None:
        raise ValueError("a cell has more numbers than its form")
    return identity, record


def listed(
    cells: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
) -> tuple[dict[int, str], list[tuple[str, int, bytes]]]:
    """Cells as :meth:`stability.studies.ledger.Ledger.rows` gives them.

    Args:
        cells: of each its key, identity and record.

    Example:
        >>> forms, rows = listed([("a", {"seed": 0}, {"status": "ok"}), ("b", {"seed": 1}, {"status": "ok"})])
        >>> forms, [row[:2] for row in rows]
        ({0: '[{"seed": 0}, {"status": "ok"}]'}, [('a', 0), ('b', 0)])
    """
    forms: dict[str, int] = {}
    each = [(name, *packed(identity, record)[:2]) for name, identity, record in cells]
    rows = [(name, forms.setdefault(form, len(forms)), numbers) for name, form, numbers in each]
    return {number: form for form, number in forms.items()}, rows
