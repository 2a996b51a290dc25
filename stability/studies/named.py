"""The studies that come with the toolkit, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stability.leave_one_out.estimators import Assisted, Exact, Sampled
from stability.leave_one_out.predictors import Linearised
from stability.selectors import (
    SAM,
    Adapter,
    BitFit,
    ChildPruning,
    DiffPruning,
    FullTuning,
    LoRA,
    MagPruning,
    Mixout,
    MixoutReset,
    Random,
    Selector,
)
from stability.selectors.naming import having, selector_named
from stability.studies.protocol import TALOS, Part, Protocol
from stability.studies.study import Study
from stability.training import FineTuning, Minimisation

__all__ = ["CLAIMS", "COMPARED", "NOTES", "PAPER", "STUDIES"]

_SWEPT = (0.003, 0.01, 0.03, 0.1, 0.3)


def _digits() -> Study:
    """The ten methods of the paper on digits, Mixout in both its forms, each at every p that it can have."""
    whole = (FullTuning(), BitFit(), Mixout())
    masks = (Random, MagPruning, SAM, MixoutReset, ChildPruning, partial(DiffPruning, burn_in=50))
    return _on_digits(
        "digits", (*whole, *_each(masks, _SWEPT), *_each((Adapter, LoRA), (1, 4, 16))), seeds=5, steps=100, estimator=Assisted(20)
    )


def _short() -> Study:
    """The same in four minutes: fewer p, seeds, steps and retrainings, Mixout in the paper's form alone, and no bounds."""
    masks = (Random, MagPruning, SAM, MixoutReset, ChildPruning, partial(DiffPruning, burn_in=40))
    methods = (FullTuning(), BitFit(), *_each(masks, (0.003, 0.03, 0.3)), *_each((Adapter, LoRA), (1, 16)))
    how = {"estimator": Assisted(10, predictor=Linearised(checkpoints=4)), "check_replicas": None}
    return _on_digits("digits-short", methods, seeds=3, steps=80, **how)


_COMPARED_METHODS = (
    *("full", "random", "mixout", "bitfit", "magnitude", "adapter", "lora", "diffpruning", "childpruning", "sam"),
    *("mixout-reset", "fisher", "gradient", "snip", "taylor", "grasp", "talos", "pafi", "lift"),
    *("lt-sft", "movement", "spiel", "rigl", "biases-norms", "last-layers", "head-only"),
)
"""The selectors that are compared: all but SynFlow, which does not apply to transformers. The names are written down, so that
another selector of the toolkit does not become part of a study that is stored."""


def _selectors() -> Study:
    """Every selector by its name, those that choose k at one p."""
    own: dict[str, Mapping[str, Any]] = {"adapter": {"width": 4}, "lora": {"rank": 4}, "talos": TALOS}
    methods = [
        selector_named(name, 0.03 if name in having("sparsity") else None, **own.get(name, {})) for name in _COMPARED_METHODS
    ]
    return _on_digits("selectors-digits", methods, seeds=5, steps=100, estimator=Assisted(20), check_replicas=None)


def _each(kinds: Sequence[Callable[..., Selector]], sizes: Sequence[float]) -> list[Selector]:
    return [kind(size) for kind in kinds for size in sizes]


def _on_digits(name: str, methods: Sequence[Selector], *, seeds: int, steps: int, **how: Any) -> Study:
    algorithms = tuple(FineTuning(selector, steps=steps) for selector in methods)
    return Study(name, "digits", algorithms, tuple(range(seeds)), problem_settings={"n": 100}, **how)


def _relaxed(sparsities: tuple[float, ...], tolerance: float) -> tuple[Minimisation, ...]:
    """E_M L_R, the objective of Theorem 1, at each p."""
    return tuple(Minimisation(FullTuning(), ridge=round(1 - p, 6), gradient_tolerance=tolerance) for p in sparsities)


def _hard(kind: type[Random | SAM], sparsities: tuple[float, ...], ridge: float, tolerance: float) -> tuple[Minimisation, ...]:
    return tuple(Minimisation(kind(p), ridge=ridge, gradient_tolerance=tolerance) for p in sparsities)


