"""Slow, plain answers to compare with. Nothing here uses the code under test."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from stability import Examples, Problem
from stability.masks import Parameters
from tests import simulated_device

CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")])
SIMULATED = pytest.param(simulated_device.NAME, marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is present"))
ELSEWHERE = [SIMULATED, CUDA]
"""Values of ``device`` that are not the CPU: the simulated one, or CUDA where there is a GPU."""


def rounding(device: str, on_cuda: float) -> float:
    """By how much results may differ from the CPU's: not at all on the simulated device, which computes what the CPU computes."""
    return 0.0 if device == simulated_device.NAME else on_cuda


def plain_loop(
    model: torch.nn.Module,
    pixels: Tensor,
    labels: Tensor,
    masks: Mapping[str, Tensor],
    batches: list[Tensor],
    left_out: int | None,
    learning_rate: float,
    weight_decay: float = 0.0,
    ridge: float = 0.0,
) -> dict[str, Tensor]:
    """Masked fine-tuning of one model as one would write it: boolean masks on the gradients, torch's AdamW, then the
    frozen coordinates put back (AdamW's weight decay moves them)."""
    model = copy.deepcopy(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    for batch in batches:
        keep = batch[batch != left_out] if left_out is not None else batch
        optimizer.zero_grad()
        loss = cross_entropy(model(pixels[keep]).logits, labels[keep])
        if ridge:
            loss = loss + ridge * sum((masks[n] * (p - start[n]) ** 2).sum() for n, p in model.named_parameters())
        loss.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            p.grad *= masks[name]
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.where(masks[name], p, start[name]))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def top_k_by_sorting(scores: np.ndarray, k: int) -> set[int]:
    """Indices of the k largest, ties by index, one comparison at a time."""
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def call(model: torch.nn.Module, parameters: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    output: Any = functional_call(model, dict(parameters), (pixels,))
    return output.logits  # type: ignore[no-any-return]


def leaving_out(n: int, *left_out: int) -> Tensor:
    """Weights of A(S) and of one replica for each example left out."""
    weights = torch.ones(1 + len(left_out), n)
    for row, i in enumerate(left_out, 1):
        weights[row, i] = 0
    return weights


def as_double(problem: Problem) -> Problem:
    """The same problem in float64."""

    def examples(some: Any) -> Any:
        return dataclasses.replace(some, inputs={n: t.double() if t.is_floating_point() else t for n, t in some.inputs.items()})

    return dataclasses.replace(
        problem,
        pretrained={n: t.double() for n, t in problem.pretrained.items()},
        new_head=lambda draw: {n: t.double() for n, t in problem.new_head(draw).items()},
        train=examples(problem.train),
        test=examples(problem.test),
    )


def classification(
    pretrained: Mapping[str, Tensor],
    logits: Callable[[Parameters, Mapping[str, Tensor]], Tensor],
    examples: Examples,
    new_head: Callable[[torch.Generator], dict[str, Tensor]] = lambda _: {},
) -> Problem:
    """A problem of a network that is written down, whose test examples are those of S."""
    return Problem(
        name="network",
        settings={},
        pretrained=dict(pretrained),
        new_head=new_head,
        logits=logits,
        loss=lambda f, y: torch.nn.functional.cross_entropy(f, y, reduction="none"),
        train=examples,
        test=examples,
        metric=lambda f, y: 0.0,
        metric_name="none",
    )
