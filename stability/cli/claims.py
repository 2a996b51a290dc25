"""``stability claims``: the paper's claims, put to the results of stores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from stability.studies.claims import Kind, answers, kind_of, learned, not_learned, within_rounding
from stability.studies.results import StudyResults
from stability.studies.verdicts import Answer

__all__ = ["claims"]

_STORES = (
    "Stores of results, such as runs/claims-cb*.sqlite. A store may have one setting of each method, methods at several p, or "
    "perturbed training sets. Of a search for learning rates only the missing cells count. Nothing is concluded while a store is "
    "unfinished: leave it out to judge the others alone."
)


def claims(*stores: Annotated[Path, Parameter(help=_STORES, show_default=False)], json: Json = False) -> None:
    """Put the paper's claims to the results of stores: effects, intervals, verdicts."""
    if not stores:
        raise UsageError("there are no results to put the claims to: give stores, such as runs/claims-cb*.sqlite")
    results = [StudyResults.read(store) for store in {store.resolve(): store for store in stores}.values()]
    found = answers(results)
    table = learned([one for one in results if kind_of(one) is Kind.MAIN])
    if json:
        told = {"studies": [*map(_study, results)], "learned": table.to_dict("records"), "not_learned": not_learned(results)}
        print_json(plain(told | {"within_rounding": within_rounding(results), "answers": [*map(_values, found)]}))
        return
    width = get_terminal_size((100, 24)).columns
    print("\n".join(map(_heading, results)), _verdicts(found), _learned(table), *_left_out(results, width), sep="\n\n")
    print("\n95 % intervals are of each comparison alone. Clear: p-value below 0.05 after Holm's correction for all of the claim.")
    print("What is compared on several tasks, but for an inner p, is tested in the mean over them.")
    print("Of a correlation the interval decides.")
    for one in found:
        print()
        for line in one.lines:
            print(fill(line, width, break_on_hyphens=False))
        if len(one.table):
            print(one.shown.to_string(index=False))


def _values(answer: Answer) -> dict[str, Any]:
    told = {one.name: getattr(answer, one.name) for one in fields(answer)}
    return told | {"verdict": str(answer.verdict), "table": answer.table.to_dict("records")}


def _study(results: StudyResults) -> dict[str, Any]:
    store = None if results.store is None else str(results.store.path)
    told = {"study": results.study, "store": store, "kind": str(kind_of(results))}
    return told | {"to_compute": results.to_compute, "notes": list(results.notes)}


def _heading(results: StudyResults) -> str:
    """What a study is for the claims, and what a reader must know of it."""
    return "\n".join([f"{results.study}: {kind_of(results)}", *(f"  {note}" for note in results.notes)])


def _verdicts(found: Sequence[Answer]) -> str:
    """A line for each claim."""
    shown = pd.DataFrame(
        {
            "verdict": [str(one.verdict) for one in found],
            "for": [one.supports for one in found],
            "against": [one.denies for one in found],
            "of": [one.of for one in found],
            "claim": [one.claim for one in found],
        }
    )
    lines = shown.drop(columns="claim").to_string(index=False).splitlines()
    return "\n".join(f"{line}  {claim}" for line, claim in zip(lines, ["claim", *shown["claim"]], strict=True))


def _learned(table: pd.DataFrame) -> str:
    if table.empty:
        return "No study with one setting of each method has a finished cell."
    return pd.DataFrame(
        {
            "task": table["task"],
            "method": table["method"],
            "p": [f"{p:.2g}" for p in table["sparsity"]],
            "learning rate": [f"{rate:g}" for rate in table["learning_rate"]],
            "seeds": table["seeds"],
            "training loss": [f"{loss:.3f}" for loss in table["train_loss"]],
            "test metric": [f"{value:.3f}" for value in table["test_metric"]],
            "above a constant (95 %)": [
                "unknown" if pd.isna(value) else f"{value:.3f} ({low:.3f} to {high:.3f})" if math.isfinite(low) else f"{value:.3f}"
                for value, low, high in zip(table["above"], table["low"], table["high"], strict=True)
            ],
            "learned": ["unknown" if one is None else "yes" if one else "no" for one in table["learned"]],
        }
    ).to_string(index=False)


def _left_out(results: Sequence[StudyResults], width: int) -> Iterator[str]:
    """What claims about stability leave out, and what they count that is not a result."""
    if left_out := not_learned(results):
        yield fill(f"Claims about stability leave out what did not learn: {', '.join(left_out)}.", width)
    if noise := within_rounding(results):
        yield fill(f"Stability is not a result where rounding alone changes the losses as much: {', '.join(noise)}.", width)
