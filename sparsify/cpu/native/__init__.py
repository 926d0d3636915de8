"""The compiled kernels, called with tensors.

A convolution is a sum of parts, each of them absent or there; `convolve` computes them in one pass over the signal:

whole      every lag, by one transform of the whole row
direct     very few taps, sample by sample
blocks     few taps, by transforms of short blocks that overlap
decimated  a band-limited filter, at a lower sampling rate
comb       a filter whose spectrum is a comb, by short transforms of the folded row

What fits the machine is for `sparsify.cpu.backend` to choose.  Everything here is float32 on the CPU unless it says
otherwise.
"""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from sparsify.hooks import is_plain

from .library import load

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # what kernels read and write: enum Type in call.h
LANES = {"avx512": 16, "avx2": 8, "base": 4}  # floats of a vector
MARGIN = 16  # zeros on either side of a window

Pointer, Integer = ctypes.c_void_p, ctypes.c_int64


# --- the structures of call.h ----------------------------------------------------------------------------------------


class CSignal(ctypes.Structure):
    _fields_ = (
        ("data", Pointer), ("batch_stride", Integer), ("channel_stride", Integer), ("time_stride", Integer),
        ("type", Integer),
    )  # fmt: skip


class CWhole(ctypes.Structure):
    _fields_ = (
        ("transform", Pointer), ("spectra", Pointer), ("taps", Pointer), ("stride", Integer), ("count", Integer),
        ("lookahead", Integer),
    )  # fmt: skip


class CDirect(ctypes.Structure):
    _fields_ = (("taps", Pointer), ("count", Integer), ("lookahead", Integer))


class CBlocks(ctypes.Structure):
    _fields_ = (("transform", Pointer), ("spectra", Pointer), ("count", Integer), ("lookahead", Integer))


class CDecimated(ctypes.Structure):
    _fields_ = (("rate", Integer), ("width", Integer), ("window", Pointer), ("low", CWhole))


class CComb(ctypes.Structure):
    _fields_ = (
        ("teeth", Integer), ("residues", Integer), ("transforms", Pointer), ("residue", Pointer), ("spectra", Pointer),
    )  # fmt: skip


class CCall(ctypes.Structure):
    _fields_ = (
        ("batch", Integer), ("channels", Integer), ("seqlen", Integer),
        ("u", CSignal), ("gate_in", CSignal), ("gate_out", CSignal), ("y", CSignal), ("skip", Pointer),
        ("whole", CWhole), ("direct", CDirect), ("blocks", CBlocks), ("decimated", CDecimated), ("comb", CComb),
    )  # fmt: skip


class CValues(ctypes.Structure):
    _fields_ = (("data", Pointer), ("type", Integer))


class CShortGate(ctypes.Structure):
    _fields_ = (
        ("batch", Integer), ("seqlen", Integer), ("width", Integer), ("taps", Integer), ("alone", Integer),
        ("z", CValues), ("history", CValues), ("weight", Pointer), ("bias", Pointer), ("x0", CSignal), ("g", CSignal),
    )  # fmt: skip


class CTurn(ctypes.Structure):
    _fields_ = (("batch", Integer), ("channels", Integer), ("seqlen", Integer), ("y", CSignal), ("rows", CValues))


class CGeluGate(ctypes.Structure):
    _fields_ = (("rows", Integer), ("width", Integer), ("x", CValues), ("y", CValues))


class CNorm(ctypes.Structure):
    _fields_ = (
        ("rows", Integer), ("width", Integer), ("x", Pointer), ("sum", CValues), ("weight", Pointer), ("bias", Pointer),
        ("epsilon", ctypes.c_float), ("y", CValues),
    )  # fmt: skip


# --- the parts, as tensors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """n >= L points.  Spectra (H, 2 n) are prepared, or else taps (H, K) with unit last stride transformed anew."""

    n: int
    spectra: Tensor | None = None
    taps: Tensor | None = None
    lookahead: int = 0

    def write(self, c: CWhole) -> None:
        c.transform, c.spectra, c.lookahead = transform(self.n, 0.25), address(self.spectra), self.lookahead
        if self.taps is not None:
            if self.taps.stride(1) != 1 or self.taps.dtype != torch.float32 or self.taps.device.type != "cpu":
                raise ValueError(f"expected float32 taps side by side on the CPU, got strides {self.taps.stride()}")
            c.taps, c.count, c.stride = self.taps.data_ptr(), self.taps.shape[1], self.taps.stride(0)


@dataclass(frozen=True)
class Direct:
    """taps (H, K), tap j at lag j - lookahead."""

    taps: Tensor
    lookahead: int = 0

    def write(self, c: CDirect) -> None:
        c.taps, c.count, c.lookahead = address(self.taps), self.taps.shape[1], self.lookahead


