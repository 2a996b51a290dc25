"""Studies of several tasks, their tables, figures and scores, against the records by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from stability import StabilityError, UsageError, plotting, problems
from stability.cli.commands import main
from stability.leave_one_out.estimators import Approximate, Assisted, Sampled
from stability.leave_one_out.predictors import Linearised
from stability.reports.study_table import render
from stability.selectors import SAM, BitFit, ChildPruning, FullTuning, LotteryTicket, MagPruning, Random, Selector
from stability.studies import cost as costs
from stability.studies.cell import run_cell
from stability.studies.cost import expected
from stability.studies.identity import key
from stability.studies.ledger import Wanted, Worker
from stability.studies.published import against_published, published_scores
from stability.studies.results import StudyResults
from stability.studies.running import run as run_study
from stability.studies.scores import IncomparableError, scores, std_interval
from stability.studies.store import Store
from stability.studies.study import Study, cell_identity
from stability.training import FineTuning, Minimisation
from stability.training.replicas import train
from tests.studies.test_ranks import centred
from tests.studies.test_study import small_store  # noqa: F401
from tests.studies.test_trust import quick

KINDS = (Random(0.3), MagPruning(0.3))
BOTH = Study(
    "both",
    ("digits", "logistic"),
    tuple(FineTuning(selector, steps=4) for selector in KINDS),
    (0, 1, 2),
    problem_settings={"n": 20},
    estimator=Sampled(3),
    check_replicas=None,
    measured_seeds=1,
)

FOUR = ("cb+rte_p0.3_ranks", "cb+rte_p0.3_definition_3", "cb_p0.3_stability", "rte_p0.3_generalization")

QUICK: dict[str, Any] = {"problem_settings": {"n": 20}, "estimator": Sampled(2), "check_replicas": None}


@pytest.fixture(scope="module")
def both_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("both") / "both.sqlite"
    run_study(BOTH, path, device="cpu", workers=1)
    return path


def test_several_tasks_in_one_study(both_store: Path) -> None:
    results = StudyResults.read(both_store)
    frame = results.table
    assert len(results) == 2 * 2 * 3
    assert list(frame["task"].unique()) == ["digits", "logistic"]
    assert frame["stability"].notna().sum() == 4  # of the first seed alone
    assert set(frame.loc[frame["stability"].isna(), "estimate_status"]) == {"not measured"}
    assert results.summary().table["measured"].tolist() == [1] * 4
    assert "not measured" not in render(results)
    alone = dataclasses.replace(BOTH, problem="digits", measured_seeds=None, name="alone", seeds=(0,))
    row = run_cell(alone, alone.cells()[0])
    same = frame[(frame["task"] == "digits") & (frame["method"] == "random") & (frame["seed"] == 0)].iloc[0]
    assert row["stability"] == same["stability"]
    assert row["test_metric"] == same["test_metric"]


def test_a_larger_study_takes_over_tasks_and_seeds(both_store: Path, tmp_path: Path) -> None:
    more = dataclasses.replace(BOTH, problem=("digits", "logistic", "quadratic"), seeds=(0, 1), measured_seeds=2)
    computed: list[int] = []
    run_study(
        more, tmp_path / "more.sqlite", reuse=both_store, device="cpu", workers=1, on_cell=lambda progress: computed.append(1)
    )
    # Of the two old tasks seed 0 is there as it was; seed 1 is measured now, and the new task is all new.
    assert len(computed) == 2 * 2 + 2 * 2
    other = dataclasses.replace(BOTH, problem_settings={"n": 22})
    with pytest.raises(StabilityError, match=r"measured with problem (digits|logistic) = .* its cells cannot be reused"):
        run_study(other, tmp_path / "other.sqlite", reuse=both_store, workers=1)


def test_studies_of_tasks_refuse_what_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="measured_seeds = 4 of 3 seeds: use at most as many"):
        dataclasses.replace(BOTH, measured_seeds=4)
    with pytest.raises(UsageError, match="two problems have one name among cb, cb; rename a folder"):
        dataclasses.replace(BOTH, problem=("a/cb", "b/cb"))
    with pytest.raises(UsageError, match="study 'both' has random with the same settings twice"):
        dataclasses.replace(BOTH, algorithms=BOTH.algorithms[:1] * 2)
    with pytest.raises(UsageError, match="measured_seeds and samples"):
        dataclasses.replace(BOTH, samples=(0, 1))


def test_scores_are_those_of_the_records(both_store: Path) -> None:
    results = StudyResults.read(both_store)
    frame, found = results.table, scores(results)
    for _, row in found.table.iterrows():
        mine = frame[(frame["task"] == row["task"]) & (frame["method"] == row["method"])]
        assert row["mean"] == pytest.approx(100 * np.mean(mine["test_metric"].tolist()))
        assert row["std"] == pytest.approx(100 * np.std(mine["test_metric"].tolist(), ddof=1))
        first = mine[mine["seed"] == 0].iloc[0]
        assert row["stability"] == first["stability"]
        assert [row["stability_low"], row["stability_high"]] == [first["stability_low"], first["stability_high"]]
        assert (row["seeds"], row["missing"], row["measured"]) == (3, 0, 1)
    assert found.title == "study both"
    assert "20 of digits" in found.notes[0]
    assert "steps 4" in found.notes[0]


def test_the_spread_s_interval_is_that_of_a_normal_sample() -> None:
    """20 000 samples of five (fixed in advance): σ is held in 95 % within 4.5 standard errors."""
    spread = np.random.default_rng(0).standard_normal((20_000, 5)).std(axis=1, ddof=1)
    ends = np.array([std_interval(1.0, 5)])
    held = np.mean((spread * ends[0, 0] <= 1) & (spread * ends[0, 1] >= 1))
    assert abs(held - 0.95) < 4.5 * np.sqrt(0.95 * 0.05 / 20_000)
    assert np.isnan(std_interval(1.0, 1)).all()


def shortened(source: Path, target: Path, keep: Any) -> Path:
    """The same study without some of its cells."""
    whole = Store(source)
    part = Store(target, whole.identity)
    for identity, record in whole.cells():
        if keep(identity):
            part.add(identity, record)
    return target


def test_missing_cells_are_counted_and_shown(both_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shortened(
        both_store, tmp_path / "holes.sqlite", lambda cell: not (cell["task"] == "digits" and cell["method"] == "magnitude")
    )
    found = scores(StudyResults.read(path)).table
    assert len(found) == 4
    assert found["missing"].tolist() == [0, 3, 0, 0]
    assert np.isnan(found["mean"].iloc[1])
    assert main(["table", "--store", str(path), "--ranks"]) == 0
    text = capsys.readouterr().out
    assert "3 of 12 cells are missing" in text
    assert "–" in text
    single = shortened(both_store, tmp_path / "single.sqlite", lambda cell: cell["seed"] == 0)
    assert scores(StudyResults.read(single)).table["std"].isna().all()


def test_mixed_settings_are_refused_by_name(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    results = StudyResults.read(small_store)
    with pytest.raises(
        IncomparableError, match=r"random has 2 settings in this study, sparsity = 0.02, 0.2, .*: choose with --sparsity P"
    ):
        scores(results)
    assert scores(results, 0.1).table["sparsity"].tolist()[1] == pytest.approx(0.2, abs=1e-4)  # nearer than 0.02 on a log scale
    begun = dataclasses.replace(results, table=results.table[results.table["method"] == "bitfit"])  # random has no cell yet
    with pytest.raises(IncomparableError, match=r"random has 2 settings in this study, sparsity = 0.02, 0.2, "):
        scores(begun)
    assert scores(begun, 0.1).table["missing"].tolist() == [0, 2]
    uneven = Study("uneven", "digits", (FineTuning(BitFit(), steps=2), FineTuning(Random(0.1), steps=3)), (0,), **QUICK)
    path = tmp_path / "uneven.sqlite"
    for p, message in ((-1.0, "p = -1.0 is outside"), (float("nan"), "p = nan is outside")):
        with pytest.raises(UsageError, match=message):
            scores(results, p)
    with pytest.raises(IncomparableError, match="methods of this study were trained with steps = 2, 3: no table compares them"):
        scores(run_study(uneven, path, device="cpu", workers=1))
    assert main(["table", "--store", str(path), "--ranks"]) == 2
    assert "steps = 2, 3" in capsys.readouterr().err
    rates = Study("rates", "digits", (FineTuning(BitFit(), steps=2, learning_rate=1e-2), FineTuning(Random(0.1), steps=2)), (0,))
    told_rates = scores(run_study(dataclasses.replace(rates, **QUICK), tmp_path / "rates.sqlite", workers=1))
    assert told_rates.notes[0].endswith("learning rate 0.01 (bitfit); 0.003 (random)")
    assert "one seed a cell: there is no standard deviation" in told_rates.notes


def renamed(path: Path, target: Path, tasks: dict[str, str], **more: Any) -> Path:
    """The same results under the names of other tasks, with more in the study's identity."""
    whole = Store(path)
    identity = {**whole.identity, **more, "problems": {tasks[name]: one for name, one in whole.identity["problems"].items()}}
    other = Store(target, identity)
    for cell, record in whole.cells():
        other.add({**cell, "task": tasks[cell["task"]]}, {**record, "task": tasks[record["task"]]})
    return target


