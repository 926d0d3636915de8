"""A filter cut by frequency: band-limited as a whole, or split into an exact head and a band-limited tail.

A trained filter jumps at lag 0; the jump alone spreads its spectrum.  Fading the first taps out of the tail takes the
jump away: the tail's spectrum falls fast, and what a mask still makes it ring rings over the head, not over the future.

    head[t] = k[t] (1 - w[t])      t = 0 .. taps - 1, exact and causal
    tail[t] = k[t] w[t]            w rises smoothly from 0 to 1 over the head
    y = head * u + masked(tail) * u
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


def split(k: Tensor, taps: int) -> tuple[Tensor, Tensor]:
    """Head (H, taps) and tail (H, K) that add up to k: (H, K), in float64."""
    taps = min(taps, k.shape[-1])
    k = k.double()
    rising = k[:, :taps] * ramp(taps)
    return k[:, :taps] - rising, torch.cat([rising, k[:, taps:]], dim=-1)


def band_limit(k: Tensor, mask: BlockMask) -> tuple[Tensor, int]:
    """Filter that a masked spectrum of n points really applies, and how many of its taps lie ahead.

        k'[d] = Re (1/n) sum over kept f of K[f] exp(2 pi i (f + 1/4) d / n),     d = -n .. n - 1

    k: (H, K).  The mask acts on the first n taps; later ones, if any, stay as they are.  Zeroed bins make the filter
    ring, so half of the result lies at negative lags.  Lag -n, which no signal of n samples feels, is there to make the
    result say all of its own spectrum.
    Returns k': (H, n + max(K, n)) float64, and ahead = n, the taps at lags -n .. -1.
    """
    n = mask.n
    kept = taps_at(spectrum(k, n) * mask.bins().to(k.device), torch.arange(-n, n, device=k.device))
    return torch.cat([kept, k[:, n:].double()], dim=-1), n
