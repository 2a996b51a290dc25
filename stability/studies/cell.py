"""One cell of a study, measured: a row as plain values; and the job that measures it in whatever process."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from stability import problems
from stability.bounds.measured import Constants, estimate_constants, measured_bounds
from stability.errors import StabilityError, UsageError, described
from stability.leave_one_out import StabilityEstimate, measure
from stability.leave_one_out.estimators import Alone
from stability.machine import device_name, resolve_device, software
from stability.problems import Problem
from stability.problems.metrics import METRICS, constant
from stability.selectors.code import code_of
from stability.studies.identity import data_of, key
from stability.studies.restated import stability_columns
from stability.studies.results import BOUNDS, CellStatus, Failure
from stability.studies.study import Cell, Study
from stability.workers.pools import Job, Place, Shared

__all__ = ["Expected", "Work", "failed", "run_cell"]


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


@dataclass(frozen=True, eq=False)
class Work(Job):
    """A cell that is to be computed.

    Attributes:
        study: whose it is.
        cell: the cell.
        identity: what defines it, as plain values.
        expected: the data and the code that it must find.
        workers: among so many its retrainings are divided.
        executor: what those are, ``local`` or ``ray``.
        device: theirs, ``cuda`` for all visible GPUs in turn; None: that of the place.
    """

    study: Study
    cell: Cell
    identity: dict[str, Any]
    expected: Expected
    _: KW_ONLY
    workers: int = 1
    executor: Literal["local", "ray"] = "local"
    device: str | None = None

    @property
    def key(self) -> str:
        """The cell's, by which the store knows it."""
        return key(self.identity)

    @property
    def kind(self) -> tuple[str, str, bool]:
        """The same for cells that take equally long: those that differ by their seed alone."""
        return self.cell.problem, key(self.identity["algorithm"]), self.cell.measured

    @property
    def shared(self) -> Shared:  # type: ignore[override] # it is of the cell
        """The problem, for all cells of one S."""
        drawn = _drawn(self.cell)
        load = partial(problems.load, self.cell.problem, **{**self.study.problem_settings, "seed": drawn})
        return Shared((self.cell.problem, drawn), load, needed=False)

    def compute(self, place: Place, shared: Any) -> dict[str, Any]:
        how: dict[str, Any] = {"problem": shared}
        budget = place.memory_budget
        if self.workers > 1 and self.cell.measured:
            how |= {"workers": self.workers, "executor": self.executor}
            if self.executor == "ray" and budget is not None:
                budget *= min(self.workers, place.sharing)  # it is that of one CPU, and the cell has several, which share it
        return run_cell(self.study, self.cell, self.device or place.device, budget, self.expected, **how)

    def failed(self, device: str, error: BaseException) -> dict[str, Any]:
        return failed(self.cell, device, Failure.ERROR, str(error) if isinstance(error, StabilityError) else described(error))


def run_cell(
    study: Study,
    cell: Cell,
    device: str = "cpu",
    memory_budget: int | None = None,
    expected: Expected | None = None,
    *,
    problem: Problem | None = None,
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
) -> dict[str, Any]:
    """Train, leave out, measure, bound: one row of the study as plain values.

    Args:
        study: the study.
        cell: one of its cells.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_budget: bytes that one block of work may take; None: a part of what is free.
        expected: the data and the code under which the row will be kept; they are compared with those that are found.
        problem: the cell's, with its seed; by default it is loaded here.
        workers: processes among which the retrainings are divided; by default this one trains.
        executor: ``local``, processes of this machine; or ``ray``, tasks of the cluster of which this process is a part.

    Returns:
        What was measured, by the names of the table's columns. Where something failed, its kind and its reason instead
        (:class:`stability.studies.results.Failure`), whatever it was: one cell never ends the others.
    """
    began = time.perf_counter()
    try:
        how: dict[str, Any] = {"device": device, "memory_budget": memory_budget, "workers": workers, "executor": executor}
        record = {"status": CellStatus.OK, **_where(cell, device), **_measured(study, cell, expected, problem, **how)}
    except (Exception, SystemExit) as error:
        record = failed(cell, device, Failure.of(error), str(error) if isinstance(error, StabilityError) else described(error))
    return {**record, "cell_seconds": time.perf_counter() - began}


def failed(cell: Cell, device: str, kind: Failure, reason: str) -> dict[str, Any]:
    """The row of a cell that was not measured.

    Args:
        cell: one of a study's.
        device: where it should have been measured.
        kind: what it was that failed.
        reason: why, in words.
    """
    where = _where(cell, device)
    return {"status": CellStatus.FAILED, **where, "failure": kind, "reason": reason, "cell_seconds": 0.0}


def _drawn(cell: Cell) -> int:
    """The seed that draws its S."""
    return cell.algorithm.seed if cell.sample is None else cell.sample


def _where(cell: Cell, device: str) -> dict[str, str]:
    """What every record says, however the measurement ended."""
    try:
        place = device_name(resolve_device(device))
    except UsageError:  # of another machine, or asked for in vain
        place = device
    return {"task": problems.short_name(cell.problem), "software": software(), "device": place}


def _measured(
    study: Study, cell: Cell, expected: Expected | None, problem: Problem | None, *, memory_budget: int | None, **how: Any
) -> dict[str, Any]:
    algorithm = cell.algorithm
    with suppress(Exception):  # whatever is said by an object that cannot be copied, such as a lock
        algorithm = copy.deepcopy(algorithm)  # a selector may keep something of its last run: each cell begins alike, in any order
    if problem is None:
        problem = problems.load(cell.problem, **{**study.problem_settings, "seed": _drawn(cell)})
    if expected is not None and expected != (found := Expected.of(study, cell, problem)):
        what = (
            f"the code of {cell.algorithm.name!r}" if expected.data == found.data else f"the data or the model of {cell.problem!r}"
        )
        raise StabilityError(f"{what} changed while the study ran: start it again, so that all its cells are of one version")
    estimator = study.estimator if cell.measured else Alone()
    estimate = measure(
        problem, algorithm, estimator=estimator, test_examples=study.test_examples, memory_budget=memory_budget, **how
    )
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
            for name in ("maximum", "noise_floor", "estimator", "n", "retrainings", "tunable", "total", "head", "threads")
        },
        "failed_replicas": len(plain["failed"]),
    }
    for split, examples in (("train", problem.train), ("validation", problem.validation), ("test", problem.test)):
        if examples is None or not len(examples):
            continue
        logits = replicas.logits(examples, slice(0, 1))[0]
        row[f"{split}_loss"] = problem.loss(logits, examples.labels).double().mean().item()
        row[f"{split}_metric"] = problem.metric(logits, examples.labels)
        if split != "train" and problem.metric in METRICS.values():  # a metric of the user's own may not take a constant
            same = constant(problem.train.labels.cpu(), logits.shape[-1], len(examples))
            row[f"{split}_constant"] = problem.metric(same, examples.labels.cpu())
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
    row |= {"gap": row["test_loss"] - row["train_loss"], "distance": plain["distance"], "mask_overlap": plain["mask_overlap"]}
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
