"""How far a study is: cells of a kind take what others of it took, and the rest what all take in the mean."""

import pytest

from stability.studies.pace import Pace, Progress


def test_what_is_left_follows_from_what_each_kind_took() -> None:
    pace = Pace(["a", "a", "a", "b", "b", "c"], workers=2)
    assert pace.seconds_left() is None
    pace.finished("a", 2.0)
    pace.finished("a", 4.0)
    pace.finished("b", 9.0)
    # One a at 3, one b at 9, and one c, of which nothing is known, at the mean of 3 and 9; two at once.
    assert pace.seconds_left() == pytest.approx((3 + 9 + 6) / 2)
    pace.finished("a", None)  # one that failed at once says nothing of how long others take
    assert pace.seconds_left() == pytest.approx((9 + 6) / 2)
    for kind in "bc":
        pace.finished(kind, 1.0)
    assert pace.seconds_left() == 0


def test_no_more_workers_count_than_cells_are_left() -> None:
    pace = Pace(["a", "a"], workers=8)
    pace.finished("a", 6.0)
    assert pace.seconds_left() == 6.0


def test_a_failed_cell_tells_nothing_of_the_others() -> None:
    pace = Pace(["a", "a", "a"], workers=1)
    pace.finished("a", None)
    assert pace.seconds_left() is None
    pace.finished("a", 6.0)
    assert pace.seconds_left() == 6.0


def test_progress_in_words() -> None:
    assert Progress(0, 72).note == ""
    assert Progress(3, 72, failed=1, seconds_left=130).note == "1 failed, about 2 min left"
    assert Progress(72, 72, seconds_left=0.0).note == ""
