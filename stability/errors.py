"""How the toolkit refuses: what was asked makes no sense, a measurement failed, or the work could not be done."""

from __future__ import annotations

__all__ = ["MeasurementError", "StabilityError", "UsageError"]


class StabilityError(RuntimeError):
    """The work could not be done: a damaged file, no disk space, no memory (exit code 1)."""

    exit_code = 1


class MeasurementError(StabilityError):
    """A measurement was carried out and failed: training diverged, a minimum was not reached, a derivative is not finite.

    It is a result about the method that was measured. A study records it in the cell and goes on.
    """


class UsageError(StabilityError, ValueError):
    """What was asked for makes no sense: a sparsity of 2, an unknown name (exit code 2).

    It is a ``ValueError`` too, so that callers from Python may catch it as one.
    """

    exit_code = 2
