"""The tidy table of a study → figures. Nothing here trains or reads results from disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from scipy import stats

from stability.errors import StabilityError, UsageError
from stability.study import summarise

__all__ = ["FIGURES", "bounds", "four_panels", "gap_against_stability", "generalization", "save_all", "stability"]

# Okabe & Ito's colours, safe for colour-blind readers; marker and dash tell the methods apart in grey.
_STYLES = {
    "full": ("#000000", "*", "-"),
    "bitfit": ("#CC79A7", "D", "-"),
    "random": ("#0072B2", "o", "-"),
    "magnitude": ("#E69F00", "s", (0, (5, 1.5))),
    "sam": ("#009E73", "^", (0, (1, 1))),
    "fisher": ("#D55E00", "v", (0, (3, 1, 1, 1))),
    "regularised": ("#56B4E9", "h", "-."),
}
_SPARE = [("#D55E00", "v", "-."), ("#56B4E9", "P", (0, (3, 1, 1, 1))), ("#7F7F7F", "X", (0, (7, 2)))]
_LABELS = {
    "full": "full tuning",
    "bitfit": "BitFit",
    "random": "random",
    "magnitude": "magnitude",
    "sam": "SAM",
    "fisher": "Fisher",
    "regularised": "all, ridge 1 − p",
}
_P_LABEL = "p, fraction of pretrained parameters that may change"
_RC: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 5,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
}


def _styled(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    """Draw with the toolkit's style and leave the caller's alone."""

    @wraps(draw)
    def drawn(frame: pd.DataFrame) -> Figure:
        with plt.rc_context(_RC):
            figure = draw(frame)
            interactive = mpl.is_interactive()
        # A notebook's backend turns interactive drawing on with the first figure. The context undoes that with the
        # rest, and no later figure would be shown.
        mpl.interactive(interactive)
        return figure

    return drawn


@_styled
def stability(frame: pd.DataFrame) -> Figure:
    """(a) Measured leave-one-out stability against p with 95 % intervals over seeds, and Theorem 1's bound.

    Both axes are logarithmic. The bound has one mark a seed, filled only where it is less than the largest loss and no
    checked assumption failed; an infinite bound is an arrow at the top edge. Swept methods stand a little apart along p,
    so that none hides another.
    """
    summary = summarise(frame)
    figure, axes = _figure(1, 1, (6.4, 5.0))
    ax = axes[0]
    lows = summary["stability_low"].where(np.isfinite(summary["stability_low"]) & (summary["stability_low"] > 0))
    floor = 10 ** math.floor(math.log10(pd.concat([lows, summary["stability"]]).min() * 0.5))
    swept = [method for method, group in summary.groupby("method", sort=False) if len(group) > 1]
    shift = dict.fromkeys(summary["method"], 1.0) | {method: 1.05 ** (i - (len(swept) - 1) / 2) for i, method in enumerate(swept)}
    for method, group in summary.groupby("method", sort=False):
        colour, marker, dash = _style(str(method))
        p = group["sparsity"] * shift[method]
        y = group["stability"].to_numpy()
        low = np.maximum(np.nan_to_num(group["stability_low"].to_numpy(), neginf=0), floor)
        high = np.where(np.isfinite(group["stability_high"]), group["stability_high"], y)
        ax.errorbar(p, y, [y - low, high - y], color=colour, marker=marker, ls=dash, capsize=2, elinewidth=0.9)
    ok = frame[frame["status"] == "ok"]
    bound = pd.to_numeric(ok["theorem_1"])
    top = 10 ** math.ceil(math.log10(max(bound.max(), summary["stability"].max()) * 3)) if bound.notna().any() else 1e3
    for method, group in ok.groupby("method", sort=False):
        colour, marker, _ = _style(str(method))
        mine = bound[group.index]
        holds = group["theorem_1_state"] == "not refuted"
        for chosen, fill in ((holds, colour), (~holds, "none")):
            ax.plot(
                group["sparsity"][chosen] * shift[method],
                mine[chosen],
                marker,
                ms=4,
                mfc=fill,
                mec=colour,
                mew=0.8,
                ls="",
                alpha=0.9,
            )
        infinite = group["sparsity"][group["theorem_1_state"] == "infinite"].unique()
        ax.plot(infinite * shift[method], np.full(len(infinite), top * 0.75), marker="$\\uparrow$", ms=8, color=colour, ls="")
    ax.set(xscale="log", yscale="log", xlabel=_P_LABEL, ylabel=f"loss difference [{_unit(frame)}]", ylim=(floor, top))
    _percent(ax)
    extra = [
        Line2D(
            [],
            [],
            color="0.3",
            marker="o",
            ls="-",
            label=f"measured $E_i|\\Delta\\ell_i|$, mean of {int(summary['seeds'].max())} seeds, 95 %",
        ),
        Line2D(
            [], [], color="0.3", marker="o", mfc="none", ms=4, ls="", label="Theorem 1's bound, vacuous or an assumption failed"
        ),
        Line2D([], [], color="0.3", marker="$\\uparrow$", ms=8, ls="", label="Theorem 1's bound infinite"),
    ]
    if (ok["theorem_1_state"] == "not refuted").any():
        extra.insert(1, Line2D([], [], color="0.3", marker="o", ms=4, ls="", label="Theorem 1's bound, not refuted"))
    _legend(figure, summary, extra)
    return figure


@_styled
def generalization(frame: pd.DataFrame) -> Figure:
    """(b) Train and test loss, metric, and generalization gap against p: mean and ± one standard deviation over seeds."""
    summary = summarise(frame)
    metric = str(frame["metric"].dropna().iloc[0])
    figure, axes = _figure(1, 3, (9.6, 3.5))
    for ax, name, label in ((axes[0], "loss", f"loss [{_unit(frame)}]"), (axes[1], "metric", metric)):
        for split, filled in (("test", True), ("train", False)):
            _lines(ax, summary, f"{split}_{name}", filled=filled)
        ax.set(xlabel="p", ylabel=label, title=f"{label.split(' ')[0]}: test (filled), train (hollow)")
    _lines(axes[2], summary, "gap")
    axes[2].axhline(0, color="0.7", lw=0.8, zorder=0)
    axes[2].set(xlabel="p", ylabel=f"test loss − train loss [{_unit(frame)}]", title="generalization gap")
    for ax in axes:
        ax.set_xscale("log")
        _percent(ax)
    _legend(figure, summary)
    return figure


@_styled
def four_panels(frame: pd.DataFrame) -> Figure:
    """(c) The paper's panels, for every method: mean and standard deviation over seeds of the test and train metric."""
    summary = summarise(frame)
    metric = str(frame["metric"].dropna().iloc[0])
    figure, axes = _figure(2, 2, (7.2, 5.4))
    panels = (
        ("test_metric", "test mean"),
        ("test_metric_std", "test std"),
        ("train_metric", "train mean"),
        ("train_metric_std", "train std"),
    )
    for ax, (column, title) in zip(axes, panels, strict=True):
        _lines(ax, summary, column, spread=False)
        ax.set(xscale="log", xlabel="p", ylabel=metric, title=title)
        _percent(ax)
    _legend(figure, summary)
    return figure


