"""Filters that are made a few channels at a time are the same filters, wherever one is asked for."""

import copy
import gc
import weakref
from dataclasses import replace

import layouts_m2
import pytest
import torch
from helpers import assert_close
from layouts import write

import sparsify
from sparsify import ConvSite, LongConv, swap
from sparsify.converters import load
from sparsify.cpu import memory
from sparsify.filters import filter as filters
from sparsify.filters import spectra
from sparsify.filters.filter import BlockedFilter, Filter, in_memory
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan, policies
from sparsify.report.curves import curves

POLICIES = [
    policies.dense(),
    policies.taps(9),
    policies.split(4, 1 / 4),
    policies.low_pass(1 / 4),
    policies.energy(0.9),
]


@pytest.fixture
def blocked(monkeypatch):
    """No filter is small enough to be held, and two channels make a block."""
    monkeypatch.setattr(filters, "KEPT_BYTES", 0)
    for function in (filters.blocks, filters.row_blocks):
        monkeypatch.setattr(function, "__defaults__", (2 * 4 * 66,))


@pytest.fixture(params=["hyenadna", "m2_bert"])
def checkpoint(request, tmp_path):
    if request.param == "hyenadna":
        return write(tmp_path / "source", "plain"), torch.randint(7, 11, (2, 50))
    return layouts_m2.write(tmp_path / "source"), torch.randint(5, 30, (2, 25))


