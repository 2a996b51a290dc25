"""What the rule for threads costs and saves: the default against the best of one and two threads, idle and beside another process.

    python -m benchmarks.threads [--data FOLDER] [--repeats 3]

A whole measurement of digits, of small BERTs with random weights and, with --data, of MiniLM on CB, each in a process of its own.
The other process keeps one core busy. The three settings take turns, and the median of their repeats counts.
Writes benchmarks/results/threads-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import stability
from benchmarks.language import RESULTS, minilm
from benchmarks.scaling import Point
from stability import FineTuning, Problem, estimators, load, machine, predictors, selectors
from stability.training import threads

SETTINGS = ("one", "all", "default")
NAMES = ["digits", *(f"BERT of width {width}" for width in (64, 128, 256)), "MiniLM on CB"]


def made(name: str, data: Path | None) -> tuple[Problem, FineTuning, estimators.Estimator]:
    """What is measured under a name."""
    if name == "digits":
        return load("digits", n=100, seed=0), FineTuning(selectors.SAM(0.05), steps=50), estimators.Assisted(8)
    few = estimators.Assisted(4, predictor=predictors.Linearised(2, reselect=False))
    if name.startswith("BERT"):
        return Point(width=int(name.split()[-1])).problem(), FineTuning(selectors.Random(0.01), steps=6, batch_size=16), few
    problem = load(str(data), model=minilm(), n=32, seed=0)
    return problem, FineTuning(selectors.Random(0.005), steps=3), few


def measured(name: str, data: Path | None, setting: str, out: multiprocessing.SimpleQueue[tuple[float, float]]) -> None:
    """Seconds of one measurement, and the operations of a mean product by which the rule decides."""
    problem, algorithm, estimator = made(name, data)
    algorithm = algorithm.with_defaults(problem.training)
    size = threads.mean_product(problem, algorithm)
    if setting != "default":
        torch.set_num_threads(1 if setting == "one" else machine.cores())
        threads.LARGE = 0  # the number stays as it is set
    stability.measure(problem, FineTuning(selectors.BitFit(), steps=1), estimators.Sampled(1))  # whatever happens only once
    began = time.perf_counter()
    stability.measure(problem, algorithm, estimator)
    out.put((time.perf_counter() - began, size))


def _spin() -> None:
    while True:
        pass


@contextmanager
def beside(busy: bool) -> Iterator[None]:
    """Beside a process that keeps one core busy, or alone."""
    if not busy:
        yield
        return
    other = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    other.start()
    try:
        yield
    finally:
        other.kill()
        other.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the tasks, for MiniLM on CB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--problems", nargs="+", choices=NAMES, default=NAMES, help="by default all for which there are data")
    asked = parser.parse_args()
    names = [name for name in asked.problems if asked.data or name != "MiniLM on CB"]
    context, rows = multiprocessing.get_context("spawn"), []
    for name in names:
        for busy in (False, True):
            seconds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
            size = 0.0
            with beside(busy):
                for _ in range(asked.repeats):
                    for setting, mine in seconds.items():
                        out = context.SimpleQueue()
                        folder = asked.data / "cb" if asked.data else None
                        worker = context.Process(target=measured, args=(name, folder, setting, out))
                        worker.start()
                        worker.join()
                        if worker.exitcode:
                            raise SystemExit(f"{name}, {setting}: exit code {worker.exitcode}")
                        took, size = out.get()
                        mine.append(took)
            median = {setting: statistics.median(mine) for setting, mine in seconds.items()}
            rows.append(
                {
                    "problem": name,
                    "beside another process": busy,
                    "operations of a mean product": size,
                    "seconds": seconds,
                    "default over the best": median["default"] / min(median["one"], median["all"]),
                    "all over one": median["all"] / median["one"],
                }
            )
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "seconds"}), median, flush=True)
    RESULTS.mkdir(exist_ok=True)
    result = {"rule": threads.LARGE, "repeats": asked.repeats, "rows": rows, "machine": machine.report()}
    (RESULTS / "threads-cpu.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
