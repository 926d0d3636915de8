"""The quickest choice of one option a site whose losses fit a budget: a multiple-choice knapsack, and its bound.

With a price mu on loss the sites part: each takes the option of least seconds + mu * loss.  What that comes to, less
mu * budget, no assignment within the budget undercuts, whatever mu is: the Lagrangian dual (Fisher 1981).  The best mu
comes from the lower convex hulls of the sites, walked from the least loss downwards by seconds saved per loss
(Sinha, Zoltners 1979): it is the worth of the first step that no longer fits.

The walk, with those later steps that do fit, is a first answer.  A better one exceeds the dual by less, which leaves
two or three options a site.  All their combinations are grown site by site, without those that another one beats in
both.  This is exact while no more than STATES of them remain; beyond these the ones nearest to the dual stay.
`Assignment.gap` says what is left to doubt either way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from sparsify.plan import FilterPlan

STATES = 512  # partial assignments kept at a time
ROUNDING = 1e-12  # of a sum, by which it may be off: nothing is dropped for that


@dataclass(frozen=True)
class Option:
    """What a site may keep of its filter, what that loses, and the seconds it takes."""

    loss: float
    seconds: float
    plan: FilterPlan

    def __post_init__(self) -> None:
        if not (0 <= self.loss < math.inf and 0 <= self.seconds < math.inf):
            raise ValueError(f"loss and seconds are finite and at least 0, got {self.loss} and {self.seconds}")


@dataclass(frozen=True)
class Assignment:
    """An option for every site.  bound: seconds that no assignment within the same budget undercuts."""

    picks: Mapping[str, Option]
    bound: float = 0.0

    @property
    def loss(self) -> float:
        return math.fsum(option.loss for option in self.picks.values())

    @property
    def seconds(self) -> float:
        return math.fsum(option.seconds for option in self.picks.values())

    @property
    def gap(self) -> float:
        """Share of its seconds by which a better assignment could be quicker at most."""
        return 1 - self.bound / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Step:
    """From one corner of a site's hull to the next.  worth: seconds saved per loss."""

    worth: float
    site: str
    to: Option


Options = Mapping[str, Sequence[Option]]
Array: TypeAlias = np.ndarray[Any, Any]


def cheapest(options: Options, budget: float) -> Assignment:
    """The quickest assignment whose losses add up to no more than `budget`, which may be infinite.

    options: site -> what there is to choose from, at least one.
    Raises ValueError for a budget that nothing meets, with the least loss there is.
    """
    sites = undominated(options)
    picks = {name: found[0] for name, found in sites.items()}
    least = total(picks)
    if not least <= budget:
        raise ValueError(f"no assignment loses less than {least:.3g}, got a budget of {budget:.3g}; give that or more")
    price = 0.0
    for step in steps(sites):
        taken = {**picks, step.site: step.to}
        if total(taken) <= budget:
            picks = taken
        else:
            price = price or step.worth
    dual = math.fsum(min(priced(found, price)) for found in sites.values())
    if price:
        dual -= price * (budget - least)
        picks = repaired(sites, budget, price, dual, picks)
    best = Assignment(picks)
    return replace(best, bound=max(0.0, min(dual, best.seconds)))


def front(options: Options) -> list[Assignment]:
    """Assignments from the least loss to the fewest seconds that no other of their loss undercuts.

    They are the corners of the hull of all assignments; between two of them there are others.
    """
    sites = undominated(options)
    picks = {name: found[0] for name, found in sites.items()}
    found = [picks]
    for step in steps(sites):
        picks = {**picks, step.site: step.to}
        found.append(picks)
    corners = [Assignment(picks) for picks in found]
    return [replace(corner, bound=corner.seconds) for corner in corners]


def total(picks: Mapping[str, Option]) -> float:
    return math.fsum([option.loss for option in picks.values()])


def undominated(options: Options) -> dict[str, list[Option]]:
    """Of every site the options that no other beats in both, from the least loss to the fewest seconds."""
    sites: dict[str, list[Option]] = {}
    for name, offered in options.items():
        if not offered:
            raise ValueError(f"{name} has no option; offer at least the dense plan")
        kept = sites[name] = []
        for option in sorted(offered, key=lambda o: (o.loss, o.seconds)):
            if not kept or option.seconds < kept[-1].seconds:
                kept.append(option)
    return sites


def steps(sites: Mapping[str, Sequence[Option]]) -> list[Step]:
    """Along the hulls of all sites, those that save most for their loss first."""
    found = []
    for name, kept in sites.items():
        corners: list[Option] = []
        for option in kept:
            while len(corners) > 1 and worth(corners[-2], corners[-1]) <= worth(corners[-1], option):
                corners.pop()
            corners.append(option)
        found += [Step(worth(a, b), name, b) for a, b in pairwise(corners)]
    return sorted(found, key=lambda step: -step.worth)


def worth(a: Option, b: Option) -> float:
    """Seconds that b saves over a for each loss it adds."""
    return (a.seconds - b.seconds) / (b.loss - a.loss)


def priced(found: Sequence[Option], price: float) -> list[float]:
    """Seconds of each option, and the price of what it loses more than the first."""
    return [option.seconds + price * (option.loss - found[0].loss) for option in found]


def repaired(
    sites: Mapping[str, Sequence[Option]], budget: float, price: float, dual: float, picks: dict[str, Option]
) -> dict[str, Option]:
    """The quickest assignment within the budget, or one as near to it as STATES allow; `picks` if none is quicker."""
    seconds = math.fsum(option.seconds for option in picks.values())
    slack = seconds - dual + ROUNDING * seconds
    left = budget - total({name: found[0] for name, found in sites.items()}) + ROUNDING * budget
    loss, excess = np.zeros(1), np.zeros(1)  # of every combination: loss beyond the least, what it exceeds the dual by
    trail: list[tuple[Array, Array]] = []  # site by site: the combination that each one grew from, and by which option
    for found in sites.values():
        more = np.array([option.loss - found[0].loss for option in found])
        over = np.array(priced(found, price))
        grown, over = loss[:, None] + more, excess[:, None] + (over - over.min())
        parent, option = ((grown <= left) & (over <= slack)).nonzero()
        loss, excess = grown[parent, option], over[parent, option]
        stay = unbeaten(loss, excess - price * loss)  # seconds, but for a constant
        stay = stay[np.argsort(excess[stay], kind="stable")[:STATES]]
        loss, excess = loss[stay], excess[stay]
        trail.append((parent[stay], option[stay]))
    for end in np.argsort(excess - price * loss, kind="stable"):
        better = traced(sites, trail, int(end))
        if total(better) <= budget:  # the sums above were rounded
            return better if math.fsum(o.seconds for o in better.values()) < seconds else picks
    return picks


def unbeaten(loss: Array, seconds: Array) -> Array:
    """Indices of those that no other undercuts in both."""
    order = np.lexsort((seconds, loss))
    least = np.minimum.accumulate(seconds[order])
    return order[np.diff(least, prepend=np.inf) < 0]


def traced(sites: Mapping[str, Sequence[Option]], trail: Sequence[tuple[Array, Array]], end: int) -> dict[str, Option]:
    """The options on the way to one of the last combinations."""
    found = {}
    for name, (parent, option) in zip(reversed(list(sites)), reversed(trail), strict=True):
        found[name] = sites[name][option[end]]
        end = int(parent[end])
    return {name: found[name] for name in sites}
