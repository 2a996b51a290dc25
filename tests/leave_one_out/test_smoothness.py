"""Metasmoothness against closed forms, and against exact minimisers with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stability import FineTuning, MeasurementError, Minimisation, Problem, UsageError
from stability.leave_one_out.smoothness import _agreement, metasmoothness
from stability.problems.solvable import linear_regression, quadratic
from stability.selectors import SAM, DiffPruning, FullTuning

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(20, 12)), DRAW.normal(size=20)
RIDGE = 0.01
EXACT = Minimisation(FullTuning(), ridge=RIDGE, gradient_tolerance=1e-11)


def test_the_formula() -> None:
    """The first goes on, the second turns back beyond its start, the third does not move: (2 − 1)/(2 + 1)."""
    assert _agreement(torch.tensor([[0.0, 0.0, 5.0], [1.0, 1.0, 5.0], [2.0, -1.0, 5.0]])) == pytest.approx(1 / 3)
    assert np.isnan(_agreement(torch.ones(3, 2)))


def test_a_minimiser_that_is_linear_in_the_weights_has_one() -> None:
    """Of quadratic losses with one Hessian the minimiser is linear in the weights as long as their sum stays."""
    made = quadratic(np.diag([1.0, 3.0, 0.2]), DRAW.normal(size=(10, 3)))
    assert metasmoothness(made.problem, EXACT, device="cpu").parameters == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ridge_regression_with_the_same_weights(seed: int) -> None:
    """Some coordinates of the exact minimisers turn on their way, and some losses."""
    made = linear_regression(X, Y)
    v = np.random.default_rng(seed).choice([-1.0, 1.0, 0.5], size=20)
    thetas = np.stack([made.minimise(RIDGE, 1 + h * v) for h in (0, 0.4, 0.8)])
    found = metasmoothness(made.problem, EXACT, torch.tensor(v), h=0.4, device="cpu")
    expected = [agreement(thetas), agreement(np.stack([made.losses(theta) for theta in thetas]))]
    np.testing.assert_allclose([found.parameters, found.losses], expected, rtol=1e-5)
    assert min(expected) < 1


def agreement(x: np.ndarray) -> float:
    """Coordinate by coordinate, the formula of Engstrom et al. 2025."""
    goes_on = [np.sign((b - a) * (c - b)) for a, b, c in x.T]
    return float(np.average(goes_on, weights=[abs(c - a) for a, _, c in x.T]))


@pytest.mark.parametrize("selector", [SAM(0.05), DiffPruning(0.05, burn_in=2)], ids=["fixed", "moving"])
def test_masks_of_every_kind(selector: SAM | DiffPruning, digits: Problem) -> None:
    """The direction of leaving z_0 out; the same numbers however many go at once."""
    tuning, v = FineTuning(selector, steps=3), -torch.eye(digits.n)[0]
    found = metasmoothness(digits, tuning, v, device="cpu")
    assert -1 <= found.losses <= 1
    assert -1 <= found.parameters <= 1
    assert metasmoothness(digits, tuning, v, device="cpu", replica_batch=1).parameters == pytest.approx(found.parameters, abs=1e-3)


def test_nothing_moves_where_no_weight_that_counts_does(digits: Problem) -> None:
    """A single batch of one example: its mean loss does not depend on its weight."""
    one = metasmoothness(digits, FineTuning(SAM(0.05), steps=1, batch_size=1), device="cpu", h=0.25)
    assert np.isnan(one.parameters)
    assert np.isnan(one.losses)


@pytest.mark.parametrize(
    ("direction", "h", "told"),
    [
        (torch.ones(3), 0.5, r"shape \(3,\): \(n,\) with n = 20"),
        (torch.zeros(20), 0.5, "zeros alone"),
        (torch.full((20,), torch.nan), 0.5, "not finite"),
        (None, 0.6, "h of at most 0.5"),
        (None, 0.0, "h = 0"),
    ],
)
def test_a_senseless_request_names_the_remedy(direction: torch.Tensor | None, h: float, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        metasmoothness(linear_regression(X, Y).problem, EXACT, direction, h=h, device="cpu")


def test_a_training_that_fails_is_told() -> None:
    few = Minimisation(FullTuning(), ridge=RIDGE, gradient_tolerance=1e-14, max_steps=1)
    with pytest.raises(MeasurementError, match=r"weights 1 \+ 0 · v did not reach"):
        metasmoothness(linear_regression(X, Y).problem, few, device="cpu")
