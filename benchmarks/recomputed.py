"""Cells of the study ``digits`` computed again, one of each family of methods, and compared with the stored ones.

``python -m benchmarks.recomputed`` writes ``results/recomputed-cpu.json``: for each cell whether every stored number came out again
bit for bit, and otherwise what differs. The committed cells were computed on one thread, and so is this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.language import RESULTS
from stability import machine
from stability.studies import STUDIES, Cell, Store
from stability.studies.store import key
from stability.studies.study import cell_identity, run_cell

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


def differences(stored: dict[str, Any], again: dict[str, Any]) -> dict[str, list[Any]]:
    """What is stored and came out otherwise: of lists and tables the entries, under ``column.place``. Times are left out."""
    found: dict[str, list[Any]] = {}
    for name, old in stored.items():
        new = again.get(name)
        if name == "seconds" or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found |= {f"{name}.{inner}": pair for inner, pair in differences(old, new).items()}
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            found |= {f"{name}.{place}": [a, b] for place, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
        else:
            found[name] = [old, new]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "recomputed-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = STUDIES["digits"]
    stored = {key(identity): record for identity, record in Store(STORED).cells()}
    rows = []
    for cell in chosen(study.cells()):
        old = stored[key(cell_identity(study, cell))]
        found = differences(old, json.loads(json.dumps(run_cell(study, cell))))
        rows.append({"method": family(cell), "p": cell.algorithm.selector.sparsity, "numbers": _numbers(old), "differences": found})
        print(f"{rows[-1]['method']:>14}  {rows[-1]['numbers']} numbers, {len(found)} differ", flush=True)
    options.out.write_text(json.dumps({"machine": machine.report(), "cells": rows}, indent=1, ensure_ascii=False) + "\n")


def _numbers(value: Any) -> int:
    """How many numbers a record holds."""
    if isinstance(value, (dict, list)):
        return sum(map(_numbers, value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, (int, float)) and not isinstance(value, bool))


if __name__ == "__main__":
    main()
