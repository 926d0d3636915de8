"""What a candidate would cost, without running it: against the error measured sample by sample."""

import math

import layouts_m2
import pytest
import torch
from helpers import assert_close, reference_conv
from layouts import tiny_model
from searches import H, L, N, measured, recorded, signals, site, smooth_filter, two_sided

from sparsify import swap
from sparsify.converters import load
from sparsify.fftconv import LongConv, fftconv_ref
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.filters.spectra import spectrum
from sparsify.plan import FilterPlan
from sparsify.search import sensitivity
from sparsify.search.sensitivity import Candidate, Errors, Loss, Moments, Recorder
from sparsify.sites import ConvSite

DENSE = FilterPlan("dense")
SPLIT = FilterPlan("split", 16, BlockMask.low_pass(N, 0.125))
LOW = FilterPlan("frequency-sparse", mask=BlockMask.low_pass(N, 0.125))


@pytest.mark.parametrize("plan", [FilterPlan("partial", 10), FilterPlan("partial", 60), SPLIT, LOW], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_predicted_error_is_the_measured_one(plan, causal):
    k, (g, gate) = smooth_filter(L, H), signals()
    kept = plan.apply(k)
    shown = kept.past() if causal else kept
    lost = sensitivity.difference(Filter(k), shown)
    whole = measured(k.double(), g, gate)
    found = sensitivity.errors(k, plan, recorded(g, gate), causal)
    assert found.error == pytest.approx(measured(lost, g, gate) / whole, rel=0.1)
    assert found.error == pytest.approx(sensitivity.output_error(k, shown, recorded(g, gate)), rel=1e-9)
    if causal and kept.lookahead:
        future = Filter(torch.nn.functional.pad(kept.k[:, : kept.lookahead].double(), (0, 1)), kept.lookahead)
        assert found.future == pytest.approx(measured(future, g, gate) / whole, rel=0.1)
    else:
        assert found.future == 0


PARTIAL = FilterPlan("partial", 10)
COMB = FilterPlan("frequency-sparse", mask=BlockMask.comb(N, 0.25))
SHORT = FilterPlan("split", 1, SPLIT.mask)
BOTH_WAYS = [PARTIAL, FilterPlan("partial", 60), SPLIT, SHORT, LOW, COMB]


@pytest.mark.parametrize("lookahead", [L, L - 1, 30])
@pytest.mark.parametrize("plan", BOTH_WAYS, ids=str)
def test_predicted_error_of_a_filter_that_looks_both_ways(plan, lookahead):
    """By what each side loses, and where: it is not the error of one side, nor of the same taps at other lags."""
    k, (g, gate) = two_sided(lookahead), signals()
    moments, kept = recorded(g, gate), plan.apply(k)
    expected = measured(sensitivity.difference(k, kept), g, gate) / measured(k.to(torch.float64), g, gate)
    found = sensitivity.errors(k, plan, moments, causal=False)
    assert found.error == pytest.approx(expected, rel=0.05) and found.future == 0
    assert found.error == pytest.approx(sensitivity.output_error(k, kept, moments), rel=1e-9)
    wrong = [sensitivity.errors(k.past(), plan, moments, causal=False)]
    wrong += [sensitivity.errors(k.k, plan, moments, causal=False)] if plan.taps else []
    assert all(abs(other.error / expected - 1) > 0.08 for other in wrong)


def test_what_is_taken_away_of_a_filter_that_looks_both_ways():
    k, kept = two_sided(3), FilterPlan("partial", 2).apply(two_sided(3))
    lost = sensitivity.difference(k, kept)
    expected = k.k.double().clone()
    expected[:, 2:5] = 0  # lags -1, 0, 1
    assert lost.lookahead == 3 and torch.equal(lost.k, expected)
    lost = sensitivity.difference(k, LOW.apply(k))
    assert lost.lookahead == N and lost.k.shape == (H, 2 * N)
    assert_close(lost.k[:, N - 3 : N + L] + LOW.apply(k).k[:, N - 3 : N + L], k.k, 1e-6)


def test_what_arrives_decides():
    """The same change costs less where it meets nothing, and the bar above tells those cases apart."""
    k = smooth_filter(L, H)
    slow, gate = signals(color=0.95)
    white = torch.randn_like(slow)
    errors = [sensitivity.errors(k, LOW, recorded(g, gate), causal=False).error for g in (slow, white)]
    assert errors[0] < 0.1 * errors[1]
    k[0] = torch.randn(L)  # rough: a low-pass loses most of it
    quiet = torch.ones(H, dtype=torch.float64)
    quiet[1:] = 0
    loudest = sensitivity.errors(k, LOW, recorded(white * quiet[:, None], gate), causal=False).error
    shut = sensitivity.errors(k, LOW, recorded(white, gate * quiet[:, None]), causal=False).error
    assert loudest == pytest.approx(shut, rel=0.1) and loudest > 2 * errors[1]


def test_channels_in_pieces_say_the_same(monkeypatch):
    k, (g, gate) = smooth_filter(L, H), signals(50)
    whole = sensitivity.errors(k, SPLIT, recorded(g, gate), causal=True)
    monkeypatch.setattr(sensitivity, "CHUNK_BYTES", 1)
    pieces = sensitivity.errors(k, SPLIT, recorded(g, gate), causal=True)
    assert pieces.error == pytest.approx(whole.error, rel=1e-5)
    assert pieces.future == pytest.approx(whole.future, rel=1e-5)


def test_nothing_lost_is_no_error():
    k, moments = smooth_filter(L, H), recorded(*signals(20))
    assert sensitivity.errors(k, DENSE, moments, causal=True) == Errors(0.0, 0.0)
    full = FilterPlan("frequency-sparse", mask=BlockMask.full(N))
    assert sensitivity.errors(k, full, moments, causal=True).error < 1e-12


def test_recorder_convolves_and_takes_note():
    """In float32, with gates, in batches: the same result as without it, and moments by the definition."""
    k, u, gate, pregate = torch.randn(H, 30), *torch.randn(3, 6, H, 50)
    recorder, plain = Recorder(k, 64), LongConv(k)
    skip = torch.randn(H)
    for rows in (slice(4), slice(4, 6)):
        y = recorder(u[rows], gate[rows], skip, pregate[rows])
        assert torch.equal(y, plain(u[rows], gate[rows], skip, pregate[rows]))
    found = recorder.moments()
    expected = torch.stack([spectrum(w, 64).abs().square() for w in u * pregate]).mean(0)
    assert torch.allclose(found.power.double(), expected, rtol=1e-4) and (found.windows, found.seqlen) == (6, 50)
    assert torch.allclose(found.gate, gate.square().mean((0, 2)), rtol=1e-5)
    ungated = Recorder(k, 64)
    ungated(u)
    assert torch.equal(ungated.moments().gate, torch.ones(H))
    both_ways = Recorder(Filter(k, 9), 64)
    assert_close(both_ways(u), fftconv_ref(u, Filter(k, 9)), 1e-5)


def test_recording_reads_a_model_and_leaves_it_as_it_was():
    model, sites = tiny_model()
    filters = swap.Filters(sites)
    ids = torch.randint(7, 11, (6, 64))
    own = swap.install(sites, dict.fromkeys(filters))
    inputs, gates = [], []

    def watch(g, gate, skip):
        inputs.append(g.clone())
        gates.append(gate.clone())
        return reference_conv(filters[sites[0].name])(g, gate, skip)

    def run():
        for some in ids.split(2):
            model(some)

    with torch.no_grad(), sensitivity.recording(sites, filters) as so_far:
        run()
    found = so_far()
    assert swap.install(sites, dict.fromkeys(filters)) == own
    swap.install(sites, {sites[0].name: watch, sites[1].name: None})
    run()
    expected = spectrum(torch.cat(inputs).flatten(0, 1), 64).abs().square().unflatten(0, (6, -1)).mean(0)
    assert torch.allclose(found[sites[0].name].power.double(), expected, rtol=1e-3, atol=1e-6 * expected.max().item())
    assert torch.allclose(found[sites[0].name].gate, torch.cat(gates).square().mean((0, 2)), rtol=1e-3)
    assert found[sites[1].name].windows == 6


def test_recording_is_undone_even_when_it_fails():
    _, sites = tiny_model()
    filters = swap.Filters(sites)
    with pytest.raises(ValueError, match=r"no window reached backbone\.layers\.0"), \
            sensitivity.recording(sites, filters) as so_far:  # fmt: skip
        so_far()
    with pytest.raises(ZeroDivisionError), sensitivity.recording(sites, filters):
        raise ZeroDivisionError
    assert all(conv is None for conv in swap.install(sites, dict.fromkeys(filters)).values())


def test_recording_goes_on_bit_for_bit():
    g, gate = signals(7)
    whole, first = recorded(g, gate), recorded(g[:3], gate[:3])
    second = Recorder(torch.zeros(H, 1), N, first)
    second.note(g[3:], gate[3:])
    found = second.moments()
    assert torch.equal(found.power, whole.power) and torch.equal(found.gate, whole.gate)
    assert (found.windows, found.seqlen) == (whole.windows, whole.seqlen) == (7, L)
    with pytest.raises(ValueError, match=r"moments \(4, 256\) do not fit a site of 4 x 128 bins"):
        Recorder(torch.zeros(H, 1), N // 2, found)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("taps", [L, N + 2])
def test_a_ladder_has_the_errors_of_its_plans(causal, taps, monkeypatch):
    """To float32, in pieces of any size; taps beyond the bins change nothing."""
    k, moments = smooth_filter(taps, H), recorded(*signals(20))
    there = site(k[:, :L], causal)
    rungs = 0
    for ladder in sensitivity.ladders(Filter(k), there, masks_alone=True):
        found = sensitivity.walked(k, ladder, moments, causal)
        assert [plan for plan, _ in found] == ladder[: len(found)]
        for plan, error in found:
            expected = sensitivity.errors(k, plan, moments, causal)
            assert error.error == pytest.approx(expected.error, rel=1e-4, abs=1e-12)
            assert error.future == pytest.approx(expected.future, rel=1e-4, abs=1e-12)
        if len(found) < len(ladder):
            beyond = sensitivity.errors(k, ladder[len(found)], moments, causal).error
            assert beyond > sensitivity.LARGEST_ERROR
        rungs += len(found)
        with monkeypatch.context() as patch:
            patch.setattr(sensitivity, "CHUNK_BYTES", 1)
            pieces = sensitivity.walked(k, ladder, moments, causal)
        assert [error.error for _, error in pieces] == pytest.approx([error.error for _, error in found], rel=1e-5)
    assert rungs > 40


@pytest.mark.parametrize("lookahead", [1, 30, L, N, N + 9])
def test_a_ladder_of_a_filter_that_looks_both_ways(lookahead):
    """Step by step what `errors` says, in float64, with heads on both sides and lags that no window feels."""
    parts = torch.randn(H, max(0, lookahead - L)), two_sided(min(lookahead, L)).k, torch.randn(H, 2 * (N - L))
    k = Filter(torch.cat(parts, dim=-1), lookahead)
    moments, rungs = recorded(*signals(20)), 0
    there = ConvSite("site", H, k.taps, L, False, lambda: k, lambda conv: None)
    for ladder in sensitivity.ladders(k, there, masks_alone=True):
        found = sensitivity.walked(k, ladder, moments, False)
        for plan, error in found:
            expected = sensitivity.errors(k, plan, moments, False)
            assert error.error == pytest.approx(expected.error, rel=1e-4, abs=1e-9) and error.future == 0
        if len(found) < len(ladder):
            beyond = sensitivity.errors(k, ladder[len(found)], moments, False).error
            assert beyond > sensitivity.LARGEST_ERROR
        rungs += len(found)
    assert rungs > 60


def test_a_ladder_leaves_out_what_leaks():
    k, moments = smooth_filter(L, H), recorded(*signals(20))
    masks = [FilterPlan("frequency-sparse", mask=BlockMask.low_pass(N, share)) for share in (0.5, 0.25, 0.125)]
    splits = [FilterPlan("split", taps, SPLIT.mask) for taps in (64, 16, 4)]
    for ladder in (masks, splits):
        found = dict(sensitivity.walked(k, ladder, moments, causal=True))
        leaks = [plan.apply(k).leak() for plan in ladder]
        limit = sorted(error.future for error in found.values())[1]
        few = sensitivity.walked(k, ladder, moments, causal=True, future=limit)
        assert [plan for plan, _ in few] == [
            plan for plan, leak in zip(ladder, leaks, strict=True)
            if found[plan].future <= limit and leak <= sensitivity.AHEAD_LIMIT
        ]  # fmt: skip
    assert few and len(few) < 3


@pytest.mark.parametrize("plan", [SPLIT, LOW, FilterPlan("partial", 10)], ids=str)
def test_leak_of_what_is_left(plan):
    k, (turn, _) = smooth_filter(N + 2, H), sensitivity.turns(N, L)
    step = sensitivity.LadderStep(plan, None if plan.mask is None else ~plan.mask.bins())
    (lost,) = sensitivity.taken(Filter(k[:, :N]), [step], turn)
    kept = plan.apply(k).past().k
    now = torch.nn.functional.pad(kept, (0, len(k[0]) - len(kept[0])))[:, :N]
    assert_close(k[:, :N] - lost.real, now, 1e-6)
    if plan.leaks:
        assert sensitivity.leak(lost, k) == pytest.approx(plan.apply(k).leak(), rel=1e-4)


def test_candidates_take_moments_of_their_site():
    with pytest.raises(ValueError, match=r"moments \(4, 256\) are not those of site, which has 4 channels and 128"):
        sensitivity.candidates(torch.ones(H, 100), site(torch.ones(H, 100)), recorded(*signals(5)), weigh)


def weigh(plan):
    return plan.density(L)


@pytest.mark.parametrize("causal", [True, False])
def test_candidates(causal):
    k, moments = smooth_filter(L, H), recorded(*signals(20))
    dense, *others = sensitivity.candidates(k, site(k, causal), moments, weigh)
    assert dense == Candidate(DENSE, Errors(0.0, 0.0), 1.0) and others
    assert all(one.seconds < 1 and 0 < one.errors.error <= sensitivity.LARGEST_ERROR for one in others)
    assert not any(sensitivity.beats(a, b) for a in others for b in others)
    kinds = {one.plan.kind for one in others}
    assert ("frequency-sparse" in kinds) == (not causal)
    leaky = sensitivity.candidates(k, site(k, causal), moments, weigh, future=math.inf)
    assert "frequency-sparse" in {one.plan.kind for one in leaky}
    limit = sorted(one.errors.future for one in others)[len(others) // 2]
    for one in sensitivity.candidates(k, site(k, causal), moments, weigh, limit):
        assert one.errors.future <= limit and one.plan.apply(k).leak() <= (sensitivity.AHEAD_LIMIT if causal else 1)


def test_what_is_no_cheaper_is_no_candidate():
    k, moments = smooth_filter(L, H), recorded(*signals(20))
    assert [c.plan for c in sensitivity.candidates(k, site(k), moments, lambda plan: 1.0)] == [DENSE]
    few = sensitivity.candidates(k, site(k), moments, lambda plan: 2.0 if plan.leaks else weigh(plan))
    assert {one.plan.kind for one in few} == {"dense", "partial"}


def test_loss_passes_through_its_probes():
    loss = Loss(((1e-4, 2e-5), (1e-2, 4e-3)))
    assert loss.at(0) == 0 and loss.at(1e-4) == pytest.approx(2e-5) and loss.at(1e-2) == pytest.approx(4e-3)
    assert loss.at(1e-3) == pytest.approx(math.sqrt(2e-5 * 4e-3))  # halfway, on logarithmic axes
    assert loss.at(1e-6) == pytest.approx(2e-7) and loss.at(1e-1) == pytest.approx(4e-2)  # in proportion
    assert Loss(((1e-3, 1e-4), (1e-3, 2e-4))).at(1e-3) == 2e-4  # two of one error: the worse


@pytest.mark.parametrize("probes", [(), ((0.0, 1.0),), ((1.0, math.nan),), ((1.0, math.inf),)])
def test_refused_probes(probes):
    with pytest.raises(ValueError, match="probes of an error and a KL above zero"):
        Loss(probes)


def test_losses_are_read_off_their_own_kind():
    few = [Candidate(FilterPlan("partial", taps), Errors(1 / taps, 0.0), taps) for taps in (8, 16, 32)]
    split = [Candidate(FilterPlan("split", taps, SPLIT.mask), Errors(1 / taps, 0.0), taps) for taps in (8, 16, 32)]
    kl = {few[1].plan: 1.0, split[0].plan: 0.25}
    some = [Candidate(DENSE, Errors(0.0, 0.0), 99.0), *few, *split]
    assert sensitivity.predicted(some, kl) == pytest.approx([0, 2, 1, 0.5, 0.25, 0.125, 0.0625])
    del kl[split[0].plan]
    assert sensitivity.predicted(some, kl)[4:] == pytest.approx([2, 1, 0.5])  # of the other kind, where there is none


def test_probes_are_spread_over_both_kinds():
    few = [Candidate(FilterPlan("partial", taps), Errors(1 / taps, 0.0), taps) for taps in range(1, 9)]
    split = [Candidate(FilterPlan("split", taps, SPLIT.mask), Errors(1 / taps, 0.0), taps) for taps in range(1, 4)]
    some = [Candidate(DENSE, Errors(0.0, 0.0), 99.0), *few, *split]
    assert len(sensitivity.to_probe(some, 100)) == 11
    for count in range(12):
        chosen = sensitivity.to_probe(some, count)
        assert len(set(chosen)) == len(chosen) == count and DENSE not in chosen
    assert {plan.kind for plan in sensitivity.to_probe(some, 2)} == {"partial", "split"}
    assert [plan.taps for plan in sensitivity.to_probe(few, 2)] == [6, 2]  # neither the largest error nor the smallest


def test_moments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"take one gate a channel, 1 to 8 samples and a window, got \(3,\)"):
        Moments(torch.ones(2, 8), torch.ones(3), 8, 1)
    with pytest.raises(ValueError, match=r"got .* 9 and 1"):
        Moments(torch.ones(2, 8), torch.ones(2), 9, 1)


def test_a_filter_that_looks_both_ways_may_keep_anything():
    """Masks alone and the shortest heads, which a causal site of the same taps is not offered."""
    k, moments = two_sided(L), recorded(*signals(20))
    there = ConvSite("site", H, 2 * L, L, False, lambda: k, lambda conv: None)
    dense, *others = sensitivity.candidates(k, there, moments, lambda plan: plan.density(2 * L, L))
    assert dense.plan == DENSE and all(one.seconds < 1 for one in others)
    kinds = {(one.plan.kind, one.plan.taps) for one in others}
    assert ("frequency-sparse", None) in kinds and any(kind == "split" and taps <= 12 for kind, taps in kinds)
    assert all(taps is None or taps < L for _, taps in kinds)
    for one in others:
        assert one.errors == sensitivity.walked(k, [one.plan], moments, False)[0][1]


def test_recording_reads_a_model_that_looks_both_ways(tmp_path):
    """What its two convolutions a layer are given, by the model's own code."""
    p = load(layouts_m2.write(tmp_path / "m2"))
    ids = torch.randint(5, 30, (6, 32))
    seen = {}

    def watch(name, k):
        def conv(g, gate=None, skip=None):
            seen[name] = g.clone(), torch.ones(6, k.channels, 1) if gate is None else gate.clone()
            return (1 if gate is None else gate) * (fftconv_ref(g, k).float() + skip[:, None] * g)

        return conv

    with torch.no_grad():
        with sensitivity.recording(p.sites, p.filters) as so_far:
            logits = p.model(ids)
        convs = {site.name: watch(site.name, p.filters[site.name]) for site in p.sites}
        with swap.installed(p.sites, convs):
            assert_close(p.model(ids), logits, 1e-4)
    assert len(p.sites) == 4 and all(k.lookahead == 32 for k in p.filters.values())
    for name, found in so_far().items():
        g, gate = seen[name]
        expected = torch.stack([spectrum(window, 32).abs().square() for window in g]).mean(0)
        assert_close(found.power, expected, 1e-3)
        assert torch.allclose(found.gate, gate.square().mean((0, 2)), rtol=1e-3) and found.windows == 6
