"""What follows from measured comparisons, or from a correlation of ranks, for a claim: by one rule, and from nothing else.

A comparison is *clear* if its p-value, after Holm's correction for all comparisons of the claim, is below 0.05. Comparisons of one
group speak together: for the claim if one of them is clear for it, and against it if all are clear against it. A comparison without
a group speaks for itself, and one without a p-value does not speak. What speaks is counted:

- confirmed: at least half are for the claim, and none is against it;
- refuted: at least half are against it, and none is for it;
- not resolved: neither, or something is missing.

A correlation is for the claim if its interval is above 0, and against it if the interval is below 0.
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

__all__ = ["Answer", "Statement", "Verdict"]

_LEVEL = 0.05
_FEW = 3  # missing parts that a sentence names
_MANY = 100  # times as many runs that nobody makes
_COLUMNS = ("task", "what", "effect", "low", "high", "p", "clear", "count", "over")
_FIRST = {
    "stability": "is the most stable",
    "gap": "has the smallest gap",
    "mean": "has the best mean",
    "std": "has the smallest spread over seeds",
    "perturbed_std": "has the smallest spread over training sets that lack a part of S",
}
"""What has rank 1 of a quantity."""


class Verdict(StrEnum):
    """What follows from what was measured of a claim, by the rule of :mod:`stability.studies.verdicts`."""

    CONFIRMED = "confirmed"
    """At least half of the comparisons are clear for the claim, and none against it; or the correlation is."""
    REFUTED = "refuted"
    """At least half of the comparisons are clear against the claim, and none for it; or the correlation is."""
    OPEN = "not resolved"
    """Neither, or something is missing."""
    MISSING = "not measured"
    """There is nothing to compare yet."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """What was measured of one claim.

    Attributes:
        claim: the claim, in a sentence.
        published: what the paper has as evidence, in a sentence.
        quantity: what the numbers of the table are, and on which side of what they are for the claim.
        table: a row for each comparison: task, what (is compared), effect with low and high (the ends of its 95 % interval, of this
            comparison alone), p (the p-value after Holm's correction for all comparisons of the claim), clear (``for`` the claim,
            ``against`` it, or empty), count (how many seeds, tasks or methods it is of) and over (what the interval is over:
            ``seeds``, the ``examples`` that were left out, ``tasks`` or ``methods``). What is compared on several tasks is tested
            in the mean over them, and its rows of single tasks have no p-value. Of a correlation there is one row.
        verdict: what follows.
        supports: how many comparisons are clear for the claim; or groups, if ``counted`` says so.
        denies: how many are clear against it.
        of: how many there are.
        counted: what these are: ``comparisons``, or what a group is.
        resolve: what would resolve the claim, in a sentence; empty where it is resolved.
        missing: what the studies still lack, a phrase each.
        note: what to know before the verdict is used, in sentences; empty where there is nothing.
    """

    claim: str
    published: str
    quantity: str
    table: pd.DataFrame
    verdict: Verdict
    supports: int = 0
    denies: int = 0
    of: int = 0
    counted: str = "comparisons"
    resolve: str = ""
    missing: tuple[str, ...] = ()
    note: str = ""

    @property
    def sentence(self) -> str:
        """The answer in one sentence, with what would resolve it."""
        told = f"{self.verdict.value[0].upper()}{self.verdict.value[1:]}"
        if self.verdict is Verdict.MISSING:
            return f"{told}. {self.resolve}".strip()
        of = f"{self.supports} of {self.of} {self.counted} are clear for the claim, {self.denies} against it"
        if self.of == 1:
            of = f"clear {'for' if self.supports else 'against'} the claim" if self.supports or self.denies else "not clear"
            of += " as far as it is measured" if self.missing else ""
        return f"{told}: {of}. {self.resolve}".strip()

    @property
    def shown(self) -> pd.DataFrame:
        """The table as a reader wants it, in words: task, compared, effect, 95 % interval, interval over, p-value, clear."""
        table = self.table
        return pd.DataFrame(
            {
                "task": table["task"],
                "compared": table["what"],
                "effect": [f"{value:.3g}" for value in table["effect"]],
                "95 % interval": [
                    "–" if math.isnan(low) else f"{low:.3g} to {high:.3g}"
                    for low, high in zip(table["low"], table["high"], strict=True)
                ],
                "interval over": [*map(_over, table["count"], table["over"])],
                "p-value (shuffled)" if (table["over"] == "methods").all() else "p-value (Holm)": [
                    "–" if math.isnan(p) else f"{p:.2g}" for p in table["p"].astype(float)
                ],
                "clear": [one or "–" for one in table["clear"]],
            }
        )

    @property
    def lines(self) -> list[str]:
        """The claim, the answer in a sentence, what to know of it, the paper's evidence, and what was measured."""
        told = [self.claim, self.sentence, *filter(None, [self.note]), f"Published: {self.published}"]
        return told if self.table.empty else [*told, f"Measured: {self.quantity}."]

    def __str__(self) -> str:
        """The lines, and each comparison."""
        return "\n".join(self.lines if self.table.empty else [*self.lines, self.shown.to_string(index=False)])


