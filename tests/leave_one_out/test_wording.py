"""An estimate in words and in a notebook: the sentence, what is inconclusive, what would settle it, and well-formed HTML."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from stability import FineTuning, Problem, StabilityEstimate, Study, StudyResults, measure
from stability.bounds import pointwise_hypothesis_stability
from stability.leave_one_out.estimators import Approximate, Assisted, Exact, Status
from stability.leave_one_out.statistics import Estimate
from stability.leave_one_out.units import SingleExamples
from stability.leave_one_out.wording import carriers, doubts, remedy, sentence
from stability.reports.terminal import settling, show_estimate
from stability.selectors import SAM, BitFit, Random

TUNING = FineTuning(BitFit(), steps=3)


@pytest.fixture(scope="module")
def sampled(digits: Problem) -> StabilityEstimate:
    return measure(digits, TUNING, Assisted(6), device="cpu")


def of(estimate: StabilityEstimate, value: float, low: float, high: float, correlation: float = 0.95) -> StabilityEstimate:
    """The same estimate with other numbers."""
    pointwise = Estimate(value, (low, high), confidence=0.95, count=6, population=24, error=0.1)
    held = 0.95 if correlation > 0.5 else 0.88
    diagnostics = dataclasses.replace(estimate.diagnostics, correlation=correlation, variance_cut=9.0, simulated_coverage=held)
    return dataclasses.replace(estimate, pointwise=pointwise, diagnostics=diagnostics)


def test_the_sentence_has_value_unit_and_interval(sampled: StabilityEstimate) -> None:
    begins = "Leaving one training example out changes its loss by "
    assert sentence(of(sampled, 0.5988, 0.2278, 2.0098)) == f"{begins}0.60 nats on average (95 % interval 0.23 to 2.01)."
    assert sentence(of(sampled, 0.5988, 0.2278, math.inf)) == f"{begins}0.60 nats on average (95 % interval at least 0.23)."
    tiny = of(sampled, 1e-9, 0.0, 2e-9)
    assert sentence(tiny).startswith(f"{begins}no more than rounding does: 1e-09 nats on average, with a noise floor of ")


def test_exact_and_approximate_say_so(digits: Problem) -> None:
    exact = measure(digits, TUNING, Exact(), device="cpu")
    assert sentence(exact).endswith(" nats on average, exactly: each of the 24 examples was left out.")
    assert doubts(exact) == ()
    assert remedy(exact) is None
    predicted = measure(digits, TUNING, Approximate(), device="cpu")
    assert sentence(predicted).endswith("That is a prediction, whose error is unknown: no model was retrained.")
    assert doubts(predicted) == ()


def test_what_is_inconclusive_and_what_settles_it(sampled: StabilityEstimate) -> None:
    """The remedy leaves out all where that is not much more; its time follows from what one retraining took."""
    clear = of(sampled, 0.5, 0.4, 0.6)
    assert (doubts(clear), remedy(clear)) == ((), None)
    wide = of(sampled, 0.5, 0.1, 1.1)
    assert doubts(wide) == ("the interval is wider than the value",)
    cure = remedy(wide)
    assert cure is not None
    assert (cure.estimator, cure.retrainings) == ("exact", None)
    timed = dataclasses.replace(wide, seconds=10.0, retraining_seconds=7.0, units=SingleExamples(1000))
    cure = remedy(timed)
    assert cure is not None
    assert cure.retrainings is not None
    assert (cure.estimator, cure.retrainings) == ("assisted", math.ceil(6 * (1.0 / 0.5) ** 2 * 1.2))
    assert cure.seconds == pytest.approx(3 + 7 / 7 * (cure.retrainings + 1))
    poor = of(sampled, 0.5, 0.4, 0.6, correlation=0.3)
    assert "is poor (correlation 0.30)" in doubts(poor)[0]
    cure = remedy(dataclasses.replace(poor, units=SingleExamples(100_000), seconds=1e4, retraining_seconds=1e4))
    assert cure is not None
    assert (cure.estimator, cure.retrainings) == ("assisted", 50)
    nothing = of(sampled, 1e-9, 0.0, 2e-9)
    assert "not above the noise floor" in doubts(nothing)[0]
    assert remedy(nothing) is None


def test_the_command_that_settles_it(sampled: StabilityEstimate) -> None:
    asked: dict[str, Any] = {}

    def command(**changed: Any) -> str:
        asked.update(changed)
        return "the command"

    lines = settling(of(sampled, 0.5, 0.1, 1.1), command)
    assert lines[0].startswith("Inconclusive: the interval is wider than the value. This would settle it, in about ")
    assert lines[1] == "  the command"
    assert asked == {"estimator": "exact", "retrainings": None, "tolerance": None, "predictor": None, "checkpoints": None}
    assert settling(of(sampled, 0.5, 0.4, 0.6), command) == []


def test_a_tolerance_decides_alone(sampled: StabilityEstimate, capsys: pytest.CaptureFixture[str]) -> None:
    """Met, it leaves nothing inconclusive, however wide; not met, there is one reason and one command, which keeps it."""
    problem, algorithm = sampled.replicas.problem, sampled.replicas.algorithm
    wide = dataclasses.replace(of(sampled, 0.5, 0.1, 1.1, correlation=0.3), tolerance=1.5, status=Status.WITHIN_TOLERANCE)
    wide = dataclasses.replace(wide, notes=("prediction and retraining correlate 0.30 only: so",))
    assert (doubts(wide), remedy(wide), settling(wide, lambda **_: "")) == ((), None, [])
    assert "Inconclusive" not in wide._repr_html_()
    show_estimate(problem, algorithm, wide, {"test": 0.5}, width=200)
    assert "Note: prediction and retraining correlate 0.30 only" in capsys.readouterr().out
    missed = dataclasses.replace(
        of(sampled, 0.5, 0.4, 0.6), tolerance=0.1, status=Status.TOLERANCE_NOT_MET, units=SingleExamples(1000)
    )
    asked: dict[str, Any] = {}
    lines = settling(missed, lambda **changed: asked.update(changed) or "the command")
    assert lines[0].startswith("Inconclusive: the tolerance of 0.1 is not met. This would settle it, in about ")
    assert asked == {"retrainings": math.ceil(6 * (0.2 / 0.1) ** 2 * 1.2), "tolerance": 0.1}
    assert "<code>estimators.Assisted(retrainings=29, tolerance=0.1)</code>" in missed._repr_html_()
    show_estimate(problem, algorithm, missed, {"test": 0.5}, width=200)
    assert "olerance is not met" not in capsys.readouterr().out  # it is said once, with the command


def test_the_time_of_another_estimator_is_without_the_prediction(sampled: StabilityEstimate) -> None:
    assert sampled.prediction is not None
    predicted = dataclasses.replace(sampled.prediction, seconds=2.0)
    wide = dataclasses.replace(of(sampled, 0.5, 0.1, 1.1), seconds=10.0, retraining_seconds=7.0, prediction=predicted)
    cure = remedy(wide)
    assert cure is not None
    assert cure.estimator == "exact"
    assert cure.seconds == pytest.approx(1 + 7 / 7 * 25)
    cure = remedy(dataclasses.replace(wide, units=SingleExamples(1000)))
    assert cure is not None
    assert cure.estimator == "assisted"
    assert cure.seconds == pytest.approx(3 + 7 / 7 * 30)


def test_a_poor_prediction_claims_no_cut_of_the_variance(sampled: StabilityEstimate, capsys: pytest.CaptureFixture[str]) -> None:
    problem, algorithm = sampled.replicas.problem, sampled.replicas.algorithm
    for correlation, claims in ((0.95, True), (0.5, False)):
        show_estimate(problem, algorithm, of(sampled, 0.5, 0.4, 0.6, correlation), {"test": 0.5}, verbose=True, width=200)
        assert ("plain retrainings" in capsys.readouterr().out) == claims


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal(sampled: StabilityEstimate, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    problem, algorithm = sampled.replicas.problem, sampled.replicas.algorithm
    show_estimate(problem, algorithm, sampled, {"test": 0.5, "train": 1.0}, verbose=True, width=width)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 12
    assert max(map(len, lines)) <= width


class Tags(HTMLParser):
    """Whether each tag that opens closes, and the attributes that lead elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        found = dict(attrs)
        assert "href" not in found
        if tag == "img":
            self.images.append(found["src"] or "")
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(shown: Any) -> Tags:
    tags = Tags()
    tags.feed(shown._repr_html_())
    assert tags.open == []
    return tags


