"""What a study measured in the form of the paper's tables: one row for each method and task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from stability.checks import check_sparsity
from stability.errors import UsageError
from stability.studies import published
from stability.studies.ranks import RankCorrelation, rank_correlation
from stability.studies.summary import summarise

__all__ = ["PAIRS", "against_published", "correlations", "scores", "std_interval"]


def scores(frame: pd.DataFrame, sparsity: float | None = None) -> pd.DataFrame:
    """The test metric's mean and spread over seeds, and the measured stability, of each method on each task of a study.

    A table has one setting of each method. Where a study has several that differ in p, ``sparsity`` takes of each method the one
    whose p is nearest (in log p); it leaves alone what is there once.

    Args:
        frame: of :func:`stability.studies.summary.table`.
        sparsity: p.

    Returns:
        Columns task, method, sparsity (the p that was had), mean, std (n − 1 over seeds; NaN of fewer than two), both in per cent
        of the metric; seeds, missing (cells that are not there, failed ones among them); gap, train_loss, test_loss; stability with
        stability_low and stability_high, measured (cells), retrainings and correlation of these with their prediction (of each, in
        the mean). A method and task without a cell has a row too. The interval is over seeds where stability was measured with
        several, otherwise over the choice of what is left out.
        ``attrs["title"]`` names the study; ``attrs["notes"]`` says what a reader must know of it.

    Raises:
        UsageError: several settings of one method, or settings of training other than the learning rate that differ between
            methods: the setting is named.

    Example:
        >>> import tempfile
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit, Random
        >>> from stability.studies.study import Study, run
        >>> algorithms = tuple(FineTuning(selector, steps=3) for selector in (BitFit(), Random(0.1)))
        >>> study = Study("mine", "digits", algorithms, (0, 1), {"n": 20}, retrainings=2, check_replicas=None)
        >>> found = scores(run(study, f"{tempfile.mkdtemp()}/mine.sqlite", device="cpu", workers=1))
        >>> found[["task", "method", "seeds", "missing"]].to_numpy().tolist()
        [['digits', 'bitfit', 2, 0], ['digits', 'random', 2, 0]]
    """
    plan, settings, summary = frame.attrs["plan"], frame.attrs["algorithms"], summarise(frame)
    chosen = _one_of_each(summary, settings, sparsity)
    tasks = list(plan["problems"]) if "problems" in plan else list(dict.fromkeys(summary["task"]))
    notes = _notes(plan, [settings[name] for name in chosen.values()])
    cells = len(plan["seeds"]) * len(plan.get("samples", [0]))
    rows = []
    for task in tasks:
        for method, algorithm in chosen.items():
            mine = summary[(summary["task"] == task) & (summary["algorithm"] == algorithm)]
            row: dict[str, Any] = {"task": task, "method": method, "seeds": 0, "missing": cells}
            if len(mine):
                one = mine.iloc[0]
                row |= {"sparsity": one["sparsity"], "mean": 100 * one["test_metric"], "std": 100 * one["test_metric_std"]}
                row |= {"seeds": int(one["seeds"]), "missing": cells - int(one["seeds"]), "measured": int(one["measured"])}
                row |= {name: one[name] for name in _TAKEN}
                alone = frame[(frame["task"] == task) & (frame["algorithm"] == algorithm) & frame["stability"].notna()]
                row["correlation"] = alone["correlation"].astype(float).mean()
            rows.append(row)
    columns = ["task", "method", "sparsity", "mean", "std", "seeds", "missing", *_TAKEN, "measured", "correlation"]
    found = pd.DataFrame(rows).reindex(columns=columns)
    found["measured"] = found["measured"].fillna(0).astype(int)
    if sparsity is not None:
        had = found.drop_duplicates("method").dropna(subset="sparsity")
        notes.append("p: " + ", ".join(f"{p:.2g} ({name})" for name, p in zip(had["method"], had["sparsity"], strict=True)))
    if lost := int(found["missing"].sum()):
        notes.append(f"{lost} of {cells * len(found)} cells are missing, not finished or failed")
    if cells < 2:
        notes.append("one seed a cell: there is no standard deviation")
    found.attrs.update(title=f"study {plan['study']}", notes=notes)
    return found


_TAKEN = ("gap", "train_loss", "test_loss", "stability", "stability_low", "stability_high", "retrainings")


def _one_of_each(summary: pd.DataFrame, settings: dict[str, dict[str, Any]], sparsity: float | None) -> dict[str, str]:
    """The algorithm of each method, by name, in the study's order."""
    if sparsity is not None:
        check_sparsity(sparsity)
    chosen = {}
    methods = dict.fromkeys(algorithm["method"] for algorithm in settings.values())
    for method in methods:
        mine = [name for name, algorithm in settings.items() if algorithm["method"] == method]
        there = summary[summary["algorithm"].isin(mine)]
        if len(mine) > 1 and sparsity is not None and len(there):
            distance = np.abs(np.log(there["sparsity"].to_numpy(dtype=float)) - math.log(sparsity)).round(9)
            mine = list(dict.fromkeys(there["algorithm"][distance == distance.min()]))
        if len(mine) > 1:
            setting, values = _differing(settings[name] for name in mine)
            swept = there["sparsity"].nunique() == len(mine)
            raise UsageError(
                f"{method} has {len(mine)} settings in this study, {setting} = {', '.join(values)}, and a table has one of each "
                f"method: " + ("choose with --sparsity P" if swept else "take those rows of the frame that belong together")
            )
        chosen[method] = mine[0]
    training = [
        {n: v for n, v in settings[name].items() if n not in ("selector", "method", "learning_rate")} for name in chosen.values()
    ]
    if any(one != training[0] for one in training):
        setting, values = _differing(training)
        raise UsageError(f"methods of this study were trained with {setting} = {', '.join(values)}: no table compares them")
    return chosen


