"""Which estimator chooses itself, by what it goes on or stops, and what it says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stability import FineTuning, Minimisation, Problem, Study, UsageError, load, measure
from stability.leave_one_out import measuring, procedure, retraining
from stability.leave_one_out.estimators import Assisted, Auto, Design, Exact, Sampled
from stability.leave_one_out.predictors import Linearised, Observation, OneStep, Prediction, Predictor
from stability.leave_one_out.units import SingleExamples, Words
from stability.leave_one_out.wording import doubts, sentence
from stability.leave_one_out.work import Work, work_of
from stability.perturbations import FlipLabel
from stability.problems.solvable import linear_regression
from stability.reports.terminal import settling
from stability.selectors import SAM, BitFit, FullTuning, LoRA, Selector
from stability.training.replicas import Replicas, train

TUNING = FineTuning(BitFit(), steps=3, batch_size=8)


@dataclasses.dataclass(frozen=True)
class Foretelling(Predictor):
    """Predicts the same whatever happens."""

    sizes: tuple[float, ...]

    def settings(self) -> dict[str, Any]:
        return {"name": "foretelling"}

    def observe(self, problem: Problem, algorithm: Any, masks: Any) -> Observation:
        return _Foretold(self.sizes)


class _Foretold(Observation):
    def __init__(self, sizes: tuple[float, ...]) -> None:
        self._sizes = sizes

    def predict(self, real: Replicas) -> Prediction:
        return Prediction(pd.DataFrame({"index": range(len(self._sizes)), "difference": self._sizes}), "a test", 0.0)


def chosen(problem: Problem, selector: Selector, auto: Auto = Auto()) -> tuple[str, str]:  # noqa: B008
    algorithm = FineTuning(selector).with_defaults(problem.training)
    equivalent = algorithm.equivalent(problem)
    choice = auto.choice(equivalent, algorithm, algorithm.select(equivalent).count)
    return choice.estimator.name, choice.reason


def test_work_is_that_of_the_products() -> None:
    """Of 24 × 3 by 3 × 2, in each of the 200 steps that a minimisation is taken to need; a product with a vector is a small one."""
    problem = linear_regression(np.ones((24, 3)), np.arange(24.0)).problem
    algorithm = Minimisation(FullTuning(), ridge=0.5)
    assert work_of(problem, algorithm, k=problem.m).forward == 2**18
    two = dataclasses.replace(problem, logits=lambda _, inputs: inputs["x"][:, 0] @ torch.ones(3, 2).double())
    work = work_of(two, algorithm, k=problem.m)
    forward = 2 * 24 * 3 * 2 + 2**18
    assert work == Work(n=24, steps=200, batch=24.0, outputs=2, tunable=problem.m, forward=forward)
    assert work.retraining == 3 * 200 * forward
    assert work.jacobian == 24 * 2 * 2 * forward / 24


def test_a_prediction_is_counted_too() -> None:
    work = Work(n=10, steps=6, batch=2.0, outputs=3, tunable=5, forward=100.0)
    assert work.jacobian == 10 * 3 * 2 * 100 / 2
    assert Linearised(checkpoints=4).operations(work) == 4 * work.jacobian + 4 * 10 * 6 * 2 * 3 * 5
    assert Linearised(checkpoints=40).operations(work) == 6 * work.jacobian + 4 * 10 * 6 * 2 * 3 * 5
    assert Linearised(memory_budget=8 * 10 * 3 * 2).operations(work) == 6 * work.jacobian + 4 * 10 * 6 * 2 * 3 * 2
    assert OneStep().operations(work) == work.jacobian + 2 * 30**2 * 5


def test_small_sets_are_left_out_whole_and_large_ones_in_part() -> None:
    small, large = load("digits", n=100), load("digits", n=400)
    for selector in (LoRA(4), FullTuning(), BitFit(), SAM(0.05)):
        assert chosen(small, selector) == ("exact", "leaving out all 100 examples is little work")
        kind, reason = chosen(large, selector)
        assert kind == "assisted"
        assert reason.startswith("leaving out all 400 examples would be ")
    assert chosen(large, BitFit(), Auto(tolerance=0.01))[0] == "exact"  # so narrow an interval takes as many
    assert chosen(small, BitFit(), Auto(retrainings=8)) == ("assisted", "at most 8 of 100 examples are to be left out")
    assert chosen(small, BitFit(), Auto(retrainings=100))[0] == "exact"


def test_exact_is_exact(digits: Problem) -> None:
    """Bit for bit, and without a prediction, whether or not there is a budget for which one might have been needed."""
    exact = measure(digits, TUNING, Exact(), device="cpu")
    for auto in (None, Auto(budget=1e6)):
        estimate = measure(digits, TUNING, auto, device="cpu")
        assert (estimate.estimator, estimate.status, estimate.prediction) == ("exact", "exact", None)
        pd.testing.assert_frame_equal(estimate.per_example, exact.per_example, check_exact=True)
        assert estimate.pointwise == exact.pointwise
        assert estimate.reason == "exact: leaving out all 24 examples is no more work than an estimate to ±20 %"
    assert (exact.reason, exact.budget_spent) == ("", False)


def test_so_many_are_so_many_assisted_ones(digits: Problem) -> None:
    estimate, same = (measure(digits, TUNING, one, device="cpu") for one in (Auto(retrainings=4), Assisted(4)))
    assert (estimate.estimator, estimate.status, estimate.tolerance) == ("assisted", "as asked", None)
    assert estimate.pointwise == same.pointwise
    assert estimate.reason == "assisted: at most 4 of 24 examples are to be left out"


def test_two_examples() -> None:
    estimate = measure(load("digits", n=2), FineTuning(BitFit(), steps=2), device="cpu")
    assert (estimate.status, estimate.retrainings) == ("exact", 2)


def test_draws_that_cannot_be_trusted_go_on(digits: Problem) -> None:
    """However wide the tolerance: predictions that are the wrong way round end with every example, or inconclusive."""
    truth = measure(digits, TUNING, Exact(), device="cpu").per_example["difference"].abs().to_numpy()
    wrong = Foretelling(tuple(1 / truth))
    estimate = measure(digits, TUNING, Assisted(tolerance=0.99, predictor=wrong), device="cpu")
    assert (estimate.status, estimate.retrainings) == ("exact", 24)
    right = Foretelling(tuple(truth))
    estimate = measure(digits, TUNING, Assisted(tolerance=0.99, predictor=right), device="cpu")
    assert (estimate.status, estimate.retrainings) == ("within tolerance", 12)
    estimate = measure(digits, TUNING, Assisted(14, tolerance=0.99, predictor=wrong), device="cpu")
    assert (estimate.status, estimate.retrainings) == ("tolerance not met", 14)
    assert "(inconclusive, 95 % interval" in sentence(estimate)
    assert doubts(estimate)[0].startswith("the tolerance of 0.99 is not met: the prediction is poor (correlation ")


@pytest.mark.parametrize("predicted", [0.0, 1.0, math.inf, math.nan])
def test_predictions_of_no_use(predicted: float, digits: Problem) -> None:
    """They fall back on uniform draws, which no variance cut can condemn. No tolerance is met by the few of them, however wide."""
    estimate = measure(digits, TUNING, Auto(retrainings=13, predictor=Foretelling((predicted,) * 24)), device="cpu")
    assert (estimate.estimator, estimate.retrainings) == ("assisted", 13)
    assert any("drawn uniformly" in note for note in estimate.notes) == (predicted != 1)
    if predicted != 1:
        assert not any("plain" in doubt for doubt in doubts(estimate))
    asked = measure(digits, TUNING, Assisted(13, tolerance=0.99, predictor=Foretelling((predicted,) * 24)), device="cpu")
    assert (asked.status, asked.retrainings) == ("tolerance not met", 13)
    assert "(inconclusive, " in sentence(asked)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_scale_of_a_prediction_says_nothing(scale: float, digits: Problem) -> None:
    predicted = tuple(np.linspace(1, 2, 24))
    one, other = (
        measure(digits, TUNING, Assisted(6, predictor=Foretelling(told)), device="cpu")
        for told in (predicted, tuple(scale * x for x in predicted))
    )
    assert other.per_example["index"].tolist() == one.per_example["index"].tolist()
    assert other.interval == pytest.approx(one.interval, rel=1e-9)
    assert other.diagnostics.variance_cut == pytest.approx(one.diagnostics.variance_cut, rel=1e-9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Time passes while replicas are trained, a second each, and not otherwise."""
    now = [0.0]

    def slow(problem: Problem, algorithm: Any, weights: Any = None, *rest: Any, **more: Any) -> Replicas:
        now[0] += 1 if weights is None else len(weights)
        return train(problem, algorithm, weights, *rest, **more)

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now[0]

    monkeypatch.setattr(retraining, "train", slow)
    monkeypatch.setattr(measuring, "time", Clock)
    monkeypatch.setattr(procedure, "time", Clock)
    return lambda: now[0]


