"""Means of finite populations from unequal draws, against exhaustive enumeration and simulation; shares of variance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability import UsageError
from stability.leave_one_out.statistics import Shares, _each_draw, draw, mean_of_draws, mean_of_population, variance_shares

SIZES = np.array([5.0, 1.0, 2.0, 0.5])
VALUES = np.array([4.0, 1.5, 0.1, 2.0])


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


@pytest.mark.parametrize("a", [2, 3])
def test_draws_are_unbiased_with_an_unbiased_variance(a: int) -> None:
    """Over all ordered samples: E of the draws' mean is the population's, E of s²/a its true variance. The value itself may be
    raised to the sure Σy/N, never beyond."""
    mean = variance = squares = 0.0
    for probability, order in every_draw(a):
        parts = _each_draw(VALUES[order], SIZES[order], SIZES.sum(), 4)
        mean += probability * parts.mean()
        squares += probability * parts.mean() ** 2
        variance += probability * parts.var(ddof=1) / a
        found = mean_of_draws(VALUES[order], order, SIZES)
        assert math.isclose(found.value, max(parts.mean(), VALUES[order].sum() / 4), rel_tol=1e-12)
        assert math.isclose(found.error, parts.std(ddof=1) / math.sqrt(a), rel_tol=1e-12)
    assert math.isclose(mean, VALUES.mean(), rel_tol=1e-12)
    assert math.isclose(variance, squares - mean**2, rel_tol=1e-12)


def test_the_order_of_draws_has_the_probabilities_of_successive_sampling() -> None:
    """20 000 orders; each first pair within 4.5 standard errors of its probability (fixed in advance)."""
    generator = np.random.default_rng(0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(20_000):
        pair = tuple(draw(SIZES, generator)[:2].tolist())
        counts[pair] = counts.get(pair, 0) + 1
    for probability, order in every_draw(2):
        assert abs(counts.get(tuple(order), 0) / 20_000 - probability) < 4.5 * math.sqrt(probability / 20_000)


def test_sizes_proportional_to_the_values_leave_nothing_to_chance() -> None:
    found = mean_of_draws(VALUES[[2, 0]], [2, 0], 3 * VALUES)
    assert math.isclose(found.value, VALUES.mean(), rel_tol=1e-12)
    assert found.interval[1] == math.inf  # for equal parts say nothing of their spread


def test_everything_drawn_is_exact_and_the_sure_end_holds() -> None:
    order = [3, 1, 0, 2]
    found = mean_of_draws(VALUES[order], order, SIZES)
    assert (found.value, found.interval, found.error) == (VALUES.mean(), (VALUES.mean(),) * 2, 0.0)
    # The three largest of four drawn with a size that makes the rest look like nothing: never below their sum over N.
    few = mean_of_draws([4.0, 2.0, 1.5], [0, 3, 1], [100.0, 0.1, 0.1, 100.0])
    assert few.value >= few.interval[0] == pytest.approx(7.5 / 4)


def test_ratio_is_right_where_the_values_are_all_alike() -> None:
    found = mean_of_draws([3.0, 3.0], [1, 2], SIZES, ratio=True)
    assert math.isclose(found.value, 3.0, rel_tol=1e-12)


def test_a_missing_value_leaves_the_population_and_the_upper_end() -> None:
    found = mean_of_draws([4.0, math.nan, 1.5], [0, 3, 1], SIZES)
    assert found.value == mean_of_draws([4.0, 1.5], [0, 1], SIZES[:3]).value
    assert found.interval[1] == math.inf
    assert found.interval[0] == (4.0 + 1.5) / 4


def test_a_value_is_inside_its_own_interval_where_a_replica_failed() -> None:
    """The draws' mean is 1.25 here, and 10 of the five values' sum is known: 2.5 of the four that can be, 2 of all five."""
    found = mean_of_draws([0.0, 10.0, math.nan], [0, 1, 2], [1.0, 100.0, 1.0, 0.001, 0.001])
    assert _each_draw(np.array([0.0, 10.0]), np.array([1.0, 100.0]), 101.002, 4).mean() == pytest.approx(1.25, rel=1e-4)
    assert (found.value, found.interval, found.population, found.count) == (2.5, (2.0, math.inf), 5, 2)


@given(st.data())
def test_every_value_is_inside_its_interval(data: st.DataObject) -> None:
    """Whatever was drawn, whatever failed, and however far the sizes are from the values."""
    n = data.draw(st.integers(2, 6), label="n")
    numbers = st.floats(0, 1e6).map(lambda value: float(f"{value:.3g}"))
    values = np.array(data.draw(st.lists(numbers, min_size=n, max_size=n), label="values"))
    sizes = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=n, max_size=n), label="sizes")
    order = data.draw(st.permutations(range(n)), label="order")[: data.draw(st.integers(1, n), label="drawn")]
    failed = data.draw(st.sets(st.sampled_from(order), max_size=len(order) - 1), label="failed")
    values[list(failed)] = math.nan
    known = [i for i in order if i not in failed]
    for found in (
        mean_of_draws(values[order], order, sizes),
        mean_of_draws(values[order], order, sizes, ratio=True),
        mean_of_population(values[known], n, missing=len(failed)),
    ):
        low, high = found.interval
        assert low <= found.value <= high
        assert values[known].sum() / n <= low * (1 + 1e-12)
        assert (found.count, found.population) == (len(known), n)


@pytest.mark.parametrize(
    ("values", "drawn", "sizes", "why"),
    [
        ([1.0], [0], [1.0, 0.0], "sizes: one positive finite number"),
        ([1.0], [0], [1.0, math.inf], "sizes: one positive finite number"),
        ([1.0, 2.0], [0, 0], [1.0, 1.0], "name the item of each value, once"),
        ([1.0], [2], [1.0, 1.0], "name the item of each value, once"),
        ([math.nan], [0], [1.0, 1.0], "none of 1 values could be measured"),
    ],
)
def test_senseless_draws_are_refused(values: list[float], drawn: list[int], sizes: list[float], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        mean_of_draws(values, drawn, sizes)


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
    """Log-normal σ = 2 values, known to a factor of e^{±0.5}; 2 000 samples of 12: 95 % within 4 standard errors and 2 points."""
    generator, hits = np.random.default_rng(0), 0
    for _ in range(40):
        values = np.exp(2 * generator.standard_normal(100))
        sizes = (values * np.exp(0.5 * generator.standard_normal(100))) ** 0.8
        sizes += 0.05 * sizes.mean()
        for _ in range(50):
            order = draw(sizes, generator)[:12]
            low, high = mean_of_draws(values[order], order, sizes).interval
            hits += low <= values.mean() <= high
    assert 0.95 - 0.02 - 4 * math.sqrt(0.95 * 0.05 / 2000) < hits / 2000 < 0.99


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
