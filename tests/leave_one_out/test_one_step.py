"""One Newton step against exact leave-one-out: closed forms, Newton's method for each i, and its own other form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from stability import FineTuning, Minimisation, Problem, StabilityError, UsageError, leave_one_out
from stability.leave_one_out import one_step
from stability.leave_one_out.estimators import Approximate, Assisted
from stability.leave_one_out.one_step import OneStepModel
from stability.leave_one_out.predictors import Linearised, OneStep
from stability.masks import Mask
from stability.problems.solvable import Solvable, linear_regression, logistic_regression
from stability.selectors import FullTuning, Random
from stability.training.replicas import train

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(30, 6)), DRAW.normal(size=30)
LABELS = (X @ DRAW.normal(size=6) + DRAW.normal(size=30) > 0).astype(float)


def at_minimum(known: Solvable, ridge: float, free: list[int] | None = None) -> tuple[dict[str, torch.Tensor], Mask]:
    theta = known.minimise(ridge, free=None if free is None else np.array(free))
    parameters = known.parameters(theta)
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    return parameters, Mask.at(shapes, torch.arange(6) if free is None else torch.tensor(free))


@pytest.mark.parametrize("free", [None, [0, 2, 5]])
@pytest.mark.parametrize("ridge", [1e-6, 0.03, 2.0])
def test_ridge_regression_is_exact(ridge: float, free: list[int] | None) -> None:
    known = linear_regression(X, Y)
    parameters, mask = at_minimum(known, ridge, free)
    model = OneStepModel(known.problem, parameters, mask)
    expected = known.leave_one_out(ridge, free=None if free is None else np.array(free))
    np.testing.assert_allclose(model.losses, expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(model.left_out(ridge), expected[:, 1], rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.01, 0.1])
def test_logistic_regression_is_right_to_second_order(ridge: float) -> None:
    """The step's error is of the order of the squared move: repeating the examples four times makes each weigh a quarter,
    and the error of its Δℓ falls to about a sixteenth, Δℓ itself to a quarter."""
    errors, sizes = [], []
    for copies in (1, 4):
        known = logistic_regression(np.tile(X, (copies, 1)), np.tile(LABELS, copies))
        parameters, mask = at_minimum(known, ridge)
        model = OneStepModel(known.problem, parameters, mask)
        exact = known.leave_one_out(ridge)
        errors.append(float(np.abs(model.left_out(ridge).numpy() - exact[:, 1]).mean()))
        sizes.append(float(np.abs(exact[:, 1] - exact[:, 0]).mean()))
    assert errors[0] < 0.1 * sizes[0]
    assert errors[1] < errors[0] / 9
    assert 3 < sizes[0] / sizes[1] < 8


def with_classes(digits: Problem) -> tuple[Problem, dict[str, torch.Tensor], Mask]:
    tuning = FineTuning(Random(0.01), steps=10, batch_size=8)
    trained = train(digits, tuning)
    return digits, trained.parameters(0), tuning.tunable_mask(digits, trained.masks[0])


def test_forms_agree_and_so_do_pieces(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 examples of 5 classes and 429 coordinates: the Gram matrix at once and from pieces, the coordinates' own form, and with
    as many random places as it takes, the hashed one."""
    problem, parameters, mask = with_classes(digits)
    gram = OneStepModel(problem, parameters, mask)
    assert gram.form == "gram"
    pieces = OneStepModel(problem, parameters, mask, memory_budget=120 * 8 * 60)
    assert pieces.form == "gram"
    assert OneStepModel(problem, parameters, mask, memory_budget=120 * 8 * 50).form == "hashed"  # nine passes would be too many
    torch.testing.assert_close(pieces.left_out(0.01), gram.left_out(0.01), rtol=1e-6, atol=1e-9)
    few = dataclasses.replace(problem, train=problem.train)
    monkeypatch.setattr(one_step, "_LARGEST", 100)
    monkeypatch.setattr(one_step, "_HASHED", 200_000)
    hashed = OneStepModel(few, parameters, mask)
    assert hashed.form == "hashed"
    features = OneStepModel.__new__(OneStepModel)
    features.__dict__.update(gram.__dict__, form="coordinates", _matrix=_jacobian(problem, parameters, mask))
    torch.testing.assert_close(features.left_out(0.01), gram.left_out(0.01), rtol=1e-6, atol=1e-9)


