"""The convolution: `fftconv_ref` is the truth, `fftconv` and `LongConv` are the fast ways to the same numbers.

    y[b, h, t] = sum over lags d of k[h, d + lookahead] * u[b, h, t - d],    d = -lookahead .. K - 1 - lookahead

A causal filter has lookahead 0, and may be passed as its taps alone.  Samples outside 0 .. L - 1 count as zero.
`LongConv` takes a skip and gates along,
gate * (k * g + skip * g) with g = pregate * u, since passes of their own over memory would cost about what the
convolution does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from .cpu import backend as cpu
from .cpu import native
from .filters.filter import AnyFilter, BlockedFilter, Filter, Taps, as_filter, in_memory, row_blocks
from .gpu import backend as gpu
from .gpu import dispatch
from .hooks import is_plain


def fftconv_ref(u: Tensor, k: Taps) -> Tensor:
    """Convolve in float64, by one FFT over everything; every backend is measured against this.

    The sum over all lags is computed as one FFT of at least L + K - 1 points, so nothing wraps around.

    Args:
        u: Signal, (..., H, L), any real dtype.
        k: Filter of H channels, or the taps (H, K) of a causal one.

    Returns:
        The convolution y, (..., H, L), in float64.

    Raises:
        ValueError: Shapes do not convolve.
    """
    k = in_memory(as_filter(k))
    check(u, k)
    n = u.shape[-1] + k.taps - 1  # room for every product, so nothing wraps around
    y = torch.fft.irfft(torch.fft.rfft(u.double(), n) * torch.fft.rfft(k.k.double(), n), n)
    return y[..., k.lookahead : k.lookahead + u.shape[-1]]


def fftconv(u: Tensor, k: Taps) -> Tensor:
    """Convolution of `u` with `k`, prepared for this call alone; differentiable in u and in the taps.

    A filter that is used more than once is cheaper in a `LongConv`, which also uses the GPU kernels.

    Args:
        u: Signal, (B, H, L), any strides; float16, bfloat16, float32 or float64.
        k: Filter of H channels, float32 or float64, or the taps (H, K) of a causal one.

    Returns:
        The convolution y, (B, H, L), in the dtype of u.

    Raises:
        ValueError: Shapes do not convolve.
    """
    k = in_memory(as_filter(k))
    check(u, k)
    native.check_shapes(u, None, None)
    k = k.to(u.device)
    if torch.is_grad_enabled() and (u.requires_grad or k.k.requires_grad):
        return differentiable(u, k)
    return run(u, cpu.prepare(k, u.shape[-1], spectra_bytes=0))


def differentiable(
    u: Tensor, k: Filter, gate: Tensor | None = None, skip: Tensor | None = None, pregate: Tensor | None = None
) -> Tensor:
    """The same in operations that carry gradients, with gates and skip as in `LongConv.forward`."""
    u = u if pregate is None else u * pregate
    seqlen = u.shape[-1]
    k = k.felt(seqlen)
    n = cpu.one_block(seqlen, k.taps, k.lookahead)
    return cpu.convolve(u, cpu.spectrum(k, n), n, seqlen, gate, skip).to(u.dtype)


def check(u: Tensor, k: AnyFilter) -> None:
    """Refuse shapes that do not convolve, in one sentence."""
    if u.dim() < 2 or u.shape[-2] != k.channels:
        hint = "; pass u.transpose(1, 2)" if u.dim() == 3 and u.shape[-1] == k.channels else ""
        raise ValueError(f"signal u has shape {tuple(u.shape)}, expected (batch, {k.channels}, seqlen){hint}")


_caching = threading.Lock()  # for what all LongConvs keep: a lock of their own could not be copied


class Source(Protocol):
    """What a filter is made of: a module with weights, which may change."""

    def weights(self) -> list[Tensor]:
        """The tensors that the taps are made of, as they are now."""

    def materialize(self, seqlen: int | None = None) -> AnyFilter:
        """What `seqlen` samples feel of the filter, or the whole: float32, on the CPU."""

    def trace(self, seqlen: int | None = None) -> Filter:
        """The same with its gradients, where the weights are."""


class Following(Protocol):
    """How a `LongConv` follows its source.  It keeps no reference to it, since the source may hold the `LongConv`."""

    def traced(self, source: Source, seqlen: int) -> Filter:
        """The filter that a signal of `seqlen` samples feels, with its gradients."""

    def refresh(self, conv: LongConv, source: Source) -> None:
        """Give `conv` the filter anew if the weights have changed since it got the one it has."""


Remake: TypeAlias = Callable[[AnyFilter], AnyFilter]
"""From the filter of a source to that of a convolution."""


class LongConv(nn.Module):
    """Convolution with one fixed filter, prepared once per sequence length and device and kept.

    It is differentiable in u, gates and skip.  The gradient is a convolution by the same kernels, and nothing but these
    inputs is kept for it.  The filter is no buffer on purpose: casting a model to half precision must not cast its
    filters.

    Args:
        k: Filter, float32 or float64, or the taps (H, K) of a causal one.  What is known of it besides its taps
            (`Filter.structure`) opens quicker ways to the same numbers.
        spectra_bytes: Bytes beyond which spectra of whole rows are computed in every call, which is half as slow again,
            rather than kept, from taps that are kept if they take less; None keeps all.
        remake: How this filter is made of the one of a source that comes with every call.  Then no large filter is kept
            here, only what was prepared of it.

    Raises:
        ValueError: The filter is not (channels, taps).
    """

    CACHED_LENGTHS = 4  # lengths kept at a time; an evaluation uses one or two

    def __init__(self, k: Taps, *, spectra_bytes: int | None = None, remake: Remake | None = None) -> None:
        super().__init__()
        self.spectra_bytes = spectra_bytes
        self.following: Following | None = None  # how the filter follows a source that comes with a call
        self.version = 0  # counts the filters that this convolution has had
        self.set_filter(k, remake)

    def set_filter(self, k: Taps, remake: Remake | None = None) -> None:
        """Convolve with another filter from now on."""
        given = as_filter(k)
        self.remake = remake if isinstance(given, BlockedFilter) else None
        if self.remake is not None:
            given = given.outline if isinstance(given, BlockedFilter) else given
        elif isinstance(given, Filter):
            given = given.detached()
        self.filter: AnyFilter = given
        self.version += 1
        self._prepared: dict[tuple[int, torch.device, object], cpu.Prepared] = {}
        self._adjoint: list[LongConv] = []  # in a list, since a module in an attribute would be one of its layers

    def extra_repr(self) -> str:
        k = self.filter
        return f"channels={k.channels}, taps={k.taps}" + (f", lookahead={k.lookahead}" if k.lookahead else "")

    @property
    def prepared_bytes(self) -> int:
        """What is kept prepared, for all lengths and devices."""
        return sum(table.nbytes for made in self._prepared.values() for table in made.tables)

    def made(self, source: Source | None) -> AnyFilter:
        """The filter itself.  source: what it is made of, where it is not kept."""
        if self.remake is None:
            return self.filter
        if source is None:
            raise RuntimeError(
                f"the filter of this convolution, {self.filter.channels} x {self.filter.taps} taps, is too large to be "
                f"kept; pass what it is made of with the call, conv(u, ..., source=the filter module)"
            )
        return self.remake(source.materialize())

    def prepare(self, u: Tensor, source: Source | None = None) -> cpu.Prepared:
        """What signals like u, on its device, of its type and about its length, need; from the cache if there.

        source: as of `forward`.
        """
        length, device, on_gpu = cpu.bucketed_length(u.shape[-1]), u.device, gpu.takes(u)
        way = (u.dtype, len(u).bit_length()) if on_gpu else native.available()  # what the choice depends on besides
        key = length, device, way
        cache = self._prepared
        found = cache.get(key)
        if found is None:
            k = self.made(source).to(device)
            if on_gpu:
                found = dispatch.prepare(in_memory(k), length, u.dtype, len(u))
                gpu.settle(device)  # whatever stream reads it next
            else:
                found = cpu.prepare(k, length, self.spectra_bytes)
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
        """The convolution with the filter reversed in time, which carries gradients back; made once."""
        if not self._adjoint:
            back = LongConv(self.filter.reversed(), spectra_bytes=self.spectra_bytes)
            if (remake := self.remake) is not None:
                back.remake = lambda k: remake(k).reversed()
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
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError("torch.jit.trace cannot see a planned convolution; use torch.compile or torch.export")
        check(u, self.filter)
        native.check_shapes(u, gate, skip)
        native.check_shapes(u, pregate, None)
        compiling, wanted = torch.compiler.is_compiling(), torch.is_grad_enabled()
        if not compiling and not all(t is None or is_plain(t) for t in (u, gate, skip, pregate)):
            return differentiable(u, in_memory(self.made(source)).to(u.device), gate, skip, pregate)
        if source is not None and self.following is not None:
            if wanted and any(w.requires_grad for w in source.weights()):
                felt = self.following.traced(source, u.shape[-1]).to(u.device)
                return differentiable(u, felt, gate, skip, pregate)
            if not compiling:  # a compiled graph holds the filter that it was compiled with
                self.refresh(source)
        if not wanted or not any(t is not None and t.requires_grad for t in (u, gate, skip, pregate)):
            return self.run(u, gate, skip, pregate, source)
        if compiling:
            return differentiable(u, in_memory(self.made(source)).to(u.device), gate, skip, pregate)
        return Differentiable.apply(u, gate, skip, pregate, self, source)

    def run(
        self,
        u: Tensor,
        gate: Tensor | None = None,
        skip: Tensor | None = None,
        pregate: Tensor | None = None,
        source: Source | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`forward` without gradients.  out: where the result goes, (B, H, L) of u's type; it may be `gate`."""
        k = self.filter
        if self.remake is None or not in_call(k, u, self.spectra_bytes):
            prepared = self.prepare(u, source)
            if out is None or not native.takes(u):
                return run(u, prepared, gate, skip, pregate)
            return cpu.fftconv(u, prepared.tables, prepared.layout, gate, skip, pregate, out)
        k, y = self.made(source).felt(u.shape[-1]), torch.empty_like(u) if out is None else out
        for rows in row_blocks(k):
            part = cpu.prepare(k.rows(rows), u.shape[-1], spectra_bytes=0)
            some = [None if t is None else t[:, rows] for t in (gate, pregate)]
            y[:, rows] = run(u[:, rows], part, some[0], None if skip is None else skip[rows], some[1])
        return y


