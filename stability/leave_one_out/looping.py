"""The stability of a training loop of one's own, by the same estimators."""

from __future__ import annotations

import dataclasses
import math
import pickle
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stability.checks import check_kind, check_whole
from stability.errors import MachineError, MeasurementError, OwnCodeError, StabilityError, UsageError, described, explained
from stability.leave_one_out.estimate import StabilityEstimate, Subject
from stability.leave_one_out.estimators import Auto, Choice, Estimator
from stability.leave_one_out.executor import Executor, Models, Part
from stability.leave_one_out.loops import Floats, Loop, Losses
from stability.leave_one_out.perturbations import LeaveManyOut, LeaveOneOut, Perturbation
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.procedure import carried_out
from stability.leave_one_out.units import SingleExamples, Units
from stability.machine import out_of_memory
from stability.training.descent import Progress
from stability.training.progress import Stages, stages

__all__ = ["measure_loop"]

_REPEATED = 1e-5  # of the mean loss: two runs that differ by more do not differ by rounding alone


def measure_loop(
    loop: Loop,
    estimator: Estimator | None = None,
    *,
    perturbation: LeaveManyOut | LeaveOneOut | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    workers: int = 1,
    progress: bool | Progress = False,
) -> StabilityEstimate:
    """The leave-one-out stability of any training program: one of scikit-learn, a ``transformers.Trainer``, or a loop of your own.

    As for :func:`stability.measure`, β₂ is the mean over i of |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|, and A(S) is trained first. It is
    trained once more with the same weights and seed. How far these two differ is the noise floor: 0 up to rounding for a loop that
    keeps to its seed.

    :class:`~stability.estimators.Assisted` draws those examples most often whose loss under A(S) is largest, or the squared norm of
    their gradient where the loop gives gradients. That predicts no size: in the estimate it is scaled to the measured stability.
    :class:`~stability.estimators.Auto` leaves out every example up to n = 100, and beyond as few as ±20 % need, at most 50.

    Args:
        loop: one of :mod:`stability.loops`.
        estimator: one of :mod:`stability.estimators`, by default ``Auto()``. Not Approximate, for nothing predicts a size.
        perturbation: :class:`~stability.perturbations.LeaveGroupOut` or :class:`~stability.perturbations.RemoveFraction`; by
            default single examples are left out. With another one every "example" here is a group or a part.
        seed: is given to the loop, and draws the examples that are left out.
        confidence: of the intervals. They speak of the choice of i alone.
        workers: how many trainings run at once, each in a process of its own (``joblib``).
        progress: True shows a bar in a terminal or a notebook, and a line every ten seconds where output goes to a file. A function
            is told how many trainings were done.

    Returns:
        The estimate. What a loop does not have is None: ``k``, ``m``, ``head`` and ``replicas``. ``distance`` and ``hypothesis``
        are NaN where the loop gives no parameters and no held-out losses.

    Raises:
        UsageError: no loop, no losses of A(S) or of a wrong length, an estimator that does not suit a loop, or a budget too
            small for one retraining.
        OwnCodeError: the loop raised an error while it trained A(S). While it trains without an example, an error or a result of
            another length is a failure of this example, and a note says why.
        MeasurementError: a loss of A(S) is not finite, or every training without an example failed.

    Example:
        >>> import numpy as np
        >>> from stability import loops
        >>> x, y = np.arange(6.0), np.array([0.0, 1.0, 2.0, 3.0, 4.0, 9.0])
        >>> def line(weights, seed):
        ...     return (y - np.polyval(np.polyfit(x, y, deg=1, w=np.sqrt(weights)), x)) ** 2
        >>> estimate = measure_loop(loops.ByWeight(line, n=6, loss_unit="squared error"))
        >>> estimate.examples()["index"].tolist()[:2], estimate.status
        ([5, 4], <Status.EXACT: 'exact'>)
    """
    began = time.perf_counter()
    check_kind(Loop, "one of stability.loops, such as ByWeight(function, n=100)", loop=loop)
    estimator = Auto() if estimator is None else estimator
    check_kind(Estimator, "one of stability.estimators, such as Sampled(retrainings=10)", estimator=estimator)
    check_whole(0, 2**32 - 1, "scikit-learn and numpy take no other seeds", seed=seed)
    check_whole(1, workers=workers)
    units: Units = SingleExamples(loop.n)
    if isinstance(perturbation, Perturbation) and not isinstance(perturbation, LeaveManyOut | LeaveOneOut):
        raise UsageError(
            f"perturbation = {perturbation.name}: it changes an example, and a loop can only leave examples out: use "
            "LeaveGroupOut(groups) or RemoveFraction(fraction); for a problem, stability.measure takes it"
        )
    if perturbation is not None and not isinstance(perturbation, LeaveOneOut):
        check_kind(LeaveManyOut, "LeaveGroupOut(groups) or RemoveFraction(fraction), for a loop", perturbation=perturbation)
        units = perturbation.parts(loop.n, seed, name=f"loop {loop.name!r}")
    estimator.check(units.count)
    with stages(progress, unit="training") as told:
        return carried_out(_Looped(loop, units, seed, workers, told), estimator, confidence, began)