@_styled
def gap_against_stability(frame: pd.DataFrame) -> Figure:
    """(d) Generalization gap against measured stability, a point for each method and p, both with 95 % intervals."""
    summary = summarise(frame)
    figure, axes = _figure(1, 1, (5.6, 4.2))
    ax = axes[0]
    for method, group in summary.groupby("method", sort=False):
        colour, marker, _ = _style(str(method))
        sizes = 22 + 60 * (np.log10(group["sparsity"]) + 3).clip(lower=0) / 3
        ax.scatter(group["stability"], group["gap"], s=sizes, color=colour, marker=marker, alpha=0.85, lw=0, zorder=3)
        for _, point in group.iterrows():
            across, up = ([point[f"{name}_low"], point[f"{name}_high"]] for name in ("stability", "gap"))
            if np.isfinite([across, up]).all():
                ax.plot(np.maximum(across, 0), [point["gap"]] * 2, color=colour, lw=0.6, alpha=0.45)
                ax.plot([point["stability"]] * 2, up, color=colour, lw=0.6, alpha=0.45)
    if len(summary) > 2:
        rho, p_value = stats.spearmanr(summary["stability"], summary["gap"])
        caution = f"p-value {p_value:.2g} as if independent; they share seeds"
        ax.set_title(f"{len(summary)} points, larger for larger p; Spearman ρ = {rho:.2f}\n({caution})", fontsize=8)
    ax.set(xlabel=f"measured stability $E_i|\\Delta\\ell_i|$ [{_unit(frame)}]", ylabel=f"test loss − train loss [{_unit(frame)}]")
    _legend(figure, summary)
    return figure


