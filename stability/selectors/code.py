"""Which code decides: a digest of what a user's own functions and classes do, so that no result passes for that of other code.

The toolkit's own code is not in it: :data:`stability.studies.study.NUMERICS` stands for that. Installed packages are in it by name.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import inspect
import sys
import types
import uuid
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from stability.masks import fingerprint
from stability.selectors.scope import Scope

__all__ = ["CODE", "UNKNOWN", "code_of", "plain"]

CODE = "digest of code"
"""The entry of an identity that holds the digest. No setting is called so, because this is no name."""
UNKNOWN = "unknown"
"""How the digest of code begins that holds a value which no later run could compare with its own."""

_SESSION = uuid.uuid4().hex
_TOOLKIT = __name__.partition(".")[0]
_PLAIN = (type(None), bool, int, float, complex, str, type(Ellipsis))
_CACHED = type(functools.cache(len))
_SAID_ELSEWHERE = {  # where a class is and how it looks from outside; what it does is in its methods
    *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__slots__", "__firstlineno__", "__static_attributes__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__orig_bases__", "__parameters__"),
    *("__slotnames__", "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__match_args__"),
}


def code_of(entry: object, *values: object, state: bool = True) -> str | None:
    """Digest of the code that a method runs, and of the values that this code holds.

    A function counts with its compiled code, its defaults and attributes, the variables that it captured, and the functions,
    classes and values that it names in modules of the user's own; a class with its methods and its base classes; an object with
    its class and its state. A comment, a docstring or the place in a file does not count. Code of the toolkit, of Python and of
    installed packages counts by its name alone, unless ``entry`` is of that package.

    Args:
        entry: the function or class of the method.
        values: what it was made with.
        state: whether values that may change while the code runs count. Without them it is the digest of the code alone, in which
            two processes agree.

    Returns:
        16 hexadecimal digits; None where the entry and all code that it runs are the toolkit's, and all values are plain. They
        begin with :data:`UNKNOWN` where a value cannot be compared with that of a later run, such as a lock or an open file.
        Every process then has another digest.

    Example:
        >>> def scale(by):
        ...     return lambda problem, generator: {name: by * t for name, t in problem.pretrained.items()}
        >>> code_of(scale(0.1)) == code_of(scale(0.1)), code_of(scale(0.1)) == code_of(scale(0.9))
        (True, False)
    """
    walk = _Walk({_package(entry)} - {_TOOLKIT, "builtins"}, state)
    try:
        digest = walk.of((entry, *values))
    except Exception as error:  # whatever a user's objects do when they are looked at, RecursionError among it
        digest = walk.no_idea_of(type(error).__name__)
    if not walk.own:
        return None
    return f"{UNKNOWN} {digest[:16]}: {', '.join(sorted(walk.unknown))}" if walk.unknown else digest[:16]


def plain(value: Any) -> Any:
    """A setting as JSON can hold it: a function or a class as ``module:name``, any other object by its type.

    Args:
        value: the setting.

    Example:
        >>> plain(len), plain(0.5), plain(torch.ones(2))
        ('builtins:len', 0.5, 'Tensor')
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Scope):
        return value.settings()
    if isinstance(value, (*_PLAIN, np.generic)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if inspect.isroutine(value) or inspect.isclass(value):
        # A worker process calls the script that was started by another name.
        return f"{_home(value).replace('__mp_main__', '__main__')}:{value.__qualname__}"
    return type(value).__qualname__


def _home(value: Any) -> str:
    """The module of a function or class; that of the class to which a method written in C belongs."""
    owner = getattr(value, "__objclass__", value)
    return str(getattr(owner, "__module__", None) or getattr(type(getattr(value, "__self__", None)), "__module__", None))


def _package(one: Any) -> str:
    """The package of a function, of a class, or of what was made of one."""
    while isinstance(one, functools.partial):
        one = one.func
    return _home(one if inspect.isroutine(one) or inspect.isclass(one) else type(one)).partition(".")[0]


class _Names(NamedTuple):
    """The names that code uses, functions inside of it included."""

    values: frozenset[str]
    attributes: frozenset[str]


class _Walk:
    """Gives every value a digest of its own, made of those of all that it holds.

    Args:
        packages: those whose code counts by what it does, although they are installed.
        state: whether values that may change while code runs count.

    Attributes:
        own: whether there was more than code of the toolkit and plain values.
        unknown: the types of values that no later run could compare.
    """

    def __init__(self, packages: set[str], state: bool) -> None:
        self.own = False
        self.unknown: set[str] = set()
        self._packages, self._state = packages, state
        self._known: dict[int, tuple[str, object]] = {}  # with the object, which must live so that no other gets its id
        self._open: dict[int, int] = {}  # how deep the values are that are being looked at: a circle ends there

    def of(self, value: Any) -> str:
        """The digest of a value with all that it holds: the same for equal values, shared or not."""
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, _PLAIN):
            return _digest(type(value).__name__, repr(value))
        if isinstance(value, bytes):
            return _digest("bytes", value)
        if (place := id(value)) in self._known:
            return self._known[place][0]
        if place in self._open:
            return _digest("circle", str(len(self._open) - self._open[place]))
        self._open[place] = len(self._open)
        try:
            found = self._of_more(value)
        finally:
            del self._open[place]
        self._known[place] = (found, value)
        return found

    def no_idea_of(self, what: str) -> str:
        """The digest of what cannot be compared."""
        self.own = True
        if self._state:
            self.unknown.add(what)
        return _digest("unknown", what, _SESSION if self._state else "")

    def _all(self, kind: str, values: Iterable[Any]) -> str:
        return _digest(kind, *(self.of(one) for one in values))

    def _of_more(self, value: Any) -> str:
        if type(value) is tuple:
            return self._all("tuple", value)
        if isinstance(value, frozenset):
            return _digest("set", *sorted(self.of(one) for one in value))
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.ModuleType):
            return _digest("module", value.__name__)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.MethodType):
            return self._all("method", (value.__func__, value.__self__))
        if isinstance(value, (staticmethod, classmethod)):
            return self._all(type(value).__name__, (value.__func__,))
        if isinstance(value, property):
            return self._all("property", (value.fget, value.fset, value.fdel))
        if isinstance(value, functools.cached_property):
            return self._all("cached property", (value.func,))
        if isinstance(value, _CACHED):
            return self._all("cached", (value.__wrapped__,))
        if isinstance(value, functools.partial):
            return self._all("partial", (value.func, value.args, tuple(value.keywords.items())))
        if inspect.isroutine(value):  # written in C
            return _digest("builtin", _home(value), value.__qualname__)
        return self._held(value) if self._state else self._all("of", (type(value),))

    def _held(self, value: Any) -> str:
        """The digest of a value that may change."""
        if isinstance(value, torch.Tensor):
            self.own = True
            return _digest("tensor", fingerprint({"": value}))
        if isinstance(value, torch.Generator):
            return self._all("generator", (value.get_state(),))
        if type(value) is list:
            return self._all("list", value)
        if type(value) is set:
            return _digest("set", *sorted(self.of(one) for one in value))
        if type(value) in (dict, types.MappingProxyType):
            return self._all("dict", value.items())
        return self._object(value)

    def _by_name(self, value: Any) -> bool:
        """Whether a function or class counts by its name: another package has it there."""
        found: Any = sys.modules.get(value.__module__)
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        return found is value and not self._is_own(_package(value))

    def _is_own(self, package: str) -> bool:
        """Whether a package's code counts by what it does."""
        if package in self._packages or package not in sys.modules:
            return True
        if package == _TOOLKIT or package in sys.stdlib_module_names:
            return False
        module = sys.modules[package]
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
        return not {"site-packages", "dist-packages"} & set(Path(place).parts)

    def _function(self, value: types.FunctionType) -> str:
        if self._by_name(value):
            return _digest("function", value.__module__, value.__qualname__)
        self.own = True
        captured = []
        for cell in value.__closure__ or ():
            try:
                captured.append(self.of(cell.cell_contents))
            except ValueError:  # a variable without a value yet
                captured.append("")
        made_of = self._all("made of", (value.__code__, value.__defaults__, value.__kwdefaults__, vars(value) or None))
        return _digest("function", value.__qualname__, made_of, *captured, *self._named(_names(value.__code__), value.__globals__))

    def _code(self, code: types.CodeType) -> str:
        """What is executed. Not the file and the lines, which say where it is, and no docstring, which is never loaded."""
        loaded = {place.arg for place in dis.get_instructions(code) if place.opcode in dis.hasconst}
        constants = tuple(one if place in loaded else None for place, one in enumerate(code.co_consts))
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount)
        counts = (code.co_flags, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable, code.co_code)
        return self._all("code", (code.co_name, names, counts, constants))

    def _named(self, names: _Names, where: Mapping[str, Any], around: frozenset[int] = frozenset()) -> list[str]:
        """The values that names have in a module, and what is named in modules of the user's own among them."""
        found = []
        for name in sorted(names.values & where.keys()):
            value = where[name]
            # Not __name__ and its like, which tell where and not what; a number may be that of the time at which it was imported.
            if name.startswith("__") or (not self._state and isinstance(value, _PLAIN)):
                continue
            found += [name, self.of(value)]
            if isinstance(value, types.ModuleType) and id(value) not in around and self._is_own(value.__name__.partition(".")[0]):
                found += self._named(_Names(names.attributes, names.attributes), vars(value), around | {id(value)})
        return found

    def _class(self, value: type) -> str:
        if self._by_name(value):
            return _digest("class", value.__module__, value.__qualname__)
        self.own = True
        parts = []
        for name, part in sorted(vars(value).items()):
            if name not in _SAID_ELSEWHERE and not isinstance(part, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                parts += [name, self.of(part)]
        return _digest("class", value.__qualname__, self.of(value.__bases__), *parts)

    def _object(self, value: Any) -> str:
        """Class and state, as they would be pickled."""
        kind = type(value)
        try:
            reduced = copyreg.dispatch_table.get(kind)
            parts = value.__reduce_ex__(4) if reduced is None else reduced(value)
        except Exception:  # whatever is said by an object that cannot be pickled
            return self.no_idea_of(kind.__qualname__)
        self.own = self.own or _package(kind) != _TOOLKIT
        if isinstance(parts, str):
            return _digest("object", kind.__module__, parts)
        made, arguments, state, items, entries = (*parts, None, None, None)[:5]
        made = None if made is copyreg.__newobj__ else made  # type: ignore[attr-defined]
        return self._all("object", (made, arguments, state, *(items or ()), *(entries or ())))


def _digest(*parts: str | bytes) -> str:
    """One digest of some, and of words."""
    digest = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else part.encode(errors="surrogatepass")
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()


def _names(code: types.CodeType) -> _Names:
    """The names that code loads from its module, and those that it looks up in other values."""
    values, attributes = set(), set()
    for place in dis.get_instructions(code):
        if place.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            values.add(str(place.argval))
        elif place.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(str(place.argval))
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            inner = _names(part)
            values |= inner.values
            attributes |= inner.attributes
    return _Names(frozenset(values), frozenset(attributes))
