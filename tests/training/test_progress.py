"""What a measurement says while it works: the stages in their order, whole counts, and lines where there is no terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from stability import FineTuning, Problem, measure
from stability.leave_one_out.estimators import Assisted, Sampled
from stability.selectors import SAM
from stability.training.progress import Bar, Lines, Stages, stages


class Written(Stages):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int | None, int]] = []

    def begin(self, what: str, total: int | None = None, unit: str = "step") -> None:
        self.seen.append((what, total, 0))

    def __call__(self, count: int) -> None:
        what, total, done = self.seen.pop()
        self.seen.append((what, total, done + count))


def test_every_stage_is_told_and_counted_to_its_end(digits: Problem) -> None:
    written = Written()
    measure(digits, FineTuning(SAM(0.05), steps=4), Assisted(3), device="cpu", progress=written)
    told = {what: (total, done) for what, total, done in written.seen}
    assert [what for what, *_ in written.seen].count("predicting what leaving out each of 24 examples does") == 1
    assert list(told)[-1] == "evaluating"
    assert told["training on all 24 examples"] == (4, 4)
    assert told["predicting what leaving out each of 24 examples does"] == (25 * 4, 25 * 4)
    assert told["selecting again without each of 24 examples"] == (24, 24)  # the prediction needs all
    assert told["retraining without each of 3 examples"] == (4 * 4, 4 * 4)


def test_a_function_is_told_counts_and_nothing_is_shown_unasked(digits: Problem, capsys: pytest.CaptureFixture[str]) -> None:
    counts: list[int] = []
    algorithm = FineTuning(SAM(0.05), steps=2)
    told = measure(digits, algorithm, Sampled(2), device="cpu", progress=counts.append)
    assert sum(counts) == 2 + 3 * 2
    silent = measure(digits, algorithm, Sampled(2), device="cpu")
    assert told.value == silent.value
    assert capsys.readouterr() == ("", "")


def test_a_function_is_told_the_replica_steps_that_were_trained_and_nothing_else(digits: Problem) -> None:
    """A prediction follows 25 linearised replicas, and 24 masks are selected: neither is a step of training."""
    counts: list[int] = []
    measure(digits, FineTuning(SAM(0.05), steps=2), Assisted(3), device="cpu", progress=counts.append)
    assert sum(counts) == 2 * (1 + 4)  # A(S) alone; then with three left-out ones


def test_a_bar_says_what_is_done_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    bar = Bar()
    for what in ("training on all", "retraining"):
        bar.begin(what, total=4)
        bar(4)
    bar.close()
    text = shown.getvalue()
    assert text.index("training on all |") < text.index("| 0 %") < text.index("retraining |")
    assert text.rstrip(" ").endswith("\r")  # the last bar is wiped out


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    file = io.StringIO()
    lines = Lines(file)
    lines.begin("training", total=5)
    for now in (9.0, 11.0, 12.0, 22.0):  # noqa: B007 - the clock reads it
        lines(1)
    lines.close()
    assert file.getvalue() == "training: 40 %\ntraining: 80 %\n"


class Timer:
    """A timer whose time is up when the test says so."""

    started: ClassVar[list[Timer]] = []
    daemon = False

    def __init__(self, seconds: float, function: Callable[..., None], args: Sequence[object]) -> None:
        assert 0 < seconds <= 1
        self.function, self.args, self.cancelled = function, args, False

    def start(self) -> None:
        assert self.daemon  # a program that ends does not wait for it
        self.started.append(self)

    def cancel(self) -> None:
        self.cancelled = True

    def up(self) -> None:
        if not self.cancelled:
            self.function(*self.args)


def test_a_stage_that_lasts_is_named_at_once_and_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Timer", Timer)
    monkeypatch.setattr(Timer, "started", [])
    file = io.StringIO()
    lines = Lines(file)
    for what in ("selecting", "evaluating", "predicting"):  # the first two are over before their second is
        lines.begin(what)
    lines.begin("evaluating")
    Timer.started[-2].function("predicting")  # its time was up at the moment at which it ended
    Timer.started[-1].up()
    lines.begin("evaluating")  # which has been said
    lines.begin("training", total=3)
    lines(1)
    Timer.started[-1].up()
    lines.close()
    for timer in Timer.started:
        timer.up()
    assert len(Timer.started) == 5
    assert file.getvalue() == "evaluating\ntraining: 33 %\n"


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bar), (False, Lines)])
def test_true_suits_the_place(terminal: bool, kind: type[Stages], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with stages(True) as told:
        assert type(told) is kind
    with stages(False) as told:
        assert type(told) is Stages
