"""What a store holds as a tidy table, and how far a study is."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest

from stability.cli.commands import main
from stability.errors import StabilityError
from stability.reports import study_table
from stability.studies import Store, StudyResults
from stability.studies.cell import _CONSTANTS, _MEASURED
from stability.studies.columns import CELLS, EXAMPLES, cells, described, examples
from stability.studies.ledger import Worker
from stability.studies.sqlite_ledger import SqliteLedger
from stability.studies.state import state_of

FIGURES = Path(__file__).parents[2] / "figures"
STORES = sorted(FIGURES.glob("*.sqlite"))


def changed(folder: Path, *statements: str) -> Path:
    """A copy of the store of the long runs, three of whose nine cells are of childpruning, changed."""
    path = folder / "changed.sqlite"
    path.write_bytes((FIGURES / "discontinuity.sqlite").read_bytes())
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


FAILED = """UPDATE cells SET record = '{"status": "failed", "failure": "method", "reason": "diverged at step 7"}'
            WHERE json_extract(identity, '$.method') = 'childpruning' AND json_extract(identity, '$.seed') < 2"""
GONE = "DELETE FROM cells WHERE json_extract(identity, '$.method') = 'sam' AND json_extract(identity, '$.seed') > 0"


def test_every_column_is_described_and_every_description_has_a_column() -> None:
    assert len(STORES) == 10
    used: set[str] = set()
    for path in STORES:
        table = cells(Store(path))
        assert list(table.columns) == list(CELLS)
        used |= {name for name in CELLS if table[name].notna().any()}
    # No committed study failed or drew S apart, or let the estimator be chosen.
    assert set(CELLS) - used == {"sample", "failure", "reason", "estimator_reason"}
    assert {*_CONSTANTS, *_MEASURED} <= CELLS.keys()
    assert list(examples(Store(FIGURES / "digits.sqlite")).columns) == list(EXAMPLES)
    for columns in (CELLS, EXAMPLES):
        text = described(columns)
        assert [line.split("`")[1] for line in text.splitlines()[2:]] == list(columns)
        assert all(column.meaning.endswith(".") for column in columns.values())


def test_the_numbers_are_those_of_the_store() -> None:
    path = FIGURES / "digits.sqlite"
    table, results = cells(Store(path)), StudyResults.read(path).table
    for name in ("stability", "stability_low", "gap", "test_metric", "least_eigenvalue", "seconds"):
        np.testing.assert_array_equal(table[name].to_numpy(float), results[name].to_numpy(float))
    row = examples(Store(path)).iloc[0]
    assert row["difference"] == pytest.approx(row["loss_left_out"] - row["loss_full"], abs=1e-6)
    assert np.corrcoef(*examples(Store(path))[["predicted", "difference"]].to_numpy(float).T)[0, 1] > 0.5


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
@pytest.mark.parametrize("rows", [[], ["--examples"]])
def test_each_form_holds_the_same_table(tmp_path: Path, form: str, rows: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"table.{form}"
    assert main(["export", "--store", str(FIGURES / "discontinuity.sqlite"), "--out", str(out), *rows]) == 0
    columns = len(EXAMPLES if rows else CELLS)
    assert capsys.readouterr().out == f"{18 if rows else 9} rows of {columns} columns: {out}\n"
    read = getattr(pd, f"read_{form}")(out)
    whole = (examples if rows else cells)(Store(FIGURES / "discontinuity.sqlite"))
    assert list(read.columns) == list(whole.columns)
    numbers = [name for name in whole.columns if pd.api.types.is_numeric_dtype(whole[name])]
    assert len(numbers) > 5
    np.testing.assert_allclose(read[numbers].to_numpy(float), whole[numbers].to_numpy(float), rtol=1e-9)
    assert read["method"].tolist() == whole["method"].tolist()


def test_text_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--store", str(FIGURES / "discontinuity.sqlite"), "--format", "json"]) == 0
    assert [row["seed"] for row in json.loads(capsys.readouterr().out)][:4] == [0, 0, 0, 1]


def test_senseless_exports_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = ["export", "--store", str(FIGURES / "discontinuity.sqlite")]
    for words, message in (
        ([*store, "--format", "parquet"], "give --out FILE.parquet"),
        ([*store, "--out", str(tmp_path / "table.xls")], "give --format too"),
        ([*store, "--out", str(tmp_path / "nowhere" / "table.csv")], "cannot write"),
        (["export", "--store", str(changed(tmp_path, "DELETE FROM cells"))], "has no finished cell"),
    ):
        assert main(words) > 0
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main([*store, "--out", str(tmp_path / "table.parquet")]) == 2
    assert "pip install 'peft-stability[parquet]'" in capsys.readouterr().err


def test_failed_cells_are_told_with_their_reason(tmp_path: Path) -> None:
    table = cells(Store(changed(tmp_path, FAILED)))
    bad = table[table["status"] == "failed"]
    assert bad[["method", "failure", "reason"]].to_numpy().tolist() == [["childpruning", "method", "diverged at step 7"]] * 2
    assert bad["stability"].isna().all()


def test_progress_counts_what_is_there_what_failed_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(tmp_path, FAILED, GONE)
    found = state_of(Store(path))
    assert {one.method: (one.total, one.measured, one.failed, one.missing) for one in found.methods} == {
        "diffpruning": (3, 3, 0, 0), "childpruning": (3, 1, 2, 0), "sam": (3, 1, 0, 2),
    }  # fmt: skip
    assert (found.total, found.measured, found.failed, found.missing) == (9, 5, 2, 2)
    assert dict(found.failures) == {("method", "diverged at step 7"): 2}
    assert main(["status", "--store", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("discontinuity: 7 of 9 cells are finished, 2 of them failed; 2 are missing\n")
    assert "failed, 2 cells (method): diverged at step 7" in said
    assert said.endswith(f"to go on: run again the command that began it, so that it writes to {path}\n")
    assert main(["status", "--store", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == [{"kind": "method", "reason": "diverged at step 7", "cells": 2}]


def test_a_store_on_a_network_file_system_says_how_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder, tail = changed(tmp_path), tmp_path / "mine.d", "on a network file system (nfs4)"
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr(psutil, "disk_partitions", lambda **how: [SimpleNamespace(mountpoint="/", fstype="ext4")])
        assert main(["status", "--store", str(file)]) == 0
    assert "file system" not in capsys.readouterr().out
    mounts = [("/", "ext4"), (str(tmp_path), "ext4"), (str(tmp_path), "nfs4"), (f"{tmp_path}/changed", "ext4")]
    partitions = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **how: partitions)
    Store(folder, Store(file).identity)
    without = f"the store is one file with locks and no write-ahead log, {tail}; locks may not work there, a folder such as "
    without += f"{tmp_path}/changed.d is the safe choice"
    for store, said in ((file, without), (folder, f"the store is a folder of files, which needs no locks, {tail}")):
        assert main(["status", "--store", str(store)]) == 0
        assert said in capsys.readouterr().out.splitlines()
    for fstype, log in (("nfs4", "no"), ("ext4", "a"), ("nfs4", "no")):  # the last: a log that a stopped process left
        partitions[:] = [SimpleNamespace(mountpoint="/", fstype=fstype)]
        ledger, worker = SqliteLedger(tmp_path / "mine.sqlite"), Worker()
        if not ledger.exists():
            ledger.create(7, "{}")
        ledger.join(worker)
        assert ledger.mode == f"one file with locks and {log} write-ahead log"
        ledger.close()
    with closing(sqlite3.connect(tmp_path / "mine.sqlite")) as other:
        other.execute("PRAGMA journal_mode = WAL")
        assert other.execute("SELECT * FROM study").fetchall() == [(7, "{}")]
        with pytest.raises(StabilityError, match=r"network file system \(nfs4\), and another process .*such as .*mine\.d"):
            ledger.join(Worker())


def test_the_pace_leaves_pauses_out(tmp_path: Path) -> None:
    """Cells of 10 s that two workers finish, 5 s apart; then a night's pause; the two that are missing take 10 s at that pace."""
    moments = [
        datetime(2026, 1, day, 12, 0, second, tzinfo=UTC)
        for day, second in [(1, 0), (1, 5), (1, 10), (1, 15), (2, 0), (2, 5), (2, 10)]
    ]
    path = changed(tmp_path, GONE, "UPDATE cells SET record = json_set(record, '$.seconds', 10.0)")
    with sqlite3.connect(path) as connection:
        for (row,), moment in zip(connection.execute("SELECT rowid FROM cells ORDER BY rowid").fetchall(), moments, strict=True):
            connection.execute("UPDATE cells SET finished = ? WHERE rowid = ?", (f"{moment:%Y-%m-%d %H:%M:%S}", row))
    connection.close()
    found = state_of(Store(path))
    busy = 5 * 5 + 10  # the pause counts as the 10 s of the cell that ended it
    assert found.last == moments[-1]
    assert found.rate == pytest.approx(3600 * 6 / busy)
    assert found.remaining == pytest.approx(20 * busy / 60)


