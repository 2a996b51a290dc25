"""One set of replicas from start to end, step by step down an objective."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stability.errors import UsageError, explained
from stability.masks import Mask
from stability.problems.problem import generator
from stability.selectors import Course, Run, Selector
from stability.selectors.moving import MakeOptimizer, Optimizer
from stability.training.adamw import Clock
from stability.training.dropout import Dropout
from stability.training.objective import Descended, Objective
from stability.training.stopping import Checkpoints

__all__ = ["DIVERGED", "PLAIN", "Progress", "RunOptions", "Sharing", "Stepwise", "Trained", "begun", "descend", "run_of"]

DIVERGED = 1e4
"""A replica has diverged when its batch loss is not finite or exceeds this many times max(1, its first batch loss)."""

_WORTHWHILE = 0.5  # the share of the coordinates from which on a step of these alone saves nothing

Progress = Callable[[int], object]
"""Called with the number of replica-steps just done."""


@dataclass(frozen=True)
class Sharing:
    """Which replicas begin as one run. Each equals row 0, the trunk, up to the step in which its weights first differ.

    Attributes:
        departures: the step at which each of the rows from 1 on leaves the trunk, ascending.
        lone: whether nobody asked for row 0, so that it ends when the last row has left it.
    """

    departures: Sequence[int]
    lone: bool

    def rows(self, step: int) -> slice:
        """The rows that are computed in this step."""
        end = bisect.bisect_right(self.departures, step)
        return slice(int(self.lone and end == len(self.departures)), 1 + end)


@dataclass(frozen=True, eq=False, kw_only=True)
class RunOptions:
    """How one set of r replicas is run, beside its objective and its batches.

    Attributes:
        reverse: whether each batch is in reverse order.
        activity: bool (r, K), which coordinates each row may change; by default all. Only with a fixed mask.
        sharing: which rows begin as one run; by default none. Only with a fixed mask, the same for all rows.
        metric: trained values (r, K) → the metric on the validation split (r,), to choose a checkpoint by.
        progress: is told how many replica-steps were done.
    """

    reverse: bool = False
    activity: Tensor | None = None
    sharing: Sharing | None = None
    metric: Callable[[Tensor], Tensor] | None = None
    progress: Progress | None = None


PLAIN: RunOptions = RunOptions()
"""Every row trains alone and may change every coordinate, and nobody watches."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """What came of r replicas, a row each.

    Attributes:
        values: (r, K) the values after training.
        failed_step: (r,) the step at which a row failed; −1 where it did not.
        kept_step: (r,) after how many steps the values are.
        batch_losses: (t, r) the loss of each step's batch, before the step.
        mask_changes: (t, r) how many coordinates entered the mask in each step.
        relaxed: (t,) whether the step's loss was taken with soft or random gates instead of a mask.
        masks: each row's final mask, where masks move; otherwise empty.
        spared: how many replica-steps were taken and not computed, because replicas began as one.
        at_once: how many replicas were computed at once in the end.
    """

    values: Tensor
    failed_step: Tensor
    kept_step: Tensor
    batch_losses: Tensor
    mask_changes: Tensor
    relaxed: Tensor
    masks: Sequence[Mask]
    spared: int = 0
    at_once: int = 0


class Stepwise(Protocol):
    """What the loop asks of an algorithm that goes step by step."""

    @property
    def selector(self) -> Selector:
        """Whether and how the mask moves."""

    @property
    def seed(self) -> int:
        """Of what a moving mask draws."""

    @property
    def max_steps(self) -> int:
        """How many steps there will be at most."""

    def optimizer(self, clock: Clock) -> MakeOptimizer:
        """What makes the optimizers of one run, which share its ``clock``."""

    def dropout_at(self, step: int, device: torch.device, reverse: tuple[int, int] | None = None) -> Dropout | None:
        """What draws dropout in this step, or None."""


class _Fixed(Course):
    """A mask that does not move: one AdamW over the tuned values, in each row over its own."""

    def __init__(self, values: Tensor, optimizer: Optimizer, activity: Tensor | None) -> None:
        self._values, self._activity = values, activity
        self.optimizer: Optimizer = optimizer

    def point(self) -> Tensor:
        return self._values

    def step(self, gradient: Tensor) -> None:
        updated = self.optimizer.update(self._values, gradient)
        self._values = updated if self._activity is None else torch.where(self._activity, updated, self._values)

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, some of them twice."""
        self._values = self._values[rows]
        self.optimizer.take(rows)

    def final(self) -> tuple[Tensor, Tensor | None]:
        return self._values, None


