"""A ledger that is a folder of small files, and needs no locks."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stability.errors import StabilityError
from stability.studies.identity import from_json
from stability.studies.ledger import Answer, Claim, Ledger, Row, Wanted, Worker, damaged, time_of, unusable, worker_of
from stability.studies.packed import listed, lists_of

__all__ = ["FolderLedger"]


class FolderLedger(Ledger):
    """A folder in which every cell, claim and worker is a small file of its own.

    It needs nothing of the file system but that a file can be given a second name, and that this fails where the name is taken. So
    one of several processes gets the name, also on a network file system whose locks do not work. No file is ever changed, except
    that of a worker: it is replaced with each sign of life, and renamed when the worker left or is dead. A cell that was tried
    ``a`` times before is claimed by the name ``key.a.t``; whoever takes the claim of a dead worker makes the next ``t``.

    Example:
        >>> import tempfile
        >>> ledger = FolderLedger(Path(tempfile.mkdtemp()) / "mine.d")
        >>> ledger.create(7, '{"study": "mine"}')
        >>> mine, other, wanted = Worker(), Worker(), {"a": Wanted("the first"), "b": Wanted("the second")}
        >>> ledger.claim(mine, wanted, most=1, dead=set()).mine
        {'a': 1}
        >>> ledger.claim(other, wanted, most=2, dead=set())
        Answer(mine={'b': 1}, finished=set(), held={'a': '...'})
        >>> ledger.claim(other, {"a": wanted["a"]}, most=2, dead={mine.id}).mine
        {'a': 2}
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._study, self._cells, self._claims, self._workers = (path / name for name in ("study", "cells", "claims", "workers"))

    mode = "a folder of files, which needs no locks"

    def exists(self) -> bool:
        return self._study.is_dir() and any(self._study.iterdir())

    def create(self, format_: int, identity: str) -> None:
        for folder in (self._study, self._cells, self._claims, self._workers):
            with _writing(self.path):
                folder.mkdir(parents=True, exist_ok=True)
        self._publish(self._study / "0.json", {"format": format_, "identity": identity})

    def heads(self) -> list[tuple[int, str]]:
        found = self._read(self._study / f"{self._last_head()}.json", format=int, identity=str)
        return [(found["format"], found["identity"])]

    def _last_head(self) -> int:
        return max((self._number(one, one.stem) for one in self._study.glob("*.json")), default=0)

    def become(self, format_: int, identity: str, change: Callable[[], Mapping[str, str]]) -> None:
        while True:
            last = self._last_head()
            if change():
                raise StabilityError(f"{self.path} is of an older format: use another --store, and --reuse this one")
            if self.heads() == [(format_, identity)]:
                with _writing(self.path):  # what cannot be written to is found out now
                    self._temporary("").unlink()
                return
            if self._publish(self._study / f"{last + 1}.json", {"format": format_, "identity": identity}):
                return  # else another process was quicker, and it is checked again

    def _tried(self) -> dict[str, int]:
        """Of each cell how many times it was tried."""
        found: dict[str, int] = {}
        for one in self._cells.glob("*.json"):
            name, _, attempt = one.stem.rpartition(".")
            found[name] = max(found.get(name, 0), self._number(one, attempt) + 1)
        return found

    def _attempt(self, name: str, number: int, **kinds: type) -> dict[str, Any]:
        """What one attempt at a cell left, the first of which is 0."""
        return self._read(self._cells / f"{name}.{number}.json", **kinds)

    def _number(self, place: Path, text: str) -> int:
        """The number in the name of a file."""
        if not (text.isascii() and text.isdigit()):
            raise damaged(self.path, f"{place.name} is no name of its files")
        return int(text)

    def _each(self) -> dict[str, dict[str, Any]]:
        """The last attempt of each cell, by its key, in the order in which they were first finished."""
        tried = self._tried()
        kinds = {"identity": str, "record": str, "passing": bool, "finished": str}
        found = {name: self._attempt(name, count - 1, **kinds) for name, count in tried.items()}
        first = {  # what was tried again keeps its place
            name: one if tried[name] == 1 else self._attempt(name, 0, finished=str) for name, one in found.items()
        }
        return dict(sorted(found.items(), key=lambda one: (first[one[0]]["finished"], one[0])))

    def cells(self) -> list[tuple[str, str]]:
        return [(one["identity"], one["record"]) for one in self._each().values()]

    def rows(self) -> tuple[dict[int, str], list[tuple[str, int, bytes]]]:
        return listed((name, *self._cell(one)) for name, one in self._each().items())

    def details(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        each = {name: self._cell(one)[1] for name, one in self._each().items() if name in keys}
        return {name: lists_of(record) for name, record in each.items()}

    def _cell(self, file: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Identity and record."""
        try:
            identity, record = from_json(file["identity"]), from_json(file["record"])
        except (ValueError, KeyError) as error:
            raise damaged(self.path, error) from error
        if not (isinstance(identity, dict) and isinstance(record, dict)):
            raise damaged(self.path, "a cell holds no record")
        return identity, record

    def attempts(self) -> dict[str, tuple[bool, int]]:
        return {name: (self._attempt(name, tried - 1, passing=bool)["passing"], tried) for name, tried in self._tried().items()}

    def times(self) -> dict[str, datetime]:
        return {name: time_of(self.path, one["finished"]) for name, one in self._each().items()}

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            written = False
            while not written:  # another process may be quicker, with a failure that may pass
                count = self._last(row.key)
                if count and not self._attempt(row.key, count - 1)["passing"]:
                    break
                now = {**asdict(row), "finished": row.finished or datetime.now(UTC).isoformat()}
                written = self._publish(self._cells / f"{row.key}.{count}.json", now)

    def join(self, worker: Worker) -> None:
        self.beat(worker)

    def beat(self, worker: Worker) -> None:
        place = self._workers / f"{worker.id}.json"
        try:
            beat = self._read(place)["beat"] + 1
        except StabilityError:
            if place.exists():
                raise
            beat = 0  # it is the first sign of life, or another process took this one for dead just now
        now = {**asdict(worker), "beat": beat, "heard": datetime.now(UTC).isoformat()}
        with _writing(self.path):
            self._temporary(json.dumps(now)).replace(place)

    def leave(self, worker: Worker) -> None:
        self._gone(worker.id)  # its claims stay, and are free
        held = {one.worker for one in self.claims()}
        for one in self.workers():
            if one.gone and one.id not in held:
                self._gone(one.id)

    def _gone(self, worker: str) -> None:
        """Say for all that a worker is no more. A file that is only missing may be one that a cache does not show yet."""
        with _writing(self.path), suppress(FileNotFoundError):
            (self._workers / f"{worker}.json").replace(self._workers / f"{worker}.left")

    def _left(self, worker: str) -> bool:
        """Whether a worker left or was taken for dead, and has given no sign of life since."""
        return (self._workers / f"{worker}.left").exists() and not (self._workers / f"{worker}.json").exists()

    def workers(self, among: Collection[str] | None = None) -> list[Worker]:
        every = self._workers.glob("*.json") if among is None else (self._workers / f"{one}.json" for one in among)
        found = []
        for place in sorted(every):
            try:
                found.append(worker_of(self.path, self._read(place)))
            except StabilityError:
                if place.exists():
                    raise  # else it left just now
        return found

    def claims(self) -> list[Claim]:
        tried, last = self._tried(), dict[str, int]()
        for one in self._claims.glob("*.json"):
            name, attempt, tries = ("", "", *one.stem.rsplit(".", 2))[-3:]  # of a foreign name too
            if self._number(one, attempt) == tried.get(name, 0):
                last[f"{name}.{attempt}"] = max(last.get(f"{name}.{attempt}", 0), self._number(one, tries))
        each = (
            (name, tries, self._read(self._claims / f"{name}.{tries}.json", worker=str, what=str))
            for name, tries in sorted(last.items())
        )
        return [Claim(name.rpartition(".")[0], one["worker"], tries, one["what"]) for name, tries, one in each]

    def claim(self, worker: Worker, wanted: Mapping[str, Wanted], most: int, dead: set[str]) -> Answer:
        answer = Answer({}, set(), {})
        for name, (what, before) in wanted.items():
            if len(answer.mine) == most:
                break
            if self._finished(name, before):
                answer.finished.add(name)
                continue
            holder, tries = self._holder(name, before)
            if holder is not None and holder not in dead and not self._left(holder):
                answer.held[name] = holder
            elif not self._publish(self._claims / f"{name}.{before}.{tries + 1}.json", {"worker": worker.id, "what": what}):
                answer.held[name] = self._holder(name, before)[0] or ""  # another process was quicker
            elif self._finished(name, before):  # meanwhile
                answer.finished.add(name)
            else:
                answer.mine[name] = tries + 1
        for one in dead:
            if one not in answer.held.values():
                self._gone(one)
        return answer

    def _last(self, name: str) -> int:
        """How many times a cell was tried."""
        count = 0
        while (self._cells / f"{name}.{count}.json").exists():
            count += 1
        return count

    def _finished(self, name: str, before: int) -> bool:
        count = self._last(name)
        return count > 0 and (count != before or not self._attempt(name, count - 1)["passing"])

    def _holder(self, name: str, attempt: int) -> tuple[str | None, int]:
        """Who claimed a cell last, and how many did."""
        tries = 0
        while (self._claims / f"{name}.{attempt}.{tries + 1}.json").exists():
            tries += 1
        return (self._read(self._claims / f"{name}.{attempt}.{tries}.json")["worker"] if tries else None), tries

    def _publish(self, place: Path, content: Mapping[str, object]) -> bool:
        """Write a file that is whole or absent; whether it was this process that wrote it."""
        with _writing(self.path):
            temporary = self._temporary(json.dumps(content))
            try:
                os.link(temporary, place)
            except FileExistsError:
                # The answer may be lost on its way from a server that did it, and asked again then fails.
                return temporary.stat().st_nlink == 2
            finally:
                temporary.unlink()
        return True

    def _temporary(self, content: str) -> Path:
        place = self.path / f".{uuid.uuid4().hex}"
        with place.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return place

    def _read(self, place: Path, **kinds: type) -> dict[str, Any]:
        """What a file says; ``kinds``: what it must say at least."""
        try:
            if not place.is_file():  # to open a pipe waits for whoever writes to it
                raise OSError("it is missing, or no file")
            found = json.loads(place.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(self.path, f"{place.name}: {error}") from error
        if not isinstance(found, dict) or any(type(found.get(name)) is not kind for name, kind in kinds.items()):
            raise damaged(self.path, f"{place.name} holds no record")
        return found


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unusable(path, error, full=error.errno == errno.ENOSPC) from error
