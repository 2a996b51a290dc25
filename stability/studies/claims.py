"""The claims of Fu et al. 2023, put to the results of studies: what was measured of each, and what follows.

Each claim is a number of comparisons, or one correlation of ranks. A comparison has a 95 % interval, and a p-value after Holm's
correction for all comparisons of its claim. The verdict follows from these by one rule (:attr:`Answer.verdict`), and from nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from stability.errors import UsageError
from stability.leave_one_out.statistics import Numbers, mean_over_seeds
from stability.studies.comparison import holm
from stability.studies.identity import cells_of
from stability.studies.published import METHODS, TASKS, published_scores
from stability.studies.ranks import RankCorrelation, rank_correlation
from stability.studies.results import CellStatus, StudyResults
from stability.studies.scores import scores

__all__ = ["Answer", "Verdict", "answers", "cells_to_compute", "learned"]

_LEVEL = 0.05
_FEW = 3  # missing parts that a sentence names
_MANY = 100  # times as many runs that nobody makes
_FEWEST = 3  # seeds of which a t interval is taken

PROJECTED, CHOSEN_BEFORE = ("diffpruning", "childpruning"), ("random", "magnitude", "sam")
"""The methods that project onto a mask while they train, and those of the same p that choose it before."""


class Verdict(StrEnum):
    """What follows from what was measured of a claim."""

    CONFIRMED = "confirmed"
    """At least half of the comparisons are clear in the claim's direction, and none in the other; or the correlation is."""
    REFUTED = "refuted"
    """At least half of the comparisons are clear in the other direction, and none in the claim's; or the correlation is."""
    OPEN = "not resolved"
    """Neither."""
    MISSING = "not measured"
    """There is nothing to compare yet."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """What was measured of one claim.

    Attributes:
        claim: the claim, in a sentence.
        published: what the paper has as evidence, in a sentence.
        quantity: what the numbers of the table are.
        table: a row for each comparison: task, what (is compared), effect with low and high (the ends of its 95 % interval), p
            (after Holm's correction), clear (``for`` the claim, ``against`` it, or empty), count and over (how many seeds, examples
            or methods the interval is over). Of a correlation there is one row.
        verdict: what follows.
        resolve: what would resolve it, in a sentence; empty where it is resolved.
        missing: what the studies still lack, a phrase each.
    """

    claim: str
    published: str
    quantity: str
    table: pd.DataFrame
    verdict: Verdict
    resolve: str = ""
    missing: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The answer in one sentence, with what would resolve it."""
        known = self.table[self.table["p"].notna()]
        count = {which: int((known["clear"] == which).sum()) for which in ("for", "against")}
        told = f"{self.verdict.value[0].upper()}{self.verdict.value[1:]}"
        if self.verdict is Verdict.MISSING:
            return f"{told}. {self.resolve}".strip()
        of = f"{count['for']} of {len(known)} comparisons are clear for the claim, {count['against']} against it"
        if len(known) == 1:
            of = f"clear {'for' if count['for'] else 'against'} the claim" if sum(count.values()) else "not clear"
            of += " as far as it is measured" if self.missing else ""
        return f"{told}: {of}. {self.resolve}".strip()

    def __str__(self) -> str:
        """The claim, the answer in a sentence, and each comparison."""
        told = f"{self.claim} {self.sentence}"
        if self.table.empty:
            return told
        return f"{told}\n{self.quantity}:\n{self.table.to_string(index=False, float_format='{:.3g}'.format)}"


def cells_to_compute(results: Sequence[StudyResults]) -> tuple[str, ...]:
    """What studies still lack: a phrase for each that is unfinished.

    Args:
        results: of the studies, as far as they are.

    Example:
        >>> cells_to_compute([StudyResults.read("figures/discontinuity.sqlite")])
        ()
    """
    _check_list(results)
    return tuple(f"{one.to_compute} of {cells_of(one.identity)} cells of {one.study}" for one in results if one.to_compute)


def learned(results: Sequence[StudyResults]) -> pd.DataFrame:
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
    _check_list(results)
    rows = []
    for one in results:
        table = _finished(one)
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


