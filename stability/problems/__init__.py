"""Problems by name: :func:`load`."""

from __future__ import annotations

from typing import Any

from stability.errors import UsageError
from stability.problem import Examples, Problem
from stability.problems import digits

__all__ = ["PROBLEMS", "Examples", "Problem", "load"]

PROBLEMS = {"digits": digits.load}
"""Loader of each problem by its name."""


def load(name: str, **settings: Any) -> Problem:
    """The problem called ``name``; ``settings`` go to its loader (for ``digits``: n and seed).

    Raises:
        UsageError: an unknown name, or settings that the problem refuses.

    Example:
        >>> load("digits", n=40, seed=1).n
        40
    """
    if name not in PROBLEMS:
        raise UsageError(f"unknown problem {name!r}: there is {', '.join(sorted(PROBLEMS))}")
    return PROBLEMS[name](**settings)
