"""Texts from files and from the hub: columns, labels, splits, metrics by hand, the cache; and everything that can be wrong."""

from __future__ import annotations

import inspect
import math
import random
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch

from stability import UsageError, problems
from stability.problems.reading import Row, read
from stability.problems.tasks import HUB, MISSING, TASKS, labels_of, texts_of
from tests import tiny
from tests.tiny import lines, table

SHARED = Path(__file__).parents[3] / "shared" / "data"
GOOD = tiny.rows(20)
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the seven tasks are not at {SHARED}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_model(tmp_path_factory.mktemp("models") / "bert"))


# Columns and labels


@pytest.mark.parametrize("columns", [("text",), ("text_a", "text_b"), ("premise", "hypothesis"), ("sentence1", "sentence2")])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_the_usual_columns_are_known_in_every_format(columns: tuple[str, ...], kind: str, tmp_path: Path, model: str) -> None:
    texts_of_row = ["the cat, it runs", 'a "big" dog'][: len(columns)]
    rows = [dict(zip(columns, texts_of_row, strict=True)) | {"label": "no" if i % 3 else "yes"} for i in range(20)]
    if kind == "jsonl":
        path = str(tiny.write_lines(tmp_path / "mine.jsonl", rows))
    else:
        path = table(tmp_path / f"mine.{kind}", [[*columns, "label"], *([*map(str, row.values())] for row in rows)])
    problem = problems.load(path, model=model)
    assert (problem.name, problem.n, len(problem.test)) == ("mine", 16, 4)
    tokens_of = problem.train.inputs["input_ids"][0].tolist()
    assert tokens_of.count(3) == len(columns)  # [SEP] once behind each text
    assert problem.settings["classes"] == ["no", "yes"]


def test_columns_of_any_name_can_be_named(tmp_path: Path, model: str) -> None:
    rows = [["review", "stars"], *([tiny.WORDS[i], str(i / 2)] for i in range(20))]
    problem = problems.load(table(tmp_path / "reviews.csv", rows), model=model, text="review", label="stars")
    assert (problem.loss_unit, problem.metric_name) == ("squared error", "mean of Pearson and Spearman")
    assert problem.head()["classifier.weight"].shape == (1, 16)


def rows_of(values: list[Any], table: bool = False) -> list[Row]:
    return [Row({"label": value}, f"train, line {i}", table) for i, value in enumerate(values, 1)]


def many(values: Any) -> list[Any]:
    return [*values] * 4


JSON: list[tuple[list[Any], tuple[str, ...] | None]] = [
    (["b", "a", "b", "c", "a", "c"], ("a", "b", "c")),
    ([True, False, True, True], ("false", "true")),
    (many(range(77)), tuple(sorted(map(str, range(77))))),
    (many(map(str, range(77))), tuple(sorted(map(str, range(77))))),
    (many(["1.0", "1", "007", "7", " 7 "]), ("007", "1", "1.0", "7")),
    (many(["4.5", "3.8", "0.5"]), ("0.5", "3.8", "4.5")),
    (many(["1,2", "2,3"]), ("1,2", "2,3")),  # two labels of one text
    ([1.0, 0.0, 1.0], ("0", "1")),
    (many([1, 1.0, -1, 0]), ("-1", "0", "1")),
    ([1, 2, 3, 4, 5, 5, 4, 3], ("1", "2", "3", "4", "5")),  # ratings
    ([1, 2, 3, 1, 2, 9, 10], None),  # three of five different ones occur once
    ([1, 2, 3, 4, 1, 2], ("1", "2", "3", "4")),  # half of them do
    (many([0.5, 1, 2, 3]), None),
    ([*range(15)], None),
    (many([1e16, 0.25]), None),
]
TABLE: list[tuple[list[Any], tuple[str, ...] | None]] = [
    (many(map(str, range(77))), tuple(sorted(map(str, range(77))))),
    (["1", "0", "1", "1"], ("0", "1")),
    (many(["1.0", "0.0"]), ("0.0", "1.0")),
    (many(["007", "7", " 7", "1.0", "1"]), ("007", "1", "1.0", "7")),
    (many(["1_2", "2_1"]), ("1_2", "2_1")),  # float() takes them for 12 and 21
    (["0.5", "1", "2", "3"] * 3, None),
    (["5.0", "4.2", "0.0", "-1e-3"] * 3, None),
    ([str(1000 + i) for i in range(15)], None),
]


