"""Which coordinates may change: :class:`Mask`; and what they became: :class:`SparseDelta`.

A *p-sparse fine-tuned model* (Fu et al. 2023, Definition 1) differs from the pretrained θ⁰ ∈ R^m in at most pm
coordinates; a :class:`Mask` names those that may differ, a :class:`SparseDelta` holds what they became.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from os import PathLike
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stability.errors import StabilityError, UsageError
from stability.packing import pack, unpack

__all__ = ["Mask", "Parameters", "SparseDelta", "fingerprint"]

Parameters: TypeAlias = Mapping[str, Tensor]
"""Named tensors: a model is a function of these."""


def fingerprint(parameters: Parameters) -> str:
    """SHA-256 of names, shapes, types and bytes: the identity of θ⁰, whatever order the tensors come in."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Mask:
    """A set of coordinates of named tensors.

    Attributes:
        shapes: shape of every tensor that the mask speaks of, masked or not; their sizes add up to ``total`` (m).
        indices: flat int64 indices, ascending and distinct, of the coordinates that may change in each tensor.
            Tensors without any may be missing.

    Raises:
        UsageError: an unknown tensor, or indices out of order, repeated or out of range.

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
            raise UsageError(f"mask names tensors that the model lacks: {', '.join(unknown)}")
        for name, index in self.indices.items():
            size = math.prod(self.shapes[name])
            if index.dtype != torch.int64 or index.ndim != 1:
                raise UsageError(f"mask of {name!r}: flat int64 indices expected, got {index.dtype} {tuple(index.shape)}")
            if len(index) and not (index[0] >= 0 and index[-1] < size and bool((index.diff() > 0).all())):
                raise UsageError(f"mask of {name!r}: indices must be ascending, distinct and in [0, {size})")
        ordered = {n: self.indices[n] for n in self.shapes if n in self.indices and len(self.indices[n])}
        object.__setattr__(self, "shapes", {n: tuple(s) for n, s in self.shapes.items()})
        object.__setattr__(self, "indices", ordered)

    def __repr__(self) -> str:
        return f"Mask(k={self.count}, m={self.total})"

    @classmethod
    def full(cls, parameters: Parameters) -> Mask:
        """Every coordinate of every tensor."""
        shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        return cls(shapes, {name: torch.arange(math.prod(shape)) for name, shape in shapes.items()})

    @classmethod
    def at(cls, shapes: Mapping[str, tuple[int, ...]], places: Tensor) -> Mask:
        """The coordinates at ``places``, ascending, counted through all tensors one after the other in their order."""
        ends = list(accumulate(map(math.prod, shapes.values())))
        parts = torch.tensor_split(places, torch.searchsorted(places, torch.tensor(ends[:-1], dtype=torch.int64)))
        starts = [0, *ends[:-1]]
        return cls(shapes, {name: part - start for name, part, start in zip(shapes, parts, starts, strict=True)})

    @property
    def count(self) -> int:
        """k, the number of coordinates that may change."""
        return sum(len(index) for index in self.indices.values())

    @property
    def total(self) -> int:
        """m, the number of coordinates there are."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def sparsity(self) -> float:
        """p = k / m."""
        return self.count / self.total

    def equals(self, other: Mask) -> bool:
        """The same coordinates of the same tensors, in whatever order the tensors are named."""
        return (
            dict(self.shapes) == dict(other.shapes)
            and self.indices.keys() == other.indices.keys()
            and all(torch.equal(index, other.indices[name]) for name, index in self.indices.items())
        )

    def union(self, other: Mask) -> Mask:
        """Coordinates in either mask; the masks may speak of different tensors (a model and its new head)."""
        for name in self.shapes.keys() & other.shapes.keys():
            if self.shapes[name] != other.shapes[name]:
                raise UsageError(f"masks disagree on the shape of {name!r}: {self.shapes[name]} and {other.shapes[name]}")
        indices = dict(self.indices)
        for name, index in other.indices.items():
            mine = indices.get(name)
            if mine is None or (len(mine) != len(index) or not torch.equal(mine, index)):
                indices[name] = index if mine is None else torch.cat([mine, index]).unique()
        return Mask({**self.shapes, **other.shapes}, indices)

    def contains(self, other: Mask) -> Tensor:
        """For each of *my* coordinates, in order, whether ``other`` has it too: bool (k,)."""
        parts = [
            torch.isin(index, other.indices[name], assume_unique=True)
            if name in other.indices
            else torch.zeros(len(index), dtype=torch.bool)
            for name, index in self.indices.items()
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def part(self, places: Tensor) -> Mask:
        """Those of my coordinates that are at ``places`` (ascending) of a k-vector."""
        inside = {name: places[(places >= where.start) & (places < where.stop)] - where.start for name, _, where in self.slices()}
        return Mask(self.shapes, {name: self.indices[name][mine] for name, mine in inside.items() if len(mine)})

    def slices(self) -> Iterator[tuple[str, Tensor, slice]]:
        """(tensor name, its flat indices, their place in a k-vector), in order."""
        start = 0
        for name, index in self.indices.items():
            yield name, index, slice(start, start + len(index))
            start += len(index)

    def gather(self, parameters: Parameters) -> Tensor:
        """The masked coordinates of ``parameters`` as one vector (k,)."""
        parts = [parameters[n].reshape(-1)[index.to(parameters[n].device)] for n, index in self.indices.items()]
        return torch.cat(parts) if parts else next(iter(parameters.values())).new_empty(0)

    def place(self, parameters: Parameters, values: Tensor) -> dict[str, Tensor]:
        """``parameters`` with the masked coordinates set to ``values`` (k,); tensors not masked are not copied."""
        if values.shape != (self.count,):
            raise UsageError(f"values have shape {tuple(values.shape)}, but the mask has k = {self.count} coordinates")
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
        """Write the mask as safetensors: its indices packed (:mod:`stability.packing`), the shapes in the metadata."""
        _save(path, {"indices": self._packed()}, {"kind": "mask", "shapes": json.dumps(self.shapes)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Mask:
        """Read a mask written by :meth:`save`.

        Raises:
            StabilityError: the file is missing, damaged or holds something else.
        """
        tensors, metadata = _load(path, "mask")
        return _mask_from(path, tensors, metadata)

    def _packed(self) -> Tensor:
        """The indices over all tensors, one after the other in the order of ``shapes``, packed."""
        starts = dict(zip(self.shapes, accumulate(map(math.prod, self.shapes.values()), initial=0), strict=False))
        parts = [index + starts[name] for name, index in self.indices.items()]
        return pack(torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64), self.total)


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """What fine-tuning changed: the values that the masked coordinates of θ⁰ became, and the new head.

    It *replaces*, it does not add: θ⁰ + (θ − θ⁰) is not θ in floating point, and a saved model must give the same
    logits, bit for bit. :meth:`difference` gives θ − θ⁰.

    Attributes:
        mask: the coordinates, over the pretrained tensors only.
        values: (k,) their values after training.
        base: :func:`fingerprint` of the θ⁰ that the delta belongs to.
        head: tensors that θ⁰ has not, in full.

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

    def __repr__(self) -> str:
        head = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.head.items())
        return f"SparseDelta({self.mask}, base={self.base[:12]}…, head: {head or 'none'})"

    @classmethod
    def between(cls, pretrained: Parameters, tuned: Parameters, mask: Mask) -> SparseDelta:
        """Read the delta off a tuned model.

        Raises:
            StabilityError: a coordinate outside the mask differs from θ⁰ (compared bit by bit).
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

        Raises:
            StabilityError: ``pretrained`` is not the θ⁰ that the delta was made from.
        """
        found = fingerprint(pretrained)
        if found != self.base:
            raise StabilityError(
                f"this delta belongs to the pretrained parameters {self.base[:12]}…, but was applied to {found[:12]}…: "
                "load the model that it was trained from (of a method that inserts modules, "
                "selector.equivalent(problem, seed).pretrained)"
            )
        return {**self.mask.place(pretrained, self.values), **self.head}

    def difference(self, pretrained: Parameters) -> Tensor:
        """θ − θ⁰ on the mask, (k,)."""
        return self.values - self.mask.gather(pretrained)

    def save(self, path: str | PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write mask, values and head as safetensors, with the identity of θ⁰ in the metadata.

        Args:
            path: the file.
            dtype: to round the masked values to, such as ``torch.bfloat16``; by default they are kept exactly. At a density
                of 0.5 % an entry takes 5.2 bytes in single precision, 3.2 in 16 bits.

        Raises:
            UsageError: ``dtype`` is of whole numbers.
            StabilityError: the file cannot be written.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise UsageError(f"dtype = {dtype} cannot hold the values of parameters: use torch.bfloat16 or torch.float16")
        values = self.values.cpu().contiguous()
        tensors = {"indices": self.mask._packed(), "values": values if dtype is None else values.to(dtype)}
        tensors |= {f"head.{n}": t.cpu().contiguous() for n, t in self.head.items()}
        kept = str(values.dtype).removeprefix("torch.")
        metadata = {"kind": "sparse delta", "shapes": json.dumps(self.mask.shapes), "base": self.base, "dtype": kept}
        _save(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SparseDelta:
        """Read a delta written by :meth:`save`.

        Raises:
            StabilityError: the file is missing, damaged or holds something else.
        """
        tensors, metadata = _load(path, "sparse delta")
        mask = _mask_from(path, tensors, metadata)
        values = tensors.get("values", torch.empty(0))
        if len(values) != mask.count:
            raise StabilityError(f"{path} is damaged: {len(values)} values for k = {mask.count} coordinates; write it again")
        head = {n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")}
        dtype = getattr(torch, metadata.get("dtype", ""), values.dtype)
        return cls(mask, values.to(dtype), metadata["base"], head)


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
    except (OSError, SafetensorError) as error:
        raise StabilityError(f"cannot read {path}: {error}; the file is missing or damaged, write it again") from error
    if metadata.get("kind") != kind:
        raise StabilityError(f"{path} holds no {kind} (kind {metadata.get('kind')!r}): give a file written by stability")
    return tensors, metadata


def _mask_from(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Mask:
    try:
        shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
        return Mask.at(shapes, unpack(tensors["indices"], sum(map(math.prod, shapes.values()))))
    except (KeyError, TypeError, ValueError) as error:
        raise StabilityError(f"{path} is damaged: {error}; write it again") from error
