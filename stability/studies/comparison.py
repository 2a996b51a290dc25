"""Methods beside each other: one call measures them with the same seeds and says what that tells apart."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from stability.checks import check_kind, check_whole
from stability.errors import UsageError
from stability.leave_one_out.differences import relative_to, subtracted
from stability.leave_one_out.estimators import Auto, Estimator
from stability.leave_one_out.notebook import table_html
from stability.leave_one_out.statistics import Estimate, Numbers, mean_over_seeds
from stability.leave_one_out.wording import difference_sentence, signed_text, size_of, size_text
from stability.selectors import Selector
from stability.selectors.naming import Method, selectors_named
from stability.studies.identity import key
from stability.studies.pace import Shown
from stability.studies.results import CellStatus, StudyResults
from stability.studies.running import run
from stability.studies.study import Study
from stability.training import Algorithm, FineTuning
from stability.training.descent import Progress
from stability.training.naming import named_apart
from stability.training.progress import stages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "compare", "compared", "holm", "labels", "study_of"]

_FEWEST = 3  # seeds that give an interval worth the name: with two, Student's t is 12.7
_LEVEL = 0.05  # of the tests together
_SEEDS, _EXACT, _EXAMPLES = "seeds", "exact", "examples"  # what the interval of a difference is over

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
            with fewer than three. ``left_out`` is how many of ``n`` examples were left out, in the mean over the seeds.
            ``than_first`` says what :meth:`differences` tells of the stability: ``more stable`` or
            ``less stable`` than the first method, or ``not significant``; it is empty where there is nothing to compare by.
        """
        found = self.results.summary().table.set_index("algorithm")
        names = [name for name in self.labels if name in found.index]
        found = found.loc[names]
        few = found["measured"] < _FEWEST
        columns = ("train_loss", "test_loss", "train_metric", "test_metric", "gap", "stability", "seconds")
        told = {row["method"]: _told(row) for row in self.differences().to_dict("records")}
        return pd.DataFrame(
            {
                "method": [self.labels[name] for name in names],
                "sparsity": found["sparsity"],
                "trainable": found["tunable"] + found["head"],
                "seeds": found["seeds"],
                **{name: found[name] for name in columns},
                "low": found["stability_low"].mask(few).clip(lower=0),
                "high": found["stability_high"].mask(few),
                "left_out": found["retrainings"],
                "n": [self._finished(name)["n"].mean() for name in names],
                "than_first": [told.get(self.labels[name], "") for name in names],
            }
        ).reset_index(drop=True)

    def differences(self, quantity: str = "stability") -> pd.DataFrame:
        """What each method has more than the first, seed by seed.

        With one seed, what is said of the stability is of that training set and seed alone. It is exact where all examples were
        left out of both. Otherwise the two intervals are put together as those of independent estimates
        (:func:`stability.leave_one_out.differences.subtracted`).

        Args:
            quantity: a column of the results, such as ``stability``, ``test_loss`` or ``test_metric``.

        Returns:
            A row for each method but the first: ``method``; ``difference``, the mean over the seeds that both have finished;
            ``relative``, the same as a fraction of the first method's mean over these seeds;
            ``low`` and ``high``, its 95 % interval, NaN where there is none; ``seeds``; ``by``, what the interval is over; ``p``
            and ``resolved``. By is ``seeds`` with three or more (Student's t over these pairs), and with one seed ``exact`` or
            ``examples``. p is that of no difference, after Holm's (1979) correction for all rows of the table; NaN where the
            difference is exact. Resolved is what has p < 0.05 or is exact, and is more than what rounding does.
        """
        first, *others = self.labels
        rows = [{"method": self.labels[name], **self._difference(first, name, quantity)} for name in others]
        table = pd.DataFrame(rows, columns=["method", "difference", "relative", "low", "high", "seeds", "by", "p", "floor"])
        table["p"] = holm(table["p"])
        certain = table["by"] == _EXACT
        table["resolved"] = ((table["p"] < _LEVEL) | certain) & (table["difference"].abs() > table.pop("floor"))
        return table

    def _difference(self, first: str, name: str, quantity: str) -> dict[str, Any]:
        """A row of the table, with p as it is without the others; ``floor`` is what rounding does."""
        row: dict[str, Any] = {"low": math.nan, "high": math.nan, "by": "", "p": math.nan, "floor": 0.0}
        pairs = self._pairs(first, name, quantity)
        if pairs.empty:
            return {**row, "difference": math.nan, "relative": math.nan, "seeds": 0}
        found = mean_over_seeds((pairs["second"] - pairs["first"]).to_numpy())
        base = float(pairs["first"].mean())
        row |= {"difference": found.value, "relative": relative_to(base, found.value), "seeds": found.count}
        if found.count >= _FEWEST:
            p = (
                2 * float(stats.t.sf(abs(found.value) / found.error, found.count - 1))
                if found.error > 0
                else float(not found.value)
            )
            return row | {"low": found.interval[0], "high": found.interval[1], "by": _SEEDS, "p": p}
        if found.count == 1 and quantity == "stability":
            estimate, floor = self._of_one_seed(first, name, pairs.index[0])
            row["floor"] = floor
            low, high = estimate.interval
            exact = estimate.count == estimate.population
            if low > -math.inf or high < math.inf:
                row |= {"low": low, "high": high, "by": _EXACT if exact else _EXAMPLES}
                row["p"] = math.nan if exact else _as_student(estimate)
        return row

    def _of_one_seed(self, first: str, name: str, seed: int) -> tuple[Estimate, float]:
        """The difference of two cells of one seed, and what rounding alone does to it."""
        two: list[Any] = [self._finished(one).loc[seed] for one in (first, name)]
        return subtracted(*map(_stored, two)), sum(float(one["noise_floor"]) for one in two)

    def sentences(self) -> list[str]:
        """Which differences are significant and which are not: a sentence for each method beside the first.

        Significance is at 5 %, after Holm's correction for all methods that are compared here. With one seed, sentences are of
        that training set and seed.
        """
        stability, metric = self.differences(), self.differences("test_metric")
        names = list(self.results.table["metric"].dropna().unique()) if len(self.results) else []
        units = list(self.results.table["loss_unit"].dropna().unique()) if len(self.results) else []
        first, lines, counts = next(iter(self.labels.values())), [], set()
        for one, other in zip(stability.to_dict("records"), metric.to_dict("records"), strict=True):
            if one["seeds"] >= _FEWEST:
                counts.add(str(one["seeds"]))
                lines.append(_of_stability(first, one, units[0]) + " " + _of_metric(names[0], other))
            elif not math.isnan(one["low"]):
                lines.append(_of_stability(first, one, units[0]))
        corrected = int(stability["p"].notna().sum())
        holds = f" Significance is at 5 %, after Holm's correction for {corrected} comparisons." if corrected > 1 else ""
        if counts:
            lines.append(f"Intervals are of 95 %, paired over {' or '.join(sorted(counts))} seeds.{holds}")
        elif (stability["by"] == _EXAMPLES).any():
            lines.append(f"Intervals are of 95 %, over the examples that are left out.{holds}")
        few = stability[stability["seeds"] < _FEWEST]
        if len(few) and (most := int(few["seeds"].max())) > 0:
            if few["by"].any():
                lines.append(f"That is of one training set and seed: use {_FEWEST} seeds or more to tell methods apart beyond it.")
            else:
                counted = {1: "One seed gives", 2: "Two seeds give"}[most]
                lines.append(f"{counted} no interval: use {_FEWEST} or more to tell methods apart.")
        lost = [self.labels[name] for name in self.labels if self._finished(name).empty]
        return lines + ([f"Every seed failed of {', '.join(lost)}."] if lost else [])

    def plot(self) -> Figure:
        """Draw what each method has more than the first (:func:`stability.plotting.against_first`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.against_first(self))

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
                "left out": [f"{count:.3g} of {n:g}" for count, n in zip(found["left_out"], found["n"], strict=True)],
                **({f"than {next(iter(self.labels.values()))}": found["than_first"]} if found["than_first"].any() else {}),
                "seconds": found["seconds"].map("{:.1f}".format),
            }
        )

    def _finished(self, name: str) -> pd.DataFrame:
        """The finished cells of a method, by seed."""
        table = self.results.table
        if table.empty:
            return table
        return table[(table["algorithm"] == name) & (table["status"] == CellStatus.OK)].set_index("seed")

    def _pairs(self, first: str, name: str, quantity: str) -> pd.DataFrame:
        """A quantity of two methods, ``first`` and ``second``, by the seeds in which both have it."""
        found = {which: self._finished(one) for which, one in (("first", first), ("second", name))}
        known = {
            which: table[quantity].astype(float) if quantity in table else pd.Series(dtype=float) for which, table in found.items()
        }
        return pd.DataFrame(known).dropna()


def _told(row: Mapping[Any, Any]) -> str:
    """What a row of the differences tells, in a word or two."""
    if math.isnan(row["low"]):
        return ""
    if not row["resolved"]:
        return "not significant"
    return "more stable" if row["difference"] < 0 else "less stable"


def _of_stability(first: str, row: Mapping[Any, Any], unit: str) -> str:
    ends = row["low"], row["high"]
    if row["by"] == _EXACT and not row["resolved"]:
        return f"The stability of {row['method']} and of {first} differs by no more than rounding does."
    return difference_sentence(
        first, row["method"], row["difference"], ends, unit, significant=row["resolved"], relative=row["relative"]
    )


def _of_metric(metric: str, row: Mapping[Any, Any]) -> str:
    ends, by = (row["low"], row["high"]), row["difference"]
    if math.isnan(row["low"]):
        return ""
    if not row["resolved"]:
        return f"Its test {metric} does not differ significantly: {signed_text(by, ends)}."
    return f"The test {metric} of {row['method']} is {'lower' if by < 0 else 'higher'}, by {size_text(by, ends)}."


def _stored(cell: pd.Series[Any]) -> Estimate:
    """The stability of a cell."""
    ends = zip((cell["stability_low"], cell["stability_high"]), (-math.inf, math.inf), strict=True)
    low, high = (other if pd.isna(end) else float(end) for end, other in ends)
    count, n = int(cell["retrainings"] - cell["failed_replicas"]), int(cell["n"])
    error = math.nan if cell["stability_error"] is None else float(cell["stability_error"])
    return Estimate(float(cell["stability"]), (low, high), confidence=0.95, count=count, population=n, error=error)


def _as_student(estimate: Estimate) -> float:
    """p of no difference, from how far the 95 % interval reaches towards 0, as if the error had Student's distribution."""
    reach = estimate.value - estimate.interval[0] if estimate.value > 0 else estimate.interval[1] - estimate.value
    if not math.isfinite(reach):
        return 1.0
    student = stats.t(max(1, estimate.count - 1))
    return 2 * float(student.sf(student.ppf(0.975) * abs(estimate.value) / reach)) if reach > 0 else 0.0


