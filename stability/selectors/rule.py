"""Selection by a rule that looks at the pretrained model alone, or at its magnitude after a burn-in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from stability.checks import check_flags, check_whole
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.selectors.base import Moving, Selector
from stability.selectors.moving import Course, Projected, Run, check_burn_in
from stability.selectors.scope import AnyScope, layer_of
from stability.selectors.scores import MagPruning

__all__ = ["BiasesAndNorms", "BitFit", "FullTuning", "HeadOnly", "LastLayers", "TrainedMagPruning", "magnitude"]


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
        biases = [name for name in problem.pretrained if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise UsageError(f"bitfit tunes biases, and {problem.name!r} has none: use full, random, magnitude or sam")
        return _whole(problem, biases)


@dataclass(frozen=True)
class BiasesAndNorms(Selector):
    """The tensors of one dimension: biases, and what normalisation layers multiply by; p follows from them.

    Raises:
        UsageError: the model has no tensor of one dimension.

    Example:
        >>> from stability import load
        >>> BiasesAndNorms().select(load("digits"), seed=0).count
        1152
    """

    name: ClassVar[str] = "biases-norms"

    def select(self, problem: Problem, seed: int) -> Mask:
        vectors = [name for name, tensor in problem.pretrained.items() if tensor.ndim == 1]
        if not vectors:
            raise UsageError(f"biases-norms tunes tensors of one dimension, and {problem.name!r} has none: use full, random or sam")
        return _whole(problem, vectors)


@dataclass(frozen=True)
class LastLayers(Selector):
    """All of the last layers of the model; p follows from them.

    A layer is all tensors whose names agree up to the first number. A model with several stacks of layers, such as an encoder and
    a decoder, has last layers in each.

    Attributes:
        layers: how many layers of each stack.

    Raises:
        UsageError: ``layers`` is no whole number of at least 1; on selecting: the model has no or too few layers.

    Example:
        >>> from stability import load
        >>> LastLayers(layers=1).select(load("digits"), seed=0)
        Mask(k=8544, m=26432)
    """

    layers: int = 1

    name: ClassVar[str] = "last-layers"

    def __post_init__(self) -> None:
        check_whole(1, layers=self.layers)

    def select(self, problem: Problem, seed: int) -> Mask:
        stacks: dict[str, set[int]] = {}
        for layer in filter(None, map(layer_of, problem.pretrained)):
            stack, _, number = layer.rpartition(".")
            stacks.setdefault(stack, set()).add(int(number))
        if not stacks:
            raise UsageError(f"last-layers: no tensor of {problem.name!r} has the number of a layer in its name: use full or sam")
        if (least := min(map(len, stacks.values()))) < self.layers:
            raise UsageError(f"last-layers: layers = {self.layers}, and {problem.name!r} has {least}: use at most so many")
        last = {f"{stack}.{number}".lstrip(".") for stack, found in stacks.items() for number in sorted(found)[-self.layers :]}
        return _whole(problem, [name for name in problem.pretrained if layer_of(name) in last])


@dataclass(frozen=True)
class HeadOnly(Selector):
    """No pretrained parameter: the new head alone is trained, p = 0.

    It is the baseline of what the pretrained features give by themselves.

    Raises:
        UsageError: on training: the problem has no new head, so that nothing would be trained.

    Example:
        >>> from stability import load
        >>> HeadOnly().select(load("digits"), seed=0)
        Mask(k=0, m=26432)
    """

    name: ClassVar[str] = "head-only"

    def select(self, problem: Problem, seed: int) -> Mask:
        return _whole(problem, [])


def _whole(problem: Problem, names: Sequence[str]) -> Mask:
    """The mask of some tensors as a whole."""
    shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
    return Mask(shapes, {name: torch.arange(problem.pretrained[name].numel()) for name in names})


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
