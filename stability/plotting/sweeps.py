"""Figures of a sweep over p: stability, generalization, the paper's panels, gap against stability."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator
from scipy import stats

from stability.bounds.base import State
from stability.plotting.style import (
    P_LABEL,
    NothingToDrawError,
    legend,
    lines,
    metric,
    new_figure,
    percent,
    series,
    styled,
    styles,
    unit,
)
from stability.studies.results import CellStatus, StudyResults

__all__ = ["four_panels", "gap_against_stability", "generalization", "stability"]


@styled
def stability(results: StudyResults) -> Figure:
    """(a) Measured leave-one-out stability against p with 95 % intervals over seeds; above it Theorem 1's bound, where measured.

    All axes are logarithmic. The bound has one mark a seed, filled only where it is less than the largest loss and no
    checked assumption failed; an infinite bound is an arrow at the top edge. Methods stand a little apart along p, so that
    none hides another. An interval that reaches below a third of the least value measured is cut there.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: no stability was measured, or several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> stability(StudyResults.read("figures/paper-quick-bounds.sqlite")).axes[1].get_xscale()
        'log'
    """
    table, summary = results.table, results.summary().table
    summary = summary[summary["stability"].notna()]
    if summary.empty:
        raise NothingToDrawError("stability was measured with no seed: there is nothing to draw")
    ok = table[(table["status"] == CellStatus.OK) & table["stability"].notna()]
    bounded = bool(ok["theorem_1_state"].notna().any())
    figure, axes = new_figure(2, 1, (6.4, 6.4), heights=(1, 1.8)) if bounded else new_figure(1, 1, (6.4, 4.6))
    ax = axes[-1]
    by = series(summary)
    shift, style = _side_by_side(summary), styles(summary[by])
    floor = summary["stability"].min() / 3
    for name, group in summary.groupby(by, sort=False):
        colour, marker, dash = style[str(name)]
        p = group["sparsity"] * shift[str(name)]
        y = group["stability"].to_numpy()
        ends = group[["stability_low", "stability_high"]].to_numpy(dtype=float)
        known = np.isfinite(ends).all(axis=1)  # an end that is unknown is not drawn, and so neither is the other
        low, high = np.where(known, np.maximum(ends[:, 0], floor), y), np.where(known, ends[:, 1], y)
        ax.errorbar(p, y, [y - low, high - y], color=colour, marker=marker, ls=dash, capsize=2, elinewidth=0.6, lw=1.2)
    label = f"{P_LABEL} ({by}s of the same p side by side)"
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=label,
        ylabel=f"measured $E_i|\\Delta\\ell_i|$ [{unit(table)}]",
    )
    ax.set_ylim(bottom=floor)
    percent(ax)
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    seeds = int(summary["measured"].max())
    told = f"mean of {seeds} seeds, 95 %" if seeds > 1 else "one seed, 95 % over what is left out"
    extra = [Line2D([], [], color="0.3", marker="o", ls="-", label=f"measured, {told}")]
    if bounded:
        axes[0].set_xlim(ax.get_xlim())
        extra += _theorem_1(axes[0], ok, summary, shift)
    legend(figure, summary, extra)
    return figure


def _theorem_1(above: Axes, ok: pd.DataFrame, summary: pd.DataFrame, shift: dict[str, float]) -> list[Line2D]:
    """Draw the bound of every cell; returns the entries of the legend that explain it."""
    by = series(summary)
    style = styles(summary[by])
    bound = pd.to_numeric(ok["theorem_1"])
    top = 10 ** math.ceil(math.log10(bound.max() * 3)) if bound.notna().any() else 1e3
    for name, group in ok.groupby(by, sort=False):
        colour, marker, _ = style[str(name)]
        mine, p = bound[group.index], group["sparsity"] * shift[str(name)]
        holds = group["theorem_1_state"] == State.NOT_REFUTED
        for chosen, fill in ((holds, colour), (~holds, "none")):
            above.plot(p[chosen], mine[chosen], marker, ms=4, mfc=fill, mec=colour, mew=0.8, ls="", alpha=0.9)
        infinite = p[group["theorem_1_state"] == State.INFINITE].unique()
        above.plot(infinite, np.full(len(infinite), top * 0.6), marker="$\\uparrow$", ms=8, color=colour, ls="")
    above.plot(summary["sparsity"], summary["loss_bound"], "_", color="0.6", ms=6)
    above.set(xscale="log", yscale="log", ylabel=f"Theorem 1's bound [{unit(ok)}]", xticklabels=[])
    above.set_ylim(top=top)
    extra = [
        Line2D([], [], color="0.3", marker="o", mfc="none", ms=4, ls="", label="bound, vacuous or an assumption failed"),
        Line2D([], [], color="0.3", marker="$\\uparrow$", ms=8, ls="", label="bound infinite"),
        Line2D([], [], color="0.6", marker="_", ms=6, ls="", label="largest loss: bounds above are vacuous"),
    ]
    if (ok["theorem_1_state"] == State.NOT_REFUTED).any():
        extra.insert(0, Line2D([], [], color="0.3", marker="o", ms=4, ls="", label="bound, not refuted"))
    return extra


def _side_by_side(summary: pd.DataFrame) -> dict[str, float]:
    """A factor for each line's p, so that those measured at the same p stand a little apart; 1 for one alone."""
    together: dict[tuple[float, ...], list[str]] = {}
    for name, group in summary.groupby(series(summary), sort=False):
        together.setdefault(tuple(group["sparsity"].round(3)), []).append(str(name))
    return {name: 1.04 ** (i - (len(group) - 1) / 2) for group in together.values() for i, name in enumerate(group)}


