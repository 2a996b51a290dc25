"""Modules of the user's own, sent along with what needs them to the machines of a cluster."""

from __future__ import annotations

import inspect
import io
import pickle
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

__all__ = ["Source", "know", "pack", "sources_of"]


class Source(NamedTuple):
    """Modules of the user's own.

    Attributes:
        folder: where they lie on the machine of the driver.
        files: by the path of each in that folder, what it holds.
    """

    folder: str
    files: Mapping[str, bytes]


def pack(what: object) -> tuple[bytes, frozenset[str]]:
    """Pickle something for another machine.

    Args:
        what: the object. Functions and classes of a script or a notebook are sent as they stand.

    Returns:
        The bytes, and the names of the modules of its other functions and classes.
    """
    modules: set[str] = set()
    cloudpickle = import_module("ray.cloudpickle")

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc, name-defined]
        """Takes note of modules."""

        def persistent_id(self, one: object) -> None:
            if inspect.isroutine(one) or inspect.isclass(one):
                modules.add(str(getattr(one, "__module__", "")))

    Pickler(written := io.BytesIO(), protocol=pickle.HIGHEST_PROTOCOL).dump(what)
    return written.getvalue(), frozenset(modules)


_INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def _folder(module: ModuleType) -> Path | None:
    """Where a module of the user's own lies, from where its name leads to it; None for one that every machine has."""
    file = Path(getattr(module, "__file__", None) or "")
    name = module.__name__
    if file.suffix != ".py" or name.partition(".")[0] in ("stability", "__main__", "__mp_main__"):
        return None
    if {"site-packages", "dist-packages"} & set(file.parts) or any(file.is_relative_to(place) for place in _INSTALLED):
        return None
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[depth] if file.is_file() and len(file.parents) > depth else None


def sources_of(modules: Iterable[str]) -> list[Source]:
    """The user's own among some modules, and all that was imported from where they lie.

    Args:
        modules: their names.

    Returns:
        One for each folder in which such modules lie.
    """
    there = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    loaded = [(module, folder) for module in there if (folder := _folder(module)) is not None]
    wanted = {folder for module, folder in loaded if module.__name__ in modules}
    found = []
    for folder in sorted(wanted):
        files = {Path(str(module.__file__)) for module, place in loaded if place == folder}
        found.append(Source(str(folder), {str(file.relative_to(folder)): file.read_bytes() for file in files}))
    return found


class _Sent(MetaPathFinder, InspectLoader):
    """Finds modules that were sent, without a file.

    Args:
        source: the modules.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return None if self._file(name) is None else ModuleSpec(name, self, is_package=self.is_package(name))

    def get_source(self, fullname: str) -> str:
        return self._source.files[self._file(fullname) or ""].decode()

    def get_code(self, fullname: str) -> CodeType:
        # Under the name that it has on the driver's machine, which a message about an error then tells.
        file = self._file(fullname) or ""
        return self.source_to_code(self._source.files[file], str(Path(self._source.folder) / file))

    def is_package(self, fullname: str) -> bool:
        return (self._file(fullname) or "").endswith("__init__.py")

    def _file(self, name: str) -> str | None:
        stem = name.replace(".", "/")
        return next((file for file in (f"{stem}/__init__.py", f"{stem}.py") if file in self._source.files), None)


_known: list[Source] = []  # what was sent to this process


def know(source: Source) -> None:
    """Let this process import modules: from their folder, where it lies here as well, and else from what was sent.

    Args:
        source: the modules.
    """
    if source in _known:
        return
    _known.append(source)
    folder = Path(source.folder)
    try:
        here = all((folder / name).read_bytes() == content for name, content in source.files.items())
    except OSError:  # it is not here
        here = False
    if not here:
        sys.meta_path.insert(0, _Sent(source))  # before the driver's folder, which Ray has put first: another version may lie there
    elif source.folder not in sys.path:
        sys.path.append(source.folder)  # last, so that no file in it hides a package
