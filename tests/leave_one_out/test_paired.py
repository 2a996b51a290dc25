"""The paired difference of two methods: against loops and closed forms, its coverage, what is refused and what is said."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from stability import FineTuning, Problem, StabilityEstimate, UsageError, load, measure
from stability.leave_one_out.estimators import Approximate, Assisted, Exact, Sampled
from stability.leave_one_out.paired import (
    Difference,
    Pairing,
    _design,
    difference,
    mean_difference,
    named_apart,
    pair_sizes,
    said,
    separate,
)
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import Estimate, Numbers, draw
from stability.selectors import SAM, BitFit, FullTuning, LoRA
from stability.training.replicas import Replicas, train

FULL, BITFIT = (FineTuning(selector, steps=3, batch_size=8) for selector in (FullTuning(), BitFit()))


@pytest.fixture(scope="module")
def small() -> Problem:
    return load("digits", n=20)


@pytest.fixture(scope="module")
def exact(small: Problem) -> tuple[StabilityEstimate, StabilityEstimate]:
    return measure(small, FULL, Exact(), device="cpu"), measure(small, BITFIT, Exact(), device="cpu")


def population(n: int = 60) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Two heavy-tailed methods that share much, and what is predicted of them: off by a factor, with an error for each example."""
    generator = np.random.default_rng(3)
    shared = generator.lognormal(0, 1.2, n)
    y, other = (shared * generator.lognormal(0, 0.3, n) * factor for factor in (1.0, 0.7))
    q, theirs = (0.6 * one * generator.lognormal(0, 0.3, n) for one in (y, other))
    return y, other, q, theirs


def test_the_formula_is_that_of_a_plain_loop() -> None:
    y, other, q, theirs = population()
    n, a = len(y), 12
    sizes = pair_sizes(q, theirs)
    drawn = draw(sizes, np.random.default_rng(0))[:a]
    found = mean_difference(y[drawn], other[drawn], drawn, population=n, predicted=(q, theirs))
    c = 0.5 * (1 + sum(y[drawn]) / sum(q[drawn]))
    c_other = 0.5 * (1 + sum(other[drawn]) / sum(theirs[drawn]))
    p = [c_other * theirs[i] - c * q[i] for i in range(n)]
    e = {int(i): other[i] - y[i] - p[i] for i in drawn}
    parts, before, left = [], 0.0, sum(sizes)
    for i in drawn:
        parts.append((before + e[int(i)] * left / sizes[i]) / n)
        before, left = before + e[int(i)], left - sizes[i]
    assert found.value == pytest.approx(sum(p) / n + np.mean(parts))
    t = stats.t.ppf(0.975, a - 2)
    error = math.sqrt(np.sum((np.array(parts) - np.mean(parts)) ** 2) / ((a - 2) * a))
    s = math.sqrt(sum(e[int(i)] ** 2 / sizes[i] ** 0.25 for i in drawn) / (a - 2))
    rest = sum(sizes[i] ** 0.25 for i in range(n) if i not in e)
    centre, half = (sum(p) + sum(e.values())) / n, t * s * math.sqrt(rest) / n
    expected = min(found.value - t * error, centre - half), max(found.value + t * error, centre + half)
    assert found.interval == pytest.approx(expected)
    assert found.error == pytest.approx(error)


def test_the_interval_holds_the_truth_as_often_as_it_says_and_is_far_narrower_than_a_plain_one() -> None:
    y, other, q, theirs = population()
    n, truth = len(y), float((other - y).mean())
    sizes, generator = pair_sizes(q, theirs), np.random.default_rng(1)
    found: dict[str, list[Estimate]] = {"paired": [], "uniform": []}
    for _ in range(400):
        drawn = draw(sizes, generator)[:12]
        found["paired"].append(mean_difference(y[drawn], other[drawn], drawn, population=n, predicted=(q, theirs)))
        drawn = generator.permutation(n)[:12]
        found["uniform"].append(mean_difference(y[drawn], other[drawn], drawn, population=n))
    held = np.mean([one.interval[0] <= truth <= one.interval[1] for one in found["paired"]])
    assert held > 0.93
    error = {name: math.sqrt(np.mean([(one.value - truth) ** 2 for one in each])) for name, each in found.items()}
    assert error["paired"] < error["uniform"] / 2
    assert abs(np.mean([one.value for one in found["paired"]]) - truth) < 0.2 * error["paired"]


