"""Bounds, the middle step and the measured stability against p."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from stability.bounds.base import State
from stability.plotting.curves import ALONE, bars, mean, over, summarised
from stability.plotting.grids import CUT, TOGETHER, arrow, grid, lower, named
from stability.plotting.style import ALL, STABILITY, NothingToDrawError, explained, headed, label, p_axis, settings_of, styled, unit
from stability.studies.results import UNKNOWN, StudyResults

__all__ = ["DRAWN", "bounds"]

DRAWN = {
    "first_order": ("middle step, first order", "#0072B2"),
    "hard_mask_sharp": ("hard-mask bound on the mean", "#E69F00"),
    "hard_mask": ("hard-mask bound", "#D55E00"),
    "theorem_1_sharp": ("Theorem 1, best constant for the mean", "#56B4E9"),
    "theorem_1": ("Theorem 1", "#CC79A7"),
}
"""Label and colour of each bound that the figure of bounds draws."""

_LETTERS = {"first_order": "M", "hard_mask_sharp": "h", "hard_mask": "H", "theorem_1_sharp": "t", "theorem_1": "T"}
"""What stands at the end of each line, for who sees no colours."""

_RATIOS = 4
"""The most panels in a row, and the most under which each bound is also shown divided by what was measured."""


@dataclass(frozen=True, eq=False)
class _Panel:
    """One method against p, or several with one p each, side by side."""

    title: str
    rows: pd.DataFrame  # of the summary, with the ends of the interval as low and high
    swept: bool
    shown: tuple[str, ...]

    @property
    def x(self) -> np.ndarray:
        return self.rows["sparsity"].to_numpy(dtype=float) if self.swept else np.arange(len(self.rows), dtype=float)

    def values(self, name: str, *, divided: bool) -> np.ndarray:
        measured = self.rows["stability"].to_numpy(dtype=float) if divided else 1.0
        return np.asarray(self.rows[name].to_numpy(dtype=float) / measured)


@styled
def bounds(results: StudyResults) -> Figure:
    """(e) Bounds, the middle step and the measured stability against p; below, each divided by the measured.

    A panel for each method with several p; methods with one p each share a panel. With more than four panels the second row is left
    out. A bound is solid with filled marks where it is below the largest loss and no checked assumption failed. Otherwise it is
    dashed, its mark a cross (an assumption failed) or hollow (vacuous); where it is infinite an arrow stands at the top edge, where
    it is unknown (no convergence) nothing. A bound that is infinite everywhere is named below the panels and not drawn.

    Args:
        results: the results of a study that measured bounds.

    Raises:
        NothingToDrawError: the study measured no bounds, or several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> [ax.get_title(loc="left") for ax in bounds(StudyResults.read("figures/theory-convex.sqlite")).axes[:3]]
        ['all coordinates, ridge 1 − p', 'hard mask: random', 'hard mask: SAM']
    """
    summary = summarised(results)
    known = (summary[[f"{name}_state" for name in DRAWN]] != UNKNOWN).any(axis=1)
    summary = summary[summary["stability"].notna() & known].reset_index(drop=True)
    if summary.empty:
        raise NothingToDrawError("the study measured no bounds: run it with --check-replicas 0 or more")
    curve = mean(results, summary, "stability")
    summary = summary.join(curve.table[["low", "high"]])
    never = _everywhere_infinite(summary)
    panels = _panels(summary, never)
    columns = grid(len(panels), _RATIOS)
    finite = any(np.isfinite(panel.values(name, divided=False)).any() for panel in panels for name in panel.shown)
    ratios = finite and len(panels) <= _RATIOS
    blocks = math.ceil(len(panels) / columns)
    width, height = (7.2 if columns > 2 else 4.8), 1.7 + (1.8 if ratios else 1.45) * blocks * (1 + ratios)
    figure = plt.figure(figsize=(width, height), layout="constrained")
    (part,) = figure.subfigures(1, 1, squeeze=False).flat  # its legend stands above what is explained below it
    grids = list(part.subplots(blocks * (1 + ratios), columns, squeeze=False).flat)
    above, below = (grids[:columns], grids[columns:]) if ratios else (grids, [])
    for ax in [*above[len(panels) :], *below[len(panels) :]]:
        ax.remove()
    above, below = above[: len(panels)], below[: len(panels)]
    cut = _draw(above, panels, columns, divided=False)
    for ax in above[::columns]:
        ax.set_ylabel(f"loss difference [{unit(results.table)}]")
    if below:
        _draw(below, panels, columns, divided=True)
        below[0].set_ylabel("divided by the measured")
    drawn = {name for panel in panels for name in panel.shown if not panel.rows[f"{name}_state"].eq(UNKNOWN).all()}
    part.legend(handles=_handles(panels, drawn), loc="outside lower center", ncols=2 if columns < 3 else 3)
    for ax, panel in list(zip(below or above, panels, strict=True))[-columns:]:
        ax.set_xlabel("p [%]" if panel.swept else "")
    headed(figure, f"Bounds on leave-one-out stability {STABILITY}, and what was measured", settings_of(results))
    absent = "; ".join(DRAWN[name][0] for name in DRAWN if name in never)
    explained(
        figure,
        [
            bars([curve], "the mean", over(results), ALONE),
            f"Infinite everywhere, and not drawn: {absent}." if absent else "",
            CUT if cut else "",
        ],
    )
    return figure


def _asked(name: str, rows: pd.DataFrame) -> bool:
    """Whether a bound is about these rows: the hard mask's is not about tuning all, the sharp one of Theorem 1 about that alone."""
    same = bool((rows["tunable"] == rows["total"]).all())
    return name != "theorem_1_sharp" if not same else not name.startswith("hard_mask")


