"""The cells of a store as one table, however many they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from stability.studies.identity import data_of, from_json, how_of, key
from stability.studies.ledger import damaged
from stability.studies.packed import is_number
from stability.studies.sound import check_records, check_study, check_table
from stability.studies.store import Store

__all__ = ["DETAILS", "short", "table_of"]

DETAILS = ("per_example", "prediction", "history", "failed_assumptions", "notes")
"""What a record holds in a list or a dictionary."""

_NEEDED = ("status", "seed", "algorithm")
_NAMES = {"asked_sparsity": "sparsity"}  # a cell without a measured p has the p that was asked for


class _Form(NamedTuple):
    """What all cells of one form share."""

    words: dict[str, Any]
    numbers: tuple[str, ...]
    whole: frozenset[str]  # those numbers that are integers
    place: tuple[int, int]  # of its algorithm and its task in the study


class _Part(NamedTuple):
    """The cells that have the same numbers, by name."""

    names: tuple[str, ...]
    rows: npt.NDArray[np.intp]
    numbers: npt.NDArray[np.float64]


def short(identity: Any) -> str:
    """What column ``algorithm`` and a study's fingerprint have for an identity: the first 12 digits of its key."""
    return key(identity)[:12]


def table_of(store: Store) -> tuple[pd.DataFrame, int]:
    """The finished cells of a store's study, in its order, without what a record holds in lists.

    Args:
        store: the store that holds the study.

    Returns:
        A row for each cell, with its ``key``, by which :meth:`~stability.studies.store.Store.details` has its lists; and how many
        other cells there are: of code that was changed since, or failures of other settings.

    Raises:
        StabilityError: the store is damaged.

    Example:
        >>> table, others = table_of(Store("figures/discontinuity.sqlite"))
        >>> len(table), others, table["task"].iloc[0]
        (9, 0, 'digits')
    """
    check_study(store.path, store.identity)
    texts, every = store.rows()
    if not every:
        return pd.DataFrame(), 0
    keys, ids, numbers = (np.array([row[place] for row in every], dtype=object) for place in range(3))
    if not all(type(name) is str for name in keys):
        raise damaged(store.path, "keys of its cells are missing")
    codes, distinct = pd.factorize(ids)
    if (codes < 0).any() or any(id_ not in texts for id_ in distinct):
        raise damaged(store.path, "forms of its cells are missing")
    forms = _forms(store, [texts[id_] for id_ in distinct])
    mine = np.array([form is not None for form in forms])
    kept = [form for form in forms if form is not None]
    if not kept:
        return pd.DataFrame(), len(every)
    if not mine.all():
        rows = mine[codes]
        keys, numbers, codes = keys[rows], numbers[rows], (np.cumsum(mine) - 1)[codes[rows]]
    parts = _parts(store, kept, codes, numbers)
    order = _order(kept, codes, parts)
    codes, words = codes[order], pd.DataFrame([form.words for form in kept], dtype=object)
    values = _values(store, kept, codes, order, parts)
    columns: dict[str, Any] = {"key": pd.Series(keys[order], dtype=object)}
    for name in map(str, words):
        columns[name] = values[name] if name in values else pd.Series(words[name].to_numpy().take(codes), dtype=object)
    table = pd.DataFrame(columns, copy=False)
    check_table(store.path, table)
    return table, len(every) - len(codes)


def _parts(store: Store, forms: Sequence[_Form], codes: npt.NDArray[np.intp], numbers: npt.NDArray[np.object_]) -> list[_Part]:
    alike = {names: place for place, names in enumerate(dict.fromkeys(form.numbers for form in forms))}
    part_of = np.array([alike[form.numbers] for form in forms])[codes]
    found = []
    for names, place in alike.items():
        rows = np.flatnonzero(part_of == place)
        try:
            found.append(_Part(names, rows, np.frombuffer(b"".join(numbers[rows]), dtype="<f8").reshape(len(rows), len(names))))
        except (ValueError, TypeError) as error:
            raise damaged(store.path, "a cell has too few or too many numbers") from error
    return found


