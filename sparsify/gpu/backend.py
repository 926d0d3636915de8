"""The GPU backend: what is prepared of a filter for the tensor-core kernels, and how it meets a signal.

A `Way` says which kernels of `cuda/fftconv.cu` run and how they are built (`sparsify.gpu.dispatch` picks one); `make`
makes its tables, `fftconv` launches it.  Nothing is chosen, compiled or made in a call but the first.

Sums are float32 throughout.  16-bit signals are rounded to their type after every stage: relative errors near 6e-4
(float16) and 5e-3 (bfloat16).  A float32 signal is computed with as two bfloat16, errors near 1e-5, which is what
`torch.set_float32_matmul_precision` calls "high": at "highest", torch's default, float32 is left to torch.fft.

The transform is unitary, so a constant A, or a tone, stands in one bin as A sqrt(M): float16 overflows where that
exceeds 65,504, as a constant of 512 does at 16,384 points.  bfloat16 and float32 have room for everything.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache

import torch
from torch import Tensor

from sparsify.cpu.backend import Prepared, masked_spectrum
from sparsify.filters import decimation
from sparsify.filters.filter import Filter, Structure
from sparsify.filters.spectra import spectrum

from . import jit, mma_operands
from .launch_spec import Build, Call, DecimatedWay, Signal, Way, decimated_length, way_from
from .mma_operands import TYPES, Stages
from .tiling import RESERVED, slot_orders

SPECTRA_AT_ONCE = 1 << 25  # points of filters prepared together: float64 spectra of all would be large


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


def largest(*parts: Tensor | None) -> Tensor:
    """The largest magnitude in each row of some tensors, or 1 where all are zero: (H,) float64, exact in float32."""
    size = torch.stack([part.abs().amax(-1).double() for part in parts if part is not None]).amax(0)
    return torch.where(size > 0, size, 1.0).float().double()


def padded_head(head: Tensor) -> Tensor:
    """A head of a multiple of 32 taps, float64."""
    return torch.nn.functional.pad(head.double(), (0, -head.shape[-1] % 32))


def by_digit(bins: Tensor, factors: Sequence[int]) -> Tensor:
    """(M,) in natural order of frequencies -> (N1, .., Np)."""
    return bins.view(*reversed(factors)).permute(*reversed(range(len(factors))))


def slots(bins: Tensor, factors: Sequence[int]) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """Orders of the digits for a mask, and what is kept in that order: (N1, .., Np) bool."""
    kept = by_digit(bins, factors)
    orders = slot_orders(kept.numpy())
    for axis, order in enumerate(orders):
        kept = kept.index_select(axis, torch.tensor(order))
    return orders, kept


def make(way: Way, k: Filter, bins: Tensor | None = None, head: Filter | None = None) -> Prepared:
    """Tables of one way for one filter, on its device.

    k: the filter without its head.  bins: (M,) bool, the bins that a mask keeps.
    """
    device = k.k.device
    if way.source == "direct":
        return make_direct(way, padded_head(k.k), device)
    factors = way.factors if way.source != "complex" else (way.radix, *way.factors)
    orders, kept = (Stages.natural(factors).orders, None) if bins is None else slots(bins, factors)
    live: list[Tensor] = []
    if way.source == "complex":
        inside, outside = Stages(way.factors, orders[1:], "complex"), two_levels(way, orders[0])
        way = replace(way, outer=way.radix)
        shared = outer_tables(outside, way.dtype, device) + stage_tables(inside, way.dtype, device)
        if kept is not None:
            outer, live = live_rows(inside, kept)
            way = replace(way, outer=outer)
    else:
        inside = Stages(factors, orders, "history" if way.source == "history" else "real")
        shared = stage_tables(inside, way.dtype, device)
        if kept is not None:
            live = inside.live(kept)
    digits = torch.tensor(orders[0][: way.outer]) if way.source == "complex" else torch.zeros(1, dtype=torch.int64)
    first = None if head is None else padded_head(head.k)
    scales, spectra = [], []
    step = max(1, SPECTRA_AT_ONCE // way.points)
    k = Filter(k.k) if way.source == "history" else k  # such a kernel reads early instead
    for h in range(0, k.channels, step):
        part = k.rows(slice(h, h + step))
        k_f = spectrum(part, way.points) if part.structure is None else masked_spectrum(part)
        if bins is not None:
            k_f = k_f * bins.to(device)
        scales.append(largest(k_f, None if first is None else first[h : h + step]))
        rows = (k_f / scales[-1][:, None]).unflatten(-1, (-1, way.radix))[..., digits]  # (h, M / R, outer)
        spectra.append(inside.spectra(rows.transpose(1, 2).flatten(0, 1), way.dtype))
    scale = torch.cat(scales)
    own = [scale.float(), torch.cat(spectra), *live]
    if first is not None:
        own.append(mma_operands.toeplitz(first / scale[:, None], way.dtype))
    return Prepared((*shared, *(t.to(device) for t in own)), way.to_ints())


def two_levels(way: Way, order: tuple[int, ...]) -> Stages:
    """The outer stage of a two-level transform, before all that is inside."""
    return Stages((way.radix, math.prod(way.factors)), (order, ()))


def outer_tiles(kept: Tensor) -> Tensor:
    """Of a mask in slot order, (R, N1, .., Np) bool, which tiles of 8 outer digits keep anything: (R / 8,) bool."""
    return kept.view(-1, mma_operands.TILE, kept[0].numel()).flatten(1).any(1)


def outer_digits(kept: Tensor) -> int:
    """How many slots of the outer stage are computed."""
    return mma_operands.TILE * int(outer_tiles(kept).sum())


def live_rows(inside: Stages, kept: Tensor) -> tuple[int, list[Tensor]]:
    """Rows that a mask leaves to the inner kernel, and its bit sets, those of the outer stage first.

    kept: (R, N1, .., Np) bool in slot order, rows with anything kept first.  Rows of one tile of 8 share a pattern.
    """
    reached, rows = outer_tiles(kept), outer_digits(kept)
    bits = (reached.long() << torch.arange(len(reached))).sum().to(torch.int32)[None]
    tiles = kept.view(-1, mma_operands.TILE, *inside.factors).any(1, keepdim=True)
    return rows, [bits, *inside.live(tiles.expand(-1, mma_operands.TILE, *inside.factors).flatten(0, 1)[:rows])]


def make_direct(way: Way, taps: Tensor, device: torch.device) -> Prepared:
    scale = largest(taps)
    tables = scale.float(), mma_operands.toeplitz(taps / scale[:, None], way.dtype)
    return Prepared(tuple(t.to(device) for t in tables), way.to_ints())


def make_decimated(way: DecimatedWay, k: Filter) -> Prepared:
    """Tables of a decimated way; the decimated filter is that of `decimation.decimated_taps`."""
    assert k.structure is not None
    mask, rate, dtype, device = k.structure.mask, way.rate, way.dtype, k.k.device
    head, rest = apart(k)
    reach = way.inner.seqlen
    k_f = masked_spectrum(rest) * mask.bins().to(device)
    inner = make(way.inner, Filter(decimation.decimated_taps(k_f, mask, rate, reach), reach - 1))
    window = decimation.kaiser_bessel(rate)
    own = [mma_operands.decimation(window, rate, dtype), mma_operands.interpolation(window, rate, dtype)]
    own.append(torch.ones(k.channels))
    if head is None:
        own.append(own[-1])
    else:
        taps = padded_head(head.k)
        own += [largest(taps).float(), mma_operands.toeplitz(taps / largest(taps)[:, None], dtype)]
    return Prepared(
        (*(t.to(device) for t in own), *inner.tables), replace(way, inner=Way.from_ints(inner.layout)).to_ints()
    )


def make_apart(way: Way | DecimatedWay, k: Filter) -> Prepared:
    """Tables of a way that skips: the head apart, the rest on the mask's bins."""
    assert k.structure is not None
    if isinstance(way, DecimatedWay):
        return make_decimated(way, k)
    head, rest = apart(k)
    return make(way, rest, k.structure.mask.bins(), head)


