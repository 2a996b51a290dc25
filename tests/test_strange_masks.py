"""Masks and deltas from strangers."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stability import Mask, SparseDelta, StabilityError
from stability.masks import fingerprint
from stability.shira import import_shira
from tests.strangers import REFUSED, answer, bytes_like, content_of, nested, tries, values_like, written

BASE = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.zeros(4), "b.weight": torch.ones(2, 3)}
MASK = Mask(
    {name: tuple(one.shape) for name, one in BASE.items()}, {"a.weight": torch.tensor([1, 5, 11]), "b.weight": torch.tensor([0])}
)
DELTA = SparseDelta(MASK, torch.tensor([0.5, 1.5, 2.5, -1.0]), fingerprint(BASE), {"head": torch.ones(2)})


def bytes_of(save: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(path := Path(folder) / "file")
        return path.read_bytes()


FILES = {Mask: bytes_of(MASK.save), SparseDelta: bytes_of(DELTA.save)}


def shown(read: Any) -> Any:
    """What can be done with a mask or a delta that was read; all of it must go well."""
    mask = read if isinstance(read, Mask) else read.mask
    assert mask.count <= mask.total
    assert sum(len(index) for index in mask.indices.values()) == mask.count
    repr(read)
    mask._repr_html_()
    if isinstance(read, SparseDelta):
        assert read.values.shape == (mask.count,)
        answer(lambda: read.apply(BASE))
    return read


def opened(kind: type[Mask | SparseDelta], content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        found = answer(lambda: shown(kind.load(path)))
        assert content_of(Path(folder)) == {"file": content}, "reading changed something"
    return found


def file_of(header: Any, rest: bytes) -> bytes:
    """A file of safetensors, with whatever header."""
    text = written(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def parts_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["shapes"] = json.loads(header["__metadata__"]["shapes"])
    return header, content[8 + length :]


def packed(header: Any, rest: bytes) -> bytes:
    """The reverse of :func:`parts_of`."""
    new = json.loads(json.dumps(header))
    if isinstance(new, dict) and isinstance(new.get("__metadata__"), dict) and "shapes" in new["__metadata__"]:
        new["__metadata__"]["shapes"] = written(new["__metadata__"]["shapes"])
    return file_of(new, rest)


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
@tries(100)
def test_bytes(kind: type[Mask | SparseDelta], data: st.DataObject) -> None:
    opened(kind, data.draw(bytes_like(FILES[kind])))


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
@tries(100)
def test_headers(kind: type[Mask | SparseDelta], data: st.DataObject) -> None:
    """Shapes, types, offsets and metadata that say something else than the bytes do."""
    header, rest = parts_of(FILES[kind])
    odd = ("U8", "F4", "F8_E4M3", "BF16", "C64", "BOOL", "nn", "load", "qint8", "bits8", [0, 10**12], [2**62, 4])
    opened(kind, packed(data.draw(values_like(header, odd)), rest))


def with_metadata(kind: type[Mask | SparseDelta], **metadata: Any) -> bytes:
    header, rest = parts_of(FILES[kind])
    header["__metadata__"] |= metadata
    return packed(header, rest)


def of_all(shapes: Any) -> bytes:
    """A mask of every coordinate of whatever shapes, which takes ten bytes."""
    size = 1
    for one in shapes.get("w", [1]):
        size *= one
    metadata = {"kind": "mask", "shapes": json.dumps(shapes)}
    code = struct.pack("<BBQ", 0, 0, size % 2**64)
    return file_of({"__metadata__": metadata, "indices": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10]}}, code)


REFUSED_MASKS = {
    "no shapes": with_metadata(Mask, shapes=[1, 2]),
    "shapes are no numbers": with_metadata(Mask, shapes={"a": "abc"}),
    "fractions": with_metadata(Mask, shapes={"a": [2.5, 4]}),
    "less than none": with_metadata(Mask, shapes={"a": [-2, -11]}),
    "nested without end": with_metadata(Mask, shapes=nested(500)).replace(b"[[]]", b"[" * 100_000),
    "more than memory has": of_all({"w": [2**30, 2**12]}),
    "more than a number holds": of_all({"w": [2**40, 2**40]}),
    "nothing": of_all({"w": [0]}),
    "a thousand axes": of_all({"w": [2] * 1000}),
}


@pytest.mark.parametrize("content", REFUSED_MASKS.values(), ids=REFUSED_MASKS)
def test_masks_that_claim_what_cannot_be(content: bytes) -> None:
    assert opened(Mask, content) is REFUSED


@pytest.mark.parametrize("dtype", ["nn", "load", "qint8", "no such", "__class__", ""])
def test_deltas_of_a_type_that_is_none(dtype: str) -> None:
    assert opened(SparseDelta, with_metadata(SparseDelta, dtype=dtype)) is REFUSED


def test_a_delta_without_its_base() -> None:
    header, rest = parts_of(FILES[SparseDelta])
    del header["__metadata__"]["base"]
    assert opened(SparseDelta, packed(header, rest)) is REFUSED


def test_a_delta_whose_base_fits_and_whose_names_do_not() -> None:
    shapes = {"other": [3, 4], "a.bias": [4], "b.weight": [2, 3]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_bytes(with_metadata(SparseDelta, shapes=shapes))
        delta = SparseDelta.load(Path(folder) / "file")
    with pytest.raises(StabilityError, match=r"damaged: what it says of 'other' does not fit"):
        delta.apply(BASE)


def test_a_head_does_not_take_the_place_of_pretrained_parameters() -> None:
    delta = SparseDelta(MASK, DELTA.values, DELTA.base, {"a.bias": torch.ones(4)})
    with pytest.raises(StabilityError, match=r"damaged: what it says of 'a.bias' does not fit"):
        delta.apply(BASE)


@pytest.mark.parametrize("kind", FILES)
def test_a_pickle_is_not_run(kind: type[Mask | SparseDelta], tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"shapes": Harm()}, tmp_path / "file")
    with pytest.raises(StabilityError, match="cannot read"):
        kind.load(tmp_path / "file")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["a\0b", "", ".", "a" * 5000, "\ud800"])
def test_paths_that_are_none(kind: type[Mask | SparseDelta], name: str) -> None:
    assert answer(lambda: kind.load(name)) is REFUSED


# Adapters of peft

CONFIG = {"peft_type": "SHIRA", "r": 1, "target_modules": "a"}
ADAPTER = {
    "base_model.model.a.shira_weight": torch.tensor([0.5, 1.0, -1.0]),
    "base_model.model.a.shira_indices": torch.tensor([[0, 1, 2], [1, 0, 3]], dtype=torch.int32),
    "base_model.model.head": torch.ones(2),
}
PARTS = {
    "adapter_config.json": json.dumps(CONFIG).encode(),
    "adapter_model.safetensors": bytes_of(
        lambda path: save_file(ADAPTER, path, {"format": "pt", "base": fingerprint(BASE), "masked": json.dumps({"a.weight": 2})})
    ),
}


def imported(parts: dict[str, bytes]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in parts.items():
            (Path(folder) / name).write_bytes(content)
        found = answer(lambda: shown(import_shira(folder, BASE)))
        assert content_of(Path(folder)) == parts
    return found


def test_an_adapter_as_it_was() -> None:
    assert imported(PARTS).mask.indices["a.weight"].tolist() == [1, 4]


@pytest.mark.parametrize("part", PARTS)
@given(data=st.data())
@tries(60)
def test_bytes_of_adapters(part: str, data: st.DataObject) -> None:
    imported(PARTS | {part: data.draw(bytes_like(PARTS[part]))})


@given(data=st.data())
@tries(60)
def test_headers_of_adapters(data: st.DataObject) -> None:
    content = PARTS["adapter_model.safetensors"]
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    new = data.draw(
        values_like(header, ("U8", "I64", "F64", "C64", "BOOL", "F8_E4M3", '{"a.weight": -1}', "[]", '{"a.weight": "x"}'))
    )
    imported(PARTS | {"adapter_model.safetensors": file_of(new, content[8 + length :])})


def adapter(**tensors: torch.Tensor) -> dict[str, bytes]:
    named = {f"base_model.model.a.shira_{name}": tensor for name, tensor in tensors.items()}
    return PARTS | {"adapter_model.safetensors": bytes_of(lambda path: save_file(named, path))}


ROWS = torch.tensor([[0, 1, 2], [1, 0, 3]])


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.ones(3, 1), "indices": ROWS},
        {"weight": torch.ones(3, dtype=torch.complex64), "indices": ROWS},
        {"weight": torch.ones(3, dtype=torch.int64), "indices": ROWS},
        {"weight": torch.ones(3), "indices": ROWS.to(torch.complex64)},
        {"weight": torch.ones(3), "indices": torch.full((2, 3), float("nan"))},
        {"weight": torch.tensor(1.0), "indices": ROWS},
        {"weight": torch.ones(3), "indices": ROWS - 1},
    ],
)
def test_adapters_that_cannot_be(tensors: dict[str, torch.Tensor]) -> None:
    assert imported(adapter(**tensors)) is REFUSED


@pytest.mark.parametrize("masked", ["[]", '{"a.weight": -1}', '{"a.weight": "x"}', '{"a.weight": 0}', "[" * 100_000])
def test_counts_of_masked_coordinates_that_are_none(masked: str) -> None:
    content = bytes_of(lambda path: save_file(ADAPTER, path, {"masked": masked}))
    assert imported(PARTS | {"adapter_model.safetensors": content}) is REFUSED
