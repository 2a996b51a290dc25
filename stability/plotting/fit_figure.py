"""Methods and another method's learning rates over the training loss: what is left of a difference where the fit is equal."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.plotting.curves import Block, Curve, bars, mean, over
from stability.plotting.grids import CUT, fitted, lower, plain_log
from stability.plotting.style import (
    STABILITY,
    NothingToDrawError,
    explained,
    headed,
    label,
    near,
    new_figure,
    settings_of,
    styled,
    styles,
    unit,
)
from stability.studies.results import StudyResults

__all__ = ["against_fit"]


@styled
def against_fit(results: StudyResults, curve: StudyResults | Iterable[StudyResults]) -> Figure:
    """Stability and generalization gap against the training loss: a point for each method, and a line for another method that was
    trained at several learning rates. A point below the line is more stable, or has a smaller gap, than that method where both
    fit S equally well.

    Points are means over seeds with 95 % intervals. :func:`stability.studies.at_equal_training_loss` tests the differences, seed by
    seed.

    Args:
        results: the methods, on one task.
        curve: the runs of the other method on the same task, of one study or several.

    Raises:
        NothingToDrawError: several tasks, a curve of several methods or of one setting, or no measured stability.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> main = StudyResults.read("figures/claims/claims-stsb.sqlite")
        >>> slower = StudyResults.read("figures/claims/claims-stsb-fit.sqlite")  # full tuning at smaller learning rates
        >>> figure = against_fit(main.where(method=["lora", "adapter"]), [slower, main.where(method="full")])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['full tuning', 'Adapter', 'LoRA']
    """
    several = [curve] if isinstance(curve, StudyResults) else list(curve)
    line = pd.concat([one.summary().table for one in several], ignore_index=True)
    if len(names := sorted(set(line["method"]))) != 1 or len(line) < 2:
        raise NothingToDrawError(f"the curve is of {len(line)} settings of {', '.join(names)}: use several of one method")
    if len(tasks := sorted({*line["task"], *results.summary().table["task"]})) != 1:
        raise NothingToDrawError(f"the results are of {', '.join(tasks)}: draw one task at a time")
    loss = unit(results.table)
    blocks = {
        "stability": partial(Block, f"stability {STABILITY} [{loss}]", least=0.0, log=True),
        "gap": partial(Block, f"test loss − train loss [{loss}]", zero=True),
    }
    figure, axes = new_figure(1, len(blocks), (7.2, 4.0))
    cut, notes = False, []
    for ax, (column, block) in zip(axes, blocks.items(), strict=True):
        joined = pd.concat([_points(one, column) for one in several], ignore_index=True).sort_values("x")
        apart = _points(results, column)
        both = pd.concat([joined, apart], ignore_index=True)
        if joined.empty or apart.empty:
            raise NothingToDrawError(f"there is no {column} of the methods or of the curve: measure it with an estimator")
        ax.set_xscale("log")
        fitted(ax, block(curves=(Curve("", both),)))
        style = styles(both["series"])
        ax.plot(joined["x"], joined["y"], color=style[names[0]][0], zorder=2, gid="curve")
        for _, point in both.iterrows():
            cut |= _drawn(ax, point, style[point["series"]])
        plain_log(ax, "x")
        ax.set(xlabel=f"training loss [{loss}]", ylabel=block.args[0])
        named = pd.concat([joined.loc[[_alone(joined["x"], apart["x"])]], apart])
        ends = [(x, y, label(name), style[name][0]) for name, x, y in named[["series", "x", "y"]].itertuples(index=False)]
        near(ax, ends, _along(ax, joined, both))
        notes.append(bars([Curve("", both)], "the mean", over(results)))
    headed(figure, "Stability and generalization gap against the training loss", settings_of(results))
    told = f"Line: {label(names[0])} at {len(line)} learning rates. Points: the other methods, each at its own."
    explained(figure, [told, *dict.fromkeys(notes), CUT if cut else ""])
    return figure


def _points(results: StudyResults, column: str) -> pd.DataFrame:
    """The mean of a quantity with its interval, and ``x``, the mean training loss, of every setting."""
    summary = results.summary().table
    least = 0.0 if column == "stability" else -np.inf
    return (
        mean(results, summary, column, least=least).table.assign(x=summary["train_loss"].to_numpy(dtype=float)).dropna(subset="y")
    )


def _alone(places: pd.Series, others: pd.Series) -> Any:
    """The index of the place that is farthest from all others on a logarithmic axis, where a name has most room."""
    apart = np.abs(np.log(places.to_numpy()[:, None] / others.to_numpy()))
    return places.index[int(np.argmax(apart.min(1)))]


def _drawn(ax: Axes, point: pd.Series, style: tuple[Any, Any, Any]) -> bool:
    """Draw one point with its interval; returns whether that goes on below the axis."""
    colour, marker, _ = style
    ax.plot(point["x"], point["y"], marker, color=colour, ms=5, zorder=3, gid="values")
    if not np.isfinite(point["low"]):
        return False
    low, cut = point["low"], False
    if ax.get_yscale() == "log":
        (low,), (cut,) = lower(np.array([low]), np.array([point["y"]]), ax.get_ylim()[0])
    ax.vlines(point["x"], low, point["high"], color=colour, lw=0.8, gid="interval")
    if cut:
        ax.plot(point["x"], low, "v", color=colour, ms=3.5, zorder=4, gid="cut")
    return bool(cut)


def _along(ax: Axes, line: pd.DataFrame, every: pd.DataFrame) -> list[tuple[float, float]]:
    """Places on the line and on the intervals, that names must not cover."""
    x = np.geomspace(line["x"].min(), line["x"].max(), 40)
    places = list(zip(x, np.interp(np.log(x), np.log(line["x"]), line["y"]), strict=True))
    bottom, top = ax.get_ylim()
    for _, point in every.dropna(subset="low").iterrows():
        places += [(point["x"], y) for y in np.linspace(max(point["low"], bottom), min(point["high"], top), 16)]
    return places
