"""Cells as tasks of Ray, on a real cluster of two nodes on this machine: the results are those of a plain run, whatever is lost."""

from __future__ import annotations

import importlib
import os
import pickle
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from stability import FineTuning, Problem, StabilityError, UsageError, measure
from stability.cli.commands import main
from stability.leave_one_out.estimators import Sampled
from stability.masks import Mask
from stability.problems import load
from stability.selectors import BitFit, Random, Selector, from_scores
from stability.selectors.naming import LOCAL, selector_named
from stability.studies.cell import Work
from stability.studies.running import run
from stability.studies.store import Store
from stability.workers import cluster, modules, starting
from tests.studies.test_trust import quick

pytest.importorskip("ray")
pytestmark = pytest.mark.xdist_group("ray")  # one cluster at a time


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of one CPU each, which only this machine reaches."""
    starting.imported()
    from ray.cluster_utils import Cluster

    with starting.loopback():
        node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
        made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        made.add_node(**node)
    yield made
    made.shutdown()


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Row for row, but for times and for the order in which cells were finished."""
    told = ["method", "seed", "status", "stability", "test_loss", "tunable", "retrainings", "threads", "device", "software"]
    first, second = (table.sort_values(["method", "seed"])[told].reset_index(drop=True) for table in (one, other))
    assert len(first) > 0
    pd.testing.assert_frame_equal(first, second, rtol=1e-5)


MINE = """
from beside import chosen
from stability.selectors import Selector


class Mine(Selector):
    name, uses_data = "mine", True

    def select(self, problem, seed):
        return chosen().select(problem, seed)
"""
BESIDE = """
from stability.problems import load
from stability.selectors import BitFit


def chosen():
    return BitFit()
"""


