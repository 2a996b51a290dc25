"""Problems whose leave-one-out answers are known exactly: linear, logistic and quadratic, in float64.

Each is an ordinary :class:`~stability.problems.problem.Problem`, so the whole toolchain runs on it, and knows besides what
the toolchain must find. The objective is F_w(θ) = Σ_j w_j ℓ_j(θ) / Σ_j w_j + λ‖θ − θ⁰‖² over the free coordinates, the
others at θ⁰: what :class:`~stability.training.algorithm.Minimisation` minimises under a mask.
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

from stability.errors import StabilityError, UsageError
from stability.masks import Parameters
from stability.problems.problem import Examples, Problem

__all__ = ["Solvable", "linear_regression", "logistic_regression", "quadratic"]

Array = NDArray[np.float64]
Coordinates = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Solvable:
    """Losses φ(X_i θ, y_i) of a model that is linear in θ ∈ R^d, with C outputs an example.

    Attributes:
        problem: the same thing for the toolchain: the parameters are ``weight`` (d,), there is no head.
        kind: ``squared`` for φ(f, y) = ½‖f − y‖², ``logistic`` for φ(f, y) = log(1 + e^f) − yf with C = 1, y ∈ {0, 1}.
    """

    problem: Problem
    kind: Literal["squared", "logistic"]

    @property
    def inputs(self) -> Array:
        """X, (n, C, d)."""
        array: Array = self.problem.train.inputs["x"].numpy()
        return array

    @property
    def targets(self) -> Array:
        """y, (n, C)."""
        array: Array = self.problem.train.labels.numpy()
        return array

    @property
    def start(self) -> Array:
        """θ⁰, (d,)."""
        array: Array = self.problem.pretrained["weight"].numpy()
        return array

    def parameters(self, theta: Array) -> dict[str, Tensor]:
        """θ as the problem's named tensors."""
        return {"weight": torch.tensor(theta)}

    def losses(self, theta: Array) -> Array:
        """ℓ of each example, (n,)."""
        f, y = self.inputs @ theta, self.targets
        return np.asarray((0.5 * (f - y) ** 2 if self.kind == "squared" else np.logaddexp(0, f) - y * f).sum(1))

    def gradients(self, theta: Array) -> Array:
        """∇ℓ of each example, (n, d)."""
        return np.asarray(np.einsum("ncd,nc->nd", self.inputs, self._slopes(self.inputs @ theta)))

    def hessian(self, theta: Array, weights: Array | None = None) -> Array:
        """∇² of the mean loss with these example weights (all 1 by default), without the ridge: (d, d)."""
        w = np.ones(self.problem.n) if weights is None else weights
        x = self.inputs
        return np.asarray(np.einsum("n,nc,ncd,nce->de", w / w.sum(), self._bends(x @ theta), x, x, optimize=True))

    def minimise(self, ridge: float, weights: Array | None = None, free: Coordinates | None = None) -> Array:
        """The minimiser of F_w by Newton's method with backtracking; one step is exact for squared losses.

        Args:
            ridge: λ > 0.
            weights: (n,) of the examples; all 1 by default.
            free: coordinates that may change; all by default.

        Raises:
            UsageError: λ is not positive.
            StabilityError: Newton's method did not converge.
        """
        if not ridge > 0:
            raise UsageError(f"ridge λ = {ridge}: use a positive number, so that the minimiser is unique")
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
                    raise StabilityError(f"Newton's method found no decrease at λ = {ridge:g}: use a larger ridge")
            theta = moved
        raise StabilityError(f"Newton's method did not converge: last step {before:.2g}; use a larger ridge")

    def leave_one_out(self, ridge: float, free: Coordinates | None = None) -> Array:
        """(n, 2): ℓ(A(S), z_i) and ℓ(A(Sⁱ), z_i), the mean of Sⁱ taken over its n − 1 examples.

        Squared losses have the closed form (I − H_ii)⁻¹ e_i (PRESS, Allen 1974), with residuals e and leverages
        H_ii = X_i (Σ_j X_jᵀX_j + 2λ(n − 1) I)⁻¹ X_iᵀ of the fit whose ridge is 2λ(n − 1)‖θ − θ⁰‖²/2 on the *sum* of the
        losses, since leaving out changes the normalisation. Logistic regression is solved anew for each i.

        Raises:
            UsageError: λ is not positive.
            StabilityError: Newton's method did not converge.
        """
        n = self.problem.n
        if n < 2:
            raise UsageError(f"n = {n}: leaving one out needs n ≥ 2")
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
    """ℓ = ½(xᵀθ − y)².

    Args:
        inputs: (n, d).
        targets: (n,).
        start: θ⁰ (d,), zero by default.
        test: inputs and targets of held-out examples; the training examples by default.

    Raises:
        UsageError: shapes that do not fit.

    Example:
        >>> solvable = linear_regression(np.array([[1.0], [1.0]]), np.array([0.0, 2.0]))
        >>> solvable.minimise(ridge=0.5)
        array([0.5])
    """
    return _solvable("squared", inputs, targets, start, test)


