"""The mean over tasks of what is compared on each: its interval, its p-value, and what is then tested."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stability.studies.effects import Row, _over_seeds, over_tasks, row
from stability.studies.verdicts import Statement, Verdict


def of_seeds(task: str, values: list[float], what: str = "sam") -> Row:
    return _over_seeds(task, what, np.array(values))


@pytest.mark.parametrize("seed", range(5))
def test_of_two_tasks_it_is_welch_s_test(seed: int) -> None:
    """The mean of two means is 0 if one is the other's negative: Welch (1947) compares these."""
    generator = np.random.default_rng(seed)
    first, second = generator.normal(0.5, 1.0, 5), generator.normal(0.5, 3.0, 3)
    found, *each = over_tasks([of_seeds("cb", [*first]), of_seeds("rte", [*second])])
    welch = stats.ttest_ind(first, -second, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert found["effect"] == pytest.approx((first.mean() + second.mean()) / 2)
    assert found["p"] == pytest.approx(welch.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((interval.low / 2, interval.high / 2))
    assert (found["task"], found["count"], found["over"]) == ("all", 2, "tasks")
    assert [one["task"] for one in each] == ["cb", "rte"]
    assert all(math.isnan(one["p"]) for one in each)


def test_an_interval_over_examples_counts_as_a_normal_one() -> None:
    one = row("cb", "sam", 1.0, 1.0 - 1.959964, 1.0 + 1.959964, 0.32, count=1, over="examples")
    found = next(iter(over_tasks([one, one | {"task": "rte"}])))
    assert found["p"] == pytest.approx(2 * stats.norm.sf(math.sqrt(2)))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.959964 / math.sqrt(2))


def test_what_has_no_end_says_nothing_and_what_is_exact_says_all() -> None:
    known = of_seeds("cb", [1.0, 1.1, 1.2])
    endless = row("rte", "sam", 1.0, -math.inf, math.inf, 1.0, count=1, over="examples")
    found = next(iter(over_tasks([known, endless])))
    assert (found["low"], found["high"], found["p"]) == (-math.inf, math.inf, 1.0)
    exact = [row(task, "sam", 1.0, 1.0, 1.0, 0.0, count=1, over="examples") for task in ("cb", "rte")]
    assert next(iter(over_tasks(exact)))["p"] == 0.0
    exact[1] |= {"effect": -3.0, "low": -3.0, "high": -3.0}
    assert next(iter(over_tasks(exact)))["p"] == 1.0


def test_what_is_compared_on_one_task_stays_as_it_is() -> None:
    rows = [of_seeds("cb", [1.0, 2.0, 3.0], "sam"), of_seeds("rte", [1.0, 2.0, 4.0], "lora")]
    assert list(over_tasks(rows)) == rows


def test_more_tasks_are_no_more_tests() -> None:
    """Eight methods, each clear on one task, stay clear with three more on which they do as well; one by one they would not."""
    values = [-1.0, -1.6, -0.75, -1.3, -0.8]
    claim = Statement(claim="It is smaller.", published="")

    def judged(tasks: tuple[str, ...]) -> Verdict:
        rows = [of_seeds(task, values, f"method {i}") for i in range(8) for task in tasks]
        answer = claim.by_comparisons("difference", over_tasks(rows), smaller=True, needs="")
        assert (answer.supports, answer.of) == (8, 8)
        return answer.verdict

    p = float(stats.ttest_1samp(values, 0).pvalue)
    assert 8 * p < 0.05 < 4 * 8 * p
    assert judged(("cb",)) is judged(("cb", "rte", "cola", "mrpc")) is Verdict.CONFIRMED
