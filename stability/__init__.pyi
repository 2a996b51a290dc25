from . import bounds, derivatives, plotting, problems, reports, selectors, studies
from .errors import MachineError, MeasurementError, StabilityError, UsageError
from .leave_one_out import (
    Difference,
    StabilityEstimate,
    compare_masks,
    difference,
    estimators,
    loops,
    measure,
    measure_loop,
    perturbations,
    predictors,
)
from .masks import Mask, SparseDelta
from .problems import Examples, Problem, load
from .studies import Study, StudyResults, compare, run
from .training import EarlyStopping, FineTuning, Minimisation, train

__all__ = [
    "Difference",
    "EarlyStopping",
    "Examples",
    "FineTuning",
    "MachineError",
    "Mask",
    "MeasurementError",
    "Minimisation",
    "Problem",
    "SparseDelta",
    "StabilityError",
    "StabilityEstimate",
    "Study",
    "StudyResults",
    "UsageError",
    "bounds",
    "compare",
    "compare_masks",
    "derivatives",
    "difference",
    "estimators",
    "load",
    "loops",
    "measure",
    "measure_loop",
    "perturbations",
    "plotting",
    "predictors",
    "problems",
    "reports",
    "run",
    "selectors",
    "studies",
    "train",
]

__version__: str
