"""Problems whose leave-one-out answers are known exactly: ridge and logistic regression in float64.

Each is an ordinary :class:`~stability.problem.Problem`, so the whole toolchain runs on it, and knows besides what
the toolchain must find. The objective is F_w(θ) = Σ_j w_j ℓ_j(θ) / Σ_j w_j + λ‖θ − θ⁰‖², as in
:class:`~stability.training.FineTuning` with every coordinate tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import softplus

from stability.errors import StabilityError, UsageError
from stability.masks import Parameters
from stability.problem import Examples, Problem

__all__ = ["Solvable", "logistic_regression", "ridge_regression"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Solvable:
    """A linear model f(x) = xᵀθ with a known minimiser.

    Attributes:
        problem: the same thing for the toolchain; parameters ``weight`` (d,), no head, test set = training set.
        ridge: λ > 0.
        start: θ⁰, (d,).
        kind: ``ridge`` for ℓ = ½(f − y)², ``logistic`` for ℓ = log(1 + e^f) − y f with y ∈ {0, 1}.
    """

    problem: Problem
    ridge: float
    start: Array
    kind: str

    @property
    def inputs(self) -> Array:
        array: Array = self.problem.train.inputs["x"].numpy()
        return array

    @property
    def targets(self) -> Array:
        array: Array = self.problem.train.labels.numpy()
        return array

    def parameters(self, theta: Array) -> dict[str, Tensor]:
        """θ as the problem's named tensors."""
        return {"weight": torch.tensor(theta)}

    def losses(self, theta: Array) -> Array:
        """ℓ of each example, (n,)."""
        f = self.inputs @ theta
        if self.kind == "ridge":
            return 0.5 * (f - self.targets) ** 2
        return np.asarray(np.logaddexp(0, f) - self.targets * f)

    def hessian(self, theta: Array) -> Array:
        """∇² of the mean loss over S, without the ridge, (d, d)."""
        return self._curvature(self.inputs @ theta, np.ones(self.problem.n))

    def minimise(self, weights: Array | None = None) -> Array:
        """The minimiser of F_w by Newton's method to machine precision; one step is exact for ridge regression.

        Raises:
            StabilityError: Newton's method did not converge.
        """
        w = np.ones(self.problem.n) if weights is None else weights
        theta = self.start.copy()
        for _ in range(100):
            gradient = self._gradient(theta, w)
            step = np.linalg.solve(self._curvature(self.inputs @ theta, w) + 2 * self.ridge * np.eye(len(theta)), gradient)
            theta = theta - step
            if np.linalg.norm(step) <= 1e-13 * (1 + np.linalg.norm(theta)):
                return theta
        raise StabilityError(f"Newton's method did not converge: last step {np.linalg.norm(step):.2g}; use a larger ridge")

    def leave_one_out(self) -> Array:
        """(n, 2): ℓ(A(S), z_i) and ℓ(A(Sⁱ), z_i), Sⁱ normalised by n − 1.

        Ridge regression has the closed form e_i / (1 − h_ii) (PRESS, Allen 1974), with residuals and leverages of the
        fit whose penalty is 2λ(n − 1)‖θ − θ⁰‖²/2 on the *sum* of losses, since leaving out changes the normalisation.
        Logistic regression is solved anew for each i.
        """
        full = self.losses(self.minimise())
        n, x = self.problem.n, self.inputs
        if self.kind == "ridge":
            inverse = np.linalg.inv(x.T @ x + 2 * self.ridge * (n - 1) * np.eye(x.shape[1]))
            theta = self.start + inverse @ x.T @ (self.targets - x @ self.start)
            leverage = np.einsum("id,de,ie->i", x, inverse, x)
            return np.stack([full, 0.5 * ((self.targets - x @ theta) / (1 - leverage)) ** 2], axis=1)
        left = [self.losses(self.minimise(np.arange(n) != i))[i] for i in range(n)]
        return np.stack([full, np.array(left)], axis=1)

    def _gradient(self, theta: Array, w: Array) -> Array:
        f = self.inputs @ theta
        mean = f if self.kind == "ridge" else expit(f)
        return np.asarray(self.inputs.T @ (w * (mean - self.targets)) / w.sum() + 2 * self.ridge * (theta - self.start))

    def _curvature(self, f: Array, w: Array) -> Array:
        second = np.ones_like(f) if self.kind == "ridge" else expit(f) * expit(-f)
        return np.asarray((self.inputs * (w * second / w.sum())[:, None]).T @ self.inputs)


