"""Which shape of the kernel fits a card and a problem: variables, constraints and an objective, all written as data.

A kernel is a choice of factors (N1 .. Np), rows a thread block and warps a thread block.  `solve` enumerates the few
thousand choices, drops those that a constraint refuses, orders the rest by predicted seconds, and stops where the
bound on what is left says that nothing can win: milliseconds, exact, no solver.  `facts` says why.

Counts (MMAs, bytes) are exact.  Registers and seconds are estimates: good for an order, not for a promise.
Every Card says where its numbers come from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from itertools import pairwise, product
from typing import Any, Literal, get_args

FIRST, MIDDLE, INNER = (16, 32, 48), (8, 16, 32), (16, 32)  # what N1, the factors between, and Np may be
ROWS, WARPS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16)
STAGES = (2, 3, 4)
OUTER = (16, 32, 48, 64)  # radices of the outer kernels of a two-level transform
WIDE = (96, 128)  # tried only where no other radix reaches
Source = Literal["real", "history", "complex"]
SOURCES: tuple[Source, ...] = get_args(Source)
DIRECT_TAPS = 512  # a filter of more is not worth a thought as Toeplitz matrices
HEAD_STEP = 32  # taps that a Toeplitz product takes at once, of a direct filter or of a head beside a mask

MMA_FLOPS = 4096  # mma.m16n8k16
RESERVED = 1024  # bytes of shared memory that the system keeps a block
KEPT_MATRIX, KEPT_OPERANDS = 64, 32  # words of DFT matrices that a thread keeps at most; larger ones are read again
ADDRESSES = 16  # registers for addresses and counters
POINTWISE = 10  # instructions a point and stage output: twiddle or spectrum 4, unpack and pack 3, table and address 3
FUSED = 0.6  # of these, what remains between the stages that run as one
CORE_REGISTERS = 168  # of a thread in the fused stages: three times four warps a multiprocessor
BLOCK_REGISTERS = 216  # in stage 1 of float32 blocks with their history, N1 = 16: 175 .. 214 by ptxas for sm_80, sm_90
LATENCY = 0.5e-6  # seconds from barrier to barrier that a block alone spends filling and draining
BUSY_WARPS = 8  # resident warps a multiprocessor needs, two a scheduler, before its pipelines fill
L2_GAIN = 2.0  # what L2 delivers over what DRAM does
LAUNCH = 2e-6  # seconds


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


# --- cards ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What a GPU offers.  Bytes, bytes a second, floating-point operations a second, Hz."""

    name: str
    arch: str  # "sm_90"
    multiprocessors: int
    shared_per_block: int  # after opting in
    shared_per_multiprocessor: int
    bandwidth: float  # of DRAM
    matrix_rate: float  # that mma.sync reaches with 16-bit inputs and float32 sums
    l2: int
    clock: float
    lanes: int = 128  # float32 instructions a multiprocessor and clock
    threads_per_multiprocessor: int = 2048
    blocks_per_multiprocessor: int = 32
    registers_per_multiprocessor: int = 65536
    provenance: str = "all nominal"

    @property
    def shared_rate(self) -> float:
        """Bytes a second of all shared memories: 32 banks of 4 bytes a clock each."""
        return self.multiprocessors * 128 * self.clock

    @property
    def pointwise_rate(self) -> float:
        """float32 instructions a second."""
        return self.multiprocessors * self.lanes * self.clock

    @classmethod
    def of(cls, device: Any = None) -> Card:
        """The card at hand, sizes as the driver states them, rates by its architecture.

        device: what torch calls one; None is the current one.
        """
        import torch

        p = torch.cuda.get_device_properties(device)
        base = nearest(p.major, p.minor)
        grown = p.multi_processor_count / base.multiprocessors
        stated = {
            "multiprocessors": p.multi_processor_count,
            "shared_per_block": getattr(p, "shared_memory_per_block_optin", None),
            "shared_per_multiprocessor": getattr(p, "shared_memory_per_multiprocessor", None),
            "threads_per_multiprocessor": getattr(p, "max_threads_per_multi_processor", None),
            "registers_per_multiprocessor": getattr(p, "regs_per_multiprocessor", None),
            "l2": getattr(p, "L2_cache_size", None),
        }
        return replace(
            base,
            name=p.name,
            arch=f"sm_{p.major}{p.minor}",
            matrix_rate=base.matrix_rate * grown,
            provenance=f"sizes from the driver, rates of {base.name} ({base.provenance})",
            **{key: value for key, value in stated.items() if value},
        )


