"""Linear layers and embeddings of many replicas or examples at once, with gradients at the masked coordinates alone.

A dense gradient of a weight costs a third of a training step, and of a sparse mask almost all of it is thrown away. Here the
gradient of a masked weight is Σ_n g_n[row] x_n[column] at its masked coordinates only; and single-precision products on a
CPU with AVX-512 go through oneDNN, where torch's default, MKL, keeps to AVX2 on processors that are not Intel's (half the
rate on an AMD EPYC). Neither changes what is computed, but for rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, pad
from torch.overrides import TorchFunctionMode

__all__ = ["Products", "Sites", "masked_gradients", "pays", "product", "worthwhile"]

_LARGE_PRODUCT = 1 << 21  # multiplications below which oneDNN's calls cost more than they save
_LARGE_MATRIX = 1 << 14  # entries below which a dense gradient is as cheap
_SAMPLED = 1 / 20  # density up to which, on a CPU, sampled products beat a dense one


def worthwhile(shape: tuple[int, ...], count: int) -> bool:
    """Whether a tensor is a matrix that gains from :class:`Sites`.

    Args:
        shape: of the tensor.
        count: how many of its coordinates are masked.

    Example:
        >>> worthwhile((384, 384), 1000), worthwhile((384, 384), 384**2), worthwhile((16, 16), 3)
        (True, False, False)
    """
    return len(shape) == 2 and shape[0] * shape[1] >= _LARGE_MATRIX and count < shape[0] * shape[1]


def pays(tensors: Iterable[Tensor]) -> bool:
    """Whether any of a model's tensors is a matrix so large that :class:`Products` is worth its call in each layer.

    Args:
        tensors: the model's parameters.

    Example:
        >>> pays([torch.zeros(32, 32)]), pays([torch.zeros(384, 384)])
        (False, True)
    """
    return any(tensor.ndim == 2 and tensor.numel() >= _LARGE_MATRIX for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Sites:
    """The masked coordinates of one matrix; its gradient is wanted there alone.

    Attributes:
        index: flat indices of the coordinates, ascending, int64 (k,).
        shape: of the matrix.

    Example:
        >>> sites = Sites(torch.tensor([1, 5]), (2, 3))
        >>> sites.products(torch.tensor([[[2.0, 1.0]]]), torch.tensor([[[3.0, 4.0, 5.0]]]))
        tensor([[8., 5.]])
    """

    index: Tensor
    shape: tuple[int, int]

    @cached_property
    def rows(self) -> Tensor:
        return self.index // self.shape[1]

    @cached_property
    def columns(self) -> Tensor:
        return self.index % self.shape[1]

    @cached_property
    def _pattern(self) -> Tensor:
        ends = torch.bincount(self.rows, minlength=self.shape[0]).cumsum(0)
        return _rows_of_zeros(pad(ends, (1, 0)), self.columns, self.shape)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """(leftᵀ right) at the sites, (r, k): of (r, N, rows) and (r, N, columns), summed over N."""
        if (
            left.device.type == "cpu"
            and left.dtype == torch.float32
            and len(self.index) <= _SAMPLED * self.shape[0] * self.shape[1]
        ):
            rows = [
                torch.sparse.sampled_addmm(self._pattern, mine.mT.contiguous(), other.mT.contiguous().mT, beta=0.0).values()
                for mine, other in zip(left, right, strict=True)
            ]
            return torch.stack(rows)
        if left.device.type == "cpu":  # one after the other, so that one product is in memory and not r
            pairs = zip(left, right, strict=True)
            return torch.stack([product(mine.mT, other.mT).flatten().index_select(0, self.index) for mine, other in pairs])
        return product(left.mT, right.mT).flatten(1).index_select(1, self.index)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, by oneDNN where that is faster.

    Args:
        x: (…, in), or (r, N, in) where each of r replicas has a matrix of its own.
        weight: (out, in), or (r, out, in).
        bias: (out,), or (r, out); None for none.

    Example:
        >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
        tensor([[3.5000]])
    """
    if weight.ndim == 2:
        if x[..., 0].numel() * weight.numel() < _LARGE_PRODUCT or not _onednn(x, weight):
            return linear(x, weight, bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    if len(weight) == 1 or (x.shape[1] * weight[0].numel() >= _LARGE_PRODUCT and _onednn(x, weight)):
        none = [None] * len(weight) if bias is None else bias
        rows = [product(*each) for each in zip(x, weight, none, strict=True)]
        return torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def masked_gradients(
    number: Tensor,
    places: Iterable[tuple[str, Tensor | None, slice]],
    tensors: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    result: Tensor,
    *,
    retain_graph: bool = False,
) -> Tensor:
    """The gradient of a sum over r rows at the K masked coordinates of each, from whole tensors and from sites.

    Args:
        number: the sum.
        places: each masked tensor's name, the flat indices of its masked coordinates, and their place among the K. For all of a
            tensor's coordinates there may be None.
        tensors: by the name, the masked tensor of each row (r, *shape).
        tuned: by the name, what is given the gradient at the sites (r, k), of tensors that have sites.
        result: (r, K), in which the gradients are written.
        retain_graph: whether another number of the same graph follows.

    Returns:
        ``result``.

    Example:
        >>> w = torch.tensor([[2.0, 3.0]], requires_grad=True)
        >>> masked_gradients(w.square().sum(), [("w", torch.tensor([1]), slice(0, 1))], {"w": w}, {}, torch.empty(1, 1))
        tensor([[6.]])
    """
    found = torch.autograd.grad(number, [*tensors.values(), *tuned.values()], retain_graph=retain_graph, allow_unused=True)
    dense, sited = dict(zip(tensors, found, strict=False)), dict(zip(tuned, found[len(tensors) :], strict=True))
    for name, index, where in places:
        whole, own = dense[name], sited.get(name)
        mine = result[:, where]
        if whole is None:
            mine.copy_(own) if own is not None else mine.zero_()
            continue
        flat = whole.flatten(1)
        mine.copy_(flat if index is None or len(index) == flat.shape[1] else flat.index_select(1, index.to(flat.device)))
        if own is not None:
            mine.add_(own)
    return result


class Products(TorchFunctionMode):
    """While it is entered, inside ``torch.func.vmap`` over replicas or examples, ``linear`` and ``embedding`` are this module's.

    Args:
        tuned: of each weight with sites, under its ``id``, the tensor (k,) that is given the gradient at the sites, and these.
            The weight itself is then a constant in these two functions; whatever else it enters still reaches it.
        shared: under the same ``id`` the matrix that stands for the weight in these two functions, if all rows have the same.
    """

    def __init__(self, tuned: Mapping[int, tuple[Tensor, Sites]], shared: Mapping[int, Tensor] | None = None) -> None:
        super().__init__()
        self._tuned, self._shared = tuned, shared or {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is linear:
            return self._linear(*args, **kwargs)
        if func is embedding and len(args) > 1 and id(args[1]) in self._tuned:
            return self._embedding(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
        tuned, sites = self._tuned.get(id(weight), (None, None))
        if sites is None and not (_AVX512 and input.device.type == "cpu" and weight.numel() >= _LARGE_MATRIX):
            return linear(input, weight, bias)
        matrix = weight if sites is None else self._shared.get(id(weight), weight).detach()
        if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64:  # which autocast leaves alone, too
            dtype = torch.get_autocast_dtype(input.device.type)
            input, matrix, bias = input.to(dtype), matrix.to(dtype), None if bias is None else bias.to(dtype)  # noqa: A001
        # A matrix in, a matrix out: of more dimensions the product would be a view, which no layer behind it may change in place.
        rows = input.reshape(-1, input.shape[-1])
        found = _apply(_Linear, rows, matrix, bias, tuned, sites)
        return found.reshape(*input.shape[:-1], weight.shape[0])

    def _embedding(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        if max_norm is not None or scale_grad_by_freq or sparse:
            return embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        tuned, sites = self._tuned[id(weight)]
        matrix = self._shared.get(id(weight), weight).detach()
        found = _apply(_Embedding, input.reshape(-1), matrix, tuned, sites, padding_idx)
        return found.reshape(*input.shape, weight.shape[-1])


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, (N, out): of one matrix (out, in), or of (r, out, in) with x (r, N, in) and b (r, out).

    One matrix may also have tuned values (r, k), of which each row is given the gradient of its own x in (r, N, in).
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, tuned: Tensor | None, sites: Sites | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, tuned, ctx.sites = inputs
        ctx.dtype = None if tuned is None else tuned.dtype
        ctx.apart = tuned is not None and tuned.ndim == 2 and weight.ndim == 2
        ctx.save_for_backward(x if ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        single = weight.ndim == 2
        by_weight = by_tuned = None
        if wanted[1] or wanted[3]:
            left, right = (t.flatten(0, -2).unsqueeze(0) if single and not ctx.apart else t for t in (gradient, x))
            if wanted[1]:
                by_weight = product(left.mT, right.mT)
                by_weight = by_weight[0] if single else by_weight
            if wanted[3]:
                by_tuned = ctx.sites.products(left, right).to(ctx.dtype)
                by_tuned = by_tuned if ctx.apart or not single else by_tuned[0]
        by_bias = None
        if wanted[2]:
            by_bias = gradient.flatten(0, -2).sum(0) if single else gradient.sum(1)
        by_x = product(gradient, weight.mT) if wanted[0] else None
        return by_x, by_weight, by_bias, by_tuned, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tuned: Tensor | None,
        sites: Sites | None,
    ) -> tuple[Tensor, int]:
        r: int = info.batch_size
        if in_dims[1] is None:  # the rows of all replicas are rows of one product
            x = _first(x, in_dims[0], r)
            mine = None if bias is None or in_dims[2] is None else _first(bias, in_dims[2], r)
            rows, tuned = (x.reshape(-1, x.shape[-1]), None) if tuned is None else (x, _first(tuned, in_dims[3], r))
            found = _apply(_Linear, rows, weight, bias if mine is None else None, tuned, sites)
            found = found.reshape(*x.shape[:-1], weight.shape[0])
            return found if mine is None else found + mine.unsqueeze(1), 0
        x, weight = _first(x, in_dims[0], r), _first(weight, in_dims[1], r)
        bias = None if bias is None else _first(bias, in_dims[2], r)
        tuned = None if tuned is None else _first(tuned, in_dims[3], r)
        if r == 1:
            bias, tuned = (None if t is None else t.squeeze(0) for t in (bias, tuned))
            return _apply(_Linear, x.squeeze(0), weight.squeeze(0), bias, tuned, sites).unsqueeze(0), 0
        return _apply(_Linear, x, weight, bias, tuned, sites), 0


class _Embedding(torch.autograd.Function):
    """W[ids], (N, d) of N ids: of one matrix (V, d), or (r, N, d) of (r, V, d)."""

    @staticmethod
    def forward(ids: Tensor, weight: Tensor, tuned: Tensor, sites: Sites, padding_idx: int | None) -> Tensor:
        taken: Tensor = weight[..., ids, :]
        return taken

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ids, weight, tuned, ctx.sites, ctx.padding_idx = inputs
        ctx.single, ctx.dtype = weight.ndim == 2, tuned.dtype
        ctx.save_for_backward(ids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ids, sites = ctx.saved_tensors[0].long(), ctx.sites
        gradient = gradient.unsqueeze(0) if ctx.single else gradient
        each = gradient.reshape(len(gradient), len(ids), -1)
        if ctx.padding_idx is not None:
            each = each * (ids != ctx.padding_idx).to(each.dtype).unsqueeze(1)
        # Each token that occurs has one place, that of one of its occurrences, where all of them are summed.
        places = torch.full((sites.shape[0],), -1, device=ids.device).index_copy_(0, ids, torch.arange(len(ids), device=ids.device))
        sums = torch.zeros_like(each).index_add_(1, places[ids], each)
        at = places[sites.rows]
        found = (sums[:, at.clamp_min(0), sites.columns] * (at >= 0)).to(ctx.dtype)
        return None, None, found[0] if ctx.single else found, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        ids: Tensor,
        weight: Tensor,
        tuned: Tensor,
        sites: Sites,
        padding_idx: int | None,
    ) -> tuple[Tensor, int]:
        r: int = info.batch_size
        weight, tuned = _first(weight, in_dims[1], r), _first(tuned, in_dims[2], r)
        if in_dims[0] is None:
            return _apply(_Embedding, ids, weight, tuned, sites, padding_idx), 0
        each = zip(_first(ids, in_dims[0], r), weight, tuned, strict=True)  # each row has tokens of its own
        return torch.stack([_apply(_Embedding, *mine, sites, padding_idx) for mine in each]), 0


def _apply(function: type[torch.autograd.Function], *operands: object) -> Tensor:
    result: Tensor = function.apply(*operands)
    return result


def _first(tensor: Tensor, dim: int | None, r: int) -> Tensor:
    """With the replicas' axis in front; what they share, without a copy."""
    return tensor.expand(r, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _rows_of_zeros(start: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix, for its places alone."""
    return torch.sparse_csr_tensor(start, columns, torch.zeros(len(columns)), shape, check_invariants=True)


with warnings.catch_warnings():  # torch says once in a process that these are in beta: here, where no other thread runs yet
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    _rows_of_zeros(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), (1, 1))


_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(x: Tensor, weight: Tensor) -> bool:
    return _AVX512 and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
