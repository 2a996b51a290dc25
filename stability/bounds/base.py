"""What every bound returns, what is known of a run, and the ranges that numbers must be in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stability.errors import UsageError

__all__ = ["Assumption", "Bound", "Checks", "State"]

State = Literal["infinite", "assumption failed", "vacuous", "applies"]


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
        largest: what the bounded quantity cannot exceed anyhow; None where no range of the loss was given.
    """

    name: str
    value: float
    terms: Mapping[str, float]
    equation: str
    source: str
    assumptions: tuple[Assumption, ...]
    reason: str = ""
    largest: float | None = None

    @property
    def applies(self) -> bool:
        """Whether no assumption is known to have failed and the value is finite."""
        return math.isfinite(self.value) and all(assumption.held is not False for assumption in self.assumptions)

    @property
    def vacuous(self) -> bool | None:
        """Whether it says no more than the range of the loss does; None where no range was given."""
        return None if self.largest is None else self.value >= self.largest

    @property
    def state(self) -> State:
        """The first that is true of: ``infinite``, ``assumption failed``, ``vacuous``; else ``applies``."""
        if not math.isfinite(self.value):
            return "infinite"
        if not self.applies:
            return "assumption failed"
        return "vacuous" if self.vacuous else "applies"

    def to_dict(self) -> dict[str, Any]:
        """As plain values; an infinite value becomes None, which JSON can hold."""
        finite = self.value if math.isfinite(self.value) else None
        return {**asdict(self), "value": finite, "applies": self.applies, "vacuous": self.vacuous, "state": self.state}


@dataclass(frozen=True)
class Checks:
    """What is known of the run that a bound is to be compared with; whatever is None was not checked.

    Attributes:
        ridge: λ of the λ‖θ − θ⁰‖² that A minimised with.
        gradient_norm: ‖∇F(A(S))‖₂ of the objective F that the theorem speaks of. A(S) counts as its minimiser where
            this adds at most a hundredth to the bound: n‖∇F‖ ≤ ρ/100, since Theorem 1's proof then gives 2ρ(ρ + n‖∇F‖)/(μn).
        mask_changes: the largest number of coordinates by which the mask chosen on an Sⁱ differs from that on S. The
            proofs compare minimisers over one and the same set.
        residual: of the computed Λ_min; within it the sign is not decided.
        loss_bound: C with 0 ≤ ℓ ≤ C, so that a loss difference above C is vacuous.
    """

    ridge: float | None = None
    gradient_norm: float | None = None
    mask_changes: int | None = None
    residual: float = 0.0
    loss_bound: float | None = None


LIPSCHITZ = Assumption("loss is ρ-Lipschitz", None, "a measured ρ is the largest gradient seen, a lower estimate")


def at_most(loss_bound: float) -> Assumption:
    return Assumption("loss at most C", None, f"C = {loss_bound:.4g}")


def check_lipschitz(lipschitz: float) -> None:
    if not (math.isfinite(lipschitz) and lipschitz >= 0):
        raise UsageError(f"Lipschitz constant ρ = {lipschitz}: use a finite number of at least 0")


def check_smoothness(smoothness: float) -> None:
    if not (math.isfinite(smoothness) and smoothness > 0):
        raise UsageError(f"smoothness b = {smoothness}: use a finite positive number")


def check_sparsity(sparsity: float) -> None:
    if not 0 < sparsity <= 1:
        raise UsageError(f"sparsity p = {sparsity} is outside (0, 1]")


def check_n(n: int) -> None:
    if n < 2:
        raise UsageError(f"n = {n}: leaving one out needs n ≥ 2")


def check_risk(loss_bound: float, delta: float, empirical_risk: float) -> None:
    if not (math.isfinite(loss_bound) and loss_bound > 0):
        raise UsageError(f"loss bound C = {loss_bound}: use a finite positive number")
    if not 0 < delta < 1:
        raise UsageError(f"δ = {delta} is outside (0, 1): it is the probability that the bound may fail")
    if not 0 <= empirical_risk <= loss_bound:
        raise UsageError(f"empirical risk = {empirical_risk} is outside [0, C] with C = {loss_bound}")
