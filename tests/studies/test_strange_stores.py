"""Stores from strangers: SQLite files and folders that are damaged, filled with other things, or made to do harm."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability import StabilityError
from stability.studies.ledger import Row, Wanted, Worker
from stability.studies.salvage import repaired
from stability.studies.sound import check_table, oddity
from stability.studies.store import Store, ledger_at
from tests.strangers import REFUSED, answer, bytes_like, command, content_of, tries, values_like, written

COMMITTED = Path("figures/paper-quick-bounds.sqlite")
OLD = Path("tests/studies/format-4.sqlite")  # its stability is estimated anew when it is read
ENDS = (".sqlite", ".d")


def shortened(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with fewer numbers of the same kind."""
    history = {name: one[:3] if isinstance(one, list) else one for name, one in record["history"].items()}
    return {**record, "history": history}


IDENTITY = Store(COMMITTED).identity
CELLS = [(one, shortened(record)) for one, record in Store(COMMITTED).cells()]
FAILED = {**CELLS[0][0], "seed": 1}, {"status": "failed", "failure": "machine", "reason": "memory ran out", "task": "cb"}
IDENTITY["seeds"] = [0, 1]
WHOLE: dict[str, Any] = {"identity": IDENTITY, "cells": [*CELLS, FAILED]}


def made(path: Path, whole: Mapping[str, Any]) -> Path:
    """A store of what ``whole`` says, whether it makes sense or not, with a worker that has a claim."""
    ledger, worker = ledger_at(path), Worker(what="one process")
    ledger.create(7, written(whole["identity"]))
    for number, (one, record) in enumerate(whole["cells"]):
        name = hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()
        if path.suffix == ".d" or (isinstance(one, dict) and isinstance(record, dict)):
            ledger.add([Row(name, written(one), written(record), number == 2)])
        else:  # no ledger writes such a cell
            with sqlite3.connect(path) as connection:
                connection.execute("INSERT INTO forms VALUES (?, ?)", (100 + number, written([one, record])))
                connection.execute("INSERT INTO cells (key, form_id, numbers) VALUES (?, ?, '')", (name, 100 + number))
            connection.close()
    ledger.beat(worker)
    ledger.claim(worker, {"a": Wanted("the first")}, 1, set())
    ledger.close()
    return path


def bytes_of_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return made(Path(folder) / "mine.sqlite", WHOLE).read_bytes()


READING = (
    ("status",),
    ("status", "--json"),
    ("table",),
    ("table", "--json"),
    ("table", "--ranks"),
    ("table", "--ranks", "--format", "latex"),
    ("export",),
    ("export", "--examples"),
    ("export", "--format", "json"),
)
"""What reads a store and writes nothing."""


def read(path: Path, commands: tuple[tuple[str, ...], ...] = READING) -> list[tuple[int, str, str]]:
    """What commands say of a store, which stays as it is."""
    before = content_of(path.parent)
    found = [command(name, "--store", str(path), *more) for name, *more in commands]
    assert content_of(path.parent) == before, "reading changed something"
    answer(lambda: Store(path).records())
    return found


def drawn(path: Path) -> None:
    """Figures and the page of a store; they go where they were asked for."""
    with tempfile.TemporaryDirectory() as other:
        out = Path(other) / "inner" / "figures"
        code, said, _ = command("figures", "--store", str(path), "--out", str(out))
        assert code or all(Path(one).is_relative_to(out) for one in said.splitlines())
        command("report", "--store", str(path), "--out", f"{other}/inner/report.html")
        assert {one.name for one in Path(other).iterdir()} <= {"inner"}


def mended(path: Path) -> None:
    """What ``repair`` does with a store, beside which nothing else is touched."""
    folder = path.parent
    (folder / "other").write_text("mine")
    code, _, _ = command("repair", str(path))
    assert (folder / "other").read_text() == "mine"
    if not code:
        assert {one.name.partition(".damaged-")[0] for one in folder.iterdir()} == {path.name, "other"}
        read(path, READING[:1])  # what it kept can be read
        assert command("repair", str(path))[0] == 1, "it is whole now"


