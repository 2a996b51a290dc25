"""Where a study's results lie, and who works on which cell: what several processes agree by.

A cell is *claimed* before it is computed. A claim belongs to a worker, which gives a sign of life every few seconds. Whoever sees
that a worker is dead may take its claims. No clock is compared with another: a worker is dead if its process is gone from this
machine, or if another process has watched it for a minute and its sign of life did not change.

There are two ledgers. :class:`.sqlite_ledger.SqliteLedger` is one file. :class:`.folder_ledger.FolderLedger` needs no locks, and so
suits network file systems.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from stability.errors import StabilityError

__all__ = [
    "Answer",
    "Claim",
    "Heartbeat",
    "Ledger",
    "Row",
    "Wanted",
    "Watch",
    "Worker",
    "damaged",
    "time_of",
    "unusable",
    "worker_of",
]

BEAT = 5.0
"""Seconds between two signs of life."""

GRACE = 60.0
"""Seconds without a sign of life, on the clock of whoever watches, after which a worker is dead."""


@dataclass(frozen=True)
class Row:
    """A finished cell.

    Attributes:
        key: of its identity.
        identity: JSON of what defines it.
        record: JSON of what was measured.
        passing: whether it is to be tried again, because something failed that may pass.
        finished: when it was finished, in words that ``datetime`` reads; None: now.
    """

    key: str
    identity: str
    record: str
    passing: bool = False
    finished: str | None = field(default=None, kw_only=True)


def _machine() -> str:
    """This machine, or this container on it: where the number of a process means something."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process that computes cells, by itself or by others that it started.

    Attributes:
        id: no other has it.
        machine: where its process is.
        process: the number of its process there.
        started: when that process began, by the clock of its machine: numbers of processes are used again.
        what: what it computes with, in words.
        beat: how many signs of life it gave.
        heard: when it gave the last, in words that ``datetime`` reads; to be shown, never to be compared.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    machine: str = field(default_factory=_machine)
    process: int = field(default_factory=os.getpid)
    started: float = field(default_factory=lambda: psutil.Process().create_time())
    what: str = ""
    beat: int = 0
    heard: str = ""

    @property
    def gone(self) -> bool:
        """Whether it is of this machine, and its process is not there any more. False where it cannot be known."""
        if self.machine != _machine():
            return False
        try:
            found = psutil.Process(self.process)
            return bool(abs(found.create_time() - self.started) > 1) or found.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class Wanted(NamedTuple):
    """A cell that a worker asks for.

    Attributes:
        what: which cell it is, in words.
        before: how many times it had been tried when the worker began. A failure that may pass is tried again once by each worker
            that began after it, and never because another worker has just failed as well.
    """

    what: str
    before: int = 0


class Claim(NamedTuple):
    """That a worker computes a cell.

    Attributes:
        key: the cell's.
        worker: the id of the worker.
        tries: how many workers had it; all but the last of them ended before the cell did.
        what: which cell it is, in words.
    """

    key: str
    worker: str
    tries: int
    what: str


class Answer(NamedTuple):
    """What became of the cells that a worker asked for.

    Attributes:
        mine: those that it has now, each with the number of workers that had it, itself included.
        finished: those that are finished.
        held: those that another worker has, each with that worker's id.
    """

    mine: dict[str, int]
    finished: set[str]
    held: dict[str, str]

    def looked_at(self, key: str) -> bool:
        """Whether it says what became of a cell."""
        return key in self.mine or key in self.held or key in self.finished


