"""What a study measured as two tidy tables for other programs, and what each of their columns means.

The columns are described here and nowhere else: the documentation is made of :data:`CELLS` and :data:`EXAMPLES`, and a table with
any other column cannot be made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from stability.errors import StabilityError
from stability.studies.identity import as_json
from stability.studies.results import BOUNDS
from stability.studies.store import Store
from stability.studies.tables import short, table_of

__all__ = ["CELLS", "EXAMPLES", "Column", "cells", "described", "examples"]


class Column(NamedTuple):
    """A column of an exported table.

    Attributes:
        unit: the unit; empty for words, and for numbers without one.
        meaning: what it holds.
    """

    unit: str
    meaning: str


_LOSS, _P, _PARAMETERS = "loss", "fraction", "parameters"
"""``loss`` is the unit of the loss, which column ``loss_unit`` names."""

_WHERE = {
    "study": Column("", "Name of the study."),
    "fingerprint": Column("", "First 12 hexadecimal digits of the SHA-256 of the study's identity."),
    "task": Column("", "Name of the problem."),
    "method": Column("", "Name of the method that selects parameters."),
    "algorithm": Column("", "First 12 hexadecimal digits of the SHA-256 of the algorithm's settings."),
    "sparsity": Column(_P, "p: the fraction of the pretrained parameters that may change. Of a failed cell, p as asked for."),
    "seed": Column("", "Seed of the algorithm; it draws S too, unless column `sample` has a seed of S."),
    "sample": Column("", "Seed of S where the study draws S apart from the algorithm's seed; else missing."),
}

_THEOREMS = {
    "theorem_1": "Theorem 1's bound on `stability`",
    "theorem_1_sharp": "The same bound with the best constant for the mean over i",
    "hard_mask": "The bound on `stability` for a hard mask, with constants over the tunable parameters alone",
    "hard_mask_sharp": "The same bound with the best constant for the mean over i",
    "first_order": "`stability` to first order, an estimate and no bound",
    "theorem_2": "Theorem 2's bound on the expected test loss, from Theorem 1",
    "theorem_2_measured": "Theorem 2's bound on the expected test loss, from the measured stability",
    "uniform_measured": "Bousquet & Elisseeff's bound on the expected test loss, with the largest difference found",
}
_STATES = "`not refuted`, `vacuous` (no less than the largest loss), `assumption failed`, `infinite` or `estimate`"

CELLS: Mapping[str, Column] = {
    **_WHERE,
    "settings": Column("", "All settings of the algorithm and its selector, as JSON."),
    "status": Column("", "`ok`, or `failed`: then the measured columns are missing."),
    "failure": Column("", "Of a failed cell: `method` (a result of the method, such as divergence), `machine` or `error`."),
    "reason": Column("", "Of a failed cell: why it failed."),
    "measured": Column("", "Whether stability was measured, and not only the losses and metrics of A(S)."),
    "n": Column("examples", "Size of the training set S."),
    "tunable": Column(_PARAMETERS, "k: how many pretrained or inserted parameters may change."),
    "total": Column(_PARAMETERS, "m: how many pretrained parameters there are, with the inserted ones."),
    "head": Column(_PARAMETERS, "Parameters of the new head, which are always trained and are not counted in k."),
    "estimator": Column("", "How the examples that are left out were chosen."),
    "estimator_reason": Column("", "Which estimator was chosen, and why; missing where one was asked for."),
    "estimate_status": Column("", "Whether the estimator got as far as it was asked to."),
    "retrainings": Column("", "How many examples were left out, each with a retraining."),
    "failed_replicas": Column("", "Retrainings that failed. They enter no average."),
    "stability": Column(_LOSS, "Pointwise hypothesis stability: mean over i of |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)|."),
    "stability_low": Column(_LOSS, "Lower end of the cell's own 95 % interval, over the choice of the examples left out."),
    "stability_high": Column(_LOSS, "Upper end of that interval; missing where it is unbounded."),
    "stability_error": Column(_LOSS, "Standard error of `stability`, over the choice of the examples left out."),
    "hypothesis_stability": Column(
        _LOSS,
        "Hypothesis stability: mean over i of |ℓ(A(Sⁱ), z) − ℓ(A(S), z)|, averaged over (`test_examples` of the) test examples z.",
    ),
    "maximum": Column(_LOSS, "Largest |ℓ(A(Sⁱ), z_i) − ℓ(A(S), z_i)| found, a lower estimate of uniform stability."),
    "noise_floor": Column(_LOSS, "Mean difference between two runs that would agree in exact arithmetic: what rounding does."),
    "correlation": Column("", "Pearson's correlation between predicted and retrained differences."),
    "rank_correlation": Column("", "Spearman's rank correlation between predicted and retrained differences."),
    "variance_cut": Column("", "How many times smaller the variance is than that of plain sampling with as many retrainings."),
    "effective_retrainings": Column("", "How many retrainings plain sampling would need for the same variance."),
    "simulated_coverage": Column(
        "fraction", "How often 95 % intervals held the truth in simulations of draws like these, where all were retrained."
    ),
    "distance": Column("", "Mean Euclidean distance between the parameters of A(S) and of A(Sⁱ)."),
    "mask_overlap": Column("fraction", "Mean of |M ∩ Mⁱ| / |M ∪ Mⁱ| for the masks M of S and Mⁱ of Sⁱ; missing in older results."),
    "loss_unit": Column("", "Unit of the loss, such as nats."),
    "metric": Column("", "Name of the metric."),
    "train_loss": Column(_LOSS, "Mean loss of A(S) on S."),
    "validation_loss": Column(_LOSS, "Mean loss of A(S) on the validation split; missing where there is none."),
    "test_loss": Column(_LOSS, "Mean loss of A(S) on the test split."),
    "gap": Column(_LOSS, "`test_loss` − `train_loss`."),
    "train_metric": Column("", "Metric of A(S) on S, as a fraction or a correlation."),
    "validation_metric": Column("", "Metric of A(S) on the validation split; missing where there is none."),
    "test_metric": Column("", "Metric of A(S) on the test split, as a fraction or a correlation."),
    "validation_constant": Column(
        "", "The metric, on the validation split, of predicting the commonest class of S, or the mean label, for every example."
    ),
    "test_constant": Column("", "The same on the test split."),
    "kept_step": Column("steps", "The step whose parameters were kept: the last one, or that which early stopping chose."),
    "lipschitz": Column("", "ρ: the largest norm of the gradient of an example's loss that was seen, over all parameters."),
    "tuned_lipschitz": Column("", "The same over the tunable parameters."),
    "gradient_norm": Column(
        "", "Largest norm of the gradient of the training objective at the trained models, over all parameters."
    ),
    "tuned_gradient_norm": Column("", "The same over the tunable parameters."),
    "loss_bound": Column(_LOSS, "C: the largest loss that was seen, which stands for the bound on the loss."),
    "replicas_checked": Column("", "For how many i the curvature was taken at A(Sⁱ) too."),
    "least_eigenvalue": Column("", "Least eigenvalue of the Hessian of the mean loss that was found, over all parameters."),
    "least_eigenvalue_residual": Column("", "How far that eigenvalue may be off: the residual of the eigenvector."),
    "tuned_least_eigenvalue": Column("", "The same over the tunable parameters."),
    "tuned_least_eigenvalue_residual": Column("", "How far that eigenvalue may be off: the residual of the eigenvector."),
    **{
        f"{name}{part}": column
        for name in BOUNDS
        for part, column in (
            ("", Column(_LOSS, f"{_THEOREMS[name]}. It is missing where it is infinite or was not measured.")),
            ("_state", Column("", f"What can be said of `{name}`: {_STATES}.")),
        )
    },
    "failed_assumptions": Column("", "Assumptions that failed, as JSON: for each bound a list."),
    "notes": Column("", "What else a reader of the bounds must know; separated by semicolons."),
    "seconds": Column("s", "Wall-clock time of the cell's selections, trainings and evaluations."),
    "cell_seconds": Column("s", "Time of the whole cell, with the constants of the bounds."),
    "threads": Column("threads", "Threads with which the replicas were trained."),
    "software": Column("", "Versions of the software that computed the cell."),
    "device": Column("", "Device that computed the cell."),
}
"""The columns of the table of cells, by name, in their order. The loss at each step (``history``) is not exported."""

EXAMPLES: Mapping[str, Column] = {
    **_WHERE,
    "index": Column("", "i: the place of the example in S, from 0."),
    "loss_full": Column(_LOSS, "ℓ(A(S), z_i): the loss of the example under the model trained on all of S."),
    "loss_left_out": Column(_LOSS, "ℓ(A(Sⁱ), z_i): its loss under the model retrained without it."),
    "difference": Column(_LOSS, "`loss_left_out` − `loss_full`."),
    "predicted": Column(_LOSS, "The difference as it was predicted before retraining; missing without a predictor."),
    "distance": Column("", "Euclidean distance between the parameters of A(S) and of A(Sⁱ)."),
    "mask_changes": Column(_PARAMETERS, "How many parameters of the mask chosen on S are not in the mask chosen on Sⁱ."),
    "failed_step": Column("steps", "The step at which the retraining failed; -1 where it did not."),
}
"""The columns of the table of the examples that were left out, by name, in their order."""


def cells(store: Store) -> pd.DataFrame:
    """A row for each finished cell, with the columns :data:`CELLS`.

    Args:
        store: the store of a study.

    Returns:
        Numbers and words alone: what a record holds in lists is taken apart, or written as JSON.

    Raises:
        StabilityError: no cell is finished, or a cell has a value that is not described.

    Example:
        >>> cells(Store("figures/discontinuity.sqlite"))["method"].head(3).to_list()
        ['diffpruning', 'childpruning', 'sam']
    """
    table, details = _placed(store)
    settings = {short(one): as_json(one) for one in store.identity["algorithms"]}
    assumptions = [{name: failed for name, failed in one.get("failed_assumptions", {}).items() if failed} for one in details]
    known = table["measured"].fillna(True).astype(bool) if "measured" in table else True
    found = table.assign(
        settings=table["algorithm"].map(settings),
        failed_assumptions=pd.Series([as_json(one) if one else None for one in assumptions], table.index),
        notes=pd.Series(["; ".join(one["notes"]) if one.get("notes") else None for one in details], table.index),
        measured=known & table["stability"].notna() if "stability" in table else False,
    )
    return _described(found, CELLS, store)


def examples(store: Store) -> pd.DataFrame:
    """A row for each example that was left out in each cell, with the columns :data:`EXAMPLES`.

    Args:
        store: the store of a study.

    Raises:
        StabilityError: no example was left out yet.

    Example:
        >>> len(examples(Store("figures/discontinuity.sqlite")))  # 9 cells, in each of them two
        18
    """
    table, details = _placed(store)
    rows = [
        {"cell": place, **one, "predicted": _predicted(cell, one["index"])}
        for place, cell in enumerate(details)
        for one in cell.get("per_example", [])
    ]
    if not rows:
        raise StabilityError(f"{store.path} has no example that was left out yet: run the study first")
    found = pd.DataFrame(rows)
    where = table.reindex(columns=list(_WHERE)).iloc[found.pop("cell")].reset_index(drop=True)
    return _described(pd.concat([where, found], axis=1), EXAMPLES, store)


def described(columns: Mapping[str, Column]) -> str:
    """Columns as a table in Markdown.

    Args:
        columns: :data:`CELLS` or :data:`EXAMPLES`.

    Example:
        >>> print(described(EXAMPLES).splitlines()[0])
        | column | unit | meaning |
    """
    rows = (f"| `{name}` | {column.unit} | {column.meaning.replace('|', chr(92) + '|')} |" for name, column in columns.items())
    return "\n".join(["| column | unit | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def _placed(store: Store) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The study's cells, each with what study it is of; and what each holds in lists."""
    table, _ = table_of(store)
    if table.empty:
        raise StabilityError(f"{store.path} has no finished cell: run the study first")
    details = store.details(keys := table.pop("key").tolist())
    return table.assign(study=store.identity["study"], fingerprint=short(store.identity)), [details[one] for one in keys]


def _described(table: pd.DataFrame, columns: Mapping[str, Column], store: Store) -> pd.DataFrame:
    if odd := [name for name in table.columns if name not in columns]:
        raise StabilityError(
            f"{store.path} holds {', '.join(odd)}, which this version does not know: use the version that wrote it"
        )
    return table.reindex(columns=list(columns))


def _predicted(cell: Mapping[str, Any], index: int) -> float | None:
    prediction = cell.get("prediction")
    told: list[float | None] = [] if prediction is None else prediction["difference"]
    return told[index] if index < len(told) else None
