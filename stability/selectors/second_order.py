"""Selection by the second-order approximation method of Fu et al. (SAM; not sharpness-aware minimisation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stability.checks import check_choice, check_number, check_whole, those_given
from stability.derivatives.curvature import Curvature, diagonal
from stability.derivatives.gradients import gauss_newton_diagonals, per_example_gradients, total
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Problem, generator, shuffled_batches
from stability.selectors.scored import Calibrated, Evidence

__all__ = ["SAM"]


@dataclass(frozen=True)
class SAM(Calibrated):
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
        curvature: ``constant`` for h = 1; ``gauss_newton`` for the exact diagonal of the Gauss–Newton matrix;
            ``hutchinson`` for an estimate of the Hessian's diagonal.
        probes: the number of random vectors in Hutchinson's estimate, at least 2.
        floor: the least |h_j| that counts, as a multiple of the mean of |h|; finite and at least 0. None stands for 0 with
            ``gauss_newton`` and for 1 with ``hutchinson``: with 100 probes the estimate's standard error on ``digits`` is about
            the mean of |h|, so that below it chance would choose.
        batches: the number of mini-batches of shuffled S whose mean gradients are summed; None for the whole of S, once. They
            take the place of the calibration's settings.
        batch_size: the number of examples in each mini-batch.

    Raises:
        UsageError: a setting out of range; on selecting: p outside (0, 1] or so small that it selects nothing, or an unknown
            scope.

    Example:
        >>> from stability.problems import load
        >>> SAM(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    _: KW_ONLY
    curvature: Literal["constant", "gauss_newton", "hutchinson"] = "constant"
    probes: int = 100
    floor: float | None = None
    batches: int | None = None
    batch_size: int = 16

    formula: ClassVar[str] = "g² / |h|"
    source: ClassVar[str] = "Fu et al. 2023"
    passes: ClassVar[str] = "1 backward; h by `gauss_newton` C of each example, by `hutchinson` 100 Hessian products"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(("constant", "gauss_newton", "hutchinson"), curvature=self.curvature)
        if self.floor is not None:
            check_number(0, floor=self.floor)
        check_whole(2, probes=self.probes)
        check_whole(1, batch_size=self.batch_size, **those_given(batches=self.batches))
        if self.batches is not None and (self.examples, self.split, self.labels) != (None, "train", "true"):
            raise UsageError(
                f"batches = {self.batches} are of all of S and its labels: leave examples, split and labels out, or batches"
            )

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

    def score(self, at: Evidence) -> Tensor:
        scores, h = at.gradient**2, self._curvature(at)
        if h is not None:
            ratios = scores / h.abs().clamp_min(self._floor * h.abs().mean())
            # A gradient without curvature ranks above all others, by gradient. Without a gradient nothing is gained: 0, not 0/0.
            ratios = torch.where(torch.isinf(ratios), torch.finfo(ratios.dtype).max * (scores / scores.max()), ratios)
            scores = torch.where(scores > 0, ratios, scores)
        return scores

    def _calibration(self, problem: Problem, seed: int) -> tuple[Evidence, Tensor]:
        if self.batches is None:
            return super()._calibration(problem, seed)
        return self._of_batches(problem, seed), torch.arange(problem.n)

    def _each_without(self, at: Evidence, places: Sequence[int]) -> Iterator[Evidence]:
        if self.batches is not None:
            return (self._of_batches(at.problem, at.seed, without=i) for i in places)
        if self.curvature != "constant":
            return (at.without(i) for i in places)
        return super()._each_without(at, places)

    def _of_batches(self, problem: Problem, seed: int, without: int | None = None) -> Evidence:
        """The evidence with the sum of the mini-batches' mean gradients, each example weighted by its share."""
        shares = torch.zeros(problem.n, dtype=torch.float64)
        assert self.batches is not None
        for batch in shuffled_batches(problem.n, self.batch_size, self.batches, generator(seed, "selection")):
            kept = batch[batch != without] if without is not None else batch
            shares += torch.bincount(kept, minlength=problem.n) / max(1, len(kept))  # an example may be in it twice
        at = Evidence(problem, seed)
        if without is not None:
            at, shares = at.without(without), torch.cat([shares[:without], shares[without + 1 :]])
        blocks = per_example_gradients(at.problem, at.start, at.problem.train, Mask.full(problem.pretrained))
        return at.knowing(gradient=total(_weighted(blocks, shares)))

    def _curvature(self, at: Evidence) -> Tensor | None:
        """h up to a constant factor, which changes no order, (m,); None where it is constant."""
        if self.curvature == "constant":
            return None
        where = (at.problem, at.start, at.problem.train, Mask.full(at.problem.pretrained))
        if self.curvature == "gauss_newton":
            return total(gauss_newton_diagonals(*where))
        return diagonal(Curvature(*where), self.probes, at.seed).value.to(at.theta.device)


def _weighted(parts: Iterator[Tensor], shares: Tensor) -> Iterator[Tensor]:
    """Each block of per-example gradients, every row times its example's share, float64."""
    for part in parts:
        mine, shares = shares[: len(part)], shares[len(part) :]
        yield part.double() * mine.to(part.device).unsqueeze(1)
