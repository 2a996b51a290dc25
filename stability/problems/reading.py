"""Rows of a user's own files. Each row keeps the place that it came from, so that every error can name file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stability.errors import UsageError

__all__ = ["Row", "read_rows", "split_files"]

_KINDS = (".jsonl", ".json", ".csv", ".tsv")
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Row:
    """One example as it was read from a file.

    Attributes:
        values: the value in each column.
        place: where the row stands, such as ``train.jsonl, line 7``.
        table: whether it comes from a table, which has texts only: there a number is a text that reads as one.

    Example:
        >>> Row({"text": "It rains.", "label": "yes"}, "train.jsonl, line 7").values["label"]
        'yes'
    """

    values: dict[str, Any]
    place: str
    table: bool = False


def split_files(path: Path) -> dict[str, Path]:
    """Find the file of each split.

    Args:
        path: a folder with a file for each split, or a single file, which is the training split. The files are called train,
            test, and validation, val, valid or dev, and end in .jsonl, .json, .csv or .tsv.

    Returns:
        The files of ``train`` and, where there are any, of ``validation`` and ``test``.

    Raises:
        UsageError: there is no such path, no training file, two files for one split, or a file of an unknown kind.

    Example:
        >>> split_files(Path("nowhere"))
        Traceback (most recent call last):
        stability.errors.UsageError: there is no file or folder nowhere
    """
    if path.is_file():
        if path.suffix.lower() not in _KINDS:
            raise UsageError(f"{path} is neither JSON lines nor a table: use a file that ends in {', '.join(_KINDS)}")
        return {"train": path}
    if not path.is_dir():
        raise UsageError(f"there is no file or folder {path}")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _KINDS)
    found: dict[str, Path] = {}
    for split, names in _SPLITS.items():
        mine = [file for file in files if file.stem.lower() in names]
        if len(mine) > 1:
            raise UsageError(f"{path} holds {' and '.join(file.name for file in mine)}: keep one file for the {split} split")
        if mine:
            found[split] = mine[0]
    if "train" not in found:
        there = ", ".join(file.name for file in sorted(path.iterdir())[:5]) or "nothing"
        raise UsageError(f"{path} has no training data: train.jsonl or train.csv expected, found {there}")
    return found


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a file. Blank lines are skipped.

    Args:
        path: a file with one JSON object in each line, or a CSV or TSV file with a header.

    Returns:
        The rows in the order of the file.

    Raises:
        UsageError: the file is not UTF-8, a line is no JSON object or has too few or too many fields, or there is no row. The
            message names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.csv").write_text("text,label\\nIt rains.,yes\\n")
        ...     read_rows(Path(folder) / "train.csv")[0].values
        {'text': 'It rains.', 'label': 'yes'}
    """
    rows = list(_table(path) if path.suffix.lower() in (".csv", ".tsv") else _json_lines(path))
    if not rows:
        raise UsageError(f"{path} is empty: at least one example expected")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}, line {number}: not UTF-8 ({error.reason}, byte {error.start}): save it as UTF-8") from error


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}, line {number}: no JSON ({error}); one object a line expected") from error
        if not isinstance(values, dict):
            raise UsageError(f"{path}, line {number}: {type(values).__name__} instead of an object; one object a line expected")
        yield Row(values, f"{path}, line {number}")


def _table(path: Path) -> Iterator[Row]:
    text = "\n".join(line for _, line in _lines(path))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        names = [name.strip() for name in header]
        if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
            raise UsageError(f"{path}, line 1: separated by {other!r} as it seems: save it with commas, or with tabs as .tsv")
        if len(set(names)) < len(names):
            raise UsageError(f"{path}, line 1: a column's name occurs twice in {', '.join(names)}")
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(names):
                raise UsageError(
                    f"{place}: {len(fields)} fields, the header has {len(names)} ({', '.join(names)}); "
                    "put texts that contain the separator in double quotes"
                )
            yield Row(dict(zip(names, fields, strict=True)), place, table=True)
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from error
