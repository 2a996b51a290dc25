from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge

from stability import FineTuning, Problem, StabilityError, UsageError, leave_one_out
from stability.bounds import generalization, pointwise_hypothesis_stability
from stability.curvature import gradient_norms, hessian_vector_product, least_eigenvalue
from stability.replicas import Replicas, train
from stability.selectors import SAM, FullTuning, Random
from stability.solvable import Solvable, logistic_regression, ridge_regression
from stability.statistics import mean_of_population
from tests.reference import dense_hessian


def diabetes(n: int = 12, ridge: float = 0.05) -> Solvable:
    data = load_diabetes()
    x, y = data.data[:n, :4] * 20, data.target[:n] / 100
    return ridge_regression(x, y, ridge)


def cancer(n: int = 14, ridge: float = 0.02) -> Solvable:
    data = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    return logistic_regression(x[10 : 10 + n, :4], data.target[10 : 10 + n].astype(float), ridge)


def exactly(solvable: Solvable) -> FineTuning:
    """Full-batch AdamW whose learning rate falls to 0: it reaches the minimiser to about 1e-8."""
    return FineTuning(
        FullTuning(), steps=6000, batch_size=10**6, learning_rate=0.02, schedule="linear", betas=(0.9, 0.99), ridge=solvable.ridge
    )


def test_ridge_closed_form_equals_scikit_learn_brute_force() -> None:
    solvable = diabetes()
    n = solvable.problem.n
    for i in range(n):
        keep = np.arange(n) != i
        model = Ridge(alpha=2 * solvable.ridge * (n - 1), fit_intercept=False, tol=1e-12).fit(
            solvable.inputs[keep], solvable.targets[keep]
        )
        loss = 0.5 * (solvable.inputs[i] @ model.coef_ - solvable.targets[i]) ** 2
        assert math.isclose(solvable.leave_one_out()[i, 1], loss, abs_tol=1e-10)


def test_logistic_newton_equals_scikit_learn_brute_force() -> None:
    solvable = cancer()
    n = solvable.problem.n
    exact = solvable.leave_one_out()
    for i in range(n):
        keep = np.arange(n) != i
        model = LogisticRegression(C=1 / (2 * solvable.ridge * (n - 1)), fit_intercept=False, tol=1e-12, max_iter=10_000)
        model.fit(solvable.inputs[keep], solvable.targets[keep])
        f = float(solvable.inputs[i] @ model.coef_[0])
        assert math.isclose(exact[i, 1], np.logaddexp(0, f) - solvable.targets[i] * f, abs_tol=1e-6)


