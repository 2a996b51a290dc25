"""Tables of pages that follow from the code or from stored results: columns, fields of study files, architectures."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docstring_parser import DocstringStyle, parse

from docs.code.names import linked
from stability.cli import study_file
from stability.cli.options import ESTIMATORS, PREDICTORS
from stability.selectors import Calibrated, MagPruning, Ranked
from stability.selectors.naming import SELECTORS
from stability.studies import Study, StudyResults
from stability.training import EarlyStopping, FineTuning, Minimisation

__all__ = ["architectures", "columns", "peft_methods", "peft_places", "scores", "study_files"]

_PEFT = Path("benchmarks/results/peft-methods.json")
"""Made by :mod:`benchmarks.peft_methods`; a test compares it with what happens."""

_TABLES: dict[str, tuple[str, dict[str, Callable[..., Any]], tuple[str, ...]]] = {
    "The study": ("Fields of the file itself.", {"": Study}, ("algorithms", "estimator")),
    "Algorithms": (
        "Fields of each `[[algorithms]]`. Without a `kind` it is `FineTuning`. `selector` is a name, a table with a `name` and the "
        "settings of that method, or a list of them. `sparsity` and `learning_rate` may be lists.",
        {"FineTuning": FineTuning, "Minimisation": Minimisation},
        ("seed",),
    ),
    "Early stopping": ("Fields of `early_stopping`, a table in an algorithm.", {"": EarlyStopping}, ()),
    "Estimator": ("Fields of `[estimator]`. Without a `kind` it is `assisted`.", dict(ESTIMATORS), ()),
    "Predictor": ("Fields of `predictor`, a table in the estimator. Without a `kind` it is `linearised`.", dict(PREDICTORS), ()),
}
"""Of each table: what is said of it, its classes by the word that asks for them, fields that are given elsewhere or nowhere."""


_DEFAULTS = {"name": "that of the file", "check_replicas": "no bounds"}
"""Of a study, where a file has another default than the class."""


def columns() -> str:
    """The columns of exported results: of cells, and of the examples that were left out."""
    try:
        from stability.studies.columns import CELLS, EXAMPLES, described
    except ImportError:  # until results are exported with described columns
        names = StudyResults.read("figures/digits.sqlite").table.columns
        return "\n".join(["| column |", "| --- |", *(f"| `{name}` |" for name in names)])
    rows = ["## A row for each cell", "", described(CELLS), "## A row for each example that was left out", "", described(EXAMPLES)]
    return "\n".join(rows)


def peft_methods() -> str:
    """How every configuration of peft runs, and why it does not."""
    tables = json.loads(_PEFT.read_text(encoding="utf-8"))
    lines = ["| configuration | replicas | starts at the pretrained model | why it is refused |", "| --- | --- | --- | --- |"]
    for name, row in tables["methods"].items():
        start = {"the pretrained model": "yes", "another": "no"}.get(row.get("start", ""), "")
        lines.append(f"| `{tables['classes'][name]}` | {row['runs']} | {start} | {row.get('why', '')} |")
    return "\n".join(lines)


def peft_places() -> str:
    """The layers beside which LoRA goes and behind which Adapter goes, by architecture."""
    rows = json.loads(_PEFT.read_text(encoding="utf-8"))["places"]

    def shown(names: str) -> str:
        return names if names.startswith("none") else ", ".join(f"`{name}`" for name in names.split(", "))

    lines = ["| architecture | LoRA beside | Adapter behind |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {shown(row['lora'])} | {shown(row['adapter'])} |" for name, row in rows.items())])


def architectures() -> str:
    """How each of transformers' sequence classifiers runs, as ``benchmarks.architectures`` found it."""
    stored = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "architectures.json").read_text(encoding="utf-8"))
    now: dict[str, str] = stored["now"]
    counts = Counter(how.partition(":")[0] for how in now.values())
    rows = [f"With {stored['software']}:", "", "| how it runs | architectures |", "| --- | --- |"]
    rows += [f"| {how} | {count} |" for how, count in counts.most_common()]
    rows += ["", "| architecture | how it runs |", "| --- | --- |", *(f"| {name} | {how} |" for name, how in now.items())]
    return "\n".join(rows)


def scores() -> str:
    """Every built-in score: its formula, the data and the labels that it looks at, its cost and its source."""
    kinds = {name: MagPruning if name == MagPruning.name else kind for name, kind in SELECTORS.items()}
    lines = ["| name | chosen where this is largest | examples | labels | cost | source |", "| --- | --- | --- | --- | --- | --- |"]
    for name, kind in kinds.items():
        if isinstance(kind, type) and issubclass(kind, Ranked):
            looks = issubclass(kind, Calibrated)
            labels = ("true, sampled, model" if kind.of_squares else "true, sampled") if issubclass(kind, Calibrated) else "none"
            cells = [f"`{name}`", kind.formula.replace("|", "\\|"), "yes" if looks else "none", labels, kind.passes, kind.source]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def study_files() -> str:
    """The fields of a study file, from the classes that they make."""
    lines: list[str] = []
    for heading, (text, kinds, elsewhere) in _TABLES.items():
        lines += [f"## {heading}", "", text, ""]
        for kind, made in kinds.items():
            if rows := list(_fields(made, elsewhere)):
                lines += [*([f'`kind = "{kind}"`:', ""] if kind else []), "| field | value | by default | meaning |"]
                lines += ["| --- | --- | --- | --- |", *rows, ""]
            else:
                lines += [f'`kind = "{kind}"` has no fields.', ""]
    return "\n".join(lines)


def _fields(made: Callable[..., Any], elsewhere: tuple[str, ...]) -> Iterator[str]:
    told = _told(made)
    for name, own in inspect.signature(made, eval_str=True).parameters.items():
        if name not in elsewhere:
            default = (
                "" if own.default in (own.empty, None) or not isinstance(own.default, int | float | str) else f"`{own.default}`"
            )
            counted = made is Study and name in ("seeds", "samples")
            value = f"{'a whole number or ' if counted else ''}{study_file._words(own.annotation)}"
            shown = "**required**" if own.default is own.empty else default
            shown = _DEFAULTS.get(name, shown) if made is Study else shown
            yield f"| `{name}` | {value} | {shown} | {_sentence(name, told.get(name, ''))} |"


def _sentence(name: str, text: str) -> str:
    """With its subject: "of AdamW" is what is said of the learning rate."""
    for python, words in {"A tuple of": "A list of", "None measures": "Not given, it measures", "None:": "Not given:"}.items():
        text = text.replace(python, words)
    text = f"{name.replace('_', ' ')} {text}" if text.startswith("of ") else text
    return text[0].upper() + text[1:] if text[:2].isalpha() else text


def _told(made: Callable[..., Any]) -> dict[str, str]:
    """What the class says of each field, on one line each."""
    text = inspect.getdoc(made) or ""
    module = inspect.unwrap(made).__module__
    found = parse(text, style=DocstringStyle.GOOGLE).params
    return {one.arg_name: linked(" ".join((one.description or "").split()), module).replace("|", "\\|") for one in found}
