"""From words to a function's arguments: every command is a function, and its options are the fields of dataclasses.

The parser is cyclopts: of the libraries that read dataclasses it alone raises an exception for a refused word, so that
messages and exit codes are ours. It also takes ``-1e-3`` for a number and never completes an abbreviated option.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import fields
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

from cyclopts import App, Argument, Group, Parameter
from cyclopts.exceptions import CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError
from docstring_parser import DocstringStyle, parse

from stability import __version__
from stability.checks import check_workers
from stability.errors import UsageError

__all__ = [
    "WHOLE",
    "Flags",
    "Names",
    "Numbers",
    "RefusedOptionError",
    "Whole",
    "application",
    "called",
    "given",
    "methods",
    "names",
    "nearest",
    "options",
    "refuse_workers",
    "settings",
    "shown",
    "told",
    "words",
]

T = TypeVar("T")


def _whole(_: Any, tokens: Sequence[Any]) -> int:
    """Cyclopts itself would round 2.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


WHOLE = Parameter(converter=_whole)
"""Of an option that takes a whole number."""

Whole: TypeAlias = Annotated[int | None, WHOLE]
"""A whole number, or nothing where it is not given."""

Names: TypeAlias = Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None))]
"""One or more words after one option."""

Numbers: TypeAlias = Annotated[tuple[float, ...], Parameter(consume_multiple=(1, None))]
"""One or more numbers after one option."""

Flags: TypeAlias = Annotated[bool | None, Parameter(negative_bool="no-")]
"""A switch with its opposite, ``--dropout`` and ``--no-dropout``, or neither."""


class RefusedOptionError(UsageError):
    """An option that the command does not have.

    Attributes:
        option: the option as it was given, ``--seed``.
    """

    def __init__(self, command: str, option: str, remedy: str) -> None:
        super().__init__(f"{command} has no {option}: {remedy}")
        self._command, self.option, self._remedy = command, option, remedy

    def belonging(self, where: str) -> RefusedOptionError:
        """The same, with the place where there is such an option."""
        if self.option in _MEANT and self._remedy.startswith("did you mean"):
            return self  # the same thing has another name here
        # A longer name of this command may have been meant; a merely similar one would contradict the place that is told.
        asked = f"; {self._remedy}" if self._remedy.startswith(f"did you mean {self.option}") else ""
        return RefusedOptionError(self._command, self.option, f"{self.option} belongs to {where}{asked}")


def application(name: str, **how: Any) -> App:
    """A parser with the settings that all commands share.

    Args:
        name: what precedes the options, ``stability loo``.
        how: further settings of :class:`cyclopts.App`.

    Returns:
        The parser. A repeated option counts as it was given last; several values of one are collected.
    """
    shared = Parameter(
        negative_bool=(), negative_iterable=(), negative_none=(), allow_repeating=True, show_default=shown, show_env_var=False
    )
    return App(name=name, help_format="plaintext", version=__version__, default_parameter=shared, **how)