def test_time_left_is_by_task_method_and_whether_stability_is_measured(tmp_path: Path) -> None:
    """Without times of finishing: a missing cell takes what those of its own kind took, and failed ones count nowhere."""
    path = tmp_path / "paper-quick.sqlite"
    path.write_bytes((FIGURES / "paper-quick.sqlite").read_bytes())
    last, sam = max(Store(path).identity["seeds"]), "json_extract(identity, '$.method') = 'sam'"
    assert len(Store(path).identity["seeds"]) > 2
    with sqlite3.connect(path) as connection:
        # Every cell of SAM takes 10 s on RTE and 1 s on CB, but 100 s where stability is measured: with the first seed.
        connection.execute(
            "UPDATE cells SET record = json_set(record, '$.seconds', 10 - 9 * (json_extract(record, '$.task') = 'cb'))"
        )
        connection.execute(
            "UPDATE cells SET record = json_set(record, '$.seconds', 100) WHERE json_extract(identity, '$.seed') = 0"
        )
        connection.execute("UPDATE study SET identity = json_set(identity, '$.measured_seeds', 1)")
        gone = connection.execute(f"DELETE FROM cells WHERE {sam} AND json_extract(identity, '$.seed') = {last}").rowcount
        assert gone == 2
        failed = f"WHERE {sam} AND json_extract(identity, '$.seed') = {last - 1} AND json_extract(record, '$.task') = 'cb'"
        changes = "'$.status', 'failed', '$.failure', 'machine', '$.reason', 'killed', '$.seconds', 0"
        assert connection.execute(f"UPDATE cells SET record = json_set(record, {changes}) {failed}").rowcount == 1
        connection.execute("UPDATE cells SET finished = '2026-01-01 12:00:00'")
    connection.close()
    found = state_of(Store(path))
    assert (found.missing, found.failed) == (2, 1)
    assert found.remaining == pytest.approx(10 + 1)
    (mine,) = (one for one in found.methods if one.method == "sam")
    rest = last - 1  # seeds of SAM besides the first that are there, of RTE; of CB one of them failed
    assert mine.seconds == pytest.approx((2 * 100 + rest * 10 + (rest - 1) * 1) / (2 + rest + rest - 1))


def test_status_reads_while_another_process_writes(tmp_path: Path) -> None:
    path = changed(tmp_path)
    with sqlite3.connect(path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute(GONE)
        assert state_of(Store(path)).missing == 0  # what is not committed is not seen
    writer.close()
    assert state_of(Store(path)).missing == 2


def test_a_table_gives_no_interval_of_two_seeds() -> None:
    results = StudyResults.read("figures/discontinuity.sqlite")
    for seeds, shown in (([0, 1, 2], True), ([0, 1], False)):
        table = study_table(results.where(seed=seeds))
        assert ("95 % interval" in table) == shown
