"""The convolution: `fftconv_ref` is the truth, `fftconv` and `LongConv` are the fast ways to the same numbers.

    y[b, h, t] = sum over lags d of k[h, d + ahead] * u[b, h, t - d],    d = -ahead .. K - 1 - ahead

A causal filter has `ahead = 0`. Samples outside 0 .. L-1 count as zero. Nothing else happens here: no skip, no gate,
no activation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import cpu


def fftconv_ref(u: Tensor, k: Tensor, ahead: int = 0) -> Tensor:
    """Convolution of `u` with `k` in float64; every backend is measured against this.

    u: (..., H, L) signal.  k: (H, K) filter, tap j at lag j - ahead.  Returns y: (..., H, L) float64.
    """
    check(u, k, ahead)
    n = u.shape[-1] + k.shape[-1] - 1  # room for every product, so nothing wraps around
    y = torch.fft.irfft(torch.fft.rfft(u.double(), n) * torch.fft.rfft(k.double(), n), n)
    return y[..., ahead : ahead + u.shape[-1]]


def fftconv(u: Tensor, k: Tensor, ahead: int = 0) -> Tensor:
    """Convolution of `u` with `k` on the fastest backend; for a fixed filter `LongConv` prepares it once.

    u: (B, H, L), any strides, float16, bfloat16, float32 or float64.  k: (H, K), float32 or float64, tap j at lag
    j - ahead.  Returns y: (B, H, L), dtype of u.  Differentiable in u and k.
    """
    check(u, k, ahead)
    k, ahead = crop(k, ahead, u.shape[-1])
    if torch.is_grad_enabled() and (u.requires_grad or k.requires_grad):
        whole = cpu.one_block(u.shape[-1], k.shape[-1], ahead)
        return cpu.whole(u, spectrum(k, whole, ahead), whole).to(u.dtype)
    n, hop = cpu.choose_size(u.shape[-1], k.shape[-1], ahead)
    return torch.ops.sparsify.fftconv(u, spectrum(k, n, ahead), n, hop)


def spectrum(k: Tensor, n: int, ahead: int = 0) -> Tensor:
    """n-point spectrum of a filter, lag 0 at sample 0 and negative lags wrapped to the end.

    k: (H, K), K <= n.  Returns k_f: (H, n // 2 + 1, 2), real and imaginary part, dtype of k.
    """
    if ahead:
        gap = k.new_zeros(k.shape[0], n - k.shape[-1])
        k = torch.cat([k[:, ahead:], gap, k[:, :ahead]], dim=-1)
    return torch.view_as_real(torch.fft.rfft(k, n))


def crop(k: Tensor, ahead: int, seqlen: int) -> tuple[Tensor, int]:
    """The part of a filter that a signal of `seqlen` samples can feel: lags -(seqlen-1) .. seqlen-1."""
    first = max(0, ahead - (seqlen - 1))
    return k[:, first : ahead + seqlen], ahead - first


def check(u: Tensor, k: Tensor, ahead: int = 0) -> None:
    """Refuse shapes that do not convolve, in one sentence."""
    if k.dim() != 2:
        raise ValueError(f"filter k has shape {tuple(k.shape)}, expected (channels, taps)")
    if u.dim() < 2 or u.shape[-2] != k.shape[0]:
        hint = "; pass u.transpose(1, 2)" if u.dim() == 3 and u.shape[-1] == k.shape[0] else ""
        raise ValueError(f"signal u has shape {tuple(u.shape)}, expected (batch, {k.shape[0]}, seqlen){hint}")
    if not 0 <= ahead < k.shape[-1]:
        raise ValueError(f"ahead must lie in [0, {k.shape[-1]}), got {ahead}")


class LongConv(nn.Module):
    """Convolution with one fixed filter, prepared once per sequence length and device and kept.

    k: (H, K) float32 or float64, tap j at lag j - ahead.  forward: u (B, H, L) -> y (B, H, L), dtype of u.
    The filter is no buffer on purpose: casting a model to half precision must not cast its filters.
    """

    CACHED_LENGTHS = 4  # lengths kept at a time; an evaluation uses one or two

    def __init__(self, k: Tensor, ahead: int = 0) -> None:
        super().__init__()
        self.k = k.detach().contiguous()
        self.ahead = ahead
        self._prepared: dict[tuple[int, torch.device], tuple[Tensor, int, int]] = {}

    def extra_repr(self) -> str:
        channels, taps = self.k.shape
        return f"channels={channels}, taps={taps}" + (f", ahead={self.ahead}" if self.ahead else "")

    def prepare(self, seqlen: int, device: torch.device) -> tuple[Tensor, int, int]:
        """Spectrum, FFT size and hop for signals of up to `seqlen` samples on `device`, from the cache if there."""
        step = 1 << max(0, seqlen.bit_length() - 5)  # lengths within a sixteenth of each other share a spectrum
        room = -(-seqlen // step) * step
        if (room, device) not in self._prepared:
            if len(self._prepared) == self.CACHED_LENGTHS:
                self._prepared.pop(next(iter(self._prepared)))  # the oldest
            k, ahead = crop(self.k, self.ahead, room)
            n, hop = cpu.choose_size(room, k.shape[-1], ahead)
            self._prepared[room, device] = spectrum(k, n, ahead).to(device), n, hop
        return self._prepared[room, device]

    def forward(self, u: Tensor) -> Tensor:
        if torch.is_grad_enabled() and u.requires_grad:
            return fftconv(u, self.k.to(u.device), self.ahead)
        return torch.ops.sparsify.fftconv(u, *self.prepare(u.shape[-1], u.device))


_library = torch.library.Library("sparsify", "DEF")  # the form with the least overhead a call
_library.define("fftconv(Tensor u, Tensor k_f, SymInt n, SymInt hop) -> Tensor")
_library.impl("fftconv", cpu.fftconv, "CPU")
_library.impl("fftconv", cpu.convolve, "CUDA")  # cuFFT, all rows at once


@torch.library.register_fake("sparsify::fftconv", lib=_library)
def _(u: Tensor, k_f: Tensor, n: int, hop: int) -> Tensor:
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)
