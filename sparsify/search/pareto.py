"""Plans by sensitivity against one mask for every convolution: what both lose at the same predicted cost.

Published results give all convolutions of a model the same mask, or the same number of taps.  Here each of these is
measured beside the plan that is predicted to lose least among those that cost no more, on windows that no choice saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan
from sparsify.plan.policies import band, points
from sparsify.report.schema import Pair, ParetoPairs, Point
from sparsify.sites import ConvSite

from .knapsack import Option, Options, cheapest
from .measuring import Measurements, Picks, Run, Text
from .task import ALL, Price, Task, candidates_of, most_ahead, options, prepared, probe, probe_windows, seconds

KINDS = ("low-pass", "comb", "taps")
SHARES = tuple(2.0**-i for i in range(1, 7))  # of bins, or of taps, that are kept everywhere


def uniform(sites: Sequence[ConvSite], kind: str, share: float) -> dict[str, FilterPlan]:
    """The same for every site, of one of `KINDS`."""

    def kept(site: ConvSite) -> FilterPlan:
        if kind == "taps":
            return FilterPlan("partial", max(1, round(share * site.context)))
        mask = band(site, share) if kind == "low-pass" else BlockMask.comb(points(site.context), share)
        return FilterPlan("frequency-sparse", mask=mask)

    return {site.name: kept(site) for site in sites}


def choices(sites: Sequence[ConvSite]) -> Iterator[tuple[str, float, dict[str, FilterPlan]]]:
    """Kind, share and what every site keeps, of all that differ: masks get no finer than their blocks."""
    for kind in KINDS:
        before: dict[str, FilterPlan] = {}
        for share in SHARES:
            if (picks := uniform(sites, kind, share)) != before:
                yield kind, share, picks
            before = picks


def within(offered: Options, cost: float) -> dict[str, FilterPlan] | None:
    """The least predicted loss at no more than a cost, None if nothing costs so little: the knapsack, sides swapped."""
    swapped = {name: [Option(o.seconds, o.loss, o.plan) for o in some] for name, some in offered.items()}
    if sum(min(option.loss for option in some) for some in swapped.values()) > cost:
        return None
    return {name: option.plan for name, option in cheapest(swapped, cost).picks.items()}


def nearest(
    runs: Measurements, task: Task, dense: Run, offered: Options, same: Mapping[FilterPlan, float], cost: float
) -> Picks | None:
    """The choice that is nearest to the dense model on some calibration windows, of those that cost no more.

    offered: for the knapsack.  same: KL of plans that all sites could keep alike.
    """
    picks = within(offered, cost)
    if picks is None:
        return None
    kl = runs.versus(dense, picks, probe_windows(task.calibration, len(runs.sites))).kl
    for plan, loss in same.items():
        if loss < kl and price(runs, task, alike := dict.fromkeys(picks, plan)) <= cost:
            picks, kl = alike, loss
    return picks


def compared(runs: Measurements, calibration: Text, held_out: Text, target: Price) -> ParetoPairs:
    """Every kind and share that is cheaper than dense on a target, with its counterpart.

    calibration: what plans are chosen on.  held_out: what both are measured on.  The model is left with the
    convolutions that it came with.
    """
    task = Task(calibration, held_out, target)
    with runs.working():
        some = candidates_of(prepared(runs, task), task)
        kl = probe(runs, some, task.calibration)
        offered = options(some, kl, dict.fromkeys(some, most_ahead(runs, task)))
        most, dense = sum(few[0].seconds for few in some.values()), runs.remembered(runs.under({}))
        pairs, dear = [], []
        for kind, share, same in choices(runs.sites):
            if (cost := price(runs, task, same)) >= most:
                dear.append(f"{kind} {share:g}")
            elif (chosen := nearest(runs, task, dense, offered, kl.get(ALL, {}), cost)) is not None:
                pair = Pair(kind, share, point(runs, task, dense, same), point(runs, task, dense, chosen))
                pairs.append(pair)
                runs.say(message(pair, most))
    return ParetoPairs(
        target=task.target.name, figure=task.held_out.figure, dense_cost=most, pairs=tuple(pairs), not_cheaper=dear,
        calibration_windows=len(task.calibration), held_out_windows=len(task.held_out),
        context=task.calibration.context,
    )  # fmt: skip


def price(runs: Measurements, task: Task, picks: Picks) -> float:
    """Predicted price of all sites."""
    return sum(seconds(runs, task, site, picks[site.name]) for site in runs.sites)


def point(runs: Measurements, task: Task, dense: Run, picks: Picks) -> Point:
    """What a choice does on the held-out windows."""
    found = runs.versus(dense, picks, task.held_out)
    leaks = any(site.causal and picks[site.name].leaks for site in runs.sites)
    leak = runs.leak(picks, task.held_out).worst if leaks else 0.0
    assert found.perplexity_ratio_stderr is not None  # a task has two windows
    kept = "; ".join(dict.fromkeys(str(plan) for plan in picks.values()))
    increase = found.perplexity_ratio - 1
    return Point(kept, price(runs, task, picks), increase, found.perplexity_ratio_stderr, found.kl, leak)


def message(pair: Pair, dense: float) -> str:
    """A pair in one line."""

    def loss(one: Point) -> str:
        return f"{dense / one.cost:.2f}x at {one.increase:+.3%} +- {one.stderr:.3%}"

    return f"{pair.kind} {pair.share:g} everywhere: {loss(pair.uniform)}; chosen by sensitivity: {loss(pair.chosen)}"
