"""Figures of one estimate, example by example: which carry the stability, and how well they were predicted."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.checks import check_whole
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.statistics import Numbers
from stability.plotting.style import NothingToDrawError, new_figure, styled

__all__ = ["differences", "influential"]

_PREDICTED, _RETRAINED = "#56B4E9", "#D55E00"


@styled
def differences(estimate: StabilityEstimate) -> Figure:
    """How large the differences of single examples are, and how well they were predicted.

    Left: |Δℓ_i| of every example, sorted by its prediction: as it was predicted and, where the example was left out, as it was
    retrained; the noise floor. Right: retrained against predicted, with the line of equality. Without a prediction there is the
    left panel alone, sorted by what was retrained.

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
    table = estimate.examples()
    predicted = table["predicted"].abs().to_numpy(dtype=float)
    retrained = table["retrained"].abs().to_numpy(dtype=float)
    has_prediction = bool(np.isfinite(predicted).any())
    figure, axes = new_figure(1, 2, (7.2, 3.2)) if has_prediction else new_figure(1, 1, (4.4, 3.2))
    order = np.argsort(-np.nan_to_num(predicted if has_prediction else retrained, nan=-1.0), kind="stable")
    unit = estimate.replicas.problem.loss_unit
    floor = _floor(predicted, retrained, estimate.noise_floor)
    rank, ax = np.arange(1, len(table) + 1), axes[0]
    if has_prediction:
        ax.plot(rank, np.maximum(predicted[order], floor), ".", color=_PREDICTED, ms=4, label="predicted, all")
    ax.plot(rank, np.maximum(retrained[order], floor), "o", mfc="none", color=_RETRAINED, ms=5, label="retrained")
    if floor < estimate.noise_floor:
        ax.axhline(estimate.noise_floor, color="0.5", lw=0.8, ls=":", label="noise floor")
    ax.set(yscale="log", xlabel="examples, largest first", ylabel=f"$|\\Delta\\ell_i|$ [{unit}]")
    ax.legend(loc="best")
    if has_prediction:
        _against(axes[1], np.maximum(predicted, floor), np.maximum(retrained, floor), unit)
    return figure


def _floor(predicted: Numbers, retrained: Numbers, noise: float) -> float:
    """Where the axes are cut: below it a difference is rounding, or less than a millionth of the largest."""
    known = np.concatenate([predicted[np.isfinite(predicted)], retrained[np.isfinite(retrained)]])
    if not len(known) or not known.max() > 0:
        raise NothingToDrawError("no example's loss changed when it was left out: there is nothing to draw")
    return float(max(known[known > 0].min(), 1e-6 * known.max(), min(noise, known.max()) / 10 if np.isfinite(noise) else 0.0))


def _against(ax: Axes, predicted: Numbers, retrained: Numbers, unit: str) -> None:
    both = np.isfinite(predicted) & np.isfinite(retrained)
    if both.any():
        known = np.concatenate([predicted[both], retrained[both]])
        ax.plot([known.min(), known.max()], [known.min(), known.max()], color="0.6", lw=0.8)
        ax.plot(predicted[both], retrained[both], "o", mfc="none", color=_RETRAINED, ms=5)
    else:
        ax.text(0.5, 0.5, "none was retrained", ha="center", transform=ax.transAxes)
    size = f"$|\\Delta\\ell_i|$ [{unit}]"
    ax.set(xscale="log", yscale="log", xlabel=f"predicted {size}", ylabel=f"retrained {size}")


@styled
def influential(estimate: StabilityEstimate, count: int = 8) -> Figure:
    """The examples that carry most of the stability, as images or texts, with their share of Σ|Δℓ|, their label and what leaving
    them out does to their loss.

    Args:
        estimate: a measured stability.
        count: how many examples are drawn.

    Raises:
        UsageError: ``count`` is no whole number of at least 1.
        NothingToDrawError: the problem does not know what its examples look like.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> tuning = FineTuning(selectors.Random(sparsity=0.05), steps=2)
        >>> len(influential(measure(load("digits", n=10), tuning, estimator=estimators.Exact()), count=4).axes)
        4
    """
    check_whole(1, count=count)
    problem = estimate.replicas.problem
    if problem.shown is None or len(problem.shown) != problem.n:
        raise NothingToDrawError(f"problem {problem.name!r} does not say what its examples look like: set its shown")
    rows = estimate.examples().head(count).to_dict("records")
    titles = []
    for row in rows:
        known = row["retrained"] if np.isfinite(row["retrained"]) else row["predicted"]
        how = "" if np.isfinite(row["retrained"]) else ", predicted"
        titles.append(f"{problem.label(int(row['index']))}: $\\Delta\\ell$ {known:+.2f}{how}, {row['share']:.0%}")
    if isinstance(problem.shown, torch.Tensor):
        columns = min(4, len(rows))
        figure, axes = new_figure(-(-len(rows) // columns), columns, (1.8 * columns, 2.1 * -(-len(rows) // columns)))
        for ax in axes:
            ax.axis("off")
        for ax, row, title in zip(axes, rows, titles, strict=False):
            ax.imshow(problem.shown[int(row["index"])].cpu().numpy(), cmap="gray_r")
            ax.set_title(title.replace(", ", "\n", 1), fontsize=8)
        return figure
    texts = [textwrap.fill(_cut(str(problem.shown[int(row["index"])])), 110) for row in rows]
    heights = [text.count("\n") + 2.2 for text in texts]
    figure, (ax,) = new_figure(1, 1, (7.2, 0.17 * sum(heights) + 0.2))
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=(sum(heights), 0))
    top = 0.0
    for text, title, height in zip(texts, titles, heights, strict=True):
        ax.text(0, top, title, weight="bold", va="top", fontsize=8)
        ax.text(0.01, top + 1, text.replace("$", r"\$"), va="top", fontsize=8)
        top += height
    return figure


def _cut(text: str, most: int = 420) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
