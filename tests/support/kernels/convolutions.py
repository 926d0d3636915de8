"""Convolutions that the GPU kernels must get right, wherever they run: what to convolve, how, and what comes of it.

y, y_ref = convolved(case, launch=emulation.Emulator())        # on the emulator
y, y_ref = convolved(case, device="cuda")                      # on a GPU
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsify.cpu.backend import Prepared
from sparsify.fftconv import fftconv_ref
from sparsify.filters.monarch import BlockMask
from sparsify.gpu import backend as gpu
from sparsify.gpu import dispatch
from sparsify.gpu.launch_spec import Build, DecimatedWay, Way
from sparsify.plan import Filter, FilterPlan

HALF, BFLOAT16, FLOAT = torch.float16, torch.bfloat16, torch.float32

# Relative L2 error of a kernel against float64.  16-bit signals are rounded after every stage; a float32 signal is the
# sum of two bfloat16.  All far below the signal.
BARS = {HALF: 2e-3, BFLOAT16: 1.2e-2, FLOAT: 2e-5}

POINTS = (256, 512, 1024, 2048, 4096, 8192, 16384)
MANY = 64 * 768  # rows of a large layer, what planners plan for here
ROOFLINE = {  # points -> radices of few operations, on paper
    256: (16, 16),
    1024: (32, 32),
    4096: (16, 16, 16),
    8192: (32, 16, 16),
    16384: (32, 32, 16),
    32768: (32, 32, 32),
}


@dataclass(frozen=True)
class Signals:
    """Signals to convolve.

    share: of the kernel's points that are samples.  odd: samples fewer.  view: how they lie in memory.  lookahead:
    whether the filter reaches into the future as far as into the past.  gated: with pregate, gate and skip.
    """

    share: float = 1.0
    odd: int = 0
    view: str = "whole"
    lookahead: bool = False
    gated: bool = False
    scale: float = 1.0

    def length(self, points: int) -> int:
        return int(self.share * points) - self.odd


SIGNALS = {  # by 8 samples at a time, by 2 (16-bit "two-sided" ones), or one by one
    "causal": Signals(),
    "faint": Signals(scale=0.02),
    "two-sided": Signals(share=0.75, odd=2, lookahead=True),
    "gated": Signals(share=0.5, view="apart", gated=True),
    "odd": Signals(odd=3, view="slice"),
    "odd, two-sided": Signals(odd=1, view="channels last", lookahead=True, scale=0.02),
    "odd, gated": Signals(share=0.5, odd=-1, view="slice", gated=True),
}


@dataclass(frozen=True)
class Case:
    """One convolution by one way.

    seqlen: samples, as `signals` has them unless given.  taps: of the filter, as many as samples unless given.
    head: taps of a split filter's head.
    """

    way: Way | DecimatedWay
    signals: Signals = SIGNALS["causal"]
    seqlen: int | None = None
    taps: int | None = None
    mask: BlockMask | None = None
    head: int | None = None
    batch: int = 1
    channels: int = 3

    @property
    def source(self) -> str:
        return "decimated" if isinstance(self.way, DecimatedWay) else self.way.source

    def __str__(self) -> str:
        way = self.way
        if isinstance(way, DecimatedWay):
            sizes: tuple[int, ...] = (way.rate, *way.inner.factors)
        else:
            sizes = (*[way.radix] * (way.radix > 1), *way.factors)
        parts = [self.source, "x".join(map(str, sizes)), str(way.dtype)[6:]]
        masked = isinstance(way, Way) and way.masked
        return "-".join([*parts, *["masked"] * masked, *[f"head{way.head}"] * (way.head > 0)])

    @property
    def length(self) -> int:
        if self.seqlen is not None:
            return self.seqlen
        assert isinstance(self.way, Way)
        return self.signals.length(self.way.points)

    @property
    def piece(self) -> int:
        """Neighbouring samples that are read at once."""
        shape = self.batch, self.channels, self.length
        u, y = drawn(shape, self.signals.view, self.way.dtype), torch.empty(shape, dtype=self.way.dtype)
        cut = self.signals.lookahead and self.source in ("history", "direct")
        return min(gpu.piece(t, self.taps // 2 if cut and self.taps else 0) for t in (u, y))

    @property
    def builds(self) -> tuple[Build, ...]:
        """The kernels that will run."""
        if isinstance(self.way, DecimatedWay):
            ends = (self.way.build(entry, self.piece) for entry in ("decimate", "interpolate"))
            return (*ends, *self.way.inner.builds())
        return self.way.builds(self.piece)


VIEWS = {  # how signals of (B, H, L) lie in memory
    "whole": lambda make, b, h, n: make(b, h, n),
    "apart": lambda make, b, h, n: make(b + 1, h + 2, n + 8)[1:, 1:-1, :n],  # other strides, still multiples of 8
    "slice": lambda make, b, h, n: make(b + 1, h + 2, n + 5)[1:, 1:-1, 3 : n + 3],
    "channels last": lambda make, b, h, n: make(b, n, h).transpose(1, 2),
}


def drawn(
    shape: tuple[int, int, int], view: str, dtype: torch.dtype, device: str = "cpu", scale: float = 1.0
) -> Tensor:
    """Random signals (B, H, L) that lie in memory as `view` says."""
    return VIEWS[view](lambda *sizes: (scale * torch.randn(sizes)).to(dtype).to(device), *shape)


def filter_of(case: Case) -> Filter:
    """The filter that is really convolved with."""
    length, signals = case.length, case.signals
    taps = case.taps or (2 * length - 1 if signals.lookahead else length)
    k = torch.randn(case.channels, taps) / math.sqrt(taps)
    if case.mask is None:
        return Filter(k, taps // 2 if signals.lookahead else 0)
    kind = "frequency-sparse" if case.head is None else "split"
    return FilterPlan(kind, case.head, case.mask).apply(k)


def prepared_for(case: Case, kept: Filter, device: str = "cpu") -> Prepared:
    """Tables of the case's own way."""
    kept = kept.to(device)
    if kept.mask is not None:
        assert case.way.head == dispatch.head_taps(kept.head)
        return gpu.make_apart(case.way, kept)
    assert isinstance(case.way, Way)  # a decimated one has a mask
    way = replace(case.way, lookahead=kept.lookahead) if case.source in ("history", "direct") else case.way
    return gpu.make(way, kept)


def convolved(case: Case, launch: gpu.Launch | None = None, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """y and what it should be, in float64."""
    torch.manual_seed(1)
    kept, shape, signals = filter_of(case), (case.batch, case.channels, case.length), case.signals
    u = drawn(shape, signals.view, case.way.dtype, device, signals.scale)
    gate = pregate = skip = None
    if signals.gated:
        gate, pregate = (drawn(shape, signals.view, case.way.dtype, device) for _ in range(2))
        skip = torch.randn(case.channels, device=device)
    prepared = prepared_for(case, kept, device)
    y = gpu.fftconv(u, prepared.tables, prepared.layout, gate, skip, pregate, launch=launch)
    assert y.shape == u.shape and y.dtype == u.dtype
    return y, expected(u.cpu(), kept, *(t if t is None else t.cpu() for t in (gate, skip, pregate)))


def expected(
    u: Tensor, kept: Filter, gate: Tensor | None = None, skip: Tensor | None = None, pregate: Tensor | None = None
) -> Tensor:
    """gate * (k * g + skip * g), g = pregate * u, in float64."""
    g = u.double() if pregate is None else u.double() * pregate.double()
    y = fftconv_ref(g, kept)
    y = y if skip is None else y + skip.double()[:, None] * g
    return y if gate is None else y * gate.double()