class _Looped(Executor):
    """Calls a loop, once for each unit.

    Args:
        loop: trains.
        units: what is left out.
        seed: is given to it.
        workers: how many trainings run at once.
        told: is told what is being done.
    """

    def __init__(self, loop: Loop, units: Units, seed: int, workers: int, told: Stages) -> None:
        self.units, self.seed, self.told, self._loop, self._workers = units, seed, told, loop, workers
        self._predicts, self._repeats = False, True
        self._distances: list[float] = []
        self._failures: dict[str, list[int]] = {}  # the examples without which training failed, by the reason
        self._notes: list[str] = []
        if not loop.by_weight:
            self._note(
                f"{units.words.plural} were left out by removing rows: what the loop draws, such as its batches, may differ too"
            )

    def choice(self, estimator: Estimator) -> Choice:
        return estimator.choice_for_loop(self.units.count, self.units.words)

    def observe(self, estimator: Estimator | None) -> None:
        self._predicts = estimator is not None and estimator.predicts

    def train_whole(self) -> Tensor:
        n, name = self._loop.n, self._loop.name
        self.told.begin(f"training on all {n} examples", 1, "training")
        try:
            with explained(f"loop {name!r}"):
                found = self._loop.run(np.ones(n), self.seed)
        except StabilityError:
            raise
        except Exception as error:  # of a library that the loop called
            raise OwnCodeError(f"loop {name!r} raised {described(error)} when it trained on all {n} examples") from error
        self._whole = _Found(self._loop, found)
        self.precision = self._whole.precision
        self._whole.check("A(S)")
        self.told(1)
        return torch.from_numpy(self._whole.train)

    def predict(self) -> Prediction | None:
        if not self._predicts:
            return None
        began, losses, gradients = time.perf_counter(), self._whole.train, self._whole.gradients
        if gradients is None:
            by, sizes = "the training losses of A(S)", losses - min(0.0, losses.min())
        else:
            by, sizes = "the squared norms of the gradients of A(S)", (gradients**2).sum(1)
        every = torch.arange(self.units.count)
        losses, sizes = (self.units.losses(torch.from_numpy(each), every).numpy() for each in (losses, sizes))
        columns = {"index": range(len(losses)), "loss_full": losses, "loss_left_out": losses + sizes, "difference": sizes}
        return Prediction(pd.DataFrame(columns), by, time.perf_counter() - began, relative=True)

    def retrain(self, left_out: Tensor, along: bool) -> Part:
        began, index = time.perf_counter(), left_out.tolist()
        weights = torch.cat([torch.ones(int(along), self._loop.n), self.units.weights(left_out)]).double().numpy()
        self.told.begin(self.units.words.retraining(len(index), first=along), len(weights), "training")
        done = self._carried_out(weights)
        seconds, whole = time.perf_counter() - began, None
        if along:
            again = done.pop(0)
            if isinstance(again, str):
                raise MeasurementError(f"the run that gives the noise floor failed: {again}")
            again.check("the run that gives the noise floor")
            whole, self._again = torch.from_numpy(again.train), again
            self._note(again.note)
            self._tell_repeated()
        own, moved = np.full(len(index), np.nan), np.full(len(index), np.nan)
        failed = np.full(len(index), -1)
        for j, (i, found) in enumerate(zip(index, done, strict=True)):
            why = found if isinstance(found, str) else found.odd(self.units.looked_at(i)) or found.unlike(self._again)
            self._distances.append(math.nan)
            if isinstance(found, str) or why:
                self._failures.setdefault(why, []).append(i)
                failed[j] = 0
                continue
            own[j], moved[j] = found.train[list(self.units.looked_at(i))].mean(), found.moved_from(self._again)
            self._distances[-1] = found.distance_from(self._again)
            self._note(found.note)
        return Part(
            own=torch.from_numpy(own),
            moved=torch.from_numpy(moved),
            failed_step=torch.from_numpy(failed),
            whole=whole,
            seconds=seconds,
        )

    def _carried_out(self, weights: Floats) -> list[_Found | str]:
        """A training for each row of weights, in their order.

        Raises:
            UsageError: the loop cannot be sent to another process.
            MachineError: such a process was killed.
        """
        jobs, done = (joblib.delayed(_attempt)(self._loop, row, self.seed) for row in weights), []
        try:
            for found in joblib.Parallel(self._workers, return_as="generator")(jobs):
                done.append(found)
                self.told(1)
        except pickle.PicklingError as error:
            raise UsageError(
                f"workers = {self._workers}: loop {self._loop.name!r} cannot go to another process: leave workers out ({error})"
            ) from error
        except BrokenProcessPool as error:
            raise MachineError(f"a process that trained loop {self._loop.name!r} was killed: use fewer workers") from error
        return done

    def models(self) -> Models:
        loop = self._loop
        failures = [
            f"the training without {', '.join(self.units.name_of(i, 'example {}'.format) for i in index)} failed: {why}"
            for why, index in self._failures.items()
        ]
        subject = Subject(
            data="",
            n=loop.n,
            method=loop.name,
            training=f"own loop, {'with example weights' if loop.by_weight else 'without the rows that are left out'}",
            loss_unit=loop.loss_unit,
            seed=self.seed,
            shown=loop.shown,
            label=loop.label,
            repeats=self._repeats,
        )
        notes = (*self._notes, *failures)
        unknown = [math.nan] * len(self._distances)
        return Models(distance=self._distances, mask_changes=unknown, mask_overlap=unknown, loop=subject, notes=notes)

    def all_failed(self, table: pd.DataFrame) -> str:
        why = next(iter(self._failures))
        return f"every one of {len(table)} trainings of loop {self._loop.name!r} without an example failed, the first: {why}"

    def _tell_repeated(self) -> None:
        """Say so where two runs with equal weights and seeds differ by more than rounding."""
        differ, size = float(np.abs(self._again.train - self._whole.train).mean()), float(np.abs(self._whole.train).mean())
        self._repeats = differ <= _REPEATED * size
        if not self._repeats:
            said = f"two trainings on all examples with seed {self.seed} differ by {differ:.2g} {self._loop.loss_unit} on average"
            why = "the loop draws what its seed does not decide"
            self._note(f"{said}: {why}; this noise is in every difference, and it is the noise floor")

    def _note(self, text: str) -> None:
        """Keep a note, each once; there is none where the text is empty."""
        if text and text not in self._notes:
            self._notes.append(text)