@pytest.mark.parametrize(("values", "classes", "table"), [(*one, False) for one in JSON] + [(*one, True) for one in TABLE])
def test_labels_are_classes_or_numbers_by_their_looks(values: list[Any], classes: tuple[str, ...] | None, table: bool) -> None:
    coded, found = labels_of({"train": rows_of(values, table)}, "label", None)
    assert found == classes
    if classes is None:
        torch.testing.assert_close(coded["train"], torch.tensor([float(value) for value in values]))
    else:
        written = [value.strip() if isinstance(value, str) else str(value).lower().removesuffix(".0") for value in values]
        assert [classes[i] for i in coded["train"]] == written


def test_the_user_s_word_on_labels_overrides_their_looks() -> None:
    assert labels_of({"train": rows_of([1, 2, 5] * 3)}, "label", None, "numbers")[0]["train"].tolist() == [1.0, 2.0, 5.0] * 3
    assert labels_of({"train": rows_of(["4.5", " 3 "])}, "label", None, "numbers")[0]["train"].tolist() == [4.5, 3.0]
    assert labels_of({"train": rows_of(["0.5", "1.0", "2.5"])}, "label", None, "classes")[1] == ("0.5", "1.0", "2.5")
    assert labels_of({"train": rows_of([0.5, 1.0, 2.5])}, "label", None, "classes")[1] == ("0.5", "1", "2.5")
    assert labels_of({"train": rows_of(["x", "y", "1", "2", "3"], table=True)}, "label", None, "classes")[1] is not None


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_seventy_seven_whole_numbers_are_as_many_classes(kind: str, tmp_path: Path, model: str) -> None:
    rows = [(tiny.WORDS[i % 20], i % 77) for i in range(308)]
    if kind == "csv":
        path = table(tmp_path / "many.csv", [["text", "label"], *([text, str(code)] for text, code in rows)])
    else:
        path = str(tiny.write_lines(tmp_path / "many.jsonl", [{"text": text, "label": str(code)} for text, code in rows]))
    problem = problems.load(path, model=model)
    assert problem.classes == tuple(sorted(map(str, range(77))))
    assert problem.head()["classifier.weight"].shape[0] == 77
    assert problem.metric_name == "accuracy"
    counts = torch.bincount(problem.train.labels, minlength=77)
    assert f"77 classes, in S (n = 247) {int(counts.min())} to {int(counts.max())} examples of each" in problem.notes[0]
    assert any("names of the classes are numbers; if they are quantities: label_type='numbers'" in note for note in problem.notes)
    assert not any("label_type" in note for note in problems.load(path, model=model, label_type="classes").notes)
    numbers = problems.load(path, model=model, label_type="numbers")
    assert (numbers.classes, numbers.loss_unit) == (None, "squared error")
    assert not any("label_type" in note for note in numbers.notes)


def test_whole_numbers_that_seldom_repeat_are_regressed_on_and_this_is_said(tmp_path: Path, model: str) -> None:
    rows = [{"text": tiny.WORDS[i], "label": 1990 + i} for i in range(20)]
    problem = problems.load(str(tiny.write_lines(tmp_path / "years.jsonl", rows)), model=model)
    assert problem.classes is None
    assert any("whole numbers that seldom repeat; if they name classes: label_type='classes'" in note for note in problem.notes)


# Missing labels and texts


def test_the_words_that_stand_for_nothing_are_those_of_pandas(tmp_path: Path) -> None:
    words = [*sorted(MISSING), "none", "no", "nil", "-", "0", "false"]
    file = table(tmp_path / "a.csv", [["text", "label"], *(["a", word] for word in ["", *words])])
    missing = pandas.read_csv(file)["label"].isna().tolist()
    assert missing == [word in MISSING for word in ["#N/A", *words]]


def test_a_word_that_stands_for_nothing_is_a_class_only_where_the_user_says_so(tmp_path: Path, model: str) -> None:
    rows = [{"text": tiny.WORDS[i], "label": ("NA", "person", "place")[i % 3]} for i in range(20)]
    data = lines(tmp_path / "relations", train=rows, test=rows)
    lacking = r"7 of 20 rows have no 'label': line 1 \('NA'\), line 4 \('NA'\), .*, line 13 \('NA'\) and 2 more"
    remedy = (
        r"mend these rows, or leave them out \(drop_missing=True, --drop-missing\); if NA is a class, say so: label_type='classes'"
    )
    with pytest.raises(UsageError, match=rf"train.jsonl: {lacking}; .*test.jsonl: {lacking}: {remedy}, --labels classes$"):
        problems.load(data, model=model)
    problem = problems.load(data, model=model, label_type="classes")
    assert problem.classes == ("NA", "person", "place")
    assert "the class NA is a name, and no missing label, as label_type = 'classes' says" in problem.notes
    assert problems.load(data, model=model, label_type="classes", drop_missing=True).classes == ("person", "place")


