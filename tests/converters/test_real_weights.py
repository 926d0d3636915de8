"""HyenaDNA tiny-1k on human chromosome 20: the published model, measured."""

import pytest
import torch
from helpers import assert_close, reference_conv

from sparsify import swap
from sparsify.converters import load
from sparsify.evals import causality, quality
from sparsify.evals.data import read_documents, windows
from sparsify.plan import policies
from sparsify.report.schema import LEAK_LIMIT


@pytest.fixture(scope="module")
def tiny(test_data):
    return load(str(test_data / "hyenadna-tiny-1k"))


@pytest.fixture(scope="module")
def held_out(test_data, tiny):
    documents = read_documents(test_data / "dna" / "chr20_30-38Mb.txt.gz")
    return windows(documents, tiny.tokenizer.encode, 1024, alphabet="ACGT", limit=64)


@pytest.fixture(scope="module")
def variant(tiny):
    filters = tiny.filters

    def make(policy, cut=False):
        plan = policies.make_plan(tiny.sites, filters, policy)
        return swap.variant(tiny.model, tiny.sites, swap.operators(filters, plan, cut))

    return make


@pytest.fixture(scope="module")
def comparison(variant, held_out):
    runs = {"dense": variant(policies.dense())}
    runs |= {f"{taps} taps": variant(policies.taps(taps)) for taps in (256, 16)}
    for name, policy in (("low-pass", policies.low_pass(0.125)), ("split", policies.split(64, 0.125))):
        runs |= {name: variant(policy), f"{name}, cut": variant(policy, cut=True)}
    return quality.compare(runs, held_out)


def test_dense_perplexity_is_plausible(comparison):
    assert 2.9 < comparison["dense"].perplexity < 3.3


def test_partial_convolution(comparison):
    """256 of 1,024 taps cost next to nothing, 16 cost a lot."""
    dense = comparison["dense"].perplexity
    assert comparison["256 taps"].perplexity - dense < 0.02
    assert comparison["16 taps"].perplexity - dense > 0.1


def test_a_low_pass_looks_better_than_dense_and_is_worse(comparison, variant, held_out):
    dense = comparison["dense"].perplexity
    assert comparison["low-pass"].perplexity < dense < comparison["low-pass, cut"].perplexity
    leak = causality.leak(variant(policies.low_pass(0.125)), held_out).worst
    assert leak > LEAK_LIMIT
    cut = comparison["low-pass, cut"].perplexity
    said = " ".join(causality.verdict(dense, comparison["low-pass"].perplexity, leak, cut))
    assert "cannot be trusted" in said


def test_a_split_keeps_the_model(comparison, variant, held_out):
    dense = comparison["dense"].perplexity
    for name in ("split", "split, cut"):
        assert abs(comparison[name].perplexity - dense) < 0.001
    assert causality.leak(variant(policies.split(64, 0.125)), held_out).worst < 1e-2


@torch.no_grad()
def test_reference_op_in_every_site(tiny, held_out):
    filters = tiny.filters
    swap.install(tiny.sites, dict.fromkeys(filters))
    own = tiny.model(held_out.ids[:2])
    swap.install(tiny.sites, {name: reference_conv(k) for name, k in filters.items()})
    assert_close(tiny.model(held_out.ids[:2]), own, 1e-5)
