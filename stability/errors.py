"""The errors of the toolkit, by what went wrong: the request, the measurement, the machine, or the work itself."""

from __future__ import annotations

__all__ = ["MachineError", "MeasurementError", "StabilityError", "UsageError"]


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
