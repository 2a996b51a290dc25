"""Names → selectors: the built-in ones, those that installed packages announce, and ``module:name``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from stability.checks import check_sparsity, those_given
from stability.errors import OwnCodeError, UsageError, explained
from stability.selectors import (
    LIFT,
    SAM,
    SNIP,
    Adapter,
    BiasesAndNorms,
    BitFit,
    ChildPruning,
    DiffPruning,
    Fisher,
    FullTuning,
    Gradient,
    GraSP,
    HeadOnly,
    LastLayers,
    LoRA,
    LotteryTicket,
    Mixout,
    MixoutReset,
    Movement,
    PaFi,
    Peft,
    Random,
    RigL,
    Scope,
    Selector,
    SpIEL,
    SynFlow,
    TaLoS,
    Taylor,
    from_scores,
    magnitude,
)

__all__ = [
    "ENTRY_POINTS",
    "LOCAL",
    "SELECTORS",
    "Method",
    "announced",
    "having",
    "imported",
    "selector_named",
    "selectors_named",
]

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
    "gradient": Gradient,
    "snip": SNIP,
    "taylor": Taylor,
    "grasp": GraSP,
    "talos": TaLoS,
    "pafi": PaFi,
    "lift": LIFT,
    "synflow": SynFlow,
    "lt-sft": LotteryTicket,
    "movement": Movement,
    "spiel": SpIEL,
    "rigl": RigL,
    "biases-norms": BiasesAndNorms,
    "last-layers": LastLayers,
    "head-only": HeadOnly,
}
"""The built-in selectors by name: the ten of Fu et al. 2023, Table 1, in its order, and then those beside it."""

_OF_SCOPE = {name: own for name, own in inspect.signature(Scope).parameters.items() if name != "within"}
"""The settings of a scope, which stand beside ``scope`` as settings of a method that has one."""

Method: TypeAlias = "str | tuple[str, Mapping[str, Any]] | Selector"
"""A method: its name; its name with settings of its own, as in ``("lora", {"rank": 4})``; or the selector itself."""

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
        options: such as ``scope``, ``rank``, or what a configuration of peft takes; None stands for not given. The settings of
            :class:`stability.selectors.Scope`, such as ``only``, may stand beside ``scope``, or in a dictionary in its place.

    Raises:
        UsageError: an unknown name, a module or object that is not there or is no selector, a p that is missing or
            one too many, an option that the selector does not have or cannot take.

    Example:
        >>> selector_named("sam", 0.05).settings()["name"]
        'sam'
    """
    found: Any = SELECTORS.get(name) or _find(name)
    given = those_given(**options)
    if sparsity is not None:
        if "sparsity" in given:
            raise UsageError(f"the sparsity of {name!r} is given twice, {sparsity} and {given['sparsity']}: leave one out")
        if not (isinstance(found, Selector) or _of_selectors(found)):
            raise UsageError(
                f"{name!r} is a configuration of peft, which has its own measure of size: leave sparsity {sparsity} out"
            )
        given["sparsity"] = sparsity
    if isinstance(found, Selector):
        if given:
            raise UsageError(f"{name!r} is a selector with its settings made: leave {', '.join(given)} out")
        return found
    made = _maker(found, name)
    known = _settings(made)
    if "sparsity" not in known:
        if found is FullTuning and sparsity == 1:
            del given["sparsity"]
        if "sparsity" in given:
            raise UsageError(
                f"selector {name!r} decides itself how many parameters it tunes: leave sparsity {given['sparsity']} out"
                + (f"; it has {', '.join(known)}" if known else "")
            )
    if odd := sorted(given.keys() - known.keys()):
        raise UsageError(f"selector {name!r} has no {', '.join(odd)}: leave it out; {_there(odd[0], list(known))}")
    if "sparsity" in known and "sparsity" not in given and known["sparsity"].default is inspect.Parameter.empty:
        raise UsageError(f"selector {name!r} needs its sparsity p, the fraction of parameters that may change, e.g. sparsity=0.05")
    if "sparsity" in given:
        check_sparsity(given["sparsity"])
    if "scope" in known:
        given = _with_scope(name, given)
    try:
        with explained(f"selector {name!r}"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*eva_config")  # of a setting of peft that is refused
            result = made(**given)
    except OwnCodeError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"selector {name!r} cannot be made with {given}: {error}") from error
    return result if isinstance(result, Selector) else Peft(result)


