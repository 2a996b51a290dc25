"""The layers that LoRA and Adapter are for, found by the names that transformers gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from stability.errors import UsageError
from stability.selectors.scope import layer_of

__all__ = ["OTHERS", "adapter_places", "linear_names", "lora_places", "named"]

OTHERS = "full, random, magnitude, sam and childpruning apply to any model"
"""What to use where nothing can be inserted."""

QUERY_AND_VALUE = (
    r".*\.(query|value|q_proj|v_proj|query_proj|value_proj|q_lin|v_lin|c_attn|Wqkv)",
    r".*\.(q_head|v_head|Wq|Wv|query_key_value|qkv_proj|q_b_proj|kv_b_proj)|.*[Aa]tt(n|ention)\.[qv]|.*attention\.self\.in_proj",
)
"""Patterns of whole names of query and value matrices. The first of which a model has any layer is used, so that what a result of
earlier versions was trained with stays what it was."""

_ATTENTION_OUTPUT = (
    r"attention\.output\.dense|(attention|attn|self_attn)\.(o_proj|out_proj|out_lin|c_proj|Wo|o)",
    r"(?<!bottleneck\.)([Aa]ttention|attn)\.(o|post_proj|dense)|attentions\.\d+\.out_lin|self_attn\.output|post_attention\.conv1d",
)
_FEED_FORWARD_OUTPUT = (
    r"(?<!attention)\.output\.dense|(mlp|ffn)\.(fc2|down_proj|c_proj|lin2|Wo)|layers\.\d+\.fc2",
    r"mlp\.(dense_4h_to_h|fc_out)|\.output\.conv1d|ffns\.\d+\.lin2|ffn\.(linear_2|2)|ffn_output|DenseReluDense\.wo|ff\.layer_2",
)
"""Patterns of the ends of names. Those behind the first are used only where the first does not find a layer of each kind in every
layer of the model, for the same reason: an identity names no layers, so that a model's must not become more."""


def lora_places(module: nn.Module) -> str:
    """The pattern of the whole names of a model's query and value matrices. A matrix that holds both, fused, counts as both.

    Args:
        module: the model.

    Raises:
        UsageError: no layer's name is known.

    Example:
        >>> lora_places(nn.ModuleDict({"layer": nn.ModuleDict({"q_head": nn.Linear(2, 2)})}))[:11]
        '.*\\\\.(q_head'
    """
    for pattern in QUERY_AND_VALUE:
        if any(re.fullmatch(pattern, name) for name, _ in module.named_modules()):
            return pattern
    raise _unknown("lora", "beside the query and value matrices", module)


def adapter_places(module: nn.Module, kinds: Sequence[str]) -> list[str]:
    """The names of the layers that end the blocks behind which bottlenecks go.

    Args:
        module: the model.
        kinds: ``attention`` or ``feed-forward`` or both.

    Raises:
        UsageError: no layer of a kind is known by its name, or not in every layer of the model that has one of the other kind.

    Example:
        >>> layers = nn.ModuleList([nn.ModuleDict({"mlp": nn.ModuleDict({"fc2": nn.Linear(2, 2)})}) for _ in range(2)])
        >>> adapter_places(layers, ["feed-forward"])
        ['0.mlp.fc2', '1.mlp.fc2']
    """
    names = [name for name, _ in module.named_modules()]
    patterns = {"attention": _ATTENTION_OUTPUT, "feed-forward": _FEED_FORWARD_OUTPUT}

    def ending(some: Sequence[str]) -> list[str]:
        return [name for name in names if re.search(f"({'|'.join(some)})$", name)]

    def layers(found: list[str]) -> int:
        return len({layer_of(name) for name in found})

    found, every = ({kind: ending(mine[:first]) for kind, mine in patterns.items()} for first in (1, None))
    most = max(map(layers, every.values()))
    if any(layers(found[kind]) < most for kind in kinds):
        found = every
    for kind in kinds:
        if not found[kind]:
            raise _unknown("adapter", f"behind the {kind} blocks", module)
        if layers(found[kind]) < most:  # such as those layers that have no experts
            raise _unknown("adapter", f"behind the {kind} block of every layer", module, f"{layers(found[kind])} of {most}")
    return [name for kind in kinds for name in found[kind]]


def named(pattern: str, module: nn.Module) -> list[str]:
    """The names of the parts of a model that a regular expression matches as a whole.

    Args:
        pattern: the regular expression.
        module: the model.

    Raises:
        UsageError: it is no regular expression, or no name matches.

    Example:
        >>> named(r"[ab]", nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)}))
        ['a']
    """
    try:
        found = [name for name, _ in module.named_modules() if re.fullmatch(pattern, name)]
    except re.error as error:
        raise UsageError(f"targets = {pattern!r} is no regular expression: {error}") from error
    if not found:
        raise UsageError(
            f"targets = {pattern!r} matches no layer of {type(module).__name__}, whole names such as "
            f"{next(iter(_linear(module)), 'none')}: its linear layers are called {linear_names(module)}; "
            "the new head is no target, it is always trained in full"
        )
    return found


def linear_names(module: nn.Module) -> str:
    """What a model's linear layers are called, as words of a message.

    Args:
        module: the model.

    Example:
        >>> linear_names(nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)}))
        'a, b'
    """
    return ", ".join(_leaves(_linear(module))) or "nothing"


def _leaves(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _linear(module: nn.Module) -> list[str]:
    """The names of a model's linear layers, those that transformers writes as convolutions among them."""
    kinds = ("Conv1D", "Conv1d")
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear) or type(part).__name__ in kinds]


def _unknown(name: str, where: str, module: nn.Module, known: str = "none that is") -> UsageError:
    leaves = _leaves(_linear(module))
    example = "|".join(re.escape(leaf) for leaf in leaves[:2])
    hint = f"name them with --option 'targets=.*\\.({example})', of its linear layers {', '.join(leaves)}; or " if leaves else ""
    return UsageError(f"{name} goes {where}, and {type(module).__name__} has {known} known by name: {hint}{OTHERS}")
