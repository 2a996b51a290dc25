"""A study: problems × algorithms × seeds → a tidy table, computed cell by cell and resumable."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from stability import problems
from stability.bounds.measured import Constants, estimate_constants, measured_bounds
from stability.checks import check_fraction, check_kind, check_whole
from stability.errors import StabilityError, UsageError, described
from stability.leave_one_out import StabilityEstimate, measure
from stability.leave_one_out.estimators import Alone, Auto, Estimator, Exact, Sampled
from stability.leave_one_out.notebook import table_html
from stability.machine import cores, device_name, free_memory, resolve_device, software
from stability.problems import Problem
from stability.selectors import Selector
from stability.selectors.code import code_of
from stability.selectors.naming import LOCAL, imported
from stability.studies.pace import Pace, Progress
from stability.studies.restated import stability_columns
from stability.studies.results import BOUNDS, CellStatus, Failure, StudyResults
from stability.studies.store import Store, data_of, difference, how_of, key, reserved
from stability.training import Algorithm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NUMERICS", "Cell", "Study", "cell_identity", "reusable", "run", "run_cell"]

NUMERICS = 1
"""The version of the numbers that the toolkit computes, part of every identity. It is raised with each change of the program that
changes a stored number by more than rounding, and with no other: results of one version are comparable."""


@dataclass(frozen=True)
class Study:
    """What to measure. Everything here is identity: stored results of one study never mix with another's.

    Attributes:
        name: the study's name.
        problem: the name of a problem, or the path of texts; each seed draws its own S. A tuple of several: every algorithm and
            seed is measured on each.
        algorithms: what is measured, each with its selector; their own seeds are replaced.
        seeds: of S, of the head's start, of the order of the examples and of the selection alike.
        problem_settings: further settings of every problem, such as n.
        check_replicas: take the curvature that bounds need at A(S) and, for so many i, on Sⁱ at A(S) and at A(Sⁱ) too
            (:func:`stability.bounds.measured.estimate_constants`). None measures no constants and no bounds: their eigenvalues
            cost a large model far more than its training.
        delta: δ of the bounds on the expected loss, in (0, 1).
        estimator: how stability is estimated; one of :mod:`stability.leave_one_out.estimators`.
        samples: seeds of S alone. Each S has as many seeds of the algorithm as there are in ``seeds``, and these are its own (0 and
            1 for the first S are 2 and 3 for the second). The shares of S, seed and retrainings in the variance can then be told
            apart (:func:`stability.leave_one_out.statistics.variance_shares`). None: each seed draws its own S.
        measured_seeds: stability is measured with the first so many seeds only. With the others A(S) is trained alone, for its
            losses and metrics. None: stability is measured with all.

    Raises:
        UsageError: a number out of range, no algorithm or seed, an algorithm twice, two problems of one name, both
            ``measured_seeds`` and ``samples``, or an estimator with a budget of seconds.

    Example:
        >>> from stability import FineTuning
        >>> from stability.leave_one_out.estimators import Sampled
        >>> from stability.selectors import SAM, BitFit
        >>> algorithms = (FineTuning(BitFit()), FineTuning(SAM(sparsity=0.05)))
        >>> study = Study("mine", "digits", algorithms, seeds=(0, 1, 2), problem_settings={"n": 50}, estimator=Sampled(5))
        >>> len(study.cells())
        6
    """

    name: str
    problem: str | tuple[str, ...]
    algorithms: tuple[Algorithm, ...]
    seeds: tuple[int, ...]
    _: KW_ONLY
    problem_settings: Mapping[str, Any] = field(default_factory=dict)
    check_replicas: int | None = 0
    delta: float = 0.1
    estimator: Estimator = Auto()  # noqa: RUF009
    samples: tuple[int, ...] | None = None
    measured_seeds: int | None = None

    def __post_init__(self) -> None:
        check_kind((str, tuple), "the name of a problem, the path of texts, or a tuple of them", problem=self.problem)
        check_kind((tuple, list), "a tuple, such as (FineTuning(selector),)", algorithms=self.algorithms)
        check_kind(Iterable, "whole numbers, such as (0, 1, 2)", seeds=self.seeds)
        for algorithm in self.algorithms:
            check_kind(Algorithm, "an algorithm, such as FineTuning(selector)", algorithm=algorithm)
        check_kind(Estimator, "one of stability.estimators, such as Assisted(retrainings=10)", estimator=self.estimator)
        if self.estimator.budget is not None:
            raise UsageError(
                f"budget = {self.estimator.budget:g} s: what a study stores must not depend on how fast a machine is; limit "
                "retrainings instead"
            )
        defaults = {problems.training_defaults(name) for name in self.problems}
        made = [tuple(algorithm.with_defaults(one) for algorithm in self.algorithms) for one in defaults]
        if any(other != made[0] for other in made):
            raise UsageError(
                f"study {self.name!r}: {', '.join(self.problems)} are trained in different ways by default: give steps, "
                "batch_size, learning_rate and schedule"
            )
        object.__setattr__(self, "algorithms", made[0])
        if self.measured_seeds is not None:
            check_whole(0, measured_seeds=self.measured_seeds)
            if self.measured_seeds > len(self.seeds):
                raise UsageError(f"measured_seeds = {self.measured_seeds} of {len(self.seeds)} seeds: use at most as many")
            if self.samples is not None:
                raise UsageError("measured_seeds and samples: shares of the variance need every cell measured; leave one out")
        if self.check_replicas is not None:
            check_whole(0, check_replicas=self.check_replicas)
        check_fraction(delta=self.delta)
        if self.check_replicas is not None and self.measured_seeds != 0 and self.estimator.most(2) == 0:
            raise UsageError(
                f"check_replicas = {self.check_replicas}: bounds are measured at left-out replicas, and {self.estimator.name} "
                "trains none; use check_replicas=None, or another estimator"
            )
        # Seeds may come as a list or as an array of numpy; a frozen study holds tuples of plain numbers.
        for name, seeds in (("seeds", self.seeds), ("samples", self.samples)):
            for seed in () if seeds is None else seeds:
                check_whole(0, seed=seed)
            if seeds is not None and len(set(map(int, seeds))) < len(seeds):
                raise UsageError(f"{name} = {list(map(int, seeds))}: one occurs twice, and would count as two; name each once")
            object.__setattr__(self, name, None if seeds is None else tuple(map(int, seeds)))
        if not self.algorithms or not self.seeds:
            raise UsageError(
                f"study {self.name!r} has {len(self.algorithms)} algorithms and {len(self.seeds)} seeds: give at least 1"
            )
        if len(set(names := [problems.short_name(name) for name in self.problems])) < len(names):
            raise UsageError(f"study {self.name!r}: two problems have one name among {', '.join(names)}; rename a folder")
        own = [key(algorithm.settings()) for algorithm in self.algorithms]
        if twice := [algorithm.name for algorithm, kind in zip(self.algorithms, own, strict=True) if own.count(kind) > 1]:
            raise UsageError(f"study {self.name!r} has {twice[0]} with the same settings twice: leave one out")

        kinds: dict[str, Any] = {}
        for algorithm in self.algorithms:
            kind = algorithm.selector.made_of
            if kinds.setdefault(algorithm.name, kind) is not kind:
                raise UsageError(
                    f"two different selectors are called {algorithm.name!r}: no figure could tell them apart, rename one"
                )

    @property
    def problems(self) -> tuple[str, ...]:
        """The names of all problems, of one too."""
        return (self.problem,) if isinstance(self.problem, str) else self.problem

    def _repr_html_(self) -> str:
        from stability.studies.comparison import labels  # which is made of studies

        p = [one.asked_sparsity for one in self.algorithms]
        methods = pd.DataFrame(
            {
                "method": list(labels(self).values()),
                "p": ["by its rule" if one is None else f"{one:g}" for one in p],
                "training": (trained := [one.describe() for one in self.algorithms]),
            }
        )
        drawn = "" if self.samples is None else f" on each of {len(self.samples)} training sets"
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        what = f"{len(self.cells())} cells: {len(self.algorithms)} methods, {seeds}{drawn}, on {', '.join(self.problems)}"
        how = f"{self.estimator.name}, {'no bounds' if self.check_replicas is None else 'with bounds'}"
        if len(set(trained)) == 1:
            methods, how = methods.drop(columns="training"), f"{how}; {trained[0]}"
        return f"<p><b>Study {escape(self.name)}</b>: {escape(what)}; {escape(how)}</p>{table_html(methods)}"

    def identity(self) -> dict[str, Any]:
        """Everything that defines the study, as plain values.

        Returns:
            A dictionary that JSON can hold. Data and weights are in it by their content, wherever they lie; methods of the user's
            own by their code.

        Raises:
            UsageError: data or a model that cannot be read.
        """
        each = {problems.short_name(name): problems.identity(name, self.problem_settings) for name in self.problems}
        return {
            "study": self.name,
            "numerics": NUMERICS,
            **(next(iter(each.values())) if isinstance(self.problem, str) else {"problems": each}),
            "algorithms": [algorithm.settings() for algorithm in self.algorithms],
            "seeds": list(self.seeds),
            "check_replicas": self.check_replicas,
            "delta": self.delta,
            **_estimator_identity(self.estimator),
            "removed": self.problem_settings.get("removed", 0.0),
            **({} if self.samples is None else {"samples": list(self.samples)}),
            **({} if self.measured_seeds is None else {"measured_seeds": self.measured_seeds}),
        }

    def with_selectors(self, *selectors: Selector) -> Study:
        """The same study with further selectors, trained as its last algorithm trains; those that it has already are left out.

        Args:
            selectors: at least one that is new.

        Returns:
            A study whose name has the names of what was added.

        Raises:
            UsageError: no selector, none that is new, or two different ones of one name.

        Example:
            >>> from stability import FineTuning
            >>> from stability.selectors import SAM, BitFit
            >>> study = Study("mine", "digits", (FineTuning(BitFit()),), seeds=(0,))
            >>> study.with_selectors(SAM(0.1), SAM(0.2)).name
            'mine+sam'
        """
        if not selectors:
            raise UsageError("there is no selector to add: give at least one")
        known = {key(algorithm.settings()) for algorithm in self.algorithms}
        added = {key(made.settings()): made for made in (replace(self.algorithms[-1], selector=mine) for mine in selectors)}
        new = [algorithm for name, algorithm in added.items() if name not in known]
        if not new:
            raise UsageError(f"study {self.name!r} has {', '.join(mine.name for mine in selectors)} with these settings already")
        names = dict.fromkeys(algorithm.name for algorithm in new)
        return replace(self, name="+".join([self.name, *names]), algorithms=(*self.algorithms, *new))

    def plot(self) -> Figure:
        """Draw what will be measured: each method at each p (:func:`stability.plotting.planned`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.planned(self))

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that an interrupted study holds whole curves and tables."""
        if self.samples is None:
            measured = self.seeds[: self.measured_seeds]
            return [
                Cell(replace(algorithm, seed=seed), None, problem, seed in measured)
                for seed in self.seeds
                for problem in self.problems
                for algorithm in self.algorithms
            ]
        # Each S has seeds of its own: a head's start common to all S would be mistaken for what they have in common.
        apart = max(self.seeds) + 1
        return [
            Cell(replace(algorithm, seed=seed + place * apart), sample, problem)
            for place, sample in enumerate(self.samples)
            for seed in self.seeds
            for problem in self.problems
            for algorithm in self.algorithms
        ]


@dataclass(frozen=True)
class Cell:
    """One algorithm with its seed, on one S.

    Attributes:
        algorithm: what is trained, with its seed.
        sample: the seed of S; None where it is the algorithm's.
        problem: which of the study's problems.
        measured: whether stability is measured, and not the losses and metrics of A(S) alone.
    """

    algorithm: Algorithm
    sample: int | None
    problem: str
    measured: bool = True


def _estimator_identity(estimator: Estimator) -> dict[str, Any]:
    """What the identity says of the estimator. The two plain ones are in it as they were before there were others."""
    if type(estimator) is Exact:
        return {"retrainings": None}
    if type(estimator) is Sampled and estimator.retrainings is not None and estimator.tolerance is None:
        return {"retrainings": estimator.retrainings}
    return {"retrainings": None, "estimator": estimator.settings()}


def cell_identity(study: Study, cell: Cell, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What defines a cell, as plain values: everything that changes its result.

    Args:
        study: the study.
        cell: one of its cells.
        identity: what ``study.identity()`` gives, which reads all data; by default it is asked.

    Returns:
        A dictionary that JSON can hold; the store finds a finished cell by it. ``data`` and ``how`` are digests of the problem's
        identity and of how it is measured, so that no cell passes for one of other data.
    """
    whole = study.identity() if identity is None else identity
    mine, task, data = cell.algorithm, problems.short_name(cell.problem), data_of(whole)
    return {
        "method": mine.name,
        "asked_sparsity": mine.asked_sparsity,
        "algorithm": mine.settings(),
        "seed": mine.seed,
        "data": data[None if None in data else task],
        "how": how_of(whole),
        **({} if cell.sample is None else {"sample": cell.sample}),
        **({} if None in data else {"task": task}),
        **({} if cell.measured else {"measured": False}),
    }


