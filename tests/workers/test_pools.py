"""What computes jobs, nearly all without starting a process: those take seconds."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stability.errors import StabilityError, UsageError
from stability.selectors import BitFit
from stability.studies import cell, running
from stability.studies.cell import Expected, Work
from stability.studies.running import run
from stability.studies.store import Store
from stability.workers import cluster, starting
from stability.workers.pools import InProcess, Job, LocalProcesses, Lost, Place, _Deaf
from tests.studies.test_trust import quick


class Named(Job):
    """It is told apart by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def compute(self, place: Place, shared: Any) -> str:
        return self.name

    def failed(self, device: str, error: BaseException) -> str:
        return str(error)


def over(outcome: bytes | None) -> Future[bytes]:
    """A future that has ended; with None its process is gone."""
    made: Future[bytes] = Future()
    if outcome is None:
        made.set_exception(BrokenProcessPool())
    else:
        made.set_result(outcome)
    return made


@pytest.mark.parametrize("place", range(3))
def test_a_process_that_ends_at_once_costs_nothing_that_ended_with_it(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = LocalProcesses[Named](["cpu"] * 3)
    for name in "abc":
        process = pool._idle.popleft()
        monkeypatch.setattr(process, "replace", lambda: 1)
        pool._running[over(None if "abc"[place] == name else pickle.dumps(name))] = Named(name), process
    found = {job.name: outcome for job, outcome in pool.ended(0)}
    assert {name: found[name] for name in "abc" if name != "abc"[place]} == {name: name for name in "abc" if name != "abc"[place]}
    assert found["abc"[place]] == Lost("ended itself with exit code 1")
    monkeypatch.setattr(pool, "_ever", False)
    process = pool._idle.popleft()
    monkeypatch.setattr(process, "replace", lambda: 1)
    pool._running[over(None)] = Named("d"), process
    with pytest.raises(StabilityError, match="ended at once, with exit code 1"):
        list(pool.ended(0))


def test_a_machine_of_other_versions_that_joins_later_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the others have finished comes first; its job is begun elsewhere, with no loss; and it is told once."""
    odd = cluster._Other("far", {"torch": "1.0"}, "odd")
    outcomes = {"a": odd, "b": pickle.dumps("b"), "c": odd}
    nothing = type("Nothing", (Exception,), {})
    names = ("OutOfMemoryError", "WorkerCrashedError", "RayTaskError", "RayError")
    begun: list[dict[str, Any]] = []

    def remote(**how: Any) -> Callable[[object], Any]:
        begun.append(how)
        return lambda what: SimpleNamespace(remote=lambda *more: f"task {len(begun)}")

    ray = SimpleNamespace(
        wait=lambda tasks, **how: (tasks, []),
        get=outcomes.get,
        exceptions=SimpleNamespace(**dict.fromkeys(names, nothing)),
        nodes=lambda: [{"NodeID": one, "Alive": True, "Resources": {"CPU": 2}} for one in ("odd", "even")],
        remote=remote,
    )
    strategies = SimpleNamespace(NotIn=lambda *those: {"not in": those}, NodeLabelSchedulingStrategy=lambda labels: labels)
    monkeypatch.setattr(cluster, "import_module", lambda name: strategies)
    monkeypatch.setattr(cluster, "pack", lambda what: (b"", frozenset()))
    pool = cluster.RayProcesses[Named]("cpu")
    monkeypatch.setattr(pool, "_ray", ray, raising=False)
    monkeypatch.setattr(pool, "_versions", {"torch": "2.0"}, raising=False)
    pool._joined = True
    assert pool.size == 4
    pool._running = {name: (Named(name), losses, frozenset()) for losses, name in enumerate(outcomes)}
    assert [outcome for _, outcome in pool.ended(0.01)] == ["b"]
    again = [(job.name, losses, sorted(before)) for job, losses, before in pool._running.values()]
    assert again == [("a", 0, ["odd"]), ("c", 2, ["odd"])]
    assert [how["scheduling_strategy"] for how in begun] == [{"ray.io/node-id": {"not in": ("odd",)}}] * 2
    assert pool.size == 2
    said = "note: far of the cluster has torch 1.0, and this process has torch 2.0: numbers may differ; install the same versions "
    assert capsys.readouterr().err == f"{said}there; until then it computes nothing\n"
    outcomes["task 1"] = odd  # Ray does not leave it out
    with pytest.raises(UsageError, match=r"this process has torch 2\.0: .*, or take that machine out of the cluster"):
        list(pool.ended(0.01))


def test_a_cluster_of_other_versions_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose version does not tell which machine it is."""
    pool = cluster.RayProcesses[Named]("cpu")
    monkeypatch.setattr(pool, "_ray", SimpleNamespace(nodes=list), raising=False)
    monkeypatch.setattr(pool, "_versions", {"torch": "2.0"}, raising=False)
    for node in ("odd", ""):
        with pytest.raises(UsageError, match=r"far of the cluster has torch 1\.0"):
            pool._leave_out(cluster._Other("far", {"torch": "1.0"}, node), frozenset())


def test_a_study_keeps_what_was_finished_before_its_workers_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(InProcess[Any]):
        def ended(self, seconds: float | None) -> Iterator[tuple[Any, Any]]:
            yield from super().ended(seconds)
            raise StabilityError("no more")

    monkeypatch.setattr(running, "_pool", lambda *what: Failing("cpu"))
    store = tmp_path / "mine.sqlite"
    with pytest.raises(StabilityError, match="no more"):
        run(quick(BitFit(), seeds=(0, 1)), store, device="cpu")
    assert len(Store(store).records()) == 1
    assert Store(store).ledger.workers() == []


@pytest.mark.parametrize(("device", "divided"), [("cpu", {"workers": 4, "executor": "ray"}), ("cuda", {})])
def test_on_the_gpus_of_a_cluster_no_cell_waits_for_another_gpu(device: str, divided: dict[str, Any]) -> None:
    """Ray would keep the GPU of the cell while its portions wait for one."""
    assert running._shares(cluster.RayProcesses(device, workers=8), [], 8, [None, None]) == divided  # type: ignore[list-item]


def test_a_worker_is_told_how_many_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, places = LocalProcesses[Named](["cpu"] * 2), list[Place]()

    def submit(job: bytes, place: Place, held: object) -> object:
        places.append(pickle.loads(pickle.dumps(place)))  # as it is sent
        return object()

    for process in pool._idle:
        monkeypatch.setattr(process, "submit", submit)
    for losses in range(2):
        pool.start(Named("a"), losses)
    assert [(place.sharing, place.losses) for place in places] == [(2, 0), (2, 1)]


def test_a_divided_cell_has_the_memory_of_all_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cluster, whose place is that of one CPU; a process of this machine has memory for its whole cell."""
    given: list[int | None] = []
    monkeypatch.setattr(cell, "run_cell", lambda study, cell, device, budget, expected, **how: given.append(budget))
    mine = quick(BitFit())
    for executor in ("local", "ray"):
        for workers, sharing in ((1, 8), (4, 8), (4, 2)):
            work = Work(mine, mine.cells()[0], {}, Expected("", (None, None)), workers=workers, executor=executor)
            work.compute(Place("cpu", 100, 0, sharing), None)
    assert given == [100, 100, 100, 100, 400, 200]


@pytest.mark.parametrize(
    ("code", "why"), [(0, "ended itself with exit code 0"), (3, "ended itself with exit code 3"), (-15, "was ended by SIGTERM")]
)
def test_how_a_process_ended_is_told(code: int, why: str) -> None:
    (process,) = LocalProcesses[Named](["cpu"])._idle
    process._started.append(SimpleNamespace(exitcode=code))  # type: ignore[arg-type]
    assert process.replace() == code
    assert Lost.by(code).why == why


def test_a_process_is_deaf_to_ctrl_c_from_the_beginning() -> None:
    """A terminal tells all processes of a command, those too that are just starting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    made = _Deaf(target=signal.raise_signal, args=(signal.SIGINT,))
    made.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    made.join()
    assert made.exitcode == 0


def test_a_signal_within_a_call_of_ray_is_answered_after_it() -> None:
    told: list[str] = []

    def stop(*_: object) -> None:
        told.append("signal")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), starting.uninterrupted():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            told.append("end of the call")
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == ["end of the call", "signal"]


