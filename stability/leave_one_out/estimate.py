"""What leaving one out did: :class:`StabilityEstimate`, the value with its interval, and what it rests on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

from stability.leave_one_out.coverage import LEAST_COVERAGE, simulated_coverage
from stability.leave_one_out.estimators import Design, Estimator, Status
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import Estimate
from stability.leave_one_out.units import Units
from stability.training.replicas import Replicas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnostics", "StabilityEstimate", "Subject", "diagnosed", "finite", "poor", "trusted"]


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How well prediction and draws did; NaN where too little is known to tell.

    Attributes:
        correlation: Pearson's correlation of predicted and retrained |Δℓ_i|, over the retrained examples.
        rank_correlation: Spearman's correlation of the same.
        variance_cut: how many times smaller the variance of the estimate is than plain sampling's with as many retrainings. It is
            estimated from the same draws, and so too large where they missed what matters.
        effective_retrainings: how many retrainings plain sampling would need for the same variance.
        simulated_coverage: how often 95 % intervals held the truth in simulations of draws like these: with about this n, this
            correlation and as many retrainings (:func:`stability.leave_one_out.coverage.simulated_coverage`). NaN too where
            examples were drawn alike, or all were left out.
    """

    correlation: float
    rank_correlation: float
    variance_cut: float
    effective_retrainings: float
    simulated_coverage: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """What an estimate is of, in words: all that tables and figures say of it.

    Attributes:
        data: what the data are called; empty where they have no name.
        n: size of S.
        method: what the algorithm is called.
        training: how it trains, in a few words.
        loss_unit: of the losses.
        seed: of the algorithm.
        sparsity: p, of which Theorem 1 speaks; None where there is none.
        shown: what a person sees of each training example: images (n, height, width), or texts; None: its number.
        label: the label of a training example, by its index; empty where none is known.
        repeats: whether two trainings with one seed differ by no more than rounding.
    """

    data: str
    n: int
    method: str
    training: str
    loss_unit: str
    seed: int
    sparsity: float | None = None
    shown: Sequence[str] | Tensor | None = None
    label: Callable[[int], str]
    repeats: bool = True

    def example(self, i: int) -> str:
        """What a person reads of example ``i``: its text or number, and its label."""
        seen = f"example {i}" if self.shown is None or isinstance(self.shown, Tensor) else str(self.shown[i])
        label = self.label(i)
        return f"{seen} [{label}]" if label else seen


