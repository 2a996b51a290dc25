"""What the system lets this process have of memory and of processor time, beside what the machine has.

A container, a job of a cluster or a service of systemd is a control group of Linux, whose limits the machine's own numbers do not
show. Groups lie inside each other, and the limit of each holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["memory_limits", "processor_limits"]

_PROCESS = Path("/proc/self")


def memory_limits(process: Path = _PROCESS) -> list[int]:
    """How many bytes this process may still take, by each limit that it is under.

    These are the limits of its control groups and those of ``ulimit -v`` and ``ulimit -d``. Files that the kernel only keeps
    because there is room, ``inactive_file``, do not count as taken.

    Args:
        process: the folder that lists the control groups of this process and where they are mounted.

    Returns:
        One number for each limit, never below 0; empty where there is none.

    Example:
        >>> all(left >= 0 for left in memory_limits())
        True
    """
    left = []
    for group in _groups("memory", process):
        kept = {"inactive_file": 0, "total_inactive_file": 0}
        for line in _text(group / "memory.stat").splitlines():
            name, _, count = line.partition(" ")
            kept[name] = int(count)
        used = _number(group / "memory.current")  # of version 2; memory.high slows a process down where memory.max ends it
        if used is None:
            limits, used = ["memory.limit_in_bytes"], _number(group / "memory.usage_in_bytes")
            reclaimable = kept["total_inactive_file"]
        else:
            limits, reclaimable = ["memory.max", "memory.high"], kept["inactive_file"]
        sizes = [size for name in limits if (size := _number(group / name)) is not None]
        left += [size - max(0, (used or 0) - reclaimable) for size in sizes]
    own = psutil.Process()
    if hasattr(own, "rlimit"):  # elsewhere than on Linux and FreeBSD these limits are not told
        taken = own.memory_info()
        for limit, size in ((psutil.RLIMIT_AS, taken.vms), (psutil.RLIMIT_DATA, taken.data)):
            soft, _ = own.rlimit(limit)
            left += [] if soft == psutil.RLIM_INFINITY else [soft - size]
    return [max(0, size) for size in left]


def processor_limits(process: Path = _PROCESS) -> list[int]:
    """To how many processor cores the time amounts that each control group of this process may take, rounded up.

    Args:
        process: the folder that lists the control groups of this process and where they are mounted.

    Returns:
        One number for each limit, as ``docker run --cpus`` sets one; empty where there is none.

    Example:
        >>> all(count >= 1 for count in processor_limits())
        True
    """
    found = []
    for group in _groups("cpu", process):
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if both := _text(group / "cpu.max").split():
            quota, period = None if both[0] == "max" else int(both[0]), int(both[1])
        if quota is not None and period and quota > 0:
            found.append(math.ceil(quota / period))
    return found


def _groups(controller: str, process: Path) -> Iterator[Path]:
    """The folders of the control groups of a process for one controller, in either version: its own, and those around it."""
    places = [line.split(":", 2)[1:] for line in _text(process / "cgroup").splitlines()]
    for line in _text(process / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mounted = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        names = "" if kind == "cgroup2" else controller
        if kind not in ("cgroup", "cgroup2") or (names and names not in options.split(",")):
            continue
        for controllers, place in places:
            if names not in controllers.split(","):
                continue
            # In a container that sees the groups of its host, its own group is the root of what is mounted.
            inner = place.removeprefix(root) if root != "/" else place
            top = Path(mounted)
            own = top / inner.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top) and folder.is_dir())


def _text(path: Path) -> str:
    """What a file says; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or no limit."""
    found = _text(path).strip()
    return None if found in ("", "max") else int(found)
