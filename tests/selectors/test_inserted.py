"""Methods that insert modules, against peft's own models, hooks, and arithmetic."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MobileBertConfig,
    MobileBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTForImageClassification,
)

from benchmarks import peft_methods
from stability import Examples, FineTuning, Problem, SparseDelta, StabilityError, UsageError, estimators, measure
from stability.bounds import estimate_constants, measured_bounds
from stability.derivatives.curvature import Eigenvalue
from stability.problems import convex
from stability.problems import digits as digits_module
from stability.problems.problem import ModuleLogits
from stability.selectors import Adapter, FullTuning, Inserted, LoRA, Peft, Selector
from stability.selectors.places import adapter_places
from stability.training.replicas import Replicas, train
from tests.reference import as_double

QV = ["q_proj", "v_proj"]
TABLES = json.loads((Path(peft_methods.__file__).parent / "results" / "peft-methods.json").read_text(encoding="utf-8"))


def plain_model(problem: Problem, parameters: dict[str, Tensor]) -> nn.Module:
    model: nn.Module = ViTForImageClassification(digits_module._config()).eval()
    model = model.to(next(iter(problem.pretrained.values())).dtype)
    model.load_state_dict({name: tensor for name, tensor in parameters.items() if name in dict(model.named_parameters())})
    return model


def trained(selector: Selector, problem: Problem, steps: int = 6) -> tuple[Problem, dict[str, Tensor]]:
    replicas = train(problem, FineTuning(selector, steps=steps, batch_size=8, learning_rate=0.01, seed=2))
    return replicas.problem, replicas.parameters(0)


def test_lora_is_the_merged_matrices(digits: Problem) -> None:
    """The trained model is the plain one with W + (alpha / rank) · B A in the place of W."""
    digits = as_double(digits)
    equivalent, tuned = trained(LoRA(rank=3, alpha=5), digits)
    merged = dict(tuned)
    for name in digits.pretrained:
        module = name.removesuffix(".weight")
        a, b = (next((t for n, t in tuned.items() if n.endswith(f"{module}.lora_{x}.default.weight")), None) for x in "AB")
        if a is not None and b is not None:
            merged[name] = tuned[name] + 5 / 3 * b @ a
    changed = [name for name in digits.pretrained if not torch.equal(merged[name], tuned[name])]
    assert len(changed) == 6
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    logits = plain_model(digits, merged)(**digits.test.inputs).logits
    torch.testing.assert_close(equivalent.logits(tuned, digits.test.inputs), logits, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore")  # what peft says of its own settings and workings is not our concern
@pytest.mark.parametrize("name", sorted(kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_configuration_of_the_installed_peft_runs_as_the_table_says_and_as_peft_s_own_model(name: str) -> None:
    """The table of the documentation; and from the same start and batches the logits of peft's model, trained by torch's AdamW."""
    found: list[Replicas] = []

    def made() -> Replicas:
        found.append(peft_methods.trained(name))
        return found[0]

    assert peft_methods.how_it_runs(made) == TABLES["methods"][name]
    # Of two peft draws shapes and places anew. DEFT starts with gradients that are nothing but rounding, of which AdamW makes
    # whole steps. SHiRA with a fixed draw and DEFT with another start are below.
    if found and name not in ("ADAMSS", "SHIRA", "DEFT"):
        agrees_with_peft(found[0], peft_methods.problem_for(name), peft_methods.configuration(name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=QV, bias="all"),
        peft.LoraConfig(r=2, target_modules=QV, init_lora_weights=False),
        peft.ShiraConfig(r=1, target_modules=QV, random_seed=7),
        peft.DeftConfig(r=2, target_modules=QV, init_weights=False),
    ],
    ids=["bias", "random start", "shira", "deft"],
)
def test_training_is_what_training_peft_s_own_model_is(config: Any, digits: Problem) -> None:
    replicas = train(digits, FineTuning(Peft(config), steps=3, batch_size=8, learning_rate=0.01, seed=2))
    agrees_with_peft(replicas, digits, config)


def agrees_with_peft(replicas: Replicas, problem: Problem, config: Any) -> None:
    """Peft's own model and requires_grad, from the same start, trained on the same batches by torch's AdamW: the same logits."""
    algorithm = replicas.algorithm
    assert isinstance(algorithm, FineTuning)
    start = problem.start(algorithm.seed)
    if "pixel_values" in problem.test.inputs:
        network = plain_model(problem, start)
    else:
        network, config.task_type = peft_methods.model(problem.name), "SEQ_CLS"
        network.load_state_dict(start, strict=False)
    model = peft.get_peft_model(network, config).eval()
    own = started_like(model, replicas.problem, problem)
    if "pixel_values" in problem.test.inputs:
        assert replicas.masks[0].count == sum(p.numel() for n, p in own.items() if p.requires_grad and "classifier" not in n)
    optimised(model, problem, algorithm)
    with torch.no_grad():
        expected = model(**problem.test.inputs).logits
    torch.testing.assert_close(replicas.logits(problem.test)[0], expected, rtol=0, atol=2e-5)


def started_like(model: nn.Module, equivalent: Problem, problem: Problem) -> dict[str, nn.Parameter]:
    """What was drawn at random for ``equivalent``, parameters and buffers, put into peft's own model; its parameters."""
    assert isinstance(equivalent.logits, ModuleLogits)
    parameters = dict(model.named_parameters())
    by_end = {name.removeprefix("base_model.").removeprefix("model."): p for name, p in parameters.items()}
    for name, tensor in equivalent.pretrained.items():
        if name not in problem.pretrained:
            by_end[name.removeprefix("base_model.").removeprefix("model.")].data.copy_(tensor)
    buffers = dict(equivalent.logits.module.named_buffers())
    for name, buffer in model.named_buffers():
        drawn = buffers.get(name.removeprefix("base_model."), buffers.get(name))
        assert drawn is not None
        buffer.copy_(drawn)
    return parameters


