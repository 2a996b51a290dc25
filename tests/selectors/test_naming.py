from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from stability import FineTuning, Problem, UsageError
from stability.cli.commands import main
from stability.masks import Mask
from stability.problems.problem import generator
from stability.selectors import (
    SAM,
    BitFit,
    FromScores,
    FullTuning,
    LoRA,
    MagPruning,
    Peft,
    Random,
    Selector,
    from_scores,
    magnitude,
    naming,
)
from stability.selectors.naming import SELECTORS, having, selector_named

MODULE = """
import torch
from stability.masks import Mask
from stability.selectors import MagPruning, magnitude, Random, Selector


def smallest(problem, generator):
    return {name: -tensor.abs() for name, tensor in problem.pretrained.items()}


class FirstTensor(Selector):
    name = "first-tensor"

    def select(self, problem, seed):
        shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
        first = next(iter(shapes))
        return Mask(shapes, {first: torch.arange(problem.pretrained[first].numel())})


ready = Random(0.02)
number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder; its name differs from test to test, for imports are remembered."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_built_in_names_give_their_selectors() -> None:
    assert selector_named("full") == FullTuning()
    assert selector_named("full", 1) == FullTuning()
    assert selector_named("bitfit") == BitFit()
    assert selector_named("random", 0.1, scope="tensor") == Random(0.1, "tensor")
    made = [selector_named(name, 0.1 if name in having("sparsity") else None) for name in SELECTORS]
    assert [type(selector) for selector in made] == [MagPruning if kind is magnitude else kind for kind in SELECTORS.values()]
    assert [selector.name for selector in made] == list(SELECTORS)
    assert selector_named("lora", rank=2) == LoRA(rank=2)


def test_configurations_of_peft_are_selectors(digits: Problem) -> None:
    """A class of peft's with its options, and one that a user has made."""
    by_class = selector_named("peft:IA3Config", target_modules=["v_proj", "fc2"], feedforward_modules=["fc2"])
    assert isinstance(by_class, Peft)
    assert by_class.name == "peft-ia3"
    assert by_class.select(digits, 0).count == 3 * (32 + 64)
    with pytest.raises(UsageError, match=r"'peft:SupertuningConfig' is a configuration of peft.*leave sparsity 0.05 out"):
        selector_named("peft:SupertuningConfig", 0.05)
    with pytest.raises(UsageError, match=r"sparsity of 'sam' is given twice, 0.1 and 0.2"):
        selector_named("sam", 0.1, sparsity=0.2)
    assert selector_named("sam", sparsity=0.2) == SAM(0.2)
    with pytest.raises(UsageError, match=r"selector 'peft:IA3Config' has no rank"):
        selector_named("peft:IA3Config", rank=2)


def test_functions_classes_and_instances_of_a_module(mine: str, digits: Problem) -> None:
    scores = selector_named(f"{mine}:smallest", 0.01)
    assert isinstance(scores, FromScores)
    flat = torch.cat([tensor.flatten().abs() for tensor in digits.pretrained.values()])
    chosen = scores.select(digits, 0)
    assert chosen.gather(digits.pretrained).abs().max() <= flat.sort().values[chosen.count]
    first = selector_named(f"{mine}:FirstTensor")
    assert list(first.select(digits, 0).indices) == [next(iter(digits.pretrained))]
    assert selector_named(f"{mine}:ready") == Random(0.02)


