"""What each candidate would cost in quality, from one streaming pass over calibration data and a few probes.

A pass of the dense model gathers, for every site, the second moments of what arrives there (`recording`).  They turn a
change of the filter into the power of the output error, without running the model: `errors` says it of any plan, and
`walked` of a whole ladder for less; that decides which candidates are worth a look.  As many of them as there is time
for are run on a few windows and tell how much a site's error matters to the predictions: KL(dense || changed), whose
noise is far below that of a difference of losses, rises about in proportion to the error's power (`Loss`).  Sites add
up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsify import swap
from sparsify.fftconv import LongConv, Source
from sparsify.filters.filter import AnyFilter, Filter, Taps, as_filter, in_memory
from sparsify.filters.monarch import BlockMask, roots, wrap
from sparsify.filters.spectra import spectrum
from sparsify.filters.split import REACH, moves, near, split
from sparsify.plan import FilterPlan
from sparsify.plan.policies import AHEAD_LIMIT, band, points
from sparsify.sites import ConvSite

TAPS = tuple(sorted({1, *(step << i for i in range(20) for step in (2, 3))}))  # 1, 2, 3, 4, 6, 8, 12, 16, ...
HEADS = (16, 32, 48, 64, 96, 128, 192, 256)
SHORT_HEADS = (1, 2, 4, 8, 12)  # as well, where a filter looks both ways: what rings ahead of them is no leak there
SHARES = tuple(2.0**-i for i in range(2, 11))  # of a tail's spectrum, or of a whole one
WIDE = (3 / 4, 1 / 2, 3 / 8)  # as well, where a filter looks both ways
LARGEST_ERROR = 0.5  # of an output's power; nobody wants what loses more
CLEARLY = 4.0  # ratio of two errors from which on their order is believed before anything is measured
CHUNK_BYTES = 1 << 24  # complex work on spectra proceeds in channels of about this size, which caches hold
TINY = 1e-30  # an error below it is none


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of what arrives at one site, means over windows.

    power: (H, M) float32, |g_f|^2 of the gated input g at the frequencies (f + 1/4) / M.  gate: (H,) float32, mean
    square of the gate behind the convolution; ones where there is none.
    """

    power: Tensor
    gate: Tensor
    seqlen: int  # samples of a window, at most M
    windows: int

    def of(self, rows: slice) -> Moments:
        """Those of some channels."""
        return Moments(self.power[rows], self.gate[rows], self.seqlen, self.windows)

    def __post_init__(self) -> None:
        channels, n = self.power.shape
        if self.gate.shape != (channels,) or not 1 <= self.seqlen <= n or self.windows < 1:
            raise ValueError(
                f"moments of {channels} channels and {n} bins take one gate a channel, 1 to {n} samples and a window, "
                f"got {tuple(self.gate.shape)}, {self.seqlen} and {self.windows}"
            )


class Recorder(LongConv):
    """The convolution as it is, which takes note of what it is given, on top of what was noted before."""

    def __init__(self, k: Taps, n: int, before: Moments | None = None) -> None:
        super().__init__(k)
        channels = self.filter.channels
        self.power, self.gated = torch.zeros(channels, n), torch.zeros(channels)
        self.windows = self.seqlen = 0
        if before is not None:
            if before.power.shape != self.power.shape:
                raise ValueError(f"moments {tuple(before.power.shape)} do not fit a site of {channels} x {n} bins")
            self.power, self.gated, self.seqlen, self.windows = before.power, before.gate, before.seqlen, before.windows

    def forward(
        self,
        u: Tensor,
        gate: Tensor | None = None,
        skip: Tensor | None = None,
        pregate: Tensor | None = None,
        source: Source | None = None,
    ) -> Tensor:
        self.note(u if pregate is None else u * pregate, gate)
        return super().forward(u, gate, skip, pregate, source)

    def note(self, g: Tensor, gate: Tensor | None) -> None:
        """g, gate: (B, H, L).  Means, not sums, move from window to window, so there is one copy of them."""
        channels, n = self.power.shape
        self.seqlen = max(self.seqlen, g.shape[-1])
        turn = roots(4 * n, torch.arange(g.shape[-1], device=g.device)).to(torch.complex64)
        gates = torch.ones(len(g), channels) if gate is None else gate.float().square().mean(-1).cpu()
        for window, own in zip(g, gates, strict=True):
            self.windows += 1
            for rows in chunks(channels, n):
                g_f = torch.fft.fft(window[rows].float() * turn, n)
                self.power[rows].lerp_(g_f.abs().square().cpu(), 1 / self.windows)
            self.gated.lerp_(own, 1 / self.windows)

    def moments(self) -> Moments:
        """What was noted so far, in the memory that it is noted in."""
        return Moments(self.power, self.gated, self.seqlen, self.windows)


