"""Selection by a rule that looks at the pretrained model alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from stability.errors import UsageError
from stability.masks import Mask, Scope, top_k
from stability.problem import Problem
from stability.selectors.base import Selector

__all__ = ["BitFit", "FullTuning", "MagPruning"]


@dataclass(frozen=True)
class FullTuning(Selector):
    """Every parameter: ordinary fine-tuning, p = 1.

    Example:
        >>> from stability.problems import load
        >>> FullTuning().select(load("digits"), seed=0).sparsity
        1.0
    """

    name: ClassVar[str] = "full"

    def select(self, problem: Problem, seed: int) -> Mask:
        return Mask.full(problem.pretrained)


@dataclass(frozen=True)
class BitFit(Selector):
    """The bias terms only (Ben Zaken, Goldberg & Ravfogel 2022): tensors whose name ends in ``bias``; p follows from them.

    Raises:
        UsageError: the model has no biases.

    Example:
        >>> from stability.problems import load
        >>> BitFit().select(load("digits"), seed=0).count
        928
    """

    name: ClassVar[str] = "bitfit"

    def select(self, problem: Problem, seed: int) -> Mask:
        shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
        biases = {n: torch.arange(t.numel()) for n, t in problem.pretrained.items() if n.rpartition(".")[2] == "bias"}
        if not biases:
            raise UsageError(f"bitfit tunes biases, and {problem.name!r} has none: use full, random, magnitude or sam")
        return Mask(shapes, biases)


@dataclass(frozen=True)
class MagPruning(Selector):
    """The ⌊pm⌋ parameters of largest magnitude |θ⁰| (Han et al. 2015; Fu et al. 2023, Table 1, *MagPruning*).

    Example:
        >>> from stability.problems import load
        >>> MagPruning(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"

    name: ClassVar[str] = "magnitude"

    def select(self, problem: Problem, seed: int) -> Mask:
        return top_k({n: t.abs() for n, t in problem.pretrained.items()}, self.sparsity, self.scope)
