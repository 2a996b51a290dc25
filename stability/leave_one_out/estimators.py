"""How stability is estimated: which examples are left out, when it is enough, what is concluded."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from stability.checks import check_positive, check_whole
from stability.errors import UsageError
from stability.leave_one_out.predictors import Linearised, OneStep, Prediction, Predictor
from stability.leave_one_out.statistics import Estimate, Numbers, draw, mean_of_draws, mean_of_population
from stability.problems.problem import generator

__all__ = ["Alone", "Approximate", "Assisted", "Estimator", "Exact", "Plan", "Sampled"]

_FIRST = 12  # retrainings before the first look at a tolerance

DEFAULT: Mapping[str, type[Predictor]] = {"FineTuning": Linearised, "Minimisation": OneStep}
"""The predictor of each kind of algorithm, where none is named."""

POOR = 0.8  # correlation of prediction and retraining below which the estimate says that it is low

POWER, FLOOR = 0.8, 0.05
"""Examples are drawn by |Δ̂ℓ|^0.8, plus a twentieth of its mean for all: a small prediction is wrong by a larger factor than a
large one, and one of zero must not exclude. Fixed in advance for all problems, methods and p; ``benchmarks/assisted.py``
measures the coverage and the variance that come of it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """In which order examples are left out, and by which sizes they were drawn; None for all alike."""

    order: NDArray[np.int64]
    sizes: Numbers | None = None
    notes: tuple[str, ...] = ()

    def mean(self, values: Numbers, confidence: float, ratio: bool = False) -> Estimate:
        """Of a quantity that was measured for the first examples of the order, NaN where it could not be."""
        if self.sizes is not None:
            return mean_of_draws(values, self.order[: len(values)], self.sizes, confidence, ratio)
        known = values[~np.isnan(values)]
        return mean_of_population(known, len(self.order), confidence, len(values) - len(known))


