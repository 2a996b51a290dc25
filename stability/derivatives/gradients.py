"""First derivatives of each example: gradients, their norms, and Jacobians of the logits.

They are taken by the k coordinates of a mask, in the order of :meth:`Mask.slices <stability.masks.Mask.slices>`, or by all
coordinates. They come in blocks of examples, so that memory stays within a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from stability.checks import check_whole
from stability.derivatives.products import Products, Sites, masked_gradients, pays, worthwhile
from stability.errors import MeasurementError, UsageError, one_line
from stability.machine import free_memory, kept_for_backward, out_of_memory
from stability.masks import Mask, Parameters
from stability.problems.batching import each_row
from stability.problems.problem import Examples, Problem

__all__ = [
    "blocks",
    "gauss_newton_diagonals",
    "gradient_norms",
    "mean_gradient",
    "per_example_gradients",
    "per_example_jacobians",
    "slopes_and_bends",
    "total",
]

_LARGE = 1 << 22  # entries of whole tensors beyond which, on a CPU, batched Jacobians were slower than one at a time
_VECTORS = 4  # of masked coordinates: what is given the gradient at the sites, the gradient, and two copies on its way


def per_example_gradients(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask | None = None, *, memory_budget: int | None = None
) -> Iterator[Tensor]:
    """The gradient ∇ℓ_i of each example.

    Args:
        problem: the problem whose loss ℓ is differentiated.
        parameters: all tensors of the model, by name: the point at which the derivatives are taken.
        examples: the N examples.
        mask: the k coordinates to differentiate by; by default all, the head included.
        memory_budget: bytes that one block may take; by default an eighth of what is free.

    Yields:
        The gradients of one block of examples, (B, k), in the parameters' precision and in the order of ``examples``.

    Raises:
        UsageError: there are no examples, or the budget is no whole number of at least 1.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits")
        >>> head = Mask.full(problem.head(seed=0))
        >>> blocks = per_example_gradients(problem, problem.start(seed=0), problem.train, head)
        >>> torch.cat(list(blocks)).shape
        torch.Size([100, 165])
    """
    mask = Mask.full(parameters) if mask is None else mask
    if not problem.batched:
        rows = _one_by_one(problem, parameters, examples, mask, lambda logits, labels: problem.loss(logits, labels).unsqueeze(1))
        yield from (gradient.squeeze(1) for gradient in rows)
        return
    values = mask.gather(parameters).detach()

    def loss(values: Tensor, inputs: dict[str, Tensor], label: Tensor) -> Tensor:
        one = Examples({name: tensor.unsqueeze(0) for name, tensor in inputs.items()}, label.unsqueeze(0))
        return problem.losses(mask.place(parameters, values), one)[0]

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    for block in blocks(problem, parameters, examples, mask, memory_budget=memory_budget):
        yield each(values, dict(block.inputs), block.labels)


def per_example_jacobians(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask | None = None, *, memory_budget: int | None = None
) -> Iterator[Tensor]:
    """The Jacobian J_i = ∂f(x_i)/∂θ of the C logits of each example.

    Args:
        problem: the problem whose logits f are differentiated.
        parameters: all tensors of the model, by name: the point at which the derivatives are taken.
        examples: the N examples.
        mask: the k coordinates to differentiate by; by default all, the head included.
        memory_budget: bytes that one block may take; by default an eighth of what is free.

    Yields:
        The Jacobians of one block of examples, (B, C, k), in the parameters' precision and in the order of ``examples``.

    Raises:
        UsageError: there are no examples, or the budget is no whole number of at least 1.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits", n=10)
        >>> head = Mask.full(problem.head(seed=0))
        >>> next(per_example_jacobians(problem, problem.start(seed=0), problem.train, head)).shape
        torch.Size([10, 5, 165])
    """
    mask = Mask.full(parameters) if mask is None else mask
    if next(iter(parameters.values())).device.type == "cpu" and _entries(parameters, mask) > _LARGE:
        yield from _of_a_large_model(problem, parameters, examples, mask, memory_budget)
        return
    if not problem.batched:
        yield from _one_by_one(problem, parameters, examples, mask, _logits)
        return

    def logits(values: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return problem.logits(mask.place(parameters, values), {name: tensor.unsqueeze(0) for name, tensor in inputs.items()})[0]

    values, each = mask.gather(parameters).detach(), vmap(jacrev(logits), in_dims=(None, 0))
    size = min(256, _jacobians_at_once(problem, parameters, examples, mask, memory_budget))
    for start in range(0, len(examples), size):
        yield each(values, dict(examples.take(slice(start, start + size)).inputs))


def _jacobians_at_once(problem: Problem, parameters: Parameters, examples: Examples, mask: Mask, memory_budget: int | None) -> int:
    """Of how many examples the Jacobians fit.

    Each row of a Jacobian stands there twice in the end: over the masked tensors whole, and at the k coordinates. Before that, the
    backward passes of all logits go through what the one forward pass kept, and none has more than that again.
    """
    kept = _kept_of_one(problem, parameters, examples, list(mask.indices))
    classes = problem.logits(parameters, examples.take(slice(0, 1)).inputs).shape[1]
    first = next(iter(parameters.values()))
    entries = _entries(parameters, mask) + mask.count
    return _fitting(first.device, memory_budget, classes * entries * first.element_size() + (1 + classes) * kept)


def _entries(parameters: Parameters, mask: Mask, without: Collection[str] = ()) -> int:
    """How many entries the masked tensors have, but for some."""
    return sum(parameters[name].numel() for name in mask.indices if name not in without)


def _of_a_large_model(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask, memory_budget: int | None
) -> Iterator[Tensor]:
    """The Jacobians (B, C, k), with the gradients of matrices at the masked coordinates alone where that can be.

    A third of the memory is for the B Jacobians, and a third for those before, which the caller may still hold. The last third is
    for the examples that are computed at once: their graph, for each logit what a backward pass takes, and a few vectors.
    """
    sites = _sites(problem, parameters, examples, mask)
    if (rest := _entries(parameters, mask, without=sites)) > _LARGE:
        yield from _one_by_one(problem, parameters, examples, mask, _logits)
        return
    first, kept = next(iter(parameters.values())), _kept_of_one(problem, parameters, examples, list(mask.indices))
    classes, size = problem.logits(parameters, examples.take(slice(0, 1)).inputs).shape[1], first.element_size()
    at_once = _fitting(first.device, memory_budget, 3 * classes * mask.count * size)
    each = (1 + classes) * kept + ((classes + _VECTORS) * mask.count + rest) * size
    most = _fitting(first.device, memory_budget, 3 * each)
    for start in range(0, len(examples), at_once):
        some = examples.take(slice(start, start + at_once))
        whole = first.new_empty(len(some), classes, mask.count)
        for index, block in some.blocks(min(most, 256)):
            whole[index] = _derivatives(problem, parameters, block, mask, sites, _logits)
        yield whole
        del whole


def _sites(problem: Problem, parameters: Parameters, examples: Examples, mask: Mask) -> dict[str, Sites]:
    """The masked coordinates of each matrix that linear layers and embeddings alone read, as one example shows."""
    found = {}
    for name, index in mask.indices.items():
        shape = tuple(parameters[name].shape)
        if worthwhile(shape, len(index)):
            found[name] = Sites(index, (shape[0], shape[1]))
    if not found:
        return found
    with torch.enable_grad():
        logits, whole, _ = _graph(problem, parameters, examples.take(slice(0, 1)), mask, found)
        if not logits.requires_grad:
            return found
        read = torch.autograd.grad(logits.sum(), [whole[name] for name in found], allow_unused=True)
    return {name: sites for (name, sites), slope in zip(found.items(), read, strict=True) if slope is None}


def _graph(
    problem: Problem, parameters: Parameters, block: Examples, mask: Mask, sites: Mapping[str, Sites]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The logits (b, C) of b examples, each with masked tensors of its own.

    Returns:
        The logits; by the name the masked tensors (b, *shape), which are views; and what is given the gradient at ``sites``,
        (b, k).
    """
    still = {name: tensor.detach() for name, tensor in parameters.items()}
    whole = {name: still[name].expand(len(block), *still[name].shape).requires_grad_() for name in mask.indices}
    tuned = {name: still[name].new_zeros(len(block), len(one.index)).requires_grad_() for name, one in sites.items()}

    def one(mine: Parameters, own: Parameters, inputs: Parameters) -> Tensor:
        at = {id(mine[name]): (tensor, sites[name]) for name, tensor in own.items()}
        products = Products(at, {id(mine[name]): still[name] for name in own})
        with products if pays(still.values()) else nullcontext():
            return problem.logits({**still, **mine}, {name: x.unsqueeze(0) for name, x in inputs.items()})[0]

    return each_row(one, whole, tuned, dict(block.inputs), batched=problem.batched), whole, tuned


