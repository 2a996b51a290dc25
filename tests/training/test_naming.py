"""What methods are called beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from stability import FineTuning, Problem
from stability.masks import Mask
from stability.selectors import SNIP, DiffPruning, Scope, Selector
from stability.training.naming import named_apart


@dataclass(frozen=True)
class Mine(Selector):
    """A selector with a setting that is called as one of a scope, and one that is a list."""

    budget: str
    layers: Sequence[int]
    scope: Scope
    name, uses_data = "mine", False

    def select(self, problem: Problem, seed: int) -> Mask:
        raise NotImplementedError


SCOPES = (Scope(only="a"), Scope("row", only=("a", "b")), Scope(unit="block"), Scope("row"))


@pytest.mark.parametrize(
    ("selectors", "names"),
    [
        (
            [SNIP(0.1, scope=scope) for scope in SCOPES],
            ["snip scope=global only=a", "snip scope=row only=a,b", "snip scope=global unit=block", "snip scope=row"],
        ),
        (
            [Mine(budget, layers, Scope("row", budget="equal")) for budget, layers in (("x", [1]), ("y", [1]), ("y", (1, 2)))],
            ["mine budget=x layers=1 scope=row", "mine budget=y layers=1 scope=row", "mine budget=y layers=1,2 scope=row"],
        ),
        (
            [DiffPruning(0.1), DiffPruning(0.1, stretch=(-1.0, 2.0))],
            ["diffpruning stretch=-1.5,1.5", "diffpruning stretch=-1.0,2.0"],
        ),
        ([SNIP(0.1), SNIP(0.2)], ["snip p=0.1", "snip p=0.2"]),
    ],
)
def test_settings_in_which_methods_differ_are_part_of_their_names(selectors: list[Selector], names: list[str]) -> None:
    assert named_apart([FineTuning(selector) for selector in selectors]) == names