CARDS = {
    card.arch: card
    for card in (
        Card(
            "A100 40GB", "sm_80", 108, 166912, 167936, 1.555e12, 250e12, 40 << 20, 1.41e9, lanes=64,
            provenance="all nominal, matrix rate 80 % of nominal",
        ),
        Card(
            "RTX A6000", "sm_86", 84, 101376, 102400, 0.768e12, 124e12, 6 << 20, 1.8e9,
            threads_per_multiprocessor=1536, blocks_per_multiprocessor=16,
            provenance="all nominal, matrix rate 80 % of nominal",
        ),
        Card(
            "L40S", "sm_89", 142, 101376, 102400, 0.864e12, 290e12, 96 << 20, 2.52e9,
            threads_per_multiprocessor=1536, blocks_per_multiprocessor=24,
            provenance="all nominal, matrix rate 80 % of nominal",
        ),
        Card(
            "H200", "sm_90", 132, 232448, 233472, 4.3e12, 490e12, 50 << 20, 1.755e9,
            provenance="bandwidth 90 %, matrix rate 62 % of nominal, the rest nominal",
        ),
        Card(
            "B200", "sm_100", 148, 232448, 233472, 8e12, 550e12, 126 << 20, 1.85e9,
            provenance="all nominal, matrix rate a guess: mma.sync is not this card's own instruction",
        ),
    )
}  # fmt: skip


def nearest(major: int, minor: int) -> Card:
    """The card of the table whose architecture comes closest from below."""
    if major >= 12:  # sold as the next generation of sm_89: its shared memory, not that of sm_100
        return CARDS["sm_89"]
    below = [card for card in CARDS.values() if int(card.arch[3:]) <= 10 * major + minor]
    if not below:
        raise ValueError(f"the kernels need an architecture from sm_80 on, this card is sm_{major}{minor}; use the CPU")
    return max(below, key=lambda card: int(card.arch[3:]))


def card(arch: str | None = None) -> Card:
    """The card of the table with this architecture; without one the card at hand, or where there is none an H200."""
    if arch is None:
        import torch

        return Card.of() if torch.cuda.is_available() else CARDS["sm_90"]
    arch = arch.removesuffix("a")  # sm_90a is how sm_90 compiles
    if arch not in CARDS:
        raise ValueError(f"no numbers for a card of architecture {arch!r}; choose from {', '.join(CARDS)}")
    return CARDS[arch]


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


class NothingFitsError(ValueError):
    """No kernel takes this problem, and why."""


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

    @property
    def swizzle(self) -> tuple[tuple[int, int], ...]:
        """(bit, image) pairs: chunk q lies at q ^ (XOR of the images of the bits of q), images below 8."""
        return find_swizzle(replace(self, rows=min(self.rows, 4), warps=1))  # eight lanes reach no fifth row

    @property
    def conflicts(self) -> dict[str, float]:
        """Wavefronts of each access pattern over the fewest possible; 1 is free of conflicts."""
        return wavefronts(replace(self, rows=min(self.rows, 4)), self.swizzle)


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


# --- swizzle: no two of eight lanes at one bank --------------------------------------------------------------------


