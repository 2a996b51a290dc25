"""Figures of a study: stability, generalization, the paper's panels, gap against stability, every method in a row."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from stability.plotting.curves import ALONE, Block, Curve, bars, mean, over, series, spread, summarised
from stability.plotting.grids import CUT_LEFT, MOST, arrow, fitted, grid, grouped, lower, plain_log, swept
from stability.plotting.style import (
    CONTEXT,
    STABILITY,
    NothingToDrawError,
    explained,
    headed,
    label,
    metric,
    near,
    settings_of,
    styled,
    styles,
    unit,
)
from stability.studies.results import StudyResults

__all__ = ["four_panels", "gap_against_stability", "generalization", "methods", "six_panels", "stability"]


@styled
def stability(results: StudyResults) -> Figure:
    """(a) Measured leave-one-out stability against p, with 95 % intervals: over seeds, or with one seed over what is left out.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: no stability was measured, or several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> len(stability(StudyResults.read("figures/theory-convex.sqlite")).axes)
        1
    """
    summary = _measured(summarised(results))
    curve = mean(results, summary, "stability")
    block = Block(
        f"stability {STABILITY} [{unit(results.table)}]", (curve,), 0.0, notes=(_stability_bars(results, curve),), log=True
    )
    return swept([block], "How much leaving one example out changes its loss", settings_of(results))


def _measured(summary: pd.DataFrame) -> pd.DataFrame:
    summary = summary[summary["stability"].notna()]
    if summary.empty:
        raise NothingToDrawError("stability was measured with no seed: there is nothing to draw")
    return summary


def _stability_bars(results: StudyResults, curve: Curve, beside: str = "", what: str = "stability") -> str:
    """What the bars of stability, and of what else is measured with it, are; ``beside`` tells of all other bars."""
    told = bars([curve], "the mean", over(results), ALONE)
    return told if beside in ("", told) else told.replace("Bars:", f"Bars of {what}:")


@styled
def generalization(results: StudyResults) -> Figure:
    """(b) Test and train loss, and the generalization gap, against p: means over seeds with 95 % intervals.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> [ax.get_xlabel() for ax in generalization(StudyResults.read("figures/paper-quick-bounds.sqlite")).axes]
        ['loss [nats]', 'test loss − train loss [nats]']
    """
    table, summary = results.table, summarised(results)
    test, train = (mean(results, summary, f"{split}_loss", f"{split} loss") for split in ("test", "train"))
    gap = mean(results, summary, "gap")
    told = bars([test, train, gap], "the mean", over(results))
    blocks = [
        Block(f"loss [{unit(table)}]", (test, train), 0.0 if summary["train_loss"].min() >= 0 else None, notes=(told,)),
        Block(f"test loss − train loss [{unit(table)}]", (gap,), zero=True),
    ]
    return swept(blocks, "Loss and generalization gap", settings_of(results))


@styled
def four_panels(results: StudyResults) -> Figure:
    """(c) The paper's panels: mean and standard deviation over seeds of the test and train metric, with 95 % intervals.

    There is a line for each method; of one method on several tasks, as in the paper, a line for each task. A standard deviation
    needs three seeds.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> [ax.get_title(loc="left") for ax in four_panels(StudyResults.read("figures/paper-quick-sparsity.sqlite")).axes]
        ['test, mean', 'train, mean', 'test, standard deviation', 'train, standard deviation']
    """
    blocks = _means_and_spreads(results, summarised(results), ("test", "train"))
    return swept(blocks, f"Mean and spread over seeds: {metric(results.table)}", settings_of(results))


def _means_and_spreads(results: StudyResults, summary: pd.DataFrame, spread_of: Sequence[str]) -> list[Block]:
    """The mean of the test and the train metric, and the standard deviation over seeds of some of them."""
    name = metric(results.table)
    # No metric is above 1, and Student's interval does not know it.
    means = tuple(mean(results, summary, f"{split}_metric", f"{split}, mean", most=1.0) for split in ("test", "train"))
    spreads = tuple(spread(summary, f"{split}_metric", f"{split}, standard deviation") for split in spread_of)
    told = bars(means, "the mean and of the standard deviation", over(results))
    ended = "Those of the mean end at 1." if any((curve.table["high"] == 1).any() for curve in means) else ""
    few = "" if (summary["seeds"] > 2).any() else "A standard deviation is drawn of three seeds or more."
    said = textwrap.fill(f"standard deviation of {name} over seeds", 30)
    return [Block(textwrap.fill(name, 30), means, notes=(told, ended, few)), Block(said, spreads, 0.0)]


@styled
def six_panels(results: StudyResults) -> Figure:
    """(g) A sweep over p on one page: test and train metric and the spread of the test metric over seeds, test loss, generalization
    gap, and leave-one-out stability. Means have 95 % intervals.

    The marks of a method at a p where it did not learn are grey (:func:`stability.studies.learned`).

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: no stability was measured, no method has several p, or several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> [ax.get_ylabel().splitlines()[0] for ax in six_panels(StudyResults.read("figures/theory-convex.sqlite")).axes[3:]]
        ['test loss [nats]', 'test loss − train loss', 'stability Eᵢ|Δℓᵢ|']
    """
    summary, loss = summarised(results), unit(results.table)
    if (summary.groupby(["task", "method"])["sparsity"].nunique() < 2).all():
        raise NothingToDrawError("no method has several p: there is no sweep to draw")
    stable = mean(results, _measured(summary), "stability")
    test, gap = mean(results, summary, "test_loss"), mean(results, summary, "gap")
    told = bars([test, gap], "the mean", over(results))
    blocks = [
        *_means_and_spreads(results, summary, ("test",)),
        Block(f"test loss [{loss}]", (test,)),
        Block(f"test loss − train loss\n[{loss}]", (gap,), zero=True),
        Block(f"stability {STABILITY}\n[{loss}]", (stable,), 0.0, notes=(_stability_bars(results, stable, told),), log=True),
    ]
    return swept(blocks, "Performance, generalization and stability against p", settings_of(results))


@styled
def gap_against_stability(results: StudyResults) -> Figure:
    """(d) Generalization gap against measured stability, a point for each method and p, with 95 % intervals.

    Of more than six methods each has a panel, in which the points of the others are grey.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: no stability was measured, or several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> len(gap_against_stability(StudyResults.read("figures/paper-quick-bounds.sqlite")).axes[0].collections)
        6
    """
    summary = _measured(summarised(results))
    x, y = f"stability {STABILITY} [{unit(results.table)}]", f"test loss − train loss [{unit(results.table)}]"
    by = series(summary)
    across, up = mean(results, summary, "stability").table, mean(results, summary, "gap").table
    points = across.rename(columns={"y": "x", "low": "left", "high": "right"}).join(up[["y", "low", "high"]])
    names = [str(name) for name in points["series"].unique()]
    if (points.groupby("series")["p"].nunique() == 1).all():
        groups = [list(some) for some in np.array_split(names, math.ceil(len(names) / MOST))]
    else:
        groups = [names] if len(names) <= MOST else grouped(points, names)
    columns = grid(len(groups), 2 if len(groups[0]) > 1 else 5)
    rows = math.ceil(len(groups) / columns)
    wide = {1: 3.6, 2: 3.0}.get(columns, 1.25)
    figure = plt.figure(
        figsize=(5.0, 3.6) if len(groups) == 1 else (7.2, 1.2 + (2.2 if columns < 3 else 1.3) * rows), layout="constrained"
    )
    (part,) = figure.subfigures(1, 1, squeeze=False).flat
    axes = list(part.subplots(rows, columns, squeeze=False).flat)
    style, limits = styles(names), _across(axes[0], points)
    # A name can stand beside one point of a method, and not beside all.
    legend = len(groups) == 1 and len(names) > 1 and bool((points.groupby("series")["p"].nunique() > 1).any())
    cut = False
    for ax, group in zip(axes, groups, strict=False):
        ax.set(xscale=axes[0].get_xscale(), xlim=limits)
        if ax.get_xscale() == "log":
            plain_log(ax, "x")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
        fitted(ax, Block(y, (Curve("", up),), zero=True))
        if len(groups) > 1:
            ax.plot(points["x"], points["y"], ".", color=CONTEXT, ms=3, zorder=1, gid="context")
        ends = []
        for name in group:
            mine = points[points["series"] == name]
            cut |= _points(ax, mine, style[name])
            ends.append((mine["x"].iloc[-1], mine["y"].iloc[-1], label(name), style[name][0]))
        if legend:
            continue
        if len(group) > 1 or len(groups) == 1:
            near(ax, ends, _along(ax, points[points["series"].isin(group)]), wide)
        else:
            ax.set_title(label(group[0]), loc="left", fontsize=7.5, pad=3)
    for place, ax in enumerate(axes):
        if place >= len(groups):
            ax.remove()
        elif place % columns:
            ax.tick_params(labelleft=False)
    part.supxlabel(x, fontsize=8)
    part.supylabel(y, fontsize=8)
    if legend:
        handles = [Line2D([], [], color=style[n][0], marker=style[n][1], ms=4, ls="", label=label(n)) for n in names]
        part.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 4))
    related = ""
    if len(summary) > 2 and np.ptp(summary["stability"]) > 0 and np.ptp(summary["gap"]) > 0:
        rho = stats.spearmanr(summary["stability"], summary["gap"]).statistic
        related = f"Spearman's ρ of all {len(summary)} points is {rho:.2f}; they share seeds, so that no p-value is given."
    headed(figure, "Generalization gap against leave-one-out stability", settings_of(results))
    told = bars([Curve("", up)], "the mean", over(results))
    notes = [_stability_bars(results, Curve("", across), told), told]
    explained(
        figure,
        [
            f"A point for each {by} and p, larger for larger p." if summary["sparsity"].nunique() > 1 else "",
            "Grey: the others." if len(groups) > 1 else "",
            CUT_LEFT if cut else "",
            *dict.fromkeys(notes),
            related,
        ],
    )
    return figure


@styled
def methods(results: StudyResults) -> Figure:
    """(e) Every method in a row, the most stable first: its test metric, its training loss, its generalization gap, its
    leave-one-out stability, and how far the masks of S and of Sⁱ overlap. Means over seeds with 95 % intervals.

    The name of a method that did not learn is grey (:func:`stability.studies.learned`): what hardly trains is stable, and worth
    nothing.

    Args:
        results: the results of a study of several methods, each at one p.

    Raises:
        NothingToDrawError: a method with several settings, one method, no measured stability, or several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> results = StudyResults.read("figures/paper-quick.sqlite").where(task="cb")
        >>> [ax.get_xlabel().splitlines()[0] for ax in methods(results).axes]
        ['accuracy, test split', 'training loss', 'test loss − train loss', 'stability Eᵢ|Δℓᵢ|']
    """
    table, summary = results.table, _measured(summarised(results)).sort_values("stability", kind="stable")
    if summary["algorithm"].nunique() > summary["method"].nunique() or summary["method"].nunique() < 2:
        raise NothingToDrawError("the study has no two methods, or several settings of one: draw one of each")
    performance = mean(results, summary, "test_metric", most=1.0)
    fit, gap, stable = (mean(results, summary, column) for column in ("train_loss", "gap", "stability"))
    told, changes = bars([performance, fit, gap], "the mean", over(results)), bool(summary["mask_overlap"].notna().any())
    own = _stability_bars(results, stable, told, "stability and overlap" if changes else "stability")
    blocks = [
        Block(textwrap.fill(f"{metric(table)}, test split", 20), (performance,), notes=(told,)),
        Block(f"training loss\n[{unit(table)}]", (fit,), 0.0 if summary["train_loss"].min() >= 0 else None, log=True),
        Block(f"test loss − train loss\n[{unit(table)}]", (gap,), zero=True),
        Block(f"stability {STABILITY}\n[{unit(table)}]", (stable,), 0.0, notes=(own,), log=True),
    ]
    if changes:
        overlap = mean(results, summary, "mask_overlap", least=0.0, most=1.0)
        blocks.append(Block("overlap of masks\nof S and of Sⁱ", (overlap,), notes=("An overlap of 1: no mask changes.",)))
    return swept(
        blocks,
        f"Every method: performance, training loss, gap, stability{', overlap of masks' if changes else ''}",
        settings_of(results),
    )


def _points(ax: Axes, mine: pd.DataFrame, style: tuple[Any, Any, Any]) -> bool:
    """One method's points with both intervals; returns whether one is cut."""
    colour, marker, _ = style
    across, up = mine[mine["left"].notna()], mine[mine["low"].notna()]
    left, cut = across["left"].to_numpy(dtype=float), np.zeros(len(across), dtype=bool)
    if ax.get_xscale() == "log":
        left, cut = lower(left, ax.get_xlim()[0])
    ax.hlines(across["y"], left, across["right"], color=colour, lw=0.7, gid="interval")
    ax.vlines(up["x"], up["low"], up["high"], color=colour, lw=0.7, gid="interval")
    if cut.any():
        arrow(ax, left[cut], across["y"][cut], colour, "left")
    sizes = 12 + 8 * (np.log10(mine["p"].astype(float).clip(lower=1e-3)) + 3)
    ax.scatter(mine["x"], mine["y"], s=sizes, color=colour, marker=marker, lw=0, zorder=3, gid="values")
    return bool(cut.any())


def _along(ax: Axes, points: pd.DataFrame) -> list[tuple[float, float]]:
    """Places on the intervals, that names must not cover."""
    steps = np.geomspace if ax.get_xscale() == "log" else np.linspace
    least = max(ax.get_xlim()[0], 1e-300) if ax.get_xscale() == "log" else -np.inf
    places = []
    for _, point in points.iterrows():
        if np.isfinite(point["left"]):
            places += [(float(x), point["y"]) for x in steps(max(point["left"], least), point["right"], 16)]
        if np.isfinite(point["low"]):
            places += [(point["x"], float(y)) for y in np.linspace(point["low"], point["high"], 16)]
    return places


def _across(ax: Axes, points: pd.DataFrame) -> tuple[float, float]:
    """Limits of the horizontal axis that fit the stability and its intervals, after choosing its scale."""
    own = points[["x", "left", "right"]].set_axis(["y", "low", "high"], axis=1)
    fitted(ax, Block("", (Curve("", own),), 0.0, log=True))
    limits, scale = ax.get_ylim(), ax.get_yscale()
    ax.set(xscale=scale, yscale="linear")
    return limits
