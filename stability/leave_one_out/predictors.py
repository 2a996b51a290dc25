"""What one trained model foretells of all n left-out ones: by linearised replicas, or by one Newton step."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stability.checks import check_flags, check_positive, check_whole
from stability.errors import StabilityError, UsageError
from stability.leave_one_out.linearised import losses_left_out, run_recorded
from stability.leave_one_out.one_step import OneStepModel
from stability.leave_one_out.statistics import Numbers
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.training.algorithm import FineTuning, Minimisation
from stability.training.descent import Progress
from stability.training.replicas import Replicas, train

__all__ = ["Linearised", "OneStep", "Prediction", "Predictor"]

Masks = Callable[[Sequence[int]], list[Mask]]
"""From some i to the mask of S and then that of each Sⁱ; to none where masks move while A trains."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one trained model foretells of all n left-out ones.

    Attributes:
        table: a row for each i: index, loss_full, loss_left_out, difference (left out − full).
        by: what predicted it, in words.
        seconds: wall-clock time, without the training of A(S) and the selections of masks.
    """

    table: pd.DataFrame
    by: str
    seconds: float

    @property
    def sizes(self) -> Numbers:
        """|Δ̂ℓ_i|, (n,)."""
        return np.asarray(self.table["difference"].abs(), dtype=np.float64)

    @property
    def mean(self) -> float:
        """Of |Δ̂ℓ_i| over those that are finite; NaN where none is."""
        finite = self.sizes[np.isfinite(self.sizes)]
        return float(finite.mean()) if len(finite) else float("nan")


class Predictor(ABC):
    """Trains A(S) and foretells from it; frozen dataclasses, whose ``settings`` are part of the identity of a result."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """As plain values."""

    @abstractmethod
    def predict(
        self, problem: Problem, algorithm: FineTuning | Minimisation, masks: Masks, progress: Progress | None = None
    ) -> tuple[Replicas, Prediction | None]:
        """A(S), and what it foretells; None where A(S) itself failed.

        Args:
            problem: the one that is trained.
            algorithm: A.
            masks: gives S's mask and those of some Sⁱ; none where they move.
            progress: as in :func:`stability.training.replicas.train`.
        """


@dataclass(frozen=True)
class Linearised(Predictor):
    """Predict by linearised replicas (:mod:`stability.leave_one_out.linearised`): FineTuning, every selector.

    Attributes:
        checkpoints: of the real run, at which Jacobians are taken: n·C backward passes each, which small models hardly feel.
            Of a large model three cost about as much as a retraining, and foretell well where training is calm.
        memory: bytes that Jacobians and replicas may take together. Where the Jacobians need more, part of the coordinates
            is drawn at random: a setting, and not what is free, so that it changes no result unseen.
        reselect: whether each linearised replica has the mask selected on its own Sⁱ, where A selects anew. False: S's mask
            serves them all, which spares n selections from a large model and foretells a little worse; what is retrained
            selects anew all the same.
    """

    checkpoints: int = 12
    memory: int = 2 << 30
    reselect: bool = True

    def __post_init__(self) -> None:
        check_whole(1, checkpoints=self.checkpoints, memory=self.memory)
        check_flags(reselect=self.reselect)

    def settings(self) -> dict[str, Any]:
        """``reselect`` is named where it is off."""
        own = {"name": "linearised", **dataclasses.asdict(self)}
        return {name: value for name, value in own.items() if name != "reselect" or not value}

    def predict(
        self, problem: Problem, algorithm: FineTuning | Minimisation, masks: Masks, progress: Progress | None = None
    ) -> tuple[Replicas, Prediction | None]:
        """As :meth:`Predictor.predict`.

        Raises:
            UsageError: a minimisation, which has no steps to linearise.
        """
        if not isinstance(algorithm, FineTuning):
            raise UsageError("Linearised follows the steps of FineTuning, and a minimisation has none: use OneStep")
        own = masks(range(problem.n) if self.reselect else ())
        hold = None
        for mask in {id(mask): mask for mask in own}.values():
            hold = mask if hold is None else hold.union(mask)
        mine = own[0] if own else None
        real, trajectory = run_recorded(problem, algorithm, mine, hold, self.checkpoints, self.memory, progress)
        if real.failed_step[0] >= 0:
            return real, None
        began = time.perf_counter()
        losses = losses_left_out(real, trajectory, own or real.masks, self.memory)
        some, kept = trajectory.coordinates, int(real.kept_step[0])
        used = sum(step < kept for step in trajectory.steps)  # of a run that stopped early
        part = "" if some is None else f", {len(some.indices)} of {real.tunable.count} coordinates"
        return real, _prediction(real, losses, f"linearised replicas, {used} checkpoints{part}", began)


@dataclass(frozen=True)
class OneStep(Predictor):
    """Predict by one Newton step (:mod:`stability.leave_one_out.one_step`): for minimisers, and roughly for early stops.

    Attributes:
        damping: λ; by default the algorithm's ridge, and where it has none 1/(learning rate · steps), which is right to
            within orders of magnitude only: calibrate it (:class:`Approximate`).
        memory: bytes that Jacobians may take at once.
    """

    damping: float | None = None
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        check_whole(1, memory=self.memory)
        if self.damping is not None:
            check_positive(damping=self.damping)

    def settings(self) -> dict[str, Any]:
        return {"name": "one step", **dataclasses.asdict(self)}

    def ridge(self, algorithm: FineTuning | Minimisation, mask: Mask) -> float:
        """λ for this algorithm."""
        if self.damping is not None:
            return self.damping
        if ridge := algorithm.ridge_for(mask):
            return ridge
        assert isinstance(algorithm, FineTuning)  # a minimisation always has a ridge
        return 1 / (algorithm.learning_rate * algorithm.steps)

    def predict(
        self, problem: Problem, algorithm: FineTuning | Minimisation, masks: Masks, progress: Progress | None = None
    ) -> tuple[Replicas, Prediction | None]:
        real = train(problem, algorithm, masks=masks(()) or None, replica_batch=1, progress=progress)
        return real, None if real.failed_step[0] >= 0 else self.foretell(real)

    def foretell(self, real: Replicas, left_out: Sequence[int] = (), losses: Sequence[float] = ()) -> Prediction:
        """From A(S), with the damping calibrated on ``left_out`` examples' ``losses`` without them, where there are any and the
        algorithm has no ridge.
        """
        began = time.perf_counter()
        tunable = real.algorithm.tunable(real.problem, real.masks[0])
        known = self.ridge(real.algorithm, real.masks[0])
        try:
            model = OneStepModel(real.problem, real.parameters(0), tunable, self.memory, real.algorithm.seed)
        except StabilityError as error:  # a prediction of no use, and not an end
            return _prediction(real, torch.full((real.problem.n,), torch.nan, dtype=torch.float64), f"nothing: {error}", began)
        free = len(left_out) > 0 and not real.algorithm.ridge_for(real.masks[0])
        damping = model.calibrated(left_out, losses) if free else known
        return _prediction(real, model.left_out(damping), f"one Newton step, {model.form}, λ = {damping:.3g}", began)


def _prediction(real: Replicas, losses: Tensor, by: str, began: float) -> Prediction:
    full = real.losses(real.problem.train)[0].double().cpu()
    columns = {"index": range(len(full)), "loss_full": full, "loss_left_out": losses, "difference": losses - full}
    return Prediction(pd.DataFrame(columns), by, time.perf_counter() - began)
