"""Where the energy of a filter lies: by tap and by frequency bin.

Energies are summed over channels, in float64; by Parseval both views have the same total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .monarch import check_share

SHARES = (0.9, 0.99, 0.999)


def energy_by_tap(k: Tensor) -> Tensor:
    """k: (H, K) -> sum over channels of |k|^2: (K,) float64."""
    return k.double().square().sum(0)


def energy_by_bin(k: Tensor, n: int) -> Tensor:
    """k: (H, K), K <= n -> sum over channels of |k_f|^2 / n, both signs of a frequency together: (n // 2 + 1,)."""
    energy = torch.fft.rfft(k.double(), n).abs().square().sum(0) / n
    both_signs = torch.full_like(energy, 2.0)
    both_signs[0] = 1.0
    if n % 2 == 0:
        both_signs[-1] = 1.0
    return energy * both_signs


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

    taps: tuple[int, ...]  # leading taps that hold each share
    bins: tuple[int, ...]  # largest bins that hold each share
    bandwidth: tuple[float, ...]  # low-pass band that holds each share, as a share of the band
    n: int  # FFT size behind bins and bandwidth
    by_tap: Tensor  # (K,) energy
    by_bin: Tensor  # (n // 2 + 1,) energy

    @property
    def bin_count(self) -> int:
        return self.n // 2 + 1


def analyze(k: Tensor, n: int, shares: Sequence[float] = SHARES) -> Spectra:
    """How few taps and bins hold the energy of k: (H, K), K <= n."""
    by_tap, by_bin = energy_by_tap(k), energy_by_bin(k, n)
    return Spectra(
        taps=tuple(first_holding(by_tap, share) for share in shares),
        bins=tuple(fewest_holding(by_bin, share) for share in shares),
        bandwidth=tuple(first_holding(by_bin, share) / len(by_bin) for share in shares),
        n=n,
        by_tap=by_tap,
        by_bin=by_bin,
    )
