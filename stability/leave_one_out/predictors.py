"""What one trained model says of all n left-out ones: by linearised replicas, or by one Newton step.

A predictor observes the training of A(S) and predicts from what it saw. It never trains.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stability.checks import check_flags, check_positive, check_whole
from stability.errors import MeasurementError, UsageError
from stability.leave_one_out.linearised import Trajectory, fitting, losses_left_out, trajectory_for
from stability.leave_one_out.one_step import OneStepModel
from stability.leave_one_out.statistics import Numbers
from stability.leave_one_out.work import Work
from stability.machine import release
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.objective import Observer
from stability.training.progress import SILENT, Stages
from stability.training.replicas import Replicas

__all__ = ["DEFAULTS", "Linearised", "Masks", "Observation", "OneStep", "Prediction", "Predictor", "default_predictor"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one trained model says of all n left-out ones.

    Attributes:
        table: a row for each i: index; loss_full, ℓ(A(S), z_i); loss_left_out, the predicted ℓ(A(Sⁱ), z_i); difference, the
            second less the first.
        by: what predicted it, in words.
        seconds: wall-clock time, without the training of A(S) and the selections of masks.
        nonlinearity: how much the Jacobians of the network changed from one checkpoint to the next, between 0 and 1. It is the
            mean over the checkpoints t of Σ_i ‖(J_t − J_{t−1}) δ_i‖ / Σ_i (‖J_t δ_i‖ + ‖J_{t−1} δ_i‖), where J δ_i is what the
            move δ_i of the replica without z_i does to the logits of z_i. A model that is linear in its parameters has 0. NaN:
            the predictor has no two checkpoints.
        relative: whether the differences are known but for one common factor.
    """

    table: pd.DataFrame
    by: str
    seconds: float
    nonlinearity: float = math.nan
    relative: bool = field(default=False, kw_only=True)

    @property
    def sizes(self) -> Numbers:
        """The predicted |Δℓ_i| of each example, (n,)."""
        return np.asarray(self.table["difference"].abs(), dtype=np.float64)

    @property
    def mean(self) -> float:
        """The mean of the predicted |Δℓ_i| over those that are finite; NaN where none is."""
        finite = self.sizes[np.isfinite(self.sizes)]
        return float(finite.mean()) if len(finite) else float("nan")

    def scaled(self, mean: float) -> Prediction:
        """The same prediction; where only ratios are known, with that factor which gives the sizes this ``mean``."""
        factor = mean / self.mean if self.relative and self.mean > 0 else math.nan
        if not math.isfinite(factor):
            return self
        difference = self.table["difference"] * factor
        table = self.table.assign(loss_left_out=self.table["loss_full"] + difference, difference=difference)
        return replace(self, table=table, by=f"{self.by}, scaled to the measured mean", relative=False)


class Masks(Protocol):
    """The masks of S and of the Sⁱ, selected when they are asked for."""

    def of(self, left_out: Sequence[int]) -> list[Mask]:
        """S's mask and then that of each Sⁱ, i in ``left_out``; empty where masks move while A trains."""


class Observation(ABC):
    """One prediction under way: what observes the training of A(S), and what then predicts from it.

    Attributes:
        observer: is told of every step of that training; None where the trained model alone is enough.
        told: is told what the prediction is doing.
        counts: whether ``predict`` counts what it does, and so begins the stage itself.
    """

    observer: Observer | None = None
    told: Stages = SILENT
    counts: bool = False

    @abstractmethod
    def predict(self, real: Replicas) -> Prediction:
        """What leaving out each of the n examples does to its loss, from A(S) alone. Nothing is trained here. It is called once."""


