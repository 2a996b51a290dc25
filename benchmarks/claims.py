"""The claims of Fu et al. 2023 where methods learn: every study of them, one after the other, going on where it was stopped.

    python -m benchmarks.claims [--data FOLDER] [--model FOLDER] [--only NAME …] [--reuse FOLDER] [--plan]

Each task begins with a search for learning rates, and its other studies take the rates that the search found. Stores are in
runs/claims while they grow. After each cell they are copied to figures/claims, from where a fresh checkout goes on. A study that is
finished is drawn into figures.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.language import add_model
from stability import plotting
from stability.cli import commands
from stability.errors import StabilityError
from stability.plotting.files import study_prefix
from stability.studies import Protocol, Store, StudyResults, cost, found_rates, pace, run
from stability.studies.named import CLAIMS

RUNS, KEPT = Path("runs/claims"), Path("figures/claims")
DRAWN = {"": "methods", "sparsity": "six_panels"}
"""The figure of a study, by what follows its task's name."""

_TASKS = [*dict.fromkeys(name.split("-")[1] for name in CLAIMS)]
ORDER = tuple(sorted(CLAIMS, key=lambda name: (_TASKS.index(name.split("-")[1]), "-rates" not in name)))
"""One task after the other, and of each the searches first."""


def searched(name: str) -> str | None:
    """The search from which a study takes its learning rates; None of a search itself."""
    if name.endswith("-rates"):
        return None
    return f"{name.removesuffix('-perturbation').removesuffix('-fit')}-rates"


def protocols(names: tuple[str, ...], model: str, data: str | None, *, beginning: bool = False) -> Iterator[tuple[str, Protocol]]:
    """The protocols of studies, each made when the searches before it are done.

    Args:
        names: of the studies.
        model: the model's folder.
        data: the folder of the tasks; None: they come from the hub.
        beginning: take the rates with which a search begins where there is none yet: a plan needs no others.
    """
    for name in names:
        protocol = replace(CLAIMS[name], model=model, data=data)
        if (search := searched(name)) is not None:
            try:
                store = RUNS / f"{search}.sqlite"
                rates = found_rates(store, protocol.tasks)
                Store(store).check(replace(CLAIMS[search], model=model, data=data).study(search).identity())
                protocol = replace(protocol, rates=rates)
            except StabilityError as error:
                if not beginning:
                    print(f"{name} is left out: {error}", flush=True)
                    continue
        yield name, protocol


def fetched(name: str) -> Path:
    """The store in which a study goes on: where there is none, a copy of the one that was kept."""
    path, kept = RUNS / f"{name}.sqlite", KEPT / f"{name}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kept.exists() and not path.exists():
        copied(kept, path, overwrite=False)
    return path


def copied(source: Path, target: Path, *, overwrite: bool = True) -> None:
    """Copy a store, whole even while it is written to; the copy is there at once, or not at all.

    Args:
        source: the store.
        target: the copy. Several processes may make it at the same time.
        overwrite: put the copy in the place of a file that is there, and otherwise leave that file as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".part", dir=target.parent) as folder:
        part = Path(folder) / target.name
        with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old, closing(sqlite3.connect(part)) as new:
            old.backup(new)
            new.execute("PRAGMA journal_mode=DELETE")  # one file, and no others beside it
        if overwrite:
            os.replace(part, target)
            return
        with suppress(FileExistsError):
            os.link(part, target)


def draw(name: str) -> None:
    """Draw the figures of a finished study that there are of its kind."""
    _, task, *rest = name.split("-")
    part = "-".join(rest)
    if part in ("", "fit"):
        draw_beside_full_tuning(task)
    if (figure := DRAWN.get(part)) is not None:
        commands.main(["figures", "--store", str(RUNS / f"{name}.sqlite"), "--out", str(KEPT.parent), "--only", figure])


def draw_beside_full_tuning(task: str) -> None:
    """Draw the methods beside full tuning at smaller learning rates, once both studies are finished."""
    paths = [RUNS / f"claims-{task}{ending}.sqlite" for ending in ("", "-fit")]
    if not all(path.exists() for path in paths):
        return
    main, slower = map(StudyResults.read, paths)
    if main.to_compute or slower.to_compute:
        return
    figure = plotting.against_fit(main, [slower, main.where(method="full")])
    note = ", ".join(f"study {one.study}, identity {one.fingerprint}" for one in (main, slower))
    plotting.save({"against_fit": figure}, KEPT.parent, study_prefix(main, [task]), note)


def add_studies(parser: argparse.ArgumentParser) -> None:
    """Let a command take the studies that it is about, their tasks and their model."""
    parser.add_argument("--data", help="a folder with a folder for each task; by default the tasks come from the Hugging Face hub")
    add_model(parser)
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, metavar="NAME", help=f"some of {', '.join(ORDER)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_studies(parser)
    parser.add_argument(
        "--reuse", type=Path, metavar="FOLDER", help="stores of an earlier protocol, whose cells are taken if alike"
    )
    parser.add_argument("--plan", action="store_true", help="only estimate the hours")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.reuse is not None and not options.reuse.is_dir():
        parser.error(f"--reuse {options.reuse}: there is no such folder")
    names = tuple(options.only)
    how: dict[str, Any] = {"device": options.device, "workers": options.workers}
    for name in ORDER:
        fetched(name)
    hours, lost = 0.0, 0
    for name, protocol in protocols(names, options.model, options.data, beginning=options.plan):
        study, store = protocol.study(name), RUNS / f"{name}.sqlite"
        kept = KEPT / store.name
        if options.reuse is not None:
            how["reuse"] = before if (before := options.reuse / store.name).exists() else None
        if options.plan:
            try:
                found = cost.expected(study, store, **how)
            except StabilityError as error:
                print(f"{name} cannot be planned: {error}\n", flush=True)
                lost += 1
                continue
            hours += float(found.table["hours"].sum())
            print(f"{found}\n", flush=True)
            continue

        def keep(progress: pace.Progress, store: Path = store, kept: Path = kept) -> None:
            print(f"{store.stem}: {progress.done} of {progress.total} cells", flush=True)
            copied(store, kept)

        try:
            run(study, store, on_cell=keep, **how)
            if not kept.exists() or Store(kept).finished() != Store(store).finished():
                copied(store, kept)  # with what was taken over, and what another process finished at the same time
            draw(name)
        except StabilityError as error:  # a task's folder that is missing does not stop the others
            print(f"{name} stopped: {error}", flush=True)
            lost += 1
    if options.plan:
        print(f"all of these: about {hours:.1f} hours with {options.workers} worker(s)")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
