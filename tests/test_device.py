"""Away from the CPU everything is computed as on it: on a GPU where there is one, and otherwise on the simulated device.

Its results are the CPU's bit for bit. Those of a GPU differ by rounding, which double precision keeps small.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stability import Examples, FineTuning, Minimisation, Problem, SparseDelta, UsageError, leave_one_out, problems
from stability.bounds import estimate_constants, measured, measured_bounds
from stability.cli.commands import main
from stability.derivatives import products
from stability.derivatives.curvature import Eigenvalue, least_eigenvalue
from stability.leave_one_out import StabilityEstimate, one_step
from stability.leave_one_out.estimators import Approximate, Assisted, Estimator, Exact, Sampled
from stability.leave_one_out.predictors import Linearised, OneStep
from stability.machine import resolve_device
from stability.masks import Mask
from stability.problems import convex
from stability.problems.problem import ModuleLogits
from stability.selectors import SAM, Adapter, BitFit, ChildPruning, FullTuning, LoRA, Random, Selector, SynFlow
from stability.selectors.moving import Run
from stability.selectors.naming import SELECTORS
from stability.studies.cost import expected
from stability.studies.running import run as run_study
from stability.studies.study import Study
from stability.training import Algorithm
from stability.training.objective import Stack
from stability.training.replicas import train
from stability.training.stopping import EarlyStopping
from tests import simulated_device, tiny
from tests.reference import ELSEWHERE, SIMULATED, as_double, leaving_out, rounding
from tests.selectors.test_laws import EVERY, VARIANTS, algorithm, described, turns

elsewhere = pytest.mark.parametrize("device", ELSEWHERE)
simulated = pytest.mark.parametrize("device", [SIMULATED])


def small(problem: Problem, n: int = 8) -> Problem:
    """With few examples, in double precision."""
    return as_double(dataclasses.replace(problem, train=problem.train.take(slice(0, n)), test=problem.test.take(slice(0, 8))))


def there(problem: Problem, device: str) -> Problem:
    return problem.to(torch.device(device))


def close(found: Any, wanted: Any, device: str, on_cuda: float = 1e-7) -> None:
    """Equal on the simulated device, NaN to NaN; nearly so on CUDA."""
    a, b = (x.detach().cpu().double() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64) for x in (found, wanted))
    np.testing.assert_allclose(a, b, rtol=rounding(device, on_cuda), atol=rounding(device, on_cuda))


def same_estimate(found: StabilityEstimate, wanted: StabilityEstimate, device: str) -> None:
    assert found.replicas.values.device.type == device
    assert (found.status, found.notes) == (wanted.status, wanted.notes)
    names = ("value", "interval", "maximum", "distance", "noise_floor", "per_example")
    for name in names:
        close(getattr(found, name), getattr(wanted, name), device)
    close((found.hypothesis.value, *found.hypothesis.interval), (wanted.hypothesis.value, *wanted.hypothesis.interval), device)
    assert (found.prediction is None) == (wanted.prediction is None)
    if found.prediction is not None and wanted.prediction is not None:
        close(found.prediction.table, wanted.prediction.table, device)


# Training, by every method: test_laws.py sees to it that those of the command line are among EVERY.


@elsewhere
@turns
def test_every_method_trains_as_on_the_cpu(selector: Selector, device: str, learned: Problem) -> None:
    double = as_double(learned)
    here, away = (train(p, algorithm(selector), leaving_out(p.n, 1, 2)) for p in (double, there(double, device)))
    assert away.values.device.type == device
    assert all(one.equals(other) for one, other in zip(here.masks, away.masks, strict=True))
    close(away.values, here.values, device)
    for name in ("batch_losses", "mask_changes", "failed_step", "kept_step"):
        assert getattr(away, name).device.type == "cpu"
        close(getattr(away, name), getattr(here, name), device)
    close(away.losses(away.problem.train), here.losses(here.problem.train), device)


@elsewhere
@pytest.mark.parametrize("selector", [one for one in [*EVERY, *VARIANTS] if not isinstance(one, SynFlow)], ids=described)
def test_every_mask_is_selected_again_as_on_the_cpu(selector: Selector, device: str, digits: Problem) -> None:
    double = selector.equivalent(small(digits), seed=3)
    away = there(double, device)
    for one, other in zip(*(selector.select_each_left_out(p, [0, 5], seed=3) for p in (double, away)), strict=True):
        assert one.equals(other)


@elsewhere
@pytest.mark.parametrize("selector", [Random(0.05), SAM(0.05), LoRA(2)], ids=described)
def test_gradients_at_the_sites_are_those_of_the_cpu(
    selector: Selector, device: str, learned: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_LARGE_MATRIX", 1)
    monkeypatch.setattr(products, "_AVX512", False)  # with it a CPU takes its own products also where nothing is masked
    double = as_double(learned)
    here, away = (train(p, algorithm(selector), leaving_out(p.n, 1, 2)) for p in (double, there(double, device)))
    close(away.values, here.values, device)


@elsewhere
@pytest.mark.parametrize("family", ["gpt2", "modernbert"])
def test_every_form_of_attention_mask_is_made_where_the_text_is(family: str, device: str, tmp_path: Path) -> None:
    """Causal, and with sliding windows; the other tests have plain masks."""
    model = tiny.write_model(tmp_path / family, family)
    data = tiny.lines(tmp_path / "data", train=tiny.rows(8, most=20), test=tiny.rows(8, seed=1))
    double = as_double(problems.load(data, model=str(model)))
    assert isinstance(double.logits, ModuleLogits)
    assert (double.logits.attention.causal, double.logits.attention.window is not None) == (
        family == "gpt2",
        family == "modernbert",
    )
    here, away = (train(p, algorithm(Random(0.05), steps=2)) for p in (double, there(double, device)))
    close(away.values, here.values, device)


@elsewhere
@pytest.mark.parametrize("selector", [SAM(0.05), ChildPruning(0.05), LoRA(2)], ids=described)
def test_a_file_knows_no_device(selector: Selector, device: str, digits: Problem, tmp_path: Path) -> None:
    """What was trained elsewhere is loaded on the CPU, and goes to the device of the θ⁰ that it is applied to."""
    away = train(there(digits, device), algorithm(selector))
    away.delta(0).save(tmp_path / "delta.safetensors")
    away.masks[0].save(tmp_path / "mask.safetensors")
    assert Mask.load(tmp_path / "mask.safetensors").equals(away.masks[0])
    loaded = SparseDelta.load(tmp_path / "delta.safetensors")
    tuned = loaded.apply(away.problem.pretrained)
    assert all(torch.equal(tuned[name], tensor) for name, tensor in away.parameters(0).items())
    here = selector.equivalent(digits, seed=3)
    assert all(tensor.device.type == "cpu" for tensor in loaded.apply(here.pretrained).values())
    close(loaded.difference(away.problem.pretrained), loaded.difference(here.pretrained), device)
    close(away.delta(0).difference(here.pretrained), loaded.difference(here.pretrained), device)


@elsewhere
def test_a_mask_that_a_selector_made_elsewhere_is_kept_on_the_cpu(device: str, digits: Problem) -> None:
    class Positive(Selector):
        name = "positive"

        def select(self, problem: Problem, seed: int) -> Mask:
            shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
            found = {name: torch.nonzero(tensor.flatten() > 0.3).squeeze(1) for name, tensor in problem.pretrained.items()}
            return Mask(shapes, found)

    here, away = (train(p, algorithm(Positive())) for p in (digits, there(digits, device)))
    assert away.masks[0].equals(here.masks[0])
    flat = torch.cat([tensor.flatten() for tensor in away.problem.pretrained.values()])
    assert Mask.at(here.masks[0].shapes, torch.nonzero(flat > 0.3).squeeze(1)).equals(here.masks[0])
    away.delta(0)


@elsewhere
def test_modules_are_inserted_on_the_cpu(device: str, pairs: Problem) -> None:
    """And what was inserted goes where the problem is, with the buffers of the model."""

    class Looking(Adapter):
        def insert(self, module: torch.nn.Module) -> torch.nn.Module:
            assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"cpu"}
            return super().insert(module)

    made = Looking(2).equivalent(there(pairs, device), seed=0)
    assert isinstance(made.logits, ModuleLogits)
    assert {buffer.device.type for buffer in made.logits.module.buffers()} == {device}
    assert {tensor.device.type for tensor in made.start(0).values()} == {device}


# Settings of training.

VALIDATED = EarlyStopping(evaluate_every=2, patience=1, least_steps=4)


@elsewhere
@pytest.mark.parametrize("selector", [Random(0.05), ChildPruning(0.05)], ids=described)
def test_early_stopping_keeps_the_cpu_s_checkpoints(selector: Selector, device: str, digits: Problem) -> None:
    double = small(digits, 24)
    double = dataclasses.replace(double, validation=as_double(digits).test.take(slice(8, 60)))
    tuning = FineTuning(selector, steps=12, batch_size=8, learning_rate=1e-2, early_stopping=VALIDATED)
    here, away = (train(p, tuning, leaving_out(p.n, 1, 2)) for p in (double, there(double, device)))
    assert here.kept_step.min() < 12  # else nothing stopped early
    close(away.kept_step, here.kept_step, device)
    close(away.values, here.values, device)


@simulated
@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_reduced_precision_is_the_cpu_s(precision: Any, device: str, learned: Problem) -> None:
    tuning = dataclasses.replace(algorithm(Random(0.05)), precision=precision)
    here, away = (train(p, tuning, leaving_out(p.n, 1, 2)) for p in (learned, there(learned, device)))
    close(away.values, here.values, device)
    full = train(learned, algorithm(Random(0.05)), leaving_out(learned.n, 1, 2))
    assert torch.equal(full.values, here.values) == (precision == "tf32")  # which a CPU does not have


@simulated
def test_dropout_draws_on_the_device(device: str, pairs: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no generator there, and the simulated one draws the CPU's numbers, where a GPU draws its own."""
    monkeypatch.setattr(torch, "Generator", simulated_device.Generator)
    tuning = FineTuning(Random(0.05), steps=4, batch_size=8, dropout=True)
    here, away = (train(p, tuning, leaving_out(p.n, 1, 2)) for p in (pairs, there(pairs, device)))
    close(away.values, here.values, device)
    assert not torch.equal(here.values, train(pairs, dataclasses.replace(tuning, dropout=False), leaving_out(pairs.n, 1, 2)).values)


