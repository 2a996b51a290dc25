"""What is to be learned: :class:`Problem`. Its :class:`Examples` and its model have files of their own, and are found here too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from stability.errors import UsageError, explained
from stability.machine import out_of_memory
from stability.masks import Mask, Parameters
from stability.problems.batching import difference, drawn, each_row, same, slopes_of
from stability.problems.examples import Examples, generator, shuffled_batches
from stability.problems.module_logits import ONE_AT_A_TIME, ModuleLogits, refill, without_values

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
    @torch.enable_grad()  # whatever the caller has switched off
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
            notes.append(self.logits.note if isinstance(self.logits, ModuleLogits) else f"the model {ONE_AT_A_TIME}")
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
    @torch.enable_grad()
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
        given = self.train.take(index[:2])
        alone = answers(given)
        for name, tensor in self.train.take(index[:2]).inputs.items():
            if not torch.equal(given.inputs[name], tensor):
                return f"the model changes its input {name!r} in place: let it change a copy, as x = x - mean does"
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
