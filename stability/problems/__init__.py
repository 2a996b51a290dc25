"""Problems by name: :func:`load`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from stability.errors import UsageError
from stability.problem import Examples, Problem
from stability.problems import digits
from stability.problems.convex import CONVEX
from stability.solvable import Solvable

__all__ = ["PROBLEMS", "Examples", "Problem", "load"]

PROBLEMS: dict[str, Callable[..., Problem | Solvable]] = {"digits": digits.load, **CONVEX}
"""Loader of each problem by its name."""


def load(name: str, **settings: Any) -> Problem:
    """The problem called ``name``; ``settings`` go to its loader: n and seed, and those of :mod:`stability.problems.convex`.

    Raises:
        UsageError: an unknown name or setting, or a value that the problem refuses.

    Example:
        >>> load("digits", n=40, seed=1).n
        40
    """
    if name not in PROBLEMS:
        raise UsageError(f"unknown problem {name!r}: there is {', '.join(sorted(PROBLEMS))}")
    loader = PROBLEMS[name]
    known = inspect.signature(loader).parameters
    if odd := sorted(settings.keys() - known.keys()):
        raise UsageError(f"problem {name!r} has no setting {', '.join(odd)}: there is {', '.join(known)}")
    found = loader(**settings)
    return found.problem if isinstance(found, Solvable) else found
