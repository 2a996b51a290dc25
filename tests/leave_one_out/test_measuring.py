from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from stability import FineTuning, Problem, StabilityError, UsageError, leave_one_out
from stability.leave_one_out.estimators import Assisted, Exact, Sampled
from stability.leave_one_out.statistics import mean_of_population
from stability.selectors import SAM, DiffPruning, FullTuning, LoRA, Random, Selector
from stability.training.replicas import Replicas, train


def test_sampled_is_a_subset_of_exact_with_a_true_interval(digits: Problem) -> None:
    algorithm = FineTuning(Random(0.05), steps=8, batch_size=8)
    exact = leave_one_out.measure(digits, algorithm, estimator=Exact(), device="cpu").per_example.set_index("index")
    sampled = leave_one_out.measure(digits, algorithm, Sampled(6), device="cpu")
    assert sampled.estimator == "sampled"
    rows = sampled.per_example.set_index("index")
    np.testing.assert_allclose(rows["difference"], exact.loc[rows.index, "difference"], rtol=0, atol=1e-5)
    expected = mean_of_population(rows["difference"].abs().to_numpy(), digits.n)
    assert sampled.pointwise == expected
    assert sampled.interval[0] < sampled.value < sampled.interval[1]


def test_masks_are_selected_anew_unless_told_otherwise(digits: Problem) -> None:
    algorithm = FineTuning(SAM(0.02), steps=2)
    anew = leave_one_out.measure(digits, algorithm, Sampled(8), device="cpu")
    kept = leave_one_out.measure(digits, algorithm, Sampled(8), device="cpu", reselect=False)
    assert (anew.per_example["mask_changes"] > 0).any()
    assert (kept.per_example["mask_changes"] == 0).all()
    for row, i in enumerate(anew.per_example["index"], 1):
        assert anew.replicas.masks[row].equals(SAM(0.02).select(digits.without(i), seed=0))


@pytest.mark.parametrize("selector", [SAM(0.02), DiffPruning(0.02, burn_in=2), Random(0.02), LoRA(2)], ids=lambda one: one.name)
def test_the_overlap_of_masks_is_that_of_sets_of_coordinates(digits: Problem, selector: Selector) -> None:
    estimate = leave_one_out.measure(digits, FineTuning(selector, steps=3), Exact(), device="cpu")
    whole, *others = (
        {(name, int(place)) for name, index in mask.indices.items() for place in index} for mask in estimate.replicas.masks
    )
    expected = np.mean([len(whole & other) / len(whole | other) for other in others])
    assert estimate.mask_overlap == pytest.approx(expected)
    assert (estimate.mask_overlap < 1) == (selector.name in ("sam", "diffpruning"))
    assert estimate.to_dict()["mask_overlap"] == estimate.mask_overlap


def test_failed_replicas_are_counted_and_never_averaged(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica without example 2 is given weights that are not numbers; everything else is real."""

    def poisoned(problem: Problem, algorithm: FineTuning, weights: torch.Tensor | None = None, *rest: Any, **more: Any) -> Replicas:
        if weights is not None:
            weights = weights.clone()
            weights[weights[:, 2] == 0] = float("nan")
        return train(problem, algorithm, weights, *rest, **more)

    monkeypatch.setattr("stability.leave_one_out.retraining.train", poisoned)
    estimate = leave_one_out.measure(digits, FineTuning(Random(0.02), steps=4, batch_size=8), estimator=Exact(), device="cpu")
    assert estimate.failed == {2: 0}
    assert estimate.retrainings == digits.n
    assert estimate.estimator == "sampled"
    finished = estimate.per_example[estimate.per_example["failed_step"] < 0]
    assert len(finished) == digits.n - 1
    assert math.isclose(estimate.value, finished["difference"].abs().mean())
    assert estimate.interval[1] == math.inf
    assert estimate.to_dict()["interval"][1] is None


def test_the_noise_floor_is_never_below_the_precision_of_the_losses(digits: Problem) -> None:
    """Batches of one example have no order to reverse: both runs agree, to the rounding of sums in another order."""
    estimate = leave_one_out.measure(digits, FineTuning(Random(0.02), steps=3, batch_size=1), Exact(), device="cpu")
    losses = estimate.per_example["loss_full"].to_numpy()
    unit = np.spacing(losses.astype(np.float32)).mean()  # a difference of one unit in the last place
    assert estimate.noise_floor >= unit > 0
    assert estimate.noise_floor == pytest.approx(np.finfo(np.float32).eps * losses.mean(), rel=1e-6)


def test_a_diverging_full_run_is_an_error_with_its_step(digits: Problem) -> None:
    with pytest.raises(StabilityError, match=r"diverged at step \d+ with seed 0: use a smaller learning rate"):
        leave_one_out.measure(digits, FineTuning(FullTuning(), steps=20, learning_rate=1e6), Sampled(2), device="cpu")


@pytest.mark.parametrize(("count", "why"), [(0, "at least 1"), (-1, "at least 1"), (25, r"outside 1\.\.n with n = 24")])
def test_impossible_retrainings_are_refused(count: int, why: str, digits: Problem) -> None:
    with pytest.raises(UsageError, match=rf"retrainings = {count}.*{why}"):
        leave_one_out.measure(digits, FineTuning(FullTuning(), steps=1), Sampled(count), device="cpu")


def test_one_example_cannot_be_left_out(digits: Problem) -> None:
    single = dataclasses.replace(digits, train=digits.train.take(slice(0, 1)))
    with pytest.raises(UsageError, match=r"n = 1 training examples.*n ≥ 2"):
        leave_one_out.measure(single, FineTuning(FullTuning(), steps=1), estimator=Exact(), device="cpu")


def test_interval_covers_as_it_says_on_a_normal_population() -> None:
    """1 000 samples of 20 out of 100: the 95 % interval covers 95 % to within 4 standard errors (fixed in advance)."""
    draw = np.random.default_rng(0)
    population = draw.normal(5, 1, 100)
    hits = 0
    for _ in range(1000):
        low, high = mean_of_population(draw.choice(population, 20, replace=False), 100).interval
        hits += low <= population.mean() <= high
    assert abs(hits / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_what_is_no_problem_algorithm_estimator_or_selector_is_named(digits: Problem) -> None:
    tuning = FineTuning(FullTuning(), steps=1)
    for arguments, message in (
        (("digits", tuning), "problem = 'digits': use a problem"),
        ((digits, FullTuning()), "algorithm = FullTuning.*: use an algorithm"),
        ((digits, tuning, 10), "estimator = 10: use one of stability.estimators, such as Sampled"),
    ):
        with pytest.raises(UsageError, match=message):
            leave_one_out.measure(*arguments)
    for wrong in ("sam", SAM):
        with pytest.raises(UsageError, match="selector = .*: use a selector of stability.selectors"):
            FineTuning(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="predictor = 'linearised': use one of stability.predictors"):
        Assisted(3, predictor="linearised")  # type: ignore[arg-type]
