"""How stability is estimated: which examples are left out, when it is enough, what is concluded."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from stability.checks import check_fraction, check_kind, check_positive, check_whole
from stability.errors import UsageError
from stability.leave_one_out.predictors import DEFAULTS, Prediction, Predictor, default_predictor
from stability.leave_one_out.statistics import Draws, Estimate, Numbers, draw, mean_of_draws, mean_of_population, ratio_of_draws
from stability.leave_one_out.units import LEAVING_ONE_OUT, Words
from stability.leave_one_out.work import Work, work_of
from stability.problems.problem import Problem, generator
from stability.selectors.code import CODE, code_of
from stability.training import Algorithm
from stability.training.replicas import Replicas

__all__ = ["Alone", "Approximate", "Assisted", "Auto", "Choice", "Design", "Estimator", "Exact", "Sampled", "Status"]

_FIRST = 12  # retrainings before the first look at a tolerance

_CHEAP = 1 << 40  # operations of all n retrainings that are always worth while: some twenty seconds of one core

_NEEDED = 5.0  # retrainings that a tolerance of 1 needs: 25 for 0.2, 50 for 0.1, as in the median of what is simulated

_USUAL_TOLERANCE, _USUAL_MOST = 0.2, 50

_FEW = 100  # retrainings of a loop of one's own that are always worth while

_DRAWS = "plan"  # names the stream of random numbers; another word would draw other examples

POWER, FLOOR = 0.8, 0.05
"""Examples are drawn by |Δ̂ℓ|^0.8, plus a twentieth of its mean for all: a small prediction is wrong by a larger factor than a
large one, and one of zero must not exclude. Fixed in advance for all problems, methods and p; ``benchmarks/assisted.py``
measures the coverage and the variance that come of it."""


class Status(StrEnum):
    """How an estimate ended."""

    EXACT = "exact"
    """Every example was left out."""
    BUDGET_SPENT = "budget spent"
    """The seconds that were allowed ended it, before as many examples were left out as were asked for."""
    AS_ASKED = "as asked"
    """As many examples were left out as were asked for."""
    WITHIN_TOLERANCE = "within tolerance"
    """The interval is as narrow as was asked for."""
    TOLERANCE_NOT_MET = "tolerance not met"
    """The interval is wider than was asked for, with as many retrainings as were allowed."""
    APPROXIMATE = "approximate"
    """The value is the mean of predictions; it has no interval."""
    NOT_MEASURED = "not measured"
    """Nothing was left out and nothing predicted."""


@dataclass(frozen=True, eq=False)
class Design:
    """Which examples are left out, in which order, and with which probability.

    Attributes:
        order: all n examples in the order in which they are drawn.
        draws: how they were drawn, where their probabilities differ; None: all alike.
        predicted: (n,) what was predicted of each, up to a factor, where they were drawn by that.
        notes: what should be known of it, a sentence each.
        drawn: whether the order is random. In another order the first examples say nothing of the rest, and all are left out.
    """

    order: NDArray[np.int64]
    draws: Draws | None = None
    predicted: Numbers | None = None
    notes: tuple[str, ...] = ()
    drawn: bool = field(default=True, kw_only=True)

    def mean(self, values: Numbers, confidence: float, power: float | None = 1) -> Estimate:
        """The mean over all n of a quantity that was measured for the first examples of the order.

        Args:
            values: the measured values, in that order; NaN where one could not be measured.
            confidence: of the interval.
            power: of the predicted sizes to which the quantity is about proportional; None: it has little to do with them.
        """
        if self.draws is not None and self.predicted is not None:
            if power is None:
                return ratio_of_draws(values, self.draws, confidence)
            return mean_of_draws(values, self.draws, self.predicted**power, confidence)
        known = values[~np.isnan(values)]
        return mean_of_population(known, len(self.order), confidence, len(values) - len(known))


@dataclass(frozen=True)
class Choice:
    """Which estimator measures.

    Attributes:
        estimator: it does.
        reason: why it was chosen, a sentence without its full stop; empty where it was asked for.
        otherwise: measures where the budget turns out to be too small for all that ``estimator`` leaves out.

    Example:
        >>> Choice(Exact()).reason
        ''
    """

    estimator: Estimator
    reason: str = ""
    otherwise: Estimator | None = None


class Estimator(ABC):
    """What is left out, when it is enough, and what is concluded.

    Subclasses are frozen dataclasses, whose ``settings`` are part of the identity of a result.

    Attributes:
        name: in tables and on the command line.
        predicts: whether a prediction of all n is made first.
        predictor: what makes it; None: what suits the algorithm.
        retrainings: the most examples that are left out; None where the estimator decides.
        tolerance: the relative half-width of the interval at which it stops; None: it does not look at it.
        budget: seconds that a measurement may take; None: as many as it needs.
    """

    name: ClassVar[str]
    predicts: ClassVar[bool] = False
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    predictor: Predictor | None = None
    retrainings: int | None = None
    tolerance: float | None = None
    budget: float | None = None

    def choice(self, problem: Problem, algorithm: Algorithm, k: int) -> Choice:
        """Which estimator measures this: itself, unless it is one that chooses.

        Args:
            problem: the one that is trained.
            algorithm: A.
            k: how many of the pretrained coordinates may change.
        """
        return Choice(self)

    def choice_for_loop(self, n: int, words: Words = LEAVING_ONE_OUT) -> Choice:
        """Which estimator measures a loop of one's own, whose work nobody can count.

        Args:
            n: how many units there are.
            words: what is done to them.

        Raises:
            UsageError: the estimator does not suit a loop.
        """
        if self.predictor is not None:
            raise UsageError(
                f"predictor = {self.predictor!r} predicts for the problems and algorithms of the toolkit; a loop's own losses or "
                "gradients take its place: leave predictor out"
            )
        return Choice(self)

    def settings(self) -> dict[str, Any]:
        """As plain values. Default predictors are named, so that results of another default are never taken for these."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        code = code_of(type(self), *own.values())
        if self.predicts:
            chosen = {"every": self.predictor} if self.predictor else DEFAULTS
            own["predictor"] = {kind: predictor.settings() for kind, predictor in chosen.items()}
        return {"name": self.name, **own, **({} if code is None else {CODE: code})}

    @abstractmethod
    def more(self, n: int, done: int, found: Estimate | None) -> int:
        """How many examples to leave out next.

        Args:
            n: size of S.
            done: how many have been left out.
            found: what they gave; None before the first.

        Returns:
            0 for enough.
        """

    def most(self, n: int) -> int:
        """The most examples that will be left out."""
        return self.more(n, 0, None)

    def check(self, n: int) -> None:
        """Check that there are as many examples as are to be left out.

        Raises:
            UsageError: there are not.
        """
        if self.retrainings is not None and self.retrainings > n:
            raise UsageError(f"retrainings = {self.retrainings} is outside 1..n with n = {n}")

    def predictor_for(self, algorithm: Algorithm) -> Predictor | None:
        """What predicts; None where nothing is to be predicted."""
        return (self.predictor or default_predictor(algorithm)) if self.predicts else None

    def design(self, n: int, seed: int, prediction: Prediction | None) -> Design:
        """Which examples are left out, in which order; by default drawn uniformly without replacement, from the seed alone."""
        return Design(torch.randperm(n, generator=generator(seed, _DRAWS)).numpy())

    def conclude(self, measured: Estimate, prediction: Prediction | None) -> Estimate:
        """The stability, from what was ``measured`` by retraining and what was predicted."""
        return measured

    def recalibrated(self, real: Replicas, left_out: Sequence[int], losses: Sequence[float]) -> Prediction | None:
        """The prediction from A(S), improved by the ``losses`` of ``left_out`` examples in retrained models; None: as it was."""
        return None

    def status(self, found: Estimate) -> Status:
        """How the estimate ended."""
        if found.count == found.population:
            return Status.EXACT
        if self.tolerance is None:
            return Status.AS_ASKED
        return Status.WITHIN_TOLERANCE if found.relative_half_width <= self.tolerance else Status.TOLERANCE_NOT_MET

    def kind(self, found: Estimate) -> str:
        """What the estimate is called: ``exact`` where every example was left out, otherwise the estimator's name."""
        return Exact.name if found.count == found.population else self.name


