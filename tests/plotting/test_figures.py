"""What figures show: the numbers of the summary, at most six lines a panel, and in words what bars are."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stability import FineTuning, Mask, Minimisation, Problem, StabilityEstimate, Study, StudyResults, load, measure, plotting
from stability.bounds import sgd_convex
from stability.leave_one_out.estimators import Assisted, Exact, Sampled
from stability.leave_one_out.perturbations import FlipLabel, LeaveGroupOut, ReplaceOne
from stability.plotting import _scored, _swept
from stability.plotting.curves import Block, Curve
from stability.plotting.grids import _across, fitted
from stability.plotting.style import _spread, label
from stability.selectors import SAM, BitFit, FullTuning, Random

ROOT = Path(__file__).parents[2]
STORES = sorted(path.stem for path in ROOT.glob("figures/*.sqlite"))


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def stored(name: str) -> StudyResults:
    return StudyResults.read(ROOT / "figures" / f"{name}.sqlite")


def words(figure: Figure) -> str:
    """Everything that is written in a figure, in one line."""
    texts = [figure.get_suptitle(), figure.get_supxlabel()]
    texts += [text.get_text() for ax in figure.axes for text in [*ax.texts, ax.xaxis.label, ax.yaxis.label]]
    texts += [ax.get_title(loc="left") for ax in figure.axes]
    return " ".join(" ".join(texts).split())


def by_gid(ax: Axes, gid: str) -> list[Any]:
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def intervals(figure: Figure) -> int:
    """How many bars are drawn."""
    bars = [artist for ax in figure.axes for artist in by_gid(ax, "interval")]
    return sum(len(bar.get_segments()) if isinstance(bar, LineCollection) else 1 for bar in bars)


def widths(figure: Figure) -> list[float]:
    return [bar.get_width() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]


def joined(ax: Axes) -> set[Any]:
    """The lines of a panel that stand out: by colour, and filled or hollow."""
    drawn = [line for line in ax.lines if np.size(line.get_xdata()) > 1 and line.get_linestyle() != "None"]
    assert len(ax.lines) >= len(drawn)
    return {(str(line.get_color()), line.get_gid() == "values" and str(line.get_markerfacecolor()) == "white") for line in drawn}


@pytest.mark.parametrize("name", STORES)
def test_no_panel_of_a_committed_study_has_more_than_six_lines(name: str) -> None:
    results = stored(name)
    figures = 0
    for kind, *_, draw in [*_swept(results, None), *_scored(results, None, None, None)]:
        try:
            figure = draw()
        except plotting.NothingToDrawError:
            continue
        figures += 1
        assert figure.axes
        for ax in figure.axes:
            assert ax.has_data(), f"{kind}: an empty panel"
            if kind != "projection_discontinuity":
                assert len(joined(ax) - {("black", False)}) <= 6, kind
        told = words(figure)
        assert (intervals(figure) > 0) == bool(re.search("Bars.*95 %|95 % interval", told)) or kind == "ranks", kind
        assert results.study in told
        plt.close(figure)
    assert figures >= 2


def test_every_method_has_its_panel_with_the_summarys_numbers() -> None:
    results = stored("digits")
    summary = results.summary().table
    figure = plotting.stability(results)
    shown = 0
    for ax in figure.axes:
        for method, mine in summary.groupby("method"):
            if ax.get_title(loc="left") != label(str(method)):
                continue
            shown += 1
            (line,) = by_gid(ax, "values")
            np.testing.assert_allclose(line.get_xdata(), mine["sparsity"])
            np.testing.assert_allclose(line.get_ydata(), mine["stability"])
            (bars,) = by_gid(ax, "interval")
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            np.testing.assert_allclose(ends, mine[["stability_low", "stability_high"]])
            assert len(by_gid(ax, "context")[0].get_segments()) == 7
            ticks = [*ax.get_xticks(), *ax.get_xticks(minor=True)]
            np.testing.assert_allclose(sorted(ticks), mine["sparsity"])
    assert shown == 8
    single = [ax for ax in figure.axes if ax.get_title(loc="left") == "one p each"]
    assert [text.get_text() for text in single[0].get_xticklabels()] == ["full\ntuning\n100 %", "BitFit\n3.5 %", "Mixout\n100 %"]
    assert "95 % interval of the mean over 5 seeds" in words(figure)


def test_six_panels_show_a_sweep_on_one_page() -> None:
    results = stored("theory-convex")
    mine = results.summary().table.query("method == 'random'").sort_values("sparsity")
    axes = plotting.six_panels(results).axes
    columns = ("test_metric", "train_metric", "test_metric_std", "test_loss", "gap", "stability")
    assert len(axes) == len(columns)
    with pytest.raises(plotting.NothingToDrawError, match="no method has several p: there is no sweep to draw"):
        plotting.six_panels(stored("paper-quick").where(task="cb"))
    for ax, column in zip(axes, columns, strict=True):
        drawn = [np.asarray(line.get_ydata(), dtype=float) for line in by_gid(ax, "values")]
        assert any(len(y) == len(mine) and np.allclose(y, mine[column]) for y in drawn), column


def test_intervals_of_means_are_students_over_seeds() -> None:
    results = stored("theory-convex")
    test, train, gap = plotting.generalization(results).axes
    mine = results.table[results.table["method"] == "random"]
    cells = mine.groupby("algorithm", sort=False)
    assert [text.get_text() for ax in (test, train) for text in ax.texts] == []  # the names stand once, at the right
    for ax, column in ((test, "test_loss"), (train, "train_loss"), (gap, "gap")):
        line = [line for line in by_gid(ax, "values") if line.get_color() == "#0072B2"]
        np.testing.assert_allclose(line[0].get_ydata(), cells[column].mean())
        bars = [bar for bar in by_gid(ax, "interval") if np.allclose(bar.get_color()[0][:3], to_rgb("#0072B2"))]
        half = 2.7764451 * cells[column].std() / np.sqrt(5)
        ends = np.array([segment[:, 1] for segment in bars[0].get_segments()])
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * half, rtol=1e-6)
    assert {text.get_text() for text in gap.texts} == {"random", "SAM", "all, ridge 1 − p"}


@pytest.mark.parametrize("kind", ["stability", "generalization", "four_panels", "gap_against_stability", "bounds"])
def test_two_seeds_give_no_interval_and_one_seed_says_its_own(kind: str) -> None:
    two = stored("digits").where(seed=[0, 1], method=["sam", "random", "full"])
    figure = plotting.FIGURES[kind](two)
    assert intervals(figure) == 0
    assert "Two seeds give no interval." in words(figure)
    assert "Bars" not in words(figure)
    if kind == "four_panels":  # no standard deviation of two
        assert [ax.get_title(loc="left") for ax in figure.axes] == ["test, mean", "train, mean"]
        assert "A standard deviation is drawn of three seeds or more." in words(figure)
    alone = plotting.FIGURES[kind](two.where(seed=0))
    assert "seed 0" in words(alone)
    if kind in ("stability", "gap_against_stability", "bounds"):
        assert intervals(alone) == 11
        assert "Bars of stability with one seed: 95 % intervals over the choice of the examples that are left out." in words(alone)
    else:
        assert intervals(alone) == 0
        assert "One seed gives no interval." in words(alone)


def test_some_seeds_more_than_others() -> None:
    """While results arrive: bars of those with three or more, and the count says so."""
    results = stored("digits").where(method=["sam", "random"])
    table = results.table
    part = results.only((table["method"] == "sam") | (table["seed"] < 2))
    figure = plotting.stability(part)
    assert intervals(figure) == 5
    assert "over 5 seeds. Two seeds give no interval." in words(figure)


def test_axes_fit_values_that_are_all_equal() -> None:
    results = stored("theory-digits").where(method="sam")
    table = results.table.assign(gap=0.3, test_metric=1.0, train_metric=1.0, test_loss=0.0, train_loss=0.0)
    same = dataclasses.replace(results, table=table)
    for kind in ("generalization", "four_panels", "gap_against_stability", "stability"):
        for ax in plotting.FIGURES[kind](same).axes:
            low, high = ax.get_ylim()
            assert high > low
            for line in by_gid(ax, "values"):
                y = np.asarray(line.get_ydata() if hasattr(line, "get_ydata") else line.get_offsets()[:, 1], dtype=float)
                assert ((low <= y) & (y <= high)).all()
            assert high - low < 2


def test_each_method_is_named_once_in_gap_against_stability() -> None:
    """By a legend if it has several points in a common panel, and otherwise beside its point or above its panel."""
    several = stored("digits").where(method=["sam", "random", "full"])
    for results in (several, stored("digits"), stored("paper-quick").where(task="cb"), several.where(method="sam")):
        figure = plotting.gap_against_stability(results)
        legends = [legend for part in figure.subfigs for legend in part.legends]
        told = [text.get_text() for legend in legends for text in legend.get_texts()]
        told += [text.get_text() for ax in figure.axes for text in ax.texts] + [ax.get_title(loc="left") for ax in figure.axes]
        wanted = {label(method) for method in results.table["method"].unique()}
        assert sorted(filter(None, told)) == sorted(wanted)
        assert bool(legends) == (results is several)


def test_with_one_p_each_method_has_a_row() -> None:
    results = stored("paper-quick").where(task="rte")
    summary = results.summary().table
    (ax,) = plotting.stability(results).axes
    drawn = [float(line.get_xdata()[0]) for line in by_gid(ax, "values")]
    np.testing.assert_allclose(drawn, summary["stability"])
    assert ax.get_xscale() == "log"
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names[:3] == ["full tuning, 100 %", "random, 0.5 %", "Mixout, 100 %"]
    (one,) = plotting.stability(results.where(method="sam")).axes
    assert len(by_gid(one, "values")) == 1


def test_a_method_without_a_p_goes_across_and_no_line_is_lost() -> None:
    results = stored("digits").where(method=["sam", "random", "bitfit"])
    table = results.table
    bare = table["method"] == "bitfit"
    table = table.assign(sparsity=table["sparsity"].mask(bare, 0.0), method=table["method"].mask(bare, "head-only"))
    figure = plotting.stability(dataclasses.replace(results, table=table))
    (ax,) = figure.axes
    (line,) = by_gid(ax, "across")
    values = table.loc[bare, "stability"].to_numpy(dtype=float)
    assert line.get_ydata()[0] == pytest.approx(values.mean())
    (band,) = [artist for artist in by_gid(ax, "interval") if isinstance(artist, Rectangle)]
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx([values.mean() - half, values.mean() + half])
    assert {text.get_text() for text in ax.texts} == {"SAM", "random", "head only"}
    assert ax.get_xlim()[0] > 0
    assert "Dotted across: p = 0, where the head alone is trained. The pale band is its interval." in words(figure)


@pytest.mark.parametrize(
    ("values", "ends", "log", "begins"),
    [
        ((1.0, 21.0), [], True, 1.0),
        ((1.0, 19.0), [], False, 0.0),
        ((1.0, 5.0), [(0.5, 11.0)], True, 0.5),  # the ends of intervals count
        ((1.0, 5.0), [(0.2, 6.0)], False, 0.0),  # but not below a third of the least value
        ((1.0, 5.0), [(-0.1, 19.0)], False, 0.0),  # an end that is not above 0 is nowhere on such an axis
        ((1.0, 5.0), [(-0.1, 21.0)], True, 1 / 3),
        ((0.0, 50.0), [], False, 0.0),
    ],
)
def test_an_axis_is_logarithmic_where_what_it_shows_spans_a_factor_of_20(
    values: tuple[float, ...], ends: list[tuple[float, float]], log: bool, begins: float
) -> None:
    _, ax = plt.subplots()
    table = pd.DataFrame({"y": values, "low": math.nan, "high": math.nan})
    for place, both in enumerate(ends):
        table.loc[place, ["low", "high"]] = both
    assert fitted(ax, Block("", (Curve("", table),), 0.0, log=True)) == log
    assert ax.get_yscale() == ("log" if log else "linear")
    assert ax.get_ylim()[0] == pytest.approx(begins / 1.15 if log else begins)


def test_an_interval_across_a_logarithmic_axis_is_cut_where_the_axis_begins() -> None:
    _, ax = plt.subplots()
    for low, begins in ((-1.0, 0.1), (0.4, 0.4)):
        ax.cla()
        ax.set_yscale("log")
        ax.set_ylim(0.1, 10)
        assert _across(ax, pd.DataFrame({"y": [0.6], "low": [low], "high": [2.0]}), "blue") == (low < 0)
        (band,) = by_gid(ax, "interval")
        assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx([begins, 2.0])
        assert len(by_gid(ax, "cut")) == (low < 0)
        assert ax.get_ylim() == (0.1, 10)


def test_every_method_has_a_row_and_the_most_stable_comes_first() -> None:
    results = stored("paper-quick").where(task="rte")
    table = results.table.assign(mask_overlap=np.linspace(0.2, 1.0, len(results)))
    results = dataclasses.replace(results, table=table)
    summary = results.summary().table.sort_values("stability")
    figure = plotting.methods(results)
    for ax, column in zip(figure.axes, ("test_metric", "train_loss", "gap", "stability", "mask_overlap"), strict=True):
        drawn = {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in by_gid(ax, "values")}
        np.testing.assert_allclose([drawn[place] for place in range(len(summary))], summary[column])
    first = figure.axes[0].get_yticklabels()[0].get_text()
    assert first.startswith(label(summary["method"].iloc[0]))
    older = dataclasses.replace(results, table=table.drop(columns="mask_overlap"))
    assert len(plotting.methods(older).axes) == 4
    for refused in (stored("digits"), results.where(method="sam")):
        with pytest.raises(plotting.NothingToDrawError, match="two methods"):
            plotting.methods(refused)


def test_bars_over_other_seeds_are_told_apart_and_an_overlap_is_between_none_and_all() -> None:
    """On CoLA five seeds were trained, and three of them measured. ChildPruning's masks overlap by anything from 0 to 1."""
    figure = plotting.methods(stored("claims/claims-cola"))
    told = "Bars: 95 % interval of the mean over 5 seeds. Bars of stability and overlap: 95 % interval of the mean over 3 seeds."
    assert told in " ".join(words(figure).split())
    ends = np.concatenate([bars.get_segments() for bars in by_gid(figure.axes[4], "interval")])[..., 0]
    assert (ends.min(), ends.max()) == (0.0, 1.0)
    same = plotting.methods(stored("claims/claims-stsb"))
    assert words(same).count("Bars") == 1


