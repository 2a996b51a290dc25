"""What people bring: every kind of file and table, however it is written, gives the same rows; and each row keeps its place."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stability import UsageError, problems
from stability.cli.commands import main
from stability.problems.columns import label_column, named_column, text_columns
from stability.problems.delimited import parse
from stability.problems.reading import read
from stability.problems.texts import load_texts
from tests import tiny

ROWS = [
    {"text": f'the {tiny.WORDS[i]}, it "runs"\nand café\'s {tiny.WORDS[-i]};\t|', "label": "yes" if i % 3 else "no"}
    for i in range(24)
]
"""Texts with every separator, a quote, a line end and a letter that is not ASCII."""

PLAIN = [{"text": f"the {word} runs", "label": "pos" if i % 2 else "neg"} for i, word in enumerate(tiny.WORDS[:20])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_model(tmp_path_factory.mktemp("models") / "bert"))


def delimited(rows: Sequence[dict[str, Any]], separator: str = ",", end: str = "\n") -> str:
    return pd.DataFrame(rows).to_csv(sep=separator, index=False, lineterminator=end)


def json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def zipped(name: str, content: bytes, *others: str) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/._" + name, b"resources")
        for other in others:
            archive.writestr(other, b"")
    return whole.getvalue()


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    whole = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), whole)
    return whole.getvalue()


def of_dataset(rows: Sequence[dict[str, Any]]) -> Any:
    names = sorted({row["label"] for row in rows}, reverse=True)  # a code of its own, which must not matter
    made = datasets.Dataset.from_list([{**row, "label": names.index(row["label"])} for row in rows])
    return made.cast_column("label", datasets.ClassLabel(names=names))


FILES: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "commas.csv": lambda rows: delimited(rows).encode(),
    "semicolons.csv": lambda rows: delimited(rows, ";").encode(),
    "bars.csv": lambda rows: delimited(rows, "|").encode(),
    "tabs.csv": lambda rows: delimited(rows, "\t").encode(),
    "tabs.tsv": lambda rows: delimited(rows, "\t").encode(),
    "commas.tsv": lambda rows: delimited(rows).encode(),
    "marked.csv": lambda rows: codecs.BOM_UTF8 + delimited(rows, end="\r\n").encode(),
    "old.csv": lambda rows: delimited(rows, end="\r").encode(),
    "wide.csv": lambda rows: delimited(rows, ";", "\r\n").encode("utf-16"),
    "wide.jsonl": lambda rows: codecs.BOM_UTF16_BE + json_lines(rows).encode("utf-16-be"),
    "western.csv": lambda rows: delimited(rows).encode("cp1252"),
    "western.jsonl": lambda rows: json_lines(rows).encode("latin-1"),
    "CAPITALS.CSV": lambda rows: delimited([{"Label": row["label"], "TEXT": row["text"], "id": "7"} for row in rows]).encode(),
    "packed.csv.gz": lambda rows: gzip.compress(delimited(rows).encode()),
    "packed.csv.bz2": lambda rows: bz2.compress(delimited(rows).encode()),
    "packed.tsv.xz": lambda rows: lzma.compress(delimited(rows, "\t").encode()),
    "packed.csv.zip": lambda rows: zipped("any.csv", delimited(rows).encode()),
    "archive.zip": lambda rows: zipped("inside/of.tsv", delimited(rows, "\t").encode()),
    "packed.jsonl.gz": lambda rows: gzip.compress(json_lines(rows).encode()),
    "lines.jsonl": lambda rows: json_lines(rows).encode(),
    "lines.ndjson": lambda rows: json_lines(rows).encode(),
    "lines.json": lambda rows: codecs.BOM_UTF8 + json_lines(rows).replace("\n", "\n\n").encode(),
    "array.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "array.jsonl": lambda rows: json.dumps(rows).encode(),
    "columns.parquet": as_parquet,
    "packed.parquet.gz": lambda rows: gzip.compress(as_parquet(rows)),
}
TABLES: dict[str, Callable[[list[dict[str, Any]], Path], Any]] = {
    "DataFrame": lambda rows, _: pd.DataFrame(rows, index=range(100, 100 + len(rows))),
    "DataFrame of categories": lambda rows, _: pd.DataFrame(rows).astype({"label": "category"}),
    "dict of DataFrames": lambda rows, _: {"train": pd.DataFrame(rows)},
    "Dataset": lambda rows, _: of_dataset(rows),
    "DatasetDict": lambda rows, _: datasets.DatasetDict({"train": of_dataset(rows)}),
    "saved Dataset": lambda rows, path: (of_dataset(rows).save_to_disk(path / "saved"), path / "saved")[1],
    "saved DatasetDict": lambda rows, path: (
        datasets.DatasetDict({"train": of_dataset(rows)}).save_to_disk(path / "saved"),
        path / "saved",
    )[1],
}


def brought(kind: str, rows: list[dict[str, Any]], folder: Path) -> Any:
    if kind in TABLES:
        return TABLES[kind](rows, folder)
    (folder / kind).write_bytes(FILES[kind](rows))
    return folder / kind


@pytest.fixture(scope="module")
def expected(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tiny.write_lines(tmp_path_factory.mktemp("expected") / "train.jsonl", ROWS)
    return dict(problems.load(path, model=model, n=12).settings)


@pytest.mark.parametrize("kind", [*FILES, *TABLES])
@pytest.mark.filterwarnings("ignore:.*Pickle.*:DeprecationWarning")
def test_the_same_rows_are_the_same_problem_in_every_format(
    kind: str, expected: dict[str, Any], model: str, tmp_path: Path
) -> None:
    """Texts and labels to the letter, and so the identity under which results are stored."""
    data = brought(kind, ROWS, tmp_path)
    # Tables that pandas writes with CR or CRLF between rows keep the line ends inside of texts.
    found = problems.load(data, model=model, n=12)
    assert found.settings == expected
    assert [{"text": row.values.get("text", row.values.get("TEXT")), "label": row.values.get("label", row.values.get("Label"))}
            for row in read(data).splits["train"]] == ROWS  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in FILES if not kind.startswith("old")])
def test_messages_name_the_line_or_the_row(kind: str, model: str, tmp_path: Path) -> None:
    """After quoted line ends too: the line is the one in which the row begins, as an editor counts."""
    rows = [dict(row) for row in ROWS]
    rows[9]["label"] = ""
    data = brought(kind, rows, tmp_path)
    with pytest.raises(UsageError, match="1 of 24 rows have no") as caught:
        problems.load(data, model=model)
    by_row = kind.startswith("array") or "parquet" in kind
    place = (
        "row 10" if by_row else "line 19" if kind == "lines.json" else "line 10" if "line" in kind or "jsonl" in kind else "line 20"
    )
    assert f"{place} ('')" in str(caught.value)
    assert str(tmp_path / kind) in str(caught.value)


def test_places_in_python_count_as_python_does(model: str) -> None:
    table = pd.DataFrame(ROWS)
    table.loc[9, "label"] = None
    with pytest.raises(UsageError, match=r"data: 1 of 24 rows have no 'label': train\[9\] \(None\): mend"):
        problems.load(table, model=model)
    assert read(table).splits["train"][9].place == "data, train[9]"
    assert str((problems.load(table, model=model, drop_missing=True).shown or ("",))[0]).startswith("data, train[")


# Quotes that are none


def listing(*odd: str) -> str:
    plain = [f"{row['text']}\t{row['label']}" for row in PLAIN]
    return "\n".join(["text\tlabel", *plain[:5], *odd[:1], *plain[5:], *odd[1:]]) + "\n"


LONE = {
    "one": ('"tis a good film, she said\tpos',),
    "two": ('"tis a good film, she said\tpos', '"another one with a mark at the start\tneg'),
    "word": ('"quoted" word first, then more\tpos',),
    "inch": ('5" screen is small\tneg',),
    "a pair over rows": ('"tis a good film\tpos', 'so she said"\tneg'),
    "a pair over two rows": ('"tis a good film\tpos\nso she said"\tneg',),
}


@pytest.mark.parametrize("what", LONE)
def test_a_lone_quote_is_part_of_its_text(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(listing(*LONE[what]), encoding="utf-8")
    found = read(path)
    texts = [row.values["text"] for row in found.splits["train"]]
    assert len(texts) == 20 + "\n".join(LONE[what]).count("\t")
    assert texts[5] == LONE[what][0].partition("\t")[0]
    assert found.splits["train"][5].place == f"{path}, line 7"
    assert [note.partition(",")[0] for note in found.notes] == ([] if what == "inch" else ["a.tsv: every line is read as a row"])
    if len(LONE[what]) > 1:
        assert texts[-1] == LONE[what][1].partition("\t")[0]


@pytest.mark.parametrize("separator", ["\t", ","])
def test_rows_that_lone_quotes_would_swallow_are_seen(separator: str, tmp_path: Path) -> None:
    """By their numbers too. Between tabs they are rows; between commas they may be a text, and a note asks."""
    path = tmp_path / "a.csv"
    texts = [f"the {word}" for word in tiny.WORDS]
    texts[3], texts[9] = f'"{texts[3]}', f'{texts[9]}"'
    path.write_text(f"text{separator}score\n" + "".join(f"{text}{separator}{i / 7}\n" for i, text in enumerate(texts)))
    found = read(path)
    if separator == "\t":
        assert [row.values for row in found.splits["train"]] == [
            {"text": text, "score": str(i / 7)} for i, text in enumerate(texts)
        ]
        assert "because of line 5: a quoted text holds what looks like other rows" in found.notes[-1]
    else:
        assert len(found.splits["train"]) == len(texts) - 6
        assert found.notes == ("a.csv: is a quote missing? See line 5: a quoted text holds what looks like other rows",)


LETTERS = st.text(alphabet="ab \"'\n\r,;|é", max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(LETTERS, st.sampled_from(["pos", "neg"])), min_size=1, max_size=6),
    separator=st.sampled_from(",;|\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_a_table_that_is_written_as_the_standard_says_is_read_to_the_letter(
    rows: list[tuple[str, str]], separator: str, quoting: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([("text", "label"), *rows])
    assert [(row.values["text"], row.values["label"]) for row in read(path).splits["train"]] == rows


def test_beside_a_lone_quote_a_field_that_is_quoted_as_a_whole_loses_its_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(listing('"she said ""no"""\t"pos"', '"tis bad\tneg'), encoding="utf-8")
    rows = read(path).splits["train"]
    assert (rows[5].values, rows[-1].values) == ({"text": 'she said "no"', "label": "pos"}, {"text": '"tis bad', "label": "neg"})


