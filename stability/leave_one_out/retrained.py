"""What the retrainings gave: gathered batch by batch, and turned into an estimate."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
from torch import Tensor

from stability.errors import MeasurementError
from stability.leave_one_out.estimate import StabilityEstimate, diagnosed, trusted
from stability.leave_one_out.estimators import Design, Estimator, Status
from stability.leave_one_out.executor import Executor, Part
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import Estimate

__all__ = ["Retrained"]


class Retrained:
    """What came back of the retrainings so far.

    Args:
        executor: trains.
        whole: the losses of A(S) on S, (n,).
        design: the order in which units are left out.
        confidence: of the intervals.

    Attributes:
        table: a row for each unit left out.
    """

    def __init__(self, executor: Executor, whole: Tensor, design: Design, confidence: float) -> None:
        self._executor, self._whole, self._full = executor, whole, whole
        self._design, self._confidence = design, confidence
        self.table = pd.DataFrame({name: [] for name in _FOUND})
        self._noise_floor = math.nan
        self._seconds = 0.0

    @property
    def count(self) -> int:
        """How many units were left out."""
        return len(self.table)

    def add(self, part: Part, left_out: Tensor) -> None:
        """Take in what the trainings without ``left_out`` (a,) gave. With the first of them A(S) was trained once more."""
        self._seconds += part.seconds
        if part.whole is not None:
            self._full = part.whole
            measured = (self._full - self._whole).abs().mean().item()
            # Two runs may agree in every bit; the losses are then still rounded to the numbers that hold them.
            self._noise_floor = max(measured, self._executor.precision * self._whole.abs().mean().item())
        full = self._executor.units.losses(self._full, left_out)
        table = pd.DataFrame(
            {
                "index": left_out.numpy(),
                "loss_full": full.numpy(),
                "loss_left_out": part.own.numpy(),
                "difference": (part.own - full).numpy(),
                "moved": part.moved.numpy(),
                "failed_step": part.failed_step.numpy(),
            }
        )
        table.loc[table["failed_step"] >= 0, ["loss_left_out", "difference", "moved"]] = np.nan
        self.table = pd.concat([self.table, table], ignore_index=True) if self.count else table

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
        known = self.table[self.table["failed_step"] < 0]
        improved = self._executor.recalibrated(estimator, known["index"].tolist(), known["loss_left_out"].tolist())
        prediction = improved or prediction
        seconds = time.perf_counter() - began
        models = self._executor.models()
        table = self.table.assign(distance=models.distance, mask_changes=models.mask_changes, mask_overlap=models.mask_overlap)
        bad = table["failed_step"] >= 0
        table.loc[bad, ["distance", "mask_overlap"]] = np.nan
        self.table = table
        if len(table) and bad.all():
            raise MeasurementError(self._executor.all_failed(table))
        pointwise = estimator.conclude(self.mean("difference"), prediction)
        found = diagnosed(table, self._design, pointwise, prediction)
        prediction = prediction and prediction.scaled(pointwise.value)
        return StabilityEstimate(
            pointwise=pointwise,
            hypothesis=self.mean("moved", power=None),
            distance=self.mean("distance", power=None).value,
            mask_overlap=self.mean("mask_overlap", power=None).value,
            maximum=float(table["difference"].abs().max()),
            noise_floor=self._noise_floor,
            estimator=estimator.kind(pointwise),
            status=_status(estimator, self._told(pointwise, estimator, prediction), budget_spent),
            tolerance=estimator.tolerance,
            n=len(self._whole),
            units=self._executor.units,
            k=models.k,
            m=models.m,
            head=models.head,
            retrainings=len(table),
            failed={int(i): int(step) for i, step in table.loc[bad, ["index", "failed_step"]].to_numpy()},
            seconds=seconds,
            retraining_seconds=self._seconds,
            threads=self._executor.threads,
            steps_shared=models.steps_shared,
            per_example=table[list(_COLUMNS)],
            prediction=prediction,
            diagnostics=found,
            notes=(*self._executor.units.notes, *self._design.notes, *self._warnings(estimator, bool(bad.any())), *models.notes),
            replicas=models.replicas,
            reason=reason,
            budget_spent=budget_spent,
            loop=models.loop,
        )

    def _warnings(self, estimator: Estimator, failed: bool) -> list[str]:
        """What makes the interval worth less than it looks."""
        if not failed or estimator.tolerance is None:
            return []
        return ["a replica failed: what it would have shown is unknown, so that there is no upper end and no tolerance is met"]


def _status(estimator: Estimator, found: Estimate, budget_spent: bool) -> Status:
    status = estimator.status(found)
    return Status.BUDGET_SPENT if budget_spent and status == Status.AS_ASKED else status


_FOUND = ("index", "loss_full", "loss_left_out", "difference", "moved", "failed_step")
_COLUMNS = ("index", "loss_full", "loss_left_out", "difference", "distance", "mask_changes", "failed_step")
