"""``stability select``: a mask, chosen and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stability.cli.groups import OUTPUT, Data, Method, Model, OneProblem, Training, flags, load, problem_settings, training_defaults
from stability.errors import StabilityError, UsageError
from stability.training.algorithm import FineTuning
from stability.training.replicas import train

__all__ = ["select"]


def select(
    *,
    which: OneProblem = OneProblem(),
    data: Data = Data(),
    model: Model = Model(),
    method: Method,
    training: Training = Training(),
    out: Annotated[Path, Parameter(group=OUTPUT, help="The safetensors file to write.")],
) -> None:
    """Choose a mask and save it; one that training finds, after that training."""
    selector = method.made()
    problem = load(which.problem, seed=which.seed, **problem_settings(data, model))
    if selector.moving:
        algorithm = FineTuning(selector, seed=which.seed, **training.made(training_defaults([which.problem])))
        replicas = train(problem, algorithm)
        if (step := int(replicas.failed_step[0])) >= 0:
            raise StabilityError(f"{selector.name} found no mask, for its training {algorithm.failure(step)}")
        mask = replicas.masks[0]
    elif odd := flags(training):
        raise UsageError(f"{selector.name} selects before training: leave {odd} out")
    else:
        mask = selector.select(problem, which.seed)
    mask.save(out)
    print(f"{out}: k = {mask.count} of m = {mask.total} coordinates, p = {mask.sparsity:.4g}")
