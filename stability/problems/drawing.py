"""Random numbers for code that takes no generator, without torch's global one: :class:`DrawingFrom`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DrawingFrom"]


class DrawingFrom(TorchDispatchMode):
    """While it is entered, whatever this thread draws comes from ``draws``, where it would come from the CPU's global generator.

    Initialisers of torch, transformers and peft take no generator from their callers. To seed the global one and to restore it
    afterwards is no way out: other threads draw from it meanwhile. This mode belongs to its thread alone. The numbers are those
    that the global generator would give with the same seed.

    Draws from a generator that the code names itself stay as they are. So do the draws of operations that take no generator, such
    as fused attention with dropout.

    Args:
        draws: the generator, on the CPU. It goes on from where it is.

    Example:
        >>> with DrawingFrom(torch.Generator().manual_seed(0)):
        ...     layer = torch.nn.Linear(2, 3)
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     torch.equal(layer.weight, torch.nn.Linear(2, 3).weight)
        True
    """

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws = draws

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        found = _with_generator(func)
        if found is None:
            return func(*args, **kwargs)
        drawing, place = found
        if len(args) <= place and kwargs.get("generator") is None:
            kwargs["generator"] = self._draws
        return drawing(*args, **kwargs)


@cache
def _with_generator(func: Any) -> tuple[Callable[..., Any], int] | None:
    """The form of a random operation that takes a generator, and the place of the generator among its arguments."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    wanted = {argument.name for argument in func._schema.arguments} | {"generator"}
    packet = func.overloadpacket
    for form in (func, *(getattr(packet, name) for name in packet.overloads())):
        arguments = [argument.name for argument in form._schema.arguments]
        if set(arguments) == wanted:
            return form, arguments.index("generator")
    return None
