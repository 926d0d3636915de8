"""The convolution alone: what is timed is right, and what is wrong is not timed."""

import pytest
import torch
from helpers import assert_close

from sparsify.evals import kernels
from sparsify.fftconv import fftconv_ref
from sparsify.plan import Filter


def test_every_way_is_checked_and_compared():
    steps = []
    ways = kernels.compare((2, 3, 500), rounds=3, progress=steps.append)
    assert [way.name for way in ways] == ["reference code", "best torch.fft", "exact", "partial 1/16"]
    for way in ways:
        assert 0 < way.error < kernels.BAR and way.seconds > 0
        assert way.faster_than.keys() == set(kernels.BASELINES) - {way.name, kernels.APART}
        assert all(ratio.low <= ratio.median <= ratio.high for ratio in way.faster_than.values())
    assert "checking exact" in steps and steps[-1] == "timing"


def test_ratios_are_of_the_same_rounds():
    ways = {way.name: way for way in kernels.compare((1, 2, 300), rounds=3)}
    exact, reference = ways[kernels.EXACT], ways[kernels.REFERENCE]
    there, back = exact.faster_than[kernels.REFERENCE].median, reference.faster_than[kernels.EXACT].median
    assert there * back == pytest.approx(1)  # the median of an odd number of rounds


def test_masks_come_with_long_signals():
    assert kernels.sparse_plans(kernels.MASKS_FROM - 1).keys() == {"partial 1/16"}
    plans = kernels.sparse_plans(kernels.MASKS_FROM)
    assert [plan.kind for plan in plans.values()] == ["partial", "split", "frequency-sparse"]
    assert plans["partial 1/16"].taps == kernels.MASKS_FROM // 16
    assert plans["comb 1/16"].mask.density == 1 / 16
    assert plans["split 64 + 1/16"].mask.density == 1 / 16


def test_masked_ways_are_right_too():
    ways = kernels.compare((1, 2, kernels.MASKS_FROM), rounds=3)
    assert len(ways) == 6 and max(way.error for way in ways) < kernels.BAR


def test_a_few_channels_at_a_time_make_the_same_filter():
    k = torch.randn(2 * kernels.ROWS + 1, kernels.MASKS_FROM)
    for plan in kernels.sparse_plans(kernels.MASKS_FROM).values():
        ours, whole = kernels.kept_of(k, plan), plan.apply(k)
        assert_close(ours.k, whole.k, 1e-6)
        assert (ours.ahead, ours.mask) == (whole.ahead, whole.mask)
        assert (ours.head is None) == (whole.head is None)
        assert whole.head is None or torch.equal(ours.head, whole.head)


def test_filters_that_look_both_ways():
    ways = kernels.compare((2, 3, 500), rounds=3, both_ways=True)
    names = ["reference code", "torch.fft in halves", "best torch.fft", "exact", "partial 1/16"]
    assert [way.name for way in ways] == names and max(way.error for way in ways) < kernels.BAR
    assert ways[-1].faster_than.keys() == set(kernels.BASELINES)


@pytest.mark.parametrize("seqlen", [2, 7, 257, 1000])
def test_baselines_look_both_ways(seqlen):
    u, k = torch.randn(2, 3, seqlen), torch.randn(3, 2 * seqlen)
    truth = fftconv_ref(u, k, seqlen)
    for y in (kernels.reference(u, k, seqlen), kernels.best_torch(u, k, seqlen)(u), kernels.apart(u, k, seqlen)()):
        assert_close(y, truth, kernels.BAR)
    with pytest.raises(AssertionError):
        assert_close(kernels.reference(u, k.flip(-1), seqlen), truth, kernels.BAR)


@pytest.mark.parametrize("seqlen", [1, 7, 257, 1000])
def test_baselines_convolve(seqlen):
    u, k = torch.randn(2, 3, seqlen), torch.randn(3, seqlen)
    assert_close(kernels.reference(u, k), fftconv_ref(u, k), kernels.BAR)
    conv = kernels.best_torch(u, k)
    assert_close(conv(u), fftconv_ref(u, k), kernels.BAR)
    gate, skip, pregate = torch.randn_like(u), torch.randn(3), torch.randn_like(u)
    g = pregate * u
    assert_close(conv(u, gate, skip, pregate), gate * (fftconv_ref(g, k) + skip[:, None] * g), kernels.BAR)


def test_timing_something_wrong_means_nothing(monkeypatch):
    u, kept = torch.randn(2, 3, 40), Filter(torch.randn(3, 9))
    y = fftconv_ref(u, kept.k).float()
    assert kernels.check("site", y, u, kept) < kernels.BAR
    with pytest.raises(RuntimeError, match=r"site: the convolution is off by 1\.0e\+00"):
        kernels.check("site", torch.zeros_like(y), u, kept)
    monkeypatch.setattr(kernels, "reference", lambda u, *_: 1.00001 * u)
    with pytest.raises(RuntimeError, match="reference code: the convolution is off"):
        kernels.compare((1, 2, 100), rounds=3)
