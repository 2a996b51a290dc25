"""A pretrained language model with texts of one's own, or with one of the paper's seven tasks: :func:`load`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from stability.errors import UsageError, check_whole
from stability.problem import Examples, Problem, generator
from stability.problems.metrics import METRICS, cross_entropies, squared_errors
from stability.problems.pretrained import load_pretrained
from stability.problems.reading import Row, read_rows, split_files
from stability.problems.tasks import TASKS, labels_of, task_for, text_columns, texts_of
from stability.problems.tokens import cached_tokens

__all__ = ["HUB", "load"]

HUB = {f"{task.hub[0].rpartition('/')[2]}/{name}": name for name, task in TASKS.items()}
"""The paper's tasks by the names under which the Hugging Face hub is asked for them: ``glue/rte``, ``super_glue/cb``, …"""

Splits: TypeAlias = dict[str, list[Row]]


def load(
    data: str,
    model: str,
    n: int | None = None,
    seed: int = 0,
    max_length: int = 256,
    task: str | None = None,
    text: str | Sequence[str] | None = None,
    label: str = "label",
    labels: Literal["classes", "numbers"] | None = None,
    split_seed: int = 0,
) -> Problem:
    """Fine-tune a pretrained sequence classifier on n examples of a task.

    ``data`` is a folder of JSON lines or CSV files, a single such file, or ``glue/cola``, ``glue/stsb``, ``glue/mrpc``,
    ``glue/rte``, ``super_glue/cb``, ``super_glue/copa``, ``super_glue/wsc`` from the hub (``pip install 'stability[hub]'``). A
    folder holds train.jsonl, and test.jsonl and val.jsonl where there are such. Without a test split the validation
    split is the test split, as in the paper, and a tenth of the training data becomes the validation split; without
    either a fifth of the training data is the test split. What is held out is drawn with ``split_seed``.

    ℓ is the cross-entropy in nats, for numbers the squared error (f − y)². The metric is the task's
    (:mod:`stability.problems.tasks`), for other data accuracy or the mean of Pearson's and Spearman's correlation.

    Args:
        data: where the examples are.
        model: a folder or a name on the hub; see :func:`stability.problems.pretrained.load_pretrained`.
        n: size of S, drawn at random from the training split without replacement; by default the whole split.
        seed: draws S.
        max_length: texts are cut to so many tokens, or to what the model can take.
        task: one of the seven whose texts, labels and metric these are; by default the one whose name or columns they have.
        text: the column, or the two columns, of texts; by default text, text_a and text_b, premise and hypothesis, ….
        label: the column of labels.
        labels: whether they are ``classes`` or ``numbers``; by default what they look like.
        split_seed: draws what is held out.

    Raises:
        UsageError: no such data or model, rows that do not fit, a setting out of range; file and line are named.

    Example:
        >>> load("reviews.csv", model="my_model")
        Traceback (most recent call last):
        ...
        stability.errors.UsageError: there is no file or folder reviews.csv
    """
    name, splits, notes = _held_out(*_read(data), split_seed)
    columns = list(splits["train"][0].values)
    known = task_for(name, columns, task)
    names = [text] if isinstance(text, str) else text
    if names is None and (known is None or known.sequences is None):
        names = text_columns(splits["train"][0])
    examples = {split: texts_of(rows, names, known) for split, rows in splits.items()}
    coded, lacking = labels_of(splits, label, known, labels)
    classes, choices = coded["train"].classes, len(examples["train"][0]) > 1
    check_whole(2, n=len(coded["train"].values) if n is None else n)
    if n is not None and n > len(splits["train"]):
        raise UsageError(f"n = {n}: the training split has {len(splits['train'])} examples")
    check_whole(8, max_length=max_length)
    pretrained = load_pretrained(model, 1 if choices or classes is None else len(classes), max_length)
    made = {}
    for split, sequences in examples.items():
        tokens = cached_tokens(pretrained.tokenizer, sequences, pretrained.max_length)
        made[split] = Examples(tokens.inputs, coded[split].values, tokens.lengths)
        if tokens.cut:
            notes.append(f"{tokens.cut} of {len(sequences)} texts of the {split} split are cut to {pretrained.max_length} tokens")
    if n is not None and n < len(made["train"]):
        made["train"] = made["train"].take(torch.randperm(len(made["train"]), generator=generator(seed, "sample"))[:n])
    metric = known.metric if known else "accuracy" if classes else "mean of Pearson and Spearman"
    return Problem(
        name=name,
        settings={
            "data": _digest(splits),
            "model": pretrained.name,
            "weights": pretrained.fingerprint[:16],
            "n": len(made["train"]),
            "seed": seed,
            "max_length": pretrained.max_length,
            "text": names and list(names),
            "label": label,
            "classes": classes,
        },
        pretrained=pretrained.parameters,
        new_head=pretrained.new_head,
        logits=replace(pretrained.logits, choices=choices),
        loss=squared_errors if classes is None else cross_entropies,
        train=made["train"],
        test=made["test"],
        metric=METRICS[metric],
        metric_name=metric,
        validation=made.get("validation"),
        loss_unit="squared error" if classes is None else "nats",
        notes=(*notes, *lacking),
    )


def _read(data: str) -> tuple[str, Splits]:
    """Name and rows of every split."""
    path = Path(data)
    if path.exists() or data not in HUB:
        return path.resolve().stem, {split: read_rows(file) for split, file in split_files(path).items()}
    return HUB[data], _from_hub(HUB[data])


def _from_hub(name: str) -> Splits:
    """The training and validation splits that the hub has; its test labels are not public."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError(f"{name} needs the package datasets: pip install 'stability[hub]'; or give a folder") from error
    repository, configuration = TASKS[name].hub
    try:
        # The hub's own conversion: both repositories have it, and no code of theirs is run.
        found = load_dataset(repository, configuration, revision="refs/convert/parquet")
        splits: Splits = {}
        for split in ("train", "validation"):
            names = getattr(found[split].features["label"], "names", None)
            rows = [{**row, "label": names[row["label"]].lower() if names else row["label"]} for row in found[split]]
            splits[split] = [Row(row, f"{repository}/{configuration}, {split} {i}") for i, row in enumerate(rows)]
        return splits
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the hub did not give {repository}/{configuration}: {reason}; without a network give a folder of JSON lines"
        ) from error


def _held_out(name: str, splits: Splits, split_seed: int) -> tuple[str, Splits, list[str]]:
    """With a test split, and the paper's validation split where the data's own became the test."""
    splits, notes = dict(splits), []
    order = torch.randperm(len(splits["train"]), generator=generator(split_seed, "split")).tolist()
    if "test" not in splits:
        shares = {"validation": 10} if "validation" in splits else {"test": 5}
        if "validation" in splits:
            splits["test"] = splits.pop("validation")
            notes.append("the test split is the data's own validation split")
        for split, share in shares.items():
            count = len(order) // share
            if count == 0:
                raise UsageError(f"{len(order)} training examples are too few to hold out one in {share}: give a test split")
            held, order = order[:count], sorted(order[count:])
            splits[split] = [splits["train"][i] for i in sorted(held)]
            notes.append(f"the {split} split is one in {share} of the training data, held out at random")
        splits["train"] = [splits["train"][i] for i in order]
    return name, splits, notes


def _digest(splits: Splits) -> str:
    """Of the content of all splits, wherever they lie and in whatever format."""
    content: Any = {split: [row.values for row in rows] for split, rows in splits.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