@dataclass(frozen=True)
class Alone(Estimator):
    """Leave out none, and predict nothing: A(S) alone, for its losses and metrics.

    Example:
        >>> Alone().most(n=100)
        0
    """

    name: ClassVar[str] = "alone"

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return 0

    def status(self, found: Estimate) -> Status:
        return Status.NOT_MEASURED


@dataclass(frozen=True)
class Exact(Estimator):
    """Leave out every example: n retrainings, and nothing to be uncertain of for this S and seed.

    Example:
        >>> Exact().most(n=100)
        100
    """

    name: ClassVar[str] = "exact"

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return n - done

    def design(self, n: int, seed: int, prediction: Prediction | None) -> Design:
        return Design(np.arange(n), drawn=False)

    def kind(self, found: Estimate) -> str:
        """``sampled`` where a replica failed, so that not every example is known."""
        return Exact.name if found.count == found.population else Sampled.name


@dataclass(frozen=True)
class Sampled(Estimator):
    """Leave out examples drawn uniformly without replacement, so many or until the interval is narrow enough.

    Attributes:
        retrainings: the most examples that are left out; by default 20, and with a tolerance all n.
        tolerance: stop when the interval reaches at most this fraction of the value to either side. The interval is formed after
            12 retrainings, then after as many as that interval predicts to be enough, at most twice as many. That is so seldom
            that stopping at a lucky interval costs hardly any coverage (``benchmarks/assisted.py`` measures it).

    Raises:
        UsageError: a number is out of range.

    Example:
        >>> Sampled(retrainings=10).most(n=100), Sampled(tolerance=0.1).most(n=100)
        (10, 100)
    """

    retrainings: int | None = None
    tolerance: float | None = None

    name: ClassVar[str] = "sampled"

    def __post_init__(self) -> None:
        if self.retrainings is not None:
            check_whole(1, retrainings=self.retrainings)
        if self.tolerance is not None:
            check_fraction(tolerance=self.tolerance)

    def most(self, n: int) -> int:
        return self.retrainings or (n if self.tolerance is not None else min(20, n))

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        most = self.most(n)
        if self.tolerance is None:
            return most - done
        if found is None:
            return min(_FIRST, most)
        if (width := found.relative_half_width) <= self.tolerance or found.count < done:  # one failed: no upper end any more
            return 0
        # The variance falls as 1/a or faster, so four fifths of what 1/a asks for will often do.
        asked = min(2.0, 0.8 * (width / self.tolerance) ** 2) * done
        return min(max(4, math.ceil(asked) - done), most - done)


