"""Leave-one-out stability, measured: Definition 3 of Fu et al. 2023 by retraining."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from stability.checks import check_kind, check_whole, those_given
from stability.errors import MeasurementError, UsageError
from stability.leave_one_out.dividing import Divided, Given, Portion
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Auto, Choice, Estimator
from stability.leave_one_out.executor import Executor, Models, Part
from stability.leave_one_out.perturbations import LeaveOneOut, Perturbation
from stability.leave_one_out.predictors import Observation, Prediction
from stability.leave_one_out.procedure import carried_out
from stability.leave_one_out.retraining import MasksOfUnits, Memory, Outcome, Retraining
from stability.leave_one_out.units import SingleExamples
from stability.leave_one_out.work import work_of
from stability.machine import resolve_device
from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.descent import Progress
from stability.training.progress import Stages, stages
from stability.training.replicas import Replicas
from stability.training.threads import suited_to
from stability.workers import asked
from stability.workers.pools import Pool

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
    test_examples: int | None = None,
    device: str | torch.device = "auto",
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    progress: bool | Progress = False,
) -> StabilityEstimate:
    """Retrain without single examples, and compare the loss on each with that of the model trained on all.

    β₂ = E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|, the mean over i for one S and one seed (Fu et al. 2023, Definition 3). The runs are
    *paired*: the same start and the same batches in the same order. Only the weight of z_i is zero, so that the mean of a batch
    runs over what remains, and a selector that uses data has chosen its mask on Sⁱ.

    A(S) is trained first, alone. Where the estimator predicts, all n differences are predicted from that one run. Then examples are
    left out, many replicas at once, until the estimator has enough.

    With ``workers`` the retrainings are divided: each worker computes a portion, and evaluates it. A(S) and the prediction remain
    in this process. Fewer replicas at once change the result by rounding only, as on another device. A portion whose worker is
    lost is computed again with fewer replicas at once, up to three times.

    Args:
        problem: what to learn.
        algorithm: A, selector and seed included.
        estimator: one of :mod:`stability.estimators`: Auto, Exact, Sampled, Assisted or Approximate; by default ``Auto()``, which
            leaves out every example where that is cheap, and otherwise as few as an interval of ±20 % needs, at most 50.
        perturbation: one of :mod:`stability.perturbations`, what is done to S; by default ``LeaveOneOut()``. With another one every
            "example" here is one of its units, such as a group, and nothing is predicted.
        reselect: choose the mask again on Sⁱ where the selector uses data, for that is part of A. False keeps S's mask.
        confidence: of the intervals. They speak of the choice of i alone; an exact measurement has nothing to be uncertain of.
        test_examples: evaluate the models without an example on so many of the test examples, drawn at random and the same for
            every method and seed; by default on all, which takes as long as training where there are many. β₁, ``hypothesis``, is
            then of these examples, and its interval does not count their draw. Stability itself, β₂, does not depend on it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        replica_batch: how many replicas are computed at once in each thread; by default planned from ``memory_budget``.
        memory_budget: bytes to plan with; by default half of what is free. Workers on one device of one machine share them equally.
        workers: processes of one thread each, among which the retrainings are divided; with ``device="cuda"`` all visible GPUs take
            turns. By default there are none, and this process trains with the threads that it has. With Ray, the most portions at
            once; by default as many as the cluster has CPUs or GPUs.
        executor: ``local``, this machine; or ``ray``, the machines of a cluster (``pip install 'peft-stability[cluster]'``). With
            Ray, ``device`` is that of the workers. This process takes a GPU if it has one.
        address: of the cluster, ``HOST:PORT``; or ``auto``, the one that runs on this machine. By default the one that
            ``RAY_ADDRESS`` names, and without that variable one of this machine alone, for as long as this takes.
        progress: True shows what is being done: a bar in a terminal or a notebook, and a line every ten seconds where output goes
            to a file. A function is told how many replica-steps of training were done, and nothing of masks or predictions;
            :class:`stability.training.progress.Stages` is told what is being done as well. With Ray it is told when a portion is
            done. By default nothing is shown.

    Returns:
        The estimate with its interval, noise floor, diagnostics and the trained models.

    Raises:
        UsageError: n < 2, ``test_examples`` is no whole number of at least 1, more retrainings than examples, a budget too small
            for one retraining, what the algorithm or the estimator refuses, or a problem or an algorithm that workers cannot be
            sent.
        MeasurementError: A(S) itself failed (diverged, or stopped short of its minimum), or every replica did.
        MachineError: not even one replica fits into memory, or three workers were lost over one portion.

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
    check_whole(1, **those_given(test_examples=test_examples))
    given, algorithm, estimator = _checked(problem, algorithm, estimator, reselect)
    perturbation = LeaveOneOut() if perturbation is None else perturbation
    check_kind(Perturbation, "one of stability.perturbations, such as LeaveGroupOut(groups)", perturbation=perturbation)
    pool: Pool[Portion] | None = asked.pool(str(device), workers, executor, address)
    problem = algorithm.equivalent(given.to(resolve_device(_own(device, executor))))
    units = perturbation.units(problem, algorithm.seed)
    estimator.check(units.count)
    memory = Memory(replica_batch, memory_budget)
    with stages(progress) as told, suited_to(problem, algorithm), pool or nullcontext():
        masks = MasksOfUnits(problem, algorithm, units, reselect=reselect, told=told)
        retraining = Retraining(problem, algorithm, units, masks, test_examples=test_examples)
        if pool is None:
            return carried_out(_Replicated(retraining, told, memory), estimator, confidence, began)
        here = torch.device("cpu")
        shared = Given(
            given.to(here), algorithm, perturbation, own=masks.own, reselect=reselect, memory=memory, test_examples=test_examples
        )
        divided = Divided(pool, retraining, shared, told)
        return carried_out(_Replicated(retraining, told, memory, divided), estimator, confidence, began)