def test_uniform_pairs_have_students_interval_with_the_finite_population_correction() -> None:
    y, other = np.array([1.0, 3.0, 2.0]), np.array([2.0, 3.5, 5.0])
    found = mean_difference(y, other, [4, 0, 2], population=6)
    d = other - y
    half = stats.t.ppf(0.975, 2) * d.std(ddof=1) / math.sqrt(3) * math.sqrt(1 - 3 / 6)
    assert found.value == pytest.approx(d.mean())
    assert found.interval == pytest.approx((d.mean() - half, d.mean() + half))


@pytest.mark.parametrize("predicted", [None, ([1.0, 2.0], [2.0, 3.0]), ([0.0, 0.0], [0.0, 0.0])])
def test_two_examples_are_exact_together_and_have_no_interval_alone(predicted: Any) -> None:
    both = mean_difference([1.0, 2.0], [1.5, 1.0], [1, 0], population=2, predicted=predicted)
    assert (both.value, both.interval, both.error) == (-0.25, (-0.25, -0.25), 0.0)
    one = mean_difference([1.0], [1.5], [1], population=2, predicted=predicted)
    assert math.isfinite(one.value)
    assert one.interval == (-math.inf, math.inf)


def test_what_could_not_be_measured_leaves_no_interval() -> None:
    y, other, q, theirs = population()
    drawn = draw(pair_sizes(q, theirs), np.random.default_rng(0))[:12]
    lost = other.copy()
    lost[drawn[3]] = np.nan
    found = mean_difference(y[drawn], lost[drawn], drawn, population=len(y), predicted=(q, theirs))
    assert found.interval == (-math.inf, math.inf)
    assert found.count == 11
    kept = np.delete(np.arange(len(y)), drawn[3])  # as if it had never been there, but for the sizes' floor
    place = {int(i): k for k, i in enumerate(kept)}
    left = [place[int(i)] for i in np.delete(drawn, 3)]
    without = mean_difference(y[kept][left], other[kept][left], left, population=len(kept), predicted=(q[kept], theirs[kept]))
    assert found.value == pytest.approx(without.value, rel=0.02)
    every = mean_difference(y, lost, np.arange(len(y)), population=len(y))
    assert every.value == pytest.approx(np.nanmean(lost - y))
    assert every.interval == (-math.inf, math.inf)


def test_pairs_that_are_missed_alike_tell_nothing_of_the_spread() -> None:
    q = np.linspace(1, 2, 9)
    found = mean_difference(q[:5], 3 * q[:5], np.arange(5), population=9, predicted=(q, 3 * q))
    assert found.value == pytest.approx(2 * q.mean())
    assert found.interval == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [1.0], [0, 1]), "for 2 and 1 values: name the example of each pair, once"),
        (([1.0, 2.0], [1.0, 2.0], [1, 1]), "name the example of each pair, once"),
        (([1.0, 2.0], [1.0, 2.0], [1, 9]), "use 0 to 3"),
        (([1.0, np.nan], [np.nan, 2.0], [1, 2]), "none of 2 pairs has two numbers"),
    ],
)
def test_senseless_pairs_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mean_difference(*arguments, population=4)


def test_the_same_examples_are_left_out_of_both_and_are_those_of_an_exact_measurement(
    small: Problem, exact: tuple[StabilityEstimate, StabilityEstimate]
) -> None:
    found = difference(small, FULL, BITFIT, Assisted(6), device="cpu")
    assert found.pairing == Pairing.PAIRED
    assert found.first.per_example["index"].tolist() == found.second.per_example["index"].tolist()
    assert len(found.per_example) == found.first.retrainings == found.second.retrainings == 6
    for name, one in zip(("first", "second"), exact, strict=True):
        known = one.per_example.set_index("index")["difference"].abs()
        expected = known.loc[found.per_example["index"]].to_numpy()
        np.testing.assert_allclose(found.per_example[name], expected, rtol=0, atol=1e-5)
    assert found.first.prediction is not None
    assert found.second.prediction is not None
    theirs, mine = found.second.prediction.sizes, found.first.prediction.sizes
    np.testing.assert_allclose(found.per_example["predicted"], (theirs - mine)[found.per_example["index"]])
    truth = exact[1].value - exact[0].value
    assert found.interval[0] < truth < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.5 * exact[0].value