class Expected(NamedTuple):
    """What a study found when it began, and each cell must find again: it may run for days.

    Attributes:
        data: a digest of the problem's identity.
        code: digests of the user's own code, without values that may change while it runs.
    """

    data: str
    code: tuple[str | None, str | None]

    @classmethod
    def of(cls, study: Study, cell: Cell, problem: Problem) -> Expected:
        """What there is now.

        Args:
            study: the study.
            cell: one of its cells.
            problem: the cell's.
        """
        data = data_of(problems.identity(cell.problem, study.problem_settings, problem))
        return cls(data[None], cls.code_of(cell))

    @staticmethod
    def code_of(cell: Cell) -> tuple[str | None, str | None]:
        """The code of a cell's algorithm and of its selector."""
        return code_of(type(cell.algorithm), state=False), cell.algorithm.selector.code(state=False)


def run_cell(
    study: Study, cell: Cell, device: str = "cpu", memory_budget: int | None = None, expected: Expected | None = None
) -> dict[str, Any]:
    """Train, leave out, measure, bound: one row of the study as plain values.

    Args:
        study: the study.
        cell: one of its cells.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_budget: bytes that one block of work may take; None: a part of what is free.
        expected: the data and the code under which the row will be kept; they are compared with those that are found.

    Returns:
        What was measured, by the names of the table's columns. Where something failed, its kind and its reason instead
        (:class:`stability.studies.results.Failure`), whatever it was: one cell never ends the others.
    """
    began = time.perf_counter()
    try:
        record = {"status": CellStatus.OK, **_where(cell, device), **_measured(study, cell, device, memory_budget, expected)}
    except (Exception, SystemExit) as error:
        record = _failed(cell, device, Failure.of(error), str(error) if isinstance(error, StabilityError) else described(error))
    return {**record, "cell_seconds": time.perf_counter() - began}


