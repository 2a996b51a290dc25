"""``stability select``: a mask, chosen, saved and described."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from stability.cli.about import Json
from stability.cli.figures import check_writable
from stability.cli.options import OUTPUT, Data, Machine, Method, Model, OneProblem, Training, flags, load, problem_settings
from stability.cli.printing import plain, print_json
from stability.errors import MeasurementError, StabilityError, UsageError
from stability.machine import resolve_device
from stability.masks import Mask
from stability.reports.terminal import show_shares
from stability.selectors import shares
from stability.training import FineTuning, train

__all__ = ["select"]


def select(
    *,
    which: OneProblem = OneProblem(),
    data: Data = Data(),
    model: Model = Model(),
    method: Method,
    training: Training = Training(),
    out: Annotated[Path | None, Parameter(group=OUTPUT, help="The safetensors file to write.")] = None,
    describe: Annotated[
        bool, Parameter(group=OUTPUT, help="Print the mask's share of each layer, and of each type of tensor.")
    ] = False,
    json: Annotated[Json, Parameter(group=OUTPUT)] = False,
    machine: Machine = Machine(),
) -> None:
    """Choose a mask, and save or describe it; one that training finds, after that training."""
    if out is None and not (describe or json):
        raise UsageError("there is nothing to do with the mask: give --out FILE to save it, or --describe to see where it is")
    if out is not None:
        if not out.parent.is_dir():
            raise StabilityError(f"cannot write {out}: there is no folder {out.parent}")
        check_writable(out.parent)
    with redirect_stdout(sys.stderr) if json else nullcontext():
        # Standard output is kept free of what a selector of the user's own may print.
        mask = _found(which, data, model, method, training, machine)
    if out is not None:
        mask.save(out)
    if json:
        facts: dict[str, Any] = {"out": None if out is None else str(out), "k": mask.count, "m": mask.total}
        facts |= {"sparsity": mask.sparsity, "layers": shares(mask).to_dict("records")}
        print_json(plain({**facts, "types": shares(mask, "type").to_dict("records")}))
        return
    start = "" if out is None else f"{out}: "
    print(f"{start}k = {mask.count} of m = {mask.total} coordinates, p = {mask.sparsity:.4g}")
    if describe:
        show_shares(mask)


def _found(which: OneProblem, data: Data, model: Model, method: Method, training: Training, machine: Machine) -> Mask:
    """The mask that was asked for."""
    selector = method.made()
    problem = load(which.problem, seed=which.seed, **problem_settings(data, model))
    if selector.moving:
        algorithm = FineTuning(selector, seed=which.seed, **training.made())
        replicas = train(problem, algorithm, device=machine.device)
        if (step := int(replicas.failed_step[0])) >= 0:
            raise MeasurementError(f"{selector.name} found no mask, for its training {replicas.algorithm.failure(step)}")
        return replicas.masks[0]
    if odd := flags(training):
        raise UsageError(f"{selector.name} selects before training: leave {odd} out")
    return selector.selected(problem.to(resolve_device(machine.device)), which.seed)
