"""Kept coefficients that do better than a filter's own: the same taps and bins, other numbers in them.

What a plan keeps of a filter is linear in its coefficients v: taps near lag 0, and the waves of the kept bins.  The
power of the output error is a quadratic form of k - A v, known from the second moments of what arrives
(`sensitivity.Moments`), so the best coefficients solve linear equations, channel by channel:

    A' G A v = A' G k,     G = W T W + FLOOR

T is the Toeplitz matrix of the input's autocorrelation, its diagonal 1; W the rooted share of a window in which a lag
is felt.  FLOOR stands for a little white noise that nobody measured: where nothing arrives, moments say nothing, and
the filter itself is aimed at.  Of a causal site the error is that of the lags from 0 on, since the others are cut when
it generates; the power that comes from negative lags is added with a weight, which grows until it is as little as is
asked for.

Solved by conjugate gradients from the filter's own coefficients: every step does better than those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sparsify.filters.filter import AnyFilter, Filter, Taps, as_filter, in_memory
from sparsify.filters.monarch import roots, wrap
from sparsify.plan import FilterPlan, Plan
from sparsify.plan.coefficients import Coefficients
from sparsify.sites import ConvSite

from . import sensitivity
from .sensitivity import CHUNK_BYTES, TINY, Moments

FLOOR = 1e-2  # of the input's power
CLOSE = 1e-2  # residual, relative to the first, at which the equations count as solved; mean square over channels
ITERATIONS = 200
HEAVIER = 4.0, 64.0  # times the weight of negative lags, at least and at most, where they carry more than asked
WEIGHTS = 8  # weights tried before the waves are left out instead
ROUND_OFF = 1e-6  # norm of negative lags that float32 coefficients leave


@dataclass(frozen=True)
class Equations:
    """Those of some channels, for the lags -n .. n - 1 of a spectrum of n points.

    Lags are n complex numbers: the real part of entry j is lag j, its imaginary part lag j - n.  So a filter is one
    inverse transform of its spectrum.  v: (H, taps + 2 bins) float64, bins as real and imaginary parts.
    """

    power: Tensor  # (H, n) of the input, float64, mean 1
    felt: Tensor  # (n,) complex128: real part for the lags from 0 on, imaginary part for the negative ones
    taps: int
    lookahead: int  # of these taps at negative lags
    bins: Tensor | None  # (count,) int64, where the kept bins are
    weight: Tensor | None  # (H, 1) of negative lags; None for sites that look both ways

    @cached_property
    def turn(self) -> Tensor:
        n = self.power.shape[1]
        return roots(4 * n, torch.arange(n))

    def lags(self, v: Tensor) -> Tensor:
        """A v: (H, n) complex128."""
        z = torch.zeros(self.power.shape, dtype=torch.complex128)
        if self.bins is not None:
            z[:, self.bins] = as_complex(v[:, self.taps :])
            z = torch.fft.ifft(z, norm="ortho") * self.turn.conj()
        return z + wrap(v[:, : self.taps], z.shape[1], self.lookahead)

    def coefficients(self, z: Tensor) -> Tensor:
        """A' z."""
        parts = [z.imag[:, z.shape[1] - self.lookahead :], z.real[:, : self.taps - self.lookahead]]
        if self.bins is not None:
            parts.append(as_real(torch.fft.fft(z * self.turn, norm="ortho")[:, self.bins]))
        return torch.cat(parts, dim=1)

    def weighed(self, z: Tensor) -> Tensor:
        """G z; half the gradient of the error's power with respect to the lags z."""
        if self.weight is None:
            return self.seen(z)
        past, future = self.seen(z.real + 0j), self.seen(1j * z.imag)
        return torch.complex(past.real, self.weight * future.imag)

    def seen(self, z: Tensor) -> Tensor:
        arriving = torch.fft.fft(each(z, self.felt) * self.turn) * self.power
        return each(torch.fft.ifft(arriving) * self.turn.conj(), self.felt) + FLOOR * z

    def solve(self, v: Tensor, z: Tensor) -> Tensor:
        """Coefficients that come closest to the lags z.  v: those to start from."""
        residual = self.coefficients(self.weighed(z - self.lags(v)))
        step, norm = residual, residual.square().sum(1, keepdim=True)
        first = norm.clamp_min(TINY)
        for _ in range(ITERATIONS):
            if (norm / first).mean() <= CLOSE**2:
                break
            changed = self.coefficients(self.weighed(self.lags(step)))
            along = norm / (step * changed).sum(1, keepdim=True).clamp_min(TINY)
            v, residual = v + along * step, residual - along * changed
            norm, before = residual.square().sum(1, keepdim=True), norm
            step = residual + norm / before.clamp_min(TINY) * step
        return v


