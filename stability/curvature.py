"""Second derivatives by products alone: the Hessian or Gauss–Newton matrix, its extreme eigenvalues, diagonal, inverse.

Everything after :class:`Curvature` works on any :class:`SymmetricMatrix`. Products run in the parameters' precision and
are summed over examples in float64; what is made of them (Lanczos, conjugate gradients, means) is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor
from torch.func import grad, vjp, vmap

from stability.errors import StabilityError, UsageError
from stability.gradients import blocks, per_example_gradients
from stability.masks import Mask, Parameters
from stability.problem import Examples, Problem, generator

__all__ = [
    "Curvature",
    "Diagonal",
    "Eigenvalue",
    "SymmetricMatrix",
    "diagonal",
    "first_order_changes",
    "greatest_eigenvalue",
    "least_eigenvalue",
    "solve",
]

_PROBES_AT_ONCE = 16
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
        UsageError: an unknown kind, no examples.

    Example:
        >>> from stability.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> hessian = Curvature(p, p.pretrained, p.train)
        >>> hessian.product(torch.ones(1, 3))
        tensor([[0.3333, 1.3333, 3.0000]], dtype=torch.float64)
    """

    problem: Problem
    parameters: Parameters
    examples: Examples
    mask: Mask | None = None
    kind: Literal["hessian", "gauss_newton"] = "hessian"
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("hessian", "gauss_newton"):
            raise UsageError(f"unknown kind of curvature {self.kind!r}: use 'hessian' or 'gauss_newton'")
        if len(self.examples) == 0:
            raise UsageError("the curvature of no examples: give at least 1")

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
        total = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        for multiply in self._multipliers():
            total += torch.cat([multiply(part) for part in rows.split(_PROBES_AT_ONCE)]).detach()
        return (total / len(self.examples)).cpu()

    @cached_property
    def _values(self) -> Tensor:
        return self.coordinates.gather(self.parameters).detach()

    @cached_property
    def _blocks(self) -> list[Examples]:
        return list(
            blocks(self.problem, self.parameters, self.examples, self.coordinates, self.memory_budget, copies=_PROBES_AT_ONCE)
        )

    @cached_property
    def _kept(self) -> Callable[[Tensor], Tensor]:
        return self._multiplier(self.examples)

    def _multipliers(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """One a block; a single block's derivative is kept, for it serves every product."""
        if len(self._blocks) == 1:
            yield self._kept
        else:
            yield from map(self._multiplier, self._blocks)

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
        max_restarts: of the recurrence, each about 20 products.

    Returns:
        An :class:`Eigenvalue` whose ``converged`` is to be looked at: no convergence is no exception.

    Example:
        >>> from stability.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> round(least_eigenvalue(Curvature(p, p.pretrained, p.train)).value, 4)
        0.3333
    """
    return _extreme(matrix, 1.0, tolerance, max_restarts)


def greatest_eigenvalue(matrix: SymmetricMatrix, tolerance: float = 1e-2, max_restarts: int = 30) -> Eigenvalue:
    """Λ_max, as :func:`least_eigenvalue` finds Λ_min; of a Hessian it is the sharpness, and b where ℓ is b-smooth.

    Example:
        >>> from stability.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> round(greatest_eigenvalue(Curvature(p, p.pretrained, p.train)).value, 4)
        3.0
    """
    return _extreme(matrix, -1.0, tolerance, max_restarts)


def _extreme(matrix: SymmetricMatrix, sign: float, tolerance: float, max_restarts: int) -> Eigenvalue:
    """The least eigenvalue of sign · matrix, times sign."""
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
    operator = LinearOperator((k, k), matvec=lambda vector: apply(vector) - shift * vector.reshape(-1), dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=1, which="SA", tol=tolerance, maxiter=max_restarts, ncv=20, v0=start)
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
        >>> from stability.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> diagonal(Curvature(p, p.pretrained, p.train), probes=2).value
        tensor([0.3333, 1.3333, 3.0000], dtype=torch.float64)
    """
    if probes < 2:
        raise UsageError(f"probes = {probes}: use at least 2, so that the estimate has a standard error")
    draw = generator(seed, "probes")
    total, squares = torch.zeros(2, matrix.size, dtype=torch.float64)
    for done in range(0, probes, _PROBES_AT_ONCE):
        shape = (min(_PROBES_AT_ONCE, probes - done), matrix.size)
        z = torch.randint(0, 2, shape, generator=draw).double() * 2 - 1
        terms = z * matrix.product(z)
        total += terms.sum(0)
        squares += (terms**2).sum(0)
    mean = total / probes
    variance = ((squares - probes * mean**2) / (probes - 1)).clamp_min(0)
    return Diagonal(mean, (variance / probes).sqrt(), probes)


def solve(matrix: SymmetricMatrix, vectors: Tensor, shift: float = 0.0, tolerance: float = 1e-6, max_steps: int = 1000) -> Tensor:
    """(H + shift · I)⁻¹ v for each row v, by conjugate gradients for all rows at once (Hestenes & Stiefel 1952).

    scipy's ``cg`` takes one v at a time, and products with many vectors at once are what is cheap here.

    Args:
        matrix: H, with H + shift · I positive definite.
        vectors: (s, k).
        shift: 2λ for a ridge λ‖θ − θ⁰‖².
        tolerance: ‖residual‖ relative to ‖v‖.
        max_steps: for each v.

    Returns:
        (s, k) float64 on the CPU.

    Raises:
        StabilityError: no convergence, or a direction along which H + shift · I is not positive.

    Example:
        >>> from stability.solvable import linear_regression
        >>> p = linear_regression(np.eye(2), np.zeros(2)).problem
        >>> solve(Curvature(p, p.pretrained, p.train), torch.ones(1, 2), shift=0.5)
        tensor([[1., 1.]], dtype=torch.float64)
    """
    residual = vectors.double().cpu()
    x, direction = torch.zeros_like(residual), residual
    square = (residual**2).sum(1)
    target = tolerance**2 * square
    for _ in range(max_steps + 1):
        rows = torch.nonzero(square > target).squeeze(1)  # those that are done cost no more products
        if len(rows) == 0:
            return x
        d = direction[rows]
        image = matrix.product(d) + shift * d
        bend = (d * image).sum(1)
        if not bool((bend > 0).all()):
            raise StabilityError(
                f"H + {shift:.4g} I is not positive definite: vᵀ(H + {shift:.4g} I)v/‖v‖² = "
                f"{float((bend / (d**2).sum(1)).min()):.4g} for a v; use a larger ridge"
            )
        length = square[rows] / bend
        x = x.index_add(0, rows, length[:, None] * d)
        residual = residual.index_add(0, rows, -length[:, None] * image)
        before, square = square, (residual**2).sum(1)
        direction = direction.index_copy(0, rows, residual[rows] + (square[rows] / before[rows])[:, None] * d)
    raise StabilityError(
        f"conjugate gradients did not reach a relative residual of {tolerance:g} in {max_steps} steps for {len(rows)} of "
        f"{len(vectors)} vectors: use a larger ridge or tolerance"
    )


def first_order_changes(
    hessian: Curvature, ridge: float = 0.0, left_out: Sequence[int] | None = None, tolerance: float = 1e-4
) -> Tensor:
    """ℓ_i(A(Sⁱ)) − ℓ_i(A(S)) to first order, for many i at once, from A(S) alone: float64 (a,).

    (g_i − ḡ)ᵀ (H_II + 2λI)⁻¹ g_i / (n − 1), with g_i = ∇_I ℓ_i, ḡ their mean: one Newton step from A(S), the minimiser
    of L + λ‖θ − θ⁰‖² over I, towards that of the mean over the n − 1 examples that remain (Koh & Liang 2017's influence
    on the own loss, for this normalisation). Exact to first order in what one example weighs; not an upper bound.

    Args:
        hessian: of the mean loss over S at A(S), restricted to I.
        ridge: λ.
        left_out: the a examples i; all n by default.
        tolerance: of the conjugate gradients, and so about the relative error of the result.

    Raises:
        UsageError: fewer than 2 examples, or one left out that there is not.
        StabilityError: H_II + 2λI is not positive definite, or conjugate gradients did not converge.

    Example:
        >>> from stability.solvable import linear_regression
        >>> p = linear_regression(np.ones((2, 1)), np.array([0.0, 2.0])).problem
        >>> first_order_changes(Curvature(p, {"weight": torch.ones(1, dtype=torch.float64)}, p.train))
        tensor([1., 1.], dtype=torch.float64)
    """
    n = len(hessian.examples)
    if n < 2:
        raise UsageError(f"n = {n}: leaving one out needs n ≥ 2")
    chosen = torch.arange(n) if left_out is None else torch.as_tensor(left_out, dtype=torch.int64)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < n:
        raise UsageError(f"left_out = {chosen.tolist()}: use indices of the n = {n} examples, 0 to {n - 1}")

    def gradients(examples: Examples) -> Iterator[Tensor]:
        at = (hessian.problem, hessian.parameters, examples, hessian.coordinates, hessian.memory_budget)
        return (block.double().cpu() for block in per_example_gradients(*at))

    mean = torch.stack([block.sum(0) for block in gradients(hessian.examples)]).sum(0) / n
    some = hessian.examples.take(chosen)
    parts = [((block - mean) * solve(hessian, block, 2 * ridge, tolerance)).sum(1) for block in gradients(some)]
    return torch.cat(parts) / (n - 1)
