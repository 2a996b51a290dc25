"""Where the coordinates of highest score are looked for: :class:`Scope`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from stability.checks import check_choice, check_sparsity, check_whole
from stability.errors import UsageError

__all__ = ["AnyScope", "Budget", "Scope", "Section", "Unit", "Within", "count_for", "layer_of", "type_of"]

Within: TypeAlias = Literal["global", "tensor", "row", "layer", "type"]
"""Which coordinates compete with each other, as one word."""

Budget: TypeAlias = Literal["proportional", "equal", "erk"]
"""How many coordinates each group gets."""

Unit: TypeAlias = Literal["coordinate", "block", "row", "column", "head", "tensor", "layer"]
"""What is chosen together."""

_LARGEST_UNIT: dict[str, tuple[str, ...]] = {
    "row": ("coordinate",),
    "tensor": ("coordinate", "block", "row", "column"),
    "type": ("coordinate", "block", "row", "column", "tensor"),
    "layer": ("coordinate", "block", "row", "column", "head", "tensor"),
    "global": get_args(Unit),
}
"""The units that fit into a group of each scope more than once."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Scope:
    """Which coordinates compete for the k = ⌊pm⌋ places, and how many places each group of them has.

    p is a fraction of all m pretrained coordinates, also where only some tensors may be chosen from. With one group k
    coordinates are chosen. With several, group i of m_i coordinates and weight w_i gets ⌊min(m_i, ε w_i)⌋, where ε is the number
    for which these add up to pm before they are rounded.

    A selector takes a scope, or the word for ``within`` where nothing else is set: ``SAM(0.05, scope="row")``.

    Attributes:
        within: the groups. ``global``: one group of all coordinates, as in the theory of Fu et al. 2023. ``tensor``: each tensor,
            as in their code. ``row``: each row of a tensor, which holds the weights of one output of a linear layer; a tensor of
            one dimension is one row. GPT-2 stores its matrices the other way round, so that its rows belong to inputs. ``layer``:
            all tensors of one layer, which are those whose names agree up to the first number; tensors of no layer are one group.
            ``type``: tensors of one name in all layers.
        only: patterns such as ``*.query.*``: the tensors that may be chosen from are those whose names match one of them. Case
            does not count. Empty for all tensors.
        without: patterns of tensors that may not be chosen from, such as ``*norm*``.
        budget: the weight w of a group. ``proportional``: its number of coordinates, so that without patterns each gets the
            fraction p. ``equal``: 1. ``erk``: for each tensor the sum of its dimensions, so that small tensors get a larger share
            (Erdős–Rényi kernel, Evci et al. 2020, *RigL*).
        unit: what is chosen together. ``coordinate``: each by itself. ``row``, ``column``: of a tensor of at least two dimensions,
            of which the first counts its rows (as in S²FT, Yang et al. 2024). ``block``: a square part of such a tensor (as in SMT,
            He et al. 2024). ``head``: a head of an attention (as in S²FT): its rows of query, key and value, with their biases, and
            its columns of the output matrix. Attention to the text itself and to another one are two attentions. ``tensor``: a
            whole tensor. ``layer``: all tensors of a layer (with :class:`Random` it is one draw of LISA, Pan et al. 2024). A unit
            has the mean of its scores. Units are taken in the order of these means, until the next would exceed the group's places:
            k is then at most ⌊pm⌋. Tensors that have no such unit are not chosen from.
        block: the side of a ``block``, and for that unit alone. At the edges of a tensor blocks are smaller.
        heads: how many heads an attention has, which shapes do not tell; for ``head`` alone.

    Raises:
        UsageError: an unknown word, a pattern that is no text, a budget for one group, a unit that is no smaller than the groups,
            heads without their number, or the side of blocks for another unit; on selecting: an attention whose query, key, value
            and output are not four matrices of so many heads, a pattern that matches no tensor, a p for which there are too few
            coordinates, or one that selects nothing in some row, or no unit.

    Example:
        >>> from stability import load
        >>> from stability.selectors import SAM
        >>> SAM(0.01, scope=Scope("type", only="*.mlp.*")).select(load("digits"), seed=0)
        Mask(k=264, m=26432)
    """

    within: Within = "global"
    _: KW_ONLY
    only: str | tuple[str, ...] = ()
    without: str | tuple[str, ...] = ()
    budget: Budget = "proportional"
    unit: Unit = "coordinate"
    block: int = 16
    heads: int | None = None

    def __post_init__(self) -> None:
        check_choice(get_args(Within), scope=self.within)
        check_choice(get_args(Budget), budget=self.budget)
        check_choice(get_args(Unit), unit=self.unit)
        check_whole(1, block=self.block)
        for name in ("only", "without"):
            given: Any = getattr(self, name)
            patterns = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
            if odd := [pattern for pattern in patterns if not isinstance(pattern, str)]:
                raise UsageError(f"{name} = {odd[0]!r}: use patterns of names, such as '*.query.*'")
            object.__setattr__(self, name, patterns)
        if self.within == "global" and self.budget != "proportional":
            raise UsageError(f"budget = {self.budget!r} divides k over groups, and scope 'global' is one group: use another scope")

        if (self.unit == "head") != (self.heads is not None):
            raise UsageError(
                f"unit = {self.unit!r} and heads = {self.heads}: with unit 'head' give heads, the number of heads of each "
                "attention, and with no other unit; a model of transformers tells it as config.num_attention_heads"
            )
        if self.heads is not None:
            check_whole(1, heads=self.heads)
        if self.unit != "block" and self.block != type(self).block:
            raise UsageError(
                f"block = {self.block} is the side of a block, and unit = {self.unit!r}: use unit 'block', or leave it out"
            )
        if self.unit not in _LARGEST_UNIT[self.within]:
            raise UsageError(
                f"unit = {self.unit!r}: within a {self.within} there are no units to choose from but "
                f"{', '.join(_LARGEST_UNIT[self.within])}: use one of these, or scope 'global'"
            )

    @classmethod
    def of(cls, scope: AnyScope) -> Scope:
        """A scope, also where it is given as the word for its ``within``.

        Args:
            scope: the scope, or the word.

        Raises:
            UsageError: an unknown word.

        Example:
            >>> Scope.of("row") == Scope("row")
            True
        """
        return scope if isinstance(scope, Scope) else cls(scope)

    def settings(self) -> str | dict[str, Any]:
        """What defines the scope, as plain values: the word for ``within`` where nothing else is set."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        if own.keys() <= {"within"}:
            return self.within
        return {"within": self.within, **{name: list(v) if isinstance(v, tuple) else v for name, v in own.items()}}

    def sections(self, shapes: Shapes, sparsity: float) -> tuple[Section, ...]:
        """The groups, and how many coordinates are chosen in each.

        Args:
            shapes: the shape of every tensor, by name.
            sparsity: p ∈ (0, 1].

        Raises:
            UsageError: a pattern matches no tensor, there are fewer coordinates than places, or nothing is selected.

        Example:
            >>> for section in Scope("row").sections({"a": (2, 4), "b": (3,)}, 0.5):
            ...     print(section)
            Section(tensors=(0,), rows=2, count=2)
            Section(tensors=(1,), rows=1, count=1)
        """
        return _sections(self, tuple(shapes.items()), sparsity)

    def units(self, shapes: Shapes) -> Tensor | None:
        """Which unit each coordinate of a group belongs to.

        Args:
            shapes: the shape of every tensor of the group, by name.

        Returns:
            The units' numbers from 0 on, int64, one for each coordinate, one tensor after the other; None where each coordinate is
            a unit.

        Example:
            >>> Scope(unit="column").units({"a": (2, 3), "b": (1, 2)})
            tensor([0, 1, 2, 0, 1, 2, 3, 4])
        """
        if self.unit == "coordinate":
            return None
        layers: dict[str, int] = {}
        found, known = [], 0
        for place, (name, shape) in enumerate(shapes.items()):
            size = math.prod(shape)
            across = size // shape[0] if shape else 1
            row, column = torch.arange(size) // across, torch.arange(size) % across
            if self.unit in ("tensor", "layer"):
                found.append(torch.full((size,), layers.setdefault(layer_of(name), len(layers)) if self.unit == "layer" else place))
                continue
            if self.heads is not None and (part := _part_of_head(name)) is not None:
                length, along = (across, column) if part.role == "output" else (shape[0], row)
                attention = layers.setdefault(part.attention, len(layers))
                found.append(attention * self.heads + along // (length // self.heads))
                continue
            wide = -(-across // self.block)
            mine = {"row": row, "column": column, "block": row // self.block * wide + column // self.block}[self.unit]
            found.append(mine + known)
            known += int(mine[-1]) + 1
        return torch.cat(found)

    def alike(self, scores: Tensor, shapes: Shapes) -> Tensor:
        """Scores that are the same in all coordinates of a unit: that of its first coordinate.

        A mean of random numbers is the closer to ½ the more they are. With one number each, all units have the same chance.

        Args:
            scores: (…, m), the tensors' scores one after the other.
            shapes: the shape of every tensor, by name.

        Returns:
            The same shape; the scores themselves where each coordinate is a unit.

        Raises:
            UsageError: a pattern matches no tensor, or no tensor has such units.

        Example:
            >>> Scope(unit="row").alike(torch.arange(6), {"a": (2, 3)})
            tensor([0, 0, 0, 3, 3, 3])
        """
        listed = tuple(shapes.items())
        chosen_from = {} if self.unit == "coordinate" else dict(listed[place] for place in _places(self, listed))
        if not chosen_from or (units := self.units(chosen_from)) is None:
            return scores
        sizes = [math.prod(shape) for shape in shapes.values()]
        parts = zip(shapes, torch.arange(sum(sizes)).split(sizes), strict=True)
        where = torch.cat([part for name, part in parts if name in chosen_from])
        first = where.new_full((int(units.max()) + 1,), len(where)).scatter_reduce_(0, units, torch.arange(len(where)), "amin")
        found = scores.clone()
        found[..., where] = scores[..., where[first[units]]]
        return found

    def chosen_from(self, names: Sequence[str]) -> list[str]:
        """The tensors that may be chosen from.

        Args:
            names: the names of all tensors.

        Raises:
            UsageError: a pattern matches no tensor, or no tensor is left.

        Example:
            >>> Scope(without="*norm*").chosen_from(["a.weight", "layernorm.weight"])
            ['a.weight']
        """
        for option in ("only", "without"):
            for pattern in getattr(self, option):
                if not any(_matches(name, pattern) for name in names):
                    raise UsageError(f"{option} = {pattern!r} matches no tensor: {_nearest(pattern, names)}")
        only, without = tuple(self.only), tuple(self.without)
        left = [name for name in names if not only or any(_matches(name, one) for one in only)]
        left = [name for name in left if not any(_matches(name, one) for one in without)]
        if not left:
            given = [f"{option} = {list(some)}" for option, some in (("only", only), ("without", without)) if some]
            raise UsageError(f"{' and '.join(given)} leave{'s' * (len(given) == 1)} no tensor: use other patterns")
        return left


AnyScope: TypeAlias = Scope | Within
"""A scope, or the word for its ``within`` where nothing else is set."""


@dataclass(frozen=True)
class Section:
    """Coordinates that compete with each other: those of some tensors, or each row of a tensor by itself.

    Attributes:
        tensors: the places of its tensors among all.
        rows: how many rows compete by themselves; 1 for all coordinates together.
        count: how many coordinates are chosen in each row.

    Example:
        >>> Section(tensors=(0, 2), rows=1, count=5).count
        5
    """

    tensors: tuple[int, ...]
    rows: int
    count: int


@dataclass(frozen=True)
class _Group:
    """Rows of equal length, each with its size and its weight."""

    tensors: tuple[int, ...]
    rows: int
    size: int
    weight: float


def count_for(sparsity: float, m: int) -> int:
    """⌊pm⌋, the number of coordinates that may change.

    A p that is a rounded number counts as the number before rounding: 0.29 of 100 is 29, and k/m of m is k, although both
    products are a little less in floating point.

    Args:
        sparsity: p ∈ (0, 1], the fraction of coordinates that *may* change: a small p means very sparse.
        m: the number of coordinates to choose from.

    Returns:
        k ≥ 1.

    Raises:
        UsageError: p outside (0, 1], or ⌊pm⌋ = 0.

    Example:
        >>> count_for(0.29, 100)
        29
    """
    check_sparsity(sparsity)
    k = _floor(sparsity, m)
    if k == 0:
        raise UsageError(
            f"sparsity p = {sparsity} selects nothing of m = {m} coordinates (pm = {sparsity * m:.3g} < 1): use p ≥ {1 / m:.3g}"
        )
    return k


def layer_of(name: str) -> str:
    """The layer of the model that a part belongs to: its name up to the first number. Empty where it has none.

    Args:
        name: of a module or a parameter.

    Example:
        >>> layer_of("vit.layers.2.mlp.fc1.bias"), layer_of("vit.layernorm.bias")
        ('vit.layers.2', '')
    """
    first = re.match(r"(.*?\.)?\d+(?=\.)", name)
    return first.group() if first else ""


def type_of(name: str) -> str:
    """The type of a tensor: its name with ``*`` for each number. Tensors of one type have one name in all layers.

    Args:
        name: of a parameter.

    Example:
        >>> type_of("vit.layers.2.mlp.fc1.bias"), type_of("vit.layernorm.bias")
        ('vit.layers.*.mlp.fc1.bias', 'vit.layernorm.bias')
    """
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


@lru_cache(maxsize=256)
def _sections(scope: Scope, shapes: tuple[tuple[str, tuple[int, ...]], ...], sparsity: float) -> tuple[Section, ...]:
    m = sum(math.prod(shape) for _, shape in shapes)
    k = count_for(sparsity, m)
    groups = _groups(scope, shapes, _places(scope, shapes))
    there = sum(group.rows * group.size for group in groups)
    if k > there:
        raise UsageError(
            f"sparsity p = {sparsity} is k = {k} of all m = {m} coordinates, and the tensors that may be chosen from have {there}: "
            f"use p ≤ {_rounded(there / m, down=True)}, or more tensors"
        )
    counts = _counts(groups, sparsity, m)
    if scope.within == "row" and 0 in counts:
        least, empty = _least(groups, m, lambda counts: 0 not in counts), groups[counts.index(0)]
        raise UsageError(
            f"sparsity p = {sparsity} selects nothing in a row of {shapes[empty.tensors[0]][0]!r}, which has {empty.size} "
            f"coordinates: use p ≥ {least}, or leave tensors out (without)"
        )
    if scope.unit != "coordinate":
        units = [scope.units({shapes[place][0]: shapes[place][1] for place in group.tensors}) for group in groups]
        largest = [int(mine.bincount().max()) for mine in units if mine is not None]

        def serves(counts: Sequence[int]) -> bool:
            return any(count >= size for count, size in zip(counts, largest, strict=True))

        if not serves(counts):
            size, place = min((size, place) for place, size in enumerate(largest))
            raise UsageError(
                f"sparsity p = {sparsity} gives {counts[place]} places where a {scope.unit} may have {size} coordinates: use p ≥ "
                f"{_least(groups, m, serves)}, a smaller unit, or leave tensors out (without)"
            )
    if not any(counts):
        raise UsageError(
            f"sparsity p = {sparsity} selects nothing within any single {scope.within}: use p ≥ {_least(groups, m, any)}, or "
            "scope='global'"
        )
    return tuple(Section(group.tensors, group.rows, count) for group, count in zip(groups, counts, strict=True))


def _places(scope: Scope, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> list[int]:
    """The places of the tensors that may be chosen from and are made of units."""
    kept = set(scope.chosen_from([name for name, _ in shapes]))
    places = [place for place, (name, shape) in enumerate(shapes) if name in kept and 0 not in shape]
    if not (places := [place for place in places if _has_units(scope, *shapes[place])]):
        raise UsageError(
            f"unit = {scope.unit!r}: no tensor that may be chosen from has one: choose from others, or use another unit"
        )
    if scope.heads is not None:
        _check_heads(scope.heads, dict(shapes), [shapes[place][0] for place in places])
    return places


def _has_units(scope: Scope, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is made of units that can be chosen."""
    own = {"coordinate": True, "tensor": True, "layer": bool(layer_of(name)), "head": _part_of_head(name) is not None}
    return own.get(scope.unit, len(shape) > 1)