def test_marks_are_grey_where_a_method_did_not_learn() -> None:
    """On CB full tuning, and SAM at the largest p: in every panel, at their values and nowhere else."""
    results = stored("claims/claims-cb-sparsity")
    figure, summary = plotting.six_panels(results), results.summary().table
    columns = ("test_metric", "train_metric", "test_metric_std", "test_loss", "gap", "stability")
    for ax, column in zip(figure.axes, columns, strict=True):
        drawn = sorted(float(y) for line in by_gid(ax, "unlearned") for y in line.get_ydata())
        there = summary[(summary["method"] == "full") | ((summary["method"] == "sam") & (summary["sparsity"] > 0.2))]
        assert drawn == sorted(there[column])
    assert "Grey marks: not clearly better than a constant prediction." in words(figure)
    assert "Grey" not in words(plotting.six_panels(stored("claims/claims-stsb-sparsity").where(method=["random", "magnitude"])))


def test_the_names_of_methods_that_did_not_learn_are_grey() -> None:
    """With these three the metric's interval holds that of a constant prediction. On STS-B all ten learned."""
    figure = plotting.methods(stored("claims/claims-cola"))
    names = figure.axes[0].get_yticklabels()
    black = names[-1].get_color()
    assert {text.get_text().split(",")[0] for text in names if text.get_color() != black} == {"BitFit", "ChildPruning", "LoRA"}
    assert "Grey names: not clearly better than a constant prediction." in " ".join(words(figure).split())
    every = plotting.methods(stored("claims/claims-stsb"))
    assert {text.get_color() for text in every.axes[0].get_yticklabels()} == {black}
    assert "Grey" not in words(every)