def answers(
    main: Sequence[StudyResults],
    swept: Sequence[StudyResults] = (),
    perturbed: Sequence[StudyResults] = (),
    *,
    missing: Sequence[str] = (),
) -> list[Answer]:
    """Put the claims to what was measured. Studies may be unfinished: then nothing is concluded, and what they lack is told.

    What hardly moves from its start is stable and worth nothing. So claims about stability are put to those methods on each task
    alone that learned it (:func:`learned`); where that is unknown, as with one seed, the method counts.

    Args:
        main: methods on tasks, one setting of each, as the study ``paper`` has them. A study for each task will do. Methods of
            your own count like those of the paper.
        swept: methods at several p, with full tuning as p = 1.
        perturbed: the methods of ``main``, each seed without a part of S.
        missing: what is missing besides, a phrase each, such as studies that were not begun: only you know of them. Nothing is
            concluded until there is none.

    Returns:
        An answer for each claim.

    Raises:
        UsageError: two studies of one kind have a task in common, or the results of one study stand in no list.

    Example:
        >>> found = answers([StudyResults.read("figures/paper-quick.sqlite")])
        >>> print(found[2].claim, found[2].verdict.value)
        Stable methods have a small gap between test and training loss. confirmed
    """
    for several in (main, swept, perturbed):
        _check_list(several)
        tasks = [task for one in several for task in one.tasks]
        if twice := [task for task in tasks if tasks.count(task) > 1]:
            raise UsageError(f"{twice[0]} is in two studies: give one study for each task")
    lost, lost_sweep, lost_perturbed = map(cells_to_compute, (main, swept, perturbed))
    lost, lost_sweep = (*lost, *missing), (*lost_sweep, *missing)
    tasks = [task for one in main for task in one.tasks]
    every, main, swept_learned = main, [*map(_that_learned, main)], [*map(_that_learned, swept)]
    table = _joined(main)
    spread = _joined(perturbed)
    return [
        _compared(
            "Sparse fine-tuning is more stable than full tuning.",
            "A bound that falls with p (Theorem 1). The paper does not measure leave-one-out stability.",
            "leave-one-out stability, divided by that of full tuning",
            list(_stabilities(main, None, ("full",))),
            smaller=True,
            missing=lost,
        ),
        _compared(
            "The smaller p is, the more stable is fine-tuning.",
            "A bound that falls with p (Theorem 1).",
            "leave-one-out stability at ten times as large a p, divided by that at p: a straight line through the logarithms",
            list(_trends(swept_learned)),
            smaller=False,
            missing=lost_sweep if swept else (*lost_sweep, "the studies of several p"),
        ),
        _correlated(
            "Stable methods have a small gap between test and training loss.",
            "A bound (Theorem 2). The paper does not measure it.",
            (table, "stability", "gap"),
            missing=lost,
        ),
        _correlated(
            "Stable methods have a better test performance.",
            _published_correlation(),
            (table, "stability", "mean"),
            missing=lost,
        ),
        _inner(swept, lost_sweep),
        _compared(
            "SAM has a better test performance than random and magnitude masks at equal p.",
            _published_sam(tasks),
            "test metric of SAM less that of the other, in percentage points",
            _of_both(_metrics(every, ("random", "magnitude")), _metrics(swept, ("random", "magnitude"))),
            smaller=False,
            missing=(*lost, *lost_sweep),
        ),
        _compared(
            "Projection methods are less stable than methods that choose their mask before training, at equal p.",
            _published_spread(tasks),
            "leave-one-out stability, divided by the geometric mean of those of random, magnitude and SAM",
            list(_stabilities(main, PROJECTED, CHOSEN_BEFORE)),
            smaller=False,
            missing=lost,
        ),
        _correlated(
            "The spread over seeds stands for leave-one-out stability.",
            "Assumed: the paper calls the spread over seeds stability.",
            (table, "stability", "std"),
            missing=lost,
        ),
        _correlated(
            "The spread over perturbed training sets stands for leave-one-out stability.",
            "Assumed of Table 2.",
            (_beside(table, spread), "stability", "std"),
            missing=(*lost, *lost_perturbed) if perturbed else (*lost, "the studies of perturbed data"),
        ),
        _correlated(
            "A small spread over seeds goes with a large mean.",
            _published_correlation(),
            (table, "mean", "std"),
            missing=lost,
        ),
    ]


def _check_list(results: Sequence[StudyResults]) -> None:
    if isinstance(results, StudyResults):
        raise UsageError(f"results of study {results.study!r} alone: give a list of results, such as [results]")


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


def _unfinished(missing: Sequence[str]) -> str:
    told = list(dict.fromkeys(missing))
    what = ", ".join(told) if len(told) <= _FEW else f"{len(told)} parts of them"
    return f"First the studies must be finished: {what} are to be computed."


def _finished(results: StudyResults) -> pd.DataFrame:
    table = results.table
    return table[table["status"] == CellStatus.OK] if len(table) else table


