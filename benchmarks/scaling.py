"""How time and memory of the engine grow with r, m, k and the length of the texts: to plan by, and to see what limits.

    python -m benchmarks.scaling [--device cpu] [--threads 2] [--quick]

BERTs with random weights on random tokens, one quantity moved at a time from a base of width 256, four layers, 64 tokens,
batches of 16, eight replicas and p = 1 %. Each point is trained in a process of its own, so that its peak memory is its own.
n does not matter for a step: it multiplies replicas, and through the passes over S the steps.
Writes benchmarks/results/scaling-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.language import RESULTS, labelled
from benchmarks.loops import peak_memory, seconds
from benchmarks.replicas import matrix_rate, operations
from stability import FineTuning, Problem, machine
from stability.masks import Mask
from stability.problems.attention import Attention
from stability.problems.problem import Examples, ModuleLogits, refill, without_values
from stability.selectors import Random
from stability.training.replicas import train

STEPS, BATCH = 6, 16


@dataclass(frozen=True)
class Point:
    """One measurement: ``replicas`` of a BERT of this ``width`` with masks of ``sparsity`` on texts of ``tokens``."""

    replicas: int = 8
    width: int = 256
    sparsity: float = 0.01
    tokens: int = 64

    @property
    def algorithm(self) -> FineTuning:
        return FineTuning(Random(self.sparsity), steps=STEPS, batch_size=BATCH)

    def problem(self, n: int = 2 * BATCH) -> Problem:
        size = {"hidden_size": self.width, "num_attention_heads": self.width // 32, "intermediate_size": 4 * self.width}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = BertForSequenceClassification(BertConfig(vocab_size=8192, num_hidden_layers=4, **size)).eval()
            network.set_attn_implementation("eager")
            ids, labels = torch.randint(8192, (n, self.tokens)), torch.randint(2, (n,))
        parameters = {name: tensor.detach() for name, tensor in network.named_parameters()}
        refill(network, without_values)
        examples = Examples({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, torch.full((n,), self.tokens))
        return Problem(
            name="random BERT",
            settings=asdict(self),
            pretrained=parameters,
            new_head=lambda _: {},
            logits=ModuleLogits(network, attention=Attention(additive=True)),
            loss=lambda logits, labels: cross_entropy(logits, labels, reduction="none"),
            train=examples,
            test=examples,
            metric=lambda logits, labels: float((logits.argmax(1) == labels).double().mean()),
            metric_name="accuracy",
        )


AXES: dict[str, list[Point]] = {
    "replicas": [Point(replicas=r) for r in (1, 2, 4, 8, 16, 32, 64)],
    "width": [Point(width=w) for w in (64, 128, 256, 512, 768)],
    "sparsity": [Point(sparsity=p) for p in (0.001, 0.01, 0.04, 0.1, 0.3, 1.0)],
    "tokens": [Point(tokens=t) for t in (16, 32, 64, 128, 256)],
}


def measure(point: Point, device: str, threads: int) -> dict[str, Any]:
    """Seconds a replica-step and memory of one point."""
    torch.set_num_threads(threads)
    problem = point.problem().to(torch.device(device))
    mask = point.algorithm.select(problem)
    first = int(next(iter(point.algorithm.batches(problem.train)))[0])
    weights = torch.ones(point.replicas, problem.n)
    weights[:, first] = 0
    train(problem, replace(point.algorithm, steps=1), masks=[mask])
    before = peak_memory(device)
    spent, replicas = seconds(lambda: train(problem, point.algorithm, weights, masks=[mask]))
    after = peak_memory(device)
    torch.set_num_threads(1)
    flops = operations_a_step(point, problem, mask)
    return {
        **asdict(point),
        "m": problem.m,
        "k": mask.count,
        "embedded": sum(t.numel() for name, t in problem.pretrained.items() if "embeddings" in name),
        "seconds_a_replica_step": spent / STEPS / point.replicas,
        "operations_a_replica_step": flops,
        "memory_gib": after - before,
        "bytes_of_values": replicas.values.numel() * replicas.values.element_size(),
    }


def operations_a_step(point: Point, problem: Problem, mask: Mask | None) -> int:
    """Of one replica: what two steps have more than one, planning and all else being the same."""
    problem.check_independence()  # which the first training of a problem does, and no other
    masks = None if mask is None else [mask]
    two, one = (operations(partial(train, problem, replace(point.algorithm, steps=steps), masks=masks)) for steps in (2, 1))
    return two - one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--quick", action="store_true", help="the smallest point of each axis; nothing is written")
    options = parser.parse_args()
    device = str(machine.resolve_device(options.device))
    context = multiprocessing.get_context("spawn")
    rows: dict[str, list[dict[str, Any]]] = {}
    for axis, points in AXES.items():
        rows[axis] = []
        for point in points[:1] if options.quick else points:
            with context.Pool(1) as pool:
                rows[axis].append(pool.apply(measure, (point, device, options.threads)))
            found = rows[axis][-1]
            print(f"{axis} {getattr(point, axis):g}: {1e3 * found['seconds_a_replica_step']:.1f} ms a replica-step, ", end="")
            print(f"{found['memory_gib']:.2f} GiB", flush=True)
    if not options.quick:
        rate = matrix_rate(device, "float32", options.threads)
        result = {"rows": rows, "matrix_product_rate": rate, "machine": machine.report()}
        path = RESULTS / f"scaling-{labelled(torch.device(device))}.json"
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
