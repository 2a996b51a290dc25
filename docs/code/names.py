"""Public names and the places where the reference describes them."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

__all__ = ["documented", "linked"]

PACKAGE = Path(__file__).parents[2] / "stability"

MODULES = {name: f"stability.leave_one_out.{name}" for name in ("estimators", "loops", "perturbations", "predictors")}
"""Modules that the package offers under a shorter name."""


@functools.cache
def documented() -> dict[str, tuple[str, ...]]:
    """Every public name, and the paths under which the reference has it."""
    found: dict[str, tuple[str, ...]] = {}
    holders = {f"stability.{path.parent.name}": path for path in sorted(PACKAGE.glob("*/__init__.py"))}
    holders |= {f"stability.{name}": PACKAGE / "leave_one_out" / f"{name}.py" for name in MODULES}
    for holder, path in holders.items():
        for name in _public(path):
            if not (holder == "stability.leave_one_out" and name in MODULES):
                place = f"{MODULES.get(holder.rpartition('.')[2], holder)}.{name}"
                # Where a module and what it holds have one name, griffe knows the module by it.
                found[name] = (*found.get(name, ()), f"{place}.{name}" if (path.parent / f"{name}.py").exists() else place)
    return found


def _public(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def linked(text: str, module: str) -> str:
    """A docstring with links in place of roles.

    Args:
        text: the docstring.
        module: the module that it stands in. A name that several folders have is that of this one.
    """

    def link(found: re.Match[str]) -> str:
        named = found[2].lstrip("~.")
        last = named.rpartition(".")[2]
        owner = named.split(".")[0]  # Bound.state is told where Bound is
        places = documented().get(last) or (documented().get(owner, ()) if owner[:1].isupper() else ())
        folder = next(
            (part for part in (*named.split(".")[1:-1], *module.split(".")[1:2]) if f"stability.{part}" in " ".join(places)), ""
        )
        fitting = [place for place in places if f".{folder}." in place] or list(places)
        shown = last if "~" in found[2] or named.startswith("stability.") else named
        return f"[`{shown}`][{fitting[0]}]" if fitting else f"`{shown}`"

    return re.sub(r":(class|func|meth|attr|mod|data|exc):`([^`]+)`", link, text)
