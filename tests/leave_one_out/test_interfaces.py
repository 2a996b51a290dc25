"""Whatever is written against the interfaces works with everything else: a subclass, and a kind of algorithm that nobody knew."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from stability import Examples, FineTuning, Mask, Problem, UsageError
from stability.cli.options import EstimatorOptions
from stability.leave_one_out import measure
from stability.leave_one_out.estimators import Approximate, Assisted, Auto, Estimator, Exact, Sampled, Status
from stability.leave_one_out.predictors import Linearised, OneStep
from stability.problems.problem import generator, shuffled_batches
from stability.problems.solvable import linear_regression
from stability.selectors import SAM, FullTuning, Random, Selector
from stability.training import Algorithm, EarlyStopping, train
from stability.training.descent import PLAIN, RunOptions, Trained
from stability.training.objective import Descended

ESTIMATORS: list[Estimator] = [Exact(), Sampled(4), Assisted(4), Assisted(4, predictor=OneStep()), Approximate()]


@dataclass(frozen=True)
class Warmed(FineTuning):
    """Fine-tuning whose learning rate rises over the first steps."""

    warm_up: int = dataclasses.field(default=3, kw_only=True)

    def learning_rate_at(self, step: int) -> float:
        return super().learning_rate_at(step) * min(1.0, (step + 1) / self.warm_up)


def _trained(values: Tensor, steps: int) -> Trained:
    """Rows that all ended well."""
    none = torch.empty(0, len(values))
    return Trained(
        values=values,
        failed_step=torch.full((len(values),), -1),
        kept_step=torch.full((len(values),), steps),
        batch_losses=none,
        mask_changes=none.long(),
        relaxed=none.bool()[:, 0],
        masks=[],
    )


@dataclass(frozen=True)
class Descent(Algorithm):
    """Plain gradient descent on the whole of S."""

    selector: Selector
    _: KW_ONLY
    rate: float = 0.1
    steps: int = 5
    ridge: float | Literal["paper"] = 0.0
    seed: int = 0

    stepwise: ClassVar[bool] = False

    @property
    def max_steps(self) -> int:
        return self.steps

    @property
    def vectors(self) -> int:
        return 3

    def batches(self, examples: Examples) -> Iterator[Tensor]:
        yield torch.arange(len(examples))

    def run(self, objective: Descended, batches: Sequence[Tensor], options: RunOptions = PLAIN) -> Trained:
        values = objective.origin.expand(objective.rows, -1).clone()
        for _ in range(self.steps):
            values = values - self.rate * objective(values, batches[0])[2]
        return _trained(values, self.steps)

    def check(self, problem: Problem, masks: Sequence[Mask]) -> None:
        pass

    def failure(self, step: int) -> str:
        return f"failed at step {step}"

    def describe(self) -> str:
        return "gradient descent"

    def damping_for(self, mask: Mask) -> float:
        return 1 / (self.rate * self.steps)


@dataclass(frozen=True)
class Steps(Descent):
    """Plain gradient descent, a batch of six a step."""

    stepwise: ClassVar[bool] = True

    def batches(self, examples: Examples) -> Iterator[Tensor]:
        return shuffled_batches(len(examples), 6, self.steps, generator(self.seed, "order"))

    def run(self, objective: Descended, batches: Sequence[Tensor], options: RunOptions = PLAIN) -> Trained:
        values = objective.origin.expand(objective.rows, -1).clone()
        for index in batches:
            values = values - self.rate * objective(values, index)[2]
        return _trained(values, self.steps)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: f"{estimator.name}-{type(estimator.predictor).__name__}")
@pytest.mark.parametrize("kind", [Warmed, Descent, Steps])
def test_any_algorithm_works_with_every_estimator(kind: Any, estimator: Estimator, digits: Problem) -> None:
    algorithm = kind(SAM(0.05), steps=5)
    estimate = measure(digits, algorithm, estimator, device="cpu")
    assert estimate.value > 0
    assert type(estimate.replicas.algorithm) is kind
    assert algorithm.settings()["kind"] == kind.__name__


def test_a_subclass_changes_what_it_says_alone(digits: Problem) -> None:
    """With a warm-up of one step it is FineTuning itself, bit for bit; with three it is not."""
    plain, one, three = (
        train(digits, made).values
        for made in (FineTuning(Random(0.05), steps=5), Warmed(Random(0.05), steps=5, warm_up=1), Warmed(Random(0.05), steps=5))
    )
    assert torch.equal(plain, one)
    assert not torch.equal(plain, three)


def test_an_algorithm_of_one_s_own_is_left_out_exactly() -> None:
    """Gradient descent on least squares, step by step by hand."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(8, 3)), draw.normal(size=8)
    problem = linear_regression(x, y).problem
    estimate = measure(problem, Descent(FullTuning(), steps=4), Exact(), device="cpu")
    table = estimate.per_example.set_index("index")
    for i in range(8):
        keep = np.arange(8) != i
        theta = np.zeros(3)
        for _ in range(4):
            theta = theta - 0.1 * x[keep].T @ (x[keep] @ theta - y[keep]) / 7
        assert table.loc[i, "loss_left_out"] == pytest.approx(0.5 * (x[i] @ theta - y[i]) ** 2, rel=1e-10)
    assert estimate.status is Status.EXACT