def test_long_texts_over_lines_with_commas_stay_one_text(tmp_path: Path) -> None:
    """Lines within quotes that would be rows by their number of fields, and are none: no value of theirs is a label."""
    rows = [
        {**row, "text": f"Well, {row['text']}\nyes, it is\nno, it is not" + "a" * 200_000 * (i == 3)} for i, row in enumerate(PLAIN)
    ]
    path = tmp_path / "a.csv"
    path.write_text(delimited(rows), encoding="utf-8")
    found = read(path)
    assert [row.values for row in found.splits["train"]] == rows
    assert found.notes == ()


def test_the_line_that_excel_puts_first_is_none_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\ntext;label\r\none, two;yes\r\n")
    (row,) = read(tmp_path / "a.csv").splits["train"]
    assert (row.values, row.place) == ({"text": "one, two", "label": "yes"}, f"{tmp_path / 'a.csv'}, line 3")


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,,\none,yes,,\n")
    assert read(tmp_path / "a.csv").splits["train"][0].values == {"text": "one", "label": "yes", "column 3": "", "column 4": ""}


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """A byte-order mark, carriage returns, quoted line ends, line ends of other alphabets, blank lines."""
    (tmp_path / "a.csv").write_bytes('\ufefftext,label\r\n"one,\r\ntwo\u2028three",yes\r\n\r\n b ,no\r\n'.encode())
    assert [(row.values, row.place.rpartition(", ")[2]) for row in read(tmp_path / "a.csv").splits["train"]] == [
        ({"text": "one,\r\ntwo\u2028three", "label": "yes"}, "line 2"),
        ({"text": " b ", "label": "no"}, "line 5"),
    ]


