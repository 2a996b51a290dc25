"""Of logits and labels: the loss of each example, and metrics, the larger the better, from scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = [
    "METRICS",
    "accuracy",
    "accuracy_and_f1",
    "commonest_class",
    "cross_entropies",
    "matthews",
    "pearson_and_spearman",
    "squared_errors",
]


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(f)_y of each example, in nats: (B, C), (B,) → (B,).

    Example:
        >>> import torch
        >>> cross_entropies(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """
    return cross_entropy(logits, labels, reduction="none")


def squared_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """(f − y)² of each example: (B, 1), (B,) → (B,).

    Example:
        >>> import torch
        >>> squared_errors(torch.tensor([[1.0]]), torch.tensor([3.0]))
        tensor([4.])
    """
    return (logits[:, 0] - labels) ** 2


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of examples whose largest logit is the label's.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    return (logits.argmax(-1) == labels).double().mean().item()


def commonest_class(labels: Tensor, outputs: int, count: int) -> Tensor:
    """Logits (count, outputs) that name the commonest of ``labels`` whatever the input: what a metric is to be compared with.

    Example:
        >>> import torch
        >>> commonest_class(torch.tensor([0, 1, 1]), outputs=3, count=1)
        tensor([[1., 2., 0.]])
    """
    return torch.bincount(labels.cpu(), minlength=outputs).float().expand(count, -1)


def matthews(logits: Tensor, labels: Tensor) -> float:
    """Matthews's correlation of predicted and true classes (CoLA), 0 where all predictions are one class.

    Example:
        >>> import torch
        >>> matthews(torch.eye(2), torch.tensor([0, 1]))
        1.0
    """
    return float(matthews_corrcoef(labels.cpu().numpy(), logits.argmax(-1).cpu().numpy()))


def accuracy_and_f1(logits: Tensor, labels: Tensor) -> float:
    """The mean of accuracy and F1 of the last class (MRPC); F1 is 0 where that class is neither there nor predicted.

    Example:
        >>> import torch
        >>> accuracy_and_f1(torch.eye(2), torch.tensor([0, 1]))
        1.0
    """
    positive = logits.shape[-1] - 1
    pair = labels.cpu().numpy() == positive, logits.argmax(-1).cpu().numpy() == positive
    return (accuracy(logits, labels) + float(f1_score(*pair, zero_division=0.0))) / 2


def pearson_and_spearman(logits: Tensor, labels: Tensor) -> float:
    """The mean of Pearson's and Spearman's correlation of the only logit with the label (STS-B), 0 where either is constant.

    Example:
        >>> import torch
        >>> round(pearson_and_spearman(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.1, 0.2, 0.3])), 6)
        1.0
    """
    found, true = logits[:, 0].double().cpu().numpy(), labels.double().cpu().numpy()
    if np.ptp(found) == 0 or np.ptp(true) == 0:
        return 0.0
    return (float(pearsonr(found, true).statistic) + float(spearmanr(found, true).statistic)) / 2


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "Matthews": matthews,
    "mean of accuracy and F1": accuracy_and_f1,
    "mean of Pearson and Spearman": pearson_and_spearman,
}
"""Metric by the name that tables and figures give it."""
