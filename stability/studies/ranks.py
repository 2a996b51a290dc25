"""Ranks within tasks, and how far two of them go together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from stability.checks import check_fraction, check_whole
from stability.errors import UsageError
from stability.leave_one_out.statistics import Numbers

__all__ = ["RankCorrelation", "rank_correlation", "ranked"]


_FEWEST = 4  # methods of which an interval can be had
_FIELLER = 1.03  # times 1/√(M − 3): the standard error of artanh ρ of M independent pairs
_DIGITS = 9  # equal but for the order in which they were summed is equal


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Rank the numbers of a table within each task: 1 is best, ties share the mean of their ranks.

    Args:
        table: a row for each method and task, as in :attr:`stability.studies.Scores.table`: task, method, mean (larger is better),
            std; and, where it was measured, stability.

    Returns:
        The same table with rank_mean (1: the largest mean), rank_std (1: the smallest standard deviation) and rank_stability (1:
        the smallest |Δℓ|), NaN where there is no number.

    Example:
        >>> from stability.studies import published_scores
        >>> found = ranked(published_scores("main").table)
        >>> found.query("task == 'cb'").set_index("method").loc["sam", ["rank_mean", "rank_std"]].tolist()
        [2.5, 1.0]
    """
    found = table.copy()
    for column, smallest in (("mean", False), ("std", True), ("stability", True)):
        if column in found:
            found[f"rank_{column}"] = found[column].round(_DIGITS).groupby(found["task"]).rank(ascending=smallest)
    return found


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's ρ between ranks within tasks.

    Attributes:
        value: ρ, over all pairs of method and task together. It is NaN where all ranks are equal, and the p-values with it.
        interval: for ρ, from the jackknife over methods (:func:`rank_correlation`); NaN of fewer than four methods, and where all
            ranks are equal without one of them.
        confidence: the confidence of the interval.
        p_value: the two-sided p-value of ρ = 0, as if the pairs were independent, by Student's t with count − 2 degrees of freedom:
            what the paper reports.
        method_p_value: the p-value of ρ = 0 when methods are shuffled as wholes.
        count: the number of pairs of method and task.
        methods: the number of methods with at least one pair.
    """

    value: float
    interval: tuple[float, float]
    confidence: float
    p_value: float
    method_p_value: float
    count: int
    methods: int

    def __str__(self) -> str:
        return f"{self.estimate}, {self.tests}"

    @property
    def estimate(self) -> str:
        """ρ with its interval, in words."""
        low, high = self.interval
        return f"{self.value:.3f}" + (f" ({self.confidence:.0%}: {low:.2f} to {high:.2f})" if math.isfinite(low) else "")

    @property
    def tests(self) -> str:
        """Both p-values, in words."""
        return f"p = {self.p_value:.2g} as if independent, {self.method_p_value:.2g} by methods"


def rank_correlation(
    table: pd.DataFrame, first: str, second: str, *, confidence: float = 0.95, permutations: int = 1_999, seed: int = 0
) -> RankCorrelation:
    """Spearman's ρ of two columns, each ranked within its task, over all methods and tasks (Fu et al. 2023, the figure of stability
    against performance, with ``mean`` and ``std``).

    The ranks within a task are taken less their mean, are ranked again among all pairs, and are again taken less the task's mean.
    Where every task has the same methods, and there are no ties, ρ is that of the ranks within tasks. A task with fewer methods has
    smaller ranks, and without this the two columns would seem to go together. A task with more methods counts more.

    The pairs are not independent: a method that varies much on one task does so on others. So there are, beside the p-value as if
    they were, two statements that take a method's tasks together. The interval is Student's, with M − 1 degrees of freedom, on
    Fisher's scale artanh ρ, its standard error that of the jackknife which leaves out one of the M methods at a time and ranks the
    others again (Efron & Stein 1981). Where any of these ρ is ±1, for which artanh is infinite, it counts as half a step of the
    ranks less, and the standard error is at least 1.03/√(M − 3) (Fieller, Hartley & Pearson 1957). The second p-value is the share
    of ``permutations`` shuffles of whole methods, each keeping its numbers on all tasks, whose \\|ρ\\| is no less. Where methods
    lack tasks, a shuffle has fewer pairs, and this p-value is rather too large.

    Args:
        table: a row for each method and task: task, method and both columns. A pair of method and task that lacks a number is left
            out before the ranks are taken.
        first: the name of a column; of ``mean`` the largest has rank 1, of all others the smallest.
        second: the name of the other column.
        confidence: the confidence of the interval, in (0, 1).
        permutations: how many shuffles of methods the second p-value is from.
        seed: the seed of the permutations.

    Returns:
        ρ with its interval and both p-values.

    Raises:
        UsageError: a column that is not there, one method twice for one task, fewer than three pairs, or a number out of range.

    Example:
        >>> from stability.studies import published_scores
        >>> found = rank_correlation(published_scores("main").table, "mean", "std")
        >>> round(found.value, 3), found.count
        (0.485, 70)
    """
    check_fraction(confidence=confidence)
    check_whole(0, permutations=permutations)
    if odd := [name for name in (first, second) if name not in table]:
        raise UsageError(f"there is no column {odd[0]!r}: there is {', '.join(map(str, table.columns))}")
    known = table[table[[first, second]].notna().all(axis=1)]
    if known.duplicated(["task", "method"]).any():
        raise UsageError("a method stands twice for one task: give one setting of each method")
    if len(known) < 3:
        raise UsageError(f"{len(known)} pairs of method and task with {first} and {second}: ranks need at least 3")
    x, y = (
        known.pivot(index="method", columns="task", values=name).to_numpy(dtype=np.float64).round(_DIGITS)
        * (-1 if name == "mean" else 1)
        for name in (first, second)
    )
    value, count, methods = _spearman(x, y), len(known), len(x)
    if math.isnan(value):
        return RankCorrelation(
            value=math.nan,
            interval=(math.nan, math.nan),
            confidence=confidence,
            p_value=math.nan,
            method_p_value=math.nan,
            count=count,
            methods=methods,
        )
    t = abs(value) * math.sqrt((count - 2) / (1 - value**2)) if abs(value) < 1 else math.inf
    generator = np.random.default_rng(seed)
    shuffled = [_spearman(x, y[generator.permutation(methods)]) for _ in range(permutations)]
    as_large = sum(not abs(other) < abs(value) - 1e-12 for other in shuffled)
    return RankCorrelation(
        value=value,
        interval=_interval(x, y, confidence),
        confidence=confidence,
        p_value=float(2 * stats.t.sf(t, count - 2)),
        method_p_value=(as_large + 1) / (permutations + 1),
        count=count,
        methods=methods,
    )


def _spearman(x: Numbers, y: Numbers) -> float:
    """Spearman's ρ of (methods, tasks) values, ranked within each task where both are known; NaN where all ranks are equal."""
    return _rho_and_step(x, y)[0]


