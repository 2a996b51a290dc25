"""What a study will cost, from a few timed steps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor

from stability import problems
from stability.checks import check_workers
from stability.derivatives.curvature import Curvature
from stability.derivatives.gradients import mean_gradient
from stability.leave_one_out.estimators import Estimator
from stability.leave_one_out.linearised import fitting
from stability.leave_one_out.predictors import Linearised, Predictor
from stability.leave_one_out.wording import duration
from stability.leave_one_out.work import work_of
from stability.machine import cores, resolve_device
from stability.masks import Mask
from stability.problems.problem import Examples, Problem, generator
from stability.selectors import FullTuning, Random
from stability.studies.identity import key
from stability.studies.running import reusable
from stability.studies.store import Store
from stability.studies.study import Study, cell_identity
from stability.training import Algorithm, FineTuning, train
from stability.training.adamw import Clock
from stability.training.descent import begun, run_of
from stability.training.execution import departures

__all__ = ["PARTS", "Cost", "expected"]

T = TypeVar("T")

_TIMED = 3  # steps, and calls
_FEWEST = _TIMED + 2  # examples, so that without one of several some remain
_PREDICTED = 8  # steps of a prediction
_LONG = 0.2  # seconds of a step of one replica from which many at once are taken to cost as much each
_PRODUCTS = 40  # with a Hessian, for one of its extreme eigenvalues (digits: 38 in the mean)
_MOVING = 2  # times as much a prediction takes where masks move (digits: childpruning 1.8, diffpruning 2.2)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cost:
    """What a study will cost. ``str(cost)`` says it in words.

    Attributes:
        table: a row for each task and algorithm: task, method, sparsity, n, cells (still to be done), trainings and steps of one
            training (both at most); then the seconds that the parts of one cell take on one thread: train (A(S)), select, predict,
            retrain, evaluate (loading the data included) and bounds; hours (of all cells, divided among the workers; NaN of a
            minimisation) and least_hours (where training stops as early as it may, or the first look meets the tolerance).
        study: the name of the study.
        cells: how many cells the study has.
        done: how many of them are finished, or can be taken over from another store.
        workers: how many processes will compute; None: as many as a cluster has, and hours are those of one.
        device: where they will.
        executor: what computes, ``local`` or ``ray``.
        others: how many other processes work on the store now; dead ones do not count where they are known to be dead.
        held: how many cells those compute now. They are not counted.
    """

    table: pd.DataFrame
    study: str
    cells: int
    done: int
    workers: int | None
    device: str
    executor: str = "local"
    others: int = 0
    held: int = 0

    def __str__(self) -> str:
        table = self.table
        shown = table.assign(
            sparsity=table["sparsity"].map(lambda p: "" if p is None or math.isnan(p) else f"{p:g}"),
            **{name: table[name].map("{:.2g}".format) for name in (*PARTS, "hours", "least_hours")},
        )
        early = not table["least_hours"].equals(table["hours"])
        idle = [name for name in PARTS if not (table[name] > 0).any()]
        shown = shown.drop(columns=idle if early else [*idle, "least_hours"])
        hours, least = table["hours"].sum(), table["least_hours"].sum()
        span = duration(3600 * hours)
        span = f"{duration(3600 * least)} to {span}, by how soon training and retraining have enough" if early else span
        unknown = int(table.loc[table["hours"].isna(), "trainings"].sum())
        but = f" (without {unknown} minimisations, which take as many steps as they need)" if unknown else ""
        return (
            f"Seconds of a cell by its parts:\n{shown.to_string(index=False)}\n\n{self.study}: {table['cells'].sum()} of "
            f"{self.cells} cells to compute, {table['trainings'].sum()} trainings; about {span}{but} with {self._who()}, "
            f"from a few steps timed just now.{self._also()}"
        )

    def _who(self) -> str:
        count = self.workers or 1
        who = "one worker" if count == 1 else f"{count} workers"
        if self.executor == "ray":
            return f"{who} of the cluster, {'each ' if count > 1 else ''}as fast as this machine's {self.device}"
        return f"{who}{' of one thread' if count > 1 else ''} on {self.device}"

    def _also(self) -> str:
        """What the cluster's other workers change, and what other processes do now."""
        found = "" if self.workers else " Several workers share that: --workers N tells the time of N."
        if not self.others:
            return found
        one = self.others == 1
        found += f" {'Another process works' if one else f'{self.others} other processes work'} on the study now."
        if self.held:
            cells = "1 cell, which is" if self.held == 1 else f"{self.held} cells, which are"
            found += f" {'It computes' if one else 'They compute'} {cells} not counted."
        return found