@dataclass(frozen=True)
class Assisted(Sampled):
    """Leave out few examples, drawn with a probability that grows with their predicted |Δℓ|, and weigh each by that probability.

    Value and interval are those of :func:`stability.leave_one_out.statistics.mean_of_draws`. A poor prediction makes the interval
    wider. How often intervals of draws like these held the truth in simulations, the estimate says
    (``diagnostics.simulated_coverage``). Where the prediction is of no use, all zero or not finite, the draws are uniform, and the
    estimate says so.

    Attributes:
        retrainings: the most examples that are left out; by default 20, and with a tolerance all n.
        tolerance: stop when the interval reaches at most this fraction of the value to either side, as for :class:`Sampled`.
        predictor: what predicts; by default :class:`~stability.predictors.Linearised` for FineTuning,
            :class:`~stability.predictors.OneStep` for a minimisation.

    Raises:
        UsageError: a number is out of range.

    Example:
        >>> Assisted(retrainings=10).settings()["name"]
        'assisted'
    """

    predictor: Predictor | None = None

    name: ClassVar[str] = "assisted"
    predicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_predictor(self.predictor)

    def design(self, n: int, seed: int, prediction: Prediction | None) -> Design:
        assert prediction is not None
        predicted = prediction.sizes
        finite = np.isfinite(predicted)
        odd = n - int(finite.sum())
        if not drawable(predicted):
            what = f"not finite for {odd} of {n} examples" if odd > n / 2 else "all zero"
            note = f"the prediction is {what}: examples were drawn uniformly"
            return dataclasses.replace(super().design(n, seed, None), notes=(note,))
        notes = (f"the prediction of {odd} examples is not finite: they were drawn as the largest",) if odd else ()
        known: Numbers = np.where(finite, predicted, predicted[finite].max())
        sizes = known**POWER
        sizes += FLOOR * sizes.mean()
        draws = draw(sizes, np.random.default_rng(generator(seed, _DRAWS).initial_seed()))
        return Design(draws.order, draws, known / known.max(), notes)  # only ratios matter, and squares of them are taken


