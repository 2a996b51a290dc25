"""What leaving one example out changes, to first order: linear systems with the curvature, and the changes of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stability.checks import check_number, check_positive, check_whole
from stability.derivatives.curvature import Curvature, SymmetricMatrix
from stability.derivatives.gradients import per_example_gradients, total
from stability.errors import MeasurementError, UsageError
from stability.machine import free_memory
from stability.problems.problem import Examples

__all__ = ["first_order_changes", "solve"]


def solve(
    matrix: SymmetricMatrix, vectors: Tensor, *, shift: float = 0.0, tolerance: float = 1e-6, max_steps: int = 1000
) -> Tensor:
    """Solve (H + shift · I) x = v for many v at once, by conjugate gradients (Hestenes & Stiefel 1952).

    Args:
        matrix: H, (k, k), such that H + shift · I is positive definite.
        vectors: one v in each row, (s, k).
        shift: what is added to the diagonal: 2λ for a ridge λ‖θ − θ⁰‖².
        tolerance: the norm of the residual at which to stop, relative to ‖v‖.
        max_steps: the most steps, each of one product for each v.

    Returns:
        One x in each row, (s, k), float64 on the CPU.

    Raises:
        UsageError: the vectors do not have k finite entries, or a number is out of range.
        MeasurementError: the steps did not suffice, H + shift · I is not positive along some direction, or the true residual is
            above ten times the tolerance because the products are not precise enough.

    Example:
        >>> import numpy as np
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(2), np.zeros(2)).problem
        >>> solve(Curvature(p, p.pretrained, p.train), torch.ones(1, 2), shift=0.5)
        tensor([[1., 1.]], dtype=torch.float64)
    """
    if vectors.ndim != 2 or vectors.shape[1] != matrix.size:
        raise UsageError(f"vectors have shape {tuple(vectors.shape)}: use (s, k) with k = {matrix.size}")
    check_number(shift=shift)
    check_positive(tolerance=tolerance)
    check_whole(1, max_steps=max_steps)
    if not bool(torch.isfinite(vectors).all()):
        raise UsageError("vectors: some entries are not finite; use finite numbers")
    # scipy's cg takes one v at a time, and here products with many vectors at once are cheap.
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
    """The first-order approximation of ℓ_i(A(Sⁱ)) − ℓ_i(A(S)), for many i at once, from A(S) alone.

    A(S) minimises L + λ‖θ − θ⁰‖² over the coordinates I, where L is the mean loss over the n examples. With g_i = ∇_I ℓ_i and their
    mean ḡ, the change is (g_i − ḡ)ᵀ (H_II + 2λI)⁻¹ g_i / (n − 1). It is the influence of an example on its own loss (Koh & Liang
    2017), for the mean over the n − 1 examples that remain. It is exact to first order in the weight of one example, and no upper
    bound.

    Args:
        hessian: the Hessian of the mean loss over S at A(S), restricted to I.
        ridge: the λ of A.
        left_out: the indices i of the examples that are left out, a of them; by default all n.
        tolerance: the relative residual of the conjugate gradients, and so about the relative error of the result.

    Returns:
        The change of each example's loss, float64 (a,), in the unit of ℓ.

    Raises:
        UsageError: there are fewer than 2 examples, ``left_out`` is empty or names an example that does not exist, or a number is
            out of range.
        MeasurementError: H_II + 2λI is not positive definite, or conjugate gradients did not converge.

    Example:
        >>> import numpy as np
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.ones((2, 1)), np.array([0.0, 2.0])).problem
        >>> first_order_changes(Curvature(p, {"weight": torch.ones(1, dtype=torch.float64)}, p.train))
        tensor([1., 1.], dtype=torch.float64)
    """
    n = len(hessian.examples)
    check_whole(2, None, "one example is left out", n=n)
    check_number(ridge=ridge)
    chosen = torch.arange(n) if left_out is None else torch.as_tensor(left_out, dtype=torch.int64)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < n:
        raise UsageError(f"left_out = {chosen.tolist()}: use indices from 0 to {n - 1} (S has n = {n} examples)")

    def gradients(examples: Examples) -> Iterator[Tensor]:
        at = (hessian.problem, hessian.parameters, examples, hessian.coordinates)
        return (block.double().cpu() for block in per_example_gradients(*at, memory_budget=hessian.memory_budget))

    if len(chosen) == 0:
        raise UsageError("left_out = []: use at least 1 example")
    mean = total(gradients(hessian.examples)) / n
    at_once = max(1, free_memory(torch.device("cpu")) // (64 * 8 * hessian.size))  # conjugate gradients hold 8 vectors each
    parts = [
        ((part - mean) * solve(hessian, part, shift=2 * ridge, tolerance=tolerance)).sum(1)
        for block in gradients(hessian.examples.take(chosen))
        for part in block.split(at_once)
    ]
    return torch.cat(parts) / (n - 1)
