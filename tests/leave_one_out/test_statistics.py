"""Means of finite populations from unequal draws, against exhaustive enumeration and simulation; shares of variance."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from stability import UsageError
from stability.leave_one_out.estimators import Assisted
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import (
    Draws,
    Shares,
    _each_draw,
    draw,
    mean_of_draws,
    mean_of_population,
    ratio_of_draws,
    variance_shares,
)

SIZES = np.array([5.0, 1.0, 2.0, 0.5])
VALUES = np.array([4.0, 1.5, 0.1, 2.0])
STORED = json.loads(Path("benchmarks/results/assisted-digits-cpu.json").read_text())["digits"]


def drawn(order: Sequence[int], sizes: Any = SIZES) -> Draws:
    """Items drawn in that order, the rest after them; the r-th clock rings at r."""
    rest = [i for i in range(len(sizes)) if i not in order]
    return Draws(np.array([*order, *rest]), np.arange(1.0, len(sizes) + 1), np.asarray(sizes, dtype=float))


def every_draw(a: int) -> list[tuple[float, list[int]]]:
    """Each ordered sample of a of the four, with its probability."""
    found = []
    for order in itertools.permutations(range(4), a):
        probability, left = 1.0, SIZES.sum()
        for i in order:
            probability *= SIZES[i] / left
            left -= SIZES[i]
        found.append((probability, list(order)))
    return found


def expected(a: int, of: Callable[[Draws], float]) -> float:
    """The expectation over all sets of a of the four, and over the clock τ of the item after them, by quadrature."""
    found = 0.0
    for first in itertools.combinations(range(4), a):
        for last in set(range(4)) - set(first):
            later = [i for i in range(4) if i != last and i not in first]

            def density(tau: float, first: Any = first, last: int = last, later: Any = later) -> float:
                draws = Draws(np.array([*first, last, *later]), np.array([0.0] * a + [tau] * (4 - a)), SIZES)
                rings: float = (
                    SIZES[last] * math.exp(-tau * (SIZES[last] + SIZES[later].sum())) * float(draws.probabilities(a).prod())
                )
                return rings * of(draws)

            found += integrate.quad(density, 0, np.inf, epsabs=1e-12)[0]
    return found


@pytest.mark.parametrize("a", [1, 2, 3])
def test_the_probabilities_weigh_without_bias(a: int) -> None:
    """E Σ y/p over the drawn is Σ y of all, and E Σ y² (1 − p)/p² is the variance of Σ y/p, exactly."""

    def weighed(draws: Draws) -> float:
        return float((VALUES[draws.order[:a]] / draws.probabilities(a)).sum())

    def variance(draws: Draws) -> float:
        p = draws.probabilities(a)
        return float((VALUES[draws.order[:a]] ** 2 * (1 - p) / p**2).sum())

    assert expected(a, lambda _: 1.0) == pytest.approx(1, abs=1e-9)
    assert expected(a, weighed) == pytest.approx(VALUES.sum(), rel=1e-8)
    # With one draw 1/p has no second moment: the variance is infinite, as it is of y/x where sizes are far from the values.
    if a > 1:
        assert expected(a, variance) == pytest.approx(expected(a, lambda d: (weighed(d) - VALUES.sum()) ** 2), rel=1e-6)


def test_the_value_and_its_interval_are_as_they_are_written() -> None:
    draws = draw(SIZES, np.random.default_rng(3))
    first, last = draws.order[:3], draws.clocks[3]
    predicted = np.array([3.0, 1.0, 1.0, 0.0])
    q = predicted + 0.01 * predicted.mean()
    y, p = VALUES[first], 1 - np.exp(-SIZES[first] * last)
    c = y.sum() / q[first].sum()
    e = y - c * q[first]
    value = (c * q.sum() + (e / p).sum()) / 4
    weights = 1 / p + (q.sum() - (q[first] / p).sum()) / q[first].sum()
    assert (weights * q[first]).sum() == pytest.approx(q.sum(), rel=1e-12)
    assert (weights * y).sum() / 4 == pytest.approx(value, rel=1e-12)
    v, m = 1.5 * ((1 - p) * weights**2 * e**2).sum() / 16, (e**2).sum() / 2 / 16
    t = stats.t.ppf(0.975, 2)
    found = mean_of_draws(y, draws, predicted)
    assert value > y.sum() / 4
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.error == pytest.approx(math.sqrt(v), rel=1e-12)
    assert found.interval[1] == pytest.approx(value * math.exp(t * math.sqrt(2.5 * v + m / 3) / value), rel=1e-12)
    low = value * math.exp(-t * math.sqrt(v + m / 5) / value)
    assert found.interval[0] == pytest.approx(max(low, y.sum() / 4), rel=1e-12)


@pytest.mark.parametrize("row", STORED, ids=[f"{row['method']}-{row['p']:.3f}" for row in STORED])
def test_intervals_hold_for_every_method(row: dict[str, Any]) -> None:
    """Of 200 draws each of 10, 20 and 40, with seeds fixed in advance, at least 0.93 less 2.5 standard errors hold the truth:
    0.885. The mean of 200 values of 20 draws is within 2.5 standard errors and 3 % of it."""
    measured, told = np.abs(row["difference"]), np.abs(row["predictions"]["linearised"]["difference"])
    for count in (10, 20, 40):
        found = []
        for seed in range(200):
            design = Assisted(count).design(100, seed, Prediction(pd.DataFrame({"difference": told}), "stored", 0.0))
            found.append(design.mean(measured[design.order[:count]], 0.95))
        assert np.mean([one.interval[0] <= measured.mean() <= one.interval[1] for one in found]) >= 0.885
        if count == 20:
            values = np.array([one.value for one in found])
            assert abs(values.mean() - measured.mean()) < 2.5 * values.std() / math.sqrt(200) + 0.03 * measured.mean()


def test_the_order_of_draws_has_the_probabilities_of_successive_sampling() -> None:
    """20 000 orders; each first pair within 4.5 standard errors of its probability (fixed in advance)."""
    generator = np.random.default_rng(0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(20_000):
        pair = tuple(draw(SIZES, generator).order[:2].tolist())
        counts[pair] = counts.get(pair, 0) + 1
    for probability, order in every_draw(2):
        assert abs(counts.get(tuple(order), 0) / 20_000 - probability) < 4.5 * math.sqrt(probability / 20_000)


def test_a_prediction_proportional_to_the_values_leaves_nothing_to_chance() -> None:
    """But for the hundredth of the mean that every item is given."""
    found = mean_of_draws(VALUES[[2, 0]], drawn([2, 0]), 3 * VALUES)
    assert found.value == pytest.approx(VALUES.mean(), rel=0.05)
    assert found.interval[1] < 1.25 * found.value
    equal = mean_of_draws([2.0, 2.0], drawn([2, 0]), np.ones(4))
    assert equal.value == pytest.approx(2.0, rel=1e-12)
    assert equal.interval[1] == math.inf  # for equal values say nothing of their spread


def test_an_end_that_says_nothing_is_no_end() -> None:
    """Two draws of five thousand that had hardly a chance, and are not what was predicted."""
    predicted = np.ones(5000)
    predicted[1] = 100
    draws = Draws(np.arange(5000), np.linspace(1e-4, 0.5, 5000), predicted)
    assert mean_of_draws([0.0, 0.001], draws, predicted).interval[1] == math.inf


def test_everything_drawn_is_exact_and_the_sure_end_holds() -> None:
    order = [3, 1, 0, 2]
    for found in (mean_of_draws(VALUES[order], drawn(order), SIZES), ratio_of_draws(VALUES[order], drawn(order))):
        assert (found.value, found.interval, found.error) == (VALUES.mean(), (VALUES.mean(),) * 2, 0.0)
    # The three largest of four drawn, and a prediction that makes the rest look like nothing: never below their sum over N.
    few = mean_of_draws([4.0, 2.0, 1.5], drawn([0, 3, 1]), [100.0, 50.0, 0.1, 40.0])
    assert few.value >= few.interval[0] >= 7.5 / 4


@pytest.mark.parametrize("a", [2, 3])
def test_the_draws_of_a_ratio_are_unbiased_with_an_unbiased_variance(a: int) -> None:
    """Over all ordered samples: E of the draws' mean is the population's, E of s²/a its true variance."""
    mean = variance = squares = 0.0
    for probability, order in every_draw(a):
        parts = _each_draw(VALUES[order], SIZES[order], SIZES.sum(), 4)
        mean += probability * parts.mean()
        squares += probability * parts.mean() ** 2
        variance += probability * parts.var(ddof=1) / a
        ones = _each_draw(np.ones(a), SIZES[order], SIZES.sum(), 4)
        found = ratio_of_draws(VALUES[order], drawn(order))
        assert math.isclose(found.value, max(parts.mean() / ones.mean(), VALUES[order].sum() / 4), rel_tol=1e-12)
    assert math.isclose(mean, VALUES.mean(), rel_tol=1e-12)
    assert math.isclose(variance, squares - mean**2, rel_tol=1e-12)


def test_a_missing_value_leaves_the_population_and_the_upper_end() -> None:
    draws = drawn([0, 3, 1])
    found = mean_of_draws([4.0, math.nan, 1.5], draws, [3.0, 1.0, 1.0, 1.0])
    p, q = draws.probabilities(3), np.array([3.0, 1.0, 1.0]) + 0.015  # the population without item 3: items 0, 1 and 2
    c = 5.5 / (q[0] + q[1])
    value = (c * q.sum() + (4.0 - c * q[0]) / p[0] + (1.5 - c * q[1]) / p[2]) / 3
    assert found.value == pytest.approx(max(value, 5.5 / 3), rel=1e-12)
    assert found.interval[1] == math.inf
    assert found.interval[0] == (4.0 + 1.5) / 4
    ratio = ratio_of_draws([4.0, math.nan, 1.5], draws)
    assert ratio.interval == (5.5 / 4, math.inf)


@given(st.data())
def test_every_value_is_inside_its_interval(data: st.DataObject) -> None:
    """Whatever was drawn, whatever failed, and however far sizes and predictions are from the values."""
    n = data.draw(st.integers(2, 6), label="n")
    numbers = st.floats(0, 1e6).map(lambda value: float(f"{value:.3g}"))
    values = np.array(data.draw(st.lists(numbers, min_size=n, max_size=n), label="values"))
    sizes = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=n, max_size=n), label="sizes")
    predicted = data.draw(st.lists(numbers, min_size=n, max_size=n).filter(any), label="predicted")
    a = data.draw(st.integers(1, n), label="drawn")
    draws = draw(sizes, np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed")))
    order = draws.order[:a].tolist()
    failed = data.draw(st.sets(st.sampled_from(order), max_size=len(order) - 1), label="failed")
    values[list(failed)] = math.nan
    known = [i for i in order if i not in failed]
    for found in (
        mean_of_draws(values[order], draws, predicted),
        ratio_of_draws(values[order], draws),
        mean_of_population(values[known], n, missing=len(failed)),
    ):
        low, high = found.interval
        assert low <= found.value * (1 + 1e-12)
        assert found.value <= high * (1 + 1e-12)
        assert values[known].sum() / n <= low * (1 + 1e-12)
        assert (found.count, found.population) == (len(known), n)


@pytest.mark.parametrize(
    ("values", "predicted", "why"),
    [
        ([1.0], [1.0, -1.0], "predicted: 2 finite numbers expected, none negative and not all zero"),
        ([1.0], [1.0, math.inf], "predicted: 2 finite numbers"),
        ([1.0], [0.0, 0.0], "predicted: 2 finite numbers"),
        ([1.0], [1.0], "predicted: 2 finite numbers"),
        ([1.0, 1.0, 1.0], [1.0, 1.0], "3 values of 2 items"),
        ([math.nan], [1.0, 1.0], "none of 1 values could be measured"),
    ],
)
def test_senseless_draws_are_refused(values: list[float], predicted: list[float], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        mean_of_draws(values, drawn([0], np.ones(2)), predicted)


@pytest.mark.parametrize("sizes", [[1.0, 0.0], [1.0, math.inf], []])
def test_senseless_sizes_are_refused(sizes: list[float]) -> None:
    with pytest.raises(UsageError, match="sizes: one positive finite number"):
        draw(sizes, np.random.default_rng(0))


def covered(populations: list[np.ndarray], a: int, repeats: int) -> float:
    generator, hits = np.random.default_rng(1), 0
    for population in populations:
        for _ in range(repeats):
            low, high = mean_of_population(generator.choice(population, a, replace=False), len(population)).interval
            hits += low <= population.mean() <= high
    return hits / (len(populations) * repeats)


def test_skewed_populations_are_covered_better_than_by_a_t_interval() -> None:
    """Log-normal of σ = 1.5, 40 populations of 100, 50 samples of 20 each: at least 0.89 (fixed in advance), where ȳ ± t s/√a √f
    covers less than 0.85."""
    generator = np.random.default_rng(0)
    populations = [np.exp(1.5 * generator.standard_normal(100)) for _ in range(40)]
    assert covered(populations, 20, 50) >= 0.89
    hits = 0
    for population in populations:
        for _ in range(50):
            sample = generator.choice(population, 20, replace=False)
            half = 2.093 * sample.std(ddof=1) * math.sqrt(0.8 / 20)
            hits += abs(sample.mean() - population.mean()) <= half
    assert hits / 2000 < 0.85


def test_assisted_intervals_cover_where_the_prediction_is_rough() -> None:
    """Log-normal σ = 2 values, known to a factor of e^{±0.5}; 2 000 samples of 12: at least 95 % less 4 standard errors."""
    generator, hits = np.random.default_rng(0), 0
    for _ in range(40):
        values = np.exp(2 * generator.standard_normal(100))
        told = values * np.exp(0.5 * generator.standard_normal(100))
        sizes = told**0.8
        sizes += 0.05 * sizes.mean()
        for _ in range(50):
            draws = draw(sizes, generator)
            low, high = mean_of_draws(values[draws.order[:12]], draws, told).interval
            hits += low <= values.mean() <= high
    assert hits / 2000 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_equal_values_say_nothing_of_their_spread() -> None:
    found = mean_of_population([2.0, 2.0, 2.0], 10)
    assert (found.value, found.interval) == (2.0, (0.6, math.inf))
    assert mean_of_population([0.0, 0.0], 10).relative_half_width == math.inf


def test_shares_of_variance_are_those_that_made_the_values() -> None:
    """σ² of 4, 1 and 0.25, 300 sets of 40 seeds: each share to a tenth of the whole."""
    generator = np.random.default_rng(0)
    errors = np.full((300, 40), 0.5)
    made = [
        2 * generator.standard_normal((300, 1)),
        generator.standard_normal((300, 40)),
        0.5 * generator.standard_normal((300, 40)),
    ]
    values = 10 + made[0] + made[1] + made[2]
    mean, shares = variance_shares(values, errors)
    found, true = shares.fractions(), Shares(4, 1, 0.25).fractions()
    assert all(abs(found[name] - true[name]) < 0.1 for name in true)
    assert mean.interval[0] < 10 < mean.interval[1]
    with pytest.raises(UsageError, match="at least 2 training sets and 2 seeds"):
        variance_shares([[1.0, 2.0]], [[0.0, 0.0]])
