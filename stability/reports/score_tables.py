"""Scores of methods on tasks → a table like the paper's, with ranks, as text, Markdown, LaTeX or CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import pandas as pd

from stability.checks import check_choice
from stability.reports.labels import LABELS
from stability.studies.ranks import ranked
from stability.studies.scores import PAIRS, Scores, correlations

__all__ = ["Form", "as_values", "rendered", "score_table"]

Form = Literal["text", "markdown", "latex", "csv"]


def score_table(scores: Scores, beside: Scores | None = None) -> pd.DataFrame:
    """The paper's form of a table: a row for each method, a column for each task, ready to read.

    A cell is "mean (rank) ± std (rank)" in per cent. Ranks are within the task, and 1 is the best. The last column is the mean over
    tasks of the methods that have all of them; with others beside, it is over the tasks of both.

    Args:
        scores: what was measured or published.
        beside: other scores, each task's in a column after that of ``scores``; None: there are no others.

    Returns:
        Text, with the names that tables and figures have for methods and tasks.

    Example:
        >>> from stability.studies import published_scores
        >>> score_table(published_scores("main")).loc["SAM", "CB"]
        '88.93 (2.5) ± 1.75 (1)'
    """
    if beside is None:
        return _columns(scores)
    common = set(scores.table["task"]) & set(beside.table["task"])
    parts = {"": _columns(scores, common), ", published": _columns(beside, common)}
    columns = {f"{task}{of}": part[task] for task in parts[""] for of, part in parts.items() if task in part}
    return pd.DataFrame(columns, index=parts[""].index).fillna(_NONE)


_NONE = "–"


def _columns(scores: Scores, averaged: set[str] | None = None) -> pd.DataFrame:
    mine = ranked(scores.table)
    methods, tasks = dict.fromkeys(mine["method"]), dict.fromkeys(mine["task"])
    cells = {(row["method"], row["task"]): _cell(row) for _, row in mine.iterrows()}
    table = pd.DataFrame(
        {LABELS.get(task, task): [cells.get((method, task), _NONE) for method in methods] for task in tasks},
        index=[LABELS.get(method, method) for method in methods],
    )
    if averaged is not None:
        mine = mine[mine["task"].isin(averaged)]
    over = mine.pivot(index="method", columns="task", values="mean").loc[list(methods)].mean(axis=1, skipna=False)
    rank = over.rank(ascending=False)
    table["average"] = [_NONE if math.isnan(value) else f"{value:.2f} ({place:g})" for value, place in zip(over, rank, strict=True)]
    return table


def _cell(row: pd.Series[Any]) -> str:
    if math.isnan(row["mean"]):
        return _NONE
    spread = "" if math.isnan(row["std"]) else f" ± {row['std']:.2f} ({row['rank_std']:g})"
    return f"{row['mean']:.2f} ({row['rank_mean']:g}){spread}"


def rendered(scores: Scores, form: Form = "text", beside: Scores | None = None) -> str:
    """The table with its caption and the correlations of its ranks, ready to print.

    Args:
        scores: what was measured or published.
        form: ``text``, ``markdown``, ``latex`` (for the package booktabs), or ``csv``: the numbers alone, a row for each method and
            task.
        beside: the published scores that stand beside measured ones; None: there are none.

    Returns:
        The text, without a newline at its end but in CSV.

    Raises:
        UsageError: another form.

    Example:
        >>> from stability.studies import published_scores
        >>> print(rendered(published_scores("main"), "csv").splitlines()[1])
        cola,full,58.36,1.74,10,7.0,8.0
    """
    check_choice(get_args(Form), form=form)
    if form == "csv":
        both = [ranked(scores.table)]
        if beside is not None:
            both = [both[0].assign(of="measured"), ranked(beside.table).assign(of="published")]
        return pd.concat(both).to_csv(index=False, lineterminator="\n")
    table, caption = score_table(scores, beside), _caption(scores, beside)
    return {"text": _text, "markdown": _markdown, "latex": _latex}[form](table, caption)


def _caption(scores: Scores, beside: Scores | None) -> list[str]:
    lines = []
    for mine in [scores] if beside is None else [scores, beside]:
        seeds = sorted({int(count) for count in mine.table["seeds"]})
        runs = f"{seeds[-1]} runs" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} runs"
        how = "".join(f"; {note}" for note in mine.notes if note)
        lines.append(f"{mine.title}: mean ± standard deviation over {runs}, in per cent (ranks){how}.")
        meaning = {(first, second): text for first, second, text in PAIRS}
        lines += [
            f"Spearman's ρ of ranks within tasks, {one.count} pairs, {meaning[pair]}: {one}."
            for pair, one in correlations(mine).items()
        ]
    return lines


def _text(table: pd.DataFrame, caption: Sequence[str]) -> str:
    return "\n".join([table.to_string(), "", *caption])


def _markdown(table: pd.DataFrame, caption: Sequence[str]) -> str:
    head = ["method", *map(str, table.columns)]
    rows = [
        head,
        ["---"] * len(head),
        *([str(name), *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)),
    ]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", *(f"{line}  " for line in caption)])


def _latex(table: pd.DataFrame, caption: Sequence[str]) -> str:
    """A table for the package booktabs."""
    rows = [[str(name), *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["method", *map(_tex, table.columns)]) + r" \\",
        r"\midrule",
        *(" & ".join(map(_tex, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_tex(' '.join(caption))}}}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def as_values(scores: Scores) -> dict[str, Any]:
    """The numbers with their ranks, and how far those go together, as plain values.

    Args:
        scores: what was measured or published.

    Returns:
        ``title`` and ``notes``; ``rows``, the numbers and their ranks; ``spearman`` and ``p_value`` of the ranks of mean and
        standard deviation, None where they are unknown; ``correlations`` of every two columns that are known.

    Example:
        >>> from stability.studies import published_scores
        >>> values = as_values(published_scores("main"))
        >>> round(values["spearman"], 4), len(values["rows"])
        (0.4852, 70)
    """
    found = correlations(scores)
    every = [
        {"first": first, "second": second, "spearman": one.value, **{k: v for k, v in asdict(one).items() if k != "value"}}
        for (first, second), one in found.items()
    ]
    main = found.get(("mean", "std"))
    return {
        "title": scores.title,
        "notes": list(scores.notes),
        "spearman": None if main is None else main.value,
        "p_value": None if main is None else main.p_value,
        "correlations": every,
        "rows": ranked(scores.table).to_dict("records"),
    }


_TEX = {"±": r"$\pm$", "–": "--", "ρ": r"$\rho$", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "−": "$-$"}


def _tex(text: Any) -> str:
    return "".join(_TEX.get(character, character) for character in str(text))
