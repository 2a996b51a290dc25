"""``stability list`` and ``stability doctor``: what there is."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

from cyclopts import Parameter

from stability.cli.printing import print_json

__all__ = ["FAMILIES", "NAMES", "Json", "doctor", "names"]

NAMES = {
    "problems": (
        *("digits", "linear", "logistic", "quadratic"),
        *("glue/cola", "glue/stsb", "glue/mrpc", "glue/rte", "super_glue/cb", "super_glue/copa", "super_glue/wsc"),
    ),
    "selectors": (
        *("full", "random", "mixout", "bitfit", "magnitude", "adapter", "lora", "diffpruning", "childpruning", "sam"),
        *("mixout-reset", "fisher", "gradient", "snip", "taylor", "grasp", "talos", "pafi", "lift", "synflow"),
        *("lt-sft", "movement", "spiel", "rigl", "biases-norms", "last-layers", "head-only"),
    ),
    "studies": (
        *("digits", "digits-short", "selectors-digits", "discontinuity", "theory-convex", "theory-digits"),
        *("paper", "paper-perturbation", "paper-sparsity"),
        *("paper-quick", "paper-quick-perturbation", "paper-quick-sparsity"),
        *(
            "claims-stsb-rates",
            "claims-stsb",
            "claims-stsb-fit",
            "claims-stsb-perturbation",
            "claims-stsb-sparsity-rates",
            "claims-stsb-sparsity",
            "claims-cb-rates",
            "claims-cb",
            "claims-cb-perturbation",
            "claims-cb-sparsity-rates",
            "claims-cb-sparsity",
            "claims-cola-rates",
            "claims-cola",
            "claims-mrpc-rates",
            "claims-mrpc",
            "selectors-stsb-rates",
            "selectors-stsb",
        ),
    ),
}
"""What ``stability list`` names, without importing what the names stand for, which takes seconds; a test compares."""

FAMILIES = {
    "all or by rule": ("full", "bitfit", "biases-norms", "last-layers", "head-only"),
    "by chance": ("random", "mixout", "mixout-reset"),
    "by the pretrained model": ("magnitude", "pafi", "lift", "synflow"),
    "by gradients before training": ("sam", "fisher", "gradient", "snip", "taylor", "grasp", "talos"),
    "while training": ("childpruning", "diffpruning", "lt-sft", "movement", "spiel", "rigl"),
    "inserted modules": ("adapter", "lora"),
}
"""The selectors of :data:`NAMES`, each in one family."""

Json = Annotated[bool, Parameter(help="Print one JSON value on standard output and nothing else.")]


def names(*, json: Json = False) -> None:
    """Name the problems, methods and studies."""
    announced = sorted(entry.name for entry in metadata.entry_points(group="stability.selectors"))
    found = {kind: [*members, *(announced if kind == "selectors" else ())] for kind, members in NAMES.items()}
    if json:
        print_json(found)
        return
    families = {**FAMILIES, **({"of installed packages": announced} if announced else {})}
    for kind, members in found.items():
        if kind != "selectors":
            print(f"{kind}: {', '.join(members)}")
            continue
        print(f"{kind}:")
        for family, mine in families.items():
            print(f"  {family}: {', '.join(mine)}")


def doctor(*, json: Json = False) -> None:
    """Tell the versions, devices and threads of this machine."""
    from stability import machine

    facts = machine.report()
    if json:
        print_json(facts)
        return
    facts["threads"] = f"{facts['threads']} (for large models on free cores; one for small models such as digits)"
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:>{width}}  {', '.join(value) if isinstance(value, list) else value}")
