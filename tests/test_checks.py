"""Every validator: what is a number, which values it takes at its limits, and the words of its message."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from stability import StabilityError, UsageError, checks
from stability.checks import (
    check_address,
    check_bias,
    check_choice,
    check_flags,
    check_fraction,
    check_number,
    check_positive,
    check_probability,
    check_sparsity,
    check_whole,
    check_workers,
)

NO_NUMBERS = [True, False, np.True_, np.False_, "1", b"1", None, [1], (1,), 1j, Decimal(1), np.array([1.0]), torch.tensor(1)]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float64("nan"), np.float32("inf"), 10**400]

Check = Callable[[Any], None]
OF_NUMBERS: dict[str, Check] = {
    "check_whole": lambda x: check_whole(-5, x=x),
    "check_number": lambda x: check_number(x=x),
    "check_positive": lambda x: check_positive(x=x),
    "check_probability": lambda x: check_probability(x=x),
    "check_fraction": lambda x: check_fraction(x=x),
    "check_sparsity": check_sparsity,
}


def test_every_validator_is_tested_here() -> None:
    others = {"check_bias", "check_flags", "check_choice", "check_kind", "check_address", "check_workers"}
    assert {*OF_NUMBERS, *others} == set(checks.__all__)


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=r"use (a|the) "):
        OF_NUMBERS[name](value)


@pytest.mark.parametrize("name", sorted(OF_NUMBERS.keys() - {"check_whole"}))
@pytest.mark.parametrize("value", NOT_FINITE, ids=str)
def test_what_is_not_finite_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError):
        OF_NUMBERS[name](value)


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.float16, Fraction])
def test_numbers_of_numpy_are_numbers(kind: Callable[[float], Any]) -> None:
    for name in OF_NUMBERS.keys() - {"check_whole"}:
        OF_NUMBERS[name](kind(0.5))
    check_number(0.5, x=kind(0.5))


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint8])
def test_whole_numbers_of_numpy_are_whole_numbers(kind: Callable[[int], Any]) -> None:
    check_whole(3, x=kind(3))
    check_whole(3, 3, x=kind(3))
    check_number(3, x=kind(3))
    check_positive(x=kind(3))
    for least, most in ((4, None), (0, 2)):
        with pytest.raises(UsageError):
            check_whole(least, most, x=kind(3))


ACCEPTED: list[tuple[Check, list[Any], list[Any]]] = [
    (lambda x: check_whole(0, x=x), [0, 10**400], [-1, 0.0, 1.5, np.float64(1)]),
    (lambda x: check_whole(2, 4, x=x), [2, 3, 4], [1, 5]),
    (lambda x: check_number(x=x), [-1e300, 0, 1e300], []),
    (lambda x: check_number(0, x=x), [0, -0.0, 5e-324], [-5e-324]),
    (lambda x: check_positive(x=x), [5e-324, 1e300], [0, 0.0, -1]),
    (lambda x: check_probability(x=x), [0, 0.0, math.nextafter(1, 0)], [1, 1.0, -5e-324]),
    (lambda x: check_fraction(x=x), [5e-324, math.nextafter(1, 0)], [0, 1, 1.0]),
    (check_sparsity, [5e-324, 1, 1.0], [0, math.nextafter(1, 2)]),
    (lambda x: check_flags(x=x), [True, False], [0, 1, "true", None, np.True_]),
    (lambda x: check_choice(("a", "b"), x=x), ["a", "b"], ["c", "", None, 1, ["a"], {"a": 1}]),
    (lambda x: check_choice({"a": 1}, x=x), ["a"], ["c", ["a"]]),
]


@pytest.mark.parametrize(("check", "good", "bad"), ACCEPTED)
def test_limits(check: Check, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(UsageError):
            check(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_whole(1, steps=0), "steps = 0: use a whole number of at least 1"),
        (lambda: check_whole(1, steps="3"), "steps = '3': use a whole number of at least 1"),
        (lambda: check_whole(1, steps=2.0), "steps = 2.0: use a whole number of at least 1"),
        (lambda: check_whole(2, 9, n=12), "n = 12: use a whole number from 2 to 9"),
        (lambda: check_whole(2, 9, "S has 9 examples", n=1), "n = 1: use a whole number from 2 to 9 (S has 9 examples)"),
        (lambda: check_whole(2, None, "one is left out", n=1), "n = 1: use a whole number of at least 2 (one is left out)"),
        (lambda: check_number(l=math.nan), "l = nan: use a finite number"),
        (lambda: check_number(0, decay=-1), "decay = -1: use a finite number of at least 0"),
        (lambda: check_positive(rate=0), "rate = 0: use a positive number"),
        (lambda: check_probability(p=1.0), "p = 1.0 is outside [0, 1): use a number of at least 0 and below 1"),
        (lambda: check_fraction(δ=2), "δ = 2 is outside (0, 1): use a number above 0 and below 1"),
        (lambda: check_sparsity(2), "sparsity p = 2 is outside (0, 1]: use the fraction of parameters that may change"),
        (lambda: check_flags(reset="no"), "reset = 'no': use true or false"),
        (lambda: check_choice(("a", "b", "c"), kind="d"), "unknown kind 'd': use a, b or c"),
        (lambda: check_choice(("a",), kind=3), "unknown kind 3: use a"),
        (lambda: check_whole(1, a=1, b=0, c=0), "b = 0: use a whole number of at least 1"),
    ],
)
def test_a_message_names_argument_value_and_remedy(call: Callable[[], None], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, StabilityError)
    assert caught.value.exit_code == 2


def test_workers_and_addresses() -> None:
    for address in ("auto", "head:6379", "[::1]:6379"):
        check_address(address)
        check_workers(None, "ray", address)
    for address in ("", "head", ":6379", "head:port", "ray://head:10001"):
        with pytest.raises(UsageError, match=f"address = {address}: give HOST:PORT"):
            check_workers(2, "ray", address)
    for asked, message in (
        ((0, "local", None), "workers = 0: use a whole number of at least 1"),
        ((1, "slurm", None), "executor = 'slurm': use 'local' or 'ray'"),
        ((1, "local", "auto"), "address = auto belongs to executor 'ray'"),
    ):
        with pytest.raises(UsageError, match=message):
            check_workers(*asked)


def test_objects_are_of_the_kinds_that_are_asked_for() -> None:
    checks.check_kind((str, tuple), "a name or several", problem=("a", "b"), other="c")
    with pytest.raises(UsageError, match="problem = 7: use a name or several"):
        checks.check_kind((str, tuple), "a name or several", problem=7)


def test_a_bias_belongs_to_labels_that_are_numbers() -> None:
    check_bias(2.5, "stsb", classes=False)
    check_bias(0, "cb", classes=True)
    with pytest.raises(UsageError, match=r"initial_bias = 2.5 is for labels that are numbers, and cb has classes: leave it out"):
        check_bias(2.5, "cb", classes=True)
    with pytest.raises(UsageError, match=r"initial_bias = nan: use a finite number"):
        check_bias(math.nan, "stsb", classes=False)
