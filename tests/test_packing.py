from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stability.masks import Mask, SparseDelta
from stability.packing import pack, unpack


@settings(max_examples=300, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), density=st.floats(0, 1))
def test_whatever_is_packed_comes_back(size: int, seed: int, density: float) -> None:
    index = torch.from_numpy(np.flatnonzero(np.random.default_rng(seed).random(size) < density))
    assert torch.equal(unpack(pack(index, size), size), index)


@pytest.mark.parametrize("index", [[], [0], [9], list(range(10)), [0, 9], list(range(9))])
def test_the_ends_come_back(index: list[int]) -> None:
    wanted = torch.tensor(index, dtype=torch.int64)
    assert torch.equal(unpack(pack(wanted, 10), 10), wanted)


@pytest.mark.parametrize("density", [0.0005, 0.005, 0.05, 0.3, 0.7, 1.0])
def test_an_index_takes_little_more_than_its_entropy(density: float) -> None:
    """A million coordinates: within 0.6 bits an index of the entropy of a random set, and of a bitmap where that is shorter."""
    size = 1_000_000
    index = torch.from_numpy(np.flatnonzero(np.random.default_rng(0).random(size) < density))
    bits = 8 * (len(pack(index, size)) - 10) / len(index)  # the header aside
    p = len(index) / size
    entropy = 0.0 if p == 1 else -(math.log2(p) + (1 - p) / p * math.log2(1 - p))
    assert bits <= min(entropy + 0.6, 1 / p + 0.01)


def test_damaged_bytes_are_refused() -> None:
    code = pack(torch.tensor([2, 300, 700]), 1000)
    for spoilt in (code[:5], code[:-1], torch.cat([code, code[:1]])):
        with pytest.raises(ValueError, match="packed indices"):
            unpack(spoilt, 1000)
    with pytest.raises(ValueError, match="make no sense"):
        unpack(code, 2)
    wrong = code.clone()
    wrong[10] ^= 255
    with pytest.raises(ValueError, match="packed indices"):
        unpack(wrong, 1000)


def delta(m: int, density: float) -> tuple[SparseDelta, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(rows, m // (2 * rows), generator=draw) for name, rows in (("a", 100), ("b", 200))}
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    chosen = {name: torch.nonzero(torch.rand(t.numel(), generator=draw) < density).squeeze(1) for name, t in base.items()}
    mask = Mask(shapes, chosen)
    tuned = mask.place(base, mask.gather(base) + torch.randn(mask.count, generator=draw))
    return SparseDelta.between(base, tuned, mask), base


def test_bytes_an_entry_beside_other_layouts(tmp_path: Path) -> None:
    """Half a percent of a million, single precision: 5.2 bytes, against 12 for two 32-bit coordinates and a value (peft's SHiRA),
    8 for a flat 32-bit index and a value, and 800 for the dense tensors. Exact, or rounded to 16 bits where asked."""
    mine, base = delta(1_000_000, 0.005)
    k = mine.mask.count
    mine.save(tmp_path / "exact")
    mine.save(tmp_path / "rounded", dtype=torch.bfloat16)
    parts = mine.values.split([len(index) for index in mine.mask.indices.values()])
    pairs: dict[str, torch.Tensor] = {}
    for (name, index), part in zip(mine.mask.indices.items(), parts, strict=True):
        columns = base[name].shape[1]
        pairs |= {f"{name}.index": torch.stack([index // columns, index % columns]).int(), f"{name}.values": part.clone()}
    flat = {name: (tensor[0] * 5000 + tensor[1] if name.endswith("index") else tensor) for name, tensor in pairs.items()}
    save_file(pairs, tmp_path / "pairs")
    save_file(flat, tmp_path / "flat")
    size = {path.name: path.stat().st_size / k for path in tmp_path.iterdir()}
    assert size["exact"] < 5.3
    assert size["rounded"] < 3.3
    assert 12 < size["pairs"] < 12.2
    assert 8 < size["flat"] < 8.2
    again = SparseDelta.load(tmp_path / "exact")
    assert torch.equal(again.values, mine.values)
    assert again.mask.equals(mine.mask)
    assert all(torch.equal(again.apply(base)[name], mine.apply(base)[name]) for name in base)
    rounded = SparseDelta.load(tmp_path / "rounded")
    assert rounded.values.dtype == torch.float32
    torch.testing.assert_close(rounded.values, mine.values, rtol=2**-8, atol=0)


def test_masks_with_empty_and_whole_tensors_come_back(tmp_path: Path) -> None:
    shapes = {"first": (4,), "none": (3, 2), "whole": (5,), "last": (2, 2)}
    mask = Mask(shapes, {"first": torch.tensor([3]), "whole": torch.arange(5), "last": torch.tensor([0, 3])})
    mask.save(tmp_path / "mask")
    assert Mask.load(tmp_path / "mask").equals(mask)
    Mask(shapes, {}).save(tmp_path / "empty")
    assert Mask.load(tmp_path / "empty").count == 0
    assert json.dumps(Mask.load(tmp_path / "mask").shapes) == json.dumps({n: list(s) for n, s in shapes.items()})
