"""Each perturbation against plain loops over the training sets that it speaks of."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import ViTForImageClassification

from stability import FineTuning, Minimisation, Problem, UsageError, load, measure
from stability.estimators import Approximate, Assisted, Auto, Exact, Sampled
from stability.leave_one_out.perturbations import Replacements
from stability.perturbations import FlipLabel, LeaveGroupOut, LeaveOneOut, Perturbation, RemoveFraction, ReplaceOne
from stability.problems.digits import _config
from stability.problems.problem import Examples
from stability.selectors import SAM, BitFit, ChildPruning, FullTuning
from stability.training.stopping import EarlyStopping
from tests.reference import as_double, call, plain_loop

TUNING = FineTuning(FullTuning(), steps=8, batch_size=7, learning_rate=1e-3, seed=1)
GROUPS = [("a", "bb", "c")[i % 3] if i < 20 else "d" for i in range(24)]


@pytest.fixture(scope="module")
def double() -> Problem:
    return as_double(load("digits", n=24, seed=1))


def trained(problem: Problem, batches: list[torch.Tensor]) -> Any:
    """The plain loop's losses of a training set as a function of examples."""
    model = ViTForImageClassification(_config()).eval()
    model.load_state_dict({**problem.start(1)})
    masks = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in problem.start(1).items()}
    train = problem.train
    found = plain_loop(model.double(), train.inputs["pixel_values"], train.labels, masks, batches, None, learning_rate=1e-3)
    return lambda some: cross_entropy(
        call(model.double(), found, some.inputs["pixel_values"]), some.labels, reduction="none"
    ).numpy(force=True)


def truth(problem: Problem, perturbation: Perturbation) -> dict[int, float]:
    """Of each unit, how far the mean loss that is looked at moves."""
    batches = list(TUNING.batches(problem.train))
    units = perturbation.units(problem, TUNING.seed)
    whole = trained(problem, batches)(problem.train)
    found: dict[int, float] = {}
    for unit in range(units.count):
        own = list(units.looked_at(unit))
        if isinstance(units, Replacements):
            other = trained(units.changed(problem, unit), batches)
        else:
            other = trained(problem, [batch[~torch.isin(batch, torch.tensor(own))] for batch in batches])
        found[unit] = other(problem.train.take(torch.tensor(own))).mean() - whole[own].mean()
    return found


@pytest.mark.parametrize(
    "perturbation",
    [LeaveOneOut(), LeaveGroupOut(GROUPS), RemoveFraction(0.2), ReplaceOne(), FlipLabel()],
    ids=lambda one: one.name,
)
def test_each_is_a_plain_loop_over_its_training_sets(perturbation: Perturbation, double: Problem) -> None:
    expected = truth(double, perturbation)
    estimate = measure(double, TUNING, Exact(), perturbation=perturbation, device="cpu")
    found: dict[int, float] = dict(estimate.per_example[["index", "difference"]].itertuples(index=False))
    assert found == pytest.approx(expected, abs=1e-6)
    assert estimate.value == pytest.approx(np.mean(np.abs(list(expected.values()))), abs=1e-6)
    assert estimate.units.count == estimate.retrainings == len(expected)
    assert estimate.n == 24
    assert estimate.noise_floor < 1e-6 < estimate.value


def test_what_each_changes(double: Problem) -> None:
    groups = LeaveGroupOut(GROUPS).units(double, seed=0)
    assert [GROUPS[i] for i in groups.looked_at(1)] == ["bb"] * 7
    parts = RemoveFraction(0.2).units(double, seed=0)
    sizes = [len(parts.looked_at(unit)) for unit in range(parts.count)]
    assert sizes == [5, 5, 5, 5, 4]
    assert sorted(i for unit in range(5) for i in parts.looked_at(unit)) == list(range(24))
    assert RemoveFraction(0.2).units(double, seed=1).looked_at(0) != parts.looked_at(0)
    flips = FlipLabel().units(double, seed=0)
    for unit in range(24):
        changed = flips.changed(double, unit).train.labels != double.train.labels
        assert changed.nonzero().tolist() == [[unit]]
    replaced = ReplaceOne().units(double, seed=0)
    pixels = double.train.inputs["pixel_values"]
    other = replaced.changed(double, 3).train.inputs["pixel_values"]
    assert torch.equal(other[[0, 1, 2, *range(4, 24)]], pixels[[0, 1, 2, *range(4, 24)]])
    assert any(torch.equal(other[3], one) for one in double.test.inputs["pixel_values"])


