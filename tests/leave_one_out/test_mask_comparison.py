"""Masks beside each other, against plain loops that select on S without each example."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from stability import FineTuning, Mask, MeasurementError, Problem, UsageError, compare_masks, load, train
from stability.derivatives import mean_gradient
from stability.leave_one_out.estimators import Sampled
from stability.selectors import (
    SAM,
    SNIP,
    ChildPruning,
    FromScores,
    FullTuning,
    Gradient,
    HeadOnly,
    LoRA,
    MagPruning,
    MixoutReset,
    Random,
    Scope,
    Selector,
    SynFlow,
    Taylor,
    TrainedMagPruning,
    scored,
)
from tests.conftest import plain_network
from tests.reference import as_double, leaving_out
from tests.selectors.test_laws import EVERY, described

STEPS = 3
DRAWS_OTHERWISE = "what was drawn for S is kept without the example, not drawn anew"


@pytest.fixture(scope="module")
def small() -> Problem:
    return as_double(load("digits", n=8, seed=0))


def overlap(one: Mask, other: Mask) -> float:
    """Jaccard's, by sets."""
    mine, theirs = ({(name, int(i)) for name, index in mask.indices.items() for i in index} for mask in (one, other))
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0


@pytest.mark.parametrize("selector", EVERY, ids=described)
def test_masks_without_each_example_are_those_of_a_plain_loop(selector: Selector, small: Problem) -> None:
    if getattr(selector, "batches", None):
        pytest.skip(DRAWS_OTHERWISE)
    problem = plain_network(load("digits", n=8)) if isinstance(selector, SynFlow) else small
    found = compare_masks(problem, [selector], seeds=[3], left_out=3, steps=STEPS + 3, batch_size=4)
    assert len(found.left_out) == 3
    table = found.table().iloc[0]
    if not selector.uses_data:
        assert len(found.without) == 0
        assert table["left_out_mean"] == table["left_out_least"] == 1
        return
    algorithm = FineTuning(selector, steps=STEPS + 3, batch_size=4, seed=3)

    def alone(i: int | None) -> Mask:
        if selector.moving:
            weights = torch.ones(1, problem.n, dtype=torch.float64)
            if i is not None:
                weights[0, i] = 0
            return train(problem, algorithm, weights).masks[0]
        return selector.select(problem if i is None else problem.without(i), 3)

    own, expected = alone(None), {}
    for i in found.left_out:
        expected[i] = overlap(own, alone(i))
    assert next(iter(found.masks.values()))[3].equals(own)
    assert found.without["overlap"].tolist() == pytest.approx(list(expected.values()), abs=1e-12)
    if not isinstance(selector, FromScores):  # whose score hardly depends on the examples
        assert min(expected.values()) < 1
        assert table["most"][0] in [i for i, value in expected.items() if value == min(expected.values())]
    assert table["left_out_mean"] == pytest.approx(sum(expected.values()) / 3)
    assert table["left_out_least"] == pytest.approx(min(expected.values()))
    assert found.by_example().iloc[:, 0].to_dict() == pytest.approx(expected)


