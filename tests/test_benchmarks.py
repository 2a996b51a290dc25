"""Short forms of the benchmark programs: that what they compare is the same, and that they count right."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sqlite3
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    architectures,
    claims,
    difference,
    drawing,
    intervals,
    ledger,
    memory,
    plans,
    recomputed,
    scaling,
    singly,
    smoothness,
    soak,
)
from benchmarks.loops import PROGRAMS, Setting
from benchmarks.replicas import matrix_rate, operations
from stability.derivatives import products
from stability.derivatives.products import product
from stability.errors import StabilityError
from stability.studies import STUDIES, Store
from stability.studies.identity import key
from stability.studies.named import CLAIMS
from stability.training.replicas import train
from tests import tiny

SETTING = Setting("digits", steps=6, n=24)
RESULTS = Path(scaling.__file__).parent / "results"


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "engine"])
def test_every_program_trains_the_same_replicas(program: str) -> None:
    if program == "dattri" and importlib.util.find_spec("dattri") is None:
        pytest.skip("needs dattri, see the Makefile")
    left_out = [3, 17]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others' programs
        found = PROGRAMS[program](SETTING, left_out)
    assert found == pytest.approx(PROGRAMS["engine"](SETTING, left_out), abs=1e-4)


def test_operations_are_counted_through_either_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(8, 16), torch.ones(4, 16)
    for large in (0, 1 << 40):
        monkeypatch.setattr(products, "_LARGE_PRODUCT", large)
        assert operations(lambda: product(x, weight)) == 2 * 8 * 16 * 4
    assert matrix_rate("cpu", "float32", 1, size=128) > 1e6


def test_operations_of_a_step_are_those_counted_by_hand() -> None:
    """Of full tuning: forward, by inputs and by weights the same products; the first layer's inputs are tokens, or fixed."""
    point = scaling.Point(replicas=1, width=64, sparsity=1.0, tokens=16)
    rows, width, layers, heads = scaling.BATCH * 16, 64, 4, 2
    linear = layers * 2 * rows * (4 * width**2 + 2 * 4 * width**2)
    attention = layers * 2 * 2 * scaling.BATCH * heads * 16 * 16 * (width // heads)
    pooler = 2 * scaling.BATCH * (width**2 + 2 * width)
    assert scaling.operations_a_step(point, point.problem(), None) == 3 * (linear + attention + pooler)


def test_the_models_of_the_scaling_curves_train() -> None:
    point = scaling.Point(replicas=2, width=64, tokens=16)
    problem = point.problem()
    replicas = train(problem, dataclasses.replace(point.algorithm, steps=2), torch.ones(2, problem.n))
    assert int((replicas.failed_step < 0).sum()) == 2
    assert point.problem().pretrained.keys() == problem.pretrained.keys()


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bloom", "xlnet", "reformer"])
def test_architectures_run_as_the_table_says(name: str, tmp_path: Path) -> None:
    stored = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))
    assert list(stored["now"]) == list(stored["before"]) == list(architectures.ARCHITECTURES)
    assert architectures.how_it_runs(name, tmp_path) == stored["now"][name]


def test_no_architecture_that_ran_is_refused_now() -> None:
    stored = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))
    ran = {when: {name for name, how in stored[when].items() if " at " in how} for when in ("before", "now")}
    assert ran["before"] < ran["now"]
    assert len(ran["now"]) > 100


def test_one_at_a_time_is_as_good_as_at_once() -> None:
    stored = json.loads((RESULTS / "singly-cpu.json").read_text(encoding="utf-8"))
    kept = [row for row in stored.values() if isinstance(row, dict)]
    short = singly.compared(SETTING.loaded, singly.SELECTORS["bitfit"], replicas=3, steps=2, turns=1)
    assert len(kept) == 5
    assert short.keys() == kept[0].keys()
    assert max(row["largest_difference_in_a_loss"] for row in (short, *kept)) < 1e-5