class _Settled(_Fixed):
    """A mask that has moved and now stays: what trains in some row's mask, and the head.

    Args:
        run: the run.
        values: (r, K) so far.
        mask: bool (r, m).
        optimizer: of the values; its moments are narrowed.
        columns: where some row trains, int64, of the K.
    """

    def __init__(self, run: Run, values: Tensor, mask: Tensor, *, optimizer: Optimizer, columns: Tensor) -> None:
        optimizer.narrow(columns)
        held = run.held(mask)[:, columns]
        super().__init__(values[:, columns], optimizer, None if bool(held.all()) else held)
        self.mask, self._run, self._columns = mask, run, columns

    def final(self) -> tuple[Tensor, Tensor | None]:
        values = self._run.start()
        values[:, self._columns] = self._values
        return values, self.mask


def descend(
    objective: Descended,
    algorithm: Stepwise,
    batches: Sequence[Tensor],
    options: RunOptions = PLAIN,
    kept: Checkpoints | None = None,
) -> Trained:
    """Train one set of r replicas from start to end, down the network's objective or its linearisation.

    Args:
        objective: gives losses and gradients by the K trained values.
        algorithm: the optimizer, the selector and the number of steps.
        batches: the indices that each step takes, int64 (b,) each.
        options: how the rows are run; its ``metric`` is left to ``kept``.
        kept: stops early, and says which checkpoint is the end. Not together with ``options.sharing``.

    Returns:
        What came of each row. A row has failed in the step whose loss is not finite or exceeds :data:`DIVERGED` times the larger
        of 1 and its first loss.
    """
    origin, selector, shapes = objective.origin, algorithm.selector, objective.shapes
    clock = Clock()
    sharing = options.sharing or Sharing([0] * (objective.rows - 1), lone=False)
    rows, everyone = sharing.rows(0), slice(0, objective.rows)
    asked = slice(int(sharing.lone), everyone.stop)
    run = run_of(algorithm, origin, shapes, rows.stop, clock)
    method = f"selector {selector.name!r}"
    untouched = run.origin._version
    course = begun(selector, run) if selector.moving else _unmoved(run, options.activity)
    failed = torch.full((everyone.stop,), -1, device=origin.device)
    limit = torch.zeros(())
    # All memory that outlives a step is taken here: small blocks kept from each step would pin the heap around them.
    losses = origin.new_full((len(batches), everyone.stop), torch.nan)
    changes = torch.zeros(len(batches), everyone.stop, dtype=torch.int64)
    relaxed, spared = torch.zeros(len(batches), dtype=torch.bool), 0
    for step, index in enumerate(batches):
        clock.step = step
        rows = _go_on(course, rows, sharing.rows(step))
        if step == course.settles and isinstance(objective, Objective) and objective.narrows:
            course, objective = _settled(course, objective, run)
        dropout = algorithm.dropout_at(step, origin.device, (len(index), objective.sequences) if options.reverse else None)
        with explained(method):
            values = course.point()
        found, _, gradient = objective(values, index, dropout, rows)
        rest = found[:1].expand(everyone.stop - rows.stop)  # of those that are still one with the trunk
        loss = torch.cat([found.new_zeros(rows.start), found, rest])
        if step == 0:
            limit = DIVERGED * loss.clamp_min(1.0)
            if dropout is not None and not dropout.used:
                raise UsageError("dropout = True: this model drops nothing out, its dropout probabilities are 0; leave it off")
        failing = (failed < 0) & ~(loss <= limit)
        if kept is not None and len(kept.values):  # what has ended is computed along, and no longer counts
            failing, loss = failing & ~kept.ended, torch.where(kept.ended, torch.nan, loss)
        failed = torch.where(failing, step, failed)
        before = course.mask
        relaxed[step] = course.relaxed
        with explained(method):
            course.step(gradient)
        spared += asked.stop - asked.start - len(found)
        losses[step] = loss
        changes[step] = _entered(before, course.mask, everyone.stop)
        if options.progress is not None:
            options.progress(asked.stop - asked.start)
        if kept is not None and kept.due(step + 1):
            kept.look(step + 1, *_ended(copy.copy(course), run))  # a copy, for the course itself goes on
            if bool(kept.ended.all()):
                break
    _go_on(course, rows, asked)
    if run.origin._version != untouched:
        raise UsageError(f"{method} changed θ⁰, run.origin, in place: work on run.start(), which is its own")
    before, masks = course.mask, []
    values, chosen = _ended(course, run) if kept is None else (kept.values, kept.mask)
    if chosen is not None:
        if kept is None:
            changes[-1] += _entered(before, course.mask, run.rows)
        first = Mask.at(shapes, torch.nonzero(chosen[0]).squeeze(1))
        same = (chosen == chosen[0]).all(1).tolist()  # one object for all: of a dense mask each takes 8m bytes
        masks = [first if mine else Mask.at(shapes, torch.nonzero(row).squeeze(1)) for mine, row in zip(same, chosen, strict=True)]
    failed = failed[asked]
    failed = torch.where((failed < 0) & ~torch.isfinite(values).all(1), algorithm.max_steps, failed)
    return Trained(
        values=values,
        failed_step=failed,
        kept_step=torch.full_like(failed, algorithm.max_steps) if kept is None else kept.step,
        batch_losses=losses[:, asked],
        mask_changes=changes[:, asked],
        relaxed=relaxed,
        masks=masks,
        spared=spared,
    )


