"""The constants that the bounds need, measured on a trained model and its replicas, and the bounds that they give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stability import bounds
from stability.bounds import Bound, Checks
from stability.bounds.base import check_delta
from stability.derivatives.curvature import Curvature, Eigenvalue, least_eigenvalue
from stability.derivatives.gradients import mean_gradient, per_example_gradients
from stability.derivatives.influence import first_order_changes
from stability.errors import StabilityError, UsageError
from stability.leave_one_out.measuring import StabilityEstimate
from stability.masks import Mask, Parameters
from stability.problems.problem import Examples, Problem
from stability.training.replicas import Replicas

__all__ = ["Constants", "measure_constants", "measured_bounds"]


@dataclass(frozen=True, eq=False)
class Constants:
    """What the bounds ask for. *Tuned* stands for the coordinates that training could change, the new head included.

    Attributes:
        lipschitz: ρ, the largest ‖∇ℓ(θ, z)‖₂ over all parameters seen at A(S) on train and test examples and at each
            A(Sⁱ) on z_i. A lower estimate where a true Lipschitz constant covers all of parameter space; for a linear
            model with squared or logistic loss, and every i left out, exactly the constant that Theorem 1's proof needs.
        tuned_lipschitz: ρ_I, the same over the tuned coordinates.
        least_eigenvalue: Λ_min of the Hessian of the mean loss over all parameters: the least of those taken.
        tuned_least_eigenvalue: Λ_min(H_II), the same over the tuned coordinates.
        replicas_checked: how many i had the curvature of the loss on Sⁱ taken at A(S) and at A(Sⁱ) too.
        gradient_norm: the largest ‖∇F‖₂ over all parameters, F the loss with the ridge that was trained with: on S at
            A(S), and on each Sⁱ at A(Sⁱ).
        tuned_gradient_norm: the same over the tuned coordinates.
        loss_bound: C, the largest ℓ seen, of A(S) on train and test examples and of each A(Sⁱ) on z_i.
        least_loss: the least ℓ seen there. The bounds on the expected loss need 0 ≤ ℓ.
        empirical_risk: R̂, the mean training loss of A(S).
        first_order: ℓ_i(A(Sⁱ)) − ℓ_i(A(S)) to first order, for the i that were left out; None where there is none.
        notes: why something is missing.
    """

    lipschitz: float
    tuned_lipschitz: float
    least_eigenvalue: Eigenvalue
    tuned_least_eigenvalue: Eigenvalue
    replicas_checked: int
    gradient_norm: float
    tuned_gradient_norm: float
    loss_bound: float
    least_loss: float
    empirical_risk: float
    first_order: Tensor | None = field(repr=False)
    notes: tuple[str, ...] = ()


def measure_constants(estimate: StabilityEstimate, check_replicas: int = 0, memory_budget: int | None = None) -> Constants:
    """ρ, Λ_min, C, R̂ and the rest, of the models behind a leave-one-out measurement.

    Args:
        estimate: its replicas are the models; those that failed are left out.
        check_replicas: take the curvature on Sⁱ at A(S) and at A(Sⁱ) as well, for as many i, those that moved most, and
            use the least: Theorem 1 assumes that the curvature does not fall between A(S) and A(Sⁱ). More than were
            left out means all of them.
        memory_budget: bytes for one block of examples; an eighth of what is free by default.

    Raises:
        UsageError: ``check_replicas`` is negative.

    Example:
        >>> from stability import FineTuning, leave_one_out, problems, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=3)
        >>> constants = measure_constants(leave_one_out.measure(problems.load("digits", n=20), algorithm, retrainings=2))
        >>> constants.lipschitz > constants.tuned_lipschitz > 0, constants.least_eigenvalue.converged
        (True, True)
    """
    if check_replicas < 0:
        raise UsageError(f"check_replicas = {check_replicas}: use at least 0")
    replicas, table = estimate.replicas, estimate.per_example
    problem, algorithm, model = replicas.problem, replicas.algorithm, replicas.parameters(0)
    ridge, mask = algorithm.ridge_for(replicas.masks[0]), algorithm.tunable(problem, replicas.masks[0])
    finished = table[table["failed_step"] < 0]
    left = [(row, int(i)) for row, (i, step) in enumerate(zip(table["index"], table["failed_step"], strict=True), 1) if step < 0]

    norms = [_norms(problem, model, examples, mask, memory_budget) for examples in (problem.train, problem.test)]
    slopes = [_slope(replicas, 0, problem.train, memory_budget)]
    for row, i in left:
        norms.append(_norms(problem, replicas.parameters(row), problem.train.take(slice(i, i + 1)), mask, memory_budget))
        slopes.append(_slope(replicas, row, problem.train.without(i), memory_budget))
    largest = torch.cat(norms).max(0).values
    slope = torch.stack(slopes).max(0).values
    losses = [problem.losses(model, examples).detach().double() for examples in (problem.train, problem.test)]
    every = torch.cat([*(loss.cpu() for loss in losses), torch.tensor(finished["loss_left_out"].tolist(), dtype=torch.float64)])

    moved_most = sorted(left, key=lambda pair: -abs(table["difference"].iloc[pair[0] - 1]))[:check_replicas]
    places = [(model, problem.train)]
    for row, i in moved_most:
        places += [(at, problem.train.without(i)) for at in (model, replicas.parameters(row))]
    matrices = (Curvature(problem, at, examples, memory_budget=memory_budget) for at, examples in places)
    home, everything = _least(matrices)
    tuned = everything
    if mask.count < mask.total:
        home, tuned = _least(Curvature(problem, at, examples, mask, memory_budget=memory_budget) for at, examples in places)
    notes, changes = [], None
    for name, eigenvalue in (("Λ_min", everything), ("Λ_min(H_II)", tuned)):
        if not eigenvalue.converged:
            notes.append(f"{name} is unknown: Lanczos did not converge in {eigenvalue.products} products")
    if home.converged and home.value + 2 * ridge <= 0:
        notes.append(f"no middle step: Λ_min(H_II) + 2λ = {home.value + 2 * ridge:.3g} at A(S) is not positive")
    elif home.converged:
        try:
            hessian = Curvature(problem, model, problem.train, mask, memory_budget=memory_budget)
            changes = first_order_changes(hessian, ridge, finished["index"].tolist())
        except StabilityError as error:
            notes.append(f"no middle step: {error}")
    return Constants(
        lipschitz=float(largest[0]),
        tuned_lipschitz=float(largest[1]),
        least_eigenvalue=everything,
        tuned_least_eigenvalue=tuned,
        replicas_checked=len(moved_most),
        gradient_norm=float(slope[0]),
        tuned_gradient_norm=float(slope[1]),
        loss_bound=float(every.max()),
        least_loss=float(every.min()),
        empirical_risk=min(losses[0].mean().item(), float(every.max())),  # a mean of equal losses may round above them
        first_order=changes,
        notes=tuple(notes),
    )


def measured_bounds(estimate: StabilityEstimate, constants: Constants, delta: float = 0.1) -> dict[str, Bound]:
    """Every bound that the measured constants give, by name. Missing are those whose eigenvalue is unknown
    (``constants.notes`` tells), and those on the expected loss where some loss is negative or none positive.

    ``theorem_1``, ``theorem_1_sharp``, ``hard_mask``, ``hard_mask_sharp`` and ``first_order`` bound β₂ (or stand for it);
    ``theorem_2``, ``theorem_2_measured`` (fed with the measured β₁ and β₂) and ``uniform_measured`` (Bousquet &
    Elisseeff's Theorem 12, fed with the largest difference found) bound the expected loss. Λ_min enters from below,
    less its residual.

    Args:
        estimate: what was measured.
        constants: of the same models.
        delta: δ of the bounds on the expected loss.

    Raises:
        UsageError: δ outside (0, 1).

    Example:
        >>> from stability import leave_one_out, selectors
        >>> from stability.problems.solvable import linear_regression
        >>> from stability.training.algorithm import Minimisation
        >>> problem = linear_regression([[1.0], [2.0], [2.0]], [0.0, 2.0, 1.0]).problem
        >>> estimate = leave_one_out.measure(problem, Minimisation(selectors.FullTuning(), ridge=0.5, tolerance=1e-9))
        >>> found = measured_bounds(estimate, measure_constants(estimate, check_replicas=3))
        >>> found["theorem_1"].state, estimate.value < found["theorem_1_sharp"].value < found["theorem_1"].value
        ('vacuous', True)
    """
    check_delta(delta)
    algorithm, selected, n = estimate.replicas.algorithm, estimate.replicas.masks[0], estimate.n
    ridge, p = algorithm.ridge_for(selected), algorithm.sparsity_for(selected)
    bounded = constants.least_loss >= 0 and constants.loss_bound > 0
    risk = (constants.loss_bound, delta, constants.empirical_risk)
    found: dict[str, Bound] = {}

    def checks(gradient_norm: float, residual: float = 0.0) -> Checks:
        return Checks(
            ridge=ridge,
            gradient_norm=gradient_norm,
            mask_changes=int(estimate.per_example["mask_changes"].max()),
            replicas_checked=constants.replicas_checked,
            residual=residual,
            loss_bound=constants.loss_bound if bounded else None,
        )

    if (least := constants.least_eigenvalue).converged:
        first, known = (constants.lipschitz, least.value, p, n), checks(constants.gradient_norm, least.residual)
        found["theorem_1"] = bounds.pointwise_hypothesis_stability(*first, checks=known)
        found["theorem_1_sharp"] = bounds.pointwise_hypothesis_stability(*first, sharp=True, checks=known)
        if bounded:
            found["theorem_2"] = bounds.generalization(*first, *risk, checks=known)
    if (tuned := constants.tuned_least_eigenvalue).converged:
        hard, known = (constants.tuned_lipschitz, tuned.value, ridge, n), checks(constants.tuned_gradient_norm, tuned.residual)
        found["hard_mask"] = bounds.hard_mask_stability(*hard, checks=known)
        found["hard_mask_sharp"] = bounds.hard_mask_stability(*hard, sharp=True, checks=known)
    if constants.first_order is not None:
        found["first_order"] = bounds.first_order_stability(
            constants.first_order.tolist(),
            lipschitz=constants.tuned_lipschitz,
            ridge=ridge,
            n=n,
            checks=checks(constants.tuned_gradient_norm),
        )
    if bounded:
        found["theorem_2_measured"] = bounds.generalization_from_stability(estimate.hypothesis.value, estimate.value, n, *risk)
        found["uniform_measured"] = bounds.generalization_from_uniform_stability(estimate.maximum, n, *risk)
    return found


def _norms(problem: Problem, parameters: Parameters, examples: Examples, mask: Mask, memory_budget: int | None) -> Tensor:
    """‖∇ℓ_i‖₂ over all parameters and over the mask's, (N, 2), from one pass."""
    everything = Mask.full(parameters)
    mine = everything.contains(mask).to(next(iter(parameters.values())).device)
    blocks = per_example_gradients(problem, parameters, examples, everything, memory_budget=memory_budget)
    gradients = (block.double() for block in blocks)
    return torch.cat([torch.stack([block.norm(dim=1), block[:, mine].norm(dim=1)], 1) for block in gradients])


def _slope(replicas: Replicas, row: int, examples: Examples, memory_budget: int | None) -> Tensor:
    """‖∇F‖₂ at one replica over all parameters and over those that it tuned, F on ``examples`` with its ridge: (2,)."""
    problem, algorithm, parameters = replicas.problem, replicas.algorithm, replicas.parameters(row)
    everything, selected = Mask.full(parameters), replicas.masks[row]
    mean = mean_gradient(problem, parameters, examples, memory_budget)
    moved = (everything.gather(parameters) - everything.gather(replicas.start)).double()
    slope = mean + 2 * algorithm.ridge_for(selected) * moved
    mine = everything.contains(algorithm.tunable(problem, selected)).to(slope.device)
    return torch.stack([slope.norm(), slope[mine].norm()])


def _least(matrices: Iterable[Curvature]) -> tuple[Eigenvalue, Eigenvalue]:
    """The first one's least eigenvalue, and the least of all, not converged where any is not; one matrix at a time."""
    found = [least_eigenvalue(matrix) for matrix in matrices]
    lost = [eigenvalue for eigenvalue in found if not eigenvalue.converged]
    return found[0], lost[0] if lost else min(found, key=lambda eigenvalue: eigenvalue.value - eigenvalue.residual)
