"""What every method must obey, whatever it is: one list, the same tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stability import FineTuning, Minimisation, Problem, SparseDelta, UsageError
from stability.derivatives import products
from stability.leave_one_out.estimators import Sampled
from stability.leave_one_out.measuring import measure
from stability.masks import Mask
from stability.problems import digits as digits_module
from stability.problems.problem import ModuleLogits
from stability.selectors import (
    LIFT,
    SAM,
    SNIP,
    Adapter,
    BiasesAndNorms,
    BitFit,
    ChildPruning,
    Course,
    DiffPruning,
    Fisher,
    FullTuning,
    Gradient,
    HeadOnly,
    Inserted,
    LastLayers,
    LoRA,
    LotteryTicket,
    MagPruning,
    Mixout,
    MixoutReset,
    Movement,
    Random,
    Ranked,
    RigL,
    Run,
    Scope,
    Selector,
    SpIEL,
    TaLoS,
    TrainedMagPruning,
    from_scores,
    magnitude,
)
from stability.selectors.naming import SELECTORS
from stability.selectors.scope import count_for
from stability.training import EarlyStopping, descent
from stability.training.replicas import Replicas, train
from tests.reference import as_double, leaving_out

STEPS = 6
P = 0.03


def shifted_magnitude(problem: Problem, draw: torch.Generator) -> dict[str, Tensor]:
    """A user's own data-using score."""
    shift = float(next(iter(problem.train.inputs.values())).double().mean()) / 100
    return {name: (tensor - shift).abs() for name, tensor in problem.pretrained.items()}


EVERY: list[Selector] = [
    FullTuning(),
    BitFit(),
    BiasesAndNorms(),
    LastLayers(layers=2),
    HeadOnly(),
    Mixout(0.5),
    *(kind(P, scope=scope) for kind in (Random, MagPruning, SAM, Fisher, MixoutReset) for scope in ("global", "tensor")),
    *(
        kind(P)
        for kind in SELECTORS.values()
        if isinstance(kind, type) and issubclass(kind, Ranked) and kind not in (Random, SAM, Fisher, TaLoS)
    ),
    TaLoS(P, scope=Scope(without=("*embeddings*", "*.k*.bias"))),  # where gradients are 0, ties or rounding would decide
    magnitude(P, burn_in=3),
    magnitude(P, scope="tensor", burn_in=3, reset=True),
    *(ChildPruning(P, scope=scope) for scope in ("global", "tensor")),
    *(ChildPruning(P, burn_in=4, reset=reset) for reset in (False, True)),
    LotteryTicket(P, burn_in=3),
    SpIEL(P, every=2, accumulated=2),
    RigL(P, every=2),
    Movement(P, burn_in=3),
    *(DiffPruning(P, scope=scope, burn_in=3) for scope in ("global", "tensor")),
    DiffPruning(P, burn_in=2, every=4),
    from_scores(shifted_magnitude, P),
    SAM(P, curvature="gauss_newton"),
    SAM(P, curvature="hutchinson", probes=4),
    SAM(P, batches=5, batch_size=7),
    Adapter(width=3),
    Adapter(width=2, places="feed_forward"),
    LoRA(rank=2),
]

VARIANTS: list[Selector] = [
    Gradient(0.1, scope=Scope("row", without="*bias")),
    Gradient(P, scope=Scope("layer", budget="equal")),
    Random(P, scope=Scope("tensor", without="*norm*", budget="erk")),
    ChildPruning(P, scope=Scope("type", only="*weight*")),
    Fisher(P, examples=9, labels="model"),
    SNIP(P, labels="sampled"),
    Gradient(P, examples=9),
    LIFT(P, rank=2),
]
"""Scopes and calibrations: how training goes does not depend on them, so that the laws of the masks are enough."""


HIDDEN = ("name", "sparsity", "scores", "text", "targets")


def described(selector: Selector) -> str:
    settings = {name: value for name, value in selector.settings().items() if name not in HIDDEN}
    return "-".join([selector.name, *map(str, settings.values())])


each = pytest.mark.parametrize("selector", EVERY, ids=described)
turns = pytest.mark.parametrize(
    ("selector", "learned"),
    [(selector, ("digits", "pairs")[place % 2]) for place, selector in enumerate(EVERY)],
    indirect=["learned"],
    ids=[described(selector) for selector in EVERY],
)
"""Each method on images or on texts, in turn: for laws of the training of many replicas, which take long."""

