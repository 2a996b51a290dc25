"""``stability export``: what a store holds, as a tidy table for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from cyclopts import Parameter

from stability.cli.printing import plain
from stability.errors import StabilityError, UsageError
from stability.studies.columns import cells
from stability.studies.columns import examples as left_out
from stability.studies.store import Store

__all__ = ["Form", "export"]

Form = Literal["csv", "json", "parquet"]


def export(
    *,
    store: Annotated[Path, Parameter(help="Store of results: an SQLite file, or a folder NAME.d.")],
    format: Annotated[  # noqa: A002 - it is the name of the option
        Form | None, Parameter(help="Form of the table. By default the ending of --out tells, or else csv.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="File to write; by default standard output.")] = None,
    examples: Annotated[bool, Parameter(help="A row for each example that was left out, instead of one for each cell.")] = False,
) -> None:
    """Write a store as a tidy table, with a row for each cell."""
    form = format or _form_of(out)
    if out is None and form == "parquet":
        raise UsageError("parquet is no text for a terminal: give --out FILE.parquet")
    table = (left_out if examples else cells)(Store(store))
    try:
        written = _WRITERS[form](table)
    except ImportError as error:
        raise UsageError(f"parquet needs pyarrow: pip install 'peft-stability[parquet]', or use --format csv ({error})") from error
    if out is None:
        print(written.decode(), end="")
        return
    try:
        out.write_bytes(written)
    except OSError as error:
        raise StabilityError(f"cannot write {out}: {error}; name another file") from error
    print(f"{len(table)} rows of {len(table.columns)} columns: {out}")


def _form_of(out: Path | None) -> Form:
    forms: dict[str, Form] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}
    if out is None or out.suffix in forms:
        return "csv" if out is None else forms[out.suffix]
    raise UsageError(f"{out} has none of the endings {', '.join(forms)}: give --format too")


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode(errors="backslashreplace")  # half a pair of UTF-16 is no sign


def _json(table: pd.DataFrame) -> bytes:
    rows = [plain(row) for row in table.astype(object).where(table.notna(), None).to_dict("records")]
    return (json.dumps(rows, allow_nan=False, ensure_ascii=False, indent=1) + "\n").encode(errors="backslashreplace")


def _parquet(table: pd.DataFrame) -> bytes:
    return table.to_parquet(index=False)


_WRITERS: dict[Form, Callable[[pd.DataFrame], bytes]] = {"csv": _csv, "json": _json, "parquet": _parquet}
