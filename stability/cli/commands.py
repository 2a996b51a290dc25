"""The command ``stability``. Exit code 0: done; 1: it failed; 2: what was asked for makes no sense; 130 or 143: stopped."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from stability.errors import StabilityError, UsageError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": ("stability.cli.run:run", "Run a study, or go on with one; print its table."),
    "loo": ("stability.cli.loo:loo", "Measure the leave-one-out stability of one method."),
    "compare": ("stability.cli.compare:compare", "Compare several methods, each with its own settings."),
    "select": ("stability.cli.select:select", "Choose a mask, and save or describe it."),
    "bounds": ("stability.cli.bounds:bounds", "Compute Theorem 1, and with a loss also Theorem 2, for given constants."),
    "figures": ("stability.cli.figures:figures", "Draw the figures of a store, or those of the paper's published numbers."),
    "table": ("stability.cli.table:table", "Print the table of a store, or one of the paper's."),
    "claims": ("stability.cli.claims:claims", "Put the paper's claims to the results of stores: effects, intervals, verdicts."),
    "report": ("stability.cli.report:report", "Write a study as one page of HTML: table, figures, settings, failures."),
    "status": ("stability.cli.status:status", "Tell how far the study of a store is; it may be running."),
    "export": ("stability.cli.export:export", "Write a store as a tidy table: CSV, JSON or Parquet."),
    "verify": ("stability.cli.verify:verify", "Compute some cells of a store again, and compare them with what is stored."),
    "repair": ("stability.cli.repair:repair", "Keep what can be read of a damaged store."),
    "list": ("stability.cli.about:names", "Name the problems, methods and studies."),
    "doctor": ("stability.cli.about:doctor", "Tell the versions, devices and threads of this machine."),
}
"""The function of each command, imported when it is called, and what it does."""

_WITH_WORKERS = ("run", "loo", "compare")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``stability``; by default those of the command line.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have signs that the terminal cannot show
    try:
        with _terminable():
            _call(words)
        sys.stdout.flush()
    except StabilityError as error:
        return _failed(str(error), error.exit_code)
    except SystemExit:
        if not {"--help", "-h", "--version"} & set(words):
            raise
        return 0  # rich, which prints help, ends the program where the reader has gone
    except BrokenPipeError as error:
        return 0 if _reader_gone() else _failed(str(error), 1)
    except OSError as error:
        return _failed(f"{error}; what was finished is kept", 1)
    except (KeyboardInterrupt, _StoppedError) as error:
        kept = "; what is finished is kept, and the same command goes on from there" if words[:1] in (["run"], ["compare"]) else ""
        with _deaf():
            return _failed(f"stopped{kept}", 143 if isinstance(error, _StoppedError) else 130)
    return 0


class _StoppedError(BaseException):
    """SIGTERM came: a scheduler, or the system, ends the program."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end what is done here in order, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C once more does not break off what is said of the first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped(number: int, frame: object) -> None:
    raise _StoppedError


def _call(words: Sequence[str]) -> None:
    from stability.cli.parsing import application, called, nearest, refuse_workers

    if not words:
        raise UsageError(f"give a command: {', '.join(COMMANDS)}; see 'stability --help'")
    if not (words[0] in COMMANDS or words[0].startswith("-")):  # the parser would import every command before it said so
        meant = nearest(words[0], COMMANDS) or f"use {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {words[0]!r}: {meant}")
    if words[0] in _WITH_WORKERS and not {"--help", "-h"} & set(words):
        refuse_workers(words[0], words[1:])
    app = application(
        "stability",
        help="Sparse fine-tuning and its leave-one-out stability, measured.\n\n'stability COMMAND --help' tells the options.",
    )
    for place, (name, (where, text)) in enumerate(COMMANDS.items()):
        # `run` reads its words itself: which options there are depends on the study.
        own = {"help_flags": (), "version_flags": ()} if name == "run" else {}
        app.command(where, name=name, help=text, sort_key=place, **own)
    called(app, words)


def _failed(message: str, code: int) -> int:
    print(f"stability: {message}", file=sys.stderr)
    return code


def _reader_gone() -> bool:
    """Whether standard output was closed at its other end, as by ``| head``; then nothing more is written there."""
    with suppress(OSError, ValueError):  # a standard output that is no file
        place = sys.stdout.fileno()
        look = select.poll()
        look.register(place, select.POLLOUT)
        if any(event & select.POLLERR for _, event in look.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), place)  # Python flushes once more when it ends
            return True
    return False
