"""The constants that the bounds need, measured on a trained model and its replicas, and the bounds that they give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stability import bounds
from stability.bounds import Bound, Checks
from stability.curvature import Curvature, Eigenvalue, first_order_changes, least_eigenvalue
from stability.errors import StabilityError
from stability.gradients import per_example_gradients
from stability.leave_one_out import StabilityEstimate
from stability.masks import Mask, Parameters
from stability.problem import Examples, Problem

__all__ = ["Constants", "measure_constants", "measured_bounds"]


@dataclass(frozen=True, eq=False)
class Constants:
    """What the bounds ask for. *Tuned* stands for the coordinates that training could change, the new head included.

    Attributes:
        lipschitz: ρ, the largest ‖∇ℓ(θ, z)‖₂ over all parameters seen at A(S) on train and test examples and at each
            A(Sⁱ) on z_i. A lower estimate where a true Lipschitz constant covers all of parameter space; for a linear
            model with squared or logistic loss it is exactly the constant that Theorem 1's proof needs.
        tuned_lipschitz: ρ_I, the same over the tuned coordinates.
        least_eigenvalue: Λ_min of the Hessian of the mean loss over all parameters: the least of those taken.
        tuned_least_eigenvalue: Λ_min(H_II), the same over the tuned coordinates.
        replicas_checked: how many i had the curvature of the loss on Sⁱ taken at A(S) and at A(Sⁱ) too.
        gradient_norm: ‖∇F(A(S))‖₂ over the tuned coordinates, F the regularised loss that was trained on.
        loss_bound: C, the largest ℓ seen, of A(S) on train and test examples and of each A(Sⁱ) on z_i.
        empirical_risk: R̂, the mean training loss of A(S).
        first_order: ℓ_i(A(Sⁱ)) − ℓ_i(A(S)) to first order, for the i that were left out; None where H_II + 2λI is not
            positive definite.
    """

    lipschitz: float
    tuned_lipschitz: float
    least_eigenvalue: Eigenvalue
    tuned_least_eigenvalue: Eigenvalue
    replicas_checked: int
    gradient_norm: float
    loss_bound: float
    empirical_risk: float
    first_order: Tensor | None


def measure_constants(estimate: StabilityEstimate, check_replicas: int = 0) -> Constants:
    """ρ, Λ_min, C, R̂ and the rest, of the models behind a leave-one-out measurement.

    Args:
        estimate: its replicas are the models.
        check_replicas: take the curvature on Sⁱ at A(S) and at A(Sⁱ) as well, for as many i, those that moved most, and
            use the least: Theorem 1 assumes that the curvature does not fall between A(S) and A(Sⁱ).

    Example:
        >>> from stability import FineTuning, leave_one_out, problems, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=3)
        >>> constants = measure_constants(leave_one_out.measure(problems.load("digits", n=20), algorithm, retrainings=2))
        >>> constants.lipschitz > constants.tuned_lipschitz > 0, constants.least_eigenvalue.converged
        (True, True)
    """
    replicas, table = estimate.replicas, estimate.per_example
    problem, model, tunable = replicas.problem, replicas.parameters(0), replicas.algorithm.tunable
    mask = tunable(replicas.problem, replicas.masks[0])
    finished = [
        (row, int(i)) for row, (i, step) in enumerate(zip(table["index"], table["failed_step"], strict=True), 1) if step < 0
    ]
    norms = [_norms(problem, model, examples, mask) for examples in (problem.train, problem.test)]
    for row, i in finished:
        norms.append(_norms(problem, replicas.parameters(row), problem.train.take(slice(i, i + 1)), mask))
    largest = torch.cat(norms).max(0).values
    losses = [problem.losses(model, examples).detach().double() for examples in (problem.train, problem.test)]

    moved_most = sorted(finished, key=lambda pair: -abs(table["difference"].iloc[pair[0] - 1]))[:check_replicas]
    places = [(model, problem.train)]
    for row, i in moved_most:
        places += [(at, problem.train.without(i)) for at in (model, replicas.parameters(row))]
    everything = _least([Curvature(problem, at, examples) for at, examples in places])
    everywhere = mask.count == mask.total
    tuned = everything if everywhere else _least([Curvature(problem, at, examples, mask) for at, examples in places])

    ridge = replicas.algorithm.ridge_for(replicas.masks[0])
    mean = torch.cat(list(per_example_gradients(problem, model, problem.train, mask))).double().mean(0)
    gradient = mean + 2 * ridge * (mask.gather(model) - mask.gather(replicas.start)).double()
    changes = None
    if tuned.converged and tuned.value + 2 * ridge > 0:
        try:
            changes = first_order_changes(Curvature(problem, model, problem.train, mask), ridge, table["index"].tolist())
        except StabilityError:  # so close to singular that conjugate gradients say otherwise than Lanczos
            changes = None
    return Constants(
        lipschitz=float(largest[0]),
        tuned_lipschitz=float(largest[1]),
        least_eigenvalue=everything,
        tuned_least_eigenvalue=tuned,
        replicas_checked=len(moved_most),
        gradient_norm=float(gradient.norm()),
        loss_bound=max(*(loss.max().item() for loss in losses), table["loss_left_out"].max()),
        empirical_risk=losses[0].mean().item(),
        first_order=changes,
    )


def measured_bounds(estimate: StabilityEstimate, constants: Constants, delta: float = 0.1) -> dict[str, Bound]:
    """Every bound that the measured constants give, by name; those whose eigenvalue did not converge are missing.

    ``theorem_1``, ``theorem_1_sharp``, ``hard_mask``, ``hard_mask_sharp`` and ``first_order`` bound β₂ (or stand for it);
    ``theorem_2``, ``theorem_2_measured`` (fed with the measured β₁ and β₂) and ``uniform_measured`` (Bousquet &
    Elisseeff's Theorem 12, fed with the largest difference found) bound the expected loss.

    Args:
        estimate: what was measured.
        constants: of the same models.
        delta: δ of the bounds on the expected loss.

    Raises:
        UsageError: δ outside (0, 1).

    Example:
        >>> from stability import leave_one_out, selectors
        >>> from stability.solvable import linear_regression
        >>> from stability.training import Minimisation
        >>> problem = linear_regression([[1.0], [2.0], [2.0]], [0.0, 2.0, 1.0]).problem
        >>> estimate = leave_one_out.measure(problem, Minimisation(selectors.FullTuning(), ridge=0.5, tolerance=1e-9))
        >>> found = measured_bounds(estimate, measure_constants(estimate, check_replicas=3))
        >>> found["theorem_1"].applies, estimate.value < found["theorem_1_sharp"].value < found["theorem_1"].value
        (True, True)
    """
    algorithm, selected, n = estimate.replicas.algorithm, estimate.replicas.masks[0], estimate.n
    ridge, p = algorithm.ridge_for(selected), algorithm.sparsity_for(selected)
    risk = (constants.loss_bound, delta, constants.empirical_risk)
    found: dict[str, Bound] = {}

    def checks(eigenvalue: Eigenvalue) -> Checks:
        changes = int(estimate.per_example["mask_changes"].max())
        return Checks(ridge, constants.gradient_norm, changes, eigenvalue.residual, constants.loss_bound)

    if (least := constants.least_eigenvalue).converged:
        first = (constants.lipschitz, least.value, p, n)
        found["theorem_1"] = bounds.pointwise_hypothesis_stability(*first, checks=checks(least))
        found["theorem_1_sharp"] = bounds.pointwise_hypothesis_stability(*first, sharp=True, checks=checks(least))
        found["theorem_2"] = bounds.generalization(*first, *risk, checks=checks(least))
    if (tuned := constants.tuned_least_eigenvalue).converged:
        hard = (constants.tuned_lipschitz, tuned.value, ridge, n)
        found["hard_mask"] = bounds.hard_mask_stability(*hard, checks=checks(tuned))
        found["hard_mask_sharp"] = bounds.hard_mask_stability(*hard, sharp=True, checks=checks(tuned))
    if constants.first_order is not None:
        found["first_order"] = bounds.first_order_stability(constants.first_order.tolist(), constants.loss_bound)
    found["theorem_2_measured"] = bounds.generalization_from_stability(estimate.hypothesis.value, estimate.value, n, *risk)
    found["uniform_measured"] = bounds.generalization_from_uniform_stability(estimate.maximum, n, *risk)
    return found


def _norms(problem: Problem, parameters: Parameters, examples: Examples, mask: Mask) -> Tensor:
    """‖∇ℓ_i‖₂ over all parameters and over the mask's, (N, 2), from one pass."""
    everything = Mask.full(parameters)
    mine = everything.contains(mask).to(next(iter(parameters.values())).device)
    gradients = (block.double() for block in per_example_gradients(problem, parameters, examples, everything))
    return torch.cat([torch.stack([block.norm(dim=1), block[:, mine].norm(dim=1)], 1) for block in gradients])


def _least(matrices: list[Curvature]) -> Eigenvalue:
    """The least of their least eigenvalues; not converged where any is not."""
    found = [least_eigenvalue(matrix) for matrix in matrices]
    lost = [eigenvalue for eigenvalue in found if not eigenvalue.converged]
    return lost[0] if lost else min(found, key=lambda eigenvalue: eigenvalue.value)
