"""The results of a study → one page of HTML that holds all it shows and loads nothing from elsewhere."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stability import __version__
from stability.errors import StabilityError
from stability.reports.labels import LABELS
from stability.reports.study_table import TextColumn, columns_of, legend
from stability.studies.results import CellStatus, Failure, StudyResults
from stability.studies.state import State

__all__ = ["Drawn", "check_measured", "page"]


class Drawn(NamedTuple):
    """A figure of the page.

    Attributes:
        svg: the figure as one ``svg`` element; its ids must differ from those of the other figures.
        caption: what it shows, in plain words.
    """

    svg: str
    caption: str


def check_measured(state: State) -> None:
    """Check that a study has something to report.

    Args:
        state: how far it is (:func:`stability.studies.state.state_of`).

    Raises:
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import Store
        >>> from stability.studies.state import state_of
        >>> check_measured(state_of(Store("figures/discontinuity.sqlite")))
    """
    if not state.measured:
        why = f"all {state.failed} finished cells failed" if state.failed else "no cell is finished yet"
        raise StabilityError(
            f"there is nothing to report of study {state.study!r}: {why}; run the study again, by the command that made it, with "
            "--store FILE: it goes on where it was"
        )


def page(results: StudyResults, state: State, figures: Sequence[Drawn] = (), again: str = "") -> str:
    """A study as one page of HTML.

    Args:
        results: the results of the study.
        state: how far it is (:func:`stability.studies.state.state_of`).
        figures: its figures.
        again: the command that made it; empty where none is known.

    Returns:
        The page: its table can be sorted by each column, and prints as it was sorted.

    Raises:
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import Store, StudyResults
        >>> from stability.studies.state import state_of
        >>> path = "figures/discontinuity.sqlite"
        >>> page(StudyResults.read(path), state_of(Store(path))).startswith("<!doctype html>")
        True
    """
    check_measured(state)
    environment = Environment(
        loader=PackageLoader("stability.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    every = columns_of(results)
    columns = {title: every[title] for title in sorted(every, key=lambda title: _FIRST.get(title, len(_FIRST)))}
    columns["method"] = TextColumn([LABELS.get(name, name) for name in every["method"].texts], every["method"].values)
    script = _SCRIPT.read_text(encoding="utf-8")
    return environment.get_template("page.html.jinja").render(
        script=Markup(script),
        digest=b64encode(sha256(script.encode()).digest()).decode(),
        study=results.study,
        question=_question(results),
        state=state,
        titles=list(columns),
        numeric=[all(isinstance(value, (int, float)) for value in column.values) for column in columns.values()],
        rows=[list(zip(texts, map(_sorted_by, values), strict=True)) for texts, values in _rows(columns)],
        legend=[_entry(line) for line in legend(list(columns))],
        figures=[(Markup(drawn.svg), drawn.caption) for drawn in figures],
        settings=_settings(results),
        algorithms=(algorithms := _algorithms(results)),
        trained=any(own for *_, own in algorithms),
        failures=_failures(results),
        assumptions=_assumptions(results),
        environment=_environment(results),
        notes=results.notes,
        fingerprint=results.fingerprint,
        identity=json.dumps(results.identity, indent=1, ensure_ascii=False),
        again=again,
        version=__version__,
        today=date.today().isoformat(),
    )


_SCRIPT = Path(__file__).with_name("page.js")
"""The page's one script. A browser runs no other: the page's policy names its SHA-256 digest."""

_FIRST = {title: place for place, title in enumerate(("task", "method", "p", "stability", "95 % interval"))}
"""The columns that a narrow screen shows first."""


def _rows(columns: Mapping[str, TextColumn]) -> list[tuple[list[Any], list[Any]]]:
    texts = zip(*(column.texts for column in columns.values()), strict=True)
    values = zip(*(column.values for column in columns.values()), strict=True)
    return [(list(text), list(value)) for text, value in zip(texts, values, strict=True)]


def _sorted_by(value: Any) -> str:
    """A value as the page's script reads it; empty for one that comes last in either order."""
    if isinstance(value, float):
        return "" if math.isnan(value) else "Infinity" if value == math.inf else repr(value)
    return str(value)


def _entry(line: str) -> tuple[str, str]:
    term, _, meaning = line.partition(": ")
    return term, meaning


def _question(results: StudyResults) -> str:
    """What was measured, in two plain sentences."""
    methods = len({settings["method"] for settings in results.algorithms.values()})
    tasks, seeds = [LABELS.get(task, task) for task in results.tasks], len(results.identity["seeds"])
    of = f"{methods} {'way' if methods == 1 else 'ways'} of fine-tuning"
    on = f"{tasks[0]}" if len(tasks) == 1 else f"{', '.join(tasks[:-1])} and {tasks[-1]}"
    each = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    if "stability" in results.table and results.table["stability"].notna().any():
        asked = "How much does the loss on a training example change when the model is trained without that example? "
        return asked + f"This study measures it for {of} on {on}, with {each} each. A small change means a stable method."
    return f"This study compares {of} on {on}, with {each} each. It measures losses and metrics, and not stability."


