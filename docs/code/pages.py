"""Pages as a reader meets them: which blocks of code they show, in which order, and what each is said to print.

A block is *run* where it stands, after those before it on the same page. Titles say more:

- ``title="needs …"``: the block needs what is not everywhere, such as a GPU. It is compiled or parsed, and not run.
- ``title="NAME.py"`` or ``title="NAME.toml"``: the reader writes this file. It is written before the blocks after it run.

A block is followed by what it prints, where the next block has nothing but ``--8<-- "outputs/NAME.txt"``. These files are made by
:mod:`docs.code.outputs`.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCS", "ROOT", "Block", "blocks", "commands", "pages", "workplace"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)```[ \t]*$", re.DOTALL | re.MULTILINE)
_OUTPUT = re.compile(r'^--8<-- "outputs/([\w-]+)\.txt"$')


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        page: the file.
        line: where the block begins.
        language: the first word after the fence: ``python``, ``sh``, ``toml``.
        title: the title that the reader sees; empty where there is none.
        text: the code.
        output: the name of the file in ``docs/outputs`` that holds what it prints; empty where nothing is shown.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    output: str = ""

    @property
    def runs(self) -> bool:
        """Whether it is run where it stands, and not only compiled or parsed."""
        return not self.title.startswith("needs ")

    @property
    def file(self) -> str:
        """The file that the reader is told to write; empty for none."""
        return self.title if re.fullmatch(r"[\w-]+\.(py|toml)", self.title) else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page of the site, and the two files beside the code that show code."""
    written = sorted(path for path in DOCS.rglob("*.md"))
    return [*written, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order, each with what it prints.

    Args:
        page: a Markdown file.
    """
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        language, _, rest = match["info"].strip().partition(" ")
        body = textwrap.dedent(match["body"])
        if (output := _OUTPUT.match(body.strip())) and found:
            last = found.pop()
            found.append(Block(last.page, last.line, last.language, last.title, last.text, output[1]))
            continue
        title = re.search(r'title="([^"]*)"', rest)
        line = text[: match.start()].count("\n") + 1
        found.append(Block(page, line, language, title[1] if title else "", body))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words after ``stability`` of each such command of a shell block.

    Args:
        block: a block of shell commands. Words in capitals stand for what the reader puts there.
    """
    joined = re.sub(r"\\\n\s*", " ", block.text)
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] in ("stability", ".venv/bin/stability"):
            yield words[1:]


def workplace(folder: Path, model: Path) -> Path:
    """A folder as the pages suppose it: the repository's ``figures`` and ``docs``, ``reviews.csv``, a model at ``path/to/model``.

    Args:
        folder: an empty folder.
        model: the folder of a pretrained model.
    """
    for name in ("figures", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "reviews.csv").symlink_to(DOCS / "examples" / "reviews.csv")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(model)
    return folder
