"""The constants that the bounds need, estimated from a trained model and its replicas, and the bounds that they give."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stability.bounds.base import Bound, Checks, check_delta
from stability.bounds.pointwise import first_order_stability, hard_mask_stability, pointwise_hypothesis_stability
from stability.bounds.risk import generalization, generalization_from_stability, generalization_from_uniform_stability
from stability.checks import check_whole
from stability.derivatives.curvature import Curvature, Eigenvalue, least_eigenvalue
from stability.derivatives.gradients import mean_gradient, per_example_gradients
from stability.derivatives.influence import first_order_changes
from stability.errors import MeasurementError, UsageError
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.units import LEAVING_ONE_OUT
from stability.masks import Mask, Parameters
from stability.problems.problem import Examples, Problem
from stability.training.replicas import Replicas
from stability.training.threads import suited_to

__all__ = ["Constants", "estimate_constants", "measured_bounds"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Constants:
    """The constants that the bounds need, as :func:`estimate_constants` finds them. All losses are in the unit of ℓ.

    The *trained* coordinates, I, are those of the mask, the new head included.

    Attributes:
        lipschitz: ρ, the largest ‖∇ℓ(θ, z)‖₂ over all parameters, seen at A(S) on train and test examples and at each A(Sⁱ)
            on z_i. It is a lower estimate where a true Lipschitz constant covers all of parameter space. For a linear model
            with squared or logistic loss, and every i left out, it is exactly the constant that Theorem 1's proof needs.
        tuned_lipschitz: ρ_I, the largest of those gradients' norms over the trained coordinates alone.
        least_eigenvalue: Λ_min of the Hessian of the mean loss over all parameters: the least of those that were taken.
        tuned_least_eigenvalue: Λ_min(H_II), the least eigenvalue over the trained coordinates alone.
        replicas_checked: for how many i the curvature of the loss on Sⁱ was taken at A(S) and at A(Sⁱ) too.
        gradient_norm: the largest ‖∇F‖₂ over all parameters, where F is the loss with the ridge that was trained with: on S
            at A(S), and on each Sⁱ at A(Sⁱ).
        tuned_gradient_norm: the largest of those norms over the trained coordinates alone.
        loss_bound: C, the largest ℓ seen, of A(S) on train and test examples and of each A(Sⁱ) on z_i.
        least_loss: the least ℓ seen on the same examples. The bounds on the expected loss need 0 ≤ ℓ.
        empirical_risk: R̂, the mean training loss of A(S).
        first_order: ℓ_i(A(Sⁱ)) − ℓ_i(A(S)) to first order, float64 (a,), for the a examples that were left out; None where
            it could not be had, and then ``notes`` says why.
        notes: for each constant that is missing, why.
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


def estimate_constants(estimate: StabilityEstimate, check_replicas: int = 0, memory_budget: int | None = None) -> Constants:
    """Estimate ρ, Λ_min, C and R̂ from the models behind a leave-one-out measurement.

    Args:
        estimate: the measurement. Its replicas are the models; those that failed are left out.
        check_replicas: for how many i the curvature on Sⁱ is taken at A(S) and at A(Sⁱ) too; the least one is used. Theorem
            1 assumes that the curvature does not fall between A(S) and A(Sⁱ). Those i come first whose loss changed most;
            a number above that of the examples left out means all of them.
        memory_budget: bytes for one block of examples; an eighth of what is free by default.

    Returns:
        The constants. One that could not be had is no error: ``notes`` says why it is missing.

    Raises:
        UsageError: ``check_replicas`` is no whole number of at least 0.

    Example:
        >>> from stability import leave_one_out, selectors
        >>> from stability.problems import convex
        >>> from stability.training import Minimisation
        >>> algorithm = Minimisation(selectors.Random(sparsity=0.5), ridge=0.1)
        >>> estimate = leave_one_out.measure(convex.logistic(n=20, seed=0).problem, algorithm)
        >>> constants = estimate_constants(estimate)
        >>> constants.lipschitz > constants.tuned_lipschitz > 0, constants.least_eigenvalue.converged
        (True, True)
    """
    check_whole(0, check_replicas=check_replicas)
    if estimate.loop is not None:
        raise UsageError(
            f"the bounds need the parameters of replicas, and loop {estimate.loop.method!r} has none: use stability.measure"
        )
    if estimate.units.words != LEAVING_ONE_OUT:
        raise UsageError(
            f"the bounds speak of leaving single examples out, and this estimate is of {estimate.units.words.doing}: measure again "
            "without a perturbation"
        )
    with suited_to(estimate.replicas.problem, estimate.replicas.algorithm):
        return _estimated(estimate, check_replicas, memory_budget)


