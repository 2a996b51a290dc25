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
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from benchmarks.language import RESULTS
from stability import plotting
from stability.plotting.style import beside, explained, headed, new_figure, p_axis, styled

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
    "sparsity": "p [%]",
    "tokens": "tokens a text",
}


@styled
def replicas(results: dict[str, Any]) -> Figure:
    """Replicas a minute of each program, a panel a problem."""
    figure, axes = new_figure(1, len(results), (0.9 + 2.1 * len(results), 2.5))
    for ax, (problem, found) in zip(axes, results.items(), strict=True):
        rates = found["replicas_per_minute"]
        names = [name for name in reversed(PROGRAMS) if name in rates]
        bars = ax.barh([PROGRAMS[n][0] for n in names], [rates[n] for n in names], color=[PROGRAMS[n][1] for n in names])
        ours = {name: f" (engine {ratio:.1f} ×)" for name, ratio in found["ratios"].items()}
        labels = [f"{rates[n]:.{0 if rates[n] >= 10 else 1}f}{ours.get(n, '')}" for n in names]
        ax.bar_label(bars, labels, padding=3, fontsize=7)
        ax.set_xlim(0, 1.75 * max(rates.values()))
        ax.set_xlabel("replicas a minute")
        ax.grid(visible=False, axis="y")
        settings = found["settings"]
        p = f"p = {100 * settings['k'] / settings['m']:.2g} %"
        ax.set_title(f"{problem}, n = {settings['n']}\n{settings['steps']} steps, {p}", loc="left")
        if ax is not axes[0]:
            ax.set_yticklabels([])
    shares = ", ".join(f"{found['share_of_limit']:.0%} ({problem})" for problem, found in results.items())
    headed(
        figure, "Replicas that each program trains in a minute", f"SAM's mask, seed 0 · {_machine(next(iter(results.values())))}"
    )
    told = f"In brackets: how many times faster the engine is. It reaches {shares} of the rate of a matrix product."
    explained(figure, [told])
    return figure


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    count = found.get("threads", machine["threads"])
    return f"{machine['machine']}, {machine['cores']} cores, {count} thread{'' if count == 1 else 's'}"


@styled
def scaling(results: dict[str, Any]) -> Figure:
    """Time a replica-step and memory along each axis."""
    figure, axes = new_figure(2, len(AXES), (7.2, 3.9))
    rate = results["matrix_product_rate"]
    for place, (axis, label) in enumerate(AXES.items()):
        rows = results["rows"][axis]
        x = [row[axis] for row in rows]
        above, below = axes[place], axes[len(AXES) + place]
        above.plot(x, [1e3 * row["seconds_a_replica_step"] for row in rows], "o-", color="#009E73")
        least = [1e3 * row["operations_a_replica_step"] / rate for row in rows]
        above.plot(x, least, "--", color="#7F7F7F")
        below.plot(x, [row["memory_gib"] for row in rows], "s-", color="#0072B2")
        below.set_xlabel(label)
        for ax in (above, below):
            if axis == "sparsity":
                p_axis(ax, x)
                continue
            ax.set_xscale("log")
            ax.set_xticks(x, [f"{tick:g}" for tick in x], fontsize=6)
            ax.xaxis.set_minor_locator(NullLocator())
        if axis in ("width", "tokens"):
            above.set_yscale("log")
            above.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            above.yaxis.set_major_formatter(ScalarFormatter())
            above.yaxis.set_minor_formatter(NullFormatter())
        else:
            above.set_ylim(0, 1.1 * max(row["seconds_a_replica_step"] for row in rows) * 1e3)
        below.set_ylim(0, 1.1 * max(row["memory_gib"] for row in rows))
    axes[0].set_ylabel("ms a replica-step")
    axes[len(AXES)].set_ylabel("peak memory above\na single step, GiB")
    headed(figure, "Time and memory of a replica-step", f"random BERT, method random · {_machine(results)}")
    fixed = "Where an axis does not vary: 8 replicas, width 256, p = 0.01, 64 tokens."
    explained(figure, [fixed, "Circles and squares: measured once each. Dashed: its operations at the rate of a matrix product."])
    return figure


@styled
def memory(results: dict[str, Any]) -> Figure:
    """Peak memory against steps and n, before and after a change; the line is the budget."""
    axes_of = {"steps": "steps", "n": "training examples, n"}
    figure, axes = new_figure(1, len(axes_of), (7.2, 2.9))
    budget = results["after"]["budget_mib"]
    for ax, (axis, label) in zip(axes, axes_of.items(), strict=True):
        ends = []
        for name, (marker, style) in {"before": ("s", "--"), "after": ("o", "-")}.items():
            for estimator, color in {"sampled": "#0072B2", "assisted": "#D55E00"}.items():
                rows = [row for row in results[name]["rows"][axis] if row["estimator"] == estimator]
                x, y = [row[axis] for row in rows], [row["peak_mib"] for row in rows]
                ax.plot(x, y, marker=marker, linestyle=style, color=color)
                ends.append((x[-1], y[-1], f"{estimator}, {name}", color))
        ax.axhline(budget, color="#7F7F7F", linestyle=":")
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{tick:g}" for tick in x])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(bottom=0)
        ax.set_xlabel(label)
        if ax is axes[-1]:
            beside(ax, ends, height=1.8)
    axes[0].set_ylabel("peak memory above the start, MiB")
    headed(
        figure,
        "Peak memory against steps and n, before and after",
        f"digits, method random, p = 30 % · {_machine(results['after'])}",
    )
    explained(
        figure, [f"Dotted: the stated budget, {budget:g} MiB. Dashed, squares: before; solid, circles: after. Measured once each."]
    )
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
