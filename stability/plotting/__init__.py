"""The tidy table of a study → figures. Nothing here trains or reads results from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from stability.errors import StabilityError, UsageError
from stability.plotting.bound_curves import bounds
from stability.plotting.examples import differences, influential
from stability.plotting.histories import projection_discontinuity
from stability.plotting.style import NothingToDrawError
from stability.plotting.sweeps import four_panels, gap_against_stability, generalization, stability

__all__ = [
    "FIGURES",
    "NothingToDrawError",
    "bounds",
    "differences",
    "four_panels",
    "gap_against_stability",
    "generalization",
    "influential",
    "projection_discontinuity",
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
"""Every figure by the name of its file."""


def save_all(frame: pd.DataFrame, folder: str | PathLike[str], only: str | None = None) -> list[Path]:
    """Draw every figure for which the study holds something, or only the one of that name, as PNG and PDF.

    The study's identity goes into the files' metadata.

    Raises:
        UsageError: there is no figure called ``only``.
        StabilityError: the folder cannot be written.
    """
    study, identity = frame.attrs.get("study", "study"), frame.attrs.get("identity", "unknown")
    if only is not None and only not in FIGURES:
        raise UsageError(f"unknown figure {only!r}: there is {', '.join(FIGURES)}")
    figures = {}
    for name, draw in FIGURES.items():
        if only not in (None, name):
            continue
        try:
            figures[name] = draw(frame)
        except NothingToDrawError:
            if only is None:
                continue
            raise
    return save(figures, folder, study, f"study {study}, identity {identity}")


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
