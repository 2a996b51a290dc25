"""stability: sparse fine-tuning, its leave-one-out stability and its bounds, measured.

The words: a :class:`Problem` (pretrained model and data), a :class:`Mask` (which coordinates may change), a selector
(:mod:`stability.selectors`) that chooses it, :class:`FineTuning` (the algorithm A), a ``StabilityEstimate``
(:mod:`stability.leave_one_out`, by an estimator of :mod:`stability.estimators`), a ``Bound`` (:mod:`stability.bounds`) and a
``Study`` (:mod:`stability.study`).
"""

from importlib import metadata as _metadata

from stability import bounds, constants, curvature, estimators, leave_one_out, problems, selectors, solvable
from stability.errors import StabilityError, UsageError
from stability.masks import Mask, SparseDelta
from stability.problem import Examples, Problem
from stability.training import FineTuning, Minimisation

__all__ = [
    "Examples",
    "FineTuning",
    "Mask",
    "Minimisation",
    "Problem",
    "SparseDelta",
    "StabilityError",
    "UsageError",
    "__version__",
    "bounds",
    "constants",
    "curvature",
    "estimators",
    "leave_one_out",
    "problems",
    "selectors",
    "solvable",
]

__version__ = _metadata.version("stability")
