"""From a row to the texts that a sequence classifier reads and to a label, for the seven tasks of the paper and any other.

The tasks are those of GLUE (Wang et al. 2018) and SuperGLUE (Wang et al. 2019) with the paper's metrics:

| task | texts | label | metric |
| --- | --- | --- | --- |
| cola | a sentence | acceptable or not | Matthews's correlation |
| mrpc | two sentences | paraphrases or not | mean of accuracy and F1 |
| stsb | two sentences | similarity, 0 to 5 | mean of Pearson's and Spearman's correlation |
| rte, cb | premise, hypothesis | entailment or not; entailment, contradiction, neutral | accuracy |
| copa | premise and the question in words, one of two choices | which choice | accuracy |
| wsc | a text, the same with its pronoun replaced by a noun phrase | whether they mean the same | accuracy |

COPA is a choice: a classifier with one logit scores the premise with each choice, and the two scores are the example's logits.
WSC becomes entailment between two texts, as in GLUE's WNLI.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from stability.checks import check_choice
from stability.errors import UsageError
from stability.problems.problem import TrainingDefaults
from stability.problems.reading import Row

__all__ = [
    "HUB",
    "MISSING",
    "TASKS",
    "TEXT_TRAINING",
    "Sequences",
    "Task",
    "complete_rows",
    "is_number",
    "labels_of",
    "listed",
    "task_for",
    "texts_of",
    "unlabelled",
]

Sequences: TypeAlias = list[tuple[str, ...]]
"""The texts of one example: for each sequence that the model reads, one text or a pair. Only a choice has several sequences."""

_LISTED = 5  # the most rows or names that a message tells; of the others it tells the number

MISSING = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL"}
    | {"NaN", "None", "n/a", "nan", "null"}
)
"""Words that stand for a missing label: those that ``pandas.read_csv`` documents. A label without any sign is missing too."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A known task.

    Attributes:
        hub: its repository and configuration on the Hugging Face hub.
        metric: the metric's name in :data:`stability.problems.metrics.METRICS`.
        classes: for each class the values that stand for it, the positive class last; None where labels are numbers.
        columns: columns that no other data have, so that they tell the task; they may be nested in another column. Empty
            where the columns do not tell it.
        sequences: a function from a row to its texts; None where the texts are in columns with the usual names.

    Example:
        >>> TASKS["rte"].metric, TASKS["rte"].classes
        ('accuracy', (('entailment',), ('not_entailment',)))
    """

    hub: tuple[str, str]
    metric: str
    classes: tuple[tuple[str, ...], ...] | None
    columns: tuple[str, ...] = ()
    sequences: Callable[[Row], Sequences] | None = None


def _copa(row: Row) -> Sequences:
    question = _text(row, "question")
    if question not in ("cause", "effect"):
        raise UsageError(f"{row.place}: question = {question!r}: cause or effect expected")
    premise = f"{_text(row, 'premise')} {'What was the cause?' if question == 'cause' else 'What happened as a result?'}"
    return [(premise, _text(row, choice)) for choice in ("choice1", "choice2")]


def _wsc(row: Row) -> Sequences:
    target = row.values.get("target", row.values)  # nested in SuperGLUE's own files, flat on the hub
    flat = Row(dict(target), row.place) if isinstance(target, Mapping) else row
    text, noun, pronoun = _text(row, "text"), _text(flat, "span1_text"), _text(flat, "span2_text")
    words, index = text.split(), flat.values.get("span2_index")
    places = [i for i, word in enumerate(words) if re.sub(r"^\W+|\W+$", "", word).lower() == pronoun.lower()]
    if not isinstance(index, int) or not places:
        raise UsageError(f"{row.place}: the pronoun span2_text = {pronoun!r} is no word of the text, or span2_index no number")
    place = min(places, key=lambda i: abs(i - index))
    words[place] = re.sub(re.escape(pronoun), lambda _: noun, words[place], flags=re.IGNORECASE)
    return [(text, " ".join(words))]


TASKS: dict[str, Task] = {
    "cola": Task(hub=("nyu-mll/glue", "cola"), metric="Matthews", classes=(("0", "unacceptable"), ("1", "acceptable"))),
    "stsb": Task(hub=("nyu-mll/glue", "stsb"), metric="mean of Pearson and Spearman", classes=None),
    "mrpc": Task(
        hub=("nyu-mll/glue", "mrpc"), metric="mean of accuracy and F1", classes=(("0", "not_equivalent"), ("1", "equivalent"))
    ),
    "rte": Task(hub=("nyu-mll/glue", "rte"), metric="accuracy", classes=(("entailment",), ("not_entailment",))),
    "cb": Task(hub=("aps/super_glue", "cb"), metric="accuracy", classes=(("contradiction",), ("entailment",), ("neutral",))),
    "copa": Task(
        hub=("aps/super_glue", "copa"),
        metric="accuracy",
        classes=(("0", "choice1"), ("1", "choice2")),
        columns=("premise", "choice1", "choice2", "question"),
        sequences=_copa,
    ),
    "wsc": Task(
        hub=("aps/super_glue", "wsc"),
        metric="accuracy",
        classes=(("false", "0"), ("true", "1")),
        columns=("text", "span1_text", "span2_text"),
        sequences=_wsc,
    ),
}
"""The paper's seven tasks, by name."""

