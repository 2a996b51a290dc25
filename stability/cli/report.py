"""``stability report``: a study as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stability.cli.figures import check_writable
from stability.errors import StabilityError
from stability.reports.labels import LABELS
from stability.reports.page import Drawn, check_measured, page
from stability.studies.identity import difference
from stability.studies.named import PAPER, STUDIES
from stability.studies.results import StudyResults
from stability.studies.state import state_of
from stability.studies.store import Store

__all__ = ["report"]

_CAPTIONS = {
    "stability": "Stability against p, the fraction of the pretrained parameters that may change.",
    "generalization": "Losses, metric and generalization gap against p.",
    "four_panels": "Mean and standard deviation over seeds of the metric, on test and on training examples, against p.",
    "gap_against_stability": "The generalization gap against the stability, a point for each method and p.",
    "methods": "Every method in a row: performance, gap, stability, and how far the masks of S and of Sⁱ overlap.",
    "bounds": "The bounds beside what they bound.",
    "projection_discontinuity": "The training loss at each step, where the mask of a method moves.",
    "definition_3": "The stability of each method on each task.",
    "ranks": "The rank of each method, by its metric and by its stability.",
}


def report(
    *,
    store: Annotated[Path, Parameter(help="Store of results: an SQLite file, or a folder NAME.d.")],
    out: Annotated[Path, Parameter(help="The page to write.")] = Path("report.html"),
    figures: Annotated[bool, Parameter(negative_bool="no-", help="Whether the page has the study's figures.")] = True,
) -> None:
    """Write a study as one page of HTML: table, figures, settings, failures, environment."""
    held = Store(store)
    results, found = StudyResults.read(store), state_of(held)
    check_measured(found)  # before any figure is drawn
    check_writable(out.parent)
    text = page(results, found, _drawn(results) if figures else (), _again(results, store))
    try:
        out.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")  # half a pair of UTF-16 is no sign
    except OSError as error:
        raise StabilityError(f"cannot write {out}: {error}; name another file with --out") from error
    print(out)


def _drawn(results: StudyResults) -> list[Drawn]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from stability import plotting

    found = []
    for name, task, figure in plotting.drawn(results):
        of = "" if task is None else f"{LABELS.get(task, task)}: "
        found.append(Drawn(plotting.svg(figure), of + _CAPTIONS.get(name, name)))
        plt.close(figure)
    return found


def _again(results: StudyResults, store: Path) -> str:
    """The command that makes the study, and the one that checks it; as far as the store tells."""
    name = results.study
    verified = f"stability verify --store {store.name}"
    if name in STUDIES and difference(results.identity, STUDIES[name].identity()) is None:
        return f"stability run {name} --store {store.name}\n{verified}"
    if name in PAPER:
        # Where data and model were, and which options were given, is not in the store: only what they amount to.
        words = f"{name} --model MODEL --data DATA"
        return f"stability run {words} --store {store.name}  # with the settings above\n{verified} {words}"
    # A file of one's own, ``compare``, a problem given in words, or Python: the store does not say which.
    return f"the command that made it, with --store {store.name}\n{verified}"
