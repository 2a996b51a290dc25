"""The retrainings of one measurement, divided among workers: what comes out is what one process finds, whatever is lost."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from stability import FineTuning, MachineError, Problem, StabilityEstimate, UsageError, measure
from stability.leave_one_out.dividing import Portion, _less, portions
from stability.leave_one_out.estimators import Assisted, Estimator, Exact, Sampled
from stability.leave_one_out.retraining import Memory
from stability.masks import Mask
from stability.perturbations import FlipLabel, LeaveGroupOut
from stability.selectors import SAM, BitFit, DiffPruning, LoRA, Selector, from_scores
from stability.training import EarlyStopping, Minimisation
from stability.workers import asked
from stability.workers.pools import InProcess, LocalProcesses, Lost, Place
from tests import simulated_device


class Kept(LocalProcesses[Portion]):
    """Two workers for all tests of this file: each takes seconds to start."""

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture(scope="module")
def pool() -> Iterator[Kept]:
    made = Kept(["cpu", "cpu"])
    yield made
    LocalProcesses.__exit__(made)


@pytest.fixture
def divided(pool: Kept, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StabilityEstimate]:
    """Measure with these two."""
    monkeypatch.setattr(asked, "pool", lambda *what: pool)

    def measured(*what: Any, **how: Any) -> StabilityEstimate:
        assert not pool._running
        return measure(*what, device="cpu", workers=2, **how)

    return measured


def same(found: StabilityEstimate, wanted: StabilityEstimate) -> None:
    """Bit for bit: whatever has no time in it."""
    assert len(found.per_example) == found.retrainings > 1
    pd.testing.assert_frame_equal(found.per_example, wanted.per_example, check_exact=True)
    pd.testing.assert_frame_equal(found.examples(), wanted.examples(), check_exact=True)
    assert torch.equal(found.replicas.values, wanted.replicas.values)
    assert torch.equal(found.replicas.batch_losses, wanted.replicas.batch_losses)
    assert all(one.equals(other) for one, other in zip(found.replicas.masks, wanted.replicas.masks, strict=True))
    own = dataclasses.asdict(wanted.pointwise)
    assert dataclasses.asdict(found.pointwise) == own
    names = ("hypothesis", "distance", "maximum", "noise_floor", "estimator", "status", "reason", "failed", "k", "notes")
    for name in names:
        assert getattr(found, name) == getattr(wanted, name), name


@pytest.mark.parametrize("estimator", [Exact(), Sampled(7), None, Assisted(tolerance=0.4)])
def test_the_bits_are_those_of_one_process(
    estimator: Estimator | None, digits: Problem, divided: Callable[..., StabilityEstimate]
) -> None:
    """The CPU computes a replica alike beside however many others. The fourth asks for retrainings in several rounds."""
    algorithm = FineTuning(LoRA(rank=2), steps=3, batch_size=8)
    told: list[int] = []
    found = divided(digits, algorithm, estimator, test_examples=5, progress=told.append)
    wanted = measure(digits, algorithm, estimator, test_examples=5, device="cpu")
    same(found, wanted)
    assert sum(told) == 3 * (found.retrainings + 2)  # A(S) is trained twice
    assert found.threads == 1
    assert 0 < found.retraining_seconds < found.seconds


@pytest.mark.parametrize(
    "what", ["masks of each", "moving masks", "a minimisation", "groups", "other labels", "texts", "early stopping"]
)
def test_whatever_is_measured_is_the_same_up_to_rounding(
    what: str, digits: Problem, pairs: Problem, divided: Callable[..., StabilityEstimate]
) -> None:
    algorithm: Any = FineTuning(SAM(0.05), steps=3, batch_size=8)
    problem, estimator, how = digits, Sampled(5), dict[str, Any]()
    if what == "moving masks":
        algorithm = FineTuning(DiffPruning(0.05, burn_in=2), steps=3, batch_size=8)
    elif what == "a minimisation":
        algorithm = Minimisation(BitFit(), ridge=0.1, gradient_tolerance=0.1)
    elif what == "groups":
        how, estimator = {"perturbation": LeaveGroupOut([i % 4 for i in range(digits.n)])}, Sampled(4)
    elif what == "other labels":
        how = {"perturbation": FlipLabel()}
    elif what == "texts":
        problem = pairs
    elif what == "early stopping":
        algorithm = FineTuning(BitFit(), steps=3, batch_size=8, early_stopping=EarlyStopping(1, patience=1, least_steps=1))
        problem = dataclasses.replace(digits, validation=digits.test)
    found, wanted = divided(problem, algorithm, estimator, **how), measure(problem, algorithm, estimator, device="cpu", **how)
    pd.testing.assert_frame_equal(found.per_example, wanted.per_example, rtol=1e-4, atol=1e-6)
    assert len(found.per_example) == wanted.retrainings == found.retrainings > 3
    assert [mask.count for mask in found.replicas.masks] == [mask.count for mask in wanted.replicas.masks]
    assert found.value == pytest.approx(wanted.value, rel=1e-3)
    assert found.noise_floor == pytest.approx(wanted.noise_floor, rel=0.5)
    assert found.notes == wanted.notes


class Trouble(Selector):
    """All is well, but when a worker selects without some examples: so many times it comes to an end in one ``way``."""

    name, uses_data = "trouble", True

    def __init__(self, way: str, folder: Path, times: int) -> None:
        self.way, self.folder, self.times = way, folder, times

    def select(self, problem: Problem, seed: int) -> Mask:
        if multiprocessing.parent_process() is not None and 23 not in problem.train.labels.shape:
            return BitFit().select(problem, seed)
        if multiprocessing.parent_process() is not None:
            for time in range(self.times):
                try:
                    (self.folder / str(time)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                self.trouble()
        return BitFit().select(problem, seed)

    def trouble(self) -> None:
        if self.way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.way == "memory":
            raise MemoryError("of this machine")
        raise KeyError("layer")


@pytest.mark.parametrize(("way", "times"), [("killed", 1), ("memory", 2)])
def test_a_portion_whose_worker_is_lost_is_tried_again(
    way: str, times: int, digits: Problem, tmp_path: Path, divided: Callable[..., StabilityEstimate]
) -> None:
    algorithm = FineTuning(Trouble(way, tmp_path, times), steps=3, batch_size=8)
    same(divided(digits, algorithm, Sampled(6)), measure(digits, algorithm, Sampled(6), device="cpu"))
    assert len(list(tmp_path.iterdir())) == times


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has one kind of device besides the CPU at a time")
def test_workers_may_compute_on_a_device_that_this_process_lacks(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of theirs comes back on their device; a selector that uses data selects there."""
    monkeypatch.setattr(asked, "pool", lambda *what: InProcess[Portion](simulated_device.NAME))
    algorithm = FineTuning(SAM(0.05), steps=2, batch_size=8)
    found = measure(digits, algorithm, Sampled(3), device="cpu", workers=2)
    assert {tensor.device.type for tensor in vars(found.replicas).values() if isinstance(tensor, torch.Tensor)} == {"cpu"}
    same(found, measure(digits, algorithm, Sampled(3), device="cpu"))


