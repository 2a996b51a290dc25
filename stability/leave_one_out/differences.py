"""Two methods on one training set: the difference of their stabilities, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import torch

from stability.checks import check_kind
from stability.errors import UsageError
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Estimator
from stability.leave_one_out.measuring import measure
from stability.leave_one_out.notebook import table_html
from stability.leave_one_out.statistics import Estimate
from stability.leave_one_out.wording import amount, difference_sentence, size_text
from stability.problems.problem import Examples, Problem
from stability.training import Algorithm
from stability.training.naming import named_apart

__all__ = ["Difference", "difference", "relative_to", "subtracted"]

_SHOWN = 5  # examples


@dataclass(frozen=True, eq=False, kw_only=True)
class Difference:
    """How much more leaving one example out changes the second method's loss than the first's, on one S with one seed.

    D = β₂(second) − β₂(first). It is negative where the second is more stable.

    Attributes:
        estimate: D with its interval; its ``count`` is the smaller one of the two.
        first: the first method's stability.
        second: the second method's stability.
        labels: what the two are called.
        per_example: a row for each example that both left out: index; first and second, their |Δℓ_i|; and difference, the second
            less the first, NaN where a replica failed.
        notes: what else should be known, a sentence each.
    """

    estimate: Estimate
    first: StabilityEstimate
    second: StabilityEstimate
    labels: tuple[str, str]
    per_example: pd.DataFrame
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, first: StabilityEstimate, second: StabilityEstimate) -> Difference:
        """The difference of two stabilities that were measured already.

        Where both left out all n examples, it is the mean of n known differences, and exact. Otherwise its interval is formed from
        those of the two (:func:`stability.leave_one_out.differences.subtracted`).

        Args:
            first: the one with which is compared.
            second: the one that is compared with it.

        Raises:
            UsageError: they are of different S, seeds or confidences, or one of them left out nothing.

        Example:
            >>> from stability import FineTuning, estimators, load, measure, selectors
            >>> methods = FineTuning(selectors.FullTuning(), steps=2), FineTuning(selectors.BitFit(), steps=2)
            >>> full, bitfit = (measure(load("digits", n=10), one, estimators.Exact(), device="cpu") for one in methods)
            >>> found = Difference.of(full, bitfit)
            >>> found.exact, abs(found.value - (bitfit.value - full.value)) < 1e-9
            (True, True)
        """
        _check_pair(first, second)
        one, other = (estimate.per_example.set_index("index")["difference"].abs() for estimate in (first, second))
        table = pd.DataFrame({"first": one, "second": other}).loc[one.index.intersection(other.index, sort=False)]
        table = table.assign(difference=table["second"] - table["first"]).reset_index(names="index")
        estimate, n = subtracted(first.pointwise, second.pointwise), first.n
        if first.retrainings == second.retrainings == n:
            pairs = table["difference"].dropna()
            value, complete = float(pairs.mean()), len(pairs) == n
            if math.isnan(value):
                raise UsageError(
                    f"of each of the {n} examples a left-out model failed in one of the two: try a smaller learning rate"
                )
            ends = (value, value) if complete else (-math.inf, math.inf)
            error = 0.0 if complete else math.nan
            estimate = Estimate(value, ends, confidence=estimate.confidence, count=len(pairs), population=n, error=error)
        labels = named_apart([first.replicas.algorithm, second.replicas.algorithm])
        if labels[0] == labels[1]:
            labels = [f"{label} ({which})" for label, which in zip(labels, ("first", "second"), strict=True)]
        notes = [f"{label}: {note}" for label, one in zip(labels, (first, second), strict=True) for note in _notes(one)]
        return cls(
            estimate=estimate,
            first=first,
            second=second,
            labels=(labels[0], labels[1]),
            per_example=table,
            notes=tuple(notes),
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
    def exact(self) -> bool:
        """Whether both methods left out every example and none of their replicas failed: then D is known for this S and seed."""
        return self.estimate.count == self.estimate.population

    @property
    def noise_floor(self) -> float:
        """What rounding alone does to D at the most: the sum of both noise floors."""
        return self.first.noise_floor + self.second.noise_floor

    @property
    def resolved(self) -> bool:
        """Whether the difference is significant: the interval is on one side of 0, and D is more than what rounding does."""
        low, high = self.interval
        return not low <= 0 <= high and abs(self.value) > self.noise_floor

    def sentence(self) -> str:
        """The answer in one sentence, with its unit and interval."""
        (first, second), unit = self.labels, self.first.replicas.problem.loss_unit
        if abs(self.value) <= self.noise_floor:
            return (
                f"The stability of {second} and of {first} differs by no more than rounding does: {amount(abs(self.value), unit)}, "
                f"with a noise floor of {self.noise_floor:.2g}."
            )
        ends = f"{100 * self.estimate.confidence:g} % interval"
        relative = relative_to(self.first.value, self.value)
        return difference_sentence(
            first, second, self.value, self.interval, unit, ends=ends, significant=self.resolved, relative=relative
        )

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Difference({self.labels[1]} less {self.labels[0]}: value={self.value:.4g}, interval=({low:.4g}, {high:.4g}), "
            f"{self.first.retrainings} and {self.second.retrainings} of n={self.first.n})"
        )

    def _repr_html_(self) -> str:
        both, unit = (self.first, self.second), self.first.replicas.problem.loss_unit
        rows = pd.DataFrame(
            {
                "method": self.labels,
                f"stability ({unit})": [size_text(one.value, one.interval) for one in both],
                "retrained": [f"without each of {one.retrainings} of {one.n}" for one in both],
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
        differ = f"<p>Of the examples that both left out, they differ most on these:</p>{table_html(shown)}" if len(shown) else ""
        return f"<p><b>{escape(self.sentence())}</b></p>{table_html(rows)}{differ}{notes}"


def difference(problem: Problem, first: Algorithm, second: Algorithm, estimator: Estimator | None = None, **how: Any) -> Difference:
    """Measure which of two methods is more stable on one training set, and by how much.

    Both are measured alone, on the same S with the same seed, and subtracted (:meth:`Difference.of`). Drawing the same examples
    for both, by both predictions, gains nothing, because the predictions have already removed what the two methods share
    (``benchmarks/difference.py``). To tell methods apart beyond this S and seed, compare them with several seeds:
    :func:`stability.compare`.

    Args:
        problem: what to learn.
        first: the method with which is compared.
        second: the method that is compared with it, with the same seed.
        estimator: Exact, Sampled or Assisted of :mod:`stability.estimators`, as for :func:`stability.measure`. A tolerance is of
            each stability, not of their difference.
        how: what else :func:`stability.measure` takes, such as ``confidence`` and ``device``.

    Returns:
        The difference with its interval, a sentence, and both stabilities.

    Raises:
        UsageError: different seeds, the same method twice, an estimator that leaves out nothing, or what
            :func:`stability.measure` refuses.
        MeasurementError: what it raises.

    Example:
        >>> from stability import FineTuning, estimators, load, selectors
        >>> full, lora = FineTuning(selectors.FullTuning(), steps=3), FineTuning(selectors.LoRA(rank=2), steps=3)
        >>> found = difference(load("digits", n=20), full, lora, estimators.Exact(), device="cpu")
        >>> found.sentence()
        'lora rank=2 is more stable than full, by exactly ... nats, which is ... % of the stability of full.'
        >>> found.per_example.columns.tolist()
        ['index', 'first', 'second', 'difference']
    """
    check_kind(Problem, "a problem, such as stability.load('digits')", problem=problem)
    check_kind(Algorithm, "an algorithm, such as stability.FineTuning(selector)", first=first, second=second)
    if first.seed != second.seed:
        raise UsageError(f"seeds {first.seed} and {second.seed}: give both the same one")
    if first.settings() == second.settings() and first.selector.code() == second.selector.code():
        raise UsageError(f"first and second are both {first.name} with the same settings: give two methods")
    if isinstance(estimator, Estimator) and estimator.most(problem.n) < 1:
        raise UsageError(f"estimator {estimator.name} retrains nothing to compare: use Exact(), Sampled(…) or Assisted(…)")
    return Difference.of(measure(problem, first, estimator, **how), measure(problem, second, estimator, **how))


def relative_to(base: float, value: float) -> float:
    """A difference as a fraction of what it is compared with; NaN where that is 0.

    Args:
        base: the stability with which is compared.
        value: the difference.

    Example:
        >>> relative_to(2.0, -0.5), relative_to(0.0, -0.5)
        (-0.25, nan)
    """
    return value / base if base else math.nan


def subtracted(first: Estimate, second: Estimate) -> Estimate:
    """The second estimate less the first. On each side its interval reaches as far as the root of the sum of squares.

    With v₁ in (l₁, u₁) and v₂ in (l₂, u₂), the difference v₂ − v₁ has the interval from v₂ − v₁ − √((v₂ − l₂)² + (u₁ − v₁)²) to
    v₂ − v₁ + √((u₂ − v₂)² + (v₁ − l₁)²) (Zou & Donner 2008). It holds as well as the two do, if they are independent.
    ``benchmarks/difference.py`` measures how often it holds for two methods of one seed, whose draws go together. Its weak point
    is :class:`~stability.estimators.Sampled`: from few uniform draws each interval is wide and holds too seldom where few examples
    carry much, and so this one.

    Args:
        first: the one that is taken off.
        second: the other one, of as many examples.

    Example:
        >>> one, other = (Estimate(v, (v - r, v + r), confidence=0.95, count=9, population=60) for v, r in ((1.0, 0.3), (3.0, 0.4)))
        >>> subtracted(one, other).interval
        (1.5, 2.5)
    """
    value = second.value - first.value
    low = math.hypot(second.value - second.interval[0], first.interval[1] - first.value)
    high = math.hypot(second.interval[1] - second.value, first.value - first.interval[0])
    count, error = min(first.count, second.count), math.hypot(first.error, second.error)
    interval = (value - low, value + high)
    return Estimate(value, interval, confidence=first.confidence, count=count, population=first.population, error=error)


def _notes(estimate: StabilityEstimate) -> list[str]:
    """What should be known of one of the two. How its examples were drawn does not matter where all were left out."""
    notes = [] if estimate.retrainings == estimate.units.count else list(estimate.notes)
    if estimate.failed:
        lost = ", ".join(map(str, sorted(estimate.failed)))
        notes.append(
            f"the model without example {lost} failed, and what it would have shown is unknown: try a smaller learning rate"
        )
    elif math.isinf(estimate.interval[1]):
        notes.append(
            f"{estimate.retrainings} of {estimate.units.count} examples tell nothing of the spread: leave out more of them"
        )
    return notes


def _check_pair(first: StabilityEstimate, second: StabilityEstimate) -> None:
    check_kind(StabilityEstimate, "what stability.measure returns", first=first, second=second)
    for name, estimate in (("first", first), ("second", second)):
        if estimate.loop is not None:
            raise UsageError(
                f"the {name} estimate is of loop {estimate.loop.method!r}, whose data nobody knows: compare values and "
                "intervals, or the columns of per_example"
            )
    done = first.units.words.doing, second.units.words.doing
    if done[0] != done[1]:
        raise UsageError(f"{done[0]} and {done[1]}: measure both with the same perturbation")
    mine, theirs = first.replicas.problem, second.replicas.problem
    if mine.name != theirs.name or dict(mine.settings) != dict(theirs.settings) or not _same(mine.train, theirs.train):
        which = " and ".join(f"{one.name} {dict(one.settings)}" for one in (mine, theirs))
        raise UsageError(f"{which}: the training examples of the two differ; measure both on one problem that was loaded once")
    seeds = first.replicas.algorithm.seed, second.replicas.algorithm.seed
    if seeds[0] != seeds[1]:
        raise UsageError(f"seeds {seeds[0]} and {seeds[1]}: measure both with the same one")
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
    pairs = [(one.labels, other.labels), *((one.inputs[name], other.inputs.get(name)) for name in one.inputs)]
    known = all(theirs is not None and torch.equal(mine.cpu(), theirs.cpu()) for mine, theirs in pairs)
    return known and one.inputs.keys() == other.inputs.keys()
