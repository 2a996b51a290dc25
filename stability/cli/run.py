"""``stability run``: a study that comes with the toolkit, one of the paper's, one of a file, or one of your own.

Each of the four has options of its own; the word STUDY says which it is.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import App, Group, Parameter

from stability.checks import check_whole, those_given
from stability.cli.figures import check_writable, draw
from stability.cli.options import (
    BOUNDS,
    Data,
    EstimatorOptions,
    Methods,
    Model,
    SomeProblems,
    Stored,
    Training,
    Workers,
    common_defaults,
    load,
    problem_settings,
)
from stability.cli.parsing import RefusedOptionError, Whole, application, called, given, names, options, settings
from stability.cli.protocol_options import protocol_options
from stability.cli.study_file import read
from stability.errors import StabilityError, UsageError, described
from stability.reports import render
from stability.studies import cost, running
from stability.studies.named import PAPER, STUDIES
from stability.studies.pace import Progress, Shown
from stability.studies.rates import found_rates
from stability.studies.results import StudyResults
from stability.studies.study import Study
from stability.training import FineTuning
from stability.training.progress import stages

__all__ = ["asked", "run"]


class Asked(NamedTuple):
    """A study, where its results go, and what computes them."""

    study: Study
    stored: Stored
    machine: Workers


_Word = Annotated[str, Parameter(show=False)]


def _named(name: _Word, /, *, methods: Methods = Methods(), stored: Stored = Stored(), machine: Workers = Workers()) -> Asked:
    """Run a study that comes with the toolkit, or go on with it; print its table."""
    found, more = STUDIES[name], methods.made()
    return Asked(found.with_selectors(*more) if more else found, stored, machine)


@options(BOUNDS)
@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Whether bounds are measured.

    Attributes:
        check_replicas: Measure bounds too, with the curvature at so many of the left-out models; by default no bounds.
    """

    check_replicas: Whole = None


def _own(
    name: _Word,
    /,
    *,
    which: SomeProblems,
    data: Data = Data(),
    model: Model = Model(),
    methods: Methods = Methods(),
    training: Training = Training(),
    estimation: EstimatorOptions = EstimatorOptions(),
    bounding: Curvature = Curvature(),
    stored: Stored = Stored(),
    machine: Workers = Workers(),
) -> Asked:
    """Run a study of your own, or go on with it; print its table."""
    if name in (*STUDIES, *PAPER):
        raise UsageError(f"study {name!r} has its own problem: give your study another name")
    selectors = methods.made()
    if not selectors:
        raise UsageError("a study of --problem needs --selectors: full sam, with --sparsities 0.005, for example")
    how, seeds = training.made(), 3 if which.seeds is None else which.seeds
    defaults = common_defaults(which.problem)
    algorithms = tuple(FineTuning(selector, **how).with_defaults(defaults) for selector in selectors)
    check_whole(1, seeds=seeds, **those_given(samples=which.samples))
    own = problem_settings(data, model)
    for problem in which.problem:
        load(problem, **own)
    made = Study(
        name,
        which.problem[0] if len(which.problem) == 1 else which.problem,
        algorithms,
        tuple(range(seeds)),
        problem_settings=own,
        check_replicas=bounding.check_replicas,
        estimator=estimation.made(),
        samples=None if which.samples is None else tuple(range(which.samples)),
        measured_seeds=which.measured_seeds,
        test_examples=estimation.test_examples,
    )
    return Asked(made, stored, machine)


def _of_file(
    path: Annotated[Path, Parameter(show=False)],
    /,
    *,
    own_code: Annotated[bool, Parameter(help="Let the file name methods as module:name, whose code is then run.")] = False,
    stored: Stored = Stored(),
    machine: Workers = Workers(),
) -> Asked:
    """Run the study of a file, or go on with it; print its table."""
    return Asked(read(path, own_code), stored, machine)


def _of_paper(name: str) -> Callable[..., Asked]:
    """The command of one of the paper's studies: its options are the fields of the protocol."""
    protocol = PAPER[name]
    options_of_it = protocol_options(protocol)

    def command(name: _Word, /, *, own: Any = options_of_it(), stored: Stored = Stored(), machine: Workers = Workers()) -> Asked:
        """Run an experiment of Fu et al. 2023, or go on with it; print its table."""
        asked = given(own)
        if added := asked.pop("selectors", ()):
            asked["methods"] = (*asked.get("methods", protocol.methods), *added)
        if not asked.get("evaluate_every", protocol.evaluate_every) and (odd := asked.keys() & {"patience", "least_steps"}):
            flag = min(odd).replace("_", "-")
            raise UsageError(f"--{flag} belongs to --evaluate-every, which is 0: leave it out, or give that too")
        # One rate that was given is for all methods; rates of some of them leave the others'.
        before = () if "learning_rate" in asked else protocol.rates
        if (searched := asked.pop("rates_from", None)) is not None:
            before = (*before, *found_rates(searched, asked.get("tasks", protocol.tasks)))
        asked["rates"] = (*before, *settings(asked.get("rates", ())))
        return Asked(replace(protocol, **asked).study(name), stored, machine)

    command.__annotations__["own"] = options_of_it
    return command


