"""``stability verify``: some cells of a store computed again, and compared with what is stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from tqdm import tqdm

from stability.cli.parsing import WHOLE, nearest
from stability.errors import StabilityError, UsageError
from stability.problems import short_name
from stability.studies.rebuilt import rebuilt
from stability.studies.store import Store
from stability.studies.study import Study
from stability.studies.verification import TOLERANCE, Agreement, Checked
from stability.studies.verification import verify as verified

__all__ = ["verify"]

_OWN = ("--store", "--cells", "--seed", "--tolerance", "--device")


def verify(
    *study: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="The words after 'stability run' that made the store. They are needed only where the store cannot tell them: for "
            "texts, and for methods of your own.",
        ),
    ],
    store: Annotated[Path, Parameter(help="Store of results: an SQLite file, or a folder NAME.d.")],
    cells: Annotated[int, WHOLE, Parameter(help="How many cells to compute again, drawn at random.")] = 3,
    seed: Annotated[int, WHOLE, Parameter(help="Draws the cells.")] = 0,
    tolerance: Annotated[float, Parameter(help="The relative difference that is still called rounding.")] = TOLERANCE,
    device: Annotated[str, Parameter(help="The device: auto, cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Compute some cells of a store again, and compare them with what is stored."""
    held = Store(store)
    held.check_complete("its cells cannot be verified")
    mine = _asked(study) if study else _told(held)
    torch.set_num_threads(1)  # as the processes that computed the cells did
    total = min(cells, len(held.finished()))
    checks = verified(mine, held, cells, seed=seed, device=device, tolerance=tolerance)
    print(f"{'task':<10} {'method':<18} {'p':>8} {'seed':>4}  {'numbers':>7}  {'differ':>6}  agreement")
    found = []
    for checked in tqdm(checks, total=total, unit="cell", disable=None):
        tqdm.write(_line(checked), file=sys.stdout)
        found.append(checked.agreement)
    print(_conclusion(found, tolerance))
    if different := found.count(Agreement.DIFFERENT):
        raise StabilityError(f"{different} of {len(found)} computed again differ from what {store} holds")


def _asked(words: tuple[str, ...]) -> Study:
    from stability.cli.run import asked

    if words[0].startswith("-") and not any(word == "--problem" or word.endswith(".toml") for word in words):
        remedy = nearest(words[0].split("=")[0], _OWN) or "the words after 'stability run' begin with a study"
        raise UsageError(f"verify has no {words[0]}: {remedy}")
    found = asked(words)
    if found is None:
        raise UsageError("'stability verify --help' tells the options of verify")
    return found.study


def _told(store: Store) -> Study:
    try:
        return rebuilt(store.identity)
    except UsageError as error:
        raise UsageError(
            f"{error}; give the words after 'stability run' that made it, a study with its options or a file: "
            f"stability verify --store {store.path} STUDY …"
        ) from error


def _line(checked: Checked) -> str:
    algorithm, agreement = checked.stored.cell.algorithm, checked.agreement
    p = "" if algorithm.asked_sparsity is None else f"{algorithm.asked_sparsity:g}"
    numbers, differ = checked.stored.numbers, len(checked.differences)
    task = short_name(checked.stored.cell.problem)
    line = f"{task:<10} {algorithm.name:<18} {p:>8} {algorithm.seed:>4}  {numbers:>7}  {differ:>6}  {agreement}"
    if agreement == Agreement.EQUAL:
        return line
    columns = sorted(checked.by_column.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} {size:.1e}" for name, size in columns[:3])
    return f"{line}: {shown}" + (f" and {len(columns) - 3} more columns" if len(columns) > 3 else "")


def _conclusion(found: list[Agreement], tolerance: float) -> str:
    words = {
        Agreement.EQUAL: "equal bit for bit",
        Agreement.ROUNDING: f"equal but for rounding (relative difference at most {tolerance:g})",
        Agreement.DIFFERENT: "different",
    }
    counts = {text: found.count(kind) for kind, text in words.items() if kind in found}
    return f"\n{len(found)} {'cell' if len(found) == 1 else 'cells'}: " + ", ".join(
        f"{count} {text}" for text, count in counts.items()
    )
