"""The claims put to results whose answers are known: effects, intervals, verdicts, what is missing, and what did not learn."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stability import FineTuning, UsageError
from stability.selectors import SAM, ChildPruning, DiffPruning, FullTuning, MagPruning, Random, Selector
from stability.studies import Study, StudyResults, Verdict, answers, cells_to_compute, learned
from stability.studies.claims import Kind, kind_of, not_learned, within_rounding
from stability.studies.effects import inner_advantages
from stability.studies.identity import key
from stability.studies.results import CellStatus

ROOT = Path(__file__).parents[2]
P = 0.05
METHODS = (FullTuning(), Random(P), MagPruning(P), SAM(P), ChildPruning(P), DiffPruning(P, burn_in=2))


def results(
    values: dict[str, dict[str, Any]], *, seeds: int = 4, lacking: int = 0, sparsities: tuple[float, ...] = (P,)
) -> StudyResults:
    """Of a study with these values by the method's name; ``name@p`` at one of several p. A list has one value for each seed."""
    several: list[Selector] = [METHODS[0]]
    several += [kind(p) for kind in (Random, MagPruning, SAM) for p in sparsities] if len(sparsities) > 1 else METHODS[1:]
    algorithms = tuple(FineTuning(selector, steps=4, learning_rate=1e-3) for selector in several)
    how: dict[str, Any] = {"problem_settings": {"n": 20}, "check_replicas": None}
    study = Study("made", "digits", algorithms, tuple(range(seeds)), **how)
    usual: dict[str, Any] = {
        "stability": 1.0,
        "test_metric": 0.8,
        "test_constant": 0.5,
        "gap": 0.1,
        "train_loss": 0.1,
        "test_loss": 0.2,
    }
    usual |= {"hypothesis_stability": 0.1, "train_metric": 1.0, "noise_floor": 0.0, "distance": 1.0, "loss_bound": None}
    usual |= {"gradient_norm": None, "tunable": 1, "total": 1, "head": 0, "seconds": 1.0, "retrainings": 5}
    rows = []
    for seed in study.seeds:
        for algorithm in study.algorithms:
            p = algorithm.asked_sparsity
            own = values.get(algorithm.name, {}) | values.get(f"{algorithm.name}@{p}", {})
            own = {name: value[seed] if isinstance(value, list) else value for name, value in own.items()}
            row: dict[str, Any] = {"task": "digits", "method": algorithm.name, "seed": seed}
            row["algorithm"] = key(algorithm.settings())[:12]
            row |= {"status": CellStatus.OK, "sparsity": 1.0 if p is None else p, "failed_replicas": 0} | usual | own
            row |= {"stability_low": 0.8 * row["stability"], "stability_high": 1.25 * row["stability"]}
            rows.append(row)
    table = pd.DataFrame(rows[: len(rows) - lacking])
    for bound in ("theorem_1", "theorem_1_sharp", "hard_mask", "hard_mask_sharp", "first_order", "theorem_2", "theorem_2_measured"):
        table[bound] = table[f"{bound}_state"] = None
    table["uniform_measured"] = table["uniform_measured_state"] = None
    named = {key(one.settings())[:12]: {**one.settings(), "method": one.name} for one in study.algorithms}
    of: dict[str, Any] = {"study": "made", "identity": study.identity(), "tasks": ("digits",), "algorithms": named}
    return StudyResults(table=table, to_compute=lacking, **of)


def answer(start: str, main: StudyResults, swept: StudyResults | None = None) -> Any:
    (found,) = [one for one in answers([main] if swept is None else [main, swept]) if one.claim.startswith(start)]
    return found


def test_the_effect_is_the_ratio_of_stabilities_with_student_s_interval_over_seeds() -> None:
    factors = [0.5, 0.55, 0.45, 0.6]
    found = answer("Sparse fine-tuning", results({"sam": {"stability": factors}}))
    row = found.table.set_index("what").loc["sam, p = 0.05"]
    logs = np.log(factors)
    half = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    assert [row["effect"], row["low"], row["high"]] == pytest.approx(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]))
    assert row["clear"] == "for"
    assert row["over"] == "seeds"
    assert len(found.table) == 5  # every sparse method that is there, and not full tuning
    assert found.verdict is Verdict.OPEN  # one of five is clear
    assert found.quantity == "leave-one-out stability, divided by that of full tuning; below 1 is for the claim"


