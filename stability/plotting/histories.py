"""Figure of the loss against the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stability.plotting.style import LABELS, NothingToDrawError, new_figure, styled, styles, unit
from stability.studies.results import CellStatus, StudyResults

__all__ = ["projection_discontinuity"]

_NONE = "no method here changes its mask now and then beside one that keeps it: see study 'discontinuity'"

_LONG = 1000  # from so many steps on, points too dense for a line of full width


@styled
def projection_discontinuity(results: StudyResults) -> Figure:
    """(f) Batch loss of A(S) against the step, a panel for each method whose mask changes now and then while it trains: twice
    at least, and in fewer than a tenth of the steps.

    Beside it, grey, is the curve of a method with a fixed mask at the same p: SAM's where the study has it. Ticks at the
    top stand where coordinates entered the mask; shaded are the steps whose loss is taken with soft or random gates.
    Of several seeds the first is drawn.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: no mask changes so, or there is no method with a fixed one beside it.

    Example:
        >>> from stability.studies import StudyResults
        >>> figure = projection_discontinuity(StudyResults.read("figures/discontinuity.sqlite"))
        >>> [ax.get_title() for ax in figure.axes]
        ['DiffPruning, p = 1 %', 'ChildPruning, p = 1 %']
    """
    table = results.table
    if "history" not in table:  # minimisations have none
        raise NothingToDrawError(_NONE)
    ok = table[(table["status"] == CellStatus.OK) & table["history"].notna()]
    first = ok.sort_values("seed", kind="stable").drop_duplicates("algorithm")
    changes = first["history"].map(lambda history: len(history["mask_changes"]))
    steps = first["history"].map(lambda history: len(history["loss"]))
    # Ticks that stand one beside the other are no discontinuities to be seen: from a tenth of the steps on.
    moving = first[(changes > 1) & (changes < steps / 10)]
    fixed = first[(changes == 0) & ~first["history"].map(lambda history: bool(history["relaxed"]))]
    if moving.empty or fixed.empty:
        raise NothingToDrawError(_NONE)
    rows = [(row, _beside(row, fixed)) for _, row in moving.iterrows()]
    style = styles(table["method"])
    figure, axes = new_figure(1, len(rows), (1.2 + 4.2 * len(rows), 3.6))
    for ax, (row, beside) in zip(axes, rows, strict=True):
        both = []
        for one, colour in ((beside, "0.6"), (row, style[str(row["method"])][0])):
            loss = np.asarray(one["history"]["loss"])
            ax.plot(np.arange(len(loss)), loss, color=colour, lw=0.5 if len(loss) > _LONG else 1.0)
            both.append(Line2D([], [], color=colour, label=LABELS.get(one["method"], one["method"])))
        ax.legend(handles=both, loc="lower left")
        history = row["history"]
        for start, end in _stretches(history["relaxed"]):
            ax.axvspan(start, end, color="0.9", lw=0, zorder=0)
        entered = np.array([int(step) for step in history["mask_changes"]]) + 1
        ax.plot(entered, np.full(len(entered), 1.0), "|", color="black", ms=8, transform=ax.get_xaxis_transform(), clip_on=False)
        title = f"{LABELS.get(row['method'], row['method'])}, p = {100 * row['sparsity']:.2g} %"
        ax.set(yscale="log", xlabel="step", ylabel=f"loss of the batch [{unit(table)}]")
        ax.set_title(title, pad=10)
    handles = [Line2D([], [], color="black", marker="|", ls="", ms=8, label="coordinates enter the mask")]
    if any(row["history"]["relaxed"] for row, _ in rows):
        handles.append(Line2D([], [], color="0.85", lw=6, label="gates relaxed, at random"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _beside(row: Any, fixed: pd.DataFrame) -> Any:
    """The row of the fixed mask to compare with: SAM's before others, at the nearest p."""
    order = fixed.assign(other=fixed["method"] != "sam", apart=np.log(fixed["sparsity"] / row["sparsity"]).abs())
    return fixed.loc[order.sort_values(["other", "apart"]).index[0]]


def _stretches(steps: list[int]) -> list[tuple[int, int]]:
    """Start and end (exclusive) of every unbroken run of ascending steps."""
    at = np.asarray(steps, dtype=int)
    if not len(at):
        return []
    parts = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]
