"""Sorted indices in few bytes: as Elias–Fano code or as a bitmap, whichever is shorter, or as nothing where none is missing."""

from __future__ import annotations

import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stability.errors import MachineError
from stability.machine import free_memory

__all__ = ["pack", "unpack"]

_ALL, _BITMAP, _ELIAS_FANO = range(3)
_HEADER = struct.Struct("<BBQ")  # coding, low bits an index, count


def pack(indices: Tensor, size: int) -> Tensor:
    """Pack k distinct ascending whole numbers from [0, size) into bytes.

    Elias–Fano code (Elias 1974; Fano 1971) keeps the lowest ⌊log₂(size/k)⌋ bits of each index as they are, and the other bits as
    the gaps of a bitmap. It takes at most 2 + log₂(size/k) bits for an index. For a random set with small k/size, no code takes
    less than log₂(size/k) + 1.44 bits. A plain bitmap is shorter where k/size is above about a third. A header of ten bytes comes
    on top.

    Args:
        indices: the indices, int64 (k,). They must be ascending, distinct and in [0, size); this is not checked.
        size: the number of possible indices.

    Returns:
        The bytes, uint8.

    Example:
        >>> len(pack(torch.arange(0, 1_000_000, 200), 1_000_000)) / 5000  # bytes an index, at a density of 0.5 %
        1.1974
    """
    index: NDArray[np.int64] = indices.numpy()
    count = len(index)
    if count == size:
        return _bytes(_HEADER.pack(_ALL, 0, count))
    low = max(0, (size // max(count, 1)).bit_length() - 1)
    high = np.zeros(count + (size >> low) + 1, dtype=bool)
    high[(index >> low) + np.arange(count)] = True
    lows = ((index[:, None] >> np.arange(low)) & 1).astype(bool)
    fano = np.packbits(high).tobytes() + np.packbits(lows).tobytes()
    if len(fano) <= (size + 7) // 8:
        return _bytes(_HEADER.pack(_ELIAS_FANO, low, count) + fano)
    bitmap = np.zeros(size, dtype=bool)
    bitmap[index] = True
    return _bytes(_HEADER.pack(_BITMAP, 0, count) + np.packbits(bitmap).tobytes())


def unpack(code: Tensor, size: int) -> Tensor:
    """Unpack what :func:`pack` packed.

    Args:
        code: the bytes, uint8.
        size: the number of possible indices, as it was for :func:`pack`.

    Returns:
        The indices, ascending, int64 (k,).

    Raises:
        ValueError: the bytes are damaged, or belong to another size.
        MachineError: the indices do not fit into memory. A few bytes can stand for any number of them.

    Example:
        >>> unpack(pack(torch.tensor([2, 3, 7]), 10), 10)
        tensor([2, 3, 7])
    """
    raw = code.numpy().tobytes()
    if len(raw) < _HEADER.size:
        raise ValueError(f"{len(raw)} bytes of packed indices, and the header alone has {_HEADER.size}")
    coding, low, count = _HEADER.unpack_from(raw)
    body = np.frombuffer(raw, dtype=np.uint8, offset=_HEADER.size)
    if count > size or low > 62 or coding not in (_ALL, _BITMAP, _ELIAS_FANO):
        raise ValueError(f"packed indices of coding {coding} with {count} of {size} and {low} low bits make no sense")
    if coding == _ALL:
        if 8 * count > (free := free_memory(torch.device("cpu"))):
            raise MachineError(
                f"all of {size} indices take {8 * count / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: read them on a "
                "machine with more memory"
            )
        index = np.arange(count)
    elif coding == _BITMAP:
        index = np.flatnonzero(np.unpackbits(_exactly(body, size), count=size))
    else:
        length = int(count) + (size >> low) + 1
        split = (length + 7) // 8
        _exactly(body, 8 * split + 8 * ((count * low + 7) // 8))
        places = np.flatnonzero(np.unpackbits(body[:split], count=length))
        if len(places) != count:
            raise ValueError(f"{len(places)} packed indices where {count} were announced")
        lows = np.unpackbits(body[split:], count=count * low).reshape(count, low).astype(np.int64)
        index = ((places - np.arange(count)) << low) + (lows << np.arange(low)).sum(1)
    if len(index) != count or (count and not (index[-1] < size and (np.diff(index) > 0).all())):
        raise ValueError(f"{len(index)} packed indices, not {count} ascending ones below {size}")
    return torch.from_numpy(index.astype(np.int64))


def _exactly(body: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if len(body) != (bits + 7) // 8:
        raise ValueError(f"{len(body)} bytes of packed indices where {(bits + 7) // 8} belong")
    return body


def _bytes(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)