def test_an_interval_that_reaches_zero_is_cut_on_a_logarithmic_axis_and_says_so() -> None:
    """SAM's interval there begins below zero."""
    figure = plotting.stability(stored("discontinuity"))
    (ax,) = figure.axes
    assert len(by_gid(ax, "cut")) == 3
    assert "←: the interval goes on to the left." in words(figure)
    low = ax.get_xlim()[0]
    assert all(segment[:, 0].min() >= low for bar in by_gid(ax, "interval") for segment in bar.get_segments())


def test_a_bound_that_is_infinite_everywhere_is_named_and_not_drawn() -> None:
    figure = plotting.bounds(stored("digits"))
    assert "Infinite everywhere, and not drawn: hard-mask bound on the mean; hard-mask bound" in words(figure)
    assert len(figure.axes) == 9
    (ax,) = plotting.bounds(stored("paper-quick-bounds")).axes  # nothing is finite: no panel of ratios
    assert ax.get_title(loc="left") == "one p each"


def test_titles_say_a_finding_only_where_the_interval_does() -> None:
    from stability.studies import published_scores, scores

    assert plotting.ranks(published_scores("main")).get_suptitle().startswith("Methods that spread less over seeds perform better")
    measured = scores(stored("paper-quick"))
    assert plotting.ranks(measured).get_suptitle().startswith("Spread over seeds against performance")
    figure = plotting.definition_3(measured, "nats")
    assert figure.get_suptitle().startswith("Methods that change less when an example is left out spread less over seeds")
    few = plotting.definition_3(dataclasses.replace(measured, table=measured.table.assign(seeds=2)))
    assert "Two seeds give no interval." in words(few)
    assert all(not by_gid(ax, "interval") for ax in few.axes[1::2])


