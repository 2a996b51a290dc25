"""What is to be learned: :class:`Problem`, its :class:`Examples`, its model, and one random generator a role."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stability.errors import UsageError
from stability.masks import Mask, Parameters
from stability.problems.attention import Attention

__all__ = [
    "Examples",
    "Insertion",
    "ModuleLogits",
    "Problem",
    "TrainingDefaults",
    "generator",
    "refill",
    "shuffled_batches",
    "without_values",
]


def generator(seed: int, role: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one role (``head``, ``order``, ``selection``, ``plan``, ``dropout``), never the global one.

    The state depends on both, so that changing how many numbers one role draws leaves the others alone.

    Example:
        >>> torch.equal(torch.rand(2, generator=generator(0, "head")), torch.rand(2, generator=generator(0, "head")))
        True
    """
    digest = hashlib.sha256(f"{role}:{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


def shuffled_batches(n: int, batch_size: int, count: int, draw: torch.Generator, lengths: Tensor | None = None) -> Iterator[Tensor]:
    """``count`` batches of indices of n examples, int64 (b,) each; S is shuffled anew whenever it is used up, and no example is
    twice in a batch.

    With a ``batch_size`` of n or more each batch is the whole of S, in order. Where examples have ``lengths`` (n,), those of
    like length go together, so that little is padded: the shuffled examples are taken ⌊n/b⌋ batches at a time, ordered by
    length times a random factor in [0.8, 1.25], cut into batches, and the batches come in random order.

    Example:
        >>> [len(batch) for batch in shuffled_batches(n=6, batch_size=4, count=3, draw=generator(0, "order"))]
        [4, 4, 4]
        >>> lengths = torch.tensor([9, 3, 50, 48])
        >>> [sorted(lengths[batch].tolist()) for batch in shuffled_batches(4, 2, 2, generator(0, "order"), lengths)]
        [[48, 50], [3, 9]]
    """
    if batch_size >= n:
        yield from (torch.arange(n) for _ in range(count))
        return
    waiting = torch.empty(0, dtype=torch.int64)
    at_once = batch_size * (1 if lengths is None else n // batch_size)
    while count > 0:
        chosen, waiting = waiting[:at_once], waiting[at_once:]
        if len(chosen) < at_once:
            fresh = torch.randperm(n, generator=draw)
            new = ~torch.isin(fresh, chosen)
            taken = new & (new.cumsum(0) <= at_once - len(chosen))
            chosen, waiting = torch.cat([chosen, fresh[taken]]), fresh[~taken]
        if lengths is not None:
            factors = 1.25 ** (2 * torch.rand(at_once, generator=draw) - 1)
            chosen = chosen[(lengths[chosen] * factors).argsort()].view(-1, batch_size)
            chosen = chosen[torch.randperm(len(chosen), generator=draw)].view(-1)
        batches = chosen.split(batch_size)[:count]
        yield from batches
        count -= len(batches)


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples z = (x, y): inputs and labels whose first axis is the example.

    Attributes:
        inputs: what the model is called with, each (N, …).
        labels: (N,).
        lengths: for sequences, how many places along the inputs' last axis each example fills, int64 (N,) on the CPU; the
            rest is padding, and :meth:`take` cuts off what no example taken needs. None: every axis is as it is.

    Raises:
        UsageError: inputs, labels and lengths of different numbers.

    Example:
        >>> examples = Examples({"x": torch.arange(6.0).reshape(3, 2)}, torch.tensor([0, 1, 1]))
        >>> len(examples), len(examples.without(0))
        (3, 2)
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        counted = {**self.inputs, **({} if self.lengths is None else {"lengths": self.lengths})}
        for name, tensor in counted.items():
            if len(tensor) != len(self.labels):
                raise UsageError(f"{len(tensor)} rows of {name!r} and {len(self.labels)} labels: one of each an example expected")

    def __repr__(self) -> str:
        shapes = {**{name: tuple(tensor.shape) for name, tensor in self.inputs.items()}, "labels": tuple(self.labels.shape)}
        return f"Examples({shapes})"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Examples:
        """The examples at ``index``, in that order, without padding that none of them needs."""
        there = index if isinstance(index, slice) else index.to(self.labels.device)
        inputs = {name: tensor[there] for name, tensor in self.inputs.items()}
        if self.lengths is None:
            return Examples(inputs, self.labels[there])
        longest, mine = self.longest(index), self.lengths[index if isinstance(index, slice) else index.cpu()]
        return Examples({name: tensor[..., :longest] for name, tensor in inputs.items()}, self.labels[there], mine)

    def by_length(self) -> Examples:
        """Sequences from the shortest to the longest, for sums in blocks; others as they are."""
        return self if self.lengths is None else self.take(self.lengths.argsort(stable=True))

    def longest(self, index: Tensor | slice) -> int:
        """How many places along the last axis the examples at ``index`` need; 1 for what is no sequence."""
        if self.lengths is None or not len(mine := self.lengths[index if isinstance(index, slice) else index.cpu()]):
            return 1
        return int(mine.max())

    def blocks(self, most: int = 256, places: int = 1024) -> Iterator[tuple[Tensor, Examples]]:
        """All examples in blocks, each with its indices: ``most`` at once, sequences by length and no more than ``places``
        tokens, padding counted, unless one alone has more. On two cores 1024 were fastest for training MiniLM, by a quarter
        against a whole batch of 16 texts.
        """
        order = torch.arange(len(self)) if self.lengths is None else self.lengths.argsort(stable=True)
        while len(order):
            size = most
            if self.lengths is not None:
                sequences = math.prod(next(iter(self.inputs.values())).shape[1:-1])
                ends = sequences * self.lengths[order[:most]] * torch.arange(1, min(most, len(order)) + 1)
                size = max(1, int((ends <= places).sum()))
            yield order[:size], self.take(order[:size])
            order = order[size:]

    def without(self, i: int) -> Examples:
        """S without z_i (Sⁱ in the paper)."""
        if not 0 <= i < len(self):
            raise UsageError(f"example {i} does not exist: S has n = {len(self)} examples, 0 to {len(self) - 1}")
        return self.take(torch.cat([torch.arange(i), torch.arange(i + 1, len(self))]))

    def to(self, device: torch.device) -> Examples:
        return Examples({name: tensor.to(device) for name, tensor in self.inputs.items()}, self.labels.to(device), self.lengths)


def refill(module: nn.Module, value: Callable[[str, nn.Parameter], nn.Parameter]) -> None:
    """Put ``value(name, parameter)`` in the place of every parameter; tied ones stay tied."""
    new = {id(parameter): value(name, parameter) for name, parameter in module.named_parameters()}
    for owner in list(module.modules()):
        for leaf, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_parameter(leaf, new[id(parameter)])


def without_values(_: str, parameter: nn.Parameter) -> nn.Parameter:
    """For :func:`refill`: the parameter's shape alone."""
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


@dataclass(frozen=True, eq=False)
class ModuleLogits:
    """The logits of a torch module as a pure function of its parameters: what :attr:`Problem.logits` may be.

    A method that inserts modules (Adapter, LoRA) needs this form; a bare function leaves it nothing to insert into.

    Attributes:
        module: the structure, in evaluation mode; its parameters' values are never read and may be on the meta device.
            Called as ``module(**inputs)``; what it returns has ``logits`` (B, C).
        names: the module's own name of each parameter that is called otherwise in the problem.
        attention: the form in which the module takes an attention mask.
        choices: whether an example is a choice among c sequences: inputs (B, c, T), each sequence scored alone by a
            module of one logit, its scores the example's logits (B, c).

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

    def __call__(self, parameters: Parameters, inputs: Mapping[str, Tensor]) -> Tensor:
        own = {self.names.get(name, name): tensor for name, tensor in parameters.items()}
        each = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()} if self.choices else inputs
        prepared = self.attention.prepare(each, next(iter(parameters.values())).dtype)
        output: Any = functional_call(self.module, own, (), prepared)
        logits: Tensor = output.logits
        return logits.reshape(len(next(iter(inputs.values()))), -1) if self.choices else logits

    @cached_property
    def while_training(self) -> ModuleLogits:
        """The same in training mode, in which dropout is on; its draws are those of :class:`stability.training.dropout.Dropout`."""
        return replace(self, module=copy.deepcopy(self.module).train())

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


@dataclass(frozen=True, kw_only=True)
class TrainingDefaults:
    """How a problem is trained where nothing else is asked for: settings that :class:`stability.FineTuning` leaves open.

    Attributes:
        steps: number of optimizer steps.
        batch_size: examples a step.
        learning_rate: of AdamW.
        schedule: of the learning rate, ``constant``, or ``linear`` down to 0 after the last step.
    """

    steps: int = 150
    batch_size: int = 20
    learning_rate: float = 3e-3
    schedule: Literal["constant", "linear"] = "constant"


@dataclass(frozen=True, eq=False, kw_only=True)
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
        validation: examples to choose settings by, where the data set them apart.
        loss_unit: of ℓ, for tables and figures; cross-entropy is in nats.
        notes: what should be known of the data, a sentence each: texts that were cut, labels that a split lacks.
        insertion: what made this problem from another with fewer parameters; None for a problem as it was loaded.
        classes: what the labels 0, 1, … are called; None: they are numbers, or have no names.
        training: how it is trained where nothing else is asked for.
        shown: what a person sees of the examples of ``train``: a text each, or images (n, height, width); None: nothing known.
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
    validation: Examples | None = None
    loss_unit: str = "nats"
    notes: tuple[str, ...] = ()
    insertion: Insertion | None = None
    classes: tuple[str, ...] | None = None
    training: TrainingDefaults = field(default_factory=TrainingDefaults)
    shown: Sequence[str] | Tensor | None = None

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

    def label(self, i: int) -> str:
        """Of the i-th training example, by its name where it has one."""
        label = self.train.labels[i].item()
        return f"label {label:g}" if self.classes is None else self.classes[int(label)]

    def losses(self, parameters: Parameters, examples: Examples) -> Tensor:
        """ℓ of each example, (B,)."""
        return self.loss(self.logits(parameters, examples.inputs), examples.labels)

    def without(self, i: int) -> Problem:
        """The same problem on Sⁱ = S \\ z_i."""
        return replace(self, train=self.train.without(i), shown=None)

    def to(self, device: torch.device) -> Problem:
        """The same problem on another device; nothing is copied where it is there already."""
        pretrained = {name: tensor.to(device) for name, tensor in self.pretrained.items()}
        logits = self.logits.to(device) if isinstance(self.logits, ModuleLogits) else self.logits
        return replace(
            self,
            pretrained=pretrained,
            logits=logits,
            train=self.train.to(device),
            test=self.test.to(device),
            validation=None if self.validation is None else self.validation.to(device),
        )
