"""Methods beside each other: one call measures them with the same seeds and says what that tells apart."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from stability.checks import check_kind, check_whole
from stability.errors import UsageError
from stability.leave_one_out.estimators import Auto, Estimator
from stability.leave_one_out.notebook import table_html
from stability.leave_one_out.statistics import Estimate, mean_over_seeds
from stability.leave_one_out.wording import places_of, size_of
from stability.selectors import Selector
from stability.selectors.naming import Method, selectors_named
from stability.studies.pace import Shown
from stability.studies.results import CellStatus, StudyResults
from stability.studies.store import key
from stability.studies.study import Study, run
from stability.training import Algorithm, FineTuning
from stability.training.descent import Progress
from stability.training.progress import stages

__all__ = ["Comparison", "compare", "compared", "labels", "study_of"]

_FEWEST = 3  # seeds that give an interval worth the name: with two, Student's t is 12.7

Compared: TypeAlias = "Method | Algorithm"


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Methods on one problem, measured with the same seeds. Printed, it is a table and a sentence for each method.

    Attributes:
        results: every cell, as of any study.
        labels: what each method is called here, by the name that column ``algorithm`` of the results has for it; in the order
            in which they were given.

    Example:
        >>> comparison = compare("digits", ["full", "bitfit"], seeds=2, problem_settings={"n": 20}, steps=2, workers=1)
        >>> comparison.table()["method"].tolist()
        ['full', 'bitfit']
        >>> comparison.sentences()[-1]
        'Two seeds give no interval: use 3 or more to tell methods apart.'
    """

    results: StudyResults
    labels: Mapping[str, str]

    def table(self) -> pd.DataFrame:
        """A row for each method.

        Returns:
            Columns ``method``; ``sparsity``, p; ``trainable``, how many parameters may change, the head's among them; ``seeds``;
            and the means over these of ``train_loss``, ``test_loss``, ``train_metric``, ``test_metric``, ``gap`` (test less train
            loss), ``stability`` and ``seconds``. ``low`` and ``high`` are the 95 % interval of the stability over seeds; NaN
            with fewer than three.
        """
        found = self.results.summary().table.set_index("algorithm")
        names = [name for name in self.labels if name in found.index]
        found = found.loc[names]
        few = found["measured"] < _FEWEST
        columns = ("train_loss", "test_loss", "train_metric", "test_metric", "gap", "stability", "seconds")
        return pd.DataFrame(
            {
                "method": [self.labels[name] for name in names],
                "sparsity": found["sparsity"],
                "trainable": found["tunable"] + found["head"],
                "seeds": found["seeds"],
                **{name: found[name] for name in columns},
                "low": found["stability_low"].mask(few).clip(lower=0),
                "high": found["stability_high"].mask(few),
            }
        ).reset_index(drop=True)

    def differences(self, quantity: str = "stability") -> pd.DataFrame:
        """What each method has more than the first, seed by seed.

        Args:
            quantity: a column of the results, such as ``stability``, ``test_loss`` or ``test_metric``.

        Returns:
            A row for each method but the first: ``method``; ``difference``, the mean over the seeds that both have finished;
            ``low`` and ``high``, its 95 % interval by Student's t over these pairs, NaN with fewer than three; and ``seeds``.
        """
        rows = []
        first, *others = self.labels
        for name in others:
            found = self._paired(first, name, quantity)
            low, high = (math.nan, math.nan) if found is None or found.count < _FEWEST else found.interval
            value, count = (math.nan, 0) if found is None else (found.value, found.count)
            rows.append({"method": self.labels[name], "difference": value, "low": low, "high": high, "seeds": count})
        return pd.DataFrame(rows, columns=["method", "difference", "low", "high", "seeds"])

    def sentences(self) -> list[str]:
        """What the seeds tell apart and what they do not: a sentence for each method beside the first."""
        stability, metric = self.differences(), self.differences("test_metric")
        names = list(self.results.table["metric"].dropna().unique()) if len(self.results) else []
        units = list(self.results.table["loss_unit"].dropna().unique()) if len(self.results) else []
        first, said, counts = next(iter(self.labels.values())), [], set()
        for one, other in zip(stability.to_dict("records"), metric.to_dict("records"), strict=True):
            if one["seeds"] >= _FEWEST:
                counts.add(str(one["seeds"]))
                said.append(_of_stability(first, one, units[0]) + " " + _of_metric(names[0], other))
        if said:
            said.append(f"Intervals are of 95 %, paired over {' or '.join(sorted(counts))} seeds.")
        few = stability[stability["seeds"] < _FEWEST]
        if len(few) and (most := int(few["seeds"].max())) > 0:
            counted = {1: "One seed gives", 2: "Two seeds give"}[most]
            said.append(f"{counted} no interval: use {_FEWEST} or more to tell methods apart.")
        lost = [self.labels[name] for name in self.labels if not self._finished(name)]
        return said + ([f"Every seed failed of {', '.join(lost)}."] if lost else [])

    def text(self, width: int = 100) -> str:
        """The table and the sentences.

        Args:
            width: of the terminal, in characters. Where the table does not fit, each method has a column instead of a row.
        """
        rows = self._rows()
        shown = rows.to_string(index=False)
        if max(map(len, shown.splitlines())) > width:
            shown = rows.set_index("method").T.to_string(line_width=width)
            shown = shown.replace(" \\\n", "\n")
        said = [*self.sentences(), *(f"note: {note}" for note in self.results.notes)]
        return "\n".join([shown, *(["", *said] if said else [])])

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.labels.values())}; {self.results!r})"

    def _repr_html_(self) -> str:
        return table_html(self._rows()) + "".join(f"<p>{escape(one)}</p>" for one in self.sentences())

    def _rows(self) -> pd.DataFrame:
        """The table as text."""
        found, known = self.table(), self.results.table
        names, units = (known[name].dropna().unique() for name in ("metric", "loss_unit"))
        metric = str(names[0]) if len(names) else "metric"
        unit = str(units[0]) if len(units) else ""
        return pd.DataFrame(
            {
                "method": found["method"],
                "p": found["sparsity"].map("{:.3g}".format),
                "trainable": found["trainable"],
                **{f"{split} loss": found[f"{split}_loss"].map("{:.3f}".format) for split in ("train", "test")},
                **{f"{split} {metric}": found[f"{split}_metric"].map("{:.3f}".format) for split in ("train", "test")},
                "gap": found["gap"].map("{:.3f}".format),
                f"stability ({unit})": found["stability"].map(size_of),
                "95 % interval": [
                    "–" if math.isnan(high) else f"{low:.2g} to {high:.2g}"
                    for low, high in zip(found["low"], found["high"], strict=True)
                ],
                "seconds": found["seconds"].map("{:.1f}".format),
            }
        )

    def _finished(self, name: str) -> bool:
        table = self.results.table
        return not table.empty and bool(((table["algorithm"] == name) & (table["status"] == CellStatus.OK)).any())

    def _paired(self, first: str, name: str, quantity: str) -> Estimate | None:
        table = self.results.table
        if table.empty or quantity not in table:
            return None
        finished = table[table["status"] == CellStatus.OK]
        mine, theirs = (finished[finished["algorithm"] == one].set_index("seed")[quantity].astype(float) for one in (name, first))
        found = (mine - theirs).dropna()
        return mean_over_seeds(found.to_numpy()) if len(found) else None


