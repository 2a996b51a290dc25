"""The retrainings of one measurement, divided among workers.

A portion of them is a job of a pool (:mod:`stability.workers`). What all portions share is sent once: the problem, the algorithm
and the mask of S. A portion comes back with its trained values and its losses. A worker evaluates and selects masks, too, so that
only what must be known of all is left for the process that measures: A(S) alone, the prediction, and the estimate.
"""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from stability.errors import MachineError, StabilityError, described
from stability.leave_one_out.perturbations import Perturbation
from stability.leave_one_out.retraining import MasksOfUnits, Memory, Outcome, Retraining
from stability.machine import out_of_memory, resolve_device
from stability.masks import Mask, Parameters
from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.progress import SILENT, Counted, Stages
from stability.workers.pools import LESS, TRIES, Job, Lost, Place, Pool, Shared

__all__ = ["Divided", "Given", "Portion"]

_MOST = 128  # replicas of a portion: what a worker that is lost costs at most, and enough to be computed at once
_LOOK = 0.5  # seconds between two looks at how far the portions are


class Given:
    """What the portions of one measurement share.

    Args:
        problem: as it was given, on the CPU.
        algorithm: A, its settings complete.
        perturbation: what is done to S.
        own: the mask of S; None where masks move.
        reselect: whether the masks of the Sⁱ are selected again.
        memory: what was asked for.
        test_examples: the models are evaluated on so many test examples; None: on all.
    """

    def __init__(
        self,
        problem: Problem,
        algorithm: Algorithm,
        perturbation: Perturbation,
        *,
        own: Mask | None,
        reselect: bool,
        memory: Memory,
        test_examples: int | None,
    ) -> None:
        self._problem, self._algorithm, self._perturbation = problem, algorithm, perturbation
        self._own, self._reselect = own, reselect
        self.memory, self._test_examples = memory, test_examples
        self._made: dict[str, Retraining] = {}

    def on(self, device: str) -> Retraining:
        """The trainings as a worker does them, on its device."""
        if device not in self._made:
            problem = self._algorithm.equivalent(self._problem.to(resolve_device(device)))
            units = self._perturbation.units(problem, self._algorithm.seed)
            masks = MasksOfUnits(problem, self._algorithm, units, reselect=self._reselect, told=SILENT, own=self._own)
            self._made[device] = Retraining(problem, self._algorithm, units, masks, test_examples=self._test_examples)
        return self._made[device]


@dataclass(frozen=True, eq=False)
class Portion(Job):
    """Some of the retrainings.

    Attributes:
        left_out: the numbers of the units, (a,).
        along: whether A(S) goes along.
        masks: those of the Sⁱ that are known already, by i.
        shared: a :class:`Given`.
    """

    left_out: Tensor
    along: bool
    masks: Mapping[int, Mask]
    shared: Shared | None = None

    def sent(self) -> Portion:
        return dataclasses.replace(self, shared=None)

    def compute(self, place: Place, shared: Any) -> Outcome | StabilityError:
        """An error is given back: not every one of a library's can be sent as it is."""
        try:
            retraining: Retraining = shared.on(place.device)
            retraining.masks.know(self.masks)
            memory = _less(shared.memory, place)
            found = retraining.without(self.left_out, self.along, memory, Counted(place.told))
            replicas, own = found.replicas, retraining.masks.own is not None and not retraining.masks.reselect
            # The process that measures has the rest, though perhaps no GPU; masks are sent where they are not that of S.
            sent: dict[str, Any] = {"problem": None, "algorithm": None, "start": {}, **({"masks": ()} if own else {})}
            sent |= {name: value.cpu() for name, value in vars(replicas).items() if isinstance(value, Tensor)}
            return dataclasses.replace(found, replicas=dataclasses.replace(replicas, **sent))
        except (Exception, SystemExit) as error:
            return _sendable(error)

    def failed(self, device: str, error: BaseException) -> StabilityError:
        return _sendable(error)


