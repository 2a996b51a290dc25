"""Ray, started and reached so that signals, addresses and standard output stay this package's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any

from stability.checks import check_address
from stability.errors import StabilityError, UsageError

__all__ = ["check_there", "end", "imported", "listens", "loopback", "start", "uninterrupted"]

_ANSWER = 15.0  # seconds in which a cluster must answer
_AGAIN = 0.05  # seconds after which our handlers of signals are set again; for so long Ray's may stand


@contextmanager
def uninterrupted() -> Iterator[Callable[[], None]]:
    """Signals are answered when this is done: of an exception that a handler raises within it Ray makes an error of its own, or it
    crashes. Whoever lets Ray replace the handlers meanwhile sets them again by calling what this yields.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def again() -> None:
        for one in before:
            signal.signal(one, lambda number, _: came.append(number))

    again()
    try:
        yield again
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        if came:  # also where an error came of it: a signal to all processes ends Ray's before it has started
            signal.raise_signal(came[0])


def start(ray: Callable[[], object], thread: ThreadPoolExecutor) -> None:
    """Start Ray, in a thread: until it has started, its own handler of SIGTERM would abort this process and write pages.

    Args:
        ray: what starts it.
        thread: it must stay, for Ray's processes end with the thread that started them.
    """
    with uninterrupted() as again:
        started = thread.submit(ray)
        while not started.done():
            wait([started], _AGAIN)
            again()
        started.result()


@contextmanager
def loopback() -> Iterator[None]:
    """Ray, where it is started meanwhile, listens on 127.0.0.1 alone; and clusters that do so are found.

    Otherwise it takes 127.0.0.1 for the address that this machine has in its network, and listens everywhere.

    Example:
        >>> with loopback():
        ...     pass  # ray.init()
    """
    services: Any = import_module("ray._private.services")
    before = services.get_node_ip_address
    services.get_node_ip_address = lambda *where: "127.0.0.1"
    try:
        yield
    finally:
        services.get_node_ip_address = before


def end(number: int, frame: FrameType | None) -> None:
    """End this process, tidily.

    Args:
        number: of the signal that it was sent.
        frame: where it was then.
    """
    sys.exit(128 + number)


def imported() -> ModuleType:
    """Ray, which is imported where it is needed, and says nothing of its own.

    Raises:
        UsageError: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; until then it warns of it
    try:
        ray = import_module("ray")
        worker = import_module("ray._private.worker")
    except ImportError as error:
        raise UsageError(f"executor = ray: {error}; pip install 'peft-stability[cluster]'") from error
    if hasattr(worker, "print_to_stdstream"):  # pages about each process that died, on standard output, where our tables go
        setattr(worker, "print_to_stdstream", lambda *what, **how: None)  # noqa: B010
    return ray


def check_there(address: str) -> None:
    """Refuse an address where no cluster answers: Ray would wait for one.

    Args:
        address: ``HOST:PORT``, or ``auto``, which is not looked at.

    Raises:
        UsageError: it is no address.
        StabilityError: no cluster is there.
    """
    if address == "auto":  # which Ray looks for on this machine
        return
    check_address(address)
    remedy = "check the address, or start a cluster there: ray start --head"
    try:
        _connect(address)
    except OSError as error:
        raise StabilityError(f"no cluster of Ray at {address}: {error}; {remedy}") from error
    # Something listens. In a process of its own, for Ray may end the process in which it finds no cluster.
    asked = [sys.executable, "-c", "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])", address]
    try:
        subprocess.run(asked, check=True, timeout=_ANSWER, capture_output=True)
    except subprocess.SubprocessError as error:
        raise StabilityError(f"no cluster of Ray at {address}: what listens there gives no answer of Ray's; {remedy}") from error


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER / 3).close()


def listens(address: str) -> bool:
    """Whether anything listens there.

    Args:
        address: ``HOST:PORT``.
    """
    with suppress(OSError):
        _connect(address)
        return True
    return False