def run_of(algorithm: Stepwise, origin: Tensor, shapes: Mapping[str, tuple[int, ...]], rows: int, clock: Clock) -> Run:
    """What the engine gives a method for one batch of replicas.

    Args:
        algorithm: the optimizer, the selector and the number of steps.
        origin: (K,) where every replica starts.
        shapes: of the pretrained tensors.
        rows: r, the number of replicas.
        clock: the run's step.
    """
    return Run(
        origin=origin,
        rows=rows,
        shapes=shapes,
        steps=algorithm.max_steps,
        optimizer=algorithm.optimizer(clock),
        draws=generator(algorithm.seed, "selection"),
        name=algorithm.selector.name,
    )


def begun(selector: Selector, run: Run) -> Course:
    """The start of a moving method, checked.

    Args:
        selector: the method.
        run: what it is given.

    Raises:
        UsageError: it refuses, begins no course, or one whose mask settles after no number of steps.
    """
    method = f"selector {selector.name!r}"
    with explained(method):
        course = selector.begin(run)
    if not isinstance(course, Course):
        raise UsageError(f"{method} began {type(course).__name__}: begin returns a stability.selectors.Course")
    settles = course.settles
    if settles is not None and (not isinstance(settles, int) or settles < 0):
        raise UsageError(f"{method} began a course with settles = {settles!r}: use a number of steps, or None for never")
    return course


def _unmoved(run: Run, activity: Tensor | None) -> Course:
    values = run.start()
    return _Fixed(values, run.optimizer(values), activity)


def _settled(course: Course, objective: Objective, run: Run) -> tuple[Course, Objective]:
    """Course and objective at the coordinates of the masks and the head alone, if that is a small part."""
    values, _ = _ended(copy.copy(course), run)  # complains where the masks could not be chosen
    if course.mask is None or course.optimizer is None:
        raise UsageError(
            f"selector {run.name!r}: its course says that its mask stays after step {course.settles}, and has no mask or no "
            "optimizer: set both, or leave settles at None"
        )
    columns = run.held(course.mask).any(0).nonzero().squeeze(1)
    if len(columns) > _WORTHWHILE * len(objective.origin):
        return course, objective
    with explained(f"selector {run.name!r}"):
        settled = _Settled(run, values, course.mask, optimizer=course.optimizer, columns=columns)
    return settled, objective.narrow(columns)


def _ended(course: Course, run: Run) -> tuple[Tensor, Tensor | None]:
    """Values and mask if training ended here."""
    with explained(f"selector {run.name!r}"):
        values, chosen = course.final()
    if chosen is not None and (chosen.dtype != torch.bool or chosen.shape != (run.rows, run.m)):
        raise UsageError(
            f"selector {run.name!r} ended with a mask {tuple(chosen.shape)} of {chosen.dtype}: a bool mask (r, m) = ({run.rows}, "
            f"{run.m}) expected"
        )
    return values if chosen is None else run.put_back(values, chosen), chosen


def _go_on(course: Course, rows: slice, now: slice) -> slice:
    """With the rows ``now`` after ``rows``: who departs begins where the trunk is, the first."""
    if now != rows:
        assert type(course) is _Fixed
        course.take(torch.tensor([row - rows.start if row < rows.stop else 0 for row in range(now.start, now.stop)]))
    return now


def _entered(before: Tensor | None, now: Tensor | None, rows: int) -> Tensor:
    """How many coordinates of each row's mask it did not have before, (r,)."""
    if now is None or now is before:
        return torch.zeros(rows, dtype=torch.int64)
    return (now if before is None else now & ~before).sum(1).cpu()
