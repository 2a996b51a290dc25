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
    for line in (": one setting of each method", "-sparsity: methods at several p", "-perturbation: a part of S is left out"):
        assert re.search(rf"^claims-stsb{line}$", out, re.MULTILINE)
    plain = " ".join(out.split())
    for one in answers(map(StudyResults.read, STORES)):
        assert " ".join(str(one).split()) in plain
    assert "not the paper's" in out  # the studies' own note


def test_json_has_the_same_as_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *map(str, STORES), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    results = [*map(StudyResults.read, STORES)]
    assert [one["verdict"] for one in told["answers"]] == [str(one.verdict) for one in answers(results)]
    assert told["answers"][2]["table"][0]["effect"] == pytest.approx(answers(results)[2].table["effect"][0])
    assert [one["method"] for one in told["learned"]] == learned(results[0])["method"].tolist()


def test_searches_alone_say_that_there_is_nothing_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(FIGURES / "claims" / "claims-stsb-rates.sqlite")]) == 0
    out = capsys.readouterr().out
    assert "claims-stsb-rates: several learning rates" in out
    assert "no study has one setting of each method yet" in out
    assert out.count("Not measured.") == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there are no results to put the claims to: give stores, such as runs/claims-cb*.sqlite"),
        ([str(STORES[0])] * 2, "stsb is in two studies with one setting of each method, 'claims-stsb' and 'claims-stsb': leave one"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_store_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(tmp_path / "none.sqlite")]) != 0
    assert "none.sqlite" in capsys.readouterr().err
