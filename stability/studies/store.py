"""The results of one study, and everything that defines it: what a :mod:`ledger <stability.studies.ledger>` holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

from stability.errors import StabilityError
from stability.studies.folder_ledger import FolderLedger
from stability.studies.identity import as_json, as_stored, difference, first_difference, from_json, key, without_code
from stability.studies.ledger import Ledger, Row, damaged
from stability.studies.packed import listed, lists_of
from stability.studies.restated import flat, restated
from stability.studies.sound import check_records
from stability.studies.sqlite_ledger import SqliteLedger

__all__ = ["READABLE", "Store", "ledger_at"]

_FORMAT = 7  # raise it with every change of what a ledger or a record holds
READABLE = (3, 4, 5, 6, _FORMAT)
"""The formats that can be read."""

_COMPLETE = 4  # the cells of older formats do not say which code and which data they belong to
_RESTATED = 5  # records of older formats are estimated anew
_FLAT = 7  # records of older formats hold numbers in lists


def _locked(path: Path) -> bool:
    """Whether a process of a version before store format 6 works on a store: it holds a lock on a file beside it."""
    try:
        import fcntl

        with path.with_name(f"{path.name}.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def ledger_at(path: Path) -> Ledger:
    """The ledger at a path: a folder where there is one or where the name ends in ``.d``, and else one SQLite file.

    Example:
        >>> type(ledger_at(Path("runs/mine.d"))).__name__
        'FolderLedger'
    """
    return FolderLedger(path) if path.is_dir() or path.suffix == ".d" else SqliteLedger(path)


def _changes(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    """What a study's algorithms are now: those that are gone and new, and the first change of settings with all that have it."""
    gone, added = ({_named(one): one for one in reversed(some) if one not in others} for some, others in ((old, new), (new, old)))
    parts = []
    for what, some, others in (("without", gone, added), ("with", added, gone)):
        if names := [name for name in reversed(some) if name not in others]:
            parts.append(f"{what} {', '.join(names)}")
    changed = {name: first_difference(gone[name], added[name]) for name in reversed(gone) if name in added}
    for before, after in list(changed.values())[:1]:
        alike = [name for name, change in changed.items() if change == (before, after)]
        parts.append(f"{', '.join(alike)} with {after} instead of {before}")
    return "; ".join(parts) or "in another order"


def _named(algorithm: Mapping[str, Any]) -> str:
    selector = algorithm["selector"]
    return f"{selector['name']}" + (f" at p = {selector['sparsity']:g}" if selector.get("sparsity") else "")


