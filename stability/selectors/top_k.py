"""From scores to the coordinates of highest score: one exact top-k, shared by every method that ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stability.errors import UsageError
from stability.masks import Mask, Parameters
from stability.selectors.scope import AnyScope, Scope, Section, Shapes

__all__ = ["regrown", "top_k", "top_k_of_rows"]


def top_k(scores: Parameters, sparsity: float, scope: AnyScope = "global") -> Mask:
    """The mask of the coordinates of highest score, exactly ⌊pm⌋ of them; among equal scores those that come first.

    Args:
        scores: one finite score a coordinate, named and shaped as the parameters.
        sparsity: p ∈ (0, 1], the fraction of coordinates that is chosen.
        scope: which coordinates compete: ``global`` takes ⌊pm⌋ over all tensors at once; ``tensor`` takes ⌊p·m_t⌋ within each
            tensor t of m_t coordinates; for more see :class:`Scope`.

    Returns:
        The mask over the m coordinates of ``scores``.

    Raises:
        UsageError: p outside (0, 1], nothing selected, a scope that is unknown or does not fit, or scores that are not finite.

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
    chosen = top_k_of_rows(flat.unsqueeze(0), shapes, sparsity, scope)[0]
    return Mask.at(shapes, torch.nonzero(chosen).squeeze(1))


def top_k_of_rows(scores: Tensor, shapes: Shapes, sparsity: float, scope: AnyScope = "global") -> Tensor:
    """The coordinates of highest score in each row, exactly ⌊pm⌋ of them; among equal scores those that come first.

    Args:
        scores: (r, m), in each row the tensors' scores one after the other. A coordinate whose score is NaN comes last.
        shapes: the shape of each tensor, by name; their sizes add up to m.
        sparsity: p ∈ (0, 1], the fraction of coordinates that is chosen.
        scope: which coordinates compete: ``global`` takes ⌊pm⌋ over all tensors at once; ``tensor`` takes ⌊p·m_t⌋ within each
            tensor t of m_t coordinates; for more see :class:`Scope`.

    Returns:
        Bool, (r, m): true where a coordinate is chosen.

    Raises:
        UsageError: p outside (0, 1], nothing selected, or a scope that is unknown or does not fit.

    Example:
        >>> top_k_of_rows(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), {"a": (2,), "b": (2,)}, 0.5, "tensor")
        tensor([[ True, False,  True, False]])
    """
    scope = Scope.of(scope)
    if scores.is_floating_point() and (scores.device.type != "cpu" or bool(torch.isnan(scores).any())):
        scores = torch.where(torch.isnan(scores), -torch.inf, scores)
    sections = scope.sections(shapes, sparsity)
    return _by_section([scores], shapes, sections, lambda one, *how: _of_section(one[0], *how), scope)


def regrown(
    mask: Tensor, stay: Tensor, grow: Tensor, shapes: Shapes, *, sparsity: float, scope: AnyScope = "global", share: float
) -> Tensor:
    """A mask after an exchange of coordinates: some that moved least leave, and as many enter.

    In each group of c chosen coordinates the c − ⌊share · c⌋ of highest ``stay`` remain. The rest of the places goes to the highest
    ``grow`` among all others, those that would have left among them.

    Args:
        mask: bool (r, m), as :func:`top_k_of_rows` gives it for this p and scope.
        stay: (r, m), the scores by which coordinates of the mask remain.
        grow: (r, m), the scores by which others enter.
        shapes: the shape of each tensor, by name; their sizes add up to m.
        sparsity: p ∈ (0, 1], the fraction of coordinates that is chosen.
        scope: which coordinates compete. Its unit is the coordinate.
        share: of the chosen coordinates that is exchanged, in [0, 1].

    Returns:
        Bool, (r, m), with as many coordinates in each group as before.

    Raises:
        UsageError: p outside (0, 1], nothing selected, or a scope that is unknown or does not fit.

    Example:
        >>> mask, moved = torch.tensor([[True, True, False, False]]), torch.tensor([[2.0, 1.0, 0.0, 0.0]])
        >>> regrown(mask, moved, torch.tensor([[0.0, 1.0, 2.0, 3.0]]), {"a": (4,)}, sparsity=0.5, share=0.5)
        tensor([[ True, False, False,  True]])
    """
    scope = Scope.of(scope)

    def exchanged(parts: Sequence[Tensor], section: Section, _: Tensor | None) -> Tensor:
        old, moved, grown = (part.reshape(len(part) * section.rows, -1) for part in parts)
        leaving = math.floor(share * section.count)
        remaining = _largest(torch.where(old, moved, -torch.inf), section.count - leaving)
        return (remaining | _largest(torch.where(remaining, -torch.inf, grown), leaving)).reshape(parts[0].shape)

    return _by_section([mask, stay, grow], shapes, scope.sections(shapes, sparsity), exchanged, scope)


def _by_section(
    scores: Sequence[Tensor],
    shapes: Shapes,
    sections: Sequence[Section],
    choose: Callable[[Sequence[Tensor], Section, Tensor | None], Tensor],
    scope: Scope,
) -> Tensor:
    """What is chosen, bool (r, m), where each section is chosen from its own part of the scores, each (r, m)."""
    if len(sections) == 1 and len(sections[0].tensors) == len(shapes):
        return choose(scores, sections[0], scope.units(shapes))
    names, sizes = list(shapes), [math.prod(shape) for shape in shapes.values()]
    parts = [one.split(sizes, dim=1) for one in scores]
    chosen = [torch.zeros_like(part, dtype=torch.bool) for part in parts[0]]
    for section in sections:
        units = scope.units({names[place]: shapes[names[place]] for place in section.tensors})
        mine = [[one[place] for place in section.tensors] for one in parts]
        found = choose([some[0] if len(some) == 1 else torch.cat(some, dim=1) for some in mine], section, units)
        for place, part in zip(section.tensors, found.split([sizes[place] for place in section.tensors], dim=1), strict=True):
            chosen[place] = part
    return torch.cat(chosen, dim=1)


def _of_section(scores: Tensor, section: Section, units: Tensor | None) -> Tensor:
    """What is chosen of a section's coordinates, bool (r, ·), by their scores (r, ·); ``units`` are chosen as a whole, by means."""
    if units is None:
        return _largest(scores.reshape(len(scores) * section.rows, -1), section.count).reshape(scores.shape)
    units, sizes = units.to(scores.device), units.bincount().to(scores.device)
    sums = torch.zeros(len(scores), len(sizes), dtype=torch.float64, device=scores.device).index_add_(1, units, scores.double())
    order = (sums / sizes).argsort(dim=1, descending=True, stable=True)
    fitting = sizes[order].cumsum(1) <= section.count
    return torch.zeros_like(fitting).scatter_(1, order, fitting)[:, units]


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
