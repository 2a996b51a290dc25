"""Problems whose leave-one-out answers are known exactly: linear, logistic and quadratic, in float64.

A :class:`Solvable` holds an ordinary :class:`~stability.problems.problem.Problem`, on which the whole toolkit runs, and computes
the answers that the toolkit must find. The objective is F_w(θ) = Σ_j w_j ℓ_j(θ) / Σ_j w_j + λ‖θ − θ⁰‖². It is minimised over the
free coordinates, with all others at θ⁰, as :class:`~stability.Minimisation` does it under a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import softplus

from stability.checks import check_positive, check_whole
from stability.errors import MeasurementError, UsageError
from stability.masks import Parameters
from stability.problems.problem import Examples, Problem

__all__ = ["Solvable", "linear_regression", "logistic_regression", "quadratic"]

Array = NDArray[np.float64]
Coordinates = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Solvable:
    """Losses φ(X_i θ, y_i) of a model that is linear in θ ∈ R^d, with C outputs for each example.

    Attributes:
        problem: the same problem for the toolkit. Its parameters are one tensor ``weight`` (d,), and it has no head.
        kind: ``squared`` for φ(f, y) = ½‖f − y‖²; ``logistic`` for φ(f, y) = log(1 + e^f) − yf with C = 1 and y ∈ {0, 1}.

    Example:
        >>> solvable = linear_regression(np.array([[1.0], [1.0]]), np.array([0.0, 2.0]))
        >>> solvable.leave_one_out(ridge=0.5)
        array([[0.125, 0.5  ],
               [1.125, 2.   ]])
    """

    problem: Problem
    kind: Literal["squared", "logistic"]

    @property
    def inputs(self) -> Array:
        """The inputs X of the training examples, (n, C, d)."""
        array: Array = self.problem.train.inputs["x"].numpy()
        return array

    @property
    def targets(self) -> Array:
        """The targets y of the training examples, (n, C)."""
        array: Array = self.problem.train.labels.numpy()
        return array

    @property
    def start(self) -> Array:
        """The pretrained parameters θ⁰, (d,)."""
        array: Array = self.problem.pretrained["weight"].numpy()
        return array

    def parameters(self, theta: Array) -> dict[str, Tensor]:
        """θ as the named tensors of the problem.

        Args:
            theta: θ, (d,).
        """
        return {"weight": torch.tensor(theta)}

    def losses(self, theta: Array) -> Array:
        """The loss ℓ of each training example, (n,).

        Args:
            theta: θ, (d,).
        """
        f, y = self.inputs @ theta, self.targets
        return np.asarray((0.5 * (f - y) ** 2 if self.kind == "squared" else np.logaddexp(0, f) - y * f).sum(1))

    def gradients(self, theta: Array) -> Array:
        """The gradient ∇ℓ of each training example, (n, d).

        Args:
            theta: θ, (d,).
        """
        return np.asarray(np.einsum("ncd,nc->nd", self.inputs, self._slopes(self.inputs @ theta)))

    def hessian(self, theta: Array, weights: Array | None = None) -> Array:
        """The Hessian of the weighted mean loss, without the ridge: (d, d).

        Args:
            theta: θ, (d,).
            weights: the weight of each training example, (n,); all 1 by default.
        """
        w = np.ones(self.problem.n) if weights is None else weights
        x = self.inputs
        return np.asarray(np.einsum("n,nc,ncd,nce->de", w / w.sum(), self._bends(x @ theta), x, x, optimize=True))

    def minimise(self, ridge: float, weights: Array | None = None, free: Coordinates | None = None) -> Array:
        """The minimiser of F_w, by Newton's method with backtracking. One step is exact for squared losses.

        Args:
            ridge: λ > 0, so that the minimiser is unique.
            weights: the weight of each training example, (n,); all 1 by default.
            free: the indices of the coordinates that may change; all by default.

        Returns:
            The minimiser θ, (d,).

        Raises:
            UsageError: λ is no positive number.
            MeasurementError: Newton's method did not converge.
        """
        check_positive(ridge=ridge)
        w = np.ones(self.problem.n) if weights is None else weights
        at = np.arange(len(self.start)) if free is None else free
        theta, before = self.start.copy(), np.inf
        for _ in range(200):
            gradient = ((w / w.sum()) @ self.gradients(theta) + 2 * ridge * (theta - self.start))[at]
            curvature = self.hessian(theta, w)[np.ix_(at, at)] + 2 * ridge * np.eye(len(at))
            step = np.linalg.solve(curvature, gradient)
            size, scale = float(np.linalg.norm(step)), 1 + float(np.linalg.norm(theta))
            # Newton's steps shrink ever faster; small ones that no longer do are rounding, magnified by the condition.
            if size <= 1e-13 * scale or before / 2 < size <= 1e-7 * scale:
                return theta
            before = size
            value, length = self._objective(theta, w, ridge), 1.0
            moved = theta.copy()
            while True:
                moved[at] = theta[at] - length * step
                # Close to the minimum the decrease drowns in rounding; there the full step is right.
                if gradient @ step <= 1e-12 * (1 + abs(value)):
                    break
                if self._objective(moved, w, ridge) <= value - 0.25 * length * (gradient @ step):
                    break
                length /= 2
                if length < 1e-12:
                    raise MeasurementError(f"Newton's method found no decrease at λ = {ridge:g}: use a larger ridge")
            theta = moved
        raise MeasurementError(f"Newton's method did not converge: last step {before:.2g}; use a larger ridge")

    def leave_one_out(self, ridge: float, free: Coordinates | None = None) -> Array:
        """The exact losses of each example with and without it in the training set.

        The mean loss over Sⁱ is taken over its n − 1 examples. Squared losses have the closed form (I − H_ii)⁻¹ e_i (PRESS, Allen
        1974) with residuals e and leverages H_ii = X_i (Σ_j X_jᵀX_j + 2λ(n − 1) I)⁻¹ X_iᵀ. These belong to the fit whose ridge on
        the *sum* of the losses is λ(n − 1)‖θ − θ⁰‖², because leaving one out changes the normalisation. Logistic regression is
        minimised once for each i.

        Args:
            ridge: λ > 0.
            free: the indices of the coordinates that may change; all by default.

        Returns:
            ℓ(A(S), z_i) and ℓ(A(Sⁱ), z_i) for each i, (n, 2).

        Raises:
            UsageError: λ is no positive number, or n is below 2.
            MeasurementError: Newton's method did not converge.
        """
        n = self.problem.n
        check_whole(2, None, "one example is left out", n=n)
        full = self.losses(self.minimise(ridge, free=free))
        if self.kind == "squared":
            x = self.inputs if free is None else self.inputs[:, :, free]
            inverse = np.linalg.inv(np.einsum("ncd,nce->de", x, x) + 2 * ridge * (n - 1) * np.eye(x.shape[2]))
            residual = self.targets - self.inputs @ self.start
            residual = residual - x @ (inverse @ np.einsum("ncd,nc->d", x, residual))
            leverage = np.einsum("ncd,de,nbe->ncb", x, inverse, x)
            left = np.linalg.solve(np.eye(x.shape[1]) - leverage, residual[:, :, None])[:, :, 0]
            return np.stack([full, 0.5 * (left**2).sum(1)], axis=1)
        thetas = (self.minimise(ridge, (np.arange(n) != i).astype(float), free) for i in range(n))
        return np.stack([full, np.array([self.losses(theta)[i] for i, theta in enumerate(thetas)])], axis=1)

    def _objective(self, theta: Array, w: Array, ridge: float) -> float:
        return float((w / w.sum()) @ self.losses(theta) + ridge * ((theta - self.start) ** 2).sum())

    def _slopes(self, f: Array) -> Array:
        return np.asarray((f if self.kind == "squared" else expit(f)) - self.targets)

    def _bends(self, f: Array) -> Array:
        return np.ones_like(f) if self.kind == "squared" else np.asarray(expit(f) * expit(-f))


def linear_regression(
    inputs: Array, targets: Array, start: Array | None = None, test: tuple[Array, Array] | None = None
) -> Solvable:
    """Linear regression, ℓ = ½(xᵀθ − y)².

    Args:
        inputs: x of each training example, (n, d).
        targets: y of each training example, (n,).
        start: θ⁰, (d,); zero by default.
        test: inputs and targets of the test examples; the training examples by default.

    Raises:
        UsageError: the shapes do not fit together, or a number is not finite.

    Example:
        >>> solvable = linear_regression(np.array([[1.0], [1.0]]), np.array([0.0, 2.0]))
        >>> solvable.minimise(ridge=0.5)
        array([0.5])
    """
    return _solvable("squared", inputs, targets, start, test)


def logistic_regression(
    inputs: Array, targets: Array, start: Array | None = None, test: tuple[Array, Array] | None = None
) -> Solvable:
    """Logistic regression, ℓ = log(1 + e^{xᵀθ}) − y xᵀθ. The loss is convex and ‖x‖-Lipschitz in θ.

    Args:
        inputs: x of each training example, (n, d).
        targets: y of each training example, 0 or 1, (n,).
        start: θ⁰, (d,); zero by default.
        test: inputs and targets of the test examples; the training examples by default.

    Raises:
        UsageError: the shapes do not fit together, a number is not finite, or a target is neither 0 nor 1.

    Example:
        >>> logistic_regression(np.array([[1.0], [1.0]]), np.array([0.0, 1.0])).minimise(ridge=0.5)
        array([0.])
    """
    if not np.isin(targets, (0, 1)).all():
        raise UsageError("targets of logistic regression: use 0 and 1 only")
    return _solvable("logistic", inputs, targets, start, test)


def quadratic(hessian: Array, centres: Array, start: Array | None = None, test: Array | None = None) -> Solvable:
    """Quadratic losses, ℓ_i = ½(θ − c_i)ᵀ H (θ − c_i). All examples share the Hessian H.

    Args:
        hessian: H, (d, d), symmetric and positive semidefinite.
        centres: the centres c_i of the training examples, (n, d).
        start: θ⁰, (d,); zero by default.
        test: the centres of the test examples; the training examples by default.

    Raises:
        UsageError: the shapes do not fit together, or H is not symmetric and positive semidefinite.

    Example:
        >>> quadratic(np.diag([1.0, 3.0]), np.array([[1.0, 1.0], [3.0, 1.0]])).minimise(ridge=0.5)
        array([1.  , 0.75])
    """
    h = np.asarray(hessian, dtype=np.float64)
    if h.ndim != 2 or h.shape[0] != h.shape[1] or not np.allclose(h, h.T):
        raise UsageError(f"hessian has shape {h.shape}: use a symmetric matrix (d, d)")
    values, vectors = np.linalg.eigh(h)
    if values[0] < -1e-10 * max(1.0, values[-1]):
        raise UsageError(f"least eigenvalue of the Hessian = {values[0]:.4g}: use a positive semidefinite matrix")
    root = np.sqrt(values.clip(0))[:, None] * vectors.T  # rootᵀ root = H
    held_out = None if test is None else _as_outputs(root, test)
    return _solvable("squared", *_as_outputs(root, centres), start, held_out)


def _as_outputs(root: Array, centres: Array) -> tuple[Array, Array]:
    c = np.asarray(centres, dtype=np.float64)
    if c.ndim != 2 or c.shape[1] != len(root):
        raise UsageError(f"centres have shape {c.shape}: use (n, d) with d = {len(root)}")
    return np.broadcast_to(root, (len(c), *root.shape)), c @ root.T


def _solvable(
    kind: Literal["squared", "logistic"], inputs: Array, targets: Array, start: Array | None, test: tuple[Array, Array] | None
) -> Solvable:
    train = _examples(inputs, targets)
    d = train.inputs["x"].shape[2]
    theta = np.zeros(d) if start is None else np.asarray(start, dtype=np.float64)
    if theta.shape != (d,):
        raise UsageError(f"start θ⁰ has shape {theta.shape}: use ({d},)")
    held_out = train if test is None else _examples(*test)
    if held_out.inputs["x"].shape[2] != d:
        raise UsageError(f"test inputs have d = {held_out.inputs['x'].shape[2]}, the training inputs d = {d}: use the same d")
    problem = Problem(
        name="logistic regression" if kind == "logistic" else "least squares",
        settings={"n": len(train), "d": d},
        pretrained={"weight": torch.tensor(theta)},
        new_head=_no_head,
        logits=_linear,
        loss=_logistic if kind == "logistic" else _squared,
        train=train,
        test=held_out,
        metric=_sign_accuracy if kind == "logistic" else _mean_square,
        metric_name="accuracy" if kind == "logistic" else "negative mean square",
        loss_unit="nats" if kind == "logistic" else "squared error / 2",
    )
    return Solvable(problem, kind)


def _examples(inputs: Array, targets: Array) -> Examples:
    x, y = np.array(inputs, dtype=np.float64), np.array(targets, dtype=np.float64)
    if x.ndim == 2 and y.ndim == 1:
        x, y = x[:, None, :], y[:, None]
    if x.ndim != 3 or x.shape[:2] != y.shape or len(x) == 0:
        raise UsageError(f"inputs have shape {np.shape(inputs)} and targets {np.shape(targets)}: use (n, d) and (n,)")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UsageError("inputs and targets: some are not finite; use finite numbers")
    return Examples({"x": torch.tensor(x)}, torch.tensor(y))


def _no_head(draw: torch.Generator) -> Parameters:
    return {}


def _linear(parameters: Parameters, inputs: Mapping[str, Any]) -> Tensor:
    result: Tensor = inputs["x"] @ parameters["weight"]
    return result


def _squared(logits: Tensor, labels: Tensor) -> Tensor:
    return (0.5 * (logits - labels) ** 2).sum(-1)


def _logistic(logits: Tensor, labels: Tensor) -> Tensor:
    return (softplus(logits) - labels * logits).sum(-1)


def _mean_square(logits: Tensor, labels: Tensor) -> float:
    return -((logits - labels) ** 2).sum(-1).mean().item()


def _sign_accuracy(logits: Tensor, labels: Tensor) -> float:
    return ((logits > 0) == (labels > 0.5)).double().mean().item()
