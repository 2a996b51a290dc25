"""Leave-one-out stability, measured: Definition 3 of Fu et al. 2023 by retraining."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from stability.checks import check_kind
from stability.errors import MeasurementError, UsageError, explained
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Auto, Choice, Estimator
from stability.leave_one_out.executor import Executor, Models, Part
from stability.leave_one_out.perturbations import LeaveOneOut, Perturbation
from stability.leave_one_out.predictors import Observation, Prediction
from stability.leave_one_out.procedure import carried_out
from stability.leave_one_out.units import SingleExamples, Units
from stability.leave_one_out.work import work_of
from stability.machine import resolve_device
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.descent import Progress
from stability.training.progress import Stages, stages
from stability.training.replicas import Replicas, train
from stability.training.substitutes import usual_weights
from stability.training.threads import suited_to

__all__ = ["measure"]

_SEEN = "early stopping chooses a checkpoint by the validation split, and the examples that take another's place are drawn from it"


def measure(
    problem: Problem,
    algorithm: Algorithm,
    estimator: Estimator | None = None,
    *,
    perturbation: Perturbation | None = None,
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
        perturbation: one of :mod:`stability.perturbations`, what is done to S; by default ``LeaveOneOut()``. With another one every
            "example" here is one of its units, such as a group, and nothing is predicted.
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
    began = time.perf_counter()
    problem, algorithm, estimator = _prepared(problem, algorithm, estimator, reselect, device)
    perturbation = LeaveOneOut() if perturbation is None else perturbation
    check_kind(Perturbation, "one of stability.perturbations, such as LeaveGroupOut(groups)", perturbation=perturbation)
    units = perturbation.units(problem, algorithm.seed)
    estimator.check(units.count)
    with stages(progress) as told, suited_to(problem, algorithm):
        masks = _Masks(problem, algorithm, units, reselect, told)
        how: dict[str, Any] = {"replica_batch": replica_batch, "memory_budget": memory_budget}
        return carried_out(_Replicated(problem, algorithm, units, masks, told, how), estimator, confidence, began)


class _Replicated(Executor):
    """Trains replicas of an algorithm on a problem, many at once, each without one unit.

    Args:
        problem: the one that is trained.
        algorithm: A, its settings complete.
        units: what is left out.
        masks: of S and of each Sⁱ.
        told: is told what is being done.
        how: what :func:`stability.train` is told of memory.
    """

    def __init__(
        self, problem: Problem, algorithm: Algorithm, units: Units, masks: _Masks, told: Stages, how: dict[str, Any]
    ) -> None:
        self.units, self.seed, self.told = units, algorithm.seed, told
        self._problem, self._algorithm, self._masks, self._how = problem, algorithm, masks, how
        self._observed: Observation | None = None
        self._parts: list[Replicas] = []

    def choice(self, estimator: Estimator) -> Choice:
        if isinstance(self.units, SingleExamples) or not estimator.predicts:
            return estimator.choice(self._problem, self._algorithm, self._masks.k)
        if not isinstance(estimator, Auto):
            raise UsageError(
                f"estimator = {estimator.name}: it predicts what leaving one example out does, and cannot predict what "
                f"{self.units.words.doing} does: use Exact() or Sampled(), on the command line --estimator exact or sampled"
            )
        work = partial(work_of, self._problem, self._algorithm, self._masks.k)
        return estimator.without_prediction(self.units.count, self.units.words, work)

    def observe(self, estimator: Estimator | None) -> None:
        predictor = None if estimator is None else estimator.predictor_for(self._algorithm)
        alone = self._algorithm.in_full_precision()
        self._observed = None if predictor is None else predictor.observe(self._problem, alone, self._masks)

    def train_whole(self) -> Tensor:
        """In full precision: what reduced precision does to the losses is then in the noise floor."""
        self.told.begin(f"training on all {self._problem.n} examples", _steps(self._algorithm, 1))
        alone = self._alone = train(
            self._problem,
            self._algorithm.in_full_precision(),
            masks=self._masks.of([]) or None,
            replica_batch=1,
            observe=None if self._observed is None else self._observed.observer,
            progress=self.told,
        )
        self.precision = torch.finfo(alone.values.dtype).eps
        losses = alone.losses(alone.problem.train)[0].double().cpu()
        self._check(alone, losses, "A(S)")
        return losses

    def predict(self) -> Prediction | None:
        if self._observed is None:
            return None
        if not self._observed.counts:
            self.told.begin(f"predicting what leaving out each of {self._problem.n} examples does")
        self._observed.told = self.told
        return self._observed.predict(self._alone)

    def retrain(self, left_out: Tensor, along: bool) -> Part:
        """With A(S) as row 0 where it goes along. The examples of each batch come in reverse order."""
        began, problem, units = time.perf_counter(), self._problem, self.units
        weights, substitutes = units.weights(left_out), units.substitutes(left_out)
        if along:
            weights = torch.cat([usual_weights(problem.n, substitutes).unsqueeze(0), weights])
        masks = self._masks.of(left_out.tolist())[not along :] or None
        self.told.begin(units.words.retraining(len(left_out), first=along), _steps(self._algorithm, len(weights)))
        how = {**self._how, "substitutes": substitutes, "reverse_batches": True, "progress": self.told}
        part = train(problem, self._algorithm, weights, masks, **how)
        self.told.begin("evaluating")
        seconds, whole, rows = time.perf_counter() - began, None, slice(int(along), None)
        if along:
            whole = part.losses(problem.train, slice(0, 1))[0].double().cpu()
            self._check(part, whole, "the run that gives the noise floor")
            self._held_out = part.losses(problem.test, slice(0, 1)).double().cpu()
        mine = dataclasses.replace(part, values=part.values[rows])
        own = units.own_losses(mine, left_out).double().cpu()
        moved = (mine.losses(problem.test).double().cpu() - self._held_out).abs().mean(1)
        failed = part.failed_step[rows]
        failed = torch.where((failed < 0) & ~(torch.isfinite(own) & torch.isfinite(moved)), self._algorithm.max_steps, failed)
        self._parts.append(dataclasses.replace(part, failed_step=torch.cat([part.failed_step[: rows.start], failed])))
        return Part(own=own, moved=moved, failed_step=failed, whole=whole, seconds=seconds)

    def models(self) -> Models:
        replicas = Replicas.joined(self._parts) if self._parts else self._alone
        problem, (first, *others) = replicas.problem, replicas.masks
        return Models(
            distance=replicas.distances()[1:].tolist(),
            mask_changes=[0 if mask is first else int((~first.contains(mask)).sum()) for mask in others],
            replicas=replicas,
            k=first.count,
            m=problem.m,
            head=sum(tensor.numel() for tensor in problem.head(replicas.algorithm.seed).values()),
            steps_shared=replicas.steps_shared,
            notes=(
                *(note for note in problem.execution_notes if _said(note) not in map(_said, problem.notes)),
                *([_SEEN] if self.units.of_validation and replicas.algorithm.validates else []),
            ),
        )

    def recalibrated(self, estimator: Estimator, left_out: Sequence[int], losses: Sequence[float]) -> Prediction | None:
        return estimator.recalibrated(self._alone, left_out, losses)

    def all_failed(self, table: pd.DataFrame) -> str:
        step = int(table["failed_step"].max())
        return f"every one of {len(table)} left-out replicas {self._alone.algorithm.failure(step)}"

    def _check(self, replicas: Replicas, losses: Tensor, what: str) -> None:
        """Check that row 0 was trained, and that its losses are finite.

        Raises:
            MeasurementError: it was not, or one is not.
        """
        step, algorithm = int(replicas.failed_step[0]), replicas.algorithm
        if step >= 0 or not bool(torch.isfinite(losses).all()):
            raise MeasurementError(f"{what} {algorithm.failure(step if step >= 0 else algorithm.max_steps)}")


def _said(note: str) -> str:
    """What a note says of a model, without the model's name: one with modules inserted runs as the one around which they are."""
    return note.partition(" ")[2]


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
    if algorithm.selector.moving and not reselect:
        raise UsageError(
            f"{algorithm.selector.name} finds its mask while it trains: there is none of S to keep; leave reselect=False out"
        )
    algorithm = algorithm.with_defaults(problem.training)
    problem.check_independence()  # before a selector meets what a model of the user's own may raise
    return algorithm.equivalent(problem.to(resolve_device(device))), algorithm, estimator


class _Masks:
    """The masks of S and of each Sⁱ, selected when they are asked for; none where they move."""

    def __init__(self, problem: Problem, algorithm: Algorithm, units: Units, reselect: bool, told: Stages) -> None:
        self._problem, self._algorithm, self._units, self._told = problem, algorithm, units, told
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
        if new := [i for i in left_out if i not in self._each]:
            self._told.begin(f"selecting again {self._units.words.each_of(str(len(new)))}", len(new), "mask")
            with explained(f"selector {self._algorithm.selector.name!r}"):
                for i, mask in zip(new, self._units.selected(self._problem, self._algorithm, new), strict=True):
                    self._each[i] = mask
                    self._told(1)
        return [self._own, *(self._each[i] for i in left_out)]
