"""Any sequence classifier of transformers as a function of its parameters: θ⁰, what is new, and how to call it."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from stability.attention import Attention
from stability.errors import UsageError
from stability.masks import Parameters, fingerprint
from stability.problem import ModuleLogits, refill, without_values
from stability.problems.tokens import tokenize

__all__ = ["Pretrained", "load_pretrained"]

_LOCAL = "without a network give a folder that holds config.json, model.safetensors and the tokenizer's files"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained model with a new head.

    Attributes:
        name: the folder's own name, or the name on the hub.
        parameters: θ⁰, what the checkpoint holds of the model but for its old classifier.
        new_head: generator → the tensors that θ⁰ lacks, initialised as transformers initialises them.
        logits: the model as a function, with the attention mask in the form that agrees with the plain model.
        tokenizer: of transformers.
        max_length: the most tokens that the model can take.
        fingerprint: of θ⁰.
    """

    name: str
    parameters: Parameters
    new_head: Callable[[torch.Generator], Parameters]
    logits: ModuleLogits
    tokenizer: Any
    max_length: int
    fingerprint: str


def load_pretrained(model: str | os.PathLike[str], outputs: int, max_length: int = 256) -> Pretrained:
    """Load a model for sequence classification or regression from a folder or by its name on the Hugging Face hub.

    Weights are read from safetensors alone, in single precision, and no code that comes with a model is ever run. The head is
    found generally: it is every parameter whose shape depends on the number of labels (the old classifier is never
    kept), and every one that the checkpoint lacks. All others are θ⁰.

    How the model takes its attention mask and which attention kernel it uses is found by comparison: logits and gradients of
    a short and a long text, padded and batched over replicas and over examples, with those of the plain model that sees
    each text alone. See :class:`stability.attention.Attention`.

    Args:
        model: folder, or name on the hub.
        outputs: number of logits.
        max_length: the most tokens there will be; the comparison goes as far.

    Raises:
        UsageError: there is no such model or it cannot be reached, it has no safetensors, no tokenizer or no classifier, or no
            form of attention mask agrees with the plain model.
    """
    folder = Path(model)
    stamp = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir())) if folder.is_dir() else ()
    return _load(str(model), outputs, max_length, stamp)


@lru_cache(maxsize=2)
def _load(model: str, outputs: int, max_length: int, stamp: tuple[Any, ...]) -> Pretrained:
    import transformers

    with _quiet(), _explained(model):
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        config.num_labels = outputs
        if getattr(config, "use_cache", False):
            config.use_cache = False  # of past keys, which a classifier never needs
        tokenizer = _tokenizer(model)
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        sized = [_shapes(config, count) for count in (outputs + 1, outputs + 2)]
    network: nn.Module = loaded.eval()
    own = {name: parameter.detach() for name, parameter in network.named_parameters()}
    missing = set(report["missing_keys"])
    body = {name for name in own if name.startswith(f"{network.base_model_prefix}.")}
    if body <= missing:
        raise UsageError(f"{model}: its weights are of another architecture than its config.json says, none of them fits")
    head = {name for name in own if name in missing or sized[0][name] != sized[1][name]}
    shapes = {name: tuple(own[name].shape) for name in own if name in head}
    refill(network, without_values)
    pretrained = {name: tensor for name, tensor in own.items() if name not in head}
    if odd := [name for name, tensor in pretrained.items() if not bool(torch.isfinite(tensor).all())]:
        raise UsageError(f"{model}: the weights of {odd[0]} are not all finite")
    longest = min(max_length, _most_places(network, tokenizer))
    start = {**own, **_new_head(network, shapes, torch.Generator().manual_seed(0))}
    logits = _agreeing(model, network, start, _two_texts(tokenizer, longest))
    return Pretrained(
        name=Path(model).name if Path(model).is_dir() else model,
        parameters=pretrained,
        new_head=lambda draw: _new_head(logits.module, shapes, draw),
        logits=logits,
        tokenizer=tokenizer,
        max_length=longest,
        fingerprint=fingerprint(pretrained),
    )


