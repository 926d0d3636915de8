"""The fastest plan that keeps a promise: search on calibration windows, proof on windows the search did not see.

    moments     one pass of the dense model: what arrives at every site                  (sparsify.sensitivity)
    probes      candidates run one site at a time on a few windows: KL to the dense model
    choice      the quickest plan whose predicted losses add up to no more than a limit  (sparsify.budget)
    proof       its perplexity on held-out windows, paired with the dense model's, negative lags cut; its leak
    again       with another limit, until the measured increase and its standard error just fit

The proof is looked at once a step, `STEPS` times at most, so little is learnt from it; how often is in the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn

from sparsify import sensitivity, swap
from sparsify.budget import Assignment, Option, cheapest, front
from sparsify.plan import FilterPlan, Plan
from sparsify.sensitivity import Candidate
from sparsify.sites import Conv, ConvSite

from . import Logits, causality
from .data import Windows
from .quality import Versus, compare

STEPS = 6  # looks at the held-out windows
PROBE_WINDOWS = 8  # that a candidate is run on
PROBE_PASSES = 12  # passes over the calibration windows that all probes together may cost
FEWEST_PROBES = 2  # candidates a site that are run, whatever that costs
FIRST_SHARE = 0.7  # of the windows of one file are for calibration, the rest is held out
FEWEST_WINDOWS = 10  # that can be divided so
LEAK_GOAL = 1e-3  # of the logits' norm: what a plan made here may leak, see `causality.Leak.worst`
FIRST_AHEAD = 3.0  # times the goal: what one site's output may have from negative lags, until a leak was measured
LEAK_WINDOWS = 4
CLOSE = 1.15  # limits so near each other are not told apart
STRIDES = 4.0  # largest change of the limit in a step
TOKENS_A_BATCH = 1 << 14
DENSE = FilterPlan("dense")

Say = Callable[[str], None]


class Price(Protocol):
    """What plans are made for; `sparsify.price.Target` is one."""

    @property
    def name(self) -> str: ...

    def seconds(
        self, plan: FilterPlan, channels: int, taps: int, seqlen: int, *, spectra_bytes: int | None = None
    ) -> float: ...


@dataclass(frozen=True)
class Kept:
    """A price that is no time: channels times samples kept, in taps and bins.  For plans without a machine in mind."""

    name: str = "kept taps plus bins"

    def seconds(
        self, plan: FilterPlan, channels: int, taps: int, seqlen: int, *, spectra_bytes: int | None = None
    ) -> float:
        return channels * min(taps, seqlen) * plan.density(min(taps, seqlen))


@dataclass(frozen=True)
class Step:
    """A plan that was measured on the held-out windows."""

    limit: float  # on the sum of predicted losses, nats a token
    predicted: float  # relative increase of perplexity
    increase: float  # the same, measured with negative lags cut
    stderr: float
    kl: float  # measured, nats a token
    leak: float  # worst found, relative to the logits
    cost: float  # predicted, of all sites: seconds, or what the target counts
    density: float  # kept taps plus bins, mean over sites
    fits: bool


@dataclass(frozen=True)
class Planned:
    """A plan within a budget, and what stands behind it."""

    plan: Plan
    budget: float  # relative increase of perplexity
    target: str
    chosen: Step
    dense_cost: float  # the same, dense
    bound: float  # no choice among the candidates, within the same limit on predicted losses, costs less
    steps: tuple[Step, ...]
    sites: tuple[Mapping[str, Any], ...]
    points: tuple[tuple[float, float], ...]  # the front: (predicted gain, predicted increase)
    calibration_windows: int
    held_out_windows: int
    passes: float  # forward passes over the calibration windows that the planning took

    def to_dict(self) -> dict[str, Any]:
        data = asdict(replace(self, plan=Plan({}, self.plan.policy)))
        return {**data, "plan": self.plan.policy}


def divide(windows: Windows) -> tuple[Windows, Windows]:
    """Windows to calibrate on and windows held out: the first of a file and the last, with no token in common."""
    if len(windows) < FEWEST_WINDOWS:
        raise ValueError(
            f"a plan within a budget takes at least {FEWEST_WINDOWS} windows of {windows.context} tokens, some to plan "
            f"on and some to prove it, got {len(windows)}; pass a longer file or a shorter --context"
        )
    cut = int(FIRST_SHARE * len(windows))
    shared = -(-windows.context // windows.stride) - 1  # windows that may overlap the first held-out one
    if cut - shared < 1:
        raise ValueError(
            f"windows {windows.stride} tokens apart overlap too much to hold some out; use a longer stride"
        )
    return part(windows, slice(cut - shared)), part(windows, slice(cut, None))


def part(windows: Windows, rows: slice) -> Windows:
    """Some of the windows."""
    return replace(windows, ids=windows.ids[rows], scored_from=windows.scored_from[rows],
                   document=windows.document[rows], available=windows.available or len(windows))  # fmt: skip


def parse_budget(text: str) -> float:
    """A relative increase of perplexity, "0.1%" or "0.001"."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ValueError(f"a budget is an increase of perplexity between 0 and 100 %, as 0.1% or 0.001, got {text!r}")
    return value


