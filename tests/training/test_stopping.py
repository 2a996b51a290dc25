"""Early stopping: each replica's best checkpoint on the validation split, against a loop that keeps every checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stability import problems
from stability.errors import UsageError
from stability.leave_one_out.estimators import Assisted
from stability.leave_one_out.measuring import measure
from stability.leave_one_out.predictors import Linearised
from stability.problems.problem import Problem
from stability.selectors import ChildPruning, DiffPruning, FullTuning, Mixout, Random, Selector
from stability.training import FineTuning
from stability.training.replicas import train
from stability.training.stopping import EarlyStopping


def with_validation(n: int = 30) -> Problem:
    problem = problems.load("digits", n=n, seed=3)
    return replace(problem, validation=problem.test.take(slice(0, 60)), test=problem.test.take(slice(60, 200)))


RULE = EarlyStopping(evaluate_every=3, patience=2, least_steps=6)

SELECTORS = [FullTuning(), Random(0.05), Mixout(0.3), ChildPruning(0.05), DiffPruning(0.05, burn_in=2)]


def expected(problem: Problem, selector: Selector, steps: int, weights: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Train anew to every checkpoint, and choose among them."""
    best, chosen, since = -1.0, (0, torch.empty(0)), 0
    for count in [*range(RULE.evaluate_every, steps, RULE.evaluate_every), steps]:
        replicas = train(problem, FineTuning(selector, steps=count, learning_rate=1e-2), weights)
        assert problem.validation is not None
        metric = problem.metric(replicas.logits(problem.validation)[0], problem.validation.labels)
        since += 1
        if metric > best:
            best, chosen, since = metric, (count, replicas.values[0]), 0
        if since >= RULE.patience and count >= RULE.least_steps:
            break
    return chosen


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda selector: selector.name)
def test_each_replica_keeps_what_a_loop_over_checkpoints_finds(selector: Selector) -> None:
    problem, steps = with_validation(), 20
    weights = torch.ones(4, problem.n)
    weights[torch.arange(1, 4), torch.tensor([5, 11, 17])] = 0
    algorithm = FineTuning(selector, steps=steps, learning_rate=1e-2, early_stopping=RULE)
    replicas = train(problem, algorithm, weights)
    kept = [expected(problem, selector, steps, row[None]) for row in weights]
    assert replicas.kept_step.tolist() == [step for step, _ in kept]
    assert len({step for step, _ in kept} | {steps}) > 1  # or the test would not see whether any was chosen
    for row, (_, values) in enumerate(kept):
        mine = replicas.parameters(row)
        alone = train(problem, FineTuning(selector, steps=kept[row][0], learning_rate=1e-2), weights[row][None])
        assert torch.equal(alone.values[0], values)
        for name, tensor in alone.parameters(0).items():
            torch.testing.assert_close(mine[name], tensor, rtol=2e-4, atol=2e-5)
        assert replicas.masks[row].count == alone.masks[0].count


def test_it_ends_when_none_gets_better_and_counts_no_loss_after_that() -> None:
    problem = with_validation()
    constant = replace(problem, metric=lambda logits, labels: 0.5)
    taken: list[int] = []
    algorithm = FineTuning(Random(0.05), steps=100, early_stopping=EarlyStopping(evaluate_every=4, patience=3, least_steps=10))
    replicas = train(constant, algorithm, torch.ones(2, problem.n), progress=taken.append)
    assert replicas.kept_step.tolist() == [4, 4]  # the first of equals
    assert sum(taken) == 2 * 16  # three more evaluations, at 8, 12 and 16
    assert torch.isfinite(replicas.batch_losses[:16]).all()
    assert torch.isnan(replicas.batch_losses[16:]).all()
    later = replace(algorithm, early_stopping=EarlyStopping(evaluate_every=4, patience=3, least_steps=30))
    taken.clear()
    train(constant, later, progress=taken.append)
    assert sum(taken) == 32  # the first evaluation after at least 30 steps


def test_a_metric_that_is_no_number_is_never_the_best() -> None:
    problem = with_validation()
    seen: list[float] = []

    def metric(logits: torch.Tensor, labels: torch.Tensor) -> float:
        seen.append(float("nan") if len(seen) % 2 == 0 else 1.0)
        return seen[-1]

    algorithm = FineTuning(Random(0.05), steps=8, early_stopping=EarlyStopping(evaluate_every=2, patience=9, least_steps=0))
    assert train(replace(problem, metric=metric), algorithm).kept_step.tolist() == [4]


def test_results_do_not_depend_on_what_goes_at_once() -> None:
    problem = with_validation()
    weights = torch.ones(5, problem.n)
    weights[torch.arange(1, 5), torch.arange(1, 5)] = 0
    algorithm = FineTuning(Random(0.05), steps=15, learning_rate=1e-2, early_stopping=RULE)
    together, apart = (train(problem, algorithm, weights, replica_batch=size) for size in (5, 2))
    assert together.kept_step.tolist() == apart.kept_step.tolist()
    torch.testing.assert_close(together.values, apart.values, rtol=1e-4, atol=1e-5)
    assert together.steps_shared == 0


def test_linearised_replicas_end_where_the_real_run_did() -> None:
    problem = with_validation(12)
    rule = EarlyStopping(evaluate_every=5, patience=1, least_steps=0)
    worse = replace(problem, metric=lambda logits, labels: 0.0)  # stops at 10, keeps 5
    stopped = FineTuning(Random(0.05), steps=40, early_stopping=rule)
    plain = FineTuning(Random(0.05), steps=5)
    found, same = (
        measure(of, algorithm, estimator=Assisted(3, predictor=Linearised(40)))
        for of, algorithm in ((worse, stopped), (problem, plain))
    )
    assert found.prediction is not None
    assert same.prediction is not None
    torch.testing.assert_close(
        torch.tensor(found.prediction.table["difference"]), torch.tensor(same.prediction.table["difference"]), rtol=1e-3, atol=1e-5
    )
    assert found.value == pytest.approx(same.value, rel=1e-3)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="patience = 0: use a whole number of at least 1"):
        EarlyStopping(patience=0)
    problem = problems.load("digits", n=20)
    with pytest.raises(UsageError, match="'digits' has no validation split to choose a checkpoint by"):
        train(problem, FineTuning(Random(0.1), steps=4, early_stopping=EarlyStopping()))


def test_identity_names_early_stopping_only_where_there_is_any() -> None:
    assert "early_stopping" not in FineTuning(Random(0.1)).settings()
    settings = FineTuning(Random(0.1), early_stopping=EarlyStopping(patience=7)).settings()
    assert settings["early_stopping"] == {"every": 500, "patience": 7, "least_steps": 20_000}
