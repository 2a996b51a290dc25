"""What is to be learned: :class:`Problem`, its :class:`Examples`, its model, and one random generator for each role."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from stability.checks import check_whole
from stability.errors import UsageError, explained
from stability.machine import out_of_memory
from stability.masks import Mask, Parameters
from stability.problems.attention import Attention
from stability.problems.batching import difference, drawn, each_row, same, slopes_of
from stability.problems.grouping import Grouping

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
    """A random generator for one role. The toolkit never draws from torch's global generator.

    The state depends on seed and role, so that a role that draws more numbers leaves the numbers of the others as they are.

    Args:
        seed: the seed of the run.
        role: what is drawn, such as ``head``, ``order``, ``selection`` or ``dropout``.
        device: the device that the generator draws on. Only dropout draws anywhere but on the CPU.

    Returns:
        A generator at its start: the same for the same seed and role.

    Example:
        >>> torch.equal(torch.rand(2, generator=generator(0, "head")), torch.rand(2, generator=generator(0, "head")))
        True
    """
    digest = hashlib.sha256(f"{role}:{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


def shuffled_batches(n: int, batch_size: int, count: int, draw: torch.Generator, lengths: Tensor | None = None) -> Iterator[Tensor]:
    """Random batches of indices. S is shuffled again whenever it is used up, and no batch holds an example twice.

    With ``lengths``, examples of similar length share a batch, so that little is padded. The shuffled examples are taken
    ⌊n/b⌋ batches at a time, sorted by length times a random factor in [0.8, 1.25], and cut into batches, which come in random
    order.

    Args:
        n: number of examples.
        batch_size: examples in a batch, b. With n or more each batch is the whole of S, in order.
        count: number of batches.
        draw: draws the order.
        lengths: length of each example, (n,); None where all examples have the same shape.

    Yields:
        The indices of one batch, int64 (b,).

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
    """N examples z = (x, y): tensors of inputs and labels whose first axis is the example.

    Attributes:
        inputs: the tensors that the model is called with, by name, each (N, …).
        labels: the labels, (N,).
        lengths: of sequences, how many places along the last axis of the inputs each example fills, int64 (N,) on the CPU. The
            rest is padding, and :meth:`take` cuts off what none of the taken examples needs. None: there is no padding.
        padding: the number that fills the rest of each input, by its name; 0 for an input that is not named. None: what the rest
            of some example holds (:meth:`followed_by`).

    Raises:
        UsageError: inputs, labels and lengths have different numbers of rows.

    Example:
        >>> examples = Examples({"x": torch.arange(6.0).reshape(3, 2)}, torch.tensor([0, 1, 1]))
        >>> len(examples), len(examples.without(0))
        (3, 2)
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    lengths: Tensor | None = None
    padding: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        counted = {**self.inputs, **({} if self.lengths is None else {"lengths": self.lengths})}
        for name, tensor in counted.items():
            if len(tensor) != len(self.labels):
                raise UsageError(f"{len(tensor)} rows of {name!r} and {len(self.labels)} labels: give one of each for each example")

    def __repr__(self) -> str:
        shapes = {**{name: tuple(tensor.shape) for name, tensor in self.inputs.items()}, "labels": tuple(self.labels.shape)}
        return f"Examples({shapes})"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Examples:
        """Take some examples, without padding that none of them needs.

        Args:
            index: their indices, int64 (a,), or one truth value for each example, (N,), or a slice.

        Returns:
            The examples, in the order of ``index``.
        """
        there = index if isinstance(index, slice) else index.to(self.labels.device)
        inputs = {name: tensor[there] for name, tensor in self.inputs.items()}
        if self.lengths is None:
            return replace(self, inputs=inputs, labels=self.labels[there])
        longest, mine = self.longest(index), self.lengths[index if isinstance(index, slice) else index.cpu()]
        inputs = {name: tensor[..., :longest] for name, tensor in inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels[there], lengths=mine)

    def by_length(self) -> Examples:
        """The examples from the shortest to the longest, so that blocks are padded little; in their order if none has a length."""
        return self if self.lengths is None else self.take(self.lengths.argsort(stable=True))

    def longest(self, index: Tensor | slice) -> int:
        """Length of the longest among some examples.

        Args:
            index: their indices, int64 (a,), or a slice.

        Returns:
            The number of places that they need along the last axis; 1 for examples that are no sequences.
        """
        if self.lengths is None or not len(mine := self.lengths[index if isinstance(index, slice) else index.cpu()]):
            return 1
        return int(mine.max())

    def blocks(self, most: int = 256, places: int = 1024) -> Iterator[tuple[Tensor, Examples]]:
        """All examples in blocks of bounded size; sequences come from the shortest to the longest.

        Args:
            most: the most examples in a block.
            places: the most tokens in a block of sequences, padding included. One sequence alone may have more.

        Yields:
            The indices of the block's examples, int64 (b,), and the examples.
        """
        # On two cores, 1024 places were fastest for training MiniLM, by a quarter against a whole batch of 16 texts.
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
        """Sⁱ = S \\ z_i, the examples without one of them.

        Args:
            i: the index of the example that is left out.

        Raises:
            UsageError: there is no example i.
        """
        check_whole(0, len(self) - 1, f"S has n = {len(self)} examples", i=i)
        return self.take(torch.cat([torch.arange(i), torch.arange(i + 1, len(self))]))

    def followed_by(self, others: Examples) -> Examples:
        """These examples and then others of the same kind. Sequences are padded to the longest of both, with their own padding.

        Args:
            others: examples with the same inputs.

        Raises:
            UsageError: their inputs have other names, or an input must be padded and nothing says with what.
        """
        if self.inputs.keys() != others.inputs.keys():
            raise UsageError(f"inputs {', '.join(self.inputs)} and {', '.join(others.inputs)}: examples of one kind expected")
        labels = torch.cat([self.labels, others.labels])
        if self.lengths is None or others.lengths is None:
            inputs = {name: torch.cat([mine, others.inputs[name]]) for name, mine in self.inputs.items()}
            return Examples(inputs, labels)
        padded: dict[str, Tensor] = {}
        for name, mine in self.inputs.items():
            pair = mine, others.inputs[name]
            width = max(tensor.shape[-1] for tensor in pair)
            filler = self._filler(name, others) if any(tensor.shape[-1] < width for tensor in pair) else 0
            missing = [mine.new_full((*tensor.shape[:-1], width - tensor.shape[-1]), filler) for tensor in pair]
            padded[name] = torch.cat([torch.cat(each, dim=-1) for each in zip(pair, missing, strict=True)])
        return replace(self, inputs=padded, labels=labels, lengths=torch.cat([self.lengths, others.lengths]))

    def _filler(self, name: str, others: Examples) -> float:
        """What an input of these and other examples is padded with."""
        for one in (self, others):
            if one.padding is not None:
                return one.padding.get(name, 0)
            assert one.lengths is not None
            shortest, tensor = int(one.lengths.argmin()), one.inputs[name]
            if int(one.lengths[shortest]) < tensor.shape[-1]:
                return tensor[shortest].flatten()[-1].item()
        raise UsageError(
            f"{name}: examples of different lengths, and none is padded: say with what, Examples(…, padding={{{name!r}: 0}})"
        )

    def to(self, device: torch.device) -> Examples:
        """The same examples on another device; ``lengths`` stay on the CPU.

        Args:
            device: where inputs and labels are put.
        """
        return replace(
            self, inputs={name: tensor.to(device) for name, tensor in self.inputs.items()}, labels=self.labels.to(device)
        )


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


_ONE_AT_A_TIME = "runs one replica at a time, for torch.func.vmap cannot compute many of them at once"


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
        return f"{type(self.module).__name__} {_ONE_AT_A_TIME}{apart}"

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


@dataclass(frozen=True, eq=False)
class Insertion:
    """How a problem came from another by inserting modules.

    Where the outputs at the start stay the same, it is the *equivalent problem* of Fu et al. 2023, Definition 2: the same outputs
    with more parameters. Where they do not, the trained model is no p-sparse fine-tuned model, and the bounds do not apply.

    Attributes:
        by: settings and seed of the method that inserted the modules, as plain values.
        tunable: the coordinates that the method trains.
        equivalent: whether the outputs at the start are those of the model without the modules.

    Example:
        >>> Insertion({"method": "lora", "seed": 0}, Mask({"w": (3,)}, {"w": torch.tensor([1])})).tunable
        Mask(k=1, m=3)
    """

    by: Mapping[str, Any]
    tunable: Mask
    equivalent: bool = True

    @property
    def note(self) -> str:
        """What a reader should know of a model that is not equivalent; empty where it is."""
        if self.equivalent:
            return ""
        return (
            f"{self.by['name']} does not start at the pretrained model's outputs: its model is no p-sparse fine-tuned model "
            "(Definition 2), p is only the share of parameters that are trained, and the bounds do not apply"
        )


@dataclass(frozen=True, kw_only=True)
class TrainingDefaults:
    """The settings of AdamW that suit a problem: :class:`stability.FineTuning` takes from here what it is not given.

    Attributes:
        steps: number of optimizer steps.
        batch_size: examples in a step.
        learning_rate: the learning rate of AdamW.
        schedule: how the learning rate goes: ``constant``, or ``linear`` down to 0 after the last step.

    Example:
        >>> TrainingDefaults(steps=300).learning_rate
        0.003
    """

    steps: int = 150
    batch_size: int = 20
    learning_rate: float = 3e-3
    schedule: Literal["constant", "linear"] = "constant"


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """A pretrained model, as a function of its parameters, and the data to fine-tune it on.

    Attributes:
        name: the problem's name in tables and figures.
        settings: what defines the problem, as plain values. Name and settings are the identity under which results are kept.
        pretrained: θ⁰, the m pretrained parameters, by name. Sparsity is a fraction of these. They are never changed.
        new_head: a function from a generator to the tensors that θ⁰ lacks; they may be none. The head is always trained, and
            sparsity does not count it.
        logits: a function (parameters, inputs) → (B, C). It is pure, and the logits of an example do not depend on the others of
            its batch (:meth:`check_independence`). Where ``torch.func.vmap`` can run it, many replicas are computed at once
            (:attr:`batched`). Use :class:`ModuleLogits` where the model is a torch module.
        loss: a function (logits (B, C), labels (B,)) → (B,) that gives the loss ℓ of each example, whatever the others are.
        train: the training set S of n examples.
        test: the held-out examples.
        metric: a function (logits (B, C), labels (B,)) → a number; larger is better.
        metric_name: the metric's name in tables and figures.
        validation: examples to choose settings by, or None where the data have none.
        loss_unit: the unit of ℓ for tables and figures; cross-entropy is in nats.
        notes: what a reader should know of the data, one sentence each, such as texts that were cut.
        insertion: how the problem came from one with fewer parameters; None for a problem as it was loaded.
        classes: the names of the labels 0, 1, …; None where labels are numbers or have no names.
        training: the settings of training that suit this problem.
        shown: how a person sees the training examples: one text each, or images (n, height, width); None where it is unknown.
        groups: the group of each training example, such as its annotator, for :class:`stability.perturbations.LeaveGroupOut`;
            None where there are none.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits", n=20)
        >>> problem
        Problem('digits', n=20, m=26432, {'n': 20, 'seed': 0, 'weights': '...'})
        >>> problem.losses(problem.start(seed=0), problem.train).shape
        torch.Size([20])
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
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        # dict(module.named_parameters()) is what one has at hand; nothing here differentiates by θ⁰ itself.
        object.__setattr__(self, "pretrained", {name: tensor.detach() for name, tensor in self.pretrained.items()})

    def __repr__(self) -> str:
        return f"Problem({self.name!r}, n={self.n}, m={self.m}, {dict(self.settings)})"

    @property
    def n(self) -> int:
        """The number of training examples."""
        return len(self.train)

    @property
    def m(self) -> int:
        """The number of pretrained parameters. It counts inserted ones, and not the head."""
        return sum(tensor.numel() for tensor in self.pretrained.values())

    def head(self, seed: int = 0) -> dict[str, Tensor]:
        """The new head before training.

        Args:
            seed: draws its initial values.

        Returns:
            Its tensors by name; empty where the problem has no new head.
        """
        device = next(iter(self.pretrained.values())).device
        return {name: tensor.to(device) for name, tensor in self.new_head(generator(seed, "head")).items()}

    def start(self, seed: int = 0) -> dict[str, Tensor]:
        """All parameters before training: θ⁰ and the new head.

        Args:
            seed: draws the initial values of the head.

        Returns:
            The tensors by name.
        """
        return {**self.pretrained, **self.head(seed)}

    def label(self, i: int) -> str:
        """The label of a training example in words: the name of its class, or "label" and its number.

        Args:
            i: the index of the example in ``train``.
        """
        label = self.train.labels[i].item()
        return f"label {label:g}" if self.classes is None else self.classes[int(label)]

    def losses(self, parameters: Parameters, examples: Examples) -> Tensor:
        """The loss ℓ of each example.

        Args:
            parameters: all tensors of the model, by name.
            examples: B examples.

        Returns:
            The losses (B,) in ``loss_unit``.
        """
        return self.loss(self.logits(parameters, examples.inputs), examples.labels)

    def losses_of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss ℓ of each example under each of r replicas.

        Args:
            logits: (r, B, C).
            labels: the labels of the B examples, which the replicas share.

        Returns:
            The losses (r, B) in ``loss_unit``.
        """
        known = vars(self)
        if "_loss_batched" not in known:  # with the first logits that there are, for in training mode a model must not be asked
            known["_loss_batched"] = self._loss_runs_through_vmap(logits[0].detach(), labels)
        return each_row(lambda mine: self.loss(mine, labels), logits, batched=known["_loss_batched"])

    def _loss_runs_through_vmap(self, logits: Tensor, labels: Tensor) -> bool:
        wanted = self.loss(logits, labels)
        try:
            found = vmap(self.loss, in_dims=(0, None))(logits.unsqueeze(0), labels)[0]
        except Exception as error:  # whatever a loss does that vmap cannot
            return out_of_memory(error)
        return same(found, wanted) or not bool(torch.isfinite(wanted).all())

    @cached_property
    def batched(self) -> bool:
        """Whether many replicas of the model can be computed at once, through ``torch.func.vmap``.

        If not, they are computed one after the other, with the same results up to rounding. A model is tried once: on two training
        examples, logits and gradients through vmap must be those of a plain call.
        """
        model = self.logits
        if not isinstance(model, ModuleLogits):
            return self._runs_through_vmap
        if model.batched is None:
            if model.training:  # dropout would draw another time
                return True
            model.remember(batched=self._runs_through_vmap)
        return bool(model.batched)

    @cached_property
    def _runs_through_vmap(self) -> bool:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.start().items()}
        inputs = self.train.take(slice(0, 2)).inputs
        plain = self.logits
        if isinstance(plain, ModuleLogits):
            plain = replace(plain, batched=False)
            if plain.changes_buffers(leaves, inputs):
                return False
        wanted = plain(leaves, inputs)
        if not isinstance(wanted, Tensor):
            return True  # check_independence tells of it
        slopes = slopes_of(wanted, leaves)
        try:
            return difference(self.logits, leaves, inputs, wanted, slopes, batched=True) is None
        except Exception as error:  # whatever a model does that vmap cannot
            return out_of_memory(error)  # of two replicas with all their gradients; fewer are tuned

    @property
    def execution_notes(self) -> tuple[str, ...]:
        """What a reader should know of how the replicas are computed, and of a model that inserted modules have made another.

        Empty where many replicas are computed at once, and the model is the pretrained one or equivalent to it.
        """
        notes = [] if self.insertion is None or self.insertion.equivalent else [self.insertion.note]
        if not self.batched:
            notes.append(self.logits.note if isinstance(self.logits, ModuleLogits) else f"the model {_ONE_AT_A_TIME}")
        return tuple(notes)

    def check_independence(self) -> None:
        """Check that an example changes neither logits nor loss of the others in its batch.

        An example is left out by its weight 0 in the loss, while it stays in the batch. If the others saw it there, as batch
        normalisation over the batch lets them, the result would not be that of training without it. Compared are the logits, their
        gradients and the losses of two training examples, alone and with a third, at the start of training.

        Raises:
            UsageError: they change by more than rounding may, logits and losses are not one row for each example, or the model or
                the loss raises an error.

        Example:
            >>> from stability.problems import load
            >>> load("digits").check_independence()
        """
        with explained(f"the model or the loss of problem {self.name!r}"):
            found = self._dependence
            if found is None:
                _ = self.batched  # tried here, before the model is in training mode
        if found is not None:
            raise UsageError(f"{self.name}: {found}")

    @cached_property
    def _dependence(self) -> str | None:
        """What :meth:`check_independence` refuses; None where all is well."""
        index = torch.arange(4) * self.n // 4  # spread over S, whose examples may come class by class
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.start().items()}

        def answers(batch: Examples) -> Tensor:
            found = self.logits(leaves, batch.inputs)
            if not isinstance(found, Tensor):
                raise UsageError(f"{self.name}: logits returned {type(found).__name__}: let it return a tensor (B, C)")
            return found

        def random(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator(0, "independence")).to(like)

        def gradients(logits: Tensor) -> Tensor:
            """The norm of the gradient of all logits, mixed, by each parameter."""
            mixed = (logits * random(logits)).sum()
            slopes = torch.autograd.grad(mixed, list(leaves.values()), retain_graph=True, materialize_grads=True)
            return torch.stack([slope.norm() for slope in slopes])

        if changing := drawn(lambda: answers(self.train.take(index[:2]))):
            return f"its logits {changing}"
        alone = answers(self.train.take(index[:2]))
        batches = [self.train.take(index[[0, 1, third]]) for third in (2, 3)]
        beside = [answers(batch) for batch in batches]
        if beside[0].ndim != 2 or len(beside[0]) != 3:
            return f"the model returned {tuple(beside[0].shape)} for 3 examples: let it return one row of logits for each, (3, C)"
        if not bool(torch.isfinite(alone).all()):
            return "its logits are not finite before any training: mend the inputs or the weights"
        changed = torch.cat([logits[:2] - alone for logits in beside])
        tolerance = max(1e-3, 8 * torch.finfo(alone.dtype).eps)
        cause = "Batch normalisation over the batch does that: use its running statistics, group norm or layer norm"
        compared = [("logits", changed.detach(), alone.detach(), cause), ("gradients", gradients(changed), gradients(alone), cause)]
        for batch, logits in zip(batches, beside, strict=True):
            answered = [(logits.detach(), self.loss(logits.detach(), batch.labels))]
            with suppress(Exception):  # of a loss that not all numbers can be given to, such as one of probabilities
                noisy = logits.detach() + random(logits)  # for all logits may be 0 at the start
                answered.append((noisy, self.loss(noisy, batch.labels)))
            for scores, losses in answered:
                own = self.loss(scores[:2], batch.labels[:2])
                if losses.shape != (3,):
                    return (
                        f"the loss returned {tuple(losses.shape)} for 3 examples: let it return one number for each, without a mean"
                    )
                cause = "Contrastive losses do that: use a loss of each example alone"
                compared.append(("losses", losses[:2] - own, own, cause))
        for what, change, values, cause in compared:
            by, size = float(change.norm()), float(values.norm())
            if by > tolerance * size:  # NaN is not: training tells of it
                return (
                    f"the {what} of two examples change by {by:.2g}, from {size:.2g}, where a third is in their batch, and so its "
                    f"weight 0 would not leave it out. {cause}"
                )
        return None

    def without(self, i: int) -> Problem:
        """The same problem with the training set Sⁱ = S \\ z_i.

        Args:
            i: the index of the example that is left out.

        Raises:
            UsageError: there is no example i.
        """
        return self.with_training(self.train.without(i))

    def with_training(self, examples: Examples) -> Problem:
        """The same problem with another training set.

        Args:
            examples: the training set, of the same kind as before.
        """
        return self._with_what_was_checked(replace(self, train=examples, shown=None, groups=None))

    def to(self, device: torch.device) -> Problem:
        """The same problem on another device; tensors that are there already are not copied.

        Args:
            device: where parameters and examples are put.
        """
        pretrained = {name: tensor.to(device) for name, tensor in self.pretrained.items()}
        logits = self.logits.to(device) if isinstance(self.logits, ModuleLogits) else self.logits
        moved = replace(
            self,
            pretrained=pretrained,
            logits=logits,
            train=self.train.to(device),
            test=self.test.to(device),
            validation=None if self.validation is None else self.validation.to(device),
        )
        return self._with_what_was_checked(moved)

    def _with_what_was_checked(self, other: Problem) -> Problem:
        """``other``, the same model and loss with other examples or elsewhere: what was checked of them once is known of it."""
        known = ("_dependence", "batched", "_runs_through_vmap", "_loss_batched")
        vars(other).update({name: vars(self)[name] for name in known if name in vars(self)})
        return other
