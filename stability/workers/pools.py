"""What computes: a :class:`Pool` takes some jobs at once, and gives back what came of each, or says that its process was lost.

A pool knows nothing of what it computes. A job is sent to its process as it stands, and what came of it is sent back.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker, sharedctypes
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from joblib import wrap_non_picklable_objects

from stability.errors import StabilityError, UsageError, described, one_line
from stability.machine import free_memory
from stability.selectors.naming import LOCAL, imported

__all__ = ["LESS", "TRIES", "InProcess", "Job", "LocalProcesses", "Lost", "Place", "Pool", "Shared", "only_here"]

LESS = 4
"""After each loss a job has so many times less memory for its replicas."""

TRIES = 3
"""Processes that a job may cost."""


def _unheard(count: int) -> None:
    """Nobody is told. It has a name, so that a place can be sent."""


@dataclass(frozen=True)
class Place:
    """Where a job is computed.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        memory_budget: bytes that it may take; None: a part of what is free.
        losses: how many processes that computed it were lost.
        sharing: how many workers of its pool share the memory there.
        told: is told how many steps were done.
    """

    device: str
    memory_budget: int | None = None
    losses: int = 0
    sharing: int = 1
    told: Callable[[int], object] = field(default=_unheard, kw_only=True)


@dataclass(frozen=True, eq=False)
class Shared:
    """What many jobs have in common. It is sent once, and not with each.

    Attributes:
        name: the same for jobs that share it.
        load: gives it.
        needed: whether the jobs cannot do without it. What is not needed is sent where that saves reading it on many machines.
        what: what it is, for the message where it cannot be sent.
    """

    name: Hashable
    load: Callable[[], object]
    needed: bool = True
    what: str = "what is computed"

    def refused(self, size: int, why: str) -> UsageError:
        """That it cannot be sent.

        Args:
            size: how many workers there should be.
            why: in words.
        """
        return UsageError(f"workers = {size}: {self.what} cannot go to another process ({why}): mend that, or use workers=1")


class Job(ABC):
    """Something that is computed apart from everything else, in whatever process.

    Attributes:
        shared: what it has in common with others; None: nothing.
    """

    shared: Shared | None = None

    @abstractmethod
    def compute(self, place: Place, shared: Any) -> Any:
        """Compute it.

        Args:
            place: where.
            shared: what :attr:`shared` stands for; None where it was not sent.

        Returns:
            What came of it. An error is returned as well, and not raised.
        """

    @abstractmethod
    def failed(self, device: str, error: BaseException) -> Any:
        """What comes of it where it could not be begun, or its outcome could not be sent."""

    def sent(self) -> object:
        """What is sent: the job without what is shared."""
        return self


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Lost:
    """The process that computed a job is gone.

    Attributes:
        why: what ended it, in words that go on from "the process that measured it".
        device: where it was.
        by_memory: whether most likely memory ran out.
    """

    why: str
    device: str = "cpu"
    by_memory: bool = False

    @classmethod
    def by(cls, code: int, device: str = "cpu") -> Lost:
        """Of a process that ended with an exit code, or below 0 by a signal.

        Example:
            >>> Lost.by(-9).why
            'was killed, most likely by the system because memory ran out'
        """
        if code == -signal.SIGKILL:
            return cls("was killed, most likely by the system because memory ran out", device, by_memory=True)
        return cls(f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended itself with exit code {code}", device)


class Pool(ABC, Generic[J]):
    """Computes jobs, a few at once. It is used in a ``with`` block, at whose end nothing of it runs any more.

    Attributes:
        size: how many jobs it computes at once.
        what: what it computes with, in words.
        nests: whether a job may have a pool of its own, of the same kind.
    """

    size: int
    what: str
    nests: bool = True

    @abstractmethod
    def start(self, job: J, losses: int) -> None:
        """Begin with a job; at most ``size`` are under way.

        Args:
            job: the job.
            losses: how many processes that computed it were lost. After each, it has less memory for its replicas.
        """

    @abstractmethod
    def ended(self, seconds: float | None) -> Iterator[tuple[J, Any]]:
        """Wait until some job ends, or for so many seconds; give those that ended, each with its outcome or a :class:`Lost`.

        Args:
            seconds: how long to wait; None: until one ends.

        Yields:
            The job and what came of it.

        Raises:
            StabilityError: no job can be computed as things are. All that ended was given before.
        """

    def hold(self, shared: Shared) -> None:
        """Get ready what jobs will share, so that it is known before anything is computed whether it can be sent.

        Raises:
            UsageError: it cannot.
        """

    def warm(self) -> None:
        """Let processes start, so that they are there when the first job is."""

    def counted(self, job: J) -> int:
        """How many steps a job under way has told of, since it was last begun; 0 where nothing is known of it."""
        return 0

    @abstractmethod
    def __enter__(self) -> Pool[J]: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...


class InProcess(Pool[J]):
    """This process computes one job after another, with the threads that it has.

    Args:
        device: where.
    """

    size = 1

    def __init__(self, device: str) -> None:
        self._device = device
        self._next: list[tuple[J, int]] = []
        self.what = f"{device}, in its own process"

    def start(self, job: J, losses: int) -> None:
        self._next.append((job, losses))

    def ended(self, seconds: float | None) -> Iterator[tuple[J, Any]]:
        while self._next:
            job, losses = self._next.pop()
            budget = free_memory(torch.device(self._device)) // (2 * LESS**losses) if losses else None
            shared = job.shared.load() if job.shared is not None and job.shared.needed else None
            yield job, job.compute(Place(self._device, budget, losses), shared)

    def __enter__(self) -> InProcess[J]:
        return self

    def __exit__(self, *error: object) -> None: ...


class LocalProcesses(Pool[J]):
    """Processes of one thread each on this machine. One that ends is replaced, and the others go on.

    Args:
        devices: of each process the device that it computes on.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._idle = deque(_Process(device) for device in devices)
        self._running: dict[Future[bytes], tuple[J, _Process]] = {}
        self._sharing = shared = {device: list(devices).count(device) for device in devices}
        self._budgets = {device: free_memory(torch.device(device)) // (2 * count) for device, count in shared.items()}
        self._held: tuple[Hashable, bytes] | None = None  # the latest that was sent
        self.size = len(devices)
        each = ", ".join(f"{count} on {device}" for device, count in shared.items())
        self.what = f"{self.size} processes, {each}"
        self._ever = False  # whether a job ended

    def start(self, job: J, losses: int) -> None:
        process = self._idle.popleft()
        try:
            if job.shared is not None and job.shared.needed:
                self.hold(job.shared)
            held = self._held if job.shared is not None and job.shared.needed else None
            device = process.device
            place = Place(device, self._budgets[device] // LESS**losses, losses, self._sharing[device])
            self._running[process.submit(pickle.dumps(job.sent()), place, held)] = job, process
        except BaseException:
            self._idle.append(process)
            raise

    def hold(self, shared: Shared) -> None:
        if self._held is not None and self._held[0] == shared.name:
            return
        what = shared.load()
        try:  # with functions that stand inside others, and what was typed into a session
            self._held = shared.name, pickle.dumps(wrap_non_picklable_objects(what, keep_wrapper=False), pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever is said by an object that cannot be pickled
            raise shared.refused(self.size, one_line(error)) from error

    def warm(self) -> None:
        for process in self._idle:
            process.warm()

    def ended(self, seconds: float | None) -> Iterator[tuple[J, Any]]:
        done = wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED).done
        for future in sorted(done, key=lambda one: isinstance(one.exception(), BrokenProcessPool)):  # what raises comes last
            job, process = self._running.pop(future)
            self._idle.append(process)
            try:
                outcome = pickle.loads(future.result())
            except BrokenProcessPool as error:
                code = process.replace()
                if not self._ever and code > 0:
                    raise StabilityError(
                        f"a worker process ended at once, with exit code {code}: in a script put the call under "
                        "if __name__ == '__main__':, or use workers=1"
                    ) from error
                outcome = Lost.by(code, process.device)
            except Exception as error:  # whatever is said by an object that cannot be unpickled, there or here
                process.forget()
                outcome = job.failed(process.device, error)
            self._ever = True
            yield job, outcome

    def counted(self, job: J) -> int:
        return next((process.counted for one, process in self._running.values() if one is job), 0)

    def __enter__(self) -> LocalProcesses[J]:
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self._idle, *(process for _, process in self._running.values())]:
            process.end()
        self._held = None


class _Deaf(multiprocessing.context.SpawnProcess):
    """A process that does not hear Ctrl-C, not even while it starts. A terminal sends it to all; the parent ends its workers."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # it lets the signal through when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # of this thread; a process inherits it
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """A process that computes one job after another on one device; it is started with the first."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._renew()

    def _renew(self) -> None:
        # Forking a process that has used its thread pools can hang, so each worker starts afresh.
        context = multiprocessing.context.SpawnContext()
        self._started: list[multiprocessing.process.BaseProcess] = []

        def start(*how: Any, **more: Any) -> multiprocessing.process.BaseProcess:
            self._started.append(_Deaf(*how, **more))
            return self._started[-1]

        context.Process = start  # type: ignore[misc, assignment] # so that this process alone is ended, and no other
        # Without a lock, which a process that is killed would keep: one process alone writes it.
        self._steps = sharedctypes.RawValue(ctypes.c_longlong, 0)
        self._holds: Hashable = None  # what it was sent that jobs share
        how = dict(LOCAL), self._steps
        self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=start_worker, initargs=how)

    @property
    def counted(self) -> int:
        """How many steps the present job has told of."""
        return int(self._steps.value)

    def forget(self) -> None:
        """It may lack what it was sent."""
        self._holds = None

    def warm(self) -> None:
        """Let it start."""
        self._executor.submit(_nothing)

    def submit(self, job: bytes, place: Place, held: tuple[Hashable, bytes] | None) -> Future[bytes]:
        """Begin with a job.

        Args:
            job: packed.
            place: where, without what is told.
            held: name and packed form of what it shares with others; None: nothing.
        """
        try:
            return self._submit(job, place, held)
        except BrokenProcessPool:  # it ended while it had nothing to do
            self.replace()
            return self._submit(job, place, held)

    def _submit(self, job: bytes, place: Place, held: tuple[Hashable, bytes] | None) -> Future[bytes]:
        sent = None if held is None or held[0] == self._holds else held
        future = self._executor.submit(_compute, job, place, sent, held is not None)
        self._holds = self._holds if held is None else held[0]
        return future

    def replace(self) -> int:
        """Let another process take the place of this one, which is gone; its exit code, or the number of its signal below 0."""
        self._executor.shutdown()
        codes = [one.exitcode for one in self._started]
        self._renew()
        return next((code for code in codes if code is not None), -int(signal.SIGTERM))

    def end(self) -> None:
        """End the process at once, whatever it does."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for one in self._started:
            if one.pid is not None:
                one.terminate()
        for one in self._started:
            if one.pid is not None:
                one.join(_ENDING)
                if one.is_alive():
                    one.kill()


_ENDING = 2.0  # seconds until a process that does not end is killed


class _Here:
    """What a worker process keeps from one job to the next.

    Attributes:
        steps: of the present job, where the parent sees them.
        shared: what jobs have in common.
    """

    steps: Any = None
    shared: Any = None


def _nothing() -> None:
    """What a process does that is only to start."""


def _compute(job: bytes, place: Place, sent: tuple[Hashable, bytes] | None, shares: bool) -> bytes:
    """What comes of a job, in a worker process; both packed, for tensors that are sent as such need a file each."""

    def told(count: int) -> None:
        _Here.steps.value += count

    _Here.steps.value = 0
    try:
        if sent is not None:
            _Here.shared = None  # before another takes its memory
            _Here.shared = pickle.loads(sent[1])
        outcome = pickle.loads(job).compute(replace(place, told=told), _Here.shared if shares else None)
        return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # of an object that cannot be sent; and not every error can
        raise StabilityError(described(error)) from None


def start_worker(modules: Mapping[str, Path], steps: Any) -> None:
    """One thread a worker; the parent alone hears Ctrl-C; a worker whose parent is gone ends too; it knows the user's modules."""
    _Here.steps = steps
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    for module, folder in modules.items():
        imported(module, folder, "a study")


def only_here(what: object) -> bool:
    """Whether no other process could import its code: it is inside a function, or in an interactive session.

    Args:
        what: would be sent.

    Example:
        >>> only_here(len), only_here(lambda: 0)
        (False, True)
    """
    try:
        written = pickle.dumps(what)
    except Exception:  # whatever is said by an object that cannot be pickled
        return True
    return b"__main__" in written and not hasattr(sys.modules["__main__"], "__file__")
