"""Tables of text, however they are written: which sign separates the fields, and which quotes are quotes.

Python's csv divides the lines, because it is strict and counts them. The C parser of pandas completes a line of too few fields,
takes the rows between two lone quotes for one text, and counts rows where a message must name a line. Its other parser is Python's.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stability.errors import UsageError
from stability.problems.columns import is_usable

__all__ = ["LINE_END", "Table", "check_distinct", "parse"]

LINE_END = re.compile(r"\r\n|\r|\n")
"""The ends of lines that a table may have."""

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_LATE_QUOTE = re.compile(r' +"[^"]*" *')  # a field whose quotes are read as signs, for a space stands before them
_LONGEST = 2**31 - 1  # of a field; the csv module refuses more than 131 072 signs unless it is told


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        rows: the line in which each row begins, and its field in each column.
        notes: how the table was read, where that is not the usual way.

    Example:
        >>> Table([(2, {"text": "It rains.", "label": "yes"})], []).rows[0][0]
        2
    """

    rows: list[tuple[int, dict[str, Any]]]
    notes: list[str]


@dataclass(frozen=True)
class _Split:
    """A table as one separator divides it.

    Attributes:
        records: the line in which each begins, and its fields. The first is the header.
        fault: the line that makes this no table, and why; empty where there is none.
        note: what is odd about its quotes; empty where nothing is.
    """

    records: list[tuple[int, list[str]]]
    fault: str = ""
    note: str = ""

    @property
    def header(self) -> list[str]:
        """The names of the columns; of several without a name their numbers."""
        names = [name.strip() for name in self.records[0][1]] if self.records else []
        several = names.count("") > 1
        return [f"column {number}" if several and not name else name for number, name in enumerate(names, 1)]


def parse(text: str, path: Path, usual: str, columns: Collection[str] = ()) -> Table:
    """Read a table whose first line is its header. All its fields are texts.

    The separator is a comma, a tab, a semicolon or a vertical bar. The usual one of the file's ending is tried first. Taken is the
    first that divides every row into as many fields as the header, at least two, with a usual or named column among them.

    Quotes are those of RFC 4180. Where they do not come in pairs, or a quoted field holds whole rows between tabs, every line is a
    row: a field that is quoted as a whole loses its quotes, and any other quote is a sign like others. A note says so. Spaces may
    stand before a quoted field.

    Args:
        text: what the file holds.
        path: the file, for messages.
        usual: the separator that the ending of the file promises.
        columns: the columns that the user named.

    Returns:
        The rows; none where there is nothing below the header. Blank lines are skipped.

    Raises:
        UsageError: no separator gives columns, a row has too few or too many fields, or two columns have the same name.

    Example:
        >>> parse("text;label\\nIt rains.;yes\\n", Path("train.csv"), ",")
        Table(rows=[(2, {'text': 'It rains.', 'label': 'yes'})], notes=['the columns are separated by semicolons'])
    """
    text = re.sub(r"\Asep=.(?=[\r\n])", "", text)  # a line that Excel writes for itself
    ranked: list[tuple[tuple[bool, bool, bool], str, _Split]] = []
    for separator in sorted(_SEPARATORS, key=lambda sign: sign != usual):
        split = _split(text, separator)
        ranked.append(((len(split.header) < 2, not is_usable(split.header, columns), bool(split.fault)), separator, split))
        if not any(ranked[-1][0]):
            break
    (narrow, *_), separator, split = min(ranked, key=lambda one: one[0])
    if not split.header:
        return Table([], [])
    if narrow:
        raise UsageError(
            f"{path}: its columns cannot be told: no comma, tab, semicolon or vertical bar divides its first line, "
            f"{LINE_END.split(text.strip())[0][:60]!r}: save it as a table with a header"
        )
    if split.fault:
        raise UsageError(f"{path}, {split.fault}")
    check_distinct([name for name in split.header if name], f"{path}, line {split.records[0][0]}")
    notes = [] if separator == usual else [f"the columns are separated by {_SEPARATORS[separator]}"]
    notes += [split.note] if split.note else []
    tried = {sign for _, sign, _ in ranked}
    for sign in _SEPARATORS:
        if sign in LINE_END.split(text.strip())[0]:
            other = _split(text, sign) if sign not in tried else next(one for _, mine, one in ranked if mine == sign)
            if sign != separator and len(other.header) > 1 and is_usable(other.header, columns) and not other.fault:
                notes.append(f"the columns could be separated by {_SEPARATORS[sign]} too, and are read by {_SEPARATORS[separator]}")
    header = split.header
    return Table([(line, dict(zip(header, fields, strict=True))) for line, fields in split.records[1:]], notes)