@torch.enable_grad()
def _derivatives(
    problem: Problem,
    parameters: Parameters,
    block: Examples,
    mask: Mask,
    sites: Mapping[str, Sites],
    of: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The gradients (b, c, k) of the c numbers that ``of`` makes of each example's logits (b, C) and label (b,).

    In a function of its own, so that nothing of the graph is held when it returns.
    """
    logits, whole, tuned = _graph(problem, parameters, block, mask, sites)
    numbers = of(logits, block.labels)
    result = next(iter(parameters.values())).new_zeros(*numbers.shape, mask.count)
    if numbers.requires_grad:
        for c, number in enumerate(numbers.unbind(1)):
            masked_gradients(number.sum(), mask.slices(), whole, tuned, result[:, c], retain_graph=True)
    return result


def _logits(logits: Tensor, labels: Tensor) -> Tensor:
    return logits


def _one_by_one(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask, of: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    """For each example, after each other, the gradients (1, c, k) of the c numbers that ``of`` makes of logits and label."""
    if len(examples) == 0:
        raise UsageError("derivatives of no examples: give at least 1")
    for i in range(len(examples)):
        yield _derivatives(problem, parameters, examples.take(slice(i, i + 1)), mask, {}, of)


def slopes_and_bends(problem: Problem, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first and second derivatives of the loss ℓ by the logits, of each example.

    Args:
        problem: the problem whose loss ℓ is differentiated.
        logits: f, (B, C).
        labels: the labels, (B,).

    Returns:
        ∂ℓ/∂f, (B, C), and ∂²ℓ/∂f², (B, C, C).

    Raises:
        MeasurementError: the loss cannot be differentiated twice.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression([[1.0]], [2.0]).problem
        >>> slopes_and_bends(p, torch.tensor([[5.0]]), torch.tensor([2.0]))
        (tensor([[3.]]), tensor([[[1.]]]))
    """

    def one(logits: Tensor, label: Tensor) -> Tensor:
        return problem.loss(logits.unsqueeze(0), label.unsqueeze(0))[0]

    try:
        return vmap(jacrev(one))(logits, labels), vmap(jacrev(jacrev(one)))(logits, labels)
    except Exception as error:  # whatever a loss of the user's own does that vmap cannot
        if out_of_memory(error):
            raise
    found = []
    try:
        for f, label in zip(logits.detach(), labels, strict=True):
            at = f.clone().requires_grad_()
            (slope,) = torch.autograd.grad(one(at, label), at, create_graph=True)
            bend = [torch.autograd.grad(entry, at, retain_graph=True, materialize_grads=True)[0] for entry in slope]
            found.append((slope.detach(), torch.stack(bend)))
    except RuntimeError as error:
        raise MeasurementError(f"the loss cannot be differentiated twice: {one_line(error)}") from error
    slopes, bends = zip(*found, strict=True)
    return torch.stack(slopes), torch.stack(bends)


def gauss_newton_diagonals(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask | None = None, *, memory_budget: int | None = None
) -> Iterator[Tensor]:
    """The exact diagonal of each example's Gauss–Newton matrix J_iᵀ Λ_i J_i, where Λ_i = ∂²ℓ/∂f².

    The mean over the examples is the diagonal of the Gauss–Newton matrix of L (Schraudolph 2002). It is never negative where ℓ is
    convex in the logits.

    Args:
        problem: the problem whose loss ℓ is differentiated.
        parameters: all tensors of the model, by name: the point at which the derivatives are taken.
        examples: the N examples.
        mask: the k coordinates to differentiate by; by default all, the head included.
        memory_budget: bytes that one block may take; by default an eighth of what is free.

    Yields:
        The diagonals of one block of examples, (B, k), in the parameters' precision and in the order of ``examples``.

    Raises:
        UsageError: there are no examples, or the budget is no whole number of at least 1.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> import numpy as np
        >>> p = linear_regression(np.array([[1.0, 2.0], [3.0, 0.0]]), np.zeros(2)).problem
        >>> torch.cat(list(gauss_newton_diagonals(p, p.pretrained, p.train)))
        tensor([[1., 4.],
                [9., 0.]], dtype=torch.float64)
    """
    start = 0
    if memory_budget is not None:
        check_whole(1, memory_budget=memory_budget)
        memory_budget = max(1, memory_budget // 2)  # for what is made of a block's Jacobians is twice as large as they are
    for jacobian in per_example_jacobians(problem, parameters, examples, mask, memory_budget=memory_budget):
        block = examples.take(slice(start, start + len(jacobian)))
        start += len(jacobian)
        _, bend = slopes_and_bends(problem, problem.logits(parameters, block.inputs).detach(), block.labels)
        yield (torch.einsum("bce,bek->bck", bend, jacobian) * jacobian).sum(1)


def gradient_norms(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask | None = None, *, memory_budget: int | None = None
) -> Tensor:
    """The norm ‖∇ℓ_i‖₂ of each example's gradient.

    The largest of them over the points at hand is the measured ρ, a lower estimate of the Lipschitz constant of ℓ.

    Args:
        problem: the problem whose loss ℓ is differentiated.
        parameters: all tensors of the model, by name: the point at which the derivatives are taken.
        examples: the N examples.
        mask: the k coordinates to differentiate by; by default all, the head included.
        memory_budget: bytes that one block may take; by default an eighth of what is free.

    Returns:
        The norms, float64 (N,).

    Raises:
        UsageError: there are no examples, or the budget is no whole number of at least 1.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits", n=10)
        >>> gradient_norms(problem, problem.start(seed=0), problem.train).shape
        torch.Size([10])
    """
    parts = per_example_gradients(problem, parameters, examples, mask, memory_budget=memory_budget)
    return torch.cat([part.double().norm(dim=1) for part in parts])


def mean_gradient(problem: Problem, parameters: Parameters, examples: Examples, memory_budget: int | None = None) -> Tensor:
    """The gradient ∇L = mean_i ∇ℓ_i over all coordinates, the head included, with one backward pass for each block of examples.

    Args:
        problem: the problem whose loss ℓ is differentiated.
        parameters: all tensors of the model, by name: the point at which the gradient is taken.
        examples: the N examples.
        memory_budget: bytes that one block may take; by default an eighth of what is free.

    Returns:
        The gradient, in the order of ``parameters``: float64, one number for each entry.

    Raises:
        UsageError: there are no examples, or the budget is no whole number of at least 1.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits", n=10)
        >>> start = problem.start(seed=0)
        >>> found = mean_gradient(problem, start, problem.train)
        >>> torch.allclose(found, total(per_example_gradients(problem, start, problem.train)) / 10, atol=1e-6)
        True
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}

    first = next(iter(parameters.values()))
    result = torch.zeros(sum(leaf.numel() for leaf in leaves.values()), dtype=torch.float64, device=first.device)
    sums = result.split([leaf.numel() for leaf in leaves.values()])
    size = _block_size(problem, parameters, examples, list(parameters), memory_budget=memory_budget, copies=1, vectors=0)
    places = size * examples.longest(slice(None))
    for _, block in examples.blocks(min(size, 256), min(places, 2048)):
        parts = torch.autograd.grad(problem.losses(leaves, block).sum(), list(leaves.values()), materialize_grads=True)
        for mine, part in zip(sums, parts, strict=True):
            mine.add_(part.reshape(-1))
    return result / len(examples)


def total(parts: Iterator[Tensor]) -> Tensor:
    """Add up blocks over all their examples, one block at a time.

    Args:
        parts: the blocks, (B, k) each, as :func:`per_example_gradients` yields them.

    Returns:
        The sum, float64 (k,).

    Example:
        >>> total(iter([torch.ones(2, 3), torch.ones(1, 3)]))
        tensor([3., 3., 3.], dtype=torch.float64)
    """
    result = torch.zeros((), dtype=torch.float64)
    for part in parts:
        summed = part.sum(0, dtype=torch.float64)
        result = summed if result.ndim == 0 else result.add_(summed)
    return result


def blocks(
    problem: Problem,
    parameters: Parameters,
    examples: Examples,
    mask: Mask,
    *,
    memory_budget: int | None = None,
    copies: int = 1,
    at_most: int = 256,
) -> Iterator[Examples]:
    """Split examples into blocks so small that the derivatives of a block fit into a memory budget.

    One derivative is assumed to take four times what the forward pass of the longest example keeps for its backward pass, which is
    measured, and four vectors of the size of the masked tensors.

    Args:
        problem: the problem whose loss ℓ is differentiated.
        parameters: all tensors of the model, by name.
        examples: the N examples.
        mask: the coordinates to differentiate by.
        memory_budget: bytes that one block may take; by default an eighth of what is free. A block has at least one example.
        copies: how many derivatives of each example are computed at once.
        at_most: the most examples in a block.

    Yields:
        The examples of one block, in the order of ``examples``.

    Raises:
        UsageError: there are no examples, or a number is no whole number of at least 1.

    Example:
        >>> from stability.problems import load
        >>> problem = load("digits", n=10)
        >>> start = problem.start(seed=0)
        >>> [len(block) for block in blocks(problem, start, problem.train, Mask.full(start), at_most=4)]
        [4, 4, 2]
    """
    check_whole(1, copies=copies, at_most=at_most)
    size = _block_size(problem, parameters, examples, list(mask.indices), memory_budget=memory_budget, copies=copies)
    size = min(at_most, size)
    for start in range(0, len(examples), size):
        yield examples.take(slice(start, start + size))


def _block_size(
    problem: Problem,
    parameters: Parameters,
    examples: Examples,
    masked: Sequence[str],
    *,
    memory_budget: int | None,
    copies: int,
    vectors: int = 1,
) -> int:
    """How many examples fit where one differentiates by the ``masked`` tensors; with ``vectors=0`` they share one gradient."""
    kept, first = _kept_of_one(problem, parameters, examples, masked), next(iter(parameters.values()))
    entries = sum(parameters[name].numel() for name in masked)
    return _fitting(first.device, memory_budget, 4 * copies * (kept + vectors * entries * first.element_size()))


def _kept_of_one(problem: Problem, parameters: Parameters, examples: Examples, masked: Sequence[str]) -> int:
    """How many bytes the forward pass of the longest example keeps to differentiate by the ``masked`` tensors."""
    if len(examples) == 0:
        raise UsageError("derivatives of no examples: give at least 1")
    if len(examples) == 1:
        return 0
    leaves = {n: t.detach().requires_grad_(n in masked) for n, t in parameters.items()}
    longest = torch.arange(len(examples)) if examples.lengths is None else examples.lengths.argsort(descending=True)
    forward: Callable[[int], object] = lambda size: problem.losses(leaves, examples.take(longest[:size]))  # noqa: E731
    return max(0, kept_for_backward(partial(forward, 2)) - kept_for_backward(partial(forward, 1)))


def _fitting(device: torch.device, memory_budget: int | None, each: int) -> int:
    """How many examples of ``each`` bytes fit, at least 1."""
    check_whole(1, memory_budget=1 if memory_budget is None else memory_budget)
    budget = free_memory(device) // 8 if memory_budget is None else memory_budget
    return int(max(1, budget // max(each, 1)))