def expected(
    study: Study,
    store: str | PathLike[str] | None = None,
    *,
    reuse: str | PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    executor: str = "local",
) -> Cost:
    """What is still to be trained, and how long that should take.

    Every part of a cell is timed in miniature, on one thread as a worker has it: the first steps of one replica and of as many
    as will be retrained, the selection on a few batches of S, a prediction of a few examples along a few steps, a product with the
    Hessian. What grows with n or with the steps is scaled. Of MiniLM on STS-B, five studies took between 0.7 and 1.2 times what
    was planned (``make plans``); small models may differ more. A minimisation takes as many steps as it needs, and its time is not
    known.

    Args:
        study: what is to be measured.
        store: the study's store, whose finished cells are not counted, nor those that other processes compute now; it need not
            exist yet.
        reuse: the store of a study that measured the same way; cells that can be taken over from it are not counted either.
        device: where the study will be computed: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: the number of processes; by default one a core on the CPU, and one on CUDA. How many a cluster has is not known:
            with Ray and without this number, the hours are those of one.
        executor: ``local``, this machine; or ``ray``, whose machines are taken for ones like this.

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
    check_workers(workers, executor, None)
    done, held, others = _known(study, store)
    if reuse is not None:
        done |= {key(identity) for identity, _ in reusable(Store(reuse), study)}
    threads = torch.get_num_threads()
    identity = study.identity()
    missing = [(cell, name) for cell in study.cells() if (name := key(cell_identity(study, cell, identity))) not in done]
    cells = [cell for cell, name in missing if name not in held]
    usual = cores() if place.type == "cpu" and executor == "local" else 1
    count = min(workers or usual, max(1, len(cells)))
    rows = []
    try:
        if count > 1 or executor == "ray":
            torch.set_num_threads(1)
        for name in study.problems:
            began = time.perf_counter()
            problem = problems.load(name, **study.problem_settings).to(place)
            loading = time.perf_counter() - began
            timed: dict[str, dict[str, float] | None] = {}  # a learning rate changes no time
            for algorithm in study.algorithms:
                mine = [c for c in cells if c.problem == name and replace(c.algorithm, seed=algorithm.seed) == algorithm]
                measured = sum(cell.measured for cell in mine)
                row = _row(study, problem, algorithm, len(mine), measured, workers=count, loading=loading, timed=timed)
                rows.append({"task": problems.short_name(name), **row})
    finally:
        torch.set_num_threads(threads)
    every = len(study.cells())
    return Cost(
        table=pd.DataFrame(rows),
        study=study.name,
        cells=every,
        done=every - len(missing),
        workers=None if executor == "ray" and workers is None else count,
        device=str(place),
        executor=executor,
        others=others,
        held=len(missing) - len(cells),
    )


def _known(study: Study, store: str | PathLike[str] | None) -> tuple[set[str], set[str], int]:
    """Keys of the cells that the store holds, and of those that living workers compute; and how many such workers there are."""
    if store is None or not Path(store).exists() or not Path(store).stat().st_size:
        return set(), set(), 0
    found = Store(store)
    done, working = found.finished(), {one.id for one in found.ledger.workers() if not one.gone}
    if done or working:
        found.check(study.identity())
    return done, {one.key for one in found.ledger.claims() if one.worker in working}, len(working)


PARTS = ("train", "select", "predict", "retrain", "evaluate", "bounds")
"""The parts of a cell, as the table of :class:`Cost` names them."""


def _row(
    study: Study,
    problem: Problem,
    algorithm: Algorithm,
    cells: int,
    measured: int,
    *,
    workers: int,
    loading: float,
    timed: dict[str, dict[str, float] | None],
) -> dict[str, Any]:
    """What one algorithm costs. ``timed`` has the parts of those that were timed, and takes these."""
    estimator = _chosen(study, problem, algorithm) if cells else study.estimator
    left_out, at_first = estimator.most(problem.n), estimator.more(problem.n, 0, None)
    more = left_out + (left_out > 0)  # the A(Sⁱ), and A(S) once more for the noise floor
    steps = algorithm.max_steps
    row = {
        "method": algorithm.name,
        "sparsity": algorithm.asked_sparsity,
        "n": problem.n,
        "cells": cells,
        "trainings": cells + measured * more,
        "steps": steps,
    }
    if not cells:
        return row | dict.fromkeys(PARTS, 0.0) | {"hours": 0.0, "least_hours": 0.0}
    kind = key({**algorithm.settings(), "learning_rate": None, "measured": bool(measured)})
    if kind not in timed:
        timed[kind] = _timed(study, estimator, problem, algorithm, more if measured else 0)
    if (found := timed[kind]) is None:
        return row | dict.fromkeys(PARTS, math.nan) | {"hours": math.nan, "least_hours": math.nan}
    parts = {**found, "evaluate": found["evaluate"] + loading}
    hours = []
    for fraction, count in ((1.0, left_out), (algorithm.least_steps / steps, at_first)):
        once = fraction * parts["train"] + parts["evaluate"]
        retraining = parts["retrain"] * (count + 1) / (left_out + 1)
        each = parts["select"] + fraction * (parts["predict"] + retraining) + parts["bounds"]
        hours.append((cells * once + measured * each) / workers / 3600)
    return row | parts | {"hours": hours[0], "least_hours": hours[1]}


def _few(problem: Problem, algorithm: Algorithm, batches: int = 2) -> Problem:
    """With some batches of S, and enough examples to leave some out: of a large S, selecting alone takes minutes."""
    first = next(iter(algorithm.batches(problem.train)))
    return replace(problem, train=problem.train.take(torch.arange(min(problem.n, max(batches * len(first), _FEWEST)))))


def _of_all(seconds: Callable[[Problem], float], problem: Problem, algorithm: Algorithm, *, slow_grows: bool = False) -> float:
    """Seconds with all of S, from those with a few examples: a part grows with n, and a part does not.

    Args:
        seconds: tells those of a problem with fewer examples.
        problem: with all of S.
        algorithm: A.
        slow_grows: where it is slow, and timing more examples would be too, all of it grows with n.
    """
    less = _few(problem, algorithm, 1)
    first = seconds(less)
    slow = first > _LONG
    if less.n == problem.n or (slow and slow_grows):
        return first * problem.n / less.n
    more = _few(problem, algorithm, 2 if slow else 8)  # of what is quick, the difference would be noise otherwise
    second = seconds(more)
    rate = max(0.0, second - first) / (more.n - less.n) if more.n > less.n else 0.0
    return second + rate * (problem.n - more.n)


def _chosen(study: Study, problem: Problem, algorithm: Algorithm) -> Estimator:
    """What will measure this; a mask of a few examples has as many coordinates as one of all."""
    problem = algorithm.equivalent(problem)
    k = problem.m if algorithm.selector.moving else algorithm.select(_few(problem, algorithm)).count
    return study.estimator.choice(problem, algorithm, k).estimator


def _timed(study: Study, estimator: Estimator, problem: Problem, algorithm: Algorithm, more: int) -> dict[str, float] | None:
    """Seconds of each part of a cell that trains ``more`` replicas beside A(S); None where no short run can tell."""
    if not algorithm.stepwise:
        return None
    problem = algorithm.equivalent(problem)
    parts = dict.fromkeys(PARTS, 0.0)
    batches = list(algorithm.batches(problem.train))
    few = _few(problem, algorithm)
    grown = problem.n / few.n
    selector, masks = algorithm.selector, None
    if not selector.moving:
        masks = [algorithm.select(few)]
        twice = 2 if selector.code() is not None else 1  # what is the user's own is asked again, to compare
        if selector.uses_data:
            parts["select"] = twice * _of_all(lambda some: _least(lambda: algorithm.select(some)), problem, algorithm)
        else:
            parts["select"] = twice * _least(lambda: algorithm.select(few))
    # Steps of texts are as long as their tokens are many.
    sizes = [problem.train.longest(index) * len(index) for index in batches]
    longer = sum(sizes) / len(sizes) / (sum(sizes[1 : _TIMED + 1]) / len(sizes[1 : _TIMED + 1]) if len(sizes) > 1 else sizes[0])
    steps = algorithm.max_steps
    first = _step(problem, algorithm, 1, masks)
    alone = retrained = _in_the_mean(problem, algorithm, 1, first) * longer
    if more and selector.moving and isinstance(estimator.predictor_for(algorithm), Linearised):
        alone = first * longer  # A(S) is observed, and then all coordinates take part to the end
    held_out = [split for split in (problem.validation, problem.test) if split is not None and len(split)]
    seconds_of = {id(split): _forward(problem, split, len(batches[0])) for split in (problem.train, *held_out)}
    validating = 0.0  # of a step
    if problem.validation is not None and algorithm.evaluations:
        validating = seconds_of[id(problem.validation)] * algorithm.evaluations / steps / alone
    parts["train"] = steps * alone * (1 + validating)
    parts["evaluate"] = sum(seconds_of.values())
    if not more:
        return parts
    if retrained > _LONG:
        together = retrained * more
    else:
        together = _in_the_mean(problem, algorithm, more, _step(problem, algorithm, more, masks)) * longer
    part = 1.0 if study.test_examples is None else min(1.0, study.test_examples / max(1, len(problem.test)))
    evaluating = part * seconds_of.get(id(problem.test), 0.0) / retrained * together
    parts["retrain"] = steps * together * _share(problem, algorithm, batches, more) * (1 + validating) + evaluating
    parts["predict"], each = _predicting(estimator, problem, algorithm)
    if selector.uses_data and not selector.moving:
        parts["select"] += _selecting_again(problem, algorithm, problem.n if each else more)
    if study.check_replicas is not None:
        parts["bounds"] = _bounding(few, algorithm, study.check_replicas, more) * grown
    return parts


def _forward(problem: Problem, examples: Examples, batch: int) -> float:
    """Seconds that evaluating one model on all of the examples takes, from a batch of them."""
    lengths = examples.lengths
    if lengths is None:
        few, whole = examples.take(torch.arange(min(batch, len(examples)))), float(len(examples))
        part = float(len(few))
    else:  # of middling length, and so each of about the same
        places = lengths.argsort(stable=True)
        middle = max(0, (len(examples) - batch) // 2)
        few, whole = examples.take(places[middle : middle + batch]), float(lengths.sum())
        part = float(few.longest(slice(None)) * len(few))
    start = problem.start(0)
    with torch.no_grad():
        problem.logits(start, few.inputs)
        return _clocked(lambda: problem.logits(start, few.inputs))[1] * whole / part


class _Enough(Exception):  # noqa: N818 - nothing went wrong here
    """As many steps as are to be timed were taken."""


def _in_the_mean(problem: Problem, algorithm: Algorithm, r: int, first: float) -> float:
    """Seconds of a step of r replicas in the mean, from those of the first: once moving masks stay, as with as many fixed ones."""
    steps, p, settles = algorithm.max_steps, algorithm.selector.sparsity, _settles(problem, algorithm)
    if p is None or settles >= steps or (fixed := algorithm.timed(Random(p), steps)) is None:
        return first
    drawn = [fixed.selector.select(problem, seed) for seed in range(r)]
    return (settles * first + (steps - settles) * _step(problem, fixed, r, drawn)) / steps


def _settles(problem: Problem, algorithm: Algorithm) -> int:
    """After how many steps a moving mask stays; all of them where it does not move, or to the end."""
    if not algorithm.selector.moving or not isinstance(algorithm, FineTuning):
        return algorithm.max_steps
    origin = algorithm.tunable_mask(problem, algorithm.select(problem)).gather(problem.start(algorithm.seed))
    shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
    course = begun(algorithm.selector, run_of(algorithm, origin, shapes, 1, Clock()))
    return algorithm.max_steps if course.settles is None else min(course.settles, algorithm.max_steps)


def _step(problem: Problem, algorithm: Algorithm, r: int, masks: Sequence[Mask] | None) -> float:
    """Seconds that a step of r replicas takes, from the first few of a real run; what happens only once is not in it."""
    first = next(iter(algorithm.batches(problem.train)))  # without one of these, a replica departs from the others at once
    weights = torch.ones(r, problem.n)
    weights[torch.arange(1, r), first[torch.arange(r - 1) % len(first)]] = 0
    began, times, done = time.perf_counter(), list[float](), 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if done >= r * (len(times) + 1):
            times.append(time.perf_counter())
        if len(times) > _TIMED:
            raise _Enough

    with suppress(_Enough):
        train(problem, algorithm, weights, masks, progress=told)
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else time.perf_counter() - began


def _share(problem: Problem, algorithm: Algorithm, batches: Sequence[Tensor], replicas: int) -> float:
    """The share of the steps of A(S) and of replicas without one example that is really computed: they begin as one run."""
    selector = algorithm.selector
    watched = problem.validation is not None and algorithm.evaluations
    if not algorithm.shares_beginnings or selector.moving or selector.uses_data or watched or replicas < 2:
        return 1.0
    weights = torch.ones(replicas, problem.n)
    weights[torch.arange(1, replicas), torch.arange(replicas - 1) * problem.n // (replicas - 1)] = 0
    when = departures(weights[1:], weights[0], batches)
    return float(1 + (1 - when / len(batches)).sum()) / replicas


class _Same:
    """S's mask for all, and whether one for each was asked for."""

    def __init__(self, mask: Mask) -> None:
        self._mask, self.each = mask, False

    def of(self, left_out: Sequence[int]) -> list[Mask]:
        self.each = self.each or bool(left_out)
        return [self._mask] * (len(left_out) + 1)


