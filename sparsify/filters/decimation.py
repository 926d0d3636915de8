"""What a mask leaves of a filter, in a form that is quick without a full transform: slowly sampled, or folded.

A band-limited filter needs every `rate`th sample only.  The signal is seen through a window, convolved at the low rate,
and put back through the same window; the low-rate filter makes good what the window weakens inside the band, so the
window has one thing to do: to be nothing where bands fold onto each other.  Gridding does the same, and the
Kaiser-Bessel window is its usual choice (Beatty, Nishimura, Pauly 2005).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from sparsify.cpu.native import MARGIN

from .filter import Filter
from .monarch import BlockMask
from .spectra import spectrum, taps_at

WIDTH = 8  # low-rate samples that the window spans; with twice the rate the band needs, 3e-7 of the signal goes astray
LARGEST_RATE = 64


@cache
def window(rate: int) -> Tensor:
    """The window, symmetric around sample WIDTH * rate / 2, between MARGIN zeros on either side: float32."""
    return torch.nn.functional.pad(kaiser_bessel(rate), (MARGIN, MARGIN)).float()


def kaiser_bessel(rate: int) -> Tensor:
    """(WIDTH * rate,) float64, sum 1; its shape is that of equation 5 of the paper for a band of half the low rate."""
    half = WIDTH * rate // 2
    beta = math.pi * math.sqrt((WIDTH / 2) ** 2 * 2.25 - 0.8)
    x = torch.arange(-half, half, dtype=torch.float64) / half
    w = torch.special.i0(beta * (1 - x * x).sqrt())
    w[0] = 0  # has no partner on the other side
    return w / w.sum()


@cache
def band(mask: BlockMask) -> int:
    """Bins on either side of zero that a mask keeps any of: nothing is left at frequencies |f| >= band / n."""
    f = mask.bins().nonzero().flatten()
    return int(torch.minimum(f + 1, mask.n - f).max().item())


def rate(mask: BlockMask) -> int:
    """How many samples to one at the lower rate: the largest power of two that leaves twice the rate the band needs."""
    most = 1
    while most < LARGEST_RATE and mask.n % (2 * most) == 0 and 8 * most * band(mask) <= mask.n:
        most *= 2
    return most


@cache
def residues(mask: BlockMask) -> tuple[int, ...]:
    """Values of the outer digit that a mask keeps any bin of."""
    return tuple(mask.bins().view(-1, mask.factors[0]).any(0).nonzero().flatten().tolist())


def decimated_taps(k_f: Tensor, mask: BlockMask, rate: int, reach: int) -> Tensor:
    """Taps of the low-rate filter at lags -(reach - 1) .. reach - 1: (H, 2 reach - 1) float64.

    k_f: (H, n) complex128, spectrum of a filter that the mask has been applied to.
    """
    low, cut = mask.n // rate, band(mask)
    seen = spectrum(Filter(kaiser_bessel(rate)[None], WIDTH * rate // 2), mask.n)[0].real
    kept = k_f.new_zeros(k_f.shape[0], low)
    for side in (slice(cut), slice(-cut, None)):  # the same frequencies, on fewer points
        kept[:, side] = k_f[:, side] * rate / seen[side] ** 2
    return taps_at(kept, torch.arange(1 - reach, reach))