def test_a_signal_while_ray_starts_is_answered_when_it_has_started() -> None:
    """Ray sets a handler of its own, in C, which here takes no note of the signal."""
    told: list[str] = []
    number = ctypes.c_int(signal.SIGTERM)

    def stop(*_: object) -> None:
        told.append("signal")
        raise KeyboardInterrupt

    def starts(error: Exception | None = None) -> None:
        ctypes.CDLL(None).signal(number, ctypes.c_void_p(int(signal.SIG_IGN)))
        time.sleep(10 * starting._AGAIN)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10 * starting._AGAIN)
        told.append("started")
        if error is not None:  # as where the signal has ended what Ray was starting
            raise error

    before = signal.signal(signal.SIGTERM, stop)
    with ThreadPoolExecutor(1) as thread:
        try:
            for start in (starts, partial(starts, OSError("no cluster"))):
                with pytest.raises(KeyboardInterrupt):
                    starting.start(start, thread)
                assert signal.getsignal(signal.SIGTERM) is stop
        finally:
            signal.signal(signal.SIGTERM, before)
        assert told == 2 * ["started", "signal"]
        with pytest.raises(OSError, match="no cluster"):
            starting.start(lambda: os.stat("no cluster"), thread)


def test_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**how: Any) -> None:
        raise RuntimeError("the node timed out")

    ended: list[str] = []
    ray = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: ended.append("shutdown"))
    monkeypatch.setattr(starting, "imported", lambda: ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(StabilityError, match="Ray does not start .*: the node timed out"),
        cluster.RayProcesses[Any]("cpu"),
    ):
        pass
    assert ended == ["shutdown"]
