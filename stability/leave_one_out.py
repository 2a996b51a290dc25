"""Leave-one-out stability, measured: Definition 3 of Fu et al. 2023 by retraining.

β₂ = E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| for one S and one seed. The replicas are *paired*: the same start, the same
batches in the same order; only the weight of z_i is zero (the batch mean runs over what remains), and a selector that
uses data has chosen its mask on Sⁱ. The mean over seeds and fresh S is :mod:`stability.study`'s.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stability.errors import StabilityError, UsageError
from stability.machine import resolve_device
from stability.masks import Mask
from stability.problem import Problem, generator
from stability.replicas import Progress, Replicas, train
from stability.statistics import Estimate, mean_of_population
from stability.training import FineTuning, Minimisation

__all__ = ["StabilityEstimate", "measure"]


@dataclass(frozen=True, eq=False)
class StabilityEstimate:
    """What leaving one out did.

    Attributes:
        pointwise: β₂, pointwise hypothesis stability, with its interval.
        hypothesis: β₁ = E_i |ℓ(A(Sⁱ), z) − ℓ(A(S), z)| averaged over the held-out z, with its interval over i.
        maximum: the largest |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| found: a lower estimate of uniform stability.
        noise_floor: mean_i |ℓ(A(S), z_i) − ℓ(A(S)', z_i)| between two runs that would agree in exact arithmetic: A(S)
            trained among its replicas, and A(S)' trained alone with the examples of each batch in reverse order. It
            is what rounding does, as on another device. A stability below it is not a result.
        estimator: ``exact`` (every i) or ``sampled``.
        n: size of S.
        retrainings: how many i were left out.
        failed: those that diverged or stopped short of their tolerance, as {i: step}; they enter no average.
        tunable: k, selected coordinates of the pretrained model.
        total: m, coordinates of the pretrained model, of its equivalent where modules were inserted; p = k/m.
        head: coordinates of the new head, all tunable.
        seconds: wall-clock time of selection, training and evaluation.
        per_example: a row for each i left out: index, loss_full, loss_left_out, difference (left out − full),
            distance ‖A(Sⁱ) − A(S)‖₂, mask_changes (coordinates of A(S)'s mask that Sⁱ's lacks), failed_step (−1: none).
        replicas: the trained models, A(S) first.
    """

    pointwise: Estimate
    hypothesis: Estimate
    maximum: float
    noise_floor: float
    estimator: str
    n: int
    retrainings: int
    failed: dict[int, int]
    tunable: int
    total: int
    head: int
    seconds: float
    per_example: pd.DataFrame
    replicas: Replicas

    @property
    def value(self) -> float:
        """β₂."""
        return self.pointwise.value

    @property
    def interval(self) -> tuple[float, float]:
        """Of β₂ on this S with this seed."""
        return self.pointwise.interval

    @property
    def sparsity(self) -> float:
        """p = k/m of A(S)."""
        return self.tunable / self.total

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"StabilityEstimate(value={self.value:.4g}, interval=({low:.4g}, {high:.4g}), {self.estimator}, "
            f"{self.retrainings} of n={self.n}, failed={len(self.failed)}, noise_floor={self.noise_floor:.2g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold (an unbounded end of an interval is None)."""
        plain = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("replicas", "pointwise", "hypothesis")
        }
        return plain | {
            "value": self.value,
            "interval": _finite(self.interval),
            "confidence": self.pointwise.confidence,
            "hypothesis": {"value": self.hypothesis.value, "interval": _finite(self.hypothesis.interval)},
            "failed": {str(i): step for i, step in self.failed.items()},
            "per_example": self.per_example.astype(object).where(self.per_example.notna(), None).to_dict("records"),
        }


