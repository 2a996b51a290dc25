"""The trainings of one measurement of a problem: of A(S) alone, and of many replicas at once, each without one unit.

A portion of the retrainings depends on no other. So :mod:`.dividing` can have portions computed in other processes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stability.errors import UsageError, explained
from stability.leave_one_out.units import Units
from stability.masks import Mask
from stability.problems.problem import Examples, Problem, generator
from stability.training import Algorithm
from stability.training.descent import Progress
from stability.training.objective import Observer
from stability.training.progress import Stages
from stability.training.replicas import Replicas, train
from stability.training.substitutes import usual_weights

__all__ = ["MasksOfUnits", "Memory", "Outcome", "Retraining"]


@dataclass(frozen=True)
class Memory:
    """What :func:`stability.train` is told of memory.

    Attributes:
        replica_batch: how many replicas are computed at once in each thread; None: as many as the budget allows.
        budget: bytes to plan with; None: half of what is free.
    """

    replica_batch: int | None = None
    budget: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What the trainings without some units gave, before anything is compared.

    Attributes:
        replicas: the trained models, A(S) first where it went along.
        own: (a,) the loss of each unit, under the model that was trained without it.
        held_out: (a, N) the losses of the held-out examples under each of these models.
        whole: (n,) the losses on S of the A(S) that went along; None where none did.
        whole_held_out: (1, N) its losses of the held-out examples.
        seconds: of the trainings, without those of the losses.
        all_seconds: with them.
    """

    replicas: Replicas
    own: Tensor
    held_out: Tensor
    whole: Tensor | None
    whole_held_out: Tensor | None
    seconds: float
    all_seconds: float


class MasksOfUnits:
    """The masks of S and of each Sⁱ, selected when they are asked for; none where they move.

    Args:
        problem: the one that is trained.
        algorithm: selects.
        units: what is left out.
        reselect: whether the mask of each Sⁱ is selected; otherwise it is that of S.
        told: is told what is being done.
        own: that of S, where it is known; None: it is selected here.

    Attributes:
        own: the mask of S; None where masks move.
        reselect: whether the masks of the Sⁱ may be others.

    Raises:
        UsageError: a selector of the user's own that chooses another mask when it is asked again.
    """

    def __init__(
        self, problem: Problem, algorithm: Algorithm, units: Units, *, reselect: bool, told: Stages, own: Mask | None = None
    ) -> None:
        self._problem, self._algorithm, self._units, self._told = problem, algorithm, units, told
        self.own = own
        if own is None and not algorithm.selector.moving:
            told.begin("selecting which parameters may change", unit="mask")
            self.own = algorithm.select(problem)
            if algorithm.selector.code() is not None and not algorithm.select(problem).equals(self.own):
                raise UsageError(
                    f"selector {algorithm.selector.name!r} chose another mask when it was asked again: what it draws and remembers "
                    "would pass for an effect of leaving out; draw from the generator that it is given, or "
                    "generator(seed, 'selection')"
                )
        self.reselect = reselect and algorithm.selector.uses_data and not algorithm.selector.moving
        self._each: dict[int, Mask] = {}  # of Sⁱ by i: the predictor asks for all, and then the retraining for some

    @property
    def k(self) -> int:
        """How many pretrained coordinates may change; of a mask that moves all."""
        return self._problem.m if self.own is None else self.own.count

    def known(self, left_out: Sequence[int]) -> dict[int, Mask]:
        """Those masks of the Sⁱ that were selected already."""
        return {i: self._each[i] for i in left_out if i in self._each}

    def know(self, each: Mapping[int, Mask]) -> None:
        """Take over masks of the Sⁱ."""
        self._each.update(each)

    def of(self, left_out: Sequence[int]) -> list[Mask]:
        """S's mask, then that of each Sⁱ."""
        if self.own is None:
            return []
        if not self.reselect or not left_out:
            return [self.own] * (len(left_out) + 1)
        if new := [i for i in left_out if i not in self._each]:
            self._told.begin(f"selecting again {self._units.words.each_of(str(len(new)))}", len(new), "mask")
            with explained(f"selector {self._algorithm.selector.name!r}"):
                for i, mask in zip(new, self._units.selected(self._problem, self._algorithm, new), strict=True):
                    self._each[i] = mask
                    self._told(1)
        return [self.own, *(self._each[i] for i in left_out)]


@dataclass(frozen=True, eq=False)
class Retraining:
    """What the trainings of one measurement have in common.

    Attributes:
        problem: the one that is trained.
        algorithm: A, its settings complete.
        units: what is left out.
        masks: of S and of each Sⁱ.
        test_examples: the models are evaluated on so many test examples; None: on all.
    """

    problem: Problem
    algorithm: Algorithm
    units: Units
    masks: MasksOfUnits
    test_examples: int | None = field(default=None, kw_only=True)

    def tested(self) -> Examples:
        """The test examples on which the models are evaluated: the same for every method and seed."""
        every = self.problem.test
        if self.test_examples is None or self.test_examples >= len(every):
            return every
        chosen = torch.randperm(len(every), generator=generator(0, "test examples"))[: self.test_examples]
        return every.take(chosen.sort().values)

    def steps(self, replicas: int) -> int | None:
        """The steps of so many replicas together, where they are known beforehand."""
        return replicas * self.algorithm.max_steps if self.algorithm.stepwise else None

    def alone(self, observer: Observer | None, progress: Progress) -> Replicas:
        """A(S), in full precision: what reduced precision does to the losses is then in the noise floor.

        Args:
            observer: is told of every step.
            progress: is told how many steps were done.
        """
        return train(
            self.problem,
            self.algorithm.in_full_precision(),
            masks=self.masks.of([]) or None,
            replica_batch=1,
            observe=observer,
            progress=progress,
        )

    def without(self, left_out: Tensor, along: bool, memory: Memory, told: Stages) -> Outcome:
        """The trainings without each of some units. The examples of each batch come in reverse order.

        Args:
            left_out: the numbers of the units, (a,).
            along: train A(S) as well, as row 0.
            memory: how many replicas are computed at once.
            told: is told what is being done.
        """
        began, problem, units, tested = time.perf_counter(), self.problem, self.units, self.tested()
        weights, substitutes = units.weights(left_out), units.substitutes(left_out)
        if along:
            weights = torch.cat([usual_weights(problem.n, substitutes).unsqueeze(0), weights])
        masks = self.masks.of(left_out.tolist())[not along :] or None
        told.begin(units.words.retraining(len(left_out), first=along), self.steps(len(weights)))
        part = train(
            problem,
            self.algorithm,
            weights,
            masks,
            substitutes=substitutes,
            reverse_batches=True,
            replica_batch=memory.replica_batch,
            memory_budget=memory.budget,
            progress=told,
        )
        told.begin("evaluating")
        seconds, whole, whole_held_out, rows = time.perf_counter() - began, None, None, slice(int(along), None)
        if along:
            whole = part.losses(problem.train, slice(0, 1))[0].cpu()
            whole_held_out = part.losses(tested, slice(0, 1)).cpu()
        mine = dataclasses.replace(part, values=part.values[rows])
        return Outcome(
            replicas=part,
            own=units.own_losses(mine, left_out).cpu(),
            held_out=mine.losses(tested).cpu(),
            whole=whole,
            whole_held_out=whole_held_out,
            seconds=seconds,
            all_seconds=time.perf_counter() - began,
        )
