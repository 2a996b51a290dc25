"""An estimate in words: the answer in a sentence, what makes it inconclusive, and what would settle that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stability.leave_one_out.estimate import StabilityEstimate, poor
from stability.leave_one_out.estimators import Assisted, Exact, Status, drawable

__all__ = [
    "Remedy",
    "amount",
    "carriers",
    "difference_sentence",
    "doubts",
    "duration",
    "places_of",
    "remedy",
    "sentence",
    "signed_text",
    "size_of",
    "size_text",
]

_PATIENCE = 600.0  # seconds for which leaving out every example is recommended, rather than a larger sample
_FEWEST = 10  # retrainings that are recommended at the least


def sentence(estimate: StabilityEstimate) -> str:
    """The answer in one sentence, with its unit and interval.

    Args:
        estimate: a measured stability.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=2)
        >>> sentence(measure(load("digits", n=10), algorithm, estimators.Exact(), device="cpu"))
        'Leaving one training example out changes its loss by ... nats on average, exactly: each of the 10 examples was left out.'
    """
    unit, (low, high) = estimate.subject.loss_unit, estimate.interval
    words = estimate.units.words
    begins, value = f"{words.doing} changes {words.its} by", amount(estimate.value, unit)
    if math.isnan(estimate.value):
        return f"How much {words.doing} changes {words.its} was not measured."
    begins = begins[0].upper() + begins[1:]
    if estimate.value <= estimate.noise_floor:
        noise = "rounding" if estimate.loop is None else "training again on all examples"
        return f"{begins} no more than {noise} does: {value} on average, with a noise floor of {estimate.noise_floor:.2g}."
    if estimate.status == Status.APPROXIMATE:
        return f"{begins} about {value} on average. That is a prediction, whose error is unknown: no model was retrained."
    if estimate.status == Status.EXACT and not estimate.subject.repeats:
        noise = f"training again on all examples changes the losses by {amount(estimate.noise_floor, unit)}"
        return f"{begins} {value} on average, noise included: {noise}."
    if estimate.status == Status.EXACT:
        return f"{begins} {value} on average, exactly: each of the {estimate.units.count} {words.plural} was {words.passive}."
    places = places_of(estimate.value)
    ends = f"at least {size_of(low, places)}" if math.isinf(high) else f"{size_of(low, places)} to {size_of(high, places)}"
    ended = estimate.status in (Status.TOLERANCE_NOT_MET, Status.BUDGET_SPENT)
    mark = "inconclusive, " if ended or (estimate.tolerance is None and (_worthless(estimate) or _poor(estimate))) else ""
    return f"{begins} {value} on average ({mark}{100 * estimate.pointwise.confidence:g} % interval {ends})."


def amount(value: float, unit: str) -> str:
    """A number with its unit.

    Args:
        value: the number.
        unit: such as nats.

    Example:
        >>> amount(0.5988, "nats"), amount(0.0001234, "squared error / 2")
        ('0.60 nats', '0.00012 (squared error / 2)')
    """
    return f"{size_of(value)} {unit if unit.isalpha() else f'({unit})'}"


def size_of(value: float, places: int | None = None) -> str:
    """A size with two significant digits, or with so many places after the point.

    Args:
        value: the size.
        places: by default as many as two digits need.

    Example:
        >>> size_of(0.5988), size_of(12.3), size_of(2.0098, places=2), size_of(3.2e-9), size_of(float("nan"))
        ('0.60', '12', '2.01', '3.2e-09', 'not measured')
    """
    if math.isnan(value):
        return "not measured"
    places = places_of(value) if places is None else places
    return f"{value:.{places}f}" if places <= 5 else f"{value:.2g}"


def places_of(value: float) -> int:
    """How many places after the point two significant digits need.

    Args:
        value: the number.

    Example:
        >>> places_of(0.5988), places_of(12.3)
        (2, 0)
    """
    return 1 if value == 0 or not math.isfinite(value) else max(0, 1 - math.floor(math.log10(abs(value))))


def doubts(estimate: StabilityEstimate) -> tuple[str, ...]:
    """Why an estimate is inconclusive, a clause for each reason; empty where it is not.

    Args:
        estimate: a measured stability.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=2)
        >>> doubts(measure(load("digits", n=10), algorithm, estimators.Sampled(1), device="cpu"))
        ('one retraining tells nothing of the spread',)
    """
    if estimate.value <= estimate.noise_floor:
        noise = "what rounding alone does" if estimate.loop is None else "how far two trainings on all examples differ"
        return (f"the value is not above the noise floor, which is {noise}",)
    if estimate.tolerance is not None:  # what was asked for decides alone
        met = estimate.status != Status.TOLERANCE_NOT_MET
        why = [*_poor(estimate), *_worthless(estimate), *(["the budget is spent"] if estimate.budget_spent else [])]
        more = _because(estimate) or (f": {', and '.join(why)}" if why else "")
        return () if met else (f"the tolerance of {estimate.tolerance:g} is not met{more}",)
    found = []
    low, high = estimate.interval
    if estimate.retrainings == 1 < estimate.units.count and estimate.status != Status.APPROXIMATE:
        found.append("one retraining tells nothing of the spread")
    elif math.isinf(high):
        found.append(f"the interval has no upper end{_because(estimate)}")
    elif high - low > estimate.value:
        found.append("the interval is wider than the value")
    found += _poor(estimate)
    return (*found, *_worthless(estimate), *(["the budget is spent"] if estimate.budget_spent else []))


def _poor(estimate: StabilityEstimate) -> list[str]:
    known = estimate.diagnostics
    if not poor(known, estimate.retrainings, estimate.units.count):
        return []
    held = f"of simulated intervals from so few draws and with such a correlation, {known.simulated_coverage:.1%} held the truth"
    return [f"the prediction is poor (correlation {known.correlation:.2f}): {held}"]


def _worthless(estimate: StabilityEstimate) -> list[str]:
    cut = estimate.diagnostics.variance_cut
    by = estimate.prediction if estimate.estimator == Assisted.name else None
    drawn = by is not None and drawable(by.sizes)
    return [f"the draws are worth less than plain ones (variance cut {cut:.2g})"] if drawn and cut < 1 else []


def _because(estimate: StabilityEstimate) -> str:
    return ", because a left-out model failed" if estimate.failed else ""


@dataclass(frozen=True)
class Remedy:
    """What would settle an inconclusive estimate.

    Attributes:
        estimator: the name of an estimator, such as exact.
        retrainings: how many examples it leaves out; None for all.
        seconds: how long that will take, from what this measurement took.
        tolerance: at which it stops; None where it looks at none.

    Example:
        >>> Remedy("sampled", 80, seconds=12.0).call
        'estimators.Sampled(retrainings=80)'
    """

    estimator: str
    retrainings: int | None
    seconds: float
    tolerance: float | None = None

    @property
    def call(self) -> str:
        """The estimator, as one writes it in Python."""
        given = {"retrainings": self.retrainings, "tolerance": self.tolerance}
        return f"estimators.{self.estimator.capitalize()}({', '.join(f'{n}={v:g}' for n, v in given.items() if v is not None)})"


def remedy(estimate: StabilityEstimate) -> Remedy | None:
    """What would settle an inconclusive estimate; None where it is conclusive, or where retraining more cannot help.

    The half-width of an interval falls as 1/√a with a retrainings. Where that asks for half of the examples or more, or the
    prediction was poor and leaving out every example takes at most ten minutes, that is the remedy. Where a tolerance was not
    met, it stays what is asked for.

    Args:
        estimate: a measured stability.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=2)
        >>> remedy(measure(load("digits", n=20), algorithm, estimators.Sampled(1), device="cpu")).estimator
        'exact'
    """
    if not doubts(estimate) or estimate.value <= estimate.noise_floor or estimate.failed or not estimate.retrainings:
        return None
    low, high = estimate.interval
    wide = (high - low) / estimate.value
    if estimate.tolerance is not None:
        wide = estimate.pointwise.relative_half_width / estimate.tolerance
    is_poor = poor(estimate.diagnostics, estimate.retrainings, estimate.units.count) or bool(_worthless(estimate))
    count = max(_FEWEST, math.ceil(estimate.retrainings * wide**2 * 1.2)) if math.isfinite(wide) else 20
    if is_poor:
        count = max(count, 50, 2 * estimate.retrainings)
    count = max(count, estimate.retrainings + 1)
    if 2 * count >= estimate.units.count or (is_poor and _seconds(estimate, estimate.units.count, Exact.name) <= _PATIENCE):
        return Remedy(Exact.name, None, _seconds(estimate, estimate.units.count, Exact.name))
    return Remedy(estimate.estimator, count, _seconds(estimate, count, estimate.estimator), estimate.tolerance)


def _seconds(estimate: StabilityEstimate, count: int, estimator: str) -> float:
    """How long a measurement with so many retrainings takes; with each goes A(S), for the noise floor.

    Another estimator than this one's is Exact or Sampled, which predict nothing.
    """
    each = estimate.retraining_seconds / (estimate.retrainings + 1)
    spared = 0.0 if estimate.prediction is None or estimator == estimate.estimator else estimate.prediction.seconds
    return estimate.seconds - estimate.retraining_seconds - spared + each * (count + 1)


def duration(seconds: float) -> str:
    """A time as one says it.

    Args:
        seconds: the time.

    Example:
        >>> duration(0.4), duration(42), duration(130), duration(5000), duration(9000), duration(200_000), duration(400_000)
        ('1 s', '42 s', '2 min', '83 min', '2.5 h', '56 h', '5 days')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"


