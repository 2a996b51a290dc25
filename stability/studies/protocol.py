"""The experiments of Fu et al. 2023 as studies: ten methods on seven tasks, their data perturbation, SAM's sparsity sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stability.checks import check_bias, check_choice, check_positive, check_whole, those_given
from stability.errors import UsageError
from stability.leave_one_out.estimators import Assisted, Auto
from stability.leave_one_out.predictors import Linearised, OneStep, Predictor
from stability.problems.tasks import HUB
from stability.problems.tasks import TASKS as KNOWN
from stability.selectors import Selector, SpIEL
from stability.selectors.naming import SELECTORS, having, selector_named
from stability.studies import published
from stability.studies.study import Study
from stability.training import FineTuning, Precision
from stability.training.stopping import EarlyStopping

__all__ = ["AUTHORS", "METHODS", "TASKS", "UNUSED", "Part", "Protocol"]

METHODS, TASKS = tuple(published.METHODS), tuple(published.TASKS)
"""The methods and the tasks of the paper's Table 1, in its order."""

_ON_HUB = {task: name for name, task in HUB.items()}

AUTHORS: Mapping[str, str] = {
    "per-tensor": "the largest scores are taken within each tensor instead of over all",
    "burn-in": "magnitude and childpruning train everything for burn_in steps first, and then choose for good",
    "gradient-sums": "sam sums the gradients of 600 mini-batches instead of taking that of S",
    "reset-mixout": "mixout puts all but a random p back to θ⁰ after training, instead of mixing in every step",
}
"""What the authors' released code does otherwise than their paper (per-tensor choice, burn-in, sums) or than the method's own
authors (Mixout), by the names under which :attr:`Protocol.authors` asks for it."""

TALOS: Mapping[str, Any] = {"labels": "sampled", "without": ("*embeddings*", "*.k*.bias")}
"""How studies have TaLoS: with labels drawn from the model, as in its paper, and without the tensors whose gradients are 0 for all
or most examples. Those would have the least scores of all: words that do not occur, and the bias of attention's keys."""

Part = Literal["main", "perturbation", "sparsity"]

