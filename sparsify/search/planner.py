"""The fastest plan that keeps a promise: search on calibration windows, proof on windows the search did not see.

    moments     one pass of the dense model: what arrives at every site                  (`sensitivity`)
    probes      candidates run on a few windows, one site at a time and all sites alike: KL to the dense model
    choice      the quickest plan whose predicted losses add up to no more than a limit  (`knapsack`), or the
                same for all sites where that is quicker still: losses do not add up where sites make up for each other
    proof       its perplexity on held-out windows, paired with the dense model's, negative lags cut; its leak
    again       with another limit, until the measured increase and its standard error just fit
    re-fit      on request: other numbers for what the plan keeps, where they lose less     (`refit`)

Of a model that fills in masked tokens, perplexity is the pseudo-perplexity of those, and there is nothing to cut and no
leak: its filters look both ways, and any mask is admissible (`sparsify.evals.texts`).

The proof is looked at once a step, `STEPS` times at most and once for a re-fit, so little is learnt from it; how often
is in the report.

Perplexity may stay where it is by luck, or because a blurred model is less sure where it was wrong, while predictions
move.  So the limit goes no further than KL_TIMES the budget, whatever perplexity says: the losses that it bounds are
KLs to the dense model, and that is what the perplexity of a model whose probabilities are right rises by.

Every measurement can be kept in a journal; the search itself is quick, and is run again from the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sparsify.cpu.linear import BFLOAT16, PAYS_AT
from sparsify.plan import FilterPlan, Plan
from sparsify.report.schema import PlannedSite, Search, Step, TriedPlan

from .knapsack import Assignment, Option, front
from .latency import Target
from .measuring import Linears, Measurements, Picks, Run, Text, share_kept
from .refit import refitted
from .sensitivity import Candidate, Errors
from .task import (  # fmt: skip
    LEAK_GOAL,
    Candidates,
    Measured,
    NothingFitsError,
    Price,
    Task,
    bounded,
    candidates_of,
    enough,
    most_ahead,
    options,
    prepared,
    probe,
    probe_windows,
    quickest,
    seconds,
)

STEPS = 6  # looks at the held-out windows
JUDGED_WINDOWS = 32  # that a re-fit is judged on
FIRST_SHARE = 0.7  # of the windows of one file are for calibration, the rest is held out
FEWEST_WINDOWS = 10  # that can be divided so
KL_TIMES = 2.0  # the most that predicted losses may add up to, over the budget
CLOSE = 1.15  # limits so near each other are not told apart
LINEARS_SHARE = 0.5  # of the budget that linear layers may take
STRIDES = 4.0  # largest change of the limit in a step
DENSE = FilterPlan("dense")
AnyText = TypeVar("AnyText", bound=Text)


@dataclass(frozen=True, kw_only=True)
class BudgetTask(Task):
    """What a plan is to keep to."""

    budget: float  # relative increase of perplexity
    refit: bool = False
    linears: Linears = field(default_factory=dict)  # what the layers multiply in, whatever the convolutions do
    lost: float = 0.0  # by that, measured on calibration windows, nats a token
    source: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.budget < 1:
            raise ValueError(
                f"a budget is an increase of perplexity between 0 and 1, got {self.budget:g}; 0.001 is 0.1 %"
            )

    def plan(self, picks: Picks) -> Plan:
        """The plan that a choice stands for."""
        return Plan(dict(picks), f"max-ppl-increase {100 * self.budget:g}%", self.source, dict(self.linears))


@dataclass(frozen=True)
class Found:
    """A plan that was measured, and the choice behind it."""

    step: TriedPlan
    plan: Plan
    assignment: Assignment


@dataclass(frozen=True)
class Planned:
    """A plan within a budget, and what stands behind it."""

    plan: Plan
    search: Search


def divide(windows: AnyText) -> tuple[AnyText, AnyText]:
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
    return windows.part(slice(cut - shared)), windows.part(slice(cut, None))


def parse_budget(text: str) -> float:
    """A relative increase of perplexity, "0.1%" or "0.001"."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ValueError(f"a budget is an increase of perplexity between 0 and 100 %, as 0.1% or 0.001, got {text!r}")
    return value


