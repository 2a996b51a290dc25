from __future__ import annotations

import importlib
import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from stability.problems.digits import WEIGHTS, pretrain

ROOT = Path(__file__).parents[1]


def test_environment_and_project_name_the_same_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        *project["dependencies"],
        *(name for extra in extras.values() for name in extra),
        f"python{project['requires-python']}",
    }
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    found = {entry.replace("pytorch", "torch") for entry in conda if isinstance(entry, str) and entry != "pip"}
    assert {w.lower() for w in wanted} == {f.lower() for f in found}


def test_every_dependency_has_its_version_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *(name for extra in extras.values() for name in extra)):
        assert re.split("[><=]", requirement)[0].lower().replace("_", "-") in pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_shipped_weights_can_be_made_again() -> None:
    """Retraining reaches the accuracy that the shipped file states, within 4 of its 181 held-out images."""
    with safe_open(WEIGHTS, framework="pt") as file:
        stated = float(file.metadata()["held_out_accuracy"])
        names = set(file.keys())
    parameters, accuracy = pretrain()
    assert set(parameters) == names
    assert stated > 0.95
    assert abs(accuracy - stated) <= 4 / 181


def test_notebooks_are_committed_with_every_figure() -> None:
    """A cell that draws shows what it drew, and no output names the machine it ran on."""
    files = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(files) >= 2
    drawn = 0
    for path in files:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code" and re.search(r"plotting\.\w+\(", "".join(cell["source"])):
                drawn += 1
                assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), f"{path.name}: {cell['source']}"
            assert "site-packages" not in json.dumps(cell.get("outputs", []))
    assert drawn >= 6


@pytest.mark.parametrize(
    "name",
    [
        *("bounds", "bounds.measured", "derivatives.curvature", "derivatives.gradients", "derivatives.influence"),
        *("problems.solvable", "problems.convex", "selectors.top_k", "shira", "checks"),
    ],
)
def test_public_functions_state_an_example_and_their_errors(name: str) -> None:
    module = importlib.import_module(f"stability.{name}")
    functions = [getattr(module, public) for public in module.__all__ if inspect.isfunction(getattr(module, public))]
    assert functions
    for function in functions:
        text = inspect.getdoc(function) or ""
        assert "Example:" in text, function.__qualname__
        assert "Raises:" in text or function.__name__ in ("total", "slopes_and_bends"), function.__qualname__
