"""``stability repair``: what can be read of a damaged store, in a new one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stability.errors import StabilityError
from stability.studies.salvage import repaired
from stability.studies.state import state_of
from stability.studies.store import Store

__all__ = ["repair"]


def repair(store: Annotated[Path, Parameter(help="The damaged store.", show_default=False)], /) -> None:
    """Keep what can be read of a damaged store; the damaged one is moved aside."""
    found = repaired(store)
    lost = f"; {found.lost} could not be read" if found.lost else ""
    print(f"{store}: {found.kept} {'cell' if found.kept == 1 else 'cells'} kept{lost}")
    with suppress(StabilityError):
        if missing := state_of(Store(store)).missing:
            print(f"cells of the study that are missing: {missing}. Run it again, and they are computed")
    print(f"the damaged store is {found.aside}")
