"""The interval of the difference of two methods: how often it holds the truth, and how wide it is, for four ways.

    python -m benchmarks.difference [--draws 1000]

Writes benchmarks/results/difference-cpu.json, without training, from populations of which every difference and prediction is known:
assisted-digits-cpu.json, on which the interval of one method was chosen, and populations-cpu.json, which was not used for that.
All pairs of one S and seed are taken. With as many examples left out of both methods, these are compared:

- ``separate``: an assisted estimate of each method, as :func:`stability.difference` makes them, subtracted;
- ``joint``: the same examples for both, drawn by both predictions: calibrated weights for each method, and the interval of the
  differences of the residuals. It exists in this file only;
- ``uniform``: the same examples for both, drawn uniformly, with Student's interval of the mean over the pairs;
- ``sampled``: the same draws, of which an estimate of each method is made by itself, as from :class:`stability.estimators.Sampled`,
  and the two are subtracted.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks import intervals
from benchmarks.language import RESULTS
from stability import machine
from stability.leave_one_out.differences import subtracted
from stability.leave_one_out.estimators import Sampled
from stability.leave_one_out.statistics import Estimate, Numbers, calibrated_weights

COUNTS = (10, 20, 40)
WAYS = ("separate", "joint", "uniform", "sampled")
FROM, TO = "full", "sam"

_FLOOR = 0.05  # of the mean of the joint sizes, so that no example is excluded
_BY_DESIGN, _BY_MODEL = 1.5, 1 / 3  # what the two variances of joint draws weigh: the least with which their intervals hold


class Told(NamedTuple):
    """What is said of a difference, for each draw: its value and the ends of its interval, (R,) each."""

    value: Numbers
    low: Numbers
    high: Numbers


class Method:
    """A population, and what estimates say of it, by the number of examples and the seed of the draw.

    Args:
        one: |Δℓ_i|, measured and predicted.
        draws: how many estimates are made. Their seeds are 0, 1, …: methods that are compared have the same, as in a measurement.
    """

    def __init__(self, one: intervals.Population, draws: int) -> None:
        self.name, _, rest = one.name.partition(",")
        self.of, self.measured, self.predicted = f"{one.group}{rest and ','}{rest}", one.measured, one.predicted
        self.assisted: dict[int, list[Estimate]] = {count: [] for count in COUNTS}
        self.sampled: dict[int, list[Estimate]] = {count: [] for count in COUNTS}
        for seed in range(draws):
            designs = intervals.design_of(one.predicted, seed), Sampled().design(len(one.measured), seed, None)
            for (kept, design), count in itertools.product(zip((self.assisted, self.sampled), designs, strict=True), COUNTS):
                kept[count].append(design.mean(one.measured[design.order[:count]], 0.95))

    def is_of(self, method: str) -> bool:
        """Whether it is of this method, at any p."""
        return self.name.split()[0] == method


def separate(first: list[Estimate], second: list[Estimate]) -> Told:
    """Two estimates, subtracted."""
    found = [subtracted(one, other) for one, other in zip(first, second, strict=True)]
    return Told(*np.array([(one.value, *one.interval) for one in found]).T)


def joint(first: Method, second: Method, count: int, draws: int, generator: np.random.Generator) -> Told:
    """Draws for both methods, by √(q² + q′²) of their predictions, as :func:`stability.leave_one_out.statistics.draw` draws."""
    n = len(first.measured)
    sizes = np.hypot(first.predicted, second.predicted)
    sizes += _FLOOR * sizes.mean()
    clocks = generator.standard_exponential((draws, n)) / sizes
    order = np.argsort(clocks, axis=1)
    drawn = order[:, :count]
    p = -np.expm1(-sizes[drawn] * np.take_along_axis(clocks, order[:, count : count + 1], axis=1))
    value, weighted, residuals = (b - a for a, b in zip(_parts(first, drawn, p), _parts(second, drawn, p), strict=True))
    freedom = count - 2
    by_design = count / freedom * ((1 - p) * weighted**2).sum(1) / n**2
    by_model = (residuals**2).sum(1) / freedom * (n - count) / n**2
    half = stats.t.ppf(0.975, freedom) * np.sqrt(_BY_DESIGN * by_design + _BY_MODEL * by_model)
    return Told(value, value - half, value + half)


def _parts(one: Method, drawn: NDArray[np.int64], p: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Of each draw the estimate of :func:`.statistics.mean_of_draws`, and its residuals, with weights and without."""
    predicted = one.predicted + one.predicted.mean() / 100
    y, q = one.measured[drawn], predicted[drawn]
    weights = calibrated_weights(p, q, predicted.sum())
    residuals = y - q * (y.sum(1) / q.sum(1))[:, None]
    return (weights * y).sum(1) / len(predicted), weights * residuals, residuals


