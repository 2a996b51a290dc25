"""The arguments of the command line: names, types and help; :mod:`stability.cli.commands` acts on them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any, get_args

from stability import __version__
from stability.reports.score_tables import Form
from stability.studies.protocol import AUTHORS
from stability.studies.published import Part as Published
from stability.training import FineTuning, Precision
from stability.training.stopping import EarlyStopping

__all__ = ["ESTIMATORS", "PREDICTORS", "PROBLEM", "STOPPING", "TEXT_TRAINING", "TRAINING", "parser"]

PROBLEM = ("n", "model", "max_length", "text", "label", "labels", "task", "split_seed", "data", "removed", "pool")
"""Settings of problems that have an option of the same name."""

TRAINING = ("steps", "batch_size", "learning_rate", "weight_decay", "schedule", "dropout", "precision")
"""Settings of FineTuning that have an option of the same name."""

STOPPING = {"evaluate_every": "every", "patience": "patience", "least_steps": "least_steps"}
"""Options of early stopping, and what EarlyStopping calls them."""

ESTIMATORS = ("exact", "sampled", "assisted", "approximate")

PREDICTORS = ("linearised", "one-step")

TEXT_TRAINING = {"batch_size": 16, "learning_rate": 5e-4, "schedule": "linear"}
"""How texts are trained by default; Fu et al. 2023 take batches of 16 as well, 1e-4 and at least 20 000 steps."""


def _ridge(text: str) -> float | str:
    try:
        return text if text == "paper" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'paper'") from None


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """Of every command; the one asked for is ``options.command``, by its name."""
    result = argparse.ArgumentParser(prog="stability", description="Sparse fine-tuning and its leave-one-out stability, measured.")
    result.add_argument("--version", action="version", version=__version__)
    commands = result.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, with_json: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
        sub.set_defaults(command=name)
        # Before Python 3.14 argparse takes -1e-3 for an option; a negative Λ_min is usual and often small.
        sub._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
        if with_json:
            sub.add_argument("--json", action="store_true", help="one JSON value on standard output and nothing else")
        return sub

    sub = command("run", "Run a study, or go on with one; print its table.")
    sub.add_argument("study", metavar="STUDY", help="name of the study, see 'stability list'; with --problem a name of your own")
    sub.add_argument("--store", type=Path, help="SQLite file of results (by default runs/STUDY.sqlite)")
    sub.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into this folder")
    sub.add_argument(
        "--selectors",
        "--add",
        dest="selectors",
        nargs="+",
        default=[],
        metavar="SELECTOR",
        help="with --problem the selectors, otherwise further ones; module:name for your own",
    )
    _add_option(sub)
    sub.add_argument(
        "--sparsities",
        nargs="+",
        type=float,
        default=[],
        metavar="P",
        help="take each of them, or SAM in paper-sparsity, at every such p",
    )
    sub.add_argument("--plan", action="store_true", help="compute nothing: time a few steps, and say what the study will cost")
    sub.add_argument(
        "--problem",
        nargs="+",
        help="a study of your own: folders or files of texts, glue/rte, …, or names of 'stability list'; one or several",
    )
    _add_problem(sub)
    _add_protocol(sub)
    sub.add_argument("--seeds", type=int, help="of --problem and the paper's: so many seeds, each with its own S (by default 3)")
    sub.add_argument("--measured-seeds", type=int, metavar="K", help="measure stability with the first K seeds only")
    sub.add_argument("--samples", type=int, help="with --problem: so many training sets S, each with as many seeds of its own")
    _add_estimator(sub, "of --problem (retrainings and predictor of the paper's too): ")
    sub.add_argument(
        "--check-replicas",
        type=int,
        metavar="K",
        help="of --problem and the paper's: measure bounds too, with the curvature at K of the A(Sⁱ)",
    )
    _add_training(sub)
    sub.add_argument("--reuse", type=Path, metavar="FILE", help="take over what this store of a like study has finished")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    sub.add_argument("--workers", type=int, help="processes of one thread each (by default one a core, one on CUDA)")

    sub = command("loo", "Measure the leave-one-out stability of one selector.", with_json=True)
    _add_selection(sub)
    _add_estimator(sub)
    sub.add_argument("--examples", type=int, default=0, metavar="K", help="name the K examples that carry most of the stability")
    sub.add_argument(
        "--figures", type=Path, metavar="DIR", help="draw the examples' differences, and those that carry most of them"
    )
    sub.add_argument("--keep-mask", action="store_true", help="keep S's mask instead of selecting anew without the example")
    _add_training(sub)
    sub.add_argument("--ridge", type=_ridge, help="λ of λ‖θ − θ⁰‖², or 'paper' for 1 − p (by default 0)")
    sub.add_argument(
        "--minimise", type=float, metavar="TOL", help="no AdamW: minimise the loss with its ridge by L-BFGS until ‖∇F‖ ≤ TOL"
    )
    sub.add_argument("--bounds", action="store_true", help="measure the constants as well, and print every bound")
    sub.add_argument(
        "--check-replicas", type=int, metavar="K", help="with --bounds: take the curvature at K of the A(Sⁱ) too (by default 2)"
    )
    sub.add_argument("--delta", type=float, help="with --bounds: δ of those on the expected loss (by default 0.1)")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    sub.add_argument("--threads", type=int, help="threads of this process (by default torch's choice)")

    sub = command("select", "Choose a mask and save it; one that training finds, after that training.")
    _add_selection(sub)
    _add_training(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")

    sub = command("bounds", "Theorem 1 for given constants; with C and R̂ also Theorem 2.", with_json=True)
    for name, symbol in {"lipschitz": "ρ", "least-eigenvalue": "Λ_min", "sparsity": "p"}.items():
        sub.add_argument(f"--{name}", type=float, required=True, help=symbol)
    sub.add_argument("--n", type=int, required=True, help="size of S")
    sub.add_argument("--ridge", type=float, help="the λ that A was trained with, to be compared with 1 − p")
    sub.add_argument("--loss-bound", type=float, help="C, the largest loss")
    sub.add_argument("--empirical-risk", type=float, help="R̂, the mean training loss")
    sub.add_argument("--delta", type=float, default=0.1, help="δ, the probability that the bound on the expected loss may fail")

    sub = command("figures", "Draw the figures of a store, or those of the paper's published numbers.")
    sub.add_argument("--store", type=Path)
    sub.add_argument("--paper", action="store_true", help="ranks and tables of the published numbers; nothing is trained")
    sub.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")
    sub.add_argument(
        "--only", metavar="NAME", help="a single figure: stability, generalization, four_panels, ranks, ... (by default all)"
    )
    _add_scores(sub)

    sub = command("table", "Print the table of a store, or one of the paper's.", with_json=True)
    sub.add_argument("--store", type=Path)
    sub.add_argument("--paper", choices=get_args(Published), help="the published Table 1 (main) or Table 2 (perturbation)")
    sub.add_argument("--ranks", action="store_true", help="of a store: methods by tasks with ranks, as in the paper")
    sub.add_argument("--format", choices=get_args(Form), help="of a table with ranks (by default text); csv has the bare numbers")
    _add_scores(sub)

    command("list", "Name the problems, selectors and studies.", with_json=True)
    command("doctor", "Versions, devices and threads of this machine.", with_json=True)
    return result


def _add_scores(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--against",
        choices=("paper", *get_args(Published)),
        help="put the published numbers beside those of the store: Table 1 (main), Table 2 (perturbation), or the one of the same "
        "experiment (paper)",
    )
    sub.add_argument("--sparsity", type=float, metavar="P", help="with ranks: of a method with several p the one nearest to this")


def _add_estimator(sub: argparse.ArgumentParser, when: str = "") -> None:
    sub.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        help=f"{when}leave out every example; some, drawn at random; some, drawn by what one trained model predicts; or none, and "
        "take the prediction (by default assisted)",
    )
    sub.add_argument(
        "--retrainings", type=int, help=f"{when}at most so many examples are left out (by default 20, with a tolerance n)"
    )
    sub.add_argument(
        "--tolerance", type=float, help=f"{when}go on until the interval reaches at most this fraction of the value to either side"
    )
    sub.add_argument(
        "--predictor",
        choices=PREDICTORS,
        help=f"{when}linearised replicas, or one Newton step (by default what suits the training)",
    )
    sub.add_argument("--checkpoints", type=int, help=f"{when}of linearised replicas (by default 12; 3 do for a large model)")


def _add_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting of the selector, the value as JSON or a word: rank=4, reset=true, stretch=[-1.5,1.5]; repeat it for more",
    )


def _add_problem(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--n", type=int, help="training examples (by default the problem's own number)")
    sub.add_argument("--model", help="of texts: a folder, or a name on the Hugging Face hub, of a pretrained model")
    sub.add_argument("--max-length", type=int, help="of texts: cut to so many tokens (by default 256)")
    sub.add_argument("--text", nargs="+", metavar="COLUMN", help="of texts: the one or two columns (by default the usual names)")
    sub.add_argument("--label", metavar="COLUMN", help="of texts: the column of labels (by default label)")
    sub.add_argument("--labels", choices=("classes", "numbers"), help="of texts: what labels are (by default what they look like)")
    sub.add_argument("--task", help="of texts: the known task whose form and metric they have (cola, stsb, mrpc, …), or none")
    sub.add_argument("--split-seed", type=int, help="of texts: draws what is held out for lack of a test split (by default 0)")
    sub.add_argument(
        "--data",
        help="of the studies paper…: the folder that holds a folder for each task (by default the hub); of the problems linear and "
        "logistic: generated, diabetes, breast_cancer",
    )
    sub.add_argument("--removed", type=float, metavar="FRACTION", help="of texts: leave so much of the training split out of S")
    sub.add_argument("--pool", type=int, metavar="N", help="of texts: cut the training split to so many, the same for all seeds")


def _add_protocol(sub: argparse.ArgumentParser) -> None:
    paper = sub.add_argument_group(
        "the paper's studies", "paper, paper-perturbation, paper-sparsity and paper-quick… take these and the options of training"
    )
    paper.add_argument("--tasks", nargs="+", metavar="TASK", help="some of the seven, cola stsb …, or folders of --data")
    paper.add_argument("--methods", nargs="+", metavar="SELECTOR", help="instead of the paper's ten")
    paper.add_argument("--sparsity", type=float, metavar="P", help="of the methods that choose so many")
    paper.add_argument(
        "--rates", nargs="+", type=_option, metavar="METHOD=RATE", help="learning rates of methods that have one of their own"
    )
    paper.add_argument("--adapter-width", type=int, help="of Adapter's bottlenecks")
    paper.add_argument("--lora-rank", type=int, help="of LoRA's factors")
    paper.add_argument("--mixout", type=float, metavar="PROBABILITY", help="of Mixout's parameters to be θ⁰'s in a step")
    paper.add_argument(
        "--burn-in", type=int, metavar="STEPS", help="for which DiffPruning's mask relaxes, and others with --authors"
    )
    paper.add_argument("--project-every", type=int, metavar="STEPS", help="between ChildPruning's projections")
    paper.add_argument(
        "--authors",
        nargs="+",
        choices=tuple(AUTHORS),
        metavar="CHOICE",
        help="do as the authors' code: " + "; ".join(f"{name}: {what}" for name, what in AUTHORS.items()),
    )


def _add_training(sub: argparse.ArgumentParser) -> None:
    for name, kind in (("steps", int), ("batch-size", int), ("learning-rate", float), ("weight-decay", float)):
        field = name.replace("-", "_")
        texts = f", of texts {TEXT_TRAINING[field]}" if field in TEXT_TRAINING else ""
        sub.add_argument(f"--{name}", type=kind, help=f"by default {getattr(FineTuning, field)}{texts}")
    sub.add_argument(
        "--schedule", choices=("constant", "linear"), help="of the learning rate (by default constant, of texts linear)"
    )
    sub.add_argument(
        "--dropout", action=argparse.BooleanOptionalAction, help="the model's own dropout is on while it trains (by default off)"
    )
    sub.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of the network's products while it trains (by default float32); tf32 is float32 where the device has none; what it "
        "does in the mean is in the noise floor",
    )
    sub.add_argument(
        "--evaluate-every", type=int, metavar="STEPS", help="keep the best checkpoint on the validation split, and stop early"
    )
    sub.add_argument(
        "--patience", type=int, help=f"evaluations without a better one after which to stop (by default {EarlyStopping.patience})"
    )
    sub.add_argument("--least-steps", type=int, metavar="STEPS", help=f"but not before (by default {EarlyStopping.least_steps})")


def _add_selection(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--problem", default="digits", help="its name; or a folder or file of texts, or glue/rte, super_glue/cb, …, with --model"
    )
    _add_problem(sub)
    sub.add_argument("--selector", required=True, help="its name, see 'stability list', or module:name for your own")
    sub.add_argument("--sparsity", type=float, metavar="P", help="fraction of pretrained parameters that may change, in (0, 1]")
    sub.add_argument(
        "--scope", choices=("global", "tensor"), help="compete over all parameters (the default), or within each tensor"
    )
    sub.add_argument(
        "--curvature",
        choices=("constant", "gauss_newton", "hutchinson"),
        help="of sam: where h of its score |g²/h| is from (by default constant)",
    )
    _add_option(sub)
    sub.add_argument("--seed", type=int, default=0, help="of S, the head's start, the order and the selection")