@pytest.mark.parametrize("label_type", [None, "classes", "numbers"])
@pytest.mark.parametrize("value", [None, math.nan, "", "  "])
def test_an_empty_label_is_never_a_class(value: Any, label_type: Any) -> None:
    with pytest.raises(UsageError, match=r"train: 1 of 9 rows have no 'label': line 9 \("):
        labels_of({"train": rows_of([*[1, 2] * 4, value])}, "label", None, label_type)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_without_label_or_text_are_left_out_where_asked(kind: str, tmp_path: Path, model: str) -> None:
    """What is left is the same problem as the same rows in a file without the others."""
    good = [{"text": tiny.sentence(random.Random(i)), "label": "yes" if i % 3 else "no"} for i in range(30)]
    bad: list[dict[str, Any]] = [{"text": "the cat", "label": "NaN"}, {"text": " ", "label": "yes"}, {"text": "a dog", "label": ""}]
    if kind == "jsonl":
        bad += [
            {"text": None, "label": "no"},
            {"text": "a", "label": None},
            {"text": "a", "label": math.nan},
            {"text": "a"},
            {"label": "no"},
        ]
    names = {"text": "None", "label": "no"}  # somebody may have said so
    mixed = [*bad[:2], *good[:10], *bad[2:], *good[10:], names]
    for folder, train in (("whole", [*good, names]), ("mixed", mixed)):
        for split, rows in {"train": train, "test": good[:5]}.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            if kind == "jsonl":
                tiny.write_lines(tmp_path / folder / f"{split}.jsonl", rows)
            else:
                table(tmp_path / folder / f"{split}.csv", [["text", "label"], *([row["text"], row["label"]] for row in rows)])
    whole = problems.load(str(tmp_path / "whole"), model=model, n=20)
    with pytest.raises(UsageError, match="drop_missing=True, --drop-missing"):
        problems.load(str(tmp_path / "mixed"), model=model, n=20)
    mended = problems.load(str(tmp_path / "mixed"), model=model, n=20, drop_missing=True)
    assert mended.settings == whole.settings
    assert torch.equal(mended.train.inputs["input_ids"], whole.train.inputs["input_ids"])
    told = f"{len(bad)} of {31 + len(bad)} rows of the train data have no label or no text, and are left out"
    assert [note for note in mended.notes if "left out" in note] == [told]
    places = {row.place.rpartition("/")[2] for row in read(tmp_path / "mixed").splits["train"]}
    assert {str(text).partition(": ")[0] for text in mended.shown or ()} <= places


def test_what_a_task_s_own_form_lacks_is_missing_too(tmp_path: Path, model: str) -> None:
    copa = {"premise": "the cat", "choice1": "runs", "choice2": "sleeps", "question": "cause"}
    rows: list[dict[str, Any]] = [{**copa, "label": i % 2} for i in range(10)]
    found = problems.load(lines(tmp_path / "any", train=[*rows, {**rows[0], "choice2": ""}]), model=model, drop_missing=True)
    assert (found.n, len(found.test)) == (8, 2)
    wsc = {"text": "the cat runs it", "target": {"span1_text": "the cat", "span1_index": 0, "span2_text": "it", "span2_index": 3}}
    rows = [{**wsc, "label": bool(i % 2)} for i in range(10)]
    empty = {**wsc, "target": {**SPANS, "span1_text": None}, "label": True}
    found = problems.load(lines(tmp_path / "other", train=[*rows, empty]), model=model, drop_missing=True)
    assert (found.n, len(found.test)) == (8, 2)


def test_copa_is_a_choice_and_wsc_an_entailment() -> None:
    copa = Row({"premise": "It fell.", "choice1": "It broke.", "choice2": "It flew.", "question": "effect"}, "x")
    assert texts_of([copa], None, TASKS["copa"]) == [
        [("It fell. What happened as a result?", "It broke."), ("It fell. What happened as a result?", "It flew.")]
    ]
    spans = {"span1_text": "The cat", "span1_index": 0, "span2_text": "it", "span2_index": 5}
    text = "The cat saw it, because it. slept"
    for row in (Row({"text": text, "target": spans}, "x"), Row({"text": text, **spans}, "x")):
        assert texts_of([row], None, TASKS["wsc"]) == [[(text, "The cat saw it, because The cat. slept")]]


