"""Methods that insert modules into the model: :class:`Inserted`, what they have in common.

Each maps the problem to its *equivalent problem* (Fu et al. 2023, Definition 2: same outputs, more parameters, the new ones
starting at no effect) and then selects the parameters that it inserted. Training, replicas, bounds and files see an ordinary
problem. There p is the number of trained parameters divided by that of all parameters, in the equivalent model. A method that
does not start at the pretrained model's outputs is mapped in the same way, and the problem then says that it is not equivalent.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stability.errors import UsageError
from stability.masks import Mask, Parameters
from stability.problems.drawing import DrawingFrom
from stability.problems.problem import Insertion, ModuleLogits, Problem, generator, refill, without_values
from stability.selectors.base import Selector
from stability.selectors.places import OTHERS
from stability.selectors.trial import LOOP, Trial

__all__ = ["Inserted"]


class Inserted(Selector):
    """A method that inserts modules into the model and trains those. A subclass writes :meth:`insert`.

    Attributes:
        wrapper: the prefix that :meth:`insert` puts before every name. The inserted parameters are named without it.

    Example:
        >>> from stability.problems import load
        >>> class Shift(nn.Module):
        ...     def __init__(self, layer):
        ...         super().__init__()
        ...         self.layer, self.by = layer, nn.Parameter(torch.zeros(layer.out_features))
        ...
        ...     def forward(self, x):
        ...         return self.layer(x) + self.by
        >>> class Shifted(Inserted):
        ...     name = "shifted"
        ...
        ...     def insert(self, module):
        ...         mlp = module.get_submodule("vit.layers.0.mlp")
        ...         mlp.fc2 = Shift(mlp.fc2)
        ...         return module
        >>> Shifted().select(load("digits"), seed=0)
        Mask(k=32, m=26464)
    """

    wrapper: ClassVar[str] = ""

    @abstractmethod
    def insert(self, module: nn.Module) -> nn.Module:
        """Insert the method's modules.

        Args:
            module: the pretrained model on the CPU, a copy that may be changed. None of its parameters requires a gradient.
                The parts that make up its new head are None meanwhile: the head is trained in full, and nothing goes into it.
                Random starts are drawn as usual: draws from torch's global generator come from one of the seed's instead.

        Returns:
            The model with the modules inserted, ``module`` itself or another. The method trains the parameters that have
            ``requires_grad``.

        Raises:
            UsageError: there is nothing to insert into.
        """

    def changed(self, module: nn.Module) -> dict[str, Tensor]:
        """The coordinates that the method trains, where it adds no tensor and changes coordinates of the model's own.

        Args:
            module: what :meth:`insert` returned.

        Returns:
            The flat indices of those coordinates by the tensors' names in ``module``; empty where the method adds tensors.
        """
        return {}

    def forms(self, logits: ModuleLogits) -> Iterable[ModuleLogits]:
        """Forms in which the model with the modules may run where it cannot run in that of the pretrained model.

        Args:
            logits: the model in the form of the pretrained one.

        Returns:
            The forms, the quickest first; by default none.
        """
        return ()

    def equivalent(self, problem: Problem, seed: int) -> Problem:
        """The problem with the modules inserted; ``problem`` itself where they are in it already.

        Pretrained tensors keep their names. They keep their values too, except where the method moves a part of a tensor into
        what it inserts: PiSSA leaves W − B A. The θ⁰ of the equivalent problem is what the method leaves. A tensor that the new
        model no longer uses, because a trained copy stands in its place, is left out, so that the parameters that a method
        *changes* count once.

        Many replicas are computed at once where ``torch.func.vmap`` can run the new layers, and otherwise one after the other
        (:attr:`Problem.execution_notes <stability.problems.Problem.execution_notes>`). Where the outputs at the start are not the
        pretrained model's, :attr:`Insertion.equivalent <stability.problems.Insertion>` is false.

        Args:
            problem: the problem to insert into. Its model is a torch module.
            seed: the seed of the random starts.

        Raises:
            UsageError: the model is no torch module, there is nothing to insert into, the new model fails or lets the examples
                of a batch change each other, or its training would take more than its layers and plain dropout.
        """
        by = {**self.settings(), "seed": seed}
        if problem.insertion is not None:
            if problem.insertion.by == by:
                return problem
            raise UsageError(f"{self.name}: {problem.insertion.by['name']} has inserted modules already: load the problem anew")
        if not isinstance(problem.logits, ModuleLogits):
            raise UsageError(
                f"{self.name} inserts modules into a torch module, and the model of {problem.name!r} is a function: {OTHERS}"
            )
        start, own_name = problem.start(seed), problem.logits.names
        module = copy.deepcopy(problem.logits.to(torch.device("cpu")).module)
        if odd := {name for name, _ in module.named_parameters()} - {own_name.get(name, name) for name in start}:
            raise UsageError(f"{self.name}: the module has parameters that the problem lacks: {', '.join(sorted(odd)[:3])}")
        old = {own_name.get(name, name): nn.Parameter(t.detach().cpu().clone(), requires_grad=False) for name, t in start.items()}
        refill(module, lambda name, _: old[name])
        known = {id(old[own_name.get(name, name)]): name for name in start}
        head = {one for one, name in known.items() if name not in problem.pretrained}
        body = set(module.modules())
        draws = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator(seed, "selection"))))
        with _without_parts(module, head), DrawingFrom(draws):
            module = self.insert(module).eval()
        if indices := self.changed(module):
            parameters = dict(module.named_parameters())
            shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
            mask = Mask(shapes, {known[id(parameters[name])]: index for name, index in indices.items()})
            return replace(problem, insertion=Insertion(by, mask))
        return self._equivalent(problem, module, start=start, known=known, body=body, by=by)

    def _equivalent(
        self,
        problem: Problem,
        module: nn.Module,
        *,
        start: Parameters,
        known: Mapping[int, str],
        body: Collection[nn.Module],
        by: Mapping[str, Any],
    ) -> Problem:
        """The problem around ``module``, the model with the modules inserted, in a form that was found to be right.

        ``known`` gives the names of the pretrained parameters by their identity, ``body`` are the modules that were there
        before, and ``by`` is what inserted the others.
        """
        like = next(iter(problem.pretrained.values()))
        own_name, pretrained, trained = {}, {}, []
        for own, parameter in module.named_parameters():
            name = known.get(id(parameter), own.removeprefix(self.wrapper))
            own_name[name] = own
            if parameter._backward_hooks:
                raise UsageError(
                    f"{self.name} changes the gradient of {name} by a hook, and hooks on parameters are not called here: without "
                    f"them another method would be trained under this name; {LOOP}"
                )
            if id(parameter) not in known:
                pretrained[name] = parameter.detach().to(like)
            elif name in problem.pretrained:
                before = problem.pretrained[name]
                pretrained[name] = before if torch.equal(parameter, before.cpu()) else parameter.detach().to(before)
            if parameter.requires_grad and name in pretrained:
                trained.append(name)
        if not trained:
            raise UsageError(f"{self.name} leaves nothing to train: every parameter that it inserts is frozen; unfreeze one")
        refill(module, without_values)
        assert isinstance(problem.logits, ModuleLogits)
        names = {name: own for name, own in own_name.items() if name != own}
        logits = replace(problem.logits, module=module, names=names).to(like.device)
        head = {name: tensor for name, tensor in start.items() if name not in problem.pretrained}
        trial = Trial(
            name=self.name,
            problem=problem,
            before=start,
            logits=logits,
            start={**pretrained, **head},
            trained=trained,
            inserted={name for name, part in module.named_modules() if part not in body},
        )
        equivalent, logits = trial.equivalent, trial.form(self.forms(logits))
        without = {name: tensor for name, tensor in pretrained.items() if name not in trial.unused}
        shapes = {name: tuple(tensor.shape) for name, tensor in without.items()}
        mask = Mask(shapes, {name: torch.arange(without[name].numel()) for name in trained})
        return replace(problem, pretrained=without, logits=logits, insertion=Insertion(by, mask, equivalent=equivalent))

    def select(self, problem: Problem, seed: int) -> Mask:
        insertion = self.equivalent(problem, seed).insertion
        assert insertion is not None
        return insertion.tunable


@contextmanager
def _without_parts(module: nn.Module, parameters: Collection[int]) -> Iterator[None]:
    """``module`` without the parts whose parameters are all among ``parameters``, which are given by their identity."""
    parts = [
        (owner, leaf, part)
        for owner in module.modules()
        for leaf, part in owner.named_children()
        if (own := [id(parameter) for parameter in part.parameters()]) and all(one in parameters for one in own)
    ]
    for owner, leaf, _ in parts:
        setattr(owner, leaf, None)  # it keeps its place among its owner's parts
    yield
    for owner, leaf, part in parts:
        setattr(owner, leaf, part)
