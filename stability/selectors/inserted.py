"""Methods that insert modules: Adapter, LoRA, any configuration of peft.

Each maps the problem to its *equivalent problem* (Fu et al. 2023, Definition 2: same outputs, more parameters, the new ones
starting at no effect) and then selects the parameters that it inserted. Training, replicas, bounds and files see an ordinary
problem. There p is the number of trained parameters divided by that of all parameters, in the equivalent model.
"""

from __future__ import annotations

import copy
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from stability.checks import check_choice, check_number, check_whole
from stability.errors import UsageError
from stability.machine import out_of_memory
from stability.masks import Mask, Parameters
from stability.problems.drawing import DrawingFrom
from stability.problems.problem import Insertion, ModuleLogits, Problem, generator, refill, without_values
from stability.selectors.base import Selector

__all__ = ["Adapter", "Inserted", "LoRA", "Peft"]

_OTHERS = "full, random, magnitude, sam and childpruning apply to any model"
_ATTENTION_OUTPUT = r"attention\.output\.dense|(attention|attn|self_attn)\.(o_proj|out_proj|out_lin|c_proj|Wo|o)"
_FEED_FORWARD_OUTPUT = r"(?<!attention)\.output\.dense|(mlp|ffn)\.(fc2|down_proj|c_proj|lin2|Wo)|layers\.\d+\.fc2"
_QUERY_AND_VALUE = r"query|value|q_proj|v_proj|query_proj|value_proj|q_lin|v_lin|c_attn|Wqkv"

