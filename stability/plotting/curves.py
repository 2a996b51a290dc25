"""What a study's figures draw: a quantity of each method against p, with the interval that its seeds give and what that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import pandas as pd

from stability.leave_one_out.statistics import mean_over_seeds
from stability.plotting.style import NothingToDrawError
from stability.studies.claims import learned
from stability.studies.results import CellStatus, StudyResults
from stability.studies.scores import std_interval

__all__ = ["ALONE", "FEW", "Block", "Curve", "bars", "mean", "over", "series", "spread", "summarised"]

FEW = 3
"""The fewest seeds of which an interval, or a standard deviation, is drawn: Student's factor is 4.3 for three and 12.7 for two."""

ALONE = "Bars of stability with one seed: 95 % intervals over the choice of the examples that are left out."
"""What the bars of stability are where there is one seed."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One quantity of every method, or of every task of one method, at each p.

    Attributes:
        name: what it is called where several share a panel, such as "test"; empty where it is alone.
        table: a row for each series and p: ``series``, ``p``, ``y``, both ends ``low`` and ``high`` of the interval, NaN where none
            is drawn, ``units``, the runs that it is over, and ``unlearned``, whether the method did not learn.
    """

    name: str
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Block:
    """Curves that share an axis.

    Attributes:
        label: the axis's label, with its unit.
        curves: the curves; the marks of the first are filled, those of the second hollow.
        least: the least that the quantity can be, where the axis begins; None: the axis fits the data.
        notes: what must be said of its bars, a sentence each.
        log: whether the axis is logarithmic where values and intervals differ by a factor of 20.
        zero: whether the axis holds 0, for a quantity whose sign matters.
    """

    label: str
    curves: tuple[Curve, ...]
    least: float | None = None
    _: KW_ONLY
    notes: tuple[str, ...] = ()
    log: bool = False
    zero: bool = False


def summarised(results: StudyResults) -> pd.DataFrame:
    """The table of :meth:`stability.studies.StudyResults.summary`, with ``unlearned``: whether the method did not learn there.

    Args:
        results: the results of a study.
    """
    summary, fit = results.summary().table, learned(results).to_dict("records")
    unlearned = {(row["task"], row["algorithm"]) for row in fit if row["learned"] is False}
    return summary.assign(unlearned=[one in unlearned for one in zip(summary["task"], summary["algorithm"], strict=True)])


def series(summary: pd.DataFrame) -> str:
    """The column that has a line for each of its values: ``method``, or ``task`` where there is one method on several.

    Args:
        summary: the table of :meth:`stability.studies.StudyResults.summary`.

    Raises:
        NothingToDrawError: several methods on several tasks.
    """
    if summary["task"].nunique() < 2:
        return "method"
    if summary["method"].nunique() > 1:
        raise NothingToDrawError("several methods on several tasks: draw results.where(task=…) of each task by itself")
    return "task"


def mean(
    results: StudyResults, summary: pd.DataFrame, column: str, name: str = "", *, least: float = -np.inf, most: float = np.inf
) -> Curve:
    """The mean of a quantity over seeds with its 95 % interval, Student's; of stability with one seed that cell's own.

    Where the study draws S apart from the seeds, the interval is over the S.

    Args:
        results: the results of a study.
        summary: rows of :func:`summarised`.
        column: the quantity.
        name: the curve's name.
        least: the least that the quantity can be, where intervals end.
        most: the most.
    """
    by = series(summary)
    ok = results.table[["task", "algorithm", *(["sample"] if "sample" in results.table else []), column]]
    cells = dict(list(ok[results.table["status"] == CellStatus.OK].groupby(["task", "algorithm"])))
    rows = []
    for _, row in summary.iterrows():
        low, high, units = _interval(cells[row["task"], row["algorithm"]], row, column)
        alone = column == "stability" and units == 1
        if not (np.isfinite([low, high]).all() and (units >= FEW or alone)):
            low, high = np.nan, np.nan
        low, high = np.minimum(row[column], max(low, least)), max(row[column], min(high, most))
        rows.append(_place(row, by) | {"y": row[column], "low": low, "high": high, "units": units})
    return Curve(name, pd.DataFrame(rows))


def _interval(mine: pd.DataFrame, row: Any, column: str) -> tuple[float, float, int]:
    """Both ends, and over how many runs they are."""
    if column == "stability":
        return row["stability_low"], row["stability_high"], int(min(row["measured"], row["samples"]))
    if column == "gap":
        return row["gap_low"], row["gap_high"], int(row["samples"])
    values = (mine if "sample" not in mine else mine.groupby("sample")[[column]].mean())[column].astype(float).dropna()
    low, high = mean_over_seeds(values).interval if len(values) else (np.nan, np.nan)
    return low, high, len(values)


def spread(summary: pd.DataFrame, column: str, name: str = "") -> Curve:
    """The standard deviation of a quantity over seeds, of at least :data:`FEW` of them, with the 95 % interval of a normal
    population's.

    Args:
        summary: rows of :func:`summarised`.
        column: the quantity.
        name: the curve's name.
    """
    by = series(summary)
    rows = []
    for _, row in summary.iterrows():
        enough = row["seeds"] >= FEW
        independent = row["samples"] == row["seeds"]  # several seeds of one S are not
        low, high = std_interval(row[f"{column}_std"], int(row["seeds"])) if enough and independent else (np.nan, np.nan)
        y = row[f"{column}_std"] if enough else np.nan
        rows.append(_place(row, by) | {"y": y, "low": low, "high": high, "units": int(row["seeds"])})
    return Curve(name, pd.DataFrame(rows))


def _place(row: Any, by: str) -> dict[str, Any]:
    return {"series": row[by], "p": row["sparsity"], "unlearned": row["unlearned"]}


def over(results: StudyResults) -> str:
    """What the runs of an interval differ in: ``training sets`` where the study draws S apart from the seeds, otherwise ``seeds``.

    Args:
        results: the results of a study.

    Example:
        >>> over(StudyResults.read("figures/discontinuity.sqlite"))
        'seeds'
    """
    return "training sets" if "sample" in results.table else "seeds"


def bars(curves: Sequence[Curve], of: str, over: str = "seeds", alone: str = "One seed gives no interval.") -> str:
    """What the bars of curves are, in sentences.

    Args:
        curves: the curves.
        of: what the interval is of, such as "the mean".
        over: what the runs differ in.
        alone: what to say of those with a single run.

    Example:
        >>> table = pd.DataFrame({"series": ["sam"], "p": [0.1], "y": [1.0], "low": [0.9], "high": [1.1], "units": [5]})
        >>> bars([Curve("", table)], "the mean")
        'Bars: 95 % interval of the mean over 5 seeds.'
    """
    units = pd.concat([curve.table.loc[curve.table["y"].notna() | (curve.table["units"] < FEW), "units"] for curve in curves])
    many = sorted(units[units >= FEW].unique())
    said = []
    if many:
        count = f"{many[0]}" if len(many) == 1 else f"{many[0]} to {many[-1]}"
        said.append(f"Bars: 95 % interval of {of} over {count} {over}.")
    if (units == FEW - 1).any():
        said.append(f"Two {over} give no interval.")
    if (units == 1).any():
        said.append(alone)
    return " ".join(said)