def test_exact_stabilities_differ_or_are_equal() -> None:
    """With one or two seeds, and every retraining made: there is no error, and so no doubt."""
    main = results({name: {"stability": 0.5} for name in ("random", "magnitude", "sam")}, seeds=2)
    for end in ("low", "high"):
        main.table[f"stability_{end}"] = main.table["stability"]
    found = answer("Sparse fine-tuning", main).table.set_index("what")
    assert found.loc["sam, p = 0.05", ["p", "clear"]].tolist() == [0, "for"]
    assert found.loc["diffpruning, p = 0.05", ["p", "clear"]].tolist() == [1, ""]
    main.table.loc[
        (main.table["method"] == "sam") & (main.table["seed"] == 1), ["stability", "stability_low", "stability_high"]
    ] = 3.0
    assert answer("Sparse fine-tuning", main).table.set_index("what").loc["sam, p = 0.05", "p"] == 1  # the seeds disagree


def test_with_two_seeds_the_interval_is_that_of_the_cells() -> None:
    found = answer("Sparse fine-tuning", results({"sam": {"stability": 0.5}}, seeds=2))
    row = found.table.set_index("what").loc["sam, p = 0.05"]
    half = math.log(1.25) * math.sqrt(2 * 2) / 2  # two methods, two seeds, the mean of two
    assert [row["effect"], row["low"], row["high"]] == pytest.approx([0.5, 0.5 * math.exp(-half), 0.5 * math.exp(half)])
    assert row["over"] == "examples"


def jittered(value: float, by: float = 0.01) -> list[float]:
    return [value, value + by, value - by, value + by / 2]


def test_verdicts_follow_the_rule() -> None:
    low, high = {"stability": jittered(0.5)}, {"stability": jittered(2.0)}
    sparse = ("random", "magnitude", "sam", "childpruning", "diffpruning")
    claim = "Sparse fine-tuning"
    assert answer(claim, results(dict.fromkeys(sparse, low))).verdict is Verdict.CONFIRMED
    assert answer(claim, results(dict.fromkeys(sparse, high))).verdict is Verdict.REFUTED
    mixed = answer(claim, results({**dict.fromkeys(sparse[:3], low), **dict.fromkeys(sparse[3:], high)}))
    assert mixed.verdict is Verdict.OPEN
    assert "no number of runs will make it one answer" in mixed.resolve
    assert "3 of 5 comparisons are clear for the claim, 2 against it" in mixed.sentence
    noisy = answer(claim, results({name: {"stability": [0.3, 1.0, 2.0, 1.5]} for name in sparse}))
    assert noisy.verdict is Verdict.OPEN
    assert "times as many seeds are needed" in noisy.resolve


def test_nothing_is_concluded_from_an_unfinished_study() -> None:
    sparse = ("random", "magnitude", "sam", "childpruning", "diffpruning")
    unfinished = results({name: {"stability": jittered(0.5)} for name in sparse}, lacking=2)
    assert cells_to_compute([unfinished]) == ("2 of 24 cells of made",)
    found = answer("Sparse fine-tuning", unfinished)
    assert (found.table["clear"] == "for").sum() >= 3
    assert found.verdict is Verdict.OPEN
    assert "Nothing is concluded while this is missing: 2 of 24 cells of made." in found.sentence
    told = answers([results({name: {"stability": jittered(0.5)} for name in sparse})], missing=["all of another"])
    assert all(one.verdict in (Verdict.OPEN, Verdict.MISSING) for one in told)
    assert all(one.verdict is Verdict.MISSING for one in answers([]))


