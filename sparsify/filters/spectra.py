"""The spectrum of a filter, and where its energy lies: by tap and by frequency bin.

Spectra are those that masks cut, at the frequencies (f + 1/4) / n: see `sparsify.filters.monarch`.  Energies are summed
over channels, in float64; by Parseval both views have the same total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .filter import Taps, as_filter
from .monarch import check_share, roots, wrap

SHARES = (0.9, 0.99, 0.999)


def spectrum(k: Taps, n: int) -> Tensor:
    """Spectrum of a filter at the frequencies (f + 1/4) / n: (H, n) complex128, f from 0 on.

    Of its taps those at the lags -n .. n - 1 count.
    """
    k = as_filter(k)
    return torch.fft.fft(wrap(k.k, n, k.lookahead) * roots(4 * n, torch.arange(n, device=k.k.device)))


def taps_at(k_f: Tensor, lags: Tensor) -> Tensor:
    """Taps of the real filter that has a spectrum: (H, lags) float64.  The inverse of `spectrum` for lags -n .. n - 1.

    k_f: (H, n) complex128.  lags: int64, any; the waves that the filter is the sum of have no end.
    """
    n = k_f.shape[-1]
    return (torch.fft.ifft(k_f)[:, lags % n] * roots(4 * n, -lags)).real


def rising(n: int) -> Tensor:
    """Bins by the frequency they stand for, 0, n - 1, 1, n - 2, ..., int64: entry j lies at (j + 1/2) / 2n."""
    j = torch.arange(n)
    return torch.where(j % 2 == 0, j // 2, n - (j + 1) // 2)


def energy_by_tap(k: Taps) -> Tensor:
    """Sum over channels of |k|^2, of the lags d and -d together: (`Filter.reach`,) float64."""
    k = as_filter(k)
    energy = k.k.double().square().sum(0)
    if not k.lookahead:
        return energy
    past, future = energy[k.lookahead :], energy[: k.lookahead].flip(0)
    return pad(past, (0, k.reach - len(past))) + pad(future, (1, k.reach - 1 - k.lookahead))


def energy_by_bin(k: Taps, n: int) -> Tensor:
    """Sum over channels of |k_f|^2 / n, lowest frequency first: (n,) float64.  The lags -n .. n - 1 count."""
    return (spectrum(k, n).abs().square().sum(0) / n)[rising(n)]


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