def uniform(first: Method, second: Method, count: int, draws: int, generator: np.random.Generator) -> Told:
    """The mean over pairs that are drawn uniformly, with Student's interval."""
    n = len(first.measured)
    drawn = np.argsort(generator.random((draws, n)), axis=1)[:, :count]
    d = (second.measured - first.measured)[drawn]
    value = d.mean(1)
    half = stats.t.ppf(0.975, count - 1) * d.std(1, ddof=1) / np.sqrt(count) * np.sqrt(1 - count / n)
    return Told(value, value - half, value + half)


def simulated(first: Method, second: Method, count: int) -> dict[str, Any]:
    """What is said of one pair with so many examples left out of both."""
    d, draws, generator = second.measured - first.measured, len(first.assisted[count]), np.random.default_rng(count)
    truth, slack = float(d.mean()), 1e-9 * float(np.abs(d).max())
    ways = {
        "separate": separate(first.assisted[count], second.assisted[count]),
        "joint": joint(first, second, count, draws, generator),
        "uniform": uniform(first, second, count, draws, generator),
        "sampled": separate(first.sampled[count], second.sampled[count]),
    }
    return {"first": first.name, "second": second.name, "of": first.of, "count": count, "truth": truth} | {
        name: {
            "coverage": float(np.mean((told.low - slack <= truth) & (truth <= told.high + slack))),
            "half_width": float(np.median((told.high - told.low) / 2)),
            "error": float(np.sqrt(np.mean((told.value - truth) ** 2))),
            "told_apart": float(np.mean((told.low > 0) | (told.high < 0))),
            "wrongly": float(np.mean((told.low > 0) & (truth < 0) | (told.high < 0) & (truth > 0))),
        }
        for name, told in ways.items()
    }


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all pairs with one number of examples: half-widths and errors are geometric means, in nats."""
    found: dict[str, Any] = {"pairs": len(rows)}
    for name in WAYS:
        mine = {what: np.array([row[name][what] for row in rows]) for what in rows[0][name]}
        least = rows[int(mine["coverage"].argmin())]
        found[name] = {
            "coverage_at_least_93": float((mine["coverage"] >= 0.93).mean()),
            "least_coverage": float(mine["coverage"].min()),
            "least_of": f"{least['second']} less {least['first']}, {least['of']}",
            **{what: float(np.exp(np.log(mine[what]).mean())) for what in ("half_width", "error")},
            **{what: float(mine[what].mean()) for what in ("told_apart", "wrongly")},
        }
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def groups() -> dict[tuple[str, str], list[intervals.Population]]:
    """The populations of each S and seed, those on which the interval of one method was chosen first."""
    found: dict[tuple[str, str], list[intervals.Population]] = {}
    for one in intervals.populations():
        if one.group != "MiniLM":  # of which there is one method only
            found.setdefault((one.group, one.name.partition(",")[2]), []).append(one)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    every: dict[str, dict[int, list[dict[str, Any]]]] = {}
    asked: list[dict[str, Any]] = []
    for (group, _), known in groups().items():
        methods = [Method(one, options.draws) for one in known]
        kind = "chosen" if group == "chosen on" else "others"
        for count, (one, other) in itertools.product(COUNTS, itertools.combinations(methods, 2)):
            row = simulated(one, other, count)
            every.setdefault(kind, {}).setdefault(count, []).append(row)
            if kind == "chosen" and one.is_of(FROM) and other.is_of(TO):
                asked.append(row)
    found = {kind: {str(count): summarised(rows) for count, rows in by_count.items()} for kind, by_count in every.items()}
    for kind, by_text in found.items():
        for text, told in by_text.items():
            for name in WAYS:
                print(kind, text, f"{told['pairs']} pairs", name, rounded(told[name]), flush=True)
    stored = {"draws": options.draws, "pairs": found, f"{FROM} against {TO}": asked, "machine": machine.report()}
    (RESULTS / "difference-cpu.json").write_text(json.dumps(rounded(stored), indent=1) + "\n")


if __name__ == "__main__":
    main()