def test_what_did_not_learn_is_not_compared() -> None:
    stuck = {"stability": jittered(0.01, 0.001), "test_metric": jittered(0.5), "test_constant": 0.5}
    main = results({"random": stuck})
    table = learned([main]).set_index("method")
    assert not table["learned"]["random"]
    assert table["learned"].drop("random").all()
    assert table["than_full"]["random"] == pytest.approx(-0.29875)
    found = answer("Sparse fine-tuning", main)
    assert "random, p = 0.05" not in set(found.table["what"])
    assert not_learned(main) == ["random (p = 0.05) on digits"]
    # Where test performances are compared, what did not learn counts.
    assert "random, p = 0.05" in set(answer("SAM has a better", main).table["what"])


def test_a_stability_that_rounding_makes_is_told() -> None:
    floors = {"stability": [0.5, 0.4, 0.3, 0.2], "noise_floor": [0.1, 0.4, 0.1, 0.3]}
    main = results({"random": floors})
    assert within_rounding(main) == [
        "random (p = 0.05) on digits, seed 1 (0.4, floor 0.4)",
        "random (p = 0.05) on digits, seed 3 (0.2, floor 0.3)",
    ]
    assert within_rounding(results({"random": floors | {"test_metric": jittered(0.5), "test_constant": 0.5}})) == []
    assert within_rounding(results({"random": floors | {"noise_floor": 1e-6}})) == []


def test_sams_advantage_is_in_points_and_paired() -> None:
    sam, other = jittered(0.85), [0.80, 0.81, 0.79, 0.80]
    found = answer("SAM has a better", results({"sam": {"test_metric": sam}, "random": {"test_metric": other}}))
    row = found.table.set_index("what").loc["random, p = 0.05"]
    assert row["effect"] == pytest.approx(100 * (np.array(sam) - np.array(other)).mean())
    p_value = stats.ttest_rel(sam, other).pvalue
    assert row["p"] == pytest.approx(min(1, 2 * p_value), rel=1e-6)  # Holm's, of two


def test_an_inner_p_must_be_better_than_both_ends() -> None:
    ps = (0.01, 0.05, 0.3)
    rising = {f"sam@{p}": {"test_metric": jittered(value)} for p, value in zip(ps, (0.6, 0.7, 0.8), strict=True)}
    peak = rising | {"sam@0.05": {"test_metric": jittered(0.95, 0.011)}}
    flat = {f"{name}@{p}": {"test_metric": jittered(0.8)} for name in ("random", "magnitude") for p in ps}
    full = {"full": {"test_metric": [0.801, 0.799, 0.8, 0.802]}}
    only = results({**flat, **full, **peak}, sparsities=ps)
    found = answer("The best test", results({}), only).table.set_index("what")
    assert found.loc["sam, p = 0.05", "clear"] == "for"
    assert found.loc["sam, p = 0.05", "effect"] == pytest.approx(100 * (0.95275 - 0.8005), abs=0.3)  # full tuning is the nearer end
    assert (answer("The best test", results({}), results({**flat, **full, **rising}, sparsities=ps)).table["clear"] != "for").all()


SHAKEN = {0.01: [0.60, 0.61, 0.62, 0.59], 0.05: [0.70, 0.72, 0.69, 0.71], 0.3: [0.80, 0.79, 0.80, 0.82]}
NOISY, LOW, HIGH = [0.20, 0.95, 0.40, 0.92], [0.65, 0.66, 0.64, 0.66], [0.95, 0.94, 0.95, 0.96]


@pytest.mark.parametrize(
    ("least", "full", "deciding"),
    [(SHAKEN[0.01], LOW, "larger"), (SHAKEN[0.01], HIGH, "full"), (NOISY, HIGH, "full"), (NOISY, LOW, "larger")],
)
def test_an_inner_p_is_better_than_both_ends_or_worse_than_one(least: list[float], full: list[float], deciding: str) -> None:
    """Better at the end with the larger p-value of Student's paired test; or worse at one of two ends, whose p-value is doubled."""
    metric = {f"{name}@{p}": {"test_metric": values} for name in ("random", "magnitude", "sam") for p, values in SHAKEN.items()}
    metric |= {f"{name}@0.01": {"test_metric": least} for name in ("random", "magnitude", "sam")} | {"full": {"test_metric": full}}
    found = pd.DataFrame(inner_advantages([results(metric, sparsities=tuple(SHAKEN))])).set_index("what")
    assert len(found) == 6
    for p in (0.05, 0.3):
        tests = [stats.ttest_rel(SHAKEN[p], end) for end in (least, full)]
        one = max(tests, key=lambda test: test.pvalue) if deciding == "larger" else tests[1]
        row, ends = found.loc[f"random, p = {p:g}"], one.confidence_interval(0.95)
        assert row["p"] == pytest.approx(one.pvalue if deciding == "larger" else min(1, 2 * one.pvalue))
        assert [row["low"], row["high"]] == pytest.approx([100 * ends.low, 100 * ends.high])


