"""The paper's experiments as studies: its numbers, the authors' choices, and the whole of it with a tiny model on tiny tasks."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from stability import UsageError, problems
from stability.cli.commands import main
from stability.cli.run import asked
from stability.leave_one_out.estimators import Assisted, Auto
from stability.leave_one_out.predictors import Linearised
from stability.selectors import SAM, ChildPruning, DiffPruning, LoRA, MagPruning, Mixout, MixoutReset, Random, magnitude
from stability.selectors.naming import SELECTORS
from stability.studies.named import CLAIMS, PAPER
from stability.studies.protocol import AUTHORS, METHODS, TASKS, Protocol
from stability.studies.rates import chosen_rates, found_rates
from stability.studies.results import StudyResults
from stability.training import FineTuning
from stability.training.stopping import EarlyStopping
from tests import tiny


def test_the_defaults_are_the_paper_s_numbers() -> None:
    study = PAPER["paper"].study("paper")
    assert [algorithm.name for algorithm in study.algorithms] == list(SELECTORS)[:10] == list(METHODS)
    assert [name.split("/")[1] for name in study.problems] == list(TASKS)
    assert len(study.cells()) == 10 * 7 * 10
    assert study.problem_settings == {"model": "roberta-base", "max_length": 256}
    for algorithm in study.algorithms:
        assert isinstance(algorithm, FineTuning)
        assert (algorithm.learning_rate, algorithm.batch_size, algorithm.dropout) == (1e-4, 16, True)
        assert algorithm.early_stopping == EarlyStopping(evaluate_every=500, patience=40, least_steps=20_000)
        assert algorithm.max_steps >= 20_000
    assert {a.selector.sparsity for a in study.algorithms} == {None, 0.005}
    perturbed = PAPER["paper-perturbation"].study("p")
    assert perturbed.problem_settings["removed"] == 0.1
    assert perturbed.algorithms == study.algorithms
    swept = PAPER["paper-sparsity"].study("s")
    assert {algorithm.name for algorithm in swept.algorithms} == {"sam"}
    assert max(a.selector.sparsity or 0 for a in swept.algorithms) == 0.2  # the paper's panels end there


def test_what_the_authors_code_does_otherwise_is_asked_for_by_name() -> None:
    plain, theirs = Protocol(), Protocol(authors=tuple(AUTHORS))
    assert plain.selector("sam", 0.005) == SAM(0.005)
    assert theirs.selector("sam", 0.005) == SAM(0.005, scope="tensor", batches=600, batch_size=16)
    assert plain.selector("mixout", 0.005) == Mixout(0.7)
    assert theirs.selector("mixout", 0.005) == MixoutReset(0.005, scope="tensor")
    assert plain.selector("magnitude", 0.005) == MagPruning(0.005)
    assert theirs.selector("magnitude", 0.005) == magnitude(0.005, scope="tensor", burn_in=2_000)
    assert plain.selector("childpruning", 0.005) == ChildPruning(0.005, every=500)
    assert theirs.selector("childpruning", 0.005) == ChildPruning(0.005, scope="tensor", every=500, burn_in=2_000)
    assert plain.selector("diffpruning", 0.005) == DiffPruning(0.005, burn_in=2_000)
    assert theirs.selector("random", 0.005) == Random(0.005, scope="tensor")
    assert plain.selector("lora", 0.005) == LoRA(16)


def test_every_number_is_a_parameter() -> None:
    own = Protocol(
        tasks=("cb",), methods=("sam", "lora"), rates=(("lora", 1e-2),), seeds=2, steps=30, evaluate_every=0, retrainings=7
    )
    study = own.study("own")
    assert [algorithm.learning_rate for algorithm in study.algorithms if isinstance(algorithm, FineTuning)] == [1e-4, 1e-2]
    assert all(a.early_stopping is None for a in study.algorithms if isinstance(a, FineTuning))
    assert isinstance(study.estimator, Assisted)
    assert study.estimator.retrainings == 7
    linear = Linearised(3, memory_budget=1 << 29, reselect=False)
    assert replace(own, predictor="linearised").study("own").estimator == Assisted(7, predictor=linear)
    assert replace(own, predictor="linearised", retrainings=None).study("own").estimator == Auto(predictor=linear)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"part": "third"}, "unknown part 'third': use main, perturbation or sparsity"),
        ({"authors": ("typos",)}, "unknown choice of the authors 'typos': there is per-tensor, burn-in"),
        ({"tasks": ("mnli",)}, "unknown task 'mnli': there is cola, stsb, .* or with data"),
        ({"tasks": ()}, "at least one task and one method"),
        ({"seeds": 0}, "seeds = 0"),
        ({"rates": (("snap", 1.0),)}, "rates: 'snap' is no method: there is full, random"),
        ({"rates": (("sam", -1.0),)}, "rate of sam = -1.0"),
    ],
)
def test_senseless_protocols_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Protocol(**setting)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two folders called as tasks of the paper, in their form, and a model."""
    folder = tmp_path_factory.mktemp("tasks")
    labels = {"cb": {"yes": "entailment", "no": "neutral"}, "mrpc": {"yes": "1", "no": "0"}}
    for seed, (name, called) in enumerate(labels.items()):
        sizes = {"train": 40, "val": 12, "test": 16}
        splits = {split: tiny.rows(count, 9 * seed + count) for split, count in sizes.items()}
        tiny.lines(
            folder / name, **{split: [{**row, "label": called[row["label"]]} for row in rows] for split, rows in splits.items()}
        )
    return str(folder), str(tiny.write_model(folder / "bert"))