def test_a_budget_is_kept(digits: Problem, clock: Callable[[], float]) -> None:
    estimate = measure(digits, TUNING, Auto(tolerance=1e-9, budget=20.5), device="cpu")
    assert (estimate.estimator, estimate.retrainings, estimate.status) == ("assisted", 18, "tolerance not met")  # and A(S) twice
    assert (clock(), estimate.budget_spent) == (20.0, True)
    assert estimate.reason == "assisted: leaving out all 24 examples may not fit into the budget"
    assert doubts(estimate)[0].startswith("the tolerance of 1e-09 is not met: the budget is spent")
    asked: dict[str, Any] = {}
    settling(dataclasses.replace(estimate, units=SingleExamples(1000)), lambda **changed: asked.update(changed) or "the command")
    assert asked["budget"] is None
    few = measure(digits, TUNING, Auto(budget=6.0), device="cpu")  # fewer than the first look needs, so nothing is met by luck
    assert (few.retrainings, few.budget_spent) == (4, True)


def test_a_training_is_not_begun_that_would_not_be_finished(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any batch takes ten seconds here, as where replicas cost nothing beside each other."""
    now = [0.0]

    def slow(*what: Any, **more: Any) -> Replicas:
        now[0] += 10
        return train(*what, **more)

    monkeypatch.setattr(retraining, "train", slow)
    for module in (measuring, procedure):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    estimate = measure(digits, TUNING, Auto(retrainings=23, budget=37.0), device="cpu")
    assert (estimate.status, estimate.budget_spent, now[0]) == ("budget spent", True, 30.0)
    assert "(inconclusive, " in sentence(estimate)


@pytest.mark.usefixtures("clock")
def test_a_budget_draws_what_is_perturbed(digits: Problem) -> None:
    """The first examples in order would be no sample of all, so that their interval would mean nothing."""
    found, same = (
        measure(digits, TUNING, one, perturbation=FlipLabel(), device="cpu") for one in (Auto(budget=16.5), Sampled(retrainings=14))
    )
    order = found.per_example["index"].tolist()
    assert (found.estimator, found.budget_spent, len(order)) == ("sampled", True, 14)
    assert order == same.per_example["index"].tolist() != sorted(order)
    assert found.interval == pytest.approx(same.interval, rel=1e-5)
    whole = measure(digits, TUNING, Auto(budget=1000.0), perturbation=FlipLabel(), device="cpu")
    assert (whole.status, whole.retrainings) == ("exact", 24)


class _InOrder(Sampled):
    """Takes the first examples in order, as if they were drawn."""

    def design(self, n: int, seed: int, prediction: Prediction | None) -> Design:
        return Exact().design(n, seed, prediction)


def test_an_order_that_is_not_drawn_never_ends_early(digits: Problem) -> None:
    with pytest.raises(AssertionError, match="the first units in order are no sample of all"):
        measure(digits, TUNING, _InOrder(4), device="cpu")


@pytest.mark.parametrize(
    ("auto", "count", "operations", "expected", "reason"),
    [
        (Auto(), 400, 1e15, Sampled(50, 0.2), "this perturbation is not predicted, and all 400 parts are much work"),
        (Auto(tolerance=0.3), 400, 1e15, Sampled(None, 0.3), "this perturbation is not predicted, and all 400 parts are much work"),
        (Auto(budget=9.0), 400, 1e15, Sampled(None, 0.2), "this perturbation is not predicted, and all 400 parts are much work"),
        (Auto(tolerance=0.3), 400, 1e3, Exact(), "this perturbation is not predicted, and all 400 parts are little work"),
        (
            Auto(tolerance=0.3),
            50,
            1e15,
            Exact(),
            "this perturbation is not predicted, and all 50 parts are no more than 50 retrainings",
        ),
        (Auto(retrainings=30), 40, 1e3, Sampled(30), "at most 30 of 40 parts are to be removed"),
        (Auto(retrainings=30, tolerance=0.3), 40, 1e3, Sampled(30, 0.3), "at most 30 of 40 parts are to be removed"),
        (Auto(retrainings=400), 400, 1e15, Exact(), "all 400 parts are to be removed"),
    ],
)
def test_what_chooses_where_nothing_is_predicted(auto: Auto, count: int, operations: float, expected: Any, reason: str) -> None:
    words = Words(perturbation="mine", doing="removing a part", its="its loss", plural="parts", passive="removed")
    choice = auto.without_prediction(count, words, lambda: SimpleNamespace(retraining=operations))  # type: ignore[arg-type, return-value]
    assert (choice.estimator, choice.reason) == (expected, reason)
    assert choice.otherwise == (Sampled(auto.retrainings, auto.tolerance) if expected == Exact() else None)


def test_a_predictor_of_what_is_not_predicted_is_refused(digits: Problem) -> None:
    why = "nothing predicts what giving one training example another label does: leave the predictor out"
    with pytest.raises(UsageError, match=f"predictor = OneStep.*, and {why}"):
        measure(digits, TUNING, Auto(predictor=OneStep()), perturbation=FlipLabel(), device="cpu")


def test_a_budget_for_everything_is_no_budget(digits: Problem, clock: Callable[[], float]) -> None:
    estimate = measure(digits, TUNING, Auto(budget=27.0), device="cpu")
    assert (estimate.estimator, estimate.retrainings, clock()) == ("exact", 24, 26.0)


@pytest.mark.usefixtures("clock")
def test_a_budget_too_small_for_one_retraining_is_refused(digits: Problem) -> None:
    with pytest.raises(UsageError, match=r"budget = 2.5 s: .* took 1.0 s, and one retraining takes 1.0 s.* give 4 s at the least"):
        measure(digits, TUNING, Auto(budget=2.5), device="cpu")
    assert measure(digits, TUNING, Auto(budget=4.0), device="cpu").retrainings > 0


def test_a_study_has_no_budget_and_chooses_by_default() -> None:
    with pytest.raises(UsageError, match="budget = 60 s: what a study stores must not depend on how fast a machine is"):
        Study("mine", "digits", (TUNING,), (0,), estimator=Auto(budget=60.0))
    study = Study("mine", "digits", (TUNING,), (0,), problem_settings={"n": 20})
    assert study.identity()["estimator"]["name"] == "auto"
    assert "budget" not in study.identity()["estimator"]
    assert Auto().settings() == Auto(tolerance=0.2).settings()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"retrainings": 0}, "retrainings = 0"),
        ({"tolerance": 0.0}, "tolerance = 0"),
        ({"budget": 0}, "budget = 0"),
        ({"budget": math.inf}, "budget = inf"),
        ({"predictor": 3}, "predictor = 3"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Auto(**settings)
