"""What every bound returns, what is known of a run, and the ranges that numbers must be in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stability.errors import UsageError

__all__ = ["Assumption", "Bound", "Checks", "State"]

State = Literal["infinite", "assumption failed", "vacuous", "not refuted", "estimate"]


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
        estimate: whether it only stands for the quantity, and does not bound it.
    """

    name: str
    value: float
    terms: Mapping[str, float]
    equation: str
    source: str
    assumptions: tuple[Assumption, ...]
    reason: str = ""
    largest: float | None = None
    estimate: bool = False

    def __str__(self) -> str:
        return f"{self.value:.6g} [{self.state}]   {self.equation}   ({self.source})"

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
        """The first that is true of ``infinite``, ``assumption failed``, ``estimate``, ``vacuous``; else ``not refuted``.

        Not refuted is not proven: some assumptions cannot be checked (ρ over all of parameter space), others were not.
        """
        if not math.isfinite(self.value):
            return "infinite"
        if not self.applies:
            return "assumption failed"
        if self.estimate:
            return "estimate"
        return "vacuous" if self.vacuous else "not refuted"

    def to_dict(self) -> dict[str, Any]:
        """As plain values; infinite numbers become None, which JSON can hold."""
        plain = {**asdict(self), "applies": self.applies, "vacuous": self.vacuous, "state": self.state}
        finite = {name: number if math.isfinite(number) else None for name, number in self.terms.items()}
        return {**plain, "value": self.value if math.isfinite(self.value) else None, "terms": finite}


@dataclass(frozen=True)
class Checks:
    """What is known of the run that a bound is to be compared with; whatever is None was not checked.

    Attributes:
        ridge: λ of the λ‖θ − θ⁰‖² that A minimised with.
        gradient_norm: the largest ‖∇F‖₂ of the objective F that the theorem speaks of, at A(S) and, on Sⁱ, at A(Sⁱ).
            With ε of it the proof gives ρ(cρ + 2ε)/μ in the place of cρ²/μ; both count as minimisers where that is at
            most a hundredth more.
        mask_changes: the largest number of coordinates by which the mask chosen on an Sⁱ differs from that on S. The
            proofs compare minimisers over one and the same set.
        replicas_checked: for how many i the curvature on Sⁱ was taken at A(S) and at A(Sⁱ) as well, Λ_min being the least.
        residual: of the computed Λ_min, which is taken off it; within it the sign is not decided.
        loss_bound: C with 0 ≤ ℓ ≤ C, so that a loss difference above C is vacuous.

    Raises:
        UsageError: a number that is negative or not finite.
    """

    ridge: float | None = None
    gradient_norm: float | None = None
    mask_changes: int | None = None
    replicas_checked: int = 0
    residual: float = 0.0
    loss_bound: float | None = None

    def __post_init__(self) -> None:
        for name in ("ridge", "gradient_norm", "mask_changes", "replicas_checked", "residual", "loss_bound"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} = {value}: use a finite number of at least 0")


UNKNOWN = Checks()

LIPSCHITZ = Assumption("loss is ρ-Lipschitz", None, "a measured ρ is the largest gradient seen, a lower estimate")

SYMMETRIC = Assumption("A is symmetric in S", None, "a fixed order of batches is not, a full batch is")


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
    if not n >= 2:
        raise UsageError(f"n = {n}: leaving one out needs n ≥ 2")
    if n != int(n):
        raise UsageError(f"n = {n}: use a whole number of examples")


def check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise UsageError(f"δ = {delta} is outside (0, 1): it is the probability that the bound may fail")


def check_risk(loss_bound: float, delta: float, empirical_risk: float) -> None:
    if not (math.isfinite(loss_bound) and loss_bound > 0):
        raise UsageError(f"loss bound C = {loss_bound}: use a finite positive number")
    check_delta(delta)
    if not 0 <= empirical_risk <= loss_bound:
        raise UsageError(f"empirical risk = {empirical_risk} is outside [0, C] with C = {loss_bound}")
