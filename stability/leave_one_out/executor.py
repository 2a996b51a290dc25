"""What trains: an :class:`Executor` trains A(S) and the models without each unit, and gives numbers back.

:mod:`.procedure` asks it and estimates from what comes back. It never sees a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from stability.leave_one_out.estimate import Subject
from stability.leave_one_out.estimators import Choice, Estimator
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.units import Units
from stability.training.progress import SILENT, Stages
from stability.training.replicas import Replicas

__all__ = ["Executor", "Models", "Part"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """What the trainings without some units gave.

    Attributes:
        own: (a,) the loss that is looked at of each unit, under the model that was trained without it; float64 on the CPU.
        moved: (a,) the mean over the held-out examples of how far their losses moved from those of A(S); NaN where there are none.
        failed_step: (a,) the step at which a training failed; −1 where it did not.
        whole: (n,) the losses on S of another A(S) that was trained along with them; None where none was.
        seconds: wall-clock time of the trainings, without that of the losses; of workers that are busy at once, their share of it.
    """

    own: Tensor
    moved: Tensor
    failed_step: Tensor
    whole: Tensor | None
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Models:
    """What is known of the trained models at the end. The names are those of :class:`.estimate.StabilityEstimate`.

    Attributes:
        distance: (a,) ‖A(Sⁱ) − A(S)‖₂ of every training without a unit, in their order; NaN where it is unknown.
        mask_changes: (a,) coordinates of A(S)'s mask that that of Sⁱ lacks; NaN where there are no masks.
        mask_overlap: (a,) how far both masks overlap (:meth:`stability.Mask.overlap`); NaN where there are no masks.
        replicas: the trained models themselves, A(S) first, where they are replicas.
        loop: what was trained, where they are not.
        k: how many coordinates of the pretrained model were selected.
        m: how many coordinates the pretrained model has.
        head: coordinates of the new head.
        steps_shared: steps of replicas that were not computed.
        notes: what else should be known, a sentence each.
    """

    distance: Sequence[float]
    mask_changes: Sequence[float]
    mask_overlap: Sequence[float]
    replicas: Replicas | None = None
    loop: Subject | None = None
    k: int | None = None
    m: int | None = None
    head: int | None = None
    steps_shared: int = 0
    notes: tuple[str, ...] = ()


class Executor(ABC):
    """One measurement's trainings: of A(S) first, then without units, a few at a time.

    Attributes:
        units: what is left out.
        seed: of A, from which the draws of an estimator come as well.
        precision: ε of the numbers that hold the losses.
        told: is told what is being done.
    """

    units: Units
    seed: int
    precision: float
    told: Stages = SILENT

    @property
    def threads(self) -> int:
        """How many threads an operation of a training takes."""
        return torch.get_num_threads()

    @abstractmethod
    def choice(self, estimator: Estimator) -> Choice:
        """Which estimator measures: ``estimator`` itself, unless it is one that chooses."""

    @abstractmethod
    def observe(self, estimator: Estimator | None) -> None:
        """Prepare what ``estimator`` predicts from, before A(S) is trained; None: nothing will be predicted after all."""

    @abstractmethod
    def train_whole(self) -> Tensor:
        """Train A(S) alone.

        Returns:
            Its losses on S, float64 (n,) on the CPU.

        Raises:
            MeasurementError: the training failed, or a loss is not finite.
        """

    @abstractmethod
    def predict(self) -> Prediction | None:
        """What leaving out each unit will do, from A(S) alone; None where nothing predicts."""

    @abstractmethod
    def retrain(self, left_out: Tensor, along: bool) -> Part:
        """Train without each of ``left_out`` units.

        Args:
            left_out: their numbers, (a,).
            along: train A(S) once more beside them, so that rounding shows.

        Raises:
            MeasurementError: that other A(S) failed.
        """

    @abstractmethod
    def models(self) -> Models:
        """What is known of the models, when no more is trained."""

    def recalibrated(self, estimator: Estimator, left_out: Sequence[int], losses: Sequence[float]) -> Prediction | None:
        """The prediction, improved by the ``losses`` of the units that were ``left_out``; None: it stays as it was."""
        return None

    @abstractmethod
    def all_failed(self, table: pd.DataFrame) -> str:
        """What to say where every training without a unit failed; ``table`` has the columns ``index`` and ``failed_step``."""
