"""How curves are laid out: at most six lines a panel, and as many panels as that takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from stability.leave_one_out.statistics import Numbers
from stability.plotting.curves import Block
from stability.plotting.style import (
    CONTEXT,
    NothingToDrawError,
    beside,
    explained,
    headed,
    label,
    new_figure,
    p_axis,
    share,
    styles,
)

__all__ = ["CUT", "CUT_LEFT", "MOST", "TOGETHER", "arrow", "fitted", "grid", "grouped", "lower", "named", "plain_log", "swept"]

MOST = 6
"""The most lines in a panel."""

CUT = "↓: the interval goes on down."
CUT_LEFT = "←: the interval goes on to the left."

_ARROWS = {"down": "$\\downarrow$", "left": "$\\leftarrow$"}  # triangles are the marks of methods

TOGETHER = 3
"""The most methods with a single p that share a panel."""

_GREY = "0.55"

_WIDTH = 7.2  # inches, the width of a page


def swept(blocks: Sequence[Block], what: str, settings: str) -> Figure:
    """Draw what varies with p.

    Up to six methods share a panel for each curve, and stand beside their lines. Of more, each has a panel for each block, in which
    the others are grey. Where every method has a single p, each has a row.

    Where a method did not learn, its marks are grey, or with a single p its name: what hardly trains is stable, and worth nothing.

    Args:
        blocks: the quantities.
        what: what the figure shows.
        settings: what it is of.

    Raises:
        NothingToDrawError: there is not one value.
    """
    kept = [block for block in blocks if any(curve.table["y"].notna().any() for curve in block.curves)]
    if not kept:
        raise NothingToDrawError("there is not one value to draw: the study's seeds are too few, or none is finished")
    table = pd.concat([curve.table for block in kept for curve in block.curves]).dropna(subset="y")
    names = [str(name) for name in table["series"].unique()]
    grey = "marks"
    if (table.groupby("series")["p"].nunique() == 1).all():
        grey = "names"
        figure, notes = _rows(kept, names)
    elif len(names) <= MOST:
        figure, notes = _together(kept, names)
    else:
        figure, notes = _apart(kept, names)
    headed(figure, what, settings)
    said = [note for block in blocks for note in block.notes]
    unlearned = f"Grey {grey}: not clearly better than a constant prediction." if table["unlearned"].any() else ""
    explained(figure, dict.fromkeys([*notes, *said, unlearned]))
    return figure


def grid(count: int, columns: int) -> int:
    """How many columns of a grid with room for ``columns`` fill the rows best.

    Args:
        count: how many panels there are.
        columns: the most columns.

    Example:
        >>> grid(8, 5), grid(9, 5), grid(2, 5)
        (4, 5, 2)
    """
    return math.ceil(count / math.ceil(count / columns))


def fitted(ax: Axes, block: Block) -> bool:
    """Set the limits and the scale of the vertical axis so that values and intervals fit, also where all values are equal.

    The axis is logarithmic where the values, and the ends of intervals as far as they are above 0 and above a third of the least
    value, span a factor of 20. Then it begins there, and an interval may reach below it.

    Args:
        ax: the axes.
        block: what is drawn.

    Returns:
        Whether the axis is logarithmic.
    """
    every = pd.concat([curve.table for curve in block.curves])
    ends = every.loc[every["y"].notna(), ["y", "low", "high"]].to_numpy(dtype=float)
    y = ends[:, 0]
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    begin = max(low, y.min() / 3)
    if block.log and y.min() > 0 and high > 20 * (begin if low > 0 else y.min()):
        ax.set_yscale("log")
        ax.set_ylim(begin / 1.15, high * 1.15)
        plain_log(ax)
        return True
    if block.zero:
        low, high = min(low, 0.0), max(high, 0.0)
        ax.axhline(0, color="0.6", lw=0.8, zorder=1, gid="zero")
    if block.least is not None:
        low = block.least
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    ax.set_ylim(low if block.least is not None else low - room, high + room)
    ax.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    return False


def plain_log(ax: Axes, which: str = "y", *, narrow: bool = False) -> None:
    """Numbers such as 0.03 at the ticks of a logarithmic axis, at 1, 2 and 5 where the axis is short.

    Args:
        ax: the axes.
        which: ``x`` or ``y``.
        narrow: whether there is room for few numbers.
    """
    axis = ax.yaxis if which == "y" else ax.xaxis
    low, high = axis.get_view_interval()
    room = 0.5 if narrow else 1.0  # of what an axis has room for, in decades
    decades = math.log10(high / low)
    subs = (1, 2, 5) if decades < 1.7 * room else (1, 3) if decades < 3 * room else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=20))
    axis.set_minor_formatter(NullFormatter())


def lower(low: Numbers, bottom: float) -> tuple[Numbers, NDArray[np.bool_]]:
    """Where intervals begin on a logarithmic axis: those that reach below it are cut where it begins.

    Args:
        low: their lower ends.
        bottom: where the axis begins.

    Returns:
        Where they begin, and which of them are cut.
    """
    return np.maximum(low, bottom), low < bottom


def arrow(ax: Axes, x: Any, y: Any, colour: Any, way: str = "down", **how: Any) -> None:
    """Mark the ends of intervals that go on beyond the axis.

    Args:
        ax: the axes.
        x: where the drawn part of the intervals ends.
        y: likewise.
        colour: of the intervals.
        way: where they go on, ``down`` or ``left``.
        how: other settings of the marks.
    """
    ax.plot(x, y, marker=_ARROWS[way], ls="", color=colour, ms=6, mew=0.3, zorder=4, clip_on=False, gid="cut", **how)


def _line(ax: Axes, mine: pd.DataFrame, style: tuple[Any, Any, Any], x: Any, *, hollow: bool, joined: bool = True) -> bool:
    """Draw one series; returns whether an interval goes on below the axis."""
    colour, marker, dash = style
    known = mine["low"].notna().to_numpy()
    x, y, low = np.asarray(x, dtype=float), mine["y"].to_numpy(dtype=float), mine["low"].to_numpy(dtype=float)
    cut = np.zeros(len(y), dtype=bool)
    if ax.get_yscale() == "log":
        low, cut = lower(low, ax.get_ylim()[0])
    ax.vlines(x[known], low[known], mine["high"].to_numpy(dtype=float)[known], color=colour, lw=0.8, alpha=0.75, gid="interval")
    ax.plot(
        x, y, color=colour, marker=marker, ls=dash if joined else "", mfc="white" if hollow else colour,
        mew=0.9, lw=0.9 if hollow else 1.3, zorder=3, gid="values",
    )  # fmt: skip
    if (unlearned := mine["unlearned"].to_numpy(dtype=bool)).any():
        ax.plot(
            x[unlearned], y[unlearned], marker, color=_GREY, mfc="white" if hollow else _GREY, mew=0.9, zorder=3, gid="unlearned"
        )
    if cut.any():
        arrow(ax, x[cut], low[cut], colour)
    return bool(cut.any())


def _together(blocks: Sequence[Block], names: Sequence[str]) -> tuple[Figure, list[str]]:
    """A panel for each curve, with all series."""
    panels = [(block, curve) for block in blocks for curve in block.curves if curve.table["y"].notna().any()]
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = new_figure(rows, columns, (4.6 if columns == 1 else _WIDTH, 0.8 + 2.25 * rows))
    style, cut, across, banded = styles(names), False, False, False
    shift = _side_by_side(pd.concat([curve.table for _, curve in panels]))
    for ax, (block, curve) in zip(axes, panels, strict=False):
        fitted(ax, block)
        known = curve.table.dropna(subset="y")
        p_axis(ax, known.loc[known["p"] > 0, "p"], room={1: 1 / 8, 2: 1 / 6}.get(columns, 1 / 4))
        ends = []
        for name, mine in known.groupby("series", sort=False):
            x, colour = mine["p"].to_numpy() * shift[str(name)], style[str(name)][0]
            if (x == 0).all():  # it has no place on a logarithmic axis
                across, banded = True, banded or bool(mine["low"].notna().any())
                cut |= _across(ax, mine, colour)
            else:
                cut |= _line(ax, mine, style[str(name)], x, hollow=False)
            ends.append((x[-1] or ax.get_xlim()[1], mine["y"].iloc[-1], label(str(name)), colour))
        if columns < 3 or ax in (axes[len(panels) - 1], *axes[columns - 1 :: columns]):  # once a row where panels are narrow
            beside(ax, ends, height=1.7)
        ax.set(xlabel="p [%]" if columns > 2 else "p [% of the pretrained parameters]", ylabel=block.label)
        if curve.name:
            ax.set_title(curve.name, loc="left")
    for ax in axes[len(panels) :]:
        ax.remove()
    shifted = "Lines of the same p stand side by side." if any(value != 1 for value in shift.values()) else ""
    return figure, [
        shifted,
        "Dotted across: p = 0, where the head alone is trained." if across else "",
        "The pale band is its interval." if banded else "",
        CUT if cut else "",
    ]


def _across(ax: Axes, mine: pd.DataFrame, colour: Any) -> bool:
    """Draw a method that has no place along p across the panel; returns whether its interval goes on below the axis."""
    y, low, high = (mine[name].to_numpy(dtype=float)[:1] for name in ("y", "low", "high"))
    ax.axhline(y[0], color=colour, ls=(0, (1, 3)), lw=1, gid="across")
    if np.isnan(low[0]):
        return False
    low, cut = lower(low, ax.get_ylim()[0]) if ax.get_yscale() == "log" else (low, np.zeros(1, dtype=bool))
    ax.axhspan(low[0], high[0], color=colour, alpha=0.12, lw=0, zorder=0.5, gid="interval")
    if cut[0]:
        arrow(ax, 0.02, low[0], colour, transform=ax.get_yaxis_transform())
    return bool(cut[0])


def _side_by_side(table: pd.DataFrame) -> dict[str, float]:
    """A factor for each line's p, so that those measured at the same p stand a little apart; 1 for one alone."""
    together: dict[tuple[float, ...], list[str]] = {}
    for name, group in table.groupby("series", sort=False):
        together.setdefault(tuple(group["p"].round(3).unique()), []).append(str(name))
    return {name: 1.03 ** (i - (len(group) - 1) / 2) for group in together.values() for i, name in enumerate(group)}