def _failed(cell: Cell, device: str, kind: Failure, reason: str) -> dict[str, Any]:
    where = _where(cell, device)
    return {"status": CellStatus.FAILED, **where, "failure": kind, "reason": reason, "cell_seconds": 0.0}


def _where(cell: Cell, device: str) -> dict[str, str]:
    """What every record says, however the measurement ended."""
    place = device_name(resolve_device(device))
    return {"task": problems.short_name(cell.problem), "software": software(), "device": place}


def _measured(study: Study, cell: Cell, device: str, memory_budget: int | None, expected: Expected | None) -> dict[str, Any]:
    algorithm = cell.algorithm
    with suppress(Exception):  # whatever is said by an object that cannot be copied, such as a lock
        algorithm = copy.deepcopy(algorithm)  # a selector may keep something of its last run: each cell begins alike, in any order
    drawn = algorithm.seed if cell.sample is None else cell.sample
    problem = problems.load(cell.problem, **{**study.problem_settings, "seed": drawn})
    if expected is not None and expected != (found := Expected.of(study, cell, problem)):
        what = (
            f"the code of {cell.algorithm.name!r}" if expected.data == found.data else f"the data or the model of {cell.problem!r}"
        )
        raise StabilityError(f"{what} changed while the study ran: start it again, so that all its cells are of one version")
    how: dict[str, Any] = {"device": device, "memory_budget": memory_budget}
    how |= {"estimator": study.estimator if cell.measured else Alone()}
    estimate = measure(problem, algorithm, **how)
    row = {**_row(estimate), **dict.fromkeys(_MEASURED)}
    if study.check_replicas is None or not cell.measured:
        return row
    constants = estimate_constants(estimate, study.check_replicas, memory_budget)
    return row | _constants(constants) | _bounds(estimate, constants, study.delta)