class Store:
    """Results of one study.

    A cell is known by what changes its result, the code of its method among it. So a store goes on where only code was changed:
    cells of the old code stay in the file, and are no cells of the study any more.

    Args:
        path: the SQLite file, or the folder (:func:`ledger_at`); made where it is missing and ``identity``
            is given.
        identity: what defines the study, as plain values. None opens whatever study the file holds, to read it.

    Attributes:
        path: the file or folder.
        identity: what defines the study that the file holds.
        ledger: how its cells lie there, and who works on them.
        complete: whether its cells say which code and which data they belong to. Those of older versions do not.

    Raises:
        StabilityError: the file is missing, damaged or not a store, the disk is full, or it holds another study.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "study.sqlite"
        >>> store = Store(path, {"name": "mine"})
        >>> store.add({"seed": 0}, {"value": 0.5})
        >>> Store(path).records()
        [{'seed': 0, 'value': 0.5}]
    """

    def __init__(self, path: str | PathLike[str], identity: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.ledger = ledger_at(self.path)
        if not self.ledger.exists():
            if identity is None and self.path.is_dir() and (stores := sorted(self.path.glob("*.sqlite"))):
                raise StabilityError(
                    f"{self.path} is a folder with stores in it, and none itself: give a file, such as {stores[0]}"
                )
            if identity is None and self.path.exists():
                raise StabilityError(f"{self.path} is empty: run its study again, or use another --store")
            if identity is None:
                raise StabilityError(f"there is no store {self.path}: make one with 'stability run STUDY --store {self.path}'")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StabilityError(f"cannot make the folder of {self.path}: {error}") from error
            self.ledger.create(_FORMAT, as_json(identity))
        self._format, self.identity = self._head()
        self.complete = self._format >= _COMPLETE
        if identity is not None:
            self._become(identity)

    def _head(self) -> tuple[int, dict[str, Any]]:
        heads = [(number, self._read(text)) for number, text in self.ledger.heads()]
        if len(heads) != 1 or not isinstance(heads[0][1], dict):
            raise damaged(self.path, "it does not say which study it holds")
        if heads[0][0] not in READABLE:
            raise StabilityError(f"{self.path} has format {heads[0][0]}, this program writes {_FORMAT}: use another --store")
        return heads[0]

    def _become(self, identity: Mapping[str, Any]) -> None:
        """Hold the study of this identity. It is written also where it is the same, to find out now whether that is possible."""
        self.check_complete("its table and figures can still be made; to run the study again, use another --store")

        def change() -> dict[str, str]:
            self._format, self.identity = self._head()  # another process may have changed it
            working = any(not one.gone for one in self.ledger.workers())
            # A store without a finished cell, on which nobody works, has nothing to lose: it may become that of another study.
            if self.finished() or self.ledger.claims() or working:
                self.check(identity)
            if self._format >= _FLAT:
                return {}
            if working or _locked(self.path):
                raise StabilityError(
                    f"{self.path} is of an older version, and a process of that version works on it: wait until it is done, or "
                    "use another --store"
                )
            return {key(one): as_json(record, sort_keys=False) for one, record in self.cells()}

        self.ledger.become(_FORMAT, as_json(identity), change)
        self.identity, self._format = as_stored(identity), _FORMAT

    def confirm(self) -> None:
        """Check that the store still holds the study that it was opened for: it cannot change any more while a worker is there.

        Raises:
            StabilityError: another process made it another study's before this one began to work.
        """
        mine, (_, self.identity) = self.identity, self._head()
        self.check(mine)

    def check_complete(self, remedy: str) -> None:
        """Check that the cells say what they belong to, so that they can be taken for those of a study.

        Args:
            remedy: what can be done where they do not, for the message.

        Raises:
            StabilityError: the store is of an older version.
        """
        if not self.complete:
            raise StabilityError(
                f"{self.path} is of an older version, whose results do not say which code and which data they belong to: {remedy}"
            )

    def finished(self) -> set[str]:
        """The keys (:func:`~stability.studies.identity.key`) of the finished cells, without those that are to be tried again."""
        return {name for name, (passing, _) in self.ledger.attempts().items() if not passing} if self.complete else set()

    def add(self, identity: Mapping[str, Any], record: Mapping[str, Any], passing: bool = False) -> None:
        """Write one cell at once. A finished one is left as it is; one that was to be tried again is replaced.

        Args:
            identity: what defines the cell, as plain values.
            record: what was measured, as plain values.
            passing: whether it is to be tried again, because something failed that may pass.

        Raises:
            StabilityError: the file cannot be written.
        """
        self.ledger.add([Row(key(identity), as_json(identity), as_json(record, sort_keys=False), passing)])

    def records(self) -> list[dict[str, Any]]:
        """Every cell, identity and record in one dictionary, in the order in which they were first written."""
        return [{**identity, **record} for identity, record in self.cells()]

    def cells(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Identity and record of every cell, in the order in which they were first written.

        What an older version wrote is given as this one would have written it (:mod:`stability.studies.restated`). The file is
        left as it is until a study goes on in it.
        """
        cells = [(self._read(identity), self._read(record)) for identity, record in self.ledger.cells()]
        if odd := sum(not (isinstance(identity, dict) and isinstance(record, dict)) for identity, record in cells):
            raise damaged(self.path, f"{odd} of its {len(cells)} cells hold no record")
        if self._format < _FLAT:
            check_records(self.path, (record for _, record in cells))
            cells = [(one, flat(record)) for one, record in cells]
        try:
            return cells if self._format >= _RESTATED else [(one, restated(self.identity, one, record)) for one, record in cells]
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise damaged(self.path, f"a cell lacks what it was estimated from ({error})") from error

    def rows(self) -> tuple[dict[int, str], list[tuple[str, int, bytes]]]:
        """Every cell as numbers (:meth:`stability.studies.ledger.Ledger.rows`), in the order in which they were first written."""
        if self._format >= _FLAT:
            return self.ledger.rows()
        return listed((key(one), one, record) for one, record in self.cells())

    def details(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """What the records of some cells hold in lists and dictionaries.

        Args:
            keys: the cells' (:func:`~stability.studies.identity.key`).

        Returns:
            By key, what there is by name.
        """
        if self._format >= _FLAT:
            found = self.ledger.details(keys)
        else:
            every = {key(one): record for one, record in self.cells()}
            found = {name: lists_of(every[name]) for name in keys}
        if len(found) < len(set(keys)) or not all(isinstance(one, dict) for one in found.values()):
            raise damaged(self.path, "what its cells hold in lists is missing")
        check_records(self.path, found.values())
        return found

    def times(self) -> dict[str, datetime]:
        """When each cell was finished, by its key; empty in a store of an older version, which does not tell."""
        return self.ledger.times() if self.complete else {}

    def _read(self, text: str) -> Any:
        try:
            return from_json(text)
        except ValueError as error:
            raise damaged(self.path, error) from error

    def check(self, identity: Mapping[str, Any]) -> None:
        """Check that the store holds a study. That only code was changed is no difference: its cells have other keys.

        Args:
            identity: what defines the study, as plain values.

        Raises:
            StabilityError: it holds another one; what differs is named.
        """
        if (name := difference(self.identity, identity)) == "algorithms":
            old, new = ([without_code(as_stored(one)) for one in each["algorithms"]] for each in (self.identity, identity))
            raise StabilityError(
                f"{self.path} was made for other algorithms; now it is {_changes(old, new)}: use another --store, and --reuse this "
                "one to take over what they share"
            )
        if name is not None:
            old, new = first_difference(*(without_code(as_stored(one.get(name))) for one in (self.identity, identity)))
            raise StabilityError(
                f"{self.path} was made with {name} = {old}, now it is {new}: use another --store, or the settings that it "
                "was made with"
            )