def logistic_regression(
    inputs: Array, targets: Array, start: Array | None = None, test: tuple[Array, Array] | None = None
) -> Solvable:
    """ℓ = log(1 + e^{xᵀθ}) − y xᵀθ with y ∈ {0, 1}: convex and ‖x‖-Lipschitz in θ. Arguments as :func:`linear_regression`.

    Raises:
        UsageError: shapes that do not fit, targets other than 0 and 1.

    Example:
        >>> logistic_regression(np.array([[1.0], [1.0]]), np.array([0.0, 1.0])).minimise(ridge=0.5)
        array([0.])
    """
    if not np.isin(targets, (0, 1)).all():
        raise UsageError("targets of logistic regression: use 0 and 1")
    return _solvable("logistic", inputs, targets, start, test)


def quadratic(hessian: Array, centres: Array, start: Array | None = None, test: Array | None = None) -> Solvable:
    """ℓ_i = ½(θ − c_i)ᵀ H (θ − c_i): every example has the same Hessian H, so A(S) and A(Sⁱ) are one solve each.

    Args:
        hessian: H (d, d), symmetric and positive semidefinite.
        centres: c_i, (n, d).
        start: θ⁰ (d,), zero by default.
        test: centres of held-out examples; the training examples by default.

    Raises:
        UsageError: shapes that do not fit, or H not symmetric positive semidefinite.

    Example:
        >>> quadratic(np.diag([1.0, 3.0]), np.array([[1.0, 1.0], [3.0, 1.0]])).minimise(ridge=0.5)
        array([1.  , 0.75])
    """
    h = np.asarray(hessian, dtype=np.float64)
    if h.ndim != 2 or h.shape[0] != h.shape[1] or not np.allclose(h, h.T):
        raise UsageError(f"Hessian of shape {h.shape}: a symmetric (d, d) matrix expected")
    values, vectors = np.linalg.eigh(h)
    if values[0] < -1e-10 * max(1.0, values[-1]):
        raise UsageError(f"least eigenvalue of the Hessian = {values[0]:.4g}: use a positive semidefinite matrix")
    root = np.sqrt(values.clip(0))[:, None] * vectors.T  # rootᵀ root = H
    held_out = None if test is None else _as_outputs(root, test)
    return _solvable("squared", *_as_outputs(root, centres), start, held_out)


def _as_outputs(root: Array, centres: Array) -> tuple[Array, Array]:
    c = np.asarray(centres, dtype=np.float64)
    if c.ndim != 2 or c.shape[1] != len(root):
        raise UsageError(f"centres {c.shape}: (n, d) with d = {len(root)} expected")
    return np.broadcast_to(root, (len(c), *root.shape)), c @ root.T


def _solvable(
    kind: Literal["squared", "logistic"], inputs: Array, targets: Array, start: Array | None, test: tuple[Array, Array] | None
) -> Solvable:
    train = _examples(inputs, targets)
    d = train.inputs["x"].shape[2]
    theta = np.zeros(d) if start is None else np.asarray(start, dtype=np.float64)
    if theta.shape != (d,):
        raise UsageError(f"start θ⁰ {theta.shape}: ({d},) expected")
    held_out = train if test is None else _examples(*test)
    if held_out.inputs["x"].shape[2] != d:
        raise UsageError(f"held-out inputs have d = {held_out.inputs['x'].shape[2]}, the training inputs d = {d}")
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
        raise UsageError(f"inputs {np.shape(inputs)} and targets {np.shape(targets)}: (n, d) and (n,) expected")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UsageError("inputs and targets: some are not finite")
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
