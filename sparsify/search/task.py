"""What could be kept of every convolution of a model, what it costs on a target, and what it loses: to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from sparsify.cpu import memory
from sparsify.plan import FilterPlan
from sparsify.report.schema import COUNTED
from sparsify.sites import ConvSite

from . import sensitivity
from .knapsack import Assignment, Option, cheapest
from .measuring import Measurements, Text
from .sensitivity import Candidate

PROBE_WINDOWS = 8  # that a candidate is run on
FULL = 32  # predicted tokens of a window; where masks leave fewer, more windows are run in its place
PROBE_PASSES = 12  # passes over the calibration windows that all probes of single sites may cost, or those of all
FEWEST_PROBES = 2  # candidates a site that are run, whatever that costs
MOST_ALIKE = 24  # plans that are run on all sites alike
ALL = ""  # names no site
LEAK_GOAL = 1e-3  # of the logits' norm: what a plan made here may leak, see `causality.Leak.worst`
FIRST_AHEAD = 3.0  # times the goal: what one site's output may have from negative lags, until a leak was measured


class NothingFitsError(RuntimeError):
    """No plan keeps to what was asked for, or none gains anything."""


class Price(Protocol):
    """What plans are made for; `sparsify.search.latency.Target` is one."""

    @property
    def name(self) -> str: ...

    def seconds(
        self, plan: FilterPlan, channels: int, taps: int, seqlen: int, *, spectra_bytes: int | None = None,
        lookahead: int = 0,
    ) -> float: ...  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """A price that is no time: channels times samples kept, in taps and bins.  For plans without a machine in mind."""

    name: str = COUNTED

    def seconds(
        self, plan: FilterPlan, channels: int, taps: int, seqlen: int, *, spectra_bytes: int | None = None,
        lookahead: int = 0,
    ) -> float:  # fmt: skip
        before = min(lookahead, seqlen - 1)  # of taps that windows feel
        felt = before + min(taps - lookahead, seqlen)
        return channels * felt * plan.density(felt, before)


@dataclass(frozen=True)
class Task:
    """What plans are found on and for, and what they are measured on."""

    calibration: Text
    held_out: Text
    target: Price
    allow_leak: bool = False

    def __post_init__(self) -> None:
        if self.calibration.context != self.held_out.context:
            raise ValueError(
                f"calibration windows have {self.calibration.context} tokens and held-out ones "
                f"{self.held_out.context}; cut them alike"
            )
        if len(self.held_out) < 2:
            raise ValueError("one held-out window gives no standard error; pass at least 2")


Candidates = Mapping[str, Sequence[Candidate]]
Measured = Mapping[str, Mapping[FilterPlan, float]]  # site -> plan -> KL, nats a token; ALL -> that of all sites alike


def prepared(runs: Measurements, task: Task) -> Measurements:
    """The same with the moments of the calibration windows."""
    count, context = len(task.calibration), task.calibration.context
    runs.say(f"planning for {task.target.name}: reading {count} windows of {context:,} tokens")
    with runs.stage("reading", count):
        runs.read(task.calibration)
    return runs


def bounded(runs: Measurements, task: Task) -> bool:
    """Whether the future may show next to nothing in the predictions."""
    return any(site.causal for site in runs.sites) and not task.allow_leak


def candidates_of(runs: Measurements, task: Task) -> dict[str, list[Candidate]]:
    """What could be kept of every site, by the moments."""
    found, future = {}, most_ahead(runs, task)
    for site in runs.sites:
        k, moments = runs.filters[site.name], runs.moments[site.name]
        found[site.name] = sensitivity.candidates(k, site, moments, partial(seconds, runs, task, site), future**2)
        runs.say(f"{site.name}: {len(found[site.name]) - 1} candidates")
    if all(len(some) == 1 for some in found.values()):
        raise NothingFitsError(
            f"no plan is cheaper than the dense one on {task.target.name} at {task.calibration.context:,} tokens; "
            f"choose another target (--target), or a longer context"
        )
    return found


def seconds(runs: Measurements, task: Task, site: ConvSite, plan: FilterPlan) -> float:
    """Predicted price of one site under a plan."""
    k, each = runs.filters[site.name], memory.budget() // len(runs.sites)
    context = task.calibration.context
    return task.target.seconds(plan, site.channels, k.taps, context, spectra_bytes=each, lookahead=k.lookahead)


def most_ahead(runs: Measurements, task: Task) -> float:
    """What a site's output may have from negative lags at first, as a norm relative to the whole."""
    return FIRST_AHEAD * LEAK_GOAL if bounded(runs, task) else math.inf


