"""Methods compared where they fit the training set equally well.

A method that hardly moves from its start fits S badly, and is stable whatever parameters it trains. What is left where the training
loss is equal comes from which parameters a method trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from stability.errors import UsageError
from stability.leave_one_out.statistics import Numbers, mean_over_seeds
from stability.studies.comparison import holm
from stability.studies.effects import finished, p_of_mean
from stability.studies.results import StudyResults

__all__ = ["at_equal_training_loss", "beside_curve"]

Curve = StudyResults | Iterable[StudyResults]
"""The runs of one method at several learning rates, of one study or several."""


def at_equal_training_loss(results: StudyResults, curve: Curve, *, column: str = "stability") -> pd.DataFrame:
    """The stability of each method, divided by that of another method where its training loss is the same.

    The other method, such as full tuning, was trained at several learning rates. For each task and seed its runs make a curve: the
    logarithm of stability over the logarithm of the training loss, linear between neighbouring runs. It is read at the training
    loss of each run of ``results``. The ratios' geometric mean over seeds has Student's interval for paired logarithms; where the
    study draws S apart from the seeds, the interval is over the S. A run whose training loss lies outside the curve is not
    compared, nor is one whose seed has fewer than two runs in the curve.

    Args:
        results: the methods. Runs that are in the curve are left out.
        curve: the runs of the other method, of one study or several.
        column: what is divided, a column of the results whose values are above 0.

    Returns:
        A row for each task and setting of a method, from the smallest ratio to the largest: ``task``, ``method``, ``sparsity``,
        ``train_loss`` (the mean over seeds), ``seeds`` (that are compared), ``outside`` (the seeds whose training loss lies outside
        the curve), ``ratio`` with its 95 % interval ``low`` and ``high``, and ``p_value``, corrected for the number of
        rows that have one (Holm). Of fewer than two seeds there is no interval and no p-value.

    Raises:
        UsageError: the curve has no runs, runs of several methods or at several p, or no two of one task and seed; a training
            loss or a value of ``column`` is not above 0, or there is no such column.

    Example:
        >>> main = StudyResults.read("figures/claims/claims-stsb.sqlite")
        >>> slower = StudyResults.read("figures/claims/claims-stsb-fit.sqlite")  # full tuning at smaller learning rates
        >>> table = at_equal_training_loss(main.where(method="lora"), [slower, main.where(method="full")])
        >>> table[["method", "train_loss", "ratio", "low", "high"]].round(2).to_dict("records")
        [{'method': 'lora', 'train_loss': 1.52, 'ratio': 0.85, 'low': 0.77, 'high': 0.92}]
    """
    mine, known = beside_curve(results, curve, column)
    curves = {place: one.sort_values("train_loss") for place, one in known.groupby(_PAIRED) if len(one) > 1}
    rows = []
    for (task, method, sparsity, _), some in mine.groupby(["task", "method", "sparsity", "algorithm"]):
        here = [place in curves for place in some[_PAIRED].itertuples(index=False, name=None)]
        paired = [(run, curves[tuple(run[_PAIRED])]) for _, run in some[here].iterrows()]
        logs = pd.Series([_log_ratio(run, beside, column) for run, beside in paired], dtype=float)
        inside = logs.notna()
        row = {"task": task, "method": method, "sparsity": sparsity, "train_loss": some["train_loss"].mean()}
        row |= {"seeds": int(inside.sum()), "outside": int((~inside).sum())}
        units = some.loc[here, "sample" if some["sample"].any() else "seed"].to_numpy()
        means = logs[inside].groupby(units[inside]).mean()
        rows.append(row | _ratio(np.array(means, dtype=np.float64)))
    table = pd.DataFrame(rows, columns=["task", "method", "sparsity", "train_loss", "seeds", "outside", *_ratio(np.empty(0))])
    table["p_value"] = holm(table["p_value"])
    return table.sort_values(["task", "ratio"], ignore_index=True)


_PAIRED = ["task", "sample", "seed"]
"""What a run and its curve have in common."""


def beside_curve(results: StudyResults, curve: Curve, column: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measured runs of methods, and those of the curve that they are compared with.

    Args:
        results: the methods. Runs that are in the curve are left out.
        curve: the runs of the other method.
        column: the quantity that is compared.

    Returns:
        Two tables with the columns ``task``, ``method``, ``sparsity``, ``algorithm``, ``sample`` (0 where the study does not
        draw S apart from the seeds), ``seed``, ``train_loss`` and ``column``. That of the curve has ``setting`` too, a number for
        each of its settings.

    Raises:
        UsageError: see :func:`at_equal_training_loss`.
    """
    several = [curve] if isinstance(curve, StudyResults) else list(curve)
    if not several:
        raise UsageError("the curve has no results: give those of one method at several learning rates")
    parts = [_runs(one, column).assign(study=place) for place, one in enumerate(several)]
    known = pd.concat(parts, ignore_index=True)
    known = known.drop_duplicates([name for name in known if name != "study"])  # a study that was given twice
    if len(methods := sorted(set(known["method"]))) != 1:
        told = ", ".join(methods) or "no method"
        raise UsageError(f"the curve has runs of {told}: use those of one method at several learning rates")
    if len(sizes := sorted(set(known["sparsity"].round(6)))) > 1:
        raise UsageError(f"the curve has runs at p = {', '.join(f'{p:g}' for p in sizes)}: use one p at several learning rates")
    if not (known.groupby(_PAIRED).size() > 1).any():
        raise UsageError(f"the curve has one run of {methods[0]} with each seed: use two learning rates or more")
    mine = _runs(results, column)
    known["setting"] = known.groupby(["study", "algorithm"]).ngroup()
    return mine[~mine["algorithm"].isin(known["algorithm"])], known.drop(columns="study")


def _runs(results: StudyResults, column: str) -> pd.DataFrame:
    """The finished runs that were measured, with their numbers checked."""
    table = finished(results)
    if column not in table:
        raise UsageError(f"column = {column!r}: the results have no such column; use stability, gap or test_loss")
    table = table.assign(sample=table.get("sample", 0))
    table = table[["task", "method", "sparsity", "algorithm", "sample", "seed", "train_loss", column]].dropna()
    for name in ("train_loss", column):
        if not (table[name].astype(float) > 0).all():
            raise UsageError(f"{name} = {table[name].min():g} in study {results.study!r} has no logarithm: leave that run out")
    return table


def _log_ratio(run: pd.Series, curve: pd.DataFrame, column: str) -> float:
    """Of one run to the curve at its training loss; NaN outside of it."""
    losses, values = (np.log(curve[name].to_numpy(dtype=float)) for name in ("train_loss", column))
    at = np.interp(math.log(run["train_loss"]), losses, values, left=math.nan, right=math.nan)
    return math.log(run[column]) - float(at)


def _ratio(logs: Numbers) -> dict[str, float]:
    """The geometric mean of the ratios with its interval, and the p-value of no difference."""
    if not len(logs):
        return dict.fromkeys(("ratio", "low", "high", "p_value"), math.nan)
    if len(logs) == 1:
        return {"ratio": math.exp(logs[0]), "low": math.nan, "high": math.nan, "p_value": math.nan}
    mean = mean_over_seeds(logs)
    ratio, low, high = np.exp([mean.value, *mean.interval])
    return {"ratio": ratio, "low": low, "high": high, "p_value": p_of_mean(logs)}
