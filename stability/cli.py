"""The command line: names → objects, nothing else. Exit code 0 done, 1 failed, 2 asked for something senseless."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from stability import __version__, bounds, machine, problems
from stability.bounds.base import check_delta
from stability.constants import measure_constants, measured_bounds
from stability.errors import StabilityError, UsageError
from stability.leave_one_out import measure
from stability.naming import SELECTORS, announced, selector_named
from stability.problems import PROBLEMS
from stability.replicas import train
from stability.selectors import Selector
from stability.store import Store
from stability.study import STUDIES, run, table
from stability.training import FineTuning, Minimisation

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if getattr(options, "threads", None) is not None:
            if options.threads < 1:
                raise UsageError(f"threads = {options.threads}: use at least 1")
            torch.set_num_threads(options.threads)
        result: int = options.command(options) or 0
    except StabilityError as error:
        print(f"stability: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"stability: {error}; what was finished is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stability: stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return result


def _run(options: argparse.Namespace) -> None:
    if options.study not in STUDIES:
        raise UsageError(f"unknown study {options.study!r}: there is {', '.join(STUDIES)}")
    study = STUDIES[options.study]
    store = options.store or Path("runs") / f"{study.name}.sqlite"
    with tqdm(unit="cell", desc=study.name, disable=None) as bar:

        def start(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        frame = run(study, store, device=options.device, workers=options.workers, on_start=start, on_cell=bar.update)
    _show_table(frame)
    print(f"\nresults: {store}")
    if options.figures is not None:
        _draw(frame, options.figures)


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
        from stability.study import summarise

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
    logits = estimate.replicas.logits(problem.test.to(estimate.replicas.values.device))[0].cpu()
    metric = problem.metric(logits, problem.test.labels)
    found: dict[str, bounds.Bound] = {}
    notes: tuple[str, ...] = ()
    if options.bounds:
        constants = measure_constants(estimate, replicas_to_check)
        found, notes = measured_bounds(estimate, constants, delta), constants.notes
    if options.json:
        what = {"problem": problem.name, "problem_settings": dict(problem.settings), "reselect": not options.keep_mask}
        how = {"algorithm": {**algorithm.settings(), "seed": algorithm.seed}}
        more: dict[str, Any] = {"test_metric": {"name": problem.metric_name, "value": metric}}
        if options.bounds:
            more |= {"bounds": {name: bound.to_dict() for name, bound in found.items()}, "notes": list(notes)}
        _print_json({**what, **how, **_plain(estimate.to_dict()), **_plain(more)})
        return
    low, high = estimate.interval
    rows = {
        "stability E_i|Δℓ_i|": f"{estimate.value:.4g} {problem.loss_unit}",
        f"{estimate.pointwise.confidence:.0%} interval": "exact for this S and seed" if low == high else f"{low:.4g} … {high:.4g}",
        "noise floor": f"{estimate.noise_floor:.2g}",
        "estimator": f"{estimate.estimator}, {estimate.retrainings} of n = {estimate.n} left out, {len(estimate.failed)} failed",
        "at fresh points": f"{estimate.hypothesis.value:.4g}",
        "largest |Δℓ_i|": f"{estimate.maximum:.4g}",
        "tunable": f"k = {estimate.tunable} of m = {estimate.total} (p = {estimate.sparsity:.4g}), head {estimate.head}",
        f"test {problem.metric_name}": f"{metric:.4f}",
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
    if options.bounds:
        print(f"\nBounds from the constants measured on these runs (δ = {delta:g} for the expected loss):")
        _print_bounds(found)
        print("".join(f"  {note}\n" for note in notes), end="")


def _select(options: argparse.Namespace) -> None:
    selector, problem = _selector(options), _problem(options)
    if selector.moving:
        mask = train(problem, FineTuning(selector, seed=options.seed)).masks[0]
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
    names = {"problems": list(PROBLEMS), "selectors": [*SELECTORS, *sorted(announced())], "studies": list(STUDIES)}
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


def _problem(options: argparse.Namespace) -> Any:
    given = {"n": options.n, "data": options.data}
    settings = {"seed": options.seed} | {name: value for name, value in given.items() if value is not None}
    return problems.load(options.problem, **settings)


def _algorithm(options: argparse.Namespace) -> FineTuning | Minimisation:
    names = ("steps", "batch_size", "learning_rate", "weight_decay", "ridge", "schedule")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    selector = _selector(options)
    if options.minimise is None:
        return FineTuning(selector, seed=options.seed, **given)
    ridge = given.pop("ridge", None)
    if given:
        odd = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"--minimise takes no {odd}: L-BFGS has no such setting")
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


def _ridge(text: str) -> float | str:
    try:
        return text if text == "paper" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'paper'") from None


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stability", description="Sparse fine-tuning and its leave-one-out stability, measured.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], None], text: str, with_json: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
        sub.set_defaults(command=function)
        # Before Python 3.14 argparse takes -1e-3 for an option; a negative Λ_min is usual and often small.
        sub._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
        if with_json:
            sub.add_argument("--json", action="store_true", help="one JSON value on standard output and nothing else")
        return sub

    sub = command("run", _run, "Run a study, or go on with one; print its table.")
    sub.add_argument("study", metavar="STUDY", help="name of the study, see 'stability list'")
    sub.add_argument("--store", type=Path, help="SQLite file of results (by default runs/STUDY.sqlite)")
    sub.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into this folder")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    sub.add_argument("--workers", type=int, help="processes of one thread each (by default one a core, one on CUDA)")

    sub = command("loo", _loo, "Measure the leave-one-out stability of one selector.", with_json=True)
    _add_selection(sub)
    sub.add_argument(
        "--estimator", choices=("exact", "sampled"), default="sampled", help="leave out every example, or a random sample"
    )
    sub.add_argument("--retrainings", type=int, help="how many examples a sample leaves out (by default 20)")
    sub.add_argument("--keep-mask", action="store_true", help="keep S's mask instead of selecting anew without the example")
    for name, kind in (("steps", int), ("batch-size", int), ("learning-rate", float), ("weight-decay", float)):
        sub.add_argument(f"--{name}", type=kind, help=f"by default {getattr(FineTuning, name.replace('-', '_'))}")
    sub.add_argument("--ridge", type=_ridge, help="λ of λ‖θ − θ⁰‖², or 'paper' for 1 − p (by default 0)")
    sub.add_argument(
        "--minimise", type=float, metavar="TOL", help="no AdamW: minimise the loss with its ridge by L-BFGS until ‖∇F‖ ≤ TOL"
    )
    sub.add_argument("--bounds", action="store_true", help="measure the constants as well, and print every bound")
    sub.add_argument(
        "--check-replicas", type=int, metavar="K", help="with --bounds: take the curvature at K of the A(Sⁱ) too (by default 2)"
    )
    sub.add_argument("--delta", type=float, help="with --bounds: δ of those on the expected loss (by default 0.1)")
    sub.add_argument("--schedule", choices=("constant", "linear"), help="of the learning rate (by default constant)")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    sub.add_argument("--threads", type=int, help="threads of this process (by default torch's choice)")

    sub = command("select", _select, "Choose a mask and save it.")
    _add_selection(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")

    sub = command("bounds", _bounds, "Theorem 1 for given constants; with C and R̂ also Theorem 2.", with_json=True)
    for name, symbol in {"lipschitz": "ρ", "least-eigenvalue": "Λ_min", "sparsity": "p"}.items():
        sub.add_argument(f"--{name}", type=float, required=True, help=symbol)
    sub.add_argument("--n", type=int, required=True, help="size of S")
    sub.add_argument("--ridge", type=float, help="the λ that A was trained with, to be compared with 1 − p")
    sub.add_argument("--loss-bound", type=float, help="C, the largest loss")
    sub.add_argument("--empirical-risk", type=float, help="R̂, the mean training loss")
    sub.add_argument("--delta", type=float, default=0.1, help="δ, the probability that the bound on the expected loss may fail")

    sub = command("figures", _figures, "Draw the figures of a store.")
    sub.add_argument("--store", type=Path, required=True)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR")
    sub.add_argument("--only", metavar="NAME", help="a single figure: stability, generalization, four_panels, ... (by default all)")

    sub = command("table", _table, "Print the table of a store.", with_json=True)
    sub.add_argument("--store", type=Path, required=True)

    command("list", _list, "Name the problems, selectors and studies.", with_json=True)
    command("doctor", _doctor, "Versions, devices and threads of this machine.", with_json=True)
    return parser


def _add_selection(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--problem", default="digits", help="name of the problem")
    sub.add_argument("--n", type=int, help="training examples (by default the problem's own number)")
    sub.add_argument("--data", help="of the problems linear and logistic: generated, diabetes, breast_cancer")
    sub.add_argument("--selector", required=True, help="its name, see 'stability list', or module:name for your own")
    sub.add_argument("--sparsity", type=float, metavar="P", help="fraction of pretrained parameters that may change, in (0, 1]")
    sub.add_argument(
        "--scope", choices=("global", "tensor"), help="compete over all parameters (the default), or within each tensor"
    )
    sub.add_argument(
        "--curvature",
        choices=("constant", "gauss_newton", "hutchinson"),
        help="of sam: where h of its score |g²/h| is from (by default constant)",
    )
    sub.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting of the selector, such as rank=4 or burn_in=50; as often as you like",
    )
    sub.add_argument("--seed", type=int, default=0, help="of S, the head's start, the order and the selection")