@pytest.mark.parametrize("room", ["1G", "1"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@torch.no_grad()
def test_a_model_computes_the_same(checkpoint, policy, room, blocked, monkeypatch):
    """Whether what was prepared may be kept, or all of it is made in every call."""
    source, ids = checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(filters, "KEPT_BYTES", 1 << 30)
        whole = load(source)
        swap.apply_(whole.sites, policies.make_plan(whole.sites, whole.filters, policy))
        expected, taps = whole.model(ids), {name: k.k for name, k in whole.filters.items()}
    monkeypatch.setenv("SPARSIFY_MEMORY", room)
    found = load(source)
    assert all(isinstance(k, BlockedFilter) for k in found.filters.values())
    for name, k in taps.items():
        assert_close(in_memory(found.filters[name]).k, k, 1e-6)
    plan = policies.make_plan(found.sites, found.filters, policy)
    assert plan.to_dict()["filters"] == whole_plan(whole, policy).to_dict()["filters"]
    swap.apply_(found.sites, plan)
    assert_close(found.model(ids), expected, 2e-6)
    convs = [m for m in found.model.modules() if isinstance(m, sparsify.LongConv)]
    assert convs and all(isinstance(conv.filter, Filter) and conv.filter.k.is_meta for conv in convs)


def whole_plan(p, policy):
    return policies.make_plan(p.sites, p.filters, policy)


@pytest.mark.parametrize("policy", POLICIES[1:4], ids=lambda policy: policy.name)
@torch.no_grad()
def test_negative_lags_are_cut(tmp_path, policy, blocked):
    p, ids = load(write(tmp_path / "source", "plain")), torch.randint(7, 11, (2, 50))
    plan = policies.make_plan(p.sites, p.filters, policy)
    convs = swap.operators(p.filters, plan, cut=True)
    whole = {name: in_memory(k) for name, k in p.filters.items()}
    expected = swap.variant(p.model, p.sites, swap.operators(whole, plan, cut=True))(ids)
    assert_close(swap.variant(p.model, p.sites, convs)(ids), expected, 2e-6)


def test_weights_that_change_are_followed(tmp_path, blocked):
    p, ids = load(write(tmp_path / "source", "plain")), torch.randint(7, 11, (2, 50))
    undo = sparsify.sparsify_(p, policies.split(4, 1 / 4))
    with torch.no_grad():
        before = p.model(ids)
        for weight in p.sites[0].weights():
            if weight.shape[0] == p.sites[0].channels and weight.dim() == 2:
                weight.mul_(2)
        with pytest.warns(UserWarning, match="may not hold"):
            after = p.model(ids)
    assert (after - before).norm() > 1e-3 * before.norm()
    undo()
    fresh = sparsify.sparsify_(p, policies.split(4, 1 / 4))
    with torch.no_grad():
        assert_close(p.model(ids), after, 1e-6)
    fresh()


def test_gradients_go_through(tmp_path, blocked):
    p, ids = load(write(tmp_path / "source", "plain")), torch.randint(7, 11, (1, 40))
    sparsify.sparsify_(p, policies.split(4, 1 / 4))
    embed = p.model.backbone.embeddings["word_embeddings"]
    x = embed(ids).clone().requires_grad_()
    p.model.backbone(embedded=x).square().sum().backward()
    step, direction = 1e-3, torch.randn_like(x)
    with torch.no_grad():
        ends = [p.model.backbone(embedded=x + side * step * direction).double().square().sum() for side in (1, -1)]
    assert float((x.grad * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-2)


def test_what_is_reported_is_the_same(tmp_path, blocked):
    p = load(write(tmp_path / "source", "plain"))
    k = p.filters[p.sites[0].name]
    for plan in (FilterPlan("dense"), policies.split(4, 1 / 4).choose(k, p.sites[0])):
        assert plan.apply(k).leak() == pytest.approx(plan.apply(in_memory(k)).leak(), rel=1e-6, abs=1e-12)
        ours, whole = (curves(some, plan, 64).to_dict() for some in (k, in_memory(k)))
        for name in ("taps", "bins"):
            assert torch.allclose(torch.tensor(ours[name]), torch.tensor(whole[name]), rtol=1e-4)
    found, expected = (spectra.analyze(some, 128) for some in (k, in_memory(k)))
    assert (found.taps, found.bins) == (expected.taps, expected.bins)


def test_a_filter_is_asked_for_with_what_it_is_made_of(tmp_path, blocked):
    p = load(write(tmp_path / "source", "plain"))
    conv = swap.operators(p.filters, whole_plan(p, policies.dense()))[p.sites[0].name]
    with pytest.raises(RuntimeError, match="too large to be kept; pass what it is made of"):
        conv(torch.randn(1, p.sites[0].channels, 20))


@pytest.mark.parametrize("taps", [None, 8])
def test_all_that_is_known_comes_along(taps):
    """A filter in memory has the structure that its blocks have, reversed where they are."""
    plan = FilterPlan("split" if taps else "frequency-sparse", taps, BlockMask.low_pass(64, 1 / 4))
    whole = plan.apply(Filter(torch.randn(5, 64))).reversed()
    found = in_memory(BlockedFilter(whole, whole.rows))
    assert torch.equal(found.k, whole.k) and found.lookahead == whole.lookahead
    assert found.structure.reversed and found.mask == whole.mask
    assert (found.head is None) == (taps is None)
    if taps:
        assert torch.equal(found.head.k, whole.head.k) and found.head.lookahead == whole.head.lookahead


@pytest.mark.parametrize("taps", [None, 8])
def test_some_channels_keep_what_is_known(taps):
    """By a list, too, and of a filter that comes in blocks and is moved, cut short or asked for its bins alone."""
    plan = FilterPlan("split" if taps else "frequency-sparse", taps, BlockMask.low_pass(64, 1 / 4))
    whole = plan.apply(Filter(torch.randn(5, 64)))
    bins = torch.randn(5, 16, dtype=torch.complex64)
    blocks = BlockedFilter(
        whole, whole.rows, lambda seqlen: BlockedFilter(whole, whole.rows),
        lambda rows: replace(whole.structure.rows(rows), bins=bins[rows]),
    )  # fmt: skip
    moved = blocks.to(torch.float64)
    assert moved.felt(3).rows(slice(2)).k.dtype == torch.float64 and torch.equal(moved.pieces(slice(2)).bins, bins[:2])
    for some in (whole.rows([4, 1]), blocks.rows([4, 1]), moved.rows([4, 1])):
        assert torch.equal(some.k, whole.k[[4, 1]].to(some.k.dtype)) and some.mask == whole.mask
        assert some.head is None if taps is None else torch.equal(some.head.k.float(), whole.head.k[[4, 1]])


def test_a_filter_without_taps_is_refused():
    with pytest.raises(ValueError, match="filter k has no taps"):
        Filter(torch.zeros(3, 0))


def test_a_convolution_keeps_no_graph_of_its_filter():
    """Not of the head either, or it could not be copied."""
    k = torch.randn(3, 64, requires_grad=True)
    conv = LongConv(FilterPlan("split", 8, BlockMask.low_pass(64, 1 / 4)).apply(Filter(k)))
    u = torch.randn(1, 3, 64)
    assert torch.equal(copy.deepcopy(conv)(u), conv(u))


def test_taps_that_are_no_numbers_are_refused_however_short():
    bad = Filter(torch.full((2, 8), torch.nan))
    blocks = BlockedFilter(bad, bad.rows, lambda seqlen: BlockedFilter(bad, bad.rows))
    found = swap.materialize(ConvSite("a", 2, 8, 8, True, lambda seqlen=None: blocks, lambda conv: None))
    for some in (found, found.felt(3)):
        with pytest.raises(ValueError, match="the filter of a has infinite"):
            some.rows(slice(1))


def test_models_go_with_their_last_reference(tmp_path, blocked):
    p = load(write(tmp_path / "source", "plain"))
    with torch.no_grad():
        p.model(torch.randint(7, 11, (1, 40)))
    gone = weakref.ref(p.model.backbone)
    gc.disable()
    try:
        del p
        assert gone() is None
    finally:
        gc.enable()


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("800M", 800 << 20), ("4G", 4 << 30), ("1.5 GiB", 3 << 29), ("123", 123)])
def test_sizes_in_words(text, size, monkeypatch):
    monkeypatch.setenv("SPARSIFY_MEMORY", text)
    assert memory.budget() == size


def test_a_size_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("SPARSIFY_MEMORY", "much")
    with pytest.raises(ValueError, match="number of bytes such as 800M or 4G, got 'much'"):
        memory.budget()


def test_the_tightest_limit_counts(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   64 kB\n")
    assert memory.available(tmp_path, tmp_path) == 64 << 10
    (tmp_path / "memory.max").write_text("40960\n")
    (tmp_path / "memory.current").write_text("10240\n")
    assert memory.available(tmp_path, tmp_path) == 30720
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available(tmp_path, tmp_path) == 64 << 10
    assert memory.available() > 1 << 20


def test_the_budget_is_a_quarter_of_what_is_free(monkeypatch):
    monkeypatch.delenv("SPARSIFY_MEMORY", raising=False)
    for free, expected in ((None, memory.LEAST), (1 << 20, memory.LEAST), (20 << 30, 4 << 30), (17 << 30, 4 << 30)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        assert memory.budget() == expected
