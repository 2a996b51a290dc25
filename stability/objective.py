"""The objective of many replicas at once and its gradient by their tuned values, through ``torch.func.vmap``.

Of the model's tensors only those with tuned coordinates are copied for each replica; all others enter unbatched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.func import vmap

from stability.dropout import Dropout
from stability.masks import Mask, Parameters
from stability.problem import ModuleLogits, Problem

__all__ = ["Descended", "Objective", "Some", "Stack", "Trajectory", "batched"]


class Stack:
    """The masked tensors of r replicas, (r, *shape) each; the others are shared."""

    def __init__(self, start: Parameters, tunable: Mask, values: Tensor) -> None:
        r = len(values)
        self.shared = {name: tensor for name, tensor in start.items() if name not in tunable.indices}
        self.tensors: dict[str, Tensor] = {}
        self._places: list[tuple[Tensor, Tensor | None, slice]] = []
        for name, index, where in tunable.slices():
            tensor = start[name]
            whole = len(index) == tensor.numel()
            # A clone even for r = 1, where .contiguous() would hand back θ⁰ itself.
            self.tensors[name] = tensor.detach().expand(r, *tensor.shape).clone(memory_format=torch.contiguous_format)
            self._places.append((self.tensors[name].view(r, -1), None if whole else index.to(tensor.device), where))
        self.write(values)

    def write(self, values: Tensor) -> None:
        """Set the tuned coordinates to ``values`` (r, K); nothing else is touched."""
        for flat, index, where in self._places:
            if index is None:
                flat.copy_(values[:, where])
            else:
                flat.index_copy_(1, index, values[:, where])

    def read(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tuned coordinates of tensors shaped as mine, (r, K)."""
        parts = [
            tensor.flatten(1) if index is None else tensor.flatten(1).index_select(1, index)
            for tensor, (_, index, _) in zip(tensors, self._places, strict=True)
        ]
        return torch.cat(parts, dim=1)


def batched(stack: Stack, function: Callable[..., Tensor], randomness: str = "error") -> Callable[..., Tensor]:
    """``function(parameters, *data)`` for every replica at once: takes the stacked tensors and the shared data.

    ``randomness`` is ``torch.func.vmap``'s: ``same`` draws once for all replicas, by default drawing is an error.
    """

    def one(mine: Parameters, *data: object) -> Tensor:
        return function({**stack.shared, **mine}, *data)

    # The shared data enter by closure: vmap then treats them as constants, whatever container they come in.
    def every(tensors: Parameters, *data: object) -> Tensor:
        result: Tensor = vmap(lambda mine: one(mine, *data), randomness=randomness)(tensors)
        return result

    return every


class Descended(Protocol):
    """What replicas go down, step by step: the network's own :class:`Objective`, or its linearisation."""

    @property
    def origin(self) -> Tensor:
        """(K,) where every replica starts."""

    @property
    def rows(self) -> int:
        """r."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the pretrained tensors, in their order."""

    @property
    def sequences(self) -> int:
        """How many sequences make one example: 1, but for a choice."""

    def __call__(self, values: Tensor, index: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss over the examples that remain of ``index`` (r,), ridge term (r,), gradient of their sum (r, K)."""


@dataclass(frozen=True, eq=False)
class Some:
    """A random part of the K tuned coordinates: their places, ascending, and the inverse of each one's probability."""

    indices: Tensor
    scale: Tensor


@dataclass(eq=False)
class Trajectory:
    """What one real run leaves behind, for its linearisation.

    Attributes:
        steps: the steps whose points are kept.
        coordinates: of which the gradients are kept; of all by default.
        points: for each of ``steps`` all values before it, (K,).
        logits: of each step's batch, (b, C).
        gradients: of each step's batch loss, without the ridge and before a mask, at ``coordinates``.
    """

    steps: frozenset[int]
    coordinates: Some | None = None
    points: dict[int, Tensor] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor, logits: Tensor, gradient: Tensor) -> None:
        """One more step of a single replica: values and gradient (1, K), logits (1, b, C)."""
        if (step := len(self.gradients)) in self.steps:
            self.points[step] = values[0].detach().clone()
        self.logits.append(logits[0].detach())
        self.gradients.append(gradient[0] if self.coordinates is None else gradient[0, self.coordinates.indices])


class Objective:
    """The objective of one batch of replicas and its gradient by their tuned values.

    A ``trajectory`` is told of every step of a single replica.
    """

    def __init__(
        self,
        problem: Problem,
        start: Parameters,
        tunable: Mask,
        weights: Tensor,
        ridges: Tensor,
        activity: Tensor | None,
        trajectory: Trajectory | None = None,
    ):
        self.origin = tunable.gather(start)
        self._trajectory = trajectory
        self._problem, self._weights, self._ridges, self._activity = problem, weights, ridges, activity
        self._stack = Stack(start, tunable, self.origin.expand(len(weights), -1))
        self._leaves = list(self._stack.tensors.values())
        for leaf in self._leaves:
            leaf.requires_grad_()
        self._ridged = bool((ridges > 0).any())

    @property
    def rows(self) -> int:
        """r."""
        return len(self._weights)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the pretrained tensors, in their order."""
        return {name: tuple(tensor.shape) for name, tensor in self._problem.pretrained.items()}

    @property
    def sequences(self) -> int:
        """How many sequences make one example: 1, but for a choice."""
        logits, inputs = self._problem.logits, self._problem.train.inputs
        return next(iter(inputs.values())).shape[1] if isinstance(logits, ModuleLogits) and logits.choices else 1

    def start(self) -> Tensor:
        """(r, K)."""
        return self.origin.expand(self.rows, -1).clone()

    def __call__(self, values: Tensor, index: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss over the examples that remain of ``index`` (r,), ridge term (r,), gradient of their sum (r, K).

        With ``dropout`` the model is to be in training mode: :attr:`ModuleLogits.while_training`.
        """
        with torch.no_grad():
            self._stack.write(values)
        batch, weight = self._problem.train.take(index), self._weights[:, index.to(self._weights.device)]
        with nullcontext() if dropout is None else dropout:
            # The logits first, so that a trajectory can have them.
            answer = batched(self._stack, self._problem.logits, "error" if dropout is None else "same")
            logits = answer(self._stack.tensors, batch.inputs)
        losses: Tensor = vmap(self._problem.loss, in_dims=(0, None))(logits, batch.labels)
        mass = weight.sum(1)
        # A batch whose every example is left out has no loss and no gradient; the moments still move the values.
        loss = (losses * weight).sum(1) / torch.where(mass > 0, mass, torch.ones_like(mass))
        gradient = self._stack.read(torch.autograd.grad(loss.sum(), self._leaves, materialize_grads=True))
        if self._trajectory is not None:
            self._trajectory.add(values, logits, gradient)
        penalty = torch.zeros_like(loss).detach()
        if self._ridged:
            moved = values - self.origin
            penalty = self._ridges[:, 0] * (moved**2).sum(1)
            gradient = gradient + 2 * self._ridges * moved
        if self._activity is not None:
            gradient = gradient * self._activity
        return loss.detach(), penalty, gradient
