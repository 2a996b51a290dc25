"""Methods and another method's learning rates over the training loss: what is left of a difference where the fit is equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.leave_one_out.statistics import mean_over_seeds
from stability.plotting.curves import FEW, over
from stability.plotting.grids import plain_log
from stability.plotting.style import (
    STABILITY,
    NothingToDrawError,
    explained,
    headed,
    label,
    near,
    new_figure,
    share,
    styled,
    styles,
    unit,
)
from stability.studies.effects import finished
from stability.studies.equal_fit import Curve, beside_curve
from stability.studies.results import StudyResults

__all__ = ["against_fit"]


@styled
def against_fit(results: StudyResults, curve: Curve) -> Figure:
    """Stability and generalization gap against the training loss: a point for each method, and a line for another method that was
    trained at several learning rates. A point below the line is more stable, or has a smaller gap, than that method where it fits S
    equally well.

    Points are geometric means over seeds, of training loss too, with Student's 95 % interval for logarithms. The line joins such
    means. :func:`stability.studies.at_equal_training_loss` compares each seed with a line of its own, so that its ratios may differ
    from those in the figure.

    Args:
        results: the methods, on one task. Runs that are in the curve are left out.
        curve: the runs of the other method on the same task, of one study or several.

    Raises:
        NothingToDrawError: several tasks, or no method beside the curve.
        UsageError: the curve has no runs, runs of several methods or at several p, or no two with one seed; or no stability
            was measured, or a value is not above 0.

    Example:
        >>> from stability.studies import StudyResults
        >>> main = StudyResults.read("figures/claims/claims-stsb.sqlite")
        >>> slower = StudyResults.read("figures/claims/claims-stsb-fit.sqlite")  # full tuning at smaller learning rates
        >>> figure = against_fit(main.where(method=["lora", "adapter"]), [slower, main.where(method="full")])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['full tuning', 'Adapter', 'LoRA']
    """
    several = [curve] if isinstance(curve, StudyResults) else list(curve)
    loss = unit(results.table)
    labels = {"stability": f"stability {STABILITY} [{loss}]", "gap": f"test loss − train loss [{loss}]"}
    panels = {}
    for column in labels:
        mine, known = beside_curve(results, several, column)
        if mine.empty:
            raise NothingToDrawError(f"no {column} of a method beside the curve: give other methods, or measure it")
        if len(tasks := sorted({*known["task"], *mine["task"]})) > 1:
            raise NothingToDrawError(f"the results are of {', '.join(tasks)}: draw one task at a time")
        panels[column] = _means(mine, column, "algorithm"), _means(known, column, "setting")
    style = styles(name for both in panels.values() for some in both for name in some["method"])
    figure, axes = new_figure(1, len(panels), (7.2, 4.4))
    for ax, (column, (points, line)) in zip(axes, panels.items(), strict=True):
        ax.set(xscale="log", yscale="log", xlabel=f"training loss [{loss}]", ylabel=labels[column])
        ax.plot(line["x"], line["y"], color=style[line["method"].iloc[0]][0], zorder=2, gid="curve")
        every = pd.concat([line, points], ignore_index=True)
        for point in every.to_dict("records"):
            colour, marker, _ = style[point["method"]]
            ax.plot(point["x"], point["y"], marker, color=colour, ms=5, zorder=3, gid="values")
            if point["units"] >= FEW:
                ax.vlines(point["x"], point["low"], point["high"], color=colour, lw=0.8, gid="interval")
        plain_log(ax, "x")
        plain_log(ax)
        _name(ax, points, line, style)
    studies = ", ".join(dict.fromkeys(one.study for one in (results, *several)))
    sizes = sorted({int(n) for one in (results, *several) for n in finished(one)["n"]})
    headed(
        figure,
        "Stability and generalization gap against the training loss",
        f"studies {studies} · problem {label(points['task'].iloc[0])} · n = {', '.join(map(str, sizes))}",
    )
    counts = sorted({int(units) for both in panels.values() for some in both for units in some["units"]})
    many = [count for count in counts if count >= FEW]
    bars = " to ".join(dict.fromkeys(str(count) for count in (many[:1] + many[-1:])))
    explained(
        figure,
        [
            f"Line: {label(line['method'].iloc[0])} in {len(line)} settings. Points: the other methods.",
            f"Means over {over(results)} are geometric.",
            f"Bars: 95 % interval over {bars} {over(results)}." if many else "",
            f"Fewer than {FEW} {over(results)} give no interval." if counts[0] < FEW else "",
        ],
    )
    return figure


def _means(runs: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """Geometric means over the runs of every setting, of the training loss, ``x``, and of a quantity, ``y``, in the order of ``x``.

    ``low`` and ``high`` are the ends of the interval of ``y``, NaN of fewer than :data:`FEW` units; ``units`` counts these.
    """
    rows = []
    for _, some in runs.groupby(by):
        logs: pd.DataFrame = some[["train_loss", column]].astype(float).transform(np.log)
        logs = logs.groupby(some["sample" if some["sample"].any() else "seed"]).mean()
        low, high = mean_over_seeds(logs[column]).interval if len(logs) >= FEW else (np.nan, np.nan)
        x, y = np.exp(logs.mean())
        row = {name: some[name].iloc[0] for name in ("task", "method", "sparsity")}
        rows.append({**row, "x": x, "y": y, "low": np.exp(low), "high": np.exp(high), "units": len(logs)})
    return pd.DataFrame(rows).sort_values("x", ignore_index=True)


def _name(ax: Axes, points: pd.DataFrame, line: pd.DataFrame, style: dict[str, Any]) -> None:
    """Write the names of the points, and that of the line where it is farthest from them."""
    several = points["method"].duplicated(keep=False)
    names = [
        f"{label(method)}, {share(p)}" if many else label(method)
        for method, p, many in zip(points["method"], points["sparsity"], several, strict=True)
    ]
    place = ax.transData + ax.transAxes.inverted()
    at, others = (place.transform(some[["x", "y"]].to_numpy()) for some in (line, points))
    far = line.iloc[int(np.argmax(np.linalg.norm(at[:, None] - others, axis=-1).min(1)))]
    ends = [(far["x"], far["y"], label(far["method"]), style[far["method"]][0])]
    ends += [(x, y, name, style[m][0]) for x, y, m, name in zip(points["x"], points["y"], points["method"], names, strict=True)]
    x = np.geomspace(line["x"].min(), line["x"].max(), 60)
    covered = list(zip(x, np.exp(np.interp(np.log(x), np.log(line["x"]), np.log(line["y"]))), strict=True))
    for part in (line, points):
        for _, point in part.dropna(subset="low").iterrows():
            covered += [(point["x"], y) for y in np.geomspace(point["low"], point["high"], 24)]
    near(ax, ends, covered, 3.2)
