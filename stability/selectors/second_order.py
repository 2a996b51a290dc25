"""Selection by the second-order approximation method of Fu et al. (SAM; not sharpness-aware minimisation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stability.checks import check_choice, check_number, check_whole
from stability.derivatives.curvature import Curvature, diagonal
from stability.derivatives.gradients import gauss_newton_diagonals, mean_gradient, per_example_gradients, total
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

    The other two estimate h. Where h_j ≤ 0 the approximation falls without bound along j and Theorem 3 does not apply; and
    where h_j is near 0 the error of its estimate would decide. The rule here divides by |h_j|, as the paper's formula and
    saddle-free Newton do (Dauphin et al. 2014), but by no less than ``floor`` times the mean of |h| over all coordinates.
    With ``floor=0`` that is Theorem 3's rule to the letter; with a very large one it is the paper's g².

    When z_i is left out, the mask is chosen anew. For the constant curvature the same sum of gradients serves for all i:
    nL(θ) − ℓ_i(θ). Mini-batches stay those of S, paired like the steps of training: z_i is taken out of them, and their
    means run over the examples that remain.

    The code of Fu et al. sums the gradients of 600 mini-batches instead of those of S: ``batches=600, batch_size=16``. Where
    the batches take every example equally often, the masks are the same. Dropout is on in that code and off here.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: where coordinates compete: over all parameters (``global``), or within each tensor (``tensor``).
        curvature: ``constant`` for h = 1; ``gauss_newton`` for the exact diagonal of the Gauss–Newton matrix;
            ``hutchinson`` for an estimate of the Hessian's diagonal.
        probes: the number of random vectors in Hutchinson's estimate, at least 2.
        floor: the least |h_j| that counts, as a multiple of the mean of |h|; finite and at least 0. None stands for 0 with
            ``gauss_newton`` and for 1 with ``hutchinson``: with 100 probes the estimate's standard error on ``digits`` is about
            the mean of |h|, so that below it chance would choose.
        batches: the number of mini-batches of shuffled S whose mean gradients are summed; None for the whole of S, once.
        batch_size: the number of examples in each mini-batch.

    Raises:
        UsageError: a setting out of range; on selecting: p outside (0, 1] or so small that it selects nothing, or an unknown
            scope.

    Example:
        >>> from stability.problems import load
        >>> SAM(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float = field()
    scope: Scope = "global"
    _: KW_ONLY
    curvature: Literal["constant", "gauss_newton", "hutchinson"] = "constant"
    probes: int = 100
    floor: float | None = None
    batches: int | None = None
    batch_size: int = 16

    uses_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice(("constant", "gauss_newton", "hutchinson"), curvature=self.curvature)
        if self.floor is not None:
            check_number(0, floor=self.floor)
        check_whole(2, probes=self.probes)
        check_whole(1, batch_size=self.batch_size, **({} if self.batches is None else {"batches": self.batches}))

    @property
    def name(self) -> str:
        return "sam" if self.curvature == "constant" else f"sam-{self.curvature}"

    def settings(self) -> dict[str, Any]:
        """What defines the selector, without the settings that its curvature and its batches do not use."""
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
        """Σ_i ∇ℓ_i at the start over the pretrained coordinates, each example weighted by its share, (m,)."""
        start = problem.start(seed)
        if shares is None:
            return problem.n * mean_gradient(problem, start, problem.train)[: problem.m]
        return total(_weighted(per_example_gradients(problem, start, problem.train, Mask.full(problem.pretrained)), shares))

    def _shares(self, n: int, seed: int, without: int | None = None) -> Tensor | None:
        """The weight of each example that remains in the sum of the batches' mean gradients: float64, (n,) or (n − 1,). None
        for the whole of S, where all weights are 1.
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
            # A gradient without curvature ranks above all others, by gradient. Without a gradient nothing is gained: 0, not 0/0.
            ratios = torch.where(torch.isinf(ratios), torch.finfo(ratios.dtype).max * (scores / scores.max()), ratios)
            scores = torch.where(scores > 0, ratios, scores)
        return top_k(_named(scores, problem.pretrained), self.sparsity, self.scope)


@dataclass(frozen=True)
class Fisher(Selector):
    """The ⌊pm⌋ coordinates of largest mean_i (∂ℓ_i/∂θ_j)², the diagonal of the *empirical* Fisher matrix at θ⁰.

    These are FISH masks (Sung, Nair & Raffel 2021) with the labels of S in the place of labels drawn from the model; Xu et al.
    2021 choose child networks by the same diagonal. SAM squares the mean of the gradients, and this is the mean of their
    squares: examples whose gradients oppose each other count here and cancel there. Sums over S are taken in float64.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: where coordinates compete: over all parameters (``global``), or within each tensor (``tensor``).

    Raises:
        UsageError: on selecting: p outside (0, 1] or so small that it selects nothing, or an unknown scope.

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
    """Each block of per-example gradients, every row times its example's share, float64."""
    for part in parts:
        mine, shares = shares[: len(part)], shares[len(part) :]
        yield part.double() * mine.to(part.device).unsqueeze(1)


def _named(vector: Tensor, like: Parameters) -> dict[str, Tensor]:
    """``vector``, (m,), in the names and shapes of ``like``."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}
