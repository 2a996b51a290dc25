"""The digest of a user's code: what changes what is executed changes it, and nothing else does."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stability import FineTuning, Problem
from stability.masks import Mask
from stability.selectors import SAM, Peft, Selector, from_scores
from stability.selectors.code import CODE, UNKNOWN, code_of
from stability.selectors.naming import SELECTORS, having, selector_named
from stability.studies.identity import without_code

FIRST = """
import helpers

FACTOR = 2.0
TABLE = {"a": [1, 2], "b": {3, 4}}


def weigh(value):
    return FACTOR * helpers.scaled(value)


def scores(problem, generator):
    return {name: weigh(tensor) for name, tensor in problem.pretrained.items()}


class Base:
    def inner(self, value):
        return value + 1


class Mine(Base):
    power = 2

    def __init__(self, share=0.5):
        self.share = share

    def outer(self, value):
        return self.inner(value) ** self.power


def unused(value):
    return value
"""
HELPERS = "def scaled(value):\n    return 3 * value\n\n\ndef other(value):\n    return value\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Imports the module ``first`` with the module ``helpers`` that it imports, as if in a fresh session."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within a second would be one

    def loaded(first: str = FIRST, helpers: str = HELPERS) -> types.ModuleType:
        for name, text in (("first", first), ("helpers", helpers)):
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("first")

    return loaded


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 2.0", "FACTOR = 2.5"),  # a value that a helper names
        ("FACTOR * helpers", "FACTOR + helpers"),  # a helper
        ("weigh(tensor)", "weigh(-tensor)"),
    ],
)
def test_what_a_function_calls_is_its_code(old: str, new: str, load: Any) -> None:
    before = code_of(load().scores)
    assert code_of(load().scores) == before
    assert code_of(load(FIRST.replace(old, new)).scores) != before
    assert code_of(load(helpers=HELPERS.replace("3 * value", "4 * value")).scores) != before


@pytest.mark.parametrize(
    ("old", "new"),
    [("value + 1", "value - 1"), ("power = 2", "power = 3"), ("** self.power", "* self.power"), ("share=0.5", "share=0.4")],
)
def test_what_a_class_and_its_bases_do_is_their_code(old: str, new: str, load: Any) -> None:
    assert code_of(load(FIRST.replace(old, new)).Mine) != code_of(load().Mine)


def test_what_is_not_executed_is_no_code(load: Any) -> None:
    """Comments, docstrings, the place in the file, functions and names of modules that nobody calls."""
    before = [code_of(load().scores), code_of(load().Mine)]
    commented = "# moved down\n\n" + FIRST.replace("    return FACTOR", "    # why\n    return FACTOR")
    for other in (
        load(commented),
        load(FIRST.replace("class Mine(Base):\n", 'class Mine(Base):\n    """What it does."""\n\n')),
        load(FIRST.replace("    return value\n", "    return 2 * value\n")),
        load(FIRST + "\nNEW = 1\n"),
    ):
        assert [code_of(other.scores), code_of(other.Mine)] == before
    other = load(helpers=HELPERS.replace("    return value\n", "    return 2 * value\n"))
    assert code_of(other.scores) == before[0]


def make(by: Any) -> Callable[[Problem, torch.Generator], dict[str, torch.Tensor]]:
    return lambda problem, generator: {name: by * tensor for name, tensor in problem.pretrained.items()}


def by_default(problem: Problem, generator: torch.Generator, by: Any = None) -> dict[str, torch.Tensor]:
    return make(by)(problem, generator)


class Called:
    def __init__(self, by: Any) -> None:
        self.by = by

    def __call__(self, problem: Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return make(self.by)(problem, generator)

    def method(self, problem: Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return self(problem, generator)


@pytest.mark.parametrize("way", [make, Called, lambda by: Called(by).method, lambda by: functools.partial(by_default, by=by)])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.1, 0.9),
        (1, 1.0),
        ([1, 2], [1, 2, 3]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
        (np.arange(3), np.arange(3.0)),
        (Path("a"), Path("b")),
        (torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)),
        (abs, round),
    ],
)
def test_captured_values_are_part_of_the_identity(way: Any, one: Any, other: Any) -> None:
    """As a closure, a callable object, a bound method, a partial function: equal values are one identity, others are another."""
    assert from_scores(way(one), 0.1).code() == from_scores(way(copy.deepcopy(one)), 0.1).code()
    assert from_scores(way(one), 0.1).code() != from_scores(way(other), 0.1).code()


def test_partial_functions_and_callable_objects_are_selectors(digits: Problem) -> None:
    expected = from_scores(make(2.0), 0.01, name="mine").select(digits, 0)
    for scores, name in (
        (functools.partial(by_default, by=2.0), "by_default"),
        (Called(2.0), "Called"),
        (Called(2.0).method, "method"),
    ):
        selector = from_scores(scores, 0.01)
        assert selector.name == name
        assert selector.select(digits, 0).equals(expected)


def test_what_cannot_be_compared_is_another_one_in_every_process() -> None:
    lock = threading.Lock()
    code = from_scores(make(lock), 0.1).code()
    assert code is not None
    assert code == from_scores(make(lock), 0.1).code()
    assert code.startswith(UNKNOWN)
    assert code.endswith(": lock")
    script = "import threading; from tests.selectors.test_code import *; print(code_of(make(threading.Lock())))"
    assert run(script) != run(script)


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.strip()


def test_the_digest_is_the_same_in_another_process() -> None:
    """Whatever the seed of Python's hashes, which orders sets."""
    script = "from tests.selectors.test_code import *; print(code_of(Called({'a', 'b', 'c', 'd'})), code_of(Whole, {0.5: (1, 2)}))"
    found = {run(script, PYTHONHASHSEED=str(seed)) for seed in range(3)}
    assert found == {f"{code_of(Called({'a', 'b', 'c', 'd'}))} {code_of(Whole, {0.5: (1, 2)})}"}


