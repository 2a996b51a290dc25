"""How much work a measurement is: floating-point operations, counted and never timed, so that every machine finds the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.threads import Products

__all__ = ["Work", "work_of"]

_PASSES = 3  # a forward pass and a backward one, which takes twice as much
_SMALL = 1 << 18  # operations that could be done in the time that a matrix product takes at least
_MINIMISING = 200  # steps that a minimisation is taken to need: nobody knows beforehand


@dataclass(frozen=True, kw_only=True)
class Work:
    """What leaving out one example costs, and what a prediction of all needs to know.

    Attributes:
        n: size of S.
        steps: of a run.
        batch: examples of a step, in the mean.
        outputs: C.
        tunable: K, the values that are trained.
        forward: operations of a forward pass of one replica on one batch, in the mean.

    Example:
        >>> work = Work(n=10, steps=5, batch=2.0, outputs=3, tunable=4, forward=100.0)
        >>> work.retraining
        1500.0
    """

    n: int
    steps: int
    batch: float
    outputs: int
    tunable: int
    forward: float

    @property
    def retraining(self) -> float:
        """Operations of one training."""
        return _PASSES * self.forward * self.steps

    @property
    def jacobian(self) -> float:
        """Operations of the n · C rows of a Jacobian of the logits, a backward pass each."""
        return self.n * self.outputs * (_PASSES - 1) * self.forward / self.batch


def work_of(problem: Problem, algorithm: Algorithm, k: int) -> Work:
    """The work of a measurement, from one forward pass on the first batch.

    A product of small matrices counts as 2¹⁸ operations more than it has, for it takes at least the time of as many. One is counted
    at the least, for products with a vector are not known. A batch of texts counts by its tokens. A minimisation counts 200 steps.

    Args:
        problem: the one that is trained.
        algorithm: A.
        k: how many of the pretrained coordinates may change.

    Example:
        >>> from stability import FineTuning, load, selectors
        >>> problem = load("digits", n=20)
        >>> algorithm = FineTuning(selectors.BitFit(), steps=2).with_defaults(problem.training)
        >>> work = work_of(problem, algorithm, k=928)
        >>> work.outputs, work.tunable, work.retraining == 6 * work.forward
        (5, 1093, True)
    """
    batches = list(algorithm.batches(problem.train))
    first = problem.train.take(batches[0])
    # Which kernel attention takes depends on the device. Taken apart into its products it is the same everywhere.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Products() as products:
        logits = problem.logits(problem.start(algorithm.seed), first.inputs)
    sizes = [problem.train.longest(index) * len(index) for index in batches]
    return Work(
        n=problem.n,
        steps=algorithm.max_steps if algorithm.stepwise else min(_MINIMISING, algorithm.max_steps),
        batch=sum(map(len, batches)) / len(batches),
        outputs=logits[0].numel(),
        tunable=k + sum(tensor.numel() for tensor in problem.head(algorithm.seed).values()),
        forward=(products.operations + _SMALL * max(1, products.count)) * sum(sizes) / len(sizes) / sizes[0],
    )
