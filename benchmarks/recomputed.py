"""Cells of the study ``digits`` computed again, one of each family of methods, and compared with the stored ones.

``python -m benchmarks.recomputed`` writes ``results/recomputed-cpu.json``: for each cell whether every stored number came out again
bit for bit, and otherwise what differs. The committed cells were computed on one thread, and so is this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.language import RESULTS
from stability import machine
from stability.studies import STUDIES, Cell, Store
from stability.studies.verification import compared, stored_cells

STORED = Path(__file__).parents[1] / "figures" / "digits.sqlite"
SPARSITY = 0.03  # of the methods that choose so many


def family(cell: Cell) -> str:
    return cell.algorithm.selector.name


def chosen(cells: list[Cell]) -> list[Cell]:
    """The first cell of each family, near :data:`SPARSITY` where there are several."""
    found: dict[str, Cell] = {}
    for cell in cells:
        p = cell.algorithm.selector.sparsity
        if p in (None, SPARSITY):
            found.setdefault(family(cell), cell)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "recomputed-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = STUDIES["digits"]
    wanted = chosen(study.cells())
    rows = []
    for checked in compared(study, [stored for stored in stored_cells(study, Store(STORED)) if stored.cell in wanted]):
        cell, found = checked.stored.cell, dict(checked.differences)
        p, numbers = cell.algorithm.selector.sparsity, checked.stored.numbers
        rows.append({"method": family(cell), "p": p, "numbers": numbers, "differences": found})
        print(f"{family(cell):>14}  {numbers} numbers, {len(found)} differ", flush=True)
    options.out.write_text(json.dumps({"machine": machine.report(), "cells": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
