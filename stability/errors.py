"""The errors of the toolkit, by what went wrong: the request, the measurement, the machine, or the work itself."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["MachineError", "MeasurementError", "OwnCodeError", "StabilityError", "UsageError", "described", "explained", "one_line"]

_LIBRARIES = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parent, sysconfig.get_path("stdlib")))


class StabilityError(RuntimeError):
    """The work could not be done: a file is damaged, the disk is full.

    It is the base of all errors that the toolkit raises on purpose. The command line ends with exit code 1.

    Attributes:
        exit_code: what the command line returns to the shell.

    Example:
        >>> from stability.masks import Mask
        >>> Mask.load("no-such-file")
        Traceback (most recent call last):
        stability.errors.StabilityError: cannot read no-such-file: ...
    """

    exit_code = 1


class MeasurementError(StabilityError):
    """A measurement was carried out and failed: training diverged, a minimum was not reached, a derivative is not finite.

    That is a result of the method. A study records it in the cell, goes on, and does not try again.

    Example:
        >>> issubclass(MeasurementError, StabilityError)
        True
    """


class MachineError(StabilityError):
    """The machine failed and not the method: not even one run fits into memory, a worker was killed.

    A study records it in the cell, goes on, and tries the cell again when it is run the next time.

    Example:
        >>> issubclass(MachineError, MeasurementError)
        False
    """


class UsageError(StabilityError, ValueError):
    """The request makes no sense: a sparsity of 2, an unknown name. The command line ends with exit code 2.

    It is a ``ValueError`` too, so that callers from Python may catch it as one.

    Attributes:
        exit_code: what the command line returns to the shell.

    Example:
        >>> from stability.checks import check_sparsity
        >>> check_sparsity(2)
        Traceback (most recent call last):
        stability.errors.UsageError: sparsity p = 2 is outside (0, 1]: use the fraction of parameters that may change
    """

    exit_code = 2


def one_line(error: BaseException | None, most: int | None = 200) -> str:
    """What an error of a library says, in one line.

    Args:
        error: the error.
        most: how many signs are kept; None: all.

    Example:
        >>> one_line(ValueError("no such\\n  key"), most=7)
        'no such'
    """
    return " ".join(str(error).split())[:most]


def described(error: BaseException) -> str:
    """An error in one line: what was raised, and in which line of the user's own code; without one, in which line at all.

    Args:
        error: the error.

    Example:
        >>> try:
        ...     1 / 0
        ... except ZeroDivisionError as error:
        ...     described(error)
        'ZeroDivisionError: division by zero (..., line 2, in <module>)'
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return what
    place = (_own(frames) or frames)[-1]
    return f"{what} ({place.filename}, line {place.lineno}, in {place.name})"


def _own(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The frames that are neither of the toolkit nor of Python and installed packages."""

    def foreign(frame: traceback.FrameSummary) -> bool:
        made = frame.filename == "<string>" and frame.name.startswith("__")  # the methods of dataclasses
        installed = {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)
        return made or bool(installed) or frame.filename.startswith((*_LIBRARIES, "<frozen"))

    return [frame for frame in frames if not foreign(frame)]


class OwnCodeError(UsageError):
    """A user's own selector, model or loss raised an error, or asked the toolkit for what makes no sense.

    The message names it, with file and line.

    Example:
        >>> issubclass(OwnCodeError, UsageError)
        True
    """


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what a user's own code raises into one line that names the code and the place.

    What the toolkit refuses in a call by that code gets name and place as well. Errors in which no code of the user's took part
    stay as they are. Torch's default type, and whether it takes gradients, are afterwards what they were before.

    Args:
        what: the code, as the beginning of a sentence: "selector 'mine'".

    Raises:
        OwnCodeError: the user's code raised an error.
        MachineError: memory ran out while it ran.

    Example:
        >>> with explained("selector 'mine'"):
        ...     {}["layer"]
        Traceback (most recent call last):
        stability.errors.OwnCodeError: selector 'mine' raised KeyError: 'layer' (..., line 2, in <module>)
    """
    import torch  # `import stability` alone does not

    from stability.machine import out_of_memory  # which imports these errors

    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    except (Exception, SystemExit) as error:
        own = _own(traceback.extract_tb(error.__traceback__))
        if isinstance(error, OwnCodeError | MachineError | MeasurementError) or not (own or isinstance(error, SyntaxError)):
            raise
        if out_of_memory(error):
            raise MachineError(f"memory ran out in {what}: {described(error)}") from error
        if isinstance(error, StabilityError):
            raise OwnCodeError(f"{what}: {error} ({own[-1].filename}, line {own[-1].lineno}, in {own[-1].name})") from error
        hint = "; a file beside yours is imported at the top of yours" if isinstance(error, ModuleNotFoundError) else ""
        raise OwnCodeError(f"{what} raised {described(error)}{hint}") from error
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
