"""The paired difference of two methods: coverage and width of its interval, against two separate estimates of equal cost.

    python -m benchmarks.paired [--draws 400] [--pairs 100]

Writes benchmarks/results/paired-cpu.json, without training, from populations of which every difference and prediction is known:
assisted-digits-cpu.json, on whose pairs the design was chosen, and populations-cpu.json, which was not used for that. A pair is of
one S and seed. With a examples left out of both methods, these are compared:

- ``paired``: the examples are drawn for both (:func:`stability.leave_one_out.paired.mean_difference`);
- ``separate``: an assisted estimate of each method, whose intervals are put together as of independent ones;
- ``side by side``: the same, from the lower end of one interval to the upper end of the other;
- ``uniform``: the mean over pairs that are drawn uniformly.

Widths are half-widths in nats, in the table of all pairs in standard deviations of the difference over the examples.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.language import RESULTS
from stability import machine
from stability.leave_one_out.estimators import Assisted
from stability.leave_one_out.paired import mean_difference, pair_sizes, separate
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import Estimate, Numbers, draw

COUNTS = (10, 20, 40)
FROM, TO = "full", "sam"


class Population:
    """|Δℓ_i| of one method, measured and predicted; and what assisted estimates of it say, by the number of examples.

    Args:
        name: the method and its p.
        group: of which it is: S and seed are the same within it.
        measured: |Δℓ_i|, (n,).
        predicted: the same, (n,).
        draws: how many estimates are made.
    """

    def __init__(self, name: str, group: str, measured: Numbers, predicted: Numbers, draws: int) -> None:
        self.name, self.group, self.measured, self.predicted = name, group, measured, predicted
        n = len(measured)
        foretold = Prediction(pd.DataFrame({"index": range(n), "difference": predicted}), "stored", 0.0)
        # Seeds that no other population has, so that the two of a pair are independent.
        first = 10**6 * (1 + sum(map(ord, f"{group} {name}")))
        self.estimates: dict[int, list[Estimate]] = {count: [] for count in COUNTS}
        for seed in range(first, first + draws):
            design = Assisted().design(n, seed, foretold)
            for count in COUNTS:
                self.estimates[count].append(design.mean(measured[design.order[:count]], 0.95))

    def is_of(self, method: str) -> bool:
        """Whether it is of this method, at any p."""
        return self.name.split()[0] == method


def populations(draws: int) -> Iterator[Population]:
    """All that are known, those on which the design was chosen first."""
    for row in json.loads((RESULTS / "assisted-digits-cpu.json").read_text())["digits"]:
        predicted = row["predictions"]["linearised"]["difference"]
        yield Population(f"{row['method']} {row['p']:.3g}", "chosen", np.abs(row["difference"]), np.abs(predicted), draws)
    path = RESULTS / "populations-cpu.json"
    for row in json.loads(path.read_text())["populations"] if path.exists() else ():
        group = f"{row['group']}, seed {row['seed']}, n = {row['n']}"
        yield Population(f"{row['method']} {row['p']:.3g}", group, np.abs(row["difference"]), np.abs(row["predicted"]), draws)


def simulated(one: Population, other: Population, count: int, draws: int) -> dict[str, Any]:
    """What is said of one pair with so many examples left out of both."""
    n, d = len(one.measured), other.measured - one.measured
    generator = np.random.default_rng(count)
    sizes, predicted = pair_sizes(one.predicted, other.predicted), (one.predicted, other.predicted)
    found: dict[str, list[tuple[float, float, float]]] = {"paired": [], "separate": [], "side by side": [], "uniform": []}
    for mine, theirs in zip(one.estimates[count], other.estimates[count], strict=True):
        drawn = draw(sizes, generator)[:count]
        told = mean_difference(one.measured[drawn], other.measured[drawn], drawn, population=n, predicted=predicted)
        found["paired"].append((told.value, *told.interval))
        both = separate(mine, theirs)
        found["separate"].append((both.value, *both.interval))
        ends = theirs.interval[0] - mine.interval[1], theirs.interval[1] - mine.interval[0]
        found["side by side"].append((both.value, *ends))
        drawn = generator.permutation(n)[:count]
        told = mean_difference(one.measured[drawn], other.measured[drawn], drawn, population=n)
        found["uniform"].append((told.value, *told.interval))
    truth, slack = float(d.mean()), 1e-9 * float(np.abs(d).max())
    rows: dict[str, Any] = {}
    for name, values in found.items():
        value, low, high = np.array(values).T
        rows[name] = {
            "coverage": float(np.mean((low - slack <= truth) & (truth <= high + slack))),
            "half_width": float(np.median((high - low) / 2)),
            "error": float(np.sqrt(np.mean((value - truth) ** 2))),
            "resolved": float(np.mean((low > 0) | (high < 0))),
            "wrong": float(np.mean((low > 0) & (truth < 0) | (high < 0) & (truth > 0))),
        }
    return {"first": one.name, "second": other.name, "count": count, "truth": truth, "spread": float(d.std(ddof=1)), **rows}


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the pairs of a group with one number of examples."""
    found: dict[str, Any] = {"pairs": len(rows)}
    uniform = np.array([row["uniform"]["error"] for row in rows])
    for name in ("paired", "separate", "side by side", "uniform"):
        mine = pd.DataFrame([row[name] for row in rows])
        spread = np.array([row["spread"] for row in rows])
        found[name] = {
            "coverage_at_least_93": float((mine["coverage"] >= 0.93).mean()),
            "least_coverage": float(mine["coverage"].min()),
            "half_width": float(np.median(mine["half_width"] / spread)),
            "half_width_to_paired": float(np.median(mine["half_width"] / [row["paired"]["half_width"] for row in rows])),
            "variance_cut_against_uniform": float(np.median((uniform / mine["error"]) ** 2)),
            "resolved": float(mine["resolved"].mean()),
            "wrong": float(mine["wrong"].mean()),
        }
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=100, help="of one S and seed at most, evenly spread over all of them")
    options = parser.parse_args()
    groups: dict[str, list[Population]] = {}
    for one in populations(options.draws):
        groups.setdefault(one.group, []).append(one)
    found: dict[str, Any] = {"draws": options.draws, "groups": {}, FROM + " against " + TO: [], "poorest": {}}
    every: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for group, known in groups.items():
        kind = group.split(",")[0]
        if not (pairs := list(itertools.combinations(known, 2))):
            continue
        some = pairs[:: max(1, -(-len(pairs) // options.pairs))]
        asked = [(one, other) for one, other in pairs if group == "chosen" and one.is_of(FROM) and other.is_of(TO)]
        for count in COUNTS:
            every.setdefault(kind, {}).setdefault(count, []).extend(simulated(*pair, count, options.draws) for pair in some)
            found[FROM + " against " + TO] += [simulated(*pair, count, options.draws) for pair in asked]
    for kind, by_count in every.items():
        found["groups"][kind] = {str(count): summarised(rows) for count, rows in by_count.items()}
        worst = sorted(itertools.chain(*by_count.values()), key=lambda row: float(row["paired"]["coverage"]))[:5]
        found["poorest"][kind] = [
            {name: row[name] for name in ("first", "second", "count", "truth")} | {"coverage": row["paired"]["coverage"]}
            for row in worst
        ]
        for count in by_count:
            told = found["groups"][kind][str(count)]
            for name in ("paired", "separate", "side by side", "uniform"):
                print(kind, count, f"{told['pairs']} pairs", name, rounded(told[name]), flush=True)
    (RESULTS / "paired-cpu.json").write_text(json.dumps(rounded(found) | {"machine": machine.report()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