_CONSTANTS = ("lipschitz", "tuned_lipschitz", "gradient_norm", "tuned_gradient_norm", "loss_bound", "replicas_checked")
_EIGENVALUES = ("least_eigenvalue", "tuned_least_eigenvalue")
_MEASURED = (
    *_CONSTANTS,
    *(f"{name}{part}" for name in _EIGENVALUES for part in ("", "_residual")),
    *(f"{name}{part}" for name in BOUNDS for part in ("", "_state")),
)
"""Columns of the constants and bounds, None where they were not measured."""


_HISTORY = 5000  # steps of the loss that are kept, as many as the paper's figure of it shows


def _row(estimate: StabilityEstimate) -> dict[str, Any]:
    replicas, problem = estimate.replicas, estimate.replicas.problem
    plain = estimate.to_dict()
    row: dict[str, Any] = {
        "sparsity": replicas.algorithm.sparsity_for(replicas.masks[0]),
        **stability_columns(estimate.pointwise, estimate.diagnostics, estimate.status),
        "estimator_reason": estimate.reason or None,
        "hypothesis_stability": plain["hypothesis"]["value"],
        "metric": problem.metric_name,
        "loss_unit": problem.loss_unit,
        **{
            name: plain[name]
            for name in ("maximum", "noise_floor", "estimator", "n", "retrainings", "failed", "tunable", "total", "head", "threads")
        },
    }
    for split, examples in (("train", problem.train), ("test", problem.test)):
        logits = replicas.logits(examples, slice(0, 1))[0]
        row[f"{split}_loss"] = problem.loss(logits, examples.labels).double().mean().item()
        row[f"{split}_metric"] = problem.metric(logits, examples.labels)
    if len(replicas.batch_losses):
        losses = replicas.batch_losses[:_HISTORY, 0]
        losses = losses[~losses.isnan()]  # as many as there were steps before it ended
        changes, relaxed = replicas.mask_changes[: len(losses), 0], replicas.relaxed[: len(losses)]
        row["history"] = {
            "loss": [float(f"{loss:.4g}") for loss in losses.tolist()],
            "mask_changes": {str(step): int(count) for step, count in enumerate(changes.tolist()) if count},
            "relaxed": torch.nonzero(relaxed).squeeze(1).tolist(),
        }
        row["kept_step"] = int(replicas.kept_step[0])
    row |= {"gap": row["test_loss"] - row["train_loss"], "distance": plain["distance"]}
    return row | {"seconds": estimate.seconds, "per_example": plain["per_example"], "prediction": plain["prediction"]}


