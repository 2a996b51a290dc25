"""How many cells a second a store takes, how long a million rows take to open and draw, and whether a new store stands a race.

    python -m benchmarks.ledger [--rows 1000000] [--races 100] [--out benchmarks/results/ledger.json]

- rates: claims and finished cells a second, for one and for four processes that write to one store at once, each cell in a
  transaction of its own. The records are copies of one that was measured (figures/digits.sqlite).
- million: a store of so many rows is opened, summarised and drawn.
- races: two processes run the same study on a new store, begun at the same instant; counted are errors and cells computed twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from stability import FineTuning, machine, plotting
from stability.leave_one_out.estimators import Sampled
from stability.selectors import BitFit
from stability.studies import Cell, Study, run
from stability.studies.cell import run_cell
from stability.studies.identity import key
from stability.studies.ledger import Heartbeat, Row, Wanted, Worker
from stability.studies.packed import packed
from stability.studies.results import StudyResults
from stability.studies.store import Store

__all__ = ["at_once", "main", "million", "races", "rates"]

SOURCE = Path("figures/digits.sqlite")
"""Where the record comes from."""


def at_once(context: Any, count: int, target: Callable[..., None], *arguments: object) -> list[Any]:
    """What processes tell that begin at the same instant.

    Args:
        context: of multiprocessing: how they are started.
        count: how many.
        target: what each runs: it is given the arguments, a barrier to wait at, and a queue into which it puts one answer.
        arguments: the same for all.
    """
    barrier, told = context.Barrier(count), context.Queue()
    processes = [context.Process(target=target, args=(*arguments, barrier, told)) for _ in range(count)]
    for process in processes:
        process.start()
    each = [told.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return each


def rates(folder: Path, cells: int = 4000) -> list[dict[str, Any]]:
    """Cells a second, claimed and finished one by one, by one and by four processes; of both kinds of store."""
    found = []
    for suffix, writers in itertools.product((".sqlite", ".d"), (1, 4)):
        path = folder / f"rates-{writers}{suffix}"
        Store(path, {"study": "rates"})
        each = at_once(multiprocessing.get_context("fork"), writers, _write, path, cells)
        seconds = max(end for _, end, _ in each) - min(begin for begin, _, _ in each)
        assert sum(count for _, _, count in each) == len(Store(path).ledger.attempts()) == cells
        found.append({"store": suffix, "writers": writers, "cells": cells, "cells_a_second": round(cells / seconds)})
        print(found[-1], flush=True)
    return found


def _write(path: Path, cells: int, barrier: Any, told: Any) -> None:
    record = Store(SOURCE).ledger.cells()[0][1]
    rows = [Row(key({"cell": number}), json.dumps({"cell": number}), record) for number in range(cells)]
    mine = Store(path).ledger
    count = 0
    with Heartbeat(mine, Worker()) as worker:
        barrier.wait()
        began = time.monotonic()
        open_ = {row.key: row for row in rows}
        while open_:
            ahead = {name: Wanted("") for name in itertools.islice(open_, 64)}
            answer = mine.claim(worker, ahead, 1, set())
            for name in answer.mine:
                mine.add([open_[name]])
                count += 1
            for name in (*answer.mine, *answer.finished):
                del open_[name]
            for name in answer.held:  # it comes back to it at the end
                open_[name] = open_.pop(name)
        told.put((began, time.monotonic(), count))


def million(folder: Path, rows: int) -> dict[str, Any]:
    """Open, summarise and draw a store of many rows: the cells of digits with further seeds, each with numbers of its own."""
    path = folder / "million.sqlite"
    source, random = Store(SOURCE), np.random.default_rng(0)
    seeds = -(-rows // len(source.identity["algorithms"]))
    Store(path, {**source.identity, "seeds": list(range(seeds))})
    with sqlite3.connect(path) as connection:
        for place, (mine, record) in enumerate(cell for cell in source.cells() if cell[0]["seed"] == 0):
            form, numbers, details = packed(mine, record)
            connection.execute("INSERT INTO forms VALUES (?, ?)", (place, form))
            last = [name for name, value in mine.items() if isinstance(value, int | float)].index("seed")
            for seed in range(seeds):
                own = np.frombuffer(numbers) * random.uniform(0.9, 1.0)  # p is at most 1
                own[last] = seed
                name = key({**mine, "seed": seed})
                connection.execute("INSERT INTO cells (key, form_id, numbers) VALUES (?, ?, ?)", (name, place, own.tobytes()))
                connection.execute("INSERT INTO details VALUES (?, ?)", (name, details))
    connection.close()
    context = multiprocessing.get_context("spawn")
    (found,) = at_once(context, 1, _opened, path)  # a process of its own, as of who opens it: its memory is what that takes
    print(found, flush=True)
    return {"rows": rows, "bytes": path.stat().st_size, **found}


def _opened(path: Path, barrier: Any, told: Any) -> None:
    barrier.wait()
    began = time.perf_counter()
    results = StudyResults.read(path)
    opened = time.perf_counter()
    results.summary()
    summarised = time.perf_counter()
    plotting.save_all(results, path.parent / "figures", "four_panels", formats=("png",))
    drawn = time.perf_counter()
    found = {"open": opened - began, "summary": summarised - opened, "draw": drawn - summarised, "total": drawn - began}
    told.put({**found, "cells": len(results), "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})


def _race(path: Path, barrier: Any, told: Any) -> None:
    mine = Study("race", "digits", (FineTuning(BitFit(), steps=2),), (0, 1, 2, 3), problem_settings={"n": 12}, **_QUICK)
    computed: list[str] = []

    def counted(study: Study, cell: Cell, *how: Any, **more: Any) -> dict[str, Any]:
        computed.append(str(cell))
        return run_cell(study, cell, *how, **more)

    try:
        with patch("stability.studies.cell.run_cell", counted):
            barrier.wait()
            results = run(mine, path, device="cpu", workers=1)
        told.put((computed, len(results)))
    except BaseException as error:
        told.put((repr(error), 0))


_QUICK: dict[str, Any] = {"estimator": Sampled(2), "check_replicas": None}


def races(folder: Path, times: int) -> dict[str, Any]:
    """Two processes begin at the same instant on a new store, so many times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stability.studies.running", "stability.problems.digits"])
    errors, twice, short = [], 0, 0
    for number in range(times):
        each = at_once(context, 2, _race, folder / f"race-{number}.{'d' if number % 2 else 'sqlite'}")
        errors += [computed for computed, _ in each if isinstance(computed, str)]
        cells = [cell for computed, _ in each if not isinstance(computed, str) for cell in computed]
        twice += len(cells) - len(set(cells))
        short += sum(count != 4 for _, count in each)
    found = {"races": times, "errors": errors, "cells_computed_twice": twice, "tables_that_lack_a_cell": short}
    print(found, flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--races", type=int, default=100)
    parser.add_argument("--parts", nargs="+", default=["rates", "million", "races"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out is not None and asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[Path], Any]] = {
            "rates": rates,
            "million": partial(million, rows=asked.rows),
            "races": partial(races, times=asked.races),
        }
        for part in asked.parts:
            found[part] = parts[part](folder)
            if asked.out is not None:  # after each, so that none is lost
                asked.out.write_text(json.dumps({**found, "machine": machine.report()}, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
