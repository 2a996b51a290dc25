"""Leaving out by weight 0 against a loop that drops the row; and what must be refused because the two differ."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stability import FineTuning, Problem, UsageError, leave_one_out, problems
from stability.leave_one_out.estimators import Exact
from stability.problems.metrics import accuracy, cross_entropies
from stability.problems.problem import Examples, ModuleLogits
from stability.selectors import FullTuning
from stability.training.dropout import Dropout
from stability.training.replicas import train
from tests.reference import leaving_out

ALGORITHM = FineTuning(FullTuning(), steps=12, batch_size=4, learning_rate=0.03, schedule="constant")


def network(norm: Callable[[], nn.Module]) -> nn.Sequential:
    """It returns a tensor, as most models do that are no language models."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 4, 3), norm(), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        return nn.Sequential(*layers).double().eval()


class Called(nn.Module):
    """A network whose input has the name that the problem gives it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def images(norm: Callable[[], nn.Module], loss: Callable[[Tensor, Tensor], Tensor] = cross_entropies) -> Problem:
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(12) % 3
    x = torch.randn(12, 1, 6, 6, generator=draw, dtype=torch.float64) + 0.5 * labels.view(-1, 1, 1, 1)
    module = Called(network(norm)).eval()
    return Problem(
        name="images",
        settings={},
        pretrained=dict(module.named_parameters()),
        new_head=lambda draw: {},
        logits=ModuleLogits(module),
        loss=loss,
        train=Examples({"x": x[:8]}, labels[:8]),
        test=Examples({"x": x[8:]}, labels[8:]),
        metric=accuracy,
        metric_name="accuracy",
    )


NORMS: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.GroupNorm(2, 4),
    "running statistics": lambda: nn.BatchNorm2d(4),
    "batch statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


def truth(norm: Callable[[], nn.Module], problem: Problem) -> float:
    """β₂ with z_i's row really dropped from each batch."""

    def trained(left_out: int | None) -> Tensor:
        model = copy.deepcopy(network(norm))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.0)
        for batch in ALGORITHM.batches(problem.train):
            kept = batch[batch != left_out] if left_out is not None else batch
            optimizer.zero_grad()
            cross_entropy(model(problem.train.inputs["x"][kept]), problem.train.labels[kept]).backward()
            optimizer.step()
        with torch.no_grad():
            return cross_entropy(model(problem.train.inputs["x"]), problem.train.labels, reduction="none")

    whole = trained(None)
    return float(torch.stack([(trained(i)[i] - whole[i]).abs() for i in range(problem.n)]).mean())


@pytest.mark.parametrize("norm", ["group norm", "running statistics"])
def test_weight_zero_is_leaving_the_row_out(norm: str) -> None:
    problem = images(NORMS[norm])
    estimate = leave_one_out.measure(problem, ALGORITHM, Exact(), device="cpu")
    wanted = truth(NORMS[norm], problem)
    assert wanted > 1e-3
    assert estimate.value == pytest.approx(wanted, rel=1e-9)


def test_a_model_that_changes_its_inputs_is_refused() -> None:
    """The problem's own examples may be what it is given, and no copy."""

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(x.mean(dim=(1, 2, 3), keepdim=True))

    problem = images(NORMS["group norm"])
    module = Called(nn.Sequential(Centred(), network(NORMS["group norm"]))).eval()
    centred = dataclasses.replace(problem, logits=ModuleLogits(module), pretrained=dict(module.named_parameters()))
    with (
        torch.no_grad(),
        pytest.raises(UsageError, match=r"^images: the model changes its input 'x' in place: let it change a copy"),
    ):
        centred.check_independence()


def test_batch_normalisation_over_the_batch_is_refused_because_weight_zero_is_another_thing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm = NORMS["batch statistics"]
    problem = images(norm)
    with pytest.raises(UsageError, match=r"^images: the logits of two examples change by .* where a third is in .*group norm"):
        leave_one_out.measure(problem, ALGORITHM, Exact(), device="cpu")
    monkeypatch.setattr(Problem, "check_independence", lambda self: None)
    unchecked = leave_one_out.measure(problem, ALGORITHM, Exact(), device="cpu").value
    wanted = truth(norm, problem)
    assert abs(unchecked / wanted - 1) > 0.1, (unchecked, wanted)


