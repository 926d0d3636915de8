"""The CPU backend: what is prepared of a filter, and how it meets a signal.

The compiled kernels do the work where they are (`sparsify.cpu.native`): the cheapest of whole rows, overlapping blocks,
single taps, a lower sampling rate or a folded row, as `sparsify.cpu.cost_model` reckons.  Elsewhere, and for float64
filters, it is torch.fft: real FFTs of good sizes, cached spectra, rows in blocks that stay in cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from sparsify.filters import decimation, spectra
from sparsify.filters.filter import AnyFilter, BlockedFilter, Filter, Structure, in_memory, row_blocks

from . import native
from .cost_model import costs

ROWS_BYTES = 1 << 21  # rows worked on together hold about this much signal: what stays in the caches of two cores
ROWS_AT_LEAST = 16  # and are this many, because every call of an FFT costs some 0.1 ms besides its work, measured
OVERLAP_BLOCKS = (1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15)  # overlap-save block sizes worth trying

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory for the next tensor instead of returning it to the system; False where it cannot.

    Otherwise every large tensor is made of fresh pages, and the first touch of a page costs more than the work on it.
    It holds for the whole process, so a program says it, never an import.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def good_size(n: int) -> int:
    """Smallest even size >= n whose only prime factors are 2, 3 and 5, where every FFT library is fast."""
    best = 1 << max(1, (n - 1).bit_length())
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            size = threes * 2
            while size < n:
                size *= 2
            best = min(best, size)
            threes *= 3
        fives *= 5
    return best


def one_block(seqlen: int, taps: int, lookahead: int = 0) -> int:
    """FFT size for the whole signal at once: no lag that matters wraps onto another."""
    return good_size(max(seqlen + max(taps - 1 - lookahead, lookahead), taps))


def choose_size(seqlen: int, taps: int, lookahead: int = 0) -> tuple[int, int]:
    """FFT size n and hop, the outputs that one block yields: the whole signal, or overlap-save when that is cheaper."""
    whole = one_block(seqlen, taps, lookahead)
    best = (whole * whole.bit_length(), whole, seqlen)
    if lookahead == 0:
        for n in OVERLAP_BLOCKS:
            hop = n - taps + 1
            if 0 < hop < seqlen:
                blocks = -(-seqlen // hop)
                best = min(best, (blocks * n * n.bit_length(), n, hop))
    return best[1], best[2]


@dataclass(frozen=True)
class Prepared:
    """A filter made ready for signals up to some length, as an operator takes it: tensors, and what they are."""

    tables: tuple[Tensor, ...]
    layout: tuple[int, ...]  # TORCH, n, hop; or KERNEL and a GPU's `Way`; or for each part its kind and numbers


TORCH, WHOLE, DIRECT, HEAD, DECIMATED, COMB, KERNEL = range(7)


def bucketed_length(seqlen: int) -> int:
    """Samples that a filter is prepared for when signals of `seqlen` come: those within a sixteenth share tables."""
    step = 1 << max(0, seqlen.bit_length() - 5)
    return -(-seqlen // step) * step


def prepare(k: AnyFilter, seqlen: int, spectra_bytes: int | None = None) -> Prepared:
    """The quickest way there is here to convolve signals of up to `seqlen` samples with k.

    spectra_bytes: more than these are not kept for whole rows; the spectrum is then made anew in every call, which
    takes half as long again.
    """
    felt = k.felt(seqlen)
    if not takes(k):
        n, hop = choose_size(seqlen, felt.taps, felt.lookahead)
        return Prepared((by_blocks(felt, lambda part: spectrum(part, n)),), (TORCH, n, hop))
    n = native.good_size(seqlen)
    way = min(ways(seqlen, felt.taps, k.structure))[1]
    if way == "few taps":
        return prepare_few(in_memory(felt), seqlen)
    if way == "comb":
        return prepare_comb(k)
    if way == "decimated":
        return prepare_decimated(k, seqlen)
    if keeps_spectra(n, k.channels, spectra_bytes):
        made = by_blocks(felt, lambda part: native.spectra(part.k, n, part.lookahead))
        return Prepared((made,), (WHOLE, n, felt.lookahead, 1))
    taps = in_memory(felt).k
    return Prepared((taps if taps.stride(-1) == 1 else taps.contiguous(),), (WHOLE, n, felt.lookahead, 0))


def takes(k: AnyFilter) -> bool:
    """Whether the kernels are here and take such a filter."""
    return native.available() if isinstance(k, BlockedFilter) else native.takes(k.k)


def by_blocks(k: AnyFilter, make: Callable[[Filter], Tensor]) -> Tensor:
    """What `make` makes of every channel, some channels at a time where the filter comes so: (H, ...)."""
    if isinstance(k, Filter):
        return make(k)
    made = None
    for rows in row_blocks(k):
        part = make(k.rows(rows))
        made = part.new_empty(k.channels, *part.shape[1:]) if made is None else made
        made[rows] = part
    assert made is not None  # a filter has channels
    return made


def keeps_spectra(n: int, channels: int, spectra_bytes: int | None) -> bool:
    """Whether spectra of whole rows of n points stay within their bytes."""
    return spectra_bytes is None or 8 * n * channels <= spectra_bytes


def ways(seqlen: int, taps: int, structure: Structure | None = None) -> list[tuple[float, str]]:
    """The kernels' ways to convolve a row, each with its nanoseconds of one core; `prepare` takes the least.

    taps: those that a signal of `seqlen` samples feels, see `Filter.felt`.  structure: only its sizes are looked at.
    """
    found = [(costs().transform(native.good_size(seqlen)), "whole"), (few_taps(seqlen, taps)[0], "few taps")]
    if structure is not None and seqlen <= structure.mask.n:  # a longer signal feels taps that the mask did not touch
        found += structured(seqlen, structure)
    return found


def few_taps(seqlen: int, taps: int) -> tuple[float, int]:
    """Cost of a short filter, and the block size to take; 0 means tap by tap."""
    reckoned = [(costs().blocks(seqlen, taps, n), n) for n in block_sizes(seqlen, taps)]
    best = min(reckoned)[0]
    cost, block = next((cost, n) for cost, n in reckoned if cost <= NEARLY * best)  # the smallest: kinder to caches
    direct = costs().direct(seqlen, taps)
    if direct < cost:
        cost, block = direct, 0
    return cost, block


def block_sizes(seqlen: int, taps: int) -> list[int]:
    """Sizes of overlapping blocks worth a thought: they cut the signal into equal pieces, two to a transform."""
    sizes = set()
    pieces, lanes = 2, native.lanes()
    while True:
        hop, history = -(-seqlen // pieces), taps - 1  # the kernel moves on by whole vectors
        n = native.good_size(-(-hop // lanes) * lanes + -(-history // lanes) * lanes)
        sizes.add(n)
        if n < 2 * taps or n <= SMALL_BLOCK:
            return sorted(sizes)
        pieces += max(2, pieces // 8 * 2)  # even, and a quarter more at a time


def structured(seqlen: int, structure: Structure) -> list[tuple[float, str]]:
    """Costs of the ways that a filter's structure opens."""
    mask, head = structure.mask, structure.head
    ways = []
    if (rate := decimation.rate(mask)) > 1:
        cost = costs().decimated(seqlen, native.good_size(decimated_length(seqlen, rate)))
        ways.append((cost + (few_taps(seqlen, head.taps)[0] if head is not None else 0.0), "decimated"))
    folded = mask.n // mask.factors[0]
    if head is None and native.good_size(folded) == folded:
        ways.append((costs().comb(seqlen, folded, len(decimation.residues(mask))), "comb"))
    return ways


