"""What the retrainings gave: gathered batch by batch, and turned into an estimate."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stability.errors import MeasurementError
from stability.leave_one_out.estimate import StabilityEstimate, diagnosed, trusted
from stability.leave_one_out.estimators import Design, Estimator, Status
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import Estimate
from stability.problems.problem import Problem
from stability.training.replicas import Replicas

__all__ = ["Retrained", "losses_of"]


def losses_of(alone: Replicas) -> Tensor:
    """The losses of A(S) on S, float64 (n,) on the CPU.

    Raises:
        MeasurementError: its training failed, or a loss is not finite.
    """
    losses = alone.losses(alone.problem.train)[0].double().cpu()
    step = int(alone.failed_step[0])
    if step >= 0 or not bool(torch.isfinite(losses).all()):
        raise MeasurementError(f"A(S) {alone.algorithm.failure(step if step >= 0 else alone.algorithm.max_steps)}")
    return losses


class Retrained:
    """What came back of the retrainings so far.

    Args:
        alone: A(S), trained alone.
        whole: its losses on S, (n,).
        design: the order in which examples are left out.
        confidence: of the intervals.

    Attributes:
        table: a row for each example left out.
    """

    def __init__(self, alone: Replicas, whole: Tensor, design: Design, confidence: float) -> None:
        self._whole, self._alone, self._design, self._confidence = whole, alone, design, confidence
        self._parts: list[Replicas] = []
        self._held_out = torch.empty(0)  # losses on the test split under A(S)
        self.table = pd.DataFrame({name: [] for name in _FOUND})
        self._noise_floor = math.nan
        self._seconds = 0.0

    @property
    def count(self) -> int:
        """How many examples were left out."""
        return len(self.table)

    def add(self, part: Replicas, left_out: Tensor, seconds: float) -> None:
        """Take in the replicas of ``part``, which were trained without ``left_out`` (a,), one each, in so many ``seconds``.

        The first part has A(S) itself as its row 0, before them.

        Raises:
            MeasurementError: that run, which gives the noise floor, failed.
        """
        problem, algorithm = part.problem, part.algorithm
        self._seconds += seconds
        rows = slice(len(part) - len(left_out), None)
        if not self._parts:
            self._full = part.losses(problem.train, slice(0, 1))[0].double().cpu()
            self._held_out = part.losses(problem.test, slice(0, 1)).double().cpu()
            measured = (self._full - self._whole).abs().mean().item()
            # Two runs may agree in every bit; the losses are then still rounded to the numbers that hold them.
            self._noise_floor = max(measured, torch.finfo(part.values.dtype).eps * self._whole.abs().mean().item())
            if (step := int(part.failed_step[0])) >= 0 or not math.isfinite(self._noise_floor):
                raise MeasurementError(
                    f"the run that gives the noise floor {algorithm.failure(step if step >= 0 else algorithm.max_steps)}"
                )
        mine = dataclasses.replace(part, values=part.values[rows])
        losses = mine.own_losses(left_out).double().cpu()
        moved = (mine.losses(problem.test).double().cpu() - self._held_out).abs().mean(1)
        failed = part.failed_step[rows]
        failed = torch.where((failed < 0) & ~(torch.isfinite(losses) & torch.isfinite(moved)), algorithm.max_steps, failed)
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

    def mean(self, column: str = "difference", power: float | None = 1) -> Estimate:
        """The mean over all n of the sizes in a column of the table; ``power`` as for :meth:`.estimators.Design.mean`."""
        values = self.table[column].abs().to_numpy(dtype=np.float64)
        if np.isnan(values).all():
            unknown, n = (math.nan, math.nan), len(self._design.order)
            return Estimate(math.nan, unknown, confidence=self._confidence, count=0, population=n)
        return self._design.mean(values, self._confidence, power)

    def so_far(self, estimator: Estimator, prediction: Prediction | None) -> Estimate | None:
        """What the estimator is told; None before the first.

        Args:
            estimator: asks.
            prediction: of all n, where one was made.
        """
        return self._told(self.mean(), estimator, prediction) if self.count else None

    def _told(self, found: Estimate, estimator: Estimator, prediction: Prediction | None) -> Estimate:
        if estimator.tolerance is None:
            return found
        return trusted(found, estimator, diagnosed(self.table, self._design, found, prediction), self._design)

    def estimate(
        self,
        estimator: Estimator,
        prediction: Prediction | None,
        began: float,
        *,
        reason: str = "",
        budget_spent: bool = False,
    ) -> StabilityEstimate:
        """Everything, at the end.

        Args:
            estimator: concludes.
            prediction: of all n, where one was made.
            began: the time at which the measurement began, by ``time.perf_counter()``.
            reason: why the estimator was chosen; empty where it was asked for.
            budget_spent: whether a budget of seconds ended it.

        Raises:
            MeasurementError: every replica failed.
        """
        alone, n = self._alone, len(self._design.order)
        known = self.table[self.table["failed_step"] < 0]
        prediction = estimator.recalibrated(alone, known["index"].tolist(), known["loss_left_out"].tolist()) or prediction
        seconds = time.perf_counter() - began
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
            raise MeasurementError(f"every one of {len(table)} left-out replicas {alone.algorithm.failure(step)}")
        pointwise = estimator.conclude(self.mean("difference"), prediction)
        found = diagnosed(table, self._design, pointwise, prediction)
        return StabilityEstimate(
            pointwise=pointwise,
            hypothesis=self.mean("moved", power=None),
            distance=self.mean("distance", power=None).value,
            maximum=float(table["difference"].abs().max()),
            noise_floor=self._noise_floor,
            estimator=estimator.kind(pointwise),
            status=_status(estimator, self._told(pointwise, estimator, prediction), budget_spent),
            tolerance=estimator.tolerance,
            n=n,
            k=first.count,
            m=replicas.problem.m,
            head=sum(tensor.numel() for tensor in replicas.problem.head(replicas.algorithm.seed).values()),
            retrainings=len(table),
            failed={int(i): int(step) for i, step in table.loc[bad, ["index", "failed_step"]].to_numpy()},
            seconds=seconds,
            retraining_seconds=self._seconds,
            threads=torch.get_num_threads(),
            steps_shared=replicas.steps_shared,
            per_example=table[list(_COLUMNS)],
            prediction=prediction,
            diagnostics=found,
            notes=(*self._design.notes, *self._warnings(estimator, bool(bad.any())), *_execution(replicas.problem)),
            replicas=replicas,
            reason=reason,
            budget_spent=budget_spent,
        )

    def _warnings(self, estimator: Estimator, failed: bool) -> list[str]:
        """What makes the interval worth less than it looks."""
        if not failed or estimator.tolerance is None:
            return []
        return ["a replica failed: what it would have shown is unknown, so that there is no upper end and no tolerance is met"]


def _execution(problem: Problem) -> list[str]:
    """How the replicas were computed, where the problem's own notes do not say it already."""
    return [note for note in problem.execution_notes if note not in problem.notes]


def _status(estimator: Estimator, found: Estimate, budget_spent: bool) -> Status:
    status = estimator.status(found)
    return Status.BUDGET_SPENT if budget_spent and status == Status.AS_ASKED else status


_FOUND = ("index", "loss_full", "loss_left_out", "difference", "moved", "failed_step")
_COLUMNS = ("index", "loss_full", "loss_left_out", "difference", "distance", "mask_changes", "failed_step")
