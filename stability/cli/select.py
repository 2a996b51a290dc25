"""``stability select``: a mask, chosen and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stability.cli.figures import check_writable
from stability.cli.options import OUTPUT, Data, Machine, Method, Model, OneProblem, Training, flags, load, problem_settings
from stability.errors import MeasurementError, StabilityError, UsageError
from stability.machine import resolve_device
from stability.training import FineTuning, train

__all__ = ["select"]


def select(
    *,
    which: OneProblem = OneProblem(),
    data: Data = Data(),
    model: Model = Model(),
    method: Method,
    training: Training = Training(),
    out: Annotated[Path, Parameter(group=OUTPUT, help="The safetensors file to write.")],
    machine: Machine = Machine(),
) -> None:
    """Choose a mask and save it; one that training finds, after that training."""
    if not out.parent.is_dir():
        raise StabilityError(f"cannot write {out}: there is no folder {out.parent}")
    check_writable(out.parent)
    selector = method.made()
    problem = load(which.problem, seed=which.seed, **problem_settings(data, model))
    if selector.moving:
        algorithm = FineTuning(selector, seed=which.seed, **training.made())
        replicas = train(problem, algorithm, device=machine.device)
        if (step := int(replicas.failed_step[0])) >= 0:
            raise MeasurementError(f"{selector.name} found no mask, for its training {replicas.algorithm.failure(step)}")
        mask = replicas.masks[0]
    elif odd := flags(training):
        raise UsageError(f"{selector.name} selects before training: leave {odd} out")
    else:
        mask = selector.selected(problem.to(resolve_device(machine.device)), which.seed)
    mask.save(out)
    print(f"{out}: k = {mask.count} of m = {mask.total} coordinates, p = {mask.sparsity:.4g}")
