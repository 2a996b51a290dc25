"""What a study measured in the form of the paper's tables: one row for each method and task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from stability.checks import check_fraction, check_sparsity
from stability.errors import UsageError
from stability.studies.ranks import RankCorrelation, rank_correlation
from stability.studies.results import StudyResults

__all__ = ["PAIRS", "IncomparableError", "Scores", "correlations", "differing", "scores", "std_interval"]


class IncomparableError(UsageError):
    """A study has several settings of one method, or trains its methods in different ways: no table compares them."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Methods on tasks in numbers that can be compared, in the form of the paper's tables.

    Attributes:
        table: a row for each method and task: task, method, mean, std (both in per cent of the metric), seeds, and what else is
            known of them.
        title: what these numbers are.
        notes: what a reader of them must know, a sentence each.

    Example:
        >>> mine = Scores(pd.DataFrame({"task": ["cb", "rte"], "method": ["sam", "sam"], "mean": [88.9, 76.5]}), "mine")
        >>> mine.only(mine.table["task"] == "cb")
        Scores('mine', 1 methods on 1 tasks)
    """

    table: pd.DataFrame
    title: str
    notes: tuple[str, ...] = ()

    def only(self, rows: pd.Series[bool]) -> Scores:
        """Keep some rows.

        Args:
            rows: of each row of the table whether it is kept.

        Returns:
            Scores with the same title and notes.
        """
        return replace(self, table=self.table[rows])

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Scores({self.title!r}, {self.table['method'].nunique()} methods on {self.table['task'].nunique()} tasks)"

    def _repr_html_(self) -> str:
        return self.table.to_html()


def scores(results: StudyResults, sparsity: float | None = None) -> Scores:
    """The test metric's mean and spread over seeds, and the measured stability, of each method on each task of a study.

    A table has one setting of each method. Where a study has several that differ in p, ``sparsity`` takes of each method the one
    whose p is nearest (in log p). A method that is there once is taken as it is.

    Args:
        results: the results of the study.
        sparsity: p, for methods with several; None where each method is there once.

    Returns:
        Scores with the columns task, method, sparsity (the p of the mask), mean, std (n − 1 over seeds; NaN of fewer than two),
        both in per cent of the metric; seeds, missing (cells that are not there, failed ones among them); gap, train_loss,
        test_loss; stability with stability_low and stability_high, measured (cells), retrainings, and correlation (of retraining
        with its prediction, in the mean over cells). A method and task without a cell has a row too. The interval is over seeds
        where stability was measured with several, otherwise over the choice of the examples that are left out.

    Raises:
        UsageError: p is outside (0, 1].
        IncomparableError: several settings of one method, or settings of training other than the learning rate that differ
            between methods: the setting is named.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> import tempfile
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit, Random
        >>> from stability.studies import Study, run
        >>> algorithms = tuple(FineTuning(selector, steps=3) for selector in (BitFit(), Random(0.1)))
        >>> study = Study("mine", "digits", algorithms, (0, 1), problem_settings={"n": 20}, check_replicas=None, measured_seeds=0)
        >>> found = scores(run(study, f"{tempfile.mkdtemp()}/mine.sqlite", device="cpu", workers=1))
        >>> found.table[["task", "method", "seeds", "missing"]].to_numpy().tolist()
        [['digits', 'bitfit', 2, 0], ['digits', 'random', 2, 0]]
    """
    identity, table, summary = results.identity, results.table, results.summary().table
    chosen = _one_of_each(summary, results.algorithms, sparsity)
    notes = [*results.notes, _trained(identity, [results.algorithms[name] for name in chosen.values()])]
    cells = len(identity["seeds"]) * len(identity.get("samples", [0]))
    rows = []
    for task in results.tasks:
        for method, algorithm in chosen.items():
            mine = summary[(summary["task"] == task) & (summary["algorithm"] == algorithm)]
            row: dict[str, Any] = {"task": task, "method": method, "seeds": 0, "missing": cells}
            if len(mine):
                one = mine.iloc[0]
                row |= {"sparsity": one["sparsity"], "mean": 100 * one["test_metric"], "std": 100 * one["test_metric_std"]}
                row |= {"seeds": int(one["seeds"]), "missing": cells - int(one["seeds"]), "measured": int(one["measured"])}
                row |= {name: one[name] for name in _TAKEN}
                if "simulated_coverage" in table:  # old records have none
                    own = table[(table["task"] == task) & (table["algorithm"] == algorithm) & table["stability"].notna()]
                    row["simulated_coverage"] = own["simulated_coverage"].astype(float).mean()
            rows.append(row)
    columns = ["task", "method", "sparsity", "mean", "std", "seeds", "missing", *_TAKEN, "measured", "simulated_coverage"]
    found = pd.DataFrame(rows).reindex(columns=columns)
    found["measured"] = found["measured"].fillna(0).astype(int)
    if sparsity is not None:
        had = found.drop_duplicates("method").dropna(subset="sparsity")
        notes.append("p: " + ", ".join(f"{p:.2g} ({name})" for name, p in zip(had["method"], had["sparsity"], strict=True)))
    if lost := int(found["missing"].sum()):
        notes.append(f"{lost} of {cells * len(found)} cells are missing, not finished or failed")
    if cells < 2:
        notes.append("one seed a cell: there is no standard deviation")
    return Scores(found, f"study {results.study}", tuple(notes))


_TAKEN = ("gap", "train_loss", "test_loss", "stability", "stability_low", "stability_high", "retrainings")


def _one_of_each(summary: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]], sparsity: float | None) -> dict[str, str]:
    """The name of each method's one algorithm, in the study's order."""
    if sparsity is not None:
        check_sparsity(sparsity)
    chosen = {}
    measured = summary.groupby("algorithm")["sparsity"].mean().to_dict()
    methods = dict.fromkeys(algorithm["method"] for algorithm in settings.values())
    for method in methods:
        mine = [name for name, algorithm in settings.items() if algorithm["method"] == method]
        asked = {name: settings[name]["selector"].get("sparsity") for name in mine}
        had = {name: p for name in mine if (p := measured.get(name) or asked[name]) is not None and p > 0}
        known = len(had) == len(mine)
        if len(mine) > 1 and known and sparsity is not None:
            distance = {name: round(abs(math.log(p / sparsity)), 9) for name, p in had.items()}
            mine = [name for name, value in distance.items() if value == min(distance.values())]
        if len(mine) > 1:
            swept = sparsity is None and known and len({*had.values()}) == len(mine)
            setting, values = differing(settings[name] for name in mine)
            if swept:
                setting, values = "sparsity", [f"{asked[name] or had[name]:.3g}" for name in mine]
            raise IncomparableError(
                f"{method} has {len(mine)} settings in this study, {setting} = {', '.join(values)}, and a table has one of each "
                f"method: " + ("choose with --sparsity P" if swept else "keep those that belong together, with results.only(…)")
            )
        chosen[method] = mine[0]
    training = [
        {n: v for n, v in settings[name].items() if n not in ("selector", "method", "learning_rate")} for name in chosen.values()
    ]
    if any(one != training[0] for one in training):
        setting, values = differing(training)
        raise IncomparableError(f"methods of this study were trained with {setting} = {', '.join(values)}: no table compares them")
    return chosen


def differing(settings: Iterable[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The first setting in which settings of algorithms differ, and its values.

    Example:
        >>> differing([{"steps": 4, "selector": {"name": "full"}}, {"steps": 8, "selector": {"name": "full"}}])
        ('steps', ['4', '8'])
    """
    every = [{**one, **one["selector"]} if "selector" in one else one for one in settings]
    for name in dict.fromkeys(name for one in every for name in one if name != "selector"):
        values = list(dict.fromkeys(str(one.get(name)) for one in every))
        if len(values) > 1:
            return name, values
    return "settings", ["…"]


