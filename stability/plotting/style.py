"""What all figures share: colours, headings, captions, ticks, labels at the ends of lines, intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullFormatter
from scipy.optimize import isotonic_regression

from stability.errors import StabilityError
from stability.leave_one_out.statistics import Numbers
from stability.reports.labels import LABELS
from stability.studies.results import StudyResults

__all__ = [
    "ALL",
    "CONTEXT",
    "LABELS",
    "STABILITY",
    "NothingToDrawError",
    "beside",
    "explained",
    "headed",
    "label",
    "metric",
    "near",
    "new_figure",
    "p_axis",
    "settings_of",
    "share",
    "styled",
    "styles",
    "unit",
]


class NothingToDrawError(StabilityError):
    """A study, or an estimate, holds nothing of what a figure is about."""


# Okabe & Ito's colours, safe for colour-blind readers; marker and dash tell the methods apart in grey.
_STYLES = {
    "full": ("#000000", "*", "-"),
    "random": ("#0072B2", "o", "-"),
    "mixout": ("#7F7F7F", "X", "-"),
    "mixout-reset": ("#7F7F7F", "h", (0, (7, 2))),
    "bitfit": ("#CC79A7", "D", "-"),
    "magnitude": ("#E69F00", "s", (0, (5, 1.5))),
    "magnitude-trained": ("#E69F00", "d", (0, (1, 2))),
    "adapter": ("#8B5A2B", "p", "-"),
    "lora": ("#A67C00", "P", "-."),
    "diffpruning": ("#D55E00", "v", "-"),
    "childpruning": ("#56B4E9", "<", (0, (3, 1, 1, 1))),
    "sam": ("#009E73", "^", (0, (1, 1))),
    "fisher": ("#882255", ">", (0, (3, 1, 1, 1))),
    "regularised": ("#56B4E9", "h", "-."),
}
# One method on several tasks has a line for each task: the paper's seven.
_TASKS = {
    "cola": ("#0072B2", "o", "-"),
    "stsb": ("#E69F00", "s", (0, (5, 1.5))),
    "mrpc": ("#009E73", "^", (0, (1, 1))),
    "rte": ("#D55E00", "v", "-"),
    "cb": ("#CC79A7", "D", "-"),
    "copa": ("#000000", "*", "-."),
    "wsc": ("#56B4E9", "<", (0, (3, 1, 1, 1))),
}
_SPARE = [
    ("#882255", "8", "-."),
    ("#332288", "H", (0, (3, 1, 1, 1))),
    ("#AA4499", "d", (0, (7, 2))),
    ("#117733", ">", "-"),
    ("#661100", "*", (0, (1, 1))),
    ("#6699CC", "D", (0, (5, 1.5))),
]
STABILITY = "Eᵢ|Δℓᵢ|"
"""The sign of leave-one-out stability: the mean change of an example's loss when it is left out."""

CONTEXT = "0.82"
"""The grey of what is drawn for comparison only."""

ALL = "all coordinates, ridge 1 − p"
"""Title of the panel of Theorem 1's own objective."""

_RC: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.edgecolor": "0.35",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": "0.35",
    "ytick.color": "0.35",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.markersize": 4.5,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "svg.fonttype": "none",  # text stays text
    "savefig.dpi": 200,
}


Drawn = ParamSpec("Drawn")