def shown(value: Any) -> str | None:
    """A default as ``--help`` shows it; None for one that is not worth showing.

    Example:
        >>> shown(0.005), shown(("cb", "rte")), shown(False)
        ('0.005', 'cb rte', None)
    """
    if value is None or value is False or value == ():
        return None
    if isinstance(value, tuple):
        return " ".join("=".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def names(app: App) -> set[str]:
    """The options of a parser without commands, as they are written: ``--steps``."""
    return _names(app.assemble_argument_collection(parse_docstring=False))


def _names(arguments: Iterable[Argument]) -> set[str]:
    return {name for argument in arguments if argument.parse for name in argument.names if name.startswith("--")}


def called(app: App, arguments: Sequence[str]) -> Any:
    """Parse the arguments and call the command.

    Args:
        app: the parser.
        arguments: words of the command line.

    Returns:
        What the command returned; None where ``--help`` was asked for.

    Raises:
        RefusedOptionError: the command has no such option.
        UsageError: another word that the parser refuses.

    Example:
        >>> app = application("greet")
        >>> @app.default
        ... def greet(name: str, /, *, times: int = 1) -> str:
        ...     return " ".join([name] * times)
        >>> called(app, ["Ada", "--times", "2"])
        'Ada Ada'
        >>> called(app, ["Ada", "--time", "2"])
        Traceback (most recent call last):
        ...
        stability.cli.parsing.RefusedOptionError: greet has no --time: did you mean --times?
    """
    try:
        command, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise _refusal(app, error, arguments) from None
    before = _WORDS.set(tuple(arguments))
    try:
        return command(*bound.args, **bound.kwargs)
    finally:
        _WORDS.reset(before)


def refuse_workers(command: str, arguments: Sequence[str]) -> None:
    """Refuse workers that make no sense, before the command itself is imported and reads data: that takes seconds or minutes.

    Args:
        command: one that has workers.
        arguments: its words.

    Raises:
        UsageError: a number of workers, an executor or an address that makes no sense.

    Example:
        >>> refuse_workers("run", ["digits", "--workers", "0"])
        Traceback (most recent call last):
        ...
        stability.errors.UsageError: workers = 0: use a whole number of at least 1
    """
    app = application(f"stability {command}", help_flags=(), version_flags=())
    app.default(_workers)
    called(app, arguments)


def _workers(
    *others: Annotated[str, Parameter(allow_leading_hyphen=True)],
    workers: Whole = None,
    executor: str = "local",
    address: str | None = None,
) -> None:
    check_workers(workers, executor, address)


_WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


def words(**changed: object) -> str:
    """The command that is being carried out, with some options changed: what a user could type next.

    Args:
        changed: options by their names in Python, with the new value; None leaves the option out.

    Example:
        >>> app = application("greet")
        >>> @app.default
        ... def greet(name: str, /, *, times: int = 1) -> str:
        ...     return words(times=times + 1)
        >>> called(app, ["Ada L.", "--times=2"])
        "stability 'Ada L.' --times 3"
    """
    left, new = list(_WORDS.get()), {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    kept: list[str] = []
    while left:
        word = left.pop(0)
        if word.partition("=")[0] not in new:
            kept.append(word)
        elif "=" not in word:
            left = left[1:]
    added = [str(part) for name, value in new.items() if value is not None for part in (name, value)]
    return shlex.join(["stability", *kept, *added])


def _refusal(app: App, error: CycloptsError, arguments: Sequence[str]) -> UsageError:
    command = " ".join([*app.name, *(error.command_chain or ())]).removeprefix("stability ")
    error.verbose = False
    if isinstance(error, UnknownCommandError):
        return UsageError(str(error))
    if isinstance(error, UnknownOptionError):
        return _unknown(command, error.token.keyword or error.token.value, error.argument_collection, arguments)
    # A required option that is missing is often one that was misspelt.
    left = error.unused_tokens or ()
    known = [] if error.app is None else list(error.app.assemble_argument_collection(parse_docstring=False))
    if odd := [word for word in left if word.startswith("--") and word.split("=")[0] not in _names(known)]:
        return _unknown(command, odd[0], known, arguments)
    if isinstance(error, UnusedCliTokensError):
        return UsageError(f"{command} does not take {' '.join(left)!r}: leave it out")
    text = str(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None and "at most" not in text:
        loose = [word for word in arguments[1:2] if not word.startswith("-")]
        if loose and error.argument.name == "--selector":
            return UsageError(f"{command}: the method is named after --selector: {command} --selector {loose[0]}")
        return UsageError(f"{command}: {error.keyword or error.argument.name} needs a value; see 'stability {command} --help'")
    return UsageError(f"{command}: {text[0].lower()}{text[1:].removesuffix('.')}")


_MEANT = {
    "--lr": "learning-rate",
    "--p": "sparsity",
    "--sparsity": "sparsities",
    "--epochs": "steps",
    "--method": "selector",
    "--methods": "selectors",
}
"""Options by the names that other programs and other commands have for them."""

_NAMING = ("--method", "--methods", "--selector", "--selectors", "--add", "--option")
"""What other commands name methods with."""


def _unknown(command: str, word: str, arguments: Iterable[Argument], given: Sequence[str]) -> RefusedOptionError:
    option, known = word.split("=")[0], _names(arguments)
    meant = next((f"--{one}" for one in (_MEANT.get(option, ""), f"{_MEANT.get(option, '')}s") if f"--{one}" in known), None)
    remedy = f"did you mean {meant}?" if meant else nearest(option, known)
    if command == "compare" and option in _NAMING:
        remedy = "methods come without an option, their settings after them: compare full lora rank=4 sam sparsity=0.05"
    if not remedy and (where := _METHODS.get(command.split()[0])) is not None:
        remedy = _of_a_method(option, where, given)
    return RefusedOptionError(command, option, remedy or f"see 'stability {command} --help'")


_METHODS = {"loo": "--selector ", "select": "--selector ", "run": "--selectors ", "compare": ""}
"""After which word each command takes methods and their settings."""


def _of_a_method(option: str, where: str, given: Sequence[str]) -> str:
    """What to write where a setting of a method was given as an option of the command; empty where no method has it."""
    from stability.selectors.naming import having

    name = option.removeprefix("--").replace("-", "_")
    if not (owners := having(name)):
        return ""
    place = next((place for place, one in enumerate(given) if one.partition("=")[0] == option), len(given))
    values = [one.partition("=")[2] for one in given[place : place + 1]] + list(given[place + 1 : place + 2])
    value = next((one for one in values if one and not one.startswith("--")), "VALUE")
    named = next((one for one in owners if one in given), owners[0])
    return f"it is a setting of {' and '.join(owners)}, written after the method: {where}{named} {name}={value}"


def nearest(word: str, known: Collection[str]) -> str:
    """The question whether a known word was meant: one that begins so, or the most similar. Empty where none is similar.

    Example:
        >>> nearest("--seed", ["--seeds", "--steps"])
        'did you mean --seeds?'
    """
    found = [name for name in sorted(known) if name.startswith(word)] or difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"did you mean {found[0]}?" if found else ""


def options(group: Group, *owners: Callable[..., Any], varied: Collection[str] = ()) -> Callable[[type[T]], type[T]]:
    """Declare that the fields of a dataclass are options.

    The help of a field is what the dataclass itself says of it under ``Attributes:``. A field of which it says nothing has
    the help, and the default, of the setting of the same name of one of the ``owners``.

    Args:
        group: under which ``--help`` lists the options.
        owners: classes or functions to whose settings the options are handed on.
        varied: settings whose default is not the owner's, because it depends on the problem.

    Returns:
        A decorator of dataclasses.
    """

    def declared(made: type[T]) -> type[T]:
        made.__doc__ = _documented(made, owners, varied)
        # Cyclopts reads the annotations of inherited fields in the module of the heir, which need not know their names.
        made.__init__.__annotations__ = get_type_hints(made, include_extras=True)
        return Parameter(name="*", group=group)(made)

    return declared


def _documented(made: type[Any], owners: Sequence[Callable[..., Any]], varied: Collection[str]) -> str:
    own = {name: text for base in reversed(made.__mro__) for name, text in _described(base).items()}
    for owner in owners:
        own = {**_with_defaults(owner, varied), **own}
    lines = [f"    {field.name}: {own[field.name]}" for field in fields(made) if field.name in own]
    return "\n".join([(made.__doc__ or "").split("\n")[0], "", "Attributes:", *lines])


def _with_defaults(owner: Callable[..., Any], varied: Collection[str]) -> dict[str, str]:
    parameters, found = inspect.signature(owner).parameters, told(owner)
    for name, text in found.items():
        default = parameters[name].default if name in parameters and name not in varied else None
        if isinstance(default, (int, float, str)) and not isinstance(default, bool) and "default" not in text:
            found[name] = f"{text}; by default {shown(default)}"
    return found


def told(owner: Callable[..., Any]) -> dict[str, str]:
    """What the docstring of a class or function says of each setting, by name: its first sentence, and what the default is.

    Example:
        >>> told(settings)
        {'words': 'Each of the form NAME=VALUE'}
    """
    found = {}
    for name, text in _described(owner).items():
        first, *rest = re.split(r"\.\s+(?=[A-Z])", text)
        first += next((f"; {one[0].lower()}{one[1:]}" for one in rest if one.startswith("By default")), "")
        first = re.sub(r"[;,:] None\b[^;]*$", "", first)  # what None means is of no use at a terminal
        if first.startswith("Of "):  # the name is the subject of the sentence: "learning_rate: of AdamW"
            first = f"{name.replace('_', ' ').capitalize()} o{first[1:]}"
        found[name] = first
    return found


def _described(owner: Any) -> dict[str, str]:
    """What a docstring says of each argument or attribute, without the marks of the documentation."""
    if not owner.__doc__:
        return {}
    found = parse(inspect.cleandoc(owner.__doc__), style=DocstringStyle.GOOGLE).params
    texts = {param.arg_name: _plain(param.description or "") for param in found}
    options = {name: f"--{name.replace('_', '-')}" for name in texts if "_" in name}
    return {name: re.sub(r"\w+", lambda word: options.get(word[0], word[0]), text) for name, text in texts.items()}


def _plain(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", " ".join(text.split())).replace("``", "")
    first = re.match(r"[a-z]{2,}\b", text)  # no symbol: p, λ
    return (text[0].upper() + text[1:] if first else text).removesuffix(".")


def given(group: Any, *without: str) -> dict[str, Any]:
    """The options of a group that were given, by name.

    Args:
        group: an instance of a dataclass of options.
        without: names of fields to leave out.

    Returns:
        The values of the other fields that are neither None nor ().
    """
    found = {field.name: getattr(group, field.name) for field in fields(group) if field.name not in without}
    return {name: value for name, value in found.items() if value is not None and value != ()}


def methods(words: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """``full lora rank=4`` → each method with its own settings, which follow it. Words may be joined: ``"lora rank=4"``.

    Args:
        words: names of methods, each with any settings of the form NAME=VALUE after it.

    Raises:
        UsageError: a setting comes before any method, or twice after one.

    Example:
        >>> methods(["full", "lora rank=4", "sam", "sparsity=0.01,0.1"])
        [('full', {}), ('lora', {'rank': 4}), ('sam', {'sparsity': [0.01, 0.1]})]
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for word in (part for joined in words for part in joined.split()):
        if "=" not in word:
            found.append((word, {}))
            continue
        ((name, value),) = settings([word])
        if not found:
            raise UsageError(f"{word!r} is a setting and stands before any method: write it after its own, such as lora rank=4")
        if name in found[-1][1]:
            raise UsageError(f"{found[-1][0]} has {name} twice: leave one out")
        if name == "sparsity" and isinstance(value, str):
            with suppress(json.JSONDecodeError):
                value = json.loads(f"[{value}]")
        found[-1][1][name] = value
    return found


def settings(words: Sequence[str]) -> list[tuple[str, Any]]:
    """``NAME=VALUE`` → name and value, which is JSON or a word.

    Args:
        words: each of the form NAME=VALUE.

    Raises:
        UsageError: something of another form.

    Example:
        >>> settings(["rank=4", "scope=tensor"])
        [('rank', 4), ('scope', 'tensor')]
    """
    found: list[tuple[str, Any]] = []
    for text in words:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"{text!r} is not of the form NAME=VALUE")
        try:
            found.append((name, json.loads(value)))
        except json.JSONDecodeError:
            found.append((name, value))
    return found