def _tokenizer(model: str) -> Any:
    import transformers

    folder = Path(model)
    kinds = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "tokenizer.model")
    if folder.is_dir() and not any(list(folder.glob(kind)) for kind in kinds):  # transformers would make an empty one
        raise UsageError(f"{model} has no tokenizer (tokenizer.json, vocab.txt, …): save the model's own beside it")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if tokenizer.pad_token_id is None:  # GPT-2 has none, and what is padded is never looked at
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UsageError(f"{model}: the tokenizer has neither padding nor end-of-text token, so texts cannot be batched")
    return tokenizer


def _shapes(config: Any, labels: int) -> dict[str, tuple[int, ...]]:
    """Of every parameter with so many labels."""
    import transformers

    config = copy.deepcopy(config)
    config.num_labels = labels
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _most_places(network: nn.Module, tokenizer: Any) -> int:
    """The longest sequence of tokens that the model has positions for."""
    most = min(int(tokenizer.model_max_length), 1 << 20)
    config: Any = network.config
    if (places := getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)) is not None:
        for name, part in network.named_modules():
            if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
                places -= int(part.padding_idx) + 1  # RoBERTa counts from behind the padding's place
        most = min(most, places)
    return most


def _new_head(structure: nn.Module, shapes: Mapping[str, tuple[int, ...]], draw: torch.Generator) -> dict[str, Tensor]:
    """The head's tensors as transformers starts them, drawn from ``draw``."""
    fresh = copy.deepcopy(structure)
    refill(fresh, lambda name, p: nn.Parameter(torch.zeros(shapes[name])) if name in shapes else without_values(name, p))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=draw)))
        for name, module in fresh.named_modules():
            mine = [part for part in shapes if part.startswith(f"{name}." if name else "")]
            if any("." not in part.removeprefix(f"{name}.") for part in mine) and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # for what transformers leaves as torch has it
            if mine:
                fresh._init_weights(module)  # type: ignore[operator]
    return {name: parameter.detach() for name, parameter in fresh.named_parameters() if name in shapes}


