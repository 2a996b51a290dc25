"""Is a plan true? What ``--plan`` tells of the studies of the claims now, beside the hours that their stored cells took.

    python -m benchmarks.plans [--data FOLDER] [--model FOLDER] [--only NAME …] [--out benchmarks/results/plans-cpu.json]

Each study is planned as if nothing of it were done; it is asked how long the cells would take that are finished in figures/claims.
The comparison has a meaning only on a machine like the one that computed them. With --out, studies that are not planned now keep
what the file has of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import KEPT, ORDER, add_studies, fetched, protocols
from stability import machine
from stability.studies import Protocol, StudyResults, cost


def compared(name: str, protocol: Protocol) -> dict[str, Any]:
    """Hours planned and hours taken, of a study whose cells are all finished."""
    began = time.perf_counter()
    found = cost.expected(protocol.study(name), device="cpu", workers=1)
    results = StudyResults.read(KEPT / f"{name}.sqlite")
    planned, took = float(found.table["hours"].sum()), float(results.table["cell_seconds"].sum()) / 3600
    row = {"study": name, "cells": len(results), "planned_hours": planned, "hours": took, "ratio": planned / took}
    return row | {"planning_seconds": time.perf_counter() - began}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_studies(parser)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in ORDER:
        fetched(name)  # the searches, whose rates a study takes
    finished = [
        name for name in options.only if (path := KEPT / f"{name}.sqlite").exists() and not StudyResults.read(path).to_compute
    ]
    rows = []
    for name, protocol in protocols(tuple(finished), options.model, options.data):
        rows.append(compared(name, protocol))
        told = rows[-1]
        print(
            f"{name}: planned {told['planned_hours']:.2f} hours, took {told['hours']:.2f}: {told['ratio']:.2f} times "
            f"(the plan took {told['planning_seconds']:.0f} s)",
            flush=True,
        )
    if options.out is not None and rows:
        before = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
        rows = [*(row for row in before if row["study"] not in {mine["study"] for mine in rows}), *rows]
        options.out.write_text(json.dumps({"rows": rows, "machine": machine.report()}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
