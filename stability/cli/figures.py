"""``stability figures``: the figures of a store, or of the paper's published numbers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal, cast, get_args

from cyclopts import Parameter

from stability.errors import UsageError
from stability.reports.score_tables import Form, rendered
from stability.studies import published
from stability.studies.published import published_scores
from stability.studies.results import StudyResults

__all__ = ["Against", "Sparsity", "check_writable", "draw", "figures", "part_of"]

Against = Annotated[
    Literal["paper", "main", "perturbation"] | None,
    Parameter(
        help="Put the published numbers beside those of the store: Table 1 (main), Table 2 (perturbation), or the one of the "
        "same experiment (paper)."
    ),
]
Sparsity = Annotated[float | None, Parameter(help="With ranks: of a method with several p, take the one nearest to this.")]


def figures(
    *,
    store: Annotated[Path | None, Parameter(help="Store of results: an SQLite file, or a folder NAME.d.")] = None,
    paper: Annotated[bool, Parameter(help="Draw ranks and tables of the published numbers; nothing is trained.")] = False,
    out: Annotated[Path, Parameter(help="Folder to draw into.")] = Path("figures"),
    only: Annotated[
        str | None, Parameter(help="Draw a single figure: stability, generalization, four_panels, ranks, …; by default all.")
    ] = None,
    against: Against = None,
    sparsity: Sparsity = None,
) -> None:
    """Draw the figures of a store, or those of the paper's published numbers."""
    if store is None:
        if not paper:
            raise UsageError("there is nothing to draw: give --store FILE, or --paper for the published numbers")
        for name, value in {"only": only, "against": against, "sparsity": sparsity}.items():
            if value is not None:
                raise UsageError(f"--{name} belongs to --store: add it, or leave this out")
    check_writable(out)
    if paper:
        _draw_published(out)
    if store is not None:
        results = StudyResults.read(store)
        draw(results, out, only, sparsity=sparsity, against=part_of(against, results))


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, or that it can be made: before hours of computing, and not after.

    Raises:
        UsageError: they cannot.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(f"nothing can be written to {folder}: {error}; name another folder") from error


def draw(results: StudyResults, folder: Path, only: str | None = None, *, quiet: bool = False, **how: Any) -> None:
    """Draw a study's figures, and print their paths unless ``quiet``."""
    import matplotlib as mpl

    mpl.use("Agg")
    from stability.plotting import save_all

    for path in save_all(results, folder, only, **how):
        if not quiet:
            print(path)


def part_of(asked: str | None, results: StudyResults) -> published.Part | None:
    """Which published table to compare with; ``paper`` stands for the one of the study's own experiment."""
    if asked == "paper":
        return "perturbation" if results.removed else "main"
    return cast("published.Part | None", asked)


def _draw_published(folder: Path) -> None:
    """The figure of ranks and both tables in every form, from the published numbers alone."""
    import matplotlib as mpl

    mpl.use("Agg")
    from stability import plotting

    every = {part: published_scores(part) for part in get_args(published.Part)}
    written = plotting.save({"ranks": plotting.ranks(*every.values())}, folder, "paper", "published numbers of Fu et al. 2023")
    forms: dict[str, Form] = {"md": "markdown", "tex": "latex", "csv": "csv"}
    for part, mine in every.items():
        for ending, form in forms.items():
            written.append(folder / f"paper_{part}.{ending}")
            written[-1].write_text(rendered(mine, form).rstrip("\n") + "\n", encoding="utf-8")
    print("\n".join(map(str, written)))
