"""``stability bounds``: the theorems for given constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from stability.bounds import Checks, generalization, pointwise_hypothesis_stability
from stability.bounds.base import check_delta
from stability.cli.about import Json
from stability.cli.parsing import WHOLE, given, options
from stability.cli.printing import print_json
from stability.errors import UsageError
from stability.reports.terminal import show_bounds

__all__ = ["bounds"]

CONSTANTS = Group.create_ordered("Constants of Theorem 1")
RISK = Group.create_ordered("Theorem 2", help="The bound on the expected loss, where C and R̂ are given.")


@options(CONSTANTS)
@dataclass(frozen=True, kw_only=True)
class Constants:
    """The constants of Theorem 1.

    Attributes:
        lipschitz: ρ, the Lipschitz constant of the loss.
        least_eigenvalue: Λ_min, the least eigenvalue of the Hessian of the loss; it may be negative.
        sparsity: p, the fraction of parameters that may change.
        n: Number of training examples.
        ridge: λ of the training, to be compared with 1 − p.
    """

    lipschitz: float
    least_eigenvalue: float
    sparsity: float
    n: Annotated[int, WHOLE]
    ridge: float | None = None


@options(RISK)
@dataclass(frozen=True, kw_only=True)
class Risk:
    """What Theorem 2 needs besides.

    Attributes:
        loss_bound: C, the largest loss.
        empirical_risk: R̂, the mean training loss.
        delta: δ, the probability with which the bound may fail.
    """

    loss_bound: float | None = None
    empirical_risk: float | None = None
    delta: float = 0.1


def bounds(*, constants: Constants, risk: Risk = Risk(), json: Annotated[Json, Parameter(group="Output")] = False) -> None:
    """Compute Theorem 1, and with a loss also Theorem 2, for given constants."""
    four = given(constants, "ridge")
    check_delta(risk.delta)
    checks = Checks(ridge=constants.ridge, loss_bound=risk.loss_bound)
    found = {
        "stability": pointwise_hypothesis_stability(**four, checks=checks),
        "stability_sharp": pointwise_hypothesis_stability(**four, sharp=True, checks=checks),
    }
    if risk.loss_bound is not None and risk.empirical_risk is not None:
        found["generalization"] = generalization(**four, **given(risk), checks=checks)
    elif risk.loss_bound is not None or risk.empirical_risk is not None:
        raise UsageError("the bound on the expected loss needs both --loss-bound C and --empirical-risk R̂")
    if json:
        values = {name: bound.to_dict()["value"] for name, bound in found.items()}
        print_json({**values, "bounds": {name: bound.to_dict() for name, bound in found.items()}})
    else:
        show_bounds(found)
