"""The compiled kernels: every part against float64, every instruction set, every layout a caller may bring."""

import subprocess
import sys

import pytest
import torch
from helpers import RELATIVE_L2, ROOT, assert_close, relative_l2

from sparsify import LongConv, fftconv_ref
from sparsify.cpu import backend as cpu
from sparsify.cpu import native
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not compiled, or switched off")


@pytest.fixture(params=native.LANES)
def isa(request):
    """The kernels under one instruction set, and back to the best afterwards."""
    best = native.kernels().sparsify_isa().decode()
    if not native.use(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    native.use(best)


def whole(k, seqlen, lookahead=0):
    n = native.good_size(seqlen)
    return native.Whole(n, native.spectra(k, n, lookahead))


@pytest.mark.parametrize("seqlen", [1, 2, 15, 16, 17, 255, 256, 257, 1000, 4099, 100_003])
def test_exact_to_the_promised_error(isa, seqlen):
    """Relative L2 of at most 5e-7 for causal filters, those that look ahead, prepared and made on the way."""
    u = torch.randn(2, 2, seqlen)
    for taps, lookahead in ((seqlen, 0), (2 * seqlen - 1, seqlen - 1), (max(1, seqlen // 3), 0)):
        k = torch.randn(2, taps)
        y_ref, n = fftconv_ref(u, Filter(k, lookahead)), native.good_size(seqlen)
        assert relative_l2(native.convolve(u, [whole(k, seqlen, lookahead)]), y_ref) <= 5e-7
        assert relative_l2(native.convolve(u, [native.Whole(n, None, k, lookahead)]), y_ref) <= 5e-7


def test_every_radix(isa):
    for q in (1, 2, 3, 4, 5, 6, 8, 9, 10, 16, 18, 27, 32, 45, 64, 81, 125):
        seqlen = q * native.lanes() ** 2
        u, k = torch.randn(1, 2, seqlen), torch.randn(2, seqlen)
        assert native.good_size(seqlen) == seqlen
        assert relative_l2(native.convolve(u, [whole(k, seqlen)]), fftconv_ref(u, k)) <= 5e-7


@pytest.mark.parametrize("taps", [1, 2, 31, 64, 300])
@pytest.mark.parametrize("seqlen", [1, 63, 1000, 5001])
def test_few_taps(isa, seqlen, taps):
    u, k = torch.randn(2, 3, seqlen), torch.randn(3, taps)
    for lookahead in {0, taps // 2, taps - 1}:
        y_ref = fftconv_ref(u, Filter(k, lookahead))
        assert_close(native.convolve(u, [native.Direct(k, lookahead)]), y_ref, 1e-6)
        for n in map(native.good_size, (taps, 2 * taps, 1000)):
            blocks = native.Blocks(n, native.spectra(k, n, 0, 0.0), taps, lookahead)
            assert_close(native.convolve(u, [blocks]), y_ref, 1e-6)


@pytest.mark.parametrize("seqlen", [1, 500, 1024, 2047, 2048])
@pytest.mark.parametrize("share", [1 / 4, 1 / 8, 1 / 16, 1 / 64])
def test_what_a_mask_leaves(isa, share, seqlen):
    """Band-limited filters at a lower rate, with and without a head, and folded combs: the planned filter exactly."""
    n, u = 2048, torch.randn(2, 3, seqlen)
    k = torch.randn(3, n) * torch.exp(-torch.arange(n) / 200)
    for mask in (BlockMask.low_pass(n, share), BlockMask.comb(n, share, (8, n // 8))):  # all vectors fit 256 points
        for plan in (FilterPlan("frequency-sparse", mask=mask), FilterPlan("split", 32, mask)):
            kept = plan.apply(k)
            y_ref = fftconv_ref(u, kept)
            # a lone sample feels one tap, in which the error of all may meet
            scale = y_ref.norm() if seqlen > 1 else kept.k.norm(dim=-1).mean() * u.norm()
            for _, way in cpu.structured(seqlen, kept.structure):
                prepared = cpu.prepare_comb(kept) if way == "comb" else cpu.prepare_decimated(kept, seqlen)
                assert (cpu.fftconv(u, prepared.tables, prepared.layout) - y_ref).norm() < 1e-6 * scale


def test_the_quicker_ways_are_taken_and_hold():
    """A long filter of every kind, as a model would run it."""
    n = 1 << 16
    taps = n + 2  # two more than the context, as HyenaDNA has them
    k, u = torch.randn(2, taps) * torch.exp(-torch.arange(taps) / 9000), torch.randn(1, 2, n)
    low, comb = BlockMask.low_pass(n, 1 / 16), BlockMask.comb(n, 1 / 16)
    for plan, kind in (
        (FilterPlan("dense"), cpu.WHOLE),
        (FilterPlan("partial", 4), cpu.DIRECT),
        (FilterPlan("partial", 256), cpu.HEAD),
        (FilterPlan("frequency-sparse", mask=low), cpu.DECIMATED),
        (FilterPlan("frequency-sparse", mask=comb), cpu.COMB),
        (FilterPlan("split", 64, low), cpu.HEAD),
    ):
        kept = plan.apply(k)
        conv = LongConv(kept)
        assert conv.prepare(u).layout[0] == kind, plan
        assert_close(conv(u), fftconv_ref(u, kept), 1e-6)


def test_filters_that_look_both_ways_take_the_quicker_ways_too():
    n = 1 << 16
    decay = torch.exp(-torch.arange(n) / 9000)
    k, u = torch.randn(2, 2 * n) * torch.cat([decay.flip(0), decay]), torch.randn(1, 2, n)
    low, comb = BlockMask.low_pass(n, 1 / 16), BlockMask.comb(n, 1 / 16)
    for plan, kind in (
        (FilterPlan("dense"), cpu.WHOLE),
        (FilterPlan("partial", 128), cpu.HEAD),
        (FilterPlan("frequency-sparse", mask=low), cpu.DECIMATED),
        (FilterPlan("frequency-sparse", mask=comb), cpu.COMB),
        (FilterPlan("split", 32, low), cpu.HEAD),
    ):
        kept = plan.apply(Filter(k, n))
        conv = LongConv(kept)
        assert conv.prepare(u).layout[0] == kind, plan
        assert_close(conv(u), fftconv_ref(u, kept), 1e-6)


def test_a_sequence_longer_than_the_mask_takes_the_whole_filter():
    """It feels taps that the mask did not touch."""
    kept = FilterPlan("frequency-sparse", mask=BlockMask.low_pass(1 << 12, 1 / 16)).apply(torch.randn(2, 5000))
    u = torch.randn(1, 2, 4500)
    conv = LongConv(kept)
    assert_close(conv(u), fftconv_ref(u, kept), 1e-6)


class TestAroundTheConvolution:
    """Gates, skip, dtypes, strides, threads."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("taps", [5, 70, 900])
    def test_gates_and_skip(self, isa, dtype, taps):
        u, gate, before = (torch.randn(2, 3, 900).to(dtype) for _ in range(3))
        k, skip = torch.randn(3, taps), torch.randn(3)
        g = before.double() * u.double()
        y_ref = gate.double() * (fftconv_ref(g, k) + skip[:, None].double() * g)
        block = native.good_size(256)
        blocks = native.Blocks(block, native.spectra(k[:, :70], block, 0, 0.0), min(taps, 70))
        for part in {5: [native.Direct(k), blocks], 70: [blocks, whole(k, 900)], 900: [whole(k, 900)]}[taps]:
            y = native.convolve(u, [part], gate, skip, before)
            assert y.dtype == dtype
            assert_close(y, y_ref, RELATIVE_L2[dtype])

    def test_every_half_precision_number_survives(self, isa):
        """All 65,536 patterns in, and back out."""
        one = [native.Direct(torch.ones(1, 1))]
        for dtype in (torch.float16, torch.bfloat16):
            every = torch.arange(1 << 16).to(torch.int16).view(dtype)[None, None]
            wide = native.convolve(every, one, out=torch.empty(every.shape))
            assert torch.equal(wide.nan_to_num(7.0, 8.0, 9.0), every.float().nan_to_num(7.0, 8.0, 9.0))
            # between two of them, ties and all, as torch rounds
            between = torch.cat([wide, wide * (1 + 2**-11), wide * (1 + 2**-8), wide * (1 + 2**-9)], -1).nan_to_num(0.0)
            rounded = native.convolve(between, one, out=torch.empty(between.shape, dtype=dtype))
            assert torch.equal(rounded, between.to(dtype))

    def test_strides(self, isa):
        k = torch.randn(3, 700)
        for u in (
            torch.randn(2, 700, 3).transpose(1, 2),
            torch.randn(3, 2, 700).transpose(0, 1),
            torch.randn(2, 3, 1400)[..., ::2],
            torch.randn(2, 3, 1).expand(2, 3, 700),
            torch.randn(1, 3, 700).expand(2, 3, 700),
        ):
            assert_close(native.convolve(u, [whole(k, 700)]), fftconv_ref(u, k), 1e-6)
        out = torch.full((2, 3, 1400), 7.0)
        native.convolve(u, [whole(k, 700)], out=out[..., 1::2])
        assert_close(out[..., 1::2], fftconv_ref(u, k), 1e-6)
        assert (out[..., ::2] == 7).all()

    def test_threads_agree_bit_for_bit(self):
        u, k = torch.randn(3, 5, 3000), Filter(torch.randn(5, 3000))
        ways = [cpu.prepare(*some) for some in ((k, 3000), (k, 3000, 0), (Filter(k.k[:, :100]), 3000))]
        results = []
        threads = torch.get_num_threads()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([cpu.fftconv(u, way.tables, way.layout) for way in ways])
        torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_empty(self):
        for shape in ((0, 3, 10), (2, 0, 10)):
            assert native.convolve(torch.empty(shape), [whole(torch.randn(shape[1], 10), 10)]).shape == shape

    def test_zeros_fail(self):
        u, k = torch.randn(1, 2, 300), torch.randn(2, 300)
        assert relative_l2(torch.zeros_like(u), fftconv_ref(u, k)) > 0.99


@pytest.mark.parametrize("seqlen", [1, 2, 3, 16, 77])
@pytest.mark.parametrize("width", [1, 16, 24])
@pytest.mark.parametrize("taps", [1, 3, 4])
def test_short_gate(isa, seqlen, width, taps):
    z, weight, bias = torch.randn(2, seqlen, 3 * width), torch.randn(3 * width, taps), torch.randn(3 * width)
    for history in (None, torch.randn(2, taps - 1, 3 * width)):
        before = torch.zeros(2, taps - 1, 3 * width) if history is None else history
        padded = torch.cat([before, z], 1).transpose(1, 2).double()
        y = torch.nn.functional.conv1d(padded, weight[:, None].double(), bias.double(), groups=3 * width)
        x0, x1, v = y.chunk(3, dim=1)
        into = torch.full((2, width, seqlen + 9), 7.0), torch.full((2, width, seqlen + 9), 7.0)
        native.short_gate(z, weight, bias, history, tuple(t[..., 4 : 4 + seqlen] for t in into))
        assert_close(into[0][..., 4 : 4 + seqlen], x0, 1e-6)
        assert_close(into[1][..., 4 : 4 + seqlen], x1 * v, 1e-6)
        assert all((t[..., :4] == 7).all() and (t[..., 4 + seqlen :] == 7).all() for t in into)


@pytest.mark.parametrize("width", [16, 20])
def test_short_gate_takes_any_third_alone(isa, width):
    z, weight, bias = torch.randn(2, 50, 3 * width), torch.randn(3 * width, 3), torch.randn(3 * width)
    for alone in range(3):
        x0, g = native.short_gate(z, weight, bias, alone=alone)
        turned = [t.roll(-alone * width, dims=axis) for t, axis in ((z, -1), (weight, 0), (bias, 0))]
        assert_close(x0, native.short_gate(*turned)[0].double(), 1e-6)
        assert_close(g, native.short_gate(*turned)[1].double(), 1e-6)


@pytest.mark.parametrize("dtype", native.TYPES)
def test_short_gate_reads_other_types(isa, dtype):
    z, history = torch.randn(2, 50, 3 * 20).to(dtype), torch.randn(2, 2, 3 * 20).to(dtype)
    weight, bias = torch.randn(3 * 20, 3), torch.randn(3 * 20)
    y, y_ref = native.short_gate(z, weight, bias, history), native.short_gate(z.float(), weight, bias, history.float())
    assert all(torch.equal(*pair) for pair in zip(y, y_ref, strict=True))


def test_large_signals_are_gated_in_pieces(isa):
    """They go past the caches, where a piece ends on a whole vector and where it does not."""
    width, seqlen, piece = 48, 90_000, 997
    z, weight, bias = torch.randn(1, piece, 3 * width), torch.randn(3 * width, 3), torch.randn(3 * width)
    x0, g = (torch.full((1, width, seqlen), 7.0) for _ in range(2))
    x0_ref, g_ref = native.short_gate(z, weight, bias)
    for start in (0, 1024, seqlen - piece):
        native.short_gate(z, weight, bias, out=(x0[..., start : start + piece], g[..., start : start + piece]))
        assert torch.equal(x0[..., start : start + piece], x0_ref) and torch.equal(g[..., start : start + piece], g_ref)
    assert (x0[..., piece:1024] == 7).all() and (g[..., 1024 + piece : seqlen - piece] == 7).all()


@pytest.mark.parametrize("dtype", native.TYPES)
def test_to_rows(isa, dtype):
    y = torch.randn(2, 21, 100)
    assert torch.equal(native.to_rows(y, 3, 80, dtype), y[:, :, 3:80].transpose(1, 2).to(dtype))


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("shape", [(2, 100, 21), (1, 1, 5), (3, 33, 1), (1, 90_001, 48)])
def test_to_columns(isa, shape, dtype):
    rows = torch.randn(shape).to(dtype)
    assert torch.equal(native.to_columns(rows), rows.float().transpose(1, 2))


BARS = {torch.float32: 2e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}  # rounding of what is stored


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 2 * 21), (2, 40, 2 * 96)])
def test_gelu_gate(isa, shape, dtype):
    x = (4 * torch.randn(shape)).to(dtype)
    gate, h = x.double().chunk(2, dim=-1)
    y_ref = torch.nn.functional.gelu(gate) * h
    assert_close(native.gelu_gate(x), y_ref, BARS[dtype])
    if gate.numel() >= 50 and dtype == torch.float32:  # the other form and swapped halves are told apart
        other, swapped = torch.nn.functional.gelu(gate, approximate="tanh") * h, torch.nn.functional.gelu(h) * gate
        assert min(relative_l2(other, y_ref), relative_l2(swapped, y_ref)) > 100 * BARS[dtype]


def test_gelu_gate_at_the_ends(isa):
    gate = torch.tensor([0.0, 1e-30, 1e30, -1e30, -20.0, torch.inf, torch.nan])
    y = native.gelu_gate(torch.cat([gate, torch.ones(7)])[None])[0]
    assert y[-1].isnan() and y[-2] == torch.inf
    torch.testing.assert_close(y[:-2], torch.tensor([0.0, 5e-31, 1e30, 0.0, 0.0]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 16), (70, 256), (301, 100)])
def test_norm(isa, shape, dtype):
    x, plus = 3 + torch.randn(shape), torch.randn(shape).to(dtype)
    weight, bias = torch.randn(shape[-1]), torch.randn(shape[-1])
    for own in (None, plus):
        into = x.clone()
        y = native.norm(into, weight, bias, 1e-5, own, dtype)
        total = x if own is None else x + own.float()
        y_ref = torch.nn.functional.layer_norm(total.double(), shape[-1:], weight.double(), bias.double(), 1e-5)
        assert torch.equal(into, total) and y.dtype == dtype
        assert_close(y, y_ref, max(BARS[dtype], 2e-6))  # a row of few is divided by what its rounding leaves
        with pytest.raises(AssertionError):
            assert_close(torch.zeros_like(y), y_ref, max(BARS[dtype], 2e-6))


def test_without_kernels_the_numbers_are_the_same():
    """torch.fft stands in, silently where it was asked to."""
    code = (
        "import torch; from sparsify import LongConv, fftconv_ref\nfrom sparsify.cpu import native\n"
        "assert not native.available()\n"
        "u, k, g, s = torch.randn(2, 3, 999), torch.randn(3, 999), torch.randn(2, 3, 999), torch.randn(3)\n"
        "y = g * (fftconv_ref(u, k) + s[:, None] * u)\n"
        "assert (LongConv(k)(u, gate=g, skip=s) - y).norm() < 1e-6 * y.norm()\n"
    )
    env = {"SPARSIFY_NATIVE": "0", "PYTHONWARNINGS": "error", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)


def test_refusals():
    with pytest.raises(ValueError, match="contiguous float32"):
        native.convolve(torch.randn(1, 1, 8), [native.Direct(torch.randn(2, 1, dtype=torch.float64))])
    with pytest.raises(ValueError, match="there is no transform of 7 points; take good_size"):
        native.transform(7, 0.25)
    with pytest.raises(ValueError, match="contiguous floats on the CPU, got torch"):
        native.gelu_gate(torch.arange(4))
    with pytest.raises(ValueError, match="rows of 8 take as many weights"):
        native.norm(torch.randn(2, 8), torch.ones(7), torch.ones(8), 1e-5)
    with pytest.raises(ValueError, match=r"cannot add \(2, 7\) to \(2, 8\)"):
        native.norm(torch.randn(2, 8), torch.ones(8), torch.ones(8), 1e-5, torch.randn(2, 7))