def test_a_partial_store_draws_what_there_is(tmp_path: Path) -> None:
    results = stored("paper-quick")
    table = results.table
    part = dataclasses.replace(results, table=table[(table["task"] == "cb") & (table["seed"] == 0) & (table.index < 4)])
    names = [path.name for path in plotting.save_all(part, tmp_path, formats=["png"])]
    kinds = ("stability", "generalization", "four_panels", "gap_against_stability")
    assert names == [f"paper-quick_cb_{kind}.png" for kind in (*kinds, "methods")]


def test_files_say_study_problem_method_and_p(tmp_path: Path) -> None:
    found = {
        name: {start for _, start, *_ in [*_swept(stored(name), None), *_scored(stored(name), None, None, None)]} for name in STORES
    }
    assert found["digits"] == {"digits"}
    assert found["theory-convex"] == {"theory-convex_logistic"}
    assert found["discontinuity"] == {"discontinuity_digits_p0.01"}
    assert "paper-quick-sparsity_cb+rte_sam" in found["paper-quick-sparsity"]
    assert found["paper-quick"] == {"paper-quick_cb", "paper-quick_rte", "paper-quick_cb+rte"}


def test_a_figure_of_one_task_of_several_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "FIGURES", {"stability": plotting.stability})
    shown = {name: [(kind, task) for kind, task, _ in plotting.drawn(stored(name))] for name in ("paper-quick", "discontinuity")}
    scored = [("definition_3", None), ("ranks", None)]
    assert shown["paper-quick"] == [("stability", "cb"), ("stability", "rte"), *scored]
    assert shown["discontinuity"] == [("stability", None), *scored]


