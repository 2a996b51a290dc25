"""Draws from a generator of one's own against those of the global generator, seeded alike; and threads that draw meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stability.masks import fingerprint
from stability.problems import digits, pretrained
from stability.problems.drawing import DrawingFrom
from stability.problems.problem import generator
from tests import tiny

ones = torch.ones(3, 4)
DRAWS: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(5),
    "rand_like": lambda: torch.rand_like(ones),
    "randn": lambda: torch.randn(40, dtype=torch.float64),
    "randn_like": lambda: torch.randn_like(ones),
    "randint": lambda: torch.randint(9, (4,)),
    "randint from": lambda: torch.randint(3, 9, (4,)),
    "randint_like": lambda: torch.randint_like(ones, 2, 9),
    "randperm": lambda: torch.randperm(9),
    "normal": lambda: torch.normal(ones, 2.0),
    "normal of numbers": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal_": lambda: torch.empty(40).normal_(1, 2),
    "uniform_": lambda: torch.empty(3).uniform_(-1, 1),
    "bernoulli": lambda: torch.bernoulli(0.5 * ones),
    "bernoulli_": lambda: torch.empty(9).bernoulli_(0.3),
    "exponential_": lambda: torch.empty(3).exponential_(),
    "random_": lambda: torch.empty(3).random_(2, 9),
    "multinomial": lambda: torch.multinomial(ones, 3),
    "poisson": lambda: torch.poisson(ones),
    "gamma": lambda: torch.distributions.Gamma(ones, ones).sample(),
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.empty(50)),
    "orthogonal_": lambda: nn.init.orthogonal_(torch.empty(5, 5)),
    "kaiming_uniform_": lambda: nn.init.kaiming_uniform_(torch.empty(5, 5)),
    "a linear layer": lambda: nn.Linear(5, 5).weight.detach(),
    "attention": lambda: nn.MultiheadAttention(4, 2).in_proj_weight.detach(),
    "singular values": lambda: torch.svd_lowrank(torch.arange(12.0).view(3, 4), 2)[1],
}


@contextlib.contextmanager
def global_instead(draws: torch.Generator) -> Iterator[None]:
    """As it was done before: the global generator, seeded with the same number."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draws.initial_seed())
        yield


@pytest.mark.parametrize("what", DRAWS)
def test_the_numbers_are_those_of_the_global_generator_which_is_left_alone(what: str) -> None:
    def three(way: Any) -> list[Tensor]:
        with way(torch.Generator().manual_seed(7)):
            return [torch.rand(2), DRAWS[what](), torch.rand(2)]  # and the stream goes on from where it should

    state = torch.get_rng_state()
    for found, wanted in zip(three(DrawingFrom), three(global_instead), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_that_is_named_stays() -> None:
    with DrawingFrom(torch.Generator().manual_seed(7)):
        found = [torch.randn(3, generator=torch.Generator().manual_seed(1)), torch.randn(3)]
    with global_instead(torch.Generator().manual_seed(7)):
        wanted = [torch.randn(3, generator=torch.Generator().manual_seed(1)), torch.randn(3)]
    assert all(torch.equal(mine, other) for mine, other in zip(found, wanted, strict=True))


def heads(folder: Path) -> list[str]:
    """What is drawn when a model is loaded and heads are made; nothing comes from a cache."""
    pretrained._load.cache_clear()
    loaded = [pretrained.load_pretrained(folder, outputs) for outputs in (2, 3, 4)]
    return [one.fingerprint for one in loaded] + [
        fingerprint(one.new_head(generator(i, "head"))) for one in loaded for i in range(3)
    ]


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "ibert"])
def test_heads_are_bit_for_bit_those_of_the_global_generator(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_model(tmp_path, family)
    found = heads(tmp_path)
    monkeypatch.setattr(pretrained, "DrawingFrom", global_instead)
    assert heads(tmp_path) == found
    assert len(set(found)) > 8


def test_pretraining_is_bit_for_bit_that_of_the_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = digits.pretrain(seed=3, steps=2)
    monkeypatch.setattr(digits, "DrawingFrom", global_instead)
    wanted, _ = digits.pretrain(seed=3, steps=2)
    assert fingerprint(found) == fingerprint(wanted)


def test_a_thread_that_draws_meanwhile_disturbs_nothing_and_is_not_disturbed(tmp_path: Path) -> None:
    tiny.write_model(tmp_path)
    alone = heads(tmp_path)
    done = threading.Event()
    drawn: list[Tensor] = []

    def draw() -> None:
        while not done.is_set() or len(drawn) < 1000:
            drawn.append(torch.rand(3))

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        thread = threading.Thread(target=draw)
        thread.start()
        try:
            beside = [heads(tmp_path) for _ in range(3)]
        finally:
            done.set()
            thread.join()
        torch.default_generator.manual_seed(5)
        wanted = [torch.rand(3) for _ in drawn]
    assert beside == [alone] * 3
    assert all(torch.equal(mine, other) for mine, other in zip(drawn, wanted, strict=True))


def test_threads_that_load_at_once_leave_transformers_as_loud_and_torch_as_it_was(tmp_path: Path) -> None:
    from transformers.utils import logging

    before, normal_ = logging.get_verbosity(), nn.init.normal_
    folders = [tiny.write_model(tmp_path / family, family) for family in ("bert", "electra", "distilbert")]
    threads = [threading.Thread(target=pretrained._load, args=(str(folder), 5, (i,))) for i in range(3) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logging.get_verbosity() == before
    assert nn.init.normal_ is normal_
