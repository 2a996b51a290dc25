from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian as dense_hessian
from torch.autograd.functional import jacobian as dense_jacobian

from stability import Examples, FineTuning, Mask, MeasurementError, Problem, UsageError
from stability.derivatives import gradients
from stability.derivatives.curvature import Curvature, diagonal, greatest_eigenvalue, least_eigenvalue
from stability.derivatives.gradients import gauss_newton_diagonals, gradient_norms, per_example_gradients, per_example_jacobians
from stability.derivatives.influence import first_order_changes, solve
from stability.machine import peak_of_tensors
from stability.problems import convex
from stability.problems.problem import generator
from stability.selectors import BitFit, FullTuning, LoRA, Random, Selector
from stability.selectors.top_k import top_k
from tests.reference import ELSEWHERE, classification
from tests.selectors.test_laws import described


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
    """A tanh network 6-10-8-3 with a head of its own: d = 182, three classes, twelve examples."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype) / math.sqrt(shape[-1])

    def logits(parameters: Any, inputs: Any) -> Tensor:
        hidden = torch.tanh(inputs["x"] @ parameters["one.weight"].T + parameters["one.bias"])
        hidden = torch.tanh(hidden @ parameters["two.weight"].T + parameters["two.bias"])
        result: Tensor = hidden @ parameters["head.weight"].T
        return result

    examples = Examples({"x": 2 * random(12, 6)}, torch.randint(0, 3, (12,), generator=draw))
    pretrained = {"one.weight": random(10, 6), "one.bias": random(10), "two.weight": random(8, 10), "two.bias": random(8)}
    return classification(
        pretrained, logits, examples, lambda head: {"head.weight": torch.randn(3, 8, generator=head, dtype=dtype)}
    )


class Dense:
    """A matrix that is there, as a truth to compare with."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.size = matrix, len(matrix)

    def product(self, vectors: Tensor) -> Tensor:
        return vectors @ self.matrix


def with_spectrum(spectrum: Tensor, seed: int = 0) -> Dense:
    draw = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=draw, dtype=torch.float64)).Q
    return Dense(axes @ torch.diag(spectrum.double()) @ axes.T)


PROBLEM = network()
START = PROBLEM.start(0)
FULL = Mask.full(START)
SOME = top_k({name: torch.rand(t.shape, generator=generator(1, name)) for name, t in START.items()}, 0.3)


def by_values(mask: Mask, values: Tensor) -> dict[str, Tensor]:
    """START with the masked coordinates set, one tensor at a time."""
    moved = {name: tensor.clone().reshape(-1) for name, tensor in START.items()}
    at = 0
    for name, index in mask.indices.items():
        moved[name] = moved[name].index_put((index,), values[at : at + len(index)])
        at += len(index)
    return {name: tensor.reshape(START[name].shape) for name, tensor in moved.items()}


def values_of(mask: Mask) -> Tensor:
    return torch.cat([START[name].reshape(-1)[index] for name, index in mask.indices.items()])


def dense(mask: Mask, kind: str) -> Tensor:
    """The whole matrix by plain autodiff."""
    values, inputs, labels = values_of(mask), PROBLEM.train.inputs, PROBLEM.train.labels
    if kind == "hessian":
        return torch.as_tensor(dense_hessian(lambda v: PROBLEM.losses(by_values(mask, v), PROBLEM.train).mean(), values))
    jacobian = dense_jacobian(lambda v: PROBLEM.logits(by_values(mask, v), inputs), values)
    chance = PROBLEM.logits(START, inputs).softmax(1)
    total = torch.zeros(mask.count, mask.count, dtype=torch.float64)
    for i in range(len(labels)):
        bend = torch.diag(chance[i]) - torch.outer(chance[i], chance[i])
        total += jacobian[i].T @ bend @ jacobian[i]
    return total / len(labels)


