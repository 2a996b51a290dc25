"""Leave-one-out stability, measured: Definition 3 of Fu et al. 2023 by retraining."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stability.checks import check_kind
from stability.errors import UsageError, explained
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Auto, Choice, Estimator
from stability.leave_one_out.retrained import Retrained, losses_of
from stability.machine import resolve_device
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.descent import Progress
from stability.training.progress import Stages, stages
from stability.training.replicas import train
from stability.training.threads import suited_to

__all__ = ["measure"]


def measure(
    problem: Problem,
    algorithm: Algorithm,
    estimator: Estimator | None = None,
    *,
    reselect: bool = True,
    confidence: float = 0.95,
    device: str | torch.device = "auto",
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    progress: bool | Progress = False,
) -> StabilityEstimate:
    """Retrain without single examples, and compare the loss on each with that of the model trained on all.

    β₂ = E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|, the mean over i for one S and one seed (Fu et al. 2023, Definition 3). The runs are
    *paired*: the same start and the same batches in the same order. Only the weight of z_i is zero, so that the mean of a batch
    runs over what remains, and a selector that uses data has chosen its mask on Sⁱ.

    A(S) is trained first, alone. Where the estimator predicts, all n differences are predicted from that one run. Then examples are
    left out, many replicas at once, until the estimator has enough.

    Args:
        problem: what to learn.
        algorithm: A, selector and seed included.
        estimator: one of :mod:`stability.estimators`: Auto, Exact, Sampled, Assisted or Approximate; by default ``Auto()``, which
            leaves out every example where that is cheap, and otherwise as few as an interval of ±20 % needs, at most 50.
        reselect: choose the mask again on Sⁱ where the selector uses data, for that is part of A. False keeps S's mask.
        confidence: of the intervals. They speak of the choice of i alone; an exact measurement has nothing to be uncertain of.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        replica_batch: how many replicas are computed at once in each thread; by default planned from ``memory_budget``.
        memory_budget: bytes to plan with; by default half of what is free.
        progress: True shows what is being done: a bar in a terminal or a notebook, and a line every ten seconds where output goes
            to a file. A function is told how many replica-steps of training were done, and nothing of masks or predictions;
            :class:`stability.training.progress.Stages` is told what is being done as well. By default nothing is shown.

    Returns:
        The estimate with its interval, noise floor, diagnostics and the trained models.

    Raises:
        UsageError: n < 2, more retrainings than examples, a budget too small for one retraining, or what the algorithm or the
            estimator refuses.
        MeasurementError: A(S) itself failed (diverged, or stopped short of its minimum), or every replica did.

    Example:
        >>> from stability import FineTuning, estimators, load, selectors
        >>> problem, algorithm = load("digits", n=20), FineTuning(selectors.Random(sparsity=0.05), steps=3)
        >>> estimate = measure(problem, algorithm, estimators.Assisted(retrainings=4))
        >>> estimate.retrainings, len(estimate.prediction.table), estimate.diagnostics.correlation > 0.9
        (4, 20, True)
        >>> measure(problem, algorithm, estimators.Exact()).status
        <Status.EXACT: 'exact'>
    """
    how: dict[str, Any] = {"began": time.perf_counter(), "replica_batch": replica_batch, "memory_budget": memory_budget}
    problem, algorithm, estimator = _prepared(problem, algorithm, estimator, reselect, device)
    with stages(progress) as told, suited_to(problem, algorithm):
        return _measured(problem, algorithm, estimator, reselect, confidence, told, **how)


def _measured(
    problem: Problem,
    algorithm: Algorithm,
    estimator: Estimator,
    reselect: bool,
    confidence: float,
    told: Stages,
    *,
    began: float,
    replica_batch: int | None,
    memory_budget: int | None,
) -> StabilityEstimate:
    masks = _Masks(problem, algorithm, reselect, told)
    choice, budget = estimator.choice(problem, algorithm, masks.k), _Budget(estimator.budget, began)

    # 1. Train A(S) alone, in full precision: what reduced precision does to the losses is then in the noise floor.
    likely = choice.estimator if budget.seconds is None else choice.otherwise or choice.estimator  # it may have to predict
    predictor = likely.predictor_for(algorithm)
    observed = None if predictor is None else predictor.observe(problem, algorithm.in_full_precision(), masks)
    told.begin(f"training on all {problem.n} examples", _steps(algorithm, 1))
    since = time.perf_counter()
    alone = train(
        problem,
        algorithm.in_full_precision(),
        masks=masks.of([]) or None,
        replica_batch=1,
        observe=None if observed is None else observed.observer,
        progress=told,
    )
    each = least = time.perf_counter() - since
    whole = losses_of(alone)
    if likely is not choice.estimator:
        if budget.holds(problem.n + 1, each, each) > problem.n:
            observed, budget = None, _Budget(None, began)  # what leaves out all is not ended before it has
        else:
            choice = Choice(likely, f"leaving out all {problem.n} examples may not fit into the budget")
    estimator = choice.estimator

    # 2. Predict what leaving out each example would do.
    prediction = None
    if observed is not None:
        if not observed.counts:
            told.begin(f"predicting what leaving out each of {problem.n} examples does")
        observed.told = told
        prediction = observed.predict(alone)

    # 3. Draw the order in which examples are left out.
    design = estimator.design(problem.n, algorithm.seed, prediction)

    # 4. Retrain without them, until the estimator has enough, or the next would not be finished within the budget.
    retrained, spent = Retrained(alone, whole, design, confidence), False
    while asked := estimator.more(problem.n, retrained.count, retrained.so_far(estimator, prediction)):
        first = retrained.count == 0  # then A(S) goes along as row 0, for what rounding alone does
        count = budget.holds(asked + first, each, least) - first
        if count <= 0:
            if first:
                raise UsageError(budget.too_small(each))
            spent = True
            break
        since = time.perf_counter()
        left_out = torch.as_tensor(design.order[retrained.count : retrained.count + count])
        weights = torch.ones(len(left_out) + first, problem.n)
        weights[torch.arange(len(weights) - len(left_out), len(weights)), left_out] = 0
        theirs = masks.of(left_out.tolist())[not first :] or None
        more = "" if first else " more"
        told.begin(f"retraining without each of {count}{more} examples", _steps(algorithm, len(weights)))
        part = train(
            problem,
            algorithm,
            weights,
            theirs,
            replica_batch=replica_batch,
            memory_budget=memory_budget,
            reverse_batches=True,
            progress=told,
        )
        told.begin("evaluating")
        retrained.add(part, left_out, time.perf_counter() - since)
        wall = time.perf_counter() - since
        each, least = wall / len(weights), min(least, wall)

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


def _steps(algorithm: Algorithm, replicas: int) -> int | None:
    """The steps of so many replicas together, where they are known beforehand."""
    return replicas * algorithm.max_steps if algorithm.stepwise else None


def _prepared(
    problem: Problem, algorithm: Algorithm, estimator: Estimator | None, reselect: bool, device: str | torch.device
) -> tuple[Problem, Algorithm, Estimator]:
    """Problem and algorithm as they are trained, checked against the estimator."""
    estimator = Auto() if estimator is None else estimator
    check_kind(Problem, "a problem, such as stability.load('digits')", problem=problem)
    check_kind(Algorithm, "an algorithm, such as stability.FineTuning(selector)", algorithm=algorithm)
    check_kind(Estimator, "one of stability.estimators, such as Sampled(retrainings=10)", estimator=estimator)
    if problem.n < 2:
        raise UsageError(f"n = {problem.n} training examples: leaving one out needs n ≥ 2")
    estimator.check(problem.n)
    if algorithm.selector.moving and not reselect:
        raise UsageError(
            f"{algorithm.selector.name} finds its mask while it trains: there is none of S to keep; leave reselect=False out"
        )
    algorithm = algorithm.with_defaults(problem.training)
    problem.check_independence()  # before a selector meets what a model of the user's own may raise
    return algorithm.equivalent(problem.to(resolve_device(device))), algorithm, estimator


class _Masks:
    """The masks of S and of each Sⁱ, selected when they are asked for; none where they move."""

    def __init__(self, problem: Problem, algorithm: Algorithm, reselect: bool, told: Stages) -> None:
        self._problem, self._algorithm, self._told = problem, algorithm, told
        told.begin("selecting which parameters may change", unit="mask")
        self._own = None if algorithm.selector.moving else algorithm.select(problem)
        if self._own is not None and algorithm.selector.code() is not None and not algorithm.select(problem).equals(self._own):
            raise UsageError(
                f"selector {algorithm.selector.name!r} chose another mask when it was asked again: what it draws and remembers "
                "would pass for an effect of leaving out; draw from the generator that it is given, or generator(seed, 'selection')"
            )
        self._reselect = reselect and algorithm.selector.uses_data
        self._each: dict[int, Mask] = {}  # of Sⁱ by i: the predictor asks for all, and then the retraining for some

    @property
    def k(self) -> int:
        """How many pretrained coordinates may change; of a mask that moves all."""
        return self._problem.m if self._own is None else self._own.count

    def of(self, left_out: Sequence[int]) -> list[Mask]:
        """S's mask, then that of each Sⁱ."""
        if self._own is None:
            return []
        if not self._reselect or not left_out:
            return [self._own] * (len(left_out) + 1)
        selector = self._algorithm.selector
        if new := [i for i in left_out if i not in self._each]:
            self._told.begin(f"selecting again without each of {len(new)} examples", len(new), "mask")
            with explained(f"selector {selector.name!r}"):
                for i, mask in zip(new, selector.select_each_left_out(self._problem, new, self._algorithm.seed), strict=True):
                    self._each[i] = mask
                    self._told(1)
        return [self._own, *(self._each[i] for i in left_out)]
