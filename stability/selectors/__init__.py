"""Which parameters may change: a problem and a seed become a mask.

:class:`Selector` is the interface. A fixed mask subclasses it and writes ``select``; a mask that moves while A trains subclasses
:class:`Moving` and writes ``begin``; a method that inserts modules subclasses :class:`Inserted` and writes ``insert``.
:func:`from_scores` makes a selector of a function of one's own.
"""

from stability.selectors.adapter import Adapter
from stability.selectors.base import FromScores, Moving, ScoreFunction, Selector, from_scores
from stability.selectors.configurations import LoRA, Peft
from stability.selectors.inserted import Inserted
from stability.selectors.moving import Course, Optimizer, Projected, Run
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
