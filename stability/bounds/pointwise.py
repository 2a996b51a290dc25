"""Bounds on pointwise hypothesis stability: Theorem 1, its sharp form, the hard mask, the step in between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from stability.bounds.base import LIPSCHITZ, UNKNOWN, Assumption, Bound, Checks, check_lipschitz, check_n, check_sparsity
from stability.errors import UsageError

__all__ = ["first_order_stability", "hard_mask_stability", "pointwise_hypothesis_stability"]


def pointwise_hypothesis_stability(
    lipschitz: float,
    least_eigenvalue: float,
    sparsity: float,
    n: int,
    *,
    mean_over: Literal["remaining", "all"] = "remaining",
    sharp: bool = False,
    checks: Checks = UNKNOWN,
) -> Bound:
    """E_{S,i} |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| ≤ 2ρ² / ((Λ_min + 2(1 − p)) n): Fu et al. 2023, Theorem 1.

    A minimises F = L + (1 − p)‖θ − θ⁰‖², and μ = Λ_min + 2(1 − p) is the least curvature of F on Sⁱ between A(S) and
    A(Sⁱ). The proof bounds every i by ‖∇F on Sⁱ at A(S)‖ ρ/μ = ‖g_i − ḡ‖ ρ/((n − 1)μ) ≤ 2ρ²/(μn), with g_i = ∇ℓ_i(A(S))
    and ḡ their mean. With weight zero for z_i and the mean still over n, that gradient is −g_i/n: ρ²/(μn).

    ``sharp`` gives the best constant for the mean over i: mean_i ‖g_i − ḡ‖ ≤ √(mean_i ‖g_i‖² − ‖ḡ‖²) ≤ ρ, hence
    ρ²/(μ(n − 1)), the printed bound times n/(2(n − 1)). Linear losses of two opposite slopes attain it. A single i attains
    the printed one: all other slopes opposite to its own. Over ``all``, ρ²/(μn) is the best constant for both.

    Args:
        lipschitz: ρ ≥ 0, a Lipschitz constant of ℓ in θ, at least between A(S) and A(Sⁱ).
        least_eigenvalue: Λ_min of ∇²L, L without the regulariser. It may be negative; then the theorem does not apply
            as printed, the formula is still evaluated while its denominator is positive, and the bound says both. What
            enters is Λ_min less ``checks.residual``: a Ritz value lies above the eigenvalue.
        sparsity: p ∈ (0, 1].
        n: size of S, at least 2.
        mean_over: whether A(Sⁱ) minimises the mean over the n − 1 examples that ``remaining`` stands for, as printed
            and as :mod:`stability.leave_one_out.measuring` measures, or over ``all`` n with the weight of z_i zero.
        sharp: the best constant for the mean over i, instead of the printed one for every i.
        checks: what is known of the run.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> pointwise_hypothesis_stability(lipschitz=1, least_eigenvalue=0, sparsity=0.5, n=100).value
        0.02
    """
    check_sparsity(sparsity)
    curvature = least_eigenvalue - checks.residual + 2 * (1 - sparsity)
    factor, equation = _stability_form(n, mean_over, sharp)
    return _stability_bound(
        lipschitz,
        least_eigenvalue,
        curvature,
        n,
        factor,
        equation=equation.format(mu="(Λ_min + 2 (1 − p))"),
        source="Fu et al. 2023, Theorem 1"
        + (", with the best constant for the mean over i" if sharp and mean_over == "remaining" else ""),
        terms={"sparsity": sparsity},
        minimises=_minimises(lipschitz, 1 - sparsity, "1 − p", factor, curvature, checks),
        definite=True,
        checks=checks,
    )


def hard_mask_stability(
    lipschitz: float,
    least_eigenvalue: float,
    ridge: float,
    n: int,
    *,
    mean_over: Literal["remaining", "all"] = "remaining",
    sharp: bool = False,
    checks: Checks = UNKNOWN,
) -> Bound:
    """E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| ≤ 2ρ_I² / ((Λ_min(H_II) + 2λ) n), for the mask I that is really trained.

    Theorem 1's proof on the subspace of I, where A minimises L + λ‖θ − θ⁰‖² and everything else stays at θ⁰; no
    expectation over masks. ρ_I ≤ ρ, and by Cauchy's interlacing theorem Λ_min(H_II) ≥ Λ_min(H): at equal λ it is
    never worse than Theorem 1. With λ = 0 it is infinite where k exceeds the rank of H. It needs Λ_min(H_II) + 2λ > 0
    and not, as Theorem 1 is printed, Λ_min ≥ 0.

    Args:
        lipschitz: ρ_I = sup ‖∇_I ℓ‖₂ ≥ 0.
        least_eigenvalue: Λ_min(H_II) of the Hessian of L restricted to I.
        ridge: λ ≥ 0.
        n: size of S, at least 2.
        mean_over: as in :func:`pointwise_hypothesis_stability`.
        sharp: as there.
        checks: as there; ``checks.ridge`` is compared with ``ridge``.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> hard_mask_stability(lipschitz=1, least_eigenvalue=0.5, ridge=0.25, n=100).value
        0.02
        >>> hard_mask_stability(lipschitz=1, least_eigenvalue=0, ridge=0, n=100).state
        'infinite'
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        raise UsageError(f"ridge λ = {ridge}: use a finite number of at least 0")
    curvature = least_eigenvalue - checks.residual + 2 * ridge
    factor, equation = _stability_form(n, mean_over, sharp)
    return _stability_bound(
        lipschitz,
        least_eigenvalue,
        curvature,
        n,
        factor,
        equation=equation.replace("ρ²", "ρ_I²").format(mu="(Λ_min(H_II) + 2λ)"),
        source="the proof of Fu et al. 2023, Theorem 1, restricted to the mask",
        terms={"ridge": ridge},
        minimises=_minimises(lipschitz, ridge, "λ", factor, curvature, checks),
        definite=False,
        checks=checks,
    )