@dataclass
class Runs:
    """A model under plans for some of its sites, dense elsewhere; counts the windows that it reads."""

    model: nn.Module
    sites: Sequence[ConvSite]
    filters: Mapping[str, Tensor]
    windows: int = 0
    dense_convs: dict[str, Conv] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dense_convs = swap.operators(self.filters, Plan.dense(self.filters))

    def under(self, picks: Mapping[str, FilterPlan], cut: bool = True) -> Logits:
        """Logits with these sites changed; with negative lags cut unless told.  Other variants may run in between."""
        changed = {name: plan for name, plan in picks.items() if plan.kind != "dense"}
        own = {name: self.filters[name] for name in changed}
        convs = self.dense_convs | (swap.operators(own, Plan(changed, "some"), cut) if own else {})
        run = swap.variant(self.model, self.sites, convs)

        def logits(ids: Tensor) -> Tensor:
            self.windows += len(ids)
            return run(ids)

        return logits


class Remembered:
    """Logits of one model that are computed once for every batch, as long as they fit in memory."""

    BYTES = 1 << 29

    def __init__(self, logits: Logits) -> None:
        self.logits, self.known, self.bytes = logits, dict[bytes, Tensor](), 0

    def __call__(self, ids: Tensor) -> Tensor:
        key = ids.numpy().tobytes()
        if key in self.known:
            return self.known[key]
        found = self.logits(ids)
        if self.bytes + found.nbytes <= self.BYTES:
            self.known[key] = found
            self.bytes += found.nbytes
        return found


def plan_within(
    model: nn.Module,
    sites: Sequence[ConvSite],
    filters: Mapping[str, Tensor],
    calibration: Windows,
    held_out: Windows,
    budget: float,
    target: Price,
    allow_leak: bool = False,
    source: Mapping[str, str | None] | None = None,
    progress: Say = lambda line: None,
) -> Planned:
    """The plan of the lowest predicted price whose measured increase of perplexity fits the budget.

    budget: relative increase, 0.001 for 0.1 %; it fits if mean plus one standard error do, with the negative lags of
    causal sites cut, on the held-out windows.  Causal sites leak at most LEAK_GOAL of the logits' norm, measured,
    unless `allow_leak`.  The model is left with the convolutions that it came with.
    Raises RuntimeError if nothing but the dense plan fits, or if nothing is cheaper than it.
    """
    if not 0 < budget < 1:
        raise ValueError(f"a budget is an increase of perplexity between 0 and 1, got {budget:g}; 0.001 is 0.1 %")
    if calibration.context != held_out.context:
        raise ValueError(
            f"calibration windows have {calibration.context} tokens and held-out ones {held_out.context}; "
            f"cut them alike"
        )
    if len(held_out) < 2:
        raise ValueError("one held-out window gives no standard error; pass at least 2")
    before = swap.install(sites, dict.fromkeys(filters))
    try:
        runs = Runs(model, sites, filters)
        some = candidates_of(runs, calibration, target, allow_leak, progress)
        kl = probe(runs, some, calibration, progress)
        return search(runs, some, kl, calibration, held_out, budget, target, allow_leak, source, progress)
    finally:
        swap.install(sites, before)


