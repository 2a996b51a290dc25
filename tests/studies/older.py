"""Stores as older versions left them."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stability.studies.identity import as_json, key
from stability.studies.store import Store


def write_older(path: Path, source: Path, format_: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """Write what a store holds in the tables of formats 4 and 5, each record changed; what the file then is."""
    whole = Store(source)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE study (format INTEGER NOT NULL, identity TEXT NOT NULL)")
        connection.execute(
            "CREATE TABLE cells (key TEXT PRIMARY KEY, identity TEXT NOT NULL, record TEXT NOT NULL, "
            "passing INTEGER NOT NULL DEFAULT 0, finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"
        )
        connection.execute("INSERT INTO study VALUES (?, ?)", (format_, as_json(whole.identity)))
        for mine, record in whole.cells():
            row = key(mine), as_json(mine), as_json(change(record), sort_keys=False)
            connection.execute("INSERT INTO cells (key, identity, record) VALUES (?, ?, ?)", row)
    connection.close()
    return path.read_bytes()
