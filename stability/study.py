"""A study: problem × selectors × seeds → a tidy table, computed cell by cell and resumable."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import islice
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from stability import problems
from stability.constants import Constants, measure_constants, measured_bounds
from stability.errors import StabilityError, UsageError
from stability.leave_one_out import StabilityEstimate, measure
from stability.machine import cores, free_memory, resolve_device
from stability.selectors import SAM, BitFit, FullTuning, MagPruning, Random
from stability.statistics import mean_over_seeds
from stability.store import Store, key
from stability.training import FineTuning, Minimisation

__all__ = ["BOUNDS", "STUDIES", "Cell", "Study", "run", "run_cell", "summarise", "table"]

_SWEPT = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Study:
    """What to measure. Everything here is identity: stored results of one study never mix with another's.

    Attributes:
        name: of the study.
        problem: name of the problem; each seed draws its own S.
        algorithms: each with its selector; their own seeds are replaced.
        seeds: of S, of the head's start, of the order of examples and of selection alike.
        problem_settings: further settings of the problem.
        retrainings: left-out examples a cell, drawn at random; None for all n.
        check_replicas: as in :func:`stability.constants.measure_constants`.
        delta: δ of the bounds on the expected loss.
    """

    name: str
    problem: str
    algorithms: tuple[FineTuning | Minimisation, ...]
    seeds: tuple[int, ...]
    problem_settings: Mapping[str, Any] = field(default_factory=dict)
    retrainings: int | None = None
    check_replicas: int = 0
    delta: float = 0.1

    def identity(self) -> dict[str, Any]:
        """What defines the study, as plain values."""
        return {
            "study": self.name,
            "problem": self.problem,
            "problem_settings": dict(self.problem_settings),
            "algorithms": [algorithm.settings() for algorithm in self.algorithms],
            "seeds": list(self.seeds),
            "retrainings": self.retrainings,
            "check_replicas": self.check_replicas,
            "delta": self.delta,
        }

    def cells(self) -> list[Cell]:
        """Seed by seed, so that an interrupted study holds whole curves."""
        return [replace(algorithm, seed=seed) for seed in self.seeds for algorithm in self.algorithms]


Cell: TypeAlias = FineTuning | Minimisation
"""One algorithm with its seed."""


def _digits(name: str, sparsities: tuple[float, ...], seeds: int, steps: int, retrainings: int) -> Study:
    swept = tuple(kind(p) for kind in (Random, MagPruning, SAM) for p in sparsities)
    algorithms = tuple(FineTuning(selector, steps=steps) for selector in (FullTuning(), BitFit(), *swept))
    return Study(name, "digits", algorithms, tuple(range(seeds)), {"n": 100}, retrainings)


def _relaxed(sparsities: tuple[float, ...], tolerance: float) -> tuple[Minimisation, ...]:
    """E_M L_R, the objective of Theorem 1, at each p."""
    return tuple(Minimisation(FullTuning(), ridge=round(1 - p, 6), tolerance=tolerance) for p in sparsities)


def _hard(kind: type[Random | SAM], sparsities: tuple[float, ...], ridge: float, tolerance: float) -> tuple[Minimisation, ...]:
    return tuple(Minimisation(kind(p), ridge=ridge, tolerance=tolerance) for p in sparsities)


STUDIES = {
    "digits": _digits("digits", _SWEPT, seeds=5, steps=100, retrainings=20),
    "digits-quick": _digits("digits-quick", (0.01, 0.1), seeds=2, steps=20, retrainings=4),
    "theory-convex": Study(
        "theory-convex",
        "logistic",
        (
            *_relaxed((0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.997), tolerance=1e-9),
            *_hard(Random, (0.1, 0.2, 0.4, 0.7, 0.9), ridge=0.01, tolerance=1e-9),
            *_hard(SAM, (0.1, 0.2, 0.4, 0.7, 0.9), ridge=0.01, tolerance=1e-9),
        ),
        tuple(range(5)),
        {"data": "breast_cancer", "n": 100},
        check_replicas=100,
    ),
    "theory-digits": Study(
        "theory-digits",
        "digits",
        (
            *_relaxed((0.1, 0.3, 0.5, 0.7, 0.9), tolerance=1e-4),
            *_hard(Random, _SWEPT, ridge=0.1, tolerance=1e-4),
            *_hard(SAM, _SWEPT, ridge=0.1, tolerance=1e-4),
        ),
        tuple(range(3, 11)),  # 0 to 2 were a pilot
        {"n": 100},
        retrainings=20,
        check_replicas=2,
    ),
}
"""Studies by name. ``digits-quick`` shows the machinery in seconds; nothing should be concluded from it. The theory
studies measure the very minimisers that the bounds speak of: ``regularised`` is L + (1 − p)‖θ − θ⁰‖² over all
coordinates, the others are hard masks with one small ridge for every p."""


def cell_identity(cell: Cell) -> dict[str, Any]:
    """What defines a cell within its study."""
    return {"method": cell.name, "asked_sparsity": cell.asked_sparsity, "algorithm": cell.settings(), "seed": cell.seed}


def run_cell(study: Study, cell: Cell, device: str = "cpu", memory_budget: int | None = None) -> dict[str, Any]:
    """Train, leave out, measure, bound: one row of the study as plain values.

    A run that fails is recorded as failed with its reason, not raised and not averaged.
    """
    try:
        problem = problems.load(study.problem, **{**study.problem_settings, "seed": cell.seed})
        estimate = measure(problem, cell, study.retrainings, device=device, memory_budget=memory_budget)
        constants = measure_constants(estimate, study.check_replicas, memory_budget)
        return {"status": "ok", **_row(estimate, constants), **_bounds(estimate, constants, study.delta)}
    except UsageError:
        raise
    except StabilityError as error:
        return {"status": "failed", "reason": str(error)}


def _row(estimate: StabilityEstimate, constants: Constants) -> dict[str, Any]:
    replicas, problem = estimate.replicas, estimate.replicas.problem
    plain = estimate.to_dict()
    row: dict[str, Any] = {
        "sparsity": replicas.algorithm.sparsity_for(replicas.masks[0]),
        "stability": estimate.value,
        "stability_interval": plain["interval"],
        "hypothesis_stability": estimate.hypothesis.value,
        "metric": problem.metric_name,
        "loss_unit": problem.loss_unit,
        **{
            name: plain[name]
            for name in ("maximum", "noise_floor", "estimator", "n", "retrainings", "failed", "tunable", "total", "head")
        },
    }
    for split, examples in (("train", problem.train), ("test", problem.test)):
        logits = replicas.logits(examples)[0]
        row[f"{split}_loss"] = problem.loss(logits, examples.labels).double().mean().item()
        row[f"{split}_metric"] = problem.metric(logits, examples.labels)
    row |= {
        "gap": row["test_loss"] - row["train_loss"],
        "distance": float(estimate.per_example["distance"].mean()),
        **{
            name: getattr(constants, name)
            for name in ("lipschitz", "tuned_lipschitz", "gradient_norm", "tuned_gradient_norm", "loss_bound", "replicas_checked")
        },
    }
    for name in ("least_eigenvalue", "tuned_least_eigenvalue"):
        eigenvalue = getattr(constants, name)
        row[name] = eigenvalue.value if eigenvalue.converged else None
        row[f"{name}_residual"] = eigenvalue.residual if eigenvalue.converged else None
    return row | {"seconds": estimate.seconds, "per_example": plain["per_example"]}


def _bounds(estimate: StabilityEstimate, constants: Constants, delta: float) -> dict[str, Any]:
    """Of each bound its value (None where infinite or unknown) and state; and which assumptions of which failed."""
    row: dict[str, Any] = {name: None for bound in BOUNDS for name in (bound, f"{bound}_state")}
    failed = {}
    for name, bound in measured_bounds(estimate, constants, delta).items():
        row |= {name: bound.to_dict()["value"], f"{name}_state": bound.state}
        failed[name] = [assumption.name for assumption in bound.assumptions if assumption.held is False]
    return row | {"failed_assumptions": failed, "notes": list(constants.notes)}


def run(
    study: Study,
    store: str | PathLike[str],
    *,
    device: str = "auto",
    workers: int | None = None,
    on_start: Callable[[int, int], object] = lambda done, total: None,
    on_cell: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """Compute the cells that ``store`` lacks, several at once on the CPU, and return the whole table.

    Each finished cell is written at once. Stopping (Ctrl-C, kill) loses only the cells under way; calling again goes on.

    Args:
        study: what to measure.
        store: the SQLite file, made where it is missing.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: processes of one thread each; by default one a core on the CPU and one on CUDA. One worker runs
            in this process, with the threads it has.
        on_start: called once with the number of finished cells and of all cells.
        on_cell: called after each cell.

    Raises:
        StabilityError: the store holds another study, is damaged, or cannot be written.
        UsageError: a setting out of range, or CUDA asked for and absent.
    """
    place = resolve_device(device)
    if workers is not None and workers < 1:
        raise UsageError(f"workers = {workers}: use at least 1")
    ledger = Store(store, study.identity(), metadata.version("stability"))
    done, cells = ledger.finished(), study.cells()
    waiting = [cell for cell in cells if key(cell_identity(cell)) not in done]
    on_start(len(cells) - len(waiting), len(cells))
    count = min(workers or (1 if place.type == "cuda" else cores()), max(1, len(waiting)))
    for cell, record in _compute(study, waiting, str(place), count):
        ledger.add(cell_identity(cell), record)
        on_cell()
    return table(ledger)


def _compute(study: Study, cells: list[Cell], device: str, workers: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    if workers == 1:
        for cell in cells:
            yield cell, run_cell(study, cell, device)
        return
    others = set(multiprocessing.active_children())  # the caller's own, which are none of our business
    # Forking a process that has used its thread pools can hang, so each worker starts afresh.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting = iter(cells)
    running: dict[Future[dict[str, Any]], Cell] = {}
    budget = free_memory(torch.device(device)) // (2 * workers)
    try:
        while True:
            for cell in islice(waiting, workers - len(running)):
                running[executor.submit(run_cell, study, cell, device, budget)] = cell
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise


def _start_worker() -> None:
    """One thread a worker; the parent alone hears Ctrl-C; a worker whose parent is gone ends too."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def table(store: Store) -> pd.DataFrame:
    """The finished cells, one row each: ``method`` (the algorithm's name), ``seed`` and what :func:`run_cell` measured."""
    rows = []
    for record in store.records():
        record.pop("per_example", None)
        rows.append({"algorithm": key(record.pop("algorithm"))[:12], "sparsity": record.pop("asked_sparsity"), **record})
    frame = pd.DataFrame(rows)
    frame.attrs.update(
        study=store.identity["study"], identity=key(store.identity)[:12], n=store.identity["problem_settings"].get("n")
    )
    return frame


