"""Split and band-limited filters: exact where they promise to be, bounded where they leak."""

import pytest
import torch
from helpers import assert_close
from searches import smooth_filter

from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.filters.spectra import spectrum, taps_at
from sparsify.filters.split import STIFFNESS, band_limit, ramp, split
from sparsify.plan import FilterPlan


@pytest.mark.parametrize("taps", [1, 16, 64, 5000])
@pytest.mark.parametrize("mask", [None, BlockMask.low_pass(1024, 0.125)])
def test_head_and_tail_add_up(taps, mask):
    k = smooth_filter()
    head, tail = (part.k for part in split(k, taps, mask))
    tail[:, : head.shape[-1]] += head
    assert torch.equal(tail.float(), k)


@pytest.mark.parametrize(
    ("mask", "share"), [(BlockMask.low_pass(1024, 1 / 16), 0.1), (BlockMask.comb(1024, 0.25), 0.8)]
)
def test_no_other_head_loses_less(mask, share):
    """Of the tail to its mask, taps at negative lags counted: less than by the ramp, and more with any other head."""
    k = smooth_filter()

    def lost(head):
        tail = k.double()
        tail[:, :32] -= head
        return (tail_f := spectrum(tail, 1024) * ~mask.bins()).abs().square().sum() / tail_f.shape[-1]

    best, by_ramp = split(k, 32, mask)[0].k, split(k, 32)[0].k
    assert lost(best) < share * lost(by_ramp)
    for _ in range(5):
        assert lost(best + 0.03 * torch.randn_like(best)) > lost(best)
    assert best.abs().max() < 2 * k.abs().max()


def test_long_heads_are_fitted_where_it_matters(monkeypatch):
    k, mask = smooth_filter(), BlockMask.low_pass(1024, 1 / 16)
    monkeypatch.setattr("sparsify.filters.split.REACH", 20)
    some, by_ramp = split(k, 64, mask)[0].k, split(k, 64)[0].k
    assert torch.equal(some[:, 20:], by_ramp[:, 20:]) and not torch.equal(some[:, :20], by_ramp[:, :20])


def test_ramp_rises_smoothly():
    w = ramp(64)
    assert w[0] == 0 and (w.diff() >= 0).all() and w[-1] > 0.999
    assert w.diff().max() < 2.1 / 64  # a Hann window's peak is twice its mean


def test_full_mask_changes_nothing():
    k = smooth_filter()
    kept = band_limit(k, BlockMask.full(1024))
    assert_close(kept.past().k[:, :1024], k, 1e-12)
    assert kept.k[:, : kept.lookahead].abs().max() < 1e-12


@pytest.mark.parametrize(
    "mask", [BlockMask.low_pass(64, 0.25), BlockMask.comb(64, 0.25), BlockMask((8, 8), (2, 2), (3, 5))]
)
def test_band_limit_is_the_formula(mask):
    """Sums over the kept waves, one tap at a time."""
    k, n, kept_f = smooth_filter(60), mask.n, mask.bins().nonzero().flatten().double() + 0.25
    kept = band_limit(k, mask)
    assert (kept.taps, kept.lookahead) == (2 * n, n)
    k_f = k.to(torch.complex128) @ torch.exp(-2j * torch.pi * (torch.arange(60)[:, None] * kept_f / n))
    for d in range(-n, n):
        expected = (k_f @ torch.exp(2j * torch.pi * (kept_f * d / n))).real / n
        assert (kept.k[:, n + d] - expected).norm() < 1e-12 * k.norm(), d


def test_a_second_time_changes_nothing():
    """What a mask has left is all in its bins: nothing more is lost."""
    k, mask = smooth_filter(), BlockMask.low_pass(1024, 0.125)
    kept = band_limit(k, mask)
    k_f = spectrum(kept, 1024)
    assert_close(taps_at(k_f * mask.bins(), torch.arange(-1024, 1024)), kept.k, 1e-12)
    assert (k_f * ~mask.bins()).norm() < 1e-12 * k_f.norm()


def test_taps_beyond_the_mask_stay():
    k = torch.cat([smooth_filter(), torch.ones(4, 2)], dim=-1)
    kept = band_limit(k, BlockMask.low_pass(1024, 0.125))
    assert kept.taps == 2048 + 2 and torch.equal(kept.k[:, -2:], torch.ones(4, 2, dtype=torch.float64))


def test_split_leaks_far_less_than_a_low_pass():
    k, mask = smooth_filter(), BlockMask.low_pass(1024, 0.125)
    low_pass = FilterPlan("frequency-sparse", mask=mask).apply(k)
    halves = FilterPlan("split", 64, mask).apply(k)
    assert low_pass.leak() > 0.05
    assert halves.leak() < 0.02 * low_pass.leak()
    assert halves.past().lookahead == 0 and halves.past().leak() == 0