class Predictor(ABC):
    """Predicts all n left-out losses from the one training of A(S).

    Subclasses are frozen dataclasses, whose ``settings`` are part of the identity of a result.
    """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """As plain values."""

    @abstractmethod
    def observe(self, problem: Problem, algorithm: Algorithm, masks: Masks) -> Observation:
        """Prepare a prediction, before A(S) is trained.

        Args:
            problem: the one that will be trained.
            algorithm: A.
            masks: of S and of each Sⁱ.

        Raises:
            UsageError: the predictor does not suit the algorithm.
        """

    def operations(self, work: Work) -> float:
        """How many floating-point operations a prediction of all n takes; 0 where nothing is known of them.

        Args:
            work: what it is a prediction of.
        """
        return 0.0

    def check_calibration(self) -> None:
        """Check that a few retrainings can calibrate the predictor.

        Raises:
            UsageError: they cannot.
        """
        raise UsageError(
            f"a calibration is of OneStep's damping, and {type(self).__name__} has none: use OneStep(), or no calibration"
        )

    def calibrated(self, real: Replicas, left_out: Sequence[int], losses: Sequence[float]) -> Prediction:
        """The prediction from A(S), calibrated on the ``losses`` of the ``left_out`` examples in retrained models."""
        raise NotImplementedError


def default_predictor(algorithm: Algorithm) -> Predictor:
    """The predictor that suits an algorithm: linearised replicas for runs of steps, one Newton step for a minimiser.

    Args:
        algorithm: A.

    Example:
        >>> from stability import FineTuning, selectors
        >>> default_predictor(FineTuning(selectors.BitFit()))
        Linearised(checkpoints=12, memory_budget=2147483648, reselect=True)
    """
    return DEFAULTS["FineTuning" if algorithm.stepwise else "Minimisation"]


@dataclass(frozen=True)
class Linearised(Predictor):
    """Predict by linearised replicas (:mod:`stability.leave_one_out.linearised`): algorithms of steps, every selector.

    Attributes:
        checkpoints: at how many points of the real run Jacobians are taken. Each costs n · C backward passes, which small models
            hardly feel. For a large model three cost about as much as a retraining, and predict well where training is calm.
        memory_budget: bytes that Jacobians and replicas may take together. Where the Jacobians need more, part of the coordinates
            is drawn at random. The budget is a setting, and not what is free, so that it changes no result unseen. On a CPU,
            where the replicas do not fit at once, the Jacobians are kept in a temporary file if the disk has room. It takes at
            most ``checkpoints`` times half of the budget, in the folder that ``TMPDIR`` names.
        reselect: whether each linearised replica has the mask selected on its own Sⁱ, where A selects on the data. False: S's
            mask serves them all, which spares a large model n selections and predicts a little worse. What is retrained
            selects its own mask all the same.

    Raises:
        UsageError: a number below 1.

    Example:
        >>> Linearised(checkpoints=3).settings()
        {'name': 'linearised', 'checkpoints': 3, 'memory': 2147483648}
    """

    checkpoints: int = 12
    memory_budget: int = 2 << 30
    reselect: bool = True

    def __post_init__(self) -> None:
        check_whole(1, checkpoints=self.checkpoints, memory_budget=self.memory_budget)
        check_flags(reselect=self.reselect)

    def settings(self) -> dict[str, Any]:
        """With the names under which results are stored; ``reselect`` is named where it is off."""
        own = asdict(self)
        own["memory"] = own.pop("memory_budget")
        return {"name": "linearised", **{name: value for name, value in own.items() if name != "reselect" or not value}}

    def operations(self, work: Work) -> float:
        """Jacobians at the checkpoints, and for each replica and step two products of k-vectors with the Jacobian of a batch."""
        moved = min(work.tunable, fitting(self.memory_budget, work.n, work.outputs))
        return min(self.checkpoints, work.steps) * work.jacobian + 4 * work.n * work.steps * work.batch * work.outputs * moved

    def observe(self, problem: Problem, algorithm: Algorithm, masks: Masks) -> Observation:
        if not algorithm.stepwise:
            raise UsageError(
                f"Linearised follows the steps of FineTuning, and {type(algorithm).__name__} has none that it could follow: "
                "use OneStep"
            )
        own = masks.of(range(problem.n) if self.reselect else ())
        observer = trajectory_for(problem, algorithm, own, checkpoints=self.checkpoints, memory_budget=self.memory_budget)
        return _Tangent(observer, own, self.memory_budget)


