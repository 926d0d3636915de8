"""A model under plans: what it reads is counted and shown."""

from contextlib import contextmanager

import pytest
import torch
from layouts import tiny_model
from searches import data

from sparsify import swap
from sparsify.evals.causality import leak
from sparsify.evals.quality import compare
from sparsify.evals.runs import Remembered, Runs
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan, Plan

SHORT = FilterPlan("partial", 8)
LOW = FilterPlan("frequency-sparse", mask=BlockMask.low_pass(64, 0.25))


@pytest.fixture
def model():
    found, sites = tiny_model()
    return found, sites, swap.Filters(sites)


def test_sites_that_are_not_named_are_dense(model):
    _, sites, filters = model
    runs, w = Runs(*model), data(3)
    first, second = filters
    plan = Plan({first: SHORT, second: FilterPlan("dense")}, "some")
    expected = swap.variant(model[0], sites, swap.operators(filters, plan))(w.ids)
    assert torch.equal(runs.under({first: SHORT})(w.ids), expected)
    assert not torch.equal(runs.under({})(w.ids), expected)


def test_negative_lags_are_cut_unless_asked_for(model):
    runs, w = Runs(*model), data(3)
    masked = {name: LOW for name in model[2]}
    assert leak(runs.under(masked), w).worst < 1e-5 < 1e-2 < runs.leak(masked, w).worst


def test_what_is_read_is_counted_and_shown(model):
    shown = []

    @contextmanager
    def bar(what, windows):
        yield lambda more: shown.append((what, more))

    runs, w = Runs(*model, bar=bar), data(5)
    with runs.stage("reading", len(w)):
        runs.read(w)
    with runs.stage("measuring", 2 * len(w)):
        found = runs.versus(runs.under({}), {next(iter(model[2])): SHORT}, w)
    runs.under({})(w.ids)
    assert runs.windows == 4 * len(w) and sum(more for _, more in shown) == 3 * len(w)
    assert {what for what, _ in shown} == {"reading", "measuring"}
    assert runs.moments.keys() == model[2].keys() and {own.windows for own in runs.moments.values()} == {5}
    variants = {"dense": runs.under({}), "sparse": runs.under({next(iter(model[2])): SHORT})}
    assert found == compare(variants, w)["sparse"].versus


def test_logits_are_computed_once():
    calls = []

    def logits(ids):
        calls.append(ids)
        return torch.zeros(*ids.shape, 3)

    remembered = Remembered(logits)
    for ids in (torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 4)):
        remembered(ids.long())
    assert len(calls) == 2
    forgetful = Remembered(logits)
    forgetful.BYTES = 1
    assert torch.equal(forgetful(ids.long()), forgetful(ids.long())) and len(calls) == 4
