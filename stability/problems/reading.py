"""Rows of a user's own data: of files, of tables in Python, of the hub. Each row keeps its place, so that every error can name it.

Files are packed or not. Text is JSON, or a table (:mod:`stability.problems.delimited`). pyarrow reads parquet; ``datasets`` reads
what it saved, and what the hub has.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from stability.errors import UsageError, one_line
from stability.problems.delimited import LINE_END, check_distinct, parse

__all__ = ["RawData", "Row", "from_hub", "hub_ways", "is_file", "read", "stem"]

Splits: TypeAlias = dict[str, list["Row"]]

_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Row:
    """One example as it was read.

    Attributes:
        values: the value in each column.
        place: where the row stands: ``train.jsonl, line 7``; ``train.parquet, row 7``, counted from 1; or ``data, train[6]``,
            counted from 0 as in Python.
        table: whether it comes from a table of text, where a number is a text that reads as one.

    Example:
        >>> Row({"text": "It rains.", "label": "yes"}, "train.jsonl, line 7").values["label"]
        'yes'
    """

    values: dict[str, Any]
    place: str
    table: bool = False


@dataclass(frozen=True)
class RawData:
    """Data as they were read.

    Attributes:
        name: what they are called.
        splits: the rows of ``train`` and, where there are any, of ``validation`` and ``test``.
        notes: how they were read, where that had to be guessed.

    Example:
        >>> RawData("reviews", {"train": [Row({"text": "It rains.", "label": "yes"}, "reviews.csv, line 2")]}).notes
        ()
    """

    name: str
    splits: Splits
    notes: tuple[str, ...] = ()


def read(data: Any, *, columns: Collection[str] = (), encoding: str | None = None) -> RawData:
    """Read data of any kind: a file, a folder, or tables in Python.

    A file ends in .csv or .tsv, .jsonl, .ndjson or .json (an object a line, or one array of objects), or .parquet; and then in .gz,
    .bz2, .xz or .zip where it is packed. A folder has a file for each split, called train, test, and validation, val, valid or
    dev; a single file is the training split. A split may be in parts, such as train-00000-of-00002.parquet. A folder that
    ``save_to_disk`` of ``datasets`` wrote is read too.

    Text is UTF-8, or what its byte-order mark says, or else Windows-1252, and a note says so. How a table may be written,
    :func:`stability.problems.delimited.parse` tells.

    Args:
        data: a path; a pandas DataFrame or a ``datasets.Dataset``; or one of these for each split, as in a ``DatasetDict``.
        columns: the columns that the user named; they tell by which sign a table is separated.
        encoding: the encoding of text files, such as ``cp1252``; by default it is found out.

    Returns:
        The rows of each split, in their order, with the name of the data. Blank lines are skipped.

    Raises:
        UsageError: there is no such data or no training data, a file cannot be read as what its name says, there are two files for
            one split, or a split has no row. The message names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.csv").write_text("text;label\\nIt rains.;yes\\n")
        ...     found = read(folder)
        >>> found.splits["train"][0].values, found.notes
        ({'text': 'It rains.', 'label': 'yes'}, ('train.csv: the columns are separated by semicolons',))
    """
    if encoding is not None:
        _check_encoding(encoding)
    path = Path(data) if isinstance(data, (str, PathLike)) else None
    if path is not None and not _is_saved(path):
        splits: Splits = {}
        notes: list[str] = []
        for split, files in _files(path).items():
            splits[split] = []
            for file in files:
                rows, told = _rows(file, columns, encoding)
                splits[split] += rows
                notes += told
        return RawData(stem(path) if path.is_file() else path.resolve().stem, splits, tuple(notes))
    if encoding is not None:
        raise UsageError(f"encoding = {encoding!r} belongs to files of text: leave it out")
    if path is not None:
        return RawData(path.resolve().stem, *_tables(_saved(path), str(path)))
    return RawData("data", *_tables(data, "data"))


def stem(path: Path) -> str:
    """What a file of data is called, without the endings that tell its kind.

    Args:
        path: the file.

    Example:
        >>> stem(Path("mine/reviews.csv.gz")), stem(Path("mine/v1.2"))
        ('reviews', 'v1.2')
    """
    name, kind, packing = _parts(path)
    return name if kind or packing == ".zip" else path.name


def is_file(path: Path) -> bool:
    """Whether the name of a path ends as files of data do.

    Args:
        path: the path, whether there is such a file or not.

    Example:
        >>> is_file(Path("reviews.csv.gz")), is_file(Path("stanfordnlp/imdb"))
        (True, False)
    """
    return stem(path) != path.name


# Files and what is in them


def _files(path: Path) -> dict[str, list[Path]]:
    """The files of each split, several only where they are numbered parts."""
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise UsageError(f"there is no file or folder {path}")
    named = {file: stem(file).lower() for file in sorted(path.iterdir()) if is_file(file)}
    found: dict[str, list[Path]] = {}
    for split, names in _SPLITS.items():
        mine = [file for file, name in named.items() if re.sub(r"-\d+-of-\d+$", "", name) in names]
        if len(mine) > 1 and any(named[file] in names for file in mine):
            raise UsageError(f"{path} holds {' and '.join(file.name for file in mine)}: keep one file for the {split} split")
        if mine:
            found[split] = mine
    if "train" not in found:
        there = ", ".join(file.name for file in sorted(path.iterdir())[:5]) or "nothing"
        raise UsageError(f"{path} has no training data: train.jsonl or train.csv expected, found {there}")
    return found


_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}  # modules, imported when needed: some builds of Python lack one


def _parts(path: Path) -> tuple[str, str, str]:
    """The name of a file, the ending that tells its kind and the one that tells how it is packed, where it has them."""
    packing = path.suffix.lower() if path.suffix.lower() in (*_PACKED, ".zip") else ""
    inner = Path(path.stem) if packing else Path(path.name)
    return (inner.stem, inner.suffix.lower(), packing) if inner.suffix.lower() in _KINDS else (inner.name, "", packing)


def _content(path: Path) -> tuple[str, bytes]:
    """The ending that tells the kind of a file, and its bytes. Of a file in an archive its own name may tell the kind."""
    _, kind, packing = _parts(path)
    try:
        content = path.read_bytes()
        if packing != ".zip":
            return kind, import_module(_PACKED[packing]).decompress(content) if packing else content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [one for one in archive.namelist() if not one.endswith("/") and not one.startswith("__MACOSX/")]
            if len(names) != 1:
                raise ValueError(f"it holds {len(names)} files ({', '.join(names[:5])}): unpack it into a folder")
            return kind or _parts(Path(names[0]))[1], archive.read(names[0])
    except Exception as error:  # every way of packing has its own
        raise UsageError(f"{path} cannot be {'unpacked' if packing else 'read'}: {error}") from error


def _rows(path: Path, columns: Collection[str], encoding: str | None) -> tuple[list[Row], list[str]]:
    """The rows of a file, and how it was read."""
    kind, content = _content(path)
    if not kind:
        raise UsageError(
            f"{path} is neither JSON lines nor a table, as far as its name tells: use a file that ends in {', '.join(_KINDS)}, "
            f"packed or not ({', '.join(_PACKED)}, .zip)"
        )
    notes: list[str] = []
    if kind == ".parquet":
        rows = _parquet(path, content)
    else:
        text, notes = _decoded(path, content, encoding)
        if kind in (".csv", ".tsv"):
            table = parse(text, path, "\t" if kind == ".tsv" else ",", columns)
            rows = [Row(values, f"{path}, line {line}", table=True) for line, values in table.rows]
            notes += [f"{path.name}: {note}" for note in table.notes]
        else:
            rows = _json(path, text)
    if not rows:
        raise UsageError(f"{path} is empty: at least one example expected")
    return rows, notes


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"encoding = {encoding!r}: {error}; use utf-8, utf-16, cp1252, latin-1 or another of Python's") from None


def _decoded(path: Path, content: bytes, encoding: str | None) -> tuple[str, list[str]]:
    """The text of a file, and a note where its encoding was found out.

    The encoding is the declared one, that of the byte-order mark, UTF-8, or else Windows-1252 (Latin-1 where that lacks a sign). A
    file that is UTF-8 for the most part is damaged, and no Windows-1252.
    """
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    notes: list[str] = []
    try:
        text = content.decode(encoding or marked or "utf-8").removeprefix("\ufeff")
        if encoding is None and marked not in (None, "utf-8-sig"):
            notes.append(f"{path.name} is read as {str(marked).upper()}, as its byte-order mark says")
    except UnicodeDecodeError as error:
        number = len(LINE_END.split(content[: error.start].decode(error.encoding, "ignore")))
        byte = f"{error.reason}, byte {content[error.start]:#04x}" if error.start < len(content) else error.reason
        damaged = marked is None and not content.decode("utf-8", "ignore").isascii()
        if encoding is not None or marked is not None or damaged:
            remedy = "declare another" if encoding else "mend it, or declare what it is"
            raise UsageError(
                f"{path}, line {number}: not {(encoding or marked or 'UTF-8').upper()} ({byte}): {remedy}: "
                "encoding='cp1252' or 'latin-1' in Python, --encoding on the command line"
            ) from error
        found = "cp1252"
        try:
            text = content.decode(found)
        except UnicodeDecodeError:
            found = "latin-1"
            text = content.decode(found)
        line = LINE_END.split(text)[number - 1].strip()
        notes.append(
            f"{path.name} is not UTF-8 and is read as {found}, so that line {number} says {line[:60]!r}; if that is wrong, declare "
            "its encoding: encoding='…', --encoding"
        )
    if "\0" in LINE_END.split(text, maxsplit=1)[0]:
        raise UsageError(
            f"{path} is no text: it holds bytes of zero, as a workbook or a packed file does; text of UTF-16 without a byte-order "
            "mark is read with encoding='utf-16-le', --encoding utf-16-le"
        )
    return text, notes


# JSON and parquet


class _Repeated:
    """Stands where an object of JSON has a key twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        return _Repeated(next(key for key in keys if keys.count(key) > 1))
    return next((value for value in found.values() if isinstance(value, _Repeated)), found)


