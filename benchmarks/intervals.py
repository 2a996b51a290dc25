"""How often intervals of the stability hold the truth, where the truth is known: every population that was retrained whole.

    python -m benchmarks.intervals [--draws 1000]

Reads the populations of ``benchmarks.assisted`` (39, on which the interval was chosen; and 83 texts with MiniLM) and of
``benchmarks.populations`` (others). Writes

- benchmarks/results/intervals.json: of each population and 10, 20 and 40 retrainings the coverage of the 95 % interval, the
  variance cut against plain sampling and the median half-width: plain, as it was before (Des Raj's estimator), now, and with an
  oracle that draws and predicts by the truth;
- stability/leave_one_out/coverage.json: coverage by what an estimate can know, its draws and the correlation that they show;
- docs/findings/intervals.svg: the figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.language import RESULTS
from stability.leave_one_out import statistics
from stability.leave_one_out.estimate import diagnosed, trusted
from stability.leave_one_out.estimators import Assisted, Design, Sampled, Status
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import Estimate, Numbers

COUNTS = (10, 20, 40)
UNTIL = {"10 %": Assisted(tolerance=0.1), "20 %": Assisted(tolerance=0.2), "20 %, at most 50": Assisted(50, 0.2)}
SIZES, DRAWN, EDGES = (1, 200), (5, 10, 20, 40), (-1.0, 0.5, 0.8, 0.95)
"""Lower edges of n, of the draws and of the correlation that they show, in the packaged table."""
FIGURE = Path("docs/findings/intervals.svg")
TABLE = Path("stability/leave_one_out/coverage.json")


class Population(NamedTuple):
    """|Δℓ| of every example, retrained and predicted."""

    group: str
    name: str
    measured: Numbers
    predicted: Numbers


def sizes(values: Any) -> Numbers:
    return np.abs(np.asarray(values, dtype=np.float64))


def populations() -> Iterator[Population]:
    for row in json.loads((RESULTS / "assisted-digits-cpu.json").read_text())["digits"]:
        name, told = f"{row['method']} {row['p']:.3g}", row["predictions"]["linearised"]["difference"]
        yield Population("chosen on", name, sizes(row["difference"]), sizes(told))
    for row in json.loads((RESULTS / "populations-cpu.json").read_text())["populations"]:
        name = f"{row['method']} {row['p']:.3g}, n {row['n']}, seed {row['seed']}"
        yield Population(row["group"], name, sizes(row["difference"]), sizes(row["predicted"]))
    known = json.loads((RESULTS / "assisted-population-cpu.json").read_text())["population"]["rows"]
    index = sorted(int(i) for i in known)
    told = json.loads((RESULTS / "assisted-language-cpu.json").read_text())["language"]["predictions"]
    for name, one in told.items():
        measured = sizes([known[str(i)]["difference"] for i in index])
        yield Population("MiniLM", name, measured, sizes(one["difference"])[index])


def worse() -> Iterator[Population]:
    """The 39 once more, with predictions that are poorer: one Newton step, the training loss, and those of other examples."""
    generator = np.random.default_rng(0)
    for row in json.loads((RESULTS / "assisted-digits-cpu.json").read_text())["digits"]:
        step, linearised = (row["predictions"][name]["difference"] for name in ("one step", "linearised"))
        for name, told in (("one step", step), ("loss", row["loss_full"]), ("others", generator.permutation(linearised))):
            yield Population(name, row["method"], sizes(row["difference"]), sizes(told))


@lru_cache
def foretold(values: bytes) -> Prediction:
    """The prediction of values, made once for all draws."""
    return Prediction(pd.DataFrame({"difference": np.frombuffer(values)}), "stored", 0.0)


def design_of(predicted: Numbers, seed: int) -> Design:
    return Assisted().design(len(predicted), seed, foretold(predicted.tobytes()))


def before(design: Design, values: Numbers) -> Estimate:
    """The estimate by Des Raj's draws alone."""
    assert design.draws is not None
    x = design.draws.sizes
    parts = statistics._each_draw(values, x[design.order[: len(values)]], x.sum(), len(x))
    return statistics._estimate(parts, 1.0, float(values.sum()), 0.95, len(x), 0)


