"""Two methods on one training set: the paired difference of their stabilities, with an interval that uses the pairing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import partial
from html import escape
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stability.checks import check_fraction, check_kind
from stability.errors import UsageError
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Approximate, Assisted, Design, Estimator, Exact
from stability.leave_one_out.measuring import measure
from stability.leave_one_out.notebook import table_html
from stability.leave_one_out.predictors import Masks, Observation, Prediction, Predictor
from stability.leave_one_out.statistics import Estimate, Numbers, draw
from stability.leave_one_out.wording import amount, places_of, size_of
from stability.problems.problem import Examples, Problem, generator
from stability.training import Algorithm
from stability.training.descent import Progress
from stability.training.replicas import Replicas

__all__ = ["Difference", "Pairing", "difference", "mean_difference", "named_apart", "pair_sizes", "signed"]

FLOOR = 0.05
"""Examples are drawn by the size of both predictions together, plus a twentieth of its mean for all, so that a prediction of zero
excludes none."""

SPREAD = 0.25
"""The variance of what the predictions miss is taken to grow with the sizes of the draws to this power. It was chosen on the 741
pairs of benchmarks/results/assisted-digits-cpu.json; ``benchmarks/paired.py`` measures the coverage on pairs that were not used."""

_FEWEST = 3  # examples that give an interval: a scale for each method is fitted to them


class Pairing(StrEnum):
    """How the two stabilities were brought together.

    Attributes:
        EXACT: both left out every example: the difference is known for this S and seed.
        PAIRED: both left out the same examples, drawn for both.
        SEPARATE: each left out examples of its own, so that nothing is gained from the pairs.
    """

    EXACT = "exact"
    PAIRED = "paired"
    SEPARATE = "separate"


@dataclass(frozen=True, eq=False, kw_only=True)
class Difference:
    """How much more leaving one example out changes the second method's loss than the first's, on one S with one seed.

    D = β₂(second) − β₂(first) = (1/n) Σ_i (|Δℓ_i(second)| − |Δℓ_i(first)|). It is negative where the second is more stable.

    Attributes:
        estimate: D with its interval.
        pairing: what it rests on.
        first: the first method's stability.
        second: the second method's stability.
        labels: what the two are called.
        per_example: a row for each example that both left out, in the order in which they were drawn: index; first and second,
            their |Δℓ_i|; difference, the second less the first; and predicted, what the predictions said of that, NaN where there
            are none.
        notes: what else should be known, a sentence each.
    """

    estimate: Estimate
    pairing: Pairing
    first: StabilityEstimate
    second: StabilityEstimate
    labels: tuple[str, str]
    per_example: pd.DataFrame
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, first: StabilityEstimate, second: StabilityEstimate) -> Difference:
        """The difference of two stabilities that were measured already.

        Where both left out every example, it is exact. Where both drew the same examples uniformly
        (:class:`~stability.estimators.Sampled` with one seed), it is the mean over these pairs. Otherwise each has drawn for
        itself, and the interval is formed as that of two independent estimates. :func:`stability.difference` draws the same
        examples for both, by both predictions, and its interval is narrower.

        Args:
            first: the one with which is compared.
            second: the one that is compared with it.

        Raises:
            UsageError: they are of different S, seeds or confidences, or one of them left out nothing.

        Example:
            >>> from stability import FineTuning, estimators, load, measure, selectors
            >>> methods = FineTuning(selectors.FullTuning(), steps=2), FineTuning(selectors.BitFit(), steps=2)
            >>> full, bitfit = (measure(load("digits", n=10), one, estimators.Exact(), device="cpu") for one in methods)
            >>> Difference.of(full, bitfit).value == bitfit.value - full.value
            True
        """
        _check_pair(first, second)
        table = _table(first, second)
        confidence, n = first.pointwise.confidence, first.n
        if first.retrainings == second.retrainings == n:
            estimate = mean_difference(table["first"], table["second"], table["index"], population=n, confidence=confidence)
            return cls._made(first, second, Pairing.EXACT, estimate, table)
        if _uniform(first) and _uniform(second) and len(table) == min(first.retrainings, second.retrainings):
            estimate = mean_difference(table["first"], table["second"], table["index"], population=n, confidence=confidence)
            return cls._made(first, second, Pairing.PAIRED, estimate, table)
        note = (
            "each method left out examples of its own: stability.difference(problem, first, second) leaves out the same ones, and "
            "its interval is narrower"
        )
        return cls._made(first, second, Pairing.SEPARATE, separate(first.pointwise, second.pointwise), table, (note,))

    @classmethod
    def _made(
        cls,
        first: StabilityEstimate,
        second: StabilityEstimate,
        pairing: Pairing,
        estimate: Estimate,
        table: pd.DataFrame,
        notes: Sequence[str] = (),
    ) -> Difference:
        labels = named_apart([first.replicas.algorithm, second.replicas.algorithm])
        own = [
            f"{label}: {note}" for label, one in zip(labels, (first, second), strict=True) for note in _of_draws(one.notes, pairing)
        ]
        if (lost := int(table["difference"].isna().sum())) > 0:
            own.append(
                f"of {lost} examples a left-out model failed: what they would have shown is unknown, so that there is no interval"
            )
        if labels[0] == labels[1]:
            labels = [f"{label} ({which})" for label, which in zip(labels, ("first", "second"), strict=True)]
        return cls(
            estimate=estimate,
            pairing=pairing,
            first=first,
            second=second,
            labels=(labels[0], labels[1]),
            per_example=table,
            notes=(*notes, *own),
        )

    @property
    def value(self) -> float:
        """D, negative where the second is more stable."""
        return self.estimate.value

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of D, on this S with this seed."""
        return self.estimate.interval

    @property
    def noise_floor(self) -> float:
        """What rounding alone does to D at the most: the sum of both noise floors."""
        return self.first.noise_floor + self.second.noise_floor

    @property
    def resolved(self) -> bool:
        """Whether the two are told apart: the interval is on one side of 0, and D is more than what rounding does."""
        low, high = self.interval
        return not low <= 0 <= high and abs(self.value) > self.noise_floor

    def sentence(self) -> str:
        """The answer in one sentence, with its unit and interval."""
        (first, second), unit = self.labels, self.first.replicas.problem.loss_unit
        if self.estimate.count and abs(self.value) <= self.noise_floor:
            return (
                f"The stability of {second} and of {first} differs by no more than rounding does: {amount(abs(self.value), unit)}, "
                f"with a noise floor of {self.noise_floor:.2g}."
            )
        exact = self.pairing == Pairing.EXACT and self.estimate.count == self.estimate.population
        ends = "exactly" if exact else f"{100 * self.estimate.confidence:g} % interval"
        return said(first, second, self.value, self.interval, unit, ends)

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Difference({self.labels[1]} less {self.labels[0]}: value={self.value:.4g}, interval=({low:.4g}, {high:.4g}), "
            f"{self.pairing}, {len(self.per_example)} of n={self.first.n})"
        )

    def _repr_html_(self) -> str:
        unit = self.first.replicas.problem.loss_unit
        rows = pd.DataFrame(
            {
                "method": self.labels,
                f"stability ({unit})": [size_of(one.value) for one in (self.first, self.second)],
                "interval": [interval_text(one.interval) for one in (self.first, self.second)],
                "retrained": [f"without each of {one.retrainings} of {one.n}" for one in (self.first, self.second)],
            }
        )
        most = self.per_example.loc[self.per_example["difference"].abs().sort_values(ascending=False).index[:_SHOWN]]
        shown = pd.DataFrame(
            {
                "example": [f"{i} [{self.first.replicas.problem.label(int(i))}]" for i in most["index"]],
                self.labels[0]: most["first"].map("{:.3g}".format),
                self.labels[1]: most["second"].map("{:.3g}".format),
                "difference": most["difference"].map("{:+.3g}".format),
            }
        )
        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self.notes)
        differ = f"<p>The examples on which they differ most:</p>{table_html(shown)}" if len(shown) else ""
        return f"<p><b>{escape(self.sentence())}</b></p>{table_html(rows)}{differ}{notes}"


