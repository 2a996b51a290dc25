"""Selection by dropping and regrowing: k parameters are trained all the time, and now and then some of them are exchanged."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stability.checks import check_fraction, check_whole
from stability.errors import UsageError
from stability.selectors.base import Moving
from stability.selectors.moving import Course, Optimizer, Run
from stability.selectors.scope import AnyScope, Scope
from stability.selectors.top_k import regrown, top_k_of_rows

__all__ = ["RigL", "SpIEL"]


@dataclass(frozen=True)
class _Regrown(Moving):
    sparsity: float = field()
    scope: AnyScope = "global"
    _: KW_ONLY
    every: int = 20

    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 5  # the sum, both rankings, the mask and what ranks it

    def __post_init__(self) -> None:
        check_whole(1, every=self.every)
        if isinstance(self.scope, Scope) and self.scope.unit != "coordinate":
            raise UsageError(f"{self.name} exchanges single coordinates: leave unit = {self.scope.unit!r} out")

    @abstractmethod
    def exchanged(self, step: int, steps: int) -> float:
        """The share of the mask that is exchanged after a step; 0 for nothing."""

    @abstractmethod
    def counts(self, step: int) -> bool:
        """Whether the gradient of a step counts for the next exchange. Steps are counted from 1."""

    def begin(self, run: Run) -> Course:
        return _Exchanging(run, self)


@dataclass(frozen=True)
class SpIEL(_Regrown):
    """k parameters, of which those with the least |θ − θ⁰| are now and then exchanged for those of the largest accumulated gradient
    (Ansell et al. 2024, *SpIEL-AG*).

    Training begins with k = ⌊pm⌋ random parameters. After ``accumulated`` steps all of them may be exchanged, and after that
    ⌊rate (1 − t/T) k⌋ in each ``every``-th step t of T. The parameters that leave return to θ⁰. Those that enter have the largest
    |Σ g| over the last ``accumulated`` steps among all that do not stay, so that one that would leave may also stay.
    AdamW's moments begin at 0 for a parameter that enters for the first time; of one that returns, what is left of them goes on.
    Ansell et al. look at k candidates in place of all parameters, to save memory. Their code exchanges within each linear layer,
    and starts the moments of a parameter that enters from its accumulated gradients. Here all parameters compete where no scope
    is given.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: which coordinates compete: all (``global``), those of each tensor (``tensor``), or as a :class:`Scope` says.
            Exchanges are made within each group.
        every: the number of steps between exchanges.
        rate: the share of the mask that would be exchanged at the very start, in (0, 1).
        accumulated: the number of steps whose gradients are added up before each exchange; at most ``every``.

    Raises:
        UsageError: a number out of range, or a scope with units; on training: p or scope do not fit.

    Example:
        >>> from stability import FineTuning, load, train
        >>> train(load("digits"), FineTuning(SpIEL(0.01, every=4, accumulated=2), steps=8)).masks[0].count
        264
    """

    _: KW_ONLY
    rate: float = 0.2
    accumulated: int = 5

    name: ClassVar[str] = "spiel"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(rate=self.rate)
        check_whole(1, self.every, "an exchange needs gradients of its own", accumulated=self.accumulated)

    def exchanged(self, step: int, steps: int) -> float:
        if step == self.accumulated:
            return 1.0
        return self.rate * (1 - step / steps) if step > self.accumulated and step % self.every == 0 else 0.0

    def counts(self, step: int) -> bool:
        return step <= self.accumulated or -step % self.every < self.accumulated


@dataclass(frozen=True)
class RigL(_Regrown):
    """k parameters, of which those with the least |θ − θ⁰| are now and then exchanged for those of the largest |g|
    (Evci et al. 2020, *RigL*, for fine-tuning).

    Training begins with k = ⌊pm⌋ random parameters. In each ``every``-th step t < ¾T of T, ⌊rate/2 (1 + cos(πt / ¾T)) k⌋ of them
    leave, return to θ⁰, and as many enter, by the gradient of that step. RigL starts from an empty network and drops the least |θ|;
    here θ⁰ takes the place of 0. ``Scope("tensor", budget="erk")`` is its distribution over tensors. AdamW's moments are as in
    :class:`SpIEL`.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: which coordinates compete: all (``global``), those of each tensor (``tensor``), or as a :class:`Scope` says.
            Exchanges are made within each group.
        every: the number of steps between exchanges.
        rate: the share of the mask that would be exchanged at the very start, in (0, 1).

    Raises:
        UsageError: a number out of range, or a scope with units; on training: p or scope do not fit.

    Example:
        >>> from stability import FineTuning, load, train
        >>> train(load("digits"), FineTuning(RigL(0.01, every=2), steps=8)).masks[0].count
        264
    """

    _: KW_ONLY
    rate: float = 0.3

    name: ClassVar[str] = "rigl"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(rate=self.rate)

    def exchanged(self, step: int, steps: int) -> float:
        end = 0.75 * steps
        return self.rate / 2 * (1 + math.cos(math.pi * step / end)) if step % self.every == 0 and step < end else 0.0

    def counts(self, step: int) -> bool:
        return step % self.every == 0


class _Exchanging(Course):
    """r replicas that train what is in their masks. A coordinate outside is always at θ⁰."""

    def __init__(self, run: Run, method: _Regrown) -> None:
        self._run, self._method, self._step = run, method, 0
        exchanges = [step for step in range(1, run.steps + 1) if method.exchanged(step, run.steps)]
        self.settles = max(exchanges, default=0)
        self._values = run.start()
        self.optimizer: Optimizer = run.optimizer(self._values)
        self._sum = torch.zeros(run.rows, run.m).to(run.origin)
        self.mask: Tensor = top_k_of_rows(run.uniform().expand(run.rows, -1), run.shapes, method.sparsity, method.scope)

    def point(self) -> Tensor:
        return self._values

    def step(self, gradient: Tensor) -> None:
        run, method, held = self._run, self._method, self._run.held(self.mask)
        self._values = torch.where(held, self.optimizer.update(self._values, gradient * held), self._values)
        self._step += 1
        if method.counts(self._step):
            self._sum = self._sum + gradient[:, : run.m]
        if share := method.exchanged(self._step, run.steps):
            moved, grown = (self._values - run.origin)[:, : run.m].abs(), self._sum.abs()
            self.mask = regrown(self.mask, moved, grown, run.shapes, sparsity=method.sparsity, scope=method.scope, share=share)
            self._values, self._sum = run.put_back(self._values, self.mask), torch.zeros_like(self._sum)

    def final(self) -> tuple[Tensor, Tensor]:
        return self._values, self.mask
