"""Leave-one-out stability, measured: Definition 3 of Fu et al. 2023 by retraining.

β₂ = E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| for one S and one seed. The replicas are *paired*: the same start, the same
batches in the same order; only the weight of z_i is zero (the batch mean runs over what remains), and a selector that
uses data has chosen its mask on Sⁱ. The mean over seeds and fresh S is :mod:`stability.studies.study`'s.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stability.errors import StabilityError, UsageError
from stability.leave_one_out.estimate import Diagnostics, StabilityEstimate, diagnosed
from stability.leave_one_out.estimators import DEFAULT, POOR, Alone, Approximate, Estimator, Exact, Plan, Sampled
from stability.leave_one_out.predictors import OneStep, Prediction, Predictor
from stability.leave_one_out.statistics import Estimate
from stability.machine import resolve_device
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.training.algorithm import FineTuning, Minimisation
from stability.training.descent import Progress
from stability.training.replicas import Replicas, train

__all__ = ["StabilityEstimate", "measure"]


def measure(
    problem: Problem,
    algorithm: FineTuning | Minimisation,
    retrainings: int | None = None,
    *,
    estimator: Estimator | None = None,
    reselect: bool = True,
    confidence: float = 0.95,
    device: str | torch.device = "auto",
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> StabilityEstimate:
    """Retrain without z_i, for every i or for some of them, and compare the loss on z_i.

    A(S) is trained first, alone; from it a prediction of all n differences, where the estimator takes one; then examples are
    left out, many replicas at once, until the estimator has enough.

    Args:
        problem: what to learn.
        algorithm: A, selector and seed included.
        retrainings: short for ``estimator=Sampled(retrainings)``; without either every i is left out.
        estimator: one of :mod:`stability.leave_one_out.estimators`: Exact, Sampled, Assisted, Approximate.
        reselect: choose the mask anew on Sⁱ where the selector uses data (it is part of A). False keeps S's mask.
        confidence: of the intervals, which speak of the choice of i alone; an exact measurement has none to speak of.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        replica_batch: as in :func:`stability.training.replicas.train`.
        memory_budget: as there.
        progress: as there.

    Raises:
        UsageError: n < 2, retrainings outside 1..n, or both retrainings and an estimator.
        StabilityError: A(S) itself failed (diverged, or stopped short of its tolerance), or every replica did.

    Example:
        >>> from stability.problems import load
        >>> from stability.selectors import Random
        >>> estimate = measure(load("digits", n=20), FineTuning(Random(sparsity=0.05), steps=3), retrainings=4)
        >>> estimate.retrainings, len(estimate.per_example), estimate.value > 0
        (4, 4, True)
        >>> from stability.leave_one_out.estimators import Assisted
        >>> assisted = measure(load("digits", n=20), FineTuning(Random(sparsity=0.05), steps=3), estimator=Assisted(4))
        >>> assisted.retrainings, len(assisted.prediction.table), assisted.diagnostics.correlation > 0.9
        (4, 20, True)
    """
    began = time.perf_counter()
    n, seed = problem.n, algorithm.seed
    if n < 2:
        raise UsageError(f"n = {n} training examples: leaving one out needs n ≥ 2")
    if estimator is None:
        estimator = Exact() if retrainings is None else Sampled(retrainings)
    elif retrainings is not None:
        raise UsageError(f"retrainings = {retrainings} and an estimator: say it to the estimator, {type(estimator).__name__}(…)")
    estimator.check(n)
    if algorithm.selector.moving and not reselect:
        raise UsageError(
            f"{algorithm.selector.name} finds its mask while it trains: there is none of S to keep; leave reselect=False out"
        )
    problem = algorithm.equivalent(problem.to(resolve_device(device)))
    masks = _Masks(problem, algorithm, reselect)
    predictor = _predictor(estimator, algorithm)
    prediction = None
    # In full precision: what reduced precision does to the losses is then in the noise floor.
    full = dataclasses.replace(algorithm, precision="float32") if isinstance(algorithm, FineTuning) else algorithm
    if predictor is None:
        alone = train(problem, full, masks=masks.of([]) or None, replica_batch=1, progress=progress)
    else:
        alone, prediction = predictor.predict(problem, full, masks.of, progress)
    whole = alone.losses(problem.train)[0].double().cpu()
    if alone.failed_step[0] >= 0 or not bool(torch.isfinite(whole).all()):
        step = int(alone.failed_step[0])
        raise StabilityError(f"A(S) {algorithm.failure(step if step >= 0 else algorithm.most_steps)}")
    plan = estimator.plan(n, seed, prediction)
    retrained = _Retrained(alone, whole, estimator, plan, confidence)
    done = 0
    while count := estimator.more(n, done, retrained.mean() if done else None):
        left_out = torch.as_tensor(plan.order[done : done + count])
        weights = torch.ones(len(left_out) + (done == 0), n)
        weights[torch.arange(len(weights) - len(left_out), len(weights)), left_out] = 0
        rows = masks.of(left_out.tolist())[done > 0 :]  # A(S) itself goes first, once: what rounding alone does
        part = train(
            problem,
            algorithm,
            weights,
            rows or None,
            replica_batch=replica_batch,
            memory_budget=memory_budget,
            reverse_batches=True,
            progress=progress,
        )
        retrained.add(part, left_out)
        done += count
    if isinstance(estimator, Approximate) and isinstance(predictor, OneStep) and done:
        known = retrained.table[retrained.table["failed_step"] < 0]
        prediction = predictor.foretell(alone, known["index"].tolist(), known["loss_left_out"].tolist())
    return retrained.estimate(prediction, time.perf_counter() - began)


class _Masks:
    """The mask of S and of each Sⁱ, selected when they are asked for; none where they move."""

    def __init__(self, problem: Problem, algorithm: FineTuning | Minimisation, reselect: bool) -> None:
        self._problem, self._algorithm = problem, algorithm
        self._own = None if algorithm.selector.moving else algorithm.select(problem)
        self._anew = reselect and algorithm.selector.uses_data

    def of(self, left_out: Sequence[int]) -> list[Mask]:
        """S's, then that of each Sⁱ."""
        if self._own is None:
            return []
        if not self._anew or not left_out:
            return [self._own] * (len(left_out) + 1)
        return [self._own, *self._algorithm.selector.select_each_left_out(self._problem, left_out, self._algorithm.seed)]