@dataclass(frozen=True)
class Blocks:
    """spectra (H, 2 n) of a filter of `count` taps, count <= n."""

    n: int
    spectra: Tensor
    count: int
    lookahead: int = 0

    def write(self, c: CBlocks) -> None:
        c.transform, c.spectra = transform(self.n, 0.0), address(self.spectra)
        c.count, c.lookahead = self.count, self.lookahead


@dataclass(frozen=True)
class Decimated:
    """Every `rate`th sample through `window` (width * rate,), convolved by `low`, and back through the window."""

    rate: int
    width: int
    window: Tensor  # between MARGIN zeros on either side
    low: Whole  # at least ceil(L / rate) + width points

    def write(self, c: CDecimated) -> None:
        c.rate, c.width, c.window = self.rate, self.width, address(self.window)
        self.low.write(c.low)


@dataclass(frozen=True)
class Comb:
    """Bins residue + teeth * f, f < n, at the frequencies (bin + 1/4) / (teeth * n); spectra: one (H, 2 n) a residue.

    teeth * n points hold at least L samples.
    """

    teeth: int
    n: int
    residues: tuple[int, ...]
    spectra: tuple[Tensor, ...]

    def write(self, c: CComb) -> list[object]:
        """Returns what must outlive the call."""
        many = len(self.residues)
        transforms = (Pointer * many)(*[transform(self.n, (r + 0.25) / self.teeth) for r in self.residues])
        residues, spectra = (Integer * many)(*self.residues), (Pointer * many)(*map(address, self.spectra))
        c.teeth, c.residues = self.teeth, many
        c.transforms, c.residue = ctypes.addressof(transforms), ctypes.addressof(residues)
        c.spectra = ctypes.addressof(spectra)
        return [transforms, residues, spectra]


Part = Whole | Direct | Blocks | Decimated | Comb


# --- calls -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    """The library with its functions declared."""
    lib.sparsify_isa.restype, lib.sparsify_use.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    lib.sparsify_fits.argtypes, lib.sparsify_fits.restype = [Integer], Integer
    lib.sparsify_transform.argtypes, lib.sparsify_transform.restype = [Integer, ctypes.c_double], Pointer
    lib.sparsify_bins.argtypes, lib.sparsify_bins.restype = [Pointer, Pointer], None
    lib.sparsify_spectra.argtypes = [Pointer, Pointer, Integer, Pointer, Integer]
    for name in ("convolve", "short_gate", "to_rows", "to_columns", "gelu_gate", "norm"):
        getattr(lib, f"sparsify_{name}").argtypes = [Pointer, Integer]
    lib.sparsify_digest.argtypes, lib.sparsify_digest.restype = [Pointer, Pointer, Integer], ctypes.c_uint64
    lib.sparsify_call_size.restype = Integer
    if lib.sparsify_call_size() != ctypes.sizeof(CCall):
        raise RuntimeError("the compiled kernels expect other structures; run python -m sparsify.cpu.native.build")
    return lib


def kernels() -> ctypes.CDLL:
    lib = load()
    if lib is None:
        raise RuntimeError("the compiled kernels are not here; ask native.available() first")
    return declared(lib)


def available() -> bool:
    """Whether the kernels are compiled and not switched off."""
    return load() is not None


def takes(t: Tensor) -> bool:
    """Whether the kernels are here and compute on such a tensor: float32 on the CPU, with its values in memory."""
    return t.dtype == torch.float32 and t.device.type == "cpu" and available() and is_plain(t)


def address(t: Tensor | None) -> int | None:
    """Where a float32 tensor's values lie, in one piece."""
    if t is None:
        return None
    if t.dtype != torch.float32 or not t.is_contiguous() or t.device.type != "cpu":
        raise ValueError(f"expected a contiguous float32 tensor on the CPU, got {t.dtype} {t.stride()} on {t.device}")
    return t.data_ptr()


def values(t: Tensor | None) -> CValues:
    """Where a tensor's values lie, in one piece, and their type."""
    if t is None:
        return CValues()
    if t.dtype not in TYPES or not t.is_contiguous() or t.device.type != "cpu":
        raise ValueError(f"expected contiguous floats on the CPU, got {t.dtype} {t.stride()} on {t.device}")
    return CValues(t.data_ptr(), TYPES[t.dtype])


def describe(s: CSignal, t: Tensor | None) -> None:
    """Write a (B, H, L) tensor's place and strides into a structure; it stays empty for None."""
    if t is not None:
        s.data, s.type = t.data_ptr(), TYPES[t.dtype]
        s.batch_stride, s.channel_stride, s.time_stride = t.stride()