_SHOWN = 5  # examples


def difference(
    problem: Problem,
    first: Algorithm,
    second: Algorithm,
    estimator: Estimator | None = None,
    *,
    reselect: bool = True,
    confidence: float = 0.95,
    device: str | torch.device = "auto",
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    progress: bool | Progress = False,
) -> Difference:
    """Measure which of two methods is more stable on one training set, and by how much.

    D = β₂(second) − β₂(first) = (1/n) Σ_i (|Δℓ_i(second)| − |Δℓ_i(first)|), on the same S with the same seed, and with the same
    z_i left out of both. Where the estimator predicts, both methods' differences are predicted first, and the examples are drawn
    by both predictions together (:func:`stability.leave_one_out.paired.mean_difference`). To tell methods apart
    beyond this S and seed, compare them with several seeds: :func:`stability.compare`.

    Args:
        problem: what to learn.
        first: the method with which is compared.
        second: the method that is compared with it, with the same seed.
        estimator: Exact, Sampled or Assisted of :mod:`stability.estimators`, without a tolerance; by default ``Assisted()``, which
            leaves the same 20 examples out of both.
        reselect: choose the masks again on Sⁱ where a selector uses data, as for :func:`stability.measure`.
        confidence: of the intervals. They speak of the choice of i alone; an exact difference has nothing to be uncertain of.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        replica_batch: how many replicas are computed at once in each thread; by default planned from ``memory_budget``.
        memory_budget: bytes to plan with; by default half of what is free.
        progress: as for :func:`stability.measure`.

    Returns:
        The difference with its interval, a sentence, and both stabilities.

    Raises:
        UsageError: different seeds, the same method twice, an estimator with a tolerance or without retrainings, or what
            :func:`stability.measure` refuses.
        MeasurementError: what it raises.

    Example:
        >>> from stability import FineTuning, estimators, load, selectors
        >>> full, lora = FineTuning(selectors.FullTuning(), steps=3), FineTuning(selectors.LoRA(rank=2), steps=3)
        >>> found = difference(load("digits", n=20), full, lora, estimators.Assisted(retrainings=6), device="cpu")
        >>> found.sentence()
        'lora rank=2 is more stable than full, by ... nats.'
        >>> found.per_example.columns.tolist()
        ['index', 'first', 'second', 'difference', 'predicted']
    """
    estimator = Assisted() if estimator is None else estimator
    check_kind(Problem, "a problem, such as stability.load('digits')", problem=problem)
    check_kind(Algorithm, "an algorithm, such as stability.FineTuning(selector)", first=first, second=second)
    check_kind(Estimator, "one of stability.estimators, such as Assisted(retrainings=10)", estimator=estimator)
    check_fraction(confidence=confidence)
    if first.seed != second.seed:
        raise UsageError(f"seeds {first.seed} and {second.seed}: only runs of the same seed are pairs; give both the same one")
    if first.settings() == second.settings() and first.selector.code() == second.selector.code():
        raise UsageError(f"first and second are both {first.name} with the same settings: give two methods")
    if estimator.tolerance is not None:
        raise UsageError(
            f"tolerance = {estimator.tolerance:g}: it is a fraction of one stability, and a difference may be 0; give retrainings "
            "instead"
        )
    most = estimator.most(problem.n)
    if isinstance(estimator, Approximate) or most < 1:
        raise UsageError(f"estimator {estimator.name} retrains nothing to compare: use Exact(), Sampled(…) or Assisted(…)")
    how: dict[str, Any] = {"reselect": reselect, "confidence": confidence, "device": device, "replica_batch": replica_batch}
    how |= {"memory_budget": memory_budget, "progress": progress}
    if most >= problem.n or not estimator.predicts:
        estimator = Exact() if most == problem.n else estimator  # then nothing needs to be predicted
        return Difference.of(measure(problem, first, estimator, **how), measure(problem, second, estimator, **how))
    # What is left out of both depends on both predictions. Only the training on all of S is done twice, and that of one method.
    seen = measure(problem, first, Approximate(estimator.predictor), **how)
    assert seen.prediction is not None
    theirs = measure(problem, second, _ForBoth(most, predictor=estimator.predictor, other=seen.prediction), **how)
    assert theirs.prediction is not None
    design = _design(problem.n, second.seed, seen.prediction, theirs.prediction)
    mine = measure(problem, first, _AsDrawn(drawn=design, count=most, known=seen.prediction), **how)
    mine = dataclasses.replace(mine, seconds=mine.seconds + seen.seconds)
    table = _table(mine, theirs)
    estimate = mean_difference(
        table["first"],
        table["second"],
        table["index"],
        population=problem.n,
        predicted=(_usable(seen.prediction), _usable(theirs.prediction)),
        confidence=confidence,
    )
    return Difference._made(mine, theirs, Pairing.PAIRED, estimate, table)


