"""Stability and generalization bounds: the theorems as pure functions of numbers, and their constants, estimated from runs.

Each function returns a :class:`Bound`: its value, terms, source and assumptions. A bound may be infinite, rest on an
assumption that failed, or say no more than the range of the loss does; ``Bound.state`` tells, the value is never cut off, and
none of this raises. :func:`estimate_constants` takes the constants from a leave-one-out measurement, and
:func:`measured_bounds` gives every bound that follows from them.
"""

from stability.bounds.base import Assumption, Bound, Checks, State
from stability.bounds.measured import Constants, estimate_constants, measured_bounds
from stability.bounds.pointwise import first_order_stability, hard_mask_stability, pointwise_hypothesis_stability
from stability.bounds.risk import generalization, generalization_from_stability, generalization_from_uniform_stability
from stability.bounds.sgd_bounds import sgd_convex, sgd_nonconvex

__all__ = [
    "Assumption",
    "Bound",
    "Checks",
    "Constants",
    "State",
    "estimate_constants",
    "first_order_stability",
    "generalization",
    "generalization_from_stability",
    "generalization_from_uniform_stability",
    "hard_mask_stability",
    "measured_bounds",
    "pointwise_hypothesis_stability",
    "sgd_convex",
    "sgd_nonconvex",
]
