"""Scopes against plain loops: who competes with whom, and for how many places."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
import transformers

from stability import Problem, UsageError, load, measure, train
from stability.leave_one_out.estimators import Sampled
from stability.problems.solvable import linear_regression
from stability.selectors import (
    SAM,
    BiasesAndNorms,
    ChildPruning,
    Gradient,
    HeadOnly,
    LastLayers,
    MagPruning,
    Random,
    Scope,
    Selector,
    from_scores,
)
from stability.selectors.code import code_of
from stability.selectors.naming import selector_named
from stability.selectors.scope import Unit, Within
from stability.selectors.top_k import regrown, top_k, top_k_of_rows
from stability.studies import Study
from stability.studies.rebuilt import rebuilt
from stability.training import FineTuning
from tests.tiny import FAMILIES, LLAMA, OTHERS, SMALL

SHAPES = {
    "embeddings.weight": (7, 4),
    "layers.0.attn.query.weight": (4, 4),
    "layers.0.attn.query.bias": (4,),
    "layers.0.attn.key.weight": (4, 3),
    "layers.0.attn.value.weight": (4, 4),
    "layers.0.attn.dense.weight": (2, 4),
    "layers.0.norm.weight": (4,),
    "layers.1.attn.query.weight": (4, 4),
    "layers.1.attn.query.bias": (4,),
    "layers.1.attn.key.weight": (4, 3),
    "layers.1.attn.value.weight": (4, 4),
    "layers.1.attn.dense.weight": (2, 4),
    "layers.1.norm.weight": (4,),
    "layers.1.conv.weight": (3, 2, 2, 2),
    "pooler.token": (1, 1, 5),
}
WITHIN: tuple[Within, ...] = get_args(Within)
M = sum(math.prod(shape) for shape in SHAPES.values())
EVERY = [
    *(Scope(within) for within in WITHIN),
    *(Scope(within, budget="equal") for within in WITHIN[1:]),
    *(Scope(within, budget="erk") for within in WITHIN[1:]),
    *(Scope(within, only=("*query*", "*value*", "*conv*")) for within in WITHIN),
    *(Scope(within, without=("*NORM*", "embeddings*")) for within in WITHIN),
    Scope("tensor", only="layers*", without="*bias", budget="erk"),
]


def described(scope: Scope) -> str:
    return str(scope.settings())


def groups(scope: Scope) -> list[tuple[list[tuple[str, int]], float]]:
    """Each group as a list of its coordinates (tensor, flat index), with its weight, by loops."""
    found: dict[Any, list[tuple[str, int]]] = {}
    for name, shape in SHAPES.items():
        wanted = not scope.only or any(part.strip("*").lower() in name for part in scope.only)
        if not wanted or any(part.strip("*").lower() in name for part in scope.without):
            continue
        for index in range(math.prod(shape)):
            row = index // math.prod(shape[1:]) if len(shape) > 1 else 0
            layer = name.split(".")[1] if name.startswith("layers") else "none"
            kind = name.replace(".0.", ".*.").replace(".1.", ".*.")
            key = {"global": "", "tensor": name, "row": (name, row), "layer": layer, "type": kind}[scope.within]
            found.setdefault(key, []).append((name, index))
    density = {name: sum(shape) / math.prod(shape) for name, shape in SHAPES.items()}
    weights: list[float] = {
        "proportional": [float(len(members)) for members in found.values()],
        "equal": [1.0 for _ in found],
        "erk": [sum(density[name] for name, _ in members) for members in found.values()],
    }[scope.budget]
    return list(zip(found.values(), weights, strict=True))


def expected(scope: Scope, scores: dict[str, np.ndarray], p: float) -> set[tuple[str, int]]:
    """ε by bisection, and the first of the largest of each group by sorting."""
    each = groups(scope)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        asked = sum(min(len(members), middle * weight) for members, weight in each)
        low, high = (middle, high) if asked < p * M else (low, middle)
    chosen = set()
    for members, weight in each:
        count = math.floor(min(len(members), high * weight) + 1e-9)
        order = sorted(range(len(members)), key=lambda i: (-scores[members[i][0]].flat[members[i][1]], i))
        chosen |= {members[i] for i in order[:count]}
    return chosen


@pytest.mark.parametrize("scope", EVERY, ids=described)
def test_scopes_against_plain_loops(scope: Scope) -> None:
    draw = np.random.default_rng(0)
    compared = 0
    for p, ties in itertools.product((0.1, 0.25, 0.3, 0.5, 0.9, 1.0), (False, True)):
        raw = {name: draw.integers(0, 4, shape) if ties else draw.standard_normal(shape) for name, shape in SHAPES.items()}
        scores = {name: torch.from_numpy(np.asarray(value, dtype=np.float64)) for name, value in raw.items()}
        try:
            mask = top_k(scores, p, scope)
        except UsageError as error:
            there = sum(len(members) for members, _ in groups(scope))
            assert "nothing in a row" in str(error) or p * M > there  # noqa: PT017
            continue
        found = {(name, int(i)) for name, index in mask.indices.items() for i in index}
        assert found == expected(scope, {name: np.asarray(value) for name, value in raw.items()}, p)
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("scope", [one for one in EVERY if one.within == "row"], ids=described)
def test_the_least_p_of_a_row_is_named_and_serves(scope: Scope) -> None:
    scores = {name: torch.rand(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    with pytest.raises(UsageError, match=r"selects nothing in a row of .*: use p ≥ 0\.\d+, or leave tensors out") as caught:
        top_k(scores, 0.05, scope)
    least = float(str(caught.value).partition("p ≥ ")[2].partition(",")[0])
    assert top_k(scores, least, scope).count > 0
    with pytest.raises(UsageError, match="selects nothing in a row"):
        top_k(scores, 0.99 * least, scope)


def unit_of(scope: Scope, name: str, index: int) -> Any:
    """The unit of a coordinate, None where it has none."""
    shape = SHAPES[name]
    row, column = divmod(index, math.prod(shape[1:]))
    if scope.unit == "layer":
        return name.split(".")[1] if name.startswith("layers") else None
    if scope.unit == "tensor":
        return name
    if scope.unit == "head":
        across = (2 * column // shape[1]) if "dense" in name else (2 * row // shape[0])
        return (name.split(".")[1], across) if "attn" in name else None
    if len(shape) < 2:
        return None
    return name, {"row": row, "column": column, "block": (row // scope.block, column // scope.block)}[scope.unit]


UNITS = [
    *(Scope(unit=unit) for unit in get_args(Unit)[1:] if unit != "head"),
    *(Scope(within, unit="row") for within in WITHIN if within not in ("global", "row")),
    Scope(unit="block", block=3),
    Scope(unit="head", heads=2),
    Scope("layer", unit="head", heads=2),
    Scope("layer", unit="tensor", budget="equal", without="*norm*"),
    Scope("type", unit="column", only=("*query*", "*value*", "*conv*")),
]


@pytest.mark.parametrize("scope", UNITS, ids=described)
def test_units_are_taken_by_their_means_while_they_fit(scope: Scope) -> None:
    draw, compared = np.random.default_rng(1), 0
    for p, ties in itertools.product((0.2, 0.4, 0.5, 0.6), (False, True)):
        raw = {name: draw.integers(-1, 3, shape) if ties else draw.standard_normal(shape) for name, shape in SHAPES.items()}
        scores = {name: torch.from_numpy(np.asarray(value, dtype=np.float64)) for name, value in raw.items()}
        each = []
        for members, _ in groups(dataclasses.replace(scope, unit="coordinate", block=16, heads=None)):
            mine: dict[Any, list[tuple[str, int]]] = {}
            for name, index in members:
                if (unit := unit_of(scope, name, index)) is not None:
                    mine.setdefault(unit, []).append((name, index))
            if mine:
                each.append(list(mine.values()))
        sizes = [sum(map(len, units)) for units in each]
        shares = [1 / len(each) if scope.budget == "equal" else size / sum(sizes) for size in sizes]
        places = [math.floor(p * M * share + 1e-9) for share in shares]
        if any(place > size for place, size in zip(places, sizes, strict=True)):
            continue  # a full group leaves its places to others: test_scopes_against_plain_loops
        expected, most = set(), 0
        for units, left in zip(each, places, strict=True):
            most += left
            order = sorted(range(len(units)), key=lambda i: (-sum(float(raw[n].flat[j]) for n, j in units[i]) / len(units[i]), i))
            for unit in order:
                left -= len(units[unit])
                if left < 0:
                    break
                expected |= set(units[unit])
        if all(place < max(map(len, units)) for place, units in zip(places, each, strict=True)):
            with pytest.raises(UsageError, match=rf"where a {scope.unit} may have \d+ coordinates: use p ≥"):
                top_k(scores, p, scope)
            continue
        mask = top_k(scores, p, scope)
        assert {(name, int(i)) for name, index in mask.indices.items() for i in index} == expected
        assert mask.count <= most
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("scope", [*UNITS, Scope(unit="row", only="*query*", without="*bias"), Scope("row")], ids=described)
def test_a_unit_that_is_drawn_has_the_number_of_its_first_coordinate(scope: Scope) -> None:
    scores = torch.rand(2, M, generator=torch.Generator().manual_seed(0))
    expected, first, place = scores.clone(), dict[Any, int](), 0
    inside = {
        name for members, _ in groups(dataclasses.replace(scope, unit="coordinate", block=16, heads=None)) for name, _ in members
    }
    for name, shape in SHAPES.items():
        for index in range(math.prod(shape)):
            unit = None if scope.unit == "coordinate" or name not in inside else unit_of(scope, name, index)
            if unit is not None:
                expected[:, place] = scores[:, first.setdefault(unit, place)]
            place += 1
    assert torch.equal(scope.alike(scores, SHAPES), expected)
    assert scope.unit == "coordinate" or not torch.equal(expected, scores)


@pytest.mark.parametrize("scope", [Scope(unit="tensor"), Scope("layer", unit="row"), Scope(unit="layer")], ids=described)
def test_the_least_p_of_a_unit_is_named_and_serves(scope: Scope) -> None:
    scores = {name: torch.rand(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    with pytest.raises(UsageError, match=rf"a {scope.unit} may have \d+ coordinates: use p ≥ 0\.\d+, a smaller unit") as caught:
        top_k(scores, 0.02, scope)
    least = float(str(caught.value).partition("p ≥ ")[2].partition(",")[0])
    assert top_k(scores, least, scope).count > 0
    with pytest.raises(UsageError, match=f"a {scope.unit} may have"):
        top_k(scores, 0.99 * least, scope)


@pytest.mark.parametrize("scope", [*EVERY, *UNITS], ids=described)
def test_replicas_choose_as_each_would_alone(scope: Scope) -> None:
    scores = torch.rand(3, M, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[1, ::3] = 0.5
    scores[2, ::7] = torch.nan
    p = 0.5
    at_once = top_k_of_rows(scores, SHAPES, p, scope)
    assert torch.equal(at_once, torch.cat([top_k_of_rows(row.unsqueeze(0), SHAPES, p, scope) for row in scores]))
    assert scope.unit != "coordinate" or len(set(at_once.sum(1).tolist())) == 1


def test_the_most_p_of_some_tensors_is_named_and_serves() -> None:
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    scope = Scope(only="*.bias")
    with pytest.raises(UsageError, match=rf"k = {M // 2} of all m = {M} .* have 8: use p ≤ 0\.0\d+, or more") as caught:
        top_k(scores, 0.5, scope)
    most = float(str(caught.value).partition("p ≤ ")[2].partition(",")[0])
    assert top_k(scores, most, scope).count == 8 - 1  # p is rounded down: ⌊pm⌋ is 7 or 8
    assert top_k(scores, 8 / M, scope).count == 8


def attention(**other: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The shapes of an attention of width 4, some of them other ones."""
    return {f"attn.{name}.weight": other.get(name, (4, 4)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scope("head"), "unknown scope 'head': use global, tensor, row, layer or type"),  # type: ignore[arg-type]
        (lambda: Scope("tensor", budget="fair"), "unknown budget 'fair'"),  # type: ignore[arg-type]
        (lambda: Scope(budget="equal"), "'global' is one group"),
        (lambda: Scope(unit="expert"), "unknown unit 'expert'"),  # type: ignore[arg-type]
        (lambda: Scope(unit="head"), "heads = None: with unit .head. give heads"),
        (lambda: Scope(unit="row", heads=2), "and heads = 2: with unit .head. give heads"),
        (lambda: Scope(unit="head", heads=0), "heads = 0"),
        (
            lambda: Scope(unit="head", heads=2).sections(attention(k_proj=(2, 4)), 0.9),
            "'attn.k_proj.weight' has 2 rows, which are not divided alike into so many heads",
        ),
        (
            lambda: Scope(unit="head", heads=2, only="*k_proj*").sections(attention(k_proj=(2, 4)), 0.1),
            "'attn.k_proj.weight' has 2 rows",
        ),
        (
            lambda: Scope(unit="head", heads=5).sections(attention(), 0.5),
            "heads = 5: 'attn.q_proj.weight' has 4 rows",
        ),
        (lambda: Scope("tensor", unit="layer"), "within a tensor there are no units to choose from but coordinate, block, row"),
        (lambda: Scope(unit="block", block=0), "block = 0"),
        (lambda: Scope("row", block=4), "block = 4 is the side of a block, and unit = 'coordinate': use unit 'block'"),
        (lambda: Scope(without="*").chosen_from(["a", "b"]), r"^without = \['\*'\] leaves no tensor: use other patterns"),
        (lambda: Scope(only="a", without="*").chosen_from(["a", "b"]), r"only = \['a'\] and without = \['\*'\] leave no tensor"),
        (lambda: Scope(only="0.*").chosen_from(["layer.0.mlp"]), r"so use '\*0\.\*'$"),
        (lambda: Scope(only="").chosen_from(["a.0.mlp"]), "matches no tensor: the nearest names are a.0.mlp"),
        (
            lambda: Scope("tensor").sections({"a": (2, 3), "b": (4,)}, 0.15),
            "single tensor: use p ≥ 0.1667, or scope='global'",
        ),
        (lambda: Scope(only="mlp").chosen_from(["0.mlp.weight"]), "matches no tensor: .* so use '\\*mlp\\*'"),
        (lambda: Scope(only=(3,)), "only = 3: use patterns"),  # type: ignore[arg-type]
        (lambda: Scope(only=3), "only = 3: use patterns"),  # type: ignore[arg-type]
        (lambda: Scope(without=None), "without = None: use patterns"),  # type: ignore[arg-type]
        (lambda: selector_named("sam", 0.1, only=3), "only = 3: use patterns"),
        (lambda: selector_named("sam", 0.1, only="*.query.*", budget="equal"), "'global' is one group"),
        (lambda: selector_named("sam", 0.1, scope={"within": "row", "onyl": "*"}), "has no onyl: leave it out; did you mean only"),
        (lambda: selector_named("bitfit", only="*"), "selector 'bitfit' has no only"),
    ],
)
def test_senseless_scopes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (Scope(only="*.qury.*"), r"only = '\*\.qury\.\*' matches no tensor: the nearest names are layers\.0\.attn\.query\.weight"),
        (Scope(without="*.nrom.*"), r"without = '\*\.nrom\.\*' matches no tensor: the nearest names are layers\.0\.norm"),
        (Scope(unit="row", only="*norm*"), "unit = 'row': no tensor that may be chosen from has one"),
        (Scope(only="*"), None),
        (Scope(only="*.query.*", without="layers*"), "leave no tensor"),
    ],
)
def test_patterns_that_match_nothing_are_refused(scope: Scope, message: str | None) -> None:
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    if message is None:
        assert top_k(scores, 0.5, scope).equals(top_k(scores, 0.5))
        return
    with pytest.raises(UsageError, match=message):
        top_k(scores, 0.1, scope)