def optimised(model: nn.Module, problem: Problem, algorithm: FineTuning) -> nn.Module:
    """``model`` after the algorithm's batches, by torch's AdamW; peft's own ``requires_grad``, and the head's."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "classifier" in name or "score" in name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    for index in algorithm.batches(problem.train):
        optimizer.zero_grad()
        batch = problem.train.take(index)
        cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
        optimizer.step()
    return model


@pytest.mark.filterwarnings("ignore")  # what peft says of its own workings is not our concern
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_what_a_method_takes_out_of_a_matrix_stays_out(init: Any, digits: Problem, tmp_path: Path) -> None:
    """W − s B A is the frozen matrix, as in peft's own model, and training gives the weights and logits of that model."""
    config = peft.LoraConfig(r=3, lora_alpha=4, target_modules=QV, init_lora_weights=init)
    before = {name: tensor.clone() for name, tensor in digits.pretrained.items()}
    algorithm = FineTuning(Peft(config), steps=6, batch_size=8, learning_rate=0.01, seed=2)
    replicas = train(digits, algorithm, torch.stack([torch.ones(digits.n), torch.arange(digits.n).ne(0).float()]))
    equivalent = replicas.problem

    model = peft.get_peft_model(plain_model(digits, digits.start(2)), copy.deepcopy(config))
    own = {name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in model.named_parameters()}
    changed = [name for name in digits.pretrained if name.endswith(("q_proj.weight", "v_proj.weight"))]
    for name in changed:
        a, b = (name.replace(".weight", f".lora_{x}.default.weight") for x in "AB")
        start = equivalent.pretrained
        assert not torch.allclose(start[name], before[name], atol=1e-3)
        torch.testing.assert_close(start[name] + 4 / 3 * start[b] @ start[a], before[name], rtol=0, atol=1e-6)
        if init == "pissa_niter_4":  # its start is drawn at random
            for drawn in (a, b, name):
                own[drawn].data.copy_(start[drawn])
        else:
            assert torch.equal(start[name], own[name])
    logits = equivalent.logits(equivalent.start(2), digits.test.inputs)
    torch.testing.assert_close(logits, digits.logits(digits.start(2), digits.test.inputs), rtol=0, atol=1e-6)

    optimised(model, digits, algorithm)
    tuned = replicas.parameters(0)
    for name, tensor in tuned.items():
        torch.testing.assert_close(tensor, own[name].detach(), rtol=0, atol=2e-5)
    with torch.no_grad():
        expected = model(digits.test.inputs["pixel_values"]).logits
    torch.testing.assert_close(replicas.logits(digits.test)[0], expected, rtol=0, atol=1e-5)

    assert replicas.masks[0].count == 6 * 3 * (32 + 32)
    assert equivalent.m == digits.m + replicas.masks[0].count
    apart = [(tensor - replicas.parameters(1)[name]).double() for name, tensor in tuned.items()]
    torch.testing.assert_close(replicas.distances()[1], torch.cat([t.flatten() for t in apart]).norm())
    replicas.delta(0).save(tmp_path / "delta")
    delta = SparseDelta.load(tmp_path / "delta")
    again = delta.apply(Peft(config).equivalent(digits, seed=2).pretrained)
    assert all(torch.equal(again[name], tensor) for name, tensor in tuned.items())
    with pytest.raises(StabilityError, match="belongs to the pretrained parameters"):
        delta.apply(digits.pretrained)
    for name, tensor in digits.pretrained.items():
        assert torch.equal(tensor, before[name])
        assert name in changed or equivalent.pretrained[name].data_ptr() == tensor.data_ptr()


