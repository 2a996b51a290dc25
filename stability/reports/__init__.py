"""Numbers as text, tables and pages."""

from stability.reports.score_tables import score_table
from stability.reports.tables import render, study_table

__all__ = [
    "render",
    "score_table",
    "study_table",
]