def apart(k: Filter) -> tuple[Filter | None, Filter]:
    """Head and rest of a filter with a structure, float64."""
    assert k.structure is not None
    known = Structure(k.structure.mask, reversed=k.structure.reversed)
    rest = Filter(k.k.double(), k.lookahead, known)
    if k.structure.head is None:
        return None, rest
    head = k.structure.head.to(rest.k)
    first = k.lookahead - head.lookahead
    rest = Filter(rest.k.clone(), k.lookahead, known)
    rest.k[:, first : first + head.taps] -= head.k
    return head, rest


# --- running ---------------------------------------------------------------------------------------------------------


def takes(u: Tensor) -> bool:
    """Whether the kernels convolve signals like u here; if they cannot, a warning says why, once."""
    if not u.is_cuda and not u.is_cpu and not u.is_meta:
        warn(f"they are for NVIDIA's, and this device is {u.device.type}")
    if not u.is_cuda or u.dtype not in TYPES or switched_off():
        return False
    if u.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return False
    reason = jit.why_not(u.device)
    if reason is not None:
        warn(reason)
    return reason is None


def settle(device: torch.device) -> None:
    """Wait until all streams of a GPU have done what they were told; tables come and go no sooner."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def switched_off() -> bool:
    return os.environ.get("SPARSIFY_GPU") == "0"


@cache
def warn(reason: str) -> None:
    warnings.warn(f"sparsify runs without its GPU kernels, through torch.fft: {reason}", RuntimeWarning, stacklevel=2)


Launch = Callable[[Build, tuple[int, int, int], Call], None]


def launch_on(device: torch.device) -> Launch:
    def launch(build: Build, grid: tuple[int, int, int], call: Call) -> None:
        jit.launch(function(build, device), grid, build.threads, build.shared_bytes, call)

    return launch


def kernel(build: Build) -> jit.Kernel:
    return jit.Kernel("fftconv.cu", build.entry, tuple(f"{name}={value}" for name, value in build.macros.items()))


@cache
def function(build: Build, device: torch.device) -> jit.Function:
    fits = unspilled(build, jit.architecture(device))
    found = jit.load(kernel(fits), device)
    jit.prefer_shared(found, fits.resident * (fits.shared_bytes + RESERVED))
    return found


def unspilled(build: Build, arch: str) -> Build:
    """The same kernel for as many resident blocks as leave a thread the registers that it needs, by the compiler."""
    while build.resident > 1:
        taken = jit.binary(kernel(build), arch).resources
        if taken is None or not taken.spill_stores:
            break
        quarter = -(-build.resident * build.warps // 4) - 1  # warps that share a quarter of the registers: one less
        build = replace(build, resident=max(1, min(build.resident - 1, 4 * quarter // build.warps)))
    return build


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
    if u.shape[-1] > way.longest:
        raise ValueError(f"the tables are for signals of up to {way.longest} samples, got {u.shape[-1]}; prepare anew")
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if not y.numel():
        return y
    keep = [None if t is None else rowwise(t.to(u.dtype)) for t in (u, pregate, gate)]  # alive until all is launched
    launch = launch or launch_on(u.device)
    if isinstance(way, DecimatedWay):
        return decimated_fftconv(way, (*keep, y), tables, skip, launch)
    call, held = filled(way, (*keep, y), skip)
    rows = u.shape[0] * u.shape[1]
    for build in way.builds(min(piece(t, way.lookahead) for t in (*keep, y) if t is not None)):
        stage_pointers(call, way, build, tables)
        call.rows = way.rows_of(build, rows, u.shape[-1])
        launch(build, way.grid(build, rows, u.shape[-1]), call)
    del held
    return y


def decimated_fftconv(
    way: DecimatedWay, signals: Sequence[Tensor | None], tables: Sequence[Tensor], skip: Tensor | None, launch: Launch
) -> Tensor:
    """The same at a lower rate.  signals: u, pregate, gate and y, which is filled and returned."""
    u, pregate, _, y = signals
    assert u is not None and y is not None
    decimation, interpolation, ones, scale = tables[:4]
    inner = tables[4 + bool(way.head) :]
    decimated = u.new_empty(*u.shape[:2], decimated_length(u.shape[-1], way.rate))

    def run(entry: str, call: Call, *signals: Tensor | None) -> None:
        build = way.build(entry, min(piece(t) for t in signals if t is not None))
        call.batch, call.rows, call.blocks = len(u), len(u) * u.shape[1], 1
        columns = decimated.shape[-1] if entry == "decimate" else -(-u.shape[-1] // way.rate) * 4
        launch(build, (call.rows, -(-columns // (512 * build.warps)), 1), call)

    call = Call(u=Signal.of(u), y=Signal.of(decimated), window=decimation.data_ptr(), scale=ones.data_ptr())
    if pregate is not None:
        call.pregate = Signal.of(pregate)
    run("decimate", call, u, pregate, decimated)
    decimated = fftconv(decimated, inner, way.inner.to_ints(), launch=launch)
    call, held = filled(way.inner, signals, skip)
    call.decimated, call.window, call.scale = Signal.of(decimated), interpolation.data_ptr(), scale.data_ptr()
    call.lookahead, call.outer = 0, 1
    if way.head:
        call.head = tables[4].data_ptr()
    run("interpolate", call, *signals, decimated)
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
            setattr(call, name, Signal.of(t))
    if skip is not None:
        held.append(skip.to(torch.float32).contiguous())
        call.skip = held[-1].data_ptr()
    call.batch, call.lookahead, call.blocks, call.outer = batch, way.lookahead, way.blocks(seqlen), way.outer
    if way.source == "complex":
        words = batch * channels * way.outer * (way.points // way.radix)
        held.append(torch.empty(mma_operands.planes(way.dtype) * words, dtype=torch.int32, device=y.device))
        call.scratch, call.scratch_plane = held[-1].data_ptr(), words // 4
    return call, held


def piece(t: Tensor, lookahead: int = 0) -> int:
    """Neighbouring samples that are read at once: 8 or, of 16 bits, 2 where no place or size forbids it, else 1.

    ahead: samples by which they are read early.
    """
    size = t.element_size()
    for samples in (8, 2) if size == 2 else (8,):
        step = min(samples, 16 // size)  # 8 samples of float32 are two reads
        odd = (
            t.data_ptr() // size % step,
            t.stride(0) % step,
            t.stride(1) % step,
            t.shape[-1] % samples,
            lookahead % samples,
        )
        if not any(odd):
            return samples
    return 1


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
