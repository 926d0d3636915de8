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
from sparsify.filters.filter import AnyFilter, BlockedFilter, Filter, in_memory
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan
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


def reference(u: Tensor, k: Filter) -> Tensor:
    """The convolution as the published models compute it in every call: u (B, H, L) -> y (B, H, L).

    k: L taps, or up to 2 L of a filter that looks both ways.
    """
    n = 2 * u.shape[-1]
    k_f = torch.view_as_complex(cpu.spectrum(k, n))
    return torch.fft.irfft(torch.fft.rfft(u, n) * k_f, n)[..., : u.shape[-1]]


def best_torch(u: Tensor, k: Filter) -> Conv:
    """The best that torch.fft does here: spectrum prepared, a size without large primes, rows in blocks or all at once.

    u: a signal like those to come; k: on its device.  Blocks stay in cache but are many calls,
    which a busy machine makes wait: the quicker of the two is taken.
    """
    k = k.felt(u.shape[-1])
    n, hop = cpu.choose_size(u.shape[-1], k.taps, k.lookahead)
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


def apart(u: Tensor, k: Filter) -> Callable[[], Tensor]:
    """The two directions of a filter one after the other, each as `best_torch` does it."""
    future = Filter(pad(k.k[:, : k.lookahead], (0, 1)), k.lookahead)
    sides = best_torch(u, k.past()), best_torch(u, future)
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


def kept_of(k: Filter, plan: FilterPlan) -> Filter:
    """`plan.apply(k)`, a few channels at a time."""
    return in_memory(plan.apply(BlockedFilter(k, k.rows)))


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
    lookahead = seqlen - 1 if both_ways else 0
    k = Filter(torch.randn(channels, seqlen + lookahead, generator=draw) / seqlen**0.5, lookahead)
    whole = FilterPlan("dense")
    progress("finding the best torch.fft")
    calls: dict[str, Callable[[], Tensor]] = {REFERENCE: partial(reference, u, k)}
    calls |= {APART: apart(u, k)} if lookahead else {}
    calls |= {TORCH: partial(best_torch(u, k), u), EXACT: partial(LongConv(k), u)}
    kept = dict.fromkeys(calls, (whole, k))
    for name, plan in sparse_plans(seqlen).items():
        progress(f"preparing {name}")
        found = kept_of(k, plan)
        kept[name] = plan, found
        calls[name] = partial(LongConv(found), u)
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


def check(name: str, y: Tensor, u: Tensor, kept: AnyFilter, bar: float = BAR) -> float:
    """Relative L2 error of y on a few channels against float64; refuses more than `bar`."""
    some = sorted({0, u.shape[1] // 2, u.shape[1] - 1})
    error = relative(y[:, some].double(), fftconv_ref(u[:, some], kept.rows(some).to(u.device)))
    if not error < bar:
        raise RuntimeError(f"{name}: the convolution is off by {error:.1e} of its norm, so timing it means nothing")
    return error
