"""The GPU backend: what is prepared of a filter for the tensor-core kernels, and how it meets a signal.

A `Way` says which kernels of `cuda/fftconv.cu` run and how they are built; `prepare` picks the one that
`sparsify.tiling` predicts to be the quickest, and makes its tables.  Nothing of that happens in a call.

Sums are float32 throughout.  16-bit signals are rounded to their type after every stage: relative errors near 6e-4
(float16) and 5e-3 (bfloat16).  A float32 signal is computed with as two bfloat16, errors near 1e-5, which is what
`torch.set_float32_matmul_precision` calls "high": at "highest", torch's default, float32 is left to torch.fft.
"""

from __future__ import annotations

import ctypes
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch
from torch import Tensor

from . import fragments, nvrtc, tiling
from .cpu import KERNEL, Prepared, Structure, crop
from .fragments import SOURCES, TYPES, Stages
from .spectra import spectrum

KERNELS = ("conv", "outer_forward", "outer_inverse", "direct")
DIRECT_TAPS = 512  # a filter of more is not worth a thought as Toeplitz matrices
OUTER_UNITS = 4  # units of an outer kernel that a warp takes one after another, for the sake of its matrix


class Signal(ctypes.Structure):
    """`Signal` of cuda/stages.cuh."""

    _fields_ = (("memory", ctypes.c_void_p), ("batch", ctypes.c_longlong), ("channel", ctypes.c_longlong))


class Call(ctypes.Structure):
    """`Call` of cuda/stages.cuh, field by field."""

    _fields_ = (
        *((name, Signal) for name in "u pregate gate y".split()),
        *((name, ctypes.c_void_p) for name in "scale skip spectra head".split()),
        *((name, ctypes.c_void_p * 4) for name in "forward inverse turns steps".split()),
        *((name, ctypes.c_void_p) for name in "outer_turns outer_steps".split()),
        ("live", ctypes.c_void_p * 4),
        ("scratch", ctypes.c_void_p),
        ("scratch_plane", ctypes.c_longlong),
        *((name, ctypes.c_uint) for name in "rows batch blocks outer".split()),
        *((name, ctypes.c_int) for name in "seqlen ahead".split()),
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
    wide: bool = True
    resident: int = 1  # blocks that a multiprocessor is to hold at once

    @property
    def macros(self) -> dict[str, object]:
        swizzle: tuple[tuple[int, int], ...] = ((0, 0),)
        if self.entry == "conv":
            swizzle = tiling.Tiling(self.factors, self.rows, self.warps, self.source).swizzle or swizzle
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
            "SPARSIFY_WIDE": int(self.wide),
            "SPARSIFY_SWIZZLE": ",".join(f"{bit},{image}" for bit, image in swizzle),
        }

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.rows * math.prod(self.factors) * 4 * fragments.planes(self.dtype) if self.entry == "conv" else 0


@dataclass(frozen=True)
class Way:
    """How a convolution is computed on the GPU.

    source: "real" and "history" as in `tiling`; "complex" for two levels, with `radix` digits outside, of which the
    first `outer` slots are kept; "direct" for Toeplitz matrices alone.  head: taps of an exact head, a multiple of 32.
    """

    source: str
    dtype: torch.dtype
    seqlen: int
    factors: tuple[int, ...] = (16, 32)
    rows: int = 1
    warps: int = 4
    masked: bool = False
    head: int = 0
    ahead: int = 0
    radix: int = 1
    outer: int = 1
    resident: int = 1

    WAYS = (*SOURCES, "direct")

    @property
    def points(self) -> int:
        return self.radix * math.prod(self.factors)

    def to_ints(self) -> tuple[int, ...]:
        """As an operator takes it."""
        flags = (int(self.masked), self.head, self.ahead, self.radix, self.outer, self.resident)
        kinds = (self.WAYS.index(self.source), TYPES.index(self.dtype))
        return (KERNEL, *kinds, self.seqlen, self.rows, self.warps, *flags, *self.factors)

    @classmethod
    def from_ints(cls, numbers: Sequence[int]) -> Way:
        _, source, dtype, seqlen, rows, warps, masked, head, ahead, radix, outer, resident, *factors = numbers
        shape = tuple(factors), rows, warps, bool(masked), head, ahead, radix, outer, resident
        return cls(cls.WAYS[source], TYPES[dtype], seqlen, *shape)

    def builds(self, wide: bool = True) -> tuple[Build, ...]:
        """The kernels, in the order in which they run.  wide: see `wide` below."""
        if self.source == "direct":
            return (Build("direct", self.dtype, self.factors, warps=self.warps, head=self.head, wide=wide),)
        shape = self.factors, self.rows, self.warps, self.source, self.masked, self.head, wide, self.resident
        own = Build("conv", self.dtype, *shape)
        if self.source != "complex":
            return (own,)
        levels = self.radix, self.points // self.radix
        before = Build("outer_forward", self.dtype, levels, masked=self.masked, wide=wide)
        return before, replace(own, head=0, wide=True), replace(before, entry="outer_inverse", head=self.head)

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


