"""The form of the attention mask that a model is called with.

transformers makes the masks of its layers from one ``attention_mask`` (B, T). The code that does so looks at the mask's values,
and so it cannot always run under ``torch.func.vmap``. A mask that is already in the layers' form passes through that code as it
is. But models differ in the form that they accept, and some then ignore their own rule: a causal model may look ahead, or one
with sliding windows beyond its window. So :func:`stability.problems.pretrained.agreeing` tries each form and compares with the
plain model.
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
        additive: if true, the mask becomes a float tensor (B, 1, T, T) that is 0 where query t may see key s and the least finite
            number elsewhere. If false, it stays (B, T).
        causal: with ``additive``, query t may see only keys s ≤ t.
        window: with ``additive``, the model gets a dictionary with one mask for each kind of layer. In layers of kind
            ``sliding_attention`` query t may see only keys with |s − t| ≤ window. None: all layers get the same mask.

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
        """Put the attention mask into this form.

        Args:
            inputs: the inputs by name; ``attention_mask`` (B, T) is 1 for tokens and 0 for padding. It may be missing.
            dtype: the type of the model's parameters.

        Returns:
            The inputs that the model is called with; all but ``attention_mask`` are as they were.
        """
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
