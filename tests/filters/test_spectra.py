"""Spectra are sums over taps and go back; energies obey Parseval; shares count what they say."""

import pytest
import torch
from helpers import assert_close

from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.filters.spectra import (
    analyze,
    energy_by_bin,
    energy_by_tap,
    fewest_holding,
    first_holding,
    rising,
    spectrum,
    taps_at,
)


def frequencies(n):
    return (torch.arange(n, dtype=torch.float64) + 0.25) / n


@pytest.mark.parametrize(("n", "taps", "lookahead"), [(100, 100, 0), (101, 60, 20), (64, 128, 64), (64, 200, 90)])
def test_spectrum_is_the_definition_and_goes_back(n, taps, lookahead):
    k, lags = torch.randn(3, taps), torch.arange(taps) - lookahead
    inside = (lags >= -n) & (lags < n)
    waves = torch.exp(-2j * torch.pi * frequencies(n)[:, None] * lags[inside])
    k_f = spectrum(Filter(k, lookahead), n)
    assert_close(torch.view_as_real(k_f), torch.view_as_real(k[:, inside].to(torch.complex128) @ waves.T), 1e-12)
    assert_close(taps_at(k_f, lags[inside]), k[:, inside], 1e-12)


def test_waves_have_no_end():
    k_f, lags = torch.randn(2, 30, dtype=torch.complex128), torch.arange(-200, 200)
    waves = torch.exp(2j * torch.pi * frequencies(30)[:, None] * lags)
    assert_close(taps_at(k_f, lags), (k_f @ waves).real / 30, 1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_bins_rise_evenly(n):
    f = frequencies(n)[rising(n)]
    assert torch.allclose(torch.minimum(f, 1 - f), (torch.arange(n) + 0.5).double() / (2 * n), rtol=0, atol=1e-15)


def test_a_low_pass_is_the_first_bins():
    bins = BlockMask.low_pass(1024, 0.125).bins()[rising(1024)]
    assert bins[:128].all() and not bins[128:].any()


@pytest.mark.parametrize("n", [100, 101, 2048])
def test_parseval(n):
    k = torch.randn(3, 100)
    assert torch.isclose(energy_by_bin(k, n).sum(), energy_by_tap(k).sum(), rtol=1e-12)


@pytest.mark.parametrize(("lookahead", "n"), [(1, 100), (50, 64), (99, 128), (64, 64)])
def test_parseval_both_ways(lookahead, n):
    k = torch.randn(3, 100 if lookahead != 64 else 128)
    energy = energy_by_tap(Filter(k, lookahead))
    assert torch.isclose(energy_by_bin(Filter(k, lookahead), n).sum(), energy.sum(), rtol=1e-12)
    assert torch.isclose(energy.sum(), k.double().square().sum(), rtol=1e-12)
    lags = torch.arange(k.shape[-1]) - lookahead
    assert len(energy) == lags.abs().max() + 1
    for d in (0, 1, len(energy) - 1):
        assert torch.isclose(energy[d], k.double()[:, lags.abs() == d].square().sum(), rtol=1e-12)


def test_counts():
    energy = torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    assert first_holding(energy, 0.8) == 3 and fewest_holding(energy, 0.7) == 2
    assert first_holding(energy, 1.0) == 4 == fewest_holding(energy, 1.0)


def test_a_tone_is_few_bins_and_all_taps():
    """It begins at lag 0, so it is as wide as 256 taps make it: one bin of 256 and a little around it."""
    t = torch.arange(256, dtype=torch.float64)
    tone = torch.cos(2 * torch.pi * 32.25 * t / 256)[None]
    spectra = analyze(tone, 256)
    assert spectra.by_bin.argmax() == 64 and len(spectra.by_bin) == 256  # (64 + 1/2) / 512
    assert spectra.bins[0] <= 4 and spectra.bandwidth[0] == pytest.approx(65 / 256, abs=3 / 256)
    assert spectra.taps[2] > 250


def test_refuses_a_bad_share():
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        first_holding(torch.ones(3), 1.5)
