"""What this machine has: devices, free memory, threads and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from stability import __version__
from stability.errors import UsageError

__all__ = ["cores", "device_name", "free_memory", "kept_for_backward", "out_of_memory", "report", "resolve_device", "software"]

_PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "transformers", "safetensors", "scikit-learn")
_KINDS: tuple[str, ...] = ("cpu", "cuda")  # of devices, those that tests were run on


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Find a device by its name.

    Args:
        name: ``auto`` (CUDA where there is a CUDA device, and otherwise the CPU), ``cpu``, ``cuda``, ``cuda:N``, or a device.

    Returns:
        The device, which exists.

    Raises:
        UsageError: the name is unknown, or there is no such CUDA device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in _KINDS:
        raise UsageError(f"unknown device {str(name)!r}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(
                f"device {str(device)!r} was asked for, but torch {torch.__version__} sees {count} CUDA devices: "
                "use --device cpu, or install a CUDA build of torch and check the driver with nvidia-smi"
            )
    return device


def free_memory(device: torch.device) -> int:
    """How much memory is free on a device.

    Args:
        device: a CUDA device or the CPU.

    Returns:
        The number of free bytes; two gigabytes for a CPU whose system does not tell.

    Example:
        >>> free_memory(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # some systems do not tell; every machine has this much
        return 2 << 30


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, that of a GPU or that of this machine.

    Args:
        error: the error.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def kept_for_backward(forward: Callable[[], object], besides: Iterable[torch.Tensor] = ()) -> int:
    """How much memory a forward pass keeps for its backward pass.

    Args:
        forward: computes something with autograd. It is called once.
        besides: tensors that exist anyway, such as the parameters; their memory is not counted.

    Returns:
        The number of bytes.

    Example:
        >>> x = torch.ones(100, requires_grad=True)
        >>> kept_for_backward(lambda: x.exp())  # keeps its result, 100 numbers of 4 bytes
        400
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(size for place, size in saved.items() if place not in known)


def cores() -> int:
    """The number of processor cores that this process may use.

    Example:
        >>> cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """What kind of device it is: ``cpu``, or the name of the GPU.

    Args:
        device: a device.

    Example:
        >>> device_name(torch.device("cpu"))
        'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def software() -> str:
    """The packages whose version may change a measured number, with their versions; those that are installed.

    Example:
        >>> software().split()[0]
        'torch'
    """
    found = {name: metadata.version(name) for name in ("torch", "transformers", "peft") if find_spec(name) is not None}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def report() -> dict[str, Any]:
    """Versions, devices and threads of this machine, as ``stability doctor`` prints them.

    Returns:
        Plain values by name; ``free_memory_gib`` is in units of 2³⁰ bytes.

    Example:
        >>> report()["devices"][0]
        'cpu'
    """
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "stability": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(f"cuda:{i} {name}" for i, name in enumerate(cuda))],
        "free_memory_gib": round(free_memory(torch.device("cpu")) / 2**30, 1),
    }
