"""The convolution alone: our ways to compute it against those of the models and of torch.fft, correct before timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparsify import cpu
from sparsify.fftconv import LongConv, fftconv_ref
from sparsify.monarch import BlockMask
from sparsify.plan import Filter, FilterPlan
from sparsify.policies import HEAD, points
from sparsify.sites import Conv

from .causality import relative
from .throughput import in_rounds

Shape = tuple[int, int, int]  # B, H, L

SHAPES: tuple[Shape, ...] = (
    (1, 256, 8192),
    (1, 256, 32768),
    (1, 256, 160000),
    (8, 768, 2048),
    (1, 64, 131072),
    (1, 64, 1048576),
)
QUICK = SHAPES[:2]
REFERENCE, TORCH, EXACT = "reference code", "best torch.fft", "exact"
BASELINES = (REFERENCE, TORCH, EXACT)
SHARE = 16  # sparse ways keep one in so many taps or bins
MASKS_FROM = 1 << 15  # samples from which masked filters are timed; below, a mask saves next to nothing
TEETH = 16  # a comb of every so manieth bin
BAR = 1e-6  # relative L2 error against float64 above which a time means nothing
ROWS = 4  # channels planned at a time: what is done in float64 takes many times the room of a filter


@dataclass(frozen=True)
class Ratio:
    """How many times faster, median and quartiles over rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Way:
    """One way to convolve, as measured."""

    name: str
    kept: str  # of the filter, in words
    error: float  # relative L2 against float64, on some channels
    seconds: float  # a call, median over rounds
    faster_than: Mapping[str, Ratio]  # baseline -> paired ratio


def reference(u: Tensor, k: Tensor) -> Tensor:
    """The convolution as the published models compute it in every call: u (B, H, L), k (H, L) -> y (B, H, L)."""
    n = 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(k, n), n)[..., : u.shape[-1]]


def best_torch(u: Tensor, k: Tensor) -> Conv:
    """The best that torch.fft does here: spectrum prepared, a size without large primes, rows in blocks or all at once.

    u: a signal like those to come; k: on its device.  Blocks stay in cache but are many calls, which a busy machine
    makes wait: the quicker of the two is taken.
    """
    n, hop = cpu.choose_size(u.shape[-1], k.shape[-1])
    k_f = cpu.spectrum(k, n)
    ways = {way.__name__: way for way in (cpu.torch_fftconv, cpu.convolve)}
    calls = {name: partial(way, u, k_f, n, hop) for name, way in ways.items()}
    timings = in_rounds(calls, rounds=3, warmup=1).against("convolve")
    way = ways[min(timings, key=lambda name: timings[name].seconds)]

    def conv(
        u: Tensor, gate: Tensor | None = None, skip: Tensor | None = None, pregate: Tensor | None = None
    ) -> Tensor:
        return way(u if pregate is None else u * pregate, k_f, n, hop, gate, skip)

    return conv


def sparse_plans(seqlen: int) -> dict[str, FilterPlan]:
    """What the sparse ways keep of a filter of `seqlen` taps."""
    plans = {f"partial 1/{SHARE}": FilterPlan("partial", max(1, seqlen // SHARE))}
    if seqlen >= MASKS_FROM:
        n = points(seqlen)
        band, comb = BlockMask.low_pass(n, 1 / SHARE), BlockMask.comb(n, 1 / SHARE, (TEETH, n // TEETH))
        plans[f"split {HEAD} + 1/{SHARE}"] = FilterPlan("split", HEAD, band)
        plans[f"comb 1/{SHARE}"] = FilterPlan("frequency-sparse", mask=comb)
    return plans


def kept_of(k: Tensor, plan: FilterPlan) -> Filter:
    """`plan.apply(k)`, a few channels at a time."""
    first = plan.apply(k[:1])
    kept = k.new_empty(len(k), first.k.shape[-1])
    head = None if first.head is None else k.new_empty(len(k), first.head.shape[-1])
    for h in range(0, len(k), ROWS):
        part = plan.apply(k[h : h + ROWS])
        kept[h : h + ROWS] = part.k
        if head is not None and part.head is not None:
            head[h : h + ROWS] = part.head
    return Filter(kept, first.ahead, first.mask, head)


@torch.no_grad()
def compare(shape: Shape, rounds: int = 11, progress: Callable[[str], None] = lambda what: None) -> list[Way]:
    """Every way at one shape, on the CPU in float32, checked and then timed in the same rounds.

    Masked filters are there from MASKS_FROM samples on.
    """
    _, channels, seqlen = shape
    draw = torch.Generator().manual_seed(0)
    u = torch.randn(shape, generator=draw)
    k = torch.randn(channels, seqlen, generator=draw) / seqlen**0.5
    dense = Filter(k)
    whole = FilterPlan("dense")
    progress("finding the best torch.fft")
    calls: dict[str, Callable[[], Tensor]] = {REFERENCE: partial(reference, u, k), TORCH: partial(best_torch(u, k), u)}
    calls[EXACT] = partial(LongConv(k), u)
    kept = dict.fromkeys(calls, (whole, dense))
    for name, plan in sparse_plans(seqlen).items():
        progress(f"preparing {name}")
        found = kept_of(k, plan)
        kept[name] = plan, found
        calls[name] = partial(LongConv(found.k, found.ahead, mask=found.mask, head=found.head), u)
    errors = {}
    for name, call in calls.items():
        progress(f"checking {name}")
        errors[name] = check(name, call(), u, kept[name][1])
    progress("timing")
    taken = in_rounds(calls, rounds, warmup=1)
    against = {baseline: taken.against(baseline) for baseline in BASELINES}
    ways = []
    for name in calls:
        timings = {baseline: timings[name] for baseline, timings in against.items()}
        ratios = {b: Ratio(t.speedup, t.speedup_low, t.speedup_high) for b, t in timings.items() if b != name}
        ways.append(Way(name, str(kept[name][0]), errors[name], timings[EXACT].seconds, ratios))
    return ways


def check(name: str, y: Tensor, u: Tensor, kept: Filter, bar: float = BAR) -> float:
    """Relative L2 error of y on a few channels against float64; refuses more than `bar`."""
    some = sorted({0, u.shape[1] // 2, u.shape[1] - 1})
    k = kept.k[[*some]].to(u.device)
    error = relative(y[:, some].double(), fftconv_ref(u[:, some], k, kept.ahead))
    if not error < bar:
        raise RuntimeError(f"{name}: the convolution is off by {error:.1e} of its norm, so timing it means nothing")
    return error
