from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stability import Mask, SparseDelta, StabilityError, UsageError
from stability.masks import fingerprint
from stability.selectors.scope import count_for
from stability.selectors.top_k import top_k
from tests.reference import top_k_by_sorting

NAMES = ("a.weight", "a.bias", "b.weight")
SHAPES = ((3, 4), (4,), (2, 2, 3))


def parameters(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in zip(NAMES, SHAPES, strict=True)}


@given(st.lists(st.integers(0, 4), min_size=28, max_size=28), st.integers(1, 28))
def test_top_k_is_exact_with_ties_by_index(values: list[int], k: int) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    scores = {n: part.view(s) for n, s, part in zip(NAMES, SHAPES, torch.split(flat, [12, 4, 12]), strict=True)}
    mask = top_k(scores, k / 28)
    offsets = dict(zip(NAMES, (0, 12, 16), strict=True))
    chosen = {offsets[n] + int(i) for n, index in mask.indices.items() for i in index}
    assert mask.count == k
    assert chosen == top_k_by_sorting(np.array(values), k)


def test_top_k_within_each_tensor_takes_its_own_share() -> None:
    mask = top_k(parameters(), 0.5, scope="tensor")
    assert {n: len(i) for n, i in mask.indices.items()} == {"a.weight": 6, "a.bias": 2, "b.weight": 6}


@pytest.mark.parametrize(("p", "m", "k"), [(0.29, 100, 29), (0.1, 30, 3), (1, 7, 7), (0.999, 1000, 999), (1e-3, 26432, 26)])
def test_count_is_the_floor_of_pm_in_decimals(p: float, m: int, k: int) -> None:
    assert count_for(p, m) == k


@pytest.mark.parametrize("p", [0.0, -0.1, 1.01, float("nan")])
def test_sparsity_outside_its_range_is_refused(p: float) -> None:
    with pytest.raises(UsageError, match=r"outside \(0, 1\]"):
        top_k(parameters(), p)


def test_sparsity_that_selects_nothing_is_refused_with_the_least_that_does() -> None:
    with pytest.raises(UsageError, match=r"p = 0\.01 selects nothing of m = 28.*use p ≥ 0\.0357"):
        top_k(parameters(), 0.01)


def test_scores_without_order_are_refused() -> None:
    scores = parameters()
    scores["a.bias"][1] = float("nan")
    with pytest.raises(UsageError, match=r"'a\.bias': 1 of 4 are not finite"):
        top_k(scores, 0.5)


@given(st.permutations(range(3)), st.integers(1, 28))
def test_reordering_parameters_only_permutes_the_mask(order: list[int], k: int) -> None:
    scores = parameters()  # distinct values: no ties, so order cannot matter
    reordered = {NAMES[i]: scores[NAMES[i]] for i in order}
    assert top_k(scores, k / 28).equals(top_k(reordered, k / 28))


def test_gather_and_place_are_inverse_and_leave_the_rest_alone() -> None:
    base, mask = parameters(), top_k(parameters(1), 0.4)
    values = torch.arange(mask.count, dtype=torch.float32)
    placed = mask.place(base, values)
    assert torch.equal(mask.gather(placed), values)
    assert torch.equal(torch.cat([p.flatten() for p in base.values()]), torch.cat([p.flatten() for p in parameters().values()]))
    assert sum(int((placed[n] != base[n]).sum()) for n in base) == mask.count


def test_union_and_contains() -> None:
    one, two = top_k(parameters(1), 0.3), top_k(parameters(2), 0.3)
    both = one.union(two)
    assert both.equals(two.union(one))
    assert int(both.contains(one).sum()) == one.count
    assert bool((both.contains(one) | both.contains(two)).all())
    assert bool(one.contains(both).all())
    assert Mask.full(parameters()).union(one).equals(Mask.full(parameters()))
    shared = int(one.contains(two).sum())
    assert one.overlap(two) == two.overlap(one) == pytest.approx(shared / both.count)
    assert 0 < shared < one.count
    nothing = Mask(one.shapes, {})
    assert (one.overlap(one), one.overlap(nothing), nothing.overlap(Mask(one.shapes, {}))) == (1, 0, 1)


@pytest.mark.parametrize("index", [[1, 0], [0, 0], [-1], [4]])
def test_indices_that_are_no_set_are_refused(index: list[int]) -> None:
    with pytest.raises(UsageError, match="ascending, distinct and in"):
        Mask({"w": (4,)}, {"w": torch.tensor(index)})


def test_mask_survives_the_disk(tmp_path: Path) -> None:
    mask = top_k(parameters(), 0.4)
    mask.save(tmp_path / "mask.safetensors")
    assert Mask.load(tmp_path / "mask.safetensors").equals(mask)


def test_delta_gives_the_same_bits_after_the_disk(tmp_path: Path) -> None:
    base, mask = parameters(), top_k(parameters(1), 0.4)
    tuned = mask.place(base, torch.randn(mask.count)) | {"head": torch.randn(2, 2)}
    delta = SparseDelta.between(base, tuned, mask)
    delta.save(tmp_path / "delta.safetensors")
    again = SparseDelta.load(tmp_path / "delta.safetensors").apply(base)
    assert again.keys() == tuned.keys()
    assert fingerprint(again) == fingerprint(tuned)
    assert torch.equal(delta.difference(base), mask.gather(tuned) - mask.gather(base))


def test_delta_refuses_another_base_model() -> None:
    base, mask = parameters(), top_k(parameters(1), 0.4)
    delta = SparseDelta.between(base, base, mask)
    with pytest.raises(StabilityError, match="belongs to the pretrained parameters"):
        delta.apply(parameters(3))


def test_delta_refuses_a_model_changed_outside_the_mask() -> None:
    base = parameters()
    mask = Mask({n: tuple(t.shape) for n, t in base.items()}, {"a.bias": torch.tensor([0])})
    tuned = {**base, "a.bias": base["a.bias"] + torch.tensor([0, 1e-6, 0, 0])}
    with pytest.raises(StabilityError, match="changed outside the mask"):
        SparseDelta.between(base, tuned, mask)


def test_fingerprint_sees_one_bit_and_not_the_order() -> None:
    base = parameters()
    assert fingerprint(base) == fingerprint(dict(reversed(base.items())))
    changed = {**base, "a.bias": torch.nextafter(base["a.bias"], torch.tensor(9.0))}
    assert fingerprint(base) != fingerprint(changed)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mask.safetensors"
    path.write_bytes(content)
    with pytest.raises(StabilityError, match="missing or damaged"):
        Mask.load(path)
    with pytest.raises(StabilityError, match="missing or damaged"):
        SparseDelta.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    top_k(parameters(), 0.4).save(tmp_path / "mask.safetensors")
    with pytest.raises(StabilityError, match="holds no sparse delta"):
        SparseDelta.load(tmp_path / "mask.safetensors")