class Estimator(ABC):
    """What is left out and when it is enough. Frozen dataclasses; ``settings`` is part of the identity of a result."""

    name: ClassVar[str]
    predictor: Predictor | None = None
    predicts: ClassVar[bool] = False
    retrainings: int | None = None
    tolerance: float | None = None

    def settings(self) -> dict[str, Any]:
        """As plain values."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        if self.predicts:  # the default ones by name, so that results of another default are never taken for these
            chosen = {"every": self.predictor} if self.predictor else {kind: made() for kind, made in DEFAULT.items()}
            own["predictor"] = {kind: predictor.settings() for kind, predictor in chosen.items()}
        return {"name": self.name, **own}

    @abstractmethod
    def more(self, n: int, done: int, found: Estimate | None) -> int:
        """How many examples to leave out next, after ``done`` of n that gave ``found``; 0 for enough."""

    def check(self, n: int) -> None:
        """That there are as many examples as are to be left out.

        Raises:
            UsageError: there are not.
        """
        if self.retrainings is not None and self.retrainings > n:
            raise UsageError(f"retrainings = {self.retrainings} is outside 1..n with n = {n}")

    def plan(self, n: int, seed: int, prediction: Prediction | None) -> Plan:
        """Uniform draws without replacement, from the seed alone."""
        return Plan(torch.randperm(n, generator=generator(seed, "plan")).numpy())


@dataclass(frozen=True)
class Alone(Estimator):
    """Leave out none, and predict nothing: A(S) alone, for its losses and metrics."""

    name: ClassVar[str] = "alone"

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return 0


@dataclass(frozen=True)
class Exact(Estimator):
    """Leave out every example: n retrainings, and nothing to be uncertain of for this S and seed."""

    name: ClassVar[str] = "exact"

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return n - done

    def plan(self, n: int, seed: int, prediction: Prediction | None) -> Plan:
        return Plan(np.arange(n))


@dataclass(frozen=True)
class Sampled(Estimator):
    """Leave out examples drawn uniformly without replacement, so many or until the interval is narrow enough.

    Attributes:
        retrainings: at most so many; by default 20, and with a tolerance all n.
        tolerance: stop when the interval reaches at most this fraction of the value to either side. It is looked at after 12
            retrainings, then after as many as that look foretold to be enough, at most twice as many: so seldom that
            stopping at a lucky look costs hardly any coverage (``benchmarks/assisted.py`` measures it).

    Raises:
        UsageError: a number out of range.
    """

    retrainings: int | None = None
    tolerance: float | None = None

    name: ClassVar[str] = "sampled"

    def __post_init__(self) -> None:
        if self.retrainings is not None:
            check_whole(1, retrainings=self.retrainings)
        if self.tolerance is not None:
            check_positive(tolerance=self.tolerance)

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        most = self.retrainings or (n if self.tolerance is not None else min(20, n))
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
    """Leave out few examples, drawn with a probability that grows with their predicted |Δℓ|, and weigh each by it.

    Unbiased, but for a clip at what is sure, whatever the prediction is worth (:func:`~stability.leave_one_out.statistics.mean_of_draws`).
    Where it misses examples that carry much, as where training is chaotic (full tuning of ``digits``), few draws may not show it,
    and the interval holds the truth less often than it says: the estimate notes a low correlation.
    Where it is of no use, all zero or not finite, the draws are uniform, and the estimate says so.

    Attributes:
        retrainings: as in :class:`Sampled`.
        tolerance: as there.
        predictor: :class:`Linearised` or :class:`OneStep`; by default the first for FineTuning, the second for a minimisation.
    """

    predictor: Predictor | None = None

    name: ClassVar[str] = "assisted"
    predicts: ClassVar[bool] = True

    def plan(self, n: int, seed: int, prediction: Prediction | None) -> Plan:
        assert prediction is not None
        predicted = prediction.sizes
        finite = np.isfinite(predicted)
        odd = n - int(finite.sum())
        if not (predicted[finite] > 0).any() or odd > n / 2:
            what = f"not finite for {odd} of {n} examples" if odd > n / 2 else "all zero"
            note = f"the prediction is {what}: examples were drawn uniformly"
            return dataclasses.replace(super().plan(n, seed, None), notes=(note,))
        notes = (f"the prediction of {odd} examples is not finite: they were drawn as the largest",) if odd else ()
        sizes: Numbers = np.where(finite, predicted, predicted[finite].max()) ** POWER
        sizes += FLOOR * sizes.mean()
        draws = np.random.default_rng(generator(seed, "plan").initial_seed())
        return Plan(draw(sizes, draws), sizes, notes)


@dataclass(frozen=True)
class Approximate(Estimator):
    """Leave out none: the mean of the predictions. There is no interval, for nothing is known of its error.

    Attributes:
        predictor: as in :class:`Assisted`.
        calibration: so many retrainings, drawn uniformly, to choose the damping of :class:`OneStep` by.

    Raises:
        UsageError: a calibration of anything but OneStep.
    """

    predictor: Predictor | None = None
    calibration: int = 0

    name: ClassVar[str] = "approximate"
    predicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole(0, calibration=self.calibration)
        if self.calibration and not isinstance(self.predictor, OneStep):
            raise UsageError(f"calibration = {self.calibration} is of OneStep's damping: give predictor=OneStep(), or leave it out")
        if self.calibration and isinstance(self.predictor, OneStep) and self.predictor.damping is not None:
            raise UsageError(f"damping = {self.predictor.damping} and calibration = {self.calibration}: leave one of them out")

    def check(self, n: int) -> None:
        if self.calibration > n:
            raise UsageError(f"calibration = {self.calibration} retrainings of n = {n} examples: use at most n")

    def more(self, n: int, done: int, found: Estimate | None) -> int:
        return self.calibration - done

    def plan(self, n: int, seed: int, prediction: Prediction | None) -> Plan:
        odd = 0 if prediction is None else n - int(np.isfinite(prediction.sizes).sum())
        notes = (f"the prediction of {odd} of {n} examples is not finite: the mean is over the others",) if odd else ()
        return dataclasses.replace(super().plan(n, seed, prediction), notes=notes)
