"""A study as a TOML file: the fields of :class:`stability.Study`, and of what it is made of, by their names.

.. code-block:: toml

    problem = "digits"            # or several: ["data/cb", "data/rte"]
    seeds = 3                     # or [0, 1, 2]

    [problem_settings]
    n = 40

    [[algorithms]]                # kind = "Minimisation" for the other kind
    selector = ["full", {name = "sam", sparsity = [0.01, 0.1], scope = "tensor"}]
    steps = 100
    early_stopping = {patience = 5, least_steps = 20}

    [estimator]                   # auto, exact, sampled, assisted or approximate
    kind = "assisted"
    retrainings = 10
    predictor = {kind = "linearised", checkpoints = 3}

The name of the study is that of the file, unless the file gives a ``name``. Without ``check_replicas`` no bounds are measured.
:func:`reference` lists every field.

The checks are ours, for they read the signatures of the classes and functions as they are: pydantic (2.14) makes no schema of a
class with an abstract field such as ``selector``, lets unknown fields of a plain dataclass pass, and knows no nearest name.
"""

from __future__ import annotations

import inspect
import re
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import DocstringStyle, parse

from stability.checks import check_choice, check_whole
from stability.cli.options import ESTIMATORS, PREDICTORS, common_defaults, load
from stability.cli.parsing import nearest
from stability.errors import UsageError
from stability.leave_one_out.estimators import Estimator
from stability.problems import PROBLEMS, TrainingDefaults, load_texts
from stability.selectors import Selector
from stability.selectors.naming import SELECTORS, selectors_named
from stability.studies.study import Study
from stability.training import Algorithm, EarlyStopping, FineTuning, Minimisation

__all__ = ["read", "reference"]

_MOST = 1_000_000  # seeds, or training sets

_ALGORITHMS: dict[str, type[FineTuning | Minimisation]] = {"FineTuning": FineTuning, "Minimisation": Minimisation}


