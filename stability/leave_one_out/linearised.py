"""Linearised replicas: all n left-out runs of the same algorithm, in the tangent model along the one real run.

The network is replaced by f(x; θ) ≈ f(x; θ_t) + J(x)(θ − θ_t). θ_t is where the real run *is* in step t, and J is the Jacobian of
the logits by the trained coordinates at the last checkpoint of that run before t. Weights, batches, optimizer, schedule and
masks are the real replicas' own: the algorithm runs both. Softmax, loss and early stopping stay as they are. The replica from
which nothing is left out is the real run exactly, unless memory has room for some coordinates only. No network is evaluated until
the end, when each z_i is put once through the network at the parameters predicted without it.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from torch.nn.functional import pad

from stability.derivatives.gradients import per_example_jacobians
from stability.errors import MachineError
from stability.machine import file_system, peak_of_tensors, release
from stability.masks import Mask, Parameters
from stability.problems.problem import Problem, generator
from stability.training import Algorithm
from stability.training.descent import RunOptions
from stability.training.dropout import Dropout
from stability.training.objective import ALL
from stability.training.progress import SILENT, Stages
from stability.training.replicas import Replicas

__all__ = ["Record", "Trajectory", "fitting", "losses_left_out", "trajectory_for"]

_COPIED = 1 << 28  # bytes that replicas at once take where each sees one example; more were no faster
_IN_MEMORY = ("tmpfs", "ramfs")
_HELD = 8  # vectors of a replica's tuned values at once: values, gradient, deviation, AdamW's moments and temporaries


@dataclass(frozen=True, eq=False)
class Part:
    """A random part of the K trained coordinates.

    Attributes:
        indices: their places among the K, ascending.
        scale: the inverse of the probability with which each was drawn.
    """

    indices: Tensor
    scale: Tensor


class Record:
    """Rows of numbers, one for each step of a run or for each of its checkpoints: in memory, or in a temporary file.

    Args:
        steps: the most rows.
        width: how many numbers a row has.
        like: a tensor whose type and device the rows have.
        in_memory: whether they stay in memory. If not, they go into the folder for temporary files, which ``TMPDIR`` names.

    Attributes:
        width: the numbers of a row.
        in_memory: whether they are in memory.

    Example:
        >>> record = Record(2, 3, torch.ones(1), in_memory=False)
        >>> record.add(torch.tensor([1.0, 2.0, 3.0]))
        >>> record[0]
        tensor([1., 2., 3.])
    """

    def __init__(self, steps: int, width: int, like: Tensor, in_memory: bool) -> None:
        self._count, self._total, self.width, self._like = 0, steps, width, like.new_empty(0)
        self.in_memory = in_memory
        self._file: IO[bytes] | None = None
        if in_memory:  # at once: rows kept one by one would pin the memory around them
            self._rows = like.new_empty(steps, width)
        else:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the record
            weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._count

    def add(self, row: Tensor) -> None:
        """Take the next row (width,).

        Raises:
            MachineError: the file has no room for it.
        """
        if self._file is None:
            self._rows[self._count] = row
        else:
            try:
                self._file.seek(self._count * self.width * row.element_size())
                self._file.write(row.detach().cpu().contiguous().numpy().data)
                self._file.flush()  # a disk that is full is found out here, and not when something else is done
            except OSError as error:
                size = self._total * self.width * row.element_size()
                raise MachineError(
                    f"the gradients of {self._total} steps take {size / 2**30:.1f} GiB, for which {tempfile.gettempdir()} has no "
                    f"room ({error.strerror}): name a larger folder in TMPDIR, or use a sparser mask or fewer steps"
                ) from error
        self._count += 1

    def clear(self) -> None:
        """Drop all rows and the memory or the file that they were in. No row can be taken after that."""
        self._count = 0
        if self._file is None:
            self._rows = self._like.new_empty(0, self.width)
        else:
            with suppress(OSError):  # it may hold what found no room
                self._file.close()

    def __getitem__(self, step: int) -> Tensor:
        if self._file is None:
            return self._rows[step]
        row = torch.empty(self.width, dtype=self._like.dtype)
        self._file.seek(step * self.width * row.element_size())
        self._file.readinto(row.numpy())  # type: ignore[attr-defined]
        return row.to(self._like.device)


@dataclass(eq=False)
class Trajectory:
    """What one real run leaves behind for its linearisation. It is the observer of that run.

    Attributes:
        steps: the steps whose points are kept.
        record: of each step, the gradient of its batch's loss, without the ridge and before a mask, at the coordinates of
            ``part``; then the logits of its batch, (b, C), flat, and zeros where the batch is smaller than others.
        hold: coordinates that the masks of some Sⁱ have, for which the real run keeps room.
        part: the coordinates of which gradients are kept; None: all.
        points: for each of ``steps`` all values before it, (K,).
    """

    steps: frozenset[int]
    record: Record
    hold: Mask | None = None
    part: Part | None = None
    points: dict[int, Tensor] = field(default_factory=dict, init=False)

    def add(self, values: Tensor, logits: Tensor, gradient: Tensor) -> None:
        """Keep one more step: values and gradient (1, K), logits (1, b, C)."""
        if (step := len(self.record)) in self.steps:
            self.points[step] = values[0].detach().clone()
        own = gradient[0] if self.part is None else gradient[0, self.part.indices]
        row = torch.cat([own, logits[0].detach().flatten()])
        self.record.add(pad(row, (0, self.record.width - len(row))))

    def forget(self) -> None:
        """Drop what was observed, so that what is computed next may have its memory."""
        self.record.clear()
        self.points.clear()


def trajectory_for(
    problem: Problem, algorithm: Algorithm, masks: Sequence[Mask], *, checkpoints: int, memory_budget: int
) -> Trajectory:
    """An empty trajectory, ready to observe the training of A(S).

    Args:
        problem: the one that is trained.
        algorithm: A.
        masks: S's, then those that the Sⁱ have; empty where masks move.
        checkpoints: at how many steps the values are kept.
        memory_budget: bytes, half of which the Jacobians may take. Where they need more, part of the coordinates is drawn. The
            steps are recorded in a temporary file where they do not fit beside Jacobians and replicas.
    """
    hold = None
    for mask in {id(mask): mask for mask in masks}.values():
        hold = mask if hold is None else hold.union(mask)
    tunable = algorithm.tunable_mask(problem, algorithm.select(problem) if hold is None else hold)
    start = problem.start(algorithm.seed)
    logits = problem.logits(start, problem.train.take(slice(0, 1)).inputs)
    fit = fitting(memory_budget, problem.n, logits.shape[1], logits.element_size())
    part = None if tunable.count <= fit else _drawn(problem, tunable, fit, algorithm.seed)
    steps = algorithm.max_steps
    points = frozenset(_checkpoint(t, steps, min(checkpoints, steps)) for t in range(steps))
    count = tunable.count if part is None else len(part.indices)
    width = count + max(map(len, algorithm.batches(problem.train))) * logits.shape[1]
    rows = min(problem.n, _at_once(memory_budget, count, width - count, logits.element_size())) + 1
    held = (problem.n * logits.shape[1] + rows * _HELD) * count + len(points) * tunable.count
    in_memory = (held + steps * width) * logits.element_size() <= memory_budget - memory_budget // 8  # which is for _jacobians_at
    return Trajectory(points, Record(steps, width, tunable.gather(start), in_memory), hold, part)


def losses_left_out(
    real: Replicas,
    trajectory: Trajectory,
    masks: Sequence[Mask],
    memory_budget: int,
    *,
    weight: float = 0.0,
    told: Stages = SILENT,
) -> tuple[Tensor, float]:
    """ℓ(A(Sⁱ), z_i) for every i, as predicted from the one real run, and how far from linear the network was on the way.

    Where the n · C rows of a Jacobian do not fit into half of the memory, only some coordinates are moved, drawn at random. What
    they do to the logits is divided by the probability that they were drawn, and z_i's loss is then the linearised one.

    Args:
        real: A(S).
        trajectory: what was observed while A(S) was trained.
        masks: A(S)'s, and one for each i where each Sⁱ has its own; a single one where all have the same.
        memory_budget: bytes that Jacobians and linearised replicas may take together.
        weight: the weight that z_i keeps; 0 leaves it out, and near 1 one sees derivatives.
        told: is told what is being done.

    Returns:
        The losses, float64 (n,) on the CPU, NaN where the linearised replica diverged; and the nonlinearity, as
        :class:`~stability.leave_one_out.predictors.Prediction` defines it.
    """
    tangent = _Tangent(real, trajectory, memory_budget)
    problem, n = real.problem, real.problem.n
    activity = None
    if any(mask is not masks[0] for mask in masks):
        rows = [tangent.held(real.algorithm.tunable_mask(problem, mask)) for mask in masks]
        activity = torch.stack(rows).to(tangent.origin.device)
    # Dropout's draws are in the recorded logits already; where the real run stopped early, its replicas end where it did.
    algorithm = real.algorithm.tangent_form()
    batches = list(algorithm.batches(problem.train))[: int(real.kept_step[0])]
    count = len(tangent.origin)
    at_once = _at_once(memory_budget, count, trajectory.record.width - count, tangent.origin.element_size())
    found = []
    parts = torch.arange(n).split(at_once)
    seen = {_checkpoint(step, algorithm.max_steps, len(trajectory.steps)) for step in range(len(batches))}
    if len(parts) > 1 and len(seen) > 1:
        tangent.keep = len(seen)
    told.begin(f"predicting what leaving out each of {n} examples does", (n + len(parts)) * len(batches), "linearised step")
    for left_out in parts:
        weights = tangent.origin.new_ones(len(left_out) + 1, n)
        weights[torch.arange(1, len(weights)), left_out] = weight
        tangent.weights, tangent.step, tangent.left_out = weights, 0, slice(int(left_out[0]), int(left_out[-1]) + 1)
        mine = None if activity is None else activity[torch.cat([torch.zeros(1, dtype=torch.int64), left_out + 1])]
        run = algorithm.run(tangent, batches, RunOptions(activity=mine, progress=told))
        found.append(torch.where(run.failed_step[1:] < 0, tangent.losses(run.values, left_out), torch.nan))
    losses = torch.cat(found).double().cpu()
    return torch.where(torch.isfinite(losses), losses, torch.nan), tangent.nonlinearity


class _Tangent:
    """The objective of the linearised replicas, row 0 the real run itself."""

    sequences = 1

    def __init__(self, real: Replicas, trajectory: Trajectory, memory_budget: int) -> None:
        self.weights, self.step, self.left_out = torch.empty(0), 0, slice(0)
        self._real, self._trajectory, self._memory_budget = real, trajectory, memory_budget
        part, device = trajectory.part, real.values.device
        self._places = torch.arange(real.tunable.count) if part is None else part.indices
        self._part = real.tunable if part is None else real.tunable.part(part.indices)
        self._scale = None if part is None else part.scale.to(device)
        self.origin = real.tunable.gather(real.start)[self._places.to(device)]
        self._at, self._jacobian = -1, torch.empty(0)
        self.keep = 0  # how many Jacobians are to be kept, because another part of the replicas needs them again
        self._kept: Record | None = None
        self._kept_at: dict[int, int] = {}  # by the checkpoint: the row of its Jacobian
        self._changes: dict[int, Tensor] = {}  # at each checkpoint but the first: what its Jacobian changed, and of how much

    @property
    def rows(self) -> int:
        return len(self.weights)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A moving mask is one over the coordinates at hand."""
        pretrained = self._real.problem.pretrained
        if self._trajectory.part is None:
            return {name: tuple(tensor.shape) for name, tensor in pretrained.items()}
        return {name: (len(self._part.indices.get(name, ())),) for name in pretrained}

    def held(self, mask: Mask) -> Tensor:
        """Which of the coordinates at hand ``mask`` has."""
        return self._real.tunable.contains(mask)[self._places]

    def __call__(
        self, values: Tensor, index: Tensor, dropout: Dropout | None = None, rows: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        problem, algorithm = self._real.problem, self._real.algorithm
        if self.step and self._due != self._at:
            self._next(values)
        jacobian = self._jacobians()[index.to(values.device)].flatten(0, 1)  # (b C, K)
        row, count = self._trajectory.record[self.step], len(self.origin)
        recorded = row[count : count + len(jacobian)].view(len(index), -1)
        logits = recorded + (self._moved(values) @ jacobian.T).view(len(values), *recorded.shape)
        weight = self.weights[:, index.to(values.device)]
        mass = weight.sum(1)
        labels = problem.train.labels[index.to(values.device)]
        logits.requires_grad_()
        losses = problem.losses_of_each(logits, labels)
        loss = (losses * weight).sum(1) / torch.where(mass > 0, mass, torch.ones_like(mass))
        slopes = torch.autograd.grad(loss.sum(), logits)[0].flatten(1)
        # What the real run's own gradient was, and what the replica's residuals differ from the real ones.
        gradient = ((slopes - slopes[:1]) @ jacobian).add_(row[:count])
        gradient[mass <= 0] = 0  # as for the real ones: of nothing there is no gradient
        if ridge := algorithm.ridge_for(self._real.masks[0]):
            gradient = gradient + 2 * ridge * (values - self.origin)
        self.step += 1
        return loss.detach(), torch.zeros_like(loss), gradient

    def losses(self, values: Tensor, left_out: Tensor) -> Tensor:
        """Of each z_i of ``left_out`` at its own row of ``values``, the real run's row first: (a,)."""
        problem = self._real.problem
        if self._trajectory.part is None:
            one = dataclasses.replace(self._real, values=values[1:2], replica_batch=1)
            takes = peak_of_tensors(lambda: one.own_losses(left_out[:1]))
            at_once = max(1, min(_COPIED, self._memory_budget // 2) // (2 * takes))
            return dataclasses.replace(self._real, values=values[1:], replica_batch=at_once).own_losses(left_out)
        examples = problem.train.take(left_out)
        full = self._real.logits(examples, slice(0, 1))[0]
        jacobian, moved = self._jacobians(), full.new_empty(full.shape)
        for some in torch.arange(len(left_out)).split(max(1, len(left_out) // 8)):  # all at once would copy the Jacobian
            own = self._moved(torch.cat([values[:1], values[some + 1]]))[1:]
            moved[some] = torch.einsum("ack,ak->ac", jacobian[left_out[some].to(values.device)], own)
        return problem.loss(full + moved, examples.labels)

    @property
    def nonlinearity(self) -> float:
        """As :class:`~stability.leave_one_out.predictors.Prediction` defines it, of the replicas so far."""
        shares = [float(changed / size) for changed, size in self._changes.values() if size > 0]
        return sum(shares) / len(shares) if shares else math.nan

    def _next(self, values: Tensor) -> None:
        """Go on to the next checkpoint, and note how much its Jacobian changes what the moves so far do to each z_i's logits."""
        before = self._own(values)
        self._jacobians()
        after = self._own(values)
        found = torch.stack([after - before, before, after]).double().norm(dim=2)
        changed, *sizes = found[:, found.isfinite().all(0)].sum(1)  # without the replicas that diverged
        self._changes[self._at] = self._changes.get(self._at, 0) + torch.stack([changed, sum(sizes)])

    def _own(self, values: Tensor) -> Tensor:
        """What each replica's move does to the logits of its z_i, by the Jacobian at hand, (a, C)."""
        return torch.einsum("ack,ak->ac", self._jacobian[self.left_out], self._moved(values)[1:])

    def _moved(self, values: Tensor) -> Tensor:
        """How far each row is from the real run, for all coordinates that it stands for."""
        moved = values - values[:1]
        return moved if self._scale is None else moved * self._scale

    @property
    def _due(self) -> int:
        """The checkpoint whose Jacobian this step takes."""
        return _checkpoint(self.step, self._real.algorithm.max_steps, len(self._trajectory.steps))

    def _jacobians(self) -> Tensor:
        """Of all n examples at the checkpoint of this step, (n, C, K)."""
        if (at := self._due) != self._at:
            self._jacobian = torch.empty(0)
            release(self.origin.device)
            self._jacobian = self._read(at)
            if not len(self._jacobian):
                self._jacobian = self._jacobians_at(self._real.tunable.place(self._real.start, self._trajectory.points[at]))
                self._keep(at)
            release(self.origin.device)
            self._at = at
        return self._jacobian

    def _read(self, at: int) -> Tensor:
        """The Jacobian that was kept, (n, C, K); empty where it was not."""
        if self._kept is not None and at in self._kept_at:
            try:
                return self._kept[self._kept_at[at]].view(self._real.problem.n, -1, len(self.origin))
            except OSError:
                self._forget()
        return torch.empty(0)

    def _keep(self, at: int) -> None:
        """Keep the Jacobian at hand in a temporary file, if the disk has room: to read it is quicker than to compute it again."""
        jacobian, on_cpu = self._jacobian, self.origin.device.type == "cpu"
        try:
            if self._kept is None and self.keep and on_cpu and _has_room(self.keep * jacobian.nbytes):
                self._kept = Record(self.keep, jacobian.numel(), jacobian, in_memory=False)
            if self._kept is None:
                self.keep = 0
            else:
                self._kept.add(jacobian.flatten())
                self._kept_at[at] = len(self._kept_at)
        except (OSError, MachineError):  # no room after all
            self._forget()

    def _forget(self) -> None:
        """Keep no Jacobian any more, and give back the room of those that were kept."""
        if self._kept is not None:
            self._kept.clear()
        self.keep, self._kept, self._kept_at = 0, None, {}

    def _jacobians_at(self, parameters: Parameters) -> Tensor:
        problem, done = self._real.problem, 0
        # Half of the memory is for what is returned, three eighths are for the replicas.
        found = per_example_jacobians(
            problem, parameters, problem.train, self._part, memory_budget=max(1, self._memory_budget // 8)
        )
        whole = torch.empty(0)
        for block in found:
            if len(block) == problem.n:
                return block
            if not done:
                whole = block.new_empty(problem.n, *block.shape[1:])
            whole[done : done + len(block)] = block
            done += len(block)
        return whole


def _has_room(size: int) -> bool:
    """Whether a temporary file may take so many bytes: it leaves half of a disk's room to others, and is not in memory."""
    folder = Path(tempfile.gettempdir())
    return file_system(folder) not in _IN_MEMORY and 2 * size <= shutil.disk_usage(folder).free


def fitting(memory_budget: int, n: int, outputs: int, element_size: int = 4) -> int:
    """Of how many coordinates the Jacobians of n examples, each with so many logits, fit into half of the memory.

    Example:
        >>> fitting(2**20, n=16, outputs=2)
        4096
    """
    return memory_budget // (2 * n * outputs * element_size)


def _at_once(memory_budget: int, count: int, logits: int, element_size: int) -> int:
    """How many linearised replicas of ``count`` values are followed at once.

    As many as three eighths of the memory hold, beside the real run and the Jacobian of a batch's ``logits``.
    """
    vectors = 3 * memory_budget // (8 * element_size * count) - logits
    return max(1, vectors // _HELD - 1)


def _checkpoint(step: int, steps: int, checkpoints: int) -> int:
    """Where its segment begins, of as many equal ones as there are checkpoints: the step where J is taken for ``step``."""
    return min(step * checkpoints // steps, checkpoints - 1) * steps // checkpoints


def _drawn(problem: Problem, tunable: Mask, count: int, seed: int) -> Part:
    """``count`` of the tunable coordinates at random, the whole head among them."""
    head = sum(tensor.numel() for tensor in problem.head(seed).values())
    others = tunable.count - head
    chosen = torch.randperm(others, generator=generator(seed, "coordinates"))[: max(1, count - head)].sort().values
    scale = torch.ones(len(chosen) + head)
    scale[: len(chosen)] = others / len(chosen)
    return Part(torch.cat([chosen, torch.arange(others, tunable.count)]), scale)
