"""What follows from measured comparisons, or from a correlation of ranks, for a claim: by one rule, and from nothing else.

A comparison is *clear* if its p-value, after Holm's correction for all comparisons of the claim, is below 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from stability.studies.comparison import holm
from stability.studies.effects import Row, row
from stability.studies.ranks import RankCorrelation, rank_correlation

__all__ = ["Answer", "Verdict", "by_comparisons", "by_correlation", "what_would_resolve"]

_LEVEL = 0.05
_FEW = 3  # missing parts that a sentence names
_MANY = 100  # times as many runs that nobody makes
_COLUMNS = ("task", "what", "effect", "low", "high", "p", "clear", "count", "over")


class Verdict(StrEnum):
    """What follows from what was measured of a claim."""

    CONFIRMED = "confirmed"
    """At least half of the comparisons are clear in the claim's direction, and none in the other; or the correlation is."""
    REFUTED = "refuted"
    """At least half of the comparisons are clear in the other direction, and none in the claim's; or the correlation is."""
    OPEN = "not resolved"
    """Neither."""
    MISSING = "not measured"
    """There is nothing to compare yet."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """What was measured of one claim.

    Attributes:
        claim: the claim, in a sentence.
        published: what the paper has as evidence, in a sentence.
        quantity: what the numbers of the table are.
        table: a row for each comparison: task, what (is compared), effect with low and high (the ends of its 95 % interval), p
            (after Holm's correction), clear (``for`` the claim, ``against`` it, or empty), count and over (how many seeds, examples
            or methods the interval is over). Of a correlation there is one row.
        verdict: what follows.
        resolve: what would resolve it, in a sentence; empty where it is resolved.
        missing: what the studies still lack, a phrase each.
    """

    claim: str
    published: str
    quantity: str
    table: pd.DataFrame
    verdict: Verdict
    resolve: str = ""
    missing: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The answer in one sentence, with what would resolve it."""
        known = self.table[self.table["p"].notna()]
        count = {which: int((known["clear"] == which).sum()) for which in ("for", "against")}
        told = f"{self.verdict.value[0].upper()}{self.verdict.value[1:]}"
        if self.verdict is Verdict.MISSING:
            return f"{told}. {self.resolve}".strip()
        of = f"{count['for']} of {len(known)} comparisons are clear for the claim, {count['against']} against it"
        if len(known) == 1:
            of = f"clear {'for' if count['for'] else 'against'} the claim" if sum(count.values()) else "not clear"
            of += " as far as it is measured" if self.missing else ""
        return f"{told}: {of}. {self.resolve}".strip()

    def __str__(self) -> str:
        """The claim, the answer in a sentence, the paper's evidence, and each comparison."""
        told = f"{self.claim} {self.sentence}\nPublished: {self.published}"
        if self.table.empty:
            return told
        return f"{told}\nMeasured: {self.quantity}.\n{self.table.to_string(index=False, float_format='{:.3g}'.format)}"


def by_comparisons(
    claim: str,
    published: str,
    quantity: str,
    rows: Iterable[Row],
    *,
    smaller: bool,
    ratio: bool = False,
    missing: tuple[str, ...] = (),
) -> Answer:
    """The answer of several comparisons.

    Args:
        claim: the claim, in a sentence.
        published: what the paper has as evidence, in a sentence.
        quantity: what the effects are.
        rows: the comparisons, as :mod:`stability.studies.effects` makes them.
        smaller: an effect below 0 is for the claim; otherwise one above 0.
        ratio: the effects are logarithms, and the answer tells what they are the logarithms of.
        missing: what the studies still lack, a phrase each: then nothing is concluded.

    Example:
        >>> rows = [row("cb", "sam", -0.5, -0.6, -0.4, 0.001, count=5, over="seeds")]
        >>> by_comparisons("It is smaller.", "", "difference", rows, smaller=True).sentence
        'Confirmed: clear for the claim.'
    """
    table = pd.DataFrame(list(rows), columns=[name for name in _COLUMNS if name != "clear"])
    table["p"] = holm(table["p"].astype(float))
    wanted = (table["effect"] < 0) if smaller else (table["effect"] > 0)
    table["clear"] = np.where(table["p"] < _LEVEL, np.where(wanted, "for", "against"), "")
    known = table[table["p"].notna()]
    supports, denies = (int((known["clear"] == which).sum()) for which in ("for", "against"))
    if known.empty:
        verdict, resolve = Verdict.MISSING, _unfinished(missing) or "It needs studies that measure it."
    elif missing:  # what is known so far may not stand for all
        verdict, resolve = Verdict.OPEN, _unfinished(missing)
    elif 2 * supports >= len(known) and not denies:
        verdict, resolve = Verdict.CONFIRMED, ""
    elif 2 * denies >= len(known) and not supports:
        verdict, resolve = Verdict.REFUTED, ""
    else:
        verdict, resolve = Verdict.OPEN, what_would_resolve(known)
    if ratio:
        table[["effect", "low", "high"]] = np.exp(table[["effect", "low", "high"]].astype(float))
    return Answer(
        claim=claim, published=published, quantity=quantity, table=table, verdict=verdict, resolve=resolve, missing=missing
    )


