"""Any sequence classifier of transformers as a function of its parameters: θ⁰, the new head, and the form in which it runs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stability.checks import check_whole
from stability.errors import MachineError, UsageError, one_line
from stability.machine import free_memory, out_of_memory
from stability.masks import Parameters, fingerprint
from stability.problems.attention import Attention
from stability.problems.batching import difference, drawn, shortened, slopes_of
from stability.problems.drawing import DrawingFrom
from stability.problems.grouping import Grouping
from stability.problems.problem import ModuleLogits, refill, without_values

__all__ = ["Pretrained", "agreeing", "load_pretrained"]

_NAMES_IN_CONFIG = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"}
_MOST_LAYERS = 10_000
_OTHERS = "use another, such as BERT, RoBERTa, DeBERTa, GPT-2 or Llama"
_ONE_AT_A_TIME = threading.RLock()
_LOCAL = (
    "without a network (HF_HUB_OFFLINE=1 spares you the waiting) give a folder that holds config.json, model.safetensors and the "
    "tokenizer's files"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pretrained:
    """A pretrained model with a new head, as :func:`load_pretrained` loads it.

    Attributes:
        name: the last two parts of the folder's path, or the name on the hub.
        parameters: θ⁰: all parameters that the checkpoint holds, without the layer that gives the logits.
        new_head: a function from a generator to the tensors that θ⁰ lacks, initialised as transformers initialises them.
        bias: the name of the head's bias that is added to the logits; None where there is none.
        network: the module of transformers without the values of its parameters. Its attention kernel is the one that
            transformers chose.
        tokenizer: the tokenizer of transformers, with a padding token that the model knows.
        max_length: the most tokens that the model can take.
        vocabulary: the number of different tokens that it knows.
        fingerprint: SHA-256 of θ⁰ and of the buffers that a checkpoint holds, such as the statistics of batch normalisation.
        architecture: SHA-256 of the configuration without names, paths and versions.
        notes: what the checkpoint lacks, one sentence each.
        agreed: a cache: what :func:`agreeing` found, by the content of its inputs. Every cell of a study asks for the same.

    Example:
        >>> load_pretrained("roberta-base", outputs=2).max_length  # doctest: +SKIP
        512
    """

    name: str
    parameters: Parameters
    new_head: Callable[[torch.Generator], Parameters]
    bias: str | None
    network: Any
    tokenizer: Any
    max_length: int
    vocabulary: int
    fingerprint: str
    architecture: str
    notes: tuple[str, ...] = ()
    agreed: dict[str, ModuleLogits] = field(default_factory=dict)

    def head_from(self, initial_bias: float) -> Callable[[torch.Generator], Parameters]:
        """:attr:`new_head` with a number added to the bias of the logits.

        Args:
            initial_bias: the number.

        Returns:
            As ``new_head``.

        Raises:
            UsageError: the logits have no bias.

        Example:
            >>> load_pretrained("roberta-base", outputs=1).head_from(2.5)  # doctest: +SKIP
        """
        plain, name = self.new_head, self.bias  # not self, which would be sent to workers with all that it holds
        if not initial_bias:
            return plain
        if name is None:
            raise UsageError(f"initial_bias = {initial_bias:g}: the head of {self.name} has no bias; leave it out")

        def head(draw: torch.Generator) -> Parameters:
            new = plain(draw)
            return {**new, name: new[name] + initial_bias}

        return head


def load_pretrained(model: str | os.PathLike[str], outputs: int) -> Pretrained:
    """Load a model for sequence classification or regression from a folder or by its name on the Hugging Face hub.

    Weights are read from safetensors alone, in single precision. No code that comes with a model is ever run. The new head
    consists of every parameter whose shape depends on the number of labels, so that the layer that gives the logits is always
    new, and of every parameter that the checkpoint lacks. All other parameters are θ⁰, the inner layers of an old head too.

    Args:
        model: the model's folder, or its name on the hub.
        outputs: number of logits.

    Returns:
        The model; it is kept in memory, so that the next call with the same arguments and unchanged files is quick.

    Raises:
        UsageError: there is no such model or it cannot be reached, it has no safetensors, no tokenizer or no classifier, or its
            weights do not fit its configuration.

    Example:
        >>> load_pretrained("./no-such-folder", outputs=2)
        Traceback (most recent call last):
        stability.errors.UsageError: there is no folder ./no-such-folder
    """
    check_whole(1, outputs=outputs)
    folder = Path(model)
    if not os.path.isdir(model) and (str(model).startswith((".", "/", "~")) or str(model).count("/") > 1):  # no name on the hub
        raise UsageError(f"there is no folder {model}")
    stamp = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir())) if os.path.isdir(model) else ()
    return _load(str(model), outputs, stamp)


@lru_cache(maxsize=2)
def _load(model: str, outputs: int, stamp: tuple[Any, ...]) -> Pretrained:
    import transformers

    with _quiet(), _explained(model):
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        config.num_labels = outputs
        if getattr(config, "use_cache", False):
            config.use_cache = False  # of past keys, which a classifier never needs
        layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > _MOST_LAYERS:  # to make them would take for ever, even without values
        raise UsageError(f"{model}: config.json tells of {layers} layers, at most {_MOST_LAYERS} are taken: mend it")
    tokenizer = _tokenizer(model)
    _agree_on_padding(model, config, tokenizer)
    with _quiet(), _explained(model):
        sized = [_structure(config, count) for count in (outputs + 1, outputs + 2)]
    size, free = 4 * sum(parameter.numel() for parameter in sized[0].parameters()), free_memory(torch.device("cpu"))
    if size > free:
        raise MachineError(
            f"{model}: by its config.json the model takes {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: use a "
            "smaller one, or a machine with more memory"
        )
    with _quiet(), _explained(model), DrawingFrom(torch.Generator()):  # what is drawn here is never used
        loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    network: Any = loaded.eval()
    own = {name: parameter.detach() for name, parameter in network.named_parameters()}
    shapes = [{name: tuple(parameter.shape) for name, parameter in one.named_parameters()} for one in sized]
    missing, last = set(report["missing_keys"]) & own.keys(), {name for name in own if shapes[0][name] != shapes[1][name]}
    for name, *two in sorted(report["mismatched_keys"]):
        if name in own and name not in last:
            raise UsageError(f"{model}: {name} is {tuple(two[0])} in the weights, {tuple(two[1])} by config.json: mend one")
    body = {name: tensor.numel() for name, tensor in own.items() if name.startswith(f"{network.base_model_prefix}.")}
    lacking = sum(body[name] for name in missing if name in body)
    if lacking > sum(body.values()) / 10:  # a pooler may be missing, layers may not
        raise UsageError(
            f"{model}: {lacking} of the {sum(body.values())} parameters that config.json tells of are not in the weights: these "
            "belong to another architecture"
        )
    head = {name: tuple(own[name].shape) for name in own if name in missing | last}
    pretrained = {name: tensor for name, tensor in own.items() if name not in head}
    if odd := [name for name, tensor in pretrained.items() if not bool(torch.isfinite(tensor).all())]:
        raise UsageError(f"{model}: the weights of {odd[0]} are not all finite")
    buffers = {name: buffer for name, buffer in network.named_buffers() if name in network.state_dict()}
    refill(network, without_values)
    kept = {name: value for name, value in config.to_dict().items() if name not in _NAMES_IN_CONFIG}
    new = sorted(name for name in missing if name in body)
    return Pretrained(
        name="/".join(Path(model).resolve().parts[-2:]) if os.path.isdir(model) else model,
        parameters=pretrained,
        new_head=lambda draw: _new_head(network, head, draw),
        bias=next((name for name in sorted(last) if head[name] == (outputs,)), None),
        network=network,
        tokenizer=tokenizer,
        max_length=_most_places(network, tokenizer),
        vocabulary=_vocabulary(network, tokenizer),
        fingerprint=fingerprint({**pretrained, **buffers}),
        architecture=hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest(),
        notes=(f"the checkpoint lacks {', '.join(new)}: new, and tuned with the head",) if new else (),
    )


def _tokenizer(model: str) -> Any:
    import transformers

    folder = Path(model)
    kinds = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "tokenizer.model")
    if os.path.isdir(model) and not any(list(folder.glob(kind)) for kind in kinds):  # transformers would make an empty one
        raise UsageError(f"{model} has no tokenizer (tokenizer.json, vocab.txt, …): save the model's own beside it")
    with _quiet(), _explained(model):
        return transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)


def _agree_on_padding(model: str, config: Any, tokenizer: Any) -> None:
    """Give tokenizer and configuration one padding token, in the model's vocabulary.

    The attention mask hides padding, so any token will do. But a causal model takes its logits at the last token that is not the
    configuration's padding token. This must be the token that texts are padded with, and not one that every text ends with. A
    model that counts positions from its padding token keeps it, for its table of positions was trained so.
    """
    config = config.get_text_config()
    known = getattr(config, "vocab_size", None) or len(tokenizer)
    own = getattr(config, "pad_token_id", None)
    with _quiet(), _explained(model):
        last = tokenizer("a")["input_ids"][-1:]
        special = [getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos", "bos", "cls", "sep", "mask", "unk")]
    usable = [token for token in special if token is not None and token < known and (token == own or [token] != last)]
    if not usable:
        raise UsageError(
            f"{model}: its tokenizer has no token to pad texts with, so texts cannot be batched: no special token is in the "
            f"model's vocabulary of {known} and not the last of every text; add one"
        )
    chosen = usable[0]
    if tokenizer.pad_token_id != chosen:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    if own is None or not 0 <= own < known:
        config.pad_token_id = chosen
    elif own != chosen:
        with _quiet(), _explained(model):
            counted = list(_counting_from_padding(_structure(config, config.num_labels)))
        config.pad_token_id = own if counted else chosen


def _structure(config: Any, labels: int) -> nn.Module:
    """The model for a number of labels, without values."""
    import transformers

    config = copy.deepcopy(config)
    config.num_labels = labels
    with torch.device("meta"):
        made: nn.Module = transformers.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return made


def _counting_from_padding(network: nn.Module) -> Iterator[int]:
    """The padding token of each table of positions that is counted from behind it, as RoBERTa's is."""
    for name, part in network.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            yield int(part.padding_idx)


