"""Language models of every family against transformers' own, text by text; and what must be refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from stability import FineTuning, Problem, UsageError, measure, problems
from stability.derivatives import gradients
from stability.leave_one_out.estimators import Exact, Sampled
from stability.masks import fingerprint
from stability.problems.attention import Attention
from stability.problems.grouping import Grouping
from stability.problems.pretrained import load_pretrained
from stability.problems.problem import ModuleLogits, generator
from stability.selectors import SAM, Adapter, FullTuning, LoRA, Random
from stability.training.dropout import Dropout
from stability.training.replicas import train
from tests import tiny
from tests.reference import as_double, leaving_out

EXPECTED = {
    "bert": Attention(additive=True),
    "roberta": Attention(additive=True),
    "distilbert": Attention(additive=True),
    "electra": Attention(additive=True),
    "deberta-v2": Attention(),
    "modernbert": Attention(additive=True, window=4),
    "gpt2": Attention(additive=True, causal=True),
    "llama": Attention(additive=True, causal=True),
}


SINGLY = {
    "t5": Grouping(counted=3),
    "bart": Grouping(counted=3),
    "xlnet": Grouping(unpadded=True),
    "fnet": Grouping(unpadded=True),
    "bloom": None,
}
"""Families that run one replica at a time, with the texts that go together."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in (*tiny.FAMILIES, *SINGLY):
        tiny.write_model(folder / family, family)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "nots"
    tiny.write_lines(folder / "train.jsonl", tiny.rows(24, most=20))
    tiny.write_lines(folder / "test.jsonl", tiny.rows(10, seed=1, most=20))
    return folder


