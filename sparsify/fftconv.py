"""The convolution: `fftconv_ref` is the truth, `fftconv` and `LongConv` are the fast ways to the same numbers.

    y[b, h, t] = sum over lags d of k[h, d + ahead] * u[b, h, t - d],    d = -ahead .. K - 1 - ahead

A causal filter has `ahead = 0`. Samples outside 0 .. L-1 count as zero. `LongConv` takes a skip and gates along,
gate * (k * g + skip * g) with g = pregate * u, since passes of their own over memory would cost about what the
convolution does.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .cpu import backend as cpu
from .cpu import native
from .filters.monarch import BlockMask
from .gpu import backend as gpu
from .gpu import dispatch


def fftconv_ref(u: Tensor, k: Tensor, ahead: int = 0) -> Tensor:
    """Convolution of `u` with `k` in float64; every backend is measured against this.

    The sum over all lags is computed as one FFT of at least L + K - 1 points, so nothing wraps around.

    Args:
        u: Signal, (..., H, L), any real dtype.
        k: Filter, (H, K), tap j at lag j - ahead.
        ahead: Taps at negative lags; 0 for a causal filter.

    Returns:
        The convolution y, (..., H, L), in float64.

    Raises:
        ValueError: Shapes do not convolve, or `ahead` is not in [0, K).
    """
    check(u, k, ahead)
    n = u.shape[-1] + k.shape[-1] - 1  # room for every product, so nothing wraps around
    y = torch.fft.irfft(torch.fft.rfft(u.double(), n) * torch.fft.rfft(k.double(), n), n)
    return y[..., ahead : ahead + u.shape[-1]]


def fftconv(u: Tensor, k: Tensor, ahead: int = 0) -> Tensor:
    """Convolution of `u` with `k`, prepared for this call alone; differentiable in u and k.

    A filter that is used more than once is cheaper in a `LongConv`, which also uses the GPU kernels.

    Args:
        u: Signal, (B, H, L), any strides; float16, bfloat16, float32 or float64.
        k: Filter, (H, K), float32 or float64, tap j at lag j - ahead.
        ahead: Taps at negative lags; 0 for a causal filter.

    Returns:
        The convolution y, (B, H, L), in the dtype of u.

    Raises:
        ValueError: Shapes do not convolve, or `ahead` is not in [0, K).
    """
    check(u, k, ahead)
    native.check_shapes(u, None, None)
    if torch.is_grad_enabled() and (u.requires_grad or k.requires_grad):
        return differentiable(u, k.to(u.device), ahead)
    return run(u, cpu.prepare(k.to(u.device), ahead, u.shape[-1], spectra_bytes=0))


def differentiable(
    u: Tensor,
    k: Tensor,
    ahead: int,
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
) -> Tensor:
    """The same in operations that carry gradients, with gates and skip as in `LongConv.forward`."""
    u = u if pregate is None else u * pregate
    seqlen = u.shape[-1]
    k, ahead = cpu.crop(k, ahead, seqlen)
    n = cpu.one_block(seqlen, k.shape[-1], ahead)
    return cpu.convolve(u, cpu.spectrum(k, n, ahead), n, seqlen, gate, skip).to(u.dtype)


def check(u: Tensor, k: Tensor, ahead: int = 0) -> None:
    """Refuse shapes that do not convolve, in one sentence."""
    check_filter(k, ahead)
    if u.dim() < 2 or u.shape[-2] != k.shape[0]:
        hint = "; pass u.transpose(1, 2)" if u.dim() == 3 and u.shape[-1] == k.shape[0] else ""
        raise ValueError(f"signal u has shape {tuple(u.shape)}, expected (batch, {k.shape[0]}, seqlen){hint}")


def check_filter(k: Tensor, ahead: int) -> None:
    if k.dim() != 2:
        raise ValueError(f"filter k has shape {tuple(k.shape)}, expected (channels, taps)")
    if not 0 <= ahead < k.shape[-1]:
        raise ValueError(f"ahead must lie in [0, {k.shape[-1]}), got {ahead}")


_caching = threading.Lock()  # for what all LongConvs keep: a lock of their own could not be copied


class Source(Protocol):
    """What a filter is made of: a module with weights, which may change."""

    def weights(self) -> list[Tensor]:
        """The tensors that the taps are made of, as they are now."""

    def materialize(self) -> Tensor:
        """The whole filter: k (H, K) float32, on the CPU."""

    def trace(self, seqlen: int) -> Tensor:
        """The lags that `seqlen` samples feel, with their gradients."""


class Following(Protocol):
    """How a `LongConv` follows its source.  It keeps no reference to it, since the source may hold the `LongConv`."""

    def traced(self, source: Source, seqlen: int) -> tuple[Tensor, int]:
        """The filter that a signal of `seqlen` samples feels, with its gradients: k (H, K), and its taps ahead."""

    def refresh(self, conv: LongConv, source: Source) -> None:
        """Give `conv` the filter anew if the weights have changed since it got the one it has."""


class LongConv(nn.Module):
    """Convolution with one fixed filter, prepared once per sequence length and device and kept.

    It is differentiable in u, gates and skip.  The gradient is a convolution by the same kernels, and nothing but these
    inputs is kept for it.  The filter is no buffer on purpose: casting a model to half precision must not cast its
    filters.

    Args:
        k: Filter, (H, K), float32 or float64, tap j at lag j - ahead.
        ahead: Taps at negative lags; 0 for a causal filter.
        mask: If the filter's spectrum, but for `head`, is zero off this mask: the mask, for a quicker way to the same
            numbers.
        head: (H, taps), tap j at lag j - head_ahead: what the filter is besides what the mask keeps.
        head_ahead: Taps of the head at negative lags.
        spectra_bytes: Bytes beyond which spectra of whole rows are computed in every call, which is half as slow again,
            rather than kept; None keeps all.

    Raises:
        ValueError: The filter is not (channels, taps), or `ahead` is not in [0, K).
    """

    CACHED_LENGTHS = 4  # lengths kept at a time; an evaluation uses one or two

    def __init__(
        self,
        k: Tensor,
        ahead: int = 0,
        *,
        mask: BlockMask | None = None,
        head: Tensor | None = None,
        head_ahead: int = 0,
        spectra_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.spectra_bytes = spectra_bytes
        self.following: Following | None = None  # how the filter follows a source that comes with a call
        self.version = 0  # counts the filters that this convolution has had
        self.set_filter(k, ahead, mask=mask, head=head, head_ahead=head_ahead)

    def set_filter(
        self,
        k: Tensor,
        ahead: int = 0,
        *,
        mask: BlockMask | None = None,
        head: Tensor | None = None,
        head_ahead: int = 0,
    ) -> None:
        """Convolve with another filter from now on; arguments as when it was made."""
        check_filter(k, ahead)
        self.k = k.detach().contiguous()
        self.ahead = ahead
        self.structure = None if mask is None else cpu.Structure(mask, head, head_ahead)
        self.version += 1
        self._prepared: dict[tuple[int, torch.device, object], cpu.Prepared] = {}
        self._adjoint: list[LongConv] = []  # in a list, since a module in an attribute would be one of its layers

    def extra_repr(self) -> str:
        channels, taps = self.k.shape
        return f"channels={channels}, taps={taps}" + (f", ahead={self.ahead}" if self.ahead else "")

    def prepare(self, u: Tensor) -> cpu.Prepared:
        """What signals like u, on its device, of its type and about its length, need; from the cache if there."""
        room, device, on_gpu = cpu.room(u.shape[-1]), u.device, gpu.takes(u)
        way = (u.dtype, len(u).bit_length()) if on_gpu else native.available()  # what the choice depends on besides
        key = room, device, way
        cache = self._prepared
        found = cache.get(key)
        if found is None:
            k = self.k.to(device)
            if on_gpu:
                found = dispatch.prepare(k, self.ahead, room, u.dtype, len(u), self.structure)
                gpu.settle(device)  # whatever stream reads it next
            else:
                found = cpu.prepare(k, self.ahead, room, self.structure, self.spectra_bytes)
            with _caching:
                while len(cache) >= self.CACHED_LENGTHS:
                    oldest = next(iter(cache))
                    gpu.settle(oldest[1])  # whatever stream still reads it
                    del cache[oldest]
                cache[key] = found
        return found

    def refresh(self, source: Source) -> None:
        """Take the filter that the weights of `source` make now, if they have changed."""
        if self.following is not None:
            self.following.refresh(self, source)

    def adjoint(self) -> LongConv:
        """The convolution with the filter reversed in time, which carries gradients back; made once.

        Its spectrum is the conjugate one, so a mask stays what it is.
        """
        if not self._adjoint:
            mask, head, head_ahead = None, None, 0
            if self.structure is not None:
                mask, head = self.structure.mask, self.structure.head
            if self.structure is not None and head is not None:
                head, head_ahead = head.flip(-1), head.shape[-1] - 1 - self.structure.head_ahead
            k, ahead = self.k.flip(-1), self.k.shape[-1] - 1 - self.ahead
            back = LongConv(k, ahead, mask=mask, head=head, head_ahead=head_ahead, spectra_bytes=self.spectra_bytes)
            back._adjoint.append(self)
            self._adjoint.append(back)
        return self._adjoint[0]

    def forward(
        self,
        u: Tensor,
        gate: Tensor | None = None,
        skip: Tensor | None = None,
        pregate: Tensor | None = None,
        source: Source | None = None,
    ) -> Tensor:
        """Compute gate * (k * g + skip * g) with g = pregate * u.

        Args:
            u: Signal, (B, H, L); float16, bfloat16, float32 or float64.
            gate: (B, H, L), multiplies the result; None leaves it out, as for the next two.
            skip: (H,), the coefficient of the direct path.
            pregate: (B, H, L), multiplies the signal first.
            source: The weights behind the filter, which it follows if it was made to.

        Returns:
            y, (B, H, L), in the dtype of u.

        Raises:
            ValueError: A shape does not fit the filter or the signal.
        """
        check(u, self.k, self.ahead)
        native.check_shapes(u, gate, skip)
        native.check_shapes(u, pregate, None)
        compiling, wanted = torch.compiler.is_compiling(), torch.is_grad_enabled()
        if source is not None and self.following is not None:
            if wanted and any(w.requires_grad for w in source.weights()):
                k, ahead = self.following.traced(source, u.shape[-1])
                return differentiable(u, k.to(u.device), ahead, gate, skip, pregate)
            if not compiling:  # a compiled graph holds the filter that it was compiled with
                self.refresh(source)
        if not wanted or not any(t is not None and t.requires_grad for t in (u, gate, skip, pregate)):
            return run(u, self.prepare(u), gate, skip, pregate)
        if compiling:
            return differentiable(u, self.k.to(u.device), self.ahead, gate, skip, pregate)
        return Differentiable.apply(u, gate, skip, pregate, self)


class Differentiable(torch.autograd.Function):
    """`LongConv` on what gradients are wanted of: those are convolutions, too, with the filter reversed in time.

    With w = gate * dy and g = pregate * u:  dg = k~ * w + skip * w,  du = pregate * dg,  dpregate = u * dg,
    dgate = dy * (k * g + skip * g),  dskip = the sum of w * g over batch and time.
    """

    @staticmethod
    def forward(u: Tensor, gate: Tensor | None, skip: Tensor | None, pregate: Tensor | None, conv: LongConv) -> Tensor:
        return run(u, conv.prepare(u), gate, skip, pregate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.conv = inputs
        ctx.version = ctx.conv.version
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (u, gate, skip, pregate), conv = ctx.saved_tensors, ctx.conv
        if conv.version != ctx.version:
            raise RuntimeError(
                "the filter of a convolution changed between forward and backward, so its gradient is lost; "
                "run the forward pass again, and change weights after backward"
            )
        wanted = dict(zip(("u", "gate", "skip", "pregate"), ctx.needs_input_grad, strict=False))
        dy = dy.to(u.dtype)
        du = dgate = dskip = dpregate = None
        if wanted["pregate"]:
            dg = conv.adjoint()(dy, None, skip, gate)
            du, dpregate = dg * pregate, (dg * u).to(pregate.dtype)
        elif wanted["u"]:
            du = conv.adjoint()(dy, pregate, skip, gate)
        if wanted["gate"]:
            dgate = (dy * conv(u, None, skip, pregate)).to(gate.dtype)
        if wanted["skip"]:
            w, g = dy if gate is None else dy * gate, u if pregate is None else u * pregate
            dskip = torch.einsum("bhl,bhl->h", w.to(skip.dtype), g.to(skip.dtype))
        return du if wanted["u"] else None, dgate, dskip, dpregate, None


def run(
    u: Tensor,
    prepared: cpu.Prepared,
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
) -> Tensor:
    return torch.ops.sparsify.fftconv(u, prepared.tables, prepared.layout, gate, skip, pregate)


def on_other_devices(
    u: Tensor,
    tables: list[Tensor],
    layout: list[int],
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
) -> Tensor:
    backend = gpu if layout[0] == cpu.KERNEL else cpu
    return backend.fftconv(u, tables, layout, gate, skip, pregate)


_library = torch.library.Library("sparsify", "DEF")  # the form with the least overhead a call
_library.define(
    "fftconv(Tensor u, Tensor[] tables, int[] layout, "
    "Tensor? gate=None, Tensor? skip=None, Tensor? pregate=None) -> Tensor"
)
_library.impl("fftconv", cpu.fftconv, "CPU")
_library.impl("fftconv", on_other_devices, "CompositeExplicitAutograd")


@torch.library.register_fake("sparsify::fftconv", lib=_library)
def _(
    u: Tensor,
    tables: list[Tensor],
    layout: list[int],
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
) -> Tensor:
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)
