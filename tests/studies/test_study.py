"""Studies made larger, their reuse, and the figure of training histories."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stability import MachineError, MeasurementError, Problem, StabilityError, UsageError, plotting, problems
from stability.cli.commands import main
from stability.leave_one_out import StabilityEstimate, measure
from stability.leave_one_out.estimators import Alone, Approximate, Assisted, Auto, Estimator, Exact, Sampled
from stability.leave_one_out.statistics import variance_shares
from stability.reports.study_table import render
from stability.selectors import SAM, BitFit, ChildPruning, DiffPruning, MagPruning, from_scores
from stability.studies.cell import run_cell
from stability.studies.named import STUDIES
from stability.studies.rebuilt import rebuilt
from stability.studies.results import CellStatus, Failure, StudyResults
from stability.studies.running import run as run_study
from stability.studies.store import Store
from stability.studies.study import Study
from stability.training import Algorithm, FineTuning
from stability.training.replicas import train
from stability.workers.pools import only_here
from tests.cli.test_command_line import SMALL


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "small.sqlite"
    run_study(SMALL, path, device="cpu", workers=1)
    return path


def test_added_selectors_take_over_what_a_like_study_finished(small_store: Path, tmp_path: Path) -> None:
    larger = SMALL.with_selectors(MagPruning(0.02), ChildPruning(0.02))
    assert larger.name == "small+magnitude+childpruning"
    computed = []
    path = tmp_path / "larger.sqlite"
    frame = run_study(larger, path, reuse=small_store, device="cpu", workers=1, on_cell=lambda progress: computed.append(1)).table
    assert len(computed) == 4
    assert list(frame["method"].unique()) == ["bitfit", "random", "magnitude", "childpruning"]
    old, new = StudyResults.read(small_store).table, frame[frame["method"].isin(["bitfit", "random"])]
    assert new["stability"].tolist() == old["stability"].tolist()
    with pytest.raises(StabilityError, match=r"measured with retrainings = 3, this study with 4: its cells cannot be reused"):
        run_study(dataclasses.replace(larger, estimator=Sampled(4)), tmp_path / "other.sqlite", reuse=small_store, workers=1)
    assert len(SMALL.with_selectors(BitFit(), SAM(0.1), SAM(0.1)).algorithms) == len(SMALL.algorithms) + 1
    exact = dataclasses.replace(SMALL, name="exact", estimator=Exact())
    assisted = Store(tmp_path / "assisted.sqlite", dataclasses.replace(exact, estimator=Assisted(3)).identity())
    assisted.add({"seed": 0}, {"status": "ok"})
    with pytest.raises(StabilityError, match="measured with estimator = .*assisted.*, this study with None"):
        run_study(exact, tmp_path / "exact.sqlite", reuse=tmp_path / "assisted.sqlite", workers=1)
    with pytest.raises(UsageError, match="'small' has bitfit with these settings already"):
        SMALL.with_selectors(BitFit())
    smaller = dataclasses.replace(SMALL, algorithms=SMALL.algorithms[:1])
    assert len(run_study(smaller, tmp_path / "smaller.sqlite", reuse=small_store, workers=1)) == 2  # its own cells alone
    with pytest.raises(UsageError, match="no selector to add"):
        SMALL.with_selectors()


def test_a_selector_of_one_s_own_gets_its_line_in_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a file in the current folder, through worker processes, beside the cells of a stored study."""
    monkeypatch.chdir(tmp_path)
    Path("my_method.py").write_text(
        "def smallest(problem, generator):\n    return {name: -t.abs() for name, t in problem.pretrained.items()}\n"
    )
    monkeypatch.setitem(STUDIES, "small", SMALL)
    assert main(["run", "small", "--store", "small.sqlite", "--workers", "1"]) == 0
    command = "run small --add my_method:smallest --sparsities 0.02 0.1 --reuse small.sqlite --workers 2 --figures figures"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "results: runs/small+smallest.sqlite" in printed
    results = StudyResults.read("runs/small+smallest.sqlite")
    frame = results.table
    assert (frame["status"] == "ok").all()
    assert len(frame[frame["method"] == "smallest"]) == 4
    names = set(plotting.FIGURES) - {"projection_discontinuity", "methods"}
    assert {path.stem for path in Path("figures").iterdir()} == {f"small+smallest_digits_{name}" for name in names}
    for name in ("stability", "generalization", "four_panels", "gap_against_stability"):
        figure = plotting.FIGURES[name](results)
        legends = [legend for part in figure.subfigs for legend in part.legends]
        beside = [text for ax in figure.axes for text in ax.texts]
        told = [text for legend in legends for text in legend.get_texts()]
        assert "smallest" in {text.get_text() for text in [*beside, *told]}
    titles = {ax.get_title(loc="left") for ax in plotting.bounds(results).axes}
    assert "hard mask: smallest" in titles