def test_overlaps_of_selectors_and_of_seeds(digits: Problem) -> None:
    selectors = {"by chance": Random(0.3), "g": Gradient(0.3), "sam": SAM(0.3), "reset": MixoutReset(0.3)}
    found = compare_masks(digits, selectors, seeds=3, left_out=0, steps=2)
    assert found.selectors == tuple(selectors)
    assert found.seeds == (0, 1, 2)
    assert len(found.without) == 0
    for row in found.overlaps.to_dict("records"):
        assert row["overlap"] == pytest.approx(overlap(*(found.masks[row[one]][row["seed"]] for one in ("first", "second"))))
    overlaps = found.overlaps.set_index(["seed", "first", "second"])["overlap"]
    assert len(overlaps) == 3 * 6
    assert (overlaps.xs(("g", "sam"), level=("first", "second")) == 1).all()  # a square keeps the order
    random = overlaps.xs(("by chance", "g"), level=("first", "second")).mean()
    # X = |A ∩ B| of random masks is hypergeometric, and the overlap is X / (2k − X): three seeds, four standard deviations.
    m, k = digits.m, found.masks["g"][0].count
    spread = math.sqrt(k * k * (m - k) ** 2 / (m**2 * (m - 1))) * 2 * k / (2 * k - k * k / m) ** 2
    assert spread < 0.005
    assert found.overlaps["by_chance"].iloc[0] == pytest.approx(random, abs=4 * spread / math.sqrt(3))
    assert len(found.between_seeds) == 4 * 3
    for row in found.between_seeds.to_dict("records"):
        assert row["overlap"] == pytest.approx(overlap(*(found.masks[row["selector"]][row[one]] for one in ("first", "second"))))
    seeds = found.between_seeds.query("selector == 'by chance'")["overlap"]
    table = found.table().set_index("selector")
    assert table.loc["by chance", "seeds_mean"] == pytest.approx(seeds.mean())
    assert table.loc["by chance", "seeds_least"] == seeds.min()
    assert table["left_out_mean"].isna().all()
    matrix = found.matrix()
    assert matrix.columns.tolist() == matrix.index.tolist() == list(selectors)
    assert matrix.to_numpy()[0, 1] == matrix.to_numpy()[1, 0] == pytest.approx(random)
    assert (matrix.to_numpy().diagonal() == 1).all()
    mine = found.shares("tensor").query("selector == 'g'").set_index("tensor")
    counts = [mask.indices.get("vit.layernorm.bias", torch.empty(0)).numel() for mask in found.masks["g"].values()]
    assert mine.loc["vit.layernorm.bias", "chosen"] == pytest.approx(sum(counts) / 3)
    assert mine["share"].sum() == pytest.approx(1)


def test_what_was_drawn_is_the_same_for_all(digits: Problem) -> None:
    found = compare_masks(digits, [Gradient(0.03), SNIP(0.03)], left_out=4)
    drawn = Sampled(4).design(digits.n, 0, None).order[:4]
    assert found.left_out == tuple(sorted(drawn.tolist()))
    assert all(group["index"].tolist() == list(found.left_out) for _, group in found.without.groupby("selector"))
    assert compare_masks(digits, [Random(0.03)]).left_out == tuple(range(digits.n))


def test_moving_masks_of_all_are_replicas_of_one_call(digits: Problem) -> None:
    found = compare_masks(digits, [ChildPruning(0.03)], left_out=2, steps=STEPS)
    weights = torch.cat([torch.ones(1, digits.n), leaving_out(digits.n, *found.left_out)[1:]])
    masks = train(digits, FineTuning(ChildPruning(0.03), steps=STEPS), weights).masks
    assert found.without["overlap"].tolist() == [overlap(masks[0], masks[1]), overlap(masks[0], masks[2])]
    again = train(digits, FineTuning(ChildPruning(0.03), steps=STEPS), reverse_batches=True).masks[0]
    assert found.rounding["overlap"].tolist() == found.table()["rounding"].tolist() == [overlap(masks[0], again)]
    assert "rounding: the same, with all examples" in str(found)
    both = compare_masks(digits, [SAM(0.03), ChildPruning(0.03)], left_out=2, steps=2)
    assert both.table()["rounding"].isna().tolist() == [True, False]  # a mask that is chosen before training is not found again
    assert re.search(r"^ *sam .* – ", str(both), flags=re.MULTILINE)


def test_inserted_modules_share_nothing(digits: Problem) -> None:
    found = compare_masks(digits, [LoRA(rank=2), MagPruning(0.03), HeadOnly(), FullTuning()], seeds=2, left_out=2)
    rows = {(row["first"], row["second"]): row for row in found.overlaps.query("seed == 0").to_dict("records")}
    inserted = [row for (first, _), row in rows.items() if first == "lora rank=2"]
    assert len(inserted) == 3
    assert all(math.isnan(row[name]) for row in inserted for name in ("overlap", "by_chance", "by_chance_in_tensors"))
    assert rows["magnitude", "head-only"]["overlap"] == 0
    assert rows["magnitude", "full"]["overlap"] == pytest.approx(rows["magnitude", "full"]["by_chance"])
    assert (found.table()["seeds_mean"] == 1).all()
    assert "1 by definition where the training set is not used: lora rank=2, magnitude, head-only, full." in str(found)


