"""What masks look like: shares and overlaps that were counted by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest
import torch

from stability import Mask, Problem, UsageError
from stability.selectors import SAM, FullTuning, HeadOnly, LoRA, Scope, overlap_by_chance, shares
from tests import tiny


def mask(shapes: Mapping[str, tuple[int, ...]], **chosen: list[int]) -> Mask:
    """A mask by hand: of each tensor, whose name has its dots written as ``_``, some flat indices."""
    names = {name.replace(".", "_"): name for name in shapes}
    return Mask(shapes, {names[name]: torch.tensor(index) for name, index in chosen.items()})


ENCODER = {
    "net.word.weight": (5, 2),
    "net.layer.10.q.weight": (2, 2),
    "net.layer.2.q.weight": (2, 2),
    "net.layer.2.sub.0.bias": (2,),
    "net.layer.10.sub.0.bias": (2,),
    "net.norm.bias": (3,),
}


def test_shares_by_layer_and_by_type() -> None:
    found = mask(ENCODER, net_word_weight=[1], net_layer_10_q_weight=[0, 3], net_layer_2_sub_0_bias=[1])
    layers = shares(found)
    assert layers["layer"].tolist() == ["2", "10", "outside"]
    assert layers["chosen"].tolist() == [1, 2, 1]
    assert layers["size"].tolist() == [6, 6, 13]
    assert layers["density"].tolist() == pytest.approx([1 / 6, 2 / 6, 1 / 13])
    assert layers["share"].tolist() == [0.25, 0.5, 0.25]
    assert layers["of_model"].tolist() == pytest.approx([6 / 25, 6 / 25, 13 / 25])
    types = shares(found, "type").set_index("type")
    assert types.index.tolist() == ["layer.*.q.weight", "layer.*.sub.*.bias", "word.weight", "norm.bias"]
    assert types["chosen"].tolist() == [2, 1, 1, 0]
    assert types["size"].tolist() == [8, 4, 10, 3]
    tensors = shares(found, "tensor").set_index("tensor")
    assert tensors["chosen"].to_dict() == {**dict.fromkeys(ENCODER, 0), **{n: len(i) for n, i in found.indices.items()}}


def test_each_stack_of_layers_has_rows_of_its_own() -> None:
    shapes = {f"t.{part}.{n}.w": (2,) for part in ("encoder", "decoder") for n in (0, 1)}
    assert shares(mask(shapes, t_decoder_1_w=[0]))["layer"].tolist() == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    assert shares(mask(shapes, t_decoder_1_w=[0]), "type")["type"].tolist() == ["encoder.*.w", "decoder.*.w"]


@pytest.mark.parametrize("shapes", [{"weight": (2,)}, {"a.weight": (2,), "a.bias": (1,)}, {"0.weight": (2,), "2.weight": (2,)}])
def test_models_of_any_names(shapes: dict[str, tuple[int, ...]]) -> None:
    found = Mask(shapes, {name: torch.tensor([0]) for name in shapes})
    layers, types = shares(found), shares(found, "type")
    assert layers["chosen"].sum() == types["chosen"].sum() == len(shapes)
    assert layers["share"].sum() == types["share"].sum() == pytest.approx(1)
    assert types["type"].tolist() == list(dict.fromkeys(name.rpartition(".")[2] for name in shapes))
    assert layers["layer"].tolist() == (["0", "2"] if "0.weight" in shapes else ["outside"])


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "t5"])
def test_layers_and_types_of_models_of_transformers(family: str) -> None:
    import transformers

    sizes = {"vocab_size": 20, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    opt = {"opt": lambda: transformers.OPTConfig(**sizes, num_attention_heads=2, max_position_embeddings=8)}
    families: dict[str, Any] = {**tiny.FAMILIES, **tiny.OTHERS, **opt}
    model = transformers.AutoModel.from_config(families[family]())
    found = Mask.full(dict(model.named_parameters()))
    layers, types = shares(found), shares(found, "type")
    numbered = [layer for layer in layers["layer"] if layer != "outside"]
    assert numbered == (
        ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"] if family == "t5" else ["0", "1"]
    )
    assert not types["type"].str.contains(r"(?:^|\.)\d+\.", regex=True).any()
    query, width = {
        "bert": ("encoder.layer.*.attention.self.query.weight", 16 * 16),
        "gpt2": ("h.*.attn.c_attn.weight", 16 * 48),
        "opt": ("layers.*.self_attn.q_proj.weight", 16 * 16),
        "t5": ("decoder.block.*.layer.*.SelfAttention.q.weight", 16 * 16),
    }[family]
    assert types.set_index("type")["size"][query] == width * 2
    if family == "opt":  # the norm of a layer and that after all layers have one name
        both = types.set_index("type").loc[["layers.*.final_layer_norm.weight", "final_layer_norm.weight"], "size"]
        assert both.tolist() == [2 * 16, 16]
    assert layers["size"].sum() == types["size"].sum() == found.total


def test_a_type_is_a_group_of_the_scope() -> None:
    names = [*ENCODER, "net.stack.0.w", "net.stack.1.w", "net.other.1.w"]
    shapes = dict.fromkeys(names, (10,))
    groups = [[names[place] for place in section.tensors] for section in Scope("type").sections(shapes, 0.5)]
    chosen = [shares(Mask(shapes, {name: torch.tensor([0]) for name in group}), "type").query("chosen > 0") for group in groups]
    assert [(one["chosen"].tolist(), one["size"].tolist()) for one in chosen] == [([len(g)], [10 * len(g)]) for g in groups]
    assert len(groups) == 6


def test_shares_of_no_and_of_all_coordinates(digits: Problem) -> None:
    none, every = (shares(one.select(digits, 0)) for one in (HeadOnly(), FullTuning()))
    assert (none["chosen"] == 0).all()
    assert none["share"].isna().all()
    assert (every["density"] == 1).all()
    assert every["share"].tolist() == every["of_model"].tolist()


def test_overlap_by_hand(digits: Problem) -> None:
    shapes = {"a": (4,), "b": (4,)}
    one, other = mask(shapes, a=[0, 1, 2], b=[3]), mask(shapes, a=[1, 2, 3])
    assert one.overlap(other) == other.overlap(one) == 2 / 5
    assert one.overlap(one) == 1
    assert one.overlap(mask(shapes, b=[0])) == 0
    assert mask(shapes).overlap(mask(shapes)) == 1
    inserted = LoRA(rank=2)
    assert math.isnan(inserted.select(digits, 0).overlap(SAM(0.01).select(digits, 0)))
    assert math.isnan(overlap_by_chance(inserted.select(digits, 0), SAM(0.01).select(digits, 0)))


@pytest.mark.parametrize(("a", "b"), [(60, 60), (20, 150), (300, 300), (200, 10)])
def test_overlap_by_chance_is_that_of_random_masks(a: int, b: int) -> None:
    """Against 4000 draws, within four standard errors and half a thousandth for the terms beyond the second."""
    draw, shapes = torch.Generator().manual_seed(1), {"a": (200,), "b": (100,)}
    one, other = (Mask.at(shapes, torch.randperm(300, generator=draw)[:count].sort().values) for count in (a, b))
    in_tensors = [(size, len(one.indices.get(name, ())), len(other.indices.get(name, ()))) for name, (size,) in shapes.items()]
    groupings: dict[Literal["model", "tensor"], list[tuple[int, int, int]]] = {"model": [(300, a, b)], "tensor": in_tensors}
    for within, groups in groupings.items():
        both = torch.zeros(4000, dtype=torch.float64)
        for size, mine, theirs in groups:
            ranks = torch.rand(4000, size, generator=draw).argsort(1)  # of one mask; the other may be the first coordinates
            both += (ranks[:, :mine] < theirs).sum(1)
        drawn = both / (a + b - both)
        expected, error = float(drawn.mean()), float(drawn.std()) / math.sqrt(4000)
        assert overlap_by_chance(one, other, within) == pytest.approx(expected, abs=4 * error + 5e-4)


def test_overlap_by_chance_in_tensors_counts_agreement_on_tensors() -> None:
    shapes = {"a": (100,), "b": (900,)}
    one, other = (Mask(shapes, {"a": torch.arange(first, first + 50)}) for first in (0, 25))
    assert overlap_by_chance(one, other, "tensor") == pytest.approx(25 / 75, abs=0.01)
    assert overlap_by_chance(one, other) == pytest.approx(2.5 / 97.5, abs=0.002)
    full = Mask(shapes, {"a": torch.arange(100), "b": torch.arange(900)})
    assert overlap_by_chance(full, full) == overlap_by_chance(full, full, "tensor") == 1
    assert overlap_by_chance(Mask(shapes, {}), Mask(shapes, {})) == 1
    assert overlap_by_chance(full, Mask(shapes, {})) == 0


def test_bad_input() -> None:
    found = mask({"a": (2,)}, a=[0])
    with pytest.raises(UsageError, match="unknown by 'head': use layer, type or tensor"):
        shares(found, "head")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="use a mask, such as"):
        shares({"a": torch.tensor([0])})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown within 'layer'"):
        overlap_by_chance(found, found, "layer")  # type: ignore[arg-type]
