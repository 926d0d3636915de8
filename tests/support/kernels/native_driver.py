"""Every kernel at many sizes, on a library given by its path: what the address sanitizer watches.

python native_driver.py LIBRARY.  Tensors end where their memory ends, so a step too far is seen.
"""

import ctypes
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from sparsify.cpu import backend as cpu
from sparsify.cpu import native
from sparsify.cpu.native import library
from sparsify.fftconv import fftconv_ref
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan

AWKWARD = (1021, 4099, 10_007, 100_003)
TOLERANCE = 1e-6


def check(y: torch.Tensor, y_ref: torch.Tensor, what: object, scale: torch.Tensor | None = None) -> None:
    """scale: what errors are measured by, the norm of y_ref unless given."""
    error = ((y.double() - y_ref).norm() / (y_ref.norm() if scale is None else scale)).item()
    assert error < TOLERANCE, (what, error)


def convolutions(seqlen: int) -> None:
    """Every way to convolve, against float64."""
    u = torch.randn(2, 2, seqlen)
    gate, skip = torch.randn(2, 2, seqlen), torch.randn(2)
    for taps, lookahead in ((seqlen, 0), (2 * seqlen - 1, seqlen - 1), (min(seqlen, 40), min(seqlen, 40) // 2)):
        k = torch.randn(2, taps)
        y_ref, n = fftconv_ref(u, Filter(k, lookahead)), native.good_size(seqlen)
        ways = [native.Whole(n, native.spectra(k, n, lookahead)), native.Whole(n, None, k, lookahead)]
        if taps <= 40:
            block = native.good_size(256)
            ways += [
                native.Direct(k, lookahead),
                native.Blocks(block, native.spectra(k, block, 0, 0.0), taps, lookahead),
            ]
        for way in ways:
            check(native.convolve(u, [way]), y_ref, (seqlen, taps, lookahead, way))
            y = native.convolve(u, [way], gate, skip)
            check(y, gate.double() * (y_ref + skip[:, None].double() * u), (seqlen, taps, lookahead, way))


def plans(seqlen: int, n: int) -> None:
    """What masks leave, at a lower rate and folded."""
    u, k = torch.randn(1, 2, seqlen), torch.randn(2, n) * torch.exp(-torch.arange(n) / n * 10)
    for mask in (BlockMask.low_pass(n, 1 / 16), BlockMask.low_pass(n, 1 / 4), BlockMask.comb(n, 1 / 16)):
        for plan in (FilterPlan("frequency-sparse", mask=mask), FilterPlan("split", 32, mask)):
            kept = plan.apply(k)
            ways = []
            if cpu.decimation.rate(mask) > 1:
                ways.append(cpu.prepare_decimated(kept, seqlen))
            if kept.head is None and native.good_size(n // mask.factors[0]) == n // mask.factors[0]:
                ways.append(cpu.prepare_comb(kept))
            # a lone sample feels one tap, in which the error of all may meet
            scale = kept.k.norm(dim=-1).mean() * u.norm() if seqlen == 1 else None
            for way in ways:
                check(cpu.fftconv(u, way.tables, way.layout), fftconv_ref(u, kept), (seqlen, plan), scale)


def hyena(seqlen: int, width: int) -> None:
    z, weight, bias = torch.randn(2, seqlen, 3 * width), torch.randn(3 * width, 3), torch.randn(3 * width)
    history = torch.randn(2, 2, 3 * width)
    x0, g = native.short_gate(z, weight, bias, history)
    y = torch.nn.functional.conv1d(
        torch.cat([history, z], 1).transpose(1, 2).double(), weight[:, None].double(), bias.double(), groups=3 * width
    )
    check(x0, y[:, :width], (seqlen, width))
    check(g, y[:, width : 2 * width] * y[:, 2 * width :], (seqlen, width))
    assert torch.equal(native.to_rows(g, seqlen // 3, seqlen), g[:, :, seqlen // 3 :].transpose(1, 2))
    assert torch.equal(native.to_columns(z), z.transpose(1, 2))


def dense(rows: int, width: int) -> None:
    x, weight, bias = torch.randn(rows, width), torch.randn(width), torch.randn(width)
    for dtype in native.TYPES:
        plus, total = torch.ones(rows, width, dtype=dtype), x.clone()
        y_ref = torch.nn.functional.layer_norm(x.double() + 1, (width,), weight.double(), bias.double(), 1e-2)
        y = native.norm(total, weight, bias, 1e-2, plus, dtype)
        assert torch.equal(total, x + 1) and (y.double() - y_ref).norm() < 4e-3 * y_ref.norm(), (rows, width, dtype)
        short = native.short_gate(torch.ones(1, rows, 3 * width, dtype=dtype), torch.ones(3 * width, 3), None)
        assert native.to_rows(short[1], 0, rows, dtype).dtype == dtype
    gate, h = torch.cat([x, x], dim=-1).double().chunk(2, dim=-1)
    check(native.gelu_gate(torch.cat([x, x], dim=-1)), torch.nn.functional.gelu(gate) * h, (rows, width))


def main(path: str) -> None:
    library._found = ctypes.CDLL(path), ""
    torch.manual_seed(0)
    for i, isa in enumerate(isa for isa in native.LANES if native.use(isa)):
        native.use(isa)
        for seqlen in (*range(1, 301), *AWKWARD) if i == 0 else (*range(1, 301, 7), *AWKWARD[:2]):
            convolutions(seqlen)
        for seqlen, n in ((1, 2048), (700, 2048), (2048, 2048), (9001, 1 << 14), (1 << 14, 1 << 14)):
            plans(seqlen, n)
        for seqlen in (1, 2, 3, 15, 16, 17, 64, 131):
            for width in (1, 3, 16, 21):
                hyena(seqlen, width)
                dense(seqlen, width)
        print(f"{isa} holds")


if __name__ == "__main__":
    main(sys.argv[1])
