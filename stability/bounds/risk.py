"""Bounds on the expected loss R that follow from stability: Fu et al.'s Theorem 2 and those of Bousquet & Elisseeff."""

from __future__ import annotations

import math
from dataclasses import replace

from stability.bounds.base import SYMMETRIC, UNKNOWN, Assumption, Bound, Checks, at_most, check_risk, check_stability
from stability.bounds.pointwise import pointwise_hypothesis_stability
from stability.checks import check_whole

__all__ = ["generalization", "generalization_from_stability", "generalization_from_uniform_stability"]


def generalization(
    *,
    lipschitz: float,
    least_eigenvalue: float,
    sparsity: float,
    n: int,
    loss_bound: float,
    delta: float,
    empirical_risk: float,
    checks: Checks = UNKNOWN,
) -> Bound:
    """R ≤ R̂ + sqrt((C² + 24 C ρ² / (Λ_min + 2(1 − p))) / (2 n δ)) with probability 1 − δ: Fu et al. 2023, Theorem 2.

    It is :func:`generalization_from_stability` with the right-hand side of :func:`pointwise_hypothesis_stability`, which is
    Theorem 1, for both β₁ and β₂.

    Args:
        lipschitz: ρ ≥ 0, a Lipschitz constant of ℓ in θ.
        least_eigenvalue: Λ_min of ∇²L, where L does not contain the regulariser. It enters less ``checks.residual``.
        sparsity: p ∈ [0, 1], the fraction of parameters that may change; 0 where the new head alone is trained.
        n: the number of examples in S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C. Cross-entropy has no such C, so that a measured one is an assumption.
        delta: δ ∈ (0, 1), the probability that the bound may fail.
        empirical_risk: R̂, the mean of ℓ over S at A(S), in [0, C].
        checks: what is known of the run that the bound is compared with.

    Returns:
        The bound, in the unit of ℓ.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> constants = {"lipschitz": 1, "least_eigenvalue": 0, "sparsity": 0.5, "n": 100}
        >>> round(generalization(**constants, loss_bound=1, delta=0.1, empirical_risk=0.2).value, 4)
        1.318
    """
    first = pointwise_hypothesis_stability(
        lipschitz=lipschitz, least_eigenvalue=least_eigenvalue, sparsity=sparsity, n=n, checks=checks
    )
    bound = generalization_from_stability(
        hypothesis=first.value,
        pointwise=first.value,
        n=n,
        loss_bound=loss_bound,
        delta=delta,
        empirical_risk=empirical_risk,
    )
    return replace(
        bound,
        terms={**first.terms, "loss_bound": loss_bound, "delta": delta, "empirical_risk": empirical_risk},
        equation="R̂ + sqrt((C² + 24 C ρ² / (Λ_min + 2 (1 − p))) / (2 n δ))",
        source="Fu et al. 2023, Theorem 2",
        assumptions=(*first.assumptions, *bound.assumptions[:2]),
        reason=first.reason,
    )


def generalization_from_stability(
    *, hypothesis: float, pointwise: float, n: int, loss_bound: float, delta: float, empirical_risk: float
) -> Bound:
    """R ≤ R̂ + sqrt((C² + 6 C n (β₁ + β₂)) / (2 n δ)) with probability 1 − δ: Bousquet & Elisseeff 2002, Theorem 11.

    The proof needs the change of a loss when an example is *replaced*. Going from S to Sⁱ and from there to the new set splits
    it into β₁ + β₂; the printed 12 C n β₂ is the case β₁ = β₂. Both are expectations over S: with measured values in their
    place, the bound is as good as those are.

    Args:
        hypothesis: β₁ = E |ℓ(A(Sⁱ), z) − ℓ(A(S), z)| at a fresh example z; at least 0, and ``inf`` is allowed.
        pointwise: β₂ = E |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|; at least 0, and ``inf`` is allowed.
        n: the number of examples in S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C.
        delta: δ ∈ (0, 1), the probability that the bound may fail.
        empirical_risk: R̂, the mean of ℓ over S at A(S), in [0, C].

    Returns:
        The bound, in the unit of ℓ.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> stability = {"hypothesis": 0.02, "pointwise": 0.02}
        >>> round(generalization_from_stability(**stability, n=100, loss_bound=1, delta=0.1, empirical_risk=0.2).value, 4)
        1.318
    """
    check_whole(2, n=n)
    check_risk(loss_bound, delta, empirical_risk)
    check_stability(**{"hypothesis β₁": hypothesis, "pointwise β₂": pointwise})
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


def generalization_from_uniform_stability(
    *, uniform: float, n: int, loss_bound: float, delta: float, empirical_risk: float
) -> Bound:
    """R ≤ R̂ + 2β + (4nβ + C) sqrt(ln(1/δ) / (2n)) with probability 1 − δ: Bousquet & Elisseeff 2002, Theorem 12.

    Args:
        uniform: β ≥ 0 with |ℓ(A(Sⁱ), z) − ℓ(A(S), z)| ≤ β for every S, i and z; ``inf`` is allowed. The largest difference
            found on one S is only a lower estimate of it.
        n: the number of examples in S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C.
        delta: δ ∈ (0, 1), the probability that the bound may fail.
        empirical_risk: R̂, the mean of ℓ over S at A(S), in [0, C].

    Returns:
        The bound, in the unit of ℓ.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> bound = generalization_from_uniform_stability(uniform=0, n=50, loss_bound=1, delta=0.1, empirical_risk=0.2)
        >>> round(bound.value, 4)
        0.3517
    """
    check_whole(2, n=n)
    check_risk(loss_bound, delta, empirical_risk)
    check_stability(**{"uniform β": uniform})
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
