"""How far a study is, and how long it will still take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

__all__ = ["Pace", "Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: how many cells are finished, those of earlier runs included.
        total: how many cells the study has.
        failed: how many of this run's cells failed.
        seconds_left: how long the others will take; None until a cell of this run is finished.
    """

    done: int
    total: int
    failed: int = 0
    seconds_left: float | None = None

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        left = "" if self.seconds_left is None or self.done == self.total else f", about {spoken(self.seconds_left)} left"
        return f"{self.done} of {self.total} cells{failed}{left}"


class Pace:
    """What is left of a study, from what its finished cells took.

    A cell is expected to take as long as those of its kind did in the mean, and where none is finished as long as all others.

    Args:
        kinds: of each cell that is to be computed a word for what takes equally long, such as its algorithm.
        workers: how many cells are computed at once.

    Example:
        >>> pace = Pace(["full", "sam", "full"], workers=1)
        >>> pace.finished("full", 2.0)
        >>> pace.seconds_left()
        4.0
        >>> pace.finished("sam", 5.0)
        >>> pace.seconds_left()
        2.0
    """

    def __init__(self, kinds: Iterable[str], workers: int) -> None:
        self._waiting, self._workers = Counter(kinds), workers
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def finished(self, kind: str, seconds: float) -> None:
        """Take note of a finished cell.

        Args:
            kind: what it was, one of those that wait.
            seconds: how long it took.
        """
        self._waiting[kind] -= 1
        self._seconds[kind].append(seconds)

    def seconds_left(self) -> float | None:
        """How long the cells that wait will take with these workers; None where none is finished yet."""
        if not self._seconds:
            return None
        known = {kind: fmean(each) for kind, each in self._seconds.items()}
        usual = fmean(known.values())
        return sum(count * known.get(kind, usual) for kind, count in self._waiting.items()) / self._workers


def spoken(seconds: float) -> str:
    """A duration as one says it.

    Args:
        seconds: the duration.

    Example:
        >>> spoken(42), spoken(130), spoken(5000), spoken(200000), spoken(400000)
        ('42 s', '2 min', '83 min', '56 hours', '5 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} hours" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"
