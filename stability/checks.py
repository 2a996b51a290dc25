"""Every validator of arguments, in one place. A message names the argument, its value and what to use instead.

Numbers of numpy are numbers; ``True`` and ``False`` are not.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

from stability.errors import UsageError

__all__ = ["check_choice", "check_flags", "check_number", "check_positive", "check_probability", "check_sparsity", "check_whole"]


def check_whole(least: int, **values: object) -> None:
    """Check that each value is a whole number of at least ``least``.

    Args:
        least: the least value that is allowed.
        values: the values to check, by the name of the argument that they were given as.

    Raises:
        UsageError: a value is something else.

    Example:
        >>> check_whole(1, steps=3)
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise UsageError(f"{name} = {value!r}: use a whole number of at least {least}")


def check_number(least: float = -math.inf, **values: object) -> None:
    """Check that each value is a finite number of at least ``least``.

    Args:
        least: the least value that is allowed.
        values: the values to check, by the name of the argument that they were given as.

    Raises:
        UsageError: a value is something else.

    Example:
        >>> check_number(0, weight_decay=0.1)
    """
    for name, value in values.items():
        if not _is_number(value) or float(value) < least:  # type: ignore[arg-type]
            raise UsageError(f"{name} = {value!r}: use a finite number" + (f" of at least {least}" if math.isfinite(least) else ""))


def check_positive(**values: object) -> None:
    """Check that each value is a finite number above 0.

    Args:
        values: the values to check, by the name of the argument that they were given as.

    Raises:
        UsageError: a value is something else.

    Example:
        >>> check_positive(learning_rate=3e-3)
    """
    for name, value in values.items():
        if not _is_number(value) or float(value) <= 0:  # type: ignore[arg-type]
            raise UsageError(f"{name} = {value!r}: use a positive number")


def check_probability(**values: object) -> None:
    """Check that each value is a number in [0, 1): a probability that may be 0 and is never 1.

    Args:
        values: the values to check, by the name of the argument that they were given as.

    Raises:
        UsageError: a value is something else.

    Example:
        >>> check_probability(probability=0.7)
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 <= float(value) < 1:  # type: ignore[arg-type]
            raise UsageError(f"{name} = {value!r} is outside [0, 1): use a number of at least 0 and below 1")


def check_sparsity(sparsity: object) -> None:
    """Check that p, the fraction of parameters that may change, is a number in (0, 1].

    Args:
        sparsity: p.

    Raises:
        UsageError: it is something else.

    Example:
        >>> check_sparsity(0.05)
    """
    if not _is_number(sparsity) or not 0 < float(sparsity) <= 1:  # type: ignore[arg-type]
        raise UsageError(f"sparsity p = {sparsity!r} is outside (0, 1]: p is the fraction of parameters that may change")


def check_flags(**values: object) -> None:
    """Check that each value is ``True`` or ``False``, and not a word that stands for it.

    Args:
        values: the values to check, by the name of the argument that they were given as.

    Raises:
        UsageError: a value is something else.

    Example:
        >>> check_flags(reset=False)
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} = {value!r}: use true or false")


def check_choice(choices: Collection[object], **values: object) -> None:
    """Check that each value is one of ``choices``.

    Args:
        choices: what is allowed, in the order in which a message names it.
        values: the values to check, by the name of the argument that they were given as.

    Raises:
        UsageError: a value is something else.

    Example:
        >>> check_choice(("constant", "linear"), schedule="linear")
    """
    for name, value in values.items():
        if value not in choices:
            *others, last = map(str, choices)
            raise UsageError(f"unknown {name} {value!r}: use {', '.join(others)}{' or ' if others else ''}{last}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
