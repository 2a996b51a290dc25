"""The figure of several selectors' masks: where they are, what they have in common, what leaving one example out changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stability.leave_one_out.mask_comparison import MaskComparison
from stability.leave_one_out.statistics import Numbers
from stability.masks import Mask
from stability.plotting.style import NothingToDrawError, explained, headed, label, new_figure, share, styled, styles
from stability.selectors import shares
from stability.selectors.comparing import Grouping

__all__ = ["masks"]

_GROUPS = 32
"""The most layers, or types of tensors, that have a row each."""

_ROW, _DOTS = 0.13, 1.0  # inches: the height of a row of cells, and of the panel of dots
_NUMBERED = 0.25  # inches: the width of a cell in which there is room for a number
_LINE = 0.13  # inches: the height of a line of a name

_MODEL = "all parameters"


@styled
def masks(comparison: MaskComparison) -> Figure:
    """Where the masks of several selectors are, what they have in common, and how they change: a column for each selector.

    From above: the share of the mask that is in each layer, and in each type of tensor, beside the share of all parameters that are
    there; the overlap of each two selectors, and above the diagonal that of random masks with as many coordinates in each tensor;
    the overlap of the masks of S and Sⁱ, in the mean and at the least, beside what rounding alone leaves where that is less than
    1, and the overlap of the masks of two seeds. What was not computed is left out. Of more than 32 layers or types, those of the
    largest shares are drawn.

    Args:
        comparison: of :func:`stability.leave_one_out.compare_masks`.

    Raises:
        NothingToDrawError: no mask has a coordinate.

    Example:
        >>> from stability import load
        >>> from stability.leave_one_out import compare_masks
        >>> from stability.selectors import SAM, Random
        >>> figure = masks(compare_masks(load("digits", n=10), [Random(0.01), SAM(0.01)], left_out=2))
        >>> [title for ax in figure.axes if (title := ax.get_title(loc="left"))]
        ['by layer', 'by type of tensor', 'overlap of two selectors', 'overlap of the masks of S and Sⁱ']
    """
    names, table = list(comparison.selectors), comparison.table()
    if not table["k"].any():
        raise NothingToDrawError("no mask has a coordinate: there is nothing to draw")
    shown = [label(name) for name in names]
    (layers, cut_layers), (types, cut_types) = (_shares(comparison, by) for by in ("layer", "type"))
    heights = [_ROW * max(2, len(layers)), _ROW * max(2, len(types))]
    if len(names) > 1:
        heights.append(max(_ROW, 0.2 - 0.005 * len(names)) * len(names))
    if table[["left_out_mean", "seeds_mean"]].notna().any(axis=None):
        heights.append(_DOTS)
    words = 0.055 * max(map(len, [*layers.index, *types.index, *shown]))
    wide = min(0.42, max(0.155, (6.3 - words) / (len(names) + 1)))
    lines = int(wide / _LINE)
    upright = ["\n".join(wrap(name, max(16, len(name) // lines + 3))) for name in shown]
    size = (
        max(4.6, words + 0.9 + wide * (len(names) + 1)),
        1.6 + 2 * 0.05 * max(len(line) for name in upright for line in name.splitlines()) + sum(heights) + 0.25 * len(heights),
    )
    figure, axes = new_figure(len(heights), 1, size, tuple(heights))
    numbered = wide >= _NUMBERED
    largest = max(float(np.nanmax(found.to_numpy())) for found in (layers, types))
    for ax, found, title in zip(axes, (layers, types), ("by layer", "by type of tensor"), strict=False):
        image = _cells(ax, found, largest, numbered=numbered)
        ax.axvline(len(names) - 0.5, color="white", lw=3)
        ax.set_title(title, loc="left")
    axes[0].tick_params(labeltop=True, labelbottom=False)
    axes[0].set_xticks(range(len(names) + 1), [*upright, _MODEL], rotation=90, ma="left")
    _bar(figure, image, axes[:2], "share of the mask")
    notes = [
        "Cells in per cent." if numbered else "",
        cut_layers,
        cut_types,
        *(_overlaps(figure, axes[2], comparison, shown, numbered=numbered) if len(names) > 1 else []),
    ]
    if len(heights) > 2 + (len(names) > 1):
        notes += _changes(axes[-1], comparison, table)
    for ax in axes:
        ax.set_xlim(-0.5, len(names) + 0.5)
        ax.tick_params(axis="x", length=0)
    if len(heights) > 2:
        axes[-1].set_xticks(range(len(names)), upright, rotation=90, ma="right")
    headed(figure, "Which parameters the masks choose", _settings(comparison, table))
    explained(figure, notes)
    return figure


def _shares(comparison: MaskComparison, by: Grouping) -> tuple[pd.DataFrame, str]:
    """The share of each mask: a row for each group, a column for each selector and one for the model; and what was left out."""
    found = comparison.shares(by)
    wide = found.pivot(index=by, columns="selector", values="share")
    wide = wide.reindex(index=list(dict.fromkeys(found[by])), columns=list(comparison.selectors))
    wide[_MODEL] = shares(Mask(comparison.shapes, {}), by).set_index(by)["of_model"]  # without what a method inserts
    if len(wide) <= _GROUPS:
        return wide, ""
    most = wide.max(axis=1).nlargest(_GROUPS).index
    return wide[wide.index.isin(most)], f"{len(wide) - _GROUPS} {by}s with smaller shares are not drawn."


def _cells(ax: Axes, table: pd.DataFrame, largest: float, *, numbered: bool) -> Any:
    """Cells whose blue grows with their value, and their values in hundredths where there is room."""
    values: Numbers = table.to_numpy(dtype=float)
    colours = mpl.colormaps["Blues"].with_extremes(bad="0.93")  # grey: nothing is known, or can be
    image = ax.imshow(values, cmap=colours, vmin=0, vmax=largest, aspect="auto", gid="cells")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks(range(len(table)), list(table.index))
    ax.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values) if numbered else ():
        if np.isfinite(value):
            text = "<1" if 0 < value < 0.005 else f"{100 * value:.0f}"
            ax.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if value > 0.6 * largest else "0.15")
    return image


def _bar(figure: Figure, image: Any, axes: Sequence[Axes], text: str) -> None:
    bar = figure.colorbar(image, ax=axes, aspect=18, pad=0.015, fraction=0.03, shrink=min(1.0, 1.6 / sum(map(_height, axes))))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=6.5)
    bar.ax.yaxis.set_major_locator(MaxNLocator(3))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    bar.set_label(text, fontsize=7)


def _height(ax: Axes) -> float:
    """The height of a panel of cells in inches, about."""
    return _ROW * len(ax.get_yticks())


def _overlaps(figure: Figure, ax: Axes, comparison: MaskComparison, shown: Sequence[str], *, numbered: bool) -> list[str]:
    """The overlap of each two selectors; above the diagonal what chance would give."""
    measured, chance = comparison.matrix().to_numpy(), comparison.matrix("by_chance_in_tensors").to_numpy()
    values = np.tril(measured, -1) + np.triu(chance, 1)
    np.fill_diagonal(values, np.nan)
    known = values[np.isfinite(values)]
    image = _cells(ax, pd.DataFrame(values, index=list(shown)), float(known.max(initial=0.0)) or 1.0, numbered=numbered)
    ax.set_title("overlap of two selectors", loc="left")
    _bar(figure, image, [ax], "overlap")
    by_chance = comparison.overlaps["by_chance"].dropna()
    alike = len(by_chance) and by_chance.max() < 1.05 * by_chance.min()
    return [
        "Overlap: |A ∩ B| / |A ∪ B|. Above the diagonal it is that of random masks with as many coordinates in each tensor.",
        f"By chance alone it is {share(by_chance.mean())}." if alike else "",
        "Grey: nothing to compare, for a method inserts modules." if len(known) < values.size - len(values) else "",
    ]


def _changes(ax: Axes, comparison: MaskComparison, table: pd.DataFrame) -> list[str]:
    """The overlap of the masks of S and Sⁱ in the mean and at the least, and of those of two seeds, above each selector."""
    style = styles(comparison.selectors)
    seeds, without = table["seeds_mean"].notna().any(), table["left_out_mean"].notna().any()
    rounded = without and bool((table["rounding"] < 1).any())
    for place, row in enumerate(table.to_dict("records")):
        colour = style[str(row["selector"])][0]
        if without:
            ax.vlines(place, row["left_out_least"], row["left_out_mean"], color=colour, lw=1.0, gid="range")
            ax.plot(place, row["left_out_least"], "_", color=colour, ms=5, gid="least", clip_on=False)
            filled = colour if row["uses_data"] else "white"
            ax.plot(place, row["left_out_mean"], "o", color=colour, mfc=filled, ms=4, gid="values", clip_on=False, zorder=3)
        if rounded and row["rounding"] < 1:
            ax.hlines(row["rounding"], place - 0.35, place + 0.35, color="0.6", lw=1.2, gid="rounding")
        if seeds:
            ax.plot(place, row["seeds_mean"], "x", color="0.35", ms=4, gid="seeds", clip_on=False, zorder=4)
    least = float(np.nanmin(table[["left_out_least", "seeds_mean"]].to_numpy(dtype=float)))
    step = 0.1 if least < 0.9 else 0.02
    ax.set_ylim(0.0 if least < 0.5 else step * math.floor((least - 0.01) / step), 1.0)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.grid(visible=False, axis="x")
    what = " and ".join([*(["of S and Sⁱ"] if without else []), *(["of two seeds"] if seeds else [])])
    ax.set_title(f"overlap of the masks {what}", loc="left")
    which = "all" if len(comparison.left_out) == comparison.n else f"{len(comparison.left_out)} of the"
    return [
        f"Dots: mean over {which} examples, each left out once. Lines: down to the least." if without else "",
        "Grey lines: what rounding alone leaves." if rounded else "",
        "Hollow: the mask does not depend on the training set." if without and not table["uses_data"].all() else "",
        "Crosses: mean over each two seeds." if seeds else "",
    ]


def _settings(comparison: MaskComparison, table: pd.DataFrame) -> str:
    """What is compared: problem, p where there is one, n and seeds."""
    p = table["sparsity"]
    one = [f"p = {share(p.mean())}"] if p.max() < 1.05 * p.min() else []
    parts = [f"problem {label(comparison.problem)}", *one]
    seeds = comparison.seeds
    return " · ".join([*parts, f"n = {comparison.n}", f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"])
