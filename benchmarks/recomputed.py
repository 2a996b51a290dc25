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
from stability.errors import StabilityError
from stability.studies import STUDIES, Cell, Store, Study
from stability.studies.verification import StoredCell, compared, stored_cells

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


def stored_of_each_family(study: Study, store: Store) -> list[StoredCell]:
    """The stored cells that are computed again: each of those that were chosen, or an error that names what the store lacks."""
    wanted = chosen(study.cells())
    found = [stored for stored in stored_cells(study, store) if stored.cell in wanted]
    held = [stored.cell for stored in found]
    if missing := [family(cell) for cell in wanted if cell not in held]:
        raise StabilityError(f"{store.path} lacks the cells of {', '.join(missing)}: run the study again, and it goes on")
    assert len(found) == len(wanted) > 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "recomputed-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = STUDIES["digits"]
    rows = []
    for checked in compared(study, stored_of_each_family(study, Store(STORED))):
        cell, found = checked.stored.cell, dict(checked.differences)
        p, numbers = cell.algorithm.selector.sparsity, checked.stored.numbers
        rows.append({"method": family(cell), "p": p, "numbers": numbers, "differences": found})
        print(f"{family(cell):>14}  {numbers} numbers, {len(found)} differ", flush=True)
    options.out.write_text(json.dumps({"machine": machine.report(), "cells": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
