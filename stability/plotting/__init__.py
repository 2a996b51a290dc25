"""The tidy table of a study → figures. Nothing here trains or reads results from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from stability.errors import StabilityError, UsageError
from stability.plotting.bound_curves import bounds
from stability.plotting.comparison import definition_3, ranks
from stability.plotting.examples import differences, influential
from stability.plotting.histories import projection_discontinuity
from stability.plotting.style import NothingToDrawError
from stability.plotting.sweeps import four_panels, gap_against_stability, generalization, stability
from stability.studies.published import Part
from stability.studies.scores import against_published, scores

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

FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "stability": stability,
    "generalization": generalization,
    "four_panels": four_panels,
    "gap_against_stability": gap_against_stability,
    "bounds": bounds,
    "projection_discontinuity": projection_discontinuity,
}
"""Every figure of what varies with p, by the name of its file."""

LINES = ("stability", "generalization", "four_panels", "gap_against_stability")
"""Those of them that draw one method on several tasks, a line for each."""

SCORED = ("definition_3", "ranks")
"""Figures of one setting of each method on each task."""


def save_all(
    frame: pd.DataFrame,
    folder: str | PathLike[str],
    only: str | None = None,
    *,
    sparsity: float | None = None,
    against: Part | None = None,
) -> list[Path]:
    """Draw every figure for which the study holds something, or only the one of that name, as PNG and PDF.

    The study's identity goes into the files' metadata. Of several methods on several tasks each task has figures of its own.

    Args:
        frame: of :func:`stability.studies.summary.table`.
        folder: where to.
        only: a name of :data:`FIGURES` or :data:`SCORED`.
        sparsity: p of :data:`SCORED` where a method has several, as in :func:`stability.studies.scores.scores`.
        against: the published table beside whose ranks the study's are drawn.

    Raises:
        UsageError: there is no figure called ``only``; or of :data:`SCORED` what :mod:`stability.studies.scores` refuses, if they,
            or what belongs to them alone, were asked for.
        StabilityError: the folder cannot be written.
    """
    study, identity = frame.attrs.get("study", "study"), frame.attrs.get("identity", "unknown")
    if only not in (None, *FIGURES, *SCORED):
        raise UsageError(f"unknown figure {only!r}: there is {', '.join([*FIGURES, *SCORED])}")
    if only in FIGURES and (sparsity is not None or against is not None):
        raise UsageError(f"a sparsity and published numbers belong to {', '.join(SCORED)}: leave them out with {only}")
    written = []
    for name, draw in [*_swept(frame, only), *_scored(frame, only, sparsity, against)]:
        try:
            figure = draw()
        except NothingToDrawError:
            if only is not None or (name == "ranks" and against is not None):
                raise
            continue
        written += save({name: figure}, folder, study, f"study {study}, identity {identity}")
    return written


Drawing = tuple[str, Callable[[], Figure]]
"""Name of the file, and what draws the figure."""


def _swept(frame: pd.DataFrame, only: str | None) -> Iterator[Drawing]:
    ok = frame[frame["status"] == "ok"] if len(frame) else frame
    tasks = [] if ok.empty else list(ok["task"].unique())
    for name, draw in FIGURES.items():
        if only not in (None, name):
            continue
        if len(tasks) < 2 or (name in LINES and ok["method"].nunique() == 1):
            yield name, partial(draw, frame)
        else:
            yield from ((f"{name}_{task}", partial(draw, frame[frame["task"] == task])) for task in tasks)


def _scored(frame: pd.DataFrame, only: str | None, sparsity: float | None, against: Part | None) -> list[Drawing]:
    """None where a study has several settings of a method, unless something was asked for that belongs to these figures."""
    if only in FIGURES or frame.empty:
        return []
    try:
        found = scores(frame, sparsity)
    except UsageError:
        if only is not None or sparsity is not None or against is not None:
            raise
        return []
    beside = [] if against is None else [against_published(found, against)]
    drawn = {"definition_3": partial(definition_3, found), "ranks": partial(ranks, found, *beside)}
    return [(name, draw) for name, draw in drawn.items() if only in (None, name)]


def save(figures: Mapping[str, Figure], folder: str | PathLike[str], prefix: str, note: str) -> list[Path]:
    """Write figures as ``prefix_name`` in PNG and PDF with ``note`` in their metadata, and close them.

    Raises:
        StabilityError: the folder cannot be written.
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
