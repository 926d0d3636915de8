"""Tell whether tensors still hold the values that something was made of."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn

from . import native

LOOKED_THROUGH = 1 << 18  # bytes; of larger tensors only the place and torch's count of changes are looked at


def weights_of(module: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of a module and the modules inside it, as they are now.

    It walks the dictionaries itself: `nn.Module.parameters` takes ten times as long, and this runs in every forward.
    """
    found = [t for own in (module._parameters, module._buffers) for t in own.values() if t is not None]
    for child in module._modules.values():
        if child is not None:
            found += weights_of(child)
    return found


def signature(tensors: Iterable[Tensor]) -> Hashable | None:
    """Return a value that changes when the tensors do; None while one of them has no values (on the meta device).

    On the CPU the bytes themselves are looked through (some 20 GB/s), since torch does not count changes made through
    `.data`.  On other devices, where looking would mean waiting, and for a tensor of more than `LOOKED_THROUGH` bytes,
    it is the tensor's place in memory and torch's count of its changes, which misses those through `.data`.
    """
    read, told = [], []
    for t in tensors:
        if t.is_meta:
            return None
        if t.is_cpu and t.nbytes <= LOOKED_THROUGH and t.is_contiguous():
            read.append(t)
        else:
            told += [t.data_ptr(), 0 if t.is_inference() else t._version]
    if native.available():
        return native.digest(read), *told
    digest = 0
    for t in read:
        digest = zlib.crc32(t.detach().reshape(-1).view(torch.uint8).numpy().data, digest)
    return digest, *told