def test_a_scope_is_one_setting_however_it_is_given() -> None:
    """A word, a scope, a table and settings beside it; the word alone is what it was before there were scopes."""
    assert SAM(0.1, scope=Scope("tensor")).settings() == SAM(0.1, scope="tensor").settings()
    assert SAM(0.1, scope=Scope("tensor")).settings()["scope"] == "tensor"
    whole = Scope("row", only=("*.query.*",), without=("*bias",))
    told = {"within": "row", "only": ["*.query.*"], "without": ["*bias"]}
    assert Random(0.1, scope=whole).settings()["scope"] == told
    assert code_of(Random, whole) is None  # told in plain values, and so no code
    for made in (
        selector_named("random", 0.1, scope=told),
        selector_named("random", 0.1, scope="row", only="*.query.*", without=["*bias"]),
        selector_named("random", 0.1, scope={"within": "row", "without": "*bias"}, only=["*.query.*"]),
        selector_named("random", 0.1, scope=dataclasses.replace(whole, only=()), only="*.query.*"),
    ):
        assert made == Random(0.1, scope=whole)


def test_a_stored_scope_makes_the_study_again() -> None:
    algorithms = tuple(FineTuning(kind(0.1, scope=Scope("tensor", without="*norm*"))) for kind in (Gradient, ChildPruning))
    study = Study("scoped", "digits", algorithms, (0,), problem_settings={"n": 20})
    assert rebuilt(study.identity()).algorithms == study.algorithms


