"""Methods of the package peft: LoRA by name, and any of its configurations."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stability.checks import check_number, check_whole
from stability.errors import UsageError, one_line
from stability.machine import out_of_memory
from stability.problems.attention import Attention
from stability.problems.grouping import Grouping
from stability.problems.problem import ModuleLogits
from stability.selectors.inserted import Inserted
from stability.selectors.places import OTHERS, QUERY_AND_VALUE, linear_names, lora_places, named
from stability.selectors.trial import LOOP

__all__ = ["LoRA", "Peft"]

_REFUSED = {
    "eva": "starts at what initialize_lora_eva_weights computes from S, elsewhere without an example; runs here share a start",
    "corda": "starts at what preprocess_corda computes from data, elsewhere without an example; runs here share a start",
    "lora_ga": "starts at what preprocess_loraga computes from S, elsewhere without an example; runs here share a start",
    "alora_invocation_tokens": "needs the places of these tokens in every text",
    "arrow_config": "routes between adapters that were trained before (create_arrow_model)",
    "use_qalora": "needs weights that GPTQ has quantised",
    "LILY": "averages its router over a batch, so that no example could be left out by its weight",
    "MULTITASK_PROMPT_TUNING": "needs the task of every example (task_ids)",
    "POLY": "needs the task of every example (task_ids)",
    "SHADOW": "trains a second model with a loss of its own",
    "XLORA": "mixes adapters that were trained before",
    "CPT": "is for models that generate text, not for classifiers",
}
"""What a method is that cannot be trained by layers, a loss and plain dropout alone, by the method or setting."""

_OF_THE_FILE = ("peft_version", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping")
"""What a saved configuration says of its file."""


@dataclass(frozen=True)
class LoRA(Inserted):
    """W x + (alpha / rank) · B A x beside the query and value matrices, through ``peft`` (Hu et al. 2022, section 4.1).

    B = 0 at the start, so that the first outputs are the pretrained model's. Only A, B and the new head are trained. Where one
    fused matrix holds queries, keys and values, as in GPT-2, GPT-NeoX and Phi-3, B A is added beside this matrix, as peft does,
    and so it changes the keys too. Beside a layer that the model uses several times, as ALBERT does, there is one B A.

    Attributes:
        rank: the rank of B A, at least 1.
        alpha: the numerator of the scale alpha / rank; None stands for 2 · rank.
        targets: a regular expression that matches the whole names of the modules beside which B A is added; by default those
            of the query and value matrices, found by the names that transformers gives them.

    Raises:
        UsageError: a rank below 1 or an alpha that is not finite; on selecting: peft is not installed, no module's name
            matches, or the model is no torch module.

    Example:
        >>> from stability.problems import load
        >>> LoRA(rank=2).select(load("digits"), seed=0)
        Mask(k=768, m=27200)
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | None = None

    name: ClassVar[str] = "lora"
    wrapper: ClassVar[str] = "model."

    def __post_init__(self) -> None:
        check_whole(1, rank=self.rank)
        check_number(alpha=self._alpha)

    @property
    def _alpha(self) -> float:
        return 2 * self.rank if self.alpha is None else self.alpha

    def settings(self) -> dict[str, Any]:
        """What defines the selector, with the alpha that is used. Targets found by name are written as they always were."""
        return {**super().settings(), "alpha": self._alpha, "targets": self.targets or QUERY_AND_VALUE[0]}

    def insert(self, module: nn.Module) -> nn.Module:
        if self.targets is not None:
            named(self.targets, module)
        alpha: Any = self._alpha
        config = _peft(self.name).LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=self.targets or lora_places(module))
        return _injected(self.name, config, module)


