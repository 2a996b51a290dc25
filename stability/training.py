"""The algorithm A: what is tuned, on which batches, by which steps. One definition; :mod:`stability.replicas` runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from stability.errors import UsageError
from stability.masks import Mask
from stability.problem import Problem, generator
from stability.selectors.base import Selector

__all__ = ["AdamW", "FineTuning"]


@dataclass(frozen=True)
class FineTuning:
    """Fine-tune the selected coordinates and the new head; everything else keeps its bits.

    Minimises Σ_j w_j ℓ_j / Σ_j w_j + λ‖θ − θ⁰‖² over batches, where w_j is 1, or 0 for an example left out: the mean
    over the examples that *remain* in the batch. ‖θ − θ⁰‖² runs over the tuned coordinates, the head (whose θ⁰ is its
    start) among them. λ = 1 − p is the paper's regularised objective E_M L_R (Fu et al. 2023, eq. 4 ff.).

    The optimizer is AdamW (Loshchilov & Hutter 2019) in the form of ``torch.optim.AdamW``, on the k tuned values alone.

    Attributes:
        selector: which pretrained coordinates may change.
        steps: number of optimizer steps.
        batch_size: examples a step; S is shuffled anew whenever it is used up. n or more: the whole of S, in order.
        learning_rate: of AdamW.
        schedule: ``constant``, or ``linear`` from ``learning_rate`` down to 0 after the last step.
        weight_decay: of AdamW, decoupled, towards 0 (not θ⁰).
        betas: of AdamW.
        epsilon: of AdamW.
        ridge: λ; ``paper`` stands for 1 − p with the p of the mask.
        seed: starts the head, orders the examples, and is handed to the selector; each has its own generator.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> from stability.selectors import Random
        >>> algorithm = FineTuning(Random(sparsity=0.05), steps=3, batch_size=4)
        >>> [len(batch) for batch in algorithm.batches(n=6)]
        [4, 4, 4]
    """

    selector: Selector
    steps: int = 150
    batch_size: int = 20
    learning_rate: float = 3e-3
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    ridge: float | Literal["paper"] = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise UsageError(f"{name} = {value}: use a whole number of at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate = {self.learning_rate}: use a positive number")
        if self.schedule not in ("constant", "linear"):
            raise UsageError(f"unknown schedule {self.schedule!r}: use constant or linear")
        for name in ("weight_decay", "ridge"):
            value = getattr(self, name)
            if (name, value) != ("ridge", "paper") and not (
                isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
            ):
                raise UsageError(f"{name} = {value}: use a number of at least 0" + (" or 'paper'" if name == "ridge" else ""))

    def settings(self) -> dict[str, Any]:
        """What defines the algorithm apart from its selector, as plain values: part of the identity of a result."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "selector"}

    def ridge_for(self, sparsity: float) -> float:
        """λ for a mask of this p."""
        return 1.0 - sparsity if self.ridge == "paper" else float(self.ridge)

    def batches(self, n: int) -> Iterator[Tensor]:
        """The indices of each step's examples, the same for every replica: int64 (b,), ``steps`` times."""
        if self.batch_size >= n:
            yield from (torch.arange(n) for _ in range(self.steps))
            return
        draw = generator(self.seed, "order")
        waiting = torch.empty(0, dtype=torch.int64)
        for _ in range(self.steps):
            while len(waiting) < self.batch_size:
                waiting = torch.cat([waiting, torch.randperm(n, generator=draw)])
            yield waiting[: self.batch_size]
            waiting = waiting[self.batch_size :]

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …"""
        return self.learning_rate * (1 - step / self.steps if self.schedule == "linear" else 1)

    def select(self, problem: Problem) -> Mask:
        """The coordinates that the selector lets change, over the pretrained tensors."""
        return self.selector.select(problem, self.seed)

    def tunable(self, problem: Problem, selected: Mask) -> Mask:
        """The selected coordinates and the whole of the new head."""
        return selected.union(Mask.full(problem.head(self.seed)))


class AdamW:
    """AdamW's moments for values of any shape, a row a replica; the arithmetic of ``torch.optim.AdamW``."""

    def __init__(self, algorithm: FineTuning, values: Tensor) -> None:
        self._algorithm = algorithm
        self._first = torch.zeros_like(values)
        self._second = torch.zeros_like(values)
        self._step = 0

    def update(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one step."""
        a, (beta1, beta2) = self._algorithm, self._algorithm.betas
        rate = a.learning_rate_at(self._step)
        self._step += 1
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = self._second.sqrt().div_(math.sqrt(1 - beta2**self._step)).add_(a.epsilon)
        decayed = values * (1 - rate * a.weight_decay)
        return decayed.addcdiv_(self._first, scale, value=-rate / (1 - beta1**self._step))
