from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stability import Mask, Problem, UsageError
from stability.selectors import SAM, BitFit, FullTuning, Random
from stability.training import FineTuning, Minimisation
from stability.training.execution import divide
from stability.training.lbfgs import minimise
from stability.training.replicas import train
from tests.reference import CUDA, call


def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
    """Σ 100 (x₂ − x₁²)² + (1 − x₁)² a row: curved, narrow, minimum at (1, 1)."""
    x = x.detach().requires_grad_()
    value = 100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def test_lbfgs_finds_known_minima() -> None:
    start = torch.tensor([[-1.2, 1.0], [2.0, 2.0], [0.0, -3.0], [1.0, 1.0]], dtype=torch.float64)
    found = minimise(rosenbrock, start, 1e-9, 500)
    torch.testing.assert_close(found.values, torch.ones(4, 2, dtype=torch.float64), rtol=0, atol=1e-8)
    assert (found.gradient_norms <= 1e-9).all()
    assert found.steps[3] == 0
    assert (found.steps[:3] > 5).all()


def test_rows_do_not_know_of_each_other() -> None:
    start = torch.tensor([[-1.2, 1.0], [2.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    together = minimise(rosenbrock, start, 1e-9, 500)
    for row in range(3):
        alone = minimise(rosenbrock, start[row : row + 1], 1e-9, 500)
        torch.testing.assert_close(alone.values[0], together.values[row], rtol=0, atol=1e-12)
        assert alone.steps[0] == together.steps[row]


def test_rows_that_cannot_go_on_stop_and_leave_the_others_alone() -> None:
    """One row without a finite value, one linear and so without a minimum, one ordinary."""

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.tensor([[math.nan], [0.0], [1.0]], dtype=torch.float64)
        return (0.5 * scale * x**2 + (scale == 0) * x).sum(1), scale * x + (scale == 0)

    found = minimise(objective, torch.full((3, 1), 5.0, dtype=torch.float64), 1e-8, 60)
    assert (found.gradient_norms <= 1e-8).tolist() == [False, False, True]
    assert abs(found.values[2, 0]) < 1e-8


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-9), (torch.float64, 1e-18)])
def test_a_row_whose_precision_is_used_up_stops(dtype: torch.dtype, tolerance: float) -> None:
    scale, target = torch.tensor([1.0, 30.0], dtype=dtype), torch.tensor([[1.1, -2.3]], dtype=dtype)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        return 3 + (0.5 * scale * (x - target) ** 2 + 0.1 * torch.cos(x)).sum(1), scale * (x - target) - 0.1 * torch.sin(x)

    found = minimise(objective, torch.zeros(1, 2, dtype=dtype), tolerance, 1000)
    assert found.steps[0] < 200
    assert tolerance < found.gradient_norms[0] < 1e3 * torch.finfo(dtype).eps


def test_slow_convergence_is_no_lack_of_precision() -> None:
    """Condition 1e4 beside a large constant: a thousand steps, each with little progress, and the minimum in the end."""
    scale = torch.logspace(-2, 2, 100, dtype=torch.float64)
    target = torch.randn(1, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        return 1e3 + (0.5 * scale * (x - target) ** 2).sum(1), scale * (x - target)

    found = minimise(objective, torch.zeros(1, 100, dtype=torch.float64), 1e-9, 5000)
    assert found.gradient_norms[0] <= 1e-9
    assert found.steps[0] > 300


def test_the_memory_plan_knows_of_the_pairs(digits: Problem) -> None:
    mask = Mask.full(digits.start(0))
    short, long = (Minimisation(FullTuning(), ridge=0.5, history=history) for history in (1, 100))
    budget = 64 << 20
    assert (
        divide(digits, long, mask, 1000, memory_budget=budget).rows
        < divide(digits, short, mask, 1000, memory_budget=budget).rows / 5
    )


def gradient_of_the_objective(problem: Problem, values: dict[str, Tensor], mask: Mask, ridge: float, weights: Tensor) -> Tensor:
    """By plain autodiff, over the mask."""
    from stability.problems.digits import _model

    start = problem.start(0)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in values.items()}
    logits = call(_model(), leaves, problem.train.inputs["pixel_values"])
    losses = torch.nn.functional.cross_entropy(logits, problem.train.labels, reduction="none")
    penalty = torch.cat([((leaves[n] - start[n]) ** 2).flatten() for n in leaves]).sum()
    loss = (losses * weights).sum() / weights.sum() + ridge * penalty
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return mask.gather(grads)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("selector", [FullTuning(), BitFit(), SAM(0.02)], ids=["full", "bitfit", "sam"])
def test_digits_reach_the_stated_gradient_tolerance(selector: Any, device: str, digits: Problem) -> None:
    """The gradient of L + λ‖θ − θ⁰‖² is as small as promised at A(S) and at A(Sⁱ), by plain autodiff."""
    algorithm = Minimisation(selector, ridge=0.5, gradient_tolerance=1e-4)
    weights = torch.ones(2, digits.n)
    weights[1, 3] = 0
    replicas = train(digits.to(torch.device(device)), algorithm, weights)
    assert (replicas.failed_step == -1).all()
    tunable = algorithm.tunable_mask(digits, replicas.masks[0])
    for row in range(2):
        values = {name: tensor.cpu() for name, tensor in replicas.parameters(row).items()}
        gradient = gradient_of_the_objective(digits, values, tunable, 0.5, weights[row])
        assert gradient.norm() <= 1.1e-4  # the tolerance and single precision
    replicas.delta(0)  # raises if anything outside the mask changed


