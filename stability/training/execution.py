"""How replicas are carried out: planned from memory, divided among threads, and computed as one while they are one."""

from __future__ import annotations

import copy
import gc
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from stability.machine import free_memory, kept_for_backward, peak_of_tensors, release
from stability.masks import Mask, Parameters
from stability.problems.problem import Examples, ModuleLogits, Problem
from stability.training.algorithm import Algorithm
from stability.training.descent import Progress, RunOptions, Sharing, Trained
from stability.training.objective import ALL, Objective, Observer, Stack, blocks_of, logits_of
from stability.training.portions import if_it_fits, one_too_large
from stability.training.threads import available

__all__ = ["Division", "Task", "carry_out", "departures", "divide"]

T = TypeVar("T")

_CACHED = 1 << 28  # bytes of activations beyond which more replicas at once only slowed a CPU down (MiniLM, two threads)
_RESIDENT = 2  # of a process on a CPU, what is resident over what its tensors take: what malloc does not give back (digits)
_HEAVY = 1 << 26  # bytes of activations of all replicas below which threads wait for each other in Python (digits, two threads)


@dataclass(frozen=True)
class Division:
    """How r replicas are divided among threads, sets and batches.

    Attributes:
        workers: threads, each with sets of its own and its share of torch's threads.
        rows: how many replicas are in a set, which goes from start to end together.
        at_once: how many of a set are computed at once.
    """

    workers: int
    rows: int
    at_once: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """r replicas to be trained.

    Attributes:
        problem: as the steps see it.
        algorithm: A.
        start: θ⁰ and the head's start.
        tunable: the K coordinates that some replica may change.
        weights: (r, n) weights of the examples.
        usual: (n,) those of an ordinary run: 1, and 0 for an example that only takes another's place.
        ridges: (r, 1) λ of each replica.
        activity: bool (r, K), which coordinates each row may change; None: all.
        batches: the indices that each step takes.
        reverse: whether each batch is in reverse order.
        observer: is told of every step of a single replica.
        watched: the problem as it is evaluated, where the algorithm looks at its validation split while it trains.
    """

    problem: Problem
    algorithm: Algorithm
    start: Parameters
    tunable: Mask
    weights: Tensor
    usual: Tensor
    ridges: Tensor
    activity: Tensor | None
    batches: Sequence[Tensor]
    reverse: bool = False
    observer: Observer | None = None
    watched: Problem | None = None

    def run(self, rows: Tensor, sharing: Sharing | None, at_once: int, progress: Progress | None) -> Trained:
        """Train the replicas at ``rows``; where they share a trunk that nobody asked for, it is put before them."""
        weights, ridges = self.weights[rows], self.ridges[rows]
        if sharing is not None and sharing.lone:
            weights, ridges = torch.cat([self.usual.unsqueeze(0), weights]), torch.cat([ridges[:1], ridges])
        activity = None if self.activity is None else self.activity[rows]
        objective = Objective(
            self.problem,
            self.start,
            self.tunable,
            weights=weights,
            ridges=ridges,
            activity=activity,
            observer=self.observer,
            at_once=at_once,
            autocast=self.algorithm.product_precision == "bfloat16",
            reverse=self.reverse,
        )
        options = RunOptions(
            reverse=self.reverse, activity=activity, sharing=sharing, metric=self._metric(objective), progress=progress
        )
        found = self.algorithm.run(objective, self.batches, options)
        return replace(found, at_once=objective.at_once)

    def _metric(self, objective: Objective) -> Callable[[Tensor], Tensor] | None:
        """Trained values (r, K) → the metric of each row on the validation split, evaluated in full precision."""
        problem = self.watched
        if problem is None or problem.validation is None:
            return None
        examples, start, tunable = problem.validation, self.start, self.tunable

        def metric(values: Tensor) -> Tensor:
            with _products("highest") if self.algorithm.product_precision == "tf32" else nullcontext():
                logits = logits_of(problem, start, tunable, values, examples=examples, at_once=objective.at_once)
            return torch.tensor([problem.metric(mine, examples.labels) for mine in logits], device=values.device)

        return metric


def departures(weights: Tensor, usual: Tensor, batches: Sequence[Tensor]) -> Tensor:
    """The first step in which each replica takes an example with another weight than usual, and so departs from an ordinary run.

    Args:
        weights: (r, n) of the examples.
        usual: (n,) those of an ordinary run.
        batches: the indices that each step takes.

    Returns:
        int64 (r,); the number of steps where a replica never departs.

    Example:
        >>> weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
        >>> departures(weights, torch.ones(3), [torch.tensor([0, 1]), torch.tensor([2, 0])]).tolist()
        [1, 2]
    """
    first = torch.full((weights.shape[1],), len(batches))
    for step, index in reversed(list(enumerate(batches))):
        first[index] = step
    return torch.where((weights == usual).cpu(), len(batches), first).amin(1)