@contextmanager
def recording(
    sites: Sequence[ConvSite], filters: Mapping[str, AnyFilter], before: Mapping[str, Moments] | None = None
) -> Iterator[Callable[[], dict[str, Moments]]]:
    """While it lasts, every site takes note of what arrives; yields a function that says what that was so far.

    Run the dense model on windows of one length, in batches; memory does not grow with their number.  The sites have
    the convolutions that they came with back afterwards.  before: what other windows left, to go on from.
    """
    known = before or {}
    recorders = {site.name: Recorder(filters[site.name], points(site.context), known.get(site.name)) for site in sites}

    def so_far() -> dict[str, Moments]:
        if idle := [name for name, recorder in recorders.items() if not recorder.windows]:
            raise ValueError(f"no window reached {idle[0]}; run the model on at least one")
        return {name: recorder.moments() for name, recorder in recorders.items()}

    with swap.installed(sites, recorders):
        yield so_far


@dataclass(frozen=True)
class Errors:
    """Power of a site's output error over the power of its output, both as gated."""

    error: float  # a causal site's with its negative lags cut, as it computes when it really generates
    future: float  # power that comes from negative lags of a causal site, over the same; 0 for one that looks both ways


def output_error(k: Taps, kept: Filter, moments: Moments) -> float:
    """E |gate ((k - k') * g)|^2 over E |gate (k * g)|^2, by Parseval, with k' as `kept` has it."""
    k = in_memory(as_filter(k))
    return power(difference(k, kept), moments) / max(power(k, moments), TINY)


def errors(k: Taps, plan: FilterPlan, moments: Moments, causal: bool) -> Errors:
    """What a plan does to the output of a site with the filter k."""
    k, lost, future = as_filter(k), 0.0, 0.0
    for rows in chunks(*moments.power.shape):
        own = k.rows(rows)
        kept, part = plan.of(rows).apply(own), moments.of(rows)
        lost += power(difference(own, kept.past() if causal else kept), part)
        if causal and kept.lookahead:
            future += power(negative(kept), part)
    whole = total(k, moments)
    return Errors(lost / whole, future / whole)


def negative(k: Filter) -> Filter:
    """The taps at negative lags alone, with a zero at lag 0."""
    return Filter(pad(k.k[:, : k.lookahead], (0, 1)), k.lookahead)


def total(k: Taps, moments: Moments) -> float:
    """Power of the whole output of a site, on the scale of `power`; above zero."""
    k = as_filter(k)
    return max(TINY, sum(power(k.rows(rows), moments.of(rows)) for rows in chunks(*moments.power.shape)))


