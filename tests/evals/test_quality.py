"""Perplexity and fidelity against sums written out token by token, in float64."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from sparsify.evals import quality
from sparsify.evals.data import Document, windows
from sparsify.evals.quality import compare, standard_error

V = 5  # vocabulary
EXACT = 1e-12


def data(lengths=(200, 131, 77), context=16, stride=None, limit=None):
    generator = torch.Generator().manual_seed(1)
    texts = ["".join(chr(97 + i) for i in torch.randint(V, (n,), generator=generator).tolist()) for n in lengths]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    return windows(documents, lambda text: [ord(c) - 97 for c in text], context, stride, limit=limit)


def uniform(ids):
    return torch.zeros(*ids.shape, V)


def history(seed, strength=0.3, dtype=torch.float64):
    """A causal model: logits are a running sum over all tokens so far, so context matters."""
    table = strength * torch.randn(V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda ids: table[ids].cumsum(1).to(dtype)


def peek(ids):
    """A model that reads the next token."""
    return 9.0 * torch.nn.functional.one_hot(ids.roll(-1, dims=1), V)


def tokens(w, logits):
    """Log-probabilities (n, V) and target of every scored token, window and position: one softmax at a time."""
    rows = []
    for i, (ids, start) in enumerate(zip(w.ids, w.scored_from, strict=True)):
        for p in range(int(start), w.context):
            row = logits(ids[None, :p])[0, -1].double().numpy()  # from the tokens before p alone
            log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
            rows.append((i, p, int(ids[p]), log_p))
    return rows


def nll(w, logits):
    return np.array([-log_p[target] for _, _, target, log_p in tokens(w, logits)])


def test_uniform_logits_have_perplexity_v():
    result = compare({"dense": uniform}, data())["dense"]
    assert result.perplexity == pytest.approx(V, rel=EXACT) and result.bits_per_token == pytest.approx(math.log2(V))
    assert result.perplexity_stderr == pytest.approx(0, abs=1e-12) and result.versus is None


def test_letter_frequencies():
    """An order-0 model with the frequencies of the data itself reaches their entropy."""
    w = data((400,), 20)
    share = torch.bincount(w.ids[:, 1:].flatten(), minlength=V) / w.n_tokens
    result = compare({"dense": lambda ids: share.log().expand(*ids.shape, V)}, w)["dense"]
    entropy = Categorical(share.double()).entropy().item()
    assert result.nll_per_token == pytest.approx(entropy, rel=1e-6)
    assert result.bits_per_token == pytest.approx(entropy / math.log(2), rel=1e-6)


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_equals_one_token_at_a_time(stride):
    w, model = data(stride=stride), history(2)
    result = compare({"dense": model}, w, batch_size=3)
    losses = nll(w, model)
    assert result.n_tokens == len(losses)
    assert result["dense"].nll_per_token == pytest.approx(losses.mean(), rel=EXACT)
    assert result["dense"].perplexity == pytest.approx(math.exp(losses.mean()), rel=EXACT)


def test_stride_matters_here():
    """So the test above would notice windows scored in the wrong places."""
    found = {compare({"dense": history(2)}, data(stride=s))["dense"].perplexity for s in (1, 5, 16)}
    assert len({round(x, 3) for x in found}) == 3


def test_a_peeking_model_looks_too_good():
    """What a perplexity alone cannot tell; causality.py can."""
    assert compare({"dense": peek}, data())["dense"].perplexity < 1.01
    assert nll(data(), peek).mean() > 1  # one token at a time there is no next token to read


def test_paired_with_the_baseline():
    w, dense, sparse = data((400,)), history(2), history(3)
    result = compare({"dense": dense, "sparse": sparse}, w)["sparse"].versus
    difference = nll(w, sparse) - nll(w, dense)
    by_window = difference.reshape(len(w), -1).mean(1)
    stderr = by_window.std(ddof=1) / math.sqrt(len(w))
    assert result.baseline == "dense"
    assert result.nll_difference == pytest.approx(difference.mean(), rel=1e-10)
    assert result.nll_difference_stderr == pytest.approx(stderr, rel=1e-10)
    assert result.perplexity_ratio == pytest.approx(math.exp(difference.mean()), rel=EXACT)
    assert result.perplexity_ratio_stderr == pytest.approx(math.exp(difference.mean()) * stderr, rel=1e-10)


def test_fidelity():
    w, dense, sparse = data(stride=5), history(2), history(3)
    result = compare({"dense": dense, "sparse": sparse}, w)["sparse"].versus
    p, q = (torch.from_numpy(np.stack([row[3] for row in tokens(w, model)])) for model in (dense, sparse))
    kl = kl_divergence(Categorical(logits=p), Categorical(logits=q)).mean().item()
    backwards = kl_divergence(Categorical(logits=q), Categorical(logits=p)).mean().item()
    assert result.kl == pytest.approx(kl, rel=1e-10) and abs(kl - backwards) > 1e-3 * kl
    agreement = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert result.top1_agreement == pytest.approx(agreement, rel=EXACT) and 0 < agreement < 1


def test_the_same_model_twice_differs_by_nothing():
    same = compare({"dense": history(2), "all kept": history(2)}, data())["all kept"].versus
    assert (same.nll_difference, same.nll_difference_stderr, same.perplexity_ratio) == (0, 0, 1)
    assert same.kl == pytest.approx(0, abs=1e-15) and same.top1_agreement == 1


def test_zeros_fail():
    """A variant that answers nothing is far from the baseline by every measure."""
    lost = compare({"dense": history(2, 3.0), "zeros": uniform}, data())["zeros"].versus
    assert lost.kl > 1 and lost.top1_agreement < 0.5 and abs(lost.nll_difference) > 0.1


def test_batches_and_chunks_change_nothing(monkeypatch):
    models = {"dense": history(2), "sparse": history(3)}
    whole = compare(models, data(), batch_size=99)
    monkeypatch.setattr(quality, "CHUNK_BYTES", 8 * V * 7)
    pieces = compare(models, data(), batch_size=2)
    for name in models:
        assert pieces[name].nll_per_token == pytest.approx(whole[name].nll_per_token, rel=EXACT)
    assert pieces["sparse"].versus.kl == pytest.approx(whole["sparse"].versus.kl, rel=EXACT)
    assert pieces["sparse"].versus.top1_agreement == whole["sparse"].versus.top1_agreement


def test_large_logits_make_small_batches(monkeypatch):
    """The first batch is of few tokens and tells how large logits are; the figures stay."""
    sizes, model, w = [], history(2), data((160,))

    def noted(ids):
        sizes.append(len(ids))
        return model(ids)

    whole = compare({"dense": model}, w, batch_size=99)
    monkeypatch.setattr(quality, "FIRST_TOKENS", 2 * 16)
    monkeypatch.setattr(quality, "BATCH_BYTES", 3 * 16 * V * 8)
    small = compare({"dense": noted}, w, batch_size=99)
    assert sizes == [2, 3, 3, 2]
    assert small["dense"].nll_per_token == pytest.approx(whole["dense"].nll_per_token, rel=EXACT)
    monkeypatch.setattr(quality, "BATCH_BYTES", 1)
    compare({"dense": noted}, w, batch_size=99)
    assert sizes[4:] == [2, *[1] * 8]


def test_position_buckets():
    w, model = data((1500, 700), context=200, stride=150), history(2)
    result = compare({"dense": model}, w)["dense"]
    assert [(b.start, b.stop) for b in result.by_position] == [(0, 64), (64, 128), (128, 200)]
    for bucket in result.by_position:
        inside = [-log_p[t] for _, p, t, log_p in tokens(w, model) if bucket.start <= p < bucket.stop]
        assert bucket.n_tokens == len(inside)
        assert bucket.perplexity == pytest.approx(math.exp(np.mean(inside)), rel=EXACT)


@pytest.mark.parametrize(("context", "edges"), [(2, [0]), (64, [0]), (65, [0, 64]), (1024, [0, 64, 128, 256, 512])])
def test_bucket_edges(context, edges):
    assert quality.bucket_edges(context).tolist() == edges


def test_standard_error_counts_documents():
    w, model = data(stride=5), history(2)
    result = compare({"dense": model}, w)
    losses = nll(w, model)
    document = np.repeat(w.document.numpy(), w.context - w.scored_from.numpy())
    sums = np.array([losses[document == d].sum() for d in range(3)])
    counts = np.array([(document == d).sum() for d in range(3)])
    residuals = sums - losses.mean() * counts
    stderr = math.sqrt(3 / 2 * (residuals**2).sum()) / counts.sum()
    assert (result.count, result.samples) == (3, "documents") and "over 3 documents" in result.convention
    assert result["dense"].nll_stderr == pytest.approx(stderr, rel=1e-10)
    assert result["dense"].perplexity_stderr == pytest.approx(stderr * result["dense"].perplexity, rel=1e-10)


def test_one_document_counts_windows_and_one_window_has_no_error():
    several = compare({"dense": history(2)}, data((400,)))
    assert (several.count, several.samples) == (25, "windows") and several["dense"].nll_stderr > 0
    single = compare({"dense": history(2), "sparse": history(3)}, data((16,)))
    assert single.count == 1 and single["dense"].perplexity_stderr is None
    assert single["sparse"].versus.perplexity_ratio_stderr is None


def test_standard_error_covers_the_truth():
    """Two in three estimates lie within one standard error, and correlated windows need their documents for that."""
    generator = torch.Generator().manual_seed(1)
    counts, document = torch.full((40,), 10.0, dtype=torch.float64), torch.arange(40) // 4
    shared = torch.randn(2000, 10, generator=generator, dtype=torch.float64).repeat_interleave(4, dim=1)
    sums = 10 * (shared + torch.randn(2000, 40, generator=generator, dtype=torch.float64))
    means = sums.sum(1) / 400
    within = [abs(m) < standard_error(s, counts, document) for m, s in zip(means, sums, strict=True)]
    naive = [abs(m) < standard_error(s, counts, torch.arange(40)) for m, s in zip(means, sums, strict=True)]
    assert 0.6 < np.mean(within) < 0.72 and np.mean(naive) < 0.55


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_logits_are_widened_before_the_softmax(dtype):
    w, model = data(), history(2, dtype=dtype)
    result = compare({"dense": model}, w)
    assert result["dense"].nll_per_token == pytest.approx(nll(w, model).mean(), rel=1e-6)
    assert f"from {str(dtype).removeprefix('torch.')} logits" in result.convention


def test_columns_at_minus_infinity():
    """Padded vocabularies are often masked so; they must not turn KL into NaN."""

    def masked(seed):
        model = history(seed)
        return lambda ids: torch.nn.functional.pad(model(ids), (0, 3), value=-math.inf)

    padded = compare({"dense": masked(2), "sparse": masked(3)}, data())["sparse"].versus
    bare = compare({"dense": history(2), "sparse": history(3)}, data())["sparse"].versus
    assert padded.kl == pytest.approx(bare.kl, rel=EXACT)


def test_progress_counts_windows():
    seen = []
    w = data((160,))
    compare({"dense": uniform}, w, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_no_gradients_are_kept():
    weight = torch.zeros(V, requires_grad=True)

    def model(ids):
        assert not torch.is_grad_enabled()
        return weight.expand(*ids.shape, V)

    compare({"dense": model}, data())


@pytest.mark.gpu
def test_logits_may_live_on_a_gpu():
    w, dense, sparse = data(), history(2), history(3)
    here = compare({"dense": dense, "sparse": sparse}, w)["sparse"]
    there = compare({"dense": dense, "sparse": lambda ids: sparse(ids).cuda()}, w)["sparse"]
    assert there.nll_per_token == pytest.approx(here.nll_per_token, rel=1e-10)
    assert there.versus.kl == pytest.approx(here.versus.kl, rel=1e-10)


def broken(ids):
    out = uniform(ids)
    out[0, 3] = math.nan
    return out


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({}, "no variants were given"),
        ({"x": broken}, "variant 'x' gave an infinite or undefined loss in window 0"),
        ({"x": lambda ids: ids}, r"variant 'x' returned torch.int64 \(8, 16\) for ids \(8, 16\)"),
        ({"x": lambda ids: uniform(ids)[:, :-1]}, r"expected floating point logits \(8, 16, vocabulary\)"),
        ({"x": lambda ids: uniform(ids)[..., :3]}, "token id 4 but variant 'x' has 3 logit columns"),
        ({"a": uniform, "x": lambda ids: torch.zeros(*ids.shape, 9)}, "'x' has 9 logit columns and the baseline 5"),
    ],
)
def test_refused_variants(variants, message):
    with pytest.raises(ValueError, match=message):
        compare(variants, data())


def test_refused_batch_size_and_name():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        compare({"dense": uniform}, data(), batch_size=0)
    with pytest.raises(LookupError, match="no variant 'spares' was compared; there are dense"):
        compare({"dense": uniform}, data())["spares"]
