"""Selection by the second-order approximation method of Fu et al. (SAM; not sharpness-aware minimisation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stability.curvature import per_example_gradients
from stability.masks import Mask, Parameters, Scope, top_k
from stability.problem import Problem
from stability.selectors.base import Selector

__all__ = ["SAM"]


@dataclass(frozen=True)
class SAM(Selector):
    """The ⌊pm⌋ coordinates of largest |∇L(θ⁰)_j|², the gradient over the whole of S (Fu et al. 2023, Theorem 3).

    With H = diag(h), h > 0, the coordinates of largest |∇L(θ⁰)_j² / h_j| minimise the second-order approximation
    of the loss over all masks of their size; the paper bounds the unknown h by a constant, which leaves the squared
    gradient. L is the mean of ℓ over S at θ⁰ and the new head's start. The sum over S is taken in float64.

    When z_i is left out the choice is made anew, from the same per-example gradients: nL(θ) − ℓ_i(θ).

    Example:
        >>> from stability.problems import load
        >>> SAM(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float
    scope: Scope = "global"

    name: ClassVar[str] = "sam"
    uses_data: ClassVar[bool] = True

    def select(self, problem: Problem, seed: int) -> Mask:
        return self._choose(problem, _gradient_sum(problem, seed), problem.n)

    def select_each_left_out(self, problem: Problem, left_out: Sequence[int], seed: int) -> Iterator[Mask]:
        total = _gradient_sum(problem, seed)
        chosen = problem.train.take(torch.as_tensor(left_out, dtype=torch.int64))
        for block in per_example_gradients(problem, problem.start(seed), chosen, tuple(problem.pretrained)):
            for gradient in block:
                yield self._choose(problem, total - gradient.double(), problem.n - 1)

    def _choose(self, problem: Problem, gradient_sum: Tensor, n: int) -> Mask:
        return top_k(_named((gradient_sum / n) ** 2, problem.pretrained), self.sparsity, self.scope)


def _gradient_sum(problem: Problem, seed: int) -> Tensor:
    """Σ_i ∇ℓ_i(θ⁰) over the pretrained parameters, float64 (m,)."""
    blocks = per_example_gradients(problem, problem.start(seed), problem.train, tuple(problem.pretrained))
    total = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        total = total.to(block.device) + block.double().sum(0)
    return total


def _named(vector: Tensor, like: Parameters) -> dict[str, Tensor]:
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}
