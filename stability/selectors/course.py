"""Methods whose mask moves while A trains: the small interface that they write, and what the engine lends them.

The engine asks a :class:`Course` where to take the loss, tells it the gradient there, again and again, and in the end
asks for values and mask. A selector with a fixed mask needs none of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stability.errors import UsageError
from stability.selectors.top_k import Scope, top_k_of_rows

__all__ = ["Course", "Optimizer", "Projected", "Run", "check_burn_in"]


class MakeOptimizer(Protocol):
    """Starts an :class:`Optimizer` with its moments at 0."""

    def __call__(self, values: Tensor, decay: bool = True) -> Optimizer:
        """For values of the shape of ``values``; without weight decay where they are no parameters of the model."""


class Optimizer(Protocol):
    """AdamW with its moments, as the algorithm has it."""

    def update(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one step."""

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of the values, some of them twice."""


@dataclass(frozen=True, eq=False)
class Run:
    """What the engine lends for one batch of r replicas.

    Attributes:
        origin: (K,) θ⁰ on the m pretrained coordinates, then the head at its start.
        rows: r.
        sizes: how many coordinates each pretrained tensor has; they add up to m.
        steps: how many steps there will be.
        optimizer: makes the algorithm's AdamW for (r, ·) values.
        draws: of everything random. Draw once for all rows: the replicas are paired.
    """

    origin: Tensor
    rows: int
    sizes: Sequence[int]
    steps: int
    optimizer: MakeOptimizer
    draws: torch.Generator

    @property
    def m(self) -> int:
        """Number of pretrained coordinates."""
        return sum(self.sizes)

    def start(self) -> Tensor:
        """Where every replica starts, (r, K)."""
        return self.origin.expand(self.rows, -1).clone()

    def uniform(self) -> Tensor:
        """m draws from [0, 1) in double precision, the same on every device."""
        return torch.rand(self.m, generator=self.draws, dtype=torch.float64).to(self.origin.device)

    def with_head(self, gates: Tensor) -> Tensor:
        """(·, m) gates of the pretrained coordinates → (·, K), the head's all 1."""
        return torch.nn.functional.pad(gates.to(self.origin), (0, len(self.origin) - self.m), value=1.0)

    def held(self, mask: Tensor) -> Tensor:
        """(r, m) bool of the pretrained coordinates → (r, K), the head's all true: what may differ from the start."""
        return torch.nn.functional.pad(mask, (0, len(self.origin) - self.m), value=True)

    def put_back(self, values: Tensor, mask: Tensor) -> Tensor:
        """(r, K) ``values``, all outside ``mask`` (r, m) at θ⁰ again."""
        return torch.where(self.held(mask), values, self.origin)


class Course(ABC):
    """r replicas on their way, in the state of one method.

    Attributes:
        mask: bool (r, m), the last hard mask; None before there is one. A new one is a new tensor: the engine counts
            what entered it where it is another object than before.
        relaxed: whether the loss is taken with soft or random gates instead of that mask.
    """

    mask: Tensor | None = None
    relaxed: bool = False

    @abstractmethod
    def point(self) -> Tensor:
        """The parameters at which the next loss and its gradient are taken, (r, K); at first θ⁰ and the head's start."""

    @abstractmethod
    def step(self, gradient: Tensor) -> None:
        """Take one step, given the gradient of the objective at :meth:`point`, (r, K)."""

    @abstractmethod
    def final(self) -> tuple[Tensor, Tensor | None]:
        """The trained values (r, K) and the final mask, bool (r, m): outside it the engine puts θ⁰ back. None for a mask
        that was there before. Early stopping asks a shallow copy in mid-course what they would be: change no tensor in place.
        """


class Projected(Course):
    """Full steps, projected now and then: the k coordinates of highest score stay, the others return to θ⁰.

    Args:
        run: what the engine lends.
        score: (values (r, m), θ⁰ (m,)) → (r, m).
        sparsity: p of the mask.
        scope: of the competition.
        every: project after so many steps, again and again; None: not until ``burn_in`` or the end.
        burn_in: after so many steps project for the last time, and train that mask alone from then on; None: project
            for the last time at the end.
        reset: at ``burn_in`` the kept coordinates and the head return to their start as well.
    """

    def __init__(
        self,
        run: Run,
        score: Callable[[Tensor, Tensor], Tensor],
        sparsity: float,
        scope: Scope = "global",
        every: int | None = None,
        burn_in: int | None = None,
        reset: bool = False,
    ) -> None:
        self._run, self._score, self._sparsity, self._scope = run, score, sparsity, scope
        self._every, self._burn_in, self._reset = every, burn_in, reset
        self._values = run.start()
        self._optimizer = run.optimizer(self._values)
        self._step = 0
        self._open: Tensor | None = None  # which of K may change, once that is settled

    def point(self) -> Tensor:
        return self._values

    def step(self, gradient: Tensor) -> None:
        updated = self._optimizer.update(self._values, gradient)
        self._values = updated if self._open is None else torch.where(self._open, updated, self._values)
        self._step += 1
        if self._step == self._burn_in:
            self._open = self._run.held(self._project())
            if self._reset:
                self._values = self._run.start()
                self._optimizer = self._run.optimizer(self._values)
        elif self._open is None and self._every is not None and self._step % self._every == 0:
            self._project()

    def final(self) -> tuple[Tensor, Tensor]:
        mask = self._project() if self._open is None or self.mask is None else self.mask
        return self._values, mask

    def _project(self) -> Tensor:
        m, origin = self._run.m, self._run.origin
        self.mask = top_k_of_rows(self._score(self._values[:, :m], origin[:m]), self._run.sizes, self._sparsity, self._scope)
        self._values = self._run.put_back(self._values, self.mask)
        return self.mask


def check_burn_in(name: str, burn_in: int, steps: int) -> None:
    """That a burn-in leaves steps to train the mask.

    Raises:
        UsageError: it does not.
    """
    if burn_in >= steps:
        raise UsageError(f"{name}: burn_in = {burn_in} of {steps} steps leaves none to train the mask: use fewer, or more steps")