def _rho_and_step(x: Numbers, y: Numbers) -> tuple[float, float]:
    """Spearman's ρ, and by how much it changes where two neighbours within a task change places; NaN where all ranks are equal."""
    both = ~(np.isnan(x) | np.isnan(y))
    some = both.any(axis=0)
    x_ranks, y_ranks = (_ranks(values[:, some], both[:, some]) for values in (x, y))
    scale = math.sqrt(float(np.nansum(x_ranks**2) * np.nansum(y_ranks**2)))
    if not scale:
        return math.nan, math.nan
    gaps = [np.diff(np.sort(ranks, axis=0), axis=0) for ranks in (x_ranks, y_ranks)]  # of T tasks, neighbours are about T apart
    step = math.prod(float(mine[mine > 0].min()) for mine in gaps)
    return float(np.nansum(x_ranks * y_ranks)) / scale, step / scale


def _ranks(values: Numbers, both: NDArray[np.bool_]) -> Numbers:
    """Ranks within each task, then among all pairs, each time less the task's mean; NaN where there is no pair."""
    ranks = stats.rankdata(np.where(both, values, np.nan), axis=0, nan_policy="omit")
    # Without the mean, a task with few methods would have small ranks alone, and two columns would seem to go together.
    ranks -= np.nanmean(ranks, axis=0)
    ranks[both] = stats.rankdata(ranks[both])
    return np.asarray(ranks - np.nanmean(ranks, axis=0), dtype=np.float64)


def _interval(x: Numbers, y: Numbers, confidence: float) -> tuple[float, float]:
    methods = len(x)
    found = [_rho_and_step(x, y), *(_rho_and_step(np.delete(x, i, axis=0), np.delete(y, i, axis=0)) for i in range(methods))]
    if methods < _FEWEST or not np.isfinite(found).all():
        return math.nan, math.nan
    rho, step = np.array(found).T
    bounded = np.where(np.abs(rho) > 1 - 1e-12, np.sign(rho) * (1 - step / 2), rho)
    value, *some = np.arctanh(bounded)
    error = math.sqrt((methods - 1) / methods * float(((some - np.mean(some)) ** 2).sum()))
    if (bounded != rho).any():
        error = max(error, _FIELLER / math.sqrt(methods - 3))
    half = float(stats.t.ppf((1 + confidence) / 2, methods - 1)) * error
    return math.tanh(value - half), math.tanh(value + half)