@dataclass(frozen=True, eq=False, kw_only=True)
class StabilityEstimate:
    """The leave-one-out stability of one algorithm on one training set, with all that it rests on.

    Attributes:
        pointwise: β₂, pointwise hypothesis stability, with its interval.
        hypothesis: β₁ = E_i |ℓ(A(Sⁱ), z) − ℓ(A(S), z)| averaged over the held-out z that were evaluated, with its interval over i.
        distance: mean_i ‖A(Sⁱ) − A(S)‖₂.
        mask_overlap: mean_i |M ∩ Mⁱ| / |M ∪ Mⁱ| of the masks M of S and Mⁱ of Sⁱ, the coordinates of the pretrained model that were
            selected. It is 1 where leaving an example out changes no mask; NaN where there are no masks.
        maximum: the largest |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| found: a lower estimate of uniform stability.
        noise_floor: mean_i |ℓ(A(S), z_i) − ℓ(A(S)', z_i)| between two runs that would agree in exact arithmetic. A(S) is trained
            alone, and A(S)' among the first left-out ones, with the examples of each batch in reverse order. The floor is what
            rounding does, as on another device. With a reduced precision, which A(S) alone never has, it is what that does in
            the mean; a single example may be moved ten times as much. It is never below ε · mean_i |ℓ(A(S), z_i)|, the precision
            of the numbers that hold the losses. A stability below the floor is not a result. A loop of one's own is trained on S
            twice in the same way, and the floor holds what its seed does not decide.
        estimator: ``exact`` (every i was left out), ``sampled``, ``assisted`` or ``approximate``.
        status: how the estimate ended, such as "within tolerance".
        tolerance: the relative half-width of the interval that was asked for; None where none was.
        n: size of S.
        units: what was done to S (:mod:`stability.perturbations`), ``units.count`` times in all: n times where each example is left
            out, and otherwise once for each group or part. Where this says "example" or i, it then means such a unit.
        k: how many coordinates of the pretrained model were selected; None for a loop of one's own, as are m, head and replicas.
        m: how many coordinates the pretrained model has, or its equivalent where modules were inserted; p = k/m.
        head: coordinates of the new head, all of which may change.
        retrainings: how many i were left out.
        failed: those that diverged or stopped short of their minimum, as {i: step}; they enter no average. A loop of one's own
            has no steps, 0 stands there, and a note says why.
        seconds: wall-clock time of selection, training and evaluation.
        retraining_seconds: of these, those of training the left-out models, and of selecting those of their masks that the
            prediction had not asked for already. Their losses are not among them.
        threads: how many threads each operation took (:mod:`stability.training.threads`).
        steps_shared: steps of replicas that were not computed, because the replicas began as one.
        per_example: a row for each i left out, in the order in which they were drawn: index, loss_full, loss_left_out,
            difference (left out − full), distance ‖A(Sⁱ) − A(S)‖₂, mask_changes (coordinates of A(S)'s mask that Sⁱ's
            lacks), failed_step (−1: none). What a loop of one's own does not have is NaN.
        prediction: what A(S) alone predicted of all n, where the estimator predicts.
        diagnostics: what that was worth.
        notes: what else should be known, a sentence each.
        replicas: the trained models, A(S) first.
        reason: which estimator :class:`~stability.estimators.Auto` chose, and why; empty where it was asked for.
        budget_spent: whether the seconds that were allowed ended it before the estimator had enough.
        loop: what was trained, where it was a loop of one's own (:func:`stability.measure_loop`).
    """

    pointwise: Estimate
    hypothesis: Estimate
    distance: float
    mask_overlap: float
    maximum: float
    noise_floor: float
    estimator: str
    status: Status
    tolerance: float | None
    n: int
    units: Units
    k: int | None
    m: int | None
    head: int | None
    retrainings: int
    failed: dict[int, int]
    seconds: float
    retraining_seconds: float
    threads: int
    steps_shared: int
    per_example: pd.DataFrame
    prediction: Prediction | None
    diagnostics: Diagnostics
    notes: tuple[str, ...]
    replicas: Replicas | Any  # None for a loop of one's own; whoever has measured a problem need not ask
    reason: str = ""
    budget_spent: bool = False
    loop: Subject | None = None

    @property
    def value(self) -> float:
        """β₂, the pointwise hypothesis stability of this S and seed."""
        return self.pointwise.value

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of β₂, on this S with this seed."""
        return self.pointwise.interval

    @property
    def sparsity(self) -> float:
        """The fraction of pretrained parameters that may change in A(S), p = k/m; NaN for a loop of one's own."""
        return math.nan if self.k is None or self.m is None else self.k / self.m

    @property
    def subject(self) -> Subject:
        """What was measured, in words."""
        if self.loop is not None:
            return self.loop
        problem, algorithm = self.replicas.problem, self.replicas.algorithm
        return Subject(
            data=problem.name,
            n=problem.n,
            method=algorithm.name,
            training=algorithm.describe(),
            loss_unit=problem.loss_unit,
            seed=algorithm.seed,
            sparsity=algorithm.sparsity_for(self.replicas.masks[0]),
            shown=problem.shown,
            label=problem.label,
        )

    def examples(self) -> pd.DataFrame:
        """The examples of which something is known, the one that carries most of the stability first; or the groups or parts.

        Returns:
            Columns index; name, of groups and parts only; loss_full, ℓ(A(S), z_i); predicted and retrained, Δℓ_i or NaN where
            there is none; and share, the example's part of the stability, |Δℓ_i| / (n β₂), with the number of groups for n where
            groups are left out. The share is that of the retrained difference where there is one, and otherwise of the predicted
            one, which may be wrong by a factor.
        """
        table = self.per_example.set_index("index")[["loss_full", "difference"]].rename(columns={"difference": "retrained"})
        if self.prediction is None:
            table["predicted"] = np.nan
        else:
            predicted = self.prediction.table.set_index("index")
            table = predicted[["loss_full"]].join(table[["retrained"]]).assign(predicted=predicted["difference"])
        known = table["retrained"].fillna(table["predicted"]).abs()
        table = table.assign(share=known / (self.units.count * self.value)).loc[
            known.sort_values(ascending=False, kind="stable").index
        ]
        table = table.reset_index()[["index", "loss_full", "predicted", "retrained", "share"]]
        if self.units.names is not None:
            table.insert(1, "name", [self.units.names[unit] for unit in table["index"]])
        return table

    def plot(self) -> Figure:
        """Draw how much each example's loss changes, predicted and retrained (:func:`stability.plotting.differences`).

        Returns:
            The figure, closed in pyplot: a notebook shows it once.
        """
        from stability import plotting  # see the contract of import-linter in pyproject.toml

        return plotting.closed(plotting.differences(self))

    def __repr__(self) -> str:
        (low, high), u = self.interval, self.units.count
        every = f"n={u}" if self.units.names is None else f"{u} {self.units.words.plural}"
        return (
            f"StabilityEstimate(value={self.value:.4g}, interval=({low:.4g}, {high:.4g}), {self.estimator} ({self.status}), "
            f"{self.retrainings} of {every}, failed={len(self.failed)}, noise_floor={self.noise_floor:.2g})"
        )

    def _repr_html_(self) -> str:
        from stability.leave_one_out.notebook import as_html  # which is made of this class

        return as_html(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold: an unbounded end is None, and k and m are called ``tunable`` and ``total``.

        ``units`` is how many examples, groups or parts there are, and ``names`` are those of groups and parts, by their index.
        """
        left_out = ("replicas", "loop", "units", "pointwise", "hypothesis", "k", "m")
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        predicted = self.prediction
        return plain | {
            "perturbation": self.units.words.perturbation,
            "units": self.units.count,
            "names": None if self.units.names is None else list(self.units.names),
            **({} if self.units.fraction is None else {"fraction": self.units.fraction}),
            "tunable": self.k,
            "total": self.m,
            "value": self.value,
            "interval": _ends(self.interval),
            "confidence": self.pointwise.confidence,
            "error": finite(self.pointwise.error),
            "hypothesis": {"value": finite(self.hypothesis.value), "interval": _ends(self.hypothesis.interval)},
            **{name: finite(getattr(self, name)) for name in ("distance", "mask_overlap", "maximum", "noise_floor")},
            "notes": list(self.notes),
            "diagnostics": {name: finite(value) for name, value in dataclasses.asdict(self.diagnostics).items()},
            "prediction": predicted
            and {
                "by": predicted.by,
                "seconds": predicted.seconds,
                "nonlinearity": finite(predicted.nonlinearity),
                "difference": [finite(d) for d in predicted.table["difference"]],
            },
            "failed": {str(i): step for i, step in self.failed.items()},
            "per_example": self.per_example.astype(object).where(self.per_example.notna(), None).to_dict("records"),
        }


def poor(found: Diagnostics, retrainings: int, n: int) -> bool:
    """Whether the prediction is too poor for so few draws: intervals of draws like these held the truth too seldom in simulations.

    Args:
        found: how well it did.
        retrainings: how many examples were left out; where all were, the prediction no longer matters.
        n: size of S.
    """
    return found.simulated_coverage < LEAST_COVERAGE and retrainings < n


def trusted(found: Estimate, estimator: Estimator, known: Diagnostics, design: Design) -> Estimate:
    """What an estimator with a tolerance is told of an estimate.

    The interval may be too narrow to stop at. It has no upper end then, so that the estimator goes on:

    - where intervals of draws like these failed in simulations, or none was simulated;
    - where the draws were worth less than plain ones;
    - where they are plain, because the prediction was of no use, and fewer than 40;
    - where there are fewer than the estimator wanted before its first look.

    Args:
        found: the estimate.
        estimator: is told.
        known: how well prediction and draws did.
        design: how examples were drawn.
    """
    n, count = found.population, found.count
    if design.draws is None:
        badly = estimator.predicts and count < _PLAIN
    else:
        badly = not known.simulated_coverage >= LEAST_COVERAGE or known.variance_cut < 1
    if count == n or not (badly or count < estimator.more(n, 0, None)):
        return found
    return dataclasses.replace(found, interval=(found.interval[0], math.inf))


_PLAIN = 40  # plain draws from which intervals hold in nine settings of ten (docs/findings/estimators.md)


def diagnosed(table: pd.DataFrame, design: Design, pointwise: Estimate, prediction: Prediction | None) -> Diagnostics:
    """How well the prediction and the draws did.

    Args:
        table: the retrained examples, with ``index`` and ``difference``.
        design: how they were drawn.
        pointwise: the estimate of β₂.
        prediction: of all n, where one was made.
    """
    measured = table["difference"].abs().to_numpy(dtype=np.float64)
    correlation = rank_correlation = math.nan
    if prediction is not None and len(measured):
        both = np.stack([prediction.sizes[table["index"].to_numpy(dtype=np.int64)], measured])
        both = both[:, np.isfinite(both).all(0)]
        if both.shape[1] > 2 and (np.ptp(both, axis=1) > 0).all():
            correlation = float(stats.pearsonr(*both).statistic)
            rank_correlation = float(stats.spearmanr(*both).statistic)
    n, a = len(design.order), pointwise.count
    coverage = math.nan if design.draws is None or a == n else simulated_coverage(n, a, correlation)
    made = partial(Diagnostics, correlation=correlation, rank_correlation=rank_correlation, simulated_coverage=coverage)
    if a == n:
        return made(variance_cut=math.nan, effective_retrainings=float(n))
    spread = math.nan
    if not math.isnan(pointwise.error) and pointwise.error > 0:
        spread = (design.mean(measured**2, pointwise.confidence, power=2).value - pointwise.value**2) * n / (n - 1)
    if not spread > 0:
        return made(variance_cut=math.nan, effective_retrainings=math.nan)
    cut = spread / a * (1 - a / n) / pointwise.error**2
    return made(variance_cut=cut, effective_retrainings=spread / (pointwise.error**2 + spread / n))


def _ends(interval: tuple[float, float]) -> list[float | None]:
    return [finite(end) for end in interval]


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None where it is unknown or unbounded.

    Args:
        value: the number.

    Example:
        >>> finite(0.5), finite(math.inf)
        (0.5, None)
    """
    return value if math.isfinite(value) else None
