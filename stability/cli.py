"""The command line: names → objects, nothing else. Exit code 0 done, 1 failed, 2 asked for something senseless."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from stability import bounds, cost, machine, problems
from stability.arguments import PROBLEM, STOPPING, TEXT_TRAINING, TRAINING, parser
from stability.bounds.base import check_delta
from stability.constants import measure_constants, measured_bounds
from stability.errors import StabilityError, UsageError, check_whole
from stability.estimate import StabilityEstimate
from stability.estimators import Approximate, Assisted, Estimator, Exact, Sampled
from stability.leave_one_out import measure
from stability.naming import SELECTORS, announced, selector_named, selectors_named
from stability.predictors import Linearised, OneStep, Predictor
from stability.problems import PROBLEMS, Problem
from stability.problems.texts import HUB
from stability.replicas import train
from stability.report import metrics_of, named_examples, show_estimate, signed
from stability.selectors import Selector
from stability.stopping import EarlyStopping
from stability.store import Store
from stability.studies import PAPER, STUDIES
from stability.study import Study, run
from stability.summary import table
from stability.training import FineTuning, Minimisation

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if getattr(options, "threads", None) is not None:
            if options.threads < 1:
                raise UsageError(f"threads = {options.threads}: use at least 1")
            torch.set_num_threads(options.threads)
        _COMMANDS[options.command](options)
    except StabilityError as error:
        print(f"stability: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"stability: {error}; what was finished is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "; what was finished is kept, the same command goes on from there" if options.command == "run" else ""
        print(f"stability: stopped{kept}", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    study = _study(options)
    store = options.store or Path("runs") / f"{study.name}.sqlite"
    if options.plan:
        print(cost.told(cost.expected(study, store, device=options.device, workers=options.workers)))
        return
    with tqdm(unit="cell", desc=study.name, disable=None) as bar:

        def start(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        frame = run(
            study, store, reuse=options.reuse, device=options.device, workers=options.workers, on_start=start, on_cell=bar.update
        )
    _show_table(frame)
    print(f"\nresults: {store}")
    if options.figures is not None:
        _draw(frame, options.figures)


def _study(options: argparse.Namespace) -> Study:
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
        algorithms = tuple(FineTuning(selector, **_training(options)) for selector in selectors)
        seeds = 3 if options.seeds is None else options.seeds
        check_whole(1, seeds=seeds)
        settings = _problem_settings(options)
        for problem in options.problem:
            _tell(problems.load(problem, **settings))
        samples = None if options.samples is None else tuple(range(options.samples))
        if samples is not None:
            check_whole(1, samples=options.samples)
        more: dict[str, Any] = {"check_replicas": options.check_replicas, "estimator": _estimator(options), "samples": samples}
        more |= {"measured_seeds": options.measured_seeds}
        where = options.problem[0] if len(options.problem) == 1 else tuple(options.problem)
        return Study(options.study, where, algorithms, tuple(range(seeds)), settings, **more)
    if options.study not in STUDIES:
        raise UsageError(
            f"unknown study {options.study!r}: there is {', '.join([*STUDIES, *PAPER])}; for one of your own give --problem"
        )
    own = (
        "seeds",
        "samples",
        "estimator",
        "retrainings",
        "tolerance",
        "predictor",
        "checkpoints",
        "check_replicas",
        "measured_seeds",
        *TRAINING,
        *STOPPING,
        *PROBLEM,
    )
    if given := [name for name in own if getattr(options, name) is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')} belongs to --problem: study {options.study!r} has its own")
    study = STUDIES[options.study]
    return study.with_selectors(*selectors) if selectors else study


_OF_PAPER = ("tasks", "methods", "rates", "sparsity", "adapter_width", "lora_rank", "mixout", "burn_in", "project_every", "authors")


def _paper(options: argparse.Namespace) -> Study:
    """One of the paper's, with the numbers that were given."""
    protocol = PAPER[options.study]
    names = {field.name for field in fields(protocol)} - {"part"}
    allowed = {*names, *STOPPING, "estimator"}
    given = {name: getattr(options, name) for name in (*_OF_PAPER, *TRAINING, *STOPPING, *PROBLEM, *_MEASURED)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}
    given |= {"sparsities": tuple(options.sparsities)} if options.sparsities else {}
    if odd := sorted(given.keys() - allowed) + (["option"] if options.option else []):
        raise UsageError(
            f"study {options.study!r} has no --{odd[0].replace('_', '-')}: leave it out; there is {', '.join(sorted(names))}"
        )
    if options.selectors:
        given["methods"] = (*given.get("methods", protocol.methods), *options.selectors)
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


def _figures(options: argparse.Namespace) -> None:
    _draw(table(Store(options.store)), options.out, options.only)


def _draw(frame: pd.DataFrame, folder: Path, only: str | None = None) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from stability.plotting import save_all

    for path in save_all(frame, folder, only):
        print(path)


def _table(options: argparse.Namespace) -> None:
    frame = table(Store(options.store))
    if options.json:
        from stability.summary import summarise

        _print_json([_plain(row) for row in summarise(frame).to_dict("records")])
    else:
        _show_table(frame)


