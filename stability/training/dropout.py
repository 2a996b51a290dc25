"""Dropout from a generator of one's own: the same draws in every paired replica, whatever runs beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stability.errors import UsageError

__all__ = ["Dropout"]


class Dropout(TorchFunctionMode):
    """While it is entered, ``torch.nn.functional.dropout`` draws from ``draws``, one mask for all replicas of a ``vmap``.

    An entry is kept with probability 1 − p and divided by it (Srivastava et al. 2014). In a batch of replicas every
    replica gets the very mask that it would get alone: paired runs share the randomness of the algorithm (Elisseeff, Evgeniou
    & Pontil 2005), and how many go at once changes nothing. Entered again, it draws the same again.

    Args:
        draws: the generator, on the device of the activations. CPU and CUDA draw different numbers.
        reverse: (B, c) where the batch's B examples, of c sequences each, come in reverse order, and so must what is drawn for
            them: for whatever has B·c rows.

    Attributes:
        used: whether anything was drawn yet.

    Raises:
        UsageError: the model drops out inside a fused attention kernel, whose draws nobody else can make; or, on leaving, it
            drew something from torch's global generator instead.

    Example:
        >>> x = torch.ones(2, 3)
        >>> with Dropout(torch.Generator().manual_seed(0)):
        ...     first = torch.nn.functional.dropout(x)
        >>> with Dropout(torch.Generator().manual_seed(0)):
        ...     both = torch.func.vmap(torch.nn.functional.dropout, randomness="same")(torch.stack([x, x]))
        >>> torch.equal(both, torch.stack([first, first]))
        True
    """

    def __init__(self, draws: torch.Generator, reverse: tuple[int, int] | None = None) -> None:
        super().__init__()
        self._draws, self._reverse = draws, reverse
        self._begin = draws.get_state()
        self._global = self._state()
        self.used = False

    def __enter__(self) -> Dropout:
        self._draws.set_state(self._begin)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if error[0] is None and not torch.equal(self._state(), self._global):
            raise UsageError("dropout: this model draws from the global generator, not by plain dropout alone: leave it off")

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention:
            p = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
            if p > 0:
                raise UsageError("dropout: this model drops out inside a fused attention kernel, without a generator: leave it off")
        return func(*args, **kwargs)

    def _state(self) -> Tensor:
        device = self._draws.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        self.used = True
        kept = torch.rand(x.shape, generator=self._draws, device=x.device) >= p
        if self._reverse is not None and len(x) == math.prod(self._reverse):
            kept = kept.unflatten(0, self._reverse).flip(0).flatten(0, 1)
        return x * kept.to(x.dtype) / (1 - p if p < 1 else 1)
