"""The derivative of each left-out loss by its own weight: linearised replicas against differentiation through all of training."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from stability import Examples, FineTuning, Problem
from stability.leave_one_out import linearised
from stability.leave_one_out.linearised import losses_left_out, trajectory_for
from stability.selectors import FullTuning, Random, Selector
from stability.training.replicas import train
from tests.reference import classification
from tests.selectors.test_laws import described

STEPS, BATCH, RATE, DECAY, BETAS, EPSILON = 5, 4, 0.02, 0.1, (0.9, 0.999), 1e-8


def network(layers: int = 4) -> Problem:
    """A tanh network 4-6-6-6-3 in float64, the last layer its head; with one layer, that head alone. Nine examples."""
    draw = torch.Generator().manual_seed(0)
    widths = [4, *[6] * (layers - 1), 3]
    shapes = {f"layer {i}": (out, into) for i, (into, out) in enumerate(pairwise(widths))}
    values = {name: torch.randn(*shape, generator=draw, dtype=torch.float64) / 2 for name, shape in shapes.items()}
    *body, head = values

    def logits(parameters: Any, inputs: Any) -> Tensor:
        hidden = inputs["x"]
        for name in body:
            hidden = torch.tanh(hidden @ parameters[name].T)
        result: Tensor = hidden @ parameters[head].T
        return result

    examples = Examples({"x": torch.randn(9, 4, generator=draw, dtype=torch.float64)}, torch.randint(0, 3, (9,), generator=draw))
    return classification(values, logits, examples)


def tuning_of(selector: Selector) -> FineTuning:
    return FineTuning(
        selector, steps=STEPS, batch_size=BATCH, learning_rate=RATE, schedule="linear", weight_decay=DECAY, betas=BETAS, seed=2
    )


def through_training(problem: Problem, tuning: FineTuning) -> Tensor:
    """dℓ_i(A(S with weight w_i on z_i))/dw_i at w = 1, for every i, by reverse mode through AdamW written out."""
    mask = tuning.select(problem)
    weights = torch.ones(problem.n, dtype=torch.float64, requires_grad=True)
    values = mask.gather(problem.pretrained).requires_grad_()
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    for t, index in enumerate(tuning.batches(problem.train), 1):
        losses = problem.losses(mask.place(problem.pretrained, values), problem.train.take(index))
        loss = (losses * weights[index]).sum() / weights[index].sum()
        (slope,) = torch.autograd.grad(loss, values, create_graph=True)
        first = BETAS[0] * first + (1 - BETAS[0]) * slope
        second = BETAS[1] * second + (1 - BETAS[1]) * slope**2
        scale = second.sqrt() / math.sqrt(1 - BETAS[1] ** t) + EPSILON
        rate = RATE * (1 - (t - 1) / STEPS)
        values = values * (1 - rate * DECAY) - rate / (1 - BETAS[0] ** t) * first / scale
    losses = problem.losses(mask.place(problem.pretrained, values), problem.train)
    rows = [torch.autograd.grad(loss, weights, retain_graph=True)[0][i] for i, loss in enumerate(losses)]
    return torch.stack(rows)


def through_replicas(problem: Problem, tuning: FineTuning) -> Tensor:
    """The same by central differences of linearised replicas whose z_i has the weight 1 ± ε."""
    masks = [tuning.select(problem)]
    trajectory = trajectory_for(problem, tuning, masks, checkpoints=STEPS, memory_budget=1 << 30)
    real = train(problem, tuning, masks=masks, replica_batch=1, observe=trajectory)

    def by(step: float) -> Tensor:
        ends = [losses_left_out(real, trajectory, masks, 1 << 30, weight=1 + sign * step)[0] for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * step)

    return (4 * by(5e-4) - by(1e-3)) / 3


class Bent(linearised._Tangent):
    """With what the tangent model leaves out of a gradient: Σ_j s_j ∇²f_j(θ_t) (θ − θ_t), s being ∂loss/∂f."""

    def __call__(self, values: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        problem, batch = self._real.problem, self._real.problem.train.take(index)
        moved, weights = self._moved(values), self.weights[:, index].double()

        def logits(point: Tensor) -> Tensor:
            return problem.logits(self._real.tunable.place(self._real.start, point), batch.inputs)

        jacobian = jacrev(logits)(values[0])

        def bend(moved: Tensor, weight: Tensor) -> Tensor:
            answer = logits(values[0]) + jacobian @ moved
            slopes = grad(lambda f: (problem.loss(f, batch.labels) * weight).sum() / weight.sum())(answer)
            along = grad(lambda point: (logits(point) * slopes).sum())
            product: Tensor = grad(lambda point: along(point) @ moved)(values[0])
            return product

        loss, penalty, gradient = super().__call__(values, index, *rest)
        return loss, penalty, gradient + vmap(bend)(moved, weights)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("selector", [FullTuning(), Random(0.4)], ids=described)
def test_with_the_networks_own_bend_they_give_the_exact_derivative(selector: Selector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers, a checkpoint at every step: equal to 1e-6. Without the bend the derivative is another one."""
    problem, tuning = network(), tuning_of(selector)
    truth = through_training(problem, tuning)
    assert error(through_replicas(problem, tuning), truth) > 1e-3
    monkeypatch.setattr(linearised, "_Tangent", Bent)
    found = through_replicas(problem, tuning)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-9)


def test_where_the_logits_do_not_bend_they_give_the_exact_derivative_as_built() -> None:
    problem, tuning = network(layers=1), tuning_of(FullTuning())
    torch.testing.assert_close(through_replicas(problem, tuning), through_training(problem, tuning), rtol=1e-6, atol=1e-9)
