"""What is done to the training set: one example left out, a group, a fraction, one replaced, or one with another label.

Each perturbation changes S in u ways, its *units*, and one of these classes names it. The stability is the mean over the units of
how far the loss that is looked at moves. :class:`LeaveOneOut` is Definition 3 of Fu et al. 2023 and the default everywhere; the
bounds speak of it alone.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from stability.checks import check_fraction
from stability.errors import UsageError
from stability.leave_one_out.units import OneExampleEach, SingleExamples, Units, Words
from stability.problems.problem import Examples, Problem, generator
from stability.training.substitutes import Substitutes

__all__ = ["FlipLabel", "LeaveGroupOut", "LeaveOneOut", "Perturbation", "RemoveFraction", "ReplaceOne"]

_ROUNDED = 0.005  # by which 0.333 differs from a third, and more


class Perturbation(ABC):
    """A way of changing the training set. Subclasses are frozen dataclasses.

    Attributes:
        name: in tables and on the command line.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @abstractmethod
    def units(self, problem: Problem, seed: int) -> Units:
        """The u changed training sets.

        Args:
            problem: whose training set is changed.
            seed: of what is drawn.

        Raises:
            UsageError: the problem does not have what the perturbation needs.
        """

    def settings(self) -> dict[str, Any]:
        """Name and settings as plain values."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}


class LeaveManyOut(Perturbation):
    """A perturbation that leaves several examples out at once, and so needs no more than a training program that can do that."""

    @abstractmethod
    def parts(self, n: int, seed: int, *, name: str, groups: Sequence[str | int] | None = None) -> Parts:
        """What is left out at once.

        Args:
            n: size of S.
            seed: of what is drawn.
            name: of the problem or the loop, for messages.
            groups: of the examples, where the problem has some.
        """

    def units(self, problem: Problem, seed: int) -> Units:
        return self.parts(problem.n, seed, name=problem.name, groups=problem.groups)


@dataclass(frozen=True)
class LeaveOneOut(Perturbation):
    """Leave one example out: E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|, Sⁱ = S \\ z_i (Fu et al. 2023, Definition 3).

    Example:
        >>> from stability import load
        >>> LeaveOneOut().units(load("digits", n=10), seed=0).count
        10
    """

    name: ClassVar[str] = "leave-one-out"

    def units(self, problem: Problem, seed: int) -> Units:
        return SingleExamples(problem.n)


@dataclass(frozen=True)
class LeaveGroupOut(LeaveManyOut):
    """Leave a whole group of examples out: E_g |L_g(A(S \\ g)) − L_g(A(S))|, the mean over the groups g, whatever their size.

    L_g is the mean loss over the examples of g. Groups are what belongs together: the texts of one annotator, or of one document.

    Attributes:
        groups: the group of each training example, (n,), words or numbers: a list, an array, a tensor or a column of a table; by
            default those that the problem was loaded with (``load(…, group="annotator")``, ``--group``).

    Raises:
        UsageError: groups that are no list, or one that is missing or no word or number; on measuring: there is no group for
            each example, there is one group alone, or each has one example alone.

    Example:
        >>> from stability import load
        >>> units = LeaveGroupOut(["a", "a", "b", "a", "b"]).units(load("digits", n=5), seed=0)
        >>> units.count, units.weights(torch.tensor([1])).tolist()
        (2, [[1.0, 1.0, 0.0, 1.0, 0.0]])
    """

    groups: Sequence[str | int] | None = None

    name: ClassVar[str] = "leave-group-out"

    def __post_init__(self) -> None:
        if self.groups is not None:
            object.__setattr__(self, "groups", _each_known(self.groups))

    def parts(self, n: int, seed: int, *, name: str, groups: Sequence[str | int] | None = None) -> Parts:
        groups = groups if self.groups is None else self.groups
        if groups is None:
            raise UsageError(
                f"{name} has no groups: name the column that has them, load(…, group='annotator') or --group "
                "COLUMN; or give LeaveGroupOut one group for each training example"
            )
        if len(groups) != n:
            raise UsageError(f"groups: {len(groups)} for n = {n} training examples: give one for each")
        members: dict[str | int, list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault(group, []).append(i)
        if len(members) == 1:
            raise UsageError(f"groups: all {n} training examples are in {groups[0]!r}: without it there is nothing to train on")
        if len(members) == n:
            raise UsageError(
                f"groups: each of the {n} training examples is alone in its group, and that is leaving one example out: use "
                "LeaveOneOut(), on the command line leave --group out"
            )
        words = Words(
            perturbation=self.name,
            doing="leaving one group of training examples out",
            its="the mean loss of its examples",
            plural="groups",
            singular="group",
        )
        alone = sum(len(own) == 1 for own in members.values())
        notes = (f"{alone} of {len(members)} groups {'has' if alone == 1 else 'have'} only one example",) if alone else ()
        return Parts(n, tuple(map(tuple, members.values())), tuple(f"group {group}" for group in members), words, notes=notes)


def _each_known(groups: object) -> tuple[str | int, ...]:
    """The group of each example as plain words and numbers.

    Raises:
        UsageError: there is no list of them, or one is missing or something else.
    """
    if not isinstance(groups, Collection) or isinstance(groups, (str, bytes, Set, Mapping)):
        raise UsageError(
            f"groups = {groups!r}: give a list with the group of each training example; the name of a column goes to "
            "load(…, group='annotator')"
        )
    plain = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if not isinstance(plain, list):  # an array without an axis
        raise UsageError(f"groups = {groups!r}: give a list with the group of each training example")
    found: list[str | int] = []
    for i, group in enumerate(plain):
        one = group.item() if hasattr(group, "item") and getattr(group, "shape", None) == () else group  # of numpy or torch
        blank = one is None or (isinstance(one, str) and not one.strip()) or (isinstance(one, Real) and one != one)
        if blank or not isinstance(one, (str, Real)):
            what = "is missing" if blank else "is no word or number"
            raise UsageError(f"groups[{i}] = {group!r} {what}: give each of the {len(plain)} examples the name of its group")
        found.append(one)  # type: ignore[arg-type]
    return tuple(found)


@dataclass(frozen=True)
class RemoveFraction(LeaveManyOut):
    """Remove a fraction f of S at once: E_P |L_P(A(S \\ P)) − L_P(A(S))|, over the parts P of a random partition of S.

    L_P is the mean loss over the examples of P. There are 1/f parts, as equal in size as they can be, so that every example is
    removed once. Fu et al. 2023 remove a tenth of S in Table 2.

    Attributes:
        fraction: f, one of 1/2, 1/3, 1/4, …, up to three digits.

    Raises:
        UsageError: another fraction; on measuring: less than one example.

    Example:
        >>> from stability import load
        >>> RemoveFraction(0.1).units(load("digits", n=40), seed=0).count
        10
    """

    fraction: float = 0.1

    name: ClassVar[str] = "remove-fraction"

    def __post_init__(self) -> None:
        check_fraction(fraction=self.fraction)
        if self.fraction > 0.5:
            raise UsageError(f"fraction = {self.fraction}: at most 0.5, so that every example is in one part of two or more")
        if abs(self._parts * self.fraction - 1) > _ROUNDED:
            fewer = int(1 / self.fraction)
            near = " or ".join(f"{1 / k:.4g} (1/{k})" for k in (fewer, fewer + 1))
            raise UsageError(f"fraction = {self.fraction}: S is divided into parts of one size, each removed once: use {near}")

    @property
    def _parts(self) -> int:
        return round(1 / self.fraction)

    def parts(self, n: int, seed: int, *, name: str, groups: Sequence[str | int] | None = None) -> Parts:
        parts = self._parts
        if parts > n:
            raise UsageError(f"fraction = {self.fraction} of n = {n} examples is less than one: use {1 / n:.4g} or more")
        order = torch.randperm(n, generator=generator(seed, "removed"))
        members = [tuple(sorted(part.tolist())) for part in order.tensor_split(parts)]
        words = Words(
            perturbation=self.name,
            doing=f"removing {1 / parts:.3g} of the training examples at once",
            its="the mean loss of those",
            plural="parts",
            singular="part",
            passive="removed",
        )
        names = tuple(f"part {j}" for j in range(1, parts + 1))
        return Parts(n, tuple(members), names, words, fraction=1 / parts)


@dataclass(frozen=True)
class ReplaceOne(Perturbation):
    """Replace one example by a fresh one: E_i |ℓ(A(S^{i→z′}), z_i) − ℓ(A(S), z_i)| (Shalev-Shwartz et al. 2010, Definition 3).

    z′ takes the place of z_i in its batches. It is drawn from the validation split, or from the test split where there is no
    other; without replacement as long as there are enough. The losses on this split are then not quite of unseen examples. Early
    stopping chooses a checkpoint by the validation split; the estimate says so where z′ comes from there.

    Raises:
        UsageError: on measuring: there is no held-out example, or the algorithm drops out.

    Example:
        >>> from stability import load
        >>> ReplaceOne().units(load("digits", n=5), seed=0).weights(torch.tensor([2])).tolist()
        [[1.0, 1.0, 0.0, 1.0, 1.0, 1.0]]
    """

    name: ClassVar[str] = "replace-one"

    def units(self, problem: Problem, seed: int) -> Units:
        validation = problem.validation is not None and len(problem.validation) > 0
        pool = problem.validation if problem.validation is not None and validation else problem.test
        if not len(pool):
            raise UsageError(f"{problem.name} has no held-out example to take in the place of another")
        draws, orders, drawn = generator(seed, "replacement"), [], 0
        while drawn < problem.n:
            orders.append(torch.randperm(len(pool), generator=draws))
            drawn += len(pool)
        words = Words(
            perturbation=self.name,
            doing="replacing one training example",
            its="its loss",
            plural="examples",
            passive="replaced",
            each="with another in the place of each of {}",
        )
        return Replacements(problem.train, pool.take(torch.cat(orders)[: problem.n]), words, of_validation=validation)


@dataclass(frozen=True)
class FlipLabel(Perturbation):
    """Give one example another label: E_i |ℓ(A(S^{y_i→y′}), z_i) − ℓ(A(S), z_i)|, the loss at z_i with its own label y_i.

    y′ is drawn from the other classes, each as likely. It shows how much of a wrong label the model would take over.

    Raises:
        UsageError: on measuring: labels are numbers, or the algorithm drops out.

    Example:
        >>> from stability import load
        >>> FlipLabel().units(load("digits", n=5), seed=0).count
        5
    """

    name: ClassVar[str] = "flip-label"

    def units(self, problem: Problem, seed: int) -> Units:
        labels = problem.train.labels.cpu()
        if labels.is_floating_point():
            raise UsageError(f"the labels of {problem.name} are numbers: there is no other class to give an example")
        classes = _outputs(problem, seed) if problem.classes is None else len(problem.classes)
        if classes < 2:
            raise UsageError(f"{problem.name} has one class alone: there is no other to give an example")
        others = torch.randint(classes - 1, (problem.n,), generator=generator(seed, "flip"))
        flipped = dataclasses.replace(problem.train, labels=(others + (others >= labels)).to(problem.train.labels))
        words = Words(
            perturbation=self.name,
            doing="giving one training example another label",
            its="its loss with its own label",
            plural="examples",
            passive="given another label",
            each="with another label for each of {}",
        )
        return Replacements(problem.train, flipped, words)


def _outputs(problem: Problem, seed: int) -> int:
    """The number of classes that a problem tells by its logits alone. A model of one logit tells two by its sign."""
    one = problem.train.take(slice(0, 1))
    with torch.no_grad():
        logits = problem.logits(problem.start(seed), one.inputs)
    return max(logits[0].numel(), int(problem.train.labels.max()) + 1)


@dataclass(frozen=True)
class Parts(Units):
    """Groups of examples, each a unit: all of them have weight 0, and their mean loss is looked at.

    Attributes:
        n: size of S.
        members: the examples of each group.
        names: of the groups.
        words: what is done to them.
        notes: what should be known of them, a sentence each.
        fraction: of S that each is, where they are of one size.

    Example:
        >>> words = Words(perturbation="mine", doing="leaving a pair out", its="their mean loss", plural="pairs")
        >>> Parts(3, ((0, 2), (1,)), ("a", "b"), words).weights(torch.tensor([0]))
        tensor([[0., 1., 0.]])
    """

    n: int
    members: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    words: Words
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    fraction: float | None = field(default=None, kw_only=True)

    @property
    def count(self) -> int:
        return len(self.members)

    def weights(self, chosen: Tensor) -> Tensor:
        weights = torch.ones(len(chosen), self.n)
        for row, unit in enumerate(chosen.tolist()):
            weights[row, list(self.members[unit])] = 0
        return weights

    def looked_at(self, unit: int) -> Sequence[int]:
        return self.members[unit]

    def name_of(self, unit: int, example: Callable[[int], str]) -> str:
        count = len(self.members[unit])
        return f"{self.names[unit]} [{count} example{'s' if count > 1 else ''}]"


@dataclass(frozen=True, eq=False)
class Replacements(OneExampleEach):
    """Examples that each give way to another one. What is looked at is the loss of the example that gives way.

    Attributes:
        own: S.
        others: (n,) what takes the place of each.
        words: what is done to them.
        of_validation: whether the others are of the validation split.

    Example:
        >>> words = Words(perturbation="mine", doing="swapping one", its="its loss", plural="swaps")
        >>> own = Examples({"x": torch.eye(2)}, torch.tensor([0, 1]))
        >>> Replacements(own, Examples({"x": torch.eye(2)}, torch.tensor([1, 0])), words).weights(torch.tensor([1]))
        tensor([[1., 0., 1.]])
    """

    own: Examples
    others: Examples
    words: Words
    of_validation: bool = field(default=False, kw_only=True)

    @property
    def count(self) -> int:
        return len(self.own)

    def weights(self, chosen: Tensor) -> Tensor:
        return torch.cat([SingleExamples(self.count).weights(chosen), torch.eye(len(chosen))], dim=1)

    def substitutes(self, chosen: Tensor) -> Substitutes:
        return Substitutes(self.others.take(chosen), chosen)

    def changed(self, problem: Problem, unit: int) -> Problem:
        n, index = self.count, torch.arange(self.count)
        index[unit] = n
        other = self.others.take(torch.tensor([unit])).to(problem.train.labels.device)
        return problem.with_training(problem.train.followed_by(other).take(index))