# --- tables ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def stage_tables(stages: Stages, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """What depends on no filter, shared by all that are computed alike: forward, inverse, turns and steps."""
    axes = range(len(stages.factors))
    made = [stages.forward(axis, dtype) for axis in axes] + [stages.inverse(axis, dtype) for axis in axes]
    made += [stages.turns(axis) for axis in axes[:-1]] + [stages.steps(axis) for axis in axes[:-1]]
    return tuple(table.to(device) for table in made)


def outer_tables(stages: Stages, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Of an outer stage alone."""
    made = (stages.forward(0, dtype), stages.inverse(0, dtype), stages.turns(0), stages.steps(0))
    return tuple(table.to(device) for table in made)


def normalised(k_f: Tensor, head: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spectrum and head divided by their largest entry, channel by channel, and that entry: (H,) float32."""
    scale = k_f.abs().amax(-1)
    if head is not None:
        scale = torch.maximum(scale, head.abs().amax(-1))
    scale = torch.where(scale > 0, scale, 1.0).float().double()
    return k_f / scale[:, None], scale.float(), head if head is None else head / scale[:, None]


def padded_head(head: Tensor) -> Tensor:
    """A head of a multiple of 32 taps, float64."""
    return torch.nn.functional.pad(head.double(), (0, -head.shape[-1] % 32))


def by_digit(bins: Tensor, factors: Sequence[int]) -> Tensor:
    """(M,) in natural order of frequencies -> (N1, .., Np)."""
    return bins.view(*reversed(factors)).permute(*reversed(range(len(factors))))


def slots(bins: Tensor, factors: Sequence[int]) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """Orders of the digits for a mask, and what is kept in that order: (N1, .., Np) bool."""
    kept = by_digit(bins, factors)
    orders = tiling.slot_orders(kept.numpy())
    for axis, order in enumerate(orders):
        kept = kept.index_select(axis, torch.tensor(order))
    return orders, kept


def make(
    way: Way, k: Tensor, ahead: int, device: torch.device, bins: Tensor | None = None, head: Tensor | None = None
) -> Prepared:
    """Tables of one way for one filter.

    k: (H, K), tap j at lag j - ahead, without its head.  bins: (M,) bool, the bins that a mask keeps.
    """
    k, head = k.double(), None if head is None else padded_head(head)
    if way.source == "direct":
        taps = padded_head(k)
        _, scale, taps_ = normalised(k.new_zeros(len(k), 1), taps)
        assert taps_ is not None
        tables = (scale, fragments.toeplitz(taps_, way.dtype))
        return Prepared(tuple(t.to(device) for t in tables), way.to_ints())
    k_f = spectrum(k, way.points, 0 if way.source == "history" else ahead)
    if bins is not None:
        k_f = k_f * bins.to(k.device)
    k_f, scale, head = normalised(k_f, head)
    factors = way.factors if way.source != "complex" else (way.radix, *way.factors)
    orders: tuple[tuple[int, ...], ...] = Stages.natural(factors).orders
    live: list[Tensor] = []
    if bins is not None:
        orders, kept = slots(bins, factors)
    if way.source == "complex":
        outside = Stages((way.radix, math.prod(way.factors)), (orders[0], ()), "real")
        inside = Stages(way.factors, orders[1:], "complex")
        if bins is not None:
            tiles = kept.view(-1, fragments.TILE, *way.factors).any(1, keepdim=True)  # an outer tile has one pattern
            reached = tiles.flatten(1).any(1)
            outer = fragments.TILE * int(reached.sum())
            live.append((reached.long() << torch.arange(len(reached))).sum().to(torch.int32)[None])
            live += inside.live(tiles.expand(-1, fragments.TILE, *way.factors).flatten(0, 1)[:outer])
            way = replace(way, outer=outer)
        else:
            way = replace(way, outer=way.radix)
        shared = outer_tables(outside, way.dtype, device) + stage_tables(inside, way.dtype, device)
        picked = k_f.unflatten(-1, (-1, way.radix))[..., torch.tensor(orders[0][: way.outer])]  # (H, M / R, outer)
        spectra = inside.spectra(picked.transpose(1, 2).flatten(0, 1), way.dtype)
    else:
        stages = Stages(factors, orders, way.source)  # type: ignore[arg-type]
        shared = stage_tables(stages, way.dtype, device)
        if bins is not None:
            live = stages.live(kept)
        spectra = stages.spectra(k_f, way.dtype)
    own = [scale, spectra, *live] + ([] if head is None else [fragments.toeplitz(head, way.dtype)])
    return Prepared((*shared, *(t.to(device) for t in own)), way.to_ints())


# --- choosing --------------------------------------------------------------------------------------------------------


def takes(u: Tensor) -> bool:
    """Whether the kernels convolve signals like u here; if they cannot, a warning says why, once."""
    if not u.is_cuda or u.dtype not in TYPES or switched_off():
        return False
    if u.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return False
    reason = nvrtc.why_not(u.device)
    if reason is not None:
        warn(reason)
    return reason is None


def switched_off() -> bool:
    return os.environ.get("SPARSIFY_GPU") == "0"


@cache
def warn(reason: str) -> None:
    warnings.warn(f"sparsify runs without its GPU kernels, through torch.fft: {reason}", RuntimeWarning, stacklevel=2)


def prepare(
    k: Tensor,
    ahead: int,
    seqlen: int,
    dtype: torch.dtype,
    batch: int = 1,
    structure: Structure | None = None,
    card: tiling.Card | None = None,
) -> Prepared:
    """The way that is predicted to be the quickest for signals of up to `seqlen` samples, and its tables on k's device.

    k: (H, K), tap j at lag j - ahead.  batch: what to expect; any other works, too.
    """
    card = card or tiling.Card.of(k.device)
    felt, felt_ahead = crop(k, ahead, seqlen)
    seconds, way = plain_way(card, dtype, seqlen, felt.shape[-1], felt_ahead, batch, k.shape[0])
    if structure is not None and seqlen <= structure.mask.n:
        masked = masked_way(card, structure, dtype, seqlen, batch, k.shape[0])
        if masked is not None and masked[0] < seconds:
            return make_masked(masked[1], k, ahead, structure)
    return make(way, felt, felt_ahead, k.device)


def plain_way(
    card: tiling.Card, dtype: torch.dtype, seqlen: int, taps: int, ahead: int, batch: int, channels: int
) -> tuple[float, Way]:
    """The quickest way for a filter of which nothing is known but its taps, and its seconds."""
    rows = batch * channels
    found = tiling.best(card, seqlen, name_of(dtype), rows, taps=taps if taps < seqlen else None, batch=batch)
    ways = [(found.seconds, way_of(found, dtype, seqlen, ahead))]
    if taps <= DIRECT_TAPS:
        ways.append((direct_seconds(card, seqlen, taps, dtype, rows), direct_way(dtype, seqlen, taps, ahead)))
    return min(ways, key=lambda pair: pair[0])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def way_of(found: tiling.Candidate, dtype: torch.dtype, seqlen: int, ahead: int) -> Way:
    inner = found.inner
    radix = 1 if isinstance(found.tiling, tiling.Tiling) else found.tiling.radix
    own_ahead = ahead if inner.source == "history" else 0  # else the spectrum has it
    shape = inner.factors, inner.rows, inner.warps, False, 0, own_ahead, radix, radix, found.occupancy
    return Way(inner.source, dtype, seqlen, *shape)


def direct_way(dtype: torch.dtype, seqlen: int, taps: int, ahead: int) -> Way:
    return Way("direct", dtype, seqlen, head=-(-taps // 32) * 32, ahead=ahead)


def direct_seconds(card: tiling.Card, seqlen: int, taps: int, dtype: torch.dtype, rows: int) -> float:
    """What a Toeplitz product takes: 8 products of 16 x 8 x 16 a step of 32 taps, for 512 samples."""
    kind = tiling.kind(name_of(dtype))
    products = 8 * (-(-taps // 32) + 1) * -(-seqlen // 512) * rows * kind.products
    moved = 2 * kind.bytes * seqlen * rows
    return max(moved / card.bandwidth, products * tiling.MMA_FLOPS / card.matrix_rate) + tiling.LAUNCH


def masked_way(
    card: tiling.Card, structure: Structure, dtype: torch.dtype, seqlen: int, batch: int, channels: int
) -> tuple[float, Way] | None:
    """The quickest way that skips what a mask drops, on the mask's own points, and its seconds; None if none fits."""
    mask, head, rows = structure.mask, structure.head, batch * channels
    bins = mask.bins()

    @cache
    def live(factors: tuple[int, ...]) -> tiling.Live:
        if math.prod(factors) != mask.n:
            return tiling.Live.dense(factors)
        return tiling.Live.of(slots(bins, factors)[1].numpy())

    problem = tiling.Problem(card, mask.n, name_of(dtype), rows, batch=batch)
    own = tiling.Domain(tuple(f for f in tiling.DOMAIN.factors if math.prod(f) == mask.n))
    found = tiling.search(problem, 32, own, live).candidates
    if not found:
        levels = tiling.two_level(card, mask.n, dtype=name_of(dtype), rows_total=rows, batch=batch, count=32)
        found = [candidate for candidate in levels if candidate.tiling.points == mask.n]
    taps = 0 if head is None else -(-head.shape[-1] // 32) * 32
    if taps:
        found = [c for c in found if isinstance(c.tiling, tiling.TwoLevel) or c.tiling.behind[0] % 32 == 0]
    if not found:
        return None
    extra = direct_seconds(card, seqlen, taps, dtype, rows) if taps else 0.0
    return found[0].seconds + extra, replace(way_of(found[0], dtype, seqlen, 0), masked=True, head=taps)


def make_masked(way: Way, k: Tensor, ahead: int, structure: Structure) -> Prepared:
    """Tables of a way that skips: the head apart, the rest on the mask's bins."""
    head, rest = structure.head, k.double()
    if head is not None:
        head, rest = head.to(rest), rest.clone()
        rest[:, ahead : ahead + head.shape[-1]] -= head
    return make(way, rest, ahead, k.device, structure.mask.bins(), head)


# --- running ---------------------------------------------------------------------------------------------------------

Launch = Callable[[Build, tuple[int, int, int], Call], None]


@lru_cache(maxsize=1024)
def way_from(numbers: tuple[int, ...]) -> Way:
    return Way.from_ints(numbers)


def launch_on(device: torch.device) -> Launch:
    def launch(build: Build, grid: tuple[int, int, int], call: Call) -> None:
        nvrtc.launch(function(build, device), grid, build.threads, build.shared_bytes, call)

    return launch


def kernel(build: Build) -> nvrtc.Kernel:
    return nvrtc.Kernel("fftconv.cu", build.entry, tuple(f"{name}={value}" for name, value in build.macros.items()))


@cache
def function(build: Build, device: torch.device) -> nvrtc.Function:
    return nvrtc.load(kernel(build), device)


def fftconv(
    u: Tensor,
    tables: Sequence[Tensor],
    layout: Sequence[int],
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """gate * (k * (pregate * u) + skip * pregate * u); k as `prepare` made it ready.

    u, gate, pregate: (B, H, L), dtype as prepared.  skip: (H,).  Returns (B, H, L), dtype of u.
    """
    way = way_from(tuple(layout))
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if not y.numel():
        return y
    keep = [None if t is None else rowwise(t.to(u.dtype)) for t in (u, pregate, gate)]  # alive until all is launched
    call, held = filled(way, (*keep, y), skip)
    launch = launch or launch_on(u.device)
    rows = u.shape[0] * u.shape[1]
    for build in way.builds(all(wide(t, way.ahead) for t in (*keep, y) if t is not None)):
        stage_pointers(call, way, build, tables)
        call.rows = way.rows_of(build, rows, u.shape[-1])
        launch(build, way.grid(build, rows, u.shape[-1]), call)
    del held
    return y


def rowwise(u: Tensor) -> Tensor:
    """The same with neighbouring samples next to each other."""
    return u if u.stride(-1) == 1 or u.shape[-1] == 1 else u.contiguous()


def filled(way: Way, signals: Sequence[Tensor | None], skip: Tensor | None) -> tuple[Call, list[Tensor]]:
    """The kernels' arguments but for the tables, and tensors that must live until they are launched."""
    call, held = Call(), []
    y = signals[-1]
    assert y is not None
    batch, channels, seqlen = y.shape
    for name, t in zip(("u", "pregate", "gate", "y"), signals, strict=True):
        if t is not None:
            setattr(call, name, Signal(t.data_ptr(), t.stride(0), t.stride(1)))
    if skip is not None:
        held.append(skip.to(torch.float32).contiguous())
        call.skip = held[-1].data_ptr()
    call.batch, call.seqlen, call.ahead, call.blocks, call.outer = (
        batch,
        seqlen,
        way.ahead,
        way.blocks(seqlen),
        way.outer,
    )
    if way.source == "complex":
        words = batch * channels * way.outer * (way.points // way.radix)
        held.append(torch.empty(fragments.planes(way.dtype) * words, dtype=torch.int32, device=y.device))
        call.scratch, call.scratch_plane = held[-1].data_ptr(), words // 4
    return call, held


def wide(t: Tensor, ahead: int) -> bool:
    """Whether a signal comes in whole pieces of 8 samples, each on a multiple of 16 bytes."""
    piece = 16 // t.element_size()
    return t.data_ptr() % 16 == 0 and not (ahead % 8 or t.shape[-1] % 8 or t.stride(0) % piece or t.stride(1) % piece)


def stage_pointers(call: Call, way: Way, build: Build, tables: Sequence[Tensor]) -> None:
    """Fill in the tables that one kernel reads, of those that `make` laid out."""
    number = iter(tables)

    def fill(name: str, count: int, keep: bool = True) -> None:
        for i in range(count):
            pointer = next(number).data_ptr()
            if keep:
                getattr(call, name)[i] = pointer

    if way.source != "direct":
        axes, inner = len(way.factors), build.entry == "conv"
        if way.source == "complex":
            call.outer_turns, call.outer_steps = tables[2].data_ptr(), tables[3].data_ptr()
            for name in ("forward", "inverse", "turns", "steps"):
                fill(name, 1, not inner)
        for name, count in (("forward", axes), ("inverse", axes), ("turns", axes - 1), ("steps", axes - 1)):
            fill(name, count, inner)
        call.scale, call.spectra = next(number).data_ptr(), next(number).data_ptr()
        if way.masked:
            if way.source == "complex":
                fill("live", 1, not inner)
            fill("live", axes, inner)
    else:
        call.scale = next(number).data_ptr()
    if way.head:
        call.head = next(number).data_ptr()
