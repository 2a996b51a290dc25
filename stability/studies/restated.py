"""Records of older versions as this one would have written them, with the stability estimated anew from what was measured.

Versions before store format 5 estimated the stability of unequal draws by Des Raj's estimator, whose intervals failed for some
methods. The examples that were left out, their losses and the predictions are in every record, and the draws follow from the seed.
So nothing need be trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from stability.bounds.risk import generalization_from_stability
from stability.leave_one_out.estimate import Diagnostics, diagnosed, finite, trusted
from stability.leave_one_out.estimators import Assisted, Status
from stability.leave_one_out.predictors import Prediction
from stability.leave_one_out.statistics import Estimate

__all__ = ["flat", "restated", "stability_columns"]


_KEPT = ("correlation", "rank_correlation")  # of the same numbers, whatever is made of them


def stability_columns(pointwise: Estimate, diagnostics: Diagnostics, status: Status) -> dict[str, Any]:
    """The columns of a record that tell the stability and how well it is known: None for what is unknown or unbounded.

    Args:
        pointwise: the stability.
        diagnostics: how well prediction and draws did.
        status: how the estimate ended.
    """
    found = {
        "stability": None if status == Status.NOT_MEASURED else pointwise.value,
        "stability_low": pointwise.interval[0],
        "stability_high": pointwise.interval[1],
        "stability_error": pointwise.error,
        "estimate_status": status.value,
        **asdict(diagnostics),
    }
    return {name: finite(value) if isinstance(value, float) else value for name, value in found.items()}


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the ends of its interval, and the number of its failed retrainings, as values of their own.

    Args:
        record: what a version before store format 7 wrote, or one that is so already.

    Example:
        >>> flat({"stability": 0.5, "stability_interval": [0.4, None], "failed": {"3": 17}})
        {'stability': 0.5, 'stability_low': 0.4, 'stability_high': None, 'failed_replicas': 1}
    """
    found = dict[str, Any]()
    for name, value in record.items():
        if name == "stability_interval":
            found["stability_low"], found["stability_high"] = value or (None, None)
        elif name == "failed":
            found["failed_replicas"] = len(value)
        else:
            found[name] = value
    return found


def restated(study: Mapping[str, Any], cell: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as this version would have written it.

    Args:
        study: the identity of the study.
        cell: the identity of the cell.
        record: what an older version wrote. It is left as it is.

    Returns:
        The record with the stability, its interval, error and diagnostics, and the bound that follows from it, where examples
        were drawn by their predictions; otherwise the same record.

    Example:
        >>> restated({}, {"seed": 0}, {"status": "failed"})
        {'status': 'failed'}
    """
    if record.get("estimator") != Assisted.name:
        return dict(record)
    told, rows = record["prediction"]["difference"], pd.DataFrame(record["per_example"])
    table = pd.DataFrame({"index": range(len(told)), "difference": np.array(told, dtype=np.float64)})
    prediction = Prediction(table, record["prediction"]["by"], record["prediction"]["seconds"])
    design = Assisted().design(len(told), cell["seed"], prediction)
    if design.draws is None:  # drawn alike: nothing was weighed
        return dict(record)
    if design.order[: len(rows)].tolist() != rows["index"].tolist():  # by code of one's own: nothing is known of its interval
        return dict(record) | dict.fromkeys(("stability_low", "stability_high", "stability_error", "variance_cut"))
    rows["difference"] = rows["difference"].astype(float)
    found = design.mean(rows["difference"].abs().to_numpy(), 0.95)
    asked = study.get("estimator", {})
    estimator = Assisted(asked.get("retrainings"), asked.get("tolerance"))
    known = diagnosed(rows, design, found, prediction)
    told = found if estimator.tolerance is None else trusted(found, estimator, known, design)
    columns = stability_columns(found, known, estimator.status(told))
    new = dict(record) | {name: value for name, value in columns.items() if name not in _KEPT}
    if record.get("theorem_2_measured") is not None:
        bound = generalization_from_stability(
            hypothesis=record["hypothesis_stability"],
            pointwise=found.value,
            n=record["n"],
            loss_bound=record["loss_bound"],
            delta=study["delta"],
            empirical_risk=min(record["train_loss"], record["loss_bound"]),
        )
        new |= {"theorem_2_measured": bound.to_dict()["value"], "theorem_2_measured_state": bound.state.value}
    return new
