"""The command line: names → objects, nothing else. Exit code 0 done, 1 failed, 2 asked for something senseless."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from tqdm import tqdm

from stability import bounds, machine
from stability.bounds import estimate_constants, measured_bounds
from stability.bounds.base import check_delta
from stability.cli.arguments import STOPPING, TRAINING, parser
from stability.cli.options import algorithm_asked, estimator_asked, problem_asked, selector_asked, study_asked, training_asked
from stability.errors import StabilityError, UsageError
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Approximate, Estimator
from stability.leave_one_out.measuring import measure
from stability.problems import PROBLEMS, Problem
from stability.problems.tasks import HUB
from stability.reports.score_tables import Form, as_values, rendered
from stability.reports.terminal import metrics_of, named_examples, show_estimate, signed
from stability.selectors.naming import SELECTORS, announced
from stability.studies import cost, published
from stability.studies.named import PAPER, STUDIES
from stability.studies.published import against_published, published_scores
from stability.studies.results import StudyResults
from stability.studies.scores import scores
from stability.studies.study import run
from stability.training import FineTuning, Minimisation
from stability.training.replicas import train

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
    study = study_asked(options)
    store = options.store or Path("runs") / f"{study.name}.sqlite"
    if options.plan:
        print(cost.expected(study, store, reuse=options.reuse, device=options.device, workers=options.workers))
        return
    with tqdm(unit="cell", desc=study.name, disable=None) as bar:

        def start(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        results = run(
            study, store, reuse=options.reuse, device=options.device, workers=options.workers, on_start=start, on_cell=bar.update
        )
    _show_table(results)
    print(f"\nresults: {store}")
    if options.figures is not None:
        _draw(results, options.figures)


def _figures(options: argparse.Namespace) -> None:
    if options.store is None and not options.paper:
        raise UsageError("there is nothing to draw: give --store FILE, or --paper for the published numbers")
    if options.store is None and (odd := [name for name in ("only", "against", "sparsity") if getattr(options, name) is not None]):
        raise UsageError(f"--{odd[0]} belongs to --store: add it, or leave this out")
    if options.paper:
        _draw_paper(options.out)
    if options.store is not None:
        results = StudyResults.read(options.store)
        _draw(results, options.out, options.only, sparsity=options.sparsity, against=_published(options.against, results))


def _draw(results: StudyResults, folder: Path, only: str | None = None, **how: Any) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from stability.plotting import save_all

    for path in save_all(results, folder, only, **how):
        print(path)


def _published(asked: str | None, results: StudyResults) -> published.Part | None:
    """Which table to compare with; ``paper`` stands for the one of the same experiment."""
    if asked == "paper":
        return "perturbation" if results.removed else "main"
    return cast("published.Part | None", asked)


def _draw_paper(folder: Path) -> None:
    """The figure of ranks and both tables in every form, from the published numbers alone."""
    import matplotlib as mpl

    mpl.use("Agg")
    from stability import plotting

    every = {part: published_scores(part) for part in get_args(published.Part)}
    written = plotting.save({"ranks": plotting.ranks(*every.values())}, folder, "paper", "published numbers of Fu et al. 2023")
    forms: dict[str, Form] = {"md": "markdown", "tex": "latex", "csv": "csv"}
    for part, mine in every.items():
        for ending, form in forms.items():
            written.append(folder / f"paper_{part}.{ending}")
            written[-1].write_text(rendered(mine, form).rstrip("\n") + "\n", encoding="utf-8")
    print("\n".join(map(str, written)))


def _table(options: argparse.Namespace) -> None:
    ranks = options.ranks or any(getattr(options, name) is not None for name in ("against", "format", "sparsity", "paper"))
    if options.store is None:
        if options.paper is None:
            raise UsageError("there is no table to print: give --store FILE, or --paper main or perturbation")
        if options.against is not None or options.sparsity is not None:
            raise UsageError("--against and --sparsity belong to --store: add it, or leave them out")
        shown, beside = published_scores(options.paper), None
    elif ranks:
        if options.paper is not None:
            raise UsageError("--paper is of the published numbers alone: to put them beside a store use --against")
        results = StudyResults.read(options.store)
        shown, part = scores(results, options.sparsity), _published(options.against, results)
        beside = None if part is None else against_published(shown, part)
    else:
        results = StudyResults.read(options.store)
        if options.json:
            _print_json([_plain(row) for row in results.summary().table.to_dict("records")])
        else:
            _show_table(results)
        return
    if not options.json:
        print(rendered(shown, options.format or "text", beside))
        return
    if options.format is not None:
        raise UsageError("--json and --format: leave one of them out")
    told = as_values(shown) if beside is None else {"measured": as_values(shown), "published": as_values(beside)}
    _print_json(_plain({"table": options.paper, **told} if options.store is None else told))


def _show_table(results: StudyResults) -> None:
    from stability.reports.tables import render

    print(render(results))


def _loo(options: argparse.Namespace) -> None:
    problem = problem_asked(options)
    algorithm = algorithm_asked(options)
    estimator = estimator_asked(options)
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
        constants = estimate_constants(estimate, replicas_to_check)
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
    return (count + 1 + (count > 0)) * (algorithm.steps or 150)


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
    selector, problem = selector_asked(options), problem_asked(options)
    if not selector.moving and (
        odd := [f"--{name.replace('_', '-')}" for name in (*TRAINING, *STOPPING) if getattr(options, name) is not None]
    ):
        raise UsageError(f"{selector.name} selects before training: leave {', '.join(odd)} out")
    if selector.moving:
        algorithm = FineTuning(selector, seed=options.seed, **training_asked(options))
        replicas = train(problem, algorithm)
        if (step := int(replicas.failed_step[0])) >= 0:
            raise StabilityError(f"{selector.name} found no mask, for its training {algorithm.failure(step)}")
        mask = replicas.masks[0]
    else:
        mask = selector.select(problem, options.seed)
    mask.save(options.out)
    print(f"{options.out}: k = {mask.count} of m = {mask.total} coordinates, p = {mask.sparsity:.4g}")


def _bounds(options: argparse.Namespace) -> None:
    constants = {name: getattr(options, name) for name in ("lipschitz", "least_eigenvalue", "sparsity", "n")}
    check_delta(options.delta)
    checks = bounds.Checks(ridge=options.ridge, loss_bound=options.loss_bound)
    found = {
        "stability": bounds.pointwise_hypothesis_stability(**constants, checks=checks),
        "stability_sharp": bounds.pointwise_hypothesis_stability(**constants, sharp=True, checks=checks),
    }
    if (options.loss_bound is None) != (options.empirical_risk is None):
        raise UsageError("the bound on the expected loss needs both --loss-bound C and --empirical-risk R̂")
    if options.loss_bound is not None:
        risk = {name: getattr(options, name) for name in ("loss_bound", "delta", "empirical_risk")}
        found["generalization"] = bounds.generalization(**constants, **risk, checks=checks)
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