@_styled
def bounds(frame: pd.DataFrame) -> Figure:
    """(e) Bounds, the middle step and the measured stability against p; below, each divided by the measured.

    A column for each method with several p. A bound is solid with filled marks where it is below the largest loss and no
    checked assumption failed. Otherwise it is dashed, its mark a cross (an assumption failed) or hollow (vacuous);
    where it is infinite an arrow stands at the top edge, where it is unknown (no convergence) nothing. The band is the
    95 % interval over seeds, cut at a tenth of the mean; with a single seed there is none.

    Raises:
        StabilityError: no method with several p.
    """
    summary = summarise(frame)
    swept = [(str(method), group) for method, group in summary.groupby("method", sort=False) if len(group) > 1]
    if not swept:
        raise StabilityError("no method was measured at more than one p: there is no curve to draw")
    figure, axes = _figure(2, len(swept), (1.2 + 2.9 * len(swept), 5.6))
    plt.setp(axes, yscale="log")
    drawn: set[str] = set()
    for column, (method, group) in enumerate(swept):
        top, low = axes[column], axes[column + len(swept)]
        same = np.allclose(group["hard_mask"], group["theorem_1"], equal_nan=True)  # every coordinate is tuned
        shown = [name for name in _BOUNDS if not (same and name.startswith("hard_mask"))]
        shown = [name for name in shown if same or name != "theorem_1_sharp"]
        p = group["sparsity"].to_numpy()
        measured = group["stability"].to_numpy()
        low_end = np.maximum(group["stability_low"].to_numpy(), measured / 10)
        top.fill_between(p, low_end, group["stability_high"].to_numpy(), color="0.85", lw=0)
        top.plot(p, measured, color="black", marker="o")
        top.plot(p, group["loss_bound"], color="0.6", ls=":", lw=1)
        low.axhline(1, color="black", lw=1)
        drawn.update(name for name in shown if not group[f"{name}_state"].eq("unknown").all())
        for name in shown:
            values = group[name].to_numpy(dtype=float)
            for ax, y in ((top, values), (low, values / measured)):
                _bound_line(ax, p, y, list(group[f"{name}_state"]), _BOUNDS[name][1])
        for ax in (top, low):
            ax.set(xscale="logit" if method == "regularised" else "log", xlabel="p")
            ax.set_xticks(_apart(p, np.log(p / (1 - p)) if method == "regularised" else np.log(p)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:{'.3g' if p > 0.95 else '.2g'}} %"))
        top.set_title("all coordinates, ridge 1 − p" if method == "regularised" else f"hard mask: {_LABELS.get(method, method)}")
    for row, label in ((0, f"loss difference [{_unit(frame)}]"), (1, "divided by the measured")):
        mine = axes[row * len(swept) : (row + 1) * len(swept)]
        limits = [ax.get_ylim() for ax in mine]
        bottom, ceiling = min(low for low, _ in limits), max(high for _, high in limits)
        if any(line.get_gid() == "infinite" for ax in mine for line in ax.lines):
            ceiling *= (ceiling / bottom) ** 0.2  # room for the arrows
        for ax, above in zip(mine, axes[: len(swept)], strict=True):
            ax.set(xlim=above.get_xlim(), ylim=(bottom, ceiling))
            arrows = [line for line in ax.lines if line.get_gid() == "infinite"]
            for place, line in enumerate(arrows):  # they wait for the limits, and stand one below the other
                height = (ceiling / bottom) ** (0.97 - 0.06 * place)
                line.set_ydata(np.full(np.size(line.get_xdata()), bottom * height))
        mine[0].set_ylabel(label)
    handles = [
        Line2D([], [], color="black", marker="o", label=f"measured, mean of {int(summary['seeds'].max())} seeds, 95 %"),
        *(Line2D([], [], color=_BOUNDS[name][1], marker="o", ms=4, label=_BOUNDS[name][0]) for name in _BOUNDS if name in drawn),
        Line2D([], [], color="0.6", ls=":", label="largest loss: at or above it a bound is vacuous"),
        Line2D([], [], color="0.3", ls="--", marker="o", mfc="none", ms=4, label="vacuous (in some seed)"),
        Line2D([], [], color="0.3", ls="--", marker="x", ms=5, label="an assumption failed (in some seed)"),
    ]
    if any((summary[f"{name}_state"] == "infinite").any() for name in _BOUNDS):
        handles.append(Line2D([], [], color="0.3", ls="", marker="$\\uparrow$", ms=8, label="infinite"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


_BOUNDS = {
    "first_order": ("middle step, first order", "#0072B2"),
    "hard_mask_sharp": ("hard-mask bound on the mean", "#E69F00"),
    "hard_mask": ("hard-mask bound", "#D55E00"),
    "theorem_1_sharp": ("Theorem 1, best constant for the mean", "#56B4E9"),
    "theorem_1": ("Theorem 1", "#CC79A7"),
}
"""What the figure of bounds draws: label and colour."""


def _apart(p: np.ndarray, places: np.ndarray) -> list[float]:
    """Those of ``p`` whose ticks do not touch: a sixth of the axis apart, the last one always."""
    kept = [len(p) - 1]
    for i in range(len(p) - 2, -1, -1):
        if places[kept[-1]] - places[i] >= np.ptp(places) / 6:
            kept.append(i)
    return [float(p[i]) for i in kept]


def _bound_line(ax: Axes, p: np.ndarray, values: np.ndarray, states: list[str], colour: str) -> None:
    """Segment by segment: solid only between two points that are neither vacuous nor refuted."""
    for i in range(len(p) - 1):
        if np.isfinite(values[i : i + 2]).all():
            solid = {states[i], states[i + 1]} <= {"not refuted", "estimate"}
            ax.plot(p[i : i + 2], values[i : i + 2], color=colour, ls="-" if solid else (0, (3, 2)), lw=1.3 if solid else 0.9)
    marks = {"not refuted": ("o", colour), "estimate": ("o", colour), "vacuous": ("o", "white"), "assumption failed": ("x", colour)}
    for state, (marker, fill) in marks.items():
        at = np.array([mine == state for mine in states]) & np.isfinite(values)
        ax.plot(p[at], values[at], color=colour, marker=marker, mfc=fill, ms=4, ls="")
    infinite = np.array([state == "infinite" for state in states])
    if infinite.any():
        ax.plot(p[infinite], np.full(infinite.sum(), np.nan), color=colour, marker="$\\uparrow$", ms=8, ls="", gid="infinite")


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "stability": stability,
    "generalization": generalization,
    "four_panels": four_panels,
    "gap_against_stability": gap_against_stability,
    "bounds": bounds,
}
"""Every figure by the name of its file."""


def save_all(frame: pd.DataFrame, folder: str | PathLike[str], only: str | None = None) -> list[Path]:
    """Draw every figure, or only the one of that name, into ``folder`` as PNG and PDF.

    The study's identity goes into the files' metadata.

    Raises:
        UsageError: there is no figure called ``only``.
        StabilityError: the folder cannot be written.
    """
    study, identity = frame.attrs.get("study", "study"), frame.attrs.get("identity", "unknown")
    note = f"study {study}, identity {identity}"
    written = []
    if only is not None and only not in FIGURES:
        raise UsageError(f"unknown figure {only!r}: there is {', '.join(FIGURES)}")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            if only not in (None, name):
                continue
            figure = draw(frame)
            for suffix, stamp in (("png", {"Description": note}), ("pdf", {"Subject": note, "CreationDate": None})):
                path = Path(folder) / f"{study}_{name}.{suffix}"
                figure.savefig(path, dpi=200, metadata=stamp)
                written.append(path)
            plt.close(figure)
    except OSError as error:
        raise StabilityError(f"cannot write figures into {folder}: {error}; check the path and the free disk space") from error
    return written


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def _style(method: str) -> tuple[Any, Any, Any]:
    # A method that is not the paper's gets a spare style by its name, the same in every figure.
    return _STYLES.get(method) or _SPARE[sum(map(ord, method)) % len(_SPARE)]


def _lines(ax: Axes, summary: pd.DataFrame, column: str, *, filled: bool = True, spread: bool = True) -> None:
    for method, group in summary.groupby("method", sort=False):
        colour, marker, dash = _style(str(method))
        error = group[f"{column}_std"].fillna(0) if spread else None
        ax.errorbar(
            group["sparsity"], group[column], error, color=colour, marker=marker, ls=dash,
            mfc=colour if filled else "white", capsize=2, elinewidth=0.8, lw=1.4 if filled else 0.9,
        )  # fmt: skip


def _unit(frame: pd.DataFrame) -> str:
    return str(frame["loss_unit"].dropna().iloc[0])


def _percent(ax: Axes) -> None:
    ax.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:g} %"))


def _legend(figure: Figure, summary: pd.DataFrame, extra: list[Line2D] | None = None) -> None:
    """Below the axes, so that it can never cover data."""
    handles = []
    for method in summary["method"].unique():
        colour, marker, dash = _style(str(method))
        handles.append(Line2D([], [], color=colour, marker=marker, ls=dash, label=_LABELS.get(method, method)))
    figure.legend(handles=handles + (extra or []), loc="outside lower center", ncols=5 if not extra else 2)
