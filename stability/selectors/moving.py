"""Methods whose mask moves while A trains: the interface that they write, and what the engine gives them for it.

The engine asks a :class:`Course` for the parameters at which it takes the loss, gives it the gradient there, and repeats that
for every step. At the end it asks for values and mask. A selector with a fixed mask needs none of this.

Axes: r replicas, m pretrained coordinates, K = m plus those of the new head.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stability.errors import UsageError
from stability.machine import pieces
from stability.selectors.scope import AnyScope
from stability.selectors.top_k import top_k_of_rows

__all__ = ["Course", "MakeOptimizer", "Optimizer", "Projected", "Run", "check_burn_in"]


class MakeOptimizer(Protocol):
    """Starts an :class:`Optimizer` with its moments at 0."""

    def __call__(self, values: Tensor, decay: bool = True) -> Optimizer:
        """Start the algorithm's AdamW.

        Args:
            values: a tensor of the shape of the values that will be updated, (r, ·).
            decay: whether weight decay applies. It does not where the values are no parameters of the model.
        """


class Optimizer(Protocol):
    """The algorithm's AdamW with its moments, its learning rate following the schedule."""

    def update(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Take one step.

        Args:
            values: the values before the step, (r, ·).
            gradient: the gradient there, (r, ·).

        Returns:
            The values after the step, (r, ·), as a new tensor.
        """

    def take(self, rows: Tensor) -> None:
        """Keep the moments of some rows only.

        Args:
            rows: their indices, in the order that they get; one may stand in it twice.
        """

    def narrow(self, columns: Tensor) -> None:
        """Keep the moments of some coordinates only.

        Args:
            columns: their places in a row, int64.
        """


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """What the engine gives a moving method for one batch of r replicas.

    Attributes:
        origin: (K,), θ⁰ on the m pretrained coordinates, then the head at its start.
        rows: r, the number of replicas.
        shapes: the shape of each pretrained tensor, by name, in the order of ``origin``; their sizes add up to m.
        steps: the number of training steps that will be taken.
        optimizer: makes the algorithm's AdamW for (r, ·) values.
        draws: the generator of everything random. A draw is made once for all rows, so that the replicas stay paired.
        name: the selector's, for messages.

    Example:
        >>> run = Run(origin=torch.zeros(3), rows=2, shapes={"w": (2,)}, steps=4, optimizer=..., draws=torch.Generator())
        >>> run.m, run.start().shape
        (2, torch.Size([2, 3]))
    """

    origin: Tensor
    rows: int
    shapes: Mapping[str, tuple[int, ...]]
    steps: int
    optimizer: MakeOptimizer
    draws: torch.Generator
    name: str = "moving"

    @property
    def sizes(self) -> list[int]:
        """The number of coordinates of each pretrained tensor."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @property
    def m(self) -> int:
        """The number of pretrained coordinates."""
        return sum(self.sizes)

    def start(self) -> Tensor:
        """The values at which every replica starts, (r, K), in a tensor of their own."""
        return self.origin.expand(self.rows, -1).clone()

    def uniform(self) -> Tensor:
        """m draws from [0, 1) in double precision, the same on every device."""
        return torch.rand(self.m, generator=self.draws, dtype=torch.float64).to(self.origin.device)

    def uniforms(self) -> Iterator[tuple[slice, Tensor]]:
        """The draws of :meth:`uniform`, some at a time: with all parameters of a large model, memory is what takes time.

        Yields:
            Places among the m coordinates, and a draw for each, float64.
        """
        for part in pieces(self.m, self.origin.device, self.rows):
            draw = torch.rand(part.stop - part.start, generator=self.draws, dtype=torch.float64)
            yield part, draw.to(self.origin.device)

    def gated(self, values: Tensor, gates: Tensor) -> Tensor:
        """θ⁰ + z ⊙ (θ − θ⁰) for ``values`` θ, (r, K), and gates z, (K,) or (r, K), which are 1 for the head."""
        point = torch.empty_like(values)
        for part in pieces(len(self.origin), values.device, len(values)):
            start = self.origin[part]
            torch.sub(values[:, part], start, out=point[:, part]).mul_(gates[..., part]).add_(start)
        return point

    def held(self, mask: Tensor) -> Tensor:
        """Which coordinates may differ from the start: those of ``mask``, bool (r, m), and the head's; bool (r, K)."""
        return torch.nn.functional.pad(mask, (0, len(self.origin) - self.m), value=True)

    def put_back(self, values: Tensor, mask: Tensor) -> Tensor:
        """``values``, (r, K), with every pretrained coordinate outside ``mask``, bool (r, m), at θ⁰ again."""
        return torch.where(self.held(mask), values, self.origin)


class Course(ABC):
    """r replicas during training, in the state of one moving method.

    Attributes:
        mask: the last hard mask, bool (r, m); None before there is one. A new mask is a new tensor: the engine counts which
            coordinates entered it where it finds another object than before.
        settles: after how many steps the mask stays, and nothing trains but its coordinates and the head, by :attr:`optimizer`;
            None where the mask may move to the end. From there on the engine takes the steps itself, at these coordinates alone,
            which costs less. The result is the same up to rounding. A run that is observed step by step is left to the course.
        optimizer: the AdamW of what :meth:`point` gives; needed where the mask settles.

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.selectors import Moving
        >>> from stability.training import replicas
        >>> class OneTensor(Course):  # trains everything, and in the end keeps the first tensor
        ...     def __init__(self, run):
        ...         self.run, self.values = run, run.start()
        ...         self.optimizer = run.optimizer(self.values)
        ...
        ...     def point(self):
        ...         return self.values
        ...
        ...     def step(self, gradient):
        ...         self.values = self.optimizer.update(self.values, gradient)
        ...
        ...     def final(self):
        ...         return self.values, (torch.arange(self.run.m) < self.run.sizes[0]).expand(self.run.rows, -1)
        >>> class First(Moving):
        ...     name = "first"
        ...
        ...     def begin(self, run):
        ...         return OneTensor(run)
        >>> replicas.train(problems.load("digits"), FineTuning(First(), steps=2)).masks[0].count
        32
    """

    mask: Tensor | None = None
    settles: int | None = None
    optimizer: Optimizer | None = None

    @property
    def relaxed(self) -> bool:
        """Whether the next loss is taken with soft or random gates in the place of :attr:`mask`."""
        return False

    @abstractmethod
    def point(self) -> Tensor:
        """The parameters at which the next loss and its gradient are taken, (r, K); at first θ⁰ and the head's start."""

    @abstractmethod
    def step(self, gradient: Tensor) -> None:
        """Take one step.

        Args:
            gradient: the gradient of the objective at what :meth:`point` gave, (r, K).
        """

    @abstractmethod
    def final(self) -> tuple[Tensor, Tensor | None]:
        """What training has come to, at its end or wherever early stopping asks.

        Early stopping asks a shallow copy during training, so that no tensor may be changed in place.

        Returns:
            The trained values, (r, K), and the final mask, bool (r, m). The engine puts θ⁰ back outside of the mask. None in
            the place of the mask where it was fixed before training.
        """


class Projected(Course):
    """Full steps with projections: the k coordinates of highest score stay, and all others return to θ⁰.

    Args:
        run: what the engine gives.
        score: gives one score a coordinate, (r, m), from the values, (r, m), and θ⁰, (m,); the highest stay.
        sparsity: p ∈ (0, 1]; k = ⌊pm⌋.
        scope: where coordinates compete: over all parameters (``global``), within each tensor (``tensor``), or as a
            :class:`Scope` says.
        every: the number of steps between projections; None for none before ``burn_in`` or the end.
        burn_in: the step after which the last projection is made and its mask alone is trained; None for a last projection
            at the end.
        reset: whether the kept coordinates and the head return to their start at ``burn_in`` too.

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.selectors import Moving
        >>> from stability.training import replicas
        >>> class Shrunk(Moving):
        ...     name, uses_data = "shrunk", True
        ...
        ...     def begin(self, run):  # those whose magnitude fell most
        ...         return Projected(run, lambda values, origin: origin.abs() - values.abs(), sparsity=0.01, every=2)
        >>> replicas.train(problems.load("digits"), FineTuning(Shrunk(), steps=4)).masks[0].count
        264
    """

    def __init__(
        self,
        run: Run,
        score: Callable[[Tensor, Tensor], Tensor],
        sparsity: float,
        scope: AnyScope = "global",
        *,
        every: int | None = None,
        burn_in: int | None = None,
        reset: bool = False,
    ) -> None:
        self._run, self._score, self._sparsity, self._scope = run, score, sparsity, scope
        self._every, self.settles, self._reset = every, burn_in, reset
        self._values = run.start()
        self.optimizer: Optimizer = run.optimizer(self._values)
        self._step = 0
        self._open: Tensor | None = None  # which of K may change, once that is settled
        # Per row whether some scores were of no use. A flag and no check at once: a GPU would have to be waited for in each step.
        self._odd = torch.zeros(run.rows, dtype=torch.bool, device=run.origin.device)

    def point(self) -> Tensor:
        return self._values

    def step(self, gradient: Tensor) -> None:
        updated = self.optimizer.update(self._values, gradient)
        self._values = updated if self._open is None else torch.where(self._open, updated, self._values)
        self._step += 1
        if self._step == self.settles:
            self._open = self._run.held(self._project(last=True))
            if self._reset:
                self._values = self._run.start()
                self.optimizer = self._run.optimizer(self._values)
        elif self._open is None and self._every is not None and self._step % self._every == 0:
            self._project()

    def final(self) -> tuple[Tensor, Tensor]:
        mask = self._project(last=True) if self._open is None or self.mask is None else self.mask
        if bool(self._odd.any()):
            raise UsageError(
                f"scores of selector {self._run.name!r} are not finite, or all equal where the last mask is chosen, although the "
                "values are finite: there is nothing to choose by; return one finite score a coordinate"
            )
        return self._values, mask

    def _project(self, last: bool = False) -> Tensor:
        self.mask = top_k_of_rows(self._scores(last), self._run.shapes, self._sparsity, self._scope)
        self._values = self._run.put_back(self._values, self.mask)
        return self.mask

    def _scores(self, last: bool) -> Tensor:
        """The scores (r, m) of the values, checked as those of a fixed mask are."""
        m, origin, values = self._run.m, self._run.origin, self._values
        before = values._version, origin._version
        scores = self._score(values[:, :m], origin[:m])
        if (values._version, origin._version) != before:
            raise UsageError(
                f"selector {self._run.name!r} changed the values or θ⁰ in place: its score function returns new tensors"
            )
        if not isinstance(scores, Tensor) or scores.is_complex() or scores.shape != (self._run.rows, m):
            what = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise UsageError(
                f"the score function of selector {self._run.name!r} returned {what}: a real tensor (r, m) = "
                f"({self._run.rows}, {m}) expected, a score for each replica and coordinate"
            )
        least, most = scores.aminmax(dim=1)  # NaN where a score is
        useless = ~(torch.isfinite(least) & torch.isfinite(most))
        if last:  # before, all may be equal: nothing has moved yet in a replica whose first batches are left out
            useless = useless | (least == most)
        least, most = values.aminmax(dim=1)
        self._odd = self._odd | (useless & torch.isfinite(least) & torch.isfinite(most))  # a run that diverged has failed already
        return scores


def check_burn_in(name: str, burn_in: int, steps: int) -> None:
    """Check that a burn-in leaves steps to train the mask.

    Args:
        name: the selector, for the message.
        burn_in: the number of steps before the mask is chosen.
        steps: the number of steps of the whole run.

    Raises:
        UsageError: no step is left.

    Example:
        >>> check_burn_in("childpruning", burn_in=50, steps=100)
    """
    if burn_in >= steps:
        raise UsageError(f"{name}: burn_in = {burn_in} of {steps} steps leaves none to train the mask: use fewer, or more steps")