def _less(memory: Memory, place: Place) -> Memory:
    """A worker's share of it, with what the place allows, and with fewer replicas at once after each loss."""
    batch, less = memory.replica_batch, LESS**place.losses
    share = None if memory.budget is None else max(1, memory.budget // (less * place.sharing))
    budgets = [budget for budget in (share, place.memory_budget) if budget is not None]
    return Memory(None if batch is None else max(1, batch // less), min(budgets, default=None))


def _sendable(error: BaseException) -> StabilityError:
    if isinstance(error, StabilityError):
        return error
    return (MachineError if out_of_memory(error) else StabilityError)(f"a worker raised {described(error)}")


class Divided:
    """Has retrainings computed by a pool.

    Args:
        pool: computes; it is entered already.
        retraining: the same trainings in this process.
        given: what the portions share.
        told: is told what is being done.
    """

    def __init__(self, pool: Pool[Portion], retraining: Retraining, given: Given, told: Stages) -> None:
        self._pool, self._retraining, self._told = pool, retraining, told
        self._shared = Shared(f"measurement {uuid.uuid4()}", lambda: given, what="the problem or the algorithm")
        pool.hold(self._shared)
        pool.warm()

    def without(self, left_out: Tensor, along: bool) -> Iterator[Outcome]:
        """As :meth:`.retraining.Retraining.without`, portion by portion in their order, A(S) first where it goes along.

        Raises:
            MachineError: three workers were lost over one portion, or one replica does not fit into their memory.
            StabilityError: what a worker raised.
        """
        masks = self._retraining.masks
        jobs = [
            Portion(some, along and not place, masks.known(some.tolist()), self._shared)
            for place, some in enumerate(portions(left_out, along, self._pool.size))
        ]
        rows = len(left_out) + along
        self._told.begin(self._retraining.units.words.retraining(len(left_out), first=along), self._retraining.steps(rows))
        waiting, under_way, losses = deque(jobs), 0, dict.fromkeys(jobs, 0)
        found: dict[Portion, Outcome] = {}
        counted = dict.fromkeys(jobs, 0)
        while len(found) < len(jobs):
            while waiting and under_way < self._pool.size:
                job = waiting.popleft()
                self._pool.start(job, losses[job])
                under_way += 1
            ended = list(self._pool.ended(_LOOK))
            under_way -= len(ended)
            for job, outcome in ended:
                if isinstance(outcome, Lost | MachineError):
                    losses[job] += 1
                    if losses[job] == TRIES:
                        raise self._lost(job, outcome)
                    waiting.append(job)
                elif isinstance(outcome, StabilityError):
                    raise outcome
                else:
                    found[job] = self._whole(outcome)
            for job in jobs:
                steps = self._retraining.steps(len(job.left_out) + job.along) if job in found else self._pool.counted(job)
                more = max(0, (steps or 0) - counted[job])
                if more:
                    counted[job] += more
                    self._told(more)
        yield from (found.pop(job) for job in jobs)

    def _whole(self, found: Outcome) -> Outcome:
        """With what was not sent back, on the device of this process."""
        replicas, retraining = found.replicas, self._retraining
        known: dict[str, Any] = {"problem": retraining.problem, "algorithm": retraining.algorithm, "start": self._start}
        device = next(iter(self._start.values())).device
        if not replicas.masks:
            known["masks"] = [retraining.masks.own] * len(replicas)
        return dataclasses.replace(found, replicas=dataclasses.replace(replicas, values=replicas.values.to(device), **known))

    @cached_property
    def _start(self) -> Parameters:
        return self._retraining.problem.start(self._retraining.algorithm.seed)

    def _lost(self, job: Portion, outcome: Lost | MachineError) -> MachineError:
        if isinstance(outcome, MachineError):
            return outcome
        units, first = self._retraining.units, int(job.left_out[0])
        others = f" and {len(job.left_out) - 1} others" if len(job.left_out) > 1 else ""
        which = f"{units.name_of(first, 'example {}'.format)}{others}"
        return MachineError(
            f"the process that retrained without {which} {outcome.why}, in the last of {TRIES} tries: "
            "use fewer workers, or a smaller replica_batch or memory_budget"
        )


def portions(left_out: Tensor, along: bool, workers: int) -> list[Tensor]:
    """The units divided among workers: as many for each, as nearly as can be, and no more than 128 trainings at once.

    Args:
        left_out: the numbers of the units, (a,) with a ≥ 1.
        along: whether A(S) is trained with the first of them.
        workers: how many there are.

    Example:
        >>> import torch
        >>> [len(some) for some in portions(torch.arange(20), True, 2)]
        [10, 10]
        >>> [len(some) for some in portions(torch.arange(3), False, 8)]
        [1, 1, 1]
    """
    rows = len(left_out) + along
    count = min(len(left_out), workers * math.ceil(rows / (workers * _MOST)))
    sizes = [rows // count + (place < rows % count) for place in range(count)]
    sizes[0] -= along
    return list(left_out.split(sizes))