def styled(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Draw with the toolkit's style and leave the caller's alone."""

    @wraps(draw)
    def drawn(*what: Drawn.args, **how: Drawn.kwargs) -> Figure:
        with plt.rc_context(_RC):
            figure = draw(*what, **how)
            interactive = mpl.is_interactive()
        # A notebook's backend turns interactive drawing on with the first figure. The context undoes that with the
        # rest, and no later figure would be shown.
        mpl.interactive(interactive)
        return figure

    return drawn


def new_figure(
    rows: int, columns: int, size: tuple[float, float], heights: tuple[float, ...] | None = None
) -> tuple[Figure, list[Axes]]:
    """Make a figure.

    Args:
        rows: how many rows of axes it has.
        columns: how many columns of axes it has.
        size: width and height in inches.
        heights: the heights of the rows relative to each other; None: all alike.

    Returns:
        The figure and its axes, row by row.
    """
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", height_ratios=heights)
    return figure, list(axes.flat)


def headed(figure: Figure, what: str, settings: str) -> None:
    """Say above a figure what it shows, and of which problem, method, p, n and seed.

    Args:
        figure: the figure.
        what: what it shows, or what it finds.
        settings: what it is of.
    """
    lines = [*_wrapped(figure, what, 9), *_wrapped(figure, settings, 9)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)


def explained(figure: Figure, sentences: Iterable[str]) -> None:
    """Say below a figure how to read it: what bars, marks and colours are.

    Args:
        figure: the figure.
        sentences: whole sentences; empty ones are left out.
    """
    words = " ".join(sentence for sentence in sentences if sentence)
    if words:
        figure.supxlabel("\n".join(_wrapped(figure, words, 7)), x=0.01, ha="left", fontsize=7, color="0.25")


def _wrapped(figure: Figure, text: str, size: float) -> list[str]:
    """Lines that fit into the figure: a letter of the font is 0.53 of its size wide on average."""
    return textwrap.wrap(text, max(24, int(figure.get_figwidth() * 72 / (0.53 * size))))


def settings_of(results: StudyResults) -> str:
    """What results are of, in a line: study, problem, the one method and the one p where there is one, n and seeds.

    Args:
        results: the results of a study.
    """
    ok = results.table[results.table["status"] == "ok"]
    parts = [f"study {results.study}", f"problem {', '.join(LABELS.get(str(task), str(task)) for task in ok['task'].unique())}"]
    methods, p = ok["method"].unique(), ok["sparsity"].astype(float).round(3).unique()
    if len(methods) == 1:
        parts.append(LABELS.get(methods[0], methods[0]))
    if len(p) == 1:
        parts.append(f"p = {share(ok['sparsity'].astype(float).mean())}")
    if len(sizes := ok["n"].unique()) == 1:
        parts.append(f"n = {int(sizes[0])}")
    seeds = ok["seed"].unique()
    parts.append(f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {int(seeds[0])}")
    return " · ".join(parts)


def styles(methods: Iterable[Any]) -> dict[str, tuple[Any, Any, Any]]:
    """Colour, marker and dash of each method or task; those that are not the toolkit's take the spare ones in turn.

    Args:
        methods: names of methods or of tasks.

    Example:
        >>> styles(["full", "mine"])["full"]
        ('#000000', '*', '-')
    """
    known, methods = {**_STYLES, **_TASKS}, list(methods)
    own = [str(method) for method in dict.fromkeys(methods) if method not in known]
    spare = {method: _SPARE[place % len(_SPARE)] for place, method in enumerate(own)}
    return {str(method): known.get(str(method)) or spare[str(method)] for method in methods}


def unit(table: pd.DataFrame) -> str:
    """The unit of the loss, for a label.

    Args:
        table: the cells of a study, :attr:`stability.studies.StudyResults.table`.
    """
    units = table["loss_unit"].dropna().unique()
    return str(units[0]) if len(units) == 1 else "each task's unit"


def metric(table: pd.DataFrame) -> str:
    """The name of the metric, for a label.

    Args:
        table: the cells of a study, :attr:`stability.studies.StudyResults.table`.
    """
    names = table["metric"].dropna().unique()
    return str(names[0]) if len(names) == 1 else "each task's metric"


def share(p: float) -> str:
    """A share as a percentage of two digits, near 1 of three.

    Args:
        p: the share.

    Example:
        >>> share(0.0301), share(0.997), share(1.0)
        ('3 %', '99.7 %', '100 %')
    """
    return f"{100 * p:{'.3g' if p > 0.95 else '.2g'}} %"


def label(name: str) -> str:
    """What figures call a method or a task.

    Args:
        name: the toolkit's name.
    """
    return LABELS.get(name, name)


def p_axis(ax: Axes, p: Iterable[float], *, room: float = 1 / 6, of: Iterable[float] | None = None) -> None:
    """A logarithmic axis of p with a tick at each value that was measured, and a number where it has room.

    Where several values are near 1 and none is 1, the axis is that of log(p / (1 − p)), which keeps them apart.

    Args:
        ax: the axes.
        p: the values that were measured.
        room: the part of the axis that a number takes.
        of: the values that the axis has room for; None: the same.
    """
    values = np.unique(np.asarray(list(p), dtype=float))
    every = values if of is None else np.unique(np.asarray(list(of), dtype=float))
    logit = bool(every.max() < 1 and (every > 0.9).sum() > 2)
    place = np.log(values / (1 - values)) if logit else np.log(values)
    ends = np.log(every / (1 - every)) if logit else np.log(every)
    margin = 0.08 * np.ptp(ends) or 0.7
    low, high = ends.min() - margin, ends.max() + margin
    ax.set_xscale("logit" if logit else "log")
    ax.set_xlim(*(1 / (1 + np.exp([-low, -high])) if logit else np.exp([low, high])))
    kept: list[int] = []
    for i in reversed(range(len(values))):
        if not kept or place[kept[-1]] - place[i] >= (high - low) * room:
            kept.append(i)
    ax.set_xticks(values[kept], [share(value).removesuffix(" %") for value in values[kept]])
    ax.xaxis.set_minor_locator(FixedLocator([value for i, value in enumerate(values) if i not in kept]))
    ax.xaxis.set_minor_formatter(NullFormatter())


def beside(ax: Axes, ends: Sequence[tuple[float, float, str, Any]], height: float) -> None:
    """Name lines at their right end, outside the axes, so that no two names touch and none stands below or above the axes.

    Args:
        ax: the axes, with their final limits and scales.
        ends: of each line x and y of its last point, its name and its colour.
        height: the height of the axes in inches, about.
    """
    place = ax.transData + ax.transAxes.inverted()
    at = sorted(((*place.transform((x, y)), name, colour) for x, y, name, colour in ends), key=lambda end: end[1])
    gap = 8.5 / (72 * height)
    heights = _spread([float(end[1]) for end in at], gap, 1 - gap / 2)
    for (x, y, name, colour), where in zip(at, heights, strict=True):
        ax.annotate(
            name,
            (x, y),
            (1.04, where),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3},
        )


def _spread(wanted: Sequence[float], gap: float, top: float) -> Numbers:
    """Ascending places that are ``gap`` apart, between ``gap / 2`` and ``top`` if there is room, as near to the wanted ones as the
    sum of squares tells: isotonic regression, whose solution within limits is that without them, cut at the limits.
    """
    step = gap * np.arange(len(wanted))
    found = isotonic_regression(np.asarray(wanted, dtype=float) - step).x
    return np.asarray(np.clip(found, gap / 2, max(gap / 2, top - step[-1])) + step, dtype=np.float64)


def near(
    ax: Axes, points: Sequence[tuple[float, float, str, Any]], others: Sequence[tuple[float, float]] = (), width: float = 3.0
) -> None:
    """Write a name beside each point where it covers the least of other names and points.

    Args:
        ax: the axes, with their final limits and scales.
        points: x, y, name and colour of each.
        others: further points, x and y.
        width: the width of the axes in inches, about; they are as high.
    """
    place = ax.transData + ax.transAxes.inverted()
    letter, line, mark = 0.057 / width, 0.126 / width, 0.048 / width  # parts of the axes
    at = [tuple(float(z) for z in place.transform((x, y))) for x, y, *_ in points]
    dots = [tuple(float(z) for z in place.transform(dot)) for dot in others]
    taken = [(x - mark, x + mark, y - mark, y + mark) for x, y in [*at, *dots]]
    for (x, y), (_, _, name, colour) in zip(at, points, strict=True):
        long = letter * len(name)
        boxes = [
            (left, left + long, y + up - line / 2, y + up + line / 2)
            for up in (0.0, -line, line, -1.8 * line, 1.8 * line)
            for left in (x + 1.7 * mark, x - 1.7 * mark - long, x - long / 2)
            if abs(up) >= line or left != x - long / 2
        ]
        outside = [max(0.0, box[1] - 1, -box[0], box[3] - 1, 0.02 - box[2]) for box in boxes]
        costs = [sum(_overlap(box, one) for one in taken) + out for box, out in zip(boxes, outside, strict=True)]
        best = boxes[int(np.argmin(np.round(costs, 5)))]
        taken.append(best)
        middle = (best[2] + best[3]) / 2
        halo = [withStroke(linewidth=1.5, foreground="white")]  # where nothing is free, a name crosses a line
        ax.text(best[0], middle, name, fontsize=7, color=colour, va="center", zorder=4, transform=ax.transAxes, path_effects=halo)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    wide, high = min(one[1], other[1]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[2], other[2])
    return max(wide, 0.0) * max(high, 0.0)
