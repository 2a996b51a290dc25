"""Is it known before any retraining whether the prediction will be good? Numbers of one run against what retraining showed.

    python -m benchmarks.smoothness [--parts nonlinearity metasmoothness] [--populations FILE]

Writes benchmarks/results/smoothness-cpu.json and goes on where it was stopped. Nothing is retrained without an example: the
differences are those in assisted-digits-cpu.json, on which the threshold of each number is chosen, and those that
``benchmarks.populations`` wrote, on which it is tested.

- ``nonlinearity``: how much the Jacobians change on the way, which every prediction by linearised replicas carries;
- ``metasmoothness``, of the parameters and of the losses: three trainings (Engstrom et al. 2025, definition 2);
- ``relative noise floor``: what rounding does, over the mean predicted difference, as stored with the differences.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.language import RESULTS
from benchmarks.populations import groups, studied
from stability import FineTuning, Problem, leave_one_out, machine, problems
from stability.leave_one_out.estimators import Approximate
from stability.leave_one_out.statistics import Numbers

OUT = RESULTS / "smoothness-cpu.json"
PARTS = ("nonlinearity", "metasmoothness")
GOOD = 0.9  # the Pearson correlation of predicted and retrained |Δℓ| from which a prediction counts as good
POOR_WHERE_HIGH = {"nonlinearity": True, "metasmoothness": False, "metasmoothness of losses": False, "relative noise floor": True}


def known(populations: Path) -> list[tuple[dict[str, Any], FineTuning, dict[str, Any]]]:
    """Each population: what names it, A, and what is stored of it."""
    found = []
    stored = json.loads((RESULTS / "assisted-digits-cpu.json").read_text())["digits"]
    for tuning, row in zip(studied(), stored, strict=True):
        name = {"group": "seed 0", "n": 100, "seed": 0, "method": tuning.name, "settings": str(tuning.selector)}
        found.append((name, tuning, row | {"predicted": row["predictions"]["linearised"]["difference"]}))
    algorithms = {
        (group, n, seed, str(tuning.selector)): replace(tuning, seed=seed)
        for group, each in groups().items()
        for n, seed, tuning in each
    }
    for row in json.loads(populations.read_text())["populations"] if populations.exists() else []:
        name = {key: row[key] for key in ("group", "n", "seed", "method", "settings")}
        found.append((name, algorithms[row["group"], row["n"], row["seed"], row["settings"]], row))
    return found


def predicted(tuning: FineTuning, n: int, row: dict[str, Any]) -> dict[str, Any]:
    """What the prediction says of itself, and how good it was."""
    prediction = leave_one_out.measure(_problem(tuning, n), tuning, Approximate(), device="cpu").prediction
    assert prediction is not None
    sizes, retrained = np.abs(row["predicted"]), np.abs(row["difference"])
    finite = np.isfinite(sizes) & np.isfinite(retrained)
    return {
        "correlation": float(stats.pearsonr(sizes[finite], retrained[finite]).statistic),
        "relative noise floor": row["noise_floor"] / float(sizes[finite].mean()),
        "nonlinearity": prediction.nonlinearity,
        "prediction_seconds": prediction.seconds,
    }


def smooth(tuning: FineTuning, n: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = leave_one_out.metasmoothness(_problem(tuning, n), tuning, device="cpu")
    seconds = time.perf_counter() - began
    return {
        "metasmoothness": found.parameters,
        "metasmoothness of losses": found.losses,
        "h": found.h,
        "metasmoothness_seconds": seconds,
    }


def _problem(tuning: FineTuning, n: int) -> Problem:
    return problems.load("digits", n=n, seed=tuning.seed)


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each number: its threshold by seed 0, and what that finds there and elsewhere."""
    found = {}
    for name, high in POOR_WHERE_HIGH.items():
        have = [row for row in rows if name in row and "correlation" in row]
        parts = {"seed 0": [row for row in have if row["group"] == "seed 0"]}
        parts["others"] = [row for row in have if row["group"] != "seed 0"]
        values = {part: np.array([row[name] if high else -row[name] for row in own]) for part, own in parts.items()}
        good = {part: np.array([row["correlation"] >= GOOD for row in own], dtype=bool) for part, own in parts.items()}
        if good["seed 0"].all() or not good["seed 0"].any():
            continue
        limit = threshold(values["seed 0"], good["seed 0"])
        found[name] = {"threshold": limit if high else -limit} | {
            part: {
                "populations": len(own),
                "rank_correlation": float(-stats.spearmanr(values[part], [row["correlation"] for row in own]).statistic),
                "poor": int((~good[part]).sum()),
                "poor_found": int((values[part] > limit)[~good[part]].sum()),
                "false_alarms": int((values[part] > limit)[good[part]].sum()),
            }
            for part, own in parts.items()
            if len(own) > 2
        }
    return found


def threshold(values: Numbers, good: Any) -> float:
    """Between two neighbouring values, where the share of poor ones found less that of false alarms is largest."""
    ordered = np.unique(values)
    middles = (ordered[1:] + ordered[:-1]) / 2
    return float(max(middles, key=lambda at: (values[~good] > at).mean() - (values[good] > at).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", type=Path, default=RESULTS / "populations-cpu.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--largest", type=int, default=100, help="n beyond which populations are left out")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(OUT.read_text())["populations"] if OUT.exists() else []
    for part in options.parts:
        for name, tuning, stored in known(options.populations):
            row = next((old for old in rows if name.items() <= old.items()), dict(name))
            if part in row or name["n"] > options.largest:
                continue
            if row not in rows:
                rows.append(row)
            row |= predicted(tuning, name["n"], stored) if part == "nonlinearity" else smooth(tuning, name["n"])
            kept = {"populations": rows, "judged": judged(rows), "machine": machine.report()}
            OUT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            shown = {key: round(row[key], 3) for key in ("correlation", *POOR_WHERE_HIGH) if key in row}
            print(name["group"], name["n"], name["seed"], name["settings"], shown, flush=True)
    for number, found in judged(rows).items():
        print(number, found)


if __name__ == "__main__":
    main()
