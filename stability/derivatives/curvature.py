"""The Hessian and the Gauss–Newton matrix by their products with vectors, their extreme eigenvalues and their diagonal.

All but :class:`Curvature` works on any :class:`SymmetricMatrix`. Products are computed in the parameters' precision. The sum over
blocks of examples and everything that is computed from products is in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor
from torch.func import grad, vjp, vmap

from stability.checks import check_choice, check_positive, check_whole
from stability.derivatives.gradients import blocks
from stability.errors import MeasurementError, UsageError
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
_BASIS = 1 << 30  # the most bytes of Lanczos's basis
_DENSE = 100  # up to this many rows the whole matrix is cheaper than Lanczos, and exact


class SymmetricMatrix(Protocol):
    """A symmetric matrix that is known by its products with vectors.

    Example:
        >>> class Twice:  # twice the identity
        ...     size = 3
        ...
        ...     def product(self, vectors):
        ...         return 2 * vectors
        >>> greatest_eigenvalue(Twice()).value
        2.0
    """

    @property
    def size(self) -> int:
        """The number k of rows."""

    def product(self, vectors: Tensor) -> Tensor:
        """The product of the matrix with many vectors.

        Args:
            vectors: one vector in each row, (s, k), float64 on the CPU.

        Returns:
            One product in each row, (s, k), float64 on the CPU.
        """


@dataclass(frozen=True, eq=False)
class Curvature:
    """The Hessian H_II of the mean loss, or its Gauss–Newton part, at the coordinates I of a mask.

    The Hessian is Σ_i ∇²ℓ_i / N, by reverse-over-reverse differentiation (Pearlmutter 1994). The Gauss–Newton matrix is
    Σ_i J_iᵀ Λ_i J_i / N with the Jacobian J_i of the logits and Λ_i = ∂²ℓ/∂f² (Schraudolph 2002). It is the Hessian without the
    curvature of the model itself, and positive semidefinite where ℓ is convex in the logits.

    Attributes:
        problem: the problem whose loss ℓ is differentiated.
        parameters: all tensors of the model, by name: the point at which the matrix is taken.
        examples: the N examples.
        mask: the k coordinates I; by default all, the head included.
        kind: ``hessian`` or ``gauss_newton``.
        memory_budget: bytes that one block of examples may take; by default an eighth of what is free.

    Raises:
        UsageError: the kind is unknown, there are no examples, or the mask is empty or does not fit the parameters.

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
    _: KW_ONLY
    kind: Literal["hessian", "gauss_newton"] = "hessian"
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        check_choice(("hessian", "gauss_newton"), kind=self.kind)
        check_whole(1, memory_budget=1 if self.memory_budget is None else self.memory_budget)
        if len(self.examples) == 0:
            raise UsageError("the curvature of no examples: give at least 1")
        if self.mask is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.parameters.items()}
            odd = [name for name in self.mask.indices if self.mask.shapes[name] != shapes.get(name)]
            if odd or self.mask.count == 0:
                wrong = f"tensors that the parameters lack or have in another shape: {', '.join(odd)}" if odd else "no coordinates"
                raise UsageError(f"the mask selects {wrong}: use one of these parameters")

    @cached_property
    def coordinates(self) -> Mask:
        """The coordinates I, as a mask."""
        return Mask.full(self.parameters) if self.mask is None else self.mask

    @property
    def size(self) -> int:
        """The number k of coordinates, and of rows."""
        return self.coordinates.count

    def product(self, vectors: Tensor) -> Tensor:
        """The product of the matrix with many vectors.

        Args:
            vectors: one vector in each row, (s, k).

        Returns:
            One product in each row, (s, k), float64 on the CPU.

        Raises:
            UsageError: the rows do not have k entries.
            MeasurementError: the model or the loss cannot be differentiated twice.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise UsageError(f"vectors have shape {tuple(vectors.shape)}: use (s, k) with k = {self.size}")
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
        """The examples in blocks that leave room for this many vectors at once."""
        if vectors not in self._splits:
            at = (self.problem, self.parameters, self.examples.by_length(), self.coordinates)
            some = blocks(*at, memory_budget=self.memory_budget, copies=vectors, at_most=len(self.examples))
            self._splits[vectors] = list(some)
        return self._splits[vectors]

    @cached_property
    def _kept(self) -> Callable[[Tensor], Tensor]:
        return self._multiplier(self.examples)

    def _multipliers(self, vectors: int) -> Iterator[Callable[[Tensor], Tensor]]:
        """One for each block. The derivative of a single block is kept, because every product needs it."""
        if len(self._blocks(vectors)) == 1:
            yield self._kept
        else:
            yield from map(self._multiplier, self._blocks(vectors))

    def _multiplier(self, block: Examples) -> Callable[[Tensor], Tensor]:
        """A function (s, k) → (s, k): the products with the *sum* over the block."""

        def logits(values: Tensor) -> Tensor:
            return self.problem.logits(self.coordinates.place(self.parameters, values), block.inputs)

        def loss(f: Tensor) -> Tensor:
            return self.problem.loss(f, block.labels).sum()

        if not self.problem.batched:
            return self._plain_multiplier(logits, loss)
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

    def _plain_multiplier(self, logits: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same by torch's plain automatic differentiation, one vector after the other."""
        values = self._values.clone().requires_grad_()
        f = logits(values)
        one = values.new_ones(()).requires_grad_()  # so that torch marks what can be differentiated only once

        def derivative(of: Tensor, by: Tensor, along: Tensor | None = None, graph: bool = False) -> Tensor:
            return torch.autograd.grad(of, by, along, create_graph=graph, retain_graph=True, materialize_grads=True)[0]

        def first(of: Tensor, by: Tensor, along: Tensor | None = None) -> Tensor:
            """A derivative that is differentiated again, in every product; whether it can be is looked for here, once."""
            found = derivative(of, by, along, graph=True) if of.requires_grad else of
            if not found.requires_grad or _marked(found):
                raise MeasurementError("the curvature is unknown: the model or the loss cannot be differentiated twice")
            return found

        if self.kind == "hessian":
            slope = first(one * loss(f), values)
            return lambda vectors: torch.stack([derivative(slope, values, u) for u in vectors])
        g = f.detach().requires_grad_()
        bent = first(one * loss(g), g)
        w = torch.zeros_like(f, requires_grad=True)
        pulled = first(f, values, w)

        def gauss_newton(u: Tensor) -> Tensor:
            return derivative(f, values, derivative(bent, g, derivative(pulled, w, u)))

        return lambda vectors: torch.stack([gauss_newton(u) for u in vectors])


