"""Stored cells → one tidy table, and its summary over seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stability.errors import StabilityError
from stability.leave_one_out.statistics import mean_over_seeds, variance_shares
from stability.studies.store import Store, key

__all__ = ["BOUNDS", "summarise", "table"]


def table(store: Store) -> pd.DataFrame:
    """The finished cells, one row each: ``task``, ``method`` (the algorithm's name), ``seed`` and what
    :func:`stability.studies.study.run_cell` measured, in the study's order.

    ``attrs`` has the study's name, a hash of its ``identity`` and that whole as ``plan``, and of every algorithm, under what column
    ``algorithm`` calls it, its settings and ``method``.
    """
    order = {key(algorithm): place for place, algorithm in enumerate(store.identity["algorithms"])}
    rows = []
    identity = store.identity
    tasks = {name: place for place, name in enumerate(identity.get("problems", {}))}
    place = lambda record: (  # noqa: E731
        record.get("sample", 0),
        record["seed"],
        tasks.get(record.get("task"), 0),
        order[key(record["algorithm"])],
    )
    records = sorted(store.records(), key=place)
    # Of records older than the column, and of failed ones among them: a study of one problem has one name for it.
    alone = next((record["task"] for record in records if "task" in record), identity.get("problem"))
    for record in records:
        record.pop("per_example", None)
        record.pop("prediction", None)
        record.setdefault("task", alone)
        rows.append({"algorithm": key(record.pop("algorithm"))[:12], "sparsity": record.pop("asked_sparsity"), **record})
    frame = pd.DataFrame(rows)
    names = {} if frame.empty else dict(zip(frame["algorithm"], frame["method"], strict=True))
    known = {key(one)[:12]: one for one in identity["algorithms"]}
    algorithms = {name: {**one, "method": names.get(name, one["selector"]["name"])} for name, one in known.items()}
    frame.attrs.update(study=identity["study"], identity=key(identity)[:12], plan=identity, algorithms=algorithms)
    return frame


BOUNDS = (
    "theorem_1",
    "theorem_1_sharp",
    "hard_mask",
    "hard_mask_sharp",
    "first_order",
    "theorem_2",
    "theorem_2_measured",
    "uniform_measured",
)
"""Columns of :func:`stability.bounds.measured_bounds`; each has a ``_state`` beside it."""

_STATES = ("infinite", "assumption failed", "vacuous", "not refuted", "estimate")  # the worst first


def _over_seeds(values: pd.Series[Any], states: pd.Series[Any]) -> tuple[float, str]:
    """Mean and worst state; infinite where one seed's is, NaN and ``unknown`` where one has none."""
    if states.empty or states.isna().any():
        return np.nan, "unknown"
    worst = min(states, key=_STATES.index)
    return (np.inf if worst == "infinite" else float(values.astype(float).mean())), worst


_SUMMARISED = (
    "stability",
    "hypothesis_stability",
    "gap",
    "train_loss",
    "test_loss",
    "train_metric",
    "test_metric",
    "noise_floor",
    "distance",
    "loss_bound",
    "gradient_norm",
)


def _shares(group: pd.DataFrame) -> dict[str, float]:
    """Of one algorithm's cells, where every S has every seed and every estimate its standard error."""
    none = dict.fromkeys(("samples_share", "seeds_share", "sampling_share"), np.nan)
    if "sample" not in group or min(group["sample"].nunique(), group["seed"].nunique()) < 2:
        return none
    group = group.assign(place=group.groupby("sample")["seed"].rank())  # each S has seeds of its own
    values, errors = (
        group.pivot(index="sample", columns="place", values=name).astype(float) for name in ("stability", "stability_error")
    )
    if values.isna().any(axis=None) or errors.isna().any(axis=None):
        return none
    _, shares = variance_shares(values.to_numpy(), errors.to_numpy())
    return {f"{name}_share": part for name, part in shares.fractions().items()}


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each task, method and sparsity: mean and standard deviation (n − 1) over the seeds that finished.

    ``stability_low`` and ``stability_high`` are the 95 % interval of E_{S,i}, a t interval over seeds: each seed draws
    its own S, and its estimate is unbiased for that S. Where stability was measured with one seed only, it is that cell's own,
    over the choice of what is left out, which says nothing of other S and seeds. Where the study draws S apart, it is one over the
    S, each averaged over its seeds, and ``samples_share``, ``seeds_share`` and ``sampling_share`` are the shares of S, of the seeds
    and of retraining without some i only in the variance of a cell; NaN elsewhere. ``retrainings`` is the mean over the cells.
    ``seeds`` counts the cells averaged, ``measured`` those of them whose stability was measured; ``failed`` those that were not
    averaged because they diverged; ``failed_replicas`` counts diverged left-out runs, which enter no average.
    """
    if frame.empty:
        raise StabilityError("the store holds no finished cell yet: run the study again, it goes on where it was")
    rows = []
    ok = frame[frame["status"] == "ok"]
    bad = frame[frame["status"] != "ok"]
    if ok.empty:
        raise StabilityError(f"all {len(bad)} finished cells failed; the first: {bad.iloc[0]['reason']}")
    for (task, algorithm), group in ok.groupby(["task", "algorithm"], sort=False):
        first = group.iloc[0]
        row: dict[str, Any] = {"task": task, "method": first["method"], "algorithm": algorithm}
        row["sparsity"] = group["sparsity"].mean()
        row |= {"tunable": int(first["tunable"]), "total": int(first["total"]), "seconds": group["seconds"].mean()}
        row["failed"] = int(((bad["algorithm"] == algorithm) & (bad["task"] == task)).sum())
        row |= {"head": int(group["head"].iloc[0]), "seeds": len(group), "failed_replicas": int(group["failed"].map(len).sum())}
        measured = group[group["stability"].notna()]
        row["measured"] = len(measured)
        for name in _SUMMARISED:
            values = group[name].astype(float)  # None where a study measures no bounds
            row[name] = values.mean()
            row[f"{name}_std"] = values.std(ddof=1) if len(group) > 1 else np.nan
        means = group if "sample" not in group else group.groupby("sample")[["stability", "gap"]].mean()
        for name in ("stability", "gap"):
            known = means[name].dropna().to_numpy(dtype=float)
            row[f"{name}_low"], row[f"{name}_high"] = mean_over_seeds(known).interval if len(known) else (np.nan, np.nan)
        if len(measured) == 1:
            ends = measured["stability_interval"].iloc[0]
            row["stability_low"], row["stability_high"] = (np.nan if end is None else end for end in ends)
        row |= _shares(group) | {"retrainings": measured["retrainings"].mean(), "samples": len(means)}
        for name in BOUNDS:
            row[name], row[f"{name}_state"] = _over_seeds(measured[name], measured[f"{name}_state"])
        rows.append(row)
    tasks, methods = (list(frame[name].unique()) for name in ("task", "method"))
    rows.sort(key=lambda row: (tasks.index(row["task"]), methods.index(row["method"]), row["sparsity"]))
    summary = pd.DataFrame(rows)
    cell = ["task", "algorithm"]
    lost = bad[~pd.MultiIndex.from_frame(bad[cell]).isin(pd.MultiIndex.from_frame(ok[cell]))]
    summary.attrs["all_failed"] = [
        f"{m} at p = {p}" + (f" on {t}" if len(tasks) > 1 else "")
        for t, m, p in lost[["task", "method", "sparsity"]].drop_duplicates().to_numpy()
    ]
    summary.attrs.update(frame.attrs)
    return summary
