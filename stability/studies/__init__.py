"""Studies: many measurements, kept in one file, resumed where they stopped, and read as tables."""

from stability.studies.named import PAPER, STUDIES
from stability.studies.protocol import Protocol
from stability.studies.scores import against_published, scores
from stability.studies.store import Store
from stability.studies.study import Study, run
from stability.studies.summary import summarise, table

__all__ = [
    "PAPER",
    "STUDIES",
    "Protocol",
    "Store",
    "Study",
    "against_published",
    "run",
    "scores",
    "summarise",
    "table",
]
