"""A filter cut by frequency: band-limited as a whole, or split into an exact head and a band-limited tail.

A trained filter jumps at lag 0; the jump alone spreads its spectrum.  Fading the first taps out of the tail takes the
jump away: the tail's spectrum falls fast, and what a mask still makes it ring rings over the head, not over the future.

    head[t] = k[t] (1 - w[t])      t = 0 .. taps - 1, exact and causal
    tail[t] = k[t] w[t]            w rises smoothly from 0 to 1 over the head
    y = head * u + masked(tail) * u

A filter that looks both ways has its head on both sides of lag 0, and w depends on |t|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .monarch import BlockMask
from .spectra import spectrum, taps_at


def ramp(taps: int) -> Tensor:
    """Rise w from 0 towards 1, the integral of a Hann window: (taps,) float64."""
    t = torch.arange(taps, dtype=torch.float64) / taps
    return t - torch.sin(2 * math.pi * t) / (2 * math.pi)


def near(taps: int, length: int, ahead: int = 0) -> slice:
    """The lags |d| < taps of a filter of `length` taps, tap j at lag j - ahead."""
    return slice(max(0, ahead - taps + 1), min(length, ahead + taps))


def split(k: Tensor, taps: int, ahead: int = 0) -> tuple[Tensor, Tensor]:
    """Head and tail (H, K) that add up to k: (H, K), tap j at lag j - ahead, in float64.

    The head is (H, taps), or (H, 2 taps - 1) where k looks both ways; fewer where k ends before.
    """
    taps = min(taps, max(k.shape[-1] - ahead, ahead + 1))
    head = near(taps, k.shape[-1], ahead)
    k = k.double()
    rising = k[:, head] * ramp(taps)[torch.arange(head.start - ahead, head.stop - ahead).abs()]
    return k[:, head] - rising, torch.cat([k[:, : head.start], rising, k[:, head.stop :]], dim=-1)


def band_limit(k: Tensor, mask: BlockMask, ahead: int = 0) -> tuple[Tensor, int]:
    """Filter that a masked spectrum of n points really applies, and how many of its taps lie ahead.

        k'[d] = Re (1/n) sum over kept f of K[f] exp(2 pi i (f + 1/4) d / n),     d = -n .. n - 1

    k: (H, K), tap j at lag j - ahead.  The mask acts on these lags, on both sides jointly; others, if any, stay as they
    are.  Zeroed bins make the filter ring, so half of the result lies at negative lags, whatever k does.  Lag -n, which
    no signal of n samples feels, is there to make the result say all of its own spectrum.
    Returns k': (H, ahead' + max(K - ahead, n)) float64, and ahead' = max(ahead, n), its taps at negative lags.
    """
    n = mask.n
    kept = taps_at(spectrum(k, n, ahead) * mask.bins().to(k.device), torch.arange(-n, n, device=k.device))
    return torch.cat([k[:, : max(0, ahead - n)].double(), kept, k[:, ahead + n :].double()], dim=-1), max(ahead, n)
