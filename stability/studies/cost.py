"""What a study will cost, from a few timed steps of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stability import problems
from stability.checks import check_whole
from stability.machine import cores, resolve_device
from stability.problems.problem import Problem
from stability.selectors import FullTuning, Random, Selector
from stability.studies.store import Store, key
from stability.studies.study import Study, cell_identity, reusable
from stability.training import Algorithm, train

__all__ = ["Cost", "expected"]

_TIMED = 3  # steps
_PREDICTED = 2  # trainings that a prediction takes the time of, at most so many (README, "A few retrainings instead of all")


@dataclass(frozen=True, eq=False, kw_only=True)
class Cost:
    """What a study will cost. ``str(cost)`` says it in words.

    Attributes:
        table: a row for each task and algorithm: task, method, sparsity, n, cells (still to be done), trainings, steps (of one
            training, at most), step_seconds (on one thread), hours (of all, divided among the workers; NaN of a minimisation) and
            least_hours (where training may stop early).
        study: the name of the study.
        cells: how many cells the study has.
        done: how many of them are finished, or can be taken over from another store.
        workers: how many processes will compute.
        device: where they will.
    """

    table: pd.DataFrame
    study: str
    cells: int
    done: int
    workers: int
    device: str

    def __str__(self) -> str:
        table = self.table
        shown = table.assign(
            sparsity=table["sparsity"].map(lambda p: "" if p is None or math.isnan(p) else f"{p:g}"),
            step_seconds=table["step_seconds"].map("{:.2g}".format),
            hours=table["hours"].map("{:.2g}".format),
        )
        early = not table["least_hours"].equals(table["hours"])
        shown = shown.assign(least_hours=table["least_hours"].map("{:.2g}".format)) if early else shown.drop(columns="least_hours")
        hours, least = table["hours"].sum(), table["least_hours"].sum()
        span = f"{_duration(least)} to {_duration(hours)}, as early as training stops" if early else _duration(hours)
        unknown = int(table.loc[table["hours"].isna(), "trainings"].sum())
        but = f" (without {unknown} minimisations, which take as many steps as they need)" if unknown else ""
        who = f"{self.workers} workers of one thread" if self.workers > 1 else "one worker"
        return (
            f"{shown.to_string(index=False)}\n\n{self.study}: {table['cells'].sum()} of {self.cells} cells to compute, "
            f"{table['trainings'].sum()} trainings; about {span}{but} with {who} on {self.device}, from a few steps timed just now."
        )


def expected(
    study: Study,
    store: str | PathLike[str] | None = None,
    *,
    reuse: str | PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Cost:
    """What is still to be trained, and how long that should take.

    Each algorithm is timed for three steps, on one thread as a worker has it, and the time is scaled by the tokens of a step. A
    mask that is chosen from data is replaced by a random one of the same size, a moving one by all coordinates. Selecting is taken
    to cost a third of a pass over S for each training that selects, evaluating a third of a pass over what is evaluated, and a
    prediction two trainings. The result is good to within a factor of two. A minimisation takes as many steps as it needs, and its
    time is not known.

    Args:
        study: what is to be measured.
        store: the study's store, whose finished cells are not counted; it need not exist yet.
        reuse: the store of a study that measured the same way; cells that can be taken over from it are not counted either.
        device: where the study will be computed: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: the number of processes; by default one a core on the CPU, and one on CUDA.

    Returns:
        The cost, by task and algorithm.

    Raises:
        UsageError: data or a model that cannot be read, or fewer than one worker.
        StabilityError: ``store`` holds another study, or ``reuse`` measured otherwise.

    Example:
        >>> from stability import FineTuning
        >>> from stability.leave_one_out.estimators import Sampled
        >>> from stability.selectors import BitFit
        >>> study = Study("mine", "digits", (FineTuning(BitFit()),), seeds=(0, 1), estimator=Sampled(5))
        >>> expected(study, device="cpu").table[["cells", "trainings", "steps"]].to_numpy().tolist()
        [[2, 14, 150]]
    """
    place = resolve_device(device)
    check_whole(1, workers=1 if workers is None else workers)
    done = _finished(study, store)
    if reuse is not None:
        done |= {key(identity) for identity, _ in reusable(Store(reuse), study)}
    threads = torch.get_num_threads()
    identity = study.identity()
    cells = [cell for cell in study.cells() if key(cell_identity(study, cell, identity)) not in done]
    count = min(workers or (cores() if place.type == "cpu" else 1), max(1, len(cells)))
    rows = []
    try:
        if count > 1:
            torch.set_num_threads(1)
        for name in study.problems:
            problem = problems.load(name, **study.problem_settings).to(place)
            for algorithm in study.algorithms:
                mine = [c for c in cells if c.problem == name and replace(c.algorithm, seed=algorithm.seed) == algorithm]
                measured = sum(cell.measured for cell in mine)
                row = _row(study, problem, algorithm, len(mine), measured, count)
                rows.append({"task": problems.short_name(name), **row})
    finally:
        torch.set_num_threads(threads)
    every = len(study.cells())
    return Cost(table=pd.DataFrame(rows), study=study.name, cells=every, done=every - len(cells), workers=count, device=str(place))


def _finished(study: Study, store: str | PathLike[str] | None) -> set[str]:
    """Keys of the study's cells that the store holds."""
    if store is None or not Path(store).exists() or not Path(store).stat().st_size:
        return set()
    ledger = Store(store)
    if done := ledger.finished():
        ledger.check(study.identity())
    return done


