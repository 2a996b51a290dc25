"""The algorithm A: what is tuned, by which objective and steps. One definition; :mod:`stability.training.replicas` runs it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from stability.checks import check_flags, check_number, check_positive, check_whole
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Examples, ModuleLogits, Problem, generator, shuffled_batches
from stability.selectors import FullTuning, Selector
from stability.training.dropout import Dropout
from stability.training.stopping import EarlyStopping

__all__ = ["AdamW", "Algorithm", "Clock", "FineTuning", "Minimisation", "Precision"]

Precision = Literal["float32", "tf32", "bfloat16"]


class Algorithm(ABC):
    """A: from a training set to parameters. What is tuned, and by which objective; how, its kinds tell.

    The objective is Σ_j w_j ℓ_j / Σ_j w_j + λ‖θ − θ⁰‖², where w_j is 1, or 0 for an example left out: the mean over the
    examples that *remain*. ‖θ − θ⁰‖² runs over the tuned coordinates, the head (whose θ⁰ is its start) among them.

    Attributes:
        selector: which pretrained coordinates may change; the new head always may.
        ridge: λ; ``paper`` stands for 1 − p with the p of the mask.
        seed: starts the head, orders the examples, and is handed to the selector; each has its own generator.
    """

    selector: Selector
    ridge: float | Literal["paper"]
    seed: int

    @property
    def name(self) -> str:
        """For tables and figures: the selector's, but ``regularised`` where all may change and the ridge alone restrains."""
        return "regularised" if self._relaxed else self.selector.name

    @property
    def _relaxed(self) -> bool:
        """Whether it is E_M L_R itself, L + (1 − p)‖θ − θ⁰‖² over all coordinates, p = 1 − λ."""
        return isinstance(self.selector, FullTuning) and self.ridge != "paper" and 0 < float(self.ridge) < 1

    @property
    def asked_sparsity(self) -> float | None:
        """p as asked for, before there is a mask; None where the selector's rule decides it."""
        return 1.0 - float(self.ridge) if self._relaxed else self.selector.sparsity

    def settings(self) -> dict[str, Any]:
        """What defines the algorithm apart from its seed, as plain values: part of the identity of a result."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("selector", "seed")}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, "selector": self.selector.settings(), **own}

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """How many steps a run takes at most."""

    @property
    @abstractmethod
    def vectors(self) -> int:
        """How many vectors of its K tuned values one run holds at once, for the memory plan."""

    @abstractmethod
    def batches(self, examples: Examples) -> Iterator[Tensor]:
        """The indices of the ``examples`` that steps take, the same for every replica: int64 (b,) each."""

    @abstractmethod
    def failure(self, step: int) -> str:
        """What it means that a run failed at ``step``, and what to do about it."""

    def ridge_for(self, mask: Mask) -> float:
        """λ for this mask."""
        return 1.0 - mask.sparsity if self.ridge == "paper" else float(self.ridge)

    def sparsity_for(self, mask: Mask) -> float:
        """The p that Theorem 1 speaks of: k/m; but with :class:`FullTuning` and 0 < λ < 1 it is 1 − λ.

        That is E_M L_R itself, the relaxation that the theorem is about: L + (1 − p)‖θ − θ⁰‖² over all coordinates.
        """
        return 1.0 - float(self.ridge) if self._relaxed else mask.sparsity

    def equivalent(self, problem: Problem) -> Problem:
        """The problem that is trained: with the modules that the selector inserts, where it does."""
        return self.selector.equivalent(problem, self.seed)

    def select(self, problem: Problem) -> Mask:
        """The coordinates that the selector lets change, over the pretrained tensors; of a moving one, that may be chosen."""
        return self.selector.select(problem, self.seed)

    def tunable(self, problem: Problem, selected: Mask) -> Mask:
        """The selected coordinates and the whole of the new head."""
        return selected.union(Mask.full(problem.head(self.seed)))


@dataclass(frozen=True)
class FineTuning(Algorithm):
    """Fine-tune the selected coordinates and the new head for a number of steps; everything else keeps its bits.

    The optimizer is AdamW (Loshchilov & Hutter 2019) in the form of ``torch.optim.AdamW``, on the k tuned values alone,
    over batches of the objective of :class:`Algorithm`. λ = 1 − p gives the paper's regularised objective E_M L_R (Fu et
    al. 2023, eq. 4 ff.), which :class:`Minimisation` carries to its minimum.

    Attributes:
        selector: which pretrained coordinates may change.
        steps: number of optimizer steps.
        batch_size: examples a step; S is shuffled anew whenever it is used up. n or more: the whole of S, in order.
        learning_rate: of AdamW.
        schedule: ``constant``, or ``linear`` from ``learning_rate`` down to 0 after the last step.
        weight_decay: of AdamW, decoupled, towards 0 (not θ⁰).
        betas: of AdamW.
        epsilon: of AdamW.
        ridge: λ; ``paper`` stands for 1 − p with the p of the mask.
        dropout: whether the model's own dropout is on while A trains. Off, the default, training sees the function that is
            evaluated. Its draws come from the seed, and paired replicas share them. Selection never has dropout.
        precision: of the network's matrix products while A trains: ``float32``; ``tf32``, 10 bits of mantissa where the device
            has it; ``bfloat16``, all of the network in 7 bits but for what torch.autocast keeps. Values and optimizer stay as
            they are, and the trained model is evaluated in full; what rounding does in the mean is the noise floor.
        early_stopping: when to end before ``steps``, and which checkpoint is A(S); None: all steps, and the last.
        seed: starts the head, orders the examples, and is handed to the selector; each has its own generator.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> from stability.problems import load
        >>> from stability.selectors import Random
        >>> algorithm = FineTuning(Random(sparsity=0.05), steps=3, batch_size=4)
        >>> [len(batch) for batch in algorithm.batches(load("digits").train)]
        [4, 4, 4]
    """

    selector: Selector
    steps: int = 150
    batch_size: int = 20
    learning_rate: float = 3e-3
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    ridge: float | Literal["paper"] = 0.0
    dropout: bool = False
    precision: Precision = "float32"
    early_stopping: EarlyStopping | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(1, steps=self.steps, batch_size=self.batch_size)
        check_positive(learning_rate=self.learning_rate, epsilon=self.epsilon)
        _check_ridge(self.ridge)
        if self.precision not in get_args(Precision):
            raise UsageError(f"unknown precision {self.precision!r}: use {', '.join(get_args(Precision))}")
        if self.schedule not in ("constant", "linear"):
            raise UsageError(f"unknown schedule {self.schedule!r}: use constant or linear")
        check_number(0, weight_decay=self.weight_decay)
        check_flags(dropout=self.dropout)
        if self.ridge == "paper" and self.selector.moving:
            raise UsageError(f"ridge = 'paper' is 1 − p of the mask, and {self.selector.name} has none yet: give λ as a number")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas = {self.betas}: use two numbers in [0, 1)")

    @property
    def most_steps(self) -> int:
        return self.steps

    @property
    def vectors(self) -> int:
        # Values, gradient, two moments, two temporaries; the best checkpoint, the one looked at, and a temporary.
        return 6 + self.selector.vectors + (0 if self.early_stopping is None else 3)

    def settings(self) -> dict[str, Any]:
        """Dropout is named where it is on, precision where it is reduced, early stopping where there is any."""
        ordinary = {"dropout": False, "precision": "float32", "early_stopping": None}
        own = {name: value for name, value in super().settings().items() if name not in ordinary or ordinary[name] != value}
        return own if self.early_stopping is None else {**own, "early_stopping": asdict(self.early_stopping)}

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

    def dropout_at(self, step: int, device: torch.device, reverse: tuple[int, int] | None = None) -> Dropout | None:
        """What draws in this step; ``reverse`` as for :class:`stability.training.dropout.Dropout`."""
        return Dropout(generator(self.seed, f"dropout {step}", device), reverse) if self.dropout else None

    def failure(self, step: int) -> str:
        return f"diverged at step {step} with seed {self.seed}: use a smaller learning rate than {self.learning_rate:g}"

    def batches(self, examples: Examples) -> Iterator[Tensor]:
        """As many as ``steps``; sequences of like length go together (:func:`stability.problems.problem.shuffled_batches`)."""
        order = generator(self.seed, "order")
        return shuffled_batches(len(examples), self.batch_size, self.steps, order, examples.lengths)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …"""
        return self.learning_rate * (1 - step / self.steps if self.schedule == "linear" else 1)


