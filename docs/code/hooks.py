"""Hooks of mkdocs: links to the repository's other files, figures of the repository, and parts of pages that are generated."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/peft-stability/stability"

log = logging.getLogger("mkdocs.hooks.stability")


def _made(module: str, name: str) -> Callable[[], str]:
    """The function of that name, which renders Markdown; once for all builds of one process."""

    @functools.cache
    def call() -> str:
        made: str = getattr(importlib.import_module(module), name)()
        return made

    return call


GENERATED: dict[str, Callable[[], str]] = {
    "architectures": _made("docs.code.tables", "architectures"),
    "claims": _made("docs.code.claims", "markdown"),
    "claims rates": _made("docs.code.claims", "rates"),
    "command line": _made("docs.code.command_line", "markdown"),
    "columns": _made("docs.code.tables", "columns"),
    "peft methods": _made("docs.code.tables", "peft_methods"),
    "peft places": _made("docs.code.tables", "peft_places"),
    "selectors on digits": _made("docs.code.compared", "digits"),
    "selectors on texts": _made("docs.code.compared", "texts"),
    "selectors rates": _made("docs.code.compared", "rates"),
    "scores": _made("docs.code.tables", "scores"),
    "study files": _made("docs.code.tables", "study_files"),
}
"""What stands in a page for ``<!-- generated: NAME -->``."""


def on_config(config: MkDocsConfig) -> None:
    """Generated parts import from the repository. mkdocs puts ``sys.path`` back after it has read this file."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The figures of the repository are pictures of the site."""
    for path in sorted((ROOT / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and point links out of ``docs`` to where a reader of the site finds the file."""
    markdown = re.sub(r"<!-- generated: ([\w ]+) -->", lambda found: GENERATED[found[1]](), markdown)
    return re.sub(r"(\]\()(\.\.?/[^)#\s]*)", functools.partial(_link, page.file.src_uri), markdown)


def _link(source: str, found: re.Match[str]) -> str:
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), found[2]))
    if target.startswith("docs/"):
        return found[0]
    if not (ROOT / target).exists():
        log.warning("%s links to %s, which is not in the repository", source, target)
    if re.fullmatch(r"figures/[\w-]+\.png", target):
        return found[1] + os.path.relpath(target, posixpath.dirname(source) or ".")
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{found[1]}{REPOSITORY}/{kind}/main/{target}"


def on_post_build(config: MkDocsConfig) -> None:
    """A reader without a network sees the whole site: no page loads a script, a style, a font or a picture from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*?\bsrc="((?:https?:)?//[^"]+)"', path.read_text(encoding="utf-8"))
        for tag in re.findall(r"<link\b[^>]*>", path.read_text(encoding="utf-8")):
            if not re.search(r'rel="?(canonical|prev|next)', tag):
                loaded += re.findall(r'href="?((?:https?:)?//[^">\s]+)', tag)
        if loaded:
            log.warning("%s loads %s", path.relative_to(config.site_dir), ", ".join(loaded))
