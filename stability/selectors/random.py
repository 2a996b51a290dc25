"""Selection by chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from stability.masks import Mask, Scope, top_k
from stability.problem import Problem, generator
from stability.selectors.base import Selector

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Selector):
    """⌊pm⌋ coordinates drawn uniformly without replacement (Fu et al. 2023, Table 1, *Random*).

    Example:
        >>> from stability.problems import load
        >>> Random(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"

    name: ClassVar[str] = "random"

    def select(self, problem: Problem, seed: int) -> Mask:
        draw = generator(seed, "selection")
        # Double precision: among millions of single-precision draws many are equal, and ties go by index.
        scores = {n: torch.rand(t.shape, generator=draw, dtype=torch.float64) for n, t in problem.pretrained.items()}
        return top_k(scores, self.sparsity, self.scope)