def _predicting(estimator: Estimator, problem: Problem, algorithm: Algorithm) -> tuple[float, bool]:
    """Seconds of a prediction, from that of a few examples, and whether it selects a mask for each example."""
    predictor, selector = estimator.predictor_for(algorithm), algorithm.selector
    if predictor is None:
        return 0.0, False
    stand_in = FullTuning() if selector.moving else selector
    if algorithm.timed(stand_in, 1) is None:
        return 0.0, False  # no short run can tell
    steps, each = algorithm.max_steps, False

    def parts(some: Problem) -> float:
        """Of a prediction of some examples."""
        nonlocal each
        own = stand_in.select(some, algorithm.seed)
        if isinstance(predictor, Linearised):  # no more coordinates than it will follow with all examples
            outputs = some.logits(some.start(algorithm.seed), some.train.take(slice(0, 1)).inputs).shape[1]
            own = _some(own, fitting(predictor.memory_budget, problem.n, outputs))
        masks = _Same(own)

        def seconds(taken: int, checkpoints: int = 1) -> float:
            short = algorithm.timed(stand_in, taken)
            assert short is not None
            how: Predictor = replace(predictor, checkpoints=checkpoints) if isinstance(predictor, Linearised) else predictor
            observed = how.observe(some, short, masks)
            alone = train(some, short, masks=masks.of([]), replica_batch=1, observe=observed.observer)
            return _clocked(partial(observed.predict, alone))[1]

        seconds(1)  # what is done only once
        once, each = seconds(1), masks.each
        if not isinstance(predictor, Linearised):
            return once
        longer, checkpoints = min(steps, 1 + _PREDICTED), min(predictor.checkpoints, steps)
        step = max(0.0, seconds(longer) - once) / max(1, longer - 1)
        jacobian = max(0.0, seconds(2, 2) - once - step) if checkpoints > 1 else 0.0
        return once + (steps - 1) * step * (_MOVING if selector.moving else 1) + (checkpoints - 1) * jacobian

    if isinstance(predictor, Linearised):
        return _of_all(parts, problem, algorithm, slow_grows=True), each
    few = _few(problem, algorithm, 1)
    k = stand_in.select(few, algorithm.seed).count
    grown = [predictor.operations(work_of(some, algorithm, k)) for some in (problem, few)]
    return parts(few) * grown[0] / grown[1], each


