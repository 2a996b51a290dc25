"""A study: problem × selectors × seeds → a tidy table, computed cell by cell and resumable."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch

from stability import bounds, problems
from stability.constants import Constants, measure_constants
from stability.errors import StabilityError, UsageError
from stability.leave_one_out import StabilityEstimate, measure
from stability.machine import cores, free_memory, resolve_device
from stability.selectors import SAM, BitFit, FullTuning, MagPruning, Random, Selector
from stability.statistics import mean_over_seeds
from stability.store import Store, key
from stability.training import FineTuning

__all__ = ["STUDIES", "Study", "run", "run_cell", "summarise", "table"]

_SWEPT = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Study:
    """What to measure. Everything here is identity: stored results of one study never mix with another's.

    Attributes:
        name: of the study.
        problem: name of the problem; each seed draws its own S.
        problem_settings: further settings of the problem.
        selectors: each with its sparsity.
        seeds: of S, of the head's start, of the order of examples and of selection alike.
        training: settings of :class:`~stability.training.FineTuning`.
        retrainings: left-out examples a cell, drawn at random; None for all n.
        delta: δ of Theorem 2.
    """

    name: str
    problem: str
    selectors: tuple[Selector, ...]
    seeds: tuple[int, ...]
    problem_settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    retrainings: int | None = None
    delta: float = 0.1

    def identity(self) -> dict[str, Any]:
        """What defines the study, as plain values."""
        algorithm = FineTuning(FullTuning(), **self.training).settings()
        del algorithm["seed"]
        return {
            "study": self.name,
            "problem": self.problem,
            "problem_settings": dict(self.problem_settings),
            "selectors": [selector.settings() for selector in self.selectors],
            "seeds": list(self.seeds),
            "training": algorithm,
            "retrainings": self.retrainings,
            "delta": self.delta,
        }

    def cells(self) -> list[tuple[Selector, int]]:
        """(selector, seed), seed by seed, so that an interrupted study holds whole curves."""
        return [(selector, seed) for seed in self.seeds for selector in self.selectors]


def _digits(name: str, sparsities: tuple[float, ...], seeds: int, steps: int, retrainings: int) -> Study:
    swept = tuple(kind(p) for kind in (Random, MagPruning, SAM) for p in sparsities)
    return Study(name, "digits", (FullTuning(), BitFit(), *swept), tuple(range(seeds)), {"n": 100}, {"steps": steps}, retrainings)


STUDIES = {
    "digits": _digits("digits", _SWEPT, seeds=5, steps=100, retrainings=20),
    "digits-quick": _digits("digits-quick", (0.01, 0.1), seeds=2, steps=20, retrainings=4),
}
"""Studies by name. ``digits-quick`` shows the machinery in seconds; nothing should be concluded from it."""


def cell_identity(selector: Selector, seed: int) -> dict[str, Any]:
    """What defines a cell within its study."""
    return {"selector": selector.settings(), "seed": seed}


def run_cell(study: Study, selector: Selector, seed: int, device: str = "cpu", memory_budget: int | None = None) -> dict[str, Any]:
    """Train, leave out, measure, bound: one row of the study as plain values.

    A run that diverges is recorded as failed with its reason, not raised and not averaged.
    """
    try:
        problem = problems.load(study.problem, **{**study.problem_settings, "seed": seed})
        algorithm = FineTuning(selector, **{**study.training, "seed": seed})
        estimate = measure(problem, algorithm, study.retrainings, device=device, memory_budget=memory_budget)
        return {"status": "ok", **_row(estimate, algorithm, measure_constants(estimate), study.delta)}
    except UsageError:
        raise
    except StabilityError as error:
        return {"status": "failed", "reason": str(error)}


def _row(estimate: StabilityEstimate, algorithm: FineTuning, constants: Constants, delta: float) -> dict[str, Any]:
    replicas, problem = estimate.replicas, estimate.replicas.problem
    plain = estimate.to_dict()
    row: dict[str, Any] = {
        "sparsity": estimate.sparsity,
        "stability": estimate.value,
        "stability_interval": plain["interval"],
        "hypothesis_stability": estimate.hypothesis.value,
        "metric": problem.metric_name,
        **{
            name: plain[name]
            for name in ("maximum", "noise_floor", "estimator", "n", "retrainings", "failed", "tunable", "total", "head")
        },
    }
    for split, examples in (("train", problem.train), ("test", problem.test)):
        logits = replicas.logits(examples)[0]
        row[f"{split}_loss"] = problem.loss(logits, examples.labels).double().mean().item()
        row[f"{split}_metric"] = problem.metric(logits, examples.labels)
    eigenvalue = constants.least_eigenvalue
    row |= {
        "gap": row["test_loss"] - row["train_loss"],
        "distance": float(estimate.per_example["distance"].mean()),
        "lipschitz": constants.lipschitz,
        "least_eigenvalue": eigenvalue.value if eigenvalue.converged else None,
        "lanczos_residual": eigenvalue.residual if eigenvalue.converged else None,
        "loss_bound": constants.loss_bound,
    }
    if eigenvalue.converged:
        p, ridge = estimate.sparsity, algorithm.ridge_for(estimate.sparsity)
        first = bounds.pointwise_hypothesis_stability(
            constants.lipschitz, eigenvalue.value, p, estimate.n, ridge, eigenvalue.residual
        )
        second = bounds.generalization(
            constants.lipschitz,
            eigenvalue.value,
            p,
            estimate.n,
            constants.loss_bound,
            delta,
            constants.empirical_risk,
            ridge,
            eigenvalue.residual,
        )
        row |= {
            "stability_bound": first.to_dict()["value"],
            "expected_loss_bound": second.to_dict()["value"],
            "failed_assumptions": [a.name for a in first.assumptions if a.held is False],
        }
    return row | {"seconds": estimate.seconds, "per_example": plain["per_example"]}


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
    waiting = [cell for cell in cells if key(cell_identity(*cell)) not in done]
    on_start(len(cells) - len(waiting), len(cells))
    count = min(workers or (1 if place.type == "cuda" else cores()), max(1, len(waiting)))
    for selector, seed, record in _compute(study, waiting, str(place), count):
        ledger.add(cell_identity(selector, seed), record)
        on_cell()
    return table(ledger)


def _compute(
    study: Study, cells: list[tuple[Selector, int]], device: str, workers: int
) -> Iterator[tuple[Selector, int, dict[str, Any]]]:
    if workers == 1:
        for selector, seed in cells:
            yield selector, seed, run_cell(study, selector, seed, device)
        return
    # Forking a process that has used its thread pools can hang, so each worker starts afresh.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting = iter(cells)
    running: dict[Future[dict[str, Any]], tuple[Selector, int]] = {}
    budget = free_memory(torch.device(device)) // (2 * workers)
    try:
        while True:
            for selector, seed in islice(waiting, workers - len(running)):
                running[executor.submit(run_cell, study, selector, seed, device, budget)] = (selector, seed)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                selector, seed = running.pop(future)
                yield selector, seed, future.result()
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
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
    """The finished cells, one row each: ``method`` (the selector's name), ``seed`` and what :func:`run_cell` measured."""
    rows = []
    for record in store.records():
        record.pop("per_example", None)
        selector = record.pop("selector")
        asked = {"selector": key(selector)[:12], "sparsity": selector.get("sparsity"), "method": selector["name"]}
        rows.append({**asked, **record})
    frame = pd.DataFrame(rows)
    frame.attrs.update(
        study=store.identity["study"], identity=key(store.identity)[:12], n=store.identity["problem_settings"].get("n")
    )
    return frame


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
    for selector, group in ok.groupby("selector", sort=False):
        first = group.iloc[0]
        row: dict[str, Any] = {"method": first["method"], "sparsity": group["sparsity"].mean(), "tunable": int(first["tunable"])}
        row["failed"] = int((bad["selector"] == selector).sum())
        row |= {"head": int(group["head"].iloc[0]), "seeds": len(group), "failed_replicas": int(group["failed"].map(len).sum())}
        for name in _SUMMARISED:
            row[name] = group[name].mean()
            row[f"{name}_std"] = group[name].std(ddof=1) if len(group) > 1 else np.nan
        for name in ("stability", "gap"):
            row[f"{name}_low"], row[f"{name}_high"] = mean_over_seeds(group[name].to_numpy()).interval
        bound = group["stability_bound"].astype(float) if "stability_bound" in group else pd.Series(np.nan, group.index)
        known = group["least_eigenvalue"].notna().all()  # else Lanczos did not converge and there is no bound at all
        row["stability_bound"] = bound.mean() if bound.notna().all() else np.inf if known else np.nan
        row["bound_applies"] = bool(bound.notna().all() and (group["failed_assumptions"].map(len) == 0).all())
        rows.append(row)
    order = {method: place for place, method in enumerate(frame["method"].unique())}
    rows.sort(key=lambda row: (order[row["method"]], row["sparsity"]))
    summary = pd.DataFrame(rows)
    lost = bad[~bad["selector"].isin(ok["selector"])]
    summary.attrs["all_failed"] = [f"{m} at p = {p}" for m, p in lost[["method", "sparsity"]].drop_duplicates().to_numpy()]
    summary.attrs.update(frame.attrs)
    return summary