@pytest.mark.parametrize("solvable", [diabetes(), cancer()], ids=["ridge", "logistic"])
def test_measured_differences_equal_the_exact_ones(solvable: Solvable) -> None:
    estimate = leave_one_out.measure(solvable.problem, exactly(solvable), device="cpu")
    exact = solvable.leave_one_out()
    table = estimate.per_example
    np.testing.assert_allclose(table["loss_full"], exact[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(table["loss_left_out"], exact[:, 1], rtol=0, atol=1e-6)
    differences = exact[:, 1] - exact[:, 0]
    np.testing.assert_allclose(table["difference"], differences, rtol=0, atol=1e-6)
    assert abs(estimate.value - np.abs(differences).mean()) < 1e-6
    assert abs(estimate.maximum - np.abs(differences).max()) < 1e-6
    theta = [solvable.minimise(np.arange(solvable.problem.n) != i) for i in range(solvable.problem.n)]
    distances = [np.linalg.norm(t - solvable.minimise()) for t in theta]
    np.testing.assert_allclose(table["distance"], distances, rtol=0, atol=1e-6)
    fresh = np.mean([np.abs(solvable.losses(t) - solvable.losses(solvable.minimise())).mean() for t in theta])
    assert abs(estimate.hypothesis.value - fresh) < 1e-6
    assert estimate.estimator == "exact"
    assert estimate.interval == (estimate.value, estimate.value)
    assert estimate.noise_floor < 1e-6 < estimate.value


@settings(max_examples=3000, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(3, 40),
    d=st.integers(1, 12),
    p=st.floats(0.01, 0.99),
    log_scale=st.floats(-1, 1.5),
)
def test_theorem_1_holds_on_random_convex_problems(seed: int, n: int, d: int, p: float, log_scale: float) -> None:
    """Every |Δℓ_i| of regularised logistic regression is under 2ρ²/((Λ_min + 2(1 − p))n), ρ = max ‖x‖, Λ_min ≥ 0."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((n, d)) * 10**log_scale
    start = draw.standard_normal(d)
    solvable = logistic_regression(x, draw.integers(0, 2, n).astype(float), 1 - p, start)
    try:
        exact = solvable.leave_one_out()
    except StabilityError:
        reject()  # Newton's method without damping may fail from a far start; too many of these fail the test
    lipschitz = float(np.linalg.norm(x, axis=1).max())
    bound = pointwise_hypothesis_stability(lipschitz, 0.0, p, n, ridge=1 - p)
    assert bound.applies
    assert np.abs(exact[:, 1] - exact[:, 0]).max() <= bound.value * (1 + 1e-9)


def test_sampled_is_a_subset_of_exact_with_a_true_interval(digits: Problem) -> None:
    algorithm = FineTuning(Random(0.05), steps=8, batch_size=8)
    exact = leave_one_out.measure(digits, algorithm, device="cpu").per_example.set_index("index")
    sampled = leave_one_out.measure(digits, algorithm, 6, device="cpu")
    assert sampled.estimator == "sampled"
    rows = sampled.per_example.set_index("index")
    np.testing.assert_allclose(rows["difference"], exact.loc[rows.index, "difference"], rtol=0, atol=1e-5)
    expected = mean_of_population(rows["difference"].abs().to_numpy(), digits.n)
    assert sampled.pointwise == expected
    assert sampled.interval[0] < sampled.value < sampled.interval[1]


def test_masks_are_selected_anew_unless_told_otherwise(digits: Problem) -> None:
    algorithm = FineTuning(SAM(0.02), steps=2)
    anew = leave_one_out.measure(digits, algorithm, 8, device="cpu")
    kept = leave_one_out.measure(digits, algorithm, 8, device="cpu", reselect=False)
    assert (anew.per_example["mask_changes"] > 0).any()
    assert (kept.per_example["mask_changes"] == 0).all()
    for row, i in enumerate(anew.per_example["index"], 1):
        assert anew.replicas.masks[row].equals(SAM(0.02).select(digits.without(i), seed=0))


def test_failed_replicas_are_counted_and_never_averaged(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica without example 2 is given weights that are not numbers; everything else is real."""

    def poisoned(problem: Problem, algorithm: FineTuning, weights: torch.Tensor | None = None, *rest: Any, **more: Any) -> Replicas:
        if weights is not None:
            weights = weights.clone()
            weights[weights[:, 2] == 0] = float("nan")
        return train(problem, algorithm, weights, *rest, **more)

    monkeypatch.setattr(leave_one_out, "train", poisoned)
    estimate = leave_one_out.measure(digits, FineTuning(Random(0.02), steps=4, batch_size=8), device="cpu")
    assert estimate.failed == {2: 0}
    assert estimate.retrainings == digits.n
    assert estimate.estimator == "sampled"
    finished = estimate.per_example[estimate.per_example["failed_step"] < 0]
    assert len(finished) == digits.n - 1
    assert math.isclose(estimate.value, finished["difference"].abs().mean())
    assert estimate.interval[1] == math.inf
    assert estimate.to_dict()["interval"][1] is None


def test_a_diverging_full_run_is_an_error_with_its_step(digits: Problem) -> None:
    with pytest.raises(StabilityError, match=r"diverged at step \d+ with seed 0: use a smaller learning rate"):
        leave_one_out.measure(digits, FineTuning(FullTuning(), steps=20, learning_rate=1e6), 2, device="cpu")


@pytest.mark.parametrize("count", [0, -1, 25])
def test_impossible_retrainings_are_refused(count: int, digits: Problem) -> None:
    with pytest.raises(UsageError, match=rf"retrainings = {count} is outside 1\.\.n with n = 24"):
        leave_one_out.measure(digits, FineTuning(FullTuning(), steps=1), count, device="cpu")


def test_one_example_cannot_be_left_out(digits: Problem) -> None:
    single = dataclasses.replace(digits, train=digits.train.take(slice(0, 1)))
    with pytest.raises(UsageError, match=r"n = 1 training examples.*n ≥ 2"):
        leave_one_out.measure(single, FineTuning(FullTuning(), steps=1), device="cpu")


def test_interval_covers_as_it_says_on_a_normal_population() -> None:
    """1 000 samples of 20 out of 100: the 95 % interval covers 95 % to within 4 standard errors (fixed in advance)."""
    draw = np.random.default_rng(0)
    population = draw.normal(5, 1, 100)
    hits = 0
    for _ in range(1000):
        low, high = mean_of_population(draw.choice(population, 20, replace=False), 100).interval
        hits += low <= population.mean() <= high
    assert abs(hits / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_curvature_equals_dense_autodiff() -> None:
    solvable = cancer()
    theta = np.random.default_rng(0).standard_normal(4)
    problem, parameters = solvable.problem, solvable.parameters(theta)
    dense = dense_hessian(lambda w: problem.losses({"weight": w}, problem.train).mean(), parameters["weight"])
    vector = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(hessian_vector_product(problem, parameters, problem.train, vector), dense @ vector)
    least = least_eigenvalue(problem, parameters, problem.train)
    assert math.isclose(least.value, float(torch.linalg.eigvalsh(dense)[0]), abs_tol=1e-12)
    np.testing.assert_allclose(dense, solvable.hessian(theta), atol=1e-12)
    norms = gradient_norms(problem, parameters, problem.train)
    for i, norm in enumerate(norms):
        w = parameters["weight"].clone().requires_grad_()
        problem.losses({"weight": w}, problem.train.take(slice(i, i + 1))).sum().backward()
        assert w.grad is not None
        assert math.isclose(float(w.grad.norm()), float(norm), rel_tol=1e-12)


@pytest.mark.parametrize("least", [-3.0, 0.0, 0.5])
def test_lanczos_finds_a_prescribed_least_eigenvalue(least: float) -> None:
    """d = 60, so that ARPACK runs: ℓ = ½ Σ_j h_j θ_j² has the spectrum h, of either sign."""
    spectrum = torch.linspace(least, 9, 60, dtype=torch.float64)
    base = diabetes().problem

    def logits(parameters, inputs):  # type: ignore[no-untyped-def]
        value = 0.5 * (spectrum * parameters["weight"] ** 2).sum()
        return value.expand(len(inputs["x"]), 1)

    problem = dataclasses.replace(base, logits=logits, loss=lambda f, y: f.squeeze(-1))
    found = least_eigenvalue(
        problem, {"weight": torch.zeros(60, dtype=torch.float64)}, base.train, tolerance=1e-8, max_restarts=300
    )
    assert found.converged
    assert math.isclose(found.value, least, abs_tol=1e-6)
    assert found.residual < 1e-4


def test_bounds_say_why_they_do_not_apply() -> None:
    failed = pointwise_hypothesis_stability(1, -0.5, 0.5, 100)
    assert math.isclose(failed.value, 2 / (0.5 * 100))
    assert not failed.applies
    infinite = pointwise_hypothesis_stability(1, 0, 1, 100)
    assert infinite.value == math.inf
    assert "not strongly convex" in infinite.reason
    assert infinite.to_dict()["value"] is None
    assert not pointwise_hypothesis_stability(1, 0, 0.5, 100, ridge=0.0).applies
    assert math.isclose(generalization(2, 1, 0.75, 50, 3, 0.2, 0.1).value, 0.1 + math.sqrt((9 + 24 * 3 * 4 / 1.5) / (2 * 50 * 0.2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lipschitz": -1}, "ρ = -1"),
        ({"least_eigenvalue": math.nan}, "Λ_min = nan"),
        ({"sparsity": 0}, "p = 0"),
        ({"n": 1}, "n = 1"),
        ({"loss_bound": 0}, "C = 0"),
        ({"delta": 1}, "δ = 1"),
        ({"empirical_risk": 2}, "empirical risk = 2"),
    ],
)
def test_senseless_constants_are_refused(change: dict[str, float], message: str) -> None:
    good = {"lipschitz": 1, "least_eigenvalue": 0, "sparsity": 0.5, "n": 9, "loss_bound": 1, "delta": 0.1, "empirical_risk": 0.2}
    with pytest.raises(UsageError, match=message):
        generalization(**{**good, **change})  # type: ignore[arg-type]
