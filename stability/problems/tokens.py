"""From texts to token ids, padded on the right. They are kept in a cache, by the content of texts and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stability.problems.tasks import Sequences

__all__ = ["Tokens", "cache_folder", "cached_tokens", "padding_of", "tokenize"]

_FORMAT = 2  # raise it with every change of what a cached file holds


@dataclass(frozen=True, eq=False)
class Tokens:
    """N tokenised examples.

    Attributes:
        inputs: ``input_ids``, ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``: each int64 (N, T), or
            (N, c, T) where an example is a choice among c sequences. T is the length of the longest sequence.
        lengths: the number of tokens of each example, int64 (N,); of a choice that of its longest sequence.
        cut: whether each example was cut, truth values (N,).

    Example:
        >>> ids = torch.tensor([[2, 7, 3], [2, 3, 0]])
        >>> Tokens({"input_ids": ids}, torch.tensor([3, 2]), torch.tensor([False, False])).inputs["input_ids"].shape
        torch.Size([2, 3])
    """

    inputs: dict[str, Tensor]
    lengths: Tensor
    cut: Tensor


def cache_folder() -> Path:
    """The folder of the cache: $STABILITY_CACHE, or else $XDG_CACHE_HOME/stability, or else ~/.cache/stability.

    Example:
        >>> isinstance(cache_folder(), Path)
        True
    """
    own, user = os.environ.get("STABILITY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(user) if user else Path.home() / ".cache") / "stability"


def cached_tokens(tokenizer: Any, examples: Sequence[Sequences], max_length: int) -> Tokens:
    """Tokenise examples, or take the result from the cache where the same texts met the same tokenizer before.

    Args:
        tokenizer: a tokenizer of transformers. One written in Python is never cached: its rules cannot be told by content.
        examples: the sequences of each example, the same number for all.
        max_length: the most tokens of a sequence, special tokens included.

    Returns:
        The same as :func:`tokenize`.

    Example:
        >>> from unittest.mock import patch
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "rain": 1}, unk_token="[PAD]"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, STABILITY_CACHE=folder):
        ...     cached_tokens(tokenizer, [[("rain",)]], max_length=8).inputs["input_ids"]
        tensor([[1]])
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:  # one written in Python
        return tokenize(tokenizer, examples, max_length)
    file = cache_folder() / "tokens" / f"{_key(tokenizer, examples, max_length)}.safetensors"
    try:
        with safe_open(file, framework="pt") as cached:
            tensors = {name: cached.get_tensor(name) for name in cached.keys()}  # noqa: SIM118 - not a dict
            lengths, cut = tensors.pop("lengths"), tensors.pop("cut")
            return Tokens(tensors, lengths, cut)
    except (OSError, SafetensorError, KeyError):  # absent or damaged: made again
        tokens = tokenize(tokenizer, examples, max_length)
    _keep(file, tokens)
    return tokens


def _key(tokenizer: Any, examples: Sequence[Sequences], max_length: int) -> str:
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # left by earlier calls
    padding = [tokenizer.pad_token_id, tokenizer.pad_token_type_id]
    how = [_FORMAT, rules, tokenizer.model_input_names, tokenizer.truncation_side, padding, max_length]
    return hashlib.sha256(json.dumps([how, examples]).encode()).hexdigest()


def tokenize(tokenizer: Any, examples: Sequence[Sequences], max_length: int) -> Tokens:
    """Tokenise examples and pad them on the right to the longest.

    A sequence of more than ``max_length`` tokens loses the end of its longer text until it fits.

    Args:
        tokenizer: a tokenizer of transformers.
        examples: the sequences of each example, the same number for all.
        max_length: the most tokens of a sequence, special tokens included.

    Returns:
        The token ids of all examples, and which examples were cut.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "rain": 1}, unk_token="[PAD]"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
        >>> tokenize(tokenizer, [[("rain",)]], max_length=8).lengths
        tensor([1])
    """
    flat = [texts for sequences in examples for texts in sequences]
    encoded = [_encode(tokenizer, texts, max_length) for texts in flat]
    choices = len(examples[0])
    sizes = torch.tensor([len(one["input_ids"]) for one, _ in encoded]).view(-1, choices)
    longest = int(sizes.max())
    fill = padding_of(tokenizer)
    inputs = {
        name: torch.tensor([one[name] + [fill.get(name, 0)] * (longest - len(one[name])) for one, _ in encoded])
        for name in encoded[0][0]
    }
    shape = (len(examples), longest) if choices == 1 else (len(examples), choices, longest)
    cut = torch.tensor([was_cut for _, was_cut in encoded]).view(-1, choices).any(1)
    return Tokens({name: tensor.view(shape) for name, tensor in inputs.items()}, sizes.max(1).values, cut)


def padding_of(tokenizer: Any) -> dict[str, int]:
    """The number that fills the rest of each input, where it is not 0.

    Args:
        tokenizer: a tokenizer of transformers.

    Example:
        >>> from types import SimpleNamespace
        >>> padding_of(SimpleNamespace(pad_token_id=1, pad_token_type_id=0))
        {'input_ids': 1, 'token_type_ids': 0}
    """
    return {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}


def _encode(tokenizer: Any, texts: tuple[str, ...], max_length: int) -> tuple[dict[str, list[int]], bool]:
    one = tokenizer(*texts, return_attention_mask=True, verbose=False)
    too_long = len(one["input_ids"]) > max_length
    if too_long:
        one = tokenizer(*texts, return_attention_mask=True, truncation="longest_first", max_length=max_length)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in one]
    return {name: list(one[name]) for name in names}, too_long


def _keep(file: Path, tokens: Tokens) -> None:
    """Write the cached file, whole or not at all. Where the cache cannot be written, there is none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            fresh = Path(folder) / file.name
            save_file({**tokens.inputs, "lengths": tokens.lengths, "cut": tokens.cut}, fresh)
            fresh.replace(file)
    except (OSError, SafetensorError):
        return
