"""Many rows of one function: at once through ``torch.func.vmap`` where it can run the function, and otherwise one after the other.

Both give the same up to rounding. Which of them a model takes is found out by running it both ways on a few examples
(:func:`difference`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from stability.errors import one_line
from stability.masks import Parameters

__all__ = ["difference", "drawn", "each_row", "same", "shortened", "slopes_of"]

Function = Callable[[Parameters, Mapping[str, Tensor]], Tensor]


def each_row(function: Callable[..., Tensor], *rows: Any, batched: bool, randomness: str = "error") -> Tensor:
    """What a function gives for each of r rows, stacked along a new first axis.

    Args:
        function: what is called for a row. It may give any tensor, of the same shape for each row.
        rows: its arguments for all rows: tensors (r, …), or dictionaries of such tensors.
        batched: whether ``torch.func.vmap`` calls it once for all rows. If false, it is called r times.
        randomness: of ``torch.func.vmap``: ``same`` draws once for all rows; by default drawing is an error.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> each_row(torch.sum, x, batched=True), each_row(torch.sum, x, batched=False)
        (tensor([3., 7.]), tensor([3., 7.]))
    """
    if batched:
        found: Tensor = vmap(function, randomness=randomness)(*rows)
        return found
    tensors, form = tree_flatten(rows)
    # Gradients by rows that are cut off one by one would each fill a tensor of all rows: unbind puts them together once.
    each = [function(*tree_unflatten(mine, form)) for mine in zip(*(tensor.unbind() for tensor in tensors), strict=True)]
    return each[0].unsqueeze(0) if len(each) == 1 else torch.stack(each)


def slopes_of(logits: Tensor, leaves: Parameters) -> dict[str, Tensor | None]:
    """The gradient of a weighted sum of logits by each parameter, as :func:`difference` compares it.

    Args:
        logits: (B, C), computed from the leaves.
        leaves: the parameters by name, which require gradients.

    Returns:
        The gradients by name; None where the logits do not depend on a parameter.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> slopes_of(3 * w.view(1, 2), {"w": w})
        {'w': tensor([1.5000, 3.0000])}
    """
    found = torch.autograd.grad(_weighted(logits), list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warning that it lacks a batching rule. If that makes vmap fail or differ, another form is tried."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop because")
        yield


@_quietly()
def difference(
    logits: Function,
    start: Parameters,
    inputs: Mapping[str, Tensor],
    wanted: Tensor,
    slopes: Mapping[str, Tensor | None],
    *,
    batched: bool,
) -> str | None:
    """Compare a function with logits and gradients that are known to be right.

    With ``batched`` the function is run over two replicas, then over the examples, through ``torch.func.vmap``. The first replica
    has other values, so that no replica can pass for another.

    Args:
        logits: the function (parameters, inputs) → (B, C).
        start: the parameters, by name.
        inputs: the inputs of B examples, by name.
        wanted: the right logits, (B, C).
        slopes: the right gradients, as :func:`slopes_of` gives them.
        batched: whether it is run through ``torch.func.vmap``. If false, it is called once, as it is.

    Returns:
        What differs; None where nothing does.

    Raises:
        Exception: whatever the function raises, and what vmap raises where it cannot run it.

    Example:
        >>> def double(parameters, inputs):
        ...     return parameters["w"] * inputs["x"]
        >>> leaves = {"w": torch.tensor([2.0], requires_grad=True)}
        >>> inputs = {"x": torch.tensor([[1.0], [3.0]])}
        >>> right = double(leaves, inputs)
        >>> slopes = slopes_of(right, leaves)
        >>> difference(double, leaves, inputs, right, slopes, batched=True)
        >>> difference(double, leaves, inputs, right + 1, slopes, batched=True)
        'logits of replicas differ by 1'
    """
    wanted, size = wanted.detach(), max((float(slope.norm()) for slope in slopes.values() if slope is not None), default=0.0)

    def differing(own: Mapping[str, Tensor | None], what: str) -> str | None:
        for name, slope in own.items():
            right = slopes[name]
            if right is not None and (slope is None or not _close(slope, right, size)):
                return f"the gradient{what} by {name} differs"
        return None

    if not batched:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in start.items()}
        found = logits(leaves, inputs)
        if not same(found, wanted):
            return f"logits differ by {_largest(found, wanted)}"
        return differing(slopes_of(found, leaves), "")
    stacked = {name: torch.stack([1.1 * tensor, tensor]).detach().requires_grad_() for name, tensor in start.items()}
    both: Tensor = vmap(lambda mine: logits(mine, inputs))(stacked)
    if not same(both[1], wanted):
        return f"logits of replicas differ by {_largest(both[1], wanted)}"
    own = {name: None if slope is None else slope[1] for name, slope in slopes_of(both[1], stacked).items()}
    if (reason := differing(own, "")) is not None:
        return reason
    thin = {name: tensor.detach() for name, tensor in start.items() if tensor.ndim == 1}  # every layer has some: norms, biases
    rest = {name: tensor.detach() for name, tensor in start.items() if tensor.ndim != 1}

    def one(mine: Parameters, each: Mapping[str, Tensor]) -> Tensor:
        return logits({**rest, **mine}, {name: tensor.unsqueeze(0) for name, tensor in each.items()})[0]

    singly: Tensor = vmap(one, in_dims=(None, 0))(thin, dict(inputs))
    if not same(singly, wanted):
        return f"logits of examples differ by {_largest(singly, wanted)}"
    each = vmap(grad(lambda mine, one_input, weight: (one(mine, one_input) * weight).sum()), in_dims=(None, 0, 0))
    own = {name: slope.sum(0) for name, slope in each(thin, dict(inputs), _weights(wanted)).items()}
    return differing(own, " of examples")


def drawn(call: Callable[[], Tensor]) -> str | None:
    """Whether a function that should be pure draws at random or remembers its calls. Generators are then where they were before.

    Args:
        call: calls it with the same arguments each time.

    Returns:
        What is wrong, as the end of a sentence; None where nothing is.

    Example:
        >>> drawn(lambda: torch.ones(1))
        >>> drawn(lambda: torch.rand(1))[:44]
        'are drawn from the global random generator: '
    """
    remedy = "call eval() first, or let it draw from a generator of its own with a fixed seed in each call"
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        first = call()  # in which a model may make parts of itself anew, as BigBird does
        before = _states(devices)
        second = call()
        if any(not torch.equal(*pair) for pair in zip(before, _states(devices), strict=True)):
            return f"are drawn from the global random generator: {remedy}"
    # Not to the last bit, for a GPU may add up in another order.
    if first.shape != second.shape or bool((first - second).detach().norm() > 1e-4 * first.detach().norm()):
        return f"differ from one call to the next: it draws at random, or keeps something in between; {remedy}"
    return None


def _states(devices: list[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def same(found: Tensor, wanted: Tensor) -> bool:
    """Whether logits agree to a ten-thousandth of their norm.

    Args:
        found: the logits.
        wanted: the right ones.

    Example:
        >>> same(torch.tensor([1.00001]), torch.tensor([1.0])), same(torch.tensor([1.001]), torch.tensor([1.0]))
        (True, False)
    """
    return found.shape == wanted.shape and bool((found.detach() - wanted).norm() <= 1e-4 * wanted.norm())


def shortened(error: Exception) -> str:
    """The first sentence of an error, for a message.

    Args:
        error: the error.

    Example:
        >>> shortened(ValueError("No such key. Try another."))
        'No such key'
    """
    return one_line(error, None).partition(". ")[0][:200] or type(error).__name__


def _close(found: Tensor, wanted: Tensor, size: float) -> bool:
    """Whether a gradient agrees to a thousandth of its norm and a millionth of the largest norm, which rounding may cost."""
    return bool((found.detach() - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6 * size)


def _largest(found: Tensor, wanted: Tensor) -> str:
    return f"{float((found.detach() - wanted).abs().max()):.2g}" if found.shape == wanted.shape else "their shape"


def _weights(logits: Tensor) -> Tensor:
    return torch.arange(1.0, logits.numel() + 1).view_as(logits).to(logits.device) / logits.numel()


def _weighted(logits: Tensor) -> Tensor:
    return (logits * _weights(logits)).sum()