def probe(runs: Measurements, some: Candidates, calibration: Text) -> dict[str, dict[FilterPlan, float]]:
    """Measured KL to the dense model of candidates, one site changed at a time: site -> plan -> nats a token."""
    windows = probe_windows(calibration, len(some))
    most = PROBE_PASSES * len(calibration) // len(windows)  # plans that all the probes of sites may be
    count = max(FEWEST_PROBES, most // len(some))
    dense = runs.remembered(runs.under({}))
    chosen = {name: sensitivity.to_probe(few, count) for name, few in some.items()}
    if len(some) > 1:
        chosen[ALL] = sensitivity.to_probe(alike(some), min(MOST_ALIKE, most))
    found: dict[str, dict[FilterPlan, float]] = {}
    with runs.stage("candidates", len(windows) * sum(1 + len(plans) for plans in chosen.values())):
        for name, plans in chosen.items():
            sites = [name] if name else list(some)
            found[name] = {plan: runs.versus(dense, dict.fromkeys(sites, plan), windows).kl for plan in plans}
            how = f"{name}: {len(plans)} of {len(some[name]) - 1}" if name else f"all sites alike: {len(plans)}"
            runs.say(f"{how} candidates run on {len(windows)} windows")
    return found


def probe_windows(calibration: Text, sites: int) -> Text:
    """Those that candidates are run on."""
    most = max(1, PROBE_PASSES * len(calibration) // (FEWEST_PROBES * sites))
    return calibration.spread(min(enough(calibration, PROBE_WINDOWS), most))


def enough(text: Text, count: int) -> int:
    """Windows that predict as many tokens as `count` full ones."""
    return max(count, count * FULL * len(text) // text.n_tokens)


def alike(some: Candidates) -> list[Candidate]:
    """What every site could keep; its errors and seconds are those of the first."""
    first, *others = some.values()
    plans = set.intersection(*({one.plan for one in few} for few in others)) if others else set()
    return [one for one in first if one.plan in plans]


def options(some: Candidates, kl: Measured, future: Mapping[str, float]) -> dict[str, list[Option]]:
    """What `budget.cheapest` chooses among.

    future: site -> the most that its output may have from negative lags, as a norm relative to the whole.
    """
    found = {}
    for name, few in some.items():
        losses = sensitivity.predicted(few, kl[name])
        found[name] = [
            Option(loss, one.seconds, one.plan)
            for one, loss in zip(few, losses, strict=True)
            if one.errors.future <= future[name] ** 2
        ]
    return found


def quickest(some: Candidates, kl: Measured, future: Mapping[str, float], limit: float) -> Assignment:
    """The quickest choice whose losses fit a limit: the knapsack's, or one that was run on all sites alike."""
    offered = options(some, kl, future)
    best = cheapest(offered, limit)
    for plan, loss in kl.get(ALL, {}).items():
        same = {name: next((o for o in few if o.plan == plan), None) for name, few in offered.items()}
        picks = {name: replace(o, loss=loss / len(same)) for name, o in same.items() if o is not None}
        found = Assignment(picks, best.bound)
        if loss <= limit and len(picks) == len(same) and found.seconds < best.seconds:
            best = replace(found, bound=min(best.bound, found.seconds))
    return best
