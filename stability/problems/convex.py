"""Convex problems with known answers, on generated data and on data that scikit-learn carries.

The pretrained θ⁰ is a fit to a quarter of the examples, which neither S nor the test set contains. The makers here return a
:class:`~stability.problems.solvable.Solvable`, which knows the exact answers; the functions ``load_…`` return its
:class:`~stability.problems.problem.Problem` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from stability.checks import check_choice, check_flags, check_whole
from stability.problems import solvable
from stability.problems.problem import Problem
from stability.problems.solvable import Array, Solvable

__all__ = ["CONVEX", "linear", "load_linear", "load_logistic", "load_quadratic", "logistic", "quadratic"]

_GENERATED = 1000  # examples
_PRETRAINING = 1 / 4  # of all examples


def load_linear(n: int = 100, seed: int = 0, *, data: Literal["generated", "diabetes"] = "generated", d: int = 20) -> Problem:
    """Linear regression in float64, ℓ = ½(xᵀθ − y)². :func:`linear` gives the exact leave-one-out losses as well.

    Args:
        n: size of S, drawn at random without replacement.
        seed: draws S, and the data where they are generated.
        data: ``generated``, 1000 examples with x ~ N(0, diag(1/j)), y = xᵀθ* + N(0, ½²) and θ* ~ N(0, I); or ``diabetes`` of
            scikit-learn: 442 patients, 10 features and a constant, features and y standardised.
        d: number of features of generated data.

    Raises:
        UsageError: the data are unknown, or n, seed or d is out of range.

    Example:
        >>> load_linear(n=50, data="diabetes").m
        11
    """
    return linear(n, seed, data=data, d=d).problem


def load_logistic(
    n: int = 100, seed: int = 0, *, data: Literal["generated", "breast_cancer"] = "generated", d: int = 20
) -> Problem:
    """Logistic regression in float64, ℓ = log(1 + e^{xᵀθ}) − y xᵀθ in nats. :func:`logistic` gives the exact answers as well.

    Args:
        n: size of S, drawn at random without replacement.
        seed: draws S, and the data where they are generated.
        data: ``generated``, 1000 examples with x ~ N(0, diag(1/j)), P(y = 1) = 1/(1 + e^{−xᵀθ*}) and θ* ~ N(0, 2² I); or
            ``breast_cancer`` of scikit-learn: 569 patients, 30 features and a constant, features standardised.
        d: number of features of generated data.

    Raises:
        UsageError: the data are unknown, or n, seed or d is out of range.

    Example:
        >>> load_logistic(n=50, data="breast_cancer").m
        31
    """
    return logistic(n, seed, data=data, d=d).problem


def load_quadratic(n: int = 100, seed: int = 0, *, d: int = 20, rotated: bool = False) -> Problem:
    """Quadratic losses ½(θ − c_i)ᵀ H (θ − c_i) in float64. :func:`quadratic` gives the exact answers as well.

    All examples share the Hessian H with the eigenvalues 1, ½, …, 1/d; the centres are c_i ~ N(c, I).

    Args:
        n: size of S.
        seed: draws everything.
        d: number of coordinates.
        rotated: turn H's eigenvectors at random. Otherwise H is diagonal, as Theorem 3 of Fu et al. 2023 assumes.

    Raises:
        UsageError: n, seed or d is out of range.

    Example:
        >>> load_quadratic(n=10, d=5).m
        5
    """
    return quadratic(n, seed, d=d, rotated=rotated).problem


def linear(n: int = 100, seed: int = 0, *, data: Literal["generated", "diabetes"] = "generated", d: int = 20) -> Solvable:
    """Linear regression with its exact answers; :func:`load_linear` gives the same problem without them.

    Args:
        n: size of S, drawn at random without replacement.
        seed: draws S, and the data where they are generated.
        data: ``generated`` or ``diabetes``; :func:`load_linear` describes both.
        d: number of features of generated data.

    Raises:
        UsageError: the data are unknown, or n, seed or d is out of range.

    Example:
        >>> linear(n=50, data="diabetes").leave_one_out(ridge=0.1).shape
        (50, 2)
    """
    check_choice(("generated", "diabetes"), data=data)
    if data == "diabetes":
        from sklearn.datasets import load_diabetes  # scikit-learn only where its data are asked for: it is slow to import

        bunch = load_diabetes()
        x, y = _standardised(bunch.data), _standardised(bunch.target)
    else:
        draw, x, signal = _generated(d, seed)
        y = signal + 0.5 * draw.standard_normal(len(x))
    return _split("linear", x, y, n, seed, data)


def logistic(n: int = 100, seed: int = 0, *, data: Literal["generated", "breast_cancer"] = "generated", d: int = 20) -> Solvable:
    """Logistic regression with its exact answers; :func:`load_logistic` gives the same problem without them.

    Args:
        n: size of S, drawn at random without replacement.
        seed: draws S, and the data where they are generated.
        data: ``generated`` or ``breast_cancer``; :func:`load_logistic` describes both.
        d: number of features of generated data.

    Raises:
        UsageError: the data are unknown, or n, seed or d is out of range.

    Example:
        >>> logistic(n=10).leave_one_out(ridge=0.1).shape
        (10, 2)
    """
    check_choice(("generated", "breast_cancer"), data=data)
    if data == "breast_cancer":
        from sklearn.datasets import load_breast_cancer  # scikit-learn only where its data are asked for

        bunch = load_breast_cancer()
        x, y = _standardised(bunch.data), bunch.target.astype(np.float64)
    else:
        draw, x, signal = _generated(d, seed)
        y = (draw.random(len(x)) < 1 / (1 + np.exp(-2 * signal))).astype(np.float64)
    return _split("logistic", x, y, n, seed, data)


def quadratic(n: int = 100, seed: int = 0, *, d: int = 20, rotated: bool = False) -> Solvable:
    """Quadratic losses of one Hessian with their exact answers; :func:`load_quadratic` gives the same problem without them.

    Args:
        n: size of S.
        seed: draws everything.
        d: number of coordinates.
        rotated: turn H's eigenvectors at random. Otherwise H is diagonal, as Theorem 3 of Fu et al. 2023 assumes.

    Raises:
        UsageError: n, seed or d is out of range.

    Example:
        >>> quadratic(n=10, d=5).leave_one_out(ridge=0.1).shape
        (10, 2)
    """
    check_whole(0, seed=seed)
    check_whole(1, d=d)
    check_flags(rotated=rotated)
    _check_size(n, _GENERATED)
    draw = np.random.default_rng([seed, d])
    axes = np.linalg.qr(draw.standard_normal((d, d)))[0] if rotated else np.eye(d)
    hessian = (axes / np.arange(1, d + 1)) @ axes.T
    centres = draw.standard_normal(d) + draw.standard_normal((_GENERATED, d))
    made = solvable.quadratic(hessian, centres[:n], 0.5 * draw.standard_normal(d), centres[n:])
    return _named(made, "quadratic", {"n": n, "seed": seed, "d": d, "rotated": rotated})


CONVEX: dict[str, Callable[..., Solvable]] = {"linear": linear, "logistic": logistic, "quadratic": quadratic}
"""Each maker of a problem with its exact answers, by the problem's name."""


