"""Names → selectors: the built-in ones, those that installed packages announce, and ``module:name``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from stability.checks import check_sparsity
from stability.errors import OwnCodeError, UsageError, explained
from stability.selectors import (
    SAM,
    Adapter,
    BitFit,
    ChildPruning,
    DiffPruning,
    Fisher,
    FullTuning,
    LoRA,
    Mixout,
    MixoutReset,
    Peft,
    Random,
    Selector,
    from_scores,
    magnitude,
)

__all__ = ["ENTRY_POINTS", "LOCAL", "SELECTORS", "announced", "imported", "selector_named", "selectors_named"]

SELECTORS: dict[str, Callable[..., Selector]] = {
    "full": FullTuning,
    "random": Random,
    "mixout": Mixout,
    "bitfit": BitFit,
    "magnitude": magnitude,
    "adapter": Adapter,
    "lora": LoRA,
    "diffpruning": DiffPruning,
    "childpruning": ChildPruning,
    "sam": SAM,
    "mixout-reset": MixoutReset,
    "fisher": Fisher,
}
"""The built-in selectors by name: the ten of Fu et al. 2023, Table 1, in its order, and then those beside it."""

ENTRY_POINTS = "stability.selectors"
"""Group of the entry points by which a package announces selectors of its own."""


LOCAL: dict[str, Path] = {}
"""The modules that :func:`imported` found in a folder, and the folder: a process that is to know them imports them from there."""


def announced() -> dict[str, metadata.EntryPoint]:
    """What installed packages announce under ``[project.entry-points."stability.selectors"]``, by name."""
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}


def selector_named(name: str, sparsity: float | None = None, /, **options: Any) -> Selector:
    """The selector called ``name``, with its p and its options.

    Args:
        name: a built-in name; one that a package announces; or ``module:name``, where the module is an installed one or a file
            in the current folder, and the name stands for a function (problem, generator) → scores, a :class:`Selector`
            class, a selector, or a configuration of peft (``peft:IA3Config``, or one of yours).
        sparsity: p; needed unless the selector's rule decides it.
        options: such as ``scope``, ``rank``, or what a configuration of peft takes; None stands for not given.

    Raises:
        UsageError: an unknown name, a module or object that is not there or is no selector, a p that is missing or
            one too many, an option that the selector does not have or cannot take.

    Example:
        >>> selector_named("sam", 0.05).settings()["name"]
        'sam'
    """
    found: Any = SELECTORS.get(name) or _find(name)
    given = {option: value for option, value in options.items() if value is not None}
    if sparsity is not None:
        if "sparsity" in given:
            raise UsageError(f"the sparsity of {name!r} is given twice, {sparsity} and {given['sparsity']}: leave one out")
        if not (isinstance(found, Selector) or _of_selectors(found)):
            raise UsageError(
                f"{name!r} is a configuration of peft, which has its own measure of size: leave --sparsity {sparsity} out"
            )
        given["sparsity"] = sparsity
    if isinstance(found, Selector):
        if given:
            raise UsageError(f"{name!r} is a selector with its settings made: leave {', '.join(given)} out")
        return found
    made = _maker(found, name)
    known = inspect.signature(made).parameters
    if "sparsity" not in known:
        if found is FullTuning and sparsity == 1:
            del given["sparsity"]
        if "sparsity" in given:
            raise UsageError(
                f"selector {name!r} decides itself how many parameters it tunes: leave --sparsity {given['sparsity']} out"
                + (f"; it has --option {', '.join(known)}" if known else "")
            )
    elif "sparsity" not in given and known["sparsity"].default is inspect.Parameter.empty:
        raise UsageError(f"selector {name!r} needs --sparsity P, the fraction of parameters that may change, e.g. 0.05")
    if odd := sorted(given.keys() - known.keys()):
        raise UsageError(f"selector {name!r} has no {', '.join(odd)}: leave it out; there is {', '.join(known) or 'none'}")
    if "sparsity" in given:
        check_sparsity(given["sparsity"])
    try:
        with explained(f"selector {name!r}"):
            result = made(**given)
    except OwnCodeError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"selector {name!r} cannot be made with {given}: {error}") from error
    return result if isinstance(result, Selector) else Peft(result)


def selectors_named(names: Sequence[str], sparsities: Sequence[float], /, **options: Any) -> list[Selector]:
    """Every selector of ``names`` at every p of ``sparsities``; one whose rule decides how many it tunes, once.

    Raises:
        UsageError: as for :func:`selector_named`, or sparsities that none of them takes.

    Example:
        >>> [(selector.name, selector.sparsity) for selector in selectors_named(["full", "sam"], [0.01, 0.1])]
        [('full', None), ('sam', 0.01), ('sam', 0.1)]
    """
    found, swept = [], False
    for name in names:
        kind = SELECTORS.get(name) or _find(name)
        ruled = isinstance(kind, Selector) or "sparsity" not in inspect.signature(_maker(kind)).parameters
        swept = swept or not ruled
        found += [selector_named(name, p, **options) for p in ([None] if ruled or not sparsities else sparsities)]
    if sparsities and names and not swept:
        raise UsageError(f"{', '.join(names)} decide themselves how many parameters they tune: leave the sparsities out")
    return found


def _find(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        entries = announced()
        if name not in entries:
            names = ", ".join([*SELECTORS, *sorted(entries)])
            raise UsageError(f"unknown selector {name!r}: there is {names}, and module:name for one of your own")
        with explained(f"selector {name!r}, on import,"):
            return _checked(name, entries[name].load())
    holder = imported(module, Path.cwd(), f"selector {name!r}")
    if not hasattr(holder, attribute):
        known = [own for own, value in vars(holder).items() if callable(value) and not own.startswith("_")]
        raise UsageError(
            f"selector {name!r}: module {module!r} ({getattr(holder, '__file__', None)}) has no {attribute!r}; there is "
            f"{', '.join(known) or 'nothing'}"
        )
    return _checked(name, getattr(holder, attribute))


def imported(module: str, folder: Path, whose: str) -> ModuleType:
    """Import a module that is installed or lies in a folder. The folder comes last, so that no file in it hides a package.

    Args:
        module: the module's name.
        folder: where it may lie. What the module imports at its top may lie there too.
        whose: what needs it, for messages.

    Raises:
        UsageError: there is no such module, or its own code raises an error.

    Example:
        >>> imported("math", Path.cwd(), "an example").__name__
        'math'
    """
    here = str(folder)
    if absent := here not in sys.path:  # the console script, unlike python -m, does not look there; nor do worker processes
        sys.path.append(here)
    try:
        with explained(f"{whose}, on import,"):
            made = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{whose}: cannot import module {module!r}: {error}; is it in this folder, or installed?") from error
    finally:
        if absent:
            sys.path.remove(here)
    if Path(getattr(made, "__file__", None) or "").parent.is_relative_to(folder):
        LOCAL[module] = folder
    return made


def _maker(found: Any, name: str = "") -> Callable[..., Any]:
    """What is called with the settings: a class or one of our functions itself, or what makes a selector of a score function.

    A score function goes by the name that was asked for where it has another: closures and partial functions share theirs.
    """
    made: Callable[..., Any] = found
    if inspect.isclass(found) or found in SELECTORS.values():
        return made
    asked = name.rpartition(":")[2]
    return partial(from_scores, found, name="" if asked == getattr(found, "__name__", "") else asked)


def _of_selectors(found: Any) -> bool:
    """Whether it is a selector's class or a score function, and no configuration of peft."""
    return issubclass(found, Selector) if inspect.isclass(found) else callable(found)


def _checked(name: str, found: Any) -> Any:
    if hasattr(found, "peft_type") or (inspect.isclass(found) and "PeftConfig" in {base.__name__ for base in found.__mro__}):
        return found if inspect.isclass(found) else Peft(found)
    fits = issubclass(found, Selector) if inspect.isclass(found) else callable(found) or isinstance(found, Selector)
    if not fits:
        raise UsageError(f"{name!r} is {found!r}: give a function (problem, generator) → scores, or a Selector")
    return found
