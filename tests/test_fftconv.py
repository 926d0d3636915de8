"""The convolution against its float64 definition, and its laws."""

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import RELATIVE_L2, assert_close

from sparsify import LongConv, fftconv, fftconv_ref
from sparsify.converters.models import implicit_filter
from sparsify.cpu import backend as cpu
from sparsify.cpu import native
from sparsify.filters.filter import Filter
from sparsify.gpu import backend as gpu
from sparsify.gpu import jit

LENGTHS = (1, 7, 255, 256, 257, 1000, 4096, 10007)
VIEWS = {
    "contiguous": lambda b, h, n: torch.randn(b, h, n),
    "sliced": lambda b, h, n: torch.randn(b + 1, h + 2, n + 5)[1:, 1:-1, 3 : n + 3],
    "transposed": lambda b, h, n: torch.randn(b, n, h).transpose(1, 2),
}


def direct(u, k, lookahead=0):
    """The definition, term by term, in float64."""
    y = torch.zeros(u.shape, dtype=torch.float64)
    for t in range(u.shape[-1]):
        for j in range(k.shape[-1]):
            if 0 <= t - j + lookahead < u.shape[-1]:
                y[..., t] += k[:, j].double() * u[..., t - j + lookahead].double()
    return y


@pytest.mark.parametrize(("seqlen", "taps", "lookahead"), [(1, 1, 0), (9, 9, 0), (9, 4, 0), (9, 30, 11), (5, 9, 4)])
def test_reference_is_the_definition(seqlen, taps, lookahead):
    u, k = torch.randn(2, 3, seqlen), torch.randn(3, taps)
    assert_close(fftconv_ref(u, Filter(k, lookahead)), direct(u, k, lookahead), 1e-12)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("seqlen", LENGTHS)
def test_equals_reference(seqlen, view):
    u = VIEWS[view](2, 3, seqlen)
    k = torch.randn(3, seqlen)
    y_ref = fftconv_ref(u, k)
    assert_close(fftconv(u, k), y_ref, RELATIVE_L2[torch.float32])
    assert_close(LongConv(k)(u), y_ref, RELATIVE_L2[torch.float32])


@pytest.mark.parametrize("taps", [1, 3, 64, 300, 5000])
@pytest.mark.parametrize("seqlen", LENGTHS)
def test_any_number_of_taps(seqlen, taps):
    """Short filters run block by block, long ones are cropped to what the signal can feel."""
    u, k = torch.randn(1, 2, seqlen), torch.randn(2, taps)
    assert_close(LongConv(k)(u), fftconv_ref(u, k), RELATIVE_L2[torch.float32])


@pytest.mark.parametrize("lookahead", [1, 100, 1999])
@pytest.mark.parametrize("seqlen", (1, 257, 1000, 4096))
def test_filters_that_look_ahead(seqlen, lookahead):
    u, k = torch.randn(2, 3, seqlen), Filter(torch.randn(3, 2000), lookahead)
    for y in (LongConv(k)(u), fftconv(u, k)):
        assert_close(y, fftconv_ref(u, k), RELATIVE_L2[torch.float32])


@pytest.mark.parametrize("dtype", RELATIVE_L2)
def test_dtypes(dtype):
    """Half precision goes in and comes out; the filter and the transform stay in float32."""
    u, k = torch.randn(2, 3, 1000).to(dtype), torch.randn(3, 1000, dtype=torch.float32)
    y = LongConv(k.double() if dtype == torch.float64 else k)(u)
    assert y.dtype == dtype
    assert_close(y, fftconv_ref(u, k), RELATIVE_L2[dtype])


def test_many_rows_and_few():
    """Batches are worked through in row blocks; every split of the rows gives the same numbers."""
    for batch, channels, seqlen in ((1, 600, 3000), (40, 3, 20000), (3, 257, 2048)):
        u, k = torch.randn(batch, channels, seqlen), torch.randn(channels, seqlen)
        assert_close(LongConv(k)(u), fftconv_ref(u, k), RELATIVE_L2[torch.float32])


def test_overlap_save_is_chosen_and_exact():
    assert cpu.choose_size(100_000, 64)[1] < 100_000
    assert cpu.choose_size(1000, 1000)[1] == 1000


def test_zeros_fail():
    u, k = torch.randn(2, 3, 1000), torch.randn(3, 1000)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros(2, 3, 1000), fftconv_ref(u, k), RELATIVE_L2[torch.bfloat16])


