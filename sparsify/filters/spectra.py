"""The spectrum of a filter, and where its energy lies: by tap and by frequency bin.

Spectra are those that masks cut, at the frequencies (f + 1/4) / n: see `sparsify.filters.monarch`.  Energies are summed
over channels, in float64; by Parseval both views have the same total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from .filter import Taps, as_filter, blocks, in_memory
from .monarch import check_share, roots, wrap

EXACT_POINTS = 1 << 16  # of a spectrum that is computed in float64; longer ones have float32's rounding, 3e-7
SHARES = (0.9, 0.99, 0.999)


def spectrum(k: Taps, n: int) -> Tensor:
    """Spectrum of a filter at the frequencies (f + 1/4) / n: (H, n) complex, f from 0 on.

    Of its taps those at the lags -n .. n - 1 count.  It is complex128, beyond EXACT_POINTS complex64.
    """
    k = in_memory(as_filter(k))
    return torch.fft.fft(wrap(k.k, n, k.lookahead, precision(n)).mul_(quarter_turns(n, k.k.device)))


def precision(n: int) -> torch.dtype:
    """What spectra of n points are computed in."""
    return torch.complex128 if n <= EXACT_POINTS else torch.complex64


@lru_cache(maxsize=2)
def quarter_turns(n: int, device: torch.device) -> Tensor:
    """What moves a spectrum of n points by a quarter of a bin: (n,) complex, to multiply a signal with."""
    return roots(4 * n, torch.arange(n, device=device)).to(precision(n))


def power(k_f: Tensor) -> Tensor:
    """|k_f|^2, real."""
    if k_f.dtype == torch.complex128:
        return k_f.abs().square()
    return k_f.real.square() + k_f.imag.square()


def taps_at(k_f: Tensor, lags: Tensor) -> Tensor:
    """Taps of the real filter that has a spectrum: (H, lags).  The inverse of `spectrum` for lags -n .. n - 1.

    k_f: (H, n) complex.  lags: int64, any; the waves that the filter is the sum of have no end.
    """
    n, taps = k_f.shape[-1], torch.fft.ifft(k_f)
    if k_f.dtype == torch.complex64 and len(lags) == 2 * n:  # all there are, of a long one: for less memory
        taps *= quarter_turns(n, k_f.device).conj()
        return torch.cat([taps.imag, taps.real], dim=-1)
    return (taps[:, lags % n] * roots(4 * n, -lags).to(k_f.dtype)).real


def rising(n: int) -> Tensor:
    """Bins by the frequency they stand for, 0, n - 1, 1, n - 2, ..., int64: entry j lies at (j + 1/2) / 2n."""
    j = torch.arange(n)
    return torch.where(j % 2 == 0, j // 2, n - (j + 1) // 2)


def energy_by_tap(k: Taps) -> Tensor:
    """Sum over channels of |k|^2, of the lags d and -d together: (`Filter.reach`,) float64."""
    k = as_filter(k)
    energy = sum((part.k.double().square().sum(0) for part in blocks(k)), torch.zeros(()))
    if not k.lookahead:
        return energy
    past, future = energy[k.lookahead :], energy[: k.lookahead].flip(0)
    return pad(past, (0, k.reach - len(past))) + pad(future, (1, k.reach - 1 - k.lookahead))


def energy_by_bin(k: Taps, n: int) -> Tensor:
    """Sum over channels of |k_f|^2 / n, lowest frequency first: (n,) float64.  The lags -n .. n - 1 count."""
    parts = (power(spectrum(part, n)).sum(0, dtype=torch.float64) for part in blocks(as_filter(k)))
    energy = sum(parts, torch.zeros(()))
    return (energy / n)[rising(n)]


def first_holding(energy: Tensor, share: float) -> int:
    """How many leading entries hold `share` of the energy.  energy: (T,) float64."""
    check_share(share)
    held = energy.cumsum(0)
    return min(int((held < share * held[-1]).sum()) + 1, len(energy))


def fewest_holding(energy: Tensor, share: float) -> int:
    """How many entries, the largest first, hold `share` of the energy.  energy: (T,) float64."""
    return first_holding(energy.sort(descending=True).values, share)


@dataclass(frozen=True)
class Spectra:
    """Time and frequency concentration of one filter; every tuple runs along SHARES."""

    taps: tuple[int, ...]  # leading taps that hold each share: the lags |d| < taps
    bins: tuple[int, ...]  # largest bins that hold each share
    bandwidth: tuple[float, ...]  # low-pass band that holds each share, as a share of the band
    by_tap: Tensor  # (K,) energy
    by_bin: Tensor  # (n,) energy


def analyze(k: Taps, n: int, shares: Sequence[float] = SHARES) -> Spectra:
    """How few taps and bins hold the energy of a filter, whose taps all lie within the lags -n .. n - 1."""
    by_tap, by_bin = energy_by_tap(k), energy_by_bin(k, n)
    return Spectra(
        taps=tuple(first_holding(by_tap, share) for share in shares),
        bins=tuple(fewest_holding(by_bin, share) for share in shares),
        bandwidth=tuple(first_holding(by_bin, share) / len(by_bin) for share in shares),
        by_tap=by_tap,
        by_bin=by_bin,
    )