def _of_stability(first: str, row: Mapping[Any, Any], unit: str) -> str:
    method, low, high, by = row["method"], row["low"], row["high"], row["difference"]
    if low <= 0 <= high:
        return f"The stability of {method} and of {first} is not told apart: {_more(by, low, high)} {unit}."
    kind, ends = ("more", (-by, -high, -low)) if by < 0 else ("less", (by, low, high))
    return f"{method} is {kind} stable than {first}, by {_sizes(*ends)} {unit}."


def _of_metric(metric: str, row: Mapping[Any, Any]) -> str:
    low, high, by = row["low"], row["high"], row["difference"]
    if math.isnan(low):
        return ""
    if low <= 0 <= high:
        return f"Test {metric} is not told apart: {_more(by, low, high)}."
    kind, ends = ("lower", (-by, -high, -low)) if by < 0 else ("higher", (by, low, high))
    return f"The test {metric} of {row['method']} is {kind}, by {_sizes(*ends)}."


def _sizes(value: float, low: float, high: float) -> str:
    """A positive value with its interval, to as many places."""
    places = places_of(value)
    return f"{size_of(value)} ({size_of(low, places)} to {size_of(high, places)})"


def _more(value: float, low: float, high: float) -> str:
    """A value of either sign with its interval."""
    places = places_of(max(abs(low), abs(high)))
    return "{} ({} to {})".format(*(("−" if x < 0 else "+") + size_of(abs(x), places) for x in (value, low, high)))


