"""Run a study: claim its cells, have them computed, write what comes back."""

from __future__ import annotations

import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

from stability.checks import check_workers
from stability.errors import StabilityError, UsageError
from stability.machine import cores
from stability.studies.cell import Expected, Work, failed
from stability.studies.identity import as_json, difference, key
from stability.studies.ledger import Answer, Heartbeat, Ledger, Row, Wanted, Watch, Worker
from stability.studies.pace import Pace, Progress
from stability.studies.results import CellStatus, Failure, StudyResults
from stability.studies.store import Store
from stability.studies.study import Study, cell_identity
from stability.workers.asked import devices, local
from stability.workers.cluster import RayProcesses
from stability.workers.pools import TRIES, InProcess, Lost, Pool, only_here

__all__ = ["reusable", "run"]

_POLL = 1.0  # seconds between the first two looks at what other workers do
_SELDOM = 30.0  # seconds between two looks at most: half of what a worker may give no sign of life, so that its death is seen
_AHEAD = 64  # cells that are looked at in one transaction


def run(
    study: Study,
    store: str | PathLike[str],
    *,
    reuse: str | PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    executor: str = "local",
    address: str | None = None,
    wait: bool = True,
    on_start: Callable[[Progress], object] = lambda progress: None,
    on_cell: Callable[[Progress], object] = lambda progress: None,
) -> StudyResults:
    """Compute the cells that ``store`` lacks, several at once, and return all results.

    Any number of processes may run the same study on the same store, here or on other machines: each cell is claimed before it is
    computed, and the cells of a process that died are taken over. Each finished cell is written at once. Stopping (Ctrl-C, kill)
    loses only the cells under way; calling again goes on.

    Args:
        study: what to measure.
        store: the SQLite file, made where it is missing; or a folder whose name ends in ``.d``, for network file systems, whose
            locks may not work.
        reuse: the store of another study that measured the same way: its cells that are this study's too are taken over.
        device: ``auto``, ``cpu``, ``cuda`` (all GPUs that are visible) or ``cuda:N``.
        workers: processes of one thread each; by default one for each core on the CPU, one for each GPU on CUDA, and one where a
            selector's function was typed into a notebook, which no other process knows. One worker runs in this process, with
            the threads it has. With Ray, the most cells at once; by default as many as the cluster has CPUs or GPUs. Where at
            least twice as many are asked for as there are cells, the retrainings of each cell are divided among its share of them;
            but not where Ray computes on GPUs.
        executor: ``local``, this machine; or ``ray``, the machines of a cluster (``pip install 'peft-stability[cluster]'``).
        address: of the cluster, ``HOST:PORT``; or ``auto``, the one that runs on this machine. By default the one that
            ``RAY_ADDRESS`` names, and without that variable one of this machine alone, for as long as the study runs.
        wait: whether to wait for cells that other processes are computing, so that all results are returned, and theirs are taken
            over if they die. Without it, this returns when no cell is left to claim.
        on_start: called once before the first cell, with how far the study is.
        on_cell: called after each cell, with the same.

    Returns:
        The finished cells of the store, those of earlier runs and of other processes among them.

    Raises:
        StabilityError: the store holds another study, is damaged, or cannot be written; ``reuse`` measured otherwise; or no
            cluster is at ``address``.
        UsageError: a setting out of range; CUDA asked for and absent; Ray is not installed, or a machine of its cluster has other
            versions than this process.

    Example:
        >>> import tempfile
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit
        >>> study = Study("mine", "digits", (FineTuning(BitFit(), steps=2),), (0,), problem_settings={"n": 20}, check_replicas=None)
        >>> store = f"{tempfile.mkdtemp()}/mine.sqlite"
        >>> results = run(study, store, device="cpu", workers=1)
        >>> bool(results.table["stability"][0] > 0)
        True
    """
    check_workers(workers, executor, address)
    places = devices(device) if executor == "local" else []
    reused = [] if reuse is None else reusable(Store(reuse), study)
    identity = study.identity()
    held = Store(store, identity)
    _check_room(held)
    for one, record in reused:
        held.add(one, record)
    cells = [(cell, cell_identity(study, cell, identity)) for cell in study.cells()]
    data = {cell.problem: mine["data"] for cell, mine in cells}
    attempts = held.ledger.attempts()  # read once: a folder reads a file for each cell
    done = {name for name, (passing, _) in attempts.items() if not passing}
    open_ = [
        Work(study, cell, mine, Expected(data[cell.problem], Expected.code_of(cell)))
        for cell, mine in cells
        if key(mine) not in done
    ]
    pool: Pool[Work] = (
        RayProcesses(device, workers, address, keep=len(study.problems)) if executor == "ray" else _pool(places, workers, open_)
    )
    turn = _Turn(held.ledger, open_, attempts, len(cells), pool=pool, on_cell=on_cell)
    on_start(turn.progress)
    if open_:
        with Heartbeat(held.ledger, Worker(what=pool.what)) as worker, pool:
            held.confirm()
            turn.divided = _shares(pool, places, workers, open_)
            turn.work(worker, wait)
    return StudyResults.read(store)


