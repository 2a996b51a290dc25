"""From the identity that a store holds back to the study, so that cells can be computed again without its Python code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stability.errors import UsageError
from stability.leave_one_out.estimators import Approximate, Assisted, Auto, Estimator, Exact, Sampled
from stability.leave_one_out.predictors import DEFAULTS, Linearised, OneStep, Predictor
from stability.problems import PROBLEMS
from stability.selectors import Scope, Selector
from stability.selectors.code import CODE
from stability.selectors.naming import SELECTORS
from stability.studies.identity import difference, key
from stability.studies.study import Study
from stability.training import Algorithm, EarlyStopping, FineTuning, Minimisation

__all__ = ["rebuilt"]

_ESTIMATORS: dict[str, type[Estimator]] = {kind.name: kind for kind in (Auto, Exact, Sampled, Assisted, Approximate)}
_PREDICTORS: dict[str, type[Linearised | OneStep]] = {"linearised": Linearised, "one step": OneStep}


def rebuilt(identity: Mapping[str, Any]) -> Study:
    """The study of an identity, made anew from its plain values.

    What is made must have that very identity again, or it is refused: no cell can be compared with one of other settings.

    Args:
        identity: what :meth:`stability.studies.Study.identity` gave, as a store holds it.

    Returns:
        The study.

    Raises:
        UsageError: the identity does not tell all that the study was made of. It knows texts and methods of your own by a digest
            of their content, and not where they are.

    Example:
        >>> from stability.studies import STUDIES
        >>> identity = STUDIES["digits-short"].identity()
        >>> rebuilt(identity).identity() == identity
        True
    """
    try:
        study = _study(identity)
    except (UsageError, KeyError, TypeError, ValueError) as error:
        why = f"{error}" if isinstance(error, UsageError) else f"it has a setting that this version does not know ({error})"
        raise UsageError(f"the store does not tell all that study {identity.get('study')!r} was made of: {why}") from error
    if (name := difference(identity, found := study.identity())) is not None:
        raise UsageError(
            f"study {study.name!r} made from the store differs in {name}: it is {found.get(name)!r} here and was "
            f"{identity.get(name)!r}"
        )
    return study


def _study(identity: Mapping[str, Any]) -> Study:
    several: Mapping[str, Any] = identity.get("problems", {})
    names, settings = _problems(list(several.values()) or [identity])
    seeds = {name: tuple(identity[name]) for name in ("seeds", "samples") if name in identity}
    return Study(
        identity["study"],
        names if several else names[0],
        tuple(_algorithm(one) for one in identity["algorithms"]),
        **seeds,
        problem_settings=settings,
        check_replicas=identity["check_replicas"],
        delta=identity["delta"],
        estimator=_estimator(identity),
        measured_seeds=identity.get("measured_seeds"),
        test_examples=identity.get("test_examples"),
    )


def _problems(each: list[Mapping[str, Any]]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of the problems, and the settings with which they were loaded: those of them that the loaders take."""
    if any(one["problem"] not in PROBLEMS for one in each):
        raise UsageError("it knows texts and their model by content, and not where they are")
    known = set.intersection(*(set(inspect.signature(PROBLEMS[one["problem"]]).parameters) for one in each))
    settings = {name: value for one in each for name, value in one["problem_settings"].items() if name in known}
    return tuple(one["problem"] for one in each), settings


def _algorithm(settings: Mapping[str, Any]) -> Algorithm:
    own = {name: _as_given(value) for name, value in settings.items() if name not in ("kind", "selector")}
    if CODE in own or settings["kind"] not in ("FineTuning", "Minimisation"):
        raise UsageError(f"algorithm {settings['kind']} is code of your own")
    selector = _selector(settings["selector"])
    if settings["kind"] == "Minimisation":
        return Minimisation(selector, gradient_tolerance=own.pop("tolerance"), **own)
    if (rule := own.pop("early_stopping", None)) is not None:
        own["early_stopping"] = EarlyStopping(rule["every"], rule["patience"], rule["least_steps"])
    return FineTuning(selector, **own)


def _selector(settings: Mapping[str, Any]) -> Selector:
    own = {name: _as_given(value) for name, value in settings.items() if name != "name"}
    # Variants are named after their method: sam-hutchinson, magnitude-trained.
    method = max((name for name in SELECTORS if f"{settings['name']}-".startswith(f"{name}-")), key=len, default=None)
    if CODE in own or method is None:
        raise UsageError(f"method {settings['name']!r} is code of your own, or a configuration of peft")
    if isinstance(own.get("scope"), Mapping):
        own["scope"] = Scope(**own["scope"])
    made = SELECTORS[method](**own)
    if key(made.settings()) != key(settings):
        raise UsageError(f"method {settings['name']!r} has settings that this version does not have: {dict(settings)}")
    return made


def _estimator(identity: Mapping[str, Any]) -> Estimator:
    if "estimator" not in identity:
        retrainings = identity["retrainings"]
        return Exact() if retrainings is None else Sampled(retrainings)
    own = dict(identity["estimator"])
    kind = _ESTIMATORS.get(own.pop("name"))
    if kind is None or CODE in own:
        raise UsageError("its estimator is code of your own")
    if "predictor" in own:
        own["predictor"] = _predictor(own["predictor"])
    made: Estimator = kind(**own)
    return made


def _predictor(settings: Mapping[str, Any]) -> Predictor | None:
    if "every" not in settings:
        if key({kind: one.settings() for kind, one in DEFAULTS.items()}) != key(settings):
            raise UsageError("its predictors were the default ones of another version")
        return None
    own = dict(settings["every"])
    own["memory_budget"] = own.pop("memory")
    return _PREDICTORS[own.pop("name")](**own)


def _as_given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