# What peft leaves to a further call of its user, by the method or setting that needs it.
_NEEDS = {
    "eva": "a start that is computed from data (initialize_lora_eva_weights)",
    "corda": "a start that is computed from data (preprocess_corda)",
    "lora_ga": "a start that is computed from data (preprocess_loraga)",
    "alora_invocation_tokens": "the places of these tokens in every text",
    "arrow_config": "trained adapters to route between (create_arrow_model)",
    "use_qalora": "weights that GPTQ has quantised",
    "POLY": "the task of every example (task_ids)",
    "SHADOW": "a second model and a loss for it",
    "XLORA": "trained adapters to mix",
}
# What a saved configuration says of its file.
_OF_THE_FILE = ("peft_version", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping")


class Inserted(Selector):
    """A method that inserts modules into the model and trains those. A subclass writes :meth:`insert`.

    Attributes:
        wrapper: the prefix that :meth:`insert` puts before every name. The inserted parameters are named without it.

    Example:
        >>> from stability.problems import load
        >>> class Shift(nn.Module):
        ...     def __init__(self, layer):
        ...         super().__init__()
        ...         self.layer, self.by = layer, nn.Parameter(torch.zeros(layer.out_features))
        ...
        ...     def forward(self, x):
        ...         return self.layer(x) + self.by
        >>> class Shifted(Inserted):
        ...     name = "shifted"
        ...
        ...     def insert(self, module):
        ...         mlp = module.get_submodule("vit.layers.0.mlp")
        ...         mlp.fc2 = Shift(mlp.fc2)
        ...         return module
        >>> Shifted().select(load("digits"), seed=0)
        Mask(k=32, m=26464)
    """

    wrapper: ClassVar[str] = ""

    @abstractmethod
    def insert(self, module: nn.Module) -> nn.Module:
        """Insert the method's modules.

        Args:
            module: the pretrained model on the CPU, a copy that may be changed. None of its parameters requires a gradient.
                The parts that make up its new head are None meanwhile: the head is trained in full, and nothing goes into it.
                Random starts are drawn as usual: draws from torch's global generator come from one of the seed's instead.

        Returns:
            The model with the modules inserted, ``module`` itself or another. The method trains the parameters that have
            ``requires_grad``.

        Raises:
            UsageError: there is nothing to insert into.
        """

    def changed(self, module: nn.Module) -> dict[str, Tensor]:
        """The coordinates that the method trains, where it adds no tensor and changes coordinates of the model's own.

        Args:
            module: what :meth:`insert` returned.

        Returns:
            The flat indices of those coordinates by the tensors' names in ``module``; empty where the method adds tensors.
        """
        return {}

    def equivalent(self, problem: Problem, seed: int) -> Problem:
        """The problem with the modules inserted; ``problem`` itself where they are in it already.

        Pretrained tensors keep their names. They keep their values too, except where the method moves a part of a tensor into
        what it inserts: PiSSA leaves W − B A. The θ⁰ of the equivalent problem is what the method leaves. A tensor that the new
        model no longer uses, because a trained copy stands in its place, is left out, so that the parameters that a method
        *changes* count once.

        Args:
            problem: the problem to insert into. Its model is a torch module.
            seed: the seed of the random starts.

        Raises:
            UsageError: the model is no torch module, there is nothing to insert into, the outputs at the start are not
                the pretrained model's, the new model cannot be batched over replicas, or its training would take more than
                its layers and plain dropout.
        """
        by = {**self.settings(), "seed": seed}
        if problem.insertion is not None:
            if problem.insertion.by == by:
                return problem
            raise UsageError(f"{self.name}: {problem.insertion.by['name']} has inserted modules already: load the problem anew")
        if not isinstance(problem.logits, ModuleLogits):
            raise UsageError(
                f"{self.name} inserts modules into a torch module, and the model of {problem.name!r} is a function: {_OTHERS}"
            )
        start, own_name = problem.start(seed), problem.logits.names
        module = copy.deepcopy(problem.logits.to(torch.device("cpu")).module)
        if odd := {name for name, _ in module.named_parameters()} - {own_name.get(name, name) for name in start}:
            raise UsageError(f"{self.name}: the module has parameters that the problem lacks: {', '.join(sorted(odd)[:3])}")
        old = {own_name.get(name, name): nn.Parameter(t.detach().cpu().clone(), requires_grad=False) for name, t in start.items()}
        refill(module, lambda name, _: old[name])
        known = {id(old[own_name.get(name, name)]): name for name in start}
        head = {one for one, name in known.items() if name not in problem.pretrained}
        body = set(module.modules())
        draws = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator(seed, "selection"))))
        with _without_parts(module, head), DrawingFrom(draws):
            module = self.insert(module).eval()
        if indices := self.changed(module):
            parameters = dict(module.named_parameters())
            shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
            mask = Mask(shapes, {known[id(parameters[name])]: index for name, index in indices.items()})
            return replace(problem, insertion=Insertion(by, mask))
        return self._equivalent(problem, module, start=start, known=known, body=body, by=by)

    def _equivalent(
        self,
        problem: Problem,
        module: nn.Module,
        *,
        start: Parameters,
        known: Mapping[int, str],
        body: Collection[nn.Module],
        by: Mapping[str, Any],
    ) -> Problem:
        """The problem around ``module``, the model with the modules inserted, after a check that its outputs are the same.

        ``known`` gives the names of the pretrained parameters by their identity, ``body`` are the modules that were there
        before, and ``by`` is what inserted the others.
        """
        like = next(iter(problem.pretrained.values()))
        own_name, pretrained, trained = {}, {}, []
        for own, parameter in module.named_parameters():
            name = known.get(id(parameter), own.removeprefix(self.wrapper))
            own_name[name] = own
            if parameter._backward_hooks:
                raise UsageError(
                    f"{self.name} changes the gradient of {name} by a hook, and hooks on parameters are not called here: without "
                    "them another method would be trained under this name"
                )
            if id(parameter) not in known:
                pretrained[name] = parameter.detach().to(like)
            elif name in problem.pretrained:
                before = problem.pretrained[name]
                pretrained[name] = before if torch.equal(parameter, before.cpu()) else parameter.detach().to(before)
            if parameter.requires_grad and name in pretrained:
                trained.append(name)
        if not trained:
            raise UsageError(f"{self.name} leaves nothing to train: every parameter that it inserts is frozen; unfreeze one")
        refill(module, without_values)
        assert isinstance(problem.logits, ModuleLogits)
        names = {name: own for name, own in own_name.items() if name != own}
        logits = replace(problem.logits, module=module, names=names).to(like.device)
        head = {name: tensor for name, tensor in start.items() if name not in problem.pretrained}
        sample = problem.train.take(slice(0, 2)).inputs
        try:
            replaced = _used(problem.logits, start, sample) - _used(logits, {**pretrained, **head}, sample)
            without = {name: tensor for name, tensor in pretrained.items() if name not in replaced}
            wanted = problem.logits(start, sample)
            found, _ = _through_vmap(logits, {**without, **head}, trained, sample)
            if not _equal(found, wanted):  # a layer may read a tensor's values past autograd's back
                without = pretrained
                found, _ = _through_vmap(logits, {**without, **head}, trained, sample)
        except Exception as error:  # whatever it is, the engine could not run this model
            if out_of_memory(error):
                raise
            raise UsageError(
                f"{self.name} cannot be trained here, its layers do not batch over replicas: {_line(error)}"
            ) from error
        if not _equal(found, wanted):
            raise UsageError(
                f"{self.name} is no equivalent model (Definition 2): at the start its logits differ by up to "
                f"{float((found - wanted).abs().max()):.2g} from the pretrained model's; start it at no effect"
            )
        known_parts = {name for name, part in module.named_modules() if part in body}
        if more := _more_in_training(logits, known_parts, {**without, **head}, trained, inputs=sample):
            raise UsageError(
                f"{self.name} cannot be trained here: beside plain dropout, its layers do more in training than in evaluation "
                f"({more}), and here they would not; set a dropout of its own to 0, or choose another method"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in without.items()}
        mask = Mask(shapes, {name: torch.arange(without[name].numel()) for name in trained})
        return replace(problem, pretrained=without, logits=logits, insertion=Insertion(by, mask))

    def select(self, problem: Problem, seed: int) -> Mask:
        insertion = self.equivalent(problem, seed).insertion
        assert insertion is not None
        return insertion.tunable


