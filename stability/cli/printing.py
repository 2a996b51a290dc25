"""JSON on standard output."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["plain", "print_json"]


def print_json(value: Any) -> None:
    """Print one JSON value, and nothing else."""
    print(json.dumps(value, allow_nan=False, ensure_ascii=False))


def plain(row: Any) -> Any:
    """NaN and infinity, which JSON lacks, become null; numbers of numpy become numbers.

    Example:
        >>> plain({"value": float("inf"), "rows": (1, float("nan"))})
        {'value': None, 'rows': [1, None]}
    """
    if isinstance(row, dict):
        return {name: plain(value) for name, value in row.items()}
    if isinstance(row, (list, tuple)):
        return [plain(value) for value in row]
    if hasattr(row, "item"):
        row = row.item()
    return None if isinstance(row, float) and not math.isfinite(row) else row