def _json(path: Path, text: str) -> list[Row]:
    """The rows of a file with an object in each line, or with one array of objects. Types are those of JSON."""
    if text.lstrip().startswith("["):
        places = ((f"row {number}", one) for number, one in enumerate(_parsed(path, 1, text), 1))
    else:
        lines = enumerate(text.split("\n" if "\n" in text else "\r"), 1)  # a string of JSON holds no end of line
        places = ((f"line {number}", _parsed(path, number, line)) for number, line in lines if line.strip())
    rows = []
    for place, values in places:
        if isinstance(values, _Repeated):
            raise UsageError(f"{path}, {place}: the key {values.key!r} occurs twice in one object: keep one")
        if not isinstance(values, dict):
            raise UsageError(f"{path}, {place}: {type(values).__name__} instead of an object; one object a row expected")
        rows.append(Row(values, f"{path}, {place}"))
    if len(rows) == 1 and rows[0].values and all(isinstance(value, (list, dict)) for value in rows[0].values.values()):
        whole = ", ".join(map(repr, rows[0].values))
        raise UsageError(
            f"{path}: one object that holds {whole} as a whole, and not a row: write one object a row, "
            "as DataFrame.to_json(orient='records', lines=True) does, and each split into a file of its own"
        )
    return rows


def _parsed(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        line += error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
        raise UsageError(
            f"{path}, line {line}: no JSON ({error}); one object a line expected, or one array of objects in the whole file"
        ) from error


def _parquet(path: Path, content: bytes) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{path} needs the package pyarrow: pip install 'peft-stability[parquet]'") from error
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} is no file of parquet: {one_line(error)}") from error
    check_distinct(table.column_names, str(path))
    return [Row(values, f"{path}, row {number}") for number, values in enumerate(table.to_pylist(), 1)]


