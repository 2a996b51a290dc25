"""Adapter: bottlenecks behind the blocks of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from stability.checks import check_choice, check_whole
from stability.errors import UsageError
from stability.selectors.inserted import Inserted
from stability.selectors.places import adapter_places, named

__all__ = ["Adapter"]


@dataclass(frozen=True)
class Adapter(Inserted):
    """Bottlenecks x + U · GELU(D x + d) + u after the attention and feed-forward blocks of every layer, inside their residual
    branches (Houlsby et al. 2019, section 2.1). With ``places="feed_forward"`` they are behind the feed-forward block alone
    (Pfeiffer et al. 2021).

    U = 0 and u = 0 at the start, so that the first outputs are the pretrained model's. D and d start as torch's linear layers
    do. Only the bottlenecks and the new head are trained: k = 2 · width · features + width + features for each bottleneck. A
    bottleneck behind a layer that the model uses several times, as ALBERT does, is one bottleneck and counts once.

    Attributes:
        width: the number of units in each bottleneck.
        places: ``both`` blocks, or ``feed_forward`` alone.
        targets: a regular expression that matches the whole names of the layers behind which the bottlenecks go, instead of
            ``places``; by default they are found by the names that transformers gives them.

    Raises:
        UsageError: a width below 1, unknown places, or places beside targets; on selecting: the model has no such layers, or is
            no torch module.

    Example:
        >>> from stability.problems import load
        >>> Adapter(width=4).select(load("digits"), seed=0)
        Mask(k=1752, m=28184)
    """

    width: int = 8
    places: Literal["both", "feed_forward"] = "both"
    targets: str | None = None

    name: ClassVar[str] = "adapter"

    def __post_init__(self) -> None:
        check_whole(1, width=self.width)
        check_choice(("both", "feed_forward"), places=self.places)
        if self.targets is not None and self.places != "both":
            raise UsageError(f"adapter: targets = {self.targets!r} says where the bottlenecks go: leave places {self.places!r} out")

    def settings(self) -> dict[str, Any]:
        """What defines the selector. Without ``targets`` it is what it was before there were any."""
        return {name: value for name, value in super().settings().items() if name != "targets" or value is not None}

    def insert(self, module: nn.Module) -> nn.Module:
        if self.targets is not None:
            found = named(self.targets, module)
        else:
            found = adapter_places(module, ["feed-forward"] if self.places == "feed_forward" else ["attention", "feed-forward"])
        for name in found:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, _Bottleneck(name, module.get_submodule(name), self.width))
        return module


class _Bottleneck(nn.Module):
    """A layer with a bottleneck behind it."""

    def __init__(self, name: str, base_layer: Any, width: int) -> None:
        super().__init__()
        bias = getattr(base_layer, "bias", None)
        features = bias.numel() if isinstance(bias, Tensor) else getattr(base_layer, "out_features", None)
        if not isinstance(features, int):
            raise UsageError(f"adapter: {name} is a {type(base_layer).__name__}, and a bottleneck goes behind a linear layer only")
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(features, width), nn.Linear(width, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def weight(self) -> Tensor:
        """The layer's own: T5 reads the type of its numbers."""
        weight: Tensor = self.base_layer.weight
        return weight

    def forward(self, *args: Any) -> Tensor:
        x: Tensor = self.base_layer(*args)
        across = isinstance(self.base_layer, nn.Conv1d)  # SqueezeBERT's features stand before the places
        features = x.transpose(1, 2) if across else x
        change = self.up(nn.functional.gelu(self.down(features)))
        result: Tensor = x + (change.transpose(1, 2) if across else change)
        return result