def _over(count: int, over: str) -> str:
    return f"left-out examples, {count} seed{'s' if count > 1 else ''}" if over == "examples" else f"{count} {over}"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A claim, before it is put to what was measured.

    Attributes:
        claim: the claim, in a sentence.
        published: what the paper has as evidence, in a sentence.
        missing: what the studies still lack, a phrase each: then nothing is concluded.
        unsure: why nothing is concluded although nothing is missing, in a sentence.
        note: what to know before the verdict is used, in sentences.

    Example:
        >>> rows = [row("cb", "sam", -0.5, -0.6, -0.4, 0.001, count=5, over="seeds")]
        >>> smaller = Statement(claim="It is smaller.", published="")
        >>> smaller.by_comparisons("difference", rows, smaller=True, needs="").sentence
        'Confirmed: clear for the claim.'
        >>> unfinished = Statement(claim="It is smaller.", published="", missing=("3 of 5 cells of mine",))
        >>> unfinished.by_comparisons("difference", rows, smaller=True, needs="").verdict.value
        'not resolved'
    """

    claim: str
    published: str
    missing: tuple[str, ...] = ()
    unsure: str = ""
    note: str = ""

    def by_comparisons(
        self, quantity: str, rows: Iterable[Row], *, smaller: bool, needs: str, ratio: bool = False, groups: str = "comparisons"
    ) -> Answer:
        """The answer of several comparisons.

        Args:
            quantity: what the effects are.
            rows: the comparisons, as :mod:`stability.studies.effects` makes them.
            smaller: an effect below 0 is for the claim; otherwise one above 0.
            needs: what it takes to measure the claim, in a sentence.
            ratio: the effects are logarithms, and the answer tells what they are the logarithms of.
            groups: what a group of rows is, where they have groups.
        """
        table = pd.DataFrame(list(rows), columns=[*(name for name in _COLUMNS if name != "clear"), "group"])
        table["p"] = holm(table["p"].astype(float))
        wanted = (table["effect"] < 0) if smaller else (table["effect"] > 0)
        table["clear"] = np.where(table["p"] < _LEVEL, np.where(wanted, "for", "against"), "")
        known = table[table["p"].notna()]
        groups_of = known["group"].where(known["group"].notna(), pd.Series(known.index, index=known.index).astype(str))
        votes = known.groupby(groups_of, sort=False)["clear"].agg(_vote)
        supports, denies = (int((votes == which).sum()) for which in ("for", "against"))
        if votes.empty:
            verdict, resolve = Verdict.MISSING, needs
        elif 2 * supports >= len(votes) and not denies:
            verdict, resolve = Verdict.CONFIRMED, ""
        elif 2 * denies >= len(votes) and not supports:
            verdict, resolve = Verdict.REFUTED, ""
        else:
            undecided = known[groups_of.map(votes).eq("") & known["clear"].eq("")]
            verdict, resolve = Verdict.OPEN, _MIXED if supports and denies else _more_runs(undecided, table["over"])
        if ratio:
            table[["effect", "low", "high"]] = np.exp(table[["effect", "low", "high"]].astype(float))
        verdict, resolve = self._concluded(verdict, resolve)
        return Answer(
            claim=self.claim,
            published=self.published,
            quantity=f"{quantity}; {'below' if smaller else 'above'} {int(ratio)} is for the claim",
            table=table[[*_COLUMNS]],
            verdict=verdict,
            supports=supports,
            denies=denies,
            of=len(votes),
            counted=groups,
            resolve=resolve,
            missing=self.missing,
            note=self.note,
        )

    def by_correlation(self, table: pd.DataFrame, first: str, second: str) -> Answer:
        """The answer of a correlation of ranks within tasks; its interval decides.

        Args:
            table: the scores of methods.
            first: a column of them.
            second: the column that is correlated with it. A positive correlation is for the claim.

        Example:
            >>> scores = pd.DataFrame({"task": ["cb"], "method": ["sam"], "mean": [0.8], "std": [0.1]})
            >>> Statement(claim="They go together.", published="").by_correlation(scores, "mean", "std").sentence
            'Not measured. It needs three methods on a task.'
        """
        rows, side, verdict, resolve = [], "", Verdict.MISSING, "It needs three methods on a task."
        if (found := _correlation(table, first, second)) is not None:
            low, high = found.interval
            side = "for" if low > 0 else "against" if high < 0 else ""
            what = f"{found.methods} methods, {found.count} pairs"
            rows = [row("all", what, found.value, low, high, found.method_p_value, clear=side, count=found.methods, over="methods")]
            verdict = {"for": Verdict.CONFIRMED, "against": Verdict.REFUTED, "": Verdict.OPEN}[side]
            resolve = "" if side else _more_methods(found)
        verdict, resolve = self._concluded(verdict, resolve)
        return Answer(
            claim=self.claim,
            published=self.published,
            quantity=f"Spearman's ρ between two ranks of the methods within each task: in one, rank 1 {_FIRST[first]}; in the "
            f"other, rank 1 {_FIRST[second]}. Above 0 is for the claim, and the interval decides",
            table=pd.DataFrame(rows, columns=_COLUMNS),
            verdict=verdict,
            supports=int(side == "for"),
            denies=int(side == "against"),
            of=len(rows),
            resolve=resolve,
            missing=self.missing,
            note=self.note,
        )

    def _concluded(self, verdict: Verdict, resolve: str) -> tuple[Verdict, str]:
        """The verdict and what would resolve the claim; nothing is concluded while something is missing or unsure."""
        lacking = _without(self.missing)
        if verdict is Verdict.MISSING:
            return verdict, lacking or resolve
        return (Verdict.OPEN, lacking or self.unsure) if self.missing or self.unsure else (verdict, resolve)


_MIXED = "It is so of some methods or tasks and not of others; no number of runs will make it one answer."


def _vote(clear: pd.Series[str]) -> str:
    """What the comparisons of a group say together."""
    return "for" if (clear == "for").any() else "against" if (clear == "against").all() else ""


def _more_runs(unclear: pd.DataFrame, over: pd.Series[str]) -> str:
    """What would make half of these comparisons clear. Their effects are differences; ``over`` tells what intervals are over."""
    ends = [unclear["high"] - unclear["effect"], unclear["effect"] - unclear["low"]]
    half = pd.concat(ends, axis=1).max(axis=1).astype(float)
    if (half == 0).all():
        return "What is unclear is equal, or differs between seeds in direction: more seeds would tell."
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = float(((half / unclear["effect"].abs().astype(float)) ** 2).fillna(np.inf).median())
    of = "retrainings" if (over[over != "tasks"] == "examples").mean() > 0.5 else "seeds"
    return f"For half of the unclear differences to be clear, {_times(factor)} as many {of} are needed."


def _without(missing: Sequence[str]) -> str:
    told = list(dict.fromkeys(missing))
    what = ", ".join(told) if len(told) <= _FEW else f"{len(told)} parts of the studies"
    return f"Nothing is concluded while this is missing: {what}." if told else ""


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
    factor = (half / math.atanh(found.value)) ** 2
    return f"If ρ is what was found, {_times(factor)} as many methods are needed for its interval to have one sign."


def _times(factor: float) -> str:
    return f"about {max(2, math.ceil(factor))} times" if factor < _MANY else f"more than {_MANY} times"
