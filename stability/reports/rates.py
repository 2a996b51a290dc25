"""What a search for learning rates found, as text."""

from __future__ import annotations

import math

import pandas as pd

from stability.reports.labels import LABELS
from stability.studies.rates import Rates

__all__ = ["rates_text"]


def rates_text(rates: Rates) -> str:
    """Each method's learning rate, and what every rate that was tried gave.

    Args:
        rates: what was found.

    Returns:
        A table, and a line for each task and method.

    Example:
        >>> row = {"task": "cb", "method": "sam", "sparsity": 0.1, "learning_rate": 0.003, "constant": 0.5, "train_loss": 0.1}
        >>> row |= {"validation_metric": 0.8, "validation_loss": 0.4, "cells": 1, "failed": 0, "verdict": "better"}
        >>> print(rates_text(Rates(pd.DataFrame([row]), pd.DataFrame([row]))).splitlines()[-1])
          CB, SAM, p = 0.1: 0.003: 0.800 (loss 0.4)
    """
    table = rates.table
    shown = pd.DataFrame(
        {
            "task": [LABELS.get(name, name) for name in table["task"]],
            "method": [LABELS.get(name, name) for name in table["method"]],
            "p": ["" if _none(p) else f"{p:g}" for p in table["sparsity"]],
            "rate": ["–" if _none(rate) else f"{rate:g}" for rate in table["learning_rate"]],
            "validation metric": [_three(value) for value in table["validation_metric"]],
            "constant": [_three(value) for value in table["constant"]],
            "training loss": [_three(value) for value in table["train_loss"]],
            "verdict": table["verdict"],
        }
    )
    lines = [
        shown.to_string(index=False),
        "",
        "constant: the metric of predicting the commonest class of S, or the mean label.",
        "Validation metric (and loss) at each rate:",
    ]
    for row in table.to_dict("records"):
        p = row["sparsity"]
        where = f"{LABELS.get(row['task'], row['task'])}, {LABELS.get(row['method'], row['method'])}" + (
            "" if _none(p) else f", p = {p:g}"
        )
        lines.append(f"  {where}: {rates.curve(row['task'], row['method'], p)}")
    return "\n".join(lines)


def _none(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _three(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
