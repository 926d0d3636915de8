"""A filter cut by frequency: band-limited as a whole, or split into an exact head and a band-limited tail.

A trained filter jumps at lag 0; the jump alone spreads its spectrum.  Fading the first taps out of the tail takes the
jump away: the tail's spectrum falls fast, and what a mask still makes it ring rings over the head, not over the future.

    head[t] = k[t] (1 - w[t]) + m[t]      t = 0 .. taps - 1, exact and causal
    tail[t] = k[t] w[t] - m[t]            w rises smoothly from 0 to 1 over the head
    y = head * u + masked(tail) * u

m is what makes the mask lose least: least squares, closed, and the same equations for every channel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .monarch import BlockMask
from .spectra import spectrum, taps_at

STIFFNESS = 1e-3  # the larger, the nearer a head stays to its ramp; a tenth of it gains nothing that would be heard
REACH = 1024  # taps of a head that are fitted to a mask; equations of more would take long, and fit little better


def ramp(taps: int) -> Tensor:
    """Rise w from 0 towards 1, the integral of a Hann window: (taps,) float64."""
    t = torch.arange(taps, dtype=torch.float64) / taps
    return t - torch.sin(2 * math.pi * t) / (2 * math.pi)


def split(k: Tensor, taps: int, mask: BlockMask | None = None) -> tuple[Tensor, Tensor]:
    """Head (H, taps) and tail (H, K) that add up to k: (H, K), in float64.

    mask: what the tail will be cut to; the head then takes what would be lost of the tail, as far as its taps reach.
    """
    taps = min(taps, k.shape[-1])
    k = k.double()
    rising = k[:, :taps] * ramp(taps).to(k.device)
    head, tail = k[:, :taps] - rising, torch.cat([rising, k[:, taps:]], dim=-1)
    if mask is not None:
        reach = min(taps, mask.n, REACH)
        lost = spectrum(tail, mask.n) * ~mask.bins().to(k.device)
        moved = moves(taps_at(lost, torch.arange(reach, device=k.device)), mask)
        head[:, :reach] += moved
        tail[:, :reach] -= moved
    return head, tail


def moves(lost: Tensor, mask: BlockMask) -> Tensor:
    """What to move from tail to head so that a mask loses least: (H, taps) float64.

    lost: (H, taps), what it takes away from the tail as it is, at the head's lags.  With Q the projection onto the
    dropped bins, E the head's taps and m what is moved, |Q (tail - E m)|^2 + STIFFNESS |m|^2 is least where
    (E' Q E + STIFFNESS) m = E' Q tail.  E' Q E is Toeplitz, and the same for all channels.
    """
    lags = torch.arange(lost.shape[-1], device=lost.device)
    dropped = (~mask.bins()).to(lost.device, torch.complex128)
    kernel = taps_at(dropped[None], lags)[0]
    toeplitz = kernel[(lags[:, None] - lags).abs()]
    toeplitz.diagonal().add_(STIFFNESS)
    return torch.linalg.solve(toeplitz, lost.double().mT).mT


def kept_bins(k: Tensor, mask: BlockMask) -> Tensor:
    """Spectrum of a filter where a mask of n points keeps it, in the mask's order: (H, count) complex128.

    k: (H, K), of which n taps count.
    """
    return spectrum(k, mask.n)[:, mask.frequencies().flatten().to(k.device)]


def from_bins(bins: Tensor, mask: BlockMask) -> Tensor:
    """Filter whose spectrum of n points is `bins` where a mask keeps it, else zero: lags -n .. n - 1, (H, 2n) float64.

        k'[d] = Re (1/n) sum over kept f of K[f] exp(2 pi i (f + 1/4) d / n)

    bins: (H, count) complex, in the mask's order.
    """
    k_f = torch.zeros(len(bins), mask.n, dtype=torch.complex128, device=bins.device)
    k_f[:, mask.frequencies().flatten()] = bins.to(k_f)
    return taps_at(k_f, torch.arange(-mask.n, mask.n, device=bins.device))


def band_limit(k: Tensor, mask: BlockMask) -> tuple[Tensor, int]:
    """Filter that a masked spectrum of n points really applies, and how many of its taps lie ahead.

    k: (H, K).  The mask acts on the first n taps; later ones, if any, stay as they are.  Zeroed bins make the filter
    ring, so half of the result lies at negative lags.  Lag -n, which no signal of n samples feels, is there to make the
    result say all of its own spectrum.
    Returns k': (H, n + max(K, n)) float64, and ahead = n, the taps at lags -n .. -1.
    """
    return torch.cat([from_bins(kept_bins(k, mask), mask), k[:, mask.n :].double()], dim=-1), mask.n
