"""Selection by the second-order approximation method of Fu et al. (SAM; not sharpness-aware minimisation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stability.checks import check_number, check_whole
from stability.derivatives.curvature import Curvature, diagonal
from stability.derivatives.gradients import gauss_newton_diagonals, mean_gradient, per_example_gradients, total
from stability.errors import UsageError
from stability.masks import Mask, Parameters
from stability.problems.problem import Problem, generator, shuffled_batches
from stability.selectors.base import Selector
from stability.selectors.top_k import Scope, top_k

__all__ = ["SAM", "Fisher"]


@dataclass(frozen=True)
class SAM(Selector):
    """The ⌊pm⌋ coordinates of largest |g_j² / h_j|, g = ∇L(θ⁰) over the whole of S (Fu et al. 2023, Theorem 3).

    With H = diag(h), h > 0, they minimise the second-order approximation of the loss over all masks of their size. The
    paper bounds the unknown h by a constant, which leaves the squared gradient: ``curvature="constant"``, the default.
    L is the mean of ℓ over S at θ⁰ and the new head's start; sums over S are taken in float64.

    The other two estimate h. Where h_j ≤ 0 the approximation falls without bound along j and Theorem 3 is silent; and
    an estimate near 0 would let its own error decide. The rule here: |h_j|, as in the paper's formula and as in
    saddle-free Newton (Dauphin et al. 2014), but not less than ``floor`` times its mean over all coordinates. With
    ``floor=0`` it is Theorem 3's rule to the letter, with an endless one the paper's g².

    When z_i is left out the choice is made anew; the constant's from the same sum of gradients: nL(θ) − ℓ_i(θ). Mini-batches
    stay those of S, paired like the steps of training: z_i is taken out of them, and their means run over what remains.

    The code of Fu et al. sums the gradients of 600 mini-batches instead of S's: ``batches=600, batch_size=16``. Where the
    batches take every example equally often the masks are the same; dropout, which is on in that code, is off here.

    Attributes:
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``) or within each tensor (``tensor``).
        curvature: ``constant`` for h = 1; ``gauss_newton`` for the exact diagonal of the Gauss–Newton matrix;
            ``hutchinson`` for that of the Hessian, estimated.
        batches: sum the mean gradients of so many mini-batches of shuffled S; None for the whole of S, once.
        batch_size: examples in each of them.
        probes: of Hutchinson's estimate.
        floor: the least |h_j| that counts, as a multiple of mean |h|; finite and ≥ 0. By default 0 for the exact
            diagonal, and 1 for Hutchinson's: with 100 probes its standard error on ``digits`` is about mean |h|, and
            below it chance would choose.

    Raises:
        UsageError: a setting out of range.

    Example:
        >>> from stability.problems import load
        >>> SAM(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"
    curvature: Literal["constant", "gauss_newton", "hutchinson"] = "constant"
    probes: int = 100
    floor: float | None = None
    batches: int | None = None
    batch_size: int = 16

    uses_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.curvature not in ("constant", "gauss_newton", "hutchinson"):
            raise UsageError(f"unknown curvature {self.curvature!r}: use constant, gauss_newton or hutchinson")
        check_number(0, floor=self._floor)
        check_whole(2, probes=self.probes)
        check_whole(1, batch_size=self.batch_size, **({} if self.batches is None else {"batches": self.batches}))

    @property
    def name(self) -> str:  # type: ignore[override]
        return "sam" if self.curvature == "constant" else f"sam-{self.curvature}"

    def settings(self) -> dict[str, Any]:
        """Without those that are not used."""
        unused = {"constant": ("probes", "floor"), "gauss_newton": ("probes",), "hutchinson": ()}[self.curvature]
        unused += () if self.batches else ("batches", "batch_size")
        return {name: value for name, value in {**super().settings(), "floor": self._floor}.items() if name not in unused}

    @property
    def _floor(self) -> float:
        return float(self.curvature == "hutchinson") if self.floor is None else float(self.floor)

    def select(self, problem: Problem, seed: int) -> Mask:
        return self._select(problem, seed, self._shares(problem.n, seed))

    def _select(self, problem: Problem, seed: int, shares: Tensor | None) -> Mask:
        gradient, h = self._sum(problem, seed, shares), None
        if self.curvature != "constant":
            at = (problem, problem.start(seed), problem.train, Mask.full(problem.pretrained))
            if self.curvature == "gauss_newton":
                h = total(gauss_newton_diagonals(*at))
            else:
                h = diagonal(Curvature(*at), self.probes, seed).value.to(gradient.device)
        return self._choose(problem, gradient, h)

    def select_each_left_out(self, problem: Problem, left_out: Sequence[int], seed: int) -> Iterator[Mask]:
        if self.curvature != "constant" or self.batches:  # h − h_i would cancel where one example bends most
            for i in left_out:
                yield self._select(problem.without(i), seed, self._shares(problem.n, seed, without=i))
            return
        start, mask, gradient = problem.start(seed), Mask.full(problem.pretrained), self._sum(problem, seed)
        chosen = problem.train.take(torch.as_tensor(left_out, dtype=torch.int64))
        for block in per_example_gradients(problem, start, chosen, mask):
            for one in block:
                yield self._choose(problem, gradient - one.double(), None)

    def _sum(self, problem: Problem, seed: int, shares: Tensor | None = None) -> Tensor:
        """Σ_i ∇ℓ_i at the start over the pretrained coordinates, each counted by its share, (m,)."""
        start = problem.start(seed)
        if shares is None:
            return problem.n * mean_gradient(problem, start, problem.train)[: problem.m]
        return total(_weighted(per_example_gradients(problem, start, problem.train, Mask.full(problem.pretrained)), shares))

    def _shares(self, n: int, seed: int, without: int | None = None) -> Tensor | None:
        """What each example that remains counts in the sum of the batches' mean gradients: float64 (n or n − 1,). None for
        the whole of S, where all count alike.
        """
        if self.batches is None:
            return None
        shares = torch.zeros(n, dtype=torch.float64)
        for batch in shuffled_batches(n, self.batch_size, self.batches, generator(seed, "selection")):
            kept = batch[batch != without] if without is not None else batch
            shares += torch.bincount(kept, minlength=n) / max(1, len(kept))  # an example may be in it twice
        return shares if without is None else torch.cat([shares[:without], shares[without + 1 :]])

    def _choose(self, problem: Problem, gradient: Tensor, h: Tensor | None) -> Mask:
        """From sums over S: dividing both by n, or h by any constant, changes no order."""
        scores = gradient**2
        if h is not None:
            ratios = scores / h.abs().clamp_min(self._floor * h.abs().mean())
            # Gradient and no curvature at all: first of all, by gradient. Neither: nothing is gained, 0 and not 0/0.
            ratios = torch.where(torch.isinf(ratios), torch.finfo(ratios.dtype).max * (scores / scores.max()), ratios)
            scores = torch.where(scores > 0, ratios, scores)
        return top_k(_named(scores, problem.pretrained), self.sparsity, self.scope)


@dataclass(frozen=True)
class Fisher(Selector):
    """The ⌊pm⌋ coordinates of largest mean_i (∂ℓ_i/∂θ_j)², the diagonal of the *empirical* Fisher matrix at θ⁰.

    FISH masks (Sung, Nair & Raffel 2021), with the labels of S in the place of the model's own; Xu et al. 2021 choose
    child networks by it. SAM squares the mean of the gradients, this is the mean of their squares: examples that pull
    against each other count here and cancel there. Sums over S are taken in float64.

    Example:
        >>> from stability.problems import load
        >>> Fisher(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"

    name: ClassVar[str] = "fisher"
    uses_data: ClassVar[bool] = True

    def select(self, problem: Problem, seed: int) -> Mask:
        start, mask = problem.start(seed), Mask.full(problem.pretrained)
        blocks = per_example_gradients(problem, start, problem.train, mask)
        return top_k(_named(total(block.double() ** 2 for block in blocks), problem.pretrained), self.sparsity, self.scope)


def _weighted(parts: Iterator[Tensor], shares: Tensor) -> Iterator[Tensor]:
    for part in parts:
        mine, shares = shares[: len(part)], shares[len(part) :]
        yield part.double() * mine.to(part.device).unsqueeze(1)


def _named(vector: Tensor, like: Parameters) -> dict[str, Tensor]:
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}