def check_distinct(names: Sequence[str], place: str) -> None:
    """Check that no two columns have the same name.

    Args:
        names: the names.
        place: where they were read, for the message.

    Raises:
        UsageError: two have.

    Example:
        >>> check_distinct(["text", "label"], "train.csv, line 1")
    """
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise UsageError(f"{place}: a column's name occurs twice in {', '.join(names)}: rename one {twice[0]!r}")


def _split(text: str, separator: str) -> _Split:
    """A table divided by one sign: as quotes tell, or line by line where they tell nothing."""
    quoted = _divided(text, separator, csv.QUOTE_MINIMAL)
    if quoted.fault or any(_LATE_QUOTE.fullmatch(field) for _, fields in quoted.records for field in fields):
        spaced = (
            _divided(text, separator, csv.QUOTE_MINIMAL, skip=True) if re.search(f'{re.escape(separator)} +"', text) else quoted
        )
        if not spaced.fault:
            quoted = spaced
    odd = "" if quoted.fault else _swallowing(quoted, separator)
    if '"' in text and (quoted.fault or (odd and separator == "\t")):  # a text may well hold commas, and no tabs
        lines = _divided(text, separator, csv.QUOTE_NONE)
        if not lines.fault and len(lines.header) > 1:
            why = quoted.fault.partition(";")[0] or odd
            note = f"every line is read as a row, and a lone quote as part of its text, because of {why}"
            return _Split([(line, _unquoted(fields)) for line, fields in lines.records], note=note)
    return replace(quoted, note=f"is a quote missing? See {odd}") if odd else quoted


def _divided(text: str, separator: str, quoting: Literal[0, 3], *, skip: bool = False) -> _Split:
    """The records between ends of lines. With ``skip``, spaces before a field are none of it, so that it may then be quoted."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True, skipinitialspace=skip)
    records: list[tuple[int, list[str]]] = []
    line, limit = 1, csv.field_size_limit(_LONGEST)
    try:
        for fields in reader:
            if fields:
                records.append((line, fields))
                if len(fields) != len(header := records[0][1]):
                    fault = f"line {line}: {len(fields)} fields, the header has {len(header)} ({', '.join(header)})"
                    return _Split(records, f"{fault}; put texts that contain the separator in double quotes")
            line = reader.line_num + 1
    except csv.Error as error:  # of a strict reader that knows no longest field, one of these two
        reason = "a quote is not closed" if "end of data" in str(error) else "a text goes on behind its closing quote"
        return _Split(records, f'line {line}: {reason}; write "" for a quote inside a quoted text')
    finally:
        csv.field_size_limit(limit)
    return _Split(records)


def _swallowing(split: _Split, separator: str) -> str:
    """The line with a quoted field that holds whole rows, which have as many fields as the header and a usual value of a column."""
    if not any(LINE_END.search(field) for _, fields in split.records for field in fields):
        return ""
    columns = [
        {field.strip() for field in column} - {""} for column in zip(*(fields for _, fields in split.records[1:]), strict=True)
    ]
    numeric = [all(map(_reads_as_number, column)) for column in columns]
    for line, fields in split.records[1:]:
        for column, field in enumerate(fields):
            for number, one in enumerate(LINE_END.split(field)[:-1]):
                first = 0 if number else column  # the first line of a field begins in its column
                parts = [part.strip() for part in one.split(separator)]
                usual = (
                    part in columns[i] or (numeric[i] and _reads_as_number(part))
                    for i, part in enumerate(parts, first)
                    if i != column
                )
                if len(parts) == len(columns) - first and any(usual):
                    return f"line {line}: a quoted text holds what looks like other rows"
    return ""


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unquoted(fields: list[str]) -> list[str]:
    inner = [re.fullmatch(r'"((?:[^"]|"")*)"', field) for field in fields]
    return [found[1].replace('""', '"') if found else field for found, field in zip(inner, fields, strict=True)]