def own_model(folder: Path, problem: Problem, parameters: dict[str, Tensor]) -> Any:
    """Transformers' model as anyone would load it, with these parameters, in evaluation mode and double precision."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).double().eval()
    own = dict(model.named_parameters())
    assert own.keys() == parameters.keys()
    for name, tensor in parameters.items():
        own[name].data.copy_(tensor)
    return model


def alone(problem: Problem, examples: Any, i: int) -> dict[str, Tensor]:
    """One text without any padding."""
    return {name: tensor[i : i + 1, : int(examples.lengths[i])] for name, tensor in examples.inputs.items()}


ROUNDING = {"modernbert": 1e-6, "llama": 1e-6, "bloom": 1e-6}  # they take softmax or norms in single precision

families = pytest.mark.parametrize("family", tiny.FAMILIES)
all_families = pytest.mark.parametrize("family", [*tiny.FAMILIES, *SINGLY])


@all_families
def test_logits_and_gradients_are_those_of_the_plain_model_text_by_text(family: str, models: Path, data: Path) -> None:
    problem = as_double(problems.load(str(data), model=str(models / family)))
    assert isinstance(problem.logits, ModuleLogits)
    assert problem.batched == problem.logits.batched == (family in EXPECTED)
    assert problem.logits.attention == EXPECTED.get(family, Attention())
    assert problem.logits.grouping == SINGLY.get(family)
    assert len(set(problem.train.lengths.tolist())) > 8  # type: ignore[union-attr]
    start = problem.start(1)
    model = own_model(models / family, problem, start)
    wanted = [model(**alone(problem, problem.train, i)).logits for i in range(problem.n)]
    torch.testing.assert_close(
        problem.logits(start, problem.train.inputs), torch.cat(wanted), rtol=0, atol=ROUNDING.get(family, 1e-10)
    )
    norms = []
    for logits, label in zip(wanted, problem.train.labels, strict=True):
        slopes = torch.autograd.grad(
            cross_entropy(logits[0], label), list(model.parameters()), retain_graph=True, allow_unused=True
        )
        norms.append(torch.cat([slope.reshape(-1) for slope in slopes if slope is not None]).norm())
    found = gradients.gradient_norms(problem, start, problem.train)
    torch.testing.assert_close(found, torch.stack(norms), rtol=ROUNDING.get(family, 1e-8), atol=ROUNDING.get(family, 1e-10))


@all_families
@pytest.mark.parametrize("selector", [SAM(0.05), FullTuning()], ids=["sam", "full"])
def test_training_without_an_example_is_training_the_plain_model_without_it(
    family: str, selector: SAM | FullTuning, models: Path, data: Path
) -> None:
    problem = as_double(problems.load(str(data), model=str(models / family)))
    algorithm = FineTuning(selector, steps=5, batch_size=6, learning_rate=0.01, schedule="constant", seed=2)
    mask = selector.select(problem, 2)
    replicas = train(problem, algorithm, leaving_out(problem.n, 7), [mask])
    model = trained_without(7, models / family, problem, algorithm)
    wanted = torch.cat([model(**alone(problem, problem.test, i)).logits for i in range(len(problem.test))])
    torch.testing.assert_close(replicas.logits(problem.test)[1], wanted, rtol=0, atol=100 * ROUNDING.get(family, 1e-9))


@pytest.mark.parametrize("family", ["t5", "fnet"])
def test_stability_one_at_a_time_is_that_of_a_plain_loop(family: str, models: Path, tmp_path: Path) -> None:
    data = tiny.lines(tmp_path / "data", train=tiny.rows(4, seed=3), test=tiny.rows(2, seed=1))
    problem = as_double(problems.load(data, model=str(models / family)))
    algorithm = FineTuning(Random(0.1), steps=2, batch_size=3, learning_rate=0.01, schedule="constant", seed=2)
    estimate = measure(problem, algorithm, Exact(), device="cpu")

    def loss(model: Any, i: int) -> float:
        with torch.no_grad():
            return cross_entropy(model(**alone(problem, problem.train, i)).logits, problem.train.labels[i : i + 1]).item()

    whole, *others = (trained_without(i, models / family, problem, algorithm) for i in (None, *range(4)))
    wanted = sum(abs(loss(model, i) - loss(whole, i)) for i, model in enumerate(others)) / 4
    assert wanted > 1e-4
    assert estimate.value == pytest.approx(wanted, rel=1e-6)
    assert sum("runs one replica at a time" in note for note in (*problem.notes, *estimate.notes)) == 1


def trained_without(left_out: int | None, folder: Path, problem: Problem, algorithm: FineTuning) -> Any:
    """Transformers' model after a plain loop over single texts, whose gradients are masked."""
    mask = algorithm.select(problem)
    model = own_model(folder, problem, problem.start(algorithm.seed))
    chosen = {name: torch.zeros(p.numel(), dtype=torch.bool) for name, p in model.named_parameters()}
    for name, index in algorithm.tunable_mask(problem, mask).indices.items():
        chosen[name][index] = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for batch in algorithm.batches(problem.train):
        optimizer.zero_grad()
        kept = [int(i) for i in batch if i != left_out]
        logits = torch.cat([model(**alone(problem, problem.train, i)).logits for i in kept])
        cross_entropy(logits, problem.train.labels[kept]).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                p.grad *= chosen[name].view_as(p)
        optimizer.step()
    return model


HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {"classifier.out_proj.weight", "classifier.out_proj.bias"},
    "distilbert": {"classifier.weight", "classifier.bias"},
    "deberta-v2": {"classifier.weight", "classifier.bias"},
    "electra": {"classifier.out_proj.weight", "classifier.out_proj.bias"},
    "modernbert": {"classifier.weight", "classifier.bias"},
    "gpt2": {"score.weight"},
    "llama": {"score.weight"},
}


@families
def test_the_head_is_what_depends_on_the_number_of_labels(family: str, models: Path, tmp_path: Path) -> None:
    """The old classifier is never kept, whether its shape fits (2) or not (3), and the new one starts as transformers' does."""
    kept = None
    for outputs in (2, 3):
        loaded = load_pretrained(models / family, outputs)
        head = loaded.new_head(generator(0, "head"))
        assert head.keys() == HEADS[family]
        assert all(len(tensor) == outputs for tensor in head.values())
        assert kept is None or loaded.fingerprint == kept
        kept = loaded.fingerprint
        assert all(float(tensor.abs().max()) == 0 for name, tensor in head.items() if name.endswith("bias"))
        again, other = loaded.new_head(generator(0, "head")), loaded.new_head(generator(1, "head"))
        assert all(torch.equal(again[name], tensor) for name, tensor in head.items())
        assert not any(torch.equal(other[name], tensor) for name, tensor in head.items() if name.endswith("weight"))


