"""Estimates that carry their uncertainty: a value, an interval, and from how many of how many."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stability.checks import check_fraction
from stability.errors import UsageError

__all__ = [
    "Draws",
    "Estimate",
    "Numbers",
    "Shares",
    "calibrated_weights",
    "draw",
    "mean_of_draws",
    "mean_of_population",
    "mean_over_seeds",
    "ratio_of_draws",
    "variance_shares",
]

Numbers = NDArray[np.float64]

_BELOW, _ABOVE = (1.0, 1 / 5), (5 / 2, 1 / 3)  # what the variances by design and by model weigh at the two ends
_EQUAL = 1e-6  # relative: equal in single precision
_UNBOUNDED = 50.0  # an end that is exp of more times the value says nothing


@dataclass(frozen=True)
class Estimate:
    """A mean and how well it is known.

    Attributes:
        value: the estimate.
        interval: lower and upper end.
        confidence: of the interval, e.g. 0.95.
        count: how many values were measured.
        population: of how many.
        error: estimated standard error of the value, by design alone; 0 where all was measured, NaN where nothing is known of it.
    """

    value: float
    interval: tuple[float, float]
    _: KW_ONLY
    confidence: float
    count: int
    population: int
    error: float = math.nan

    @property
    def relative_half_width(self) -> float:
        """The farther end of the interval from the value, as a fraction of it."""
        reach = max(self.interval[1] - self.value, self.value - self.interval[0])
        return 0.0 if reach == 0 else reach / self.value if self.value > 0 else math.inf


def mean_of_population(values: ArrayLike, population: int, confidence: float = 0.95, missing: int = 0) -> Estimate:
    """The mean of a finite population of non-negative values, from a simple random sample without replacement.

    ȳ with the standard error s/√a · √(1 − a/N), a values of N (Cochran 1977, eqs. 2.20 and 2.24). The interval reaches as far
    on either side as the farther of two: ȳ ± t_{a−1} standard errors, and Hall's (1992), which undoes the skewness of
    the sample by a cubic. Leave-one-out differences are skewed, and from a few of them the first alone covers much less often
    than it says. Two sure statements are added: the mean is at least Σy/N, because what was not sampled is not negative, and
    with a = N it is known exactly. Values that are all equal say nothing of their spread: then there is no upper end.

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
    scale = math.sqrt(max(0.0, 1 - a / population))
    return _estimate(y, scale, float(y.sum()), confidence, population, missing)


@dataclass(frozen=True, eq=False)
class Draws:
    """All N items in the order in which they were drawn, one after the other without replacement.

    Each item has a clock that rings after an exponential time of rate x, its size, and is drawn when it rings. The next item is
    then always drawn with probability proportional to its size (Efraimidis & Spirakis 2006).

    Attributes:
        order: the items in that order, int64 (N,).
        clocks: when each of them rang, in that order, (N,).
        sizes: x of each item, (N,).
    """

    order: NDArray[np.int64]
    clocks: Numbers
    sizes: Numbers

    def probabilities(self, count: int) -> Numbers:
        """With which probability each of the first ``count`` was to be among them, (count,).

        p = 1 − exp(−x τ), τ the clock of the first item that was not drawn. Whatever the other clocks say, an item is among the
        first just if its own rings before τ. With all N drawn, p = 1.
        """
        first = self.order[:count]
        return np.ones(count) if count == len(self.order) else -np.expm1(-self.sizes[first] * self.clocks[count])


def draw(sizes: ArrayLike, generator: np.random.Generator) -> Draws:
    """Draw all N items one after the other without replacement, each with probability proportional to its size.

    The first a of them are a sample of a.

    Args:
        sizes: one positive number an item, (N,).
        generator: draws the order.

    Raises:
        UsageError: sizes that are not positive and finite.

    Example:
        >>> draw([1.0, 1e9], np.random.default_rng(0)).order
        array([1, 0])
    """
    x = _sizes(sizes)
    clocks = generator.standard_exponential(len(x)) / x
    order = np.argsort(clocks, kind="stable")
    return Draws(order, clocks[order], x)


