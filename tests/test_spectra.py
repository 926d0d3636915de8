"""Energies obey Parseval; shares count what they say."""

import pytest
import torch

from sparsify.spectra import analyze, energy_by_bin, energy_by_tap, fewest_holding, first_holding


@pytest.mark.parametrize("n", [100, 101, 2048])
def test_parseval(n):
    k = torch.randn(3, 100)
    assert torch.isclose(energy_by_bin(k, n).sum(), energy_by_tap(k).sum(), rtol=1e-12)


def test_counts():
    energy = torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    assert first_holding(energy, 0.8) == 3 and fewest_holding(energy, 0.7) == 2
    assert first_holding(energy, 1.0) == 4 == fewest_holding(energy, 1.0)


def test_a_pure_tone_is_one_bin_and_all_taps():
    t = torch.arange(256, dtype=torch.float64)
    tone = torch.cos(2 * torch.pi * 32 * t / 256)[None]
    spectra = analyze(tone, 256)
    assert spectra.bins == (1, 1, 1) and spectra.bin_count == 129
    assert spectra.bandwidth[0] == pytest.approx(33 / 129)
    assert spectra.taps[2] > 250


def test_refuses_a_bad_share():
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        first_holding(torch.ones(3), 1.5)