# --- both ways -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lookahead", "length"), [(64, 128), (63, 127), (5, 100), (90, 100)])
@pytest.mark.parametrize("taps", [1, 4, 16, 300])
def test_a_head_lies_on_both_sides_of_lag_0(taps, lookahead, length):
    k, lags = torch.ones(2, length), torch.arange(length) - lookahead
    head, tail = (part.k for part in split(Filter(k, lookahead), taps))
    inside = lags.abs() < taps
    assert head.shape == (2, int(inside.sum()))
    assert torch.equal(head, k[:, inside] - tail[:, inside]) and torch.equal(tail[:, ~inside], k[:, ~inside].double())
    reach = min(taps, max(length - lookahead, lookahead + 1))
    assert torch.equal(tail[0, inside], ramp(reach)[lags[inside].abs()])  # as far from lag 0 on either side


@pytest.mark.parametrize(("lookahead", "length"), [(0, 60), (64, 128), (63, 127), (5, 60), (55, 60), (70, 150)])
@pytest.mark.parametrize("taps", [1, 4, 16, 300])
@pytest.mark.parametrize("mask", [BlockMask.low_pass(64, 0.25), BlockMask.comb(64, 0.25)])
def test_no_head_at_all_loses_less(mask, taps, lookahead, length):
    """What a mask loses of the tail, plus the pull to the ramp, is convex: least where its slope is zero."""
    k, lags = torch.randn(2, length, dtype=torch.float64), torch.arange(length) - lookahead
    own = lags.abs() < taps
    within = lags[own].abs() < 64  # what the mask does not reach is never lost

    def slope(head):
        head = head.clone().requires_grad_()
        tail = k.clone()
        tail[:, own] -= head
        lost = (spectrum(Filter(tail, lookahead), 64) * ~mask.bins()).abs().square().sum() / 64
        (lost + STIFFNESS * (head - by_ramp).square().sum()).backward()
        return head.grad[:, within]

    best, tail = (part.k for part in split(Filter(k, lookahead), taps, mask))
    by_ramp = split(Filter(k, lookahead), taps)[0].k
    assert torch.equal(tail[:, ~own], k[:, ~own])
    tail[:, own] += best
    assert_close(tail, k, 1e-14)
    assert slope(best).norm() < 1e-10 * slope(by_ramp).norm()
    assert slope(best.flip(-1)).norm() > 1e-3 * slope(by_ramp).norm() or taps == 1


@pytest.mark.parametrize("taps", [4, 8, 16])
def test_a_fitted_head_mends_the_jump_between_two_directions(taps):
    """Two decays that meet at lag 0, as trained filters have them: a ramp leaves several times as much to be lost."""
    mask = BlockMask.low_pass(64, 0.25)
    k = Filter(torch.cat([-0.3 * smooth_filter(64).flip(-1), smooth_filter(64)], dim=-1), 64)
    tails = (split(k, taps, m)[1] for m in (mask, None))
    fitted, by_ramp = (tail.k - band_limit(tail, mask).k for tail in tails)
    assert fitted.norm() < 0.4 * by_ramp.norm() < 0.4 * k.k.norm()


@pytest.mark.parametrize("mask", [BlockMask.low_pass(64, 0.25), BlockMask.comb(64, 0.25)])
@pytest.mark.parametrize("lookahead", [7, 63, 64])
def test_a_mask_acts_on_both_directions_jointly(mask, lookahead):
    """Sums over the kept waves of all lags, one tap at a time."""
    n, k = mask.n, torch.randn(3, lookahead + 60, dtype=torch.float64)
    f = mask.bins().nonzero().flatten().double() + 0.25
    kept = band_limit(Filter(k, lookahead), mask)
    assert (kept.taps, kept.lookahead) == (2 * n, n)
    lags = torch.arange(k.shape[-1]) - lookahead
    k_f = k.to(torch.complex128) @ torch.exp(-2j * torch.pi * (lags[:, None] * f / n))
    for d in range(-n, n):
        expected = (k_f @ torch.exp(2j * torch.pi * (f * d / n))).real / n
        assert (kept.k[:, n + d] - expected).norm() < 1e-12 * k.norm(), d


def test_a_full_mask_says_all_lags_of_both_directions():
    k = torch.randn(2, 128)
    kept = band_limit(Filter(k, 64), BlockMask.full(64))
    assert kept.lookahead == 64
    assert_close(kept.k, k, 1e-12)


def test_taps_beyond_the_mask_stay_on_both_sides():
    k = torch.randn(2, 150)
    kept = band_limit(Filter(k, 70), BlockMask.low_pass(64, 0.25))
    assert kept.lookahead == 70 and kept.k.shape == k.shape
    for outside in (slice(0, 6), slice(70 + 64, None)):
        assert torch.equal(kept.k[:, outside], k[:, outside].double())
