"""``stability compare``: several methods beside each other, each with its own settings."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated, Any

from cyclopts import Parameter

from stability.cli.figures import check_writable, draw
from stability.cli.options import (
    DATA,
    METHOD,
    OUTPUT,
    Data,
    EstimatorOptions,
    Model,
    Objective,
    Stored,
    Training,
    Workers,
    load,
    problem_settings,
)
from stability.cli.parsing import WHOLE, Numbers, given, methods, options
from stability.cli.printing import plain, print_json
from stability.errors import UsageError
from stability.selectors.naming import selectors_named
from stability.studies import cost
from stability.studies.comparison import Comparison, compared, labels, study_of
from stability.studies.identity import key

__all__ = ["compare"]


@options(DATA)
@dataclass(frozen=True, kw_only=True)
class Repeated:
    """The problem, and how often it is measured.

    Attributes:
        problem: A problem of 'stability list'; or with --model a file or folder of texts, or a task of the hub such as glue/rte.
        seeds: Number of seeds; each draws its own training set, which all methods share. Two give no interval; what
            one tells is of that training set alone.
    """

    problem: str = "digits"
    seeds: Annotated[int, WHOLE] = 3


@options(METHOD)
@dataclass(frozen=True, kw_only=True)
class Swept:
    """Which p are measured.

    Attributes:
        sparsities: Measure each method that takes a p, and has none of its own, at each of these.
    """

    sparsities: Numbers = ()


@options(OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Kept(Stored):
    """Where results go.

    Attributes:
        store: SQLite file, or folder NAME.d, that keeps every finished cell; the same command goes on from there. By default
            runs/compare-….sqlite.
        reuse: Take over what this store of a like comparison has finished.
        plan: Compute nothing: time a few steps, and say what the comparison will cost.
        json: Print one JSON value on standard output and nothing else.
    """

    json: bool = False


Words = Annotated[
    str,
    Parameter(
        group=METHOD,
        help="The methods, each with its own settings after it: full lora rank=4 sam sparsity=0.01,0.05. The others are compared "
        "with the first.",
    ),
]


def compare(
    *method: Words,
    which: Repeated = Repeated(),
    data: Data = Data(),
    model: Model = Model(),
    swept: Swept = Swept(),
    training: Training = Training(),
    objective: Objective = Objective(),
    estimation: EstimatorOptions = EstimatorOptions(),
    stored: Kept = Kept(),
    machine: Workers = Workers(),
) -> None:
    """Compare several methods, each with its own settings, on the same training sets and seeds."""
    if not (asked := methods(method)):
        raise UsageError(
            "there is nothing to compare: give methods, such as 'stability compare full lora rank=4 sam sparsity=0.05'"
        )
    if stored.figures is not None:
        check_writable(stored.figures)
    settings = problem_settings(data, model)
    selectors = selectors_named(asked, swept.sparsities)
    load(which.problem, **settings)
    algorithms = [objective.made(selector, training, 0) for selector in selectors]
    study = study_of(
        which.problem,
        algorithms,
        seeds=which.seeds,
        problem_settings=settings,
        estimator=estimation.made(),
        test_examples=estimation.test_examples,
    )
    store = stored.store or Path("runs") / f"compare-{key(study.identity())[:8]}.sqlite"
    how: dict[str, Any] = {"reuse": stored.reuse, **given(machine)}
    if stored.plan:
        print(cost.expected(study, store, reuse=stored.reuse, **given(machine, "address", "wait")))
        return
    results = compared(study, store, progress=True, **how)
    comparison = Comparison(results=results, labels=labels(study))
    if stored.json:
        print_json(plain(_told(comparison, store)))
    else:
        width = get_terminal_size((100, 24)).columns
        table, gap, rest = comparison.text(width).partition("\n\n")
        print(table + gap + "\n".join(fill(line, width) for line in rest.splitlines()), "", f"results: {store}", sep="\n")
    if stored.figures is not None:
        draw(comparison.results, stored.figures, quiet=stored.json)
        _draw_differences(comparison, stored.figures, quiet=stored.json)


def _draw_differences(comparison: Comparison, folder: Path, quiet: bool) -> None:
    """The figure of what each method has more than the first, where it has an interval; print its paths unless ``quiet``."""
    from stability import plotting  # after draw, which has chosen what draws into files
    from stability.plotting.files import study_prefix

    with suppress(plotting.NothingToDrawError):
        results = comparison.results
        start = study_prefix(results, results.tasks)
        note = f"study {results.study}, identity {results.fingerprint}"
        for path in plotting.save({"against_first": plotting.against_first(comparison)}, folder, start, note):
            if not quiet:
                print(path)


def _told(comparison: Comparison, store: Path) -> dict[str, Any]:
    """The comparison as plain values."""
    quantities = ("stability", "test_loss", "test_metric")
    return {
        "methods": comparison.table().to_dict("records"),
        "differences": {name: comparison.differences(name).to_dict("records") for name in quantities},
        "sentences": comparison.sentences(),
        "notes": list(comparison.results.notes),
        "store": str(store),
    }
