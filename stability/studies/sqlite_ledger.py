"""A ledger that is one SQLite file."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from stability.errors import StabilityError
from stability.machine import network_file_system
from stability.studies.identity import as_json, from_json
from stability.studies.ledger import Answer, Claim, Ledger, Row, Wanted, Worker, damaged, time_of, unusable, worker_of
from stability.studies.packed import packed, unpacked

__all__ = ["SqliteLedger", "check_tables"]

_TABLES = """
CREATE TABLE IF NOT EXISTS study (format INTEGER NOT NULL, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS forms (id INTEGER PRIMARY KEY, form TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, form_id INTEGER NOT NULL, numbers BLOB NOT NULL, passing INTEGER NOT NULL DEFAULT 0,
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, attempt INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS details (key TEXT PRIMARY KEY, details TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS workers (
    id TEXT PRIMARY KEY, machine TEXT NOT NULL, process INTEGER NOT NULL, started REAL NOT NULL, what TEXT NOT NULL,
    beat INTEGER NOT NULL, heard TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, worker TEXT NOT NULL, tries INTEGER NOT NULL, what TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS claims_of_a_worker ON claims (worker);
"""


class SqliteLedger(Ledger):
    """One SQLite file.

    While somebody works on it, SQLite keeps a write-ahead log beside it, so that reading and writing do not wait for each other.
    Whoever leaves last folds it into the file. There is none on a network file system, where machines would not see each other's.

    Example:
        >>> import tempfile
        >>> ledger = SqliteLedger(Path(tempfile.mkdtemp()) / "mine.sqlite")
        >>> ledger.create(7, '{"study": "mine"}')
        >>> mine, other, wanted = Worker(), Worker(), {"a": Wanted("the first"), "b": Wanted("the second")}
        >>> ledger.join(mine)
        >>> ledger.claim(mine, wanted, most=1, dead=set()).mine
        {'a': 1}
        >>> ledger.claim(other, wanted, most=2, dead=set()).mine
        {'b': 1}
        >>> ledger.leave(mine)
        >>> ledger.claim(other, {"a": wanted["a"]}, most=2, dead=set()).mine
        {'a': 1}
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.RLock()
        self._kept: sqlite3.Connection | None = None  # while this process is a worker
        self._known = False  # whether it was seen to be a store, and no program

    @property
    def mode(self) -> str:
        return f"one file with locks and {'a' if self._logs() else 'no'} write-ahead log"

    def exists(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0  # 0: stopped while making it

    def create(self, format_: int, identity: str) -> None:
        with self._transaction() as connection:
            self._make(connection)
            connection.execute("INSERT INTO study SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM study)", (format_, identity))

    @staticmethod
    def _make(connection: sqlite3.Connection) -> None:
        for command in _TABLES.split(";")[:-1]:
            connection.execute(command)

    @staticmethod
    def _form(connection: sqlite3.Connection, form: str) -> int:
        """The number of a form, which most cells share with others."""
        connection.execute("INSERT OR IGNORE INTO forms (form) VALUES (?)", (form,))
        return int(connection.execute("SELECT id FROM forms WHERE form = ?", (form,)).fetchone()[0])

    def _columns(self) -> set[str]:
        """Those of the table of cells: files of older formats have others."""
        return {row[1] for row in self._all("PRAGMA table_info (cells)")}

    def heads(self) -> list[tuple[int, str]]:
        return self._all("SELECT format, identity FROM study")

    def become(self, format_: int, identity: str, change: Callable[[], Mapping[str, str]]) -> None:
        with self._transaction() as connection:
            if records := change():
                attempt = "attempt" if "attempt" in self._columns() else "1"
                old = connection.execute(f"SELECT key, passing, finished, {attempt} FROM cells ORDER BY rowid").fetchall()
                mine = [json.loads(text) for text, _ in self.cells()]
                for table in ("forms", "cells", "details"):
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
                self._make(connection)
                for (name, *others), cell in zip(old, mine, strict=True):
                    form, numbers, details = packed(cell, json.loads(records[name]))
                    id_ = self._form(connection, form)
                    connection.execute("INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?)", (name, id_, numbers, *others))
                    connection.execute("INSERT INTO details VALUES (?, ?)", (name, details))
            elif "record" in self._columns():
                connection.execute("DROP TABLE cells")  # an empty one of an older format
            self._make(connection)
            connection.execute("UPDATE study SET identity = ?, format = ?", (identity, format_))

    def cells(self) -> list[tuple[str, str]]:
        if "record" in self._columns():
            return self._all("SELECT identity, record FROM cells ORDER BY rowid")
        joined = "cells LEFT JOIN forms ON form_id = id LEFT JOIN details USING (key)"
        parts = self._all(f"SELECT form, numbers, details FROM {joined} ORDER BY cells.rowid")
        each = (self._whole(unpacked, *one) for one in parts)
        return [(as_json(identity), as_json(record, sort_keys=False)) for identity, record in each]

    def rows(self) -> tuple[dict[int, str], list[tuple[str, int, bytes]]]:
        return dict(self._all("SELECT id, form FROM forms")), self._all("SELECT key, form_id, numbers FROM cells ORDER BY rowid")

    def details(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        one = "SELECT details FROM details WHERE key = ?"
        return {name: self._whole(from_json, text) for name in keys for (text,) in self._all(one, name)}

    def _whole(self, read: Callable[..., Any], *parts: Any) -> Any:
        """What parts of a cell say, unless they are damaged."""
        try:
            return read(*parts)
        except (ValueError, TypeError) as error:
            raise damaged(self.path, error) from error

    def attempts(self) -> dict[str, tuple[bool, int]]:
        rows = self._all(f"SELECT key, passing, {'attempt' if 'attempt' in self._columns() else '1'} FROM cells")
        return {name: (bool(passing), attempt) for name, passing, attempt in rows}

    def times(self) -> dict[str, datetime]:
        rows = self._all("SELECT key, finished FROM cells")
        return {name: time_of(self.path, finished) for name, finished in rows}

    def add(self, rows: Sequence[Row]) -> None:
        each = [(row, packed(json.loads(row.identity), json.loads(row.record))) for row in rows]
        with self._transaction() as connection:
            for row, (form, numbers, details) in each:
                written = connection.execute(
                    "INSERT INTO cells (key, form_id, numbers, passing, finished) VALUES (?, ?, ?, ?, "
                    "coalesce(?, CURRENT_TIMESTAMP)) ON CONFLICT (key) DO UPDATE SET form_id = excluded.form_id, "
                    "numbers = excluded.numbers, passing = excluded.passing, finished = excluded.finished, "
                    "attempt = attempt + 1 WHERE passing",
                    (row.key, self._form(connection, form), numbers, row.passing, row.finished),
                )
                if written.rowcount:
                    connection.execute("REPLACE INTO details VALUES (?, ?)", (row.key, details))
            connection.executemany("DELETE FROM claims WHERE key = ?", [(row.key,) for row in rows])

    def join(self, worker: Worker) -> None:
        with self._lock:
            self._kept = self._kept or self._opened()
            # A log needs memory that all who work on the store share, which machines do not.
            kind = network_file_system(self.path)
            with suppress(sqlite3.OperationalError):  # no log where the file system forbids it: slower, and as safe
                self._kept.execute(f"PRAGMA journal_mode = {'WAL' if kind is None else 'DELETE'}")
            if kind is not None and self._logs():
                self.close()
                raise StabilityError(
                    f"{self.path} lies on a network file system ({kind}), and another process writes it with a log that its own "
                    f"machine alone sees: end that process, or use a folder, such as {self.path.with_suffix('.d')}"
                )
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
            gone = [(worker.id,), *((one.id,) for one in self.workers() if one.gone)]
            connection.executemany("DELETE FROM workers WHERE id = ? AND id NOT IN (SELECT worker FROM claims)", gone)
            (others,) = connection.execute("SELECT COUNT(*) FROM workers").fetchone()
        if not others:
            with suppress(StabilityError), self._connection() as connection:  # refused while another process has the file open
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA journal_mode = DELETE")
        self.close()

    def workers(self, among: Collection[str] | None = None) -> list[Worker]:
        if not self._all("SELECT 1 FROM sqlite_master WHERE name = 'workers'"):
            return []  # of an older format
        names = ("id", "machine", "process", "started", "what", "beat", "heard")
        every = (dict(zip(names, row, strict=True)) for row in self._all(f"SELECT {', '.join(names)} FROM workers"))
        return [worker_of(self.path, one) for one in every if among is None or one["id"] in among]

    def claims(self) -> list[Claim]:
        if not self._all("SELECT 1 FROM sqlite_master WHERE name = 'claims'"):
            return []
        claims = [Claim(*row) for row in self._all("SELECT key, worker, tries, what FROM claims ORDER BY rowid")]
        if any(tuple(map(type, one)) != (str, str, int, str) for one in claims):
            raise damaged(self.path, "what it says of its claims makes no sense")
        return claims

    def claim(self, worker: Worker, wanted: Mapping[str, Wanted], most: int, dead: set[str]) -> Answer:
        answer = Answer({}, set(), {})
        with self._transaction() as connection:
            for name, (what, before) in wanted.items():
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
                connection.execute("REPLACE INTO claims VALUES (?, ?, ?, ?)", (name, worker.id, answer.mine[name], what))
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

    def _logs(self) -> bool:
        """Whether there is a write-ahead log."""
        return self._all("PRAGMA journal_mode") == [("wal",)]

    def _all(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

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
            if "decode" in str(error):  # text that is none
                raise damaged(self.path, error) from error
            if "no such" in str(error):
                raise StabilityError(
                    f"{self.path} is a database of another program ({error}): use another --store; it was left as it is"
                ) from error
            raise unusable(self.path, error, full="full" in str(error)) from error
        except sqlite3.DatabaseError as error:
            with self.path.open("rb") as file:
                begin = file.read(4096)
            if b"\0" not in begin:  # which every database has, even one whose header was overwritten
                raise StabilityError(
                    f"{self.path} is no database, and so no store of results: give the file or folder that 'stability run' wrote; "
                    "it was left as it is"
                ) from error
            raise damaged(self.path, f"it is no whole store ({error})") from error

    def _opened(self) -> sqlite3.Connection:
        opened = sqlite3.connect(
            self.path, timeout=60, isolation_level=None, check_same_thread=False
        )  # the lock keeps threads apart
        if not self._known:
            try:
                check_tables(self.path, opened)
            except BaseException:
                opened.close()
                raise
            self._known = True
        return opened


_PLAIN = re.compile(r"CREATE (TABLE|(UNIQUE )?INDEX) [^()]*\([^()]*\)[^()]*", re.IGNORECASE)
_SEVERAL = bytes.fromhex("d9d505f920a163d7")  # ends the journal of a change of several files, and stands behind the name of one
_KEYS = re.compile(r"\b(KEY|UNIQUE)\s*\([\w\s,]*\)", re.IGNORECASE)


def check_tables(path: Path, connection: sqlite3.Connection) -> None:
    """Check that a file holds plain tables and indices: what is read there is then what was written, and takes no longer.

    A view, a trigger, or a column that is computed is a program. It could run without end, or take all memory.

    Args:
        path: the file, for the message.
        connection: to it.

    Raises:
        StabilityError: it holds something else.
    """
    journal = path.with_name(f"{path.name}-journal")
    end = b""
    with suppress(FileNotFoundError):  # another process may just remove it
        if journal.is_file():
            with journal.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(_SEVERAL)))
                end = file.read()
    if end == _SEVERAL:
        raise StabilityError(f"{journal} names another file, which SQLite would remove: no store has such a journal, remove it")
    for kind, name, made in connection.execute("SELECT type, name, sql FROM sqlite_master"):
        plain = kind in ("table", "index") and (made is None or (isinstance(made, str) and _PLAIN.fullmatch(_KEYS.sub("", made))))
        if not plain:
            raise StabilityError(
                f"{path} is a database of another program (it holds {kind} {name!r}): use another --store; it was left as it is"
            )