def _two_texts(tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """A short text and one of ``max_length`` tokens, made of the vocabulary, padded: the inputs of the comparison."""
    draw = torch.Generator().manual_seed(0)
    words = tokenizer.decode(torch.randint(len(tokenizer), (2 * max_length,), generator=draw), skip_special_tokens=True).split()
    return tokenize(tokenizer, [[(" ".join(words[:3]),)], [(" ".join(words),)]], max_length).inputs


def _agreeing(model: str, network: Any, start: Parameters, inputs: Mapping[str, Tensor]) -> ModuleLogits:
    """The model as a function, in the first form that agrees with the plain model."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    alone = [{name: tensor[i : i + 1, :length] for name, tensor in inputs.items()} for i, length in enumerate(_lengths(inputs))]
    wanted = torch.cat([functional_call(network, leaves, (), one).logits for one in alone])
    slopes = torch.autograd.grad(_weighted(wanted), list(leaves.values()), allow_unused=True)
    wanted = wanted.detach()
    if not bool(torch.isfinite(wanted).all()):
        raise UsageError(f"{model}: the logits at the start are not finite; its weights are damaged")
    window = getattr(network.config, "sliding_window", None)
    forms = [Attention(additive=True), Attention(additive=True, causal=True), Attention()]
    if window is not None and "sliding_attention" in (getattr(network.config, "layer_types", None) or ()):
        forms.insert(0, Attention(additive=True, window=window))
    reasons = []
    for kernel, attention in product(("eager", "sdpa"), forms):
        trial = copy.deepcopy(network)
        with _quiet():
            trial.set_attn_implementation(kernel)
        logits = ModuleLogits(trial, attention=attention)
        try:
            reason = _difference(logits, leaves, inputs, wanted, dict(zip(leaves, slopes, strict=True)))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model does that vmap cannot
            reason = str(error).partition("\n")[0][:120]
        if reason is None:
            return logits
        reasons.append(f"{kernel}, {attention}: {reason}")
    raise UsageError(f"{model} cannot be batched: no form of attention mask agrees with the plain model. {'; '.join(reasons)}")


def _difference(
    logits: ModuleLogits,
    start: Parameters,
    inputs: Mapping[str, Tensor],
    wanted: Tensor,
    slopes: Mapping[str, Tensor | None],
) -> str | None:
    """What differs from the plain model, batched over two replicas and over the examples; None where nothing does.

    The first replica has other values, so that no replica can pass for another.
    """
    stacked = {name: torch.stack([1.1 * tensor, tensor]).detach().requires_grad_() for name, tensor in start.items()}
    found: Tensor = vmap(lambda mine: logits(mine, inputs))(stacked)
    own = torch.autograd.grad(_weighted(found[1]), list(stacked.values()), allow_unused=True)
    size = max(float(slope.norm()) for slope in slopes.values() if slope is not None)
    if not _close(found[1], wanted, float(wanted.norm())):
        return f"logits of replicas differ by {float((found[1] - wanted).abs().max()):.2g}"
    for (name, slope), mine in zip(slopes.items(), own, strict=True):
        if slope is not None and (mine is None or not _close(mine[1], slope, size)):
            return f"the gradient by {name} differs"
    thin = {name: tensor.detach() for name, tensor in start.items() if tensor.ndim == 1}  # every layer has some: norms, biases
    rest = {name: tensor.detach() for name, tensor in start.items() if tensor.ndim > 1}

    def one(mine: Parameters, each: Mapping[str, Tensor]) -> Tensor:
        return logits({**rest, **mine}, {name: tensor.unsqueeze(0) for name, tensor in each.items()})[0]

    singly: Tensor = vmap(one, in_dims=(None, 0))(thin, dict(inputs))
    if not _close(singly, wanted, float(wanted.norm())):
        return f"logits of examples differ by {float((singly - wanted).abs().max()):.2g}"
    weights = _weights(wanted)
    each = vmap(grad(lambda mine, one_input, weight: (one(mine, one_input) * weight).sum()), in_dims=(None, 0, 0))
    for name, slope in each(thin, dict(inputs), weights).items():
        total = slopes[name]
        if total is not None and not _close(slope.sum(0), total, size):
            return f"the gradient of examples by {name} differs"
    return None


def _close(found: Tensor, wanted: Tensor, size: float) -> bool:
    """To a thousandth of its norm, and a millionth of the largest norm, which rounding alone may cost."""
    return bool((found.detach() - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6 * size)


def _weights(logits: Tensor) -> Tensor:
    return torch.arange(1.0, logits.numel() + 1).view_as(logits) / logits.numel()


def _weighted(logits: Tensor) -> Tensor:
    return (logits * _weights(logits)).sum()


def _lengths(inputs: Mapping[str, Tensor]) -> list[int]:
    return [int(count) for count in inputs["attention_mask"].sum(1)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports: what is loaded and what is new is told by :class:`Pretrained`."""
    from transformers.utils import logging

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
    """What transformers cannot load, said in our words with the remedy."""
    try:
        yield
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        folder = Path(model)
        if folder.is_dir():
            if not (folder / "config.json").exists():
                raise UsageError(f"{model} is no model: it has no config.json; {_LOCAL}") from error
            if not list(folder.glob("*.safetensors*")):
                kept = ", ".join(sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt"))) or "nothing"
                raise UsageError(
                    f"{model} has no weights in safetensors, but {kept}: pickled weights can run code and are refused; "
                    "convert them once with transformers (save_pretrained) where you trust them"
                ) from error
            raise UsageError(f"{model} cannot be loaded as a sequence classifier: {reason}") from error
        raise UsageError(f"model {model!r} is no folder here, and the hub did not give it: {reason}; {_LOCAL}") from error
