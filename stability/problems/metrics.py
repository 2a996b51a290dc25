"""Losses of each example and metrics of all, from logits (B, C) and labels (B,). Of a metric, larger is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# scikit-learn and scipy.stats are slow to import, and few problems have a metric of theirs: each metric imports its own.

__all__ = [
    "METRICS",
    "accuracy",
    "accuracy_and_f1",
    "commonest_class",
    "constant",
    "cross_entropies",
    "matthews",
    "pearson_and_spearman",
    "squared_errors",
]


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy −log softmax(f)_y of each example, in nats.

    Args:
        logits: f, (B, C).
        labels: the classes y as whole numbers, int64 (B,).

    Returns:
        The losses, (B,).

    Example:
        >>> import torch
        >>> cross_entropies(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """
    return cross_entropy(logits, labels, reduction="none")


def squared_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """The squared error (f − y)² of each example.

    Args:
        logits: f, (B, 1).
        labels: the numbers y, (B,).

    Returns:
        The losses, (B,).

    Example:
        >>> import torch
        >>> squared_errors(torch.tensor([[1.0]]), torch.tensor([3.0]))
        tensor([4.])
    """
    return (logits[:, 0] - labels) ** 2


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of examples whose largest logit is that of their label.

    Args:
        logits: (B, C).
        labels: the classes as whole numbers, (B,).

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    return (logits.argmax(-1) == labels).double().mean().item()


def commonest_class(labels: Tensor, outputs: int, count: int) -> Tensor:
    """Logits that predict the commonest class for every input: a constant prediction that a metric can be compared with.

    Args:
        labels: the training labels as whole numbers, (N,).
        outputs: number of classes, C.
        count: number of predictions, B.

    Returns:
        The number of labels in each class, repeated: (B, C).

    Example:
        >>> import torch
        >>> commonest_class(torch.tensor([0, 1, 1]), outputs=3, count=1)
        tensor([[1., 2., 0.]])
    """
    return torch.bincount(labels.cpu(), minlength=outputs).float().expand(count, -1)


def constant(labels: Tensor, outputs: int, count: int) -> Tensor:
    """Logits of the best constant prediction: that of the commonest class, or of the mean where labels are no whole numbers.

    Args:
        labels: the training labels, (N,).
        outputs: number of logits of an example.
        count: number of predictions, B.

    Returns:
        The same row for each, (B, outputs).

    Example:
        >>> import torch
        >>> constant(torch.tensor([1.0, 2.0]), outputs=1, count=1)
        tensor([[1.5000]])
    """
    if labels.is_floating_point():
        return labels.mean().expand(count, outputs)
    return commonest_class(labels, outputs, count)


def matthews(logits: Tensor, labels: Tensor) -> float:
    """Matthews's correlation of predicted and true classes, the metric of CoLA. It is 0 where all predictions are one class.

    Args:
        logits: (B, C).
        labels: the classes as whole numbers, (B,).

    Example:
        >>> import torch
        >>> matthews(torch.eye(2), torch.tensor([0, 1]))
        1.0
    """
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels.cpu().numpy(), logits.argmax(-1).cpu().numpy()))


def accuracy_and_f1(logits: Tensor, labels: Tensor) -> float:
    """The mean of accuracy and F1, the metric of MRPC. The positive class is the last one; F1 is 0 where it never occurs.

    Args:
        logits: (B, C).
        labels: the classes as whole numbers, (B,).

    Example:
        >>> import torch
        >>> accuracy_and_f1(torch.eye(2), torch.tensor([0, 1]))
        1.0
    """
    from sklearn.metrics import f1_score

    positive = logits.shape[-1] - 1
    pair = labels.cpu().numpy() == positive, logits.argmax(-1).cpu().numpy() == positive
    return (accuracy(logits, labels) + float(f1_score(*pair, zero_division=0.0))) / 2


def pearson_and_spearman(logits: Tensor, labels: Tensor) -> float:
    """The mean of Pearson's and Spearman's correlation of logit and label, the metric of STS-B. It is 0 where one is constant.

    Args:
        logits: (B, 1).
        labels: numbers, (B,).

    Example:
        >>> import torch
        >>> round(pearson_and_spearman(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.1, 0.2, 0.3])), 6)
        1.0
    """
    from scipy.stats import pearsonr, spearmanr

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
"""The metrics by the names that tables and figures give them."""