def plan_within(
    runs: Measurements,
    calibration: Text,
    held_out: Text,
    budget: float,
    target: Price,
    allow_leak: bool = False,
    refit: bool = False,
    source: Mapping[str, str | None] | None = None,
    linears: Linears | None = None,
) -> Planned:
    """The plan of the lowest predicted price whose measured increase of perplexity fits the budget.

    budget: relative increase, 0.001 for 0.1 %; it fits if mean plus one standard error do, with the negative lags of
    causal sites cut, on the held-out windows.  Causal sites leak at most LEAK_GOAL of the logits' norm, measured,
    unless `allow_leak`.  refit: see `mended`.
    linears: what linear layers multiply in; None decides it layer by layer, where the target is this CPU.
    runs: who measures.  Where those measurements are kept, another call makes only those that are lacking, and finds
    bit for bit what one call would have found, where the machine rounds alike; another budget or target can use them.
    Raises RuntimeError if nothing but the dense plan fits, or if nothing is cheaper than it.
    """
    task = BudgetTask(calibration, held_out, target, allow_leak, budget=budget, refit=refit, source=source or {})
    with runs.working():
        own = with_linears(runs, task, linears)
        try:
            some = candidates_of(prepared(runs, own), own)
            kl = probe(runs, some, calibration)
        except NothingFitsError:
            if not own.linears:
                raise
            return linears_alone(runs, own)
        try:
            return search(runs, own, some, kl)
        except NothingFitsError:
            if not own.linears:
                raise
        with suppress(NothingFitsError):
            return linears_alone(runs, own)
        return search(runs, task if linears is None else own, some, kl)