each_and_its_variants = pytest.mark.parametrize("selector", EVERY + VARIANTS, ids=described)


def algorithm(selector: Selector, steps: int = STEPS) -> FineTuning:
    return FineTuning(selector, steps=steps, batch_size=8, weight_decay=0.5, learning_rate=0.01, seed=3)


def chosen(selector: Selector, problem: Problem) -> Mask:
    """The mask in the end: of a moving method after training."""
    return train(problem, algorithm(selector)).masks[0] if selector.moving else selector.select(problem, seed=3)


def test_every_selector_of_the_command_line_is_held_to_the_laws() -> None:
    made = {kind for kind in SELECTORS.values() if kind is not magnitude} | {MagPruning, TrainedMagPruning}
    assert {type(selector) for selector in EVERY} >= made


def stated(selector: Selector, problem: Problem) -> int:
    """How many coordinates the method says it tunes, reckoned apart from it."""
    layers = 3
    if isinstance(selector, FullTuning | Mixout):
        return problem.m
    if isinstance(selector, BitFit):
        return sum(t.numel() for n, t in problem.pretrained.items() if n.endswith(".bias"))
    if isinstance(selector, BiasesAndNorms):
        return sum(len(t) for t in problem.pretrained.values() if t.ndim == 1)
    if isinstance(selector, LastLayers):
        return sum(t.numel() for n, t in problem.pretrained.items() if ".1." in n or ".2." in n)
    if isinstance(selector, HeadOnly):
        return 0
    if isinstance(selector, Adapter):
        places = 2 if selector.places == "both" else 1
        return layers * places * (2 * 32 * selector.width + selector.width + 32)
    if isinstance(selector, LoRA):
        return layers * 2 * selector.rank * (32 + 32)
    p, scope = selector.sparsity, getattr(selector, "scope", "global")
    assert p is not None
    if scope == "tensor":
        return sum(int(p * t.numel() + 1e-9) for t in problem.pretrained.values())
    k = count_for(p, problem.m)
    if isinstance(scope, Scope):  # groups are compared with plain loops in test_scope.py
        shapes = {name: tuple(t.shape) for name, t in problem.pretrained.items()}
        sections = scope.sections(shapes, p)
        found = sum(section.rows * section.count for section in sections)
        assert k - sum(section.rows for section in sections) < found <= k
        return found
    return k


@each_and_its_variants
def test_law_of_the_count(selector: Selector, learned: Problem) -> None:
    mask = chosen(selector, learned)
    assert mask.count == stated(selector, learned)
    assert mask.total == learned.m + (mask.count if isinstance(selector, Inserted) else 0)


@each
def test_law_of_the_seed(selector: Selector, learned: Problem) -> None:
    """The same seed gives the same mask and values, whatever the global generator; it is left alone, too."""
    torch.manual_seed(1)
    first = train(learned, algorithm(selector))
    state = torch.manual_seed(2).get_state()
    again = train(learned, algorithm(selector))
    assert again.masks[0].equals(first.masks[0])
    assert torch.equal(again.values, first.values)
    assert torch.equal(torch.get_rng_state(), state)


@each
def test_law_of_the_start(selector: Selector, learned: Problem) -> None:
    """Definition 2: what is trained gives the pretrained model's outputs at the start, to the bit."""
    problem = selector.equivalent(learned, seed=3)
    assert torch.equal(problem.logits(problem.start(3), learned.test.inputs), learned.logits(learned.start(3), learned.test.inputs))
    assert selector.equivalent(problem, seed=3) is problem
    assert all(problem.pretrained[name].data_ptr() == tensor.data_ptr() for name, tensor in learned.pretrained.items())


@each_and_its_variants
def test_law_of_frozen_bits(selector: Selector, learned: Problem) -> None:
    """Outside the mask not one bit changes, whatever the weight decay; and θ⁰ itself is never written."""
    before = {name: tensor.clone() for name, tensor in learned.pretrained.items()}
    replicas = train(learned, algorithm(selector), leaving_out(learned.n, 4))
    for row in range(2):
        tuned, start = replicas.parameters(row), replicas.problem.pretrained
        replicas.delta(row)  # raises if anything outside the mask changed
        moved = sum(int((tuned[name] != start[name]).sum()) for name in start)
        assert 0.5 * replicas.masks[row].count <= moved <= replicas.masks[row].count
    assert all(torch.equal(learned.pretrained[name], before[name]) for name in before)


