"""The algorithm A, which turns a training set into a model, and many runs of it at once."""

from stability.training.algorithm import Algorithm, FineTuning, Minimisation, Precision
from stability.training.replicas import Replicas, train
from stability.training.stopping import EarlyStopping

__all__ = [
    "Algorithm",
    "EarlyStopping",
    "FineTuning",
    "Minimisation",
    "Precision",
    "Replicas",
    "train",
]
