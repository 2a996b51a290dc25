"""How close measured stability comes to the bounds on random convex problems, and on problems made to come close.

    python -m benchmarks.bounds [--instances 5000] [--json]

Each instance is a random linear, logistic or quadratic problem with a random ridge and a random mask; leave-one-out is
exact (closed form or Newton). ρ and μ are those that the proof needs, exactly: the largest gradient at A(S) and at the
two ends of every segment from A(S) to A(Sⁱ) (along it a gradient's norm is largest at an end), and a curvature that is
nowhere exceeded from below on it. Counted apart: the bound as printed, with Λ_min taken on S at A(S) alone.
With all 5000 instances it writes benchmarks/results/bounds-convex.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from stability import machine
from stability.bounds import hard_mask_stability
from stability.problems.solvable import Array, Coordinates, Solvable, linear_regression, logistic_regression, quadratic

KINDS = ("linear", "logistic", "quadratic")


def instance(seed: int) -> tuple[Solvable, float, Coordinates]:
    """A random problem, ridge and mask; the kind is ``KINDS[seed % 3]``."""
    draw = np.random.default_rng([2023, seed])
    n, d = int(draw.integers(2, 25)), int(draw.integers(1, 13))
    x = draw.standard_normal((n, d)) * 10 ** draw.uniform(-1, 1.5) * 10 ** draw.uniform(-1, 1, (n, 1))
    start = draw.standard_normal(d) * 10 ** draw.uniform(-1, 1)
    free = np.sort(draw.choice(d, int(draw.integers(1, d + 1)), replace=False)).astype(np.int64)
    ridge = 10 ** draw.uniform(-4, 0)
    kind = KINDS[seed % 3]
    if kind == "linear":
        return linear_regression(x, draw.standard_normal(n) * 10 ** draw.uniform(-1, 1), start), ridge, free
    if kind == "logistic":
        return logistic_regression(x, draw.integers(0, 2, n).astype(float), start), ridge, free
    root = draw.standard_normal((d, d)) * 10 ** draw.uniform(-1, 1, d)
    return quadratic(root.T @ root / d, x, start), ridge, free


def check(seed: int) -> dict[str, Any]:
    """One row: the measured stability of the instance divided by each bound."""
    solvable, ridge, free = instance(seed)
    n = solvable.problem.n
    full = solvable.minimise(ridge, free=free)
    at_full = np.linalg.norm(solvable.gradients(full)[:, free], axis=1)
    row: dict[str, Any] = {"seed": seed, "kind": KINDS[seed % 3], "n": n, "k": len(free), "ridge": ridge}
    printed = least(solvable.hessian(full), free)
    for mean_over in ("remaining", "all"):
        changes, lipschitz, flattest = np.zeros(n), at_full.max(), np.inf
        for i in range(n):
            weights = (np.arange(n) != i).astype(float)
            # With the weight of z_i zero and the mean over all n, the ridge weighs n/(n − 1) times as much.
            shrink = 1.0 if mean_over == "remaining" else (n - 1) / n
            left = solvable.minimise(ridge / shrink, weights, free)
            changes[i] = abs(solvable.losses(left)[i] - solvable.losses(full)[i])
            lipschitz = max(lipschitz, np.linalg.norm(solvable.gradients(left)[i, free]))
            flattest = min(flattest, shrink * least(_from_below(solvable, full, left, weights), free))
        for name, sharp, size in (("every", False, changes.max()), ("mean", True, changes.mean())):
            bound = hard_mask_stability(
                lipschitz=lipschitz, least_eigenvalue=flattest, ridge=ridge, n=n, mean_over=mean_over, sharp=sharp
            )
            row[f"{name} over {mean_over}"] = size / bound.value if size else 0.0
        if mean_over == "remaining":
            by_form, as_printed = (
                hard_mask_stability(lipschitz=lipschitz, least_eigenvalue=eigenvalue, ridge=ridge, n=n).value
                for eigenvalue in (flattest, printed)
            )
            row["mean by printed form"] = changes.mean() / by_form
            row |= {"every, printed Λ_min": changes.max() / as_printed, "mean, printed Λ_min": changes.mean() / as_printed}
    return row


def _from_below(solvable: Solvable, one: Array, other: Array, weights: Array) -> Array:
    """A matrix that the Hessian of the weighted mean loss is nowhere below between two points: (d, d).

    σ′ has one maximum, so that between two margins it is least at one of them; squared losses bend equally everywhere.
    """
    x = solvable.inputs
    ends = [np.ones_like(solvable.targets)]
    if solvable.kind == "logistic":
        ends = [expit(x @ theta) * expit(-(x @ theta)) for theta in (one, other)]
    bend = np.minimum.reduce(ends)
    return np.asarray(np.einsum("n,nc,ncd,nce->de", weights / weights.sum(), bend, x, x, optimize=True))


def least(matrix: Array, free: Coordinates) -> float:
    return float(np.linalg.eigvalsh(matrix[np.ix_(free, free)])[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    options = parser.parse_args()
    frame = pd.DataFrame([check(seed) for seed in range(options.instances)])
    ratios = [name for name in frame if " " in str(name)]
    result = {
        "instances": options.instances,
        "largest ratio measured / bound": {name: float(frame[name].max()) for name in ratios},
        "instances above the bound": {name: int((frame[name] > 1 + 1e-9).sum()) for name in ratios},
        "median ratio": {name: float(frame[name].median()) for name in ratios},
        "closest instance": {
            name: frame.iloc[int(frame[name].argmax())][["seed", "kind", "n", "k", "ridge"]].to_dict() for name in ratios
        },
        "versions": {name: machine.report()[name] for name in ("python", "numpy", "scipy", "stability")},
    }
    text = json.dumps(result, indent=2, default=lambda value: value.item(), ensure_ascii=False)
    if options.json or options.instances != 5000:  # what is recorded is always the same
        print(text)
        return
    path = Path(__file__).parent / "results" / "bounds-convex.json"
    path.write_text(text + "\n")
    print(text, f"\nwritten to {path}")


if __name__ == "__main__":
    main()