@pytest.mark.parametrize("budget", [None, 200_000, 1])
@pytest.mark.parametrize("mask", [FULL, SOME], ids=["full", "masked"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_equal_dense_autodiff(kind: Any, mask: Mask, budget: int | None) -> None:
    """d = 182 in float64, in one block and example by example."""
    matrix = Curvature(PROBLEM, START, PROBLEM.train, mask, kind=kind, memory_budget=budget)
    assert matrix.size == mask.count
    if budget == 1:
        assert len(matrix._blocks(1)) == len(PROBLEM.train)
    truth = dense(mask, kind)
    torch.testing.assert_close(matrix.product(torch.eye(mask.count, dtype=torch.float64)), truth, rtol=0, atol=1e-12)
    assert kind == "gauss_newton" or torch.linalg.eigvalsh(truth)[0] < -1e-3  # an indefinite one, else it tells little


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("device", ["cpu", *ELSEWHERE])
def test_single_precision_agrees_with_double(device: str, kind: Any) -> None:
    problem = network(dtype=torch.float32).to(torch.device(device))
    product = Curvature(problem, problem.start(0), problem.train, kind=kind).product(torch.eye(182, dtype=torch.float64))
    assert product.dtype == torch.float64
    reference = network()
    same = {name: tensor.double().cpu() for name, tensor in problem.start(0).items()}
    examples = Examples({"x": problem.train.inputs["x"].double().cpu()}, problem.train.labels.cpu())
    truth = Curvature(reference, same, examples, kind=kind).product(torch.eye(182, dtype=torch.float64))
    torch.testing.assert_close(product, truth, rtol=0, atol=3e-6)


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("mask", [FULL, SOME], ids=["full", "masked"])
def test_first_derivatives_equal_plain_loops(mask: Mask, budget: int | None) -> None:
    values, inputs = values_of(mask), PROBLEM.train.inputs
    whole = dense_jacobian(lambda v: PROBLEM.losses(by_values(mask, v), PROBLEM.train), values)
    blocks = list(per_example_gradients(PROBLEM, START, PROBLEM.train, mask, memory_budget=budget))
    assert len(blocks) == (1 if budget is None else 12)
    torch.testing.assert_close(torch.cat(blocks), whole, rtol=0, atol=1e-13)
    norms = gradient_norms(PROBLEM, START, PROBLEM.train, mask, memory_budget=budget)
    torch.testing.assert_close(norms, whole.norm(dim=1), rtol=0, atol=1e-13)
    jacobian = dense_jacobian(lambda v: PROBLEM.logits(by_values(mask, v), inputs), values)
    found = torch.cat(list(per_example_jacobians(PROBLEM, START, PROBLEM.train, mask, memory_budget=budget)))
    torch.testing.assert_close(found, jacobian, rtol=0, atol=1e-13)
    diagonals = torch.cat(list(gauss_newton_diagonals(PROBLEM, START, PROBLEM.train, mask, memory_budget=budget)))
    torch.testing.assert_close(diagonals.mean(0), dense(mask, "gauss_newton").diagonal(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_extreme_eigenvalues_equal_dense_ones(kind: Any) -> None:
    matrix, truth = Curvature(PROBLEM, START, PROBLEM.train, kind=kind), torch.linalg.eigvalsh(dense(FULL, kind))
    for found, value in ((least_eigenvalue, truth[0]), (greatest_eigenvalue, truth[-1])):
        eigenvalue = found(matrix, tolerance=1e-9, max_restarts=300)
        assert eigenvalue.converged
        assert math.isclose(eigenvalue.value, float(value), abs_tol=1e-7)
        assert eigenvalue.residual < 1e-4
        assert eigenvalue.products > 20


@pytest.mark.parametrize("spectrum", ["negative", "null space", "positive", "repeated", "one outlier", "all equal"])
def test_lanczos_finds_prescribed_extremes(spectrum: str) -> None:
    """300 rows. The null space is where Lanczos goes wrong when it starts badly; repeated ends are no trouble."""
    values = {
        "negative": torch.linspace(-3, 9, 300),
        "null space": torch.cat([torch.zeros(100), torch.linspace(0.5, 9, 200)]),
        "positive": torch.linspace(0.5, 9, 300),
        "repeated": torch.cat([torch.full((5,), -2.0), torch.linspace(-1, 3, 290), torch.full((5,), 4.0)]),
        "one outlier": torch.cat([torch.linspace(-0.1, 0.1, 299), torch.tensor([1000.0])]),
        "all equal": torch.full((300,), 2.5),
    }[spectrum]
    matrix = with_spectrum(values)
    scale = float(values.abs().max())
    for found, value in ((least_eigenvalue, values.min()), (greatest_eigenvalue, values.max())):
        eigenvalue = found(matrix, tolerance=1e-9, max_restarts=1000)
        assert eigenvalue.converged
        assert abs(eigenvalue.value - float(value)) < 1e-7 * scale
        assert eigenvalue.residual < 1e-3 * scale


def test_the_default_tolerance_is_kept_and_some_eigenvalue_lies_within_the_residual() -> None:
    """20 random spectra: the error stays within 1 % of |Λ| + ‖Hv‖/‖v‖, and no value lies beyond the true extreme."""
    for seed in range(20):
        values = torch.randn(300, generator=torch.Generator().manual_seed(seed)).double()
        matrix = with_spectrum(values, seed)
        allowed = 0.01 * (float(values.abs().max()) + float((values**2).mean().sqrt()))
        low, high = least_eigenvalue(matrix), greatest_eigenvalue(matrix)
        assert -1e-9 <= low.value - float(values.min()) <= allowed
        assert -1e-9 <= float(values.max()) - high.value <= allowed
        for found in (low, high):
            assert (values - found.value).abs().min() <= found.residual + 1e-9


def test_no_convergence_is_reported_and_never_returned_as_a_value() -> None:
    slow = least_eigenvalue(with_spectrum(torch.linspace(0, 1, 400) ** 0.25), tolerance=1e-14, max_restarts=1)
    assert (slow.converged, math.isnan(slow.value), math.isnan(slow.residual)) == (False, True, True)
    assert slow.products > 0
    broken = least_eigenvalue(Dense(torch.full((150, 150), math.nan, dtype=torch.float64)))
    assert (broken.converged, math.isnan(broken.value)) == (False, True)
    small = greatest_eigenvalue(Dense(torch.full((5, 5), math.inf, dtype=torch.float64)))
    assert (small.converged, math.isnan(small.value)) == (False, True)


def test_hutchinson_agrees_within_its_own_standard_error() -> None:
    """400 probes, fixed in advance. Each entry's error over its true standard error √(Σ_{j≠i} H_ij²/400) is standard
    normal, nearly; the estimated standard errors are the true ones within a fifth."""
    truth = dense(FULL, "hessian")
    found = diagonal(Curvature(PROBLEM, START, PROBLEM.train), probes=400, seed=0)
    error = ((truth**2).sum(1) - truth.diagonal() ** 2).div(400).sqrt()
    z = (found.value - truth.diagonal()) / error
    assert z.abs().max() < 5
    assert 0.7 < float(z.std()) < 1.3
    assert ((found.standard_error / error - 1).abs() < 0.2).all()
    assert found.probes == 400


def test_hutchinson_is_exact_on_a_diagonal() -> None:
    values = torch.linspace(-1, 3, 50, dtype=torch.float64)
    found = diagonal(Dense(torch.diag(values)), probes=2)
    torch.testing.assert_close(found.value, values, rtol=0, atol=1e-14)
    assert (found.standard_error < 1e-7).all()


def test_the_standard_error_survives_a_large_diagonal() -> None:
    """Diagonal 1e6, a thousandth elsewhere: the spread of the terms is nine orders below them."""
    matrix = torch.full((5, 5), 1e-3, dtype=torch.float64).fill_diagonal_(1e6)
    found = diagonal(Dense(matrix), probes=400)
    assert ((found.standard_error / (2e-3 / 20) - 1).abs() < 0.2).all()


def test_conjugate_gradients_equal_a_dense_solve() -> None:
    matrix = with_spectrum(torch.linspace(-0.5, 40, 120))
    vectors = torch.randn(7, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors[3] = 0
    found = solve(matrix, vectors, shift=1.0, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix.matrix + torch.eye(120), vectors.T).T, rtol=0, atol=1e-9)
    with pytest.raises(MeasurementError, match="not positive definite.*larger ridge"):
        solve(matrix, vectors, shift=0.1)

    class Rounded(Dense):
        def product(self, vectors: Tensor) -> Tensor:
            return (vectors.float() @ self.matrix.float()).double()

    with pytest.raises(MeasurementError, match=r"relative residual .* instead of 1e-12: the precision of the products is used up"):
        solve(Rounded(matrix.matrix), vectors, shift=1.0, tolerance=1e-12)
    with pytest.raises(MeasurementError, match="did not reach a relative residual of 1e-12 in 2 steps for 6 of 7 vectors"):
        solve(matrix, vectors, shift=1.0, tolerance=1e-12, max_steps=2)


def test_first_order_changes_equal_the_dense_formula() -> None:
    ridge, n = 2.0, len(PROBLEM.train)
    gradients = torch.cat(list(per_example_gradients(PROBLEM, START, PROBLEM.train, SOME)))
    inverse = torch.linalg.inv(dense(SOME, "hessian") + 2 * ridge * torch.eye(SOME.count))
    truth = torch.einsum("ij,jk,ik->i", gradients - gradients.mean(0), inverse, gradients) / (n - 1)
    hessian = Curvature(PROBLEM, START, PROBLEM.train, SOME)
    torch.testing.assert_close(first_order_changes(hessian, ridge), truth, rtol=1e-3, atol=0)
    torch.testing.assert_close(first_order_changes(hessian, ridge, tolerance=1e-12), truth, rtol=1e-9, atol=0)
    torch.testing.assert_close(first_order_changes(hessian, ridge, [7, 2]), truth[[7, 2]], rtol=1e-3, atol=0)
    tight = dataclasses.replace(hessian, memory_budget=1)
    torch.testing.assert_close(first_order_changes(tight, ridge, tolerance=1e-12), truth, rtol=1e-9, atol=0)
    with pytest.raises(UsageError, match=r"left_out = \[12\]"):
        first_order_changes(hessian, ridge, [12])


@pytest.mark.parametrize("kind", ["linear", "logistic", "quadratic"])
def test_first_order_is_first_order(kind: str) -> None:
    """With ten times the examples the relative error of the mean falls by about as much."""
    errors = []
    for n in (40, 400):
        solvable = convex.CONVEX[kind](n=n, seed=0, d=4)
        theta = solvable.parameters(solvable.minimise(0.05))
        exact = solvable.leave_one_out(0.05)
        first = first_order_changes(Curvature(solvable.problem, theta, solvable.problem.train), 0.05)
        size = np.abs(exact[:, 1] - exact[:, 0]).mean()
        errors.append(abs(float(first.abs().mean()) / size - 1))
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Curvature(PROBLEM, START, PROBLEM.train, kind="fisher"), "unknown kind 'fisher': use hessian or gauss_newton"),  # type: ignore[arg-type]
        (lambda: Curvature(PROBLEM, START, PROBLEM.train.take(slice(0, 0))), "of no examples"),
        (lambda: Curvature(PROBLEM, START, PROBLEM.train).product(torch.ones(182)), r"\(s, k\) with k = 182"),
        (
            lambda: Curvature(PROBLEM, START, PROBLEM.train, Mask({"no": (2,)}, {"no": torch.arange(2)})),
            "in another shape: no: use one",
        ),
        (lambda: Curvature(PROBLEM, START, PROBLEM.train, Mask({"one.bias": (10,)}, {})), "selects no coordinates"),
        (lambda: least_eigenvalue(Dense(torch.eye(3)), tolerance=math.nan), "tolerance = nan"),
        (lambda: least_eigenvalue(Dense(torch.eye(3)), max_restarts=0), "max_restarts = 0"),
        (lambda: solve(Dense(torch.eye(3)), torch.ones(3)), r"\(s, k\) with k = 3"),
        (lambda: solve(Dense(torch.eye(3)), torch.ones(1, 3), shift=math.nan), "shift = nan"),
        (lambda: solve(Dense(torch.eye(3)), torch.full((1, 3), math.inf)), "vectors: some entries are not finite"),
        (lambda: solve(Dense(torch.eye(3)), torch.ones(1, 3), tolerance=0), "tolerance = 0: use a positive number"),
        (lambda: solve(Dense(torch.eye(3)), torch.ones(1, 3), max_steps=0), "max_steps = 0: use a whole number of at least 1"),
        (lambda: gradient_norms(PROBLEM, START, PROBLEM.train.take(slice(0, 0))), "of no examples"),
        (lambda: gradient_norms(PROBLEM, START, PROBLEM.train, memory_budget=0), "memory_budget = 0: use a whole number"),
        (lambda: Curvature(PROBLEM, START, PROBLEM.train, memory_budget=0), "memory_budget = 0: use a whole number"),
        (
            lambda: first_order_changes(Curvature(PROBLEM, START, PROBLEM.train), 1.0, []),
            r"left_out = \[\]: use at least 1 example",
        ),
        (lambda: diagonal(Dense(torch.eye(3)), probes=1), "probes = 1"),
        (lambda: first_order_changes(Curvature(PROBLEM, START, PROBLEM.train.take(slice(0, 1)))), "n = 1"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("selector", [FullTuning(), Random(0.01), LoRA(2), BitFit()], ids=described)
def test_jacobians_take_what_is_planned(selector: Selector, learned: Problem) -> None:
    """Of one example more: never more than planned, and at least a third of it (1/2.6 to 1/1.1 when this was written)."""
    tuning = FineTuning(selector)
    problem = tuning.equivalent(learned)
    start, mask = problem.start(0), tuning.tunable_mask(problem, tuning.select(problem))

    def peak(count: int) -> int:
        some = problem.train.take(slice(0, count))
        return peak_of_tensors(lambda: list(per_example_jacobians(problem, start, some, mask, memory_budget=1 << 40)))

    planned = (1 << 40) / gradients._jacobians_at_once(problem, start, problem.train, mask, 1 << 40)
    assert planned / 3 < (peak(8) - peak(4)) / 4 <= planned
