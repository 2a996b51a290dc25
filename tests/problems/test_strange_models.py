"""Model folders and data from strangers: no code of theirs runs, and what is odd is said in one line."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stability.problems.pretrained import load_pretrained
from stability.problems.reading import read
from tests import tiny
from tests.strangers import REFUSED, answer, bytes_like, content_of, tries, values_like, written


@functools.cache
def model() -> dict[str, bytes]:
    """The files of a tiny BERT."""
    with tempfile.TemporaryDirectory() as folder:
        return content_of(tiny.write_model(Path(folder)))


def placed(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def loaded(files: dict[str, bytes]) -> Any:
    """What a model folder gives, which stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        placed(Path(folder), files)
        found = answer(lambda: load_pretrained(folder, outputs=2))
        assert content_of(Path(folder)) == files
    return found


def test_a_model_as_it_was() -> None:
    assert loaded(model()).max_length == 64


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@given(data=st.data())
@tries(4)
def test_values(name: str, data: st.DataObject) -> None:
    odd = ("bert", "gpt2", "no such model", 10**6, 10**9, {"AutoConfig": "evil.Config"}, "gelu", "eager")
    loaded(model() | {name: written(data.draw(values_like(json.loads(model()[name]), odd))).encode()})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@given(data=st.data())
@tries(4)
def test_bytes(name: str, data: st.DataObject) -> None:
    loaded(model() | {name: data.draw(bytes_like(model()[name]))})


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"hidden_size": 10**6 * 2}, {"vocab_size": 10**12}])
def test_models_that_no_memory_holds(change: dict[str, int]) -> None:
    config = json.loads(model()["config.json"]) | change
    assert loaded(model() | {"config.json": json.dumps(config).encode()}) is REFUSED


class Harm:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return open, (str(self.place), "w")


EVIL = """from pathlib import Path
Path({place!r}).touch()
from transformers import BertConfig as Config, BertForSequenceClassification as Model, PreTrainedTokenizerFast as Tokenizer
"""


@pytest.mark.parametrize("kind", ["bert", "evil"])
def test_no_code_of_a_model_is_run(kind: str, tmp_path: Path) -> None:
    folder = placed(tmp_path, model())
    (folder / "evil.py").write_text(EVIL.format(place=str(tmp_path / "harm")))
    classes = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForSequenceClassification": "evil.Model"}
    for name, more in (
        ("config.json", {"auto_map": classes, "model_type": kind}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}, "tokenizer_class": "Own"}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    answer(lambda: load_pretrained(folder, outputs=2))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "training_args.bin", "model.safetensors"])
@pytest.mark.parametrize("weights", [True, False])
def test_no_pickle_of_a_model_is_opened(name: str, weights: bool, tmp_path: Path) -> None:
    folder = placed(tmp_path, model())
    if not weights:
        (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.bias": Harm(tmp_path / "harm")}, folder / name)
    adapter = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": str(folder), "r": 1}
    if name.startswith("adapter"):
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
    found = answer(lambda: load_pretrained(folder, outputs=2))
    assert not (tmp_path / "harm").exists()
    assert weights or found is REFUSED


# Data

ROWS = tiny.rows(6)
TABLES = {
    "train.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "train.json": json.dumps(ROWS).encode(),
    "train.csv": b'text_a,text_b,label\n"a, b",c,yes\nd,"e ""f""",no\n',
    "train.tsv": b"text\tlabel\na b\tyes\nc\tno\n",
}


def rows_of(name: str, content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        found = answer(lambda: read(folder))
        assert content_of(Path(folder)) == {name: content}
    return found


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
@tries(40)
def test_bytes_of_data(name: str, data: st.DataObject) -> None:
    rows_of(name, data.draw(bytes_like(TABLES[name])))


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
@given(rows=values_like(ROWS))
@tries(30)
def test_values_of_data(name: str, rows: Any) -> None:
    lines = name.endswith("jsonl") and isinstance(rows, list)
    rows_of(name, ("\n".join(map(written, rows)) if lines else written(rows)).encode())


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zip"])
@given(content=st.binary(max_size=100))
@tries(10)
def test_packed_data(ending: str, content: bytes) -> None:
    rows_of(f"train.csv{ending}", content)


def test_a_pickle_is_no_data(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    torch.save(Harm(tmp_path / "harm"), folder / "train.pkl")
    shutil.copy(folder / "train.pkl", folder / "train.csv")
    answer(lambda: read(folder))
    assert not (tmp_path / "harm").exists()