@pytest.fixture(scope="module")
def small() -> Problem:
    return load("digits", n=20, seed=0)


@pytest.fixture(scope="module")
def estimate(small: Problem) -> StabilityEstimate:
    return measure(small, FineTuning(SAM(sparsity=0.05), steps=3), estimator=Assisted(4), device="cpu")


def test_figures_of_an_estimate_say_what_it_is_of(estimate: StabilityEstimate) -> None:
    for figure in (plotting.differences(estimate), plotting.influential(estimate, 3), estimate.plot()):
        assert "problem digits · SAM · p = 5 % · n = 20 · seed 0" in words(figure)
    assert plotting.prefix(estimate) == "digits_sam_p0.05_n20_seed0"
    for ridge in (0.3, 0.5):  # of all coordinates p is that of Theorem 1, 1 − λ
        relaxed = measure(load("linear", n=12), Minimisation(FullTuning(), ridge=ridge), estimator=Exact(), device="cpu")
        assert plotting.prefix(relaxed) == f"linear_regularised_p{1 - ridge:g}_n12_seed0"
        assert f"p = {1 - ridge:.0%}".replace("%", " %") in words(plotting.differences(relaxed))
    titles = [" ".join(ax.get_title(loc="left").split()) for ax in plotting.influential(estimate, 3).axes]
    assert len(titles) == 3
    for title, row in zip(titles, estimate.examples().to_dict("records"), strict=False):
        known = row["retrained"] if np.isfinite(row["retrained"]) else row["predicted"]
        verb = "rise" if known >= 0 else "fall"
        size = f"{abs(known):#.2g}".rstrip(".")
        assert re.fullmatch(rf"class \d, \d+% its loss .*{verb}s? by {re.escape(size)} nats when it is left out", title), title