def ridge_regression(inputs: Array, targets: Array, ridge: float, start: Array | None = None) -> Solvable:
    """ℓ = ½(xᵀθ − y)², mean over S, plus λ‖θ − θ⁰‖².

    Args:
        inputs: (n, d).
        targets: (n,).
        ridge: λ > 0.
        start: θ⁰, zero by default.

    Example:
        >>> solvable = ridge_regression(np.array([[1.0], [1.0]]), np.array([0.0, 2.0]), ridge=0.5)
        >>> solvable.minimise()
        array([0.5])
    """
    return _solvable("ridge", inputs, targets, ridge, start)


def logistic_regression(inputs: Array, targets: Array, ridge: float, start: Array | None = None) -> Solvable:
    """ℓ = log(1 + e^{xᵀθ}) − y xᵀθ with y ∈ {0, 1}, mean over S, plus λ‖θ − θ⁰‖². ℓ is ‖x‖-Lipschitz.

    Args:
        inputs: (n, d).
        targets: (n,) of 0 and 1.
        ridge: λ > 0.
        start: θ⁰, zero by default.

    Example:
        >>> logistic_regression(np.array([[1.0], [1.0]]), np.array([0.0, 1.0]), ridge=0.5).minimise()
        array([0.])
    """
    if not np.isin(targets, (0, 1)).all():
        raise UsageError("targets of logistic regression: use 0 and 1")
    return _solvable("logistic", inputs, targets, ridge, start)


def _solvable(kind: str, inputs: Array, targets: Array, ridge: float, start: Array | None) -> Solvable:
    x, y = np.asarray(inputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise UsageError(f"inputs {x.shape} and targets {y.shape}: (n, d) and (n,) expected")
    if not ridge > 0:
        raise UsageError(f"ridge λ = {ridge}: use a positive number, so that the minimiser is unique")
    theta = np.zeros(x.shape[1]) if start is None else np.asarray(start, dtype=np.float64)
    examples = Examples({"x": torch.tensor(x)}, torch.tensor(y))
    problem = Problem(
        name=f"{kind} regression",
        settings={"n": len(x), "d": x.shape[1], "ridge": ridge},
        pretrained={"weight": torch.tensor(theta)},
        new_head=lambda draw: {},
        logits=_linear,
        loss=_squared if kind == "ridge" else _logistic,
        train=examples,
        test=examples,
        metric=_mean_square if kind == "ridge" else _sign_accuracy,
        metric_name="negative mean square" if kind == "ridge" else "accuracy",
    )
    return Solvable(problem, ridge, theta, kind)


def _linear(parameters: Parameters, inputs: Mapping[str, Any]) -> Tensor:
    result: Tensor = (inputs["x"] @ parameters["weight"]).unsqueeze(-1)
    return result


def _squared(logits: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * (logits.squeeze(-1) - labels) ** 2


def _logistic(logits: Tensor, labels: Tensor) -> Tensor:
    return softplus(logits.squeeze(-1)) - labels * logits.squeeze(-1)


def _mean_square(logits: Tensor, labels: Tensor) -> float:
    return -((logits.squeeze(-1) - labels) ** 2).mean().item()


def _sign_accuracy(logits: Tensor, labels: Tensor) -> float:
    return ((logits.squeeze(-1) > 0) == (labels > 0.5)).double().mean().item()
