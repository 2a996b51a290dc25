"""Which learning rate suits each method: the choice on the validation split, from a study that tried several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import pandas as pd

from stability.errors import UsageError
from stability.studies.identity import key
from stability.studies.results import CellStatus, StudyResults

__all__ = ["Rates", "chosen_rates", "found_rates", "is_search"]

_DIGITS = 9  # metrics that are equal but for the order in which they were summed are equal


@dataclass(frozen=True, eq=False)
class Rates:
    """Learning rates that a search found.

    Attributes:
        table: a row for each task, method and p: task, method, sparsity (p as asked for; None where a method has its own),
            learning_rate (the best on the validation split; NaN where none could be chosen), validation_metric and
            validation_loss at that rate, constant (the validation metric of predicting the commonest class, or the mean label),
            test_metric and train_loss at that rate, for the reader: they have no part in the choice; learned (whether the metric
            is better than the constant's), edge (whether no smaller, or no larger, rate was tried), tried and missing (numbers of
            rates), and verdict, a sentence.
        curves: a row for each rate that the study has: task, method, sparsity, learning_rate, cells (finished with a finite
            loss), failed (diverged, or failed otherwise), and the means over these cells of validation_metric, validation_loss,
            test_metric and train_loss.
    """

    table: pd.DataFrame
    curves: pd.DataFrame

    def pairs(self, task: str) -> tuple[tuple[str, float], ...]:
        """The rates of one task as :attr:`stability.studies.Protocol.rates` takes them.

        Args:
            task: the name of the task.

        Returns:
            Pairs of a method and its rate; ``method@p`` where the study has a method at several p.

        Example:
            >>> row = {"task": "cb", "method": "sam", "sparsity": 0.1, "learning_rate": 0.003}
            >>> Rates(pd.DataFrame([row]), pd.DataFrame()).pairs("cb")
            (('sam', 0.003),)
        """
        mine = self.table[(self.table["task"] == task) & self.table["learning_rate"].notna()]
        several = mine["method"].duplicated(keep=False)
        return tuple(
            (f"{method}@{p:g}" if swept else method, float(rate))
            for method, p, rate, swept in zip(mine["method"], mine["sparsity"], mine["learning_rate"], several, strict=True)
        )

    def curve(self, task: str, method: str, sparsity: float | None = None) -> str:
        """What each rate gave, in one line: rate, metric and loss on the validation split.

        Args:
            task: the name of the task.
            method: the method.
            sparsity: p as asked for; None for a method that has its own.

        Example:
            >>> row = {"task": "cb", "method": "sam", "sparsity": None, "learning_rate": 0.003, "cells": 1, "failed": 0}
            >>> Rates(pd.DataFrame(), pd.DataFrame([row | {"validation_metric": 0.8, "validation_loss": 0.5}])).curve("cb", "sam")
            '0.003: 0.800 (loss 0.5)'
        """
        mine = self.curves[(self.curves["task"] == task) & (self.curves["method"] == method)]
        same = mine["sparsity"].isna() if sparsity is None or math.isnan(sparsity) else mine["sparsity"] == sparsity
        return ", ".join(map(_point, mine[same].to_dict("records")))


def _point(row: Mapping[Any, Any]) -> str:
    if row["cells"]:
        return f"{row['learning_rate']:g}: {row['validation_metric']:.3f} (loss {row['validation_loss']:.3g})"
    return f"{row['learning_rate']:g}: {'diverged or failed' if row['failed'] else 'missing'}"


def chosen_rates(results: StudyResults) -> Rates:
    """Choose, for each task, method and p, the learning rate that is best on the validation split.

    The best has the largest metric, in the mean over the seeds that were run; of those equal in it, the smallest loss; of those
    equal in both, the smallest rate. A rate at which any cell failed, or has a loss that is no finite number, is not chosen.

    Args:
        results: of a study whose algorithms differ in their learning rate, such as one of
            :attr:`~stability.studies.Protocol.factors`. It may be unfinished: what is missing is counted.

    Returns:
        The choice, and what each rate gave.

    Raises:
        UsageError: the study tried no learning rates, or its cells have nothing of a validation split.

    Example:
        >>> import tempfile
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit
        >>> from stability.studies import Study, run
        >>> algorithms = tuple(FineTuning(BitFit(), steps=3, learning_rate=rate) for rate in (1e-3, 1e-2))
        >>> study = Study("search", "digits", algorithms, (0,), problem_settings={"n": 20}, check_replicas=None, measured_seeds=0)
        >>> results = run(study, f"{tempfile.mkdtemp()}/search.sqlite", device="cpu", workers=1)
        >>> chosen_rates(results)
        Traceback (most recent call last):
        ...
        stability.errors.UsageError: the cells of 'search' have no validation metric: ...
    """
    settings = results.algorithms
    if odd := [one["method"] for one in settings.values() if one.get("learning_rate") is None]:
        raise UsageError(f"{odd[0]} of study {results.study!r} has no learning rate to be chosen")
    table = results.table
    finished = table[table["status"] == CellStatus.OK] if len(table) else table
    if len(finished) and ("validation_metric" not in finished or finished["validation_metric"].isna().all()):
        raise UsageError(
            f"the cells of {results.study!r} have no validation metric: search on data with a validation split, such "
            "as a folder with train, val and test; a store of an older version must be computed anew"
        )
    seeds = len(results.identity["seeds"]) * len(results.identity.get("samples", [0]))
    rows, chosen = [], []
    for task in results.tasks or ("",):
        for group in _families(results).values():
            curve = [_tried(table, task, name, settings[name]) for name in group]
            rows += curve
            chosen.append(_best(curve, seeds))
    return Rates(pd.DataFrame(chosen, columns=[*_PLACE, *_CHOICE]), pd.DataFrame(rows, columns=[*_PLACE, *_POINT]))


def is_search(results: StudyResults) -> bool:
    """Whether a study tries several learning rates of a method.

    Args:
        results: of the study, as far as it is.

    Example:
        >>> is_search(StudyResults.read("figures/paper-quick.sqlite"))
        False
    """
    return len({_but_the_rate(one) for one in results.algorithms.values()}) < len(results.algorithms)


def _but_the_rate(settings: Mapping[str, Any]) -> str:
    return key({name: value for name, value in settings.items() if name != "learning_rate"})


def _families(results: StudyResults) -> dict[str, list[str]]:
    """The names of the algorithms that differ in nothing but their learning rate, by ascending rate."""
    found: dict[str, list[str]] = {}
    for name, one in sorted(results.algorithms.items(), key=lambda pair: float(pair[1]["learning_rate"])):
        found.setdefault(_but_the_rate(one), []).append(name)
    order = list(results.algorithms)
    return dict(sorted(found.items(), key=lambda pair: min(map(order.index, pair[1]))))


def found_rates(store: str | PathLike[str], tasks: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The learning rates that a finished search found for a task, as :attr:`stability.studies.Protocol.rates` takes them.

    Args:
        store: the store of the search.
        tasks: the tasks of the study that takes them: one, for its rates are its own.

    Returns:
        Pairs of a method and its rate.

    Raises:
        UsageError: several tasks, another task than that of the search, a search that is unfinished, or a method for which no rate
            gave a finite loss.
        StabilityError: the store cannot be read.

    Example:
        >>> found_rates("figures/paper-quick.sqlite", ["cb", "rte"])
        Traceback (most recent call last):
        ...
        stability.errors.UsageError: figures/paper-quick.sqlite: rates are of one task, and the study is of cb, rte: name one task
    """
    if len(tasks) != 1:
        raise UsageError(f"{store}: rates are of one task, and the study is of {', '.join(tasks)}: name one task")
    results, (task,) = StudyResults.read(store), tasks
    if task not in results.tasks:
        raise UsageError(
            f"{store} is a search on {', '.join(results.tasks)}, and not on {task}: give the store of that task's search"
        )
    found = chosen_rates(results)
    mine = found.table[found.table["task"] == task]
    if missing := int(mine["missing"].sum()):
        raise UsageError(f"{store} is unfinished: {missing} of {mine['tried'].sum()} rates are missing; finish the search first")
    if lost := mine.loc[mine["learning_rate"].isna(), "method"].tolist():
        raise UsageError(f"{store}: no rate gave {lost[0]} a finite loss; search among smaller ones, or leave the method out")
    return found.pairs(task)


