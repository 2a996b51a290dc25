"""A pretrained language model with texts of your own or with one of the paper's seven tasks: :func:`load_texts`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from stability.checks import check_bias, check_flags, check_number, check_probability, check_whole
from stability.errors import UsageError
from stability.masks import fingerprint
from stability.problems.columns import FORMS, label_column, named_column, other_texts, text_columns
from stability.problems.metrics import METRICS, cross_entropies, squared_errors
from stability.problems.pretrained import agreeing, load_pretrained
from stability.problems.problem import Examples, Problem, generator
from stability.problems.reading import RawData, Row, from_hub, hub_ways, read
from stability.problems.tasks import (
    HUB,
    MISSING,
    TASKS,
    TEXT_TRAINING,
    Sequences,
    Task,
    complete_rows,
    is_number,
    labels_of,
    listed,
    task_for,
    texts_of,
    unlabelled,
)
from stability.problems.tokens import cached_tokens, padding_of

__all__ = ["load_texts", "on_hub"]

Splits: TypeAlias = dict[str, list[Row]]
Place: TypeAlias = tuple[str, list[int]]
"""The split of the data that some examples come from, and their indices there."""
Places: TypeAlias = dict[str, Place]
"""The place of each split's examples."""


def load_texts(
    data: str | PathLike[str] | Any,
    model: str | PathLike[str],
    *,
    n: int | None = None,
    seed: int = 0,
    max_length: int = 256,
    task: str | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    label_type: Literal["classes", "numbers"] | None = None,
    drop_missing: bool = False,
    test: str | PathLike[str] | None = None,
    encoding: str | None = None,
    group: str | None = None,
    split_seed: int = 0,
    removed: float = 0.0,
    pool: int | None = None,
    initial_bias: float = 0.0,
) -> Problem:
    """Fine-tune a pretrained sequence classifier on n examples of a task.

    The data may come without a test split. Then the validation split becomes the test split, as in the paper, and a tenth of
    the training data becomes the validation split. Without a validation split a fifth of the training data becomes the test
    split.

    The loss ℓ is the cross-entropy in nats, or the squared error (f − y)² where labels are numbers. The metric is that of the
    task (:mod:`stability.problems.tasks`); for other data it is accuracy, or the mean of Pearson's and Spearman's correlation.
    The problem is known by the *content* of texts, labels and model, not by their names and paths.

    The problem's notes tell what was read and how. They count S itself, and the whole training split where they say so.

    Args:
        data: a file or folder; a pandas DataFrame or ``datasets.Dataset``; one of these for each split, as in a ``DatasetDict``;
            or a data set of the hub. :func:`stability.problems.reading.read` tells which files are read, and how. The hub needs
            ``pip install 'peft-stability[hub]'``. There the paper's tasks are called ``glue/cola``, ``glue/stsb``,
            ``glue/mrpc``, ``glue/rte``, ``super_glue/cb``, ``super_glue/copa`` and ``super_glue/wsc``. Any other name, such as
            ``stanfordnlp/imdb``, perhaps with a configuration behind it, is looked up where ``text`` or ``label`` is given.
        model: the model's folder or its name on the hub; :func:`stability.problems.pretrained.load_pretrained` reads it.
        n: size of S, drawn at random from the training split without replacement; by default the whole split.
        seed: draws S.
        max_length: the most tokens of a text; longer texts are cut. A model that takes fewer tokens cuts them earlier.
        task: the task of the paper whose form, labels and metric the data have, or ``none``. By default the columns tell the
            task, or else the name of the file or folder.
        text: the one or two columns of texts. By default the usual names: text, text_a and text_b, premise and hypothesis, review,
            content, …. Names are found without regard to case.
        label: the column of labels. By default the usual names: label, sentiment, target, category, rating, ….
        label_type: whether the labels are ``classes`` or ``numbers``; by default what they look like. A string or truth value of
            JSON names a class, and so does a field of a table that does not read as a number. Labels that are all numbers are
            classes where they are whole and at least half of the different ones occur more than once in the training data,
            such as 77 codes or ratings from 1 to 5. Other numbers are regressed on. The name of a class is the text as it is
            written, without the white space around it: in a table 7, 007 and 7.0 are three classes.
        drop_missing: leave out rows without a label or without a text. By default they are refused. A label is missing where it
            is empty, JSON's null or NaN, or a word that stands for these, such as nan, None, null, NA or N/A; a text is
            missing where it is empty or null. ``label_type="classes"`` takes such words for names of classes, unless
            ``drop_missing`` is given too.
        test: where the test split comes from: a file; ``validation`` for the data's validation split; or ``none`` for a part of
            the training data, although there are other splits. By default it is the data's test split, unless that has no
            labels: then a note says so, and the data count as having none.
        encoding: the encoding of text files, such as ``cp1252`` or ``utf-16``. By default a byte-order mark tells it, or else it is
            UTF-8, or else Windows-1252, which a note then says.
        group: the column that says what belongs together, such as the annotator of a text, for
            :class:`stability.perturbations.LeaveGroupOut`. Results are the same with and without it.
        split_seed: draws the examples that are held out, and the pool.
        removed: the fraction of the training split that is left out of S, drawn with ``seed``; at least one example where it is
            not 0. It takes the place of n. Fu et al. 2023 remove 0.1 in Table 2.
        pool: cut the training split to this many examples, drawn with ``split_seed`` and so the same for all seeds.
        initial_bias: where labels are numbers, a number that is added to the head's bias before training, such as the middle of
            the labels' scale. Without it a model that takes few steps spends most of them on finding that number.

    Raises:
        UsageError: there are no such data or no such model, a row cannot be used, or a setting is out of range. The message
            names file and line.

    Example:
        >>> load_texts("reviews.csv", model="my_model")
        Traceback (most recent call last):
        ...
        stability.errors.UsageError: there is no file or folder reviews.csv
    """
    check_whole(8, max_length=max_length)
    check_whole(0, seed=seed, split_seed=split_seed)
    check_probability(removed=removed)
    check_number(initial_bias=initial_bias)  # before anything is read
    initial_bias = float(initial_bias)  # 2 and 2.0 are one setting, and so one identity
    check_flags(drop_missing=drop_missing)
    found = _chosen(data, text, label, task=task, test=test, encoding=encoding, label_type=label_type)
    name, own, known, columns, label = found.name, found.splits, found.task, found.texts, found.label
    dropped: list[str] = []
    if drop_missing:
        own, dropped = _complete(own, label, columns or (known.columns if known else ()))
    sequences = {split: texts_of(rows, columns, known) for split, rows in own.items()}
    values, classes = labels_of(own, label, known, label_type)
    places, notes = _held_out({split: len(rows) for split, rows in own.items()}, split_seed, keep=test == "none")
    if pool is not None:
        places["train"] = _pooled(*places["train"], pool, split_seed)
    size = len(places["train"][1])
    if size < 2:
        raise UsageError(f"the training split has {size} example: give at least 2, so that one can be left out")
    if removed:
        if n is not None:
            raise UsageError(f"removed = {removed} and n = {n}: give one of them")
        n = size - max(1, round(removed * size))
        check_whole(2, None, f"removed = {removed} of {size} training examples", n=n)
    if n is not None:
        check_whole(2, size, f"the training split has {size} examples", n=n)
    chosen = torch.arange(size)
    if n is not None and n < size:
        chosen = torch.randperm(size, generator=generator(seed, "sample"))[:n]
    source, index = places["train"]
    drawn = {**places, "train": (source, [index[i] for i in chosen.tolist()])}
    choices = len(sequences["train"][0]) > 1
    notes = [
        _described(places, drawn, values, classes),
        *_doubts(values["train"], classes, guessed=label_type is None and known is None),
        *found.notes,
        *dropped,
        *_repeated(drawn, sequences),
        *_contradicting(own, sequences, values, classes),
        *notes,
    ]
    check_bias(initial_bias, name, classes=choices or classes is not None)
    pretrained = load_pretrained(model, 1 if choices or classes is None else len(classes))
    new_head = pretrained.head_from(initial_bias)
    longest = min(max_length, pretrained.max_length)
    made = {}
    for split, (source, index) in places.items():
        tokens = cached_tokens(pretrained.tokenizer, [sequences[source][i] for i in index], longest)
        made[split] = Examples(tokens.inputs, values[source][index], tokens.lengths, padding_of(pretrained.tokenizer))
        cut, labels = tokens.cut, made[split].labels
        if split == "train":
            cut, labels = cut[chosen], labels[chosen]
        if cut.any():
            notes.append(f"{int(cut.sum())} of {len(cut)} texts of {_called(split)} are cut to {longest} tokens")
        notes += _absent(_called(split), labels, classes or ())
    most = max(int(some.inputs["input_ids"].max()) for some in made.values())
    if most >= pretrained.vocabulary:
        raise UsageError(
            f"{model}: its tokenizer gives token {most}, and the model knows {pretrained.vocabulary}: they are no pair"
        )
    logits = agreeing(pretrained, _shortest_and_longest(made))
    content = {f"{split} {name}": tensor for split, some in made.items() for name, tensor in some.inputs.items()}
    content |= {f"{split} labels": some.labels for split, some in made.items()}
    if len(chosen) < size:
        made["train"] = made["train"].take(chosen)
    metric = known.metric if known else "accuracy" if classes else "mean of Pearson and Spearman"
    return Problem(
        name=name,
        training=TEXT_TRAINING,
        settings={
            "model": pretrained.name,
            "n": len(made["train"]),
            "seed": seed,
            "classes": classes and list(classes),
            "metric": metric,
            "tokens": fingerprint(content)[:16],
            "weights": pretrained.fingerprint[:16],
            "architecture": pretrained.architecture[:16],
            **({"initial_bias": initial_bias} if initial_bias else {}),
        },
        pretrained=pretrained.parameters,
        new_head=new_head,
        logits=replace(logits, choices=choices),
        loss=squared_errors if classes is None else cross_entropies,
        train=made["train"],
        test=made["test"],
        metric=METRICS[metric],
        metric_name=metric,
        validation=made.get("validation"),
        loss_unit="squared error" if classes is None else "nats",
        notes=(*notes, *pretrained.notes, *([] if logits.batched else [logits.note])),
        classes=None if classes is None else tuple(classes),
        shown=_shown(own, sequences, drawn["train"]),
        groups=None if group is None else _groups(own, group, drawn["train"]),
    )


