"""The block-skipping transform against the sums it stands for, and proof that it does only the work it counts."""

import cmath
import json
import math

import pytest
import torch
from helpers import RELATIVE_L2, assert_close
from torch.utils.flop_counter import FlopCounterMode

from sparsify.fftconv import fftconv_ref
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import (
    BlockMask,
    block_spectrum,
    dft,
    digits,
    factor,
    frequency,
    monarch_conv,
    monarch_fft,
    monarch_ifft,
    roots,
    twiddles,
    work,
    wrap,
)
from sparsify.filters.split import band_limit

EXACT = 1e-12
LENGTHS = (1, 7, 255, 256, 257, 1000)
FACTORS = ((64,), (16, 16), (32, 64), (4, 25), (25, 4), (8, 16, 4), (5, 6, 7), (2, 3, 4, 5))


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def random_mask(factors, share, block=None):
    """Blocks drawn at random, at least one."""
    whole = BlockMask.full(math.prod(factors), factors, block)
    drawn = [index for index in whole.keep if torch.rand(()) < share]
    return BlockMask(whole.factors, whole.block, tuple(drawn or [0]))


def waves(n, lags):
    """exp(-2 pi i (f + 1/4) t / n), row f, column t, from the definition: (n, lags) complex128."""
    quarters = (4 * torch.arange(n)[:, None] + 1) * lags % (4 * n)  # exact: the phase is rounded once
    return torch.exp(-2j * torch.pi * quarters.double() / (4 * n))


def direct(u, k, mask, lookahead=0):
    """The formula: every kept wave of the filter, fitted at its taps and heard as far as the signal reaches."""
    n, seqlen = mask.n, u.shape[-1]
    lags, felt = torch.arange(k.shape[-1]) - lookahead, torch.arange(1 - seqlen, seqlen)
    inside = (lags >= -n) & (lags < n)
    k_f = (k[:, inside].to(torch.complex128) @ waves(n, lags[inside]).T) * mask.bins()
    return fftconv_ref(u, Filter((k_f @ waves(n, felt).conj()).real / n, seqlen - 1))


@pytest.mark.parametrize("n", [8, 4096, 1 << 22, 3 * 5**8])
def test_roots_are_exact(n):
    exponent = torch.randint(n, (200,)) * torch.randint(n, (200,))
    true = torch.tensor([cmath.exp(-2j * cmath.pi * (e % n) / n) for e in exponent.tolist()], dtype=torch.complex128)
    assert (roots(n, exponent) - true).abs().max() < 1e-15
    if n > 1 << 20:  # what the integer reduction is for
        assert (torch.exp(-2j * torch.pi * exponent.double() / n) - true).abs().max() > 1e-11


def test_tables_are_the_definition():
    assert_close(torch.view_as_real(dft(48)), torch.view_as_real(torch.fft.fft(torch.eye(48).double())), 1e-14)
    assert twiddles(32, 64)[31, 63] == roots(2048, torch.tensor(31 * 63))
    assert_close(torch.view_as_real(dft(48, 1)), torch.view_as_real(waves(48, torch.arange(48))), 1e-14)
    assert twiddles(32, 64, 1)[31, 63] == roots(4 * 2048, torch.tensor((4 * 31 + 1) * 63))


@pytest.mark.parametrize(
    ("n", "factors"),
    [(2, (2,)), (64, (64,)), (128, (8, 16)), (2048, (32, 64)), (1 << 15, (32,) * 3), (1 << 21, (32,) * 3 + (64,))],
)
def test_factor(n, factors):
    assert factor(n) == factors


