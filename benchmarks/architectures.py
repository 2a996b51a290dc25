"""How every sequence classifier of transformers runs, with a tiny model of random weights for each architecture.

    python -m benchmarks.architectures --out benchmarks/results/architectures.json

Each model is saved, loaded as a user's own would be, and trained for two steps without one example. The table says how its replicas
are computed, or why it is refused. What needs more than texts, such as images or the places of words on a page, is not asked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from stability import FineTuning, load, selectors, train
from stability.errors import StabilityError
from tests import tiny

__all__ = ["ARCHITECTURES", "configuration", "how_it_runs", "main"]

NEEDS_MORE = frozenset(
    {
        "gemma3",
        "layoutlm",
        "layoutlmv2",
        "layoutlmv3",
        "lilt",
        "luke",
        "markuplm",
        "modernvbert",
        "perceiver",
        "qwen3_5",
        "t5gemma2",
    }
    | {"tapas", "ultravbert"}
)
"""Those whose inputs are more than texts."""

ARCHITECTURES = tuple(name for name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if name not in NEEDS_MORE)
"""The architectures by transformers' names."""

_WIDTH = dict.fromkeys(
    ("hidden_size", "d_model", "dim", "emb_dim", "n_embd", "embedding_size", "d_embed", "word_embed_proj_dim"), 16
)
_INNER = dict.fromkeys(
    ("intermediate_size", "d_inner", "d_ff", "ffn_dim", "hidden_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "dff"), 32
)
_LAYERS = dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), 2)
_LAYERS |= {"num_decoder_layers": 2}
_HEADS = dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads"), 2)
_HEADS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "head_dim": 8, "d_kv": 8}
_PLACES = dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 66)
_TOKENS = {"vocab_size": 28, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_TOKENS |= {"decoder_start_token_id": 2}
_SPREAD = {"initializer_range": 0.3, "init_std": 0.3}
_EXPERTS = dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4)
_EXPERTS |= dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2)
_EXPERTS |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_hidden_size"), 16)
_SMALL = {**_EXPERTS, **_WIDTH, **_INNER, **_LAYERS, **_HEADS, **_PLACES, **_TOKENS, **_SPREAD}

_OWN: dict[str, dict[str, Any]] = {}
"""What an architecture needs beside that."""


def configuration(name: str) -> Any:
    """A tiny configuration of an architecture."""
    kind = transformers.CONFIG_MAPPING[name]
    known = {*kind().to_dict(), *kind.attribute_map}
    settings = {key: value for key, value in _SMALL.items() if key in known} | _OWN.get(name, {})
    for key, value in kind.attribute_map.items():  # one of two names
        if key in settings and value in settings:
            del settings[key]
    return kind(**settings)


def how_it_runs(name: str, folder: Path) -> str:
    """How the replicas of an architecture are computed, or why they cannot be, in a few words."""
    config = configuration(name)
    config.num_labels = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder / name)
    tiny.tokenizer(name).save_pretrained(folder / name)
    data = tiny.lines(folder / f"{name}-data", train=tiny.rows(8, most=20), test=tiny.rows(4, seed=1))
    try:
        problem = load(data, model=str(folder / name))
        weights = torch.ones(2, problem.n)
        weights[1, 3] = 0
        replicas = train(problem, FineTuning(selectors.Random(0.1), steps=2, batch_size=4, learning_rate=1e-2), weights)
    except StabilityError as error:
        return f"refused: {error}"
    assert bool(torch.isfinite(replicas.values).all())
    assert int(replicas.failed_step.max()) < 0
    grouping = getattr(problem.logits, "grouping", None)
    if getattr(problem.logits, "batched", True):
        return "batched"
    if grouping is None or not (grouping.unpadded or grouping.singly):
        return "one replica at a time"
    return "one replica at a time, each text alone" if grouping.singly else "one replica at a time, without padding"


def main(names: list[str]) -> dict[str, str]:
    """How each of these runs."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                found[name] = how_it_runs(name, Path(folder))
            except Exception as error:
                found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"{name}: {found[name]}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table = main(options.names)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")
