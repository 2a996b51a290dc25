"""Which code decides: a digest of what a user's own functions and classes do, so that no result passes for that of other code.

The toolkit's own code is not in it: :data:`stability.studies.study.NUMERICS` stands for that. Installed packages are in it by name.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
import uuid
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch

from stability.masks import fingerprint

__all__ = ["UNKNOWN", "code_of", "plain"]

UNKNOWN = "unknown"
"""How the digest begins of code that holds a value which no later run could compare. It is another one in every process."""

_SESSION = uuid.uuid4().hex
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})
_TOOLKIT = __name__.partition(".")[0]
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_SAID_ELSEWHERE = {  # where a class is and how it looks from outside; what it does is in its methods
    *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__slots__", "__firstlineno__", "__static_attributes__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__orig_bases__", "__parameters__"),
    *("__slotnames__", "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__match_args__"),
}


def code_of(entry: object, *values: object) -> str | None:
    """Digest of the code that a method runs, and of the values that this code holds.

    A function counts with its compiled code, its defaults, the variables that it captured, and the functions, classes and values
    that it names in modules of the user's own; a class with its methods and its base classes; an object with its class and its
    state. A comment or the place in a file does not count. Code of the toolkit, of Python and of installed packages counts by its
    name alone, unless ``entry`` is of that package.

    Args:
        entry: the function or class of the method.
        values: what it was made with.

    Returns:
        16 hexadecimal digits; None where the entry and all code that it runs are the toolkit's, and all values are plain. It
        begins with :data:`UNKNOWN` where a value cannot be compared with that of a later run, such as a lock or an open file.

    Example:
        >>> def scale(by):
        ...     return lambda problem, generator: {name: by * t for name, t in problem.pretrained.items()}
        >>> code_of(scale(0.1)) == code_of(scale(0.1)), code_of(scale(0.1)) == code_of(scale(0.9))
        (True, False)
    """
    walk = _Walk({_package(entry)} - {_TOOLKIT, "builtins"})
    walk.take((entry, *values))
    if not walk.own:
        return None
    digest = walk.digest.hexdigest()[:16]
    return f"{UNKNOWN} {digest}: {', '.join(sorted(walk.unknown))}" if walk.unknown else digest


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
    if isinstance(value, (*_PLAIN, np.generic)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if inspect.isroutine(value) or inspect.isclass(value):
        # A worker process calls the script that was started by another name.
        return f"{str(value.__module__).replace('__mp_main__', '__main__')}:{value.__qualname__}"
    return type(value).__qualname__


def _package(one: Any) -> str:
    """The package of a function, of a class, or of what was made of one."""
    while isinstance(one, functools.partial):
        one = one.func
    one = one if inspect.isroutine(one) or inspect.isclass(one) else type(one)
    return str(one.__module__).partition(".")[0]


class _Walk:
    """Takes values into one digest.

    Args:
        packages: those whose code counts by what it does, although they are installed.

    Attributes:
        digest: of what was taken.
        own: whether there was more than code of the toolkit and plain values.
        unknown: the types of values that no later run could compare.
    """

    def __init__(self, packages: set[str]) -> None:
        self.digest, self.own = hashlib.sha256(), False
        self.unknown: set[str] = set()
        self._packages = packages
        self._seen: dict[int, tuple[int, object]] = {}  # with the object, which must live so that no other gets its id

    def take(self, value: Any) -> None:
        """Take a value with all that it holds; what was taken before is named only, so that circles end."""
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, _PLAIN):
            self._say(type(value).__name__, repr(value))
        elif type(value) is tuple:
            self._say("tuple", str(len(value)))
            for one in value:
                self.take(one)
        elif isinstance(value, (set, frozenset)):
            self._say("set", *sorted(self._apart(one) for one in value))
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif id(value) in self._seen:
            self._say("seen", str(self._seen[id(value)][0]))
        else:
            self._seen[id(value)] = (len(self._seen), value)
            self._take_once(value)

    def _take_once(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self.own = True
            self._say("tensor", fingerprint({"": value}))
        elif isinstance(value, torch.Generator):
            self.take(("generator", value.get_state()))
        elif type(value) is list:
            self.take(("list", *value))
        elif type(value) in (dict, types.MappingProxyType):
            self.take(("dict", *value.items()))
        elif isinstance(value, types.ModuleType):
            self._say("module", value.__name__)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.MethodType):
            self.take(("method", value.__func__, value.__self__))
        elif isinstance(value, (staticmethod, classmethod)):
            self.take((type(value).__name__, value.__func__))
        elif isinstance(value, property):
            self.take(("property", value.fget, value.fset, value.fdel))
        elif isinstance(value, functools.cached_property):
            self.take(("cached property", value.func))
        elif callable(value) and hasattr(value, "__wrapped__"):  # functools.cache and its like
            self.take((type(value).__name__, value.__wrapped__))
        elif inspect.isroutine(value):  # written in C
            self._say("builtin", str(value.__module__), value.__qualname__)
        else:
            self._object(value)

    def _say(self, *words: str) -> None:
        for word in words:
            self.digest.update(f"{len(word)}:{word}".encode(errors="surrogatepass"))

    def _apart(self, value: Any) -> str:
        """The digest of one value alone: a set has no order in which its values could be taken."""
        other = _Walk(self._packages)
        other.take(value)
        self.own, self.unknown = self.own or other.own, self.unknown | other.unknown
        return other.digest.hexdigest()

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
        return not place.startswith(_INSTALLED)

    def _function(self, value: types.FunctionType) -> None:
        if self._by_name(value):
            self._say("function", value.__module__, value.__qualname__)
            return
        self.own = True
        self._say("function", value.__qualname__)
        self.take((value.__code__, value.__defaults__, value.__kwdefaults__))
        for cell in value.__closure__ or ():
            try:
                self.take(cell.cell_contents)
            except ValueError:  # a variable without a value yet
                self._say("empty")
        self._named(_names(value.__code__), value.__globals__)

    def _code(self, code: types.CodeType) -> None:
        """What is executed. Not the file and the lines, which say where it is."""
        self._say(code.co_name, code.co_code.hex(), code.co_exceptiontable.hex())
        self.take((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
        self.take((code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_consts))

    def _named(self, names: frozenset[str], where: Mapping[str, Any]) -> None:
        """The values that these names have in a module, and in modules of the user's own among them."""
        for name in sorted(names & where.keys()):
            value = where[name]
            self._say("named", name)
            new = id(value) not in self._seen
            self.take(value)
            if new and isinstance(value, types.ModuleType) and self._is_own(value.__name__.partition(".")[0]):
                self._named(names, vars(value))

    def _class(self, value: type) -> None:
        if self._by_name(value):
            self._say("class", value.__module__, value.__qualname__)
            return
        self.own = True
        self._say("class", value.__qualname__)
        self.take(value.__bases__)
        for name, part in sorted(vars(value).items()):
            if name not in _SAID_ELSEWHERE and not isinstance(part, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                self._say(name)
                self.take(part)

    def _object(self, value: Any) -> None:
        """Class and state, as they would be pickled."""
        kind = type(value)
        try:
            parts = value.__reduce_ex__(4)
        except Exception:  # whatever is said by an object that cannot be pickled
            self.own = True
            self.unknown.add(kind.__qualname__)
            self._say("unknown", kind.__qualname__, _SESSION)
            return
        self.own = self.own or _package(kind) != _TOOLKIT
        if isinstance(parts, str):
            self._say("object", kind.__module__, parts)
        else:
            made, arguments, state, items, entries = (*parts, None, None, None)[:5]
            self.take((None if made is copyreg.__newobj__ else made, arguments, state))  # type: ignore[attr-defined]
            self.take((*(items or ()), *(entries or ())))


def _names(code: types.CodeType) -> frozenset[str]:
    """The names that code uses, functions inside of it included."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return frozenset(code.co_names).union(*inner)