def test_what_a_problem_leaves_open_is_asked_for(digits: Problem) -> None:
    open_settings = FineTuning(Random(0.05))
    with pytest.raises(UsageError, match="steps is left to the problem: use algorithm.with_defaults"):
        open_settings.max_steps  # noqa: B018
    settled = open_settings.with_defaults(digits.training)
    assert (settled.steps, settled.batch_size, settled.learning_rate, settled.schedule) == (150, 20, 3e-3, "constant")
    assert FineTuning(Random(0.05), steps=7).with_defaults(digits.training).steps == 7


def test_the_default_estimator_is_that_of_the_command_line(digits: Problem) -> None:
    estimate = measure(digits, FineTuning(Random(0.05), steps=2), device="cpu")
    assert (estimate.estimator, bool(estimate.reason)) == ("exact", True)
    assert EstimatorOptions().made() == Auto()


@pytest.mark.parametrize("seed", range(6))
def test_a_loop_of_one_s_own_is_predicted_by_linearised_replicas(seed: int) -> None:
    """Exactly, for the model is linear; in whatever order its batches come, and it is never asked to share beginnings."""
    draw = np.random.default_rng(seed)
    problem = linear_regression(draw.normal(size=(20, 5)), draw.normal(size=20)).problem
    estimate = measure(problem, Steps(FullTuning(), rate=0.05, seed=seed), Assisted(20), device="cpu")
    assert estimate.steps_shared == 0
    assert estimate.prediction is not None
    retrained = estimate.per_example.set_index("index")["loss_left_out"].sort_index()
    np.testing.assert_allclose(estimate.prediction.table["loss_left_out"], retrained, rtol=1e-8, atol=1e-12)


@dataclass(frozen=True)
class Later(EarlyStopping):
    grace: int = 0


@dataclass(frozen=True)
class Finer(Linearised):
    order: int = 1


@dataclass(frozen=True)
class Farther(OneStep):
    steps: int = 1


@pytest.mark.parametrize(("kind", "more"), [(Later, "grace"), (Finer, "order"), (Farther, "steps")])
def test_what_a_subclass_adds_is_part_of_the_identity(kind: Any, more: str) -> None:
    one, two = kind(**{more: 5}).settings(), kind(**{more: 6}).settings()
    assert (one.pop(more), two.pop(more)) == (5, 6)
    assert one == two == kind.__mro__[1]().settings()


def test_an_observer_is_told_of_a_single_run(digits: Problem) -> None:
    class Counting:
        hold, told = None, 0

        def add(self, values: Tensor, logits: Tensor, gradient: Tensor) -> None:
            self.told += 1

    watched, tuning = Counting(), FineTuning(Random(0.05), steps=4)
    train(digits, tuning, observe=watched)
    assert watched.told == 4
    with pytest.raises(UsageError, match="observe and r = 2 replicas: an observer is told of a single run"):
        train(digits, tuning, torch.ones(2, digits.n), observe=watched)
