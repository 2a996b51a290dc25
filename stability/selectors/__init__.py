"""Which parameters may change: a problem and a seed become a mask.

:class:`Selector` is the interface. A fixed mask subclasses it and writes ``select``; a mask that moves while A trains subclasses
:class:`Moving` and writes ``begin``; a method that inserts modules subclasses :class:`Inserted` and writes ``insert``.
:func:`from_scores` makes a selector of a function of one's own. :func:`shares` tells what masks look like.
"""

from stability.selectors.adapter import Adapter
from stability.selectors.base import FromScores, Moving, ScoreFunction, Selector, from_scores
from stability.selectors.comparing import overlap_by_chance, shares
from stability.selectors.configurations import LoRA, Peft
from stability.selectors.inserted import Inserted
from stability.selectors.moving import Course, Optimizer, Projected, Run
from stability.selectors.projection import ChildPruning, DiffPruning, LotteryTicket, Movement
from stability.selectors.random import Mixout, MixoutReset, Random
from stability.selectors.regrown import RigL, SpIEL
from stability.selectors.rule import BiasesAndNorms, BitFit, FullTuning, HeadOnly, LastLayers, TrainedMagPruning, magnitude
from stability.selectors.scope import Scope
from stability.selectors.scored import Calibrated, Evidence, Ranked
from stability.selectors.scores import LIFT, SNIP, Fisher, Gradient, GraSP, MagPruning, PaFi, SynFlow, TaLoS, Taylor
from stability.selectors.second_order import SAM

__all__ = [
    "LIFT",
    "SAM",
    "SNIP",
    "Adapter",
    "BiasesAndNorms",
    "BitFit",
    "Calibrated",
    "ChildPruning",
    "Course",
    "DiffPruning",
    "Evidence",
    "Fisher",
    "FromScores",
    "FullTuning",
    "GraSP",
    "Gradient",
    "HeadOnly",
    "Inserted",
    "LastLayers",
    "LoRA",
    "LotteryTicket",
    "MagPruning",
    "Mixout",
    "MixoutReset",
    "Movement",
    "Moving",
    "Optimizer",
    "PaFi",
    "Peft",
    "Projected",
    "Random",
    "Ranked",
    "RigL",
    "Run",
    "Scope",
    "ScoreFunction",
    "Selector",
    "SpIEL",
    "SynFlow",
    "TaLoS",
    "Taylor",
    "TrainedMagPruning",
    "from_scores",
    "magnitude",
    "overlap_by_chance",
    "shares",
]
