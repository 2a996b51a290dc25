"""Ways to choose the tunable parameters: one interface, :class:`Selector`, and the methods of the paper."""

from stability.selectors.base import FromScores, ScoreFunction, Selector, from_scores
from stability.selectors.random import Random
from stability.selectors.rule import BitFit, FullTuning, MagPruning
from stability.selectors.second_order import SAM, Fisher

__all__ = [
    "SAM",
    "BitFit",
    "Fisher",
    "FromScores",
    "FullTuning",
    "MagPruning",
    "Random",
    "ScoreFunction",
    "Selector",
    "from_scores",
]