def test_exact_estimates_give_an_exact_difference(small: Problem, exact: tuple[StabilityEstimate, StabilityEstimate]) -> None:
    found = Difference.of(*exact)
    assert found.pairing == Pairing.EXACT
    assert found.interval == (found.value, found.value)
    assert found.value == pytest.approx(exact[1].value - exact[0].value)
    assert found.resolved
    assert found.sentence().startswith("bitfit is more stable than full, by exactly 0.")
    assert Difference.of(*reversed(exact)).sentence().startswith("full is less stable than bitfit, by exactly 0.")
    assert difference(small, FULL, BITFIT, Assisted(20), device="cpu").value == pytest.approx(found.value)


def test_two_examples_are_enough() -> None:
    found = difference(load("digits", n=2), FULL, BITFIT, device="cpu")
    assert (found.pairing, len(found.per_example)) == (Pairing.EXACT, 2)
    assert found.value == pytest.approx(found.second.value - found.first.value)


def test_estimates_that_were_drawn_uniformly_are_paired_and_others_are_put_together_as_independent(
    small: Problem, exact: tuple[StabilityEstimate, StabilityEstimate]
) -> None:
    sampled = [measure(small, one, Sampled(count), device="cpu") for one, count in ((FULL, 5), (BITFIT, 8))]
    found = Difference.of(*sampled)
    assert found.pairing == Pairing.PAIRED
    table = found.per_example
    assert table["index"].tolist() == sampled[0].per_example["index"].tolist()
    expected = mean_difference(table["first"], table["second"], table["index"], population=20)
    assert found.estimate == expected
    assert Difference.of(sampled[0], exact[1]).value == pytest.approx(found.value, abs=1e-5)
    assisted = measure(small, BITFIT, Assisted(5), device="cpu")
    apart = Difference.of(exact[0], assisted)
    assert apart.pairing == Pairing.SEPARATE
    # An exact stability adds nothing to what is uncertain of the other one.
    ends = tuple(end - exact[0].value for end in assisted.interval)
    assert apart.interval == pytest.approx(ends)
    assert "stability.difference(problem, first, second) leaves out the same ones" in apart.notes[0]


def test_intervals_of_separate_estimates_add_as_squares() -> None:
    one, other = (
        Estimate(value, ends, confidence=0.95, count=5, population=9, error=error)
        for value, ends, error in ((1.0, (0.7, 1.4), 0.3), (3.0, (2.6, 3.3), 0.4))
    )
    found = separate(one, other)
    assert found.value == 2
    assert found.interval == pytest.approx((2 - math.hypot(0.4, 0.4), 2 + math.hypot(0.3, 0.3)))
    assert found.error == pytest.approx(0.5)