def holm(p: ArrayLike) -> Numbers:
    """Holm's (1979) adjusted p-values.

    If those below α are called significant, the probability that any of them is so by chance is at most α.

    Args:
        p: of each test, (k,); NaN where there was none, which stays and does not count.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03]).round(3).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    adjusted = np.asarray(p, dtype=np.float64).copy()
    order = np.argsort(adjusted)[: int((~np.isnan(adjusted)).sum())]  # NaN comes last
    steps = adjusted[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def compare(
    problem: str,
    methods: Sequence[Compared],
    *,
    sparsities: Sequence[float] = (),
    seeds: int | Sequence[int] = 3,
    estimator: Estimator | None = None,
    test_examples: int | None = None,
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
        test_examples: evaluate the models without an example on so many test examples only, as for :func:`stability.measure`.
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
    how: dict[str, Any] = {"estimator": estimator, "test_examples": test_examples, **training}
    study = study_of(problem, methods, sparsities, seeds, problem_settings=problem_settings, **how)
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
    test_examples: int | None = None,
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
        test_examples: on how many test examples the models without an example are evaluated.
        training: settings of FineTuning.

    Example:
        >>> len(study_of("digits", ["full", "sam"], [0.01, 0.1], seeds=2).cells())
        6
    """
    if isinstance(methods, str) or not methods:
        raise UsageError(f"methods = {methods!r}: give a list of methods, such as ['full', ('lora', {{'rank': 4}})]")
    for method in methods:
        check_kind((str, tuple, Selector, Algorithm), "a name, (name, settings), a selector or an algorithm", method=method)
    if isinstance(seeds, (int, Integral)):
        check_whole(1, seeds=seeds)
        seeds = range(int(seeds))
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
        test_examples=test_examples,
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
    return {key(one.settings())[:12]: label for one, label in zip(study.algorithms, named_apart(study.algorithms), strict=True)}
