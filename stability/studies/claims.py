"""The claims of Fu et al. 2023, put to the results of studies: what was measured of each, and what follows.

Each claim is a number of comparisons, or one correlation of ranks. :mod:`.effects` has what is compared, and :mod:`.verdicts` the
rule by which a verdict follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import pandas as pd

from stability.errors import UsageError
from stability.leave_one_out.statistics import mean_over_seeds
from stability.studies.effects import (
    Row,
    finished,
    inner_advantages,
    metric_differences,
    over_tasks,
    stability_ratios,
    stability_slopes,
)
from stability.studies.identity import cells_of
from stability.studies.published import METHODS, TASKS, published_scores
from stability.studies.ranks import rank_correlation
from stability.studies.rates import is_search
from stability.studies.results import StudyResults
from stability.studies.scores import differing, scores
from stability.studies.verdicts import Answer, Statement

__all__ = ["Kind", "answers", "cells_to_compute", "kind_of", "learned", "not_learned", "within_rounding"]

PROJECTED, CHOSEN_BEFORE = ("diffpruning", "childpruning"), ("random", "magnitude", "sam")
"""The methods that project onto a mask while they train, and those of the same p that choose it before."""

_EXPECTED = (
    "This says little of the theorem: the mean change of an example's loss, with its sign, is an estimate of the gap, and "
    "stability is the mean absolute change."
)


class Kind(StrEnum):
    """What a study is for the claims."""

    MAIN = "one setting of each method"
    SWEPT = "methods at several p"
    PERTURBED = "perturbed training sets"
    SEARCH = "a search for learning rates"
    CURVE = "one method at several learning rates, with its stability"


def kind_of(results: StudyResults) -> Kind:
    """What a study is for the claims.

    Args:
        results: of the study, as far as it is.

    Raises:
        UsageError: a method has several settings that differ in something else than p or the learning rate, or the study draws S
            apart from the seeds: the claims compare no such results.

    Example:
        >>> kind_of(StudyResults.read("figures/paper-quick.sqlite"))
        <Kind.MAIN: 'one setting of each method'>
    """
    if results.identity.get("samples"):
        raise UsageError(f"{_place(results)} draws S apart from the seeds (samples), and the claims take each seed for another S")
    if is_search(results):
        alone = len({one["method"] for one in results.algorithms.values()}) == 1
        return Kind.CURVE if alone and results.identity.get("measured_seeds") != 0 else Kind.SEARCH
    settings = list(results.algorithms.values())
    asked = [(one["method"], _p_of(results, name)) for name, one in results.algorithms.items()]
    if twice := [place for place in asked if asked.count(place) > 1]:
        name, values = differing(one for one, place in zip(settings, asked, strict=True) if place == twice[0])
        raise UsageError(
            f"{_place(results)}: {twice[0][0]} was trained with {name} = {', '.join(values)}; the claims take one setting of each "
            "method and p: keep those that belong together, with StudyResults.only"
        )
    if results.removed:
        return Kind.PERTURBED
    return Kind.MAIN if len({method for method, _ in asked}) == len(asked) else Kind.SWEPT


def _p_of(results: StudyResults, name: str) -> float | None:
    """p of an algorithm as asked for, or else as measured; None where there is neither."""
    asked = results.algorithms[name].get("selector", {}).get("sparsity")
    if asked is not None or not len(table := finished(results)):
        return None if asked is None else float(asked)
    measured = table.loc[table["algorithm"] == name, "sparsity"].astype(float).mean()
    return None if math.isnan(measured) else round(measured, 9)


def cells_to_compute(results: StudyResults | Iterable[StudyResults]) -> tuple[str, ...]:
    """What studies still lack: a phrase for each that is unfinished.

    Args:
        results: of the studies, as far as they are.

    Example:
        >>> cells_to_compute([StudyResults.read("figures/discontinuity.sqlite")])
        ()
    """
    return tuple(
        f"{one.to_compute} of {cells_of(one.identity)} cells of {one.study}" for one in _several(results) if one.to_compute
    )


def learned(results: StudyResults | Iterable[StudyResults]) -> pd.DataFrame:
    """Which methods learned which task: the test metric beside that of the commonest class, and of full tuning.

    Args:
        results: studies with one setting of each method; tasks of several studies stand below each other.

    Returns:
        A row for each task and method: task, method, algorithm (its name in the results), sparsity, learning_rate, seeds,
        test_metric, std, constant (the metric of the commonest class, or the mean label), above (the mean difference from it) with
        low and high (its 95 % interval over seeds), than_full (the mean difference from full tuning, seed by seed), train_loss,
        and learned: whether the interval of ``above`` is above 0; None where there are fewer than two seeds.

    Example:
        >>> learned([]).empty
        True
    """
    rows = []
    for one in _several(results):
        table = finished(one)
        for (task, algorithm), mine in table.groupby(["task", "algorithm"], sort=False) if len(table) else ():
            mine = mine.set_index("seed")
            settings = one.algorithms[str(algorithm)]
            metric = mine["test_metric"].astype(float)
            same = mine["test_constant"].astype(float) if "test_constant" in mine else pd.Series(math.nan, index=mine.index)
            full = table[(table["task"] == task) & (table["method"] == "full")].set_index("seed")["test_metric"].astype(float)
            above = (metric - same).dropna()
            found = mean_over_seeds(above.to_numpy()) if len(above) else None
            rows.append(
                {
                    "task": task,
                    "method": settings["method"],
                    "algorithm": algorithm,
                    "sparsity": float(mine["sparsity"].astype(float).mean()),
                    "learning_rate": settings.get("learning_rate", math.nan),
                    "seeds": len(mine),
                    "test_metric": metric.mean(),
                    "std": metric.std(ddof=1),
                    "constant": same.mean(),
                    "above": math.nan if found is None else found.value,
                    "low": math.nan if found is None else found.interval[0],
                    "high": math.nan if found is None else found.interval[1],
                    "than_full": (metric - full).dropna().mean(),
                    "train_loss": mine["train_loss"].astype(float).mean(),
                    "learned": None if found is None or found.count < 2 else bool(found.interval[0] > 0),
                }
            )
    return pd.DataFrame(rows, columns=_LEARNED)


_LEARNED = [
    *(
        "task",
        "method",
        "algorithm",
        "sparsity",
        "learning_rate",
        "seeds",
        "test_metric",
        "std",
        "constant",
        "above",
        "low",
        "high",
    ),
    *("than_full", "train_loss", "learned"),
]


def answers(results: StudyResults | Iterable[StudyResults], *, missing: Sequence[str] = ()) -> list[Answer]:
    """Put the claims to what was measured. Studies may be unfinished: then nothing is concluded, and what they lack is told.

    What hardly moves from its start is stable and worth nothing. So claims about stability are put to those methods on each task
    alone that learned it (:func:`learned`). Where that is not known of some, as with one seed, these claims are not resolved.

    What is compared on several tasks is one comparison, of the mean over them, so that more tasks are no more tests. Only an inner
    p is compared on each. The interval is that of Welch's test, for any number of tasks, and takes them as independent.

    Args:
        results: of one study or several, in any order, such as the experiments of a :class:`~stability.studies.Protocol`. What a
            study is for the claims follows from what it has: one setting of each method; methods at several p, with full tuning as
            p = 1; or a part of S left out by each seed. A search for learning rates has no part in the comparisons, nor has
            one method at several learning rates (:func:`at_equal_training_loss`). Studies of one kind must be of different tasks.
            Methods of your own count like those of the paper.
        missing: what is missing besides, a phrase each, such as studies that were not begun: only you know of them. Nothing is
            concluded until there is none.

    Returns:
        An answer for each claim.

    Raises:
        UsageError: two studies of one kind have a task in common, or a study has several settings of one method and p.

    Example:
        >>> found = answers(StudyResults.read("figures/paper-quick.sqlite"))
        >>> print(found[4].claim, found[4].verdict.value)
        The best test performance is at an inner p, between very sparse masks and full tuning. not measured
    """
    of: dict[Kind, list[StudyResults]] = {kind: [] for kind in Kind}
    for one in _several(results):
        of[kind_of(one)].append(one)
    for kind in (Kind.MAIN, Kind.SWEPT, Kind.PERTURBED):
        _check_tasks(kind, of[kind])
    main, swept, perturbed = of[Kind.MAIN], of[Kind.SWEPT], of[Kind.PERTURBED]
    besides = (*cells_to_compute(of[Kind.SEARCH]), *missing)
    lost = (*cells_to_compute(main), *besides)
    lost_sweep = (*cells_to_compute(swept), *besides, *(() if swept else ("a study of methods at several p",)))
    lost_perturbed = (*lost, *(cells_to_compute(perturbed) if perturbed else ("a study of perturbed training sets",)))
    tasks = [task for one in main for task in one.tasks]
    main_learned, swept_learned = [*map(_that_learned, main)], [*map(_that_learned, swept)]
    unsure = _not_known(main)
    table = _joined(main_learned)
    others = ("random", "magnitude")
    of_main: dict[str, Any] = {"missing": lost, "unsure": unsure}
    return [
        Statement(
            claim="Sparse fine-tuning is more stable than full tuning.",
            published="A bound that falls with p (Theorem 1). The paper does not measure leave-one-out stability.",
            **of_main,
        ).by_comparisons(
            "leave-one-out stability, divided by that of full tuning",
            over_tasks(stability_ratios(main_learned, None, ("full",))),
            smaller=True,
            ratio=True,
            needs="It needs one setting of each method, among them full tuning and one with p below 1, and their stability.",
        ),
        Statement(
            claim="The smaller p is, the more stable is fine-tuning.",
            published="A bound that falls with p (Theorem 1).",
            missing=lost_sweep,
            unsure=_not_known(swept),
        ).by_comparisons(
            "leave-one-out stability at ten times as large a p, divided by that at p (a straight line through the logarithms)",
            over_tasks(stability_slopes(swept_learned)),
            smaller=False,
            ratio=True,
            needs="It needs the stability of a method at three p or more.",
        ),
        Statement(
            claim="Stable methods have a small gap between test and training loss.",
            published="A bound (Theorem 2). The paper does not measure it.",
            note=_EXPECTED,
            **of_main,
        ).by_correlation(table, "stability", "gap"),
        Statement(
            claim="Stable methods have a better test performance.", published=_published_correlation(), **of_main
        ).by_correlation(table, "stability", "mean"),
        Statement(
            claim="The best test performance is at an inner p, between very sparse masks and full tuning.",
            published="A figure: SAM's mean over p, whose best p is below 0.2. There is no test of it.",
            missing=lost_sweep,
        ).by_comparisons(
            "test metric less that at the least p or with full tuning, whichever decides, in percentage points",
            inner_advantages(swept),
            smaller=False,
            needs="It needs full tuning, two p or more of a method, and three seeds.",
            groups="methods on a task",
        ),
        Statement(
            claim="SAM has a better test performance than random and magnitude masks at equal p.",
            published=_published_sam(tasks),
            missing=(*lost, *cells_to_compute(swept)),
        ).by_comparisons(
            "test metric of SAM less that of the other, in percentage points",
            over_tasks(_of_both(metric_differences(main, "sam", others), metric_differences(swept, "sam", others))),
            smaller=False,
            needs="It needs three seeds of SAM and of random or magnitude masks at one p.",
        ),
        Statement(
            claim="Projection methods are less stable than methods that choose their mask before training, at equal p.",
            published=_published_spread(tasks),
            missing=lost,
            unsure=_not_known(main, (*PROJECTED, *CHOSEN_BEFORE)),
        ).by_comparisons(
            "leave-one-out stability, divided by the geometric mean of those of random, magnitude and SAM",
            over_tasks(stability_ratios(main_learned, PROJECTED, CHOSEN_BEFORE)),
            smaller=False,
            ratio=True,
            needs="It needs the stability of DiffPruning or ChildPruning, and of random, magnitude and SAM at the same p.",
        ),
        Statement(
            claim="The spread over seeds stands for leave-one-out stability.",
            published="Assumed: the paper calls the spread over seeds stability.",
            **of_main,
        ).by_correlation(table, "stability", "std"),
        Statement(
            claim="The spread over perturbed training sets stands for leave-one-out stability.",
            published="Assumed of Table 2.",
            missing=lost_perturbed,
            unsure=unsure,
        ).by_correlation(_beside(table, _joined(perturbed)), "stability", "perturbed_std"),
        Statement(
            claim="A small spread over seeds goes with a large mean.", published=_published_correlation(), **of_main
        ).by_correlation(table, "mean", "std"),
    ]


def not_learned(results: StudyResults | Iterable[StudyResults]) -> list[str]:
    """What claims about stability leave out, in words: the methods that did not learn a task, and those whose every cell failed.

    Args:
        results: as for :func:`answers`.

    Example:
        >>> not_learned(StudyResults.read("figures/claims/claims-stsb-sparsity.sqlite"))
        []
    """
    measuring = _measuring(results)
    failed = [f"{name} (every cell failed)" for one in measuring for name in one.summary().all_failed]
    return [*(_which(row) for row in learned(measuring).to_dict("records") if row["learned"] is False), *failed]


def within_rounding(results: StudyResults | Iterable[StudyResults]) -> list[str]:
    """Runs that claims about stability count, though their stability is no more than their noise floor, in words.

    Args:
        results: as for :func:`answers`.

    Example:
        >>> within_rounding(StudyResults.read("figures/claims/claims-cb-sparsity.sqlite"))  # full tuning is, and did not learn
        []
    """
    found = []
    for one in _measuring(results):
        measured = _that_learned(one).table.dropna(subset="stability")
        rows = measured[measured["stability"].astype(float) <= measured["noise_floor"].astype(float)].to_dict("records")
        found += [f"{_which(row)}, seed {row['seed']} ({row['stability']:.2g}, floor {row['noise_floor']:.2g})" for row in rows]
    return found


def _measuring(results: StudyResults | Iterable[StudyResults]) -> list[StudyResults]:
    """The studies whose stability the claims are about, as far as they have cells."""
    return [one for one in _several(results) if kind_of(one) in (Kind.MAIN, Kind.SWEPT) and len(one)]


def _which(row: Mapping[Any, Any]) -> str:
    return f"{row['method']} (p = {row['sparsity']:.2g}) on {row['task']}"


def _not_known(results: Sequence[StudyResults], methods: Sequence[str] | None = None) -> str:
    """That it is not known of some of the methods (None: of all) whether they learned; empty where it is."""
    rows = [row for row in learned(results).to_dict("records") if methods is None or row["method"] in methods]
    if not (unknown := [f"{_which(row)}, finished seeds: {row['seeds']}" for row in rows if row["learned"] is None]):
        return ""
    who = unknown[0] + (f"; and {len(unknown) - 1} more" if len(unknown) > 1 else "")
    return (
        f"It is not known whether methods learned: {who}. That takes two finished seeds or more, and the metric of a constant "
        "prediction, which stores of older versions lack."
    )


def _several(results: StudyResults | Iterable[StudyResults]) -> list[StudyResults]:
    found = [results] if isinstance(results, StudyResults) else list(results)
    if odd := [one for one in found if not isinstance(one, StudyResults)]:
        raise UsageError(f"{odd[0]!r} is no results of a study: read a store with StudyResults.read")
    return found


def _place(results: StudyResults) -> str:
    return repr(results.study) if results.store is None else str(results.store.path)


def _check_tasks(kind: Kind, results: Sequence[StudyResults]) -> None:
    """Studies of one kind have no task in common."""
    seen: dict[str, str] = {}
    for one in results:
        for task in one.tasks:
            if task in seen:
                raise UsageError(f"two studies of {kind} have {task}: leave out {seen[task]} or {_place(one)}")
            seen[task] = _place(one)


def _of_both(main: Iterable[Row], swept: Iterable[Row]) -> list[Row]:
    """Comparisons of main studies and of those at several p; what is compared in both comes from the main studies."""
    rows = list(main)
    known = {(row["task"], row["what"]) for row in rows}
    return [*rows, *(row for row in swept if (row["task"], row["what"]) not in known)]


def _that_learned(results: StudyResults) -> StudyResults:
    """The cells of each method on each task, without those that are known not to have learned it."""
    found = learned([results])
    not_learned = {(row["task"], row["algorithm"]) for row in found.to_dict("records") if row["learned"] is False}
    if not not_learned:
        return results
    kept = [place not in not_learned for place in zip(results.table["task"], results.table["algorithm"], strict=True)]
    return replace(results, table=results.table[kept])


def _joined(results: Sequence[StudyResults]) -> pd.DataFrame:
    """The scores of several studies below each other; empty where nothing is finished."""
    tables = [scores(one).table for one in results if len(finished(one))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["task", "method", "mean", "std", "stability"])


def _beside(table: pd.DataFrame, spread: pd.DataFrame) -> pd.DataFrame:
    """The scores of one table with the spreads of another as ``perturbed_std``."""
    perturbed = spread[["task", "method", "std"]].rename(columns={"std": "perturbed_std"})
    return table.merge(perturbed, on=["task", "method"])


def _published(tasks: Sequence[str]) -> pd.DataFrame:
    """Table 1 of the paper on these tasks; on all where it has none of them. Columns are pairs of a quantity and a method."""
    table = published_scores("main").table
    known = [task for task in tasks if task in TASKS] or list(TASKS)
    return table.pivot(index="task", columns="method", values=["mean", "std"]).loc[known]


def _published_sam(tasks: Sequence[str]) -> str:
    means = _published(tasks)["mean"]
    told = (
        f"{TASKS[str(task)]} {row['sam'] - row['random']:+.1f} and {row['sam'] - row['magnitude']:+.1f}"
        for task, row in means.iterrows()
    )
    return f"Table 1. SAM less random, and less magnitude, in points: {'; '.join(told)}."


def _published_spread(tasks: Sequence[str]) -> str:
    spread = _published(tasks)["std"]
    told = (
        f"{TASKS[str(task)]} {row[list(PROJECTED)].mean():.2f} and {row[list(CHOSEN_BEFORE)].mean():.2f}"
        for task, row in spread.iterrows()
    )
    names = " and ".join(METHODS[name] for name in PROJECTED)
    return f"The spread over seeds in Table 1, of {names} and of the others, in points: {'; '.join(told)}."


def _published_correlation() -> str:
    found = rank_correlation(published_scores("main").table, "mean", "std", permutations=0)
    return f"Only of the spread over seeds and the mean: ρ = {found.estimate} in Table 1."
