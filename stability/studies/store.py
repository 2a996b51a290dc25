"""The ledger of finished work: one SQLite file, one row a finished cell, written at once and for good."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stability.errors import StabilityError
from stability.selectors.code import CODE
from stability.studies.restated import restated

__all__ = ["Store", "as_json", "data_of", "difference", "how_of", "key", "reserved", "without_code"]

_FORMAT = 5  # raise it with every change of what a record holds
_READABLE = (3, 4, _FORMAT)
_COMPLETE = 4  # the cells of older formats do not say which code and which data they belong to

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (format INTEGER NOT NULL, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, identity TEXT NOT NULL, record TEXT NOT NULL, passing INTEGER NOT NULL DEFAULT 0,
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
INSERT INTO study SELECT {format}, ? WHERE NOT EXISTS (SELECT 1 FROM study);
"""


def key(identity: Mapping[str, Any]) -> str:
    """SHA-256 of what defines a cell, or a study, whatever the order of its entries.

    Args:
        identity: plain values that JSON can hold.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(as_json(identity).encode()).hexdigest()


def as_json(value: Any, sort_keys: bool = True) -> str:
    """JSON in which a number of numpy is a number.

    Args:
        value: plain values.
        sort_keys: whether the entries of dictionaries are sorted.

    Raises:
        TypeError: a value that JSON cannot hold.

    Example:
        >>> import numpy as np
        >>> as_json({"steps": np.int64(5)})
        '{"steps": 5}'
    """
    return json.dumps(value, sort_keys=sort_keys, default=_plain)


def _as_stored(value: Any) -> Any:
    """Plain values as they are read back from a store: a tuple is a list there, and a number of numpy a number."""
    return json.loads(as_json(value))


def _plain(value: Any) -> object:
    """A number of numpy or torch as a number of Python."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is of type {type(value).__name__}, and JSON holds plain values only")


@contextmanager
def reserved(path: str | PathLike[str]) -> Iterator[None]:
    """Keep every other process from writing to a store. Reading goes on. It ends with the process, however that ends.

    Args:
        path: the store. The file ``path.lock`` beside it is what processes agree by; it stays, and is empty.

    Raises:
        StabilityError: another process has it, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "study.sqlite"
        >>> with reserved(path), reserved(path):
        ...     pass
        Traceback (most recent call last):
        stability.errors.StabilityError: another run is writing to ...
    """
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        if not Path(lock.lock_file).exists():
            raise StabilityError(f"nothing can be written beside {path}: use another --store") from error
        raise StabilityError(f"another run is writing to {path}: wait until it has finished, or use another --store") from error
    except OSError as error:
        raise StabilityError(f"nothing can be written beside {path}: {error}; use another --store") from error
    try:
        yield
    finally:
        lock.release()


