"""Bounds, the middle step and the measured stability against p."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from stability.bounds.base import State
from stability.plotting.style import LABELS, NothingToDrawError, new_figure, styled, unit
from stability.studies.results import UNKNOWN, StudyResults

__all__ = ["DRAWN", "bounds"]


@styled
def bounds(results: StudyResults) -> Figure:
    """(e) Bounds, the middle step and the measured stability against p; below, each divided by the measured.

    A column for each method with several p. A bound is solid with filled marks where it is below the largest loss and no
    checked assumption failed. Otherwise it is dashed, its mark a cross (an assumption failed) or hollow (vacuous);
    where it is infinite an arrow stands at the top edge, where it is unknown (no convergence) nothing. The band is the
    95 % interval over seeds, cut at a tenth of the mean; with a single seed there is none.

    Args:
        results: the results of a study that measured bounds.

    Raises:
        NothingToDrawError: no method with several p, or a study that measured no bounds.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> [ax.get_title() for ax in bounds(StudyResults.read("figures/theory-convex.sqlite")).axes[:3]]
        ['all coordinates, ridge 1 − p', 'hard mask: random', 'hard mask: SAM']
    """
    summary = results.summary().table
    swept = [(str(method), group) for method, group in summary.groupby("method", sort=False) if len(group) > 1]
    if not swept:
        raise NothingToDrawError("no method was measured at more than one p: there is no curve to draw")
    if all((summary[f"{name}_state"] == UNKNOWN).all() for name in DRAWN):
        raise NothingToDrawError("the study measured no bounds: run it with --check-replicas 0 or more")
    columns = min(len(swept), 4)
    blocks = math.ceil(len(swept) / columns)
    figure, axes = new_figure(2 * blocks, columns, (1.2 + 2.9 * columns, 0.4 + 5.2 * blocks))
    plt.setp(axes, yscale="log")
    pairs = [(axes[i], axes[i + columns]) for block in range(blocks) for i in range(2 * block * columns, (2 * block + 1) * columns)]
    for ax in (ax for pair in pairs[len(swept) :] for ax in pair):
        ax.remove()
    pairs = pairs[: len(swept)]
    drawn: set[str] = set()
    for (top, low), (method, group) in zip(pairs, swept, strict=True):
        same = bool((group["tunable"] == group["total"]).all())  # every coordinate is tuned
        shown = [name for name in DRAWN if not (same and name.startswith("hard_mask"))]
        shown = [name for name in shown if same or name != "theorem_1_sharp"]
        p = group["sparsity"].to_numpy()
        measured = group["stability"].to_numpy()
        low_end = np.maximum(group["stability_low"].to_numpy(), measured / 10)
        top.fill_between(p, low_end, group["stability_high"].to_numpy(), color="0.85", lw=0)
        top.plot(p, measured, color="black", marker="o")
        top.plot(p, group["loss_bound"], color="0.6", ls=":", lw=1)
        low.axhline(1, color="black", lw=1)
        drawn.update(name for name in shown if not group[f"{name}_state"].eq(UNKNOWN).all())
        for name in shown:
            values = group[name].to_numpy(dtype=float)
            for ax, y in ((top, values), (low, values / measured)):
                _bound_line(ax, p, y, list(group[f"{name}_state"]), DRAWN[name][1])
        for ax in (top, low):
            ax.set(xscale="logit" if method == "regularised" else "log", xlabel="p")
            ax.set_xticks(_apart(p, np.log(p / (1 - p)) if method == "regularised" else np.log(p)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:{'.3g' if p > 0.95 else '.2g'}} %"))
        top.set_title("all coordinates, ridge 1 − p" if method == "regularised" else f"hard mask: {LABELS.get(method, method)}")
    for row, label in ((0, f"loss difference [{unit(results.table)}]"), (1, "divided by the measured")):
        mine = [pair[row] for pair in pairs]
        limits = [ax.get_ylim() for ax in mine]
        bottom, ceiling = min(low for low, _ in limits), max(high for _, high in limits)
        if any(line.get_gid() == "infinite" for ax in mine for line in ax.lines):
            ceiling *= (ceiling / bottom) ** 0.2  # room for the arrows
        for ax, (above, _) in zip(mine, pairs, strict=True):
            ax.set(xlim=above.get_xlim(), ylim=(bottom, ceiling))
            arrows = [line for line in ax.lines if line.get_gid() == "infinite"]
            for place, line in enumerate(arrows):  # they wait for the limits, and stand one below the other
                height = (ceiling / bottom) ** (0.97 - 0.06 * place)
                line.set_ydata(np.full(np.size(line.get_xdata()), bottom * height))
        for ax in mine[::columns]:
            ax.set_ylabel(label)
    handles = [
        Line2D([], [], color="black", marker="o", label=f"measured, mean of {int(summary['seeds'].max())} seeds, 95 %"),
        *(Line2D([], [], color=DRAWN[name][1], marker="o", ms=4, label=DRAWN[name][0]) for name in DRAWN if name in drawn),
        Line2D([], [], color="0.6", ls=":", label="largest loss: at or above it a bound is vacuous"),
        Line2D([], [], color="0.3", ls="--", marker="o", mfc="none", ms=4, label="vacuous (in some seed)"),
        Line2D([], [], color="0.3", ls="--", marker="x", ms=5, label="an assumption failed (in some seed)"),
    ]
    if any((summary[f"{name}_state"] == State.INFINITE).any() for name in DRAWN):
        handles.append(Line2D([], [], color="0.3", ls="", marker="$\\uparrow$", ms=8, label="infinite"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


DRAWN = {
    "first_order": ("middle step, first order", "#0072B2"),
    "hard_mask_sharp": ("hard-mask bound on the mean", "#E69F00"),
    "hard_mask": ("hard-mask bound", "#D55E00"),
    "theorem_1_sharp": ("Theorem 1, best constant for the mean", "#56B4E9"),
    "theorem_1": ("Theorem 1", "#CC79A7"),
}
"""Label and colour of each bound that the figure of bounds draws."""


def _apart(p: np.ndarray, places: np.ndarray) -> list[float]:
    """The values of ``p`` whose ticks do not touch: they are a sixth of the axis apart, and the last one is always there."""
    kept = [len(p) - 1]
    for i in range(len(p) - 2, -1, -1):
        if places[kept[-1]] - places[i] >= np.ptp(places) / 6:
            kept.append(i)
    return [float(p[i]) for i in kept]


def _bound_line(ax: Axes, p: np.ndarray, values: np.ndarray, states: list[str], colour: str) -> None:
    """Draw a bound segment by segment: solid only between two points that are neither vacuous nor refuted."""
    for i in range(len(p) - 1):
        if np.isfinite(values[i : i + 2]).all():
            solid = {states[i], states[i + 1]} <= {State.NOT_REFUTED, State.ESTIMATE}
            ax.plot(p[i : i + 2], values[i : i + 2], color=colour, ls="-" if solid else (0, (3, 2)), lw=1.3 if solid else 0.9)
    marks = {
        State.NOT_REFUTED: ("o", colour),
        State.ESTIMATE: ("o", colour),
        State.VACUOUS: ("o", "white"),
        State.ASSUMPTION_FAILED: ("x", colour),
    }
    for state, (marker, fill) in marks.items():
        at = np.array([mine == state for mine in states]) & np.isfinite(values)
        ax.plot(p[at], values[at], color=colour, marker=marker, mfc=fill, ms=4, ls="")
    infinite = np.array([state == State.INFINITE for state in states])
    if infinite.any():
        ax.plot(p[infinite], np.full(infinite.sum(), np.nan), color=colour, marker="$\\uparrow$", ms=8, ls="", gid="infinite")
