"""How far a study is: which of its cells are finished, which failed, and how long the rest will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from stability.machine import network_file_system
from stability.studies.identity import cells_of
from stability.studies.ledger import time_of
from stability.studies.pace import Pace
from stability.studies.results import CellStatus
from stability.studies.store import Store
from stability.studies.tables import short, table_of

__all__ = ["MethodState", "State", "WorkerState", "state_of"]

_NEEDED = ("key", "task", "method", "algorithm", "seed", "status", "failure", "reason", "seconds", "cell_seconds")
_PAUSE = 60.0  # seconds besides three times its own that a cell may take before it is taken for the first after a pause


@dataclass(frozen=True, kw_only=True)
class MethodState:
    """How far a study is with one method.

    Attributes:
        method: the method's name.
        total: its cells.
        measured: those that are finished and were measured.
        failed: those whose measurement failed.
        seconds: the mean time of a measured cell; NaN where there is none.
    """

    method: str
    total: int
    measured: int
    failed: int
    seconds: float

    @property
    def missing(self) -> int:
        """Cells that were not tried yet."""
        return self.total - self.measured - self.failed


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """What one process does for a study.

    Attributes:
        what: what it computes with.
        machine: where it is.
        process: the number of its process there.
        heard: when it gave its last sign of life.
        gone: whether it is known to be dead; its cells are then taken over by the next process that has nothing else to do.
        cells: the cells that it computes.
    """

    what: str
    machine: str
    process: int
    heard: datetime
    gone: bool
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a study is.

    Attributes:
        study: the study's name.
        methods: each of its methods, in its order.
        failures: of each kind of failure and its reason, the number of cells.
        last: when the last cell was finished; None where none is.
        rate: cells an hour over the time in which the store was worked on; NaN where it is not known.
        remaining: seconds that the missing cells will take at that pace; NaN where it is not known.
        workers: who works on it.
        mode: how its store is written, in words.
        network: the type of the network file system on which the store lies; None: on none that is known.
    """

    study: str
    methods: tuple[MethodState, ...]
    failures: Mapping[tuple[str, str], int]
    last: datetime | None
    rate: float
    remaining: float
    workers: tuple[WorkerState, ...] = ()
    mode: str = ""
    network: str | None = None

    @property
    def total(self) -> int:
        """The study's cells."""
        return sum(one.total for one in self.methods)

    @property
    def measured(self) -> int:
        """The cells that were measured."""
        return sum(one.measured for one in self.methods)

    @property
    def failed(self) -> int:
        """The cells whose measurement failed."""
        return sum(one.failed for one in self.methods)

    @property
    def missing(self) -> int:
        """Cells that were not tried yet."""
        return sum(one.missing for one in self.methods)


def state_of(store: Store) -> State:
    """How far the study of a store is. Another process may be writing to it.

    Args:
        store: the store.

    Returns:
        Counts by method, and the pace: that of all the time between two finished cells, without pauses.

    Raises:
        StabilityError: the store is damaged.

    Example:
        >>> found = state_of(Store("figures/discontinuity.sqlite"))
        >>> found.total, found.measured, found.failed, found.missing, found.remaining
        (9, 9, 0, 0, 0.0)
    """
    identity, (table, _) = store.identity, table_of(store)
    table = table.reindex(columns=sorted({*table.columns, *_NEEDED}))  # nothing is finished yet, or none failed
    table["own"] = table["cell_seconds"].fillna(table["seconds"]).astype(float)
    each = cells_of(identity) // len(identity["algorithms"])
    names = dict(table.loc[table["method"].notna(), ["algorithm", "method"]].drop_duplicates("algorithm").to_numpy())
    methods = {short(one): names.get(short(one), one["selector"]["name"]) for one in identity["algorithms"]}
    table["method"] = table["algorithm"].map(methods)
    ok, bad = (table[table["status"] == status] for status in (CellStatus.OK, CellStatus.FAILED))
    found = tuple(
        MethodState(
            method=name,
            total=each * count,
            measured=int((ok["method"] == name).sum()),
            failed=int((bad["method"] == name).sum()),
            seconds=float(ok.loc[ok["method"] == name, "own"].mean()),
        )
        for name, count in Counter(methods.values()).items()
    )
    failures = Counter(zip(bad["failure"].fillna("method"), bad["reason"].fillna(""), strict=True))
    times = store.times()
    own = dict(zip(table["key"], table["own"], strict=True))
    timed = sorted(((when, own.get(name, np.nan)) for name, when in times.items()), key=lambda one: one[0])
    busy = _busy(timed)
    return State(
        study=identity["study"],
        methods=found,
        failures=failures,
        last=max(times.values(), default=None),
        rate=3600 * (len(timed) - 1) / busy if busy > 0 else np.nan,
        remaining=_remaining(identity, table, timed, busy),
        workers=_workers(store),
        mode=store.ledger.mode,
        network=network_file_system(store.path),
    )


def _workers(store: Store) -> tuple[WorkerState, ...]:
    claims = store.ledger.claims()
    return tuple(
        WorkerState(
            what=one.what,
            machine=one.machine.split()[0],
            process=one.process,
            heard=time_of(store.path, one.heard),
            gone=one.gone,
            cells=tuple(claim.what for claim in claims if claim.worker == one.id),
        )
        for one in store.ledger.workers()
    )


def _busy(timed: Sequence[tuple[datetime, float]]) -> float:
    """Seconds between the first and the last finished cell, each pause counted as the time of the cell that ended it."""
    total = 0.0
    for (before, _), (after, own) in pairwise(timed):
        gap, known = (after - before).total_seconds(), 0.0 if np.isnan(own) else own
        total += gap if 0 <= gap <= 3 * known + _PAUSE else known  # a clock may have been set back
    return total


def _remaining(identity: Mapping[str, Any], table: pd.DataFrame, timed: Sequence[tuple[datetime, float]], busy: float) -> float:
    """The missing cells' own time, at the pace at which the finished cells' own time passed."""
    tasks, seeds = list(identity.get("problems", {})), identity["seeds"]
    measured_seeds = seeds[: identity.get("measured_seeds")]

    def kind(task: str | None, algorithm: str, seed: int) -> tuple[str | None, str, bool]:
        """What takes equally long. Where S is drawn apart from the seeds, every cell is measured."""
        return (task if len(tasks) > 1 else None), algorithm, "samples" in identity or seed in measured_seeds

    drawn = len(identity.get("samples", [0]))
    algorithms = [short(one) for one in identity["algorithms"]]
    pace = Pace(kind(task, mine, seed) for mine in algorithms for task in tasks or [None] for seed in seeds for _ in range(drawn))
    for task, mine, seed, status, own in table[["task", "algorithm", "seed", "status", "own"]].itertuples(index=False):
        pace.finished(kind(task, mine, seed), None if status != CellStatus.OK or np.isnan(own) else own)
    work = pace.seconds_left()
    passed = [seconds for _, seconds in timed[1:] if not np.isnan(seconds)]
    return np.nan if work is None else work * (busy / sum(passed) if sum(passed) > 0 and busy > 0 else 1.0)