def first_order_stability(
    changes: Sequence[float],
    *,
    lipschitz: float | None = None,
    ridge: float | None = None,
    n: int | None = None,
    checks: Checks = UNKNOWN,
) -> Bound:
    """mean_i |(g_i − ḡ)ᵀ (H_II + 2λI)⁻¹ g_i| / (n − 1): the middle step, before the worst cases are taken.

    Replacing (H_II + 2λI)⁻¹ by 1/μ_I and every gradient by ρ_I turns it into :func:`hard_mask_stability`. It is what
    leave-one-out stability is to first order in the weight of one example, *not* an upper bound on it.

    Args:
        changes: one for each example left out, from :func:`stability.derivatives.influence.first_order_changes`.
        lipschitz: ρ_I; with ``ridge`` and ``n`` it is checked whether A(S) was at its minimum, as the step supposes.
        ridge: λ.
        n: size of S.
        checks: what is known of the run.

    Raises:
        UsageError: no changes, or some not finite.

    Example:
        >>> first_order_stability([0.5, -0.25, 0.75]).value
        0.5
    """
    sizes = np.abs(np.asarray(changes, dtype=np.float64))
    if len(sizes) == 0 or not np.isfinite(sizes).all():
        odd = int((~np.isfinite(sizes)).sum())
        raise UsageError(f"{len(sizes)} changes, {odd} not finite: use at least one, and finite numbers")
    minimises = []
    if lipschitz is not None and ridge is not None and n is not None:
        check_n(n)
        minimises = [_minimises(lipschitz, ridge, "λ", 1 / (n - 1), math.inf, checks)]
    return Bound(
        name="pointwise hypothesis stability to first order",
        value=float(sizes.mean()),
        terms={"examples": len(sizes), "largest": float(sizes.max())},
        equation="mean_i |(g_i − ḡ)ᵀ (H_II + 2λI)⁻¹ g_i| / (n − 1)",
        source="Koh & Liang 2017; the proof of Fu et al. 2023, Theorem 1, before its worst cases",
        assumptions=(
            Assumption("leaving one example out is a small change", None, "first order: no upper bound"),
            _same_mask(checks),
            *minimises,
        ),
        largest=checks.loss_bound,
        estimate=True,
    )


