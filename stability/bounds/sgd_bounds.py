"""Bounds on the uniform stability of stochastic gradient descent (SGD), for comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stability.bounds.base import LIPSCHITZ, Assumption, Bound, at_most, check_lipschitz
from stability.checks import check_positive, check_whole
from stability.errors import UsageError

__all__ = ["sgd_convex", "sgd_nonconvex"]


def sgd_convex(*, lipschitz: float, smoothness: float, learning_rates: Sequence[float], n: int) -> Bound:
    """ε ≤ (2ρ²/n) Σ_t α_t, uniform stability in expectation of SGD on convex losses: Hardt, Recht & Singer 2016, Theorem 3.8.

    ε = sup_{S, S', z} E_A |ℓ(A(S), z) − ℓ(A(S'), z)|, where S' is S with one example *replaced*, and each step takes one
    example, drawn with replacement or by permutation.

    Args:
        lipschitz: ρ ≥ 0, a Lipschitz constant of ℓ in θ.
        smoothness: b > 0, a Lipschitz constant of ∇ℓ.
        learning_rates: α_t ≥ 0 of every step; the theorem needs α_t ≤ 2/b.
        n: the number of examples in S, at least 2.

    Returns:
        The bound, in the unit of ℓ.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> sgd_convex(lipschitz=1, smoothness=1, learning_rates=[0.25] * 50, n=100).value
        0.25
    """
    check_lipschitz(lipschitz)
    check_positive(**{"smoothness b": smoothness})
    check_whole(2, n=n)
    rates = np.asarray(learning_rates, dtype=np.float64)
    if rates.ndim != 1 or not np.isfinite(rates).all() or (rates < 0).any():
        raise UsageError("learning_rates α_t: use a sequence of finite numbers of at least 0")
    steepest = float(rates.max(initial=0))
    return Bound(
        name="uniform stability in expectation",
        value=2 * lipschitz * lipschitz * float(rates.sum()) / n,
        terms={"lipschitz": lipschitz, "smoothness": smoothness, "sum of learning rates": float(rates.sum()), "n": n},
        equation="2 ρ² Σ_t α_t / n",
        source="Hardt, Recht & Singer 2016, Theorem 3.8",
        assumptions=(
            LIPSCHITZ,
            Assumption("ℓ is convex and b-smooth", None, f"b = {smoothness:.4g}"),
            Assumption("α_t ≤ 2/b", steepest <= 2 / smoothness, f"largest α_t = {steepest:.4g}, 2/b = {2 / smoothness:.4g}"),
        ),
    )


def sgd_nonconvex(*, lipschitz: float, smoothness: float, rate_scale: float, steps: int, n: int, loss_bound: float = 1.0) -> Bound:
    """Uniform stability in expectation of SGD with steps α_t ≤ c/t: Hardt, Recht & Singer 2016, Theorem 3.12.

    ε ≤ (1 + 1/(bc))/(n − 1) · (2cρ²)^(1/(bc + 1)) · T^(bc/(bc + 1)) for 0 ≤ ℓ ≤ 1, where ε = sup_{S, S', z} E_A
    |ℓ(A(S), z) − ℓ(A(S'), z)| and S' is S with one example *replaced*. For 0 ≤ ℓ ≤ C the theorem is used for ℓ/C, whose
    constants are ρ/C and b/C and whose steps are C times as large: 2cρ²/C replaces 2cρ², and the whole is multiplied by C.

    Args:
        lipschitz: ρ ≥ 0, a Lipschitz constant of ℓ in θ.
        smoothness: b > 0, a Lipschitz constant of ∇ℓ.
        rate_scale: c > 0; the theorem needs α_t ≤ c/t for t = 1, 2, …, and α_t that never increases.
        steps: T ≥ 1, how many steps are taken.
        n: the number of examples in S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C.

    Returns:
        The bound, in the unit of ℓ.

    Raises:
        UsageError: a number outside its range, or b · c too large or too small for a floating-point number.

    Example:
        >>> round(sgd_nonconvex(lipschitz=1, smoothness=1, rate_scale=1, steps=100, n=101).value, 4)
        0.2828
    """
    check_lipschitz(lipschitz)
    check_positive(**{"smoothness b": smoothness, "rate_scale c": rate_scale, "loss_bound C": loss_bound})
    check_whole(2, n=n)
    check_whole(1, **{"steps T": steps})
    bc = smoothness * rate_scale
    if not (math.isfinite(bc) and bc > 0):
        raise UsageError(f"smoothness b · rate_scale c = {smoothness} · {rate_scale} = {bc}: use numbers nearer to 1")
    value = (
        (1 + 1 / bc) / (n - 1) * (2 * rate_scale * lipschitz * lipschitz / loss_bound) ** (1 / (bc + 1)) * steps ** (bc / (bc + 1))
    )
    return Bound(
        name="uniform stability in expectation",
        value=loss_bound * value,
        terms={
            "lipschitz": lipschitz,
            "smoothness": smoothness,
            "rate_scale": rate_scale,
            "steps": steps,
            "n": n,
            "loss_bound": loss_bound,
        },
        equation="C (1 + 1/(bc)) / (n − 1) · (2cρ²/C)^(1/(bc + 1)) · T^(bc/(bc + 1))",
        source="Hardt, Recht & Singer 2016, Theorem 3.12",
        assumptions=(
            LIPSCHITZ,
            Assumption("ℓ is b-smooth", None, f"b = {smoothness:.4g}"),
            Assumption("α_t ≤ c/t, not increasing", None, f"c = {rate_scale:.4g}"),
            at_most(loss_bound),
        ),
        largest=loss_bound,
    )
