"""What is left out, when it is enough, and what is said of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from stability import FineTuning, Minimisation, Problem, UsageError, leave_one_out, plotting
from stability.errors import MeasurementError
from stability.leave_one_out import predictors
from stability.leave_one_out.coverage import LEAST_COVERAGE, simulated_coverage
from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.estimators import Approximate, Assisted, Estimator, Exact, Sampled
from stability.leave_one_out.predictors import Linearised, Observation, OneStep, Prediction, Predictor
from stability.leave_one_out.statistics import Estimate, draw, mean_of_draws
from stability.leave_one_out.wording import doubts
from stability.problems.problem import generator
from stability.problems.solvable import linear_regression
from stability.selectors import SAM, ChildPruning, FullTuning
from stability.training.replicas import Replicas, train

TUNING = FineTuning(SAM(0.02), steps=8, batch_size=8)


@pytest.fixture(scope="module")
def exact(digits: Problem) -> StabilityEstimate:
    return leave_one_out.measure(digits, TUNING, estimator=Exact(), device="cpu")


@pytest.fixture(scope="module")
def assisted(digits: Problem) -> StabilityEstimate:
    return leave_one_out.measure(digits, TUNING, estimator=Assisted(8), device="cpu")


def foretold(sizes: Any) -> Prediction:
    values = np.asarray(sizes, dtype=float)
    return Prediction(pd.DataFrame({"index": range(len(values)), "difference": values}), "a test", 0.0)


def found(value: float, reach: float, count: int = 12) -> Estimate:
    return Estimate(value, (value - reach, value + reach), confidence=0.95, count=count, population=100)


def test_assisted_is_the_estimate_of_its_draws(assisted: StabilityEstimate, exact: StabilityEstimate) -> None:
    """The same replicas as the exact measurement, weighed by the sizes they were drawn with; the interval holds the truth."""
    rows, told = assisted.per_example, assisted.prediction
    assert told is not None
    same = exact.per_example.set_index("index").loc[rows["index"]]
    np.testing.assert_allclose(rows["difference"], same["difference"], atol=1e-5)
    np.testing.assert_allclose(rows["distance"], same["distance"], atol=1e-5)
    assert rows["mask_changes"].tolist() == same["mask_changes"].tolist()
    sizes = told.sizes**0.8
    sizes += 0.05 * sizes.mean()
    draws = draw(sizes, np.random.default_rng(generator(0, "plan").initial_seed()))
    assert rows["index"].tolist() == draws.order[:8].tolist()
    assert assisted.pointwise == mean_of_draws(rows["difference"].abs(), draws, told.sizes / told.sizes.max())
    assert assisted.interval[0] <= exact.value <= assisted.interval[1]
    assert (assisted.estimator, assisted.status, assisted.retrainings) == ("assisted", "as asked", 8)
    measured = rows["difference"].abs()
    predicted = told.sizes[rows["index"]]
    assert assisted.diagnostics.correlation == pytest.approx(stats.pearsonr(predicted, measured).statistic)
    assert assisted.diagnostics.rank_correlation == pytest.approx(stats.spearmanr(predicted, measured).statistic)
    assert assisted.diagnostics.variance_cut > 1
    assert assisted.diagnostics.effective_retrainings > 8
    assert 0.5 < assisted.hypothesis.value / exact.hypothesis.value < 2
    assert 0.5 < assisted.distance / exact.distance < 2


def test_everything_left_out_is_exact_whatever_guided_it(digits: Problem, exact: StabilityEstimate) -> None:
    whole = leave_one_out.measure(digits, TUNING, estimator=Assisted(24), device="cpu")
    assert whole.value == pytest.approx(exact.value, abs=1e-6)
    assert (whole.estimator, whole.status, whole.interval) == ("exact", "exact", (whole.value, whole.value))
    assert whole.hypothesis.value == pytest.approx(exact.hypothesis.value, abs=1e-6)


def test_some_held_out_examples_stand_for_all(digits: Problem, exact: StabilityEstimate) -> None:
    """One of them gives one example's own mean, and all but one lack one; stability is what it was."""
    losses = exact.replicas.losses(digits.test).double()
    moved = (losses[1:] - losses[0]).abs().mean(0)
    counts = (1, len(moved) - 1, 10_000)
    found = {count: leave_one_out.measure(digits, TUNING, Exact(), test_examples=count, device="cpu") for count in counts}
    assert (moved - found[1].hypothesis.value).abs().min() < 1e-6
    lacking = len(moved) * moved.mean() - counts[1] * found[counts[1]].hypothesis.value
    assert (moved - lacking).abs().min() < 1e-4
    assert len(moved) > 100
    assert f"the models without an example were evaluated on 1 of {len(moved)} test examples" in found[1].notes
    assert found[10_000].notes == exact.notes
    assert found[10_000].hypothesis.value == pytest.approx(moved.mean().item(), abs=1e-6)
    assert found[1].value == found[10_000].value == pytest.approx(exact.value, abs=1e-6)
    with pytest.raises(UsageError, match="test_examples = 0: use a whole number of at least 1"):
        leave_one_out.measure(digits, TUNING, Exact(), test_examples=0)


