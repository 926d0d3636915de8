"""A filter cut by frequency: band-limited as a whole, or split into an exact head and a band-limited tail.

A trained filter jumps at lag 0; the jump alone spreads its spectrum.  Fading the first taps out of the tail takes the
jump away: the tail's spectrum falls fast, and what a mask still makes it ring rings over the head, not over the future.

    head[t] = k[t] (1 - w[t]) + m[t]      t = 0 .. taps - 1, exact and causal
    tail[t] = k[t] w[t] - m[t]            w rises smoothly from 0 to 1 over the head
    y = head * u + masked(tail) * u

m is what makes the mask lose least: least squares, closed, and the same equations for every channel.
A filter that looks both ways has its head on both sides of lag 0, and w depends on |t|.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .filter import AnyFilter, BlockedFilter, Filter, Taps, as_filter, in_memory
from .monarch import BlockMask
from .spectra import precision, spectrum, taps_at

STIFFNESS = 1e-3  # the larger, the nearer a head stays to its ramp; a tenth of it gains nothing that would be heard
REACH = 1024  # taps of a head that are fitted to a mask; equations of more would take long, and fit little better


def ramp(taps: int) -> Tensor:
    """Rise w from 0 towards 1, the integral of a Hann window: (taps,) float64."""
    t = torch.arange(taps, dtype=torch.float64) / taps
    return t - torch.sin(2 * math.pi * t) / (2 * math.pi)


def near(taps: int, length: int, lookahead: int = 0) -> slice:
    """The taps at the lags |d| < taps of a filter of `length` taps, `lookahead` of which are at negative lags."""
    return slice(max(0, lookahead - taps + 1), min(length, lookahead + taps))


def split(k: Taps, taps: int, mask: BlockMask | None = None) -> tuple[Filter, Filter]:
    """Head and tail of a filter, which add up to it, in the precision of its spectrum.

    The head has `taps` taps, or 2 taps - 1 where the filter looks both ways; fewer where it ends before.  The tail has
    as many as the filter.
    mask: what the tail will be cut to; the head then takes what would be lost of the tail, as far as its taps reach.
    """
    full = in_memory(as_filter(k))
    own = near(taps, full.taps, full.lookahead)
    d, lags = full.k.to(precision(full.taps if mask is None else mask.n).to_real()), full.lags[own].abs().cpu()
    rising = d[:, own] * ramp(min(taps, int(lags.max()) + 1))[lags].to(d)
    head = Filter(d[:, own] - rising, full.lookahead - own.start)
    tail = Filter(torch.cat([d[:, : own.start], rising, d[:, own.stop :]], dim=-1), full.lookahead)
    if mask is not None:
        fitted = near(min(taps, mask.n, REACH), full.taps, full.lookahead)
        lost = spectrum(tail, mask.n) * kept_of(mask)[1].to(d.device)
        moved = moves(taps_at(lost, full.lags[fitted]), mask)
        head.k[:, fitted.start - own.start : fitted.stop - own.start] += moved
        tail.k[:, fitted] -= moved
    return head, tail


def tail_of(k: AnyFilter, taps: int, mask: BlockMask | None = None) -> AnyFilter:
    """The tail alone that `split` makes, some channels at a time where the filter comes so."""
    if isinstance(k, Filter):
        return split(k, taps, mask)[1]
    return BlockedFilter(k.outline, lambda rows: split(k.rows(rows), taps, mask)[1])


@lru_cache(maxsize=4)
def kept_of(mask: BlockMask) -> tuple[Tensor, Tensor]:
    """The bins that a mask keeps, in its order, int64, and those that it drops, (n,) bool: asked for block by block."""
    return mask.frequencies().flatten(), ~mask.bins()


@lru_cache(maxsize=4)
def equations(mask: BlockMask, count: int) -> Tensor:
    """E' Q E + STIFFNESS of `moves` for so many taps: (count, count) float64."""
    dropped = kept_of(mask)[1].to(precision(mask.n))
    lags = torch.arange(count)
    toeplitz = taps_at(dropped[None], lags)[0].double()[(lags[:, None] - lags).abs()]
    toeplitz.diagonal().add_(STIFFNESS)
    return toeplitz


def moves(lost: Tensor, mask: BlockMask) -> Tensor:
    """What to move from tail to head so that a mask loses least: (H, lags) float64.

    lost: (H, lags), what it takes away from the tail as it is, at the head's lags.  With Q the projection onto the
    dropped bins, E the head's taps and m what is moved, |Q (tail - E m)|^2 + STIFFNESS |m|^2 is least where
    (E' Q E + STIFFNESS) m = E' Q tail.  E' Q E is Toeplitz, and the same for all channels.
    """
    return torch.linalg.solve(equations(mask, lost.shape[-1]).to(lost.device), lost.double().mT).mT


def kept_bins(k: Taps, mask: BlockMask) -> Tensor:
    """Spectrum of a filter where a mask of n points keeps it, in the mask's order: (H, count) complex.

    Of the filter the lags -n .. n - 1 count.
    """
    k_f = spectrum(k, mask.n)
    return k_f[:, kept_of(mask)[0].to(k_f.device)]


def from_bins(bins: Tensor, mask: BlockMask) -> Tensor:
    """Filter whose spectrum of n points is `bins` where a mask keeps it, else zero: lags -n .. n - 1, (H, 2n).

        k'[d] = Re (1/n) sum over kept f of K[f] exp(2 pi i (f + 1/4) d / n)

    bins: (H, count) complex, in the mask's order.
    """
    k_f = torch.zeros(len(bins), mask.n, dtype=precision(mask.n), device=bins.device)
    k_f[:, kept_of(mask)[0].to(k_f.device)] = bins.to(k_f)
    return taps_at(k_f, torch.arange(-mask.n, mask.n, device=bins.device))


def masked(k: Taps, bins: Tensor, mask: BlockMask) -> Filter:
    """The filter with these bins at the lags that a mask of n points reaches, in the precision of spectra of n points.

    Of `k` the lags beyond -n .. n - 1 stay as they are, if there are any.  Zeroed bins make a filter ring, so half of
    the lags within are negative, whatever `k` does: the result has max(lookahead, n) of them.  Lag -n, which no signal
    of n samples feels, is there to make the result say all of its own spectrum.
    """
    k, n = in_memory(as_filter(k)), mask.n
    whole = from_bins(bins, mask)
    before, behind = k.k[:, : max(0, k.lookahead - n)], k.k[:, k.lookahead + n :]
    if before.shape[-1] or behind.shape[-1]:
        whole = torch.cat([before.to(whole), whole, behind.to(whole)], dim=-1)
    return Filter(whole, max(k.lookahead, n))


def band_limit(k: Taps, mask: BlockMask) -> Filter:
    """The filter that a masked spectrum really applies: `masked` with the bins of `k` itself."""
    return masked(k, kept_bins(k, mask), mask)