def test_one_selector_and_one_seed_have_no_overlaps(digits: Problem) -> None:
    found = compare_masks(digits, [SAM(0.03)], left_out=0)
    assert len(found.overlaps) == len(found.between_seeds) == len(found.without) == 0
    assert found.matrix().to_numpy().tolist() == [[1.0]]
    assert found.table()[["seeds_mean", "left_out_mean"]].isna().all(axis=None)
    assert "sam" in str(found)
    assert "<table" in found._repr_html_()


def test_seeds_of_numpy_are_seeds(digits: Problem) -> None:
    assert compare_masks(digits, [Random(0.03)], seeds=np.int64(2)).seeds == (0, 1)  # type: ignore[arg-type]
    assert compare_masks(digits, [Random(0.03)], seeds=np.array([3, 5])).seeds == (3, 5)  # type: ignore[arg-type]


def test_selectors_of_one_calibration_and_seed_share_a_pass(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(problem: Problem, *rest: Any) -> torch.Tensor:
        passes.append(problem.n)
        return mean_gradient(problem, *rest)

    monkeypatch.setattr(scored, "mean_gradient", counted)
    alike: list[Selector] = [Gradient(0.03), SNIP(0.03), Taylor(0.03), SAM(0.03)]
    other: list[Selector] = [Gradient(0.03, examples=10), SNIP(0.03, examples=10, labels="sampled"), Gradient(0.05, examples=10)]
    found = compare_masks(digits, [*alike, *other], seeds=2, left_out=3)
    assert passes == [digits.n, 10, 10] * 2
    for (name, masks), selector in zip(found.masks.items(), [*alike, *other], strict=True):
        for seed, mask in masks.items():
            assert mask.equals(selector.select(digits, seed)), name
            each = selector.select_each_left_out(digits, found.left_out, seed)
            mine = found.without.query("selector == @name and seed == @seed")["overlap"].tolist()
            assert mine == [mask.overlap(one) for one in each], name
    assert found.without["selector"].unique().tolist() == list(found.masks)
    assert found.without["seed"].tolist() == [0, 0, 0, 1, 1, 1] * 7
    assert len(passes) == 3 * 2 + 2 * 2 * 7  # outside of a comparison nothing is shared


def test_selectors_of_one_name_are_told_apart(digits: Problem) -> None:
    algorithm = FineTuning(TrainedMagPruning(0.03, burn_in=2), steps=3)
    found = compare_masks(digits, [SAM(0.01), SAM(0.03), algorithm], left_out=0)
    assert found.selectors[:2] == ("sam p=0.01", "sam p=0.03")
    assert found.table()["k"].tolist() == [264, 792, 792]


def test_bad_input(digits: Problem) -> None:
    with pytest.raises(UsageError, match=r"left_out = 25: use a whole number from 0 to 24 \(the training set has 24 examples\)"):
        compare_masks(digits, [SAM(0.03)], left_out=25)
    with pytest.raises(UsageError, match="no selector: give a list"):
        compare_masks(digits, [])
    with pytest.raises(UsageError, match=r"selectors = sam: give a list, such as \[SAM\(0.05\), SNIP\(0.05\)\]"):
        compare_masks(digits, SAM(0.03))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="two selectors are called 'sam p=0.03': give selectors that differ"):
        compare_masks(digits, [SAM(0.03), SAM(0.03)])
    with pytest.raises(UsageError, match=r"selector = 'sam': use a selector of stability.selectors"):
        compare_masks(digits, ["sam"])  # type: ignore[list-item]
    for seeds in ([], [1, 1]):
        with pytest.raises(UsageError, match="give at least one, and each once"):
            compare_masks(digits, [SAM(0.03)], seeds=seeds)
    with pytest.raises(UsageError, match="seed = -1"):
        compare_masks(digits, [SAM(0.03)], seeds=[-1])
    with pytest.raises(UsageError, match="matches no tensor"):
        compare_masks(digits, [SAM(0.03, scope=Scope(only="*.querry.*"))])
    with pytest.raises(UsageError, match="unknown column 'jaccard': use overlap"):
        compare_masks(digits, [SAM(0.03)], left_out=0).matrix("jaccard")
    with pytest.raises(UsageError, match=r"seeds = 2\.5: use how many seeds"):
        compare_masks(digits, [SAM(0.03)], seeds=2.5)  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="childpruning found no mask, for its training diverged"):
        compare_masks(digits, [ChildPruning(0.03)], left_out=0, steps=20, learning_rate=1e9)
