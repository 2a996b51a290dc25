"""Selection by scores: each method gives every coordinate a score, and one top-k chooses.

:class:`Ranked` is a method that looks at the pretrained model alone, and :class:`Calibrated` one that looks at examples too. A
subclass writes ``score``, which sees an :class:`Evidence`.
"""

# No annotations from __future__ here: a dataclass of another module inherits these fields with their types, not with names of them.
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stability.checks import check_choice, check_whole
from stability.derivatives.curvature import Curvature
from stability.derivatives.gradients import mean_gradient, per_example_gradients, per_example_jacobians, total
from stability.errors import UsageError
from stability.masks import Mask, Parameters
from stability.problems.metrics import squared_errors
from stability.problems.problem import Problem, generator
from stability.selectors.base import Selector
from stability.selectors.scope import AnyScope
from stability.selectors.top_k import top_k

__all__ = ["Calibrated", "Evidence", "Ranked", "sharing_evidence"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a score may look at: θ⁰, where training starts, and the examples of the calibration.

    All vectors have the m pretrained coordinates, one tensor after the other. They are computed when a score first asks for them.

    Attributes:
        problem: the problem, with the examples of the calibration as ``train``.
        seed: of the selection; it draws the start of the head, and what a score draws.
        expected: whether squared gradients are means over the model's own labels, instead of those of the examples.

    Example:
        >>> from stability import load
        >>> at = Evidence(load("digits", n=20), seed=0)
        >>> at.theta.shape, at.gradient.dtype
        (torch.Size([26432]), torch.float64)
    """

    problem: Problem
    seed: int
    expected: bool = False

    _shared: ClassVar["Evidence | None"] = None  # the same evidence, which computes for all that share it; dropped by ``replace``

    @cached_property
    def start(self) -> Parameters:
        """All parameters where training starts, the head among them, by name."""
        return self.problem.start(self.seed)

    @cached_property
    def theta(self) -> Tensor:
        """The pretrained parameters θ⁰, (m,)."""
        return self.flat(self.problem.pretrained)

    @cached_property
    def gradient(self) -> Tensor:
        """g = ∇L, the mean of the examples' gradients where training starts, float64 (m,)."""
        if self._shared is not None:
            return self._shared.gradient
        return mean_gradient(self.problem, self.start, self.problem.train)[: self.problem.m]

    @cached_property
    def squares(self) -> Tensor:
        """mean_i g_i², the diagonal of the Fisher matrix, float64 (m,)."""
        return total(self._squared(slice(None))) / self.problem.n if self._shared is None else self._shared.squares

    def hessian_times(self, vector: Tensor) -> Tensor:
        """The Hessian of L over the pretrained coordinates, times a vector.

        Args:
            vector: (m,).

        Returns:
            Hv, float64 (m,).
        """
        matrix = Curvature(self.problem, self.start, self.problem.train, self._all)
        return matrix.product(vector.unsqueeze(0))[0].to(vector.device)

    def draws(self) -> torch.Generator:
        """The generator of everything that a score draws, at its start."""
        return generator(self.seed, "selection")

    def flat(self, tensors: Parameters) -> Tensor:
        """One vector of tensors that are named and shaped as the pretrained parameters.

        Args:
            tensors: by name, in any order.

        Returns:
            (m,).
        """
        return torch.cat([tensors[name].reshape(-1) for name in self.problem.pretrained])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector in the names and shapes of the pretrained parameters.

        Args:
            vector: (m,).
        """
        like = self.problem.pretrained
        parts = vector.split([tensor.numel() for tensor in like.values()])
        return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}

    def without(self, i: int) -> "Evidence":
        """The evidence without an example.

        Args:
            i: its place among the examples of the calibration.

        Raises:
            UsageError: it is the only one.
        """
        if self.problem.n == 1:
            raise UsageError("the calibration has no example but the one that is left out: use more examples")
        return replace(self, problem=self.problem.without(i))

    def knowing(self, **means: Tensor) -> "Evidence":
        """The same evidence, where something is known already and not computed.

        Args:
            means: ``gradient`` or ``squares``, float64 (m,).
        """
        other = replace(self)
        vars(other).update(means)  # a cached property gives what stands there
        return other

    def each_without(self, places: Sequence[int]) -> Iterator["Evidence"]:
        """The evidence without each of some examples in turn. Means that were asked for before are not computed anew.

        Args:
            places: of the examples among those of the calibration.
        """
        n, index = self.problem.n, torch.as_tensor(places, dtype=torch.int64)
        terms = {"gradient": self._gradients, "squares": self._squared}
        known = {name: _rows(of(index)) for name, of in terms.items() if name in vars(self)}
        for i in places:
            left = self.without(i)
            yield left.knowing(**{name: (n * getattr(self, name) - next(rows)) / (n - 1) for name, rows in known.items()})

    @cached_property
    def _all(self) -> Mask:
        return Mask.full(self.problem.pretrained)

    def _gradients(self, index: Tensor | slice) -> Iterator[Tensor]:
        """Blocks (B, m) of the gradients of some examples."""
        return per_example_gradients(self.problem, self.start, self.problem.train.take(index), self._all)

    def _squared(self, index: Tensor | slice) -> Iterator[Tensor]:
        """Blocks (B, m) of the squared gradients of some examples, float64."""
        if not self.expected:
            yield from (block.double() ** 2 for block in self._gradients(index))
            return
        examples, start = self.problem.train.take(index), 0
        for jacobian in per_example_jacobians(self.problem, self.start, examples, self._all):
            block = examples.take(slice(start, start + len(jacobian)))
            start += len(jacobian)
            logits = self.problem.logits(self.start, block.inputs).detach().requires_grad_()
            found: Tensor | float = 0.0
            for labels, share in _own_labels(self.problem, logits.detach(), block.labels):
                loss = self.problem.loss(logits, labels).sum()
                slope = torch.autograd.grad(loss, logits)[0]
                found = found + share.unsqueeze(1) * torch.einsum("bc,bck->bk", slope, jacobian).double() ** 2
            assert isinstance(found, Tensor)
            yield found


_SHARED: ContextVar[tuple[Problem, dict[Any, tuple[Evidence, Tensor]]] | None] = ContextVar("_SHARED", default=None)


@contextmanager
def sharing_evidence(problem: Problem) -> Iterator[None]:
    """Within it, selectors on this problem with one calibration and one seed share the mean gradients that they ask for."""
    before = _SHARED.set((problem, {}))
    try:
        yield
    finally:
        _SHARED.reset(before)


def _rows(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """The rows of some blocks, float64."""
    for block in blocks:
        yield from block.double()


_SPREAD = math.sqrt(0.5)
"""The standard deviation σ of labels under a model whose loss is the squared error (f − y)² = −log N(y; f, σ²) + a constant."""


def _own_labels(problem: Problem, logits: Tensor, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Labels (B,) with their probabilities (B,), over which the mean of a squared gradient is that over the model's own labels.

    Where the loss is the squared error, the gradient is linear in the label. Two labels then have the same mean of its square as
    the normal distribution.
    """
    if problem.loss is squared_errors:
        half = torch.full(logits.shape[:1], 0.5, dtype=torch.float64, device=logits.device)
        return [(logits[:, 0] + _SPREAD, half), (logits[:, 0] - _SPREAD, half)]
    shares = _probabilities(problem, logits)
    return [(torch.full_like(like, label), share) for label, share in enumerate(shares.unbind(1))]


def _label_at(problem: Problem, logits: Tensor, levels: Tensor) -> Tensor:
    """The label (B,) below which, under the model, labels fall with a probability: ``levels``, float64 (B,) in [0, 1)."""
    if problem.loss is squared_errors:
        normal: Tensor = torch.special.ndtri(levels.clamp(min=2.0**-54))
        return logits[:, 0] + _SPREAD * normal
    shares = _probabilities(problem, logits).cumsum(1)
    return (shares < levels.unsqueeze(1) * shares[:, -1:]).sum(1)


def _probabilities(problem: Problem, logits: Tensor) -> Tensor:
    """The probability of each class under the model, exp(−ℓ), float64 (B, C)."""
    if not problem.train.labels.is_floating_point():
        like = problem.train.labels[:1].expand(len(logits))
        with torch.no_grad():
            losses = [problem.loss(logits, torch.full_like(like, label)) for label in range(logits.shape[1])]
        shares = torch.stack(losses, dim=1).double().neg().exp()
        if bool(((shares.sum(1) - 1).abs() < 1e-3).all()):
            return shares
    raise UsageError(
        f"the model of {problem.name!r} gives its labels no probabilities, for its loss is neither a cross-entropy of classes "
        "nor a squared error: use labels = 'true'"
    )


@dataclass(frozen=True)
class Ranked(Selector):
    """The ⌊pm⌋ coordinates of highest score, where the score looks at the pretrained model alone.

    A subclass writes :attr:`name`, :attr:`formula`, :attr:`source` and :meth:`score`.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: which coordinates compete: all (``global``), those of each tensor (``tensor``), of each row (``row``), of each
            layer (``layer``), of each type of tensor (``type``), or as a :class:`Scope` says.
        formula: the score, for tables. The coordinates where it is largest are chosen.
        source: whose method it is, for tables.
        passes: what it costs, in passes over the examples of the calibration.

    Example:
        >>> from stability import load
        >>> class First(Ranked):
        ...     name, formula, source = "first", "−j", "an example"
        ...
        ...     def score(self, at):
        ...         return -torch.arange(at.problem.m)
        >>> First(0.01).select(load("digits"), seed=0).count
        264
    """

    sparsity: float = field()
    scope: AnyScope = "global"

    formula: ClassVar[str]
    source: ClassVar[str]
    passes: ClassVar[str] = "none"

    @abstractmethod
    def score(self, at: Evidence) -> Tensor:
        """One score a pretrained coordinate, (m,); large is tunable.

        Args:
            at: what it may look at.
        """

    def evidence(self, problem: Problem, seed: int) -> "Evidence":
        """What the score looks at.

        Args:
            problem: what is to be learned.
            seed: of the selection.
        """
        return Evidence(problem, seed)

    def select(self, problem: Problem, seed: int) -> Mask:
        return self._chosen(self.evidence(problem, seed))

    def _chosen(self, at: Evidence) -> Mask:
        return top_k(at.named(self.score(at)), self.sparsity, self.scope)


@dataclass(frozen=True)
class Calibrated(Ranked):
    """The ⌊pm⌋ coordinates of highest score, where the score looks at examples: those of the calibration.

    Without further settings these are all of S, with their labels. When z_i is left out of S, the mask is chosen anew: the
    examples and labels that were drawn for S stay, and z_i is taken out of them.

    Attributes:
        sparsity: p ∈ (0, 1], the fraction of parameters that may change.
        scope: which coordinates compete: all (``global``), those of each tensor (``tensor``), of each row (``row``), of each
            layer (``layer``), of each type of tensor (``type``), or as a :class:`Scope` says.
        examples: the number of examples in the calibration, drawn from the split without replacement; None for all. Where there
            are fewer, all are used.
        split: where they come from: ``train`` for S, or ``validation``. The mask does then not depend on S.
        labels: ``true`` for the labels of the data, ``sampled`` for one label of each example drawn from the model, or ``model``
            for the mean over all labels by their probability under the model. With these two mean_i g_i² is the diagonal of the
            true Fisher matrix, and with the labels of the data that of the empirical one. Under a model whose loss is the squared
            error (f − y)², labels have the distribution N(f, ½), for that loss is its negative logarithm. ``model`` is for scores
            of squared gradients alone, because the mean of the gradients themselves is then 0.

    Raises:
        UsageError: a setting out of range; on selecting: there is no validation split, or the model gives labels no
            probabilities.

    Example:
        >>> from stability import load
        >>> from stability.selectors import Fisher
        >>> Fisher(0.01, examples=10, labels="model").select(load("digits"), seed=0).count
        264
    """

    _: KW_ONLY
    examples: int | None = None
    split: Literal["train", "validation"] = "train"
    labels: Literal["true", "sampled", "model"] = "true"

    passes: ClassVar[str] = "1 backward"
    of_squares: ClassVar[bool] = False
    """Whether the score is made of squared gradients, so that it has a mean over the model's own labels."""

    def __post_init__(self) -> None:
        check_whole(1, examples=1 if self.examples is None else self.examples)
        if self.labels is True:  # type: ignore[comparison-overlap] # the word, as JSON and TOML read it
            object.__setattr__(self, "labels", "true")
        check_choice(("train", "validation"), split=self.split)
        check_choice(("true", "sampled", "model"), labels=self.labels)
        if self.labels == "model" and not self.of_squares:
            raise UsageError(
                f"labels = 'model': the mean gradient over the model's own labels is 0, so that {self.name} would have nothing to "
                "choose by: use labels = 'sampled' or 'true'"
            )

    @property
    def uses_data(self) -> bool:  # type: ignore[override]
        return self.split == "train"

    def settings(self) -> dict[str, Any]:
        """What defines the selector, without settings of the calibration that have their defaults."""
        usual = {"examples": None, "split": "train", "labels": "true"}
        return {name: value for name, value in super().settings().items() if name not in usual or value != usual[name]}

    def evidence(self, problem: Problem, seed: int) -> "Evidence":
        """The examples of the calibration, with the labels that count.

        Args:
            problem: what is to be learned.
            seed: of the selection; it draws examples and labels.
        """
        return self._calibration(problem, seed)[0]

    def select_each_left_out(self, problem: Problem, left_out: Sequence[int], seed: int) -> Iterator[Mask]:
        at, used = self._calibration(problem, seed)
        places = {int(i): place for place, i in enumerate(used)} if self.uses_data else {}
        own = self._chosen(at)
        others = self._each_without(at, [places[i] for i in left_out if i in places])
        for i in left_out:
            yield self._chosen(next(others)) if i in places else own

    def _each_without(self, at: Evidence, places: Sequence[int]) -> Iterator["Evidence"]:
        """The evidence without each of some of its examples in turn."""
        return at.each_without(places)

    def _calibration(self, problem: Problem, seed: int) -> tuple[Evidence, Tensor]:
        """The evidence, and which examples of the split are in it."""
        if (shared := _SHARED.get()) is None or shared[0] is not problem:
            return self._drawn(problem, seed)
        known, key = shared[1], (seed, self.examples, self.split, self.labels)
        if key not in known:
            known[key] = self._drawn(problem, seed)
        at, used = known[key]
        mine = replace(at)
        vars(mine)["_shared"] = at
        return mine, used

    def _drawn(self, problem: Problem, seed: int) -> tuple[Evidence, Tensor]:
        split = problem.train if self.split == "train" else problem.validation
        if split is None:
            raise UsageError(f"{problem.name!r} has no validation split: use split = 'train'")
        draw, used = generator(seed, "selection"), torch.arange(len(split))
        if self.examples is not None and self.examples < len(split):
            used = torch.randperm(len(split), generator=draw)[: self.examples].sort().values
        if self.split != "train" or len(used) < len(split):
            problem = problem.with_training(split.take(used))
        if self.labels == "sampled":
            problem = self._relabelled(problem, seed, draw)
        return Evidence(problem, seed, expected=self.labels == "model"), used

    def _relabelled(self, problem: Problem, seed: int, draw: torch.Generator) -> Problem:
        """The problem with labels that the model draws."""
        start, labels = problem.start(seed), problem.train.labels.clone()
        levels = torch.rand(len(labels), generator=draw, dtype=torch.float64)
        for index, block in problem.train.blocks():
            with torch.no_grad():
                logits = problem.logits(start, block.inputs)
                labels[index.to(labels.device)] = _label_at(problem, logits, levels[index].to(logits.device)).to(labels)
        return problem.with_training(replace(problem.train, labels=labels))