def test_a_model_whose_start_hides_the_batch_is_refused_by_its_gradients() -> None:
    """A head of zeros gives the logits 0, whatever it sees."""
    problem = images(NORMS["batch statistics"])
    zero = {name: torch.zeros_like(t) if name.startswith("inner.5") else t for name, t in problem.pretrained.items()}
    with pytest.raises(UsageError, match=r"^images: the gradients of two examples change by .* where a third"):
        train(dataclasses.replace(problem, pretrained=zero), ALGORITHM, leaving_out(8, 0))


def contrastive(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropies(logits, labels) + torch.logsumexp(logits @ logits.T, 1)


def centred(logits: Tensor, labels: Tensor) -> Tensor:
    """It equals the cross-entropy wherever all logits are equal."""
    return cross_entropies(logits, labels) + (logits - logits.mean(0)).square().sum(1)


@pytest.mark.parametrize("loss", [contrastive, centred])
def test_a_loss_that_sees_the_batch_is_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    problem = images(NORMS["group norm"], loss)
    zero = {name: torch.zeros_like(t) if name.startswith("inner.5") else t for name, t in problem.pretrained.items()}
    for mine in (problem, dataclasses.replace(problem, pretrained=zero)):
        with pytest.raises(UsageError, match=r"^images: the losses of two examples change by .*Contrastive losses do that"):
            train(mine, ALGORITHM)


def test_a_mean_for_a_loss_and_logits_without_a_row_an_example_are_refused() -> None:
    problem = images(NORMS["group norm"], cross_entropy)
    with pytest.raises(UsageError, match=r"^images: the loss returned \(\) for 3 examples: let it return one number for each"):
        train(problem, ALGORITHM)

    def flat(parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        return problem.logits(parameters, inputs)[:, 0]

    with pytest.raises(UsageError, match=r"^images: the model returned \(3,\) for 3 examples"):
        train(dataclasses.replace(problem, logits=flat), ALGORITHM)


def test_the_problems_of_the_toolkit_pass_and_nothing_is_drawn(learned: Problem) -> None:
    state = torch.get_rng_state()
    for problem in (learned, *(problems.load(name, n=20) for name in ("digits", "linear", "logistic", "quadratic"))):
        problem.check_independence()
        dataclasses.replace(problem, train=problem.train.take(slice(0, 2))).check_independence()
    assert torch.equal(torch.get_rng_state(), state)


class Answering(nn.Module):
    """A linear layer with another form of output."""

    def __init__(self, form: Callable[[Tensor], Any], *layers: nn.Module) -> None:
        super().__init__()
        self.form, self.layers = form, nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Any:
        return self.form(self.layers(x))


def test_a_module_returns_logits_or_an_object_that_has_them() -> None:
    x = torch.ones(2, 1, 6, 6)
    module = Answering(lambda logits: logits)
    parameters = dict(module.named_parameters())
    wanted = module(x)
    assert torch.equal(ModuleLogits(module)(parameters, {"x": x}), wanted)
    for form in (lambda logits: {"logits": logits}, lambda logits: (logits, None), lambda logits: [logits]):
        assert torch.equal(ModuleLogits(Answering(form))(parameters, {"x": x}), wanted)
    with pytest.raises(UsageError, match="Answering returned a dict without logits: let its forward return the logits, a tensor"):
        ModuleLogits(Answering(lambda logits: {"scores": logits}))(parameters, {"x": x})
    with pytest.raises(UsageError, match="Answering returned a tuple without logits"):
        ModuleLogits(Answering(lambda logits: ()))(parameters, {"x": x})


def test_parts_that_act_otherwise_in_training_mode_are_refused() -> None:
    for part, message in (
        (nn.BatchNorm2d(4), "Answering: its BatchNorm2d 'layers.1' is in training mode and would change its running statistics"),
        (nn.Dropout(0.1), "Answering: its Dropout 'layers.1' is in training mode and would drop out: call module.eval.. first"),
    ):
        module = Answering(lambda logits: logits, part)
        with pytest.raises(UsageError, match=message):
            ModuleLogits(module)
        assert ModuleLogits(module.eval()).module is module


def test_dropout_leaves_batch_normalisation_its_running_statistics() -> None:
    plain = network(NORMS["running statistics"])
    logits = ModuleLogits(Called(nn.Sequential(plain, nn.Dropout(0.5))).eval())
    x = images(NORMS["running statistics"]).train.inputs["x"]
    with Dropout(torch.Generator().manual_seed(0)):
        found = logits.while_training(dict(logits.module.named_parameters()), {"x": x})
    with Dropout(torch.Generator().manual_seed(0)):
        wanted = nn.functional.dropout(plain(x), 0.5)
    assert torch.equal(found, wanted)