def _groups(own: Splits, group: str, place: Place) -> list[str]:
    """The group of each training example."""
    source, index = place
    names = list(dict.fromkeys(column for row in own[source] for column in row.values))
    column = named_column(group, names)
    if column not in names:
        raise UsageError(f"group = {group!r}: the training data have no such column: use one of {', '.join(names)}")
    found = []
    for row in own[source]:  # also of what is not in S: with another seed it may be
        value = row.values.get(column)
        if value is None or str(value).strip() in ("", "nan"):
            raise UsageError(
                f"{row.place}: {column} is empty, and it names the group of the example: fill it in, or remove the row"
            )
        found.append(str(value).strip())
    return [found[i] for i in index]


def on_hub(data: str, named: bool) -> bool:
    """Whether a name is looked up on the hub: a task of the paper, or another where the user named a column.

    Args:
        data: the name, which is no file or folder.
        named: whether a column of texts or of labels was named. Without that a mistyped path would be asked for on the hub.

    Example:
        >>> on_hub("glue/rte", False), on_hub("stanfordnlp/imdb", True), on_hub("stanfordnlp/imdb", False), on_hub("a.csv", True)
        (True, True, False, False)
    """
    return data in HUB or (named and bool(hub_ways(data)))


def _read(data: Any, columns: Sequence[str], encoding: str | None) -> RawData:
    """The rows of every split that the data have. Of the paper's tasks the test split is not public, and not read."""
    if not isinstance(data, (str, PathLike)) or os.path.exists(data) or not on_hub(str(data), bool(columns)):
        return read(data, columns=columns, encoding=encoding)
    if encoding is not None:
        raise UsageError(f"encoding = {encoding!r} belongs to files of text: leave it out")
    name = str(data)
    if name not in HUB:
        return from_hub(name.rpartition("/")[2], name, hub_ways(name))
    repository, configuration = TASKS[HUB[name]].hub
    # The hub's own conversion to parquet, a folder a configuration: both repositories have it, and no code of theirs runs.
    how = {"data_dir": configuration, "revision": "refs/convert/parquet"}
    found = from_hub(HUB[name], f"{repository}/{configuration}", [(repository, how)])
    return replace(found, splits={split: [*map(_lowered, rows)] for split, rows in found.splits.items() if split != "test"})