def test_a_new_head_has_the_spread_that_the_configuration_asks_for(tmp_path: Path) -> None:
    tiny.write_model(tmp_path, hidden_size=16)
    draws = [load_pretrained(tmp_path, 2).new_head(generator(i, "head"))["classifier.weight"] for i in range(100)]
    spread = float(torch.stack(draws).std())  # of 3 200 normal numbers: standard error 0.3 / √6400
    assert spread == pytest.approx(0.3, abs=4 * 0.3 / 80)


def test_what_a_checkpoint_lacks_belongs_to_the_head(tmp_path: Path) -> None:
    """A masked language model has no pooler: it is new, and the old prediction head is dropped."""
    tiny.write_model(tmp_path)
    transformers.BertForMaskedLM(tiny.FAMILIES["bert"]()).save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, 2)
    head = loaded.new_head(generator(0, "head"))
    assert head.keys() == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert not any(name.startswith("cls.") for name in loaded.parameters)


def test_positions_limit_the_length_and_roberta_counts_from_behind_its_padding(models: Path) -> None:
    assert {family: load_pretrained(models / family, 2).max_length for family in tiny.FAMILIES} == dict.fromkeys(tiny.FAMILIES, 64)


def test_a_windowed_model_would_be_wrong_with_one_mask_for_all_layers(models: Path, data: Path) -> None:
    """The comparison is not idle: forms that pass for other models differ here, in logits no one would question."""
    for family, wrong in (("modernbert", Attention(additive=True)), ("gpt2", Attention(additive=True))):
        problem = problems.load(str(data), model=str(models / family))
        assert isinstance(problem.logits, ModuleLogits)
        start = problem.start()
        right = problem.logits(start, problem.train.inputs)
        other = dataclasses.replace(problem.logits, attention=wrong)(start, problem.train.inputs)
        assert 1e-3 < float((right - other).abs().max()) < 10


