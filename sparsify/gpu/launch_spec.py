"""What runs on the GPU for one convolution, as data that fits an operator's integers, and what kernels are told."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from sparsify.cpu.backend import KERNEL
from sparsify.filters import decimation

from . import mma_operands
from .bank_swizzle import swizzle
from .mma_operands import TYPES
from .tiling import SOURCES, Tiling

KERNELS = ("conv", "outer_forward", "outer_inverse", "direct", "decimate", "interpolate")
DIRECT_FACTORS = (16, 32)  # of kernels without a transform, which read none
OUTER_UNITS = 4  # units of an outer kernel that a warp takes one after another, for the sake of its matrix


class Signal(ctypes.Structure):
    """`Signal` of cuda/call.cuh."""

    _fields_ = (("memory", ctypes.c_void_p), *((name, ctypes.c_longlong) for name in ("batch", "channel", "length")))

    @classmethod
    def of(cls, t: Tensor) -> Signal:
        """t: (B, H, L), neighbouring samples next to each other."""
        return cls(t.data_ptr(), t.stride(0), t.stride(1), t.shape[-1])


class Call(ctypes.Structure):
    """`Call` of cuda/call.cuh, field by field."""

    _fields_ = (
        *((name, Signal) for name in "u pregate gate y decimated".split()),
        *((name, ctypes.c_void_p) for name in "scale skip spectra head window".split()),
        *((name, ctypes.c_void_p * 4) for name in "forward inverse turns steps".split()),
        *((name, ctypes.c_void_p) for name in "outer_turns outer_steps".split()),
        ("live", ctypes.c_void_p * 4),
        ("scratch", ctypes.c_void_p),
        ("scratch_plane", ctypes.c_longlong),
        *((name, ctypes.c_uint) for name in "rows batch blocks outer".split()),
        ("lookahead", ctypes.c_int),
    )  # fmt: skip


@dataclass(frozen=True)
class Build:
    """One kernel, compiled for one use."""

    entry: str
    dtype: torch.dtype
    factors: tuple[int, ...]
    rows: int = 1
    warps: int = 4
    source: str = "real"
    masked: bool = False
    head: int = 0
    piece: int = 8  # neighbouring samples that lie on a multiple of their size
    rate: int = 4
    resident: int = 1  # blocks that a multiprocessor is to hold at once

    @property
    def macros(self) -> dict[str, object]:
        images: tuple[tuple[int, int], ...] = ((0, 0),)
        if self.entry == "conv":
            images = swizzle(Tiling(self.factors, self.rows, self.warps, self.source)) or images
        return {
            "SPARSIFY_KERNEL": KERNELS.index(self.entry),
            "SPARSIFY_TYPE": TYPES.index(self.dtype),
            "SPARSIFY_SOURCE": SOURCES.index(self.source),
            "SPARSIFY_FACTORS": ",".join(map(str, self.factors)),
            "SPARSIFY_ROWS": self.rows,
            "SPARSIFY_WARPS": self.warps,
            "SPARSIFY_BLOCKS": self.resident,
            "SPARSIFY_MASKED": int(self.masked),
            "SPARSIFY_HEAD": self.head,
            "SPARSIFY_RATE": self.rate,
            "SPARSIFY_PIECE": self.piece,
            "SPARSIFY_SWIZZLE": ",".join(f"{bit},{image}" for bit, image in images),
        }

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.rows * math.prod(self.factors) * 4 * mma_operands.planes(self.dtype) if self.entry == "conv" else 0


@dataclass(frozen=True)
class Way:
    """How a convolution is computed on the GPU.

    source: "real" and "history" as in `tiling`; "complex" for two levels, with `radix` digits outside, of which the
    first `outer` slots are kept; "direct" for Toeplitz matrices alone.  head: taps of an exact head, a multiple of 32.
    """

    source: str
    dtype: torch.dtype
    seqlen: int
    factors: tuple[int, ...] = DIRECT_FACTORS
    rows: int = 1
    warps: int = 4
    masked: bool = False
    head: int = 0
    lookahead: int = 0
    radix: int = 1
    outer: int = 1
    resident: int = 1

    WAYS = (*SOURCES, "direct")

    @property
    def points(self) -> int:
        return self.radix * math.prod(self.factors)

    @property
    def longest(self) -> float:
        """Samples of the longest signal it takes."""
        return self.points if self.source in ("real", "complex") else math.inf

    def to_ints(self) -> tuple[int, ...]:
        """As an operator takes it."""
        flags = (int(self.masked), self.head, self.lookahead, self.radix, self.outer, self.resident)
        kinds = (self.WAYS.index(self.source), TYPES.index(self.dtype))
        return (KERNEL, *kinds, self.seqlen, self.rows, self.warps, *flags, *self.factors)

    @classmethod
    def from_ints(cls, numbers: Sequence[int]) -> Way:
        _, source, dtype, seqlen, rows, warps, masked, head, lookahead, radix, outer, resident, *factors = numbers
        shape = tuple(factors), rows, warps, bool(masked), head, lookahead, radix, outer, resident
        return cls(cls.WAYS[source], TYPES[dtype], seqlen, *shape)

    def builds(self, piece: int = 8) -> tuple[Build, ...]:
        """The kernels, in the order in which they run.  piece: as of `Build`, of all signals."""
        if self.source == "direct":
            return (Build("direct", self.dtype, self.factors, warps=self.warps, head=self.head, piece=piece),)
        shape = self.factors, self.rows, self.warps, self.source, self.masked, self.head, piece
        own = Build("conv", self.dtype, *shape, resident=self.resident)
        if self.source != "complex":
            return (own,)
        levels = self.radix, self.points // self.radix
        before = Build("outer_forward", self.dtype, levels, masked=self.masked, piece=piece)
        return before, replace(own, head=0, piece=8), replace(before, entry="outer_inverse", head=self.head)

    def blocks(self, seqlen: int) -> int:
        """Pieces of a row that are computed on their own."""
        return -(-seqlen // self.points) if self.source == "history" else 1

    def rows_of(self, build: Build, rows: int, seqlen: int) -> int:
        """Rows that a kernel sees of B * H signals."""
        return rows * self.blocks(seqlen) * self.outer if build.entry == "conv" else rows

    def grid(self, build: Build, rows: int, seqlen: int) -> tuple[int, int, int]:
        """Blocks of a launch for B * H signals."""
        if build.entry == "conv":
            return -(-self.rows_of(build, rows, seqlen) // self.rows), 1, 1
        columns = seqlen if build.entry == "direct" else self.points // self.radix
        unit = {"outer_forward": 64, "outer_inverse": 32, "direct": 512}[build.entry]
        return rows, max(1, -(-columns // (unit * build.warps * OUTER_UNITS))), 1


@dataclass(frozen=True)
class DecimatedWay:
    """A filter of a narrow band: `inner` convolves every `rate`th sample; `head` taps join at full rate."""

    rate: int
    head: int
    inner: Way

    def to_ints(self) -> tuple[int, ...]:
        return (KERNEL, DECIMATED, self.rate, self.head, *self.inner.to_ints())

    @classmethod
    def from_ints(cls, numbers: Sequence[int]) -> DecimatedWay:
        return cls(numbers[2], numbers[3], Way.from_ints(numbers[4:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    @property
    def longest(self) -> float:
        """Samples of the longest signal it takes."""
        return self.rate * (self.inner.seqlen - decimation.WIDTH)

    def build(self, entry: str, piece: int = 8) -> Build:
        """The kernel "decimate" or "interpolate"."""
        head = self.head if entry == "interpolate" else 0
        return Build(entry, self.dtype, DIRECT_FACTORS, head=head, piece=piece, rate=self.rate)


DECIMATED = -1  # where a Way has its source


def decimated_length(seqlen: int, rate: int) -> int:
    """Samples of a decimated signal: what the window sees, in whole pieces of 16 bytes."""
    return -(-(-(-seqlen // rate) + decimation.WIDTH) // 8) * 8


@lru_cache(maxsize=1024)
def way_from(numbers: tuple[int, ...]) -> Way | DecimatedWay:
    """What `to_ints` wrote."""
    return DecimatedWay.from_ints(numbers) if numbers[1] == DECIMATED else Way.from_ints(numbers)
