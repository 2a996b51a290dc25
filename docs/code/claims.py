"""The page on the paper's claims where methods learn: its tables and sentences, from the stores as far as they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stability.reports.labels import LABELS
from stability.studies import Answer, StudyResults, Verdict, answers, cells_to_compute, chosen_rates, learned
from stability.studies.named import CLAIMS
from stability.studies.published import published_scores

__all__ = ["head", "markdown", "number", "rates", "stored", "verdicts"]

FIGURES = Path(__file__).parents[2] / "figures"
FOLDER = FIGURES / "claims"
_PARTS = ("-rates", "", "-perturbation", "-sparsity-rates", "-sparsity")
_WANTED = 0.2  # half the width of an interval of stability, as a share of it


def stored(ending: str = "") -> list[StudyResults]:
    """The results of the studies of the claims whose names end in this, of those that were begun.

    Args:
        ending: ``-rates``, ``-sparsity`` and so on; nothing for the main studies.
    """
    paths = [FOLDER / f"{name}.sqlite" for name in _names(ending)]
    return [StudyResults.read(path) for path in paths if path.exists()]


def _names(ending: str = "") -> list[str]:
    """The studies whose names end so: one of each task that has it."""
    return [name for name in CLAIMS if name.endswith(ending) and name.count("-") == 1 + ending.count("-")]


def _not_begun() -> list[str]:
    """The studies that claims need, and of which there is nothing."""
    return [name for name in CLAIMS if not name.endswith("-fit") and not (FOLDER / f"{name}.sqlite").exists()]


@functools.cache
def _every() -> tuple[StudyResults, ...]:
    return tuple(one for ending in _PARTS for one in stored(ending))


@functools.cache
def _answers() -> tuple[Answer, ...]:
    return tuple(answers(_every(), missing=[f"all of {name}" for name in _not_begun()]))


def verdicts() -> str:
    """The verdict on each claim: of each task whose ten methods are finished, and of these together."""
    every, finished = _every(), {}
    for main in stored():
        if not main.to_compute:
            mine = [one for one in every if one.tasks == main.tasks and not one.to_compute]
            finished[", ".join(LABELS.get(task, task) for task in main.tasks)] = mine
    columns: dict[str, Sequence[Answer]] = {name: answers(mine) for name, mine in finished.items()}
    if len(finished) == len(_names()):
        columns["all tasks"] = _answers()
    elif len(finished) > 1:
        columns["these together"] = answers(one for mine in finished.values() for one in mine)
    rows = (f"| {same[0].claim.rstrip('.')} | {' | '.join(map(_verdict, same))} |" for same in zip(*columns.values(), strict=True))
    return "\n".join([head("claim", *columns), *rows])


def _verdict(answer: Answer) -> str:
    """The verdict with what it rests on."""
    if answer.missing or answer.verdict is Verdict.MISSING:
        return "–"
    if (answer.table["over"] == "methods").all():
        return f"{answer.verdict} (ρ = {answer.table['effect'].iloc[0]:.2f})".replace("-", "−")
    return f"{answer.verdict} ({answer.supports} for, {answer.denies} against, of {answer.of})"


def markdown() -> str:
    """How far the studies are, which methods learned, how stable each is, and what was measured of each claim."""
    main, every = stored(), _every()
    found = _answers()
    return "\n".join(
        [
            *_progress(every),
            "",
            *_learned(main),
            "",
            *_stabilities(main),
            "",
            *(line for one in found for line in _answer(one)),
        ]
    )


def _progress(every: Sequence[StudyResults]) -> Iterator[str]:
    yield "## How far the studies are"
    yield ""
    if lost := [*cells_to_compute(every), *(f"all of {name}" for name in _not_begun())]:
        yield "The studies are not finished. These parts are still to be computed:"
        yield ""
        yield from (f"- {one}" for one in lost)
        yield ""
        yield "The verdicts below are of all tasks. Nothing is concluded until all are finished. The numbers are of finished cells."
    else:
        yield "All studies are finished."
    cells, hours = sum(map(len, every)), sum(float(one.table["cell_seconds"].sum()) for one in every if len(one)) / 3600
    retrained = sum(float(one.table["retrainings"].fillna(0).sum()) for one in every if len(one))
    yield ""
    yield f"So far: {cells} cells, {retrained:.0f} retrainings, {hours:.1f} hours of one core."


def _learned(main: Sequence[StudyResults]) -> Iterator[str]:
    yield "## Which methods learned"
    yield ""
    table = learned(main)
    if table.empty:
        yield "No cell of the main studies is finished yet."
        return
    known = table[table["learned"].notna()]
    yield (
        f"{int(known['learned'].astype(bool).sum())} of {len(known)} pairs of task and method learned: the 95 % interval of their "
        "metric, over seeds, is above that of a *constant* prediction: the commonest class of S, or the mean label. *Published* is "
        "Table 1 of the paper: RoBERTa-base, the whole training split, 10 seeds."
    )
    yield ""
    yield head(
        "task",
        "method",
        "p",
        "learning rate",
        "test metric ± spread",
        "constant",
        "less full tuning",
        "loss in training",
        "learned",
        "published",
    )
    published = published_scores("main").table.set_index(["task", "method"])
    for row in table.to_dict("records"):
        learns = "one seed" if row["learned"] is None else "yes" if row["learned"] else "no"
        place = (row["task"], row["method"])
        theirs = published.loc[place, ["mean", "std"]] / 100 if place in published.index else {"mean": None, "std": None}
        yield (
            f"| {LABELS.get(row['task'], row['task'])} | {LABELS.get(row['method'], row['method'])} | {row['sparsity']:.2g} | "
            f"{row['learning_rate']:g} | {number(row['test_metric'])} ± {number(row['std'])} | {number(row['constant'])} | "
            f"{number(row['than_full'], '+.3f')} | {number(row['train_loss'])} | {learns} | "
            f"{number(theirs['mean'])} ± {number(theirs['std'])} |"
        )


def _stabilities(main: Sequence[StudyResults]) -> Iterator[str]:
    yield "## Stability of each method"
    yield ""
    measured = [one.table[one.table["stability"].notna()] for one in main if "stability" in one.table]
    if not any(map(len, measured)):
        yield "It is not measured yet."
        return
    yield (
        "Mean over the training examples of how much the loss of an example changes if it is left out (Definition 3): the estimate "
        "for each seed, with its 95 % interval over the examples. It comes from as many retrainings as the table says. "
        f"*For ±{100 * _WANTED:.0f} %* is how many retrainings would make the interval that narrow, if the standard error "
        "falls with the square root of their number; all of them are as many as S has examples."
    )
    yield ""
    yield head("task", "method", "p", "stability, seed by seed", "retrainings", f"for ±{100 * _WANTED:.0f} %, seed by seed")
    for table in measured:
        for (task, method), mine in table.groupby(["task", "method"], sort=False):
            mine = mine.sort_values("seed")
            numbers = mine[["stability", "stability_low", "stability_high"]].to_numpy(dtype=float)
            each = [
                f"seed {seed}: {number(value, '.3g')} ({number(low, '.3g')} to {number(high, '.3g')})"
                for seed, (value, low, high) in zip(mine["seed"], numbers, strict=True)
            ]
            counts = sorted({f"{count:.0f}" for count in mine["retrainings"].astype(float)})
            yield (
                f"| {LABELS.get(str(task), task)} | {LABELS.get(str(method), method)} | {mine['sparsity'].mean():.2g} | "
                f"{'; '.join(each)} | {' or '.join(counts)} | {', '.join(map(_enough, mine.to_dict('records')))} |"
            )


def _enough(cell: dict[Any, Any]) -> str:
    """How many retrainings would make a cell's interval as narrow as is wanted, from its standard error."""
    if not cell["stability"] > 0 or pd.isna(cell["stability_error"]):
        return "–"
    share = 1.96 * cell["stability_error"] / (_WANTED * cell["stability"])
    needed = math.ceil(cell["retrainings"] * share**2)
    return str(needed) if needed < cell["n"] else f"all {cell['n']}"