def batches(windows: Windows) -> int:
    """Windows in a batch."""
    return max(1, TOKENS_A_BATCH // windows.context)


def candidates_of(
    runs: Runs, calibration: Windows, target: Price, allow_leak: bool, progress: Say
) -> dict[str, list[Candidate]]:
    """What could be kept of every site, after one pass over the calibration windows."""
    progress(f"planning for {target.name}: reading {len(calibration)} windows of {calibration.context:,} tokens")

    def feed() -> None:
        for ids in calibration.ids.split(batches(calibration)):
            runs.windows += len(ids)
            runs.model(ids.to(next(runs.model.parameters()).device))

    moments = sensitivity.gather(runs.sites, runs.filters, feed)
    found, room = {}, swap.SPECTRA_BYTES // len(runs.sites)
    for site in runs.sites:
        k = runs.filters[site.name]

        def seconds(plan: FilterPlan, site: ConvSite = site, taps: int = k.shape[-1]) -> float:
            return target.seconds(plan, site.channels, taps, calibration.context, spectra_bytes=room)

        found[site.name] = sensitivity.candidates(k, site, moments[site.name], seconds, allow_leak)
        progress(f"{site.name}: {len(found[site.name]) - 1} candidates")
    if all(len(some) == 1 for some in found.values()):
        raise RuntimeError(
            f"no plan is cheaper than the dense one on {target.name} at {calibration.context:,} tokens; choose another "
            f"target (--target), or a longer context"
        )
    return found


def probe(
    runs: Runs, some: Mapping[str, Sequence[Candidate]], calibration: Windows, progress: Say
) -> dict[str, dict[FilterPlan, float]]:
    """Measured KL to the dense model of candidates, one site changed at a time: site -> plan -> nats a token."""
    allowance = PROBE_PASSES * len(calibration)
    windows = calibration.spread(min(PROBE_WINDOWS, max(1, allowance // (FEWEST_PROBES * len(some)))))
    count = max(FEWEST_PROBES, allowance // (len(windows) * len(some)))
    dense = Remembered(runs.under({}))
    found: dict[str, dict[FilterPlan, float]] = {}
    for name, few in some.items():
        chosen = sensitivity.to_probe(few, count)
        found[name] = {plan: versus(dense, runs.under({name: plan}), windows).kl for plan in chosen}
        progress(f"{name}: {len(chosen)} of {len(few) - 1} candidates run on {len(windows)} windows")
    return found


def versus(dense: Logits, sparse: Logits, windows: Windows) -> Versus:
    """A variant against the dense model."""
    found = compare({"dense": dense, "sparse": sparse}, windows, batches(windows))["sparse"].versus
    assert found is not None  # only the baseline has none
    return found


def options(
    some: Mapping[str, Sequence[Candidate]],
    kl: Mapping[str, Mapping[FilterPlan, float]],
    ahead: Mapping[str, float],
) -> dict[str, list[Option]]:
    """What `budget.cheapest` chooses among.

    ahead: site -> the most that its output may have from negative lags, as a norm relative to the whole.
    """
    found = {}
    for name, few in some.items():
        losses = sensitivity.predicted(few, kl[name])
        found[name] = [
            Option(loss, one.seconds, one.plan)
            for one, loss in zip(few, losses, strict=True)
            if one.errors.ahead <= ahead[name] ** 2
        ]
    return found


def search(
    runs: Runs, some: Mapping[str, Sequence[Candidate]], kl: Mapping[str, Mapping[FilterPlan, float]],
    calibration: Windows, held_out: Windows, budget: float, target: Price, allow_leak: bool,
    source: Mapping[str, str | None] | None, progress: Say,
) -> Planned:  # fmt: skip
    """The last stages: choose, prove, and again with another limit on the predicted losses."""
    causal = any(site.causal for site in runs.sites) and not allow_leak
    dense = Remembered(runs.under({}))
    ahead = dict.fromkeys(some, FIRST_AHEAD * LEAK_GOAL if causal else math.inf)
    limit, fitting, failing = math.log1p(budget), 0.0, math.inf
    steps: list[Step] = []
    best: tuple[Step, Assignment] | None = None
    tried: dict[Any, Step] = {}
    for _ in range(4 * STEPS):  # a limit that leads to a plan already measured, or to dense, is no step
        assignment = cheapest(options(some, kl, ahead), limit)
        picks = {name: option.plan for name, option in assignment.picks.items()}
        fits, room = True, STRIDES
        if any(plan != DENSE for plan in picks.values()):
            step = tried.get(key := tuple(picks.items()))
            if step is None:
                if len(steps) == STEPS:
                    break
                step = tried[key] = measure(runs, dense, picks, assignment, limit, held_out, budget, causal)
                steps.append(step)
                progress(told(len(steps), step, sum(few[0].seconds for few in some.values())))
            if causal and step.leak > LEAK_GOAL:
                ahead = tightened(ahead, some, picks, step.leak)
                continue
            fits, room = step.fits, budget / max(step.increase + step.stderr, budget / STRIDES)
            if fits and (best is None or step.cost < best[0].cost):
                best = step, assignment
        fitting, failing = (max(fitting, limit), failing) if fits else (fitting, min(failing, limit))
        limit = next_limit(limit, fitting, failing, room)
        if failing < fitting * CLOSE or not 1e-4 * budget < limit < 1:
            break
    if best is None:
        raise RuntimeError(nothing_fits(budget, steps, target))
    return summary(runs, some, kl, calibration, held_out, budget, target, source, best, tuple(steps), ahead)


def tightened(
    ahead: Mapping[str, float], some: Mapping[str, Sequence[Candidate]], picks: Mapping[str, FilterPlan], leak: float
) -> dict[str, float]:
    """Less is allowed to the sites that leak most, of a choice that leaks too much as a whole."""
    own = {name: next(one.errors.ahead for one in some[name] if one.plan == plan) for name, plan in picks.items()}
    most, less = max(own.values()), max(0.5, min(0.9, LEAK_GOAL / leak))
    blamed = {name: less * math.sqrt(power) for name, power in own.items() if power > most / 2}
    return {**ahead, **blamed}


def next_limit(limit: float, fitting: float, failing: float, room: float) -> float:
    """Where to look next.  room: the budget over what was measured."""
    if fitting and math.isfinite(failing):
        return math.sqrt(fitting * failing)
    if math.isfinite(failing):
        return limit * min(0.8, max(1 / STRIDES**2, room))
    return limit * max(CLOSE, room)


def measure(
    runs: Runs, dense: Logits, picks: Mapping[str, FilterPlan], assignment: Assignment, limit: float,
    held_out: Windows, budget: float, causal: bool,
) -> Step:  # fmt: skip
    """What a choice does on the held-out windows."""
    found = versus(dense, runs.under(picks), held_out)
    leak = 0.0
    if causal and any(plan.leaks for plan in picks.values()):
        leak = causality.leak(runs.under(picks, cut=False), held_out, LEAK_WINDOWS).worst
    assert found.perplexity_ratio_stderr is not None  # `plan_within` asks for two windows
    increase, stderr = found.perplexity_ratio - 1, found.perplexity_ratio_stderr
    density = [plan.density(runs.filters[name].shape[-1]) for name, plan in picks.items()]
    fits = increase + stderr <= budget and not (causal and leak > LEAK_GOAL)
    mean = sum(density) / len(density)
    predicted = math.expm1(assignment.loss)
    return Step(limit, predicted, increase, stderr, found.kl, leak, assignment.seconds, mean, fits)


def told(number: int, step: Step, dense_cost: float) -> str:
    """A step in one line."""
    return (
        f"step {number}: predicted {dense_cost / step.cost:.2f}x at {step.predicted:+.3%}; "
        f"measured {step.increase:+.3%} +- {step.stderr:.3%}, leak {step.leak:.1e}: "
        f"{'fits' if step.fits else 'does not fit'}"
    )


def nothing_fits(budget: float, steps: Sequence[Step], target: Price) -> str:
    """Why there is no plan, and what budget has one."""
    if not steps:
        return (
            f"a budget of {budget:.3%} is too small for anything but the dense plan: nothing that is cheaper on "
            f"{target.name} is predicted to fit; allow more"
        )
    honest = [step for step in steps if step.leak <= LEAK_GOAL]
    if not honest:
        return (
            f"every plan that was tried for a budget of {budget:.3%} moves logits by more than {LEAK_GOAL:g} when the "
            f"future changes; allow a larger loss, or say --allow-leak"
        )
    least = min(honest, key=lambda step: step.increase + step.stderr)
    could = least.increase + least.stderr
    return (
        f"no plan but the dense one fits a budget of {budget:.3%}: the smallest increase measured is "
        f"{least.increase:+.3%} with a standard error of {least.stderr:.3%}, so {could:.3%} can be met; more held-out "
        f"windows make the error smaller"
    )


def summary(
    runs: Runs, some: Mapping[str, Sequence[Candidate]], kl: Mapping[str, Mapping[FilterPlan, float]],
    calibration: Windows, held_out: Windows, budget: float, target: Price, source: Mapping[str, str | None] | None,
    best: tuple[Step, Assignment], steps: tuple[Step, ...], ahead: Mapping[str, float],
) -> Planned:  # fmt: skip
    """What was found, with what stands behind it."""
    step, assignment = best
    dense = sum(few[0].seconds for few in some.values())
    rows = []
    for name, option in assignment.picks.items():
        one = next(one for one in some[name] if one.plan == option.plan)
        rows.append(
            {
                "name": name,
                "plan": str(option.plan),
                "error": one.errors.error,
                "ahead": one.errors.ahead,
                "loss": option.loss,
                "probed": option.plan in kl[name],
                "cost": option.seconds,
                "dense_cost": some[name][0].seconds,
                "candidates": len(some[name]) - 1,
            }
        )
    plan = Plan({row: option.plan for row, option in assignment.picks.items()}, policy_name(budget), source or {})
    points = tuple((dense / found.seconds, math.expm1(found.loss)) for found in front(options(some, kl, ahead)))
    return Planned(
        plan=plan, budget=budget, target=target.name, chosen=step, dense_cost=dense, bound=assignment.bound,
        steps=steps, sites=tuple(rows), points=points, calibration_windows=len(calibration),
        held_out_windows=len(held_out), passes=runs.windows / len(calibration),
    )  # fmt: skip


def policy_name(budget: float) -> str:
    """As one would type it."""
    return f"max-ppl-increase {100 * budget:g}%"
