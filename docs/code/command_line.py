"""The commands and their options as Markdown, from the same declarations that print ``--help``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

from cyclopts import App

from stability.cli import run
from stability.cli.commands import COMMANDS
from stability.cli.parsing import application

__all__ = ["forms", "markdown"]

_RUN = {
    "run STUDY": (["digits"], "A study that comes with the toolkit."),
    "run PAPER": (["paper"], "An experiment of Fu et al. 2023. The defaults are those of the study `paper`."),
    "run FILE.toml": (["study.toml"], "The study that a [file](study-files.md) describes."),
    "run NAME --problem …": (["mine", "--problem", "digits"], "A study of your own."),
}
"""The forms of ``stability run``: words that ask for each, and what it is."""


def forms() -> Iterator[tuple[str, str, App]]:
    """Each command by its name, what it does, and its parser. ``run`` has four forms, each with options of its own."""
    for name, (where, text) in COMMANDS.items():
        if name == "run":
            for form, (words, what) in _RUN.items():
                yield form, what, run._form_of(words)
        else:
            module, _, function = where.partition(":")
            app = application(f"stability {name}")
            app.default(getattr(importlib.import_module(module), function))
            yield name, text, app


def markdown() -> str:
    """The page's text below its introduction: a section for each command, a table for each group of its options."""
    lines: list[str] = []
    for name, text, app in forms():
        told = app.generate_docs(heading_level=2)
        usage = re.search(r"```console\n(.*?)\n```", told, flags=re.DOTALL)
        lines += [f"## `stability {name}`", "", text, "", "```text", usage[1] if usage else "", "```", ""]
        for group, note, options in _groups(told):
            lines += [f"**{group}**", "", *([note, ""] if note else []), "| option | meaning |", "| --- | --- |", *options, ""]
    return "\n".join(lines)


def _groups(told: str) -> Iterator[tuple[str, str, list[str]]]:
    """The groups of options, each with what is said of the group and a row for each option."""
    parts = re.split(r"^\*\*([^*\n]+)\*\*:$", told, flags=re.MULTILINE)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        rows, note = [], []
        for line in body.strip().splitlines():
            if found := re.match(r"^\* `(.*?)`: ?(.*)$", line):
                meaning = found[2].replace("**[required]**", "**Required.**").replace("|", "\\|")
                meaning = re.sub(r"\*\[(choices|default): (.*?)\]\*", lambda m: f"*{m[1].capitalize()}: {m[2]}.*", meaning)
                sentence = re.sub(r"(?<![.…*])$|(?<=\w)(?= \*)", ".", meaning.strip()).replace("<", "&lt;")
                rows.append(f"| `{found[1]}` | {sentence} |")
            elif line.strip():
                note.append(line)
        if rows:
            yield name, " ".join(note), rows
