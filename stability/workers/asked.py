"""Which pool is asked for: a number of workers, what they are, and where."""

from __future__ import annotations

from itertools import cycle, islice

import torch

from stability.checks import check_workers
from stability.machine import resolve_device
from stability.workers.cluster import RayProcesses
from stability.workers.pools import J, LocalProcesses, Pool

__all__ = ["devices", "local", "pool"]


def devices(device: str) -> list[str]:
    """The devices that are asked for: ``cuda`` and ``auto`` mean all GPUs that are visible.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Example:
        >>> devices("cpu")
        ['cpu']
    """
    place = resolve_device(device)
    if place.type == "cuda" and device in ("auto", "cuda"):
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(place)]


def local(places: list[str], count: int) -> LocalProcesses[J]:
    """So many processes of this machine, on these devices in turn.

    Args:
        places: the devices.
        count: how many processes.
    """
    return LocalProcesses(list(islice(cycle(places), count)))


def pool(device: str, workers: int | None, executor: str, address: str | None) -> Pool[J] | None:
    """The workers that are asked for; None: this process alone.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: how many; None: this process, or with Ray as many as the cluster has CPUs or GPUs.
        executor: ``local`` or ``ray``.
        address: of a cluster of Ray.

    Raises:
        UsageError: what :func:`~stability.checks.check_workers` and the pool refuse.

    Example:
        >>> pool("cpu", 2, "local", None).what
        '2 processes, 2 on cpu'
    """
    check_workers(workers, executor, address)
    if executor == "ray":
        return RayProcesses(device, workers, address)
    return None if workers is None or workers == 1 else local(devices(device), workers)
