"""How every configuration of the installed peft runs, and where LoRA and Adapter go in models of transformers.

    python -m benchmarks.peft_methods --out benchmarks/results/peft-methods.json

Each configuration is trained for three steps, with all examples and without one, on digits or, where it is for texts, on a tiny
BERT of random weights. The models in which LoRA and Adapter find their places have no values at all.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

from stability import Examples, FineTuning, Problem, UsageError, load, train
from stability.problems import ModuleLogits
from stability.problems.attention import Attention
from stability.selectors import Peft
from stability.selectors.places import adapter_places, lora_places
from stability.training.replicas import Replicas

__all__ = [
    "CONFIGURATIONS",
    "FAMILIES",
    "OF_TEXTS",
    "classes",
    "configuration",
    "how_it_runs",
    "main",
    "model",
    "places",
    "problem_for",
    "texts",
    "trained",
]

_QV = {"target_modules": ["q_proj", "v_proj"]}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {**_QV, "total_step": 100},
    "ADAMSS": {**_QV, "r": 8, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1},
    "BOFT": {**_QV, "boft_block_size": 4},
    "C3A": {**_QV, "block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 2},
    "CPT": {"task_type": "CAUSAL_LM", "cpt_token_ids": [0], "cpt_mask": [1], "cpt_tokens_type_mask": [1]},
    "FOURIERFT": {**_QV, "n_frequency": 50},
    "GRALORA": {**_QV, "r": 4},
    "IA3": {"target_modules": ["v_proj", "fc2"], "feedforward_modules": ["fc2"]},
    "LN_TUNING": {"target_modules": ["layernorm_before", "layernorm_after"]},
    "LOHA": {**_QV, "r": 2},
    "LOKR": {**_QV, "r": 2},
    "LORA": {**_QV, "r": 2},
    "MISS": {**_QV, "r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 2, "num_tasks": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 2},
    "PROMPT_TUNING": {"num_virtual_tokens": 2},
    "P_TUNING": {"num_virtual_tokens": 2, "encoder_hidden_size": 8},
    "ROAD": {**_QV, "group_size": 8},
    "SHADOW": {},
    "SHIRA": {**_QV, "r": 1},
    "TRAINABLE_TOKENS": {"target_modules": ["word_embeddings"], "token_indices": [5, 6]},
    "VBLORA": {**_QV, "num_vectors": 16, "vector_length": 8},
    "VERA": {**_QV, "r": 4},
    "WAVEFT": {**_QV, "n_frequency": 50},
    "XLORA": {},
}
"""Settings that fit the tiny models, by peft's names of the methods. The others take those of peft, on queries and values."""

OF_TEXTS = dict.fromkeys(("CARTRIDGE", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "TRAINABLE_TOKENS"), "bert")
OF_TEXTS |= {"ADAPTION_PROMPT": "llama"}
"""Methods for models of texts, with the family that they are tried on."""

_CAUSAL = {"gpt2", "llama"}
_ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
_HEADS = ("classifier", "classification_head", "score", "sequence_summary", "logits_proj", "pooler")

_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
_SMALL_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30}
_SMALL_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 30}
_SMALL_BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
_SMALL_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 30}
_FEW_HEADS = {"num_key_value_heads": 2, "head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {**_SMALL, "embedding_size": 16},
    "bart": _SMALL_BART,
    "bert": _SMALL,
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30},
    "ctrl": {**_SMALL_GPT, "dff": 32},
    "deberta": _SMALL,
    "deberta-v2": _SMALL,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 30},
    "electra": {**_SMALL, "embedding_size": 16},
    "falcon": _SMALL,
    "fnet": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 30},
    "funnel": {"d_model": 16, "d_inner": 32, "d_head": 8, "n_head": 2, "block_sizes": [1, 1], "vocab_size": 30},
    "gemma": {**_SMALL, **_FEW_HEADS},
    "gpt2": _SMALL_GPT,
    "gpt_neox": _SMALL,
    "gptj": {**_SMALL_GPT, "rotary_dim": 4},
    "llama": {**_SMALL, **_FEW_HEADS},
    "mistral": {**_SMALL, **_FEW_HEADS},
    "mixtral": {**_SMALL, **_FEW_HEADS, "num_local_experts": 2},
    "modernbert": _SMALL,
    "mpnet": _SMALL,
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 30},
    "opt": {**_SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "phi": _SMALL,
    "phi3": _SMALL,
    "qwen2": {**_SMALL, "num_key_value_heads": 2},
    "qwen3": {**_SMALL, **_FEW_HEADS},
    "roberta": _SMALL,
    "squeezebert": {**_SMALL, "embedding_size": 16},
    "t5": _SMALL_T5,
    "xlm": {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 30},
    "xlm-roberta": _SMALL,
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "vocab_size": 30},
}
"""The settings of tiny models, by transformers' names of the architectures."""


