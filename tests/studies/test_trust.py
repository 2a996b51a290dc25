"""Results belong to their code and data; one failure ends nothing else; one process writes to a store."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stability import Problem, StabilityError, UsageError, plotting, problems
from stability.cli.commands import main
from stability.leave_one_out import StabilityEstimate, measure
from stability.leave_one_out.estimators import Sampled
from stability.masks import Mask
from stability.reports.study_table import render
from stability.selectors import BitFit, HeadOnly, Random, Selector, from_scores
from stability.selectors.naming import selector_named
from stability.studies.cell import Expected, Work, run_cell
from stability.studies.identity import as_json, key
from stability.studies.pace import Progress
from stability.studies.results import CellStatus, Failure, StudyResults
from stability.studies.running import run as run_study
from stability.studies.store import Store
from stability.studies.study import Study, cell_identity
from stability.training import FineTuning
from stability.workers.pools import LocalProcesses
from tests import tiny

MODULE = """
from stability.selectors import Moving, Projected, Selector
from stability.masks import Mask


def smallest(problem, generator):
    return {name: SIGN * tensor.abs() for name, tensor in problem.pretrained.items()}


class Last(Selector):
    name = "last"

    def select(self, problem, seed):
        full = Mask.full(problem.pretrained)
        return Mask(full.shapes, {name: full.indices[name] for name in list(full.shapes)[SIGN:]})


class Grown(Moving):
    name, uses_data, sparsity = "grown", True, 0.01

    def begin(self, run):
        return Projected(run, lambda values, origin: SIGN * (values - origin).abs(), self.sparsity, every=2)


