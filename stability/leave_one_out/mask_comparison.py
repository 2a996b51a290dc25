"""The masks of several selectors beside each other, of several seeds, and without each of some examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch

from stability.checks import check_choice, check_kind, check_whole
from stability.errors import MeasurementError, UsageError
from stability.leave_one_out.estimators import Sampled
from stability.leave_one_out.notebook import table_html
from stability.leave_one_out.retraining import MasksOfUnits
from stability.leave_one_out.units import SingleExamples
from stability.machine import resolve_device
from stability.masks import Mask
from stability.problems.problem import Problem
from stability.selectors import Selector, overlap_by_chance, shares
from stability.selectors.comparing import Grouping
from stability.selectors.scored import sharing_evidence
from stability.training import Algorithm, FineTuning
from stability.training.descent import Progress
from stability.training.naming import named_apart
from stability.training.progress import Stages, stages
from stability.training.replicas import train
from stability.training.threads import suited_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MaskComparison", "compare_masks"]

_SHOWN = 3  # examples that change a mask most

Compared: TypeAlias = Selector | Algorithm
"""Whose masks are compared: a selector, or an algorithm whose training finds them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskComparison:
    """The masks of several selectors on one training set S: where they are, and how much they have in common.

    The *overlap* of two masks A and B is Jaccard's, |A ∩ B| / |A ∪ B| (:meth:`stability.Mask.overlap`). Printed, the comparison is
    a table.

    Attributes:
        masks: the masks by selector and seed.
        overlaps: a row for each two selectors and each seed: ``seed``, ``first``, ``second``; ``overlap``;
            ``by_chance``, that of random masks of the same sizes; and ``by_chance_in_tensors``, that of random masks with as many
            coordinates in each tensor as these two (:func:`stability.selectors.overlap_by_chance`). NaN where a method inserts
            modules, so that the two choose from different tensors.
        between_seeds: a row for each selector and each two of its seeds: ``selector``, ``first``, ``second``, ``overlap``.
        without: a row for each selector that uses S, each seed and each example that was left out: ``selector``, ``seed``,
            ``index``, ``overlap``, that of the mask of S with that of Sⁱ; NaN where the training without it failed.
        rounding: a row for each such selector whose masks are found during training, and each seed: ``selector``, ``seed``,
            ``overlap``, that of the mask of S with that of the same training, where the examples of each batch come in
            reverse order. What is no less in ``without`` may be rounding.
        left_out: the examples that were left out, ascending.
        uses_data: by selector, whether its mask depends on S. Where it does not, the masks of S and Sⁱ are the same by definition,
            and nothing is computed.
        n: size of S.
        problem: the name of the problem.
        shapes: the shape of each pretrained tensor of the problem, by name, before a method inserts modules.

    Example:
        >>> from stability import load
        >>> from stability.selectors import SAM, Random
        >>> found = compare_masks(load("digits", n=20), [Random(0.01), SAM(0.01)], left_out=5)
        >>> found.table()[["selector", "k", "uses_data"]].to_dict("records")
        [{'selector': 'random', 'k': 264, 'uses_data': False}, {'selector': 'sam', 'k': 264, 'uses_data': True}]
    """

    masks: Mapping[str, Mapping[int, Mask]]
    overlaps: pd.DataFrame
    between_seeds: pd.DataFrame
    without: pd.DataFrame
    rounding: pd.DataFrame
    left_out: tuple[int, ...]
    uses_data: Mapping[str, bool]
    n: int
    problem: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def selectors(self) -> tuple[str, ...]:
        """What the selectors are called."""
        return tuple(self.masks)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, which all selectors share."""
        return tuple(next(iter(self.masks.values())))

    def shares(self, by: Grouping = "layer") -> pd.DataFrame:
        """Where the coordinates of each mask are, in the mean over seeds.

        Args:
            by: ``layer``, ``type`` or ``tensor``, as for :func:`stability.selectors.shares`.

        Returns:
            The columns of :func:`stability.selectors.shares`, after ``selector``.
        """
        parts = []
        for name, masks in self.masks.items():
            first, *others = (shares(mask, by) for mask in masks.values())
            means = sum((other[_MEANS] for other in others), first[_MEANS]) / len(masks)
            parts.append(first.assign(**{column: means[column] for column in _MEANS}))
            parts[-1].insert(0, "selector", name)
        return pd.concat(parts, ignore_index=True)

    def matrix(self, column: str = "overlap") -> pd.DataFrame:
        """The overlap of each two selectors, in the mean over seeds.

        Args:
            column: of :attr:`overlaps`: ``overlap``, ``by_chance`` or ``by_chance_in_tensors``.

        Returns:
            A row and a column for each selector; 1 on the diagonal.

        Raises:
            UsageError: there is no such column.
        """
        check_choice(_OVERLAPS[3:], column=column)
        table = pd.DataFrame(math.nan, index=list(self.masks), columns=list(self.masks))
        for (first, second), mine in self.overlaps.groupby(["first", "second"]):
            table.loc[first, second] = table.loc[second, first] = mine[column].mean()
        for name in self.masks:
            table.loc[name, name] = 1.0
        return table

    def by_example(self) -> pd.DataFrame:
        """The overlap of the masks of S and Sⁱ, in the mean over seeds.

        Returns:
            A row for each example i that was left out, by its index, and a column for each selector that uses S.
        """
        names = [name for name in self.masks if self.uses_data[name]]
        return self.without.pivot_table(index="index", columns="selector", values="overlap", sort=False).reindex(
            index=list(self.left_out), columns=names
        )

    def table(self) -> pd.DataFrame:
        """A row for each selector.

        Returns:
            Columns ``selector``; ``k``, the number of coordinates, in the mean over seeds; ``sparsity``, k / m; ``uses_data``;
            ``seeds_mean`` and ``seeds_least``, the mean and the least overlap of the masks of two seeds; ``left_out_mean`` and
            ``left_out_least``, those of the masks of S and Sⁱ over examples and seeds, 1 where S is not used; ``rounding``, the
            mean overlap that rounding alone leaves, where masks are found during training; and ``most``, the three examples
            that change the mask most, in the mean over seeds. NaN where nothing of it was asked for.
        """
        seeds, without = (found.groupby("selector")["overlap"].agg(["mean", "min"]) for found in (self.between_seeds, self.without))
        rounding = self.rounding.groupby("selector")["overlap"].mean()
        each, rows = self.by_example(), []
        for name, masks in self.masks.items():
            unchanged = (1.0, 1.0) if self.left_out and not self.uses_data[name] else (math.nan, math.nan)
            row: dict[str, Any] = {"selector": name, "k": sum(mask.count for mask in masks.values()) / len(masks)}
            row |= {"sparsity": sum(mask.sparsity for mask in masks.values()) / len(masks), "uses_data": self.uses_data[name]}
            row["seeds_mean"], row["seeds_least"] = seeds.loc[name] if name in seeds.index else (math.nan, math.nan)
            row["left_out_mean"], row["left_out_least"] = without.loc[name] if name in without.index else unchanged
            row["rounding"] = rounding.get(name, math.nan)
            changed = each[name][each[name] < 1].nsmallest(_SHOWN) if name in each else each.index[:0].to_series()
            rows.append(row | {"most": tuple(int(i) for i in changed.index)})
        table = pd.DataFrame(rows)
        whole = (table["k"] % 1 == 0).all()
        return table.astype({"k": int}) if whole else table

    def sentences(self) -> list[str]:
        """What the table does not say, a sentence each."""
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"
        lines = [f"Problem {self.problem}, n = {self.n}, {seeds}. Overlap of two masks: |A ∩ B| / |A ∪ B|."]
        if len(self.seeds) > 1:
            lines.append("seeds: the overlap of the masks of two seeds.")
        if self.left_out:
            every = f"all {self.n}" if len(self.left_out) == self.n else f"{len(self.left_out)} of {self.n}"
            lines.append(f"left out: the overlap of the mask of all examples with that without one of them, for {every} examples.")
            if fixed := [name for name in self.masks if not self.uses_data[name]]:
                lines.append(f"It is 1 by definition where the training set is not used: {', '.join(fixed)}.")
            if len(self.rounding):
                lines.append(
                    "rounding: the same, with all examples, where those of each batch come in reverse order; – without training."
                )
            if lost := int(self.without["overlap"].isna().sum()):
                lines.append(f"{lost} trainings without an example failed, and count in no mean.")
        return lines

    def plot(self) -> Figure:
        """Draw where the masks are, what they have in common and how they change (:func:`stability.plotting.masks`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.masks(self))

    def __str__(self) -> str:
        return "\n".join([self._rows().to_string(index=False), "", *self.sentences()])

    def __repr__(self) -> str:
        return f"MaskComparison({', '.join(self.masks)}; problem={self.problem}, seeds={list(self.seeds)})"

    def _repr_html_(self) -> str:
        return table_html(self._rows()) + "".join(f"<p>{escape(one)}</p>" for one in self.sentences())

    def _rows(self) -> pd.DataFrame:
        """The table as text."""
        found = self.table()
        shown = [found["selector"], found["k"].map("{:,.0f}".format), found["sparsity"].map("{:.3g}".format)]
        heads = ["selector", "k", "p"]
        for what, of in (("seeds", "seeds"), ("left out", "left_out")):
            if found[f"{of}_mean"].notna().any():
                shown += [found[f"{of}_{which}"].map(_number) for which in ("mean", "least")]
                heads += [f"{what}: mean", "least"]
        if len(self.rounding):
            shown.append(found["rounding"].map(_number))
            heads.append("rounding")
        if found["most"].map(len).any():
            shown.append(found["most"].map(lambda most: ", ".join(map(str, most)) or "–"))
            heads.append("changed most by")
        return pd.concat(shown, axis=1).set_axis(heads, axis=1)


