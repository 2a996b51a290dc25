"""Bounds on the expected loss R from stability: Theorem 2 and its kin."""

from __future__ import annotations

import math
from dataclasses import replace

from stability.bounds.base import SYMMETRIC, UNKNOWN, Assumption, Bound, Checks, at_most, check_n, check_risk
from stability.bounds.pointwise import pointwise_hypothesis_stability
from stability.errors import UsageError

__all__ = ["generalization", "generalization_from_stability", "generalization_from_uniform_stability"]


def generalization(
    lipschitz: float,
    least_eigenvalue: float,
    sparsity: float,
    n: int,
    loss_bound: float,
    delta: float,
    empirical_risk: float,
    *,
    checks: Checks = UNKNOWN,
) -> Bound:
    """R ≤ R̂ + sqrt((C² + 24 C ρ² / (Λ_min + 2(1 − p))) / (2 n δ)) with probability 1 − δ: Fu et al. 2023, Theorem 2.

    :func:`generalization_from_stability` with Theorem 1's right-hand side for both β₁ and β₂.

    Args:
        lipschitz: ρ ≥ 0.
        least_eigenvalue: Λ_min of ∇²L.
        sparsity: p ∈ (0, 1].
        n: size of S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C. Cross-entropy has no such C: a measured one is an assumption.
        delta: δ ∈ (0, 1).
        empirical_risk: R̂, the mean of ℓ over S, in [0, C].
        checks: what is known of the run.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> bound = generalization(1, 0, 0.5, 100, loss_bound=1, delta=0.1, empirical_risk=0.2)
        >>> round(bound.value, 4)
        1.318
    """
    first = pointwise_hypothesis_stability(lipschitz, least_eigenvalue, sparsity, n, checks=checks)
    bound = generalization_from_stability(first.value, first.value, n, loss_bound, delta, empirical_risk)
    return replace(
        bound,
        terms={**first.terms, "loss_bound": loss_bound, "delta": delta, "empirical_risk": empirical_risk},
        equation="R̂ + sqrt((C² + 24 C ρ² / (Λ_min + 2 (1 − p))) / (2 n δ))",
        source="Fu et al. 2023, Theorem 2",
        assumptions=(*first.assumptions, *bound.assumptions[:2]),
        reason=first.reason,
    )


def generalization_from_stability(
    hypothesis: float, pointwise: float, n: int, loss_bound: float, delta: float, empirical_risk: float
) -> Bound:
    """R ≤ R̂ + sqrt((C² + 6 C n (β₁ + β₂)) / (2 n δ)) with probability 1 − δ: Bousquet & Elisseeff 2002, Theorem 11.

    Their proof needs the change when an example is *replaced*; splitting it at Sⁱ gives β₁ + β₂. Their printed 12 C n β₂
    is the case β₁ = β₂. Both are expectations over S: fed with measured values, the bound is as good as those.

    Args:
        hypothesis: β₁ = E |ℓ(A(Sⁱ), z) − ℓ(A(S), z)| at a fresh z; may be ``inf``.
        pointwise: β₂ = E |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|; may be ``inf``.
        n: size of S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C.
        delta: δ ∈ (0, 1).
        empirical_risk: R̂ ∈ [0, C].

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> round(generalization_from_stability(0.02, 0.02, 100, loss_bound=1, delta=0.1, empirical_risk=0.2).value, 4)
        1.318
    """
    check_n(n)
    check_risk(loss_bound, delta, empirical_risk)
    for name, value in (("hypothesis stability β₁", hypothesis), ("pointwise hypothesis stability β₂", pointwise)):
        if not value >= 0:
            raise UsageError(f"{name} = {value}: use a number of at least 0")
    value = empirical_risk + math.sqrt((loss_bound * loss_bound + 6 * loss_bound * n * (hypothesis + pointwise)) / (2 * n * delta))
    return Bound(
        name="expected loss",
        value=value,
        terms={
            "hypothesis": hypothesis,
            "pointwise": pointwise,
            "n": n,
            "loss_bound": loss_bound,
            "delta": delta,
            "empirical_risk": empirical_risk,
        },
        equation="R̂ + sqrt((C² + 6 C n (β₁ + β₂)) / (2 n δ))",
        source="Bousquet & Elisseeff 2002, Theorem 11, with both stabilities apart",
        assumptions=(
            at_most(loss_bound),
            SYMMETRIC,
            Assumption("β₁ and β₂ are expectations over S", None, "measured values stand for them"),
        ),
        reason="" if math.isfinite(value) else "a stability is infinite",
        largest=loss_bound,
    )


def generalization_from_uniform_stability(uniform: float, n: int, loss_bound: float, delta: float, empirical_risk: float) -> Bound:
    """R ≤ R̂ + 2β + (4nβ + C) sqrt(ln(1/δ) / (2n)) with probability 1 − δ: Bousquet & Elisseeff 2002, Theorem 12.

    Args:
        uniform: β ≥ 0 with |ℓ(A(Sⁱ), z) − ℓ(A(S), z)| ≤ β for every S, i and z; may be ``inf``. The largest difference
            found on one S is only a lower estimate of it.
        n: size of S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C.
        delta: δ ∈ (0, 1).
        empirical_risk: R̂ ∈ [0, C].

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> round(generalization_from_uniform_stability(0, 50, loss_bound=1, delta=0.1, empirical_risk=0.2).value, 4)
        0.3517
    """
    check_n(n)
    check_risk(loss_bound, delta, empirical_risk)
    if not uniform >= 0:
        raise UsageError(f"uniform stability β = {uniform}: use a number of at least 0")
    value = empirical_risk + 2 * uniform + (4 * n * uniform + loss_bound) * math.sqrt(math.log(1 / delta) / (2 * n))
    return Bound(
        name="expected loss",
        value=value,
        terms={"uniform": uniform, "n": n, "loss_bound": loss_bound, "delta": delta, "empirical_risk": empirical_risk},
        equation="R̂ + 2β + (4nβ + C) sqrt(ln(1/δ) / (2n))",
        source="Bousquet & Elisseeff 2002, Theorem 12",
        assumptions=(
            at_most(loss_bound),
            SYMMETRIC,
            Assumption("β is uniform over S, i and z", None, "one S gives a lower estimate"),
        ),
        reason="" if math.isfinite(value) else "the uniform stability is infinite",
        largest=loss_bound,
    )
