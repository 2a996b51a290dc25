"""Selectors of a user's own that fail: one line that names the selector, and where code raised also file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import stability
from stability import FineTuning, MachineError, Problem, UsageError, measure
from stability.bounds import estimate_constants, measured_bounds
from stability.cli.commands import main
from stability.errors import OwnCodeError, described, explained
from stability.leave_one_out.estimators import Approximate, Sampled
from stability.masks import Mask
from stability.problems.problem import ModuleLogits
from stability.selectors import BitFit, Course, Moving, Projected, Random, Run, Selector, from_scores
from stability.studies import Study, run
from stability.studies.results import CellStatus

HERE = r"test_faults.py, line \d+, in"


class Fixed(Selector):
    """Selects what it is given."""

    uses_data = True

    def __init__(self, name: str, give: Any) -> None:
        self.label, self.give = name, give

    @property
    def name(self) -> str:
        return self.label

    def select(self, problem: Problem, seed: int) -> Mask:
        found: Mask = self.give(problem)
        return found


class Scored(Moving):
    """Projects onto scores that it is given every second step."""

    uses_data, sparsity = True, 0.05

    def __init__(self, name: str, score: Any) -> None:
        self.label, self.score = name, score

    @property
    def name(self) -> str:
        return self.label

    def begin(self, run: Run) -> Course:
        return Projected(run, self.score, self.sparsity, every=2)


class Begun(Scored):
    def begin(self, run: Run) -> Course:
        found: Course = self.score(run)
        return found


class WrongEnd(Course):
    """Trains nothing, and ends with a mask of another shape."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def point(self) -> torch.Tensor:
        return self.run.start()

    def step(self, gradient: torch.Tensor) -> None:
        pass

    def final(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.run.start(), torch.ones(self.run.m, dtype=torch.bool)


def raises(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
    raise KeyError("layer")


def raises_without_one(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
    if problem.n < 24:
        raise ZeroDivisionError("only of a left-out set")
    return {name: tensor.abs() for name, tensor in problem.pretrained.items()}


FAULTS = {
    "raises": (from_scores(raises, 0.05), rf"selector 'raises' raised KeyError: 'layer' \(.*{HERE} raises\)"),
    "raises without an example": (
        from_scores(raises_without_one, 0.05),
        rf"selector 'raises_without_one' raised ZeroDivisionError: only of a left-out set \(.*{HERE} raises_without_one\)",
    ),
    "a tensor": (
        Fixed("flat", lambda problem: torch.ones(problem.m, dtype=torch.bool)),
        "selector 'flat' selected Tensor: select returns a stability.Mask",
    ),
    "nothing": (Fixed("none", lambda problem: None), "selector 'none' selected NoneType"),
    "another model's mask": (
        Fixed("other", lambda problem: Mask({"x": (3,)}, {"x": torch.tensor([0])})),
        "the mask of selector 'other' does not fit the pretrained parameters: names or shapes differ for .*",
    ),
    "a class that raises": (Fixed("broken", lambda problem: problem.nothing), rf"selector 'broken' raised AttributeError.*{HERE}"),
    "NaN while it moves": (
        Scored("moving-nan", lambda values, origin: values * float("nan")),
        "scores of selector 'moving-nan' are not finite, or all equal where the last mask is chosen",
    ),
    "equal while it moves": (
        Scored("moving-flat", lambda values, origin: torch.ones_like(values)),
        "scores of selector 'moving-flat' are not finite, or all equal where the last mask is chosen",
    ),
    "raises while it moves": (
        Scored("moving-raises", lambda values, origin: values / None),
        rf"selector 'moving-raises' raised TypeError: .*{HERE}",
    ),
    "a score a row": (
        Scored("moving-shape", lambda values, origin: values.sum(1)),
        r"the score function of selector 'moving-shape' returned a tensor of shape \(1,\): a real tensor \(r, m\) = \(1, 26432\)",
    ),
    "in place": (
        Scored("moving-in-place", lambda values, origin: values.abs_()),
        "selector 'moving-in-place' changed the values or θ⁰ in place",
    ),
    "no course": (Begun("moving-none", lambda run: None), "selector 'moving-none' began NoneType: begin returns a stability"),
    "a wrong end": (Begun("moving-end", WrongEnd), r"selector 'moving-end' ended with a mask \(26432,\) of torch.bool"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_that_names_the_selector(fault: str, digits: Problem) -> None:
    selector, message = FAULTS[fault]
    with pytest.raises(UsageError, match=f"^{message}") as found:
        measure(digits, FineTuning(selector, steps=4, batch_size=8), Sampled(2), device="cpu")
    assert "\n" not in str(found.value)


def test_faults_end_no_study(tmp_path: Path) -> None:
    """Every faulty selector between two good ones: the good ones are measured, the others named with their reason."""
    selectors = [
        BitFit(),
        *(selector for selector, _ in FAULTS.values()),
        from_scores(lambda p, g: {n: t.abs() for n, t in p.pretrained.items()}, 0.1, name="last"),
    ]
    algorithms = tuple(FineTuning(one, steps=4, batch_size=8) for one in selectors)
    mine = Study("mine", "digits", algorithms, (0,), problem_settings={"n": 23}, estimator=Sampled(2), check_replicas=None)
    table = run(mine, tmp_path / "mine.sqlite", device="cpu", workers=1).table.set_index("method")
    good = table.index[table["status"] == CellStatus.OK].tolist()
    assert good == ["bitfit", "last"]
    assert set(table["failure"].dropna()) == {"error"}


def test_a_selector_cannot_change_the_run(digits: Problem) -> None:
    """It may write into what it is given: the result is that of the same scores from untouched data, and nothing else moved."""

    def reading(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
        return {name: torch.rand(tensor.shape, generator=draw) for name, tensor in problem.pretrained.items()}

    def writing(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
        for tensor in (*problem.pretrained.values(), *problem.train.inputs.values(), *problem.test.inputs.values()):
            tensor.zero_()
        problem.train.labels.zero_()
        problem.test.labels.zero_()
        return reading(problem, draw)

    class Writing(Selector):
        name, uses_data = "writing", True

        def select(self, problem: Problem, seed: int) -> Mask:
            writing(problem, torch.Generator())
            return BitFit().select(problem, seed)

    before = [tensor.clone() for tensor in (*digits.pretrained.values(), digits.train.labels, digits.test.labels)]
    pairs = [(from_scores(writing, 0.05), from_scores(reading, 0.05)), (Writing(), BitFit())]
    for spoiling, plain in pairs:
        found, wanted = (
            measure(digits, FineTuning(one, steps=3, batch_size=8), Sampled(3), device="cpu").per_example["difference"].tolist()
            for one in (spoiling, plain)
        )
        assert found == wanted
    after = (*digits.pretrained.values(), digits.train.labels, digits.test.labels)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def spoilt(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Everything global that a careless function changes: the network's settings and mode, and torch's."""
    assert isinstance(problem.logits, ModuleLogits)
    for part in problem.logits.module.modules():
        part.train()
        if hasattr(part, "eps"):
            vars(part)["eps"] = 1.0
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    return {name: tensor.abs().detach() for name, tensor in problem.pretrained.items()}


def test_a_selector_changes_no_other_method_s_numbers(tmp_path: Path) -> None:
    """The cell of random that comes after it is that of random alone."""

    def cells(*selectors: Selector) -> Any:
        tuned = tuple(FineTuning(one, steps=3, batch_size=8) for one in selectors)
        mine = Study(
            f"of {len(selectors)}", "digits", tuned, (0,), problem_settings={"n": 12}, estimator=Sampled(2), check_replicas=None
        )
        table = run(mine, tmp_path / f"{len(selectors)}.sqlite", device="cpu", workers=1).table.set_index("method")
        assert (table["status"] == CellStatus.OK).all()
        return [float(table[name]["random"]) for name in ("stability", "test_loss", "train_loss")]

    try:
        assert cells(from_scores(spoilt, 0.05), Random(0.05)) == cells(Random(0.05))
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


def test_a_selector_that_chooses_by_chance_is_refused(digits: Problem) -> None:
    draws = torch.Generator().manual_seed(0)  # its own, which goes on from call to call

    def by_chance(problem: Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {name: torch.rand(tensor.shape, generator=draws) for name, tensor in problem.pretrained.items()}

    with pytest.raises(UsageError, match="selector 'by_chance' chose another mask when it was asked again"):
        measure(digits, FineTuning(from_scores(by_chance, 0.05), steps=2), Sampled(2), device="cpu")


def test_what_a_selector_asks_wrongly_of_the_toolkit_has_its_line(digits: Problem) -> None:
    def outside(problem: Problem) -> Mask:
        shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
        return Mask(shapes, {next(iter(shapes)): torch.tensor([10**9])})

    with pytest.raises(OwnCodeError, match=rf"^selector 'outside': mask of .*: indices must be ascending.* \(.*{HERE} outside\)$"):
        measure(digits, FineTuning(Fixed("outside", outside), steps=2), Sampled(2), device="cpu")


def test_a_selector_that_leaves_is_one_failed_cell(tmp_path: Path) -> None:
    def leaves(problem: Problem, draw: torch.Generator) -> dict[str, torch.Tensor]:
        raise SystemExit(3)

    tuned = tuple(FineTuning(one, steps=2) for one in (from_scores(leaves, 0.05), BitFit()))
    mine = Study("mine", "digits", tuned, (0,), problem_settings={"n": 12}, estimator=Sampled(2), check_replicas=None)
    table = run(mine, tmp_path / "mine.sqlite", device="cpu", workers=1).table
    assert table["status"].tolist() == [CellStatus.FAILED, CellStatus.OK]
    assert table["reason"][0].startswith("selector 'leaves' raised SystemExit: 3 (")


def test_theta_0_cannot_be_changed_by_a_moving_selector(digits: Problem) -> None:
    def begin(run: Run) -> Course:
        run.origin.mul_(0.5)
        return Projected(run, lambda values, origin: (values - origin).abs(), 0.05)

    with pytest.raises(UsageError, match="selector 'moving-origin' changed θ⁰, run.origin, in place"):
        measure(digits, FineTuning(Begun("moving-origin", begin), steps=2), Sampled(2), device="cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(problem, generator:\n    return {}\n", "on import, raised SyntaxError: .* (.*broken_one.py, line 1)"),
        (
            "import nosuchpackage\n",
            "on import, raised ModuleNotFoundError: No module named 'nosuchpackage' (.*broken_one.py, line 1, in",
        ),
        ("f = 1 / 0\n", "on import, raised ZeroDivisionError: division by zero (.*broken_one.py, line 1, in"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_one.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["loo", "--selector", "broken_one:f", "--sparsity", "0.1", "--n", "12", "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    start, _, end = message.partition(".*broken_one.py")
    assert start.partition(" (")[0].replace(".*", "").strip() in error
    assert f"broken_one.py{end}" in error


def test_an_error_of_the_toolkit_s_own_keeps_its_traceback() -> None:
    """No code of the user's took part in it: it is a fault of the toolkit, and nobody else's."""
    text = "def inside():\n    with explained('a selector'):\n        raise KeyError('ours')\n"
    space: dict[str, Any] = {"explained": explained}
    exec(compile(text, str(Path(stability.__file__).with_name("inside.py")), "exec"), space)
    with pytest.raises(KeyError, match="ours"):
        space["inside"]()


def test_memory_that_runs_out_in_a_user_s_code_is_the_machine_s_failure() -> None:
    def greedy() -> None:
        raise MemoryError("16 GiB")

    with (
        pytest.raises(MachineError, match=rf"memory ran out in selector 'greedy': MemoryError: 16 GiB \(.*{HERE} greedy\)"),
        explained("selector 'greedy'"),
    ):
        greedy()
    assert described(ValueError("a\nb")) == "ValueError: a b"


def test_bounds_of_an_approximate_estimate_are_refused(digits: Problem) -> None:
    estimate = measure(digits, FineTuning(BitFit(), steps=2), Approximate(), device="cpu")
    with pytest.raises(UsageError, match=r"bounds are measured at left-out replicas, and the approximate estimate left out none"):
        measured_bounds(estimate, estimate_constants(estimate))
