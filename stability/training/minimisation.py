"""The exact minimiser that Theorem 1 speaks of, by L-BFGS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stability.checks import check_kind, check_positive, check_whole
from stability.errors import UsageError
from stability.masks import Mask
from stability.problems.problem import Examples, Problem
from stability.selectors import Selector
from stability.training.algorithm import Algorithm, check_ridge
from stability.training.descent import PLAIN, RunOptions, Trained
from stability.training.lbfgs import minimise
from stability.training.objective import Descended

__all__ = ["Minimisation"]


@dataclass(frozen=True)
class Minimisation(Algorithm):
    """Minimise the objective of :class:`~stability.training.Algorithm` over the whole of S by L-BFGS, until ‖∇F‖₂ is small.

    A run that does not get there has failed. It is never taken for one that did.

    ``Minimisation(FullTuning(), ridge=1 - p)`` minimises the paper's E_M L_R = L + (1 − p)‖θ − θ⁰‖² (Fu et al. 2023, eq. 4 ff.).
    With another selector it is the hard mask with a ridge. An inexact minimiser moves the loss by at most
    ρ · gradient_tolerance / μ, where ρ is the Lipschitz constant of the loss and μ the least curvature of F.

    Attributes:
        selector: chooses the pretrained coordinates that may change.
        ridge: λ > 0; the word ``paper`` stands for 1 − p with the p of the mask, and so needs a mask.
        gradient_tolerance: the run ends when ‖∇F‖₂ over the trained coordinates is at most this. Single precision reaches about
            1e-5, double about 1e-10.
        max_steps: the most steps of L-BFGS.
        history: how many pairs of steps and gradients L-BFGS keeps.
        seed: of the head's start and the selection.

    Raises:
        UsageError: a number is outside its range.

    Example:
        >>> from stability import selectors, train
        >>> from stability.problems.solvable import linear_regression
        >>> p = linear_regression([[1.0], [1.0]], [0.0, 2.0]).problem
        >>> train(p, Minimisation(selectors.FullTuning(), ridge=0.5, gradient_tolerance=1e-10)).values
        tensor([[0.5000]], dtype=torch.float64)
    """

    selector: Selector
    _: KW_ONLY
    ridge: float | Literal["paper"] = "paper"
    gradient_tolerance: float = 1e-5
    max_steps: int = 1000
    history: int = 10
    seed: int = 0

    stepwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_kind(Selector, "a selector of stability.selectors, such as SAM(sparsity=0.05)", selector=self.selector)
        if self.selector.moving:
            raise UsageError(f"{self.selector.name} moves its mask while it trains, step by step: use FineTuning")
        check_whole(1, max_steps=self.max_steps, history=self.history)
        check_whole(0, seed=self.seed)
        check_positive(gradient_tolerance=self.gradient_tolerance)
        check_ridge(self.ridge)
        if self.ridge == 0 or (self.ridge == "paper" and self.selector.selects_all):
            raise UsageError("λ = 0: there need be no minimum to find; use a positive ridge, for the paper's relaxation 1 − p")

    @property
    def vectors(self) -> int:
        return 2 * self.history + 8  # pairs; values, gradient, direction, trial and temporaries

    def settings(self) -> dict[str, Any]:
        """With the name under which results are stored for ``gradient_tolerance``."""
        own = super().settings()
        return {"tolerance" if name == "gradient_tolerance" else name: value for name, value in own.items()}

    def batches(self, examples: Examples) -> Iterator[Tensor]:
        """The whole of S, once: every step takes it."""
        yield torch.arange(len(examples))

    def check(self, problem: Problem, masks: Sequence[Mask]) -> None:
        if not all(self.ridge_for(mask) > 0 for mask in masks):
            raise UsageError("λ = 0, for the mask selects everything and ridge='paper' is 1 − p: use a positive ridge")

    def run(self, objective: Descended, batches: Sequence[Tensor], options: RunOptions = PLAIN) -> Trained:
        """One set of replicas to the minimum; the failed step is where one stopped that did not get there."""
        (everything,) = batches
        start = objective.origin.expand(objective.rows, -1).clone()

        def whole(values: Tensor) -> tuple[Tensor, Tensor]:
            loss, penalty, gradient = objective(values, everything)
            if options.progress is not None:
                options.progress(len(values))
            return loss + penalty, gradient

        found = minimise(whole, start, self.gradient_tolerance, self.max_steps, self.history)
        reached = found.gradient_norms <= self.gradient_tolerance
        none = torch.empty(0, len(start))
        return Trained(
            values=found.values,
            failed_step=torch.where(reached, -1, found.steps),
            kept_step=found.steps,
            batch_losses=none,
            mask_changes=none.long(),
            relaxed=none.bool()[:, 0],
            masks=[],
        )

    def failure(self, step: int) -> str:
        if step == 0:
            return f"could not start with seed {self.seed}: the loss or its gradient is not finite at θ⁰; look at the data"
        return (
            f"did not reach ‖∇F‖ ≤ {self.gradient_tolerance:g} in {step} steps with seed {self.seed}: use a larger "
            f"gradient_tolerance or ridge, more than max_steps = {self.max_steps}, or double precision"
        )

    def describe(self) -> str:
        return f"to ‖∇F‖ ≤ {self.gradient_tolerance:g}, λ = {self.ridge}"