def test_moving_methods_and_score_functions_have_scopes_too(digits: Problem) -> None:
    scope = Scope("type", only="*.mlp.*weight")
    masks = train(digits, FineTuning(ChildPruning(0.02, scope=scope), steps=2)).masks
    mine = from_scores(lambda problem, draw: {n: t.abs() for n, t in problem.pretrained.items()}, 0.02, scope)
    for mask in (masks[0], mine.select(digits, 0), MagPruning(0.02, scope=scope).select(digits, 0)):
        per_type = {kind: sum(len(i) for n, i in mask.indices.items() if kind in n) for kind in ("fc1", "fc2")}
        assert per_type == {"fc1": int(0.02 * digits.m) // 2, "fc2": int(0.02 * digits.m) // 2}
        assert all(".mlp." in name and name.endswith("weight") for name in mask.indices)


@pytest.mark.parametrize("scope", [Scope("tensor"), Scope("row", without="*norm*"), Scope("type", budget="erk")], ids=described)
def test_exchanges_are_made_within_each_group(scope: Scope) -> None:
    draw = torch.Generator().manual_seed(0)
    drawn, stay, grow = torch.rand(3, 2, M, generator=draw, dtype=torch.float64)
    mask = top_k_of_rows(drawn, SHAPES, 0.4, scope)
    found = regrown(mask, stay, grow, SHAPES, sparsity=0.4, scope=scope, share=0.5)
    place = dict(zip(SHAPES, itertools.accumulate(map(math.prod, SHAPES.values()), initial=0), strict=False))
    for row in range(2):
        expected = set()
        for members, _ in groups(scope):
            where = [place[name] + index for name, index in members]
            inside = sorted((j for j in where if mask[row, j]), key=lambda j: -float(stay[row, j]))
            kept = inside[: len(inside) - len(inside) // 2]
            others = sorted((j for j in where if j not in kept), key=lambda j: -float(grow[row, j]))
            expected |= {*kept, *others[: len(inside) // 2]}
        assert set(torch.nonzero(found[row]).squeeze(1).tolist()) == expected
    assert bool((found != mask).any())


def test_masks_of_whole_rows_and_of_several_sizes_are_trained_and_measured(digits: Problem) -> None:
    small = dataclasses.replace(digits, train=digits.train.take(slice(0, 10)), test=digits.test.take(slice(0, 20)))
    estimate = measure(small, FineTuning(Gradient(0.02, scope=Scope(unit="row")), steps=2), Sampled(4))
    assert estimate.failed == {}
    assert len({mask.count for mask in estimate.replicas.masks}) > 1
    for mask in estimate.replicas.masks:
        for name, index in mask.indices.items():
            across = math.prod(digits.pretrained[name].shape[1:])
            assert all(count == across for count in (index // across).unique(return_counts=True)[1].tolist())


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (LastLayers(layers=4), "last-layers: layers = 4, and 'digits' has 3: use at most so many"),
        (LastLayers(), "last-layers: no tensor of 'bare' has the number of a layer"),
        (BiasesAndNorms(), "biases-norms tunes tensors of one dimension, and 'bare' has none"),
    ],
)
def test_models_without_what_a_rule_names_are_refused(selector: Selector, message: str, digits: Problem) -> None:
    if "bare" in message:
        matrices = {name: tensor for name, tensor in digits.pretrained.items() if tensor.ndim > 1 and "layers" not in name}
        digits = dataclasses.replace(digits, name="bare", pretrained=matrices)
    with pytest.raises(UsageError, match=message):
        selector.select(digits, 0)


def test_head_only_trains_the_head_alone(digits: Problem) -> None:
    replicas = train(digits, FineTuning(HeadOnly(), steps=2))
    tuned = replicas.parameters(0)
    assert all(torch.equal(tuned[name], tensor) for name, tensor in digits.pretrained.items())
    assert any(not torch.equal(tuned[name], tensor) for name, tensor in digits.head(0).items())
    with pytest.raises(UsageError, match="k = 0 of m = 4 and no head"):
        train(linear_regression(np.eye(4), np.arange(4.0)).problem, FineTuning(HeadOnly(), steps=1))


WORDS = {"input_ids": torch.arange(12).view(2, 6)}
WIDE = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 8}
COMMON = {"vocab_size": 12, "num_hidden_layers": 2, "initializer_range": 0.5, "pad_token_id": 0, **WIDE}
SHORT = {"max_position_embeddings": 8}
HALF = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3}
BART = {"d_model": 12, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "init_std": 0.5, **HALF, **SHORT}
ENDS = {"vocab_size": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4}


@pytest.mark.parametrize(
    ("config", "output", "inputs"),
    [
        (transformers.BertConfig(**COMMON, **SHORT), "encoder.layer.1.attention.output.dense", WORDS),
        (
            transformers.AlbertConfig(**COMMON, **SHORT, embedding_size=8),
            "encoder.albert_layer_groups.0.albert_layers.0.attention.dense",
            WORDS,
        ),
        (transformers.DebertaV2Config(**COMMON, **SHORT, **DEBERTA), "encoder.layer.1.attention.output.dense", WORDS),
        (transformers.BartConfig(**BART, **ENDS), "decoder.layers.1.self_attn.out_proj", WORDS),
        (transformers.BartConfig(**BART, **ENDS), "decoder.layers.0.encoder_attn.out_proj", WORDS),
        (
            transformers.ViTConfig(**WIDE, num_hidden_layers=2, image_size=4, patch_size=2, num_channels=1, initializer_range=0.5),
            "layers.1.attention.o_proj",
            {"pixel_values": torch.arange(32.0).view(2, 1, 4, 4).sin()},
        ),
    ],
    ids=["bert", "albert", "deberta-v2", "bart-self", "bart-cross", "vit"],
)
def test_a_head_is_what_a_model_loses_when_its_output_is_switched_off(
    config: transformers.PretrainedConfig, output: str, inputs: dict[str, torch.Tensor]
) -> None:
    """The coordinates of a head are those whose gradient vanishes where the attention's output is multiplied by 0 in that head."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    layer = model.get_submodule(output)
    own = next(name for name, tensor in model.named_parameters() if tensor is layer.weight)
    scope = Scope(unit="head", heads=3)
    inside = {list(shapes)[place]: list(shapes.values())[place] for place in scope.sections(shapes, 0.3)[0].tensors}
    units = scope.units(inside)
    assert units is not None
    heads = [int(part[0, 0]) for part in named(units, inside)[own].split(4, dim=1)]
    assert len(set(heads)) == 3
    for head, unit in enumerate(heads):
        model.zero_grad()

        def cut(_: Any, values: tuple[torch.Tensor, ...], head: int = head) -> tuple[torch.Tensor, ...]:
            return (values[0] * torch.ones(12).index_fill(0, torch.arange(4 * head, 4 * head + 4), 0.0),)

        hook = layer.register_forward_pre_hook(cut)
        model(**inputs)[0].square().sum().backward()
        hook.remove()
        moved = dict(model.named_parameters())
        lost = {name: moved[name].grad == 0 for name in shapes if moved[name].grad is not None}
        whole = named(units == unit, inside)
        for name in inside:
            if name.endswith(("k_proj.bias", "key.bias", "key_proj.bias")):  # what is the same for all keys moves no attention
                assert lost[name][whole[name]].all()
            else:
                assert torch.equal(lost[name], whole[name]), name


def named(flat: torch.Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "modernbert",
            r"'model.layers.0.attn' has no matrix of its own for query, key, value \(its other tensors are Wqkv.weight\)",
        ),
        ("phi3", r"'model.layers.0.self_attn' has no .* query, key, value \(its other tensors are qkv_proj.weight\)"),
        ("deberta", r"'deberta.encoder.layer.0.attention' has no .* query, key, value \(.*self.in_proj.weight"),
        ("bloom", r"'transformer.h.0.self_attention' has no .* query, key, value \(.*query_key_value.weight"),
        ("torch", r"'layers.0.self_attn' has no .* query, key, value .*in_proj_weight.*: choose from others with only or without"),
        ("gpt2", "unit = 'head': no tensor that may be chosen from has one"),
        ("t5", "unit = 'head': no tensor that may be chosen from has one"),
    ],
)
def test_an_attention_that_has_not_four_matrices_is_refused(family: str, message: str) -> None:
    kinds: dict[str, Callable[[], Any]] = {
        **FAMILIES,
        **OTHERS,
        "phi3": lambda: transformers.Phi3Config(**LLAMA, eos_token_id=3),
        "deberta": lambda: transformers.DebertaConfig(**SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    }
    with torch.device("meta"):
        if family == "torch":
            layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            model: torch.nn.Module = torch.nn.TransformerEncoder(layer, 2)
        else:
            model = transformers.AutoModelForSequenceClassification.from_config(kinds[family]())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    withins: tuple[Within, ...] = ("global", "layer")
    for within in withins:
        with pytest.raises(UsageError, match=message):
            Scope(within, unit="head", heads=2).sections(shapes, 0.1)


@pytest.mark.parametrize(
    "names",
    [
        "attention.self.query attention.self.key attention.self.value attention.self.query_global attention.output.dense",
        "attention.attention.query attention.attention.key attention.attention.value attention.output.dense",
        "attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj attn.attention.out_proj",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin",
    ],
)
def test_each_layer_has_its_own_heads_under_all_known_names(names: str) -> None:
    shapes = {f"layers.{layer}.{name}.weight": (4, 4) for layer in (0, 1) for name in names.split()}
    rest = {"layers.0.output.dense.weight": (4, 4), "layers.0.intermediate.dense.weight": (4, 4), "pooler.dense.weight": (4, 4)}
    (section,) = Scope(unit="head", heads=2).sections({**shapes, **rest}, 0.3)
    assert section.tensors == tuple(range(len(shapes)))
    units = Scope(unit="head", heads=2).units(shapes)
    assert units is not None
    assert units.bincount().tolist() == [len(names.split()) * 8] * 4


def test_an_attention_without_its_matrices_is_refused_where_it_may_be_chosen_from() -> None:
    shapes = {**attention(), "other.attn.out_proj.weight": (4, 4), "other.attn.in_proj_weight": (12, 4)}
    with pytest.raises(UsageError, match="'other.attn' has no matrix of its own for query, key, value"):
        Scope(unit="head", heads=2).sections(shapes, 0.9)
    (section,) = Scope(unit="head", heads=2, without="other*").sections(shapes, 0.3)
    assert section.tensors == (0, 1, 2, 3)
    (section,) = Scope(unit="head", heads=2, only="attn.q*").sections(shapes, 0.1)  # what the patterns leave of its heads
    assert section.tensors == (0,)


def test_each_row_is_drawn_about_as_often(digits: Problem) -> None:
    draws, counts = 200, {name: torch.zeros(len(t)) for name, t in digits.pretrained.items() if t.ndim > 1}
    for seed in range(draws):
        for name, index in Random(0.03, scope=Scope(unit="row")).select(digits, seed).indices.items():
            across = math.prod(digits.pretrained[name].shape[1:])
            counts[name] += (index // across).bincount(minlength=len(counts[name])) / across
    found = torch.cat(list(counts.values())).double()
    share = float(found.mean()) / draws
    square = float(((found - found.mean()) ** 2).sum() / (draws * share * (1 - share)))
    assert abs(square - len(found)) < 5 * math.sqrt(2 * len(found))


def test_heads_that_are_chosen_change_as_a_whole() -> None:
    problem = load("digits", n=20)
    mask = SAM(0.3, scope=Scope(unit="head", heads=2)).select(problem, seed=0)
    layers = {name.rpartition(".attention.")[0] for name in mask.indices}
    assert layers
    sizes = {sum(len(index) for name, index in mask.indices.items() if name.startswith(f"{layer}.")) for layer in layers}
    whole = sum(
        math.prod(shape)
        for name, shape in mask.shapes.items()
        if name.startswith(f"{min(layers)}.attention.") and not name.endswith("o_proj.bias")
    )
    assert sizes <= {whole // 2, whole}
