"""Which texts of a batch a model gets together, where it cannot take them all with padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grouping"]


@dataclass(frozen=True)
class Grouping:
    """A batch of texts is divided into groups, and the model is called once for each.

    Some models let padding change the logits, for they take no attention mask or read the last place. The classifiers of
    encoder–decoders want equally many end tokens in every text that they get together. Dropout then draws for each group, in
    another order where a batch is reversed: the noise floor has the effect of these draws in it.

    Attributes:
        unpadded: whether only texts of one length go together, without padding.
        singly: whether each text goes alone, without padding.
        counted: a token of which texts that go together have equally many; None for none.

    Example:
        >>> inputs = {"input_ids": torch.tensor([[5, 6], [7, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
        >>> Grouping(unpadded=True).call(lambda texts: texts["input_ids"].sum(1, keepdim=True), inputs)
        tensor([[11],
                [ 7]])
    """

    unpadded: bool = False
    singly: bool = False
    counted: int | None = None

    def call(self, model: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of a batch, from one call of the model for each group.

        Args:
            model: from the inputs of some texts to their logits, (b, C).
            inputs: the inputs by name, (B, T) each: ``input_ids``, and ``attention_mask``, which is 0 for padding behind a text.

        Returns:
            The logits (B, C), in the order of the inputs.
        """
        lengths = inputs["attention_mask"].sum(1)
        keys = [torch.zeros_like(lengths)]
        if self.singly:
            keys = [torch.arange(len(lengths), device=lengths.device)]
        elif self.unpadded:
            keys = [lengths]
        if self.counted is not None:
            keys.append((inputs["input_ids"] == self.counted).sum(1))
        kinds, mine = torch.stack(keys, 1).unique(dim=0, return_inverse=True)
        groups = [torch.nonzero(mine == kind).squeeze(1) for kind in range(len(kinds))]
        cut = self.singly or self.unpadded
        if len(groups) == 1 and not cut:
            return model(inputs)
        found = []
        for index in groups:
            longest = int(lengths[index].max()) if cut else None
            found.append(model({name: tensor[index, :longest] for name, tensor in inputs.items()}))
        return torch.cat(found)[torch.cat(groups).argsort()]

    @property
    def note(self) -> str:
        """What a reader should know of it, as the end of a sentence; empty where texts go together."""
        if self.singly:
            return "; each text runs alone, for its logits would change with the other texts of a batch"
        return "; texts of different lengths run apart, for padding would change their logits" if self.unpadded else ""