def carriers(estimate: StabilityEstimate, count: int) -> list[dict[str, Any]]:
    """The examples that carry most of the stability.

    Args:
        estimate: a measured stability.
        count: how many examples.

    Returns:
        Of each example the columns of :meth:`stability.StabilityEstimate.examples`, and as ``shown`` what a person sees of it:
        file, line and text where they are known, and its label.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=2)
        >>> [row["shown"] for row in carriers(measure(load("digits", n=10), algorithm, estimators.Exact()), 1)]
        ['example ... [...]']
    """
    subject = estimate.subject
    found = estimate.examples().head(count).to_dict("records")
    rows: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in found]
    for row in rows:
        row["shown"] = estimate.units.name_of(int(row["index"]), subject.example)
    return rows


def difference_sentence(
    first: str,
    second: str,
    value: float,
    interval: tuple[float, float],
    unit: str,
    *,
    significant: bool,
    ends: str = "",
    relative: float = math.nan,
) -> str:
    """Which of two methods is more stable, in one sentence.

    Args:
        first: the method with which is compared.
        second: the method that is compared.
        value: its stability less that of the first.
        interval: of the value; a single number where it is exact.
        unit: of both.
        significant: whether one is more stable than the other.
        ends: what the interval is, such as "95 % interval".
        relative: the value as a fraction of the first's stability; NaN: it is not told.

    Example:
        >>> difference_sentence("full", "lora", -0.31, (-0.40, -0.22), "nats", significant=True, ends="95 % interval")
        'lora is more stable than full, by 0.31 (95 % interval 0.22 to 0.40) nats.'
        >>> difference_sentence("full", "lora", -0.00124, (-0.00124, -0.00124), "nats", significant=True, relative=-0.0021)
        'lora is more stable than full, by exactly 0.0012 nats, which is 0.2 % of the stability of full.'
        >>> difference_sentence("full", "lora", 0.1, (-0.2, 0.4), "nats", significant=False)
        'The stability of lora does not differ significantly from that of full: +0.10 (−0.20 to +0.40) nats.'
    """
    unit = unit if unit.isalpha() else f"({unit})"
    if not significant:
        shown = signed_text(value, interval, ends)
        return f"The stability of {second} does not differ significantly from that of {first}: {shown} {unit}."
    shown = f"exactly {size_of(abs(value))}" if interval[0] == interval[1] else size_text(value, interval, ends)
    percent = 100 * abs(relative)
    of = f", which is {percent:.{0 if percent >= 10 else 1}f} % of the stability of {first}" if math.isfinite(relative) else ""
    return f"{second} is {'more' if value < 0 else 'less'} stable than {first}, by {shown} {unit}{of}."


