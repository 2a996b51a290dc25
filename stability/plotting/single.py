"""Figures of one object: which parameters a mask selects, what a bound is made of, what a study will measure."""

from __future__ import annotations

import math
import re

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from stability.bounds.base import Bound, State
from stability.masks import Mask
from stability.plotting.style import NothingToDrawError, explained, headed, label, new_figure, p_axis, share, styled, styles
from stability.studies.study import Study

__all__ = ["bound", "mask", "planned"]

_ROWS = 24
"""The most rows of a figure that fits a page."""


@styled
def mask(selected: Mask) -> Figure:
    """The share of each tensor's parameters that a mask selects, with both numbers.

    Of a model with more than 24 tensors those of all layers are taken together: numbers in their names become ``*``. If there are
    still more, the largest shares of the selected parameters are shown.

    Args:
        selected: the mask.

    Raises:
        NothingToDrawError: the mask is of a model without parameters.

    Example:
        >>> import torch
        >>> figure = mask(Mask({"weight": (2, 2), "bias": (2,)}, {"bias": torch.tensor([0, 1])}))
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [0.0, 1.0]
    """
    if not selected.total:
        raise NothingToDrawError("the mask is of a model without parameters")
    together = len(selected.shapes) > _ROWS
    counts: dict[str, tuple[int, int]] = {}
    for name, shape in selected.shapes.items():
        group = re.sub(r"(?<![^.])\d+(?![^.])", "*", name) if together else name
        chosen, size = counts.get(group, (0, 0))
        counts[group] = chosen + len(selected.indices.get(name, ())), size + math.prod(shape)
    names = list(counts)
    if len(names) > _ROWS:
        most = sorted(names, key=lambda name: -counts[name][0])[:_ROWS]
        names = [name for name in names if name in most]
    figure, (ax,) = new_figure(1, 1, (6.4, 1.0 + 0.17 * len(names)))
    shares = [counts[name][0] / counts[name][1] if counts[name][1] else 0.0 for name in names]
    bars = ax.barh(range(len(names)), shares, color="#0072B2", height=0.65)
    ax.bar_label(bars, [f"{chosen:,} of {size:,}" for chosen, size in map(counts.__getitem__, names)], padding=3, fontsize=6.5)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.35 * max(shares) or 1.0), xlabel="share of the tensor that is selected")
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 1])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    k, m = selected.count, selected.total
    headed(figure, "Which parameters may change", f"{k:,} of {m:,}, p = {share(k / m)}")
    left = len(counts) - len(names)
    explained(
        figure, ["A * stands for every layer." if together else "", f"{left} groups with fewer are left out." if left else ""]
    )
    return figure


@styled
def bound(one: Bound) -> Figure:
    """The value of a bound beside the numbers that it is made of, on one logarithmic axis, and the most that the quantity can be.

    Args:
        one: the bound.

    Raises:
        NothingToDrawError: neither the value nor one of its terms is positive and finite.

    Example:
        >>> from stability.bounds import sgd_convex
        >>> figure = bound(sgd_convex(lipschitz=1, smoothness=1, learning_rates=[0.25] * 50, n=100))
        >>> figure.get_suptitle().splitlines()[1]
        '0.25, not refuted · Hardt, Recht & Singer 2016, Theorem 3.8'
    """
    numbers = {name.replace("_", " "): float(value) for name, value in one.terms.items()}
    rows = {**numbers, "the bound": one.value}
    shown = {name: value for name, value in rows.items() if math.isfinite(value) and value > 0}
    if not shown:
        raise NothingToDrawError(f"the bound on {one.name} has no positive, finite value or term")
    figure, (ax,) = new_figure(1, 1, (5.4, 1.6 + 0.2 * len(rows)))
    everything = [*shown.values(), *([one.largest] if one.largest is not None and one.largest > 0 else [])]
    low, high = min(everything), max(everything)
    room = max((high / low) ** 0.12, 2.0)
    ax.set(xscale="log", xlim=(low / room, high * room**2))
    for place, (name, value) in enumerate(rows.items()):
        last = name == "the bound"
        colour = "#D55E00" if last else "0.45"
        known = name in shown
        if known:
            ax.plot(
                value, place, "o", color=colour, mfc=colour if last and one.state == State.NOT_REFUTED else "white", gid="values"
            )
        at = value if known else low / room
        ax.annotate(f"{value:.3g}", (at, place), (6, 0), textcoords="offset points", va="center", fontsize=7, color=colour)
    if one.largest is not None and one.largest > 0:
        ax.axvline(one.largest, color="0.6", ls=":", lw=1, gid="largest")
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel="value (each in its own unit)")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(LogLocator(numticks=6))
    ax.xaxis.set_minor_formatter(NullFormatter())
    headed(figure, f"Bound on {one.name}: {one.equation}", f"{one.value:.3g}, {one.state.value} · {one.source}")
    failed = [f"{each.name} ({each.detail})" for each in one.assumptions if each.held is False]
    explained(
        figure,
        [
            "Grey: the numbers that go in.",
            f"Dotted: the most that it can be, {one.largest:.3g}; a bound above it is vacuous." if one.largest is not None else "",
            f"Infinite: {one.reason}." if one.reason else "",
            f"Failed: {'; '.join(failed)}." if failed else "",
        ],
    )
    return figure


@styled
def planned(study: Study) -> Figure:
    """What a study will measure: a mark for each method and p, and at the left those whose method decides p itself.

    Args:
        study: the study.

    Example:
        >>> from stability.studies import STUDIES
        >>> [text.get_text() for text in planned(STUDIES["digits-short"]).axes[0].get_yticklabels()][:3]
        ['full tuning', 'BitFit', 'random']
    """
    asked: dict[str, list[float | None]] = {}
    for algorithm in study.algorithms:
        asked.setdefault(algorithm.name, []).append(algorithm.asked_sparsity)
    names, style = list(asked), styles(asked)
    swept = sorted({p for values in asked.values() for p in values if p is not None})
    free = any(None in values for values in asked.values())
    columns = 1 + (free and bool(swept))
    figure = plt.figure(figsize=(5.4, 1.6 + 0.18 * len(names)), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False, width_ratios=(1, 4)[-columns:]).flat)
    for place, name in enumerate(names):
        colour, marker, _ = style[name]
        own = sum(p is None for p in asked[name])
        if own:
            axes[0].plot(np.linspace(-0.1, 0.1, own) if own > 1 else [0.0], [place] * own, marker, color=colour, gid="values")
        if known := [p for p in asked[name] if p is not None]:
            axes[-1].plot(known, [place] * len(known), marker, color=colour, gid="values")
    for ax in axes:
        ax.set(ylim=(len(names) - 0.4, -0.6))
        ax.set_yticks(range(len(names)), [label(name) for name in names] if ax is axes[0] else [])
        ax.tick_params(axis="y", length=0)
    if free:
        axes[0].set(xlim=(-0.5, 0.5), xticks=[0], xticklabels=["p of its own"])
    if swept:
        axes[-1].set_xlabel("p [% of the pretrained parameters]")
        p_axis(axes[-1], swept, room=1 / 12)
    cells, runs = len(study.cells()), len(study.seeds) * len(study.samples or (0,))
    seeds = f"{runs} seeds" if runs > 1 else f"seed {study.seeds[0]}"
    problem = ", ".join(label(name) for name in study.problems)
    headed(figure, f"What study {study.name} measures", f"problem {problem} · {seeds} · {cells} cells")
    return figure