def _marked(tensor: Tensor) -> bool:
    """Whether torch would raise an error in a derivative of this one, but for the way around it.

    The first derivative of an operation that has no second one is a constant to torch, which leaves a mark and goes on.
    """
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "Error" in node.name():
            return True
        waiting += [before for before, _ in node.next_functions]
    return False


@dataclass(frozen=True)
class Eigenvalue:
    """The least or the greatest eigenvalue, as it was computed.

    Attributes:
        value: the Ritz value; NaN where Lanczos did not converge. Apart from rounding, the value for Λ_min is never below Λ_min,
            and that for Λ_max never above Λ_max.
        residual: ‖Hv − value · v‖₂ with the unit Ritz vector v. Some eigenvalue is at most this far from ``value``.
        products: the number of matrix–vector products that it took.
        converged: whether Lanczos reached its tolerance.

    Example:
        >>> Eigenvalue(value=0.5, residual=1e-9, products=21, converged=True).value
        0.5
    """

    value: float
    residual: float
    products: int
    converged: bool


def least_eigenvalue(matrix: SymmetricMatrix, tolerance: float = 1e-2, max_restarts: int = 30) -> Eigenvalue:
    """The least eigenvalue Λ_min, by implicitly restarted Lanczos (Lehoucq & Sorensen 1996; scipy's ``eigsh``).

    The start vector is fixed, so that the same input gives the same answer. A matrix of at most 100 rows is computed in full.

    Args:
        matrix: the matrix, with k rows.
        tolerance: the error that is asked of ARPACK, relative to |Λ_min| + ‖Hv‖/‖v‖ for a random v.
        max_restarts: how often Lanczos may be restarted, where each restart takes about 20 products. Above k ≈ 6.7 million the
            basis of 20 vectors would take more than a gigabyte. It is then smaller, and may be restarted more often.

    Returns:
        The eigenvalue. Check its ``converged``: where Lanczos does not converge, there is no exception.

    Raises:
        UsageError: the tolerance is no positive number, or ``max_restarts`` no whole number of at least 1.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> round(least_eigenvalue(Curvature(p, p.pretrained, p.train)).value, 4)
        0.3333
    """
    return _extreme(matrix, 1.0, tolerance, max_restarts)


