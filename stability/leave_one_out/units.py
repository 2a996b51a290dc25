"""What is changed in S, unit by unit: which weights its examples then have, and whose losses are looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stability.masks import Mask
from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.replicas import Replicas
from stability.training.substitutes import Substitutes

__all__ = ["LEAVING_ONE_OUT", "OneExampleEach", "SingleExamples", "Units", "Words"]


@dataclass(frozen=True, kw_only=True)
class Words:
    """What is done to the training set, in words.

    Attributes:
        perturbation: the name of the perturbation.
        doing: what is done to one unit.
        its: the loss that is looked at.
        plural: what several units are called.
        singular: what one unit is called.
        passive: what units are when it is done to them.
        each: what a training has seen, with ``{}`` for the number of units.
    """

    perturbation: str
    doing: str
    its: str
    plural: str
    passive: str = "left out"
    singular: str = "example"
    each: str = "without each of {}"

    def each_of(self, count: str) -> str:
        """What was trained.

        Args:
            count: how many units, such as "5 of 24".

        Example:
            >>> LEAVING_ONE_OUT.each_of("5 of 24")
            'without each of 5 of 24 examples'
        """
        return f"{self.each.format(count)} {self.plural}"

    def retraining(self, count: int, *, first: bool) -> str:
        """What is being trained, for a report of progress.

        Args:
            count: how many units.
            first: whether none was trained before.

        Example:
            >>> LEAVING_ONE_OUT.retraining(4, first=False)
            'retraining without each of 4 more examples'
        """
        return f"retraining {self.each_of(f'{count}' if first else f'{count} more')}"


LEAVING_ONE_OUT = Words(perturbation="leave-one-out", doing="leaving one training example out", its="its loss", plural="examples")
"""Of :class:`SingleExamples`."""


class Units(ABC):
    """The u units of which each is left out once. They are numbered from 0 to u − 1.

    A unit is a row of example weights for the training, and the examples whose losses are compared. Whoever trains is told the
    weights alone (:class:`.executor.Executor`), and whoever estimates sees one number a unit.

    Attributes:
        words: what is done to them.
        names: of the units, where they are groups or parts; None: they are about single examples.
        notes: what should be known of them, a sentence each.
        fraction: of S that each is, where that defines them.
        of_validation: whether examples of the validation split are trained on.
    """

    words: Words
    names: Sequence[str] | None
    notes: Sequence[str] = ()
    fraction: float | None = None
    of_validation: bool = False

    @property
    @abstractmethod
    def count(self) -> int:
        """How many units there are, u."""

    @abstractmethod
    def weights(self, chosen: Tensor) -> Tensor:
        """The example weights of the trainings without each of ``chosen`` units, (a, n)."""

    def substitutes(self, chosen: Tensor) -> Substitutes | None:
        """What takes the place of examples in the trainings without ``chosen`` units; their weights are the last columns."""
        return None

    def changed(self, problem: Problem, unit: int) -> Problem:
        """The problem with the training set of one training, which a selector sees that uses data."""
        kept = self.weights(torch.tensor([unit]))[0] > 0
        return problem.with_training(problem.train.take(kept))

    @abstractmethod
    def looked_at(self, unit: int) -> Sequence[int]:
        """The examples whose mean loss is compared when this unit is left out."""

    def losses(self, each: Tensor, chosen: Tensor) -> Tensor:
        """The losses of ``chosen`` units under one model, (a,), from the losses of all n examples under it, (n,)."""
        return torch.stack([each[list(self.looked_at(unit))].mean() for unit in chosen.tolist()])

    def own_losses(self, replicas: Replicas, chosen: Tensor) -> Tensor:
        """The loss of each of ``chosen`` units under the replica that was trained without it, (a,)."""
        found = []
        for row, unit in enumerate(chosen.tolist()):
            examples = replicas.problem.train.take(torch.tensor(self.looked_at(unit)))
            found.append(replicas.losses(examples, slice(row, row + 1)).mean())
        return torch.stack(found)

    def selected(self, problem: Problem, algorithm: Algorithm, chosen: Sequence[int]) -> Iterator[Mask]:
        """The masks that are selected on the training sets without each of ``chosen`` units."""
        for unit in chosen:
            yield algorithm.select(self.changed(problem, unit))

    def name_of(self, unit: int, example: Callable[[int], str]) -> str:
        """What a person reads of a unit: of a single example what ``example`` says of it."""
        return example(unit)


class OneExampleEach(Units):
    """Units of which each is about one example, whose own loss is looked at: unit i about example i."""

    names = None

    def looked_at(self, unit: int) -> Sequence[int]:
        return (unit,)

    def losses(self, each: Tensor, chosen: Tensor) -> Tensor:
        return each[chosen]

    def own_losses(self, replicas: Replicas, chosen: Tensor) -> Tensor:
        return replicas.own_losses(chosen)


@dataclass(frozen=True)
class SingleExamples(OneExampleEach):
    """Each of n examples is a unit, and has weight 0.

    Attributes:
        n: size of S.

    Example:
        >>> SingleExamples(3).weights(torch.tensor([2, 0]))
        tensor([[1., 1., 0.],
                [0., 1., 1.]])
    """

    n: int

    words: ClassVar[Words] = LEAVING_ONE_OUT  # type: ignore[misc]

    @property
    def count(self) -> int:
        return self.n

    def weights(self, chosen: Tensor) -> Tensor:
        weights = torch.ones(len(chosen), self.n)
        weights[torch.arange(len(chosen)), chosen] = 0
        return weights

    def selected(self, problem: Problem, algorithm: Algorithm, chosen: Sequence[int]) -> Iterator[Mask]:
        return algorithm.selector.select_each_left_out(problem, chosen, algorithm.seed)
