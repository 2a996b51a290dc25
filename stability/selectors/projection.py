"""Selection by projection: train more than the mask, project onto the best mask, go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stability.checks import check_flags, check_number, check_whole
from stability.errors import UsageError
from stability.selectors.base import Moving
from stability.selectors.course import Course, Projected, Run, check_burn_in
from stability.selectors.top_k import Scope, top_k_of_rows

__all__ = ["ChildPruning", "DiffPruning"]


@dataclass(frozen=True)
class ChildPruning(Moving):
    """The ⌊pm⌋ parameters that full steps move farthest, |θ − θ⁰| (Xu et al. 2021; Mostafa & Wang 2019; Fu et al. 2023,
    Table 1, *ChildPruning*).

    Every ``every`` steps of training all parameters, those outside the top-k of |θ − θ⁰| return to θ⁰. Without a burn-in
    that goes on to the end, where the last projection is. With one, the mask of step ``burn_in`` stays and is trained alone.

    Attributes:
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``) or within each tensor (``tensor``).
        every: steps between projections. With 1 the first mask is a matter of rounding, for AdamW's first step moves every
            coordinate by the same amount; the noise floor shows it.
        burn_in: the step from which on the mask is fixed; None for never.
        reset: at ``burn_in`` return to θ⁰ and train the mask from there.

    Raises:
        UsageError: a number below 1, or a reset without a burn-in; on training: a burn-in that leaves no step.

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.training import replicas
        >>> replicas.train(problems.load("digits"), FineTuning(ChildPruning(0.01), steps=12)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"
    every: int = 2
    burn_in: int | None = None
    reset: bool = False

    name: ClassVar[str] = "childpruning"
    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 3  # scores, mask and what ranks them

    def __post_init__(self) -> None:
        check_whole(1, every=self.every, **({} if self.burn_in is None else {"burn_in": self.burn_in}))
        check_flags(reset=self.reset)
        if self.reset and self.burn_in is None:
            raise UsageError("reset returns to θ⁰ after the burn-in, and there is none: leave it out, or give a burn_in")

    def begin(self, run: Run) -> Course:
        if self.burn_in is not None:
            check_burn_in(self.name, self.burn_in, run.steps)
        return Projected(run, _moved, self.sparsity, self.scope, self.every, self.burn_in, self.reset)


def _moved(values: Tensor, origin: Tensor) -> Tensor:
    return (values - origin).abs()


@dataclass(frozen=True)
class DiffPruning(Moving):
    """A mask of relaxed Bernoulli gates, trained with the difference, then projected to the ⌊pm⌋ likeliest
    (Guo, Rush & Kim 2021, sections 3.1 to 3.2; Louizos, Welling & Kingma 2018; Fu et al. 2023, Table 1, *DiffPruning*).

    While the mask is *relaxed* the model is θ⁰ + z ⊙ w, with hard-concrete gates z_j = min(1, max(0, s_j (r − l) + l)),
    s_j = σ(log u_j − log(1 − u_j) + a_j), u_j uniform and drawn anew each step; w and the gates' a are trained on the
    objective plus ``l0`` times the mean probability of an open gate, mean_j σ(a_j − log(−l/r)). *Projection* keeps the
    coordinates of largest a_j and puts the others back to θ⁰. Then the mask is *hard*, z = 1 on it, and w is trained alone.

    Attributes:
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``) or within each tensor (``tensor``, as in the code of Fu et al.).
        burn_in: relaxed steps before each projection, at least 2: in the first w = 0, and all gates fare alike.
        every: relax again, and so project anew, every so many steps; None: only once.
        l0: weight of the gates' penalty.
        stretch: (l, r) with l < 0 and r > 1. Guo et al. take (−1.5, 1.5).
        gate_start: a at the start; σ(gate_start) stretched is the first gates' middle.

    Raises:
        UsageError: a number out of range; on training: a burn-in that leaves no step.

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.training import replicas
        >>> replicas.train(problems.load("digits"), FineTuning(DiffPruning(0.01, burn_in=4), steps=6)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"
    burn_in: int = 50
    every: int | None = None
    l0: float = 1.0
    stretch: tuple[float, float] = (-1.5, 1.5)
    gate_start: float = 0.0

    name: ClassVar[str] = "diffpruning"
    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 9  # gates with two moments, their slope and gradient, the point, and temporaries

    def __post_init__(self) -> None:
        check_whole(2, burn_in=self.burn_in, **({} if self.every is None else {"every": self.every}))
        check_number(0, l0=self.l0)
        check_number(gate_start=self.gate_start)
        if self.every is not None and self.every <= self.burn_in:
            raise UsageError(f"every = {self.every} steps the mask relaxes for burn_in = {self.burn_in}: use a larger every")
        if isinstance(self.stretch, str) or not isinstance(self.stretch, Sequence) or len(self.stretch) != 2:
            raise UsageError(f"stretch = {self.stretch!r}: give two numbers, on the command line as [-1.5,1.5]")
        check_number(l=self.stretch[0], r=self.stretch[1])
        if not self.stretch[0] < 0 < 1 < self.stretch[1]:
            raise UsageError(f"stretch = {self.stretch}: use (l, r) with l < 0 and r > 1, or no gate is ever quite shut or open")

    def begin(self, run: Run) -> Course:
        check_burn_in(self.name, self.burn_in, run.steps)
        return _Gated(run, self)


class _Gated(Course):
    """Differences with gates; the gates' slopes are written out, for autograd knows nothing of them."""

    def __init__(self, run: Run, method: DiffPruning) -> None:
        self._run, self._method = run, method
        self._values = run.start()
        self._alpha = torch.full((run.rows, run.m), method.gate_start).to(run.origin)
        self._optimizer, self._alpha_optimizer = run.optimizer(self._values), run.optimizer(self._alpha, decay=False)
        self._step = 0
        self._gates = self._slopes = run.origin
        self._held: Tensor | None = None  # which of K may change while the mask is hard

    def point(self) -> Tensor:
        low, high = self._method.stretch
        if not self.relaxed:
            return self._values
        draw = self._run.uniform().to(self._alpha).clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid(torch.logit(draw) + self._alpha)
        stretched = s * (high - low) + low
        self._gates = self._run.with_head(stretched.clamp(0, 1))
        self._slopes = torch.where((stretched > 0) & (stretched < 1), s * (1 - s) * (high - low), 0)
        return self._run.origin + self._gates * (self._values - self._run.origin)

    def step(self, gradient: Tensor) -> None:
        m, method = self._run.m, self._method
        if self.relaxed:
            moved = (self._values - self._run.origin)[:, :m]
            opened = torch.sigmoid(self._alpha - math.log(-method.stretch[0] / method.stretch[1]))
            slope = gradient[:, :m] * moved * self._slopes + method.l0 / m * opened * (1 - opened)
            self._alpha = self._alpha_optimizer.update(self._alpha, slope)
            self._values = self._optimizer.update(self._values, self._gates * gradient)
        elif self._held is not None:
            self._values = torch.where(self._held, self._optimizer.update(self._values, gradient * self._held), self._values)
        self._step += 1
        if self._place == method.burn_in:
            self._project()

    def final(self) -> tuple[Tensor, Tensor]:
        mask = self._project() if self.relaxed or self.mask is None else self.mask
        return self._values, mask

    @property
    def _place(self) -> int:
        """The step within its period."""
        return self._step % self._method.every if self._method.every else self._step

    @property
    def relaxed(self) -> bool:  # type: ignore[override]
        return self._place < self._method.burn_in

    def _project(self) -> Tensor:
        self.mask = top_k_of_rows(self._alpha, self._run.sizes, self._method.sparsity, self._method.scope)
        self._held = self._run.held(self.mask)
        self._values = self._run.put_back(self._values, self.mask)
        return self.mask
