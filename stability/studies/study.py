"""A study: problems × algorithms × seeds → a tidy table, computed cell by cell and resumable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from stability import problems
from stability.checks import check_fraction, check_kind, check_whole, those_given
from stability.errors import UsageError
from stability.leave_one_out.estimators import Auto, Estimator, Exact, Sampled
from stability.leave_one_out.notebook import table_html
from stability.selectors import Selector
from stability.studies.identity import data_of, how_of, key
from stability.training import Algorithm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NUMERICS", "Cell", "Study", "cell_identity"]

NUMERICS = 1
"""The version of the numbers that the toolkit computes, part of every identity. It is raised with each change of the program that
changes a stored number by more than rounding, and with no other: results of one version are comparable."""


@dataclass(frozen=True)
class Study:
    """What to measure. Everything here is identity: stored results of one study never mix with another's.

    Attributes:
        name: the study's name.
        problem: the name of a problem, or the path of texts; each seed draws its own S. A tuple of several: every algorithm and
            seed is measured on each.
        algorithms: what is measured, each with its selector; their own seeds are replaced.
        seeds: of S, of the head's start, of the order of the examples and of the selection alike.
        problem_settings: further settings of every problem, such as n.
        check_replicas: take the curvature that bounds need at A(S) and, for so many i, on Sⁱ at A(S) and at A(Sⁱ) too
            (:func:`stability.bounds.measured.estimate_constants`). None measures no constants and no bounds: their eigenvalues
            cost a large model far more than its training.
        delta: δ of the bounds on the expected loss, in (0, 1).
        estimator: how stability is estimated; one of :mod:`stability.leave_one_out.estimators`.
        samples: seeds of S alone. Each S has as many seeds of the algorithm as there are in ``seeds``, and these are its own (0 and
            1 for the first S are 2 and 3 for the second). The shares of S, seed and retrainings in the variance can then be told
            apart (:func:`stability.leave_one_out.statistics.variance_shares`). None: each seed draws its own S.
        measured_seeds: stability is measured with the first so many seeds only. With the others A(S) is trained alone, for its
            losses and metrics. None: stability is measured with all.
        test_examples: on so many test examples the models without an example are evaluated, as in :func:`stability.measure`;
            None: on all.

    Raises:
        UsageError: a number out of range, no algorithm or seed, an algorithm twice, two problems of one name, both
            ``measured_seeds`` and ``samples``, or an estimator with a budget of seconds.

    Example:
        >>> from stability import FineTuning
        >>> from stability.leave_one_out.estimators import Sampled
        >>> from stability.selectors import SAM, BitFit
        >>> algorithms = (FineTuning(BitFit()), FineTuning(SAM(sparsity=0.05)))
        >>> study = Study("mine", "digits", algorithms, seeds=(0, 1, 2), problem_settings={"n": 50}, estimator=Sampled(5))
        >>> len(study.cells())
        6
    """

    name: str
    problem: str | tuple[str, ...]
    algorithms: tuple[Algorithm, ...]
    seeds: tuple[int, ...]
    _: KW_ONLY
    problem_settings: Mapping[str, Any] = field(default_factory=dict)
    check_replicas: int | None = 0
    delta: float = 0.1
    estimator: Estimator = Auto()  # noqa: RUF009
    samples: tuple[int, ...] | None = None
    measured_seeds: int | None = None
    test_examples: int | None = None

    def __post_init__(self) -> None:
        check_kind((str, tuple), "the name of a problem, the path of texts, or a tuple of them", problem=self.problem)
        check_kind((tuple, list), "a tuple, such as (FineTuning(selector),)", algorithms=self.algorithms)
        check_kind(Iterable, "whole numbers, such as (0, 1, 2)", seeds=self.seeds)
        for algorithm in self.algorithms:
            check_kind(Algorithm, "an algorithm, such as FineTuning(selector)", algorithm=algorithm)
        check_kind(Estimator, "one of stability.estimators, such as Assisted(retrainings=10)", estimator=self.estimator)
        if self.estimator.budget is not None:
            raise UsageError(
                f"budget = {self.estimator.budget:g} s: what a study stores must not depend on how fast a machine is; limit "
                "retrainings instead"
            )
        defaults = {problems.training_defaults(name) for name in self.problems}
        made = [tuple(algorithm.with_defaults(one) for algorithm in self.algorithms) for one in defaults]
        if any(other != made[0] for other in made):
            raise UsageError(
                f"study {self.name!r}: {', '.join(self.problems)} are trained in different ways by default: give steps, "
                "batch_size, learning_rate and schedule"
            )
        object.__setattr__(self, "algorithms", made[0])
        if self.measured_seeds is not None:
            check_whole(0, measured_seeds=self.measured_seeds)
            if self.measured_seeds > len(self.seeds):
                raise UsageError(f"measured_seeds = {self.measured_seeds} of {len(self.seeds)} seeds: use at most as many")
            if self.samples is not None:
                raise UsageError("measured_seeds and samples: shares of the variance need every cell measured; leave one out")
        if self.check_replicas is not None:
            check_whole(0, check_replicas=self.check_replicas)
        check_whole(1, **those_given(test_examples=self.test_examples))
        check_fraction(delta=self.delta)
        if self.check_replicas is not None and self.measured_seeds != 0 and self.estimator.most(2) == 0:
            raise UsageError(
                f"check_replicas = {self.check_replicas}: bounds are measured at left-out replicas, and {self.estimator.name} "
                "trains none; use check_replicas=None, or another estimator"
            )
        # Seeds may come as a list or as an array of numpy; a frozen study holds tuples of plain numbers.
        for name, seeds in (("seeds", self.seeds), ("samples", self.samples)):
            for seed in () if seeds is None else seeds:
                check_whole(0, seed=seed)
            if seeds is not None and len(set(map(int, seeds))) < len(seeds):
                raise UsageError(f"{name} = {list(map(int, seeds))}: one occurs twice, and would count as two; name each once")
            object.__setattr__(self, name, None if seeds is None else tuple(map(int, seeds)))
        if not self.algorithms or not self.seeds:
            raise UsageError(
                f"study {self.name!r} has {len(self.algorithms)} algorithms and {len(self.seeds)} seeds: give at least 1"
            )
        if len(set(names := [problems.short_name(name) for name in self.problems])) < len(names):
            raise UsageError(f"study {self.name!r}: two problems have one name among {', '.join(names)}; rename a folder")
        own = [key(algorithm.settings()) for algorithm in self.algorithms]
        if twice := [algorithm.name for algorithm, kind in zip(self.algorithms, own, strict=True) if own.count(kind) > 1]:
            raise UsageError(f"study {self.name!r} has {twice[0]} with the same settings twice: leave one out")

        kinds: dict[str, Any] = {}
        for algorithm in self.algorithms:
            kind = algorithm.selector.made_of
            if kinds.setdefault(algorithm.name, kind) is not kind:
                raise UsageError(
                    f"two different selectors are called {algorithm.name!r}: no figure could tell them apart, rename one"
                )

    @property
    def problems(self) -> tuple[str, ...]:
        """The names of all problems, of one too."""
        return (self.problem,) if isinstance(self.problem, str) else self.problem

    def _repr_html_(self) -> str:
        from stability.studies.comparison import labels  # which is made of studies

        p = [one.asked_sparsity for one in self.algorithms]
        methods = pd.DataFrame(
            {
                "method": list(labels(self).values()),
                "p": ["by its rule" if one is None else f"{one:g}" for one in p],
                "training": (trained := [one.describe() for one in self.algorithms]),
            }
        )
        drawn = "" if self.samples is None else f" on each of {len(self.samples)} training sets"
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        what = f"{len(self.cells())} cells: {len(self.algorithms)} methods, {seeds}{drawn}, on {', '.join(self.problems)}"
        how = f"{self.estimator.name}, {'no bounds' if self.check_replicas is None else 'with bounds'}"
        how += "" if self.test_examples is None else f", {self.test_examples} test examples"
        if len(set(trained)) == 1:
            methods, how = methods.drop(columns="training"), f"{how}; {trained[0]}"
        return f"<p><b>Study {escape(self.name)}</b>: {escape(what)}; {escape(how)}</p>{table_html(methods)}"

    def identity(self) -> dict[str, Any]:
        """Everything that defines the study, as plain values.

        Returns:
            A dictionary that JSON can hold. Data and weights are in it by their content, wherever they lie; methods of the user's
            own by their code.

        Raises:
            UsageError: data or a model that cannot be read.
        """
        each = {problems.short_name(name): problems.identity(name, self.problem_settings) for name in self.problems}
        return {
            "study": self.name,
            "numerics": NUMERICS,
            **(next(iter(each.values())) if isinstance(self.problem, str) else {"problems": each}),
            "algorithms": [algorithm.settings() for algorithm in self.algorithms],
            "seeds": list(self.seeds),
            "check_replicas": self.check_replicas,
            "delta": self.delta,
            **_estimator_identity(self.estimator),
            "removed": self.problem_settings.get("removed", 0.0),
            **({} if self.samples is None else {"samples": list(self.samples)}),
            **those_given(measured_seeds=self.measured_seeds, test_examples=self.test_examples),
        }

    def with_selectors(self, *selectors: Selector) -> Study:
        """The same study with further selectors, trained as its last algorithm trains; those that it has already are left out.

        Args:
            selectors: at least one that is new.

        Returns:
            A study whose name has the names of what was added.

        Raises:
            UsageError: no selector, none that is new, or two different ones of one name.

        Example:
            >>> from stability import FineTuning
            >>> from stability.selectors import SAM, BitFit
            >>> study = Study("mine", "digits", (FineTuning(BitFit()),), seeds=(0,))
            >>> study.with_selectors(SAM(0.1), SAM(0.2)).name
            'mine+sam'
        """
        if not selectors:
            raise UsageError("there is no selector to add: give at least one")
        known = {key(algorithm.settings()) for algorithm in self.algorithms}
        added = {key(made.settings()): made for made in (replace(self.algorithms[-1], selector=mine) for mine in selectors)}
        new = [algorithm for name, algorithm in added.items() if name not in known]
        if not new:
            raise UsageError(f"study {self.name!r} has {', '.join(mine.name for mine in selectors)} with these settings already")
        names = dict.fromkeys(algorithm.name for algorithm in new)
        return replace(self, name="+".join([self.name, *names]), algorithms=(*self.algorithms, *new))

    def plot(self) -> Figure:
        """Draw what will be measured: each method at each p (:func:`stability.plotting.planned`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.planned(self))

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that an interrupted study holds whole curves and tables."""
        if self.samples is None:
            measured = self.seeds[: self.measured_seeds]
            return [
                Cell(replace(algorithm, seed=seed), None, problem, seed in measured)
                for seed in self.seeds
                for problem in self.problems
                for algorithm in self.algorithms
            ]
        # Each S has seeds of its own: a head's start common to all S would be mistaken for what they have in common.
        apart = max(self.seeds) + 1
        return [
            Cell(replace(algorithm, seed=seed + place * apart), sample, problem)
            for place, sample in enumerate(self.samples)
            for seed in self.seeds
            for problem in self.problems
            for algorithm in self.algorithms
        ]


@dataclass(frozen=True)
class Cell:
    """One algorithm with its seed, on one S.

    Attributes:
        algorithm: what is trained, with its seed.
        sample: the seed of S; None where it is the algorithm's.
        problem: which of the study's problems.
        measured: whether stability is measured, and not the losses and metrics of A(S) alone.
    """

    algorithm: Algorithm
    sample: int | None
    problem: str
    measured: bool = True

    def __str__(self) -> str:
        drawn = "" if self.sample is None else f", S {self.sample}"
        p = "" if self.algorithm.asked_sparsity is None else f" p={self.algorithm.asked_sparsity:g}"
        return f"{self.algorithm.name}{p} on {problems.short_name(self.problem)}, seed {self.algorithm.seed}{drawn}"


def _estimator_identity(estimator: Estimator) -> dict[str, Any]:
    """What the identity says of the estimator. The two plain ones are in it as they were before there were others."""
    if type(estimator) is Exact:
        return {"retrainings": None}
    if type(estimator) is Sampled and estimator.retrainings is not None and estimator.tolerance is None:
        return {"retrainings": estimator.retrainings}
    return {"retrainings": None, "estimator": estimator.settings()}


def cell_identity(study: Study, cell: Cell, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What defines a cell, as plain values: everything that changes its result.

    Args:
        study: the study.
        cell: one of its cells.
        identity: what ``study.identity()`` gives, which reads all data; by default it is asked.

    Returns:
        A dictionary that JSON can hold; the store finds a finished cell by it. ``data`` and ``how`` are digests of the problem's
        identity and of how it is measured, so that no cell passes for one of other data.
    """
    whole = study.identity() if identity is None else identity
    mine, task, data = cell.algorithm, problems.short_name(cell.problem), data_of(whole)
    return {
        "method": mine.name,
        "asked_sparsity": mine.asked_sparsity,
        "algorithm": mine.settings(),
        "seed": mine.seed,
        "data": data[None if None in data else task],
        "how": how_of(whole),
        **those_given(sample=cell.sample),
        **({} if None in data else {"task": task}),
        **({} if cell.measured else {"measured": False}),
    }