def _joined(results: Sequence[StudyResults]) -> pd.DataFrame:
    """The scores of several studies below each other; empty where nothing is finished."""
    tables = [scores(one).table for one in results if len(_finished(one))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["task", "method", "mean", "std", "stability"])


def _beside(table: pd.DataFrame, spread: pd.DataFrame) -> pd.DataFrame:
    """The stabilities of one table with the spreads of another."""
    return table.drop(columns=["mean", "std"]).merge(spread[["task", "method", "mean", "std"]], on=["task", "method"])


Row = dict[str, Any]


def _row(task: str, what: str, effect: float, low: float, high: float, p: float, **more: Any) -> Row:
    return {"task": task, "what": what, "effect": effect, "low": low, "high": high, "p": p, **more}


def _by_p(results: StudyResults) -> Iterator[tuple[str, str, float | None, str, pd.DataFrame]]:
    """Task, method, p as asked for and name of each algorithm, with its finished cells by seed."""
    table = _finished(results)
    for task in results.tasks if len(table) else ():
        for name, one in results.algorithms.items():
            mine = table[(table["task"] == task) & (table["algorithm"] == name)].set_index("seed")
            yield task, one["method"], one["selector"].get("sparsity"), name, mine


def _stabilities(results: Sequence[StudyResults], methods: Sequence[str] | None, others: Sequence[str]) -> Iterator[Row]:
    """The stability of methods, divided by the geometric mean of others'; logarithms until they are told.

    Methods are named, or all that train a part of the parameters: Mixout, for example, trains all.

    Over three seeds or more it is Student's interval of the paired differences. With fewer it is formed from the cells' own
    intervals, and speaks of those S and seeds alone.
    """
    for one in results:
        every = list(_by_p(one))
        for task, method, p, _, mine in every:
            wanted = (mine["sparsity"].astype(float) < 1).all() if methods is None else method in methods
            if not wanted:
                continue
            # At the same p where the other has several, and whatever its p where it has its own.
            beside = [its for at, other, q, _, its in every if at == task and other in others and (q is None or q == p)]
            logs = _logs(mine)
            against = [_logs(its) for its in beside]
            if len(against) < len(others) or not len(logs):
                continue
            both = pd.concat([logs["log"], *(its["log"] for its in against)], axis=1).dropna()
            if both.empty:
                continue
            differences = (both.iloc[:, 0] - both.iloc[:, 1:].mean(axis=1)).to_numpy()
            what = method if p is None else f"{method}, p = {p:g}"
            errors = pd.concat([logs["error"], *(its["error"] / len(against) for its in against)], axis=1).loc[both.index]
            yield _over(task, what, differences, errors.to_numpy())


def _trends(results: Sequence[StudyResults]) -> Iterator[Row]:
    """How the stability of each method changes with p: the slope of its logarithm in the decimal logarithm of p, by least squares.

    It needs three p at which stability was measured. Full tuning has no part in it: all slopes would share its error. The interval
    is formed as that of :func:`_stabilities` is.
    """
    for one in results:
        every = list(_by_p(one))
        for task, method in dict.fromkeys((task, method) for task, method, *_ in every):
            mine = [(float(its["sparsity"].mean()), _logs(its)) for on, other, _, _, its in every if (on, other) == (task, method)]
            mine = [(p, its) for p, its in mine if len(its)]
            p, at = [one for one, _ in mine], [its for _, its in mine]
            if len(set(p)) < _FEWEST:
                continue
            logs, errors = (pd.concat([its[name] for its in at], axis=1).dropna() for name in ("log", "error"))
            if logs.empty:
                continue
            x = np.log10(p)
            x -= x.mean()
            weights = x / (x**2).sum()
            parts = np.where(weights == 0, 0.0, errors.loc[logs.index].to_numpy()) * weights
            yield _over(task, f"{method}, {len(set(p))} p", logs.to_numpy() @ weights, parts)


def _over(task: str, what: str, values: Numbers, errors: Numbers) -> Row:
    """The mean of one value a seed: with three seeds or more by Student's interval, else by the errors of the cells it is made of.

    Args:
        task: the task.
        what: what is compared.
        values: of each seed.
        errors: a row for each seed: the standard errors of the parts that a value is the sum of. They are taken as independent,
            though methods may leave out the same examples.
    """
    count = len(values)
    if count >= _FEWEST:
        found = mean_over_seeds(values)
        return _row(task, what, found.value, *found.interval, _p_of_mean(values), count=count, over="seeds")
    error = float(np.sqrt((errors**2).sum())) / count
    value, half = float(values.mean()), 1.959964 * error
    p_value = float(2 * stats.norm.sf(abs(value) / error)) if error > 0 else math.nan
    return _row(task, what, value, value - half, value + half, p_value, count=count, over="examples")


