"""Where a study's results lie, and who works on which cell: what several processes agree by.

A cell is *claimed* before it is computed. A claim belongs to a worker, which gives a sign of life every few seconds. Whoever sees
that a worker is dead may take its claims. No clock is compared with another: a worker is dead if its process is gone from this
machine, or if another process has watched it for a minute and its sign of life did not change.

There are two ledgers. :class:`SqliteLedger` is one file. :class:`FolderLedger` needs no locks, and so suits network file systems.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from stability.errors import StabilityError

__all__ = ["Answer", "Claim", "FolderLedger", "Heartbeat", "Ledger", "Row", "SqliteLedger", "Watch", "Worker", "ledger_at"]

BEAT = 5.0
"""Seconds between two signs of life."""

GRACE = 60.0
"""Seconds without a sign of life, on the clock of whoever watches, after which a worker is dead."""


class Row(NamedTuple):
    """A finished cell.

    Attributes:
        key: of its identity.
        identity: JSON of what defines it.
        record: JSON of what was measured.
        passing: whether it is to be tried again, because something failed that may pass.
    """

    key: str
    identity: str
    record: str
    passing: bool = False


def _machine() -> str:
    """This machine, or this container on it: where the number of a process means something."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


@dataclass(frozen=True)
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


class Claim(NamedTuple):
    """That a worker computes a cell.

    Attributes:
        key: the cell's.
        worker: the id of the worker.
        tries: how many workers had it; all but the last of them ended before the cell did.
    """

    key: str
    worker: str
    tries: int


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
    def become(self, format_: int, identity: str, records: Mapping[str, str]) -> None:
        """Hold another study, or the same in a newer format, at once.

        Args:
            format_: the format.
            identity: JSON of what defines the study.
            records: by key, JSON of the records that the new format holds otherwise.
        """

    @abstractmethod
    def cells(self) -> list[tuple[str, str]]:
        """JSON of identity and record of each cell, in the order in which they were first finished."""

    @abstractmethod
    def attempts(self) -> dict[str, tuple[bool, int]]:
        """Of each cell, by its key: whether it is to be tried again, and how many times it was tried."""

    @abstractmethod
    def times(self) -> dict[str, datetime]:
        """When each cell was finished, by its key."""

    @abstractmethod
    def add(self, rows: Sequence[Row]) -> None:
        """Write finished cells, all at once, and end their claims.

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
    def workers(self) -> list[Worker]:
        """All that are known, dead ones among them."""

    @abstractmethod
    def claims(self) -> list[Claim]:
        """All that are held."""

    @abstractmethod
    def claim(self, worker: Worker, wanted: Mapping[str, int], most: int, dead: set[str]) -> Answer:
        """Take cells, in the order of ``wanted``, until there are ``most``.

        Args:
            worker: who asks.
            wanted: by key, how many times the cell had been tried when the worker began. A failure that may pass is tried again
                once by each worker that began after it, and never because another worker has just failed as well.
            most: how many to take.
            dead: ids of workers whose claims may be taken.

        Returns:
            What became of those that were looked at: all, or as many as it needed to find ``most``.
        """

    def close(self) -> None:  # noqa: B027 (most have nothing open)
        """Leave nothing open. What comes later opens it again."""


_TABLES = """
CREATE TABLE IF NOT EXISTS study (format INTEGER NOT NULL, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, identity TEXT NOT NULL, record TEXT NOT NULL, passing INTEGER NOT NULL DEFAULT 0,
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, attempt INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS workers (
    id TEXT PRIMARY KEY, machine TEXT NOT NULL, process INTEGER NOT NULL, started REAL NOT NULL, what TEXT NOT NULL,
    beat INTEGER NOT NULL, heard TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, worker TEXT NOT NULL, tries INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS claims_of_a_worker ON claims (worker);
"""


class SqliteLedger(Ledger):
    """One SQLite file.

    While somebody works on it, SQLite keeps a write-ahead log beside it where the file system allows one, so that reading and
    writing do not wait for each other. Whoever leaves last folds it into the file.

    Example:
        >>> import tempfile
        >>> ledger = SqliteLedger(Path(tempfile.mkdtemp()) / "mine.sqlite")
        >>> ledger.create(6, '{"study": "mine"}')
        >>> mine, other = Worker(), Worker()
        >>> ledger.join(mine)
        >>> ledger.claim(mine, {"a": 0, "b": 0}, most=1, dead=set()).mine
        {'a': 1}
        >>> ledger.claim(other, {"a": 0, "b": 0}, most=2, dead=set()).mine
        {'b': 1}
        >>> ledger.leave(mine)
        >>> ledger.claim(other, {"a": 0}, most=2, dead=set()).mine
        {'a': 1}
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.RLock()
        self._kept: sqlite3.Connection | None = None  # while this process is a worker

    def exists(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0  # 0: stopped while making it

    def create(self, format_: int, identity: str) -> None:
        with self._transaction() as connection:
            self._make(connection)
            connection.execute("INSERT INTO study SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM study)", (format_, identity))

    @staticmethod
    def _make(connection: sqlite3.Connection) -> None:
        """All tables, and the columns that files of older formats lack."""
        for command in _TABLES.split(";")[:-1]:
            connection.execute(command)
        if "attempt" not in (row[1] for row in connection.execute("PRAGMA table_info (cells)")):
            connection.execute("ALTER TABLE cells ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1")

    def heads(self) -> list[tuple[int, str]]:
        return self._all("SELECT format, identity FROM study")

    def become(self, format_: int, identity: str, records: Mapping[str, str]) -> None:
        with self._transaction() as connection:
            self._make(connection)
            connection.executemany("UPDATE cells SET record = ? WHERE key = ?", [(new, name) for name, new in records.items()])
            connection.execute("UPDATE study SET identity = ?, format = ?", (identity, format_))

    def cells(self) -> list[tuple[str, str]]:
        return self._all("SELECT identity, record FROM cells ORDER BY rowid")

    def attempts(self) -> dict[str, tuple[bool, int]]:
        new = "attempt" in (row[1] for row in self._all("PRAGMA table_info (cells)"))
        rows = self._all(f"SELECT key, passing, {'attempt' if new else '1'} FROM cells")
        return {name: (bool(passing), attempt) for name, passing, attempt in rows}

    def times(self) -> dict[str, datetime]:
        rows = self._all("SELECT key, finished FROM cells")
        return {name: datetime.fromisoformat(finished).replace(tzinfo=UTC) for name, finished in rows}

    def add(self, rows: Sequence[Row]) -> None:
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO cells (key, identity, record, passing) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET record = "
                "excluded.record, passing = excluded.passing, finished = CURRENT_TIMESTAMP, attempt = attempt + 1 WHERE passing",
                rows,
            )
            connection.executemany("DELETE FROM claims WHERE key = ?", [(row.key,) for row in rows])

    def join(self, worker: Worker) -> None:
        with self._lock:
            self._kept = self._kept or self._opened()
            with suppress(sqlite3.OperationalError):  # no log where the file system forbids it: slower, and as safe
                self._kept.execute("PRAGMA journal_mode = WAL")
        self.beat(worker)

    def beat(self, worker: Worker) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO workers VALUES (:id, :machine, :process, :started, :what, :beat, CURRENT_TIMESTAMP) "
                "ON CONFLICT (id) DO UPDATE SET beat = beat + 1, heard = CURRENT_TIMESTAMP",
                asdict(worker),
            )

    def leave(self, worker: Worker) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM claims WHERE worker = ?", (worker.id,))
            connection.execute("DELETE FROM workers WHERE id = ?", (worker.id,))
            (others,) = connection.execute("SELECT COUNT(*) FROM workers").fetchone()
        if not others:
            with suppress(StabilityError), self._connection() as connection:  # refused while another process has the file open
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA journal_mode = DELETE")
        self.close()

    def workers(self) -> list[Worker]:
        if not self._all("SELECT 1 FROM sqlite_master WHERE name = 'workers'"):
            return []  # of an older format
        return [Worker(*row) for row in self._all("SELECT id, machine, process, started, what, beat, heard FROM workers")]

    def claims(self) -> list[Claim]:
        if not self._all("SELECT 1 FROM sqlite_master WHERE name = 'claims'"):
            return []
        return [Claim(*row) for row in self._all("SELECT key, worker, tries FROM claims ORDER BY rowid")]

    def claim(self, worker: Worker, wanted: Mapping[str, int], most: int, dead: set[str]) -> Answer:
        answer = Answer({}, set(), {})
        with self._transaction() as connection:
            for name, before in wanted.items():
                if len(answer.mine) == most:
                    break
                done = connection.execute("SELECT passing, attempt FROM cells WHERE key = ?", (name,)).fetchone()
                if done is not None and not (done[0] and done[1] == before):
                    answer.finished.add(name)
                    continue
                has = connection.execute("SELECT worker, tries FROM claims WHERE key = ?", (name,)).fetchone()
                if has is not None and has[0] not in dead:
                    answer.held[name] = has[0]
                    continue
                answer.mine[name] = 1 if has is None else has[1] + 1
                connection.execute("REPLACE INTO claims VALUES (?, ?, ?)", (name, worker.id, answer.mine[name]))
            if dead:
                gone = ", ".join("?" * len(dead))
                free = "id NOT IN (SELECT worker FROM claims)"
                connection.execute(f"DELETE FROM workers WHERE id IN ({gone}) AND {free}", tuple(dead))
        return answer

    def close(self) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One that is whole or absent, and that no other process writes beside."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.rollback()
                raise

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The one that is kept open while this process works, or one for a moment."""
        try:
            with self._lock:
                connection = self._kept or self._opened()
                try:
                    yield connection
                finally:
                    if connection is not self._kept:
                        connection.close()
        except sqlite3.OperationalError as error:
            if "no such" in str(error):
                raise StabilityError(
                    f"{self.path} is a database of another program ({error}): use another --store; it was left as it is"
                ) from error
            remedy = "free some disk space and run again" if "full" in str(error) else "check the path and its permissions"
            raise StabilityError(f"cannot use the store {self.path}: {error}; what was finished is kept, {remedy}") from error
        except sqlite3.DatabaseError as error:
            raise damaged(self.path, f"it is no whole store ({error})") from error

    def _opened(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)  # the lock keeps threads apart


def damaged(path: Path, why: object) -> StabilityError:
    """What to say of a store that cannot be read."""
    return StabilityError(
        f"{path} is damaged: {why}; 'stability repair {path}' keeps what can be read, or move it away and run again"
    )


class FolderLedger(Ledger):
    """A folder in which every cell, claim and worker is a small file of its own.

    It needs nothing of the file system but that a file can be given a second name, and that this fails where the name is taken. So
    one of several processes gets the name, also on a network file system whose locks do not work. No file is ever changed, except
    each worker's own, which is replaced. A cell that was tried ``a`` times before is claimed by the name ``key.a.t``; whoever takes
    the claim of a dead worker makes the next ``t``.

    Example:
        >>> import tempfile
        >>> ledger = FolderLedger(Path(tempfile.mkdtemp()) / "mine.d")
        >>> ledger.create(6, '{"study": "mine"}')
        >>> mine, other = Worker(), Worker()
        >>> ledger.claim(mine, {"a": 0, "b": 0}, most=1, dead=set()).mine
        {'a': 1}
        >>> ledger.claim(other, {"a": 0, "b": 0}, most=2, dead=set())
        Answer(mine={'b': 1}, finished=set(), held={'a': '...'})
        >>> ledger.claim(other, {"a": 0}, most=2, dead={mine.id}).mine
        {'a': 2}
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._study, self._cells, self._claims, self._workers = (path / name for name in ("study", "cells", "claims", "workers"))

    def exists(self) -> bool:
        return self._study.exists() and any(self._study.iterdir())

    def create(self, format_: int, identity: str) -> None:
        for folder in (self._study, self._cells, self._claims, self._workers):
            with _writing(self.path):
                folder.mkdir(parents=True, exist_ok=True)
        self._publish(self._study / "0.json", {"format": format_, "identity": identity})

    def heads(self) -> list[tuple[int, str]]:
        last = max((int(one.stem) for one in self._study.glob("*.json")), default=0)
        found = self._read(self._study / f"{last}.json")
        return [(found["format"], found["identity"])]

    def become(self, format_: int, identity: str, records: Mapping[str, str]) -> None:
        if records:
            raise StabilityError(f"{self.path} is of an older format: use another --store, and --reuse this one")
        if self.heads() != [(format_, identity)]:
            places = [int(one.stem) for one in self._study.glob("*.json")]
            self._publish(self._study / f"{max(places) + 1}.json", {"format": format_, "identity": identity})
        else:
            with _writing(self.path):  # what cannot be written to is found out now
                self._temporary("").unlink()

    def _tried(self) -> dict[str, int]:
        """Of each cell how many times it was tried."""
        found: dict[str, int] = {}
        for one in self._cells.iterdir():
            if one.suffix == ".json":
                name, _, attempt = one.stem.rpartition(".")
                found[name] = max(found.get(name, 0), int(attempt) + 1)
        return found

    def _each(self) -> dict[str, dict[str, Any]]:
        """The last attempt of each cell, by its key, in the order in which they were first finished."""
        tried = self._tried()
        found = {name: self._read(self._cells / f"{name}.{count - 1}.json") for name, count in tried.items()}
        return dict(sorted(found.items(), key=lambda one: (one[1]["finished"], one[0])))

    def cells(self) -> list[tuple[str, str]]:
        return [(one["identity"], one["record"]) for one in self._each().values()]

    def attempts(self) -> dict[str, tuple[bool, int]]:
        tried = self._tried()
        return {name: (one["passing"], tried[name]) for name, one in self._each().items()}

    def times(self) -> dict[str, datetime]:
        return {name: datetime.fromisoformat(one["finished"]) for name, one in self._each().items()}

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            count = self._last(row.key)
            if count and not self._read(self._cells / f"{row.key}.{count - 1}.json")["passing"]:
                continue
            self._publish(self._cells / f"{row.key}.{count}.json", {**row._asdict(), "finished": datetime.now(UTC).isoformat()})

    def join(self, worker: Worker) -> None:
        self.beat(worker)

    def beat(self, worker: Worker) -> None:
        place = self._workers / f"{worker.id}.json"
        beat = self._read(place)["beat"] + 1 if place.exists() else 0
        now = {**asdict(worker), "beat": beat, "heard": datetime.now(UTC).isoformat()}
        with _writing(self.path):
            self._temporary(json.dumps(now)).replace(place)

    def leave(self, worker: Worker) -> None:
        self._gone(worker.id)  # its claims stay, and are free

    def _gone(self, worker: str) -> None:
        """Say for all that a worker is no more. A file that is only missing may be one that a cache does not show yet."""
        with _writing(self.path), suppress(FileNotFoundError):
            (self._workers / f"{worker}.json").replace(self._workers / f"{worker}.left")

    def workers(self) -> list[Worker]:
        return [Worker(**self._read(one)) for one in sorted(self._workers.glob("*.json"))]

    def claims(self) -> list[Claim]:
        tried, last = self._tried(), dict[str, int]()
        for one in self._claims.glob("*.json"):
            name, attempt, tries = one.stem.rsplit(".", 2)
            if int(attempt) == tried.get(name, 0):
                last[f"{name}.{attempt}"] = max(last.get(f"{name}.{attempt}", 0), int(tries))
        each = ((name, tries, self._read(self._claims / f"{name}.{tries}.json")) for name, tries in sorted(last.items()))
        return [Claim(name.rpartition(".")[0], one["worker"], tries) for name, tries, one in each]

    def claim(self, worker: Worker, wanted: Mapping[str, int], most: int, dead: set[str]) -> Answer:
        answer = Answer({}, set(), {})
        for name, before in wanted.items():
            if len(answer.mine) == most:
                break
            if self._finished(name, before):
                answer.finished.add(name)
                continue
            holder, tries = self._holder(name, before)
            if holder is not None and holder not in dead and not (self._workers / f"{holder}.left").exists():
                answer.held[name] = holder
            elif not self._publish(self._claims / f"{name}.{before}.{tries + 1}.json", {"worker": worker.id}):
                answer.held[name] = self._holder(name, before)[0] or ""  # another process was quicker
            elif self._finished(name, before):  # meanwhile
                answer.finished.add(name)
            else:
                answer.mine[name] = tries + 1
        for one in dead:
            if one not in answer.held.values():
                self._gone(one)
        return answer

    def _last(self, name: str) -> int:
        """How many times a cell was tried."""
        count = 0
        while (self._cells / f"{name}.{count}.json").exists():
            count += 1
        return count

    def _finished(self, name: str, before: int) -> bool:
        count = self._last(name)
        return count > 0 and (count != before or not self._read(self._cells / f"{name}.{count - 1}.json")["passing"])

    def _holder(self, name: str, attempt: int) -> tuple[str | None, int]:
        """Who claimed a cell last, and how many did."""
        tries = 0
        while (self._claims / f"{name}.{attempt}.{tries + 1}.json").exists():
            tries += 1
        return (self._read(self._claims / f"{name}.{attempt}.{tries}.json")["worker"] if tries else None), tries

    def _publish(self, place: Path, content: Mapping[str, object]) -> bool:
        """Write a file that is whole or absent; whether it was this process that wrote it."""
        with _writing(self.path):
            temporary = self._temporary(json.dumps(content))
            try:
                os.link(temporary, place)
            except FileExistsError:
                # The answer may be lost on its way from a server that did it, and asked again then fails.
                return temporary.stat().st_nlink == 2
            finally:
                temporary.unlink()
        return True

    def _temporary(self, content: str) -> Path:
        place = self.path / f".{uuid.uuid4().hex}"
        with place.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return place

    def _read(self, place: Path) -> dict[str, Any]:
        try:
            found = json.loads(place.read_text())
        except (OSError, ValueError) as error:
            raise damaged(self.path, f"{place.name}: {error}") from error
        if not isinstance(found, dict):
            raise damaged(self.path, f"{place.name} holds no record")
        return found


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free some disk space and run again" if error.errno == errno.ENOSPC else "check the path and its permissions"
        raise StabilityError(f"cannot use the store {path}: {error}; what was finished is kept, {remedy}") from error


def ledger_at(path: Path) -> Ledger:
    """The ledger at a path: a folder where there is one or where the name ends in ``.d``, and else one SQLite file.

    Example:
        >>> type(ledger_at(Path("runs/mine.d"))).__name__
        'FolderLedger'
    """
    return FolderLedger(path) if path.is_dir() or path.suffix == ".d" else SqliteLedger(path)


class Watch:
    """Finds out which workers are dead.

    Args:
        clock: seconds since some moment, on this machine alone.

    Example:
        >>> seconds = iter([0.0, 30.0, 61.0])
        >>> watch, far = Watch(lambda: next(seconds)), Worker("a", "another machine", 1)
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
            with suppress(StabilityError):  # the next may be written
                self._ledger.beat(self._worker)