def test_cells_with_other_held_out_examples_are_not_mixed(tmp_path: Path) -> None:
    mine = dataclasses.replace(
        SMALL, name="few", algorithms=SMALL.algorithms[:1], seeds=(0,), estimator=Sampled(4), check_replicas=None
    )
    assert "test_examples" not in mine.identity()  # so that older stores go on
    few = dataclasses.replace(mine, test_examples=7)
    results = run_study(few, tmp_path / "few.sqlite", device="cpu", workers=1)
    algorithm = dataclasses.replace(SMALL.algorithms[0], seed=0)
    again = measure(problems.load("digits", n=20, seed=0), algorithm, Sampled(4), test_examples=7, device="cpu")
    assert results.table["hypothesis_stability"].item() == again.hypothesis.value
    assert rebuilt(results.identity) == few
    with pytest.raises(StabilityError, match="made with test_examples = "):
        run_study(dataclasses.replace(mine, test_examples=8), tmp_path / "few.sqlite", device="cpu", workers=1)
    with pytest.raises(UsageError, match="test_examples = 0: use a whole number of at least 1"):
        dataclasses.replace(mine, test_examples=0)


def test_fresh_training_sets_and_seeds_have_their_shares(tmp_path: Path) -> None:
    """Two S of two seeds each: one cell for each pair, S drawn by its own seed, and the shares of the variance in the table."""
    mine = dataclasses.replace(SMALL, name="apart", algorithms=SMALL.algorithms[:2], seeds=(0, 1), samples=(5, 6))
    mine = dataclasses.replace(mine, estimator=Assisted(6), check_replicas=None)
    assert mine.identity()["samples"] == [5, 6]
    results = run_study(mine, tmp_path / "apart.sqlite", device="cpu", workers=1)
    frame = results.table
    assert len(results) == 2 * 2 * 2
    assert set(zip(frame["sample"], frame["seed"], strict=True)) == {(5, 0), (5, 1), (6, 2), (6, 3)}
    tuning = dataclasses.replace(SMALL.algorithms[1], seed=1)
    again = measure(problems.load("digits", n=20, seed=5), tuning, estimator=Assisted(6), device="cpu")
    row = frame[(frame["method"] == "random") & (frame["sample"] == 5) & (frame["seed"] == 1)].iloc[0]
    assert row["stability"] == again.value
    assert row["correlation"] == pytest.approx(again.diagnostics.correlation)
    summary = results.summary().table.set_index("method").loc["random"]
    group = frame[frame["method"] == "random"]
    values, errors = (group.sort_values(["sample", "seed"])[n].to_numpy().reshape(2, 2) for n in ("stability", "stability_error"))
    mean, shares = variance_shares(values, errors)
    assert (summary["stability_low"], summary["stability_high"]) == pytest.approx(mean.interval)
    assert [summary[f"{name}_share"] for name in shares.fractions()] == list(shares.fractions().values())
    assert "of S" in render(results)
    (stored, *_) = [record for _, record in Store(tmp_path / "apart.sqlite").cells()]
    assert len(stored["prediction"]["difference"]) == 20
    plain = run_study(dataclasses.replace(mine, name="plain", samples=None), tmp_path / "plain.sqlite", device="cpu", workers=1)
    assert "of S" not in render(plain).split("stability: mean")[0]
    with pytest.raises(StabilityError, match="made with samples = "):
        run_study(dataclasses.replace(mine, samples=(5, 7)), tmp_path / "apart.sqlite", device="cpu", workers=1)


