"""Methods beside each other: paired differences against an independent computation, what is resolved, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stability import FineTuning, Minimisation, StudyResults, UsageError
from stability.cli.commands import main
from stability.leave_one_out.estimators import Sampled
from stability.selectors import SAM, BitFit, LoRA, Random
from stability.studies.comparison import Comparison, compare, labels, study_of
from stability.studies.store import key


@pytest.fixture(scope="module")
def three() -> Comparison:
    how = {"problem_settings": {"n": 20}, "steps": 3, "workers": 1, "device": "cpu"}
    return compare("digits", ["full", ("lora", {"rank": 4})], seeds=3, estimator=Sampled(3), **how)  # type: ignore[arg-type]


def test_methods_p_and_options_make_one_study() -> None:
    own = Minimisation(BitFit(), ridge=0.1)
    swept = ("random", {"sparsity": [0.1, 0.2]})
    study = study_of("digits", ["full", ("lora", {"rank": 4}), SAM(0.05), "mixout-reset", swept, own], [0.01, 0.3], 2, steps=7)
    made = [(one.name, one.asked_sparsity) for one in study.algorithms]
    assert made == [
        ("full", None),
        ("lora", None),
        ("sam", 0.05),
        ("mixout-reset", 0.01),
        ("mixout-reset", 0.3),
        ("random", 0.1),
        ("random", 0.2),
        ("bitfit", None),
    ]
    assert [one.selector for one in study.algorithms][1] == LoRA(rank=4)
    assert study.algorithms[-1] == own
    assert {one.steps for one in study.algorithms if isinstance(one, FineTuning)} == {7}
    assert (study.seeds, study.check_replicas) == ((0, 1), None)


def test_labels_tell_methods_of_one_name_apart() -> None:
    algorithms = [FineTuning(LoRA(rank=4)), FineTuning(LoRA(rank=8)), FineTuning(BitFit(), steps=3), FineTuning(BitFit(), steps=5)]
    found = labels(study_of("digits", algorithms))
    assert list(found.values()) == ["lora rank=4", "lora rank=8", "bitfit steps=3", "bitfit steps=5"]
    study = study_of("digits", algorithms)
    assert list(found) == [key(one.settings())[:12] for one in study.algorithms]


def test_differences_are_paired_over_seeds(three: Comparison) -> None:
    cells = three.results.table
    table = {name: cells[cells["method"] == name].sort_values("seed")["stability"].to_numpy(float) for name in ("full", "lora")}
    expected = table["lora"] - table["full"]
    (found,) = three.differences().to_dict("records")
    assert found["difference"] == pytest.approx(expected.mean())
    half = stats.t.ppf(0.975, 2) * expected.std(ddof=1) / np.sqrt(3)
    assert (found["low"], found["high"]) == pytest.approx((expected.mean() - half, expected.mean() + half))
    assert found["seeds"] == 3
    rows = three.table()
    assert rows["method"].tolist() == ["full", "lora rank=4"]
    assert rows["stability"].tolist() == pytest.approx([table["full"].mean(), table["lora"].mean()])
    assert rows["trainable"].tolist() == [26432 + 165, 1536 + 165]


def planted(comparison: Comparison, by: list[float], seeds: int = 3) -> Comparison:
    """The comparison with the second method's stability that of the first and so much more."""
    table = comparison.results.table.copy()
    first = table[table["method"] == "full"].set_index("seed")["stability"]
    rows = table["method"] == "lora"
    table.loc[rows, "stability"] = [first[seed] + more for seed, more in zip(table.loc[rows, "seed"], by, strict=True)]
    results = dataclasses.replace(comparison.results, table=table[table["seed"] < seeds])
    return dataclasses.replace(comparison, results=results)