def test_approximate_has_no_interval_and_trains_no_replica(digits: Problem) -> None:
    told = leave_one_out.measure(digits, TUNING, estimator=Approximate(), device="cpu")
    assert told.prediction is not None
    assert told.value == told.prediction.sizes.mean()
    assert all(math.isnan(end) for end in told.interval)
    assert (told.estimator, told.status, told.retrainings, len(told.replicas)) == ("approximate", "approximate", 0, 1)
    plain = told.to_dict()
    assert plain["interval"] == [None, None]
    assert plain["hypothesis"]["value"] is None
    assert plain["noise_floor"] is None


def test_damping_is_calibrated_by_a_few_retrainings(digits: Problem, exact: StabilityEstimate) -> None:
    """By default λ = 1/(learning rate · steps), which is off by more than the calibrated one."""
    rough = leave_one_out.measure(digits, TUNING, estimator=Approximate(OneStep()), device="cpu")
    close = leave_one_out.measure(digits, TUNING, estimator=Approximate(OneStep(), calibration=5), device="cpu")
    assert close.retrainings == 5
    assert rough.prediction is not None
    assert "λ = 41.7" in rough.prediction.by
    off = [abs(math.log(estimate.value / exact.value)) for estimate in (rough, close)]
    assert off[1] < off[0]


def test_tolerance_decides_how_many(digits: Problem, exact: StabilityEstimate) -> None:
    wide = leave_one_out.measure(digits, TUNING, estimator=Assisted(tolerance=0.99), device="cpu")
    assert (wide.retrainings, wide.status) == (12, "within tolerance")
    narrow = leave_one_out.measure(digits, TUNING, estimator=Assisted(tolerance=1e-9), device="cpu")
    assert (narrow.retrainings, narrow.status) == (24, "exact")
    assert narrow.value == pytest.approx(exact.value, abs=1e-6)
    kept = leave_one_out.measure(digits, TUNING, estimator=Sampled(14, tolerance=1e-9), device="cpu")
    assert (kept.retrainings, kept.status) == (14, "tolerance not met")
    assert kept.interval[0] < kept.value < kept.interval[1]
    rows = kept.replicas
    assert len(rows) == 15  # of two batches, joined
    assert [rows.masks[0], *rows.masks][0] is rows.masks[0]
    for row, i in enumerate(kept.per_example["index"], 1):
        assert rows.masks[row].equals(TUNING.selector.select(digits.without(i), 0))