def _apart(blocks: Sequence[Block], names: Sequence[str]) -> tuple[Figure, list[str]]:
    """For each block a grid of panels, one for each series with several p; the others share panels."""
    groups = grouped(pd.concat([curve.table for block in blocks for curve in block.curves]), names)
    columns = grid(len(groups), 5)
    rows = math.ceil(len(groups) / columns)
    height = 0.35 + 1.25 * rows
    figure = plt.figure(figsize=(_WIDTH, 0.75 + height * len(blocks)), layout="constrained")
    parts = list(figure.subfigures(len(blocks), 1, squeeze=False).flat)
    style, cut = styles(names), False
    for part, block in zip(parts, blocks, strict=True):
        axes = list(part.subplots(rows, columns, squeeze=False).flat)
        for place, (ax, group) in enumerate(zip(axes, groups, strict=False)):
            cut |= _panel(ax, block, group, style, groups)
            if place % columns:
                ax.tick_params(labelleft=False)
        for ax in axes[len(groups) :]:
            ax.remove()
        part.supylabel(block.label, fontsize=8)
        part.supxlabel("p [% of the pretrained parameters]", fontsize=8)
    return figure, [_key(blocks), "Grey: the others.", CUT if cut else ""]


def grouped(table: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
    """The series of each panel: one with several p, or up to three with one p each.

    Args:
        table: rows with ``series``, ``p`` and ``y``.
        names: every series, in order.
    """
    counts = table.dropna(subset="y").groupby("series")["p"].nunique()
    single = [name for name in names if counts[name] == 1]
    chunks = math.ceil(len(single) / TOGETHER)
    return [[name] for name in names if counts[name] > 1] + [
        list(some) for some in np.array_split(single, chunks or 1) if len(some)
    ]


def _panel(ax: Axes, block: Block, group: Sequence[str], style: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> bool:
    """One panel of a grid; returns whether an interval is cut."""
    fitted(ax, block)
    cut = False
    first = block.curves[0].table.dropna(subset="y")
    if len(group) == 1 and (first["series"] == group[0]).sum() > 1:
        lines = [one for one in groups if len(one) == 1]
        p = first.loc[first["series"].isin([name for (name,) in lines]), "p"]
        others = [first.loc[first["series"] == name, ["p", "y"]].to_numpy(dtype=float) for (name,) in lines if name != group[0]]
        ax.add_collection(LineCollection(others, colors=CONTEXT, linewidths=0.8, zorder=1, gid="context"), autolim=False)
        p_axis(ax, first.loc[first["series"] == group[0], "p"], of=p)
        for curve, hollow in zip(block.curves, (False, True), strict=False):
            mine = curve.table[curve.table["series"] == group[0]].dropna(subset="y")
            cut |= _line(ax, mine, style[group[0]], mine["p"], hollow=hollow)
        ax.set_title(label(group[0]), loc="left", fontsize=7.5, pad=3)
        return cut
    p_of: dict[str, float] = {}
    for place, name in enumerate(group):
        for curve, hollow in zip(block.curves, (False, True), strict=False):
            mine = curve.table[curve.table["series"] == name].dropna(subset="y")
            cut |= _line(ax, mine, style[name], np.full(len(mine), place), hollow=hollow, joined=False)
            p_of[name] = mine["p"].mean() if len(mine) else p_of.get(name, math.nan)
    named(ax, [(name, p_of[name]) for name in group])
    ax.set_title("one p each", loc="left", fontsize=7.5, pad=3)
    return cut


def named(ax: Axes, methods: Sequence[tuple[str, float]]) -> None:
    """Name methods with one p each below an axis, each at its place.

    Args:
        ax: the axes; the methods stand at 0, 1, ….
        methods: name and p of each.
    """
    names = ["\n".join([*label(name).replace(",", "").split(), share(p)]) for name, p in methods]
    wide = max(len(line) for name in names for line in name.split("\n")) > 9
    ax.set_xticks(range(len(names)), names, fontsize=6.5, rotation=90 if wide else 0)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(visible=False, axis="x")


def _rows(blocks: Sequence[Block], names: Sequence[str]) -> tuple[Figure, list[str]]:
    """A row for each series and a column for each block."""
    figure, axes = new_figure(1, len(blocks), (4.6 if len(blocks) == 1 else _WIDTH, 1.15 + 0.2 * max(len(names), 3)))
    style, cut, narrow = styles(names), False, len(blocks) > 4
    p_of: dict[str, float] = {}
    unlearned: set[str] = set()
    for ax, block in zip(axes, blocks, strict=True):
        log, limits = fitted(ax, block), ax.get_ylim()
        for line in ax.lines:  # the quantity runs along x here
            line.set_data([0, 0], [0, 1])
            line.set_transform(ax.get_xaxis_transform())
        ax.set_yscale("linear")
        ax.set_xscale("log" if log else "linear")
        ax.set_xlim(limits)
        if log:
            plain_log(ax, "x", narrow=narrow)
        else:
            ax.xaxis.set_major_locator(MaxNLocator(3 if narrow else 5, steps=[1, 2, 2.5, 4, 5, 10], min_n_ticks=3))
        for curve, hollow in zip(block.curves, (False, True), strict=False):
            for _, row in curve.table.dropna(subset="y").iterrows():
                name = str(row["series"])
                colour, marker, _dash = style[name]
                place = names.index(name) + (0.0 if len(block.curves) == 1 else 0.2 if hollow else -0.2)
                p_of[name] = row["p"]
                if row["unlearned"]:
                    unlearned.add(name)
                if np.isfinite(row["low"]):
                    ends, off = lower(np.array([row["low"]]), limits[0] if log else -np.inf)
                    ax.hlines(place, ends[0], row["high"], color=colour, lw=0.9, gid="interval")
                    if off[0]:
                        arrow(ax, ends[0], place, colour, "left")
                        cut = True
                ax.plot(
                    row["y"], place, marker, color=colour, mfc="white" if hollow else colour, mew=0.9, clip_on=False, zorder=3,
                    gid="values",
                )  # fmt: skip
        ax.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), xlabel=block.label)
        ax.set_yticklabels([f"{label(name)}, {share(p_of[name])}" for name in names] if ax is axes[0] else [])
        ax.tick_params(axis="y", length=0)
    for text, name in zip(axes[0].get_yticklabels(), names, strict=True):
        if name in unlearned:
            text.set_color(_GREY)
    return figure, ["Behind each name: p.", _key(blocks), CUT_LEFT if cut else ""]


def _key(blocks: Sequence[Block]) -> str:
    """Which curve is filled and which is hollow, where a block has two."""
    both = [[curve.name.split()[0].rstrip(",") for curve in block.curves] for block in blocks if len(block.curves) > 1]
    return f"Filled: {both[0][0]}; hollow: {both[0][1]}." if both else ""
