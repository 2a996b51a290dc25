"""Early stopping: evaluate now and then on the validation split, keep each replica's best checkpoint, end when none is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stability.checks import check_whole

__all__ = ["Checkpoints", "EarlyStopping"]


@dataclass(frozen=True)
class EarlyStopping:
    """When a run ends, and which of its checkpoints is A(S): the one of the largest metric on the validation split, the first of
    equals. As in Fu et al. 2023, whose numbers are the defaults.

    The validation split is part of A then, the same for S and every Sⁱ: leaving an example out may keep another checkpoint, and
    its loss may jump.

    Attributes:
        evaluate_every: steps between evaluations; the last step is evaluated too.
        patience: evaluations in a row without improvement after which the run ends.
        least_steps: but not before so many steps.

    Raises:
        UsageError: a number below 1, of ``least_steps`` below 0.

    Example:
        >>> EarlyStopping(evaluate_every=10, patience=2).least_steps
        20000
    """

    evaluate_every: int = 500
    patience: int = 40
    least_steps: int = 20_000

    def __post_init__(self) -> None:
        check_whole(1, evaluate_every=self.evaluate_every, patience=self.patience)
        check_whole(0, least_steps=self.least_steps)

    def settings(self) -> dict[str, int]:
        """As plain values, with the name under which results are stored for ``evaluate_every``."""
        own = asdict(self)
        return {"every": own.pop("evaluate_every"), **own}


class Checkpoints:
    """The best checkpoint of each of r replicas so far, and which of them have ended.

    Args:
        rule: when.
        metric: (r, K) values → (r,), the larger the better; what is no number is never better.
        last: the step after which training ends anyway.

    Attributes:
        values: (r, K) of the best checkpoint.
        mask: (r, m) its mask, where masks move.
        step: (r,) after how many steps it was.
        ended: (r,) bool.
    """

    def __init__(self, rule: EarlyStopping, metric: Callable[[Tensor], Tensor], last: int) -> None:
        self._rule, self._metric, self._last = rule, metric, last
        self.values = torch.empty(0)
        self.mask: Tensor | None = None
        self.step = self.ended = self._best = self._since = torch.empty(0)

    def due(self, step: int) -> bool:
        """Whether to :meth:`look` after so many steps."""
        return step % self._rule.evaluate_every == 0 or step == self._last

    def look(self, step: int, values: Tensor, mask: Tensor | None) -> None:
        """At every replica after so many steps."""
        found = self._metric(values)
        if not len(self.values):
            self.values, self.mask = values.clone(), None if mask is None else mask.clone()
            self.step, self.ended = torch.full_like(found, step, dtype=torch.int64), torch.zeros_like(found, dtype=torch.bool)
            self._best, self._since = torch.full_like(found, -torch.inf), torch.zeros_like(self.step)
        better = (found > self._best) & ~self.ended
        self.values[better] = values[better]
        if mask is not None and self.mask is not None:
            self.mask[better] = mask[better]
        self.step[better] = step
        self._best = torch.where(better, found, self._best)
        self._since = torch.where(better, 0, self._since + 1)
        if step >= self._rule.least_steps:
            self.ended |= self._since >= self._rule.patience