def _some(mask: Mask, most: int) -> Mask:
    """So many coordinates of a mask, drawn at random, or all if there are no more."""
    if mask.count <= most:
        return mask
    return mask.part(torch.randperm(mask.count, generator=generator(0, "plan"))[:most].sort().values)


def _selecting_again(problem: Problem, algorithm: Algorithm, count: int) -> float:
    """Seconds of selecting without each of ``count`` examples; a selector that does it from one sum takes hardly more for many."""
    selector, seed = algorithm.selector, algorithm.seed

    def chosen(some: Problem, n: int) -> float:
        return _least(lambda: list(selector.select_each_left_out(some, range(min(n, some.n - 1)), seed)))

    def each(some: Problem) -> float:
        more = min(1 + _TIMED, some.n - 1) - 1
        return max(0.0, chosen(some, 1 + more) - chosen(some, 1)) / more if more > 0 else chosen(some, 1)

    return _of_all(lambda some: chosen(some, 1), problem, algorithm) + (count - 1) * _of_all(each, problem, algorithm)


def _bounding(few: Problem, algorithm: Algorithm, check_replicas: int, more: int) -> float:
    """Seconds of the constants that bounds need, of ``few`` examples: two least eigenvalues at each model, and gradients."""
    start = few.start(algorithm.seed)
    hessian = Curvature(few, start, few.train)
    probe = torch.ones(1, hessian.size)
    hessian.product(probe)
    _, product = _clocked(lambda: hessian.product(probe))
    _, gradient = _clocked(lambda: mean_gradient(few, start, few.train))
    return 2 * (1 + 2 * check_replicas) * _PRODUCTS * product + more * gradient


def _least(work: Callable[[], object]) -> float:
    """The least seconds of some calls after a first one; of what is slow the first one's."""
    seconds = _clocked(work)[1]
    return seconds if seconds > _LONG else min(_clocked(work)[1] for _ in range(_TIMED))


def _clocked(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began
