"""Many runs of one algorithm at once. A replica is a row: its own example weights, its own values, its own mask.

Replicas share θ⁰, the head's start, the batches and their order. Only tensors with masked coordinates have a copy for
each replica; all others enter ``torch.func.vmap`` unbatched. How many replicas go at once is planned from a memory
budget and changes results only by rounding: see :attr:`StabilityEstimate.noise_floor
<stability.leave_one_out.StabilityEstimate.noise_floor>`, which measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from stability.errors import UsageError
from stability.lbfgs import minimise
from stability.machine import free_memory, kept_for_backward
from stability.masks import Mask, Parameters, SparseDelta
from stability.problem import Examples, Problem
from stability.training import AdamW, Algorithm, FineTuning, Minimisation

__all__ = ["DIVERGED", "Replicas", "plan_batch", "train"]

DIVERGED = 1e4
"""A replica has diverged when its batch loss is not finite or exceeds this many times max(1, its first batch loss)."""

Progress = Callable[[int], object]
"""Called with the number of replica-steps just done."""


@dataclass(frozen=True, eq=False)
class Replicas:
    """r trained models, each as its tuned values.

    Attributes:
        problem: what they were trained on.
        algorithm: A.
        start: θ⁰ and the head's start, shared.
        tunable: the union of all rows' masks, head included: K coordinates.
        values: (r, K) their values after training; where a row's own mask lacks a coordinate, the value of ``start``.
        masks: each row's selected coordinates of the pretrained tensors.
        failed_step: (r,) the step at which a row diverged, or stopped short of its tolerance; −1 where it did not fail.
        replica_batch: how many went at once.
    """

    problem: Problem
    algorithm: FineTuning | Minimisation
    start: Parameters
    tunable: Mask
    values: Tensor
    masks: Sequence[Mask]
    failed_step: Tensor
    replica_batch: int

    def __len__(self) -> int:
        return len(self.values)

    def parameters(self, row: int) -> dict[str, Tensor]:
        """The whole model of one replica; tensors without tuned coordinates are shared with θ⁰."""
        return self.tunable.place(self.start, self.values[row])

    def delta(self, row: int) -> SparseDelta:
        """What training changed in one replica, ready to be saved."""
        return SparseDelta.between(self.problem.pretrained, self.parameters(row), self.masks[row])

    def logits(self, examples: Examples, block: int = 256) -> Tensor:
        """(r, N, C), computed ``block`` examples of a replica batch at a time."""
        with torch.no_grad():
            rows = [
                torch.cat([self._logits(at, examples.take(slice(i, i + block))) for i in range(0, len(examples), block)], dim=1)
                for at in _chunks(len(self), self.replica_batch)
            ]
        return torch.cat(rows)

    def losses(self, examples: Examples) -> Tensor:
        """ℓ of each example under each replica, (r, N)."""
        losses: Tensor = vmap(self.problem.loss, in_dims=(0, None))(self.logits(examples), examples.labels)
        return losses

    def distances(self) -> Tensor:
        """‖θ_r − θ_0‖₂, each replica's distance from the first over all parameters: float64 (r,)."""
        distances: Tensor = (self.values.double() - self.values[0].double()).norm(dim=1)
        return distances

    def _logits(self, at: slice, examples: Examples) -> Tensor:
        stack = _Stack(self.start, self.tunable, self.values[at])
        return _batched(stack, self.problem.logits)(stack.tensors, examples.inputs)


