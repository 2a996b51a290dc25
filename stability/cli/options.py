"""The groups of options that commands share, each a dataclass, and the objects that they stand for.

None and () mean that an option was not given: what was is handed on, and the rest is the default of the class that owns
the setting. That class also tells what the setting means (:func:`stability.cli.parsing.options`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from stability import problems
from stability.checks import those_given
from stability.cli.parsing import WHOLE, Flags, Names, Numbers, Whole, given, methods, options, settings
from stability.errors import UsageError
from stability.leave_one_out.estimators import Approximate, Assisted, Auto, Estimator, Exact, Sampled
from stability.leave_one_out.predictors import Linearised, OneStep, Predictor
from stability.problems import PROBLEMS, Problem, TrainingDefaults, load_texts, training_defaults
from stability.problems.tasks import TEXT_TRAINING
from stability.selectors import SAM, Selector
from stability.selectors.naming import selectors_named
from stability.selectors.scope import Within
from stability.training import Algorithm, EarlyStopping, FineTuning, Minimisation, Precision

__all__ = [
    "ESTIMATORS",
    "Data",
    "EstimatorOptions",
    "Method",
    "Methods",
    "Model",
    "Objective",
    "OneProblem",
    "SomeProblems",
    "Stored",
    "Training",
    "Workers",
    "common_defaults",
    "flags",
    "load",
    "problem_settings",
]


def _said(defaults: TrainingDefaults) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(defaults).items())


# Groups are shown in this order.
EXPERIMENT = Group.create_ordered("Experiment")
DATA = Group.create_ordered("Data")
MODEL = Group.create_ordered("Model")
METHOD = Group.create_ordered("Method")
TRAINING = Group.create_ordered("Training", help=f"By default {_said(TrainingDefaults())}; of texts {_said(TEXT_TRAINING)}.")
PAPER_TRAINING = Group.create_ordered("Training")
ESTIMATOR = Group.create_ordered("Estimator")
BOUNDS = Group.create_ordered("Bounds")
OUTPUT = Group.create_ordered("Output")
MACHINE = Group.create_ordered("Machine")


@options(DATA, load_texts)
@dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned.

    Attributes:
        n: Number of training examples, drawn at random; by default 100, and of texts the whole training split.
        test: Where the test split comes from: a file, validation or none. By default the data's test split, if it has labels.
        data: The data of the problems linear and logistic: generated, diabetes or breast_cancer.
    """

    n: Whole = None
    text: Annotated[Names, Parameter(consume_multiple=(1, 2))] = ()
    label: str | None = None
    label_type: Annotated[Literal["classes", "numbers"] | None, Parameter(name="--labels")] = None
    drop_missing: Flags = None
    task: str | None = None
    test: str | None = None
    encoding: str | None = None
    split_seed: Whole = None
    removed: float | None = None
    pool: Whole = None
    data: str | None = None


@options(DATA)
@dataclass(frozen=True, kw_only=True)
class OneProblem:
    """The problem.

    Attributes:
        problem: A problem of 'stability list'; or with --model a file or folder of texts, a task of the hub such as glue/rte, or
            any other data set of the hub, with --text or --label.
        seed: Draws the training set, the start of the head, the order of the examples and the selection.
    """

    problem: str = "digits"
    seed: Annotated[int, WHOLE] = 0


@options(DATA)
@dataclass(frozen=True, kw_only=True)
class SomeProblems:
    """The problems.

    Attributes:
        problem: One problem or several: names of 'stability list', folders or files of texts, or glue/rte, ….
        seeds: Number of seeds; each draws its own training set. By default 3.
        samples: Number of training sets, each with as many seeds of its own as there are seeds.
        measured_seeds: Measure stability with the first so many seeds only; by default with all.
    """

    problem: Names
    seeds: Whole = None
    samples: Whole = None
    measured_seeds: Whole = None


