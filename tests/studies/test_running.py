"""A study that several processes run, and that is stopped, killed, or has no disk left: its table is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from stability.cli.commands import main
from stability.errors import StabilityError
from stability.selectors import BitFit, Random
from stability.studies import running
from stability.studies.identity import key
from stability.studies.ledger import Row, Wanted, Watch, Worker
from stability.studies.pace import Progress
from stability.studies.results import CellStatus, StudyResults
from stability.studies.running import run
from stability.studies.salvage import repaired
from stability.studies.state import state_of
from stability.studies.store import Store
from stability.studies.study import cell_identity
from stability.workers.pools import InProcess
from tests.studies.test_trust import quick

HERE = Path(__file__).parents[2]
MINE = quick(BitFit(), Random(0.1), seeds=(0, 1, 2))
SCRIPT = """
import sys, time
from stability.selectors import BitFit, Random
from stability.studies.running import run
from stability.studies.study import cell_identity
from tests.studies.test_trust import quick
mine, computed = quick(BitFit(), Random(0.1), seeds=(0, 1, 2)), []
def told(progress):
    computed.append(1)
    print("cell", flush=True)
    time.sleep(float(sys.argv[2]))
run(mine, sys.argv[1], device="cpu", workers=1, on_start=lambda progress: print("began", flush=True), on_cell=told)
"""


def another(store: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    """A process that runs the same study, and takes its time after each cell."""
    command = [sys.executable, "-c", SCRIPT, str(store), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE, env={**os.environ, "OMP_NUM_THREADS": "1"})


def measured(results: StudyResults) -> pd.DataFrame:
    """What must not depend on who computed it, or in what order."""
    return results.table.drop(columns=["seconds", "cell_seconds"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return measured(run(MINE, tmp_path_factory.mktemp("whole") / "mine.sqlite", device="cpu", workers=1))


@pytest.mark.parametrize("name", ["mine.sqlite", "mine.d"])
def test_two_processes_share_a_study(name: str, tmp_path: Path, undisturbed: pd.DataFrame) -> None:
    store, computed = tmp_path / name, list[int]()
    other = another(store, pause=0.3)
    assert other.stdout is not None
    assert other.stdout.readline() == "began\n"

    def told(progress: Progress) -> None:
        computed.append(progress.done)
        time.sleep(0.3)

    results = run(MINE, store, device="cpu", workers=1, on_cell=told)
    theirs = other.communicate()[0].split()
    assert other.returncode == 0
    assert computed == sorted(computed)
    assert computed[-1] == 6
    assert len(theirs) == 6  # each is told of every cell
    pd.testing.assert_frame_equal(measured(results), undisturbed)
    assert len(Store(store).records()) == 6
    assert Store(store).ledger.workers() == []


@pytest.mark.parametrize("name", ["mine.sqlite", "mine.d"])
def test_the_cells_of_a_killed_process_are_taken_over(name: str, tmp_path: Path, undisturbed: pd.DataFrame) -> None:
    store = tmp_path / name
    other = another(store, pause=60)
    assert other.stdout is not None
    assert [other.stdout.readline() for _ in range(2)] == ["began\n", "cell\n"]
    found = state_of(Store(store))
    assert [(one.process, one.gone) for one in found.workers] == [(other.pid, False)]
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert state_of(Store(store)).workers[0].gone
    computed: list[None] = []
    results = run(MINE, store, device="cpu", workers=1, on_cell=lambda progress: computed.append(None))
    assert len(computed) == 5
    pd.testing.assert_frame_equal(measured(results), undisturbed)


def test_a_cell_that_three_processes_did_not_survive_is_recorded_and_tried_again_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine.sqlite", MINE.identity())

    name = key(cell_identity(MINE, MINE.cells()[0]))
    dead: set[str] = set()
    for number in range(3):
        worker = Worker(id=f"dead {number}", process=2**22 + 1)  # there is no such process
        store.ledger.join(worker)
        assert store.ledger.claim(worker, {name: Wanted("")}, 1, dead).mine == {name: number + 1}
        dead.add(worker.id)
    table = run(MINE, store.path, device="cpu", workers=1).table
    (bad,) = table[table["status"] == CellStatus.FAILED].to_dict("records")
    assert bad["reason"] == "the process that measured it ended before it had finished, 3 times one after another"
    table = run(MINE, store.path, device="cpu", workers=1).table
    assert (table["status"] == CellStatus.OK).all()


def test_who_waits_looks_ever_more_seldom_and_soon_when_its_own_cell_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: a cell takes 20 s, and another worker keeps one for more than 200 s."""
    mine = replace(MINE, seeds=(0,))
    store, other, now, waits, looks = (
        Store(tmp_path / "mine.sqlite", mine.identity()),
        Worker(),
        [0.0],
        list[float](),
        list[float](),
    )
    store.ledger.join(other)
    assert store.ledger.claim(other, {key(cell_identity(mine, mine.cells()[1])): Wanted("")}, 1, set()).mine

    class Two(InProcess[Any]):
        size = 2

        def ended(self, seconds: float | None) -> Iterator[tuple[Any, Any]]:
            waits.append(-1.0 if seconds is None else seconds)
            now[0] += 20
            yield from ((job, job.failed("cpu", ValueError("never computed"))) for job, _ in [self._next.pop()])

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 200:
            store.ledger.leave(other)

    class Seen(Watch):
        def dead(self, workers: Iterable[Worker]) -> set[str]:
            looks.append(now[0])
            return super().dead(workers)

    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(running, "Watch", Seen)
    monkeypatch.setattr(running, "_pool", lambda *what: Two("cpu"))
    assert len(run(mine, store.path, device="cpu")) == 2
    assert waits == [1, -1]  # until the next look; and with nothing held, until a cell ends
    assert looks == [0, 20, 22, 26, 34, 50, 80, 110, 140, 170, 200, 230]