STUDIES = {
    "digits": _digits(),
    "digits-short": _short(),
    "selectors-digits": _selectors(),
    "discontinuity": Study(
        "discontinuity",
        "digits",
        tuple(
            FineTuning(selector, steps=5000)
            for selector in (DiffPruning(0.01, burn_in=50, every=600), ChildPruning(0.01, every=600), SAM(0.01))
        ),
        tuple(range(3)),
        problem_settings={"n": 100},
        estimator=Sampled(2),
    ),
    "theory-convex": Study(
        "theory-convex",
        "logistic",
        (
            *_relaxed((0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.997), tolerance=1e-9),
            *_hard(Random, (0.1, 0.2, 0.4, 0.7, 0.9), ridge=0.01, tolerance=1e-9),
            *_hard(SAM, (0.1, 0.2, 0.4, 0.7, 0.9), ridge=0.01, tolerance=1e-9),
        ),
        tuple(range(5)),
        problem_settings={"data": "breast_cancer", "n": 100},
        estimator=Exact(),
        check_replicas=100,
    ),
    "theory-digits": Study(
        "theory-digits",
        "digits",
        (
            *_relaxed((0.1, 0.3, 0.5, 0.7, 0.9), tolerance=1e-4),
            *_hard(Random, _SWEPT, ridge=0.1, tolerance=1e-4),
            *_hard(SAM, _SWEPT, ridge=0.1, tolerance=1e-4),
        ),
        tuple(range(3, 11)),  # 0 to 2 were a pilot
        problem_settings={"n": 100},
        estimator=Sampled(20),
        check_replicas=2,
    ),
}
"""Studies by name. ``digits-short`` is ``digits`` with fewer p, seeds, steps and retrainings and without bounds.
``selectors-digits`` has every selector, at p = 0.03 where p can be chosen. The theory
studies measure the very minimisers that the bounds speak of: ``regularised`` is L + (1 − p)‖θ − θ⁰‖² over all
coordinates, the others are hard masks with one small ridge for every p. ``discontinuity`` trains for long, to show the loss
where a mask changes every 600 steps; its two retrainings a cell say little about stability."""

_MASKS, _MODULES = ("random", "magnitude", "childpruning", "sam"), ("bitfit", "adapter", "lora")
_QUICK = Protocol(
    model="sentence-transformers/all-MiniLM-L6-v2",
    tasks=("cb", "rte"),
    sparsities=(0.001, 0.005, 0.02, 0.1),
    adapter_width=12,
    lora_rank=12,
    burn_in=16,
    project_every=2,
    seeds=5,
    pool=32,
    max_length=128,
    steps=32,
    batch_size=8,
    learning_rate=5e-4,
    rates=(*((method, 2e-3) for method in _MASKS), *((method, 5e-3) for method in _MODULES)),
    schedule="linear",
    weight_decay=0.0,
    dropout=False,
    evaluate_every=0,
    measured_seeds=1,
    retrainings=4,
    predictor="linearised",
)


def _parts(name: str, protocol: Protocol) -> dict[str, Protocol]:
    """The three experiments of a protocol, by name."""
    names: dict[Part, str] = {"main": name, "perturbation": f"{name}-perturbation", "sparsity": f"{name}-sparsity"}
    return {own: replace(protocol, part=part) for part, own in names.items()}


_QUICK_PARTS = _parts("paper-quick", _QUICK)

_MIDDLE = 2.5
"""Of the scale of STS-B's scores, 0 to 5, where the head begins. Without it, training spends its few steps on the mean."""

_CLAIMS = Protocol(
    model="sentence-transformers/all-MiniLM-L6-v2",
    adapter_width=12,
    lora_rank=12,
    sparsities=(0.0005, 0.002, 0.005, 0.02, 0.1, 0.3),
    swept=("sam", "random", "magnitude", "full"),
    burn_in=32,
    project_every=8,
    seeds=5,
    pool=256,
    max_length=128,
    steps=96,
    batch_size=8,
    learning_rate=3e-4,
    rates=(
        ("diffpruning", 1e-3),
        ("childpruning", 1e-3),
        ("random", 3e-2),
        ("lora", 3e-3),
        *((method, 1e-2) for method in ("magnitude", "sam", "adapter", "bitfit")),
        # The more parameters change, the smaller are the steps that suit them.
        *((f"{method}@{p:g}", 1e-3) for method in ("random", "magnitude", "sam") for p in (0.1, 0.3)),
    ),
    schedule="linear",
    warmup=0.3,
    weight_decay=0.0,
    dropout=False,
    evaluate_every=0,
    retrainings=8,
    test_examples=256,
    predictor="linearised",
)
"""What the studies of the claims have in common. The rates are where the search begins."""

_SEARCH: Mapping[str, Any] = {"factors": (0.1, 0.3, 1.0, 3.0), "seeds": 2, "measured_seeds": 0}


_SLOWER = (0.2, 0.3, 0.45, 0.67)
"""Shares of full tuning's learning rate with which it fits S as badly as other methods do."""