def by_correlation(claim: str, published: str, of: tuple[pd.DataFrame, str, str], *, missing: tuple[str, ...]) -> Answer:
    """The answer of a correlation of ranks within tasks; its interval decides.

    Args:
        claim: the claim, in a sentence.
        published: what the paper has as evidence, in a sentence.
        of: the scores of methods, and the two columns of them that are correlated. A positive correlation is for the claim.
        missing: what the studies still lack, a phrase each: then nothing is concluded.

    Example:
        >>> scores = pd.DataFrame({"task": ["cb"], "method": ["sam"], "mean": [0.8], "std": [0.1]})
        >>> by_correlation("They go together.", "", (scores, "mean", "std"), missing=()).sentence
        'Not measured. It needs three methods on a task.'
    """
    table, first, second = of
    found = _correlation(table, first, second)
    rows, verdict, resolve = [], Verdict.MISSING, _unfinished(missing) or "It needs three methods on a task."
    if found is not None:
        low, high = found.interval
        side = "for" if low > 0 else "against" if high < 0 else ""
        what = f"{found.methods} methods, {found.count} pairs"
        of_methods = {"clear": side, "count": found.count, "over": "methods"}
        rows = [row("all", what, found.value, low, high, found.method_p_value, **of_methods)]
        verdict, resolve = {
            "for": (Verdict.CONFIRMED, ""),
            "against": (Verdict.REFUTED, ""),
            "": (Verdict.OPEN, _more_methods(found)),
        }[side]
        if missing:  # what is known so far may not stand for all
            verdict, resolve = Verdict.OPEN, _unfinished(missing)
    return Answer(
        claim=claim,
        published=published,
        quantity=f"Spearman's ρ between {first} and {second}, ranked within each task; positive is for the claim, and the "
        "interval decides",
        table=pd.DataFrame(rows, columns=_COLUMNS),
        verdict=verdict,
        resolve=resolve,
        missing=missing,
    )


def what_would_resolve(known: pd.DataFrame) -> str:
    """What would resolve a claim of several comparisons.

    Args:
        known: those with a p-value; their effects are no ratios but differences.

    Example:
        >>> unclear = row("cb", "sam", 1.0, -1.0, 3.0, 0.3, clear="", count=5, over="seeds")
        >>> what_would_resolve(pd.DataFrame([unclear]))
        'For half of the unclear differences to be clear, about 4 times as many seeds are needed.'
    """
    if {"for", "against"} <= set(known["clear"]):
        return "It is so of some methods or tasks and not of others; no number of runs will make it one answer."
    unclear = known[known["clear"] == ""]
    half = np.maximum(unclear["high"] - unclear["effect"], unclear["effect"] - unclear["low"])
    factor = float(((half / unclear["effect"].abs()) ** 2).replace([np.inf], np.nan).median())
    if not factor < _MANY:
        return "Most of the unclear differences are too small to become significant by any number of runs that can be had."
    of = "seeds" if (unclear["over"] == "seeds").mean() >= 0.5 else "retrainings"
    return f"For half of the unclear differences to be clear, about {max(2, math.ceil(factor))} times as many {of} are needed."


def _unfinished(missing: Sequence[str]) -> str:
    told = list(dict.fromkeys(missing))
    what = ", ".join(told) if len(told) <= _FEW else f"{len(told)} parts of them"
    return f"First the studies must be finished: {what} are to be computed." if told else ""


def _correlation(table: pd.DataFrame, first: str, second: str) -> RankCorrelation | None:
    if not {first, second} <= set(table) or table[[first, second]].notna().all(axis=1).sum() < 3:
        return None
    found = rank_correlation(table, first, second)
    return found if math.isfinite(found.value) else None


def _more_methods(found: RankCorrelation) -> str:
    low, high = found.interval
    if not math.isfinite(low) or not found.value or abs(found.value) >= 1:
        return "More methods are needed."
    half = (math.atanh(high) - math.atanh(low)) / 2
    factor = max(2, math.ceil((half / math.atanh(found.value)) ** 2))
    return f"If ρ is what was found, about {factor} times as many methods are needed for its interval to have one sign."
