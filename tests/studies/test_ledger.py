"""Who works on which cell: the two ledgers agree with what a claim is, whatever dies, and whatever the clock says."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ledger import at_once
from stability.errors import StabilityError
from stability.studies import ledger as ledgers
from stability.studies.folder_ledger import FolderLedger
from stability.studies.ledger import Heartbeat, Ledger, Row, Wanted, Watch, Worker
from stability.studies.results import StudyResults
from stability.studies.sqlite_ledger import SqliteLedger
from stability.studies.store import Store, ledger_at
from tests.studies.older import write_older

FREE: set[str] = set()


@pytest.fixture(params=["mine.sqlite", "mine.d"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    made = ledger_at(tmp_path / request.param)
    assert not made.exists()
    made.create(7, '{"study": "mine"}')
    assert made.exists()
    return made


def row(name: str, value: object = 0, passing: bool = False) -> Row:
    return Row(name, json.dumps({"name": name}), json.dumps({"value": value}), passing)


def wanted(*names: str, before: int = 0) -> dict[str, Wanted]:
    return {name: Wanted(f"cell {name}", before) for name in names}


def test_a_cell_is_claimed_by_one(ledger: Ledger) -> None:
    first, second = Worker(), Worker()
    ledger.join(first)
    ledger.join(second)
    assert ledger.claim(first, wanted("a", "b", "c"), 2, FREE).mine == {"a": 1, "b": 1}
    answer = ledger.claim(second, wanted("a", "b", "c"), 2, FREE)
    assert (answer.mine, answer.held) == ({"c": 1}, {"a": first.id, "b": first.id})
    assert set(ledger.claims()) == {(one, who.id, 1, f"cell {one}") for one, who in zip("abc", (first, first, second), strict=True)}
    ledger.add([row("a")])
    assert ledger.claim(second, wanted("a", "b"), 2, FREE).finished == {"a"}
    ledger.leave(first)
    assert list(ledger.claim(second, wanted("b"), 2, FREE).mine) == ["b"]
    assert [one.id for one in ledger.workers()] == [second.id]
    ledger.leave(second)
    assert ledger.workers() == []


def test_the_cells_of_the_dead_are_taken_over_and_counted(ledger: Ledger) -> None:
    workers = [Worker() for _ in range(4)]
    for worker in workers:
        ledger.join(worker)
    dead: set[str] = set()
    for count, worker in enumerate(workers):
        assert ledger.claim(worker, wanted("a"), 1, dead).mine == {"a": count + 1}
        assert ledger.claim(workers[0], wanted("a"), 1, FREE).mine == {}
        dead.add(worker.id)
    assert {one.id for one in ledger.workers()} == {workers[-1].id}
    for worker in workers:  # one that was thought dead comes back: what was first counts
        ledger.add([row("a", worker.id)])
    assert ledger.cells() == [('{"name": "a"}', json.dumps({"value": workers[0].id}))]


def test_a_failure_that_may_pass_is_tried_again_once_by_each_later_worker(ledger: Ledger) -> None:
    first, second, third = Worker(), Worker(), Worker()
    for worker in (first, second):
        ledger.join(worker)
    assert ledger.claim(first, wanted("a"), 1, FREE).mine
    ledger.add([row("a", "failed", passing=True)])
    assert ledger.claim(second, wanted("a"), 1, FREE).finished == {"a"}  # it had begun before that failure
    assert ledger.attempts() == {"a": (True, 1)}
    ledger.join(third)
    assert ledger.claim(third, wanted("a", before=1), 1, FREE).mine == {"a": 1}
    ledger.add([row("a", "measured")])
    ledger.add([row("a", "again")])
    assert ledger.attempts() == {"a": (False, 2)}
    assert [json.loads(record)["value"] for _, record in ledger.cells()] == ["measured"]


def test_cells_are_in_the_order_in_which_they_were_first_finished(ledger: Ledger) -> None:
    for name in ("c", "a", "b"):
        ledger.add([row(name, passing=name == "c")])
        time.sleep(0.01)
    ledger.add([row("c", 1)])
    assert [json.loads(identity)["name"] for identity, _ in ledger.cells()] == ["c", "a", "b"]
    assert set(ledger.times()) == {"a", "b", "c"}


def test_a_worker_that_was_taken_for_dead_and_goes_on_holds_what_it_claims(ledger: Ledger) -> None:
    stalled, other, third = Worker(), Worker(), Worker()
    for worker in (stalled, other, third):
        ledger.join(worker)
    assert ledger.claim(stalled, wanted("a"), 1, FREE).mine
    assert ledger.claim(other, wanted("a"), 1, {stalled.id}).mine == {"a": 2}
    ledger.beat(stalled)
    assert ledger.claim(stalled, wanted("b"), 1, FREE).mine == {"b": 1}
    assert ledger.claim(third, wanted("b"), 1, FREE).held == {"b": stalled.id}


def test_of_many_workers_those_that_are_asked_for_are_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand that wait read those few that hold cells. One that leaves meanwhile is not there any more."""
    workers, read = [Worker(id=name) for name in "abcd"], list[str]()
    for worker in workers:
        ledger.join(worker)
    assert [one.id for one in ledger.workers(["c", "a", "nobody"])] == ["a", "c"]
    if isinstance(ledger, FolderLedger):
        whole = ledger._read

        def leaving(place: Path, **kinds: type) -> dict[str, Any]:
            read.append(place.stem)
            if place.stem == "a":
                place.unlink()
            return whole(place, **kinds)

        monkeypatch.setattr(ledger, "_read", leaving)
        assert [one.id for one in ledger.workers(["a", "c"])] == ["c"]
        assert read == ["a", "c"]


