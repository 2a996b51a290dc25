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
    of every quality. Each of its entries holds for n, draws and correlations from its own to the next larger ones. Where too few
    draws of this n were simulated, that of a smaller n is told. The populations on which the interval was chosen are among them.

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
    told = _table()
    for size in sorted({row["n"] for row in told if row["n"] <= n}, reverse=True):
        count, least = (
            max((row[name] for row in told if row[name] <= value), default=math.nan)
            for name, value in (("draws", draws), ("correlation", max(correlation, -1.0)))
        )
        for row in told:
            if (row["n"], row["draws"], row["correlation"]) == (size, count, least) and row["samples"] >= _ENOUGH:
                return float(row["coverage"])
    return math.nan


@lru_cache
def _table() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(files("stability.leave_one_out").joinpath("coverage.json").read_text())["rows"]
    return rows
