"""What can be read of a damaged store."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stability.errors import StabilityError, UsageError
from stability.studies.folder_ledger import FolderLedger
from stability.studies.identity import as_json, key
from stability.studies.ledger import Ledger, Row, time_of
from stability.studies.packed import unpacked
from stability.studies.sound import oddity
from stability.studies.sqlite_ledger import check_tables
from stability.studies.store import READABLE, Store, ledger_at

__all__ = ["Repair", "repaired"]


@dataclass(frozen=True)
class Repair:
    """What became of a damaged store.

    Attributes:
        kept: cells that were read.
        lost: cells of which something was left, and that could not be read. There may have been others, of which nothing is left.
        aside: where the damaged store is now.
    """

    kept: int
    lost: int
    aside: Path


def repaired(path: Path) -> Repair:
    """Put what can be read of a damaged store into a new one of the same name. The damaged one is renamed, and left as it is.

    A cell is kept if its identity and record are whole, and its key is that of its identity. So what was changed by accident is
    found out, but for a changed record that is still JSON. When it was finished, and how many times it was tried, is kept where
    that can be read too.

    Args:
        path: the store.

    Returns:
        How many cells were kept.

    Raises:
        StabilityError: there is no store, it is whole, or nothing of it can be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.sqlite"
        >>> Store(path, {"study": "mine", "algorithms": []}).add({"seed": 0}, {"status": "ok"})
        >>> with path.open("r+b") as file:
        ...     _ = file.write(b"overwritten")
        >>> repaired(path).kept
        1
        >>> Store(path).records()
        [{'seed': 0, 'status': 'ok'}]
    """
    ledger = ledger_at(path)
    if not ledger.exists():
        raise StabilityError(f"there is no store {path}")
    if (count := _whole(path, ledger)) is not None:
        raise StabilityError(f"{path} is not damaged: all of its {count} cells can be read; it was left as it is")
    working = []
    with suppress(StabilityError):
        working = [one for one in ledger.workers() if not one.gone]
    if working:
        raise UsageError(
            f"process {working[0].process} on {working[0].machine.split()[0]} works on {path}: stop it, and repair then"
        )
    heads, cells, lost = _of_folder(ledger) if isinstance(ledger, FolderLedger) else _of_file(path)
    if not heads:
        raise StabilityError(
            f"nothing can be read of {path}: it does not say which study it holds; restore a copy, or move it away and run again"
        )
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    new = path.with_name(f"{path.stem}.repaired-{number}{path.suffix}")
    made = ledger_at(new)
    made.create(*heads[-1])
    made.add(cells)
    made.close()
    if path.is_dir():
        path.rename(aside)
    else:
        shutil.copy2(path, aside)
    for end in ("-wal", "-shm"):  # the log belongs to the file
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    new.replace(path)
    return Repair(len({row.key for row in cells}), lost, aside)


def _whole(path: Path, ledger: Ledger) -> int | None:
    """How many cells a store has that is not damaged; None of one that is."""
    with suppress(StabilityError, sqlite3.DatabaseError):
        cells = Store(path).cells()
        ledger.times(), ledger.workers(), ledger.claims()
        found = None if any(oddity({**one, **record}) for one, record in cells) else len(cells)
        if isinstance(ledger, FolderLedger) or _all(path, "PRAGMA integrity_check") == [("ok",)]:
            return found
    return None


def _all(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        check_tables(path, connection)
        return connection.execute(query).fetchall()
    finally:
        connection.close()


_Found = tuple[list[tuple[int, str]], list[Row], int]

_MAGIC = b"SQLite format 3\x00"
_LEAST = 100  # bytes that a cell takes at least
_TRIED = 100  # times that a cell may have been tried: what tells of more is damaged


def _of_file(path: Path) -> _Found:
    """Format and identity, a row for each try of each cell, and the number of cells that were there and could not be read."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        shutil.copy(path, copy)
        for end in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                shutil.copy(path.with_name(path.name + end), copy.with_name(copy.name + end))
        with copy.open("r+b") as file:
            file.write(_MAGIC)
        connection = sqlite3.connect(copy)
        try:
            connection.execute("PRAGMA writable_schema = ON")  # else a file that was cut off is not read at all
            check_tables(path, connection)
            return _readable(connection, copy.stat().st_size // _LEAST)
        except sqlite3.DatabaseError:
            return [], [], 0
        finally:
            connection.close()


def _readable(connection: sqlite3.Connection, most: int) -> _Found:
    heads: list[tuple[int, str]] = []
    with suppress(sqlite3.DatabaseError):
        heads = connection.execute("SELECT format, identity FROM study").fetchall()
    forms = {one["id"]: one["form"] for one in _rows(connection, "forms", most) if one is not None}
    lists = {one["key"]: one["details"] for one in _rows(connection, "details", most) if one is not None}
    rows, lost = [], 0
    for one in _rows(connection, "cells", most):
        row = None
        if one is not None and "record" in one:  # of an older format
            row = _sound(one, one["identity"], one["record"])
        elif one is not None:
            with suppress(ValueError, TypeError):
                mine, record = unpacked(forms.get(one["form_id"], ""), one["numbers"], lists.get(one["key"], ""))
                row = _sound(one, as_json(mine), as_json(record, sort_keys=False))
        if row is not None and one is not None:
            tried = one.get("attempt", 1)  # earlier tries left nothing but their number
            rows += [replace(row, passing=True)] * (tried - 1 if type(tried) is int and tried <= _TRIED else 0) + [row]
        lost += row is None
    return _heads(heads), rows, 0 if lost > most // 2 else lost


def _rows(connection: sqlite3.Connection, table: str, most: int) -> Iterator[dict[str, Any] | None]:
    """Those of a table, and None for each that cannot be read."""
    place = 0
    while place < most:
        place += 1
        try:
            cursor = connection.execute(f"SELECT *, rowid AS place FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT 1", (place,))
            found = cursor.fetchone()
        except sqlite3.DatabaseError as error:
            if "no such table" in str(error):  # an older format has fewer
                return
            yield None  # one place after the other, until one can be read
            continue
        if found is None:
            return
        row = dict(zip((column[0] for column in cursor.description), found, strict=True))
        place = row.pop("place")
        yield row


def _of_folder(ledger: FolderLedger) -> _Found:
    heads, rows, lost = [], [], 0
    for one in sorted((ledger.path / "study").glob("*.json"), key=lambda one: (len(one.stem), one.stem)):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            head = json.loads(_text(one))
            heads.append((head["format"], head["identity"]))
    tries: dict[str, list[Row | None]] = {}
    for one in sorted((ledger.path / "cells").glob("*.json"), key=lambda one: (len(one.stem), one.stem)):
        found = None
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            read = json.loads(_text(one))
            found = _sound(read, read["identity"], read["record"])
        tries.setdefault(one.stem.rpartition(".")[0], []).append(found)
    for each in tries.values():
        last = next((one for one in reversed(each) if one is not None), None)
        rows += [] if last is None else [replace(last, passing=True) if one is None else one for one in each]
        lost += last is None
    return _heads(heads), rows, lost


def _heads(found: list[tuple[Any, Any]]) -> list[tuple[int, str]]:
    """Those that say which study it is, in a format that can be read."""
    return [(number, text) for number, text in found if type(number) is int and number in READABLE and _plain(text)]


def _text(place: Path) -> str:
    """What a file says. A pipe, which waits for whoever writes to it, is none."""
    if not place.is_file():
        raise OSError(f"{place} is no file")
    return place.read_text()


def _sound(read: Mapping[str, Any], identity: object, record: object) -> Row | None:
    """A cell, if it is whole; ``read``: what else is known of it."""
    mine = _plain(identity)
    if not mine or not (told := _plain(record)) or key(mine) != read["key"] or oddity({**mine, **told}) is not None:
        return None
    finished = read.get("finished")
    try:
        time_of(Path(), finished)
    except StabilityError:
        finished = None
    return Row(key(mine), str(identity), str(record), bool(read["passing"]), finished=finished)


def _plain(text: object) -> dict[str, object]:
    """What JSON says, if it says a dictionary."""
    with suppress(ValueError, TypeError, RecursionError):
        if isinstance(found := json.loads(text), dict):  # type: ignore[arg-type]
            return found
    return {}
