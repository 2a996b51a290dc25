"""Tiny language models with random weights, and texts for them: what a hub would give, made on the spot."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (
    *("the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "big", "small", "red", "blue", "old", "new", "tree"),
    *("house", "river", "and", "or", "not", "it", "runs", "sleeps", "well"),
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
COMMON = {"vocab_size": len(SPECIAL) + len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
SMALL = {**COMMON, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3}
MODERN = {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "initializer_range": 0.3, "max_position_embeddings": 64}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3, "bos_token_id": 2, "eos_token_id": 3}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "type_vocab_size": 0}
LLAMA = {**COMMON, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3}
ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}

FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SMALL),
    "roberta": lambda: transformers.RobertaConfig(**{**SMALL, "max_position_embeddings": 65}),
    "distilbert": lambda: transformers.DistilBertConfig(vocab_size=COMMON["vocab_size"], pad_token_id=0, **DISTIL),
    "deberta-v2": lambda: transformers.DebertaV2Config(**SMALL, **DEBERTA),
    "electra": lambda: transformers.ElectraConfig(**SMALL, embedding_size=16),
    "modernbert": lambda: transformers.ModernBertConfig(**SMALL, **MODERN, eos_token_id=3),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=COMMON["vocab_size"], **GPT),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
}
"""The configuration of each family."""

OTHERS: dict[str, Callable[[], Any]] = {
    "t5": lambda: transformers.T5Config(vocab_size=COMMON["vocab_size"], **T5, **ENDS),
    "bart": lambda: transformers.BartConfig(vocab_size=COMMON["vocab_size"], **BART, **ENDS, max_position_embeddings=64),
    "xlnet": lambda: transformers.XLNetConfig(vocab_size=COMMON["vocab_size"], d_model=16, n_layer=2, n_head=2, d_inner=32),
    "fnet": lambda: transformers.FNetConfig(vocab_size=COMMON["vocab_size"], pad_token_id=0, hidden_size=16, num_hidden_layers=2),
    "bloom": lambda: transformers.BloomConfig(vocab_size=COMMON["vocab_size"], hidden_size=16, n_layer=2, n_head=2),
    "reformer": lambda: transformers.ReformerConfig(
        vocab_size=COMMON["vocab_size"], attn_layers=["local"], axial_pos_embds=False, hidden_size=16, is_decoder=False
    ),
    "canine": lambda: transformers.CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
    "ibert": lambda: transformers.IBertConfig(**{**SMALL, "max_position_embeddings": 65}),
}
"""Families that run one replica at a time, or cannot be trained here; and I-BERT, whose checkpoint holds buffers."""


def tokenizer(family: str = "bert") -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "eos_token": "[SEP]", "model_max_length": 64}
    inputs = ["input_ids", "attention_mask"]
    if family not in ("gpt2", "llama"):  # neither special tokens around a text nor one for padding
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if family == "bert":
        inputs.append("token_type_ids")
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **names)


def write_model(folder: Path, family: str = "bert", labels: int = 2, **settings: Any) -> Path:
    """A model of ``family`` with ``labels`` labels and its tokenizer, as transformers saves them."""
    config = {**FAMILIES, **OTHERS}[family]()
    config.num_labels = labels
    for name, value in settings.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(len(family))
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms start at 0 and 1: then much would pass unseen
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder


def sentence(draw: random.Random, most: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(2, most)))


def rows(count: int, seed: int = 0, most: int = 12) -> list[dict[str, Any]]:
    """Pairs of sentences, labelled by whether the first says ``not``."""
    draw = random.Random(seed)
    made = [{"text_a": sentence(draw, most), "text_b": sentence(draw, most)} for _ in range(count)]
    return [{**row, "label": "yes" if "not" in row["text_a"].split() else "no"} for row in made]


def write_lines(path: Path, some: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in some), encoding="utf-8")
    return path


def lines(folder: Path, **splits: Any) -> str:
    """A folder of JSON lines, a file a split."""
    for split, rows in splits.items():
        write_lines(folder / f"{split}.jsonl", rows)
    return str(folder)


def table(path: Path, rows: list[list[str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return str(path)
