"""What each candidate would cost in quality, from one streaming pass over calibration data and a few probes.

A pass of the dense model gathers, for every site, the second moments of what arrives there.  They turn a change of the
filter into the power of the output error, without running the model (`errors`); that decides which candidates are worth
a look.  As many of them as there is time for are run on a few windows and tell how much a site's error matters to the
predictions: KL(dense || changed), whose noise is far below that of a difference of losses, rises about in proportion
to the error's power (`Loss`).  Sites add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import swap
from .fftconv import LongConv
from .monarch import BlockMask, roots
from .plan import Filter, FilterPlan
from .policies import AHEAD_LIMIT, band, points
from .sites import ConvSite
from .spectra import spectrum

TAPS = tuple(sorted({1, *(step << i for i in range(20) for step in (2, 3))}))  # 1, 2, 3, 4, 6, 8, 12, 16, ...
HEADS = (16, 32, 48, 64, 96, 128, 192, 256)
SHARES = tuple(2.0**-i for i in range(2, 11))  # of a tail's spectrum, or of a whole one
LARGEST_ERROR = 0.5  # of an output's power; nobody wants what loses more
CLEARLY = 4.0  # ratio of two errors from which on their order is believed before anything is measured
CHUNK_BYTES = 1 << 26  # complex work on spectra proceeds in channels of about this size
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
    """The convolution as it is, which takes note of what it is given."""

    def __init__(self, k: Tensor, n: int) -> None:
        super().__init__(k)
        self.n, self.windows, self.seqlen = n, 0, 0
        self.power, self.gated = torch.zeros(k.shape[0], n), torch.zeros(k.shape[0])

    def forward(
        self, u: Tensor, gate: Tensor | None = None, skip: Tensor | None = None, pregate: Tensor | None = None
    ) -> Tensor:
        self.note(u if pregate is None else u * pregate, gate)
        return super().forward(u, gate, skip, pregate)

    def note(self, g: Tensor, gate: Tensor | None) -> None:
        """g, gate: (B, H, L)."""
        self.windows, self.seqlen = self.windows + len(g), max(self.seqlen, g.shape[-1])
        turn = roots(4 * self.n, torch.arange(g.shape[-1], device=g.device)).to(torch.complex64)
        rows = max(1, CHUNK_BYTES // (8 * self.n))
        for window in g:
            for h in range(0, len(window), rows):
                g_f = torch.fft.fft(window[h : h + rows].float() * turn, self.n)
                self.power[h : h + rows] += g_f.abs().square().cpu()
        self.gated += len(g) if gate is None else gate.float().square().mean(-1).sum(0).cpu()

    def moments(self) -> Moments:
        return Moments(self.power / self.windows, self.gated / self.windows, self.seqlen, self.windows)


def gather(sites: Sequence[ConvSite], filters: Mapping[str, Tensor], run: Callable[[], None]) -> dict[str, Moments]:
    """Moments of every site while `run` runs the dense model, which has its own convolutions back afterwards.

    run: feeds windows of one length to the model, in batches.  Memory does not grow with their number.
    """
    if two_sided := [site.name for site in sites if site.ahead]:
        raise ValueError(
            f"{two_sided[0]} looks both ways, and plans within a budget are found for causal filters only so far; "
            f"choose what to keep with --taps, --energy, --split or --low-pass"
        )
    recorders = {site.name: Recorder(filters[site.name], points(site.context)) for site in sites}
    before = swap.install(sites, recorders)
    try:
        with torch.no_grad():
            run()
    finally:
        swap.install(sites, before)
    if idle := [name for name, recorder in recorders.items() if not recorder.windows]:
        raise ValueError(f"no window reached {idle[0]}; run the model on at least one")
    return {name: recorder.moments() for name, recorder in recorders.items()}


@dataclass(frozen=True)
class Errors:
    """Power of a site's output error over the power of its output, both as gated."""

    error: float  # a causal site's with its negative lags cut, as it computes when it really generates
    ahead: float  # power that comes from negative lags of a causal site, over the same; 0 for one that looks both ways


def output_error(k: Tensor, kept: Filter, moments: Moments) -> float:
    """E |gate ((k - k') * g)|^2 over E |gate (k * g)|^2, by Parseval; k: (H, K), k' as `kept` has it."""
    return power(*difference(k, kept), moments) / max(power(k, 0, moments), TINY)


