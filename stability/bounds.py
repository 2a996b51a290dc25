"""The paper's bounds as pure functions of numbers: each returns its value, its terms, its source and its assumptions.

Nothing is clamped and nothing raises for an infinite bound: a bound that does not apply says so in its value object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stability.errors import UsageError

__all__ = ["Assumption", "Bound", "generalization", "pointwise_hypothesis_stability"]


@dataclass(frozen=True)
class Assumption:
    """What a theorem takes for granted.

    Attributes:
        name: what is assumed.
        held: whether it held here; None where it was not checked.
        detail: the number that decided it.
    """

    name: str
    held: bool | None
    detail: str


@dataclass(frozen=True)
class Bound:
    """A bound and what it stands on.

    Attributes:
        name: what is bounded.
        value: the right-hand side; ``inf`` where the theorem gives none.
        terms: the numbers that went in and the parts that came out.
        equation: the formula.
        source: where it is from.
        assumptions: each with whether it held.
        reason: why the value is infinite, or empty.
    """

    name: str
    value: float
    terms: Mapping[str, float]
    equation: str
    source: str
    assumptions: tuple[Assumption, ...]
    reason: str = ""

    @property
    def applies(self) -> bool:
        """Whether no assumption is known to have failed and the value is finite."""
        return math.isfinite(self.value) and all(assumption.held is not False for assumption in self.assumptions)

    def to_dict(self) -> dict[str, Any]:
        """As plain values; an infinite value becomes None, which JSON can hold."""
        return {**asdict(self), "value": self.value if math.isfinite(self.value) else None, "applies": self.applies}


def pointwise_hypothesis_stability(
    lipschitz: float, least_eigenvalue: float, sparsity: float, n: int, ridge: float | None = None, residual: float = 0.0
) -> Bound:
    """E_{S,i} |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| ≤ 2ρ² / ((Λ_min + 2(1 − p)) n): Fu et al. 2023, Theorem 1.

    A(Sⁱ) minimises the mean over the n − 1 examples that remain, plus (1 − p)‖θ − θ⁰‖².

    Args:
        lipschitz: ρ ≥ 0, a Lipschitz constant of ℓ in θ.
        least_eigenvalue: Λ_min of ∇²L(A(S)), L without the regulariser. It may be negative; then the theorem does
            not apply, the formula is still evaluated while its denominator is positive, and the bound says both.
        sparsity: p ∈ (0, 1].
        n: size of S, at least 2.
        ridge: the λ that training really had, if the bound is to be compared with a measurement.
        residual: of the computed Λ_min; within it the sign is not decided.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> pointwise_hypothesis_stability(lipschitz=1, least_eigenvalue=0, sparsity=0.5, n=100).value
        0.02
    """
    _check_constants(lipschitz, least_eigenvalue, sparsity, n)
    curvature = least_eigenvalue + 2 * (1 - sparsity)
    value, reason = _divide(2 * lipschitz**2, curvature * n, curvature)
    return Bound(
        name="pointwise hypothesis stability",
        value=value,
        terms={**_terms(lipschitz, least_eigenvalue, sparsity, n), "curvature": curvature},
        equation="2 ρ² / ((Λ_min + 2 (1 − p)) n)",
        source="Fu et al. 2023, Theorem 1",
        assumptions=_assumptions(least_eigenvalue, sparsity, ridge, residual),
        reason=reason,
    )


def generalization(
    lipschitz: float,
    least_eigenvalue: float,
    sparsity: float,
    n: int,
    loss_bound: float,
    delta: float,
    empirical_risk: float,
    ridge: float | None = None,
    residual: float = 0.0,
) -> Bound:
    """R ≤ R̂ + sqrt((C² + 24 C ρ² / (Λ_min + 2(1 − p))) / (2 n δ)) with probability 1 − δ: Fu et al. 2023, Theorem 2.

    It rests on Bousquet & Elisseeff 2002, Theorem 11, which needs hypothesis stability β₁ at fresh points as well as
    the pointwise β₂ at training points; the constant 24 takes Theorem 1's right-hand side for both.

    Args:
        lipschitz: ρ ≥ 0.
        least_eigenvalue: Λ_min of ∇²L(A(S)).
        sparsity: p ∈ (0, 1].
        n: size of S, at least 2.
        loss_bound: C > 0 with 0 ≤ ℓ ≤ C. Cross-entropy has no such C: a measured one is an assumption.
        delta: δ ∈ (0, 1).
        empirical_risk: R̂, the mean of ℓ over S, in [0, C].
        ridge: the λ that training really had, if the bound is to be compared with a measurement.
        residual: of the computed Λ_min; within it the sign is not decided.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> bound = generalization(1, 0, 0.5, 100, loss_bound=1, delta=0.1, empirical_risk=0.2)
        >>> round(bound.value, 4)
        1.318
    """
    _check_constants(lipschitz, least_eigenvalue, sparsity, n)
    if not (math.isfinite(loss_bound) and loss_bound > 0):
        raise UsageError(f"loss bound C = {loss_bound}: use a positive number")
    if not 0 < delta < 1:
        raise UsageError(f"δ = {delta} is outside (0, 1): it is the probability that the bound may fail")
    if not 0 <= empirical_risk <= loss_bound:
        raise UsageError(f"empirical risk = {empirical_risk} is outside [0, C] with C = {loss_bound}")
    curvature = least_eigenvalue + 2 * (1 - sparsity)
    stability, reason = _divide(24 * loss_bound * lipschitz**2, curvature, curvature)
    value = empirical_risk + math.sqrt((loss_bound**2 + stability) / (2 * n * delta))
    vacuous = value >= loss_bound
    return Bound(
        name="expected loss",
        value=value,
        terms={
            **_terms(lipschitz, least_eigenvalue, sparsity, n),
            "curvature": curvature,
            "loss_bound": loss_bound,
            "delta": delta,
            "empirical_risk": empirical_risk,
        },
        equation="R̂ + sqrt((C² + 24 C ρ² / (Λ_min + 2 (1 − p))) / (2 n δ))",
        source="Fu et al. 2023, Theorem 2",
        assumptions=(
            *_assumptions(least_eigenvalue, sparsity, ridge, residual),
            Assumption("loss at most C", None, f"C = {loss_bound:.4g}" + (", so the bound is vacuous" if vacuous else "")),
        ),
        reason=reason,
    )


def _check_constants(lipschitz: float, least_eigenvalue: float, sparsity: float, n: int) -> None:
    if not (math.isfinite(lipschitz) and lipschitz >= 0):
        raise UsageError(f"Lipschitz constant ρ = {lipschitz}: use a finite number of at least 0")
    if not math.isfinite(least_eigenvalue):
        raise UsageError(f"least eigenvalue Λ_min = {least_eigenvalue}: use a finite number (did Lanczos converge?)")
    if not 0 < sparsity <= 1:
        raise UsageError(f"sparsity p = {sparsity} is outside (0, 1]")
    if n < 2:
        raise UsageError(f"n = {n}: leaving one out needs n ≥ 2")


def _terms(lipschitz: float, least_eigenvalue: float, sparsity: float, n: int) -> dict[str, float]:
    return {"lipschitz": lipschitz, "least_eigenvalue": least_eigenvalue, "sparsity": sparsity, "n": n}


def _assumptions(least_eigenvalue: float, sparsity: float, ridge: float | None, residual: float) -> tuple[Assumption, ...]:
    # The right λ is necessary, not sufficient: whether training reached the minimiser is not checked here.
    regularised = False if ridge is not None and not math.isclose(ridge, 1 - sparsity, abs_tol=1e-12) else None
    definite = None if abs(least_eigenvalue) < residual else least_eigenvalue >= 0
    return (
        Assumption("loss is ρ-Lipschitz", None, "a measured ρ is the largest gradient seen, a lower estimate"),
        Assumption("Hessian at A(S) is positive semidefinite", definite, f"Λ_min = {least_eigenvalue:.4g} ± {residual:.2g}"),
        Assumption(
            "A minimises L + (1 − p)‖θ − θ⁰‖²",
            regularised,
            "not stated" if ridge is None else f"trained with λ = {ridge:.4g}, 1 − p = {1 - sparsity:.4g}",
        ),
    )


def _divide(numerator: float, denominator: float, curvature: float) -> tuple[float, str]:
    if numerator == 0:
        return 0.0, ""
    if curvature <= 0:
        return math.inf, f"Λ_min + 2(1 − p) = {curvature:.4g} is not positive: the regularised loss is not strongly convex"
    return numerator / denominator, ""
