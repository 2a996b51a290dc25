"""A torch module as a pure function of its parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from stability.problems.problem import Examples, ModuleLogits


class Shared(nn.Module):
    """One layer that stands in two places, and another one with a weight that is tied to it and stands under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.third = nn.Linear(3, 3)
        self.third.weight = self.first.weight
        self.third.same = self.third.weight

    def forward(self, x: Tensor) -> Any:
        y = self.third(self.second(self.first(x))) + x @ self.third.same  # type: ignore[operator]
        return type("Output", (), {"logits": y})


def test_parameters_that_stand_in_several_places_are_given_to_all_and_taken_back() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, x = Shared().double(), torch.randn(4, 3, dtype=torch.float64)
        parameters = {name: torch.randn(2, *p.shape, dtype=torch.float64) for name, p in module.named_parameters()}
    assert list(parameters) == ["first.weight", "first.bias", "third.bias"]
    before = dict(module.named_parameters(remove_duplicate=False))
    logits = vmap(lambda mine: ModuleLogits(module)(mine, {"x": x}))(parameters)
    for row in range(2):
        w, b, c = (tensor[row] for tensor in parameters.values())
        expected = ((x @ w.T + b) @ w.T + b) @ w.T + c + x @ w
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-12)
    after = dict(module.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert torch.equal(copy.deepcopy(module).first.weight, module.first.weight)


def test_blocks_of_examples_without_lengths_are_views() -> None:
    """A copy of all of them would be what does not fit where memory is short."""
    examples = Examples({"x": torch.arange(10.0).reshape(5, 2)}, torch.arange(5))
    blocks = list(examples.blocks(most=2))
    assert [index.tolist() for index, _ in blocks] == [[0, 1], [2, 3], [4]]
    for index, block in blocks:
        assert torch.equal(block.labels, index)
        assert block.inputs["x"].data_ptr() == examples.inputs["x"][index[0]].data_ptr()
        assert torch.equal(block.inputs["x"], examples.inputs["x"][index])