class Store:
    """Results of one study.

    A cell is known by what changes its result, the code of its method among it. So a store goes on where only code was changed:
    cells of the old code stay in the file, and are no cells of the study any more.

    Args:
        path: the file; made where it is missing and ``identity`` is given.
        identity: what defines the study, as plain values. None opens whatever study the file holds, to read it.

    Attributes:
        path: the file.
        identity: what defines the study that the file holds.
        complete: whether its cells say which code and which data they belong to. Those of older versions do not.

    Raises:
        StabilityError: the file is missing, damaged or not a store, the disk is full, or it holds another study.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "study.sqlite"
        >>> store = Store(path, {"name": "mine"})
        >>> store.add({"seed": 0}, {"value": 0.5})
        >>> Store(path).records()
        [{'seed': 0, 'value': 0.5}]
    """

    def __init__(self, path: str | PathLike[str], identity: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        if not self.path.exists() or self.path.stat().st_size == 0:  # 0: stopped while making it
            if identity is None:
                raise StabilityError(f"there is no store {self.path}: make one with 'stability run STUDY --store {self.path}'")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StabilityError(f"cannot make the folder of {self.path}: {error}") from error
            create, fill, first = _SCHEMA.format(format=_FORMAT).split(";")[:-1]
            with self._connection() as connection:  # one transaction: a store is whole or absent
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(create)
                connection.execute(fill)
                connection.execute(first, (as_json(identity),))
        with self._connection() as connection:
            rows = connection.execute("SELECT format, identity FROM study").fetchall()
            identities = [json.loads(row[1]) for row in rows]
        if len(rows) != 1 or not isinstance(identities[0], dict):
            raise StabilityError(f"{self.path} is damaged: it does not say which study it holds; restore a copy, or move it away")
        self._format: int = rows[0][0]
        self.identity: dict[str, Any] = identities[0]
        if self._format not in _READABLE:
            raise StabilityError(f"{self.path} has format {self._format}, this program writes {_FORMAT}: use another --store")
        self.complete = self._format >= _COMPLETE
        if identity is not None:
            self._become(identity)

    def _become(self, identity: Mapping[str, Any]) -> None:
        """Hold the study of this identity. It is written even where it is the same: what cannot be written to is found out now."""
        self.check_complete("its table and figures can still be made; to run the study again, use another --store")
        if self.finished():  # a store without a finished cell has nothing to lose: it may become that of another study
            self.check(identity)
        new = [(as_json(record, sort_keys=False), key(one)) for one, record in self.cells()] if self._format < _FORMAT else []
        with self._connection() as connection:  # one transaction: the records are all of one format
            connection.executemany("UPDATE cells SET record = ? WHERE key = ?", new)
            connection.execute("UPDATE study SET identity = ?, format = ?", (as_json(identity), _FORMAT))
        self.identity, self._format = _as_stored(identity), _FORMAT

    def check_complete(self, remedy: str) -> None:
        """Check that the cells say what they belong to, so that they can be taken for those of a study.

        Args:
            remedy: what can be done where they do not, for the message.

        Raises:
            StabilityError: the store is of an older version.
        """
        if not self.complete:
            raise StabilityError(
                f"{self.path} is of an older version, whose results do not say which code and which data they belong to: {remedy}"
            )

    def finished(self) -> set[str]:
        """The keys (:func:`key`) of the finished cells, without those that are to be tried again."""
        if not self.complete:
            return set()
        with self._connection() as connection:
            return {row[0] for row in connection.execute("SELECT key FROM cells WHERE NOT passing")}

    def add(self, identity: Mapping[str, Any], record: Mapping[str, Any], passing: bool = False) -> None:
        """Write one cell at once. A finished one is left as it is; one that was to be tried again is replaced.

        Args:
            identity: what defines the cell, as plain values.
            record: what was measured, as plain values.
            passing: whether it is to be tried again, because something failed that may pass.

        Raises:
            StabilityError: the file cannot be written.
        """
        row = (key(identity), as_json(identity), as_json(record, sort_keys=False), passing)
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO cells (key, identity, record, passing) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET record = excluded.record, passing = excluded.passing, finished = CURRENT_TIMESTAMP WHERE passing",
                row,
            )

    def records(self) -> list[dict[str, Any]]:
        """Every cell, identity and record in one dictionary, in the order in which they were first written."""
        return [{**identity, **record} for identity, record in self.cells()]

    def cells(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Identity and record of every cell, in the order in which they were first written.

        What an older version estimated is estimated anew (:mod:`stability.studies.restated`). The file is left as it is until a
        study goes on in it.
        """
        with self._connection() as connection:
            rows = connection.execute("SELECT identity, record FROM cells ORDER BY rowid").fetchall()
            cells = [(json.loads(identity), json.loads(record)) for identity, record in rows]
        if odd := sum(not (isinstance(identity, dict) and isinstance(record, dict)) for identity, record in cells):
            raise StabilityError(f"{self.path} is damaged: {odd} of its {len(cells)} cells cannot be read; restore a copy")
        return cells if self._format == _FORMAT else [(one, restated(self.identity, one, record)) for one, record in cells]

    def times(self) -> dict[str, datetime]:
        """When each cell was finished, by its key; empty in a store of an older version, which does not tell."""
        if not self.complete:
            return {}
        with self._connection() as connection:
            rows = connection.execute("SELECT key, finished FROM cells").fetchall()
        return {name: datetime.fromisoformat(finished).replace(tzinfo=UTC) for name, finished in rows}

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, timeout=60)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            if "no such" in str(error):
                raise StabilityError(
                    f"{self.path} is a database of another program ({error}): use another --store; it was left as it is"
                ) from error
            remedy = "free some disk space and run again" if "full" in str(error) else "check the path and its permissions"
            raise StabilityError(f"cannot use the store {self.path}: {error}; what was finished is kept, {remedy}") from error
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            raise StabilityError(
                f"{self.path} is damaged or no store: {error}; move it away and run again, or restore a copy"
            ) from error

    def check(self, identity: Mapping[str, Any]) -> None:
        """Check that the store holds a study. That only code was changed is no difference: its cells have other keys.

        Args:
            identity: what defines the study, as plain values.

        Raises:
            StabilityError: it holds another one; what differs is named.
        """
        if (name := difference(self.identity, identity)) == "algorithms":
            old, new = (
                {key(without_code(_as_stored(one))): one["selector"]["name"] for one in each["algorithms"]}
                for each in (self.identity, identity)
            )
            gone, added = ([names[one] for one in names if one not in others] for names, others in ((old, new), (new, old)))
            changes = [f"{what} {', '.join(names)}" for what, names in (("without", gone), ("with", added)) if names]
            raise StabilityError(
                f"{self.path} was made for other algorithms; now it is {' and '.join(changes) or 'another order'}, or with other "
                "settings of them: use another --store, and --reuse this one to take over what they share"
            )
        if name is not None:
            old, new = _first_difference(*(without_code(_as_stored(one.get(name))) for one in (self.identity, identity)))
            raise StabilityError(
                f"{self.path} was made with {name} = {old}, now it is {new}: use another --store, or the settings that it "
                "was made with"
            )


def data_of(identity: Mapping[str, Any]) -> dict[str | None, str]:
    """A digest of the identity of each problem of a study, by the name of its task; of a single problem under None.

    Args:
        identity: the study's.

    Example:
        >>> list(data_of({"problem": "digits", "problem_settings": {"n": 40}}))
        [None]
    """
    several: Mapping[str | None, Any] | None = identity.get("problems")
    each = several or {None: {name: identity.get(name) for name in ("problem", "problem_settings")}}
    return {name: key(problem)[:16] for name, problem in each.items()}


def how_of(identity: Mapping[str, Any]) -> str:
    """A digest of what a study's identity says of how each of its cells is measured.

    Args:
        identity: the study's.

    Example:
        >>> how_of({"delta": 0.1}) == how_of({"delta": 0.1, "seeds": [0]})
        True
    """
    return key({name: identity.get(name) for name in ("numerics", "retrainings", "estimator", "check_replicas", "delta")})[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first entry, by its name, in which two identities differ apart from code; None where they do not.

    Example:
        >>> difference({"seeds": [0], "delta": 0.1}, {"seeds": [0], "delta": 0.2})
        'delta'
    """
    first, second = (without_code(_as_stored(one)) for one in (old, new))
    return next((name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)), None)


def without_code(value: Any) -> Any:
    """An identity, or a part of one, without the digests of code in it.

    Example:
        >>> without_code([{"name": "mine", CODE: "0123456789abcdef"}])
        [{'name': 'mine'}]
    """
    if isinstance(value, dict):
        return {name: without_code(one) for name, one in value.items() if name != CODE}
    return [without_code(one) for one in value] if isinstance(value, list) else value


def _first_difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Where two values differ: the first such entries of two lists, the entries of two dictionaries that do, or both values."""
    if isinstance(old, list) and isinstance(new, list):
        return _first_difference(*next(pair for pair in zip_longest(old, new, fillvalue="nothing more") if pair[0] != pair[1]))
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}
    return old, new
