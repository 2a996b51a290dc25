"""Stability where the training loss is equal, against curves that are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stability import UsageError
from stability.studies import StudyResults, at_equal_training_loss
from tests.studies.test_claims import results

SCALES = np.array([1.0, 2.0, 0.5, 1.5])  # of the curve of each seed
SLOPE = -0.7


def on_curve(loss: float, ratios: Any = 1.0) -> list[float]:
    return [float(one) for one in SCALES * loss**SLOPE * np.asarray(ratios)]


def curve(*losses: float) -> list[StudyResults]:
    """Full tuning with training losses that come from as many learning rates."""
    return [results({"full": {"train_loss": loss, "stability": on_curve(loss)}}).where(method="full") for loss in losses]


def compared(**methods: dict[str, Any]) -> pd.DataFrame:
    mine = results(methods).where(method=list(methods))
    return at_equal_training_loss(mine, curve(2.0, 0.1, 0.5)).set_index("method")


def test_the_ratio_is_to_the_curve_at_the_methods_own_training_loss() -> None:
    ratios = np.array([0.4, 0.5, 0.6, 0.45])
    table = compared(
        random={"train_loss": 0.3, "stability": on_curve(0.3, ratios)},
        sam={"train_loss": 1.7, "stability": on_curve(1.7, [1.1, 0.9, 1.05, 0.95])},
    )
    assert table.index.tolist() == ["random", "sam"]
    found, logs = table.loc["random"], np.log(ratios)
    half = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    np.testing.assert_allclose(
        found[["ratio", "low", "high"]].astype(float), np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    )
    alone = [stats.ttest_1samp(np.log(each), 0).pvalue for each in (ratios, [1.1, 0.9, 1.05, 0.95])]
    np.testing.assert_allclose(table["p_value"].tolist(), [2 * float(alone[0]), float(alone[1])])  # Holm's correction of two
    assert (found["train_loss"], found["seeds"], found["outside"]) == (pytest.approx(0.3), 4, 0)


def test_what_lies_outside_the_curve_is_not_compared() -> None:
    losses = [0.3, 0.05, 3.0, 2.5]
    table = compared(
        random={"train_loss": losses, "stability": 1.0},
        sam={"train_loss": 0.01},
        magnitude={"train_loss": 0.1, "stability": on_curve(0.1)},
    )
    row: Any = table.loc["random"]
    assert (row["seeds"], row["outside"]) == (1, 3)
    assert row["ratio"] == pytest.approx(1 / on_curve(0.3)[0])
    assert math.isnan(row["low"])
    assert math.isnan(row["p_value"])
    assert table["ratio"].isna().tolist() == [False, False, True]
    assert table.loc["magnitude", "ratio"] == pytest.approx(1.0)  # on its end


def test_the_curve_is_of_one_method_at_several_rates() -> None:
    mine = results({}).where(method="random")
    with pytest.raises(UsageError, match="the curve has runs of childpruning, .*full.*: use those of one method"):
        at_equal_training_loss(mine, results({}))
    with pytest.raises(UsageError, match="the curve has one run of full with each seed: use two learning rates or more"):
        at_equal_training_loss(mine, curve(0.5))
    with pytest.raises(UsageError, match="gap = -0.1 in study 'made' has no logarithm"):
        at_equal_training_loss(results({"random": {"gap": -0.1}}).where(method="random"), curve(0.5, 1.0), column="gap")
    with pytest.raises(UsageError, match="column = 'gaps': the results have no such column"):
        at_equal_training_loss(mine, curve(0.5, 1.0), column="gaps")


def test_other_seeds_of_the_curve_do_not_count() -> None:
    first, second = curve(0.1, 2.0)
    two = [first, second.only(second.table["seed"] < 2)]  # the other seeds have one run, which is no curve
    mine = results({"random": {"train_loss": 0.3, "stability": on_curve(0.3, 0.5)}}).where(method="random")
    (row,) = at_equal_training_loss(mine, two).to_dict("records")
    assert (row["seeds"], row["outside"]) == (2, 0)
    assert row["ratio"] == pytest.approx(0.5)


def test_runs_of_the_curve_are_left_out_and_repeated_ones_count_once() -> None:
    mine = results({"random": {"train_loss": 0.3}, "full": {"train_loss": 0.5, "stability": on_curve(0.5)}})
    full, (other,) = mine.where(method="full"), curve(0.1)
    table = at_equal_training_loss(mine, [full, full, other])
    assert "full" not in set(table["method"])
    with pytest.raises(UsageError, match="the curve has one run of full with each seed"):
        at_equal_training_loss(mine, [full, full])
    with pytest.raises(UsageError, match="the curve has no results"):
        at_equal_training_loss(mine, [])
    several = results({}, sparsities=(0.1, 0.2)).where(method="random")
    with pytest.raises(UsageError, match=r"the curve has runs at p = 0\.1, 0\.2: use one p"):
        at_equal_training_loss(mine, several)


def test_where_s_is_drawn_apart_each_s_counts_once() -> None:
    """Four runs of two S: the interval is over the S, and no run is compared with the curve of another S."""
    ratios = np.array([0.4, 0.5, 0.7, 0.9])

    def sampled(one: StudyResults) -> StudyResults:
        return replace(one, table=one.table.assign(sample=one.table["seed"] // 2, seed=one.table["seed"] % 2))

    mine = sampled(results({"random": {"train_loss": 0.3, "stability": on_curve(0.3, ratios)}}).where(method="random"))
    (row,) = at_equal_training_loss(mine, [sampled(one) for one in curve(0.1, 2.0)]).to_dict("records")
    logs = np.log(ratios).reshape(2, 2).mean(1)
    half = stats.t.ppf(0.975, 1) * logs.std(ddof=1) / math.sqrt(2)
    assert (row["seeds"], row["outside"]) == (4, 0)
    found = [row[name] for name in ("ratio", "low", "high")]
    assert found == pytest.approx(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]).tolist())