_MEANS = ["chosen", "density", "share"]
_OVERLAPS = ("seed", "first", "second", "overlap", "by_chance", "by_chance_in_tensors")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def compare_masks(
    problem: Problem,
    selectors: Sequence[Compared] | Mapping[str, Compared],
    *,
    seeds: int | Sequence[int] = 1,
    left_out: int | None = None,
    device: str | torch.device = "auto",
    progress: bool | Progress = False,
    **training: Any,
) -> MaskComparison:
    """Compare the masks of several selectors on one training set: with each other, between seeds, and without single examples.

    A mask of Sⁱ, S without z_i, is that which :func:`stability.measure` trains with. Masks that are found during training are those
    of replicas: S and every Sⁱ are trained together, with the same start and the same batches. S is then trained once more, to see
    what rounding alone does.

    Args:
        problem: what is to be learned.
        selectors: the selectors, or algorithms with their own training; as a mapping, by what they are called. Otherwise they are
            called by their names, with those settings in which selectors of one name differ.
        seeds: how many, or which. A seed is that of the selection, of the head's start and of the training; S stays.
        left_out: how many examples are left out, by default all n; 0 for none. They are the same for all selectors, drawn as
            :class:`~stability.estimators.Sampled` draws them, with the first seed.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: True shows what is being done, as for :func:`stability.measure`.
        training: settings of :class:`stability.FineTuning`, such as ``steps=100``, for all selectors that are no algorithms. They
            matter where masks are found during training.

    Returns:
        The comparison.

    Raises:
        UsageError: no selector, two of one name, no seed, more examples to leave out than there are, or what a selector refuses.
        MeasurementError: a training on S failed, so that it found no mask.

    Example:
        >>> from stability import load
        >>> from stability.selectors import SNIP, Gradient, TrainedMagPruning
        >>> selectors = [Gradient(0.01), SNIP(0.01), TrainedMagPruning(0.01, burn_in=2)]
        >>> found = compare_masks(load("digits", n=20), selectors, seeds=2, left_out=5, steps=3)
        >>> found.overlaps.columns.tolist()
        ['seed', 'first', 'second', 'overlap', 'by_chance', 'by_chance_in_tensors']
        >>> len(found.overlaps), len(found.between_seeds), len(found.without)
        (6, 3, 30)
    """
    check_kind(Problem, "a problem, such as stability.load('digits')", problem=problem)
    algorithms = {name: one.with_defaults(problem.training) for name, one in _named(selectors, training).items()}
    if isinstance(seeds, (int, Integral)):
        check_whole(1, seeds=seeds)
        seeds = range(int(seeds))
    check_kind(Iterable, "how many seeds, or a list of seeds", seeds=seeds)
    seeds = tuple(seeds)
    for seed in seeds:
        check_whole(0, seed=seed)
    seeds = tuple(map(int, seeds))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds = {list(seeds)}: give at least one, and each once")
    count = problem.n if left_out is None else left_out
    check_whole(0, problem.n, f"the training set has {problem.n} examples", left_out=count)
    if count and problem.n < 2:
        raise UsageError(f"n = {problem.n} training examples: leaving one out needs n ≥ 2; use left_out=0")
    chosen = sorted(Sampled().design(problem.n, seeds[0], None).order[:count].tolist())
    problem = problem.to(resolve_device(device))
    if count:
        problem.check_independence()
    masks: dict[str, dict[int, Mask]] = {}
    without: list[dict[str, Any]] = []
    rounding: list[dict[str, Any]] = []
    with stages(progress) as told:
        for seed in seeds:
            with sharing_evidence(problem):
                for name, algorithm in algorithms.items():
                    some = chosen if algorithm.selector.uses_data else []
                    mask, others, again = _found(problem, replace(algorithm, seed=seed), some, told)
                    known = masks.setdefault(name, {})
                    known[seed] = next((other for other in known.values() if other.equals(mask)), mask)  # large ones are kept once
                    rows = zip(some, others, strict=True)
                    without += [{"selector": name, "seed": seed, "index": i, "overlap": overlap} for i, overlap in rows]
                    rounding += [{"selector": name, "seed": seed, "overlap": overlap} for overlap in again]
        for table in (without, rounding):
            table.sort(key=lambda row: list(algorithms).index(row["selector"]))
        told.begin("comparing the masks")
        return MaskComparison(
            masks=masks,
            overlaps=_overlaps(masks, seeds),
            between_seeds=_between_seeds(masks, seeds),
            without=pd.DataFrame(without, columns=["selector", "seed", "index", "overlap"]).astype({"overlap": float}),
            rounding=pd.DataFrame(rounding, columns=["selector", "seed", "overlap"]).astype({"overlap": float}),
            left_out=tuple(chosen),
            uses_data={name: algorithm.selector.uses_data for name, algorithm in algorithms.items()},
            n=problem.n,
            problem=problem.name,
            shapes={name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()},
        )