def measure(
    problem: Problem,
    algorithm: FineTuning | Minimisation,
    retrainings: int | None = None,
    *,
    reselect: bool = True,
    confidence: float = 0.95,
    device: str | torch.device = "auto",
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> StabilityEstimate:
    """Retrain without z_i, for every i or for a random sample of them, and compare the loss on z_i.

    Args:
        problem: what to learn.
        algorithm: A, selector and seed included.
        retrainings: how many i to leave out, drawn uniformly without replacement; all n by default.
        reselect: choose the mask anew on Sⁱ where the selector uses data (it is part of A). False keeps S's mask.
        confidence: of the intervals, which speak of the sampling of i alone; an exact measurement has none to speak of.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        replica_batch: as in :func:`stability.replicas.train`.
        memory_budget: as there.
        progress: as there; the run that gives the noise floor is counted too.

    Raises:
        UsageError: n < 2, or retrainings outside 1..n.
        StabilityError: A(S) itself failed (diverged, or stopped short of its tolerance), or every replica did.

    Example:
        >>> from stability.problems import load
        >>> from stability.selectors import Random
        >>> estimate = measure(load("digits", n=20), FineTuning(Random(sparsity=0.05), steps=3), retrainings=4)
        >>> estimate.retrainings, len(estimate.per_example), estimate.value > 0
        (4, 4, True)
    """
    began = time.perf_counter()
    n = problem.n
    if n < 2:
        raise UsageError(f"n = {n} training examples: leaving one out needs n ≥ 2")
    count = n if retrainings is None else retrainings
    if not 1 <= count <= n:
        raise UsageError(f"retrainings = {count} is outside 1..n with n = {n}")
    left_out = torch.randperm(n, generator=generator(algorithm.seed, "plan"))[:count].sort().values
    selector, seed = algorithm.selector, algorithm.seed
    if selector.moving and not reselect:
        raise UsageError(f"{selector.name} finds its mask while it trains: there is none of S to keep; leave reselect=False out")
    problem = algorithm.equivalent(problem.to(resolve_device(device)))
    masks: list[Mask] | None = None
    if not selector.moving:
        masks = [algorithm.select(problem)] * (count + 1)
        if reselect and selector.uses_data:
            masks = [masks[0], *selector.select_each_left_out(problem, left_out.tolist(), seed)]
    weights = torch.ones(count + 1, n)
    weights[torch.arange(1, count + 1), left_out] = 0
    replicas = train(
        problem, algorithm, weights, masks, replica_batch=replica_batch, memory_budget=memory_budget, progress=progress
    )
    whole = replicas.losses(problem.train, slice(0, 1))[0].double().cpu()
    losses = replicas.losses(problem.train.take(left_out)).double().cpu()  # of each z_i under every replica
    held_out = replicas.losses(problem.test).double().cpu()
    finite = torch.isfinite(losses).all(1) & torch.isfinite(held_out).all(1)
    failed_step = torch.where((replicas.failed_step < 0) & ~finite, algorithm.most_steps, replicas.failed_step)
    replicas = dataclasses.replace(replicas, failed_step=failed_step)
    if replicas.failed_step[0] >= 0:
        raise StabilityError(f"A(S) {algorithm.failure(int(replicas.failed_step[0]))}")
    alone = train(problem, algorithm, masks=masks and masks[:1], replica_batch=1, reverse_batches=True, progress=progress)
    floor = (alone.losses(problem.train).double().cpu()[0] - whole).abs().mean().item()
    if alone.failed_step[0] >= 0 or not math.isfinite(floor):
        step = int(alone.failed_step[0])
        raise StabilityError(f"the run that gives the noise floor {algorithm.failure(step if step >= 0 else algorithm.most_steps)}")
    table = _table(left_out, losses, replicas)
    ok = (table["failed_step"] < 0).to_numpy()
    if not ok.any():
        raise StabilityError(f"every one of {count} left-out replicas {algorithm.failure(int(replicas.failed_step.max()))}")
    sizes = table["difference"].abs().to_numpy()
    moved = (held_out[1:] - held_out[0]).abs().mean(1).numpy()
    missing = int((~ok).sum())
    return StabilityEstimate(
        pointwise=mean_of_population(sizes[ok], n, confidence, missing),
        hypothesis=mean_of_population(moved[ok], n, confidence, missing),
        maximum=float(sizes[ok].max()),
        noise_floor=floor,
        estimator="exact" if count == n and not missing else "sampled",
        n=n,
        retrainings=count,
        failed={int(row["index"]): int(row["failed_step"]) for _, row in table[~ok].iterrows()},
        tunable=replicas.masks[0].count,
        total=problem.m,
        head=sum(tensor.numel() for tensor in problem.head(seed).values()),
        seconds=time.perf_counter() - began,
        per_example=table,
        replicas=replicas,
    )


def _table(left_out: Tensor, losses: Tensor, replicas: Replicas) -> pd.DataFrame:
    full, left = losses[0], losses[1:].diagonal()
    failed = replicas.failed_step[1:].numpy()
    changes = [0 if mask is replicas.masks[0] else int((~replicas.masks[0].contains(mask)).sum()) for mask in replicas.masks[1:]]
    table = pd.DataFrame(
        {
            "index": left_out.numpy(),
            "loss_full": full.numpy(),
            "loss_left_out": left.numpy(),
            "difference": (left - full).numpy(),
            "distance": replicas.distances()[1:].cpu().numpy(),
            "mask_changes": changes,
            "failed_step": failed,
        }
    )
    table.loc[table["failed_step"] >= 0, ["loss_left_out", "difference", "distance"]] = np.nan
    return table


def _finite(interval: tuple[float, float]) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in interval]