@pytest.mark.parametrize("estimator", memory.ESTIMATORS)
def test_the_points_of_memory_are_measured(estimator: str) -> None:
    memory.Point(estimator, steps=2, n=20).run(retrainings=2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is told by Linux alone")
def test_the_peak_is_that_of_the_work() -> None:
    found = memory.peak_of(lambda: torch.ones(64 << 18))  # 64 MiB, gone at the end
    assert 60 < found / 2**20 < 90


def test_recorded_memory_is_whole_and_can_be_drawn() -> None:
    found = json.loads((RESULTS / "memory-cpu.json").read_text())
    assert {"before", "after"} <= found.keys()
    for one in found.values():
        assert {axis: len(rows) for axis, rows in one["rows"].items()} == {
            axis: len(points) for axis, points in memory.AXES.items()
        }
        assert one["machine"]["torch"]
    assert len(drawing.memory(found).axes) == 2


@pytest.mark.parametrize("name", ["replicas", "scaling"])
def test_recorded_results_are_whole_and_can_be_drawn(name: str) -> None:
    files = sorted(RESULTS.glob(f"{name}-*.json"))
    assert files
    for path in files:
        found = json.loads(path.read_text())
        figure = getattr(drawing, name)(found)
        assert len(figure.axes) == (len(found) if name == "replicas" else 2 * len(drawing.AXES))
        if name == "replicas":
            for one in found.values():
                assert {"plain_loop", "dattri", "trainer"} <= one["ratios"].keys()
                assert one["machine"]["torch"]


def test_a_cell_that_the_store_lacks_is_told_and_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "digits.sqlite"
    path.write_bytes(recomputed.STORED.read_bytes())
    study = STUDIES["digits"]
    found = recomputed.stored_of_each_family(study, Store(path))
    families = {algorithm.selector.name for algorithm in study.algorithms}
    assert len(found) == len(families) == len({recomputed.family(stored.cell) for stored in found}) > 5
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM cells WHERE json_extract(identity, '$.method') = 'bitfit'")
    connection.close()
    with pytest.raises(StabilityError, match="lacks the cells of bitfit"):
        recomputed.stored_of_each_family(study, Store(path))


def test_the_threshold_finds_the_poor_predictions() -> None:
    """Four populations of seed 0 and three others: one poor prediction is missed and one good one is an alarm."""
    correlations = {"seed 0": [0.99, 0.95, 0.8, 0.5], "another": [0.99, 0.7, 0.95]}
    values = {"seed 0": [0.1, 0.2, 0.3, 0.5], "another": [0.4, 0.15, 0.2]}
    rows = [
        {"group": group, "correlation": r, "nonlinearity": value}
        for group, both in correlations.items()
        for r, value in zip(both, values[group], strict=True)
    ]
    found = smoothness.judged(rows)["nonlinearity"]
    assert found["threshold"] == pytest.approx(0.25)
    assert found["seed 0"] == {
        "populations": 4,
        "rank_correlation": pytest.approx(1),
        "poor": 2,
        "poor_found": 2,
        "false_alarms": 0,
    }
    assert found["others"] == {
        "populations": 3,
        "rank_correlation": pytest.approx(-1),
        "poor": 1,
        "poor_found": 0,
        "false_alarms": 1,
    }


def test_coverage_is_counted_over_known_populations() -> None:
    """A prediction that is the truth but for a tenth: every interval holds, and is narrow."""
    generator = np.random.default_rng(0)
    measured = generator.exponential(size=60)
    one = intervals.Population("a test", "exponential", measured, measured * generator.uniform(0.9, 1.1, 60))
    found = intervals.simulated(one, 20)
    assert found["now"][20]["coverage"] == 1
    assert found["now"][20]["half_width"] < 0.1 < found["plain"][20]["half_width"]
    assert found["now"][20]["variance_cut"] > 10
    assert found["10 %"] == {"coverage": 1.0, "retrainings": 12.0, "met": 1.0, "coverage_where_met": 1.0}
    table = intervals.known_coverage([one], 20)
    assert {(row["n"], row["draws"]) for row in table} == {(1, 5), (1, 10), (1, 20), (1, 40)}
    assert sum(row["samples"] for row in table) == 80


def test_the_stored_simulations_are_of_every_population() -> None:
    stored = json.loads((RESULTS / "intervals.json").read_text())
    assert stored["draws"] >= 1000
    assert [(row["group"], row["name"]) for row in stored["populations"]] == [(x.group, x.name) for x in intervals.populations()]


def test_pairs_of_known_populations_are_simulated_and_counted() -> None:
    """Two methods that are predicted well: intervals hold the truth, and both ways are nearer to it than uniform pairs."""
    generator = np.random.default_rng(0)
    sizes = generator.lognormal(0, 1, (2, 60))
    one, other = (
        difference.Method(intervals.Population("mine", f"{name}, n 60", mine, mine * generator.lognormal(0, 0.1, 60)), draws=40)
        for name, mine in zip(("full 1", "sam 0.1"), sizes, strict=True)
    )
    found = difference.simulated(one, other, count=10)
    assert found["truth"] == pytest.approx((sizes[1] - sizes[0]).mean())
    for way in ("separate", "joint"):
        assert found[way]["coverage"] > 0.8
        assert found[way]["error"] < found["uniform"]["error"] / 3
    told = difference.summarised([found])
    assert (told["pairs"], told["joint"]["least_of"]) == (1, "sam 0.1 less full 1, mine, n 60")
    assert told["uniform"]["half_width"] == pytest.approx(found["uniform"]["half_width"])
    assert (one.is_of("full"), other.is_of("full")) == (True, False)


def test_the_studies_of_the_claims_go_on_from_the_copy_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = claims.KEPT / "claims-stsb-rates.sqlite"
    claims.copied(RESULTS.parents[1] / "figures" / "discontinuity.sqlite", kept)
    there = claims.fetched("claims-stsb-rates")
    assert there == claims.RUNS / kept.name
    assert Store(there).cells() == Store(kept).cells() != []
    there.write_bytes(b"")
    assert claims.fetched("claims-stsb-rates").read_bytes() == b""  # what is there is never replaced
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_processes_that_begin_together_share_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, there = RESULTS.parents[1] / "figures" / "discontinuity.sqlite", tmp_path / "there.sqlite"
    there.write_bytes(b"of another process, which may write to it already")
    claims.copied(source, there, overwrite=False)
    assert there.read_bytes().startswith(b"of another process")
    for overwrite in (True, False):
        target = tmp_path / f"{overwrite}.sqlite"
        together = threading.Barrier(4)

        def copy(target: Path = target, overwrite: bool = overwrite, together: threading.Barrier = together) -> None:
            together.wait()
            claims.copied(source, target, overwrite=overwrite)

        with ThreadPoolExecutor(4) as several:
            for one in [several.submit(copy) for _ in range(4)]:
                one.result()
        assert Store(target).cells() == Store(source).cells()
    with pytest.raises(sqlite3.DatabaseError):
        claims.copied(there, tmp_path / "no store.sqlite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False.sqlite", "True.sqlite", "there.sqlite"]


def test_a_study_waits_for_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(claims.ORDER) == sorted(CLAIMS)
    for name in claims.ORDER:
        if (search := claims.searched(name)) is not None:
            assert claims.ORDER.index(search) < claims.ORDER.index(name)
    names = ("claims-cb-rates", "claims-cb", "claims-cb-perturbation", "claims-cb-sparsity")
    assert [claims.searched(name) for name in names] == [None, *["claims-cb-rates"] * 2, "claims-cb-sparsity-rates"]
    assert [name for name, _ in claims.protocols(names, "model", "data")] == ["claims-cb-rates"]
    assert "claims-cb is left out: " in capsys.readouterr().out
    assert claims.main(["--data", "nowhere", "--model", "nowhere", "--only", "claims-cb-rates", "claims-stsb-rates"]) == 1
    told = capsys.readouterr().out
    assert "claims-cb-rates stopped: " in told
    assert "claims-stsb-rates stopped: " in told
    assert "nowhere" in told
    planned = dict(claims.protocols(names, "model", "data", beginning=True))
    assert list(planned) == list(names)


@pytest.fixture
def small_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``make claims`` for a search and its main study: two methods, 4 steps, a tiny model and a tiny task."""
    monkeypatch.chdir(tmp_path)
    names_of = {"yes": "contradiction", "no": "entailment"}
    sizes = {"train": 24, "validation": 12, "test": 12}
    splits = {split: tiny.rows(size, seed) for seed, (split, size) in enumerate(sizes.items())}
    tiny.lines(
        tmp_path / "data" / "cb",
        **{split: [{**row, "label": names_of[row["label"]]} for row in rows] for split, rows in splits.items()},
    )
    model = tiny.write_model(tmp_path / "model")
    small: dict[str, Any] = {"methods": ("full", "random"), "steps": 4, "seeds": 1, "measured_seeds": 0}
    names = ("claims-cb-rates", "claims-cb")

    def make(*options: str, **changed: Any) -> int:
        changed = small | changed
        monkeypatch.setattr(claims, "CLAIMS", {**CLAIMS} | {name: dataclasses.replace(CLAIMS[name], **changed) for name in names})
        return claims.main(["--data", "data", "--model", str(model), "--only", *names, *options])

    return make


def test_rates_come_from_a_search_of_the_same_protocol_alone(
    small_claims: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_claims() == 0
    assert len(Store(claims.KEPT / "claims-cb.sqlite").cells()) == 2
    capsys.readouterr()
    assert small_claims(warmup=0.5) == 1
    told = capsys.readouterr().out
    assert "claims-cb-rates stopped: " in told  # its store is of the first protocol
    assert "claims-cb is left out: " in told
    assert told.count("now it is full, random at p = 0.005 with {'warmup': 0.5} instead of {'warmup': 0.3}") == 2


def test_cells_of_an_earlier_protocol_are_taken_over_where_they_are_alike(
    small_claims: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_claims() == 0
    before = tmp_path / "before"
    claims.RUNS.rename(before)
    for kept in claims.KEPT.iterdir():
        kept.unlink()
    capsys.readouterr()
    assert small_claims("--reuse", str(before), seeds=2) == 0
    told = capsys.readouterr().out
    assert "claims-cb-rates: 16 of 16 cells" in told
    assert "claims-cb-rates: 8 of 16 cells" not in told  # of 8 that are new, each is told once
    for name in ("claims-cb-rates.sqlite", "claims-cb.sqlite"):
        old, new = ({key(identity): record for identity, record in Store(path / name).cells()} for path in (before, claims.KEPT))
        assert set(old) < set(new)
        assert all(new[one] == record for one, record in old.items())


def test_plans_are_put_beside_what_the_finished_cells_took(
    small_claims: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_claims() == 0
    out = tmp_path / "plans.json"
    plans.main(["--data", "data", "--model", str(tmp_path / "model"), "--out", str(out)])
    rows = {row["study"]: row for row in json.loads(out.read_text())["rows"]}
    assert {name: row["cells"] for name, row in rows.items()} == {"claims-cb-rates": 8, "claims-cb": 2}  # not begun: all others
    for name, row in rows.items():
        seconds = Store(claims.KEPT / f"{name}.sqlite").records()
        assert row["hours"] == pytest.approx(sum(one["cell_seconds"] for one in seconds) / 3600)
        assert row["ratio"] == pytest.approx(row["planned_hours"] / row["hours"])
        assert row["planned_hours"] > 0


def test_two_processes_race_for_a_new_store(tmp_path: Path) -> None:
    assert ledger.races(tmp_path, 1) == {"races": 1, "errors": [], "cells_computed_twice": 0, "tables_that_lack_a_cell": 0}


def test_a_study_stands_a_kill(tmp_path: Path) -> None:
    """A short form of ``make soak``: two commands, of one and two workers, of which one process is killed."""
    soak.check(soak.soak(5, 1, 0.5, 0, tmp_path, steps=2, stores=[".d"]), 1)


def test_what_did_not_stand_the_kills_is_an_error() -> None:
    good: dict[str, Any] = {"cells": 5, "kills": {"driver": 2}, "errors": {}, "rounds": [{"same_table": True, "rows": 5}]}
    soak.check(good, 2)
    for bad, why in (
        ({"errors": {"exit code 1": 1}}, "commands failed"),
        ({"kills": {"worker": 1}}, "1 of 2 kills"),
        ({"rounds": [{"same_table": True, "rows": 4}]}, "a table differs"),
    ):
        with pytest.raises(StabilityError, match=why):
            soak.check({**good, **bad}, 2)


def test_only_a_command_that_is_done_or_killed_is_no_error() -> None:
    errors: Counter[str] = Counter()
    for code in (None, 0, -9, 1, -15):
        soak._count(code, {}, errors)
    assert list(errors.values()) == [1, 1]
