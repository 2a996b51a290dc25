"""What was stored: the committed studies and the committed results of benchmarks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from stability.leave_one_out.statistics import Estimate, mean_over_seeds
from stability.studies import StudyResults

ROOT = Path(__file__).parents[2]


@cache
def stored(name: str) -> StudyResults:
    return StudyResults.read(ROOT / "figures" / f"{name}.sqlite")


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


def over_seeds(differences: pd.Series[float]) -> Estimate:
    assert len(differences) >= 5
    return mean_over_seeds(differences.to_numpy())
