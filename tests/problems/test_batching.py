"""Replicas one at a time against many at once, and against plain PyTorch: what vmap cannot run gives the same numbers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stability import FineTuning, Minimisation, Problem, UsageError, estimators, measure
from stability.bounds import estimate_constants, measured_bounds
from stability.derivatives import Curvature, gauss_newton_diagonals, per_example_gradients, per_example_jacobians
from stability.errors import MeasurementError
from stability.leave_one_out.predictors import OneStep
from stability.masks import Mask
from stability.problems.grouping import Grouping
from stability.problems.metrics import accuracy, cross_entropies
from stability.problems.problem import Examples, ModuleLogits
from stability.selectors import SAM, FullTuning, Random
from stability.training.replicas import train
from tests.reference import leaving_out

ALGORITHM = FineTuning(FullTuning(), steps=6, batch_size=4, learning_rate=0.03, schedule="constant")


class Network(nn.Module):
    """Two layers; ``between`` sees the hidden layer."""

    def __init__(self, between: Callable[[Network, Tensor], Tensor] = lambda module, x: x) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.drop = nn.Linear(5, 8), nn.Linear(8, 3), nn.Dropout(0.3)
        self.between = between
        self.count: Any
        self.calls: Any = 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.drop(self.between(self, torch.tanh(self.first(x)))))
        return found


def looking(module: Network, x: Tensor) -> Tensor:
    """What it does depends on a value: vmap cannot run it."""
    return x + 1 if float(x.detach().sum()) > 1e9 else x


def counting(module: Network, x: Tensor) -> Tensor:
    """Its buffer changes with each call, and with it what the next call would give."""
    module.count += 1
    return x * float(module.count)


def replacing(module: Network, x: Tensor) -> Tensor:
    module.count = module.count + 1
    return x * float(module.count)


class Squared(torch.autograd.Function):
    """Of the old kind, which torch.func cannot take, as in some models of transformers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return 2 * x * gradient


def squaring(module: Network, x: Tensor) -> Tensor:
    squared: Tensor = Squared.apply(x)  # type: ignore[no-untyped-call]
    return squared


def made(
    logits: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor] | ModuleLogits,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropies,
) -> Problem:
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(12) % 3
    x = torch.randn(12, 5, generator=draw, dtype=torch.float64) + 0.5 * labels.view(-1, 1)
    return Problem(
        name="mine",
        settings={},
        pretrained=dict(Network().double().named_parameters()),
        new_head=lambda draw: {},
        logits=logits,
        loss=loss,
        train=Examples({"x": x[:8]}, labels[:8]),
        test=Examples({"x": x[8:]}, labels[8:]),
        metric=accuracy,
        metric_name="accuracy",
    )


def module(between: Callable[[Network, Tensor], Tensor] = lambda module, x: x) -> ModuleLogits:
    return ModuleLogits(Network(between).double().eval())


def both() -> tuple[Problem, Problem]:
    """One problem as it is computed at once, and one at a time."""
    at_once, singly = (made(dataclasses.replace(module(), batched=batched)) for batched in (True, False))
    return at_once, singly


@pytest.mark.parametrize("selector", [FullTuning(), SAM(0.3)], ids=lambda s: s.name)
@pytest.mark.parametrize("dropout", [False, True])
def test_one_at_a_time_is_many_at_once(selector: FullTuning | SAM, dropout: bool) -> None:
    algorithm = dataclasses.replace(ALGORITHM, selector=selector, dropout=dropout)
    weights = leaving_out(8, 1, 5)
    at_once, singly = (train(problem, algorithm, weights) for problem in both())
    assert (at_once.replica_batch, singly.replica_batch) == (3, 1)
    torch.testing.assert_close(singly.values, at_once.values, rtol=0, atol=1e-12)
    torch.testing.assert_close(singly.own_losses(torch.tensor([0, 1, 5])), at_once.own_losses(torch.tensor([0, 1, 5])))
    torch.testing.assert_close(singly.losses(singly.problem.test), at_once.losses(singly.problem.test))
    forced = train(singly.problem, algorithm, weights, replica_batch=3)
    assert forced.replica_batch == 1
    torch.testing.assert_close(forced.values, at_once.values, rtol=0, atol=1e-12)


