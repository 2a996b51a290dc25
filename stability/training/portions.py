"""Rows that are computed a portion at a time. Where a portion does not fit into memory, it is halved."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from stability.errors import MachineError
from stability.machine import free_memory, out_of_memory, release

__all__ = ["Portions", "if_it_fits", "one_too_large"]

T = TypeVar("T")


@dataclass
class Portions:
    """How many rows are computed at once.

    Attributes:
        size: the most at once; fewer from then on where memory ran out.
        device: where they are computed.
        tuned: K, for the message of the error.

    Example:
        >>> Portions(2, torch.device("cpu"), tuned=1).each(5, lambda rows: (rows.start, rows.stop))
        [(0, 2), (2, 4), (4, 5)]
    """

    size: int
    device: torch.device
    tuned: int

    def each(self, count: int, compute: Callable[[slice], T], forget: Callable[[], object] = lambda: None) -> list[T]:
        """What ``compute`` gives for each portion of ``count`` rows, in their order.

        Args:
            count: the number of rows.
            compute: from the rows of one portion.
            forget: lets go of what is held for portions of the present size; called before smaller ones.

        Raises:
            MachineError: not even one row fits into memory.
        """
        done, parts = 0, []
        while done < count:
            mine = slice(done, min(done + self.size, count))
            try:
                parts.append(compute(mine))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            else:
                done = mine.stop
                continue
            if mine.stop - mine.start == 1:  # outside of the handler, whose error holds on to what was allocated
                raise one_too_large(self.device, self.tuned)
            self.size = math.ceil((mine.stop - mine.start) / 2)
            forget()
            gc.collect()
            release(self.device)
        return parts


def if_it_fits(work: Callable[[], T]) -> T | None:
    """What some work gives; None where memory ran out.

    Args:
        work: is called once.

    Example:
        >>> if_it_fits(lambda: 3)
        3
        >>> if_it_fits(lambda: torch.empty(1 << 50))
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MachineError) or out_of_memory(error):
            return None
        raise


def one_too_large(device: torch.device, tuned: int) -> MachineError:
    """That not even one replica fits.

    Args:
        device: where.
        tuned: K, the number of trained values.
    """
    return MachineError(
        f"one replica alone does not fit: {free_memory(device) / 2**30:.1f} GiB are free on {device}, and K = {tuned} values are "
        "tuned; use smaller batches, shorter texts, a sparser mask or another device"
    )
