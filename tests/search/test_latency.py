"""What plans cost on a device: of the ways that the backends take, and in the order that must be."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from sparsify.cpu import backend as cpu
from sparsify.cpu import cost_model, native
from sparsify.cpu.cost_model import DEFAULT
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.gpu import dispatch
from sparsify.gpu.devices import CARDS, Card
from sparsify.gpu.launch_spec import DecimatedWay, way_from
from sparsify.plan import FilterPlan
from sparsify.search import latency
from sparsify.search.latency import NAMES, Target, target

compiled = pytest.mark.skipif(
    not native.available(), reason="needs the compiled kernels: python -m sparsify.cpu.native.build"
)
CPU = Target("a core")
DENSE = FilterPlan("dense")
N = 1 << 14  # points whose combs fold onto transforms that there are


def plans(n):
    """Plans of all kinds for masks of n points."""
    narrow, wide, comb = BlockMask.low_pass(n, 1 / 32), BlockMask.low_pass(n, 1 / 2), BlockMask.comb(n, 1 / 16)
    return [
        DENSE,
        *(FilterPlan("partial", taps) for taps in (1, 16, 300, n, 3 * n)),
        *(FilterPlan("frequency-sparse", mask=mask) for mask in (narrow, wide, comb)),
        *(FilterPlan("split", taps, mask) for taps in (16, 200) for mask in (narrow, wide, comb)),
    ]


@pytest.fixture(autouse=True)
def default_costs(monkeypatch):
    """Constants of nobody's calibration."""
    monkeypatch.setattr(cpu, "costs", lambda: DEFAULT)


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)


def prepared(plan, taps, seqlen, channels=2, before=0):
    """What the CPU makes ready, and the sizes that the price goes by."""
    k = plan.apply(Filter(torch.randn(channels, taps), before))
    return cpu.prepare(k, seqlen), latency.outline(plan, taps, seqlen, before)


# --- the ways that are taken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taps", "seqlen"), [(1, 1), (50, 50), (50, 200), (50, 300), (256, 256), (256, 100), (256, 257), (700, 300)]
)
@pytest.mark.parametrize("before", [0, 1, 0.5, 1.0])
def test_outline_has_the_sizes_of_the_filter(taps, seqlen, before):
    """Whether it looks back, both ways, or ahead alone."""
    before = min(taps - 1, before if isinstance(before, int) else round(before * taps))
    for plan in plans(256):
        kept = plan.apply(Filter(torch.randn(1, taps), before))
        felt, outlined = kept.felt(seqlen), latency.outline(plan, taps, seqlen, before)
        assert outlined.k.is_meta and (outlined.taps, outlined.lookahead) == (felt.taps, felt.lookahead)
        assert (outlined.mask is not None) == (kept.mask is not None and seqlen <= kept.mask.n)
        if outlined.mask is not None:
            assert outlined.mask == kept.mask and (outlined.head is None) == (kept.head is None)
            if outlined.head is not None:
                assert (outlined.head.taps, outlined.head.lookahead) == (kept.head.taps, kept.head.lookahead)


WAYS = {
    native.Whole: "whole",
    native.Direct: "few taps",
    native.Blocks: "few taps",
    native.Decimated: "decimated",
    native.Comb: "comb",
}