@dataclass(frozen=True)
class Minimisation(Algorithm):
    """The exact minimiser that Theorem 1 speaks of: the objective of :class:`Algorithm` over the whole of S, by L-BFGS
    from θ⁰, until ‖∇F‖₂ ≤ ``tolerance``. A run that does not get there has failed; it is never taken for one that did.

    ``Minimisation(FullTuning(), ridge=1 - p)`` minimises the paper's E_M L_R = L + (1 − p)‖θ − θ⁰‖²; with another
    selector it is the hard mask with a ridge. An inexact minimiser moves the loss by at most ρ · tolerance / μ.

    Attributes:
        selector: which pretrained coordinates may change.
        ridge: λ > 0; ``paper`` stands for 1 − p with the p of the mask, and so needs a mask.
        tolerance: of ‖∇F‖₂ over the tuned coordinates. Single precision reaches about 1e-5, double about 1e-10.
        max_steps: of L-BFGS.
        history: pairs that L-BFGS keeps.
        seed: starts the head and is handed to the selector.

    Raises:
        UsageError: a number outside its range.

    Example:
        >>> from stability.problems.solvable import linear_regression
        >>> from stability.training.replicas import train
        >>> p = linear_regression([[1.0], [1.0]], [0.0, 2.0]).problem
        >>> train(p, Minimisation(FullTuning(), ridge=0.5, tolerance=1e-10)).values
        tensor([[0.5000]], dtype=torch.float64)
    """

    selector: Selector
    ridge: float | Literal["paper"] = "paper"
    tolerance: float = 1e-5
    max_steps: int = 1000
    history: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.selector.moving:
            raise UsageError(f"{self.selector.name} moves its mask while it trains, step by step: use FineTuning")
        check_whole(1, max_steps=self.max_steps, history=self.history)
        check_positive(tolerance=self.tolerance)
        _check_ridge(self.ridge)
        if self.ridge == 0 or (self.ridge == "paper" and isinstance(self.selector, FullTuning)):
            raise UsageError("λ = 0: there need be no minimum to find; use a positive ridge, for the paper's relaxation 1 − p")

    @property
    def most_steps(self) -> int:
        return self.max_steps

    @property
    def vectors(self) -> int:
        return 2 * self.history + 8  # pairs; values, gradient, direction, trial and temporaries

    def failure(self, step: int) -> str:
        if step == 0:
            return f"could not start with seed {self.seed}: the loss or its gradient is not finite at θ⁰; look at the data"
        return (
            f"did not reach ‖∇F‖ ≤ {self.tolerance:g} in {step} steps with seed {self.seed}: use a larger tolerance or ridge, "
            f"more than max_steps = {self.max_steps}, or double precision"
        )

    def batches(self, examples: Examples) -> Iterator[Tensor]:
        """The whole of S, once: every step takes it."""
        yield torch.arange(len(examples))