def test_a_store_beside_the_published_numbers(both_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--store", str(both_store), "--against", "paper"]) == 2
    assert "no published numbers for digits, logistic: the paper has cola, stsb" in capsys.readouterr().err
    path = str(renamed(both_store, tmp_path / "as.sqlite", {"digits": "cb", "logistic": "mine"}))
    assert main(["table", "--store", path, "--against", "paper", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["mean"] for row in values["published"]["rows"]] == [90.54, 81.25]  # Random's and MagPruning's on CB, Table 1
    assert len(values["measured"]["rows"]) == 4
    assert main(["table", "--store", path, "--against", "perturbation"]) == 0
    text = capsys.readouterr().out
    assert "CB, published" in text
    assert "mine" in text
    assert "mine, published" not in text
    assert "ranks among 2 of its methods on 1 of its tasks" in text
    assert "Table 2 of Fu et al. 2023" in text
    assert main(["figures", "--store", path, "--against", "paper", "--out", str(tmp_path / "f")]) == 1
    assert "ranks need at least two methods, two seeds and three pairs" in capsys.readouterr().err  # two are published
    known = str(renamed(both_store, tmp_path / "known.sqlite", {"digits": "cb", "logistic": "rte"}))
    assert main(["figures", "--store", known, "--against", "paper", "--out", str(tmp_path / "f")]) == 0
    names = {file.name for file in (tmp_path / "f").glob("*.png")}
    assert {f"both_{name}.png" for name in FOUR} <= names
    found = against_published(scores(StudyResults.read(path)))
    assert found.title == published_scores().title


def test_one_p_in_two_settings_is_refused(tmp_path: Path) -> None:
    rates = tuple(FineTuning(Random(0.1), steps=2, learning_rate=rate) for rate in (1e-2, 1e-4))
    results = run_study(Study("rates", "digits", rates, (0,), **QUICK), tmp_path / "rates.sqlite", device="cpu", workers=1)
    lost = dataclasses.replace(results, table=results.table.assign(sparsity=np.nan))
    for one, p in ((results, None), (results, 0.1), (lost, 0.1)):
        with pytest.raises(
            IncomparableError,
            match=r"random has 2 settings in this study, learning_rate = 0.01, 0.0001, .*: keep those that belong together",
        ):
            scores(one, p)
    slow = next(name for name, settings in results.algorithms.items() if settings["learning_rate"] == 1e-4)
    assert scores(results.where(algorithm=slow)).notes[0].endswith("learning rate 0.0001")
    assert {path.stem for path in plotting.save_all(results, tmp_path)} & {
        "rates_digits_random_ranks",
        "rates_digits_random_definition_3",
    } == set()
    with pytest.raises(IncomparableError):
        plotting.save_all(results, tmp_path, "ranks")


def test_the_table_to_compare_with_is_that_of_the_same_experiment(
    both_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known by what the study is, whatever it is called."""
    for table, more in ((2, {"study": "mine", "removed": 0.1}), (1, {"study": "mine-perturbation"})):
        path = renamed(both_store, tmp_path / f"{table}.sqlite", {"digits": "cb", "logistic": "rte"}, **more)
        assert main(["table", "--store", str(path), "--against", "paper"]) == 0
        assert f"Table {table} of Fu et al. 2023" in capsys.readouterr().out


def test_a_note_belongs_to_a_study_of_exactly_that_name(both_store: Path, tmp_path: Path) -> None:
    tasks = {"digits": "digits", "logistic": "logistic"}
    for name, count in (("paper-quick", 1), ("paper-quick-perturbation", 1), ("paper-quickly", 0), ("paper", 0)):
        results = StudyResults.read(renamed(both_store, tmp_path / f"{name}.sqlite", tasks, study=name))
        assert len(results.notes) == count
        assert scores(results).notes[:count] == results.notes


def test_failed_cells_spoil_neither_figures_nor_names(both_store: Path, tmp_path: Path) -> None:
    path = shortened(both_store, tmp_path / "failed.sqlite", lambda cell: cell["task"] == "digits")
    store = Store(path)
    for cell in BOTH.cells():
        if cell.problem == "logistic":
            store.add(cell_identity(BOTH, cell), {"status": "failed", "task": "logistic", "reason": "planted"})
    results = StudyResults.read(path)
    assert "failed" in repr(results)
    written = {file.name for file in plotting.save_all(results, tmp_path / "f")}
    assert {"both_digits_p0.3_stability.png", "both_digits+logistic_p0.3_definition_3.png"} <= written
    lost = ("random at p = 0.3 on logistic", "magnitude at p = 0.3 on logistic")
    assert results.summary().all_failed == lost
    assert all(f"every seed failed: {name}" in render(results) for name in lost)


def test_without_any_measured_seed_there_are_scores_and_no_stability(tmp_path: Path) -> None:
    unmeasured = dataclasses.replace(BOTH, name="none", problem="digits", measured_seeds=0, seeds=(0, 1))
    results = run_study(unmeasured, tmp_path / "none.sqlite", device="cpu", workers=1)
    assert scores(results).table["stability"].isna().all()
    names = {file.name for file in plotting.save_all(results, tmp_path / "f")}
    assert "none_digits_p0.3_generalization.png" in names
    assert not any(kind in name for name in names for kind in ("stability", "definition_3"))
    with pytest.raises(plotting.NothingToDrawError, match="measured with no seed"):
        plotting.stability(results)


def test_bounds_of_the_measured_seed_are_shown_and_predictions_are_kept(tmp_path: Path) -> None:
    bounded = dataclasses.replace(BOTH, name="bounded", problem="logistic", check_replicas=0, seeds=(0, 1))
    results = run_study(bounded, tmp_path / "bounded.sqlite", device="cpu", workers=1)
    first = results.where(seed=0).table.set_index("method")["theorem_1_state"]
    assert results.summary().table.set_index("method")["theorem_1_state"].to_dict() == first.to_dict()
    foretold = dataclasses.replace(BOTH, name="told", problem="digits", estimator=Approximate(), measured_seeds=None)
    row = run_cell(foretold, foretold.cells()[0])
    assert row["estimate_status"] == "approximate"
    assert row["stability"] > 0


def test_lines_are_tasks_where_there_is_one_method(both_store: Path, tmp_path: Path) -> None:
    results = StudyResults.read(both_store)
    one = results.where(method="random")
    figure = plotting.four_panels(one)
    labels = [text.get_text().partition(",")[0] for text in figure.axes[0].get_yticklabels()]
    assert labels == ["digits", "logistic"]
    with pytest.raises(plotting.NothingToDrawError, match="several methods on several tasks"):
        plotting.four_panels(results)
    with pytest.raises(plotting.NothingToDrawError, match="ranks need at least two methods"):
        plotting.ranks(scores(one))


def test_figures_show_the_scores(both_store: Path) -> None:
    scored = scores(StudyResults.read(both_store))
    found, figure = scored.table, plotting.definition_3(scored)
    left, right = figure.axes[:2]
    for ax, column in ((left, "stability"), (right, "std")):
        points = [np.ravel(line.get_xdata())[0] for line in ax.lines if line.get_gid() == "values"]
        assert points == pytest.approx(found.loc[found["task"] == "digits", column].tolist())
    published_ranks = plotting.ranks(published_scores("main"), published_scores("perturbation"))
    assert "Spearman ρ = 0.485" in published_ranks.axes[0].get_title(loc="left")
    assert "Spearman ρ = 0.310" in published_ranks.axes[1].get_title(loc="left")
    (pairs,) = [line for line in published_ranks.axes[0].lines if line.get_gid() == "pairs"]
    known = published_scores("main").table
    spread = known.groupby("task")["std"].rank()
    mean = known.groupby("task")["mean"].rank(ascending=False)
    assert np.asarray(pairs.get_ydata()) == pytest.approx(mean.to_numpy())
    assert np.abs(np.asarray(pairs.get_xdata()) - spread.to_numpy()).max() <= 0.25  # tasks stand a little apart
    points = [line for line in published_ranks.axes[0].lines if line.get_gid() == "means"]
    means = pd.DataFrame({"x": spread, "y": mean}).groupby(known["method"], sort=False).mean()
    assert [float(np.ravel(line.get_xdata())[0]) for line in points] == pytest.approx(means["x"].tolist())
    assert [float(np.ravel(line.get_ydata())[0]) for line in points] == pytest.approx(means["y"].tolist())


def test_paper_s_figure_and_tables_need_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", "--paper", "--out", str(tmp_path)]) == 0
    wanted = {"paper_ranks.png", "paper_ranks.pdf"} | {
        f"paper_{p}.{e}" for p in ("main", "perturbation") for e in ("md", "tex", "csv")
    }
    assert {path.name for path in tmp_path.iterdir()} == wanted
    assert set(capsys.readouterr().out.split()) == {str(tmp_path / name) for name in wanted}
    written = pd.read_csv(tmp_path / "paper_main.csv")
    again = centred(written[["rank_mean", "rank_std"]], written["task"])
    assert main(["table", "--paper", "main", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["table"] == "main"
    assert values["spearman"] == pytest.approx(again)
    assert values["p_value"] == pytest.approx(2 * stats.t.sf(again * math.sqrt(68 / (1 - again**2)), 68))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("table", "give --store FILE, or --paper main or perturbation"),
        ("figures", "give --store FILE, or --paper"),
        ("figures --paper --only ranks", "--only belongs to --store"),
        ("table --paper main --against paper", "--against, --sparsity and --rates belong to --store"),
        ("table --paper main --json --format csv", "--json and --format: leave one of them out"),
        ("table --store {} --paper main", "--paper is of the published numbers alone"),
        ("figures --store {} --only nothing", "unknown figure 'nothing'"),
        ("figures --store {} --against paper --out nowhere", "no published numbers for digits, logistic"),
    ],
)
def test_a_senseless_request_says_so(command: str, message: str, both_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.format(both_store).split()) == 2
    assert message in capsys.readouterr().err


def test_the_plan_counts_what_is_really_trained(both_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = expected(BOTH, device="cpu", workers=1)
    plan = cost.table
    assert plan["cells"].tolist() == [3] * 4
    trained: list[int] = []

    def counted(problem: Any, algorithm: Any, weights: Any = None, *more: Any, **how: Any) -> Any:
        trained.append(1 if weights is None else len(weights))
        return train(problem, algorithm, weights, *more, **how)

    monkeypatch.setattr("stability.leave_one_out.retraining.train", counted)
    run_study(BOTH, tmp_path / "again.sqlite", device="cpu", workers=1)
    assert plan["trainings"].sum() == sum(trained)
    rest = expected(BOTH, both_store, device="cpu", workers=1)
    assert rest.table["cells"].sum() == rest.table["trainings"].sum() == 0
    assert rest.table["hours"].sum() == 0
    assert (rest.done, rest.cells) == (12, 12)
    assert "0 of 12 cells to compute" in str(rest)
    text = str(cost)
    assert "12 of 12 cells to compute" in text
    assert "one worker on cpu" in text
    assert (plan[["train", "retrain", "evaluate"]] > 0).all(axis=None)


def test_a_plan_knows_what_it_can_foretell(both_store: Path, tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"both.sqlite was made with .*problems"):
        expected(dataclasses.replace(BOTH, problem_settings={"n": 22}), both_store, device="cpu")
    with pytest.raises(UsageError, match="workers = -2"):
        expected(BOTH, device="cpu", workers=-2)
    more = dataclasses.replace(BOTH, seeds=(0, 1, 2, 3))
    assert expected(more, reuse=both_store, device="cpu", workers=1).table["cells"].tolist() == [1] * 4
    capped = dataclasses.replace(BOTH, estimator=Assisted(5, tolerance=0.1), problem="digits", seeds=(0,))
    assert expected(capped, device="cpu", workers=1).table["trainings"].tolist() == [7, 7]
    minimised = Study("least", "logistic", (Minimisation(FullTuning(), ridge=0.5),), (0,), **QUICK)
    assert "without 4 minimisations, which take as many steps as they need" in str(expected(minimised, device="cpu", workers=1))


def test_a_plan_evaluates_left_out_models_on_as_many_test_examples_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of r models takes r seconds here, and an evaluation a second for each model and example."""
    monkeypatch.setattr(costs, "_step", lambda problem, algorithm, r, masks: float(r))
    monkeypatch.setattr(costs, "_forward", lambda problem, examples, batch: float(len(examples)))
    study = Study("few", "digits", (FineTuning(FullTuning(), steps=4),), (0,), **QUICK | {"estimator": Sampled(3)})
    test = len(problems.load("digits", n=20).test)
    told = []
    for count in (None, 10, 10**6):
        row = expected(dataclasses.replace(study, test_examples=count), device="cpu", workers=1).table.iloc[0]
        told.append(row["retrain"] - 4 * 4.0)
    assert told == pytest.approx([4.0 * test, 4.0 * 10, 4.0 * test])


@pytest.mark.parametrize(
    ("selector", "alone", "observed"),
    [
        (LotteryTicket(0.05, burn_in=3), 3 * 5 + 1 * 1, 4 * 5),  # what is observed trains all parameters to the end
        (ChildPruning(0.05), 4 * 5, 4 * 5),
        (SAM(0.05), 4 * 1, 4 * 1),
    ],
)
def test_a_plan_takes_a_moving_mask_that_stays_for_a_fixed_one(
    selector: Selector, alone: float, observed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of one replica takes 5 seconds here where the mask moves, and 1 where it is fixed."""
    monkeypatch.setattr(costs, "_step", lambda problem, algorithm, r, masks: 5.0 if algorithm.selector.moving else 1.0)
    monkeypatch.setattr(costs, "_predicting", lambda *_: (0.0, False))
    monkeypatch.setattr(costs, "_forward", lambda *_: 0.0)
    for estimator, seconds in ((Sampled(3), alone), (Assisted(3, predictor=Linearised()), observed)):
        study = Study("few", "digits", (FineTuning(selector, steps=4),), (0,), **QUICK | {"estimator": estimator})
        row = expected(study, device="cpu", workers=1).table.iloc[0]
        assert row["train"] == pytest.approx(seconds)
        assert row["retrain"] == pytest.approx(4 * alone)


def test_the_replicas_that_a_plan_times_depart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the first steps would be those of one replica, which all share."""
    timed: list[torch.Tensor] = []

    def watched(problem: Any, algorithm: Any, weights: Any = None, *more: Any, **how: Any) -> Any:
        if weights is not None and len(weights) > 1:
            first = next(iter(algorithm.batches(problem.train)))
            timed.append((weights[1:, first] == 0).sum(1))
        return train(problem, algorithm, weights, *more, **how)

    monkeypatch.setattr(costs, "train", watched)
    study = Study("few", "digits", (FineTuning(FullTuning(), steps=4),), (0,), **QUICK | {"estimator": Sampled(3)})
    expected(study, device="cpu", workers=1)
    assert [one.tolist() for one in timed] == [[1, 1, 1]]


@pytest.mark.parametrize(("fixed", "a_example", "known"), [(0.01, 0.001, True), (0.5, 0.1, True), (0.0, 0.1, False)])
def test_what_grows_with_n_is_told_from_what_does_not(fixed: float, a_example: float, known: bool) -> None:
    """Quick and slow ones, in made-up seconds; where it is slow all of it may be taken to grow."""
    problem, algorithm = problems.load("digits", n=100), FineTuning(BitFit(), steps=3, batch_size=8)
    found = costs._of_all(lambda some: fixed + a_example * some.n, problem, algorithm, slow_grows=not known)
    assert found == pytest.approx(fixed + a_example * 100)


@pytest.mark.parametrize(("n", "batch_size"), [(3, 8), (20, 1), (20, 2), (20, 3)])
def test_small_s_and_small_batches_can_be_planned(n: int, batch_size: int) -> None:
    algorithm = FineTuning(SAM(0.05), steps=3, batch_size=batch_size)
    study = Study("few", "digits", (algorithm,), (0,), **QUICK | {"problem_settings": {"n": n}, "estimator": Assisted(2)})
    assert (expected(study, device="cpu", workers=1).table["hours"] > 0).all()


def test_a_plan_counts_the_steps_that_replicas_share_once() -> None:
    """Each departs where its example first comes: in one epoch of 10 batches, in the mean after 4.5 steps."""
    problem = problems.load("digits", n=80)
    for epochs, selector in ((1, FullTuning()), (4, FullTuning()), (1, SAM(0.05))):
        algorithm = FineTuning(selector, steps=10 * epochs, batch_size=8)
        share = costs._share(problem, algorithm, list(algorithm.batches(problem.train)), 81)
        wanted = (1 + 80 * (1 - 4.5 / (10 * epochs))) / 81
        assert share == pytest.approx(1.0 if isinstance(selector, SAM) else wanted)


def test_a_plan_follows_no_more_coordinates_than_a_prediction_of_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[int] = []
    observe = Linearised.observe

    def watched(self: Linearised, problem: Any, algorithm: Any, masks: Any) -> Any:
        followed.append(masks.of([])[0].count)
        return observe(self, problem, algorithm, masks)

    monkeypatch.setattr(Linearised, "observe", watched)
    predictor = Linearised(checkpoints=2, memory_budget=2**20)
    study = Study(
        "few", "digits", (FineTuning(FullTuning(), steps=4),), (0,), **QUICK | {"estimator": Assisted(3, predictor=predictor)}
    )
    expected(study, device="cpu", workers=1)
    problem = problems.load("digits", **study.problem_settings)
    classes = len(problem.train.labels.unique())
    assert set(followed) == {2**20 // (2 * problem.n * classes * 4)}  # in half of the memory


def test_a_plan_leaves_out_what_others_compute_now(tmp_path: Path) -> None:
    """What a dead process had is computed again. How many workers a cluster has is known only where it is said."""
    mine = quick(BitFit(), seeds=(0, 1, 2))
    store = Store(tmp_path / "mine.sqlite", mine.identity())
    alive, dead = Worker(), Worker(process=2**22 + 1)  # there is no such process
    names = [key(cell_identity(mine, cell)) for cell in mine.cells()]
    for worker, own in ((alive, names[:1]), (dead, names[1:])):
        store.ledger.join(worker)
        assert store.ledger.claim(worker, dict.fromkeys(own, Wanted("")), 3, set()).mine.keys() == set(own)
    found = expected(mine, store.path, device="cpu", executor="ray")
    assert (found.table["cells"].sum(), found.done, found.held, found.others, found.workers) == (2, 0, 1, 1, None)
    beside = "Another process works on the study now. It computes 1 cell, which is not counted."
    share = "Several workers share that: --workers N tells the time of N."
    assert "with one worker of the cluster, as fast as this machine's cpu, from a few" in str(found)
    assert str(found).endswith(f"timed just now. {share} {beside}")
    several = dataclasses.replace(found, workers=2, others=3, held=4)
    assert "with 2 workers of the cluster, each as fast as this machine's cpu" in str(several)
    assert str(several).endswith("just now. 3 other processes work on the study now. They compute 4 cells, which are not counted.")


def test_the_plan_is_told_what_will_compute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(costs, "expected", lambda *what, **how: how)
    for command in ("run digits-short", "compare full bitfit"):
        assert main([*command.split(), "--plan", "--executor", "ray", "--workers", "3"]) == 0
        assert "'workers': 3, 'executor': 'ray'" in capsys.readouterr().out


def test_cells_are_named_by_task_and_by_what_is_measured() -> None:
    identities = [cell_identity(BOTH, cell) for cell in BOTH.cells()]
    assert len({key(one) for one in identities}) == 12
    assert [one.get("measured", True) for one in identities] == [True] * 4 + [False] * 8
    assert {one["task"] for one in identities} == {"digits", "logistic"}
