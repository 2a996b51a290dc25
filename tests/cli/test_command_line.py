from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stability import StabilityError, plotting
from stability.cli.commands import main
from stability.cli.run import _Drawn
from stability.leave_one_out.estimators import Sampled
from stability.masks import Mask
from stability.plotting.bound_curves import DRAWN
from stability.problems import HUB, PROBLEMS
from stability.reports import study_table
from stability.selectors import BitFit, Random
from stability.selectors.naming import SELECTORS, announced
from stability.studies.identity import key
from stability.studies.named import PAPER, STUDIES
from stability.studies.results import BOUNDS, StudyResults
from stability.studies.running import run as run_study
from stability.studies.store import Store
from stability.studies.study import Study, cell_identity
from stability.training import FineTuning

SMALL = Study(
    "small",
    "digits",
    tuple(FineTuning(s, steps=3) for s in (BitFit(), Random(0.02), Random(0.2))),
    (0, 1),
    problem_settings={"n": 20},
    estimator=Sampled(3),
)


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "small.sqlite"
    run_study(SMALL, path, device="cpu", workers=1)
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_loo_prints_one_json_value(capsys: pytest.CaptureFixture[str]) -> None:
    command = "loo --problem digits --selector random --sparsity 0.05 --seed 0 --estimator sampled --retrainings 3 --n 20 --steps 3"
    result = printed(capsys, *command.split(), "--device", "cpu", "--json")
    wanted = "value interval confidence estimator n retrainings tunable head noise_floor seconds per_example"
    assert set(wanted.split()) <= result.keys()
    assert (result["n"], result["retrainings"], result["tunable"], result["head"]) == (20, 3, 1321, 165)
    assert len(result["per_example"]) == 3
    row = result["per_example"][0]
    assert row["difference"] == pytest.approx(row["loss_left_out"] - row["loss_full"], abs=1e-12)
    assert result["value"] == pytest.approx(sum(abs(row["difference"]) for row in result["per_example"]) / 3)


def test_exact_loo_and_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loo", "--selector", "bitfit", "--n", "6", "--steps", "2", "--estimator", "exact", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Leaving one training example out changes its loss by ")
    assert "nats on average, exactly: each of the 6 examples was left out." in " ".join(text.split())
    assert "without each of 6 of 6 examples" in text
    assert "2 steps of AdamW" in text
    assert "; 6 examples a step" in " ".join(text.split())  # and not the 20 that were asked for
    assert "conclusive" not in text


SHORT = ["loo", "--selector", "sam", "--sparsity", "0.05", "--n", "20", "--steps", "4", "--device", "cpu"]


def test_assisted_says_what_it_was_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--retrainings", "6", "--examples", "3", "-v", "--figures", str(tmp_path / "figures")]) == 0
    text = capsys.readouterr().out
    assert "assisted; as asked" in text
    assert "without each of 6 of 20 examples" in text
    assert "by linearised replicas, 4 checkpoints" in text
    assert "prediction against retraining  correlation 0." in text
    assert len(re.findall(r"^ +\d+%  example \d+ \[\d\]  \([+-]0\.\d+(?:, predicted)?\)$", text, flags=re.MULTILINE)) == 3
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {
        f"digits_sam_p0.05_n20_seed0_{name}.{kind}" for name in ("differences", "influential") for kind in ("png", "pdf")
    } == names
    how = ["--estimator", "assisted", "--tolerance", "0.5", "--predictor", "one-step"]
    result = printed(capsys, *SHORT, *how, "--examples", "2", "--json")
    assert result["asked"] == {
        "name": "assisted",
        "retrainings": None,
        "tolerance": 0.5,
        "predictor": {"every": {"name": "one step", "damping": None, "memory": 2 << 30}},
    }
    assert result["status"] in ("within tolerance", "exact")
    assert len(result["prediction"]["difference"]) == 20
    shares = [row["share"] for row in result["examples"]]
    assert shares == sorted(shares, reverse=True)
    wanted = "correlation rank_correlation variance_cut effective_retrainings simulated_coverage"
    assert result["diagnostics"].keys() == set(wanted.split())


