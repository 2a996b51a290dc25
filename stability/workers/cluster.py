"""Jobs as tasks of Ray: on all machines of a cluster, or on this one."""

from __future__ import annotations

import os
import pickle
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch

from stability import __version__
from stability.errors import StabilityError, UsageError, one_line
from stability.machine import cores, free_memory, software
from stability.workers import starting
from stability.workers.modules import Source, know, pack, sources_of
from stability.workers.pools import LESS, J, Lost, Place, Pool, Shared

__all__ = ["RayProcesses", "versions"]

_LOOK = 1.0  # seconds between two looks at which machines there are
_ASKING = 120.0  # seconds in which a machine must tell its versions; one that does not is asked again with its first job


class RayProcesses(Pool[J]):
    """Tasks of Ray, each of one CPU and one thread, or of one GPU.

    A machine that joins the cluster while the pool is used computes too, and one that leaves is not waited for. What jobs share,
    such as data and θ⁰ of a problem, is put into Ray's object store once; all take it from there. Modules of the user's own are
    sent along. The tasks end with the process that started them. Where ``ray.init`` was called before, that cluster is used.

    Args:
        device: ``cpu``; ``cuda``, a GPU for each job; or ``auto``, which is ``cuda`` where the cluster has GPUs.
        workers: the most jobs at once; None: as many as the cluster has CPUs or GPUs.
        address: ``HOST:PORT`` of the cluster's head; ``auto``, the cluster that runs on this machine. None: the one that
            ``RAY_ADDRESS`` names, and without that variable one of this machine alone, for as long as the pool is used.
        keep: so many of the latest things that jobs share stay in the object store when no job under way needs them.
    """

    def __init__(self, device: str = "auto", workers: int | None = None, address: str | None = None, *, keep: int = 1) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device = {device}: Ray chooses the GPU of each cell or portion; use cuda, cpu or auto")
        self._device, self._workers, self._keep = device, workers, keep
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._running: dict[Any, tuple[J, int, frozenset[str]]] = {}  # with its losses, and the machines that were left out then
        self._left_out: frozenset[str] = frozenset()  # ids of machines of other versions
        self._placed: dict[Hashable, _Held] = {}  # the latest last
        self._sources: dict[frozenset[str], list[Source]] = {}
        self._shares: dict[str, int] = {}  # of each machine how many jobs it computes at once
        self._looked, self._joined, self._own, self._handler = 0.0, False, False, signal.getsignal(signal.SIGTERM)
        self.what = f"Ray at {self._address}" if self._address else "Ray on this machine"

    @property
    def size(self) -> int:  # type: ignore[override] # it changes
        """How many jobs the machines compute at once that are there now."""
        if not self._joined:
            return self._workers or 1
        if time.monotonic() - self._looked > _LOOK:
            self._look()
        return max(1, min(sum(self._shares.values()), self._workers or sys.maxsize))

    @property
    def nests(self) -> bool:  # type: ignore[override] # it is known when the cluster is
        """Not on GPUs: Ray lends the CPU of a task that waits for its own tasks to those, but not its GPU."""
        return self._device != "cuda"

    def start(self, job: J, losses: int) -> None:
        held = _NOTHING
        if job.shared is not None:
            self.hold(job.shared)
            held = self._placed[job.shared.name]
        packed, modules = pack(job.sent())
        share: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(self._device == "cuda")}
        if self._left_out:
            strategies = import_module("ray.util.scheduling_strategies")
            others = {"ray.io/node-id": strategies.NotIn(*sorted(self._left_out))}
            share["scheduling_strategy"] = strategies.NodeLabelSchedulingStrategy(others)
        # Tasks that fail are tried again by whoever uses this pool, which counts how often, and gives them less memory.
        task = self._ray.remote(max_retries=0, **share)(_compute)
        how = _How(self._device, self._shares, losses, self._workers)
        sources = [*held.sources, *self._sources_of(modules)]
        begun = task.remote(self._versions, sources, packed, held.place, how)
        self._running[begun] = job, losses, self._left_out

    def hold(self, shared: Shared) -> None:
        if shared.name in self._placed:
            return
        try:
            packed, modules = pack(shared.load())
            self._placed[shared.name] = _Held([self._ray.put(packed)], self._sources_of(modules))
        except Exception as error:  # whatever is said by data that cannot be read, or by an object that cannot be pickled
            if shared.needed:
                raise shared.refused(self.size, one_line(error)) from error
            self._placed[shared.name] = _NOTHING  # the job reads it itself, or tells why not

    def _sources_of(self, modules: frozenset[str]) -> list[Source]:
        if modules not in self._sources:
            self._sources[modules] = sources_of(modules)
        return self._sources[modules]

    def ended(self, seconds: float | None) -> Iterator[tuple[J, Any]]:
        until, size = time.monotonic() + (sys.maxsize if seconds is None else seconds), self.size
        done: list[Any] = []
        while not done and (left := until - time.monotonic()) > 0 and self.size <= size:  # else there is room for more
            done = self._done(list(self._running), 1, left)
        if done:
            done = self._done(list(self._running), len(self._running), 0.0)
        others = []
        for task in done:
            job, losses, before = self._running.pop(task)
            outcome = self._outcome(job, task)
            if isinstance(outcome, _Other):
                others.append((job, losses, before, outcome))
                continue
            if not isinstance(outcome, Lost):
                self._release()
            yield job, outcome
        for job, losses, before, other in others:  # last, so that nothing is lost that was computed
            self._leave_out(other, before)
            self.start(job, losses)

    def _done(self, tasks: list[Any], count: int, seconds: float) -> list[Any]:
        """Those tasks that are done as soon as so many are, or after so many seconds, but no later than a look at the machines."""
        with starting.uninterrupted():
            done, _ = self._ray.wait(tasks, num_returns=count, timeout=min(seconds, _LOOK))
        return list(done)

    def _outcome(self, job: J, task: Any) -> Any:
        errors = self._ray.exceptions
        device = self._device
        try:
            found: bytes | _Other = self._ray.get(task)
        except errors.OutOfMemoryError:
            return Lost("was ended by Ray because the memory of its machine ran out", device, by_memory=True)
        except errors.WorkerCrashedError:
            return Lost("was killed, perhaps by the system because memory ran out, or crashed", device)
        except errors.RayTaskError as error:  # what cannot be unpickled there, for one
            return job.failed(device, error.cause)
        except errors.RayError:
            return Lost("was on a machine that left the cluster", device)
        if isinstance(found, _Other):
            return found
        try:
            return pickle.loads(found)
        except Exception as error:  # whatever is said by an object that cannot be unpickled here
            return job.failed(device, error)

    def _release(self) -> None:
        """Keep what jobs under way share, and as much of the latest as is wanted: jobs that share something come one by one."""
        used = {job.shared.name for job, *_ in self._running.values() if job.shared is not None}
        for one in self._placed.keys() - used - set(list(self._placed)[-self._keep :]):
            del self._placed[one]

    def _look(self) -> None:
        """Which machines there are, and how many jobs each computes."""
        kinds = ("CPU", "GPU") if self._device == "cuda" else ("CPU",)
        alive = [one for one in self._ray.nodes() if one["Alive"] and one["NodeID"] not in self._left_out]
        self._shares = {
            one["NodeID"]: count for one in alive if (count := int(min(one["Resources"].get(kind, 0) for kind in kinds)))
        }
        self._looked = time.monotonic()

    def __enter__(self) -> RayProcesses[J]:
        self._ray = starting.imported()
        try:
            if not self._ray.is_initialized():
                self._join()
            self._joined = True
            self._versions = versions()
            if self._device == "auto":
                self._device = "cuda" if self._ray.cluster_resources().get("GPU") else "cpu"
            self._look()
            if not self._shares:
                has = f"no machine of the cluster at {self._address or 'this machine'} has a {self._device.replace('cuda', 'GPU')}"
                raise UsageError(f"device = {self._device}: {has}; use another device, or ray start --num-cpus or --num-gpus")
            self._ask()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _join(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        self._own, self._thread, self._handler = True, ThreadPoolExecutor(1), signal.getsignal(signal.SIGTERM)
        if self._handler is signal.SIG_DFL:  # let the tasks end before this process does
            self._handle(starting.end)
        if self._address is None:
            own = {"num_cpus": self._workers or cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            try:
                with starting.loopback():  # nobody else is to reach it
                    starting.start(partial(self._ray.init, address="local", **own, **quiet), self._thread)
            except Exception as error:  # on a busy machine it gives up after half a minute
                raise StabilityError(f"Ray does not start on this machine: {one_line(error, 400)}") from error
        else:
            starting.check_there(self._address)
            services = import_module("ray._private.services")
            try:
                head = services.canonicalize_bootstrap_address(self._address)  # where Ray looks for it
                with nullcontext() if head in (None, self._address) or starting.listens(head) else starting.loopback():
                    starting.start(partial(self._ray.init, address=self._address, **quiet), self._thread)
            except Exception as error:
                what = f"address = {self._address}: {one_line(error, 400)}"
                raise (UsageError if "ersion mismatch" in what else StabilityError)(what) from error

    def _handle(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)

    def _ask(self) -> None:
        """Check the versions of every machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = self._ray.remote(max_retries=0, num_cpus=0)(_asked())
        tasks = {
            there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(one, soft=False)).remote(): one for one in self._shares
        }
        until, done = time.monotonic() + _ASKING, list[Any]()
        while len(done) < len(tasks) and (left := until - time.monotonic()) > 0:
            done = self._done(list(tasks), len(tasks), left)
        for task in done:
            with suppress(self._ray.exceptions.RayError):  # a machine that has left; or one that will tell with its first job
                machine, found = self._ray.get(task)
                if found != self._versions:
                    other = _Other(machine, found, tasks[task])
                    if not _Task.inside:
                        raise self._refused(other)
                    self._leave_out(other, frozenset())  # it joined while the job was computed to which this pool belongs

    def _leave_out(self, other: _Other, before: frozenset[str]) -> None:
        """Give a machine of other versions no jobs any more; ``before``: those that were left out when it got the last."""
        possible = other.node != "" and other.node not in before
        if possible and other.node not in self._left_out:
            self._left_out |= {other.node}
            self._look()
            if self._shares:
                print(f"note: {self._differs(other)}; until then it computes nothing", file=sys.stderr)
        if not possible or not self._shares:
            raise self._refused(other)

    def _refused(self, other: _Other) -> UsageError:
        return UsageError(f"{self._differs(other)}, or take that machine out of the cluster")

    def _differs(self, other: _Other) -> str:
        names = [name for name in {**self._versions, **other.versions} if self._versions.get(name) != other.versions.get(name)]
        here, there = (
            ", ".join(f"{name} {one.get(name, 'unknown')}" for name in names) for one in (self._versions, other.versions)
        )
        who = f"{other.machine} of the cluster has {there}, and this process has {here}"
        return f"{who}: numbers may differ; install the same versions there"

    def __exit__(self, *error: object) -> None:
        for task in self._running:
            with suppress(Exception):  # whatever Ray says of a task that has just ended
                self._ray.cancel(task, force=True)
        self._running.clear()
        self._placed.clear()
        self._joined = False
        if self._own:
            self._own = False
            try:
                self._ray.shutdown()
            finally:
                self._thread.shutdown()
                self._handle(self._handler)


class _How(NamedTuple):
    """How a job is computed.

    Attributes:
        device: where.
        shares: of each machine, by its id in Ray, how many jobs it computes at once.
        losses: how many processes that computed it were lost.
        most: the most jobs at once on all machines; None: no more than there is room for.
    """

    device: str
    shares: Mapping[str, int]
    losses: int
    most: int | None = None


class _Held(NamedTuple):
    """Something that jobs share.

    Attributes:
        place: where it is in the object store, in a list so that Ray does not replace it; empty where it could not be sent.
        sources: the modules without which it cannot be unpacked.
    """

    place: list[Any]
    sources: Sequence[Source]


_NOTHING = _Held([], ())


class _Other(NamedTuple):
    """That a machine has other versions.

    Attributes:
        machine: its name.
        versions: those that it has.
        node: its id in Ray; empty where it is not told.
    """

    machine: str
    versions: Mapping[str, str]
    node: str = ""


def versions() -> dict[str, str]:
    """What must be the same on all machines: the versions of Python, of this package, and of those that change numbers.

    Example:
        >>> list(versions())[:3]
        ['python', 'stability', 'torch']
    """
    minor = ".".join(platform.python_version_tuple()[:2])
    others = dict(one.split(" ", 1) for one in software().split(", "))
    return {"python": minor, "stability": __version__, **others}


def _asked() -> Callable[[], tuple[str, dict[str, str]]]:
    """What tells the name and the versions of a machine. An inner function is sent as it stands, even to where we are missing."""

    def asked() -> tuple[str, dict[str, str]]:
        import platform

        try:
            from stability.workers.cluster import versions
        except ImportError as error:
            return platform.node(), {"stability": f"not installed, or of another version ({error})"}
        return platform.node(), versions()

    return asked


class _Task:
    """Whether this process computes jobs that another gave it."""

    inside = False


def _compute(wanted: Mapping[str, str], sources: Sequence[Source], packed: bytes, held: Sequence[Any], how: _How) -> bytes | _Other:
    """What came of a job, packed, in a task; or that this machine has other versions than are wanted."""
    ray, _Task.inside = starting.imported(), True
    if (found := versions()) != wanted:
        return _Other(platform.node(), found, ray.get_runtime_context().get_node_id())
    torch.set_num_threads(1)
    for source in sources:
        know(source)
    job = pickle.loads(packed)
    sharing = 1 if how.device == "cuda" else how.shares.get(ray.get_runtime_context().get_node_id(), cores())
    budget = free_memory(torch.device(how.device)) // (2 * sharing * LESS**how.losses)
    shared = pickle.loads(ray.get(held[0])) if held else None
    place = Place(how.device, budget, how.losses, min(sharing, how.most or sharing))
    return pickle.dumps(job.compute(place, shared), pickle.HIGHEST_PROTOCOL)
