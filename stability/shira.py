"""Exchange sparse deltas with ``peft``, whose SHiRA adapters (Bhardwaj et al. 2024) can hold some of them.

SHiRA changes weights of ``nn.Linear`` modules only: no bias, no LayerNorm, no embedding. For every matrix (out, in) that it changes
it keeps the differences θ − θ⁰ at r · (in + out) coordinates, with the same r for all matrices. It keeps a new head in full.

To let peft train a mask, export the delta of a model that has not been trained: ``SparseDelta.between(θ⁰, start, mask)``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from stability.errors import StabilityError, UsageError, one_line
from stability.masks import Mask, Parameters, SparseDelta, fingerprint

__all__ = ["export_shira", "import_shira"]

_PREFIX, _WEIGHT, _INDICES = "base_model.model.", ".shira_weight", ".shira_indices"
_KEEP = "SparseDelta.save keeps every delta as it is"
_ITS_OWN = "give the pretrained parameters that it was trained from"


def export_shira(delta: SparseDelta, pretrained: Parameters, module: nn.Module, folder: str | PathLike[str]) -> None:
    """Write a delta as an adapter that ``peft.PeftModel.from_pretrained(model, folder)`` loads.

    r is the least number for which every matrix has room for its masked coordinates. A matrix with fewer of them is filled up with
    its first unmasked coordinates, at difference 0. The metadata tell how many are masked, so that :func:`import_shira` gives the
    same mask.

    Differences are in single precision, or in double precision for such a model. So θ⁰ + (θ − θ⁰), which peft computes, is θ up to
    two roundings, and exactly θ wherever θ/θ⁰ lies in [½, 2].

    Args:
        delta: the delta; it may change weights of ``nn.Linear`` modules only.
        pretrained: the θ⁰ that the delta belongs to, by name.
        module: the model's structure. It tells which tensors are weights of an ``nn.Linear``, and which modules form the new head.
            The values of its parameters are not read and may be on the meta device.
        folder: where to write; it is made where it is missing.

    Raises:
        UsageError: peft is not installed, or SHiRA cannot hold the delta.
        StabilityError: ``pretrained`` is not the delta's θ⁰, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from stability.problems import load
        >>> problem = load("digits")
        >>> shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
        >>> mask = Mask(shapes, {"vit.layers.0.mlp.fc1.weight": torch.arange(64)})
        >>> delta = SparseDelta.between(problem.pretrained, problem.start(seed=0), mask)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_shira(delta, problem.pretrained, problem.logits.module, folder)
        ...     import_shira(folder, problem.pretrained).mask.equals(mask)
        True
    """
    try:
        from peft import ShiraConfig
    except ImportError as error:
        raise UsageError(f"export_shira needs the package peft: pip install 'peft-stability[peft]'; {_KEEP}") from error
    delta.apply(pretrained)  # refuses another θ⁰
    if not delta.mask.count:
        raise UsageError(f"SHiRA needs at least one changed coordinate, and the mask has k = 0; {_KEEP}")
    mask, r, saved = delta.mask, _least_r(delta.mask, module), _modules_of(delta.head, module)
    difference = delta.values.detach().cpu().double() - mask.gather(pretrained).detach().cpu()
    difference = difference.to(torch.promote_types(delta.values.dtype, torch.float32))
    tensors = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in delta.head.items()}
    for name, index, part in mask.slices():
        rows, columns = mask.shapes[name]
        free = torch.ones(rows * columns, dtype=torch.bool).index_fill(0, index, False)
        filling = free.nonzero().squeeze(1)[: r * (rows + columns) - len(index)]
        places, owner = torch.cat([index, filling]), _PREFIX + name.removesuffix(".weight")
        tensors[owner + _WEIGHT] = pad(difference[part], (0, len(filling)))
        tensors[owner + _INDICES] = torch.stack([places // columns, places % columns]).int()
    # A regular expression, for peft takes a name in a list to mean every module whose name ends like it.
    targets = "|".join(re.escape(name.removesuffix(".weight")) for name in mask.indices)
    config = ShiraConfig(r=r, target_modules=targets, modules_to_save=saved or None, inference_mode=True)
    masked = json.dumps({name: len(index) for name, index in mask.indices.items()})
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        save_file(tensors, Path(folder) / "adapter_model.safetensors", {"format": "pt", "base": delta.base, "masked": masked})
    except (OSError, SafetensorError) as error:
        raise StabilityError(f"cannot write {folder}: {error}; check that it is a folder and the disk has room") from error


def import_shira(folder: str | PathLike[str], pretrained: Parameters) -> SparseDelta:
    """Read a SHiRA adapter that ``PeftModel.save_pretrained`` or :func:`export_shira` wrote. peft need not be installed.

    The mask holds every coordinate that peft trains, whatever its difference, and none of those that :func:`export_shira` added to
    fill up. The values are θ⁰ plus the differences. A module that was saved in full (``modules_to_save``) is masked in full where
    θ⁰ has it, and is otherwise the new head.

    Args:
        folder: the folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        pretrained: θ⁰, by the names that the model gives its parameters.

    Returns:
        The delta from ``pretrained``.

    Raises:
        StabilityError: the folder is missing or damaged, holds another method's adapter, or belongs to another model.

    Example:
        >>> import_shira("no-such-folder", {})
        Traceback (most recent call last):
        stability.errors.StabilityError: cannot read no-such-folder: ...
    """
    tensors, belongs, masked = _read(Path(folder))
    base = fingerprint(pretrained)
    if belongs not in (None, base):
        raise StabilityError(f"{folder} belongs to the pretrained parameters {belongs[:12]}…, not {base[:12]}…: {_ITS_OWN}")
    indices, values = {}, {}
    for owner in [name.removesuffix(_INDICES) for name in tensors if name.endswith(_INDICES)]:
        name, pairs, difference = f"{owner}.weight", tensors.pop(owner + _INDICES), tensors.pop(owner + _WEIGHT, torch.empty(0))
        if name not in pretrained:
            raise StabilityError(f"{folder} changes {name!r}, which the pretrained parameters lack: {_ITS_OWN}")
        old = pretrained[name].detach().cpu()
        places = _flat(pairs, difference, old.shape, f"{folder}, {name!r}")[: masked.get(name)]
        indices[name], order = places.sort()
        values[name] = old.flatten()[indices[name]].double() + difference[order]
    for name in tensors.keys() & pretrained.keys():
        whole, shape = tensors.pop(name), tuple(pretrained[name].shape)
        if whole.shape != shape:
            raise StabilityError(f"{folder}, {name!r}: shape {tuple(whole.shape)} where θ⁰ has {shape}: {_ITS_OWN}")
        indices[name], values[name] = torch.arange(whole.numel()), whole.flatten()
    mask = Mask({name: tuple(tensor.shape) for name, tensor in pretrained.items()}, indices)
    return SparseDelta(mask, torch.cat([values[name].to(pretrained[name].dtype) for name in mask.indices]), base, tensors)


def _least_r(mask: Mask, module: nn.Module) -> int:
    """The least r for which r · (in + out) coordinates hold what is masked of every matrix."""
    linear = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    if refused := [name for name in mask.indices if name not in linear]:
        raise UsageError(
            f"SHiRA changes weights of nn.Linear only, and {sum(len(mask.indices[name]) for name in refused)} of the "
            f"k = {mask.count} masked coordinates are in {_listed(refused)}: mask nn.Linear weights only; {_KEEP}"
        )
    least = {name: math.ceil(len(index) / sum(mask.shapes[name])) for name, index in mask.indices.items()}
    densest, r = max(least.items(), key=lambda item: item[1])
    for name in least:
        size, asked = math.prod(mask.shapes[name]), r * sum(mask.shapes[name])
        if asked > size:
            raise UsageError(
                f"SHiRA keeps r (in + out) coordinates of every matrix, and r = {r}, for the {len(mask.indices[densest])} masked "
                f"ones of {densest!r}, makes {asked} of the {size} in {name!r}: mask fewer; {_KEEP}"
            )
    return r


def _modules_of(head: Parameters, module: nn.Module) -> list[str]:
    """The modules that peft must save in full, so that it saves the head and nothing else."""
    owners = {name.rpartition(".")[0] for name in head}
    saved = sorted(name for name in owners if not any(name.startswith(f"{other}.") for other in owners))
    # As peft looks for them: a name stands for every module whose name ends like it.
    meant = [(name, part) for name, part in module.named_modules() if name.endswith(tuple(saved))]
    if wrong := {f"{name}.{leaf}".removeprefix(".") for name, part in meant for leaf in part.state_dict()} ^ head.keys():
        raise UsageError(f"peft saves whole modules, and {_listed(wrong)} would be missing or too many: {_KEEP}")
    return saved


def _flat(pairs: Tensor, difference: Tensor, shape: torch.Size, where: str) -> Tensor:
    """Flat indices from rows and columns, one for each difference."""
    real = difference.is_floating_point() and not (pairs.is_complex() or pairs.dtype == torch.bool)
    if not real or difference.ndim != 1 or not len(difference) or pairs.shape != (2, len(difference)):
        found = f"{difference.numel()} differences at indices of shape {tuple(pairs.shape)}"
        kinds = "" if real else f", of types {difference.dtype} and {pairs.dtype}"
        raise StabilityError(f"{where} is damaged: {found}{kinds}; write it again")
    pairs = pairs.long()  # on Windows peft writes float32
    least, greatest = pairs.amin(1), pairs.amax(1)
    if len(shape) != 2 or bool((least < 0).any()) or bool((greatest >= torch.tensor(shape)).any()):
        reach = f"{least.tolist()} to {greatest.tolist()}"
        raise StabilityError(f"{where}: indices from {reach} in a tensor of shape {tuple(shape)}: {_ITS_OWN}")
    places = pairs[0] * shape[1] + pairs[1]
    if repeated := len(places) - len(places.unique()):
        raise StabilityError(f"{where} is damaged: {repeated} of {len(places)} indices are repeated; write it again")
    return places


def _read(folder: Path) -> tuple[dict[str, Tensor], str | None, dict[str, int]]:
    """The tensors by their names in the model; of an exported delta also the fingerprint of θ⁰ and the masked counts."""
    try:
        method = json.loads((folder / "adapter_config.json").read_text())["peft_type"]
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name.removeprefix(_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        masked = json.loads(metadata.get("masked", "{}"))
        if not (isinstance(masked, dict) and all(type(one) is int and one > 0 for one in masked.values())):
            raise ValueError(f"its counts of masked coordinates are {masked!r}")
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise StabilityError(
            f"cannot read {folder}: {one_line(error)}; it is missing or damaged, give a folder that peft wrote"
        ) from error
    count = sum(name.endswith(_INDICES) for name in tensors)
    if method != "SHIRA" or not count:
        raise StabilityError(f"{folder} holds no SHiRA adapter, but peft_type {method!r} of {count} matrices: give one")
    return tensors, metadata.get("base"), masked


def _listed(names: Iterable[str]) -> str:
    return shorten(", ".join(sorted(names)), 300, placeholder=" …")
