"""What is to be learned: a pretrained model, the data, the loss and the metric, together a :class:`Problem`.

:func:`load` loads one by its name. The functions ``load_…`` do the same for one kind each, with typed settings. A problem of
your own is a :class:`Problem` that you make yourself.

transformers and scikit-learn are slow to import; they are imported when digits or texts are loaded, and not before.
"""

from stability.problems.convex import load_linear, load_logistic, load_quadratic
from stability.problems.digits import load_digits
from stability.problems.naming import PROBLEMS, identity, load, short_name, training_defaults
from stability.problems.problem import Examples, ModuleLogits, Problem, TrainingDefaults
from stability.problems.solvable import Solvable, linear_regression, logistic_regression, quadratic
from stability.problems.tasks import HUB
from stability.problems.texts import load_texts

__all__ = [
    "HUB",
    "PROBLEMS",
    "Examples",
    "ModuleLogits",
    "Problem",
    "Solvable",
    "TrainingDefaults",
    "identity",
    "linear_regression",
    "load",
    "load_digits",
    "load_linear",
    "load_logistic",
    "load_quadratic",
    "load_texts",
    "logistic_regression",
    "quadratic",
    "short_name",
    "training_defaults",
]
