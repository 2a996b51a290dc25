"""Jacobians of a large model's logits, by its matrices at the masked coordinates alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.loops import pass_for_each
from stability import problems
from stability.derivatives import gradients, per_example_gradients, per_example_jacobians, products
from stability.machine import peak_of_tensors
from stability.masks import Mask, Parameters
from stability.problems import Problem
from stability.problems.problem import Examples, ModuleLogits
from tests import tiny
from tests.reference import as_double, classification


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "gpt2"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Texts of many lengths: more than one block of them, padded, and in another order. GPT-2's layers are no linear ones."""
    folder = tmp_path_factory.mktemp(request.param)
    model = str(tiny.write_model(folder / "model", request.param))
    data = tiny.lines(folder / "data", train=tiny.rows(70, most=30), test=tiny.rows(4, seed=1))
    problem = problems.load(data, model=model)
    assert len(list(problem.train.blocks())) > 1
    return problem


def drawn(problem: Problem, share: float) -> Mask:
    """A share of each pretrained tensor's coordinates at random, and the whole head."""
    draw, start, head = torch.Generator().manual_seed(0), problem.start(0), problem.head(0)
    chosen = {}
    for name, tensor in start.items():
        here = torch.rand(tensor.numel(), generator=draw) < (1 if name in head else share)
        if here.any():
            chosen[name] = here.nonzero().flatten()
    return Mask({name: tuple(tensor.shape) for name, tensor in start.items()}, chosen)


@pytest.mark.parametrize("batched", [True, False], ids=["at once", "singly"])
@pytest.mark.parametrize("matrix", [1, 500], ids=["every matrix at its sites", "small matrices whole"])
@pytest.mark.parametrize("share", [0.02, 0.4], ids=["sampled", "dense"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_jacobians_of_texts_are_those_of_a_pass_for_each(
    texts: Problem, batched: bool, matrix: int, share: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In single precision the products are sampled where there are few sites."""
    assert isinstance(texts.logits, ModuleLogits)
    problem = dataclasses.replace(texts, logits=dataclasses.replace(texts.logits, batched=batched))
    problem = problem if share < 0.05 else as_double(problem)
    start, mask = problem.start(0), drawn(problem, share)
    computed = Mock(side_effect=gradients._derivatives)
    monkeypatch.setattr(gradients, "_derivatives", computed)
    monkeypatch.setattr(products, "_LARGE_MATRIX", matrix)
    monkeypatch.setattr(gradients, "_LARGE", gradients._entries(start, mask) - 1)
    budget = 1 << 30 if rounds == 1 else 3 * 2 * mask.count * next(iter(start.values())).element_size() * 30
    found = list(per_example_jacobians(problem, start, problem.train, mask, memory_budget=budget))
    assert len(found) == rounds
    assert rounds > 1 or computed.call_count < 10
    torch.testing.assert_close(torch.cat(found), pass_for_each(problem, start, mask), rtol=0, atol=2e-5 if share < 0.05 else 1e-13)


def network(layer: Callable[[Tensor, Tensor], Tensor], width: int = 8, n: int = 12) -> Problem:
    """Two layers of one width, a matrix that no logit depends on, and a head of three classes."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) / math.sqrt(shape[-1])

    def logits(parameters: Parameters, inputs: Parameters) -> Tensor:
        hidden = layer(layer(inputs["x"], parameters["one.weight"]).tanh(), parameters["two.weight"]).tanh()
        return linear(hidden, parameters["head.weight"])

    examples = Examples({"x": random(n, width)}, torch.randint(0, 3, (n,), generator=draw))
    pretrained = {f"{name}.weight": random(width, width) for name in ("one", "two", "unused")}
    return classification(pretrained, logits, examples, lambda head: {"head.weight": torch.randn(3, width, generator=head)})


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """A layer that reads its matrix twice, once where the gradient at the sites does not reach."""
    other: Tensor = x @ weight.square().T
    return linear(x, weight) + other


@pytest.mark.parametrize("layer", [linear, mixed, lambda x, weight: x @ weight.T], ids=["linear", "mixed", "matrix product"])
@pytest.mark.parametrize("large", [0, 150], ids=["one by one", "in blocks"])
def test_whatever_reads_a_matrix_no_gradient_is_lost(
    layer: Callable[[Tensor, Tensor], Tensor], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the caller has switched gradients off, and zeros where no logit depends on what is masked."""
    monkeypatch.setattr(products, "_LARGE_MATRIX", 1)
    monkeypatch.setattr(gradients, "_LARGE", large)
    problem = network(layer)
    start = problem.start(0)
    mask = drawn(problem, 0.3)
    with torch.no_grad():
        found = torch.cat(list(per_example_jacobians(problem, start, problem.train, mask)))
    torch.testing.assert_close(found, pass_for_each(problem, start, mask), rtol=0, atol=1e-6)
    expected = ["one.weight", "two.weight"] if layer is linear else []
    assert [*gradients._sites(problem, start, problem.train, mask)] == [*expected, "unused.weight"]
    unused = Mask(mask.shapes, {"unused.weight": mask.indices["unused.weight"]})
    for large in (0, -1):
        monkeypatch.setattr(gradients, "_LARGE", large)
        assert not torch.cat(list(per_example_jacobians(problem, start, problem.train, unused))).any()


def test_gradients_one_at_a_time_are_those_of_the_loss() -> None:
    problem = network(linear)
    assert problem.batched
    singly = dataclasses.replace(problem)
    singly.__dict__["batched"] = False  # which is found out when it is first asked for
    start, mask = problem.start(0), drawn(problem, 0.3)
    with torch.no_grad():
        ours, theirs = (torch.cat(list(per_example_gradients(one, start, one.train, mask))) for one in (singly, problem))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [linear, lambda x, weight: x @ weight.T], ids=["linear", "matrix product"])
def test_memory_grows_no_faster_than_its_budget(layer: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not depend on the budget, as a gradient of a whole matrix where layers need it, is not counted so."""
    monkeypatch.setattr(gradients, "_LARGE", 1 << 18)
    problem = network(layer, width=512, n=600)
    assert problem.batched
    start, mask = problem.start(0), drawn(problem, 0.01)

    def consumed(budget: int) -> None:
        for block in per_example_jacobians(problem, start, problem.train, mask, memory_budget=budget):
            del block

    peaks = [peak_of_tensors(partial(consumed, budget)) for budget in (1, 1 << 23, 1 << 25)]
    assert peaks[1] - peaks[0] <= 1 << 23
    assert peaks[2] - peaks[0] <= 1 << 25
    assert layer is not linear or peaks[2] - peaks[0] > 1 << 23  # and memory that is there is used