@pytest.mark.parametrize("factors", FACTORS)
def test_digits(factors):
    f = torch.arange(math.prod(factors))
    parts = digits(f, factors)
    assert all(((part >= 0) & (part < size)).all() for part, size in zip(parts, factors, strict=True))
    assert torch.equal(sum(part * math.prod(factors[:i]) for i, part in enumerate(parts)), f)
    assert torch.equal(frequency(parts, factors), f)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("share", [1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_transform_is_the_definition_on_the_kept_blocks(factors, share, dtype):
    mask, x = random_mask(factors, share), torch.randn(2, 3, math.prod(factors), dtype=dtype)
    table = waves(mask.n, torch.arange(mask.n))
    x_f = x.to(torch.complex128) @ table.T
    kept = monarch_fft(x, mask)
    assert_close(torch.view_as_real(kept), torch.view_as_real(x_f[..., mask.frequencies()]), EXACT)
    back = (x_f * mask.bins()) @ table.conj() / mask.n
    for seqlen in (mask.n, mask.n // 2 + 1):
        assert_close(monarch_ifft(kept, mask, seqlen), back.real[..., :seqlen], EXACT)
    if share == 1:
        assert_close(monarch_ifft(kept, mask, mask.n), x.real, EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seqlen", LENGTHS)
def test_without_a_mask_it_is_the_reference(seqlen, dtype):
    for taps, lookahead in ((seqlen, 0), (33, 0), (33, 20), (2 * seqlen - 1, seqlen - 1)):
        u, k = torch.randn(2, 3, seqlen, dtype=dtype), torch.randn(3, taps, dtype=dtype)
        y = monarch_conv(u, k, lookahead=lookahead)
        assert y.dtype == dtype
        assert_close(y, fftconv_ref(u, Filter(k, lookahead)), EXACT if dtype == torch.float64 else RELATIVE_L2[dtype])


@pytest.mark.parametrize(("taps", "lookahead"), [(10, 0), (19, 9), (12, 0), (40, 20), (40, 39)])
def test_as_many_points_as_samples_are_enough(taps, lookahead):
    """What would wrap around is imaginary; taps that no sample can feel may be there or not."""
    u, k = randn(3, 10), randn(3, taps)
    assert_close(monarch_conv(u, k, BlockMask.full(10, (10,)), lookahead), fftconv_ref(u, Filter(k, lookahead)), EXACT)
    with pytest.raises(ValueError, match="10 samples does not fit 9 points"):
        monarch_conv(u, k, BlockMask.full(9, (9,)), lookahead)


def test_negative_lags_turn_by_a_quarter():
    """The rule of `wrap`: the spectrum of sample n + d, times i, is that of lag d."""
    lags = torch.arange(-12, 12)
    k = randn(3, 24)
    for first, lookahead in ((0, 12), (3, 9), (12, 0)):  # a lag more or less on the left
        k_f = k[:, first:].to(torch.complex128) @ waves(12, lags[first:]).T
        wrapped = wrap(k[:, first:], 12, lookahead) @ waves(12, torch.arange(12)).T
        assert_close(torch.view_as_real(wrapped), torch.view_as_real(k_f), EXACT)
    beyond = torch.cat([randn(3, 2), k, randn(3, 5)], dim=-1)
    assert torch.equal(wrap(beyond, 12, 14), wrap(k, 12, 12))


@pytest.mark.parametrize("seqlen", LENGTHS)
@pytest.mark.parametrize(
    ("factors", "block"),
    [((32, 64), None), ((32, 64), (4, 16)), ((16, 8, 16), (4, 8, 4)), ((27, 75), (9, 5)), ((43, 49), (43, 7))],
)
def test_masked_convolution_is_the_formula(seqlen, factors, block):
    mask, lookahead = random_mask(factors, 0.6, block), seqlen // 3
    u, k = randn(2, 3, seqlen), randn(3, seqlen)
    assert_close(monarch_conv(u, k, mask, lookahead), direct(u, k, mask, lookahead), EXACT)
    assert_close(
        monarch_conv(u.float(), k, mask, lookahead), direct(u.float(), k, mask, lookahead), RELATIVE_L2[torch.float32]
    )


@pytest.mark.parametrize("factors", [(32, 32), (8, 16, 8), (27, 75)])
def test_masked_convolution_has_the_planned_filter(factors):
    """Transform, plans and the CPU's ways mean the same by a mask; two taps more than points, as HyenaDNA has them."""
    mask = random_mask(factors, 0.5)
    u, k = randn(2, 3, mask.n), randn(3, mask.n + 2)
    assert_close(monarch_conv(u, k, mask), fftconv_ref(u, band_limit(k, mask)), EXACT)


@pytest.mark.parametrize("factors", FACTORS)
def test_every_kept_bin_counts_and_none_brings_another(factors):
    mask = random_mask(factors, 0.5)
    assert mask.bins().sum() == mask.frequencies().numel() == mask.density * mask.n
    assert mask.bins()[mask.frequencies()].all()
    kept = band_limit(randn(2, mask.n), mask)
    k_f = wrap(kept.k, mask.n, kept.lookahead) @ waves(mask.n, torch.arange(mask.n)).T
    assert k_f[:, ~mask.bins()].norm() <= EXACT * k_f.norm()
    in_blocks = block_spectrum(kept.k, mask, kept.lookahead)
    assert_close(torch.view_as_real(k_f[:, mask.frequencies()]), torch.view_as_real(in_blocks), EXACT)


@pytest.mark.parametrize("n", [64, 2048, 1 << 15])
@pytest.mark.parametrize("share", [1, 0.7, 0.5, 0.125, 0.01, 1e-4])
def test_low_pass_is_a_band_of_about_its_share(n, share):
    mask = BlockMask.low_pass(n, share)
    f = mask.bins().nonzero().flatten()
    quarters = torch.where(f < n // 2, 4 * f + 1, 4 * (n - f) - 1)  # |frequency| in quarters of a bin: 1, 3, 5, ...
    assert len(f) == (quarters.max() + 1) // 2  # nothing missing below the cut
    assert mask.density == pytest.approx(share, rel=0.34, abs=2 / n)
    if share in (1, 0.5, 0.125):
        assert mask.density == share


def test_low_pass_columns_match_the_share_as_well_as_any():
    for share in torch.linspace(0.05, 1, 60).tolist():
        best = min(abs(c / 32 - share) for c in range(1, 33))  # 32 bins a column, both ends
        assert abs(BlockMask.low_pass(2048, share).density - share) == pytest.approx(best, abs=1e-12)


def test_blocks_are_as_coarse_as_the_cut_allows():
    assert BlockMask.low_pass(2048, 0.25).block == (32, 8)
    assert BlockMask.low_pass(2048, 24 / 2048).block == (4, 1)  # f < 12: narrower than a column of 32
    assert BlockMask.comb(2048, 0.25).block == (4, 64)
    assert BlockMask.comb(2048, 3 / 32).block == (1, 64)


@pytest.mark.parametrize("share", [1, 0.5, 0.25, 0.02])
def test_comb_keeps_outer_digits(share):
    mask = BlockMask.comb(2048, share, (64, 32))
    outer = mask.bins().view(32, 64)
    assert (outer == outer[0]).all()
    assert mask.density == pytest.approx(share, abs=1 / 64)
    kept = outer[0].sum()
    assert outer[0].roll(kept.item() // 2)[:kept].all()  # in one piece around 0


@pytest.mark.parametrize("factors", FACTORS)
def test_from_bins_is_the_smallest_cover(factors):
    bins = torch.rand(math.prod(factors)) < 3 / math.prod(factors)
    bins[5] = True
    mask = BlockMask.from_bins(bins, factors)
    assert (mask.bins() | ~bins).all()
    for index in mask.keep if len(mask.keep) > 1 else ():
        less = BlockMask(mask.factors, mask.block, tuple(i for i in mask.keep if i != index))
        assert (bins & ~less.bins()).any()


@pytest.mark.parametrize("factors", [(32, 64), (16, 8, 16), (27, 75)])
def test_dropped_blocks_are_never_read(factors):
    """NaN in every dropped block of the spectrum changes nothing."""
    mask, u, k = random_mask(factors, 0.5, block=(1, *factors[1:])), randn(2, 3, 900), randn(3, 900)
    dropped = torch.ones(mask.n, dtype=torch.bool)
    dropped[mask.frequencies()] = False
    table = waves(mask.n, torch.arange(900))
    u_f, k_f = u.to(torch.complex128) @ table.T, k.to(torch.complex128) @ table.T
    k_f[:, dropped] = torch.nan
    y_f = u_f * k_f
    assert y_f.isnan().any()
    assert_close(monarch_ifft(y_f[..., mask.frequencies()], mask, 900), direct(u, k, mask), EXACT)
    assert_close(monarch_conv(u, k, mask), direct(u, k, mask), EXACT)


@pytest.mark.parametrize("seqlen", [1000, 1500, 2000])
@pytest.mark.parametrize("factors", [(32, 64), (16, 8, 16), (20, 100)])
def test_work_is_what_the_matrix_products_do(factors, seqlen):
    """Multiply-accumulates as torch counts them; a dropped block that is computed after all would show.

    torch counts a product of complex numbers as one, so all stages but the real one count a quarter.
    """
    mask, rows = random_mask(factors, 0.4, block=(4, *[size // 2 for size in factors[1:]])), 6
    with FlopCounterMode(display=False) as forward:
        y_f = monarch_fft(randn(2, 3, seqlen), mask)
    with FlopCounterMode(display=False) as inverse:
        monarch_ifft(y_f, mask, seqlen)
    real, *others = work(mask, seqlen)
    expected = 2 * rows * (real + sum(others) // 4)
    assert forward.get_total_flops() == inverse.get_total_flops() == expected


def test_work_of_combs_and_bands():
    """A comb halves every stage; a band of the same size halves the last one alone."""
    dense = work(BlockMask.full(1 << 15))
    assert dense == (1 << 21, 1 << 22, 1 << 22)  # 2 M N1, 4 M N2, 4 M N3
    comb = BlockMask.from_bins(digits(torch.arange(1 << 15), (32,))[0] % 2 == 0, block=(1, 32, 32))
    assert work(comb) == work(BlockMask.comb(1 << 15, 0.5)) == (1 << 20, 1 << 21, 1 << 21)
    assert work(BlockMask.low_pass(1 << 15, 0.5)) == (1 << 21, 1 << 22, 1 << 21)
    assert work(BlockMask.full(1 << 15), 1 << 14) == (1 << 20, 1 << 22, 1 << 22)  # the padded half is skipped


@pytest.mark.parametrize("factors", [(32, 64), (16, 8, 16)])
def test_work_grows_with_the_mask(factors):
    whole = BlockMask.full(math.prod(factors), factors, block=tuple(size // 4 for size in factors))
    keep: list[int] = []
    before = (0,) * len(factors)
    for index in torch.randperm(len(whole.keep)).tolist():
        keep = sorted([*keep, index])
        now = work(BlockMask(whole.factors, whole.block, tuple(keep)))
        assert all(a <= b for a, b in zip(before, now, strict=True)) and before < now
        before = now
    assert before == work(whole) == (2 * whole.n * factors[0], *(4 * whole.n * size for size in factors[1:]))


@pytest.mark.parametrize(
    "mask", [BlockMask.full(2048), BlockMask.low_pass(2048, 0.1), random_mask((8, 6, 9), 0.5, (2, 3, 3))]
)
def test_json_round_trip(mask):
    back = BlockMask.from_dict(json.loads(json.dumps(mask.to_dict())))
    assert back == mask and hash(back) == hash(mask)
    assert len(BlockMask.full(1 << 20).to_dict()["keep"]) == 1  # ranges stay short


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: factor(1000), "power of two from 2 on, got 1000"),
        (lambda: BlockMask((32, 64), (16, 24), (0,)), "does not tile factors"),
        (lambda: BlockMask((32, 64), (16,), (0,)), "one divisor of each"),
        (lambda: BlockMask((32, 64), (16, 0), (0,)), "does not tile"),
        (lambda: BlockMask((32, 64), (16, 16), (1, 1)), "ascending and unique"),
        (lambda: BlockMask((32, 64), (16, 16), (0, 8)), r"leave the grid \(2, 4\)"),
        (lambda: BlockMask((32, 64), (16, 16), ()), "keep must be a non-empty tuple"),
        (lambda: BlockMask([32, 64], (16, 16), (0,)), "factors must be a non-empty tuple of integers"),
        (lambda: BlockMask.full(2048, (32, 32)), "make 1024 points, expected 2048"),
        (lambda: BlockMask.low_pass(2048, 0), r"share must lie in \(0, 1\]"),
        (lambda: BlockMask.comb(2048, 1.5), r"share must lie in \(0, 1\]"),
        (lambda: BlockMask.from_bins(torch.zeros(64, dtype=torch.bool)), "at least one true"),
        (lambda: BlockMask.from_dict({"factors": [8], "keep": [[0, 1]]}), "keys factors, block and keep"),
        (
            lambda: BlockMask.from_dict({"factors": [8], "block": [4], "keep": [0, 1]}),
            r"ranges of blocks \[start, stop\]",
        ),
        (lambda: monarch_fft(randn(300), BlockMask.full(256)), "300 samples does not fit 256 points"),
        (lambda: monarch_conv(randn(2, 16, 3), randn(3, 8)), r"expected u \(\.\.\., channels, seqlen\)"),
        (lambda: monarch_conv(randn(2, 3, 16).half(), randn(3, 8)), "expected float32 or float64"),
        (
            lambda: monarch_conv(randn(3, 300), randn(3, 100), BlockMask.full(256)),
            "300 samples does not fit 256 points",
        ),
    ],
)
def test_refusals(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_zeros_fail():
    u, k, mask = randn(2, 3, 1000), randn(3, 1000), BlockMask.low_pass(2048, 0.05)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros_like(u), direct(u, k, mask), RELATIVE_L2[torch.float32])
    with pytest.raises(AssertionError):  # nor does a mask pass for its neighbour
        assert_close(monarch_conv(u, k, BlockMask.low_pass(2048, 0.1)), direct(u, k, mask), RELATIVE_L2[torch.float32])
