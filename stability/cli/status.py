"""``stability status``: how far a study is, also while it runs."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import pandas as pd
from cyclopts import Parameter

from stability.cli.about import Json
from stability.cli.printing import plain, print_json
from stability.leave_one_out.wording import duration
from stability.studies.results import Failure
from stability.studies.state import State, WorkerState, state_of
from stability.studies.store import Store

__all__ = ["status"]


def status(*, store: Annotated[Path, Parameter(help="Store of results: a file, or a folder NAME.d.")], json: Json = False) -> None:
    """Tell how far the study of a store is; it may be running."""
    found = state_of(Store(store))
    if json:
        print_json(plain(_values(found)))
    else:
        print(_text(found, store))


def _values(found: State) -> dict[str, object]:
    return {
        "study": found.study,
        **{name: getattr(found, name) for name in ("total", "measured", "failed", "missing")},
        "last": None if found.last is None else found.last.isoformat(),
        "cells_per_hour": found.rate,
        "remaining_seconds": found.remaining,
        "mode": found.mode,
        "network": found.network,
        "workers": [{**asdict(one), "heard": one.heard.isoformat()} for one in found.workers],
        "methods": [{**asdict(one), "missing": one.missing} for one in found.methods],
        "failures": [{"kind": kind, "reason": reason, "cells": count} for (kind, reason), count in found.failures.items()],
    }


def _worker(one: WorkerState) -> str:
    heard = duration(max(0.0, (datetime.now(UTC) - one.heard).total_seconds()))
    alive = "it is dead: its cells are taken over when the study is run" if one.gone else f"last sign of life {heard} ago"
    return f"process {one.process} on {one.machine} ({one.what}; {alive}): {'; '.join(one.cells) or 'no cell at this moment'}"


def _text(found: State, store: Path) -> str:
    done = found.measured + found.failed
    lines = [
        f"{found.study}: {done} of {found.total} cells are finished, {found.failed} of them failed; "
        f"{found.missing} {'is' if found.missing == 1 else 'are'} missing"
    ]
    if found.last is not None:
        lines.append(f"the last cell was finished {duration((datetime.now(UTC) - found.last).total_seconds())} ago")
    if found.missing and not math.isnan(found.rate):
        rate = f"{found.rate:,.0f}" if found.rate >= 10 else f"{found.rate:.2g}"
        lines.append(f"pace: {rate} cells an hour; about {duration(found.remaining)} are left while it runs")
    table = pd.DataFrame(
        {
            "method": [one.method for one in found.methods],
            "cells": [one.total for one in found.methods],
            "measured": [one.measured for one in found.methods],
            "failed": [one.failed for one in found.methods],
            "missing": [one.missing for one in found.methods],
            "seconds a cell": ["–" if math.isnan(one.seconds) else f"{one.seconds:.1f}" for one in found.methods],
        }
    )
    lines += ["", table.to_string(index=False)]
    lines += ["", *map(_worker, found.workers)] if found.workers else []
    for (kind, reason), count in found.failures.items():
        again = "" if kind == Failure.METHOD else "; tried again when the study is run again"
        lines.append(f"failed, {count} {'cell' if count == 1 else 'cells'} ({kind}{again}): {reason}")
    if found.network is not None:
        safe = (
            "" if store.is_dir() else f"; locks may not work there, a folder such as {store.with_suffix('.d')} is the safe choice"
        )
        lines.append(f"\nthe store is {found.mode}, on a network file system ({found.network}){safe}")
    if found.missing:
        why = "to help" if any(not one.gone for one in found.workers) else "to go on"
        lines.append(f"\n{why}: run again the command that began it, so that it writes to {store}")
    return "\n".join(lines)
