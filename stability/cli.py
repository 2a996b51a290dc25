"""The command line: names → objects, nothing else. Exit code 0 done, 1 failed, 2 asked for something senseless."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from stability import bounds, machine, problems
from stability.arguments import PROBLEM, TEXT_TRAINING, TRAINING, parser
from stability.bounds.base import check_delta
from stability.constants import measure_constants, measured_bounds
from stability.errors import StabilityError, UsageError, check_whole
from stability.leave_one_out import StabilityEstimate, measure
from stability.naming import SELECTORS, announced, selector_named, selectors_named
from stability.problems import PROBLEMS, Problem
from stability.problems.metrics import commonest_class
from stability.problems.texts import HUB
from stability.replicas import Replicas, train
from stability.selectors import Selector
from stability.store import Store
from stability.studies import STUDIES
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
    selectors = selectors_named(options.selectors, options.sparsities, **dict(options.option))
    if not selectors and (options.sparsities or options.option):
        raise UsageError("--sparsities and --option belong to --selectors SELECTOR …: add them, or leave these out")
    if options.problem is not None:
        if options.study in STUDIES:
            raise UsageError(f"study {options.study!r} has its own problem: give your study another name")
        if not selectors:
            raise UsageError("a study of --problem needs --selectors: full sam, with --sparsities 0.005, for example")
        algorithms = tuple(FineTuning(selector, **_training(options)) for selector in selectors)
        seeds = 3 if options.seeds is None else options.seeds
        check_whole(1, seeds=seeds)
        settings = _problem_settings(options)
        _tell(problems.load(options.problem, **settings))
        count = 10 if options.retrainings is None else options.retrainings
        return Study(options.study, options.problem, algorithms, tuple(range(seeds)), settings, count, options.check_replicas)
    if options.study not in STUDIES:
        raise UsageError(f"unknown study {options.study!r}: there is {', '.join(STUDIES)}; for one of your own give --problem")
    own = ("seeds", "retrainings", "check_replicas", *TRAINING, *PROBLEM)
    if given := [name for name in own if getattr(options, name) is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')} belongs to --problem: study {options.study!r} has its own")
    study = STUDIES[options.study]
    return study.with_selectors(*selectors) if selectors else study


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
    retrainings = options.retrainings
    if not options.bounds and (options.check_replicas is not None or options.delta is not None):
        raise UsageError("--check-replicas and --delta belong to --bounds: add it, or leave them out")
    delta = 0.1 if options.delta is None else options.delta
    check_delta(delta)
    replicas_to_check = 2 if options.check_replicas is None else options.check_replicas
    if replicas_to_check < 0:
        raise UsageError(f"check_replicas = {replicas_to_check}: use at least 0")
    if options.estimator == "exact" and retrainings not in (None, problem.n):
        raise UsageError(f"--estimator exact retrains all n = {problem.n}: leave --retrainings {retrainings} out, or use sampled")
    if options.estimator == "sampled" and retrainings is None:
        retrainings = min(20, problem.n)
    if options.estimator == "exact":
        retrainings = None
    runs = (problem.n if retrainings is None else retrainings) + 2
    steps = runs * algorithm.steps if isinstance(algorithm, FineTuning) else None
    with tqdm(total=steps, unit="step", disable=True if options.json else None) as bar:
        estimate = measure(
            problem, algorithm, retrainings, reselect=not options.keep_mask, device=options.device, progress=bar.update
        )
    metrics = _metrics(problem, estimate.replicas)
    if not options.json:
        _show_estimate(problem, algorithm, estimate, metrics)
    found: dict[str, bounds.Bound] = {}
    notes: tuple[str, ...] = ()
    if options.bounds:
        constants = measure_constants(estimate, replicas_to_check)
        found, notes = measured_bounds(estimate, constants, delta), constants.notes
    if options.json:
        what = {"problem": problem.name, "problem_settings": dict(problem.settings), "reselect": not options.keep_mask}
        how = {"algorithm": {**algorithm.settings(), "seed": algorithm.seed}}
        more: dict[str, Any] = {"test_metric": {"name": problem.metric_name, "value": metrics["test"]}}
        more |= {"metrics": metrics, "data_notes": list(problem.notes)}
        if options.bounds:
            more |= {"bounds": {name: bound.to_dict() for name, bound in found.items()}, "notes": list(notes)}
        _print_json({**what, **how, **_plain(estimate.to_dict()), **_plain(more)})
    elif options.bounds:
        print(f"\nBounds from the constants measured on these runs (δ = {delta:g} for the expected loss):")
        _print_bounds(found)
        print("".join(f"  {note}\n" for note in notes), end="")


def _show_estimate(
    problem: Problem, algorithm: FineTuning | Minimisation, estimate: StabilityEstimate, metrics: Mapping[str, float]
) -> None:
    low, high = estimate.interval
    rows = {
        "stability E_i|Δℓ_i|": f"{estimate.value:.4g} {problem.loss_unit}",
        f"{estimate.pointwise.confidence:.0%} interval": "exact for this S and seed" if low == high else f"{low:.4g} … {high:.4g}",
        "noise floor": f"{estimate.noise_floor:.2g}",
        "estimator": f"{estimate.estimator}, {estimate.retrainings} of n = {estimate.n} left out, {len(estimate.failed)} failed",
        "on the test split": f"{estimate.hypothesis.value:.4g}",
        "largest |Δℓ_i|": f"{estimate.maximum:.4g}",
        "tunable": f"k = {estimate.tunable} of m = {estimate.total} (p = {estimate.sparsity:.4g}), head {estimate.head}",
        problem.metric_name: ", ".join(f"{split} {value:.4f}" for split, value in metrics.items()),
        "trained": _described(algorithm),
        "seconds": f"{estimate.seconds:.1f}",
    }
    if (p := algorithm.sparsity_for(estimate.replicas.masks[0])) != estimate.sparsity:
        rows["p of Theorem 1"] = f"{p:.4g} = 1 − λ, for every coordinate may change"
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:>{width}}  {text}")
    if estimate.failed:
        which = ", ".join(f"example {i} at step {step}" for i, step in estimate.failed.items())
        print(f"\nFailed with seed {algorithm.seed} and left out of every average: {which}.")
    if estimate.retrainings == 1 < estimate.n:
        print("\nOne retraining tells nothing of the spread: the interval has no upper end. Use --retrainings 10 or more.")
    if estimate.value <= estimate.noise_floor:
        print("\nThe value is not above its noise floor: it is not a result.")


def _described(algorithm: FineTuning | Minimisation) -> str:
    if isinstance(algorithm, Minimisation):
        return f"to ‖∇F‖ ≤ {algorithm.tolerance:g}, λ = {algorithm.ridge}"
    return (
        f"{algorithm.steps} steps of {algorithm.batch_size}, learning rate {algorithm.learning_rate:g}, {algorithm.schedule}, "
        f"dropout {'on' if algorithm.dropout else 'off'}"
    )


def _metrics(problem: Problem, replicas: Replicas) -> dict[str, float]:
    """Of A(S) on every split; and on the test split of the class that is commonest in S, whatever the input."""
    splits = {"test": problem.test, "validation": problem.validation, "train": problem.train}
    device, first = replicas.values.device, slice(0, 1)
    logits = {name: replicas.logits(some.to(device), first)[0].cpu() for name, some in splits.items() if some is not None}
    found = {name: problem.metric(mine, getattr(problem, name).labels) for name, mine in logits.items()}
    if not problem.train.labels.is_floating_point() and (outputs := logits["test"].shape[1]) > 1:
        constant = commonest_class(problem.train.labels, outputs, len(problem.test))
        found["commonest class on test"] = problem.metric(constant, problem.test.labels)
    return found


def _select(options: argparse.Namespace) -> None:
    selector, problem = _selector(options), _problem(options)
    if not selector.moving and (odd := [f"--{name.replace('_', '-')}" for name in TRAINING if getattr(options, name) is not None]):
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
    names = {"problems": [*PROBLEMS, *HUB], "selectors": [*SELECTORS, *sorted(announced())], "studies": list(STUDIES)}
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
    return given if options.problem is None or options.problem in PROBLEMS else {**TEXT_TRAINING, **given}


def _algorithm(options: argparse.Namespace) -> FineTuning | Minimisation:
    selector, ridge = _selector(options), options.ridge
    if options.minimise is None:
        return FineTuning(selector, seed=options.seed, **_training(options), **({} if ridge is None else {"ridge": ridge}))
    if odd := [f"--{name.replace('_', '-')}" for name in TRAINING if getattr(options, name) is not None]:
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