# Encodings and separators


def test_how_a_file_was_read_is_said(tmp_path: Path, model: str) -> None:
    (tmp_path / "train.csv").write_bytes((delimited(PLAIN, ";") + "café good;pos\n").encode("latin-1"))
    (tmp_path / "test.tsv").write_bytes(delimited(PLAIN[:4], "\t").encode("utf-16"))
    notes = problems.load(tmp_path, model=model).notes
    assert (
        "train.csv is not UTF-8 and is read as cp1252, so that line 22 says 'café good;pos'; if that is wrong, declare "
        "its encoding: encoding='…', --encoding"
    ) in notes
    assert "train.csv: the columns are separated by semicolons" in notes
    assert "test.tsv is read as UTF-16, as its byte-order mark says" in notes


def test_a_declared_encoding_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nкошка бежит,да\nпёс,нет\n".encode("cp1251"))
    assert read(path, encoding="cp1251").splits["train"][0].values == {"text": "кошка бежит", "label": "да"}
    assert read(path, encoding="cp1251").notes == ()
    path.write_bytes("text,label\nkočka,ano\n".encode("utf-16-le"))  # without a mark
    with pytest.raises(UsageError, match="holds bytes of zero, .*encoding='utf-16-le', --encoding utf-16-le"):
        read(path)
    assert read(path, encoding="utf-16-le").splits["train"][0].values["text"] == "kočka"
    path.write_bytes(b"text,label\nna\x81ve,yes\n")  # no sign of Windows-1252
    assert "is read as latin-1" in read(path).notes[0]


