"""Selection by projection: train all parameters, project onto the best mask now and then, and train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stability.checks import check_flags, check_number, check_whole, those_given
from stability.errors import UsageError
from stability.machine import pieces
from stability.selectors.base import Moving
from stability.selectors.moving import Course, Optimizer, Projected, Run, check_burn_in
from stability.selectors.scope import AnyScope
from stability.selectors.top_k import top_k_of_rows

__all__ = ["ChildPruning", "DiffPruning", "LotteryTicket", "Movement"]


@dataclass(frozen=True)
class ChildPruning(Moving):
    """The ⌊pm⌋ parameters that full steps move farthest, by |θ − θ⁰| (Xu et al. 2021; Mostafa & Wang 2019; Fu et al. 2023,
    Table 1, *ChildPruning*).

    All parameters are trained, and every ``every`` steps those outside the top-k of |θ − θ⁰| return to θ⁰. Without a burn-in
    that goes on to the end, where the last projection is made. With one, the mask of step ``burn_in`` stays and is trained
    alone from there.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: which coordinates compete: all (``global``), those of each tensor (``tensor``), or as a :class:`Scope` says.
        every: the number of steps between projections. With 1 rounding decides a part of the first mask, because the first
            step of AdamW with a learning rate above 0 moves every coordinate by the same amount; the noise floor shows it.
        burn_in: the step from which on the mask is fixed; None where it moves to the end.
        reset: whether the kept parameters and the head return to their start at ``burn_in`` too, and are trained from there.

    Raises:
        UsageError: a number below 1, or a reset without a burn-in; on training: a burn-in that leaves no step, p outside
            (0, 1] or so small that it selects nothing, or an unknown scope.

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.training import replicas
        >>> replicas.train(problems.load("digits"), FineTuning(ChildPruning(0.01), steps=12)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: AnyScope = "global"
    _: KW_ONLY
    every: int = 2
    burn_in: int | None = None
    reset: bool = False

    name: ClassVar[str] = "childpruning"
    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 3  # scores, mask and what ranks them

    def __post_init__(self) -> None:
        check_whole(1, every=self.every, **those_given(burn_in=self.burn_in))
        check_flags(reset=self.reset)
        if self.reset and self.burn_in is None:
            raise UsageError("reset = True without a burn_in, after which it returns to θ⁰: leave it out, or give a burn_in")

    def begin(self, run: Run) -> Course:
        if self.burn_in is not None:
            check_burn_in(self.name, self.burn_in, run.steps)
        return Projected(run, _moved, self.sparsity, self.scope, every=self.every, burn_in=self.burn_in, reset=self.reset)


def _moved(values: Tensor, origin: Tensor) -> Tensor:
    return (values - origin).abs()


@dataclass(frozen=True)
class LotteryTicket(Moving):
    """The ⌊pm⌋ parameters of largest |θ − θ⁰| after full training, which then return to θ⁰ and are trained alone
    (Ansell et al. 2022, *LT-SFT*; Frankle & Carbin 2019).

    Everything is trained for ``burn_in`` steps, which choose the mask and are then forgotten: all parameters, the head and the
    optimizer begin anew, on the mask alone. It is :class:`ChildPruning` with a reset and no projection before.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: which coordinates compete: all (``global``), those of each tensor (``tensor``), or as a :class:`Scope` says.
        burn_in: the number of steps of full training; Ansell et al. take as many as follow.

    Raises:
        UsageError: ``burn_in`` is below 1; on training: it leaves no step, or p or scope do not fit.

    Example:
        >>> from stability import FineTuning, load, train
        >>> train(load("digits"), FineTuning(LotteryTicket(0.01, burn_in=4), steps=8)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: AnyScope = "global"
    _: KW_ONLY
    burn_in: int = 50

    name: ClassVar[str] = "lt-sft"
    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 3  # scores, mask and what ranks them

    def __post_init__(self) -> None:
        check_whole(1, burn_in=self.burn_in)

    def begin(self, run: Run) -> Course:
        check_burn_in(self.name, self.burn_in, run.steps)
        return Projected(run, _moved, self.sparsity, self.scope, burn_in=self.burn_in, reset=True)


@dataclass(frozen=True)
class Movement(Moving):
    """The ⌊pm⌋ parameters of largest −Σ_t g_t θ_t over the steps of full training: those that move away from 0
    (Sanh, Wolf & Rush 2020, *Movement pruning*).

    g_t is the gradient of the objective at θ_t, on the batch of step t < ``burn_in``. The sign counts: a parameter that moves
    towards 0 has a negative score. Then the mask is fixed, all parameters and the head return to their start, and the mask alone
    is trained. Sanh et al. train scores and weights together, and set what is not chosen to 0; here it returns to θ⁰.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: which coordinates compete: all (``global``), those of each tensor (``tensor``), or as a :class:`Scope` says.
        burn_in: the number of steps of full training.

    Raises:
        UsageError: ``burn_in`` is below 1; on training: it leaves no step, or p or scope do not fit.

    Example:
        >>> from stability import FineTuning, load, train
        >>> train(load("digits"), FineTuning(Movement(0.01, burn_in=4), steps=8)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: AnyScope = "global"
    _: KW_ONLY
    burn_in: int = 50

    name: ClassVar[str] = "movement"
    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 4  # the sum, scores, mask and what ranks them

    def __post_init__(self) -> None:
        check_whole(1, burn_in=self.burn_in)

    def begin(self, run: Run) -> Course:
        check_burn_in(self.name, self.burn_in, run.steps)
        return _Summed(run, self)


class _Summed(Projected):
    """Full training that adds up −g θ until the mask is chosen."""

    def __init__(self, run: Run, method: Movement) -> None:
        # In a list, for a score that held on to this course would keep its memory to the end.
        self._sum = total = [torch.zeros(run.rows, run.m).to(run.origin)]
        super().__init__(run, lambda *_: total[0], method.sparsity, method.scope, burn_in=method.burn_in, reset=True)

    def step(self, gradient: Tensor) -> None:
        if self.mask is None:
            m = self._run.m
            self._sum[0] = self._sum[0] - gradient[:, :m] * self.point()[:, :m]
        super().step(gradient)


@dataclass(frozen=True)
class DiffPruning(Moving):
    """A mask of relaxed Bernoulli gates, trained with the difference, then projected to the ⌊pm⌋ likeliest
    (Guo, Rush & Kim 2021, sections 3.1 to 3.2; Louizos, Welling & Kingma 2018; Fu et al. 2023, Table 1, *DiffPruning*).

    While the mask is *relaxed* the model is θ⁰ + z ⊙ w. Its hard-concrete gates are z_j = min(1, max(0, s_j (r − l) + l)) with
    s_j = σ(log u_j − log(1 − u_j) + a_j), u_j uniform and drawn anew each step. w and the gates' a are trained on the objective
    plus ``l0`` times the mean probability of an open gate, mean_j σ(a_j − log(−l/r)). *Projection* keeps the coordinates of
    largest a_j and returns the others to θ⁰. From then on the mask is *hard*: z = 1 on it, and w is trained alone.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: where gates compete: over all parameters (``global``), or within each tensor (``tensor``, as the code of Fu et
            al. does).
        burn_in: the number of relaxed steps before each projection, at least 2: in the first one w = 0, so that no gate's
            gradient differs from another's. With a warm-up at least 3, for its first step moves nothing.
        every: the number of steps after which the mask is relaxed again, and so projected anew; None for one projection only.
        l0: the weight of the gates' penalty, at least 0.
        stretch: (l, r) with l < 0 and r > 1, the interval that the gates are stretched to. Guo et al. use (−1.5, 1.5).
        gate_start: a_j at the start, for every gate. The median gate of the first step is σ(gate_start) (r − l) + l, cut to
            [0, 1].

    Raises:
        UsageError: a number out of range; on training: a burn-in that leaves no step, p outside (0, 1] or so small that it
            selects nothing, or an unknown scope.

    Example:
        >>> from stability import FineTuning, problems
        >>> from stability.training import replicas
        >>> replicas.train(problems.load("digits"), FineTuning(DiffPruning(0.01, burn_in=4), steps=6)).masks[0].count
        264
    """

    sparsity: float = field()
    scope: AnyScope = "global"
    _: KW_ONLY
    burn_in: int = 50
    every: int | None = None
    l0: float = 1.0
    stretch: tuple[float, float] = (-1.5, 1.5)
    gate_start: float = 0.0

    name: ClassVar[str] = "diffpruning"
    uses_data: ClassVar[bool] = True
    vectors: ClassVar[int] = 9  # gates with two moments, their slope and gradient, the point, and temporaries

    def __post_init__(self) -> None:
        check_whole(2, burn_in=self.burn_in, **those_given(every=self.every))
        check_number(0, l0=self.l0)
        check_number(gate_start=self.gate_start)
        if self.every is not None and self.every <= self.burn_in:
            raise UsageError(f"every = {self.every} is not above burn_in = {self.burn_in}, the relaxed steps: use a larger every")
        if isinstance(self.stretch, str) or not isinstance(self.stretch, Sequence) or len(self.stretch) != 2:
            raise UsageError(f"stretch = {self.stretch!r}: use two numbers, on the command line as [-1.5,1.5]")
        check_number(**{"stretch l": self.stretch[0], "stretch r": self.stretch[1]})
        if not self.stretch[0] < 0 < 1 < self.stretch[1]:
            raise UsageError(f"stretch = {self.stretch}: use (l, r) with l < 0 and r > 1, or no gate is ever quite shut or open")

    def begin(self, run: Run) -> Course:
        check_burn_in(self.name, self.burn_in, run.steps)
        return _Gated(run, self)


class _Gated(Course):
    """Differences with gates. The gates' gradients are written out, because the engine differentiates by the point alone."""

    def __init__(self, run: Run, method: DiffPruning) -> None:
        self._run, self._method = run, method
        last = (run.steps - 1) // method.every * method.every if method.every else 0  # the step that relaxes the mask the last time
        self.settles = last + method.burn_in if last + method.burn_in < run.steps else None
        self._values = run.start()
        self._alpha = torch.full((run.rows, run.m), method.gate_start).to(run.origin)
        self.optimizer: Optimizer = run.optimizer(self._values)
        self._alpha_optimizer = run.optimizer(self._alpha, decay=False)
        self._step = 0
        self._gates, self._slopes = torch.empty_like(self._values), torch.empty_like(self._alpha)
        self._held: Tensor | None = None  # which of K may change while the mask is hard
        self._odd = torch.zeros(run.rows, dtype=torch.bool, device=run.origin.device)  # per row whether there was no choice

    @property
    def relaxed(self) -> bool:
        return self._place < self._method.burn_in

    def point(self) -> Tensor:
        low, high = self._method.stretch
        if not self.relaxed:
            return self._values
        for part, draw in self._run.uniforms():
            s = (draw.to(self._alpha).clamp_(1e-6, 1 - 1e-6).logit_() + self._alpha[:, part]).sigmoid_()
            stretched = (s * (high - low)).add_(low)
            inside = (stretched > 0).logical_and_(stretched < 1)
            torch.mul((1 - s).mul_(s).mul_(high - low), inside, out=self._slopes[:, part])
            torch.clamp(stretched, 0, 1, out=self._gates[:, part])
        self._gates[:, self._run.m :] = 1
        return self._run.gated(self._values, self._gates)

    def step(self, gradient: Tensor) -> None:
        m, method = self._run.m, self._method
        if self.relaxed:
            shift = math.log(-method.stretch[0] / method.stretch[1])
            for part in pieces(m, self._values.device, len(self._values)):
                moved = self._values[:, part] - self._run.origin[part]
                opened = (self._alpha[:, part] - shift).sigmoid_()
                slope = self._slopes[:, part].mul_(moved.mul_(gradient[:, part]))
                slope.add_((1 - opened).mul_(opened.mul_(method.l0 / m)))
            self._alpha = self._alpha_optimizer.update(self._alpha, self._slopes)
            self._values = self.optimizer.update(self._values, self._gates.mul_(gradient))
        elif self._held is not None:
            self._values = torch.where(self._held, self.optimizer.update(self._values, gradient * self._held), self._values)
        self._step += 1
        if self._place == method.burn_in:
            least, most = self._alpha.aminmax(dim=1)
            self._odd = self._odd | (least == most)
            self._project()

    def final(self) -> tuple[Tensor, Tensor]:
        mask = self._project() if self.relaxed or self.mask is None else self.mask
        if bool(self._odd.any()):
            raise UsageError(
                f"burn_in = {self._method.burn_in}: all gates were alike when the mask was chosen, for no step had moved anything "
                "before; use more steps of burn_in, or no warm-up"
            )
        return self._values, mask

    @property
    def _place(self) -> int:
        """The step within its period."""
        return self._step % self._method.every if self._method.every else self._step

    def _project(self) -> Tensor:
        self.mask = top_k_of_rows(self._alpha, self._run.shapes, self._method.sparsity, self._method.scope)
        self._held = self._run.held(self.mask)
        self._values = self._run.put_back(self._values, self.mask)
        return self.mask
