"""``stability loo``: the leave-one-out stability of one method."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter

from stability.bounds import estimate_constants, measured_bounds
from stability.bounds.base import check_delta
from stability.checks import check_whole, those_given
from stability.cli.figures import check_writable
from stability.cli.options import (
    BOUNDS,
    ESTIMATOR,
    MACHINE,
    METHOD,
    OUTPUT,
    Data,
    EstimatorOptions,
    Folder,
    Machine,
    Method,
    Model,
    Objective,
    OneProblem,
    Training,
    load,
    problem_settings,
)
from stability.cli.parsing import WHOLE, Whole, given, options, words
from stability.cli.printing import plain, print_json
from stability.errors import UsageError
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Estimator, Sampled
from stability.leave_one_out.measuring import measure
from stability.leave_one_out.perturbations import FlipLabel, LeaveGroupOut, LeaveOneOut, Perturbation, RemoveFraction, ReplaceOne
from stability.leave_one_out.wording import carriers, doubts
from stability.problems import PROBLEMS
from stability.reports.terminal import metrics_of, settling, show_bounds, show_estimate, show_examples
from stability.training.progress import stages

__all__ = ["loo"]


@options(METHOD)
@dataclass(frozen=True, kw_only=True)
class Kept(Method):
    """Which parameters may change.

    Attributes:
        keep_mask: Keep the mask of S, instead of selecting again without the example that is left out.
    """

    keep_mask: bool = False


class Time(float):
    """A time in seconds, as a command takes it."""


def _seconds(_: Any, tokens: Sequence[Any]) -> Time:
    """``90``, ``10m`` or ``1h30m``."""
    text = tokens[0].value
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s)?|{number}", text)
    if not found or not text:
        raise ValueError(f"{text!r} is no time: use 90s, 10m or 1h30m")
    hours, minutes, seconds, plain = map(float, found.groups(default="0"))
    return Time(3600 * hours + 60 * minutes + seconds + plain)


@options(ESTIMATOR, Sampled)
@dataclass(frozen=True, kw_only=True)
class Budgeted(EstimatorOptions):
    """How stability is estimated.

    Attributes:
        budget: Take at most this time, such as 90s, 10m or 1h30m; what would not be finished in time is not begun.
    """

    budget: Annotated[Time | None, Parameter(converter=_seconds)] = None


@options(ESTIMATOR)
@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """What is done to the training set.

    Attributes:
        group: Leave out whole groups: this column of the texts says what belongs together, such as the annotator.
        perturbation: What is done instead of leaving one example out: replace-one puts a held-out example in its place,
            flip-label gives it another label, remove-fraction removes many at once.
        fraction: With remove-fraction: how many of the examples are removed at once; by default 0.1.
    """

    group: str | None = None
    perturbation: Literal["leave-one-out", "replace-one", "flip-label", "remove-fraction"] | None = None
    fraction: float | None = None

    @property
    def option(self) -> str:
        """The option that asks for the perturbation."""
        return "--group" if self.group is not None else f"--perturbation {self.perturbation}"

    def made(self) -> Perturbation:
        """The perturbation that the options ask for."""
        if self.group is not None and self.perturbation is not None:
            raise UsageError(f"--group and --perturbation {self.perturbation} are two different questions: give one of them")
        if self.fraction is not None and self.perturbation != RemoveFraction.name:
            raise UsageError("--fraction belongs to --perturbation remove-fraction: add it, or leave --fraction out")
        if self.group is not None:
            return LeaveGroupOut()
        if self.perturbation == RemoveFraction.name:
            return RemoveFraction() if self.fraction is None else RemoveFraction(self.fraction)
        kinds = {kind.name: kind for kind in (LeaveOneOut, ReplaceOne, FlipLabel)}
        return kinds[self.perturbation or LeaveOneOut.name]()


@options(BOUNDS)
@dataclass(frozen=True, kw_only=True)
class BoundsOptions:
    """Which bounds are measured.

    Attributes:
        bounds: Measure the constants as well, and print every bound.
        check_replicas: With --bounds: take the curvature at so many of the left-out models too; by default 2.
        delta: With --bounds: δ, the probability with which those on the expected loss may fail; by default 0.1.
    """

    bounds: bool = False
    check_replicas: Whole = None
    delta: float | None = None

    def checked(self, estimator: Estimator) -> tuple[int, float]:
        """The replicas to check and δ."""
        if self.bounds and estimator.most(2) == 0:
            raise UsageError("--bounds are measured at left-out replicas, and --estimator approximate trains none: use assisted")
        if not self.bounds and (self.check_replicas is not None or self.delta is not None):
            raise UsageError("--check-replicas and --delta belong to --bounds: add it, or leave them out")
        replicas, delta = 2 if self.check_replicas is None else self.check_replicas, 0.1 if self.delta is None else self.delta
        check_delta(delta)
        check_whole(0, check_replicas=replicas)
        return replicas, delta


@options(OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output(Folder):
    """What is printed and drawn.

    Attributes:
        examples: Name so many examples: those that carry most of the stability; 0 for none.
        verbose: Print diagnostics too: the noise floor, what the prediction was worth, and more.
        figures: Draw the examples' differences, and those that carry most of them, into this folder.
        json: Print one JSON value on standard output and nothing else.
    """

    examples: Annotated[int, WHOLE] = 5
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"))] = False
    json: bool = False


@options(MACHINE)
@dataclass(frozen=True, kw_only=True)
class Retrainers(Machine):
    """Where the work is done.

    Attributes:
        threads: Threads of this process, at most: a small model takes one. By default as many as torch chooses.
        workers: Divide the retrainings among so many processes of one thread each; by default this process does all. With Ray, the
            most portions at once; by default as many as the cluster has CPUs or GPUs.
        executor: What retrains: processes of this machine (local), or tasks of Ray (ray).
        address: HOST:PORT of a cluster of Ray, or auto for the one that runs on this machine; by default RAY_ADDRESS, and without
            that variable a cluster of this machine alone.
    """

    threads: Whole = None
    workers: Whole = None
    executor: Literal["local", "ray"] | None = None
    address: str | None = None


def loo(
    *,
    which: OneProblem = OneProblem(),
    data: Data = Data(),
    model: Model = Model(),
    method: Kept,
    training: Training = Training(),
    objective: Objective = Objective(),
    estimation: Budgeted = Budgeted(),
    perturbed: Perturbed = Perturbed(),
    bounding: BoundsOptions = BoundsOptions(),
    output: Output = Output(),
    machine: Retrainers = Retrainers(),
) -> None:
    """Measure the leave-one-out stability of one method."""
    if machine.threads is not None:
        check_whole(1, threads=machine.threads)
        torch.set_num_threads(machine.threads)
    check_whole(0, examples=output.examples)
    if output.figures is not None:
        check_writable(output.figures)
    estimator = estimation.made()
    perturbation = perturbed.made()
    replicas_to_check, delta = bounding.checked(estimator)
    if bounding.bounds and not isinstance(perturbation, LeaveOneOut):
        raise UsageError(
            f"--bounds: the bounds are about leaving one example out, and {perturbed.option} asks for something else: give one of "
            "them"
        )
    settings = problem_settings(data, model) | those_given(group=perturbed.group)
    if perturbed.group is not None and which.problem in PROBLEMS:
        raise UsageError(
            f"--group {perturbed.group}: it names a column of your texts, and problem {which.problem!r} has no columns: leave it "
            "out, or give groups in Python, LeaveGroupOut(groups)"
        )
    problem = load(which.problem, seed=which.seed, **settings)
    how: dict[str, Any] = {"estimator": estimator, "reselect": not method.keep_mask, **given(machine, "threads")}
    how |= {"perturbation": perturbation, "test_examples": estimation.test_examples}
    more: dict[str, Any] = {}
    with redirect_stdout(sys.stderr) if output.json else nullcontext(), stages(True) as told:
        # Standard output is kept free of what a selector of the user's own may print.
        algorithm = objective.made(method.made(), training, which.seed).with_defaults(problem.training)
        estimate = measure(problem, algorithm, progress=told, **how)
        told.begin("evaluating")
        metrics, width = metrics_of(problem, estimate.replicas), get_terminal_size((100, 24)).columns
        if bounding.bounds:
            told.begin("measuring the constants of the bounds")
            constants = estimate_constants(estimate, replicas_to_check)
            found = measured_bounds(estimate, constants, delta)
            more = {"bounds": {name: bound.to_dict() for name, bound in found.items()}}
            more["notes"] = [*estimate.notes, *constants.notes]
    if output.examples and (rows := carriers(estimate, output.examples)):
        more["examples"] = rows
    if output.json:
        what = {"problem": problem.name, "problem_settings": dict(problem.settings), "reselect": not method.keep_mask}
        what |= {"algorithm": {**algorithm.settings(), "seed": algorithm.seed}, "asked": estimator.settings()}
        also = {"test_metric": {"name": problem.metric_name, "value": metrics["test"]}, "metrics": metrics}
        also |= {"data_notes": list(problem.notes), "inconclusive": list(doubts(estimate))}
        print_json({**what, **plain(estimate.to_dict()), **plain({**also, **more})})
    else:
        show_estimate(problem, algorithm, estimate, metrics, verbose=output.verbose, width=width)
        if "examples" in more:
            show_examples(more["examples"], estimate.units, width)
        if bounding.bounds:
            print(f"\nBounds from the constants measured on these runs (δ = {delta:g} for the expected loss):")
            show_bounds(found, constants.notes)
        if settled := settling(estimate, words):
            print("", fill(settled[0], width), *settled[1:], sep="\n")
    if output.figures is not None:
        _draw(estimate, output.figures, quiet=output.json)


def _draw(estimate: StabilityEstimate, folder: Path, *, quiet: bool) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from stability import plotting

    name, figures = plotting.prefix(estimate), {}
    for kind, draw in (("differences", plotting.differences), ("influential", plotting.influential)):
        try:
            figures[kind] = draw(estimate)
        except plotting.NothingToDrawError as error:
            print(f"note: no figure {kind}: {error}", file=sys.stderr)
    for path in plotting.save(figures, folder, name, name):
        if not quiet:
            print(path)