def chunks(channels: int, n: int) -> Iterator[slice]:
    """Channels that are worked on together, at n points."""
    step = max(1, CHUNK_BYTES // (48 * n))
    yield from (slice(h, h + step) for h in range(0, channels, step))


def difference(k: Filter, kept: Filter) -> Filter:
    """k - k', float64, over the lags of both."""
    before = max(k.lookahead, kept.lookahead)
    lost = torch.zeros(k.channels, before + max(one.taps - one.lookahead for one in (k, kept)), dtype=torch.float64)
    lost[:, before - k.lookahead :][:, : k.taps] += k.k
    lost[:, before - kept.lookahead :][:, : kept.taps] -= kept.k
    return Filter(lost, before)


def power(k: Filter, moments: Moments) -> float:
    """Power of gate (k * g), up to a factor that is the same for all filters of a site.

    Lag d acts at seqlen - |d| positions of a window, so its tap counts by the root of that share.
    """
    share = (1 - k.lags.abs() / moments.seqlen).clamp_min(0).sqrt()
    k_f = spectrum(Filter(k.k.double() * share, k.lookahead), moments.power.shape[1])
    by_channel = (k_f.abs().square() * moments.power).sum(-1)
    return float(by_channel @ moments.gate.double())


# --- the errors of a ladder ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class LadderStep:
    """What a plan does to one site, in sums over the channels that were looked at."""

    plan: FilterPlan
    missing: Tensor | None  # (n,) bool, bins that its mask drops
    lost: float = 0.0
    future: float = 0.0  # power from negative lags
    leak: float = 0.0  # `Filter.leak`


def walked(
    k: Taps,
    ladder: Sequence[FilterPlan],
    moments: Moments,
    causal: bool,
    future: float = math.inf,
    whole: float | None = None,
) -> list[tuple[FilterPlan, Errors]]:
    """`errors` of the steps of one ladder, the most careful first, down to where more than LARGEST_ERROR is lost.

    Left out is also what leaks too much: more than `future` of the output's power from negative lags, or AHEAD_LIMIT
    of the filter's norm where `future` has a limit.  whole: `total(k, moments)`, if known.
    A step takes two or three transforms a channel, in float32, while the channels lie in a cache; what only grows from
    channel to channel is not followed beyond its limit.
    """
    k = as_filter(k)
    whole = total(k, moments) if whole is None else whole
    channels, n = moments.power.shape
    turn, felt = turns(n, moments.seqlen)
    alive = [LadderStep(plan, None if plan.mask is None else ~plan.mask.bins()) for plan in ladder]
    for rows in chunks(channels, n):
        part, own = moments.of(rows), k.rows(rows)
        for step, lost in zip(alive, taken(own, alive, turn), strict=True):
            now, past = lost.real * felt[0], lost.imag * felt[1]
            if not causal:
                step.lost += transformed(torch.complex(now, past), turn, part)
                continue
            step.lost += transformed(now, turn, part)
            if step.plan.leaks:
                step.future += transformed(past, turn, part)
                step.leak = max(step.leak, leak(lost, own.k))
        low = next((i for i, step in enumerate(alive) if step.lost > LARGEST_ERROR * whole), len(alive))
        alive = [step for step in alive[:low] if math.isinf(future) or allowed(step, future * whole)]
    return [(step.plan, Errors(step.lost / whole, step.future / whole)) for step in alive]


def allowed(step: LadderStep, future: float) -> bool:
    return step.future <= future and step.leak <= AHEAD_LIMIT


def turns(n: int, seqlen: int) -> tuple[Tensor, Tensor]:
    """What a right-angle transform of n points begins with, (n,) complex64; weights of lags j and j - n, (2, n)."""
    j = torch.arange(n)
    felt = (1 - torch.stack([j, n - j]) / seqlen).clamp_min(0).sqrt()
    return roots(4 * n, j).to(torch.complex64), felt


def taken(k: Filter, steps: Sequence[LadderStep], turn: Tensor) -> Iterator[Tensor]:
    """What each plan takes away from the filters: (H, n) complex64, lag j in the real part, lag j - n in the other.

    steps: their masks have n points; those that share their taps are best next to each other.
    """
    n = len(turn)
    lags = torch.arange(n)
    tail_f, taps = None, None
    for step in steps:
        if step.missing is None:
            few = step.plan.taps or n
            whole = wrap(k.k, n, k.lookahead).to(turn.dtype)
            yield torch.complex(whole.real * (lags >= few), whole.imag * (lags <= n - few))
            continue
        if tail_f is None or taps != step.plan.taps:
            taps = step.plan.taps  # transformed in float64: what is lost may be little of a lot
            tail_f = spectrum(split(k, taps)[1] if taps else k, n).to(turn.dtype)
        lost = torch.fft.ifft(tail_f * step.missing) * turn.conj()
        if taps:  # as `split` does it with a mask, from there on
            assert step.plan.mask is not None
            own = near(min(taps, n, REACH), k.taps, k.lookahead)
            before = k.lookahead - own.start
            seen = torch.cat([lost.imag[:, n - before :], lost.real[:, : own.stop - k.lookahead]], dim=-1)
            moved = wrap(moves(seen, step.plan.mask), n, before).to(turn.dtype)
            lost -= torch.fft.ifft(torch.fft.fft(moved * turn) * step.missing) * turn.conj()
        yield lost


def transformed(k: Tensor, turn: Tensor, moments: Moments) -> float:
    """`power` of filters that have their weights already: k (H, n), lag j or, times i, lag j - n."""
    k_f = torch.fft.fft(k * turn)
    by_bin = (k_f.real.square() + k_f.imag.square()) * moments.power
    return float(by_bin.sum(-1, dtype=torch.float64) @ moments.gate.double())


def leak(lost: Tensor, k: Tensor) -> float:
    """`Filter.leak` of k (H, K) without what was taken away: (H, n) as in `taken`."""
    now = pad(k, (0, max(0, lost.shape[-1] - k.shape[-1])))
    now[:, : lost.shape[-1]] -= lost.real
    past = lost.imag.norm(dim=-1)
    return float((past / torch.hypot(past, now.norm(dim=-1)).clamp_min(TINY)).max())


# --- candidates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """What could be kept of one site, and what that does."""

    plan: FilterPlan
    errors: Errors
    seconds: float


def candidates(
    k: Taps,
    site: ConvSite,
    moments: Moments,
    seconds: Callable[[FilterPlan], float],
    future: float = AHEAD_LIMIT**2,
) -> list[Candidate]:
    """What is worth a thought at one site, dense first; each of the others is quicker than dense.

    Ladders of leading taps, of splits, and of masks alone where the site looks both ways or may leak.  Left out is what
    another beats clearly: no slower, and an error `CLEARLY` times smaller.  seconds: predicted time of a plan.
    future: share of a causal site's output power that may come from negative lags; infinite if it may leak.
    """
    k = as_filter(k)
    if moments.power.shape != (k.channels, points(site.context)):
        raise ValueError(
            f"moments {tuple(moments.power.shape)} are not those of {site.name}, which has {k.channels} channels and "
            f"{points(site.context)} bins; record them at this site"
        )
    found = [Candidate(FilterPlan("dense"), Errors(0.0, 0.0), seconds(FilterPlan("dense")))]
    dense, whole = found[0].seconds, total(k, moments)
    future = future if site.causal else math.inf
    for ladder in ladders(k, site, math.isinf(future)):
        costs = {plan: seconds(plan) for plan in ladder if plan.density(k.taps, k.lookahead) < 1}
        quicker = [plan for plan, cost in costs.items() if cost < dense]
        kept = walked(k, quicker, moments, site.causal, future, whole)
        found += [Candidate(plan, error, costs[plan]) for plan, error in kept]
    return [one for one in found if not any(beats(other, one) for other in found)]


def beats(one: Candidate, other: Candidate) -> bool:
    better = CLEARLY * one.errors.error < other.errors.error and one.errors.future <= other.errors.future
    return better and one.seconds <= other.seconds


def ladders(k: AnyFilter, site: ConvSite, masks_alone: bool) -> list[list[FilterPlan]]:
    """Plans of one kind each, the most careful first."""
    reach, n = k.reach, points(site.context)
    heads, shares = (HEADS, SHARES) if site.causal else ((*SHORT_HEADS, *HEADS), (*WIDE, *SHARES))
    made = [[FilterPlan("partial", taps) for taps in reversed(TAPS) if taps < reach]]
    bands = list(dict.fromkeys(band(site, share) for share in shares))
    made += [[FilterPlan("split", taps, mask) for mask in bands] for taps in heads if taps < reach]
    if masks_alone:
        combs = list(dict.fromkeys(BlockMask.comb(n, share) for share in shares))
        made += [[FilterPlan("frequency-sparse", mask=mask) for mask in masks] for masks in (bands, combs)]
    return made


# --- loss ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """KL(dense || one site changed), in nats a token, of errors of one kind: probes, and a line between them.

    probes: (error, kl), measured.  Between two, kl is a power of the error; beyond them it is in proportion to it.
    """

    probes: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.probes or any(not 0 < x < math.inf or not 0 < y < math.inf for x, y in self.probes):
            raise ValueError(f"a loss is read off probes of an error and a KL above zero, got {self.probes}")

    def at(self, error: float) -> float:
        """Predicted KL of an output error."""
        if error <= 0:
            return 0.0
        line = sorted(self.probes)
        below = [probe for probe in line if probe[0] <= error]
        above = [probe for probe in line if probe[0] >= error]
        if not below or not above:
            x, y = below[-1] if below else above[0]
            return y * error / x
        (x0, y0), (x1, y1) = below[-1], above[0]
        if x0 == x1:
            return max(y0, y1)
        part = math.log(error / x0) / math.log(x1 / x0)
        return y0 * (y1 / y0) ** part


def predicted(some: Sequence[Candidate], kl: Mapping[FilterPlan, float]) -> list[float]:
    """The loss of every candidate of a site: that of its own probe, else read off the probes of its like.

    kl: measured, of the plans that were probed.  Leading taps lose what is far, masks lose what is fast: to the
    predictions of a model these are errors of two kinds, and each is read off its own.
    """
    probes = {one.plan: (one.errors.error, max(kl[one.plan], TINY)) for one in some if one.plan in kl}
    losses = []
    for one in some:
        alike = [probe for plan, probe in probes.items() if plan.leaks == one.plan.leaks] or list(probes.values())
        if one.plan in probes:
            losses.append(probes[one.plan][1])
        else:
            losses.append(Loss(tuple(alike)).at(one.errors.error) if alike else 0.0)
    return losses


def to_probe(some: Sequence[Candidate], count: int) -> list[FilterPlan]:
    """At most `count` candidates of a site, spread over the errors of either kind."""
    kinds = [sorted((one for one in some if one.errors.error > 0 and one.plan.leaks == leaks), key=by_error)
             for leaks in (False, True)]  # fmt: skip
    kinds = [kind for kind in kinds if kind]
    chosen: list[FilterPlan] = []
    left = count
    for i, kind in enumerate(sorted(kinds, key=len)):
        share = min(len(kind), left // (len(kinds) - i))
        chosen += [kind[(2 * j + 1) * len(kind) // (2 * share)].plan for j in range(share)]
        left -= share
    return chosen


def by_error(one: Candidate) -> float:
    return one.errors.error
