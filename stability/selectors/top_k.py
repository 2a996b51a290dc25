"""From scores to the coordinates of highest score: one exact top-k, shared by every method that ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from stability.checks import check_choice, check_sparsity
from stability.errors import UsageError
from stability.masks import Mask, Parameters

__all__ = ["Scope", "count_for", "counts_for", "top_k", "top_k_of_rows"]

Scope: TypeAlias = Literal["global", "tensor"]
"""Where coordinates compete: over all parameters at once (``global``, as in the theory of Fu et al. 2023), or within each tensor
(``tensor``, as in their code)."""


def count_for(sparsity: float, m: int) -> int:
    """⌊pm⌋, the number of coordinates that may change.

    A p that is a rounded number counts as the number before rounding: 0.29 of 100 is 29, and k/m of m is k, although both
    products are a little less in floating point.

    Args:
        sparsity: p ∈ (0, 1], the fraction of coordinates that *may* change: a small p means very sparse.
        m: the number of coordinates to choose from.

    Returns:
        k ≥ 1.

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
    """The mask of the coordinates of highest score, exactly ⌊pm⌋ of them; among equal scores those that come first.

    Args:
        scores: one finite score a coordinate, named and shaped as the parameters.
        sparsity: p ∈ (0, 1], the fraction of coordinates that is chosen.
        scope: ``global`` takes ⌊pm⌋ over all tensors at once; ``tensor`` takes ⌊p·m_t⌋ within each tensor t of m_t coordinates.

    Returns:
        The mask over the m coordinates of ``scores``.

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
    """The coordinates of highest score in each row, exactly ⌊pm⌋ of them; among equal scores those that come first.

    Args:
        scores: (r, m), in each row the tensors' scores one after the other. A coordinate whose score is NaN comes last.
        sizes: the number of coordinates of each tensor; together they are m.
        sparsity: p ∈ (0, 1], the fraction of coordinates that is chosen.
        scope: ``global`` takes ⌊pm⌋ over all tensors at once; ``tensor`` takes ⌊p·m_t⌋ within each tensor t of m_t coordinates.

    Returns:
        Bool, (r, m): true where a coordinate is chosen.

    Raises:
        UsageError: p outside (0, 1], nothing selected, or an unknown scope.

    Example:
        >>> top_k_of_rows(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), [2, 2], 0.5, "tensor")
        tensor([[ True, False,  True, False]])
    """
    counts = counts_for(sparsity, sizes, scope)
    if scores.is_floating_point() and (scores.device.type != "cpu" or bool(torch.isnan(scores).any())):
        scores = torch.where(torch.isnan(scores), -torch.inf, scores)
    parts = scores.split(list(sizes), dim=1) if scope == "tensor" else [scores]
    return torch.cat([_largest(part, count) for part, count in zip(parts, counts, strict=True)], dim=1)


def counts_for(sparsity: float, sizes: Sequence[int], scope: Scope) -> list[int]:
    """The number of coordinates to choose: ⌊pm⌋ over all tensors, or ⌊p·m_t⌋ within each tensor t of m_t coordinates.

    Args:
        sparsity: p ∈ (0, 1], the fraction of coordinates that is chosen.
        sizes: the number of coordinates of each tensor; together they are m.
        scope: ``global`` for one number over all tensors, ``tensor`` for a number for each.

    Returns:
        One number, or one for each tensor, in the order of ``sizes``.

    Raises:
        UsageError: p outside (0, 1], nothing selected, or an unknown scope.

    Example:
        >>> counts_for(0.5, [3, 3], "global"), counts_for(0.5, [3, 3], "tensor")
        ([3], [1, 1])
    """
    check_choice(("global", "tensor"), scope=scope)
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
    """The k largest of each row, bool (r, m): all above the k-th value, and of those equal to it the first."""
    if k in (0, scores.shape[1]):
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    threshold = torch.topk(scores, k, dim=1, sorted=False).values.amin(1, keepdim=True)
    chosen = scores >= threshold
    if scores.device.type == "cpu" and int(chosen.count_nonzero()) == k * len(scores):  # no ties; a GPU would be waited for
        return chosen
    ties = scores == threshold
    above = chosen & ~ties
    return above | (ties & (ties.cumsum(1, dtype=torch.int32) <= k - above.sum(1, keepdim=True)))
