"""The figure of methods beside another's learning rates draws the means that its stores hold, and refuses what it cannot show."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from stability import plotting
from stability.plotting.style import label
from stability.studies import StudyResults
from tests.plotting.test_figures import ROOT

MAIN = StudyResults.read(ROOT / "figures" / "claims" / "claims-stsb.sqlite")
SLOWER = StudyResults.read(ROOT / "figures" / "claims" / "claims-stsb-fit.sqlite")
OTHERS = MAIN.only(MAIN.table["method"] != "full")
FULL = MAIN.where(method="full")


def places(ax: Axes, gid: str) -> np.ndarray:
    """The points of all lines of this name."""
    return np.concatenate([line.get_xydata() for line in ax.lines if line.get_gid() == gid])


@pytest.mark.parametrize(("place", "column"), [(0, "stability"), (1, "gap")])
def test_points_and_line_are_means_over_seeds(place: int, column: str) -> None:
    figure = plotting.against_fit(OTHERS, [SLOWER, FULL])
    ax = figure.axes[place]
    means = [one.table.groupby("algorithm")[["train_loss", column]].mean().to_numpy(float) for one in (SLOWER, FULL, OTHERS)]
    line = np.concatenate(means[:2])
    assert places(ax, "curve") == pytest.approx(line[np.argsort(line[:, 0])])
    every = np.concatenate(means)
    assert np.sort(places(ax, "values"), axis=0) == pytest.approx(np.sort(every, axis=0))
    assert sorted(text.get_text() for text in ax.texts) == sorted(label(method) for method in MAIN.table["method"].unique())
    plotting.closed(figure)


def test_bars_are_students_intervals_over_seeds() -> None:
    figure = plotting.against_fit(OTHERS.where(method="lora"), SLOWER)
    gaps = OTHERS.where(method="lora").table["gap"].astype(float)
    half = 2.776445 * gaps.std(ddof=1) / np.sqrt(5)  # Student's quantile with 4 degrees of freedom
    bars = [path.vertices for one in figure.axes[1].collections if one.get_gid() == "interval" for path in one.get_paths()]
    wanted = [gaps.mean() - half, gaps.mean() + half]
    assert any(bar[:, 1] == pytest.approx(wanted, rel=1e-5) for bar in bars)
    assert "full tuning at 4 learning rates" in figure.get_supxlabel()
    plotting.closed(figure)


@pytest.mark.parametrize(
    ("results", "curve", "told"),
    [
        (OTHERS, FULL, "1 settings of full"),
        (OTHERS, OTHERS, "9 settings of adapter, bitfit"),
        (StudyResults.read(ROOT / "figures" / "claims" / "claims-cb.sqlite"), [SLOWER, FULL], "cb, stsb: draw one task"),
        (StudyResults.read(ROOT / "figures" / "claims" / "claims-stsb-perturbation.sqlite"), SLOWER, "there is no stability"),
    ],
)
def test_what_cannot_be_drawn_is_said(results: StudyResults, curve: StudyResults, told: str) -> None:
    with pytest.raises(plotting.NothingToDrawError, match=told):
        plotting.against_fit(results, curve)
