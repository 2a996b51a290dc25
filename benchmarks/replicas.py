"""The replica engine against the loops that one would write instead, in one run on one machine.

    python -m benchmarks.replicas [--replicas 101] [--steps 100] [--device cpu] [--json]

Three programs train the same leave-one-out replicas of ``digits`` (same steps, same batches; the left-out losses are
compared): this engine with all threads; a plain PyTorch loop, one model after the other, masked gradients and AdamW,
with all threads; and the same loop in one process a core, one thread each, started and warm before the clock starts.
Writes benchmarks/results/replicas-DEVICE.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ViTForImageClassification

from stability import FineTuning, Problem, machine, problems
from stability.problems.digits import _config
from stability.replicas import train
from stability.selectors import SAM

SPARSITY = 0.05
T = TypeVar("T")


def setting(steps: int, n: int = 100) -> tuple[Problem, FineTuning]:
    return problems.load("digits", n=n), FineTuning(SAM(SPARSITY), steps=steps)


def plain_loop(left_out: list[int], steps: int, device: str, n: int = 100) -> list[float]:
    """ℓ(A(Sⁱ), z_i) for each i (−1: the loss on example 0 of A(S)), one model at a time, as one would write it."""
    problem, algorithm = setting(steps, n)
    place = torch.device(device)
    tunable = algorithm.tunable(problem, algorithm.select(problem))
    start = problem.start(algorithm.seed)
    masks = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in start.items()}
    for name, index in tunable.indices.items():
        masks[name].view(-1)[index] = True
    masks = {name: mask.to(place) for name, mask in masks.items()}
    original = ViTForImageClassification(_config())
    original.load_state_dict(start)
    pixels, labels = problem.train.inputs["pixel_values"].to(place), problem.train.labels.to(place)
    batches = [batch.to(place) for batch in algorithm.batches(problem.train)]
    losses = []
    for i in left_out:
        model = copy.deepcopy(original).to(place).eval()
        parameters = {name: p for name, p in model.named_parameters() if name in tunable.indices}
        for name, p in model.named_parameters():
            p.requires_grad_(name in parameters)
        optimizer = torch.optim.AdamW(parameters.values(), lr=algorithm.learning_rate, weight_decay=0.0)
        for batch in batches:
            kept = batch[batch != i]
            optimizer.zero_grad()
            loss: Tensor = cross_entropy(model(pixels[kept]).logits, labels[kept])
            loss.backward()
            for name, p in parameters.items():
                if p.grad is not None:
                    p.grad *= masks[name]
            optimizer.step()
        with torch.no_grad():
            probe = max(i, 0)
            losses.append(cross_entropy(model(pixels[probe : probe + 1]).logits, labels[probe : probe + 1]).item())
    return losses


def engine(left_out: list[int], steps: int, device: str) -> list[float]:
    problem, algorithm = setting(steps)
    problem = problem.to(torch.device(device))
    weights = torch.ones(len(left_out), problem.n)
    for row, i in enumerate(left_out):
        if i >= 0:
            weights[row, i] = 0
    losses = train(problem, algorithm, weights).losses(problem.train)
    return [losses[row, max(i, 0)].item() for row, i in enumerate(left_out)]


def _one_thread() -> None:
    torch.set_num_threads(1)
    plain_loop([-1], 2, "cpu")


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=101)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device, steps = str(machine.resolve_device(options.device)), options.steps
    left_out = [-1, *range(options.replicas - 1)]
    cores = machine.cores()
    torch.set_num_threads(cores)
    engine(left_out, 3, device)
    plain_loop([-1], 3, device)
    times: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    times["engine"], losses["engine"] = seconds(lambda: engine(left_out, steps, device))
    times["plain_loop"], losses["plain_loop"] = seconds(lambda: plain_loop(left_out, steps, device))
    if device == "cpu":
        shares = [left_out[k::cores] for k in range(cores)]
        with multiprocessing.get_context("spawn").Pool(cores, initializer=_one_thread) as pool:
            pool.starmap(plain_loop, [([-1], 2, "cpu")] * cores, chunksize=1)
            times["process_parallel"], parts = seconds(
                lambda: pool.starmap(plain_loop, [(s, steps, "cpu") for s in shares], chunksize=1)
            )
        by_example = {i: loss for share, part in zip(shares, parts, strict=True) for i, loss in zip(share, part, strict=True)}
        losses["process_parallel"] = [by_example[i] for i in left_out]
    reference = torch.tensor(losses["engine"])
    result: dict[str, Any] = {
        "replicas": options.replicas,
        "steps": steps,
        "problem": f"digits, SAM, p = {SPARSITY}",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "seconds": times,
        "replicas_per_minute": {name: 60 * options.replicas / t for name, t in times.items()},
        "ratios": {name: t / times["engine"] for name, t in times.items() if name != "engine"},
        "largest_loss_difference": {
            n: (torch.tensor(v) - reference).abs().max().item() for n, v in losses.items() if n != "engine"
        },
        "mean_loss": {name: sum(v) / len(v) for name, v in losses.items()},
        "machine": machine.report(),
    }
    name = str(result["device"]).lower().replace(" ", "-")
    path = Path(__file__).parent / "results" / f"replicas-{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.json:
        print(json.dumps(result))
        return
    for name, rate in result["replicas_per_minute"].items():
        ratio = f", engine {times[name] / times['engine']:.1f} × as fast" if name != "engine" else ""
        print(f"{name:>16}  {times[name]:7.1f} s  {rate:7.0f} replicas a minute{ratio}")
    print(f"largest difference of a left-out loss: {result['largest_loss_difference']}; written to {path}")


if __name__ == "__main__":
    main()
