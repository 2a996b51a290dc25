"""How many threads an operation of torch takes: all that torch has where a model is large and the cores are free, and else one.

The threads of an operation wait for each other at its end. Beside another process one of them is often interrupted, and holds up
all others: two threads on two cores then take three to four times as long as one (``benchmarks/threads.py``). Replicas that each
have a thread of their own do not wait for each other, and are divided among all threads in any case
(:mod:`stability.training.execution`). The number of threads changes results by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stability.machine import busy_cores
from stability.problems.problem import Problem
from stability.training.algorithm import Algorithm

__all__ = ["LARGE", "Products", "available", "mean_product", "suited_to"]

LARGE = 1 << 27
"""Floating-point operations of a mean matrix product from which on several threads pay where the cores are free
(``benchmarks/threads.py``)."""

_BUSY = 0.5  # cores that other processes take before there is one thread too many

_AVAILABLE: ContextVar[int | None] = ContextVar("available", default=None)


class Products(TorchDispatchMode):
    """While it is entered, counts matrix products and their floating-point operations.

    Attributes:
        count: how many products there were.
        operations: their floating-point operations together.

    Example:
        >>> with Products() as products:
        ...     product = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> products.count, products.operations
        (1, 48)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operations: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if operations is not None:
            self.count += 1
            self.operations += operations(*args, **(kwargs or {}), out_val=result)
        return result


def mean_product(problem: Problem, algorithm: Algorithm) -> float:
    """Floating-point operations of the mean matrix product in the forward pass of one replica on one batch.

    Args:
        problem: whose model it is.
        algorithm: A, with its batches.

    Returns:
        0 where the model has no matrix product.

    Example:
        >>> from stability import FineTuning, load, selectors
        >>> problem = load("digits")
        >>> mean_product(problem, FineTuning(selectors.BitFit()).with_defaults(problem.training)) < LARGE
        True
    """
    index = next(iter(algorithm.batches(problem.train)))
    with torch.no_grad(), Products() as products:
        problem.logits(problem.start(algorithm.seed), problem.train.take(index).inputs)
    return float(products.operations / max(1, products.count))


def available() -> int:
    """How many threads this process may take: torch's number, as it was before :func:`suited_to` lowered it.

    Example:
        >>> available() == torch.get_num_threads()
        True
    """
    return _AVAILABLE.get() or torch.get_num_threads()


@contextmanager
def suited_to(problem: Problem, algorithm: Algorithm) -> Iterator[None]:
    """Let torch's operations take one thread, unless the model is large and the cores are free; afterwards as many as before.

    It never takes more than torch has, which ``torch.set_num_threads`` and ``--threads`` say. A model on a GPU changes nothing.
    torch has one number for the whole process: measure one thing at a time in it, and several in processes of their own.

    Args:
        problem: whose model it is.
        algorithm: A, with its batches.

    Example:
        >>> from stability import FineTuning, load, selectors
        >>> problem = load("digits")
        >>> with suited_to(problem, FineTuning(selectors.BitFit()).with_defaults(problem.training)):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    on_cpu = next(iter(problem.pretrained.values())).device.type == "cpu"
    if _AVAILABLE.get() is not None or before == 1 or not on_cpu:  # already decided, or nothing to decide
        yield
        return
    token = _AVAILABLE.set(before)
    try:
        if mean_product(problem, algorithm) < LARGE or busy_cores() > _BUSY:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
        _AVAILABLE.reset(token)