def test_a_separator_inside_of_names_and_texts_divides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;a, b;label\n" + "".join(f"{row['text']};x, y;{row['label']}\n" for row in PLAIN))
    assert list(read(path).splits["train"][0].values) == ["text", "a, b", "label"]
    path.write_text("words;a, b;verdict\n" + "".join(f"{row['text']};x, y;{row['label']}\n" for row in PLAIN))
    assert list(read(path, columns=["Words"]).splits["train"][0].values) == ["words", "a, b", "verdict"]


# Columns


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("Review", "Sentiment"), (("Review",), "Sentiment")),
        (("id", "CONTENT", "Target"), (("CONTENT",), "Target")),
        (("", "Comment Text", "y"), (("Comment Text",), "y")),
        (("text", "review", "Label", "score"), (("text",), "Label")),
        (("Text", "text", "labels", "label"), (("text",), "label")),
        (("Premise", "HYPOTHESIS", "gold-label"), (("Premise", "HYPOTHESIS"), "gold-label")),
        (("Text", "sentence", "class"), (("sentence",), "class")),  # what was read before is read so still
    ],
)
def test_columns_are_found_by_the_usual_names(names: tuple[str, ...], found: tuple[tuple[str, ...], str]) -> None:
    assert (text_columns(names, "line 1"), label_column(names, "line 1")) == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("review", "Content", "label"),
            "line 1: review and Content could each be the column of texts: .*text='review'.*--text review",
        ),
        (("Text", "TEXT", "label"), "Text and TEXT could each be the column of texts"),
        (("text", "rating", "sentiment"), "rating and sentiment could each be the column of labels: .*--label rating"),
        (("text", "id", "index"), "no column 'label' of labels, there is text, id, index"),
        (("id", "label"), "no column of texts among id, label"),
    ],
)
def test_what_could_be_two_columns_or_none_is_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        (text_columns(names, "line 1"), label_column(names, "line 1"))


def test_a_file_without_a_header_is_no_error_of_its_second_line(tmp_path: Path, model: str) -> None:
    (tmp_path / "a.csv").write_text("it rains,yes\nit snows,no\n")
    with pytest.raises(
        UsageError, match=r"a.csv: no column of texts among it rains, yes \(of a table its first line, the header\)"
    ):
        problems.load(tmp_path / "a.csv", model=model)


def test_columns_that_were_guessed_are_said(tmp_path: Path, model: str) -> None:
    rows = [{"Review": row["text"], "id": i, "Stars": row["label"]} for i, row in enumerate(PLAIN)]
    splits = {"train": pd.DataFrame(rows), "dev": pd.DataFrame(rows[:4]).rename(columns=str.upper)}
    problem = problems.load(splits, model=model)
    assert (
        "texts are read from Review; labels are read from Stars; text='…' and label='…', or --text and --label, name others"
        in problem.notes
    )
    assert len(problem.test) == 4
    named = problems.load(splits, model=model, text="review", label="STARS")
    assert named.settings == problem.settings
    assert not any("read from" in note for note in named.notes)
    both = pd.DataFrame([{"topic": row["text"], "sentiment": row["label"]} for row in PLAIN])
    assert problems.load(both, model=model, text="topic").classes == ("neg", "pos")  # a column of texts is none of labels
    asked = [{"question": "what", "sentence": row["text"], "label": row["label"]} for row in PLAIN]
    assert all(" ‖ " in shown for shown in problems.load(pd.DataFrame(asked), model=model).shown)  # type: ignore[union-attr]
    beside = pd.DataFrame([{"review": "what", "text": row["text"], "label": row["label"]} for row in PLAIN])
    notes = problems.load(beside, model=model).notes
    assert any(note.startswith("texts are read from text, and not from review; ") for note in notes)


