"""The one interface of every way to choose the tunable parameters."""

from __future__ import annotations

import copy
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch

from stability.checks import check_kind
from stability.errors import UsageError, explained
from stability.masks import Mask, Parameters
from stability.problems.problem import Examples, Problem, generator
from stability.selectors.code import code_of, plain
from stability.selectors.moving import Course, Run
from stability.selectors.scope import AnyScope
from stability.selectors.top_k import top_k

__all__ = ["FromScores", "Moving", "ScoreFunction", "Selector", "from_scores"]


class Selector(ABC):
    """Chooses which of the m pretrained coordinates may change.

    A subclass writes :attr:`name` (a class variable is enough) and :meth:`select`. One whose choice depends on the training data
    sets ``uses_data``: leaving an example out then selects again. :meth:`select_each_left_out` does that by calling ``select`` on
    every Sⁱ. Override it with something faster that gives the same masks, or to pair what is drawn for Sⁱ with what was drawn for
    S.

    A selector whose mask moves while A trains is a :class:`Moving` one. One that inserts modules is a
    :class:`stability.selectors.Inserted` one.

    Attributes:
        uses_data: whether the choice depends on S.
        moving: whether the mask is known only after training.
        selects_all: whether all coordinates are selected, whatever the problem.
        vectors: how many vectors of all coordinates a moving method holds for each replica, beside AdamW's. Memory is planned
            from it.
        sparsity: p as it was asked for; None where the rule itself decides how many may change.

    Example:
        >>> from stability import load
        >>> class LastLayers(Selector):
        ...     name = "last-layers"
        ...
        ...     def select(self, problem, seed):
        ...         chosen = {n: torch.arange(t.numel()) for n, t in problem.pretrained.items() if "layers.2" in n}
        ...         return Mask({n: tuple(t.shape) for n, t in problem.pretrained.items()}, chosen)
        >>> LastLayers().select(load("digits"), seed=0)
        Mask(k=8544, m=26432)
    """

    uses_data: ClassVar[bool] = False
    moving: ClassVar[bool] = False
    selects_all: ClassVar[bool] = False
    vectors: ClassVar[int] = 0
    sparsity: float | None = None

    def __init_subclass__(cls) -> None:
        if "begin" in vars(cls) and cls.moving is False:
            raise UsageError(f"{cls.__name__} writes begin, so that its mask moves while A trains: derive it from Moving")

    @property
    @abstractmethod
    def name(self) -> str:
        """For tables, figures and the command line."""

    @property
    def made_of(self) -> object:
        """What decides: the selector's class, or the score function that it was made from. Two methods differ where this does."""
        return type(self)

    @abstractmethod
    def select(self, problem: Problem, seed: int) -> Mask:
        """The selected coordinates of ``problem.pretrained``; of a moving selector those that may be chosen.

        Every random choice comes from ``generator(seed, "selection")``.
        """

    def selected(self, problem: Problem, seed: int) -> Mask:
        """What :meth:`select` gives, checked. A selector of the user's own sees copies of all tensors.

        Args:
            problem: what is to be learned.
            seed: of the selection.

        Raises:
            UsageError: ``select`` refuses, raises an error, or gives no mask; the message tells file and line.
        """
        with explained(f"selector {self.name!r}"):
            mask = self.select(problem if self._of_toolkit else _copied(problem), seed)
        if not isinstance(mask, Mask):
            raise UsageError(f"selector {self.name!r} selected {type(mask).__name__}: select returns a stability.Mask")
        if self._of_toolkit:
            return mask
        if odd := mask.misfits(self.equivalent(problem, seed).pretrained):
            raise UsageError(
                f"the mask of selector {self.name!r} does not fit the pretrained parameters: names or shapes differ for "
                f"{', '.join(odd[:3])}"
            )
        return mask

    @property
    def _of_toolkit(self) -> bool:
        return type(self).__module__.startswith(f"{__name__.partition('.')[0]}.")

    def equivalent(self, problem: Problem, seed: int) -> Problem:
        """The problem that is trained: ``problem`` itself, or its equivalent with modules inserted. Idempotent."""
        return problem

    def begin(self, run: Run) -> Course:
        """The start of r replicas of a moving method."""
        raise NotImplementedError(f"{self.name} has a fixed mask")

    def settings(self) -> dict[str, Any]:
        """What defines the selector, as plain values: part of the identity of a result."""
        return {"name": self.name, **{name: plain(value) for name, value in self._values().items()}}

    def code(self, state: bool = True) -> str | None:
        """Digest of the user's own code that decides, and of values that JSON cannot hold; None where there are none.

        It is part of the identity beside :meth:`settings`, so that results of some code never pass for those of its next version.

        Args:
            state: as for :func:`stability.selectors.code.code_of`.
        """
        return code_of(self.made_of, *self._values().values(), state=state)

    def _values(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else dict(vars(self))

    def select_each_left_out(self, problem: Problem, left_out: Sequence[int], seed: int) -> Iterator[Mask]:
        """The mask chosen on S without z_i, for each i of ``left_out`` in turn."""
        for i in left_out:
            yield self.selected(problem.without(i), seed)


class Moving(Selector):
    """A selector whose mask moves while A trains. Every replica finds its own mask.

    A subclass writes :meth:`begin`, which starts a :class:`Course`. The course takes the steps and gives the final mask;
    :class:`Projected` is one that projects onto the coordinates of highest score. A course that says when its mask stays
    (:attr:`Course.settles`) is trained faster.

    Example:
        >>> from stability import FineTuning, load, train
        >>> from stability.selectors import Projected
        >>> class Salient(Moving):
        ...     name, uses_data, sparsity = "salient", True, 0.01
        ...
        ...     def begin(self, run):  # the largest |θ · (θ − θ⁰)|, projected every 5 steps
        ...         return Projected(run, lambda values, origin: (values * (values - origin)).abs(), self.sparsity, every=5)
        >>> train(load("digits"), FineTuning(Salient(), steps=6)).masks[0]
        Mask(k=264, m=26432)
    """

    moving: ClassVar[bool] = True

    def select(self, problem: Problem, seed: int) -> Mask:
        return Mask.full(problem.pretrained)

    @abstractmethod
    def begin(self, run: Run) -> Course: ...


ScoreFunction = Callable[[Problem, torch.Generator], Parameters]
"""(problem, generator) → one score a pretrained coordinate, in the shapes of ``problem.pretrained``; large is tunable."""


@dataclass(frozen=True)
class FromScores(Selector):
    """The ⌊pm⌋ coordinates of highest score, by a function of one's own; :func:`from_scores` makes one.

    Attributes:
        scores: (problem, generator) → one score a pretrained coordinate.
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``), within each tensor (``tensor``), or as a :class:`Scope` says.
        label: for tables and figures; the function's own name where it is empty.
    """

    scores: ScoreFunction
    sparsity: float = field()
    scope: AnyScope = "global"
    label: str = ""

    uses_data: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.label or _called(self.scores)

    @property
    def made_of(self) -> object:
        return self.scores

    def select(self, problem: Problem, seed: int) -> Mask:
        head = problem.head(seed)
        shown = replace(_copied(problem), new_head=lambda _: head)
        with explained(f"selector {self.name!r}"):
            scores = self.scores(shown, generator(seed, "selection"))
        _check_scores(self.name, scores, problem.pretrained)
        return top_k({name: scores[name] for name in problem.pretrained}, self.sparsity, self.scope)


def from_scores(scores: ScoreFunction, sparsity: float, scope: AnyScope = "global", name: str = "") -> FromScores:
    """A selector that takes the ⌊pm⌋ coordinates of highest score.

    Args:
        scores: (problem, generator) → scores named and shaped as ``problem.pretrained``. It sees S as
            ``problem.train``, and where training starts as ``problem.start()``; when z_i is left out it is called again
            with that example gone.
        sparsity: p ∈ (0, 1].
        scope: compete over all parameters (``global``), within each tensor (``tensor``), or as a :class:`Scope` says.
        name: for tables and figures; the function's own name by default.

    Raises:
        UsageError: a function of other arguments; on selecting: scores that are no dictionary of real tensors, whose names or
            shapes are not those of ``problem.pretrained``, that are not finite, or all equal, which leaves nothing to
            choose by.

    Example:
        >>> from stability.problems import load
        >>> def smallest(problem, generator):
        ...     return {name: -tensor.abs() for name, tensor in problem.pretrained.items()}
        >>> from_scores(smallest, sparsity=0.01).select(load("digits"), seed=0).count
        264
    """
    check_kind(Callable, "a function (problem, generator) → scores", scores=scores)  # type: ignore[arg-type]
    try:
        inspect.signature(scores).bind(None, None)
    except TypeError as error:
        raise UsageError(
            f"the score function {name or _called(scores)!r} takes (problem, generator), and this one does not: {error}"
        ) from error
    except ValueError:  # a function written in C may not tell what it takes
        pass
    return FromScores(scores, sparsity, scope, name)


def _called(scores: Any) -> str:
    """The name of a function, of what was made of one, or of the class of an object that can be called."""
    while isinstance(scores, functools.partial):
        scores = scores.func
    return str(getattr(scores, "__name__", type(scores).__name__))


def _copied(problem: Problem) -> Problem:
    """The problem with tensors and a network of its own, for a user's code to do with what it likes: all runs share the others."""

    def own(examples: Examples) -> Examples:
        inputs = {name: tensor.clone() for name, tensor in examples.inputs.items()}
        return replace(examples, inputs=inputs, labels=examples.labels.clone())

    return replace(
        problem,
        pretrained={name: tensor.clone() for name, tensor in problem.pretrained.items()},
        logits=copy.deepcopy(problem.logits),
        train=own(problem.train),
        test=own(problem.test),
        validation=None if problem.validation is None else own(problem.validation),
    )


def _check_scores(name: str, scores: Parameters, pretrained: Parameters) -> None:
    values = list(scores.values()) if isinstance(scores, Mapping) else [scores]
    odd = [one for one in values if not isinstance(one, torch.Tensor) or one.is_complex()]
    if odd or not isinstance(scores, Mapping):
        what = type(scores).__name__ + (f" of {type(odd[0]).__name__}" if odd and isinstance(scores, Mapping) else "")
        raise UsageError(f"selector {name!r} returned {what}: a dictionary of real tensors named as problem.pretrained expected")
    missing, unknown = sorted(pretrained.keys() - scores.keys()), sorted(scores.keys() - pretrained.keys())
    if missing or unknown:
        parts = [f"{what}: {', '.join(names[:3])}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise UsageError(f"scores of {name!r} must be named as problem.pretrained; {'; '.join(parts)}")
    for tensor, score in scores.items():
        if score.shape != pretrained[tensor].shape:
            raise UsageError(
                f"scores of {name!r} for {tensor!r} have shape {tuple(score.shape)}: that of the parameter, "
                f"{tuple(pretrained[tensor].shape)}, expected"
            )
        if bad := int((~torch.isfinite(score)).sum()):
            raise UsageError(f"scores of {name!r} for {tensor!r}: {bad} of {score.numel()} are not finite, so they have no order")
    if len({float(end) for score in scores.values() if score.numel() for end in (score.detach().min(), score.detach().max())}) == 1:
        raise UsageError(f"scores of {name!r} are all equal: there is nothing to choose by; 'random' chooses by chance")