def test_figures_that_cannot_be_drawn_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``linear`` does not say what its examples look like; their differences are drawn all the same."""
    command = ["loo", "--problem", "linear", "--selector", "full", "--minimise", "1e-6", "--ridge", "0.1", "--n", "12"]
    assert main([*command, "--retrainings", "4", "--device", "cpu", "--figures", str(tmp_path)]) == 0
    assert "no figure influential: problem 'linear' does not say" in capsys.readouterr().err
    names = {f"linear_regularised_p0.9_n12_seed0_differences.{kind}" for kind in ("png", "pdf")}  # p = 1 − λ
    assert {path.name for path in tmp_path.iterdir()} == names


def test_some_test_examples_are_asked_for_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = printed(capsys, *SHORT, "--retrainings", "2", "--test-examples", "5", "--json")
    assert [note for note in result["notes"] if "were evaluated on 5 of " in note]
    many = [
        "--n",
        "20",
        "--steps",
        "2",
        "--seeds",
        "1",
        "--retrainings",
        "2",
        "--test-examples",
        "5",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    for name, words in {
        "two": ["compare", "bitfit", "full"],
        "mine": ["run", "mine", "--problem", "digits", "--selectors", "full"],
    }.items():
        store = str(tmp_path / f"{name}.sqlite")
        assert main([*words, *many, "--store", store]) == 0
        assert StudyResults.read(store).identity["test_examples"] == 5


def test_approximate_has_no_interval_in_words_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--estimator", "approximate"]) == 0
    text = capsys.readouterr().out
    assert "That is a prediction, whose error is unknown: no model was retrained." in " ".join(text.split())
    assert "interval" not in text
    result = printed(capsys, *SHORT, "--estimator", "approximate", "--json")
    assert result["interval"] == [None, None]
    assert result["noise_floor"] is None


def test_a_budget_that_does_not_reach_the_tolerance_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--tolerance", "0.001", "--retrainings", "13"]) == 0
    text = capsys.readouterr().out
    assert "without each of 13 of 20 examples" in text
    assert "Inconclusive: the tolerance of 0.001 is not met. This would settle it, in about " in " ".join(text.split())
    assert text.count("stability loo") == 1


def test_it_says_what_it_chose(capsys: pytest.CaptureFixture[str]) -> None:
    """By default, within a budget or not; the budget is in seconds, whatever its unit was."""
    result = printed(capsys, *SHORT, "--budget", "1h30m", "--json")
    assert (result["asked"]["name"], result["asked"]["budget"]) == ("auto", 5400.0)
    assert (result["estimator"], result["status"]) == ("exact", "exact")
    assert result["reason"] == "exact: leaving out all 20 examples is no more work than an estimate to ±20 %"
    assert main([*SHORT, "--verbose"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"estimator {result['reason']}" in text


def test_a_tolerance_that_is_met_is_conclusive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--tolerance", "0.99", "--retrainings", "12"]) == 0
    assert "Inconclusive" not in capsys.readouterr().out


def test_bounds_list_and_doctor_print_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "bounds --lipschitz 1 --least-eigenvalue 0 --sparsity {} --n 100 --loss-bound 1 --delta 0.1 --empirical-risk 0.2 --json"
    )
    result = printed(capsys, *command.format(0.5).split())
    assert result["stability"] == pytest.approx(0.02)
    assert result["generalization"] == pytest.approx(0.2 + ((1 + 24) / 20) ** 0.5)
    assert printed(capsys, *command.format(1).split())["stability"] is None
    names = printed(capsys, "list", "--json")
    ten = ["full", "random", "mixout", "bitfit", "magnitude", "adapter", "lora", "diffpruning", "childpruning", "sam"]
    measured = {algorithm.selector.settings()["name"] for algorithm in STUDIES["digits"].algorithms}
    assert measured == {*ten, "mixout-reset"}
    # `list` answers without importing what it names.
    assert names["problems"] == [*PROBLEMS, *HUB]
    assert names["selectors"] == [*SELECTORS, *announced()]
    assert names["studies"] == [*STUDIES, *PAPER]
    assert printed(capsys, "doctor", "--json")["threads"] >= 1


def test_bounds_of_theorem_1_alone_and_small_negative_eigenvalues(capsys: pytest.CaptureFixture[str]) -> None:
    result = printed(
        capsys, *["bounds", "--lipschitz", "1", "--least-eigenvalue", "-1e-3", "--sparsity", "0.5", "--n", "100", "--json"]
    )
    assert result["stability"] == pytest.approx(2 / (0.999 * 100))
    assert result["bounds"]["stability"]["state"] == "assumption failed"
    assert "generalization" not in result


def test_loo_minimises_and_prints_every_bound(capsys: pytest.CaptureFixture[str]) -> None:
    command = "loo --problem linear --n 12 --selector full --ridge 0.3 --minimise 1e-8 --estimator exact --bounds --device cpu"
    result = printed(capsys, *command.split(), "--check-replicas", "12", "--json")
    assert result["bounds"]["theorem_1"]["terms"]["sparsity"] == pytest.approx(0.7)
    assert all(bound["state"] != "assumption failed" for bound in result["bounds"].values())
    assert result["test_metric"]["name"] == "negative mean square"
    assert main(command.split()) == 0
    text = capsys.readouterr().out
    assert "squared error / 2" in text
    assert re.search("p of Theorem 1 +0.7 = 1 − λ", text)
    assert text.count("the Hessian of L is positive semidefinite") == 1  # once for the three bounds that suppose it


def test_select_writes_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mask.safetensors"
    assert main(["select", "--selector", "sam", "--sparsity", "0.01", "--out", str(path)]) == 0
    assert "k = 264 of m = 26432" in capsys.readouterr().out
    assert Mask.load(path).count == 264


def test_select_tells_what_was_chosen_from_and_how_much_less(capsys: pytest.CaptureFixture[str]) -> None:
    """384 rows of 32 weights are eligible, and each gets the same share of 528 places: 1.375, rounded down to 1."""
    words = ["--selector", "snip", "labels=true", "budget=equal", "examples=5", "--scope", "row", "--only", "*proj.weight"]
    assert main(["select", *words, "--sparsity", "0.02", "--n", "20"]) == 0
    out, told = capsys.readouterr()
    assert out == "snip scope=row examples=5 only=*proj.weight budget=equal, k = 384 of m = 26432 coordinates, p = 0.01453\n"
    assert (
        told
        == "note: p = 0.02 is k = 528, and 384 are chosen, because the places of each group, or of each unit, are rounded down\n"
    )


def test_select_describes_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["select", "--selector", "bitfit", "--n", "20", "--device", "cpu"]
    assert main([*command, "--describe"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("bitfit, k = 928 of m = 26432 coordinates, p = 0.03511\n\n")
    assert re.search(r"^0 +288 8544 +3\.4 % +31\.0 % +32\.3 %$", text, flags=re.MULTILINE)
    assert re.search(r"^outside +64 +800 +8\.0 % +6\.9 % +3\.0 %$", text, flags=re.MULTILINE)
    assert re.search(r"^layers\.\*\.layernorm_before\.bias +96 +96 +100\.0 % +10\.3 % +0\.4 %$", text, flags=re.MULTILINE)
    path = tmp_path / "mask.safetensors"
    assert main([*command, "--describe", "--json", "--out", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["selector"] == "bitfit"
    assert (found["out"], found["k"], found["m"]) == (str(path), 928, 26432)
    assert Mask.load(path).count == 928
    assert [row["layer"] for row in found["layers"]] == ["0", "1", "2", "outside"]
    assert sum(row["chosen"] for row in found["types"]) == sum(row["chosen"] for row in found["layers"]) == 928
    assert main(["select", "--selector", "head-only", "--n", "20", "--device", "cpu", "--json"]) == 0
    none = json.loads(capsys.readouterr().out)
    assert (none["out"], none["k"], none["layers"][0]["share"]) == (None, 0, None)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("loo --selector random --sparsity 2", 2, "p = 2.0 is outside (0, 1]"),
        ("loo --selector random --sparsity 1e-9", 2, "selects nothing"),
        ("loo --selector random", 2, "needs its sparsity p, the fraction of parameters that may change, e.g. sparsity=0.05"),
        ("loo --selector bitfit --sparsity 0.1", 2, "decides itself"),
        ("run digits-short --sparsities 0.1", 2, "--sparsities and --option belong to --selectors"),
        ("run digits-short --add nobody", 2, "unknown selector 'nobody'"),
        ("loo --selector lora --option rank=abc", 2, "selector 'lora' cannot be made with {'rank': 'abc'}"),
        ("loo --selector lora --option width=2", 2, "selector 'lora' has no width: leave it out; there is rank, alpha, targets"),
        ("loo --selector lora --sparsity 0.1", 2, "leave sparsity 0.1 out; it has rank, alpha, targets"),
        ("loo --selector sam --sparsity 0.1 --scope tensor --option scope=global", 2, "scope is given twice"),
        ("loo --selector adapter --problem logistic", 2, "'logistic' is a function: full, random, magnitude, sam and childpruning"),
        ("select --selector diffpruning --sparsity 0.1 --option burn_in=150 --out m", 2, "burn_in = 150 of 150 steps leaves none"),
        (
            "loo --selector best --sparsity 0.1",
            2,
            "unknown selector 'best': there is full, random, mixout, bitfit",
        ),
        ("loo --problem letters --selector full", 2, "unknown problem 'letters'"),
        ("loo --selector full --n 1", 2, "n = 1"),
        (
            "loo --selector full --estimator exact --retrainings 3",
            2,
            "exact leaves out every example: leave --retrainings out",
        ),
        ("loo --selector full --estimator approximate --tolerance 0.1", 2, "approximate leaves out none: leave --tolerance out"),
        (
            "loo --selector full --estimator sampled --predictor one-step",
            2,
            "--predictor and --checkpoints belong to --estimator auto, assisted or approximate",
        ),
        ("loo --selector full --predictor one-step --checkpoints 3", 2, "--checkpoints are of linearised replicas"),
        ("loo --selector full --checkpoints 0", 2, "checkpoints = 0"),
        ("loo --selector full --estimator approximate --bounds", 2, "--estimator approximate trains none: use assisted"),
        ("loo --selector full --tolerance -1", 2, "tolerance = -1"),
        ("loo --selector full --budget soon", 2, "'soon' is no time: use 90s, 10m or 1h30m"),
        ("loo --selector full --budget 0s", 2, "budget = 0.0"),
        ("loo --selector full --estimator exact --budget 5m", 2, "--budget belongs to --estimator auto: leave it out with exact"),
        ("loo --selector full --retrainings 0", 2, "retrainings = 0"),
        ("compare full bitfit --budget 5m", 2, "compare has no --budget"),
        ("loo --selector full --n 20 --retrainings 21", 2, "retrainings = 21 is outside 1..n with n = 20"),
        ("loo --selector full --examples -1", 2, "examples = -1"),
        ("run digits-short --samples 2", 2, "--samples belongs to --problem"),
        ("run digits-short --estimator exact", 2, "--estimator belongs to --problem"),
        ("run mine --problem digits --selectors full --samples 0", 2, "samples = 0"),
        ("loo --selector full --learning-rate 1e9 --steps 20 --n 20 --device cpu", 1, "diverged at step"),
        ("loo --selector full --device tpu", 2, "unknown device 'tpu'"),
        ("loo --selector full --minimise 1e-4", 2, "--minimise needs --ridge"),
        ("loo --selector full --minimise 1e-4 --ridge 0", 2, "λ = 0"),
        ("loo --selector full --minimise 1e-4 --ridge 0.5 --steps 3", 2, "--minimise takes no --steps"),
        ("loo --selector full --curvature hutchinson", 2, "selector 'full' has no curvature"),
        ("loo --selector full --bounds --delta 2", 2, "δ = 2.0 is outside (0, 1)"),
        ("loo --problem digits --data diabetes --selector full", 2, "problem 'digits' has no setting data"),
        ("bounds --lipschitz 1 --least-eigenvalue 0 --sparsity 0.5 --n 9 --loss-bound 1", 2, "needs both --loss-bound"),
        ("bounds --lipschitz 1 --least-eigenvalue -1e-3 --sparsity 0.5 --n 9 --ridge -1", 2, "ridge = -1.0"),
        ("figures --store figures/digits.sqlite --out figures --only all", 2, "unknown figure 'all': there is stability"),
        ("run everything", 2, "unknown study 'everything': there is digits"),
        ("table --store absent.sqlite", 1, "there is no store absent.sqlite"),
        ("select --selector full --out no/such/folder/mask.safetensors", 1, "cannot write"),
    ],
)
def test_bad_input_gets_a_message_and_a_code(command: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_study_goes_on_where_it_was(small_store: Path, tmp_path: Path) -> None:
    """Half the cells first: the rest is computed, nothing twice, and the table is that of an unbroken run."""
    whole = Store(small_store)
    half = Store(tmp_path / "half.sqlite", whole.identity)
    for cell in SMALL.cells()[:3]:
        identity = cell_identity(SMALL, cell)
        half.add(identity, {"status": "failed", "reason": "planted, to see that it is not computed again"})
    started: list[tuple[int, int]] = []
    cells: list[None] = []
    frame = run_study(
        SMALL,
        half.path,
        device="cpu",
        workers=1,
        on_start=lambda progress: started.append((progress.done, progress.total)),
        on_cell=lambda progress: cells.append(None),
    ).table
    assert started == [(3, 6)]
    assert len(cells) == 3
    assert list(frame["status"]) == ["failed"] * 3 + ["ok"] * 3
    expected = StudyResults.read(small_store).table
    merged = frame[frame["status"] == "ok"].merge(expected, on=["method", "sparsity", "seed"])
    assert len(merged) == 3
    assert (merged["stability_x"] == merged["stability_y"]).all()


KILLED = """
problem = "digits"
seeds = 4
problem_settings.n = 20
estimator = {kind = "sampled", retrainings = 4}

