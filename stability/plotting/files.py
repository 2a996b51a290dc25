"""Figures as files and as SVG, and the names of the files."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from stability.errors import StabilityError
from stability.leave_one_out.estimate import StabilityEstimate
from stability.studies.results import StudyResults

__all__ = ["Format", "closed", "prefix", "save", "study_prefix", "svg"]

_SEVERAL = 3
"""The most tasks that a file's name lists."""


def prefix(estimate: StabilityEstimate) -> str:
    """What the names of an estimate's figures begin with: problem, method, p (that of Theorem 1), n and seed.

    Args:
        estimate: a measured stability.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> tuning = FineTuning(selectors.Random(sparsity=0.05), steps=2)
        >>> prefix(measure(load("digits", n=10), tuning, estimator=estimators.Exact()))
        'digits_random_p0.05_n10_seed0'
    """
    subject = estimate.subject
    p = [] if subject.sparsity is None else [f"p{subject.sparsity:.3g}"]
    return _joined([*([subject.data] if subject.data else []), subject.method, *p, f"n{estimate.n}", f"seed{subject.seed}"])


def study_prefix(results: StudyResults, tasks: Iterable[str]) -> str:
    """What the names of a study's figures begin with: study and problems, and the one method and the one p where there is one.

    Method and p are those that the study asks for, so that a file keeps its name while results arrive.

    Args:
        results: the results of a study.
        tasks: the tasks that the figure shows.
    """
    tasks, asked = list(tasks), list(results.algorithms.values())
    problem = "+".join(tasks) if len(tasks) <= _SEVERAL else f"{len(tasks)}tasks"
    methods = list(dict.fromkeys(str(one["method"]) for one in asked))
    p = {one["selector"].get("sparsity") for one in asked}
    (one_p,) = p if len(p) == 1 else (None,)
    parts = [results.study, "" if problem == results.study else problem, methods[0] if len(methods) == 1 else ""]
    return _joined([*parts, "" if one_p is None else f"p{one_p:.3g}"])


def _joined(parts: Iterable[str]) -> str:
    """Parts of a file's name, without what a file system or a shell takes for something else."""
    return "_".join(re.sub(r"[^\w.+-]+", "-", Path(part).name).strip("-") for part in parts if part)


Format = Literal["png", "pdf"]
"""The forms of a file."""


def save(
    figures: Mapping[str, Figure],
    folder: str | PathLike[str],
    prefix: str,
    note: str,
    *,
    formats: Sequence[Format] = ("png", "pdf"),
) -> list[Path]:
    """Write figures as files, and close them.

    Args:
        figures: the figures by name; the files are called ``prefix_name``.
        folder: where the files are written; it is made where it is missing.
        prefix: what the files' names begin with, such as :func:`prefix` of an estimate.
        note: what the files' metadata say.
        formats: ``png``, ``pdf`` or both.

    Returns:
        The files that were written.

    Raises:
        StabilityError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> [path.suffix for path in save({"empty": plt.figure(figsize=(1, 1))}, tempfile.mkdtemp(), "mine", "an example")]
        ['.png', '.pdf']
    """
    written = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            _laid_out(figure)
            stamps: dict[Format, Any] = {"png": {"Description": note}, "pdf": {"Subject": note, "CreationDate": None}}
            for suffix in formats:
                path = Path(folder) / f"{prefix}_{name}.{suffix}"
                with plt.rc_context({"pdf.fonttype": 42}):  # TrueType: publishers refuse Type 3
                    figure.savefig(path, dpi=200, metadata=stamps[suffix])
                written.append(path)
            plt.close(figure)
    except OSError as error:
        raise StabilityError(f"cannot write figures into {folder}: {error}; check the path and the free disk space") from error
    return written


def _laid_out(figure: Figure) -> None:
    """Place everything once: laying out takes as long as drawing, and would be done again for each format."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def closed(figure: Figure) -> Figure:
    """The same figure, of which pyplot knows no more: a notebook shows what pyplot holds, and what a cell returns, and so twice.

    Args:
        figure: the figure. It can still be changed, shown by a notebook and saved.

    Example:
        >>> figure = closed(plt.figure())
        >>> figure.number in plt.get_fignums()
        False
    """
    plt.close(figure)
    return figure


def svg(figure: Figure) -> str:
    """A figure as an element ``<svg>`` that can stand in an HTML page, beside others of its kind; the figure stays open.

    Text stays text. Identifiers begin with a digest of the drawing, so that those of two figures differ; nothing is loaded from
    elsewhere, and the element's label is the figure's heading.

    Args:
        figure: the figure.

    Example:
        >>> svg(plt.figure(figsize=(1, 1)))[:5]
        '<svg '
    """
    drawn = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stability", "font.family": "sans-serif"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]  # the declaration and the type of the document belong to a file of its own
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    own = "f" + hashlib.sha256(text.encode()).hexdigest()[:10]
    seen: Counter[str] = Counter()

    def renamed(found: re.Match[str]) -> str:
        """Groups of artists share a name; what is referred to never does."""
        seen[found[1]] += 1
        return f'id="{own}-{found[1]}' + (f'-{seen[found[1]]}"' if seen[found[1]] > 1 else '"')

    text = re.sub(r'\bid="([^"]+)"', renamed, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{own}-\1"', text)
    text = text.replace('<style type="text/css">*{', f'<style type="text/css">#{own} *{{')  # the page keeps its own style
    heading = figure.get_suptitle().replace("\n", ", ")
    return text.replace("<svg ", f'<svg id="{own}" role="img" aria-label="{escape(heading)}" ', 1).strip()
