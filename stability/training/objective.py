"""The objective of many replicas and its gradient by their tuned values.

They are computed at once through ``torch.func.vmap`` where it can run the model, and otherwise one after the other.
Of the model's tensors only those with tuned coordinates are copied, and only for as many replicas as are computed at once; all
others enter unbatched. Of a large masked matrix the gradient is taken at its masked coordinates alone
(:mod:`stability.derivatives.products`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from stability.derivatives.products import Products, Sites, masked_gradients, pays, worthwhile
from stability.masks import Mask, Parameters
from stability.problems.batching import each_row
from stability.problems.problem import Examples, ModuleLogits, Problem
from stability.training.dropout import Dropout
from stability.training.portions import Portions

__all__ = ["ALL", "Descended", "Objective", "Observer", "Stack", "blocks_of", "logits_of"]

ALL: slice = slice(None)
"""All rows."""


def logits_of(problem: Problem, start: Parameters, tunable: Mask, values: Tensor, *, examples: Examples, at_once: int) -> Tensor:
    """The logits of r trained models, computed for a block of examples and a few replicas at a time.

    Args:
        problem: whose model it is.
        start: θ⁰ and the head's start.
        tunable: the K coordinates whose values were trained.
        values: (r, K) the trained values.
        examples: N examples.
        at_once: how many replicas are computed at once; fewer where memory runs out.

    Returns:
        (r, N, C).

    Raises:
        MachineError: not even one replica fits into memory.
    """

    def some(rows: slice) -> Tensor:
        stack = Stack(start, tunable, values[rows])
        order, logits = zip(*((index, stack.logits(problem, block.inputs)) for index, block in examples.blocks()), strict=True)
        return torch.cat(logits, dim=1)[:, torch.cat(order).argsort().to(values.device)]

    with torch.no_grad():
        return torch.cat(Portions(at_once, values.device, tunable.count).each(len(values), some))


class Stack:
    """The masked tensors of r replicas, (r, *shape) each. All other tensors are shared.

    Args:
        start: θ⁰ and the head's start.
        tunable: the K coordinates in which the replicas differ.
        values: (r, K) their values.
        differentiable: whether :meth:`gradient` will be asked for.
    """

    def __init__(self, start: Parameters, tunable: Mask, values: Tensor, differentiable: bool = False) -> None:
        r = len(values)
        self.shared = {name: tensor for name, tensor in start.items() if name not in tunable.indices}
        self.tensors: dict[str, Tensor] = {}
        self._places: list[tuple[str, Tensor | None, slice]] = []
        self._large = pays(start.values())
        # What receives a matrix's gradient at its masked coordinates; its values are never read.
        self._tuned: dict[str, Tensor] = {}
        self._sites: dict[str, Sites] = {}
        for name, index, where in tunable.slices():
            tensor, there = start[name], index.to(start[name].device)
            whole = len(index) == tensor.numel()
            # A clone even for r = 1, where .contiguous() would hand back θ⁰ itself.
            self.tensors[name] = tensor.detach().expand(r, *tensor.shape).clone(memory_format=torch.contiguous_format)
            self._places.append((name, None if whole else there, where))
            if differentiable and worthwhile(tuple(tensor.shape), len(index)):
                self._sites[name] = Sites(there, (tensor.shape[0], tensor.shape[1]))
                self._tuned[name] = tensor.new_zeros(r, len(index)).requires_grad_()
        self.write(values)
        if differentiable:
            for tensor in self.tensors.values():
                tensor.requires_grad_()

    def first(self, r: int) -> Stack:
        """The first r of the replicas, in the same memory."""
        if r == len(next(iter(self.tensors.values()))):
            return self
        fewer = copy.copy(self)
        fewer.tensors = {name: tensor.detach()[:r].requires_grad_(tensor.requires_grad) for name, tensor in self.tensors.items()}
        fewer._tuned = {name: tensor.detach()[:r].requires_grad_() for name, tensor in self._tuned.items()}
        return fewer

    def write(self, values: Tensor) -> None:
        """Set the tuned coordinates to ``values`` (r, K); nothing else is touched."""
        with torch.no_grad():
            for name, index, where in self._places:
                flat = self.tensors[name].view(len(values), -1)
                if index is None:
                    flat.copy_(values[:, where])
                else:
                    flat.index_copy_(1, index, values[:, where])

    def logits(self, problem: Problem, inputs: Mapping[str, Tensor], dropout: Dropout | None = None) -> Tensor:
        """The logits of B inputs under every replica, (r, B, C).

        Args:
            problem: whose model it is.
            inputs: of B examples, by name; the replicas share them.
            dropout: draws dropout, the same for every replica.
        """

        # The inputs enter by closure: vmap then treats them as constants, whatever container they come in.
        def one(mine: Parameters, tuned: Parameters) -> Tensor:
            ours = Products({id(mine[name]): (tensor, self._sites[name]) for name, tensor in tuned.items()})
            with dropout or nullcontext(), ours if self._large else nullcontext():
                return problem.logits({**self.shared, **mine}, inputs)

        randomness = "error" if dropout is None else "same"
        return each_row(one, self.tensors, self._tuned, batched=problem.batched, randomness=randomness)

    def own_logits(self, problem: Problem, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of r inputs, of the j-th under the j-th replica, (r, C).

        Args:
            problem: whose model it is.
            inputs: of r examples, by name.
        """

        def one(mine: Parameters, own: Parameters) -> Tensor:
            return problem.logits({**self.shared, **mine}, {name: x.unsqueeze(0) for name, x in own.items()})[0]

        return each_row(one, self.tensors, dict(inputs), batched=problem.batched)

    def gradient(self, loss: Tensor, result: Tensor) -> Tensor:
        """The gradient of ``loss``, a sum over replicas of what :meth:`call` gave, by the K coordinates, in ``result`` (r, K)."""
        return masked_gradients(loss, self._places, self.tensors, self._tuned, result)


