"""What a model with modules inserted must show before it is trained: :class:`Trial`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stability.errors import UsageError
from stability.machine import out_of_memory
from stability.masks import Parameters
from stability.problems.attention import Attention
from stability.problems.batching import difference, drawn, shortened, slopes_of
from stability.problems.problem import ModuleLogits, Problem, generator

__all__ = ["LOOP", "Trial"]

LOOP = "measure it as a training loop of your own (docs: Use my training loop)"
"""What is left to do with a method that cannot be trained here."""

_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """A model with modules inserted, tried on two training examples.

    It is tried where training starts. Most methods have no effect there that could be compared. So it is also tried elsewhere,
    where what the method trains is moved by random numbers. First each example is seen alone, in a plain call. Every other way
    to compute the logits and their gradients must give the same.

    Attributes:
        name: of the method, for messages.
        problem: the problem before.
        before: all parameters of the problem before, the head included.
        logits: the model with the modules, called as the pretrained model is.
        start: all its parameters where training starts, the head included.
        trained: the names of those that the method trains.
        inserted: the names of the modules that were not there before.

    Example:
        >>> from stability.problems import load
        >>> digits = load("digits")
        >>> one = Trial(
        ...     name="none", problem=digits, before=digits.start(), logits=digits.logits, start=digits.start(),
        ...     trained=list(digits.pretrained), inserted=(),
        ... )
        >>> one.equivalent, one.form().batched
        (True, True)
    """

    name: str
    problem: Problem
    before: Parameters
    logits: ModuleLogits
    start: Parameters
    trained: Sequence[str]
    inserted: Collection[str]

    @cached_property
    def unused(self) -> set[str]:
        """The names of the pretrained parameters that the model needs no more, because trained copies stand in their places."""
        lost = _used(_single(self.problem.logits), self._before, self._sample) - self._used
        copies = [self._start[name] for name in self.trained]
        lost = {name for name in lost if any(torch.equal(self._before[name], one) for one in copies)}
        rest = {name: tensor for name, tensor in self._start.items() if name not in lost}
        try:  # a layer may read a tensor's values past autograd's back
            return lost if not lost or _equal(self._alone(rest), self._alone(self._start)) else set()
        except UsageError:
            return set()

    @cached_property
    def equivalent(self) -> bool:
        """Whether the logits at the start are the pretrained model's, up to rounding in another order of operations.

        Raises:
            UsageError: they are not finite, or the model cannot be called.
        """
        found = self._alone(self._start)
        if not bool(torch.isfinite(found).all()):
            raise UsageError(f"{self.name}: at the start its logits are not finite; give it another start")
        return _equal(found, _single(self.problem.logits)(self._before, self._sample))

    def form(self, others: Iterable[ModuleLogits] = ()) -> ModuleLogits:
        """The first form of the model whose logits and gradients agree with those of each example alone.

        Many replicas at once come first, and one after the other second.

        Args:
            others: forms to try after that in which the pretrained model is called.

        Raises:
            UsageError: no form agrees, nothing that is trained has an effect, the model draws at random, or its layers do more in
                training than plain dropout.
        """
        if not self._used & set(self.trained):
            raise UsageError(f"{self.name} has no effect: the logits of this model do not depend on what it trains")
        if changing := drawn(lambda: self._alone(self._moved)):
            raise UsageError(f"{self.name} cannot be trained here: in evaluation its logits {changing.partition(':')[0]}")
        differing = ""
        for form in (self.logits, *others):
            for batched in (True,) * (form.batched is not False) + (False,):
                candidate = replace(form, batched=batched)
                differing = self._difference(candidate)
                if not differing:
                    return self._in_training(candidate)
        raise UsageError(
            f"{self.name} cannot be trained here: in a batch its examples do not stay what they are alone ({differing}), so that "
            "none could be left out by its weight"
        )

    def _in_training(self, form: ModuleLogits) -> ModuleLogits:
        """``form``; where ``vmap`` runs the inserted layers in evaluation only, one replica at a time."""
        singly = replace(form, batched=False)
        for name, part in self.logits.module.named_modules():
            part.training = name in self.inserted
        try:
            with _WithoutDropout():
                draws = drawn(lambda: _single(singly)(self._moved, self._sample))
                more = "they draw at random" if draws else self._difference(singly)
                alike = not form.batched or not self._difference(form)
        finally:
            self.logits.module.eval()
        if more:
            raise UsageError(
                f"{self.name} cannot be trained here: beside plain dropout, its layers do more in training than in evaluation "
                f"({more}), and here they would not; set a dropout of its own to 0, or {LOOP}"
            )
        return form if alike else singly

    def _difference(self, form: ModuleLogits) -> str:
        """What ``form`` gives otherwise than each example alone; empty where it agrees."""
        whole = _single(form)
        rest = {name: tensor for name, tensor in self._moved.items() if name not in self._leaves}
        wanted, slopes = self._wanted
        try:
            found = difference(
                lambda mine, inputs: whole({**rest, **mine}, inputs),
                self._leaves,
                self._sample,
                wanted,
                slopes,
                batched=bool(form.batched),
            )
        except Exception as error:  # whatever a layer does that vmap cannot
            if out_of_memory(error):
                raise
            return shortened(error)
        return found or ""

    @cached_property
    def _examples(self) -> list[int]:
        """The shortest and the longest training example; the first two where all are as long."""
        lengths = self.problem.train.lengths
        if lengths is None or int(lengths.min()) == int(lengths.max()):
            return list(range(min(2, self.problem.n)))
        return [int(lengths.argmin()), int(lengths.argmax())]

    @cached_property
    def _sample(self) -> Mapping[str, Tensor]:
        return self._inputs(self._examples)

    def _inputs(self, index: Sequence[int]) -> Mapping[str, Tensor]:
        inputs = self.problem.train.take(torch.tensor(index)).inputs
        return {name: _single(tensor) for name, tensor in inputs.items()}

    @cached_property
    def _start(self) -> Parameters:
        return {name: _single(tensor) for name, tensor in self.start.items()}

    @cached_property
    def _before(self) -> Parameters:
        return {name: _single(tensor) for name, tensor in self.before.items()}

    @cached_property
    def _moved(self) -> Parameters:
        """The start with what is trained moved, by less where the logits would not be finite."""
        for size in (0.1, 0.01, 0.001):
            draw = generator(0, "trial of what is inserted")
            moved = dict(self._start)
            for name in self.trained:
                tensor = moved[name]
                moved[name] = tensor + size * torch.randn(tensor.shape, generator=draw).to(tensor)
            if bool(torch.isfinite(self._alone(moved)).all()):
                return moved
        return self._start

    @cached_property
    def _leaves(self) -> Parameters:
        """What differs between replicas, and between replicas only: with more, a layer may run that fails in training."""
        head = self.before.keys() - self.problem.pretrained.keys()
        return {name: tensor for name, tensor in self._moved.items() if name in head or name in self.trained}

    @cached_property
    def _wanted(self) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Logits and gradients of each example alone."""
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in self._leaves.items()}
        logits = self._alone({**self._moved, **leaves})
        return logits.detach(), slopes_of(logits, leaves)

    @cached_property
    def _used(self) -> set[str]:
        return _used(lambda parameters, _: self._alone(parameters), self._start, self._sample)

    def _alone(self, parameters: Parameters) -> Tensor:
        """The logits of each example of the sample in a call of its own, with the mask as transformers wants it."""
        plain = _single(replace(self.logits, attention=Attention(), grouping=None, batched=False))
        try:
            return torch.cat([plain(parameters, self._inputs([one])) for one in self._examples])
        except Exception as error:  # whatever the layers refuse
            if out_of_memory(error):
                raise
            raise UsageError(f"{self.name} cannot be trained here: with it the model fails: {shortened(error)}") from error


