"""Leave-one-out stability, measured: Definition 3 of Fu et al. 2023 by retraining without single examples.

:func:`measure` trains A(S), predicts what leaving out each example would do, draws a few examples, retrains without them and
estimates the stability with an interval. What is drawn and what is concluded is an estimator's (:mod:`.estimators`), what is
predicted is a predictor's (:mod:`.predictors`). :func:`difference` measures how much more stable one method is than another.
:func:`measure_loop` measures a training program of one's own (:mod:`.loops`). :func:`compare_masks` looks at the masks alone.
"""

from stability.leave_one_out import estimators, loops, perturbations, predictors
from stability.leave_one_out.differences import Difference, difference
from stability.leave_one_out.estimate import Diagnostics, StabilityEstimate, Subject
from stability.leave_one_out.looping import measure_loop
from stability.leave_one_out.mask_comparison import MaskComparison, compare_masks
from stability.leave_one_out.measuring import measure
from stability.leave_one_out.smoothness import Metasmoothness, metasmoothness

__all__ = [
    "Diagnostics",
    "Difference",
    "MaskComparison",
    "Metasmoothness",
    "StabilityEstimate",
    "Subject",
    "compare_masks",
    "difference",
    "estimators",
    "loops",
    "measure",
    "measure_loop",
    "metasmoothness",
    "perturbations",
    "predictors",
]