# Tables in Python and of the hub


def _is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and (path / "dataset_info.json").is_file())


def _saved(path: Path) -> Any:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise UsageError(f"{path} needs the package datasets: pip install 'peft-stability[hub]'") from error
    try:
        return load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no folder that datasets can load: {one_line(error)}") from error


def hub_ways(name: str) -> list[tuple[str, dict[str, str]]]:
    """What a name may mean on the hub: a repository with or without its owner, and perhaps a configuration behind it.

    Args:
        name: one to three words between slashes.

    Returns:
        For each meaning the repository and further arguments of ``datasets.load_dataset``; none where it is no such name.

    Example:
        >>> hub_ways("nyu-mll/glue/sst2"), hub_ways("glue/sst2")
        ([('nyu-mll/glue', {'name': 'sst2'})], [('glue/sst2', {}), ('glue', {'name': 'sst2'})])
    """
    words = name.split("/")
    if len(words) > 3 or is_file(Path(name)) or not all(re.fullmatch(r"\w[\w.-]*", word) for word in words):
        return []
    ways: list[tuple[str, dict[str, str]]] = [(name, {})] if len(words) < 3 else []
    return ways + ([("/".join(words[:-1]), {"name": words[-1]})] if len(words) > 1 else [])


def from_hub(name: str, place: str, ways: Sequence[tuple[str, Mapping[str, str]]]) -> RawData:
    """Data of the Hugging Face hub.

    Args:
        name: what they are called.
        place: what messages call them.
        ways: a repository and further arguments of ``datasets.load_dataset``. The first that exists is taken.

    Raises:
        UsageError: datasets is not installed, there are no such data, or they cannot be had.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError, DatasetsError
    except ImportError as error:
        raise UsageError(f"{name} needs the package datasets: pip install 'peft-stability[hub]'; or give a folder") from error
    failure: Exception | None = None
    for repository, how in ways:
        try:
            found = load_dataset(repository, **how)
        except DatasetNotFoundError as error:
            failure = failure or error
        except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
            failure = error
            break
        else:
            return RawData(name, *_tables(found, place))
    raise UsageError(
        f"the hub did not give {place}: {one_line(failure)}; without a network give a folder of JSON lines "
        "(and HF_HUB_OFFLINE=1 spares you the waiting); no file or folder here has that name"
    ) from failure


def _tables(data: Any, place: str) -> tuple[Splits, tuple[str, ...]]:
    """The splits of a table, or of one for each split; and a note on those that are not read."""
    tables = {str(name): table for name, table in data.items()} if isinstance(data, Mapping) else {"train": data}
    called = {split: [name for name in tables if name.lower() in names] for split, names in _SPLITS.items()}
    if not called["train"]:
        raise UsageError(f"{place} has no training data: a split train expected, found {', '.join(tables) or 'nothing'}")
    found: Splits = {}
    for split, mine in called.items():
        if len(mine) > 1:
            raise UsageError(f"{place} holds {' and '.join(mine)}: keep one for the {split} split")
        for name in mine:
            found[split] = _records(tables.pop(name), f"{place}, {name}")
            if not found[split]:
                raise UsageError(f"{place}, {name} is empty: at least one example expected")
    return found, (f"of {place} these splits are not read: {', '.join(tables)}",) if tables else ()


def _records(table: Any, place: str) -> list[Row]:
    """The rows of a DataFrame or of a Dataset. What pandas takes for missing is None, and a code of a class is its name."""
    if _is(table, "pandas", "DataFrame"):
        check_distinct(names := [str(name) for name in table.columns], place)
        values = table.astype(object).where(table.notna(), None).set_axis(names, axis=1).to_dict("records")
    elif _is(table, "datasets", "Dataset"):
        classes = {name: own.names for name, own in table.features.items() if getattr(own, "names", None)}
        values = table.to_list()
        for row in values:  # a test split without labels has -1 in their place, which names no class
            row |= {name: None if row[name] in (None, -1) else names[row[name]] for name, names in classes.items()}
    else:
        raise UsageError(f"{place} is of type {type(table).__name__}: give a pandas DataFrame or a datasets.Dataset")
    return [Row(row, f"{place}[{index}]") for index, row in enumerate(values)]


def _is(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class. Its package need not be imported for that: where it is not, there is no such value."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