@dataclass(frozen=True)
class Peft(Inserted):
    """Any configuration of ``peft``: ``Peft(IA3Config(target_modules=…, feedforward_modules=…))``.

    The parameters that peft would train are trained, with the new head. Plain dropout is on where the algorithm's is. A SHiRA
    configuration adds no tensor here: it is a mask over the matrices that it names, trained like any other.

    A method is trained as it is, or refused. Refused is what takes more than layers, plain dropout and a loss: a start that is
    computed from data (EVA, CorDA, LoRA-GA), changes between steps (AdaLoRA), a further loss (KaSA), changed gradients (OSF),
    sampling (PVeRA). Prompts and prefixes, for models of texts, and random starts with an effect are trained too. They are no
    p-sparse fine-tuned models, because they do not start at the pretrained model's outputs, and the bounds do not apply to them.

    Attributes:
        config: the configuration; with ``target_modules`` where peft does not know the model. No module of the new head is a
            target, whatever it names: the head is trained in full.

    Raises:
        UsageError: ``config`` is no configuration of a method, or holds what is no setting of it, such as a function; on
            selecting: ``peft`` is not installed, no module matches, the model fails with the method, or the method takes more
            than its layers.

    Example:
        >>> import peft
        >>> from stability.problems import load
        >>> Peft(peft.LNTuningConfig(target_modules=["layernorm_before", "layernorm_after"])).select(load("digits"), seed=0)
        Mask(k=384, m=26432)
    """

    config: Any

    wrapper: ClassVar[str] = "model."

    def __post_init__(self) -> None:
        if getattr(self.config, "peft_type", None) is None:
            raise UsageError(
                f"config = {self.config!r} is a configuration of no method: use one of peft's methods, such as peft:LoraConfig"
            )
        settings = {field.name for field in fields(self.config)}
        for name, value in vars(self.config).items():
            of_peft = hasattr(type(self.config), name) or str(getattr(value, "__module__", "")).startswith("peft.")
            if name not in settings and value is not None and not of_peft:
                raise UsageError(
                    f"{self.name}: {name} is no setting of the configuration, so that results could not say what it was: leave "
                    "it out (from_scores makes a mask from a function)"
                )

    @property
    def name(self) -> str:
        return f"peft-{self.config.peft_type.value.lower().replace('_', '-')}"

    def settings(self) -> dict[str, Any]:
        """What defines the selector: its name and the configuration's settings that are set; none of those of peft's files."""
        own = {
            k: _plain(v)
            for k, v in self.config.to_dict().items()
            if v is not None and k not in _OF_THE_FILE and not k.startswith("save_")
        }
        return {"name": self.name, "config": own}

    def insert(self, module: nn.Module) -> nn.Module:
        return _injected(self.name, self.config, module)

    def forms(self, logits: ModuleLogits) -> Iterator[ModuleLogits]:
        """Prompts are put before the mask (B, T) that transformers takes, and before texts of one length where padding shows."""
        if _adds_prompts(self.config):
            plain = replace(logits, attention=Attention(), batched=None)
            yield plain
            yield replace(plain, grouping=Grouping(unpadded=True), batched=False)

    def changed(self, module: nn.Module) -> dict[str, Tensor]:
        found = {}
        for name, layer in module.named_modules():
            if places := getattr(layer, "shira_indices", None):
                if any(weight.any() for weight in layer.shira_weight.values()):
                    raise UsageError(f"{self.name} is no equivalent model (Definition 2): init_weights = False; leave it out")
                rows, columns = next(iter(places.values())).long()
                found[f"{name}.base_layer.weight"] = (rows * layer.base_layer.weight.shape[1] + columns).sort().values
        return found


def _peft(name: str) -> Any:
    """The package peft, needed by the selector ``name``."""
    try:
        import peft
    except ImportError as error:
        raise UsageError(f"{name} needs the package peft: pip install 'peft-stability[peft]'; {OTHERS}") from error
    return peft


def _adds_prompts(config: Any) -> bool:
    return bool(config.is_prompt_learning or config.is_adaption_prompt)