def simulated(one: Population, draws: int) -> dict[str, Any]:
    n, truth = len(one.measured), float(one.measured.mean())
    ways: dict[str, dict[int, list[Estimate]]] = {name: {a: [] for a in COUNTS} for name in ("plain", "before", "now", "oracle")}
    for seed in range(draws):
        plain = Sampled().design(n, seed, None)
        told, oracle = design_of(one.predicted, seed), design_of(one.measured, seed)
        for a in COUNTS:
            for name, design in (("plain", plain), ("now", told), ("oracle", oracle)):
                ways[name][a].append(design.mean(one.measured[design.order[:a]], 0.95))
            ways["before"][a].append(before(told, one.measured[told.order[:a]]))
    found: dict[str, Any] = {"group": one.group, "name": one.name, "n": n}
    found["correlation"] = float(np.corrcoef(one.measured, one.predicted)[0, 1])
    for name, each in ways.items():
        found[name] = {a: summary(each[a], one.measured, truth, a) for a in COUNTS}
    for name, estimator in UNTIL.items():
        found[name] = until(estimator, one, max(1, draws // 10))
    return found


def until(estimator: Assisted, one: Population, draws: int) -> dict[str, float | None]:
    """How often the interval holds where the estimator stops, and where it says that its tolerance is met."""
    n, truth = len(one.measured), float(one.measured.mean())
    held, met, counts = [], [], []
    for seed in range(draws):
        design, done, told = design_of(one.predicted, seed), 0, None
        while more := estimator.more(n, done, told):
            done += more
            index = design.order[:done]
            found = design.mean(one.measured[index], 0.95)
            table = pd.DataFrame({"index": index, "difference": one.measured[index]})
            prediction = foretold(one.predicted.tobytes())
            told = trusted(found, estimator, diagnosed(table, design, found, prediction), design)
        assert told is not None
        held.append(found.interval[0] <= truth * (1 + 1e-9) and truth <= found.interval[1] * (1 + 1e-9))
        met.append(estimator.status(told) in (Status.WITHIN_TOLERANCE, Status.EXACT))
        counts.append(done)
    right = np.array(held)[np.array(met)]
    return {
        "coverage": float(np.mean(held)),
        "retrainings": float(np.median(counts)),
        "met": float(np.mean(met)),
        "coverage_where_met": float(right.mean()) if len(right) else None,
    }


def summary(drawn: list[Estimate], measured: Numbers, truth: float, a: int) -> dict[str, float | None]:
    values = np.array([estimate.value for estimate in drawn])
    ends = np.array([estimate.interval for estimate in drawn])
    slack = 1e-9 * truth
    held = (ends[:, 0] - slack <= truth) & (truth <= ends[:, 1] + slack)
    width = float(np.median((ends[:, 1] - ends[:, 0]) / 2 / values))
    plain, error = measured.var(ddof=1) / a * (1 - a / len(measured)), np.mean((values - truth) ** 2)
    found = {"coverage": float(held.mean()), "variance_cut": float(plain / error) if error else math.inf, "half_width": width}
    return {name: float(f"{value:.4g}") if math.isfinite(value) else None for name, value in found.items()}


def known_coverage(every: list[Population], draws: int) -> list[dict[str, Any]]:
    """Coverage by n, the draws and the correlation that they show, pooled over populations."""
    held: dict[tuple[int, int, float], list[bool]] = {place: [] for place in itertools.product(SIZES, DRAWN, EDGES)}
    for one in every:
        n, truth = len(one.measured), one.measured.mean()
        for seed in range(draws):
            design = design_of(one.predicted, seed)
            for a in DRAWN:
                index = design.order[:a]
                y, q = one.measured[index], one.predicted[index]
                if np.ptp(y) and np.ptp(q):
                    r = np.corrcoef(y, q)[0, 1]
                    low, high = design.mean(y, 0.95).interval
                    place = (max(size for size in SIZES if size <= n), a, max(edge for edge in EDGES if edge <= max(r, -1.0)))
                    held[place].append(low <= truth * (1 + 1e-9) and truth <= high * (1 + 1e-9))
    names = ("n", "draws", "correlation")
    return [
        {**dict(zip(names, place, strict=True)), "coverage": round(float(np.mean(hits)), 3), "samples": len(hits)}
        for place, hits in held.items()
        if hits
    ]


def drawn(rows: list[dict[str, Any]]) -> None:
    """Coverage before and now of each population, and the half-widths beside each other."""
    mpl.rcParams["svg.hashsalt"] = "stability"
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.2), layout="constrained", sharey="row", height_ratios=(1.2, 1))
    colours = {"chosen on": "#4477AA"}
    for column, a in enumerate(COUNTS):
        top, bottom = axes[0, column], axes[1, column]
        for name, marker, colour in (("plain", ".", "#BBBBBB"), ("before", "x", "#CC6677"), ("now", "o", "#4477AA")):
            levels = np.sort([row[name][a]["coverage"] for row in rows])
            top.plot(np.arange(1, len(rows) + 1), levels, marker, ms=4, color=colour, label=name)
        top.axhline(0.95, color="black", lw=0.8)
        top.axhline(0.93, color="black", lw=0.8, ls=":")
        top.set(title=f"{a} retrainings", ylim=(0.3, 1.02), xlabel="populations, sorted by coverage")
        for mine, label in ((True, "chosen on these"), (False, "others")):
            pairs = [
                (row["before"][a]["half_width"], row["now"][a]["half_width"]) for row in rows if (row["group"] in colours) == mine
            ]
            pairs = [pair for pair in pairs if None not in pair]
            bottom.loglog(
                *zip(*pairs, strict=True),
                "o" if mine else "^",
                ms=4,
                mfc="none",
                color="#4477AA" if mine else "#117733",
                label=label,
            )
        ends = (0.005, 5)
        bottom.plot(ends, ends, color="black", lw=0.8)
        bottom.set(xlabel="half-width before", xlim=ends, ylim=ends)
    axes[0, 0].set_ylabel("draws whose 95 % interval\nholds the truth")
    axes[1, 0].set_ylabel("half-width now\n(fraction of the value)")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    axes[1, 0].legend(fontsize=8, loc="upper left")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    plt.close(figure)