def test_adapter_is_a_bottleneck_behind_each_block(digits: Problem) -> None:
    """Against hooks on the plain model: x + U · gelu(D x + d) + u after o_proj and fc2 of every layer."""
    digits = as_double(digits)
    equivalent, tuned = trained(Adapter(width=3), digits)
    model, places = plain_model(digits, tuned), 0

    def behind(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: object, x: Tensor) -> Tensor:
            down, up = (tuned[f"{name}.{part}.weight"] for part in ("down", "up"))
            inner = nn.functional.gelu(x @ down.T + tuned[f"{name}.down.bias"])
            return x + inner @ up.T + tuned[f"{name}.up.bias"]

        return hook

    for name, module in model.named_modules():
        if name.endswith(("o_proj", "fc2")):
            module.register_forward_hook(behind(name))
            places += 1
    assert places == 6
    expected = model(**digits.test.inputs).logits
    torch.testing.assert_close(equivalent.logits(tuned, digits.test.inputs), expected, rtol=0, atol=1e-10)


def test_a_copy_in_the_place_of_a_tensor_counts_once(digits: Problem) -> None:
    """LN-tuning changes 384 coordinates: peft trains copies, and the originals, unused, are no part of the equivalent model."""
    config = peft.LNTuningConfig(target_modules=["layernorm_before", "layernorm_after"])
    mask = Peft(config).select(digits, seed=0)
    assert (mask.count, mask.total) == (384, digits.m)


def test_shira_is_a_mask_over_the_tensors_that_are_there(digits: Problem) -> None:
    mask = Peft(peft.ShiraConfig(r=2, target_modules=QV)).select(digits, seed=0)
    assert mask.total == digits.m
    assert {name: len(index) for name, index in mask.indices.items()} == {
        name: 2 * (32 + 32) for name in digits.pretrained if name.endswith(("q_proj.weight", "v_proj.weight"))
    }