@dataclass(frozen=True)
class _Part:
    """What a tensor is in its attention. Each head has its own rows of query, key and value, and its own columns of the output."""

    attention: str
    role: str


_ROLES = {"q": "query", "k": "key", "v": "value", "o": "output"}
_ROWS_OF_HEADS = re.compile(
    r"(.+?)(?:\.self|(?<=\.attention)\.attention)?"
    r"\.(?:((?:pos_)?(?:query|key|value)(?:_global)?)(?:_proj)?|([qkv])_(?:proj|lin|head))\.(?:weight|bias)"
)
_COLUMNS_OF_HEADS = re.compile(r"(.*(?:attention|attn))\.(?:output\.dense|dense|o_proj|out_proj|out_lin|Wo)\.weight")


def _part_of_head(name: str) -> _Part | None:
    """What a tensor is in its attention, by its name; None where heads have no part of it."""
    if rows := _ROWS_OF_HEADS.fullmatch(name):
        return _Part(rows[1], rows[2] or _ROLES[rows[3]])
    columns = _COLUMNS_OF_HEADS.fullmatch(name)
    return columns and _Part(columns[1], "output")


def _check_heads(heads: int, shapes: Shapes, chosen_from: Sequence[str]) -> None:
    """That each attention of some tensors has all four matrices, and that all are made of so many heads."""
    parts = {name: part for name in shapes if (part := _part_of_head(name)) is not None}
    for attention in dict.fromkeys(parts[name].attention for name in chosen_from):
        mine = {name: part.role for name, part in parts.items() if part.attention == attention}
        weights = [role for name, role in mine.items() if name.endswith(".weight")]
        if missing := [role for role in _ROLES.values() if role not in weights]:
            others = [
                name.removeprefix(f"{attention}.") for name in shapes if name.startswith(f"{attention}.") and name not in mine
            ]
            raise UsageError(
                f"unit = 'head': {attention!r} has no matrix of its own for {', '.join(missing)} (its other tensors are "
                f"{', '.join(others) or 'none'}), so that its heads are not known: choose from others with only or without, or use "
                "unit 'row' or 'column'"
            )
        lengths = {name: math.prod(shapes[name][1:]) if role == "output" else shapes[name][0] for name, role in mine.items()}
        for name, length in lengths.items():
            if length % heads or length != max(lengths.values()):
                raise UsageError(
                    f"heads = {heads}: {name!r} has {length} {'columns' if mine[name] == 'output' else 'rows'}, which are not "
                    "divided alike into so many heads: give the model's own number; heads that share keys and values are no units"
                )