class _Tangent(Observation):
    """Predicts by linearised replicas along what ``observer`` was told."""

    counts = True

    def __init__(self, observer: Trajectory, masks: Sequence[Mask], memory_budget: int) -> None:
        self.observer: Trajectory = observer
        self._masks, self._memory_budget = masks, memory_budget

    def predict(self, real: Replicas) -> Prediction:
        began = time.perf_counter()
        part, kept = self.observer.part, int(real.kept_step[0])
        masks = self._masks or real.masks
        losses, nonlinearity = losses_left_out(real, self.observer, masks, self._memory_budget, told=self.told)
        self.observer.forget()
        release(real.values.device)
        used = sum(step < kept for step in self.observer.steps)  # of a run that stopped early
        drawn = "" if part is None else f", {len(part.indices)} of {real.tunable.count} coordinates"
        return _prediction(real, losses, f"linearised replicas, {used} checkpoints{drawn}", began, nonlinearity=nonlinearity)


@dataclass(frozen=True)
class OneStep(Predictor):
    """Predict by one Newton step (:mod:`stability.leave_one_out.one_step`): for minimisers, and roughly for early stops.

    Attributes:
        damping: λ; by default the algorithm's ridge, and where it has none 1/(learning rate · steps). That is right to within
            orders of magnitude only: calibrate it (:class:`stability.estimators.Approximate`).
        memory_budget: bytes that Jacobians may take at once.

    Raises:
        UsageError: a number that is not positive.

    Example:
        >>> OneStep(damping=0.1).settings()
        {'name': 'one step', 'damping': 0.1, 'memory': 2147483648}
    """

    damping: float | None = None
    memory_budget: int = 2 << 30

    def __post_init__(self) -> None:
        check_whole(1, memory_budget=self.memory_budget)
        if self.damping is not None:
            check_positive(damping=self.damping)

    def settings(self) -> dict[str, Any]:
        """With the names under which results are stored."""
        own = asdict(self)
        own["memory"] = own.pop("memory_budget")
        return {"name": "one step", **own}

    def operations(self, work: Work) -> float:
        """One Jacobian, and its product with itself."""
        return work.jacobian + 2 * (work.n * work.outputs) ** 2 * work.tunable

    def observe(self, problem: Problem, algorithm: Algorithm, masks: Masks) -> Observation:
        return _NewtonStep(self)

    def check_calibration(self) -> None:
        if self.damping is not None:
            raise UsageError(f"damping = {self.damping} and a calibration of it: leave one of them out")

    def calibrated(self, real: Replicas, left_out: Sequence[int], losses: Sequence[float]) -> Prediction:
        """From A(S), with the damping of least misfit on ``losses``; with the algorithm's own ridge where it has one."""
        if real.algorithm.ridge_for(real.masks[0]):
            return self.predict(real)
        return self._from(real, lambda model: model.calibrated(left_out, losses))

    def predict(self, real: Replicas) -> Prediction:
        """What one Newton step from A(S) predicts."""
        known = real.algorithm.damping_for(real.masks[0]) if self.damping is None else self.damping
        return self._from(real, lambda _: known)

    def _from(self, real: Replicas, damping: Callable[[OneStepModel], float]) -> Prediction:
        began = time.perf_counter()
        tunable = real.algorithm.tunable_mask(real.problem, real.masks[0])
        try:
            model = OneStepModel(
                real.problem, real.parameters(0), tunable, memory_budget=self.memory_budget, seed=real.algorithm.seed
            )
        except MeasurementError as error:  # a prediction of no use, and not an end
            return _prediction(real, torch.full((real.problem.n,), torch.nan, dtype=torch.float64), f"nothing: {error}", began)
        ridge = damping(model)
        return _prediction(real, model.left_out(ridge), f"one Newton step, {model.form}, λ = {ridge:.3g}", began)


class _NewtonStep(Observation):
    """Predicts from the trained model alone."""

    def __init__(self, predictor: OneStep) -> None:
        self._predictor = predictor

    def predict(self, real: Replicas) -> Prediction:
        return self._predictor.predict(real)


DEFAULTS: Mapping[str, Predictor] = {"FineTuning": Linearised(), "Minimisation": OneStep()}
"""The default of runs of steps and that of minimisers, by the names under which results are stored for them."""


def _prediction(real: Replicas, losses: Tensor, by: str, began: float, *, nonlinearity: float = math.nan) -> Prediction:
    full = real.losses(real.problem.train)[0].double().cpu()
    columns = {"index": range(len(full)), "loss_full": full, "loss_left_out": losses, "difference": losses - full}
    return Prediction(pd.DataFrame(columns), by, time.perf_counter() - began, nonlinearity)
