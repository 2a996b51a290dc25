"""The coordinates that may change, and their values after training.

A *p-sparse fine-tuned model* (Fu et al. 2023, Definition 1) differs from the pretrained θ⁰ ∈ R^m in at most pm coordinates. A
:class:`Mask` holds these coordinates, and a :class:`SparseDelta` holds their values after training.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stability.errors import StabilityError, UsageError, one_line
from stability.packing import pack, unpack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Mask", "Parameters", "SparseDelta", "fingerprint"]

_SHOWN = 8  # tensors that a notebook shows
_AXES, _MOST = 64, 2**63  # no tensor has more axes, nor that many entries

Parameters: TypeAlias = Mapping[str, Tensor]
"""Named tensors. A model is a function of these."""


def fingerprint(parameters: Parameters) -> str:
    """SHA-256 of names, shapes, types and values of some tensors, in whatever order they come: the identity of θ⁰.

    Args:
        parameters: the tensors by name.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> fingerprint({"w": torch.zeros(2)})[:8]
        'fde9d0ac'
    """
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Mask:
    """A set of k coordinates among the m entries of named tensors.

    Attributes:
        shapes: the shape of every tensor, also of those without a masked coordinate. Their sizes add up to m.
        indices: for each tensor the flat indices of its masked coordinates, int64, ascending and distinct; kept on the CPU.
            Tensors without any may be missing.

    Raises:
        UsageError: a tensor has indices and no shape, or its indices are unsorted, repeated or out of range.

    Example:
        >>> mask = Mask({"weight": (2, 2), "bias": (2,)}, {"bias": torch.tensor([0, 1])})
        >>> mask.count, mask.total
        (2, 6)
        >>> mask.gather({"weight": torch.zeros(2, 2), "bias": torch.tensor([3.0, 4.0])})
        tensor([3., 4.])
    """

    shapes: Mapping[str, tuple[int, ...]]
    indices: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.indices) - set(self.shapes))
        if unknown:
            raise UsageError(f"mask has indices of tensors without a shape: {', '.join(unknown)}")
        indices = {name: index.cpu() for name, index in self.indices.items()}
        for name, index in indices.items():
            size = math.prod(self.shapes[name])
            if index.dtype != torch.int64 or index.ndim != 1:
                raise UsageError(f"mask of {name!r}: indices are {index.dtype} {tuple(index.shape)}, use flat int64 indices")
            if len(index) and not (index[0] >= 0 and index[-1] < size and bool((index.diff() > 0).all())):
                raise UsageError(f"mask of {name!r}: indices must be ascending, distinct and in [0, {size})")
        ordered = {n: indices[n] for n in self.shapes if n in indices and len(indices[n])}
        object.__setattr__(self, "shapes", {n: tuple(s) for n, s in self.shapes.items()})
        object.__setattr__(self, "indices", ordered)

    def __repr__(self) -> str:
        return f"Mask(k={self.count}, m={self.total})"

    def _repr_html_(self) -> str:
        import pandas as pd

        sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        counts = {name: len(self.indices.get(name, ())) for name in sizes}
        largest = sorted((name for name in sizes if counts[name]), key=lambda name: -counts[name])
        rows = pd.DataFrame(
            {
                "tensor": largest,
                "shape": [" × ".join(map(str, self.shapes[name])) for name in largest],
                "may change": [counts[name] for name in largest],
                "of it": [f"{counts[name] / sizes[name]:.2%}" for name in largest],
            }
        )
        with pd.option_context("display.max_colwidth", None):
            table = rows.head(_SHOWN).to_html(index=False, border=0)
        rest = f"<p>and {len(largest) - _SHOWN} more tensors</p>" if len(largest) > _SHOWN else ""
        untouched = len(sizes) - len(largest)
        where = f"in {len(largest)} of {len(sizes)} tensors" if untouched else f"in all {len(sizes)} tensors"
        what = f"k = {self.count} of m = {self.total} parameters may change (p = {self.sparsity:.4g})"
        return f"<p><b>{what}</b>, {where}</p>{table}{rest}"

    def plot(self) -> Figure:
        """Draw the share of each tensor that is selected (:func:`stability.plotting.mask`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.mask(self))

    @classmethod
    def full(cls, parameters: Parameters) -> Mask:
        """The mask of every coordinate.

        Args:
            parameters: the tensors by name.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        return cls(shapes, {name: torch.arange(math.prod(shape)) for name, shape in shapes.items()})

    @classmethod
    def at(cls, shapes: Mapping[str, tuple[int, ...]], places: Tensor) -> Mask:
        """The mask of coordinates that are counted through all tensors, one after the other.

        Args:
            shapes: the shape of every tensor, in the order of counting.
            places: the coordinates' numbers from 0 to m − 1, int64 (k,), ascending and distinct.

        Raises:
            UsageError: the numbers are unsorted, repeated or out of range.
        """
        ends, places = list(accumulate(map(math.prod, shapes.values()))), places.cpu()
        parts = torch.tensor_split(places, torch.searchsorted(places, torch.tensor(ends[:-1], dtype=torch.int64)))
        starts = [0, *ends[:-1]]
        return cls(shapes, {name: part - start for name, part, start in zip(shapes, parts, starts, strict=True)})

    @property
    def count(self) -> int:
        """The number k of masked coordinates."""
        return sum(len(index) for index in self.indices.values())

    @property
    def total(self) -> int:
        """The number m of all coordinates."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def sparsity(self) -> float:
        """The sparsity p = k / m, the fraction of coordinates that may change."""
        return self.count / self.total

    def equals(self, other: Mask) -> bool:
        """Whether both masks hold the same coordinates of the same tensors; the order of the tensors does not matter.

        Args:
            other: the mask to compare with.
        """
        return (
            dict(self.shapes) == dict(other.shapes)
            and self.indices.keys() == other.indices.keys()
            and all(torch.equal(index, other.indices[name]) for name, index in self.indices.items())
        )

    def union(self, other: Mask) -> Mask:
        """The mask of the coordinates that are in either mask.

        Args:
            other: the other mask; it may have other tensors, as those of a new head.

        Raises:
            UsageError: a tensor has one shape in this mask and another in the other.
        """
        for name in self.shapes.keys() & other.shapes.keys():
            if self.shapes[name] != other.shapes[name]:
                raise UsageError(f"masks disagree on the shape of {name!r}: {self.shapes[name]} and {other.shapes[name]}")
        indices = dict(self.indices)
        for name, index in other.indices.items():
            mine = indices.get(name)
            if mine is None or (len(mine) != len(index) or not torch.equal(mine, index)):
                indices[name] = index if mine is None else torch.cat([mine, index]).unique()
        return Mask({**self.shapes, **other.shapes}, indices)

    def misfits(self, parameters: Parameters) -> list[str]:
        """The tensors, by name, that are not the same in this mask and among some parameters, or have another shape there.

        Args:
            parameters: the tensors by name.
        """
        theirs = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        return sorted(name for name in self.shapes.keys() | theirs.keys() if self.shapes.get(name) != theirs.get(name))

    def overlap(self, other: Mask) -> float:
        """The Jaccard index of both masks, |A ∩ B| / |A ∪ B|: 1 if they hold the same coordinates, 0 if they share none.

        Args:
            other: the other mask. Two masks without any coordinate are the same.

        Returns:
            The overlap; NaN for masks of different tensors, as those of methods that insert modules.

        Example:
            >>> mask, other = (Mask({"w": (4,)}, {"w": torch.tensor(index)}) for index in ([0, 1], [1, 2, 3]))
            >>> mask.overlap(other)
            0.25
        """
        if other is self:
            return 1.0
        if self.shapes != other.shapes:
            return math.nan
        shared = int(self.contains(other).sum())
        either = self.count + other.count - shared
        return shared / either if either else 1.0

    def contains(self, other: Mask) -> Tensor:
        """For each coordinate of this mask, in order, whether another mask holds it too: bool (k,).

        Args:
            other: the other mask.
        """
        parts = [
            torch.isin(index, other.indices[name], assume_unique=True)
            if name in other.indices
            else torch.zeros(len(index), dtype=torch.bool)
            for name, index in self.indices.items()
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def part(self, places: Tensor) -> Mask:
        """The mask of some of the masked coordinates.

        Args:
            places: their places among the k masked coordinates, int64, ascending.
        """
        ends = torch.searchsorted(places, torch.tensor([where.stop for _, _, where in self.slices()])).tolist()
        parts = zip(self.slices(), places.tensor_split(ends), strict=False)
        inside = {name: mine - where.start for (name, _, where), mine in parts}
        return Mask(self.shapes, {name: self.indices[name][mine] for name, mine in inside.items() if len(mine)})

    def slices(self) -> Iterator[tuple[str, Tensor, slice]]:
        """Go through the tensors with masked coordinates, in the order of ``shapes``.

        Yields:
            The tensor's name, its flat indices, and their place among the k masked coordinates.
        """
        start = 0
        for name, index in self.indices.items():
            yield name, index, slice(start, start + len(index))
            start += len(index)

    def gather(self, parameters: Parameters) -> Tensor:
        """The values of the masked coordinates as one vector.

        Args:
            parameters: the tensors by name.

        Returns:
            The values, (k,), on the tensors' device and differentiable.
        """
        parts = [parameters[n].reshape(-1)[index.to(parameters[n].device)] for n, index in self.indices.items()]
        return torch.cat(parts) if parts else next(iter(parameters.values())).new_empty(0)

    def place(self, parameters: Parameters, values: Tensor) -> dict[str, Tensor]:
        """The tensors with other values at the masked coordinates. Tensors without masked coordinates are not copied.

        Args:
            parameters: the tensors by name.
            values: the values of the masked coordinates, (k,). The result is differentiable by these alone.

        Returns:
            All tensors by name.

        Raises:
            UsageError: the mask has another number of coordinates.
        """
        if values.shape != (self.count,):
            raise UsageError(f"values have shape {tuple(values.shape)}: use (k,) with the mask's k = {self.count}")
        placed = dict(parameters)
        # Nothing in place, and one split: torch.func differentiates by ``values``, and each slice would cost a k-vector.
        parts = values.split([len(index) for index in self.indices.values()])
        for (name, index), part in zip(self.indices.items(), parts, strict=True):
            tensor, mine = parameters[name].detach(), part.to(parameters[name])
            whole = len(index) == tensor.numel()
            flat = mine.clone() if whole else tensor.reshape(-1).index_copy(0, index.to(tensor.device), mine)
            placed[name] = flat.reshape(tensor.shape)
        return placed

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask as safetensors, with its indices packed (:mod:`stability.packing`) and the shapes in the metadata.

        Args:
            path: the file.

        Raises:
            StabilityError: the file cannot be written.
        """
        _save(path, {"indices": self._packed()}, {"kind": "mask", "shapes": json.dumps(self.shapes)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Mask:
        """Read a mask written by :meth:`save`.

        Args:
            path: the file.

        Raises:
            StabilityError: the file is missing, damaged or holds something else.
        """
        tensors, metadata = _load(path, "mask")
        return _mask_from(path, tensors, metadata)

    def _packed(self) -> Tensor:
        """The indices, counted through all tensors in the order of ``shapes``, packed."""
        starts = dict(zip(self.shapes, accumulate(map(math.prod, self.shapes.values()), initial=0), strict=False))
        parts = [index + starts[name] for name, index in self.indices.items()]
        return pack(torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64), self.total)


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """What fine-tuning changed: the values of the masked coordinates, and the new head.

    A delta holds θ itself and not the difference θ − θ⁰, because θ⁰ + (θ − θ⁰) is not θ in floating point: a model that was saved
    gives the same logits, bit for bit. :meth:`difference` gives θ − θ⁰.

    Attributes:
        mask: the masked coordinates of the pretrained tensors.
        values: their values after training, (k,).
        base: the :func:`fingerprint` of the θ⁰ that the delta belongs to.
        head: the tensors that θ⁰ lacks, in full.

    Raises:
        UsageError: the mask has another number of coordinates than there are values.

    Example:
        >>> base = {"w": torch.zeros(3)}
        >>> mask = Mask({"w": (3,)}, {"w": torch.tensor([1])})
        >>> delta = SparseDelta.between(base, {"w": torch.tensor([0.0, 5.0, 0.0])}, mask)
        >>> delta.apply(base)["w"]
        tensor([0., 5., 0.])
    """

    mask: Mask
    values: Tensor
    base: str
    head: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (self.mask.count,):
            raise UsageError(f"values have shape {tuple(self.values.shape)}: use (k,) with the mask's k = {self.mask.count}")

    def __repr__(self) -> str:
        head = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.head.items())
        return f"SparseDelta({self.mask}, base={self.base[:12]}…, head: {head or 'none'})"

    @classmethod
    def between(cls, pretrained: Parameters, tuned: Parameters, mask: Mask) -> SparseDelta:
        """The delta that leads from θ⁰ to a tuned model.

        Args:
            pretrained: θ⁰ by name.
            tuned: all tensors of the tuned model by name. Those that θ⁰ lacks are the new head.
            mask: the coordinates that may differ.

        Raises:
            StabilityError: a coordinate outside the mask differs from θ⁰, compared bit by bit.
        """
        delta = cls(
            mask,
            mask.gather(tuned).detach().clone(),
            fingerprint(pretrained),
            {n: t for n, t in tuned.items() if n not in pretrained},
        )
        for name, rebuilt in mask.place(pretrained, delta.values).items():
            same = torch.equal(_bits(rebuilt), _bits(tuned[name].detach()))
            if not same:
                raise StabilityError(f"{name!r} was changed outside the mask: the model is not p-sparse with this mask")
        return delta

    def apply(self, pretrained: Parameters) -> dict[str, Tensor]:
        """The tuned model.

        Args:
            pretrained: the θ⁰ that the delta belongs to.

        Returns:
            All tensors of the tuned model by name, on the device of ``pretrained``.

        Raises:
            StabilityError: ``pretrained`` is not the θ⁰ that the delta was made from, or the delta is damaged.
        """
        found = fingerprint(pretrained)
        if found != self.base:
            raise StabilityError(
                f"this delta belongs to the pretrained parameters {self.base[:12]}…, but was applied to {found[:12]}…: "
                "load the model that it was trained from (of a method that inserts modules, "
                "selector.equivalent(problem, seed).pretrained)"
            )
        odd = [name for name in self.mask.misfits(pretrained) if name in self.mask.indices]
        if odd := odd or sorted(self.head.keys() & pretrained.keys()):
            raise StabilityError(f"this delta is damaged: what it says of {odd[0]!r} does not fit the pretrained parameters")
        device = next(iter(pretrained.values())).device
        return {**self.mask.place(pretrained, self.values), **{name: tensor.to(device) for name, tensor in self.head.items()}}

    def difference(self, pretrained: Parameters) -> Tensor:
        """The difference θ − θ⁰ at the masked coordinates, (k,), on the device of ``pretrained``.

        Args:
            pretrained: θ⁰ by name.
        """
        start = self.mask.gather(pretrained)
        return self.values.to(start.device) - start

    def save(self, path: str | PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write mask, values and head as safetensors, with the fingerprint of θ⁰ in the metadata.

        Args:
            path: the file.
            dtype: the type that the masked values are rounded to, such as ``torch.bfloat16``; by default they are kept exactly.
                With p = 0.5 % a coordinate takes 5.2 bytes in single precision and 3.2 bytes in 16 bits.

        Raises:
            UsageError: ``dtype`` is no floating-point type.
            StabilityError: the file cannot be written.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise UsageError(f"dtype = {dtype}: use a floating-point type such as torch.bfloat16 or torch.float16")
        values = self.values.cpu().contiguous()
        tensors = {"indices": self.mask._packed(), "values": values if dtype is None else values.to(dtype)}
        tensors |= {f"head.{n}": t.cpu().contiguous() for n, t in self.head.items()}
        kept = str(values.dtype).removeprefix("torch.")
        metadata = {"kind": "sparse delta", "shapes": json.dumps(self.mask.shapes), "base": self.base, "dtype": kept}
        _save(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SparseDelta:
        """Read a delta written by :meth:`save`.

        Args:
            path: the file.

        Raises:
            StabilityError: the file is missing, damaged or holds something else.
        """
        tensors, metadata = _load(path, "sparse delta")
        mask = _mask_from(path, tensors, metadata)
        values = tensors.get("values", torch.empty(0))
        if values.shape != (mask.count,):
            raise StabilityError(
                f"{path} is damaged: values of shape {tuple(values.shape)} for k = {mask.count} coordinates; write it again"
            )
        head = {n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")}
        dtype = getattr(torch, metadata["dtype"], None) if "dtype" in metadata else values.dtype
        try:
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"torch has no type {metadata['dtype']!r}")
            return cls(mask, values.to(dtype), metadata["base"], head)
        except (KeyError, TypeError, RuntimeError) as error:  # RuntimeError: torch cannot make this type of those values
            raise StabilityError(f"{path} is damaged: {one_line(error)}; write it again") from error


def _bits(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def _save(path: str | PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except (OSError, SafetensorError) as error:
        raise StabilityError(f"cannot write {path}: {error}; check that the folder exists and the disk has room") from error


def _load(path: str | PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: a name that no file can have
        raise StabilityError(f"cannot read {path}: {error}; the file is missing or damaged, write it again") from error
    if metadata.get("kind") != kind:
        raise StabilityError(f"{path} holds no {kind} (kind {metadata.get('kind')!r}): give a file written by stability")
    return tensors, metadata


def _mask_from(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Mask:
    try:
        shapes = _shapes(metadata["shapes"])
        return Mask.at(shapes, unpack(tensors["indices"], sum(map(math.prod, shapes.values()))))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StabilityError(f"{path} is damaged: {one_line(error)}; write it again") from error


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from JSON.

    Raises:
        ValueError: it holds something else, or more entries than a tensor can have.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"it holds no shapes, but {found!r}")
    for name, shape in found.items():
        if not (isinstance(shape, list) and len(shape) <= _AXES and all(type(one) is int and 0 <= one < _MOST for one in shape)):
            raise ValueError(f"the shape of {name!r} is {shape!r}")
    if not 0 < sum(map(math.prod, found.values())) < _MOST:
        raise ValueError("its shapes have no entry, or more than memory can have")
    return {name: tuple(shape) for name, shape in found.items()}