def test_notebooks_show_well_formed_html_with_nothing_from_elsewhere(sampled: StabilityEstimate, digits: Problem) -> None:
    images = parsed(sampled).images
    assert len(images) == 5
    top = carriers(sampled, 1)[0]
    assert isinstance(digits.shown, np.ndarray) or digits.shown is not None
    data = base64.b64decode(images[0].removeprefix("data:image/png;base64,"))
    drawn = matplotlib.image.imread(io.BytesIO(data))[..., 0]
    shown = np.asarray(digits.shown[int(top["index"])])
    assert np.corrcoef(drawn.ravel(), shown.ravel())[0, 1] == pytest.approx(-1, abs=0.01)  # dark where the image is large
    assert parsed(pointwise_hypothesis_stability(lipschitz=1, least_eigenvalue=-1, sparsity=0.5, n=9)).images == []
    parsed(SAM(0.01).select(digits, 0))
    parsed(Study("mine", "digits", (FineTuning(Random(0.1)), TUNING), (0, 1)))
    parsed(StudyResults.read("figures/discontinuity.sqlite"))
    for one in (sampled, SAM(0.01).select(digits, 0)):
        assert "\n" not in repr(one)


def test_what_is_shown_of_a_study_is_what_differs() -> None:
    html = Study("mine", "digits", tuple(FineTuning(BitFit(), batch_size=size) for size in (5, 20)), (0,))._repr_html_()
    assert all(f"batch_size={size}</td>" in html for size in (5, 20))
    assert "1 seed," in html
    bound = pointwise_hypothesis_stability(lipschitz=1, least_eigenvalue=-1, sparsity=0.5, n=9)._repr_html_()
    assert bound.count("<td style='text-align: left'>") == bound.count("<td") > 4


def test_names_are_escaped(sampled: StabilityEstimate) -> None:
    problem = dataclasses.replace(sampled.replicas.problem, shown=["<b>&" for _ in range(24)], name="<i>")
    replicas = dataclasses.replace(sampled.replicas, problem=problem)
    html = dataclasses.replace(sampled, replicas=replicas)._repr_html_()
    assert len(re.findall("&lt;b&gt;&amp;", html)) == 5
    assert "examples of &lt;i&gt;" in html
    assert "<i>" not in html
    assert "Study &lt;i&gt;" in Study("<i>", "digits", (TUNING,), (0,))._repr_html_()