def _lowered(row: Row) -> Row:
    label = row.values.get("label")
    return replace(row, values={**row.values, "label": label.lower()}) if isinstance(label, str) else row


class _Chosen(NamedTuple):
    """The data that a problem is made of.

    Attributes:
        name: what they are called.
        splits: the rows of each split that is used.
        task: the known task, where they are one.
        texts: the columns of texts; None for the form that the task has.
        label: the column of labels.
        notes: what of this was guessed.
    """

    name: str
    splits: Splits
    task: Task | None
    texts: Sequence[str] | None
    label: str
    notes: list[str]


def _chosen(
    data: Any,
    text: str | Sequence[str] | None,
    label: str | None,
    *,
    task: str | None,
    test: str | PathLike[str] | None,
    encoding: str | None,
    label_type: str | None,
) -> _Chosen:
    """Read the data and choose task, columns and test split. The arguments are those of :func:`load_texts`."""
    named = [text] if isinstance(text, str) else text
    found = _read(data, [*(named or ()), *([] if label is None else [label])], encoding)
    own, notes = dict(found.splits), list(found.notes)
    first, names = own["train"][0], list(dict.fromkeys(column for row in own["train"] for column in row.values))
    where = first.place.rpartition(", ")[0] if first.table else first.place  # the header stands in another line
    known = task_for(found.name, first, task)
    texts: Sequence[str] | None = None
    if named is not None:
        texts = [named_column(column, names) for column in named]
    elif known is None or known.sequences is None:
        texts = text_columns(list(first.values), where)
    labels = label_column(names, where, texts or ()) if label is None else named_column(label, names)
    notes += _guessed(names, texts if named is None else None, labels if label is None else None)
    columns = [*(texts or ()), labels]
    if test is not None and test not in ("none", "validation"):
        own["test"], told = _of_file(test, columns, encoding)
        notes += told
    own, told = _tested({split: _aligned(rows, columns) for split, rows in own.items()}, labels, test, label_type)
    return _Chosen(found.name, own, known, texts, labels, [*notes, *told])