def test_a_cluster_gives_what_one_process_gives(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A module of the user's own, and what lies beside it, are sent along; nothing is said that is not ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "for_cluster.py").write_text(MINE)
    (tmp_path / "beside.py").write_text(BESIDE)
    sources = modules.sources_of

    def sent(modules: Iterable[str]) -> list[modules.Source]:
        found = sources(modules)
        if found:
            (tmp_path / "for_cluster.py").unlink()  # no task finds it where the driver did
            (tmp_path / "beside.py").write_text("# of another version")
        return found

    monkeypatch.setattr(cluster, "sources_of", sent)
    try:
        mine = quick(BitFit(), Random(0.1), selector_named("for_cluster:Mine"), seeds=(0, 1, 2))
        plain = run(mine, tmp_path / "plain.sqlite", device="cpu", workers=1)
        found = run(mine, tmp_path / "ray.sqlite", device="cpu", executor="ray", address=nodes.address)
    finally:
        LOCAL.pop("for_cluster", None)
        for name in ("for_cluster", "beside"):
            sys.modules.pop(name, None)
    same(found.table, plain.table)
    assert capfd.readouterr() == ("", "")


def test_one_measurement_is_divided_among_its_machines(nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Alone, and as the only cell of a study, which is a task that asks for more tasks; with a function that stands in another."""
    problem = load("digits", n=12)
    own = from_scores(lambda problem, generator: {name: tensor.abs() for name, tensor in problem.pretrained.items()}, 0.05)
    algorithm = FineTuning(own, steps=3, batch_size=4)
    plain = measure(problem, algorithm, Sampled(5), device="cpu")
    found = measure(problem, algorithm, Sampled(5), device="cpu", executor="ray", address=nodes.address)
    pd.testing.assert_frame_equal(found.per_example, plain.per_example, rtol=1e-4, atol=1e-6)
    assert (found.threads, found.retrainings) == (1, 5)
    assert found.noise_floor == pytest.approx(plain.noise_floor, rel=0.5)
    mine = quick(BitFit())
    results = run(mine, tmp_path / "ray.sqlite", device="cpu", executor="ray", address=nodes.address)
    same(results.table, run(mine, tmp_path / "plain.sqlite", device="cpu", workers=1).table)
    assert capfd.readouterr() == ("", "")


class Unlucky(Selector):
    """On one node it waits until that is killed; elsewhere it kills its worker, once."""

    name, uses_data = "unlucky", True

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def select(self, problem: Problem, seed: int) -> Mask:
        ray, folder = importlib.import_module("ray"), Path(self.folder)
        if ray.is_initialized():
            if ray.get_runtime_context().get_node_id() == (folder / "node").read_text():
                (folder / "there").touch()
                time.sleep(120)
            with suppress(FileExistsError):
                (folder / "worker").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return BitFit().select(problem, seed)


def test_lost_workers_and_nodes_change_nothing(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker is killed, a node is killed while it computes a cell, another joins: the cells are begun again elsewhere."""
    lost, losses, sizes = sorted(nodes.worker_nodes, key=id)[0], list[int](), set[int]()
    (tmp_path / "node").write_text(lost.node_id)
    start, look = cluster.RayProcesses.start, cluster.RayProcesses._look

    def started(pool: cluster.RayProcesses[Work], work: Work, count: int) -> None:
        losses.append(count)
        start(pool, work, count)

    def looked(pool: cluster.RayProcesses[Work]) -> None:
        look(pool)
        sizes.add(pool.size)

    def kill() -> None:
        while not (tmp_path / "there").exists():
            time.sleep(0.05)
        nodes.remove_node(lost, allow_graceful=False)

    monkeypatch.setattr(cluster.RayProcesses, "start", started)
    monkeypatch.setattr(cluster.RayProcesses, "_look", looked)
    thread = threading.Thread(target=kill, daemon=True)
    mine = quick(BitFit(), Unlucky(str(tmp_path)), seeds=(0, 1))
    found = run(
        mine,
        tmp_path / "ray.sqlite",
        device="cpu",
        executor="ray",
        address=nodes.address,
        on_start=lambda progress: thread.start(),
    )
    thread.join(30)
    same(found.table, run(mine, tmp_path / "plain.sqlite", device="cpu", workers=1).table)
    assert (len(losses), losses.count(0)) == (6, 4)
    assert (tmp_path / "worker").exists()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(cluster.RayProcesses, "_ask", lambda pool: None)
    pool = cluster.RayProcesses[Work]("cpu", address=nodes.address)

    def comes_to(count: int) -> bool:
        for _ in range(300):
            if pool.size == count:
                return True
            time.sleep(0.1)
        return False

    with pool:
        assert comes_to(1)
        with starting.loopback():
            nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=100_000_000)
        assert comes_to(2)
    assert sizes == {1, 2}


@pytest.mark.parametrize("name", ["digits", "pairs", "logistic"])
def test_a_problem_arrives_as_it_was(name: str, request: pytest.FixtureRequest) -> None:
    """Functions of the toolkit's own are in it, and a module of transformers."""
    sent: Problem = load(name, n=12) if name == "logistic" else request.getfixturevalue(name)
    found = pickle.loads(importlib.import_module("ray.cloudpickle").dumps(sent))
    start = sent.start(seed=3)
    assert found.settings == sent.settings
    assert all(torch.equal(tensor, start[name]) for name, tensor in found.start(seed=3).items())
    assert torch.equal(found.losses(start, found.test), sent.losses(start, sent.test))


def test_a_cluster_of_ones_own_listens_on_this_machine_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with cluster.RayProcesses[Work]("cpu", 1) as pool:
        assert pool.size == 1
        own, heard = psutil.Process(), list[str]()
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # some end at any moment
                listening = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
                heard += [one.laddr.ip for one in listening]
    assert len(heard) > 3
    assert {one.removeprefix("::ffff:") for one in heard} == {"127.0.0.1"}
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_versions_are_refused(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a cell is computed, with both versions. A task computes nothing where the versions differ from the driver's."""
    here = cluster.versions()
    monkeypatch.setattr(cluster, "versions", lambda: {**here, "torch": "1.0"})
    monkeypatch.setattr(cluster.RayProcesses, "start", None)  # so that computing would be a TypeError
    store = tmp_path / "mine.sqlite"
    with pytest.raises(
        UsageError, match=rf"cluster has torch {re.escape(here['torch'])}, and this process has torch 1.0: .* install"
    ):
        run(quick(BitFit()), store, device="cpu", executor="ray", address=nodes.address)
    assert Store(store).records() == []
    how = cluster._How("cpu", {}, 0)
    monkeypatch.setattr(cluster._Task, "inside", False)
    where = SimpleNamespace(get_node_id=lambda: "odd")
    monkeypatch.setattr(starting, "imported", lambda: SimpleNamespace(get_runtime_context=lambda: where))
    assert cluster._compute(here, [], b"never read", [], how) == (platform.node(), {**here, "torch": "1.0"}, "odd")


def test_a_place_without_a_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(address: str, device: str = "cpu") -> None:
        run(quick(BitFit()), tmp_path / "mine.sqlite", device=device, executor="ray", address=address)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(starting, "_ANSWER", 3.0)
        with pytest.raises(StabilityError, match=f"no cluster of Ray at 127.0.0.1:{port}: what listens there gives no answer"):
            told(f"127.0.0.1:{port}")
    with pytest.raises(StabilityError, match=f"no cluster of Ray at 127.0.0.1:{port}: .*refused; check the address"):
        told(f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match="address = ray://head:10001: give HOST:PORT"):
        told("ray://head:10001")
    with pytest.raises(UsageError, match="device = cuda:1: Ray chooses the GPU"):
        told("auto", "cuda:1")
    with pytest.raises(UsageError, match="address = head:6379 belongs to executor 'ray'"):
        run(quick(BitFit()), tmp_path / "mine.sqlite", address="head:6379")


def test_what_is_to_be_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code = main(["run", "digits-short", "--store", str(tmp_path / "mine.sqlite"), "--executor", "ray"])
    assert (code, capsys.readouterr().err.splitlines()[-1][-37:]) == (2, "pip install 'peft-stability[cluster]'")


def test_ray_is_imported_by_those_alone_who_ask_for_it() -> None:
    code = "import sys; from stability.cli import commands; from stability.studies import running; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
