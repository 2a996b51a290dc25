"""Stores of an older version: what they measured is kept, and what they estimated is estimated anew."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stability import FineTuning, estimators, selectors
from stability.problems.problem import generator
from stability.studies import Store, Study, StudyResults, run
from tests.studies.older import write_older

STUDY = Study(
    "old",
    "digits",
    (FineTuning(selectors.BitFit(), steps=3), FineTuning(selectors.Random(0.05), steps=3)),
    seeds=(0,),
    problem_settings={"n": 20},
    estimator=estimators.Assisted(5),
    check_replicas=0,
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old") / "old.sqlite"
    run(STUDY, path, device="cpu", workers=1)
    return path


def aged(stored: Path, path: Path) -> bytes:
    """The store as an older version would have left it: other estimates of the same draws."""

    def change(record: dict[str, Any]) -> dict[str, Any]:
        old = {name: value for name, value in record.items() if name not in ("stability_low", "stability_high", "failed_replicas")}
        old |= {"stability": 9.0, "stability_interval": [8.0, None], "stability_error": None, "theorem_2_measured": 99.0}
        return old | {"variance_cut": 0.5, "failed": {}}

    return write_older(path, stored, 4, change)


def same(found: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]]) -> None:
    """Equal, but that the bound's empirical risk is a mean of the same losses in another order."""
    for one, other in zip(found, truth, strict=True):
        bound = "theorem_2_measured"
        assert {**one, bound: None} == {**other, bound: None}
        assert one[bound] == pytest.approx(other[bound], rel=1e-6)


def test_an_older_store_is_read_as_if_it_were_new(stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    before = aged(stored, path)
    same(Store(path).records(), Store(stored).records())
    assert StudyResults.read(path).table["stability"].tolist() == StudyResults.read(stored).table["stability"].tolist()
    assert path.read_bytes() == before  # who only reads leaves it as it is


def test_a_study_goes_on_in_an_older_store(stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    aged(stored, path)
    assert len(run(STUDY, path, device="cpu", workers=1).table) == 2
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT format FROM study").fetchone() == (7,)
    connection.close()
    records = Store(path).records()
    same(records, Store(stored).records())
    assert records[0]["stability"] != 9.0


def test_a_store_that_an_older_version_wrote(tmp_path: Path) -> None:
    """Two cells of MiniLM in format 4, of four retrainings each: the estimates are those of the formula, written out here."""
    path = tmp_path / "old.sqlite"
    path.write_bytes(Path("tests/studies/format-4.sqlite").read_bytes())
    connection = sqlite3.connect(path)
    old = [json.loads(text) for (text,) in connection.execute("SELECT record FROM cells ORDER BY rowid")]
    connection.close()
    new = Store(path).records()
    assert len(new) == 2
    for before, after in zip(old, new, strict=True):
        q = np.abs(before["prediction"]["difference"])
        sizes = q**0.8 + 0.05 * (q**0.8).mean()
        clocks = np.random.default_rng(generator(0, "plan").initial_seed()).standard_exponential(len(q)) / sizes
        first = np.argsort(clocks)[:4]
        assert first.tolist() == [row["index"] for row in before["per_example"]]
        y, p = np.abs([row["difference"] for row in before["per_example"]]), -np.expm1(-sizes[first] * np.sort(clocks)[4])
        q = q + q.mean() / 100
        weights, residuals = 1 / p + (q.sum() - (q[first] / p).sum()) / q[first].sum(), y - q[first] * y.sum() / q[first].sum()
        value, n = (weights * y).sum() / len(q), len(q)
        v, m = 4 / 3 * ((1 - p) * (weights * residuals) ** 2).sum() / n**2, (residuals**2).sum() / 3 * (n - 4) / n**2
        t = stats.t.ppf(0.975, 3) / value
        low, high = value * np.exp(-t * np.sqrt(v + m / 5)), value * np.exp(t * np.sqrt(2.5 * v + m / 3))
        assert after["stability"] == pytest.approx(value, rel=1e-9) != before["stability"]
        assert [after["stability_low"], after["stability_high"]] == pytest.approx([max(low, y.sum() / n), high], rel=1e-9)
        unchanged = ("correlation", "hypothesis_stability", "maximum", "test_loss", "theorem_1_state")
        assert [after[name] for name in unchanged] == [before[name] for name in unchanged]


def test_what_was_drawn_alike_is_left_as_it_is(tmp_path: Path) -> None:
    """The committed study of the discontinuity drew its examples uniformly: its estimates are those that it was stored with."""
    source = Path("figures/discontinuity.sqlite")
    path = tmp_path / "old.sqlite"
    path.write_bytes(source.read_bytes())
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE study SET format = 4")
    connection.close()
    assert Store(path).records() == Store(source).records()
