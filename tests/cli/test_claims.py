"""``stability claims``: stores in, answers out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stability.cli.commands import main
from stability.studies import StudyResults, answers, learned

FIGURES = Path(__file__).parents[2] / "figures"
STORES = [FIGURES / "claims" / f"claims-stsb{part}.sqlite" for part in ("", "-sparsity", "-perturbation")]


def test_it_prints_what_each_study_is_what_learned_and_each_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *map(str, STORES)]) == 0
    out = capsys.readouterr().out
    for line in (": one setting of each method", "-sparsity: methods at several p", "-perturbation: perturbed training sets"):
        assert re.search(rf"^claims-stsb{line}$", out, re.MULTILINE)
    plain = " ".join(out.split())
    for one in answers(map(StudyResults.read, STORES)):
        assert " ".join(str(one).split()) in plain
        assert re.search(rf"^ *{one.verdict} +{one.supports} +{one.denies} +{one.of}  {re.escape(one.claim)}$", out, re.MULTILINE)
    assert re.search(r"^stsb +full +1 .* yes$", out, re.MULTILINE)
    assert "not the paper's" in out  # the studies' own note


def test_json_has_the_same_as_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *map(str, STORES), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    results = [*map(StudyResults.read, STORES)]
    assert [one["verdict"] for one in told["answers"]] == [str(one.verdict) for one in answers(results)]
    assert told["answers"][2]["table"][0]["effect"] == pytest.approx(answers(results)[2].table["effect"][0])
    assert [one["method"] for one in told["learned"]] == learned(results[0])["method"].tolist()
    assert [(one["store"], one["kind"]) for one in told["studies"]] == [
        (str(STORES[0]), "one setting of each method"),
        (str(STORES[1]), "methods at several p"),
        (str(STORES[2]), "perturbed training sets"),
    ]


def test_searches_alone_say_that_there_is_nothing_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(FIGURES / "claims" / "claims-stsb-rates.sqlite")]) == 0
    out = capsys.readouterr().out
    assert "claims-stsb-rates: a search for learning rates" in out
    assert "No study with one setting of each method has a finished cell." in out
    assert out.count("Not measured.") == 10


def test_a_store_that_is_given_twice_is_read_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(STORES[0]), str(STORES[0])]) == 0
    assert capsys.readouterr().out.count(": one setting of each method") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there are no results to put the claims to: give stores, such as runs/claims-cb*.sqlite"),
        (
            [str(FIGURES / "paper-quick.sqlite"), str(FIGURES / "paper-quick-bounds.sqlite")],
            f"two studies of one setting of each method have cb: leave out {FIGURES / 'paper-quick.sqlite'} or "
            f"{FIGURES / 'paper-quick-bounds.sqlite'}",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_store_that_is_missing_and_a_folder_of_stores_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(FIGURES / "claims")]) == 1
    assert f"{FIGURES / 'claims'} is a folder with stores in it, and none itself: give a file, such as" in capsys.readouterr().err
    assert main(["claims", str(tmp_path / "none.sqlite")]) != 0
    assert "none.sqlite" in capsys.readouterr().err
