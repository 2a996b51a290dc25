"""The figure of several masks: its cells are the numbers of the comparison, and it fits three selectors and many."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from stability import Problem, plotting
from stability.leave_one_out import MaskComparison, compare_masks
from stability.plotting import NothingToDrawError
from stability.selectors import SAM, SNIP, Fisher, HeadOnly, LoRA, MagPruning, PaFi, Random, Selector
from tests.plotting.test_figures import by_gid, words

CHANGES = "overlap of the masks of S and Sⁱ and of two seeds"


@pytest.fixture(scope="module")
def three(digits: Problem) -> MaskComparison:
    return compare_masks(digits, [Random(0.03), SAM(0.03), Fisher(0.03)], seeds=2, left_out=3)


def cells(ax: Axes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values of a panel, row by row; NaN where there is none."""
    (image,) = by_gid(ax, "cells")
    return np.ma.filled(np.ma.masked_invalid(image.get_array()), np.nan)


def panels(comparison: MaskComparison) -> dict[str, Axes]:
    return {ax.get_title(loc="left"): ax for ax in plotting.masks(comparison).axes if ax.get_title(loc="left")}


def test_cells_are_shares_and_overlaps(three: MaskComparison) -> None:
    found = panels(three)
    assert list(found) == ["by layer", "by type of tensor", "overlap of two selectors", CHANGES]
    for by, title in (("layer", "by layer"), ("type", "by type of tensor")):
        shares = three.shares(by).set_index(["selector", by])  # type: ignore[arg-type]
        drawn, groups = cells(found[title]), [text.get_text() for text in found[title].get_yticklabels()]
        assert drawn.shape == (len(groups), 4)
        for column, name in enumerate(three.selectors):
            assert drawn[:, column].tolist() == pytest.approx([shares.loc[(name, group), "share"] for group in groups])
        assert drawn[:, 3].tolist() == pytest.approx([shares.loc[("sam", group), "of_model"] for group in groups])
        assert drawn[:, 3].sum() == pytest.approx(1)
    overlaps, chance = three.matrix(), three.matrix("by_chance_in_tensors")
    drawn = cells(found["overlap of two selectors"])
    assert drawn[2, 1] == overlaps.loc["fisher", "sam"]
    assert drawn[1, 2] == chance.loc["fisher", "sam"]
    assert np.isnan(drawn.diagonal()).all()


def test_marks_are_the_means_and_the_least(three: MaskComparison) -> None:
    ax, table = panels(three)[CHANGES], three.table()
    means, least, seeds = ([float(line.get_ydata()[0]) for line in by_gid(ax, gid)] for gid in ("values", "least", "seeds"))
    assert means == table["left_out_mean"].tolist()
    assert least == table["left_out_least"].tolist()
    assert seeds == table["seeds_mean"].tolist()
    assert [line.get_markerfacecolor() == "white" for line in by_gid(ax, "values")] == [True, False, False]
    low, high = ax.get_ylim()
    assert low < min(least + seeds)
    assert high == 1
    said = words(ax.figure)  # type: ignore[arg-type]
    assert "mean over 3 of the examples, each left out once" in said
    assert "n = 24 · 2 seeds" in said


def test_what_rounding_does_is_drawn_where_it_does_something(three: MaskComparison) -> None:
    assert not by_gid(panels(three)[CHANGES], "rounding")
    rounding = pd.DataFrame({"selector": ["sam", "sam"], "seed": [0, 1], "overlap": [0.9, 0.8]})
    figure = plotting.masks(dataclasses.replace(three, rounding=rounding))
    (line,) = [artist for ax in figure.axes for artist in by_gid(ax, "rounding")]
    assert line.get_segments()[0][:, 1].tolist() == pytest.approx([0.85, 0.85])
    assert "Grey lines: what rounding alone leaves." in words(figure)


def test_what_was_not_computed_is_left_out(digits: Problem) -> None:
    assert list(panels(compare_masks(digits, [SAM(0.03)], left_out=0))) == ["by layer", "by type of tensor"]
    one = panels(compare_masks(digits, [SAM(0.03)], left_out=2))
    assert [text.get_text() for text in one["overlap of the masks of S and Sⁱ"].get_xticklabels()] == ["SAM"]
    assert "overlap of two selectors" in panels(compare_masks(digits, [SAM(0.03), HeadOnly()], left_out=0))
    with pytest.raises(NothingToDrawError, match="no mask has a coordinate"):
        plotting.masks(compare_masks(digits, [HeadOnly()], left_out=0))


def test_the_column_of_all_parameters_is_the_model_without_what_a_method_inserts(digits: Problem) -> None:
    plain = compare_masks(digits, [MagPruning(0.03)], left_out=0)
    for selectors in ([MagPruning(0.03), LoRA(rank=4)], [LoRA(rank=4)]):
        found = panels(compare_masks(digits, selectors, left_out=0))
        for by in ("layer", "type"):
            ax = found[f"by {by}{'' if by == 'layer' else ' of tensor'}"]
            drawn = dict(zip([text.get_text() for text in ax.get_yticklabels()], cells(ax)[:, -1], strict=True))
            known = {name: share for name, share in drawn.items() if not np.isnan(share)}
            assert known == pytest.approx(plain.shares(by).set_index(by)["of_model"].to_dict())
            assert sum(known.values()) == pytest.approx(1)
            assert by == "layer" or len(known) < len(drawn)


def test_a_comparison_draws_itself(three: MaskComparison) -> None:
    before = plt.get_fignums()
    figure = three.plot()
    assert plt.get_fignums() == before
    assert words(figure) == words(plotting.masks(three))


def test_many_selectors_and_inserted_modules_have_room(digits: Problem) -> None:
    selectors: list[Selector] = [kind(p) for kind in (Random, SAM, SNIP, MagPruning, PaFi) for p in (0.01, 0.02, 0.03, 0.04)]
    comparison = compare_masks(digits, [*selectors, LoRA(rank=2)], left_out=0)
    figure = plotting.masks(comparison)
    figure.draw_without_rendering()
    assert "Grey: nothing to compare, for a method inserts modules." in words(figure)
    for ax in figure.axes[:3]:
        rows = [text.get_window_extent() for text in ax.get_yticklabels()]
        assert all(one.y0 >= other.y1 - 1 for one, other in pairwise(rows))
    columns = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert len(columns) == 22
    assert all(one.x1 <= other.x0 + 1 for one, other in pairwise(columns))