def tables(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The lines of the tables of docs/findings/estimators.md."""
    found: dict[str, list[str]] = {}
    for title, chosen in (("chosen", True), ("others", False)):
        mine = [row for row in rows if (row["group"] == "chosen on") == chosen]
        lines = found[title] = []
        for way, name in (("plain", "plain sampling"), ("before", "before"), ("now", "now")):
            each = [[row[way][a] if a in row[way] else row[way][str(a)] for row in mine] for a in COUNTS]
            held = [sum(one["coverage"] >= 0.93 for one in told) for told in each]
            least = [min(one["coverage"] for one in told) for told in each]
            width = [np.median([one["half_width"] for one in told if one["half_width"]]) for told in each]
            cut = [np.median([one["variance_cut"] for one in told if one["variance_cut"]]) for told in each]
            lines.append(f"| {name}: settings in which it holds | {' | '.join(map(str, held))} |")
            lines.append(f"| {name}: least coverage | {' | '.join(f'{x:.0%}'.replace('%', ' %') for x in least)} |")
            lines.append(f"| {name}: half-width | {' | '.join(f'{x:.2f}' for x in width)} |")
            if way != "plain":
                lines.append(f"| {name}: variance ratio | {' | '.join(f'{x:.0f}' for x in cut)} |")
    lines = found["tolerance"] = []
    for name in UNTIL:
        cells = []
        for chosen in (True, False):
            stopped = [row[name] for row in rows if (row["group"] == "chosen on") == chosen]
            held, median = sum(one["coverage"] >= 0.93 for one in stopped), np.median([one["retrainings"] for one in stopped])
            share = np.mean([one["met"] for one in stopped])
            right = np.sum([one["met"] * (one["coverage_where_met"] or 0) for one in stopped]) / share / len(stopped)
            cells += [f"{held} of {len(stopped)}", f"{median:.0f}", f"{100 * share:.0f} %", f"{100 * right:.0f} %"]
        lines.append(f"| ±{name} | {' | '.join(cells)} |")
    lines = found["language"] = []
    for row in rows:
        if row["group"] == "MiniLM":
            told = row["now"].get(10) or row["now"]["10"]
            lines.append(f"| {row['name']} | {told['variance_cut']:.0f} | {100 * told['coverage']:.0f} % |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    every = list(populations())
    with ProcessPoolExecutor(options.workers) as pool:
        rows = list(pool.map(partial(simulated, draws=options.draws), every))
    (RESULTS / "intervals.json").write_text(json.dumps({"draws": options.draws, "populations": rows}, ensure_ascii=False) + "\n")
    table = known_coverage([*every, *worse()], max(1, options.draws // 5))
    TABLE.write_text(json.dumps({"draws_each": max(1, options.draws // 5), "rows": table}, indent=1) + "\n")
    drawn(rows)
    for name, lines in tables(rows).items():
        print(name, *lines, sep="\n")
    for row in table:
        print(row)


if __name__ == "__main__":
    main()