def _of_file(path: str | PathLike[str], columns: Sequence[str], encoding: str | None) -> tuple[list[Row], list[str]]:
    """The rows of the file that the user named for the test split, and how it was read."""
    if not Path(path).is_file():
        raise UsageError(f"test = {str(path)!r}: there is no such file; use a file, none or validation")
    found = read(path, columns=columns, encoding=encoding)
    return found.splits["train"], list(found.notes)


def _aligned(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows with these columns under these names, where a split writes them in capitals or small letters."""

    def aligned(row: Row) -> Row:
        alike = {column: named_column(column, list(row.values)) for column in columns if column not in row.values}
        other = {column: row.values[name] for column, name in alike.items() if name in row.values}
        return replace(row, values={**row.values, **other}) if other else row

    return [aligned(row) for row in rows]


def _tested(own: Splits, label: str, test: str | PathLike[str] | None, label_type: str | None) -> tuple[Splits, list[str]]:
    """The splits without a test split that is not wanted, or that has no labels; and a note on the latter."""
    kept = {split: rows for split, rows in own.items() if split != "test"}
    if test == "validation" and "validation" not in own:
        raise UsageError("test = 'validation': the data have no validation split; use none, or a file")
    if test in ("none", "validation"):
        return kept, []
    if "test" in own and (why := unlabelled(own["test"], label, own["train"], label_type)):
        if test is not None:
            raise UsageError(f"test = {str(test)!r}: {why}; give a file with labels, or leave test (--test) out")
        return kept, [f"the test split of the data is ignored because {why}; test='…' or --test names another"]
    return own, []


def _guessed(names: Sequence[str], texts: Sequence[str] | None, label: str | None) -> list[str]:
    """A note on columns that were found by other names than the toolkit's own, or beside others that could be meant."""
    told = []
    others = [] if texts is None else other_texts(names, texts)
    if texts is not None and (others or tuple(texts) not in FORMS):
        told.append(f"texts are read from {' and '.join(texts)}" + (f", and not from {' or '.join(others)}" if others else ""))
    if label not in (None, "label"):
        told.append(f"labels are read from {label}")
    return [f"{'; '.join(told)}; text='…' and label='…', or --text and --label, name others"] if told else []


def _complete(own: Splits, label: str, texts: Sequence[str]) -> tuple[Splits, list[str]]:
    """The rows that have a label and their texts, and a note for each split that loses some."""
    kept, notes = {}, []
    for split, rows in own.items():
        kept[split] = complete_rows(rows, label, texts)
        if not kept[split]:
            raise UsageError(f"{rows[0].place.rpartition(', ')[0]}: no row has a label and a text: nothing is left of {split}")
        if lost := len(rows) - len(kept[split]):
            notes.append(f"{lost} of {len(rows)} rows of the {split} data have no label or no text, and are left out")
    return kept, notes


def _held_out(sizes: Mapping[str, int], split_seed: int, keep: bool) -> tuple[Places, list[str]]:
    """A test split for data that have none, and the paper's validation split where their own became the test.

    Args:
        sizes: the number of rows of each split.
        split_seed: draws what is held out.
        keep: whether a validation split stays one, and the test split is held out.
    """
    places: Places = {split: (split, list(range(size))) for split, size in sizes.items()}
    if "test" in places:
        return places, []
    notes, split, share = [], "test", 5
    if "validation" in places and not keep:
        places["test"], split, share = places["validation"], "validation", 10
        notes.append("the test split is the data's own validation split")
    count = sizes["train"] // share
    if count == 0:
        raise UsageError(f"{sizes['train']} training examples are too few to hold out one in {share}: give a test split")
    order = torch.randperm(sizes["train"], generator=generator(split_seed, "split"))
    places[split] = ("train", order[:count].sort().values.tolist())
    places["train"] = ("train", order[count:].sort().values.tolist())
    told = f"the {split} split is one in {share} of the training data, held out at random; these are never left out, and another "
    return places, [*notes, f"{told}split_seed holds out others"]


def _pooled(source: str, index: list[int], pool: int, split_seed: int) -> Place:
    """The training split cut to ``pool`` examples."""
    check_whole(2, len(index), f"the training split has {len(index)} examples", pool=pool)
    chosen = torch.randperm(len(index), generator=generator(split_seed, "pool"))[:pool].sort().values
    return source, [index[i] for i in chosen.tolist()]


def _described(places: Places, drawn: Places, values: Mapping[str, Tensor], classes: tuple[str, ...] | None) -> str:
    """The note that tells the sizes of the splits, whether labels were read as classes or as numbers, and those of S."""
    sizes = ", ".join(f"{len(index)} {split}" for split, (_, index) in places.items())
    whole, own = (values[source][index] for source, index in (places["train"], drawn["train"]))
    more = f"; in the whole train split {_spread(whole, classes)}" if len(own) < len(whole) else ""
    kind = "numbers" if classes is None else f"{len(classes)} classes"
    return f"{sizes} examples; labels are {kind}, in S (n = {len(own)}) {_spread(own, classes)}{more}"


def _spread(labels: Tensor, classes: tuple[str, ...] | None) -> str:
    if classes is None:
        return f"{float(labels.min()):g} to {float(labels.max()):g}"
    counts = labels.bincount(minlength=len(classes)).tolist()
    if len(classes) > 10:  # a list of all would hide what else there is to say
        return f"{min(counts)} to {max(counts)} examples of each"
    return ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))


