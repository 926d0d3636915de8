"""The convolution alone: what is timed is right, and what is wrong is not timed."""

import pytest
import torch
from helpers import assert_close

from sparsify.evals.speed import cpu_convolution
from sparsify.fftconv import fftconv_ref
from sparsify.plan import Filter


def test_every_way_is_checked_and_compared():
    steps = []
    ways = cpu_convolution.compare((2, 3, 500), rounds=3, progress=steps.append)
    assert [way.name for way in ways] == ["reference code", "best torch.fft", "exact", "partial 1/16"]
    for way in ways:
        assert 0 < way.error < cpu_convolution.BAR and way.seconds > 0
        assert way.faster_than.keys() == set(cpu_convolution.BASELINES) - {way.name, cpu_convolution.APART}
        assert all(ratio.low <= ratio.median <= ratio.high for ratio in way.faster_than.values())
    assert "checking exact" in steps and steps[-1] == "timing"


def test_ratios_are_of_the_same_rounds():
    ways = {way.name: way for way in cpu_convolution.compare((1, 2, 300), rounds=3)}
    exact, reference = ways[cpu_convolution.EXACT], ways[cpu_convolution.REFERENCE]
    there, back = (
        exact.faster_than[cpu_convolution.REFERENCE].median,
        reference.faster_than[cpu_convolution.EXACT].median,
    )
    assert there * back == pytest.approx(1)  # the median of an odd number of rounds


def test_masks_come_with_long_signals():
    assert cpu_convolution.sparse_plans(cpu_convolution.MASKS_FROM - 1).keys() == {"partial 1/16"}
    plans = cpu_convolution.sparse_plans(cpu_convolution.MASKS_FROM)
    assert [plan.kind for plan in plans.values()] == ["partial", "split", "frequency-sparse"]
    assert plans["partial 1/16"].taps == cpu_convolution.MASKS_FROM // 16
    assert plans["comb 1/16"].mask.density == 1 / 16
    assert plans["split 64 + 1/16"].mask.density == 1 / 16


def test_masked_ways_are_right_too():
    ways = cpu_convolution.compare((1, 2, cpu_convolution.MASKS_FROM), rounds=3)
    assert len(ways) == 6 and max(way.error for way in ways) < cpu_convolution.BAR


def test_a_few_channels_at_a_time_make_the_same_filter():
    k = Filter(torch.randn(2 * cpu_convolution.ROWS + 1, cpu_convolution.MASKS_FROM))
    for plan in cpu_convolution.sparse_plans(cpu_convolution.MASKS_FROM).values():
        ours, whole = cpu_convolution.kept_of(k, plan), plan.apply(k)
        assert_close(ours.k, whole.k, 1e-6)
        assert (ours.lookahead, ours.mask) == (whole.lookahead, whole.mask)
        assert (ours.head is None) == (whole.head is None)
        assert whole.head is None or torch.equal(ours.head.k, whole.head.k)


def test_filters_that_look_both_ways():
    ways = cpu_convolution.compare((2, 3, 500), rounds=3, both_ways=True)
    names = ["reference code", "torch.fft in halves", "best torch.fft", "exact", "partial 1/16"]
    assert [way.name for way in ways] == names and max(way.error for way in ways) < cpu_convolution.BAR
    assert ways[-1].faster_than.keys() == set(cpu_convolution.BASELINES)


@pytest.mark.parametrize("seqlen", [2, 7, 257, 1000])
def test_baselines_look_both_ways(seqlen):
    u, k = torch.randn(2, 3, seqlen), Filter(torch.randn(3, 2 * seqlen), seqlen)
    truth = fftconv_ref(u, k)
    for y in (cpu_convolution.reference(u, k), cpu_convolution.best_torch(u, k)(u), cpu_convolution.apart(u, k)()):
        assert_close(y, truth, cpu_convolution.BAR)
    with pytest.raises(AssertionError):
        assert_close(cpu_convolution.reference(u, Filter(k.k.flip(-1), seqlen)), truth, cpu_convolution.BAR)


@pytest.mark.parametrize("seqlen", [1, 7, 257, 1000])
def test_baselines_convolve(seqlen):
    u, k = torch.randn(2, 3, seqlen), Filter(torch.randn(3, seqlen))
    assert_close(cpu_convolution.reference(u, k), fftconv_ref(u, k), cpu_convolution.BAR)
    conv = cpu_convolution.best_torch(u, k)
    assert_close(conv(u), fftconv_ref(u, k), cpu_convolution.BAR)
    gate, skip, pregate = torch.randn_like(u), torch.randn(3), torch.randn_like(u)
    g = pregate * u
    assert_close(conv(u, gate, skip, pregate), gate * (fftconv_ref(g, k) + skip[:, None] * g), cpu_convolution.BAR)


def test_timing_something_wrong_means_nothing(monkeypatch):
    u, kept = torch.randn(2, 3, 40), Filter(torch.randn(3, 9))
    y = fftconv_ref(u, kept).float()
    assert cpu_convolution.check("site", y, u, kept) < cpu_convolution.BAR
    with pytest.raises(RuntimeError, match=r"site: the convolution is off by 1\.0e\+00"):
        cpu_convolution.check("site", torch.zeros_like(y), u, kept)
    monkeypatch.setattr(cpu_convolution, "reference", lambda u, *_: 1.00001 * u)
    with pytest.raises(RuntimeError, match="reference code: the convolution is off"):
        cpu_convolution.compare((1, 2, 100), rounds=3)