def test_the_table_of_configurations_has_each_once_and_most_run() -> None:
    assert TABLES["methods"].keys() == {kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    assert TABLES["classes"] == peft_methods.classes()
    assert sum(row["runs"] != "refused" for row in TABLES["methods"].values()) >= 36


def text_problem(model: nn.Module, vocabulary: int = 50) -> Problem:
    """A tiny random language model as a problem: enough to insert into."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, vocabulary, (6, 7), generator=draw)
    mask = torch.zeros(6, 1, 7, 7)  # additive, four-dimensional: what vmap can batch
    examples = Examples({"input_ids": tokens, "attention_mask": mask}, torch.randint(0, 2, (6,), generator=draw))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    pretrained = {name: p for name, p in parameters.items() if "classifier" not in name}
    return Problem(
        name="tiny",
        settings={},
        pretrained=pretrained,
        new_head=lambda draw: {name: p for name, p in parameters.items() if "classifier" in name},
        logits=ModuleLogits(model.eval()),
        loss=lambda f, y: cross_entropy(f, y, reduction="none"),
        train=examples,
        test=examples,
        metric=lambda f, y: 0.0,
        metric_name="none",
    )


SIZE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 50}
EAGER = {"attn_implementation": "eager"}
FAMILIES: list[Callable[[], nn.Module]] = [
    lambda: BertForSequenceClassification(BertConfig(**SIZE, **EAGER)),
    lambda: RobertaForSequenceClassification(RobertaConfig(**SIZE, **EAGER)),
    lambda: DistilBertForSequenceClassification(
        DistilBertConfig(dim=8, n_layers=2, n_heads=2, hidden_dim=12, vocab_size=50, **EAGER)
    ),
]


PLACES = {  # how many trained parameters: LoRA of rank 4 beside matrices 16 x 16, Adapter of width 2 behind blocks of 16 features
    "albert": (2 * 128, 2 * 82),  # one layer, used twice
    "bart": (12 * 128, 10 * 82),
    "bert": (4 * 128, 4 * 82),
    "bloom": (2 * 4 * (16 + 48), 4 * 82),
    "deberta": (2 * 4 * (16 + 48), 4 * 82),
    "deberta-v2": (4 * 128, 4 * 82),
    "falcon": (2 * 4 * (16 + 32), 4 * 82),
    "funnel": (4 * 128, 4 * 82),
    "gpt_neox": (2 * 4 * (16 + 48), 4 * 82),
    "gptj": (4 * 128, 4 * 82),
    "mpnet": (4 * 128, 4 * 82),
    "opt": (4 * 128, 4 * 82),
    "phi3": (2 * 4 * (16 + 48), 4 * 82),
    "squeezebert": (4 * 4 * (16 + 4), 4 * 82),  # four groups share B
    "t5": (12 * 128, 10 * 82),
    "xlm": (4 * 128, 4 * 82),
}


@pytest.mark.parametrize("family", PLACES)
def test_other_families_have_their_blocks_found(family: str) -> None:
    """Query and value matrices for LoRA, attention and feed-forward outputs for Adapter, once where layers share them."""
    problem = peft_methods.texts(family, padded=False)
    for selector, count in zip((LoRA(rank=4), Adapter(width=2)), PLACES[family], strict=True):
        equivalent = selector.equivalent(problem, seed=0)
        assert equivalent.insertion is not None
        assert equivalent.insertion.equivalent
        mask = equivalent.insertion.tunable
        assert (mask.count, mask.total) == (count, problem.m + count)
        assert not any("classifier" in name or "pooler" in name for name in mask.indices)


def test_a_model_whose_blocks_were_known_gets_no_more_bottlenecks() -> None:
    """Its identity does not say where they are. MobileBERT's third inner block is called as CTRL's last layer, ``ffn.2``."""
    sizes = {**SIZE, "hidden_size": 16, "embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 4}
    with torch.device("meta"):
        network = MobileBertForSequenceClassification(MobileBertConfig(**sizes))
    layer = "mobilebert.encoder.layer"
    feed_forward = [f"{layer}.{i}.{part}output.dense" for i in range(2) for part in ("", "ffn.0.", "ffn.1.", "ffn.2.")]
    attention = [f"{layer}.{i}.attention.output.dense" for i in range(2)]
    found = adapter_places(network, ["attention", "feed-forward"])
    assert found[:2] == attention
    assert sorted(found[2:]) == sorted(feed_forward)
    assert sorted(adapter_places(network, ["feed-forward"])) == sorted(feed_forward)


def test_the_table_of_places_is_what_is_found() -> None:
    found = {family: peft_methods.places(family) for family in peft_methods.FAMILIES}
    assert found == TABLES["places"]
    assert len(found) >= 30
    assert sum(row["lora"] == "none known by name" for row in found.values()) <= 2


@pytest.mark.parametrize(
    ("selector", "family", "message"),
    [
        (
            LoRA(),
            "fnet",
            r"lora goes beside the query and value matrices, and FNetFor\w+ has none .*--option 'targets=\.\*\\\.\(dense",
        ),
        (
            Adapter(),
            "xlnet",
            r"adapter goes behind the attention blocks, and XLNet.* --option 'targets=.*linear layers layer_1, layer_2;",
        ),
        (Adapter(), "mixtral", "adapter goes behind the feed-forward blocks, and Mixtral.*--option 'targets="),
    ],
)
def test_a_model_without_known_names_is_told_its_own(selector: Selector, family: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        selector.select(peft_methods.texts(family), seed=0)
    assert "classifier" not in str(caught.value)


def test_targets_say_where_modules_go(digits: Problem) -> None:
    """Behind fc1, of 128 units, in each of three layers; and the settings of what has no targets are what they were."""
    mask = Adapter(width=2, targets=r".*\.fc1").select(digits, seed=0)
    features = digits.pretrained["vit.layers.0.mlp.fc1.bias"].numel()
    assert mask.count == 3 * (2 * 2 * features + 2 + features)
    assert all(".fc1." in name for name in mask.indices)
    assert Adapter(targets=r".*\.fc1").settings()["targets"] == r".*\.fc1"
    assert Adapter().settings() == {"name": "adapter", "width": 8, "places": "both"}
    found = "query|value|q_proj|v_proj|query_proj|value_proj|q_lin|v_lin|c_attn|Wqkv"
    assert LoRA().settings() == {"name": "lora", "rank": 8, "alpha": 16, "targets": rf".*\.({found})"}
    with pytest.raises(UsageError, match="says where the bottlenecks go: leave places 'feed_forward' out"):
        Adapter(places="feed_forward", targets="x")


def test_tied_parameters_stay_tied(digits: Problem) -> None:
    assert isinstance(digits.logits, ModuleLogits)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.o_proj = nn.Linear(4, 4, bias=False)
            self.attention = nn.ModuleDict({"o_proj": nn.Linear(4, 4, bias=False)})
            self.attention["o_proj"].weight = self.o_proj.weight
            self.mlp = nn.ModuleDict({"fc2": nn.Linear(4, 4, bias=False)})

        def forward(self, x: Tensor) -> Any:
            return type("Output", (), {"logits": self.mlp["fc2"](self.attention["o_proj"](self.o_proj(x)))})

    module = Tied()
    examples = Examples({"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}, torch.tensor([0, 1, 2]))
    tied = {name: p.detach() for name, p in module.named_parameters()}
    problem = dataclasses.replace(
        digits, pretrained=tied, new_head=lambda draw: {}, logits=ModuleLogits(module), train=examples, test=examples
    )
    assert list(problem.pretrained) == ["o_proj.weight", "mlp.fc2.weight"]
    equivalent = Adapter(width=1).equivalent(problem, seed=0)
    assert torch.equal(equivalent.logits(equivalent.pretrained, examples.inputs), problem.logits(tied, examples.inputs))


def test_a_bare_function_has_nowhere_to_insert() -> None:
    problem = convex.logistic(n=20, seed=0).problem
    for selector in (Adapter(), LoRA(), Peft(peft.LoraConfig(target_modules=QV))):
        with pytest.raises(UsageError, match="inserts modules into a torch module, and the model of 'logistic'.*full, random"):
            selector.select(problem, seed=0)


HEADS: list[tuple[Selector, int]] = [
    (Peft(peft.LoraConfig(r=2, target_modules="all-linear")), 2 * (4 * 2 * (8 + 8) + 2 * 2 * (8 + 12))),
    (Peft(peft.LoraConfig(r=2, target_modules=["dense", "out_proj"])), 2 * (2 * (8 + 8) + 2 * 2 * (8 + 12))),
    (LoRA(rank=2, targets=r".*\.(dense|out_proj)"), 2 * (2 * (8 + 8) + 2 * 2 * (8 + 12))),
    (Peft(peft.LNTuningConfig(target_modules=["query", "out_proj"])), 2 * (8 * 8 + 8)),
]


@pytest.mark.parametrize(("selector", "count"), HEADS, ids=["all-linear", "names", "pattern", "copies"])
def test_nothing_is_inserted_into_the_new_head(selector: Selector, count: int) -> None:
    """RoBERTa's head has a dense and an out_proj too: k counts the two layers' matrices alone, and the head is trained in full."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        problem = text_problem(FAMILIES[1]())
    replicas = train(problem, FineTuning(selector, steps=2, batch_size=4))
    assert replicas.masks[0].count == count
    assert not any("classifier" in name for name in replicas.problem.pretrained)
    head = problem.head(0)
    assert len(head) == 4
    assert replicas.delta(0).head.keys() == head.keys()
    assert all(not torch.equal(tensor, head[name]) for name, tensor in replicas.delta(0).head.items())


def test_the_new_head_keeps_its_place(digits: Problem) -> None:
    """A head amid a sequence: whatever stands behind it stays behind it."""

    class Amid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 3))

        def forward(self, x: Tensor) -> Any:
            return type("Output", (), {"logits": self.parts(x)})

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Amid()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    examples = Examples({"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}, torch.tensor([0, 1, 2]))
    problem = dataclasses.replace(
        digits,
        pretrained={name: p for name, p in parameters.items() if ".1." not in name},
        new_head=lambda draw: {name: p for name, p in parameters.items() if ".1." in name},
        logits=ModuleLogits(module),
        train=examples,
        test=examples,
    )
    assert Peft(peft.LoraConfig(r=1, target_modules="all-linear")).select(problem, seed=0).count == (4 + 4) + (5 + 3)


def lora(**settings: Any) -> Peft:
    return Peft(peft.LoraConfig(r=2, target_modules=QV, **settings))


def adamss(**settings: Any) -> Peft:
    return Peft(peft.AdamssConfig(r=8, num_subspaces=2, target_modules=QV, **settings))


@pytest.mark.filterwarnings("ignore")  # what peft says of its own settings is not our concern
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lora(init_lora_weights="eva"), "peft-lora with eva starts at what initialize_lora_eva_weights computes from S"),
        (lambda: lora(init_lora_weights="corda"), "peft-lora with corda starts at what preprocess_corda computes from data"),
        (lambda: lora(init_lora_weights="lora_ga"), "peft-lora with lora_ga starts at what preprocess_loraga computes from S"),
        (lambda: lora(alora_invocation_tokens=[5]), "with alora_invocation_tokens needs the places of these tokens"),
        (lambda: lora(arrow_config={}), "with arrow_config routes between adapters that were trained before"),
        (lambda: lora(use_qalora=True), "with use_qalora needs weights that GPTQ has quantised"),
        (lambda: lora(kasa_config={}), r"needs a further term of the loss \(_get_kasa_loss\)"),
        (lambda: lora(monteclora_config={}), r"needs a further term of the loss \(_get_monteclora_loss\)"),
        (lambda: lora(velora_config={"num_groups": 2}), "its layers do more in training"),
        (
            lambda: Peft(peft.AdaLoraConfig(total_step=9, target_modules=QV)),
            r"peft-adalora changes its ranks after every step \(update_and_allocate\).*a training loop of your own",
        ),
        (lambda: adamss(use_asa=True), "peft-adamss changes its ranks after every step"),
        (lambda: Peft(peft.PolyConfig(target_modules=QV)), "peft-poly needs the task of every example"),
        (lambda: Peft(peft.XLoraConfig()), "peft-xlora mixes adapters that were trained before"),
        (lambda: Peft(peft.ShadowConfig()), "peft-shadow trains a second model"),
        (lambda: Peft(peft.OSFConfig(target_modules=QV)), "peft-osf changes the gradient of .*U_low by a hook"),
        (lambda: Peft(peft.PveraConfig(r=2, target_modules=QV)), "do more in training .*random"),
        (lambda: Peft(peft.LoKrConfig(r=2, module_dropout=1e-6, target_modules=QV)), "a dropout of its own to 0"),
        (lambda: Peft(peft.BOFTConfig(boft_block_size=4, boft_dropout=0.1, target_modules=QV)), "a dropout of its own to 0"),
        (lambda: Peft(peft.ShiraConfig(r=1, init_weights=False, target_modules=QV)), "no equivalent model.*init_weights"),
        (lambda: Peft(peft.LilyConfig(target_modules=QV)), "peft-lily averages its router over a batch"),
        (lambda: Peft(peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1)), "puts prompts before texts, and ViTForImage"),
        (lambda: Peft(peft.LoraConfig(target_modules=".*")), "peft refuses: Target module ViTModel.*"),
    ],
)
def test_no_method_s_name_is_given_to_its_layers_alone(make: Callable[[], Peft], message: str, digits: Problem) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make().select(digits, seed=0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_adamss_without_a_schedule_is_its_layers(digits: Problem) -> None:
    assert adamss().select(digits, seed=0).count > 0


def test_plain_dropout_is_no_reason_to_refuse(digits: Problem) -> None:
    assert lora(lora_dropout=0.5).select(digits, seed=0).equals(lora().select(digits, seed=0))
    shared = Peft(peft.TinyLoraConfig(tinylora_dropout=0.5, target_modules=QV))  # one module stands in many layers
    for selector in (lora(lora_dropout=0.5), shared):
        train(digits, FineTuning(selector, steps=2, batch_size=8, dropout=True))


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (
            LoRA(targets=r".*\.nowhere"),
            r"targets = .*nowhere' matches no layer of ViT.* such as vit\.layers\..*called fc1, fc2, k_proj",
        ),
        (LoRA(targets="classifier"), "targets = 'classifier' matches no layer.*the new head is no target, it is always trained in"),
        (LoRA(targets="("), r"targets = '\(' is no regular expression"),
        (Adapter(targets="nowhere"), "targets = 'nowhere' matches no layer"),
        (
            Adapter(targets=r"vit\.layers\.0\.attention"),
            "layers.0.attention is a ViTAttention, and a bottleneck goes behind a linear layer",
        ),
        (Peft(peft.LoraConfig(target_modules=["classifier"])), "peft refuses: .*the new head is no target"),
        (Peft(peft.LoraConfig(target_modules=["nowhere"])), "peft-lora: peft refuses: .*nowhere.*fc1"),
        (Peft(peft.PrefixTuningConfig(num_virtual_tokens=2)), "peft-prefix-tuning puts prompts before texts"),
        (Peft(peft.LoraConfig(target_modules=QV, modules_to_save=["classifier"])), "the new head is always trained"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(selector: Selector, message: str, digits: Problem) -> None:
    with pytest.raises(UsageError, match=message):
        selector.select(digits, seed=0)


def test_a_model_without_attention_names_what_applies(digits: Problem) -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    problem = dataclasses.replace(
        digits,
        pretrained={"0.weight": torch.zeros(3, 4), "0.bias": torch.zeros(3)},
        new_head=lambda draw: {},
        logits=ModuleLogits(module),
    )
    with pytest.raises(
        UsageError, match="adapter goes behind the attention blocks, and Sequential has none.*full, random, magnitude"
    ):
        Adapter().select(problem, seed=0)


class Careless(Inserted):
    """Inserts one module into the first layer."""

    name = "careless"

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind

    def insert(self, module: nn.Module) -> nn.Module:
        layer = module.get_submodule("vit.layers.0.mlp")
        layer.fc2 = nn.Sequential(layer.get_submodule("fc2"), self.kind())
        return module


class NotANumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.g / self.g)


class Frozen(NotANumber):
    def __init__(self) -> None:
        super().__init__()
        self.g.requires_grad_(False)


class Idle(NotANumber):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Coupled(NotANumber):
    """Nothing at the start, and the mean of the batch later: no example could be left out by its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.g * x.mean(0, keepdim=True)


class Noisy(NotANumber):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.g * torch.randn_like(x)


class Failing(NotANumber):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such thing")


class Counting(NotANumber):
    """What vmap cannot run: it looks at the value of a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.g) if float(self.g.detach()) > -1 else x