def test_a_process_that_does_not_wait_leaves_the_others_their_cells(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine.sqlite", MINE.identity())

    worker = Worker()
    store.ledger.join(worker)
    name = key(cell_identity(MINE, MINE.cells()[0]))
    assert store.ledger.claim(worker, {name: Wanted(str(MINE.cells()[0]))}, 1, set()).mine
    assert len(run(MINE, store.path, device="cpu", workers=1, wait=False)) == 5
    (mine,) = state_of(store).workers
    assert mine.cells == ("bitfit on digits, seed 0",)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_stops_at_once_with_one_line(number: int, code: int, workers: int, tmp_path: Path) -> None:
    store = tmp_path / "mine.sqlite"
    words = "run mine --problem digits --selectors random --sparsities 0.1 --n 100 --steps 5000 --seeds 4 --estimator exact"
    where = ["--device", "cpu", "--workers", str(workers), "--store", str(store)]
    command = [sys.executable, "-m", "stability", *words.split(), *where]

    def hears() -> None:  # Ctrl-C, which a shell takes from what it starts in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": HERE}
    process = subprocess.Popen(command, preexec_fn=hears, start_new_session=True, **how)  # type: ignore[call-overload]
    for _ in range(600):
        with suppress(StabilityError):
            if store.exists() and Store(store).ledger.claims():
                break
        time.sleep(0.1)
    time.sleep(1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: its workers hear it too
    else:
        process.send_signal(number)
    out, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    *progress, last = told.splitlines()
    assert last == "stability: stopped; what is finished is kept, and the same command goes on from there"
    assert all(line.startswith("mine") for line in progress), progress
    assert Store(store).ledger.claims() == []


def test_a_full_disk_is_told_and_nothing_finished_is_lost(tmp_path: Path, undisturbed: pd.DataFrame) -> None:
    """A file system of 8 MiB, where one can be made; the study goes on when there is room again."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        store = small / "mine.sqlite"
        computed: list[None] = []

        def fill(progress: object) -> None:
            computed.append(None)
            if len(computed) == 2:
                with suppress(OSError), (small / "filler").open("wb", buffering=0) as file:
                    while True:
                        file.write(b"0" * 1024)

        with pytest.raises(StabilityError, match="cannot use the store .*full; what was finished is kept, free some disk space"):
            run(MINE, store, device="cpu", workers=1, on_cell=fill)
        assert len(Store(store).records()) >= 2
        with pytest.raises(
            StabilityError, match="cannot use the store .* MiB are free on its disk, and a study needs 4; free some"
        ):  # known before anything is computed
            run(MINE, store, device="cpu", workers=1, on_start=lambda progress: pytest.fail("it began"))
        (small / "filler").unlink()
        pd.testing.assert_frame_equal(measured(run(MINE, store, device="cpu", workers=1)), undisturbed)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def copied(path: Path, format_: int) -> None:
    """The committed store of digits, or one of today's format with the same cells."""
    source = Path("figures/digits.sqlite")
    if format_ == 5:
        shutil.copy(source, path)
        return
    store = Store(path, Store(source).identity)
    for cell in Store(source).cells():
        store.add(*cell)


@pytest.mark.parametrize("format_", [5, 7])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_what_is_left_of_a_store_that_was_cut_off_is_kept(share: float, format_: int, tmp_path: Path) -> None:
    path = tmp_path / "digits.sqlite"
    copied(path, format_)
    whole = {name: (identity, record) for (identity, record), name in zip(Store(path).cells(), _keys(path), strict=True)}
    with pytest.raises(StabilityError, match="is not damaged: all of its 195 cells can be read"):
        repaired(path)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(StabilityError, match=f"'stability repair {path}' keeps what can be read"):
        Store(path).cells()
    assert main(["repair", str(path)]) == 0
    kept = {name: cell for cell, name in zip(Store(path).cells(), _keys(path), strict=True)}
    assert len(kept) > (share - 0.2) * len(whole)
    assert all(whole[name] == cell for name, cell in kept.items())
    assert Store(path).identity == Store("figures/digits.sqlite").identity
    assert path.with_name("digits.sqlite.damaged-1").exists()


@pytest.mark.parametrize("format_", [5, 7])
def test_a_flipped_page_costs_its_cells_alone(format_: int, tmp_path: Path) -> None:
    path = tmp_path / "digits.sqlite"
    copied(path, format_)
    with path.open("r+b") as file:
        file.seek(200 * 4096)
        file.write(os.urandom(3 * 4096))
    found = repaired(path)
    assert 150 < found.kept < 195
    assert set(_keys(path)) < set(_keys(Path("figures/digits.sqlite")))


def test_a_damaged_file_of_a_folder_costs_its_cell_alone(tmp_path: Path, undisturbed: pd.DataFrame) -> None:
    store = tmp_path / "mine.d"
    run(MINE, store, device="cpu", workers=1)
    files = sorted((store / "cells").iterdir())
    files[0].write_text(files[0].read_text()[:100])
    files[1].write_bytes(b"\xff\x00")
    with pytest.raises(StabilityError, match="is damaged"):
        StudyResults.read(store)
    assert (repaired(store).kept, repaired_again(store)) == (4, True)
    pd.testing.assert_frame_equal(measured(run(MINE, store, device="cpu", workers=1)), undisturbed)


@pytest.mark.parametrize("name", ["mine.sqlite", "mine.d"])
def test_a_repair_keeps_when_cells_were_finished_and_how_often_they_were_tried(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / name, {"study": "mine", "algorithms": []})
    names = [key({"seed": seed}) for seed in range(2)]
    for seed, tries in enumerate((1, 3)):
        for number in range(tries):
            when = f"2026-01-0{seed + 1} 12:00:0{number}"
            row = Row(names[seed], json.dumps({"seed": seed}), '{"status": "ok"}', number + 1 < tries, finished=when)
            store.ledger.add([row])
    times = {names[0]: datetime(2026, 1, 1, 12, tzinfo=UTC), names[1]: datetime(2026, 1, 2, 12, 0, 2, tzinfo=UTC)}
    attempts = {names[0]: (False, 1), names[1]: (False, 3)}
    assert (store.ledger.times(), store.ledger.attempts()) == (times, attempts)
    with (store.path if store.path.is_file() else store.path / "cells" / f"{names[1]}.0.json").open("r+b") as file:
        file.write(b"overwritten")
    found = repaired(store.path)
    assert (found.kept, found.lost) == (2, 0)
    assert (store.ledger.times(), store.ledger.attempts()) == (times, attempts)


def test_status_tells_the_pace_of_an_older_store_that_was_repaired(tmp_path: Path) -> None:
    path = tmp_path / "older.sqlite"
    shutil.copy("figures/discontinuity.sqlite", path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE cells SET finished = datetime('2026-01-01 12:00', (30 * rowid) || ' seconds')")
    connection.close()
    before = state_of(Store(path))
    assert before.rate > 0
    with path.open("r+b") as file:
        file.write(b"overwritten")
    assert repaired(path).kept == 9
    after = state_of(Store(path))
    assert (after.last, after.rate) == (before.last, before.rate)


def repaired_again(store: Path) -> bool:
    with pytest.raises(StabilityError, match="is not damaged"):
        repaired(store)
    return True


def _keys(path: Path) -> list[str]:
    return list(Store(path).ledger.attempts())


def test_a_place_that_is_read_only_is_found_out_before_computing(tmp_path: Path) -> None:
    store = tmp_path / "mine.sqlite"
    run(replace(MINE, seeds=(0,)), store, device="cpu", workers=1)
    if subprocess.run(["mount", "--bind", "-o", "ro", tmp_path, tmp_path], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        assert len(StudyResults.read(store)) == 2  # reading goes on
        with pytest.raises(StabilityError, match="cannot use the store .*readonly"):
            run(replace(MINE, seeds=(0,)), store, device="cpu", workers=1, on_start=lambda progress: pytest.fail("it began"))
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
