"""The difference of two methods: exact where it can be, its interval otherwise, what is refused and what is said."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from stability import FineTuning, Problem, StabilityEstimate, UsageError, load, measure
from stability.leave_one_out.differences import Difference, difference, subtracted
from stability.leave_one_out.estimators import Approximate, Assisted, Exact, Sampled
from stability.leave_one_out.statistics import Estimate, mean_of_population
from stability.leave_one_out.wording import difference_sentence
from stability.selectors import SAM, BitFit, FullTuning, LoRA
from stability.training.naming import named_apart
from stability.training.replicas import Replicas, train

FULL, BITFIT = (FineTuning(selector, steps=3, batch_size=8) for selector in (FullTuning(), BitFit()))


@pytest.fixture(scope="module")
def small() -> Problem:
    return load("digits", n=20)


@pytest.fixture(scope="module")
def exact(small: Problem) -> tuple[StabilityEstimate, StabilityEstimate]:
    return measure(small, FULL, Exact(), device="cpu"), measure(small, BITFIT, Exact(), device="cpu")


def test_exact_estimates_give_an_exact_difference(exact: tuple[StabilityEstimate, StabilityEstimate]) -> None:
    found = Difference.of(*exact)
    pairs = [
        abs(theirs) - abs(mine)
        for mine, theirs in zip(exact[0].per_example["difference"], exact[1].per_example["difference"], strict=True)
    ]
    assert found.exact
    assert found.interval == (found.value, found.value)
    assert found.value == pytest.approx(sum(pairs) / 20)
    assert found.per_example["difference"].tolist() == pytest.approx(pairs)
    assert found.resolved
    assert found.notes == ()
    assert found.sentence().startswith("bitfit is more stable than full, by exactly 0.")
    assert Difference.of(*reversed(exact)).sentence().startswith("full is less stable than bitfit, by exactly 0.")


@pytest.mark.parametrize("estimator", [Assisted(6), Sampled(6), Assisted(tolerance=0.3)])
def test_the_difference_is_that_of_two_measurements(
    small: Problem, exact: tuple[StabilityEstimate, StabilityEstimate], estimator: Sampled
) -> None:
    found = difference(small, FULL, BITFIT, estimator, device="cpu", confidence=0.9)
    mine, theirs = (measure(small, one, estimator, device="cpu", confidence=0.9) for one in (FULL, BITFIT))
    assert found.value == theirs.value - mine.value
    low = math.hypot(theirs.value - theirs.interval[0], mine.interval[1] - mine.value)
    high = math.hypot(theirs.interval[1] - theirs.value, mine.value - mine.interval[0])
    assert found.interval == pytest.approx((found.value - low, found.value + high))
    assert not found.exact
    assert found.interval[0] < exact[1].value - exact[0].value < found.interval[1]
    assert "90 % interval" in found.sentence()
    table = found.per_example.set_index("index")
    assert set(table.index) == set(mine.per_example["index"]) & set(theirs.per_example["index"])
    for name, one in (("first", mine), ("second", theirs)):
        known = one.per_example.set_index("index")["difference"].abs()
        np.testing.assert_array_equal(table[name], known.loc[table.index])


def test_an_exact_stability_adds_nothing_to_what_is_uncertain_of_the_other(
    small: Problem, exact: tuple[StabilityEstimate, StabilityEstimate]
) -> None:
    assisted = measure(small, BITFIT, Assisted(5), device="cpu")
    found = Difference.of(exact[0], assisted)
    assert found.interval == pytest.approx(tuple(end - exact[0].value for end in assisted.interval))
    assert not found.exact
    assert sorted(found.per_example["index"]) == sorted(assisted.per_example["index"])


def test_two_examples_are_enough() -> None:
    problem = load("digits", n=2)
    found = difference(problem, FULL, BITFIT, Assisted(), device="cpu")
    assert (found.exact, len(found.per_example)) == (True, 2)
    assert found.value == pytest.approx(found.second.value - found.first.value)
    one = difference(problem, FULL, BITFIT, Sampled(1), device="cpu")
    assert one.interval == (-math.inf, math.inf)
    assert not one.resolved
    assert one.notes == tuple(
        f"{label}: 1 of 2 examples tell nothing of the spread: leave out more of them" for label in one.labels
    )


def test_intervals_add_as_squares_and_hold_the_truth_as_often_as_theirs_do() -> None:
    one, other = (
        Estimate(value, ends, confidence=0.95, count=count, population=9, error=error)
        for value, ends, count, error in ((1.0, (0.7, 1.4), 5, 0.3), (3.0, (2.6, 3.3), 6, 0.4))
    )
    found = subtracted(one, other)
    assert found.value == 2
    assert found.interval == pytest.approx((2 - math.hypot(0.4, 0.4), 2 + math.hypot(0.3, 0.3)))
    assert found.error == pytest.approx(0.5)
    assert (found.count, found.population) == (5, 9)
    generator = np.random.default_rng(0)
    populations = generator.uniform(1, 3, 60), generator.uniform(2, 5, 60)
    truth = float(populations[1].mean() - populations[0].mean())
    held = 0
    for _ in range(400):
        low, high = subtracted(*(mean_of_population(generator.permutation(y)[:12], 60) for y in populations)).interval
        held += low <= truth <= high
    assert 0.93 < held / 400 < 0.99


@pytest.fixture
def fails_without_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make BitFit diverge where example 2 is left out."""

    def poisoned(problem: Problem, algorithm: FineTuning, weights: torch.Tensor | None = None, *rest: Any, **more: Any) -> Replicas:
        if weights is not None and algorithm.name == "bitfit":
            weights = weights.clone()
            weights[weights[:, 2] == 0] = float("nan")
        return train(problem, algorithm, weights, *rest, **more)

    monkeypatch.setattr("stability.leave_one_out.retraining.train", poisoned)


