from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge

from stability import Examples, FineTuning, MeasurementError, StabilityError, UsageError, leave_one_out, problems
from stability.derivatives.curvature import Curvature
from stability.leave_one_out.estimators import Exact, Sampled
from stability.problems.convex import CONVEX
from stability.problems.solvable import Solvable, linear_regression, logistic_regression, quadratic
from stability.selectors import SAM, FullTuning, MagPruning, Random, Selector
from stability.training import Minimisation
from stability.training.replicas import train

RIDGE = 0.05


def diabetes(n: int = 12) -> Solvable:
    data = load_diabetes()
    return linear_regression(data.data[:n, :4] * 20, data.target[:n] / 100)


def cancer(n: int = 14) -> Solvable:
    data = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    return logistic_regression(x[10 : 10 + n, :4], data.target[10 : 10 + n].astype(float))


def bowl(n: int = 9) -> Solvable:
    draw = np.random.default_rng(0)
    root = draw.standard_normal((4, 4))
    return quadratic(root.T @ root, draw.standard_normal((n, 4)), draw.standard_normal(4), draw.standard_normal((5, 4)))


EACH = pytest.mark.parametrize("solvable", [diabetes(), cancer(), bowl()], ids=["linear", "logistic", "quadratic"])


def test_linear_closed_form_equals_scikit_learn_brute_force() -> None:
    solvable = diabetes()
    n, x, y = solvable.problem.n, solvable.inputs[:, 0], solvable.targets[:, 0]
    for i in range(n):
        keep = np.arange(n) != i
        model = Ridge(alpha=2 * RIDGE * (n - 1), fit_intercept=False, tol=1e-12).fit(x[keep], y[keep])
        assert math.isclose(solvable.leave_one_out(RIDGE)[i, 1], 0.5 * (x[i] @ model.coef_ - y[i]) ** 2, abs_tol=1e-10)


def test_logistic_newton_equals_scikit_learn_brute_force() -> None:
    solvable = cancer()
    n, x, y = solvable.problem.n, solvable.inputs[:, 0], solvable.targets[:, 0]
    exact = solvable.leave_one_out(RIDGE)
    for i in range(n):
        keep = np.arange(n) != i
        model = LogisticRegression(C=1 / (2 * RIDGE * (n - 1)), fit_intercept=False, tol=1e-12, max_iter=10_000)
        f = float(x[i] @ model.fit(x[keep], y[keep]).coef_[0])
        assert math.isclose(exact[i, 1], np.logaddexp(0, f) - y[i] * f, abs_tol=1e-6)


def test_quadratic_losses_are_what_they_say() -> None:
    draw = np.random.default_rng(1)
    root, centres, start, theta = (draw.standard_normal(shape) for shape in ((3, 3), (6, 3), 3, 3))
    hessian = root.T @ root
    solvable = quadratic(hessian, centres, start)
    expected = [0.5 * (theta - c) @ hessian @ (theta - c) for c in centres]
    np.testing.assert_allclose(solvable.losses(theta), expected, rtol=1e-12)
    np.testing.assert_allclose(solvable.hessian(theta), hessian, rtol=0, atol=1e-12)
    minimum = np.linalg.solve(hessian + 2 * RIDGE * np.eye(3), hessian @ centres.mean(0) + 2 * RIDGE * start)
    np.testing.assert_allclose(solvable.minimise(RIDGE), minimum, rtol=1e-10)