def test_hashing_keeps_the_prediction(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 000 places for 429 coordinates, where few fall together: within a tenth, in the mean, of the whole."""
    problem, parameters, mask = with_classes(digits)
    whole = OneStepModel(problem, parameters, mask)
    monkeypatch.setattr(one_step, "_LARGEST", 100)
    monkeypatch.setattr(one_step, "_HASHED", 2000)
    hashed = OneStepModel(problem, parameters, mask)
    size = (whole.left_out(0.1) - whole.losses).abs()
    assert float((hashed.left_out(0.1) - whole.left_out(0.1)).abs().mean()) < 0.1 * float(size.mean())


def _jacobian(problem: Problem, parameters: dict[str, torch.Tensor], mask: Mask) -> torch.Tensor:
    values = mask.gather(parameters)
    logits = lambda v: problem.logits(mask.place(parameters, v), problem.train.inputs)  # noqa: E731
    return torch.autograd.functional.jacobian(logits, values).flatten(0, 1).double()  # type: ignore[no-any-return]


def test_calibration_finds_the_ridge_that_was_there() -> None:
    known = linear_regression(X, Y)
    parameters, mask = at_minimum(known, one_step.DAMPINGS[14])
    model = OneStepModel(known.problem, parameters, mask)
    exact = known.leave_one_out(one_step.DAMPINGS[14])
    assert model.calibrated([1, 5, 9, 20], exact[[1, 5, 9, 20], 1].tolist()) == one_step.DAMPINGS[14]


def test_minimisers_are_foretold_by_one_step_and_measured_with_its_help() -> None:
    """The default predictor of a minimisation: exact for ridge regression, and so is what is drawn with it."""
    known = linear_regression(X, Y)
    algorithm = Minimisation(FullTuning(), ridge=0.05, gradient_tolerance=1e-11)
    exact = known.leave_one_out(0.05)
    truth = np.abs(exact[:, 1] - exact[:, 0])
    told = leave_one_out.measure(known.problem, algorithm, estimator=Approximate(), device="cpu")
    assert told.prediction is not None
    np.testing.assert_allclose(told.prediction.sizes, truth, rtol=1e-6)
    assert told.value == pytest.approx(truth.mean(), rel=1e-6)
    assert told.status == "approximate"
    assert told.retrainings == 0
    assert all(np.isnan(told.interval))
    helped = leave_one_out.measure(known.problem, algorithm, estimator=Assisted(8), device="cpu")
    assert helped.interval[0] <= truth.mean() <= helped.interval[1]
    assert helped.diagnostics.correlation > 1 - 1e-6
    assert helped.diagnostics.variance_cut > 10
    with pytest.raises(UsageError, match="Minimisation has none that it could follow: use OneStep"):
        leave_one_out.measure(known.problem, algorithm, estimator=Assisted(8, predictor=Linearised()), device="cpu")


def test_bad_input_is_named(digits: Problem) -> None:
    problem, parameters, mask = with_classes(digits)
    model = OneStepModel(problem, parameters, mask)
    with pytest.raises(UsageError, match="ridge = 0"):
        model.left_out(0)
    with pytest.raises(UsageError, match="2 examples and 1 losses to calibrate"):
        model.calibrated([0, 1], [0.5])
    with pytest.raises(UsageError, match="damping = -1"):
        OneStep(damping=-1)
    with pytest.raises(UsageError, match="calibration = 3 is of OneStep's damping"):
        Approximate(calibration=3)
    broken = {name: tensor * float("nan") for name, tensor in parameters.items()}
    with pytest.raises(StabilityError, match="not finite; look at its training"):
        OneStepModel(problem, broken, mask)
    single = dataclasses.replace(problem, train=problem.train.take(slice(0, 1)))
    with pytest.raises(UsageError, match="n = 1 training examples"):
        OneStepModel(single, parameters, mask)