def test_objects_draw_themselves(estimate: StabilityEstimate) -> None:
    before = plt.get_fignums()
    mask = Mask({"weight": (2, 2), "bias": (2,)}, {"bias": torch.tensor([0])})
    bound = sgd_convex(lipschitz=1, smoothness=1, learning_rates=[0.25] * 50, n=100)
    study = Study("mine", "digits", (FineTuning(BitFit()), FineTuning(Random(0.1))), (0, 1), problem_settings={"n": 20})
    drawn = [one.plot() for one in (mask, bound, study, estimate, stored("paper-quick"), stored("digits"))]
    assert plt.get_fignums() == before  # a notebook would show those once more
    shares = widths(drawn[0])
    assert shares == [0.0, 0.5]
    values = [float(np.ravel(line.get_xdata())[0]) for line in by_gid(drawn[1].axes[0], "values")]
    assert values == [*bound.terms.values(), bound.value]
    assert "2 seeds · 4 cells" in words(drawn[2])
    assert "Definition" not in words(drawn[4])
    assert "spread" in words(drawn[4])


def test_a_mask_of_many_layers_is_drawn_in_groups() -> None:
    shapes = {f"layers.{i}.{name}": (4,) for i in range(20) for name in ("weight", "bias")}
    figure = plotting.mask(Mask(shapes, {"layers.3.bias": torch.tensor([1, 2])}))
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["layers.*.weight", "layers.*.bias"]
    assert widths(figure) == [0.0, 2 / 80]
    assert "2 of 80" in {text.get_text() for text in ax.texts}


