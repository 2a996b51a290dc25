"""The results of a study → a table to read."""

from __future__ import annotations

import math

import pandas as pd

from stability.bounds.base import State
from stability.studies.results import UNKNOWN, CellStatus, Failure, StudyResults

__all__ = ["render", "study_table"]


_BOUNDS = {"theorem_1": "Theorem 1", "hard_mask": "hard mask", "first_order": "middle", "theorem_2": "Theorem 2"}


def study_table(results: StudyResults) -> pd.DataFrame:
    """A row for each task, method and p, its numbers ready to read.

    Args:
        results: the results of a study.

    Returns:
        Text: mean ± standard deviation over seeds, stability with its 95 % interval, bounds with a mark where they are vacuous or
        one of their assumptions failed.

    Raises:
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> study_table(StudyResults.read("figures/paper-quick-bounds.sqlite"))["k"].tolist()
        [22713216, 113566]
    """
    summary = results.summary().table
    metrics = results.table["metric"].dropna().unique()
    metric = str(metrics[0]) if len(metrics) == 1 else "metric"
    return pd.DataFrame(
        {
            **({"task": summary["task"]} if summary["task"].nunique() > 1 else {}),
            "method": summary["method"],
            "p": summary["sparsity"].map("{:.4f}".format),
            "k": summary["tunable"],
            "m": summary["total"],
            "head": summary["head"],
            "seeds": [
                f"{ok}" + (f" (+{bad} failed)" if bad else "") for ok, bad in zip(summary["seeds"], summary["failed"], strict=True)
            ],
            **({"measured": summary["measured"]} if not summary["measured"].equals(summary["seeds"]) else {}),
            f"train {metric}": _mean_std(summary, "train_metric"),
            f"test {metric}": _mean_std(summary, "test_metric"),
            "test loss": _mean_std(summary, "test_loss"),
            "gap": _mean_std(summary, "gap"),
            "stability": summary["stability"].map("{:.3f}".format),
            "95 % interval": [
                f"{max(low, 0):.3f} … {high:.3f}"
                for low, high in zip(summary["stability_low"], summary["stability_high"], strict=True)
            ],
            "left out": summary["retrainings"].map("{:.4g}".format),
            **_varied(summary),
            "noise floor": summary["noise_floor"].map("{:.1e}".format),
            **{
                title: [_bound(value, state) for value, state in zip(summary[name], summary[f"{name}_state"], strict=True)]
                for name, title in _BOUNDS.items()
            },
            "failed replicas": summary["failed_replicas"],
            "seconds": summary["seconds"].map("{:.1f}".format),
        }
    )


def render(results: StudyResults) -> str:
    """The table of a study as text, with what its marks mean.

    Args:
        results: the results of a study.

    Returns:
        The table of :func:`study_table`, what failed and why, what a reader must know, and what the columns and marks mean.

    Raises:
        StabilityError: no cell is finished, or every one failed.

    Example:
        >>> from stability.studies import StudyResults
        >>> render(StudyResults.read("figures/paper-quick-bounds.sqlite")).splitlines()[0].split()[:4]
        ['method', 'p', 'k', 'm']
    """
    return (
        study_table(results).to_string(index=False)
        + "".join(f"\n{line}" for line in (*_failures(results), *(f"note: {note}" for note in results.notes)))
        + (
            "\n\nstability: mean over seeds of E_i |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|, interval over seeds, cut at 0; "
            "± is one standard deviation over seeds.\n"
            "left out: retrainings a cell. of S, of seeds, of i: the share in a cell's variance of fresh training sets, of seeds "
            "on one of them, and of not leaving out every i.\n"
            "p: fraction of the m pretrained parameters that may change (k of them), m with the inserted ones where a method "
            "inserts modules; the new head is tunable besides. Of 'regularised' all may change, and p is 1 − λ.\n"
            "seconds: a seed's selections, trainings and evaluations, in one process.\n"
            "Theorem 1, hard mask: bounds on it; middle: what it is to first order. Theorem 2: bound on the test loss.\n"
            "*: an assumption failed in at least one seed (Λ_min < 0, trained without the ridge λ of the bound or not to its "
            "minimum, or another mask on Sⁱ).\n"
            "†: vacuous in at least one seed, no less than the largest loss. ∞: no positive curvature. –: none."
        )
    )


def _failures(results: StudyResults) -> list[str]:
    """What failed, a line for each method that never finished, and for each reason."""
    lines = [f"every seed failed: {name}" for name in results.summary().all_failed]
    bad = results.table[results.table["status"] == CellStatus.FAILED]
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in bad.to_dict("records"):
        asked = "" if pd.isna(row["sparsity"]) else f" at p = {row['sparsity']:g}"
        what = row["method"] + asked + (f" on {row['task']}" if len(results.tasks) > 1 else "")
        kind = row.get("failure")
        final = kind == Failure.METHOD or pd.isna(kind)  # records from before there were kinds have none
        why = row["reason"] + ("" if final else " (tried again when the study is run again)")
        grouped.setdefault((what, why), []).append(str(row["seed"]))
    lines += [f"failed: {what}, seed {', '.join(seeds)}: {why}" for (what, why), seeds in grouped.items()]
    return lines


def _varied(summary: pd.DataFrame) -> dict[str, list[str]]:
    """Where the variance comes from, in three columns; none unless S was drawn apart from the seeds."""
    if not summary["samples_share"].notna().any():
        return {}
    names = {"of S": "samples_share", "of seeds": "seeds_share", "of i": "sampling_share"}
    return {title: ["–" if math.isnan(part) else f"{part:.0%}" for part in summary[name]] for title, name in names.items()}


def _mean_std(summary: pd.DataFrame, name: str) -> list[str]:
    return [
        f"{m:.3f} ± {s:.3f}" if math.isfinite(s) else f"{m:.3f}" for m, s in zip(summary[name], summary[f"{name}_std"], strict=True)
    ]


def _bound(value: float, state: str) -> str:
    if state == UNKNOWN:
        return "–"
    marks: dict[str, str] = {State.ASSUMPTION_FAILED: " *", State.VACUOUS: " †"}
    mark = marks.get(state, "")
    return ("∞" if math.isinf(value) else f"{value:.3g}") + mark