@each
def test_law_of_renaming(selector: Selector, learned: Problem) -> None:
    """Renaming the parameters and reversing their order only permutes the mask."""
    if isinstance(selector, Random | Mixout | MixoutReset | DiffPruning | SpIEL | RigL) or "hutchinson" in selector.name:
        pytest.skip("draws follow the order of the parameters")
    assert isinstance(learned.logits, ModuleLogits)
    names = {f"my.{name}": name for name in learned.pretrained}
    reversed_order = {f"my.{name}": tensor for name, tensor in reversed(list(learned.pretrained.items()))}
    renamed = dataclasses.replace(learned, pretrained=reversed_order, logits=dataclasses.replace(learned.logits, names=names))
    there = {n.removeprefix("my."): i for n, i in chosen(selector, renamed).indices.items()}
    here = chosen(selector, learned).indices
    assert there.keys() == here.keys()
    assert all(torch.equal(index, there[name]) for name, index in here.items())


@each_and_its_variants
def test_law_of_leaving_out(selector: Selector, learned: Problem) -> None:
    """The masks chosen for many left-out examples are those chosen on each Sⁱ, and S's where the data do not count."""
    if (
        getattr(selector, "batches", None)
        or getattr(selector, "examples", None)
        or getattr(selector, "labels", "true") == "sampled"
    ):
        pytest.skip("what was drawn for S is kept without the example, not drawn anew: test_scores.py")
    if isinstance(selector, Inserted):
        learned = selector.equivalent(learned, seed=3)
    if selector in VARIANTS:
        learned = as_double(learned)  # among the thresholds of many rows, rounding in single precision decides some
    masks = list(selector.select_each_left_out(learned, [0, 5, 23], seed=3))
    for i, mask in zip([0, 5, 23], masks, strict=True):
        assert mask.equals(selector.select(learned.without(i), seed=3))
        assert selector.uses_data or mask.equals(selector.select(learned, seed=3))


@turns
def test_law_of_the_replica_batch(selector: Selector, learned: Problem) -> None:
    """How many replicas go at once changes neither masks nor values."""
    weights = leaving_out(learned.n, 0, 4, 9, 20)
    at_once, by_two = (train(learned, algorithm(selector), weights, replica_batch=size) for size in (5, 2))
    for one, other in zip(at_once.masks, by_two.masks, strict=True):
        assert one.equals(other)
    torch.testing.assert_close(by_two.values, at_once.values, rtol=0, atol=1e-4)
    assert torch.equal(by_two.mask_changes, at_once.mask_changes)


@turns
def test_law_of_the_zero_weight(selector: Selector, learned: Problem) -> None:
    """An example of weight zero has no influence on training, nor on a mask that training finds."""
    inputs = dict(learned.train.inputs)
    name, shown = next(iter(inputs.items()))
    inputs[name] = shown.clone()
    inputs[name][5] = 1 - shown[5] if shown.is_floating_point() else torch.where(shown[5] > 3, 31 - shown[5], shown[5])
    other = dataclasses.replace(learned, train=dataclasses.replace(learned.train, inputs=inputs))
    masks = None if selector.moving else [selector.select(learned, seed=3)]
    one, two = (train(p, algorithm(selector), leaving_out(p.n, 5)[1:], masks) for p in (learned, other))
    assert torch.equal(one.values, two.values)
    assert one.masks[0].equals(two.masks[0])


HOW: dict[str, dict[str, Any]] = {
    "plainly": {},
    "with a ridge": {"ridge": 0.1},
    "stopped early": {"early_stopping": EarlyStopping(evaluate_every=1, patience=9, least_steps=1)},
}