@pytest.mark.usefixtures("fails_without_2")
def test_a_replica_that_fails_leaves_no_interval_and_is_told(small: Problem) -> None:
    found = difference(small, FULL, BITFIT, Exact(), device="cpu")
    assert found.interval == (-math.inf, math.inf)
    assert not found.resolved
    assert not found.exact
    assert found.value == pytest.approx(found.per_example["difference"].mean())
    assert found.per_example["difference"].isna().sum() == 1
    assert found.sentence().endswith("(95 % interval −∞ to +∞) nats.")
    (note,) = found.notes
    assert note.startswith("bitfit: the model without example 2 failed")
    assert note.endswith("try a smaller learning rate")
    assert difference(small, BITFIT, FULL, Assisted(19), device="cpu").interval[0] == -math.inf


def test_estimates_of_different_things_are_refused(small: Problem, exact: tuple[StabilityEstimate, StabilityEstimate]) -> None:
    first, _ = exact
    swapped = small.train.take(torch.tensor([1, 0, *range(2, 20)]))

    def sparse(problem: Problem, algorithm: FineTuning, confidence: float = 0.95) -> StabilityEstimate:
        return measure(problem, algorithm, Sampled(2), device="cpu", confidence=confidence)

    cases = {
        "measure both on one problem": sparse(load("digits", n=10), BITFIT),
        "'seed': 1.* the training examples of the two differ": sparse(load("digits", n=20, seed=1), BITFIT),
        "the training examples of the two differ": sparse(dataclasses.replace(small, train=swapped), BITFIT),
        "seeds 0 and 1": sparse(small, dataclasses.replace(BITFIT, seed=1)),
        "confidence 0.95 and 0.9: measure both with the same one": sparse(small, BITFIT, confidence=0.9),
        "left out no example: use Exact": measure(small, BITFIT, Approximate(), device="cpu"),
    }
    for message, other in cases.items():
        with pytest.raises(UsageError, match=message):
            Difference.of(first, other)
    with pytest.raises(UsageError, match="what stability.measure returns"):
        Difference.of(first, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("second", "estimator", "message"),
    [
        (dataclasses.replace(BITFIT, seed=1), None, "seeds 0 and 1: give both the same one"),
        (FULL, None, "both full with the same settings: give two methods"),
        (BITFIT, Approximate(), "retrains nothing to compare: use Exact"),
        (BITFIT, Sampled(21), "outside 1..n with n = 20"),
        (BITFIT, "exact", "one of stability.estimators"),
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
    wide = dataclasses.replace(found, estimate=dataclasses.replace(found.estimate, interval=(-9.0, 1.0)))
    assert not wide.resolved
    assert "does not differ significantly" in wide.sentence()
    nothing = dataclasses.replace(found.estimate, value=1e-12, interval=(0.5e-12, 2e-12))
    tiny = dataclasses.replace(found, estimate=nothing)
    assert not tiny.resolved
    assert "differs by no more than rounding does" in tiny.sentence()
    open_ = difference_sentence("a", "b", 0.5, (0.1, math.inf), "nats", significant=True, ends="95 % interval")
    assert open_ == "b is less stable than a, by 0.50 (95 % interval at least 0.10) nats."


def test_methods_of_one_name_are_told_apart(exact: tuple[StabilityEstimate, StabilityEstimate]) -> None:
    made = [FineTuning(LoRA(rank=4)), FineTuning(LoRA(rank=8)), FineTuning(SAM(0.1)), FineTuning(BitFit(), steps=3)]
    assert named_apart(made) == ["lora rank=4", "lora rank=8", "sam", "bitfit"]
    assert Difference.of(exact[0], exact[0]).labels == ("full (first)", "full (second)")


def test_a_method_that_nothing_changes_gives_a_difference_without_a_percentage(
    exact: tuple[StabilityEstimate, StabilityEstimate],
) -> None:
    still = exact[0].per_example.assign(difference=0.0)
    pointwise = dataclasses.replace(exact[0].pointwise, value=0.0, interval=(0.0, 0.0))
    found = Difference.of(dataclasses.replace(exact[0], pointwise=pointwise, per_example=still), exact[1])
    assert found.value == pytest.approx(exact[1].value)
    assert found.sentence().startswith("bitfit is less stable than full, by exactly ")
    assert found.sentence().endswith(" nats.")
    assert "%" not in found.sentence()