def test_each_loss_leaves_less_memory() -> None:
    memory = Memory(replica_batch=8, budget=4000)
    assert _less(memory, Place("cpu", 10_000, 0)) == memory
    assert _less(memory, Place("cpu", 500, 1)) == Memory(2, 500)
    assert _less(memory, Place("cpu", 500, 2)) == Memory(1, 250)
    assert _less(Memory(), Place("cpu", None, 1)) == Memory()


def test_workers_share_the_memory_that_was_asked_for() -> None:
    memory = Memory(replica_batch=8, budget=4000)
    assert _less(memory, Place("cpu", 10_000, sharing=4)) == Memory(8, 1000)
    assert _less(memory, Place("cpu", 10_000, losses=1, sharing=4)) == Memory(2, 250)
    assert _less(Memory(), Place("cpu", 500, sharing=4)) == Memory(None, 500)


class Losing(InProcess[Portion]):
    """Whatever is begun is lost."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.begun: list[tuple[int, int]] = []

    def start(self, job: Portion, losses: int) -> None:
        self.begun.append((int(job.left_out[0]), losses))
        super().start(job, losses)

    def ended(self, seconds: float | None) -> Iterator[tuple[Portion, Any]]:
        yield self._next.pop()[0], Lost.by(-signal.SIGKILL)


def test_after_three_losses_it_is_said_what_was_lost(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Losing()
    monkeypatch.setattr(asked, "pool", lambda *what: pool)
    why = "was killed, most likely by the system because memory ran out, in the last of 3 tries: use fewer workers"
    with pytest.raises(MachineError, match=f"the process that retrained without example 0 and 23 others {why}"):
        measure(digits, FineTuning(BitFit(), steps=2), Exact(), device="cpu", workers=2)
    assert pool.begun == [(0, 0), (0, 1), (0, 2)]


def test_what_a_worker_raises_is_raised(digits: Problem, tmp_path: Path, divided: Callable[..., StabilityEstimate]) -> None:
    with pytest.raises(
        UsageError, match=r"selector 'trouble' raised KeyError: 'layer' \(.*test_dividing.py, line \d+, in trouble\)"
    ):
        divided(digits, FineTuning(Trouble("error", tmp_path, 9), steps=2), Sampled(3))


def test_what_cannot_be_sent_is_told_before_anything_is_trained(digits: Problem) -> None:
    told: list[int] = []
    lock = threading.Lock()

    def scores(problem: Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
        with lock:
            return {name: tensor.abs() for name, tensor in problem.pretrained.items()}

    own = from_scores(scores, 0.05)
    with pytest.raises(UsageError, match="workers = 2: the problem or the algorithm cannot go to another process .*lock"):
        measure(digits, FineTuning(own, steps=2), device="cpu", workers=2, progress=told.append)
    assert not told
    assert measure(digits, FineTuning(own, steps=2), Sampled(2), device="cpu", workers=1).retrainings == 2


def test_an_interruption_ends_the_workers(digits: Problem) -> None:
    before = set(multiprocessing.active_children())
    seen: list[set[Any]] = []

    def interrupted(count: int) -> None:
        seen.append(set(multiprocessing.active_children()) - before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(digits, FineTuning(BitFit(), steps=2), Exact(), device="cpu", workers=2, progress=interrupted)
    assert len(seen[0]) == 2
    assert set(multiprocessing.active_children()) == before


def test_portions_are_of_one_size_and_not_too_large() -> None:
    for count in (1, 2, 3, 20, 128, 129, 1000):
        for along in (False, True):
            for workers in (1, 2, 7):
                found = portions(torch.arange(count), along, workers)
                assert torch.equal(torch.cat(found), torch.arange(count))
                rows = [len(some) + (along and not place) for place, some in enumerate(found)]
                assert min(len(some) for some in found) > 0
                assert max(rows) - min(rows) <= 1
                assert max(rows) <= 128
                assert len(found) >= min(workers, count)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"workers": 0}, "workers = 0"),
        ({"executor": "slurm"}, "executor = 'slurm': use 'local' or 'ray'"),
        ({"address": "head:6379"}, "address = head:6379 belongs to executor 'ray'"),
        ({"executor": "ray", "device": "cuda:1"}, "device = cuda:1: Ray chooses the GPU"),
    ],
)
def test_senseless_requests_are_refused(how: dict[str, Any], message: str, digits: Problem) -> None:
    with pytest.raises(UsageError, match=message):
        measure(digits, FineTuning(BitFit(), steps=2), **how)
