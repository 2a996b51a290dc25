"""Threads of torch's operations: one for a small model, never more than there are, and as many as before afterwards."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.scaling import Point
from stability import FineTuning, estimators, load, measure, selectors
from stability.training import threads, train
from stability.training.threads import available, mean_product, suited_to


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


DIGITS = load("digits", n=20, seed=0)
ALGORITHM = FineTuning(selectors.BitFit(), steps=2).with_defaults(DIGITS.training)


def test_the_mean_product_is_that_of_hand_counted_layers() -> None:
    point = Point(width=64, tokens=16)
    problem = point.problem(n=16)
    tokens, d, layers = 16 * 16, 64, 4
    heads = d // 32
    dense = 2 * tokens * d * (4 * d + 8 * d)  # query, key, value, output; two of the feed-forward part, four times as wide
    attention = 2 * 2 * 16 * heads * 16 * 16 * (d // heads)
    head = 2 * 16 * d * d + 2 * 16 * d * 2  # pooler and classifier
    products = layers * (6 + 2) + 2
    assert mean_product(problem, point.algorithm) == pytest.approx((layers * (dense + attention) + head) / products)


def test_a_small_model_takes_one_thread_and_a_large_one_all_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with suited_to(DIGITS, ALGORITHM):
        assert torch.get_num_threads() == 1
        assert available() == 2  # replicas are still divided among all
        with suited_to(DIGITS, ALGORITHM):
            assert available() == 2
    assert torch.get_num_threads() == available() == 2
    monkeypatch.setattr(threads, "LARGE", mean_product(DIGITS, ALGORITHM))
    for others, count in ((0.1, 2), (1.0, 1)):  # beside another process, threads would wait for one that is interrupted
        monkeypatch.setattr(threads, "busy_cores", lambda others=others: others)
        with suited_to(DIGITS, ALGORITHM):
            assert torch.get_num_threads() == count


def test_threads_are_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), suited_to(DIGITS, ALGORITHM):
        raise ZeroDivisionError
    assert torch.get_num_threads() == available() == 2


def test_training_and_measuring_say_what_they_took() -> None:
    seen: list[int] = []
    train(DIGITS, ALGORITHM, progress=lambda count: seen.append(torch.get_num_threads()))
    assert seen == [1, 1]
    estimate = measure(DIGITS, ALGORITHM, estimators.Sampled(2))
    assert estimate.threads == 1
    assert estimate.to_dict()["threads"] == 1
    assert torch.get_num_threads() == 2
