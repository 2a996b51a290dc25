"""Many runs of one algorithm at once. A replica is a row: its own example weights, its own values, its own mask.

Replicas share θ⁰, the head's start, the batches and their order. Only tensors with masked coordinates have a copy for
each replica; all others enter ``torch.func.vmap`` unbatched. How many replicas go at once is planned from a memory
budget and changes results only by rounding: see :attr:`StabilityEstimate.noise_floor
<stability.leave_one_out.StabilityEstimate.noise_floor>`, which measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from stability.errors import UsageError
from stability.lbfgs import minimise
from stability.machine import free_memory, kept_for_backward
from stability.masks import Mask, Parameters, SparseDelta
from stability.objective import Descended, Objective, Stack, Trajectory, batched
from stability.problem import Examples, Problem, generator
from stability.selectors import Course, Run
from stability.training import AdamW, Algorithm, Clock, FineTuning, Minimisation

__all__ = ["DIVERGED", "Replicas", "Trained", "fine_tune", "plan_batch", "train"]

DIVERGED = 1e4
"""A replica has diverged when its batch loss is not finite or exceeds this many times max(1, its first batch loss)."""

_CACHED = 1 << 29  # bytes of activations beyond which more replicas at once only slowed a CPU down (MiniLM, two threads)
_COPIED = 1 << 28  # bytes of copied tensors at once where each replica sees one example

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
        batch_losses: (t, r) each step's loss on its batch, before the step; without the ridge. Empty for a minimisation.
        mask_changes: (t, r) how many coordinates entered the mask in each step; the first mask counts in full, one that
            does not move counts nothing.
        relaxed: (t,) whether the step's loss was taken with soft or random gates instead of a mask.
    """

    problem: Problem
    algorithm: FineTuning | Minimisation
    start: Parameters
    tunable: Mask
    values: Tensor
    masks: Sequence[Mask]
    failed_step: Tensor
    replica_batch: int
    batch_losses: Tensor
    mask_changes: Tensor
    relaxed: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def parameters(self, row: int) -> dict[str, Tensor]:
        """The whole model of one replica; tensors without tuned coordinates are shared with θ⁰."""
        return self.tunable.place(self.start, self.values[row])

    def delta(self, row: int) -> SparseDelta:
        """What training changed in one replica, ready to be saved."""
        return SparseDelta.between(self.problem.pretrained, self.parameters(row), self.masks[row])

    @classmethod
    def joined(cls, parts: Sequence[Replicas]) -> Replicas:
        """The rows of all ``parts``, runs of one algorithm on one problem, whose masks may differ."""
        first = parts[0]
        if len(parts) == 1:
            return first
        tunable = first.tunable
        for part in parts[1:]:
            tunable = tunable.union(part.tunable)
        origin = tunable.gather(first.start)
        values = []
        for part in parts:
            mine = tunable.contains(part.tunable).to(origin.device)
            values.append(origin.expand(len(part), -1).clone())
            values[-1][:, mine] = part.values
        return replace(
            first,
            tunable=tunable,
            values=torch.cat(values),
            masks=[mask for part in parts for mask in part.masks],
            failed_step=torch.cat([part.failed_step for part in parts]),
            batch_losses=torch.cat([part.batch_losses for part in parts], dim=1),
            mask_changes=torch.cat([part.mask_changes for part in parts], dim=1),
        )

    def logits(self, examples: Examples, rows: slice = slice(None)) -> Tensor:
        """(r, N, C), or of some ``rows``, computed for a block of examples and a batch of replicas at a time."""
        blocks = list(examples.blocks())
        back = torch.cat([index for index, _ in blocks]).argsort().to(self.values.device)
        with torch.no_grad():
            values = self.values[rows].split(self.replica_batch)
            parts = [torch.cat([self._logits(mine, block) for _, block in blocks], dim=1) for mine in values]
        return torch.cat(parts)[:, back]

    def losses(self, examples: Examples, rows: slice = slice(None)) -> Tensor:
        """ℓ of each example under each replica, (r, N), or under some ``rows``."""
        losses: Tensor = vmap(self.problem.loss, in_dims=(0, None))(self.logits(examples, rows), examples.labels)
        return losses

    def own_losses(self, index: Tensor) -> Tensor:
        """ℓ of one example under each replica, the r-th of ``index`` (r,) under the r-th: (r,)."""
        copied = sum(self.start[name].numel() * self.start[name].element_size() for name in self.tunable.indices)
        parts = []
        with torch.no_grad():
            for rows in torch.arange(len(self)).split(max(1, _COPIED // max(1, copied))):
                stack = Stack(self.start, self.tunable, self.values[rows.to(self.values.device)])
                block = self.problem.train.take(index[rows])
                parts.append(self.problem.loss(self._own_logits(stack, block), block.labels))
        return torch.cat(parts)

    def _own_logits(self, stack: Stack, block: Examples) -> Tensor:
        def one(mine: Parameters, inputs: Parameters) -> Tensor:
            return self.problem.logits({**stack.shared, **mine}, {name: x.unsqueeze(0) for name, x in inputs.items()})[0]

        logits: Tensor = vmap(one)(stack.tensors, dict(block.inputs))
        return logits

    def distances(self) -> Tensor:
        """‖θ_r − θ_0‖₂, each replica's distance from the first over all parameters: float64 (r,)."""
        first = self.values[0].double()  # row by row: all at once would hold (r, K) twice more, in float64
        return torch.stack([(row.double() - first).norm() for row in self.values])

    def _logits(self, values: Tensor, examples: Examples) -> Tensor:
        stack = Stack(self.start, self.tunable, values)
        return batched(stack, self.problem.logits)(stack.tensors, examples.inputs)


def train(
    problem: Problem,
    algorithm: FineTuning | Minimisation,
    weights: Tensor | None = None,
    masks: Sequence[Mask] | None = None,
    *,
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    reverse_batches: bool = False,
    hold: Mask | None = None,
    trajectory: Trajectory | None = None,
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
        hold: pretrained coordinates for which ``values`` has room beside those of the masks; no row changes them.
        trajectory: is told of every step; of a single replica of :class:`FineTuning` only.
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
    problem = algorithm.equivalent(problem)
    start = problem.start(algorithm.seed)
    first = next(iter(start.values()))
    if weights is None:
        weights = torch.ones(1, problem.n)
    if weights.ndim != 2 or weights.shape[1] != problem.n:
        raise UsageError(f"weights have shape {tuple(weights.shape)}: (r, n) with n = {problem.n} expected")
    weights = weights.to(first)
    masks = _one_each(problem, algorithm, len(weights), masks)
    distinct = list({id(mask): mask for mask in masks}.values())
    selected = distinct[0]
    for mask in [*distinct[1:], *([] if hold is None else [hold])]:
        selected = selected.union(mask)
    tunable = algorithm.tunable(problem, selected)
    activity = None
    if any(mask.count != selected.count for mask in masks):
        activity = torch.stack([tunable.contains(algorithm.tunable(problem, mask)) for mask in masks]).to(first.device)
    if replica_batch is None:
        replica_batch = plan_batch(problem, algorithm, tunable, len(weights), memory_budget)
    ridges = torch.tensor([[algorithm.ridge_for(mask)] for mask in masks], dtype=first.dtype, device=first.device)
    if isinstance(algorithm, Minimisation) and not bool((ridges > 0).all()):
        raise UsageError("λ = 0, for the mask selects everything and ridge='paper' is 1 − p: use a positive ridge")
    batches = [index.flip(0) if reverse_batches else index for index in algorithm.batches(problem.train)]
    seen = algorithm.training_form(problem) if isinstance(algorithm, FineTuning) else problem
    parts = []
    for rows in _chunks(len(weights), replica_batch):
        mine = None if activity is None else activity[rows]
        objective = Objective(seen, start, tunable, weights[rows], ridges[rows], mine, trajectory)
        if isinstance(algorithm, FineTuning):
            parts.append(fine_tune(objective, algorithm, batches, reverse_batches, mine, progress))
        else:
            parts.append(_minimise(objective, algorithm, batches[0], progress))
    if algorithm.selector.moving:
        masks = [mask for part in parts for mask in part.masks]
    return Replicas(
        problem,
        algorithm,
        start,
        tunable,
        torch.cat([part.values for part in parts]),
        masks,
        torch.cat([part.failed_step for part in parts]).cpu(),
        replica_batch,
        torch.cat([part.batch_losses for part in parts], dim=1).cpu(),
        torch.cat([part.mask_changes for part in parts], dim=1).cpu(),
        parts[0].relaxed,
    )


def _one_each(problem: Problem, algorithm: Algorithm, r: int, masks: Sequence[Mask] | None) -> list[Mask]:
    """A mask for each of r replicas, checked against the problem."""
    if masks is not None and algorithm.selector.moving:
        raise UsageError(f"{algorithm.selector.name} finds its masks while it trains: leave masks out")
    masks = [algorithm.select(problem)] if masks is None else list(masks)
    if len(masks) == 1:
        masks = masks * r
    if len(masks) != r:
        raise UsageError(f"{len(masks)} masks for r = {r} replicas: give one for each, or one for all")
    shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
    for mask in {id(mask): mask for mask in masks}.values():
        if dict(mask.shapes) != shapes:
            odd = sorted(n for n in mask.shapes.keys() | shapes.keys() if mask.shapes.get(n) != shapes.get(n))
            raise UsageError(f"the mask does not fit the pretrained parameters: names or shapes differ for {', '.join(odd[:3])}")
    return masks


def plan_batch(problem: Problem, algorithm: Algorithm, tunable: Mask, r: int, memory_budget: int | None = None) -> int:
    """How many of r replicas fit in ``memory_budget`` bytes at once, balanced so that the last batch is not a rest.

    One replica takes what a forward pass keeps for the backward pass (measured on one batch), as much again for the
    backward pass itself, its copy and gradient of every masked tensor, and the algorithm's vectors of K values. On a CPU
    many at once save nothing but Python's dispatch, and lose where their activations leave the caches.
    """
    start = problem.start(algorithm.seed)
    first = next(iter(start.values()))
    budget = memory_budget if memory_budget is not None else free_memory(first.device) // 2
    longest = max(algorithm.batches(problem.train), key=lambda index: len(index) * problem.train.longest(index))
    batch = problem.train.take(longest)
    stack = Stack(start, tunable, tunable.gather(start).unsqueeze(0))
    for tensor in stack.tensors.values():
        tensor.requires_grad_()
    kept = kept_for_backward(lambda: batched(stack, problem.logits)(stack.tensors, batch.inputs))
    at_once = _CACHED // max(kept, 1) if first.device.type == "cpu" else r
    copies = sum(math.prod(tunable.shapes[name]) for name in tunable.indices)
    each = 2 * kept + first.element_size() * (3 * copies + algorithm.vectors * tunable.count)
    fits = max(1, min(r, at_once, budget // each))
    return math.ceil(r / math.ceil(r / fits))


def _chunks(r: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, r)) for i in range(0, r, size)]


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of one batch of r replicas; as in :class:`Replicas`."""

    values: Tensor
    failed_step: Tensor
    batch_losses: Tensor
    mask_changes: Tensor
    relaxed: Tensor
    masks: Sequence[Mask] = ()


class _Fixed(Course):
    """A mask that does not move: one AdamW over the tuned values, in each row over its own."""

    def __init__(self, run: Run, activity: Tensor | None) -> None:
        self._values, self._activity = run.start(), activity
        self._optimizer = run.optimizer(self._values)

    def point(self) -> Tensor:
        return self._values

    def step(self, gradient: Tensor) -> None:
        updated = self._optimizer.update(self._values, gradient)
        self._values = updated if self._activity is None else torch.where(self._activity, updated, self._values)

    def final(self) -> tuple[Tensor, Tensor | None]:
        return self._values, None


def fine_tune(
    objective: Descended,
    algorithm: FineTuning,
    batches: Sequence[Tensor],
    reverse: bool = False,
    activity: Tensor | None = None,
    progress: Progress | None = None,
) -> Trained:
    """One batch of replicas from start to end, down the network's objective or its linearisation.

    Args:
        objective: gives losses and gradients.
        algorithm: the definition of a run.
        batches: the indices that each step takes.
        reverse: whether each batch is in reverse order.
        activity: (r, K) which coordinates each row may change; all by default. Of a fixed mask only.
        progress: told how many replica-steps were done.
    """
    origin, selector, shapes = objective.origin, algorithm.selector, objective.shapes
    sizes = [math.prod(shape) for shape in shapes.values()]
    draws = generator(algorithm.seed, "selection")
    clock = Clock()
    run = Run(origin, objective.rows, sizes, algorithm.steps, partial(AdamW, algorithm, clock), draws)
    course = selector.begin(run) if selector.moving else _Fixed(run, activity)
    failed = torch.full((run.rows,), -1, device=origin.device)
    limit = torch.zeros(())
    losses, changes, relaxed = [], [], []
    for step, index in enumerate(batches):
        clock.step = step
        dropout = algorithm.dropout_at(step, origin.device, (len(index), objective.sequences) if reverse else None)
        loss, _, gradient = objective(course.point(), index, dropout)
        if step == 0:
            limit = DIVERGED * loss.clamp_min(1.0)
            if dropout is not None and not dropout.used:
                raise UsageError("dropout = True: this model drops nothing out, its dropout probabilities are 0; leave it off")
        failed = torch.where((failed < 0) & ~(loss <= limit), step, failed)
        before = course.mask
        relaxed.append(course.relaxed)
        course.step(gradient)
        losses.append(loss)
        changes.append(_entered(before, course.mask, run.rows))
        if progress is not None:
            progress(run.rows)
    before, masks = course.mask, []
    values, chosen = course.final()
    if chosen is not None:
        changes[-1] = changes[-1] + _entered(before, course.mask, run.rows)
        values = run.put_back(values, chosen)
        first = Mask.at(shapes, torch.nonzero(chosen[0]).squeeze(1).cpu())
        same = (chosen == chosen[0]).all(1).tolist()  # one object for all: of a dense mask each takes 8m bytes
        masks = [
            first if mine else Mask.at(shapes, torch.nonzero(row).squeeze(1).cpu()) for mine, row in zip(same, chosen, strict=True)
        ]
    failed = torch.where((failed < 0) & ~torch.isfinite(values).all(1), algorithm.steps, failed)
    return Trained(values, failed, torch.stack(losses), torch.stack(changes), torch.tensor(relaxed), masks)


def _entered(before: Tensor | None, now: Tensor | None, rows: int) -> Tensor:
    """How many coordinates of each row's mask it did not have before, (r,)."""
    if now is None or now is before:
        return torch.zeros(rows, dtype=torch.int64)
    return (now if before is None else now & ~before).sum(1).cpu()


def _minimise(objective: Objective, algorithm: Minimisation, everything: Tensor, progress: Progress | None) -> Trained:
    """One batch of replicas to the minimum; the failed step is where one stopped that did not get there."""
    start = objective.start()

    def whole(values: Tensor) -> tuple[Tensor, Tensor]:
        loss, penalty, gradient = objective(values, everything)
        if progress is not None:
            progress(len(values))
        return loss + penalty, gradient

    found = minimise(whole, start, algorithm.tolerance, algorithm.max_steps, algorithm.history)
    reached = found.gradient_norms <= algorithm.tolerance
    none = torch.empty(0, len(start))
    return Trained(found.values, torch.where(reached, -1, found.steps), none, none.long(), none.bool()[:, 0])
