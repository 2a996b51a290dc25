"""Bounds on pointwise hypothesis stability: Theorem 1, its sharp form, its form for a hard mask, and its first-order step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from stability.bounds.base import LIPSCHITZ, UNKNOWN, Assumption, Bound, Checks, check_lipschitz
from stability.checks import check_choice, check_number, check_sparsity, check_whole
from stability.errors import UsageError

__all__ = ["first_order_stability", "hard_mask_stability", "pointwise_hypothesis_stability"]


def pointwise_hypothesis_stability(
    *,
    lipschitz: float,
    least_eigenvalue: float,
    sparsity: float,
    n: int,
    mean_over: Literal["remaining", "all"] = "remaining",
    sharp: bool = False,
    checks: Checks = UNKNOWN,
) -> Bound:
    """E_{S,i} |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| ≤ 2ρ² / ((Λ_min + 2(1 − p)) n): Fu et al. 2023, Theorem 1.

    A minimises F = L + (1 − p)‖θ − θ⁰‖², and μ = Λ_min + 2(1 − p) is the least curvature of F on Sⁱ between A(S) and
    A(Sⁱ). The proof bounds every i by ‖∇F on Sⁱ at A(S)‖ ρ/μ = ‖g_i − ḡ‖ ρ/((n − 1)μ) ≤ 2ρ²/(μn), with g_i = ∇ℓ_i(A(S))
    and ḡ their mean. With weight zero for z_i and the mean still over n, that gradient is −g_i/n, and the bound ρ²/(μn).

    ``sharp`` gives the best constant for the mean over i: mean_i ‖g_i − ḡ‖ ≤ √(mean_i ‖g_i‖² − ‖ḡ‖²) ≤ ρ, hence
    ρ²/(μ(n − 1)), which is the printed bound times n/(2(n − 1)). Linear losses of two opposite slopes attain it. A single i
    attains the printed bound where all other slopes are opposite to its own. With the mean over ``all``, ρ²/(μn) is the best
    constant for both.

    Args:
        lipschitz: ρ ≥ 0, a Lipschitz constant of ℓ in θ, at least between A(S) and A(Sⁱ).
        least_eigenvalue: Λ_min of ∇²L, where L does not contain the regulariser. It may be negative. The theorem does not
            apply then as printed; the formula is still evaluated while its denominator is positive, and the bound says
            both. Λ_min enters less ``checks.residual``, because a Ritz value lies above the eigenvalue.
        sparsity: p ∈ [0, 1], the fraction of parameters that may change; 0 where the new head alone is trained.
        n: the number of examples in S, at least 2.
        mean_over: the mean that A(Sⁱ) minimises. ``remaining`` is the mean over the other n − 1 examples, as the theorem is
            printed and as :func:`stability.leave_one_out.measuring.measure` retrains; ``all`` is the mean over n examples,
            with weight zero for z_i.
        sharp: whether to give the best constant for the mean over i, instead of the printed one, which holds for every i.
        checks: what is known of the run that the bound is compared with.

    Returns:
        The bound, in the unit of ℓ.

    Raises:
        UsageError: a number outside its range, or an unknown ``mean_over``.

    Example:
        >>> pointwise_hypothesis_stability(lipschitz=1, least_eigenvalue=0, sparsity=0.5, n=100).value
        0.02
    """
    check_number(0, sparsity=sparsity)
    if sparsity > 1:
        check_sparsity(sparsity)
    return _stability_bound(
        lipschitz=lipschitz,
        least_eigenvalue=least_eigenvalue,
        ridge=1 - sparsity,
        n=n,
        mean_over=mean_over,
        sharp=sharp,
        checks=checks,
        symbols=("ρ²", "(Λ_min + 2 (1 − p))", "1 − p"),
        terms={"sparsity": sparsity},
        source="Fu et al. 2023, Theorem 1"
        + (", with the best constant for the mean over i" if sharp and mean_over == "remaining" else ""),
        definite=True,
    )


def hard_mask_stability(
    *,
    lipschitz: float,
    least_eigenvalue: float,
    ridge: float,
    n: int,
    mean_over: Literal["remaining", "all"] = "remaining",
    sharp: bool = False,
    checks: Checks = UNKNOWN,
) -> Bound:
    """E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| ≤ 2ρ_I² / ((Λ_min(H_II) + 2λ) n), for the mask I that is really trained.

    This is the proof of Fu et al. 2023, Theorem 1, on the subspace of I, where A minimises L + λ‖θ − θ⁰‖² and all other
    coordinates stay at θ⁰. There is no expectation over masks. ρ_I ≤ ρ, and Λ_min(H_II) ≥ Λ_min(H) by Cauchy's interlacing
    theorem, so that at equal λ the bound is never worse than Theorem 1's. With λ = 0 it is infinite where k exceeds the rank
    of H. It needs Λ_min(H_II) + 2λ > 0, and not Λ_min ≥ 0 as Theorem 1 is printed.

    Args:
        lipschitz: ρ_I = sup ‖∇_I ℓ‖₂ ≥ 0, the Lipschitz constant of ℓ in the coordinates of I.
        least_eigenvalue: Λ_min(H_II), H the Hessian of L. It enters less ``checks.residual``.
        ridge: λ ≥ 0. ``checks.ridge``, which A was trained with, is compared with it.
        n: the number of examples in S, at least 2.
        mean_over: the mean that A(Sⁱ) minimises: ``remaining``, over the other n − 1 examples, or ``all``, over n examples
            with weight zero for z_i.
        sharp: whether to give the best constant for the mean over i, ρ_I²/(μ(n − 1)) with μ = Λ_min(H_II) + 2λ, instead of
            the one above, which holds for every i.
        checks: what is known of the run that the bound is compared with.

    Returns:
        The bound, in the unit of ℓ.

    Raises:
        UsageError: a number outside its range, or an unknown ``mean_over``.

    Example:
        >>> hard_mask_stability(lipschitz=1, least_eigenvalue=0.5, ridge=0.25, n=100).value
        0.02
        >>> hard_mask_stability(lipschitz=1, least_eigenvalue=0, ridge=0, n=100).state.value
        'infinite'
    """
    check_number(0, **{"ridge λ": ridge})
    return _stability_bound(
        lipschitz=lipschitz,
        least_eigenvalue=least_eigenvalue,
        ridge=ridge,
        n=n,
        mean_over=mean_over,
        sharp=sharp,
        checks=checks,
        symbols=("ρ_I²", "(Λ_min(H_II) + 2λ)", "λ"),
        terms={"ridge": ridge},
        source="the proof of Fu et al. 2023, Theorem 1, restricted to the mask",
        definite=False,
    )


def first_order_stability(
    changes: Sequence[float],
    *,
    lipschitz: float | None = None,
    ridge: float | None = None,
    n: int | None = None,
    checks: Checks = UNKNOWN,
) -> Bound:
    """mean_i |(g_i − ḡ)ᵀ (H_II + 2λI)⁻¹ g_i| / (n − 1): the step of Theorem 1's proof before its worst cases are taken.

    Replacing (H_II + 2λI)⁻¹ by 1/μ_I and every gradient by ρ_I turns it into :func:`hard_mask_stability`. It is the
    leave-one-out stability to first order in the weight of one example (Koh & Liang 2017), and *no* upper bound on it.

    Args:
        changes: ℓ_i(A(Sⁱ)) − ℓ_i(A(S)) to first order, one number for each example that was left out, as
            :func:`stability.derivatives.influence.first_order_changes` gives them.
        lipschitz: ρ_I, the Lipschitz constant of ℓ in the coordinates of the mask. Only where ρ_I, λ and n are all given
            does the result say whether A(S) is at its minimum, as the step assumes.
        ridge: λ of the regulariser λ‖θ − θ⁰‖².
        n: the number of examples in S, at least 2.
        checks: what is known of the run that the value is compared with.

    Returns:
        A :class:`Bound` whose ``estimate`` is true.

    Raises:
        UsageError: no changes, changes that are not finite, or a number outside its range.

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
        check_whole(2, n=n)
        minimises = [_minimises(checks, ridge, symbol="λ", gradient_bound=1 / (n - 1) * lipschitz, curvature=math.inf)]
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


