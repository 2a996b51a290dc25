"""Second derivatives by products alone: the Hessian or Gauss–Newton matrix, its extreme eigenvalues and diagonal.

Everything after :class:`Curvature` works on any :class:`SymmetricMatrix`. Products run in the parameters' precision,
blocks of examples are added in float64, and what is made of them (Lanczos, means) is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor
from torch.func import grad, vjp, vmap

from stability.derivatives.gradients import blocks
from stability.errors import UsageError
from stability.masks import Mask, Parameters
from stability.problems.problem import Examples, Problem, generator

__all__ = [
    "Curvature",
    "Diagonal",
    "Eigenvalue",
    "SymmetricMatrix",
    "diagonal",
    "greatest_eigenvalue",
    "least_eigenvalue",
]

_PROBES_AT_ONCE = 16
_BASIS = 1 << 30  # bytes of Lanczos's basis
_DENSE = 100  # up to so many rows the whole matrix is cheaper than Lanczos, and exact


class SymmetricMatrix(Protocol):
    """A symmetric matrix known by its products."""

    @property
    def size(self) -> int:
        """k, its number of rows."""

    def product(self, vectors: Tensor) -> Tensor:
        """The matrix times each row of ``vectors`` (s, k), float64 on the CPU: (s, k)."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """∇²L or its Gauss–Newton part, where L is the *mean* of ℓ over ``examples``, restricted to a mask: H_II.

    The Hessian is Σ_i ∇²ℓ_i / N by reverse-over-reverse differentiation (Pearlmutter 1994). The Gauss–Newton matrix is
    Σ_i J_iᵀ Λ_i J_i / N, J_i the Jacobian of the logits and Λ_i = ∂²ℓ/∂f² (Schraudolph 2002): the Hessian without the
    curvature of the model itself, positive semidefinite where ℓ is convex in the logits.

    Attributes:
        problem: gives ℓ.
        parameters: all tensors of the model; where the matrix is taken.
        examples: N of them.
        mask: the k coordinates I; all by default, the head included.
        kind: ``hessian`` or ``gauss_newton``.
        memory_budget: bytes for one block of examples; an eighth of what is free by default.

    Raises:
        UsageError: an unknown kind, no examples, a mask that is empty or does not fit the parameters.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> hessian = Curvature(p, p.pretrained, p.train)
        >>> hessian.product(torch.ones(1, 3))
        tensor([[0.3333, 1.3333, 3.0000]], dtype=torch.float64)
    """

    problem: Problem
    parameters: Parameters = field(repr=False)
    examples: Examples
    mask: Mask | None = field(default=None, repr=False)
    kind: Literal["hessian", "gauss_newton"] = "hessian"
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("hessian", "gauss_newton"):
            raise UsageError(f"unknown kind of curvature {self.kind!r}: use 'hessian' or 'gauss_newton'")
        if len(self.examples) == 0:
            raise UsageError("the curvature of no examples: give at least 1")
        if self.mask is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.parameters.items()}
            odd = [name for name in self.mask.indices if self.mask.shapes[name] != shapes.get(name)]
            if odd or self.mask.count == 0:
                raise UsageError(f"the mask selects nothing of the parameters, or tensors that differ: {', '.join(odd) or 'empty'}")

    @cached_property
    def coordinates(self) -> Mask:
        """I."""
        return Mask.full(self.parameters) if self.mask is None else self.mask

    @property
    def size(self) -> int:
        """k."""
        return self.coordinates.count

    def product(self, vectors: Tensor) -> Tensor:
        """H v for each row v of ``vectors``: (s, k) → (s, k), float64 on the CPU.

        Raises:
            UsageError: rows that do not have k entries.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise UsageError(f"vectors have shape {tuple(vectors.shape)}: (s, k) with k = {self.size} expected")
        rows = vectors.to(self._values)
        result = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        for multiply in self._multipliers(min(_PROBES_AT_ONCE, len(rows))):
            result += torch.cat([multiply(part) for part in rows.split(_PROBES_AT_ONCE)]).detach()
        return (result / len(self.examples)).cpu()

    @cached_property
    def _values(self) -> Tensor:
        return self.coordinates.gather(self.parameters).detach()

    @cached_property
    def _splits(self) -> dict[int, list[Examples]]:
        return {}

    def _blocks(self, vectors: int) -> list[Examples]:
        """The examples in blocks that leave room for so many vectors at once."""
        if vectors not in self._splits:
            at = (self.problem, self.parameters, self.examples.by_length(), self.coordinates, self.memory_budget)
            self._splits[vectors] = list(blocks(*at, copies=vectors, at_most=len(self.examples)))
        return self._splits[vectors]

    @cached_property
    def _kept(self) -> Callable[[Tensor], Tensor]:
        return self._multiplier(self.examples)

    def _multipliers(self, vectors: int) -> Iterator[Callable[[Tensor], Tensor]]:
        """One a block; a single block's derivative is kept, for it serves every product."""
        if len(self._blocks(vectors)) == 1:
            yield self._kept
        else:
            yield from map(self._multiplier, self._blocks(vectors))

    def _multiplier(self, block: Examples) -> Callable[[Tensor], Tensor]:
        """(s, k) → (s, k), the *sum* over the block."""

        def logits(values: Tensor) -> Tensor:
            return self.problem.logits(self.coordinates.place(self.parameters, values), block.inputs)

        def loss(f: Tensor) -> Tensor:
            return self.problem.loss(f, block.labels).sum()

        if self.kind == "hessian":

            def whole(values: Tensor) -> Tensor:
                return loss(logits(values))

            pull = vjp(grad(whole), self._values)[1]

            def hessian(u: Tensor) -> Tensor:
                product: Tensor = pull(u)[0]
                return product

            return vmap(hessian)
        # J u as the derivative of Jᵀw by w: no forward mode, for which some operations have no rule.
        f, pull = vjp(logits, self._values)[:2]
        push = vjp(lambda w: pull(w)[0], torch.zeros_like(f))[1]
        bend = vjp(grad(loss), f)[1]

        def gauss_newton(u: Tensor) -> Tensor:
            product: Tensor = pull(bend(push(u)[0])[0])[0]
            return product

        return vmap(gauss_newton)