def test_the_best_p_is_inner_if_each_method_has_one_and_is_not_if_all_inner_p_are_worse_than_an_end() -> None:
    names = ("random", "magnitude", "sam")
    metric = {f"{name}@{p}": {"test_metric": values} for name in names for p, values in SHAKEN.items()}

    def found(full: list[float], **others: Any) -> Any:
        swept = results({**metric, "full": {"test_metric": full}, **others}, sparsities=tuple(SHAKEN))
        return answer("The best test", results({}), swept)

    middle = [0.76, 0.74, 0.75, 0.76]  # one inner p is better, the other worse: the claim is that there is one
    assert [found(full).verdict for full in (LOW, middle, HIGH)] == [Verdict.CONFIRMED, Verdict.CONFIRMED, Verdict.REFUTED]
    assert "3 of 3 methods on a task are clear for the claim, 0 against it" in found(middle).sentence
    worse = {f"sam@{p}": {"test_metric": [0.3, 0.31, 0.29, 0.3]} for p in (0.05, 0.3)}
    mixed = found(LOW, **worse)  # two of three have a better inner p, and the third has none
    assert (mixed.verdict, mixed.supports, mixed.denies, mixed.of) == (Verdict.OPEN, 2, 1, 3)
    assert "It is so of some methods or tasks and not of others" in mixed.resolve
    assert len(mixed.table) == 6  # of which none is unclear
    unclear = {f"{name}@{p}": {"test_metric": [0.4, 0.9, 0.5, 0.8]} for name in names for p in (0.05, 0.3)}
    assert "times as many seeds are needed" in found(LOW, **unclear).resolve


def test_correlations_are_those_of_ranks() -> None:
    main = StudyResults.read(ROOT / "figures" / "paper-quick.sqlite")
    found = answer("Stable methods have a small gap", main)
    assert found.table["effect"].round(2).tolist() == [0.96]
    assert "the mean change of an example's loss, with its sign, is an estimate of the gap" in found.note
    assert found.note in str(found).splitlines()
    assert answer("The spread over perturbed", main).verdict is Verdict.MISSING


def test_a_correlation_is_judged_by_its_interval() -> None:
    """Methods whose stability and gap have nearly the same order, nearly the opposite one, and none."""
    places, near = np.arange(len(METHODS)) + 1.0, np.array([2, 1, 3, 4, 6, 5.0])
    for gaps, verdict in ((near, Verdict.CONFIRMED), (-near, Verdict.REFUTED), (np.array([1, 5, 3, 2, 6, 4.0]), Verdict.OPEN)):
        values = {one.name: {"stability": place, "gap": gap} for one, place, gap in zip(METHODS, places, gaps, strict=True)}
        found = answer("Stable methods have a small gap", results(values))
        assert found.verdict is verdict
        assert found.table["effect"][0] == pytest.approx(stats.spearmanr(places, gaps).statistic)


def test_the_spread_of_the_perturbed_sets_is_what_is_correlated() -> None:
    """It goes with stability there, and against it in the main study."""

    def spread(sign: int) -> dict[str, dict[str, Any]]:
        widths = {one.name: 0.01 * (4 + sign * place) for place, one in enumerate(METHODS, start=-2)}
        return {
            one.name: {"stability": place, "test_metric": [0.8 - widths[one.name], 0.8 + widths[one.name], 0.8, 0.8]}
            for place, one in enumerate(METHODS, start=1)
        }

    main, with_stability = results(spread(-1)), results(spread(1))
    perturbed = dataclasses.replace(with_stability, identity={**with_stability.identity, "removed": 0.1})
    for order in ([main, perturbed], [perturbed, main]):
        own, other = (
            next(one for one in answers(order) if one.claim.startswith(f"The spread over {of}")) for of in ("seeds", "pert")
        )
        assert own.table["effect"].tolist() == pytest.approx([-1])
        assert other.table["effect"].tolist() == pytest.approx([1])


