"""What every bound returns, what is known of a run, and the ranges that the constants must be in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from html import escape
from numbers import Integral
from typing import TYPE_CHECKING, Any

from stability.checks import check_number, check_positive
from stability.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Assumption", "Bound", "Checks", "State"]


class State(StrEnum):
    """What can be said of a bound on one run. Each member is a string, so that it is written and compared as its value.

    Example:
        >>> State.NOT_REFUTED == "not refuted", f"{State.NOT_REFUTED}"
        (True, 'not refuted')
    """

    INFINITE = "infinite"
    """The right-hand side is infinite: the theorem gives no number, or one too large for a floating-point number."""

    ASSUMPTION_FAILED = "assumption failed"
    """The value is finite, and an assumption of the theorem is known to be false for this run."""

    ESTIMATE = "estimate"
    """The value stands for the bounded quantity and is no upper bound on it."""

    VACUOUS = "vacuous"
    """The value is at least the range of the loss, so that it says nothing new."""

    NOT_REFUTED = "not refuted"
    """No assumption is known to be false. That is no proof: some cannot be checked (ρ over all of parameter space), others
    were not.
    """


@dataclass(frozen=True)
class Assumption:
    """One condition of a theorem, and whether it held for the run.

    Attributes:
        name: the condition, in words.
        held: whether it held; None where it was not checked.
        detail: the number that decided it, or why it was not checked.

    Example:
        >>> Assumption("α_t ≤ 2/b", held=True, detail="largest α_t = 0.1, 2/b = 2").held
        True
    """

    name: str
    held: bool | None
    detail: str


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A bound with the numbers, the source and the assumptions that it stands on.

    Attributes:
        name: the quantity that is bounded.
        value: the right-hand side, in the unit of the loss; ``inf`` where the theorem gives none.
        terms: by name, the numbers that went in and the parts that came out.
        equation: the formula of the right-hand side.
        source: paper and theorem.
        assumptions: the theorem's conditions, each with whether it held.
        reason: why the value is infinite; empty where it is finite.
        largest: the most that the bounded quantity can be, whatever the theorem says; None where no range of the loss was
            given.
        estimate: whether the value stands for the quantity instead of bounding it.

    Example:
        >>> from stability.bounds import sgd_convex
        >>> print(sgd_convex(lipschitz=1, smoothness=1, learning_rates=[0.25] * 50, n=100))
        0.25 [not refuted]   2 ρ² Σ_t α_t / n   (Hardt, Recht & Singer 2016, Theorem 3.8)
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

    def _repr_html_(self) -> str:
        import pandas as pd

        held = {True: "held", False: "failed", None: "not checked"}
        facts = {"state": str(self.state), "formula": self.equation, "source": self.source}
        facts |= {"why": self.reason} if self.reason else {}
        facts |= {one.name: f"{held[one.held]}: {one.detail}" for one in self.assumptions}
        with pd.option_context("display.max_colwidth", None):
            table = pd.DataFrame(facts.items()).to_html(index=False, header=False, border=0)
        table = table.replace("<td>", "<td style='text-align: left'>")  # notebooks align to the right
        kind = "estimated as" if self.estimate else "at most"
        return f"<p><b>{escape(self.name)}: {kind} {self.value:.4g}</b></p>{table}"

    @property
    def applies(self) -> bool:
        """Whether the value is finite and no assumption is known to have failed."""
        return math.isfinite(self.value) and all(assumption.held is not False for assumption in self.assumptions)

    @property
    def vacuous(self) -> bool | None:
        """Whether the value is at least the range of the loss; None where no range was given."""
        return None if self.largest is None else bool(self.value >= self.largest)

    @property
    def state(self) -> State:
        """The first that is true, in the order of :class:`State`; ``State.NOT_REFUTED`` where no other is."""
        if not math.isfinite(self.value):
            return State.INFINITE
        if not self.applies:
            return State.ASSUMPTION_FAILED
        if self.estimate:
            return State.ESTIMATE
        return State.VACUOUS if self.vacuous else State.NOT_REFUTED

    def plot(self) -> Figure:
        """Draw the value beside the numbers that it is made of (:func:`stability.plotting.bound`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.bound(self))

    def to_dict(self) -> dict[str, Any]:
        """The fields and what follows from them (``applies``, ``vacuous``, ``state``), as JSON can hold them.

        Returns:
            Plain values by name; a number that is not finite is None.
        """
        plain = {**asdict(self), "applies": self.applies, "vacuous": self.vacuous, "state": self.state.value}
        terms = {name: _plain(number) for name, number in self.terms.items()}
        largest = None if self.largest is None else _plain(self.largest)
        return {**plain, "value": _plain(self.value), "terms": terms, "largest": largest}


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What is known of the run that a bound is compared with. None means that it was not checked.

    Attributes:
        ridge: λ of the regulariser λ‖θ − θ⁰‖² that A minimised with.
        gradient_norm: the largest ‖∇F‖₂ of the objective F that the theorem speaks of, at A(S) on S and at A(Sⁱ) on each
            Sⁱ. Where it is ε, the proof gives ρ(cρ + 2ε)/μ instead of cρ²/μ. A(S) and A(Sⁱ) count as minimisers where the
            first is at most one per cent larger than the second.
        mask_changes: the largest number of coordinates by which the mask chosen on an Sⁱ differs from the mask chosen on S.
            The proofs compare minimisers over the same coordinates.
        replicas_checked: for how many i the curvature of the loss on Sⁱ was taken at A(S) and at A(Sⁱ) too. Λ_min is the
            least of all that were taken.
        residual: the residual of the computed Λ_min. It is subtracted from Λ_min, and where |Λ_min| is less, the sign of
            Λ_min is not decided.
        loss_bound: C with 0 ≤ ℓ ≤ C, which makes a bound above C vacuous.

    Raises:
        UsageError: a number that is negative or not finite.

    Example:
        >>> from stability.bounds import hard_mask_stability
        >>> constants = {"lipschitz": 1, "least_eigenvalue": 0.5, "ridge": 0.25, "n": 100}
        >>> hard_mask_stability(**constants, checks=Checks(ridge=0.5)).state.value  # trained with another ridge
        'assumption failed'
    """

    ridge: float | None = None
    gradient_norm: float | None = None
    mask_changes: int | None = None
    replicas_checked: int = 0
    residual: float = 0.0
    loss_bound: float | None = None

    def __post_init__(self) -> None:
        check_number(0, **{f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None})


UNKNOWN = Checks()
"""Nothing is known of the run."""

LIPSCHITZ = Assumption("loss is ρ-Lipschitz", None, "a measured ρ is the largest gradient seen, a lower estimate")
"""Every theorem here needs it, and no measurement over finitely many points can confirm it."""

SYMMETRIC = Assumption("A is symmetric in S", None, "a fixed order of batches is not, a full batch is")
"""The bounds on the expected loss need an algorithm that does not depend on the order of the examples."""


def at_most(loss_bound: float) -> Assumption:
    """The assumption that no loss exceeds ``loss_bound``, which is C."""
    return Assumption("loss at most C", None, f"C = {loss_bound:.4g}")


def check_lipschitz(lipschitz: float) -> None:
    """Check that ρ, the Lipschitz constant of the loss, is a finite number of at least 0; a UsageError otherwise."""
    check_number(0, **{"lipschitz ρ": lipschitz})


def check_stability(**values: float) -> None:
    """Check that each value is a number of at least 0, or infinite; a UsageError otherwise."""
    check_number(0, **{name: value for name, value in values.items() if value != math.inf})


def check_delta(delta: float) -> None:
    """Check that δ is a number in (0, 1); a UsageError otherwise."""
    check_number(**{"delta δ": delta})
    if not 0 < delta < 1:
        raise UsageError(f"delta δ = {delta} is outside (0, 1): use the probability with which the bound may fail, such as 0.1")


def check_risk(loss_bound: float, delta: float, empirical_risk: float) -> None:
    """Check that C is positive, that δ is in (0, 1) and that R̂ is in [0, C]; a UsageError otherwise."""
    check_positive(**{"loss_bound C": loss_bound})
    check_delta(delta)
    check_number(0, **{"empirical_risk R̂": empirical_risk})
    if empirical_risk > loss_bound:
        raise UsageError(
            f"empirical_risk R̂ = {empirical_risk} is above loss_bound C = {loss_bound}: use the mean training loss, and a C that "
            "no loss exceeds"
        )


def _plain(number: float) -> float | None:
    """``number`` as a plain int or float, whatever library it is from; None where it is not finite."""
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(number, Integral) else float(number)