def _row(study: Study, problem: Problem, algorithm: Algorithm, cells: int, measured: int, workers: int) -> dict[str, Any]:
    estimator, n = study.estimator, problem.n
    left_out = estimator.most(n)
    predictions = _PREDICTED if estimator.predicts else 0
    trainings = cells + measured * (left_out + (left_out > 0))  # A(S), the noise floor's A(S), and the A(Sⁱ)
    row = {
        "method": algorithm.name,
        "sparsity": algorithm.asked_sparsity,
        "n": n,
        "cells": cells,
        "trainings": trainings,
        "steps": algorithm.max_steps,
    }
    seconds = _step(problem, algorithm) if cells else None
    if seconds is None:
        unknown = math.nan if cells else 0.0
        return row | {"step_seconds": math.nan, "hours": unknown, "least_hours": unknown}
    size = len(next(iter(algorithm.batches(problem.train))))
    selector = algorithm.selector
    selecting = n / size / 3 if selector.uses_data and not selector.moving else 0.0
    # A(S) is evaluated on both splits, and each A(Sⁱ) on the test split too.
    evaluating = (cells * len(problem.train) + trainings * len(problem.test)) / size / 3
    validated = 0 if problem.validation is None else len(problem.validation) * algorithm.evaluations / algorithm.max_steps
    hours = []
    for steps in (algorithm.max_steps, algorithm.least_steps):
        each = steps + selecting + steps * validated / size / 3
        hours.append(((trainings + measured * predictions) * each + evaluating) * seconds / workers / 3600)
    return row | {"step_seconds": seconds, "hours": hours[0], "least_hours": hours[1]}


def _step(problem: Problem, algorithm: Algorithm) -> float | None:
    """Seconds that one step of one run takes, in the mean over its batches; None where a short run cannot tell."""
    stand_in: Selector = algorithm.selector
    if stand_in.moving:
        stand_in = FullTuning()
    elif stand_in.uses_data and stand_in.sparsity is not None:
        stand_in = Random(stand_in.sparsity)
    once, short, usual = (algorithm.timed(stand_in, steps) for steps in (1, _TIMED, min(algorithm.max_steps, 200)))
    if once is None or short is None or usual is None:
        return None
    problem = short.equivalent(problem)
    masks = [short.select(problem)]
    train(problem, once, masks=masks)  # whatever happens only once
    began = time.perf_counter()
    replicas = train(problem, short, masks=masks)
    replicas.values.cpu()  # waits for a GPU
    seconds = time.perf_counter() - began
    sizes = [[problem.train.longest(i) * len(i) for i in a.batches(problem.train)] for a in (short, usual)]
    return seconds / sum(sizes[0]) * sum(sizes[1]) / len(sizes[1])


def _duration(hours: float) -> str:
    return f"{hours * 60:.0f} minutes" if hours < 1.5 else f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.0f} days"
