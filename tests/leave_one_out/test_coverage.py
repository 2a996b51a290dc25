"""The packaged table of simulated coverage: what is looked up is what was simulated."""

from __future__ import annotations

import json
import math
from importlib.resources import files

import pytest

from stability.leave_one_out import coverage
from stability.leave_one_out.coverage import simulated_coverage

ROWS = json.loads(files("stability.leave_one_out").joinpath("coverage.json").read_text())["rows"]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_each_entry_is_found_at_its_own_place(row: dict[str, float]) -> None:
    found = simulated_coverage(int(row["n"]), int(row["draws"]), row["correlation"])
    assert found == row["coverage"] if row["samples"] >= 200 else math.isnan(found)


def test_between_entries_the_smaller_one_holds() -> None:
    assert simulated_coverage(150, 12, 0.97) == simulated_coverage(1, 10, 0.95)
    assert simulated_coverage(100, 100, 0.6) == simulated_coverage(1, 40, 0.5)


def test_where_too_few_of_a_size_were_simulated_a_smaller_one_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"n": 1, "draws": 10, "correlation": -1.0, "coverage": 0.9, "samples": 1000},
        {"n": 200, "draws": 10, "correlation": -1.0, "coverage": 0.5, "samples": 199},
        {"n": 200, "draws": 20, "correlation": 0.5, "coverage": 0.97, "samples": 1000},
        {"n": 1, "draws": 20, "correlation": 0.5, "coverage": 0.96, "samples": 1000},
    ]
    monkeypatch.setattr(coverage, "_table", lambda: rows)
    assert simulated_coverage(400, 12, 0.3) == 0.9
    assert simulated_coverage(400, 30, 0.9) == 0.97
    assert simulated_coverage(100, 30, 0.9) == 0.96
    assert math.isnan(simulated_coverage(400, 30, 0.3))


def test_the_table_is_of_enough_draws() -> None:
    assert json.loads(files("stability.leave_one_out").joinpath("coverage.json").read_text())["draws_each"] >= 200
    assert {row["n"] for row in ROWS} == {1, 200}


def test_what_was_not_simulated_is_not_told() -> None:
    assert math.isnan(simulated_coverage(100, 4, 0.99))
    assert math.isnan(simulated_coverage(100, 20, math.nan))