def test_the_scores_of_a_choice_are_those_of_its_sequences_alone(tmp_path: Path, model: str) -> None:
    draw = random.Random(0)
    texts = [{name: tiny.sentence(draw, 6) for name in ("premise", "choice1", "choice2")} for _ in range(12)]
    rows: list[dict[str, Any]] = [{**row, "question": "cause", "label": i % 2} for i, row in enumerate(texts)]
    problem = problems.load(lines(tmp_path / "any", train=rows, test=rows[:4]), model=model)
    assert problem.train.inputs["input_ids"].shape[:2] == (12, 2)
    start = problem.start()
    logits = problem.logits(start, problem.test.inputs)
    assert logits.shape == (4, 2)
    one = {name: tensor[2:3, 1:2] for name, tensor in problem.test.inputs.items()}
    torch.testing.assert_close(problem.logits(start, one), logits[2:3, 1:2])


# The seven tasks


@needs_data
@pytest.mark.parametrize("task", TASKS)
def test_the_seven_tasks_load_with_the_paper_s_metrics(task: str, model: str) -> None:
    problem = problems.load(str(SHARED / task), model=model, n=40)
    sizes = {"cb": 56, "cola": 1043, "copa": 100, "mrpc": 408, "rte": 277, "stsb": 1500, "wsc": 104}
    assert (problem.name, problem.n, len(problem.test), problem.metric_name) == (task, 40, sizes[task], TASKS[task].metric)
    logits = problem.logits(problem.start(), problem.test.take(slice(0, 8)).inputs)
    outputs = {"cb": 3, "stsb": 1}.get(task, 2)
    assert logits.shape == (8, outputs)
    assert math.isfinite(problem.metric(logits, problem.test.labels[:8]))


@needs_data
def test_cb_s_validation_split_has_no_contradiction_and_this_is_said(model: str) -> None:
    problem = problems.load(str(SHARED / "cb"), model=model, max_length=32)
    assert problem.settings["classes"] == ["contradiction", "entailment", "neutral"]
    assert "the validation split has no example of contradiction" in problem.notes
    cut = next(note for note in problem.notes if "of S are cut" in note)
    assert cut.endswith("of 225 texts of S are cut to 32 tokens")
    assert int((problem.train.lengths == 32).sum()) >= int(cut.split()[0]) > 100  # type: ignore[union-attr]
    assert problem.validation is not None
    assert len(problem.validation) == 25


HUB_LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "mrpc": ["not_equivalent", "equivalent"],
    "rte": ["entailment", "not_entailment"],
    "cb": ["entailment", "contradiction", "neutral"],
    "copa": ["choice1", "choice2"],
    "wsc": ["False", "True"],
}
SPANS = {"span1_text": "the cat", "span1_index": 0, "span2_text": "it", "span2_index": 3}
HUB_ROWS: dict[str, dict[str, Any]] = {
    "cola": {"sentence": "the cat runs"},
    "stsb": {"sentence1": "the cat runs", "sentence2": "a dog"},
    "mrpc": {"sentence1": "the cat runs", "sentence2": "a dog"},
    "rte": {"sentence1": "the cat runs", "sentence2": "a dog"},
    "cb": {"premise": "the cat runs", "hypothesis": "a dog"},
    "copa": {"premise": "the cat runs", "choice1": "a dog", "choice2": "a bird", "question": "cause"},
    "wsc": {"text": "the cat runs it", **SPANS},
}


