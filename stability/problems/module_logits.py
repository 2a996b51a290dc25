"""A torch module as a pure function of its parameters: :class:`ModuleLogits`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from stability.errors import UsageError
from stability.masks import Parameters
from stability.problems.attention import Attention
from stability.problems.grouping import Grouping

__all__ = ["ONE_AT_A_TIME", "ModuleLogits", "refill", "without_values"]


def refill(module: nn.Module, value: Callable[[str, nn.Parameter], nn.Parameter]) -> None:
    """Replace every parameter of a module, in place. Parameters that were tied stay tied.

    Args:
        module: the module whose parameters are replaced.
        value: called with the name and the old parameter, gives the new one.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> refill(layer, without_values)
        >>> layer.weight.device
        device(type='meta')
    """
    new = {id(parameter): value(name, parameter) for name, parameter in module.named_parameters()}
    for owner in list(module.modules()):
        for leaf, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_parameter(leaf, new[id(parameter)])


def without_values(name: str, parameter: nn.Parameter) -> nn.Parameter:
    """The parameter's shape without its values, on the meta device, as :func:`refill` may put it in the parameter's place.

    Args:
        name: the parameter's name, which is not used.
        parameter: the parameter whose shape and type are kept.

    Example:
        >>> without_values("weight", nn.Parameter(torch.ones(2))).shape
        torch.Size([2])
    """
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


ONE_AT_A_TIME = "runs one replica at a time, for torch.func.vmap cannot compute many of them at once"
"""What a note says of a model of which many replicas cannot be computed by one call."""


@dataclass(frozen=True, eq=False)
class ModuleLogits:
    """The logits of a torch module as a pure function of its parameters, as :attr:`Problem.logits` needs it.

    Methods that insert modules (Adapter, LoRA) need this form: into a bare function they cannot insert anything.

    Attributes:
        module: the structure, in evaluation mode. It is called as ``module(**inputs)`` and returns the logits (B, C), an object
            or a dictionary with ``logits``, or a tuple that begins with them. The values of its parameters are never read and
            may be on the meta device.
        names: from a parameter's name in the problem to its name in the module, where the two differ.
        attention: the form in which the module takes an attention mask.
        choices: whether an example is a choice among c sequences. The inputs are then (B, c, T), the module has one logit and
            scores each sequence alone, and these scores are the example's logits (B, c).
        grouping: which texts of a batch the module gets together; None: all of them, with padding.
        batched: whether many replicas can be computed at once, by one call of the module through ``torch.func.vmap``. If not,
            they are computed one after the other, and whatever the module writes into its buffers is forgotten after each call.
            None: the problem tries it once (:attr:`Problem.batched`).
        training: whether the module is in training mode, as in :attr:`while_training`.

    Raises:
        UsageError: a part of the module is in training mode, and would drop out or take the statistics of each batch.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits")
        >>> problem.logits(problem.start(seed=0), problem.train.inputs).shape
        torch.Size([100, 5])
    """

    module: nn.Module
    names: Mapping[str, str] = field(default_factory=dict)
    attention: Attention = field(default_factory=Attention)
    choices: bool = False
    grouping: Grouping | None = field(default=None, kw_only=True)
    batched: bool | None = field(default=None, kw_only=True)
    training: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name, part in self.module.named_modules():
            kind = f"{type(self.module).__name__}: its {type(part).__name__} {name!r} is in training mode and would"
            if isinstance(part, _NormBase) and part.training and part.track_running_stats:
                raise UsageError(f"{kind} change its running statistics with each batch: call module.eval() first")
            if isinstance(part, _DropoutNd) and part.training and part.p > 0 and not self.training:
                raise UsageError(f"{kind} drop out: call module.eval() first; dropout=True of the algorithm is for training")

    def __call__(self, parameters: Parameters, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits (B, C) of B inputs.

        Args:
            parameters: all tensors of the model, by their names in the problem.
            inputs: the inputs of B examples, by name, each (B, …).

        Raises:
            UsageError: the module returns nothing that has logits.
        """
        each = self._flat(inputs)
        if self.grouping is None:
            logits = self._called(parameters, each)
        else:
            logits = self.grouping.call(lambda some: self._called(parameters, some), each)
        return logits.reshape(len(next(iter(inputs.values()))), -1) if self.choices else logits

    def _flat(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inputs as the module gets them: a row for each sequence."""
        return {name: tensor.flatten(0, 1) for name, tensor in inputs.items()} if self.choices else inputs

    def _called(self, parameters: Parameters, inputs: Mapping[str, Tensor], buffers: dict[str, Tensor] | None = None) -> Tensor:
        """What the module gives for these inputs, all at once. What it writes into ``buffers`` is written there."""
        own = self._fresh_buffers() if buffers is None and self.batched is False else buffers or {}
        for name, tensor in parameters.items():
            first = self.names.get(name, name)
            own.update(dict.fromkeys(self._places.get(first, [first]), tensor))
        prepared = self.attention.prepare(inputs, next(iter(parameters.values())).dtype)
        return self._logits_in(functional_call(self.module, own, (), prepared, tie_weights=False))

    def _logits_in(self, output: Any) -> Tensor:
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if isinstance(found, tuple | list) and found:
            found = found[0]
        if not isinstance(found, Tensor):
            raise UsageError(
                f"{type(self.module).__name__} returned a {type(output).__name__} without logits: let its forward return the "
                "logits, a tensor (B, C), an object or a dictionary that has them as logits, or a tuple that begins with them"
            )
        return found

    def _fresh_buffers(self) -> dict[str, Tensor]:
        """Copies of all buffers. One that stands in several places is one copy."""
        copies: dict[int, Tensor] = {}
        fresh = {}
        for name, buffer in self.module.named_buffers(remove_duplicate=False):
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.clone()
            fresh[name] = copies[id(buffer)]
        return fresh

    def changes_buffers(self, parameters: Parameters, inputs: Mapping[str, Tensor]) -> bool:
        """Whether a call of the module changes its buffers. Here they keep their values.

        Args:
            parameters: all tensors of the model, by their names in the problem.
            inputs: the inputs of B examples, by name, each (B, …).
        """
        fresh = self._fresh_buffers()
        given = dict(fresh)  # functional_call puts there what the module has in their place afterwards
        self._called(parameters, self._flat(inputs), given)
        return any(given[name] is not own or own._version > 0 for name, own in fresh.items())

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """By a parameter's first name, all places where it stands, those in a module that stands in several places once.

        torch ties parameters by every name, and leaves its last tensor in a module that has two names.
        """
        places: dict[int, list[str]] = {}
        for owner, part in self.module.named_modules():
            for leaf, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
                places.setdefault(id(parameter), []).append(f"{owner}.{leaf}" if owner else leaf)
        return {names[0]: names for names in places.values()}

    def remember(self, *, batched: bool) -> None:
        """Keep what was found out where it was not known yet; copies in training mode or for a thread then know it, too.

        Args:
            batched: whether many replicas can be computed at once.
        """
        if self.batched is None:
            object.__setattr__(self, "batched", batched)

    @property
    def note(self) -> str:
        """What a reader should know of how the replicas are computed where that is one at a time."""
        apart = "" if self.grouping is None else self.grouping.note
        return f"{type(self.module).__name__} {ONE_AT_A_TIME}{apart}"

    @cached_property
    def while_training(self) -> ModuleLogits:
        """The same function in training mode, in which dropout is on; :class:`stability.training.dropout.Dropout` draws for it.

        Batch normalisation keeps its running statistics: with those of the batch no example could be left out by its weight.
        """
        module = copy.deepcopy(self.module).train()
        for part in module.modules():
            if isinstance(part, _NormBase):
                part.eval()
        return replace(self, module=module, training=True)

    def to(self, device: torch.device) -> ModuleLogits:
        """The same function with the module's buffers on another device; itself where they are there already.

        Args:
            device: where the buffers are put.
        """
        if all(buffer.to(device) is buffer for buffer in self.module.buffers()):  # "cuda" is one of several GPUs, torch knows which
            return self
        module = copy.deepcopy(self.module)
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                setattr(owner, name, buffer.to(device))
        return replace(self, module=module)