def _generated(d: int, seed: int) -> tuple[np.random.Generator, Array, Array]:
    """The generator, x (N, d) and xᵀθ* (N,) for θ* ~ N(0, I)."""
    check_whole(0, seed=seed)
    check_whole(1, d=d)
    draw = np.random.default_rng([seed, d])
    x = draw.standard_normal((_GENERATED, d)) / np.sqrt(np.arange(1, d + 1))
    return draw, x, x @ draw.standard_normal(d)


def _standardised(values: Array) -> Array:
    """Mean 0 and variance 1. Features (N, d) also get a constant 1, which stands for the intercept."""
    z: Array = (values - values.mean(0)) / values.std(0)
    return np.column_stack([z, np.ones(len(z))]) if z.ndim == 2 else z


def _split(name: str, x: Array, y: Array, n: int, seed: int, data: str) -> Solvable:
    """A quarter of the examples to pretrain on, n for S, the others to test on."""
    check_whole(0, seed=seed)
    order = np.random.default_rng(seed).permutation(len(x))
    old, rest = np.split(order, [int(_PRETRAINING * len(x))])
    _check_size(n, len(rest))
    make = solvable.linear_regression if name == "linear" else solvable.logistic_regression
    start = make(x[old], y[old]).minimise(ridge=0.1)
    made = make(x[rest[:n]], y[rest[:n]], start, (x[rest[n:]], y[rest[n:]]))
    return _named(made, name, {"data": data, "n": n, "d": x.shape[1], "seed": seed})


def _named(made: Solvable, name: str, settings: dict[str, Any]) -> Solvable:
    return replace(made, problem=replace(made.problem, name=name, settings=settings))


def _check_size(n: int, examples: int) -> None:
    check_whole(2, examples - 1, f"S and the test set share {examples} examples", n=n)