def test_causal():
    """Changing the future leaves the past alone, to round-off."""
    u, conv = torch.randn(1, 2, 600), LongConv(torch.randn(2, 600))
    v = u.clone()
    v[..., 400:] += 1.0
    assert_close(conv(v)[..., :400], conv(u)[..., :400], RELATIVE_L2[torch.float32])


def test_one_spectrum_serves_lengths_in_any_order():
    conv = LongConv(torch.randn(2, 700))
    for seqlen in (700, 3, 650, 64, 699, 1, 128, 700):
        u = torch.randn(1, 2, seqlen)
        assert_close(conv(u), fftconv_ref(u, conv.filter.k), RELATIVE_L2[torch.float32])
    assert len(conv._prepared) <= LongConv.CACHED_LENGTHS


def test_prepared_filter_survives_a_cast_of_the_model():
    conv = torch.nn.Sequential(LongConv(torch.randn(2, 700))).half()[0]
    assert conv.filter.k.dtype == torch.float32


@pytest.mark.parametrize("conv", [fftconv, lambda u, k: LongConv(k)(u)], ids=["fftconv", "LongConv"])
def test_gradient(conv):
    u, k = torch.randn(1, 2, 50, requires_grad=True), torch.randn(2, 20)
    weight = torch.randn(1, 2, 50)
    (grad,) = torch.autograd.grad((conv(u, k) * weight).sum(), u)
    backwards = fftconv_ref(weight.flip(-1), k).flip(-1)
    assert_close(grad, backwards, RELATIVE_L2[torch.float32])


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 1025, 100_003, 320_003])
def test_good_size(n):
    """The smallest even 2-3-5-smooth size, against a search that tries them all."""

    def smooth(m):
        for p in (2, 3, 5):
            while m % p == 0:
                m //= p
        return m == 1

    assert cpu.good_size(n) == next(m for m in range(n, 4 * n + 4) if m % 2 == 0 and smooth(m))


@pytest.mark.parametrize(
    ("u", "k", "says"),
    [
        ((2, 16, 3), (3, 8), r"pass u.transpose\(1, 2\)"),
        ((2, 4, 16), (3, 8), r"expected \(batch, 3, seqlen\)"),
        ((2, 3, 16), (3, 8, 1), r"expected \(channels, taps\)"),
    ],
)
def test_refuses_shapes(u, k, says):
    with pytest.raises(ValueError, match=says):
        fftconv(torch.randn(u), torch.randn(k))


