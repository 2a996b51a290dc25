"""What a study measured: one tidy table with the study's identity, and its summary over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stability.bounds.base import State
from stability.errors import MachineError, MeasurementError, StabilityError, UsageError
from stability.leave_one_out.notebook import table_html
from stability.leave_one_out.statistics import mean_over_seeds, variance_shares
from stability.leave_one_out.wording import size_of
from stability.machine import out_of_memory
from stability.selectors import code
from stability.studies.identity import cells_of
from stability.studies.sound import BOUNDS
from stability.studies.store import Store
from stability.studies.tables import DETAILS, short, table_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BOUNDS", "UNKNOWN", "CellStatus", "Failure", "StudyResults", "Summary"]


class CellStatus(StrEnum):
    """How the measurement of a cell ended.

    Attributes:
        OK: the cell was measured.
        FAILED: its measurement failed; column ``failure`` says of which kind, and ``reason`` why.
    """

    OK = "ok"
    FAILED = "failed"


class Failure(StrEnum):
    """What it was that failed.

    Attributes:
        METHOD: the method itself: training diverged, or stopped short of its minimum. That is a result, and is not tried again.
        MACHINE: the machine: memory ran out, or a process was killed. It is tried again when the study is run the next time.
        ERROR: what was asked for, or code: the method does not suit the problem, or raises an error. It is tried again as well.
    """

    METHOD = "method"
    MACHINE = "machine"
    ERROR = "error"

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The kind of an error.

        Example:
            >>> Failure.of(MemoryError()).value
            'machine'
        """
        if isinstance(error, MeasurementError):
            return cls.METHOD
        return cls.MACHINE if isinstance(error, MachineError) or out_of_memory(error) else cls.ERROR


UNKNOWN = "unknown"
"""State, in a summary, of a bound that some seed lacks; the other states are those of :data:`stability.bounds.State`."""

_WORST_FIRST = (State.INFINITE, State.ASSUMPTION_FAILED, State.VACUOUS, State.NOT_REFUTED, State.ESTIMATE)


