"""Every validator of arguments, in one place.

A message names the argument and its value, and says what to use instead: ``steps = 0: use a whole number of at least 1``.
A word that is not among the known ones is named likewise: ``unknown schedule 'cosine': use constant or linear``.

Numbers of numpy are numbers. ``True`` and ``False``, Python's and numpy's, are not.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, TypeGuard

from stability.errors import UsageError

__all__ = [
    "check_address",
    "check_bias",
    "check_choice",
    "check_flags",
    "check_fraction",
    "check_kind",
    "check_number",
    "check_positive",
    "check_probability",
    "check_sparsity",
    "check_whole",
    "check_workers",
]


def those_given(**values: Any) -> dict[str, Any]:
    """Those of the values that are not None: what is optional is checked, and told, only where it is there.

    Args:
        values: each under its name.

    Example:
        >>> those_given(steps=3, pool=None)
        {'steps': 3}
    """
    return {name: value for name, value in values.items() if value is not None}


def check_whole(least: int, most: int | None = None, because: str = "", /, **values: object) -> None:
    """Check that each value is a whole number of at least ``least`` and, where that is given, at most ``most``.

    Args:
        least: the least value that is allowed.
        most: the greatest value that is allowed; None for no limit.
        because: where the limits come from, for the message: "the training split has 20 examples".
        values: the values to check, each under the name of the argument that it was given as.

    Raises:
        UsageError: a value is no whole number, or outside the limits.

    Example:
        >>> check_whole(1, steps=3)
        >>> check_whole(2, 20, "the training split has 20 examples", n=21)
        Traceback (most recent call last):
        stability.errors.UsageError: n = 21: use a whole number from 2 to 20 (the training split has 20 examples)
    """
    for name, value in values.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or int(value) < least or (most is not None and int(value) > most):  # type: ignore[call-overload]
            limits = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise UsageError(f"{name} = {value!r}: use a whole number {limits}" + (f" ({because})" if because else ""))


def check_number(least: float = -math.inf, /, **values: object) -> None:
    """Check that each value is a finite number of at least ``least``.

    Args:
        least: the least value that is allowed; by default every finite number is.
        values: the values to check, each under the name of the argument that it was given as.

    Raises:
        UsageError: a value is no number, not finite, or below ``least``.

    Example:
        >>> check_number(0, weight_decay=0.1)
    """
    for name, value in values.items():
        if not _is_number(value) or value < least:
            raise UsageError(f"{name} = {value!r}: use a finite number" + (f" of at least {least}" if math.isfinite(least) else ""))


def check_positive(**values: object) -> None:
    """Check that each value is a finite number above 0.

    Args:
        values: the values to check, each under the name of the argument that it was given as.

    Raises:
        UsageError: a value is no number, not finite, or not above 0.

    Example:
        >>> check_positive(learning_rate=3e-3)
    """
    for name, value in values.items():
        if not _is_number(value) or value <= 0:
            raise UsageError(f"{name} = {value!r}: use a positive number")


def check_probability(**values: object) -> None:
    """Check that each value is a number in [0, 1): a probability that may be 0 and is never 1.

    Args:
        values: the values to check, each under the name of the argument that it was given as.

    Raises:
        UsageError: a value is no number, below 0, or at least 1.

    Example:
        >>> check_probability(probability=0.7)
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value < 1:
            raise UsageError(f"{name} = {value!r} is outside [0, 1): use a number of at least 0 and below 1")