def test_a_worker_that_died_without_a_claim_is_forgotten(ledger: Ledger) -> None:
    dead, alive = Worker(started=0.0), Worker()
    ledger.join(dead)
    ledger.join(alive)
    assert dead.gone
    assert not alive.gone
    ledger.leave(alive)
    assert ledger.workers() == []
    ledger.close()
    assert not list(ledger.path.parent.glob("*-wal"))


def test_what_was_measured_counts_whatever_failed_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its writing, another process writes a failure that may pass."""
    ledger = FolderLedger(tmp_path / "mine.d")
    ledger.create(7, '{"study": "mine"}')
    last = FolderLedger._last

    def late(self: FolderLedger, name: str) -> int:
        count = last(self, name)
        monkeypatch.undo()
        self.add([row("a", "failed", passing=True)])
        return count

    monkeypatch.setattr(FolderLedger, "_last", late)
    ledger.add([row("a", "measured")])
    assert [json.loads(record)["value"] for _, record in ledger.cells()] == ["measured"]
    assert ledger.attempts() == {"a": (False, 2)}


@pytest.mark.parametrize("name", ["mine.sqlite", "mine.d"])
def test_a_store_that_somebody_joined_does_not_become_that_of_another_study(name: str, tmp_path: Path) -> None:
    mine, other = {"study": "mine", "algorithms": []}, {"study": "other", "algorithms": []}
    store = Store(tmp_path / name, mine)
    again = Store(tmp_path / name, other)  # nothing is lost by that: nobody worked on it
    with (
        Heartbeat(store.ledger, Worker()),
        pytest.raises(StabilityError, match=r"was made with study = .*other.*, now it is .*mine"),
    ):
        store.confirm()
    with Heartbeat(again.ledger, Worker()):
        again.confirm()
        with pytest.raises(StabilityError, match=r"was made with study"):
            Store(tmp_path / name, mine)


def test_an_older_store_is_not_renewed_under_a_process_that_works_on_it(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "older.sqlite"
    before = write_older(path, Path("figures/discontinuity.sqlite"), 5, lambda record: record)
    with path.with_name("older.sqlite.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StabilityError, match="is of an older version, and a process of that version works on it"):
            Store(path, Store(path).identity)
    assert path.read_bytes() == before
    assert len(Store(path, Store(path).identity).records()) == 9


def test_what_another_process_does_before_an_older_store_is_renewed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process opened it when it was old, and comes to write when it is new and has one cell more."""
    path = tmp_path / "older.sqlite"
    write_older(path, Path("figures/discontinuity.sqlite"), 5, lambda record: record)
    identity = Store(path).identity
    become = SqliteLedger.become

    def late(self: SqliteLedger, *how: Any) -> None:
        monkeypatch.undo()
        Store(path, identity).add({"seed": 99}, {"status": "ok"})
        become(self, *how)

    monkeypatch.setattr(SqliteLedger, "become", late)
    store = Store(path, identity)
    assert len(store.records()) == 10
    assert store.records()[-1] == {"seed": 99, "status": "ok"}