def pair_sizes(first: ArrayLike, second: ArrayLike) -> Numbers:
    """By which sizes examples are drawn for two methods: √(q² + q′²), plus a twentieth of its mean for all.

    What the predictions miss of the difference grows with both of them. The predicted difference itself is no good size: where
    both methods change much and alike, it is small, and what it misses is large.

    Args:
        first: predicted |Δℓ_i| of the first method, (n,).
        second: those of the second method, (n,).

    Returns:
        One positive number an example, (n,); all alike where both predictions are zero.

    Example:
        >>> pair_sizes([3.0, 0.0], [4.0, 0.0])
        array([5.125, 0.125])
    """
    sizes: Numbers = np.hypot(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    return sizes + FLOOR * sizes.mean() if sizes.any() else np.ones_like(sizes)


def mean_difference(
    first: ArrayLike,
    second: ArrayLike,
    drawn: ArrayLike,
    *,
    population: int,
    predicted: tuple[ArrayLike, ArrayLike] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The mean over n examples of the difference of two sizes, from the first a that were drawn.

    With y and y′ the two measured sizes, d = y′ − y, and with predictions q and q′ of all n:

    1. Each prediction is scaled half of the way to what was found: c = ½(1 + Σy/Σq) over the drawn. Then p_i = c′q′_i − c q_i.
    2. The value is the mean of the p_i, plus Des Raj's (1956) estimate of the mean of what they miss, e_i = d_i − p_i, from draws
       by the sizes x of :func:`pair_sizes`: the mean of t_r = (Σ_{s<r} e_s + e_r X_r/x_r)/n, X_r the sum of the sizes that remain.
       Apart from the fitted scales it is unbiased, even when the predictions are poor.
    3. The interval reaches on each side as far as the farther of two: the design-based value ± t_{a−2} √(Σ(t_r − t̄)²/((a − 2)a)),
       and the model-based (Σ_drawn e + Σ p)/n ± t_{a−2} s √(Σ_rest x^¼)/n with s² = Σ_drawn e²/x^¼ / (a − 2). The first alone is
       too narrow where the predictions miss examples that carry much and none of them was drawn.

    Without predictions the draws are uniform, and the value is the mean of the drawn d with Student's interval, which has the
    finite-population correction.

    Args:
        first: what was measured for the first method, (a,); NaN where it could not be.
        second: what was measured for the second method, (a,).
        drawn: which examples these are, (a,), in the order in which they were drawn.
        population: n.
        predicted: what was predicted for the first and for the second method, (n,) each; None where draws were uniform.
        confidence: of the interval, in (0, 1).

    Returns:
        The mean with its interval. With fewer than three examples, with values that could not be measured, or where all are missed
        by the same, the interval has no ends.

    Raises:
        UsageError: no pair of numbers, an example drawn twice or unknown, or a confidence outside (0, 1).

    Example:
        >>> mean_difference([1.0, 2.0], [1.5, 4.0], [0, 1], population=2).interval
        (1.25, 1.25)
    """
    check_fraction(confidence=confidence)
    y, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    index = np.asarray(drawn, dtype=np.int64)
    if len(y) != len(other) or len(y) != len(index) or len(np.unique(index)) != len(index):
        raise UsageError(f"drawn = {index.tolist()} for {len(y)} and {len(other)} values: name the example of each pair, once")
    if not np.isin(index, np.arange(population)).all():
        raise UsageError(f"drawn = {index.tolist()} of {population} examples: use 0 to {population - 1}")
    known = np.isfinite(y) & np.isfinite(other)
    if not known.any():
        raise UsageError(f"none of {len(y)} pairs has two numbers: at least 1 must be measured in both")
    here = np.ones(population, dtype=bool)
    here[index[~known]] = False  # the mean is then over the others, and nothing is known of these
    y, other, index = y[known], other[known], index[known]
    d, a, n = other - y, len(y), int(here.sum())
    made = partial(Estimate, confidence=confidence, count=a, population=population)
    unknown = (-math.inf, math.inf)
    if a == n:
        value = float(d.mean())
        return made(value, (value, value) if n == population else unknown, error=0.0 if n == population else math.nan)
    if predicted is None:
        x, p = np.ones(population), np.zeros(population)
    else:
        q, theirs = (np.asarray(one, dtype=np.float64) for one in predicted)
        x = pair_sizes(q, theirs)
        p = _scale(other, theirs[index]) * theirs - _scale(y, q[index]) * q
    e = d - p[index]
    total = x[here].sum()
    parts = (np.cumsum(e) - e + e * (total - (np.cumsum(x[index]) - x[index])) / x[index]) / n if predicted is not None else e
    expected = float(p[here].mean())
    value = expected + float(parts.mean())
    lost, fitted = n < population, 1 if predicted is None else 2
    if lost or a < 1 + fitted or not float(np.ptp(parts)) > 1e-6 * max(float(np.abs(d).max()), abs(value)):
        return made(value, unknown)
    t = float(stats.t.ppf((1 + confidence) / 2, a - fitted))
    error = math.sqrt(float(((parts - parts.mean()) ** 2).sum()) / ((a - fitted) * a))
    if predicted is None:
        error *= math.sqrt(1 - a / n)
        return made(value, (value - t * error, value + t * error), error=error)
    here[index] = False  # the rest, of which only the predictions are known
    v = x**SPREAD
    spread = math.sqrt(float((e**2 / v[index]).sum()) / (a - fitted) * float(v[here].sum())) / n
    modelled = expected + float(e.sum()) / n
    low = min(value - t * error, modelled - t * spread)
    return made(value, (low, max(value + t * error, modelled + t * spread)), error=error)


def separate(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two estimates as if they were independent: each side of the interval is the root of the sum of squares.

    Draws of the same seed go together, so that the interval is rather too wide.

    Args:
        first: the one that is taken off.
        second: the other one.
    """
    value = second.value - first.value
    low = math.hypot(second.value - second.interval[0], first.interval[1] - first.value)
    high = math.hypot(second.interval[1] - second.value, first.value - first.interval[0])
    count = min(first.count, second.count)
    error = math.hypot(first.error, second.error)
    interval = (value - low, value + high)
    return Estimate(value, interval, confidence=first.confidence, count=count, population=first.population, error=error)


def said(first: str, second: str, value: float, interval: tuple[float, float], unit: str, ends: str) -> str:
    """A difference of stabilities in one sentence.

    Args:
        first: the method with which is compared.
        second: the method that is compared.
        value: its stability less that of the first.
        interval: of the value.
        unit: of both.
        ends: what the interval is, such as "95 % interval", or nothing; "exactly" where it is a single number.

    Example:
        >>> said("full", "lora", -0.31, (-0.40, -0.22), "nats", "95 % interval")
        'lora is more stable than full, by 0.31 (95 % interval 0.22 to 0.40) nats.'
        >>> said("full", "lora", 0.1, (-0.2, 0.4), "nats", "95 % interval")
        'The stability of lora and of full is not told apart: +0.10 (95 % interval −0.20 to +0.40) nats.'
    """
    low, high = interval
    of = unit if unit.isalpha() else f"({unit})"
    if low <= 0 <= high and not low == high != 0:
        if not math.isfinite(low) or not math.isfinite(high):
            return f"The stability of {second} and of {first} is not told apart: {signed(value)} {of}, with no interval."
        return f"The stability of {second} and of {first} is not told apart: {signed(value)} ({ends} {signed_ends(interval)}) {of}."
    kind, size, near, far = ("more", -value, -high, -low) if value < 0 else ("less", value, low, high)
    if ends == "exactly":
        return f"{second} is {kind} stable than {first}, by exactly {size_of(size)} {of}."
    places = places_of(size)
    reach = f"at least {size_of(near, places)}" if math.isinf(far) else f"{size_of(near, places)} to {size_of(far, places)}"
    shown = f"{size_of(size)} ({f'{ends} {reach}'.strip()})"
    return f"{second} is {kind} stable than {first}, by {shown} {of}."


def signed(value: float, places: int | None = None) -> str:
    """A number with its sign, to two digits.

    Args:
        value: the number.
        places: after the point; by default as many as two digits need.

    Example:
        >>> signed(-0.312), signed(0.5), signed(0.5, places=1)
        ('−0.31', '+0.50', '+0.5')
    """
    return ("−" if value < 0 else "+") + size_of(abs(value), places)


def signed_ends(interval: tuple[float, float]) -> str:
    """Both ends with their signs, to as many places as the farther one needs."""
    places = places_of(max(map(abs, interval)))
    return " to ".join(signed(end, places) for end in interval)


def interval_text(interval: tuple[float, float]) -> str:
    """An interval of a size as a table has it; a dash where it is a single number or unknown."""
    low, high = interval
    return "–" if low == high or math.isnan(low) else f"{low:.2g} to {'∞' if math.isinf(high) else f'{high:.2g}'}"


def named_apart(algorithms: Sequence[Algorithm]) -> list[str]:
    """What to call each of several methods: its name, with those settings in which methods of that name differ, or not the usual.

    Args:
        algorithms: the methods.

    Returns:
        A label for each. p is part of it only where a method comes at several.

    Example:
        >>> from stability import FineTuning, selectors
        >>> named_apart([FineTuning(selectors.SAM(0.01)), FineTuning(selectors.SAM(0.1)), FineTuning(selectors.LoRA(rank=4))])
        ['sam p=0.01', 'sam p=0.1', 'lora rank=4']
    """
    found = []
    for algorithm in algorithms:
        alike = [other for other in algorithms if other.name == algorithm.name]
        own = _plain(algorithm.selector)
        usual = {field.name: field.default for field in _fields(algorithm.selector)}
        theirs = [_plain(other.selector) for other in alike]
        told = {name: x for name, x in own.items() if x != usual.get(name) or any(other.get(name) != x for other in theirs)}
        mine, others = _plain(algorithm), [_plain(other) for other in alike]
        told |= {name: x for name, x in mine.items() if any(other.get(name) != x for other in others)}
        found.append(" ".join([algorithm.name, *(f"{name}={x}" for name, x in told.items())]))
    asked = [algorithm.asked_sparsity for algorithm in algorithms]
    several = [found.count(label) > 1 and p is not None for label, p in zip(found, asked, strict=True)]
    return [f"{label} p={p:g}" if apart else label for label, p, apart in zip(found, asked, several, strict=True)]


def _fields(made: object) -> Sequence[Any]:
    return fields(made) if is_dataclass(made) and not isinstance(made, type) else ()


def _plain(made: object) -> dict[str, Any]:
    """The settings that are numbers or words, but for p and seed, which have columns of their own."""
    found = {field.name: getattr(made, field.name) for field in _fields(made) if field.name not in ("sparsity", "seed", "name")}
    return {name: x for name, x in found.items() if isinstance(x, (int, float, str))}


def _scale(measured: Numbers, predicted: Numbers) -> float:
    """Half of the way from 1 to the ratio that was found: the ratio of a few is uncertain itself."""
    total = float(predicted.sum())
    return 1.0 if not total > 0 else 0.5 * (1 + float(measured.sum()) / total)


def _usable(prediction: Prediction) -> Numbers:
    """The predicted sizes; those that are not finite as the largest of the others, and zero for all where most are not."""
    sizes = prediction.sizes
    finite = np.isfinite(sizes)
    if 2 * int(finite.sum()) < len(sizes):
        return np.zeros_like(sizes)
    return np.where(finite, sizes, sizes[finite].max())


def _design(n: int, seed: int, *predictions: Prediction) -> Design:
    """The order in which examples are left out of both."""
    sizes = pair_sizes(*map(_usable, predictions))
    notes = []
    for prediction in predictions:
        odd = n - int(np.isfinite(prediction.sizes).sum())
        if 2 * odd > n:
            notes.append(f"the prediction is not finite for {odd} of {n} examples, and was not used")
        elif odd:
            notes.append(f"the prediction of {odd} examples is not finite: they were drawn as the largest")
    # Another stream than that of one method's draws, whose sizes are others.
    return Design(draw(sizes, np.random.default_rng(generator(seed, "pairs").initial_seed())), sizes, tuple(notes))


@dataclass(frozen=True)
class _ForBoth(Assisted):
    """Draws for two methods, by this one's prediction and by the ``other`` one's, which is known already."""

    _: KW_ONLY
    other: Prediction

    def design(self, n: int, seed: int, prediction: Prediction | None) -> Design:
        assert prediction is not None
        return _design(n, seed, self.other, prediction)


@dataclass(frozen=True)
class _AsDrawn(Estimator):
    """Leaves out the first ``count`` of a design that is there, with the prediction that is known."""

    _: KW_ONLY
    drawn: Design
    count: int
    known: Prediction

    name: ClassVar[str] = Assisted.name
    predicts: ClassVar[bool] = True

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return self.count - done

    def design(self, n: int, seed: int, prediction: Prediction | None) -> Design:
        return self.drawn

    def predictor_for(self, algorithm: Algorithm) -> Predictor | None:
        return _Known(self.known)


@dataclass(frozen=True)
class _Known(Predictor):
    """A prediction that was made before."""

    made: Prediction

    def settings(self) -> dict[str, Any]:
        return {"name": "known"}

    def observe(self, problem: Problem, algorithm: Algorithm, masks: Masks) -> Observation:
        return _Told(self.made)


class _Told(Observation):
    """Tells a prediction that was made before."""

    def __init__(self, made: Prediction) -> None:
        self._made = made

    def predict(self, real: Replicas) -> Prediction:
        return self._made


def _table(first: StabilityEstimate, second: StabilityEstimate) -> pd.DataFrame:
    """A row for each example that both left out, in the order in which the one with fewer drew them."""
    one, other = (estimate.per_example.set_index("index")["difference"].abs() for estimate in (first, second))
    fewer = one if len(one) <= len(other) else other
    shared = [i for i in fewer.index if i in one.index and i in other.index]
    predicted: NDArray[np.float64] = np.full(first.n, np.nan)
    if first.prediction is not None and second.prediction is not None:
        predicted = second.prediction.sizes - first.prediction.sizes
    return pd.DataFrame(
        {
            "index": shared,
            "first": one.loc[shared].to_numpy(),
            "second": other.loc[shared].to_numpy(),
            "difference": (other.loc[shared] - one.loc[shared]).to_numpy(),
            "predicted": predicted[np.asarray(shared, dtype=np.int64)],
        }
    )


def _uniform(estimate: StabilityEstimate) -> bool:
    """Whether the examples were drawn uniformly, or all of them left out."""
    return estimate.retrainings == estimate.n or estimate.estimator in ("exact", "sampled")


def _of_draws(notes: Sequence[str], pairing: Pairing) -> Sequence[str]:
    """What is said of how one method's examples were drawn does not matter where all were left out."""
    return () if pairing == Pairing.EXACT else notes


def _check_pair(first: StabilityEstimate, second: StabilityEstimate) -> None:
    check_kind(StabilityEstimate, "what stability.measure returns", first=first, second=second)
    mine, theirs = first.replicas.problem, second.replicas.problem
    again = "measure both on one problem that was loaded once"
    if first.n != second.n:
        raise UsageError(f"n = {first.n} and n = {second.n}: the two are of different training sets; {again}")
    if mine.name != theirs.name or dict(mine.settings) != dict(theirs.settings):
        raise UsageError(
            f"{mine.name} {dict(mine.settings)} and {theirs.name} {dict(theirs.settings)}: the two are of different training sets; "
            f"{again}"
        )
    if not _same(mine.train, theirs.train):
        raise UsageError(f"the training examples of the two differ, though both are called {mine.name}: {again}")
    seeds = first.replicas.algorithm.seed, second.replicas.algorithm.seed
    if seeds[0] != seeds[1]:
        raise UsageError(f"seeds {seeds[0]} and {seeds[1]}: only runs of the same seed are pairs; measure both with the same one")
    if first.pointwise.confidence != second.pointwise.confidence:
        raise UsageError(
            f"confidence {first.pointwise.confidence:g} and {second.pointwise.confidence:g}: measure both with the same one"
        )
    for name, estimate in (("first", first), ("second", second)):
        if not estimate.pointwise.count:
            raise UsageError(
                f"the {name} estimate ({estimate.estimator}) left out no example: use Exact(), Sampled(…) or Assisted(…)"
            )


def _same(one: Examples, other: Examples) -> bool:
    """Whether two sets of examples are equal."""
    if one.inputs.keys() != other.inputs.keys():
        return False
    pairs = [(one.labels, other.labels), *((one.inputs[name], other.inputs[name]) for name in one.inputs)]
    return all(torch.equal(mine.cpu(), theirs.cpu()) for mine, theirs in pairs)