def divide(
    problem: Problem,
    algorithm: Algorithm,
    tunable: Mask,
    r: int,
    *,
    batches: Sequence[Tensor] | None = None,
    memory_budget: int | None = None,
) -> Division:
    """Divide r replicas so that what is computed at once fits into memory.

    The r rows of trained values and what each step records of them are planned first. For the work a quarter of the budget remains
    even where they take more: they are what was asked for. A replica takes, besides, the algorithm's vectors of K values. One that
    is computed takes what a training step or the evaluation of a block of examples does. Both are carried out once and measured;
    on a CPU as much again is planned for, which the system's allocator does not give back.

    On a CPU many at once save nothing but Python's dispatch, and lose where their activations leave the caches. There each thread
    takes replicas of its own, unless their products are so small that Python's dispatch, of which there is one at a time, is most
    of the work. Where the model cannot compute many replicas at once, each thread computes one. Sets and batches are balanced, so
    that the last is not a rest.

    Args:
        problem: as the steps see it (:meth:`stability.training.Algorithm.training_form`).
        algorithm: A.
        tunable: the K coordinates that some replica may change.
        r: the number of replicas.
        batches: the indices that the steps take; by default the algorithm's.
        memory_budget: bytes that training and evaluation may take; by default half of what is free.

    Example:
        >>> from stability import FineTuning, load, selectors
        >>> problem, algorithm = load("digits"), FineTuning(selectors.BitFit(), steps=2, batch_size=4)
        >>> tunable = algorithm.tunable_mask(problem, algorithm.select(problem))
        >>> divide(problem, algorithm, tunable, r=1)
        Division(workers=1, rows=1, at_once=1)
    """
    if r == 1:
        return Division(workers=1, rows=1, at_once=1)
    start = problem.start(algorithm.seed)
    first = next(iter(start.values()))
    on_cpu = first.device.type == "cpu"
    budget = memory_budget if memory_budget is not None else free_memory(first.device) // 2
    longest = max(batches or algorithm.batches(problem.train), key=lambda index: len(index) * problem.train.longest(index))
    dropout = algorithm.dropout_at(0, first.device)
    stack = Stack(start, tunable, tunable.gather(start).unsqueeze(0), differentiable=True)

    def forward(block: Examples) -> Tensor:
        return stack.logits(problem, block.inputs, dropout)

    block = _largest(blocks_of(problem.train.take(longest), whole=dropout is not None))
    kept = kept_for_backward(partial(forward, block), [*start.values(), *stack.tensors.values()])
    with torch.no_grad():
        evaluated = peak_of_tensors(partial(forward, _largest_evaluated(problem)))
    evaluated += first.element_size() * sum(math.prod(tunable.shapes[name]) for name in tunable.indices)
    computed = max(_step_takes(problem, algorithm, start, tunable, longest), evaluated) * (_RESIDENT if on_cpu else 1)
    state = first.element_size() * algorithm.vectors * tunable.count
    recorded = (first.element_size() + 8) * algorithm.max_steps if algorithm.stepwise else 0
    budget = max(budget // 4, budget - r * (first.element_size() * tunable.count + recorded))
    apart = on_cpu and isinstance(problem.logits, ModuleLogits) and r * kept >= _HEAVY  # of a mere function nobody knows
    workers = min(r, available()) if apart else 1
    mine = math.ceil(r / workers)
    workers = math.ceil(r / mine)
    share = budget // workers
    cached = _CACHED // workers // max(kept, 1) if on_cpu else r
    at_once = max(1, min(mine, cached, share // (computed + state))) if problem.batched else 1
    rows = max(at_once, min(mine, (share - at_once * computed) // state))
    sets = workers * math.ceil(r / (workers * rows))
    rows = math.ceil(r / sets)
    return Division(workers, rows, math.ceil(rows / math.ceil(rows / at_once)))


def _step_takes(problem: Problem, algorithm: Algorithm, start: Parameters, tunable: Mask, index: Tensor) -> int:
    """Bytes for loss and gradient of one replica on one batch."""
    first = next(iter(start.values()))
    ones = first.new_ones(1, problem.n)

    def step() -> None:
        reduced = algorithm.product_precision == "bfloat16"
        objective = Objective(problem, start, tunable, weights=ones, ridges=torch.zeros_like(ones[:, :1]), autocast=reduced)
        objective(objective.origin.unsqueeze(0), index, algorithm.dropout_at(0, first.device))

    return peak_of_tensors(step)


def _largest_evaluated(problem: Problem) -> Examples:
    """The largest block of examples for which logits are computed at once."""
    splits = [split for split in (problem.train, problem.validation, problem.test) if split is not None and len(split)]
    return _largest([block for split in splits for block in split.blocks()])


def _largest(blocks: Sequence[tuple[Tensor, Examples]]) -> Examples:
    return max((block for _, block in blocks), key=lambda block: len(block) * block.longest(ALL))


def carry_out(task: Task, how: Division, progress: Progress | None = None) -> Iterator[tuple[Tensor, Trained]]:
    """Train the replicas of ``task``, divided as ``how`` says. A set that does not fit into memory is halved, and begins anew.

    Args:
        task: the r replicas.
        how: how they are divided.
        progress: is told how many replica-steps were done.

    Yields:
        The rows of a set and what came of them; sets come in any order.

    Raises:
        MachineError: not even one replica fits into memory.
    """
    fixed = task.algorithm.shares_beginnings and not task.algorithm.selector.moving and task.activity is None
    fixed = fixed and task.watched is None  # who ends early would have to leave the trunk's company
    when = departures(task.weights, task.usual, task.batches) if fixed else torch.zeros(len(task.weights), dtype=torch.int64)
    order = when.argsort(stable=True)
    sets = math.ceil(len(order) / how.rows)
    # Every set gets early and late ones alike: sets take equally long, and the trunk is common to many.
    waiting = [order[i::sets] for i in range(sets)]

    def run(task: Task, rows: Tensor, progress: Progress | None) -> tuple[Tensor, Trained]:
        rows, sharing = _shared(rows, when[rows], len(task.batches))
        return rows, task.run(rows, sharing, how.at_once, progress)

    with (
        _products("high") if task.algorithm.product_precision == "tf32" else nullcontext()
    ):  # the process's setting, so it is set where there is one thread
        if how.workers > 1 and sets > 1:
            for place, found in _by_threads(task, how.workers, run, waiting, progress):
                yield found
                waiting[place] = order[:0]
                del found
        waiting = [rows for rows in waiting if len(rows)]  # threads that shared the memory had too little of it for these
        while waiting:
            rows = waiting.pop(0)
            found_alone = if_it_fits(partial(run, task, rows, progress))
            if found_alone is not None:
                yield found_alone
            elif len(rows) == 1:
                raise one_too_large(task.weights.device, task.tunable.count)
            else:
                waiting = [rows[::2], rows[1::2], *waiting]
                gc.collect()
            del found_alone
            if waiting:
                release(task.weights.device)


def _by_threads(
    task: Task,
    workers: int,
    run: Callable[[Task, Tensor, Progress], tuple[Tensor, Trained]],
    sets: Sequence[Tensor],
    progress: Progress | None,
) -> Iterator[tuple[int, tuple[Tensor, Trained]]]:
    """The place of each of the ``sets`` that fitted into memory, and what came of it."""
    threads, stop, lock, own = torch.get_num_threads(), threading.Event(), threading.Lock(), threading.local()

    def told(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        if progress is not None:
            with lock:
                progress(count)

    def alone(rows: Tensor) -> tuple[Tensor, Trained]:
        if not hasattr(own, "task"):
            torch.set_num_threads(max(1, threads // workers))
            # functional_call puts parameters into the module while it runs: each thread needs one of its own.
            watched = None if task.watched is None else _with_own_model(task.watched)
            own.task = replace(task, problem=_with_own_model(task.problem), watched=watched)
        return run(own.task, rows, told)

    def start(pool: ThreadPoolExecutor) -> dict[Future[tuple[Tensor, Trained] | None], int]:
        return {pool.submit(if_it_fits, partial(alone, rows)): place for place, rows in enumerate(sets)}

    with ThreadPoolExecutor(workers) as pool:
        try:
            places = if_it_fits(partial(start, pool)) or {}  # a thread needs memory, too
            for future in as_completed(places):
                if (found := future.result()) is not None:
                    yield places[future], found
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _with_own_model(problem: Problem) -> Problem:
    return replace(problem, logits=copy.deepcopy(problem.logits))


@contextmanager
def _products(precision: Literal["high", "highest"]) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Stopped(Exception):  # noqa: N818 - nothing went wrong here
    """Another thread failed, or the user interrupted."""


def _shared(rows: Tensor, when: Tensor, never: int) -> tuple[Tensor, Sharing | None]:
    """A set's rows in the order in which they depart, after the trunk where it is one of them."""
    lone = int(when[-1]) < never
    if not lone:
        rows, when = rows.roll(1), when[:-1]
    saved = int(when.sum()) - (int(when[-1]) if lone else 0)
    return rows, Sharing(when.tolist(), lone) if saved > 0 else None
