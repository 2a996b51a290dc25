"""How far a study is, and how long it will still take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from statistics import fmean

from stability.leave_one_out.wording import duration
from stability.training.progress import Stages

__all__ = ["Pace", "Progress", "Shown"]


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

    @property
    def note(self) -> str:
        """What is to be said beside the count: failures, and the time that is left."""
        failed = [f"{self.failed} failed"] if self.failed else []
        known = self.seconds_left is not None and self.done < self.total
        return ", ".join([*failed, *([f"about {duration(self.seconds_left or 0.0)} left"] if known else [])])


class Shown:
    """Shows the progress of a study, each time that it is called with it.

    Args:
        told: what shows it.
        what: the study, in words.

    Example:
        >>> import sys
        >>> from stability.training.progress import Lines
        >>> shown = Shown(Lines(sys.stdout, every=0), "mine")
        >>> shown(Progress(done=1, total=3))
        mine
        mine: cell 1 of 3
        >>> shown(Progress(done=2, total=3, seconds_left=7.0))
        mine: cell 2 of 3, about 7 s left
    """

    def __init__(self, told: Stages, what: str) -> None:
        self._told, self._what = told, what
        self._done = -1

    def __call__(self, progress: Progress) -> None:
        """Take note of how far the study is."""
        if self._done < 0:
            self._told.begin(self._what, progress.total, "cell")
            self._done = 0
        self._told.note(progress.note)
        self._told(progress.done - self._done)
        self._done = progress.done


class Pace:
    """What is left of a study, from what its finished cells took.

    A cell is expected to take as long as those of its kind did in the mean, and where none is finished as long as all others.

    Args:
        kinds: of each cell that is to be computed what it has in common with those that take equally long, such as its algorithm.
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

    def __init__(self, kinds: Iterable[Hashable], workers: int = 1) -> None:
        self._waiting, self.workers = Counter(kinds), workers
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)

    def finished(self, kind: Hashable, seconds: float | None) -> None:
        """Take note of a finished cell.

        Args:
            kind: what it was, one of those that wait.
            seconds: how long it took; None where that tells nothing of the others, as of a cell that failed.
        """
        self._waiting[kind] -= 1
        if seconds is not None:
            self._seconds[kind].append(seconds)

    def seconds_left(self) -> float | None:
        """How long the cells that wait will take with these workers; None where none was measured yet."""
        if not (left := self._waiting.total()):
            return 0.0
        if not self._seconds:
            return None
        known = {kind: fmean(each) for kind, each in self._seconds.items()}
        usual = fmean(known.values())
        return sum(count * known.get(kind, usual) for kind, count in self._waiting.items()) / min(self.workers, left)