EIGHTS = [[(2 * q + lane // 4, lane % 4) for lane in range(8)] for q in range(4)]  # (g, t) of a warp's lanes 4 g + t


def accesses(tiling: Tiling, every: bool = True) -> Iterator[tuple[str, list[int]]]:
    """Chunks of 16 bytes that eight consecutive lanes touch at once: (pattern, natural indices).

    every False leaves out what differs by bits that all eight lanes share: enough for a linear swizzle.
    """
    n, behind = tiling.factors, [s // 4 for s in tiling.behind[:-1]]  # in chunks
    # eight lanes of a short row reach into others, and with 48 rows of chunks these do not start at powers of two
    every = every or (n[0] == 48 and behind[0] < 16)

    def some(count: int) -> range:
        return range(count if every else 1)

    eights = EIGHTS if every else EIGHTS[:1]

    def at(axis: int, group: int, digit: int) -> int:
        prefix, column = divmod(group, behind[axis])
        return (prefix * n[axis] + digit) * behind[axis] + column

    for axis in range(len(n) - 1):
        units = tiling.rows * tiling.points // (32 * n[axis])
        for unit, tile, e, lanes in product(some(units), some(n[axis] // 8), some(2), eights):
            yield f"load {axis + 1}", [at(axis, 8 * unit + g, 8 * tile + t + 4 * e) for g, t in lanes]
            if axis > 0 or tiling.source == "complex":
                yield f"store {axis + 1}", [at(axis, 8 * unit + 2 * t + e, 8 * tile + g) for g, t in lanes]
    if tiling.source != "complex":  # 16 columns a lane, two chunks of each group of 8
        for unit, tile, e, c, lanes in product(
            some(tiling.units["stage 1"]), some(n[0] // 8), some(2), some(2), eights
        ):
            yield "store 1", [at(0, 2 * (8 * unit + 2 * t + e) + c, 8 * tile + g) for g, t in lanes]
    for unit, d, step, lanes in product(some(tiling.units["inner"]), some(2), some(n[-1] // 16), eights):
        yield "inner", [(16 * unit + g + 8 * d) * behind[-1] + t + 4 * step for g, t in lanes]
    if core(n, "float16"):  # two prefixes of 16 x 4 chunks at a time; for float32 the patterns above
        for unit, d, lanes in product(some(tiling.rows * tiling.points // 512), some(2), eights):
            yield "core", [(16 * (2 * unit + g % 2) + t) * 4 + g // 2 + 16 * d for g, t in lanes]
            yield "core", [(16 * (2 * unit + d) + g) * 4 + t for g, t in lanes]


def fold(chunk: int, images: Mapping[int, int]) -> int:
    """XOR of the images of a chunk's set bits."""
    found = 0
    for bit, image in images.items():
        found ^= image * (chunk >> bit & 1)
    return found


@cache
def find_swizzle(tiling: Tiling) -> tuple[tuple[int, int], ...]:
    """Images under which fewest of eight lanes meet: two do where the XOR of their chunks is folded to zero.

    Depth first over the bits that matter; the cost of a bit is known once those below it have their images.
    """
    meets: dict[int, Counter[int]] = {}  # top bit -> differences of lanes, and how often each is met
    for _, chunks in accesses(tiling, every=False):
        for a in range(8):
            for difference in {chunks[a] ^ chunk for chunk in chunks[:a]} - {0}:
                meets.setdefault(difference.bit_length() - 1, Counter())[difference] += 1
    bits = sorted(bit for bit in meets if bit > 2)
    images = {0: 1, 1: 2, 2: 4}
    best: tuple[float, dict[int, int]] = (math.inf, {})

    def search(depth: int, cost: float) -> None:
        nonlocal best
        if cost >= best[0]:
            return
        if depth == len(bits):
            best = cost, {bit: images[bit] for bit in bits}
            return
        bit = bits[depth]
        for image in range(8):
            images[bit] = image
            search(depth + 1, cost + sum(n for d, n in meets[bit].items() if not fold(d, images)))
            if best[0] == 0:
                return
        del images[bit]

    search(0, 0)
    return tuple((bit, image) for bit, image in best[1].items() if image)


def wavefronts(tiling: Tiling, swizzle: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Wavefronts of each access pattern over the fewest possible."""
    images = dict(swizzle)
    met: dict[str, list[int]] = {}
    for name, chunks in accesses(tiling, every=False):
        lines = Counter((chunk ^ fold(chunk, images)) % 8 for chunk in set(chunks))
        met.setdefault(name, []).append(max(lines.values()))
    return {name: sum(counts) / len(counts) for name, counts in met.items()}


# --- the problem, its constraints, its objective -------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What is to be computed, and where.

    rows_total: signals, B * H.  batch: of these, neighbours that share a spectrum.  taps: of a filter cut in time, for
    the source "history".  gated: signals multiplied on the way in and on the way out.
    """

    card: Card
    seqlen: int
    dtype: str
    rows_total: int
    source: str = "real"
    taps: int | None = None
    gated: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        kind(self.dtype)
        for name in ("seqlen", "rows_total", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.source not in SOURCES:
            raise ValueError(f"no kernel reads {self.source!r}; choose from {', '.join(SOURCES)}")
        if (self.source == "history") != (self.taps is not None):
            raise ValueError("taps belong to the source 'history', and it needs them; give both or neither")
        if self.taps is not None and not 1 <= self.taps <= self.seqlen:
            raise ValueError(f"taps must lie in 1 .. seqlen = {self.seqlen}, got {self.taps}")

    @property
    def reach(self) -> int:
        """Points that a row needs at least."""
        return self.seqlen if self.taps is None else self.taps

    @property
    def kind(self) -> Kind:
        return kind(self.dtype)

    def rows(self, tiling: Tiling) -> int:
        """Rows that the signals make."""
        return self.rows_total * tiling.blocks(self.seqlen)


@dataclass(frozen=True)
class Constraint:
    """What a kernel must satisfy.

    on: the variable after which it can be judged.  holds: whether it does.  told: what is wrong, for people.
    """

    name: str
    on: str
    holds: Callable[[Problem, Tiling], bool]
    told: Callable[[Problem, Tiling], str]


def uneven(problem: Problem, tiling: Tiling) -> str:
    stage, units = next((s, n) for s, n in tiling.units.items() if n % tiling.warps)
    return f"{stage} has {units} units, which {tiling.warps} warps cannot share evenly"


CONSTRAINTS = (
    Constraint(
        "enough points", "factors",
        lambda p, t: t.points >= p.reach,
        lambda p, t: f"{t.points} points are fewer than the {p.reach} {'taps' if p.taps else 'samples'}",
    ),
    Constraint(
        "registers of a thread", "factors",
        lambda p, t: max(t.registers(p.dtype).values()) <= 255,
        lambda p, t: f"about {max(t.registers(p.dtype).values())} registers, a thread has 255",
    ),
    Constraint(
        "shared memory", "rows",
        lambda p, t: t.shared_bytes(p.dtype) <= p.card.shared_per_block,
        lambda p, t: f"{t.rows} x {t.points} points of {p.dtype} take {t.shared_bytes(p.dtype)} bytes of "
        f"shared memory, a block on {p.card.name} gets {p.card.shared_per_block}",
    ),
    Constraint(
        "whole columns", "rows",
        lambda p, t: t.rows * t.behind[0] % t.columns == 0,
        lambda p, t: f"{t.rows} x {t.behind[0]} columns are no multiple of the {t.columns} that a warp takes at once",
    ),
    Constraint(
        "rows there are", "rows",
        lambda p, t: t.rows < 2 * p.rows(t),
        lambda p, t: f"{t.rows} rows a block where there are {p.rows(t)}",
    ),
    Constraint(
        "one spectrum a block", "rows",
        lambda p, t: t.rows == 1 or t.source != "complex",
        lambda p, t: f"{t.rows} inner rows of a two-level transform have as many outer digits",
    ),
    Constraint(
        "rows at powers of two", "rows",
        lambda p, t: t.rows == 1 or t.factors[0] != 48,
        lambda p, t: f"{t.rows} rows of {t.points} words do not start where the swizzle is the same",
    ),
    Constraint("equal work", "warps", lambda p, t: not any(n % t.warps for n in t.units.values()), uneven),
    Constraint(
        "room on a multiprocessor", "warps",
        lambda p, t: t.occupancy(p.card, p.dtype) >= 1,
        lambda p, t: f"{t.warps} warps of about {max(t.registers(p.dtype).values())} registers a thread exceed the "
        f"{p.card.registers_per_multiprocessor} registers of a multiprocessor",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A kernel that fits, and what it is predicted to take.

    seconds = the longest of `terms` + exposed + launch.  terms: seconds of each resource if nothing else were in the
    way; exposed: what does not hide behind the longest: phases that follow each other in too few blocks, idle
    multiprocessors in the last wave, time from barrier to barrier.
    """

    tiling: Tiling | TwoLevel
    seconds: float
    terms: Mapping[str, float]
    exposed: float
    launch: float
    occupancy: int
    waves: float
    registers: int
    shared_bytes: int

    @property
    def order(self) -> tuple[Any, ...]:
        """Best first: less time, then more warps at once, then fewer registers."""
        inner = self.tiling.inner
        return self.seconds, -self.occupancy * inner.warps, self.registers, inner.factors, inner.rows

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        inner = self.tiling.inner
        return {
            **asdict(self),
            "factors": inner.factors,
            "points": self.tiling.points,
            "swizzle": inner.swizzle,
            "conflicts": max(inner.conflicts.values()),
        }


def signal_terms(problem: Problem, tiling: Tiling, live: Live | None = None) -> dict[str, float]:
    """Seconds that one signal keeps each resource of the whole card busy.  Whatever its rows and warps."""
    card, kind, blocks = problem.card, problem.kind, tiling.blocks(problem.seqlen)
    moved = tiling.global_bytes(problem.seqlen, problem.dtype, problem.gated, live)
    spectrum = moved["spectrum"] / blocks / problem.batch  # the rest of its reads L2 answers
    once = moved["written"] * (2 + 2 * problem.gated) if tiling.source != "complex" else 2 * moved["written"]
    mmas = sum(tiling.mmas(live, problem.dtype, problem.seqlen).values()) / tiling.rows * blocks
    points = tiling.points * blocks * kind.planes
    return {
        "memory": max(once + spectrum, sum(moved.values()) / L2_GAIN) / card.bandwidth,
        "matrix": mmas * MMA_FLOPS / card.matrix_rate,
        "shared": 4 * points * tiling.trips(live, problem.dtype) / card.shared_rate,
        "pointwise": POINTWISE * points * tiling.results(live, problem.dtype) / card.pointwise_rate,
    }


def block_seconds(busy: Mapping[str, float], tiling: Tiling, resident: int) -> float:
    """Seconds a multiprocessor spends on one of `resident` blocks.

    busy: seconds that a block keeps each resource of the multiprocessor.  One block alone takes its phases in turn, so
    they add up; many hide all but the longest; in between, the rest shrinks with the number of blocks.
    """
    slack = max(1.0, BUSY_WARPS / (resident * tiling.warps))  # too few warps to fill the pipelines
    longest, together = slack * max(busy.values()), slack * sum(busy.values())
    return longest + (together - longest + LATENCY * 2 * len(tiling.factors)) / resident


def predict(
    problem: Problem, tiling: Tiling, signal: Mapping[str, float] | None = None, live: Live | None = None
) -> Candidate:
    """What a kernel takes.  signal: `signal_terms`, if known."""
    signal = signal or signal_terms(problem, tiling, live)
    card, rows = problem.card, problem.rows(tiling)
    blocks = -(-rows // tiling.rows)
    resident = tiling.occupancy(card, problem.dtype)
    padded = blocks * tiling.rows / tiling.blocks(problem.seqlen)  # signals; the last block may be partly empty
    terms = {name: seconds * padded for name, seconds in signal.items()}
    busy = {name: seconds / blocks * card.multiprocessors for name, seconds in terms.items()}
    full, left = divmod(blocks, card.multiprocessors * resident)
    tail = -(-left // card.multiprocessors)  # blocks that the busiest multiprocessor still has
    seconds = full * resident * block_seconds(busy, tiling, resident)
    seconds += tail * block_seconds(busy, tiling, tail) if tail else 0.0
    return Candidate(
        tiling, seconds + LAUNCH, terms, seconds - max(terms.values()), LAUNCH, resident,
        blocks / (card.multiprocessors * resident), max(tiling.registers(problem.dtype).values()),
        tiling.shared_bytes(problem.dtype),
    )  # fmt: skip


# --- the search ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """The values of the variables."""

    factors: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...] = ROWS
    warps: tuple[int, ...] = WARPS

    @property
    def size(self) -> int:
        return len(self.factors) * len(self.rows) * len(self.warps)


DOMAIN = Domain(tuple(f for p in STAGES for f in product(FIRST, *[MIDDLE] * (p - 2), INNER)))


@dataclass
class Search:
    """What a search found: the candidates, best first, and how many kernels each constraint refused.

    examples: what was wrong with one of these, near to fitting.  outbid: kernels that were not looked at since nothing
    of their factors can be quick enough.
    """

    candidates: list[Candidate]
    refused: Counter[str]
    examples: dict[str, str]
    outbid: int = 0


def search(
    problem: Problem,
    count: int | None = 8,
    domain: Domain = DOMAIN,
    live: Callable[[tuple[int, ...]], Live] | None = None,
) -> Search:
    """The `count` best of a domain; None looks at all, for the sake of complete counts."""
    found = Search([], Counter(), {})

    def passes(tiling: Tiling, on: str, kernels: int) -> bool:
        for constraint in CONSTRAINTS:
            if constraint.on == on and not constraint.holds(problem, tiling):
                found.refused[constraint.name] += kernels
                if on == "factors" or constraint.name not in found.examples:
                    found.examples[constraint.name] = constraint.told(problem, tiling)
                return False
        return True

    each = len(domain.rows) * len(domain.warps)
    shapes = sorted((Tiling(f, 1, 1, problem.source) for f in domain.factors), key=lambda t: t.points)
    shapes = [shape for shape in shapes if passes(shape, "factors", each)]
    costs = [signal_terms(problem, shape, live and live(shape.factors)) for shape in shapes]
    bounds = [max(cost.values()) * problem.rows_total + LAUNCH for cost in costs]
    by_bound = range(len(shapes)) if count is None else sorted(range(len(shapes)), key=bounds.__getitem__)
    for place, i in enumerate(by_bound):
        if count and len(found.candidates) >= count and bounds[i] > found.candidates[count - 1].seconds:
            found.outbid = (len(shapes) - place) * each
            break
        for rows in domain.rows:
            tiling = replace(shapes[i], rows=rows)
            if not passes(tiling, "rows", len(domain.warps)):
                continue
            choices = [replace(tiling, warps=warps) for warps in domain.warps]
            found.candidates += [predict(problem, t, costs[i]) for t in choices if passes(t, "warps", 1)]
        found.candidates.sort(key=lambda c: c.order)
        del found.candidates[count or len(found.candidates) :]
    return found


def solve(
    card: Card,
    seqlen: int,
    *,
    dtype: Any = "float16",
    rows_total: int,
    source: str = "real",
    taps: int | None = None,
    gated: bool = False,
    batch: int = 1,
    count: int = 8,
    live: Callable[[tuple[int, ...]], Live] | None = None,
) -> list[Candidate]:
    """The kernels that fit, best first, at most `count`; an empty list where none does, and `facts` says why.

    live: what a mask leaves under these factors, for a frequency-sparse convolution.  The rest is told at Problem.
    """
    problem = Problem(card, seqlen, type_name(dtype), rows_total, source, taps, gated, batch)
    return search(problem, count, live=live).candidates


def partial(card: Card, seqlen: int, taps: int, **rest: Any) -> list[Candidate]:
    """Kernels for a filter of `taps` taps, best first: a row is cut into blocks of M >= taps samples.

    rest: as for `solve`.
    """
    return solve(card, seqlen, source="history", taps=taps, **rest)


def two_level(
    card: Card,
    seqlen: int,
    *,
    dtype: Any = "float16",
    rows_total: int,
    gated: bool = False,
    batch: int = 1,
    count: int = 8,
    live: Callable[[tuple[int, ...]], tuple[int, Live]] | None = None,
) -> list[Candidate]:
    """Transforms in three kernels through a scratch buffer, best first: for signals that no block holds.

    live: what a mask leaves under factors, those of the outer stage first: digits of that stage, and tiles of a row.
    """
    problem = Problem(card, seqlen, type_name(dtype), rows_total, gated=gated, batch=batch)
    for radices in (OUTER, WIDE):
        fit = [radix for radix in radices if outer_registers(radix, problem.kind) <= 255]
        found = [candidate for radix in fit for candidate in with_radix(problem, radix, count, live)]
        if found:
            return sorted(found, key=lambda c: c.order)[:count]
    return []


def outer_registers(radix: int, sample: Kind) -> int:
    """Estimate for a thread of an outer kernel.  It computes one stage only, and reads large matrices in the loop."""
    return (8 + radix) * sample.planes + 32 + 40


def with_radix(
    problem: Problem, radix: int, count: int, live: Callable[[tuple[int, ...]], tuple[int, Live]] | None = None
) -> list[Candidate]:
    """Two-level transforms of this outer radix."""
    card, rows = problem.card, problem.rows_total
    inside = replace(
        problem, seqlen=-(-problem.seqlen // radix), rows_total=rows * radix, source="complex", gated=False
    )
    found = []
    for best in search(inside, count).candidates:
        kernel, share = best.tiling.inner, 1.0
        tiling = TwoLevel(radix, kernel)
        if live is not None:
            digits, left = live((radix, *kernel.factors))
            best, share = predict(replace(inside, rows_total=rows * digits), kernel, live=left), digits / radix
        moved = problem.kind.bytes * problem.seqlen * (1 + problem.gated) + share * tiling.scratch_bytes(problem.dtype)
        mmas = share * tiling.mmas(dtype=problem.dtype, seqlen=problem.seqlen)["outer"]
        points = share * tiling.points * problem.kind.planes
        outer = {
            "memory": moved * rows / card.bandwidth,
            "matrix": mmas * rows * MMA_FLOPS / card.matrix_rate,
            "shared": 0.0,
            "pointwise": POINTWISE * points * rows / card.pointwise_rate,
        }
        seconds = best.seconds + 2 * (max(outer.values()) + LAUNCH)  # no barriers: all but the longest hides
        terms = {name: s + 2 * outer[name] for name, s in best.terms.items()}
        found.append(
            replace(
                best, tiling=tiling, seconds=seconds, terms=terms, launch=3 * LAUNCH,
                exposed=seconds - 3 * LAUNCH - max(terms.values()),
                registers=max(best.registers, outer_registers(radix, problem.kind)),
            )
        )  # fmt: skip
    return found


def best(
    card: Card,
    seqlen: int,
    dtype: Any,
    rows_total: int,
    *,
    taps: int | None = None,
    gated: bool = False,
    batch: int = 1,
) -> Candidate:
    """The quickest way: one block a row, two levels where that does not fit, or overlapping blocks for `taps`.

    Raises NothingFitsError, with the reason, where nothing does.
    """
    shape: dict[str, Any] = {"dtype": dtype, "rows_total": rows_total, "gated": gated, "batch": batch}
    found = solve(card, seqlen, **shape, count=1) or two_level(card, seqlen, **shape, count=1)
    if taps is not None and taps < seqlen:
        found += partial(card, seqlen, taps, **shape, count=1)
    if not found:
        raise NothingFitsError(facts(card, seqlen, **shape)["advice"])
    return min(found, key=lambda c: c.order)


def longest(card: Card, dtype: Any, levels: int = 1) -> int:
    """Most samples of a signal that a card takes, in one block (levels 1) or through a scratch buffer (2)."""
    source = "real" if levels == 1 else "complex"
    fitting = search(Problem(card, 1, type_name(dtype), ROWS[-1], source), None).candidates
    radix = max(r for r in OUTER + WIDE if outer_registers(r, kind(dtype)) <= 255) if levels == 2 else 1
    return radix * max(candidate.tiling.points for candidate in fitting)


# --- saying why ----------------------------------------------------------------------------------------------------


def facts(card: Card, seqlen: int, *, count: int = 5, **shape: Any) -> dict[str, Any]:
    """The best kernels with every term, what each constraint refused, and what to do where none fits: JSON.

    shape: the keywords of `solve`.
    """
    shape["dtype"] = type_name(shape.get("dtype", "float16"))
    problem = Problem(card, seqlen, **shape)
    one = search(problem, None)
    candidates, advice = one.candidates[:count], None
    if not candidates:
        culprit = max(one.refused, key=[c.name for c in CONSTRAINTS].index)  # the one that came closest
        advice = f"no block holds {problem.reach} points: {one.examples[culprit]}"
        if problem.source == "real":
            rest = {key: value for key, value in shape.items() if key not in {"source", "taps"}}
            candidates = two_level(card, seqlen, count=count, **rest)
            reach = longest(card, shape["dtype"], levels=2)
            advice += (
                "; two levels do" if candidates else f"; two levels hold up to {reach}: cut the signal or the filter"
            )
        elif problem.source == "history":
            advice += "; take the whole filter, in two levels"
    return {
        **{field.name: getattr(problem, field.name) for field in fields(problem)},
        "card": asdict(card),
        "kernels": DOMAIN.size,
        "fitting": len(one.candidates),
        "candidates": [candidate.facts() for candidate in candidates],
        "refused": [
            {"constraint": c.name, "kernels": one.refused[c.name], "for_example": one.examples[c.name]}
            for c in CONSTRAINTS
            if one.refused[c.name]
        ],
        "advice": advice,
    }


def as_text(found: Mapping[str, Any]) -> str:
    """`facts` for people: a table of the best, and a line for each constraint."""
    card, terms = found["card"], ("memory", "matrix", "shared", "pointwise")
    lines = [
        f"{found['rows_total']} rows of {found['seqlen']} samples, {found['dtype']}, source {found['source']}, "
        f"on {card['name']} ({card['arch']}; {card['provenance']})"
    ]
    if found["candidates"]:
        heads = (*terms, "+ exposed", "+ launch")
        lines.append(
            f"{'factors':>18} rows warps {'us':>9} = max of" + "".join(f"{name:>10}" for name in heads)
            + "  blocks/SM  waves  registers  shared  conflicts"
        )  # fmt: skip
    for c in found["candidates"]:
        radix = c["tiling"].get("radix")
        inner = c["tiling"].get("inner", c["tiling"])
        name = (f"{radix} | " if radix else "") + " x ".join(map(str, c["factors"]))
        times = [*(c["terms"][t] for t in terms), c["exposed"], c["launch"]]
        lines.append(
            f"{name:>18} {inner['rows']:4} {inner['warps']:5} {c['seconds'] * 1e6:9.1f}         "
            + "".join(f"{s * 1e6:10.1f}" for s in times)
            + f"  {c['occupancy']:9} {c['waves']:6.1f} {c['registers']:10} {c['shared_bytes']:7} {c['conflicts']:10.2f}"
        )
    lines.append(f"of {found['kernels']} kernels {found['fitting']} fit one block a row")
    lines += [f"{r['kernels']:6} refused by {r['constraint']}: {r['for_example']}" for r in found["refused"]]
    return "\n".join(lines + [found["advice"]] * bool(found["advice"]))
