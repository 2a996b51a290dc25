"""What several algorithms are called beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from stability.selectors.scope import Scope
from stability.training.algorithm import Algorithm

__all__ = ["named_apart"]


def named_apart(algorithms: Sequence[Algorithm]) -> list[str]:
    """What to call each of several methods: its name, with those settings in which methods of that name differ, or not the usual.

    Args:
        algorithms: the methods.

    Returns:
        A label for each. p is part of it only where a method comes at several.

    Example:
        >>> from stability import FineTuning, selectors
        >>> named_apart([FineTuning(selectors.SAM(0.01)), FineTuning(selectors.SAM(0.1)), FineTuning(selectors.LoRA(rank=4))])
        ['sam p=0.01', 'sam p=0.1', 'lora rank=4']
        >>> named_apart([FineTuning(selectors.SNIP(0.1, scope=selectors.Scope(only=name))) for name in ("*mlp*", "*attention*")])
        ['snip only=*mlp*', 'snip only=*attention*']
    """
    found = []
    for algorithm in algorithms:
        alike = [other for other in algorithms if other.name == algorithm.name]
        own = _plain(algorithm.selector)
        usual = {field.name: field.default for field in _fields(algorithm.selector)}
        theirs = [_plain(other.selector) for other in alike]
        told = {name: x for name, x in own.items() if x != usual.get(name) or any(other.get(name) != x for other in theirs)}
        mine, others = _plain(algorithm), [_plain(other) for other in alike]
        told |= {name: x for name, x in mine.items() if any(other.get(name) != x for other in others)}
        found.append(" ".join([algorithm.name, *(f"{name}={x}" for name, x in told.items())]))
    asked = [algorithm.asked_sparsity for algorithm in algorithms]
    several = [found.count(label) > 1 and p is not None for label, p in zip(found, asked, strict=True)]
    return [f"{label} p={p:g}" if apart else label for label, p, apart in zip(found, asked, several, strict=True)]


def _fields(made: object) -> Sequence[Any]:
    return fields(made) if is_dataclass(made) and not isinstance(made, type) else ()


def _plain(made: object) -> dict[str, Any]:
    """The settings that are numbers or words, but for p and seed, which have columns of their own."""
    found = {field.name: getattr(made, field.name) for field in _fields(made) if field.name not in ("sparsity", "seed", "name")}
    if isinstance(scope := found.get("scope"), Scope):
        own = scope.settings()
        theirs = {} if isinstance(own, str) else {name: x for name, x in own.items() if name not in ("within", *found)}
        found |= {"scope": scope.within, **theirs}
    found = {name: ",".join(map(str, x)) if isinstance(x, (list, tuple)) else x for name, x in found.items()}
    return {name: x for name, x in found.items() if isinstance(x, (int, float, str)) and x != ""}