def greatest_eigenvalue(matrix: SymmetricMatrix, tolerance: float = 1e-2, max_restarts: int = 30) -> Eigenvalue:
    """The greatest eigenvalue Λ_max, by implicitly restarted Lanczos (Lehoucq & Sorensen 1996; scipy's ``eigsh``).

    Of a Hessian it is the sharpness, a lower estimate of the b for which L is b-smooth.

    Args:
        matrix: the matrix, with k rows.
        tolerance: the error that is asked of ARPACK, relative to |Λ_max| + ‖Hv‖/‖v‖ for a random v.
        max_restarts: how often Lanczos may be restarted, where each restart takes about 20 products; more often above
            k ≈ 6.7 million, where the basis is smaller.

    Returns:
        The eigenvalue. Check its ``converged``: where Lanczos does not converge, there is no exception.

    Raises:
        UsageError: the tolerance is no positive number, or ``max_restarts`` no whole number of at least 1.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> round(greatest_eigenvalue(Curvature(p, p.pretrained, p.train)).value, 4)
        3.0
    """
    return _extreme(matrix, -1.0, tolerance, max_restarts)


def _extreme(matrix: SymmetricMatrix, sign: float, tolerance: float, max_restarts: int) -> Eigenvalue:
    """The least eigenvalue of sign · matrix, times sign."""
    check_positive(tolerance=tolerance)
    check_whole(1, max_restarts=max_restarts)
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
        value: the mean over the probes, float64 (k,).
        standard_error: the standard error of each entry, float64 (k,): s/√probes, with the standard deviation s over the probes
            (divisor probes − 1).
        probes: the number of probes.

    Example:
        >>> Diagonal(value=torch.ones(2), standard_error=torch.zeros(2), probes=100).probes
        100
    """

    value: Tensor
    standard_error: Tensor
    probes: int


def diagonal(matrix: SymmetricMatrix, probes: int = 100, seed: int = 0) -> Diagonal:
    """Estimate the diagonal of a matrix H by the mean of z ⊙ Hz over random z of ±1 (Hutchinson 1990; Bekas et al. 2007).

    The estimate is unbiased. In entry i, one probe has the variance Σ_{j≠i} H_ij², so that a diagonal matrix is exact at once.

    Args:
        matrix: the matrix, with k rows.
        probes: the number of independent vectors z; at least 2, so that there is a standard error.
        seed: draws the vectors.

    Returns:
        The diagonal with its standard error.

    Raises:
        UsageError: ``probes`` is no whole number of at least 2.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3)).problem
        >>> diagonal(Curvature(p, p.pretrained, p.train), probes=2).value
        tensor([0.3333, 1.3333, 3.0000], dtype=torch.float64)
    """
    check_whole(2, None, "the standard error needs two", probes=probes)
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
