"""Figures of one estimate, example by example: which carry the stability, and how well they were predicted."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stability.checks import check_whole
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.statistics import Numbers
from stability.plotting.style import NothingToDrawError, explained, headed, label, new_figure, share, styled

__all__ = ["differences", "influential"]

_PREDICTED, _RETRAINED = "#56B4E9", "#D55E00"

_ROWS = 30
"""The most groups that have a row each."""


def _settings(estimate: StabilityEstimate) -> str:
    """What an estimate is of: problem, method, p, n and seed."""
    subject = estimate.subject
    data = [f"problem {subject.data}"] if subject.data else []
    p = [] if subject.sparsity is None else [f"p = {share(subject.sparsity)}"]
    return " · ".join([*data, label(subject.method), *p, f"n = {subject.n}", f"seed {subject.seed}"])


@styled
def differences(estimate: StabilityEstimate) -> Figure:
    """How large the differences of single examples are, or of groups and parts, and how well they were predicted.

    Left: |Δℓ_i| of every example, sorted by its prediction: as it was predicted and, where the example was left out, as it was
    retrained; the noise floor. Right: retrained against predicted, with the line of equality. Without a prediction there is the
    left panel alone, sorted by what was retrained. Of at most 30 groups or parts there is a row for each, with its name.

    Args:
        estimate: a measured stability.

    Raises:
        NothingToDrawError: no example's loss changed when it was left out.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> tuning = FineTuning(selectors.Random(sparsity=0.05), steps=2)
        >>> [ax.get_xlabel() for ax in differences(measure(load("digits", n=10), tuning, estimator=estimators.Exact())).axes]
        ['examples, largest first']
    """
    table, names = estimate.examples(), estimate.units.names
    if names is not None and len(table) <= _ROWS:
        return _named(estimate, table)
    predicted = table["predicted"].abs().to_numpy(dtype=float)
    retrained = table["retrained"].abs().to_numpy(dtype=float)
    has_prediction = bool(np.isfinite(predicted).any())
    both = np.isfinite(predicted) & np.isfinite(retrained)
    figure, axes = new_figure(1, 2, (7.2, 3.3)) if both.any() else new_figure(1, 1, (4.6, 3.3))
    order = np.argsort(-np.nan_to_num(predicted if has_prediction else retrained, nan=-1.0), kind="stable")
    unit = estimate.subject.loss_unit
    floor = _floor(predicted, retrained, estimate.noise_floor)
    rank, ax = np.arange(1, len(table) + 1), axes[0]
    left_out = f"retrained ({int(np.isfinite(retrained).sum())})"
    if has_prediction:
        ax.plot(rank, np.maximum(predicted[order], floor), ".", color=_PREDICTED, ms=4, label=f"predicted ({len(table)})")
    ax.plot(rank, np.maximum(retrained[order], floor), "o", mfc="none", color=_RETRAINED, ms=5, label=left_out)
    noise = "rounding" if estimate.loop is None else "noise"
    if floor < estimate.noise_floor:
        ax.axhline(estimate.noise_floor, color="0.5", lw=0.8, ls=":", label=f"noise floor: differences below it are {noise}")
    words = estimate.units.words
    ax.set(yscale="log", xlabel=f"{words.plural}, largest first", ylabel=f"change of the loss, |Δℓᵢ| [{unit}]")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if has_prediction:
        ax.legend(loc="best")
    if both.any():
        _against(axes[1], np.maximum(predicted[both], floor), np.maximum(retrained[both], floor), unit)
    headed(figure, f"How much {words.doing} changes {words.its}", _settings(estimate))
    explained(figure, [_mean(estimate), _retrained(estimate), _line(both)])
    return figure


def _named(estimate: StabilityEstimate, table: pd.DataFrame) -> Figure:
    """A row for each group or part, the largest change first."""
    table = table[table["retrained"].notna()]
    changes = table["retrained"].to_numpy(dtype=float)
    _floor(np.array([]), np.abs(changes), estimate.noise_floor)  # whether anything changed
    figure, (ax,) = new_figure(1, 1, (5.4, 1.5 + 0.19 * len(table)))
    words, unit = estimate.units.words, estimate.subject.loss_unit
    rows = range(len(table))
    ax.axvline(0, color="0.6", lw=0.8)
    ax.hlines(rows, 0, changes, color=_RETRAINED, lw=1.2)
    ax.plot(changes, rows, "o", color=_RETRAINED, ms=5, gid="values")
    names = [estimate.units.name_of(int(unit), str).replace("$", r"\$") for unit in table["index"]]
    ax.set_yticks(rows, [textwrap.shorten(name, 40, placeholder=" …") for name in names])
    ax.set(ylim=(len(table) - 0.4, -0.6), xlabel=f"change of the mean loss [{unit}]")
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    headed(figure, f"How much {words.doing} changes {words.its}", _settings(estimate))
    explained(figure, [_mean(estimate, "The mean of their sizes"), _retrained(estimate)])
    return figure


def _mean(estimate: StabilityEstimate, what: str = "Their mean") -> str:
    """The stability, with its interval where it is not exact."""
    low, high = estimate.interval
    value = f"{what} is the stability: {estimate.value:.3g} {estimate.subject.loss_unit}"
    if low == high:
        return f"{value}, exactly."
    ends = f"{low:.2g} to {high:.2g}" if np.isfinite([low, high]).all() else "unknown"
    return f"{value} ({share(estimate.pointwise.confidence)} interval {ends})."


def _retrained(estimate: StabilityEstimate) -> str:
    """What was trained again; of predictions alone nothing."""
    a, u = estimate.retrainings, estimate.units.count
    return f"Retrained {estimate.units.words.each_of(f'{a}' if a == u else f'{a} of {u}')}." if a else ""


def _line(both: Any) -> str:
    return "Right: on the line, retraining gives what was predicted." if both.any() else ""


def _floor(predicted: Numbers, retrained: Numbers, noise: float) -> float:
    """Where the axes are cut: below it a difference is rounding, or less than a millionth of the largest."""
    known = np.concatenate([predicted[np.isfinite(predicted)], retrained[np.isfinite(retrained)]])
    if not len(known) or not known.max() > 0:
        raise NothingToDrawError("no loss changed: there is nothing to draw")
    return float(max(known[known > 0].min(), 1e-6 * known.max(), min(noise, known.max()) / 10 if np.isfinite(noise) else 0.0))


def _against(ax: Axes, predicted: Numbers, retrained: Numbers, unit: str) -> None:
    known = np.concatenate([predicted, retrained])
    low, high = known.min() / 1.5, known.max() * 1.5
    ax.plot([low, high], [low, high], color="0.6", lw=0.8)
    ax.plot(predicted, retrained, "o", mfc="none", color=_RETRAINED, ms=5)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set(xlabel=f"predicted |Δℓᵢ| [{unit}]", ylabel=f"retrained |Δℓᵢ| [{unit}]")


@styled
def influential(estimate: StabilityEstimate, count: int = 8) -> Figure:
    """The examples that carry most of the stability, as images or texts, with their class, their share of Σ|Δℓ|, and in words how
    their loss changes when they are left out, or what else is done to them.

    Args:
        estimate: a measured stability.
        count: how many examples are drawn.

    Raises:
        UsageError: ``count`` is no whole number of at least 1.
        NothingToDrawError: groups or parts were left out, or the problem does not know what its examples look like.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> tuning = FineTuning(selectors.Random(sparsity=0.05), steps=2)
        >>> len(influential(measure(load("digits", n=10), tuning, estimator=estimators.Exact()), count=4).axes)
        4
    """
    check_whole(1, count=count)
    subject = estimate.subject
    if estimate.units.names is not None:
        raise NothingToDrawError(
            f"it shows single examples, and here {estimate.units.words.plural} were {estimate.units.words.passive}"
        )
    if subject.shown is None or len(subject.shown) != estimate.n:
        what = f"problem {subject.data!r}" if subject.data else f"loop {subject.method!r}"
        raise NothingToDrawError(f"{what} does not say what its examples look like: set its shown")
    rows = estimate.examples().head(count).to_dict("records")
    figure = (_images if isinstance(subject.shown, torch.Tensor) else _texts)(estimate, rows)
    headed(figure, f"The {len(rows)} examples that carry most of the stability", _settings(estimate))
    explained(figure, ["In per cent: the example's part of the sum of all changes."])
    return figure


def _changed(estimate: StabilityEstimate, row: dict[Any, Any]) -> str:
    """How the loss of an example changes, in words."""
    retrained = bool(np.isfinite(row["retrained"]))
    value = row["retrained"] if retrained else row["predicted"]
    verb = ("rises" if value >= 0 else "falls") if retrained else f"is predicted to {'rise' if value >= 0 else 'fall'}"
    size = f"{abs(value):#.2g}".rstrip(".")
    return f"its loss {verb} by {size} {estimate.subject.loss_unit} when it is {estimate.units.words.passive}"


def _class(estimate: StabilityEstimate, row: dict[Any, Any]) -> str:
    i = int(row["index"])
    name = estimate.subject.label(i)
    if estimate.loop is not None:
        return f"label {name}" if name else f"example {i}"
    return f"class {name}" if estimate.replicas.problem.classes is not None else name


def _images(estimate: StabilityEstimate, rows: list[dict[Any, Any]]) -> Figure:
    subject, columns = estimate.subject, min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = new_figure(lines, columns, (max(1.8 * columns, 3.6), 0.9 + 2.15 * lines))
    for ax in axes[len(rows) :]:
        ax.remove()
    for ax, row in zip(axes, rows, strict=False):
        ax.axis("off")
        ax.imshow(subject.shown[int(row["index"])].cpu().numpy(), cmap="gray_r")  # type: ignore[index, union-attr]
        words = textwrap.fill(_changed(estimate, row), 24)
        ax.set_title(f"{_class(estimate, row)}, {row['share']:.0%}\n{words}", fontsize=7.5, loc="left")
    return figure


def _texts(estimate: StabilityEstimate, rows: list[dict[Any, Any]]) -> Figure:
    subject = estimate.subject
    texts = [textwrap.fill(_cut(str(subject.shown[int(row["index"])])), 112) for row in rows]  # type: ignore[index]
    heights = [text.count("\n") + 2.6 for text in texts]
    figure, (ax,) = new_figure(1, 1, (7.2, 0.155 * sum(heights) + 0.75))
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=(sum(heights), 0))
    top = 0.0
    for row, text, height in zip(rows, texts, heights, strict=True):
        title = f"{_class(estimate, row)}, {row['share']:.0%}: {_changed(estimate, row)}"
        ax.text(0, top, title.replace("$", r"\$"), weight="bold", va="top", fontsize=8)
        ax.text(0.01, top + 1.1, text.replace("$", r"\$"), va="top", fontsize=8)
        top += height
    return figure


def _cut(text: str, most: int = 420) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
