"""Problems by name: :func:`load`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from stability.errors import UsageError
from stability.problems import digits
from stability.problems.convex import CONVEX
from stability.problems.problem import Examples, Problem, TrainingDefaults
from stability.problems.solvable import Solvable
from stability.problems.tasks import HUB, TEXT_TRAINING

__all__ = ["HUB", "PROBLEMS", "Examples", "Problem", "TrainingDefaults", "identity", "load", "short_name", "training_defaults"]

PROBLEMS: dict[str, Callable[..., Problem | Solvable]] = {"digits": digits.load, **CONVEX}
"""Loader of each problem that comes with the toolkit, by its name."""


def load(name: str | PathLike[str], **settings: Any) -> Problem:
    """A problem that comes with the toolkit, by its name, or texts with a pretrained language model.

    Args:
        name: one of :data:`PROBLEMS`; or a folder or file of texts, or a task of the hub such as ``glue/rte``, with
            ``model=`` a folder or a name on the hub: see :func:`stability.problems.texts.load`.
        settings: for the loader: n and seed, and its own.

    Raises:
        UsageError: an unknown name or setting, or a value that the problem refuses.

    Example:
        >>> load("digits", n=40, seed=1).n
        40
    """
    if not isinstance(name, (str, PathLike)):
        raise UsageError(f"a problem is a name or a path, not {type(name).__name__}: write a table to a CSV file first")
    from stability.problems import texts  # with transformers, which only texts need

    name = str(name)
    own = name in PROBLEMS
    if not own and name not in HUB and not Path(name).exists():
        raise UsageError(
            f"unknown problem {name!r}, and no file or folder is there: there is {', '.join(sorted(PROBLEMS))}, on the hub "
            f"{', '.join(HUB)}"
        )
    loader = PROBLEMS[name] if own else texts.load
    known = [setting for setting in inspect.signature(loader).parameters if setting != "data" or own]
    if odd := sorted(settings.keys() - set(known)):
        raise UsageError(f"problem {name!r} has no setting {', '.join(odd)}: there is {', '.join(known)}")
    if not own and "model" not in settings:
        raise UsageError(f"problem {name!r} needs a pretrained model: give model=… (--model), a folder or a name on the hub")
    found = loader(**settings) if own else loader(data=name, **settings)
    return found.problem if isinstance(found, Solvable) else found


def training_defaults(name: str) -> TrainingDefaults:
    """How the problem called ``name`` is trained where nothing else is asked for; it is not loaded.

    Args:
        name: as for :func:`load`.

    Example:
        >>> training_defaults("digits").learning_rate, training_defaults("reviews.csv").learning_rate
        (0.003, 0.0005)
    """
    return digits.TRAINING if name == "digits" else TrainingDefaults() if name in PROBLEMS else TEXT_TRAINING


def short_name(name: str) -> str:
    """What a problem is called in tables: its own name, a folder's or file's without path and ending, a task's of the hub.

    Example:
        >>> short_name("digits"), short_name("data/cb"), short_name("glue/rte"), short_name("mine/reviews.csv")
        ('digits', 'cb', 'rte', 'reviews')
    """
    path = Path(name)
    own = path.name or path.resolve().name  # of "." and the like
    return own.removesuffix(path.suffix) if path.suffix in _FILES else own


_FILES = (".jsonl", ".json", ".csv", ".tsv")


def identity(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What defines a problem whatever its seed: name and settings; of texts the *content* of data and model instead of names
    and paths, so that results go on from a copy and never from other data of the same name.

    Raises:
        UsageError: as for :func:`load`.

    Example:
        >>> identity("digits", {"n": 40})
        {'problem': 'digits', 'problem_settings': {'n': 40}}
    """
    if name in PROBLEMS:
        return {"problem": name, "problem_settings": dict(settings)}
    problem = load(name, **settings)
    found = {key: value for key, value in problem.settings.items() if key not in ("seed", "model")}
    return {"problem": "texts", "problem_settings": found}