def mean_of_draws(values: ArrayLike, draws: Draws, predicted: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of a finite population of non-negative values, from the first a of :func:`draw` and a prediction of all N.

    The value is Σ w y / N over the drawn, with the calibrated weights w = 1/p + (Σq − Σ q/p) / Σ_drawn q. Here p is the
    probability with which an item was drawn (:meth:`Draws.probabilities`), and q its predicted value. The same weights give the
    known Σq of all N from the drawn q. Written otherwise, it is the difference estimate (c Σq + Σ e/p) / N with
    c = Σy / Σ_drawn q and the residuals e = y − c q (Särndal, Swensson & Wretman 1992, chapter 6). With a fixed c it is unbiased
    *whatever predictions and sizes are worth*, for Σ e/p is then, on average, the Σ e of all (Duffield, Lund & Thorup 2007). That
    c is fitted to the draws costs a bias that is small beside the error. Where the value is less than the sure Σy/N, that is
    taken.

    Two variances measure what is left:

    - by design, V = a/(a − 1) Σ (1 − p) w² e² / N². It sees nothing of an example that the prediction misses until that is drawn;
    - by model, M = s² (N − a) / N² with s² = Σe²/(a − 1), as if the residuals of the rest were like the drawn ones. Those are the
      larger examples, so that s is rather too large.

    The interval goes from y̅·exp(−t √(V + M/5) / y̅) to y̅·exp(t √(5V/2 + M/3) / y̅), y̅ the value and t Student's with a − 1
    degrees of freedom. Differences are skewed, and what is missed is missed at the upper end. The four factors were chosen once, on
    the 39 populations of ``benchmarks/results/assisted-digits-cpu.json``, and tested on others (``benchmarks/intervals.py``). The
    mean is at least Σy/N. Values that are all equal say nothing of their spread: then there is no upper end. The ``error`` of the
    estimate is √V.

    Args:
        values: the a values in the order in which they were drawn; NaN where one could not be measured. The population
            is then the one without it, and the upper end is unbounded.
        draws: the order, of which they are the first.
        predicted: (N,) of all items, not negative. A hundredth of their mean is added to each, so that no item is infinitely
            larger than predicted.
        confidence: of the interval, in (0, 1).

    Raises:
        UsageError: no value that is a number, more than N, predictions that are negative, not finite or all zero, or a
            confidence outside (0, 1).

    Example:
        >>> draws = draw([3.0, 1.0, 1.0], np.random.default_rng(0))
        >>> truth, predicted = np.array([6.0, 2.0, 2.0]), np.array([3.0, 1.0, 1.0])
        >>> round(mean_of_draws(truth[draws.order[:2]], draws, predicted).value, 1)
        3.3
    """
    check_fraction(confidence=confidence)
    y, q, a = np.asarray(values, dtype=np.float64), _predicted(predicted, len(draws.order)), len(np.atleast_1d(values))
    known = _known(y, len(q))
    population, missing = len(q), int((~known).sum())
    first = draws.order[:a]
    total, p = q.sum() - q[first[~known]].sum(), draws.probabilities(a)[known]
    y, q = y[known], q[first[known]]
    rest = population - missing
    estimate = partial(Estimate, confidence=confidence, count=len(y), population=population)
    sure = float(y.sum()) / population
    weights = calibrated_weights(p, q, total)
    residuals = y - q * y.sum() / q.sum()
    value = float(max((weights * y).sum(), y.sum())) / rest
    if missing or (len(y) < rest and np.ptp(y) <= _EQUAL * y.max()):
        return estimate(value, (sure, math.inf))
    if len(y) == rest:
        return estimate(float(y.mean()), (sure, sure), error=0.0)
    freedom = len(y) - 1
    by_design = len(y) / freedom * float(((1 - p) * (weights * residuals) ** 2).sum()) / rest**2
    by_model = float((residuals**2).sum()) / freedom * (rest - len(y)) / rest**2
    t = _student(confidence, freedom) / value
    low, high = (t * math.sqrt(v * by_design + m * by_model) for v, m in (_BELOW, _ABOVE))
    upper = value * math.exp(high) if high < _UNBOUNDED else math.inf
    return estimate(value, (max(value * math.exp(-low), sure), upper), error=math.sqrt(by_design))


def calibrated_weights(p: Numbers, q: Numbers, total: float) -> Numbers:
    """The weights w = 1/p + (Σq − Σ q/p) / Σ_drawn q, with which the drawn q give the Σq of all: Σ_drawn w q = Σq.

    Args:
        p: (…, a) the probability with which each item was drawn.
        q: (…, a) its predicted value.
        total: Σq over all N.

    Example:
        >>> q = np.array([3.0, 1.0])
        >>> round(float((calibrated_weights(np.array([0.9, 0.5]), q, total=5.0) * q).sum()), 9)
        5.0
    """
    weights: Numbers = 1 / p + ((total - (q / p).sum(-1)) / q.sum(-1))[..., None]
    return weights


def ratio_of_draws(values: ArrayLike, draws: Draws, confidence: float = 0.95) -> Estimate:
    """The mean of a finite population of non-negative values that have little to do with the sizes by which they were drawn.

    Each draw gives an unbiased estimate of the mean, the r-th t_r = (Σ_{s<r} y_s + y_r · X_r / x_r) / N, where X_r is the
    sum of the sizes that remain before it. They are uncorrelated, so that the variance of their mean is estimated by s²/a, s²
    their sample variance (Des Raj 1956). The value is the ratio of that mean to the same estimate of 1, which is consistent. The
    interval is formed as :func:`mean_of_population` forms its own, from the residuals that a ratio has to first order.

    Args:
        values: as for :func:`mean_of_draws`.
        draws: as for :func:`mean_of_draws`.
        confidence: of the interval, in (0, 1).

    Raises:
        UsageError: no value that is a number, more than N, or a confidence outside (0, 1).

    Example:
        >>> ratio_of_draws([3.0, 3.0], draw([3.0, 1.0, 1.0], np.random.default_rng(0))).value
        3.0
    """
    y = np.asarray(values, dtype=np.float64)
    known = _known(y, len(draws.order))
    x = draws.sizes[draws.order[: len(y)]]
    population, missing = len(draws.order), int((~known).sum())
    rest = population - missing
    total, y, x = draws.sizes.sum() - x[~known].sum(), y[known], x[known]
    if len(y) == rest:  # then the sizes no longer matter
        return _estimate(y, 0.0, float(y.sum()), confidence, population, missing)
    ones = _each_draw(np.ones_like(y), x, total, rest)
    value = _each_draw(y, x, total, rest).mean() / ones.mean()
    # To first order the ratio's error is that of the residuals' mean, which the value is added to.
    residuals = _each_draw(y - value, x, total, rest) / ones.mean()
    return _estimate(residuals - residuals.mean() + value, 1.0, float(y.sum()), confidence, population, missing)


def mean_over_seeds(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean over a independent runs, with Student's interval x̄ ± t_{a−1} · s/√a.

    Args:
        values: one value a run. A single run gives an unbounded interval.
        confidence: of the interval, in (0, 1).

    Raises:
        UsageError: there are no values.

    Example:
        >>> mean_over_seeds([1.0, 1.0]).interval
        (1.0, 1.0)
    """
    x = np.asarray(values, dtype=np.float64)
    a = len(x)
    if a == 0:
        raise UsageError("the mean over no runs: at least 1 is needed")
    if a == 1:
        return Estimate(float(x[0]), (-math.inf, math.inf), confidence=confidence, count=1, population=1)
    error = float(x.std(ddof=1)) / math.sqrt(a)
    half = _student(confidence, a - 1) * error
    mean = float(x.mean())
    return Estimate(mean, (mean - half, mean + half), confidence=confidence, count=a, population=a, error=error)


@dataclass(frozen=True)
class Shares:
    """Where the variance of a measured stability comes from, each part as a variance of one cell, in the values' unit squared.

    Attributes:
        samples: between fresh training sets S.
        seeds: between seeds of the algorithm on one S.
        sampling: of retraining without some i instead of all.
    """

    samples: float
    seeds: float
    sampling: float

    def fractions(self) -> dict[str, float]:
        """Each as a fraction of the sum; NaN where nothing varied."""
        parts = {"samples": self.samples, "seeds": self.seeds, "sampling": self.sampling}
        total = sum(parts.values())
        return {name: part / total if total > 0 else math.nan for name, part in parts.items()}


def variance_shares(values: ArrayLike, errors: ArrayLike, confidence: float = 0.95) -> tuple[Estimate, Shares]:
    """The mean over fresh training sets and seeds, and the share of each in the variance.

    One-way analysis of variance with S as the random effect (Searle, Casella & McCulloch 1992, section 3.6): with a sets and b
    seeds each, the mean square between the seeds of one S estimates σ²_seeds + σ²_sampling, that between sets b σ²_samples
    more, and σ²_sampling is the mean square of the known ``errors``. An estimate below 0 is reported as 0. The interval is a t
    interval over the a sets, whose means are independent.

    Args:
        values: (a, b) one stability for each S and seed.
        errors: (a, b) their standard errors.
        confidence: of the interval, in (0, 1).

    Raises:
        UsageError: fewer than 2 sets or 2 seeds, or shapes that differ.

    Example:
        >>> mean, shares = variance_shares([[1.0, 1.0], [3.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]])
        >>> mean.value, shares
        (2.0, Shares(samples=2.0, seeds=0.0, sampling=0.0))
    """
    y, e = np.asarray(values, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if y.ndim != 2 or y.shape != e.shape or min(y.shape) < 2:
        raise UsageError(f"values {y.shape} and errors {e.shape}: (a, b) each, with at least 2 training sets and 2 seeds")
    within = float(y.var(axis=1, ddof=1).mean())
    between = float(y.mean(axis=1).var(ddof=1))
    sampling = float((e**2).mean())
    shares = Shares(max(0.0, between - within / y.shape[1]), max(0.0, within - sampling), sampling)
    return mean_over_seeds(y.mean(axis=1), confidence), shares


def _sizes(sizes: ArrayLike) -> Numbers:
    x = np.asarray(sizes, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not bool((np.isfinite(x) & (x > 0)).all()):
        raise UsageError("sizes: one positive finite number an item expected")
    return x


def _predicted(predicted: ArrayLike, population: int) -> Numbers:
    q = np.asarray(predicted, dtype=np.float64)
    if q.shape != (population,) or not bool((np.isfinite(q) & (q >= 0)).all()) or not q.any():
        raise UsageError(f"predicted: {population} finite numbers expected, none negative and not all zero; else draw them alike")
    stabilised: Numbers = q + q.mean() / 100
    return stabilised


def _known(y: Numbers, population: int) -> NDArray[np.bool_]:
    """Which values could be measured."""
    known: NDArray[np.bool_] = ~np.isnan(y)
    if len(y) > population:
        raise UsageError(f"{len(y)} values of {population} items: one an item at most")
    if not known.any():
        raise UsageError(f"none of {len(y)} values could be measured: at least 1 must be")
    return known


def _each_draw(y: Numbers, x: Numbers, total: float, population: int) -> Numbers:
    """t_r of each draw."""
    before: Numbers = np.cumsum(y) - y
    return (before + y * (total - (np.cumsum(x) - x)) / x) / population


def _estimate(parts: Numbers, scale: float, found: float, confidence: float, population: int, missing: int) -> Estimate:
    """Of the mean of ``parts``, each with as much say, whose standard error is ``scale`` · s/√a.

    ``found`` is the sum of what was measured. No mean is below that sum spread over all, because nothing is negative: neither the
    value, which is of the population without the missing ones, nor the lower end, which is of the whole population.
    """
    check_fraction(confidence=confidence)
    a, sure = len(parts), found / population
    value = max(float(parts.mean()), found / (population - missing))
    estimate = partial(Estimate, confidence=confidence, count=a, population=population)
    if missing:
        return estimate(value, (sure, math.inf))
    if scale == 0:
        return estimate(value, (value, value), error=0.0)
    spread = float(parts.std(ddof=1)) if a > 1 else 0.0
    if spread <= _EQUAL * abs(value):
        return estimate(value, (sure, math.inf))
    error = scale * spread / math.sqrt(a)
    t = _student(confidence, a - 1)
    skewness = float(stats.skew(parts)) / math.sqrt(a)
    low, high = value - t * error, value + t * error
    if abs(skewness) > 1e-6:  # else both are the same but for rounding
        low = min(low, value - error * _unskewed(t, skewness))
        high = max(high, value - error * _unskewed(-t, skewness))
    return estimate(value, (max(low, sure), high), error=error)


@lru_cache(maxsize=1000)
def _student(confidence: float, freedom: int) -> float:
    """Student's t that a value is within on both sides with this confidence."""
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def _unskewed(x: float, skewness: float) -> float:
    """Inverse of T ↦ T + γT²/3 + γ²T³/27 + γ/6, which Hall's (1992) theorem makes nearly normal; γ is the skewness over √a."""
    return 3 / skewness * (float(np.cbrt(1 + skewness * (x - skewness / 6))) - 1)
