"""Training loops of one's own: what a :class:`Loop` is, and the ready-made ones. :func:`stability.measure_loop` measures them.

A loop trains with some example weights and a seed, and says what the losses are then. How it trains is its own affair. It has no
mask, so that there is no p, and the bounds say nothing of it.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stability.checks import check_flags, check_whole
from stability.errors import UsageError

__all__ = [
    "ByRemoval",
    "ByWeight",
    "Loop",
    "Losses",
    "Sklearn",
    "TrainerFactory",
    "log_loss",
    "squared_error",
    "zero_one",
]

Floats = NDArray[np.float64]
ModelLoss = Callable[[Any, Any, Any], Any]
"""A fitted model, inputs and labels → the loss of each row."""


@dataclass(frozen=True, eq=False)
class Losses:
    """What one training gives. Each field may be a list, an array of numpy or a tensor.

    Attributes:
        train: (n,) the loss of every training example under the trained model, also of those that it was trained without.
        held_out: (N,) the losses of N held-out examples; None: there are none.
        gradients: (n, P) the gradient of every training example's loss by the parameters, at the end of the training. The squared
            norms say which examples probably matter. None: the losses say it.
        parameters: (P,) the trained parameters, from which ‖A(Sⁱ) − A(S)‖₂ follows; None: it stays unknown.
        note: what should be known of this training, a sentence without its full stop.

    Example:
        >>> Losses([0.5, 1.0], held_out=[0.7]).gradients is None
        True
    """

    train: Any
    held_out: Any = None
    _: KW_ONLY
    gradients: Any = None
    parameters: Any = None
    note: str = ""


class Loop(ABC):
    """A training program on n examples. Subclasses write :meth:`run`.

    Attributes:
        n: how many training examples there are.
        name: what tables and figures call it.
        loss_unit: of its losses, such as ``nats``.
        by_weight: whether an example is left out by weight 0. Otherwise its row is removed, and the estimate says that what the
            loop draws, such as the order of its batches, may then differ too.
        shown: (n,) what a person sees of each example, such as its text; None: its number.
    """

    n: int
    name: str
    loss_unit: str
    by_weight: bool
    shown: Sequence[str] | None = None

    @abstractmethod
    def run(self, weights: Floats, seed: int) -> Losses:
        """Train, and give the losses.

        Args:
            weights: (n,) one for each example, 0 for left out and 1 for kept.
            seed: of all that the loop draws. Two runs with equal weights and seeds should agree.
        """

    def label(self, i: int) -> str:
        """The label of example ``i``; empty where none is known."""
        return ""


@dataclass(frozen=True, eq=False)
class _OfFunction(Loop):
    """A loop that is a function."""

    function: Callable[[NDArray[Any], int], Any]
    n: int
    _: KW_ONLY
    name: str = ""
    loss_unit: str = "nats"
    shown: Sequence[str] | None = None

    _takes: ClassVar[str]

    def __post_init__(self) -> None:
        _settle(self, self.function)
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # of what is written in C
            return
        try:
            signature.bind(None, 0)
        except TypeError as error:
            raise UsageError(f"function {self.name!r} takes {signature}: let it take {self._takes} and a seed") from error


class ByWeight(_OfFunction):
    """A function that trains with example weights.

    Attributes:
        function: takes the weights (n,), an array of numpy with 0 for left out and 1 for kept, and a seed. It returns the losses
            of all n training examples under the trained model, or a :class:`Losses`. A training with weight 0 should be a training
            without the example: a mean of losses is divided by Σ w and not by n.
        n: how many training examples there are.
        name: what tables and figures call it; by default the function's name.
        loss_unit: of its losses.
        shown: (n,) what a person sees of each example.

    Raises:
        UsageError: fewer than 2 examples, or another number of entries in ``shown``.

    Example:
        >>> from stability import measure_loop
        >>> y = np.array([0.0, 1.0, 5.0])
        >>> estimate = measure_loop(ByWeight(lambda weights, seed: (y - np.average(y, weights=weights)) ** 2, n=3))
        >>> estimate.per_example["difference"].tolist()
        [5.0, 1.25, 11.25]
    """

    by_weight = True
    _takes = "the weights"

    def run(self, weights: Floats, seed: int) -> Losses:
        return _losses(self.function(weights.copy(), seed))


class ByRemoval(_OfFunction):
    """A function that trains on some of the examples, for a program that takes no weights.

    Attributes:
        function: takes the indices of the examples that remain, an array of numpy in increasing order, and a seed. It returns the
            losses of all n training examples under the trained model, or a :class:`Losses`.
        n: how many training examples there are.
        name: what tables and figures call it; by default the function's name.
        loss_unit: of its losses.
        shown: (n,) what a person sees of each example.

    Raises:
        UsageError: fewer than 2 examples, or another number of entries in ``shown``.

    Example:
        >>> from stability import measure_loop
        >>> y = np.array([0.0, 1.0, 5.0])
        >>> estimate = measure_loop(ByRemoval(lambda kept, seed: (y - np.median(y[kept])) ** 2, n=3))
        >>> estimate.per_example["difference"].tolist()
        [8.0, 2.25, 4.25]
    """

    by_weight = False
    _takes = "the indices of the examples that remain"

    def run(self, weights: Floats, seed: int) -> Losses:
        return _losses(self.function(np.flatnonzero(weights), seed))


@dataclass(frozen=True, eq=False)
class Sklearn(Loop):
    """Any classifier or regressor of scikit-learn, or one that is made like them, a pipeline or a search over settings too.

    The estimator itself is not fitted; a clone of it is, each time. Where its ``random_state`` is None it is given the seed. One
    that is set stays what it is.

    Attributes:
        estimator: the classifier or regressor.
        inputs: (n, …) what ``fit`` takes as X: an array, a sparse matrix, a DataFrame or a list.
        labels: (n,) what it takes as y.
        test: inputs and labels of held-out examples.
        loss: a function of a fitted model, inputs and labels that returns the loss of each row. By default :func:`log_loss` for a
            classifier with probabilities, and :func:`squared_error` for a regressor.
        loss_unit: of the losses; by default that of the loss.
        by_weight: whether an example is left out by ``sample_weight`` 0, and not by removing its row. By default wherever ``fit``
            takes a ``sample_weight``. Some estimators see an example of weight 0 all the same, for example when they count
            the rows of a leaf: ``by_weight=False`` removes it.
        name: what tables and figures call it; by default the name of the estimator's class.
        shown: (n,) what a person sees of each example.
        n: how many training examples there are.

    Raises:
        UsageError: inputs and labels of different length, a classifier without probabilities and without a loss, or what is
            neither a classifier nor a regressor without a loss.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from stability import measure_loop
        >>> X, y = load_iris(return_X_y=True)
        >>> loop = Sklearn(LogisticRegression(), X[::5], y[::5], test=(X[1::5], y[1::5]))
        >>> measure_loop(loop)
        StabilityEstimate(value=0.0..., exact (exact), 30 of n=30, failed=0, noise_floor=...)
    """

    estimator: Any
    inputs: Any
    labels: Any
    _: KW_ONLY
    test: tuple[Any, Any] | None = None
    loss: ModelLoss | None = None
    loss_unit: str = ""
    by_weight: bool | None = None  # type: ignore[assignment] # a bool once it is made
    name: str = ""
    shown: Sequence[str] | None = None
    n: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from sklearn.utils.validation import has_fit_parameter

        if not (hasattr(self.estimator, "fit") and hasattr(self.estimator, "get_params")) or isinstance(self.estimator, type):
            raise UsageError(f"estimator = {self.estimator!r}: use a classifier or regressor of scikit-learn, not fitted")
        object.__setattr__(self, "n", _length(self.inputs))
        _settle(self, self.estimator)
        for what, inputs, labels in (("S", self.inputs, self.labels), *([] if self.test is None else [("test", *self.test)])):
            if _length(inputs) != _length(labels):
                raise UsageError(
                    f"{what}: {_length(inputs)} rows of inputs and {_length(labels)} labels: give a label for each row"
                )
        weights = has_fit_parameter(self.estimator, "sample_weight")
        if self.by_weight is None:
            object.__setattr__(self, "by_weight", weights)
        check_flags(by_weight=self.by_weight)
        if self.by_weight and not weights:
            raise UsageError(f"by_weight = True: fit of {self.name} takes no sample_weight; leave by_weight out")
        loss = self.loss or _usual_loss(self.estimator, self.labels)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "loss_unit", self.loss_unit or _UNITS.get(loss, "loss"))

    def run(self, weights: Floats, seed: int) -> Losses:
        from sklearn.base import clone

        assert self.loss is not None
        model = clone(self.estimator)
        open_states = [name for name, value in model.get_params().items() if _is_seed(name) and value is None]
        model.set_params(**dict.fromkeys(open_states, seed))
        if self.by_weight:
            model.fit(self.inputs, self.labels, sample_weight=weights.copy())
        else:
            kept = np.flatnonzero(weights)
            model.fit(_rows(self.inputs, kept), _rows(self.labels, kept))
        train = self.loss(model, self.inputs, self.labels)
        held_out = None if self.test is None else self.loss(model, *self.test)
        clipped = self.loss is log_loss and (train.max() >= _MOST or (held_out is not None and held_out.max() >= _MOST))
        return Losses(train, held_out, note=_CLIPPED if clipped else "")

    def label(self, i: int) -> str:
        return str(_rows(self.labels, np.array([i]))[0]) if not hasattr(self.labels, "iloc") else str(self.labels.iloc[i])


@dataclass(frozen=True, eq=False)
class TrainerFactory(Loop):
    """A ``transformers.Trainer``, made anew for each training.

    The loss of an example is what ``Trainer.prediction_step`` finds for it alone, in evaluation mode: the loss of its model, or of
    a ``compute_loss`` of its own. Before each training, ``transformers.set_seed`` sets the global random generators.

    Attributes:
        factory: takes a training set, which lacks an example, and a seed. It returns a ``Trainer`` that is ready to train, with a
            new model each time. Give its ``TrainingArguments`` the seed.
        train: the whole training set: a ``datasets.Dataset``, a torch data set with a length, or a list.
        test: held-out examples, in the same form.
        name: what tables and figures call it; by default the factory's name.
        loss_unit: of the losses.
        shown: (n,) what a person sees of each example.
        n: how many training examples there are.

    Raises:
        UsageError: fewer than 2 examples, or another number of entries in ``shown``.

    Example:
        >>> def factory(train_dataset, seed):
        ...     model = AutoModelForSequenceClassification.from_pretrained("roberta-base")
        ...     settings = TrainingArguments("runs", num_train_epochs=3, seed=seed, save_strategy="no", report_to="none")
        ...     return Trainer(model, settings, train_dataset=train_dataset, processing_class=tokenizer)
        >>> TrainerFactory(factory, [{"input_ids": [0, 1], "labels": 0}] * 8).n
        8
    """

    factory: Callable[[Any, int], Any]
    train: Any
    _: KW_ONLY
    test: Any = None
    name: str = ""
    loss_unit: str = "nats"
    shown: Sequence[str] | None = None
    n: int = field(init=False, repr=False)

    by_weight = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _length(self.train))
        _settle(self, self.factory)

    def run(self, weights: Floats, seed: int) -> Losses:
        from transformers import Trainer, set_seed

        set_seed(seed)
        trainer = self.factory(_some(self.train, np.flatnonzero(weights).tolist()), seed)
        if not isinstance(trainer, Trainer):
            raise UsageError(f"factory {self.name!r} returned {trainer!r}: let it return a transformers.Trainer")
        trainer.train()
        held_out = None if self.test is None else _losses_one_by_one(trainer, self.test)
        return Losses(_losses_one_by_one(trainer, self.train), held_out)


def log_loss(model: Any, inputs: Any, labels: Any) -> Floats:
    """−log of the probability that a classifier gives to the label of each row, in nats.

    A probability below ε = 2.2e-16 counts as ε, as in scikit-learn. So does that of a class that the model has not seen, as when
    its only example is left out.

    Args:
        model: a fitted classifier with ``predict_proba``.
        inputs: of N rows.
        labels: (N,) their labels.

    Example:
        >>> from sklearn.dummy import DummyClassifier
        >>> log_loss(DummyClassifier().fit([[0], [1]], ["a", "b"]), [[0], [1]], ["a", "c"]).round(2).tolist()
        [0.69, 36.04]
    """
    probabilities, classes, labels = np.asarray(model.predict_proba(inputs), dtype=np.float64), model.classes_, np.asarray(labels)
    column = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    own = np.where(classes[column] == labels, probabilities[np.arange(len(labels)), column], 0.0)
    losses: Floats = -np.log(own.clip(min=_LEAST, max=1.0))
    return losses


def squared_error(model: Any, inputs: Any, labels: Any) -> Floats:
    """(ŷ − y)² of each row; of several outputs their mean.

    Args:
        model: a fitted regressor.
        inputs: of N rows.
        labels: (N,) or (N, outputs), what is to be predicted.

    Example:
        >>> from sklearn.dummy import DummyRegressor
        >>> squared_error(DummyRegressor().fit([[0], [1]], [0.0, 1.0]), [[2]], [2.5]).tolist()
        [4.0]
    """
    wanted = np.asarray(labels, dtype=np.float64)
    squares: Floats = (np.asarray(model.predict(inputs), dtype=np.float64).reshape(wanted.shape) - wanted) ** 2
    return squares if squares.ndim == 1 else squares.reshape(len(squares), -1).mean(1)


def zero_one(model: Any, inputs: Any, labels: Any) -> Floats:
    """1 for each row that is classified wrongly, 0 for the others: for a classifier without probabilities.

    Most changes are then 0, so that the stability is the share of examples whose answer changes.

    Args:
        model: a fitted classifier.
        inputs: of N rows.
        labels: (N,) their labels.

    Example:
        >>> from sklearn.svm import LinearSVC
        >>> zero_one(LinearSVC().fit([[0], [1]], ["a", "b"]), [[0], [2]], ["a", "a"]).tolist()
        [0.0, 1.0]
    """
    wanted = np.asarray(labels)
    wrong: Floats = (np.asarray(model.predict(inputs)).reshape(wanted.shape) != wanted).astype(np.float64)
    return wrong


_UNITS: dict[ModelLoss, str] = {log_loss: "nats", squared_error: "squared error", zero_one: "0/1 loss"}
_LEAST = float(np.finfo(np.float64).eps)
_MOST = -float(np.log(_LEAST))
_CLIPPED = (
    f"a probability below {_LEAST:.2g}, and that of a class that a model has not seen, counts as {_LEAST:.2g}, a loss of "
    f"{_MOST:.0f} nats"
)


def _usual_loss(estimator: Any, labels: Any) -> ModelLoss:
    from sklearn.base import is_classifier, is_regressor

    name = type(estimator).__name__
    if is_regressor(estimator):
        return squared_error
    if not is_classifier(estimator):
        raise UsageError(
            f"{name} is neither a classifier nor a regressor: give loss, a function of a fitted model, inputs and labels"
        )
    if not hasattr(estimator, "predict_proba"):
        raise UsageError(
            f"{name} has no predict_proba, and so no log loss: give loss=stability.loops.zero_one, or an estimator with "
            "probabilities, such as sklearn.calibration.CalibratedClassifierCV around it"
        )
    if np.ndim(labels) != 1:
        raise UsageError(
            f"the labels have shape {np.shape(labels)}, and the log loss is of one label a row: give a loss of your own"
        )
    return log_loss


def _losses_one_by_one(trainer: Any, examples: Any) -> list[float]:
    """The loss of each example alone, for a mean over a batch hides them.

    Each is a data set of its own. The Trainer's batches of a whole one may come in another order, as under ``group_by_length``.
    """
    trainer.model.eval()
    trainer.args.dataloader_num_workers, trainer.args.dataloader_prefetch_factor = 0, None
    trainer.args.dataloader_persistent_workers = trainer.args.dataloader_drop_last = False
    losses = []
    for i in range(_length(examples)):
        (batch,) = trainer.get_eval_dataloader(_some(examples, [i]))
        loss, *_ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
        if loss is None:
            raise UsageError("the model gives no loss: let the training set have labels, or the Trainer a compute_loss")
        losses.append(float(loss))
    return losses


def _some(examples: Any, index: list[int]) -> Any:
    """Some examples of a ``datasets.Dataset``, a torch data set or a list."""
    from torch.utils.data import Subset

    return examples.select(index) if hasattr(examples, "select") else Subset(examples, index)


def _losses(result: Any) -> Losses:
    return result if isinstance(result, Losses) else Losses(result)


def _is_seed(name: str) -> bool:
    """Whether a parameter of an estimator, or of one inside it, is its random state."""
    return name.rpartition("__")[2] == "random_state"


def _rows(table: Any, index: NDArray[np.int64]) -> Any:
    """Some rows of an array, a sparse matrix, a DataFrame or a list."""
    if hasattr(table, "iloc"):
        return table.iloc[index]
    return table[index] if hasattr(table, "shape") else [table[i] for i in index]


def _length(table: Any) -> int:
    shape = getattr(table, "shape", None)
    return int(shape[0]) if shape else len(table)


def _settle(loop: Loop, called: object) -> None:
    """Name a loop after what it calls, where it has no name, and check it."""
    name = getattr(called, "__name__", type(called).__name__)
    object.__setattr__(loop, "name", loop.name or ("loop" if name == "<lambda>" else name))
    check_whole(2, n=loop.n)
    if loop.shown is None:
        return
    object.__setattr__(loop, "shown", list(loop.shown))  # a column of pandas would be asked by its own index
    if len(loop.shown) != loop.n:
        raise UsageError(f"shown has {len(loop.shown)} entries and there are n = {loop.n} examples: give one for each")
