"""What is left out of S, unit by unit: which weights its examples then have, and whose losses are looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["SingleExamples", "Units"]


class Units(ABC):
    """The u units of which each is left out once. They are numbered from 0 to u − 1.

    A unit is a row of example weights for the training, and the examples whose losses are compared. Whoever trains is told the
    weights alone (:class:`.executor.Executor`), and whoever estimates sees one number a unit.

    Attributes:
        plural: what several units are called, such as "examples".
    """

    plural: ClassVar[str]

    @property
    @abstractmethod
    def count(self) -> int:
        """How many units there are, u."""

    @abstractmethod
    def weights(self, chosen: Tensor) -> Tensor:
        """The example weights of the trainings without each of ``chosen`` units, (a, n)."""

    @abstractmethod
    def looked_at(self, unit: int) -> Sequence[int]:
        """The examples whose mean loss is compared when this unit is left out."""

    def losses(self, each: Tensor, chosen: Tensor) -> Tensor:
        """The losses of ``chosen`` units under one model, (a,), from the losses of all n examples under it, (n,)."""
        return torch.stack([each[list(self.looked_at(unit))].mean() for unit in chosen.tolist()])


@dataclass(frozen=True)
class SingleExamples(Units):
    """Each of n examples is a unit: it has weight 0, and its own loss is looked at.

    Attributes:
        n: size of S.

    Example:
        >>> SingleExamples(3).weights(torch.tensor([2, 0]))
        tensor([[1., 1., 0.],
                [0., 1., 1.]])
    """

    n: int

    plural: ClassVar[str] = "examples"

    @property
    def count(self) -> int:
        return self.n

    def weights(self, chosen: Tensor) -> Tensor:
        weights = torch.ones(len(chosen), self.n)
        weights[torch.arange(len(chosen)), chosen] = 0
        return weights

    def looked_at(self, unit: int) -> Sequence[int]:
        return (unit,)

    def losses(self, each: Tensor, chosen: Tensor) -> Tensor:
        return each[chosen]