def train(
    problem: Problem,
    algorithm: FineTuning | Minimisation,
    weights: Tensor | None = None,
    masks: Sequence[Mask] | None = None,
    *,
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    reverse_batches: bool = False,
    progress: Progress | None = None,
) -> Replicas:
    """Run the algorithm r times, once for each row of example weights, on the device that the problem is on.

    Args:
        problem: what to learn; all tensors on one device.
        algorithm: the definition of a run.
        weights: (r, n) one weight an example, 0 for left out; by default one row of ones, a single ordinary run.
        masks: one selection a row, or a single one for all; by default ``algorithm.select(problem)``.
        replica_batch: how many replicas go at once; planned from ``memory_budget`` by default.
        memory_budget: bytes; half of what is free by default.
        reverse_batches: take the examples within each batch in reverse order: the same algorithm, rounded differently.
        progress: told how many replica-steps were done.

    Raises:
        UsageError: weights or masks whose shapes do not fit.

    Example:
        >>> from stability.problems import load
        >>> from stability.selectors import BitFit
        >>> replicas = train(load("digits"), FineTuning(BitFit(), steps=2))
        >>> replicas.values.shape
        torch.Size([1, 1093])
    """
    start = problem.start(algorithm.seed)
    first = next(iter(start.values()))
    if weights is None:
        weights = torch.ones(1, problem.n)
    if weights.ndim != 2 or weights.shape[1] != problem.n:
        raise UsageError(f"weights have shape {tuple(weights.shape)}: (r, n) with n = {problem.n} expected")
    weights = weights.to(first)
    r = len(weights)
    masks = [algorithm.select(problem)] if masks is None else list(masks)
    if len(masks) == 1:
        masks = masks * r
    if len(masks) != r:
        raise UsageError(f"{len(masks)} masks for r = {r} replicas: give one for each, or one for all")
    shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
    distinct = list({id(mask): mask for mask in masks}.values())
    for mask in distinct:
        if dict(mask.shapes) != shapes:
            odd = sorted(n for n in mask.shapes.keys() | shapes.keys() if mask.shapes.get(n) != shapes.get(n))
            raise UsageError(f"the mask does not fit the pretrained parameters: names or shapes differ for {', '.join(odd[:3])}")
    selected = distinct[0]
    for mask in distinct[1:]:
        selected = selected.union(mask)
    tunable = algorithm.tunable(problem, selected)
    activity = None
    if any(mask.count != selected.count for mask in masks):
        activity = torch.stack([tunable.contains(algorithm.tunable(problem, mask)) for mask in masks]).to(first.device)
    if replica_batch is None:
        replica_batch = plan_batch(problem, algorithm, tunable, r, memory_budget)
    ridges = torch.tensor([[algorithm.ridge_for(mask)] for mask in masks], dtype=first.dtype, device=first.device)
    if isinstance(algorithm, Minimisation) and not bool((ridges > 0).all()):
        raise UsageError("λ = 0, for the mask selects everything and ridge='paper' is 1 − p: use a positive ridge")
    batches = [index.flip(0) if reverse_batches else index for index in algorithm.batches(problem.n)]
    values, failed = [], []
    for rows in _chunks(r, replica_batch):
        mine = None if activity is None else activity[rows]
        objective = _Objective(problem, start, tunable, weights[rows], ridges[rows], mine)
        if isinstance(algorithm, FineTuning):
            value, failure = _fine_tune(objective, algorithm, batches, mine, progress)
        else:
            value, failure = _minimise(objective, algorithm, batches[0], progress)
        values.append(value)
        failed.append(failure)
    return Replicas(problem, algorithm, start, tunable, torch.cat(values), masks, torch.cat(failed).cpu(), replica_batch)


