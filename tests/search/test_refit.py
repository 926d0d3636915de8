"""Re-fitted coefficients: less output error with the same taps and bins, and a leak that keeps to its limit."""

from dataclasses import replace

import layouts
import pytest
import torch
from click.testing import CliRunner
from helpers import assert_close
from layouts import tiny_model
from searches import H, L, N, measured, recorded, signals, site, smooth_filter, two_sided

from sparsify import swap
from sparsify.cli.main import main
from sparsify.converters import load
from sparsify.cpu.backend import masked_spectrum
from sparsify.evals.data import read_documents, windows
from sparsify.evals.quality import compare
from sparsify.fftconv import LongConv, fftconv_ref
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan, Plan
from sparsify.plan.coefficients import Coefficients
from sparsify.search import sensitivity
from sparsify.search.refit import FLOOR, refit, refitted
from sparsify.search.sensitivity import Moments, errors

MASK = BlockMask.low_pass(N, 0.125)
PLANS = [
    FilterPlan("partial", 24),
    FilterPlan("split", 16, MASK),
    FilterPlan("frequency-sparse", mask=MASK),
    FilterPlan("frequency-sparse", mask=BlockMask.comb(N, 0.25)),
]


@pytest.fixture
def gathered():
    """A filter, its signals and gates, and their moments."""
    g, gate = signals(60)
    return smooth_filter(L, H), g, gate, recorded(g, gate)


def lost(k, plan, moments, causal):
    """What the re-fit makes small: the error, and what comes from the future of a causal site."""
    found = errors(k, plan, moments, causal)
    return found.error + found.future


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_no_other_coefficients_nearby_do_better(gathered, plan, causal):
    k, _, _, moments = gathered
    found = refit(k, plan, moments, causal, future=1.0, leak=1.0)
    least = lost(k, found, moments, causal)
    assert least < (0.8 if plan.kind in ("partial", "split") else 1) * lost(k, plan, moments, causal)
    for name, part in found.values:
        for _ in range(4):
            other = {**dict(found.values), name: part + 0.1 * part.abs().mean() * torch.randn(part.shape)}
            assert lost(k, replace(found, values=Coefficients(**other)), moments, causal) > least


def test_leading_taps_solve_the_equations(gathered, monkeypatch):
    """Against a dense solve in which the Toeplitz matrix is written out."""
    monkeypatch.setattr("sparsify.search.refit.CLOSE", 1e-7)
    k, _, _, moments = gathered
    found, lags = refit(k, PLANS[0], moments, causal=True).values.taps, torch.arange(N)
    waves = torch.exp(2j * torch.pi * (lags + 0.25)[:, None] * lags / N)  # (bins, lags)
    felt = (1 - lags / L).clamp_min(0).sqrt().double()
    for h in range(H):
        power = moments.power[h].double() / moments.power[h].double().mean()
        r = (power @ waves.to(torch.complex128).real) / N
        gram = felt[:, None] * r[(lags[:, None] - lags).abs()] * felt + FLOOR * torch.eye(N)
        target = torch.nn.functional.pad(k[h].double(), (0, N - L))
        assert_close(found[h], torch.linalg.solve(gram[:24, :24], gram[:24] @ target), 1e-5)


@pytest.mark.parametrize("lookahead", [L, 30, N + 9])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_filter_that_looks_both_ways(gathered, plan, lookahead):
    """No other coefficients nearby do better, at either side; the kernels get the structure that they are promised."""
    _, _, _, moments = gathered
    k = Filter(torch.cat([torch.ones(H, max(0, lookahead - L)), two_sided(min(lookahead, L)).k], dim=-1), lookahead)
    found = refit(k, plan, moments, False)
    least, was = (errors(k, some, moments, False).error for some in (found, plan))
    assert least < (0.9 if plan.kind in ("partial", "split") else 1) * was
    for name, part in found.values:
        sides = [part, part.flip(-1)] if name == "taps" else [part]
        for noise in (0.1 * side.abs() * torch.randn(part.shape) for side in sides for _ in range(2)):
            other = {**dict(found.values), name: part + noise}
            assert errors(k, replace(found, values=Coefficients(**other)), moments, False).error > least
    kept, u = found.apply(k), torch.randn(2, H, L)
    assert_close(LongConv(kept)(u), fftconv_ref(u, kept), 1e-5)


