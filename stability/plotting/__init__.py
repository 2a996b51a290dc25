"""Numbers as pictures. Nothing here trains or reads results from disk.

What varies with p is drawn from :class:`stability.studies.StudyResults` (:data:`FIGURES`), methods on tasks from
:class:`stability.studies.Scores` (:func:`ranks`, :func:`definition_3`), methods beside each other from a
:class:`stability.studies.Comparison` (:func:`against_first`), single examples from a :class:`stability.StabilityEstimate`
(:func:`differences`, :func:`influential`), methods beside another method's learning rates by
:func:`against_fit`, the masks of several selectors by :func:`masks`, and a mask, a bound and a study by :func:`mask`, :func:`bound`
and :func:`planned`.
Each function returns a figure of matplotlib; :func:`save` and :func:`save_all` write PNG and PDF, :func:`svg` gives an element
for a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from os import PathLike
from pathlib import Path

from matplotlib.figure import Figure

from stability.errors import UsageError
from stability.plotting.bound_curves import bounds
from stability.plotting.comparison import against_first, definition_3, ranks
from stability.plotting.examples import differences, influential
from stability.plotting.files import Format, closed, prefix, save, study_prefix, svg
from stability.plotting.fit_figure import against_fit
from stability.plotting.histories import projection_discontinuity
from stability.plotting.mask_figure import masks
from stability.plotting.single import bound, mask, planned
from stability.plotting.style import NothingToDrawError, unit
from stability.plotting.sweeps import four_panels, gap_against_stability, generalization, methods, six_panels, stability
from stability.studies.published import Part, against_published
from stability.studies.results import CellStatus, StudyResults
from stability.studies.scores import IncomparableError, scores

__all__ = [
    "FIGURES",
    "NothingToDrawError",
    "against_first",
    "against_fit",
    "bound",
    "bounds",
    "closed",
    "definition_3",
    "differences",
    "drawn",
    "four_panels",
    "gap_against_stability",
    "generalization",
    "influential",
    "mask",
    "masks",
    "methods",
    "overview",
    "planned",
    "prefix",
    "projection_discontinuity",
    "ranks",
    "save",
    "save_all",
    "six_panels",
    "stability",
    "svg",
]

FIGURES: dict[str, Callable[[StudyResults], Figure]] = {
    "stability": stability,
    "generalization": generalization,
    "four_panels": four_panels,
    "six_panels": six_panels,
    "gap_against_stability": gap_against_stability,
    "methods": methods,
    "bounds": bounds,
    "projection_discontinuity": projection_discontinuity,
}
"""Every figure of what varies with p, by the last part of its file's name."""

LINES = ("stability", "generalization", "four_panels", "six_panels", "gap_against_stability")
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
    formats: Sequence[Format] = ("png", "pdf"),
) -> list[Path]:
    """Draw every figure for which the study holds something, or only the one of that name, as PNG and PDF.

    The files' names say study and problem, and the one method and the one p where there is one. The study's fingerprint goes into
    the files' metadata. Of several methods on several tasks each task has figures of its own. What is not measured yet is left out,
    so that figures can be drawn again and again while results arrive.

    Args:
        results: the results of the study.
        folder: where the files are written; it is made where it is missing.
        only: a name of :data:`FIGURES` or :data:`SCORED`; None: all of them.
        sparsity: p, for the figures of :data:`SCORED` where a method has several (:func:`stability.studies.scores`).
        against: the published table beside whose ranks the study's are drawn: ``main`` or ``perturbation``.
        formats: ``png``, ``pdf`` or both; PNG alone takes half as long.

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
        ['paper-quick_cb_gap_against_stability.png', 'paper-quick_cb_gap_against_stability.pdf']
    """
    if only not in (None, *FIGURES, *SCORED):
        raise UsageError(f"unknown figure {only!r}: there is {', '.join([*FIGURES, *SCORED])}")
    if only in FIGURES and (sparsity is not None or against is not None):
        raise UsageError(f"a sparsity and published numbers belong to {', '.join(SCORED)}: leave them out with {only}")
    written, note = [], f"study {results.study}, identity {results.fingerprint}"
    for name, start, _, draw in [*_swept(results, only), *_scored(results, only, sparsity, against)]:
        try:
            figure = draw()
        except NothingToDrawError:
            if only is not None or (name == "ranks" and against is not None):
                raise
            continue
        written += save({name: figure}, folder, start, note, formats=formats)
    return written


def drawn(results: StudyResults) -> Iterator[tuple[str, str | None, Figure]]:
    """Every figure for which the study holds something, one after the other. Whoever takes one closes it.

    Args:
        results: the results of the study.

    Yields:
        The name of the figure; the task that it shows, of a study of several tasks where it shows only one; and the figure.

    Example:
        >>> from stability.studies import StudyResults
        >>> [name for name, _, figure in drawn(StudyResults.read("figures/theory-convex.sqlite")) if closed(figure)]
        ['stability', 'generalization', 'four_panels', 'six_panels', 'gap_against_stability', 'bounds']
    """
    for name, _, task, draw in [*_swept(results, None), *_scored(results, None, None, None)]:
        with suppress(NothingToDrawError):
            yield name, task, draw()


def overview(results: StudyResults) -> Figure:
    """The figure that says most of what a study measured: stability against p, or of methods on several tasks Definition 3 beside
    the spread over seeds; of what was not measured, or with one seed, the next that can be drawn.

    Args:
        results: the results of a study.

    Raises:
        NothingToDrawError: the study holds nothing that can be drawn.
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> overview(StudyResults.read("figures/theory-convex.sqlite")).get_suptitle().splitlines()[0]
        'How much leaving one example out changes its loss'
    """
    results.summary()  # says what is wrong where no cell is finished
    crossed = len(results.tasks) > 1 and len({one["method"] for one in results.algorithms.values()}) > 1
    drawn = [*([] if crossed else _swept(results, None)), *_scored(results, None, None, None)]
    drawings = {name: draw for name, *_, draw in drawn}
    for name in ("stability", "definition_3", "ranks", "four_panels", "generalization"):
        try:
            if name in drawings:
                return drawings[name]()
        except NothingToDrawError:
            continue
    raise NothingToDrawError("several methods on several tasks: draw results.where(task=…) of each task by itself")


Drawing = tuple[str, str, str | None, Callable[[], Figure]]
"""The name of a figure, what its file's name begins with, the one task of several that it shows, and what draws it."""


def _swept(results: StudyResults, only: str | None) -> Iterator[Drawing]:
    """One figure of all tasks, or where there are several methods one of each task that has a finished cell."""
    ok = results.where(status=CellStatus.OK).table if len(results) else results.table
    asked = results.tasks or ("",)
    several = len({one["method"] for one in results.algorithms.values()}) > 1
    for name, draw in FIGURES.items():
        if only not in (None, name):
            continue
        if len(asked) < 2 or (name in LINES and not several):
            yield name, study_prefix(results, asked), None, partial(draw, results)
        else:
            found = [] if ok.empty else [task for task in asked if (ok["task"] == task).any()]
            yield from ((name, study_prefix(results, [task]), task, partial(draw, results.where(task=task))) for task in found)


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
    drawn = {"definition_3": partial(definition_3, found, unit(results.table)), "ranks": partial(ranks, found, *beside)}
    start = study_prefix(results, results.tasks)
    if sparsity is not None:
        start = f"{start}_p{sparsity:g}"
    return [(name, start, None, draw) for name, draw in drawn.items() if only in (None, name)]