TEXT_TRAINING = TrainingDefaults(steps=150, batch_size=16, learning_rate=5e-4, schedule="linear")
"""Fu et al. 2023 take batches of 16 as well, a learning rate of 1e-4 and at least 20 000 steps."""

HUB: dict[str, str] = {f"{task.hub[0].rpartition('/')[2]}/{name}": name for name, task in TASKS.items()}
"""The paper's tasks, by the names under which :func:`stability.problems.load` asks the hub for them: ``glue/rte``, …"""


def task_for(name: str, row: Row, asked: str | None = None) -> Task | None:
    """Find out whether data are one of the known tasks.

    Args:
        name: the data's name; it decides where ``asked`` is None and the columns do not tell.
        row: a row of the data, whose columns may tell the task.
        asked: the task that the user named, or ``none`` for no known task; None where the user named nothing.

    Returns:
        The task; None where it is none of the seven.

    Raises:
        UsageError: ``asked`` is no known task.

    Example:
        >>> row = Row({"premise": "…", "choice1": "…", "choice2": "…", "question": "cause", "label": 0}, "line 1")
        >>> task_for("mine", row) is TASKS["copa"]
        True
    """
    if asked is not None:
        check_choice((*TASKS, "none"), task=asked)
        return TASKS.get(asked)
    for task in TASKS.values():
        if task.columns and set(task.columns) <= _flat(row).keys():
            return task
    return TASKS.get(name)


def texts_of(rows: Sequence[Row], columns: Sequence[str] | None, task: Task | None = None) -> list[Sequences]:
    """The texts of each row.

    Args:
        rows: the rows of one split.
        columns: the one or two columns that hold the texts; None for the form that the task has.
        task: the known task, where there is one; it is needed where ``columns`` is None.

    Returns:
        The texts of each row, in the order of the rows.

    Raises:
        UsageError: a column is missing, or holds something that is no text; or there are neither columns nor a task's form.

    Example:
        >>> texts_of([Row({"premise": "It rains.", "hypothesis": "It is wet."}, "line 1")], ["premise", "hypothesis"])
        [[('It rains.', 'It is wet.')]]
    """
    if columns is None:
        if task is None or task.sequences is None:
            raise UsageError("texts of no columns: name one or two")
        return [task.sequences(row) for row in rows]
    if len(columns) not in (1, 2):
        raise UsageError(f"{len(columns)} columns of texts ({', '.join(columns)}): a sequence classifier takes one or two")
    return [[tuple(_text(row, name) for name in columns)] for row in rows]


