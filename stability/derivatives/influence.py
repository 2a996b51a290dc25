"""What leaving one example out does to first order: linear systems with a curvature, and the changes that they give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stability.derivatives.curvature import Curvature, SymmetricMatrix
from stability.derivatives.gradients import per_example_gradients, total
from stability.errors import MeasurementError, UsageError
from stability.machine import free_memory
from stability.problems.problem import Examples

__all__ = ["first_order_changes", "solve"]


def solve(matrix: SymmetricMatrix, vectors: Tensor, shift: float = 0.0, tolerance: float = 1e-6, max_steps: int = 1000) -> Tensor:
    """(H + shift · I)⁻¹ v for each row v, by conjugate gradients for all rows at once (Hestenes & Stiefel 1952).

    scipy's ``cg`` takes one v at a time, and products with many vectors at once are what is cheap here.

    Args:
        matrix: H, with H + shift · I positive definite.
        vectors: (s, k).
        shift: 2λ for a ridge λ‖θ − θ⁰‖².
        tolerance: ‖residual‖ relative to ‖v‖.
        max_steps: for each v.

    Returns:
        (s, k) float64 on the CPU.

    Raises:
        UsageError: vectors that do not have k entries, or a shift that is not finite.
        MeasurementError: no convergence, a true residual ten times what was asked, because the precision of the products
            is used up, or a direction along which H + shift · I is not positive.

    Example:
        >>> import numpy as np
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(2), np.zeros(2)).problem
        >>> solve(Curvature(p, p.pretrained, p.train), torch.ones(1, 2), shift=0.5)
        tensor([[1., 1.]], dtype=torch.float64)
    """
    if vectors.ndim != 2 or vectors.shape[1] != matrix.size:
        raise UsageError(f"vectors have shape {tuple(vectors.shape)}: (s, k) with k = {matrix.size} expected")
    if not math.isfinite(shift):
        raise UsageError(f"shift = {shift}: use a finite number")
    if not bool(torch.isfinite(vectors).all()):
        raise UsageError("vectors: some entries are not finite")
    sizes = vectors.double().cpu().norm(dim=1, keepdim=True)
    residual = vectors.double().cpu() / torch.where(sizes > 0, sizes, 1.0)  # of unit norm, so that no square underflows
    unit = residual
    x, direction = torch.zeros_like(residual), residual
    square = (residual**2).sum(1)
    target = tolerance**2 * square
    for _ in range(max_steps + 1):
        rows = torch.nonzero(square > target).squeeze(1)  # those that are done cost no more products
        if len(rows) == 0:
            worst = float((unit - matrix.product(x) - shift * x).norm(dim=1).max()) if len(x) else 0.0
            if not worst <= 10 * tolerance:
                raise MeasurementError(
                    f"relative residual {worst:.2g} instead of {tolerance:g}: the precision of the products is used up"
                )
            result: Tensor = sizes * x
            return result
        d = direction[rows]
        image = matrix.product(d) + shift * d
        bend = (d * image).sum(1)
        if not bool((bend > 0).all()):
            raise MeasurementError(
                f"H + {shift:.4g} I is not positive definite: vᵀ(H + {shift:.4g} I)v/‖v‖² = "
                f"{float((bend / (d**2).sum(1)).min()):.4g} for a v; use a larger ridge"
            )
        length = square[rows] / bend
        x = x.index_add(0, rows, length[:, None] * d)
        residual = residual.index_add(0, rows, -length[:, None] * image)
        before, square = square, (residual**2).sum(1)
        direction = direction.index_copy(0, rows, residual[rows] + (square[rows] / before[rows])[:, None] * d)
    raise MeasurementError(
        f"conjugate gradients did not reach a relative residual of {tolerance:g} in {max_steps} steps for {len(rows)} of "
        f"{len(vectors)} vectors: use a larger ridge or tolerance"
    )


def first_order_changes(
    hessian: Curvature, ridge: float = 0.0, left_out: Sequence[int] | None = None, tolerance: float = 1e-4
) -> Tensor:
    """ℓ_i(A(Sⁱ)) − ℓ_i(A(S)) to first order, for many i at once, from A(S) alone: float64 (a,).

    (g_i − ḡ)ᵀ (H_II + 2λI)⁻¹ g_i / (n − 1), with g_i = ∇_I ℓ_i, ḡ their mean: the step from A(S), the minimiser of
    L + λ‖θ − θ⁰‖² over I, towards that of the mean over the n − 1 examples that remain, with the curvature of all n (Koh &
    Liang 2017's influence on the own loss, for this normalisation). Exact to first order in what one example weighs; not
    an upper bound.

    Args:
        hessian: of the mean loss over S at A(S), restricted to I.
        ridge: λ.
        left_out: the a examples i; all n by default.
        tolerance: of the conjugate gradients, and so about the relative error of the result.

    Raises:
        UsageError: fewer than 2 examples, or one left out that there is not.
        MeasurementError: H_II + 2λI is not positive definite, or conjugate gradients did not converge.

    Example:
        >>> import numpy as np
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.ones((2, 1)), np.array([0.0, 2.0])).problem
        >>> first_order_changes(Curvature(p, {"weight": torch.ones(1, dtype=torch.float64)}, p.train))
        tensor([1., 1.], dtype=torch.float64)
    """
    n = len(hessian.examples)
    if n < 2:
        raise UsageError(f"n = {n}: leaving one out needs n ≥ 2")
    chosen = torch.arange(n) if left_out is None else torch.as_tensor(left_out, dtype=torch.int64)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < n:
        raise UsageError(f"left_out = {chosen.tolist()}: use indices of the n = {n} examples, 0 to {n - 1}")

    def gradients(examples: Examples) -> Iterator[Tensor]:
        at = (hessian.problem, hessian.parameters, examples, hessian.coordinates, hessian.memory_budget)
        return (block.double().cpu() for block in per_example_gradients(*at))

    if len(chosen) == 0:
        raise UsageError("left_out is empty: name at least 1 example")
    mean = total(gradients(hessian.examples)) / n
    at_once = max(1, free_memory(torch.device("cpu")) // (64 * 8 * hessian.size))  # conjugate gradients hold 8 vectors each
    parts = [
        ((part - mean) * solve(hessian, part, 2 * ridge, tolerance)).sum(1)
        for block in gradients(hessian.examples.take(chosen))
        for part in block.split(at_once)
    ]
    return torch.cat(parts) / (n - 1)
