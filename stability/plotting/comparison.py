"""Methods on tasks: ranks of stability against ranks of performance, and Definition 3 beside the spread over seeds."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stability.leave_one_out.estimators import POOR
from stability.plotting.style import LABELS, NothingToDrawError, new_figure, styled, styles
from stability.studies.ranks import rank_correlation, ranked
from stability.studies.scores import Scores, std_interval

__all__ = ["definition_3", "ranks"]


@styled
def ranks(*panels: Scores) -> Figure:
    """Rank of the standard deviation over seeds against rank of the mean, a point for each method and task (Fu et al. 2023, the
    figure of stability against performance), a panel for each table of scores.

    Ranks are within the task, 1 is best: the smallest deviation, the largest mean. Tasks stand a little apart, so that none hides
    another. Black: the mean rank of performance of all points at a rank of stability (one shared by ties is rounded up), with its
    standard error where there is more than one.

    Args:
        panels: scores that were measured (:func:`stability.studies.scores`) or published
            (:func:`stability.studies.published_scores`).

    Raises:
        NothingToDrawError: scores with fewer than three pairs of mean and standard deviation, or of one method.

    Example:
        >>> from stability.studies import published_scores
        >>> print(ranks(published_scores("main")).axes[0].get_title().splitlines()[1])
        Spearman ρ = 0.485 (95%: 0.10 to 0.75), 70 pairs
    """
    for scores in panels:
        if scores.table["std"].notna().sum() < 3 or scores.table["method"].nunique() < 2:
            raise NothingToDrawError("ranks need at least two methods, two seeds and three pairs of method and task")
    figure, axes = new_figure(1, len(panels), (0.6 + 3.7 * len(panels), 4.6))
    for ax, scores in zip(axes, panels, strict=True):
        _panel(ax, scores)
    methods = list(dict.fromkeys(method for scores in panels for method in scores.table["method"]))
    mean = Line2D([], [], color="black", marker="_", ms=9, ls="", label="mean ± standard error")
    figure.legend(handles=[*_handles(methods), mean], loc="outside lower center", ncols=3 if len(panels) < 2 else 6)
    return figure


def _panel(ax: Axes, scores: Scores) -> None:
    known = ranked(scores.table[scores.table["std"].notna()])
    style, tasks = styles(known["method"]), list(dict.fromkeys(known["task"]))
    apart = dict(zip(tasks, np.linspace(-0.3, 0.3, len(tasks)) if len(tasks) > 1 else [0.0], strict=True))
    for method, group in known.groupby("method", sort=False):
        colour, marker, _ = style[str(method)]
        x = group["rank_std"] + group["task"].map(apart)
        ax.plot(x, group["rank_mean"], marker, color=colour, ms=5, alpha=0.85, mew=0)
    steps = known.assign(step=np.floor(known["rank_std"] + 0.5)).groupby("step")["rank_mean"].agg(["mean", "sem"])
    ax.errorbar(steps.index, steps["mean"], steps["sem"], color="black", marker="_", ms=9, ls="", capsize=3, lw=1, zorder=4)
    found = rank_correlation(known, "mean", "std")
    title = scores.title.split(",")[0]  # without what the table is about
    ax.set_title(f"{title}\nSpearman ρ = {found.estimate}, {found.count} pairs\n{found.tests}")
    count = int(known["method"].nunique())
    places = range(1, count + 1)
    ax.set(xlabel="rank of stability over seeds (1: least spread)", ylabel="rank of performance (1: best)")
    ax.set(xticks=places, yticks=places, xlim=(0.4, count + 0.6), ylim=(count + 0.6, 0.4))


def _handles(methods: list[str]) -> list[Line2D]:
    style = styles(methods)
    return [Line2D([], [], color=style[name][0], marker=style[name][1], ls="", label=LABELS.get(name, name)) for name in methods]


@styled
def definition_3(scores: Scores) -> Figure:
    """Measured leave-one-out stability beside the spread over seeds: a row of panels for each task, a line in it for each method,
    with 95 % intervals.

    The interval of the spread is that of the standard deviation of a normal population; one of the stability that reaches below a
    third of the least value is cut there. Hollow: what was retrained was predicted badly, and so chosen badly. Above: how far the
    ranks of both go together.

    Args:
        scores: what a study measured (:func:`stability.studies.scores`).

    Raises:
        NothingToDrawError: no stability was measured, or fewer than two seeds.

    Example:
        >>> from stability import studies
        >>> results = studies.StudyResults.read("figures/paper-quick.sqlite")
        >>> [ax.get_title(loc="left") for ax in definition_3(studies.scores(results)).axes[::2]]
        ['CB', 'RTE']
    """
    whole = scores.table
    if "stability" not in whole or not (both := whole["stability"].notna() & whole["std"].notna()).any():
        raise NothingToDrawError("no method has both a measured stability and at least two seeds")
    known = whole[both]
    tasks, methods = list(dict.fromkeys(known["task"])), list(dict.fromkeys(known["method"]))
    figure, axes = new_figure(len(tasks), 2, (7.2, 1.0 + (0.5 + 0.2 * len(methods)) * len(tasks)))
    style, least = styles(methods), known["stability"].min() / 3
    for row, task in enumerate(tasks):
        left, right = axes[2 * row : 2 * row + 2]
        mine = known[known["task"] == task].set_index("method").reindex(methods)
        for place, method in enumerate(methods):
            colour, marker, _ = style[method]
            one = mine.loc[method]
            spread = (one["std"], *std_interval(one["std"], int(one["seeds"]) if np.isfinite(one["seeds"]) else 0))
            measured = (one["stability"], one["stability_low"], one["stability_high"])
            for ax, (value, low, high) in ((left, measured), (right, spread)):
                if np.isfinite([low, high]).all():
                    ax.plot([max(low, least if ax is left else 0), high], [place, place], color=colour, lw=1.2)
                ax.plot(value, place, marker, color=colour, mfc="white" if ax is left and one["correlation"] < POOR else colour)
        for ax in (left, right):
            ax.set(ylim=(len(methods) - 0.5, -0.5), yticks=[])
        left.set_xscale("log")
        left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.xaxis.set_minor_formatter(NullFormatter())
        low, high = left.get_xlim()
        if high < 20 * low:  # too short for powers of ten alone
            left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.set_xlim(left=0)
        left.set_yticks(range(len(methods)), [LABELS.get(name, name) for name in methods])
        left.set_title(LABELS.get(task, task), loc="left", fontweight="bold")
    axes[-2].set_xlabel("leave-one-out stability $E_i|\\Delta\\ell_i|$ [loss]")
    axes[-1].set_xlabel("standard deviation over seeds [% of the metric]")
    if (known["correlation"] < POOR).any():
        hollow = f"hollow: retrainings and their prediction correlate by less than {POOR}; its interval holds the truth less often"
        figure.supxlabel(hollow, fontsize=8)
    if len(known) > 2 and math.isfinite((found := rank_correlation(known, "stability", "std")).value):
        figure.suptitle(f"ranks of both within tasks, {found.count} pairs: Spearman\nρ = {found}", fontsize=9)
    return figure