def _logs(cells: pd.DataFrame) -> pd.DataFrame:
    """The logarithm of each cell's stability and its standard error, by seed; infinite where the interval has no upper end."""
    rows = {}
    known = cells[["stability", "stability_low", "stability_high"]].astype(float)
    for seed, value, low, high in known.itertuples():
        if not value > 0:
            continue
        low, high = max(0.0 if math.isnan(low) else low, 1e-3 * value), math.inf if math.isnan(high) else high
        exact = high == low
        reach = 0.0 if exact else max(math.log(value / low), math.log(high / value) if math.isfinite(high) else math.inf)
        rows[seed] = {"log": math.log(value), "error": reach / 1.959964}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["log", "error"])


def _p_of_mean(differences: Numbers) -> float:
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def _metrics(results: Sequence[StudyResults], others: Sequence[str]) -> Iterator[Row]:
    """The test metric of SAM less that of others at the same p, in percentage points, over seeds."""
    for one in results:
        every = list(_by_p(one))
        for task, method, p, _, mine in every:
            if method != "sam":
                continue
            for at, other, q, _, its in every:
                if at != task or other not in others or q != p:
                    continue
                both = pd.concat([mine["test_metric"], its["test_metric"]], axis=1).dropna().astype(float)
                if len(both) < _FEWEST:
                    continue
                differences = 100 * (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy()
                found = mean_over_seeds(differences)
                p_value = _p_of_mean(differences)
                yield _row(task, f"{other}, p = {p:g}", found.value, *found.interval, p_value, count=len(both), over="seeds")


def _compared(claim: str, published: str, quantity: str, rows: Sequence[Row], *, smaller: bool, missing: tuple[str, ...]) -> Answer:
    """The answer of several comparisons. Where ``quantity`` is a ratio the rows hold logarithms."""
    table = pd.DataFrame(list(rows), columns=["task", "what", "effect", "low", "high", "p", "count", "over"])
    table["p"] = holm(table["p"].astype(float))
    clear = table["p"] < _LEVEL
    wanted = (table["effect"] < 0) if smaller else (table["effect"] > 0)
    table["clear"] = np.where(clear, np.where(wanted, "for", "against"), "")
    known = table[table["p"].notna()]
    supports, denies = ((known["clear"] == which).sum() for which in ("for", "against"))
    if known.empty:
        verdict, resolve = Verdict.MISSING, _unfinished(missing) if missing else "It needs studies that measure it."
    elif missing:  # what is known so far may not stand for all
        verdict, resolve = Verdict.OPEN, _unfinished(missing)
    elif 2 * supports >= len(known) and not denies:
        verdict, resolve = Verdict.CONFIRMED, ""
    elif 2 * denies >= len(known) and not supports:
        verdict, resolve = Verdict.REFUTED, ""
    else:
        verdict, resolve = Verdict.OPEN, _what_would(known, mixed=bool(supports and denies))
    if "divided" in quantity:
        table[["effect", "low", "high"]] = np.exp(table[["effect", "low", "high"]].astype(float))
    return Answer(
        claim=claim, published=published, quantity=quantity, table=table, verdict=verdict, resolve=resolve, missing=missing
    )


def _what_would(known: pd.DataFrame, *, mixed: bool) -> str:
    """What would resolve a claim of several comparisons."""
    if mixed:
        return "It is so of some methods or tasks and not of others; no number of runs will make it one answer."
    unclear = known[known["clear"] == ""]
    half = np.maximum(unclear["high"] - unclear["effect"], unclear["effect"] - unclear["low"])
    factor = float(((half / unclear["effect"].abs()) ** 2).replace([np.inf], np.nan).median())
    if not factor < _MANY:
        return "Most of the unclear differences are too small to become significant by any number of runs that can be had."
    of = "seeds" if (unclear["over"] == "seeds").mean() >= 0.5 else "retrainings"
    return f"For half of the unclear differences to be clear, about {max(2, math.ceil(factor))} times as many {of} are needed."


def _correlated(claim: str, published: str, of: tuple[pd.DataFrame, str, str], *, missing: tuple[str, ...]) -> Answer:
    """The answer of a correlation of ranks within tasks: positive is for the claim."""
    table, first, second = of
    quantity = (
        f"Spearman's ρ between {first} and {second}, ranked within each task; positive is for the claim, and the interval decides"
    )
    found = _correlation(table, first, second)
    if found is None:
        rows = pd.DataFrame([], columns=["task", "what", "effect", "low", "high", "p", "clear", "count", "over"])
        resolve = _unfinished(missing) if missing else "It needs three methods on a task."
        return Answer(
            claim=claim,
            published=published,
            quantity=quantity,
            table=rows,
            verdict=Verdict.MISSING,
            resolve=resolve,
            missing=missing,
        )
    low, high = found.interval
    side = "for" if low > 0 else "against" if high < 0 else ""
    verdict = {"for": Verdict.CONFIRMED, "against": Verdict.REFUTED, "": Verdict.OPEN}[side]
    if missing:  # what is known so far may not stand for all
        verdict = Verdict.OPEN
    what = f"{found.methods} methods, {found.count} pairs"
    row = _row("all", what, found.value, low, high, found.method_p_value, clear=side, count=found.count, over="methods")
    resolve = ""
    if verdict is Verdict.OPEN:
        resolve = _unfinished(missing) if missing else _more_pairs(found)
    return Answer(
        claim=claim,
        published=published,
        quantity=quantity,
        table=pd.DataFrame([row]),
        verdict=verdict,
        resolve=resolve,
        missing=missing,
    )


def _correlation(table: pd.DataFrame, first: str, second: str) -> RankCorrelation | None:
    if not {first, second} <= set(table) or table[[first, second]].notna().all(axis=1).sum() < 3:
        return None
    found = rank_correlation(table, first, second)
    return found if math.isfinite(found.value) else None


def _more_pairs(found: RankCorrelation) -> str:
    low, high = found.interval
    if not math.isfinite(low) or not found.value or abs(found.value) >= 1:
        return "More methods are needed."
    half = (math.atanh(high) - math.atanh(low)) / 2
    factor = max(2, math.ceil((half / math.atanh(found.value)) ** 2))
    return f"If ρ is what was found, about {factor} times as many methods are needed for its interval to have one sign."


def _inner(swept: Sequence[StudyResults], missing: tuple[str, ...]) -> Answer:
    """Is an inner p better than both ends? At each inner p the smaller of its two advantages, with the larger of their p-values."""
    rows = []
    for one in swept:
        every = list(_by_p(one))
        for task in one.tasks:
            full = [mine for at, method, _, _, mine in every if at == task and method == "full"]
            for method in dict.fromkeys(method for at, method, p, _, _ in every if at == task and p is not None):
                mine = {p: its for at, other, p, _, its in every if at == task and other == method and p is not None}
                least = min(mine)
                for p in sorted(mine)[1:]:
                    ends = [_advantage(mine[p], end) for end in (mine[least], *full[:1])]
                    if len(ends) < 2 or any(end is None for end in ends):
                        continue
                    worst = min((end for end in ends if end is not None), key=lambda end: end[0])
                    p_value = max(end[3] for end in ends if end is not None)
                    rows.append(_row(task, f"{method}, p = {p:g}", *worst[:3], p_value, count=worst[4], over="seeds"))
    found = _compared(
        "The best test performance is at an inner p, between very sparse masks and full tuning.",
        "A figure: SAM's mean over p, whose best p is below 0.2. There is no test of it.",
        "test metric less that at the nearer of the two ends (the least p, and full tuning), in percentage points",
        rows,
        smaller=False,
        missing=missing if swept else ("the studies of several p",),
    )
    if found.verdict is Verdict.MISSING:
        return found
    # One p is enough for each method and task: the claim is that there is one.
    curves = found.table.assign(curve=found.table["task"] + " " + found.table["what"].str.partition(",")[0])
    best = curves.groupby("curve")["clear"].agg(lambda clear: bool((clear == "for").any()))
    if missing:
        return found
    if 2 * best.sum() >= len(best):
        return replace(found, verdict=Verdict.CONFIRMED, resolve="")
    return replace(found, verdict=Verdict.OPEN, resolve=_what_would(found.table, mixed=False))


def _advantage(inner: pd.DataFrame, end: pd.DataFrame) -> tuple[float, float, float, float, int] | None:
    both = pd.concat([inner["test_metric"], end["test_metric"]], axis=1).dropna().astype(float)
    if len(both) < _FEWEST:
        return None
    differences = 100 * (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy()
    found = mean_over_seeds(differences)
    one_sided = _p_of_mean(differences) / 2
    return found.value, *found.interval, one_sided if found.value > 0 else 1 - one_sided, len(both)


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