def test_a_group_of_one_is_told(digits: Problem) -> None:
    groups = ["a"] * 10 + ["b"] * 13 + ["c"]
    estimate = measure(digits, dataclasses.replace(TUNING, steps=2), perturbation=LeaveGroupOut(groups), device="cpu")
    assert estimate.notes == ("1 of 3 groups has only one example",)


def test_groups_have_their_names_everywhere(digits: Problem) -> None:
    estimate = measure(digits, dataclasses.replace(TUNING, steps=2), perturbation=LeaveGroupOut(GROUPS), device="cpu")
    found = {row["index"]: row["name"] for row in estimate.examples().to_dict("records")}
    assert found == {0: "group a", 1: "group bb", 2: "group c", 3: "group d"}
    told = estimate.to_dict()
    assert (told["n"], told["units"]) == (24, 4)
    assert told["names"] == [found[unit] for unit in range(4)]
    assert "4 of 4 groups" in repr(estimate)
    assert estimate._repr_html_().count("<th>group</th>") == 1
    assert estimate.examples()["share"].sum() == pytest.approx(1)
    parts = RemoveFraction(0.25).units(digits, 0)
    assert parts.names == ("part 1", "part 2", "part 3", "part 4")


def test_flips_reach_a_class_that_no_training_example_has(double: Problem) -> None:
    """The network has five logits, whether or not anybody named the classes."""
    few = dataclasses.replace(double.train, labels=double.train.labels % 2)
    unnamed = dataclasses.replace(double, train=few, classes=None)
    seen = {int(FlipLabel().units(unnamed, seed).changed(unnamed, 0).train.labels[0]) for seed in range(40)}
    assert seen == set(range(5)) - {int(few.labels[0])}


def test_replacements_by_which_early_stopping_chooses_are_told(digits: Problem) -> None:
    validated = dataclasses.replace(digits, validation=digits.test.take(slice(0, 9)))
    stopping = dataclasses.replace(TUNING, steps=2, early_stopping=EarlyStopping(evaluate_every=1, patience=1, least_steps=1))
    plain = dataclasses.replace(TUNING, steps=2)
    said = [
        any(note.startswith("early stopping chooses a checkpoint by the validation split") for note in found.notes)
        for found in (
            measure(problem, algorithm, Sampled(2), perturbation=perturbation, device="cpu")
            for problem, algorithm, perturbation in (
                (validated, stopping, ReplaceOne()),
                (validated, stopping, FlipLabel()),
                (validated, plain, ReplaceOne()),
            )
        )
    ]
    assert said == [True, False, False]