def _constants(constants: Constants) -> dict[str, Any]:
    """The constants as they stand, without the eigenvalues that did not converge."""
    row = {name: getattr(constants, name) for name in _CONSTANTS}
    for name in _EIGENVALUES:
        if (eigenvalue := getattr(constants, name)).converged:
            row |= {name: eigenvalue.value, f"{name}_residual": eigenvalue.residual}
    return row


def _bounds(estimate: StabilityEstimate, constants: Constants, delta: float) -> dict[str, Any]:
    """Of each bound its value (None where infinite) and state; and which assumptions of which failed."""
    row: dict[str, Any] = {}
    failed = {}
    for name, bound in measured_bounds(estimate, constants, delta).items():
        row |= {name: bound.to_dict()["value"], f"{name}_state": bound.state.value}
        failed[name] = [assumption.name for assumption in bound.assumptions if assumption.held is False]
    return row | {"failed_assumptions": failed, "notes": list(constants.notes)}


def run(
    study: Study,
    store: str | PathLike[str],
    *,
    reuse: str | PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_start: Callable[[Progress], object] = lambda progress: None,
    on_cell: Callable[[Progress], object] = lambda progress: None,
) -> StudyResults:
    """Compute the cells that ``store`` lacks, several at once on the CPU, and return all results.

    Each finished cell is written at once. Stopping (Ctrl-C, kill) loses only the cells under way; calling again goes on.

    Args:
        study: what to measure.
        store: the SQLite file, made where it is missing.
        reuse: the file of another study that measured the same way: its cells that are this study's too are taken over.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: processes of one thread each; by default one a core on the CPU, and one on CUDA or where a selector's
            function was typed into a notebook, which no other process knows. One worker runs in this process, with the
            threads it has.
        on_start: called once before the first cell, with how far the study is.
        on_cell: called after each cell, with the same.

    Returns:
        The finished cells of the store, those of earlier runs among them.

    Raises:
        StabilityError: the store holds another study, is damaged, or cannot be written; or ``reuse`` measured otherwise.
        UsageError: a setting out of range, or CUDA asked for and absent.

    Example:
        >>> import tempfile
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit
        >>> study = Study("mine", "digits", (FineTuning(BitFit(), steps=2),), (0,), problem_settings={"n": 20}, check_replicas=None)
        >>> store = f"{tempfile.mkdtemp()}/mine.sqlite"
        >>> results = run(study, store, device="cpu", workers=1)
        >>> bool(results.table["stability"][0] > 0)
        True
    """
    place = resolve_device(device)
    check_whole(1, workers=1 if workers is None else workers)
    reused = [] if reuse is None else reusable(Store(reuse), study)
    with reserved(store):
        identity = study.identity()
        ledger = Store(store, identity)
        for one, record in reused:
            ledger.add(one, record)
        done = ledger.finished()
        cells = [(cell, cell_identity(study, cell, identity)) for cell in study.cells()]
        data = {cell.problem: mine["data"] for cell, mine in cells}
        waiting = [
            _Work(cell, mine, Expected(data[cell.problem], Expected.code_of(cell))) for cell, mine in cells if key(mine) not in done
        ]
        progress = Progress(len(cells) - len(waiting), len(cells))
        on_start(progress)
        here = next((cell.algorithm.name for cell, *_ in waiting if _only_here(cell.algorithm)), None)
        alone = place.type != "cpu" or here is not None
        count = min(workers or (1 if alone else cores()), max(1, len(waiting)))
        if here is not None and count > 1:
            raise UsageError(
                f"workers = {workers}: no other process can import selector {here!r}; use workers=1, or move its code into a module"
            )
        pace = Pace((one.kind for one in waiting), count)
        kinds = {key(one.identity): one.kind for one in waiting}
        for mine, record in _compute(study, waiting, str(place), count):
            ledger.add(mine, record, passing=record.get("failure", Failure.METHOD) != Failure.METHOD)
            failed = progress.failed + (record["status"] == CellStatus.FAILED)
            pace.finished(kinds[key(mine)], None if record["status"] == CellStatus.FAILED else record["cell_seconds"])
            progress = Progress(progress.done + 1, progress.total, failed, pace.seconds_left())
            on_cell(progress)
    return StudyResults.read(store)


