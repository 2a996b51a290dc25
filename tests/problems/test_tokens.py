"""What is made of texts: tokens and their cache, batches of like length; and metrics reckoned by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stability import problems
from stability.problems import tokens
from stability.problems.metrics import METRICS, cross_entropies, squared_errors
from stability.problems.problem import generator, shuffled_batches
from stability.problems.tokens import Tokens, cache_folder
from tests import tiny
from tests.tiny import lines, table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_model(tmp_path_factory.mktemp("models") / "bert"))


# Metrics, by hand

LOGITS = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
LABELS = torch.tensor([1, 1, 0, 1, 0, 0, 0])  # tp 2, fp 1, fn 1, tn 3


def test_metrics_are_those_reckoned_by_hand() -> None:
    assert METRICS["accuracy"](LOGITS, LABELS) == pytest.approx(5 / 7)
    assert METRICS["Matthews"](LOGITS, LABELS) == pytest.approx((2 * 3 - 1 * 1) / math.sqrt(3 * 3 * 4 * 4))
    assert METRICS["mean of accuracy and F1"](LOGITS, LABELS) == pytest.approx((5 / 7 + 2 * 2 / (2 * 2 + 1 + 1)) / 2)
    x, y = [1.0, 2.0, 3.0, 10.0], [2.0, 1.0, 4.0, 3.0]
    dx, dy = ([v - sum(values) / 4 for v in values] for values in (x, y))
    pearson = sum(a * b for a, b in zip(dx, dy, strict=True)) / math.sqrt(sum(a * a for a in dx) * sum(b * b for b in dy))
    spearman = 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15)  # ranks 1 2 3 4 and 2 1 4 3
    found = METRICS["mean of Pearson and Spearman"](torch.tensor(x).unsqueeze(1), torch.tensor(y))
    assert found == pytest.approx((pearson + spearman) / 2)


@pytest.mark.parametrize("name", ["Matthews", "mean of Pearson and Spearman"])
def test_a_constant_prediction_has_no_correlation(name: str) -> None:
    assert METRICS[name](torch.ones(4, 2), torch.tensor([0, 1, 1, 0])) == 0


def test_no_positive_anywhere_is_an_f1_of_zero() -> None:
    assert METRICS["mean of accuracy and F1"](torch.tensor([[1.0, 0.0]] * 3), torch.zeros(3, dtype=torch.int64)) == 0.5


def test_losses_are_those_reckoned_by_hand() -> None:
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))]
    torch.testing.assert_close(cross_entropies(LOGITS[[0, 2]], LABELS[[0, 2]]), torch.tensor(expected))
    torch.testing.assert_close(squared_errors(torch.tensor([[2.5]]), torch.tensor([1.0])), torch.tensor([2.25]))


# Batches of like length


def test_batches_of_like_length_use_every_example_equally_often_and_pad_little() -> None:
    lengths = torch.randint(5, 200, (103,), generator=torch.Generator().manual_seed(0))
    batches = list(shuffled_batches(103, 10, 103, generator(0, "order"), lengths))
    assert [len(batch) for batch in batches] == [10] * 103
    assert set(torch.bincount(torch.cat(batches)).tolist()) <= {9, 10, 11}  # the last pass is cut short
    plain = list(shuffled_batches(103, 10, 103, generator(0, "order")))
    padded, shuffled = (sum(int(lengths[b].max()) * len(b) for b in some) for some in (batches, plain))
    assert padded < 1.35 * 10 * int(lengths.sum()) < 0.75 * shuffled
    assert all(len(set(batch.tolist())) == 10 for batch in [*batches, *plain])
    assert len({tuple(sorted(batch.tolist())) for batch in batches}) > 95  # another mixture in each pass


def test_a_batch_is_cut_to_its_longest_text(tmp_path: Path, model: str) -> None:
    problem = problems.load(lines(tmp_path, train=tiny.rows(30, most=20), test=tiny.rows(5, 1)), model=model)
    lengths = problem.train.lengths
    assert lengths is not None
    short = lengths.argsort()[:3]
    taken = problem.train.take(short)
    assert taken.inputs["input_ids"].shape == (3, int(lengths[short].max()))
    blocks = list(problem.train.blocks(most=8, places=60))
    assert sorted(torch.cat([index for index, _ in blocks]).tolist()) == list(range(30))
    assert all(block.inputs["input_ids"].numel() <= 60 or len(block) == 1 for _, block in blocks)
    start = problem.start()
    whole = problem.logits(start, problem.train.inputs)
    for index, block in blocks:
        torch.testing.assert_close(problem.logits(start, block.inputs), whole[index], rtol=0, atol=1e-6)


# Tokens and their cache


def test_tokens_are_kept_by_content(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABILITY_CACHE", str(tmp_path / "cache"))
    folder, calls = lines(tmp_path / "mine", train=tiny.rows(30), test=tiny.rows(5, 1)), []
    plain: Callable[..., Tokens] = tokens.tokenize

    def counted(*args: Any) -> Tokens:
        calls.append(args)
        return plain(*args)

    monkeypatch.setattr(tokens, "tokenize", counted)

    def load(**settings: Any) -> Tensor:
        return problems.load(folder, model=model, **settings).train.inputs["input_ids"]

    first = load()
    assert len(calls) == 2
    assert torch.equal(load(), first)
    assert len(calls) == 2
    assert load(max_length=8).shape[1] == 8
    assert len(calls) == 4
    for file in (tmp_path / "cache" / "tokens").iterdir():
        file.write_bytes(b"damaged")
    assert torch.equal(load(), first)
    assert len(calls) == 6
    monkeypatch.setenv("STABILITY_CACHE", str(tiny.write_lines(tmp_path / "file", [{}])))  # no folder can be made there
    assert torch.equal(load(), first)


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("STABILITY_CACHE", raising=False)
    assert cache_folder() == tmp_path / "stability"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "stability"


# Identity


def test_the_identity_is_the_content_wherever_it_lies_and_whatever_it_is_called(tmp_path: Path, model: str) -> None:
    rows, more = tiny.rows(30), tiny.rows(5, 1)
    first = problems.identity(lines(tmp_path / "a" / "mine", train=rows, test=more), {"model": model, "n": 20})
    assert str(tmp_path) not in json.dumps(first)
    assert "mine" not in json.dumps(first)
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "table").mkdir()
    for split, some in {"train": rows, "test": more}.items():
        table(tmp_path / "table" / f"{split}.csv", [[*some[0]], *([*row.values()] for row in some)])
    assert problems.identity(str(tmp_path / "table"), {"model": str(tmp_path / "copy"), "n": 20}) == first


def test_the_identity_sees_whatever_changes_a_result(tmp_path: Path, model: str) -> None:
    rows, more = tiny.rows(30), tiny.rows(5, 1)
    data = lines(tmp_path / "mine", train=rows, test=more)
    found = [problems.identity(data, {"model": model})]
    found.append(problems.identity(lines(tmp_path / "fewer", train=rows, test=more[:-1]), {"model": model}))
    found += [problems.identity(data, {"model": model, **other}) for other in ({"n": 20}, {"max_length": 8}, {"text": "text_b"})]
    found.append(problems.identity(lines(tmp_path / "alone", train=rows), {"model": model}))
    found.append(problems.identity(lines(tmp_path / "alone", train=rows), {"model": model, "split_seed": 1}))
    changes: list[tuple[str, str, str]] = [
        ("config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"'),
        ("config.json", '"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'),
        ("tokenizer.json", '"dog": 7', '"dog": 6'),
    ]
    for number, (file, old, new) in enumerate(changes):
        shutil.copytree(model, tmp_path / f"model{number}")
        text = (tmp_path / f"model{number}" / file).read_text()
        assert old in text
        (tmp_path / f"model{number}" / file).write_text(text.replace(old, new).replace('"cat": 6', '"cat": 7'))
        found.append(problems.identity(data, {"model": str(tmp_path / f"model{number}")}))
    coded = [{**row, "label": int(row["label"] == "yes")} for row in rows]
    classified = lines(tmp_path / "coded", train=coded, test=coded[:5])
    found += [problems.identity(classified, {"model": model, "task": task}) for task in ("none", "cola", "mrpc")]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)