def _trained(identity: Mapping[str, Any], algorithms: list[Mapping[str, Any]]) -> str:
    """How the methods were trained: on how many examples, for how many steps, at which learning rates."""
    first = algorithms[0]
    sizes = {name: one["problem_settings"].get("n") for name, one in identity.get("problems", {"": identity}).items()}
    n = ", ".join(f"{size} of {name}" if name else f"{size}" for name, size in sizes.items() if size is not None)
    told = [f"{n} training examples" if n else "", *(f"{name} {first[key]}" for name, key in _TOLD.items() if key in first)]
    rates: dict[float, list[str]] = {}
    for one in algorithms:
        if "learning_rate" in one:
            rates.setdefault(one["learning_rate"], []).append(one["method"])
    each = "; ".join(f"{rate:g}" + (f" ({', '.join(names)})" if len(rates) > 1 else "") for rate, names in rates.items())
    return ", ".join(part for part in told if part) + (f"; learning rate {each}" if each else "")


_TOLD = {"steps": "steps", "batch": "batch_size", "minimised to": "tolerance"}


PAIRS = (
    ("mean", "std", "small spread over seeds with a large mean"),
    ("stability", "std", "small leave-one-out stability with a small spread over seeds"),
    ("stability", "mean", "small leave-one-out stability with a large mean"),
    ("stability", "gap", "small leave-one-out stability with a small generalization gap"),
)
"""Which columns are correlated, and in which direction ρ is positive."""


def correlations(scores: Scores) -> dict[tuple[str, str], RankCorrelation]:
    """Spearman's ρ of every two columns of :data:`PAIRS` that are known for at least three pairs of method and task.

    Args:
        scores: methods on tasks.

    Returns:
        The correlation by the names of both columns; without those whose ranks are all equal.

    Example:
        >>> from stability.studies import published_scores
        >>> [round(found.value, 2) for found in correlations(published_scores("perturbation")).values()]
        [0.31]
    """
    table, found = scores.table, {}
    for first, second, _ in PAIRS:
        if {first, second} <= set(table) and table[[first, second]].notna().all(axis=1).sum() >= 3:
            one = rank_correlation(table, first, second)
            if math.isfinite(one.value):
                found[first, second] = one
    return found


def std_interval(std: float, seeds: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the standard deviation of a normal population: s √((a − 1) / χ²), χ² with a − 1 degrees of freedom.

    Args:
        std: the sample's standard deviation s, with the divisor a − 1.
        seeds: the size a of the sample.
        confidence: the confidence of the interval, in (0, 1).

    Returns:
        Both ends, in the unit of s; NaN of fewer than two seeds.

    Raises:
        UsageError: a confidence out of range.

    Example:
        >>> [round(end, 2) for end in std_interval(1.0, 10)]
        [0.69, 1.83]
    """
    check_fraction(confidence=confidence)
    if seeds < 2 or not math.isfinite(std):
        return math.nan, math.nan
    quantiles = stats.chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], seeds - 1)
    low, high = std * np.sqrt((seeds - 1) / quantiles)
    return float(low), float(high)
