"""AdamW for many replicas at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.machine import pieces

__all__ = ["AdamW", "Clock"]


@dataclass
class Clock:
    """The step of a run. Its optimizers share it, so that the learning rate follows the run and not the optimizer's own start."""

    step: int = 0


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) for values of any shape, one row a replica; the arithmetic of ``torch.optim.AdamW``.

    The learning rate is that of the clock's step. The correction of the moments counts this optimizer's own steps.

    Args:
        values: what will be updated; only its shape, type and device are used.
        clock: the run's step.
        learning_rate_at: the learning rate of step 0, 1, ….
        betas: decay rates of the first and second moment.
        epsilon: is added to the root of the second moment.
        weight_decay: decoupled, towards 0; 0 for values that are not parameters of the model.

    Example:
        >>> values = torch.tensor([[1.0, -2.0]])
        >>> optimizer = AdamW(
        ...     values, clock=Clock(), learning_rate_at=lambda step: 0.1, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0
        ... )
        >>> optimizer.update(values, torch.tensor([[3.0, -4.0]]))
        tensor([[ 0.9000, -1.9000]])
    """

    def __init__(
        self,
        values: Tensor,
        *,
        clock: Clock,
        learning_rate_at: Callable[[int], float],
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
    ) -> None:
        self._clock, self._learning_rate_at = clock, learning_rate_at
        self._betas, self._epsilon, self._weight_decay = betas, epsilon, weight_decay
        self._first, self._second = (torch.zeros_like(values, memory_format=torch.contiguous_format) for _ in range(2))
        self._step = 0

    def update(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one step along ``gradient``, both of the shape that the optimizer was made for."""
        beta1, beta2 = self._betas
        rate = self._learning_rate_at(self._clock.step)
        self._step += 1
        result = torch.empty_like(self._first)
        flat = [t.reshape(-1) for t in (values, gradient)] + [t.view(-1) for t in (self._first, self._second, result)]
        for part in pieces(values.numel(), values.device):
            old, slope, first, second, new = (t[part] for t in flat)
            first.lerp_(slope, 1 - beta1)
            second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            scale = second.sqrt().div_(math.sqrt(1 - beta2**self._step)).add_(self._epsilon)
            decayed = old * (1 - rate * self._weight_decay) if self._weight_decay else old
            torch.addcdiv(decayed, first, scale, value=-rate / (1 - beta1**self._step), out=new)
        return result

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of the values; a row may be taken twice."""
        self._first, self._second = self._first[rows], self._second[rows]

    def narrow(self, columns: Tensor) -> None:
        """Go on with these columns of the values."""
        self._first, self._second = self._first[..., columns], self._second[..., columns]