def test_pdf_has_its_fonts_as_true_type(tmp_path: Path) -> None:
    figure = plotting.stability(stored("theory-digits"))
    _, pdf = plotting.save({"x": figure}, tmp_path, "mine", "a note")
    content = pdf.read_bytes()
    assert b"/CIDFontType2" in content
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_svgs_stand_in_one_page() -> None:
    results = stored("theory-digits")
    drawn = [plotting.svg(plotting.stability(results)), plotting.svg(plotting.bounds(results))]
    ids: list[str] = []
    for text in drawn:
        root = ElementTree.fromstring(text)
        mine = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert len(mine) > 20
        ids += mine
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
        assert used
        assert used <= set(mine)
        addresses = re.findall(r'(?:href|src)="(?!#)[^"]*"|url\((?!#)', text)
        assert addresses == []
        assert "<text" in text  # it stays text
        assert 'role="img"' in text
        (style,) = re.findall(r"<style[^>]*>([^<]*)</style>", text)
        assert style.startswith(f"#{root.attrib['id']} *")
    assert len(ids) == len(set(ids))
    assert plotting.svg(plotting.stability(results)) == drawn[0]


@pytest.mark.parametrize("wanted", [(-0.3, 0.0, 0.02, 0.5), (0.01, 0.02, 0.03, 0.04), (0.2, 0.2, 0.8, 1.3), (0.1, 0.4, 0.6, 0.9)])
def test_names_stand_apart_within_the_axes_as_near_to_their_lines_as_can_be(wanted: tuple[float, ...]) -> None:
    """Against a general solver of the same problem."""
    gap, top = 0.07, 0.965

    def away(places: np.ndarray) -> float:
        return float(((places - wanted) ** 2).sum())

    best = scipy.optimize.minimize(
        away,
        np.linspace(0.1, 0.9, 4),
        bounds=[(gap / 2, top)] * 4,
        constraints=scipy.optimize.LinearConstraint(np.diff(np.eye(4), axis=0), gap),
        tol=1e-14,
    )
    np.testing.assert_allclose(_spread(wanted, gap, top), best.x, atol=1e-5)


def test_marks_and_greys_tell_series_apart() -> None:
    """No two methods share colour and marker, and no two share marker and dash."""
    from stability.plotting.style import _STYLES

    pairs = pd.DataFrame([(colour, marker, str(dash)) for colour, marker, dash in _STYLES.values()])
    assert not pairs.duplicated([0, 1]).any()
    assert not pairs.duplicated([1, 2]).any()


def test_figures_say_what_was_done_to_the_training_set(digits: Problem) -> None:
    """Groups have a row each, with names and sizes; other examples are given another label, and not left out."""
    tuning = FineTuning(BitFit(), steps=2)
    groups = [f"writer {i % 3}" if i < 23 else "writer 3" for i in range(24)]
    estimate = measure(digits, tuning, Exact(), perturbation=LeaveGroupOut(groups), device="cpu")
    figure = plotting.differences(estimate)
    (ax,) = figure.axes
    sizes = {"writer 0": 8, "writer 1": 8, "writer 2": 7}
    names = {f"group {name} [{size} examples]" for name, size in sizes.items()} | {"group writer 3 [1 example]"}
    assert {text.get_text() for text in ax.get_yticklabels()} == names
    (line,) = by_gid(ax, "values")
    np.testing.assert_allclose(np.abs(line.get_xdata()).mean(), estimate.value)
    told = words(figure)
    assert "changes the mean loss of its examples" in told
    assert f"{estimate.value:.3g} nats, exactly. Retrained without each of 4 groups." in told
    with pytest.raises(plotting.NothingToDrawError, match="it shows single examples, and here groups were left out"):
        plotting.influential(estimate)
    flipped = measure(digits, tuning, Exact(), perturbation=FlipLabel(), device="cpu")
    titles = [" ".join(ax.get_title(loc="left").split()) for ax in plotting.influential(flipped, 3).axes]
    assert len(titles) == 3
    assert all(title.endswith("nats when it is given another label") for title in titles)
    assert "Retrained with another label for each of 24 examples." in words(plotting.differences(flipped))
    some = measure(digits, tuning, Sampled(4), perturbation=ReplaceOne(), device="cpu")
    assert re.search(r"95 % interval .* to .*another in the place of each of 4 of 24 examples", words(plotting.differences(some)))