def blocks_of(batch: Examples, whole: bool = False, reverse: bool = False) -> list[tuple[Tensor, Examples]]:
    """Cut a batch into blocks that are computed one after the other.

    Sequences of like length go together, so that less is padded, and the activations of a block are gone before the next.

    Args:
        batch: the examples of a step.
        whole: keep them in one block, as dropout needs it, whose draws are of the whole batch.
        reverse: whether the batch is in reverse order. Its blocks are then those of the straight batch, last first, and each from
            its end.

    Returns:
        Each block with the indices of its examples in the batch.
    """
    last = len(batch) - 1
    if whole:
        return [(torch.arange(last + 1), batch)]
    if not reverse:
        return list(batch.blocks(most=last + 1))
    straight = batch.take(torch.arange(last, -1, -1)).blocks(most=last + 1)
    return [((last - index).flip(0), block.take(torch.arange(len(block) - 1, -1, -1))) for index, block in straight][::-1]


class Descended(Protocol):
    """What replicas go down, step by step: the network's own :class:`Objective`, or its linearisation."""

    @property
    def origin(self) -> Tensor:
        """(K,) where every replica starts."""

    @property
    def rows(self) -> int:
        """r, the number of replicas."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the pretrained tensors, in their order."""

    @property
    def sequences(self) -> int:
        """How many sequences make one example: 1, but for a choice."""

    def __call__(
        self, values: Tensor, index: Tensor, dropout: Dropout | None = None, rows: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and gradient of one batch.

        Args:
            values: (r, K) where they are taken.
            index: the examples of the batch, int64 (b,).
            dropout: draws dropout, where it is on.
            rows: the replicas that ``values`` belong to; by default all.

        Returns:
            The mean loss over the examples that remain (r,), the ridge term (r,), and the gradient of their sum (r, K).
        """


class Observer(Protocol):
    """Is told of every step of a single replica while it trains."""

    @property
    def hold(self) -> Mask | None:
        """Pretrained coordinates for which the trained values have room beside those of the run's own mask; None for no more."""

    def add(self, values: Tensor, logits: Tensor, gradient: Tensor) -> None:
        """Take note of one more step.

        Args:
            values: (1, K) before the step.
            logits: (1, b, C) of the step's batch, in its order.
            gradient: (1, K) of the batch's mean loss, without the ridge and before a mask.
        """


class Objective:
    """The objective of one set of r replicas and its gradient by their K trained values.

    Args:
        problem: as the steps see it.
        start: θ⁰ and the head's start.
        tunable: the K coordinates that some replica may change.
        weights: (r, n) weights of the examples.
        ridges: (r, 1) λ of each replica.
        activity: bool (r, K), which coordinates each row may change; None: all.
        observer: is told of every step of a single replica.
        at_once: how many replicas are computed at once; fewer from then on where memory runs out.
        autocast: whether the network runs in bfloat16, under torch.autocast.
        reverse: whether the examples of a batch come in reverse order; then so do the blocks.
    """

    def __init__(
        self,
        problem: Problem,
        start: Parameters,
        tunable: Mask,
        *,
        weights: Tensor,
        ridges: Tensor,
        activity: Tensor | None = None,
        observer: Observer | None = None,
        at_once: int | None = None,
        autocast: bool = False,
        reverse: bool = False,
    ) -> None:
        self.origin = tunable.gather(start)
        self._observer, self._autocast, self._reverse = observer, autocast, reverse
        self._start, self._tunable = start, tunable
        self._problem, self._weights, self._ridges, self._activity = problem, weights, ridges, activity
        most = min(len(weights), at_once or len(weights))
        self._portions = Portions(most, self.origin.device, len(self.origin))
        self._stack: Stack | None = None
        self._ridged = bool((ridges > 0).any())

    @property
    def rows(self) -> int:
        """r, the number of replicas."""
        return len(self._weights)

    @property
    def at_once(self) -> int:
        """How many replicas are computed at once; fewer than at first where memory ran out."""
        return self._portions.size

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the pretrained tensors, in their order."""
        return {name: tuple(tensor.shape) for name, tensor in self._problem.pretrained.items()}

    @property
    def sequences(self) -> int:
        """How many sequences make one example: 1, but for a choice."""
        logits, inputs = self._problem.logits, self._problem.train.inputs
        return next(iter(inputs.values())).shape[1] if isinstance(logits, ModuleLogits) and logits.choices else 1

    @property
    def narrows(self) -> bool:
        """Whether some coordinates are enough: an observer is told of all."""
        return self._observer is None

    def narrow(self, columns: Tensor) -> Objective:
        """The same where only some of the K coordinates differ from the start. How many replicas are computed at once is common.

        Args:
            columns: their places among the K, int64, ascending.
        """
        self._forget()
        self._portions.tuned = len(columns)
        fewer = copy.copy(self)
        fewer.origin, fewer._tunable = self.origin[columns], self._tunable.part(columns.cpu())
        fewer._activity = None if self._activity is None else self._activity[:, columns]
        return fewer

    def __call__(
        self, values: Tensor, index: Tensor, dropout: Dropout | None = None, rows: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and gradient of one batch, as :class:`Descended` says.

        With ``dropout`` the model must be in training mode: :attr:`stability.problems.problem.ModuleLogits.while_training`.

        Raises:
            MachineError: not even one replica fits into memory.
        """
        batch = self._problem.train.take(index)
        blocks = blocks_of(batch, whole=dropout is not None, reverse=self._reverse)
        weights = self._weights[rows][:, index.to(self._weights.device)]
        mass = weights.sum(1, keepdim=True)
        # A batch whose every example is left out has no loss and no gradient; the moments still move the values.
        shares = weights / torch.where(mass > 0, mass, torch.ones_like(mass))
        gradient = torch.empty_like(values)

        def some(mine: slice) -> Tensor:
            return self._of(values[mine], blocks, shares[mine], dropout, gradient[mine])

        loss = torch.cat(self._portions.each(len(values), some, forget=self._forget))
        penalty = torch.zeros_like(loss)
        if self._ridged:
            ridges, moved = self._ridges[rows], values - self.origin
            penalty = ridges[:, 0] * (moved**2).sum(1)
            gradient = gradient + 2 * ridges * moved
        if self._activity is not None:
            gradient = gradient * self._activity[rows]
        return loss, penalty, gradient

    def _of(
        self,
        values: Tensor,
        blocks: Sequence[tuple[Tensor, Examples]],
        shares: Tensor,
        dropout: Dropout | None,
        gradient: Tensor,
    ) -> Tensor:
        """The loss of some rows, and its ``gradient``: sums over the examples, each weighed by its share of the mean."""
        if self._stack is None:
            self._stack = Stack(self._start, self._tunable, self.origin.expand(self.at_once, -1), differentiable=True)
        stack = self._stack.first(len(values))
        stack.write(values)
        loss = shares.new_zeros(len(values))
        logits = []
        for number, (index, block) in enumerate(blocks):
            with torch.autocast(values.device.type, torch.bfloat16) if self._autocast else nullcontext():
                answer = stack.logits(self._problem, block.inputs, dropout).to(values.dtype)
            losses = self._problem.losses_of_each(answer, block.labels)
            own = (losses * shares[:, index.to(shares.device)]).sum(1)
            if number == 0:
                stack.gradient(own.sum(), gradient)
            else:
                gradient.add_(stack.gradient(own.sum(), torch.empty_like(gradient)))
            loss += own.detach()
            logits.append(answer.detach())
        if self._observer is not None:
            back = torch.cat([index for index, _ in blocks]).argsort().to(values.device)
            self._observer.add(values, torch.cat(logits, dim=1)[:, back], gradient)
        return loss

    def _forget(self) -> None:
        """The tensors of as many replicas as went at once so far."""
        self._stack = None
