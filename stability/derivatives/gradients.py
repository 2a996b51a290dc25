"""First derivatives of each example: gradients, their norms, and Jacobians of the logits.

They are taken by the k coordinates of a mask, in the order of :meth:`Mask.slices <stability.masks.Mask.slices>`, or by all
coordinates. They come in blocks of examples, so that memory stays within a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from stability.checks import check_whole
from stability.derivatives.products import Products, Sites, gather, worthwhile
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

_LARGE = 1 << 22  # entries of the masked tensors beyond which, on a CPU, batched Jacobians were slower than one at a time


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
        yield from _one_by_one(problem, parameters, examples, mask, lambda logits, label: problem.loss(logits, label))
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
    on_cpu, sites = next(iter(parameters.values())).device.type == "cpu", _sites(parameters, mask)
    if on_cpu and sites and _entries(parameters, mask, without=sites) <= _LARGE:
        yield from _at_sites(problem, parameters, examples, mask, sites, memory_budget)
        return
    if not problem.batched or (on_cpu and _entries(parameters, mask) > _LARGE):
        rows = _one_by_one(problem, parameters, examples, mask, lambda logits, label: logits[0])
        yield from (jacobian.unsqueeze(0) for jacobian in rows)
        return

    def logits(values: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return problem.logits(mask.place(parameters, values), {name: tensor.unsqueeze(0) for name, tensor in inputs.items()})[0]

    values, each = mask.gather(parameters).detach(), vmap(jacrev(logits), in_dims=(None, 0))
    size = min(256, _jacobians_at_once(problem, parameters, examples, mask, memory_budget))
    for start in range(0, len(examples), size):
        yield each(values, dict(examples.take(slice(start, start + size)).inputs))


def _jacobians_at_once(
    problem: Problem,
    parameters: Parameters,
    examples: Examples,
    mask: Mask,
    memory_budget: int | None,
    sites: Mapping[str, Sites] | None = None,
) -> int:
    """Of how many examples the Jacobians fit.

    Each row of a Jacobian stands there twice in the end: over the masked tensors whole, and at the k coordinates; or twice at
    these, where tensors have ``sites``. Before that, the backward passes of all logits go through what the one forward pass kept,
    and none has more than that again.
    """
    kept = _kept_of_one(problem, parameters, examples, list(mask.indices))
    classes = problem.logits(parameters, examples.take(slice(0, 1)).inputs).shape[1]
    first = next(iter(parameters.values()))
    entries = _entries(parameters, mask, without=sites or ()) + mask.count
    if sites:
        entries += mask.count + max(0 if one.sampled(first) else parameters[name].numel() for name, one in sites.items())
    return _fitting(first.device, memory_budget, classes * entries * first.element_size() + (1 + classes) * kept)


def _entries(parameters: Parameters, mask: Mask, without: Collection[str] = ()) -> int:
    """How many entries the masked tensors have, but for some."""
    return sum(parameters[name].numel() for name in mask.indices if name not in without)


def _sites(parameters: Parameters, mask: Mask) -> dict[str, Sites]:
    """The masked coordinates of each matrix that is differentiated there alone."""
    shapes = {name: tuple(parameters[name].shape) for name in mask.indices}
    return {
        name: Sites(index, (shapes[name][0], shapes[name][1]))
        for name, index in mask.indices.items()
        if worthwhile(shapes[name], len(index))
    }


def _at_sites(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask, sites: Mapping[str, Sites], memory_budget: int | None
) -> Iterator[Tensor]:
    """The Jacobians (B, C, k), with the gradients of matrices that have ``sites`` at these alone.

    Every example has masked tensors of its own, to be differentiated by. They are views of the same tensors, and linear layers
    and embeddings read one matrix for all examples.
    """
    still = {name: tensor.detach() for name, tensor in parameters.items()}
    at_once = _jacobians_at_once(problem, parameters, examples, mask, memory_budget, sites)

    def one(mine: Parameters, tuned: Parameters, inputs: Parameters) -> Tensor:
        places = {id(mine[name]): (tensor, sites[name]) for name, tensor in tuned.items()}
        with Products(places, {id(mine[name]): still[name] for name in sites}):
            return problem.logits({**still, **mine}, {name: x.unsqueeze(0) for name, x in inputs.items()})[0]

    for start in range(0, len(examples), at_once):
        some = examples.take(slice(start, start + at_once))
        whole = torch.empty(0)
        for index, block in some.blocks():
            each = {name: still[name].expand(len(block), *still[name].shape).requires_grad_() for name in mask.indices}
            tuned = {name: each[name].new_zeros(len(block), len(mine.index)).requires_grad_() for name, mine in sites.items()}
            logits = each_row(one, each, tuned, dict(block.inputs), batched=problem.batched)
            jacobian = torch.empty(*logits.shape, mask.count, dtype=logits.dtype)
            for c, f in enumerate(logits.unbind(1)):
                found = torch.autograd.grad(f.sum(), [*each.values(), *tuned.values()], retain_graph=True, allow_unused=True)
                dense, sited = dict(zip(each, found, strict=False)), dict(zip(tuned, found[len(each) :], strict=True))
                gather(mask.slices(), dense, sited, jacobian[:, c])
            whole = whole if len(whole) else torch.empty(len(some), *jacobian.shape[1:], dtype=logits.dtype)
            whole[index] = jacobian
        yield whole


def _one_by_one(
    problem: Problem, parameters: Parameters, examples: Examples, mask: Mask, of: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    """For each example the gradients (c, k) of the c numbers that ``of`` makes of its logits (1, C) and label (1,).

    Each takes a backward pass.
    """
    if len(examples) == 0:
        raise UsageError("derivatives of no examples: give at least 1")
    leaves = {name: tensor.detach().requires_grad_(name in mask.indices) for name, tensor in parameters.items()}
    wanted = {name: leaves[name] for name in mask.indices}
    for i in range(len(examples)):
        rows, one = [], examples.take(slice(i, i + 1))
        for number in of(problem.logits(leaves, one.inputs), one.labels):
            slopes = torch.autograd.grad(number, list(wanted.values()), retain_graph=True, materialize_grads=True)
            rows.append(mask.gather(dict(zip(wanted, slopes, strict=True))))
        yield torch.stack(rows)


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
