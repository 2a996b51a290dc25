"""First and second derivatives of a problem's loss: per-example gradients, their norms, the least eigenvalue.

Vectors over several tensors are the tensors flattened and joined in the order of their names in ``wanted``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor
from torch.func import grad, vmap

from stability.machine import free_memory
from stability.masks import Parameters
from stability.problem import Examples, Problem

__all__ = ["Eigenvalue", "gradient_norms", "hessian_vector_product", "least_eigenvalue", "per_example_gradients"]


def per_example_gradients(
    problem: Problem,
    parameters: Parameters,
    examples: Examples,
    wanted: tuple[str, ...],
    memory_budget: int | None = None,
) -> Iterator[Tensor]:
    """∇ℓ_i at ``parameters``, block after block of examples.

    Args:
        problem: gives ℓ.
        parameters: all tensors of the model.
        examples: N of them.
        wanted: names of the d coordinates' tensors to differentiate by.
        memory_budget: bytes that one block may take; an eighth of what is free by default.

    Yields:
        (B, d) in the parameters' precision, in the order of ``examples``.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits")
        >>> start = problem.start(seed=0)
        >>> blocks = per_example_gradients(problem, start, problem.train, ("classifier.bias",))
        >>> torch.cat(list(blocks)).shape
        torch.Size([100, 5])
    """
    moving = {name: parameters[name].detach() for name in wanted}
    fixed = {name: tensor.detach() for name, tensor in parameters.items() if name not in moving}

    def loss(moved: Parameters, one: dict[str, Tensor], label: Tensor) -> Tensor:
        batch = Examples({name: tensor.unsqueeze(0) for name, tensor in one.items()}, label.unsqueeze(0))
        return problem.losses({**fixed, **moved}, batch)[0]

    device = next(iter(parameters.values())).device
    d = sum(tensor.numel() for tensor in moving.values())
    element = next(iter(moving.values())).element_size()
    budget = memory_budget or free_memory(device) // 8
    size = int(max(1, min(256, budget // (4 * d * element))))
    for start in range(0, len(examples), size):
        block = examples.take(slice(start, start + size))
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(moving, dict(block.inputs), block.labels)
        yield torch.cat([gradients[name].flatten(1) for name in wanted], dim=1)


def gradient_norms(problem: Problem, parameters: Parameters, examples: Examples, memory_budget: int | None = None) -> Tensor:
    """‖∇ℓ_i‖₂ over *all* parameters, head included, for each example: float64 (N,).

    The largest of them over the points at hand is the measured ρ: a lower estimate of the Lipschitz constant of ℓ.
    """
    blocks = per_example_gradients(problem, parameters, examples, tuple(parameters), memory_budget)
    return torch.cat([block.double().norm(dim=1) for block in blocks])


def hessian_vector_product(problem: Problem, parameters: Parameters, examples: Examples, vector: Tensor) -> Tensor:
    """∇²L v, where L is the *mean* of ℓ over ``examples`` and the derivative is by all parameters, head included.

    Args:
        vector: (d,), in the order of ``parameters``.

    Returns:
        (d,) in the parameters' precision.
    """
    sizes = [tensor.numel() for tensor in parameters.values()]
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    loss = problem.losses(leaves, examples).mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    directions = vector.to(gradients[0]).split(sizes)
    inner = sum((g * v.view_as(g)).sum() for g, v in zip(gradients, directions, strict=True))
    products = torch.autograd.grad(inner, list(leaves.values()), materialize_grads=True)
    return torch.cat([product.reshape(-1) for product in products])


@dataclass(frozen=True)
class Eigenvalue:
    """An extreme eigenvalue of a Hessian.

    Attributes:
        value: the Ritz value; NaN where Lanczos did not converge.
        residual: ‖Hv − value · v‖₂ for the unit Ritz vector v; some eigenvalue lies within it of ``value``.
        products: Hessian–vector products spent.
        converged: whether Lanczos reached its tolerance.
    """

    value: float
    residual: float
    products: int
    converged: bool


def least_eigenvalue(
    problem: Problem, parameters: Parameters, examples: Examples, tolerance: float = 1e-2, max_restarts: int = 30
) -> Eigenvalue:
    """Λ_min of ∇²L over all parameters, head included, by implicitly restarted Lanczos (scipy's ``eigsh``).

    Products are taken in the parameters' precision, the Lanczos recurrence in float64. The start vector is fixed,
    so the same input gives the same answer.

    Args:
        examples: L is the mean of ℓ over these.
        tolerance: accuracy asked of ARPACK, relative to |Λ_min| + ‖Hv‖/‖v‖ for a random v.
        max_restarts: of the recurrence, each about 20 products.

    Example:
        >>> from stability.solvable import ridge_regression
        >>> import numpy as np
        >>> solvable = ridge_regression(np.eye(3) * [1.0, 2.0, 3.0], np.zeros(3), ridge=0.1)
        >>> round(least_eigenvalue(solvable.problem, solvable.parameters(solvable.start), solvable.problem.train).value, 4)
        0.3333
    """
    names = tuple(parameters)
    like = parameters[names[0]]
    d = sum(tensor.numel() for tensor in parameters.values())
    products = 0

    def apply(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        direction = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype=np.float64)).to(like)
        result: np.ndarray = hessian_vector_product(problem, parameters, examples, direction).double().cpu().numpy()
        return result

    if d <= 20:  # ARPACK needs room for its basis; here the whole matrix is cheaper
        matrix = np.stack([apply(column) for column in np.eye(d)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        return Eigenvalue(float(values[0]), float(np.linalg.norm(matrix @ vectors[:, 0] - values[0] * vectors[:, 0])), d, True)
    start = np.random.default_rng(0).standard_normal(d)
    # ARPACK first multiplies its start vector by the operator, and so never sees an exact null space, which is where
    # Λ_min = 0 lives. A shift of the Hessian's own scale moves the null space away from zero.
    shift = float(np.linalg.norm(apply(start)) / np.linalg.norm(start)) or 1.0
    operator = LinearOperator((d, d), matvec=lambda vector: apply(vector) - shift * vector.reshape(-1), dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=1, which="SA", tol=tolerance, maxiter=max_restarts, ncv=20, v0=start)
    except ArpackError:  # no convergence, or products that are not finite
        return Eigenvalue(float("nan"), float("nan"), products, converged=False)
    vector, value = vectors[:, 0], float(values[0]) + shift
    residual = float(np.linalg.norm(apply(vector) - value * vector))
    return Eigenvalue(value, residual, products, converged=True)