def complete_rows(rows: Sequence[Row], label: str, texts: Sequence[str]) -> list[Row]:
    """The rows that have a label and all their texts.

    A label is missing where it is one of the words :data:`MISSING`. A text is not: somebody may have written "None". Both are
    missing where they are empty or blank, JSON's null or NaN, or absent from a row of JSON lines. A column that no row has is
    a wrong name, and nothing is missing for it.

    Args:
        rows: the rows of one split.
        label: the column of labels.
        texts: the columns of texts; they may be nested in another column.

    Returns:
        The rows, in their order.

    Example:
        >>> rows = [Row({"text": "It rains.", "label": "yes"}, "line 1"), Row({"text": "It snows.", "label": "NaN"}, "line 2")]
        >>> [row.place for row in complete_rows(rows, "label", ["text"])]
        ['line 1']
    """
    lacking = [*_lacking(rows, label, MISSING), *(row for name in texts for row in _lacking(rows, name, ()))]
    places = {row.place for row in lacking}
    return [row for row in rows if row.place not in places]


def unlabelled(rows: Sequence[Row], column: str, train: Sequence[Row], label_type: str | None = None) -> str:
    """Why a split has no labels: it lacks the column, all labels are missing, or all are −1 where that labels no training example.

    Args:
        rows: the rows of the split.
        column: the column of labels.
        train: the rows of the training split.
        label_type: as :func:`labels_of` takes it; ``classes`` takes the words :data:`MISSING` for labels.

    Returns:
        The reason; empty where there are labels.

    Example:
        >>> train = [Row({"label": 0}, "line 1"), Row({"label": 1}, "line 2")]
        >>> unlabelled([Row({"label": -1}, "line 1")], "label", train)
        'all its labels are -1'
    """
    if not any(column in row.values for row in rows):
        return f"it has no column {column!r}, there is {', '.join(rows[0].values)}"
    if all(_is_missing(row.values.get(column), () if label_type == "classes" else MISSING) for row in rows):
        return "none of its rows has a label"
    here, there = ({str(row.values.get(column)).strip() for row in some} for some in (rows, train))
    nothing = {"-1", "-1.0"}
    return "all its labels are -1" if here <= nothing and not there & nothing else ""