# Measuring and bounds.

TWICE, PART = Linearised(checkpoints=2), Linearised(checkpoints=2, memory_budget=2 * 8 * 5 * 8 * 900)  # room for 900 of K
ESTIMATORS: dict[str, tuple[Selector, Estimator]] = {
    "exact": (Random(0.05), Exact()),
    "sampled": (BitFit(), Sampled(4)),
    "assisted": (SAM(0.05), Assisted(4)),
    "assisted, some coordinates": (Random(0.2), Assisted(4, predictor=PART)),
    "assisted, a mask that moves": (ChildPruning(0.05), Assisted(4, predictor=TWICE)),
    "assisted, inserted modules": (LoRA(2), Assisted(4, predictor=TWICE)),
    "approximate": (SAM(0.05), Approximate(TWICE)),
    "one step, calibrated": (BitFit(), Approximate(OneStep(), calibration=3)),
}


@elsewhere
@pytest.mark.parametrize(("selector", "estimator"), ESTIMATORS.values(), ids=list(ESTIMATORS))
def test_every_estimator_measures_the_cpu_s_stability(
    selector: Selector, estimator: Estimator, device: str, digits: Problem
) -> None:
    tuning = FineTuning(selector, steps=4, batch_size=4)
    here, away = (leave_one_out.measure(small(digits), tuning, estimator, device=where) for where in ("cpu", device))
    same_estimate(away, here, device)
    part = isinstance(estimator, Assisted) and estimator.predictor is PART
    assert not part or (away.prediction is not None and "900 of" in away.prediction.by)


