"""The choice within a budget: against all combinations there are, and what it says of itself."""

import itertools
import math
import random

import pytest

from sparsify.plan import FilterPlan
from sparsify.search import knapsack
from sparsify.search.knapsack import Option, cheapest, front

DENSE = FilterPlan("dense")


def option(loss, seconds):
    return Option(loss, seconds, DENSE)


def spread(draw, count):
    """Losses and seconds that have nothing to do with each other."""
    return [option(draw.random(), draw.random()) for _ in range(count)]


def ladder(draw, count):
    """Less time for more loss, over many orders of magnitude, as plans come; one of them loses nothing."""
    losses = [0.0, *sorted(10 ** draw.uniform(-6, 0) for _ in range(count - 1))]
    return [option(loss, 1 / (1 + i) + 0.1 * draw.random()) for i, loss in enumerate(losses)]


def alike(draw, count):
    """The same steps of time on every site, and equal ratios of time to loss: many ties."""
    return [option(float(i), 10.0 - i) for i in range(count)]


def nearly(draw, count):
    """A large loss that none can avoid, and tiny ones on top of it."""
    return [option(1 + 1e-12 * draw.random(), draw.random()) for _ in range(count)]


KINDS = [spread, ladder, alike, nearly]


def instance(kind, seed):
    draw = random.Random(seed)
    return {f"site {i}": kind(draw, draw.randint(1, 6)) for i in range(draw.randint(1, 5))}


def combinations(options):
    """Loss and seconds of every assignment, added up without rounding."""
    for picked in itertools.product(*options.values()):
        yield math.fsum(o.loss for o in picked), math.fsum(o.seconds for o in picked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(25))
def test_no_combination_is_better(kind, seed):
    options = instance(kind, seed)
    every = list(combinations(options))
    budgets = random.Random(-seed).sample(every, min(4, len(every)))  # exactly met by one of them
    for limit, _ in budgets:
        found = cheapest(options, limit)
        best = min(seconds for loss, seconds in every if loss <= limit)
        assert found.loss <= limit
        assert (found.loss, found.seconds) in every and list(found.picks) == list(options)
        assert found.seconds == pytest.approx(best, rel=1e-9)
        assert found.bound <= best * (1 + 1e-9)
        assert 0 <= found.gap <= 1 and found.seconds * (1 - found.gap) == pytest.approx(found.bound)


@pytest.mark.parametrize("kind", KINDS)
def test_with_little_room_it_stays_within_budget_and_gap(kind, monkeypatch):
    """Two combinations at a time are too few to be exact; what is promised holds nevertheless."""
    monkeypatch.setattr(knapsack, "STATES", 2)
    for seed in range(25):
        options = instance(kind, seed)
        every = list(combinations(options))
        limit = random.Random(seed).choice(every)[0]
        found = cheapest(options, limit)
        best = min(seconds for loss, seconds in every if loss <= limit)
        assert found.loss <= limit and found.seconds * (1 - found.gap) <= best * (1 + 1e-9)


def test_many_sites_are_chosen_nearly_optimally():
    draw = random.Random(0)
    options = {f"site {i}": ladder(draw, 40) for i in range(64)}
    for limit in (1e-4, 1e-2, 1.0):
        found = cheapest(options, limit)
        assert found.loss <= limit and found.gap < 0.005


def test_the_walk_alone_is_not_enough():
    """After the first two steps the third no longer fits; two others instead of the first do better."""
    options = {
        "a": [option(0, 10), option(6, 1)],  # most for its loss
        "b": [option(0, 10), option(5, 3)],
        "c": [option(0, 10), option(5, 3)],
    }
    found = cheapest(options, 10)
    assert [o.loss for o in found.picks.values()] == [0, 5, 5] and found.seconds == 16
    assert found.bound < 16  # the bound cuts options into parts


def test_budget_without_loss_and_without_end():
    options = instance(ladder, 3)
    none, all_ = cheapest(options, 0.0), cheapest(options, math.inf)
    assert none.loss == 0 and none.gap == pytest.approx(0)
    assert all_.seconds == min(seconds for _, seconds in combinations(options)) == all_.bound and all_.gap == 0


def test_among_equals_none_is_lost():
    same = option(0.25, 1.0)
    found = cheapest({"a": [same, same], "b": [same, option(0.25, 2.0), option(0.5, 1.0)]}, 0.5)
    assert found.picks == {"a": same, "b": same} and found.gap == 0


def test_what_none_can_avoid_changes_nothing():
    options = instance(ladder, 3)
    more = {name: [option(o.loss + 1, o.seconds) for o in found] for name, found in options.items()}
    for limit in (1e-5, 1e-3, 0.1):
        found, shifted = cheapest(options, limit), cheapest(more, limit + len(more))
        assert shifted.seconds == found.seconds and shifted.bound == pytest.approx(found.bound)


def test_one_site():
    steps = [option(0, 3), option(1, 2.9), option(2, 1)]  # the middle one lies above the hull
    assert [cheapest({"a": steps}, limit).seconds for limit in (0, 0.9, 1, 1.9, 2)] == [3, 3, 2.9, 2.9, 1]


def test_free_options_leave_no_gap():
    found = cheapest({"a": [option(0, 0.0)]}, 0)
    assert (found.seconds, found.bound, found.gap) == (0, 0, 0)


@pytest.mark.parametrize("limit", [0.29, 0, -1, math.nan])
def test_what_cannot_be_met_says_what_could(limit):
    with pytest.raises(ValueError, match=r"no assignment loses less than 0.3, got a budget of"):
        cheapest({"a": [option(0.1, 1), option(0.5, 0.5)], "b": [option(0.2, 1)]}, limit)


def test_a_site_without_options_is_refused():
    with pytest.raises(ValueError, match="b has no option"):
        cheapest({"a": [option(0, 1)], "b": []}, 1)


@pytest.mark.parametrize("wrong", [(-1e-9, 1), (math.nan, 1), (math.inf, 1), (0, -1), (0, math.nan), (0, math.inf)])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match="loss and seconds are finite and at least 0"):
        option(*wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_front(kind, seed):
    """From least loss to least time, every corner the quickest of its loss, on a convex line."""
    options = instance(kind, seed)
    every = list(combinations(options))
    corners = front(options)
    assert corners[0].loss == min(every)[0] and corners[-1].seconds == min(seconds for _, seconds in every)
    for corner in corners:
        assert corner.seconds == pytest.approx(min(s for loss, s in every if loss <= corner.loss)) and corner.gap == 0
        assert cheapest(options, corner.loss).seconds == pytest.approx(corner.seconds)
    for a, b in itertools.pairwise(corners):
        assert a.loss <= b.loss and a.seconds >= b.seconds
    if kind is not nearly:  # where sums round too much to tell
        for a, b, c in zip(corners, corners[1:], corners[2:], strict=False):
            steeper = (a.seconds - b.seconds) * (c.loss - b.loss)
            assert steeper >= (b.seconds - c.seconds) * (b.loss - a.loss) - 1e-12