def selectors_named(methods: Sequence[Method], sparsities: Sequence[float] = (), /, **options: Any) -> list[Selector]:
    """Every selector of ``methods``, each at every p of its own or else of ``sparsities``.

    Args:
        methods: names, names with settings of their own, or selectors. A setting ``sparsity`` may be a list: the method then
            comes once at each of them. A method whose rule decides how many parameters it tunes comes once.
        sparsities: the p of those that have none of their own.
        options: settings for those methods that have them and do not give them themselves.

    Raises:
        UsageError: as for :func:`selector_named`; sparsities that no method takes, or an option that none has.

    Example:
        >>> [(selector.name, selector.sparsity) for selector in selectors_named(["full", "sam"], [0.01, 0.1])]
        [('full', None), ('sam', 0.01), ('sam', 0.1)]
        >>> selectors_named([("lora", {"rank": 4}), ("random", {"sparsity": [0.1, 0.2]})])
        [LoRA(rank=4, ...), Random(sparsity=0.1, ...), Random(sparsity=0.2, ...)]
    """
    found: list[Selector] = []
    swept, unused, there = False, set(options), set()
    for method in methods:
        if isinstance(method, Selector):
            found.append(method)
            continue
        name, own = (method, {}) if isinstance(method, str) else (method[0], dict(method[1]))
        known = _settings_of(name)
        there |= known
        mine = sparsities if own.get("sparsity") is None else own["sparsity"]
        mine = mine if isinstance(mine, (list, tuple)) or mine is sparsities else [mine]
        if "sparsity" not in known and "sparsity" not in own:
            mine = []
        swept = swept or mine is sparsities
        own.pop("sparsity", None)
        alone = len(methods) == 1  # then an option is its own, and it says itself what it does not have
        own = {**{option: value for option, value in options.items() if alone or option in known}, **own}
        unused -= set(options) if alone else known
        found += [selector_named(name, p, **own) for p in (mine or [None])]
    if sparsities and methods and not swept:
        names = ", ".join(dict.fromkeys(selector.name for selector in found))
        raise UsageError(f"no method here takes one of these sparsities: {names} with a rule or a p of its own; leave them out")
    if unused and methods:
        what = ", ".join(sorted(unused))
        raise UsageError(f"no method here has a setting {what}: leave it out; {_there(what, sorted(there))}")
    return found


def _settings_of(name: str) -> set[str]:
    """The settings that the selector called ``name`` takes."""
    found = SELECTORS.get(name) or _find(name)
    return set() if isinstance(found, Selector) else set(_settings(_maker(found, name)))


def _settings(made: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The settings that a method takes by name, those of its scope among them."""
    known = dict(inspect.signature(made).parameters)
    return {**known, **_OF_SCOPE} if "scope" in known else known


def _with_scope(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method, with those of its scope made one."""
    own = {setting: value for setting, value in given.items() if setting not in _OF_SCOPE}
    parts = {setting: value for setting, value in given.items() if setting in _OF_SCOPE}
    scope = own.get("scope")
    if not parts and not isinstance(scope, Mapping):
        return own
    if isinstance(scope, Scope):
        return {**own, "scope": replace(scope, **parts)}
    parts = {**(scope if isinstance(scope, Mapping) else {} if scope is None else {"within": scope}), **parts}
    if odd := sorted(parts.keys() - _OF_SCOPE.keys() - {"within"}):
        raise UsageError(f"the scope of {name!r} has no {', '.join(odd)}: leave it out; {_there(odd[0], ['within', *_OF_SCOPE])}")
    return {**own, "scope": Scope(**parts)}


def having(setting: str) -> list[str]:
    """The built-in methods that have a setting.

    Args:
        setting: its name.

    Example:
        >>> having("rank")
        ['lora', 'lift']
    """
    return [name for name, made in SELECTORS.items() if setting in _settings(made)]


def _find(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        if "=" in name:
            raise UsageError(
                f"{name!r} is a setting, and the methods here take none of their own: leave it out, use an option of this study, "
                "or make a study of your own, where settings follow their method"
            )
        entries = announced()
        if name not in entries:
            known = [*SELECTORS, *sorted(entries)]
            meant = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
            hint = f"did you mean {meant[0]}? " if meant else ""
            raise UsageError(f"unknown selector {name!r}: {hint}there is {', '.join(known)}, and module:name for one of your own")
        with explained(f"selector {name!r}, on import,"):
            return _checked(name, entries[name].load())
    holder = imported(module, Path.cwd(), f"selector {name!r}")
    if not hasattr(holder, attribute):
        known = [own for own, value in vars(holder).items() if _fits(value) and not own.startswith("_")]
        raise UsageError(
            f"selector {name!r}: module {module!r} ({getattr(holder, '__file__', None)}) has no {attribute!r}; "
            f"{_there(attribute, known)}"
        )
    return _checked(name, getattr(holder, attribute))


def _there(word: str, known: Sequence[str]) -> str:
    """What there is instead of a word that is not; of many names those that are most like it."""
    if len(known) <= 8:
        alike = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
        return f"did you mean {alike[0]}?" if alike else f"there is {', '.join(known) or 'none'}"
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.85):
        return f"did you mean {close[0]}?"
    alike = [own for own in known if own.lower().startswith(word.lower()) or word.lower().startswith(own.lower())]
    alike += [own for own in difflib.get_close_matches(word, known, n=5, cutoff=0.5) if own not in alike]
    return f"did you mean {' or '.join(alike[:5])}?" if alike else f"there is {', '.join(known[:5])} and {len(known) - 5} more"


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
    if not _fits(found):
        raise UsageError(f"{name!r} is {found!r}: give a function (problem, generator) → scores, or a Selector")
    return Peft(found) if hasattr(found, "peft_type") and not inspect.isclass(found) else found


def _fits(found: Any) -> bool:
    """Whether it is a selector, its class, a function, or a configuration of peft or its class."""
    if inspect.isclass(found):
        return issubclass(found, Selector) or "PeftConfig" in {base.__name__ for base in found.__mro__}
    return hasattr(found, "peft_type") or callable(found) or isinstance(found, Selector)