def tried(path: Path, data: st.DataObject) -> None:
    """Two of the commands that read, and perhaps ``repair``."""
    read(path, tuple(data.draw(st.lists(st.sampled_from(READING), min_size=2, max_size=2))))
    if data.draw(st.integers(0, 2)) == 0:
        mended(path)


@pytest.mark.parametrize("end", ENDS)
def test_a_store_as_it_was(end: str, tmp_path: Path) -> None:
    path = made(tmp_path / f"mine{end}", WHOLE)
    assert [code for code, _, _ in read(path)] == [0] * len(READING)
    drawn(path)
    with pytest.raises(StabilityError, match="is not damaged: all of its 3 cells"):
        repaired(path)


@given(content=bytes_like(bytes_of_store()), data=st.data())
@tries(15)
def test_bytes(content: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.sqlite"
        path.write_bytes(content)
        tried(path, data)


@given(data=st.data())
@tries(15)
def test_bytes_of_folders(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = made(Path(folder) / "mine.d", WHOLE)
        one = data.draw(st.sampled_from(sorted(path.rglob("*.json"))))
        kind = data.draw(st.integers(0, 5))
        if kind == 0:
            one.rename(
                one.with_name(data.draw(st.sampled_from(["x.json", ".json", "-1.json", "1e3.json", "a.b.c.json", "٣.json"])))
            )
        elif kind == 1:
            one.unlink()
            one.mkdir()
        elif kind == 2:
            one.write_text(written(data.draw(values_like(json.loads(one.read_text())))))
        else:
            one.write_bytes(data.draw(bytes_like(one.read_bytes())))
        tried(path, data)


@st.composite
def stores_like(draw: st.DrawFn) -> dict[str, Any]:
    """What a store says: an identity or a record that is JSON, and says something odd."""
    part = draw(st.sampled_from(["identity", 0, 1, 2]))
    if part == "identity":
        return {**WHOLE, "identity": draw(values_like(IDENTITY))}
    one, record = WHOLE["cells"][part]
    # What says which study a cell is of decides about the rest: it is changed less often.
    new = (draw(values_like(one)), record) if draw(st.integers(0, 3)) == 0 else (one, draw(values_like(record)))
    return {**WHOLE, "cells": [new if number == part else old for number, old in enumerate(WHOLE["cells"])]}


@pytest.mark.parametrize("end", ENDS)
@given(whole=stores_like(), data=st.data())
@tries(30)
def test_values(end: str, whole: dict[str, Any], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tried(made(Path(folder) / f"mine{end}", whole), data)


@given(whole=stores_like())
@tries(1)
def test_figures_and_pages(whole: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        drawn(made(Path(folder) / "mine.sqlite", whole))


HOSTILE = {
    "a view without end": """DROP TABLE study; CREATE VIEW study AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
        SELECT 6 AS format, x AS identity FROM c""",
    "cells without end": """DROP TABLE cells; CREATE VIEW cells AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
        SELECT x AS rowid, x AS key, '{}' AS identity, '{}' AS record, 0 AS passing, '' AS finished, 1 AS attempt FROM c""",
    "a column that is computed": "ALTER TABLE study ADD COLUMN more TEXT AS (hex(zeroblob(500000000)))",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON cells BEGIN DELETE FROM cells; END",
    "an index of what is computed": "CREATE INDEX i ON study (hex(zeroblob(format)))",
    "a check": "CREATE TABLE mine (a, CHECK (length(zeroblob(500000000)) > a))",
    "a virtual table": "CREATE VIRTUAL TABLE mine USING fts5 (a)",
}


@pytest.mark.parametrize("harm", HOSTILE.values(), ids=HOSTILE)
def test_no_program_in_a_database_is_run(harm: str, tmp_path: Path) -> None:
    path = made(tmp_path / "mine.sqlite", WHOLE)
    connection = sqlite3.connect(path)
    connection.executescript(harm)
    connection.close()
    for code, _, said in read(path):
        assert code == 1
        assert "is a database of another program" in said
    before = path.read_bytes()
    assert command("repair", str(path))[0] == 1
    assert answer(lambda: Store(path, IDENTITY)) is REFUSED
    assert content_of(tmp_path) == {"mine.sqlite": before}


ODD_COLUMNS = ["NULL", "x'ff00'", "CAST(x'ff' AS TEXT)", "5", "1e400", "'['", "''", "'9999-99-99'", "zeroblob(1000)"]


@pytest.mark.parametrize("value", ODD_COLUMNS)
def test_columns_of_another_type(value: str, tmp_path: Path) -> None:
    """Each column of each table, whichever they are."""
    whole = made(tmp_path / "whole.sqlite", WHOLE).read_bytes()
    connection = sqlite3.connect(tmp_path / "whole.sqlite")
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = [(table, row[1]) for table in tables for row in connection.execute(f"PRAGMA table_info ({table})")]
    connection.close()
    assert len(columns) > 10
    for number, (table, column) in enumerate(columns):
        (folder := tmp_path / str(number)).mkdir()
        (path := folder / "mine.sqlite").write_bytes(whole)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            connection.execute(f"UPDATE {table} SET {column} = {value} WHERE rowid = 1")
        except sqlite3.IntegrityError:  # that may not be null
            continue
        finally:
            connection.commit()
            connection.close()
        read(path, (("status",), ("export",)))
        mended(path)


def test_an_overlap_of_masks_is_a_fraction() -> None:
    failed = pd.DataFrame({"status": ["failed"], "method": ["sam"], "reason": ["diverged"]}, dtype=object)
    for known in (math.nan, 0.0, 0.5, 1.0):
        assert oddity({"mask_overlap": known}) is oddity({"mask_overlap": None}) is None
        check_table(COMMITTED, failed.assign(mask_overlap=known))
    for odd in (7.0, -1.0):
        assert oddity({"mask_overlap": odd}) == f"mask_overlap = {odd} is not a number in [0, 1]"
        with pytest.raises(StabilityError, match=rf"mask_overlap = {odd} is not a number in \[0, 1\]"):
            check_table(COMMITTED, failed.assign(mask_overlap=odd))


def test_a_database_of_another_program(tmp_path: Path) -> None:
    connection = sqlite3.connect(path := tmp_path / "mine.sqlite")
    connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = path.read_bytes()
    assert all(code == 1 and "another program" in said for code, _, said in read(path))
    assert command("repair", str(path))[0] == 1
    assert content_of(tmp_path) == {"mine.sqlite": before}


def test_a_journal_deletes_no_file_elsewhere(tmp_path: Path) -> None:
    """A journal of SQLite may name a file that belongs to it, which is removed once the journal was played back."""
    (mine := tmp_path / "mine").mkdir()
    path, other = made(mine / "mine.sqlite", WHOLE), tmp_path / "other"
    other.write_text("precious")
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(other).encode()
    head = magic + struct.pack(">iIIII", 0, 1, len(path.read_bytes()) // 4096, 512, 4096)
    tail = struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    (mine / "mine.sqlite-journal").write_bytes(head.ljust(512, bytes(1)) + tail)
    answer(lambda: Store(path).records())
    command("status", "--store", str(path))
    command("repair", str(path))
    assert other.read_text() == "precious"


@pytest.mark.parametrize("place", ["study/0.json", "cells/x.0.json", "workers/a.json", "claims/a.0.1.json"])
def test_a_pipe_in_a_folder_is_not_waited_for(place: str, tmp_path: Path) -> None:
    path = made(tmp_path / "mine.d", WHOLE)
    (path / place).unlink(missing_ok=True)
    os.mkfifo(path / place)
    assert command("status", "--store", str(path))[0] == 1
    command("repair", str(path))


def test_half_a_pair_of_utf_16_is_a_sign_like_others(tmp_path: Path) -> None:
    one, record = FAILED
    odd = {**record, "reason": "no file \ud800.txt", "\udfff": None}
    path = made(tmp_path / "mine.sqlite", {**WHOLE, "cells": [*CELLS, (one, {**record, "reason": odd["reason"]})]})
    assert "no file \ufffd.txt" in read(path)[0][1]
    assert [code for code, _, _ in read(path)] == [0] * len(READING)
    read(made(tmp_path / "other.sqlite", {**WHOLE, "cells": [*CELLS, (one, odd)]}))
