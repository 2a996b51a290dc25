"""Examples that stand in the place of training examples in some replicas: a replaced example, or one with another label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stability.checks import check_kind, check_whole
from stability.errors import UsageError
from stability.problems.problem import Examples, Problem

__all__ = ["Substitutes", "usual_weights"]


@dataclass(frozen=True, eq=False)
class Substitutes:
    """q examples, each of which may take the place of one training example.

    A substitute joins every batch that has the example whose place it may take. There it has a weight in each replica, like any
    other example: 1 where it takes that place, and the example itself then has 0; and 0 elsewhere. So all replicas share their
    batches, and each has the sum that it would have if it were trained on its own training set.

    Attributes:
        examples: the q substitutes.
        places: int64 (q,), the index in S of the example whose place each may take.

    Raises:
        UsageError: there is not one place for each, or a place is no whole number of at least 0.

    Example:
        >>> flipped = Substitutes(Examples({"x": torch.tensor([[5.0]])}, torch.tensor([1])), torch.tensor([2]))
        >>> [index.tolist() for index in flipped.added_to([torch.tensor([0, 1]), torch.tensor([2, 0])], n=3)]
        [[0, 1], [2, 0, 3]]
    """

    examples: Examples
    places: Tensor

    def __post_init__(self) -> None:
        check_kind(Tensor, "a tensor of whole numbers", places=self.places)
        if self.places.shape != (len(self.examples),):
            raise UsageError(f"places of shape {tuple(self.places.shape)} for {len(self.examples)} substitutes: give one for each")
        if self.places.dtype not in (torch.int64, torch.int32):
            raise UsageError(f"places of type {self.places.dtype}: use whole numbers, the indices of examples in S")
        self._check(None)

    def __len__(self) -> int:
        return len(self.examples)

    def check(self, n: int) -> None:
        """Check that each may take the place of an example.

        Args:
            n: size of S.

        Raises:
            UsageError: a place is outside S.
        """
        self._check(n - 1)

    def _check(self, most: int | None) -> None:
        because = "" if most is None else f"S has n = {most + 1} examples"
        for j, place in enumerate(self.places.tolist()):
            check_whole(0, most, because, **{f"place {j}": place})

    def beside(self, problem: Problem) -> Problem:
        """The problem with the substitutes behind its training examples: substitute j is example n + j.

        Args:
            problem: whose S they belong to.
        """
        there = self.examples.to(problem.train.labels.device)
        return replace(problem, train=problem.train.followed_by(there), shown=None, groups=None)

    def added_to(self, batches: Iterable[Tensor], n: int) -> Iterator[Tensor]:
        """The batches, each followed by the substitutes of its examples.

        Args:
            batches: the indices of the examples that each step takes, int64 (b,).
            n: size of S.
        """
        for index in batches:
            yield torch.cat([index, n + torch.isin(self.places, index).nonzero()[:, 0]])


def usual_weights(n: int, substitutes: Substitutes | None) -> Tensor:
    """The example weights of A(S): 1 for every training example, and 0 for those that only take another's place.

    Args:
        n: size of S.
        substitutes: what may take the place of its examples, if anything.

    Returns:
        (n,) or, with q substitutes, (n + q,).

    Example:
        >>> usual_weights(2, Substitutes(Examples({"x": torch.ones(1, 1)}, torch.tensor([1])), torch.tensor([0])))
        tensor([1., 1., 0.])
    """
    return torch.cat([torch.ones(n), torch.zeros(0 if substitutes is None else len(substitutes))])
