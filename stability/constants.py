"""The constants that the bounds need, measured on a trained model and its replicas."""

from __future__ import annotations

from dataclasses import dataclass

from stability.curvature import Eigenvalue, gradient_norms, least_eigenvalue
from stability.leave_one_out import StabilityEstimate

__all__ = ["Constants", "measure_constants"]


@dataclass(frozen=True)
class Constants:
    """What Theorems 1 and 2 ask for.

    Attributes:
        lipschitz: ρ, the largest ‖∇ℓ(θ, z)‖₂ over all parameters seen at A(S) on train and test examples and at each
            A(Sⁱ) on z_i. A lower estimate: a true Lipschitz constant covers all of parameter space.
        least_eigenvalue: Λ_min of the Hessian of the mean training loss at A(S), over all parameters.
        loss_bound: C, the largest ℓ seen, of A(S) on train and test examples and of each A(Sⁱ) on z_i.
        empirical_risk: R̂, the mean training loss of A(S).
    """

    lipschitz: float
    least_eigenvalue: Eigenvalue
    loss_bound: float
    empirical_risk: float


def measure_constants(estimate: StabilityEstimate) -> Constants:
    """ρ, Λ_min, C and R̂ of the models behind a leave-one-out measurement.

    Example:
        >>> from stability import FineTuning, leave_one_out, problems, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=3)
        >>> constants = measure_constants(leave_one_out.measure(problems.load("digits", n=20), algorithm, retrainings=2))
        >>> constants.lipschitz > 0, constants.least_eigenvalue.converged
        (True, True)
    """
    replicas = estimate.replicas
    problem, model = replicas.problem, replicas.parameters(0)
    norms = [gradient_norms(problem, model, examples).max().item() for examples in (problem.train, problem.test)]
    for row, (i, step) in enumerate(zip(estimate.per_example["index"], estimate.per_example["failed_step"], strict=True), 1):
        if step < 0:
            norms.append(gradient_norms(problem, replicas.parameters(row), problem.train.take(slice(i, i + 1))).item())
    losses = [problem.losses(model, examples).detach() for examples in (problem.train, problem.test)]
    return Constants(
        lipschitz=max(norms),
        least_eigenvalue=least_eigenvalue(problem, model, problem.train),
        loss_bound=max(*(loss.max().item() for loss in losses), estimate.per_example["loss_left_out"].max()),
        empirical_risk=losses[0].double().mean().item(),
    )
