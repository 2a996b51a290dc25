"""Problems by name: :func:`load`, what tables call them, and what tells one from another."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from stability.errors import UsageError
from stability.problems.convex import load_linear, load_logistic, load_quadratic
from stability.problems.digits import TRAINING as DIGITS_TRAINING
from stability.problems.digits import load_digits
from stability.problems.problem import Problem, TrainingDefaults
from stability.problems.reading import stem
from stability.problems.tasks import HUB, TEXT_TRAINING
from stability.problems.texts import load_texts, on_hub

__all__ = ["PROBLEMS", "identity", "load", "short_name", "training_defaults"]

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "digits": load_digits,
    "linear": load_linear,
    "logistic": load_logistic,
    "quadratic": load_quadratic,
}
"""The loader of each problem that comes with the toolkit, by the problem's name."""


def load(name: str | PathLike[str] | Any, **settings: Any) -> Problem:
    """Load a problem by its name: one that comes with the toolkit, or texts with a pretrained language model.

    Each kind has a function of its own, with its settings typed: :func:`~stability.problems.load_digits`,
    :func:`~stability.problems.load_texts`, :func:`~stability.problems.load_linear`,
    :func:`~stability.problems.load_logistic`, :func:`~stability.problems.load_quadratic`.

    Args:
        name: a name in :data:`PROBLEMS`; or texts, which need ``model=``: a folder or file, a pandas DataFrame, a
            ``datasets.Dataset`` or ``DatasetDict``, or the name of a data set of the hub such as ``glue/rte``.
        settings: the arguments of that problem's function, such as n and seed.

    Raises:
        UsageError: the name or a setting is unknown, or the problem refuses a value.

    Example:
        >>> load("digits", n=40, seed=1).n
        40
    """
    table = not isinstance(name, (str, PathLike))
    called = f"of type {type(name).__name__}" if table else repr(str(name))
    own = not table and str(name) in PROBLEMS
    named = settings.get("text") is not None or settings.get("label") is not None
    if not table and not own and not os.path.exists(name) and not on_hub(str(name), named):
        raise UsageError(
            f"unknown problem {called}, and no file or folder is there: there is {', '.join(sorted(PROBLEMS))}, on the hub "
            f"{', '.join(HUB)}, and other data sets of the hub where a column is named (text='…' or label='…', --text or --label)"
        )
    loader = PROBLEMS[str(name)] if own else load_texts
    known = [setting for setting in inspect.signature(loader).parameters if setting != "data" or own]
    if odd := sorted(settings.keys() - set(known)):
        raise UsageError(f"problem {called} has no setting {', '.join(odd)}: there is {', '.join(known)}")
    if not own and "model" not in settings:
        raise UsageError(f"problem {called} needs a pretrained model: give model=… (--model), a folder or a name on the hub")
    return loader(**settings) if own else loader(data=name, **settings)


def training_defaults(name: str) -> TrainingDefaults:
    """How a problem is trained where nothing else is asked for. The problem is not loaded.

    Args:
        name: the name or path under which it is loaded.

    Example:
        >>> training_defaults("digits").learning_rate, training_defaults("reviews.csv").learning_rate
        (0.003, 0.0005)
    """
    return DIGITS_TRAINING if name == "digits" else TrainingDefaults() if name in PROBLEMS else TEXT_TRAINING


def short_name(name: str) -> str:
    """What tables call a problem.

    Args:
        name: the name or path under which it is loaded.

    Returns:
        The problem's own name; of a folder or file its name without path and ending; of a task of the hub its last part.

    Example:
        >>> short_name("digits"), short_name("data/cb"), short_name("glue/rte"), short_name("mine/reviews.csv")
        ('digits', 'cb', 'rte', 'reviews')
    """
    path = Path(name)
    return stem(path if path.name else path.resolve())  # of "." and the like


def identity(name: str, settings: Mapping[str, Any], problem: Problem | None = None) -> dict[str, Any]:
    """What defines a problem apart from its seed: the part of a result's key that says what was learned.

    Texts and weights are known by their *content*, not by names and paths. So a study goes on from a copy of the data, and never
    from other data of the same name.

    Args:
        name: the name or path under which the problem is loaded.
        settings: those that :func:`load` is called with, apart from the seed.
        problem: what :func:`load` gave for them, with any seed; by default it is loaded.

    Returns:
        Plain values, under ``problem`` and ``problem_settings``.

    Raises:
        UsageError: :func:`load` refuses this name with these settings.

    Example:
        >>> identity("digits", {"n": 40})["problem_settings"]["n"]
        40
    """
    loaded = load(name, **settings) if problem is None else problem
    found = {key: value for key, value in loaded.settings.items() if key not in ("seed", "model")}
    if name in PROBLEMS:
        return {"problem": name, "problem_settings": {**settings, **found}}
    return {"problem": "texts", "problem_settings": found}