def _vocabulary(network: Any, tokenizer: Any) -> int:
    """The number of different tokens that the model knows."""
    try:
        return int(network.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):  # one that hashes its tokens, such as CANINE
        return int(getattr(network.config.get_text_config(), "vocab_size", None) or len(tokenizer))


def _most_places(network: nn.Module, tokenizer: Any) -> int:
    """The longest sequence of tokens that the model has positions for."""
    most = min(int(tokenizer.model_max_length), 1 << 20)
    config: Any = network.config
    places = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 0
    if places > 0:  # XLNet says −1 for no limit
        most = min(most, places - sum(token + 1 for token in _counting_from_padding(network)))
    return most


def _new_head(structure: nn.Module, shapes: Mapping[str, tuple[int, ...]], draw: torch.Generator) -> dict[str, Tensor]:
    """The head's tensors as transformers initialises them, drawn from ``draw``."""
    fresh = copy.deepcopy(structure)
    refill(fresh, lambda name, p: nn.Parameter(torch.zeros(shapes[name])) if name in shapes else without_values(name, p))
    seed = int(torch.randint(2**62, (), generator=draw))
    with DrawingFrom(torch.Generator().manual_seed(seed)), torch.no_grad():
        for name, module in fresh.named_modules():
            mine = [part for part in shapes if part.startswith(f"{name}." if name else "")]
            if any("." not in part.removeprefix(f"{name}.") for part in mine) and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # for what transformers leaves as torch has it
            if mine:
                fresh._init_weights(module)  # type: ignore[operator]
    return {name: parameter.detach() for name, parameter in fresh.named_parameters() if name in shapes}


