"""Ways to choose the tunable parameters: one interface, :class:`Selector`, and the methods of the paper."""

from stability.selectors.base import FromScores, Moving, ScoreFunction, Selector, from_scores
from stability.selectors.course import Course, Optimizer, Projected, Run
from stability.selectors.inserted import Adapter, Inserted, LoRA, Peft
from stability.selectors.projection import ChildPruning, DiffPruning
from stability.selectors.random import Mixout, MixoutReset, Random
from stability.selectors.rule import BitFit, FullTuning, MagPruning, TrainedMagPruning, magnitude
from stability.selectors.second_order import SAM, Fisher

__all__ = [
    "SAM",
    "Adapter",
    "BitFit",
    "ChildPruning",
    "Course",
    "DiffPruning",
    "Fisher",
    "FromScores",
    "FullTuning",
    "Inserted",
    "LoRA",
    "MagPruning",
    "Mixout",
    "MixoutReset",
    "Moving",
    "Optimizer",
    "Peft",
    "Projected",
    "Random",
    "Run",
    "ScoreFunction",
    "Selector",
    "TrainedMagPruning",
    "from_scores",
    "magnitude",
]