@dataclass(frozen=True)
class Eigenvalue:
    """An extreme eigenvalue.

    Attributes:
        value: the Ritz value, NaN where Lanczos did not converge. A least one is never below the true Λ_min, a greatest
            one never above Λ_max, but for rounding.
        residual: ‖Hv − value · v‖₂ for the unit Ritz vector v; some eigenvalue lies within it of ``value``.
        products: matrix–vector products spent.
        converged: whether Lanczos reached its tolerance.
    """

    value: float
    residual: float
    products: int
    converged: bool


def least_eigenvalue(matrix: SymmetricMatrix, tolerance: float = 1e-2, max_restarts: int = 30) -> Eigenvalue:
    """Λ_min by implicitly restarted Lanczos (Lehoucq & Sorensen 1996; scipy's ``eigsh``).

    The start vector is fixed, so the same input gives the same answer. Up to 100 rows the whole matrix is made.

    Args:
        matrix: of k rows.
        tolerance: accuracy asked of ARPACK, relative to |Λ_min| + ‖Hv‖/‖v‖ for a random v.
        max_restarts: of the recurrence, each about 20 products. The basis has 20 vectors; above k ≈ 6.7 million as many as take
            one gigabyte, at least 4, and it is restarted the more often.

    Returns:
        An :class:`Eigenvalue` whose ``converged`` is to be looked at: no convergence is no exception.

    Raises:
        UsageError: a tolerance that is not positive, or no restarts.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> round(least_eigenvalue(Curvature(p, p.pretrained, p.train)).value, 4)
        0.3333
    """
    return _extreme(matrix, 1.0, tolerance, max_restarts)


def greatest_eigenvalue(matrix: SymmetricMatrix, tolerance: float = 1e-2, max_restarts: int = 30) -> Eigenvalue:
    """Λ_max, as :func:`least_eigenvalue` finds Λ_min; of a Hessian it is the sharpness, and b where ℓ is b-smooth.

    Raises:
        UsageError: a tolerance that is not positive, or no restarts.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> round(greatest_eigenvalue(Curvature(p, p.pretrained, p.train)).value, 4)
        3.0
    """
    return _extreme(matrix, -1.0, tolerance, max_restarts)


