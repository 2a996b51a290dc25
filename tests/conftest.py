from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from torch import nn

from stability import problems
from stability.problems.problem import Examples, ModuleLogits, Problem
from stability.selectors import SynFlow
from tests import simulated_device, tiny

mpl.use("Agg")
torch.set_num_threads(1)  # one a worker: several workers with several threads each slow each other down many times
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
if not torch.cuda.is_available():  # torch has one kind of device besides the CPU at a time
    simulated_device.register()  # here, before any test takes a gradient


@pytest.fixture(scope="session")
def digits() -> Problem:
    return problems.load("digits", n=24, seed=0)


@pytest.fixture(autouse=True)
def no_figure_stays_open() -> Iterator[None]:
    """Matplotlib warns of more than twenty, and a warning is an error here."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is left in the user's cache, nor read from it."""
    os.environ["STABILITY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Pairs of sentences for a tiny BERT, of the same width and depth as the transformer of ``digits``."""
    folder = tmp_path_factory.mktemp("pairs")
    model = tiny.write_model(folder / "bert", hidden_size=32, num_hidden_layers=3)
    data = tiny.lines(folder / "pairs", train=tiny.rows(24, most=20), test=tiny.rows(40, seed=1, most=20))
    return problems.load(data, model=str(model))


@pytest.fixture(params=["digits", "pairs"])
def learned(request: pytest.FixtureRequest) -> Problem:
    """Images or texts; for a method that refuses transformers a network of linear layers and ReLU."""
    if isinstance(request.node.callspec.params.get("selector"), SynFlow):
        return plain_network(request.getfixturevalue("digits"))
    problem: Problem = request.getfixturevalue(request.param)
    return problem


def plain_network(digits: Problem) -> Problem:
    """The images of ``digits`` for two layers and a new head."""
    draw = torch.Generator().manual_seed(0)
    layers = {"1.weight": (32, 64), "1.bias": (32,), "3.weight": (24, 32), "3.bias": (24,)}
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)).eval()

    def images(some: Examples) -> Examples:
        return dataclasses.replace(some, inputs={"input": some.inputs["pixel_values"]})

    return dataclasses.replace(
        digits,
        name="plain",
        pretrained={name: 0.3 * torch.randn(shape, generator=draw) for name, shape in layers.items()},
        new_head=lambda draw: {"5.weight": 0.3 * torch.randn(5, 24, generator=draw), "5.bias": torch.zeros(5)},
        logits=ModuleLogits(module),
        train=images(digits.train),
        test=images(digits.test),
    )