def _stability_form(n: int, mean_over: str, sharp: bool) -> tuple[float, str]:
    """Of numerator/μ: what ρ² is multiplied by, and the equation."""
    check_n(n)
    if mean_over not in ("remaining", "all"):
        raise UsageError(f"mean_over = {mean_over!r}: use 'remaining' (n − 1 examples) or 'all' (n, z_i with weight zero)")
    if mean_over == "all":
        return 1 / n, "ρ² / ({mu} n)"
    return (1 / (n - 1), "ρ² / ({mu} (n − 1))") if sharp else (2 / n, "2 ρ² / ({mu} n)")


def _stability_bound(
    lipschitz: float,
    least_eigenvalue: float,
    curvature: float,
    n: int,
    factor: float,
    *,
    equation: str,
    source: str,
    terms: Mapping[str, float],
    minimises: Assumption,
    definite: bool,
    checks: Checks,
) -> Bound:
    check_lipschitz(lipschitz)
    if not math.isfinite(least_eigenvalue):
        raise UsageError(f"least eigenvalue Λ_min = {least_eigenvalue}: use a finite number (did Lanczos converge?)")
    value, reason = lipschitz * lipschitz * factor / curvature if curvature > 0 else math.inf, ""
    if lipschitz == 0:
        value = 0.0  # a loss that never moves is stable whatever the curvature
    elif curvature <= 0:
        reason = f"the curvature μ = {curvature:.4g} is not positive: the regularised loss is not strongly convex"
    elif math.isinf(value):
        reason = "too large for a floating-point number"
    sign = None if -checks.residual <= least_eigenvalue < checks.residual else least_eigenvalue >= 0
    detail = f"Λ_min = {least_eigenvalue:.4g} ± {checks.residual:.2g}; μ = {curvature:.4g}, and the proof needs no more than μ > 0"
    return Bound(
        name="pointwise hypothesis stability",
        value=value,
        terms={"lipschitz": lipschitz, "least_eigenvalue": least_eigenvalue, **terms, "n": n, "curvature": curvature},
        equation=equation,
        source=source,
        assumptions=(
            LIPSCHITZ,
            *([Assumption("the Hessian of L is positive semidefinite", sign, detail)] if definite else []),
            Assumption(
                "the curvature is no less on Sⁱ, from A(S) to A(Sⁱ)",
                None,
                f"looked at, at both ends, for {checks.replicas_checked} i (check_replicas)",
            ),
            _same_mask(checks),
            minimises,
        ),
        reason=reason,
        largest=checks.loss_bound,
    )


def _same_mask(checks: Checks) -> Assumption:
    changes = checks.mask_changes
    detail = "not stated" if changes is None else f"at most {changes} coordinates differ"
    return Assumption("the mask is the same on Sⁱ as on S", None if changes is None else changes == 0, detail)


def _minimises(lipschitz: float, ridge: float, symbol: str, factor: float, curvature: float, checks: Checks) -> Assumption:
    name = f"A minimises L + ({symbol})‖θ − θ⁰‖²"
    if checks.ridge is None:
        return Assumption(name, None, "not stated")
    detail = f"trained with λ = {checks.ridge:.4g}, {symbol} = {ridge:.4g}"
    if not math.isclose(checks.ridge, ridge, abs_tol=1e-12):
        return Assumption(name, False, detail)
    if checks.gradient_norm is None:
        return Assumption(name, None, f"{detail}; ‖∇F‖ not measured")
    enough = factor * lipschitz / 200
    detail = f"{detail}; ‖∇F‖ = {checks.gradient_norm:.2g}, small enough up to {enough:.2g}, where it adds 1 %"
    if checks.gradient_norm > enough:
        return Assumption(name, False, detail)
    if curvature <= 0:
        return Assumption(name, None, f"{detail}: stationary, but μ = {curvature:.4g} does not tell that it is a minimum")
    return Assumption(name, True, f"{detail}; a minimum, at least a local one")
