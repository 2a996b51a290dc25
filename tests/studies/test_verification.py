"""Cells computed again: what is equal, what is rounding, what differs; and studies made anew from what a store says."""

from __future__ import annotations

from pathlib import Path

import pytest

from stability import UsageError
from stability.cli.commands import main
from stability.leave_one_out.estimators import Approximate, Assisted, Auto, Exact, Sampled
from stability.leave_one_out.predictors import Linearised, OneStep
from stability.selectors import SAM, Adapter, BitFit, ChildPruning, DiffPruning, FullTuning, LoRA, Random, from_scores
from stability.selectors.rule import magnitude
from stability.studies import STUDIES, Store, Study, StudyResults, run
from stability.studies.columns import CELLS, cells
from stability.studies.rebuilt import rebuilt
from stability.studies.verification import Agreement, Checked, StoredCell, stored_cells
from stability.training import EarlyStopping, FineTuning, Minimisation

SMALL = """
problem = "digits"
seeds = 1
problem_settings = {n = 20}
estimator = {kind = "sampled", retrainings = 2}
[[algorithms]]
selector = "full"
steps = 2
"""
FIGURES = Path(__file__).parents[2] / "figures"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished cells, computed in this process."""
    algorithms = tuple(FineTuning(selector, steps=2) for selector in (BitFit(), SAM(0.02)))
    study = Study("small", "digits", algorithms, (0,), problem_settings={"n": 20}, check_replicas=None, estimator=Sampled(2))
    path = tmp_path_factory.mktemp("verified") / "small.sqlite"
    run(study, path, device="cpu", workers=1)
    return path


def test_cells_come_out_again_bit_for_bit(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--store", str(store), "--cells", "2", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["equal", "equal"]
    assert lines[-1] == "2 cells: 2 equal bit for bit"


def test_a_new_store_has_no_column_that_is_not_described(store: Path) -> None:
    table = cells(Store(store))
    assert list(table.columns) == list(CELLS)
    assert table["software"].notna().all()


def test_a_changed_number_is_found_and_named(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "changed.sqlite"
    whole = Store(store)
    copy = Store(changed, whole.identity)
    for identity, record in whole.cells():
        copy.add(identity, record | {"gap": 1000.0})
    assert main(["verify", "--store", str(changed), "--cells", "1"]) == 1
    said = capsys.readouterr()
    assert "different: gap 1.0e+00" in said.out
    assert "1 of 1 computed again differ" in said.err


@pytest.mark.parametrize(
    ("differences", "agreement", "worst"),
    [
        ({}, Agreement.EQUAL, ""),
        ({"stability": (0.5, 0.50001)}, Agreement.ROUNDING, "stability"),
        ({"stability": (0.5, 0.51)}, Agreement.DIFFERENT, "stability"),
        ({"noise_floor": (1e-7, 3e-7)}, Agreement.ROUNDING, "noise_floor"),
        ({"per_example.3.distance": (0.5, 0.6)}, Agreement.ROUNDING, "per_example.distance"),
        ({"per_example.3.difference": (0.5, 0.6)}, Agreement.DIFFERENT, "per_example.difference"),
        ({"distance": (0.5, None)}, Agreement.DIFFERENT, "distance"),
        ({"status": ("ok", "failed")}, Agreement.DIFFERENT, "status"),
    ],
)
def test_what_is_rounding(store: Path, differences: dict[str, tuple[object, object]], agreement: Agreement, worst: str) -> None:
    one = stored_cells(rebuilt(Store(store).identity), Store(store))[0]
    found = Checked(StoredCell(one.cell, one.record), differences, tolerance=1e-4)
    assert (found.agreement, found.worst) == (agreement, worst)


@pytest.mark.parametrize("name", STUDIES)
def test_each_named_study_can_be_made_from_its_identity(name: str) -> None:
    identity = STUDIES[name].identity()
    assert rebuilt(identity).identity() == identity


@pytest.mark.parametrize(
    "estimator",
    [
        Auto(),
        Auto(retrainings=4),
        Exact(),
        Sampled(3),
        Sampled(tolerance=0.2),
        Assisted(4, predictor=Linearised(3, reselect=False)),
        Assisted(2),
        Approximate(),
    ],
)
def test_a_study_can_be_made_from_its_identity_whatever_it_is_made_of(estimator: object) -> None:
    selectors = (
        FullTuning(),
        magnitude(0.1, burn_in=3),
        magnitude(0.1),
        Adapter(2),
        LoRA(2, alpha=3),
        ChildPruning(0.1, "tensor", every=5),
        DiffPruning(0.1, burn_in=3),
        SAM(0.1, curvature="hutchinson"),
    )
    tuned = tuple(
        FineTuning(one, steps=5, dropout=True, precision="bfloat16", early_stopping=EarlyStopping(2)) for one in selectors
    )
    more = (Minimisation(Random(0.2), ridge="paper", gradient_tolerance=1e-5), FineTuning(FullTuning(), betas=(0.5, 0.6)))
    study = Study(
        "mine", ("digits", "linear"), (*tuned, *more), (3, 1), problem_settings={"n": 30}, check_replicas=None,
        estimator=estimator, measured_seeds=1,  # type: ignore[arg-type]
    )  # fmt: skip
    assert rebuilt(study.identity()).identity() == study.identity()
    assert OneStep().settings() != Linearised().settings()


def test_what_a_store_cannot_tell_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--store", str(FIGURES / "paper-quick.sqlite")]) == 2
    assert "it knows texts and their model by content" in capsys.readouterr().err
    own = from_scores(lambda problem, generator: {name: t.abs() for name, t in problem.pretrained.items()}, 0.1, name="own")
    study = Study("mine", "digits", (FineTuning(own, steps=2),), (0,), problem_settings={"n": 20})
    with pytest.raises(UsageError, match="'own' is code of your own"):
        rebuilt(study.identity())


def test_senseless_requests_are_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--cells", "0"], "cells"),
        (["--cels", "3"], "verify has no --cels: did you mean --cells?"),
        (["--tolerance", "0"], "tolerance"),
        (["discontinuity"], "was made"),
    ):
        assert main(["verify", "--store", str(store), *words]) > 0
        assert message in capsys.readouterr().err
    empty = tmp_path / "empty.sqlite"
    Store(empty, STUDIES["digits"].identity())
    assert main(["verify", "--store", str(empty)]) == 2
    assert "has no finished cell to verify" in capsys.readouterr().err
    assert main(["verify", "--store", str(tmp_path / "none.sqlite")]) == 1


def test_the_words_of_run_say_which_study_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SMALL)
    place = str(tmp_path / "mine.sqlite")
    assert main(["run", str(file), "--store", place, "--device", "cpu", "--workers", "1"]) == 0
    assert main(["verify", str(file), "--store", place]) == 0
    assert "1 cell: 1 equal bit for bit" in capsys.readouterr().out
    assert len(StudyResults.read(place)) == 1
