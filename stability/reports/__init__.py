"""Numbers as text, tables and pages: what a study or an estimate found, ready to read.

:func:`study_table` and :func:`render` show the results of a study, :func:`score_table` and :func:`rendered` methods on tasks in the
form of the paper's tables, :func:`show_estimate` one measured stability in the terminal, :func:`show_loop` that of a loop of one's
own, :func:`page` a study as one page of HTML.
:data:`LABELS` has the names that tables and figures use.
"""

from stability.reports.labels import LABELS
from stability.reports.page import Drawn, page
from stability.reports.score_tables import as_values, rendered, score_table
from stability.reports.study_table import render, study_table
from stability.reports.terminal import show_estimate, show_loop

__all__ = [
    "LABELS",
    "Drawn",
    "as_values",
    "page",
    "render",
    "rendered",
    "score_table",
    "show_estimate",
    "show_loop",
    "study_table",
]