def test_two_methods_of_one_name_are_refused() -> None:
    def bitfit(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
        return dict(problem.pretrained)

    with pytest.raises(UsageError, match="two different selectors are called 'bitfit'.*rename one"):
        SMALL.with_selectors(from_scores(bitfit, 0.1))
    assert only_here(FineTuning(from_scores(bitfit, 0.1)))  # inside another function: nothing could import it


def test_a_store_without_a_finished_cell_starts_anew(tmp_path: Path) -> None:
    """A first run that was refused leaves no obstacle to the corrected one."""
    Store(tmp_path / "mine.sqlite", dataclasses.replace(SMALL, estimator=Sampled(9)).identity())
    results = run_study(SMALL, tmp_path / "mine.sqlite", device="cpu", workers=1)
    assert len(results) == len(SMALL.cells())
    with pytest.raises(StabilityError, match="made with retrainings = 3, now it is 9"):
        run_study(dataclasses.replace(SMALL, estimator=Sampled(9)), tmp_path / "mine.sqlite", device="cpu", workers=1)


def test_a_function_that_no_other_process_knows_is_measured_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: it lives in ``__main__``, which is no file."""

    def scores(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
        return {name: -tensor.abs() for name, tensor in problem.pretrained.items()}

    scores.__module__, scores.__qualname__ = "__main__", "scores"
    selector = from_scores(scores, 0.1)
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert only_here(FineTuning(selector))
    assert not only_here(FineTuning(SAM(0.1)))


def test_discontinuity_is_drawn_from_the_run(tmp_path: Path) -> None:
    """The drawn losses are those that training recorded, the ticks where its mask changed, the shade where it was relaxed."""
    moving = (DiffPruning(0.02, burn_in=4, every=12), SAM(0.02))
    mine = dataclasses.replace(SMALL, name="moves", algorithms=tuple(FineTuning(s, steps=60) for s in moving), seeds=(0,))
    results = run_study(mine, tmp_path / "moves.sqlite", device="cpu", workers=1)
    problem = problems.load("digits", n=20, seed=0)
    found = train(problem, FineTuning(moving[0], steps=60, seed=0))
    (ax,) = plotting.projection_discontinuity(results).axes
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines if len(np.asarray(line.get_ydata())) == 60]
    assert len(drawn) == 2
    np.testing.assert_allclose(drawn[1], found.batch_losses[:, 0], rtol=1e-3, atol=1e-6)
    (ticks,) = [line for line in ax.lines if line.get_marker() == "|"]
    assert np.asarray(ticks.get_xdata()).tolist() == [4, 16, 28, 40, 52]
    assert [int(step) + 1 for step in results.details("history").iloc[0]["mask_changes"]] == [4, 16, 28, 40, 52]
    assert len(ax.patches) == 5
    assert ax.get_yscale() == "log"
    with pytest.raises(plotting.NothingToDrawError, match="see study 'discontinuity'"):
        plotting.projection_discontinuity(results.where(method="sam"))


def test_the_plain_estimators_are_in_the_identity_as_they_always_were() -> None:
    """A number of retrainings drawn at random, or null for all; any other estimator by its settings."""

    def stored(estimator: Estimator) -> dict[str, object]:
        identity = dataclasses.replace(SMALL, estimator=estimator).identity()
        return {name: identity[name] for name in ("retrainings", "estimator") if name in identity}

    assert stored(Exact()) == {"retrainings": None}
    assert stored(Sampled(4)) == {"retrainings": 4}
    for estimator in (Sampled(), Sampled(4, tolerance=0.1), Assisted(), Assisted(4), Auto()):
        assert stored(estimator) == {"retrainings": None, "estimator": estimator.settings()}
    assert Study("s", "digits", SMALL.algorithms, (0,)).estimator == Auto()


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (MeasurementError("A(S) diverged at step 3"), Failure.METHOD, "A.S. diverged at step 3"),
        (MachineError("one replica alone does not fit"), Failure.MACHINE, "one replica alone does not fit"),
        (MemoryError("2 GiB"), Failure.MACHINE, "MemoryError: 2 GiB .*test_study.py, line "),
        (UsageError("bitfit tunes biases"), Failure.ERROR, "bitfit tunes biases"),
        (KeyError("layer"), Failure.ERROR, "KeyError: 'layer' .*test_study.py, line "),
    ],
)
def test_a_failed_cell_is_recorded_with_its_kind_and_the_machine_s_is_tried_again(
    error: Exception, kind: Failure, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on; the table names the reason; and the next run measures what may have passed, and nothing else."""

    small = dataclasses.replace(SMALL, check_replicas=None, estimator=Sampled(2))

    def failing(problem: Problem, algorithm: Algorithm, **how: Any) -> StabilityEstimate:
        if algorithm.name == "bitfit" and algorithm.seed == 0:
            raise error
        return measure(problem, algorithm, **how)

    monkeypatch.setattr("stability.studies.cell.measure", failing)
    frame = run_study(small, tmp_path / "small.sqlite", device="cpu", workers=1).table
    bad = frame[frame["status"] == CellStatus.FAILED]
    assert len(frame) == 6
    assert bad["failure"].tolist() == [kind]
    assert re.match(reason, bad["reason"].iloc[0])
    shown = render(StudyResults.read(tmp_path / "small.sqlite"))
    assert re.search(f"failed: bitfit, seed 0: {reason}", shown)
    assert ("tried again" in shown) == (kind != Failure.METHOD)
    monkeypatch.setattr("stability.studies.cell.measure", measure)
    again: list[None] = []
    frame = run_study(small, tmp_path / "small.sqlite", device="cpu", workers=1, on_cell=lambda progress: again.append(None)).table
    assert len(frame) == 6
    assert len(again) == (0 if kind == Failure.METHOD else 1)
    assert (frame["status"] == CellStatus.OK).sum() == 5 + len(again)


def test_cells_that_are_not_measured_are_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Estimator] = []

    def measured(*what: object, estimator: Estimator, **how: object) -> None:
        asked.append(estimator)
        raise MeasurementError("planted")

    monkeypatch.setattr("stability.studies.cell.measure", measured)
    for cell in dataclasses.replace(SMALL, measured_seeds=1).cells():
        run_cell(SMALL, cell)
    assert asked == [SMALL.estimator] * 3 + [Alone()] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check_replicas": -1}, "check_replicas = -1"),
        ({"seeds": (0, True)}, "seed = True: use a whole number"),
        ({"samples": (-1,)}, "seed = -1: use a whole number of at least 0"),
        ({"delta": 0.0}, "delta = 0.0"),
        ({"delta": 1.0}, "delta = 1.0"),
        ({"algorithms": ()}, "study 'small' has 0 algorithms and 2 seeds"),
        ({"seeds": ()}, "study 'small' has 3 algorithms and 0 seeds"),
    ],
)
def test_senseless_studies_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SMALL, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="workers = True: use a whole number"):
        run_study(SMALL, "nowhere.sqlite", workers=True)
    assert dataclasses.replace(SMALL, seeds=tuple(np.arange(2))).identity() == SMALL.identity()