def _claims(
    task: str, seeds: int, retrainings: int, *, swept: bool = False, slower: bool = False, **own: Any
) -> dict[str, Protocol]:
    """The studies of the claims on one task: the search for learning rates, and what is trained with the rates that it finds.

    Args:
        task: the name of the task.
        seeds: with so many seeds the main study measures stability.
        retrainings: of each of these seeds.
        swept: several p and perturbed training sets too.
        slower: full tuning at smaller learning rates too, with stability.
        own: what the task has of its own.
    """
    here, name = replace(_CLAIMS, tasks=(task,), **own), f"claims-{task}"
    main = replace(here, measured_seeds=seeds, retrainings=retrainings)
    found = {f"{name}-rates": replace(here, **_SEARCH), name: main}
    if slower:
        found[f"{name}-fit"] = replace(main, methods=("full",), factors=_SLOWER)
    if not swept:
        return found
    whole = replace(here, part="sparsity", measured_seeds=1)
    return {
        **found,
        f"{name}-perturbation": replace(here, part="perturbation", measured_seeds=0),
        f"{name}-sparsity-rates": replace(whole, **_SEARCH),
        f"{name}-sparsity": whole,
    }


_HARD: Mapping[str, Any] = {
    "pool": 1024,
    "steps": 384,
    "burn_in": 128,
    "project_every": 32,
    # With so many steps, SAM and LoRA at 1e-2 always answer the commonest class, and at 1e-3 they learn.
    "rates": tuple((method, 0.3 * rate if rate > 1e-3 else rate) for method, rate in _CLAIMS.rates if "@" not in method),
}
"""For tasks on which full tuning with 256 examples is no better than the commonest class."""

CLAIMS: Mapping[str, Protocol] = {
    **_claims("stsb", 5, 8, swept=True, slower=True, initial_bias=_MIDDLE, max_length=64),
    **_claims("cb", 5, 4, pool=None, swept=True),
    **_claims("cola", 3, 6, **_HARD),
    **_claims("mrpc", 3, 6, **_HARD),
}
"""The claims of Fu et al. 2023 on a model that learns: MiniLM, ten methods, five seeds, at the learning rates that a search finds
(``--rates-from``). The search is the study whose name ends in ``-rates``. A task has studies of its own, for its rates are its own.
On STS-B the seeds of a method agreed better than the intervals of single seeds said. So the others measure stability with more
seeds and fewer retrainings of each: 20 or 18 of them instead of 16. The study whose name ends in ``-fit`` is full tuning at smaller
learning rates, to compare methods at equal training loss."""

_WHOLE = ("full", "mixout", "last-layers")
_FROM_WHOLE = ("diffpruning", "childpruning", "lt-sft", "movement")

_COMPARED = replace(
    _CLAIMS,
    tasks=("stsb",),
    methods=_COMPARED_METHODS,
    seeds=3,
    pool=192,
    steps=64,
    warmup=0.0,
    max_length=64,
    initial_bias=_MIDDLE,
    rates=(
        *((method, 1e-3) for method in _FROM_WHOLE),
        *((method, 1e-2) for method in _COMPARED_METHODS if method not in (*_WHOLE, *_FROM_WHOLE)),
    ),
    measured_seeds=1,
    retrainings=10,
    test_examples=None,
)

COMPARED: Mapping[str, Protocol] = {
    # It measures no stability. The estimator is the one that its stored cells name.
    "selectors-stsb-rates": replace(replace(_COMPARED, **_SEARCH), seeds=1, retrainings=8, predictor="one-step"),
    "selectors-stsb": _COMPARED,
}
"""Every selector on a language model: MiniLM on 192 pairs of STS-B, 64 steps, p = 0.005 where p can be chosen, at the learning
rates that the search before it finds (``--rates-from``)."""

PAPER: Mapping[str, Protocol] = {**_parts("paper", Protocol()), **_QUICK_PARTS, **CLAIMS, **COMPARED}
"""The experiments of Fu et al. 2023 by name; each number is a parameter of the command line. The quick ones are for small machines:
MiniLM on RTE and CB, 32 examples, 32 steps without early stopping, a learning rate for each kind of method with which it fits most
of them. They show the machinery and this small model, not the paper's. :data:`CLAIMS` are the others."""

NOTES: Mapping[str, str] = {
    **dict.fromkeys(_QUICK_PARTS, "a quick protocol of a small model, few examples and steps, not the paper's"),
    **dict.fromkeys((*CLAIMS, *COMPARED), "a small model, few examples and steps, not the paper's"),
}
"""What a reader of a named study's results must know, by the exact name of the study."""
