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


def near(taps: int, length: int, ahead: int = 0) -> slice:
    """The lags |d| < taps of a filter of `length` taps, tap j at lag j - ahead."""
    return slice(max(0, ahead - taps + 1), min(length, ahead + taps))


def split(k: Tensor, taps: int, mask: BlockMask | None = None, ahead: int = 0) -> tuple[Tensor, Tensor]:
    """Head and tail (H, K) that add up to k: (H, K), tap j at lag j - ahead, in float64.

    The head is (H, taps), or (H, 2 taps - 1) where k looks both ways; fewer where k ends before.
    mask: what the tail will be cut to; the head then takes what would be lost of the tail, as far as its taps reach.
    """
    length = k.shape[-1]
    own = near(taps, length, ahead)
    k, lags = k.double(), torch.arange(own.start - ahead, own.stop - ahead)
    rising = k[:, own] * ramp(min(taps, int(lags.abs().max()) + 1))[lags.abs()].to(k.device)
    head, tail = k[:, own] - rising, torch.cat([k[:, : own.start], rising, k[:, own.stop :]], dim=-1)
    if mask is not None:
        fitted = near(min(taps, mask.n, REACH), length, ahead)
        lost = spectrum(tail, mask.n, ahead) * ~mask.bins().to(k.device)
        moved = moves(taps_at(lost, torch.arange(fitted.start - ahead, fitted.stop - ahead, device=k.device)), mask)
        head[:, fitted.start - own.start : fitted.stop - own.start] += moved
        tail[:, fitted] -= moved
    return head, tail


def moves(lost: Tensor, mask: BlockMask) -> Tensor:
    """What to move from tail to head so that a mask loses least: (H, lags) float64.

    lost: (H, lags), what it takes away from the tail as it is, at the head's lags.  With Q the projection onto the
    dropped bins, E the head's taps and m what is moved, |Q (tail - E m)|^2 + STIFFNESS |m|^2 is least where
    (E' Q E + STIFFNESS) m = E' Q tail.  E' Q E is Toeplitz, and the same for all channels.
    """
    lags = torch.arange(lost.shape[-1], device=lost.device)
    dropped = (~mask.bins()).to(lost.device, torch.complex128)
    kernel = taps_at(dropped[None], lags)[0]
    toeplitz = kernel[(lags[:, None] - lags).abs()]
    toeplitz.diagonal().add_(STIFFNESS)
    return torch.linalg.solve(toeplitz, lost.double().mT).mT


def kept_bins(k: Tensor, mask: BlockMask, ahead: int = 0) -> Tensor:
    """Spectrum of a filter where a mask of n points keeps it, in the mask's order: (H, count) complex128.

    k: (H, K), tap j at lag j - ahead, of which the lags -n .. n - 1 count.
    """
    return spectrum(k, mask.n, ahead)[:, mask.frequencies().flatten().to(k.device)]


def from_bins(bins: Tensor, mask: BlockMask) -> Tensor:
    """Filter whose spectrum of n points is `bins` where a mask keeps it, else zero: lags -n .. n - 1, (H, 2n) float64.

        k'[d] = Re (1/n) sum over kept f of K[f] exp(2 pi i (f + 1/4) d / n)

    bins: (H, count) complex, in the mask's order.
    """
    k_f = torch.zeros(len(bins), mask.n, dtype=torch.complex128, device=bins.device)
    k_f[:, mask.frequencies().flatten()] = bins.to(k_f)
    return taps_at(k_f, torch.arange(-mask.n, mask.n, device=bins.device))


def masked(k: Tensor, bins: Tensor, mask: BlockMask, ahead: int = 0) -> tuple[Tensor, int]:
    """A filter that has these bins at the lags that a mask of n points reaches, and how many of its taps lie ahead.

    k: (H, K), tap j at lag j - ahead; of it the lags beyond -n .. n - 1 stay as they are, if there are any.  Zeroed
    bins make a filter ring, so half of these lags are negative, whatever k does.  Lag -n, which no signal of n samples
    feels, is there to make the result say all of its own spectrum.
    Returns k': (H, ahead' + max(K - ahead, n)) float64, and ahead' = max(ahead, n), its taps at negative lags.
    """
    n = mask.n
    before, behind = k[:, : max(0, ahead - n)].double(), k[:, ahead + n :].double()
    return torch.cat([before, from_bins(bins, mask), behind], dim=-1), max(ahead, n)


def band_limit(k: Tensor, mask: BlockMask, ahead: int = 0) -> tuple[Tensor, int]:
    """Filter that a masked spectrum really applies, and how many of its taps lie ahead: `masked` with its own bins."""
    return masked(k, kept_bins(k, mask, ahead), mask, ahead)