def run(function: Callable[[int, int], int], call: ctypes.Structure) -> None:
    if function(ctypes.addressof(call), torch.get_num_threads()):
        raise MemoryError("no memory for the scratch rows of a convolution; use fewer threads or shorter sequences")


_making = threading.Lock()


def transform(n: int, shift: float) -> int:
    """The transform of n points with this shift, made once in a process."""
    with _making:
        return made(n, shift)


@cache
def made(n: int, shift: float) -> int:
    pointer = kernels().sparsify_transform(n, shift)
    if not pointer:
        raise ValueError(f"there is no transform of {n} points; take good_size({n}) = {good_size(n)}")
    return pointer


def use(isa: str) -> bool:
    """Change to another instruction set ("avx512", "avx2", "base"), for tests and comparisons; False if it cannot run.

    What was prepared before is of no use afterwards.
    """
    for cached in (made, good_size, order):
        cached.cache_clear()
    return bool(kernels().sparsify_use(isa.encode()))


def lanes() -> int:
    """Floats of a vector on this machine."""
    return LANES[kernels().sparsify_isa().decode()]


@lru_cache(maxsize=1024)
def good_size(n: int) -> int:
    """Smallest size >= n that there is a transform of: a multiple of lanes squared with no prime factor beyond 5."""
    step, fits = lanes() ** 2, kernels().sparsify_fits
    size = max(1, -(-n // step)) * step
    while not fits(size):
        size += step
    return size


@lru_cache(maxsize=32)
def order(n: int) -> Tensor:
    """Bins in the order of a spectrum: (n,) int64."""
    bins = torch.empty(n, dtype=torch.int64)
    kernels().sparsify_bins(transform(n, 0.0), bins.data_ptr())
    return bins


def spectra(k: Tensor, n: int, lookahead: int = 0, shift: float = 0.25) -> Tensor:
    """Spectra for n-point transforms, ready to multiply with: (H, 2 n).

    k: (H, K), tap j at lag j - lookahead.  Shift 1/4 takes lags beyond -n and n as zero; shift 0 takes K <= n, all at
    lags >= 0 (`Blocks` moves its windows instead).
    """
    k = k.float().contiguous()
    taps = CWhole(taps=address(k), stride=k.shape[1], count=k.shape[1], lookahead=lookahead)
    k_f = torch.empty(k.shape[0], 2 * n, dtype=torch.float32)  # whatever torch's default is
    if kernels().sparsify_spectra(
        transform(n, shift), ctypes.addressof(taps), k.shape[0], k_f.data_ptr(), torch.get_num_threads()
    ):
        raise MemoryError(f"no memory for the scratch rows of a transform of {n} points")
    return k_f


def in_order(k_f: Tensor, scale: float) -> Tensor:
    """A spectrum of n natural bins, complex (H, n), times scale, as the kernels keep it: (H, 2 n)."""
    n, step = k_f.shape[-1], lanes()
    k_f = (k_f * scale)[:, order(n)].unflatten(-1, (n // step, step))
    return torch.stack([k_f.real, k_f.imag], dim=-2).float().flatten(1).contiguous()


def check_shapes(u: Tensor, gate: Tensor | None, skip: Tensor | None) -> None:
    """Refuse what a kernel would read beyond."""
    if u.dim() != 3 or not u.is_floating_point():
        raise ValueError(f"signal u is {u.dtype} {tuple(u.shape)}, expected floats of (batch, channels, seqlen)")
    if gate is not None and gate.shape != u.shape:
        raise ValueError(f"gate has shape {tuple(gate.shape)}, expected that of the signal, {tuple(u.shape)}")
    if skip is not None and skip.shape != u.shape[1:2]:
        raise ValueError(f"skip has shape {tuple(skip.shape)}, expected one number a channel, ({u.shape[1]},)")
    for t in (gate, skip):
        if t is not None and t.device != u.device:
            raise ValueError(f"gates and skip must lie on the signal's device, {u.device}; one lies on {t.device}")


FIELDS: dict[type, str] = {Whole: "whole", Direct: "direct", Blocks: "blocks", Decimated: "decimated", Comb: "comb"}


def convolve(
    u: Tensor,
    parts: Sequence[Part],
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    gate_in: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """gate * (sum of parts applied to g + skip * g), g = gate_in * u.

    u, gate, gate_in: (B, H, L), any strides, float32, float16 or bfloat16.  skip: (H,) float32.  At most one part of a
    kind.  Returns (B, H, L), dtype of u; or fills `out`, which shares no memory with u.
    """
    out = torch.empty(u.shape, dtype=u.dtype) if out is None else out
    check_shapes(u, gate, skip)
    check_shapes(u, gate_in, None)
    check_shapes(u, out, None)
    batch, channels, seqlen = u.shape
    call = CCall(batch=batch, channels=channels, seqlen=seqlen, skip=address(skip))
    describe(call.u, u)
    describe(call.gate_in, gate_in)
    describe(call.gate_out, gate)
    describe(call.y, out)
    alive = [part.write(getattr(call, FIELDS[type(part)])) for part in parts]
    if out.numel():
        run(kernels().sparsify_convolve, call)
    del alive
    return out


def short_gate(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    alone: int = 0,
) -> tuple[Tensor, Tensor]:
    """x0 and g = x1 * v, with [x0 | x1 | v] a short causal depthwise convolution of z; channel-last to channel-first.

    alone: which third of z becomes x0.

    z: (B, P, 3 D) contiguous, float32, float16 or bfloat16.  weight: (3 D, T).  bias: (3 D,).
    history: (B, T - 1, 3 D), the rows before z, zeros if None.
    out: x0 and g, each (B, D, P) float32 with unit last stride.
    """
    batch, seqlen, columns = z.shape
    width = columns // 3
    x0, g = out or torch.empty(2, batch, width, seqlen, dtype=torch.float32)
    if x0.stride(2) != 1 or g.stride(2) != 1:
        raise ValueError(f"x0 and g take samples side by side, got strides {x0.stride()} and {g.stride()}")
    history = None if history is None else history.to(z.dtype)
    call = CShortGate(
        batch=batch, seqlen=seqlen, width=width, taps=weight.shape[1], alone=alone,
        z=values(z), history=values(history), weight=address(weight), bias=address(bias),
    )  # fmt: skip
    describe(call.x0, x0)
    describe(call.g, g)
    run(kernels().sparsify_short_gate, call)
    return x0, g


def to_rows(y: Tensor, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """y[:, :, start:stop] with the channels last: (B, stop - start, D) contiguous.

    y: (B, D, L) float32, unit last stride.  dtype: of the rows, float32, float16 or bfloat16.
    """
    y = y[:, :, start:stop]
    batch, channels, seqlen = y.shape
    rows = torch.empty(batch, seqlen, channels, dtype=dtype)
    call = CTurn(batch=batch, channels=channels, seqlen=seqlen, rows=values(rows))
    describe(call.y, y)
    run(kernels().sparsify_to_rows, call)
    return rows


def to_columns(rows: Tensor) -> Tensor:
    """rows (B, L, D), contiguous, float32, float16 or bfloat16, with the time last: (B, D, L) float32, contiguous."""
    batch, seqlen, channels = rows.shape
    y = torch.empty(batch, channels, seqlen, dtype=torch.float32)
    call = CTurn(batch=batch, channels=channels, seqlen=seqlen, rows=values(rows))
    describe(call.y, y)
    run(kernels().sparsify_to_columns, call)
    return y


def gelu_gate(x: Tensor) -> Tensor:
    """gelu(gate) * h, with x = [gate | h] and GELU in its exact form: (..., F).

    x: (..., 2 F), contiguous, float32, float16 or bfloat16, which the result has, too.
    """
    *shape, width = x.shape
    y = x.new_empty(*shape, width // 2)
    run(kernels().sparsify_gelu_gate, CGeluGate(rows=x.numel() // width, width=width // 2, x=values(x), y=values(y)))
    return y


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    plus: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x += plus, in place, and the layer norm of x over its last dimension: the shape of x, contiguous, `dtype`.

    x: (..., D) float32, contiguous.  weight, bias: (D,).  plus: (..., D), contiguous.  plus and result may be float32,
    float16 or bfloat16.
    """
    width = x.shape[-1]
    if weight.shape != (width,) or bias.shape != (width,):
        raise ValueError(f"rows of {width} take as many weights, got {tuple(weight.shape)} and {tuple(bias.shape)}")
    if plus is not None and plus.shape != x.shape:
        raise ValueError(f"cannot add {tuple(plus.shape)} to {tuple(x.shape)}")
    y = torch.empty(x.shape, dtype=dtype)
    call = CNorm(
        rows=x.numel() // width, width=width, x=address(x), sum=values(plus),
        weight=address(weight), bias=address(bias), epsilon=epsilon, y=values(y),
    )  # fmt: skip
    run(kernels().sparsify_norm, call)
    return y


def digest(places: Sequence[int], sizes: Sequence[int]) -> int:
    """A number that changes, all but surely, with any byte of some blocks of memory.

    places: addresses.  sizes: in bytes.  It depends on the instruction set.
    """
    blocks, lengths = array("q", places), array("q", sizes)
    return kernels().sparsify_digest(blocks.buffer_info()[0], lengths.buffer_info()[0], len(sizes))
