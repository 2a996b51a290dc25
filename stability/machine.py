"""What this machine has and lets this process take: devices, memory, processor time, threads and versions."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stability import __version__
from stability.errors import UsageError

__all__ = [
    "busy_cores",
    "cores",
    "device_name",
    "file_system",
    "free_memory",
    "kept_for_backward",
    "memory_limits",
    "network_file_system",
    "out_of_memory",
    "peak_of_tensors",
    "pieces",
    "processor_limits",
    "release",
    "report",
    "resolve_device",
    "software",
]

_PROCESS = Path("/proc/self")
_IN_CACHE = 1 << 17  # values at once on a CPU
_VECTOR = 64  # values, a multiple of what one instruction takes
_PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "transformers", "safetensors", "scikit-learn")
_KINDS: tuple[str, ...] = ("cpu", "cuda")  # of devices, those that tests were run on
_ONEDNN = "could not create a primitive"  # all that oneDNN says where it finds no memory for its code
_NETWORK = {"afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs"}
_NETWORK |= {"panfs", "pvfs2", "smb3", "smbfs", "sshfs", "wekafs"}
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "_ALLOC_FAILED",
    "can't start new thread",
)


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


def memory_limits(process: Path = _PROCESS) -> list[int]:
    """How many bytes this process may still take, by each limit that it is under.

    A container, a job of a cluster or a service of systemd is a control group of Linux. Groups lie inside each other, and the limit
    of each holds; so do those of ``ulimit -v`` and ``ulimit -d``. Files that the kernel only keeps because there is room,
    ``inactive_file``, do not count as taken.

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


def free_memory(device: torch.device) -> int:
    """How much memory this process may still take on a device.

    On the CPU that is what the machine has available, files that it would drop included, or less where the process is under a
    limit: that of a container or a job, or that of ``ulimit -v``.

    Args:
        device: a CUDA device or the CPU.

    Returns:
        The number of free bytes.

    Example:
        >>> free_memory(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(min([psutil.virtual_memory().available, *memory_limits()]))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, that of a GPU or that of this machine.

    Args:
        error: the error, of torch, NumPy or Python itself. A thread that cannot start lacks the memory for its stack.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (text == _ONEDNN or any(part in text for part in _NO_MEMORY))


def release(device: torch.device) -> None:
    """Give memory back to the system that is free in this process.

    The C library keeps what tensors on the CPU took, and a heap that large and small ones share can hold twice what is in use.

    Args:
        device: of which the memory is needed.

    Example:
        >>> release(torch.device("cpu"))
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc alone has it
        trim(0)


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
        if tensor.layout is torch.strided:  # a sparse matrix, as peft's FRoD has, is not counted
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(size for place, size in saved.items() if place not in known)


class _Live(TorchDispatchMode):
    """While it is entered, counts the bytes of the tensors that are made and not yet gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: set[int] = set()
        self._now = self.most = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive.add(storage._cdata)
                    self._now += storage.nbytes()
                    self.most = max(self.most, self._now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self._now -= size


def peak_of_tensors(work: Callable[[], object]) -> int:
    """The most memory that the tensors which some work makes take at once.

    Args:
        work: is called once.

    Returns:
        The number of bytes; what an operation takes inside itself is not counted.

    Example:
        >>> x = torch.ones(100)
        >>> peak_of_tensors(lambda: x.exp().exp().exp())  # two of them at once, 100 numbers of 4 bytes each
        800
    """
    with _Live() as live:
        work()
    return int(live.most)


def pieces(count: int, device: torch.device, rows: int = 1) -> Iterator[slice]:
    """Go through many values so that what is computed of some of them stays in a CPU's cache; elsewhere all at once.

    Args:
        count: the number of values of a row.
        device: where they are.
        rows: the number of rows that are computed together.

    Yields:
        Places in a row.

    Example:
        >>> list(pieces(200_000, torch.device("cpu")))
        [slice(0, 131072, None), slice(131072, 200000, None)]
    """
    size = max(1, count)
    if device.type == "cpu":  # whole vectors, for what is left over is computed by other instructions, whose rounding differs
        size = max(_VECTOR, _IN_CACHE // rows // _VECTOR * _VECTOR)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def cores() -> int:
    """The number of processor cores that this process may use, or whose time it may take where a container limits that.

    Example:
        >>> cores() >= 1
        True
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([here, *processor_limits()])


def network_file_system(path: Path) -> str | None:
    """The type of the network file system on which a path lies, such as ``nfs4``; None: most likely a disk of this machine.

    Args:
        path: it need not exist.

    Example:
        >>> network_file_system(Path("/proc"))
    """
    kind = file_system(path)
    return kind if kind.removeprefix("fuse.") in _NETWORK else None


def file_system(path: Path) -> str:
    """The type of the file system on which a path lies, such as ``ext4``; empty where it is not known.

    Args:
        path: it need not exist.

    Example:
        >>> file_system(Path("/proc"))
        'proc'
    """
    whole = path.resolve()
    mounted = [one for one in psutil.disk_partitions(all=True) if whole.is_relative_to(one.mountpoint)]
    # Of several at one place, the one that was mounted last is seen.
    return max(enumerate(mounted), key=lambda one: (len(one[1].mountpoint), one[0]))[1].fstype if mounted else ""


def busy_cores(seconds: float = 0.2) -> float:
    """How many processor cores other processes keep busy, in the mean over a moment in which this thread waits.

    Args:
        seconds: how long it looks.

    Example:
        >>> busy_cores(0.01) >= 0
        True
    """
    own, before = psutil.Process(), time.perf_counter()
    mine = sum(own.cpu_times()[:2])
    share = psutil.cpu_percent(interval=seconds) / 100
    mine = (sum(own.cpu_times()[:2]) - mine) / (time.perf_counter() - before)
    return max(0.0, float(share * (psutil.cpu_count() or 1) - mine))


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
