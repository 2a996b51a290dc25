"""Methods beside each other; methods on tasks: ranks of stability and of performance, Definition 3 beside the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.leave_one_out.coverage import LEAST_COVERAGE
from stability.plotting.curves import FEW
from stability.plotting.grids import CUT_LEFT, arrow, lower, plain_log
from stability.plotting.style import (
    CONTEXT,
    STABILITY,
    NothingToDrawError,
    explained,
    headed,
    label,
    near,
    new_figure,
    settings_of,
    share,
    styled,
    styles,
    unit,
)
from stability.plotting.style import metric as metric_of
from stability.studies.comparison import Comparison
from stability.studies.ranks import RankCorrelation, rank_correlation, ranked
from stability.studies.scores import Scores, std_interval

__all__ = ["against_first", "definition_3", "ranks"]


@styled
def against_first(comparison: Comparison) -> Figure:
    """What each method has more than the first one: stability and the metric on held-out data, a row for each method.

    Bars are 95 % intervals. Filled is what is significant after Holm's correction for all rows of its panel, hollow what is not
    (:meth:`stability.studies.Comparison.differences`).

    Args:
        comparison: methods that were measured with the same seeds (:func:`stability.compare`).

    Raises:
        NothingToDrawError: no method has a difference of stability with an interval.

    Example:
        >>> from stability import compare, estimators
        >>> how = {"problem_settings": {"n": 10}, "steps": 2, "workers": 1}
        >>> figure = against_first(compare("digits", ["full", "bitfit"], seeds=1, estimator=estimators.Exact(), **how))
        >>> figure.get_suptitle().splitlines()[0]
        'bitfit is more stable than full'
    """
    stability, metric = comparison.differences(), comparison.differences("test_metric")
    if not len(stability) or stability["low"].isna().all():
        raise NothingToDrawError(
            "no two methods have a difference with an interval: use three seeds, or one with examples left out"
        )
    known, first = comparison.results.table, next(iter(comparison.labels.values()))
    panels = [(f"stability {STABILITY} [{unit(known)}]", stability)]
    if metric["low"].notna().any():
        panels.append((f"{metric_of(known)} on held-out data", metric))
    figure, axes = new_figure(1, len(panels), (4.6 if len(panels) == 1 else 7.2, 1.5 + 0.22 * len(stability)))
    methods = comparison.results.algorithms
    style = styles([methods[name]["method"] if name in methods else name for name in comparison.labels])
    colours = [style[methods[name]["method"] if name in methods else name][0] for name in list(comparison.labels)[1:]]
    for ax, (what, table) in zip(axes, panels, strict=True):
        ax.axvline(0, color="0.35", lw=0.8, gid="none")
        for place, (row, colour) in enumerate(zip(table.to_dict("records"), colours, strict=True)):
            if np.isfinite([row["low"], row["high"]]).all():
                ax.hlines(place, row["low"], row["high"], color=colour, lw=1.2, gid="interval")
                ax.plot(
                    row["difference"], place, "o", color=colour, mfc=colour if row["resolved"] else "white", gid="values", zorder=3
                )
        ax.set(ylim=(len(table) - 0.5, -0.5), yticks=range(len(table)), xlabel=f"{what}:\ndifference from {first}")
        ax.set_yticklabels(table["method"] if ax is axes[0] else [])
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=5)
    by = set(stability["by"]) - {""}
    rows = stability[stability["resolved"]].to_dict("records")
    finding = f"How each method differs from {first}"
    if len(rows) == len(stability) and len({row["difference"] < 0 for row in rows}) == 1:
        kind = "more" if rows[0]["difference"] < 0 else "less"
        who = rows[0]["method"] if len(rows) == 1 else "All methods"
        finding = f"{who} {'is' if len(rows) == 1 else 'are'} {kind} stable than {first}"
    elif not rows and stability["low"].notna().all():
        finding = f"No method's stability differs significantly from that of {first}"
    headed(figure, finding, settings_of(comparison.results))
    over = "over seeds, paired" if "seeds" in by else "over the examples that are left out, for this training set and seed"
    resolved = np.concatenate([table["resolved"].to_numpy(dtype=bool) for _, table in panels])
    corrected = " at 5 % after Holm's correction" if stability["p"].notna().sum() > 1 else ""
    lines = [
        "Left of 0: more stable." if len(panels) == 1 else "Left panel, left of 0: more stable.",
        "Each difference is exact for this training set and seed." if by == {"exact"} else f"Bars: 95 % interval {over}.",
        f"Filled: significant{corrected}." if resolved.any() else "",
        "" if resolved.all() else "Hollow: not significant." if resolved.any() else f"Hollow: not significant{corrected}.",
    ]
    explained(figure, lines)
    return figure


@styled
def ranks(*panels: Scores) -> Figure:
    """Rank of the mean against rank of the standard deviation over seeds (Fu et al. 2023, the figure of stability against
    performance), a panel for each table of scores: grey for each method and task, and by name each method's mean over the tasks.

    Ranks are within the task, 1 is best: the smallest deviation, the largest mean. The title says which way they go together where
    the 95 % interval of Spearman's ρ is on one side of 0.

    Args:
        panels: scores that were measured (:func:`stability.studies.scores`) or published
            (:func:`stability.studies.published_scores`).

    Raises:
        NothingToDrawError: scores with fewer than three pairs of mean and standard deviation, or of one method.

    Example:
        >>> from stability.studies import published_scores
        >>> print(ranks(published_scores("main")).axes[0].get_title(loc="left").splitlines()[1])
        Spearman ρ = 0.485 (95%: 0.10 to 0.75), 70 pairs
    """
    for scores in panels:
        if scores.table["std"].notna().sum() < 3 or scores.table["method"].nunique() < 2:
            raise NothingToDrawError("ranks need at least two methods, two seeds and three pairs of method and task")
    figure, axes = new_figure(1, len(panels), (4.6, 4.6) if len(panels) == 1 else (3.6 * len(panels), 4.8))
    found = [_panel(ax, scores) for ax, scores in zip(axes, panels, strict=True)]
    tasks = list(dict.fromkeys(label(str(task)) for scores in panels for task in scores.table["task"]))
    one = "Methods that spread less over seeds perform better"
    other = "Methods that spread less over seeds perform worse"
    headed(figure, _finding(found, one, other) or "Spread over seeds against performance", f"tasks {', '.join(tasks)}")
    explained(figure, ["Grey: a method on a task. Named: a method's mean over the tasks.", _TESTS])
    return figure


_TESTS = "The interval of ρ is the jackknife's over methods; p is for pairs as if independent, and for whole methods shuffled."


def _finding(found: Sequence[RankCorrelation], one: str, other: str) -> str:
    """What all intervals agree on: ``one`` where they are above 0, ``other`` where below; empty where they tell neither."""
    ends = np.array([correlation.interval for correlation in found], dtype=float)
    if not np.isfinite(ends).all():
        return ""
    return one if (ends > 0).all() else other if (ends < 0).all() else ""


def _panel(ax: Axes, scores: Scores) -> RankCorrelation:
    known = ranked(scores.table[scores.table["std"].notna()])
    tasks = list(dict.fromkeys(known["task"]))
    apart = dict(zip(tasks, np.linspace(-0.25, 0.25, len(tasks)) if len(tasks) > 1 else [0.0], strict=True))
    ax.plot(known["rank_std"] + known["task"].map(apart), known["rank_mean"], ".", color=CONTEXT, ms=5, gid="pairs", zorder=1)
    means = known.groupby("method", sort=False)[["rank_std", "rank_mean"]].mean()
    style = styles(means.index)
    count = int(known["method"].nunique())
    ax.set(xlim=(0.4, count + 0.6), ylim=(count + 0.6, 0.4))
    for method, mean in means.iterrows():
        colour, marker, _ = style[str(method)]
        ax.plot(mean["rank_std"], mean["rank_mean"], marker, color=colour, ms=6, gid="means", zorder=3)
    pairs = list(zip(known["rank_std"] + known["task"].map(apart), known["rank_mean"], strict=True))
    near(
        ax, [(mean["rank_std"], mean["rank_mean"], label(str(name)), style[str(name)][0]) for name, mean in means.iterrows()], pairs
    )
    found = rank_correlation(known, "mean", "std")
    title = scores.title.split(",")[0]  # without what the table is about
    ax.set_title(f"{title}\nSpearman ρ = {found.estimate}, {found.count} pairs\n{found.tests}", loc="left", fontsize=7.5)
    ax.set(xlabel="rank of the spread over seeds (1: least)", ylabel="rank of performance (1: best)")
    places = range(1, count + 1)
    ax.set(xticks=places, yticks=places)
    return found


@styled
def definition_3(scores: Scores, loss_unit: str = "the loss's unit") -> Figure:
    """Measured leave-one-out stability beside the spread over seeds: a row of panels for each task, a line in it for each method,
    with 95 % intervals.

    The interval of the spread is that of the standard deviation of a normal population; two seeds give none. Hollow: what was
    retrained was predicted badly, and so chosen badly. The title says how the ranks of both go together where the 95 % interval of
    Spearman's ρ is on one side of 0.

    Args:
        scores: what a study measured (:func:`stability.studies.scores`).
        loss_unit: the unit of the loss, for a label.

    Raises:
        NothingToDrawError: no stability was measured, or fewer than two seeds.

    Example:
        >>> from stability import studies
        >>> results = studies.StudyResults.read("figures/paper-quick.sqlite")
        >>> [ax.get_title(loc="left") for ax in definition_3(studies.scores(results), "nats").axes[::2]]
        ['CB', 'RTE']
    """
    whole = scores.table
    if "stability" not in whole or not (both := whole["stability"].notna() & whole["std"].notna()).any():
        raise NothingToDrawError("no method has both a measured stability and at least two seeds")
    known = whole[both]
    tasks = list(dict.fromkeys(known["task"]))
    counts = {task: list(dict.fromkeys(known.loc[known["task"] == task, "method"])) for task in tasks}
    rows = sum(map(len, counts.values()))
    figure, axes = new_figure(
        len(tasks), 2, (7.2, 1.5 + 0.5 * len(tasks) + 0.19 * rows), tuple(1 + len(mine) for mine in counts.values())
    )
    style, cut = styles(known["method"].unique()), False
    for row, task in enumerate(tasks):
        left, right = axes[2 * row : 2 * row + 2]
        mine, methods = known[known["task"] == task].set_index("method"), counts[task]
        least = mine["stability"].min() / 3
        for place, method in enumerate(methods):
            one, (colour, marker, _) = mine.loc[method], style[method]
            measured = one["stability_low"], one["stability_high"]
            if one["measured"] == FEW - 1:
                measured = math.nan, math.nan
            spread = std_interval(one["std"], int(one["seeds"])) if one["seeds"] >= FEW else (math.nan, math.nan)
            for ax, value, (low, high) in ((left, one["stability"], measured), (right, one["std"], spread)):
                if np.isfinite([low, high]).all():
                    (begin,), (off,) = lower(np.array([low]), least if ax is left else -math.inf)
                    ax.hlines(place, begin, high, color=colour, lw=1, gid="interval")
                    if off:
                        arrow(ax, begin, place, colour, "left")
                        cut = True
                fill = "white" if ax is left and one["simulated_coverage"] < LEAST_COVERAGE else colour
                ax.plot(value, place, marker, color=colour, mfc=fill, clip_on=False, zorder=3, gid="values")
        for ax in (left, right):
            ax.set(ylim=(len(methods) - 0.5, -0.5), yticks=range(len(methods)))
            ax.tick_params(axis="y", length=0)
        left.set_xscale("log")
        plain_log(left, "x")
        right.set_xlim(left=0)
        left.set_yticklabels([_with_p(name, mine.loc[name]) for name in methods])
        right.set_yticklabels([])
        left.set_title(label(str(task)), loc="left", fontweight="bold")
    axes[-2].set_xlabel(f"leave-one-out stability {STABILITY} [{loss_unit}]")
    axes[-1].set_xlabel("standard deviation over seeds [% of the metric]")
    enough = len(known) > 2 and known["method"].nunique() > 1
    found = rank_correlation(known, "stability", "std") if enough else None
    said = f"Ranks within tasks, {found.count} pairs: Spearman's ρ = {found}." if found and math.isfinite(found.value) else ""
    one = "Methods that change less when an example is left out spread less over seeds"
    other = "Methods that change less when an example is left out spread more over seeds"
    finding = _finding([found], one, other) if found else ""
    headed(figure, finding or "Leave-one-out stability and spread over seeds", scores.title)
    explained(
        figure,
        [*_bars(known), said, _HOLLOW if (known["simulated_coverage"] < LEAST_COVERAGE).any() else "", CUT_LEFT if cut else ""],
    )
    return figure


_HOLLOW = f"Hollow: in simulations, intervals of draws like these held the truth less often than in {LEAST_COVERAGE:.0%}."


def _with_p(name: str, row: Any) -> str:
    return f"{label(name)}, {share(row['sparsity'])}" if np.isfinite(row["sparsity"]) else label(name)


def _bars(known: pd.DataFrame) -> list[str]:
    """What the bars of both columns are."""
    measured, seeds = known["measured"], known["seeds"]
    alone = "over the examples that are left out (one seed)" if (measured == 1).any() else ""
    several = "over seeds" if (measured >= FEW).any() else ""
    many = sorted(seeds[seeds >= FEW].unique())
    count = "" if not many else f"{many[0]:g}" if len(many) == 1 else f"{many[0]:g} to {many[-1]:g}"
    left = " and ".join(part for part in (several, alone) if part)
    return [
        "Behind each name: p.",
        f"Bars, left: 95 % interval of the mean {left}." if left else "",
        f"Bars, right: 95 % interval of a normal population's standard deviation from {count} seeds." if many else "",
        "Two seeds give no interval." if (measured == FEW - 1).any() or (seeds == FEW - 1).any() else "",
    ]
