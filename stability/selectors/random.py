"""Selection by chance: before training, at every step of it, and after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stability.checks import check_number
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Problem, generator
from stability.selectors.base import Moving, Selector
from stability.selectors.course import Course, Projected, Run
from stability.selectors.top_k import Scope, top_k

__all__ = ["Mixout", "MixoutReset", "Random"]


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


@dataclass(frozen=True)
class Mixout(Moving):
    """At every step each parameter is θ⁰'s with probability q (Lee, Cho & Kang 2020, *Mixout*, eq. 4 ff.).

    The loss and its gradient are taken at θ⁰ + b/(1 − q) · (θ − θ⁰), b_j ~ Bernoulli(1 − q) drawn anew for every
    coordinate and step: the correction 1/(1 − q) makes θ its expectation. In the end θ itself is the model, every
    coordinate of it trained: k = m. The new head, which has no θ⁰, is not mixed. See :class:`MixoutReset` for the
    form that Fu et al. 2023 use.

    Attributes:
        probability: q ∈ [0, 1) of going back to θ⁰; Lee et al. take 0.7 to 0.9.

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
        check_number(probability=self.probability)
        if not 0 <= self.probability < 1:
            raise UsageError(f"mixout's probability = {self.probability} is outside [0, 1): it is that of going back to θ⁰")

    def begin(self, run: Run) -> Course:
        return _Mixed(run, self.probability)


class _Mixed(Course):
    relaxed = True

    def __init__(self, run: Run, probability: float) -> None:
        self._run, self._probability = run, probability
        self._values = run.start()
        self._optimizer = run.optimizer(self._values)
        self._gates = run.origin

    def point(self) -> Tensor:
        keep = (self._run.uniform() >= self._probability).to(self._values)
        self._gates = self._run.with_head(keep / (1 - self._probability))
        return self._run.origin + self._gates * (self._values - self._run.origin)

    def step(self, gradient: Tensor) -> None:
        self._values = self._optimizer.update(self._values, self._gates * gradient)

    def final(self) -> tuple[Tensor, Tensor]:
        return self._values, torch.ones(self._run.rows, self._run.m, dtype=torch.bool, device=self._values.device)


@dataclass(frozen=True)
class MixoutReset(Moving):
    """Full fine-tuning, then all but ⌊pm⌋ randomly drawn coordinates go back to θ⁰ (Fu et al. 2023, Table 1, *Mixout*).

    What Fu et al. call Mixout "resets a portion of the fine-tuned parameters to the pretrained ones", and their code
    does so at evaluation alone. Nothing is trained after the reset.

    Attributes:
        sparsity: p ∈ (0, 1], the portion that is *not* reset.
        scope: draw over all parameters (``global``), or the same portion of each tensor (``tensor``).

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.training import replicas
        >>> replicas.train(problems.load("digits"), FineTuning(MixoutReset(0.01), steps=2)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"

    name: ClassVar[str] = "mixout-reset"
    vectors: ClassVar[int] = 3

    def begin(self, run: Run) -> Course:
        draws = run.uniform()
        return Projected(run, lambda values, _: draws.expand(len(values), -1), self.sparsity, self.scope)
