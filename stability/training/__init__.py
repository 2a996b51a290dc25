"""The algorithm A, which turns a training set into a model, and many runs of it at once.

:class:`Algorithm` is the interface of A, :class:`FineTuning` and :class:`Minimisation` are its two kinds. :func:`train` runs one of
them r times at once, once for each row of example weights, and returns the trained :class:`Replicas`.
"""

from stability.training.algorithm import Algorithm, Precision
from stability.training.fine_tuning import FineTuning
from stability.training.minimisation import Minimisation
from stability.training.replicas import Replicas, train
from stability.training.stopping import EarlyStopping

__all__ = ["Algorithm", "EarlyStopping", "FineTuning", "Minimisation", "Precision", "Replicas", "train"]
