"""Derivatives of any problem, exact and in blocks that fit into memory.

Gradients and Jacobians of each example; the Hessian and the Gauss–Newton matrix by their products; and what leaving one example
out changes to first order.
"""

from stability.derivatives.curvature import (
    Curvature,
    Diagonal,
    Eigenvalue,
    SymmetricMatrix,
    diagonal,
    greatest_eigenvalue,
    least_eigenvalue,
)
from stability.derivatives.gradients import (
    gauss_newton_diagonals,
    gradient_norms,
    mean_gradient,
    per_example_gradients,
    per_example_jacobians,
)
from stability.derivatives.influence import first_order_changes, solve

__all__ = [
    "Curvature",
    "Diagonal",
    "Eigenvalue",
    "SymmetricMatrix",
    "diagonal",
    "first_order_changes",
    "gauss_newton_diagonals",
    "gradient_norms",
    "greatest_eigenvalue",
    "least_eigenvalue",
    "mean_gradient",
    "per_example_gradients",
    "per_example_jacobians",
    "solve",
]
