"""Kill the processes of a study at random, again and again, until it is done: its table must be that of an undisturbed run.

Two or three commands ``stability run`` work on one store: one by itself, one with two processes of its own and, with ``--cluster``,
one with a Ray cluster of two nodes on this machine. Now and then one of these processes or a node is killed (SIGKILL), and what is
gone is started again. The study is done twice, on a store of each kind, and each has half of the kills.
``python -m benchmarks.soak --kills 200 --cluster --out benchmarks/results/soak.json``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from stability import FineTuning, machine
from stability.errors import StabilityError
from stability.leave_one_out.estimators import Sampled
from stability.selectors import SAM, BitFit, FullTuning, Random, magnitude
from stability.studies import Study, StudyResults, run
from stability.studies.store import Store
from stability.workers.starting import loopback

__all__ = ["check", "main", "soak", "study_of"]

_TIMES = ["seconds", "cell_seconds"]
_HERE = Path(__file__).parents[1]


def study_of(cells: int, steps: int = 20) -> Study:
    """A study of small cells: five methods, and as many seeds as it takes."""
    selectors = (FullTuning(), BitFit(), Random(0.1), magnitude(0.1), SAM(0.1))
    tuned = tuple(FineTuning(selector, steps=steps, batch_size=8) for selector in selectors)
    seeds = tuple(range(-(-cells // len(tuned))))
    return Study("soak", "digits", tuned, seeds, problem_settings={"n": 40}, estimator=Sampled(4), check_replicas=None)


def work(cells: int, steps: int, store: str, how: dict[str, Any]) -> None:
    """What each process runs, until every cell is finished."""
    run(study_of(cells, steps), store, device="cpu", **how)


class _Nodes:
    """A Ray cluster on this machine: a head that does no work, and a node that does, and is killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        node = {"node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
        self._node = {**node, "num_cpus": 1}
        head = {**node, "num_cpus": 0, "include_dashboard": False}
        with loopback():
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
            self._working: Any = self._cluster.add_node(**self._node)
        self.address = self._cluster.address

    def kill_one(self) -> None:
        """End the node with all that it computes, and put another in its place."""
        if self._working is not None:
            self._cluster.remove_node(self._working, allow_graceful=False)
            self._working = None
        with loopback(), suppress(Exception):  # Ray's own, where it starts too slowly on a busy machine: the next call tries again
            self._working = self._cluster.add_node(**self._node)

    def close(self) -> None:
        self._cluster.shutdown()


def soak(
    cells: int,
    kills: int,
    every: float,
    seed: int,
    folder: Path,
    *,
    cluster: bool = False,
    steps: int = 20,
    stores: Sequence[str] = (".sqlite", ".d"),
) -> dict[str, Any]:
    """Run the study under fire.

    Args:
        cells: how many the study has.
        kills: how many processes and nodes are killed at most, as many in the study of each kind of store.
        every: mean seconds between two of them.
        seed: of the moments and of who is killed.
        folder: for the stores.
        cluster: whether a Ray cluster takes part.
        steps: of each training.
        stores: the ends of their names, each of another kind.

    Returns:
        What was killed, which commands failed although nobody killed them, and how the tables compare with the undisturbed one.
    """
    drawn = random.Random(seed)
    began = time.monotonic()
    study = study_of(cells, steps)
    whole = _table(run(study, folder / "whole.sqlite", device="cpu", workers=1))
    alone = time.monotonic() - began
    killed: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    rounds: list[dict[str, Any]] = []
    nodes = _Nodes() if cluster else None
    try:
        for number, suffix in enumerate(stores, 1):
            most = kills * number // len(stores)
            store = folder / f"mine{suffix}"
            before, start = killed.total(), time.monotonic()
            _under_fire((cells, steps), store, every, drawn, killed, most, nodes, errors)
            if bad := _failed(store):  # a cell that lost three processes in a row is tried again by the next run
                run(study, store, device="cpu", workers=1)
            found = StudyResults.read(store)
            rounds.append(
                {
                    "store": store.suffix,
                    "kills": killed.total() - before,
                    "rows": len(Store(store).records()),
                    "lost_three_processes": bad,
                    "same_table": _table(found).equals(whole),
                    "seconds": round(time.monotonic() - start, 1),
                }
            )
            print(rounds[-1], flush=True)
    finally:
        if nodes is not None:
            nodes.close()
    seconds = round(alone, 1)
    return {"cells": len(whole), "kills": dict(killed), "errors": dict(errors), "undisturbed_seconds": seconds, "rounds": rounds}


def _failed(store: Path) -> int:
    return int((StudyResults.read(store).table["status"] != "ok").sum())


def _table(results: StudyResults) -> pd.DataFrame:
    return results.table.drop(columns=_TIMES).reset_index(drop=True)


def _under_fire(
    what: tuple[int, int],
    store: Path,
    every: float,
    drawn: random.Random,
    killed: Counter[str],
    most: int,
    nodes: _Nodes | None,
    errors: Counter[str],
) -> None:
    ways: list[dict[str, Any]] = [{"workers": 1}, {"workers": 2}]
    if nodes is not None:
        ways.append({"executor": "ray", "address": nodes.address})
    drivers: dict[int, subprocess.Popen[bytes]] = {}
    done = False
    try:
        while not done:
            for place, way in enumerate(ways):
                code = drivers[place].poll() if place in drivers else None
                if code == 0:
                    done = True
                    break
                if place not in drivers or code is not None:
                    _count(code, way, errors)
                    call = f"from benchmarks.soak import work; work({what[0]}, {what[1]}, {str(store)!r}, {way!r})"
                    main = f"if __name__ == '__main__':\n    {call}"
                    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                    drivers[place] = subprocess.Popen([sys.executable, "-c", main], cwd=_HERE, env=environment)
            time.sleep(drawn.expovariate(1 / every))
            if not done and killed.total() < most:
                _kill_one(list(drivers.values()), drawn, killed, nodes)
        for place, driver in drivers.items():
            _count(driver.wait(), ways[place], errors)
    finally:
        for driver in drivers.values():
            driver.kill()


def _count(code: int | None, way: dict[str, Any], errors: Counter[str]) -> None:
    """Take note of a command that ended otherwise than by being done or killed."""
    if code not in (None, 0, -signal.SIGKILL):
        errors[f"exit code {code} of {way}"] += 1


def _kill_one(drivers: list[subprocess.Popen[bytes]], drawn: random.Random, killed: Counter[str], nodes: _Nodes | None) -> None:
    if nodes is not None and drawn.random() < 0.2:
        nodes.kill_one()
        killed["node"] += 1
        return
    alive = [one for one in drivers if one.poll() is None]
    with suppress(psutil.NoSuchProcess):
        children = [child for one in alive for child in psutil.Process(one.pid).children() if "spawn_main" in str(child.cmdline())]
        workers = drawn.random() < 0.6 and children
        victim = drawn.choice(children).pid if workers else drawn.choice(alive).pid if alive else None
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
            killed["worker" if workers else "driver"] += 1


def main(arguments: list[str] | None = None) -> int:
    """Run it, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cluster", action="store_true", help="a Ray cluster takes part, and its node is killed as well")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(asked.cells, asked.kills, asked.every, asked.seed, Path(folder), cluster=asked.cluster)
    print(found)
    if asked.out is not None:
        stored = {**found, "seed": asked.seed, "every_seconds": asked.every, "machine": machine.report()}
        asked.out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    check(found, asked.kills)
    return 0


def check(found: dict[str, Any], kills: int) -> None:
    """Whether it stood the fire.

    Args:
        found: what :func:`soak` found.
        kills: how many were asked for.

    Raises:
        StabilityError: a table differs, a command failed by itself, or fewer were killed than asked.
    """
    if not all(one["same_table"] and one["rows"] == found["cells"] for one in found["rounds"]):
        raise StabilityError("a table differs from that of an undisturbed run")
    if found["errors"]:
        raise StabilityError(f"commands failed that nobody killed: {found['errors']}")
    if (killed := sum(found["kills"].values())) < kills:
        raise StabilityError(f"{killed} of {kills} kills: the study was done too early; use more --cells, or a smaller --every")


if __name__ == "__main__":
    raise SystemExit(main())