def test_a_model_that_mixes_the_texts_of_a_batch_gets_each_text_alone(
    models: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = transformers.BertForSequenceClassification.forward

    def mixing(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(self, *args, **kwargs)
        output.logits = output.logits - 0.1 * output.logits.mean(0)
        return output

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", mixing)
    shutil.copytree(models / "bert", tmp_path / "mixing")
    problem = as_double(problems.load(str(data), model=str(tmp_path / "mixing")))
    assert isinstance(problem.logits, ModuleLogits)
    assert problem.logits.grouping == Grouping(singly=True)
    assert "each text runs alone, for its logits would change with the other texts of a batch" in problem.notes[-1]
    start = problem.start(1)
    wanted = own_model(models / "bert", problem, start)(**alone(problem, problem.train, 0)).logits
    torch.testing.assert_close(problem.logits(start, problem.train.inputs)[:1], wanted, rtol=0, atol=1e-10)
    problem.check_independence()


OTHERS = {
    "reformer": "Reformer.* cannot be trained here: transformers itself fails on a single text of these; use another",
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_that_cannot_be_trained_is_refused_with_the_cause_first(family: str, data: Path, tmp_path: Path) -> None:
    tiny.write_model(tmp_path / family, family)
    with pytest.raises(UsageError, match=OTHERS[family]) as refused:
        problems.load(str(data), model=str(tmp_path / family))
    assert "; use another, such as BERT, RoBERTa" in str(refused.value)
    assert len(str(refused.value)) < 500


def last_token_logits(folder: Path, problem: Problem, start: dict[str, Tensor]) -> Tensor:
    """Transformers' logits of each text alone, without padding; without a padding token a causal model takes the last place."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type in ("gpt2", "llama"):
        config.pad_token_id = None
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, config=config).double().eval()
    model.load_state_dict(start, strict=False)
    return torch.cat([model(**alone(problem, problem.train, i)).logits for i in range(problem.n)])


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


PADDING: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "one that the tokenizer has not": ("gpt2", {"pad_token_id": 5}, "[PAD]"),
    "none of either": ("gpt2", {}, None),
    "outside of the vocabulary": ("llama", {"pad_token_id": 28}, "[PAD]"),
    "below the vocabulary": ("llama", {"pad_token_id": -1}, "[PAD]"),
    "a word": ("llama", {"pad_token_id": 5}, "[PAD]"),
    "the tokenizer's is outside": ("llama", {"pad_token_id": 28}, "<new>"),
    "the tokenizer's alone is outside": ("gpt2", {"pad_token_id": 5}, "<new>"),
    "positions count from it": ("roberta", {"pad_token_id": 1}, "[PAD]"),
    "of a mere encoder": ("bert", {"pad_token_id": 5}, "<new>"),
}


@pytest.mark.parametrize("what", PADDING)
def test_padding_tokens_that_contradict_each_other_change_nothing(what: str, tmp_path: Path) -> None:
    """Some texts end with the token 5, a word, which a causal model must not take for padding."""
    family, settings, token = PADDING[what]
    folder = tiny.write_model(tmp_path / "model", family)
    change(folder / "config.json", **settings)
    if token is not None:
        tokenizer = tiny.tokenizer(family)
        tokenizer.add_special_tokens({"pad_token": token})
        tokenizer.save_pretrained(folder)
    rows = [{"text": f"{row['text_a']} {end}", "label": row["label"]} for row in tiny.rows(24) for end in ("the", "a")]
    data = tiny.lines(tmp_path / "data", train=rows, test=rows[:5])
    problem = as_double(problems.load(data, model=str(folder)))
    start = problem.start(1)
    assert tiny.WORDS[1] == "a"
    assert len(set(problem.train.lengths.tolist())) > 5  # type: ignore[union-attr]
    found = problem.logits(start, problem.train.inputs)
    torch.testing.assert_close(found, last_token_logits(folder, problem, start), rtol=0, atol=ROUNDING.get(family, 1e-10))


def test_the_end_token_behind_each_text_is_no_padding(tmp_path: Path) -> None:
    """A causal model whose tokenizer ends each text: its logits are those of the end token, which must not pad too."""
    folder = tiny.write_model(tmp_path / "model", "gpt2")
    tokenizer = tiny.tokenizer("roberta")  # [CLS] … [SEP], and [SEP] is the end token
    tokenizer.pad_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    problem = as_double(problems.load(tiny.lines(tmp_path / "data", train=tiny.rows(24), test=tiny.rows(5)), model=str(folder)))
    start = problem.start(1)
    found = problem.logits(start, problem.train.inputs)
    torch.testing.assert_close(found, last_token_logits(folder, problem, start), rtol=0, atol=1e-10)
    train = problem.train
    assert train.lengths is not None
    assert train.padding is not None
    ids, lengths = train.inputs["input_ids"], train.lengths
    rest = ids[torch.arange(ids.shape[1]) >= lengths[:, None]]
    assert set(rest.tolist()) == {train.padding["input_ids"]}


def test_a_tokenizer_without_any_token_to_pad_with_is_refused(data: Path, tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "model", "gpt2")
    change(folder / "tokenizer_config.json", unk_token=None, eos_token=None)
    with pytest.raises(
        UsageError, match="its tokenizer has no token to pad texts with, so texts cannot be batched: no special tok"
    ):
        problems.load(str(data), model=str(folder))


def test_buffers_of_a_checkpoint_are_part_of_its_identity(models: Path, tmp_path: Path) -> None:
    bert = load_pretrained(models / "bert", 2)
    assert bert.fingerprint == fingerprint(bert.parameters)
    first = load_pretrained(tiny.write_model(tmp_path / "first", "ibert"), 2)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    tensors = load_file(tmp_path / "second" / "model.safetensors")
    tensors["ibert.encoder.layer.0.pre_intermediate_act.x_max"] += 1
    save_file(tensors, tmp_path / "second" / "model.safetensors", {"format": "pt"})
    second = load_pretrained(tmp_path / "second", 2)
    assert fingerprint(first.parameters) == fingerprint(second.parameters)
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == load_pretrained(tmp_path / "first", 3).fingerprint


def test_transformers_is_as_loud_as_before(models: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers.logging.get_verbosity()
    state = torch.get_rng_state()
    load_pretrained(models / "bert", 7)
    problems.load(str(data), model=str(models / "bert"))
    assert torch.equal(torch.get_rng_state(), state)
    assert transformers.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


BAD: dict[str, tuple[Any, str]] = {
    "no folder": (
        lambda folder: shutil.rmtree(folder),
        "there is no folder",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "no tokenizer": (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "has no tokenizer"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights: model.safetensors expected"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "no weights in safetensors, but pytorch_model.bin: pickled weights can run code and are refused",
    ),
    "damaged": (lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense"), "cannot be loaded"),
    "other weights": (
        lambda folder: (
            transformers.GPT2Model(tiny.FAMILIES["gpt2"]()).save_pretrained(folder / "other")
            or (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")
        ),
        "belong to another architecture",
    ),
}


def test_a_name_on_the_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="is no folder here.*without a network .* give a folder"):
        load_pretrained("no/model", 2)


@pytest.mark.parametrize("what", BAD)
def test_a_model_that_cannot_be_used_is_refused_with_the_reason(
    what: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(models / "bert", tmp_path / "model")
    break_it, message = BAD[what]
    break_it(tmp_path / "model")
    with pytest.raises(UsageError, match=message):
        load_pretrained(tmp_path / "model", 2)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("intermediate_size", 40, r"intermediate.dense.bias is \(32,\) in the weights, \(40,\) by config.json"),
        ("num_hidden_layers", 4, "parameters that config.json tells of are not in the weights"),
        ("vocab_size", 20, r"word_embeddings.weight is \(28, 16\) in the weights, \(20, 16\)"),
    ],
)
def test_weights_that_are_not_the_configuration_s_are_refused(
    setting: str, value: int, message: str, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "bert", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(UsageError, match=message):
        load_pretrained(tmp_path / "model", 2)


def test_a_tokenizer_of_another_model_is_refused(models: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "model")
    text = (tmp_path / "model" / "tokenizer.json").read_text()
    (tmp_path / "model" / "tokenizer.json").write_text(text.replace('"the": 4', '"the": 400'))
    with pytest.raises(UsageError, match="its tokenizer gives token 400, and the model knows 28"):
        problems.load(str(data), model=str(tmp_path / "model"))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tiny.write_model(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model.bert.embeddings.word_embeddings.weight.data[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="the weights of bert.embeddings.word_embeddings.weight are not all finite"):
        load_pretrained(tmp_path, 2)


def test_code_that_comes_with_a_model_is_never_run(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text()
    own = '{"auto_map": {"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model"},'
    (tmp_path / "model" / "config.json").write_text(own + config[1:].replace('"model_type": "bert"', '"model_type": "mine"'))
    (tmp_path / "model" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(UsageError, match="cannot be loaded as a sequence classifier"):
        load_pretrained(tmp_path / "model", 2)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Problem:
    folder = tiny.write_model(
        tmp_path_factory.mktemp("dropping"), hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, classifier_dropout=0.4
    )
    return as_double(problems.load(str(data), model=str(folder)))


def with_dropout(selector: Any, **more: Any) -> FineTuning:
    return FineTuning(selector, steps=4, batch_size=6, learning_rate=0.01, schedule="constant", dropout=True, seed=1, **more)


@pytest.mark.parametrize("selector", [Random(0.1), LoRA(rank=2), Adapter(width=2)], ids=lambda s: s.name)
def test_every_replica_drops_out_what_it_would_drop_out_alone(selector: Any, dropping: Problem) -> None:
    weights = leaving_out(dropping.n, 2, 5)
    together = train(dropping, with_dropout(selector), weights)
    singly = train(dropping, with_dropout(selector), weights, replica_batch=1)
    torch.testing.assert_close(singly.values, together.values, rtol=0, atol=1e-12)
    state = torch.get_rng_state()
    reverse = train(dropping, with_dropout(selector), weights[:1], reverse_batches=True)
    torch.testing.assert_close(reverse.values, together.values[:1], rtol=0, atol=1e-8)
    assert torch.equal(torch.get_rng_state(), state)
    off = train(dropping, dataclasses.replace(with_dropout(selector), dropout=False), weights[:1])
    assert float((off.values - together.values[:1]).abs().max()) > 1e-4


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "choices"])
def test_the_noise_floor_has_the_same_dropout_whatever_has_another_shape(family: str, tmp_path: Path, data: Path) -> None:
    """DeBERTa drops out a table that no example has a row in; a choice has two rows an example."""
    settings: dict[str, Any] = (
        {"embedding_dropout": 0.3, "mlp_dropout": 0.3} if family == "modernbert" else {"hidden_dropout_prob": 0.3}
    )
    folder = tiny.write_model(tmp_path / "model", "bert" if family == "choices" else family, **settings)
    where = str(data)
    if family == "choices":
        choices = [{"premise": r["text_a"], "choice1": r["text_b"], "choice2": "a dog"} for r in tiny.rows(24)]
        rows = [{**row, "question": "cause", "label": i % 2} for i, row in enumerate(choices)]
        where = tiny.lines(tmp_path / "data", train=rows, test=rows[:5])
    problem = as_double(problems.load(where, model=str(folder)))
    there, back = (train(problem, with_dropout(FullTuning()), reverse_batches=reverse) for reverse in (False, True))
    torch.testing.assert_close(back.values, there.values, rtol=0, atol=1e-6)
    off = train(problem, dataclasses.replace(with_dropout(FullTuning()), dropout=False))
    assert float((off.values - there.values).abs().max()) > 1e-3


def test_training_with_dropout_is_training_the_plain_model_in_training_mode(dropping: Problem) -> None:
    algorithm = with_dropout(FullTuning())
    replicas = train(dropping, algorithm)
    assert isinstance(dropping.logits, ModuleLogits)
    model = transformers.BertForSequenceClassification(dropping.logits.module.config).double()
    assert model.config._attn_implementation == "eager"
    model.load_state_dict(dropping.start(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for step, index in enumerate(algorithm.batches(dropping.train)):
        batch = dropping.train.take(index)
        optimizer.zero_grad()
        with Dropout(generator(1, f"dropout {step}")):
            cross_entropy(model.train()(**batch.inputs).logits, batch.labels).backward()
        optimizer.step()
    with torch.no_grad():
        wanted = model.eval()(**dropping.test.inputs).logits
    torch.testing.assert_close(replicas.logits(dropping.test)[0], wanted, rtol=0, atol=1e-8)


def test_dropout_keeps_its_share_and_its_mean() -> None:
    with Dropout(torch.Generator().manual_seed(0)) as dropout:
        found = torch.nn.functional.dropout(torch.ones(100, 1000), 0.3)
        assert dropout.used
        assert torch.nn.functional.dropout(found, 0.3, training=False) is found
    kept = found != 0
    assert float(kept.double().mean()) == pytest.approx(0.7, abs=4 * (0.21 / 1e5) ** 0.5)
    assert torch.equal(found[kept], torch.full((int(kept.sum()),), 1 / 0.7))


def test_all_may_be_dropped() -> None:
    with Dropout(torch.Generator()):
        assert torch.equal(torch.nn.functional.dropout(torch.ones(3), 1.0), torch.zeros(3))


def test_draws_from_the_global_generator_are_refused() -> None:
    with pytest.raises(UsageError, match="draws from the global generator"), Dropout(torch.Generator()):
        torch.nn.functional.alpha_dropout(torch.ones(3), training=True)


def test_dropout_that_is_not_there_is_refused(digits: Problem) -> None:
    with pytest.raises(UsageError, match="its dropout probabilities are 0"):
        train(digits, with_dropout(Random(0.1)))
    with pytest.raises(UsageError, match="is a function and no torch module"):
        train(problems.load("logistic"), with_dropout(Random(0.5)))
    x = torch.ones(1, 1, 2, 2)
    with Dropout(torch.Generator()), pytest.raises(UsageError, match="inside a fused attention kernel"):
        torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1)


def test_what_runs_singly_is_told_once_and_without_torchs_warning(models: Path) -> None:
    table = pd.DataFrame({"text": [f"it is {word}" for word in ("good", "bad") * 6], "label": ["yes", "no"] * 6})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        problem = problems.load(table, model=models / "bart", n=6)
        estimate = measure(problem, FineTuning(LoRA(rank=2), steps=1), Sampled(2), device="cpu")
    assert not [str(one.message) for one in heard if "performance drop" in str(one.message)]
    notes = [note for note in (*problem.notes, *estimate.notes) if "runs one replica at a time" in note]
    assert len(notes) == 1
    assert notes[0].startswith("BartForSequenceClassification")
