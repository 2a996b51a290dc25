"""Jacobians of a language model's logits, by its matrices at the masked coordinates alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from stability import problems
from stability.derivatives import gradients, per_example_jacobians, products
from stability.masks import Mask, Parameters
from stability.problems import Problem
from stability.problems.problem import ModuleLogits
from tests import tiny
from tests.reference import as_double

FAMILIES = ("bert", "roberta", "distilbert", "electra")


@pytest.fixture(scope="module", params=FAMILIES)
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Texts of many lengths, so that blocks are padded and come in another order."""
    folder = tmp_path_factory.mktemp(request.param)
    model = str(tiny.write_model(folder / "model", request.param))
    data = tiny.lines(folder / "data", train=tiny.rows(14, most=30), test=tiny.rows(4, seed=1))
    return problems.load(data, model=model)


def drawn(parameters: Parameters, share: float) -> Mask:
    """A share of each tensor's coordinates at random, of the head all."""
    draw = torch.Generator().manual_seed(0)
    chosen = {name: torch.rand(t.numel(), generator=draw).lt(share).nonzero().flatten() for name, t in parameters.items()}
    return Mask({name: tuple(t.shape) for name, t in parameters.items()}, {n: index for n, index in chosen.items() if len(index)})


def one_at_a_time(problem: Problem, parameters: Parameters, mask: Mask) -> Tensor:
    """The truth: a backward pass through the whole network for each example and logit."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    rows = []
    for i in range(problem.n):
        logits = problem.logits(leaves, problem.train.take(slice(i, i + 1)).inputs)[0]
        for f in logits:
            slopes = torch.autograd.grad(f, list(leaves.values()), retain_graph=True, materialize_grads=True)
            rows.append(mask.gather(dict(zip(leaves, slopes, strict=True))))
    return torch.stack(rows).view(problem.n, -1, mask.count)


@pytest.mark.parametrize("batched", [True, False], ids=["at once", "singly"])
@pytest.mark.parametrize("share", [0.02, 0.4], ids=["sampled", "dense"])
@pytest.mark.parametrize("budget", [None, 1 << 20])
def test_jacobians_of_texts_are_those_of_a_pass_for_each(
    texts: Problem, batched: bool, share: float, budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_LARGE_MATRIX", 1)
    """In single precision the products are sampled, where there are few sites."""
    assert isinstance(texts.logits, ModuleLogits)
    problem = dataclasses.replace(texts, logits=dataclasses.replace(texts.logits, batched=batched))
    problem = problem if share < 0.05 else as_double(problem)
    start = problem.start(0)
    mask = drawn(start, share)
    assert gradients._sites(start, mask)
    assert problem.batched == batched
    found = list(per_example_jacobians(problem, start, problem.train, mask, memory_budget=budget))
    assert (len(found) > 1) == (budget is not None)
    torch.testing.assert_close(torch.cat(found), one_at_a_time(problem, start, mask), rtol=0, atol=2e-5 if share < 0.05 else 1e-13)
