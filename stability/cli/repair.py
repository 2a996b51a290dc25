"""``stability repair``: what can be read of a damaged store, in a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stability.studies.salvage import repaired

__all__ = ["repair"]


def repair(store: Annotated[Path, Parameter(help="The damaged store.", show_default=False)], /) -> None:
    """Keep what can be read of a damaged store; the damaged one is moved aside."""
    found = repaired(store)
    lost = f"; {found.lost} could not be read and will be computed again" if found.lost else ""
    print(f"{store}: {found.kept} {'cell' if found.kept == 1 else 'cells'} kept{lost}")
    print(f"the damaged store is {found.aside}")