def in_call(k: AnyFilter, u: Tensor, spectra_bytes: int | None) -> bool:
    """Whether a filter that is not kept is made anew in every call: where nothing prepared of it would fit.

    k: its outline.
    """
    seqlen = u.shape[-1]
    if spectra_bytes is None or gpu.takes(u) or not native.takes(u):
        return False
    felt = k.felt(seqlen)
    if 4 * felt.channels * felt.taps <= spectra_bytes:
        return False
    return min(cpu.ways(seqlen, felt.taps, k.structure))[1] == "whole"


class Differentiable(torch.autograd.Function):
    """`LongConv` on what gradients are wanted of: those are convolutions, too, with the filter reversed in time.

    With w = gate * dy and g = pregate * u:  dg = k~ * w + skip * w,  du = pregate * dg,  dpregate = u * dg,
    dgate = dy * (k * g + skip * g),  dskip = the sum of w * g over batch and time.
    """

    @staticmethod
    def forward(
        u: Tensor,
        gate: Tensor | None,
        skip: Tensor | None,
        pregate: Tensor | None,
        conv: LongConv,
        source: Source | None,
    ) -> Tensor:
        return conv.run(u, gate, skip, pregate, source)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.conv, ctx.source = inputs
        ctx.version = ctx.conv.version
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (u, gate, skip, pregate), conv, source = ctx.saved_tensors, ctx.conv, ctx.source
        if conv.version != ctx.version:
            raise RuntimeError(
                "the filter of a convolution changed between forward and backward, so its gradient is lost; "
                "run the forward pass again, and change weights after backward"
            )
        wanted = dict(zip(("u", "gate", "skip", "pregate"), ctx.needs_input_grad, strict=False))
        dy = dy.to(u.dtype)
        du = dgate = dskip = dpregate = None
        if wanted["pregate"]:
            dg = conv.adjoint()(dy, None, skip, gate, source)
            du, dpregate = dg * pregate, (dg * u).to(pregate.dtype)
        elif wanted["u"]:
            du = conv.adjoint()(dy, pregate, skip, gate, source)
        if wanted["gate"]:
            dgate = (dy * conv(u, None, skip, pregate, source)).to(gate.dtype)
        if wanted["skip"]:
            w, g = dy if gate is None else dy * gate, u if pregate is None else u * pregate
            dskip = torch.einsum("bhl,bhl->h", w.to(skip.dtype), g.to(skip.dtype))
        return du if wanted["u"] else None, dgate, dskip, dpregate, None, None


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
