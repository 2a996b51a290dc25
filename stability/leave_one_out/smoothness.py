"""How linear training is in the weights of its examples: metasmoothness (Engstrom et al. 2025, arXiv 2503.13751)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.checks import check_kind, check_positive
from stability.errors import MeasurementError, UsageError
from stability.problems.problem import Problem, generator
from stability.training import Algorithm
from stability.training.descent import Progress
from stability.training.progress import stages
from stability.training.replicas import train

__all__ = ["Metasmoothness", "metasmoothness"]


@dataclass(frozen=True, kw_only=True)
class Metasmoothness:
    """How steadily A(S) moves while the weights of the examples move along a line.

    Both numbers are Ŝ = Σ_j d_j sign(x_j(h) − x_j(0)) sign(x_j(2h) − x_j(h)) / Σ_j d_j with d_j = |x_j(2h) − x_j(0)|. x(h) is
    what the training with the weights 1 + h·v gave. They lie between −1 and 1. At 1 everything goes on in the direction in which
    it began. NaN: nothing moved.

    Attributes:
        parameters: with x the trained parameters, as in definition 2 of Engstrom et al. 2025.
        losses: with x the n losses of the trained model on S.
        h: how far the weights moved at a time.
    """

    parameters: float
    losses: float
    h: float


def metasmoothness(
    problem: Problem,
    algorithm: Algorithm,
    direction: Tensor | None = None,
    *,
    h: float = 0.1,
    device: str | torch.device = "auto",
    replica_batch: int | None = None,
    memory_budget: int | None = None,
    progress: bool | Progress = False,
) -> Metasmoothness:
    """Train with the weights 1, 1 + h·v and 1 + 2h·v of the examples, and compare the first half of the way with the second.

    Empirical metasmoothness (Engstrom et al. 2025, arXiv 2503.13751, definition 2). It needs three trainings, which go at once. A
    mask that is selected on the data stays that of S, so that only training moves; a mask that moves while A trains, moves.

    Args:
        problem: what to learn.
        algorithm: A, selector and seed included.
        direction: v, one number for each example, (n,). Leaving out z_i is −1 at i and 0 elsewhere, with h = ½. By default a half
            of the examples, drawn at random from the seed, has +1 and the other half −1; of an odd n one has 0.
        h: above 0. No weight may become negative: h ≤ ½ where v is −1.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        replica_batch: how many replicas are computed at once in each thread; by default planned from ``memory_budget``.
        memory_budget: bytes to plan with; by default half of what is free.
        progress: True shows a bar or lines; a function is told how many replica-steps were done.

    Raises:
        UsageError: a direction of the wrong shape, not finite, of zeros alone, or one that makes a weight negative.
        MeasurementError: one of the trainings failed.

    Example:
        >>> from stability import FineTuning, load, selectors
        >>> problem = load("digits", n=20)
        >>> found = metasmoothness(problem, FineTuning(selectors.BitFit(), steps=3))
        >>> -1 <= found.parameters <= 1
        True
    """
    check_kind(Problem, "a problem, such as stability.load('digits')", problem=problem)
    check_kind(Algorithm, "an algorithm, such as stability.FineTuning(selector)", algorithm=algorithm)
    check_positive(h=h)
    v = _balanced(problem.n, algorithm.seed) if direction is None else _checked(direction, problem.n)
    weights = 1 + torch.tensor([0.0, h, 2 * h])[:, None] * v
    if float(weights.min()) < 0:
        at = float(v.min())
        raise UsageError(f"h = {h:g} makes a weight 1 + 2 · {h:g} · ({at:g}) negative: use h of at most {-0.5 / at:g}")
    with stages(progress) as told:
        told.begin("training with moved weights", 3 * algorithm.max_steps if algorithm.stepwise else None)
        trained = train(
            problem,
            algorithm,
            weights,
            replica_batch=replica_batch,
            memory_budget=memory_budget,
            device=device,
            progress=told,
        )
    losses = trained.losses(trained.problem.train)
    for row, failed in enumerate(trained.failed_step.tolist()):
        if failed >= 0 or not bool(torch.isfinite(losses[row]).all()):
            reason = trained.algorithm.failure(failed if failed >= 0 else trained.algorithm.max_steps)
            raise MeasurementError(f"the training with the weights 1 + {row * h:g} · v {reason}")
    return Metasmoothness(parameters=_agreement(trained.values), losses=_agreement(losses), h=h)


def _agreement(x: Tensor) -> float:
    """Ŝ of the rows x(0), x(h) and x(2h), (3, K)."""
    start, middle, end = x.double()
    moved = (end - start).abs()
    signs = (middle - start).sign() * (end - middle).sign()
    total = float(moved.sum())
    return float((signs * moved).sum()) / total if total > 0 else math.nan


def _balanced(n: int, seed: int) -> Tensor:
    v = torch.zeros(n)
    order = torch.randperm(n, generator=generator(seed, "metasmoothness"))
    v[order[: n // 2]], v[order[n - n // 2 :]] = 1, -1
    return v


def _checked(direction: Tensor, n: int) -> Tensor:
    check_kind(Tensor, "a tensor (n,)", direction=direction)
    if direction.shape != (n,):
        raise UsageError(f"direction has shape {tuple(direction.shape)}: (n,) with n = {n} expected")
    v = direction.detach().cpu().float()
    if not bool(torch.isfinite(v).all()) or not bool((v != 0).any()):
        raise UsageError("direction has a number that is not finite, or zeros alone: use finite numbers, −1 for what is left out")
    return v
