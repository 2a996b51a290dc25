"""The page on all selectors beside each other: its tables, from two stores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.code.claims import head, number
from stability.reports.labels import LABELS
from stability.studies import Comparison, StudyResults, chosen_rates

__all__ = ["BASE", "STORES", "digits", "rates", "texts"]

FOLDER = Path(__file__).parents[2] / "figures"

STORES = {"digits": FOLDER / "selectors-digits.sqlite", "texts": FOLDER / "selectors-stsb.sqlite"}

BASE = "random"
"""The method with which all others are compared: it chooses as many parameters, and looks at nothing."""


def digits() -> str:
    """Every selector on digits."""
    return _of(STORES["digits"])


def texts() -> str:
    """Every selector on STS-B."""
    return _of(STORES["texts"])


def _of(path: Path) -> str:
    """The table of a store."""
    return "\n".join(_table(StudyResults.read(path)))


def rates() -> str:
    """The learning rates that were found on STS-B."""
    found = chosen_rates(StudyResults.read(STORES["texts"].with_stem("selectors-stsb-rates"))).table
    rows = [
        f"| {LABELS[row['method']]} | {row['learning_rate']:g} | {row['validation_metric']:.3f} | {number(row['constant'])} |"
        for row in found.to_dict("records")
    ]
    return "\n".join([head("method", "rate", "metric on validation data", "predicting the mean"), *rows])


def _table(results: StudyResults) -> Iterator[str]:
    found = results.summary().table.sort_values("stability", kind="stable")
    names = dict(zip(found["algorithm"], found["method"], strict=True))
    first = next(name for name, method in names.items() if method == BASE)
    comparison = Comparison(results=results, labels={first: BASE, **names})
    told = {
        quantity: comparison.differences(quantity).set_index("method").to_dict("index") for quantity in ("stability", "test_metric")
    }
    metric, unit = results.table["metric"].iloc[0], results.table["loss_unit"].iloc[0]
    yield head("method", "p", metric, "gap", f"stability [{unit}]", "overlap", f"significantly different from {BASE}")
    for row in found.to_dict("records"):
        beside = [_beside(told[quantity].get(row["method"]), words) for quantity, words in _WORDS.items()]
        ends = f" ({max(0.0, row['stability_low']):.2f} to {number(row['stability_high'], '.2f')})"
        cells = [
            LABELS[row["method"]],
            f"{row['sparsity']:.2g}",
            f"{row['test_metric']:.3f}",
            f"{row['gap']:.2f}",
            f"{row['stability']:.3f}" + ("" if math.isnan(row["stability_low"]) else ends),
            number(row["mask_overlap"], ".2f"),
            ", ".join(word for word in beside if word) or "–",
        ]
        yield f"| {' | '.join(cells)} |"


_WORDS = {"test_metric": ("performs worse", "performs better"), "stability": ("more stable", "less stable")}


def _beside(row: dict[str, Any] | None, words: tuple[str, str]) -> str:
    """What differs significantly from the first method; empty where nothing is, and for that method itself."""
    return words[int(row["difference"] > 0)] if row is not None and row["resolved"] else ""
