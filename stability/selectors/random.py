"""Selection by chance: before training, at every step of training, or after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stability.checks import check_probability
from stability.selectors.base import Moving
from stability.selectors.moving import Course, Optimizer, Projected, Run
from stability.selectors.scope import AnyScope, Scope
from stability.selectors.scored import Evidence, Ranked

__all__ = ["Mixout", "MixoutReset", "Random"]


@dataclass(frozen=True)
class Random(Ranked):
    """⌊pm⌋ coordinates drawn uniformly without replacement (Fu et al. 2023, Table 1, *Random*).

    Where units such as rows are chosen as a whole, there is one draw for each unit.

    Raises:
        UsageError: on selecting: p outside (0, 1] or so small that it selects nothing, or an unknown scope.

    Example:
        >>> from stability.problems import load
        >>> Random(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "random"
    formula: ClassVar[str] = "a random number"
    source: ClassVar[str] = "Fu et al. 2023"

    def score(self, at: Evidence) -> Tensor:
        # Double precision: among millions of single-precision draws many are equal, and ties go by index.
        draw, tensors = at.draws(), at.problem.pretrained
        drawn = at.flat({name: torch.rand(tensor.shape, generator=draw, dtype=torch.float64) for name, tensor in tensors.items()})
        return Scope.of(self.scope).alike(drawn, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Mixout(Moving):
    """At every step each parameter is θ⁰'s with probability q (Lee, Cho & Kang 2020, *Mixout*, equation 4 and after).

    The loss and its gradient are taken at θ⁰ + b/(1 − q) · (θ − θ⁰), with b_j ~ Bernoulli(1 − q) drawn anew for every
    coordinate and step. The factor 1/(1 − q) makes θ the expectation of that point. In the end θ itself is the model, and
    every coordinate was trained: k = m. The new head has no θ⁰ and is not mixed. :class:`MixoutReset` is the form that Fu et
    al. 2023 use.

    Attributes:
        probability: q ∈ [0, 1), the probability of a return to θ⁰; Lee et al. use 0.7 to 0.9.

    Raises:
        UsageError: q outside [0, 1).

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.training import replicas
        >>> replicas.train(problems.load("digits"), FineTuning(Mixout(0.7), steps=2)).masks[0].sparsity
        1.0
    """

    probability: float = 0.7

    name: ClassVar[str] = "mixout"
    vectors: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_probability(probability=self.probability)

    def begin(self, run: Run) -> Course:
        return _Mixed(run, self.probability)


class _Mixed(Course):
    """All parameters, each gated by chance at every step."""

    def __init__(self, run: Run, probability: float) -> None:
        self._run, self._probability = run, probability
        self._values = run.start()
        self.optimizer: Optimizer = run.optimizer(self._values)
        self._gates = torch.ones_like(run.origin)

    @property
    def relaxed(self) -> bool:
        return True

    def point(self) -> Tensor:
        for part, draw in self._run.uniforms():
            self._gates[part].copy_(draw >= self._probability).div_(1 - self._probability)
        return self._run.gated(self._values, self._gates)

    def step(self, gradient: Tensor) -> None:
        self._values = self.optimizer.update(self._values, self._gates * gradient)

    def final(self) -> tuple[Tensor, Tensor]:
        return self._values, torch.ones(self._run.rows, self._run.m, dtype=torch.bool, device=self._values.device)


@dataclass(frozen=True)
class MixoutReset(Moving):
    """Full fine-tuning, after which all but ⌊pm⌋ randomly drawn coordinates return to θ⁰ (Fu et al. 2023, Table 1, *Mixout*).

    What Fu et al. call Mixout "resets a portion of the fine-tuned parameters to the pretrained ones", and their code does so
    for the evaluation only. Nothing is trained after the reset.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that is *not* reset.
        scope: where it draws: ⌊pm⌋ over all parameters (``global``), or ⌊p·m_t⌋ within each tensor t (``tensor``).

    Raises:
        UsageError: on training: p outside (0, 1] or so small that it selects nothing, or an unknown scope.

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.training import replicas
        >>> replicas.train(problems.load("digits"), FineTuning(MixoutReset(0.01), steps=2)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: AnyScope = "global"

    name: ClassVar[str] = "mixout-reset"
    vectors: ClassVar[int] = 3  # scores, mask and what ranks them

    def begin(self, run: Run) -> Course:
        draws = Scope.of(self.scope).alike(run.uniform(), run.shapes)
        return Projected(run, lambda values, _: draws.expand(len(values), -1), self.sparsity, self.scope)