def agreeing(pretrained: Pretrained, inputs: Mapping[str, Tensor]) -> ModuleLogits:
    """The model as a function of its parameters, in the quickest form that agrees with the plain model.

    First it tries to compute many replicas at once, through ``torch.func.vmap``: each attention kernel with each form of the
    attention mask (:class:`stability.problems.attention.Attention`). Where none agrees, replicas are computed one at a time, by the
    model as it is: with the batch as it is; without padding, texts of different lengths apart; or each text alone. The first form
    that agrees is taken. Compared are logits and gradients of these inputs, padded, with those of transformers' model that sees
    each sequence alone.

    Args:
        pretrained: the model.
        inputs: the inputs that are compared, each (N, T), or (N, c, T) for a choice among c sequences. Give the shortest and the
            longest text that there are: a sliding window that no text exceeds is not compared.

    Returns:
        The function; where an example is a choice, set its ``choices``.

    Raises:
        UsageError: transformers itself cannot run the model, its logits are not finite, or they are not the same in each call.

    Example:
        >>> model = load_pretrained("roberta-base", outputs=2)  # doctest: +SKIP
        >>> agreeing(model, dict(model.tokenizer(["Rain.", "It rains."], padding=True, return_tensors="pt")))  # doctest: +SKIP
    """
    flat: dict[str, Tensor] = {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in inputs.items()}
    if (asked := fingerprint(inputs)) in pretrained.agreed:
        return pretrained.agreed[asked]
    network = pretrained.network
    plain = ModuleLogits(network, grouping=Grouping(singly=True), batched=False)
    start = {**pretrained.parameters, **pretrained.new_head(torch.Generator().manual_seed(0))}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    refused = f"{pretrained.name} ({type(network).__name__}) cannot be trained here"
    try:
        changing = drawn(lambda: plain(start, flat))
        right = _Right.of(plain, leaves, flat)
        pure = not plain.changes_buffers(start, {name: tensor[:1] for name, tensor in flat.items()})
    except Exception as error:  # whatever a model refuses
        if out_of_memory(error):
            raise
        raise UsageError(
            f"{refused}: transformers itself fails on a single text of these; {_OTHERS}. {shortened(error)}"
        ) from error
    if not bool(torch.isfinite(right.logits).all()):
        raise UsageError(f"{pretrained.name}: the logits at the start are not finite; its weights are damaged")
    if changing is not None:
        raise UsageError(f"{refused}: in evaluation its logits {changing}; or {_OTHERS}")
    # What a model writes into its buffers is not kept apart where all replicas are in one call.
    logits = right.first_of(_batched_forms(network)) if pure else None
    if logits is None:
        logits = _Right.of(plain, leaves, _with_a_twin(flat)).first_of(_plain_forms(network))
    if logits is None:
        raise UsageError(f"{refused}: the logits of a text alone are others in every form that was tried; {_OTHERS}")
    pretrained.agreed[asked] = logits
    return logits


