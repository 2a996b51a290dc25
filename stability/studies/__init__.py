"""Studies: many measurements, kept in one file, resumed where they stopped, and read as typed results.

A :class:`Study` says what to measure: problems, algorithms, seeds and an estimator. :func:`run` computes its cells into a
:class:`Store` and gives :class:`StudyResults`; :meth:`StudyResults.read` reads them again. :func:`compare` does all of that in one
call, and says what it tells apart. :func:`scores` puts results into the form of the paper's tables, beside which
:func:`published_scores` has the published numbers; :func:`rank_correlation` says how far two columns of such a table go together,
and :func:`answers` puts the claims of Fu et al. 2023 to results. :func:`chosen_rates` takes from a study of several learning rates
the best of each method, and :func:`at_equal_training_loss` compares methods where they fit S equally well. :func:`expected` says
beforehand what a study will cost. :data:`STUDIES` has the studies that come with the toolkit, :data:`PAPER` the experiments of
Fu et al. 2023.
"""

from stability.leave_one_out.statistics import mean_over_seeds
from stability.studies.claims import answers, cells_to_compute, learned
from stability.studies.comparison import Comparison, compare
from stability.studies.cost import Cost, expected
from stability.studies.equal_fit import at_equal_training_loss
from stability.studies.named import PAPER, STUDIES
from stability.studies.pace import Progress
from stability.studies.protocol import Protocol
from stability.studies.published import against_published, published_scores
from stability.studies.ranks import RankCorrelation, rank_correlation, ranked
from stability.studies.rates import Rates, chosen_rates, found_rates
from stability.studies.results import CellStatus, Failure, StudyResults, Summary
from stability.studies.running import run
from stability.studies.scores import IncomparableError, Scores, correlations, scores
from stability.studies.store import Store
from stability.studies.study import NUMERICS, Cell, Study
from stability.studies.verdicts import Answer, Verdict

__all__ = [
    "NUMERICS",
    "PAPER",
    "STUDIES",
    "Answer",
    "Cell",
    "CellStatus",
    "Comparison",
    "Cost",
    "Failure",
    "IncomparableError",
    "Progress",
    "Protocol",
    "RankCorrelation",
    "Rates",
    "Scores",
    "Store",
    "Study",
    "StudyResults",
    "Summary",
    "Verdict",
    "against_published",
    "answers",
    "at_equal_training_loss",
    "cells_to_compute",
    "chosen_rates",
    "compare",
    "correlations",
    "expected",
    "found_rates",
    "learned",
    "mean_over_seeds",
    "published_scores",
    "rank_correlation",
    "ranked",
    "run",
    "scores",
]