def _show_table(frame: pd.DataFrame) -> None:
    from stability.tables import render

    print(render(frame))


def _loo(options: argparse.Namespace) -> None:
    problem = _problem(options)
    algorithm = _algorithm(options)
    estimator = _estimator(options)
    if options.bounds and isinstance(estimator, Approximate):
        raise UsageError("--bounds are measured at left-out replicas, and --estimator approximate trains none: use assisted")
    if options.examples < 0:
        raise UsageError(f"examples = {options.examples}: use at least 0")
    if not options.bounds and (options.check_replicas is not None or options.delta is not None):
        raise UsageError("--check-replicas and --delta belong to --bounds: add it, or leave them out")
    delta = 0.1 if options.delta is None else options.delta
    check_delta(delta)
    replicas_to_check = 2 if options.check_replicas is None else options.check_replicas
    if replicas_to_check < 0:
        raise UsageError(f"check_replicas = {replicas_to_check}: use at least 0")
    how: dict[str, Any] = {"estimator": estimator, "reselect": not options.keep_mask, "device": options.device}
    with tqdm(total=_steps(algorithm, estimator, problem.n), unit="step", disable=True if options.json else None) as bar:
        estimate = measure(problem, algorithm, progress=bar.update, **how)
    metrics = metrics_of(problem, estimate.replicas)
    if not options.json:
        show_estimate(problem, algorithm, estimate, metrics)
    found: dict[str, bounds.Bound] = {}
    notes: tuple[str, ...] = ()
    if options.bounds:
        constants = measure_constants(estimate, replicas_to_check)
        found, notes = measured_bounds(estimate, constants, delta), constants.notes
    if options.json:
        what = {"problem": problem.name, "problem_settings": dict(problem.settings), "reselect": not options.keep_mask}
        what |= {"algorithm": {**algorithm.settings(), "seed": algorithm.seed}, "asked": estimator.settings()}
        more: dict[str, Any] = {"test_metric": {"name": problem.metric_name, "value": metrics["test"]}}
        more |= {"metrics": metrics, "data_notes": list(problem.notes)}
        if options.bounds:
            more |= {"bounds": {name: bound.to_dict() for name, bound in found.items()}, "notes": [*estimate.notes, *notes]}
        if options.examples:
            more["examples"] = named_examples(problem, estimate, options.examples)
        _print_json({**what, **_plain(estimate.to_dict()), **_plain(more)})
    elif options.bounds:
        print(f"\nBounds from the constants measured on these runs (δ = {delta:g} for the expected loss):")
        _print_bounds(found)
        print("".join(f"  {note}\n" for note in notes), end="")
    if options.examples and not options.json:
        print(f"\nThe examples that carry most of it (share; of what was not retrained, as predicted), of {estimate.n}:")
        for row in named_examples(problem, estimate, options.examples):
            print(f"  {row['share']:4.0%}  Δℓ {signed(row['retrained'])} (predicted {signed(row['predicted'])})  {row['shown']}")
    if options.figures is not None:
        _draw_examples(problem, algorithm, estimate, options.figures, quiet=options.json)


def _steps(algorithm: FineTuning | Minimisation, estimator: Estimator, n: int) -> int | None:
    """Of all replicas together, where that is known beforehand."""
    if not isinstance(algorithm, FineTuning) or estimator.tolerance is not None:
        return None
    count = estimator.more(n, 0, None)
    return (count + 1 + (count > 0)) * algorithm.steps