def _doubts(labels: Tensor, classes: tuple[str, ...] | None, guessed: bool) -> list[str]:
    """What to say where labels may be something else than what they were read as."""
    if classes is None:
        whole = guessed and bool((labels == labels.round()).all())
        note = "labels are whole numbers that seldom repeat; if they name classes: label_type='classes', --labels classes"
        return [note] if whole else []
    notes = [
        f"the class {name} is a name, and no missing label, as label_type = 'classes' says" for name in classes if name in MISSING
    ]
    if guessed and len(classes) > 2 and all(map(is_number, classes)):
        notes.append("the names of the classes are numbers; if they are quantities: label_type='numbers', --labels numbers")
    return notes


def _called(split: str) -> str:
    return "S" if split == "train" else f"the {split} split"


def _absent(called: str, labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Whether some examples lack a class, or have one alone."""
    present = set(labels.tolist())
    absent = [name for code, name in enumerate(classes) if code not in present]
    alone = f": all are {classes[present.pop()]}" if absent and len(present) == 1 else ""
    return [f"{called} has no example of {listed(absent)}{alone}"] if absent else []


def _repeated(drawn: Places, sequences: Mapping[str, list[Sequences]]) -> list[str]:
    """Notes on repeated texts: leaving out one of two changes little, and a test on training texts tests nothing."""
    texts = {split: [tuple(sequences[source][i]) for i in index] for split, (source, index) in drawn.items()}
    known = set(texts["train"])
    again = {"train": len(texts["train"]) - len(known)}
    again |= {split: sum(one in known for one in mine) for split, mine in texts.items() if split != "train"}
    return [
        f"{again[split]} of {len(mine)} examples of {_called(split)} "
        + ("repeat another of it" if split == "train" else "are in S too")
        for split, mine in texts.items()
        if again[split]
    ]


def _contradicting(
    own: Splits, sequences: Mapping[str, list[Sequences]], values: Mapping[str, Tensor], classes: tuple[str, ...] | None
) -> list[str]:
    """A note on texts that have different labels, over all rows of the data: a person must see which of them is right."""
    places: dict[Any, dict[float, Row]] = {}  # of each text, the first row with each of its labels
    for split, rows in own.items():
        for row, texts, value in zip(rows, sequences[split], values[split].tolist(), strict=True):
            places.setdefault(tuple(texts), {}).setdefault(value, row)
    found = [labels for labels in places.values() if len(labels) > 1]
    if not found:
        return []
    name = "{:g}".format if classes is None else lambda code: classes[code]
    first = " and ".join(f"{_at(row)} ({name(value)})" for value, row in list(found[0].items())[:2])
    return [f"{len(found)} of {len(places)} texts of the data, all splits together, have different labels, the first at {first}"]


def _shown(own: Splits, sequences: Mapping[str, list[Sequences]], place: Place) -> list[str]:
    """Each training example as a person sees it: file and line, and its texts; those of a choice are its alternatives."""
    source, index = place
    return [f"{_at(own[source][i])}: " + " / ".join(" ‖ ".join(texts) for texts in sequences[source][i]) for i in index]


def _at(row: Row) -> str:
    return Path(row.place).name


def _shortest_and_longest(made: Mapping[str, Examples]) -> dict[str, Any]:
    """The inputs of two examples: the shortest and the longest of the split that has the longest of all."""
    where = max(made.values(), key=lambda some: some.longest(slice(None)))
    assert where.lengths is not None
    return dict(where.take(where.lengths.argsort(stable=True)[[0, -1]]).inputs)