def test_taps_of_both_sides_solve_the_equations(gathered, monkeypatch):
    """Against a dense solve over the lags from -23 to 23."""
    monkeypatch.setattr("sparsify.search.refit.CLOSE", 1e-7)
    _, _, _, moments = gathered
    k, lags = two_sided(L), torch.arange(-L, L)
    found = refit(k, PLANS[0], moments, False).values.taps
    f, felt = torch.arange(N).double() + 0.25, (1 - lags.abs() / L).clamp_min(0).sqrt().double()
    kept = lags.abs() < 24
    for h in range(H):
        power = moments.power[h].double() / moments.power[h].double().mean()
        r = (torch.exp(2j * torch.pi * torch.arange(2 * L)[:, None] * f / N) @ power.to(torch.complex128)).real / N
        gram = felt[:, None] * r[(lags[:, None] - lags).abs()] * felt + FLOOR * torch.eye(2 * L)
        assert_close(found[h], torch.linalg.solve(gram[kept][:, kept], gram[kept] @ k.k[h].double()), 1e-4)


@pytest.mark.parametrize("plan", PLANS[:3], ids=str)
def test_it_holds_on_signals_it_did_not_see(gathered, plan):
    k, g, gate, _ = gathered
    found = refit(k, plan, recorded(g[:30], gate[:30]), causal=False)
    was, now = (sensitivity.difference(Filter(k), some.apply(k)) for some in (plan, found))
    assert measured(now, g[30:], gate[30:]) < measured(was, g[30:], gate[30:])


@pytest.mark.parametrize("plan", PLANS[1:], ids=str)
def test_kernels_get_the_structure_they_are_promised(gathered, plan):
    k, _, _, moments = gathered
    kept = refit(k, plan, moments, causal=True).apply(k)
    whole = masked_spectrum(kept)
    assert (whole * ~kept.mask.bins()).norm() < 1e-5 * whole.norm()
    u = torch.randn(2, H, L)
    assert_close(LongConv(kept)(u), fftconv_ref(u, kept), 1e-5)


@pytest.mark.parametrize(("future", "leak"), [(1e-7, 1.0), (1.0, 1e-3), (1e-30, 1e-30)])
def test_a_leak_keeps_to_its_limit(gathered, future, leak):
    k, _, _, moments = gathered
    free, bound = (refit(k, PLANS[1], moments, True, future=a, leak=b) for a, b in ((1.0, 1.0), (future, leak)))
    assert errors(k, free, moments, True).future > future or free.apply(k).leak() > leak  # so it takes something
    assert errors(k, bound, moments, True).future <= max(future, 1e-12)
    assert bound.apply(k).leak() <= max(leak, 1e-6)
    assert errors(k, bound, moments, True).error > errors(k, free, moments, True).error
    alone = refit(k, FilterPlan("partial", 16), moments, True)  # all that is left where nothing may leak
    assert errors(k, bound, moments, True).error < 1.01 * errors(k, alone, moments, True).error


def test_unless_told_it_leaks_no_more_than_before(gathered):
    k, _, _, moments = gathered
    for plan in PLANS[1:]:
        found = refit(k, plan, moments, causal=True)
        assert errors(k, found, moments, True).future <= errors(k, plan, moments, True).future
        assert found.apply(k).leak() <= plan.apply(k).leak()


def test_channels_that_hear_nothing_keep_to_the_filter(gathered):
    k, _, _, moments = gathered
    power = moments.power.clone()
    power[0] = 0
    found = refit(k, PLANS[0], Moments(power, moments.gate, L, 1), causal=True)
    assert_close(found.values.taps[0], k[0, :24], 1e-6)
    assert (found.values.taps[1] - k[1, :24]).norm() > 1e-2 * k[1, :24].norm()