def test_derivatives_one_at_a_time_are_those_at_once() -> None:
    mask = Mask.full({"second.weight": torch.empty(3, 8), "first.bias": torch.empty(8)})
    mask = Mask({name: tuple(t.shape) for name, t in both()[0].pretrained.items()}, mask.indices)
    for derivative in (per_example_gradients, per_example_jacobians, gauss_newton_diagonals):
        found = [torch.cat(list(derivative(p, p.start(), p.train, mask))) for p in both()]
        assert len(found[0]) == 8
        torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-14)
    vectors = torch.randn(3, mask.count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind in ("hessian", "gauss_newton"):
        products = [Curvature(p, p.start(), p.train, mask, kind=kind).product(vectors) for p in both()]
        torch.testing.assert_close(products[1], products[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", [estimators.Exact(), estimators.Assisted(retrainings=3), estimators.Approximate()])
def test_estimates_one_at_a_time_are_those_at_once(estimator: estimators.Estimator) -> None:
    at_once, singly = (measure(problem, ALGORITHM, estimator, device="cpu") for problem in both())
    assert singly.value == pytest.approx(at_once.value, rel=1e-9)
    assert singly.interval == pytest.approx(at_once.interval, rel=1e-6, nan_ok=True)


def test_a_minimum_one_at_a_time_is_that_at_once() -> None:
    algorithm = Minimisation(Random(0.5), ridge=0.5, gradient_tolerance=1e-9)
    found = [measure(problem, algorithm, estimators.Approximate(OneStep()), device="cpu") for problem in both()]
    assert found[1].value == pytest.approx(found[0].value, rel=1e-6)


def truth(between: Callable[[Network, Tensor], Tensor], fresh: bool = False) -> float:
    """β₂ by a loop of one's own. With ``fresh`` each forward pass is that of a model whose buffers are as they were loaded."""
    problem = made(module(between))

    def logits(model: nn.Module, x: Tensor) -> Tensor:
        if fresh:
            model.count = torch.zeros((), dtype=torch.float64)
        found: Tensor = model(x)
        return found

    def trained(left_out: int | None) -> Tensor:
        model = Network(between).double().eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.0)
        for batch in ALGORITHM.batches(problem.train):
            kept = batch[batch != left_out] if left_out is not None else batch
            optimizer.zero_grad()
            cross_entropy(logits(model, problem.train.inputs["x"][kept]), problem.train.labels[kept]).backward()
            optimizer.step()
        with torch.no_grad():
            return cross_entropy(logits(model, problem.train.inputs["x"]), problem.train.labels, reduction="none")

    whole = trained(None)
    return float(torch.stack([(trained(i)[i] - whole[i]).abs() for i in range(problem.n)]).mean())


@pytest.mark.parametrize("between", [looking, squaring, counting, replacing], ids=lambda f: f.__name__)
def test_a_model_that_vmap_cannot_run_is_measured_as_a_plain_loop_would(between: Callable[[Network, Tensor], Tensor]) -> None:
    problem = made(module(between))
    assert not problem.batched
    before = copy.deepcopy(problem.logits.module.state_dict())  # type: ignore[attr-defined]
    estimate = measure(problem, ALGORITHM, estimators.Exact(), device="cpu")
    assert estimate.value == pytest.approx(truth(between, fresh=True), rel=1e-9)
    assert estimate.value > 1e-3
    assert sum("runs one replica at a time" in note for note in estimate.notes) == 1
    after = problem.logits.module.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_function_that_vmap_cannot_run_is_measured_too() -> None:
    plain = module()

    def logits(parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        found = plain(parameters, inputs)
        return found if float(found.detach().sum()) < 1e9 else -found

    found = [measure(made(function), ALGORITHM, estimators.Exact(), device="cpu") for function in (logits, plain)]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-9)
    assert [sum("runs one replica at a time" in note for note in one.notes) for one in found] == [1, 0]


def test_a_loss_that_vmap_cannot_run_is_computed_one_replica_at_a_time() -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        found = torch.stack([cross_entropy(f, torch.tensor(int(label))) for f, label in zip(logits, labels, strict=True)])
        return found if float(found.detach().sum()) < 1e9 else -found

    for estimator in (estimators.Exact(), estimators.Approximate()):
        found = [measure(made(module(), own), ALGORITHM, estimator, device="cpu").value for own in (loss, cross_entropies)]
        assert found[0] == pytest.approx(found[1], rel=1e-9)
    diagonals = [
        torch.cat(list(gauss_newton_diagonals(p, p.start(), p.train)))
        for p in (made(module(), own) for own in (loss, cross_entropies))
    ]
    torch.testing.assert_close(*diagonals, rtol=1e-9, atol=1e-14)


class Once(Squared):
    """It has a gradient and no second derivative."""

    backward = staticmethod(torch.autograd.function.once_differentiable(Squared.backward))  # type: ignore[assignment]


def differentiable_once(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss."""
    found: Tensor = Once.apply(logits[:, 0] - labels)  # type: ignore[no-untyped-call]
    return found


def test_without_a_second_derivative_of_the_loss_examples_are_drawn_uniformly() -> None:
    loss = differentiable_once
    algorithm = Minimisation(FullTuning(), ridge=0.5, gradient_tolerance=1e-8)
    estimate = measure(made(module(), loss), algorithm, estimators.Auto(retrainings=3), device="cpu")
    assert estimate.prediction is not None
    assert estimate.prediction.by.startswith("nothing: the loss cannot be differentiated twice: ")
    problem = made(dataclasses.replace(module(), batched=False), loss)
    curvature = Curvature(problem, problem.start(), problem.train, kind="gauss_newton")
    with pytest.raises(MeasurementError, match="the curvature is unknown: the model or the loss cannot be differentiated twice"):
        curvature.product(torch.ones(1, curvature.size))
    assert any("examples were drawn uniformly" in note for note in estimate.notes)
    wanted = measure(made(module(), loss), algorithm, estimators.Sampled(retrainings=3), device="cpu")
    assert estimate.value == pytest.approx(wanted.value, rel=1e-6)


def test_bounds_without_a_curvature_say_so() -> None:
    problem = made(dataclasses.replace(module(), batched=False), differentiable_once)
    algorithm = Minimisation(FullTuning(), ridge=0.5, gradient_tolerance=1e-8)
    estimate = measure(problem, algorithm, estimators.Sampled(retrainings=2), device="cpu")
    constants = estimate_constants(estimate)
    assert constants.notes[0].startswith("no bound with a curvature: the curvature is unknown: the model or the loss cannot be")
    assert constants.lipschitz > 0
    assert not {"theorem_1", "hard_mask", "first_order"} & measured_bounds(estimate, constants).keys()


def noisy(module: Network, x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def remembering(module: Network, x: Tensor) -> Tensor:
    module.calls += 1
    return x * float(module.calls)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (noisy, "mine: its logits are drawn from the global random generator: call eval.. first"),
        (remembering, "mine: its logits differ from one call to the next: it draws at random, or keeps something in between"),
    ],
)
def test_a_model_that_is_no_pure_function_is_refused(between: Callable[[Network, Tensor], Tensor], message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UsageError, match=message):
        measure(made(module(between)), ALGORITHM, estimators.Exact(), device="cpu")
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_that_go_on_in_place_are_trained() -> None:
    """The products of large masked matrices are no views, which a layer may not change in place."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.first, self.second = nn.Embedding(200, 128), nn.Linear(128, 128), nn.Linear(128, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            x += 1
            found: Tensor = self.second(torch.relu_(self.first(x)).mean(1))
            return found

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = InPlace().eval()
    ids = torch.arange(48).view(12, 4) % 40
    problem = dataclasses.replace(
        made(module()),
        pretrained=dict(network.named_parameters()),
        logits=ModuleLogits(network),
        train=Examples({"ids": ids[:8]}, torch.arange(8) % 3),
        test=Examples({"ids": ids[8:]}, torch.arange(4) % 3),
    )
    algorithm = dataclasses.replace(ALGORITHM, selector=Random(0.01))
    assert problem.batched
    at_once = train(problem, algorithm, leaving_out(8, 2))
    single = train(problem, algorithm)
    torch.testing.assert_close(single.values, at_once.values[:1], rtol=1e-4, atol=1e-6)
    apart = dataclasses.replace(problem, logits=dataclasses.replace(problem.logits, batched=False))  # type: ignore[type-var]
    torch.testing.assert_close(train(apart, algorithm, leaving_out(8, 2)).values, at_once.values, rtol=1e-4, atol=1e-6)


def test_texts_are_grouped_and_put_back_in_their_order() -> None:
    ids = torch.tensor([[1, 2, 9, 0], [9, 0, 0, 0], [3, 4, 9, 0], [9, 9, 5, 9], [9, 0, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    cases = [
        (Grouping(), [(5, 4)]),
        (Grouping(counted=9), [(4, 4), (1, 4)]),
        (Grouping(unpadded=True), [(2, 1), (2, 3), (1, 4)]),
        (Grouping(unpadded=True, counted=9), [(2, 1), (2, 3), (1, 4)]),
        (Grouping(singly=True), [(1, 3), (1, 1), (1, 3), (1, 4), (1, 1)]),
    ]
    for grouping, shapes in cases:
        seen: list[tuple[int, ...]] = []

        def model(texts: Mapping[str, Tensor], seen: list[tuple[int, ...]] = seen) -> Tensor:
            seen.append(tuple(texts["input_ids"].shape))
            assert texts["attention_mask"].shape == texts["input_ids"].shape
            return torch.stack([texts["input_ids"].sum(1), texts["input_ids"][:, 0]], 1)

        assert grouping.call(model, inputs).tolist() == torch.stack([ids.sum(1), ids[:, 0]], 1).tolist()
        assert seen == shapes