@contextmanager
def _without_parts(module: nn.Module, parameters: Collection[int]) -> Iterator[None]:
    """``module`` without the parts whose parameters are all among ``parameters``, which are given by their identity."""
    parts = [
        (owner, leaf, part)
        for owner in module.modules()
        for leaf, part in owner.named_children()
        if (own := [id(parameter) for parameter in part.parameters()]) and all(one in parameters for one in own)
    ]
    for owner, leaf, _ in parts:
        setattr(owner, leaf, None)  # it keeps its place among its owner's parts
    yield
    for owner, leaf, part in parts:
        setattr(owner, leaf, part)


class _WithoutDropout(TorchFunctionMode):
    """While it is entered, ``torch.nn.functional.dropout`` changes nothing, so that what else layers do in training is seen.

    What is drawn by ``torch.rand`` is all but 0, without a draw: a dropout of another kind drops everything, whatever its rate,
    and nothing at rate 0. All else that draws is an error under ``vmap``.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.dropout:
            return args[0]
        if func is torch.rand:
            return torch.empty(*args, **(kwargs or {})).fill_(torch.finfo(torch.float32).tiny)
        return func(*args, **(kwargs or {}))


def _through_vmap(
    logits: ModuleLogits, parameters: Parameters, trained: list[str], inputs: Mapping[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The logits as the engine computes them, batched over two replicas, and the slopes of their sum."""
    stacked = {name: parameters[name].expand(2, *parameters[name].shape).clone().requires_grad_() for name in trained}
    found: Tensor = vmap(lambda mine: logits({**parameters, **mine}, inputs))(stacked)
    slopes = torch.autograd.grad(found.sum(), list(stacked.values()), allow_unused=True)
    return found[1].detach(), [slope for slope in slopes if slope is not None and slope.numel()]


def _more_in_training(
    logits: ModuleLogits, body: Collection[str], parameters: Parameters, trained: list[str], *, inputs: Mapping[str, Tensor]
) -> str:
    """What the modules beside those of ``body`` do in training, beside plain dropout, and not in evaluation; empty: nothing."""
    wanted, slopes = _through_vmap(logits, parameters, trained, inputs)
    for name, part in logits.module.named_modules():
        part.training = name not in body
    try:
        with _WithoutDropout():
            found, again = _through_vmap(logits, parameters, trained, inputs)
    except Exception as error:
        if out_of_memory(error):
            raise
        return _line(error).partition(". ")[0]
    finally:
        logits.module.eval()
    same = len(slopes) == len(again) and all(map(_equal, (found, *again), (wanted, *slopes)))
    return "" if same else "its outputs or gradients differ"


