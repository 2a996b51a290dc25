"""Selection by a rule that looks at the pretrained model alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from stability.checks import check_flags, check_whole
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.selectors.base import Selector
from stability.selectors.course import Course, Projected, Run, check_burn_in
from stability.selectors.top_k import Scope, top_k

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
    """The ⌊pm⌋ parameters of largest magnitude (Han et al. 2015; Lee et al. 2021; Fu et al. 2023, Table 1, *MagPruning*).

    By default of |θ⁰|, chosen before training. With a burn-in, as in the code of Fu et al., everything is trained first,
    the magnitudes are those after ``burn_in`` steps, and that mask alone is trained from there; but here all others
    return to θ⁰, where that code leaves them at what the burn-in made of them.

    Attributes:
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``) or within each tensor (``tensor``, as in that code).
        burn_in: steps of full training before the mask is chosen; 0 for none.
        reset: return the chosen ones to θ⁰ too, after the burn-in.

    Raises:
        UsageError: ``burn_in`` is negative, or there is a reset without one; on training: it leaves no step.

    Example:
        >>> from stability.problems import load
        >>> MagPruning(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"
    burn_in: int = 0
    reset: bool = False

    def __post_init__(self) -> None:
        check_whole(0, burn_in=self.burn_in)
        check_flags(reset=self.reset)
        if self.reset and not self.burn_in:
            raise UsageError("reset returns to θ⁰ after the burn-in, and burn_in is 0: leave it out, or give a burn-in")

    @property
    def name(self) -> str:  # type: ignore[override]
        return "magnitude-trained" if self.burn_in else "magnitude"

    @property
    def uses_data(self) -> bool:  # type: ignore[override]
        return bool(self.burn_in)

    @property
    def moving(self) -> bool:  # type: ignore[override]
        return bool(self.burn_in)

    @property
    def vectors(self) -> int:  # type: ignore[override]
        return 3 if self.burn_in else 0

    def settings(self) -> dict[str, Any]:
        """Without those of the burn-in where there is none."""
        unused = () if self.burn_in else ("burn_in", "reset")
        return {name: value for name, value in super().settings().items() if name not in unused}

    def select(self, problem: Problem, seed: int) -> Mask:
        if self.burn_in:
            return Mask.full(problem.pretrained)
        return top_k({n: t.abs() for n, t in problem.pretrained.items()}, self.sparsity, self.scope)

    def begin(self, run: Run) -> Course:
        check_burn_in(self.name, self.burn_in, run.steps)
        return Projected(run, lambda values, _: values.abs(), self.sparsity, self.scope, burn_in=self.burn_in, reset=self.reset)