def test_the_command_line_takes_a_module(mine: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"
    assert main(["select", "--selector", f"{mine}:smallest", "--sparsity", "0.01", "--out", str(out)]) == 0
    assert Mask.load(out).count == 264
    capsys.readouterr()
    command = f"loo --selector {mine}:smallest --sparsity 0.01 --n 8 --steps 2 --retrainings 2 --device cpu --json"
    assert main(command.split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["algorithm"]["selector"]["scores"] == f"{mine}:smallest"


def test_entry_points_announce_selectors(mine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entry = metadata.EntryPoint("smallest", f"{mine}:smallest", naming.ENTRY_POINTS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == naming.ENTRY_POINTS else [])
    monkeypatch.syspath_prepend(".")
    assert selector_named("smallest", 0.05).sparsity == 0.05
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selectors"][-1] == "smallest"
    with pytest.raises(UsageError, match="unknown selector 'best': there is full.*smallest, and module:name"):
        selector_named("best")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("random", {}, "'random' needs its sparsity"),
        ("bitfit", {"sparsity": 0.1}, "decides itself"),
        ("full", {"sparsity": 0.5}, "decides itself"),
        ("random", {"sparsity": 0.1, "curvature": "hutchinson"}, "has no curvature.*there is sparsity, scope"),
        ("no_such_module:f", {"sparsity": 0.1}, "cannot import .*no_such_module"),
        ("MINE:absent", {"sparsity": 0.1}, "has no 'absent'; there is .*smallest"),
        ("MINE:number", {"sparsity": 0.1}, "is 3: give a function"),
        ("MINE:Mask", {"sparsity": 0.1}, "give a function .* or a Selector"),
        ("MINE:ready", {"sparsity": 0.1}, "settings made: leave sparsity out"),
        ("MINE:smallest", {}, "needs its sparsity"),
    ],
)
def test_bad_names_are_refused(name: str, arguments: dict[str, Any], message: str, mine: str) -> None:
    with pytest.raises(UsageError, match=message):
        selector_named(name.replace("MINE", mine), **arguments)


def changed(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: tensor.abs() for name, tensor in problem.pretrained.items()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: {**s, "extra": torch.ones(2)}, "'changed' must be named as problem.pretrained; unknown: extra"),
        (lambda s: dict(list(s.items())[1:]), "missing: vit.embeddings.cls_token"),
        (lambda s: {n: t.flatten() for n, t in s.items()}, r"have shape \(32,\): that of the parameter, \(1, 1, 32\)"),
        (lambda s: {n: t * float("nan") for n, t in s.items()}, "not finite"),
        (lambda s: {n: torch.ones_like(t) for n, t in s.items()}, "all equal: there is nothing to choose by"),
    ],
)
def test_bad_scores_are_refused(spoil: Any, message: str, digits: Problem) -> None:
    def spoilt(problem: Problem, draw: torch.Generator) -> Any:
        return spoil(changed(problem, draw))

    with pytest.raises(UsageError, match=message):
        from_scores(spoilt, 0.1, name="changed").select(digits, 0)


def test_scores_in_another_order_choose_the_same(digits: Problem) -> None:
    def reversed_order(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
        return dict(reversed(changed(problem, draw).items()))

    assert from_scores(reversed_order, 0.03).select(digits, 0).equals(from_scores(changed, 0.03).select(digits, 0))


def test_a_changed_function_has_another_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(factor: int) -> dict[str, Any]:
        path = tmp_path / f"version_{factor}.py"
        path.write_text(f"def scores(problem, generator):\n    return {factor}\n")
        space: dict[str, Any] = {}
        exec(compile(path.read_text(), str(path), "exec"), space)
        space["scores"].__module__ = "same"
        return FineTuning(from_scores(space["scores"], 0.1)).settings()

    assert identity(1) == identity(1)
    assert identity(1) != identity(2)


def test_a_score_function_gets_the_selection_s_generator(digits: Problem) -> None:
    seen: list[float] = []

    def look(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
        seen.append(float(torch.rand(1, generator=draw)))
        return changed(problem, draw)

    selector: Selector = from_scores(look, 0.1)
    selector.select(digits, 7)
    assert seen == [float(torch.rand(1, generator=generator(7, "selection")))]


def test_a_misspelt_setting_is_named_before_one_that_is_missing() -> None:
    with pytest.raises(UsageError, match=r"selector 'sam' has no sparcity: leave it out; did you mean sparsity\?"):
        selector_named("sam", sparcity=0.05)