def test_taps_beyond_the_moments_stay(gathered):
    _, _, _, moments = gathered
    k = torch.cat([smooth_filter(L, H), torch.ones(H, N)], dim=1)
    for plan in (FilterPlan("partial", N + 9), FilterPlan("split", 16, MASK)):
        found = refit(k, plan, moments, causal=True).apply(k)
        assert torch.equal(found.k[:, found.lookahead :][:, N : N + 9], k[:, N : N + 9])


def test_masks_and_moments_of_other_sizes_are_refused(gathered):
    k, _, _, moments = gathered
    with pytest.raises(ValueError, match="mask is on 512 points and the moments on 256; make both on as many"):
        refit(k, FilterPlan("split", 16, BlockMask.low_pass(512, 0.125)), moments, True)


def test_a_model_is_re_fitted_site_by_site():
    """Random weights, no data: every site's error falls; one that keeps everything stays; a judge has the last word."""
    model, sites = tiny_model()
    filters, ids = swap.Filters(sites), torch.randint(7, 11, (40, 64))
    with sensitivity.recording(sites, filters) as so_far:
        model(ids)
    moments = so_far()
    plan = Plan({s.name: FilterPlan("partial", 6) for s in sites}, "taps 6")
    lines = []
    found = refitted(plan, filters, moments, sites, progress=lines.append)
    for s in sites:
        was, now = (errors(filters[s.name], p.filters[s.name], moments[s.name], True).error for p in (plan, found))
        assert now < 0.95 * was and any(line.startswith(s.name) for line in lines)
    half = replace(plan, filters={**plan.filters, sites[0].name: FilterPlan("dense")})
    assert refitted(half, filters, moments, sites).filters[sites[0].name] == FilterPlan("dense")
    better = sites[1].name

    def judge(some):
        return float(sum(f.values is not None for name, f in some.filters.items() if name != better)
                     - sum(f.values is not None for name, f in some.filters.items() if name == better))  # fmt: skip

    judged = refitted(plan, filters, moments, sites, judge=judge)
    assert {name for name, f in judged.filters.items() if f.values is not None} == {better}
    with pytest.raises(ValueError, match="does not fit the model"):
        refitted(plan, filters, moments, [site(smooth_filter(L, H))])


def test_the_command_line_takes_the_file_beside_a_plan(tmp_path):
    checkpoint = layouts.write_tiny(tmp_path / "source")
    p = load(checkpoint)
    values = Coefficients(torch.randn(12, 6))
    plan = Plan({s.name: FilterPlan("partial", 6, values=values) for s in p.sites}, "taps 6")
    (tmp_path / "mine.json").write_text(plan.to_json())
    command = ["convert", str(checkpoint), str(tmp_path / "out"), "--plan", str(tmp_path / "mine.json")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "re-fitted coefficients are not there" in done.output
    (tmp_path / "mine.safetensors").write_bytes(plan.to_safetensors())
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "out").plan == Plan.read(tmp_path / "out" / "plan.json") == plan


def test_published_weights_lose_less(test_data):
    """HyenaDNA tiny-1k: KL to the dense model on windows that the moments did not see, one mask, other coefficients."""
    p = load(str(test_data / "hyenadna-tiny-1k"))
    documents = read_documents(test_data / "dna" / "chr20_30-38Mb.txt.gz")
    seen = windows(documents, p.tokenizer.encode, 1024, alphabet="ACGT", limit=12)
    known, held_out = (replace(seen, ids=seen.ids[rows], scored_from=seen.scored_from[rows],
                               document=seen.document[rows]) for rows in (slice(8), slice(8, 12)))  # fmt: skip
    swap.install(p.sites, dict.fromkeys(p.filters))
    with sensitivity.recording(p.sites, p.filters) as so_far, torch.no_grad():
        p.model(known.ids)
    first, second = (s.name for s in p.sites)
    plan = Plan({first: FilterPlan("partial", 256), second: FilterPlan("dense")}, "taps 256")
    plans = {"dense": Plan.dense(p.filters), "own": plan, "re-fitted": refitted(plan, p.filters, so_far(), p.sites)}
    runs = {name: swap.variant(p.model, p.sites, swap.operators(p.filters, one)) for name, one in plans.items()}
    found = compare(runs, held_out)
    assert found["re-fitted"].versus.kl < 0.5 * found["own"].versus.kl