def _extreme(matrix: SymmetricMatrix, sign: float, tolerance: float, max_restarts: int) -> Eigenvalue:
    """The least eigenvalue of sign · matrix, times sign."""
    if not tolerance > 0 or max_restarts < 1:
        raise UsageError(f"tolerance = {tolerance}, max_restarts = {max_restarts}: use a positive number and at least 1")
    k, products = matrix.size, 0

    def apply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal products
        products += 1
        rows = torch.from_numpy(np.array(vector, dtype=np.float64).reshape(1, -1))
        return sign * np.asarray(matrix.product(rows)[0].numpy())

    def found(value: float, vector: NDArray[np.float64]) -> Eigenvalue:
        residual = float(np.linalg.norm(apply(vector) - value * vector))
        return Eigenvalue(sign * value, residual, products, converged=True)

    failed = float("nan")
    if k <= _DENSE:
        whole = sign * matrix.product(torch.eye(k, dtype=torch.float64)).numpy()
        products += k
        if not np.isfinite(whole).all():
            return Eigenvalue(failed, failed, products, converged=False)
        values, vectors = np.linalg.eigh((whole + whole.T) / 2)
        return found(float(values[0]), vectors[:, 0])
    start = np.random.default_rng(0).standard_normal(k)
    # ARPACK first multiplies its start vector by the operator, and so never sees an exact null space, which is where
    # Λ_min = 0 lives. A shift of the Hessian's own scale moves the null space away from zero.
    shift = float(np.linalg.norm(apply(start)) / np.linalg.norm(start)) or 1.0
    basis = min(20, max(4, _BASIS // (8 * k)))  # by k alone: what is free at the moment must not decide a result
    restarts = max_restarts * 20 // basis
    operator = LinearOperator((k, k), matvec=lambda vector: apply(vector) - shift * vector.reshape(-1), dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=1, which="SA", tol=tolerance, maxiter=restarts, ncv=basis, v0=start)
    except ArpackError:  # no convergence, or products that are not finite
        return Eigenvalue(failed, failed, products, converged=False)
    return found(float(values[0]) + shift, vectors[:, 0])


@dataclass(frozen=True, eq=False)
class Diagonal:
    """An estimated diagonal.

    Attributes:
        value: (k,).
        standard_error: (k,), of the mean over probes: s/√probes with s the standard deviation (n − 1).
        probes: how many.
    """

    value: Tensor
    standard_error: Tensor
    probes: int


def diagonal(matrix: SymmetricMatrix, probes: int = 100, seed: int = 0) -> Diagonal:
    """diag(H) as the mean of z ⊙ Hz over independent z of ±1 (Hutchinson 1990; Bekas, Kokiopoulou & Saad 2007).

    Unbiased; one probe has variance Σ_{j≠i} H_ij² in entry i, so that a diagonal matrix is exact at once.

    Args:
        matrix: of k rows.
        probes: independent vectors, at least 2, so that there is a standard error.
        seed: draws them.

    Raises:
        UsageError: fewer than 2 probes.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> diagonal(Curvature(p, p.pretrained, p.train), probes=2).value
        tensor([0.3333, 1.3333, 3.0000], dtype=torch.float64)
    """
    if probes < 2:
        raise UsageError(f"probes = {probes}: use at least 2, so that the estimate has a standard error")
    draw = generator(seed, "probes")
    near: Tensor | float = 0.0  # the first probe's terms: squares of what is left do not cancel
    sums, squares = torch.zeros(2, matrix.size, dtype=torch.float64)
    for done in range(0, probes, _PROBES_AT_ONCE):
        shape = (min(_PROBES_AT_ONCE, probes - done), matrix.size)
        z = torch.randint(0, 2, shape, generator=draw).double() * 2 - 1
        terms = z * matrix.product(z)
        near = terms[0] if done == 0 else near
        sums += (terms - near).sum(0)
        squares += ((terms - near) ** 2).sum(0)
    mean = sums / probes
    variance = ((squares - probes * mean**2) / (probes - 1)).clamp_min(0)
    return Diagonal(near + mean, (variance / probes).sqrt(), probes)
