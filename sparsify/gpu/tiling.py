"""One kernel: its factors, rows and warps, and what follows from them: MMAs, bytes, registers, shared memory.

Counts (MMAs, bytes) are exact.  Registers are estimates, good for an order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

from .devices import Card

FIRST, MIDDLE, INNER = (16, 32, 48), (8, 16, 32), (16, 32)  # what N1, the factors between, and Np may be
ROWS, WARPS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16)
STAGES = (2, 3, 4)
Source = Literal["real", "history", "complex"]
SOURCES: tuple[Source, ...] = get_args(Source)
HEAD_STEP = 32  # taps that a Toeplitz product takes at once, of a direct filter or of a head beside a mask

RESERVED = 1024  # bytes of shared memory that the system keeps a block
KEPT_MATRIX, KEPT_OPERANDS = 64, 32  # words of DFT matrices that a thread keeps at most; larger ones are read again
ADDRESSES = 16  # registers for addresses and counters
FUSED = 0.6  # of the instructions between two stages, what remains where both run as one
CORE_REGISTERS = 168  # of a thread in the fused stages: three times four warps a multiprocessor
BLOCK_REGISTERS = 216  # in stage 1 of float32 blocks with their history, N1 = 16: 175 .. 214 by ptxas for sm_80, sm_90


@dataclass(frozen=True)
class Kind:
    """A sample's type: bytes in global memory, planes of 32-bit words in shared memory, MMAs for one product."""

    bytes: int
    planes: int
    products: int


DTYPES = {
    "float16": Kind(2, 1, 1),
    "bfloat16": Kind(2, 1, 1),
    "float32": Kind(4, 2, 3),  # high and low part, bfloat16 each: high * high + high * low + low * high
}


