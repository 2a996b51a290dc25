"""Leave-one-out differences of whole training sets, predicted and retrained, by which intervals are tested.

    python -m benchmarks.populations [--groups chaotic "seed 1" "n = 60" "other p" "n = 400"] [--device cpu]

Writes benchmarks/results/populations-DEVICE.json and goes on where it was stopped. None of them were used to choose an interval:
those that were are in assisted-digits-DEVICE.json, which ``benchmarks.assisted`` writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.assisted import numbers
from benchmarks.language import RESULTS, labelled
from stability import FineTuning, leave_one_out, machine, problems
from stability.leave_one_out.estimators import Assisted
from stability.selectors import Adapter, BitFit, DiffPruning, FullTuning, LoRA, MagPruning, Mixout, MixoutReset, Random, Selector
from stability.studies.named import STUDIES


def _steps(selectors: Sequence[Selector]) -> list[FineTuning]:
    return [FineTuning(selector, steps=100) for selector in selectors]


def studied() -> list[FineTuning]:
    """The 39 settings of the study of digits."""
    return [tuning for tuning in STUDIES["digits"].algorithms if isinstance(tuning, FineTuning)]


def groups() -> dict[str, Iterator[tuple[int, int, FineTuning]]]:
    """Of each group the populations: n, the seed of S and of A, and A."""
    masks: list[Any] = [tuning.selector for tuning in studied() if tuning.asked_sparsity == 0.03]
    one = [FullTuning(), BitFit(), Mixout(), *masks, Adapter(4), LoRA(4), Random(0.3), MagPruning(0.3)]
    wild = [FullTuning(), Mixout(), MixoutReset(0.1), DiffPruning(0.3, burn_in=50)]
    return {
        "chaotic": ((100, seed, tuning) for seed in (5, 6, 7, 8) for tuning in _steps(wild)),
        "seed 1": ((100, 1, tuning) for tuning in studied()),
        "n = 60": ((60, 2, tuning) for tuning in studied()),
        "other p": ((100, 4, tuning) for tuning in _steps([replace(mask, sparsity=p) for mask in masks for p in (0.02, 0.5)])),
        "n = 400": ((400, 3, tuning) for tuning in _steps(one)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=list(groups()), default=list(groups()))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    place = machine.resolve_device(options.device)
    path = RESULTS / f"populations-{labelled(place)}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["populations"] if path.exists() else []
    for group in options.groups:
        for n, seed, tuning in groups()[group]:
            row = {"group": group, "n": n, "seed": seed, "method": tuning.name, "settings": str(tuning.selector)}
            if any(row.items() <= known.items() for known in rows):
                continue
            problem = problems.load("digits", n=n, seed=seed)
            estimate = leave_one_out.measure(problem, replace(tuning, seed=seed), Assisted(n), device=str(place))
            table = estimate.per_example.sort_values("index")
            assert estimate.prediction is not None
            row |= {"p": estimate.sparsity, "noise_floor": estimate.noise_floor, "difference": numbers(table["difference"])}
            row |= {"predicted": numbers(estimate.prediction.table["difference"]), "loss_full": numbers(table["loss_full"])}
            row |= {"correlation": estimate.diagnostics.correlation, "seconds": estimate.seconds}
            row |= {"prediction_seconds": estimate.prediction.seconds, "retraining_seconds": estimate.retraining_seconds}
            rows.append(row)
            path.write_text(json.dumps({"populations": rows, "machine": machine.report()}, ensure_ascii=False) + "\n")
            print(group, n, seed, tuning.selector, f"r {row['correlation']:.2f}, {estimate.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
