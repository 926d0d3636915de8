"""How the tests compare: relative to the signal, one bar a dtype."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparsify import fftconv_ref
from sparsify.filters.filter import Taps, as_filter

ROOT = Path(__file__).resolve().parents[2]  # of the repository

# Relative L2 error against float64.  Each bar lies a few times above the rounding of its dtype, far below any signal.
RELATIVE_L2 = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_l2(y: Tensor, y_ref: Tensor) -> float:
    """|y - y_ref| / |y_ref| in float64; NaN where y holds one.  Same shape, any dtype, device and layout."""
    if y.shape != y_ref.shape:
        raise AssertionError(f"shape {tuple(y.shape)}, expected {tuple(y_ref.shape)}")
    y_ref = wide(y_ref)
    if not y_ref.norm() > 0:
        raise AssertionError("the reference is zero or NaN, so no error is relative to it; compare with torch.equal")
    return ((wide(y) - y_ref).norm() / y_ref.norm()).item()


def assert_close(y: Tensor, y_ref: Tensor, bar: float) -> None:
    """Relative L2 error under `bar`; a failure names the worst element."""
    error = relative_l2(y, y_ref)
    if not error < bar:  # also catches NaN
        diff = (wide(y) - wide(y_ref)).abs()
        worst = torch.unravel_index(diff.nan_to_num(torch.inf).argmax(), diff.shape)
        place = tuple(int(i) for i in worst)
        values = f"got {y[place].item()}, expected {y_ref[place].item()}"
        raise AssertionError(f"relative L2 error {error:.1e} >= {bar:.0e}, worst at {place}: {values}")


def wide(y: Tensor) -> Tensor:
    """y on the CPU in float64 or complex128."""
    return y.detach().cpu().to(torch.complex128 if y.is_complex() else torch.float64)


def reference_conv(k: Taps) -> Callable[..., Tensor]:
    """`fftconv_ref` as models call a convolution: conv(u, gate=None, skip=None), dtype of u."""

    def conv(u: Tensor, gate: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        y = fftconv_ref(u, as_filter(k).felt(u.shape[-1]))
        y = y if skip is None else y + skip[:, None] * u
        return (y if gate is None else gate * y).to(u.dtype)

    return conv