_PLACE = ("task", "method", "sparsity")
_MEANS = ("validation_metric", "validation_loss", "test_metric", "train_loss")
_CHOICE = ("learning_rate", *_MEANS, "constant", "learned", "edge", "tried", "missing", "verdict")
_POINT = ("learning_rate", "cells", "failed", *_MEANS)


def _tried(table: pd.DataFrame, task: str, name: str, one: Any) -> dict[str, Any]:
    """What one rate gave on one task, in the mean over its cells; NaN where one of them failed or its loss is no finite number."""
    row = {
        "task": task,
        "method": one["method"],
        "sparsity": one["selector"].get("sparsity"),
        "learning_rate": one["learning_rate"],
    }
    nothing = row | {"cells": 0, "failed": 0} | dict.fromkeys((*_MEANS, "constant"), math.nan)
    if table.empty:
        return nothing
    mine = table[(table["task"] == task) & (table["algorithm"] == name)]
    ok = mine["status"] == CellStatus.OK
    good = mine[ok & mine["validation_loss"].astype(float).map(math.isfinite)] if ok.any() else mine[ok]
    lost = len(mine) - len(good)
    if good.empty:
        return nothing | {"failed": lost}
    means = {column: float(good[column].astype(float).mean()) if not lost else math.nan for column in _MEANS}
    same = float(good["validation_constant"].astype(float).mean()) if "validation_constant" in good else math.nan
    return row | {"cells": len(good), "failed": lost, **means, "constant": same}


def _best(curve: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """The choice among the rates of one method."""
    known = [row for row in curve if not math.isnan(row["validation_metric"])]
    missing = sum(row["cells"] + row["failed"] < seeds for row in curve)
    same = next((row["constant"] for row in curve if not math.isnan(row["constant"])), math.nan)
    place = {name: curve[0][name] for name in _PLACE} | {"tried": len(curve), "missing": missing}
    if not known:
        why = "no rate was tried yet" if missing == len(curve) else "no rate gave a finite loss"
        none = dict.fromkeys(("learning_rate", *_MEANS), math.nan)
        return place | none | {"constant": same, "learned": False, "edge": False, "verdict": why}
    best = min(known, key=lambda row: (-round(row["validation_metric"], _DIGITS), row["validation_loss"], row["learning_rate"]))
    learned = round(best["validation_metric"] - same, _DIGITS) > 0
    edge = len(curve) > 1 and not missing and best in (known[0], known[-1])
    end = "smallest" if best is known[0] else "largest"
    verdict = [
        "nothing found: no rate is better than a constant prediction" if not learned and not math.isnan(same) else "",
        f"the best rate is the {end} that trained" if edge else "",
        f"{missing} of {len(curve)} rates are missing" if missing else "",
    ]
    own = {name: best[name] for name in ("learning_rate", *_MEANS)}
    told = "; ".join(part for part in verdict if part) or "better than a constant prediction"
    return place | own | {"constant": same, "learned": learned, "edge": edge, "verdict": told}