def _everywhere_infinite(summary: pd.DataFrame) -> set[str]:
    states = {
        name: [state for _, rows in summary.groupby("algorithm") if _asked(name, rows) for state in rows[f"{name}_state"]]
        for name in DRAWN
    }
    return {name for name, mine in states.items() if mine and all(state == State.INFINITE for state in mine)}


def _panels(summary: pd.DataFrame, never: set[str]) -> list[_Panel]:
    swept, single = [], []
    several = summary["task"].nunique() > 1
    for (task, method), rows in summary.groupby(["task", "method"], sort=False):
        if len(rows) == 1:
            single.append(rows)
            continue
        title = ALL if method == "regularised" else f"hard mask: {label(str(method))}"
        names = tuple(name for name in DRAWN if _asked(name, rows) and name not in never)
        swept.append(_Panel(f"{label(str(task))}, {title}" if several else title, rows, True, names))
    chunks = [single[i : i + TOGETHER] for i in range(0, len(single), TOGETHER)]
    names = tuple(name for name in DRAWN if name not in never and name != "theorem_1_sharp")
    return [*swept, *(_Panel("one p each", pd.concat(some), False, names) for some in chunks)]


def _draw(axes: Sequence[Axes], panels: Sequence[_Panel], columns: int, *, divided: bool) -> bool:
    """Draw panels with one vertical axis; returns whether an interval is cut."""
    known = [panel.values(name, divided=divided) for panel in panels for name in panel.shown]
    if not divided:
        known += [panel.rows[column].to_numpy(dtype=float) for panel in panels for column in ("stability", "loss_bound", "high")]
        known += [np.maximum(panel.rows["low"].to_numpy(dtype=float), panel.rows["stability"].min() / 3) for panel in panels]
    else:
        known.append(np.ones(1))
    finite = np.concatenate(known)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    bottom, top = finite.min() / 1.6, finite.max() * 1.6
    arrows = max(sum((panel.rows[f"{name}_state"] == State.INFINITE).any() for name in panel.shown) for panel in panels)
    room = 0.02 + 0.07 * arrows if arrows else 0.0  # the part of the axis that the arrows take
    top *= (top / bottom) ** (room / (1 - room))
    cut = False
    for place, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        ax.set_yscale("log")
        ax.set_ylim(bottom, top)
        ax.yaxis.set_major_locator(LogLocator(numticks=6))
        ax.yaxis.set_minor_formatter(NullFormatter())
        if place % columns:
            ax.tick_params(labelleft=False)
        if not divided:
            cut |= _measured(ax, panel, bottom)
            ax.set_title(panel.title, loc="left", fontsize=7.5, pad=3)
        else:
            ax.axhline(1, color="black", lw=1)
        place_of_arrow = 0
        for name in panel.shown:
            y, states = panel.values(name, divided=divided), list(panel.rows[f"{name}_state"])
            _bound_line(ax, panel.x, y, states, DRAWN[name][1], joined=panel.swept)
            there = np.array([state == State.INFINITE for state in states])
            if len(there_is := np.flatnonzero(np.isfinite(y))):
                end = panel.x[there_is[-1]], y[there_is[-1]]
                ax.annotate(_LETTERS[name], end, (4, 0), textcoords="offset points", va="center", fontsize=6, color=DRAWN[name][1])
            if there.any():
                height = bottom * (top / bottom) ** (0.95 - 0.07 * place_of_arrow)
                arrow: Any = {"marker": "$\\uparrow$", "ms": 6, "ls": "", "gid": "infinite"}
                ax.plot(panel.x[there], np.full(there.sum(), height), color=DRAWN[name][1], **arrow)
                place_of_arrow += 1
        if panel.swept:
            p_axis(ax, panel.x, room=1 / 7)
        else:
            named(ax, [(str(row["method"]), row["sparsity"]) for _, row in panel.rows.iterrows()])
    return cut