def test_a_replica_that_fails_leaves_no_interval_and_is_told(small: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(problem: Problem, algorithm: FineTuning, weights: torch.Tensor | None = None, *rest: Any, **more: Any) -> Replicas:
        if weights is not None and algorithm.name == "bitfit":
            weights = weights.clone()
            weights[weights[:, 2] == 0] = float("nan")
        return train(problem, algorithm, weights, *rest, **more)

    monkeypatch.setattr("stability.leave_one_out.measuring.train", poisoned)
    found = difference(small, FULL, BITFIT, Exact(), device="cpu")
    assert found.interval == (-math.inf, math.inf)
    assert not found.resolved
    assert found.value == pytest.approx(found.per_example["difference"].mean())
    assert "is not told apart" in found.sentence()
    assert found.sentence().endswith("with no interval.")
    assert any("of 1 examples a left-out model failed" in note for note in found.notes)


def foretold(values: Any) -> Prediction:
    return Prediction(pd.DataFrame({"index": range(len(values)), "difference": values}), "planted", 0.0)


def test_predictions_that_are_of_no_use_make_draws_uniform() -> None:
    zero, wild = foretold([0.0] * 5), foretold([np.nan, np.inf, np.nan, 1.0, 2.0])
    assert _design(5, 0, zero, zero).sizes is not None
    for nothing in (zero, wild):
        design = _design(5, 0, zero, nothing)
        assert design.sizes is not None
        assert np.ptp(design.sizes) == 0
    assert "not finite for 3 of 5 examples, and was not used" in _design(5, 0, zero, wild).notes[0]
    odd = _design(4, 0, foretold([1.0, 3.0, 2.0, np.nan]), foretold([0.0] * 4))
    assert odd.sizes is not None
    assert odd.sizes[3] == odd.sizes[1] == odd.sizes.max()
    assert "1 examples is not finite" in odd.notes[0] or "1 examples are not finite" in odd.notes[0]
    y = np.array([1.0, 2.0, 4.0])
    found = mean_difference(y, 2 * y, [0, 1, 2], population=5, predicted=([0.0] * 5, [0.0] * 5))
    assert math.isfinite(found.value)
    assert found.interval[0] < found.value < found.interval[1]


def test_estimates_that_are_no_pair_are_refused(small: Problem, exact: tuple[StabilityEstimate, StabilityEstimate]) -> None:
    first, _ = exact
    sparse = {"estimator": Sampled(2), "device": "cpu"}
    cases = {
        "n = 20 and n = 10": measure(load("digits", n=10), BITFIT, **sparse),  # type: ignore[arg-type]
        "different training sets": measure(load("digits", n=20, seed=1), BITFIT, **sparse),  # type: ignore[arg-type]
        "seeds 0 and 1": measure(small, dataclasses.replace(BITFIT, seed=1), **sparse),  # type: ignore[arg-type]
        "confidence 0.95 and 0.9": measure(small, BITFIT, confidence=0.9, **sparse),  # type: ignore[arg-type]
        "left out no example": measure(small, BITFIT, Approximate(), device="cpu"),
    }
    swapped = small.train.take(torch.tensor([1, 0, *range(2, 20)]))
    cases["the training examples of the two differ"] = measure(dataclasses.replace(small, train=swapped), BITFIT, **sparse)  # type: ignore[arg-type]
    for message, other in cases.items():
        with pytest.raises(UsageError, match=message):
            Difference.of(first, other)
    with pytest.raises(UsageError, match="what stability.measure returns"):
        Difference.of(first, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("second", "estimator", "message"),
    [
        (dataclasses.replace(BITFIT, seed=1), None, "seeds 0 and 1"),
        (FULL, None, "both full with the same settings"),
        (BITFIT, Assisted(tolerance=0.1), "give retrainings instead"),
        (BITFIT, Approximate(), "retrains nothing"),
        (BITFIT, Sampled(21), "outside 1..n with n = 20"),
        (3, None, "an algorithm"),
    ],
)
def test_senseless_differences_are_refused(small: Problem, second: Any, estimator: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        difference(small, FULL, second, estimator, device="cpu")


def test_it_is_said_in_a_sentence_and_shown_in_a_notebook(exact: tuple[StabilityEstimate, StabilityEstimate]) -> None:
    found = Difference.of(*exact)
    html = found._repr_html_()
    assert "bitfit is more stable than full" in html
    assert html.count("<tr>") + html.count("<tr ") >= 2 + 5
    assert "\n" not in repr(found)
    wide = dataclasses.replace(found, pairing=Pairing.PAIRED, estimate=dataclasses.replace(found.estimate, interval=(-9.0, 1.0)))
    assert not wide.resolved
    assert "is not told apart" in wide.sentence()
    nothing = dataclasses.replace(found.estimate, value=1e-12, interval=(0.5e-12, 2e-12))
    tiny = dataclasses.replace(found, estimate=nothing)
    assert not tiny.resolved
    assert "differs by no more than rounding does" in tiny.sentence()
    assert said("a", "b", 0.5, (0.1, math.inf), "nats", "95 % interval").endswith("by 0.50 (95 % interval at least 0.10) nats.")


def test_methods_of_one_name_are_told_apart() -> None:
    made = [FineTuning(LoRA(rank=4)), FineTuning(LoRA(rank=8)), FineTuning(SAM(0.1)), FineTuning(BitFit(), steps=3)]
    assert named_apart(made) == ["lora rank=4", "lora rank=8", "sam", "bitfit"]