def test_where_it_is_not_known_what_learned_claims_about_stability_stay_open() -> None:
    names = ("random", "magnitude", "sam", "childpruning", "diffpruning")
    sparse: dict[str, dict[str, Any]] = {name: {"stability": jittered(0.5)} for name in names}
    assert answer("Sparse fine-tuning", results(sparse)).verdict is Verdict.CONFIRMED
    sparse["random"]["test_constant"] = None
    found = answer("Sparse fine-tuning", results(sparse))
    assert (found.verdict, found.supports) == (Verdict.OPEN, 5)
    assert "whether methods learned: random (p = 0.05) on digits, finished seeds: 4. That takes two finished seeds" in found.resolve
    assert "full (p = 1) on digits, finished seeds: 1; and 5 more" in answer("Sparse fine-tuning", results({}, seeds=1)).resolve
    unknown: dict[str, dict[str, Any]] = {"full": {"test_constant": None}}
    unknown |= {name: {"stability": jittered(0.5)} for name in ("childpruning", "diffpruning")}
    assert answer("Projection methods", results(unknown)).verdict is Verdict.REFUTED  # full tuning has no part in it
    assert answer("Sparse fine-tuning", results(unknown)).verdict is Verdict.OPEN


def test_one_task_of_two_studies_is_refused() -> None:
    other = dataclasses.replace(results({}), study="other")
    with pytest.raises(UsageError, match="two studies of one setting of each method have digits: leave out 'made' or 'other'"):
        answers([results({}), other])
    assert answers([results({}), dataclasses.replace(results({}, sparsities=(0.01, P)), study="other")])


def test_one_study_needs_no_list() -> None:
    alone = results({"sam": {"stability": jittered(0.5)}}, lacking=1)
    assert str(answers(alone)[0]) == str(answers([alone])[0])
    assert learned(alone).equals(learned([alone]))
    assert cells_to_compute(alone) == cells_to_compute([alone])


def search(lacking: int = 0, *, measured: int = 0) -> StudyResults:
    """A study of two learning rates, which measures stability with some seeds or none."""
    algorithms = tuple(FineTuning(SAM(P), steps=4, learning_rate=rate) for rate in (1e-3, 1e-2))
    how: dict[str, Any] = {"problem_settings": {"n": 20}, "check_replicas": None, "measured_seeds": measured}
    study = Study("search", "digits", algorithms, (0,), **how)
    named = {key(one.settings())[:12]: {**one.settings(), "method": one.name} for one in study.algorithms}
    of: dict[str, Any] = {"identity": study.identity(), "tasks": ("digits",), "algorithms": named, "to_compute": lacking}
    return StudyResults(study="search", table=pd.DataFrame(), **of)


def test_what_a_study_is_for_the_claims_follows_from_what_it_has() -> None:
    main, swept = results({}), results({}, sparsities=(0.01, P))
    perturbed = dataclasses.replace(main, identity={**main.identity, "removed": 0.1})
    unsaid = {name: value for name, value in main.identity.items() if name != "removed"}
    older = dataclasses.replace(main, study="paper-perturbation", identity=unsaid)  # its name tells it
    assert [*map(kind_of, (main, swept, perturbed, older, search(), search(measured=1)))] == [
        Kind.MAIN,
        Kind.SWEPT,
        Kind.PERTURBED,
        Kind.PERTURBED,
        Kind.SEARCH,
        Kind.CURVE,
    ]
    assert kind_of(StudyResults.read(ROOT / "figures" / "digits.sqlite")) is Kind.SWEPT  # adapters of several widths have several p
    assert "missing: a study of perturbed training sets." in answers(main)[8].sentence
    assert "missing: a study of methods at several p." in answers(main)[4].sentence