@pytest.mark.parametrize("name", HUB)
def test_the_hub_s_form_of_each_task(name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's tree of parquet files on the disk, whole-number labels with names; its test split is never touched."""
    task = HUB[name]
    names = HUB_LABELS.get(task)
    values = [i % len(names) for i in range(30)] if names else [i / 6 for i in range(30)]

    def split(labels: list[Any]) -> datasets.Dataset:
        made = datasets.Dataset.from_list([{**HUB_ROWS[task], "idx": i, "label": label} for i, label in enumerate(labels)])
        return made.cast_column("label", datasets.ClassLabel(names=names)) if names else made

    for part, some in {"train": values, "validation": values[:10], "test": [0 if names else 0.0] * 3}.items():
        (tmp_path / TASKS[task].hub[1] / part).mkdir(parents=True)
        split(some).to_parquet(tmp_path / TASKS[task].hub[1] / part / "0000.parquet")
    asked: list[tuple[str, str, str]] = []
    plain = datasets.load_dataset

    def load_dataset(repository: str, data_dir: str, revision: str) -> Any:
        asked.append((repository, data_dir, revision))
        return plain(str(tmp_path), data_dir=data_dir, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problem = problems.load(name, model=model)
    assert asked == [(*TASKS[task].hub, "refs/convert/parquet")]
    assert (problem.name, problem.n, len(problem.test), problem.metric_name) == (task, 27, 10, TASKS[task].metric)
    assert problem.validation is not None
    assert len(problem.validation) == 3
    assert any("the data's own validation split" in note for note in problem.notes)
    if names:
        known = [next(i for i, group in enumerate(TASKS[task].classes or ()) if name.lower() in group) for name in names]
        assert problem.test.labels.tolist() == [known[int(value)] for value in values[:10]]


def test_without_the_hub_the_local_ways_are_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UsageError, match="did not give nyu-mll/glue/rte: no route to host; without a network give a folder"):
        problems.load("glue/rte", model=model)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install 'peft-stability\\[hub\\]'; or give a folder"):
        problems.load("glue/rte", model=model)


# Splits


def test_what_is_missing_is_held_out_at_random_and_said(tmp_path: Path, model: str) -> None:
    rows = tiny.rows(50)
    whole = problems.load(lines(tmp_path / "whole", train=rows, val=rows[:5], test=rows[:7]), model=model)
    assert (whole.n, len(whole.test), whole.validation and len(whole.validation)) == (50, 7, 5)
    yes = sum(row["label"] == "yes" for row in rows)
    told = f"50 train, 5 validation, 7 test examples; labels are 2 classes, in S (n = 50) no {50 - yes}, yes {yes}"
    leaked = ["5 of 5 examples of the validation split are", "7 of 7 examples of the test split are"]
    assert whole.notes == (told, *(f"{note} in S too" for note in leaked))
    paper = problems.load(lines(tmp_path / "paper", train=rows, dev=rows[:7]), model=model)
    assert (paper.n, len(paper.test), paper.validation and len(paper.validation)) == (45, 7, 5)
    alone = [problems.load(lines(tmp_path / "alone", train=rows), model=model, split_seed=seed) for seed in (0, 0, 1)]
    assert [(p.n, len(p.test), p.validation) for p in alone] == [(40, 10, None)] * 3
    ids = [p.test.inputs["input_ids"] for p in alone]
    assert torch.equal(ids[0], ids[1])
    assert ids[0].shape != ids[2].shape or not torch.equal(ids[0], ids[2])
    assert alone[0].notes[1:] == (
        "the test split is one in 5 of the training data, held out at random; these are never left out, and another "
        "split_seed holds out others",
    )
    assert alone[0].settings["tokens"] != alone[2].settings["tokens"]


def test_the_seed_draws_s_and_the_whole_split_is_the_default(tmp_path: Path, model: str) -> None:
    folder = lines(tmp_path / "mine", train=tiny.rows(30), test=tiny.rows(5, 1))
    assert problems.load(folder, model=model).n == 30
    drawn = [problems.load(folder, model=model, n=10, seed=seed) for seed in (0, 0, 1)]
    ids = [p.train.inputs["input_ids"].tolist() for p in drawn]
    assert ids[0] == ids[1] != ids[2]
    assert [p.settings["tokens"] for p in drawn] == [drawn[0].settings["tokens"]] * 3


def test_columns_that_only_resemble_a_task_are_no_task(tmp_path: Path, model: str) -> None:
    rows = [["text", "target"], *([tiny.WORDS[i], "pos" if i % 2 else "neg"] for i in range(20))]
    assert problems.load(table(tmp_path / "a.csv", rows), model=model, label="target").settings["classes"] == ["neg", "pos"]
    named = lines(tmp_path / "cb", train=tiny.rows(20))
    with pytest.raises(UsageError, match="is no class of this task"):
        problems.load(named, model=model)
    assert problems.load(named, model=model, task="none").metric_name == "accuracy"


def test_a_class_that_chance_holds_out_whole_is_still_a_class(tmp_path: Path, model: str) -> None:
    rows = [*({**row, "label": "no"} for row in tiny.rows(29)), {**GOOD[0], "label": "rare"}]
    loaded = [problems.load(lines(tmp_path / "rare", train=rows), model=model, split_seed=seed) for seed in range(12)]
    assert all(problem.settings["classes"] == ["no", "rare"] for problem in loaded)
    lacking = ["S has no example of rare: all are no" in problem.notes for problem in loaded]
    assert lacking == [int(problem.train.labels.sum()) == 0 for problem in loaded]
    assert any(lacking)
    assert not all(lacking)


# What the notes count


def test_the_notes_count_s_itself_and_the_whole_split(tmp_path: Path, model: str) -> None:
    """With labels of 99 to 1 most S have one class alone; their texts, repeats and cuts are counted in S too."""
    texts = [tiny.sentence(random.Random(i), 20) for i in range(100)]
    rows = [{"text": text, "label": "rare" if i % 100 == 0 else "usual"} for i, text in enumerate([*texts, *texts])]
    data = lines(tmp_path / "skewed", train=rows, test=rows[:50])
    kinds = set()
    for seed in range(6):
        problem = problems.load(data, model=model, n=20, seed=seed, max_length=12)
        own = [str(text).partition(": ")[2] for text in problem.shown or ()]
        rare = int((problem.train.labels == 0).sum())
        head = f"labels are 2 classes, in S (n = 20) rare {rare}, usual {20 - rare}; in the whole train split rare 2, usual 198"
        assert problem.notes[0] == f"200 train, 50 test examples; {head}"
        assert ("S has no example of rare: all are usual" in problem.notes) == (rare == 0)
        cut = sum(len(text.split()) + 2 > 12 for text in own)
        repeats = 20 - len(set(own))
        leaked = sum(row["text"] in own for row in rows[:50])
        told = {f"{cut} of 20 texts of S are cut to 12 tokens": cut, f"{repeats} of 20 examples of S repeat another of it": repeats}
        told[f"{leaked} of 50 examples of the test split are in S too"] = leaked
        assert {note for note in problem.notes if " S " in note and note[0].isdigit()} - {problem.notes[0]} == {
            note for note, count in told.items() if count
        }
        kinds |= {("rare", rare > 0), ("cut", cut > 0), ("repeats", repeats > 0), ("leaked", leaked > 0)}
    assert kinds >= {
        ("rare", False),
        ("rare", True),
        ("cut", True),
        ("repeats", True),
        ("leaked", True),
    }  # each was put to the test


def test_the_head_of_numbers_begins_where_it_is_told_to(tmp_path: Path, model: str) -> None:
    data = lines(tmp_path / "numbers", train=[{"text": "the cat", "label": i / 4} for i in range(20)])
    plain, moved = (problems.load(data, model=model, initial_bias=bias) for bias in (0, 2.5))
    assert "initial_bias" not in plain.settings
    assert moved.settings == {**plain.settings, "initial_bias": 2.5}
    assert [str(problems.load(data, model=model, initial_bias=two).settings["initial_bias"]) for two in (2, 2.0)] == ["2.0", "2.0"]
    # With no model in it, which would be sent to workers a second time.
    assert set(inspect.getclosurevars(moved.new_head).nonlocals) == {"initial_bias", "name", "plain"}
    llama = str(tiny.write_model(tmp_path / "llama", "llama"))
    for own, where, why in (
        (
            lines(tmp_path / "classes", train=GOOD),
            model,
            "initial_bias = 2.5 is for labels that are numbers, and classes has",
        ),
        (data, llama, "initial_bias = 2.5: the head of .*llama has no bias"),
    ):
        with pytest.raises(UsageError, match=why):
            problems.load(own, model=where, initial_bias=2.5)
    with pytest.raises(UsageError, match="initial_bias = nan"):
        problems.load(data, model=model, initial_bias=math.nan)


def test_numbers_are_told_for_s_and_for_the_whole_split(tmp_path: Path, model: str) -> None:
    rows = [{"text": tiny.WORDS[i], "label": i / 4} for i in range(20)]
    problem = problems.load(lines(tmp_path / "scores", train=rows, test=rows[:3]), model=model, n=4)
    low, high = float(problem.train.labels.min()), float(problem.train.labels.max())
    assert problem.notes[0].endswith(f"labels are numbers, in S (n = 4) {low:g} to {high:g}; in the whole train split 0 to 4.75")


def test_a_text_with_several_labels_is_named_with_its_places(tmp_path: Path, model: str) -> None:
    rows = [{"text": f"the {word}", "label": "no"} for word in tiny.WORDS[:20]]
    rows[7] = {"text": rows[3]["text"], "label": "yes"}
    rows[8] = dict(rows[3])
    test = [{"text": rows[5]["text"], "label": "yes"}, {"text": rows[6]["text"], "label": "no"}]
    problem = problems.load(lines(tmp_path / "doubtful", train=rows, test=test), model=model)
    told = "2 of 18 texts of the data, all splits together, have different labels, the first at train.jsonl, line 4 (no) and "
    assert [note for note in problem.notes if "different labels" in note] == [f"{told}train.jsonl, line 8 (yes)"]
    rows[7]["label"] = "no"
    rows[9]["label"] = test[0]["label"] = "yes"
    problem = problems.load(lines(tmp_path / "doubtful", train=rows, test=test[1:]), model=model)
    assert not any("different labels" in note for note in problem.notes)


# What can be wrong

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no column of texts": (
        {"train": [{"words": "a", "label": 1}] * 9},
        {},
        r"line 1: no column of texts among words, label \(of a table .*\): call them text; .*--text COLUMN",
    ),
    "no label": (
        {"train": [{"text": "a", "verdict": 1}] * 9},
        {},
        "no column 'label' of labels, there is text, verdict; name yours",
    ),
    "a renamed column": (
        {"train": GOOD, "test": [{"text_a": "a", "b": "b", "label": "no"}]},
        {},
        "test.jsonl, line 1: no column 'text_b'",
    ),
    "a text that is none": ({"train": [*GOOD, {**GOOD[0], "text_b": 7}]}, {}, "train.jsonl, line 21: text_b = 7 is no text"),
    "an empty text": ({"train": [*GOOD, {**GOOD[0], "text_b": " "}]}, {}, "train.jsonl, line 21: text_b = ' ' is no text"),
    "a label that is none": ({"train": [*GOOD, {**GOOD[0], "label": [1]}]}, {}, r"line 21: label = \[1\] is neither a class nor a"),
    "a row without a label": (
        {"train": [*GOOD, {**GOOD[0], "label": None}]},
        {},
        r"train.jsonl: 1 of 21 rows have no 'label': line 21 \(None\): mend these rows, or leave them out \(drop_missing=True, "
        r"--drop-missing\)$",
    ),
    "a task's row without a label": (
        {"train": [*GOOD, {**GOOD[0], "label": "nan"}]},
        {"task": "rte"},
        r"line 21 \('nan'\): mend these rows, or leave them out \(drop_missing=True, --drop-missing\)$",
    ),
    "a row with no text": (
        {"train": [*GOOD, {**GOOD[0], "text_b": None}]},
        {},
        "line 21: text_b = None is no text: mend the row, or",
    ),
    "no row is whole": (
        {"train": GOOD, "test": [{**GOOD[0], "label": None}, {**GOOD[0], "text_a": ""}]},
        {"drop_missing": True},
        "test.jsonl: no row has a label and a text: nothing is left of test",
    ),
    "no such column of labels": ({"train": GOOD}, {"label": "stars", "drop_missing": True}, "line 1: no column 'stars' of labels"),
    "a word for a flag": ({"train": GOOD}, {"drop_missing": "yes"}, "drop_missing = 'yes': use true or false"),
    "a class written in another way": (
        {"train": [{"text": "a", "label": f"{i % 2}"} for i in range(9)], "test": [{"text": "a", "label": "1.0"}]},
        {},
        "test.jsonl, line 1: label = '1.0' is no class of the training data: 0, 1; if '1.0' is the class '1', write both alike",
    ),
    "a class in capitals": (
        {"train": GOOD, "test": [{**GOOD[0], "label": "Yes"}]},
        {},
        "'Yes' is no class of the training data: no, yes; if 'Yes' is the class 'yes', write both alike",
    ),
    "a quantity that is new": (
        {"train": [{"text": "a", "label": i % 4} for i in range(9)], "test": [{"text": "a", "label": 7}]},
        {},
        "'7' is no class of the training data: 0, 1, 2, 3; if labels are quantities, say so: label_type='numbers', --labels num",
    ),
    "an unknown label in test": (
        {"train": GOOD, "test": [GOOD[0], {**GOOD[0], "label": "perhaps"}]},
        {},
        "test.jsonl, line 2: label = 'perhaps' is no class of the training data: no, yes",
    ),
    "an unknown label of a task": (
        {"train": [*GOOD, {**GOOD[0], "label": "perhaps"}]},
        {"task": "rte"},
        r"is no class of this task \(task 'none' takes labels as they are\): entailment, not_entailment",
    ),
    "a number that is none": ({"train": [*GOOD, {**GOOD[0], "label": "x"}]}, {"label_type": "numbers"}, "is no finite number"),
    "neither classes nor numbers": (
        {"train": [{"text": "a", "label": f"text {i}"} for i in range(10)]},
        {},
        "label has 10 different texts in 10 examples: neither classes nor numbers",
    ),
    "numbers and words": (
        {"train": [{"text": "a", "label": v} for v in (1.5, 2.5, "?", 3.5, "4.5", 0.5)]},
        {},
        r"has numbers and words \('4.5', '\?'\): mend",
    ),
    "one class": ({"train": [{"text": "a", "label": "x"}] * 9, "test": [{"text": "a", "label": "x"}]}, {}, "one class alone, 'x'"),
    "an empty split": ({"train": GOOD, "test": []}, {}, "test.jsonl is empty: at least one example expected"),
    "no train": ({"test": GOOD}, {}, "has no training data: train.jsonl or train.csv expected, found test.jsonl"),
    "two validation splits": ({"train": GOOD, "dev": GOOD, "val": GOOD}, {}, "holds dev.jsonl and val.jsonl: keep one file"),
    "too few": ({"train": GOOD[:4]}, {}, "4 training examples are too few to hold out one in 5: give a test split"),
    "n too large": (
        {"train": GOOD, "test": GOOD},
        {"n": 21},
        r"n = 21: use a whole number from 2 to 20 \(the training",
    ),
    "n too small": ({"train": GOOD, "test": GOOD}, {"n": 1}, "n = 1"),
    "length too small": ({"train": GOOD, "test": GOOD}, {"max_length": 3}, "max_length = 3"),
    "an unknown task": ({"train": GOOD}, {"task": "qnli"}, "unknown task 'qnli': use cola, .* or none"),
    "an unknown type of labels": ({"train": GOOD}, {"label_type": "stars"}, "unknown label_type 'stars': use classes or numbers"),
    "a fraction that leaves nothing": ({"train": GOOD}, {"removed": 1.0}, r"removed = 1\.0 is outside \[0, 1\)"),
    "two sizes of S": ({"train": GOOD}, {"removed": 0.1, "n": 5}, "removed = 0.1 and n = 5: give one of them"),
    "a pool beyond the data": ({"train": GOOD}, {"pool": 17}, r"pool = 17: use a whole number from 2 to 16 \(the training split"),
    "a single number": (
        {"train": [{"text": "a", "label": 0.5}], "test": [{"text": "a", "label": 1.5}]},
        {},
        "has 1 example: give at",
    ),
    "three columns": ({"train": GOOD}, {"text": ["text_a", "text_b", "label"]}, "3 columns of texts"),
    "half a character": ({"train": [*GOOD, {**GOOD[0], "text_b": "a \ud83d"}]}, {}, "line 21: text_b holds half a character"),
    "numbers of a task of classes": ({"train": GOOD}, {"task": "rte", "label_type": "numbers"}, "labels of this task are cl"),
    "an unknown setting": ({"train": GOOD}, {"rows": 3}, "has no setting rows: there is model, n, seed"),
    "the old name of label_type": ({"train": GOOD}, {"labels": "classes"}, "has no setting labels: there is .*label, label_type"),
    "a list": ({"train": [*GOOD, [1]]}, {}, "train.jsonl, line 21: list instead of an object"),
}