def size_text(value: float, interval: tuple[float, float], ends: str = "") -> str:
    """A number without its sign, and its interval, if that has ends.

    Args:
        value: the number.
        interval: of the number.
        ends: what the interval is.

    Example:
        >>> size_text(-0.31, (-0.4, -0.22)), size_text(0.31, (0.2, float("inf"))), size_text(0.31, (0.31, 0.31))
        ('0.31 (0.22 to 0.40)', '0.31 (at least 0.20)', '0.31')
    """
    low, high = interval if value >= 0 else (-interval[1], -interval[0])
    if low == high or not math.isfinite(low):
        return size_of(abs(value))
    places = places_of(value)
    reach = f"at least {size_of(low, places)}" if math.isinf(high) else f"{size_of(low, places)} to {size_of(high, places)}"
    return f"{size_of(abs(value))} ({f'{ends} {reach}'.strip()})"


def signed_text(value: float, interval: tuple[float, float], ends: str = "") -> str:
    """A number with its sign, and its interval, to as many places as the farther end needs.

    Args:
        value: the number.
        interval: of the number.
        ends: what the interval is.

    Example:
        >>> signed_text(0.1, (-0.2, 0.4)), signed_text(-0.1, (-float("inf"), 0.4))
        ('+0.10 (−0.20 to +0.40)', '−0.10 (−∞ to +0.40)')
    """
    places = places_of(max((abs(end) for end in interval if math.isfinite(end)), default=value))
    said, low, high = (("−" if x < 0 else "+") + ("∞" if math.isinf(x) else size_of(abs(x), places)) for x in (value, *interval))
    return f"{said} ({f'{ends} {low}'.strip()} to {high})"
