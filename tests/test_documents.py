"""Public names are documented: each argument where it stands, an example that runs, sentences and no symbols."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import stability

PACKAGE = Path(__file__).parents[1] / "stability"
FOLDERS = [path.parent.name for path in sorted(PACKAGE.glob("*/__init__.py"))]


def public() -> dict[str, Any]:
    """Every function and class that the package or a folder hands on, by its full name."""
    found = {}
    for module in [
        "stability",
        *(f"stability.{name}" for name in FOLDERS),
        "stability.estimators",
        "stability.loops",
        "stability.perturbations",
        "stability.predictors",
    ]:
        holder = importlib.import_module(module) if module.count(".") == 0 or module.split(".")[1] in FOLDERS else None
        holder = holder or getattr(stability, module.split(".")[1])
        for name in getattr(holder, "__all__", ()):  # the command line hands on nothing
            value = getattr(holder, name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith("stability."):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


PUBLIC = public()


def section(text: str, *names: str) -> str:
    """What stands under one of these headings of a Google docstring."""
    parts = re.split(r"^(\w+):$", text, flags=re.MULTILINE)
    return "\n".join(body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name in names)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_explain_each_argument_and_have_an_example(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        assert inspect.getdoc(value)
        return
    text = inspect.getdoc(value) or ""
    told = section(text, "Args", "Attributes")
    if dataclasses.is_dataclass(value):
        bases = [
            base for base in getattr(value, "__mro__", ()) if base in PUBLIC.values()
        ]  # a field may be told where it is declared
        told = "\n".join(section(inspect.getdoc(base) or "", "Attributes") for base in bases)
        names = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
    elif inspect.isclass(value) and (
        issubclass(value, BaseException) or "__init__" not in vars(value) or "_is_protocol" in vars(value)
    ):
        names = []
    else:
        names = [p for p in inspect.signature(value).parameters if p not in ("self", "cls")]
    missing = [one for one in names if not re.search(rf"^\s*[\w, ]*\b{re.escape(one)}\b[\w, ]*:", told, flags=re.MULTILINE)]
    assert not missing, f"{name} does not explain {', '.join(missing)}"
    if inspect.isfunction(value):
        assert "Example:" in text, f"{name} has no example"


def test_docstrings_are_sentences() -> None:
    """A docstring has at least three words, and refers to no other place for what an argument means."""
    poor = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = (ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None) or "no docstring at all"
            if len(re.findall(r"\w{2,}", text)) < 3 or re.search(r": as there|: as in :\w+:`[^`]*`\.?$", text, flags=re.MULTILINE):
                poor.append(f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)} {text[:60]!r}")
    assert not poor, "\n".join(poor)


def test_contributing_names_files_that_are_there() -> None:
    """Each path in the table of what to change where, below ``stability/`` or ``tests/``; and each folder of the picture."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    named = [path for row in rows if len(row) == 3 for cell in row[1:] for path in re.findall(r"`([\w/]+(?:\.py|/))`", cell)]
    assert len(named) > 30
    roots = (PACKAGE, PACKAGE.parent / "tests", PACKAGE.parent)
    assert [path for path in named if not any((root / path).exists() for root in roots)] == []
    folders = {name for row in rows if len(row) == 2 for name in re.findall(r"^ `(\w+)/` ", row[0])} - {"stability"}
    assert folders == set(FOLDERS)