def configuration(name: str) -> Any:
    """A configuration of a method, by peft's name."""
    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)](**CONFIGURATIONS.get(name, _QV))


def model(family: str) -> Any:
    """A tiny sequence classifier of two classes, with random weights."""
    settings = {"num_labels": 2, **_ENDS, **FAMILIES[family]}
    config = transformers.AutoConfig.for_model(family, **settings)
    return transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


def texts(family: str = "bert", padded: bool = True) -> Problem:
    """Twelve texts for a tiny model: of different lengths with a mask, or all of one length without one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = model(family)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 30, (12, 7), generator=draw)
    tokens[:, -1] = _ENDS["eos_token_id"]
    inputs, lengths = {"input_ids": tokens}, None
    if padded:
        lengths = torch.randint(3, 8, (12,), generator=draw)
        mask = (torch.arange(7) < lengths[:, None]).long()
        inputs = {"input_ids": tokens * mask, "attention_mask": mask}
    examples = Examples(inputs, tokens[:, 0] % 2, lengths)
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    head = {name: p for name, p in parameters.items() if name.startswith(_HEADS)}

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, reduction="none")

    return Problem(
        name=family,
        settings={},
        pretrained={name: p for name, p in parameters.items() if name not in head},
        new_head=lambda draw: head,
        logits=ModuleLogits(network, attention=Attention(additive=True, causal=family in _CAUSAL)),
        loss=loss,
        train=examples,
        test=examples,
        metric=lambda logits, labels: 0.0,
        metric_name="none",
    )


def problem_for(name: str) -> Problem:
    """What a method is tried on: digits, or texts where it is for these."""
    return texts(OF_TEXTS[name]) if name in OF_TEXTS else load("digits", n=20)


def trained(name: str) -> Replicas:
    """Two replicas, the second without one example, by a method of peft."""
    problem = problem_for(name)
    weights = torch.ones(2, problem.n)
    weights[1, 3] = 0
    return train(problem, FineTuning(Peft(configuration(name)), steps=3, batch_size=4, learning_rate=1e-2), weights)


def how_it_runs(made: Callable[[], Replicas]) -> dict[str, str]:
    """How a method runs, whether it starts at the pretrained model's outputs, and why it is refused."""
    try:
        replicas = made()
    except UsageError as error:
        return {"runs": "refused", "why": _shortened(str(error))}
    assert bool(torch.isfinite(replicas.values).all())
    insertion = replicas.problem.insertion
    assert insertion is not None
    return {
        "runs": "many at once" if replicas.problem.batched else "one at a time",
        "start": "the pretrained model" if insertion.equivalent else "another",
    }


def _shortened(reason: str) -> str:
    """What a message says of the method itself, without its name and what to do."""
    text = re.split(r"\. Its layers alone|, and hooks on|, and here they", reason)[0]
    text = re.sub(r"^peft-[\w-]+ |cannot be trained here: beside plain dropout, its layers ", "", text)
    text = text.replace("do more in training than in evaluation (they draw at random)", "draws at random in training")
    return re.sub(r"\S+ (?=by a hook)", "parameters ", text)


def places(family: str) -> dict[str, str]:
    """The layers of an architecture beside which LoRA goes and behind which Adapter goes, without their numbers."""
    with torch.device("meta"):
        network = model(family)
    for name in [name for name, _ in network.named_children() if name.startswith(_HEADS)]:
        setattr(network, name, None)
    found = {}
    for method, find in (
        ("lora", lambda: [name for name, _ in network.named_modules() if re.fullmatch(lora_places(network), name)]),
        ("adapter", lambda: adapter_places(network, ["attention", "feed-forward"])),
    ):
        try:
            named = [re.sub(r"\.\d+(?=\.)", "", name).split(".")[-2:] for name in find()]
        except UsageError:
            found[method] = "none known by name"
        else:
            found[method] = ", ".join(sorted({".".join(parts) for parts in named}))
    return found


def classes() -> dict[str, str]:
    """The names of the configurations' classes, by peft's names of the methods."""
    return {kind.value: made.__name__ for kind, made in sorted(peft.PEFT_TYPE_TO_CONFIG_MAPPING.items())}


def main(out: Path | None) -> dict[str, Any]:
    """All tables."""
    warnings.simplefilter("ignore")
    methods = {kind: how_it_runs(partial(trained, kind)) for kind in classes()}
    tables = {"classes": classes(), "methods": methods, "places": {family: places(family) for family in FAMILIES}}
    if out:
        out.write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return tables


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    print(json.dumps(main(parser.parse_args().out), indent=1, ensure_ascii=False))