def _estimated(estimate: StabilityEstimate, check_replicas: int, memory_budget: int | None) -> Constants:
    replicas, table = estimate.replicas, estimate.per_example
    problem, algorithm, model = replicas.problem, replicas.algorithm, replicas.parameters(0)
    ridge, mask = algorithm.ridge_for(replicas.masks[0]), algorithm.tunable_mask(problem, replicas.masks[0])
    finished = table[table["failed_step"] < 0]
    left = [(row, int(i)) for row, (i, step) in enumerate(zip(table["index"], table["failed_step"], strict=True), 1) if step < 0]

    norms = [_norms(problem, model, examples, mask=mask, memory_budget=memory_budget) for examples in (problem.train, problem.test)]
    slopes = [_slope(replicas, 0, problem.train, memory_budget)]
    for row, i in left:
        one = problem.train.take(slice(i, i + 1))
        norms.append(_norms(problem, replicas.parameters(row), one, mask=mask, memory_budget=memory_budget))
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
    notes, changes = [], None
    try:
        home, everything = _least(matrices)
        tuned = everything
        if mask.count < mask.total:
            home, tuned = _least(Curvature(problem, at, examples, mask, memory_budget=memory_budget) for at, examples in places)
    except MeasurementError as error:
        home = everything = tuned = Eigenvalue(math.nan, math.nan, products=0, converged=False)
        notes.append(f"no bound with a curvature: {error}")
    if problem.insertion is not None and not problem.insertion.equivalent:
        notes.append(f"no bounds: {problem.insertion.note}")
    for name, eigenvalue in (("Λ_min", everything), ("Λ_min(H_II)", tuned)):
        if not eigenvalue.converged and eigenvalue.products:
            notes.append(f"{name} is unknown: Lanczos did not converge in {eigenvalue.products} products")
    if home.converged and home.value + 2 * ridge <= 0:
        notes.append(f"no middle step: Λ_min(H_II) + 2λ = {home.value + 2 * ridge:.3g} at A(S) is not positive")
    elif not left:
        notes.append("no middle step: no replica was trained to its end")
    elif not torch.isfinite(slopes[0]).all():
        notes.append("no middle step: a gradient at A(S) is not finite")
    elif home.converged:
        try:
            hessian = Curvature(problem, model, problem.train, mask, memory_budget=memory_budget)
            changes = first_order_changes(hessian, ridge, finished["index"].tolist())
        except MeasurementError as error:
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
    """Every bound that follows from the constants, by name.

    * ``theorem_1``, ``theorem_1_sharp``, ``hard_mask`` and ``hard_mask_sharp`` bound β₂, and ``first_order`` estimates it.
    * ``theorem_2``, ``theorem_2_measured`` (with the measured β₁ and β₂) and ``uniform_measured`` (Bousquet & Elisseeff's
      Theorem 12, with the largest difference found) bound the expected loss.

    A bound is missing where its eigenvalue is unknown (``constants.notes`` says so), and a bound on the expected loss where
    some loss is negative or none is positive. Λ_min enters less its residual. All are missing where inserted modules do not start
    at the pretrained model's outputs (:class:`stability.problems.Insertion`).

    Args:
        estimate: the leave-one-out measurement.
        constants: the constants of the same models, from :func:`estimate_constants`.
        delta: δ ∈ (0, 1), the probability that a bound on the expected loss may fail.

    Returns:
        The bounds by the names above, in the unit of ℓ.

    Raises:
        UsageError: δ outside (0, 1), or no example was left out, as by an approximate estimate.

    Example:
        >>> from stability import leave_one_out, selectors
        >>> from stability.problems.solvable import linear_regression
        >>> from stability.training import Minimisation
        >>> problem = linear_regression([[1.0], [2.0], [2.0]], [0.0, 2.0, 1.0]).problem
        >>> estimate = leave_one_out.measure(problem, Minimisation(selectors.FullTuning(), ridge=0.5))
        >>> found = measured_bounds(estimate, estimate_constants(estimate, check_replicas=3))
        >>> found["theorem_1"].state.value, estimate.value < found["theorem_1_sharp"].value < found["theorem_1"].value
        ('vacuous', True)
    """
    check_delta(delta)
    if not estimate.retrainings:
        raise UsageError(
            f"bounds are measured at left-out replicas, and the {estimate.estimator} estimate left out none: use Assisted()"
        )
    insertion = estimate.replicas.problem.insertion
    if insertion is not None and not insertion.equivalent:
        return {}
    algorithm, selected, n = estimate.replicas.algorithm, estimate.replicas.masks[0], estimate.n
    ridge, p = algorithm.ridge_for(selected), algorithm.sparsity_for(selected)
    bounded = constants.least_loss >= 0 and constants.loss_bound > 0
    risk: dict[str, Any] = {"n": n, "loss_bound": constants.loss_bound, "delta": delta, "empirical_risk": constants.empirical_risk}
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
        known, rho = checks(constants.gradient_norm, least.residual), constants.lipschitz
        theorem_1 = partial(
            pointwise_hypothesis_stability, lipschitz=rho, least_eigenvalue=least.value, sparsity=p, n=n, checks=known
        )
        found["theorem_1"], found["theorem_1_sharp"] = theorem_1(), theorem_1(sharp=True)
        if bounded:
            found["theorem_2"] = generalization(lipschitz=rho, least_eigenvalue=least.value, sparsity=p, **risk, checks=known)
    if (tuned := constants.tuned_least_eigenvalue).converged:
        known, rho = checks(constants.tuned_gradient_norm, tuned.residual), constants.tuned_lipschitz
        hard_mask = partial(hard_mask_stability, lipschitz=rho, least_eigenvalue=tuned.value, ridge=ridge, n=n, checks=known)
        found["hard_mask"], found["hard_mask_sharp"] = hard_mask(), hard_mask(sharp=True)
    if constants.first_order is not None:
        found["first_order"] = first_order_stability(
            constants.first_order.tolist(),
            lipschitz=constants.tuned_lipschitz,
            ridge=ridge,
            n=n,
            checks=checks(constants.tuned_gradient_norm),
        )
    if bounded:
        found["theorem_2_measured"] = generalization_from_stability(
            hypothesis=estimate.hypothesis.value, pointwise=estimate.value, **risk
        )
        found["uniform_measured"] = generalization_from_uniform_stability(uniform=estimate.maximum, **risk)
    return found