def test_what_the_claims_cannot_compare_is_refused() -> None:
    algorithms = tuple(FineTuning(SAM(P), steps=steps, learning_rate=1e-3) for steps in (4, 8))
    twice = dataclasses.replace(
        search(), algorithms={str(one.max_steps): {**one.settings(), "method": "sam"} for one in algorithms}
    )
    with pytest.raises(
        UsageError, match=r"'search': sam was trained with steps = 4, 8; the claims take one setting of each method"
    ):
        answers(twice)
    apart = dataclasses.replace(search(), identity={**search().identity, "samples": [0, 1]})
    with pytest.raises(UsageError, match=r"'search' draws S apart from the seeds \(samples\)"):
        answers(apart)
    path: Any = "runs/mine.sqlite"
    with pytest.raises(UsageError, match=r"is no results of a study: read a store with StudyResults.read"):
        answers([path])


def test_an_unfinished_search_leaves_every_claim_open() -> None:
    finished = results(
        {name: {"stability": jittered(0.5)} for name in ("random", "magnitude", "sam", "childpruning", "diffpruning")}
    )
    assert answers([finished, search()])[0].verdict is Verdict.CONFIRMED
    (found, *_) = answers([finished, search(lacking=1)])
    assert found.verdict is Verdict.OPEN
    assert "missing: 1 of 2 cells of search." in found.resolve
    (found, *_) = answers([finished, search(lacking=1, measured=1)])  # full tuning at several rates, say: no claim needs it
    assert found.verdict is Verdict.CONFIRMED


def test_what_is_compared_in_two_studies_counts_once() -> None:
    """The main study and the one at several p have a p in common, and there the same cells."""
    swept = results({"sam": {"test_metric": jittered(0.9)}, "random": {"stability": jittered(3.0)}}, sparsities=(0.01, P))
    alone, both = answer("SAM has a better", results({})).table, answer("SAM has a better", results({}), swept).table
    assert both["what"].tolist() == [*alone["what"], "random, p = 0.01", "magnitude, p = 0.01"]
    assert both["effect"][: len(alone)].tolist() == alone["effect"].tolist()  # of the main study
    assert both["effect"].iloc[-1] == pytest.approx(100 * (np.mean(jittered(0.9)) - 0.8))


@pytest.mark.parametrize("seeds", [4, 1])
def test_the_change_with_p_is_the_slope_of_logarithms(seeds: int) -> None:
    ps = (0.001, 0.002, 0.01, 0.1)
    by_p = np.exp(np.random.default_rng(0).normal(size=(seeds, len(ps))))
    values = {f"sam@{p}": {"stability": by_p[:, place].tolist()} for place, p in enumerate(ps)}
    found = answer("The smaller p is", results({}), results(values, seeds=seeds, sparsities=ps))
    assert found.table["what"].tolist() == ["random, over 4 p", "magnitude, over 4 p", "sam, over 4 p"]
    found = found.table.iloc[-1]
    x = np.log10(ps)
    slopes = [np.polyfit(x, np.log(row), 1)[0] for row in by_p]
    if seeds > 1:
        half = stats.t.ppf(0.975, seeds - 1) * np.std(slopes, ddof=1) / math.sqrt(seeds)
    else:
        half = math.log(1.25) / math.sqrt(((x - x.mean()) ** 2).sum())  # of four independent values
    expected = np.exp([np.mean(slopes), np.mean(slopes) - half, np.mean(slopes) + half])
    assert [found["effect"], found["low"], found["high"]] == pytest.approx(expected)
    assert answer("The smaller p is", results({})).verdict is Verdict.MISSING


def test_a_p_at_which_nothing_was_learned_has_no_part_in_the_slope() -> None:
    ps = (0.001, 0.01, 0.03, 0.1)
    stuck = {"sam@0.001": {"test_metric": jittered(0.5), "stability": 0.001}}
    found = answer("The smaller p is", results({}), results(stuck, sparsities=ps)).table.set_index("what")
    assert found.index.tolist() == ["random, over 4 p", "magnitude, over 4 p", "sam, over 3 p"]
    assert found["effect"].tolist() == pytest.approx([1, 1, 1])