_FORMS = """Run a study, or go on with one; print its table. There are four forms:

stability run STUDY: a study that comes with the toolkit, {studies}.

stability run PAPER: an experiment of Fu et al. 2023, {papers}.

stability run FILE.toml: the study that a file describes.

stability run NAME --problem PROBLEM ... --selectors SELECTOR ...: a study of your own.

The options below are those of the last form; 'stability run STUDY --help' tells those of the others."""


def _own_form() -> App:
    text = _FORMS.format(studies=", ".join(STUDIES), papers=", ".join(PAPER))
    return _form(_own, "NAME", "NAME --problem PROBLEM... --selectors SELECTOR... [OPTIONS]", help=text)


def _form(command: Callable[..., Asked], word: str, usage: str | None = None, **how: Any) -> App:
    made = application(
        f"stability run {word}",
        usage=f"Usage: stability run {usage or f'{word} [OPTIONS]'}",
        group_commands=Group("", show=False),
        **how,
    )
    made.default(command)
    return made


def _form_of(arguments: Sequence[str]) -> App:
    """Of the four, the one that the words ask for.

    Raises:
        UsageError: no study is named, or an unknown one.
    """
    studies = [*STUDIES, *PAPER]
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    word = first or next((word for word in arguments if word in studies or word.endswith(".toml")), None)
    if any(word.split("=")[0] == "--problem" for word in arguments):
        if first is not None and first.endswith(".toml"):
            raise UsageError(f"{first} names its own problem: leave --problem out, or give your study another name")
        return _own_form()
    if word in STUDIES:
        return _form(_named, word)
    if word is not None and word in PAPER:
        return _form(_of_paper(word), word)
    if word is not None and word.endswith(".toml"):
        return _form(_of_file, word)
    if {"--help", "-h"} & set(arguments):
        return _own_form()
    what = "run needs the name of a study" if word is None else f"unknown study {word!r}"
    raise UsageError(f"{what}: there is {', '.join(studies)}; for one of your own give --problem, or a file study.toml")


def asked(arguments: Sequence[str]) -> Asked | None:
    """The study that is asked for.

    Args:
        arguments: the words after ``stability run``.

    Returns:
        The study, where its results go and what computes them; None where only help was asked for.

    Raises:
        UsageError: an unknown study, an option that this study does not have, or a value that it refuses.

    Example:
        >>> found = asked(["digits-short", "--workers", "1"])
        >>> len(found.study.cells()), found.machine.workers
        (72, 1)
    """
    form = _form_of(arguments)
    try:
        found: Asked | None = called(form, arguments)
    except RefusedOptionError as unknown:
        papers = [name for name in PAPER if unknown.option in names(_form(_of_paper(name), name))]
        where = ["--problem"] if unknown.option in names(_own_form()) else []
        where += [f"the studies {', '.join(papers)}"] if papers else []
        if where:
            raise unknown.belonging(" and ".join(where)) from None
        raise
    return found


def run(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Run a study, or go on with one; print its table."""
    if (found := asked(arguments)) is None:
        return
    mine, stored, how = found.study, found.stored, {"reuse": found.stored.reuse, **given(found.machine)}
    store = stored.store or Path("runs") / f"{mine.name}.sqlite"
    if stored.plan:
        print(cost.expected(mine, store, reuse=stored.reuse, **given(found.machine, "address", "wait")))
        return
    if stored.figures is not None:
        check_writable(stored.figures)
    with stages(True) as told:
        shown, drawn = Shown(told, mine.name), _Drawn(store, stored.figures)

        def look(progress: Progress) -> None:
            shown(progress)
            drawn.look()

        try:
            results = running.run(mine, store, on_start=look, on_cell=look, **how)
        finally:
            drawn.finish()
    print(render(results))
    print(f"\nresults: {store}")
    if stored.figures is not None:
        draw(results, stored.figures)


_FIRST, _FACTOR = 10.0, 4  # seconds until figures are first drawn; then again when so many times as long has passed


class _Drawn:
    """Draws what a study has found so far, in a thread of its own, while the study goes on.

    Args:
        store: its results so far.
        folder: where the figures are drawn; None for none.
        first: seconds until they are drawn for the first time.
    """

    def __init__(self, store: Path, folder: Path | None, first: float = _FIRST) -> None:
        self._store, self._folder = store, folder
        self._began, self._due = time.monotonic(), first
        self._drawing, self._error = threading.Thread(), ""

    def look(self) -> None:
        """Draw if it is time."""
        past = time.monotonic() - self._began
        if self._folder is not None and past >= self._due and not self._drawing.is_alive():
            self._due = _FACTOR * past
            self._drawing = threading.Thread(target=self._draw, args=(self._folder,), daemon=True)
            self._drawing.start()

    def finish(self) -> None:
        """Wait for what is being drawn, for pyplot is not for two threads at once; and say what went wrong."""
        if self._drawing.is_alive():
            self._drawing.join()
        if self._error:
            print(f"note: no figures while the study ran: {self._error}", file=sys.stderr)

    def _draw(self, folder: Path) -> None:
        try:
            draw(StudyResults.read(self._store), folder, formats=("png",), quiet=True)
        except StabilityError:  # too little is finished yet for a figure; at the end it is drawn, or said why not
            pass
        except Exception as error:  # whatever it is, the study goes on
            self._error = described(error)
