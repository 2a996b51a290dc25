"""Replicas one at a time against many at once, on models that can do both: the same values, and how many times as long it takes.

    python -m benchmarks.singly --out benchmarks/results/singly-cpu.json

Both train the same replicas in one process, in turns, and the shortest of the turns counts. Ratios carry over to other machines,
seconds do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loops import write_tiny_bert
from stability import FineTuning, Problem, load, selectors
from stability.machine import software
from stability.problems.problem import ModuleLogits
from stability.selectors import Selector
from stability.training.replicas import Replicas, train
from tests import tiny

__all__ = ["apart", "compared", "main"]

SELECTORS: dict[str, Selector] = {
    "random, p = 0.005": selectors.Random(0.005),
    "bitfit": selectors.BitFit(),
    "full": selectors.FullTuning(),
}


def apart(problem: Problem) -> Problem:
    """The same problem, whose replicas are computed one at a time."""
    assert isinstance(problem.logits, ModuleLogits)
    return dataclasses.replace(problem, logits=dataclasses.replace(problem.logits, batched=False))


def compared(problem: Problem, selector: Selector, *, replicas: int, steps: int, turns: int) -> dict[str, Any]:
    """The largest difference in a loss on a left-out example, and the ratio of the times.

    Trained values are not compared: where a gradient is zero but for rounding, AdamW makes a step of the rounding.

    Args:
        problem: whose model can compute many replicas at once.
        selector: chooses what is trained.
        replicas: how many examples are left out.
        steps: of each run.
        turns: how often each is timed.
    """
    algorithm = FineTuning(selector, steps=steps, batch_size=16, learning_rate=1e-3)
    weights = torch.ones(replicas, problem.n)
    weights[torch.arange(replicas), torch.arange(replicas)] = 0
    masks = [algorithm.with_defaults(problem.training).select(problem)]
    left_out = torch.arange(replicas)

    def run(mine: Problem) -> tuple[float, Replicas, Tensor]:
        began = time.perf_counter()
        found = train(mine, algorithm, weights, masks)
        return time.perf_counter() - began, found, found.own_losses(left_out)

    both = [[run(mine) for mine in (problem, apart(problem))] for _ in range(turns)]
    (_, at_once, losses), (_, _, own) = both[0]
    seconds = [min(pair[i][0] for pair in both) for i in (0, 1)]
    return {
        "replicas": replicas,
        "steps": steps,
        "at_once": at_once.replica_batch,
        "largest_difference_in_a_loss": float((own - losses).abs().max()),
        "seconds_at_once": round(seconds[0], 2),
        "seconds_one_at_a_time": round(seconds[1], 2),
        "ratio": round(seconds[1] / seconds[0], 2),
    }


def main(replicas: int = 16, steps: int = 8, turns: int = 2) -> dict[str, Any]:
    """All comparisons."""
    found: dict[str, Any] = {"software": software(), "threads": torch.get_num_threads(), "turns": turns}
    with tempfile.TemporaryDirectory() as folder:
        data = tiny.lines(Path(folder) / "data", train=tiny.rows(64, most=20), test=tiny.rows(8, seed=1))
        tokens = tiny.write_model(Path(folder) / "tiny")
        bert = load(data, model=write_tiny_bert(Path(folder) / "bert", str(tokens)))
        for name, problem in {"digits": load("digits", n=64), "BERT of 2 layers, width 128": bert}.items():
            for what, selector in SELECTORS.items():
                if not (name == "digits" and what.startswith("random")):
                    found[f"{name}; {what}"] = compared(problem, selector, replicas=replicas, steps=steps, turns=turns)
                    print(f"{name}; {what}", found[f"{name}; {what}"], flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = main()
    if options.out:
        options.out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
