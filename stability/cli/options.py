"""Parsed options → objects: what was asked for, or a refusal that names the option."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from typing import Any

from stability import problems
from stability.checks import check_whole
from stability.cli.arguments import PROBLEM, STOPPING, TEXT_TRAINING, TRAINING
from stability.errors import UsageError
from stability.leave_one_out.estimators import Approximate, Assisted, Estimator, Exact, Sampled
from stability.leave_one_out.predictors import Linearised, OneStep, Predictor
from stability.problems import PROBLEMS, Problem
from stability.selectors import Selector
from stability.selectors.naming import selector_named, selectors_named
from stability.studies.named import PAPER, STUDIES
from stability.studies.protocol import UNUSED
from stability.studies.study import Study
from stability.training import FineTuning, Minimisation
from stability.training.stopping import EarlyStopping

__all__ = ["algorithm_asked", "estimator_asked", "problem_asked", "selector_asked", "study_asked", "training_asked"]


def study_asked(options: argparse.Namespace) -> Study:
    """The one that comes with the toolkit, with further selectors; or one of the user's own, on ``--problem``."""
    if options.study in PAPER and options.problem is None:
        return _paper(options)
    if odd := [name for name in _OF_PAPER if getattr(options, name) is not None]:
        raise UsageError(f"--{odd[0].replace('_', '-')} belongs to the studies {', '.join(PAPER)}: leave it out")
    selectors = selectors_named(options.selectors, options.sparsities, **dict(options.option))
    if not selectors and (options.sparsities or options.option):
        raise UsageError("--sparsities and --option belong to --selectors SELECTOR …: add them, or leave these out")
    if options.problem is not None:
        if options.study in (*STUDIES, *PAPER):
            raise UsageError(f"study {options.study!r} has its own problem: give your study another name")
        if not selectors:
            raise UsageError("a study of --problem needs --selectors: full sam, with --sparsities 0.005, for example")
        algorithms = tuple(FineTuning(selector, **training_asked(options)) for selector in selectors)
        seeds = 3 if options.seeds is None else options.seeds
        check_whole(1, seeds=seeds)
        settings = _problem_settings(options)
        for problem in options.problem:
            _tell(problems.load(problem, **settings))
        samples = None if options.samples is None else tuple(range(options.samples))
        if samples is not None:
            check_whole(1, samples=options.samples)
        more: dict[str, Any] = {"check_replicas": options.check_replicas, "estimator": estimator_asked(options), "samples": samples}
        more |= {"measured_seeds": options.measured_seeds}
        where = options.problem[0] if len(options.problem) == 1 else tuple(options.problem)
        return Study(options.study, where, algorithms, tuple(range(seeds)), problem_settings=settings, **more)
    if options.study not in STUDIES:
        raise UsageError(
            f"unknown study {options.study!r}: there is {', '.join([*STUDIES, *PAPER])}; for one of your own give --problem"
        )
    if given := [name for name in (*_MEASURED, *TRAINING, *STOPPING, *PROBLEM) if getattr(options, name) is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')} belongs to --problem: study {options.study!r} has its own")
    study = STUDIES[options.study]
    return study.with_selectors(*selectors) if selectors else study


_OF_PAPER = ("tasks", "methods", "rates", "sparsity", "adapter_width", "lora_rank", "mixout", "burn_in", "project_every", "authors")


def _paper(options: argparse.Namespace) -> Study:
    """One of the paper's, with the numbers that were given."""
    protocol = PAPER[options.study]
    names = {field.name for field in fields(protocol)} - {"part"}
    names -= set(UNUSED[protocol.part])
    given = {name: getattr(options, name) for name in (*_OF_PAPER, *TRAINING, *STOPPING, *PROBLEM, *_MEASURED)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}
    given |= {"sparsities": tuple(options.sparsities)} if options.sparsities else {}
    given |= {"option": options.option} if options.option else {}
    if options.selectors:
        given["methods"] = (*given.get("methods", protocol.methods), *options.selectors)
    if odd := sorted(given.keys() - names):
        there = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in names))
        raise UsageError(f"study {options.study!r} has no --{odd[0].replace('_', '-')}: leave it out; there is {there}")
    if not given.get("evaluate_every", protocol.evaluate_every) and (odd := sorted({"patience", "least_steps"} & given.keys())):
        raise UsageError(f"--{odd[0].replace('_', '-')} belongs to --evaluate-every, which is 0: leave it out, or give that too")
    # One rate that was given is for all methods; rates of some of them leave the others'.
    given["rates"] = (*(() if "learning_rate" in given else protocol.rates), *given.get("rates", ()))
    return replace(protocol, **given).study(options.study)