def _draw_examples(
    problem: Problem, algorithm: FineTuning | Minimisation, estimate: StabilityEstimate, folder: Path, quiet: bool
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from stability import plotting

    name = f"{problem.name}_{algorithm.name}"
    figures = {}
    for kind, draw in (("differences", plotting.differences), ("influential", plotting.influential)):
        try:
            figures[kind] = draw(estimate)
        except plotting.NothingToDrawError as error:
            print(f"note: no figure {kind}: {error}", file=sys.stderr)
    for path in plotting.save(figures, folder, name, f"{name}, seed {algorithm.seed}"):
        if not quiet:
            print(path)


def _select(options: argparse.Namespace) -> None:
    selector, problem = _selector(options), _problem(options)
    if not selector.moving and (
        odd := [f"--{name.replace('_', '-')}" for name in (*TRAINING, *STOPPING) if getattr(options, name) is not None]
    ):
        raise UsageError(f"{selector.name} selects before training: leave {', '.join(odd)} out")
    if selector.moving:
        algorithm = FineTuning(selector, seed=options.seed, **_training(options))
        replicas = train(problem, algorithm)
        if (step := int(replicas.failed_step[0])) >= 0:
            raise StabilityError(f"{selector.name} found no mask, for its training {algorithm.failure(step)}")
        mask = replicas.masks[0]
    else:
        mask = selector.select(problem, options.seed)
    mask.save(options.out)
    print(f"{options.out}: k = {mask.count} of m = {mask.total} coordinates, p = {mask.sparsity:.4g}")


def _bounds(options: argparse.Namespace) -> None:
    constants = (options.lipschitz, options.least_eigenvalue, options.sparsity, options.n)
    check_delta(options.delta)
    checks = bounds.Checks(ridge=options.ridge, loss_bound=options.loss_bound)
    found = {
        "stability": bounds.pointwise_hypothesis_stability(*constants, checks=checks),
        "stability_sharp": bounds.pointwise_hypothesis_stability(*constants, sharp=True, checks=checks),
    }
    if (options.loss_bound is None) != (options.empirical_risk is None):
        raise UsageError("the bound on the expected loss needs both --loss-bound C and --empirical-risk R̂")
    if options.loss_bound is not None:
        risk = (options.loss_bound, options.delta, options.empirical_risk)
        found["generalization"] = bounds.generalization(*constants, *risk, checks=checks)
    if options.json:
        values = {name: bound.to_dict()["value"] for name, bound in found.items()}
        _print_json({**values, "bounds": {name: bound.to_dict() for name, bound in found.items()}})
        return
    _print_bounds(found)


def _print_bounds(found: Mapping[str, bounds.Bound]) -> None:
    """A line a bound, then each assumption once, with the bounds that make it."""
    made: dict[bounds.Assumption, list[str]] = {}
    for name, bound in found.items():
        print(f"{name}: {bound}")
        if bound.reason:
            print(f"  {bound.reason}")
        for assumption in bound.assumptions:
            made.setdefault(assumption, []).append(name)
    print("assumptions:")
    for assumption, names in made.items():
        state = {True: "held", False: "FAILED", None: "not checked"}[assumption.held]
        print(f"  {state:>11}: {assumption.name} ({assumption.detail}) [{', '.join(names)}]")


def _list(options: argparse.Namespace) -> None:
    names = {"problems": [*PROBLEMS, *HUB], "selectors": [*SELECTORS, *sorted(announced())], "studies": [*STUDIES, *PAPER]}
    if options.json:
        _print_json(names)
        return
    for kind, members in names.items():
        print(f"{kind}: {', '.join(members)}")


def _doctor(options: argparse.Namespace) -> None:
    facts = machine.report()
    if options.json:
        _print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:>16}  {', '.join(value) if isinstance(value, list) else value}")


def _selector(options: argparse.Namespace) -> Selector:
    named = {"scope": options.scope, "curvature": options.curvature}
    if twice := sorted(name for name, _ in options.option if named.get(name) is not None):
        raise UsageError(f"{', '.join(twice)} is given twice: leave --option {twice[0]}=… out")
    return selector_named(options.selector, options.sparsity, **{**named, **dict(options.option)})


def _problem(options: argparse.Namespace) -> Problem:
    problem = problems.load(options.problem, seed=options.seed, **_problem_settings(options))
    _tell(problem)
    return problem


def _tell(problem: Problem) -> None:
    for note in problem.notes:
        print(f"note: {note}", file=sys.stderr)


def _problem_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in PROBLEM if getattr(options, name) is not None}


def _training(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; the rest is the default of texts, where the problem is texts, and otherwise FineTuning's."""
    given = {name: getattr(options, name) for name in TRAINING if getattr(options, name) is not None}
    stopping = {own: getattr(options, name) for name, own in STOPPING.items() if getattr(options, name) is not None}
    if stopping:
        if "every" not in stopping:
            raise UsageError("--patience and --least-steps belong to --evaluate-every: give it too, or leave them out")
        given["early_stopping"] = EarlyStopping(**stopping)
    which = [options.problem] if isinstance(options.problem, str) else options.problem or []
    return {**TEXT_TRAINING, **given} if any(problem not in PROBLEMS for problem in which) else given


def _estimator(options: argparse.Namespace) -> Estimator:
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


def _algorithm(options: argparse.Namespace) -> FineTuning | Minimisation:
    selector, ridge = _selector(options), options.ridge
    if options.minimise is None:
        return FineTuning(selector, seed=options.seed, **_training(options), **({} if ridge is None else {"ridge": ridge}))
    if odd := [f"--{name.replace('_', '-')}" for name in (*TRAINING, *STOPPING) if getattr(options, name) is not None]:
        raise UsageError(f"--minimise takes no {', '.join(odd)}: L-BFGS has no such setting")
    if ridge is None:
        raise UsageError("--minimise needs --ridge λ (or 'paper'), so that there is a minimum to find")
    return Minimisation(selector, ridge=ridge, tolerance=options.minimise, seed=options.seed)


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False, ensure_ascii=False))


def _plain(row: Any) -> Any:
    """NaN and infinity, which JSON lacks, become null."""
    if isinstance(row, dict):
        return {name: _plain(value) for name, value in row.items()}
    if isinstance(row, (list, tuple)):
        return [_plain(value) for value in row]
    if hasattr(row, "item"):
        row = row.item()
    return None if isinstance(row, float) and not math.isfinite(row) else row


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": _run,
    "loo": _loo,
    "select": _select,
    "bounds": _bounds,
    "figures": _figures,
    "table": _table,
    "list": _list,
    "doctor": _doctor,
}