@dataclass(frozen=True, kw_only=True)
class Auto(Estimator):
    """Leave out every example where that is cheap, and otherwise as few as a tolerance asks for. It says what it chose and why.

    :class:`Exact` measures where all n retrainings take at most 2⁴⁰ floating-point operations, some twenty seconds of one core,
    or no more than what :class:`Assisted` is expected to take: its prediction, and the 5 / ``tolerance`` retrainings that the
    tolerance needs in the median of the settings measured on ``digits``. Otherwise Assisted measures. Operations are counted and
    not timed, so that every machine chooses the same. Only a ``budget`` in seconds makes the result depend on the machine. Nobody
    can count the work of a loop of one's own (:func:`stability.measure_loop`): there Exact measures up to n = 100.

    Assisted then goes on until the interval is narrow enough, and as long as its draws cannot be trusted: where intervals of draws
    like these held the truth too seldom in simulations, or where the draws are worth less than plain ones. It may so come to leave
    out every example.

    Attributes:
        tolerance: stop when the interval reaches at most this fraction of the value to either side; by default 0.2. With
            ``retrainings`` alone there is none, and so many are left out.
        retrainings: the most examples that are left out. By default 50, and with a tolerance or a budget all n.
        budget: seconds that the measurement may take; by default as many as it needs. A retraining that would not be finished in
            time is not begun.
        predictor: what predicts; by default what suits the algorithm, as for :class:`Assisted`.

    Raises:
        UsageError: a number is out of range.

    Example:
        >>> from stability import FineTuning, load, measure, selectors
        >>> estimate = measure(load("digits", n=20), FineTuning(selectors.BitFit(), steps=3), Auto())
        >>> estimate.estimator, estimate.reason
        ('exact', 'exact: leaving out all 20 examples is no more work than an estimate to ±20 %')
    """

    tolerance: float | None = None
    retrainings: int | None = None
    budget: float | None = None
    predictor: Predictor | None = None

    name: ClassVar[str] = "auto"
    predicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_positive(budget=self.budget)
        Assisted(self.retrainings, self.tolerance, self.predictor)  # which checks them

    def settings(self) -> dict[str, Any]:
        """With the tolerance that applies; without a budget where there is none."""
        own = super().settings() | {"tolerance": self._aim}
        return own if self.budget is not None else {name: value for name, value in own.items() if name != "budget"}

    def most(self, n: int) -> int:
        return n if self.retrainings is None else min(self.retrainings, n)

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return self._assisted(n).more(n, done, found)

    def choice(self, problem: Problem, algorithm: Algorithm, k: int) -> Choice:
        n = problem.n

        def cheap() -> tuple[bool, str]:
            assert self._aim is not None
            work, predictor = work_of(problem, algorithm, k), self.predictor_for(algorithm)
            predicting = 0.0 if predictor is None else predictor.operations(work) / work.retraining
            drawing, otherwise = predicting + math.ceil(_NEEDED / self._aim), f"an estimate to ±{100 * self._aim:g} %"
            if n <= drawing:
                return True, f"leaving out all {n} examples is no more work than {otherwise}"
            if n * work.retraining <= _CHEAP:
                return True, f"leaving out all {n} examples is little work"
            return False, f"leaving out all {n} examples would be {n / drawing:.1f} times the work of {otherwise}"

        return self._choice(n, LEAVING_ONE_OUT, self._assisted(n), cheap)

    def without_prediction(self, count: int, words: Words, work: Callable[[], Work]) -> Choice:
        """Which estimator measures where nothing can be predicted.

        Exact where that is cheap, or takes no more than the most that is left out by default; otherwise :class:`Sampled`.

        Args:
            count: how many units there are.
            words: what is done to them.
            work: gives that of a retraining.

        Raises:
            UsageError: a predictor was asked for.
        """
        if self.predictor is not None:
            raise UsageError(
                f"predictor = {self.predictor!r}, and nothing predicts what {words.doing} does: leave the predictor out "
                "(--predictor and --checkpoints)"
            )
        assisted = self._assisted(count)

        def cheap() -> tuple[bool, str]:
            every = f"this perturbation is not predicted, and all {count} {words.plural} are"
            if count * work().retraining <= _CHEAP:
                return True, f"{every} little work"
            if count <= _USUAL_MOST:
                return True, f"{every} no more than {_USUAL_MOST} retrainings"
            return False, f"{every} much work"

        return self._choice(count, words, Sampled(assisted.retrainings, assisted.tolerance), cheap)

    def choice_for_loop(self, n: int, words: Words = LEAVING_ONE_OUT) -> Choice:
        """Exact for at most 100 examples, and Assisted for more."""
        super().choice_for_loop(n, words)
        few = n <= _FEW
        reason = f"leaving out all {n} {words.plural} is {'no more' if few else 'more'} than {_FEW} retrainings"
        return self._choice(n, words, self._assisted(n), lambda: (few, reason))

    def _choice(self, count: int, words: Words, drawing: Estimator, cheap: Callable[[], tuple[bool, str]]) -> Choice:
        """Exact where all units are asked for or are cheap, and ``drawing`` otherwise.

        Args:
            count: how many units there are.
            words: what is done to them.
            drawing: draws some of them. It measures too where the budget is too small for all.
            cheap: finds out whether all are cheap, and the reason for the answer.
        """
        if self.retrainings is not None and self.retrainings < count:
            return Choice(drawing, f"at most {self.retrainings} of {count} {words.plural} are to be {words.passive}")
        if self._aim is None:
            return Choice(Exact(), f"all {count} {words.plural} are to be {words.passive}", drawing)
        every, reason = cheap()
        return Choice(Exact(), reason, drawing) if every else Choice(drawing, reason)

    @property
    def _aim(self) -> float | None:
        """The tolerance that applies."""
        return _USUAL_TOLERANCE if self.tolerance is None and self.retrainings is None else self.tolerance

    def _assisted(self, n: int) -> Assisted:
        usual = self.tolerance is None and self.retrainings is None and self.budget is None
        return Assisted(min(_USUAL_MOST, n) if usual else self.retrainings, self._aim, self.predictor)


