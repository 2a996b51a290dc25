"""A study as one page: what it says, and that it works in a real browser."""

from __future__ import annotations

import re
import shutil
import sqlite3
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from stability import plotting
from stability.cli.commands import main
from stability.reports.page import page
from stability.studies import Store, StudyResults
from stability.studies.state import state_of

FIGURES = Path(__file__).parents[2] / "figures"
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync",
)  # fmt: skip


def changed(folder: Path, name: str, *statements: str) -> Path:
    path = folder / f"{name}.sqlite"
    path.write_bytes((FIGURES / f"{name}.sqlite").read_bytes())
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


def of(path: Path) -> str:
    return page(StudyResults.read(path), state_of(Store(path)))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, found in programs.items() if found is None]:
        pytest.fail(f"there is no {' and no '.join(missing)}, and this test opens a page in a real browser: run 'make browser'")
    options = Options()
    options.binary_location = str(programs["chromium"])
    for flag in (*FLAGS, f"user-data-dir={tmp_path / 'profile'}", "window-size=1200,900"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(str(programs["chromedriver"])))
    try:
        yield driver
    finally:
        driver.quit()


def column(driver: webdriver.Chrome, title: str) -> list[str]:
    found: list[str] = driver.execute_script(
        "const t = document.getElementById('results');"
        "const at = [...t.tHead.rows[0].cells].findIndex(head => head.innerText.trim() === arguments[0]);"
        "return [...t.tBodies[0].rows].map(row => row.cells[at].innerText)",
        title,
    )
    return found


def test_a_page_works_in_a_browser(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """It sorts by number with what is missing last, by mouse and by keyboard; and nothing is asked of anyone else."""
    unknown = "UPDATE cells SET record = json_set(record, '$.stability', NULL) WHERE json_extract(identity, '$.method') = 'bitfit'"
    store = changed(tmp_path, "digits", unknown)
    out = tmp_path / "report.html"
    assert main(["report", "--store", str(store), "--out", str(out), "--no-figures"]) == 0
    (script,) = re.findall(r"<script>(.*?)</script>", text := out.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in text
    browser.get(out.as_uri())
    assert browser.title == "digits: leave-one-out stability"
    summary = StudyResults.read(store).summary().table
    known = sorted(value for value in summary["stability"] if value == value)
    assert len(known) == 38

    head = next(
        one for one in browser.find_elements(By.CSS_SELECTOR, "#results thead th") if one.text.strip().startswith("stability")
    )
    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(browser, "stability") == [*(f"{value:.3f}" for value in known), "–"]
    assert column(browser, "method")[-1] == "BitFit"
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert column(browser, "stability") == [*(f"{value:.3f}" for value in reversed(known)), "–"]
    best = summary.nlargest(1, "stability").iloc[0]
    row = browser.find_element(By.CSS_SELECTOR, "#results tbody tr")
    assert row.find_element(By.TAG_NAME, "th").get_attribute("data-value") == best["method"]
    assert float(row.find_elements(By.TAG_NAME, "td")[1].text) == pytest.approx(best["stability"], abs=5e-4)

    browser.find_element(By.CSS_SELECTOR, "#results thead button").click()  # by words
    assert column(browser, "method") == sorted(column(browser, "method"), key=str.lower)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    browser.set_window_size(500, 800)  # the least width that this browser takes
    width = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width[0] <= width[1], "a narrow screen scrolls the table, and not the page"
    picture = tmp_path / "page.png"
    assert browser.save_screenshot(str(picture))
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 10_000


def test_a_page_has_the_figures_and_loads_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: plotting.FIGURES[name] for name in ("stability", "gap_against_stability")}
    monkeypatch.setattr(plotting, "FIGURES", few)
    out = tmp_path / "report.html"
    assert main(["report", "--store", str(FIGURES / "paper-quick-bounds.sqlite"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    text = out.read_text(encoding="utf-8")
    assert text.count("<svg") == text.count("<figcaption>") == 2
    assert "<figcaption>Stability against p, " in text  # one task is named in the heading
    assert "<script src" not in text
    loaded = [where for where in re.findall(r'\b(?:src|href)="([^"]+)"', text) if not where.startswith("#")]
    assert not loaded
    assert not re.search(r"@import|url\((?!#)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) > 20
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert wanted
    assert wanted <= set(ids)


def test_a_page_tells_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        "discontinuity",
        """UPDATE cells SET record = '{"status": "failed", "failure": "machine", "reason": "memory <ran> out", "device": "a & b"}'
           WHERE json_extract(identity, '$.method') = 'childpruning' AND json_extract(identity, '$.seed') = 0""",
        "DELETE FROM cells WHERE json_extract(identity, '$.method') = 'sam' AND json_extract(identity, '$.seed') > 0",
    )
    text = of(path)
    assert "6 of 9 measurements are finished, 1 failed" in text
    assert "3 of 9 cells are still to be computed" in text  # two are missing, and one is tried again
    assert "memory &lt;ran&gt; out" in text
    assert "<ran>" not in text
    assert "the machine: it is tried again when the study is run again" in text
    assert "a &amp; b" in text
    assert "not recorded" in text
    assert "the cells were computed on different devices" in text
    assert StudyResults.read(path).fingerprint in text


def test_a_page_tells_which_assumptions_failed_and_how_to_make_it_again(tmp_path: Path) -> None:
    text = of(FIGURES / "theory-digits.sqlite")
    assert "Assumptions that failed" in text
    assert re.search(
        r"the Hessian of L is positive semidefinite</th><td>theorem_1, [^<]+</td><td class=\"number\">\d+ of 120</td>", text
    )
    out = tmp_path / "report.html"
    assert main(["report", "--store", str(FIGURES / "theory-convex.sqlite"), "--out", str(out), "--no-figures"]) == 0
    assert "stability run theory-convex --store theory-convex.sqlite" in out.read_text(encoding="utf-8")
    mine = changed(tmp_path, "discontinuity", "UPDATE study SET identity = json_set(identity, '$.study', 'mine')")
    assert main(["report", "--store", str(mine), "--out", str(out), "--no-figures"]) == 0
    text = out.read_text(encoding="utf-8")
    assert "<code>the command that made it, with --store discontinuity.sqlite\n" in text
    assert "stability run" not in text
    assert "It measures losses and metrics, and not stability." in of(FIGURES / "paper-quick-sparsity.sqlite")


def test_a_store_without_measured_cells_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = """UPDATE cells SET record = '{"status": "failed", "failure": "method", "reason": "diverged"}'"""
    for statement, message in (
        ("DELETE FROM cells", "no cell is finished yet; run the study again"),
        (failed, "all 9 finished cells failed"),
    ):
        path = changed(tmp_path, "discontinuity", statement)
        assert main(["report", "--store", str(path), "--out", str(tmp_path / "report.html")]) == 1
        said = capsys.readouterr().err
        assert message in said
        assert "by the command that made it, with --store FILE" in said
        assert not (tmp_path / "report.html").exists()


def test_a_table_leaves_out_columns_that_hold_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--store", str(FIGURES / "paper-quick-sparsity.sqlite")]) == 0
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert not [word for word in ("nan", "Theorem", "95 %", "stability", "†") if word in said]
    assert main(["table", "--store", str(FIGURES / "theory-convex.sqlite")]) == 0
    assert "Theorem 1" in capsys.readouterr().out
