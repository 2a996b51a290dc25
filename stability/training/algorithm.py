"""The algorithm A: what is trained, on which objective, and how a run goes. One interface; :mod:`.replicas` runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from stability.checks import check_number
from stability.errors import UsageError, explained
from stability.masks import Mask
from stability.problems.problem import Examples, Problem, TrainingDefaults
from stability.selectors import Selector
from stability.selectors.code import CODE, code_of, plain
from stability.training.descent import PLAIN, RunOptions, Trained
from stability.training.dropout import Dropout
from stability.training.objective import Descended

__all__ = ["Algorithm", "Precision", "check_ridge"]

Precision = Literal["float32", "tf32", "bfloat16"]
"""Of the network's matrix products while A trains."""


class Algorithm(ABC):
    """A: from a training set to parameters. A kind of algorithm says how a run goes; everything else asks it and no other.

    The objective is Σ_j w_j ℓ_j / Σ_j w_j + λ‖θ − θ⁰‖². The weight w_j is 1, or 0 for an example that is left out, so that
    the mean runs over the examples that remain. ‖θ − θ⁰‖² runs over the trained coordinates. The new head is among
    them, with its start for θ⁰.

    Subclasses are frozen dataclasses. They write the abstract methods, and of the others those that they need.

    Attributes:
        selector: chooses the pretrained coordinates that may change. The new head may always change.
        ridge: λ; the word ``paper`` stands for 1 − p with the p of the mask.
        seed: of the head's start, the order of the examples, the selection and dropout; each has its own generator.
        stepwise: whether a run takes one gradient on each of its batches in turn, so that a tangent model can follow it.
        shares_beginnings: whether :meth:`run` can compute replicas as one run until they depart (``options.sharing``). One
            that cannot is never asked to.
    """

    selector: Selector
    ridge: float | Literal["paper"]
    seed: int
    stepwise: ClassVar[bool]
    shares_beginnings: ClassVar[bool] = False
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # every kind is a dataclass, so that dataclasses.replace takes any

    @property
    def name(self) -> str:
        """For tables and figures: the selector's name, or ``regularised`` where all may change and the ridge alone restrains."""
        return "regularised" if self._relaxed else self.selector.name

    @property
    def _relaxed(self) -> bool:
        """Whether this is E_M L_R itself, L + (1 − p)‖θ − θ⁰‖² over all coordinates, p = 1 − λ."""
        return self.selector.selects_all and self.ridge != "paper" and 0 < float(self.ridge) < 1

    @property
    def asked_sparsity(self) -> float | None:
        """p as it was asked for, before there is a mask; None where the selector's rule decides it."""
        return 1.0 - float(self.ridge) if self._relaxed else self.selector.sparsity

    def settings(self) -> dict[str, Any]:
        """What defines the algorithm apart from its seed, as plain values: part of the identity of a result."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("selector", "seed")}
        codes = code_of(type(self), *own.values()), self.selector.code()
        mine, selectors = ({} if code is None else {CODE: code} for code in codes)
        plainly = {name: plain(value) if callable(value) else value for name, value in own.items()}
        return {"kind": type(self).__name__, "selector": {**self.selector.settings(), **selectors}, **plainly, **mine}

    # How a run goes.

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """The most steps that a run takes."""

    @property
    @abstractmethod
    def vectors(self) -> int:
        """How many vectors of its K trained values one run holds at once. Memory is planned from it."""

    @abstractmethod
    def batches(self, examples: Examples) -> Iterator[Tensor]:
        """The indices of the ``examples`` that the steps take, the same for every replica: int64 (b,) each."""

    @abstractmethod
    def run(self, objective: Descended, batches: Sequence[Tensor], options: RunOptions = PLAIN) -> Trained:
        """Train one set of r replicas from start to end.

        Args:
            objective: gives losses and gradients by the trained values.
            batches: the indices that each step takes.
            options: how the replicas are run. It has ``sharing`` only where :attr:`shares_beginnings`: row 0 is then a run with
                all weights 1, and where nobody asked for it (``sharing.lone``), what comes back is without it. It has a
                ``metric`` only where :attr:`validates`.
        """

    @abstractmethod
    def check(self, problem: Problem, masks: Sequence[Mask]) -> None:
        """Check that it can train ``problem`` with these masks.

        Raises:
            UsageError: it cannot.
        """

    @abstractmethod
    def failure(self, step: int) -> str:
        """What it means that a run failed at ``step``, and what to do about it; a clause that follows the run's name."""

    @abstractmethod
    def describe(self) -> str:
        """How it trains, in a few words for a table."""

    # What most kinds leave as it is.

    def with_defaults(self, defaults: TrainingDefaults) -> Self:
        """The same algorithm, with the ``defaults`` of the problem for settings that were left open."""
        return self

    def training_form(self, problem: Problem) -> Problem:
        """``problem`` as the steps see it, for example with dropout on."""
        return problem

    def tangent_form(self) -> Self:
        """The algorithm that follows a run in the tangent model: without what only a network has, such as dropout."""
        return self

    def in_full_precision(self) -> Self:
        """The same algorithm without reduced precision."""
        return self

    def timed(self, selector: Selector, steps: int) -> Self | None:
        """A short run of like steps with ``selector``, from whose time that of a whole run follows; None where none can tell."""
        return None

    @property
    def product_precision(self) -> Precision:
        """Of the network's matrix products while A trains."""
        return "float32"

    @property
    def validates(self) -> bool:
        """Whether a run evaluates on the validation split, to choose a checkpoint."""
        return False

    @property
    def evaluations(self) -> float:
        """How often a run of :attr:`max_steps` evaluates on the validation split."""
        return 0.0

    @property
    def least_steps(self) -> int:
        """The least number of steps after which a run may end."""
        return self.max_steps

    def dropout_at(self, step: int, device: torch.device, reverse: tuple[int, int] | None = None) -> Dropout | None:
        """What draws dropout in this step, or None.

        Args:
            step: the step, from 0 on.
            device: where the draws are needed.
            reverse: of a batch in reverse order how many examples it has, and how many sequences an example.
        """
        return None

    # What follows from the selector and the ridge.

    def ridge_for(self, mask: Mask) -> float:
        """λ for this mask."""
        return 1.0 - mask.sparsity if self.ridge == "paper" else float(self.ridge)

    def damping_for(self, mask: Mask) -> float:
        """λ, or where there is none the ridge that ending a run early stands for; for one Newton step from A(S)."""
        return self.ridge_for(mask)

    def sparsity_for(self, mask: Mask) -> float:
        """The p that Theorem 1 speaks of: k/m, or 1 − λ where all coordinates may change and 0 < λ < 1.

        The second is E_M L_R itself, the relaxation that the theorem is about: L + (1 − p)‖θ − θ⁰‖² over all coordinates.
        """
        return 1.0 - float(self.ridge) if self._relaxed else mask.sparsity

    def equivalent(self, problem: Problem) -> Problem:
        """The problem that is trained: ``problem`` with the modules that the selector inserts, or ``problem`` itself."""
        with explained(f"selector {self.selector.name!r}"):
            return self.selector.equivalent(problem, self.seed)

    def select(self, problem: Problem) -> Mask:
        """The pretrained coordinates that may change; of a moving mask all that may be chosen."""
        return self.selector.selected(problem, self.seed)

    def tunable_mask(self, problem: Problem, selected: Mask) -> Mask:
        """The ``selected`` coordinates and the whole of the new head."""
        return selected.union(Mask.full(problem.head(self.seed)))


def check_ridge(ridge: object) -> None:
    """Check that λ is a finite number of at least 0, or the word ``paper``.

    Args:
        ridge: λ.

    Raises:
        UsageError: it is something else.

    Example:
        >>> check_ridge("paper")
    """
    if not isinstance(ridge, str):
        check_number(0, ridge=ridge)
    elif ridge != "paper":
        raise UsageError(f"ridge = {ridge!r}: use a number of at least 0 or 'paper'")
