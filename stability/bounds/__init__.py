"""Stability and generalization bounds as pure functions of numbers: each returns its value, terms, source, assumptions.

Nothing is clamped and nothing raises for an infinite bound: a bound that does not apply, or that says no more than the
range of the loss does, tells so in its value object.
"""

from stability.bounds.base import Assumption, Bound, Checks, State
from stability.bounds.pointwise import first_order_stability, hard_mask_stability, pointwise_hypothesis_stability
from stability.bounds.risk import generalization, generalization_from_stability, generalization_from_uniform_stability
from stability.bounds.sgd import sgd_convex, sgd_nonconvex

__all__ = [
    "Assumption",
    "Bound",
    "Checks",
    "State",
    "first_order_stability",
    "generalization",
    "generalization_from_stability",
    "generalization_from_uniform_stability",
    "hard_mask_stability",
    "pointwise_hypothesis_stability",
    "sgd_convex",
    "sgd_nonconvex",
]