def _stability_bound(
    *,
    lipschitz: float,
    least_eigenvalue: float,
    ridge: float,
    n: int,
    mean_over: str,
    sharp: bool,
    checks: Checks,
    symbols: tuple[str, str, str],
    terms: Mapping[str, float],
    source: str,
    definite: bool,
) -> Bound:
    """ρ² · factor / μ with μ = Λ_min − residual + 2 · ridge; ``symbols`` names ρ², μ and the ridge in the texts."""
    square, curved, weight = symbols
    check_whole(2, n=n)
    check_choice(("remaining", "all"), mean_over=mean_over)
    check_lipschitz(lipschitz)
    if not math.isfinite(least_eigenvalue):
        raise UsageError(f"least_eigenvalue Λ_min = {least_eigenvalue}: use a finite number (did Lanczos converge?)")
    if mean_over == "all":
        factor, equation = 1 / n, f"{square} / ({curved} n)"
    elif sharp:
        factor, equation = 1 / (n - 1), f"{square} / ({curved} (n − 1))"
    else:
        factor, equation = 2 / n, f"2 {square} / ({curved} n)"
    curvature = least_eigenvalue - checks.residual + 2 * ridge
    value, reason = lipschitz * lipschitz * factor / curvature if curvature > 0 else math.inf, ""
    if lipschitz == 0:
        value = 0.0  # a loss that never moves is stable whatever the curvature
    elif curvature <= 0:
        reason = f"the curvature μ = {curvature:.4g} is not positive: the regularised loss is not strongly convex"
    elif math.isinf(value):
        reason = "too large for a floating-point number"
    sign = None if -checks.residual <= least_eigenvalue < checks.residual else bool(least_eigenvalue >= 0)
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
            _minimises(checks, ridge, symbol=weight, gradient_bound=factor * lipschitz, curvature=curvature),
        ),
        reason=reason,
        largest=checks.loss_bound,
    )