@dataclass(frozen=True, eq=False)
class _Right:
    """What the plain model gives for some texts, each alone.

    Attributes:
        leaves: the parameters.
        inputs: the texts, padded.
        logits: (B, C).
        slopes: the gradients that :func:`difference` compares.
    """

    leaves: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    logits: Tensor
    slopes: Mapping[str, Tensor | None]

    @classmethod
    def of(cls, plain: ModuleLogits, leaves: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> _Right:
        logits = plain(leaves, inputs)
        return cls(leaves, inputs, logits.detach(), slopes_of(logits, leaves))

    def first_of(self, forms: Iterator[ModuleLogits]) -> ModuleLogits | None:
        """The first of these forms that agrees; None where none does."""
        for logits in forms:
            try:
                with _quiet():
                    found = difference(logits, self.leaves, self.inputs, self.logits, self.slopes, batched=bool(logits.batched))
            except Exception as error:  # whatever a model does that vmap cannot, or that it cannot do in a batch
                if out_of_memory(error):
                    raise
                continue
            if found is None:
                return logits
        return None


def _batched_forms(network: Any) -> Iterator[ModuleLogits]:
    """The forms in which many replicas are computed at once: each attention kernel with each form of the attention mask."""
    window = getattr(network.config, "sliding_window", None)
    masks = [Attention(additive=True), Attention(additive=True, causal=True), Attention()]
    if window is not None and "sliding_attention" in (getattr(network.config, "layer_types", None) or ()):
        masks.insert(0, Attention(additive=True, window=window))
    for kernel, attention in product(("eager", "sdpa"), masks):
        yield ModuleLogits(_with_kernel(network, kernel), attention=attention, batched=True)


def _plain_forms(network: Any) -> Iterator[ModuleLogits]:
    """The forms in which one replica is computed at a time, the quickest first."""
    config = network.config
    # Classifiers of encoder–decoders read the end token, and refuse texts together that have different numbers of it.
    end = getattr(config, "eos_token_id", None) if getattr(config, "is_encoder_decoder", False) else None
    together = None if end is None else Grouping(counted=end)
    for grouping in (together, Grouping(unpadded=True, counted=end), Grouping(singly=True)):
        # In eager attention dropout is an operation of its own, and can be drawn for all replicas alike.
        for module in (_with_kernel(network, "eager"), copy.deepcopy(network)):
            yield ModuleLogits(module, grouping=grouping, batched=False)


def _with_kernel(network: Any, kernel: str) -> Any:
    """A copy with another attention kernel. Each form has a copy of its own, for one that failed may have left something behind."""
    made = copy.deepcopy(network)
    with _quiet(), contextlib.suppress(Exception):  # of a model without that kernel, which keeps its own
        made.set_attn_implementation(kernel)
    return made


def _with_a_twin(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The texts and one more that is as long as the last: its tokens in another order, between the first and the last."""
    ids = inputs["input_ids"]
    order = torch.arange(ids.shape[1])
    length = int(inputs["attention_mask"][-1].sum())
    order[1 : length - 1] = order[1 : length - 1].flip(0)
    return {name: torch.cat([t, t[-1:, order] if name == "input_ids" else t[-1:]]) for name, t in inputs.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the bars and reports of transformers: :class:`Pretrained` tells what is loaded and what is new.

    Verbosity belongs to the process, and so do the initialisers that transformers replaces while it loads. So threads take turns.
    """
    from transformers.utils import logging

    with _ONE_AT_A_TIME:
        before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(before)
            if bars:
                logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turn an error of transformers into one that names the cause and the remedy. Only calls of transformers belong inside."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers and huggingface_hub have many, down to plain Exception
        if out_of_memory(error):
            raise MachineError(f"{model}: memory ran out while it was loaded ({one_line(error)})") from error
        reason = one_line(error, 300)
        folder = Path(model)
        if os.path.isdir(model):  # and not of pathlib, which raises an error of its own for a name that is too long
            if not (folder / "config.json").exists():
                raise UsageError(f"{model} is no model: it has no config.json; {_LOCAL}") from error
            if not list(folder.glob("*.safetensors*")):
                kept = ", ".join(sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt")))
                if not kept:
                    raise UsageError(f"{model} has no weights: model.safetensors expected") from error
                raise UsageError(
                    f"{model} has no weights in safetensors, but {kept}: pickled weights can run code and are refused; "
                    "convert them once with transformers (save_pretrained) where you trust them"
                ) from error
            raise UsageError(f"{model} cannot be loaded as a sequence classifier: {reason}") from error
        raise UsageError(f"model {model!r} is no folder here, and the hub did not give it: {reason}; {_LOCAL}") from error