@elsewhere
@pytest.mark.parametrize("form", ["gram", "coordinates", "hashed"])
def test_every_form_of_the_newton_step_predicts_the_cpu_s(
    form: str, device: str, digits: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_step, "_LARGEST", 10 if form == "hashed" else one_step._LARGEST)
    monkeypatch.setattr(one_step, "_HASHED", 200)
    double = small(digits)
    mask = Random(0.001 if form == "coordinates" else 0.05).select(double, 0)  # k = 26 or 1321, and 8 examples of 5 classes
    here, away = (one_step.OneStepModel(p, p.start(0), mask) for p in (double, there(double, device)))
    assert here.form == away.form == form
    close(away.left_out(0.1), here.left_out(0.1), device)


@elsewhere
def test_texts_are_measured_as_on_the_cpu(device: str, pairs: Problem) -> None:
    tuning, estimator = FineTuning(SAM(0.05), steps=4, batch_size=4), Assisted(3, predictor=TWICE)
    here, away = (leave_one_out.measure(small(pairs), tuning, estimator, device=where) for where in ("cpu", device))
    same_estimate(away, here, device)


@elsewhere
@pytest.mark.parametrize("name", ["logistic", "digits"])
def test_constants_and_bounds_are_the_cpu_s(name: str, device: str, digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem: Problem = small(digits) if name == "digits" else convex.logistic(n=12, seed=0).problem
    tuning: Algorithm = FineTuning(BitFit(), steps=4, batch_size=4)
    if name == "logistic":
        tuning = Minimisation(Random(0.5), ridge=0.1)
    found = []
    coarse = partial(least_eigenvalue, tolerance=0.5)  # for time
    monkeypatch.setattr(measured, "least_eigenvalue", coarse)
    for where in ("cpu", device):
        estimate = leave_one_out.measure(
            problem, tuning, Assisted(3, predictor=None if name == "logistic" else TWICE), device=where
        )
        constants = estimate_constants(estimate, check_replicas=int(name == "logistic"))
        found.append((constants, measured_bounds(estimate, constants)))
    (here, bounds), (away, others) = found
    for field in dataclasses.fields(here):
        one, other = getattr(away, field.name), getattr(here, field.name)
        if isinstance(one, (int, float, Tensor)):
            close(one, other, device, on_cuda=1e-3)
        elif isinstance(one, Eigenvalue):  # a coarse one
            close(one.value, other.value, device, on_cuda=1e-3)
        else:
            assert one == other
    assert bounds.keys() == others.keys()
    close([bound.value for bound in others.values()], [bound.value for bound in bounds.values()], device, on_cuda=1e-3)


# A study, and the command line.


TUNED = tuple(FineTuning(s, steps=4, batch_size=4) for s in (BitFit(), SAM(0.05), ChildPruning(0.05), LoRA(2)))
STUDIES = {
    "methods": Study(
        "methods", "digits", TUNED, (0,), estimator=Assisted(2, predictor=TWICE), problem_settings={"n": 8}, check_replicas=None
    ),
    "bounds": Study("bounds", "logistic", (Minimisation(FullTuning(), ridge=0.5),), (0, 1), problem_settings={"n": 12}),
}


@elsewhere
@pytest.mark.parametrize("mine", STUDIES.values(), ids=list(STUDIES))
def test_a_study_gives_the_cpu_s_table(mine: Study, device: str, tmp_path: Path) -> None:
    here, away = (run_study(mine, tmp_path / f"{where}.sqlite", device=where, workers=1).table for where in ("cpu", device))
    assert (away["status"] == "ok").all()
    numbers = here.select_dtypes("number").columns.drop(["seconds", "cell_seconds"])
    known = {"methods": {"stability", "noise_floor", "test_loss"}, "bounds": {"theorem_1", "first_order", "least_eigenvalue"}}
    assert known[mine.name] <= set(numbers)
    close(away[numbers], here[numbers], device, on_cuda=1e-2)  # in single precision
    others = [name for name in here if name not in numbers and name not in ("seconds", "cell_seconds", "device", "history")]
    assert set(away["device"]) != set(here["device"]) == {"cpu"}
    assert away[others].astype(str).equals(here[others].astype(str))


@elsewhere
def test_a_study_elsewhere_has_one_worker(device: str) -> None:
    assert expected(STUDIES["bounds"], device=device).workers == 1


@elsewhere
def test_the_command_line_takes_the_device(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Selected elsewhere, before and during training, and measured with bounds and examples: the same files and prints."""
    printed = []
    for where in ("cpu", device):
        out = tmp_path / where
        out.mkdir()
        machine = f"--device {where}"
        for selector in ("sam", "childpruning"):
            steps = "--steps 4" if selector == "childpruning" else ""
            command = f"select --n 12 --selector {selector} --sparsity 0.05 {steps} --out {out / selector} {machine}"
            assert main(command.split()) == 0
        command = f"loo --problem linear --n 12 --selector full --steps 4 --retrainings 3 --examples 2 --bounds {machine}"
        assert main(command.split()) == 0
        printed.append(capsys.readouterr().out.replace(str(out), "").splitlines())
    for selector in ("sam", "childpruning"):
        assert Mask.load(tmp_path / "cpu" / selector).equals(Mask.load(tmp_path / device / selector))
    if device == simulated_device.NAME:
        here, away = ([re.sub(r"in [\d.]+ s|seconds.*|  time .*", "", line) for line in lines] for lines in printed)
        assert away == here


def test_only_devices_of_tested_kinds_are_taken() -> None:
    for name in ("mps", "meta", "gpu"):
        with pytest.raises(UsageError, match=f"unknown device '{name}': use auto, cpu, cuda or cuda:N"):
            resolve_device(name)


@elsewhere
def test_what_is_there_is_not_copied(device: str, pairs: Problem) -> None:
    """A device without a number is the current one, also for the buffers of the model."""
    once = there(pairs, device)
    again = there(once, device)
    assert again.logits is once.logits
    assert all(again.pretrained[name].data_ptr() == tensor.data_ptr() for name, tensor in once.pretrained.items())
    assert isinstance(once.logits, ModuleLogits)
    assert {buffer.device.type for buffer in once.logits.module.buffers()} == {device}


# The simulated device itself: it refuses what CUDA refuses.


@pytest.fixture
def x() -> Tensor:
    if torch.cuda.is_available():
        pytest.skip("CUDA is present")
    return torch.tensor([1.0, 2.0, 3.0], device=simulated_device.NAME)


ON_CPU, INDEX = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2])

REFUSED: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: x + ON_CPU,
    "product of matrices": lambda x: x @ ON_CPU,
    "concatenation": lambda x: torch.cat([x, ON_CPU]),
    "concatenation with nothing": lambda x: torch.cat([x, torch.empty(0)]),
    "stack of numbers": lambda x: torch.stack([x[0], torch.tensor(2.0)]),
    "condition on the CPU": lambda x: torch.where(ON_CPU > 1, x, x),
    "index_select": lambda x: x.index_select(0, INDEX),
    "gather": lambda x: x.gather(0, INDEX),
    "index_copy": lambda x: x.index_copy(0, INDEX, x[:2]),
    "index_add": lambda x: x.index_add(0, torch.tensor([0, 2], device=x.device), ON_CPU[:2]),
    "CPU indexed elsewhere": lambda x: ON_CPU[torch.tensor([0, 2], device=x.device)],
    "values on the CPU put in": lambda x: x.index_put((INDEX,), ON_CPU[:2]),
    "comparison": lambda x: torch.equal(x, ON_CPU),
    "number on the CPU changed": lambda x: torch.tensor(1.0).add_(x.sum()),
    "CPU changed": lambda x: ON_CPU.clone().mul_(x),
    "three operands, one a number": lambda x: torch.addcmul(x, x, torch.tensor(2.0)),
    "cross-entropy": lambda x: torch.nn.functional.cross_entropy(x[None], torch.tensor([0])),
    "embedding": lambda x: torch.nn.functional.embedding(INDEX, x[:, None]),
    "replicas of both": lambda x: torch.func.vmap(torch.mul)(torch.stack([x, x]), torch.stack([ON_CPU, ON_CPU])),
    "gradient": lambda x: torch.func.grad(lambda y: (y * ON_CPU).sum())(x),
}


@pytest.mark.parametrize("operation", REFUSED.values(), ids=list(REFUSED))
def test_mixed_devices_are_refused(operation: Callable[[Tensor], object], x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="all tensors must be on the same device, and '.*' is on cpu"):
        operation(x)


ALLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: 2 * x + 1,
    "a tensor without dimensions": lambda x: x * torch.tensor(2.0),
    "one of them, in where": lambda x: torch.where(x > 1, x, torch.tensor(0.0)),
    "one of them, put in": lambda x: x.masked_fill(x > 1, torch.tensor(0.0)),
    "indices on the CPU": lambda x: x[INDEX],
    "truth values on the CPU": lambda x: x[ON_CPU > 1],
    "indices of values put in": lambda x: x.index_put((INDEX,), torch.zeros(2, device=x.device)),
    "a copy": lambda x: x.clone().copy_(ON_CPU + 1),
    "replicas": lambda x: torch.func.vmap(torch.mul)(torch.stack([x, x]), torch.stack([x, 2 * x])),
    "a gradient": lambda x: torch.func.grad(lambda y: (y**3).sum())(x),
}


@pytest.mark.parametrize("operation", ALLOWED.values(), ids=list(ALLOWED))
def test_what_cuda_allows_is_computed_as_on_the_cpu(operation: Callable[[Tensor], Tensor], x: Tensor) -> None:
    found = operation(x)
    assert found.device == x.device
    assert torch.equal(found.cpu(), operation(x.cpu()))


def test_views_and_changes_in_place_are_seen_through_each_other(x: Tensor) -> None:
    whole = torch.zeros(2, 3, device=x.device)
    whole[1].add_(x)
    first, second = whole.view(-1).split(3)
    first.fill_(7.0)
    assert whole.tolist() == [[7.0, 7.0, 7.0], [1.0, 2.0, 3.0]]
    assert second.data_ptr() != first.data_ptr() == whole.data_ptr()
    before = whole
    whole += 1
    assert whole is before


def test_numpy_and_other_generators_are_refused(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="numpy"):
        np.asarray(x)
    for draws in (None, torch.Generator(), simulated_device.Generator("cpu")):
        with pytest.raises(RuntimeError, match="draws from"):
            torch.rand(3, generator=draws, device=x.device)
    own = simulated_device.Generator(x.device).manual_seed(0)
    assert torch.equal(torch.rand(3, generator=own, device=x.device).cpu(), torch.rand(3, generator=own.manual_seed(0)))


def test_a_tensor_cannot_grow_in_place(x: Tensor) -> None:
    with pytest.raises(NotImplementedError, match="changed the shape"):
        x.unsqueeze_(0)


# And so a wrong line of the toolkit fails: each of these leaves something on the CPU.


def _head_left_behind(self: Problem, seed: int = 0) -> Any:
    return dict(self.new_head(problems.problem.generator(seed, "head")))


def _labels_left_behind(self: Examples, device: torch.device) -> Examples:
    return Examples({name: tensor.to(device) for name, tensor in self.inputs.items()}, self.labels, self.lengths)


def _draws_left_behind(self: Run) -> Tensor:
    return torch.rand(self.m, generator=self.draws, dtype=torch.float64)


def _written_by_indices_on_the_cpu(self: Stack, values: Tensor) -> None:
    for name, index, where in self._places:
        if index is not None:
            self.tensors[name].detach().view(len(values), -1).index_copy_(1, index.cpu(), values[:, where])


WRONG: dict[str, tuple[Any, str, Any, Selector]] = {
    "head": (Problem, "head", _head_left_behind, BitFit()),
    "labels": (Examples, "to", _labels_left_behind, BitFit()),
    "buffers": (ModuleLogits, "to", lambda self, device: self, BitFit()),
    "draws": (Run, "uniform", _draws_left_behind, SELECTORS["mixout-reset"](0.05)),
    "indices": (Stack, "write", _written_by_indices_on_the_cpu, Random(0.05)),
}


@simulated
@pytest.mark.parametrize(("owner", "name", "wrong", "selector"), WRONG.values(), ids=list(WRONG))
def test_a_line_that_leaves_a_tensor_behind_is_caught(
    owner: Any, name: str, wrong: Any, selector: Selector, device: str, pairs: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(there(pairs, device), algorithm(selector, steps=2))
    monkeypatch.setattr(owner, name, wrong)
    train(pairs, algorithm(selector, steps=2))  # on the CPU nobody notices
    with pytest.raises(RuntimeError, match="on the same device"):
        train(there(pairs, device), algorithm(selector, steps=2))
