"""Linearised replicas against the real ones: exact where the model is linear, the real run itself where nothing is left out."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import stats

from stability import FineTuning, MachineError, Problem, leave_one_out
from stability.derivatives.gradients import per_example_jacobians
from stability.leave_one_out import linearised
from stability.leave_one_out.estimators import Approximate, Assisted, Exact
from stability.leave_one_out.linearised import Record, Trajectory, losses_left_out, trajectory_for
from stability.leave_one_out.predictors import Linearised, Prediction
from stability.machine import peak_of_tensors
from stability.masks import Mask
from stability.problems.solvable import linear_regression, logistic_regression
from stability.selectors import SAM, BitFit, ChildPruning, DiffPruning, Fisher, FullTuning, LoRA, MagPruning, Random, Selector
from stability.training import descent
from stability.training.replicas import Replicas, train
from stability.training.stopping import EarlyStopping
from tests.reference import leaving_out
from tests.selectors.test_laws import EVERY, described

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(20, 12)), DRAW.normal(size=20)
START = DRAW.normal(size=12)
MEMORY = 1 << 30


def predicted(problem: Problem, algorithm: FineTuning, memory: int = MEMORY, checkpoints: int = 3) -> torch.Tensor:
    problem = algorithm.equivalent(problem)
    masks: list[Mask] = []
    if not algorithm.selector.moving:
        masks = [algorithm.select(problem)]
        if algorithm.selector.uses_data:
            masks += algorithm.selector.select_each_left_out(problem, range(problem.n), algorithm.seed)
    real, trajectory = observed(problem, algorithm, masks, checkpoints, memory)
    return losses_left_out(real, trajectory, masks or real.masks, memory)[0]


def observed(
    problem: Problem, algorithm: FineTuning, masks: list[Mask], checkpoints: int = 2, memory: int = MEMORY
) -> tuple[Replicas, Trajectory]:
    """A(S), and what its linearisation knows of it."""
    trajectory = trajectory_for(problem, algorithm, masks, checkpoints=checkpoints, memory_budget=memory)
    return train(problem, algorithm, masks=masks[:1] or None, replica_batch=1, observe=trajectory), trajectory


LINEAR: list[Selector] = [
    FullTuning(),
    Random(0.5),
    MagPruning(0.5),
    SAM(0.5),
    Fisher(0.3),
    ChildPruning(0.5),
    ChildPruning(0.4, burn_in=5, reset=True),
    DiffPruning(0.5, burn_in=6),
]


@pytest.mark.parametrize("selector", LINEAR, ids=described)
@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_a_linear_model_is_retrained_exactly(kind: str, selector: Selector) -> None:
    """Everything that is A: batches, AdamW, schedule, weight decay, ridge, masks selected anew or on the way."""
    made = linear_regression(X, Y, START) if kind == "squared" else logistic_regression(X, (Y > 0).astype(float), START)
    how: dict[str, Any] = {"learning_rate": 0.05, "schedule": "linear", "warmup": 0.2, "weight_decay": 0.3, "ridge": 0.02}
    tuning = FineTuning(selector, steps=15, batch_size=6, seed=1, **how)
    exact = leave_one_out.measure(made.problem, tuning, estimator=Exact(), device="cpu").per_example
    np.testing.assert_allclose(predicted(made.problem, tuning), exact["loss_left_out"], rtol=1e-8, atol=1e-12)


def test_a_batch_of_nothing_has_no_gradient() -> None:
    """One example a batch: the replica without it takes a step of AdamW's moments alone."""
    made = linear_regression(X[:6], Y[:6], START)
    tuning = FineTuning(FullTuning(), steps=12, batch_size=1, learning_rate=0.05)
    exact = leave_one_out.measure(made.problem, tuning, estimator=Exact(), device="cpu").per_example
    np.testing.assert_allclose(predicted(made.problem, tuning), exact["loss_left_out"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("selector", EVERY, ids=described)
def test_without_anything_left_out_it_is_the_real_run(
    selector: Selector, learned: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, for every method: row 0 of the linearised replicas, and a row whose weights are all 1."""
    # An observed run trains all parameters to the end. So does the one beside it here; else it would differ by rounding.
    monkeypatch.setattr(descent, "_settled", lambda course, objective, run: (course, objective))
    tuning = FineTuning(selector, steps=6, batch_size=8, weight_decay=0.5, learning_rate=0.01, seed=3)
    tuning = tuning.with_defaults(learned.training)
    problem = tuning.equivalent(learned)
    masks = [] if selector.moving else [tuning.select(problem)]
    real, trajectory = observed(problem, tuning, masks)
    alone = train(problem, tuning, masks=masks or None, replica_batch=1)
    assert torch.equal(real.values, alone.values)
    tangent = linearised._Tangent(real, trajectory, MEMORY)
    tangent.weights = torch.ones(2, problem.n)
    found = tuning.run(tangent, list(tuning.batches(problem.train)))
    assert torch.equal(found.values[:1], real.values)
    assert torch.equal(found.values[1:], real.values)


@pytest.mark.parametrize("selector", [Random(0.02), SAM(0.02), BitFit(), LoRA(2)], ids=described)
def test_a_network_s_replicas_are_foretold(selector: Selector, learned: Problem) -> None:
    """A short run, where the network hardly bends: ranks correlate to more than 0.9 with retraining (fixed in advance)."""
    tuning = FineTuning(selector, steps=12, batch_size=8, learning_rate=2e-3)
    exact = leave_one_out.measure(learned, tuning, estimator=Exact(), device="cpu").per_example
    told = leave_one_out.measure(learned, tuning, estimator=Approximate(), device="cpu").prediction
    assert told is not None
    assert stats.spearmanr(told.sizes, exact["difference"].abs()).statistic > 0.9


def test_rows_at_a_time_change_nothing(digits: Problem) -> None:
    """Memory for all coordinates of the Jacobians, and so for some of the replicas at a time."""
    tuning = FineTuning(SAM(0.01), steps=8, batch_size=8)
    whole = predicted(digits, tuning)
    few = predicted(digits, tuning, memory=2 * 24 * 5 * 4 * 800)
    torch.testing.assert_close(few, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("selector", [FullTuning(), ChildPruning(0.05)], ids=described)
def test_a_record_in_a_file_is_the_same_record(selector: Selector, digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; batches of 7 of 24 examples are not all of one size."""
    tuning = FineTuning(selector, steps=9, batch_size=7)
    in_memory = predicted(digits, tuning)
    monkeypatch.setattr(linearised, "Record", lambda steps, width, like, in_memory: Record(steps, width, like, in_memory=False))
    assert torch.equal(predicted(digits, tuning), in_memory)


def test_a_record_goes_to_a_file_where_memory_does_not_hold_it(digits: Problem) -> None:
    kept = []
    for steps, memory in ((10, MEMORY), (100_000, MEMORY), (10, 1 << 20)):
        tuning = FineTuning(FullTuning(), steps=steps, batch_size=8)
        kept.append(trajectory_for(digits, tuning, [], checkpoints=2, memory_budget=memory).record.in_memory)
    assert kept == [True, False, False]


class NoFile(Record):
    """Of the three Jacobians there can be no file; the gradients of more steps are kept."""

    def __init__(self, steps: int, *args: Any, **settings: Any) -> None:
        if steps == 3:
            raise OSError("read-only")
        super().__init__(steps, *args, **settings)


class FillsUp(Record):
    """The second Jacobian finds no room."""

    def add(self, row: torch.Tensor) -> None:
        if self._total == 3 and len(self) == 1:
            raise MachineError("full")
        super().add(row)


class Unreadable(Record):
    """Jacobians are written and cannot be read."""

    def __getitem__(self, step: int) -> torch.Tensor:
        if self._total == 3:
            raise OSError("input/output error")
        return super().__getitem__(step)


@pytest.mark.parametrize(
    ("name", "otherwise"),
    [
        ("shutil.disk_usage", lambda _: Mock(free=0)),
        ("file_system", lambda _: "tmpfs"),
        *(("Record", kind) for kind in (NoFile, FillsUp, Unreadable)),
    ],
)
@pytest.mark.parametrize(("memory", "parts"), [(48 << 20, 2), (24 << 20, 5)])
def test_a_jacobian_is_computed_once_for_all_parts_of_the_replicas(
    memory: int, parts: int, name: str, otherwise: Any, digits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are the same bit for bit where no disk can keep it."""
    tuning = FineTuning(FullTuning(), steps=6, batch_size=8)
    computed = Mock(side_effect=per_example_jacobians)
    monkeypatch.setattr(linearised, "per_example_jacobians", computed)
    kept = predicted(digits, tuning, memory)
    assert computed.call_count == 3
    computed.reset_mock()
    monkeypatch.setattr(f"stability.leave_one_out.linearised.{name}", otherwise)
    assert torch.equal(predicted(digits, tuning, memory), kept)
    assert computed.call_count == 3 * parts


def test_all_parts_end_where_the_real_run_was_stopped(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first third of the steps: two of the three checkpoints are never seen, and no Jacobian needs to be kept."""
    computed = Mock(side_effect=per_example_jacobians)
    monkeypatch.setattr(linearised, "per_example_jacobians", computed)
    wrong = dataclasses.replace(digits.train, labels=(digits.train.labels + 1) % 5)  # what is learned is held against it
    problem = dataclasses.replace(digits, validation=wrong)
    stopping = EarlyStopping(evaluate_every=3, patience=1, least_steps=0)
    tuning = FineTuning(FullTuning(), steps=9, batch_size=8, early_stopping=stopping)
    assert train(problem, tuning, replica_batch=1).kept_step.tolist() == [3]
    whole = predicted(problem, tuning)
    torch.testing.assert_close(predicted(problem, tuning, 48 << 20), whole, rtol=1e-4, atol=1e-6)
    assert computed.call_count == 2


@pytest.mark.parametrize("width", [10, 1 << 20])
def test_a_disk_that_is_full_is_told_with_the_remedy(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    record = Record(2_000, width, torch.ones(1), in_memory=False)
    with pytest.raises(
        MachineError, match=r"gradients of 2000 steps take .* GiB, for which .* has no room .*: name a larger folder"
    ):
        record.add(torch.ones(width))
    record.clear()


def test_coordinates_are_drawn_where_the_jacobians_do_not_fit(digits: Problem) -> None:
    """A quarter of them: said, and it still ranks the examples (fixed in advance: 0.7)."""
    tuning = FineTuning(FullTuning(), steps=8, batch_size=8, learning_rate=1e-3)
    whole = leave_one_out.measure(digits, tuning, estimator=Approximate(), device="cpu").prediction
    small = Linearised(memory_budget=2 * 24 * 5 * 4 * 6800)
    part = leave_one_out.measure(digits, tuning, estimator=Approximate(small), device="cpu").prediction
    assert whole is not None
    assert part is not None
    assert part.by.endswith("6800 of 26597 coordinates")
    assert stats.spearmanr(whole.sizes, part.sizes).statistic > 0.7
    moving = FineTuning(ChildPruning(0.05), steps=6, batch_size=8)
    assert torch.isfinite(predicted(digits, moving, memory=2 * 24 * 5 * 4 * 6800)).all()


def test_s_s_mask_may_serve_all_predictions(digits: Problem) -> None:
    """No selection on Sⁱ but for what is retrained, which is what it was."""
    tuning = FineTuning(SAM(0.02), steps=8, batch_size=8)
    anew = leave_one_out.measure(digits, tuning, estimator=Assisted(24), device="cpu")
    kept = leave_one_out.measure(digits, tuning, estimator=Assisted(24, predictor=Linearised(reselect=False)), device="cpu")
    assert kept.value == pytest.approx(anew.value, abs=1e-6)
    assert anew.prediction is not None
    assert kept.prediction is not None
    assert 0.5 < stats.spearmanr(anew.prediction.sizes, kept.prediction.sizes).statistic < 1


@pytest.mark.parametrize("mebibytes", [48, 24])
def test_a_prediction_stays_within_its_memory(mebibytes: int, digits: Problem) -> None:
    """All tensors that exist at once, from the real run on; with 48 MiB a part of the replicas, with 24 of the coordinates too."""
    tuning, memory = FineTuning(FullTuning(), steps=3, batch_size=8), mebibytes << 20
    tuning = tuning.with_defaults(digits.training)

    def work() -> None:
        real, trajectory = observed(digits, tuning, [tuning.select(digits)], 2, memory)
        assert (trajectory.part is None) == (mebibytes == 48)
        losses_left_out(real, trajectory, real.masks, memory)

    assert memory / 3 < peak_of_tensors(work) <= memory


def test_a_prediction_leaves_no_memory_behind(digits: Problem) -> None:
    """The steps of the real run are dropped, from memory or from their file, before anything is retrained."""
    for memory in (MEMORY, 1 << 20):
        tuning = FineTuning(BitFit(), steps=200, batch_size=8) if memory < MEMORY else FineTuning(BitFit(), steps=2, batch_size=8)
        trajectory = trajectory_for(digits, tuning, [], checkpoints=2, memory_budget=memory)
        assert trajectory.record.in_memory == (memory == MEMORY)
        trajectory.add(torch.ones(1, 1093), torch.ones(1, 8, 5), torch.ones(1, 1093))
        trajectory.forget()
        assert len(trajectory.record) == len(trajectory.points) == 0
        with pytest.raises((IndexError, ValueError)):
            trajectory.record[0]


def test_dropout_is_the_real_run_s(pairs: Problem) -> None:
    tuning = FineTuning(Random(0.05), steps=6, batch_size=8, dropout=True)
    mask = tuning.select(pairs)
    real, trajectory = observed(pairs, tuning, [mask])
    losses, _ = losses_left_out(real, trajectory, [mask], MEMORY)
    rows = train(pairs, tuning, leaving_out(pairs.n, 0, 1), [mask])
    exact = rows.losses(pairs.train)[[1, 2], [0, 1]].double()
    full = real.losses(pairs.train)[0].double()
    assert torch.equal((losses - full)[:2].sign(), (exact - full[:2]).sign())


def test_a_replica_that_diverges_is_not_a_number(digits: Problem) -> None:
    """Its values are made infinite in the linearised run alone; the draw then treats it as the largest, and says so."""
    tuning = FineTuning(Random(0.02), steps=4, batch_size=8)
    estimate = leave_one_out.measure(digits, tuning, estimator=Assisted(6), device="cpu")
    told = estimate.prediction
    assert told is not None
    table = told.table.copy()
    table.loc[3, "difference"] = np.nan
    design = Assisted(6).design(24, 0, dataclasses.replace(told, table=table))
    assert design.draws is not None
    assert design.draws.sizes[3] == design.draws.sizes.max()
    assert design.notes == ("the prediction of 1 examples is not finite: they were drawn as the largest",)
    lost = dataclasses.replace(told, table=table)
    assert lost.mean == pytest.approx(table["difference"].abs().mean())
    assert Approximate().design(24, 0, lost).notes == (
        "the prediction of 1 of 24 examples is not finite: the mean is over the others",
    )


def test_a_linear_model_has_no_nonlinearity() -> None:
    tuning = FineTuning(FullTuning(), steps=6, batch_size=6, learning_rate=0.05)
    assert approximated(linear_regression(X, Y, START).problem, tuning, checkpoints=3).nonlinearity == pytest.approx(0, abs=1e-12)


def test_one_checkpoint_says_nothing_of_nonlinearity(digits: Problem) -> None:
    assert np.isnan(approximated(digits, FineTuning(BitFit(), steps=2), checkpoints=1).nonlinearity)


@pytest.mark.parametrize("memory", [MEMORY, 3 << 19])
def test_nonlinearity_by_reverse_mode(memory: int, digits: Problem) -> None:
    """After one step the replicas are the real ones. The Jacobians before and after it are taken here one example at a time.

    With little memory the replicas are followed a few at a time.
    """
    tuning = FineTuning(BitFit(), steps=2, batch_size=8, learning_rate=0.01)
    ends = train(digits, dataclasses.replace(tuning, steps=1), leaving_out(digits.n, *range(digits.n)))
    moves = ends.values[1:] - ends.values[0]
    assert int((moves.norm(dim=1) > 0).sum()) == 8
    norms = []
    for i in range(digits.n):
        inputs = digits.train.take(slice(i, i + 1)).inputs
        before, after = (
            torch.func.jacrev(lambda v: digits.logits(ends.tunable.place(ends.start, v), inputs)[0])(at) @ moves[i]  # noqa: B023
            for at in (ends.tunable.gather(ends.start), ends.values[0])
        )
        norms.append([float((after - before).norm()), float(before.norm() + after.norm())])
    changed, size = np.sum(norms, axis=0)
    found = approximated(digits, tuning, checkpoints=2, memory=memory).nonlinearity
    assert found == pytest.approx(changed / size, rel=1e-3)
    assert 0.01 < found < 1


def approximated(problem: Problem, tuning: FineTuning, checkpoints: int, memory: int = MEMORY) -> Prediction:
    predictor = Linearised(checkpoints=checkpoints, memory_budget=memory)
    prediction = leave_one_out.measure(problem, tuning, estimator=Approximate(predictor), device="cpu").prediction
    assert prediction is not None
    return prediction
