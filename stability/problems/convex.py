"""Convex problems with known answers, on generated data and on data that scikit-learn carries.

θ⁰ is a fit to data that S and the test set do not contain, as a pretrained model's is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes

from stability.errors import UsageError
from stability.problems import solvable
from stability.problems.solvable import Array, Solvable

__all__ = ["CONVEX", "linear", "logistic", "quadratic"]

_POOL = 1000  # generated examples
_PRETRAINING = 1 / 4  # of the pool


def linear(n: int = 100, seed: int = 0, data: str = "generated", d: int = 20) -> Solvable:
    """Linear regression, ℓ = ½(xᵀθ − y)².

    Args:
        n: size of S, drawn at random without replacement.
        seed: draws S, and the data where they are generated.
        data: ``generated``: x ~ N(0, diag(1/j)), y = xᵀθ* + N(0, ½²), θ* ~ N(0, I); or ``diabetes`` of scikit-learn (442
            patients, 10 features and a constant, all standardised as is y).
        d: number of features of generated data.

    Raises:
        UsageError: unknown data, or n out of range.

    Example:
        >>> linear(n=50, data="diabetes").problem.m
        11
    """
    if data == "diabetes":
        bunch = load_diabetes()
        x, y = _standardised(bunch.data), _standardised(bunch.target)
    else:
        draw, x, signal = _generated(data, d, seed, ("generated", "diabetes"))
        y = signal + 0.5 * draw.standard_normal(len(x))
    return _split("linear", x, y, n, seed, data)


def logistic(n: int = 100, seed: int = 0, data: str = "generated", d: int = 20) -> Solvable:
    """Logistic regression, ℓ = log(1 + e^{xᵀθ}) − y xᵀθ.

    Args:
        n: size of S, drawn at random without replacement.
        seed: draws S, and the data where they are generated.
        data: ``generated``: x ~ N(0, diag(1/j)), P(y = 1) = 1/(1 + e^{−xᵀθ*}), θ* ~ N(0, 2² I); or ``breast_cancer`` of
            scikit-learn (569 patients, 30 features and a constant, standardised).
        d: number of features of generated data.

    Raises:
        UsageError: unknown data, or n out of range.

    Example:
        >>> logistic(n=50, data="breast_cancer").problem.m
        31
    """
    if data == "breast_cancer":
        bunch = load_breast_cancer()
        x, y = _standardised(bunch.data), bunch.target.astype(np.float64)
    else:
        draw, x, signal = _generated(data, d, seed, ("generated", "breast_cancer"))
        y = (draw.random(len(x)) < 1 / (1 + np.exp(-2 * signal))).astype(np.float64)
    return _split("logistic", x, y, n, seed, data)


def quadratic(n: int = 100, seed: int = 0, d: int = 20, rotated: bool = False) -> Solvable:
    """Quadratic losses ½(θ − c_i)ᵀ H (θ − c_i) of one Hessian with eigenvalues 1, ½, …, 1/d and c_i ~ N(c, I).

    Args:
        n: size of S.
        seed: draws everything.
        d: number of coordinates.
        rotated: turn H's eigenvectors at random; otherwise H is diagonal, as Theorem 3 supposes.

    Raises:
        UsageError: n out of range.

    Example:
        >>> quadratic(n=10, d=5).problem.m
        5
    """
    _check_size(n, _POOL)
    draw = np.random.default_rng([seed, d])
    axes = np.linalg.qr(draw.standard_normal((d, d)))[0] if rotated else np.eye(d)
    hessian = (axes / np.arange(1, d + 1)) @ axes.T
    centres = draw.standard_normal(d) + draw.standard_normal((_POOL, d))
    made = solvable.quadratic(hessian, centres[:n], 0.5 * draw.standard_normal(d), centres[n:])
    return _named(made, "quadratic", {"n": n, "seed": seed, "d": d, "rotated": rotated})


CONVEX: dict[str, Callable[..., Solvable]] = {"linear": linear, "logistic": logistic, "quadratic": quadratic}
"""Maker of each solvable problem by its name."""


def _generated(data: str, d: int, seed: int, known: tuple[str, ...]) -> tuple[np.random.Generator, Array, Array]:
    if data != "generated":
        raise UsageError(f"unknown data {data!r}: use {' or '.join(known)}")
    if d < 1:
        raise UsageError(f"d = {d} features: use at least 1")
    draw = np.random.default_rng([seed, d])
    x = draw.standard_normal((_POOL, d)) / np.sqrt(np.arange(1, d + 1))
    return draw, x, x @ draw.standard_normal(d)


def _standardised(values: Array) -> Array:
    """Mean 0 and variance 1; features (N, d) get a constant 1 besides, which stands for the intercept."""
    z: Array = (values - values.mean(0)) / values.std(0)
    return np.column_stack([z, np.ones(len(z))]) if z.ndim == 2 else z


def _split(name: str, x: Array, y: Array, n: int, seed: int, data: str) -> Solvable:
    """A quarter of the pool to pretrain on, n examples for S, the others to test on."""
    order = np.random.default_rng(seed).permutation(len(x))
    old, rest = np.split(order, [int(_PRETRAINING * len(x))])
    _check_size(n, len(rest))
    make = solvable.linear_regression if name == "linear" else solvable.logistic_regression
    start = make(x[old], y[old]).minimise(ridge=0.1)
    made = make(x[rest[:n]], y[rest[:n]], start, (x[rest[n:]], y[rest[n:]]))
    return _named(made, name, {"data": data, "n": n, "d": x.shape[1], "seed": seed})


def _named(made: Solvable, name: str, settings: dict[str, Any]) -> Solvable:
    return replace(made, problem=replace(made.problem, name=name, settings=settings))


def _check_size(n: int, pool: int) -> None:
    if not 2 <= n < pool:
        raise UsageError(f"n = {n} training examples of a pool of {pool}: use 2 ≤ n < {pool}")
