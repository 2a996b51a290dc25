"""The memory that work takes beyond what was there, in a process of its own; printed as JSON, in MiB. See test_execution.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch

from benchmarks.memory import peak_of
from stability import FineTuning, load
from stability.leave_one_out.linearised import losses_left_out, trajectory_for
from stability.problems.problem import Problem
from stability.selectors import FullTuning, Random, Selector
from stability.training.replicas import Replicas, train


def main(budget: int) -> None:
    torch.set_num_threads(1)
    problem = load("digits", n=100)
    everyone = torch.ones(100, 100).fill_diagonal_(0)
    trained: list[Replicas] = []
    found = {}

    def training(selector: Selector, rows: int) -> Callable[[], object]:
        return lambda: trained.append(train(problem, FineTuning(selector, steps=4), everyone[:rows], memory_budget=budget))

    training(Random(0.3), 2)()  # what torch and the model take at first is nobody's budget
    linearised(problem, 4, budget)
    for name, selector in (("p = 0.3", Random(0.3)), ("full tuning", FullTuning())):
        found[f"training, {name}"] = peak_of(training(selector, 100))
        found[f"evaluation, {name}"] = peak_of(lambda: trained.pop().losses(problem.test))
        trained.clear()
    for steps in (30, 200):
        found[f"prediction, {steps} steps"] = peak_of(linearised(problem, steps, budget))
    print(json.dumps({name: size / 2**20 for name, size in found.items()}))


def linearised(problem: Problem, steps: int, budget: int) -> Callable[[], object]:
    algorithm = FineTuning(Random(0.3), steps=steps).with_defaults(problem.training)
    masks = [algorithm.select(problem)]

    def work() -> None:
        trajectory = trajectory_for(problem, algorithm, masks, checkpoints=3, memory_budget=budget)
        real = train(problem, algorithm, masks=masks, replica_batch=1, observe=trajectory)
        losses_left_out(real, trajectory, masks, budget)

    return work


if __name__ == "__main__":
    main(int(sys.argv[1]))