def test_how_many_more() -> None:
    some = Sampled(tolerance=0.1)
    assert some.more(100, 0, None) == 12
    assert some.more(7, 0, None) == 7  # n too small for a first look: all, and so exact
    assert some.more(100, 12, found(1.0, 0.09)) == 0
    assert some.more(100, 12, found(1.0, 0.12)) == 4  # 0.8 · 1.44 · 12 is 13.8: at least four
    assert some.more(100, 12, found(1.0, 0.5)) == 12  # at most twice as many
    assert some.more(100, 96, found(1.0, 0.5, 96)) == 4
    assert some.more(100, 100, found(1.0, 0.5, 100)) == 0
    assert some.more(100, 12, found(0.0, 0.5)) == 12
    assert some.more(100, 12, Estimate(1.0, (0.5, math.inf), confidence=0.95, count=12, population=100)) == 12
    assert Sampled(5).more(100, 0, None) == 5
    assert Sampled(5).more(100, 5, found(1.0, 9)) == 0
    assert Sampled().more(100, 0, None) == 20
    assert Exact().more(100, 0, None) == 100
    assert Sampled(30, 0.1).more(100, 24, found(1.0, 0.5, 24)) == 6
    assert some.more(100, 12, found(1.0, 0.5, 11)) == 0  # one failed: no tolerance can be met any more


@pytest.mark.parametrize(
    ("sizes", "note"),
    [
        (np.zeros(8), "the prediction is all zero: examples were drawn uniformly"),
        (np.array([np.nan] * 5 + [1.0] * 3), "the prediction is not finite for 5 of 8 examples: examples were drawn uniformly"),
        (np.full(8, np.inf), "the prediction is not finite for 8 of 8 examples: examples were drawn uniformly"),
    ],
)
def test_a_prediction_of_no_use_falls_back_to_plain_sampling(sizes: Any, note: str) -> None:
    design = Assisted(4).design(8, 3, foretold(sizes))
    assert design.draws is None
    assert design.notes == (note,)
    assert design.order.tolist() == Sampled(4).design(8, 3, None).order.tolist()


@dataclasses.dataclass(frozen=True)
class Changed(Predictor):
    """Linearised replicas, with a table made of what they predict."""

    change: Callable[[Prediction], pd.DataFrame]

    def settings(self) -> dict[str, Any]:
        return {"name": "changed"}

    def observe(self, *what: Any) -> Observation:
        change, right = self.change, Linearised().observe(*what)

        class Wrong(Observation):
            observer = right.observer

            def predict(self, real: Replicas) -> Prediction:
                told = right.predict(real)
                return dataclasses.replace(told, table=change(told))

        return Wrong()


def test_the_fallback_is_said_in_the_estimate(digits: Problem) -> None:
    blind = Changed(lambda told: told.table.assign(difference=0.0))
    estimate = leave_one_out.measure(digits, TUNING, estimator=Assisted(6, predictor=blind), device="cpu")
    assert estimate.notes == ("the prediction is all zero: examples were drawn uniformly",)
    assert estimate.value == pytest.approx(leave_one_out.measure(digits, TUNING, Sampled(6), device="cpu").value, abs=1e-6)
    assert math.isnan(estimate.diagnostics.correlation)


def test_equal_in_single_precision_is_equal() -> None:
    jitter = np.array([0.1, 0.1 + 7e-9, 0.1 - 7e-9])
    assert Sampled(3).design(24, 0, None).mean(jitter, 0.95).interval[1] == math.inf