# Labels as they were written


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1], ("0", "1")),
        ([0.0, 1.0], ("0", "1")),
        ([True, False], ("false", "true")),
        (["007", "7"], ("007", "7")),
        ([0.5, 1.25], None),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "DataFrame", "Dataset"])
def test_typed_columns_keep_their_kind(kind: str, values: list[Any], classes: Any, tmp_path: Path, model: str) -> None:
    rows = [{**row, "label": values[i % 2]} for i, row in enumerate(PLAIN)]
    made = {"DataFrame": pd.DataFrame, "Dataset": datasets.Dataset.from_list}
    if kind == "parquet":
        (tmp_path / "a.parquet").write_bytes(as_parquet(rows))
    problem = problems.load(made[kind](rows) if kind in made else tmp_path / "a.parquet", model=model, label_type=None)
    assert problem.classes == classes


def test_whole_numbers_beside_missing_ones_stay_whole(tmp_path: Path) -> None:
    """pandas makes floats of such a column, as NaN is one."""
    rows: list[dict[str, Any]] = [{"text": "a", "label": 3}, {"text": "b", "label": None}]
    (tmp_path / "a.parquet").write_bytes(as_parquet(rows))
    assert [row.values for row in read(tmp_path / "a.parquet").splits["train"]] == rows
    whole = pd.DataFrame(rows).astype({"label": "Int64"})
    assert [row.values for row in read(whole).splits["train"]] == rows


def test_fields_of_a_table_stay_what_was_written(tmp_path: Path, model: str) -> None:
    path = tmp_path / "a.csv"
    codes = ["7", "007", "7.0", "NA."]
    path.write_text("text,label\n" + "".join(f"{row['text']},{codes[i % 4]}\n" for i, row in enumerate(PLAIN)))
    assert problems.load(path, model=model, label_type="classes").classes == ("007", "7", "7.0", "NA.")


def test_a_class_of_another_form_in_another_split_is_refused(tmp_path: Path, model: str) -> None:
    """A number 1.0 of JSON is the class 1; a text 1.0 of a table is none, where the training data say 1."""
    splits = {
        "train": pd.DataFrame([{**row, "label": i % 2} for i, row in enumerate(PLAIN)]),
        "test": pd.DataFrame([{**row, "label": float(i % 2)} for i, row in enumerate(PLAIN[:4])]),
    }
    assert problems.load(splits, model=model).test.labels.tolist() == [0, 1, 0, 1]
    splits["test"]["label"] = splits["test"]["label"].astype(str)
    with pytest.raises(
        UsageError, match=r"data, test\[0\]: label = '0.0' is no class .* if '0.0' is the class '0', write both alike"
    ):
        problems.load(splits, model=model)


# Splits


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ([{"text": "a", "label": "-1"}] * 4, "all its labels are -1"),
        ([{"text": "a", "label": -1}] * 4, "all its labels are -1"),
        ([{"text": "a", "label": -1.0}] * 4, "all its labels are -1"),
        ([{"text": "a", "label": ""}, {"text": "b", "label": None}], "none of its rows has a label"),
        ([{"text": "a", "id": 7}] * 4, "it has no column 'label', there is text, id"),
    ],
)
def test_a_test_split_without_labels_is_ignored(test: list[Any], why: str, tmp_path: Path, model: str) -> None:
    folder = tiny.lines(tmp_path / "mine", train=PLAIN, dev=PLAIN[:5], test=test)
    problem = problems.load(folder, model=model)
    assert f"the test split of the data is ignored because {why}; test='…' or --test names another" in problem.notes
    without = problems.load(tiny.lines(tmp_path / "other", train=PLAIN, dev=PLAIN[:5]), model=model)
    assert problem.settings == without.settings
    assert len(problem.test) == 5  # the validation split


def test_a_class_of_minus_one_is_a_class(tmp_path: Path, model: str) -> None:
    train = [{**row, "label": 1 if i % 2 else -1} for i, row in enumerate(PLAIN)]
    problem = problems.load(tiny.lines(tmp_path / "mine", train=train, test=[{"text": "a", "label": -1}] * 3), model=model)
    assert len(problem.test) == 3


def test_codes_that_name_no_class_are_no_labels(model: str) -> None:
    test = datasets.Dataset.from_list([{"text": "a", "label": -1}] * 3)
    splits = datasets.DatasetDict(train=of_dataset(PLAIN), test=test.cast_column("label", of_dataset(PLAIN).features["label"]))
    splits["unsupervised"] = splits["test"]
    notes = problems.load(splits, model=model).notes
    assert "the test split of the data is ignored because none of its rows has a label; test='…' or --test names another" in notes
    assert "of data these splits are not read: unsupervised" in notes


