"""What methods of studies differ by: ratios of their stability, its slope in p, and differences of their test metric.

Each comparison is a row: task, what (is compared), effect with low and high (the ends of its 95 % interval), p (before any
correction), count and over (how many seeds it is of, and whether the interval is over these seeds or over examples left out; or how
many tasks). Rows of one group speak together, and those that say the same are compared on several tasks. Ratios and slopes are
natural logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from stability.leave_one_out.statistics import Numbers, mean_over_seeds
from stability.studies.results import CellStatus, StudyResults

__all__ = [
    "Row",
    "finished",
    "inner_advantages",
    "metric_differences",
    "over_tasks",
    "p_of_mean",
    "row",
    "stability_ratios",
    "stability_slopes",
]

_FEWEST = 3  # seeds of which a t interval is taken; p of which a slope is
_EQUAL = 1e-9  # differences that differ by rounding
_NORMAL = 1.959964  # standard errors from the middle of a 95 % interval to its end

Row = dict[str, Any]


def row(task: str, what: str, effect: float, low: float, high: float, p: float, **more: Any) -> Row:
    """A comparison as a row of a table.

    Example:
        >>> row("cb", "sam, p = 0.1", 1.5, 1.0, 2.0, 0.04, count=5, over="seeds")["effect"]
        1.5
    """
    return {"task": task, "what": what, "effect": effect, "low": low, "high": high, "p": p, **more}


def finished(results: StudyResults) -> pd.DataFrame:
    """The rows of a study's cells that are finished and did not fail.

    Example:
        >>> len(finished(StudyResults.read("figures/discontinuity.sqlite")))
        9
    """
    table = results.table
    return table[table["status"] == CellStatus.OK] if len(table) else table


class _Measured(NamedTuple):
    """One setting of a method on one task: p as asked for (None where the method has its own), and its finished cells by seed."""

    task: str
    method: str
    p: float | None
    cells: pd.DataFrame


def _measured(results: StudyResults) -> list[_Measured]:
    table = finished(results)
    return [
        _Measured(
            task,
            one["method"],
            one.get("selector", {}).get("sparsity"),
            table[(table["task"] == task) & (table["algorithm"] == name)].set_index("seed"),
        )
        for task in (results.tasks if len(table) else ())
        for name, one in results.algorithms.items()
    ]


def stability_ratios(results: Sequence[StudyResults], methods: Sequence[str] | None, others: Sequence[str]) -> Iterator[Row]:
    """The stability of methods, divided by the geometric mean of others'.

    Over three seeds or more it is Student's interval of the paired differences of logarithms. With fewer it is formed from the
    cells' own intervals, and speaks of those S and seeds alone.

    Args:
        results: of studies.
        methods: the methods; None: all that train a part of the parameters (Mixout, for example, trains all).
        others: the methods whose stability is the denominator, at the same p where they have several.

    Example:
        >>> rows = stability_ratios([StudyResults.read("figures/paper-quick.sqlite")], ["lora"], ["full"])
        >>> [(row["task"], row["over"]) for row in rows]
        [('cb', 'examples'), ('rte', 'examples')]
    """
    for one in results:
        every = _measured(one)
        for task, method, p, mine in every:
            wanted = (mine["sparsity"].astype(float) < 1).all() if methods is None else method in methods
            if not wanted:
                continue
            # At the same p where the other has several, and whatever its p where it has its own.
            beside = [its.cells for its in every if its.task == task and its.method in others and its.p in (None, p)]
            logs = _logs(mine)
            against = [_logs(its) for its in beside]
            if len(against) < len(others) or not len(logs):
                continue
            both = pd.concat([logs["log"], *(its["log"] for its in against)], axis=1).dropna()
            if both.empty:
                continue
            differences = (both.iloc[:, 0] - both.iloc[:, 1:].mean(axis=1)).to_numpy()
            errors = pd.concat([logs["error"], *(its["error"] / len(against) for its in against)], axis=1).loc[both.index]
            yield _over(task, _named(method, p), differences, errors.to_numpy())


def stability_slopes(results: Sequence[StudyResults]) -> Iterator[Row]:
    """How the stability of each method changes with p: the slope of its logarithm in the decimal logarithm of p, by least squares.

    It needs three p at which stability was measured. Full tuning has no part in it: all slopes would share its error. The interval
    is formed as that of :func:`stability_ratios` is.

    Args:
        results: of studies with methods at several p.

    Example:
        >>> list(stability_slopes([StudyResults.read("figures/paper-quick.sqlite")]))
        []
    """
    for one in results:
        every = _measured(one)
        for task, method in dict.fromkeys((its.task, its.method) for its in every):
            mine = [its.cells for its in every if (its.task, its.method) == (task, method)]
            logs = [(float(cells["sparsity"].mean()), _logs(cells)) for cells in mine]
            logs = [(p, its) for p, its in logs if len(its)]
            count = len({p for p, _ in logs})
            if count < _FEWEST:
                continue
            values, errors = (pd.concat([its[name] for _, its in logs], axis=1).dropna() for name in ("log", "error"))
            if values.empty:
                continue
            x = np.log10([p for p, _ in logs])
            x -= x.mean()
            weights = x / (x**2).sum()
            parts = np.where(weights == 0, 0.0, errors.loc[values.index].to_numpy()) * weights
            yield _over(task, f"{method}, over {count} p", values.to_numpy() @ weights, parts) | {"same": f"{method}, over p"}


def metric_differences(results: Sequence[StudyResults], method: str, others: Sequence[str]) -> Iterator[Row]:
    """The test metric of a method less that of others at the same p, in percentage points, over three seeds or more.

    Args:
        results: of studies.
        method: the method.
        others: the methods that it is compared with.

    Example:
        >>> rows = metric_differences([StudyResults.read("figures/paper-quick.sqlite")], "sam", ["random"])
        >>> [(row["task"], row["what"]) for row in rows]
        [('cb', 'random, p = 0.005'), ('rte', 'random, p = 0.005')]
    """
    for one in results:
        every = _measured(one)
        for task, own, p, mine in every:
            beside = [its for its in every if its.task == task and its.method in others and its.p == p] if own == method else []
            for its in beside:
                points = _points(mine, its.cells)
                if points is not None:
                    yield _over_seeds(task, _named(its.method, p), points)


def inner_advantages(results: Sequence[StudyResults]) -> Iterator[Row]:
    """At each inner p of each method, its test metric less that at one of the two ends, in percentage points.

    The ends are the least p, and full tuning. An inner p is better if it is better than both ends, and worse if it is worse than
    one of them. So where both advantages are positive, the end with the larger p-value decides. Otherwise it is the one with the
    smallest p-value of those that are not positive, and that p-value is doubled, because there are two ends.

    Args:
        results: of studies with methods at several p, and full tuning.

    Example:
        >>> list(inner_advantages([StudyResults.read("figures/paper-quick.sqlite")]))
        []
    """
    for one in results:
        every = _measured(one)
        for task in one.tasks:
            full = [its.cells for its in every if (its.task, its.method) == (task, "full")][:1]
            swept = [its for its in every if its.task == task and its.p is not None]
            for method in dict.fromkeys(its.method for its in swept):
                mine = sorted((its for its in swept if its.method == method), key=lambda its: its.p or 0.0)
                for inner in mine if full else ():
                    if inner.p == mine[0].p:
                        continue
                    ends = [_points(inner.cells, end) for end in (mine[0].cells, *full)]
                    known = [end for end in ends if end is not None]
                    if len(known) < len(ends):
                        continue
                    if behind := [end for end in known if end.mean() <= 0]:
                        deciding = min(behind, key=p_of_mean)
                        p_value = min(1.0, 2 * p_of_mean(deciding))
                    else:
                        deciding = max(known, key=p_of_mean)
                        p_value = p_of_mean(deciding)
                    yield _over_seeds(task, _named(method, inner.p), deciding) | {"p": p_value, "group": f"{task} {method}"}


def over_tasks(rows: Iterable[Row]) -> Iterator[Row]:
    """What is compared on several tasks, in the mean over them; behind it, each task without a p-value.

    So a claim is not put to more tests the more tasks there are. The squared standard error of the mean of T effects is
    Σ_t s_t² / T², and its degrees of freedom are those of Welch and Satterthwaite, (Σ_t s_t²)² / Σ_t (s_t⁴ / ν_t), where ν_t is
    infinite if an interval is over examples. The tasks are taken as independent, though their runs may have seeds in common. The
    mean does not tell of a task with the opposite effect; the row of that task does.

    Args:
        rows: comparisons; ``same`` tells what is the same on several tasks, where it is not what ``what`` says. What is compared on
            one task alone stays as it is.

    Example:
        >>> both = [row(task, "sam", 1.0, 0.0, 2.0, 0.05, count=5, over="seeds") for task in ("cb", "rte")]
        >>> [(one["task"], one["count"], one["over"], round(one["low"], 2)) for one in over_tasks(both)]
        [('all', 2, 'tasks', 0.41), ('cb', 5, 'seeds', 0.0), ('rte', 5, 'seeds', 0.0)]
    """
    same: dict[str, list[Row]] = {}
    for one in rows:
        same.setdefault(str(one.get("same", one["what"])), []).append(one)
    for what, mine in same.items():
        if len(mine) == 1:
            yield mine[0]
            continue
        freedom = np.array([one["count"] - 1.0 if one["over"] == "seeds" else math.inf for one in mine])
        halves = np.array([(one["high"] - one["low"]) / 2 for one in mine])
        variances = (halves / stats.t.ppf(0.975, freedom)) ** 2
        total, effect = float(variances.sum()), sum(one["effect"] for one in mine) / len(mine)
        if 0 < total < math.inf:
            spread, error = float((variances**2 / freedom).sum()), math.sqrt(total) / len(mine)
            t = stats.t(total**2 / spread if spread > 0 else math.inf)
            half, p_value = float(t.ppf(0.975)) * error, float(2 * t.sf(abs(effect) / error))
        else:  # exact, and then different unless the tasks disagree; or without an end
            agree = len({np.sign(one["effect"]) for one in mine}) == 1
            half, p_value = total, max(one["p"] for one in mine) if agree and not total else 1.0
        yield row("all", what, effect, effect - half, effect + half, p_value, count=len(mine), over="tasks")
        yield from (one | {"p": math.nan} for one in mine)


def _named(method: str, p: float | None) -> str:
    return method if p is None else f"{method}, p = {p:g}"


def _points(first: pd.DataFrame, second: pd.DataFrame) -> Numbers | None:
    """How many percentage points the test metric of one is above that of the other, seed by seed; None of fewer than three."""
    both = pd.concat([first["test_metric"], second["test_metric"]], axis=1).dropna().astype(float)
    return None if len(both) < _FEWEST else 100 * (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy()


def _over(task: str, what: str, values: Numbers, errors: Numbers) -> Row:
    """The mean of one value a seed: with three seeds or more by Student's interval, else by the errors of the cells it is made of.

    Args:
        task: the task.
        what: what is compared.
        values: of each seed.
        errors: a row for each seed: the standard errors of the parts that a value is the sum of. They are taken as independent,
            though methods may leave out the same examples.
    """
    count = len(values)
    if count >= _FEWEST:
        return _over_seeds(task, what, values)
    error = float(np.sqrt((errors**2).sum())) / count
    value, half = float(values.mean()), _NORMAL * error
    if error > 0:
        p_value = float(2 * stats.norm.sf(abs(value) / error))
    else:  # exact stabilities: they differ, unless they are equal or the seeds disagree
        p_value = float(not (values > _EQUAL).all() and not (values < -_EQUAL).all())
    return row(task, what, value, value - half, value + half, p_value, count=count, over="examples")


def _over_seeds(task: str, what: str, values: Numbers) -> Row:
    """The mean of one value a seed, with Student's interval."""
    found = mean_over_seeds(values)
    return row(task, what, found.value, *found.interval, p_of_mean(values), count=len(values), over="seeds")


def _logs(cells: pd.DataFrame) -> pd.DataFrame:
    """The logarithm of each cell's stability and its standard error, by seed; infinite where the interval has no upper end."""
    rows = {}
    known = cells[["stability", "stability_low", "stability_high"]].astype(float)
    for seed, value, low, high in known.itertuples():
        if not value > 0:
            continue
        low, high = max(0.0 if math.isnan(low) else low, 1e-3 * value), math.inf if math.isnan(high) else high
        exact = high == low
        reach = 0.0 if exact else max(math.log(value / low), math.log(high / value) if math.isfinite(high) else math.inf)
        rows[seed] = {"log": math.log(value), "error": reach / _NORMAL}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["log", "error"])


def p_of_mean(differences: Numbers) -> float:
    """Student's two-sided p-value of a mean of 0; NaN of fewer than two differences, 1 or 0 where all are the same to rounding.

    Args:
        differences: (a,), of independent runs.

    Example:
        >>> p_of_mean(np.array([0.5, 0.5, 0.5])), p_of_mean(np.array([0.5]))
        (0.0, nan)
    """
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) <= _EQUAL:
        return 1.0 if abs(differences[0]) <= _EQUAL else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)