def _same_mask(checks: Checks) -> Assumption:
    changes = checks.mask_changes
    detail = "not stated" if changes is None else f"at most {changes} coordinates differ"
    return Assumption("the mask is the same on Sⁱ as on S", None if changes is None else bool(changes == 0), detail)


def _minimises(checks: Checks, ridge: float, *, symbol: str, gradient_bound: float, curvature: float) -> Assumption:
    """Whether A minimises what the theorem says: ∇F = 0 up to what adds one per cent to cρ²/μ, where ‖∇F on Sⁱ at A(S)‖ ≤ cρ.

    ``gradient_bound`` is cρ.
    """
    name = f"A minimises L + ({symbol})‖θ − θ⁰‖²"
    if checks.ridge is None:
        return Assumption(name, None, "not stated")
    detail = f"trained with λ = {checks.ridge:.4g}, {symbol} = {ridge:.4g}"
    if not math.isclose(checks.ridge, ridge, abs_tol=1e-12):
        return Assumption(name, False, detail)
    if checks.gradient_norm is None:
        return Assumption(name, None, f"{detail}; ‖∇F‖ not measured")
    enough = gradient_bound / 200
    detail = f"{detail}; ‖∇F‖ = {checks.gradient_norm:.2g}, small enough up to {enough:.2g}, where it adds 1 %"
    if checks.gradient_norm > enough:
        return Assumption(name, False, detail)
    if curvature <= 0:
        return Assumption(name, None, f"{detail}: stationary, but μ = {curvature:.4g} does not tell that it is a minimum")
    return Assumption(name, True, f"{detail}; a minimum, at least a local one")
