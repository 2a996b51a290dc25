"""Study files from strangers."""

from __future__ import annotations

import json
import math
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from stability.cli.study_file import read
from tests.cli.test_study_file import SMALL, WHOLE
from tests.strangers import REFUSED, answer, bytes_like, command, content_of, tries, values_like

TABLE = tomllib.loads(WHOLE)
ODD = (
    "digits",
    "linear",
    "logistic",
    "quadratic",
    "FineTuning",
    "Minimisation",
    "sam",
    "lora",
    "peft:LoraConfig",
    "os:system",
    "exact",
    10**12,
)


def toml(value: Any) -> str:
    """A value as TOML, in one line; what TOML cannot hold as an empty text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value is None:
        return '""'
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else f"{'-' * (value < 0)}inf"
    return json.dumps(value)


def document(table: Any) -> str:
    return "\n".join(f"{json.dumps(name)} = {toml(one)}" for name, one in table.items()) if isinstance(table, dict) else toml(table)


def tried(content: bytes) -> Any:
    """What a file becomes; the command line must say the same in one line where it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_bytes(content)
        found = answer(lambda: read(path))
        if found is REFUSED:
            assert command("run", str(path), "--store", f"{folder}/mine.sqlite")[0] == 2
        else:
            found.identity()
        assert content_of(Path(folder)) == {"mine.toml": content}
    return found


def test_a_file_as_it_was() -> None:
    assert tried(WHOLE.encode()) == tried(document(TABLE).encode())


@given(bytes_like(WHOLE.encode()))
@tries(40)
def test_bytes(content: bytes) -> None:
    tried(content)


@given(values_like(TABLE, ODD))
@tries(80)
def test_values(table: Any) -> None:
    tried(document(table).encode())


@pytest.mark.parametrize(
    "text",
    [
        SMALL.replace("seeds = 1", "seeds = 1_000_000_000_000"),
        SMALL.replace("seeds = 1", "seeds = -1"),
        SMALL.replace("seeds = 1", "seeds = false"),
        SMALL.replace("seeds = 1", "seeds = 1\nsamples = 1_000_000_000_000"),
        SMALL + "kind = {a = 1}\n",
        SMALL + "[estimator]\nkind = [1]\n",
        SMALL + '[estimator]\nkind = "assisted"\npredictor = {kind = []}\n',
        "a = " + "[" * 100_000,
        'problem = "digits\\u0000"\nseeds = 1\n[[algorithms]]\nselector = "full"\n',
        SMALL.replace("digits", "a" * 5000),
        SMALL.replace("digits", "linear").replace("seeds = 1", "seeds = 1\nproblem_settings.n = 1_000_000_000_000"),
    ],
    ids=range(11),
)
def test_files_that_ask_for_what_cannot_be(text: str) -> None:
    assert tried(text.encode()) is REFUSED


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert answer(lambda: read(tmp_path)) is REFUSED


HARM = "from pathlib import Path\nPath(__file__).with_name('harm').touch()\ndef scores(problem, generator):\n    return {}\n"


@pytest.mark.parametrize("selector", ['"evil:scores"', '{name = "evil:scores", sparsity = 0.1}', '["full", "evil:scores"]'])
def test_no_code_is_run_that_a_file_names(selector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(HARM)
    Path("mine.toml").write_text(SMALL.replace('"full"', selector))
    code, _, said = command("run", "mine.toml", "--plan")
    assert code == 2
    assert "'evil:scores' is code that is no part of the toolkit" in said
    assert not Path("harm").exists()


def test_code_of_ones_own_is_run_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kind.py").write_text(HARM)
    Path("mine.toml").write_text(SMALL.replace('"full"', '{name = "kind:scores", sparsity = 0.1}'))
    assert [one.name for one in read(Path("mine.toml"), own_code=True).algorithms] == ["scores"]
    assert Path("harm").exists()
