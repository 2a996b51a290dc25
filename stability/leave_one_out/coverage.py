"""How often intervals held the truth in simulations, where every example was retrained and the truth is known."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from importlib.resources import files
from typing import Any

__all__ = ["LEAST_COVERAGE", "simulated_coverage"]

LEAST_COVERAGE = 0.93
"""A 95 % interval whose design held the truth less often than this is doubted."""

_ENOUGH = 200  # simulated draws that a share is told from


def simulated_coverage(n: int, draws: int, correlation: float) -> float:
    """How often 95 % intervals held the truth, of designs like this one.

    The table is made by ``python -m benchmarks.intervals``, from populations in which every example was retrained, and predictions
    of every quality. Each of its entries holds for n, draws and correlations from its own to the next larger ones.

    Args:
        n: size of S.
        draws: how many examples were left out.
        correlation: Pearson's correlation between predicted and retrained differences, over these.

    Returns:
        A share of the simulated draws; NaN where too few like these were simulated to tell.

    Example:
        >>> simulated_coverage(100, 20, 0.99) > 0.93
        True
    """
    key = ("n", "draws", "correlation")
    below = [row for row in _table() if all(row[name] <= x for name, x in zip(key, (n, draws, correlation), strict=True))]
    found = max(below, key=lambda row: [row[name] for name in key], default=None)
    return math.nan if found is None or found["samples"] < _ENOUGH else float(found["coverage"])


@lru_cache
def _table() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(files("stability.leave_one_out").joinpath("coverage.json").read_text())["rows"]
    return rows
