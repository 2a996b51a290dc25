"""An estimate as a notebook shows it: the answer, a small table, and the examples that carry most, with their pictures."""

from __future__ import annotations

import base64
import io
import math
from html import escape

import pandas as pd
import torch

from stability.leave_one_out.estimate import StabilityEstimate
from stability.leave_one_out.wording import amount, carriers, doubts, remedy, sentence, size_of

__all__ = ["as_html", "table_html"]

_SHOWN = 5  # examples
_LONGEST = 200  # characters of a text


def as_html(estimate: StabilityEstimate) -> str:
    """The answer in a sentence, a small table, and the examples that carry most. It needs nothing from elsewhere.

    Args:
        estimate: a measured stability.

    Example:
        >>> from stability import FineTuning, estimators, load, measure, selectors
        >>> html = as_html(measure(load("digits", n=10), FineTuning(selectors.BitFit(), steps=2), estimators.Exact()))
        >>> html.startswith("<p><b>Leaving one training example out changes"), html.count("<img src='data:image/png")
        (True, 5)
    """
    subject, words = estimate.subject, estimate.units.words
    facts = {
        "method": subject.method,
        "parameters": f"p = {estimate.sparsity:.3g}: k = {estimate.k} of {estimate.m}",
        "training": f"{subject.training}, on n = {subject.n} examples{f' of {subject.data}' if subject.data else ''}",
        "retrained": words.each_of(f"{estimate.retrainings} of {estimate.units.count}"),
        "largest change": "not measured" if math.isnan(estimate.maximum) else amount(estimate.maximum, subject.loss_unit),
        "noise floor": size_of(estimate.noise_floor),
        "time": f"{estimate.seconds:.1f} s",
    }
    if estimate.k is None:
        del facts["parameters"]
    if estimate.reason:
        facts["estimator"] = estimate.reason
    parts = [f"<p><b>{escape(sentence(estimate))}</b></p>"]
    if why := doubts(estimate):
        settled = ""
        if (cure := remedy(estimate)) is not None:
            settled = f" <code>{cure.call}</code> would settle it."
        parts.append(f"<p><b>Inconclusive</b>: {escape('; '.join(why))}.{settled}</p>")
    parts.append(table_html(pd.DataFrame(facts.items()), header=False))
    if rows := carriers(estimate, _SHOWN):
        cells = []
        for row in rows:
            change, how = (row["predicted"], ", predicted") if math.isnan(row["retrained"]) else (row["retrained"], "")
            seen = escape(row["shown"] if len(row["shown"]) <= _LONGEST else f"{row['shown'][:_LONGEST]}…")
            numbers = f"<td>{row['share']:.0%}</td><td>{change:+.3g}{how}</td>"
            cells.append(f"<tr>{numbers}<td style='text-align: left'>{_picture(estimate, int(row['index']))}{seen}</td></tr>")
        unit = escape(subject.loss_unit)
        head = f"<tr><th>share</th><th>change of {escape(words.its)} ({unit})</th><th>{escape(words.singular)}</th></tr>"
        parts.append(f"<p>The {words.plural} that carry most of it:</p><table>{head}{''.join(cells)}</table>")
    return "".join(parts)


def table_html(table: pd.DataFrame, *, header: bool = True) -> str:
    """A table as HTML, escaped, with no text cut.

    Args:
        table: its cells as they are to be read.
        header: whether the columns' names are shown.

    Example:
        >>> "&lt;b&gt;" in table_html(pd.DataFrame({"name": ["<b>"]}))
        True
    """
    with pd.option_context("display.max_colwidth", None):
        html = str(table.to_html(index=False, header=header, border=0))
    # Notebooks align cells to the right, which suits numbers alone.
    return html if header else html.replace("<td>", "<td style='text-align: left'>")


def _picture(estimate: StabilityEstimate, i: int) -> str:
    """The picture of a training example, as part of the page; empty where there is none."""
    shown = estimate.subject.shown
    if estimate.units.names is not None or not isinstance(shown, torch.Tensor) or len(shown) != estimate.n:
        return ""
    from matplotlib.image import imsave

    written = io.BytesIO()
    imsave(written, shown[i].cpu().numpy(), cmap="gray_r", format="png")
    data = base64.b64encode(written.getvalue()).decode()
    style = "height: 3em; image-rendering: pixelated; vertical-align: middle; margin-right: 0.7em"
    return f"<img src='data:image/png;base64,{data}' style='{style}' alt='example {i}'>"
