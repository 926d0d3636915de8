"""The convolution alone: our ways to compute it against those of the models and of torch.fft, correct before timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsify.cpu import backend as cpu
from sparsify.evals.causality import relative
from sparsify.fftconv import LongConv, fftconv_ref
from sparsify.filters.monarch import BlockMask
from sparsify.plan import Filter, FilterPlan
from sparsify.plan.policies import HEAD, points
from sparsify.report.schema import Ratio, Way
from sparsify.sites import Conv

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
APART = "torch.fft in halves"
BASELINES = (REFERENCE, APART, TORCH, EXACT)
SHARE = 16  # sparse ways keep one in so many taps or bins
MASKS_FROM = 1 << 15  # samples from which masked filters are timed; below, a mask saves next to nothing
TEETH = 16  # a comb of every so manieth bin
BAR = 1e-6  # relative L2 error against float64 above which a time means nothing
ROWS = 4  # channels planned at a time: what is done in float64 takes many times the room of a filter


def reference(u: Tensor, k: Tensor, ahead: int = 0) -> Tensor:
    """The convolution as the published models compute it in every call: u (B, H, L) -> y (B, H, L).

    k: (H, L), or of a filter that looks both ways (H, up to 2 L), tap j at lag j - ahead.
    """
    n = 2 * u.shape[-1]
    k_f = torch.view_as_complex(cpu.spectrum(k, n, ahead))
    return torch.fft.irfft(torch.fft.rfft(u, n) * k_f, n)[..., : u.shape[-1]]


def best_torch(u: Tensor, k: Tensor, ahead: int = 0) -> Conv:
    """The best that torch.fft does here: spectrum prepared, a size without large primes, rows in blocks or all at once.

    u: a signal like those to come; k: on its device, tap j at lag j - ahead.  Blocks stay in cache but are many calls,
    which a busy machine makes wait: the quicker of the two is taken.
    """
    k, ahead = cpu.crop(k, ahead, u.shape[-1])
    n, hop = cpu.choose_size(u.shape[-1], k.shape[-1], ahead)
    k_f = cpu.spectrum(k, n, ahead)
    ways = {way.__name__: way for way in (cpu.torch_fftconv, cpu.convolve)}
    calls = {name: partial(way, u, k_f, n, hop) for name, way in ways.items()}
    timings = in_rounds(calls, rounds=3, warmup=1).against("convolve")
    way = ways[min(timings, key=lambda name: timings[name].seconds)]

    def conv(
        u: Tensor, gate: Tensor | None = None, skip: Tensor | None = None, pregate: Tensor | None = None
    ) -> Tensor:
        return way(u if pregate is None else u * pregate, k_f, n, hop, gate, skip)

    return conv


def apart(u: Tensor, k: Tensor, ahead: int) -> Callable[[], Tensor]:
    """The two directions of a filter one after the other, each as `best_torch` does it."""
    past, future = k[:, ahead:], pad(k[:, :ahead], (0, 1))
    sides = best_torch(u, past), best_torch(u, future, ahead)
    return lambda: sides[0](u) + sides[1](u)


def sparse_plans(seqlen: int) -> dict[str, FilterPlan]:
    """What the sparse ways keep of a filter of `seqlen` taps."""
    plans = {f"partial 1/{SHARE}": FilterPlan("partial", max(1, seqlen // SHARE))}
    if seqlen >= MASKS_FROM:
        n = points(seqlen)
        band, comb = BlockMask.low_pass(n, 1 / SHARE), BlockMask.comb(n, 1 / SHARE, (TEETH, n // TEETH))
        plans[f"split {HEAD} + 1/{SHARE}"] = FilterPlan("split", HEAD, band)
        plans[f"comb 1/{SHARE}"] = FilterPlan("frequency-sparse", mask=comb)
    return plans


def kept_of(k: Tensor, plan: FilterPlan, ahead: int = 0) -> Filter:
    """`plan.apply(k, ahead)`, a few channels at a time."""
    first = plan.apply(k[:1], ahead)
    kept = k.new_empty(len(k), first.k.shape[-1])
    head = None if first.head is None else k.new_empty(len(k), first.head.shape[-1])
    for h in range(0, len(k), ROWS):
        part = plan.apply(k[h : h + ROWS], ahead)
        kept[h : h + ROWS] = part.k
        if head is not None and part.head is not None:
            head[h : h + ROWS] = part.head
    return Filter(kept, first.ahead, first.mask, head, first.head_ahead)


@torch.no_grad()
def compare(
    shape: Shape,
    rounds: int = 11,
    progress: Callable[[str], None] = lambda what: None,
    both_ways: bool = False,
) -> list[Way]:
    """Every way at one shape, on the CPU in float32, checked and then timed in the same rounds.

    Masked filters are there from MASKS_FROM samples on.  both_ways: of a filter that reaches as far into the future as
    into the past, which torch.fft may also take in two halves.
    """
    _, channels, seqlen = shape
    draw = torch.Generator().manual_seed(0)
    u = torch.randn(shape, generator=draw)
    ahead = seqlen - 1 if both_ways else 0
    k = torch.randn(channels, seqlen + ahead, generator=draw) / seqlen**0.5
    dense = Filter(k, ahead)
    whole = FilterPlan("dense")
    progress("finding the best torch.fft")
    calls: dict[str, Callable[[], Tensor]] = {REFERENCE: partial(reference, u, k, ahead)}
    calls |= {APART: apart(u, k, ahead)} if ahead else {}
    calls |= {TORCH: partial(best_torch(u, k, ahead), u), EXACT: partial(LongConv(k, ahead), u)}
    kept = dict.fromkeys(calls, (whole, dense))
    for name, plan in sparse_plans(seqlen).items():
        progress(f"preparing {name}")
        found = kept_of(k, plan, ahead)
        kept[name] = plan, found
        conv = LongConv(found.k, found.ahead, mask=found.mask, head=found.head, head_ahead=found.head_ahead)
        calls[name] = partial(conv, u)
    errors = {}
    for name, call in calls.items():
        progress(f"checking {name}")
        errors[name] = check(name, call(), u, kept[name][1])
    progress("timing")
    taken = in_rounds(calls, rounds, warmup=1)
    against = {baseline: taken.against(baseline) for baseline in BASELINES if baseline in calls}
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
