"""An estimate in words, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stability.bounds.base import Assumption, Bound
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Status
from stability.problems.metrics import commonest_class
from stability.problems.problem import Problem
from stability.training import Algorithm
from stability.training.replicas import Replicas

__all__ = ["metrics_of", "named_examples", "show_bounds", "show_estimate", "show_examples", "signed"]


def show_estimate(problem: Problem, algorithm: Algorithm, estimate: StabilityEstimate, metrics: Mapping[str, float]) -> None:
    """Print an estimate, a line a fact, and then what should not be overlooked.

    Args:
        problem: the problem that was learned.
        algorithm: the algorithm whose stability was measured.
        estimate: what was measured.
        metrics: the metric of A(S) by split, from :func:`metrics_of`.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> problem, algorithm = load("digits", n=20), FineTuning(selectors.BitFit(), steps=2)
        >>> estimate = measure(problem, algorithm, estimators.Sampled(2), device="cpu")
        >>> trained = estimate.replicas.algorithm
        >>> show_estimate(problem, trained, estimate, {"test": 0.25})  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        stability E_i|Δℓ_i|  ... nats
        ...
    """
    low, high = estimate.interval
    rows = {
        "stability E_i|Δℓ_i|": f"{estimate.value:.4g} {problem.loss_unit}",
        f"{estimate.pointwise.confidence:.0%} interval": _interval(low, high),
        "noise floor": _number(estimate.noise_floor, ".2g"),
        "estimator": f"{estimate.estimator}, {estimate.retrainings} of n = {estimate.n} left out, {len(estimate.failed)} failed"
        f"; {_STATUS.get(estimate.status, estimate.status)}",
        **_predicted(estimate),
        "change of test losses": _number(estimate.hypothesis.value),
        "largest |Δℓ_i|": _number(estimate.maximum),
        "tunable": f"k = {estimate.k} of m = {estimate.m} (p = {estimate.sparsity:.4g}), head {estimate.head}",
        problem.metric_name: ", ".join(f"{split} {value:.4f}" for split, value in metrics.items()),
        "trained": algorithm.describe(),
        "seconds": f"{estimate.seconds:.1f}{_spared(estimate)}",
    }
    if (p := algorithm.sparsity_for(estimate.replicas.masks[0])) != estimate.sparsity:
        rows["p of Theorem 1"] = f"{p:.4g} = 1 − λ, for every coordinate may change"
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:>{width}}  {text}")
    for note in estimate.notes:
        print(f"\nNote: {note}.")
    if estimate.failed:
        which = ", ".join(f"example {i} at step {step}" for i, step in estimate.failed.items())
        print(f"\nFailed with seed {algorithm.seed} and left out of every average: {which}.")
    if estimate.retrainings == 1 < estimate.n:
        print("\nOne retraining tells nothing of the spread: the interval has no upper end. Use --retrainings 10 or more.")
    if estimate.value <= estimate.noise_floor:
        print("\nThe value is not above its noise floor: it is not a result.")


_STATUS = {
    Status.EXACT: "every one",
    Status.TOLERANCE_NOT_MET: (
        "the tolerance is not met with as many as were allowed: give more --retrainings, or a larger --tolerance"
    ),
    Status.APPROXIMATE: "a prediction, of unknown error",
}


def _spared(estimate: StabilityEstimate) -> str:
    """The share of steps that replicas had in common, in words; empty where they had none."""
    if not estimate.steps_shared:
        return ""
    every = (estimate.retrainings + 1) * estimate.replicas.algorithm.max_steps
    return f"; {estimate.steps_shared / every:.1%} of the steps were common to several replicas, and taken once"


def _number(value: float, form: str = ".4g") -> str:
    return "not measured" if math.isnan(value) else format(value, form)


def _interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "none"
    return "exact for this S and seed" if low == high else f"{low:.4g} … {high:.4g}"


def _predicted(estimate: StabilityEstimate) -> dict[str, str]:
    """What was predicted, and how well, as lines of the report."""
    if estimate.prediction is None:
        return {}
    found, predicted = estimate.diagnostics, estimate.prediction
    rows = {"predicted": f"{predicted.mean:.4g} by {predicted.by}, in {predicted.seconds:.1f} s"}
    if not math.isnan(found.correlation):
        worth = f"correlation {found.correlation:.2f}, of ranks {found.rank_correlation:.2f}"
        if not math.isnan(found.variance_cut):
            worth += f"; worth {found.effective_retrainings:.0f} plain retrainings (variance cut {found.variance_cut:.3g})"
        rows["prediction against retraining"] = worth
    return rows


def metrics_of(problem: Problem, replicas: Replicas) -> dict[str, float]:
    """The metric of A(S) on every split, and on the test split that of always answering with the class that is commonest in S.

    Args:
        problem: the problem that was learned.
        replicas: the trained models, A(S) first.

    Returns:
        The metric by the name of the split; ``commonest class on test`` where the problem has classes.
    """
    splits = {"test": problem.test, "validation": problem.validation, "train": problem.train}
    device, first = replicas.values.device, slice(0, 1)
    logits = {name: replicas.logits(some.to(device), first)[0].cpu() for name, some in splits.items() if some is not None}
    found = {name: problem.metric(mine, getattr(problem, name).labels) for name, mine in logits.items()}
    if not problem.train.labels.is_floating_point() and (outputs := logits["test"].shape[1]) > 1:
        constant = commonest_class(problem.train.labels, outputs, len(problem.test))
        found["commonest class on test"] = problem.metric(constant, problem.test.labels)
    return found


def named_examples(problem: Problem, estimate: StabilityEstimate, count: int) -> list[dict[str, Any]]:
    """The examples that carry most of the stability.

    Args:
        problem: the problem that was learned.
        estimate: what was measured.
        count: how many examples.

    Returns:
        Of each example the columns of :meth:`stability.StabilityEstimate.examples`, and as ``shown`` what a person sees of it.
    """
    found = estimate.examples().head(count).to_dict("records")
    rows: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in found]
    for row in rows:
        i = int(row["index"])
        seen = problem.shown[i] if problem.shown is not None and not isinstance(problem.shown, torch.Tensor) else f"example {i}"
        row["shown"] = f"{seen} [{problem.label(i)}]"
    return rows


def signed(value: float) -> str:
    """A number with its sign, or a dash for NaN.

    Args:
        value: the number.

    Example:
        >>> signed(0.25), signed(float("nan"))
        ('+0.25', '–')
    """
    return "–" if math.isnan(value) else f"{value:+.3g}"


def show_bounds(found: Mapping[str, Bound], notes: Sequence[str] = ()) -> None:
    """Print a line for each bound, and then each assumption once, with the bounds that make it.

    Args:
        found: the bounds by name.
        notes: what else should not be overlooked.
    """
    made: dict[Assumption, list[str]] = {}
    for name, bound in found.items():
        print(f"{name}: {bound}")
        if bound.reason:
            print(f"  {bound.reason}")
        for assumption in bound.assumptions:
            made.setdefault(assumption, []).append(name)
    print("assumptions:")
    for assumption, names in made.items():
        state = {True: "held", False: "FAILED", None: "not checked"}[assumption.held]
        print(f"  {state:>11}: {assumption.name} ({assumption.detail}) [{', '.join(names)}]")
    for note in notes:
        print(f"  {note}")


def show_examples(rows: Sequence[Mapping[str, Any]], n: int) -> None:
    """Print a line for each of the examples that carry most of the stability.

    Args:
        rows: of :func:`named_examples`.
        n: the number of training examples.
    """
    print(f"\nThe examples that carry most of it (share; of what was not retrained, as predicted), of {n}:")
    for row in rows:
        print(f"  {row['share']:4.0%}  Δℓ {signed(row['retrained'])} (predicted {signed(row['predicted'])})  {row['shown']}")
