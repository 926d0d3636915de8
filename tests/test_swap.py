"""Operators go in and come out; nothing else in the model changes."""

from dataclasses import replace

import pytest
import torch
from helpers import assert_close, reference_conv
from layouts import tiny_model

from sparsify import Filter, swap
from sparsify.evals.causality import relative
from sparsify.plan import policies


@pytest.fixture
def model():
    """A small HyenaDNA with random weights: (model, sites, token ids)."""
    model, sites = tiny_model()
    return model, sites, torch.randint(7, 11, (2, sites[0].context))


@torch.no_grad()
def test_reference_in_every_site_gives_the_same_logits(model):
    model, sites, ids = model
    own = model(ids)
    filters = swap.Filters(sites)
    swap.install(sites, {name: reference_conv(k) for name, k in filters.items()})
    assert_close(model(ids), own, 1e-5)


@torch.no_grad()
def test_dense_plan_is_the_model(model):
    model, sites, ids = model
    own = model(ids)
    swap.apply_(sites, policies.make_plan(sites, swap.Filters(sites), policies.dense()))
    assert_close(model(ids), own, 1e-5)


@torch.no_grad()
def test_undo_brings_back_identical_weights_and_outputs(model):
    model, sites, ids = model
    before, own = {n: p.clone() for n, p in model.state_dict().items()}, model(ids)
    undo = swap.apply_(sites, policies.make_plan(sites, swap.Filters(sites), policies.taps(3)))
    assert relative(model(ids), own) > 1e-3  # the swap did something
    undo()
    assert torch.equal(model(ids), own)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], p) for n, p in before.items())


@torch.no_grad()
def test_undo_brings_back_an_earlier_plan(model):
    model, sites, ids = model
    filters = swap.Filters(sites)
    swap.apply_(sites, policies.make_plan(sites, filters, policies.taps(9)))
    nine = model(ids)
    undo = swap.apply_(sites, policies.make_plan(sites, filters, policies.taps(3)))
    assert not torch.equal(model(ids), nine)
    undo()
    assert torch.equal(model(ids), nine)


def test_damaged_filters_are_refused(model):
    _, sites, _ = model
    broken = replace(sites[0], materialize=lambda: Filter(torch.full((12, 66), torch.nan)))
    with pytest.raises(ValueError, match=r"filter of backbone.layers.0.mixer has infinite or undefined taps"):
        swap.Filters([broken, *sites[1:]])[broken.name]


@torch.no_grad()
def test_variants_of_one_model_do_not_disturb_each_other(model):
    model, sites, ids = model
    filters = swap.Filters(sites)
    plans = [policies.make_plan(sites, filters, p) for p in (policies.dense(), policies.taps(3))]
    dense, short = (swap.variant(model, sites, swap.operators(filters, plan)) for plan in plans)
    first = dense(ids)
    assert relative(short(ids), first) > 1e-3
    assert torch.equal(dense(ids), first)


@torch.no_grad()
def test_cut_takes_the_future_away(model):
    model, sites, ids = model
    filters = swap.Filters(sites)
    plan = policies.make_plan(sites, filters, policies.low_pass(0.25))
    changed = ids.clone()
    changed[:, 40:] = 17 - changed[:, 40:]
    for cut, moves in ((False, True), (True, False)):
        run = swap.variant(model, sites, swap.operators(filters, plan, cut))
        assert (relative(run(changed)[:, :40], run(ids)[:, :40]) > 1e-5) == moves


def test_a_plan_for_another_model_is_refused(model):
    _, sites, _ = model
    plan = policies.make_plan(sites[:1], swap.Filters(sites[:1]), policies.dense())
    with pytest.raises(ValueError, match="does not fit the model"):
        swap.apply_(sites, plan)