@options(MODEL, load_texts)
@dataclass(frozen=True, kw_only=True)
class Model:
    """The pretrained model.

    Attributes:
        model: The pretrained model of texts: a folder, or a name on the Hugging Face hub.
    """

    model: str | None = None
    max_length: Whole = None
    initial_bias: float | None = None


def problem_settings(data: Data, model: Model) -> dict[str, Any]:
    """The settings of a problem that were given.

    Args:
        data: options of the data.
        model: options of the model.

    Returns:
        Keyword arguments of :func:`stability.problems.load`.

    Example:
        >>> problem_settings(Data(n=40, text=("question",)), Model(max_length=64))
        {'n': 40, 'text': ['question'], 'max_length': 64}
    """
    found = {**given(data), **given(model)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def load(name: str, **settings: Any) -> Problem:
    """The problem; what is worth knowing of its data goes to standard error."""
    problem = problems.load(name, **settings)
    for note in problem.notes:
        print(f"note: {note}", file=sys.stderr)
    return problem


_Option = Annotated[tuple[str, ...], Parameter(show_choices=False)]


@options(METHOD, SAM)
@dataclass(frozen=True, kw_only=True)
class Method:
    """Which parameters may change.

    Attributes:
        selector: The method: a name of 'stability list', or module:name for your own. Its settings follow it as NAME=VALUE, the
            value as JSON or a word: lora rank=4, diffpruning stretch=[-1.5,1.5].
        sparsity: p, the fraction of the pretrained parameters that may change, in (0, 1].
        scope: Which coordinates compete for the places: all (global), those of each tensor, of each row, of each layer, or of each
            type of tensor; by default global.
        only: Choose from tensors whose names match one of these patterns only, such as '*.query.*'.
        without: Do not choose from tensors whose names match one of these patterns, such as '*norm*'.
        curvature: Of sam: where h in its score |g²/h| comes from; by default constant.
        option: A setting of the method as NAME=VALUE, like those that follow its name. Repeat it for more.
    """

    selector: Names
    sparsity: float | None = None
    scope: Within | None = None
    only: Names = ()
    without: Names = ()
    curvature: Literal["constant", "gauss_newton", "hutchinson"] | None = None
    option: _Option = ()

    def made(self) -> Selector:
        """The selector.

        Raises:
            UsageError: several methods, a setting that is given twice, or one that the selector refuses.
        """
        (method, own), *others = methods(self.selector) or [("", {})]
        if others:
            raise UsageError(
                f"one method at a time: leave {' and '.join(other for other, _ in others)} out, or use 'stability compare'"
            )
        own_options = ("sparsity", "scope", "only", "without", "curvature")
        named = {name: value for name, value in given(self).items() if name in own_options}
        every = [*own.items(), *settings(self.option), *named.items()]
        if twice := sorted({setting for setting, _ in every if [one for one, _ in every].count(setting) > 1}):
            raise UsageError(f"{', '.join(twice)} is given twice: leave one out")
        found = selectors_named([(method, dict(every))])
        if len(found) > 1:
            raise UsageError(f"sparsity = {dict(every)['sparsity']}: use one p, or 'stability compare' for several")
        return found[0]


@options(METHOD)
@dataclass(frozen=True, kw_only=True)
class Methods:
    """Which parameters may change.

    Attributes:
        selectors: The methods: names of 'stability list', or module:name for your own. The settings of each follow it as
            NAME=VALUE, the value as JSON or a word: full lora rank=4 sam sparsity=0.01,0.1. To a study that comes with the
            toolkit they are added.
        sparsities: Run each method that takes a p, and has none of its own, at each of these.
        option: A setting as NAME=VALUE for all methods that have it. Repeat it for more.
    """

    selectors: Annotated[Names, Parameter(name=("--selectors", "--add"))] = ()
    sparsities: Numbers = ()
    option: _Option = ()

    def made(self) -> list[Selector]:
        """The selectors, each at every sparsity.

        Raises:
            UsageError: there are sparsities or settings and no selector, or a selector refuses them.
        """
        if not self.selectors and (self.sparsities or self.option):
            raise UsageError("--sparsities and --option belong to --selectors SELECTOR …: add them, or leave these out")
        return selectors_named(methods(self.selectors), self.sparsities, **dict(settings(self.option)))


@options(TRAINING, FineTuning, EarlyStopping, varied=TrainingDefaults.__dataclass_fields__)
@dataclass(frozen=True, kw_only=True)
class Training:
    """How parameters are trained.

    Attributes:
        evaluate_every: Stop early: keep the best checkpoint on the validation split, evaluated each time after so many steps.
        least_steps: Training does not end before so many steps; by default 20000.
    """

    steps: Whole = None
    batch_size: Whole = None
    learning_rate: float | None = None
    schedule: Literal["constant", "linear"] | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    dropout: Flags = None
    precision: Precision | None = None
    evaluate_every: Whole = None
    patience: Whole = None
    least_steps: Whole = None

    def made(self) -> dict[str, Any]:
        """Settings of :class:`FineTuning`: those that were given.

        Raises:
            UsageError: patience or least steps without early stopping.
        """
        stopping = {name: value for name, value in given(self).items() if name in ("patience", "least_steps")}
        if self.evaluate_every is None and stopping:
            raise UsageError("--patience and --least-steps belong to --evaluate-every: give it too, or leave them out")
        rule = {} if self.evaluate_every is None else {"early_stopping": EarlyStopping(self.evaluate_every, **stopping)}
        return {**given(self, "evaluate_every", "patience", "least_steps"), **rule}


def common_defaults(names: Sequence[str]) -> TrainingDefaults:
    """How problems of these names are trained together where nothing is asked for: as texts, where one of them is texts.

    Example:
        >>> common_defaults(["digits"]).batch_size, common_defaults(["digits", "glue/rte"]).batch_size
        (20, 16)
    """
    return TEXT_TRAINING if any(name not in PROBLEMS for name in names) else training_defaults(names[0])


def flags(group: Any) -> str:
    """The options of a group that were given, as they are written.

    Example:
        >>> flags(Training(steps=3, batch_size=8))
        '--steps, --batch-size'
    """
    return ", ".join(f"--{name.replace('_', '-')}" for name in given(group))


@options(TRAINING)
@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training minimises.

    Attributes:
        ridge: λ of the term λ‖θ − θ⁰‖², or 'paper' for 1 − p; by default 0.
        minimise: Do not take steps of AdamW, but minimise the loss and its ridge by L-BFGS until the gradient's norm is at
            most this.
    """

    ridge: float | Literal["paper"] | None = None
    minimise: float | None = None

    def made(self, selector: Selector, training: Training, seed: int) -> Algorithm:
        """The algorithm: fine-tuning, or a minimisation where that is asked for.

        Args:
            selector: which parameters may change.
            training: options of AdamW, which a minimisation does not have.
            seed: the algorithm's seed.

        Raises:
            UsageError: a minimisation with options of training, or without a ridge; or a value out of range.
        """
        ridge: dict[str, Any] = given(self, "minimise")
        if self.minimise is None:
            return FineTuning(selector, seed=seed, **training.made(), **ridge)
        if odd := flags(training):
            raise UsageError(f"--minimise takes no {odd}: L-BFGS has no such setting")
        if not ridge:
            raise UsageError("--minimise needs --ridge λ (or 'paper'), so that there is a minimum to find")
        return Minimisation(selector, gradient_tolerance=self.minimise, seed=seed, **ridge)


ESTIMATORS: dict[str, type[Estimator]] = {
    "auto": Auto,
    "exact": Exact,
    "sampled": Sampled,
    "assisted": Assisted,
    "approximate": Approximate,
}

PREDICTORS: dict[str, Callable[..., Predictor]] = {"linearised": Linearised, "one-step": OneStep}


@options(ESTIMATOR, Sampled)
@dataclass(frozen=True, kw_only=True)
class EstimatorOptions:
    """How stability is estimated.

    Attributes:
        estimator: Leave out every example (exact); some, drawn at random (sampled); some, drawn by what one trained model
            predicts (assisted); none, and take the prediction (approximate); or let it choose exact or assisted, by which is
            less work (auto, the default).
        retrainings: Leave out at most so many examples; by default auto as many as a tolerance of 0.2 needs, at most 50, others
            20, and with a tolerance all.
        predictor: Predict by linearised replicas or by one Newton step; by default by what suits the training.
        checkpoints: Checkpoints of linearised replicas; by default 12. For a large model 3 are enough.
        test_examples: Evaluate the models without an example on so many test examples only; by default on all. That saves time,
            and changes only how much test losses are said to change.
    """

    estimator: Literal["auto", "exact", "sampled", "assisted", "approximate"] | None = None
    retrainings: Whole = None
    tolerance: float | None = None
    predictor: Literal["linearised", "one-step"] | None = None
    checkpoints: Whole = None
    test_examples: Whole = None

    def made(self) -> Estimator:
        """The estimator.

        Raises:
            UsageError: an option that this estimator does not have, or a value out of range.
        """
        kind, predictor = self.estimator or "auto", self._predictor()
        how = given(self, "estimator", "predictor", "checkpoints", "test_examples")
        if predictor is not None and not ESTIMATORS[kind].predicts:
            raise UsageError(
                f"--predictor and --checkpoints belong to --estimator auto, assisted or approximate: leave it out with {kind}"
            )
        if "budget" in how and kind != "auto":
            raise UsageError(f"--budget belongs to --estimator auto: leave it out with {kind}")
        if how and not issubclass(ESTIMATORS[kind], (Auto, Sampled)):
            why = "leaves out every example" if kind == "exact" else "leaves out none"
            odd = ", ".join(f"--{name}" for name in how)
            raise UsageError(f"--estimator {kind} {why}: leave {odd} out, or use auto, sampled or assisted")
        return ESTIMATORS[kind](**how, **those_given(predictor=predictor))

    def _predictor(self) -> Predictor | None:
        if self.predictor is None and self.checkpoints is None:
            return None
        own = those_given(checkpoints=self.checkpoints)
        if own and self.predictor == "one-step":
            raise UsageError("--checkpoints are of linearised replicas: leave it out with --predictor one-step")
        return PREDICTORS[self.predictor or "linearised"](**own)


@options(MACHINE)
@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the work is done.

    Attributes:
        device: The device: auto, cpu, cuda or cuda:N.
    """

    device: str = "auto"


@options(OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where figures go.

    Attributes:
        figures: Draw the figures into this folder.
    """

    figures: Path | None = None


@options(OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Stored(Folder):
    """Where results go.

    Attributes:
        store: SQLite file of results; by default runs/STUDY.sqlite. A name that ends in .d is a folder, for network file systems.
        reuse: Take over what this store of a like study has finished.
        plan: Compute nothing: time a few steps, and say what the study will cost.
    """

    store: Path | None = None
    reuse: Path | None = None
    plan: bool = False


@options(MACHINE)
@dataclass(frozen=True, kw_only=True)
class Workers(Machine):
    """Where the work is done.

    Attributes:
        workers: Processes of one thread each; by default one for each core, or for each GPU with CUDA. With Ray, the most cells at
            once; by default as many as the cluster has CPUs or GPUs. With at least twice as many as cells, several share a
            cell.
        executor: What computes: processes of this machine (local), or tasks of Ray (ray).
        address: HOST:PORT of a cluster of Ray, or auto for the one that runs on this machine; by default RAY_ADDRESS, and without
            that variable a cluster of this machine alone.
        wait: Wait for cells that other processes are computing on the same store. With --no-wait the command ends when none is
            left to begin.
    """

    workers: Whole = None
    executor: Literal["local", "ray"] | None = None
    address: str | None = None
    wait: bool = True
