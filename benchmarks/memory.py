"""How much memory a measurement takes as the steps and n grow, against the budget that it was given.

    python -m benchmarks.memory [--threads 1] [--quick] [--label after]

Sampled and assisted estimation of ``digits`` with random masks of p = 0.3 and 20 retrainings, with a budget of 64 MiB. One
quantity is moved at a time from a base of 250 steps and n = 100. Each point has a process of its own, which first measures with
two steps, so that what torch and the model take is there already. Its peak is what is resident beyond that.
Writes the rows under the label into benchmarks/results/memory-cpu.json, beside those of other labels.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.language import RESULTS
from benchmarks.loops import peak_memory, seconds
from stability import FineTuning, estimators, load, machine, measure, predictors, selectors

BUDGET = 64 << 20


@dataclass(frozen=True)
class Point:
    """One measurement of so many ``steps`` and ``n`` examples, by ``sampled`` or ``assisted`` estimation."""

    estimator: str
    steps: int = 250
    n: int = 100

    def run(self, retrainings: int = 20) -> None:
        """Measure, within the budget."""
        chosen = estimators.Sampled(retrainings)
        if self.estimator == "assisted":
            chosen = estimators.Assisted(retrainings, predictor=predictors.Linearised(memory_budget=BUDGET))
        algorithm = FineTuning(selectors.Random(0.3), steps=self.steps)
        measure(load("digits", n=self.n), algorithm, chosen, device="cpu", memory_budget=BUDGET)


ESTIMATORS = ("sampled", "assisted")
AXES: dict[str, list[Point]] = {
    "steps": [Point(estimator, steps=steps) for estimator in ESTIMATORS for steps in (125, 500, 2000)],
    "n": [Point(estimator, n=n) for estimator in ESTIMATORS for n in (50, 100, 200, 400)],
}


def peak_of(work: Callable[[], object]) -> int:
    """How many bytes more than before were resident at once while ``work`` ran; Linux alone tells."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = psutil.Process().memory_info().rss
    work()
    return round(peak_memory("cpu") * 2**30) - int(before)


def measured(point: Point, threads: int) -> dict[str, Any]:
    """Peak and time of one point."""
    torch.set_num_threads(threads)
    replace(point, steps=2, n=40).run(retrainings=2)
    found: list[int] = []
    spent, _ = seconds(lambda: found.append(peak_of(point.run)))
    return {**asdict(point), "peak_mib": found[0] / 2**20, "seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--label", default="after", help="name of the rows, such as before and after a change")
    parser.add_argument("--quick", action="store_true", help="the smallest point of each axis; nothing is written")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: dict[str, list[dict[str, Any]]] = {axis: [] for axis in AXES}
    for axis, points in AXES.items():
        for point in points[:1] if options.quick else points:
            with context.Pool(1) as pool:
                rows[axis].append(pool.apply(measured, (point, options.threads)))
            found = rows[axis][-1]
            print(
                f"{point.estimator}, {axis} {getattr(point, axis)}: {found['peak_mib']:.0f} MiB, {found['seconds']:.0f} s",
                flush=True,
            )
    if not options.quick:
        path = RESULTS / "memory-cpu.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        results[options.label] = {
            "rows": rows,
            "budget_mib": BUDGET / 2**20,
            "threads": options.threads,
            "machine": machine.report(),
        }
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
