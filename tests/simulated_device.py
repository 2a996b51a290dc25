"""A device that is not the CPU, for machines without a GPU: a tensor on the wrong device fails here as it would on CUDA.

torch lets Python stand in for one kind of device (``PrivateUse1``). A tensor on the device ``simulated`` holds its numbers in
a tensor on the CPU, and each of torch's operations on it is computed there. So what is computed is what the CPU computes,
bit for bit, wherever the code under test calls the same operations; autograd, ``torch.func`` and ``torch.autocast`` treat the
tensor as one of another device, and run its backward passes in the device's own thread.

The device is as strict as CUDA, and stricter where CUDA's answer differs from operation to operation:

* All tensors of an operation must be on it. Copies between devices, and indices on the CPU in ``x[index]``, are allowed.
* A tensor on the CPU without dimensions may stand for a number in operations of two operands, element by element, in
  ``torch.where`` and as the value that is put into ``x[index]`` or ``masked_fill``. It may not be written to.
* Random numbers come from a :class:`Generator` on the device. CUDA has a global one besides, which the toolkit never uses.
* Nothing on it becomes an array of numpy.

What it does not have: more than one of its kind (torch fixes the number at 1), streams, memory of its own, and another
arithmetic. It knows the operations that make tensors from nothing only as far as the toolkit uses them; others raise.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from stability import machine

__all__ = ["DEVICE", "NAME", "Generator", "SimulatedTensor", "register"]

NAME = "simulated"
DEVICE = torch.device("privateuseone", 0)
"""The device, which :func:`register` gives its name."""

aten = torch.ops.aten

_COPIES = {aten.copy_.default, aten._to_copy.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_NUMBERS = {
    *((aten.where.self, name) for name in ("self", "other")),
    *((operation, "values") for operation in _INDEXING),
    *((operation, "value") for operation in (aten.masked_fill.Tensor, aten.masked_fill_.Tensor)),
}
"""Where a tensor on the CPU without dimensions may stand for a number, beside operations of two operands."""

_MADE_HERE = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m")
"""What torch cannot make of other operations: the others that make a tensor fill an empty one."""

_LOWERED = ("addmm", "baddbmm", "bmm", "conv2d", "linear", "matmul", "mm")
"""What ``torch.autocast`` computes in lower precision on a CPU, as far as networks in the tests use it."""

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]


class SimulatedTensor(Tensor):
    """A tensor on the device. Views and changes in place are those of ``inside``, its numbers on the CPU."""

    inside: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inside: Tensor) -> SimulatedTensor:
        made: SimulatedTensor = Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=DEVICE,
        )
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        mine = [tensor for tensor in _tensors((args, tuple(kwargs.values()))) if isinstance(tensor, SimulatedTensor)]
        _refuse_other_devices(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            _refuse_other_generators(func, kwargs.get("generator"))
        there = kwargs.get("device")
        if there is not None and there.type == NAME:
            there, kwargs["device"] = None, "cpu"
        found = func(*_inside(args), **_inside(kwargs))
        if any(tensor.shape != tensor.inside.shape for tensor in mine):
            raise NotImplementedError(f"{func} changed the shape of a tensor in place, which the simulated device cannot do")
        if func is aten.copy_.default:
            return args[0]
        known = {id(tensor.inside): tensor for tensor in mine}  # what was written to comes back as the same tensor
        return found if there is not None else _outside(found, known)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inside}, on {self.device}"

    def __deepcopy__(self, memo: dict[int, Any]) -> SimulatedTensor:
        return SimulatedTensor(copy.deepcopy(self.inside, memo))

    # torch answers these for ordinary tensors only, those on CUDA among them.

    def tolist(self) -> Any:
        return self.inside.tolist()

    def data_ptr(self) -> int:
        return self.inside.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inside.untyped_storage()


class Generator(torch.Generator):
    """What stands for ``torch.Generator`` in tests of what is drawn on the device: there it draws the CPU's numbers."""

    _device: torch.device
    _cdata: int  # the address of what draws

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made: Generator = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made._device = torch.device(device)
        _generators[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device


_generators: weakref.WeakValueDictionary[int, Generator] = weakref.WeakValueDictionary()
"""By the address of what draws: operations are given a new ``torch.Generator`` around it."""


class _Backend:
    """What torch asks of the module ``torch.simulated``."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    # There is no global generator, whose state torch would otherwise set, keep and restore.

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: int) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_registered: list[torch.library.Library] = []


def register() -> None:
    """Make the device known to torch and to the toolkit, for the rest of the process.

    Before the first backward pass of the process: torch then starts one thread for each device that it knows.
    """
    if _registered:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    # What is registered lasts as long as these objects.
    library, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in _MADE_HERE:
        library.impl(name, _made_here(_operation(name)), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in _LOWERED:
        library.impl(name, _lowered(_operation(name)), "AutocastPrivateUse1")
    _registered.extend([library, every])
    machine._KINDS = (*machine._KINDS, NAME)


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _made_here(operation: Any) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        return SimulatedTensor(operation(*args, **{**kwargs, "device": "cpu"}))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """By which ``torch.tensor(…, device=…)`` fills what it has made."""
    _inside(target).copy_(_inside(source))
    return target


def _lowered(operation: Any) -> Callable[..., Tensor]:
    def lower(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            dtype = torch.get_autocast_dtype(NAME)
            cast = [a.to(dtype) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args]
            result: Tensor = operation(*cast, **kwargs)
            return result

    return lower


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _inside(value: Any) -> Any:
    if isinstance(value, SimulatedTensor):
        return value.inside
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inside, value))
    return {name: _inside(part) for name, part in value.items()} if isinstance(value, dict) else value


def _outside(value: Any, known: Mapping[int, SimulatedTensor]) -> Any:
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else SimulatedTensor(value)
    return type(value)(_outside(part, known) for part in value) if isinstance(value, (list, tuple)) else value


def _refuse_other_devices(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise where CUDA would: a tensor of the operation is on another device and may not be there."""
    if func in _COPIES or all(isinstance(tensor, SimulatedTensor) for tensor in _tensors((args, tuple(kwargs.values())))):
        return
    arguments = func._schema.arguments
    given = {**{argument.name: value for argument, value in zip(arguments, args, strict=False)}, **kwargs}
    operands = sum("Tensor" in str(argument.type) for argument in arguments)
    pair = torch.Tag.pointwise in func.tags and operands <= 2
    written = {argument.name for argument in arguments if argument.alias_info is not None and argument.alias_info.is_write}
    for name, value in given.items():
        if func in _INDEXING and name == "indices" and isinstance(args[0], SimulatedTensor):
            continue
        for tensor in _tensors(value):
            number = tensor.device.type == "cpu" and tensor.ndim == 0 and name not in written and (pair or (func, name) in _NUMBERS)
            if not (number or isinstance(tensor, SimulatedTensor)):
                raise RuntimeError(f"{func}: all tensors must be on the same device, and {name!r} is on {tensor.device}")


def _refuse_other_generators(func: Any, generator: torch.Generator | None) -> None:
    known = None if generator is None else _generators.get(generator._cdata)  # type: ignore[attr-defined]
    if known is None or known.device.type != NAME:
        where = "the device's global generator" if generator is None else f"a generator on {generator.device}"
        raise RuntimeError(f"{func} on {NAME} draws from {where}: use one on {NAME}")
