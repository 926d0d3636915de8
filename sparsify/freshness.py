"""Tell whether tensors still hold the values that something was made of."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from .cpu import native
from .hooks import PLAIN

COARSE = (torch.float16, torch.bfloat16)  # tell only some thousand of a million time steps apart
LOOKED_THROUGH = 1 << 18  # bytes; of larger tensors only the place and torch's count of changes are looked at


def weights_of(*modules: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of some modules and the modules inside them, as they are now, in a fixed order.

    It walks the dictionaries itself: `nn.Module.parameters` takes ten times as long, and this runs in every forward.
    """
    found: list[Tensor] = []
    waiting = list(modules)
    while waiting:
        own = waiting.pop().__dict__
        for tensors in (own["_parameters"], own["_buffers"]):
            found += [t for t in tensors.values() if t is not None]
        waiting += [inner for inner in own["_modules"].values() if inner is not None]
    return found


def signature(tensors: Iterable[Tensor], looked_through: int = LOOKED_THROUGH) -> Hashable | None:
    """Return a value that changes when the tensors do; None while nobody can tell.

    That is where one of them has no values (on the meta device), or is under a transform of torch.func.

    On the CPU the bytes themselves are looked through (some 20 GB/s), since torch does not count changes made through
    `.data`.  On other devices, where looking would mean waiting, and for a tensor of more than `looked_through` bytes,
    it is the tensor's place in memory and torch's count of its changes, which misses those through `.data`.
    """
    read, places, sizes, versions = [], [], [], []
    for t in tensors:
        size, plain = t.nbytes, type(t) in PLAIN
        if plain and is_functorch_wrapped_tensor(t):
            return None
        if plain and t.is_cpu and size <= looked_through and t.is_contiguous():
            read.append(t)
            places.append(t.data_ptr())
            sizes.append(size)
        elif t.is_meta:
            return None
        else:
            versions += [t.data_ptr() if plain else id(t), 0 if t.is_inference() else t._version]
    if native.available():
        return native.digest(places, sizes), *versions
    digest = 0
    for t in read:
        seen = t.detach().view(torch.int16) if t.dtype == torch.bfloat16 else t.detach()  # which numpy does not have
        digest = zlib.crc32(seen.numpy().data, digest)
    return digest, *versions