def test_the_user_chooses_the_test_split(tmp_path: Path, model: str) -> None:
    folder = tiny.lines(tmp_path / "mine", train=PLAIN, dev=PLAIN[:5], test=PLAIN[:3])
    table = tmp_path / "other.csv"
    table.write_text(delimited([{"LABEL": row["label"], "Text": row["text"]} for row in PLAIN[:7]], ";"))

    def sizes(test: Any) -> tuple[int, int, int]:
        problem = problems.load(folder, model=model, test=test)
        return problem.n, len(problem.validation or ()), len(problem.test)

    assert [sizes(test) for test in (None, "none", "validation", str(table))] == [(20, 5, 3), (16, 5, 4), (18, 2, 5), (20, 5, 7)]
    alone = tiny.lines(tmp_path / "alone", train=PLAIN)
    assert problems.load(alone, model=model, test="none").settings == problems.load(alone, model=model).settings
    with pytest.raises(UsageError, match="test = 'validation': the data have no validation split; use none, or a file"):
        problems.load(alone, model=model, test="validation")
    with pytest.raises(UsageError, match="test = 'nowhere.csv': there is no such file; use a file, none or validation"):
        problems.load(alone, model=model, test="nowhere.csv")
    table.write_text(delimited([{"text": row["text"], "verdict": row["label"]} for row in PLAIN]))
    why = r"test = '.*other.csv': it has no column 'label', there is text, verdict; give a file with labels"
    with pytest.raises(UsageError, match=why):  # it was asked for, so not ignored
        problems.load(alone, model=model, test=table)


def test_a_split_in_numbered_parts_is_one(tmp_path: Path) -> None:
    for part in range(2):
        (tmp_path / f"train-0000{part}-of-00002.parquet").write_bytes(as_parquet(PLAIN[10 * part : 10 * part + 10]))
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(as_parquet(PLAIN[:3]))
    found = read(tmp_path).splits
    assert [row.values for row in found["train"]] == PLAIN
    assert len(found["validation"]) == 3
    for part in (0, 1):
        (tmp_path / f"train-0000{part}-of-00002.parquet").write_bytes(as_parquet([*PLAIN[:4], {"text": "a", "label": None}]))
    with pytest.raises(
        UsageError, match=r"0-of-00002.parquet: 2 of 10 rows have no 'label': row 5 \(None\), /.*1-of-00002.parquet, row 5"
    ):
        load_texts(tmp_path, "model")
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(
        UsageError, match="holds train-00000-of-00002.parquet and train-00001-of-00002.parquet and train.csv: keep one"
    ):
        read(tmp_path)


# The hub


def test_any_name_of_the_hub_is_read_where_a_column_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    made = datasets.DatasetDict({"train": of_dataset(PLAIN).rename_column("text", "verse"), "test": of_dataset(PLAIN[:4])})
    made["test"] = made["test"].rename_column("text", "verse")

    def load_dataset(repository: str, **how: Any) -> Any:
        asked.append((repository, how))
        if repository not in ("imdb", "glue", "owner/poems"):
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{repository}' doesn't exist on the Hub")
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, called, ways in [
        ("imdb", "imdb", [("imdb", {})]),
        ("owner/poems", "poems", [("owner/poems", {})]),
        ("glue/sst2", "sst2", [("glue/sst2", {}), ("glue", {"name": "sst2"})]),
        ("owner/poems/short", "short", [("owner/poems", {"name": "short"})]),
    ]:
        asked.clear()
        problem = problems.load(name, model=model, text="Verse")
        assert (problem.name, problem.n, len(problem.test), asked) == (called, 20, 4, ways)
        assert problem.classes == ("neg", "pos")
        assert str((problem.shown or ("",))[0]).startswith(f"{called}, train[0]: ")
    with pytest.raises(
        UsageError, match="did not give no/such: Dataset 'no/such' doesn't exist .*no file or folder here has that name"
    ):
        problems.load("no/such", model=model, label="label")
    asked.clear()
    for typed in ("imdb", "my/reviews.csv", "./imdb", "a/b/c/d"):  # nothing is asked for that may be a mistyped path
        with pytest.raises(UsageError, match="no file or folder"):
            problems.load(typed, model=model, **({} if typed == "imdb" else {"text": "verse"}))
    assert asked == []


# What can be wrong

