"""One-step leave-one-out: all n left-out losses from one trained model, by one Newton step each in the mask's subspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stability.checks import check_positive
from stability.derivatives.gradients import per_example_jacobians, slopes_and_bends
from stability.errors import MeasurementError, UsageError
from stability.masks import Mask, Parameters
from stability.problems.problem import Problem, generator

__all__ = ["OneStepModel"]

_LARGEST = 20_000  # rows of a Gram matrix: 3 GiB in float64, some minutes
_HASHED = 8192
_PASSES = 8  # over all Jacobians, for a Gram matrix of which not all columns fit into memory at once

DAMPINGS = tuple(float(d) for d in np.logspace(-6, 2, 33))
"""Among which :meth:`OneStepModel.calibrated` chooses λ."""


class OneStepModel:
    """ℓ_i(A(Sⁱ)) for every i, to second order in the parameters, from A(S) alone.

    With J_i (C, k) the Jacobian of z_i's logits by the tuned coordinates, r_i and Λ_i the first and second derivative of ℓ_i by
    them, and A = Σ_j J_jᵀ Λ_j J_j + 2(n − 1)λ I, one Newton step on Σ_{j≠i} ℓ_j + (n − 1)λ‖θ − θ⁰‖², whose gradient at A(S)
    is (ḡ − g_i), moves the logits of z_i by

        (I − S_ii Λ_i)⁻¹ (S_ii r_i − n⁻¹ Σ_j S_ij r_j),    S = J A⁻¹ Jᵀ = K (2(n − 1)λ I + Λ K)⁻¹,  K = JJᵀ.

    Exact for squared loss in a linear model with a ridge (PRESS; Allen 1974); for logistic regression the approximate
    leave-one-out of Rad & Maleki (2020). The Hessian is Gauss–Newton's, so nothing is known of the network's own bend.

    Of the two forms the one with the smaller matrix is taken: (n C × n C), ``gram``, or (k × k), ``coordinates``. Where both have
    more than 20 000 rows, or ``memory_budget`` asks for more than 8 passes over J, ``hashed``: the k columns of J are added up,
    each
    with a random sign, in 8 192 random places, which keeps K in expectation (Weinberger et al. 2009).

    Args:
        problem: what A was trained on.
        parameters: of A(S).
        tunable: the k coordinates that A tuned, head included.
        memory_budget: bytes that Jacobians may take at once.
        seed: of the random places.

    Attributes:
        form: ``gram``, ``coordinates`` or ``hashed``.
        losses: ℓ_i(A(S)), float64 (n,).

    Raises:
        UsageError: fewer than 2 examples.
        MeasurementError: derivatives that are not finite.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression([[1.0], [2.0], [2.0]], [0.0, 2.0, 1.0]).problem
        >>> best = {"weight": torch.tensor([2 / 3], dtype=torch.float64)}
        >>> OneStepModel(p, best, Mask.full(best)).left_out(ridge=1e-12)
        tensor([0.2812, 0.7200, 0.1800], dtype=torch.float64)
    """

    def __init__(
        self, problem: Problem, parameters: Parameters, tunable: Mask, *, memory_budget: int = 2 << 30, seed: int = 0
    ) -> None:
        if problem.n < 2:
            raise UsageError(f"n = {problem.n} training examples: leaving one out needs n ≥ 2")
        self._problem, self._labels = problem, problem.train.labels
        with torch.no_grad():
            blocks = list(problem.train.blocks())
            back = torch.cat([index for index, _ in blocks]).argsort()
            logits = torch.cat([problem.logits(parameters, block.inputs) for _, block in blocks])
        self._logits = logits[back.to(logits.device)].double()
        self.losses = problem.loss(self._logits, self._labels).cpu()
        self._residuals, self._bends = slopes_and_bends(problem, self._logits, self._labels)
        n, classes = self._logits.shape
        k, rows = tunable.count, n * classes
        columns = max(1, memory_budget // (rows * 8))
        self.form = "coordinates" if k < rows else "gram"
        if min(k, rows) > _LARGEST or (self.form == "gram" and k > _PASSES * columns):
            self.form = "hashed"
        jacobians = partial(per_example_jacobians, problem, parameters, problem.train)
        if self.form == "gram":
            self._matrix = _gram(jacobians, tunable, columns)
        else:
            self._matrix = _features(jacobians(tunable), k, _HASHED if self.form == "hashed" else None, seed)
        if not bool(torch.isfinite(self._matrix).all() & torch.isfinite(self._bends).all() & torch.isfinite(self._residuals).all()):
            raise MeasurementError("one step from A(S): its logits or their Jacobians are not finite; look at its training")

    def left_out(self, ridge: float) -> Tensor:
        """ℓ_i(A(Sⁱ)) as predicted with λ = ``ridge``, float64 (n,) on the CPU; where training stopped early or had no ridge, λ is
        a damping of unknown scale, see :meth:`calibrated`.

        Raises:
            UsageError: λ is not positive.
        """
        check_positive(ridge=ridge)
        n, classes = self._logits.shape
        own, pull = self._own_and_pull(2 * (n - 1) * ridge)
        residual = self._residuals
        eye = torch.eye(classes, dtype=own.dtype, device=own.device)
        step = torch.einsum("ncd,nd->nc", own, residual) - pull / n
        moved = torch.linalg.solve(eye - own @ self._bends, step.unsqueeze(-1)).squeeze(-1)
        return self._problem.loss(self._logits + moved, self._labels).cpu()

    def calibrated(self, left_out: Sequence[int], losses: Sequence[float]) -> float:
        """The λ of :data:`DAMPINGS` that comes nearest to a few retrainings: with the least Σ (log |Δ̂ℓ_i| − log |Δℓ_i|)².

        Raises:
            UsageError: nothing retrained to calibrate by.
        """
        if not len(left_out) or len(left_out) != len(losses):
            raise UsageError(f"{len(left_out)} examples and {len(losses)} losses to calibrate λ by: give at least 1, one loss each")
        index = torch.as_tensor(list(left_out), dtype=torch.int64)
        full, measured = self.losses[index], torch.as_tensor(list(losses), dtype=torch.float64)
        least = 1e-9 + 1e-6 * float(full.abs().max())  # below which a difference is rounding

        def misfit(ridge: float) -> float:
            predicted = (self.left_out(ridge)[index] - full).abs().clamp_min(least)
            off = (predicted.log() - (measured - full).abs().clamp_min(least).log()).square().sum()
            return float(off) if torch.isfinite(off) else math.inf

        return min(DAMPINGS, key=misfit)

    def _own_and_pull(self, damping: float) -> tuple[Tensor, Tensor]:
        """S_ii (n, C, C) and Σ_j S_ij r_j (n, C)."""
        n, classes = self._logits.shape
        if self.form == "gram":
            gram = self._matrix
            bent = torch.einsum("rnc,ncd->rnd", gram.view(-1, n, classes), self._bends).reshape(gram.shape)
            bent.diagonal().add_(damping)
            whole = torch.linalg.solve(bent, gram).view(n, classes, n, classes)
            return whole.diagonal(dim1=0, dim2=2).permute(2, 0, 1), torch.einsum("icjd,jd->ic", whole, self._residuals)
        features = self._matrix.view(n, classes, -1)
        bent = torch.einsum("ncd,ndq->ncq", self._bends, features).flatten(0, 1)
        curvature = self._matrix.T @ bent
        curvature.diagonal().add_(damping)
        solved = torch.linalg.solve(curvature, self._matrix.T).T.view(n, classes, -1)
        pull = torch.einsum("ncq,q->nc", solved, torch.einsum("ncq,nc->q", features, self._residuals))
        return solved @ features.transpose(1, 2), pull


def _gram(jacobians: Callable[[Mask], Iterator[Tensor]], tunable: Mask, columns: int) -> Tensor:
    """JJᵀ in float64, from ``columns`` of J at a time."""
    total: Tensor | None = None
    for places in torch.arange(tunable.count).split(columns):
        jacobian = torch.cat([block.flatten(0, 1) for block in jacobians(tunable.part(places))]).double()
        total = jacobian @ jacobian.T if total is None else total.addmm_(jacobian, jacobian.T)
    assert total is not None
    return total


def _features(blocks: Iterator[Tensor], k: int, places: int | None, seed: int) -> Tensor:
    """J itself, or its columns added up in so many random places with random signs: float64 (n C, ·)."""
    if places is None:
        return torch.cat([block.flatten(0, 1) for block in blocks]).double()
    draws = generator(seed, "coordinates")
    place = torch.randint(places, (k,), generator=draws)
    sign = 2.0 * torch.randint(2, (k,), generator=draws) - 1

    def hashed(block: Tensor) -> Tensor:
        rows = block.flatten(0, 1)
        return rows.new_zeros(len(rows), places).index_add_(1, place.to(rows.device), rows * sign.to(rows))

    return torch.cat([hashed(block) for block in blocks]).double()