UNUSED: Mapping[Part, tuple[str, ...]] = {
    "main": ("sparsities", "swept", "removed"),
    "perturbation": ("sparsities", "swept"),
    "sparsity": ("methods", "sparsity", "removed"),
}
"""Settings of :class:`Protocol` that a part has no use for."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One of the three experiments; the defaults are the paper's numbers where it gives them.

    The paper gives p, optimizer, learning rate, batch, length, evaluations, patience, least steps, seeds and 600 gradient
    batches. It does not give the most steps, weight decay (0.01 is that of its code), the sizes of Adapter and LoRA (16 each tunes
    half a percent of RoBERTa-base too), the burn-in, and how often ChildPruning projects: those are choices of this toolkit.

    Attributes:
        part: ``main`` (Table 1), ``perturbation`` (Table 2: each seed trains without a ``removed`` part of S that it draws) or
            ``sparsity`` (the methods of ``swept`` at every p of ``sparsities``).
        model: the pretrained model, a folder or a name on the hub.
        data: the folder that holds a folder for each task; None for the hub.
        tasks: of :data:`TASKS`, or names of other folders in ``data``.
        methods: of :data:`METHODS`, or any selector's name.
        sparsity: the p of the parts ``main`` and ``perturbation``.
        sparsities: every p of the part ``sparsity``.
        swept: the methods of the part ``sparsity``; the paper has SAM alone.
        adapter_width: the width of Adapter's bottlenecks, which makes its p.
        lora_rank: the rank of LoRA's factors, which makes its p.
        mixout: the probability with which Mixout takes a parameter from θ⁰ in a step.
        burn_in: the steps for which DiffPruning's mask is relaxed, and LT-SFT and Movement train everything; magnitude and
            ChildPruning too, where ``authors`` asks for that.
        project_every: steps between ChildPruning's projections, and between the exchanges of SpIEL and RigL.
        authors: names of :data:`AUTHORS`.
        seeds: the number of seeds.
        removed: the fraction of the training data that each S lacks in the part ``perturbation``.
        pool: examples of the training split that are used, the same for all seeds; None: all.
        max_length: the most tokens of a sequence; longer ones are cut.
        initial_bias: what is added to the head's bias before training, as :func:`stability.load` does; for tasks whose labels are
            numbers.
        steps: the most steps that a run takes.
        batch_size: examples a step.
        learning_rate: of AdamW, for the methods without one of their own in ``rates``.
        rates: pairs of a method and a learning rate of its own. The paper has one for all, and at least 20 000 steps; in few
            steps one rate cannot suit a thousandth of the parameters and all of them. ``method@p`` is the method at that p.
        factors: each method is trained at its learning rate times each of these. With several, the study is a search:
            :func:`stability.studies.chosen_rates` takes the best rate on the validation split.
        schedule: of the learning rate: ``constant``, or ``linear`` down to 0 after the last step.
        warmup: the share of the steps in which the learning rate first rises from 0.
        weight_decay: of AdamW.
        dropout: whether the model's own dropout is on while it trains.
        precision: of the network's matrix products while it trains.
        evaluate_every: steps between evaluations on the validation split; 0: no early stopping, the last step is kept.
        patience: evaluations in a row without improvement after which training ends.
        least_steps: training does not end before so many steps.
        measured_seeds: with how many of the seeds stability is measured too.
        retrainings: how many examples are left out for each seed with which stability is measured; None: as many as
            :class:`stability.estimators.Auto` needs for ±20 %.
        test_examples: on how many test examples the models without an example are evaluated; None: on all.
        check_replicas: at how many of the A(Sⁱ) the curvature for the bounds is taken; None measures no bounds.
        predictor: what predicts the differences. ``linearised`` keeps a gradient a step, too much for the paper's 20 000.

    Raises:
        UsageError: an unknown part or name, a number out of range. Making the study refuses what its selectors, its training and
            its data refuse.

    Example:
        >>> study = Protocol(tasks=("cb", "rte"), seeds=2).study("mine")
        >>> len(study.cells()), study.problems
        (40, ('super_glue/cb', 'glue/rte'))
    """

    part: Part = "main"
    model: str = "roberta-base"
    data: str | None = None
    tasks: tuple[str, ...] = TASKS
    methods: tuple[str, ...] = METHODS
    sparsity: float = 0.005
    sparsities: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    swept: tuple[str, ...] = ("sam",)
    adapter_width: int = 16
    lora_rank: int = 16
    mixout: float = 0.7
    burn_in: int = 2_000
    project_every: int = 500
    authors: tuple[str, ...] = ()
    seeds: int = 10
    removed: float = 0.1
    pool: int | None = None
    max_length: int = 256
    initial_bias: float = 0.0
    steps: int = 40_000
    batch_size: int = 16
    learning_rate: float = 1e-4
    rates: tuple[tuple[str, float], ...] = ()
    factors: tuple[float, ...] = (1.0,)
    schedule: Literal["constant", "linear"] = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.01
    dropout: bool = True
    precision: Precision = "float32"
    evaluate_every: int = 500
    patience: int = 40
    least_steps: int = 20_000
    measured_seeds: int = 1
    retrainings: int | None = 20
    test_examples: int | None = None
    check_replicas: int | None = None
    predictor: Literal["one-step", "linearised"] = "one-step"

    def __post_init__(self) -> None:
        check_choice(get_args(Part), part=self.part)
        for task in self.tasks:
            check_bias(self.initial_bias, task, classes=task in KNOWN and KNOWN[task].classes is not None)
        if odd := [name for name in self.authors if name not in AUTHORS]:
            raise UsageError(f"unknown choice of the authors {odd[0]!r}: there is {', '.join(AUTHORS)}")
        if self.data is None and (odd := [task for task in self.tasks if task not in TASKS]):
            raise UsageError(f"unknown task {odd[0]!r}: there is {', '.join(TASKS)}, or with data (--data FOLDER) any folder in it")
        check_whole(1, seeds=self.seeds, **those_given(retrainings=self.retrainings, test_examples=self.test_examples))
        check_whole(0, evaluate_every=self.evaluate_every, measured_seeds=self.measured_seeds)
        known = dict.fromkeys([*SELECTORS, *self.methods, *self.swept])
        if odd := [name for name, _ in self.rates if name.partition("@")[0] not in known]:
            raise UsageError(f"rates: {odd[0]!r} is no method: there is {', '.join(known)}")
        check_positive(**{f"rate of {name}": rate for name, rate in self.rates})
        check_positive(**{f"factor {place}": factor for place, factor in enumerate(self.factors)})
        if not self.tasks or not (self.swept if self.part == "sparsity" else self.methods) or not self.factors:
            raise UsageError("a study needs at least one task and one method, and one factor of the learning rate")

    def study(self, name: str) -> Study:
        """The experiment as a study.

        Args:
            name: the study's name.

        Returns:
            The study; the data are read when its identity is asked for.

        Raises:
            UsageError: a setting that a selector or the training refuses.
        """
        where = [f"{self.data}/{task}" if self.data else _ON_HUB[task] for task in self.tasks]
        settings = {"model": self.model, "max_length": self.max_length, **those_given(pool=self.pool)}
        settings |= {"initial_bias": float(self.initial_bias)} if self.initial_bias else {}
        if self.part == "perturbation":
            settings["removed"] = self.removed
        if self.part == "sparsity":
            # A method that has its own p, such as full tuning, is there once.
            chosen = [
                (method, p)
                for method in self.swept
                for place, p in enumerate(self.sparsities)
                if not place or self.selector(method, p).sparsity is not None
            ]
        else:
            chosen = [(method, self.sparsity) for method in self.methods]
        return Study(
            name,
            tuple(where),
            tuple(self.algorithm(method, p, factor) for method, p in chosen for factor in self.factors),
            tuple(range(self.seeds)),
            problem_settings=settings,
            check_replicas=self.check_replicas,
            estimator=(Auto if self.retrainings is None else Assisted)(retrainings=self.retrainings, predictor=self._predictor()),
            measured_seeds=self.measured_seeds,
            test_examples=self.test_examples,
        )

    def algorithm(self, method: str, sparsity: float, factor: float = 1.0) -> FineTuning:
        """The algorithm A with a method.

        Args:
            method: a selector's name.
            sparsity: p, for methods that choose so many.
            factor: what its learning rate is multiplied by.

        Returns:
            Fine-tuning with the protocol's numbers; each study replaces its seed.
        """
        rule = EarlyStopping(self.evaluate_every, self.patience, self.least_steps) if self.evaluate_every else None
        names = ("steps", "batch_size", "schedule", "warmup", "weight_decay", "dropout", "precision")
        own = {name: getattr(self, name) for name in names}
        rates = dict(self.rates)
        rate = rates.get(f"{method}@{sparsity:g}", rates.get(method, self.learning_rate))
        rate = float(f"{rate * factor:.6g}")  # 0.3 · 3e-4 is 9e-5, and not 8.999999999999999e-05
        return FineTuning(self.selector(method, sparsity), learning_rate=rate, early_stopping=rule, **own)

    def selector(self, method: str, sparsity: float) -> Selector:
        """The selector of a method, with the settings that this protocol has for it.

        Args:
            method: a selector's name.
            sparsity: p, for methods that choose so many.

        Returns:
            The selector; with ``authors`` in the form that the authors' code has.
        """
        if method == "mixout" and "reset-mixout" not in self.authors:
            return selector_named(method, probability=self.mixout)
        if method in ("adapter", "lora"):
            return selector_named(method, **({"width": self.adapter_width} if method == "adapter" else {"rank": self.lora_rank}))
        if method in SELECTORS and method != "mixout" and method not in having("sparsity"):
            return selector_named(method)
        options: dict[str, Any] = {"scope": "tensor"} if "per-tensor" in self.authors else {}
        if method == "mixout":
            method = "mixout-reset"
        if method in ("diffpruning", "lt-sft", "movement"):
            options["burn_in"] = self.burn_in
        if method in ("childpruning", "spiel", "rigl"):
            options["every"] = self.project_every
        if method == "spiel":
            options["accumulated"] = min(SpIEL.accumulated, self.project_every)
        if method == "talos":
            options |= TALOS
        if method in ("magnitude", "childpruning") and "burn-in" in self.authors:
            options["burn_in"] = self.burn_in
        if method == "sam" and "gradient-sums" in self.authors:
            options |= {"batches": 600, "batch_size": self.batch_size}
        return selector_named(method, sparsity, **options)

    def _predictor(self) -> Predictor:
        # Three checkpoints and S's mask for all: a large model pays for each Jacobian and each selection.
        return OneStep() if self.predictor == "one-step" else Linearised(3, memory_budget=1 << 29, reselect=False)