def test_results_can_be_filtered(small_store: Path) -> None:
    results = StudyResults.read(small_store)
    assert results.table.attrs == {}
    assert (results.study, results.tasks, len(results), results.notes) == ("small", ("digits",), 6, ())
    assert repr(results) == f"StudyResults('small', 6 cells of 3 algorithms on digits, fingerprint {results.fingerprint})"
    random = results.where(method="random", seed=[0])
    assert len(random) == len(random.algorithms) == 2
    assert random.identity == results.identity
    assert {settings["method"] for settings in random.algorithms.values()} == {"random"}
    assert len(results.only(results.table["sparsity"] > 0.1)) == 2
    nothing = results.where(seed=7)
    assert (len(nothing), nothing.tasks, dict(nothing.algorithms)) == (0, (), {})
    with pytest.raises(StabilityError, match="no finished cell"):
        nothing.summary()
    with pytest.raises(UsageError, match="there is no column 'p': use key, algorithm, sparsity"):
        results.where(p=0.1)


def test_numbers_of_numpy_are_numbers_in_a_study(tmp_path: Path) -> None:
    """As sweeps with np.arange and np.logspace have them: the same cells as from plain numbers, and the same store."""

    def mine(whole: Any, real: Any) -> Study:
        algorithms = (FineTuning(SAM(real(0.25)), steps=whole(3), batch_size=whole(5), learning_rate=real(0.5)),)
        seeds: Any = np.arange(1) if whole is np.int64 else (0,)
        return Study("mine", "digits", algorithms, seeds, problem_settings={"n": 20}, estimator=Sampled(2), check_replicas=None)

    plain = run_study(mine(int, float), tmp_path / "mine.sqlite", device="cpu", workers=1)
    again = run_study(mine(np.int64, np.float32), tmp_path / "mine.sqlite", device="cpu", workers=1)
    assert again.table["stability"].tolist() == plain.table["stability"].tolist()
    assert len(again) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithms": FineTuning(BitFit())}, "algorithms = .*: use a tuple"),
        ({"algorithms": (BitFit(),)}, r"algorithm = BitFit\(\): use an algorithm"),
        ({"seeds": 3}, "seeds = 3: use whole numbers, such as"),
        ({"estimator": "assisted"}, "estimator = 'assisted': use one of stability.estimators"),
        ({"problem": 7}, "problem = 7: use the name of a problem"),
        ({"estimator": Approximate()}, "check_replicas = 0: bounds are measured at left-out replicas, and approximate trains none"),
    ],
)
def test_what_a_study_is_not_made_of_is_refused_when_it_is_made(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SMALL, **change)