def _predictor(estimator: Estimator, algorithm: FineTuning | Minimisation) -> Predictor | None:
    """The estimator's, or the one that suits the algorithm; None where nothing is to be predicted."""
    if not estimator.predicts:
        return None
    return estimator.predictor or DEFAULT[type(algorithm).__name__]()


class _Retrained:
    """What came back so far."""

    def __init__(self, alone: Replicas, whole: Tensor, estimator: Estimator, plan: Plan, confidence: float) -> None:
        self._whole = whole  # losses on S of A(S) alone
        self._alone, self._estimator, self._plan, self._confidence = alone, estimator, plan, confidence
        self._parts: list[Replicas] = []
        self._held_out = torch.empty(0)  # losses on the test split under A(S)
        self.table = pd.DataFrame({name: [] for name in _FOUND})
        self._noise_floor = math.nan

    def add(self, part: Replicas, left_out: Tensor) -> None:
        """The first part has A(S) itself as its row 0."""
        problem, algorithm = part.problem, part.algorithm
        rows = slice(len(part) - len(left_out), None)
        if not self._parts:
            self._full = part.losses(problem.train, slice(0, 1))[0].double().cpu()
            self._held_out = part.losses(problem.test, slice(0, 1)).double().cpu()
            self._noise_floor = (self._full - self._whole).abs().mean().item()
            if (step := int(part.failed_step[0])) >= 0 or not math.isfinite(self._noise_floor):
                raise StabilityError(
                    f"the run that gives the noise floor {algorithm.failure(step if step >= 0 else algorithm.most_steps)}"
                )
        mine = dataclasses.replace(part, values=part.values[rows])
        losses = mine.own_losses(left_out).double().cpu()
        moved = (mine.losses(problem.test).double().cpu() - self._held_out).abs().mean(1)
        failed = part.failed_step[rows]
        failed = torch.where((failed < 0) & ~(torch.isfinite(losses) & torch.isfinite(moved)), algorithm.most_steps, failed)
        full = self._full[left_out]
        self._parts.append(dataclasses.replace(part, failed_step=torch.cat([part.failed_step[: rows.start], failed])))
        table = pd.DataFrame(
            {
                "index": left_out.numpy(),
                "loss_full": full.numpy(),
                "loss_left_out": losses.numpy(),
                "difference": (losses - full).numpy(),
                "moved": moved.numpy(),
                "failed_step": failed.numpy(),
            }
        )
        table.loc[table["failed_step"] >= 0, ["loss_left_out", "difference", "moved"]] = np.nan
        self.table = table if len(self._parts) == 1 else pd.concat([self.table, table], ignore_index=True)

    def mean(self, column: str = "difference", ratio: bool = False) -> Estimate:
        """Of the sizes in a column."""
        values = self.table[column].abs().to_numpy(dtype=np.float64)
        if np.isnan(values).all():
            return Estimate(math.nan, (math.nan, math.nan), self._confidence, 0, len(self._plan.order))
        return self._plan.mean(values, self._confidence, ratio)

    def estimate(self, prediction: Prediction | None, seconds: float) -> StabilityEstimate:
        """Everything, at the end."""
        estimator, alone, n = self._estimator, self._alone, len(self._plan.order)
        replicas = Replicas.joined(self._parts) if self._parts else alone
        table = self.table.copy()
        table["distance"] = replicas.distances()[1:].cpu().numpy()
        first = replicas.masks[0]
        table["mask_changes"] = [0 if mask is first else int((~first.contains(mask)).sum()) for mask in replicas.masks[1:]]
        bad = table["failed_step"] >= 0
        table.loc[bad, "distance"] = np.nan
        self.table = table
        if len(table) and bad.all():
            step = int(table["failed_step"].max())
            raise StabilityError(f"every one of {len(table)} left-out replicas {alone.algorithm.failure(step)}")
        pointwise = self.mean("difference")
        if isinstance(estimator, Approximate) and prediction is not None:
            pointwise = Estimate(prediction.mean, (math.nan, math.nan), self._confidence, 0, n)
        exact = pointwise.count == n
        found = diagnosed(table, self._plan, pointwise, prediction)
        return StabilityEstimate(
            pointwise=pointwise,
            hypothesis=self.mean("moved", ratio=True),
            distance=self.mean("distance", ratio=True).value,
            maximum=float(table["difference"].abs().max()),
            noise_floor=self._noise_floor,
            estimator="exact" if exact else "sampled" if isinstance(estimator, Exact) else estimator.name,
            status=self._status(pointwise, exact),
            n=n,
            retrainings=len(table),
            failed={int(i): int(step) for i, step in table.loc[bad, ["index", "failed_step"]].to_numpy()},
            tunable=first.count,
            total=replicas.problem.m,
            head=sum(tensor.numel() for tensor in replicas.problem.head(replicas.algorithm.seed).values()),
            seconds=seconds,
            steps_shared=replicas.steps_shared,
            per_example=table[list(_COLUMNS)],
            prediction=prediction,
            diagnostics=found,
            notes=(*self._plan.notes, *self._warnings(found, bool(bad.any()))),
            replicas=replicas,
        )

    def _warnings(self, found: Diagnostics, failed: bool) -> list[str]:
        """What makes the interval worth less than it looks."""
        notes = []
        if found.correlation < POOR and self._plan.sizes is not None and len(self.table) < len(self._plan.order):
            notes.append(
                f"prediction and retraining correlate {found.correlation:.2f} only: where examples that carry much are missed by "
                "the prediction, the interval holds the truth less often than it says"
            )
        if failed and self._estimator.tolerance is not None:
            notes.append(
                "a replica failed: what it would have shown is unknown, so that there is no upper end and no tolerance is met"
            )
        return notes

    def _status(self, pointwise: Estimate, exact: bool) -> str:
        tolerance = self._estimator.tolerance
        if isinstance(self._estimator, Approximate):
            return "approximate"
        if isinstance(self._estimator, Alone):
            return "not measured"
        if exact:
            return "exact"
        if tolerance is None:
            return "as asked"
        return "within tolerance" if pointwise.relative_half_width <= tolerance else "tolerance not met"


_FOUND = ("index", "loss_full", "loss_left_out", "difference", "moved", "failed_step")
_COLUMNS = ("index", "loss_full", "loss_left_out", "difference", "distance", "mask_changes", "failed_step")