def _named(selectors: Sequence[Compared] | Mapping[str, Compared], training: Mapping[str, Any]) -> dict[str, Algorithm]:
    """The algorithm by which each mask is found, by what it is called."""
    if isinstance(selectors, (Selector, Algorithm)):
        raise UsageError(f"selectors = {selectors.name}: give a list, such as [SAM(0.05), SNIP(0.05)]")
    given = list(selectors.values()) if isinstance(selectors, Mapping) else list(selectors)
    if not given:
        raise UsageError("no selector: give a list such as [SAM(0.05), SNIP(0.05)]")
    for one in given:
        check_kind((Selector, Algorithm), "a selector of stability.selectors, such as SAM(0.05), or an algorithm", selector=one)
    made = [one if isinstance(one, Algorithm) else FineTuning(one, **training) for one in given]
    names = list(selectors) if isinstance(selectors, Mapping) else named_apart(made)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two selectors are called {twice[0]!r}: give selectors that differ, or name them: {{'first': …}}")
    return dict(zip(names, made, strict=True))


def _found(problem: Problem, algorithm: Algorithm, left_out: Sequence[int], told: Stages) -> tuple[Mask, list[float], list[float]]:
    """The mask of S, its overlap with that of each Sⁱ, and where it is found during training the one that rounding leaves."""
    problem, units = algorithm.equivalent(problem), SingleExamples(problem.n)
    with suited_to(problem, algorithm):
        if not algorithm.selector.moving:
            own, *others = MasksOfUnits(problem, algorithm, units, reselect=True, told=told).of(left_out)
            return own, [own.overlap(other) for other in others], []
        weights = torch.cat([torch.ones(1, problem.n), units.weights(torch.tensor(left_out, dtype=torch.int64))])
        steps = len(weights) * algorithm.max_steps if algorithm.stepwise else None
        told.begin(f"training by which {algorithm.name} finds its masks", steps)
        replicas = train(problem, algorithm, weights, progress=told)
        again = []
        if left_out:
            told.begin(f"training {algorithm.name} once more, to see what rounding does", algorithm.max_steps)
            again = [train(problem, algorithm, weights[:1], reverse_batches=True, progress=told)]
    failed = replicas.failed_step.tolist()
    if failed[0] >= 0:
        raise MeasurementError(f"{algorithm.name} found no mask, for its training {replicas.algorithm.failure(failed[0])}")
    own, *others = replicas.masks
    changed = [own.overlap(other) if step < 0 else math.nan for other, step in zip(others, failed[1:], strict=True)]
    return own, changed, [own.overlap(one.masks[0]) for one in again]


def _overlaps(masks: Mapping[str, Mapping[int, Mask]], seeds: Sequence[int]) -> pd.DataFrame:
    rows = []
    for seed in seeds:
        for first, second in combinations(masks, 2):
            one, other = masks[first][seed], masks[second][seed]
            chance = overlap_by_chance(one, other), overlap_by_chance(one, other, within="tensor")
            rows.append((seed, first, second, one.overlap(other), *chance))
    return pd.DataFrame(rows, columns=list(_OVERLAPS)).astype(dict.fromkeys(_OVERLAPS[3:], float))


def _between_seeds(masks: Mapping[str, Mapping[int, Mask]], seeds: Sequence[int]) -> pd.DataFrame:
    rows = [(name, *two, mine[two[0]].overlap(mine[two[1]])) for name, mine in masks.items() for two in combinations(seeds, 2)]
    return pd.DataFrame(rows, columns=["selector", "first", "second", "overlap"]).astype({"overlap": float})
