"""L-BFGS for many objectives at once, a row each, to a gradient tolerance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Minimum", "minimise"]

_SUFFICIENT = 1e-4  # of the decrease that the slope promises: Armijo's condition (Nocedal & Wright 2006, section 3.1)
_HALVINGS = 40
_PATIENCE = 100  # steps without progress, taken together, after which a row's precision is used up


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where each row ended.

    Attributes:
        values: (r, K).
        gradient_norms: (r,) ‖∇F‖₂ there; a row is done where it is at most the tolerance.
        steps: (r,) accepted steps.
    """

    values: Tensor
    gradient_norms: Tensor
    steps: Tensor


def minimise(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], values: Tensor, tolerance: float, max_steps: int, history: int = 10
) -> Minimum:
    """Minimise F_1 … F_r, each by L-BFGS (Nocedal & Wright 2006, algorithm 7.5) with its own backtracking line search.

    A row stops once ‖∇F‖₂ ≤ tolerance, once it is not finite, or once its precision is used up: no step along its
    direction and none along its gradient decreases it, or in 100 steps together F fell by no more than rounding and ‖∇F‖
    by less than a tenth.

    Args:
        objective: (r, K) → F (r,) and ∇F (r, K); one row's results depend on that row alone.
        values: (r, K) to start from.
        tolerance: of ‖∇F‖₂.
        max_steps: of every row.
        history: pairs kept.

    Example:
        >>> target = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
        >>> scale = torch.tensor([1.0, 10.0], dtype=torch.float64)
        >>> def quadratic(x):
        ...     return (0.5 * scale * (x - target) ** 2).sum(1), scale * (x - target)
        >>> minimum = minimise(quadratic, torch.zeros(2, 2, dtype=torch.float64), 1e-9, 100)
        >>> torch.allclose(minimum.values, target), bool((minimum.gradient_norms <= 1e-9).all())
        (True, True)
    """
    value, gradient = objective(values)
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=history)
    steps = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    stuck = ~torch.isfinite(value)
    steep = torch.zeros_like(stuck)  # rows that go along the gradient, for their direction failed
    slack = 8 * torch.finfo(values.dtype).eps  # a decrease below it is rounding
    idle = torch.zeros_like(value, dtype=torch.int64)
    lowest, least = value, gradient.norm(dim=1)  # when there was progress last

    for _ in range(max_steps):
        norms = gradient.norm(dim=1)
        active = (norms > tolerance) & ~stuck
        if not bool(active.any()):
            break
        direction = torch.where(steep[:, None], -gradient, _direction(gradient, pairs))
        slope = (direction * gradient).sum(1)
        uphill = ~(slope < 0)
        direction = torch.where(uphill[:, None], -gradient, direction)
        slope = torch.where(uphill, -(norms**2), slope)
        fresh = steep | uphill | torch.tensor(not pairs, device=values.device)
        length = torch.where(fresh, 1 / norms.clamp_min(1.0), torch.ones_like(norms))
        waiting, moved = active.clone(), values.clone()
        for _ in range(_HALVINGS):
            moved = torch.where(waiting[:, None], values + length[:, None] * direction, moved)
            moved_value, moved_gradient = objective(moved)
            accepted = moved_value <= value + _SUFFICIENT * length * slope + slack * value.abs()
            waiting = waiting & ~accepted
            if not bool(waiting.any()):
                break
            length = torch.where(waiting, length / 2, length)
        moved = torch.where(waiting[:, None], values, moved)
        moved_value, moved_gradient = (
            torch.where(waiting, value, moved_value),
            torch.where(waiting[:, None], gradient, moved_gradient),
        )
        stuck = stuck | (waiting & (steep | uphill))
        steep = waiting
        pairs.append(_pair(moved - values, moved_gradient - gradient))
        steps = steps + (active & ~waiting)
        norms = moved_gradient.norm(dim=1)
        progress = (moved_value < lowest - slack * lowest.abs()) | (norms < 0.9 * least)
        idle = torch.where(progress, 0, idle + 1)
        lowest, least = torch.where(progress, moved_value, lowest), torch.where(progress, norms, least)
        stuck = stuck | (idle >= _PATIENCE)
        values, value, gradient = moved, moved_value, moved_gradient
    return Minimum(values, gradient.norm(dim=1), steps)


def _pair(step: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s, y and 1/(sᵀy), with 0 for rows that did not move or met no positive curvature: such a pair does nothing."""
    inner = (step * change).sum(1)
    good = inner > 1e-10 * step.norm(dim=1) * change.norm(dim=1)
    return step, change, torch.where(good, 1 / torch.where(good, inner, torch.ones_like(inner)), torch.zeros_like(inner))


def _direction(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """−(inverse Hessian as the pairs know it) · gradient, row by row (Nocedal & Wright 2006, algorithm 7.4)."""
    q = gradient.clone()
    scale = torch.ones(len(q), 1, dtype=q.dtype, device=q.device)
    weights = []
    for step, change, inverse in reversed(pairs):
        weight = inverse * (step * q).sum(1)
        q = q - weight[:, None] * change
        weights.append(weight)
    for _, change, inverse in pairs:  # the last pair that counts sets the scale
        square = (change**2).sum(1)
        known = inverse > 0
        scale = torch.where(known[:, None], (1 / (inverse * square).where(known, torch.ones_like(square)))[:, None], scale)
    q = scale * q
    for (step, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - inverse * (change * q).sum(1))[:, None] * step
    return -q