@overload
def _single(value: Tensor) -> Tensor: ...
@overload
def _single(value: ModuleLogits) -> ModuleLogits: ...
@overload
def _single(value: Callable[..., Tensor]) -> Callable[..., Tensor]: ...
def _single(value: Any) -> Any:
    """What is in 16 bits in single precision, so that rounding hides nothing; anything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALVES else value
    if isinstance(value, ModuleLogits) and any(tensor.dtype in _HALVES for tensor in value.module.state_dict().values()):
        return replace(value, module=copy.deepcopy(value.module).float(), training=True)  # as it may be while it is tried
    return value


class _WithoutDropout(TorchFunctionMode):
    """While it is entered, ``torch.nn.functional.dropout`` changes nothing, so that what else layers do in training is seen.

    What is drawn by ``torch.rand`` is all but 0, without a draw: a dropout of another kind drops everything, whatever its rate,
    and nothing at rate 0. All else that draws moves the global generator.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.dropout:
            return args[0]
        if func is torch.rand:
            return torch.empty(*args, **(kwargs or {})).fill_(torch.finfo(torch.float32).tiny)
        return func(*args, **(kwargs or {}))


def _equal(found: Tensor, wanted: Tensor) -> bool:
    """Whether both are equal up to rounding in another order of operations."""
    tolerance = 1e-5 * max(1.0, float(wanted.abs().max()))
    return float((found - wanted).abs().max()) <= tolerance


def _used(logits: Callable[..., Tensor], parameters: Parameters, inputs: Mapping[str, Tensor]) -> set[str]:
    """The names of the parameters that the logits depend on."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    slopes = torch.autograd.grad(logits(leaves, inputs).sum(), list(leaves.values()), allow_unused=True)
    return {name for name, slope in zip(leaves, slopes, strict=True) if slope is not None}
