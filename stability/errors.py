"""The two ways in which the toolkit refuses, each with the exit code that the command line gives it."""

from __future__ import annotations

__all__ = ["StabilityError", "UsageError"]


class StabilityError(RuntimeError):
    """The work could not be done: a damaged file, a diverging run, no disk space (exit code 1)."""

    exit_code = 1


class UsageError(StabilityError, ValueError):
    """What was asked for makes no sense: a sparsity of 2, an unknown name (exit code 2).

    It is a ``ValueError`` too, so that callers from Python may catch it as one.
    """

    exit_code = 2
