"""``stability list`` and ``stability doctor``: what there is."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from stability.cli.printing import print_json

__all__ = ["Json", "doctor", "names"]

Json = Annotated[bool, Parameter(help="Print one JSON value on standard output and nothing else.")]


def names(*, json: Json = False) -> None:
    """Name the problems, methods and studies."""
    from stability.problems import PROBLEMS
    from stability.problems.tasks import HUB
    from stability.selectors.naming import SELECTORS, announced
    from stability.studies.named import PAPER, STUDIES

    found = {"problems": [*PROBLEMS, *HUB], "selectors": [*SELECTORS, *sorted(announced())], "studies": [*STUDIES, *PAPER]}
    if json:
        print_json(found)
        return
    for kind, members in found.items():
        print(f"{kind}: {', '.join(members)}")


def doctor(*, json: Json = False) -> None:
    """Tell the versions, devices and threads of this machine."""
    from stability import machine

    facts = machine.report()
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:>16}  {', '.join(value) if isinstance(value, list) else value}")