def test_sentences_say_what_is_resolved_and_what_is_not(three: Comparison) -> None:
    less = planted(three, [0.50, 0.51, 0.52]).sentences()
    assert less[0].startswith("lora rank=4 is less stable than full, by 0.51 (0.49 to 0.53) nats.")
    assert "est accuracy" in less[0]
    more = planted(three, [-0.50, -0.51, -0.52]).sentences()
    assert more[0].startswith("lora rank=4 is more stable than full, by 0.51 (0.49 to 0.53) nats.")
    open_ = planted(three, [0.5, -0.5, 0.1]).sentences()
    assert open_[0].startswith("The stability of lora rank=4 and of full is not told apart: +0.0 (−1.2 to +1.3) nats.")
    assert open_[-1] == "Intervals are of 95 %, paired over 3 seeds."
    two = planted(three, [0.50, 0.51, 0.52], seeds=2)
    assert two.sentences() == ["Two seeds give no interval: use 3 or more to tell methods apart."]
    assert np.isnan(two.table()["high"]).all()
    assert np.isnan(two.differences()["high"]).all()


def test_it_is_shown_in_terminal_and_notebook(three: Comparison) -> None:
    wide, narrow = three.text(200).splitlines(), three.text(60).splitlines()
    assert wide[0].split()[:3] == ["method", "p", "trainable"]
    assert narrow[0].split() == ["method", "full", "lora", "rank=4"]
    assert max(map(len, narrow[: narrow.index("")])) <= 60
    assert "\n" not in repr(three)
    assert "<td>lora rank=4</td>" in three._repr_html_()


def test_the_command_keeps_what_is_finished_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "compared.sqlite"
    command = "compare bitfit random sparsity=0.1 --n 12 --steps 2 --retrainings 2 --seeds 1 --device cpu --workers 1 --store"
    assert main([*command.split(), str(store)]) == 0
    text = capsys.readouterr().out
    assert "One seed gives no interval: use 3 or more to tell methods apart." in text
    seconds = StudyResults.read(store).table["seconds"].tolist()
    assert main([*command.split(), str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in told["methods"]] == ["bitfit", "random"]
    assert told["differences"]["stability"][0]["high"] is None
    assert StudyResults.read(store).table["seconds"].tolist() == seconds  # nothing was computed again


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("compare", "there is nothing to compare: give methods"),
        ("compare full --rank 4", "compare has no --rank: it is a setting of lora, written after the method: lora rank=4"),
        ("compare full --selectors lora", "methods come without an option, their settings after them"),
        ("compare rank=4", "'rank=4' is a setting and stands before any method"),
        ("compare sam", "needs its sparsity p"),
        ("compare full --sparsities 0.1", "no method here takes one of these sparsities: full"),
        ("compare full full", "the same settings twice"),
        ("run x --problem digits --selectors sam --sparsity 0.1", "run NAME has no --sparsity: did you mean --sparsities?"),
        ("run x --problem digits --methods sam", "run NAME has no --methods: did you mean --selectors?"),
        ("run x --problem digits --selectors full --option rank=4", "selector 'full' has no rank: leave it out; there is none"),
        ("run x --problem digits --selectors full bitfit --option rank=4", "no method here has a setting rank: leave it out"),
        ("run digits-short --add random", "needs its sparsity p, the fraction of parameters that may change, e.g. sparsity=0.05"),
        ("run paper-quick --add lora rank=4", "'rank=4' is a setting, and the methods here take none of their own"),
        ("loo lora", "the method is named after --selector: loo --selector lora"),
        ("loo --selector peft:LoraConfig rank=4", "has no rank: leave it out; did you mean r or "),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err


def test_senseless_comparisons_are_refused() -> None:
    nothing: list[str] = []
    for methods in (nothing, "full"):
        with pytest.raises(UsageError, match="give a list of methods"):
            compare("digits", methods)
    with pytest.raises(UsageError, match="a name, .name, settings., a selector or an algorithm"):
        compare("digits", [3])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="seeds = 0"):
        compare("digits", [Random(0.1)], seeds=0)
