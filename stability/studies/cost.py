"""What a study will cost, from a few timed steps of it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stability import __version__, problems
from stability.checks import check_whole
from stability.machine import cores, resolve_device
from stability.problems.problem import Problem
from stability.selectors import FullTuning, Random, Selector
from stability.studies.store import Store, key
from stability.studies.study import Study, cell_identity, reusable
from stability.training import FineTuning, Minimisation
from stability.training.replicas import train

__all__ = ["expected", "told"]

_TIMED = 3  # steps
_FORETOLD = 2  # trainings that a prediction takes the time of, at most so many (README, "A few retrainings instead of all")


def expected(
    study: Study,
    store: str | PathLike[str] | None = None,
    *,
    reuse: str | PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> pd.DataFrame:
    """A row for each task and algorithm: what is still to be trained, and how long that should take.

    Each algorithm is timed for three steps, on one thread as a worker has it: those of a mask chosen from data with a random one of
    the same size, those of a moving one with all coordinates, and scaled by the tokens of a step. Selecting costs a third of a pass
    over S for each training that selects, evaluating a third of one over what is evaluated, a prediction two trainings. Good to
    within a factor of two; a minimisation takes as many steps as it needs, and is not foretold.

    Args:
        study: what is to be measured.
        store: its finished cells are not counted.
        reuse: nor are those that this one's spare, as in :func:`stability.studies.study.run`.
        device: as of :func:`stability.studies.study.run`.
        workers: as there.

    Returns:
        Columns task, method, sparsity, n, cells (still to be done), trainings, steps (of one training, at most), step_seconds (on
        one thread), hours (of all, divided among the workers; NaN of a minimisation), least_hours (where training may stop early).

    Raises:
        UsageError: data or a model that cannot be read, or fewer than one worker.
        StabilityError: a store of another study.

    Example:
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit
        >>> plan = expected(Study("mine", "digits", (FineTuning(BitFit()),), seeds=(0, 1), retrainings=5), device="cpu")
        >>> plan[["cells", "trainings", "steps"]].to_numpy().tolist()
        [[2, 14, 150]]
    """
    place = resolve_device(device)
    check_whole(1, workers=1 if workers is None else workers)
    done = _finished(study, store)
    if reuse is not None:
        done |= {key(identity) for identity, _ in reusable(Store(reuse), study)}
    threads = torch.get_num_threads()
    cells = [cell for cell in study.cells() if key(cell_identity(study, cell)) not in done]
    count = min(workers or (1 if place.type == "cuda" else cores()), max(1, len(cells)))
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
    frame = pd.DataFrame(rows)
    frame.attrs.update(study=study.name, workers=count, device=str(place), done=len(done), cells=len(study.cells()))
    return frame


def _finished(study: Study, store: str | PathLike[str] | None) -> set[str]:
    """Keys of what the store holds of this study."""
    if store is None or not Path(store).exists() or not Path(store).stat().st_size:
        return set()
    ledger = Store(store)
    if done := ledger.finished():
        ledger.check(study.identity(), __version__)
    return done


def _row(
    study: Study, problem: Problem, algorithm: FineTuning | Minimisation, cells: int, measured: int, workers: int
) -> dict[str, Any]:
    estimator, n = study.estimator, problem.n
    left_out = n if estimator is None and study.retrainings is None else study.retrainings or 0
    foretold = 0
    if estimator is not None:
        most = getattr(estimator, "retrainings", None) or n
        left_out = most if estimator.tolerance is not None else estimator.more(n, 0, None)
        foretold = _FORETOLD if estimator.predicts else 0
    trainings = cells + measured * (left_out + (left_out > 0))  # A(S), the noise floor's A(S), and the A(Sⁱ)
    row = {
        "method": algorithm.name,
        "sparsity": algorithm.asked_sparsity,
        "n": n,
        "cells": cells,
        "trainings": trainings,
        "steps": algorithm.max_steps,
    }
    if not isinstance(algorithm, FineTuning) or not cells:
        unknown = 0.0 if not cells else math.nan
        return row | {"step_seconds": math.nan, "hours": unknown, "least_hours": unknown}
    seconds = _step(problem, algorithm)
    batches = n / min(algorithm.batch_size, n)  # of one pass over S
    selector = algorithm.selector
    selecting = batches / 3 if selector.uses_data and not selector.moving else 0.0
    # A(S) is evaluated on both splits, and each A(Sⁱ) on the test split too.
    evaluated = cells * len(problem.train) + trainings * len(problem.test)
    rule, hours = algorithm.early_stopping, []
    for steps in (algorithm.steps, algorithm.steps if rule is None else min(rule.least_steps, algorithm.steps)):
        looks = 0 if rule is None or problem.validation is None else steps / rule.every * len(problem.validation)
        each = steps + selecting + looks / algorithm.batch_size / 3
        evaluating = evaluated / algorithm.batch_size / 3
        hours.append(((trainings + measured * foretold) * each + evaluating) * seconds / workers / 3600)
    return row | {"step_seconds": seconds, "hours": hours[0], "least_hours": hours[1]}


def _step(problem: Problem, algorithm: FineTuning) -> float:
    """Seconds of one step of one run, in the mean over its batches."""
    stand_in: Selector = algorithm.selector
    if stand_in.moving:
        stand_in = FullTuning()
    elif stand_in.uses_data and stand_in.sparsity is not None:
        stand_in = Random(stand_in.sparsity)
    short = replace(algorithm, selector=stand_in, steps=_TIMED, early_stopping=None, ridge=0.0)
    problem = short.equivalent(problem)
    masks = [short.select(problem)]
    train(problem, replace(short, steps=1), masks=masks)  # whatever happens only once
    began = time.perf_counter()
    replicas = train(problem, short, masks=masks)
    replicas.values.cpu()  # waits for a GPU
    seconds = time.perf_counter() - began
    usual = replace(algorithm, steps=min(algorithm.steps, 200))
    sizes = [[problem.train.longest(i) * len(i) for i in a.batches(problem.train)] for a in (short, usual)]
    return seconds / sum(sizes[0]) * sum(sizes[1]) / len(sizes[1])


def told(plan: pd.DataFrame) -> str:
    """The plan as text."""
    shown = plan.assign(
        sparsity=plan["sparsity"].map(lambda p: "" if p is None or math.isnan(p) else f"{p:g}"),
        step_seconds=plan["step_seconds"].map("{:.2g}".format),
        hours=plan["hours"].map("{:.2g}".format),
    )
    early = not plan["least_hours"].equals(plan["hours"])
    shown = shown.assign(least_hours=plan["least_hours"].map("{:.2g}".format)) if early else shown.drop(columns="least_hours")
    a = plan.attrs
    hours, least = plan["hours"].sum(), plan["least_hours"].sum()
    span = f"{_duration(least)} to {_duration(hours)}, as early as training stops" if early else _duration(hours)
    unknown = int(plan.loc[plan["hours"].isna(), "trainings"].sum())
    but = f" (without {unknown} minimisations, which take as many steps as they need)" if unknown else ""
    who = f"{a['workers']} workers of one thread" if a["workers"] > 1 else "one worker"
    return (
        f"{shown.to_string(index=False)}\n\n{a['study']}: {plan['cells'].sum()} of {a['cells']} cells to compute, "
        f"{plan['trainings'].sum()} trainings; about {span}{but} with {who} on {a['device']}, from a few steps timed just now."
    )


def _duration(hours: float) -> str:
    return f"{hours * 60:.0f} minutes" if hours < 1.5 else f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.0f} days"
