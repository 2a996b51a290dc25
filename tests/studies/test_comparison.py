"""Methods beside each other: paired differences against an independent computation, what is resolved, and the command."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stability import FineTuning, Minimisation, StudyResults, UsageError
from stability.cli.commands import main
from stability.leave_one_out.estimators import Estimator, Exact, Sampled
from stability.plotting import NothingToDrawError
from stability.selectors import SAM, BitFit, LoRA, Random
from stability.studies.comparison import Comparison, compare, holm, labels, study_of
from stability.studies.identity import key


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
    assert less[0].startswith("lora rank=4 is less stable than full, by 0.51 (0.49 to 0.53) nats, which is ")
    assert "est accuracy" in less[0]
    more = planted(three, [-0.50, -0.51, -0.52]).sentences()
    assert more[0].startswith("lora rank=4 is more stable than full, by 0.51 (0.49 to 0.53) nats, which is ")
    open_ = planted(three, [0.5, -0.5, 0.1]).sentences()
    assert open_[0].startswith(
        "The stability of lora rank=4 does not differ significantly from that of full: +0.0 (−1.2 to +1.3) nats."
    )
    assert open_[-1] == "Intervals are of 95 %, paired over 3 seeds."
    two = planted(three, [0.50, 0.51, 0.52], seeds=2)
    assert two.sentences() == ["Two seeds give no interval: use 3 or more to tell methods apart."]
    assert np.isnan(two.table()["high"]).all()
    assert np.isnan(two.differences()["high"]).all()
    assert two.table()["than_first"].tolist() == ["", ""]
    with pytest.raises(NothingToDrawError, match="no two methods have a difference with an interval"):
        two.plot()


def test_holms_correction_is_that_of_a_plain_loop() -> None:
    p = [0.04, 0.001, math.nan, 0.03, 0.2]
    left, most, expected = 4, 0.0, dict.fromkeys(range(5), math.nan)
    for place in (1, 3, 0, 4):
        most = max(most, min(1.0, left * p[place]))
        expected[place], left = most, left - 1
    np.testing.assert_allclose(holm(p), list(expected.values()))
    assert holm([]).tolist() == []


def test_what_one_comparison_would_tell_apart_several_need_not(three: Comparison) -> None:
    """An interval on one side of 0 is marked as resolved alone, and not among three of which two tell nothing."""
    by = [0.50, 0.60, 0.90]
    alone = planted(three, by)
    (row,) = alone.differences().to_dict("records")
    expected = stats.ttest_1samp(by, 0).pvalue
    assert (row["p"], row["resolved"], row["by"]) == (pytest.approx(expected), True, "seeds")
    assert alone.table()["than_first"].tolist() == ["", "less stable"]
    assert 0.01 < expected < 0.05
    names, table = {"second": "second", "third": "third"}, alone.results.table
    copies = [table[table["method"] == "full"].assign(algorithm=name, method=name) for name in names]
    for copy, shift in zip(copies, ([0.1, -0.1, 0.05], [-0.1, 0.1, 0.0]), strict=True):
        copy["stability"] = copy["stability"].astype(float) + shift
    results = dataclasses.replace(alone.results, table=pd.concat([table, *copies], ignore_index=True))
    several = dataclasses.replace(alone, results=results, labels={**alone.labels, **names})
    row = several.differences().to_dict("records")[0]
    assert row["p"] == pytest.approx(3 * expected)
    assert row["low"] > 0
    assert not row["resolved"]
    assert several.table()["than_first"].tolist() == ["", *["not significant"] * 3]
    assert several.sentences()[0].startswith("The stability of lora rank=4 does not differ significantly from that of full: +")
    assert several.sentences()[-1].endswith("Significance is at 5 %, after Holm's correction for 3 comparisons.")
    figure = several.plot()
    faces = [line.get_markerfacecolor() for ax in figure.axes[:1] for line in ax.lines if line.get_gid() == "values"]
    assert faces == ["white"] * 3
    assert [line.get_markerfacecolor() != "white" for line in alone.plot().axes[0].lines if line.get_gid() == "values"] == [True]


@pytest.fixture(scope="module")
def one() -> Callable[[Estimator], Comparison]:
    def compared(estimator: Estimator) -> Comparison:
        how = {"problem_settings": {"n": 12}, "steps": 3, "workers": 1, "device": "cpu"}
        return compare("digits", ["full", "bitfit"], seeds=1, estimator=estimator, **how)  # type: ignore[arg-type]

    return compared


def test_one_seed_is_exact_where_every_example_was_left_out_of_both(one: Callable[[Estimator], Comparison]) -> None:
    found = one(Exact())
    full, bitfit = found.results.table["stability"]
    (row,) = found.differences().to_dict("records")
    assert row["by"] == "exact"
    assert row["difference"] == row["low"] == row["high"] == pytest.approx(bitfit - full)
    assert row["resolved"]
    assert math.isnan(row["p"])
    assert found.sentences()[0].startswith("bitfit is more stable than full, by exactly 0.")
    assert found.sentences()[1].startswith("That is of one training set and seed")
    assert found.table()["than_first"].tolist() == ["", "more stable"]
    assert found.differences("test_loss")["low"].isna().all()
    table = found.results.table.assign(noise_floor=1.0)
    floored = dataclasses.replace(found, results=dataclasses.replace(found.results, table=table))
    assert not floored.differences()["resolved"].any()
    assert "differs by no more than rounding does" in floored.sentences()[0]


def test_one_seed_is_open_where_a_replica_failed(one: Callable[[Estimator], Comparison]) -> None:
    found = one(Exact())
    cells = found.results.table
    low, high = cells[["stability_low", "stability_high"]].iloc[0]
    table = cells.assign(failed_replicas=[0, 1], stability_low=[low, 0.0], stability_high=[high, math.nan])
    (row,) = dataclasses.replace(found, results=dataclasses.replace(found.results, table=table)).differences().to_dict("records")
    assert (row["by"], row["resolved"], row["high"]) == ("examples", False, math.inf)


def test_one_seed_is_compared_by_both_intervals(one: Callable[[Estimator], Comparison]) -> None:
    found = one(Sampled(5))
    cells = found.results.table
    (full, bitfit), ((low, high), (low_, high_)) = cells["stability"], cells[["stability_low", "stability_high"]].to_numpy()
    expected = bitfit - full
    ends = expected - math.hypot(bitfit - low_, high - full), expected + math.hypot(high_ - bitfit, full - low)
    (row,) = found.differences().to_dict("records")
    assert (row["by"], row["low"], row["high"]) == ("examples", pytest.approx(ends[0]), pytest.approx(ends[1]))
    reach = expected - ends[0] if expected > 0 else ends[1] - expected
    assert row["p"] == pytest.approx(2 * stats.t.sf(stats.t.ppf(0.975, 4) * abs(expected) / reach, 4), rel=1e-9)
    assert "Intervals are of 95 %, over the examples that are left out." in found.sentences()


def test_it_is_shown_in_terminal_and_notebook(three: Comparison) -> None:
    wide, narrow = three.text(200).splitlines(), three.text(60).splitlines()
    assert wide[0].split()[:3] == ["method", "p", "trainable"]
    assert narrow[0].split() == ["method", "full", "lora", "rank=4"]
    assert max(map(len, narrow[: narrow.index("")])) <= 60
    assert "\n" not in repr(three)
    assert "<td>lora rank=4</td>" in three._repr_html_()


def test_the_command_keeps_what_is_finished_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "compared.sqlite"
    command = "compare bitfit random sparsity=0.1 --n 12 --steps 2 --estimator sampled --retrainings 2 --seeds 1"
    command += " --device cpu --workers 1 --store"
    assert main([*command.split(), str(store), "--figures", str(tmp_path / "figures")]) == 0
    text = capsys.readouterr().out
    assert "comparison_digits_against_first.png" in text
    assert (tmp_path / "figures" / "comparison_digits_against_first.pdf").exists()
    assert "The stability of random does not differ significantly from that of bitfit" in text
    assert "That is of one training set and seed: use 3 seeds or more" in " ".join(text.split())
    seconds = StudyResults.read(store).table["seconds"].tolist()
    assert main([*command.split(), str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in told["methods"]] == ["bitfit", "random"]
    (row,) = told["differences"]["stability"]
    assert (row["by"], row["resolved"], row["seeds"]) == ("examples", False, 1)
    assert told["differences"]["test_loss"][0]["high"] is None
    assert StudyResults.read(store).table["seconds"].tolist() == seconds  # nothing was computed again


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("compare", "there is nothing to compare: give methods"),
        ("compare full --rank 4", "compare has no --rank: it is a setting of lora and lift, written after the method: lora rank=4"),
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