def test_a_cell_without_an_upper_end_has_no_part_where_its_weight_is_zero() -> None:
    ps = (0.01, 0.1, 1.0)
    swept = results({f"sam@{p}": {"stability": p} for p in ps}, seeds=1, sparsities=ps)
    swept.table.loc[swept.table["sparsity"] == 0.1, "stability_high"] = math.nan
    found = answer("The smaller p is", results({}), swept).table.set_index("what").loc["sam, over 3 p"]
    assert found["effect"] == pytest.approx(10)
    assert found["high"] == pytest.approx(10 * 1.25 ** (1 / math.sqrt(2)))


def test_of_two_tasks_the_mean_is_tested() -> None:
    """Also of slopes over several p, of which not all were learned on both."""

    def elsewhere(one: StudyResults) -> StudyResults:
        return dataclasses.replace(one, tasks=("elsewhere",), table=one.table.assign(task="elsewhere"))

    each = {"stability": [0.5, 0.6, 0.4, 0.5], "test_metric": [0.9, 0.91, 0.88, 0.92]}
    main = results({"sam": each, "diffpruning": each, "childpruning": each})
    swept = results({"random@0.2": {"test_metric": 0.4}}, sparsities=(0.05, 0.1, 0.2, 0.4))
    other = elsewhere(results({}, sparsities=(0.05, 0.1, 0.2, 0.4)))
    found = answers([main, elsewhere(main), swept, other])
    sparse, _, _, _, _, sam, projection, *_ = found
    assert (sparse.of, len(sparse.table)) == (5, 15)
    assert (sam.of, len(sam.table)) == (8, 24)
    assert (projection.of, projection.denies, projection.verdict) == (2, 2, Verdict.REFUTED)
    slopes = found[1].table
    assert [*slopes["what"]][:3] == ["random, over p", "random, over 3 p", "random, over 4 p"]
    assert [*slopes.loc[slopes["p"].notna(), "task"]] == ["all"] * 3


def test_stability_that_grows_with_p_confirms_that_sparsity_helps() -> None:
    ps, methods = (0.001, 0.01, 0.1), ("random", "magnitude", "sam")
    for slope, verdict in ((0.3, Verdict.CONFIRMED), (-0.3, Verdict.REFUTED)):
        values = {f"{name}@{p}": {"stability": [p**power for power in jittered(slope)]} for name in methods for p in ps}
        found = answer("The smaller p is", results({}), results(values, sparsities=ps))
        assert found.verdict is verdict
        assert found.table["effect"].tolist() == pytest.approx([10 ** np.mean(jittered(slope))] * 3)


def test_methods_of_one_s_own_count_as_those_of_the_paper_do() -> None:
    made = results({"sam": {"stability": jittered(0.5)}})
    named = {name: {**one, "method": one["method"].replace("sam", "mine")} for name, one in made.algorithms.items()}
    own = dataclasses.replace(made, algorithms=named, table=made.table.assign(method=made.table["method"].replace("sam", "mine")))
    found = answer("Sparse fine-tuning", own).table.set_index("what")["clear"]
    assert found["mine, p = 0.05"] == "for"
    assert answer("Sparse fine-tuning", results({"random": {"sparsity": 1.0}})).table["what"].str.startswith("random").sum() == 0


def test_an_answer_is_printed_with_its_comparisons() -> None:
    lines = str(answer("Sparse fine-tuning", results({"sam": {"stability": jittered(0.5)}}))).splitlines()
    assert lines[0] == "Sparse fine-tuning is more stable than full tuning."
    assert lines[1].startswith("Not resolved: 1 of 5 comparisons are clear for")
    assert lines[2] == "Published: A bound that falls with p (Theorem 1). The paper does not measure leave-one-out stability."
    assert lines[3] == "Measured: leave-one-out stability, divided by that of full tuning; below 1 is for the claim."
    assert [line.split()[1] for line in lines[5:]] == ["random,", "magnitude,", "sam,", "childpruning,", "diffpruning,"]
    assert len(str(answers([])[0]).splitlines()) == 3
