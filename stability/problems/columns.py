"""Which columns of a table hold the texts, and which the labels: by their usual names, without regard to case."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stability.errors import UsageError

__all__ = ["FORMS", "is_usable", "label_column", "named_column", "other_texts", "text_columns"]

FORMS = (
    ("text",),
    ("question", "sentence"),  # before the single one: QNLI asks whether the sentence answers the question
    ("sentence",),
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
)
"""The names of the toolkit's own form and of the tasks: the first form that a table has is taken."""

_TEXTS = frozenset(
    {"texts", "sentences", "review", "reviews", "content", "contents", "comment", "comments", "tweet", "tweets", "message"}
    | {"messages", "body", "document", "documents", "post", "posts", "utterance", "statement", "passage", "paragraph"}
    | {"review_text", "review_body", "comment_text", "tweet_text", "message_text", "full_text", "clean_text", "reviewtext"}
)
"""Names that others give to a column of texts. None has precedence over another."""

_LABELS = frozenset(
    {"labels", "sentiment", "target", "targets", "category", "categories", "class", "classes", "rating", "ratings", "score"}
    | {"scores", "stars", "y", "polarity", "emotion", "intent", "topic", "gold_label", "class_label", "label_text"}
)
"""Names that others give to a column of labels. A number of a row (id, index) is never one."""


def text_columns(names: Sequence[str], place: str) -> tuple[str, ...]:
    """Find the columns of texts by their usual names: text; text_a and text_b; premise and hypothesis; review; content; ….

    Args:
        names: the columns of the data.
        place: where they were read, for the message of an error.

    Returns:
        One or two names of columns, as they are written in the data.

    Raises:
        UsageError: there is none of the usual columns, or several could be the text.

    Example:
        >>> text_columns(["premise", "hypothesis", "label"], "line 1"), text_columns(["Review", "Stars"], "line 1")
        (('premise', 'hypothesis'), ('Review',))
    """
    for form in FORMS:  # as they are written first: Text beside sentence is another column
        if all(name in names for name in form):
            return form
    for form in FORMS:
        alike = [_like({name}, names) for name in form]
        if all(alike):
            return tuple(_one(found, place, "texts", "text") for found in alike)
    if found := _like(_TEXTS, names):
        return (_one(found, place, "texts", "text"),)
    usual = "; ".join(", ".join(form) for form in FORMS)
    raise UsageError(
        f"{place}: no column of texts among {', '.join(names)} (of a table its first line, the header): call "
        f"them {usual}; or name yours: text='…' in Python, --text COLUMN [COLUMN] on the command line"
    )


def label_column(names: Sequence[str], place: str, texts: Collection[str] = ()) -> str:
    """Find the column of labels by its usual name: label; labels, sentiment, target, category, class, rating, score, ….

    Args:
        names: the columns of the data.
        place: where they were read, for the message of an error.
        texts: the columns of texts, which hold no labels.

    Returns:
        The name of the column, as it is written in the data.

    Raises:
        UsageError: there is none of the usual columns, or several could hold the labels.

    Example:
        >>> label_column(["id", "text", "Sentiment"], "line 1")
        'Sentiment'
    """
    if "label" in names:
        return "label"
    others = [name for name in names if name not in texts]
    if found := _like({"label"}, others) or _like(_LABELS, others):
        return _one(found, place, "labels", "label")
    raise UsageError(
        f"{place}: no column 'label' of labels, there is {', '.join(names)}; "
        "name yours: label='…' in Python, --label COLUMN on the command line"
    )


def named_column(name: str, names: Sequence[str]) -> str:
    """The column that is meant by a name: the one of this name, or else the only one that differs from it in case alone.

    Args:
        name: the name that was given.
        names: the columns of the data.

    Returns:
        The name as it is written in the data; the given name where there is no such column.

    Example:
        >>> named_column("review", ["Review", "Stars"]), named_column("text", ["Review", "Stars"])
        ('Review', 'text')
    """
    alike = [one for one in names if one.strip().casefold() == name.strip().casefold()]
    return alike[0] if name not in names and len(alike) == 1 else name


def other_texts(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """The columns that have a usual name of texts and are not read.

    Args:
        names: the columns of the data.
        taken: the columns that are read.

    Example:
        >>> other_texts(["review", "text", "label"], ["text"])
        ['review']
    """
    usual = _TEXTS | {name for form in FORMS for name in form}
    return [name for name in _like(usual, names) if name not in taken]


def is_usable(names: Sequence[str], asked: Collection[str]) -> bool:
    """Whether a header has a column of texts or of labels. A table that is split at the wrong sign has none.

    Args:
        names: the columns of the header.
        asked: the columns that the user named; where there are none, the usual names count.

    Example:
        >>> is_usable(["text;a", " b;label"], ()), is_usable(["text", "a, b", "label"], ())
        (False, True)
    """
    if asked:
        return any(named_column(name, names) in names for name in asked)
    return bool(_like({*_TEXTS, *_LABELS, "label", *(name for form in FORMS for name in form)}, names))


def _like(usual: Collection[str], names: Sequence[str]) -> list[str]:
    """The columns whose names are among some usual ones, apart from case, and from blanks or hyphens for underscores."""
    return [name for name in names if name.strip().casefold().replace(" ", "_").replace("-", "_") in usual]


def _one(found: Sequence[str], place: str, what: str, option: str) -> str:
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"{place}: {' and '.join(found)} could each be the column of {what}: "
        f"name the one you mean, {option}={found[0]!r} in Python, --{option} {found[0]} on the command line"
    )