@pytest.mark.parametrize("what", CASES)
def test_what_cannot_be_used_is_named_with_its_place(what: str, tmp_path: Path, model: str) -> None:
    splits, settings, message = CASES[what]
    with pytest.raises(UsageError, match=message):
        problems.load(lines(tmp_path / "mine", **splits), model=model, **settings)


def test_decimal_commas_are_refused(tmp_path: Path, model: str) -> None:
    path = table(tmp_path / "a.csv", [["text", "label"], *(["a", f"{i % 4},5"] for i in range(12))])
    with pytest.raises(UsageError, match="has decimal commas .0,5.: write 4.5 for 4,5, or say that labels are classes"):
        problems.load(path, model=model)
    assert problems.load(path, model=model, label_type="classes").classes == ("0,5", "1,5", "2,5", "3,5")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "nowhere/at/all",
            {"model": "x"},
            "unknown problem 'nowhere/at/all', and no file or folder is there: .*digits.*glue/cola",
        ),
        (".", {}, "needs a pretrained model: give model="),
        (__file__, {"model": "x"}, "is neither JSON lines nor a table"),
    ],
)
def test_a_problem_that_is_none(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        problems.load(name, **settings)


@pytest.mark.parametrize(
    ("group", "blank", "message"),
    [
        ("anotator", None, r"group = 'anotator': the training data have no such column: use one of text, label, annotator"),
        ("annotator", 3, r"train\.jsonl, line 4: annotator is empty, and it names the group of the example"),
    ],
)
def test_groups_that_nobody_named_are_refused(group: str, blank: int | None, message: str, tmp_path: Path) -> None:
    """Of every row of the training data: the one that is blank is in S with some seeds only."""
    texts = ["rain", "sun", "no rain", "no sun", "much rain", "much sun"]
    rows = [{"text": text, "label": "ab"[i % 2], "annotator": "" if i == blank else f"w{i % 3}"} for i, text in enumerate(texts)]
    data = tiny.lines(tmp_path / "data", train=rows, test=[{"text": "wind", "label": "a"}, {"text": "snow", "label": "b"}])
    for seed in range(4):
        with pytest.raises(UsageError, match=message):
            problems.load(data, model=str(tiny.write_model(tmp_path / "bert")), n=2, seed=seed, group=group)
