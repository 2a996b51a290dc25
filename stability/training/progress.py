"""What a long computation is doing, told stage by stage: as a bar, as a line now and then, or to a function of one's own."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from stability.training.descent import Progress

__all__ = ["EVERY", "SILENT", "Bar", "Lines", "Stages", "stages"]

_FORM = "{desc} |{bar}| {n_fmt} of {total_fmt}{unit}, {remaining} left"
_FORM_OF_STEPS = "{desc} |{bar}| {percentage:.0f} %, {remaining} left"  # those of all replicas together say nothing to anybody
EVERY = 10.0
"""Seconds between two lines."""

_LASTING = 1.0  # seconds after which a stage is worth a line of its own


class Stages:
    """Is told what a computation is doing, and how much of that is done. This one says nothing; subclasses show it.

    It is called with the number of units that were just done, as any function that is given as ``progress`` is.

    Example:
        >>> class Printed(Stages):
        ...     def begin(self, what, total=None, unit="step"):
        ...         print(what)
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> algorithm = FineTuning(selectors.BitFit(), steps=2)
        >>> estimate = measure(load("digits", n=10), algorithm, estimators.Sampled(3), progress=Printed())
        selecting which parameters may change
        training on all 10 examples
        retraining without each of 3 examples
        evaluating
    """

    def begin(self, what: str, total: int | None = None, unit: str = "step") -> None:
        """Begin another stage.

        Args:
            what: is done in it, such as "training on all 100 examples".
            total: how many units it has; None where that is unknown.
            unit: what is counted.
        """

    def __call__(self, count: int) -> None:
        """So many units more are done."""

    def note(self, text: str) -> None:
        """Say something beside the count, such as the time that is left.

        Args:
            text: is said until the next note, or the next stage.
        """

    def close(self) -> None:
        """The end, of the last stage too."""


SILENT = Stages()
"""Nobody looks on."""


class Counted(Stages):
    """Tells a function how many units of one kind are done. What other stages count is not told, for it is something else.

    Args:
        told: the function.
        unit: what is counted, as stages name it when they begin.

    Example:
        >>> done = []
        >>> told = Counted(done.append)
        >>> told.begin("selecting", unit="mask")
        >>> told(100)
        >>> told.begin("training")
        >>> told(2)
        >>> done
        [2]
    """

    def __init__(self, told: Progress, unit: str = "step") -> None:
        self._told, self._unit, self._counts = told, unit, False

    def begin(self, what: str, total: int | None = None, unit: str = "step") -> None:
        self._counts = unit == self._unit

    def __call__(self, count: int) -> None:
        if self._counts:
            self._told(count)


class Bar(Stages):
    """Shows a bar in a terminal or a notebook, which is gone when the stage is over."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm  # the notebook's own where there is one

        self._made, self._bar = tqdm, tqdm(total=None, disable=True)

    def begin(self, what: str, total: int | None = None, unit: str = "step") -> None:
        self._bar.close()
        form = "{desc} [{elapsed}]" if total is None else _FORM_OF_STEPS if unit == "step" else _FORM
        self._bar = self._made(desc=what, total=total, unit=f" {unit}s", bar_format=form, leave=False, dynamic_ncols=True)

    def __call__(self, count: int) -> None:
        self._bar.update(count)

    def note(self, text: str) -> None:
        self._bar.bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # without tqdm's own guess of what is left
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        self._bar.close()


class Lines(Stages):
    """Writes a line now and then: for a file or a pipe, in which a bar would be one endless line.

    A stage that lasts a second is named then, though nothing in it may be counted. Shorter ones are not: they would be many.

    Args:
        file: where to; by default standard error.
        every: seconds between two lines of one stage; 0 writes everything, and at once.

    Example:
        >>> told = Lines(sys.stdout, every=0)
        >>> told.begin("training on all 100 examples", total=150)
        training on all 100 examples
        >>> told(75)
        training on all 100 examples: 50 %
    """

    def __init__(self, file: TextIO | None = None, every: float = EVERY) -> None:
        self._file, self._every, self._last = file, every, time.monotonic()
        self._what, self._unit, self._done, self._note = "", "step", 0, ""
        self._total: int | None = None
        self._named = ""  # the stage of the last line
        self._timer: threading.Timer | None = None

    def begin(self, what: str, total: int | None = None, unit: str = "step") -> None:
        self.close()
        self._what, self._unit, self._total, self._done, self._note = what, unit, total, 0, ""
        if self._every == 0:
            self._write()
        elif what != self._named:
            self._timer = threading.Timer(_LASTING, self._name, [what])
            self._timer.daemon = True
            self._timer.start()

    def __call__(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._last >= self._every:
            self._write()

    def note(self, text: str) -> None:
        self._note = text

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _name(self, what: str) -> None:
        """Write of a stage that has lasted, unless a count has done so or the next has begun at this moment."""
        if what == self._what != self._named:
            self._write()

    def _counted(self) -> str:
        return f"{self._unit} {self._done}" + ("" if self._total is None else f" of {self._total}")

    def _write(self) -> None:
        self._last, self._named = time.monotonic(), self._what
        share = f"{100 * self._done / self._total:.0f} %" if self._unit == "step" and self._total else ""
        count = f": {share or self._counted()}" if self._done else ""
        note = f", {self._note}" if self._note else ""
        print(f"{self._what}{count}{note}", file=self._file or sys.stderr, flush=True)


@contextmanager
def stages(progress: bool | Progress | None, unit: str = "step") -> Iterator[Stages]:
    """What is told of a computation, closed at its end.

    Args:
        progress: True for a bar, in a terminal or a notebook, and for a line every ten seconds elsewhere; a :class:`Stages`,
            which is then not closed; a function, which is told counts of ``unit`` alone; False or None for nothing.
        unit: what a function is told the count of.

    Example:
        >>> done = []
        >>> with stages(done.append) as told:
        ...     told.begin("counting", total=2)
        ...     told(2)
        >>> done
        [2]
    """
    if isinstance(progress, Stages):
        yield progress
        return
    if callable(progress):
        yield Counted(progress, unit)
        return
    told = Stages() if not progress else Bar() if _interactive() else Lines()
    try:
        yield told
    finally:
        told.close()


def _interactive() -> bool:
    """Whether somebody looks on: at a terminal, or in a notebook."""
    if sys.stderr.isatty():
        return True
    from tqdm.auto import tqdm

    return any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