def as_real(bins: Tensor) -> Tensor:
    """(H, count) complex -> (H, 2 count), real and imaginary parts in turn."""
    return torch.view_as_real(bins).flatten(1)


def as_complex(v: Tensor) -> Tensor:
    """The inverse of `as_real`."""
    return torch.view_as_complex(v.unflatten(1, (-1, 2)).contiguous())


def each(z: Tensor, factors: Tensor) -> Tensor:
    """Real and imaginary parts times those of the factors."""
    return torch.complex(z.real * factors.real, z.imag * factors.imag)


def felt(n: int, seqlen: int) -> Tensor:
    """Root of the share of a window of `seqlen` samples in which a lag is felt, on the lags of `Equations`."""
    lags = torch.arange(n, dtype=torch.float64)
    share = torch.complex(1 - lags / seqlen, 1 - (n - lags) / seqlen)
    return torch.complex(share.real.clamp_min(0).sqrt(), share.imag.clamp_min(0).sqrt())


@dataclass
class Fit:
    """Coefficients of one filter on their way to better ones."""

    k: Filter
    plan: FilterPlan
    moments: Moments
    causal: bool
    taps: Tensor | None  # those so far: (H, taps) float32
    bins: Tensor | None  # (H, count) complex64

    @classmethod
    def start(cls, k: Filter, plan: FilterPlan, moments: Moments, causal: bool) -> Fit:
        """From the filter's own."""
        taps, bins = plan.own(k)
        return cls(k, plan, moments, causal, None if taps is None else taps.float().clone(),
                   None if bins is None else bins.to(torch.complex64))  # fmt: skip

    @property
    def found(self) -> FilterPlan:
        """The plan with the coefficients so far."""
        return replace(self.plan, values=Coefficients(self.taps, self.bins))

    def excess(self, future: float, leak: float) -> Tensor:
        """Power of negative lags, by channel, over what is asked: (H,) float64."""
        if not self.causal or not self.plan.leaks:
            return torch.zeros(self.k.channels, dtype=torch.float64)
        # where the site as a whole leaks too much, one more weight for all channels costs least
        whole = sensitivity.errors(self.k, self.found, self.moments, self.causal).future
        own = self.found.apply(self.k).leaks()
        return (own / max(leak, ROUND_OFF)).square().clamp_min(whole / max(future, ROUND_OFF**2))

    def silence(self, rows: Tensor) -> None:
        """Leave the waves of some channels out, and fit their taps alone."""
        assert self.bins is not None
        self.bins[rows] = 0
        if self.taps is not None:
            alone = replace(self, plan=FilterPlan("partial", self.plan.taps), bins=None)  # the same tensor of taps
            alone.improve(rows, torch.ones(self.k.channels))

    def improve(self, rows: Tensor, weight: Tensor) -> None:
        """Solve the equations of some channels, from where they are.  rows: (some,) int64.  weight: (H,)."""
        n = self.moments.power.shape[1]
        own, before = self.felt_taps(n)
        where = None if self.plan.mask is None else self.plan.mask.frequencies().flatten()
        for some in rows.split(max(1, CHUNK_BYTES // (48 * n))):
            power = self.moments.power[some].double()
            power /= power.mean(1, keepdim=True).clamp_min(TINY)
            heavy = weight[some, None] if self.causal else None
            count = own.stop - own.start
            equations = Equations(power, felt(n, self.moments.seqlen), count, before, where, heavy)
            parts = [] if self.taps is None else [self.taps[some, own].double()]
            parts += [] if self.bins is None else [as_real(self.bins[some].to(torch.complex128) / n**0.5)]
            v = equations.solve(torch.cat(parts, dim=1), wrap(self.k.k[some], n, self.k.lookahead))
            if self.taps is not None:
                self.taps[some, own] = v[:, :count].float()
            if self.bins is not None:
                self.bins[some] = (as_complex(v[:, count:]) * n**0.5).to(torch.complex64)

    def felt_taps(self, n: int) -> tuple[slice, int]:
        """Those of the kept taps that lie within -n .. n - 1, and how many of them at negative lags."""
        if self.taps is None:
            return slice(0, 0), 0
        before = self.k.lookahead - self.plan.near(self.k.taps, self.k.lookahead).start
        return slice(max(0, before - n), min(self.taps.shape[1], before + n)), min(before, n)


def refit(
    k: Taps,
    plan: FilterPlan,
    moments: Moments,
    causal: bool,
    future: float | None = None,
    leak: float | None = None,
) -> FilterPlan:
    """The plan with the coefficients that make the least output error; as it is where it keeps everything.

    future, leak: the most that a causal site may have of `Errors.future` and of `Filter.leak`; what the plan has with
    the filter's own coefficients unless given.  Both are kept to, whatever that does to the error.
    """
    if plan.kind == "dense":
        return plan
    n = moments.power.shape[1]
    if plan.mask is not None and plan.mask.n != n:
        raise ValueError(f"the plan's mask is on {plan.mask.n} points and the moments on {n}; make both on as many")
    k, plan = in_memory(as_filter(k)), replace(plan, values=None)
    future = sensitivity.errors(k, plan, moments, causal).future if future is None else future
    leak = plan.apply(k).leak() if leak is None else leak
    fit, weight = Fit.start(k, plan, moments, causal), torch.ones(k.channels, dtype=torch.float64)
    rows = torch.arange(k.channels)
    for _ in range(WEIGHTS):
        fit.improve(rows, weight)
        excess = fit.excess(future, leak)
        rows = (excess > 1).nonzero().flatten()
        if not len(rows):
            return fit.found
        weight[rows] *= excess[rows].clamp(*HEAVIER)
    fit.silence(rows)
    return fit.found


def refitted(
    plan: Plan,
    filters: Mapping[str, AnyFilter],
    moments: Mapping[str, Moments],
    sites: Sequence[ConvSite],
    future: float | Mapping[str, float] | None = None,
    leak: float | None = None,
    judge: Callable[[Plan], float] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Plan:
    """The plan with its sites re-fitted, one after the other.

    filters: of every site.  moments: of the sites that do not keep everything.  future, leak: see `refit`;
    future one for all sites, or one a site.  judge: what a plan loses, measured; a site is re-fitted only if the whole
    plan then loses less.  Moments know neither what errors of several channels do together nor the rare sample on which
    all hangs, so a smaller output error is no proof.
    """
    plan.check([site.name for site in sites])
    loss = math.inf if judge is None else judge(plan)
    for site in sites:
        kept, k = plan.filters[site.name], filters[site.name]
        if kept.kind == "dense":
            continue
        own = future.get(site.name) if isinstance(future, Mapping) else future
        better = refit(k, kept, moments[site.name], site.causal, own, leak)
        was, now = (sensitivity.errors(k, some, moments[site.name], site.causal).error for some in (kept, better))
        message = f"{site.name}: {kept}, output error {was:.1e} with its own coefficients, {now:.1e} re-fitted"
        trial = replace(plan, filters={**plan.filters, site.name: better})
        if judge is not None:
            found = judge(trial)
            message += f"; the plan loses {loss:.1e}, {found:.1e} re-fitted"
            if not found < loss:
                progress(f"{message}: left as it is")
                continue
            loss = found
        plan = trial
        progress(message)
    return plan