def decimated_length(seqlen: int, rate: int) -> int:
    """Samples at the lower rate."""
    return -(-seqlen // rate) + decimation.WIDTH


def prepare_few(k: Filter, seqlen: int) -> Prepared:
    n = few_taps(seqlen, k.taps)[1]
    if n == 0:
        return Prepared((k.k.contiguous(),), (DIRECT, k.lookahead))
    return Prepared((native.spectra(k.k, n, 0, 0.0),), (HEAD, n, k.taps, k.lookahead))


def masked_spectrum(k: Filter) -> Tensor:
    """Spectrum of what a mask left of a filter, without its head: (H, n) complex."""
    assert k.structure is not None
    if k.structure.reversed:  # lag n counts and -n doesn't, the other way round from what `spectrum` looks at
        return masked_spectrum(k.reversed()).conj()
    n, head = k.structure.mask.n, k.structure.head
    k_f = spectra.spectrum(k, n)
    return k_f if head is None else k_f - spectra.spectrum(head, n)


def rest_of(k: AnyFilter, rows: slice) -> tuple[Tensor, Filter | None]:
    """The masked spectrum of some channels, (h, n) complex, and the head that comes with it, where it is made anew."""
    if isinstance(k, Filter) or k.pieces is None:
        part = k.rows(rows)
        return masked_spectrum(part), part.head
    known = k.pieces(rows)
    assert known.bins is not None
    k_f = known.bins.new_zeros(len(known.bins), known.mask.n)
    k_f[:, known.mask.frequencies().flatten()] = known.bins
    return k_f, known.head


SMALL_BLOCK = 512  # samples of a block below which it is mostly overhead
NEARLY = 1.02  # times the best cost, which no reckoning tells from the best
ROWS = 16  # channels prepared at a time: float64 spectra of all would be large
SPECTRA_AT_ONCE = 1 << 28  # bytes of these


def prepare_decimated(k: AnyFilter, seqlen: int) -> Prepared:
    assert k.structure is not None
    mask = k.structure.mask
    rate = decimation.rate(mask)
    reach = decimated_length(seqlen, rate)
    n = native.good_size(reach)
    low, heads = torch.empty(k.channels, 2 * n, dtype=torch.float32), []
    for rows in blocks_of(k):
        k_f, head = rest_of(k, rows)
        low[rows] = native.spectra(decimation.decimated_taps(k_f, mask, rate, reach), n, reach - 1)
        heads += [] if head is None else [head]
    first = Prepared((), ())
    if heads:
        first = prepare_few(Filter(torch.cat([head.k for head in heads]).float(), heads[0].lookahead), seqlen)
    return Prepared((*first.tables, decimation.window(rate), low), (*first.layout, DECIMATED, rate, n))


def prepare_comb(k: AnyFilter) -> Prepared:
    assert k.structure is not None
    mask = k.structure.mask
    teeth, kept = mask.factors[0], decimation.residues(mask)
    n = mask.n // teeth
    tables = tuple(torch.empty(k.channels, 2 * n, dtype=torch.float32) for _ in kept)
    for rows in blocks_of(k):
        k_f, _ = rest_of(k, rows)
        for table, residue in zip(tables, kept, strict=True):
            table[rows] = native.in_order(k_f[:, residue::teeth], 1 / mask.n)
    return Prepared(tables, (COMB, teeth, n, len(kept), *kept))


def blocks_of(k: AnyFilter) -> Iterator[slice]:
    """Channels that are prepared together: few, for their spectra are large."""
    return row_blocks(k, min(SPECTRA_AT_ONCE // 4, 4 * k.taps * ROWS))  # a spectrum has 16 bytes for 4 of the taps


def parts_of(tables: Sequence[Tensor], layout: Sequence[int]) -> list[native.Part]:
    """The kernels' view of what `prepare` made."""
    parts: list[native.Part] = []
    table, number = iter(tables), iter(layout)
    for kind in number:
        if kind == WHOLE:
            n, lookahead, made = next(number), next(number), next(number)
            parts.append(native.Whole(n, next(table)) if made else native.Whole(n, None, next(table), lookahead))
        elif kind == DIRECT:
            parts.append(native.Direct(next(table), next(number)))
        elif kind == HEAD:
            parts.append(native.Blocks(next(number), next(table), next(number), next(number)))
        elif kind == DECIMATED:
            rate, n, window, low = next(number), next(number), next(table), next(table)
            parts.append(native.Decimated(rate, decimation.WIDTH, window, native.Whole(n, low)))
        elif kind == COMB:
            teeth, n, many = next(number), next(number), next(number)
            kept = tuple(next(number) for _ in range(many))
            parts.append(native.Comb(teeth, n, kept, tuple(next(table) for _ in kept)))
    return parts


def fftconv(
    u: Tensor,
    tables: Sequence[Tensor],
    layout: Sequence[int],
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """gate * (k * g + skip * g), g = pregate * u, with k as `prepare` made it ready; see `sparsify.fftconv`.

    u, gate, pregate: (B, H, L).  skip: (H,).  Returns (B, H, L), dtype of u.
    out: where the kernels put it, of u's type; it may be the memory of `gate`.
    """
    if layout[0] == TORCH:
        u = u if pregate is None else u * pregate.to(u.dtype)
        return torch_fftconv(u, tables[0], layout[1], layout[2], gate, skip)
    if u.dtype not in native.TYPES:
        return fftconv(u.float(), tables, layout, gate, skip, pregate).to(u.dtype)
    out = torch.empty(u.shape, dtype=u.dtype) if out is None else out
    skip = None if skip is None else skip.float().contiguous()
    u, gate, pregate = turned(u), turned(gate), turned(pregate)
    return native.convolve(u, parts_of(tables, layout), gate, skip, pregate, out)


@overload
def turned(t: Tensor) -> Tensor: ...
@overload
def turned(t: None) -> None: ...
def turned(t: Tensor | None) -> Tensor | None:
    """A signal (B, H, L) of a dtype that the kernels read, and with samples side by side where the channels were."""
    if t is None:
        return None
    t = t if t.dtype in native.TYPES else t.float()
    return native.to_columns(t.mT) if t.stride(-1) != 1 and t.mT.is_contiguous() else t


def torch_fftconv(
    u: Tensor, k_f: Tensor, n: int, hop: int, gate: Tensor | None = None, skip: Tensor | None = None
) -> Tensor:
    """The same through torch.fft, with spectra k_f (H, n // 2 + 1, 2), in the dtype of k_f.

    hop >= L transforms the whole signal at once; a smaller hop cuts it into blocks of n samples that overlap by
    n - hop (overlap-save), which asks for a causal filter of at most n - hop + 1 taps.
    """
    batch, channels, seqlen = u.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    rows = max(ROWS_AT_LEAST, ROWS_BYTES // (seqlen * k_f.element_size()))
    if u.is_cuda:
        rows = batch * channels  # cuFFT, all rows at once
    if rows >= channels:  # several sequences fit
        step = rows // channels
        for b in range(0, batch, step):
            y[b : b + step] = convolve(u[b : b + step], k_f, n, hop, gate if gate is None else gate[b : b + step], skip)
        return y
    for b in range(batch):
        for h in range(0, channels, rows):
            own = slice(h, h + rows)
            gated, skipped = None if gate is None else gate[b, own], None if skip is None else skip[own]
            y[b, own] = convolve(u[b, own], k_f[own], n, hop, gated, skipped)
    return y


def convolve(
    u: Tensor, k_f: Tensor, n: int, hop: int, gate: Tensor | None = None, skip: Tensor | None = None
) -> Tensor:
    """The same with all rows at once: u, gate (..., H, L), skip (H,) -> y (..., H, L) in the dtype of k_f."""
    y = whole(u, k_f, n) if hop >= u.shape[-1] else overlap_save(u, k_f, n, hop)
    if skip is not None:
        y = y + skip[:, None].to(y.dtype) * u
    return y if gate is None else y * gate


def spectrum(k: Filter, n: int) -> Tensor:
    """n-point spectrum of a filter of at most n taps, lag 0 at sample 0 and negative lags wrapped to the end.

    Returns k_f: (H, n // 2 + 1, 2), real and imaginary part, dtype of the taps.
    """
    taps = k.k
    if k.lookahead:
        gap = taps.new_zeros(k.channels, n - k.taps)
        taps = torch.cat([taps[:, k.lookahead :], gap, taps[:, : k.lookahead]], dim=-1)
    return torch.view_as_real(torch.fft.rfft(taps, n))


def whole(u: Tensor, k_f: Tensor, n: int) -> Tensor:
    """u (..., H, L), k_f (H, n // 2 + 1, 2) -> y (..., H, L) in the dtype of k_f, one transform a row."""
    y_f = torch.fft.rfft(u.to(k_f.dtype), n) * torch.view_as_complex(k_f)
    return torch.fft.irfft(y_f, n)[..., : u.shape[-1]]


def overlap_save(u: Tensor, k_f: Tensor, n: int, hop: int) -> Tensor:
    """u (..., H, L), k_f (H, n // 2 + 1, 2) -> y (..., H, L) in the dtype of k_f, `hop` samples a transform."""
    seqlen = u.shape[-1]
    blocks = -(-seqlen // hop)
    history = n - hop
    padded = torch.nn.functional.pad(u.to(k_f.dtype), (history, blocks * hop - seqlen))
    u_f = torch.fft.rfft(padded.unfold(-1, n, hop), n)  # (..., H, blocks, n // 2 + 1)
    y = torch.fft.irfft(u_f * torch.view_as_complex(k_f).unsqueeze(-2), n)[..., history:]
    return y.reshape(*y.shape[:-2], blocks * hop)[..., :seqlen]
