"""Selection by a rule that looks at the pretrained model alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from stability.checks import check_flags, check_whole
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.selectors.base import Moving, Selector
from stability.selectors.moving import Course, Projected, Run, check_burn_in
from stability.selectors.scope import AnyScope
from stability.selectors.scores import MagPruning

__all__ = ["BitFit", "FullTuning", "TrainedMagPruning", "magnitude"]


@dataclass(frozen=True)
class FullTuning(Selector):
    """Every parameter: ordinary fine-tuning, p = 1.

    Example:
        >>> from stability import load
        >>> FullTuning().select(load("digits"), seed=0).sparsity
        1.0
    """

    name: ClassVar[str] = "full"
    selects_all: ClassVar[bool] = True

    def select(self, problem: Problem, seed: int) -> Mask:
        return Mask.full(problem.pretrained)


@dataclass(frozen=True)
class BitFit(Selector):
    """The bias terms only (Ben Zaken, Goldberg & Ravfogel 2022): tensors whose name ends in ``bias``; p follows from them.

    Raises:
        UsageError: the model has no biases.

    Example:
        >>> from stability import load
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
class TrainedMagPruning(Moving):
    """The ⌊pm⌋ parameters of largest |θ| after a burn-in, as in the code of Fu et al. 2023.

    Everything is trained for ``burn_in`` steps. Then the mask is chosen, and it alone is trained from there. All other
    parameters return to θ⁰; the code of Fu et al. leaves them at what the burn-in made of them.

    Attributes:
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``) or within each tensor (``tensor``, as in that code).
        burn_in: steps of full training before the mask is chosen.
        reset: whether the chosen parameters return to θ⁰ too, after the burn-in.

    Raises:
        UsageError: ``burn_in`` is below 1; on training: it leaves no step.

    Example:
        >>> from stability import FineTuning, load, train
        >>> train(load("digits"), FineTuning(TrainedMagPruning(0.01, burn_in=2), steps=3)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: AnyScope = "global"
    burn_in: int = field(kw_only=True)
    reset: bool = field(default=False, kw_only=True)

    name: ClassVar[str] = "magnitude-trained"
    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 3  # scores, mask and what ranks them

    def __post_init__(self) -> None:
        check_whole(1, burn_in=self.burn_in)
        check_flags(reset=self.reset)

    def begin(self, run: Run) -> Course:
        check_burn_in(self.name, self.burn_in, run.steps)
        return Projected(run, lambda values, _: values.abs(), self.sparsity, self.scope, burn_in=self.burn_in, reset=self.reset)


def magnitude(sparsity: float, scope: AnyScope = "global", *, burn_in: int = 0, reset: bool = False) -> Selector:
    """Selection by magnitude under one name: :class:`MagPruning`, or with a burn-in :class:`TrainedMagPruning`.

    Args:
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``) or within each tensor (``tensor``).
        burn_in: steps of full training before the mask is chosen; 0 chooses before training.
        reset: whether the chosen parameters return to θ⁰ after the burn-in.

    Raises:
        UsageError: ``burn_in`` is negative, or there is a reset without a burn-in.

    Example:
        >>> magnitude(0.01).name, magnitude(0.01, burn_in=5).name
        ('magnitude', 'magnitude-trained')
    """
    check_whole(0, burn_in=burn_in)
    check_flags(reset=reset)
    if burn_in:
        return TrainedMagPruning(sparsity, scope, burn_in=burn_in, reset=reset)
    if reset:
        raise UsageError("reset returns to θ⁰ after the burn-in, and burn_in is 0: leave it out, or give a burn-in")
    return MagPruning(sparsity, scope)
