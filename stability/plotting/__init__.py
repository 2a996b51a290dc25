"""Numbers as pictures. Nothing here trains or reads results from disk.

What varies with p is drawn from :class:`stability.studies.StudyResults` (:data:`FIGURES`), methods on tasks from
:class:`stability.studies.Scores` (:func:`ranks`, :func:`definition_3`), single examples from a
:class:`stability.StabilityEstimate` (:func:`differences`, :func:`influential`). Each function returns a figure of matplotlib;
:func:`save` and :func:`save_all` write PNG and PDF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from stability.errors import StabilityError, UsageError
from stability.plotting.bound_curves import bounds
from stability.plotting.comparison import definition_3, ranks
from stability.plotting.examples import differences, influential
from stability.plotting.histories import projection_discontinuity
from stability.plotting.style import NothingToDrawError
from stability.plotting.sweeps import four_panels, gap_against_stability, generalization, stability
from stability.studies.published import Part, against_published
from stability.studies.results import CellStatus, StudyResults
from stability.studies.scores import IncomparableError, scores

__all__ = [
    "FIGURES",
    "NothingToDrawError",
    "bounds",
    "definition_3",
    "differences",
    "four_panels",
    "gap_against_stability",
    "generalization",
    "influential",
    "projection_discontinuity",
    "ranks",
    "save",
    "save_all",
    "stability",
]

FIGURES: dict[str, Callable[[StudyResults], Figure]] = {
    "stability": stability,
    "generalization": generalization,
    "four_panels": four_panels,
    "gap_against_stability": gap_against_stability,
    "bounds": bounds,
    "projection_discontinuity": projection_discontinuity,
}
"""Every figure of what varies with p, by the name of its file."""

LINES = ("stability", "generalization", "four_panels", "gap_against_stability")
"""The figures among :data:`FIGURES` that draw one method on several tasks, with a line for each task."""

SCORED = ("definition_3", "ranks")
"""Names of the figures of one setting of each method on each task."""


def save_all(
    results: StudyResults,
    folder: str | PathLike[str],
    only: str | None = None,
    *,
    sparsity: float | None = None,
    against: Part | None = None,
) -> list[Path]:
    """Draw every figure for which the study holds something, or only the one of that name, as PNG and PDF.

    The study's fingerprint goes into the files' metadata. Of several methods on several tasks each task has figures of its own.

    Args:
        results: the results of the study.
        folder: where the files are written; it is made where it is missing.
        only: a name of :data:`FIGURES` or :data:`SCORED`; None: all of them.
        sparsity: p, for the figures of :data:`SCORED` where a method has several (:func:`stability.studies.scores`).
        against: the published table beside whose ranks the study's are drawn: ``main`` or ``perturbation``.

    Returns:
        The files that were written.

    Raises:
        UsageError: there is no figure called ``only``, or it takes no ``sparsity`` and no ``against``; or the study's methods
            cannot be compared, where a figure that compares them was asked for.
        NothingToDrawError: the study holds nothing of the figure that was asked for.
        StabilityError: the folder cannot be written, or no cell of the study is measured.

    Example:
        >>> import tempfile
        >>> from stability.studies import StudyResults
        >>> results = StudyResults.read("figures/paper-quick-bounds.sqlite")
        >>> [path.name for path in save_all(results, tempfile.mkdtemp(), only="gap_against_stability")]
        ['paper-quick_gap_against_stability.png', 'paper-quick_gap_against_stability.pdf']
    """
    if only not in (None, *FIGURES, *SCORED):
        raise UsageError(f"unknown figure {only!r}: there is {', '.join([*FIGURES, *SCORED])}")
    if only in FIGURES and (sparsity is not None or against is not None):
        raise UsageError(f"a sparsity and published numbers belong to {', '.join(SCORED)}: leave them out with {only}")
    written = []
    for name, draw in [*_swept(results, only), *_scored(results, only, sparsity, against)]:
        try:
            figure = draw()
        except NothingToDrawError:
            if only is not None or (name == "ranks" and against is not None):
                raise
            continue
        written += save({name: figure}, folder, results.study, f"study {results.study}, identity {results.fingerprint}")
    return written


Drawing = tuple[str, Callable[[], Figure]]
"""The name of a figure's file, and what draws the figure."""


def _swept(results: StudyResults, only: str | None) -> Iterator[Drawing]:
    ok = results.where(status=CellStatus.OK).table if len(results) else results.table
    tasks = [] if ok.empty else list(ok["task"].unique())
    for name, draw in FIGURES.items():
        if only not in (None, name):
            continue
        if len(tasks) < 2 or (name in LINES and ok["method"].nunique() == 1):
            yield name, partial(draw, results)
        else:
            yield from ((f"{name}_{task}", partial(draw, results.where(task=task))) for task in tasks)


def _scored(results: StudyResults, only: str | None, sparsity: float | None, against: Part | None) -> list[Drawing]:
    """None where the study's methods cannot be compared, unless something was asked for that belongs to these figures."""
    if only in FIGURES or not len(results):
        return []
    try:
        found = scores(results, sparsity)
    except IncomparableError:
        if only is not None or sparsity is not None or against is not None:
            raise
        return []
    beside = [] if against is None else [against_published(found, against)]
    drawn = {"definition_3": partial(definition_3, found), "ranks": partial(ranks, found, *beside)}
    return [(name, draw) for name, draw in drawn.items() if only in (None, name)]


def save(figures: Mapping[str, Figure], folder: str | PathLike[str], prefix: str, note: str) -> list[Path]:
    """Write figures in PNG and PDF, and close them.

    Args:
        figures: the figures by name; the files are called ``prefix_name``.
        folder: where the files are written; it is made where it is missing.
        prefix: what the files' names begin with.
        note: what the files' metadata say.

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
            for suffix, stamp in (("png", {"Description": note}), ("pdf", {"Subject": note, "CreationDate": None})):
                path = Path(folder) / f"{prefix}_{name}.{suffix}"
                figure.savefig(path, dpi=200, metadata=stamp)
                written.append(path)
            plt.close(figure)
    except OSError as error:
        raise StabilityError(f"cannot write figures into {folder}: {error}; check the path and the free disk space") from error
    return written