def reusable(other: Store, study: Study) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The finished cells of another store that belong to a study.

    Args:
        other: the store of a study that measured the same way.
        study: the study that could take its cells over.

    Returns:
        Identity and record of each such cell.

    Raises:
        StabilityError: ``other`` is of an older version; or none of its cells belongs to the study, because it was measured in
            another way: the setting is named.
    """
    other.check_complete("its cells cannot be reused")
    own = study.identity()
    wanted = {key(cell_identity(study, cell, own)) for cell in study.cells()}
    shared = wanted & other.finished()
    found = [(identity, record) for identity, record in other.cells() if key(identity) in shared]
    if not found and other.finished():
        theirs, mine = _comparable(other.identity), _comparable(own)
        for name in {**mine, **theirs}:
            one_has_it = name.startswith("problem ") and not (name in theirs and name in mine)
            if not one_has_it and difference({name: theirs.get(name)}, {name: mine.get(name)}) is not None:
                raise StabilityError(
                    f"{other.path} was measured with {name} = {theirs.get(name)}, this study with {mine.get(name)}: its cells "
                    "cannot be reused"
                )
    return found


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What two studies that share cells have in common, with each of several problems as an entry of its own."""
    free = {"study", "algorithms", "seeds", "samples", "measured_seeds", "removed", "problems"}  # a larger study has more of them
    several = {f"problem {name}": one for name, one in identity.get("problems", {}).items()}
    return {name: one for name, one in identity.items() if name not in free} | several