BYTES: dict[str, tuple[bytes, str]] = {
    "mixed.jsonl": (
        '{"text": "é", "label": 1}\n'.encode() + b'{"text": "\xff"}\n',
        "line 2: not UTF-8 .*0xff.*: mend it, or declare",
    ),
    "a.jsonl": (b'{"text": "a", "label": 1}\n\n{"text": \n', "a.jsonl, line 3: no JSON"),
    "b.json": (b'[{"text": "a"},\n {"text": b}]', "b.json, line 2: no JSON .*one array of objects"),
    "c.json": (b'[{"text": "a"}, ["b"]]', "c.json, row 2: list instead of an object"),
    "d.jsonl": (b'{"label": 1}\n{"label": 1, "text": "a", "label": 2}', "d.jsonl, line 2: the key 'label' occurs twice"),
    "e.json": (b'[{"label": 1}, {"a": {"b": 1, "b": 1}}]', "e.json, row 2: the key 'b' occurs twice"),
    "short.csv": (b"text,label\n\na,1\nb\n", r"short.csv, line 4: 1 fields, the header has 2 \(text, label\); put texts"),
    "long.csv": (b'text,label\n"a\nb",1\nb, c,1\n', r"long.csv, line 4: 3 fields, the header has 2"),
    "quote.csv": (
        b'text,label\n"a, b",0\n"c, d,1\n"e, f",1\n',
        "quote.csv, line 3: a text goes on behind its closing quote; write",
    ),
    "open.csv": (b'text,label\n"a, b",0\n"c, d,1\n', "open.csv, line 3: a quote is not closed; write"),
    "twice.tsv": (b"text\ttext\na\t1\n", "twice.tsv, line 1: a column's name occurs twice in text, text"),
    "list.csv": (
        b"one text\nand another\n",
        "list.csv: its columns cannot be told: no comma, .* divides its first line, 'one text': save",
    ),
    "blank.csv": (b"\n\n", "blank.csv is empty"),
    "header.csv": (b"text,label\n", "header.csv is empty"),
    "blank.json": (b"", "blank.json is empty"),
    "blank.parquet": (b"", "blank.parquet is no file of parquet"),
    "no.parquet": (b"text,label\n", "no.parquet is no file of parquet"),
    "book.csv": (zipped("a", b"workbook"), "book.csv is no text: it holds bytes of zero"),
    "half.csv.gz": (gzip.compress(b"text,label\n" * 99)[:30], "half.csv.gz cannot be unpacked"),
    "no.csv.gz": (b"text,label\n", "no.csv.gz cannot be unpacked: Not a gzipped file"),
    "no.csv.zip": (b"text,label\n", "no.csv.zip cannot be unpacked: File is not a zip file"),
    "a.zip": (zipped("a.txt", b""), "a.zip is neither JSON lines nor a table"),
    "a.gz": (gzip.compress(b"text,label\n"), "a.gz is neither JSON lines nor a table"),
    "two.csv.zip": (zipped("a.csv", b"", "b.csv"), r"it holds 2 files \(a.csv, b.csv\): unpack it into a folder"),
    "reviews.xlsx": (b"", "neither JSON lines nor a table, as far as its name tells: use a file that ends in .csv, .tsv, .jsonl"),
    "reviews": (b"text,label\n", "neither JSON lines nor a table"),
}


@pytest.mark.parametrize("name", BYTES)
def test_broken_files_are_named_with_their_line(name: str, tmp_path: Path) -> None:
    content, message = BYTES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / name)


TWICE = pd.DataFrame([["a", 1, 2]], columns=["text", "label", "label"])


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (7, {}, "data, train is of type int: give a pandas DataFrame or a datasets.Dataset"),
        ({"train": [{"text": "a"}]}, {}, "data, train is of type list"),
        ({"test": TWICE}, {}, "data has no training data: a split train expected, found test"),
        (
            {"dev": TWICE[["text"]], "val": TWICE[["text"]], "train": TWICE},
            {},
            "a column's name occurs twice in text, label, label",
        ),
        ({"train": TWICE[["text"]], "val": TWICE[["text"]], "dev": TWICE[["text"]]}, {}, "data holds val and dev: keep one"),
        (TWICE[:0][["text"]], {}, "data, train is empty"),
        (TWICE[["text"]], {"encoding": "utf-8"}, "encoding = 'utf-8' belongs to files of text: leave it out"),
        ("a.csv", {"encoding": "utf-9"}, "encoding = 'utf-9': unknown encoding: utf-9; use utf-8"),
        ("glue/rte", {"encoding": "utf-8"}, "encoding = 'utf-8' belongs to files of text"),
    ],
)
def test_what_is_no_table_is_refused(data: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_texts(data, "model", **settings)


def test_a_table_needs_a_model_too() -> None:
    with pytest.raises(UsageError, match=r"problem of type DataFrame needs a pretrained model: give model=… \(--model\)"):
        problems.load(pd.DataFrame(PLAIN))


def test_what_is_not_installed_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_dataset(PLAIN).save_to_disk(tmp_path / "saved")
    (tmp_path / "a.parquet").write_bytes(as_parquet(PLAIN))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"a.parquet needs the package pyarrow: pip install 'peft-stability\[parquet\]'"):
        read(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"saved needs the package datasets: pip install 'peft-stability\[hub\]'"):
        read(tmp_path / "saved")


