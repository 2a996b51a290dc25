"""``stability claims``: the paper's claims, put to the results of stores."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated, Any

import pandas as pd
from cyclopts import Parameter

from stability.cli.about import Json
from stability.cli.printing import plain, print_json
from stability.errors import UsageError
from stability.studies.claims import Kind, answers, kind_of, learned
from stability.studies.results import StudyResults
from stability.studies.verdicts import Answer

__all__ = ["claims"]

_STORES = (
    "Stores of results, such as runs/claims-cb*.sqlite. What each is for the claims follows from what it has: one setting of each "
    "method, methods at several p, or perturbed training sets. A search for learning rates only says what is missing."
)


def claims(*stores: Annotated[Path, Parameter(help=_STORES, show_default=False)], json: Json = False) -> None:
    """Put the paper's claims to the results of stores: effects, intervals, verdicts. Unfinished studies decide nothing."""
    if not stores:
        raise UsageError("there are no results to put the claims to: give stores, such as runs/claims-cb*.sqlite")
    results = [StudyResults.read(store) for store in stores]
    found = answers(results)
    table = learned([one for one in results if kind_of(one) is Kind.MAIN])
    if json:
        print_json(plain({"learned": table.to_dict("records"), "answers": [*map(_values, found)]}))
        return
    width = get_terminal_size((100, 24)).columns
    told = (fill(line, width) if " " * 4 not in line else line for line in "\n\n".join(map(str, found)).splitlines())
    print(*map(_study, results), "", _learned(table), "", *told, sep="\n")


def _values(answer: Answer) -> dict[str, Any]:
    told = {one.name: getattr(answer, one.name) for one in fields(answer)}
    return told | {"verdict": str(answer.verdict), "table": answer.table.to_dict("records")}


def _study(results: StudyResults) -> str:
    """What a study is for the claims, and what a reader must know of it."""
    return "\n".join([f"{results.study}: {kind_of(results)}", *(f"  {note}" for note in results.notes)])


def _learned(table: pd.DataFrame) -> str:
    if table.empty:
        return "no study has one setting of each method yet"
    shown = table[["task", "method", "sparsity", "learning_rate", "seeds", "test_metric", "constant", "low", "high", "learned"]]
    names = {"sparsity": "p", "learning_rate": "rate", "test_metric": "test metric", "low": "above it: low", "high": "high"}
    return shown.rename(columns=names).to_string(index=False, float_format="{:.3g}".format)
