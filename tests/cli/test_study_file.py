"""Studies that are written down in a file: what they become, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stability import UsageError
from stability.cli.commands import main
from stability.cli.run import asked
from stability.cli.study_file import read, reference
from stability.leave_one_out.estimators import Assisted, Sampled
from stability.leave_one_out.predictors import Linearised
from stability.selectors import SAM, FullTuning, LoRA
from stability.studies.identity import key
from stability.studies.results import StudyResults
from stability.studies.study import Study
from stability.training import FineTuning, Minimisation
from stability.training.stopping import EarlyStopping
from tests import tiny

WHOLE = """
problem = "digits"
seeds = 2
delta = 0.05

[problem_settings]
n = 20

[[algorithms]]
selector = ["full", {name = "sam", sparsity = [0.02, 0.2], scope = "tensor"}]
steps = 3
batch_size = 5

[[algorithms]]
kind = "Minimisation"
selector = "full"
ridge = 0.1
max_steps = 7

[[algorithms]]
selector = {name = "lora", rank = 2}
learning_rate = 1
betas = [0.8, 0.99]
early_stopping = {patience = 3}

[estimator]
kind = "assisted"
retrainings = 4
predictor = {kind = "linearised", checkpoints = 2}
"""

SMALL = 'problem = "digits"\nseeds = 1\n[[algorithms]]\nselector = "full"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_the_study_that_python_would(tmp_path: Path) -> None:
    tuned = [FineTuning(mine, steps=3, batch_size=5) for mine in (FullTuning(), SAM(0.02, "tensor"), SAM(0.2, "tensor"))]
    wanted = Study(
        "mine",
        "digits",
        (
            *tuned,
            Minimisation(FullTuning(), ridge=0.1, max_steps=7),
            FineTuning(LoRA(rank=2), learning_rate=1, betas=(0.8, 0.99), early_stopping=EarlyStopping(patience=3)),
        ),
        (0, 1),
        problem_settings={"n": 20},
        check_replicas=None,
        delta=0.05,
        estimator=Assisted(4, predictor=Linearised(2)),
    )
    assert read(written(tmp_path, WHOLE)) == wanted


def test_a_file_is_run_and_its_options_are_those_of_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = SMALL.replace("seeds = 1", "seeds = [3]\nproblem_settings.n = 20\nestimator = 'exact'") + "steps = 2"
    path = written(tmp_path, text)
    assert main(["run", path.name, "--workers", "1", "--device", "cpu"]) == 0
    assert "results: runs/mine.sqlite" in capsys.readouterr().out
    frame = StudyResults.read("runs/mine.sqlite").table
    assert list(frame["seed"]) == [3]
    assert list(frame["retrainings"]) == [20]
    assert main(["run", path.name, "--steps", "3"]) == 2
    assert "run mine.toml has no --steps: --steps belongs to --problem" in capsys.readouterr().err


def test_a_list_of_learning_rates_stands_for_each_of_them(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text('problem = "digits"\nseeds = 1\n[[algorithms]]\nselector = ["full", "bitfit"]\nlearning_rate = [0.001, 0.01]\n')
    rates = [(one.name, one.learning_rate) for one in read(path).algorithms if isinstance(one, FineTuning)]
    assert rates == [("full", 0.001), ("full", 0.01), ("bitfit", 0.001), ("bitfit", 0.01)]
    for rate, message in (("[]", "learning_rate = \\[\\]: give at least one"), ('["a"]', "learning_rate = 'a'")):
        path.write_text(f'problem = "digits"\nseeds = 1\n[[algorithms]]\nselector = "full"\nlearning_rate = {rate}\n')
        with pytest.raises(UsageError, match=message):
            read(path)


def test_texts_have_their_own_defaults(tmp_path: Path) -> None:
    tiny.lines(tmp_path / "texts", train=tiny.rows(20, 0), test=tiny.rows(8, 1))
    model = tiny.write_model(tmp_path / "bert")
    text = f"""
    name = "other"
    problem = ["{tmp_path / "texts"}"]
    seeds = 1
    problem_settings = {{model = "{model}"}}
    estimator = {{kind = "sampled", tolerance = 0.2}}
    algorithms = [{{selector = "full", steps = 9}}]
    """
    found = asked([str(written(tmp_path, text))])
    assert found is not None
    (algorithm,) = found.study.algorithms
    assert isinstance(algorithm, FineTuning)
    assert (found.study.name, found.study.estimator) == ("other", Sampled(tolerance=0.2))
    assert (algorithm.steps, algorithm.batch_size, algorithm.schedule) == (9, 16, "linear")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problem =", "is not a TOML file"),
        (SMALL.replace("seeds", "sedes"), "there is no sedes: did you mean seeds?"),
        (SMALL + "stesp = 3", "there is no algorithms.stesp: did you mean steps?"),
        (SMALL + "early_stopping = {patiense = 3}", "there is no algorithms.early_stopping.patiense: did you mean patience?"),
        (SMALL + "[problem_settings]\nm = 3", "there is no problem_settings.m: "),
        (SMALL + "[problem_settings]\nn = 'x'", "problem_settings.n = 'x': use a whole number"),
        (SMALL + "[estimator]\nretraining = 3", "there is no estimator.retraining: did you mean retrainings?"),
        (
            SMALL + "[estimator]\nkind = 'guessed'",
            "unknown estimator.kind 'guessed': use auto, exact, sampled, assisted or approximate",
        ),
        (SMALL + "[estimator]\nkind = 'exact'\npredictor = 'one-step'", "exact has no predictor"),
        (SMALL + "[estimator]\npredictor = {checkpoints = 'all'}", "estimator.predictor.checkpoints = 'all': use a whole number"),
        (SMALL + "steps = 'many'", "algorithms.steps = 'many': use a whole number"),
        (SMALL + "steps = 2.5", "algorithms.steps = 2.5: use a whole number"),
        (SMALL + "steps = true", "algorithms.steps = True: use a whole number"),
        (SMALL + "steps = 0", "steps = 0"),
        (SMALL + "schedule = 'cosine'", "algorithms.schedule = 'cosine': use constant or linear"),
        (SMALL + "ridge = 'own'", "algorithms.ridge = 'own': use a number or paper"),
        (SMALL + "betas = 0.9", "algorithms.betas = 0.9: use a list"),
        (SMALL + "dropout = 1", "algorithms.dropout = 1: use true or false"),
        (SMALL + "kind = 'Adam'", "unknown algorithms.kind 'Adam': use FineTuning or Minimisation"),
        (SMALL.replace("seeds = 1", "seeds = true"), "seeds = True: use a list"),
        (SMALL.replace("seeds = 1", "seeds = ['a']"), "seeds = ['a']: use a list"),
        (SMALL.replace("seeds = 1", ""), "seeds is missing"),
        (SMALL.replace('selector = "full"', ""), "algorithms.selector is missing"),
        (SMALL.replace('"full"', "3"), "algorithms.selector = 3: use a name, or a table with a name"),
        (SMALL.replace('"full"', '"sam"'), "'sam' needs its sparsity"),
        (SMALL.replace('"full"', '{name = "lora", width = 3}'), "selector 'lora' has no width"),
        ('problem = "digits"\nseeds = 1', "there is no [[algorithms]]"),
        (SMALL.replace("digits", "letters"), "unknown problem 'letters'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, text)
    assert main(["run", str(path)]) == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert message in told


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"there is no file absent\.toml"):
        read(Path("absent.toml"))


def test_a_whole_number_is_a_real_one_where_that_is_asked_for(tmp_path: Path) -> None:
    """0 and 0.0 are one setting: the file goes on with the same store."""
    made = [read(written(tmp_path, f"{SMALL}weight_decay = {value}")) for value in ("0", "0.0")]
    assert key(made[0].identity()) == key(made[1].identity())


def test_the_file_of_the_documentation_is_read_and_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "docs" / "examples" / "study.toml"
    study = read(path)
    assert (study.name, study.seeds, study.check_replicas, study.estimator) == ("study", (0, 1, 2), None, Assisted(8))
    assert [(one.name, one.asked_sparsity) for one in study.algorithms] == [
        ("full", None), ("sam", 0.01), ("sam", 0.1), ("random", 0.01), ("random", 0.1), ("lora", None),
    ]  # fmt: skip
    quick = written(tmp_path, path.read_text(encoding="utf-8").replace("steps = 50", "steps = 2").replace("seeds = 3", "seeds = 1"))
    assert main(["run", str(quick), "--plan", "--workers", "1", "--device", "cpu", "--store", str(tmp_path / "none.sqlite")]) == 0
    assert "6 cells" in capsys.readouterr().out
    assert not (tmp_path / "none.sqlite").exists()


def test_every_field_of_a_file_is_described() -> None:
    """A field without a description has none to print, and fails; and what the file reads is what is described."""
    text = reference()
    sections = dict(part.split("\n\n", 1) for part in text.removeprefix("#").split("\n\n#"))
    assert len(sections) >= 25
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    assert not [row for row in rows if len(row.rsplit(" | ", 1)[1].removesuffix(" |")) < 3]
    described = {row.split("`")[1] for row in rows}
    for name in ("seeds", "patience", "betas", "gradient_tolerance", "rank", "retrainings", "checkpoints", "label_type", "rotated"):
        assert name in described
    assert "selector" not in described
