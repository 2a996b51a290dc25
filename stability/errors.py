"""The two ways in which the toolkit refuses, each with the exit code that the command line gives it; and what it checks most."""

from __future__ import annotations

import math
from numbers import Integral, Real

__all__ = ["StabilityError", "UsageError", "check_flags", "check_number", "check_positive", "check_whole"]


class StabilityError(RuntimeError):
    """The work could not be done: a damaged file, a diverging run, no disk space (exit code 1)."""

    exit_code = 1


class UsageError(StabilityError, ValueError):
    """What was asked for makes no sense: a sparsity of 2, an unknown name (exit code 2).

    It is a ``ValueError`` too, so that callers from Python may catch it as one.
    """

    exit_code = 2


def check_whole(least: int, **values: object) -> None:
    """That each value is a whole number of at least ``least``.

    Raises:
        UsageError: one is not.

    Example:
        >>> check_whole(1, steps=3)
    """
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, Integral) and int(value) >= least):
            raise UsageError(f"{name} = {value!r}: use a whole number of at least {least}")


def check_number(least: float = -math.inf, **values: object) -> None:
    """That each value is a finite number of at least ``least``.

    Raises:
        UsageError: one is not.

    Example:
        >>> check_number(0, weight_decay=0.1)
    """
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, Real) and math.isfinite(value) and float(value) >= least):
            raise UsageError(f"{name} = {value!r}: use a finite number" + (f" of at least {least}" if math.isfinite(least) else ""))


def check_positive(**values: object) -> None:
    """That each value is a finite number above 0.

    Raises:
        UsageError: one is not.

    Example:
        >>> check_positive(learning_rate=3e-3)
    """
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, Real) and math.isfinite(value) and float(value) > 0):
            raise UsageError(f"{name} = {value!r}: use a positive number")


def check_flags(**values: object) -> None:
    """That each value is true or false, and not a word that stands for it.

    Raises:
        UsageError: one is not.

    Example:
        >>> check_flags(reset=False)
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} = {value!r}: use true or false")
