"""What a stranger may hand over: files that are damaged, filled with other things, or made to do harm.

Each test takes a whole file and changes it at random (hypothesis). Whoever reads it must give a right answer or say in one line
what is wrong: a :class:`~stability.errors.StabilityError`. The suite tries a few cases, the same each time. ``make fuzz`` sets
STABILITY_FUZZ, which multiplies their number and draws new ones.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from stability.cli.commands import main
from stability.errors import StabilityError

TIMES = int(os.environ.get("STABILITY_FUZZ", "1"))

REFUSED = "refused"
"""What :func:`answer` gives where an error says what is wrong."""


def tries(count: int) -> settings:
    """How many cases are drawn: ``count``, or many times that by ``make fuzz``.

    Args:
        count: how many in the suite.
    """
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # the cases are small as they are, and to make them smaller takes minutes
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class HangError(BaseException):
    """What should have been answered long ago was not."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes five minutes (a busy machine is slow), or four GiB more than there was."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mine = psutil.Process().memory_info().vms

    def hangs(number: int, frame: object) -> None:
        raise HangError

    handler = signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (mine + 2**32, before[1]))
    signal.alarm(300)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def answer(call: Callable[[], Any]) -> Any:
    """What a call gives, or :data:`REFUSED`. Any other error than the toolkit's own goes through, and fails the test."""
    try:
        with bounded():
            return call()
    except StabilityError as error:
        message = str(error)
        assert message.strip(), "an error that says nothing"
        return REFUSED


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command of ``stability``.

    What it refuses it must refuse in one line.
    """
    texts = io.BytesIO(), io.BytesIO()
    out, err = io.TextIOWrapper(texts[0], "utf-8"), io.TextIOWrapper(texts[1], "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a number is too large to be squared is no crash
        code = main(words)
    out.flush()
    err.flush()
    told, said = texts[0].getvalue().decode(), texts[1].getvalue().decode()
    assert code in (0, 1, 2), said
    assert "Traceback" not in said
    if code:
        assert said.startswith("stability: ")
        assert len(said.strip().splitlines()) == 1, said
    return code, told, said


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


# Bytes

_WORDS = [
    bytes(8),
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\x80" + bytes(7),
    b"\xff" * 2,
    b"\x00\x00\x00\x01",
    b"\xed\xa0\x80",
    b'"',
    b"{",
]


@st.composite
def bytes_like(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file after a few accidents: bytes that were changed, lost, repeated or put in; or something else altogether.

    Args:
        draw: of hypothesis.
        whole: the file as it was.
    """
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    new = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(new)))
        length = draw(st.sampled_from([1, 2, 8, 64, 1024]))
        kind = draw(st.integers(0, 6))
        if kind == 0:
            new[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            del new[place:]
        elif kind == 2:
            del new[place : place + length]
        elif kind == 3:
            new[place:place] = draw(st.binary(max_size=16))
        elif kind == 4:
            new[place:place] = new[place : place + length]
        else:
            word = draw(st.sampled_from(_WORDS))
            new[place : place + len(word)] = word
    return bytes(new)


# Values of JSON


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.0, 0.5, -1.5, 1e308, 5e-324),
    *(math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "0",
        "nan",
        "ok",
        "failed",
        "\0",
        "a\nb",
        "é",
        "\u202e𝔘",
        "\ud800",
        "../../../etc/passwd",
        "/",
        "$x_{$",
        "<b>&amp;",
        "x" * 5000,
    ),
    *([], [None], [0], [0, 1], ["a"], [[1]], [{}], list(range(300)), {}, {"a": 1}, {"": None}, {"name": "full"}),
    nested(50),
]
"""What stands where something else was expected."""


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a value of JSON."""
    yield place
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places_in(one, (*place, name))
    elif isinstance(value, list):
        for number, one in enumerate(value[:3]):  # the others are alike
            yield from places_in(one, (*place, number))


def replaced(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    """A value of JSON with another one at a place within."""
    if not place:
        return by
    new = copy.copy(value)
    new[place[0]] = replaced(value[place[0]], place[1:], by)
    return new


def without(value: Any, place: tuple[Any, ...]) -> Any:
    """A value of JSON that lacks what was at a place within."""
    owner = value
    for step in place[:-1]:
        owner = owner[step]
    kept = copy.copy(owner)
    del kept[place[-1]]
    return replaced(value, place[:-1], kept)


@st.composite
def values_like(draw: st.DrawFn, whole: Any, odd: tuple[Any, ...] = ()) -> Any:
    """A value of JSON in which a few values are missing, renamed, repeated, exchanged, or of another kind.

    Args:
        draw: of hypothesis.
        whole: the value as it was.
        odd: further values to put in.
    """
    new = whole
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_in(new))
        place, kind = draw(st.sampled_from(places)), draw(st.integers(0, 9))
        if kind == 0 and place:
            new = without(new, place)
        elif kind == 1:
            other = draw(st.sampled_from(places))
            value = new
            for step in other:
                value = value[step]
            new = replaced(new, place, value)
        elif kind == 2 and place and isinstance(place[-1], str):
            value = new
            for step in place:
                value = value[step]
            name = draw(st.sampled_from(["", "x", place[-1] + " ", "__class__"]))
            owner = new
            for step in place[:-1]:
                owner = owner[step]
            new = replaced(new, place[:-1], {name if one == place[-1] else one: other for one, other in owner.items()})
        else:
            new = replaced(new, place, draw(st.sampled_from([*ODD, *odd])))
    return new


def written(value: Any) -> str:
    """As JSON, lone surrogates and numbers that are none among it."""
    return json.dumps(value)
