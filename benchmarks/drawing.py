"""Figures from the recorded results of :mod:`benchmarks.replicas`, :mod:`benchmarks.scaling` and :mod:`benchmarks.memory`.

    python -m benchmarks.drawing [--device cpu]

Writes figures/benchmark_replicas, benchmark_scaling and benchmark_memory, as PNG and PDF; those of which there are results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks.language import RESULTS
from stability import plotting
from stability.plotting.style import new_figure, styled

PROGRAMS = {
    "engine": ("this engine", "#009E73"),
    "process_parallel": ("plain loop, a process a core", "#0072B2"),
    "plain_loop": ("plain loop", "#56B4E9"),
    "dattri": ("dattri retrain_loo", "#E69F00"),
    "trainer": ("transformers Trainer", "#D55E00"),
}
AXES = {
    "replicas": "replicas at once, r",
    "width": "width of the model",
    "sparsity": "p, fraction that may change",
    "tokens": "tokens a text",
}


@styled
def replicas(results: dict[str, Any]) -> Figure:
    """Replicas a minute of each program, a panel a problem."""
    figure, axes = new_figure(1, len(results), (3.4 * len(results), 2.6))
    for ax, (problem, found) in zip(axes, results.items(), strict=True):
        rates = found["replicas_per_minute"]
        names = [name for name in reversed(PROGRAMS) if name in rates]
        bars = ax.barh([PROGRAMS[n][0] for n in names], [rates[n] for n in names], color=[PROGRAMS[n][1] for n in names])
        ours = {name: f", engine {ratio:.1f} ×" for name, ratio in found["ratios"].items()}
        labels = [f"{rates[n]:.{0 if rates[n] >= 10 else 1}f}{ours.get(n, '')}" for n in names]
        ax.bar_label(bars, labels, padding=3, fontsize=7)
        ax.set_xlim(0, 1.45 * max(rates.values()))
        ax.set_xlabel("replicas a minute")
        steps, share = found["settings"]["steps"], found["share_of_limit"]
        ax.set_title(f"{problem}, {steps} steps\nengine at {share:.0%} of the matrix-product rate")
        if ax is not axes[0]:
            ax.set_yticklabels([])
    return figure


@styled
def scaling(results: dict[str, Any]) -> Figure:
    """Time a replica-step and memory along each axis."""
    figure, axes = new_figure(2, len(AXES), (2.7 * len(AXES), 4.4))
    rate = results["matrix_product_rate"]
    for place, (axis, label) in enumerate(AXES.items()):
        rows = results["rows"][axis]
        x = [row[axis] for row in rows]
        above, below = axes[place], axes[len(AXES) + place]
        above.plot(x, [1e3 * row["seconds_a_replica_step"] for row in rows], "o-", color="#009E73", label="measured")
        least = [1e3 * row["operations_a_replica_step"] / rate for row in rows]
        above.plot(x, least, "--", color="#7F7F7F", label="operations / matrix-product rate")
        below.plot(x, [row["memory_gib"] for row in rows], "s-", color="#0072B2")
        below.set_xlabel(label)
        for ax in (above, below):
            ax.set_xscale("log")
            ax.set_xticks(x, [f"{tick:g}" for tick in x], fontsize=7)
            ax.xaxis.set_minor_locator(NullLocator())
        if axis in ("width", "tokens"):
            above.set_yscale("log")
            above.yaxis.set_major_formatter(ScalarFormatter())
        else:
            above.set_ylim(bottom=0)
        below.set_ylim(bottom=0)
    axes[0].set_ylabel("ms a step of one replica")
    axes[len(AXES)].set_ylabel("peak memory above\na single step, GiB")
    axes[0].legend(loc="center", fontsize=7)
    return figure


@styled
def memory(results: dict[str, Any]) -> Figure:
    """Peak memory against steps and n, before and after a change; the line is the budget."""
    axes_of = {"steps": "steps", "n": "training examples, n"}
    figure, axes = new_figure(1, len(axes_of), (3.4 * len(axes_of), 2.6))
    for ax, (axis, label) in zip(axes, axes_of.items(), strict=True):
        for name, (marker, style) in {"before": ("s", "--"), "after": ("o", "-")}.items():
            for estimator, color in {"sampled": "#0072B2", "assisted": "#D55E00"}.items():
                rows = [row for row in results[name]["rows"][axis] if row["estimator"] == estimator]
                x, y = [row[axis] for row in rows], [row["peak_mib"] for row in rows]
                ax.plot(x, y, marker=marker, linestyle=style, color=color, label=f"{estimator}, {name}")
        ax.axhline(results["after"]["budget_mib"], color="#7F7F7F", linestyle=":", label="stated budget")
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{tick:g}" for tick in x], fontsize=7)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(bottom=0)
        ax.set_xlabel(label)
    axes[0].set_ylabel("peak memory above\nthe start, MiB")
    axes[1].legend(fontsize=7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="as in the names of the files of results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "figures")
    options = parser.parse_args()
    for name, draw in (("replicas", replicas), ("scaling", scaling), ("memory", memory)):
        path = RESULTS / f"{name}-{options.device}.json"
        if not path.exists():
            continue
        note = f"from {path.name}"
        [first, *_] = plotting.save({name: draw(json.loads(path.read_text()))}, options.out, "benchmark", note)
        print(first)


if __name__ == "__main__":
    main()