SIGN = -1
"""


def quick(*selectors: Selector, name: str = "mine", seeds: tuple[int, ...] = (0,), n: int = 12) -> Study:
    tuned = tuple(FineTuning(selector, steps=3, batch_size=4) for selector in selectors)
    return Study(name, "digits", tuned, seeds, problem_settings={"n": n}, estimator=Sampled(2), check_replicas=None)


def run(some: Study, store: Path, workers: int = 1) -> tuple[StudyResults, int]:
    """The results, and how many cells were computed for them."""
    computed: list[None] = []
    results = run_study(some, store, device="cpu", workers=workers, on_cell=lambda progress: computed.append(None))
    return results, len(computed)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """A version of the user's module, as a fresh session would import it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported(text: str) -> types.ModuleType:
        (tmp_path / "my_selectors.py").write_text(text)
        monkeypatch.delitem(sys.modules, "my_selectors", raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("my_selectors")

    return imported


def test_edited_code_is_measured_anew_and_nothing_else_is(module: Any, tmp_path: Path) -> None:
    """A fixed selector, a moving one and a score function: all three cells of the old code stay in the file, unseen."""

    def mine(text: str) -> Study:
        made = module(text)
        return quick(BitFit(), made.Last(), made.Grown(), from_scores(made.smallest, 0.05))

    store = tmp_path / "mine.sqlite"
    first, computed = run(mine(MODULE), store)
    assert computed == 4
    assert run(mine(MODULE + "\n# a comment"), store)[1] == 0
    edited = MODULE.replace("SIGN = -1", "SIGN = -2")
    second, computed = run(mine(edited), store)
    assert computed == 3
    assert second.table["method"].tolist() == ["bitfit", "last", "grown", "smallest"]
    assert second.notes == ("3 cells of what was changed since, such as code, are in the store and are not shown",)
    assert f"note: {second.notes[0]}" in render(second)
    one, other = (found.table.set_index("method") for found in (first, second))
    assert one["stability"]["bitfit"] == other["stability"]["bitfit"]
    assert int(one["tunable"]["last"]) < int(other["tunable"]["last"])
    again, computed = run(mine(MODULE), store)  # back to the old code: its cells are there
    assert computed == 0
    assert again.table["stability"].tolist() == first.table["stability"].tolist()


def make(by: float) -> Selector:
    return from_scores(
        lambda problem, generator: {name: (t - by).abs() for name, t in problem.pretrained.items()}, 0.05, name="apart"
    )


def test_a_closure_of_another_constant_is_another_method(tmp_path: Path) -> None:
    store = tmp_path / "mine.sqlite"
    first, _ = run(quick(make(0.1)), store)
    second, computed = run(quick(make(0.9)), store)
    assert computed == 1
    assert first.table["stability"].tolist() != second.table["stability"].tolist()
    assert run(quick(make(0.9)), store)[1] == 0


def test_code_that_cannot_be_compared_is_measured_anew_in_every_process(tmp_path: Path) -> None:
    lock = threading.Lock()

    def guarded(problem: Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
        with lock:
            return {name: tensor.abs() for name, tensor in problem.pretrained.items()}

    results, _ = run(quick(from_scores(guarded, 0.05)), tmp_path / "mine.sqlite")
    assert results.notes == (
        "guarded is measured anew in every run: its code holds lock, which cannot be compared with what it was",
    )


def test_weights_and_data_are_part_of_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights of digits are another study; and a cell of other data has another key."""
    store = tmp_path / "mine.sqlite"
    mine = quick(BitFit())
    run(mine, store)
    (before,) = Store(store).finished()
    shipped = problems.digits._shipped()
    name = next(iter(shipped))
    monkeypatch.setattr(problems.digits, "_shipped", lambda: {**shipped, name: shipped[name] + 1})
    problems.digits._content.cache_clear()
    try:
        assert before != key(cell_identity(mine, mine.cells()[0]))
        with pytest.raises(StabilityError, match="was made with problem_settings = .*weights"):
            run(mine, store)
    finally:
        monkeypatch.undo()
        problems.digits._content.cache_clear()
    assert key(cell_identity(quick(BitFit(), n=13), mine.cells()[0])) != before


def test_data_or_code_that_changes_while_a_study_runs_is_told(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "bert")
    data = tiny.lines(tmp_path / "pairs", train=tiny.rows(12), test=tiny.rows(6, seed=1))
    tuned = (FineTuning(BitFit(), steps=2), FineTuning(Random(0.1), steps=2))
    mine = Study("mine", data, tuned, (0,), problem_settings={"model": str(model)}, estimator=Sampled(2), check_replicas=None)
    edited = tiny.rows(12, seed=2)
    results = run_study(
        mine,
        tmp_path / "mine.sqlite",
        device="cpu",
        workers=1,
        on_cell=lambda progress: tiny.lines(tmp_path / "pairs", train=edited),
    )
    assert results.table["status"].tolist() == [CellStatus.OK, CellStatus.FAILED]
    changed = "changed while the study ran: start it again, so that all its cells are of one version"
    assert results.table["reason"][1] == f"the data or the model of {data!r} {changed}"
    cell = mine.cells()[0]
    found = Expected.of(mine, cell, problems.load(data, model=str(model)))
    row = run_cell(mine, cell, expected=found._replace(code=("another", None)))
    assert (row["failure"], row["reason"]) == (Failure.ERROR, f"the code of 'bitfit' {changed}")
    assert run_cell(mine, cell, expected=found)["status"] == CellStatus.OK


def test_what_computed_a_cell_is_recorded_and_a_mixture_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "mine.sqlite"
    results, _ = run(quick(BitFit()), store)
    assert f"torch {torch.__version__}" in results.table["software"][0]
    assert results.table["device"].tolist() == ["cpu"]
    assert results.notes == ()
    monkeypatch.setattr("stability.studies.cell.software", lambda: "torch 1.0")
    monkeypatch.setattr("stability.studies.cell.device_name", lambda device: "a GPU")
    larger = tmp_path / "larger.sqlite"
    mixed = run_study(quick(BitFit(), Random(0.1), name="larger"), larger, reuse=store, device="cpu", workers=1)
    first, second = mixed.notes
    assert first.startswith("the cells were computed by different software: ")
    assert "torch 1.0 (1 cells)" in first
    assert second == "the cells were computed on different devices: cpu (1 cells); a GPU (1 cells)"
    assert f"note: {first}\nnote: {second}" in render(mixed)


class Fatal(Selector):
    """Ends its worker process from the third seed on: by a signal, as the kernel does when memory runs out, or by itself."""

    name, uses_data = "fatal", True

    def __init__(self, way: int) -> None:
        self.way = way

    def select(self, problem: Problem, seed: int) -> Mask:
        if seed >= 2 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), self.way) if self.way > 3 else os._exit(self.way)
        return BitFit().select(problem, seed)


@pytest.mark.parametrize(
    ("way", "kind", "reason"),
    [
        (signal.SIGKILL, Failure.MACHINE, "was killed, most likely by the system because memory ran out"),
        (3, Failure.ERROR, "ended itself with exit code 3"),
    ],
)
def test_a_worker_that_ends_costs_its_cell_alone(
    way: int, kind: Failure, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six cells one is recorded, after three tries with less and less memory; the others are those of an undisturbed run."""
    store, asked = tmp_path / "mine.sqlite", []
    start = LocalProcesses.start

    def watched(pool: LocalProcesses[Work], work: Work, losses: int) -> None:
        asked.append((work.identity["method"], work.identity["seed"], losses))
        start(pool, work, losses)

    monkeypatch.setattr(LocalProcesses, "start", watched)
    mine = quick(Random(0.1), Fatal(way), seeds=(0, 1, 2))
    results, computed = run(mine, store, workers=2)
    assert computed == len(results) == 6
    each = [(one.name, seed, 0) for one in mine.algorithms for seed in mine.seeds]
    assert Counter(asked) == Counter([*each, ("fatal", 2, 1), ("fatal", 2, 2)])
    bad = results.table[results.table["status"] == CellStatus.FAILED]
    assert bad[["method", "seed", "failure"]].to_numpy().tolist() == [["fatal", 2, kind]]
    assert results.to_compute == 1  # for it is tried again
    assert bad["reason"].iloc[0] == f"the process that measured it {reason}, in the last of 3 tries"
    undisturbed, _ = run(mine, tmp_path / "whole.sqlite")
    both = undisturbed.table.merge(results.table, on=["method", "seed"])
    both = both[both["status_y"] == CellStatus.OK]
    assert (both["stability_x"] - both["stability_y"]).abs().max() < 1e-5
    again, computed = run(mine, store)  # in this process, where it does not die
    assert computed == 1
    assert (again.table["status"] == CellStatus.OK).all()


def test_workers_that_have_no_cell_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cell and two workers; before there were as many cells as workers, and each did its own."""
    asked: list[Any] = []

    def counted(*what: Any, **how: Any) -> StabilityEstimate:
        asked.append(how["workers"])
        return measure(*what, **how)

    monkeypatch.setattr("stability.studies.cell.measure", counted)
    mine, store = quick(BitFit()), tmp_path / "mine.sqlite"
    plain, _ = run(mine, tmp_path / "plain.sqlite")
    found, computed = run(mine, store, workers=2)
    assert (computed, asked) == (1, [None, 2])
    (row,), (other,) = found.table.to_dict("records"), plain.table.to_dict("records")
    told = ["status", "test_loss", "retrainings", "threads"]
    assert [row[name] for name in told] == [other[name] for name in told]
    assert row["stability"] == pytest.approx(other["stability"], rel=1e-5)  # matrix products of other sizes round otherwise
    assert 0.1 < row["noise_floor"] / other["noise_floor"] < 10
    assert row["status"] == CellStatus.OK


def test_an_error_ends_the_study_s_processes_and_no_others(tmp_path: Path) -> None:
    others: list[Any] = []

    def full(progress: Progress) -> None:  # meanwhile another thread starts a process of its own
        others.append(multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,)))
        others[0].start()
        raise OSError("the disk is full")

    try:
        before = set(multiprocessing.active_children())
        with pytest.raises(OSError, match="the disk is full"):
            run_study(quick(BitFit(), seeds=(0, 1, 2, 3)), tmp_path / "mine.sqlite", device="cpu", workers=2, on_cell=full)
        (other,) = others
        for _ in range(200):
            if not (left := set(multiprocessing.active_children()) - before - {other}):
                break
            time.sleep(0.1)
        assert not left
        assert other.is_alive()
    finally:
        others[0].terminate()
        others[0].join()


def test_two_stores_made_at_once_are_one(tmp_path: Path) -> None:
    barrier, errors = threading.Barrier(8), []

    def make_one() -> None:
        barrier.wait()
        try:
            Store(tmp_path / "mine.sqlite", {"study": "mine"})
        except StabilityError as error:
            errors.append(error)

    threads = [threading.Thread(target=make_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with sqlite3.connect(tmp_path / "mine.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM study").fetchone() == (1,)
    connection.close()


def test_failures_of_other_settings_are_kept_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first run of which nothing was finished, for a wrong setting, is no obstacle to the right one."""

    def refused(*what: object, **how: object) -> None:
        raise UsageError("a wrong setting")

    store = tmp_path / "mine.sqlite"
    monkeypatch.setattr("stability.studies.cell.measure", refused)
    run(quick(BitFit(), n=11), store)
    monkeypatch.undo()
    results, computed = run(quick(BitFit()), store)
    assert (computed, len(results), len(Store(store).records())) == (1, 1, 2)
    assert results.notes == ("1 cells of what was changed since, such as code, are in the store and are not shown",)


def test_a_place_that_cannot_be_written_to_is_found_out_before_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("stability.studies.running.InProcess", None)  # so that computing would be a TypeError
    below = tmp_path / "file" / "mine.sqlite"
    with pytest.raises(StabilityError, match="cannot make the folder of .*mine.sqlite"):
        run_study(quick(BitFit()), below, workers=1)
    for command in ("run digits-short --store STORE --figures BELOW", "loo --selector bitfit --figures BELOW"):
        words = command.replace("BELOW", str(tmp_path / "file" / "figures")).replace("STORE", str(tmp_path / "s.sqlite")).split()
        assert main(words) == 2
        assert "nothing can be written to" in capsys.readouterr().err


def test_a_store_of_an_older_version_is_read_and_never_written_to(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it: cells that do not say which data and which code they belong to."""
    mine = quick(BitFit(), Random(0.1))
    run(mine, tmp_path / "new.sqlite")
    new = Store(tmp_path / "new.sqlite")
    older = tmp_path / "old.sqlite"
    with sqlite3.connect(older) as connection:
        connection.execute("CREATE TABLE study (format INTEGER NOT NULL, version TEXT NOT NULL, identity TEXT NOT NULL)")
        connection.execute("CREATE TABLE cells (key TEXT PRIMARY KEY, identity TEXT, record TEXT, finished TEXT)")
        connection.execute("INSERT INTO study VALUES (3, '0.1.0', ?)", (as_json(new.identity),))
        for identity, record in new.cells():
            old = {name: value for name, value in identity.items() if name not in ("data", "how")}
            connection.execute("INSERT INTO cells VALUES (?, ?, ?, '')", (key(old), as_json(old), as_json(record)))
    connection.close()
    assert render(StudyResults.read(older)) == render(StudyResults.read(tmp_path / "new.sqlite"))
    for how in ({"store": older}, {"store": tmp_path / "other.sqlite", "reuse": older}):
        with pytest.raises(StabilityError, match="is of an older version, whose results do not say which code"):
            run_study(mine, **how, device="cpu", workers=1)  # type: ignore[arg-type]


def test_a_local_file_hides_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the current folder is on sys.path no longer than the import takes."""
    (tmp_path / "peft.py").write_text("raise RuntimeError('the wrong peft')\n")
    (tmp_path / "near_peft.py").write_text("import peft\n\n\ndef f(problem, generator):\n    return problem.pretrained\n")
    script = (
        "import sys; from stability.selectors.naming import selector_named; before = list(sys.path)\n"
        "selector_named('near_peft:f', 0.1); selector_named('peft:IA3Config')\n"
        "print(sys.path == before, sys.modules['peft'].__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    same, where = done.stdout.split()
    assert same == "True"
    assert str(tmp_path) not in where


def test_workers_know_a_module_of_the_current_folder(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local_one.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    command = (
        "run mine --problem digits --n 12 --seeds 2 --selectors local_one:smallest --sparsities 0.05 --steps 3 --retrainings 2"
    )
    assert main([*command.split(), "--workers", "2"]) == 0
    assert (StudyResults.read("runs/mine.sqlite").table["status"] == CellStatus.OK).all()


def test_a_function_typed_in_cannot_be_sent_to_workers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers = 2: no other process can import selector 'apart'; use workers=1, or move"):
        run(quick(make(0.1), seeds=(0, 1)), tmp_path / "mine.sqlite", workers=2)


def test_seeds_may_be_arrays(tmp_path: Path) -> None:
    import numpy as np

    mine = dataclasses.replace(quick(BitFit()), seeds=np.arange(3), samples=np.arange(2))  # type: ignore[arg-type]
    assert (mine.seeds, mine.samples, len(mine.cells())) == ((0, 1, 2), (0, 1), 6)


def test_other_algorithms_are_named(tmp_path: Path) -> None:
    run(quick(BitFit(), Random(0.1)), tmp_path / "mine.sqlite")
    with pytest.raises(StabilityError, match="now it is without random at p = 0.1; with last at p = 0.05: use"):
        run(quick(BitFit(), from_scores(smallest, 0.05, name="last")), tmp_path / "mine.sqlite")
    with pytest.raises(StabilityError, match="now it is in another order: use"):
        run(quick(Random(0.1), BitFit()), tmp_path / "mine.sqlite")
    with pytest.raises(StabilityError, match=r"now it is without random at p = 0\.1; with random at p = 0\.2: use"):
        run(quick(BitFit(), Random(0.2)), tmp_path / "mine.sqlite")
    later = (FineTuning(BitFit(), steps=9), FineTuning(Random(0.1), steps=9))
    with pytest.raises(
        StabilityError, match=r"now it is bitfit, random at p = 0\.1 with \{.*'steps': 9.*\} instead of \{.*'steps': \d+.*\}: use"
    ):
        run(dataclasses.replace(quick(BitFit()), algorithms=later), tmp_path / "mine.sqlite")


def smallest(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: -tensor.abs() for name, tensor in problem.pretrained.items()}


def test_a_seed_counts_once() -> None:
    with pytest.raises(UsageError, match=r"seeds = \[0, 1, 0\]: one occurs twice, and would count as two"):
        quick(BitFit(), seeds=(0, 1, 0))


def test_records_that_are_no_records_are_told(tmp_path: Path) -> None:
    for number, form in enumerate(("null", "[]", "{}", "[{}, {}]", "[{}, null]", '[{"seed": 0}, {"status": "ok"}]', "[[", None)):
        path = tmp_path / f"{number}.sqlite"
        Store(path, {"study": "mine", "algorithms": [], "seeds": [0]})
        with sqlite3.connect(path) as connection:
            if form is not None:
                connection.execute("INSERT INTO forms VALUES (1, ?)", (form,))
            connection.execute("INSERT INTO cells (key, form_id, numbers) VALUES ('a', 1, '')")
        connection.close()
        for read in (StudyResults.read, lambda path: Store(path).cells()):
            with pytest.raises(StabilityError, match="is damaged: "):
                read(path)
    Store(tmp_path / "none.sqlite", {"study": "mine"})
    with pytest.raises(StabilityError, match="is damaged: it does not say which study it holds"):
        StudyResults.read(tmp_path / "none.sqlite")


def test_two_closures_of_one_name_are_refused_and_names_that_were_asked_for_are_taken(module: Any) -> None:
    with pytest.raises(UsageError, match="two different selectors are called 'apart'"):
        quick(make(0.1), make(0.9))
    made = module(MODULE + "\nother = lambda problem, generator: smallest(problem, generator)\n")
    assert made.other.__name__ == "<lambda>"
    assert selector_named("my_selectors:other", 0.1).name == "other"
    assert selector_named("my_selectors:smallest", 0.1).settings()["label"] == ""


def test_a_study_in_which_the_head_alone_is_trained_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Its p is 0, and Theorem 1's ridge 1."""
    mine = dataclasses.replace(quick(HeadOnly(), Random(0.1)), check_replicas=0)
    results, _ = run(mine, tmp_path / "mine.sqlite")
    table = results.table.set_index("method")
    assert (table["status"] == CellStatus.OK).all()
    assert table.loc["head-only", "sparsity"] == 0
    assert table.loc["head-only", "theorem_1_state"]
    again = StudyResults.read(tmp_path / "mine.sqlite")
    assert again.summary().table.set_index("method").loc["head-only", "sparsity"] == 0
    drawn = {path.stem.rpartition("digits_")[2] for path in plotting.save_all(again, tmp_path, formats=["png"])}
    assert drawn >= {"bounds", "methods"}