def test_death_is_told_without_comparing_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    watch = Watch(lambda: now[0])
    far = Worker(id="far", machine="another machine")
    assert watch.dead([far]) == set()
    now[0] = ledgers.GRACE - 1
    assert watch.dead([replace(far, beat=1, heard="1970-01-01")]) == set()  # a clock that jumps says nothing
    now[0] = 2 * ledgers.GRACE - 2
    assert watch.dead([replace(far, beat=1)]) == set()
    now[0] = 2 * ledgers.GRACE
    assert watch.dead([replace(far, beat=1)]) == {"far"}
    assert watch.dead([replace(far, beat=2)]) == set()  # it lives after all
    mine = Worker()
    assert not mine.gone
    assert replace(mine, started=mine.started - 100).gone  # another process has its number now
    child = subprocess.Popen([sys.executable, "-c", ""])
    theirs = replace(mine, process=child.pid, started=mine.started)
    child.wait()
    assert theirs.gone
    assert watch.dead([theirs]) == {theirs.id}
    assert not replace(theirs, machine="another machine").gone


def test_a_heartbeat_goes_on_and_ends(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "BEAT", 0.02)
    with Heartbeat(ledger, Worker(what="tests")) as worker:
        for _ in range(500):
            time.sleep(0.02)
            if ledger.workers()[0].beat > 1:
                break
        (found,) = ledger.workers()
        assert (found.id, found.what, found.beat > 1) == (worker.id, "tests", True)
        assert ledger.claim(worker, wanted("a"), 1, FREE).mine
    assert ledger.workers() == []
    assert isinstance(ledger, FolderLedger) or not [one for one in ledger.path.parent.iterdir() if one != ledger.path]


def _race(path: Path, barrier: Any, told: Any) -> None:
    barrier.wait()
    try:
        mine = Store(path, {"study": "mine"}).ledger
        worker = Worker()
        with Heartbeat(mine, worker):
            taken: list[str] = []
            names = wanted(*map(str, range(20)))
            while answer := mine.claim(worker, names, 1, set()).mine:
                taken += answer
                mine.add([row(name, worker.id) for name in answer])
        told.put(taken)
    except BaseException as error:
        told.put(repr(error))
        raise


@pytest.mark.parametrize("name", ["mine.sqlite", "mine.d"])
def test_processes_that_start_at_once_share_a_new_store(name: str, tmp_path: Path) -> None:
    """Each of twenty cells is claimed once. ``python -m benchmarks.ledger`` does it a hundred times."""
    context = multiprocessing.get_context("fork")  # these processes run no torch
    for time_ in range(3):
        path = tmp_path / f"{time_}{name}"
        each = at_once(context, 4, _race, path)
        assert all(isinstance(taken, list) for taken in each), each
        assert sorted(chain(*each)) == sorted(map(str, range(20)))
        assert len(Store(path).ledger.cells()) == 20


