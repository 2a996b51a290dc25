"""The ledger of finished work: one SQLite file, one row a finished cell, written at once and never rewritten."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

from stability.errors import StabilityError

__all__ = ["LATER", "Store", "as_json", "key"]

_FORMAT = 3  # raise it with every change of what a record holds
LATER = {"removed"}
"""Entries of an identity that older stores of this format lack. What they say follows from the others there: without them a study
is the same."""

_SCHEMA = """
CREATE TABLE study (format INTEGER NOT NULL, version TEXT NOT NULL, identity TEXT NOT NULL);
CREATE TABLE cells (
    key TEXT PRIMARY KEY, identity TEXT NOT NULL, record TEXT NOT NULL, finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
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


def _plain(value: Any) -> object:
    """A number of numpy or torch as a number of Python."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is of type {type(value).__name__}, and JSON holds plain values only")


class Store:
    """Results of one study.

    Args:
        path: the file; made where it is missing and ``identity`` is given.
        identity: what defines the study, as plain values. None opens whatever study the file holds.
        version: the version of the program whose results these are; results of another version are refused.

    Attributes:
        path: the file.
        identity: what defines the study that the file holds.
        version: the version of the program that made it.

    Raises:
        StabilityError: the file is missing, damaged or not a store, the disk is full, or it holds another study or
            another version's results.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "study.sqlite"
        >>> store = Store(path, {"name": "mine"}, version="1")
        >>> store.add({"seed": 0}, {"value": 0.5})
        >>> Store(path).records()
        [{'seed': 0, 'value': 0.5}]
    """

    def __init__(self, path: str | PathLike[str], identity: Mapping[str, Any] | None = None, version: str = "") -> None:
        self.path = Path(path)
        if not self.path.exists() or (identity is not None and self.path.stat().st_size == 0):  # 0: stopped while making it
            if identity is None:
                raise StabilityError(f"there is no store {self.path}: make one with 'stability run STUDY --store {self.path}'")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StabilityError(f"cannot make the folder of {self.path}: {error}") from error
            with self._connection() as connection:  # one transaction: a store is whole or absent
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";")[:-1]:
                    connection.execute(statement)
                connection.execute("INSERT INTO study VALUES (?, ?, ?)", (_FORMAT, version, as_json(identity)))
        with self._connection() as connection:
            rows = connection.execute("SELECT format, version, identity FROM study").fetchall()
            identities = [json.loads(row[2]) for row in rows]
        if len(rows) != 1:
            raise StabilityError(f"{self.path} is damaged: {len(rows)} studies in it instead of 1; delete it and run again")
        stored_format, self.version, _ = rows[0]
        self.identity: dict[str, Any] = identities[0]
        if stored_format != _FORMAT:
            raise StabilityError(
                f"{self.path} has format {stored_format}, this program writes {_FORMAT}: move it away, or use another --store"
            )
        # A store without a finished cell has nothing to lose: it may become that of another study.
        if identity is not None and not self.finished():
            with self._connection() as connection:
                connection.execute("UPDATE study SET version = ?, identity = ?", (version, as_json(identity)))
            self.version, self.identity = version, json.loads(as_json(identity))
        elif identity is not None:
            self.check(identity, version)

    def finished(self) -> set[str]:
        """The keys (:func:`key`) of the finished cells."""
        with self._connection() as connection:
            return {row[0] for row in connection.execute("SELECT key FROM cells")}

    def add(self, identity: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write one finished cell, at once and for good; a cell that is there already is left as it is.

        Args:
            identity: what defines the cell, as plain values.
            record: what was measured, as plain values.

        Raises:
            StabilityError: the file cannot be written.
        """
        row = (key(identity), as_json(identity), as_json(record, sort_keys=False))
        with self._connection() as connection:
            connection.execute("INSERT OR IGNORE INTO cells (key, identity, record) VALUES (?, ?, ?)", row)

    def records(self) -> list[dict[str, Any]]:
        """Every finished cell, identity and record in one dictionary, in the order they were finished."""
        return [{**identity, **record} for identity, record in self.cells()]

    def cells(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Identity and record of every finished cell, in the order they were finished."""
        with self._connection() as connection:
            rows = connection.execute("SELECT identity, record FROM cells ORDER BY rowid").fetchall()
            return [(json.loads(identity), json.loads(record)) for identity, record in rows]

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
            remedy = "free some disk space and run again" if "full" in str(error) else "check the path and its permissions"
            raise StabilityError(f"cannot use the store {self.path}: {error}; what was finished is kept, {remedy}") from error
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            raise StabilityError(
                f"{self.path} is damaged or no store: {error}; move it away and run again, or restore a copy"
            ) from error

    def check(self, identity: Mapping[str, Any], version: str) -> None:
        """Check that the results are of this study and this version.

        Args:
            identity: what defines the study, as plain values.
            version: the version of the program.

        Raises:
            StabilityError: they are not; what differs is named.
        """
        wanted = json.loads(as_json(identity))
        if self.version != version:
            raise StabilityError(
                f"{self.path} was made by version {self.version}, this is {version}: use another --store, or that version"
            )
        for name in sorted((wanted.keys() | self.identity.keys()) - (LATER - self.identity.keys())):
            if wanted.get(name) != self.identity.get(name):
                old, new = _first_difference(self.identity.get(name), wanted.get(name))
                raise StabilityError(
                    f"{self.path} was made with {name} = {old}, now it is {new}: use another --store, or the settings that it "
                    "was made with"
                )


def _first_difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Where two values differ: the first such entries of two lists, the entries of two dictionaries that do, or both values."""
    if isinstance(old, list) and isinstance(new, list):
        return _first_difference(*next(pair for pair in zip_longest(old, new, fillvalue="nothing more") if pair[0] != pair[1]))
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}
    return old, new
