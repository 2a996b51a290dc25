"""Scores → the coordinates of highest score: one exact top-k, shared by every method that ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from stability.checks import check_sparsity
from stability.errors import UsageError
from stability.masks import Mask, Parameters

__all__ = ["Scope", "count_for", "counts_for", "top_k", "top_k_of_rows"]

Scope: TypeAlias = Literal["global", "tensor"]
"""Where a selection competes: over all parameters at once (the paper's theory), or within each tensor (its code)."""


def count_for(sparsity: float, m: int) -> int:
    """⌊pm⌋, the number of coordinates that may change; p is taken to mean the number that rounding it came from.

    So 0.29 of 100 is 29, and k/m of m is k, though both products are a little less in floating point.

    Args:
        sparsity: p ∈ (0, 1], the fraction that *may* change: small p means very sparse.
        m: number of coordinates to choose from.

    Raises:
        UsageError: p outside (0, 1], or ⌊pm⌋ = 0.

    Example:
        >>> count_for(0.29, 100)
        29
    """
    check_sparsity(sparsity)
    k = _floor(sparsity, m)
    if k == 0:
        raise UsageError(
            f"sparsity p = {sparsity} selects nothing of m = {m} coordinates (pm = {sparsity * m:.3g} < 1): use p ≥ {1 / m:.3g}"
        )
    return k


def top_k(scores: Parameters, sparsity: float, scope: Scope = "global") -> Mask:
    """The coordinates of highest score, exactly ⌊pm⌋ of them; among equal scores those that come first.

    Args:
        scores: one finite score a coordinate, in the shapes of the parameters.
        sparsity: p ∈ (0, 1].
        scope: ``global`` takes ⌊pm⌋ over all tensors at once; ``tensor`` takes ⌊p·m_t⌋ within each tensor t.

    Raises:
        UsageError: p outside (0, 1], nothing selected, an unknown scope, or scores that are not finite.

    Example:
        >>> top_k({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([3.0, 2.0])}, 0.5).indices
        {'a': tensor([0]), 'b': tensor([0])}
    """
    for name, score in scores.items():
        bad = int((~torch.isfinite(score)).sum())
        if bad:
            raise UsageError(f"scores of {name!r}: {bad} of {score.numel()} are not finite, so they have no order")
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    flat = torch.cat([score.detach().reshape(-1).cpu() for score in scores.values()])
    chosen = top_k_of_rows(flat.unsqueeze(0), [score.numel() for score in scores.values()], sparsity, scope)[0]
    return Mask.at(shapes, torch.nonzero(chosen).squeeze(1))


def top_k_of_rows(scores: Tensor, sizes: Sequence[int], sparsity: float, scope: Scope = "global") -> Tensor:
    """:func:`top_k` of each row by itself: bool (r, m). Where a score is NaN the coordinate comes last.

    Args:
        scores: (r, m), the tensors' scores one after the other.
        sizes: how many coordinates each tensor has; they add up to m.
        sparsity: p ∈ (0, 1].
        scope: as for :func:`top_k`.

    Raises:
        UsageError: p outside (0, 1], nothing selected, or an unknown scope.

    Example:
        >>> top_k_of_rows(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), [2, 2], 0.5, "tensor")
        tensor([[ True, False,  True, False]])
    """
    counts = counts_for(sparsity, sizes, scope)
    if scores.is_floating_point():
        scores = torch.where(torch.isnan(scores), -torch.inf, scores)
    parts = scores.split(list(sizes), dim=1) if scope == "tensor" else [scores]
    return torch.cat([_largest(part, count) for part, count in zip(parts, counts, strict=True)], dim=1)


def counts_for(sparsity: float, sizes: Sequence[int], scope: Scope) -> list[int]:
    """How many coordinates each competition selects: ⌊pm⌋ in the only one, or ⌊p·m_t⌋ within each tensor t.

    Raises:
        UsageError: as for :func:`top_k_of_rows`.

    Example:
        >>> counts_for(0.5, [3, 3], "global"), counts_for(0.5, [3, 3], "tensor")
        ([3], [1, 1])
    """
    if scope not in ("global", "tensor"):
        raise UsageError(f"unknown scope {scope!r}: use 'global' or 'tensor'")
    k = count_for(sparsity, sum(sizes))
    if scope == "global":
        return [k]
    counts = [_floor(sparsity, size) for size in sizes]
    if not any(counts):
        raise UsageError(f"sparsity p = {sparsity} selects nothing within any single tensor: use a larger p or scope='global'")
    return counts


def _floor(sparsity: float, m: int) -> int:
    return math.floor(sparsity * m * (1 + 2**-50))


def _largest(scores: Tensor, k: int) -> Tensor:
    """Of each row the k largest, ties by index: above the k-th value all, at it the first ones. Bool (r, m)."""
    if k in (0, scores.shape[1]):
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    threshold = torch.topk(scores, k, dim=1, sorted=True).values[:, -1:]
    above, ties = scores > threshold, scores == threshold
    return above | (ties & (ties.cumsum(1, dtype=torch.int32) <= k - above.sum(1, keepdim=True)))