@dataclass(frozen=True, eq=False)
class Summary:
    """Means over seeds.

    Attributes:
        table: a row for each task, method and sparsity. Each quantity is a mean over the seeds that finished, with its standard
            deviation (n − 1) beside it as ``…_std``.
            ``stability_low`` and ``stability_high`` are the 95 % interval of the expected stability: a t interval over seeds, for
            each seed draws its own S. Where stability was measured with one seed only, the interval is that cell's own: it is over
            the choice of the examples that are left out, and says nothing of other S and seeds. Where the study draws S apart
            from the seeds, it is a t interval over the S, each averaged over its seeds; then ``samples_share``, ``seeds_share`` and
            ``sampling_share`` are the shares in the variance of a cell of S, of the seeds, and of retraining without some i only.
            They are NaN elsewhere.
            ``seeds`` counts the cells averaged, ``measured`` those of them whose stability was measured, ``failed`` the cells that
            failed and are not averaged, ``failed_replicas`` the left-out runs that failed, which enter no average.
            ``retrainings`` is the mean over the cells.
        all_failed: of each method whose every cell on a task failed, its name and p (and its task, where there are several).
    """

    table: pd.DataFrame
    all_failed: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyResults:
    """The finished cells of a study, and what they belong to.

    Attributes:
        table: a row for each cell: ``task``, ``method`` (the algorithm's name), ``algorithm`` (a short hash of its settings),
            ``sparsity`` (p of the mask; of a failed cell, p as asked for), ``seed``, ``status`` (a value of :class:`CellStatus`),
            what :func:`stability.studies.cell.run_cell` measured, and by which ``software`` on which ``device``; in the study's
            order. What it holds in lists is not among them: :meth:`details` has that.
        study: the name of the study.
        identity: everything that defines the study, as plain values.
        tasks: names of the tasks in the study's order, those without a finished cell among them.
        algorithms: the settings of each algorithm and its ``method``, by the name that column ``algorithm`` has for it.
        notes: what a reader of these results must know, a sentence each.
        to_compute: how many cells of the whole study are still to be computed. One whose method failed does not count, for that
            is a result. One that failed otherwise counts, for it is tried again.
        store: where they were read from; None where they were not.

    Example:
        >>> import tempfile
        >>> from stability import FineTuning
        >>> from stability.selectors import BitFit, FullTuning
        >>> from stability.studies import Study, run
        >>> algorithms = tuple(FineTuning(selector, steps=2) for selector in (BitFit(), FullTuning()))
        >>> study = Study("mine", "digits", algorithms, (0,), problem_settings={"n": 20}, check_replicas=None, measured_seeds=0)
        >>> results = run(study, f"{tempfile.mkdtemp()}/mine.sqlite", device="cpu", workers=1)
        >>> results
        StudyResults('mine', 2 cells of 2 algorithms on digits, ...)
        >>> results.where(method="bitfit").summary().table[["method", "seeds"]].to_numpy().tolist()
        [['bitfit', 1]]
    """

    table: pd.DataFrame
    study: str
    identity: Mapping[str, Any]
    tasks: tuple[str, ...]
    algorithms: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    to_compute: int = 0
    store: Store | None = None

    @classmethod
    def read(cls, path: str | PathLike[str]) -> StudyResults:
        """Read the finished cells of a store.

        Args:
            path: the store, a file or a folder, that :func:`stability.studies.run` wrote.

        Returns:
            The results; their table is empty where no cell is finished yet.

        Raises:
            StabilityError: the file is missing, damaged or not a store.

        Example:
            >>> import tempfile
            >>> from stability.studies import STUDIES, Store
            >>> path = f"{tempfile.mkdtemp()}/digits.sqlite"
            >>> store = Store(path, STUDIES["digits"].identity())
            >>> results = StudyResults.read(path)
            >>> results.study, len(results), len(results.algorithms)
            ('digits', 0, 39)
        """
        # The named studies are made of Study, and running one gives the results that this module defines.
        from stability.studies.named import NOTES

        store = Store(path)
        identity = store.identity
        table, earlier = table_of(store)
        methods = {} if table.empty else dict(table[["algorithm", "method"]].drop_duplicates("algorithm").to_numpy())
        known = {short(one): one for one in identity["algorithms"]}
        several, to_compute = identity.get("problems", {}), _to_compute(identity, table)
        return cls(
            table=table,
            study=identity["study"],
            identity=identity,
            tasks=tuple(several) or (() if table.empty else tuple(table["task"].unique())),
            algorithms={name: {**one, "method": methods.get(name, one["selector"]["name"])} for name, one in known.items()},
            to_compute=to_compute,
            store=store,
            notes=(
                *([note] if (note := NOTES.get(identity["study"])) is not None else []),
                *_note_of_unfinished(to_compute, identity),
                *_mixed(table),
                *_code(known, earlier),
            ),
        )

    @property
    def fingerprint(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the identity: results of one fingerprint are of one study."""
        return short(self.identity)

    @property
    def removed(self) -> float:
        """The fraction of the training data that each S lacks; more than 0 in studies of perturbed data."""
        from stability.studies.named import PAPER  # the named studies are made of what this module is read by

        protocol = PAPER.get(self.study)
        older = protocol.removed if protocol is not None and protocol.part == "perturbation" else 0.0
        return float(self.identity.get("removed", older))

    def summary(self) -> Summary:
        """Average over seeds.

        Returns:
            A row for each task, method and sparsity, and the cells whose every seed failed.

        Raises:
            StabilityError: there is no finished cell, or every one failed.
        """
        found = self._summary
        return dataclasses.replace(found, table=found.table.copy())  # whoever asks may change it

    @cached_property
    def _summary(self) -> Summary:
        return _summarise(self.table)

    def only(self, rows: pd.Series[bool]) -> StudyResults:
        """Keep some cells, with the tasks and algorithms that they are of.

        Args:
            rows: of each row of the table whether it is kept.

        Returns:
            Results of the same study with fewer cells.

        Example:
            >>> results = StudyResults.read("figures/discontinuity.sqlite")
            >>> results.only(results.table["seed"] > 0)
            StudyResults('discontinuity', 6 cells of 3 algorithms on digits, ...)
        """
        table = self.table[rows]
        tasks, names = (set() if table.empty else set(table[column]) for column in ("task", "algorithm"))
        return dataclasses.replace(
            self,
            table=table,
            tasks=tuple(task for task in self.tasks if task in tasks),
            algorithms={name: settings for name, settings in self.algorithms.items() if name in names},
        )

    def where(self, **values: Any) -> StudyResults:
        """Keep the cells with the given values.

        Args:
            values: a value, or a list of values, for each column of the table that is named.

        Returns:
            Results of the same study with fewer cells.

        Raises:
            UsageError: the table has no such column.

        Example:
            >>> results = StudyResults.read("figures/discontinuity.sqlite")
            >>> results.where(method=["diffpruning", "childpruning"], seed=0)
            StudyResults('discontinuity', 2 cells of 2 algorithms on digits, ...)
        """
        kept = pd.Series(True, index=self.table.index)
        for column, wanted in values.items():
            if column not in self.table:
                raise UsageError(f"there is no column {column!r}: use {', '.join(map(str, self.table.columns))}")
            kept &= self.table[column].isin(wanted if _several(wanted) else [wanted])
        return self.only(kept)

    def details(self, name: str) -> pd.Series[Any]:
        """What each cell's record holds in a list or a dictionary.

        Args:
            name: one of :data:`stability.studies.tables.DETAILS`.

        Returns:
            By the rows of the table; None where a cell has none.

        Raises:
            UsageError: another name.
            StabilityError: the store is damaged.

        Example:
            >>> results = StudyResults.read("figures/discontinuity.sqlite")
            >>> results.details("per_example").map(len).tolist()
            [2, 2, 2, 2, 2, 2, 2, 2, 2]
        """
        if name not in DETAILS:
            raise UsageError(f"there are no details {name!r}: use {', '.join(DETAILS)}")
        if self.table.empty:
            return pd.Series(dtype=object)
        if self.store is None:
            raise UsageError("these results were not read from a store, which has the details: use StudyResults.read")
        found = self.store.details(self.table["key"].tolist())
        return pd.Series([found[key].get(name) for key in self.table["key"]], self.table.index, dtype=object)

    def plot(self) -> Figure:
        """Draw what says most of the results (:func:`stability.plotting.overview`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.overview(self))

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        failed = 0 if self.table.empty else int((self.table["status"] != CellStatus.OK).sum())
        tasks = ", ".join(self.tasks) or "no task"
        lost = f", {failed} failed" if failed else ""
        of = f"{len(self)} cells of {len(self.algorithms)} algorithms on {tasks}"
        return f"StudyResults({self.study!r}, {of}{lost}, fingerprint {self.fingerprint})"

    def _repr_html_(self) -> str:
        failed = 0 if self.table.empty else int((self.table["status"] != CellStatus.OK).sum())
        what = f"{len(self)} cells of {len(self.algorithms)} settings on {', '.join(self.tasks) or 'no task'}"
        lost = f", {failed} of them failed" if failed else ""
        begins = f"<p><b>Results of study {escape(self.study)}</b>: {escape(what)}{lost}</p>"
        if failed == len(self):
            return begins
        found = self.summary().table
        few = found["measured"] < 3
        shown = pd.DataFrame(
            {
                **({"task": found["task"]} if len(self.tasks) > 1 else {}),
                "method": found["method"],
                "p": found["sparsity"].map("{:.2g}".format),
                "seeds": found["seeds"],
                "test loss": found["test_loss"].map("{:.3f}".format),
                "test metric": found["test_metric"].map("{:.3f}".format),
                "gap": found["gap"].map("{:.3f}".format),
                "stability": found["stability"].map(size_of),
                "95 % interval over seeds": [
                    "–" if none or math.isnan(high) else f"{max(low, 0):.2g} to {high:.2g}"
                    for none, low, high in zip(few, found["stability_low"], found["stability_high"], strict=True)
                ],
            }
        )
        return begins + table_html(shown)


def _several(wanted: object) -> bool:
    return isinstance(wanted, Sequence | set | frozenset | np.ndarray | pd.Series) and not isinstance(wanted, str)


def _to_compute(identity: Mapping[str, Any], table: pd.DataFrame) -> int:
    """How many cells are missing, or failed and are to be tried again."""
    kinds = table["failure"].dropna() if "failure" in table else pd.Series(dtype=str)
    return cells_of(identity) - len(table) + int((kinds != Failure.METHOD).sum())


def _note_of_unfinished(to_compute: int, identity: Mapping[str, Any]) -> list[str]:
    """A note on cells that are still to be computed."""
    if not to_compute:
        return []
    which = f"{to_compute} of {cells_of(identity)} cells {'is' if to_compute == 1 else 'are'} still to be computed"
    return [f"unfinished: {which}, and means are over the others; the command that began the study goes on with it"]


def _mixed(table: pd.DataFrame) -> list[str]:
    """Notes on cells that were computed by different software or on different devices: they agree to rounding at best."""
    notes = []
    for column, what in (("software", "by different software"), ("device", "on different devices")):
        counts = table[column].fillna("not recorded").value_counts() if column in table else pd.Series(dtype=int)
        if len(counts) > 1:
            each = "; ".join(f"{name} ({count} cells)" for name, count in counts.items())
            notes.append(f"the cells were computed {what}: {each}")
    return notes


def _code(algorithms: Mapping[str, Mapping[str, Any]], earlier: int) -> list[str]:
    """Notes on code that was changed, and on code that cannot be compared."""
    notes = [f"{earlier} cells of what was changed since, such as code, are in the store and are not shown"] if earlier else []
    for one in algorithms.values():
        digest = str(one["selector"].get(code.CODE, ""))
        if digest.startswith(code.UNKNOWN):
            notes.append(
                f"{one['selector']['name']} is measured anew in every run: its code holds {digest.partition(': ')[2]}, which "
                "cannot be compared with what it was"
            )
    return notes


def _over_seeds(values: pd.Series[Any], states: pd.Series[Any]) -> tuple[float, str]:
    """Mean and worst state; infinite where one seed's is, NaN and :data:`UNKNOWN` where one has none."""
    if states.empty or states.isna().any():
        return np.nan, UNKNOWN
    worst = min(states.unique(), key=_WORST_FIRST.index)
    return (np.inf if worst == State.INFINITE else float(values.astype(float).mean())), worst


_WHERE = (
    *("task", "algorithm", "method", "sparsity", "seed", "sample", "status", "reason", "tunable", "total", "head", "seconds"),
    *("failed_replicas", "retrainings", "stability_error", "stability_low", "stability_high"),
)

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
    "mask_overlap",
    "loss_bound",
    "gradient_norm",
)