def labels_of(
    splits: Mapping[str, Sequence[Row]], column: str, task: Task | None, label_type: Literal["classes", "numbers"] | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The labels of every split as tensors.

    The classes are those of the task where it is known, and otherwise those of the training data in alphabetical order. The
    name of a class is the text as it is written, without the white space around it: 7, 007 and 7.0 are three names. A number of
    JSON has no way of writing: 7 and 7.0 are the class 7.

    Args:
        splits: the rows of each split, ``train`` among them.
        column: the column of labels.
        task: the known task, where there is one; it decides whether labels are classes or numbers.
        label_type: whether labels of an unknown task are ``classes`` or ``numbers``. By default a string or truth value of JSON
            names a class, and so does a field of a table that does not read as a number. Labels that are all numbers are
            classes where they are whole and at least half of the different ones occur more than once in the training data,
            and otherwise numbers. ``classes`` also takes the words :data:`MISSING` for names.

    Returns:
        The labels of each split, (N,), and the names of the classes: int64 codes 0, 1, … with their names, or float32 numbers
        and None.

    Raises:
        UsageError: the column is missing or holds neither classes nor numbers, a row has no label, a class does not occur in
            the training data, there is only one class, or ``label_type`` is unknown or contradicts the task.

    Example:
        >>> labels_of({"train": [Row({"label": "yes"}, "line 1"), Row({"label": "no"}, "line 2")]}, "label", None)
        ({'train': tensor([1, 0])}, ('no', 'yes'))
    """
    if label_type is not None:
        check_choice(("classes", "numbers"), label_type=label_type)
    _check_none_missing(splits, column, task, label_type)
    texts = {split: [_label(row, column) for row in rows] for split, rows in splits.items()}
    if task is not None:
        own: Literal["classes", "numbers"] = "numbers" if task.classes is None else "classes"
        if label_type not in (None, own):
            raise UsageError(
                f"label_type = {label_type!r}, and the labels of this task are {own}: leave label_type out, or use task 'none'"
            )
        label_type = own
    if (label_type or _type_of(splits["train"], texts["train"], column)) == "numbers":
        pairs = {split: zip(rows, texts[split], strict=True) for split, rows in splits.items()}
        numbers = {split: [_number(row, text, column) for row, text in mine] for split, mine in pairs.items()}
        return {split: torch.tensor(mine, dtype=torch.float32) for split, mine in numbers.items()}, None
    known = None if task is None else task.classes
    groups = known or tuple((name,) for name in sorted(set(texts["train"])))
    code = {name: index for index, names in enumerate(groups) for name in names}
    for split, rows in splits.items():
        for row, text in zip(rows, texts[split], strict=True):
            if text not in code:
                whose = "of this task (task 'none' takes labels as they are)" if known else "of the training data"
                raise UsageError(
                    f"{row.place}: {column} = {text!r} is no class {whose}: {', '.join(code)}{_meant(text, code, label_type)}"
                )
    coded = {split: torch.tensor([code[text] for text in mine]) for split, mine in texts.items()}
    if len(set(coded["train"].tolist())) < 2:
        raise UsageError(f"the training data have one class alone, {texts['train'][0]!r}: there is nothing to tell apart")
    return coded, tuple(names[0] for names in groups)


def is_number(text: str) -> bool:
    """Whether a text reads as a number, in the way in which tables write them.

    Args:
        text: a label, without white space around it.

    Example:
        >>> [text for text in ("4.5", "-1e-3", "007", "1_000", "nan", "4,5") if is_number(text)]
        ['4.5', '-1e-3', '007']
    """
    return re.fullmatch(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", text) is not None


def listed(words: Sequence[str]) -> str:
    """The first words of a list, and how many more there are.

    Args:
        words: at least one word.

    Example:
        >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e", "f", "g"])
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = len(words) - _LISTED
    return ", ".join(words[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _flat(row: Row) -> dict[str, Any]:
    """The values of a row together with those that are nested in one of them."""
    inner = (value for value in row.values.values() if isinstance(value, Mapping))
    return {**{key: value for nested in inner for key, value in nested.items()}, **row.values}


def _lacking(rows: Sequence[Row], column: str, words: Collection[str]) -> list[Row]:
    """The rows that have no value in a column, or one of these words; none where no row has the column."""
    values = [_flat(row) for row in rows]
    if not any(column in mine for mine in values):
        return []
    return [row for row, mine in zip(rows, values, strict=True) if _is_missing(mine.get(column), words)]


def _is_missing(value: Any, words: Collection[str]) -> bool:
    if isinstance(value, str):
        return not value.strip() or value.strip() in words
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_none_missing(splits: Mapping[str, Sequence[Row]], column: str, task: Task | None, label_type: str | None) -> None:
    words = () if label_type == "classes" else MISSING
    lacking = {split: _lacking(rows, column, words) for split, rows in splits.items()}
    found = [_told_missing(mine, len(splits[split]), column) for split, mine in lacking.items() if mine]
    if not found:
        return
    values = [row.values.get(column) for mine in lacking.values() for row in mine]
    names = sorted({value.strip() for value in values if isinstance(value, str) and value.strip()})
    kept = (
        f"; if {names[0]} is a class, say so: label_type='classes', --labels classes" if names and not (task or label_type) else ""
    )
    raise UsageError(f"{'; '.join(found)}: mend these rows, or leave them out (drop_missing=True, --drop-missing){kept}")


def _told_missing(rows: Sequence[Row], count: int, column: str) -> str:
    """How many rows of a file lack a label, and at which lines the first of them are."""
    file = rows[0].place.rpartition(", ")[0]
    lines = [f"{row.place.removeprefix(f'{file}, ')} ({row.values.get(column)!r})" for row in rows]  # a split may be in parts
    return f"{file}: {len(rows)} of {count} rows have no {column!r}: {listed(lines)}"


def _text(row: Row, column: str) -> str:
    if column not in row.values:
        raise UsageError(f"{row.place}: no column {column!r}, there is {', '.join(map(str, row.values))}")
    value = row.values[column]
    if _is_missing(value, ()):
        raise UsageError(
            f"{row.place}: {column} = {value!r} is no text: mend the row, or leave such rows out "
            "(drop_missing=True, --drop-missing)"
        )
    if not isinstance(value, str):
        raise UsageError(f"{row.place}: {column} = {value!r:.80} is no text")
    if any("\ud800" <= sign <= "\udfff" for sign in value):  # half of a pair of JSON's \u escapes
        raise UsageError(f"{row.place}: {column} holds half a character ({value!r}): write it anew")
    return value


def _label(row: Row, column: str) -> str:
    """A label as the name of a class."""
    if column not in row.values:
        raise UsageError(
            f"{row.place}: no column {column!r} of labels, there is {', '.join(map(str, row.values))}; "
            "name yours: label='…' in Python, --label COLUMN on the command line"
        )
    value = row.values[column]
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise UsageError(f"{row.place}: {column} = {value!r} is neither a class nor a number")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _type_of(rows: Sequence[Row], texts: Sequence[str], column: str) -> Literal["classes", "numbers"]:
    """Whether the labels of the training data look like classes or like numbers."""
    counts = Counter(texts)
    words = sorted({text for row, text in zip(rows, texts, strict=True) if _is_word(row, text, column)})
    file = rows[0].place.rpartition(", ")[0]
    if rows[0].table and (commas := [text for text in words if re.fullmatch(r"-?\d+,\d+", text)]):
        raise UsageError(
            f"{file}: {column} has decimal commas ({commas[0]}): write 4.5 for 4,5, or say that labels are classes "
            "(label_type='classes', --labels classes)"
        )
    if 0 < len(words) < len(counts) / 2:
        raise UsageError(
            f"{file}: {column} has numbers and words ({listed(list(map(repr, words)))}): mend these rows, or say that labels are "
            "classes (label_type='classes', --labels classes)"
        )
    if not words:
        whole = all(re.fullmatch(r"[-+]?[0-9]+(\.0*)?", text) for text in counts)
        repeated = sum(count > 1 for count in counts.values())
        return "classes" if whole and 2 * repeated >= len(counts) else "numbers"
    if len(counts) > max(2, len(texts) // 2):
        raise UsageError(
            f"{file}: {column} has {len(counts)} different texts in {len(texts)} examples: neither classes nor numbers; name the "
            "column of labels, or say what they are: label_type='classes' or 'numbers' (--labels)"
        )
    return "classes"


def _is_word(row: Row, text: str, column: str) -> bool:
    """Whether a label is a name: JSON tells by its type, a table only by how it reads."""
    value = row.values[column]
    return isinstance(value, bool) or (isinstance(value, str) and not (row.table and is_number(text)))


def _meant(text: str, classes: Collection[str], label_type: str | None) -> str:
    """What may have been meant by a label that is no class: one that differs in its writing alone, or a number."""
    if near := next((name for name in classes if _alike(name) == _alike(text)), None):
        return f"; if {text!r} is the class {near!r}, write both alike"
    if label_type is None and is_number(text) and all(map(is_number, classes)):
        return "; if labels are quantities, say so: label_type='numbers', --labels numbers"
    return ""


def _alike(text: str) -> float | str:
    return float(text) if is_number(text) else text.casefold()


def _number(row: Row, text: str, column: str) -> float:
    value = float(text) if is_number(text) else math.nan
    if not math.isfinite(value):
        raise UsageError(f"{row.place}: {column} = {text!r} is no finite number")
    return value
