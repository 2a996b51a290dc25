"""The results that figures and notebooks are drawn from: whole, readable, and of this program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.claims import searched
from benchmarks.language import minilm
from stability.studies.identity import key
from stability.studies.named import CLAIMS, PAPER, STUDIES
from stability.studies.rates import found_rates
from stability.studies.results import StudyResults
from stability.studies.store import Store
from stability.studies.study import Study, cell_identity
from tests.problems.test_texts import SHARED

MINILM = minilm()
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("figures/**/*.sqlite")), ids=lambda path: path.stem)
def test_committed_results_are_whole_and_of_this_program(path: Path) -> None:
    """What the figures were drawn from can be read, goes on being this study's, and lacks no cell. The claims' grow."""
    mine = STUDIES.get(path.stem) or paper_s(path.stem)
    grows = path.stem in CLAIMS
    store = Store(path)
    assert store.complete
    identity = mine.identity()  # once: it reads the data and the model
    cells = {key(cell_identity(mine, cell, identity)) for cell in mine.cells()}
    assert store.finished() <= cells if grows else store.finished() == cells
    results = StudyResults.read(path)
    assert results.fingerprint == key(identity)[:12]
    assert grows or len(results.summary().table) == len(mine.algorithms) * len(mine.problems)


def paper_s(name: str) -> Study:
    """Those of the paper with MiniLM on the tasks that lie beside the repository."""
    if MINILM is None or not SHARED.exists():
        pytest.skip("needs MiniLM and the tasks, whose content is part of the study's identity")
    own = {"model": MINILM, "data": str(SHARED)}
    if name == "paper-quick-bounds":
        more = {"tasks": ("cb",), "methods": ("full", "sam"), "seeds": 1, "check_replicas": 0}
        return replace(PAPER["paper-quick"], **own, **more).study("paper-quick")  # type: ignore[arg-type]
    known: dict[str, object] = {"measured_seeds": 0} if name == "paper-quick-sparsity" else {}
    folder = ROOT / "figures" / ("claims" if name in CLAIMS else "")
    if (search := searched(name)) is not None and (store := folder / f"{search}.sqlite").exists():
        known["rates"] = found_rates(store, PAPER[name].tasks)
    return replace(PAPER[name], **own, **known).study(name)  # type: ignore[arg-type]