def _norms(problem: Problem, parameters: Parameters, examples: Examples, *, mask: Mask, memory_budget: int | None) -> Tensor:
    """‖∇ℓ_i‖₂ over all parameters and over the mask's, (N, 2), from one pass."""
    everything = Mask.full(parameters)
    mine = everything.contains(mask).to(next(iter(parameters.values())).device)
    blocks = per_example_gradients(problem, parameters, examples, everything, memory_budget=memory_budget)
    gradients = (block.double() for block in blocks)
    return torch.cat([torch.stack([block.norm(dim=1), block[:, mine].norm(dim=1)], 1) for block in gradients])


def _slope(replicas: Replicas, row: int, examples: Examples, memory_budget: int | None) -> Tensor:
    """‖∇F‖₂ at one replica over all parameters and over those that it trained, F on ``examples`` with its ridge: (2,)."""
    problem, algorithm, parameters = replicas.problem, replicas.algorithm, replicas.parameters(row)
    everything, selected = Mask.full(parameters), replicas.masks[row]
    mean = mean_gradient(problem, parameters, examples, memory_budget)
    moved = (everything.gather(parameters) - everything.gather(replicas.start)).double()
    slope = mean + 2 * algorithm.ridge_for(selected) * moved
    mine = everything.contains(algorithm.tunable_mask(problem, selected)).to(slope.device)
    return torch.stack([slope.norm(), slope[mine].norm()])


def _least(matrices: Iterable[Curvature]) -> tuple[Eigenvalue, Eigenvalue]:
    """The first one's least eigenvalue, and the least of all, not converged where any is not; one matrix at a time."""
    found = [least_eigenvalue(matrix) for matrix in matrices]
    lost = [eigenvalue for eigenvalue in found if not eigenvalue.converged]
    return found[0], lost[0] if lost else min(found, key=lambda eigenvalue: eigenvalue.value - eigenvalue.residual)