@pytest.fixture
def quick(tasks: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    own = "--methods full sam lora --seeds 2 --steps 6 --burn-in 2 --retrainings 2 --workers 1 --device cpu"
    return ["--data", tasks[0], "--model", tasks[1], "--tasks", "cb", "mrpc", *own.split()]


def test_the_whole_of_it_with_a_tiny_model(quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "paper-quick", *quick, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "12 of 12 cells to compute" in plan
    assert not (tmp_path / "runs").exists()
    assert main(["run", "paper-quick", *quick, "--figures", "drawn"]) == 0
    store = "runs/paper-quick.sqlite"
    results = StudyResults.read(store)
    frame = results.table
    assert results.removed == 0
    assert (frame["status"] == "ok").all()
    assert frame["stability"].notna().sum() == 2 * 3
    assert set(frame["n"]) == {32}
    assert (tmp_path / "drawn" / "paper-quick_cb+mrpc_definition_3.png").exists()
    assert main(["run", "paper-quick", *quick, "--plan"]) == 0
    assert "0 of 12 cells to compute" in capsys.readouterr().out
    assert main(["table", "--store", store, "--against", "paper", "--format", "latex"]) == 0
    text = capsys.readouterr().out
    assert r"CB, published & MRPC" in text
    assert "a quick protocol of a small model, few examples and steps, not the paper's" in text
    for more, rates in (
        ([], [5e-4, 2e-3, 5e-3]),
        (["--rates", "lora=0.1"], [5e-4, 2e-3, 0.1]),
        (["--learning-rate", "0.01"], [0.01] * 3),
    ):
        found = asked(["paper-quick", *quick, *more])
        assert found is not None
        assert [algorithm.learning_rate for algorithm in found.study.algorithms if isinstance(algorithm, FineTuning)] == rates
    assert main(["run", "paper-quick", *quick, "--seeds", "3"]) == 1
    assert "was made with seeds = " in capsys.readouterr().err
    assert main(["run", "paper-quick", *quick, "--seeds", "3", "--store", "more.sqlite", "--reuse", store]) == 0
    assert len(StudyResults.read("more.sqlite")) == 2 * 3 * 3


def test_early_stopping_perturbation_and_sweep_on_the_command_line(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    stopped = ["--evaluate-every", "2", "--patience", "1", "--least-steps", "2", "--dropout", "--precision", "float32"]
    assert main(["run", "paper-quick-perturbation", *quick, *stopped, "--pool", "30", "--authors", "per-tensor"]) == 0
    perturbed = StudyResults.read("runs/paper-quick-perturbation.sqlite")
    assert set(perturbed.table["n"]) == {27}
    assert set(perturbed.table["kept_step"]) <= {2, 4, 6}
    assert perturbed.removed == 0.1
    assert main(["run", "paper-quick-sparsity", *quick[:7], "--sparsities", "0.02", "0.2", *quick[11:], "--figures", "drawn"]) == 0
    assert Path("drawn/paper-quick-sparsity_cb+mrpc_sam_four_panels.png").exists()
    assert list(StudyResults.read("runs/paper-quick-sparsity.sqlite").table["task"].unique()) == ["cb", "mrpc"]
    capsys.readouterr()
    assert main(["table", "--store", "runs/paper-quick-perturbation.sqlite", "--against", "paper"]) == 0
    text = capsys.readouterr().out
    assert "Table 2 of Fu et al. 2023" in text
    assert "a quick protocol of a small model" in text


def test_a_search_and_the_study_that_takes_its_rates(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    one = [*quick[:4], "--tasks", "cb", "--methods", "full", "sam", "--steps", "3", "--workers", "1", "--device", "cpu"]
    search = [*one, "--seeds", "1", "--measured-seeds", "0", "--factors", "0.1", "1", "--rates", "sam=1e-2"]
    assert main(["run", "paper-quick", *search, "--store", "search.sqlite"]) == 0
    found = StudyResults.read("search.sqlite").table
    assert found["validation_metric"].between(0, 1).all()
    assert found["validation_constant"].nunique() == 1
    best = chosen_rates(StudyResults.read("search.sqlite"))
    assert found_rates("search.sqlite", ["cb"]) == best.pairs("cb")
    assert {rate for _, rate in best.pairs("cb")} <= {5e-5, 5e-4, 1e-3, 1e-2}
    taken = asked(["paper-quick", *one, "--rates-from", "search.sqlite"])
    assert taken is not None
    rates = {mine.name: mine.learning_rate for mine in taken.study.algorithms if isinstance(mine, FineTuning)}
    assert rates == dict(best.pairs("cb"))
    told = asked(["paper-quick", *one, "--rates-from", "search.sqlite", "--rates", "sam=0.5"])
    assert told is not None
    assert [mine.learning_rate for mine in told.study.algorithms if isinstance(mine, FineTuning)] == [rates["full"], 0.5]
    capsys.readouterr()
    assert main(["table", "--store", "search.sqlite", "--rates"]) == 0
    assert "Validation metric (and loss) at each rate:" in capsys.readouterr().out
    assert main(["run", "paper-quick", *quick, "--rates-from", "search.sqlite"]) == 2
    assert "rates are of one task, and the study is of cb, mrpc" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is a search on cb, and not on rte"):
        found_rates("search.sqlite", ["rte"])
    with sqlite3.connect("search.sqlite") as store:
        store.execute("DELETE FROM cells WHERE rowid = (SELECT max(rowid) FROM cells)")
    with pytest.raises(UsageError, match="is unfinished: 1 of 4 rates are missing"):
        found_rates("search.sqlite", ["cb"])
    assert StudyResults.read("search.sqlite").where(method="full").to_compute == 1  # of the whole study
    assert main(["table", "--store", "search.sqlite"]) == 0
    assert "note: unfinished: 1 of 4 cells is still to be computed, and means are over the others" in capsys.readouterr().out


def test_the_studies_of_the_claims() -> None:
    """Forty settings to begin with: four tasks, ten methods, five seeds, of which three or five measure stability."""
    mains = {name: protocol for name, protocol in CLAIMS.items() if name.count("-") == 1}
    assert [protocol.tasks for protocol in mains.values()] == [("stsb",), ("cb",), ("cola",), ("mrpc",)]
    predictor = Linearised(3, memory_budget=1 << 29, reselect=False)
    for name, protocol in mains.items():
        study = replace(protocol, data="there").study(name)
        assert [algorithm.name for algorithm in study.algorithms] == list(METHODS)
        measured = {"stsb": (5, 8), "cb": (5, 4), "cola": (3, 6), "mrpc": (3, 6)}[name.split("-")[1]]
        assert (len(study.seeds), study.test_examples) == (5, 256)
        assert (study.measured_seeds, study.estimator) == (measured[0], Assisted(measured[1], predictor=predictor))
        assert {algorithm.asked_sparsity for algorithm in study.algorithms} == {None, 0.005}
        hard = name in ("claims-cola", "claims-mrpc")
        sizes = (protocol.pool, protocol.steps, protocol.burn_in, protocol.project_every)
        assert sizes == ((1024, 384, 128, 32) if hard else (None if "cb" in name else 256, 96, 32, 8))
        assert {mine.warmup for mine in study.algorithms if isinstance(mine, FineTuning)} == {0.3}
        search = replace(CLAIMS[f"{name}-rates"], data="there").study(name)
        assert len(search.cells()) == 80  # four rates, two seeds
        assert search.measured_seeds == 0
        rates = [mine.learning_rate for mine in search.algorithms if isinstance(mine, FineTuning)]
        assert rates[:4] == [3e-5, 9e-5, 3e-4, 9e-4]
        assert rates[-4:] == pytest.approx([3e-4, 9e-4, 3e-3, 9e-3] if hard else [1e-3, 3e-3, 1e-2, 3e-2])  # of SAM
    swept = replace(CLAIMS["claims-cb-sparsity"], data="there", rates=(("sam@0.02", 0.5), ("sam", 0.25))).study("s")
    assert [algorithm.name for algorithm in swept.algorithms].count("full") == 1
    p = [algorithm.asked_sparsity for algorithm in swept.algorithms if algorithm.name == "random"]
    assert len({*p, 1.0}) == 7  # with full tuning
    rates = [mine.learning_rate for mine in swept.algorithms if isinstance(mine, FineTuning) and mine.name == "sam"]
    assert rates == [0.25, 0.25, 0.25, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run paper --n 20", "run paper has no --n: --n belongs to --problem"),
        ("run paper --estimator sampled", "run paper has no --estimator: --estimator belongs to --problem"),
        ("run paper --sparsities 0.1", "run paper has no --sparsities"),
        ("run paper --removed 0.2", "--removed belongs to --problem and the studies paper-perturbation, paper-quick-perturbation"),
        ("run paper-sparsity --add fisher", "run paper-sparsity has no --add"),
        ("run paper --add sam", "study 'paper' has sam with the same settings twice"),
        ("run paper-quick --patience 3", "--patience belongs to --evaluate-every, which is 0"),
        ("run paper --tolerance 0.1", "run paper has no --tolerance"),
        ("run digits --tasks cb", "--tasks belongs to the studies paper, paper-perturbation"),
        ("run paper --problem digits --selectors full", "study 'paper' has its own problem"),
        ("run paper --tasks mnli", "unknown task 'mnli'"),
        ("run paper --task cb", "run paper has no --task: --task belongs to --problem; did you mean --tasks?"),
        ("run paper --rates lora", "'lora' is not of the form NAME=VALUE"),
        ("loo --selector full --patience 3", "--patience and --least-steps belong to --evaluate-every"),
    ],
)
def test_a_senseless_request_says_so(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err


def test_perturbed_training_sets_are_drawn_by_the_seed_and_pools_are_not(tasks: tuple[str, str]) -> None:
    def texts(**settings: object) -> list[str]:
        problem = problems.load(f"{tasks[0]}/cb", model=tasks[1], **settings)
        assert problem.shown is not None
        return [str(one) for one in problem.shown]

    whole = texts()
    assert len(whole) == 40
    removed = [texts(removed=0.1, seed=seed) for seed in (0, 1, 0)]
    assert [len(one) for one in removed] == [36] * 3
    assert removed[0] == removed[2] != removed[1]
    assert set(removed[0]) <= set(whole)
    pools = [texts(pool=25, seed=seed) for seed in (0, 1)]
    assert sorted(pools[0]) == sorted(pools[1])
    assert len(pools[0]) == 25
    assert sorted(texts(pool=25, split_seed=1)) != sorted(pools[0])
    assert len(texts(pool=25, removed=0.2)) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": 41}, r"pool = 41: use a whole number from 2 to 40 \(the training split has 40 examples\)"),
        ({"pool": 1}, "pool = 1"),
        ({"removed": 1.0}, r"removed = 1\.0 is outside \[0, 1\)"),
        ({"removed": 0.1, "n": 20}, "removed = 0.1 and n = 20: give one of them"),
        ({"removed": -0.1}, "removed = -0.1"),
    ],
)
def test_impossible_training_sets_are_refused(settings: dict[str, object], message: str, tasks: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=message):
        problems.load(f"{tasks[0]}/cb", model=tasks[1], **settings)


def test_the_start_of_the_head_is_for_tasks_of_numbers() -> None:
    for bias in (2, 2.0):
        settings = Protocol(tasks=("stsb",), initial_bias=bias).study("mine").problem_settings
        assert (settings["initial_bias"], type(settings["initial_bias"])) == (2.0, float)
    assert "initial_bias" not in Protocol().study("mine").problem_settings
    with pytest.raises(UsageError, match="initial_bias = 2 is for labels that are numbers, and cb has classes: leave it out"):
        Protocol(tasks=("stsb", "cb"), initial_bias=2)
    with pytest.raises(UsageError, match="initial_bias = nan"):
        Protocol(tasks=("stsb",), initial_bias=float("nan"))
