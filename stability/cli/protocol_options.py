"""The options of the paper's studies: the fields of :class:`stability.studies.protocol.Protocol`."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter

from stability.cli.options import (
    BOUNDS,
    DATA,
    ESTIMATOR,
    EXPERIMENT,
    MODEL,
    PAPER_TRAINING,
    Data,
    EstimatorOptions,
    Model,
    SomeProblems,
    Training,
)
from stability.cli.parsing import Flags, Names, Numbers, Whole, shown, told
from stability.studies.protocol import AUTHORS, TASKS, UNUSED, Protocol
from stability.training import FineTuning

__all__ = ["protocol_options"]

_PLAIN = {
    "tasks": f"Tasks of the paper ({', '.join(TASKS)}), or folders of --data.",
    "methods": "Methods to compare: names of 'stability list', or module:name for your own.",
    "rates": "METHOD=RATE for methods that have a learning rate of their own, METHOD@P=RATE for one of several p.",
    "factors": "Train each method at its learning rate times each of these: a search, for --rates-from.",
    "authors": "Do as the authors' code does: " + "; ".join(f"{name}: {what}" for name, what in AUTHORS.items()) + ".",
}
"""Help of those fields whose documentation refers to constants."""

_FOUND = "Store of a finished search of this task's learning rates (--factors): take those that are best on the validation split."

_KINDS: dict[Any, Any] = {
    int: Whole,
    int | None: Whole,
    bool: Flags,
    tuple[str, ...]: Names,
    tuple[float, ...]: Numbers,
    tuple[tuple[str, float], ...]: Names,
}
"""How an option is read, by the type of the field."""


def protocol_options(protocol: Protocol) -> type[Any]:
    """A dataclass of options: the fields of the protocol that its part uses, each None or () until it is given.

    Args:
        protocol: the study; its values are shown as defaults.

    Returns:
        The dataclass. ``selectors`` is there besides where there are ``methods``, and stands for further ones. ``rates_from`` is
        the store of a search for learning rates.

    Example:
        >>> made = protocol_options(Protocol(part="sparsity"))
        >>> {field.name for field in fields(Protocol)} - {field.name for field in fields(made)} == {"part", *UNUSED["sparsity"]}
        True
    """
    hints, text = get_type_hints(Protocol), {**told(FineTuning), **told(Protocol), **_PLAIN}
    shared = ((DATA, Data), (DATA, SomeProblems), (MODEL, Model), (PAPER_TRAINING, Training), (ESTIMATOR, EstimatorOptions))
    groups = {mine.name: group for group, owner in shared for mine in fields(owner)} | {"check_replicas": BOUNDS}
    made: list[tuple[str, Any, Any]] = []
    for mine in fields(Protocol):
        if mine.name in ("part", *UNUSED[protocol.part]):
            continue
        value, hint = getattr(protocol, mine.name), hints[mine.name]
        how = Parameter(group=groups.get(mine.name, EXPERIMENT), help=text.get(mine.name), show_default=shown(value) or False)
        empty = () if isinstance(value, tuple) else None
        made.append((mine.name, Annotated[_KINDS.get(hint, hint | None), how], field(default=empty)))
        if mine.name == "methods":
            added = Parameter(name=("--selectors", "--add"), group=EXPERIMENT, help="Methods besides those of --methods.")
            made.append(("selectors", Annotated[Names, added], field(default=())))
        if mine.name == "rates":
            found = Parameter(group=PAPER_TRAINING, help=_FOUND)
            made.append(("rates_from", Annotated[Path | None, found], field(default=None)))
    return Parameter(name="*")(make_dataclass("Protocol", made, namespace={"__module__": __name__}, frozen=True, kw_only=True))