def check_fraction(**values: object) -> None:
    """Check that each value is a number in (0, 1): a confidence or a probability that is neither 0 nor 1.

    Args:
        values: the values to check, each under the name of the argument that it was given as.

    Raises:
        UsageError: a value is no number, at most 0, or at least 1.

    Example:
        >>> check_fraction(confidence=0.95)
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 < value < 1:
            raise UsageError(f"{name} = {value!r} is outside (0, 1): use a number above 0 and below 1")


def check_sparsity(sparsity: object) -> None:
    """Check that p, the fraction of parameters that may change, is a number in (0, 1].

    Args:
        sparsity: the fraction p.

    Raises:
        UsageError: it is no number, at most 0, or above 1.

    Example:
        >>> check_sparsity(0.05)
    """
    if not _is_number(sparsity) or not 0 < sparsity <= 1:
        raise UsageError(f"sparsity p = {sparsity!r} is outside (0, 1]: use the fraction of parameters that may change")


def check_flags(**values: object) -> None:
    """Check that each value is ``True`` or ``False``, and not a word or a number that stands for it.

    Args:
        values: the values to check, each under the name of the argument that it was given as.

    Raises:
        UsageError: a value is neither.

    Example:
        >>> check_flags(reset=False)
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} = {value!r}: use true or false")


def check_kind(kind: type | tuple[type, ...], remedy: str, **values: object) -> None:
    """Check that each value is an object of one kind.

    Args:
        kind: the class, or the base class of all that is allowed; or several.
        remedy: what to use instead, for the message.
        values: the values to check, by the name of the argument that they were given as.

    Raises:
        UsageError: a value is something else.

    Example:
        >>> check_kind(dict, "a dictionary", settings={"n": 20})
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            raise UsageError(f"{name} = {value!r}: use {remedy}")


def check_choice(choices: Collection[object], /, **values: object) -> None:
    """Check that each value is one of ``choices``.

    Args:
        choices: the allowed values, in the order in which a message lists them.
        values: the values to check, each under the name of the argument that it was given as.

    Raises:
        UsageError: a value is not among them.

    Example:
        >>> check_choice(("constant", "linear"), schedule="linear")
    """
    known = list(choices)  # a list compares, so that a value that cannot be hashed is refused and not an error of its own
    for name, value in values.items():
        if value not in known:
            *others, last = map(str, known)
            raise UsageError(f"unknown {name} {value!r}: use {', '.join(others)}{' or ' if others else ''}{last}")


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite real number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the greatest float
        return False


def check_address(address: str) -> None:
    """Check that an address is one that a cluster of Ray can have.

    Args:
        address: ``HOST:PORT``, or ``auto``.

    Raises:
        UsageError: it is something else.

    Example:
        >>> check_address("head:6379")
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and (not host or not port.isdecimal() or int(port) >= 2**16 or "/" in host):
        raise UsageError(f"address = {address}: give HOST:PORT of the cluster's head, as ray start --head prints it, or auto")


def check_bias(initial_bias: float, task: str, *, classes: bool) -> None:
    """Check that the start of a head's bias is a finite number, and 0 where the labels are classes.

    Args:
        initial_bias: where the bias starts.
        task: whose labels.
        classes: whether they are classes.

    Raises:
        UsageError: it is not.

    Example:
        >>> check_bias(2.5, "stsb", classes=False)
        >>> check_bias(2.5, "cb", classes=True)
        Traceback (most recent call last):
        stability.errors.UsageError: initial_bias = 2.5 is for labels that are numbers, and cb has classes: leave it out
    """
    check_number(initial_bias=initial_bias)
    if initial_bias and classes:
        raise UsageError(f"initial_bias = {initial_bias:g} is for labels that are numbers, and {task} has classes: leave it out")


def check_workers(workers: int | None, executor: str, address: str | None) -> None:
    """Check what is said of workers.

    Args:
        workers: how many; None: as many as is usual.
        executor: ``local`` or ``ray``.
        address: of a cluster of Ray.

    Raises:
        UsageError: a setting out of range, or an address of what has none.

    Example:
        >>> check_workers(2, "local", None)
    """
    check_whole(1, workers=1 if workers is None else workers)
    if executor not in ("local", "ray"):
        raise UsageError(f"executor = {executor!r}: use 'local' or 'ray'")
    if address is not None and executor != "ray":
        raise UsageError(f"address = {address} belongs to executor 'ray': give that too (--executor ray), or leave it out")
    if address is not None:
        check_address(address)