class Ledger(ABC):
    """Finished cells, workers and their claims, of one study.

    Args:
        path: where it lies.

    All methods raise :class:`~stability.errors.StabilityError` where something cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def mode(self) -> str:
        """How it is written, in words."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether it was made already."""

    @abstractmethod
    def create(self, format_: int, identity: str) -> None:
        """Make it. Of several processes that do so at once, one decides which study it holds."""

    @abstractmethod
    def heads(self) -> list[tuple[int, str]]:
        """The format, and JSON of the study's identity; exactly one unless it is damaged."""

    @abstractmethod
    def become(self, format_: int, identity: str, change: Callable[[], Mapping[str, str]]) -> None:
        """Hold another study, or the same in a newer format, at once.

        Args:
            format_: the format.
            identity: JSON of what defines the study.
            change: called when nobody else changes the ledger any more. It checks that this may be, and gives JSON of the record
                of every cell by its key, where the ledger is of an older format.
        """

    @abstractmethod
    def cells(self) -> list[tuple[str, str]]:
        """JSON of identity and record of each cell, in the order in which they were first finished."""

    @abstractmethod
    def rows(self) -> tuple[dict[int, str], list[tuple[str, int, bytes]]]:
        """The forms of cells (:mod:`stability.studies.packed`) by number; and key, number of the form and numbers of each cell, in
        the same order. Not of older formats.
        """

    @abstractmethod
    def details(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """What the records of some cells hold in lists and dictionaries, by the cells' keys; not of older formats."""

    @abstractmethod
    def attempts(self) -> dict[str, tuple[bool, int]]:
        """Of each cell, by its key: whether it is to be tried again, and how many times it was tried."""

    @abstractmethod
    def times(self) -> dict[str, datetime]:
        """When each cell was finished, by its key."""

    @abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Write finished cells, and end their claims. One that is written is whole, whatever becomes of the others.

        A finished one is left as it is. One that was to be tried again is replaced.
        """

    @abstractmethod
    def join(self, worker: Worker) -> None:
        """Be known as a worker."""

    @abstractmethod
    def beat(self, worker: Worker) -> None:
        """Give a sign of life."""

    @abstractmethod
    def leave(self, worker: Worker) -> None:
        """Give back all claims, and be a worker no more."""

    @abstractmethod
    def workers(self, among: Collection[str] | None = None) -> list[Worker]:
        """All that are known, dead ones among them; or those that have one of these ids."""

    @abstractmethod
    def claims(self) -> list[Claim]:
        """All that are held."""

    @abstractmethod
    def claim(self, worker: Worker, wanted: Mapping[str, Wanted], most: int, dead: set[str]) -> Answer:
        """Take cells, in the order of ``wanted``, until there are ``most``.

        Args:
            worker: who asks.
            wanted: the cells, by their keys.
            most: how many to take.
            dead: ids of workers whose claims may be taken.

        Returns:
            What became of those that were looked at: all, or as many as it needed to find ``most``.
        """

    def close(self) -> None:  # noqa: B027 (most have nothing open)
        """Leave nothing open. What comes later opens it again."""


def unusable(path: Path, error: Exception, full: bool) -> StabilityError:
    """What to say of a store that cannot be written to, or opened; ``full``: because there is no room on its disk."""
    remedy = "free some disk space and run again" if full else "check the path and its permissions"
    kept = "what was finished is kept, " if os.path.exists(path) else ""  # Path.exists raises what a failing disk says
    return StabilityError(f"cannot use the store {path}: {error}; {kept}{remedy}")


def damaged(path: Path, why: object) -> StabilityError:
    """What to say of a store that cannot be read."""
    return StabilityError(
        f"{path} is damaged: {why}; 'stability repair {path}' keeps what can be read, or move it away and run again"
    )


def time_of(path: Path, told: object) -> datetime:
    """A time as a store tells it, in UTC where it tells no zone.

    Raises:
        StabilityError: it is no time.
    """
    try:
        found = datetime.fromisoformat(told)  # type: ignore[arg-type]
        return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise damaged(path, f"{told!r} is no time") from error


def worker_of(path: Path, told: Mapping[str, Any]) -> Worker:
    """A worker as a store tells of it.

    Raises:
        StabilityError: what it tells makes no sense.
    """
    kinds = {"id": str, "machine": str, "process": int, "started": float, "what": str, "beat": int, "heard": str}
    if (
        told.keys() != kinds.keys()
        or any(type(told[name]) is not kind for name, kind in kinds.items())
        or not (told["machine"].split() and 0 <= told["process"] < 2**31)
    ):
        raise damaged(path, f"{dict(told)} is no worker")
    time_of(path, told["heard"])
    return Worker(**told)


class Watch:
    """Finds out which workers are dead.

    Args:
        clock: seconds since some moment, on this machine alone.

    Example:
        >>> seconds = iter([0.0, 30.0, 61.0])
        >>> watch, far = Watch(lambda: next(seconds)), Worker(id="a", machine="another machine")
        >>> watch.dead([far]), watch.dead([far]), watch.dead([far])
        (set(), set(), {'a'})
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}

    def dead(self, workers: Iterable[Worker]) -> set[str]:
        """Those whose process is gone, and those that this object has seen without a new sign of life for :data:`GRACE` seconds."""
        now, found = self._clock(), set()
        for one in workers:
            beat, since = self._seen.get(one.id, (-1, now))
            if beat != one.beat:
                since = now
            self._seen[one.id] = (one.beat, since)
            if one.gone or now - since > GRACE:
                found.add(one.id)
        return found


class Heartbeat:
    """A worker's signs of life, from a thread of its own, as long as the ``with`` block lasts. At its end the worker leaves.

    Args:
        ledger: where it works.
        worker: who.
    """

    def __init__(self, ledger: Ledger, worker: Worker) -> None:
        self._ledger, self._worker = ledger, worker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Worker:
        self._ledger.join(self._worker)
        self._thread.start()
        return self._worker

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        with suppress(StabilityError):  # what cannot be written to now was told before; others see that the process is gone
            self._ledger.leave(self._worker)
        self._ledger.close()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(StabilityError, OSError):  # the next may be written
                self._ledger.beat(self._worker)