def _order(forms: Sequence[_Form], codes: npt.NDArray[np.intp], parts: Sequence[_Part]) -> npt.NDArray[np.intp]:
    """The places of the cells, in the order of the study."""
    drawn = {name: np.zeros(len(codes)) for name in ("sample", "seed")}
    for part in parts:
        for name in drawn.keys() & set(part.names):
            drawn[name][part.rows] = part.numbers[:, part.names.index(name)]
    algorithms, tasks = np.array([form.place for form in forms]).T
    return np.lexsort((algorithms[codes], tasks[codes], drawn["seed"], drawn["sample"]))


def _values(
    store: Store, forms: Sequence[_Form], codes: npt.NDArray[np.intp], order: npt.NDArray[np.intp], parts: Sequence[_Part]
) -> dict[str, npt.NDArray[Any]]:
    """The columns that are numbers in some cell, NaN in the others, of cells in this order; the codes are so already."""
    names = dict.fromkeys(name for part in parts for name in part.names)
    everywhere = set.intersection(*(set(part.names) for part in parts))
    found: dict[str, npt.NDArray[Any]] = {
        name: np.empty(len(order)) if name in everywhere else np.full(len(order), np.nan) for name in names
    }
    to = np.empty_like(order)
    to[order] = np.arange(len(order))
    for part in parts:
        rows = to[part.rows]
        sort = np.argsort(rows)
        rows, columns = rows[sort], np.ascontiguousarray(part.numbers[sort].T)  # far quicker than column after column
        for name, column in zip(part.names, columns, strict=True):
            found[name][rows] = column
    for code, form in enumerate(forms):  # integers that are too large for a float are in the form
        for name, value in form.words.items():
            if name in found and name not in form.numbers and value is not None:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise damaged(store.path, f"{name} is a number in one cell, and {value!r} in another")
                found[name][codes == code] = value
    whole = set.intersection(*(set(form.whole) for form in forms))
    return {name: each.astype(np.int64) if name in whole else each for name, each in found.items()}


def _forms(store: Store, texts: Iterable[str]) -> list[_Form | None]:
    """What is in each form; None for those of cells that are not of the study."""
    identity = store.identity
    order = {key(algorithm): place for place, algorithm in enumerate(identity["algorithms"])}
    tasks = {name: place for place, name in enumerate(identity.get("problems", {}))}
    data, how = {None, *data_of(identity).values()}, {None, how_of(identity)}  # None: cells of older versions do not tell
    found: list[_Form | None] = []
    for text in texts:
        try:
            mine, record = from_json(text)
            both = {**mine, **record}
            numbers = tuple(_NAMES.get(name, name) for part in (mine, record) for name in part if is_number(part[name]))
        except (ValueError, TypeError, AttributeError) as error:
            raise damaged(store.path, error) from error
        if any(name in DETAILS for name in numbers):
            raise damaged(store.path, "a cell holds a number where a list should be")
        if any(both.get(name) is None for name in _NEEDED):
            raise damaged(store.path, "a cell has no record")
        check_records(store.path, [{name: value for name, value in both.items() if name not in DETAILS and not is_number(value)}])
        algorithm = both.pop("algorithm")
        if both.pop("data", None) not in data or both.pop("how", None) not in how or key(algorithm) not in order:
            found.append(None)
            continue
        asked = both.pop("asked_sparsity", None)
        words = {"algorithm": short(algorithm), "sparsity": both.pop("sparsity", asked)}
        words |= {name: value for name, value in both.items() if name not in DETAILS}
        whole = frozenset(name for name in numbers if isinstance(words[name], int))
        place = order[key(algorithm)], tasks.get(both.get("task"), 0)
        found.append(_Form(words, numbers, whole, place))
    # Old records, and failed ones among them, have no task: a study of one problem has one name for it.
    alone = next((form.words["task"] for form in found if form is not None and "task" in form.words), identity.get("problem"))
    for form in found:
        if form is not None:
            form.words.setdefault("task", alone)
    return found
