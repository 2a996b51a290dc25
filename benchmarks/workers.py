"""What workers gain: for one measurement that is divided among them, and for a study whose cells they compute.

    python -m benchmarks.workers [--n 120] [--steps 300] [--workers 1 2] [--cells 24] [--out benchmarks/results/workers-cpu.json]

The measurement leaves out every example of digits. The study has cells of a hundred images and a hundred steps, three methods.

"In this process" is the plain call. The others start their processes, send the problem, and bring the trained values back; all of
that is in their time. Beside each time stands how many cores other programs kept busy just before, and the seconds of processor
time that the measurement took in all its processes: on a machine that is not idle, these tell more than the wall clock. All
estimates must be the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stability import FineTuning, estimators, load, machine, measure
from stability.selectors import SAM, FullTuning, Random
from stability.studies import Study, run
from stability.workers import asked
from stability.workers.pools import LocalProcesses


def processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(n: int, steps: int, workers: int | None) -> dict[str, Any]:
    """One measurement: ``workers`` are None for this process alone."""
    problem, algorithm = load("digits", n=n), FineTuning(SAM(0.05), steps=steps)
    busy = machine.busy_cores(1.0)
    began, used = time.perf_counter(), processor_seconds()
    estimate = measure(problem, algorithm, estimators.Exact(), device="cpu", workers=workers)
    row = {"workers": workers or 0, "seconds": time.perf_counter() - began, "busy_cores": round(busy, 2)}
    row |= {"processor_seconds": processor_seconds() - used, "retraining_seconds": estimate.retraining_seconds}
    return row | {"retrainings": estimate.retrainings, "stability": estimate.value}


def hourly(cells: int, workers: int) -> dict[str, Any]:
    """A study of so many cells on a new store: cells an hour, with the start of the processes."""
    algorithms = tuple(FineTuning(selector, steps=100) for selector in (FullTuning(), Random(0.05), SAM(0.05)))
    seeds = tuple(range(-(-cells // len(algorithms))))
    study = Study(
        "workers",
        "digits",
        algorithms,
        seeds,
        problem_settings={"n": 100},
        estimator=estimators.Assisted(20),
        check_replicas=None,
    )
    busy = machine.busy_cores(1.0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = run(study, Path(folder) / "workers.sqlite", device="cpu", workers=workers)
        seconds = time.perf_counter() - began
    table = found.table.sort_values(["method", "seed"])
    row = {"workers": workers, "cells": len(table), "seconds": seconds, "cells_an_hour": 3600 * len(table) / seconds}
    return row | {"busy_cores": round(busy, 2), "stability": table["stability"].tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # One worker is computed in a process of its own too, so that what sending costs is seen.
    asked.pool = lambda device, workers, *what: None if workers is None else LocalProcesses([device] * workers)
    rows = []
    for workers in (None, *options.workers):
        rows.append(timed(options.n, options.steps, workers))
        found, alone = rows[-1], rows[0]
        where = "in this process" if workers is None else f"{workers} workers"
        print(f"{where}: {found['seconds']:.1f} s, {alone['seconds'] / found['seconds']:.2f} times as fast, ", end="")
        print(f"{found['processor_seconds']:.1f} s of processor time; others kept {found['busy_cores']} cores busy", flush=True)
    stabilities = [row["stability"] for row in rows]
    assert max(stabilities) - min(stabilities) < 1e-5 * max(stabilities), stabilities
    studies = []
    for workers in options.workers:
        studies.append(hourly(options.cells, workers))
        print(f"{workers} workers: {studies[-1]['cells_an_hour']:.0f} cells an hour", flush=True)
    tables = [row.pop("stability") for row in studies]
    assert all(abs(one - other) < 1e-4 * one for table in tables for one, other in zip(tables[0], table, strict=True)), tables
    if options.out is not None:
        setting = {"n": options.n, "steps": options.steps, "selector": "sam, p = 0.05", "machine": machine.report()}
        found = {"rows": rows, **setting, "studies": studies}
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