@styled
def generalization(results: StudyResults) -> Figure:
    """(b) Train and test loss, metric, and generalization gap against p: mean and ± one standard deviation over seeds.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> [ax.get_ylabel() for ax in generalization(StudyResults.read("figures/paper-quick-bounds.sqlite")).axes]
        ['loss [nats]', 'accuracy', 'test loss − train loss [nats]']
    """
    table, summary = results.table, results.summary().table
    figure, axes = new_figure(1, 3, (9.6, 3.5))
    for ax, name, label in ((axes[0], "loss", f"loss [{unit(table)}]"), (axes[1], "metric", metric(table))):
        for split, filled in (("test", True), ("train", False)):
            lines(ax, summary, f"{split}_{name}", filled=filled)
        ax.set(xlabel="p", ylabel=label, title=f"{label.split(' ')[0]}: test (filled), train (hollow)")
    lines(axes[2], summary, "gap")
    axes[2].axhline(0, color="0.7", lw=0.8, zorder=0)
    axes[2].set(xlabel="p", ylabel=f"test loss − train loss [{unit(table)}]", title="generalization gap")
    for ax in axes:
        ax.set_xscale("log")
        percent(ax)
    legend(figure, summary)
    return figure


@styled
def four_panels(results: StudyResults) -> Figure:
    """(c) The paper's panels: mean and standard deviation over seeds of the test and train metric.

    There is a line for each method; of one method on several tasks, as in the paper, a line for each task.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> [ax.get_title() for ax in four_panels(StudyResults.read("figures/discontinuity.sqlite")).axes]
        ['test mean', 'test std', 'train mean', 'train std']
    """
    summary = results.summary().table
    figure, axes = new_figure(2, 2, (7.2, 5.4))
    panels = (
        ("test_metric", "test mean"),
        ("test_metric_std", "test std"),
        ("train_metric", "train mean"),
        ("train_metric_std", "train std"),
    )
    for ax, (column, title) in zip(axes, panels, strict=True):
        lines(ax, summary, column, spread=False)
        ax.set(xscale="log", xlabel="p", ylabel=metric(results.table), title=title)
        percent(ax)
    legend(figure, summary)
    return figure


@styled
def gap_against_stability(results: StudyResults) -> Figure:
    """(d) Generalization gap against measured stability, a point for each method and p, both with 95 % intervals.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: no stability was measured, or several methods on several tasks.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> len(gap_against_stability(StudyResults.read("figures/paper-quick-bounds.sqlite")).axes[0].collections)
        2
    """
    table, summary = results.table, results.summary().table
    summary = summary[summary["stability"].notna()]
    if summary.empty:
        raise NothingToDrawError("stability was measured with no seed: there is nothing to draw")
    figure, axes = new_figure(1, 1, (5.6, 4.2))
    by = series(summary)
    ax, style = axes[0], styles(summary[by])
    for name, group in summary.groupby(by, sort=False):
        colour, marker, _ = style[str(name)]
        sizes = 22 + 60 * (np.log10(group["sparsity"]) + 3).clip(lower=0) / 3
        ax.scatter(group["stability"], group["gap"], s=sizes, color=colour, marker=marker, alpha=0.85, lw=0, zorder=3)
        for _, point in group.iterrows():
            across, up = ([point[f"{end}_low"], point[f"{end}_high"]] for end in ("stability", "gap"))
            if np.isfinite(across).all():
                ax.plot(np.maximum(across, 0), [point["gap"]] * 2, color=colour, lw=0.6, alpha=0.45)
            if np.isfinite(up).all():
                ax.plot([point["stability"]] * 2, up, color=colour, lw=0.6, alpha=0.45)
    if len(summary) > 2:
        rho, p_value = stats.spearmanr(summary["stability"], summary["gap"])
        caution = f"p-value {p_value:.2g} as if independent; they share seeds"
        ax.set_title(f"{len(summary)} points, larger for larger p; Spearman ρ = {rho:.2f}\n({caution})", fontsize=8)
    ax.set(xlabel=f"measured stability $E_i|\\Delta\\ell_i|$ [{unit(table)}]", ylabel=f"test loss − train loss [{unit(table)}]")
    legend(figure, summary)
    return figure
