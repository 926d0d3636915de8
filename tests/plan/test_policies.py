"""Policies keep what they promise, and nothing that reads the future unless it was asked for."""

import pytest
import torch
from searches import smooth_filter

from sparsify.filters.filter import Filter
from sparsify.filters.spectra import energy_by_tap
from sparsify.plan import policies
from sparsify.sites import ConvSite


def chosen(policy, k, causal=True):
    """What a policy keeps of a filter; one that looks both ways has half of its taps ahead."""
    k = k if isinstance(k, Filter) else Filter(k)
    context = k.lookahead or k.taps
    return policy.choose(k, ConvSite("site", k.channels, k.taps, context, causal, lambda: k, lambda conv: None))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_energy_keeps_its_share_of_both_directions(share):
    smooth, fast = smooth_filter(), torch.randn(4, 1024) * torch.exp(-torch.arange(1024) / 30.0)
    kinds = set()
    for half in (smooth, fast):
        k = torch.cat([0.7 * half.flip(-1), half], dim=-1)
        plan = chosen(policies.energy(share), Filter(k, 1024), causal=False)
        kept, lost = plan.apply(Filter(k, 1024)), k.clone().double()
        lost[:, 1024 - kept.lookahead : 1024 - kept.lookahead + kept.k.shape[-1]] -= kept.k.double()
        assert lost.square().sum() <= (1 - share) * k.double().square().sum() * (1 + 1e-6)
        assert plan.density(2048, 1024) <= 1
        kinds.add(plan.kind)
    assert "partial" in kinds


def test_taps_of_both_directions():
    k = Filter(torch.randn(2, 64), 32)
    assert chosen(policies.taps(31), k, causal=False).taps == 31
    assert chosen(policies.taps(32), k, causal=False).kind == "dense"  # lags -31 .. 31, all that is felt


def test_taps():
    k = smooth_filter()
    assert chosen(policies.taps(100), k).taps == 100
    assert chosen(policies.taps(5000), k).kind == "dense"  # nothing to cut


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_energy_keeps_its_share(share):
    for k in (smooth_filter(), torch.randn(4, 1024) * torch.exp(-torch.arange(1024) / 30.0)):
        plan = chosen(policies.energy(share), k)
        kept = plan.apply(k)
        lost = k.clone().double()
        lost -= kept.k[:, kept.lookahead : kept.lookahead + 1024].double() if plan.leaks else 0
        if not plan.leaks:
            lost[:, : kept.k.shape[-1]] -= kept.k.double()
        assert energy_by_tap(lost).sum() <= (1 - share) * energy_by_tap(k).sum() * (1 + 1e-9)
        assert plan.density(1024) <= 1


def test_energy_prefers_the_shorter_description():
    late = smooth_filter().flip(-1)  # smooth, and long: few bins, many taps
    assert chosen(policies.energy(0.999), late).kind in ("split", "dense")
    short = torch.zeros(4, 1024)
    short[:, :20] = torch.randn(4, 20)  # rough, and short: few taps
    assert chosen(policies.energy(0.999), short).kind == "partial"
    noise = torch.randn(4, 1024)  # neither
    assert chosen(policies.energy(0.9999), noise).density(1024) > 0.99


def test_only_bidirectional_models_get_a_mask_alone():
    k = smooth_filter()
    for share in (0.9, 0.99, 0.999):
        assert chosen(policies.energy(share), k).kind != "frequency-sparse"
    kinds = {chosen(policies.energy(share), k, causal=False).kind for share in (0.5, 0.8, 0.9)}
    assert "frequency-sparse" in kinds


def test_refusals():
    with pytest.raises(ValueError, match="at least 1 tap"):
        policies.taps(0)
    with pytest.raises(ValueError, match="share must lie"):
        policies.energy(0)