@pytest.mark.parametrize("what", ["attempts", "cells", "rows", "times", "claims"])
def test_a_folder_is_read_while_another_process_writes(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is finished between two looks at the files does not matter: it is there, or not yet."""
    mine = FolderLedger(tmp_path / "mine.d")
    mine.create(7, "{}")
    mine.add([row("a")])
    assert mine.claim(Worker(), wanted("b1"), 1, FREE).mine
    listed = FolderLedger._tried

    def then_another(self: FolderLedger) -> dict[str, int]:
        found = listed(self)
        mine.add([row(f"b{len(found)}")])
        return found

    before = getattr(mine, what)()
    monkeypatch.setattr(FolderLedger, "_tried", then_another)
    assert getattr(mine, what)() == before


def test_a_worker_that_is_taken_for_dead_gives_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just when it looks for its file another process renames it."""
    mine, worker = FolderLedger(tmp_path / "mine.d"), Worker()
    mine.create(7, "{}")
    mine.join(worker)
    read = FolderLedger._read

    def renamed_before(self: FolderLedger, place: Path, **kinds: type) -> dict[str, Any]:
        monkeypatch.undo()
        mine._gone(worker.id)
        return read(self, place, **kinds)

    monkeypatch.setattr(FolderLedger, "_read", renamed_before)
    mine.beat(worker)
    assert [one.id for one in mine.workers()] == [worker.id]


def test_a_folder_needs_no_lock_and_no_whole_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gave the name, and its answer was lost: asked again it says that the name is taken. It is ours all the same."""
    mine = FolderLedger(tmp_path / "mine.d")
    mine.create(7, "{}")
    link: Callable[..., None] = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    worker, other = Worker(), Worker()
    assert mine.claim(worker, wanted("a"), 1, FREE).mine == {"a": 1}
    assert mine.claim(other, wanted("a"), 1, FREE).held == {"a": worker.id}


@pytest.mark.parametrize("format_", [4, 5, 6])
def test_a_store_of_an_older_format_goes_on(format_: int, tmp_path: Path) -> None:
    """What versions 4 and 5 wrote, as it lies in files, and 6, with a column more: nothing is lost, and cells can be claimed."""
    path = tmp_path / "older.sqlite"
    source = Path("figures/discontinuity.sqlite") if format_ > 4 else Path(__file__).parent / "format-4.sqlite"
    shutil.copy(source, path)
    with sqlite3.connect(path) as connection:
        if format_ == 6:
            connection.execute("ALTER TABLE cells ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1")
            connection.execute("UPDATE study SET format = 6")
        assert connection.execute("SELECT format FROM study").fetchone() == (format_,)
        assert "record" in [one[1] for one in connection.execute("PRAGMA table_info (cells)")]
    connection.close()
    before, table = Store(path).records(), StudyResults.read(path).table
    went_on = Store(path, Store(path).identity)
    assert went_on.records() == before
    names = {name: Wanted("", attempt) for name, (_, attempt) in went_on.ledger.attempts().items()}
    assert went_on.ledger.claim(Worker(), names, 9, FREE).finished == set(names)
    assert StudyResults.read(path).table.equals(table)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT format FROM study").fetchone() == (7,)
    connection.close()


def test_a_store_on_which_somebody_works_does_not_become_that_of_another_study(tmp_path: Path) -> None:
    for name in ("mine.sqlite", "mine.d"):
        path = tmp_path / name
        mine = Store(path, {"study": "mine", "seeds": [0]})
        assert Store(path, {"study": "mine", "seeds": [1]}).identity["seeds"] == [1]
        worker = Worker()
        mine.ledger.join(worker)
        assert mine.ledger.claim(worker, wanted("a"), 1, FREE).mine
        with pytest.raises(StabilityError, match="was made with seeds = 1, now it is 0"):
            Store(path, {"study": "mine", "seeds": [0]})
        mine.ledger.leave(worker)