def compare(
    problem: str,
    methods: Sequence[Compared],
    *,
    sparsities: Sequence[float] = (),
    seeds: int | Sequence[int] = 3,
    estimator: Estimator | None = None,
    problem_settings: Mapping[str, Any] | None = None,
    store: str | PathLike[str] | None = None,
    reuse: str | PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: bool | Progress = False,
    **training: Any,
) -> Comparison:
    """Measure several methods on one problem with the same seeds, and say what that tells apart.

    Each seed draws its own training set, which all methods share. What is compared is the first method with each of the others,
    paired over seeds.

    Args:
        problem: the name of a problem, or the path of texts.
        methods: names; names with settings, as in ``("lora", {"rank": 4})``; selectors, such as ``SAM(0.05)``; or algorithms, such
            as ``Minimisation(…)``, with their own training.
        sparsities: every method that takes a p, and has none of its own, is measured at each of these.
        seeds: how many, or which.
        estimator: one of :mod:`stability.estimators`; by default ``Auto()``, as for :func:`stability.measure`.
        problem_settings: of the problem, such as ``{"n": 50}``.
        store: an SQLite file that keeps every finished cell; the same call goes on from there. By default nothing is kept.
        reuse: the store of a like study, whose cells are taken over.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: processes, as for :func:`stability.run`.
        progress: as for :func:`stability.measure`, but that cells are counted: a function is told how many were finished.
        training: settings of :class:`stability.FineTuning`, such as ``steps=100``, for all methods that are no algorithms.

    Returns:
        The comparison. Printed, it is a table with what is resolved and what is not.

    Raises:
        UsageError: no method, an unknown one, or a setting that it does not have.

    Example:
        >>> from stability.selectors import SAM
        >>> comparison = compare(
        ...     "digits",
        ...     ["full", ("lora", {"rank": 4}), SAM(0.05)],
        ...     seeds=1,
        ...     problem_settings={"n": 10},
        ...     workers=1,
        ...     steps=2,
        ... )
        >>> comparison.table()["method"].tolist()
        ['full', 'lora rank=4', 'sam']
    """
    study = study_of(problem, methods, sparsities, seeds, problem_settings=problem_settings, estimator=estimator, **training)
    with ExitStack() as opened:
        place = store or Path(opened.enter_context(tempfile.TemporaryDirectory())) / "comparison.sqlite"
        results = compared(study, place, progress=progress, reuse=reuse, device=device, workers=workers)
    return Comparison(results=results, labels=labels(study))


def compared(study: Study, store: str | PathLike[str], *, progress: bool | Progress = False, **how: Any) -> StudyResults:
    """Run the study of a comparison, and tell how far it is.

    Args:
        study: of :func:`study_of`.
        store: keeps its cells.
        progress: as for :func:`compare`.
        how: further arguments of :func:`stability.run`.
    """
    with stages(progress, "cell") as told:
        what = f"measuring {', '.join(dict.fromkeys(labels(study).values()))}"
        shown = Shown(told, what if len(what) < 60 else f"measuring {len(study.algorithms)} methods")
        return run(study, store, on_start=shown, on_cell=shown, **how)