def _injected(name: str, config: Any, module: nn.Module) -> nn.Module:
    """``module`` with what ``config`` adds, inside peft's tuner, because some methods' layers share tensors with it."""
    package = _peft(name)
    config = copy.deepcopy(config)  # peft writes what it found into it
    if getattr(config, "modules_to_save", None):
        raise UsageError(f"{name}: modules_to_save = {config.modules_to_save}: leave it out, the new head is always trained")
    asked = {config.peft_type.value, getattr(config, "init_lora_weights", ""), *(k for k, v in vars(config).items() if v)}
    for setting in sorted(asked & _REFUSED.keys()):
        raise _refused(name if setting == config.peft_type.value else f"{name} with {setting}", _REFUSED[setting])
    config.inference_mode = False  # a configuration read from a saved adapter has True, and is trained here all the same
    if getattr(config, "random_seed", 0) is None:
        config.random_seed = int(torch.randint(2**31, ()))
    if hasattr(config, "progressbar"):
        config.progressbar = False
    layers = (
        f"; this model's linear layers are called {linear_names(module)}; the new head is no target, it is always trained in full"
    )
    try:
        with warnings.catch_warnings():
            # Peft warns of what it sets itself and of merging. A check of the outputs decides what is right.
            own = "Unsupported layer type|fan_in_fan_out is set to|LoRA adapter added to ConvNd|`is_gradient_checkpointing`"
            warnings.filterwarnings("ignore", own)
            if _adds_prompts(config):
                return _prompted(name, config, module)
            tuner: nn.Module = package.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](module, config, "default")
    except UsageError:
        raise
    except Exception as error:  # whatever it is, peft could not insert its layers
        if out_of_memory(error):
            raise
        raise UsageError(f"{name}: peft refuses: {_line(error)}{'' if _adds_prompts(config) else layers}") from error
    if hasattr(tuner, "update_and_allocate") and getattr(config, "use_asa", True):
        raise _refused(name, "changes its ranks after every step (update_and_allocate)")
    for loss in dir(tuner):
        if re.fullmatch(r"_get_\w+_loss", loss) and isinstance(getattr(tuner, loss)(), Tensor):
            raise _refused(name, f"needs a further term of the loss ({loss})")
    return tuner


def _prompted(name: str, config: Any, module: nn.Module) -> nn.Module:
    """``module`` inside peft's model that puts prompts or prefixes before its texts."""
    if config.task_type not in (None, "SEQ_CLS"):
        raise UsageError(f"{name}: task_type = {config.task_type}: leave it out, the models here are classifiers (SEQ_CLS)")
    if not hasattr(getattr(module, "config", None), "vocab_size"):
        raise UsageError(f"{name} puts prompts before texts, and {type(module).__name__} takes none: use a method that adds layers")
    config.task_type = "SEQ_CLS"  # with which peft's model puts them there; without a task it ignores them
    # Peft would train a copy of the whole classifier, of what is pretrained in it too. Here the new head is trained, in its place.
    classifiers = {leaf: part for leaf, part in module._modules.items() if "classifier" in leaf or "score" in leaf}
    module._modules.update(dict.fromkeys(classifiers))
    model: Any = _peft(name).PeftModelForSequenceClassification(module, config)
    module._modules.update(classifiers)
    for leaf in classifiers:
        model.cls_layer_name = leaf  # where prefixes go on behind the pretrained part
    result: nn.Module = model
    return result


def _refused(name: str, what: str) -> UsageError:
    """The error for a method whose layers alone would be another method under its name."""
    return UsageError(f"{name} {what}. Its layers alone would be another method under this name; {LOOP}")


def _line(error: Exception) -> str:
    """What an error says, on one line of bounded length."""
    text = one_line(error, None) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:120]} … {text[-120:]}"


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; a set in sorted order."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(mine) for key, mine in value.items()}
    return value if isinstance(value, (str, int, float, bool, list, tuple)) or value is None else str(value)
