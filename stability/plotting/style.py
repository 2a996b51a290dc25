"""What all figures share: colours, labels, axes, legends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from stability.errors import StabilityError
from stability.reports.labels import LABELS

__all__ = [
    "LABELS",
    "P_LABEL",
    "NothingToDrawError",
    "legend",
    "lines",
    "metric",
    "new_figure",
    "percent",
    "series",
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
    "lora": ("#F0B800", "P", "-."),
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
P_LABEL = "p, fraction of pretrained parameters that may change"
_RC: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 5,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
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


def series(summary: pd.DataFrame) -> str:
    """The column that has a line for each of its values: ``method``, or ``task`` where there is one method on several.

    Args:
        summary: the table of :meth:`stability.studies.StudyResults.summary`.

    Raises:
        NothingToDrawError: several methods on several tasks.
    """
    if summary["task"].nunique() < 2:
        return "method"
    if summary["method"].nunique() > 1:
        raise NothingToDrawError("several methods on several tasks: draw results.where(task=…) of each task by itself")
    return "task"


def styles(methods: Iterable[Any]) -> dict[str, tuple[Any, Any, Any]]:
    """Colour, marker and dash of each method or task; those that are not the toolkit's take the spare ones in turn.

    Args:
        methods: names of methods or of tasks.

    Example:
        >>> styles(["full", "mine"])["full"]
        ('#000000', '*', '-')
    """
    known = {**_STYLES, **_TASKS}
    own = [str(method) for method in dict.fromkeys(methods) if method not in known]
    spare = {method: _SPARE[place % len(_SPARE)] for place, method in enumerate(own)}
    return {str(method): known.get(str(method)) or spare[str(method)] for method in methods}


def lines(ax: Axes, summary: pd.DataFrame, column: str, *, filled: bool = True, spread: bool = True) -> None:
    """Draw a line over p for each method or task.

    Args:
        ax: where to draw.
        summary: the table of :meth:`stability.studies.StudyResults.summary`.
        column: the quantity.
        filled: whether marks are filled; hollow ones have a thinner line.
        spread: whether ± one standard deviation over seeds is drawn.
    """
    by = series(summary)
    style = styles(summary[by])
    for name, group in summary.groupby(by, sort=False):
        colour, marker, dash = style[str(name)]
        error = group[f"{column}_std"].fillna(0) if spread else None
        ax.errorbar(
            group["sparsity"], group[column], error, color=colour, marker=marker, ls=dash,
            mfc=colour if filled else "white", capsize=2, elinewidth=0.8, lw=1.4 if filled else 0.9,
        )  # fmt: skip


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


def percent(ax: Axes) -> None:
    """Show p as a percentage on the horizontal axis."""
    ax.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:g} %"))


def legend(figure: Figure, summary: pd.DataFrame, extra: list[Line2D] | None = None) -> None:
    """Put the legend below the axes, so that it can never cover data.

    Args:
        figure: the figure.
        summary: the table of :meth:`stability.studies.StudyResults.summary`, whose methods or tasks get an entry each.
        extra: further entries.
    """
    handles = []
    by = series(summary)
    style = styles(summary[by])
    for name in summary[by].unique():
        colour, marker, dash = style[str(name)]
        handles.append(Line2D([], [], color=colour, marker=marker, ls=dash, label=LABELS.get(name, name)))
    figure.legend(handles=handles + (extra or []), loc="outside lower center", ncols=5 if not extra else 3)