def read(path: Path, own_code: bool = False) -> Study:
    r"""The study that a file describes.

    Args:
        path: a TOML file.
        own_code: whether it may name methods as ``module:name``. The module is imported, so that its code runs.

    Returns:
        The study. The problems have been loaded once, so that a wrong setting is refused before anything is trained.

    Raises:
        UsageError: there is no such file, it is not TOML, it names a field that does not exist, or a value does not fit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.toml"
        ...     size = path.write_text('problem = "digits"\nseeds = 2\n[[algorithms]]\nselector = "full"')
        ...     study = read(path)
        >>> study.name, study.seeds
        ('mine', (0, 1))
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: check the path, or begin with a copy of docs/examples/study.toml") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}") from error
    try:
        return _study({"name": path.stem, "check_replicas": None, **table}, own_code)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _study(table: Mapping[str, Any], own_code: bool) -> Study:
    found = dict(table)
    for name in ("seeds", "samples"):
        if isinstance(found.get(name), int) and not isinstance(found[name], bool):
            check_whole(1, _MOST, **{name: found[name]})
            found[name] = list(range(found[name]))
    algorithms, estimator = found.pop("algorithms", None), found.pop("estimator", None)
    found = _checked(Study, found, "", "algorithms", "estimator")
    if not algorithms or not isinstance(algorithms, list):
        raise UsageError("there is no [[algorithms]]: give at least one, with its selector")
    problems = (found["problem"],) if isinstance(found["problem"], str) else found["problem"]
    settings = found.get("problem_settings", {})
    for problem in problems:
        loader = PROBLEMS.get(problem, load_texts)
        own = {"data": problem, "model": "", **settings} if loader is load_texts else settings
        _checked(loader, own, "problem_settings.")
        load(problem, **settings)
    defaults = common_defaults(problems)
    found["algorithms"] = tuple(made for one in algorithms for made in _algorithms(one, defaults, own_code))
    if estimator is not None:
        found["estimator"] = _estimator(estimator)
    return Study(**found)


def _algorithms(table: Any, defaults: TrainingDefaults, own_code: bool) -> list[Algorithm]:
    """One for each of its selectors."""
    kind, own = _kind(table, "algorithms", _ALGORITHMS, "FineTuning")
    selectors = own.pop("selector", None)
    if selectors is None:
        raise UsageError("algorithms.selector is missing: give a name, a table with a name, or a list of them")
    rates = own.pop("learning_rate") if isinstance(own.get("learning_rate"), list) else None
    if rates == []:
        raise UsageError("algorithms.learning_rate = []: give at least one, or leave it out")
    tried = [own if rate is None else {**own, "learning_rate": rate} for rate in rates or [None]]
    made = [_checked(kind, one, "algorithms.", "selector", "seed") for one in tried]
    each = selectors if isinstance(selectors, list) else [selectors]
    return [kind(selector, **how).with_defaults(defaults) for one in each for selector in _selectors(one, own_code) for how in made]


def _selectors(asked: Any, own_code: bool) -> list[Selector]:
    """The selector of a name, or of a table with a name, once for each of its sparsities."""
    own = {"name": asked} if isinstance(asked, str) else dict(asked) if isinstance(asked, dict) else {}
    name: Any = own.pop("name", None)
    sparsity: Any = own.pop("sparsity", [])
    if not isinstance(name, str):
        raise UsageError(f"algorithms.selector = {asked!r}: use a name, or a table with a name")
    if ":" in name and not own_code:
        raise UsageError(
            f"algorithms.selector = {name!r} is code that is no part of the toolkit, and would be run: read it, and add --own-code "
            "if you trust it"
        )
    return selectors_named([name], sparsity if isinstance(sparsity, list) else [sparsity], **own)


def _estimator(asked: Any) -> Estimator:
    kind, own = _kind(asked, "estimator", ESTIMATORS, "auto")
    if (predictor := own.pop("predictor", None)) is not None:
        which, how = _kind(predictor, "estimator.predictor", PREDICTORS, "linearised")
        predictor = {"predictor": which(**_checked(which, how, "estimator.predictor."))}
        if "predictor" not in inspect.signature(kind).parameters:
            raise UsageError(f"estimator {kind.name} has no predictor: leave it out, or use auto, assisted or approximate")
    made: Estimator = kind(**_checked(kind, own, "estimator.", "predictor", "budget"), **(predictor or {}))
    return made


def _kind(asked: Any, where: str, kinds: Mapping[str, Any], usual: str) -> tuple[Any, dict[str, Any]]:
    """The class that a word, or the ``kind`` of a table, stands for; and the rest of the table."""
    table = {"kind": asked} if isinstance(asked, str) else dict(asked) if isinstance(asked, dict) else None
    if table is None:
        raise UsageError(f"{where} = {asked!r}: use a table")
    kind = table.pop("kind", usual)
    check_choice(kinds, **{f"{where}.kind": kind})
    return kinds[kind], table


def _checked(made: Callable[..., Any], table: Mapping[str, Any], where: str, *elsewhere: str) -> dict[str, Any]:
    """The settings of a class or function: each is known, of its type, and made of what the class takes.

    Args:
        made: the class or function.
        table: settings by name.
        where: what precedes the names in a message.
        elsewhere: settings that are given in another way.
    """
    every = inspect.signature(made, eval_str=True).parameters
    known = {name: own for name, own in every.items() if name not in elsewhere}
    for name in table:
        if name not in known:
            there = nearest(name, list(every)) or f"use {', '.join(every)}"
            raise UsageError(f"there is no {where}{name}: {there}")
    if missing := [name for name, own in known.items() if own.default is own.empty and name not in table]:
        raise UsageError(f"{where}{missing[0]} is missing")
    return {name: _fitting(value, known[name].annotation, f"{where}{name}") for name, value in table.items()}


def _fitting(value: Any, hint: Any, where: str) -> Any:
    """The value as the class takes it: a list as a tuple, a table as the dataclass that it describes."""
    inner = [one for one in (hint, *get_args(hint)) if isinstance(one, type) and is_dataclass(one)]
    if isinstance(value, dict) and inner:
        return inner[0](**_checked(inner[0], value, f"{where}."))
    if not _fits(value, hint):
        raise UsageError(f"{where} = {value!r}: use {_words(hint)}")
    kinds = (hint, *get_args(hint))
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)  # 0 and 0.0 are one setting, and so one identity
    return tuple(value) if isinstance(value, list) and tuple in (get_origin(one) for one in kinds) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (tuple, Sequence):
        return isinstance(value, list) and all(_fits(one, parts[0]) for one in value)
    if origin is not None or hint is None:
        return isinstance(value, dict) if origin is Mapping else value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return value is None if hint is type(None) else not isinstance(hint, type) or isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in parts if part is not type(None))
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (tuple, Sequence):
        several = {int: "whole numbers", float: "numbers", str: "texts"}
        return f"a list of {several[parts[0]]}" if parts[0] in several else "a list"
    named = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return named.get(origin or hint, "a table")


_OF_FILE = {
    "name": ("text", "the name of the file"),
    "seeds": ("a whole number, which counts from 0, or a list of whole numbers", ""),
    "samples": ("a whole number, which counts from 0, or a list of whole numbers", ""),
    "check_replicas": ("a whole number", "no bounds"),
}
"""What a file takes, and its default, where that is not what :class:`stability.Study` does."""


def reference() -> str:
    """Every field of a study file as Markdown: what it takes, its default and its meaning, read from the classes themselves.

    Returns:
        A section for each table of the file.

    Example:
        >>> reference().splitlines()[0]
        '## The file'
    """
    kinds = {kind: [name for name, own in ESTIMATORS.items() if own is kind] for kind in ESTIMATORS.values()}
    sections = [
        ("## The file", _fields(Study, "algorithms", "estimator", **_OF_FILE)),
        (
            '## `[[algorithms]]`, `kind = "FineTuning"`',
            "`selector` is the name of a method, a table with its `name` and settings, or a list of these. A list of `sparsity` "
            "stands for a method at each of them, and so does a list of `learning_rate`.\n\n"
            + _fields(FineTuning, "selector", "seed"),
        ),
        ("### `early_stopping`", _fields(EarlyStopping)),
        ('## `[[algorithms]]`, `kind = "Minimisation"`', _fields(Minimisation, "selector", "seed")),
        *((f'### `selector`, `name = "{name}"`', _fields(made)) for name, made in SELECTORS.items()),
        *((f'## `[estimator]`, `kind = "{names[0]}"`', _fields(kind, "predictor", "budget")) for kind, names in kinds.items()),
        *((f'### `predictor`, `kind = "{name}"`', _fields(made)) for name, made in PREDICTORS.items()),
        *((f"## `[problem_settings]` of `{name}`", _fields(made, "seed")) for name, made in PROBLEMS.items()),
        ("## `[problem_settings]` of texts", _fields(load_texts, "seed", "data")),
    ]
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections) + "\n"


def _fields(made: Callable[..., Any], *elsewhere: str, **other: tuple[str, str]) -> str:
    """The settings of a class or function as a table.

    Args:
        made: the class or function.
        elsewhere: settings that are told in another place.
        other: by the name of a setting, what the file takes and its default, where they differ from those of the class.
    """
    parameters = inspect.signature(made, eval_str=True).parameters
    meanings = _meanings(made)
    rows = []
    for name, own in parameters.items():
        if name not in elsewhere:
            default = "" if own.default in (own.empty, None) else f"`{_toml(own.default)}`"
            takes, default = other.get(name, (_words(own.annotation), default))
            rows.append(f"| `{name}` | {takes} | {default} | {meanings[name]} |")
    return "\n".join(["| field | takes | default | meaning |", "| --- | --- | --- | --- |", *rows]) if rows else "It has no fields."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, (int, float)):
        return str(value)
    return f'"{value}"' if isinstance(value, str) else "{}"


def _meanings(made: Any) -> dict[str, str]:
    """What the docstrings of a class and of its bases, or of a function, say of each setting, as a cell of a table in Markdown."""
    found = {}
    for owner in reversed(made.__mro__) if isinstance(made, type) else [made]:
        for told in parse(inspect.cleandoc(owner.__doc__ or ""), style=DocstringStyle.GOOGLE).params:
            text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", " ".join((told.description or "").split()))
            found[told.arg_name] = text.replace("``", "`").replace("|", "\\|")
    return found