PLAIN = [i // 6 for i in range(24)]


@pytest.mark.parametrize(
    "groups",
    [
        tuple(PLAIN),
        np.array(PLAIN),
        torch.tensor(PLAIN),
        list(torch.tensor(PLAIN)),
        [np.int64(group) for group in PLAIN],
        pd.Series(PLAIN, index=range(50, 74)),
        pd.Categorical(PLAIN),
    ],
    ids=["tuple", "array", "tensor", "list of tensors", "list of numpy", "column", "categories"],
)
def test_groups_are_taken_in_any_form(groups: Any, digits: Problem) -> None:
    perturbation = LeaveGroupOut(groups)
    for _ in range(2):
        units = perturbation.units(digits, seed=0)
        assert [units.looked_at(unit) for unit in range(units.count)] == [tuple(range(j, j + 6)) for j in (0, 6, 12, 18)]
    assert units.name_of(1, str) == "group 1 [6 examples]"
    assert perturbation.settings() == {"name": "leave-group-out", "groups": tuple(PLAIN)}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("annotator", "groups = 'annotator': give a list with the group of each training example; the name of a column goes"),
        (3, "groups = 3: give a list"),
        ({"a", "b"}, "groups = {.*}: give a list"),
        ({"a": 1}, "groups = {'a': 1}: give a list"),
        (torch.tensor(3), r"groups = tensor\(3\): give a list"),
        ([math.nan, *"a" * 23], r"groups\[0\] = nan is missing: give each of the 24 examples the name of its group"),
        (["a", None, "b"], r"groups\[1\] = None is missing: give each of the 3"),
        (["a", "b", " "], r"groups\[2\] = ' ' is missing"),
        (np.array(["a", np.nan], dtype=object), r"groups\[1\] = nan is missing"),
        (["a", pd.NA], r"groups\[1\] = <NA> is no word or number"),
        ([[1, 2]] * 24, r"groups\[0\] = \[1, 2\] is no word or number"),
        (torch.ones(24, 2), r"groups\[0\] = \[1.0, 1.0\] is no word or number"),
    ],
)
def test_what_names_no_group_is_refused(groups: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LeaveGroupOut(groups)


def test_flips_reach_every_other_class(double: Problem) -> None:
    seen = set()
    for seed in range(40):
        units = FlipLabel().units(double, seed)
        seen |= {int(units.changed(double, 0).train.labels[0])}
    assert seen == set(range(5)) - {int(double.train.labels[0])}


@pytest.mark.parametrize("perturbation", [LeaveGroupOut(GROUPS), FlipLabel(), ReplaceOne()], ids=lambda one: one.name)
def test_masks_are_those_of_the_changed_training_sets(perturbation: Perturbation, digits: Problem) -> None:
    algorithm = FineTuning(SAM(0.05), steps=2)
    estimate = measure(digits, algorithm, Sampled(3), perturbation=perturbation, device="cpu")
    units = perturbation.units(digits, 0)
    for unit, mask in zip(estimate.per_example["index"], estimate.replicas.masks[1:], strict=True):
        assert mask.equals(algorithm.select(units.changed(digits, int(unit))))


@pytest.mark.parametrize("algorithm", [FineTuning(ChildPruning(0.1), steps=4), Minimisation(BitFit(), ridge=0.5, max_steps=300)])
def test_moving_masks_and_minima_are_perturbed_alike(algorithm: Any, digits: Problem) -> None:
    estimate = measure(digits, algorithm, Exact(), perturbation=LeaveGroupOut(GROUPS), device="cpu")
    assert estimate.retrainings == 4
    assert estimate.value > estimate.noise_floor


def test_texts_keep_their_padding() -> None:
    ids = torch.tensor([[5, 6, 9], [5, 9, 9]]), torch.tensor([[7, 7, 7, 7]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.ones(1, 4, dtype=torch.int64)
    one, other = (
        Examples({"input_ids": a, "attention_mask": b}, torch.zeros(len(a)), b.sum(1)) for a, b in zip(ids, mask, strict=True)
    )
    both = one.followed_by(other)
    assert both.inputs["input_ids"].tolist() == [[5, 6, 9, 9], [5, 9, 9, 9], [7, 7, 7, 7]]
    assert both.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert both.lengths is not None
    assert both.lengths.tolist() == [2, 1, 4]
    assert other.followed_by(one).inputs["input_ids"].tolist() == [[7, 7, 7, 7], [5, 6, 9, 9], [5, 9, 9, 9]]


def test_texts_of_which_none_is_padded_keep_their_padding_too() -> None:
    """Cut to the longest, neither shows what it was padded with."""
    train, test = (
        Examples({"ids": torch.tensor(ids), "mask": torch.tensor(mask)}, torch.zeros(2), torch.tensor(lengths), {"ids": 9})
        for ids, mask, lengths in (
            ([[5, 6, 7, 8], [5, 6, 7, 4]], [[1, 1, 1, 1]] * 2, [4, 4]),
            ([[5, 6, 9, 9], [5, 6, 7, 9]], [[1, 1, 0, 0], [1, 1, 1, 0]], [2, 3]),
        )
    )
    other = test.take(torch.tensor([0]))
    assert other.inputs["ids"].tolist() == [[5, 6]]
    both = train.followed_by(other)
    assert both.inputs["ids"].tolist() == [[5, 6, 7, 8], [5, 6, 7, 4], [5, 6, 9, 9]]
    assert both.inputs["mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert both.take(torch.tensor([2])).followed_by(train).inputs["ids"].tolist()[0] == [5, 6, 9, 9]
    assert both.to(torch.device("cpu")).padding == {"ids": 9}
    unknown = [dataclasses.replace(one, padding=None) for one in (train, other)]
    with pytest.raises(UsageError, match="ids: examples of different lengths, and none is padded: say with what"):
        unknown[0].followed_by(unknown[1])
    assert unknown[0].followed_by(unknown[0]).inputs["ids"].shape == (4, 4)


def test_auto_predicts_nothing_of_groups(digits: Problem) -> None:
    groups = LeaveGroupOut(GROUPS)
    estimate = measure(digits, TUNING, perturbation=groups, device="cpu")
    assert estimate.reason == "exact: this perturbation is not predicted, and all 4 groups are little work"
    assert measure(digits, TUNING, Auto(retrainings=2), perturbation=groups, device="cpu").retrainings == 2
    with pytest.raises(
        UsageError, match="assisted: .*cannot predict what leaving one group .* does: use Exact.* --estimator exact or sampled"
    ):
        measure(digits, TUNING, Assisted(2), perturbation=groups, device="cpu")
    with pytest.raises(
        UsageError, match="estimator = approximate: .* cannot predict what giving one training example another label does"
    ):
        measure(digits, TUNING, Approximate(), perturbation=FlipLabel(), device="cpu")


@pytest.mark.parametrize(
    ("perturbation", "message"),
    [
        (LeaveGroupOut(), "digits has no groups: name the column that has them"),
        (LeaveGroupOut(["a"] * 23), "groups: 23 for n = 24 training examples: give one for each"),
        (LeaveGroupOut(["a"] * 24), "groups: all 24 training examples are in 'a': without it there is nothing to train on"),
        (LeaveGroupOut(range(24)), "groups: each of the 24 training examples is alone in its group, .* use LeaveOneOut"),
        (RemoveFraction(0.01), "fraction = 0.01 of n = 24 examples is less than one: use 0.04167 or more"),
    ],
)
def test_what_does_not_fit_is_refused(perturbation: Perturbation, message: str, digits: Problem) -> None:
    with pytest.raises(UsageError, match=message):
        measure(digits, TUNING, perturbation=perturbation, device="cpu")


@pytest.mark.parametrize(("fraction", "parts"), [(0.5, 2), (0.333, 3), (1 / 3, 3), (0.1, 10), (0.04167, 24)])
def test_the_fraction_that_is_told_is_removed(fraction: float, parts: int, digits: Problem) -> None:
    units = RemoveFraction(fraction).units(digits, 0)
    kept = units.weights(torch.arange(units.count)).sum(1)
    assert (24 - kept).mean() / 24 == pytest.approx(1 / parts)
    assert units.words.doing == f"removing {1 / parts:.3g} of the training examples at once"
    assert units.fraction == 1 / parts


@pytest.mark.parametrize(
    ("fraction", "near"),
    [(0.4, "0.5 (1/2) or 0.3333 (1/3)"), (0.33, "0.3333 (1/3) or 0.25 (1/4)"), (0.15, "0.1667 (1/6) or 0.1429 (1/7)")],
)
def test_a_fraction_that_cannot_be_removed_is_refused(fraction: float, near: str) -> None:
    why = f"fraction = {fraction}: S is divided into parts of one size, each removed once: use {near}"
    with pytest.raises(UsageError, match=re.escape(why)):
        RemoveFraction(fraction)


def test_the_fraction_is_in_json(digits: Problem) -> None:
    how: dict[str, Any] = {"device": "cpu"}
    brief = dataclasses.replace(TUNING, steps=2)
    assert measure(digits, brief, perturbation=RemoveFraction(0.5), **how).to_dict()["fraction"] == 0.5
    assert "fraction" not in measure(digits, brief, Sampled(1), **how).to_dict()


def test_senseless_perturbations_are_refused(digits: Problem, pairs: Problem) -> None:
    with pytest.raises(UsageError, match="fraction = 0.7: at most 0.5"):
        RemoveFraction(0.7)
    with pytest.raises(UsageError, match="perturbation"):
        measure(digits, TUNING, perturbation="flip", device="cpu")  # type: ignore[arg-type]
    numbers = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=digits.train.labels.float()))
    with pytest.raises(UsageError, match="the labels of digits are numbers"):
        FlipLabel().units(numbers, 0)
    dropping = dataclasses.replace(TUNING, dropout=True)
    with pytest.raises(UsageError, match="dropout = True: an example that takes another's place .*: set dropout=False"):
        measure(pairs, dropping, Sampled(2), perturbation=FlipLabel(), device="cpu")