@EACH
@pytest.mark.parametrize("free", [None, np.array([0, 2])], ids=["full", "masked"])
def test_minimisers_and_leave_one_out_equal_scipy(solvable: Solvable, free: NDArray[np.int64] | None) -> None:
    """BFGS on the objective written out once more, for S and for every Sⁱ; what is not free keeps its bits."""
    n, at = solvable.problem.n, np.arange(4) if free is None else free

    def by_bfgs(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        def objective(values: NDArray[np.float64]) -> float:
            theta = solvable.start.copy()
            theta[at] = values
            return float(weights @ solvable.losses(theta) / weights.sum() + RIDGE * ((theta - solvable.start) ** 2).sum())

        theta = solvable.start.copy()
        theta[at] = minimize(objective, theta[at], method="BFGS", options={"gtol": 1e-9}).x
        return theta

    full = solvable.minimise(RIDGE, free=free)
    np.testing.assert_allclose(full, by_bfgs(np.ones(n)), rtol=0, atol=1e-4)
    frozen = np.setdiff1d(np.arange(4), at)
    assert (full[frozen] == solvable.start[frozen]).all()
    exact = solvable.leave_one_out(RIDGE, free)
    for i in range(n):
        theta = by_bfgs((np.arange(n) != i).astype(float))
        np.testing.assert_allclose(exact[i], [solvable.losses(full)[i], solvable.losses(theta)[i]], rtol=1e-4, atol=1e-4)


@EACH
def test_gradients_and_hessian_equal_those_of_the_problem(solvable: Solvable) -> None:
    theta = np.random.default_rng(2).standard_normal(4)
    parameters = {"weight": torch.tensor(theta, requires_grad=True)}
    for i in range(solvable.problem.n):
        loss = solvable.problem.losses(parameters, solvable.problem.train.take(slice(i, i + 1))).sum()
        assert math.isclose(loss.item(), solvable.losses(theta)[i], rel_tol=1e-12)
        (gradient,) = torch.autograd.grad(loss, parameters["weight"])
        np.testing.assert_allclose(gradient, solvable.gradients(theta)[i], rtol=0, atol=1e-12)
    for kind in ("hessian", "gauss_newton"):  # a model that is linear in θ has no curvature of its own
        product = Curvature(solvable.problem, solvable.parameters(theta), solvable.problem.train, kind=kind).product(torch.eye(4))
        np.testing.assert_allclose(product, solvable.hessian(theta), rtol=0, atol=1e-12)


def minimising(selector: Selector) -> Minimisation:
    return Minimisation(selector, ridge=RIDGE, gradient_tolerance=1e-10)


def tuning(selector: Selector) -> FineTuning:
    """Full-batch AdamW whose learning rate falls to 0: it reaches the minimiser to about 1e-8."""
    return FineTuning(selector, steps=3000, batch_size=10**6, learning_rate=0.02, schedule="linear", betas=(0.9, 0.99), ridge=RIDGE)


@EACH
@pytest.mark.parametrize("algorithm", [minimising, tuning])
@pytest.mark.parametrize("selector", [FullTuning(), Random(0.5)], ids=["full", "masked"])
def test_measured_differences_equal_the_exact_ones(
    solvable: Solvable, algorithm: Callable[[Selector], Any], selector: Selector
) -> None:
    problem, n = solvable.problem, solvable.problem.n
    free = selector.select(problem, 0).indices["weight"].numpy()
    estimate = leave_one_out.measure(problem, algorithm(selector), estimator=Exact(), device="cpu")
    exact, table = solvable.leave_one_out(RIDGE, free), estimate.per_example
    np.testing.assert_allclose(table["loss_full"], exact[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(table["loss_left_out"], exact[:, 1], rtol=0, atol=1e-6)
    differences = exact[:, 1] - exact[:, 0]
    np.testing.assert_allclose(table["difference"], differences, rtol=0, atol=1e-6)
    assert abs(estimate.value - np.abs(differences).mean()) < 1e-6
    assert abs(estimate.maximum - np.abs(differences).max()) < 1e-6
    full = solvable.minimise(RIDGE, free=free)
    thetas = [solvable.minimise(RIDGE, (np.arange(n) != i).astype(float), free) for i in range(n)]
    np.testing.assert_allclose(table["distance"], [np.linalg.norm(t - full) for t in thetas], rtol=0, atol=1e-6)
    with torch.no_grad():
        fresh = [problem.losses({"weight": torch.tensor(t)}, problem.test).numpy() for t in (full, *thetas)]
    assert abs(estimate.hypothesis.value - np.mean([np.abs(f - fresh[0]).mean() for f in fresh[1:]])) < 1e-6
    assert estimate.estimator == "exact"
    assert estimate.interval == (estimate.value, estimate.value)
    assert estimate.noise_floor < 1e-6 < estimate.value


@pytest.mark.parametrize("name", CONVEX)
def test_convex_problems_load_by_name_and_suit_every_selector(name: str) -> None:
    problem = problems.load(name, n=12, seed=3)
    assert (problem.name, problem.n, problem.settings["seed"]) == (name, 12, 3)
    assert len(problem.test) > 100
    assert not (problem.pretrained["weight"] == 0).any()
    again = problems.load(name, n=12, seed=3)
    assert torch.equal(problem.train.labels, again.train.labels)
    assert not torch.equal(problem.train.labels, problems.load(name, n=12, seed=4).train.labels)
    for selector in (FullTuning(), Random(0.3), MagPruning(0.3), SAM(0.3), SAM(0.3, curvature="gauss_newton")):
        assert leave_one_out.measure(problem, minimising(selector), Sampled(2), device="cpu").value > 0


@pytest.mark.parametrize(("name", "data", "d"), [("linear", "diabetes", 11), ("logistic", "breast_cancer", 31)])
def test_scikit_learns_data_are_split_without_overlap(name: str, data: str, d: int) -> None:
    problem = problems.load(name, n=100, seed=0, data=data)
    assert problem.m == d
    rows = torch.cat([problem.train.inputs["x"], problem.test.inputs["x"]]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert len(rows) == pytest.approx({"diabetes": 442, "breast_cancer": 569}[data] * 3 / 4, abs=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_regression(np.ones((3, 2)), np.ones(4)), r"inputs have shape \(3, 2\) and targets \(4,\): use \(n, d\)"),
        (lambda: linear_regression(np.full((3, 2), np.nan), np.ones(3)), "not finite"),
        (lambda: linear_regression(np.ones((3, 2)), np.ones(3), start=np.ones(3)), r"θ⁰ has shape \(3,\): use \(2,\)"),
        (lambda: linear_regression(np.ones((3, 2)), np.ones(3), test=(np.ones((3, 4)), np.ones(3))), "d = 4"),
        (lambda: logistic_regression(np.ones((2, 1)), np.array([0.0, 2.0])), "use 0 and 1"),
        (lambda: quadratic(np.array([[0.0, 1.0], [0.0, 0.0]]), np.ones((2, 2))), "symmetric"),
        (lambda: quadratic(-np.eye(2), np.ones((2, 2))), "least eigenvalue of the Hessian = -1"),
        (lambda: quadratic(np.eye(2), np.ones((2, 3))), r"centres have shape \(2, 3\): use"),
        (lambda: diabetes().minimise(0), "ridge = 0: use a positive number"),
        (lambda: diabetes(1).leave_one_out(1), r"n = 1: use a whole number of at least 2 \(one example is left out\)"),
        (lambda: Examples({"x": torch.ones(3, 2)}, torch.ones(2)), "3 rows of 'x' and 2 labels"),
        (lambda: problems.load("linear", data="houses"), "unknown data 'houses': use generated or diabetes"),
        (lambda: diabetes().problem.without(12), r"i = 12: use a whole number from 0 to 11 \(S has n = 12 examples\)"),
        (
            lambda: problems.load("linear", n=1),
            r"n = 1: use a whole number from 2 to 749 \(S and the test set share 750",
        ),
        (lambda: problems.load("linear", n=20.0), r"n = 20\.0: use a whole number"),
        (lambda: problems.load("logistic", d=0), "d = 0"),
        (lambda: problems.load("quadratic", seed=-1), "seed = -1: use a whole number of at least 0"),
        (lambda: problems.load("quadratic", rotated=1), "rotated = 1: use true or false"),
        (lambda: problems.load("digits", n=901), r"n = 901: use a whole number from 2 to 895 \(digits has 896 images of 5 to 9"),
        (lambda: problems.load("digits", seed=True), "seed = True: use a whole number"),
        (lambda: problems.load("linear", width=3), "problem 'linear' has no setting width: there is n, seed, data, d"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_a_failed_newton_s_method_is_a_failed_measurement() -> None:
    """Targets so large that their squares overflow: no step makes the objective smaller."""
    with pytest.raises(MeasurementError, match="Newton's method found no decrease at λ = 0.1"), np.errstate(over="ignore"):
        linear_regression(np.full((2, 1), 1e200), np.array([0.0, 1e200])).minimise(0.1)


def test_a_minimisation_that_stops_short_has_failed() -> None:
    with pytest.raises(
        StabilityError, match=r"A\(S\) did not reach ‖∇F‖ ≤ 1e-10 in 2 steps with seed 0: use a larger gradient_tolerance"
    ):
        leave_one_out.measure(
            cancer().problem,
            Minimisation(FullTuning(), ridge=RIDGE, gradient_tolerance=1e-10, max_steps=2),
            estimator=Exact(),
            device="cpu",
        )


def test_data_that_are_not_finite_are_named() -> None:
    base = diabetes().problem
    spoilt = dataclasses.replace(base, train=dataclasses.replace(base.train, labels=torch.full_like(base.train.labels, math.nan)))
    with pytest.raises(StabilityError, match="could not start.*not finite at θ⁰"):
        leave_one_out.measure(spoilt, minimising(FullTuning()), estimator=Exact(), device="cpu")


def test_parameters_may_come_straight_from_a_module() -> None:
    base = diabetes().problem
    weight = torch.nn.Parameter(base.pretrained["weight"].clone())
    problem = dataclasses.replace(base, pretrained={"weight": weight})
    assert leave_one_out.measure(problem, minimising(FullTuning()), Sampled(2), device="cpu").value > 0


def test_a_noise_floor_run_that_failed_is_no_noise_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any, reverse_batches: bool = False, **more: Any) -> Any:
        replicas = train(*arguments, reverse_batches=reverse_batches, **more)
        return dataclasses.replace(replicas, failed_step=replicas.failed_step + 8) if reverse_batches else replicas

    monkeypatch.setattr("stability.leave_one_out.retraining.train", failing)
    with pytest.raises(StabilityError, match="the run that gives the noise floor did not reach .* in 7 steps"):
        leave_one_out.measure(diabetes().problem, minimising(FullTuning()), Sampled(2), device="cpu")
