"""What masks look like: the share of each layer and of each type of tensor, and how much random masks have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import pandas as pd

from stability.checks import check_choice, check_kind
from stability.masks import Mask
from stability.selectors.scope import layer_of, type_of

__all__ = ["OUTSIDE", "Grouping", "overlap_by_chance", "shares"]

Grouping: TypeAlias = Literal["layer", "type", "tensor"]
"""What the tensors of a model are put together by."""

OUTSIDE = "outside"
"""The group of all tensors that belong to no layer, such as embeddings."""


def shares(mask: Mask, by: Grouping = "layer") -> pd.DataFrame:
    """Where the coordinates of a mask are: a row for each layer, for each type of tensor, or for each tensor.

    Layers and types are those of a :class:`Scope`, and are read from the names alone. The first number in a dotted name is that of
    the layer; a tensor without one is outside the layers. The type is the name with ``*`` for each number. What all names begin
    with is left out: ``encoder.layer.*.output.dense.bias`` is the type of ``bert.encoder.layer.3.output.dense.bias``. Rows outside
    the layers come last. Where a model has several stacks of layers, such as an encoder and a decoder, each has rows of its own.

    Args:
        mask: the mask.
        by: ``layer``, ``type`` or ``tensor``.

    Returns:
        A column of the name ``by``, and ``chosen``, how many of the group's coordinates are in the mask; ``size``, how many it has;
        ``density``, chosen / size; ``share``, chosen / k, NaN where k = 0; and ``of_model``, size / m, which is the share that a
        mask drawn at random has on average.

    Raises:
        UsageError: an unknown ``by``.

    Example:
        >>> from stability import load
        >>> from stability.selectors import BitFit
        >>> mask = BitFit().select(load("digits"), seed=0)
        >>> shares(mask)[["layer", "chosen", "size"]].to_dict("records")[-1]
        {'layer': 'outside', 'chosen': 64, 'size': 800}
        >>> shares(mask, "type").query("chosen > 0")["type"].tolist()[0]
        'layers.*.attention.k_proj.bias'
    """
    check_kind(Mask, "a mask, such as selector.select(problem, seed=0)", mask=mask)
    check_choice(("layer", "type", "tensor"), by=by)
    group_of, order = {"layer": _layers, "type": _types, "tensor": _tensors}[by](list(mask.shapes))
    chosen, size = dict.fromkeys(order, 0), dict.fromkeys(order, 0)
    for name, shape in mask.shapes.items():
        chosen[group_of[name]] += len(mask.indices.get(name, ()))
        size[group_of[name]] += math.prod(shape)
    table = pd.DataFrame({by: list(order), "chosen": list(chosen.values()), "size": list(size.values())})
    table["density"] = table["chosen"] / table["size"]
    table["share"] = table["chosen"] / mask.count if mask.count else math.nan
    table["of_model"] = table["size"] / mask.total if mask.total else math.nan
    return table


Groups: TypeAlias = tuple[dict[str, str], Iterable[str]]
"""The group of each tensor by its name, and the groups in the order of a table."""


def _tensors(names: Sequence[str]) -> Groups:
    return {name: name for name in names}, names


def _layers(names: Sequence[str]) -> Groups:
    layers, common = {name: layer_of(name) for name in names}, _common(names)
    parts = {layer: layer.rpartition(".") for layer in layers.values() if layer}
    stacks = list(dict.fromkeys(stack for stack, _, _ in parts.values()))
    labels = {layer: layer.removeprefix(common) if len(stacks) > 1 else number for layer, (_, _, number) in parts.items()}
    labels[""] = OUTSIDE
    order = sorted(parts, key=lambda layer: (stacks.index(parts[layer][0]), int(parts[layer][2])))
    if "" in layers.values():
        order.append("")
    return {name: labels[layer] for name, layer in layers.items()}, [labels[layer] for layer in order]


def _types(names: Sequence[str]) -> Groups:
    types = {name: type_of(name) for name in names}
    common = _common(list(types.values()))
    labels = {name: mine.removeprefix(common) for name, mine in types.items()}
    return labels, list(dict.fromkeys(labels[name] for name in sorted(names, key=lambda name: not layer_of(name))))


def _common(names: Sequence[str]) -> str:
    """The dotted prefix that all names share, with its last dot."""
    shared = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0] + ".")
    return "".join(shared)


def overlap_by_chance(one: Mask, other: Mask, within: Literal["model", "tensor"] = "model") -> float:
    """The overlap that two random masks of these sizes have on average.

    X = |A ∩ B| of random masks is hypergeometric. Its mean is μ = ab / m and its variance σ² = ab(m − a)(m − b) / (m²(m − 1)),
    where the masks choose a and b of m coordinates. With s = |A| + |B| the overlap is X / (s − X), and on average, to second order,
    μ / (s − μ) + s σ² / (s − μ)³.

    Args:
        one: A.
        other: B.
        within: ``model``: the random masks are drawn from all coordinates. ``tensor``: they have in each tensor as many coordinates
            as A and B have there. μ and σ² are then sums over the tensors. What is above it is agreement beyond that on tensors.

    Returns:
        The mean overlap; NaN for masks of different tensors.

    Raises:
        UsageError: an unknown ``within``.

    Example:
        >>> import torch
        >>> one, other = (Mask({"w": (1000,)}, {"w": torch.arange(count)}) for count in (100, 100))
        >>> round(overlap_by_chance(one, other), 3)
        0.053
    """
    check_choice(("model", "tensor"), within=within)
    if one.shapes != other.shapes:
        return math.nan
    groups = [(one.count, other.count, one.total)]
    if within == "tensor":  # a tensor in which one mask has nothing adds nothing
        both = one.indices.keys() & other.indices.keys()
        groups = [(len(one.indices[name]), len(other.indices[name]), math.prod(one.shapes[name])) for name in sorted(both)]
    together = one.count + other.count
    if not together:
        return 1.0
    mean = sum(a * b / m for a, b, m in groups)
    variance = sum(a * b * (m - a) * (m - b) / (m**2 * (m - 1)) for a, b, m in groups if m > 1)
    return mean / (together - mean) + together * variance / (together - mean) ** 3