def test_both_ways_of_declaring_reach_the_reader(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = tmp_path / "reviews.csv.gz", tmp_path / "more.csv"
    path.write_bytes(
        gzip.compress(delimited([{"Rezension": row["text"], "Urteil": row["label"]} for row in PLAIN], ";").encode("utf-16"))
    )
    other.write_bytes(delimited([{"Rezension": "größer", "Urteil": "pos"}] * 3, ";").encode("utf-16"))
    own = f"--text rezension --label urteil --test {other} --encoding utf-16 --selector full --out {tmp_path / 'mask.safetensors'}"
    assert main(["select", "--problem", str(path), "--model", model, *own.split()]) == 0
    told = capsys.readouterr().err
    assert "20 train, 3 test examples; labels are 2 classes" in told
    assert "reviews.csv.gz: the columns are separated by semicolons" in told
    assert main(["select", "--problem", str(path), "--model", model, *own.replace("utf-16", "utf-8").split()]) == 2
    assert "reviews.csv.gz, line 1: not UTF-8 (invalid start byte, byte 0xff): declare another" in capsys.readouterr().err


def test_an_own_column_is_still_found_without_regard_to_case() -> None:
    assert named_column("review", ["Review", "REVIEW"]) == "review"  # both could be meant: neither is taken


def fields_of(text: str) -> list[list[str]]:
    return [list(row.values()) for _, row in parse(text, Path("a.csv"), ",").rows]


def test_a_quoted_text_behind_a_space_is_a_quoted_text() -> None:
    assert fields_of('label, text\n1, "a, b"\n2, "c ""d"""\n3, e\n') == [["1", "a, b"], ["2", 'c "d"'], ["3", "e"]]
    assert fields_of('label, text\n1, "ab"\n2, "cd"\n') == [["1", "ab"], ["2", "cd"]]
    assert fields_of('label,text\n1, he said "no"\n2,yes\n') == [["1", ' he said "no"'], ["2", "yes"]]


def test_several_columns_without_a_name_are_kept() -> None:
    rows = parse(",,text,label\n0,5,a,1\n1,6,b,0\n", Path("a.csv"), ",").rows
    assert rows[1][1] == {"column 1": "1", "column 2": "6", "text": "b", "label": "0"}
    assert parse(",text\n0,a\n", Path("a.csv"), ",").rows[0][1] == {"": "0", "text": "a"}


def test_two_separators_that_both_give_columns_are_told() -> None:
    both = "text, long;label\na, b;1\nc, d;2\n"
    assert parse(both, Path("a.csv"), ",").notes == ["the columns could be separated by semicolons too, and are read by commas"]
    assert parse(both, Path("a.tsv"), "\t").notes[0].startswith("the columns are separated by commas")
    for plain in ("text,label\na;b,1\n", "text,label;x\na,1\n", "text;label\na,b;1\n"):
        assert not any("too" in note for note in parse(plain, Path("a.csv"), ",").notes)


@pytest.mark.parametrize(
    "text",
    ['{"text": ["a", "b"], "label": [1, 0]}', '{"train": [{"text": "a", "label": 1}]}', '{"text": {"0": "a"}, "label": {"0": 1}}'],
)
def test_one_object_that_is_a_whole_table_is_no_row(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(
        UsageError, match="train.json: one object that holds '.*' as a whole, and not a row: write one object a row"
    ):
        read(tmp_path / "train.json")
    (tmp_path / "row.jsonl").write_text('{"text": ["a", "b"], "label": 0}')
    assert read(tmp_path / "row.jsonl").splits["train"][0].values == {"text": ["a", "b"], "label": 0}
