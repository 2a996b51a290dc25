"""Estimates that carry their uncertainty: a value, an interval, and from how many of how many."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from stability.errors import UsageError

__all__ = ["Estimate", "mean_of_population", "mean_over_seeds"]


@dataclass(frozen=True)
class Estimate:
    """A mean and how well it is known.

    Attributes:
        value: the estimate.
        interval: lower and upper end.
        confidence: of the interval, e.g. 0.95.
        count: how many values were measured.
        population: of how many.
    """

    value: float
    interval: tuple[float, float]
    confidence: float
    count: int
    population: int


def mean_of_population(values: ArrayLike, population: int, confidence: float = 0.95, missing: int = 0) -> Estimate:
    """The mean of a finite population of non-negative values, from a simple random sample without replacement.

    ȳ ± t_{a−1} · s/√a · √(1 − a/N), a values of N (Cochran 1977, eqs. 2.20 and 2.24), with two sure statements added:
    the mean is at least Σy/N, because what was not sampled is not negative, and with a = N it is known exactly.
    The t interval assumes a sample mean that is nearly normal. Leave-one-out differences are heavy-tailed: from few
    values it covers less often than it says.

    Args:
        values: the a measured values.
        population: N.
        confidence: of the interval, in (0, 1).
        missing: values that were sampled but could not be measured. They need not be like the others, so any
            such value leaves the upper end unbounded, and the lower end is then the sure one.

    Raises:
        UsageError: no values, more than N, or a confidence outside (0, 1).

    Example:
        >>> mean_of_population([1.0, 2.0, 3.0], population=3).interval
        (2.0, 2.0)
    """
    y = np.asarray(values, dtype=np.float64)
    a = len(y)
    if not 1 <= a + missing <= population or a == 0:
        raise UsageError(f"{a} measured and {missing} missing values of a population of {population}: at least 1 must be measured")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence = {confidence} is outside (0, 1)")
    value, sure = float(y.mean()), float(y.sum()) / population
    if missing:
        return Estimate(value, (sure, math.inf), confidence, a, population)
    if a == population:
        return Estimate(value, (value, value), confidence, a, population)
    if a == 1:
        return Estimate(value, (sure, math.inf), confidence, a, population)
    error = float(y.std(ddof=1)) * math.sqrt((1 - a / population) / a)
    half = float(stats.t.ppf((1 + confidence) / 2, a - 1)) * error
    return Estimate(value, (max(value - half, sure), value + half), confidence, a, population)


def mean_over_seeds(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean over independent runs: x̄ ± t_{a−1} · s/√a. One run gives an unbounded interval, not none.

    Example:
        >>> mean_over_seeds([1.0, 1.0]).interval
        (1.0, 1.0)
    """
    x = np.asarray(values, dtype=np.float64)
    a = len(x)
    if a == 0:
        raise UsageError("the mean over no runs: at least 1 is needed")
    if a == 1:
        return Estimate(float(x[0]), (-math.inf, math.inf), confidence, 1, 1)
    half = float(stats.t.ppf((1 + confidence) / 2, a - 1)) * float(x.std(ddof=1)) / math.sqrt(a)
    return Estimate(float(x.mean()), (float(x.mean()) - half, float(x.mean()) + half), confidence, a, a)
