"""Tables 1 and 2 of Fu et al. 2023, as they were published."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Literal, get_args

import pandas as pd

from stability.errors import UsageError

__all__ = ["METHODS", "P_VALUE", "SEEDS", "SPEARMAN", "TASKS", "Part", "scores"]

Part = Literal["main", "perturbation"]

_TABLES: Mapping[Part, tuple[str, str]] = {
    "main": ("table1_main", "Table 1 of Fu et al. 2023, main results"),
    "perturbation": ("table2_data_perturbation", "Table 2 of Fu et al. 2023, a tenth of the training set removed at random"),
}

METHODS: Mapping[str, str] = {
    "full": "FullTuning",
    "random": "Random",
    "mixout": "MixOut",
    "bitfit": "Bitfit",
    "magnitude": "MagPruning",
    "adapter": "Adapter",
    "lora": "LoRA",
    "diffpruning": "DiffPruning",
    "childpruning": "ChildPruning",
    "sam": "SAM",
}
"""The paper's name of each method, by the toolkit's."""

TASKS: Mapping[str, str] = {
    "cola": "CoLA",
    "stsb": "STS-B",
    "mrpc": "MRPC",
    "rte": "RTE",
    "cb": "CB",
    "copa": "COPA",
    "wsc": "WSC",
}
"""The paper's name of each task, by the toolkit's, in the order of its tables."""

SEEDS = 10
"""Runs behind each mean and standard deviation."""

SPEARMAN, P_VALUE = 0.4356, 1.4e-5
"""What the paper reports for ranks of the standard deviation against ranks of the mean."""


def scores(part: Part = "main") -> pd.DataFrame:
    """The published numbers, a row for each method and task, task by task.

    Args:
        part: ``main`` (Table 1) or ``perturbation`` (Table 2).

    Returns:
        Columns task, method (the toolkit's names), mean, std (n − 1 or n is not told), both in per cent of the task's metric, and
        seeds. ``attrs["title"]`` says which table it is, ``attrs["notes"]`` what the paper reports of it.

    Raises:
        UsageError: another part.

    Example:
        >>> table = scores("main")
        >>> len(table), table.query("task == 'cb' and method == 'sam'")[["mean", "std"]].to_numpy().tolist()
        (70, [[88.93, 1.75]])
    """
    if part not in _TABLES:
        raise UsageError(f"the paper has no table {part!r}: use {' or '.join(get_args(Part))}")
    name, title = _TABLES[part]
    with resources.files("stability.studies").joinpath("published.csv").open(encoding="utf-8") as file:
        every = pd.read_csv(file)
    mine = every[every["table"] == name].drop(columns="table")
    for column, names in (("method", METHODS), ("task", TASKS)):
        mine[column] = mine[column].map({theirs: own for own, theirs in names.items()})
    place = [list(names).index for names in (TASKS, METHODS)]
    mine = mine.sort_values(["task", "method"], key=lambda c: c.map(place[c.name == "method"]))[["task", "method", "mean", "std"]]
    mine = mine.assign(seeds=SEEDS).reset_index(drop=True)
    told = f"the paper reports ρ = {SPEARMAN} with p = {P_VALUE:.1e} for its runs"
    mine.attrs.update(title=title, notes=[told] if part == "main" else [])
    return mine
