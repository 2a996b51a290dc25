"""The choice of learning rates on the validation split: ties, rates that fail or learn nothing, unfinished searches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from stability import FineTuning, UsageError
from stability.selectors import SAM, FullTuning
from stability.studies import Study, StudyResults, chosen_rates
from stability.studies.identity import key
from stability.studies.results import CellStatus

RATES = (1e-4, 1e-3, 1e-2)


def results(cells: Mapping[Any, Mapping[str, Any] | None], rates: tuple[float, ...] = RATES) -> StudyResults:
    """Of a search on one task whose cells have these values; None: the cell failed, and a cell that is not named is missing."""
    selectors = dict.fromkeys(selector for selector, _ in cells)
    algorithms = tuple(FineTuning(selector, steps=2, learning_rate=rate) for selector in selectors for rate in rates)
    study = Study("search", "digits", algorithms, (0,), problem_settings={"n": 20}, measured_seeds=0, check_replicas=None)
    rows = []
    for algorithm in study.algorithms:
        assert isinstance(algorithm, FineTuning)
        place = algorithm.selector, algorithm.learning_rate
        if place not in cells:
            continue
        found = cells[place]
        row = {"task": "digits", "method": algorithm.name, "algorithm": key(algorithm.settings())[:12], "seed": 0}
        usual = {"validation_loss": 1.0, "validation_constant": 0.5, "test_metric": 0.6, "train_loss": 0.1}
        rows.append(row | ({"status": CellStatus.FAILED} if found is None else {"status": CellStatus.OK, **usual, **found}))
    named = {key(one.settings())[:12]: {**one.settings(), "method": one.name} for one in study.algorithms}
    return StudyResults(table=pd.DataFrame(rows), study="search", identity=study.identity(), tasks=("digits",), algorithms=named)


FULL, SPARSE = FullTuning(), SAM(0.05)


def one(cells: Mapping[float, Mapping[str, Any] | None], **how: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = (
        chosen_rates(results({(FULL, rate): value for rate, value in cells.items()}, **how)).table.iloc[0].to_dict()
    )
    return found


def test_the_largest_metric_wins_then_the_smallest_loss_then_the_smallest_rate() -> None:
    same = {"validation_metric": 0.8}
    assert one({1e-4: {"validation_metric": 0.7}, 1e-3: same, 1e-2: {"validation_metric": 0.6}})["learning_rate"] == 1e-3
    assert one({1e-4: same, 1e-3: same | {"validation_loss": 0.9}, 1e-2: same})["learning_rate"] == 1e-3
    assert one(dict.fromkeys(RATES, same))["learning_rate"] == 1e-4
    rounded = {"validation_metric": 0.8 + 1e-12, "validation_loss": 2.0}  # no better than the same metric with a smaller loss
    assert one({1e-4: same, 1e-3: rounded, 1e-2: rounded})["learning_rate"] == 1e-4


def test_a_choice_inside_the_rates_that_learned_says_so() -> None:
    found = one({1e-4: {"validation_metric": 0.7}, 1e-3: {"validation_metric": 0.8}, 1e-2: {"validation_metric": 0.6}})
    assert (found["learned"], found["edge"], found["missing"]) == (True, False, 0)
    assert found["verdict"] == "better than a constant prediction"


def test_an_edge_is_told() -> None:
    rising = {rate: {"validation_metric": 0.6 + place / 10} for place, rate in enumerate(RATES)}
    assert one(rising)["verdict"] == "the best rate is the largest that trained"
    assert one({**rising, 1e-2: None})["verdict"] == "the best rate is the largest that trained"
    assert one({**rising, 1e-4: {"validation_metric": 0.99}})["verdict"] == "the best rate is the smallest that trained"


def test_where_no_rate_beats_the_commonest_class_the_search_found_nothing() -> None:
    found = one({rate: {"validation_metric": 0.5} for rate in RATES})
    assert not found["learned"]
    assert found["verdict"].startswith("nothing found: no rate is better than a constant prediction")
    assert found["learning_rate"] == 1e-4


def test_a_rate_that_diverged_is_not_chosen_and_stands_in_the_curve() -> None:
    lost = {"validation_metric": 0.9, "validation_loss": math.nan}
    searched = chosen_rates(results({(FULL, 1e-4): {"validation_metric": 0.7}, (FULL, 1e-3): lost, (FULL, 1e-2): None}))
    assert searched.table["learning_rate"].tolist() == [1e-4]
    assert searched.curves["failed"].tolist() == [0, 1, 1]
    told = "0.0001: 0.700 (loss 1), 0.001: diverged or failed, 0.01: diverged or failed"
    assert searched.curve("digits", "full") == told
    all_lost = one(dict.fromkeys(RATES, lost))
    assert math.isnan(all_lost["learning_rate"])
    assert all_lost["verdict"] == "no rate gave a finite loss"


def test_an_unfinished_search_counts_what_is_missing() -> None:
    searched = chosen_rates(results({(FULL, 1e-3): {"validation_metric": 0.7}, (SPARSE, 1e-4): {"validation_metric": 0.6}}))
    assert searched.table[["method", "missing"]].to_numpy().tolist() == [["full", 2], ["sam", 2]]
    assert "2 of 3 rates are missing" in searched.table["verdict"][0]
    assert searched.curve("digits", "full") == "0.0001: missing, 0.001: 0.700 (loss 1), 0.01: missing"
    begun = results({(FULL, 1e-3): {"validation_metric": 0.7}})
    empty = chosen_rates(replace(begun, table=begun.table[:0]))
    assert empty.table["verdict"].tolist() == ["no rate was tried yet"]
    assert empty.curve("digits", "full") == "0.0001: missing, 0.001: missing, 0.01: missing"


def test_pairs_are_as_a_protocol_takes_them() -> None:
    many = {(SAM(p), rate): {"validation_metric": 0.7 + p} for p in (0.05, 0.1) for rate in RATES}
    searched = chosen_rates(results({**many, (FULL, 1e-3): {"validation_metric": 0.7}}))
    assert searched.pairs("digits") == (("sam@0.05", 1e-4), ("sam@0.1", 1e-4), ("full", 1e-3))
    assert searched.curve("digits", "sam", 0.1).startswith("0.0001: 0.800")


def test_a_study_without_a_validation_split_is_refused() -> None:
    with pytest.raises(UsageError, match="no validation metric: search on data with a validation split"):
        chosen_rates(results({(FULL, 1e-3): {"validation_metric": None}}))