def study_of(
    problem: str,
    methods: Sequence[Compared],
    sparsities: Sequence[float] = (),
    seeds: int | Sequence[int] = 3,
    *,
    problem_settings: Mapping[str, Any] | None = None,
    estimator: Estimator | None = None,
    **training: Any,
) -> Study:
    """The study behind a comparison: its arguments are those of :func:`compare`.

    Args:
        problem: the name of a problem, or the path of texts.
        methods: names, names with settings, selectors or algorithms.
        sparsities: p of the methods that have none of their own.
        seeds: how many, or which.
        problem_settings: of the problem.
        estimator: how stability is estimated.
        training: settings of FineTuning.

    Example:
        >>> len(study_of("digits", ["full", "sam"], [0.01, 0.1], seeds=2).cells())
        6
    """
    if isinstance(methods, str) or not methods:
        raise UsageError(f"methods = {methods!r}: give a list of methods, such as ['full', ('lora', {{'rank': 4}})]")
    for method in methods:
        check_kind((str, tuple, Selector, Algorithm), "a name, (name, settings), a selector or an algorithm", method=method)
    if isinstance(seeds, int):
        check_whole(1, seeds=seeds)
        seeds = range(seeds)
    ready: dict[int, list[Algorithm]] = {}  # algorithms by their selectors, which pass through what names become selectors
    for method in methods:
        if isinstance(method, Algorithm):
            ready.setdefault(id(method.selector), []).append(method)
    selectors = selectors_named([one.selector if isinstance(one, Algorithm) else one for one in methods], sparsities)
    made = [ready[id(one)].pop(0) if ready.get(id(one)) else FineTuning(one, **training) for one in selectors]
    return Study(
        "comparison",
        problem,
        tuple(made),
        tuple(seeds),
        problem_settings={} if problem_settings is None else dict(problem_settings),
        check_replicas=None,
        estimator=Auto() if estimator is None else estimator,
    )


def labels(study: Study) -> dict[str, str]:
    """What to call each method: its name, with those settings in which methods of that name differ, or that are not the usual.

    Args:
        study: the study.

    Returns:
        The labels by the names that column ``algorithm`` of the results has, in the study's order. p is part of them only where a
        method comes at several.

    Example:
        >>> study = study_of("digits", [("lora", {"rank": 4}), ("lora", {"rank": 8}), "bitfit"])
        >>> list(labels(study).values())
        ['lora rank=4', 'lora rank=8', 'bitfit']
        >>> list(labels(study_of("digits", ["full", "sam"], [0.01, 0.1])).values())
        ['full', 'sam p=0.01', 'sam p=0.1']
    """
    found = {}
    for algorithm in study.algorithms:
        alike = [other for other in study.algorithms if other.name == algorithm.name]
        own = _plain(algorithm.selector)
        usual = {field.name: field.default for field in _fields(algorithm.selector)}
        theirs = [_plain(other.selector) for other in alike]
        told = {name: x for name, x in own.items() if x != usual.get(name) or any(other.get(name) != x for other in theirs)}
        mine, others = _plain(algorithm), [_plain(other) for other in alike]
        told |= {name: x for name, x in mine.items() if any(other.get(name) != x for other in others)}
        found[key(algorithm.settings())[:12]] = " ".join([algorithm.name, *(f"{name}={x}" for name, x in told.items())])
    every = list(found.values())
    asked = [algorithm.asked_sparsity for algorithm in study.algorithms]
    several = [every.count(label) > 1 and p is not None for label, p in zip(every, asked, strict=True)]
    return {
        name: f"{label} p={p:g}" if apart else label for (name, label), p, apart in zip(found.items(), asked, several, strict=True)
    }


def _fields(made: object) -> Sequence[Any]:
    return fields(made) if is_dataclass(made) and not isinstance(made, type) else ()


def _plain(made: object) -> dict[str, Any]:
    """The settings that are numbers or words, but for p and seed, which have columns of their own."""
    found = {field.name: getattr(made, field.name) for field in _fields(made) if field.name not in ("sparsity", "seed", "name")}
    return {name: x for name, x in found.items() if isinstance(x, (int, float, str))}
