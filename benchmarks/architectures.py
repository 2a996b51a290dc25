"""How every sequence classifier of transformers runs, with a tiny model of random weights for each architecture.

    python -m benchmarks.architectures --out benchmarks/results/architectures.json

Each model is saved, loaded as a user's own would be, and trained for two steps without one example. The table says how its replicas
are computed, or why it is refused. Models that need more than texts, such as images or the places of words on a page, are left out.
The results keep ``before`` beside it: what the version did in which only models that ``torch.func.vmap`` can run were trained.
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
from stability.machine import software
from tests import tiny

__all__ = ["ARCHITECTURES", "BATCHED", "SINGLY", "configuration", "how_it_runs", "main"]

BATCHED, SINGLY = "many replicas at once", "one replica at a time"

_MORE_THAN_TEXTS = ("layoutlm", "layoutlmv2", "layoutlmv3", "lilt", "luke", "markuplm", "perceiver", "tapas")
_IN_PARTS = ("cohere_compass_text", "gemma3", "modernvbert", "qwen3_5", "t5gemma", "t5gemma2", "ultravbert")
"""Those whose configuration consists of others, most of them for texts and images; they are not asked."""

ARCHITECTURES = tuple(name for name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if name not in _MORE_THAN_TEXTS + _IN_PARTS)
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

_LOW_RANK = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_LOW_RANK |= {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "head_dim": 8}
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3"), _LOW_RANK),
    "mistral4": {**_LOW_RANK, "head_dim": 16, "qk_head_dim": 16},
    **{name: {"decoder_start_token_id": 2} for name in ("t5", "mt5", "umt5")},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "longformer": {"attention_window": 8},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"], "is_decoder": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_d_state": 8, "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
}
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
        return f"refused: {error}".replace(f"{folder}/", "").replace(f"{folder.name}/", "")
    assert bool(torch.isfinite(replicas.values).all())
    assert int(replicas.failed_step.max()) < 0
    grouping = getattr(problem.logits, "grouping", None)
    if getattr(problem.logits, "batched", True):
        return BATCHED
    if grouping is None or not (grouping.unpadded or grouping.singly):
        return SINGLY
    return f"{SINGLY}, each text alone" if grouping.singly else f"{SINGLY}, without padding"


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
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        kept |= {"software": software(), "now": table}
        options.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
