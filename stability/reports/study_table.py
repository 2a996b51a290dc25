"""The results of a study → a table to read."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import pandas as pd

from stability.bounds.base import State
from stability.studies.results import UNKNOWN, CellStatus, Failure, StudyResults

__all__ = ["NOTHING", "TextColumn", "columns_of", "legend", "render", "study_table"]


_BOUNDS = {"theorem_1": "Theorem 1", "hard_mask": "hard mask", "first_order": "middle", "theorem_2": "Theorem 2"}
_VARIED = {"of S": "samples_share", "of seeds": "seeds_share", "of i": "sampling_share"}

NOTHING = "–"
"""What stands where a row holds nothing."""

_LEGEND: list[tuple[tuple[str, ...], str]] = [
    (
        ("stability",),
        "stability: mean over seeds of E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|. Its interval is over seeds, and cut at 0; of one seed "
        "it is over the examples that were left out, and of two there is none.",
    ),
    ((), "±: one standard deviation over seeds."),
    (("left out",), "left out: retrainings a cell."),
    (
        tuple(_VARIED),
        "of S, of seeds, of i: the share in a cell's variance of fresh training sets, of seeds on one of them, and of not leaving "
        "out every i.",
    ),
    (
        ("p",),
        "p: fraction of the m pretrained parameters that may change (k of them), m with the inserted ones where a method inserts "
        "modules; the new head is tunable besides. Of 'regularised' all may change, and p is 1 − λ.",
    ),
    (("seconds",), "seconds: how long a seed's selections, trainings and evaluations took."),
    (("Theorem 1", "hard mask"), "Theorem 1, hard mask: bounds on the stability."),
    (("middle",), "middle: the stability to first order."),
    (("Theorem 2",), "Theorem 2: bound on the test loss."),
    (
        tuple(_BOUNDS.values()),
        "*: an assumption failed in at least one seed (Λ_min < 0, trained without the bound's ridge λ or not to its minimum, or "
        "another mask on Sⁱ).",
    ),
    (tuple(_BOUNDS.values()), "†: vacuous in at least one seed, no less than the largest loss. ∞: no positive curvature. –: none."),
]
"""The columns of which one must be there, and what is said then."""


def study_table(results: StudyResults) -> pd.DataFrame:
    """A row for each task, method and p, its numbers ready to read.

    Args:
        results: the results of a study.

    Returns:
        Text: mean ± standard deviation over seeds, stability with its 95 % interval, bounds with a mark where they are vacuous or
        one of their assumptions failed.

    Raises:
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> study_table(StudyResults.read("figures/paper-quick-bounds.sqlite"))["k"].tolist()
        [22713216, 113566]
    """
    return pd.DataFrame({title: column.texts for title, column in columns_of(results).items()})


class TextColumn(NamedTuple):
    """A column of a table that people read.

    Attributes:
        texts: what is shown, a text or a whole number for each row.
        values: by what the rows are sorted: numbers, NaN where there is none, or words.
    """

    texts: list[Any]
    values: list[Any]


def columns_of(results: StudyResults) -> dict[str, TextColumn]:
    """The columns of :func:`study_table` by their titles. One in which no row holds anything is left out.

    Args:
        results: the results of a study.

    Raises:
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> columns_of(StudyResults.read("figures/paper-quick-bounds.sqlite"))["k"].values
        [22713216, 113566]
    """
    summary = results.summary().table
    metrics = results.table["metric"].dropna().unique()
    metric = str(metrics[0]) if len(metrics) == 1 else "metric"

    def plainly(name: str) -> TextColumn:
        return TextColumn(summary[name].tolist(), summary[name].tolist())

    def formatted(name: str, form: str) -> TextColumn:
        values = summary[name].astype(float).tolist()
        return TextColumn([NOTHING if math.isnan(value) else format(value, form) for value in values], values)

    def mean_std(name: str) -> TextColumn:
        pairs = zip(summary[name], summary[f"{name}_std"], strict=True)
        texts = [NOTHING if math.isnan(m) else f"{m:.3f} ± {s:.3f}" if math.isfinite(s) else f"{m:.3f}" for m, s in pairs]
        return TextColumn(texts, summary[name].tolist())

    def bound(name: str) -> TextColumn:
        pairs = zip(summary[name], summary[f"{name}_state"], strict=True)
        return TextColumn([_bound(value, state) for value, state in pairs], summary[name].astype(float).tolist())

    seeds = zip(summary["seeds"], summary["failed"], strict=True)
    # Of one seed the interval is its own, over the examples that were left out. Two say too little of their spread.
    told = summary[["samples", "measured"]].min(axis=1) != 2
    ends = zip(summary["stability_low"].where(told), summary["stability_high"].where(told), strict=True)
    every = {
        **({"task": plainly("task")} if summary["task"].nunique() > 1 else {}),
        "method": plainly("method"),
        "p": formatted("sparsity", ".4f"),
        "k": plainly("tunable"),
        "m": plainly("total"),
        "head": plainly("head"),
        "seeds": TextColumn([f"{ok}" + (f" (+{bad} failed)" if bad else "") for ok, bad in seeds], summary["seeds"].tolist()),
        **({"measured": plainly("measured")} if not summary["measured"].equals(summary["seeds"]) else {}),
        f"train {metric}": mean_std("train_metric"),
        f"test {metric}": mean_std("test_metric"),
        "test loss": mean_std("test_loss"),
        "gap": mean_std("gap"),
        "stability": formatted("stability", ".3f"),
        "95 % interval": TextColumn([_interval(low, high) for low, high in ends], summary["stability_low"].where(told).tolist()),
        "left out": formatted("retrainings", ".4g"),
        **{title: formatted(name, ".0%") for title, name in _VARIED.items()},
        "noise floor": formatted("noise_floor", ".1e"),
        **{title: bound(name) for name, title in _BOUNDS.items()},
        "failed replicas": plainly("failed_replicas"),
        "seconds": formatted("seconds", ".1f"),
    }
    return {title: column for title, column in every.items() if any(text != NOTHING for text in column.texts)}


def render(results: StudyResults) -> str:
    """The table of a study as text, with what its marks mean.

    Args:
        results: the results of a study.

    Returns:
        The table of :func:`study_table`, what failed and why, what a reader must know, and what the columns and marks mean.

    Raises:
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> render(StudyResults.read("figures/paper-quick-bounds.sqlite")).splitlines()[0].split()[:4]
        ['method', 'p', 'k', 'm']
    """
    table = study_table(results)
    lines = [*_failures(results), *(f"note: {note}" for note in results.notes)]
    return "\n".join([table.to_string(index=False), *lines, "", *legend(list(table.columns))])


def legend(titles: Collection[str]) -> list[str]:
    """What the columns and marks of a table mean, a line each; of those only that are there.

    Args:
        titles: the titles of the columns.

    Example:
        >>> legend(["method", "p", "seconds"])[-1]
        "seconds: how long a seed's selections, trainings and evaluations took."
    """
    return [text for needed, text in _LEGEND if not needed or set(needed) & set(titles)]


def _failures(results: StudyResults) -> list[str]:
    """What failed, a line for each method that never finished, and for each reason."""
    lines = [f"every seed failed: {name}" for name in results.summary().all_failed]
    bad = results.table[results.table["status"] == CellStatus.FAILED]
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in bad.to_dict("records"):
        asked = "" if pd.isna(row["sparsity"]) else f" at p = {row['sparsity']:g}"
        what = row["method"] + asked + (f" on {row['task']}" if len(results.tasks) > 1 else "")
        kind = row.get("failure")
        final = kind == Failure.METHOD or pd.isna(kind)  # records from before there were kinds have none
        why = row["reason"] + ("" if final else " (tried again when the study is run again)")
        grouped.setdefault((what, why), []).append(str(row["seed"]))
    lines += [f"failed: {what}, seed {', '.join(seeds)}: {why}" for (what, why), seeds in grouped.items()]
    return lines


def _interval(low: float, high: float) -> str:
    return NOTHING if math.isnan(low) and math.isnan(high) else f"{max(low, 0):.3f} … {high:.3f}"


def _bound(value: float, state: str) -> str:
    if state == UNKNOWN:
        return NOTHING
    marks: dict[str, str] = {State.ASSUMPTION_FAILED: " *", State.VACUOUS: " †"}
    mark = marks.get(state, "")
    return ("∞" if math.isinf(value) else f"{value:.3g}") + mark