def test_what_vmap_cannot_run_goes_one_replica_at_a_time_and_is_said_once(digits: Problem) -> None:
    """With the numbers of the same method written so that it batches; the other layers of the model are as they were."""
    sampled = estimators.Sampled(retrainings=2)
    found = [measure(digits, FineTuning(Careless(kind), steps=3, batch_size=8), sampled) for kind in (Counting, Scaling)]
    one_by_one, together = (estimate.replicas for estimate in found)
    assert not one_by_one.problem.batched
    assert together.problem.batched
    torch.testing.assert_close(one_by_one.values, together.values, rtol=0, atol=1e-5)
    said = [[note for note in estimate.notes if "one replica at a time" in note] for estimate in found]
    assert [len(notes) for notes in said] == [1, 0]


class Scaling(NotANumber):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.g)


def test_a_start_with_an_effect_is_measured_and_said_to_be_no_sparse_fine_tuned_model(
    digits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and random starts: Definition 2 does not hold, and no bound has a number."""
    few = dataclasses.replace(digits, train=digits.train.take(slice(0, 8)), test=digits.test.take(slice(0, 8)), shown=None)
    algorithm = FineTuning(lora(init_lora_weights=False), steps=3, batch_size=8)
    estimate = measure(few, algorithm, estimators.Sampled(retrainings=2))
    eigenvalue = Eigenvalue(value=-1.0, residual=0.0, products=1, converged=True)
    monkeypatch.setattr("stability.bounds.measured.least_eigenvalue", lambda matrix: eigenvalue)  # which takes its time
    constants = estimate_constants(estimate)
    assert measured_bounds(estimate, constants) == {}
    for notes in (estimate.notes, constants.notes):
        assert sum("peft-lora does not start at the pretrained model's outputs" in note for note in notes) == 1
        assert sum("the bounds do not apply" in note for note in notes) == 1
    usual = measure(few, dataclasses.replace(algorithm, selector=lora()), estimators.Sampled(retrainings=2))
    assert usual.replicas.problem.insertion is not None
    assert usual.replicas.problem.insertion.equivalent
    assert measured_bounds(usual, constants)
    assert not any("Definition 2" in note for note in usual.notes)


def test_prompts_go_before_texts_of_one_length_where_padding_would_show() -> None:
    """GPT-2 reads its last place where it is given embeddings: a text's logits are those alone, whatever stands beside it."""
    problem = peft_methods.texts("gpt2")
    equivalent = Peft(peft.PromptTuningConfig(num_virtual_tokens=2)).equivalent(problem, seed=0)
    start, texts = equivalent.start(0), problem.train
    assert texts.lengths is not None
    assert len(texts.lengths.unique()) > 2
    together = equivalent.logits(start, texts.inputs)
    alone = [equivalent.logits(start, texts.take(torch.tensor([i])).inputs) for i in range(problem.n)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    assert any("one replica at a time" in note and "lengths run apart" in note for note in equivalent.execution_notes)


def test_a_start_that_is_not_a_number_and_a_frozen_insertion_are_refused(digits: Problem) -> None:
    with pytest.raises(UsageError, match="careless: at the start its logits are not finite"):
        Careless(NotANumber).select(digits, seed=0)
    with pytest.raises(UsageError, match="careless leaves nothing to train"):
        Careless(Frozen).select(digits, seed=0)
    with pytest.raises(UsageError, match="careless has no effect: the logits of this model do not depend on what it trains"):
        Careless(Idle).select(digits, seed=0)
    with pytest.raises(
        UsageError, match="careless cannot be trained here: in a batch its examples do not stay what they are alone"
    ):
        Careless(Coupled).select(digits, seed=0)
    with pytest.raises(UsageError, match="careless cannot be trained here: in evaluation its logits are drawn from the global"):
        Careless(Noisy).select(digits, seed=0)
    with pytest.raises(UsageError, match="careless cannot be trained here: with it the model fails: no such thing"):
        Careless(Failing).select(digits, seed=0)


def test_a_tensor_read_past_autograd_stays_in_the_equivalent_model(digits: Problem) -> None:
    """peft's HRA reads weight.data: no gradient says that the weight is used, only the outputs do."""
    mask = Peft(peft.HRAConfig(target_modules=QV)).select(digits, seed=0)
    assert (mask.count, mask.total) == (1536, digits.m + 1536)
    train(digits, FineTuning(Peft(peft.HRAConfig(target_modules=QV)), steps=2, batch_size=8)).delta(0)


def test_a_configuration_read_from_a_saved_adapter_is_trained_like_a_new_one(digits: Problem) -> None:
    new, read = (peft.LoraConfig(r=2, target_modules=QV, inference_mode=mode) for mode in (False, True))
    assert Peft(read).settings() == Peft(new).settings()
    assert Peft(read).select(digits, seed=0).equals(Peft(new).select(digits, seed=0))


def test_shira_s_own_random_mask_follows_the_seed(digits: Problem) -> None:
    selector = Peft(peft.ShiraConfig(r=1, target_modules=QV))
    assert selector.select(digits, seed=0).equals(selector.select(digits, seed=0))
    assert not selector.select(digits, seed=0).equals(selector.select(digits, seed=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("selector", [LoRA(rank=2), Adapter(width=2), lora(lora_dropout=0.1)], ids=lambda s: s.name)
def test_models_in_16_bits_have_equivalents(selector: Selector, dtype: torch.dtype, digits: Problem) -> None:
    pixels = {"pixel_values": digits.train.inputs["pixel_values"].to(dtype)}
    half = dataclasses.replace(
        digits,
        pretrained={name: tensor.to(dtype) for name, tensor in digits.pretrained.items()},
        new_head=lambda draw: {name: tensor.to(dtype) for name, tensor in digits.new_head(draw).items()},
        train=dataclasses.replace(digits.train, inputs=pixels),
    )
    assert selector.select(half, seed=0).count == selector.select(digits, seed=0).count


def test_modules_are_inserted_once(digits: Problem) -> None:
    with_lora = LoRA(rank=2).equivalent(digits, seed=0)
    with pytest.raises(UsageError, match="adapter: lora has inserted modules already"):
        Adapter().equivalent(with_lora, seed=0)
    with pytest.raises(UsageError, match="lora: lora has inserted modules already"):
        LoRA(rank=2).equivalent(with_lora, seed=1)
    full = FullTuning().select(with_lora, seed=0)
    assert full.count == with_lora.m > digits.m


def test_without_peft_the_remedy_is_named(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match=r"lora needs the package peft: pip install 'peft-stability\[peft\]'"):
        LoRA().select(digits, seed=0)


def with_a_function() -> Selector:
    config: Any = peft.ShiraConfig(r=1, target_modules=QV)
    config.mask_fn = lambda layer, r, **settings: torch.ones_like(layer.weight)
    return Peft(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adapter(width=0), "width = 0"),
        (lambda: Adapter(places="attention"), "unknown places 'attention'"),  # type: ignore[arg-type]
        (lambda: LoRA(rank=0), "rank = 0"),
        (lambda: Peft("LoraConfig"), "'LoraConfig' is a configuration of no method"),
        (lambda: Peft(peft.PeftConfig()), "is a configuration of no method: use one of peft's methods"),
        (with_a_function, "peft-shira: mask_fn is no setting of the configuration.*from_scores"),
    ],
)
def test_senseless_settings_are_refused(make: Callable[[], Selector], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_settings_of_a_configuration_are_plain_and_stable() -> None:
    config = peft.LoraConfig(r=2, target_modules={"v_proj", "q_proj", "k_proj"})
    settings = Peft(config).settings()
    assert settings["name"] == "peft-lora"
    assert settings["config"]["target_modules"] == ["k_proj", "q_proj", "v_proj"]


@pytest.mark.filterwarnings("ignore:Specified to not save")
def test_identity_holds_what_changes_the_result_and_nothing_of_files() -> None:
    settings = Peft(peft.VeraConfig(r=2, target_modules=QV)).settings()
    of_a_file = peft.VeraConfig(
        r=2,
        target_modules=QV,
        save_projection=False,
        inference_mode=True,
        base_model_name_or_path="roberta-base",
        revision="main",
        auto_mapping={"base_model_class": "RobertaModel"},
        peft_version="0.1",
    )
    assert Peft(of_a_file).settings() == settings
    assert Peft(peft.VeraConfig(r=2, target_modules=QV, projection_prng_key=1)).settings() != settings
    assert Peft(peft.VeraConfig(r=2, target_modules=QV, d_initial=0.2)).settings() != settings
