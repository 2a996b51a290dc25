"""How a stability is measured, whoever trains: train A(S), predict, draw, retrain until it is enough, estimate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from stability.errors import UsageError
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Choice, Estimator
from stability.leave_one_out.executor import Executor
from stability.leave_one_out.retrained import Retrained

__all__ = ["carried_out"]


def carried_out(executor: Executor, estimator: Estimator, confidence: float, began: float) -> StabilityEstimate:
    """Measure with one executor and one estimator.

    Args:
        executor: trains.
        estimator: says what is left out, when it is enough, and what follows.
        confidence: of the intervals.
        began: when the measurement began, by ``time.perf_counter()``.

    Raises:
        UsageError: a budget that is too small for one retraining.
        MeasurementError: A(S) failed, or every retraining did.
    """
    units = executor.units
    choice, budget = executor.choice(estimator), _Budget(estimator.budget, began)

    # 1. Train A(S) alone.
    likely = choice.estimator if budget.seconds is None else choice.otherwise or choice.estimator  # it may have to predict
    executor.observe(likely)
    since = time.perf_counter()
    whole = executor.train_whole()
    each = least = time.perf_counter() - since
    if likely is not choice.estimator:
        if budget.holds(units.count + 1, each, each) > units.count:
            executor.observe(None)
            budget = _Budget(None, began)  # what leaves out all is not ended before it has
        else:
            choice = Choice(likely, f"leaving out all {units.count} {units.words.plural} may not fit into the budget")
    estimator = choice.estimator

    # 2. Predict what leaving out each unit would do.
    prediction = executor.predict()

    # 3. Draw the order in which units are left out.
    design = estimator.design(units.count, executor.seed, prediction)

    # 4. Retrain without them, until the estimator has enough, or the next would not be finished within the budget.
    retrained, spent = Retrained(executor, whole, design, confidence), False
    while asked := estimator.more(units.count, retrained.count, retrained.so_far(estimator, prediction)):
        first = retrained.count == 0  # then A(S) goes along, for what rounding alone does
        count = budget.holds(asked + first, each, least) - first
        if count <= 0:
            if first:
                raise UsageError(budget.too_small(each))
            spent = True
            break
        since = time.perf_counter()
        left_out = torch.as_tensor(design.order[retrained.count : retrained.count + count])
        retrained.add(executor.retrain(left_out, along=first), left_out)
        wall = time.perf_counter() - since
        each, least = wall / (len(left_out) + first), min(least, wall)
    assert design.drawn or retrained.count == units.count, "the first units in order are no sample of all"

    # 5. Estimate.
    reason = choice.reason and f"{estimator.name}: {choice.reason}"
    return retrained.estimate(estimator, prediction, began, reason=reason, budget_spent=spent)


@dataclass(frozen=True)
class _Budget:
    """Seconds that a measurement may take.

    Attributes:
        seconds: so many; None: as many as it needs.
        began: when it began, by ``time.perf_counter()``.
    """

    seconds: float | None
    began: float

    def holds(self, asked: int, each: float, least: float) -> int:
        """How many of so many trainings will be finished in time.

        Args:
            asked: so many.
            each: seconds of one of them, where many are trained at once.
            least: seconds of one that is trained alone.
        """
        if self.seconds is None:
            return asked
        left = self.seconds - (time.perf_counter() - self.began)
        return 0 if left < least else min(asked, int(left / each))

    def too_small(self, each: float) -> str:
        """What to say where not even one example can be left out."""
        gone = time.perf_counter() - self.began
        least = math.ceil(1.2 * (gone + 2 * each))
        return (
            f"budget = {self.seconds:g} s: training on all examples and what it needs took {gone:.1f} s, and one retraining takes "
            f"{each:.1f} s, with which goes another on all examples: give {least} s at the least, or leave the budget out"
        )