def _equal(found: Tensor, wanted: Tensor) -> bool:
    """Whether both are equal up to rounding in another order of operations."""
    tolerance = max(1e-5, 4 * torch.finfo(wanted.dtype).eps) * max(1.0, float(wanted.abs().max()))
    return float((found - wanted).abs().max()) <= tolerance


def _used(logits: Callable[..., Tensor], parameters: Parameters, inputs: Mapping[str, Tensor]) -> set[str]:
    """The names of the parameters that the logits depend on."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    slopes = torch.autograd.grad(logits(leaves, inputs).sum(), list(leaves.values()), allow_unused=True)
    return {name for name, slope in zip(leaves, slopes, strict=True) if slope is not None}


@dataclass(frozen=True)
class Adapter(Inserted):
    """Bottlenecks x + U · GELU(D x + d) + u after the attention and feed-forward blocks of every layer, inside their residual
    branches (Houlsby et al. 2019, section 2.1). With ``places="feed_forward"`` they are behind the feed-forward block alone
    (Pfeiffer et al. 2021).

    U = 0 and u = 0 at the start, so that the first outputs are the pretrained model's. D and d start as torch's linear layers
    do. Only the bottlenecks and the new head are trained: k = 2 · width · features + width + features for each bottleneck.

    Attributes:
        width: the number of units in each bottleneck.
        places: ``both`` blocks, or ``feed_forward`` alone.

    Raises:
        UsageError: a width below 1 or unknown places; on selecting: the model has no such blocks, or is no torch module.

    Example:
        >>> from stability.problems import load
        >>> Adapter(width=4).select(load("digits"), seed=0)
        Mask(k=1752, m=28184)
    """

    width: int = 8
    places: Literal["both", "feed_forward"] = "both"

    name: ClassVar[str] = "adapter"

    def __post_init__(self) -> None:
        check_whole(1, width=self.width)
        check_choice(("both", "feed_forward"), places=self.places)

    def insert(self, module: nn.Module) -> nn.Module:
        kinds = {"attention": _ATTENTION_OUTPUT, "feed-forward": _FEED_FORWARD_OUTPUT}
        if self.places == "feed_forward":
            del kinds["attention"]
        found = []
        for kind, pattern in kinds.items():
            mine = [name for name, _ in module.named_modules() if re.search(f"({pattern})$", name)]
            if not mine:
                raise UsageError(
                    f"adapter goes behind the {kind} blocks, and {type(module).__name__} has none that is known by name (such as "
                    f"attention.output.dense or mlp.fc2): {_OTHERS}"
                )
            found += mine
        for name in found:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, _Bottleneck(module.get_submodule(name), self.width))
        return module


class _Bottleneck(nn.Module):
    """A layer with a bottleneck behind it."""

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        features = int(base_layer.bias.numel()) if isinstance(base_layer.bias, Tensor) else int(base_layer.out_features)  # type: ignore[arg-type]
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(features, width), nn.Linear(width, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, *args: Any) -> Tensor:
        x: Tensor = self.base_layer(*args)
        result: Tensor = x + self.up(nn.functional.gelu(self.down(x)))
        return result


@dataclass(frozen=True)
class LoRA(Inserted):
    """W x + (alpha / rank) · B A x beside the query and value matrices, through ``peft`` (Hu et al. 2022, section 4.1).

    B = 0 at the start, so that the first outputs are the pretrained model's. Only A, B and the new head are trained.

    Attributes:
        rank: the rank of B A, at least 1.
        alpha: the numerator of the scale alpha / rank; None stands for 2 · rank.
        targets: a regular expression that matches the whole names of the modules beside which B A is added; by default those
            of the query and value matrices.

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
    targets: str = rf".*\.({_QUERY_AND_VALUE})"

    name: ClassVar[str] = "lora"
    wrapper: ClassVar[str] = "model."

    def __post_init__(self) -> None:
        check_whole(1, rank=self.rank)
        check_number(alpha=self._alpha)

    @property
    def _alpha(self) -> float:
        return 2 * self.rank if self.alpha is None else self.alpha

    def settings(self) -> dict[str, Any]:
        """What defines the selector, with the alpha that is used."""
        return {**super().settings(), "alpha": self._alpha}

    def insert(self, module: nn.Module) -> nn.Module:
        alpha: Any = self._alpha
        return _inject(self.name, _peft(self.name).LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=self.targets), module)


