"""Tables 1 and 2 of Fu et al. 2023, as they were published, and what of them a study can be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Literal, get_args

import pandas as pd

from stability.checks import check_choice
from stability.errors import UsageError
from stability.studies.scores import Scores

__all__ = ["METHODS", "P_VALUE", "SEEDS", "SPEARMAN", "TASKS", "Part", "against_published", "published_scores"]

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
"""The number of runs behind each published mean and standard deviation."""

SPEARMAN, P_VALUE = 0.4356, 1.4e-5
"""What the paper reports for ranks of the standard deviation against ranks of the mean."""


def published_scores(part: Part = "main") -> Scores:
    """The published numbers, task by task.

    Args:
        part: ``main`` (Table 1) or ``perturbation`` (Table 2).

    Returns:
        Scores with the columns task, method (the toolkit's names), mean, std (the paper does not say whether its divisor is n − 1
        or n), both in per cent of the task's metric, and seeds. The title says which table it is, the notes what the paper reports
        about it.

    Raises:
        UsageError: another part.

    Example:
        >>> table = published_scores("main").table
        >>> len(table), table.query("task == 'cb' and method == 'sam'")[["mean", "std"]].to_numpy().tolist()
        (70, [[88.93, 1.75]])
    """
    check_choice(get_args(Part), **{"table of the paper": part})
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
    return Scores(mine, title, (told,) if part == "main" else ())


def against_published(found: Scores, part: Part = "main") -> Scores:
    """The published numbers of the tasks and methods that were measured.

    Args:
        found: what was measured.
        part: ``main`` (Table 1) or ``perturbation`` (Table 2).

    Returns:
        The rows of the published table whose task and method ``found`` has. Mixout in the form of the authors' code,
        ``mixout-reset``, stands beside the published Mixout where it is measured alone.

    Raises:
        UsageError: another part, or the paper has none of these tasks.

    Example:
        >>> mine = Scores(pd.DataFrame({"task": ["cb", "digits"], "method": ["sam", "sam"]}), "mine")
        >>> against_published(mine).table[["task", "method", "mean"]].to_numpy().tolist()
        [['cb', 'sam', 88.93]]
    """
    theirs = published_scores(part)
    tasks, methods = (list(dict.fromkeys(found.table[column])) for column in ("task", "method"))
    if not set(tasks) & set(theirs.table["task"]):
        raise UsageError(
            f"there are no published numbers for {', '.join(tasks)}: the paper has {', '.join(TASKS)}; leave --against out"
        )
    table = theirs.table
    if "mixout-reset" in methods and "mixout" not in methods:
        table = table.replace({"method": {"mixout": "mixout-reset"}})  # which is the paper's form of it
    table = table[table["task"].isin(tasks) & table["method"].isin(methods)].reset_index(drop=True)
    every = f"{table['method'].nunique()} of its methods on {table['task'].nunique()} of its tasks"
    return Scores(table, theirs.title, (f"ranks among {every}",))