def errors(k: Tensor, plan: FilterPlan, moments: Moments, causal: bool, whole: float | None = None) -> Errors:
    """What a plan does to the output of a site with the filter k: (H, K).  whole: power(k, 0, moments), if known."""
    lost = ahead = 0.0
    for rows in chunks(k, moments):
        kept, part = plan.apply(k[rows]), moments.of(rows)
        lost += power(*difference(k[rows], kept.cut() if causal else kept), part)
        if causal and kept.ahead:
            ahead += power(kept.k[:, : kept.ahead], kept.ahead, part)
    whole = max(total(k, moments) if whole is None else whole, TINY)
    return Errors(lost / whole, ahead / whole)


def total(k: Tensor, moments: Moments) -> float:
    """Power of the whole output of a site, on the scale of `power`."""
    return sum(power(k[rows], 0, moments.of(rows)) for rows in chunks(k, moments))


def chunks(k: Tensor, moments: Moments) -> Iterator[slice]:
    """Channels that are worked on together."""
    step = max(1, CHUNK_BYTES // (48 * moments.power.shape[1]))
    yield from (slice(h, h + step) for h in range(0, len(k), step))


def difference(k: Tensor, kept: Filter) -> tuple[Tensor, int]:
    """k - k', and how many of its taps lie ahead."""
    lost = torch.zeros(len(k), kept.ahead + max(k.shape[-1], kept.k.shape[-1] - kept.ahead), dtype=torch.float64)
    lost[:, kept.ahead : kept.ahead + k.shape[-1]] = k
    lost[:, : kept.k.shape[-1]] -= kept.k
    return lost, kept.ahead


def power(k: Tensor, ahead: int, moments: Moments) -> float:
    """Power of gate (k * g), up to a factor that is the same for all filters of a site.  k: (H, any), lags from -ahead.

    Lag d acts at seqlen - |d| positions of a window, so its tap counts by the root of that share.
    """
    lags = torch.arange(-ahead, k.shape[-1] - ahead)
    felt = (1 - lags.abs() / moments.seqlen).clamp_min(0).sqrt()
    k_f = spectrum(k.double() * felt, moments.power.shape[1], ahead)
    by_channel = (k_f.abs().square() * moments.power).sum(-1)
    return float(by_channel @ moments.gate.double())


# --- candidates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """What could be kept of one site, and what that does."""

    plan: FilterPlan
    errors: Errors
    seconds: float


def candidates(
    k: Tensor, site: ConvSite, moments: Moments, seconds: Callable[[FilterPlan], float], allow_leak: bool = False
) -> list[Candidate]:
    """What is worth a thought at one site, dense first; each of the others is quicker than dense.

    Ladders of leading taps, of splits, and of masks alone where the site looks both ways or may leak.  Left out is what
    another beats clearly: no slower, and an error `CLEARLY` times smaller.  seconds: predicted time of a plan.
    """
    found = [Candidate(FilterPlan("dense"), Errors(0.0, 0.0), seconds(FilterPlan("dense")))]
    whole, dense = total(k, moments), found[0].seconds
    for ladder in ladders(k, site, allow_leak):
        for plan in ladder:
            if plan.density(k.shape[-1]) >= 1 or (cost := seconds(plan)) >= dense:
                continue
            error = errors(k, plan, moments, site.causal, whole)
            if error.error > LARGEST_ERROR:
                break  # and so it is further down
            if allow_leak or not site.causal or not plan.leaks or leak(k, plan, moments) <= AHEAD_LIMIT:
                found.append(Candidate(plan, error, cost))
    return [one for one in found if not any(beats(other, one) for other in found)]


def leak(k: Tensor, plan: FilterPlan, moments: Moments) -> float:
    """`Filter.leak` under a plan."""
    return max(plan.apply(k[rows]).leak() for rows in chunks(k, moments))


def beats(one: Candidate, other: Candidate) -> bool:
    better = CLEARLY * one.errors.error < other.errors.error and one.errors.ahead <= other.errors.ahead
    return better and one.seconds <= other.seconds


def ladders(k: Tensor, site: ConvSite, allow_leak: bool) -> list[list[FilterPlan]]:
    """Plans of one kind each, the most careful first."""
    length, n = k.shape[-1], points(site.context)
    made = [[FilterPlan("partial", taps) for taps in reversed(TAPS) if taps < length]]
    bands = list(dict.fromkeys(band(site, share) for share in SHARES))
    made += [[FilterPlan("split", taps, mask) for mask in bands] for taps in HEADS if taps < length]
    if allow_leak or not site.causal:
        combs = list(dict.fromkeys(BlockMask.comb(n, share) for share in SHARES))
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
