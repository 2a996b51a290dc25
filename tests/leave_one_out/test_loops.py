"""Training loops of one's own, against brute force and closed forms."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor as Tree

from stability import MeasurementError, UsageError, loops, measure_loop, perturbations, plotting
from stability.bounds import estimate_constants
from stability.errors import OwnCodeError
from stability.leave_one_out import Difference
from stability.leave_one_out.estimators import Alone, Approximate, Assisted, Auto, Exact, Sampled
from stability.leave_one_out.predictors import OneStep
from stability.leave_one_out.wording import carriers, doubts, remedy, sentence
from stability.perturbations import FlipLabel, LeaveGroupOut, RemoveFraction
from stability.reports import show_loop
from tests import tiny

Floats = NDArray[np.float64]
X, Y = (array[::5] for array in load_iris(return_X_y=True))
N = len(Y)
CLASSIFIERS = {
    "logistic regression": LogisticRegression(C=10.0, max_iter=2000),
    "random forest": RandomForestClassifier(n_estimators=5, random_state=3),
    "boosting": HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5, random_state=3),
}


def left_out(loop: loops.Loop, **how: Any) -> Floats:
    """ℓ(A(Sⁱ), z_i) of every example, by the interface."""
    table = measure_loop(loop, Exact(), **how).per_example
    assert table["index"].tolist() == list(range(loop.n))
    return table["loss_left_out"].to_numpy()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_rows_removed_are_what_scikit_learn_leaves_out(name: str) -> None:
    probabilities = cross_val_predict(CLASSIFIERS[name], X, Y, cv=LeaveOneOut(), method="predict_proba")
    truth = -np.log(probabilities[np.arange(N), Y].clip(min=np.finfo(float).eps))
    found = left_out(loops.Sklearn(CLASSIFIERS[name], X, Y, by_weight=False))
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-12)
    assert truth.max() > 0.1


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_weights_of_zero_are_those_of_a_plain_loop_of_fits(name: str) -> None:
    truth = []
    for i in range(N):
        model = CLASSIFIERS[name].fit(X, Y, sample_weight=(np.arange(N) != i).astype(float))
        truth.append(-math.log(max(model.predict_proba(X[i : i + 1])[0, Y[i]], np.finfo(float).eps)))
    loop = loops.Sklearn(CLASSIFIERS[name], X, Y)
    assert loop.by_weight is True
    np.testing.assert_allclose(left_out(loop), truth, rtol=1e-9, atol=1e-12)


def test_weight_zero_and_removal_agree_where_the_minimum_is_one() -> None:
    exact = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
    by_weight, removed = (left_out(loops.Sklearn(exact, X, Y, by_weight=how)) for how in (True, False))
    np.testing.assert_allclose(by_weight, removed, rtol=1e-4)


@pytest.mark.parametrize("by_weight", [True, False])
def test_ridge_regression_has_a_closed_form(by_weight: bool) -> None:
    """e_i / (1 − h_ii), the residual without z_i (Allen 1974)."""
    draw = np.random.default_rng(0)
    inputs, labels = draw.normal(size=(25, 4)), draw.normal(size=25)
    hat = inputs @ np.linalg.solve(inputs.T @ inputs + 0.7 * np.eye(4), inputs.T)
    residuals = (labels - hat @ labels) / (1 - np.diag(hat))
    test = draw.normal(size=(6, 4)), draw.normal(size=6)
    loop = loops.Sklearn(Ridge(alpha=0.7, fit_intercept=False), inputs, labels, test=test, by_weight=by_weight)
    estimate = measure_loop(loop)
    np.testing.assert_allclose(estimate.per_example["loss_left_out"], residuals**2, rtol=1e-9)
    assert estimate.value == pytest.approx(np.abs(residuals**2 - (labels - hat @ labels) ** 2).mean(), rel=1e-9)
    assert (estimate.status, estimate.estimator, estimate.subject.loss_unit) == ("exact", "exact", "squared error")
    assert estimate.hypothesis.value > 0
    assert any("by removing rows" in note for note in estimate.notes) != by_weight


def test_held_out_losses_and_parameters_give_the_other_stabilities() -> None:
    """Of the mean of numbers: θ moves by (θ − y_i)/(n − 1)."""
    y, z = np.array([0.0, 1.0, 5.0, 6.0]), np.array([2.0, -1.0])

    def mean(weights: Floats, seed: int) -> loops.Losses:
        at = np.average(y, weights=weights)
        return loops.Losses((y - at) ** 2, list((z - at) ** 2), parameters=torch.tensor([at]))

    estimate = measure_loop(loops.ByWeight(mean, n=4))
    moved = y.mean() + (y.mean() - y) / 3
    assert estimate.distance == pytest.approx(np.abs(moved - 3).mean())
    expected = np.abs((z - moved[:, None]) ** 2 - (z - 3.0) ** 2).mean()
    assert estimate.hypothesis.value == pytest.approx(expected)
    assert estimate.noise_floor == pytest.approx(np.finfo(float).eps * ((y - 3) ** 2).mean())


def test_what_takes_no_weights_is_removed_and_pandas_lists_and_sparse_matrices_are_taken() -> None:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    plain = left_out(loops.Sklearn(pipeline, X, Y))
    assert loops.Sklearn(pipeline, X, Y).by_weight is False
    frame, names = pd.DataFrame(X, index=range(100, 100 + N)), np.array(["a", "b", "c"])[Y]
    for inputs, labels in ((frame, pd.Series(names, index=frame.index)), (X.tolist(), names.tolist())):
        loop = loops.Sklearn(pipeline, inputs, labels)
        np.testing.assert_allclose(left_out(loop), plain, rtol=1e-9)
        assert (loop.label(0), loop.label(N - 1)) == ("a", "c")
    near = KNeighborsClassifier(3)
    np.testing.assert_allclose(left_out(loops.Sklearn(near, scipy.sparse.csr_matrix(X), Y)), left_out(loops.Sklearn(near, X, Y)))


def test_a_class_that_is_left_out_altogether_costs_what_a_probability_of_epsilon_costs() -> None:
    labels = np.where(np.arange(N) == 4, 7, Y)
    estimate = measure_loop(loops.Sklearn(LogisticRegression(max_iter=1000), X, labels, by_weight=False), Exact())
    assert estimate.per_example["loss_left_out"][4] == pytest.approx(-math.log(np.finfo(float).eps))
    assert sum("of a class that a model has not seen, counts as 2.2e-16, a loss of 36 nats" in note for note in estimate.notes) == 1
    assert not estimate.failed


def test_the_seed_is_given_where_none_is_set() -> None:
    free, fixed = (RandomForestClassifier(n_estimators=3, random_state=state) for state in (None, 1))
    zero, one, mine = (left_out(loops.Sklearn(model, X, Y), seed=s) for model, s in ((free, 0), (free, 1), (fixed, 0)))
    np.testing.assert_array_equal(one, mine)
    assert not np.array_equal(zero, one)
    assert free.random_state is None
    assert not hasattr(free, "estimators_")


Y4 = np.array([0.0, 1.0, 5.0, 9.0])


def square(weights: Floats, seed: int) -> Floats:
    """The losses of a mean of four numbers."""
    losses: Floats = (Y4 - np.average(Y4, weights=weights)) ** 2
    return losses


def test_a_loop_that_ignores_its_seed_is_found_out() -> None:
    draw = np.random.default_rng(0)
    runs: list[Floats] = []

    def loose(weights: Floats, seed: int) -> Floats:
        runs.append(square(weights, seed) + draw.normal(size=4))
        return runs[-1]

    estimate = measure_loop(loops.ByWeight(loose, n=4), seed=5)
    assert estimate.noise_floor == pytest.approx(np.abs(runs[1] - runs[0]).mean())
    assert any(f"with seed 5 differ by {estimate.noise_floor:.2g} nats on average" in note for note in estimate.notes)

    quiet = dataclasses.replace(estimate, noise_floor=2 * estimate.value)
    assert "no more than training again on all examples does" in sentence(quiet)
    assert doubts(quiet) == ("the value is not above the noise floor, which is how far two trainings on all examples differ",)
    assert remedy(quiet) is None


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (None, r"loop 'mine' returned nothing: let it return the losses of S in shape \(n,\) = \(4,\)"),
        (np.ones(3), r"returned the losses of S in shape \(3,\): let it return .* \(4,\), also of what is left out"),
        (np.ones((4, 1)), r"the losses of S in shape \(4, 1\)"),
        ({"loss": 1.0}, r"returned a dict where the losses of S should be"),
        (["a"] * 4, r"returned a list where the losses of S should be"),
        (loops.Losses(np.ones(4), held_out=1.0), r"returned the held-out losses in shape \(\): let it return .* in shape \(N,\)"),
        (loops.Losses(np.ones(4), gradients=np.ones((3, 2))), r"the gradients in shape \(3, 2\): .* \(n, P\) with n = 4"),
        (loops.Losses(np.ones(4), parameters=torch.ones(2, 2)), r"the parameters in shape \(2, 2\)"),
    ],
)
def test_results_without_losses_are_refused(result: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        measure_loop(loops.ByWeight(lambda weights, seed: result, n=4, name="mine"))


def test_losses_that_are_not_finite_are_an_error_of_the_whole_and_a_failure_of_one() -> None:
    with pytest.raises(
        MeasurementError, match=r"A\(S\): the loss of example 2 is nan after loop 'mine' has trained: .*learning rate"
    ):
        measure_loop(loops.ByWeight(lambda weights, seed: np.where(np.arange(4) == 2, np.nan, 1.0), n=4, name="mine"))
    with pytest.raises(MeasurementError, match=r"A\(S\): a held-out loss is inf"):
        measure_loop(loops.ByWeight(lambda weights, seed: loops.Losses(np.ones(4), [math.inf]), n=4))
    estimate = measure_loop(loops.ByWeight(lambda weights, seed: square(weights, seed) if weights[1] else np.full(4, np.nan), n=4))
    assert estimate.failed == {1: 0}
    assert "the training without example 1 failed: its loss is nan" in estimate.notes
    assert (estimate.estimator, estimate.interval[1]) == ("sampled", math.inf)
    assert estimate.retrainings == 4


def test_a_loop_that_raises(capsys: pytest.CaptureFixture[str]) -> None:
    def fragile(weights: Floats, seed: int) -> Floats:
        if weights[2] == 0 or weights[3] == 0:
            raise ValueError("singular")
        return square(weights, seed)

    estimate = measure_loop(loops.ByWeight(fragile, n=4))
    assert estimate.failed == {2: 0, 3: 0}
    (note,) = estimate.notes
    assert note.startswith("the training without example 2, example 3 failed: ValueError: singular (")
    assert "test_loops.py" in note
    show_loop(estimate, width=1000)
    assert "Failed with seed 0 and left out of every average: example 2, example 3." in capsys.readouterr().out

    def worse(weights: Floats, seed: int) -> Floats:
        if not weights.all():
            raise KeyError("gone")
        return square(weights, seed)

    with pytest.raises(
        MeasurementError, match="every one of 4 trainings of loop 'worse' without an example failed, the first: KeyErr"
    ):
        measure_loop(loops.ByWeight(worse, n=4))
    with pytest.raises(OwnCodeError, match=r"loop 'loop' raised ZeroDivisionError: .*test_loops\.py, line"):
        measure_loop(loops.ByWeight(lambda weights, seed: 1 / 0, n=4))
    with pytest.raises(
        OwnCodeError, match="loop 'LogisticRegression' raised ValueError: Input X contains NaN.* on all 30 examples"
    ):
        measure_loop(loops.Sklearn(LogisticRegression(), np.where(X > 5, np.nan, X), Y))
    with pytest.raises(
        MeasurementError, match="every one of 4 .* the first: it returned 2 held-out losses, and 1 for all examples"
    ):
        measure_loop(loops.ByWeight(lambda weights, seed: loops.Losses(square(weights, seed), [1.0] * int(5 - weights.sum())), n=4))


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (lambda losses: losses[:3], r"loop 'mine' returned the losses of S in shape \(3,\): let it return the losses of S"),
        (lambda losses: loops.Losses(losses, [1.0, 2.0]), "it returned 2 held-out losses, and 1 for all examples"),
        (lambda losses: loops.Losses(losses, [1.0], parameters=[1.0]), "it returned 1 parameters, and 2 for all examples"),
        (lambda losses: None, "loop 'mine' returned nothing: let it return"),
    ],
)
def test_another_shape_without_one_example_is_a_failure_of_this_example(odd: Callable[[Floats], Any], why: str) -> None:
    def run(weights: Floats, seed: int) -> Any:
        losses = square(weights, seed)
        return loops.Losses(losses, [1.0], parameters=[1.0, 2.0]) if weights[1] else odd(losses)

    estimate = measure_loop(loops.ByWeight(run, n=4, name="mine"))
    truth = [abs(square(np.arange(4) != i, 0)[i] - square(np.ones(4), 0)[i]) for i in (0, 2, 3)]
    assert estimate.failed == {1: 0}
    assert estimate.value == pytest.approx(np.mean(truth))
    (note,) = estimate.notes
    assert re.match(f"the training without example 1 failed: {why}", note)


def test_a_loop_of_noise_is_never_exact() -> None:
    """Its value is above the noise floor as often as not."""
    draw = np.random.default_rng(1)
    found = [measure_loop(loops.ByWeight(lambda weights, seed: draw.normal(size=20) + 5, n=20)) for _ in range(6)]
    above = [estimate for estimate in found if estimate.value > estimate.noise_floor]
    assert above
    for estimate in above:
        assert "exactly" not in sentence(estimate)
        assert re.search(
            r"on average, noise included: training again on all examples changes the losses by \d\.\d+ nats\.$", sentence(estimate)
        )
    assert "exactly" in sentence(measure_loop(loops.ByWeight(square, n=4)))


@pytest.mark.parametrize(
    ("kind", "function", "why"),
    [
        (loops.ByWeight, lambda weights: weights, r"function 'mine' takes \(weights\): let it take the weights and a seed"),
        (loops.ByRemoval, lambda kept, seed, more: kept, r"takes \(kept, seed, more\): let it take the indices of the examples"),
    ],
)
def test_a_function_that_takes_something_else_is_refused(kind: Any, function: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        kind(function, n=4, name="mine")
    assert kind(lambda *everything: 1, n=4).n == kind(square, n=4).n == 4


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: measure_loop(square), "loop = <function square.*: use one of stability.loops"),  # type: ignore[arg-type]
        (lambda: measure_loop(loops.ByWeight(square, n=4), 10), "estimator = 10: use one of"),  # type: ignore[arg-type]
        (lambda: measure_loop(loops.ByWeight(square, n=4), seed=-1), "seed = -1"),
        (lambda: measure_loop(loops.ByWeight(square, n=4), workers=0), "workers = 0"),
        (lambda: measure_loop(loops.ByWeight(square, n=4), Sampled(5)), r"retrainings = 5 is outside 1\.\.n with n = 4"),
        (lambda: measure_loop(loops.ByWeight(square, n=4), Approximate()), r"Approximate\(\) is the mean of predicted differences"),
        (
            lambda: measure_loop(loops.ByWeight(square, n=4), Assisted(2, predictor=OneStep())),
            "predictor = OneStep.*leave predictor out",
        ),
        (lambda: measure_loop(loops.ByWeight(square, n=4), Auto(predictor=OneStep())), "leave predictor out"),
        (lambda: loops.ByWeight(square, n=1), "n = 1: use a whole number of at least 2"),
        (lambda: loops.ByWeight(square, n=4, shown=["a"]), "shown has 1 entries and there are n = 4 examples"),
        (lambda: loops.Sklearn(LogisticRegression, X, Y), "use a classifier or regressor of scikit-learn, not fitted"),
        (lambda: loops.Sklearn(LogisticRegression(), X, Y[1:]), "S: 30 rows of inputs and 29 labels"),
        (lambda: loops.Sklearn(LogisticRegression(), X, Y, test=(X, Y[1:])), "test: 30 rows of inputs and 29 labels"),
        (lambda: loops.Sklearn(LinearSVC(), X, Y), r"LinearSVC has no predict_proba, .*loss=stability\.loops\.zero_one, or"),
        (lambda: loops.Sklearn(StandardScaler(), X, Y), "StandardScaler is neither a classifier nor a regressor: give loss"),
        (lambda: loops.Sklearn(KNeighborsClassifier(), X, Y, by_weight=True), "fit of KNeighborsClassifier takes no sample_weight"),
        (lambda: loops.Sklearn(KNeighborsClassifier(), X, np.eye(3)[Y]), r"labels have shape \(30, 3\).*one label a row"),
    ],
)
def test_senseless_requests_are_refused(make: Callable[[], Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make()


def test_losses_of_other_kinds() -> None:
    wrong = measure_loop(loops.Sklearn(LinearSVC(), X, Y, loss=loops.zero_one))
    assert set(wrong.per_example["loss_left_out"]) <= {0.0, 1.0}
    assert "(0/1 loss)" in sentence(wrong) or wrong.value == 0
    targets = np.stack([X[:, 0], X[:, 1]], axis=1)
    both = left_out(loops.Sklearn(LinearRegression(), X[:, 2:], targets))
    each = [left_out(loops.Sklearn(LinearRegression(), X[:, 2:], column)) for column in targets.T]
    np.testing.assert_allclose(both, np.mean(each, axis=0), rtol=1e-9)
    np.testing.assert_allclose(left_out(loops.Sklearn(LinearRegression(), X[:, 2:], targets[:, :1])), each[0], rtol=1e-9)
    np.testing.assert_allclose(left_out(loops.Sklearn(Tree(), X, X[:, :1])), left_out(loops.Sklearn(Tree(), X, X[:, 0])))
    absolute = loops.Sklearn(
        Ridge(), X, Y, loss=lambda model, inputs, labels: np.abs(model.predict(inputs) - labels), loss_unit="mm"
    )
    np.testing.assert_allclose(left_out(absolute), np.sqrt(left_out(loops.Sklearn(Ridge(), X, Y))), rtol=1e-9)
    assert absolute.loss_unit == "mm"


def logistic(gradients: bool) -> loops.Loop:
    """Logistic regression of two classes, with or without the gradients of its losses; equal trainings are carried out once."""
    inputs, labels = load_iris(return_X_y=True)
    inputs, labels = inputs[50:], labels[50:] - 1

    @functools.cache
    def trained(left_out: tuple[int, ...]) -> loops.Losses:
        weights = np.where(np.isin(np.arange(100), left_out), 0.0, 1.0)
        model = LogisticRegression().fit(inputs, labels, sample_weight=weights)
        slopes = (model.predict_proba(inputs)[:, 1] - labels)[:, None] * inputs
        return loops.Losses(loops.log_loss(model, inputs, labels), gradients=slopes if gradients else None)

    return loops.ByWeight(lambda weights, seed: trained(tuple(np.flatnonzero(weights == 0).tolist())), n=100)


@pytest.mark.parametrize("gradients", [True, False])
def test_losses_or_gradients_guide_the_draws(gradients: bool) -> None:
    loop = logistic(gradients)
    truth = measure_loop(loop, Exact())
    estimate = measure_loop(loop, Assisted(20))
    assert (estimate.estimator, estimate.retrainings) == ("assisted", 20)
    values = [measure_loop(loop, Assisted(20), seed=seed).value for seed in range(30)]
    assert abs(np.mean(values) - truth.value) < 4 * np.std(values) / math.sqrt(30)  # unbiased
    assert estimate.diagnostics.rank_correlation > 0.8
    assert estimate.diagnostics.variance_cut > 2
    assert estimate.prediction is not None
    assert estimate.prediction.mean == pytest.approx(estimate.value)  # a size that only the retrainings could tell
    assert estimate.prediction.by.startswith(f"the {'squared norms of the gradients' if gradients else 'training losses'} of A(S)")
    whole = truth.per_example["loss_full"].to_numpy()
    if not gradients:
        np.testing.assert_allclose(estimate.prediction.sizes / estimate.prediction.mean, whole / whole.mean(), rtol=1e-9)
    drawn = estimate.per_example.set_index("index")["difference"]
    np.testing.assert_allclose(drawn, truth.per_example["difference"][drawn.index], rtol=1e-6, atol=1e-9)


def test_losses_that_guide_nothing() -> None:
    """All zero: examples are drawn uniformly, and the estimate says so. Below zero: the least one counts as zero."""
    flat = loops.ByWeight(lambda weights, seed: 1e-3 * (weights == 0) * np.arange(6), n=6)
    estimate = measure_loop(flat, Assisted(3))
    assert any("all zero: examples were drawn uniformly" in note for note in estimate.notes)
    density = measure_loop(loops.ByWeight(lambda weights, seed: square(weights, seed) - 10, n=4), Assisted(2))
    assert density.prediction is not None
    assert density.prediction.sizes.min() == 0


def test_auto_leaves_out_all_of_few() -> None:
    few = measure_loop(loops.ByWeight(square, n=4))
    assert (few.estimator, few.reason) == ("exact", "exact: leaving out all 4 examples is no more than 100 retrainings")
    draw = np.random.default_rng(0).normal(size=120)
    many = loops.ByWeight(lambda weights, seed: (draw - np.average(draw, weights=weights)) ** 2, n=120)
    estimate = measure_loop(many)
    assert (estimate.estimator, estimate.tolerance) == ("assisted", 0.2)
    assert estimate.retrainings <= 50
    assert estimate.reason == "assisted: leaving out all 120 examples is more than 100 retrainings"
    assert measure_loop(many, Auto(retrainings=7)).retrainings == 7
    assert measure_loop(many, Auto(budget=600.0)).status == "within tolerance"
    with pytest.raises(UsageError, match="budget = 1e-06 s"):
        measure_loop(many, Auto(budget=1e-6))


def test_printing_leaves_out_what_a_loop_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    loop = loops.Sklearn(LogisticRegression(), X, Y, shown=[f"flower {i}" for i in range(N)])
    estimate = measure_loop(loop, Assisted(12))
    assert (estimate.k, estimate.m, estimate.head, estimate.replicas) == (None, None, None, None)
    assert math.isnan(estimate.sparsity)
    assert math.isnan(estimate.distance)
    show_loop(estimate, verbose=True)
    printed = capsys.readouterr().out
    assert printed.startswith("Leaving one training example out changes its loss by 0.")
    assert "LogisticRegression" in printed
    assert "own loop, with example weights" in printed
    html = estimate._repr_html_()
    for text in (printed, html, repr(estimate)):
        assert "parameters" not in text
        assert "None" not in text
        assert "test losses" not in text
        assert "nan" not in text
    top = carriers(estimate, 1)[0]
    assert top["shown"] == f"flower {top['index']} [{Y[top['index']]}]"
    assert top["shown"] in html
    plain = json.loads(json.dumps(estimate.to_dict()))
    assert (plain["tunable"], plain["total"], plain["distance"], plain["per_example"][0]["mask_changes"]) == (
        None,
        None,
        None,
        None,
    )
    assert estimate.examples()["share"].between(0, 1).all()
    figure = estimate.plot()
    assert "LogisticRegression · n = 30 · seed 0" in figure.get_suptitle()
    assert len(plotting.influential(estimate, count=3).axes) > 0
    nameless = measure_loop(loops.ByWeight(square, n=4))
    assert carriers(nameless, 1)[0]["shown"] == "example 3"
    with pytest.raises(plotting.NothingToDrawError, match="loop 'square' does not say what its examples look like"):
        plotting.influential(nameless)


def test_what_needs_parameters_or_data_refuses_a_loop() -> None:
    estimate = measure_loop(loops.ByWeight(square, n=4))
    with pytest.raises(UsageError, match="the bounds need the parameters of replicas, and loop 'square' has none"):
        estimate_constants(estimate)
    with pytest.raises(UsageError, match="the first estimate is of loop 'square', whose data nobody knows"):
        Difference.of(estimate, estimate)


def test_nothing_left_out_is_a_single_training() -> None:
    alone = measure_loop(loops.ByWeight(square, n=4), Alone())
    assert (alone.status, alone.retrainings, math.isnan(alone.value)) == ("not measured", 0, True)
    assert "was not measured" in alone._repr_html_()


def test_progress_counts_trainings() -> None:
    done: list[int] = []
    measure_loop(loops.ByWeight(square, n=4), progress=done.append)
    assert sum(done) == 1 + 1 + 4  # A(S), A(S) again, and the four


def test_workers_change_nothing() -> None:
    """In threads here, for a process takes seconds to begin."""
    with joblib.parallel_config(backend="threading"):
        one, two = (measure_loop(loops.ByWeight(square, n=4), workers=count) for count in (1, 2))
    pd.testing.assert_frame_equal(one.per_example, two.per_example, check_exact=True)


def test_a_trainer_of_transformers(tmp_path: Any) -> None:
    """The interface against the same trainings by hand, with a tiny BERT of random weights."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, set_seed

    path = tiny.write_model(tmp_path)
    draw = np.random.default_rng(0)
    data = [{"input_ids": draw.integers(5, 20, size=6), "attention_mask": np.ones(6, int), "labels": i % 2} for i in range(5)]

    def factory(train_dataset: Any, seed: int) -> Trainer:
        model = AutoModelForSequenceClassification.from_pretrained(path)
        how = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True}
        settings = TrainingArguments(str(tmp_path / "runs"), seed=seed, report_to="none", save_strategy="no", **how)
        return Trainer(model, settings, train_dataset=train_dataset)

    loop = loops.TrainerFactory(factory, data, test=data[:2])
    with redirect_stdout(io.StringIO()):
        estimate = measure_loop(loop, Sampled(1), seed=3)
    (i,) = estimate.per_example["index"]
    assert estimate.noise_floor < 1e-5
    losses = []
    for rows in (data, [row for j, row in enumerate(data) if j != i]):
        set_seed(3)
        with redirect_stdout(io.StringIO()):
            trainer = factory(rows, 3)
            trainer.train()
        with torch.no_grad():
            batch = {name: torch.tensor(np.array([data[i][name]])) for name in data[i]}
            losses.append(trainer.model.eval()(**batch).loss.item())
    assert estimate.per_example["loss_full"][0] == pytest.approx(losses[0], rel=1e-5)
    assert estimate.per_example["loss_left_out"][0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != losses[1]
    assert estimate.hypothesis.value > 0
    with pytest.raises(UsageError, match="factory 'wrong' returned 3: let it return a transformers.Trainer"):
        measure_loop(loops.TrainerFactory(lambda train_dataset, seed: 3, data, name="wrong"))


class _FirstToken(torch.nn.Module):
    """Its loss is the first token of the text, whatever is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (input_ids[:, 0].float() + 0 * self.weight).mean(), "logits": input_ids[:, :1].float()}


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_a_trainer_that_orders_by_length_gives_each_example_its_own_loss(kind: Callable[[Any], Any], tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": [i, *[1] * (7 * i % 5)], "labels": 0} for i in range(8)]
    known = TrainingArguments.__dataclass_fields__  # transformers 5 calls it otherwise than transformers 4
    by_length = {"train_sampling_strategy": "group_by_length"} if "train_sampling_strategy" in known else {"group_by_length": True}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
        return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in rows])}

    def factory(train_dataset: Any, seed: int) -> Trainer:
        how = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", **by_length}
        settings = TrainingArguments(str(tmp_path), seed=seed, dataloader_drop_last=True, **how)
        return Trainer(_FirstToken(), settings, train_dataset=train_dataset, data_collator=collate)

    with redirect_stdout(io.StringIO()):
        found = loops.TrainerFactory(factory, kind(data), test=kind(data[::-2])).run(np.ones(8), 0)
    assert found.train == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found.held_out == [7, 5, 3, 1]


GROUPS = ["a", "b", "b", "c", "a", "c", "c", "b", "a", "a"] * 3


@pytest.mark.parametrize("by_weight", [True, False])
def test_groups_are_left_out_of_a_loop_as_by_hand(by_weight: bool) -> None:
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(30, 3)), draws.normal(size=30)
    loop = loops.Sklearn(LinearRegression(), x, y, by_weight=by_weight)
    estimate = measure_loop(loop, perturbation=LeaveGroupOut(GROUPS))
    whole = (LinearRegression().fit(x, y).predict(x) - y) ** 2
    expected = {}
    for number, group in enumerate("abc"):
        own = np.array(GROUPS) == group
        left = (LinearRegression().fit(x[~own], y[~own]).predict(x[own]) - y[own]) ** 2
        expected[number] = left.mean() - whole[own].mean()
    assert dict(estimate.per_example[["index", "difference"]].itertuples(index=False)) == pytest.approx(expected, abs=1e-9)
    assert sentence(estimate).startswith("Leaving one group of training examples out changes the mean loss of its examples by")
    parts = measure_loop(loop, Assisted(5), perturbation=RemoveFraction(0.1))
    assert (parts.n, parts.units.count, parts.retrainings) == (30, 10, 5)


def test_an_inconclusive_loop_is_told_what_settles_it(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(300.0) ** 3
    loop = loops.ByWeight(lambda weights, seed: (values - np.average(values, weights=weights)) ** 2, n=300)
    show_loop(measure_loop(loop, Sampled(2)))
    told = capsys.readouterr().out
    assert re.search(
        r"Inconclusive: .* This would settle it, in about 1 s:\n  measure_loop\(loop, estimators\.\w+\(.*\)\)$", told.strip()
    )
    show_loop(measure_loop(loop, Exact()))
    assert "Inconclusive" not in capsys.readouterr().out


def test_a_loop_only_leaves_out() -> None:
    loop = loops.ByWeight(lambda weights, seed: np.ones(4) / weights.sum(), n=4)
    assert measure_loop(loop, perturbation=perturbations.LeaveOneOut()).retrainings == 4
    with pytest.raises(
        UsageError, match="perturbation = flip-label: it changes an example, and a loop can only leave examples out"
    ):
        measure_loop(loop, perturbation=FlipLabel())  # type: ignore[arg-type]
