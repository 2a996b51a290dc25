"""What the measured constants cost on ``digits``, all 26 597 parameters, beside the loops that one would write instead.

    python -m benchmarks.curvature [--threads 2] [--device cpu] [--json]

At a model trained for 150 steps: per-example gradient norms of 1 000 examples against one backward pass an example; a
Hessian–vector product against a double backward pass; extreme eigenvalues of the Hessian and of the Gauss–Newton matrix;
100 probes of the diagonal; the middle step of all 100 examples at the minimum of the loss with the ridge λ = 0.9.
Writes benchmarks/results/curvature-DEVICE.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.loops import seconds
from stability import FineTuning, Problem, machine, problems
from stability.derivatives.curvature import Curvature, Eigenvalue, diagonal, greatest_eigenvalue, least_eigenvalue
from stability.derivatives.gradients import gradient_norms
from stability.derivatives.influence import first_order_changes
from stability.masks import Parameters
from stability.problems.problem import Examples
from stability.selectors import FullTuning
from stability.training import Minimisation
from stability.training.replicas import train

T = TypeVar("T")


def warm_seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Wall-clock time of a call, after a first one to warm up."""
    work()
    return seconds(work)


def plain_norms(problem: Problem, parameters: Parameters, examples: Examples) -> Tensor:
    """One backward pass an example."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
    norms = []
    for i in range(len(examples)):
        loss = problem.losses(leaves, examples.take(slice(i, i + 1))).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).double().norm())
    return torch.stack(norms)


def plain_product(problem: Problem, parameters: Parameters, vector: Tensor) -> Tensor:
    """A double backward pass over the whole of S."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
    gradients = torch.autograd.grad(problem.losses(leaves, problem.train).mean(), list(leaves.values()), create_graph=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return torch.cat([part.flatten() for part in torch.autograd.grad(flat @ vector, list(leaves.values()))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    problem = problems.load("digits").to(device)
    tuned = train(problem, FineTuning(FullTuning())).parameters(0)
    everything = [problem.train, problem.test]
    inputs = torch.cat([examples.inputs["pixel_values"] for examples in everything])
    labels = torch.cat([examples.labels for examples in everything])
    again = torch.arange(1000, device=device) % len(labels)
    examples = Examples({"pixel_values": inputs[again]}, labels[again])
    hessian = Curvature(problem, tuned, problem.train)
    vector = torch.randn(1, hessian.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times: dict[str, float] = {}

    times["gradient norms of 1000 examples"], norms = warm_seconds(lambda: gradient_norms(problem, tuned, examples))
    times["gradient norms of 1000 examples, plain loop"], plain = warm_seconds(lambda: plain_norms(problem, tuned, examples))
    times["Hessian product"], product = warm_seconds(lambda: hessian.product(vector))
    times["Hessian product, 16 at once, each"] = warm_seconds(lambda: hessian.product(vector.expand(16, -1)))[0] / 16
    as_float = vector[0].float().to(device)
    times["Hessian product, plain"], reference = warm_seconds(lambda: plain_product(problem, tuned, as_float))
    eigenvalues: dict[str, Eigenvalue] = {}
    for kind in ("hessian", "gauss_newton"):
        for name, find in (("least", least_eigenvalue), ("greatest", greatest_eigenvalue)):

            def eigenvalue(find: Any = find, kind: Any = kind) -> Eigenvalue:
                found: Eigenvalue = find(dataclasses.replace(hessian, kind=kind))  # anew: nothing is kept from before
                return found

            times[f"{name} eigenvalue, {kind}"], eigenvalues[f"{name}, {kind}"] = warm_seconds(eigenvalue)
    times["diagonal of the Hessian, 100 probes"], _ = warm_seconds(lambda: diagonal(hessian))
    minimum = train(problem, Minimisation(FullTuning(), ridge=0.9, gradient_tolerance=1e-4)).parameters(0)
    at_minimum = Curvature(problem, minimum, problem.train)
    times["middle step, 100 examples, λ = 0.9"], _ = warm_seconds(lambda: first_order_changes(at_minimum, 0.9))

    result: dict[str, Any] = {
        "problem": f"digits, {hessian.size} parameters, n = {problem.n}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "seconds": times,
        "ratios": {
            "gradient norms": times["gradient norms of 1000 examples, plain loop"] / times["gradient norms of 1000 examples"],
            "Hessian product": times["Hessian product, plain"] / times["Hessian product"],
            "Hessian product, 16 at once": times["Hessian product, plain"] / times["Hessian product, 16 at once, each"],
        },
        "largest relative difference": {
            "gradient norms": float(((norms - plain).abs() / plain).max()),
            "Hessian product": float((product[0] - reference.double().cpu()).norm() / product.norm()),
        },
        "eigenvalues": {name: dataclasses.asdict(eigenvalue) for name, eigenvalue in eigenvalues.items()},
        "machine": {**machine.report(), "threads": options.threads},
    }
    name = str(result["device"]).lower().replace(" ", "-")
    path = Path(__file__).parent / "results" / f"curvature-{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for label, value in times.items():
        print(f"{label:>45}  {value:8.3f} s")
    print(f"ratios to the plain forms: {result['ratios']}\nwritten to {path}")


if __name__ == "__main__":
    main()