def test_a_failed_replica_ends_the_search_for_a_tolerance(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    first = int(Sampled(tolerance=0.1).design(24, 0, None).order[0])

    def poisoned(problem: Problem, algorithm: Any, weights: Any = None, *rest: Any, **more: Any) -> Any:
        if weights is not None:
            weights = weights.clone()
            weights[weights[:, first] == 0] = float("nan")
        return train(problem, algorithm, weights, *rest, **more)

    monkeypatch.setattr("stability.leave_one_out.retraining.train", poisoned)
    estimate = leave_one_out.measure(digits, TUNING, estimator=Sampled(tolerance=0.1), device="cpu")
    assert (estimate.retrainings, estimate.status, estimate.interval[1]) == (12, "tolerance not met", math.inf)
    assert estimate.notes[0].startswith("a replica failed")


def test_a_poor_prediction_is_said(digits: Problem) -> None:
    wrong = Changed(lambda told: told.table.assign(difference=1 / told.sizes))
    estimate = leave_one_out.measure(digits, TUNING, estimator=Assisted(12, predictor=wrong), device="cpu")
    known = estimate.diagnostics
    assert known.simulated_coverage == simulated_coverage(24, 12, known.correlation) < LEAST_COVERAGE
    assert any(one.startswith(f"the prediction is poor (correlation {known.correlation:.2f})") for one in doubts(estimate))


def test_one_step_without_a_jacobian_falls_back(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise MeasurementError("its logits are not finite")

    monkeypatch.setattr(predictors, "OneStepModel", Broken)
    estimate = leave_one_out.measure(digits, TUNING, estimator=Assisted(4, predictor=OneStep()), device="cpu")
    assert estimate.notes[0] == "the prediction is not finite for 24 of 24 examples: examples were drawn uniformly"
    assert estimate.interval[0] <= estimate.value


def test_equal_differences_are_all_measured_before_anything_is_concluded() -> None:
    """Twelve examples at 0 and twelve at 2, symmetrical about the start: leaving out any of them does the same, and a sample of
    equal differences knows nothing of their spread: no upper end, and no tolerance met."""
    known = linear_regression(np.ones((24, 1)), np.repeat([0.0, 2.0], 12), np.ones(1))
    algorithm = Minimisation(FullTuning(), ridge=0.5, gradient_tolerance=1e-12)
    few = leave_one_out.measure(known.problem, algorithm, Sampled(6), device="cpu")
    assert few.interval[0] == pytest.approx(few.value / 4)
    assert few.interval[1] == math.inf
    exact = np.abs(np.diff(known.leave_one_out(0.5))).mean()
    whole = leave_one_out.measure(known.problem, algorithm, estimator=Sampled(tolerance=0.1), device="cpu")
    assert (whole.status, whole.retrainings) == ("exact", 24)
    assert whole.value == pytest.approx(exact)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Sampled(0), "retrainings = 0"),
        (lambda: Sampled(tolerance=0.0), "tolerance = 0"),
        (lambda: Sampled(tolerance=20), "tolerance = 20 is outside"),  # not 20 %
        (lambda: Assisted(tolerance=-0.1), "tolerance = -0.1"),
        (lambda: Linearised(checkpoints=0), "checkpoints = 0"),
        (lambda: Linearised(memory_budget=0), "memory_budget = 0"),
        (lambda: Approximate(calibration=-1), "calibration = -1"),
        (lambda: Approximate(OneStep(damping=0.5), calibration=2), "damping = 0.5 and a calibration of it"),
        (lambda: Approximate(Linearised(), calibration=2), "a calibration is of OneStep's damping, and Linearised has none"),
    ],
)
def test_senseless_settings_are_refused(make: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make()


def test_more_than_there_are_is_refused(digits: Problem) -> None:
    for estimator in (Assisted(25), Sampled(25, 0.1)):
        with pytest.raises(UsageError, match=r"retrainings = 25 is outside 1\.\.n with n = 24"):
            leave_one_out.measure(digits, TUNING, estimator=estimator, device="cpu")
    with pytest.raises(UsageError, match="calibration = 25 retrainings of n = 24"):
        leave_one_out.measure(digits, TUNING, estimator=Approximate(OneStep(), 25), device="cpu")
    with pytest.raises(UsageError, match=r"estimator = 3: use one of stability.estimators, such as Sampled\(retrainings=10\)"):
        leave_one_out.measure(digits, TUNING, 3, device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", [Exact(), Sampled(3), Assisted(tolerance=0.1), Approximate(OneStep())])
def test_settings_are_the_identity(estimator: Estimator) -> None:
    settings = estimator.settings()
    assert settings["name"] == estimator.name
    assert all(value is None or isinstance(value, (str, int, float, dict)) for value in settings.values())


def test_moving_masks_are_foretold_too(digits: Problem) -> None:
    tuning = FineTuning(ChildPruning(0.02), steps=8, batch_size=8)
    estimate = leave_one_out.measure(digits, tuning, estimator=Assisted(6), device="cpu")
    assert estimate.diagnostics.rank_correlation > 0
    with pytest.raises(UsageError, match="leave reselect=False out"):
        leave_one_out.measure(digits, tuning, estimator=Assisted(6), reselect=False, device="cpu")


def test_examples_come_by_what_they_carry(assisted: StabilityEstimate, digits: Problem) -> None:
    table = assisted.examples()
    assert len(table) == digits.n
    known = table["retrained"].fillna(table["predicted"]).abs()
    assert (known.diff().dropna() <= 0).all()
    np.testing.assert_allclose(table["share"], known / (digits.n * assisted.value))
    rows = assisted.per_example.set_index("index")["difference"]
    mine = table.set_index("index")["retrained"]
    assert mine.dropna().sort_index().tolist() == rows.sort_index().tolist()
    plain = leave_one_out.measure(digits, TUNING, Sampled(3), device="cpu").examples()
    assert len(plain) == 3
    assert plain["predicted"].isna().all()


def test_figures_show_what_was_found(assisted: StabilityEstimate, digits: Problem, pairs: Problem) -> None:
    left, right = plotting.differences(assisted).axes
    predicted, retrained = left.lines[0], left.lines[1]
    told = assisted.prediction
    assert told is not None
    np.testing.assert_allclose(np.asarray(predicted.get_ydata(), dtype=float), np.sort(told.sizes)[::-1])
    drawn = np.asarray(retrained.get_ydata(), dtype=float)
    np.testing.assert_allclose(np.sort(drawn[~np.isnan(drawn)]), np.sort(assisted.per_example["difference"].abs()))
    assert len(np.asarray(right.lines[1].get_xdata())) == 8
    (alone,) = plotting.differences(leave_one_out.measure(digits, TUNING, Sampled(4), device="cpu")).axes
    assert alone.get_yscale() == "log"
    images = plotting.influential(assisted, 3)
    shown = [ax.images[0].get_array() for ax in images.axes if ax.images]
    first = int(assisted.examples()["index"].iloc[0])
    assert digits.shown is not None
    np.testing.assert_allclose(np.asarray(shown[0]), np.asarray(digits.shown[first]))
    assert images.axes[0].get_title(loc="left").startswith(f"class {5 + int(digits.train.labels[first])}, ")
    texts = leave_one_out.measure(pairs, TUNING, estimator=Assisted(3), device="cpu")
    (ax,) = plotting.influential(texts, 2).axes
    assert pairs.shown is not None
    words = " ".join(text.get_text() for text in ax.texts).replace("\n", " ")
    assert str(pairs.shown[int(texts.examples()["index"].iloc[0])])[:40] in words
    unknown = dataclasses.replace(texts.replicas, problem=dataclasses.replace(texts.replicas.problem, shown=None))
    with pytest.raises(plotting.NothingToDrawError, match="does not say what its examples look like"):
        plotting.influential(dataclasses.replace(texts, replicas=unknown))
    plt.close("all")


def test_what_is_shown_is_what_was_trained_on(pairs: Problem, digits: Problem) -> None:
    assert isinstance(pairs.shown, list)
    assert len(pairs.shown) == pairs.n
    assert pairs.shown[0].startswith("train.jsonl, line ")
    assert isinstance(digits.shown, torch.Tensor)
    assert torch.equal(digits.shown, digits.train.inputs["pixel_values"][:, 0])
    assert digits.without(2).shown is None