@dataclass(frozen=True)
class Peft(Inserted):
    """Any configuration of ``peft`` that inserts layers: ``Peft(IA3Config(target_modules=…, feedforward_modules=…))``.

    The parameters that peft would train are trained, with the new head. Plain dropout is on where the algorithm's is. A SHiRA
    configuration adds no tensor here: it is a mask over the matrices that it names, trained like any other.

    A method is trained as it is, or refused. Refused is what takes more than layers, plain dropout and a loss: a start that is
    computed from data (EVA, CorDA, LoRA-GA), changes between steps (AdaLoRA), a further loss (KaSA), changed gradients (OSF),
    sampling (PVeRA). Prompts and prefixes are not layers, and are refused.

    Attributes:
        config: the configuration; with ``target_modules`` where peft does not know the model. No module of the new head is a
            target, whatever it names: the head is trained in full.

    Raises:
        UsageError: ``config`` is no configuration of a method, or holds what is no setting of it, such as a function; on
            selecting: ``peft`` is not installed, no module matches, the method takes more than its layers, it does not start
            at the pretrained model's outputs, or its layers cannot be batched.

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
            if name not in settings and value is not None and not str(getattr(value, "__module__", "")).startswith("peft."):
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
        return _inject(self.name, self.config, module)

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
        raise UsageError(f"{name} needs the package peft: pip install 'peft-stability[peft]'; {_OTHERS}") from error
    return peft


def _inject(name: str, config: Any, module: nn.Module) -> nn.Module:
    """``module`` with the layers of ``config``, inside peft's tuner, because some methods' layers share tensors with it."""
    tuners = _peft(name).PEFT_TYPE_TO_TUNER_MAPPING
    config = copy.deepcopy(config)  # peft writes what it found into it
    if getattr(config, "modules_to_save", None):
        raise UsageError(f"{name}: modules_to_save = {config.modules_to_save}: leave it out, the new head is always trained")
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type not in tuners:
        raise UsageError(
            f"{name} adds prompts or prefixes, not layers: use a configuration that inserts layers, or adapter or lora"
        )
    asked = {config.peft_type.value, getattr(config, "init_lora_weights", ""), *(k for k, v in vars(config).items() if v)}
    for needy in sorted(asked & _NEEDS.keys()):
        raise _incomplete(name if needy == config.peft_type.value else f"{name} with {needy}", _NEEDS[needy])
    config.inference_mode = False  # a configuration read from a saved adapter has True, and is trained here all the same
    if getattr(config, "random_seed", 0) is None:
        config.random_seed = int(torch.randint(2**31, ()))
    kinds = sorted({own.rpartition(".")[2] for own, part in module.named_modules() if isinstance(part, nn.Linear)})
    try:
        with warnings.catch_warnings():
            # peft warns of the layers that LN-tuning is for. A check of the outputs decides whether the result is right.
            warnings.filterwarnings("ignore", "Unsupported layer type")
            tuner: nn.Module = tuners[config.peft_type](module, config, "default")
    except Exception as error:  # whatever it is, peft could not insert its layers
        if out_of_memory(error):
            raise
        raise UsageError(
            f"{name}: peft refuses: {_line(error)}; this model's linear layers are called {', '.join(kinds)}; the new head is no "
            "target, it is always trained in full"
        ) from error
    if hasattr(tuner, "update_and_allocate") and getattr(config, "use_asa", True):
        raise _incomplete(name, "a change of its ranks after every step (update_and_allocate)")
    for loss in dir(tuner):
        if re.fullmatch(r"_get_\w+_loss", loss) and isinstance(getattr(tuner, loss)(), Tensor):
            raise _incomplete(name, f"a further term of the loss ({loss})")
    return tuner


def _incomplete(name: str, need: str) -> UsageError:
    """The error for a method whose layers alone would be another method under its name."""
    return UsageError(
        f"{name} needs {need}, which it is not given here: without it, another method would be trained under this name; "
        "choose another one"
    )


def _line(error: Exception) -> str:
    """What an error says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:120]} … {text[-120:]}"


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; a set in sorted order."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(mine) for key, mine in value.items()}
    return value if isinstance(value, (str, int, float, bool, list, tuple)) or value is None else str(value)