def _only_here(algorithm: Algorithm) -> bool:
    """Whether no other process could import its code: it is inside a function, or in an interactive session."""
    try:
        written = pickle.dumps(algorithm)
    except Exception:  # whatever is said by an object that cannot be pickled
        return True
    return b"__main__" in written and not hasattr(sys.modules["__main__"], "__file__")


class _Work(NamedTuple):
    """A cell, its identity, and what it must find."""

    cell: Cell
    identity: dict[str, Any]
    expected: Expected

    @property
    def kind(self) -> tuple[str, str, bool]:
        """The same for cells that take equally long: those that differ by their seed alone."""
        return self.cell.problem, key(self.identity["algorithm"]), self.cell.measured


def _compute(study: Study, work: list[_Work], device: str, workers: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The identity and the record of each cell, as they are finished."""
    if workers == 1:
        for cell, identity, expected in work:
            yield identity, run_cell(study, cell, device, expected=expected)
        return
    waiting = deque(work)
    while waiting:
        lost, _ = yield from _side_by_side(study, waiting, device, workers)
        workers = max(1, workers // 2)
        for one in lost:  # one of them may be what no process survives
            again, code = yield from _side_by_side(study, deque([one]), device, 1, first=False)
            if again:
                yield one.identity, _ended(one.cell, code, device)


def _ended(cell: Cell, code: int, device: str) -> dict[str, Any]:
    """The record of a cell whose process ended with this exit code, or was killed by this signal, below 0."""
    if code == -signal.SIGKILL:
        why, kind = "was killed, most likely by the system because memory ran out", Failure.MACHINE
    else:
        why = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended itself with exit code {code}"
        kind = Failure.ERROR
    return _failed(cell, device, kind, f"the process that measured it {why}")


def _side_by_side(
    study: Study, waiting: deque[_Work], device: str, workers: int, first: bool = True
) -> Generator[tuple[dict[str, Any], dict[str, Any]], None, tuple[list[_Work], int]]:
    """Compute what is waiting in worker processes, until it is done or one of them ends.

    Returns:
        What was lost with it, and its exit code.
    """
    # Forking a process that has used its thread pools can hang, so each worker starts afresh.
    context = multiprocessing.context.SpawnContext()
    started: list[multiprocessing.process.BaseProcess] = []

    def start(*how: Any, **more: Any) -> multiprocessing.process.BaseProcess:
        started.append(multiprocessing.context.SpawnProcess(*how, **more))
        return started[-1]

    context.Process = start  # type: ignore[misc, assignment] # so that these processes alone are ended, and no others
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(dict(LOCAL),))
    running: dict[Future[dict[str, Any]], _Work] = {}
    budget = free_memory(torch.device(device)) // (2 * workers)
    try:
        while True:
            while waiting and len(running) < workers:
                one = waiting.popleft()
                running[executor.submit(run_cell, study, one.cell, device, budget, one.expected)] = one
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running[future].identity, future.result()
                del running[future]
                first = False
        executor.shutdown()
    except BrokenProcessPool as error:
        executor.shutdown()
        # The executor ends the others by SIGTERM.
        codes = [code for one in started if (code := one.exitcode) not in (0, None, -signal.SIGTERM)] or [-signal.SIGTERM]
        if first and max(codes) > 0:
            raise StabilityError(
                f"a worker process ended at once, with exit code {max(codes)}: in a script put the call under "
                "if __name__ == '__main__':, or use workers=1"
            ) from error
        return list(running.values()), int(codes[0] or 0)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in started:
            process.terminate()
        raise
    return [], 0


def _start_worker(modules: Mapping[str, Path]) -> None:
    """One thread a worker; the parent alone hears Ctrl-C; a worker whose parent is gone ends too; it knows the user's modules."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    for module, folder in modules.items():
        imported(module, folder, "a study")