class TestTorch:
    """The op under torch's own tools."""

    @pytest.mark.parametrize(("seqlen", "taps"), [(300, 300), (30_000, 20)])
    def test_opcheck(self, seqlen, taps):
        prepared = LongConv(torch.randn(3, taps)).prepare(torch.empty(1, 3, seqlen))
        u, gate, skip = torch.randn(2, 3, seqlen), torch.randn(2, 3, seqlen), torch.randn(3)
        for more in ((), (gate,), (gate, skip), (None, skip)):
            torch.library.opcheck(torch.ops.sparsify.fftconv, (u, [*prepared.tables], [*prepared.layout], *more))

    def test_compile(self):
        conv, u = LongConv(torch.randn(3, 300)), torch.randn(2, 3, 300)
        conv(u)  # prepared once, as in a model; the graph then holds the op and nothing complex
        compiled = torch.compile(conv, fullgraph=True)
        with torch.no_grad():
            assert torch.equal(compiled(u), conv(u))

    def test_export(self, tmp_path):
        conv, u = LongConv(torch.randn(3, 300)), torch.randn(2, 3, 300)
        conv(u)
        with torch.no_grad():
            program = torch.export.export(conv, (u,))
            torch.export.save(program, tmp_path / "conv.pt2")
            assert torch.equal(torch.export.load(tmp_path / "conv.pt2").module()(u), conv(u))

    def test_autocast(self):
        """The signal's type decides, in and out: a linear layer before it may have cast it, a gate may be float32."""
        conv, u, gate = LongConv(torch.randn(3, 300)), torch.randn(2, 3, 300), torch.randn(2, 3, 300)
        mix = torch.nn.Linear(3, 3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            plain = conv(u)
            cast = mix(u.transpose(1, 2)).transpose(1, 2)
            y = conv(cast, gate)
        assert cast.dtype == y.dtype == torch.bfloat16
        assert plain.dtype == u.dtype and torch.equal(plain, conv(u))
        assert_close(y, gate.double() * fftconv_ref(cast, conv.filter.k), 6e-3)


@pytest.mark.parametrize(
    ("u", "gate", "skip", "says"),
    [
        ((2, 3, 50), (2, 3, 25), None, "gate has shape"),
        ((2, 3, 50), (1, 3, 50), None, "gate has shape"),
        ((2, 3, 50), None, (2,), "one number a channel"),
        ((2, 4, 50), None, None, r"expected \(batch, 3, seqlen\)"),
        ((3, 50), None, None, r"floats of \(batch, channels, seqlen\)"),
    ],
)
def test_refuses_what_would_be_read_beyond(u, gate, skip, says):
    conv = LongConv(torch.randn(3, 50))
    with pytest.raises(ValueError, match=says):
        conv(torch.randn(u), *(None if shape is None else torch.randn(shape) for shape in (gate, skip)))


def test_refuses_what_lies_on_another_device():
    conv, u = LongConv(torch.randn(3, 50)), torch.randn(2, 3, 50)
    for others in ({"gate": u.to("meta")}, {"pregate": u.to("meta")}, {"skip": torch.empty(3, device="meta")}):
        with pytest.raises(ValueError, match="must lie on the signal's device, cpu; one lies on meta"):
            conv(u, **others)


def test_any_layout_of_the_filter():
    u = torch.randn(2, 8, 300)
    for k in (torch.randn(300, 8).t(), torch.randn(8, 600)[:, ::2], torch.randn(8, 1).expand(8, 300)):
        assert_close(fftconv(u, k), fftconv_ref(u, k), RELATIVE_L2[torch.float32])
    for lookahead in (-1, 300):
        with pytest.raises(ValueError, match=rf"lookahead must lie in \[0, 300\), got {lookahead}"):
            Filter(torch.randn(8, 300), lookahead)


def test_kernels_may_be_switched_off_at_any_time(monkeypatch):
    conv, u = LongConv(torch.randn(3, 300)), torch.randn(1, 3, 300)
    conv(u)
    monkeypatch.setenv("SPARSIFY_NATIVE", "0")
    assert_close(conv(u), fftconv_ref(u, conv.filter.k), RELATIVE_L2[torch.float32])


class TestOtherDevices:
    """Apple's, Intel's, AMD's: nothing of theirs is here, but what happens on them is plain torch."""

    @pytest.mark.parametrize("key", ["CPU", "CUDA", "MPS", "XPU", "HPU", "PrivateUse1"])
    def test_the_operator_runs_there(self, key):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key("sparsify::fftconv", key)

    def test_the_way_there_gives_the_same_numbers(self, monkeypatch):
        """Through the function that other devices call, on tensors of this one."""
        monkeypatch.setattr(native, "available", lambda: False)
        u, gate, k = torch.randn(2, 3, 50), torch.randn(2, 3, 50), torch.randn(3, 9)
        prepared = cpu.prepare(Filter(k), 50)
        y = sys.modules["sparsify.fftconv"].on_other_devices(u, list(prepared.tables), list(prepared.layout), gate)
        assert_close(y, gate.double() * fftconv_ref(u, k), RELATIVE_L2[torch.float32])

    @pytest.mark.parametrize("device", ["mps", "xpu"])
    def test_a_warning_that_fits(self, device, monkeypatch):
        gpu.warn.cache_clear()
        signal = SimpleNamespace(is_cuda=False, is_cpu=False, is_meta=False, device=torch.device(device))
        with pytest.warns(RuntimeWarning, match=f"torch.fft: .*, and this device is {device}"):
            assert not gpu.takes(signal)
        gpu.takes(signal)  # once

    def test_rocm_is_told_apart_from_a_torch_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.version, "hip", "6.4")
        jit.no_device.cache_clear()
        assert "built for AMD's (ROCm)" in jit.no_device()
        jit.no_device.cache_clear()

    def test_filters_are_made_on_the_cpu_for_a_device_without_float64(self, monkeypatch):
        made = implicit_filter.ImplicitFilter(4, 20)
        made.reset_parameters()
        expected = made.materialize().k
        monkeypatch.setattr(implicit_filter, "has_float64", lambda device: False)
        assert torch.equal(made.materialize().k, expected)
