"""The figure of methods beside another's learning rates draws the means that its stores hold, and refuses what it cannot show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from scipy import stats

from benchmarks import claims
from stability import UsageError, plotting
from stability.plotting.style import label, styles
from stability.studies import StudyResults
from tests.plotting.test_figures import ROOT


def stored(name: str) -> StudyResults:
    return StudyResults.read(ROOT / "figures" / "claims" / f"claims-{name}.sqlite")


MAIN, SLOWER = stored("stsb"), stored("stsb-fit")
FULL = MAIN.where(method="full")


def means(table: pd.DataFrame, column: str) -> dict[str, tuple[float, float]]:
    """Geometric means of the training loss and of a column, by the setting."""
    known = table.dropna(subset=column).astype({"train_loss": float, column: float})
    return {str(name): (stats.gmean(some["train_loss"]), stats.gmean(some[column])) for name, some in known.groupby("algorithm")}


def drawn(results: StudyResults, curve: Any) -> list[dict[str, Any]]:
    """What both panels hold: the line, the points by their colour, and the bars by theirs."""
    figure = plotting.against_fit(results, curve)
    panels = []
    for ax in figure.axes:
        lines = {gid: [one for one in ax.lines if one.get_gid() == gid] for gid in ("curve", "values")}
        bars = [one for one in ax.collections if isinstance(one, LineCollection)]
        panels.append(
            {
                "curve": lines["curve"][0].get_xydata(),
                "points": [(to_hex(str(one.get_color())), *np.asarray(one.get_xydata())[0]) for one in lines["values"]],
                "bars": [(to_hex(np.asarray(one.get_edgecolor())[0]), path.vertices) for one in bars for path in one.get_paths()],
                "names": {(text.get_text(), to_hex(str(text.get_color()))) for text in ax.texts},
                "note": figure.get_supxlabel(),
            }
        )
    plotting.closed(figure)
    return panels


@pytest.mark.parametrize(("place", "column"), [(0, "stability"), (1, "gap")])
def test_points_and_line_are_means_over_seeds(place: int, column: str) -> None:
    panel = drawn(MAIN, [SLOWER, FULL])[place]
    line = sorted([*means(SLOWER.table, column).values(), *means(FULL.table, column).values()])
    assert panel["curve"] == pytest.approx(np.array(line))
    style = styles(MAIN.table["method"].unique())
    methods = dict(zip(MAIN.table["algorithm"], MAIN.table["method"], strict=True))
    others = MAIN.only(MAIN.table["method"] != "full").table
    wanted = [(to_hex(style[methods[name]][0]), *at) for name, at in means(others, column).items()]
    wanted += [(to_hex(style["full"][0]), *at) for at in line]
    for found, expected in zip(sorted(panel["points"]), sorted(wanted), strict=True):
        assert found == pytest.approx(expected)
    assert panel["names"] == {(label(name), to_hex(style[name][0])) for name in style}


@pytest.mark.parametrize(("place", "column"), [(0, "stability"), (1, "gap")])
def test_bars_are_students_intervals_of_logarithms(place: int, column: str) -> None:
    panel = drawn(MAIN.where(method=["lora", "sam"]), SLOWER)[place]
    assert len(panel["bars"]) == 2 + 4
    for method in ("lora", "sam"):
        logs = np.log(MAIN.where(method=method).table[column].astype(float))
        wanted = np.exp(stats.t.interval(0.95, len(logs) - 1, logs.mean(), logs.std(ddof=1) / np.sqrt(len(logs))))
        ((_, bar),) = [one for one in panel["bars"] if one[0] == to_hex(styles([method])[method][0])]
        assert bar[:, 1] == pytest.approx(np.array(wanted))
        assert bar[0, 0] == pytest.approx(stats.gmean(MAIN.where(method=method).table["train_loss"].astype(float)))
    assert "full tuning in 4 settings" in panel["note"].replace("\n", " ")
    assert "95 % interval over 5 seeds" in panel["note"].replace("\n", " ")


def test_only_seeds_that_were_measured_count() -> None:
    """A training loss belongs to the stability beside it: at several p four of five seeds have none."""
    swept = stored("stsb-sparsity")
    first = swept.where(method="sam")
    panel = drawn(first, [SLOWER, FULL])[0]
    colour = to_hex(styles(["sam"])["sam"][0])
    wanted = sorted(means(first.where(seed=0).table, "stability").values())
    assert sorted(one[1:] for one in panel["points"] if one[0] == colour) == [pytest.approx(one) for one in wanted]
    assert not [one for one in panel["bars"] if one[0] == colour]
    assert "over 5 seeds" in panel["note"].replace("\n", " ")
    assert "Fewer than 3 seeds give no interval." in panel["note"].replace("\n", " ")
    assert {name for name, at in panel["names"] if at == colour} == {
        f"SAM, {100 * p:.2g} %" for p in first.table["sparsity"].unique()
    }


LOSS = MAIN.table["train_loss"].where(MAIN.table["method"] != "lora", 0.0)


@pytest.mark.parametrize(
    ("results", "curve", "told"),
    [
        (MAIN, FULL, "one run of full"),
        (MAIN, [FULL, FULL], "one run of full"),
        (MAIN, [], "the curve has no results"),
        (MAIN, MAIN, "runs of adapter, bitfit"),
        (MAIN, stored("stsb-sparsity").where(method="sam"), "runs at p = 0.0005"),
        (stored("stsb-perturbation"), SLOWER, "no stability of a method"),
        (FULL, [SLOWER, FULL], "no stability of a method"),
        (stored("cb"), [SLOWER, FULL], "cb, stsb: draw one task"),
        (replace(MAIN, table=MAIN.table.assign(train_loss=LOSS)), SLOWER, "train_loss = 0 in study 'claims-stsb'"),
    ],
)
def test_what_cannot_be_drawn_is_said(results: StudyResults, curve: Any, told: str) -> None:
    with pytest.raises((plotting.NothingToDrawError, UsageError), match=told):
        plotting.against_fit(results, curve)
    assert not plt.get_fignums()


def test_the_page_s_figure_is_drawn_once_both_studies_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RUNS", ROOT / "figures" / "claims")
    monkeypatch.setattr(claims, "KEPT", tmp_path / "claims")
    claims.draw_beside_full_tuning("cb")  # there is no full tuning at smaller learning rates
    assert not [*tmp_path.iterdir()]
    claims.draw_beside_full_tuning("stsb")
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["claims-stsb_stsb_against_fit.pdf", "claims-stsb_stsb_against_fit.png"]
    assert all((ROOT / "figures" / name).exists() for name in written)