def _check_ridge(ridge: float | str) -> None:
    if ridge != "paper" and not (isinstance(ridge, (int, float)) and math.isfinite(ridge) and ridge >= 0):
        raise UsageError(f"ridge = {ridge}: use a number of at least 0 or 'paper'")


@dataclass
class Clock:
    """The step of a run, which several optimizers share: the schedule is the run's, whenever an optimizer started."""

    step: int = 0


class AdamW:
    """AdamW's moments for values of any shape, a row a replica; the arithmetic of ``torch.optim.AdamW``.

    The learning rate is that of the clock's step, the correction of the moments counts this optimizer's own steps.
    ``decay=False`` leaves weight decay out, for values that are no parameters of the model.
    """

    def __init__(self, algorithm: FineTuning, clock: Clock, values: Tensor, decay: bool = True) -> None:
        self._algorithm, self._clock = algorithm, clock
        self._decay = algorithm.weight_decay if decay else 0.0
        self._first = torch.zeros_like(values)
        self._second = torch.zeros_like(values)
        self._step = 0

    def update(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one step."""
        a, (beta1, beta2) = self._algorithm, self._algorithm.betas
        rate = a.learning_rate_at(self._clock.step)
        self._step += 1
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = self._second.sqrt().div_(math.sqrt(1 - beta2**self._step)).add_(a.epsilon)
        decayed = values * (1 - rate * self._decay)
        return decayed.addcdiv_(self._first, scale, value=-rate / (1 - beta1**self._step))

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of the values, some of them twice."""
        self._first, self._second = self._first[rows], self._second[rows]