BOUNDS = (
    "theorem_1",
    "theorem_1_sharp",
    "hard_mask",
    "hard_mask_sharp",
    "first_order",
    "theorem_2",
    "theorem_2_measured",
    "uniform_measured",
)
"""Columns of :func:`stability.constants.measured_bounds`; each has a ``_state`` beside it."""

_STATES = ("infinite", "assumption failed", "vacuous", "not refuted", "estimate")  # the worst first


def _over_seeds(values: pd.Series[Any], states: pd.Series[Any]) -> tuple[float, str]:
    """Mean and worst state; infinite where one seed's is, NaN and ``unknown`` where one has none."""
    if states.isna().any():
        return np.nan, "unknown"
    worst = min(states, key=_STATES.index)
    return (np.inf if worst == "infinite" else float(values.astype(float).mean())), worst


_SUMMARISED = (
    "stability",
    "hypothesis_stability",
    "gap",
    "train_loss",
    "test_loss",
    "train_metric",
    "test_metric",
    "noise_floor",
    "distance",
    "loss_bound",
    "gradient_norm",
)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each method and sparsity: mean and standard deviation (n − 1) over the seeds that finished.

    ``stability_low`` and ``stability_high`` are the 95 % interval of E_{S,i}, a t interval over seeds: each seed draws
    its own S, and its estimate is unbiased for that S. ``seeds`` counts the cells averaged, ``failed`` those that were
    not because they diverged; ``failed_replicas`` counts diverged left-out runs, which enter no average.
    """
    if frame.empty:
        raise StabilityError("the store holds no finished cell yet: run the study again, it goes on where it was")
    rows = []
    ok = frame[frame["status"] == "ok"]
    bad = frame[frame["status"] != "ok"]
    if ok.empty:
        raise StabilityError(f"all {len(bad)} finished cells failed; the first: {bad.iloc[0]['reason']}")
    for algorithm, group in ok.groupby("algorithm", sort=False):
        first = group.iloc[0]
        row: dict[str, Any] = {"method": first["method"], "sparsity": group["sparsity"].mean(), "tunable": int(first["tunable"])}
        row["failed"] = int((bad["algorithm"] == algorithm).sum())
        row |= {"head": int(group["head"].iloc[0]), "seeds": len(group), "failed_replicas": int(group["failed"].map(len).sum())}
        for name in _SUMMARISED:
            row[name] = group[name].mean()
            row[f"{name}_std"] = group[name].std(ddof=1) if len(group) > 1 else np.nan
        for name in ("stability", "gap"):
            row[f"{name}_low"], row[f"{name}_high"] = mean_over_seeds(group[name].to_numpy()).interval
        for name in BOUNDS:
            row[name], row[f"{name}_state"] = _over_seeds(group[name], group[f"{name}_state"])
        rows.append(row)
    order = {method: place for place, method in enumerate(frame["method"].unique())}
    rows.sort(key=lambda row: (order[row["method"]], row["sparsity"]))
    summary = pd.DataFrame(rows)
    lost = bad[~bad["algorithm"].isin(ok["algorithm"])]
    summary.attrs["all_failed"] = [f"{m} at p = {p}" for m, p in lost[["method", "sparsity"]].drop_duplicates().to_numpy()]
    summary.attrs.update(frame.attrs)
    return summary