class _Found:
    """What one training gave, as arrays that were checked.

    Args:
        loop: trained.
        losses: what it returned.

    Raises:
        UsageError: something has another shape than it should, or is no array of numbers.
    """

    def __init__(self, loop: Loop, losses: Losses) -> None:
        self._loop, n = loop, loop.n
        self.note = losses.note
        self.train, self.precision = _numbers(
            losses.train, loop, "the losses of S", f"(n,) = ({n},), also of what is left out", (n,)
        )
        self.held_out, self.gradients, self.parameters = (
            None if value is None else _numbers(value, loop, what, form, shape)[0]
            for value, what, form, shape in (
                (losses.held_out, "the held-out losses", "(N,)", (None,)),
                (losses.gradients, "the gradients", f"(n, P) with n = {n}", (n, None)),
                (losses.parameters, "the parameters", "(P,)", (None,)),
            )
        )

    def check(self, what: str) -> None:
        """Check that all losses are finite.

        Raises:
            MeasurementError: one is not.
        """
        odd = np.flatnonzero(~np.isfinite(self.train))
        if len(odd):
            where, value = f"the loss of example {odd[0]}", self.train[odd[0]]
        elif self.held_out is not None and not np.isfinite(self.held_out).all():
            where = "a held-out loss"
            value = self.held_out[~np.isfinite(self.held_out)][0]
        else:
            return
        raise MeasurementError(
            f"{what}: {where} is {value} after loop {self._loop.name!r} has trained: use a smaller learning rate if training "
            "diverged, or bound the loss, such as the log of a probability that may be 0"
        )

    def odd(self, looked_at: Sequence[int]) -> str:
        """Why this training is a failure, of which these losses are ``looked_at``; empty where it is none."""
        for loss in self.train[list(looked_at)]:
            if not math.isfinite(loss):
                return f"its loss is {loss}"
        if self.held_out is not None and not np.isfinite(self.held_out).all():
            return "a held-out loss is not finite"
        return ""

    def unlike(self, other: _Found) -> str:
        """What it has another number of than the training on everything; empty where nothing."""
        for what, mine, theirs in (
            ("held-out losses", self.held_out, other.held_out),
            ("parameters", self.parameters, other.parameters),
        ):
            if mine is not None and theirs is not None and len(mine) != len(theirs):
                return f"it returned {len(mine)} {what}, and {len(theirs)} for all examples"
        return ""

    def moved_from(self, other: _Found) -> float:
        """The mean change of the held-out losses; NaN where there are none."""
        if self.held_out is None or other.held_out is None:
            return math.nan
        return float(np.abs(self.held_out - other.held_out).mean())

    def distance_from(self, other: _Found) -> float:
        """The distance of the parameters; NaN where they are unknown."""
        if self.parameters is None or other.parameters is None:
            return math.nan
        return float(np.linalg.norm(self.parameters - other.parameters))