def type_name(dtype: Any) -> str:
    """The key in DTYPES of a torch dtype or its name."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"no kernel computes in {name}; cast to one of {', '.join(DTYPES)}")
    return name


def kind(dtype: Any) -> Kind:
    """The row of DTYPES for a torch dtype or its name."""
    return DTYPES.get(dtype) or DTYPES[type_name(dtype)]


# --- what a mask leaves --------------------------------------------------------------------------------------------


def tile_sides(factors: Sequence[int]) -> tuple[int, ...]:
    """Slots in a tile on each axis: 8, on the axis before the inner one 16 (or all 8 it has), on the inner one 8."""
    return (*[8] * (len(factors) - 2), min(16, factors[-2]), 8)


@dataclass(frozen=True)
class Live:
    """The tiles that a mask leaves.

    pairs: for each stage i of p, how many (prefix tile, own tile) are computed: tuples of tiles on the axes 1 .. i that
    some kept slot lies under.  All counts follow from these, since all tiles of an axis are of one size.
    """

    pairs: tuple[int, ...]

    @classmethod
    def dense(cls, factors: Sequence[int]) -> Live:
        grid = [size // side for size, side in zip(factors, tile_sides(factors), strict=True)]
        return cls(tuple(math.prod(grid[: i + 1]) for i in range(len(grid))))

    @classmethod
    def of(cls, kept: Any) -> Live:
        """kept: boolean, one axis a factor, in slot order (`slot_orders`); an array or nested lists."""
        import numpy as np

        kept = np.asarray(kept, dtype=bool)
        sides = tile_sides(kept.shape)
        if any(size % side for size, side in zip(kept.shape, sides, strict=True)):
            raise ValueError(f"a mask of shape {kept.shape} has no whole tiles of {sides}; give it the factors' shape")
        if not kept.any():
            raise ValueError("the mask keeps nothing; the convolution is zero and needs no kernel")
        split = [n for size, side in zip(kept.shape, sides, strict=True) for n in (size // side, side)]
        grid = kept.reshape(split).any(axis=tuple(range(1, len(split), 2)))
        axes = range(grid.ndim)
        return cls(tuple(int(grid.any(axis=tuple(axes[i + 1 :])).sum()) for i in axes))

    def shares(self, factors: Sequence[int]) -> tuple[float, ...]:
        """Part of all pairs that is computed, each stage."""
        return tuple(a / b for a, b in zip(self.pairs, Live.dense(factors).pairs, strict=True))


def slot_orders(kept: Any) -> tuple[tuple[int, ...], ...]:
    """For each axis the digits in slot order: those kept under the same digits of the other axes lie together.

    kept: boolean, one axis a factor, in digit order.  Inside a class digits ascend.  The densest class comes first,
    then always the one that overlaps most with the class before it; digits that nothing is kept under come last.  Both
    ends of an axis, which a low-pass keeps, so fall into as few tiles as they fill.
    """
    import numpy as np

    kept = np.asarray(kept, dtype=bool)
    orders = []
    for axis, size in enumerate(kept.shape):
        rows = np.moveaxis(kept, axis, 0).reshape(size, -1)
        classes: dict[bytes, list[int]] = {}
        for digit in range(size):
            classes.setdefault(rows[digit].tobytes(), []).append(digit)
        waiting = [digits for digits in classes.values() if rows[digits[0]].any()]
        before, order = np.ones(rows.shape[1], dtype=bool), []
        while waiting:
            best = max(waiting, key=lambda d: ((rows[d[0]] & before).sum(), rows[d[0]].sum(), -d[0]))
            waiting.remove(best)
            before = rows[best[0]]
            order += best
        orders.append((*order, *(digit for digit in range(size) if not rows[digit].any())))
    return tuple(orders)


# --- a kernel ------------------------------------------------------------------------------------------------------


def core(factors: Sequence[int], dtype: Any) -> bool:
    """Whether the last two stages run as one, in registers: `core` of cuda/spectrum.cuh."""
    return len(factors) > 2 and kind(dtype).planes == 1 and tuple(factors[-2:]) == (16, 16)


@dataclass(frozen=True)
class Tiling:
    """One kernel: its factors, the rows and warps of a thread block, and what it reads.

    source: "real" (all of a signal, M >= seqlen), "history" (a signal in blocks of M samples, each read with
    the M before it, M >= taps; each block is a row), "complex" (the inner part of a two-level transform).
    """

    factors: tuple[int, ...]
    rows: int = 1
    warps: int = 1
    source: str = "real"

    def __post_init__(self) -> None:
        first, *middle, inner = self.factors if len(self.factors) in STAGES else (0, 0)
        if first not in FIRST or not set(middle) <= set(MIDDLE) or inner not in INNER:
            raise ValueError(
                f"no kernel has factors {self.factors}; give 2 to 4: the first of {FIRST}, the last of {INNER}, "
                f"between them of {MIDDLE}"
            )
        if self.rows not in ROWS or self.warps not in WARPS or self.source not in SOURCES:
            raise ValueError(
                f"no kernel has {self.rows} rows, {self.warps} warps and source {self.source!r}; choose from {ROWS}, "
                f"{WARPS} and {SOURCES}"
            )

    @cached_property
    def points(self) -> int:
        """M, complex points of a row."""
        return math.prod(self.factors)

    @cached_property
    def behind(self) -> tuple[int, ...]:
        """S_i = N(i+1) .. Np, words behind each axis."""
        return tuple(math.prod(self.factors[i + 1 :]) for i in range(len(self.factors)))

    @property
    def radix(self) -> int:
        """As of a TwoLevel: nothing is outside."""
        return 1

    @property
    def inner(self) -> Tiling:
        """As of a TwoLevel: all of it."""
        return self

    @property
    def takes_head(self) -> bool:
        """Whether a head's products, of 32 samples each, can join where the last stage has its results."""
        return self.behind[0] % HEAD_STEP == 0

    @property
    def columns(self) -> int:
        """Columns that a warp takes at once in the first stage."""
        return 32 if self.source == "complex" else 64

    @cached_property
    def units(self) -> dict[str, int]:
        """Units of work of each stage in a block; an inverse stage has those of its forward one."""
        words = self.rows * self.points
        middle = {
            f"stage {i + 1}": words // (32 * n) for i, n in enumerate(self.factors) if 0 < i < len(self.factors) - 1
        }
        first, last = self.rows * self.behind[0] // self.columns, self.rows * self.behind[0] // 32
        return {"stage 1": first, **middle, "inner": words // (16 * self.factors[-1]), "back 1": last}

    def shared_bytes(self, dtype: Any) -> int:
        """Shared memory of a block."""
        return self.rows * self.points * 4 * kind(dtype).planes

    def mmas(self, live: Live | None = None, dtype: Any = "float16", seqlen: int | None = None) -> dict[str, int]:
        """MMAs of a block, each stage, forward ("stage i") and back ("back i").

        seqlen: samples that are no padding, M unless given; blocks of a cut filter count as full.
        """
        n, sides = self.factors, tile_sides(self.factors)
        pairs = (live or Live.dense(n)).pairs
        scale = self.rows * kind(dtype).products
        samples = n[0] // 16  # steps over real samples forward, tiles of them back
        if seqlen is not None and self.source == "real":
            samples = min(samples, -(-seqlen // (16 * self.behind[0])))
        real_in, real_out = self.source == "real", self.source != "complex"
        forward, back = {}, {}
        for i, size in enumerate(n[:-1]):
            columns = scale * pairs[i] * math.prod(sides[:i]) * self.behind[i]
            steps, tiles = size // 8, sides[i] // 8  # forward: all inputs, live outputs; back: the other way round
            forward[f"stage {i + 1}"] = columns // 8 * tiles * (samples if i == 0 and real_in else steps)
            back[f"back {i + 1}"] = columns // 8 * tiles * (samples if i == 0 and real_out else steps)
        inner = scale * pairs[-1] * math.prod(sides[:-1]) // 16 * (n[-1] // 4)
        return {**forward, "inner": inner, "inner back": inner, **dict(reversed(back.items()))}

    def global_bytes(
        self, seqlen: int, dtype: Any, gated: bool = False, live: Live | None = None, skip: bool = False
    ) -> dict[str, int]:
        """Bytes of one signal to and from global memory; tables are not counted.

        skip: a skip connection beside a mask or a cut filter reads the signal again; elsewhere it is in the spectrum.
        """
        size, planes, blocks = kind(dtype).bytes, kind(dtype).planes, self.blocks(seqlen)
        kept = (live or Live.dense(self.factors)).pairs[-1] * math.prod(tile_sides(self.factors))
        spectrum = 4 * planes * kept * blocks
        if self.source == "complex":
            words = 4 * planes * self.points
            return {"read": words, "written": words, "gates": 0, "spectrum": spectrum}
        read = seqlen + (blocks - 1) * self.points  # later blocks read what lies before their own samples
        if skip and (live is not None or self.source == "history"):
            read += seqlen
        gates = size * (read + seqlen) * gated
        return {"read": size * read, "written": size * seqlen, "gates": gates, "spectrum": spectrum}

    def blocks(self, seqlen: int) -> int:
        """Rows that a signal makes."""
        return -(-seqlen // self.points) if self.source == "history" else 1

    def trips(self, live: Live | None = None, dtype: Any = "float16") -> float:
        """How often a point goes into shared memory or out of it; without a mask twice a stage and way, less 4."""
        share = (live or Live.dense(self.factors)).shares(self.factors)[: -2 if core(self.factors, dtype) else -1]
        return 2 * share[0] + sum(2 * (a + b) for a, b in pairwise(share)) + 2 * share[-1]

    def results(self, live: Live | None = None, dtype: Any = "float16") -> float:
        """How often a point leaves a stage for a twiddle, or meets the spectrum; 2 p - 1 without a mask."""
        *share, before, inner = (live or Live.dense(self.factors)).shares(self.factors)
        return 2 * sum(share) + (2 * before + inner) * (FUSED if core(self.factors, dtype) else 1.0)

    def registers(self, dtype: Any) -> dict[str, int]:
        """Estimate for a thread, each stage: what it takes to compile without spilling.

        Matrices, data, sums and twiddles in words, a quarter more for what is on its way, and addresses.  Fitted to
        ptxas 13.0 for sm_90, whose kernels have 96, 128, 168 or 255 registers as five to two warps share a scheduler.
        """
        planes = kind(dtype).planes
        first, *middle, inner = self.factors

        def words(matrix: int, data: int, sums: int, twiddles: int = 0, most: int = KEPT_MATRIX) -> int:
            kept = planes * matrix if planes * matrix <= most else 0
            return ADDRESSES + math.ceil(1.25 * (kept + planes * data + sums + twiddles))

        def turns(size: int, columns: int) -> int:  # kept for a run of units, or made anew for each tile of 8 digits
            return 2 * columns * (size // 8 if size <= 16 else 1)

        equal = self.behind[0] <= 64  # all units of stage 1 have the same twiddles
        stage_1 = {
            "real": (first * first // 32, first, 32, turns(first, 16) if equal else 16 * (first > 16)),
            "history": (first * first // 16, 4 * first, 32, turns(first, 16) if equal else 16 * (first > 16)),
            "complex": (first * first // 16, first, 16, 16 * (first > 16)),
        }[self.source]
        back_1 = (first * first // (16 if self.source == "complex" else 32), first, 16)
        fused = core(self.factors, dtype)
        between = dict(enumerate(middle[: -1 if fused else None], 2))
        inner_stage = words(inner * inner // 8, inner, 16, 0, KEPT_OPERANDS)
        fitted = self.source == "history" and planes == 2 and first == 16
        return {
            "stage 1": BLOCK_REGISTERS if fitted else words(*stage_1),
            **{f"stage {i}": words(n * n // 16, n, 16, turns(n, 8)) for i, n in between.items()},
            **({"core": CORE_REGISTERS} if fused else {"inner": inner_stage}),
            "back 1": words(*back_1),
        }

    def occupancy(self, card: Card, dtype: Any, registers: int | None = None) -> int:
        """Blocks that a multiprocessor holds at once.  registers: of a thread, as estimated unless given."""
        registers = -(-(registers or max(self.registers(dtype).values())) // 8) * 8  # handed out by eights
        warps = 4 * (card.registers_per_multiprocessor // 4 // (32 * registers))  # each quarter has its own registers
        return min(
            card.shared_per_multiprocessor // (self.shared_bytes(dtype) + RESERVED),
            warps // self.warps,
            card.threads_per_multiprocessor // (32 * self.warps),
            card.blocks_per_multiprocessor,
        )


@dataclass(frozen=True)
class TwoLevel:
    """A kernel of radix R from the signal to a scratch buffer, one on R rows of M / R points, and one back."""

    radix: int
    inner: Tiling

    @property
    def points(self) -> int:
        return self.radix * self.inner.points

    @property
    def takes_head(self) -> bool:
        """The outer kernel adds it, whatever the inner one's factors."""
        return True

    def scratch_bytes(self, dtype: Any) -> int:
        """Scratch buffer of one row."""
        return self.points * 4 * kind(dtype).planes

    def mmas(self, live: Live | None = None, dtype: Any = "float16", seqlen: int | None = None) -> dict[str, int]:
        """MMAs of one row, each stage; `live` is the mask of every inner row."""
        columns = self.inner.points
        samples = self.radix // 16 if seqlen is None else min(self.radix // 16, -(-seqlen // (16 * columns)))
        outer = columns // 8 * (self.radix // 8) * samples * kind(dtype).products
        inner = {name: n * self.radix // self.inner.rows for name, n in self.inner.mmas(live, dtype).items()}
        return {"outer": outer, **inner, "outer back": outer}

    def global_bytes(self, seqlen: int, dtype: Any, gated: bool = False, live: Live | None = None) -> dict[str, int]:
        """Bytes of one row to and from global memory, all three kernels."""
        outer = kind(dtype).bytes * seqlen
        inner = {k: self.radix * v for k, v in self.inner.global_bytes(self.inner.points, dtype, live=live).items()}
        scratch = self.scratch_bytes(dtype)
        inner["read"] += outer + scratch
        inner["written"] += outer + scratch
        return {**inner, "gates": 2 * outer * gated}
