"""The names that tables and figures have for methods and tasks."""

from __future__ import annotations

from stability.studies.published import TASKS

__all__ = ["LABELS"]

LABELS = {
    "full": "full tuning",
    "random": "random",
    "mixout": "Mixout",
    "mixout-reset": "Mixout, reset",
    "bitfit": "BitFit",
    "magnitude": "magnitude",
    "magnitude-trained": "magnitude, trained",
    "adapter": "Adapter",
    "lora": "LoRA",
    "diffpruning": "DiffPruning",
    "childpruning": "ChildPruning",
    "sam": "SAM",
    "fisher": "Fisher",
    "gradient": "gradient",
    "snip": "SNIP",
    "taylor": "Taylor",
    "grasp": "GraSP",
    "talos": "TaLoS",
    "pafi": "PaFi",
    "lift": "LIFT",
    "synflow": "SynFlow",
    "lt-sft": "LT-SFT",
    "movement": "movement",
    "spiel": "SpIEL",
    "rigl": "RigL",
    "biases-norms": "biases and norms",
    "last-layers": "last layers",
    "head-only": "head only",
    "regularised": "all, ridge 1 − p",
    **TASKS,
}
"""The names that tables and figures have for methods and tasks, by the toolkit's own names for them."""