def _shares(group: pd.DataFrame) -> dict[str, float]:
    """Shares of the variance over one algorithm's cells, where every S has every seed and every estimate its standard error."""
    none = dict.fromkeys(("samples_share", "seeds_share", "sampling_share"), np.nan)
    if "sample" not in group or min(group["sample"].nunique(), group["seed"].nunique()) < 2:
        return none
    group = group.assign(place=group.groupby("sample")["seed"].rank())  # each S has seeds of its own
    if group.duplicated(["sample", "place"]).any():  # in a store that is damaged
        return none
    values, errors = (
        group.pivot(index="sample", columns="place", values=name).astype(float) for name in ("stability", "stability_error")
    )
    if values.isna().any(axis=None) or errors.isna().any(axis=None):
        return none
    _, shares = variance_shares(values.to_numpy(), errors.to_numpy())
    return {f"{name}_share": part for name, part in shares.fractions().items()}


def _summarise(table: pd.DataFrame) -> Summary:
    if table.empty:
        raise StabilityError("there is no finished cell yet: run the study again, it goes on where it was")
    rows = []
    needed = {*_WHERE, *_SUMMARISED, *BOUNDS, *(f"{name}_state" for name in BOUNDS)}
    table = table[[name for name in table if name in needed]]
    if "mask_overlap" not in table:  # of older results
        table = table.assign(mask_overlap=np.nan)
    finished = table["status"] == CellStatus.OK
    ok, bad = table[finished], table[~finished]
    if ok.empty:
        raise StabilityError(f"all {len(bad)} finished cells failed; the first: {bad.iloc[0]['reason']}")
    for (task, algorithm), group in ok.groupby(["task", "algorithm"], sort=False):
        first = group.iloc[0]
        row: dict[str, Any] = {"task": task, "method": first["method"], "algorithm": algorithm}
        row["sparsity"] = group["sparsity"].mean()
        row |= {"tunable": int(first["tunable"]), "total": int(first["total"]), "seconds": group["seconds"].mean()}
        row["failed"] = int(((bad["algorithm"] == algorithm) & (bad["task"] == task)).sum())
        row |= {"head": int(group["head"].iloc[0]), "seeds": len(group), "failed_replicas": int(group["failed_replicas"].sum())}
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
            row["stability_low"], row["stability_high"] = measured.iloc[0][["stability_low", "stability_high"]].astype(float)
        row |= _shares(group) | {"retrainings": measured["retrainings"].mean(), "samples": len(means)}
        for name in BOUNDS:
            row[name], row[f"{name}_state"] = _over_seeds(measured[name], measured[f"{name}_state"])
        rows.append(row)
    tasks, methods = (list(table[name].unique()) for name in ("task", "method"))
    rows.sort(key=lambda row: (tasks.index(row["task"]), methods.index(row["method"]), row["sparsity"]))
    cell = ["task", "algorithm"]
    lost = bad[~pd.MultiIndex.from_frame(bad[cell]).isin(pd.MultiIndex.from_frame(ok[cell]))]
    all_failed = (
        f"{method} at p = {p}" + (f" on {task}" if len(tasks) > 1 else "")
        for task, method, p in lost[["task", "method", "sparsity"]].drop_duplicates().to_numpy()
    )
    return Summary(pd.DataFrame(rows), tuple(all_failed))
