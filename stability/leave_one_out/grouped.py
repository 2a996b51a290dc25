"""Leaving out a group of examples at once: few trainings that tell a little of every example, however much the network bends.

The groups are disjoint and cover S, as the folds of cross-validation do. Each z_i is put through the model that was trained
without its group. That model lacks more than z_i, so that it changes too much; but it is a real one, where linearised replicas only
know the network near A(S).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from stability.problems.problem import generator
from stability.training.progress import SILENT, Stages
from stability.training.replicas import Replicas, train

__all__ = ["losses_without_groups"]


def losses_without_groups(real: Replicas, groups: int, *, reselect: bool, memory_budget: int, told: Stages = SILENT) -> Tensor:
    """The loss on each z_i of the model that is trained without the group of z_i.

    Args:
        real: A(S).
        groups: how many groups of like size S is divided into at random.
        reselect: whether each model has the mask selected without its group, where A selects on the data.
        memory_budget: bytes that training may take.
        told: is told what is being done.

    Returns:
        float64 (n,) on the CPU; NaN where the training without the group failed.
    """
    problem, algorithm = real.problem, real.algorithm
    parts = torch.randperm(problem.n, generator=generator(algorithm.seed, "groups")).tensor_split(groups)
    weights = torch.ones(groups, problem.n)
    for row, part in zip(weights, parts, strict=True):
        row[part] = 0
    masks = None if algorithm.selector.moving else [real.masks[0]] * groups
    if masks is not None and reselect and algorithm.selector.uses_data:
        rests = [problem.train.take(row.nonzero().squeeze(1)) for row in weights]
        masks = [algorithm.select(dataclasses.replace(problem, train=rest, shown=None)) for rest in rests]
    told.begin(f"training without each of {groups} groups of examples", groups * algorithm.max_steps)
    models = train(problem, algorithm, weights, masks, memory_budget=memory_budget, progress=told)
    losses = torch.full((problem.n,), torch.nan, dtype=torch.float64)
    for row, part in enumerate(parts):
        if models.failed_step[row] < 0:
            losses[part] = models.losses(problem.train.take(part), slice(row, row + 1))[0].double().cpu()
    return torch.where(torch.isfinite(losses), losses, torch.nan)
