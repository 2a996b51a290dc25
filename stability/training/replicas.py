"""Many runs of one algorithm at once. A replica is a row: its own example weights, its own values, its own mask.

Replicas share θ⁰, the head's start, the batches and their order. Those with one mask are also the same run until a step takes
an example on whose weight they differ, and are computed as one up to there. How many go at once, and how they are divided among
the threads of a CPU, is planned from memory and changes results only by rounding: see :attr:`StabilityEstimate.noise_floor
<stability.leave_one_out.StabilityEstimate.noise_floor>`, which measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from stability.checks import check_whole
from stability.errors import MachineError, UsageError
from stability.machine import free_memory, resolve_device
from stability.masks import Mask, Parameters, SparseDelta
from stability.problems.problem import Examples, Problem
from stability.training.algorithm import Algorithm
from stability.training.descent import Progress
from stability.training.execution import Division, Task, carry_out, divide
from stability.training.objective import ALL, Observer, Stack, logits_of
from stability.training.portions import Portions, if_it_fits, one_too_large
from stability.training.substitutes import Substitutes, usual_weights
from stability.training.threads import suited_to

__all__ = ["Replicas", "train"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Replicas:
    """r trained models, each as the values of its trained coordinates.

    Attributes:
        problem: what they were trained on.
        algorithm: A, with the settings that it was trained with.
        start: θ⁰ and the head's start, which all replicas share.
        tunable: the union of all rows' masks, head included: K coordinates.
        values: (r, K) their values after training; where a row's own mask lacks a coordinate, the value of ``start``.
        masks: each row's selected coordinates of the pretrained tensors.
        failed_step: (r,) the step at which a row diverged, or stopped short of its minimum; −1 where it did not fail.
        replica_batch: how many went at once.
        kept_step: (r,) after how many steps the values are: all, unless early stopping kept an earlier checkpoint.
        batch_losses: (t, r) each step's loss on its batch, before the step; without the ridge; NaN where a replica had stopped
            early. Empty for a minimisation.
        mask_changes: (t, r) how many coordinates entered the mask in each step; the first mask counts in full, one that
            does not move counts nothing.
        relaxed: (t,) whether the step's loss was taken with soft or random gates instead of a mask.
        steps_shared: replica-steps that were not computed, because the replicas began as one.
    """

    problem: Problem
    algorithm: Algorithm
    start: Parameters
    tunable: Mask
    values: Tensor
    masks: Sequence[Mask]
    failed_step: Tensor
    kept_step: Tensor
    replica_batch: int
    batch_losses: Tensor
    mask_changes: Tensor
    relaxed: Tensor
    steps_shared: int = 0

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
            kept_step=torch.cat([part.kept_step for part in parts]),
            batch_losses=torch.cat([part.batch_losses for part in parts], dim=1),
            mask_changes=torch.cat([part.mask_changes for part in parts], dim=1),
            steps_shared=sum(part.steps_shared for part in parts),
        )

    def logits(self, examples: Examples, rows: slice = ALL) -> Tensor:
        """The logits of N ``examples`` under each replica, or under some ``rows``: (r, N, C)."""
        return logits_of(self.problem, self.start, self.tunable, self.values[rows], examples=examples, at_once=self.replica_batch)

    def losses(self, examples: Examples, rows: slice = ALL) -> Tensor:
        """ℓ of each of N ``examples`` under each replica, or under some ``rows``: (r, N)."""
        return self.problem.losses_of_each(self.logits(examples, rows), examples.labels)

    def own_losses(self, index: Tensor) -> Tensor:
        """ℓ of one training example under each replica: of example ``index[j]`` under the j-th, (r,)."""

        def some(rows: slice) -> Tensor:
            stack = Stack(self.start, self.tunable, self.values[rows])
            block = self.problem.train.take(index[rows])
            return self.problem.loss(stack.own_logits(self.problem, block.inputs), block.labels)

        portions = Portions(self.replica_batch, self.values.device, self.tunable.count)
        with torch.no_grad():
            return torch.cat(portions.each(len(self), some))

    def distances(self) -> Tensor:
        """The distance ‖θ_j − θ_0‖₂ of each replica j from the first, over all parameters: float64 (r,)."""
        first = self.values[0].double()  # row by row: all at once would hold (r, K) twice more, in float64
        return torch.stack([(row.double() - first).norm() for row in self.values])


def train(
    problem: Problem,
    algorithm: Algorithm,
    weights: Tensor | None = None,
    masks: Sequence[Mask] | Mask | None = None,
    *,
    substitutes: Substitutes | None = None,
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    reverse_batches: bool = False,
    observe: Observer | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Replicas:
    """Run the algorithm r times, once for each row of example weights.

    Args:
        problem: what to learn; all its tensors are on one device.
        algorithm: A, the definition of a run.
        weights: (r, n), one weight an example, 0 for left out; by default one row of ones, a single ordinary run.
        masks: the selected pretrained coordinates, one mask a row or a single one for all; by default
            ``algorithm.select(problem)``. Not where masks move while A trains.
        substitutes: q examples that may take the place of training examples; ``weights`` then has n + q columns, theirs last.
        replica_batch: how many replicas are computed at once in each thread; by default planned from ``memory_budget``. It is 1
            where the model cannot compute more (:attr:`Problem.batched <stability.problems.Problem.batched>`).
        memory_budget: bytes that training and evaluation may take; by default half of what is free. One replica at once is always
            tried, and all trained values are kept.
        reverse_batches: take the examples within each batch in reverse order: the same algorithm, rounded differently.
        observe: is told of every step of a single replica, and may ask for room for further coordinates in ``values``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; by default the one that the problem is on.
        progress: is told how many replica-steps were done.

    Raises:
        UsageError: weights or masks whose shapes do not fit, a substitute for an example that S does not have, a weight below 0,
            nothing to train, early stopping without a validation split, or a model or loss by which an example changes the others
            of its batch.
        MachineError: not even one replica fits into memory, or not all that was trained.

    Example:
        >>> from stability import FineTuning, load, selectors
        >>> replicas = train(load("digits"), FineTuning(selectors.BitFit(), steps=2))
        >>> replicas.values.shape
        torch.Size([1, 1093])
    """
    if device is not None:
        problem = problem.to(resolve_device(device))
    algorithm = algorithm.with_defaults(problem.training)
    problem = algorithm.equivalent(problem)
    if substitutes is not None:
        substitutes.check(problem.n)
    start = problem.start(algorithm.seed)
    first = next(iter(start.values()))
    usual = usual_weights(problem.n, substitutes).to(first)
    if weights is None:
        weights = usual.unsqueeze(0)
    if weights.ndim != 2 or weights.shape[1] != len(usual) or len(weights) == 0:
        of = f"the n = {problem.n} training examples"
        of += "" if substitutes is None else f" and each of the {len(substitutes)} substitutes"
        raise UsageError(f"weights have shape {tuple(weights.shape)}: use (r, {len(usual)}) with r ≥ 1, a column for each of {of}")
    if bool((weights < 0).any()):
        row = int((weights < 0).any(1).nonzero()[0])
        raise UsageError(f"a weight of replica {row} is {float(weights[row].min()):g}: use 0 for left out and 1 for kept")
    if observe is not None and len(weights) != 1:
        raise UsageError(f"observe and r = {len(weights)} replicas: an observer is told of a single run, give one row of weights")
    weights = weights.to(first)
    problem.check_independence()
    masks = _one_each(problem, algorithm, len(weights), masks)
    hold = None if observe is None else observe.hold
    distinct = list({id(mask): mask for mask in masks}.values())
    selected = distinct[0]
    for mask in [*distinct[1:], *([] if hold is None else [hold])]:
        selected = selected.union(mask)
    tunable = algorithm.tunable_mask(problem, selected)
    activity = None
    if any(mask.count != selected.count for mask in masks):
        activity = torch.stack([tunable.contains(algorithm.tunable_mask(problem, mask)) for mask in masks]).to(first.device)
    ridges = torch.tensor([[algorithm.ridge_for(mask)] for mask in masks], dtype=first.dtype, device=first.device)
    if tunable.count == 0:
        raise UsageError(f"k = 0 of m = {problem.m} and no head: there is nothing to tune; use a larger p")
    algorithm.check(problem, distinct)
    seen, batches = algorithm.training_form(problem), list(algorithm.batches(problem.train))
    if substitutes is not None:
        if algorithm.dropout_at(0, first.device) is not None:
            raise UsageError(
                "dropout = True: an example that takes another's place would change what dropout draws for the others: "
                "set dropout=False, on the command line leave --dropout out"
            )
        seen, batches = substitutes.beside(seen), list(substitutes.added_to(batches, problem.n))
    how = if_it_fits(partial(divide, seen, algorithm, tunable, len(weights), batches=batches, memory_budget=memory_budget))
    if how is None:
        raise one_too_large(first.device, tunable.count)
    if replica_batch is not None:
        check_whole(1, replica_batch=replica_batch)
        replica_batch = replica_batch if problem.batched else 1
        how = Division(how.workers, max(how.rows, replica_batch), replica_batch)
    task = Task(
        problem=seen,
        algorithm=algorithm,
        start=start,
        tunable=tunable,
        weights=weights,
        usual=usual,
        ridges=ridges,
        activity=activity,
        batches=[index.flip(0) for index in batches] if reverse_batches else batches,
        reverse=reverse_batches,
        observer=observe,
        watched=problem if algorithm.validates else None,
    )
    values = if_it_fits(partial(first.new_empty, (len(weights), tunable.count)))
    if values is None:
        size, free = len(weights) * tunable.count * first.element_size(), free_memory(first.device)
        raise MachineError(
            f"the trained values of {len(weights)} replicas take {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on "
            f"{first.device}: leave out fewer examples at once, or use a sparser mask or another device"
        )
    order, parts = [], []
    with suited_to(problem, algorithm):
        for rows, part in carry_out(task, how, progress):
            values[rows.to(values.device)] = part.values
            order.append(rows)
            parts.append(replace(part, values=part.values.new_empty(0)))  # a slice would keep them all, most of what there is
    back = torch.cat(order).argsort()
    if algorithm.selector.moving:
        moved = [mask for part in parts for mask in part.masks]
        masks = [moved[row] for row in back.tolist()]
    return Replicas(
        problem=problem,
        algorithm=algorithm,
        start=start,
        tunable=tunable,
        values=values,
        masks=masks,
        failed_step=torch.cat([part.failed_step.cpu() for part in parts])[back],
        kept_step=torch.cat([part.kept_step.cpu() for part in parts])[back],
        replica_batch=min(part.at_once for part in parts),
        batch_losses=torch.cat([part.batch_losses.cpu() for part in parts], dim=1)[:, back],
        mask_changes=torch.cat([part.mask_changes.cpu() for part in parts], dim=1)[:, back],
        relaxed=torch.stack([part.relaxed for part in parts]).any(0),
        steps_shared=sum(part.spared for part in parts),
    )


def _one_each(problem: Problem, algorithm: Algorithm, r: int, masks: Sequence[Mask] | Mask | None) -> list[Mask]:
    """A mask for each of r replicas, checked against the problem."""
    if masks is not None and algorithm.selector.moving:
        raise UsageError(f"{algorithm.selector.name} finds its masks while it trains: leave masks out")
    masks = [algorithm.select(problem)] if masks is None else [masks] if isinstance(masks, Mask) else list(masks)
    if len(masks) == 1:
        masks = masks * r
    if len(masks) != r:
        raise UsageError(f"{len(masks)} masks for r = {r} replicas: give one for each, or one for all")
    for mask in {id(mask): mask for mask in masks}.values():
        if odd := mask.misfits(problem.pretrained):
            raise UsageError(f"the mask does not fit the pretrained parameters: names or shapes differ for {', '.join(odd[:3])}")
    return masks
