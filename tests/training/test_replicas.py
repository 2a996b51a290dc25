from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import transformers
from transformers import ViTForImageClassification

from stability import FineTuning, Problem, UsageError, problems, selectors
from stability.derivatives import products
from stability.machine import resolve_device
from stability.masks import Mask
from stability.problems import digits as digits_module
from stability.selectors import SAM, BitFit, FullTuning, MagPruning, Random
from stability.training.execution import divide
from stability.training.replicas import train
from stability.training.substitutes import Substitutes
from tests.reference import as_double, call, leaving_out, plain_loop

each = pytest.mark.parametrize(
    "selector", [FullTuning(), Random(0.05), BitFit(), MagPruning(0.05), SAM(0.05)], ids=lambda s: s.name
)


def model_of(problem: Problem, algorithm: FineTuning) -> torch.nn.Module:
    model = ViTForImageClassification(digits_module._config()).eval()
    model.load_state_dict({**problem.start(algorithm.seed)})
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("large", [1, products._LARGE_MATRIX], ids=["gradients at the sites", "whole gradients"])
@each
def test_a_replica_is_the_plain_loop_without_its_example(
    selector: selectors.Selector, large: int, digits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop with boolean masks and torch's AdamW, in float64. AdamW divides by √v + 1e-8, which
    magnifies rounding where the true gradient is zero (attention keys' biases): hence 1e-7, not 1e-15."""
    monkeypatch.setattr(products, "_LARGE_MATRIX", large)
    digits = as_double(digits)
    algorithm = FineTuning(selector, steps=12, batch_size=7, learning_rate=1e-3, weight_decay=0.1, ridge=0.05, seed=1)
    replicas = train(digits, algorithm, leaving_out(digits.n, 3, 17))
    tunable = replicas.tunable
    masks = {n: torch.zeros(t.shape, dtype=torch.bool) for n, t in digits.start(1).items()}
    for name, index in tunable.indices.items():
        masks[name].view(-1)[index] = True
    for row, left_out in enumerate((None, 3, 17)):
        expected = plain_loop(
            model_of(digits, algorithm).double(),
            digits.train.inputs["pixel_values"],
            digits.train.labels,
            masks,
            list(algorithm.batches(digits.train)),
            left_out,
            learning_rate=1e-3,
            weight_decay=0.1,
            ridge=0.05,
        )
        found = replicas.parameters(row)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-7)
        logits = call(model_of(digits, algorithm).double(), expected, digits.test.inputs["pixel_values"])
        torch.testing.assert_close(replicas.logits(digits.test)[row], logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("large", [1, products._LARGE_MATRIX], ids=["gradients at the sites", "whole gradients"])
@each
def test_results_do_not_depend_on_the_replica_batch(
    selector: selectors.Selector, large: int, digits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_LARGE_MATRIX", large)
    algorithm = FineTuning(selector, steps=10, batch_size=8)
    weights = leaving_out(digits.n, 0, 4, 9, 20)
    at_once, by_two, one_by_one = (train(digits, algorithm, weights, replica_batch=size).values for size in (5, 2, 1))
    # Single precision; AdamW's first steps have the size of the learning rate whatever the gradient's size.
    torch.testing.assert_close(by_two, at_once, rtol=0, atol=1e-4)
    torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=1e-4)


def test_rows_with_their_own_masks_equal_runs_with_those_masks(digits: Problem) -> None:
    digits = as_double(digits)
    algorithm = FineTuning(Random(0.02), steps=6, batch_size=8)
    masks = [Random(0.02).select(digits, seed) for seed in range(3)]
    together = train(digits, algorithm, torch.ones(3, digits.n), masks)
    for row, mask in enumerate(masks):
        alone = train(digits, algorithm, masks=[mask]).parameters(0)
        found = together.parameters(row)
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10)
        together.delta(row)  # raises if a coordinate outside the row's own mask moved


def test_an_example_of_weight_zero_has_no_influence(digits: Problem) -> None:
    algorithm = FineTuning(FullTuning(), steps=8, batch_size=8)
    changed = copy.copy(digits.train)
    pixels = changed.inputs["pixel_values"].clone()
    pixels[5] = 1 - pixels[5]
    other = dataclasses.replace(digits, train=dataclasses.replace(changed, inputs={"pixel_values": pixels}))
    weights = leaving_out(digits.n, 5)[1:]
    assert torch.equal(train(digits, algorithm, weights).values, train(other, algorithm, weights).values)


def test_a_batch_with_nothing_left_has_no_gradient(digits: Problem) -> None:
    algorithm = FineTuning(BitFit(), steps=3, batch_size=1)
    weights = torch.zeros(1, digits.n)
    replicas = train(digits, algorithm, weights)
    assert torch.equal(replicas.values[0], replicas.tunable.gather(replicas.start))
    assert replicas.failed_step.tolist() == [-1]


def test_a_diverging_replica_is_marked_with_its_step_and_spares_the_others(digits: Problem) -> None:
    algorithm = FineTuning(BitFit(), steps=4, batch_size=8)
    weights = torch.ones(2, digits.n)
    first = next(algorithm.batches(digits.train))
    rest = [int(i) for i in list(algorithm.batches(digits.train))[2] if i not in first]
    weights[1, rest[0]] = float("nan")
    failed = train(digits, algorithm, weights).failed_step.tolist()
    assert failed[0] == -1
    assert 0 <= failed[1] <= 2
    clean = train(digits, algorithm).values[0]
    torch.testing.assert_close(train(digits, algorithm, weights).values[0], clean, rtol=0, atol=1e-5)


def test_memory_is_planned_from_the_budget(digits: Problem) -> None:
    algorithm = FineTuning(FullTuning(), steps=1, batch_size=20)
    tunable = algorithm.tunable_mask(digits, Mask.full(digits.pretrained))
    sizes = [
        divide(digits, algorithm, tunable, 100, memory_budget=budget).at_once for budget in (1, 20_000_000, 80_000_000, 10**12)
    ]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 100
    assert sizes[1] < sizes[2]


def test_same_seed_same_result_whatever_the_global_generator(digits: Problem) -> None:
    algorithm = FineTuning(Random(0.05), steps=3)
    torch.manual_seed(0)
    first = train(digits, algorithm).values
    torch.manual_seed(1)
    assert torch.equal(train(digits, algorithm).values, first)


def test_every_example_is_used_equally_often() -> None:
    batches = torch.cat(list(FineTuning(FullTuning(), steps=15, batch_size=4).batches(problems.load("digits", n=20).train)))
    assert torch.bincount(batches).tolist() == [3] * 20


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize(
    ("steps", "warmup", "rising"),
    [(10, 0.0, 0), (10, 0.3, 3), (100, 0.29, 29), (7, 0.5, 3), (1, 0.9, 0), (8, 0.99, 7), (10, 0.999999999, 9)],
)
def test_the_learning_rate_is_that_of_transformers(schedule: Any, steps: int, warmup: float, rising: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    theirs = transformers.get_scheduler(schedule if schedule == "linear" else "constant_with_warmup", optimizer, rising, steps)
    algorithm = FineTuning(FullTuning(), steps=steps, learning_rate=0.01, schedule=schedule, warmup=warmup)
    for step in range(steps):
        assert algorithm.learning_rate_at(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warm_up_is_part_of_what_defines_a_run() -> None:
    first, other = (FineTuning(FullTuning(), steps=10, learning_rate=0.01, schedule="linear", warmup=w) for w in (0.0, 0.1))
    assert other.settings() == first.settings() | {"warmup": 0.1}
    assert "linear after a warm-up over 1 of the steps" in other.describe()
    assert "warm-up" not in first.describe()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"ridge": -0.5}, "ridge = -0.5"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"warmup": 1.0}, r"warmup = 1.0 is outside \[0, 1\)"),
        ({"warmup": -0.1}, "warmup = -0.1"),
        ({"warmup": 5}, "warmup = 5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FineTuning(FullTuning(), **settings)


def test_weights_of_another_shape_are_refused(digits: Problem) -> None:
    with pytest.raises(UsageError, match=r"weights have shape \(1, 3\).*n = 24"):
        train(digits, FineTuning(BitFit(), steps=1), torch.ones(1, 3))
    one = Substitutes(digits.test.take(torch.tensor([0])), torch.tensor([1]))
    with pytest.raises(UsageError, match=r"\(1, 24\): use \(r, 25\) with r ≥ 1, .* n = 24 .* and each of the 1 substitutes"):
        train(digits, FineTuning(BitFit(), steps=1), torch.ones(1, 24), substitutes=one)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (torch.tensor([24]), r"place 0 = 24: use a whole number from 0 to 23 \(S has n = 24 examples\)"),
        (torch.tensor([-1]), "place 0 = -1: use a whole number of at least 0"),
        (torch.tensor([1.0]), "places of type torch.float32: use whole numbers"),
        (torch.tensor([True]), "places of type torch.bool: use whole numbers"),
        (torch.tensor([1, 2]), r"places of shape \(2,\) for 1 substitutes"),
        ([1], r"places = \[1\]: use a tensor of whole numbers"),
    ],
)
def test_a_substitute_without_a_place_in_the_training_set_is_refused(places: Any, message: str, digits: Problem) -> None:
    """It would join no batch, and the replica would be trained as if nothing took the example's place."""
    with pytest.raises(UsageError, match=message):
        train(digits, FineTuning(BitFit(), steps=1), substitutes=Substitutes(digits.test.take(torch.tensor([0])), places))


def test_absent_cuda_is_refused_with_the_remedy() -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is present")
    with pytest.raises(UsageError, match="'cuda' was asked for.*use --device cpu"):
        resolve_device("cuda")
