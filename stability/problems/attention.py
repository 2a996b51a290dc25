"""How a model is told which tokens it may attend to: the form of the mask that it is called with.

Transformers makes the masks of its layers from one ``attention_mask`` (B, T), in code that looks at the mask's values and
therefore cannot always run under ``torch.func.vmap``. A mask that is made already passes through that code untouched; but
which form a model then takes, and whether it still means the same (a causal model, or one with sliding windows, ignores
its own rule), differs. So :mod:`stability.problems.pretrained` chooses by comparison with the plain model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """The form in which ``attention_mask`` reaches the model.

    Attributes:
        additive: as a float (B, 1, T, T): 0 where query t may see key s, the least finite number where not; otherwise as it
            is, (B, T).
        causal: with ``additive``: only s ≤ t may be seen.
        window: with ``additive``: one such mask for each kind of layer, as a dictionary; layers of kind
            ``sliding_attention`` see only |s − t| ≤ window.

    Example:
        >>> mask = {"attention_mask": torch.tensor([[1, 1, 0]])}
        >>> Attention(additive=True, causal=True).prepare(mask, torch.float32)["attention_mask"][0, 0] == 0
        tensor([[ True, False, False],
                [ True,  True, False],
                [ True,  True, False]])
    """

    additive: bool = False
    causal: bool = False
    window: int | None = None

    def prepare(self, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """What the model is called with; ``dtype`` is that of its parameters."""
        prepared: dict[str, Any] = dict(inputs)
        mask = inputs.get("attention_mask")
        if not self.additive or mask is None:
            return prepared
        count = mask.shape[1]
        visible = (mask > 0)[:, None, None, :].expand(-1, 1, count, -1)
        place = torch.arange(count, device=mask.device)
        after = place[None, :] - place[:, None]  # s − t
        if self.causal:
            visible = visible & (after <= 0)
        if self.window is None:
            prepared["attention_mask"] = _additive(visible, dtype)
        else:
            near = visible & (after.abs() <= self.window)
            prepared["attention_mask"] = {
                "full_attention": _additive(visible, dtype),
                "sliding_attention": _additive(near, dtype),
            }
        return prepared


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    # The least finite number and not −∞: a row without any visible key must not become NaN; nor where a model takes its
    # softmax in single precision whatever the rest is in.
    least = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, least)