_MEASURED = (
    "seeds",
    "samples",
    "estimator",
    "retrainings",
    "tolerance",
    "predictor",
    "checkpoints",
    "check_replicas",
    "measured_seeds",
)


def selector_asked(options: argparse.Namespace) -> Selector:
    """The one of ``--selector``."""
    named = {"scope": options.scope, "curvature": options.curvature}
    if twice := sorted(name for name, _ in options.option if named.get(name) is not None):
        raise UsageError(f"{', '.join(twice)} is given twice: leave --option {twice[0]}=… out")
    return selector_named(options.selector, options.sparsity, **{**named, **dict(options.option)})


def problem_asked(options: argparse.Namespace) -> Problem:
    """The one of ``--problem``; what it has to say goes to standard error."""
    problem = problems.load(options.problem, seed=options.seed, **_problem_settings(options))
    _tell(problem)
    return problem


def _tell(problem: Problem) -> None:
    for note in problem.notes:
        print(f"note: {note}", file=sys.stderr)


def _problem_settings(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in PROBLEM if getattr(options, name) is not None}
    return {"label_type" if name == "labels" else name: value for name, value in given.items()}


def training_asked(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; the rest is the default of texts, where the problem is texts, and otherwise FineTuning's."""
    given = {name: getattr(options, name) for name in TRAINING if getattr(options, name) is not None}
    stopping = {own: getattr(options, name) for name, own in STOPPING.items() if getattr(options, name) is not None}
    if stopping:
        if "every" not in stopping:
            raise UsageError("--patience and --least-steps belong to --evaluate-every: give it too, or leave them out")
        given["early_stopping"] = EarlyStopping(**stopping)
    which = [options.problem] if isinstance(options.problem, str) else options.problem or []
    return {**TEXT_TRAINING, **given} if any(problem not in PROBLEMS for problem in which) else given


def estimator_asked(options: argparse.Namespace) -> Estimator:
    """How stability is estimated."""
    kind = options.estimator or "assisted"
    chosen: Predictor | None = (
        None if options.predictor is None else Linearised() if options.predictor == "linearised" else OneStep()
    )
    if options.checkpoints is not None:
        if isinstance(chosen, OneStep):
            raise UsageError("--checkpoints are of linearised replicas: leave it out with --predictor one-step")
        chosen = Linearised(options.checkpoints)
    if chosen is not None and kind not in ("assisted", "approximate"):
        raise UsageError(f"--predictor and --checkpoints belong to --estimator assisted or approximate: leave it out with {kind}")
    if kind in ("exact", "approximate"):
        if odd := [f"--{name}" for name in ("retrainings", "tolerance") if getattr(options, name) is not None]:
            why = "leaves out every example" if kind == "exact" else "leaves out none"
            raise UsageError(f"--estimator {kind} {why}: leave {', '.join(odd)} out, or use sampled or assisted")
        return Exact() if kind == "exact" else Approximate(chosen)
    asked = (options.retrainings, options.tolerance)
    return Assisted(*asked, chosen) if kind == "assisted" else Sampled(*asked)


def algorithm_asked(options: argparse.Namespace) -> FineTuning | Minimisation:
    """A."""
    selector, ridge = selector_asked(options), options.ridge
    if options.minimise is None:
        return FineTuning(selector, seed=options.seed, **training_asked(options), **({} if ridge is None else {"ridge": ridge}))
    if odd := [f"--{name.replace('_', '-')}" for name in (*TRAINING, *STOPPING) if getattr(options, name) is not None]:
        raise UsageError(f"--minimise takes no {', '.join(odd)}: L-BFGS has no such setting")
    if ridge is None:
        raise UsageError("--minimise needs --ridge λ (or 'paper'), so that there is a minimum to find")
    return Minimisation(selector, ridge=ridge, gradient_tolerance=options.minimise, seed=options.seed)
