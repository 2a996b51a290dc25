"""However replicas are carried out, they are the same replicas."""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stability import FineTuning, MachineError, Minimisation, Problem, StabilityError, UsageError
from stability.derivatives import products
from stability.leave_one_out.estimators import Sampled
from stability.leave_one_out.measuring import measure
from stability.machine import out_of_memory
from stability.masks import Mask
from stability.problems.problem import Examples
from stability.selectors import SAM, BitFit, ChildPruning, FullTuning, LoRA, LotteryTicket, Random, Selector
from stability.training import execution
from stability.training.adamw import AdamW
from stability.training.execution import Division, departures, divide
from stability.training.objective import Objective, Stack, blocks_of
from stability.training.replicas import train
from tests.reference import ELSEWHERE, SIMULATED, as_double, leaving_out


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads whatever the products' size."""
    monkeypatch.setattr(execution, "_HEAVY", 0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def everyone_left_out(n: int) -> Tensor:
    return torch.ones(n, n).fill_diagonal_(0)


@pytest.mark.parametrize("algorithm", [FineTuning(Random(0.05), steps=6, batch_size=8), FineTuning(ChildPruning(0.1), steps=4)])
@pytest.mark.usefixtures("two_threads")
def test_threads_have_models_of_their_own(algorithm: FineTuning, digits: Problem) -> None:
    """functional_call puts a replica's parameters into the module: shared, threads would train each other's."""
    digits = as_double(digits)
    weights = leaving_out(digits.n, *range(9))
    algorithm = algorithm.with_defaults(digits.training)
    assert divide(digits, algorithm, algorithm.tunable_mask(digits, algorithm.select(digits)), 10).workers == 2
    together = train(digits, algorithm, weights)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = train(digits, algorithm, weights)
    torch.testing.assert_close(together.values, alone.values, rtol=0, atol=1e-7)
    torch.testing.assert_close(together.batch_losses, alone.batch_losses, rtol=0, atol=1e-7)
    assert [mask.count for mask in together.masks] == [mask.count for mask in alone.masks]


@pytest.mark.usefixtures("two_threads")
def test_threads_minimise_too(digits: Problem) -> None:
    algorithm = Minimisation(BitFit(), ridge=0.5, gradient_tolerance=1e-4)
    weights = leaving_out(digits.n, 1, 2, 3)
    together = train(digits, algorithm, weights).values
    torch.set_num_threads(1)
    torch.testing.assert_close(together, train(digits, algorithm, weights).values, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_one_thread_stops_the_others_and_is_told(digits: Problem) -> None:
    """As Ctrl-C does, which reaches the thread that waits."""
    steps: list[int] = []
    others = threading.active_count()

    def progress(count: int) -> None:
        steps.append(count)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(digits, FineTuning(BitFit(), steps=500), leaving_out(digits.n, 1, 2, 3), progress=progress)
    assert len(steps) < 100
    assert torch.get_num_threads() == 2
    assert threading.active_count() == others


def test_a_model_that_is_a_function_is_run_by_one_thread(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what it shares."""
    monkeypatch.setattr(execution, "_HEAVY", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    algorithm = FineTuning(BitFit(), steps=1, batch_size=20)
    tunable = algorithm.tunable_mask(digits, algorithm.select(digits))
    bare = dataclasses.replace(digits, logits=lambda parameters, inputs: digits.logits(parameters, inputs))
    assert [divide(p, algorithm, tunable, 8).workers for p in (digits, bare)] == [2, 1]


@pytest.mark.parametrize("with_whole", [True, False], ids=["S itself among them", "Sⁱ alone"])
def test_replicas_that_begin_as_one_are_what_they_are_alone(with_whole: bool, digits: Problem) -> None:
    digits = as_double(digits)
    algorithm = FineTuning(Random(0.05), steps=9, batch_size=8, weight_decay=0.1, ridge=0.05, schedule="linear")
    weights = everyone_left_out(digits.n)
    if with_whole:
        weights = torch.cat([weights[:5], torch.ones(1, digits.n), weights[5:]])
    together = train(digits, algorithm, weights)
    for row in range(len(weights)):
        alone = train(digits, algorithm, weights[row : row + 1])
        torch.testing.assert_close(together.values[row], alone.values[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(together.batch_losses[:, row], alone.batch_losses[:, 0], rtol=0, atol=1e-8)
        assert alone.steps_shared == 0
    # Counted by hand: 24 examples in 3 batches of 8, so that 8 each begin in steps 0, 1 and 2; the trunk takes 2 steps, or all 9.
    assert together.steps_shared == 8 * 0 + 8 * 1 + 8 * 2 - (0 if with_whole else 2)


def test_departures_are_first_appearances(digits: Problem) -> None:
    batches = list(FineTuning(BitFit(), steps=12, batch_size=5).batches(digits.train))
    found = departures(torch.cat([everyone_left_out(digits.n), torch.ones(1, digits.n)]), torch.ones(digits.n), batches)
    for i in range(digits.n):
        assert int(found[i]) == next(step for step, batch in enumerate(batches) if i in batch.tolist())
    assert int(found[-1]) == 12


def test_an_example_that_no_batch_takes_departs_never(digits: Problem) -> None:
    algorithm = FineTuning(BitFit(), steps=1, batch_size=4)
    [batch] = algorithm.batches(digits.train)
    unseen = [i for i in range(digits.n) if i not in batch.tolist()][:3]
    replicas = train(digits, algorithm, leaving_out(digits.n, int(batch[0]), *unseen))
    assert torch.equal(replicas.values[2:], replicas.values[:1].expand(3, -1))
    assert not torch.equal(replicas.values[1], replicas.values[0])


def test_masks_of_their_own_begin_apart(digits: Problem) -> None:
    algorithm = FineTuning(SAM(0.05), steps=4, batch_size=4)
    masks = [algorithm.select(digits), *(algorithm.select(digits.without(i)) for i in (1, 2))]
    assert train(digits, algorithm, leaving_out(digits.n, 1, 2), masks).steps_shared == 0
    assert train(digits, FineTuning(ChildPruning(0.1), steps=4, batch_size=4), leaving_out(digits.n, 1, 2)).steps_shared == 0


def test_a_diverging_trunk_marks_all_that_began_with_it(digits: Problem) -> None:
    algorithm = FineTuning(FullTuning(), steps=6, batch_size=4, learning_rate=1e6)
    alone = train(digits, algorithm).failed_step[0]
    batches = list(algorithm.batches(digits.train))
    late = int(batches[-1][~torch.isin(batches[-1], torch.cat(batches[:-1]))][0])
    replicas = train(digits, algorithm, leaving_out(digits.n, late, int(batches[0][0])))
    assert int(replicas.failed_step[1]) == int(alone) < 5


@pytest.mark.parametrize("selector", [FullTuning(), SAM(0.05), LoRA(2), LotteryTicket(0.05, burn_in=2)], ids=lambda s: s.name)
def test_out_of_memory_halves_what_goes_at_once_and_loses_nothing(
    selector: Selector, digits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = as_double(digits)
    algorithm = FineTuning(selector, steps=5, batch_size=8)
    weights = leaving_out(digits.n, 3, 4, 5, 6, 7, 8)
    wanted = train(digits, algorithm, weights)
    sizes: list[int] = []
    real = Objective._of

    def scarce(self: Objective, values: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(values))
        if len(values) > 2 and len(sizes) > 2:  # memory is enough at first
            rest[-1].fill_(torch.nan)  # part of the gradient was there
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, values, *rest)

    monkeypatch.setattr(Objective, "_of", scarce)
    found = train(digits, algorithm, weights)
    torch.testing.assert_close(found.values, wanted.values, rtol=0, atol=1e-7)
    assert max(sizes[:2]) > 2 >= max(sizes[5:])


def test_one_replica_too_large_is_told_with_the_remedy(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate …")

    monkeypatch.setattr(Objective, "_of", none)
    with pytest.raises(StabilityError, match="one replica alone does not fit: .* are free on cpu, and K = 1093 .* use smaller"):
        train(digits, FineTuning(BitFit(), steps=2))


def test_the_words_of_memory_that_ran_out_are_known() -> None:
    """Torch's, NumPy's and Python's own, from real allocations that no machine can make."""
    for work in (lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50), lambda: bytearray(1 << 60), lambda: [0] * (1 << 58)):
        with pytest.raises((RuntimeError, MemoryError)) as failed:
            work()
        assert out_of_memory(failed.value)
    assert out_of_memory(RuntimeError("std::bad_alloc"))
    assert out_of_memory(RuntimeError("can't start new thread"))
    assert out_of_memory(RuntimeError("could not create a primitive"))
    assert not out_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_a_set_that_does_not_fit_is_halved(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for its optimizer's moments, which no smaller batch of replicas makes smaller."""
    digits = as_double(digits)
    algorithm = FineTuning(FullTuning(), steps=4, batch_size=8)
    weights = leaving_out(digits.n, *range(9))
    wanted = train(digits, algorithm, weights)
    sizes: list[int] = []
    real = AdamW.__init__

    def scarce(self: AdamW, values: Tensor, **settings: Any) -> None:
        sizes.append(len(values))
        if len(values) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate …")
        real(self, values, **settings)

    monkeypatch.setattr(AdamW, "__init__", scarce)
    found = train(digits, algorithm, weights, reverse_batches=False)
    torch.testing.assert_close(found.values, wanted.values, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.batch_losses, wanted.batch_losses, rtol=0, atol=1e-7)
    assert max(sizes) > 3 >= min(sizes)


@pytest.mark.usefixtures("two_threads")
def test_what_threads_have_no_memory_for_is_trained_alone(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = as_double(digits)
    algorithm = FineTuning(BitFit(), steps=4, batch_size=8)
    weights = leaving_out(digits.n, *range(9))
    wanted = train(digits, algorithm, weights)
    real, refused = Objective._of, [0]

    def scarce(self: Objective, values: Tensor, *rest: object) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            refused[0] += 1
            raise MemoryError
        return real(self, values, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "_of", scarce)
    torch.testing.assert_close(train(digits, algorithm, weights).values, wanted.values, rtol=0, atol=1e-7)
    assert refused[0] > 0


def test_evaluation_is_halved_too(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = as_double(digits)
    replicas = train(digits, FineTuning(Random(0.05), steps=2), leaving_out(digits.n, *range(6)))
    logits, own = replicas.logits(digits.test), replicas.own_losses(torch.arange(7))
    real = Stack.__init__

    def scarce(self: Stack, start: Any, tunable: Mask, values: Tensor, *rest: Any) -> None:
        if len(values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, start, tunable, values, *rest)

    monkeypatch.setattr(Stack, "__init__", scarce)
    torch.testing.assert_close(replicas.logits(digits.test), logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(replicas.own_losses(torch.arange(7)), own, rtol=0, atol=1e-9)


def test_values_that_do_not_fit_are_told_with_the_remedy(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tensor.new_empty

    def scarce(self: Tensor, *size: Any, **settings: Any) -> Tensor:
        return real(self, 1 << 50) if size == ((3, 1093),) else real(self, *size, **settings)

    monkeypatch.setattr(Tensor, "new_empty", scarce)
    with pytest.raises(MachineError, match="the trained values of 3 replicas take 0.0 GiB, and .* GiB are free on cpu: leave out"):
        train(digits, FineTuning(BitFit(), steps=1), leaving_out(digits.n, 1, 2))


LIMITED = """
import resource
import numpy as np, psutil, torch
from stability import FineTuning
from stability.problems.solvable import linear_regression
from stability.selectors import FullTuning
from stability.training.replicas import train

torch.set_num_threads(1)
draw = np.random.default_rng(0)
problem = linear_regression(draw.normal(size=(8, 500_000)) / 700, draw.normal(size=8)).problem
algorithm = FineTuning(FullTuning(), steps=3, batch_size=4, learning_rate=0.01, schedule="constant")
weights = torch.ones(32, 8)
weights[torch.arange(32), torch.arange(32) % 8] = 0
wanted = train(problem, algorithm, weights[:8], replica_batch=2)
limit = psutil.Process().memory_info().vms + (600 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = train(problem, algorithm, weights, replica_batch=32)
for row in range(32):
    torch.testing.assert_close(found.values[row], wanted.values[row % 8], rtol=0, atol=1e-8)
torch.testing.assert_close(found.losses(problem.train)[:8], wanted.losses(problem.train), rtol=0, atol=1e-6)
print(found.replica_batch)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit does not hold elsewhere")
def test_replicas_under_a_limit_of_the_system_are_halved_until_they_fit() -> None:
    """Real allocations that fail. One of all 32 rows takes 122 MiB of the 600, so that what torch itself takes still fits."""
    run = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 32


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is told by Linux alone")
def test_a_stated_budget_is_kept() -> None:
    """What is resident beyond the start, in a process of its own: at most the budget, and 32 MiB that no plan knows of."""
    run = [sys.executable, "-m", "tests.training.budgets", str(64 << 20)]
    found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 6
    assert {name: peak for name, peak in found.items() if peak > 64 + 32} == {}
    assert max(found.values()) > 16  # something was measured


@pytest.mark.parametrize("selector", [Random(0.05), ChildPruning(0.1)], ids=lambda s: s.name)
def test_a_step_leaves_nothing_behind(selector: Random | ChildPruning, digits: Problem) -> None:
    """A small tensor kept from each step would hold the heap around it: 500 MiB after 2000 steps of digits."""
    alive: list[int] = []

    def count(_: int) -> None:
        alive.append(sum(type(thing) is Tensor for thing in gc.get_objects()))

    train(digits, FineTuning(selector, steps=12, batch_size=8), leaving_out(digits.n, 1), progress=count)
    assert alive[-1] - alive[4] < 4


def test_other_errors_are_not_taken_for_it(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Objective, "_of", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(digits, FineTuning(BitFit(), steps=2))


def test_blocks_by_length_are_the_batch(pairs: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts in blocks of at most 40 places, and in one: the same losses and values, in double precision."""
    pairs = as_double(pairs)
    algorithm = FineTuning(FullTuning(), steps=5, batch_size=12)
    weights = leaving_out(pairs.n, 0, 1)
    at_once = train(pairs, algorithm, weights)
    real = Examples.blocks
    counts: list[int] = []

    def small(self: Examples, most: int = 256, places: int = 40) -> Iterator[tuple[Tensor, Examples]]:
        blocks = list(real(self, most, 40))
        counts.append(len(blocks))
        return iter(blocks)

    monkeypatch.setattr(Examples, "blocks", small)
    in_blocks = train(pairs, algorithm, weights)
    assert max(counts) > 3
    torch.testing.assert_close(in_blocks.values, at_once.values, rtol=0, atol=1e-7)
    torch.testing.assert_close(in_blocks.batch_losses, at_once.batch_losses, rtol=0, atol=1e-9)


def test_a_step_sees_the_same_dropout_in_every_part(pairs: Problem) -> None:
    """Of replicas that are computed one after the other within a step."""
    algorithm = FineTuning(BitFit(), steps=4, batch_size=8, dropout=True)
    weights = leaving_out(pairs.n, 0, 1, 2)
    at_once, one_by_one = (train(pairs, algorithm, weights, replica_batch=size) for size in (4, 1))
    torch.testing.assert_close(one_by_one.values, at_once.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", *(one for one in ELSEWHERE if one != SIMULATED)])  # test_device.py has that one
@pytest.mark.parametrize("name", ["digits", "pairs"])
def test_reduced_precision_is_near_and_its_noise_is_told(
    name: str, device: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_LARGE_MATRIX", 1)
    problem: Problem = request.getfixturevalue(name)
    algorithm = FineTuning(SAM(0.05), steps=20, batch_size=8)
    exact, reduced = (
        measure(problem, dataclasses.replace(algorithm, precision=how), Sampled(4), device=device, reselect=False)
        for how in ("float32", "bfloat16")
    )
    assert exact.replicas.values.dtype == reduced.replicas.values.dtype == torch.float32
    losses = [found.per_example.set_index("index")["loss_left_out"] for found in (exact, reduced)]
    assert 0 < (losses[0] - losses[1]).abs().max() < 0.15
    assert exact.noise_floor < 1e-4 < reduced.noise_floor


def test_precision_is_part_of_the_algorithm() -> None:
    assert "precision" not in FineTuning(BitFit()).settings()
    assert FineTuning(BitFit(), precision="tf32").settings()["precision"] == "tf32"
    with pytest.raises(UsageError, match="unknown precision 'half': use float32, tf32 or bfloat16"):
        FineTuning(BitFit(), precision="half")  # type: ignore[arg-type]


def test_tf32_is_float32_where_there_is_none_and_leaves_the_setting(digits: Problem) -> None:
    before = torch.get_float32_matmul_precision()
    algorithm = FineTuning(Random(0.05), steps=5)
    values = [train(digits, dataclasses.replace(algorithm, precision=how)).values for how in ("float32", "tf32")]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-3)
    assert torch.get_float32_matmul_precision() == before


def test_divisions_are_balanced(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_HEAVY", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    algorithm = FineTuning(FullTuning(), steps=1, batch_size=20)
    tunable = algorithm.tunable_mask(digits, algorithm.select(digits))
    assert divide(digits, algorithm, tunable, 11) == Division(workers=2, rows=6, at_once=6)
    tight = divide(digits, algorithm, tunable, 100, memory_budget=60_000_000)
    assert tight.workers == 2
    assert tight.at_once <= tight.rows < 50


def test_the_noise_floor_of_texts_is_no_mere_zero(pairs: Problem) -> None:
    """Examples go by length: reversed, all the same, the blocks too go from their end."""
    algorithm = FineTuning(FullTuning(), steps=8, batch_size=8)
    straight, back = (train(pairs, algorithm, reverse_batches=reverse).values for reverse in (False, True))
    assert not torch.equal(straight, back)
    torch.testing.assert_close(straight, back, rtol=0, atol=1e-2)
    assert measure(pairs, algorithm, Sampled(2)).noise_floor > 0


@pytest.mark.parametrize("lengths", [torch.tensor([3, 9, 5, 9, 1]), None])
def test_blocks_of_a_batch_in_reverse_are_those_of_the_batch_from_the_end(lengths: Tensor | None) -> None:
    batch = Examples({"x": torch.arange(50).view(5, 10)}, torch.arange(5), lengths)
    flipped = batch.take(torch.arange(4, -1, -1))
    straight = torch.cat([block.labels for _, block in blocks_of(batch)])
    found = blocks_of(flipped, reverse=True)
    assert torch.cat([block.labels for _, block in found]).tolist() == straight.flip(0).tolist()
    assert torch.equal(torch.cat([flipped.labels[index] for index, _ in found]), straight.flip(0))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("settings", [{"precision": "tf32"}, {"precision": "bfloat16"}, {"dropout": True}])
def test_threads_train_with_every_setting_and_leave_the_processes_own(settings: dict[str, Any], pairs: Problem) -> None:
    algorithm = FineTuning(BitFit(), steps=4, batch_size=8, **settings)
    before = torch.get_float32_matmul_precision()
    together = train(pairs, algorithm, leaving_out(pairs.n, 1, 2, 3, 4))
    assert torch.get_float32_matmul_precision() == before
    torch.set_num_threads(1)
    alone = train(pairs, algorithm, leaving_out(pairs.n, 1, 2, 3, 4))
    torch.testing.assert_close(together.values, alone.values, rtol=0, atol=2e-2 if "precision" in settings else 1e-4)


def test_progress_tells_of_what_was_asked_for(digits: Problem) -> None:
    told: list[int] = []
    weights = everyone_left_out(digits.n)[:4]
    assert train(digits, FineTuning(BitFit(), steps=6, batch_size=4), weights, progress=told.append).steps_shared > 0
    assert sum(told) == 4 * 6


def test_a_plan_with_dropout_is_for_whole_batches(pairs: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_CACHED", 1 << 40)
    real = Examples.blocks
    monkeypatch.setattr(Examples, "blocks", lambda self, most=256, places=40: real(self, most, 40))
    plain = FineTuning(BitFit(), steps=1, batch_size=16)
    wet = dataclasses.replace(plain, dropout=True)
    sizes = [
        divide(
            algorithm.training_form(pairs),
            algorithm,
            algorithm.tunable_mask(pairs, algorithm.select(pairs)),
            1000,
            memory_budget=50_000_000,
        ).at_once
        for algorithm in (plain, wet)
    ]
    assert sizes[0] > 2 * sizes[1]


def test_few_replicas_share_the_threads(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_HEAVY", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    algorithm = FineTuning(BitFit(), steps=1, batch_size=20)
    tunable = algorithm.tunable_mask(digits, algorithm.select(digits))
    assert [divide(digits, algorithm, tunable, r).workers for r in (1, 3, 9, 80)] == [1, 3, 5, 8]


@pytest.mark.parametrize("replica_batch", [0, -1])
def test_settings_of_the_execution_out_of_range_are_refused(replica_batch: int, digits: Problem) -> None:
    with pytest.raises(UsageError, match=f"replica_batch = {replica_batch}"):
        train(digits, FineTuning(BitFit(), steps=1), replica_batch=replica_batch)


def test_nothing_to_tune_is_refused(digits: Problem) -> None:
    headless = dataclasses.replace(digits, new_head=lambda _: {}, pretrained=digits.start())
    empty = Mask({name: tuple(t.shape) for name, t in headless.pretrained.items()}, {})
    with pytest.raises(UsageError, match="k = 0 of m = .* nothing to tune; use a larger p"):
        train(headless, FineTuning(BitFit(), steps=1), masks=[empty])


def test_weights_that_are_none_are_refused(digits: Problem) -> None:
    weights = torch.ones(3, digits.n)
    weights[1, 4] = -5
    with pytest.raises(UsageError, match="a weight of replica 1 is -5: use 0 for left out"):
        train(digits, FineTuning(BitFit(), steps=1), weights)
    with pytest.raises(UsageError, match=r"weights have shape \(0, 24\): use \(r, 24\) with r ≥ 1"):
        train(digits, FineTuning(BitFit(), steps=1), weights[:0])


def test_one_mask_serves_all(digits: Problem) -> None:
    algorithm = FineTuning(Random(0.05), steps=2)
    mask = algorithm.select(digits)
    assert torch.equal(train(digits, algorithm, masks=mask).values, train(digits, algorithm, masks=[mask]).values)