def plan_batch(problem: Problem, algorithm: Algorithm, tunable: Mask, r: int, memory_budget: int | None = None) -> int:
    """How many of r replicas fit in ``memory_budget`` bytes at once, balanced so that the last batch is not a rest.

    One replica takes what a forward pass keeps for the backward pass (measured on one batch), as much again for the
    backward pass itself, its copy and gradient of every masked tensor, and the algorithm's vectors of K values.
    """
    start = problem.start(algorithm.seed)
    first = next(iter(start.values()))
    budget = memory_budget if memory_budget is not None else free_memory(first.device) // 2
    batch = problem.train.take(next(algorithm.batches(problem.n)))
    rows = min(r, 2)
    stack = _Stack(start, tunable, tunable.gather(start).expand(rows, -1))
    for tensor in stack.tensors.values():
        tensor.requires_grad_()
    kept = kept_for_backward(lambda: _batched(stack, problem.logits)(stack.tensors, batch.inputs))
    copies = sum(math.prod(tunable.shapes[name]) for name in tunable.indices)
    each = 2 * kept // rows + first.element_size() * (3 * copies + algorithm.vectors * tunable.count)
    fits = max(1, min(r, budget // each))
    return math.ceil(r / math.ceil(r / fits))


class _Stack:
    """The masked tensors of r replicas, (r, *shape) each; the others are shared."""

    def __init__(self, start: Parameters, tunable: Mask, values: Tensor) -> None:
        r = len(values)
        self.shared = {name: tensor for name, tensor in start.items() if name not in tunable.indices}
        self.tensors: dict[str, Tensor] = {}
        self._places: list[tuple[Tensor, Tensor | None, slice]] = []
        for name, index, where in tunable.slices():
            tensor = start[name]
            whole = len(index) == tensor.numel()
            # A clone even for r = 1, where .contiguous() would hand back θ⁰ itself.
            self.tensors[name] = tensor.detach().expand(r, *tensor.shape).clone(memory_format=torch.contiguous_format)
            self._places.append((self.tensors[name].view(r, -1), None if whole else index.to(tensor.device), where))
        self.write(values)

    def write(self, values: Tensor) -> None:
        """Set the tuned coordinates to ``values`` (r, K); nothing else is touched."""
        for flat, index, where in self._places:
            if index is None:
                flat.copy_(values[:, where])
            else:
                flat.index_copy_(1, index, values[:, where])

    def read(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tuned coordinates of tensors shaped as mine, (r, K)."""
        parts = [
            tensor.flatten(1) if index is None else tensor.flatten(1).index_select(1, index)
            for tensor, (_, index, _) in zip(tensors, self._places, strict=True)
        ]
        return torch.cat(parts, dim=1)


def _batched(stack: _Stack, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function(parameters, *data)`` for every replica at once: takes the stacked tensors and the shared data."""

    def one(mine: Parameters, *data: object) -> Tensor:
        return function({**stack.shared, **mine}, *data)

    # The shared data enter by closure: vmap then treats them as constants, whatever container they come in.
    def batched(tensors: Parameters, *data: object) -> Tensor:
        result: Tensor = vmap(lambda mine: one(mine, *data))(tensors)
        return result

    return batched


def _chunks(r: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, r)) for i in range(0, r, size)]


class _Objective:
    """The objective of one batch of replicas and its gradient by their tuned values."""

    def __init__(
        self, problem: Problem, start: Parameters, tunable: Mask, weights: Tensor, ridges: Tensor, activity: Tensor | None
    ):
        self.origin = tunable.gather(start)
        self._problem, self._weights, self._ridges, self._activity = problem, weights, ridges, activity
        self._stack = _Stack(start, tunable, self.origin.expand(len(weights), -1))
        self._leaves = list(self._stack.tensors.values())
        for leaf in self._leaves:
            leaf.requires_grad_()
        self._ridged = bool((ridges > 0).any())

    def start(self) -> Tensor:
        """(r, K)."""
        return self.origin.expand(len(self._weights), -1).clone()

    def __call__(self, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss over the examples that remain of ``index`` (r,), ridge term (r,), gradient of their sum (r, K)."""
        with torch.no_grad():
            self._stack.write(values)
        batch, weight = self._problem.train.take(index), self._weights[:, index]
        losses = _batched(self._stack, self._problem.losses)(self._stack.tensors, batch)
        mass = weight.sum(1)
        # A batch whose every example is left out has no loss and no gradient; the moments still move the values.
        loss = (losses * weight).sum(1) / torch.where(mass > 0, mass, torch.ones_like(mass))
        gradient = self._stack.read(torch.autograd.grad(loss.sum(), self._leaves, materialize_grads=True))
        penalty = torch.zeros_like(loss).detach()
        if self._ridged:
            moved = values - self.origin
            penalty = self._ridges[:, 0] * (moved**2).sum(1)
            gradient = gradient + 2 * self._ridges * moved
        if self._activity is not None:
            gradient = gradient * self._activity
        return loss.detach(), penalty, gradient


def _fine_tune(
    objective: _Objective, algorithm: FineTuning, batches: Sequence[Tensor], activity: Tensor | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """One batch of replicas from start to end: their values (r, K) and failed steps (r,)."""
    values = objective.start()
    optimizer = AdamW(algorithm, values)
    failed = torch.full((len(values),), -1, device=values.device)
    limit = torch.zeros(())
    for step, index in enumerate(batches):
        loss, _, gradient = objective(values, index.to(values.device))
        if step == 0:
            limit = DIVERGED * loss.clamp_min(1.0)
        failed = torch.where((failed < 0) & ~(loss <= limit), step, failed)
        updated = optimizer.update(values, gradient)
        values = updated if activity is None else torch.where(activity, updated, values)
        if progress is not None:
            progress(len(values))
    failed = torch.where((failed < 0) & ~torch.isfinite(values).all(1), algorithm.steps, failed)
    return values, failed


def _minimise(
    objective: _Objective, algorithm: Minimisation, everything: Tensor, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """One batch of replicas to the minimum: their values (r, K), and (r,) the steps of those that did not get there."""
    start = objective.start()
    everything = everything.to(start.device)

    def whole(values: Tensor) -> tuple[Tensor, Tensor]:
        loss, penalty, gradient = objective(values, everything)
        if progress is not None:
            progress(len(values))
        return loss + penalty, gradient

    found = minimise(whole, start, algorithm.tolerance, algorithm.max_steps, algorithm.history)
    reached = found.gradient_norms <= algorithm.tolerance
    return found.values, torch.where(reached, -1, found.steps)
