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
from stability.selectors import Selector, shares
from stability.selectors.scope import Scope, count_for
from stability.training import FineTuning, train
from stability.training.naming import named_apart

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
    if out is not None:
        if not out.parent.is_dir():
            raise StabilityError(f"cannot write {out}: there is no folder {out.parent}")
        check_writable(out.parent)
    with redirect_stdout(sys.stderr) if json else nullcontext():
        # Standard output is kept free of what a selector of the user's own may print.
        selector = method.made()
        mask = _found(which, data, model, selector, training, machine)
    if selector.sparsity is not None and mask.count < _NEARLY * (asked := count_for(selector.sparsity, mask.total)):
        scope = Scope.of(getattr(selector, "scope", "global"))
        whole = scope.within == "global" and scope.unit == "coordinate"
        why = "" if whole else ", because the places of each group, or of each unit, are rounded down"
        print(f"note: p = {selector.sparsity:g} is k = {asked}, and {mask.count} are chosen{why}", file=sys.stderr)
    if out is not None:
        mask.save(out)
    name = named_apart([FineTuning(selector)])[0]
    if json:
        facts: dict[str, Any] = {"selector": name, "out": None if out is None else str(out), "k": mask.count, "m": mask.total}
        facts |= {"sparsity": mask.sparsity, "layers": shares(mask).to_dict("records")}
        print_json(plain({**facts, "types": shares(mask, "type").to_dict("records")}))
        return
    start = "" if out is None else f"{out}: "
    print(f"{start}{name}, k = {mask.count} of m = {mask.total} coordinates, p = {mask.sparsity:.4g}")
    if describe:
        show_shares(mask)


_NEARLY = 0.95


def _found(which: OneProblem, data: Data, model: Model, selector: Selector, training: Training, machine: Machine) -> Mask:
    """The mask that was asked for."""
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