class Whole(Selector):
    name = "whole"

    def select(self, problem: Problem, seed: int) -> Mask:
        return Mask.full(problem.pretrained)


def test_only_code_that_is_not_the_toolkit_s_is_named() -> None:
    """So that the identity of results of the ten methods has settings alone."""
    for name in SELECTORS:
        made = selector_named(name, 0.1 if name in having("sparsity") else None)
        assert made.code() is None
    assert Whole().code() is not None

    class Mine(SAM):
        def select(self, problem: Problem, seed: int) -> Mask:
            return Mask.full(problem.pretrained)

    assert Mine(0.1).code() is not None
    assert CODE in FineTuning(Mine(0.1)).settings()["selector"]
    assert CODE not in FineTuning(SAM(0.1)).settings()["selector"]


def test_no_setting_is_taken_for_the_digest_of_code() -> None:
    """Two values of it are two methods whose code is one and the same but for that value."""

    class Coded(Selector):
        name = "coded"

        def __init__(self, word: str) -> None:
            self.sha = self.digest = word

        def select(self, problem: Problem, seed: int) -> Mask:
            return Mask.full(problem.pretrained)

    one, other = (FineTuning(Coded(word)).settings()["selector"] for word in ("x", "y"))
    assert without_code(one) != without_code(other)


def test_a_subclass_of_a_peft_selector_is_known_by_its_code() -> None:
    peft = pytest.importorskip("peft")

    class One(Peft):
        def insert(self, module: torch.nn.Module) -> torch.nn.Module:
            return super().insert(module)

    class Other(Peft):
        def insert(self, module: torch.nn.Module) -> torch.nn.Module:
            return module

    config = peft.LoraConfig(target_modules=["fc1"])
    plain, one, other = (FineTuning(kind(config)).settings()["selector"] for kind in (Peft, One, Other))
    assert len({json.dumps(settings, sort_keys=True) for settings in (plain, one, other)}) == 3


HELD = """
import functools, logging, re, time
import torch
from numpy import log
from numpy.linalg import norm

BIAS = re.compile("bias")
CACHE = {}
start, items, abs = time.time(), time.time_ns(), time.perf_counter()
logger = logging.getLogger(__name__)


def attributed(problem, generator):
    return attributed.power


attributed.power = 1


class Scaled:
    def __init__(self, function, by):
        functools.update_wrapper(self, function)
        self.by = by

    def __call__(self, problem, generator):
        return self.by


def matching(problem, generator):
    logger.debug(__name__)
    CACHE[len(CACHE)] = 1
    return BIAS, log, norm, problem.start(), problem.items(), problem.abs()


class Upper:
    upper, size = str.upper, torch.Tensor.abs
    kinds = set()


Upper.kinds.add(Upper)
"""


def test_what_pickle_knows_how_to_write_can_be_compared(load: Any) -> None:
    """Patterns, functions of NumPy, methods written in C, a set with its own class in it; and no attribute is a variable."""
    first, second = load(HELD), load(HELD)
    for name in ("matching", "Upper", "attributed"):
        code = code_of(getattr(first, name))
        assert code == code_of(getattr(second, name))
        assert code is not None
        assert not code.startswith(UNKNOWN)
    assert code_of(load(HELD.replace('"bias"', '"weight"')).matching) != code_of(first.matching)


def test_attributes_of_functions_and_wrapping_objects_are_their_code(load: Any) -> None:
    assert code_of(load(HELD.replace("power = 1", "power = 3")).attributed) != code_of(load(HELD).attributed)
    held = load(HELD)
    assert code_of(held.Scaled(held.matching, 0.1)) != code_of(held.Scaled(held.matching, 0.9))


def test_values_count_alike_whether_they_are_shared_or_copied() -> None:
    table = {"a": [1, 2]}
    assert code_of(Whole, table, table) == code_of(Whole, table, copy.deepcopy(table))


def test_state_that_changes_while_code_runs_is_not_the_code_itself(load: Any) -> None:
    """By which a study finds out whether it was edited: a cache that was filled is no edit, another line is one."""
    held = load(HELD)
    before, with_state = code_of(held.matching, state=False), code_of(held.matching)
    held.CACHE["filled"] = 1
    assert code_of(held.matching, state=False) == before
    assert code_of(held.matching) != with_state
    assert code_of(load(HELD.replace("return BIAS", "return None")).matching, state=False) != before


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.ones(2, device="meta"), nested(5000)])
def test_what_cannot_be_looked_at_is_unknown_and_no_error(value: Any) -> None:
    assert str(code_of(Whole, value)).startswith(UNKNOWN)