def _attempt(loop: Loop, weights: Floats, seed: int) -> _Found | str:
    """One training without an example: what it gave, or why it failed. Worker processes call it."""
    try:
        losses = loop.run(weights, seed)
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise MachineError(f"memory ran out in loop {loop.name!r}: {described(error)}") from error
        if isinstance(error, StabilityError) and not isinstance(error, MeasurementError):
            raise
        return described(error)
    try:
        return _Found(loop, dataclasses.replace(losses, gradients=None))  # nobody asks for them, and they are large
    except UsageError as error:  # of a training on everything it ends the measurement; here only this example's failed
        return str(error)


def _numbers(value: Any, loop: Loop, what: str, form: str, shape: Sequence[int | None]) -> tuple[Floats, float]:
    """A list, an array or a tensor in float64, and the ε of the numbers that it had.

    Raises:
        UsageError: it is none of these, or has another shape.
    """
    asked = f"let it return {what} in shape {form}"
    precision = float(np.finfo(np.float64).eps)
    if isinstance(value, Tensor):
        precision = torch.finfo(value.dtype).eps if value.is_floating_point() else precision
        value = value.detach().cpu().double().numpy()
    try:
        array = np.asarray(value)
        if array.dtype.kind == "f":
            precision = max(precision, float(np.finfo(array.dtype).eps))
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"loop {loop.name!r} returned a {type(value).__name__} where {what} should be: {asked}") from error
    if len(array.shape) != len(shape) or any(one not in (None, size) for one, size in zip(shape, array.shape, strict=True)):
        known = "nothing" if value is None else f"{what} in shape {array.shape}"
        raise UsageError(f"loop {loop.name!r} returned {known}: {asked}")
    return array, precision