def _differing(settings: Iterable[dict[str, Any]]) -> tuple[str, list[str]]:
    """The first setting in which they differ, and its values."""
    every = [{**one, **one["selector"]} if "selector" in one else one for one in settings]
    for name in dict.fromkeys(name for one in every for name in one if name != "selector"):
        values = list(dict.fromkeys(str(one.get(name)) for one in every))
        if len(values) > 1:
            return name, values
    return "settings", ["…"]


def _notes(plan: dict[str, Any], algorithms: list[dict[str, Any]]) -> list[str]:
    """How it was trained."""
    first = algorithms[0]
    sizes = {name: one["problem_settings"].get("n") for name, one in plan.get("problems", {"": plan}).items()}
    n = ", ".join(f"{size} of {name}" if name else f"{size}" for name, size in sizes.items() if size is not None)
    told = [f"{n} training examples" if n else "", *(f"{name} {first[key]}" for name, key in _TOLD.items() if key in first)]
    rates: dict[float, list[str]] = {}
    for one in algorithms:
        if "learning_rate" in one:
            rates.setdefault(one["learning_rate"], []).append(one["method"])
    each = "; ".join(f"{rate:g}" + (f" ({', '.join(names)})" if len(rates) > 1 else "") for rate, names in rates.items())
    note = ", ".join(part for part in told if part) + (f"; learning rate {each}" if each else "")
    quick = "a quick protocol of a small model, few examples and steps, not the paper's"
    return [quick, note] if plan["study"].startswith("paper-quick") else [note]


_TOLD = {"steps": "steps", "batch": "batch_size", "minimised to": "tolerance"}


PAIRS = (
    ("mean", "std", "small spread over seeds with a large mean"),
    ("stability", "std", "small leave-one-out stability with a small spread over seeds"),
    ("stability", "mean", "small leave-one-out stability with a large mean"),
    ("stability", "gap", "small leave-one-out stability with a small generalization gap"),
)
"""Which columns are correlated, and in which direction ρ is positive."""


def correlations(scores: pd.DataFrame) -> dict[tuple[str, str], RankCorrelation]:
    """Spearman's ρ of every pair of :data:`PAIRS` that the scores know for at least three pairs of method and task.

    Example:
        >>> [round(found.value, 2) for found in correlations(published.scores("perturbation")).values()]
        [0.31]
    """
    found = {}
    for first, second, _ in PAIRS:
        if {first, second} <= set(scores) and scores[[first, second]].notna().all(axis=1).sum() >= 3:
            one = rank_correlation(scores, first, second)
            if math.isfinite(one.value):
                found[first, second] = one
    return found


def std_interval(std: float, seeds: int, confidence: float = 0.95) -> tuple[float, float]:
    """Of the standard deviation of a normal population: s √((a − 1) / χ²), χ² with a − 1 degrees of freedom.

    Args:
        std: s, with the divisor a − 1.
        seeds: a, from how many.
        confidence: of the interval.

    Returns:
        Both ends, in the unit of s; NaN of fewer than two seeds.

    Example:
        >>> [round(end, 2) for end in std_interval(1.0, 10)]
        [0.69, 1.83]
    """
    if seeds < 2 or not math.isfinite(std):
        return math.nan, math.nan
    quantiles = stats.chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], seeds - 1)
    low, high = std * np.sqrt((seeds - 1) / quantiles)
    return float(low), float(high)


def against_published(found: pd.DataFrame, part: published.Part = "main") -> pd.DataFrame:
    """The published numbers of the tasks and methods of ``found``.

    Raises:
        UsageError: the paper has none of these tasks.

    Example:
        >>> mine = pd.DataFrame({"task": ["cb", "digits"], "method": ["sam", "sam"]})
        >>> against_published(mine)[["task", "method", "mean"]].to_numpy().tolist()
        [['cb', 'sam', 88.93]]
    """
    theirs = published.scores(part)
    tasks = list(dict.fromkeys(found["task"]))
    if not set(tasks) & set(theirs["task"]):
        raise UsageError(
            f"there are no published numbers for {', '.join(tasks)}: the paper has {', '.join(published.TASKS)}; leave --against "
            "out"
        )
    title = theirs.attrs["title"]
    if "mixout-reset" in set(found["method"]) and "mixout" not in set(found["method"]):
        theirs["method"] = theirs["method"].replace("mixout", "mixout-reset")  # which is the paper's form of it
    theirs = theirs[theirs["task"].isin(tasks) & theirs["method"].isin(found["method"])].reset_index(drop=True)
    every = f"{theirs['method'].nunique()} of its methods on {theirs['task'].nunique()} of its tasks"
    theirs.attrs.update(title=title, notes=[f"ranks among {every}"])
    return theirs