@dataclass(frozen=True)
class Approximate(Estimator):
    """Leave out none: the mean of the predictions. There is no interval, for nothing is known of its error.

    Attributes:
        predictor: what predicts; by default what suits the algorithm, as for :class:`Assisted`.
        calibration: so many retrainings, drawn uniformly, to choose the damping of :class:`~stability.predictors.OneStep` by.

    Raises:
        UsageError: a calibration of anything but a OneStep without a damping of its own.

    Example:
        >>> from stability.leave_one_out.predictors import OneStep
        >>> Approximate().most(n=100), Approximate(OneStep(), calibration=5).most(n=100)
        (0, 5)
    """

    predictor: Predictor | None = None
    calibration: int = 0

    name: ClassVar[str] = "approximate"
    predicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_predictor(self.predictor)
        check_whole(0, calibration=self.calibration)
        if self.calibration:
            if self.predictor is None:
                raise UsageError(f"calibration = {self.calibration} is of OneStep's damping: give predictor=OneStep() with it")
            self.predictor.check_calibration()

    def check(self, n: int) -> None:
        if self.calibration > n:
            raise UsageError(f"calibration = {self.calibration} retrainings of n = {n} examples: use at most n")

    def choice_for_loop(self, n: int, words: Words = LEAVING_ONE_OUT) -> Choice:
        """None: the losses or gradients of a loop tell only which differences are larger than others."""
        raise UsageError(
            "Approximate() is the mean of predicted differences, and of a loop only their ratios are predicted: use Assisted(), "
            "Sampled() or Exact()"
        )

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return self.calibration - done

    def design(self, n: int, seed: int, prediction: Prediction | None) -> Design:
        odd = 0 if prediction is None else n - int(np.isfinite(prediction.sizes).sum())
        notes = (f"the prediction of {odd} of {n} examples is not finite: the mean is over the others",) if odd else ()
        return dataclasses.replace(super().design(n, seed, prediction), notes=notes)

    def conclude(self, measured: Estimate, prediction: Prediction | None) -> Estimate:
        assert prediction is not None
        return dataclasses.replace(measured, value=prediction.mean, interval=(math.nan, math.nan), count=0, error=math.nan)

    def recalibrated(self, real: Replicas, left_out: Sequence[int], losses: Sequence[float]) -> Prediction | None:
        return self.predictor.calibrated(real, left_out, losses) if self.predictor is not None and left_out else None

    def status(self, found: Estimate) -> Status:
        return Status.APPROXIMATE


def drawable(predicted: Numbers) -> bool:
    """Whether examples can be drawn by these sizes: some are positive, and at most half are not finite.

    Args:
        predicted: (n,) the predicted |Δℓ_i|.

    Example:
        >>> drawable(np.array([0.0, 1.0])), drawable(np.zeros(2))
        (True, False)
    """
    finite = np.isfinite(predicted)
    return bool((predicted[finite] > 0).any()) and 2 * int(finite.sum()) >= len(predicted)


def _check_predictor(predictor: Predictor | None) -> None:
    if predictor is not None:
        check_kind(Predictor, "one of stability.predictors, such as Linearised()", predictor=predictor)