class _Replicated(Executor):
    """Trains replicas of an algorithm on a problem, many at once, each without one unit.

    Args:
        retraining: what the trainings have in common.
        told: is told what is being done.
        memory: how many replicas are computed at once.
        divided: has them computed by workers; None: this process does it.
    """

    def __init__(self, retraining: Retraining, told: Stages, memory: Memory, divided: Divided | None = None) -> None:
        self.units, self.seed, self.told = retraining.units, retraining.algorithm.seed, told
        self._retraining, self._memory, self._divided = retraining, memory, divided
        self._problem, self._algorithm, self._masks = retraining.problem, retraining.algorithm, retraining.masks
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
        self.told.begin(f"training on all {self._problem.n} examples", self._retraining.steps(1))
        alone = self._alone = self._retraining.alone(None if self._observed is None else self._observed.observer, self.told)
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
        began = time.perf_counter()
        if self._divided is None:
            portions = iter([self._retraining.without(left_out, along, self._memory, self.told)])
        else:
            portions = self._divided.without(left_out, along)
        parts, trained, everything = [], 0.0, 0.0
        for portion in portions:
            parts.append(self._compared(portion))
            trained, everything = trained + portion.seconds, everything + portion.all_seconds
        return Part(
            own=torch.cat([part.own for part in parts]),
            moved=torch.cat([part.moved for part in parts]),
            failed_step=torch.cat([part.failed_step for part in parts]),
            whole=parts[0].whole,
            seconds=trained / everything * (time.perf_counter() - began),  # workers train at once: not the sum of theirs
        )

    def _compared(self, found: Outcome) -> Part:
        """What a portion gave, compared with A(S)."""
        replicas, whole, rows = found.replicas, None, slice(0, None)
        if found.whole is not None and found.whole_held_out is not None:
            whole, rows = found.whole.double(), slice(1, None)
            self._check(replicas, whole, "the run that gives the noise floor")
            self._held_out = found.whole_held_out.double()
        own = found.own.double()
        moved = (found.held_out.double() - self._held_out).abs().mean(1)
        failed = replicas.failed_step[rows]
        failed = torch.where((failed < 0) & ~(torch.isfinite(own) & torch.isfinite(moved)), self._algorithm.max_steps, failed)
        failed_step = torch.cat([replicas.failed_step[: rows.start], failed])
        self._parts.append(dataclasses.replace(replicas, failed_step=failed_step))
        return Part(own=own, moved=moved, failed_step=failed, whole=whole, seconds=found.seconds)

    @property
    def threads(self) -> int:
        return super().threads if self._divided is None else 1

    def models(self) -> Models:
        replicas = Replicas.joined(self._parts) if self._parts else self._alone
        problem, (first, *others) = replicas.problem, replicas.masks
        return Models(
            distance=replicas.distances()[1:].tolist(),
            mask_changes=[0 if mask is first else int((~first.contains(mask)).sum()) for mask in others],
            mask_overlap=[first.overlap(mask) for mask in others],
            replicas=replicas,
            k=first.count,
            m=problem.m,
            head=sum(tensor.numel() for tensor in problem.head(replicas.algorithm.seed).values()),
            steps_shared=replicas.steps_shared,
            notes=(
                *(note for note in problem.execution_notes if _said(note) not in map(_said, problem.notes)),
                *self._tested(),
                *([_SEEN] if self.units.of_validation and replicas.algorithm.validates else []),
            ),
        )

    def _tested(self) -> list[str]:
        """A note where the models were evaluated on a part of the test examples."""
        count, every = len(self._retraining.tested()), len(self._problem.test)
        return [f"the models without an example were evaluated on {count} of {every} test examples"] if count < every else []

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


def _own(device: str | torch.device, executor: str) -> str | torch.device:
    """On which device this process trains A(S). A cluster may have GPUs that this machine lacks."""
    return device if executor == "local" or str(device) == "cpu" else "auto"


def _checked(
    problem: Problem, algorithm: Algorithm, estimator: Estimator | None, reselect: bool
) -> tuple[Problem, Algorithm, Estimator]:
    """Problem and algorithm, with the settings that were left open."""
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
    return problem, algorithm, estimator