def _measured(ax: Axes, panel: _Panel, bottom: float) -> bool:
    rows, x = panel.rows, panel.x
    known = rows["low"].notna().to_numpy()
    low, high = (rows[end].to_numpy(dtype=float)[known] for end in ("low", "high"))
    low, cut = lower(low, bottom)
    ax.vlines(x[known], low, high, color="black", lw=0.9, gid="interval")
    style = "-" if panel.swept else ""
    ax.plot(x, rows["stability"], color="black", marker="o", ls=style, ms=3.5, gid="measured")
    ax.plot(x, rows["loss_bound"], color="0.6", ls=":" if panel.swept else "", marker="" if panel.swept else "_", lw=1)
    if cut.any():
        arrow(ax, x[known][cut], low[cut], "black")
    return bool(cut.any())


def _bound_line(ax: Axes, x: np.ndarray, values: np.ndarray, states: list[str], colour: str, *, joined: bool) -> None:
    """Draw a bound segment by segment: solid only between two points that are neither vacuous nor refuted."""
    for i in range(len(x) - 1 if joined else 0):
        if np.isfinite(values[i : i + 2]).all():
            solid = {states[i], states[i + 1]} <= {State.NOT_REFUTED, State.ESTIMATE}
            ax.plot(x[i : i + 2], values[i : i + 2], color=colour, ls="-" if solid else (0, (3, 2)), lw=1.3 if solid else 0.9)
    marks = {
        State.NOT_REFUTED: ("o", colour),
        State.ESTIMATE: ("o", colour),
        State.VACUOUS: ("o", "white"),
        State.ASSUMPTION_FAILED: ("x", colour),
    }
    for state, (marker, fill) in marks.items():
        at = np.array([mine == state for mine in states]) & np.isfinite(values)
        if at.any():
            ax.plot(x[at], values[at], color=colour, marker=marker, mfc=fill, ms=3.5, ls="")


def _handles(panels: Sequence[_Panel], drawn: set[str]) -> list[Line2D]:
    """The legend's entries: only of what is drawn."""
    states = {state for panel in panels for name in panel.shown for state in panel.rows[f"{name}_state"]}
    told: dict[str, tuple[str, Any]] = {
        State.VACUOUS: ("vacuous (in some seed)", {"marker": "o", "mfc": "none", "ls": "--"}),
        State.ASSUMPTION_FAILED: ("an assumption failed (in some seed)", {"marker": "x", "ls": "--"}),
        State.INFINITE: ("infinite (in some seed)", {"marker": "$\\uparrow$", "ls": ""}),
    }
    return [
        Line2D([], [], color="black", marker="o", ms=3.5, label="measured"),
        *(
            Line2D([], [], color=DRAWN[name][1], marker="o", ms=3.5, label=f"{_LETTERS[name]}: {DRAWN[name][0]}")
            for name in DRAWN
            if name in drawn
        ),
        Line2D([], [], color="0.6", ls=":", label="largest loss: bounds above it are vacuous"),
        *(Line2D([], [], color="0.3", ms=4, label=text, **how) for state, (text, how) in told.items() if state in states),
    ]