_ROOM = 2**22
"""Bytes that must be free on the disk of a store: some hundred cells, and what else is written while they are computed."""


def _check_room(store: Store) -> None:
    total, _, free = shutil.disk_usage(store.path.parent)
    if total and free < _ROOM:
        raise StabilityError(
            f"cannot use the store {store.path}: {free / 2**20:.1f} MiB are free on its disk, and a study needs {_ROOM / 2**20:g}; "
            "free some disk space and run again"
        )


def _pool(places: list[str], workers: int | None, open_: list[Work]) -> Pool[Work]:
    here = next((one.cell.algorithm.name for one in open_ if only_here(one.cell.algorithm)), None)
    usual = 1 if here is not None else cores() if places == ["cpu"] else len(places)
    count = min(workers or usual, max(1, len(open_)))
    if count == 1:
        return InProcess(places[0])
    if here is not None:
        raise UsageError(
            f"workers = {workers}: no other process can import selector {here!r}; use workers=1, or move its code into a module"
        )
    return local(places, count)


def _shares(pool: Pool[Work], places: list[str], workers: int | None, open_: list[Work]) -> dict[str, Any]:
    """How the retrainings of each cell are divided, where there are several workers for each."""
    if not places:
        return {"workers": pool.size // len(open_), "executor": "ray"} if pool.nests else {}
    if any(only_here(one.cell.algorithm) for one in open_):
        return {}
    if len(places) > 1:  # with more cells each process has a GPU of its own, and knows of no other
        return {"workers": workers or len(places), "device": "cuda"} if len(open_) == 1 else {}
    return {} if workers is None else {"workers": workers // len(open_)}  # the threads of this process divide them otherwise


class _Looks:
    """When to look at what other workers do: soon at first, and then ever more seldom, for a thousand may wait at one store.

    Attributes:
        left: seconds until the next look.
    """

    def __init__(self) -> None:
        self._last, self._pause = -_SELDOM, _POLL / 2

    @property
    def left(self) -> float:
        return max(0.0, self._last + self._pause - time.monotonic())

    def looked(self) -> None:
        """Take note of a look."""
        self._last, self._pause = time.monotonic(), min(2 * self._pause, _SELDOM)

    def soon(self) -> None:
        """Look soon: this process has room for another cell."""
        self._pause = _POLL


class _Turn:
    """What this process does for a study: it claims cells as long as there are any, and writes what becomes of them.

    Args:
        ledger: where.
        open_: the cells that are not finished yet.
        attempts: what the ledger says of those that were tried.
        total: how many cells the study has.
        pool: computes them.
        on_cell: is told after each.

    Attributes:
        divided: what a cell is told of workers of its own.
        progress: how far the study is.
    """

    def __init__(
        self,
        ledger: Ledger,
        open_: list[Work],
        attempts: Mapping[str, tuple[bool, int]],
        total: int,
        *,
        pool: Pool[Work],
        on_cell: Callable[[Progress], object],
    ) -> None:
        self._ledger, self._pool, self._on_cell = ledger, pool, on_cell
        self._open = {one.key: one for one in open_}
        self._wanted = {name: Wanted(str(one.cell), attempts.get(name, (False, 0))[1]) for name, one in self._open.items()}
        self._queue = deque(self._open)  # cells that were not asked for yet
        self._held: dict[str, str] = {}  # cells of other workers, and who they are
        self._losses: Counter[str] = Counter()
        self._pace = Pace((one.kind for one in open_), pool.size)
        self._watch, self._looks = Watch(), _Looks()
        self.divided: dict[str, Any] = {}
        self.progress = Progress(total - len(open_), total)

    def work(self, worker: Worker, wait: bool) -> None:
        """Until every cell is finished; or, without ``wait``, until none can be claimed."""
        under_way = 0
        while True:
            self._pace.workers = self._pool.size  # that of a cluster changes
            for work in self._claim(worker, max(0, self._pool.size - under_way)):
                self._pool.start(replace(work, **self.divided), 0)
                under_way += 1
            if under_way:
                over, again = [], []
                looks = self._held and under_way < self._pool.size
                try:
                    for work, outcome in self._pool.ended(self._looks.left if looks else None):
                        if self._again(work, outcome):
                            again.append(work)
                        else:
                            over.append((work, outcome))
                finally:  # what is finished is kept, even where something is raised
                    if over:
                        self._finish(over)
                under_way -= len(over)
                if over:
                    self._looks.soon()
                for work in again:
                    self._pool.start(work, self._losses[work.key])
            elif self._held and wait:
                time.sleep(self._looks.left)
            elif not self._queue:
                return

    def _claim(self, worker: Worker, free: int) -> Iterator[Work]:
        """As many cells as can be begun, claimed; in the end those of dead workers too."""
        while free and self._queue:
            names = [self._queue.popleft() for _ in range(min(_AHEAD, len(self._queue)))]
            answer = self._ledger.claim(worker, {name: self._wanted[name] for name in names}, free, set())
            self._queue.extendleft(reversed([name for name in names if not answer.looked_at(name)]))
            self._held |= answer.held
            self._drop(answer.finished)
            free -= len(answer.mine)
            yield from (self._open[name] for name in answer.mine)
        if free and self._held and not self._looks.left:
            self._looks.looked()
            ids = set(self._held.values())
            known = {one.id: one for one in self._ledger.workers(ids)}
            dead = self._watch.dead(known.get(one) or Worker(id=one, machine="") for one in ids)
            holders = {one.key: one.worker for one in self._ledger.claims()}  # most often nothing changed, and nothing is written
            ask = [name for name in self._held if holders.get(name) != self._held[name] or self._held[name] in dead]
            answer = (
                self._ledger.claim(worker, {name: self._wanted[name] for name in ask}, free, dead) if ask else Answer({}, set(), {})
            )
            self._held = {name: one for name, one in self._held.items() if not answer.looked_at(name)} | answer.held
            self._drop(answer.finished)
            for name, tries in answer.mine.items():
                if tries <= TRIES:
                    yield self._open[name]
                else:
                    self._finish([(self._open[name], Lost(f"ended before it had finished, {tries - 1} times one after another"))])

    def _again(self, work: Work, outcome: dict[str, Any] | Lost) -> bool:
        """Whether a cell whose process was lost, or whose memory ran out, is begun once more, with fewer replicas at once."""
        if not isinstance(outcome, Lost) and outcome.get("failure") != Failure.MACHINE:
            return False
        self._losses[work.key] += 1
        return self._losses[work.key] < TRIES

    def _finish(self, ended: list[tuple[Work, dict[str, Any] | Lost]]) -> None:
        """Write what became of cells, all at once."""
        records = [(work, self._record(work, outcome)) for work, outcome in ended]
        self._ledger.add(
            [Row(work.key, as_json(work.identity), as_json(record, sort_keys=False), _passing(record)) for work, record in records]
        )
        for work, record in records:
            bad = record["status"] == CellStatus.FAILED
            del self._open[work.key]
            self._pace.finished(work.kind, None if bad else record["cell_seconds"])
            self._tell(self.progress.failed + bad)

    def _record(self, work: Work, outcome: dict[str, Any] | Lost) -> dict[str, Any]:
        if not isinstance(outcome, Lost):
            return outcome
        times = f", in the last of {self._losses[work.key]} tries" if self._losses[work.key] > 1 else ""
        kind = Failure.MACHINE if outcome.by_memory else Failure.ERROR
        return failed(work.cell, outcome.device, kind, f"the process that measured it {outcome.why}{times}")

    def _drop(self, names: Iterable[str]) -> None:
        """Take note of cells that other workers finished."""
        for name in names:
            work = self._open.pop(name)
            self._pace.finished(work.kind, None)
            self._tell(self.progress.failed)

    def _tell(self, failures: int) -> None:
        self.progress = Progress(self.progress.done + 1, self.progress.total, failures, self._pace.seconds_left())
        self._on_cell(self.progress)


def _passing(record: Mapping[str, Any]) -> bool:
    """Whether a cell is to be tried again."""
    return bool(record.get("failure", Failure.METHOD) != Failure.METHOD)


def reusable(other: Store, study: Study) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The finished cells of another store that belong to a study.

    Args:
        other: the store of a study that measured the same way.
        study: the study that could take its cells over.

    Returns:
        Identity and record of each such cell.

    Raises:
        StabilityError: ``other`` is of an older version; or none of its cells belongs to the study, because it was measured in
            another way: the setting is named.
    """
    other.check_complete("its cells cannot be reused")
    own = study.identity()
    wanted = {key(cell_identity(study, cell, own)) for cell in study.cells()}
    shared = wanted & other.finished()
    found = [(identity, record) for identity, record in other.cells() if key(identity) in shared]
    if not found and other.finished():
        theirs, mine = _comparable(other.identity), _comparable(own)
        for name in {**mine, **theirs}:
            one_has_it = name.startswith("problem ") and not (name in theirs and name in mine)
            if not one_has_it and difference({name: theirs.get(name)}, {name: mine.get(name)}) is not None:
                raise StabilityError(
                    f"{other.path} was measured with {name} = {theirs.get(name)}, this study with {mine.get(name)}: its cells "
                    "cannot be reused"
                )
    return found


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What two studies that share cells have in common, with each of several problems as an entry of its own."""
    free = {"study", "algorithms", "seeds", "samples", "measured_seeds", "removed", "problems"}  # a larger study has more of them
    several = {f"problem {name}": one for name, one in identity.get("problems", {}).items()}
    return {name: one for name, one in identity.items() if name not in free} | several