@pytest.mark.parametrize("how", HOW.values(), ids=list(HOW))
@pytest.mark.parametrize("selector", [selector for selector in EVERY if selector.moving], ids=described)
def test_law_of_the_settled_mask(
    selector: Selector, how: dict[str, Any], learned: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its mask stays, a method is asked no more, and what it would have trained alone comes out."""
    monkeypatch.setattr(products, "_LARGE_MATRIX", 0)
    double, weights = as_double(learned), leaving_out(learned.n, 5)
    double = dataclasses.replace(double, validation=double.test.take(slice(0, 9)))
    training = dataclasses.replace(algorithm(selector), **how)
    steps: list[int] = []
    begin = type(selector).begin

    def counted(self: Selector, run: Run) -> Course:
        course = begin(self, run)
        step = course.step

        def told(gradient: Tensor) -> None:
            steps.append(STEPS if course.settles is None else course.settles)
            step(gradient)

        monkeypatch.setattr(course, "step", told)
        return course

    monkeypatch.setattr(type(selector), "begin", counted)
    found = train(double, training, weights)
    settles = steps[0]
    assert len(steps) == settles
    assert (found.mask_changes[settles:] == 0).all()
    monkeypatch.setattr(descent, "_settled", lambda course, objective, run: (course, objective))
    alone = train(double, training, weights)
    assert len(steps) == settles + STEPS
    assert all(one.equals(other) for one, other in zip(found.masks, alone.masks, strict=True))
    assert torch.equal(found.mask_changes, alone.mask_changes)
    torch.testing.assert_close(found.values, alone.values, rtol=0, atol=1e-12)


def reloaded(problem: Problem) -> Problem:
    """As from the disk, with tensors of its own."""
    if problem.name == "digits":
        return digits_module.load_digits(n=24)
    return dataclasses.replace(problem, pretrained={name: tensor.clone() for name, tensor in problem.pretrained.items()})


@each
def test_law_of_the_file(selector: Selector, learned: Problem, tmp_path: Path) -> None:
    """Save, load, apply to θ⁰ as it was loaded anew: the same logits, bit for bit."""
    replicas = train(learned, algorithm(selector))
    replicas.delta(0).save(tmp_path / "delta.safetensors")
    anew = selector.equivalent(reloaded(learned), seed=3)
    tuned = SparseDelta.load(tmp_path / "delta.safetensors").apply(anew.pretrained)
    expected = replicas.problem.logits(replicas.parameters(0), learned.test.inputs)
    assert torch.equal(anew.logits(tuned, learned.test.inputs), expected)


@turns
def test_law_of_leave_one_out(selector: Selector, learned: Problem) -> None:
    """Every method goes through the measurement, with its noise floor and its count."""
    small = dataclasses.replace(learned, test=learned.test.take(slice(0, 32)))
    estimate = measure(small, algorithm(selector), estimator=Sampled(3))
    assert estimate.value > 0
    assert estimate.noise_floor < 0.05
    assert estimate.failed == {}
    assert (estimate.k, estimate.m) == (chosen(selector, learned).count, estimate.replicas.problem.m)
    if not selector.uses_data:
        assert (estimate.per_example["mask_changes"] == 0).all()


def trained(selector: Selector, problem: Problem) -> Replicas:
    return train(problem, algorithm(selector))


@pytest.mark.parametrize("kind", [Random, MagPruning, SAM, Fisher, MixoutReset, ChildPruning])
def test_p_of_one_is_full_tuning(kind: type[Random], learned: Problem) -> None:
    whole, full = trained(kind(1.0), learned), trained(FullTuning(), learned)
    assert whole.masks[0].equals(full.masks[0])
    assert torch.equal(whole.values, full.values)


def test_no_burn_in_and_no_mixing_are_full_tuning_too(learned: Problem) -> None:
    double = as_double(learned)
    full = trained(FullTuning(), double).values
    assert torch.equal(trained(magnitude(1.0, burn_in=3), double).values, full)
    torch.testing.assert_close(trained(Mixout(0.0), double).values, full, rtol=0, atol=1e-7)


@pytest.mark.parametrize("selector", [selector for selector in EVERY if selector.moving], ids=described)
def test_a_moving_method_takes_no_mask_no_paper_ridge_and_no_minimisation(selector: Selector, learned: Problem) -> None:
    with pytest.raises(UsageError, match="finds its masks while it trains"):
        train(learned, algorithm(selector), masks=[Mask.full(learned.pretrained)])
    with pytest.raises(UsageError, match="there is none of S to keep"):
        measure(learned, algorithm(selector), Sampled(2), reselect=False)
    with pytest.raises(UsageError, match="has none yet: give λ as a number"):
        FineTuning(selector, ridge="paper")
    with pytest.raises(UsageError, match="moves its mask while it trains"):
        Minimisation(selector, ridge=0.1)
