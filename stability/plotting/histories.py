"""Figure of the loss against the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stability.plotting.style import (
    NothingToDrawError,
    explained,
    headed,
    label,
    new_figure,
    settings_of,
    share,
    styled,
    styles,
    unit,
)
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
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['DiffPruning, p = 1 %', 'ChildPruning, p = 1 %']
    """
    table = results.table
    if table.empty:
        raise NothingToDrawError(_NONE)
    first = table[table["status"] == CellStatus.OK].sort_values("seed", kind="stable").drop_duplicates("algorithm")
    histories = results.only(pd.Series(table.index.isin(first.index), table.index)).details("history")
    first = first.assign(history=histories).dropna(subset="history")  # minimisations have none
    changes = first["history"].map(lambda history: len(history["mask_changes"]))
    steps = first["history"].map(lambda history: len(history["loss"]))
    # Ticks that stand one beside the other are no discontinuities to be seen: from a tenth of the steps on.
    moving = first[(changes > 1) & (changes < steps / 10)]
    fixed = first[(changes == 0) & ~first["history"].map(lambda history: bool(history["relaxed"]))]
    if moving.empty or fixed.empty:
        raise NothingToDrawError(_NONE)
    rows = [(row, _beside(row, fixed)) for _, row in moving.iterrows()]
    style = styles(table["method"])
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = new_figure(lines, columns, (7.2 if columns > 1 else 4.6, 1.0 + 2.1 * lines))
    for ax in axes[len(rows) :]:
        ax.remove()
    drawn = []
    for ax, (row, beside) in zip(axes, rows, strict=False):
        for one, colour in ((beside, "0.6"), (row, style[str(row["method"])][0])):
            loss = np.asarray(one["history"]["loss"])
            ax.plot(np.arange(len(loss)), loss, color=colour, lw=0.5 if len(loss) > _LONG else 1.0)
            drawn.append(loss)
        history = row["history"]
        for start, end in _stretches(history["relaxed"]):
            ax.axvspan(start, end, color="0.9", lw=0, zorder=0)
        entered = np.array([int(step) for step in history["mask_changes"]]) + 1
        ax.plot(entered, np.full(len(entered), 1.0), "|", color="black", ms=7, transform=ax.get_xaxis_transform(), clip_on=False)
        ax.set_title(f"{label(row['method'])}, p = {share(row['sparsity'])}", pad=8, loc="left")
    every = np.concatenate(drawn)
    every = every[every > 0]
    for place, ax in enumerate(axes[: len(rows)]):
        ax.set(yscale="log", xlabel="step", ylim=(every.min() / 1.5, every.max() * 1.5))
        if place % columns:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel(f"loss of the batch [{unit(table)}]")
    seed = int(rows[0][0]["seed"])
    headed(figure, "Loss of each batch where masks change during training", f"{settings_of(results)}; drawn is seed {seed}")
    others = " or ".join(dict.fromkeys(f"{label(one['method'])} at p = {share(one['sparsity'])}" for _, one in rows))
    relaxed = any(row["history"]["relaxed"] for row, _ in rows)
    explained(
        figure,
        [
            f"Grey line: {others}, whose mask is fixed.",
            "Ticks above: coordinates enter the mask.",
            "Shaded: steps whose gates are relaxed, at random." if relaxed else "",
        ],
    )
    return figure


def _beside(row: Any, fixed: pd.DataFrame) -> Any:
    """The row of the fixed mask to compare with: SAM's before others, at the nearest p."""
    p = fixed["sparsity"]
    near = p.clip(upper=row["sparsity"]) / p.clip(lower=row["sparsity"])  # 1 for the same p, 0 for p = 0
    order = fixed.assign(other=fixed["method"] != "sam", apart=1 - near)
    return fixed.loc[order.sort_values(["other", "apart"]).index[0]]


def _stretches(steps: list[int]) -> list[tuple[int, int]]:
    """Start and end (exclusive) of every unbroken run of ascending steps."""
    at = np.asarray(steps, dtype=int)
    if not len(at):
        return []
    parts = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]
