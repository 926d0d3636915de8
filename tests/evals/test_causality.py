"""A model that reads the future is caught, and the sentences about it are honest."""

import pytest
import torch

from sparsify import Filter, fftconv
from sparsify.evals.causality import ROUND_OFF, cut_positions, leak, others, relative, verdict
from sparsify.evals.data import Document, windows
from sparsify.report.schema import LEAK_LIMIT

V = 6


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    texts = ["".join("ACGT"[i] for i in torch.randint(4, (1500,), generator=generator)) for _ in range(2)]
    ids = {"A": 1, "C": 2, "G": 3, "T": 5}
    return windows([Document(t[:3], t) for t in texts], lambda text: [ids[c] for c in text], 300)


def convolution(lookahead):
    """A model with one long convolution that looks `lookahead` tokens into the future, in float32."""
    generator = torch.Generator().manual_seed(2)
    embedding = torch.randn(V, 8, generator=generator)
    k = Filter(torch.randn(8, 300 + lookahead, generator=generator), lookahead)
    k = Filter(k.k * torch.exp(-0.01 * k.lags.abs()), lookahead)
    head = torch.randn(8, V, generator=generator)
    return lambda ids: fftconv(embedding[ids].transpose(1, 2), k).transpose(1, 2) @ head


def test_a_causal_model_leaks_round_off_only(data):
    found = leak(convolution(0), data)
    assert 0 < found.past_mean <= found.past_worst < ROUND_OFF  # an FFT convolution: zero would mean nothing was tried
    assert found.worst < ROUND_OFF and found.trials == 16


@pytest.mark.parametrize("lookahead", [1, 5, 299])
def test_a_model_that_looks_ahead_is_caught(data, lookahead):
    found = leak(convolution(lookahead), data)
    assert found.edge_mean > LEAK_LIMIT and found.worst > LEAK_LIMIT


def test_the_edge_does_not_fade_with_length(data):
    """One token of lookahead tells the whole answer, yet moves just one of the t + 1 logits up to t."""

    def next_token(ids):
        return torch.nn.functional.one_hot(ids.roll(-1, dims=1), V).float()

    found = leak(next_token, data)
    assert found.past_worst < 0.2 * found.edge_mean and found.edge_mean == pytest.approx(2**0.5)
    assert found.worst == found.edge_worst


def test_by_hand(data):
    """Logits that count the C's of the whole window: the move is known from the changed tokens alone."""
    calls = []

    def count(ids):
        calls.append(ids)
        return (ids == 2).sum().double().expand(1, ids.shape[1], 1)

    found = leak(count, data, n_windows=1, n_positions=3)
    before, *after = [int((ids == 2).sum()) for ids in calls]
    moves = [abs(n - before) / before for n in after]
    assert found.past_mean == pytest.approx(sum(moves) / 3) and found.edge_worst == pytest.approx(max(moves))


def test_only_the_future_changes_and_all_of_it(data):
    calls = []

    def record(ids):
        calls.append(ids)
        return torch.ones(*ids.shape, V)

    assert leak(record, data, n_windows=1, n_positions=3).worst == 0
    before, *after = calls
    for ids, t in zip(after, cut_positions(data.context, 3), strict=True):
        assert torch.equal(ids[:, : t + 1], before[:, : t + 1]) and (ids[:, t + 1 :] != before[:, t + 1 :]).all()
        assert set(ids.unique().tolist()) == {1, 2, 3, 5}  # tokens of the data, no gaps of the vocabulary


def test_the_seed_decides(data):
    model, data = convolution(5), data.spread(1)
    assert leak(model, data) == leak(model, data) != leak(model, data, seed=1)


def test_short_windows_have_few_positions(data):
    short = windows([Document("a", "abcabb")], lambda text: [ord(c) - 97 for c in text], 3)
    assert leak(convolution(0), short, n_positions=99).trials == 2 * 2


def test_others_are_equally_likely():
    valid = torch.tensor([1, 2, 3, 5])
    changed = others(torch.full((1, 30000), 3), valid, torch.Generator().manual_seed(0))
    values, counts = changed.unique(return_counts=True)
    assert values.tolist() == [1, 2, 5] and all(abs(n - 10000) < 400 for n in counts.tolist())


@pytest.mark.parametrize("count", [1, 4, 29])
def test_cut_positions_leave_a_past_and_a_future(count):
    found = cut_positions(30, count)
    assert len(set(found)) == count and min(found) >= 0 and max(found) <= 28


def test_undefined_logits_are_infinitely_far():
    y = torch.tensor([1.0, torch.nan])
    assert relative(y, torch.ones(2)) == float("inf")
    assert relative(torch.ones(2), torch.zeros(2)) == float("inf")


def test_refusals(data):
    with pytest.raises(ValueError, match="n_positions must be at least 1, got 0"):
        leak(convolution(0), data, n_positions=0)
    with pytest.raises(ValueError, match="every token of the data is 7"):
        leak(convolution(0), windows([Document("a", "AAAA")], lambda text: [7] * len(text), 4))


def test_verdict_on_a_leak():
    said = verdict(dense=3.0574, sparse=3.0434, leak=0.18, cut=3.0821)
    assert said == [
        "perplexity 3.0434 as computed cannot be trusted: the model reads the future (leak 0.18, above 0.01)",
        "it looks better than dense (-0.46 %) because it is told part of the answer",
        "the honest figure is perplexity_cut: 3.0821, +0.81 % against dense 3.0574",
    ]


def test_verdict_without_the_cut_asks_for_it():
    said = verdict(dense=3.0, sparse=3.1, leak=0.02)
    assert "cannot be trusted" in said[0] and "measure perplexity with negative lags cut" in said[-1] and len(said) == 2


@pytest.mark.parametrize(("amount", "words"), [(2e-7, "the past only"), (4e-4, "next to nothing of the future")])
def test_verdict_without_a_leak(amount, words):
    said = verdict(dense=3.0574, sparse=3.0573, leak=amount)
    assert len(said) == 1 and "+0.00 % against dense 3.0574, can be trusted" in said[0] and words in said[0]
    assert "3.0600, +0.09 %" in verdict(dense=3.0574, sparse=3.0573, leak=amount, cut=3.06)[1]
