"""The loaders: one for each kind of problem, the same through ``load``, and nothing slow imported before it is needed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import torch
from safetensors.torch import load_file

from stability import Problem, UsageError, problems
from stability.masks import fingerprint
from stability.problems.digits import WEIGHTS
from stability.problems.pretrained import load_pretrained
from stability.problems.problem import ModuleLogits
from tests import tiny


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("digits", {"n": 20, "seed": 1}),
        ("linear", {"n": 20, "seed": 1, "data": "diabetes"}),
        ("logistic", {"n": 20, "seed": 1, "d": 4}),
        ("quadratic", {"n": 20, "seed": 1, "rotated": True}),
    ],
)
def test_a_problem_is_the_same_by_name_and_by_its_own_function(name: str, settings: dict[str, Any]) -> None:
    loader = getattr(problems, f"load_{name}")
    assert problems.PROBLEMS[name] is loader
    one, other = loader(**settings), problems.load(name, **settings)
    assert isinstance(one, Problem)
    assert (one.name, one.settings) == (other.name, other.settings)
    assert one.training == problems.training_defaults(name)
    assert all(torch.equal(tensor, other.train.inputs[key]) for key, tensor in one.train.inputs.items())
    assert all(torch.equal(tensor, other.pretrained[key]) for key, tensor in one.pretrained.items())


def test_digits_are_known_by_their_weights_and_images() -> None:
    data = sklearn.datasets.load_digits()
    later = data.target >= 5
    content = {
        **load_file(WEIGHTS),
        "pixel_values": torch.tensor(data.images[later] / 16, dtype=torch.float32).unsqueeze(1),
        "labels": torch.tensor(data.target[later] - 5),
    }
    problem = problems.load("digits", n=20, seed=1)
    assert problem.settings == {"n": 20, "seed": 1, "weights": fingerprint(content)[:16]}
    assert isinstance(problem.logits, ModuleLogits)
    assert list(problem.logits.module.buffers()) == []


def test_texts_are_the_same_by_path_and_by_their_own_function(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "bert")
    data = Path(tiny.lines(tmp_path / "mine", train=tiny.rows(20)))
    one, other = problems.load_texts(data, model, n=8, label_type="classes"), problems.load(data, model=model, n=8)
    assert (one.name, one.settings) == (other.name, other.settings)
    assert problems.identity(str(data), {"model": str(model), "n": 8})["problem_settings"]["n"] == 8


@pytest.mark.parametrize("name", ["digits", "texts", "linear", "logistic", "quadratic"])
def test_every_loader_names_and_types_its_settings(name: str) -> None:
    signature = inspect.signature(getattr(problems, f"load_{name}"))
    assert signature.return_annotation == "Problem"
    for position, parameter in enumerate(signature.parameters.values()):
        assert parameter.kind is (parameter.POSITIONAL_OR_KEYWORD if position < 2 else parameter.KEYWORD_ONLY)
        assert parameter.annotation is not parameter.empty


def test_slow_packages_are_imported_only_by_the_problems_that_need_them() -> None:
    program = """
import sys
import stability.problems
from stability.problems import load, load_digits, load_linear, load_logistic, load_quadratic, load_texts
slow = ("transformers", "sklearn", "datasets", "peft", "matplotlib")
for problem in (load_linear(n=5), load_logistic(n=5), load_quadratic(n=5), load("linear", n=5)):
    assert problem.n == 5
assert not [name for name in slow if name in sys.modules], sorted(sys.modules)
load("linear", n=5, data="diabetes")
assert [name for name in slow if name in sys.modules] == ["sklearn"]
load_digits(n=5)
assert [name for name in slow if name in sys.modules] == ["transformers", "sklearn"]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_refusal_of_our_own_is_not_explained_as_an_error_of_transformers(tmp_path: Path) -> None:
    tiny.write_model(tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with pytest.raises(UsageError, match=r"has no tokenizer \(tokenizer.json") as caught:
        load_pretrained(tmp_path, 2)
    assert caught.value.__cause__ is None
    with pytest.raises(UsageError, match="outputs = 0: use a whole number of at least 1"):
        load_pretrained(tmp_path, 0)