def with_linears(runs: Measurements, task: BudgetTask, given: Linears | None) -> BudgetTask:
    """The task with what its linear layers multiply in.

    Where nothing is given those layers take bfloat16 that lose least for the multiplications they make, as many as fit
    into a share of the budget on some calibration windows; the steps then prove them together with the masks.
    """
    layers = runs.layers if given is None and on_this_cpu(task.target) else {}
    if task.calibration.context < PAYS_AT or not (layers or given):
        return task
    windows = probe_windows(task.calibration, max(1, len(layers)))
    dense, most = runs.remembered(runs.under({})), LINEARS_SHARE * task.budget

    def loss(linears: Linears) -> float:
        return runs.versus(dense, {}, windows, linears).kl

    if given:
        return replace(task, linears=given, lost=loss(given))
    with runs.stage("linear layers", len(windows) * (2 + len(layers))):
        alone = {name: loss({name: BFLOAT16}) for name in layers}
        by_worth = sorted(layers, key=lambda name: (alone[name] / layers[name], name))
        chosen, lost = [name for i, name in enumerate(by_worth) if fsum_of(alone, by_worth[: i + 1]) <= most], 0.0
        while chosen and (lost := loss(dict.fromkeys(sorted(chosen), BFLOAT16))) > most:
            del chosen[-1 - len(chosen) // 4 :]  # together they lose more than one by one
    runs.say(f"linear layers: {len(chosen)} of {len(layers)} in bfloat16, at {lost:.1e} nats a token")
    return replace(task, linears=dict.fromkeys(sorted(chosen), BFLOAT16), lost=lost) if chosen else task


def fsum_of(losses: Mapping[str, float], names: Iterable[str]) -> float:
    return math.fsum(losses[name] for name in names)


def linears_alone(runs: Measurements, task: BudgetTask) -> Planned:
    """The plan that keeps every filter, with the linear layers of the task; NothingFitsError if that does not fit."""
    some = {site.name: [Candidate(DENSE, Errors(0.0, 0.0), seconds(runs, task, site, DENSE))] for site in runs.sites}
    assignment = Assignment({name: Option(0.0, few[0].seconds, DENSE) for name, few in some.items()})
    plan = task.plan(dict.fromkeys(some, DENSE))
    step = measure(runs, task, runs.remembered(runs.under({})), plan, assignment, 0.0)
    runs.say(f"linear layers alone: {outcome(step)}: {'fits' if step.fits else 'does not fit'}")
    if not step.fits:
        raise NothingFitsError(nothing_fits(task, (step,), {}))
    return summary(
        runs, task, some, {name: {} for name in some}, Found(step, plan, assignment), (step,),
        dict.fromkeys(some, math.inf),
    )  # fmt: skip


def on_this_cpu(target: Price) -> bool:
    return isinstance(target, Target) and target.card is None


def search(runs: Measurements, task: BudgetTask, some: Candidates, kl: Measured) -> Planned:
    """The last stages: choose, prove, and again with another limit on the predicted losses."""
    dense, causal = runs.remembered(runs.under({})), bounded(runs, task)
    future = dict.fromkeys(some, most_ahead(runs, task))
    limit, fitting, failing = max(math.log1p(task.budget) - task.lost, 0.1 * task.budget), 0.0, math.inf
    most = min(1.0, KL_TIMES * limit)
    steps: list[TriedPlan] = []
    best: Found | None = None
    tried: dict[Any, Found] = {}
    for _ in range(4 * STEPS):  # a limit that leads to a plan already measured, or to dense, is no step
        assignment = quickest(some, kl, future, limit)
        picks = {name: option.plan for name, option in assignment.picks.items()}
        fits, headroom = True, STRIDES
        if any(plan != DENSE for plan in picks.values()):
            found = tried.get(key := tuple(picks.items()))
            if found is None:
                if len(steps) == STEPS:
                    break
                plan = task.plan(picks)
                with runs.stage(f"step {len(steps) + 1}", 2 * len(task.held_out)):
                    step = measure(runs, task, dense, plan, assignment, limit)
                found = tried[key] = Found(step, plan, assignment)
                steps.append(step)
                runs.say(message(len(steps), step, sum(few[0].seconds for few in some.values())))
            step = found.step
            if causal and step.leak > LEAK_GOAL:
                future = tightened(future, some, picks, step.leak)
                continue
            fits, headroom = step.fits, task.budget / max(step.increase + step.stderr, task.budget / STRIDES)
            if fits and (best is None or step.cost < best.step.cost):
                best = found
        fitting, failing = (max(fitting, limit), failing) if fits else (fitting, min(failing, limit))
        if failing < fitting * CLOSE or (fits and limit >= most):
            break
        limit = min(most, next_limit(limit, fitting, failing, headroom))
        if limit <= 1e-4 * task.budget:
            break
    if best is None:
        raise NothingFitsError(nothing_fits(task, steps, options(some, kl, future)))
    if task.refit and (better := mended(runs, task, dense, best)):
        steps.append(better.step)
        best = better
    return summary(runs, task, some, kl, best, tuple(steps), future)


def mended(runs: Measurements, task: BudgetTask, dense: Run, best: Found) -> Found | None:
    """The plan found, re-fitted, if that loses less; what it costs stays the same.

    Sites are re-fitted one after the other, each only if the whole plan then is nearer to the dense model on some
    calibration windows: second moments do not know what errors of several channels do together.  The outcome is
    measured on the held-out windows as every step is, and taken if it fits and is nearer to the dense model there.
    """
    windows = task.calibration.spread(min(enough(task.calibration, JUDGED_WINDOWS), len(task.calibration)))

    def judge(plan: Plan) -> float:
        return runs.versus(dense, plan.filters, windows, plan.linears).kl

    plan = refitted(best.plan, runs.filters, runs.moments, runs.sites, judge=judge, progress=runs.say)
    if plan.sha256 == best.plan.sha256:
        return None
    step = measure(runs, task, dense, plan, best.assignment, best.step.limit)
    runs.say(f"re-fitted: {outcome(step)}")
    return Found(step, plan, best.assignment) if step.fits and step.kl < best.step.kl else None


def tightened(future: Mapping[str, float], some: Candidates, picks: Picks, leak: float) -> dict[str, float]:
    """Less is allowed to the sites that leak most, of a choice that leaks too much as a whole."""
    own = {name: next(one.errors.future for one in some[name] if one.plan == plan) for name, plan in picks.items()}
    most, less = max(own.values()), max(0.5, min(0.9, LEAK_GOAL / leak))
    blamed = {name: less * math.sqrt(power) for name, power in own.items() if power > most / 2}
    return {**future, **blamed}


def next_limit(limit: float, fitting: float, failing: float, headroom: float) -> float:
    """Where to look next.  headroom: the budget over what was measured."""
    if fitting and math.isfinite(failing):
        return math.sqrt(fitting * failing)
    if math.isfinite(failing):
        return limit * min(0.8, max(1 / STRIDES**2, headroom))
    return limit * max(CLOSE, headroom)


def measure(
    runs: Measurements, task: BudgetTask, dense: Run, plan: Plan, assignment: Assignment, limit: float
) -> TriedPlan:
    """What a plan does on the held-out windows."""
    found = runs.versus(dense, plan.filters, task.held_out, plan.linears)
    causal = bounded(runs, task)
    leak = runs.leak(plan.filters, task.held_out).worst if causal and plan.leaks else 0.0
    assert found.perplexity_ratio_stderr is not None  # a task has two windows
    increase, stderr = found.perplexity_ratio - 1, found.perplexity_ratio_stderr
    density = [share_kept(runs, name, kept) for name, kept in plan.filters.items()]
    fits = increase + stderr <= task.budget and not (causal and leak > LEAK_GOAL)
    mean = sum(density) / len(density)
    predicted = math.expm1(assignment.loss + task.lost)
    return TriedPlan(limit, predicted, increase, stderr, found.kl, leak, assignment.seconds, mean, fits)


def message(number: int, step: TriedPlan, dense_cost: float) -> str:
    """A step in one line."""
    return (
        f"step {number}: predicted {dense_cost / step.cost:.2f}x at {step.predicted:+.3%}; {outcome(step)}: "
        f"{'fits' if step.fits else 'does not fit'}"
    )


def outcome(step: TriedPlan) -> str:
    """What was measured, in a few words."""
    leak = f", leak {step.leak:.1e}" if step.leak else ""
    return f"measured {step.increase:+.3%} +- {step.stderr:.3%}{leak}"


def nothing_fits(task: BudgetTask, steps: Sequence[TriedPlan], offered: Mapping[str, Sequence[Option]]) -> str:
    """Why there is no plan, and what budget has one.  offered: what was to choose from."""
    budget = f"a budget of {100 * task.budget:g}%"
    if not steps:
        loss = min(option.loss for few in offered.values() for option in few if option.plan != DENSE)
        return (
            f"{budget} is too small for anything but the dense plan: of what is cheaper on {task.target.name} "
            f"nothing is predicted to lose less than {math.expm1(loss):.3%}; allow about that"
        )
    honest = [step for step in steps if step.leak <= LEAK_GOAL]
    if not honest:
        return (
            f"every plan that was tried for {budget} moves logits by more than {LEAK_GOAL:g} when the future changes; "
            f"allow a larger loss, or say --allow-leak"
        )
    least = min(honest, key=lambda step: step.increase + step.stderr)
    could = least.increase + least.stderr
    return (
        f"no plan but the dense one fits {budget}: the smallest increase measured is "
        f"{least.increase:+.3%} with a standard error of {least.stderr:.3%}, so {could:.3%} can be met; more held-out "
        f"windows make the error smaller"
    )


def summary(
    runs: Measurements, task: BudgetTask, some: Candidates, kl: Measured, best: Found, steps: tuple[TriedPlan, ...],
    future: Mapping[str, float],
) -> Planned:  # fmt: skip
    """What was found, with what stands behind it."""
    dense = sum(few[0].seconds for few in some.values())
    sites = []
    for name, option in best.assignment.picks.items():
        one = next(one for one in some[name] if one.plan == option.plan)
        probed, others = option.plan in kl[name], len(some[name]) - 1
        found = one.errors.error, one.errors.future, option.loss, probed, option.seconds, some[name][0].seconds, others
        sites.append(PlannedSite(name, str(best.plan.filters[name]), *found))
    points = [[dense / found.seconds, math.expm1(found.loss)] for found in front(options(some, kl, future))]
    rows = {step: Step(**vars(step), gain=dense / step.cost) for step in (best.step, *steps)}
    bound = best.assignment.bound
    search = Search(
        plan=best.plan.policy, budget=task.budget, figure=task.held_out.figure, target=task.target.name,
        chosen=rows[best.step], dense_cost=dense, bound=bound, steps=tuple(rows[step] for step in steps),
        sites=tuple(sites), points=points, calibration_windows=len(task.calibration),
        held_out_windows=len(task.held_out), passes=runs.windows / len(task.calibration),
        most=dense / bound if bound else None,
    )  # fmt: skip
    return Planned(best.plan, search)
