"""What computes cells: a :class:`Pool` takes some at once, and gives back the record of each, or says that its process was lost.

A pool knows nothing of stores. :mod:`.running` claims the cells, hands them over, and writes what comes back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stability.errors import StabilityError
from stability.machine import free_memory
from stability.selectors.naming import LOCAL, imported
from stability.studies.cell import Expected, run_cell
from stability.studies.identity import key
from stability.studies.study import Cell, Study

__all__ = ["LESS", "InProcess", "LocalProcesses", "Lost", "Pool", "Work"]

LESS = 4
"""After each loss a cell has so many times less memory for its replicas."""


class Work(NamedTuple):
    """A cell that is to be computed.

    Attributes:
        cell: the cell.
        identity: what defines it, as plain values.
        expected: the data and the code that it must find.
    """

    cell: Cell
    identity: dict[str, Any]
    expected: Expected

    @property
    def key(self) -> str:
        """The cell's, by which the store knows it."""
        return key(self.identity)

    @property
    def kind(self) -> tuple[str, str, bool]:
        """The same for cells that take equally long: those that differ by their seed alone."""
        return self.cell.problem, key(self.identity["algorithm"]), self.cell.measured


@dataclass(frozen=True)
class Lost:
    """The process that computed a cell is gone.

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


class Pool(ABC):
    """Computes cells of one study, a few at once. It is used in a ``with`` block, at whose end nothing of it runs any more.

    Attributes:
        size: how many cells it computes at once.
        what: what it computes with, in words.
    """

    size: int
    what: str

    @abstractmethod
    def start(self, work: Work, losses: int) -> None:
        """Begin with a cell; at most ``size`` are under way.

        Args:
            work: the cell.
            losses: how many processes that computed it were lost. After each, it has less memory for its replicas.
        """

    @abstractmethod
    def ended(self, seconds: float | None) -> Iterator[tuple[Work, dict[str, Any] | Lost]]:
        """Wait until some cell ends, or for so many seconds; give those that ended."""

    @abstractmethod
    def __enter__(self) -> Pool: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...


class InProcess(Pool):
    """This process computes one cell after another, with the threads that it has.

    Args:
        study: the study.
        device: where.
    """

    size = 1

    def __init__(self, study: Study, device: str) -> None:
        self._study, self._device = study, device
        self._next: list[tuple[Work, int]] = []
        self.what = f"{device}, in its own process"

    def start(self, work: Work, losses: int) -> None:
        self._next.append((work, losses))

    def ended(self, seconds: float | None) -> Iterator[tuple[Work, dict[str, Any] | Lost]]:
        while self._next:
            work, losses = self._next.pop()
            budget = free_memory(torch.device(self._device)) // (2 * LESS**losses) if losses else None
            yield work, run_cell(self._study, work.cell, self._device, budget, work.expected)

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None: ...


class LocalProcesses(Pool):
    """Processes of one thread each on this machine. One that ends is replaced, and the others go on.

    Args:
        study: the study.
        devices: of each process the device that it computes on.
    """

    def __init__(self, study: Study, devices: Sequence[str]) -> None:
        self._study = study
        self._idle = deque(_Process(device) for device in devices)
        self._running: dict[Future[dict[str, Any]], tuple[Work, _Process]] = {}
        shared = {device: list(devices).count(device) for device in devices}
        self._budgets = {device: free_memory(torch.device(device)) // (2 * count) for device, count in shared.items()}
        self.size = len(devices)
        each = ", ".join(f"{count} on {device}" for device, count in shared.items())
        self.what = f"{self.size} processes, {each}"
        self._ever = False  # whether a cell ended

    def start(self, work: Work, losses: int) -> None:
        process = self._idle.popleft()
        budget = self._budgets[process.device] // LESS**losses
        future = process.submit(run_cell, self._study, work.cell, process.device, budget, work.expected)
        self._running[future] = work, process

    def ended(self, seconds: float | None) -> Iterator[tuple[Work, dict[str, Any] | Lost]]:
        for future in wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED).done:
            work, process = self._running.pop(future)
            self._idle.append(process)
            try:
                outcome: dict[str, Any] | Lost = future.result()
            except BrokenProcessPool as error:
                code = process.replace()
                if not self._ever and code > 0:
                    raise StabilityError(
                        f"a worker process ended at once, with exit code {code}: in a script put the call under "
                        "if __name__ == '__main__':, or use workers=1"
                    ) from error
                outcome = Lost.by(code, process.device)
            self._ever = True
            yield work, outcome

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self._idle, *(process for _, process in self._running.values())]:
            process.end()


class _Process:
    """A process that computes one cell after another on one device; it is started with the first."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._renew()

    def _renew(self) -> None:
        # Forking a process that has used its thread pools can hang, so each worker starts afresh.
        context = multiprocessing.context.SpawnContext()
        self._started: list[multiprocessing.process.BaseProcess] = []

        def start(*how: Any, **more: Any) -> multiprocessing.process.BaseProcess:
            self._started.append(multiprocessing.context.SpawnProcess(*how, **more))
            return self._started[-1]

        context.Process = start  # type: ignore[misc, assignment] # so that this process alone is ended, and no other
        self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=start_worker, initargs=(dict(LOCAL),))

    def submit(self, *call: Any) -> Future[dict[str, Any]]:
        try:
            return self._executor.submit(*call)
        except BrokenProcessPool:  # it ended while it had nothing to do
            self.replace()
            return self._executor.submit(*call)

    def replace(self) -> int:
        """Let another process take the place of this one, which is gone; its exit code, or the number of its signal below 0."""
        self._executor.shutdown()
        codes = [one.exitcode for one in self._started]
        self._renew()
        return next((code for code in codes if code not in (None, 0)), -int(signal.SIGTERM)) or 0

    def end(self) -> None:
        """End the process at once, whatever it does."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for one in self._started:
            if one.pid is not None:
                one.terminate()
        for one in self._started:
            if one.pid is not None:
                one.join(_PATIENCE)
                if one.is_alive():
                    one.kill()


_PATIENCE = 2.0  # seconds until a process that does not end is killed


def start_worker(modules: Mapping[str, Path]) -> None:
    """One thread a worker; the parent alone hears Ctrl-C; a worker whose parent is gone ends too; it knows the user's modules."""
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
