"""What defines a study or a cell, as plain values: their keys, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from stability.selectors.code import CODE

__all__ = [
    "as_json",
    "as_stored",
    "cells_of",
    "data_of",
    "difference",
    "first_difference",
    "from_json",
    "how_of",
    "key",
    "without_code",
]


def key(identity: Mapping[str, Any]) -> str:
    """SHA-256 of what defines a cell, or a study, whatever the order of its entries.

    Args:
        identity: plain values that JSON can hold.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(as_json(identity).encode()).hexdigest()


def as_json(value: Any, sort_keys: bool = True) -> str:
    """JSON in which a number of numpy is a number.

    Args:
        value: plain values.
        sort_keys: whether the entries of dictionaries are sorted.

    Raises:
        TypeError: a value that JSON cannot hold.

    Example:
        >>> import numpy as np
        >>> as_json({"steps": np.int64(5)})
        '{"steps": 5}'
    """
    return json.dumps(value, sort_keys=sort_keys, default=_plain)


def as_stored(value: Any) -> Any:
    """Plain values as they are read back from a store: a tuple is a list there, and a number of numpy a number."""
    return json.loads(as_json(value))


def from_json(text: str) -> Any:
    """What JSON says. Half a pair of UTF-16, which is no sign, is replaced by one: no table could hold it.

    Raises:
        ValueError: it is no JSON, or is nested too deep.

    Example:
        >>> from_json('{"reason": "no file \\\\ud800"}')
        {'reason': 'no file \ufffd'}
    """
    try:
        found = json.loads(text)
        if isinstance(text, str) and "\\ud" in text.lower():
            whole = json.dumps(found, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            found = json.loads(whole)
        return found
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _plain(value: Any) -> object:
    """A number of numpy or torch as a number of Python."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is of type {type(value).__name__}, and JSON holds plain values only")


def data_of(identity: Mapping[str, Any]) -> dict[str | None, str]:
    """A digest of the identity of each problem of a study, by the name of its task; of a single problem under None.

    Args:
        identity: the study's.

    Example:
        >>> list(data_of({"problem": "digits", "problem_settings": {"n": 40}}))
        [None]
    """
    several: Mapping[str | None, Any] | None = identity.get("problems")
    each = several or {None: {name: identity.get(name) for name in ("problem", "problem_settings")}}
    return {name: key(problem)[:16] for name, problem in each.items()}


def how_of(identity: Mapping[str, Any]) -> str:
    """A digest of what a study's identity says of how each of its cells is measured.

    Args:
        identity: the study's.

    Example:
        >>> how_of({"delta": 0.1}) == how_of({"delta": 0.1, "seeds": [0]})
        True
    """
    always = {name: identity.get(name) for name in ("numerics", "retrainings", "estimator", "check_replicas", "delta")}
    # Where it is not given, the digest is that of stores that did not know it.
    later = {"test_examples": identity["test_examples"]} if "test_examples" in identity else {}
    return key({**always, **later})[:16]


def cells_of(identity: Mapping[str, Any]) -> int:
    """How many cells a study has.

    Args:
        identity: the study's.

    Example:
        >>> cells_of({"algorithms": [{}, {}], "seeds": [0, 1, 2]})
        6
    """
    tasks = max(1, len(identity.get("problems", {})))
    return tasks * len(identity["algorithms"]) * len(identity["seeds"]) * len(identity.get("samples", [0]))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first entry, by its name, in which two identities differ apart from code; None where they do not.

    Example:
        >>> difference({"seeds": [0], "delta": 0.1}, {"seeds": [0], "delta": 0.2})
        'delta'
    """
    first, second = (without_code(as_stored(one)) for one in (old, new))
    return next((name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)), None)


def without_code(value: Any) -> Any:
    """An identity, or a part of one, without the digests of code in it.

    Example:
        >>> without_code([{"name": "mine", CODE: "0123456789abcdef"}])
        [{'name': 'mine'}]
    """
    if isinstance(value, dict):
        return {name: without_code(one) for name, one in value.items() if name != CODE}
    return [without_code(one) for one in value] if isinstance(value, list) else value


def first_difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Where two values differ: the first such entries of two lists, the entries of two dictionaries that do, or both values."""
    if isinstance(old, list) and isinstance(new, list):
        return first_difference(*next(pair for pair in zip_longest(old, new, fillvalue="nothing more") if pair[0] != pair[1]))
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}
    return old, new