@compiled
@pytest.mark.parametrize(("taps", "seqlen"), [(N, N), (N, N // 4 + 1), (900, N), (N, N + 1)])
@pytest.mark.parametrize("both", [False, True])
def test_the_price_is_that_of_the_way_prepared(taps, seqlen, both):
    seen, before = set(), taps if both else 0
    for plan in plans(N):
        made, outlined = prepared(plan, taps + before, seqlen, before=before)
        way = WAYS[type(cpu.parts_of(made.tables, made.layout)[-1])]  # a head comes before its tail
        assert latency.cpu_way(outlined, seqlen)[1] == way
        found = CPU.seconds(plan, 2, taps + before, seqlen, lookahead=before)
        assert found == pytest.approx(2e-9 * latency.cpu_way(outlined, seqlen)[0])
        seen.add(way)
    assert seen == (set(WAYS.values()) if seqlen <= N else {"few taps", "whole"})


@compiled
@pytest.mark.parametrize("spectra_bytes", [None, 8 * 4096 * 2, 8 * 4096 * 2 - 1, 0])
def test_spectra_that_are_not_kept_cost_more(spectra_bytes):
    made = cpu.prepare(Filter(torch.randn(2, 4096)), 4096, spectra_bytes)
    kept = cpu.parts_of(made.tables, made.layout)[0].spectra is not None
    cheap, now = CPU.seconds(DENSE, 2, 4096, 4096), CPU.seconds(DENSE, 2, 4096, 4096, spectra_bytes=spectra_bytes)
    assert (now == cheap) is kept and now >= cheap
    few = FilterPlan("partial", 16)
    assert CPU.seconds(few, 2, 4096, 4096, spectra_bytes=0) == CPU.seconds(few, 2, 4096, 4096)
    shared = CPU.seconds(DENSE, 2, 4096, 4096, 8, spectra_bytes=0) / CPU.seconds(DENSE, 2, 4096, 4096, 8)
    assert 1 < shared < CPU.seconds(DENSE, 2, 4096, 4096, spectra_bytes=0) / cheap  # one filter for the whole batch


@pytest.mark.parametrize("seqlen", [1000, 4096])
def test_without_kernels_a_mask_saves_nothing(without_kernels, seqlen):
    dense = CPU.seconds(DENSE, 2, 4096, seqlen)
    for plan in plans(4096):
        made, outlined = prepared(plan, 4096, seqlen)
        n, hop = made.layout[1:]
        assert made.layout[0] == cpu.TORCH and (n, hop) == cpu.choose_size(seqlen, outlined.taps, outlined.lookahead)
        seconds = CPU.seconds(plan, 2, 4096, seqlen)
        assert seconds == dense if plan.mask else 0 < seconds <= dense
    short, long = (CPU.seconds(FilterPlan("partial", 16), 2, n, n) for n in (1 << 16, 1 << 17))
    assert short < 0.7 * CPU.seconds(DENSE, 2, 1 << 16, 1 << 16) and long == pytest.approx(2 * short, rel=0.05)


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize(("taps", "seqlen"), [(1024, 1024), (1024, 1500)])
def test_a_card_takes_the_quickest_way(taps, seqlen, dtype):
    card, own = CARDS["sm_90"], dtype or torch.float16
    for plan in plans(1024):
        k = plan.apply(torch.randn(2, taps))
        way = way_from(dispatch.prepare(k, seqlen, own, 3, card).layout)
        how = "decimated" if isinstance(way, DecimatedWay) else "masked" if way.masked else "plain"
        felt = latency.outline(plan, taps, seqlen)
        found = dispatch.ways(dispatch.Layer(card, own, seqlen, 3, 2), felt.taps, felt.lookahead, felt.structure)
        assert target("sm_90").seconds(plan, 2, taps, seqlen, 3, dtype) == found[how][0]


@compiled
def test_the_other_side_costs_where_it_is_taken_along():
    """One transform serves both directions; the taps of a short filter are twice as many."""

    def cost_model(plan, lookahead):
        return CPU.seconds(plan, 2, N + lookahead, N, lookahead=lookahead)

    narrow = FilterPlan("frequency-sparse", mask=BlockMask.low_pass(N, 1 / 32))
    assert cost_model(DENSE, N) == cost_model(DENSE, 0) and cost_model(narrow, N) == cost_model(narrow, 0)
    few = FilterPlan("partial", 12)
    assert 1.2 * cost_model(few, 0) < cost_model(few, N) <= 1.01 * cost_model(FilterPlan("partial", 23), 0)
    wide, twice = (FilterPlan("split", taps, narrow.mask) for taps in (12, 23))
    assert cost_model(wide, 0) < cost_model(wide, N) == pytest.approx(cost_model(twice, 0), rel=0.01)


def test_a_card_takes_filters_that_look_both_ways():
    card, n = CARDS["sm_90"], 1024
    for plan in plans(n):
        k = plan.apply(Filter(torch.randn(2, 2 * n), n))
        layer, felt = dispatch.Layer(card, torch.float16, n, 3, 2), k.felt(n)
        found = dispatch.ways(layer, felt.taps, felt.lookahead, k.structure)
        best = min(seconds for seconds, _ in found.values())
        assert target("sm_90").seconds(plan, 2, 2 * n, n, 3, lookahead=n) == best


# --- what must be --------------------------------------------------------------------------------------------------

EVERYWHERE = [CPU, target("h100")]


@pytest.mark.parametrize("device", EVERYWHERE, ids=lambda device: device.name)
def test_more_costs_more(device):
    n = 1 << 13
    by_taps = [device.seconds(FilterPlan("partial", 1 << i), 256, n, n) for i in range(4, 14)]
    by_band = [device.seconds(FilterPlan("split", 64, BlockMask.low_pass(n, 2.0**-i)), 256, n, n) for i in (8, 4, 2, 1)]
    by_length = [device.seconds(DENSE, 256, n, length) for length in (n // 4, n // 2, n)]
    by_channels = [device.seconds(DENSE, channels, n, n) for channels in (256, 512, 1024)]
    by_batch = [device.seconds(DENSE, 256, n, n, batch) for batch in (1, 2, 4)]
    for found in (by_taps, by_band, by_length, by_channels, by_batch):
        assert all(0 < a <= 1.03 * b for a, b in pairwise(found)), found  # a little for sizes that happen to suit
    assert by_taps[-1] == pytest.approx(device.seconds(DENSE, 256, n, n))  # all taps
    assert by_taps[0] < 0.7 * by_taps[-1] and by_length[0] < by_length[-1] < by_channels[-1]


def test_threads_share_the_rows():
    one, two = CPU.seconds(DENSE, 7, 512, 512), replace(CPU, threads=2).seconds(DENSE, 7, 512, 512)
    assert two == pytest.approx(one * 4 / 7)  # of seven rows one thread has four
    assert replace(CPU, threads=16).seconds(DENSE, 7, 512, 512) == pytest.approx(one / 7)


def test_the_cpu_has_one_precision():
    assert CPU.seconds(DENSE, 2, 512, 512, dtype=torch.float16) == CPU.seconds(DENSE, 2, 512, 512)


@pytest.mark.parametrize("device", EVERYWHERE, ids=lambda device: device.name)
@pytest.mark.parametrize("sizes", [(0, 8, 8), (8, 0, 8), (8, 8, 0), (8, 8, 8, 0)])
def test_sizes_are_checked(device, sizes):
    with pytest.raises(ValueError, match="sizes are at least 1, got channels="):
        device.seconds(DENSE, *sizes)


def test_a_card_says_what_it_cannot():
    with pytest.raises(ValueError, match=r"H200 has no kernel for 67108864 samples: .* two levels hold up to"):
        target("h200").seconds(DENSE, 1, 1 << 26, 1 << 26)
    with pytest.raises(ValueError, match="no kernel computes in float64"):
        target("h200").seconds(DENSE, 1, 256, 256, dtype=torch.float64)


# --- names ---------------------------------------------------------------------------------------------------------


def test_the_cpu_is_the_default():
    assert target() == target("cpu") == target(" CPU ")
    assert target().name == f"cpu ({cost_model.processor()})" and target().card is None
    assert target().threads == torch.get_num_threads()


def test_cards_by_architecture_and_by_name():
    for arch, card in CARDS.items():
        assert target(arch).card == card and target(arch).name == card.name
    for name, card in NAMES.items():
        assert target(name.upper()) == target(name) and name in target(name).name.lower() and target(name).card == card
    slow, fast = (target(name).seconds(FilterPlan("partial", 16), 256, 8192, 8192, 8) for name in ("h100", "h200"))
    assert fast < slow  # more bandwidth


def test_the_card_at_hand(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no CUDA device here; name the card instead: a100, "):
        target("cuda")
    here = replace(CARDS["sm_89"], name="NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Card, "of", lambda device=None: here)
    assert target("cuda") == Target("NVIDIA L4", here)


@pytest.mark.parametrize(
    ("name", "hint"), [("h10", "did you mean 'h100'"), ("sm_91", "did you mean 'sm_90'"), ("tpu v5", ""), ("", "")]
)
def test_unknown_names(name, hint):
    with pytest.raises(ValueError, match=rf"no device is called '{name}'.*{hint}.*Known: cpu, cuda, sm_80") as caught:
        target(name)
    assert bool(hint) == ("did you mean" in str(caught.value))


def test_a_target_has_a_thread():
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        Target("none", threads=0)
