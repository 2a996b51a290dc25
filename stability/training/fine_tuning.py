"""Fine-tuning by AdamW, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

import torch
from torch import Tensor

from stability.checks import (
    check_choice,
    check_flags,
    check_kind,
    check_number,
    check_positive,
    check_probability,
    check_whole,
    those_given,
)
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Examples, ModuleLogits, Problem, TrainingDefaults, generator, shuffled_batches
from stability.selectors import Selector
from stability.selectors.moving import MakeOptimizer
from stability.training.adamw import AdamW, Clock
from stability.training.algorithm import Algorithm, Precision, check_ridge
from stability.training.descent import PLAIN, RunOptions, Trained, descend
from stability.training.dropout import Dropout
from stability.training.objective import Descended
from stability.training.stopping import Checkpoints, EarlyStopping

__all__ = ["FineTuning"]

T = TypeVar("T")


@dataclass(frozen=True)
class FineTuning(Algorithm):
    """Fine-tune the selected coordinates and the new head for a number of steps. Everything else keeps its bits.

    The optimizer is AdamW (Loshchilov & Hutter 2019) in the form of ``torch.optim.AdamW``, on the k trained values alone,
    over batches of the objective of :class:`~stability.training.Algorithm`. λ = 1 − p gives the paper's regularised objective
    E_M L_R (Fu et al. 2023, eq. 4 ff.), which :class:`~stability.Minimisation` carries to its minimum.

    What is None is taken from the problem that is trained (:attr:`stability.Problem.training`).

    Attributes:
        selector: chooses the pretrained coordinates that may change.
        steps: number of optimizer steps.
        batch_size: examples a step. S is shuffled again whenever it is used up. With n or more, every step takes the whole of S,
            in order.
        learning_rate: of AdamW.
        schedule: of the learning rate: ``constant``, or ``linear`` from ``learning_rate`` down to 0 after the last step.
        warmup: the share of the steps, in [0, 1), in which the learning rate first rises linearly from 0. The number of these steps
            is rounded down, and then the rates are those of transformers' ``get_linear_schedule_with_warmup``. Without it the
            first large steps can throw a pretrained model to where it no longer learns (Mosbach et al. 2021). There is one
            warm-up in a run: selectors that begin anew at a step go on at the rate of that step.
        weight_decay: of AdamW, decoupled, towards 0 (not θ⁰).
        betas: decay rates of AdamW's first and second moment.
        epsilon: of AdamW, added to the root of the second moment.
        ridge: λ of the objective; the word ``paper`` stands for 1 − p with the p of the mask.
        dropout: whether the model's own dropout is on while A trains. Off, the default, training sees the function that is
            evaluated. Its draws come from the seed, and paired replicas share them. Selection never has dropout.
        precision: of the network's matrix products while A trains. ``float32``; ``tf32``, 10 bits of mantissa where the device has
            it; ``bfloat16``, the whole network in 7 bits but for what torch.autocast keeps. Values and optimizer stay in full
            precision, and so does evaluation. The noise floor measures what the rounding does in the mean.
        early_stopping: when a run may end before ``steps``, and which checkpoint is A(S). None: all steps, and the last one.
        seed: of the head's start, the order of the examples, the selection and dropout; each has its own generator.

    Raises:
        UsageError: a number is outside its range.

    Example:
        >>> from stability import load, selectors
        >>> algorithm = FineTuning(selectors.Random(sparsity=0.05), steps=3, batch_size=4)
        >>> [len(batch) for batch in algorithm.batches(load("digits").train)]
        [4, 4, 4]
        >>> algorithm.with_defaults(load("digits").training).learning_rate
        0.003
    """

    selector: Selector
    _: KW_ONLY
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: Literal["constant", "linear"] | None = None
    warmup: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    ridge: float | Literal["paper"] = 0.0
    dropout: bool = False
    precision: Precision = "float32"
    early_stopping: EarlyStopping | None = None
    seed: int = 0

    stepwise: ClassVar[bool] = True
    shares_beginnings: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kind(Selector, "a selector of stability.selectors, such as SAM(sparsity=0.05)", selector=self.selector)
        check_whole(1, **those_given(steps=self.steps, batch_size=self.batch_size))
        check_positive(epsilon=self.epsilon, **those_given(learning_rate=self.learning_rate))
        check_choice(("constant", "linear"), **those_given(schedule=self.schedule))
        check_choice(get_args(Precision), precision=self.precision)
        check_ridge(self.ridge)
        check_number(0, weight_decay=self.weight_decay)
        check_probability(warmup=self.warmup)
        check_flags(dropout=self.dropout)
        check_whole(0, seed=self.seed)
        if self.ridge == "paper" and self.selector.moving:
            raise UsageError(f"ridge = 'paper' is 1 − p of the mask, and {self.selector.name} has none yet: give λ as a number")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas = {self.betas}: use two numbers in [0, 1)")

    def with_defaults(self, defaults: TrainingDefaults) -> Self:
        return replace(self, **{name: getattr(defaults, name) for name in _LEFT_OPEN if getattr(self, name) is None})

    @property
    def max_steps(self) -> int:
        return self._settled(self.steps, "steps")

    @property
    def vectors(self) -> int:
        # Values, gradient, two moments, two temporaries; the best checkpoint, the present one, and a temporary.
        return 6 + self.selector.vectors + (3 if self.validates else 0)

    def settings(self) -> dict[str, Any]:
        """A warm-up and early stopping are named where there are any, dropout where it is on, precision where it is reduced."""
        ordinary = {"warmup": 0.0, "dropout": False, "precision": "float32", "early_stopping": None}
        own = {name: value for name, value in super().settings().items() if name not in ordinary or ordinary[name] != value}
        return own if self.early_stopping is None else {**own, "early_stopping": self.early_stopping.settings()}

    def batches(self, examples: Examples) -> Iterator[Tensor]:
        """One for each step; sequences of like length go together (:func:`~stability.problems.problem.shuffled_batches`)."""
        order, size = generator(self.seed, "order"), self._settled(self.batch_size, "batch_size")
        return shuffled_batches(len(examples), size, self.max_steps, order, examples.lengths)

    def run(self, objective: Descended, batches: Sequence[Tensor], options: RunOptions = PLAIN) -> Trained:
        kept = None
        if self.early_stopping is not None and options.metric is not None:
            kept = Checkpoints(self.early_stopping, options.metric, self.max_steps)
        return descend(objective, self, batches, options, kept)

    def optimizer(self, clock: Clock) -> MakeOptimizer:
        """What makes the optimizers of one run, which share its ``clock``. Another optimizer is a subclass that writes this."""

        def make(values: Tensor, decay: bool = True) -> AdamW:
            return AdamW(
                values,
                clock=clock,
                learning_rate_at=self.learning_rate_at,
                betas=self.betas,
                epsilon=self.epsilon,
                weight_decay=self.weight_decay if decay else 0.0,
            )

        return make

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …: up to ``learning_rate`` in the steps of the warm-up, and then by the schedule."""
        rising = self._rising
        if step < rising:
            return self._rate * step / rising
        linear = self._settled(self.schedule, "schedule") == "linear"
        return self._rate * (1 - (step - rising) / (self.max_steps - rising) if linear else 1)

    @property
    def _rising(self) -> int:
        """The steps of the warm-up."""
        rising = math.floor(round(self.warmup * self.max_steps, 6))  # 0.29 · 100 is 29, and not 28.999999999999996
        return min(rising, self.max_steps - 1)

    def check(self, problem: Problem, masks: Sequence[Mask]) -> None:
        if self.validates and (problem.validation is None or not len(problem.validation)):
            raise UsageError(
                f"early_stopping: problem {problem.name!r} has no validation split to choose a checkpoint by; leave it out, or "
                "give one"
            )

    def training_form(self, problem: Problem) -> Problem:
        """``problem`` as the steps see it: with its model in training mode where ``dropout`` asks for it.

        Raises:
            UsageError: there is no module that could drop anything out.
        """
        if not self.dropout:
            return problem
        if not isinstance(problem.logits, ModuleLogits):
            raise UsageError(f"dropout = True: the model of {problem.name!r} is a function and no torch module; leave it off")
        return replace(problem, logits=problem.logits.while_training)

    def tangent_form(self) -> Self:
        return replace(self, dropout=False, early_stopping=None)

    def in_full_precision(self) -> Self:
        return replace(self, precision="float32")

    def timed(self, selector: Selector, steps: int) -> Self:
        return replace(self, selector=selector, steps=steps, early_stopping=None, ridge=0.0)

    @property
    def product_precision(self) -> Precision:
        return self.precision

    @property
    def validates(self) -> bool:
        return self.early_stopping is not None

    @property
    def evaluations(self) -> float:
        return 0.0 if self.early_stopping is None else self.max_steps / self.early_stopping.evaluate_every

    @property
    def least_steps(self) -> int:
        return self.max_steps if self.early_stopping is None else min(self.early_stopping.least_steps, self.max_steps)

    def dropout_at(self, step: int, device: torch.device, reverse: tuple[int, int] | None = None) -> Dropout | None:
        return Dropout(generator(self.seed, f"dropout {step}", device), reverse) if self.dropout else None

    def damping_for(self, mask: Mask) -> float:
        """λ, or without a ridge 1/(learning rate · steps) whatever the schedule: right to within orders of magnitude only."""
        return self.ridge_for(mask) or 1 / (self._rate * self.max_steps)

    def failure(self, step: int) -> str:
        return f"diverged at step {step} with seed {self.seed}: use a smaller learning rate than {self._rate:g}"

    def describe(self) -> str:
        schedule = f"{self.schedule}{f' after a warm-up over {self._rising} of the steps' if self.warmup else ''}"
        told = f"{self.steps} steps of AdamW, learning rate {self._rate:g}, {schedule}, dropout {'on' if self.dropout else 'off'}"
        return told if self.precision == "float32" else f"{told}, {self.precision}"

    @property
    def _rate(self) -> float:
        return self._settled(self.learning_rate, "learning_rate")

    def _settled(self, value: T | None, name: str) -> T:
        if value is None:
            raise UsageError(f"{name} is left to the problem: use algorithm.with_defaults(problem.training), or give {name}")
        return value


_LEFT_OPEN = tuple(field.name for field in fields(TrainingDefaults))
"""Settings that a problem may have defaults for."""
