"""``stability table``: a store or the paper's published numbers as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stability.cli.about import Json
from stability.cli.figures import Against, Sparsity, part_of
from stability.cli.printing import plain, print_json
from stability.errors import UsageError
from stability.reports import render
from stability.reports.rates import rates_text
from stability.reports.score_tables import Form, as_values, rendered
from stability.studies import published
from stability.studies.published import against_published, published_scores
from stability.studies.rates import chosen_rates
from stability.studies.results import StudyResults
from stability.studies.scores import scores

__all__ = ["table"]


def table(
    *,
    store: Annotated[Path | None, Parameter(help="Store of results: an SQLite file, or a folder NAME.d.")] = None,
    paper: Annotated[published.Part | None, Parameter(help="The published Table 1 (main) or Table 2 (perturbation).")] = None,
    ranks: Annotated[bool, Parameter(help="Of a store: methods by tasks with ranks, as in the paper.")] = False,
    rates: Annotated[
        bool,
        Parameter(help="Of a search: the learning rate of each method that is best on the validation split."),
    ] = False,
    format: Annotated[  # noqa: A002 - it is the name of the option
        Form | None, Parameter(help="Form of a table with ranks; by default text. csv has the bare numbers.")
    ] = None,
    against: Against = None,
    sparsity: Sparsity = None,
    json: Json = False,
) -> None:
    """Print the table of a store, or one of the paper's."""
    if json and format is not None:
        raise UsageError("--json and --format: leave one of them out")
    if store is None:
        if paper is None:
            raise UsageError("there is no table to print: give --store FILE, or --paper main or perturbation")
        if against is not None or sparsity is not None or rates:
            raise UsageError("--against, --sparsity and --rates belong to --store: add it, or leave them out")
        shown = published_scores(paper)
        if json:
            print_json(plain({"table": paper, **as_values(shown)}))
        else:
            print(rendered(shown, format or "text"))
        return
    if paper is not None:
        raise UsageError("--paper is of the published numbers alone: to put them beside a store use --against")
    results = StudyResults.read(store)
    if rates:
        if ranks or format or against or sparsity is not None:
            raise UsageError("--rates is a table of its own: leave --ranks, --format, --against and --sparsity out")
        found = chosen_rates(results)
        if json:
            parts = {"chosen": found.table, "tried": found.curves}
            print_json({name: [plain(row) for row in part.to_dict("records")] for name, part in parts.items()})
        else:
            print(rates_text(found))
        return
    if not (ranks or format or against or sparsity is not None):
        if json:
            print_json([plain(row) for row in results.summary().table.to_dict("records")])
        else:
            print(render(results))
        return
    shown, part = scores(results, sparsity), part_of(against, results)
    beside = None if part is None else against_published(shown, part)
    if json:
        measured = as_values(shown)
        print_json(plain(measured if beside is None else {"measured": measured, "published": as_values(beside)}))
    else:
        print(rendered(shown, format or "text", beside))
