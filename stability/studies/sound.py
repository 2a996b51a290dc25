"""What a store must hold for tables and figures to be made of it: which kind of value stands where.

JSON says nothing of kinds. Where a file is damaged, or a stranger made it, a number may be a list. It is found out here, once, and
not by whatever happens to meet it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stability.bounds.base import State
from stability.studies.ledger import damaged

__all__ = ["BOUNDS", "COLUMNS", "check_records", "check_study", "check_table", "oddity"]

_MOST = 2**63  # beyond any count, and what whole numbers of numpy hold


class _Kind(NamedTuple):
    """A kind of value.

    Attributes:
        words: what to call it.
        fits: whether a value is of it.
    """

    words: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    return (type(value) is float and not math.isinf(value)) or (type(value) is int and abs(value) < _MOST)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_texts(value: Any) -> bool:
    return type(value) is list and all(map(_is_text, value))


def _is_table(value: Any) -> bool:
    return type(value) is dict


def _is_interval(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and all(one is None or _is_number(one) for one in value)


def _is_history(value: Any) -> bool:
    return (
        type(value) is dict
        and type(value.get("loss")) is list
        and all(map(_is_number, value["loss"]))
        and type(value.get("relaxed")) is list
        and all(map(_is_whole, value["relaxed"]))
        and type(value.get("mask_changes")) is dict
        and all(name.isascii() and name.isdigit() and len(name) < 19 for name in value["mask_changes"])
    )


def _is_examples(value: Any) -> bool:
    return type(value) is list and all(
        type(one) is dict
        and _is_whole(one.get("index"))
        and all(number is None or _is_number(number) or type(number) is bool for number in one.values())
        for one in value
    )


def _is_prediction(value: Any) -> bool:
    return (
        type(value) is dict
        and _is_text(value.get("by"))
        and _is_number(value.get("seconds"))
        and type(value.get("difference")) is list
        and all(one is None or _is_number(one) for one in value["difference"])
    )


_WHOLE, _NUMBER, _TEXT = _Kind("a whole number", _is_whole), _Kind("a number", _is_number), _Kind("text", _is_text)
_TABLE = _Kind("a table", _is_table)
_TEXTS = _Kind("a list of texts", _is_texts)
_ASKED = _Kind("a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1)
_P = _Kind("a number in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)  # 0 where the new head alone is trained
_OVERLAP = _Kind("a number in [0, 1]", lambda value: _is_number(value) and (math.isnan(value) or 0 <= value <= 1))
_FLAG = _Kind("true or false", lambda value: type(value) is bool)
_STATE = _Kind(f"one of {', '.join(State)}", lambda value: _is_text(value) and value in set(State))

BOUNDS: tuple[str, ...] = (
    "theorem_1",
    "theorem_1_sharp",
    "hard_mask",
    "hard_mask_sharp",
    "first_order",
    "theorem_2",
    "theorem_2_measured",
    "uniform_measured",
)
"""Columns of :func:`stability.bounds.measured.measured_bounds`; each has a ``_state`` beside it."""

_NUMBERS: tuple[str, ...] = (
    *(
        "stability",
        "stability_low",
        "stability_high",
        "stability_error",
        "correlation",
        "rank_correlation",
        "variance_cut",
        "effective_retrainings",
    ),
    *("hypothesis_stability", "maximum", "noise_floor", "train_loss", "train_metric", "test_loss", "test_metric", "gap"),
    *(
        "validation_loss",
        "validation_metric",
        "validation_constant",
        "test_constant",
        "distance",
        "seconds",
        "cell_seconds",
        "lipschitz",
        "tuned_lipschitz",
        "gradient_norm",
        "tuned_gradient_norm",
    ),
    *("loss_bound", "least_eigenvalue", "least_eigenvalue_residual", "tuned_least_eigenvalue"),
    *("tuned_least_eigenvalue_residual", "simulated_coverage"),
)

_PLACE: Mapping[str, _Kind] = {
    "status": _Kind("ok or failed", lambda value: _is_text(value) and value in ("ok", "failed")),
    "seed": _WHOLE,
    "sample": _WHOLE,
    "task": _TEXT,
    "data": _TEXT,
    "how": _TEXT,
    "algorithm": _TABLE,
}
"""What says of which study a cell is, and where in it."""

COLUMNS: Mapping[str, _Kind] = {
    **_PLACE,
    **dict.fromkeys(("method", "failure", "reason", "estimator", "estimator_reason", "estimate_status"), _TEXT),
    **dict.fromkeys(("metric", "loss_unit", "software", "device"), _TEXT),
    **dict.fromkeys(
        ("n", "tunable", "total", "head", "retrainings", "failed_replicas", "kept_step", "replicas_checked", "threads"), _WHOLE
    ),
    **dict.fromkeys(_NUMBERS + BOUNDS, _NUMBER),
    **dict.fromkeys((f"{name}_state" for name in BOUNDS), _STATE),
    "sparsity": _P,
    "mask_overlap": _OVERLAP,  # NaN where there are no masks
    "asked_sparsity": _ASKED,
    "measured": _FLAG,
    "failed": _TABLE,
    "failed_assumptions": _Kind("a table of lists", lambda value: _is_table(value) and all(map(_is_texts, value.values()))),
    "notes": _TEXTS,
    "stability_interval": _Kind("two numbers", _is_interval),
    "history": _Kind("a history of losses", _is_history),
    "per_example": _Kind("a list of examples", _is_examples),
    "prediction": _Kind("a prediction", _is_prediction),
}
"""What each entry of a record holds. Each may be null."""

_MEASURED: tuple[str, ...] = (
    *("method", "sparsity", "tunable", "total", "head", "seconds", "failed_replicas", "metric", "loss_unit"),
    *("train_loss", "test_loss", "train_metric", "test_metric", "gap"),
)
_KNOWN: tuple[str, ...] = (
    *(
        "stability",
        "stability_low",
        "stability_high",
        "hypothesis_stability",
        "noise_floor",
        "distance",
        "loss_bound",
        "gradient_norm",
    ),
    *("retrainings", *BOUNDS, *(f"{name}_state" for name in BOUNDS)),
)


def oddity(record: Mapping[str, Any], names: Collection[str] = COLUMNS.keys()) -> str | None:
    """What is odd about a cell's record, the first such thing; None where nothing is.

    Args:
        record: the record.
        names: the entries that are looked at.

    Example:
        >>> oddity({"status": "ok", "seed": [0]})
        'seed = [0] is not a whole number'
    """
    for name in names:
        value = record.get(name)
        if value is not None and not COLUMNS[name].fits(value):
            return _said(name, value)
    return None


def check_records(path: Path, records: Iterable[Mapping[str, Any]], names: Collection[str] = COLUMNS.keys()) -> None:
    """Check that entries of records are what they should be.

    Args:
        path: the store, for the message.
        records: the records, or parts of them.
        names: the entries that are looked at.

    Raises:
        StabilityError: an entry is something else.
    """
    for record in records:
        if (why := oddity(record, names)) is not None:
            raise damaged(path, f"in a cell {why}")


def check_table(path: Path, table: pd.DataFrame) -> None:
    """Check the numbers of a table of cells, and that no cell lacks what it must have. Words were looked at before.

    Args:
        path: the store, for the message.
        table: a row for each cell.

    Raises:
        StabilityError: a column holds something else, or lacks something.
    """
    for name in table.columns.intersection(list(COLUMNS)):
        if table[name].dtype == object:
            continue
        kind, known = COLUMNS[name], table[name].dropna()
        if kind is _WHOLE:
            odd = known[(known < 0) | (known >= _MOST) | (known % 1 != 0)]
        elif kind is _P or kind is _OVERLAP:
            odd = known[(known < 0) | (known > 1)]
        else:
            odd = known[known.abs() == math.inf] if kind is _NUMBER else known
        if len(odd):
            raise damaged(path, f"in a cell {_said(name, odd.iloc[0].item())}")
    ok = table["status"] == "ok"
    for name in _MEASURED if ok.any() else ():
        if name not in table or table.loc[ok, name].isna().any():
            raise damaged(path, f"a measured cell lacks {name}")
    for name in _KNOWN if ok.any() else ():
        if name not in table:
            raise damaged(path, f"no cell has {name}")
    known = ok & table["stability"].notna() if ok.any() else ok
    if known.any() and table.loc[known, "retrainings"].isna().any():
        raise damaged(path, "a cell has a stability and no retrainings")
    if not ok.all() and not {"method", "reason"} <= set(table):
        raise damaged(path, "a failed cell lacks its method or its reason")
    if not ok.all() and table.loc[~ok, ["method", "reason"]].isna().any(axis=None):
        raise damaged(path, "a failed cell lacks its method or its reason")


def check_study(path: Path, identity: Mapping[str, Any]) -> None:
    """Check that an identity says which study it is.

    Args:
        path: the store, for the message.
        identity: the identity.

    Raises:
        StabilityError: it does not.

    Example:
        >>> from stability.studies import STUDIES
        >>> check_study(Path("mine.sqlite"), STUDIES["digits"].identity())
    """
    entries: Mapping[str, _Kind] = {
        "study": _TEXT,
        "problem": _TEXT,
        "problem_settings": _TABLE,
        "problems": _Kind("a table of problems", lambda value: _is_table(value) and all(map(_is_problem, value.values()))),
        "algorithms": _Kind(
            "a list of algorithms, each with its selector", lambda value: type(value) is list and all(map(_is_algorithm, value))
        ),
        "seeds": _SEEDS,
        "samples": _SEEDS,
        "measured_seeds": _WHOLE,
        "check_replicas": _WHOLE,
        "test_examples": _WHOLE,
        "retrainings": _WHOLE,
        "delta": _NUMBER,
        "removed": _NUMBER,
        "estimator": _TABLE,
    }
    for name in ("study", "algorithms", "seeds"):
        if identity.get(name) is None:
            raise damaged(path, f"it does not say which study it holds: it has no {name}")
    for name, kind in entries.items():
        value = identity.get(name)
        if value is not None and not kind.fits(value):
            raise damaged(path, f"it does not say which study it holds: {_said(name, value, kind)}")
        if value is None and name in identity and name in ("samples", "problems", "removed"):
            raise damaged(path, f"it does not say which study it holds: {name} is null")


_SEEDS = _Kind("a list of whole numbers", lambda value: type(value) is list and len(value) > 0 and all(map(_is_whole, value)))


def _is_problem(value: Any) -> bool:
    return _is_table(value) and _is_table(value.get("problem_settings"))


def _is_algorithm(value: Any) -> bool:
    if not (_is_table(value) and _is_table(value.get("selector")) and _is_text(value["selector"].get("name"))):
        return False
    sparsity, rate = value["selector"].get("sparsity"), value.get("learning_rate")
    return (sparsity is None or _ASKED.fits(sparsity)) and (rate is None or _is_number(rate))


def _said(name: str, value: Any, kind: _Kind | None = None) -> str:
    shown = json.dumps(value)  # a value of JSON, in one line
    return f"{name} = {shown if len(shown) < 60 else shown[:59] + '…'} is not {(kind or COLUMNS[name]).words}"