def _settings(results: StudyResults) -> list[tuple[str, str]]:
    """What all cells share."""
    identity = results.identity
    several: Mapping[str, Any] = identity.get("problems", {})
    problems = several or {str(identity["problem"]): identity}
    alone = len(problems) == 1
    found = [
        ("problem", f"{name}: {_plainly(one['problem_settings'])}")
        if alone
        else (f"problem {name}", _plainly(one["problem_settings"]))
        for name, one in problems.items()
    ]
    sizes = {int(n) for n in results.table["n"].dropna()} if "n" in results.table else set()
    found.append(("n, training examples", ", ".join(map(str, sorted(sizes)))))
    found.append(("seeds", ", ".join(map(str, identity["seeds"]))))
    if "samples" in identity:
        found.append(("seeds of S", ", ".join(map(str, identity["samples"]))))
    if "measured_seeds" in identity:
        found.append(
            ("seeds with which stability is measured", ", ".join(map(str, identity["seeds"][: identity["measured_seeds"]])))
        )
    found.append(("estimator", _estimator(identity)))
    if "test_examples" in identity:
        found.append(("test examples on which the models without an example are evaluated", str(identity["test_examples"])))
    checked = identity["check_replicas"]
    where = f"A(S) and {checked} of the A(Sⁱ)" if checked else "A(S)"
    bounds = "not measured" if checked is None else f"measured, with δ = {identity['delta']:g} and the curvature at {where}"
    found.append(("bounds", bounds))
    common = _common(results)
    if common:
        found.append(("training, the same everywhere", _plainly(common)))
    found.append(("version of the numbers", str(identity["numerics"])))
    return found


def _estimator(identity: Mapping[str, Any]) -> str:
    if "estimator" in identity:
        own = dict(identity["estimator"])
        predictor = own.pop("predictor", None)
        by = "" if predictor is None else f"; predicted by {' or '.join(dict.fromkeys(one['name'] for one in predictor.values()))}"
        return f"{own.pop('name')}: {_plainly(own)}{by}"
    retrainings = identity["retrainings"]
    return "exact: every example is left out" if retrainings is None else f"sampled: {retrainings} retrainings"


def _trained(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ("selector", "method")}


def _common(results: StudyResults) -> dict[str, Any]:
    every = [_trained(settings) for settings in results.algorithms.values()]
    return {name: value for name, value in every[0].items() if all(name in one and one[name] == value for one in every)}


def _algorithms(results: StudyResults) -> list[tuple[str, str, str, str]]:
    """A row for each method with its settings: label, every p, the selector's other settings, how its training differs."""
    common = _common(results)

    def alike(settings: Mapping[str, Any]) -> tuple[str, tuple[str, ...], str]:
        own = {name: value for name, value in _trained(settings).items() if name not in common}
        return LABELS.get(settings["method"], settings["method"]), tuple(settings["selector"]), _plainly(own)

    rows = []
    for (label, names, own), group in groupby(results.algorithms.values(), alike):
        selectors = [one["selector"] for one in group]
        each = {name: list(dict.fromkeys(_value(one[name]) for one in selectors if one[name] is not None)) for name in names}
        asked, _ = ", ".join(each.pop("sparsity", [])), each.pop("name")
        settings = (f"{name.replace('_', ' ')} {' or '.join(values)}" for name, values in each.items() if values)
        rows.append((label, asked, ", ".join(settings), own))
    return rows


def _plainly(settings: Mapping[str, Any]) -> str:
    """Settings as words: ``steps 100, learning rate 0.003``."""
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in settings.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_plainly(value)})"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _failures(results: StudyResults) -> list[tuple[str, str, str, str]]:
    """What failed: method, p and seeds, the kind, the reason."""
    bad = results.table[results.table["status"] == CellStatus.FAILED]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    kinds = {
        Failure.METHOD: "the method: a result, it is not tried again",
        Failure.MACHINE: "the machine: it is tried again when the study is run again",
        Failure.ERROR: "an error: it is tried again when the study is run again",
    }
    for row in bad.to_dict("records"):
        kind = row.get("failure")
        p = "" if pd.isna(row["sparsity"]) else f" at p = {row['sparsity']:g}"
        what = LABELS.get(row["method"], row["method"]) + p + (f" on {row['task']}" if len(results.tasks) > 1 else "")
        known = kinds[Failure.METHOD if pd.isna(kind) else Failure(kind)]  # records from before there were kinds have none
        grouped.setdefault((what, known, row["reason"]), []).append(str(row["seed"]))
    return [(what, ", ".join(seeds), kind, reason) for (what, kind, reason), seeds in grouped.items()]


def _assumptions(results: StudyResults) -> list[tuple[str, str, str]]:
    """Each assumption that failed, of which bounds, and in how many of the cells in which they were measured."""
    counts: Counter[tuple[str, str]] = Counter()
    measured: Counter[str] = Counter()
    for failed in results.details("failed_assumptions").dropna():
        measured.update(failed.keys())
        counts.update((bound, name) for bound, names in failed.items() for name in names)
    together: dict[tuple[str, str], list[str]] = {}
    for (bound, name), count in counts.items():
        together.setdefault((name, f"{count} of {measured[bound]}"), []).append(bound)
    return [(name, ", ".join(bounds), cells) for (name, cells), bounds in together.items()]


def _environment(results: StudyResults) -> list[tuple[str, str, int]]:
    """By what the cells were computed, and how many by each."""
    rows = []
    missing = pd.Series(None, results.table.index, dtype=object)
    for column in ("software", "device", *(["threads"] if "threads" in results.table else [])):
        told = results.table.get(column, missing).astype(object)
        counts = told.where(told.notna(), "not recorded").value_counts()
        rows += [(column, str(name), int(count)) for name, count in counts.items()]
    return rows
