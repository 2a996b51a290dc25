"""What is to be learned: :class:`Problem`, its :class:`Examples`, its model, and one random generator a role."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stability.errors import UsageError
from stability.masks import Mask, Parameters

__all__ = ["Examples", "Insertion", "ModuleLogits", "Problem", "generator", "shuffled_batches"]


def generator(seed: int, role: str) -> torch.Generator:
    """A CPU generator for one role (``head``, ``order``, ``selection``, ``plan``), never the global one.

    The state depends on both, so that changing how many numbers one role draws leaves the others alone.

    Example:
        >>> torch.equal(torch.rand(2, generator=generator(0, "head")), torch.rand(2, generator=generator(0, "head")))
        True
    """
    digest = hashlib.sha256(f"{role}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def shuffled_batches(n: int, batch_size: int, count: int, draw: torch.Generator) -> Iterator[Tensor]:
    """``count`` batches of indices of n examples, int64 (b,) each; S is shuffled anew whenever it is used up.

    With a ``batch_size`` of n or more each batch is the whole of S, in order.

    Example:
        >>> [len(batch) for batch in shuffled_batches(n=6, batch_size=4, count=3, draw=generator(0, "order"))]
        [4, 4, 4]
    """
    if batch_size >= n:
        yield from (torch.arange(n) for _ in range(count))
        return
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(n, generator=draw)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples z = (x, y): inputs and labels whose first axis is the example.

    Raises:
        UsageError: inputs and labels of different lengths.

    Example:
        >>> examples = Examples({"x": torch.arange(6.0).reshape(3, 2)}, torch.tensor([0, 1, 1]))
        >>> len(examples), len(examples.without(0))
        (3, 2)
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor

    def __post_init__(self) -> None:
        for name, tensor in self.inputs.items():
            if len(tensor) != len(self.labels):
                raise UsageError(f"{len(tensor)} rows of {name!r} and {len(self.labels)} labels: one of each an example expected")

    def __repr__(self) -> str:
        shapes = {**{name: tuple(tensor.shape) for name, tensor in self.inputs.items()}, "labels": tuple(self.labels.shape)}
        return f"Examples({shapes})"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Examples:
        """The examples at ``index``, in that order."""
        return Examples({name: tensor[index] for name, tensor in self.inputs.items()}, self.labels[index])

    def without(self, i: int) -> Examples:
        """S without z_i (Sⁱ in the paper)."""
        if not 0 <= i < len(self):
            raise UsageError(f"example {i} does not exist: S has n = {len(self)} examples, 0 to {len(self) - 1}")
        return self.take(torch.cat([torch.arange(i), torch.arange(i + 1, len(self))]))

    def to(self, device: torch.device) -> Examples:
        return Examples({name: tensor.to(device) for name, tensor in self.inputs.items()}, self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ModuleLogits:
    """The logits of a torch module as a pure function of its parameters: what :attr:`Problem.logits` may be.

    A method that inserts modules (Adapter, LoRA) needs this form; a bare function leaves it nothing to insert into.

    Attributes:
        module: the structure, in evaluation mode; its parameters' values are never read and may be on the meta device.
            Called as ``module(**inputs)``; what it returns has ``logits`` (B, C).
        names: the module's own name of each parameter that is called otherwise in the problem.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits")
        >>> problem.logits(problem.start(seed=0), problem.train.inputs).shape
        torch.Size([100, 5])
    """

    module: nn.Module
    names: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, parameters: Parameters, inputs: Mapping[str, Tensor]) -> Tensor:
        own = {self.names.get(name, name): tensor for name, tensor in parameters.items()}
        output: Any = functional_call(self.module, own, (), dict(inputs))
        logits: Tensor = output.logits
        return logits

    def to(self, device: torch.device) -> ModuleLogits:
        """With the module's buffers on ``device``; a copy, where they are elsewhere now."""
        if all(b.device.type == device.type and device.index in (None, b.device.index) for b in self.module.buffers()):
            return self
        module = copy.deepcopy(self.module)
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                setattr(owner, name, buffer.to(device))
        return replace(self, module=module)


@dataclass(frozen=True, eq=False)
class Insertion:
    """That a problem is the *equivalent problem* (Fu et al. 2023, Definition 2) of another: same outputs, more parameters.

    Attributes:
        by: settings and seed of the method that inserted modules, as plain values.
        tunable: the coordinates that the method trains.
    """

    by: Mapping[str, Any]
    tunable: Mask


@dataclass(frozen=True, eq=False)
class Problem:
    """A pretrained model, seen as a function of its parameters, and the data to fine-tune it on.

    Attributes:
        name: for tables and figures.
        settings: what defines it, as plain values: with ``name`` the identity under which results are kept.
        pretrained: θ⁰, the m parameters that sparsity counts. Never changed.
        new_head: generator → tensors that θ⁰ lacks (empty for none). Always tunable, counted apart.
        logits: (parameters, inputs) → (B, C). Pure, and fit for ``torch.func.vmap`` over the parameters. A
            :class:`ModuleLogits` where the model is a torch module.
        loss: (logits (B, C), labels (B,)) → (B,), ℓ of each example.
        train: S, n examples.
        test: held-out examples.
        metric: (logits (B, C), labels (B,)) → a number, larger is better.
        metric_name: what it is called.
        loss_unit: of ℓ, for tables and figures; cross-entropy is in nats.
        insertion: what made this problem from another with fewer parameters; None for a problem as it was loaded.
    """

    name: str
    settings: Mapping[str, Any]
    pretrained: Parameters
    new_head: Callable[[torch.Generator], Parameters]
    logits: Callable[[Parameters, Mapping[str, Tensor]], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Examples
    test: Examples
    metric: Callable[[Tensor, Tensor], float]
    metric_name: str
    loss_unit: str = "nats"
    insertion: Insertion | None = None

    def __post_init__(self) -> None:
        # dict(module.named_parameters()) is what one has at hand; nothing here differentiates by θ⁰ itself.
        object.__setattr__(self, "pretrained", {name: tensor.detach() for name, tensor in self.pretrained.items()})

    def __repr__(self) -> str:
        return f"Problem({self.name!r}, n={self.n}, m={self.m}, {dict(self.settings)})"

    @property
    def n(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def m(self) -> int:
        """Number of pretrained parameters, inserted ones with them, the head not counted."""
        return sum(tensor.numel() for tensor in self.pretrained.values())

    def head(self, seed: int = 0) -> dict[str, Tensor]:
        """The new head at its start."""
        device = next(iter(self.pretrained.values())).device
        return {name: tensor.to(device) for name, tensor in self.new_head(generator(seed, "head")).items()}

    def start(self, seed: int = 0) -> dict[str, Tensor]:
        """Where training starts: θ⁰ and the new head."""
        return {**self.pretrained, **self.head(seed)}

    def losses(self, parameters: Parameters, examples: Examples) -> Tensor:
        """ℓ of each example, (B,)."""
        return self.loss(self.logits(parameters, examples.inputs), examples.labels)

    def without(self, i: int) -> Problem:
        """The same problem on Sⁱ = S \\ z_i."""
        return replace(self, train=self.train.without(i))

    def to(self, device: torch.device) -> Problem:
        """The same problem on another device; nothing is copied where it is there already."""
        pretrained = {name: tensor.to(device) for name, tensor in self.pretrained.items()}
        logits = self.logits.to(device) if isinstance(self.logits, ModuleLogits) else self.logits
        return replace(self, pretrained=pretrained, logits=logits, train=self.train.to(device), test=self.test.to(device))
