"""One mask for every convolution against plans by sensitivity: at the same cost, on the same windows."""

import layouts_m2
import pytest
import torch
from layouts import tiny_model
from searches import Flat, data

from sparsify import swap
from sparsify.evals.runs import Runs
from sparsify.plan import FilterPlan, Plan
from sparsify.search.knapsack import Option
from sparsify.search.pareto import KINDS, SHARES, choices, compared, uniform, within
from sparsify.search.planner import divide
from sparsify.search.task import LEAK_GOAL, Kept


@pytest.fixture(scope="module")
def tiny():
    model, sites = tiny_model()
    return model, sites, swap.Filters(sites)


@pytest.fixture(scope="module")
def fronts(tiny):
    return compared(Runs(*tiny), *divide(data()), Kept())


def test_every_pair_costs_the_same_or_less(fronts, tiny):
    kinds = {pair.kind for pair in fronts.pairs}
    assert kinds == set(KINDS) and len(fronts.pairs) > 6
    for pair in fronts.pairs:
        assert 0 < pair.chosen.cost <= pair.uniform.cost < fronts.dense_cost
        density = uniform(tiny[1], pair.kind, pair.share)[tiny[1][0].name].density(64)
        assert pair.uniform.cost == pytest.approx(density * fronts.dense_cost)


def test_sensitivity_loses_less(fronts):
    """On random weights already.  Masks may beat what is chosen there, but not without reading the future."""
    for pair in fronts.pairs:
        assert pair.chosen.kl <= 1.05 * pair.uniform.kl or pair.uniform.leak > 20 * LEAK_GOAL >= 20 * pair.chosen.leak
    assert sum(pair.chosen.kl < 0.7 * pair.uniform.kl for pair in fronts.pairs) >= len(fronts.pairs) / 2


def test_of_a_model_that_looks_both_ways():
    """Every mask is honest there, and what is chosen is nearer to the dense model than any of them at its cost."""
    model, sites = layouts_m2.tiny_model()
    found = compared(Runs(model, sites, swap.Filters(sites)), *divide(layouts_m2.masked_windows(60)), Kept())
    assert {pair.kind for pair in found.pairs} == set(KINDS) and found.figure == "pseudo-perplexity"
    for pair in found.pairs:
        density = uniform(sites, pair.kind, pair.share)[sites[0].name].density(64, 32)
        assert pair.uniform.cost == pytest.approx(found.dense_cost * density, rel=0.03)  # no window feels lag -32
        assert pair.chosen.cost <= pair.uniform.cost and pair.chosen.kl <= 1.1 * pair.uniform.kl
        assert pair.uniform.leak == pair.chosen.leak == 0
    assert sum(pair.chosen.kl < 0.5 * pair.uniform.kl for pair in found.pairs) >= len(found.pairs) / 2


def test_uniform_masks_are_the_same_everywhere(tiny):
    _, sites, filters = tiny
    for kind in KINDS:
        picks = uniform(sites, kind, 0.25)
        assert set(picks) == set(filters) and len(set(picks.values())) == 1
        Plan(picks, kind).check(list(filters))
    assert uniform(sites, "taps", 1e-9)[sites[0].name] == FilterPlan("partial", 1)


def test_the_same_choice_is_not_made_twice(tiny):
    found = [(kind, tuple(picks.values())) for kind, _, picks in choices(tiny[1])]
    assert len(set(found)) == len(found) < len(KINDS) * len(SHARES)


def test_within_a_cost():
    plans = [FilterPlan("dense"), FilterPlan("partial", 8), FilterPlan("partial", 2)]
    offered = {
        "a": [Option(loss, cost, plan) for loss, cost, plan in zip((0, 1, 5), (10, 6, 2), plans, strict=True)],
        "b": [Option(loss, cost, plan) for loss, cost, plan in zip((0, 3, 4), (10, 6, 2), plans, strict=True)],
    }
    assert within(offered, 20) == {"a": plans[0], "b": plans[0]}
    assert within(offered, 12) == {"a": plans[0], "b": plans[2]}  # 4, where 6 + 6 would lose 4 as well, and 2 + 10 five
    assert within(offered, 4) == {"a": plans[2], "b": plans[2]}
    assert within(offered, 3.9) is None


def test_the_model_keeps_its_convolutions(tiny):
    model = tiny[0]
    ids = torch.randint(7, 11, (1, 64))
    with torch.no_grad():
        before = model(ids)
        with pytest.raises(RuntimeError, match="no plan is cheaper than the dense one"):
            compared(Runs(*tiny), *divide(data()), Flat())
        assert torch.equal(model(ids), before)