def _answer(answer: Answer) -> Iterator[str]:
    yield f"## {answer.claim.rstrip('.')}"
    yield ""
    yield f"**{answer.sentence}**"
    yield ""
    if answer.note:
        yield answer.note
        yield ""
    yield f"*Published:* {answer.published}"
    yield ""
    if answer.verdict is Verdict.MISSING:
        return
    yield f"*Measured:* {answer.quantity}."
    yield ""
    yield "| task | compared | effect, 95 % interval | p, corrected | clear |"
    yield "| --- | --- | --- | --- | --- |"
    for row in answer.table.to_dict("records"):
        what = str(row["what"])
        method, comma, rest = what.partition(",")
        yield (
            f"| {LABELS.get(row['task'], row['task'])} | {LABELS.get(method, method)}{comma}{rest} | {_interval(row)} | "
            f"{'–' if math.isnan(row['p']) else format(row['p'], '.2g')} | {row['clear'] or '–'} |"
        )
    yield ""


def head(*columns: str) -> str:
    """The first two lines of a table in Markdown.

    Args:
        columns: what stands above each column.
    """
    return f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|"


def _interval(row: dict[Any, Any]) -> str:
    return f"{row['effect']:.3g} ({row['low']:.3g} to {row['high']:.3g})"


def number(value: float | None, form: str = ".3f") -> str:
    """What a table tells of a number; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else format(value, form).replace("inf", "∞")


def rates() -> str:
    """The learning rates that the searches found, and what every rate gave."""
    searches = [*stored("-rates"), *stored("-sparsity-rates")]
    if not any(len(one) for one in searches):
        return "No search was begun yet."
    lines = [head("task", "method", "p", "rate chosen", "validation metric", "constant", "every rate: metric (loss)", "verdict")]
    for search in searches:
        found = chosen_rates(search)
        for row in found.table.to_dict("records"):
            p = row["sparsity"]
            curve = found.curve(row["task"], row["method"], p)
            lines.append(
                f"| {LABELS.get(row['task'], row['task'])} | {LABELS.get(row['method'], row['method'])} | "
                f"{'its own' if p is None or pd.isna(p) else format(p, 'g')} | {number(row['learning_rate'], 'g')} | "
                f"{number(row['validation_metric'])} | {number(row['constant'])} | {curve} | {row['verdict']} |"
            )
    return "\n".join(lines)