def test_each_row_keeps_to_its_own_mask(digits: Problem) -> None:
    masks = [SAM(0.02).select(digits, 0), Random(0.01).select(digits, 0)]
    replicas = train(digits, Minimisation(SAM(0.02), ridge=0.5, gradient_tolerance=1e-3), torch.ones(2, digits.n), masks)
    for row, mask in enumerate(masks):
        alone = train(digits, Minimisation(SAM(0.02), ridge=0.5, gradient_tolerance=1e-3), masks=[mask])
        difference = torch.cat([(replicas.parameters(row)[n] - alone.parameters(0)[n]).flatten() for n in digits.pretrained])
        assert difference.norm() < 4e-3  # two points with ‖∇F‖ ≤ 1e-3 of a function whose curvature is near 1
        replicas.delta(row)


def test_the_replica_batch_changes_rounding_only(digits: Problem) -> None:
    algorithm, weights = Minimisation(BitFit(), ridge=0.5, gradient_tolerance=1e-4), torch.ones(3, digits.n)
    weights[1, 0] = weights[2, 5] = 0
    one, all_ = (train(digits, algorithm, weights, replica_batch=size).values for size in (1, 3))
    torch.testing.assert_close(one, all_, rtol=0, atol=1e-3)


def test_what_p_theorem_1_speaks_of(digits: Problem) -> None:
    full, some = FullTuning().select(digits, 0), Random(0.1).select(digits, 0)
    relaxed = Minimisation(FullTuning(), ridge=0.3)
    assert relaxed.sparsity_for(full) == pytest.approx(0.7)
    assert (relaxed.name, relaxed.asked_sparsity) == ("regularised", 0.7)
    hard = Minimisation(Random(0.1), ridge=0.3)
    assert hard.sparsity_for(some) == some.sparsity
    assert (hard.name, hard.asked_sparsity) == ("random", 0.1)
    assert FineTuning(FullTuning()).sparsity_for(full) == 1
    assert FineTuning(FullTuning()).name == "full"
    assert Minimisation(FullTuning(), ridge=2.0).sparsity_for(full) == 1
    assert Minimisation(FullTuning(), ridge=2.0).asked_sparsity is None
    everything = Minimisation(Random(1.0), ridge=0.1)
    assert (everything.name, everything.sparsity_for(full)) == ("random", 1)
    paper = FineTuning(Random(0.1), ridge="paper")
    assert paper.ridge_for(some) == pytest.approx(1 - some.sparsity)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient_tolerance": 0}, "gradient_tolerance = 0: use a positive number"),
        ({"ridge": -1}, "ridge = -1"),
        ({"ridge": 0}, "λ = 0"),
        ({"ridge": "paper"}, "λ = 0.*1 − p"),
        ({"ridge": math.nan}, "ridge = nan"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"history": 1.5}, "history = 1.5"),
    ],
)
def test_senseless_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Minimisation(FullTuning(), ridge=0.5), **change)


@pytest.mark.parametrize(("change", "message"), [({"betas": (0.9, 1.0)}, "betas"), ({"epsilon": 0}, "epsilon = 0")])
def test_senseless_settings_of_adamw_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FineTuning(FullTuning(), **change)