[[algorithms]]
selector = {name = "random", sparsity = [0.02, 0.2]}
steps = 60
"""


def test_killing_a_study_keeps_what_was_finished(tmp_path: Path) -> None:
    """A real process, killed while it computes; the same command then finishes."""
    store, file = tmp_path / "killed.sqlite", tmp_path / "killed.toml"
    file.write_text(KILLED, encoding="utf-8")
    command = [sys.executable, "-m", "stability", "run", str(file), "--store", str(store), "--device", "cpu", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            time.sleep(0.1)
            if store.exists() and _count(store) >= 1:
                break
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert 1 <= _count(store) < 8
    subprocess.run(command, check=True, capture_output=True)
    assert _count(store) == 8


def _count(store: Path) -> int:
    try:
        with sqlite3.connect(store) as connection:
            return int(connection.execute("SELECT count(*) FROM cells").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def test_workers_give_the_same_results(small_store: Path, tmp_path: Path) -> None:
    frame = run_study(SMALL, tmp_path / "parallel.sqlite", device="cpu", workers=2).table
    expected = StudyResults.read(small_store).table
    both = frame.merge(expected, on=["method", "sparsity", "seed"])
    assert len(both) == 6
    assert (both["stability_x"] - both["stability_y"]).abs().max() < 1e-5


def test_another_study_or_other_numerics_are_refused(small_store: Path) -> None:
    store = Store(small_store)
    with pytest.raises(StabilityError, match="made with retrainings = 3, now it is 5"):
        Store(small_store, {**store.identity, "retrainings": 5})
    with pytest.raises(StabilityError, match="made with numerics = 1, now it is 2"):
        Store(small_store, {**store.identity, "numerics": 2})


def test_damaged_stores_are_refused(small_store: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"this is not a database\0 " * 100)
    with pytest.raises(StabilityError, match="is no whole store"):
        Store(garbage)
    notes = tmp_path / "notes.txt"
    notes.write_text("cells to compute again\n")
    for identity in (None, {"study": "x"}):
        with pytest.raises(StabilityError, match=r"notes.txt is no database, and so no store of results: .* left as it is"):
            Store(notes, identity)
    assert notes.read_text() == "cells to compute again\n"
    empty = tmp_path / "empty.sqlite"
    sqlite3.connect(empty).close()
    empty.touch()
    with pytest.raises(StabilityError, match=r"empty.sqlite is empty"):
        Store(empty)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = foreign.read_bytes()
    for identity in (None, {"study": "x"}):
        with pytest.raises(StabilityError, match="is a database of another program .no such table: study.: .* left as it is"):
            Store(foreign, identity)
    assert foreign.read_bytes() == before


def test_a_cell_without_a_record_is_told(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "hollow.sqlite", Store(small_store).identity)
    store.add(cell_identity(SMALL, SMALL.cells()[0]), {})
    assert main(["table", "--store", str(store.path)]) == 1
    assert "hollow.sqlite is damaged: a cell has no record" in capsys.readouterr().err


def test_a_full_disk_is_told_and_loses_nothing(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "full.sqlite", {"study": "x"})
    store.add({"seed": 0}, {"value": 1})
    connect = sqlite3.connect

    def limited(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **more)
        connection.execute("PRAGMA max_page_count = 1")  # sqlite clips it to the present size: no page more
        return connection

    monkeypatch.setattr(sqlite3, "connect", limited)
    with pytest.raises(StabilityError, match="full.*what was finished is kept, free some disk space"):
        store.add({"seed": 1}, {"value": "x" * 100_000})
    monkeypatch.undo()
    assert Store(store.path).records() == [{"seed": 0, "value": 1}]


def test_summary_is_mean_and_spread_over_seeds(small_store: Path) -> None:
    results = StudyResults.read(small_store)
    frame, summary = results.table, results.summary().table
    assert list(summary["method"]) == ["bitfit", "random", "random"]
    for _, row in summary.iterrows():
        group = frame[(frame["method"] == row["method"]) & (frame["sparsity"] == row["sparsity"])]
        assert row["test_loss"] == pytest.approx(group["test_loss"].mean())
        assert row["test_loss_std"] == pytest.approx(group["test_loss"].std())
        assert row["gap"] == pytest.approx((group["test_loss"] - group["train_loss"]).mean())


def test_figures_show_the_numbers_of_the_table(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = StudyResults.read(small_store)
    drawn = [
        tuple(offset)
        for c in plotting.gap_against_stability(results).axes[0].collections
        if c.get_gid() == "values"
        for offset in np.asarray(c.get_offsets())
    ]
    summary = results.summary().table
    expected = sorted(zip(summary["stability"], summary["gap"], strict=True))
    assert np.allclose(sorted(drawn), expected)
    assert main(["figures", "--store", str(small_store), "--out", str(tmp_path)]) == 0
    names = set(plotting.FIGURES) - {"projection_discontinuity", "methods"}  # no mask of this study moves, and one method has two p
    assert {path.name for path in tmp_path.iterdir()} == {f"small_digits_{name}.{s}" for name in names for s in ("png", "pdf")}
    png = (tmp_path / "small_digits_stability.png").read_bytes()
    assert key(SMALL.identity())[:12].encode() in png


def test_figure_and_table_of_bounds_tell_their_states(small_store: Path) -> None:
    """Solid and filled only what is neither vacuous nor refuted; an arrow for the infinite, nothing for the unknown."""
    results = StudyResults.read(small_store)
    frame = results.table
    random = frame["method"] == "random"
    p_low = frame.loc[random, "sparsity"].min()
    for name in BOUNDS:
        frame[name], frame[f"{name}_state"] = None, None

    def mark(rows: pd.Series[bool], name: str, value: float | None, state: str) -> None:
        frame.loc[rows, name] = value
        frame.loc[rows, f"{name}_state"] = state

    mark(random, "theorem_1", 5.0, "not refuted")
    mark(random, "first_order", 0.5, "estimate")
    mark(random, "hard_mask", 7.0, "vacuous")
    mark(random & (frame["sparsity"] == p_low), "hard_mask_sharp", 6.0, "assumption failed")
    mark(random & (frame["sparsity"] > p_low), "hard_mask_sharp", None, "infinite")
    figure = plotting.bounds(results)
    lines = {name: [x for x in figure.axes[0].lines if x.get_color() == colour] for name, (_, colour) in DRAWN.items()}
    assert {x.get_linestyle() for x in lines["theorem_1"]} == {"-", "None"}
    assert {x.get_linestyle() for x in lines["first_order"]} == {"-", "None"}
    assert {x.get_linestyle() for x in lines["hard_mask"]} == {"--", "None"}
    hollow = [x for x in lines["hard_mask"] if len(np.asarray(x.get_xdata())) and x.get_marker() == "o"]
    assert all(x.get_markerfacecolor() == "white" for x in hollow)
    assert {x.get_marker() for x in lines["hard_mask_sharp"] if len(np.asarray(x.get_xdata()))} == {"x", "$\\uparrow$"}
    ratio = [np.asarray(x.get_ydata(), dtype=float) for x in figure.axes[1].lines if x.get_color() == DRAWN["theorem_1"][1]]
    measured = results.summary().table.query("method == 'random'")["stability"].to_numpy()
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["hard mask: random", ""]  # nothing is known of BitFit's
    assert any(len(y) == 2 and np.allclose(y, 5.0 / measured) for y in ratio)
    shown = study_table(results).query("method == 'random'").set_index("p")
    assert list(shown["Theorem 1"]) == ["5", "5"]
    assert list(shown["hard mask"]) == ["7 †", "7 †"]
    with pytest.raises(StabilityError, match="measured no bounds"):
        plotting.bounds(results.only(~random))


def test_table_as_text_and_json(small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--store", str(small_store)]) == 0
    shown = capsys.readouterr().out
    assert "stability" in shown
    assert "95 % interval" not in shown  # two seeds say too little of their spread
    rows = printed(capsys, "table", "--store", str(small_store), "--json")
    assert [row["method"] for row in rows] == ["bitfit", "random", "random"]
    assert rows[0]["stability"] == pytest.approx(StudyResults.read(small_store).summary().table["stability"][0])


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    Store(tmp_path / "empty.sqlite", SMALL.identity())
    with pytest.raises(StabilityError, match="no finished cell yet"):
        StudyResults.read(tmp_path / "empty.sqlite").summary()


@pytest.mark.parametrize("module", ["cyclopts", "stability.cli.about", "torch", "stability.studies.named"])
def test_ctrl_c_while_modules_are_imported_is_one_line(module: str) -> None:
    script = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from stability.cli.commands import main\n"
        "sys.exit(main(['table']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stability: stopped\n")


def test_figures_are_drawn_while_a_study_runs(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As soon as a cell is finished that shows something, and not before; what goes wrong is a note, and never ends the study."""
    whole = Store(small_store)
    early = Store(tmp_path / "early.sqlite", whole.identity)
    drawn = _Drawn(early.path, tmp_path / "figures", first=0.0)
    drawn.look()
    drawn.finish()
    assert not (tmp_path / "figures").exists()
    early.add(*next(iter(whole.cells())))
    drawn.look()
    drawn.finish()
    assert (tmp_path / "figures" / "small_digits_stability.png").exists()
    assert not list((tmp_path / "figures").glob("*.pdf"))
    assert capsys.readouterr().err == ""
    (tmp_path / "damaged.sqlite").mkdir()
    broken = _Drawn(tmp_path / "damaged.sqlite", tmp_path / "figures", first=0.0)
    broken.look()
    broken.finish()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group", "writer"], "--group writer: it names a column of your texts, and problem 'digits' has no columns"),
        (["--group", "writer", "--bounds"], "the bounds are about leaving one example out, and --group asks for something else"),
        (
            ["--group", "writer", "--perturbation", "flip-label"],
            "--group and --perturbation flip-label are two different questions",
        ),
        (["--perturbation", "replace-one", "--estimator", "assisted"], "what replacing one training example does: use Exact()"),
    ],
)
def test_what_no_perturbation_can_do_is_said(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loo", "--selector", "bitfit", "--n", "20", "--steps", "2", *options]) == 2
    assert message in capsys.readouterr().err