def _least(groups: Sequence[_Group], m: int, serves: Callable[[Sequence[int]], bool]) -> float:
    """The least p at which the groups' counts serve, in few digits."""
    low, high = 0.0, sum(group.rows * group.size for group in groups) / m
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if serves(_counts(groups, middle, m)) else (middle, high)
    return _rounded(high)


def _groups(scope: Scope, shapes: Sequence[tuple[str, tuple[int, ...]]], places: Sequence[int]) -> list[_Group]:
    """The groups of the tensors at some places, in the order in which they begin."""
    keys: dict[str, Callable[[str], str]] = {
        "global": lambda _: "",
        "tensor": lambda name: name,
        "row": lambda name: name,
        "layer": layer_of,
        "type": type_of,
    }
    members: dict[str, list[int]] = {}
    for place in places:
        members.setdefault(keys[scope.within](shapes[place][0]), []).append(place)
    groups = []
    for mine in members.values():
        size = sum(math.prod(shapes[place][1]) for place in mine)
        rows = shapes[mine[0]][1][0] if scope.within == "row" and len(shapes[mine[0]][1]) > 1 else 1
        weight = {"proportional": float(size), "equal": float(rows), "erk": float(sum(sum(shapes[place][1]) for place in mine))}
        groups.append(_Group(tuple(mine), rows, size // rows, weight[scope.budget] / rows))
    return groups


def _counts(groups: Sequence[_Group], sparsity: float, m: int) -> list[int]:
    """How many coordinates each row of each group gets. Groups that would get more than they have are full, and others get more."""
    if len(groups) == 1 and groups[0].rows == 1:
        return [min(groups[0].size, _floor(sparsity, m))]
    full: set[int] = set()
    while True:
        weights = sum(group.rows * group.weight for place, group in enumerate(groups) if place not in full)
        taken = sum(groups[place].rows * groups[place].size for place in full)
        # Of all coordinates in proportion this is p itself, to the bit: a count is then the same whatever else is selected.
        rate = sparsity * (m / weights) - taken / weights if weights else 0.0
        more = {place for place, group in enumerate(groups) if place not in full and rate * group.weight >= group.size}
        if not more:
            return [group.size if place in full else _floor(rate, group.weight) for place, group in enumerate(groups)]
        full |= more


def _floor(rate: float, weight: float) -> int:
    return math.floor(rate * weight * (1 + 2**-50))


def _rounded(p: float, down: bool = False) -> float:
    """A fraction in few digits, rounded so that it still serves."""
    scale = 10.0 ** (3 - math.floor(math.log10(p)))
    return (math.floor(p * scale * (1 + 1e-12)) if down else math.ceil(p * scale * (1 - 1e-12))) / scale


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern.lower())


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """The names that are most like a pattern, as words of a message: by one of their parts, or as a whole."""
    wanted, whole = pattern.strip("*.").lower(), f"*{pattern.strip('*')}*"
    if wanted and any(_matches(name, whole) for name in names):
        return f"a pattern is for the whole name, so use {whole!r}"
    parts = {part.lower(): name for name in reversed(names) for part in name.split(".") if not part.isdigit()}
    alike = difflib.get_close_matches(wanted, parts, n=3, cutoff=0.6)
    found = [parts[one] for one in alike] or difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names[:3])
    return f"the nearest names are {', '.join(dict.fromkeys(found))}"
