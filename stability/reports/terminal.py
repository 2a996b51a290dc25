"""An estimate in words, for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stability.bounds.base import Assumption, Bound
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Status
from stability.leave_one_out.units import SingleExamples, Units
from stability.leave_one_out.wording import amount, doubts, duration, remedy, sentence
from stability.masks import Mask
from stability.problems.metrics import commonest_class
from stability.problems.problem import Problem
from stability.selectors import shares
from stability.selectors.comparing import Grouping
from stability.training import Algorithm
from stability.training.replicas import Replicas
from stability.training.threads import suited_to

__all__ = ["metrics_of", "settling", "show_bounds", "show_estimate", "show_examples", "show_loop", "show_shares", "signed"]


def show_estimate(
    problem: Problem,
    algorithm: Algorithm,
    estimate: StabilityEstimate,
    metrics: Mapping[str, float],
    *,
    verbose: bool = False,
    width: int = 100,
) -> None:
    """Print an estimate: the answer in a sentence, the facts in a table, and what should not be overlooked.

    Args:
        problem: the problem that was learned.
        algorithm: the algorithm whose stability was measured.
        estimate: what was measured.
        metrics: the metric of A(S) by split, from :func:`metrics_of`.
        verbose: whether diagnostics are printed as well: the noise floor, the prediction and what it was worth, and shared steps.
        width: of the terminal, in characters.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> problem, algorithm = load("digits", n=20), FineTuning(selectors.BitFit(), steps=2)
        >>> estimate = measure(problem, algorithm, estimators.Exact(), device="cpu")
        >>> trained = estimate.replicas.algorithm
        >>> show_estimate(problem, trained, estimate, {"test": 0.25})  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        Leaving one training example out changes its loss by ... nats on average, exactly: each of the 20 examples was left out.
        ...
    """
    _show(estimate, _trained(problem, algorithm, estimate, metrics), verbose, width)


def show_loop(estimate: StabilityEstimate, *, verbose: bool = False, width: int = 100) -> None:
    """Print the stability of a training loop of one's own, as :func:`show_estimate` prints others.

    Args:
        estimate: what :func:`stability.measure_loop` measured.
        verbose: whether diagnostics are printed as well: the noise floor, the prediction and what it was worth.
        width: of the terminal, in characters.

    Example:
        >>> from sklearn.linear_model import LinearRegression
        >>> from stability import loops, measure_loop
        >>> loop = loops.Sklearn(LinearRegression(), [[0.0], [1.0], [2.0], [3.0]], [0.0, 1.0, 2.0, 4.0])
        >>> show_loop(measure_loop(loop))  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        Leaving one training example out changes its loss by 0.37 (squared error) on average, exactly: ...
        ...
    """
    subject = estimate.subject
    rows = {"method": subject.method, "training set": f"n = {subject.n} examples", "training": subject.training}
    _show(estimate, rows, verbose, width)
    if not (why := doubts(estimate)):
        return
    told = f"Inconclusive: {'; '.join(why)}."
    if (cure := remedy(estimate)) is None:
        print("", textwrap.fill(told, width), sep="\n")
        return
    perturbed = "" if isinstance(estimate.units, SingleExamples) else ", perturbation=…"
    told += f" This would settle it, in about {duration(cure.seconds)}:"
    print("", textwrap.fill(told, width), f"  measure_loop(loop, {cure.call}{perturbed})", sep="\n")


def _show(estimate: StabilityEstimate, trained: Mapping[str, str], verbose: bool, width: int) -> None:
    """Print an estimate, of which ``trained`` says what was trained."""
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    print(wrap.fill(sentence(estimate)) + "\n")
    rows = {**trained, **_facts(estimate), **(_details(estimate) if verbose else {})}
    indent = max(map(len, rows)) + 4
    for name, text in rows.items():
        wrap.initial_indent, wrap.subsequent_indent = f"  {name:<{indent - 2}}", " " * indent
        print(wrap.fill(text))
    wrap.initial_indent = wrap.subsequent_indent = ""
    said = _notes(estimate)
    if said:
        print()
    for text in said:
        print(wrap.fill(text))


def _trained(problem: Problem, algorithm: Algorithm, estimate: StabilityEstimate, metrics: Mapping[str, float]) -> dict[str, str]:
    """What was trained, and how well."""
    left = dict(metrics)
    commonest = left.pop(_COMMONEST, None)
    known = [f"{_CALLED.get(split, split)} {value:.3f}" for split, value in sorted(left.items(), key=lambda one: one[0] != "train")]
    beside = "" if commonest is None else f" (always the commonest training class: {commonest:.3f})"
    head = f", and all {estimate.head} of the head" if estimate.head else ""
    return {
        "method": algorithm.name,
        "parameters": f"p = {estimate.sparsity:.3g}: k = {estimate.k} of {estimate.m} may change{head}",
        "training set": f"n = {problem.n} examples of {problem.name}",
        "training": f"{algorithm.describe()}; {len(next(iter(algorithm.batches(problem.train))))} examples a step",
        problem.metric_name: ", ".join(known) + beside,
    }


def _facts(estimate: StabilityEstimate) -> dict[str, str]:
    """What everyone asks, by common words."""
    unit, words = estimate.subject.loss_unit, estimate.units.words
    failed = f", {len(estimate.failed)} of them failed" if estimate.failed else ""
    rows = {
        "retrained": words.each_of(f"{estimate.retrainings} of {estimate.units.count}") + failed
        if estimate.retrainings
        else "none",
        "largest change": "not measured" if math.isnan(estimate.maximum) else amount(estimate.maximum, unit),
        "test losses": "not measured"
        if math.isnan(estimate.hypothesis.value)
        else f"change by {amount(estimate.hypothesis.value, unit)} on average",
        "time": f"{estimate.seconds:.1f} s",
    }
    if estimate.loop is not None and math.isnan(estimate.hypothesis.value):
        del rows["test losses"]  # it gave none
    if estimate.reason:
        rows["estimator"] = estimate.reason
    if (p := estimate.subject.sparsity) is not None and p != estimate.sparsity:
        rows["p of Theorem 1"] = f"{p:.4g} = 1 − λ, for every coordinate may change"
    return rows


_COMMONEST = "commonest class on test"
_CALLED = {"train": "training"}


def _details(estimate: StabilityEstimate) -> dict[str, str]:
    """What only those ask who want to know how it was measured."""
    low, high = estimate.interval
    rows = {
        "stability E_i|Δℓ_i|": f"{estimate.value:.6g} {estimate.subject.loss_unit}",
        f"{estimate.pointwise.confidence:.0%} interval": _interval(low, high),
        "noise floor": _number(estimate.noise_floor, ".2g"),
        "status": f"{estimate.estimator}; {_STATUS.get(estimate.status, estimate.status)}",
    }
    if (predicted := estimate.prediction) is not None:
        rows["predicted"] = f"{predicted.mean:.4g} by {predicted.by}, in {predicted.seconds:.1f} s"
        if not math.isnan(predicted.nonlinearity):
            rows["nonlinearity"] = (
                f"{predicted.nonlinearity:.2f} (0 for a linear model; on digits, predictions were good below 0.18)"
            )
        found = estimate.diagnostics
        if not math.isnan(found.correlation):
            worth = f"correlation {found.correlation:.2f}, of ranks {found.rank_correlation:.2f}"
            # An estimate of the variance from draws that missed what matters claims too much.
            if not math.isnan(found.variance_cut) and not doubts(estimate):
                worth += f"; worth {found.effective_retrainings:.0f} plain retrainings (variance cut {found.variance_cut:.3g})"
            rows["prediction against retraining"] = worth
        if not math.isnan(found.simulated_coverage):
            rows["simulated coverage"] = (
                f"{found.simulated_coverage:.0%} of simulated intervals from draws like these held the truth"
            )
    if estimate.steps_shared:
        every = (estimate.retrainings + 1) * estimate.replicas.algorithm.max_steps
        rows["shared steps"] = (
            f"{estimate.steps_shared / every:.0%} of all training steps were the same for several replicas, and computed once"
        )
    return rows


_STATUS = {
    Status.EXACT: "every one",
    Status.TOLERANCE_NOT_MET: "tolerance not met",
    Status.APPROXIMATE: "a prediction, of unknown error",
}


def _notes(estimate: StabilityEstimate) -> list[str]:
    """What should not be overlooked, a paragraph each."""
    found = [f"Note: {note}." for note in estimate.notes]
    if estimate.failed:
        steps = estimate.loop is None  # the notes say why a training of a loop of one's own failed
        which = ", ".join(f"example {i} at step {step}" if steps else f"example {i}" for i, step in estimate.failed.items())
        found.append(f"Failed with seed {estimate.subject.seed} and left out of every average: {which}.")
    return found


def settling(estimate: StabilityEstimate, command: Callable[..., str]) -> list[str]:
    """Why an estimate is inconclusive, and the command that would settle it; empty where it is conclusive.

    Args:
        estimate: what was measured.
        command: options by their names in Python → the same command with these options, None for left out.

    Returns:
        Lines of text, the command alone on the last.
    """
    if not (why := doubts(estimate)):
        return []
    lines = [f"Inconclusive: {'; '.join(why)}."]
    if (cure := remedy(estimate)) is not None:
        lines[0] += f" This would settle it, in about {duration(cure.seconds)}:"
        changed: dict[str, Any] = {"retrainings": cure.retrainings, "tolerance": cure.tolerance}
        if cure.estimator != estimate.estimator:
            changed |= {"estimator": cure.estimator, "predictor": None, "checkpoints": None}
        if estimate.budget_spent:
            changed["budget"] = None
        lines.append("  " + command(**changed))
    elif estimate.failed:
        lines[0] += " What the failed models would have shown is unknown: try a smaller --learning-rate."
    elif estimate.replicas.algorithm.product_precision != "float32":
        lines[0] += " In full precision it may show:"
        lines.append("  " + command(precision="float32"))
    else:
        lines[0] += " More retrainings do not help: the effect is too small for the numbers that hold it."
    return lines


def _number(value: float, form: str = ".4g") -> str:
    return "not measured" if math.isnan(value) else format(value, form)


def _interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "none"
    return "exact for this S and seed" if low == high else f"{low:.4g} … {high:.4g}"


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
    with suited_to(problem, replicas.algorithm):
        logits = {name: replicas.logits(some.to(device), first)[0].cpu() for name, some in splits.items() if some is not None}
    found = {name: problem.metric(mine, getattr(problem, name).labels) for name, mine in logits.items()}
    if not problem.train.labels.is_floating_point() and (outputs := logits["test"].shape[1]) > 1:
        constant = commonest_class(problem.train.labels, outputs, len(problem.test))
        found[_COMMONEST] = problem.metric(constant, problem.test.labels)
    return found


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
    if made:
        print("assumptions:")
    for assumption, names in made.items():
        state = {True: "held", False: "FAILED", None: "not checked"}[assumption.held]
        print(f"  {state:>11}: {assumption.name} ({assumption.detail}) [{', '.join(names)}]")
    for note in notes:
        print(f"  {note}")


def show_examples(rows: Sequence[Mapping[str, Any]], units: Units, width: int = 100) -> None:
    """Print a line for each of the examples that carry most of the stability.

    Args:
        rows: of :func:`stability.leave_one_out.wording.carriers`.
        units: what was done to the training set.
        width: of the terminal, in characters; longer examples are cut.
    """
    words, when = units.words, f"how their loss changes when they are {units.words.passive}"
    every = len(rows) == units.count
    what = f"All {len(rows)} {words.plural}" if every else f"The {len(rows)} {words.plural} of {units.count} that carry most of it"
    print("", textwrap.fill(f"{what}: their share, and {when}.", width), sep="\n")
    for row in rows:
        retrained = not math.isnan(row["retrained"])
        change = signed(row["retrained"] if retrained else row["predicted"]) + ("" if retrained else ", predicted")
        label = row["shown"].rpartition(" [")[2]
        text, room = row["shown"].rpartition(" [")[0], width - len(change) - len(label) - 15
        text = text if len(text) <= room else text[: max(room - 1, 20)] + "…"
        print(f"  {row['share']:4.0%}  {text} [{label}  ({change})")


def show_shares(mask: Mask) -> None:
    """Print where the coordinates of a mask are: a table of layers, and one of types of tensors.

    Args:
        mask: the mask.

    Example:
        >>> import torch
        >>> shapes = {"emb": (5,), "layer.0.w": (2, 2), "layer.1.w": (2, 2)}
        >>> show_shares(Mask(shapes, {"layer.0.w": torch.tensor([0]), "layer.1.w": torch.tensor([0, 1, 3])}))
        <BLANKLINE>
        layer    chosen  of density share of the mask of the model
        0             1   4  25.0 %            25.0 %       30.8 %
        1             3   4  75.0 %            75.0 %       30.8 %
        outside       0   5   0.0 %             0.0 %       38.5 %
        <BLANKLINE>
        type       chosen  of density share of the mask of the model
        layer.*.w       4   8  50.0 %           100.0 %       61.5 %
        emb             0   5   0.0 %             0.0 %       38.5 %
    """
    groupings: tuple[Grouping, ...] = ("layer", "type")
    for by in groupings:
        found = shares(mask, by)
        width = max(map(len, [by, *found[by]]))
        found[by] = found[by].str.ljust(width)
        found = found.assign(**{name: found[name].map(_percent) for name in ("density", "share", "of_model")})
        called = {by: by.ljust(width), "size": "of", "share": "share of the mask", "of_model": "of the model"}
        print("", found.rename(columns=called).to_string(index=False), sep="\n")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"
