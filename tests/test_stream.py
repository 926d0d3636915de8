"""What comes in pieces equals what comes at once: convolutions against float64, models against themselves."""

import copy
import itertools

import layouts
import pytest
import torch
from helpers import RELATIVE_L2, assert_close, relative_l2

from sparsify import LongConv, fftconv_ref, stream, swap
from sparsify.converters import hyena_dna, load
from sparsify.evals.data import read_documents, windows
from sparsify.filters.filter import Filter
from sparsify.plan import policies
from sparsify.stream import ConvStream, Stream

FLOAT32 = RELATIVE_L2[torch.float32]
MODEL = 1e-5  # relative L2 of logits, as for the model itself

# Every length at which something changes: one tap, a block of 128, the first filter whose spectra are not all kept and
# whose last lag is older than the span (4098).
TAPS = (1, 2, 3, 63, 64, 65, 128, 129, 130, 257, 1000, 2050, 4097, 4098, 5000)
PIECES = {
    "one by one": (1,),
    "few": (1, 2, 3, 5, 8, 9),
    "odd": (127, 1, 129, 333),
    "blocks": (128, 256, 1024),
    "large": (4095, 2048, 3000),
    "mixed": (1, 700, 2, 2, 1500, 64, 31),
    "whole": (1 << 20,),
}


def cut(x, pieces):
    """x in pieces of these lengths along its last dimension, over and over."""
    lengths, start = itertools.cycle(pieces), 0
    while start < x.shape[-1]:
        n = next(lengths)
        yield x[..., start : start + n]
        start += n


def in_pieces(conv, u, pieces):
    return torch.cat([conv(piece) for piece in cut(u, pieces)], dim=-1)


# --- the convolution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("taps", TAPS)
def test_equals_the_convolution_of_the_whole(taps, pieces):
    """Some lengths lie within the filter, some past it and past its second span."""
    length = 700 if pieces == "one by one" else 3 * taps + 2500
    u, k = torch.randn(2, 3, length), torch.randn(3, taps)
    before = u.clone()
    y = in_pieces(ConvStream(k, 2), u, PIECES[pieces])
    assert_close(y, fftconv_ref(u, k), FLOAT32)
    assert torch.equal(u, before)


def test_one_by_one_past_every_span():
    u, k = torch.randn(1, 2, 9000), torch.randn(2, 4300)
    assert_close(in_pieces(ConvStream(k), u, (1,)), fftconv_ref(u, k), FLOAT32)


def test_any_partition():
    u, k = torch.randn(1, 2, 15_000), torch.randn(2, 4900)
    for _ in range(20):
        pieces = torch.randint(1, int(torch.randint(2, 5000, ())), (40,)).tolist()
        assert_close(in_pieces(ConvStream(k), u, pieces), fftconv_ref(u, k), FLOAT32)


def test_channels_at_a_time(monkeypatch):
    monkeypatch.setattr(stream, "TEMPORARY_BYTES", 1 << 17)  # one or two channels
    u, k = torch.randn(2, 5, 20_000), torch.randn(5, 9000)
    assert_close(in_pieces(ConvStream(k, 2), u, (5000, 1)), fftconv_ref(u, k), FLOAT32)


def test_views():
    """Any strides of signal and filter, as partial filters and models have them."""
    u, k = torch.randn(2, 1500, 4).transpose(1, 2)[:, 1:], torch.randn(3, 900)[:, :300]
    assert_close(in_pieces(ConvStream(k, 2), u, PIECES["mixed"]), fftconv_ref(u, k), FLOAT32)


@pytest.mark.parametrize("pieces", [(1,), (5, 40, 200)])
def test_gate_and_skip(pieces):
    u, gate, k, skip = torch.randn(2, 3, 500), torch.randn(2, 3, 500), torch.randn(3, 400), torch.randn(3)
    conv = ConvStream(k, 2)
    parts = [conv(a, gate=b, skip=skip) for a, b in zip(cut(u, pieces), cut(gate, pieces), strict=True)]
    y_ref = gate.double() * (fftconv_ref(u, k) + skip[:, None].double() * u.double())
    assert_close(torch.cat(parts, dim=-1), y_ref, FLOAT32)


def test_zeros_fail_and_so_does_a_stream_that_forgets():
    u, k = torch.randn(2, 3, 1000), torch.randn(3, 1000)
    y_ref = fftconv_ref(u, k)
    for wrong in (torch.zeros(2, 3, 1000), in_pieces(LongConv(k), u, (500,))):
        with pytest.raises(AssertionError):
            assert_close(wrong, y_ref, 0.1)


def test_the_present_never_depends_on_the_future():
    """Bit by bit: what was returned cannot change, and what comes next starts from the same past."""
    k, u, v = torch.randn(2, 600), torch.randn(1, 2, 400), torch.randn(1, 2, 400)
    one, other = ConvStream(k), ConvStream(k)
    assert torch.equal(one(u), other(u))
    assert not torch.equal(one(u), other(v))


@pytest.mark.parametrize("taps", [64, 1000, 4300])
def test_memory_does_not_grow_with_the_number_of_pieces(taps):
    conv = ConvStream(torch.randn(2, taps))

    def held():
        return conv.nbytes, sum(t.nbytes for t in tensors(list(conv.convs.values())))

    for piece in cut(torch.randn(1, 2, 8 * taps), (1, 77, 300, 128)):
        conv(piece)
    before = held()
    for piece in cut(torch.randn(1, 2, 40 * taps), (1, 77, 300, 128)):
        conv(piece)
    assert held() == before
    assert conv.nbytes <= 4 * 2 * (taps + 2 * stream.BLOCK)


def tensors(held):
    """The tensors in an object, wherever it keeps them."""
    if isinstance(held, torch.Tensor):
        return [held]
    if isinstance(held, dict):
        held = list(held.values())
    if isinstance(held, list | tuple):
        return [t for part in held for t in tensors(part)]
    return tensors(vars(held)) if hasattr(held, "__dict__") and not isinstance(held, type) else []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"k": torch.zeros(8)}, r"shape \(8,\), expected \(channels, taps\)"),
        ({"k": torch.zeros(2, 8).double()}, r"filter k is torch.float64 \(2, 8\)"),
        ({"k": Filter(torch.zeros(2, 8), 3)}, r"reads 3 samples ahead.*past\(\)"),
        ({"k": torch.zeros(2, 8), "batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_refuses_filters(arguments, says):
    with pytest.raises(ValueError, match=says):
        ConvStream(**arguments)


@pytest.mark.parametrize(
    "u", [torch.zeros(1, 2, 5), torch.zeros(2, 3, 5), torch.zeros(2, 2), torch.zeros(2, 2, 5).half()]
)
def test_refuses_signals(u):
    with pytest.raises(ValueError, match=r"expected torch.float32 \(2, 2, samples\)"):
        ConvStream(torch.zeros(2, 8), 2)(u)


def test_refuses_gradients():
    with pytest.raises(ValueError, match="keeps no gradients"):
        ConvStream(torch.zeros(2, 8))(torch.zeros(1, 2, 5, requires_grad=True))


# --- a model ----------------------------------------------------------------------------------------------------------

PLANS = {
    "own": None,
    "dense": policies.dense(),
    "partial": policies.taps(9),
    "split": policies.split(16, 0.25),
    "frequency-sparse": policies.low_pass(0.5),
}


@pytest.fixture
def tiny():
    return layouts.tiny_model()


def some_ids(length, batch=2):
    return torch.randint(7, 11, (batch, length))


def install(sites, policy, causal=False):
    filters = swap.Filters(sites)
    if policy is None:
        swap.install(sites, dict.fromkeys(filters))
    else:
        swap.install(sites, swap.operators(filters, policies.make_plan(sites, filters, policy), causal))


def feed(model, ids, pieces, **options):
    fed = model.stream(len(ids), **options)
    return torch.cat([fed.feed(piece) for piece in cut(ids, pieces)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(1,), (2, 3, 1, 17), (66,)], ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_logits_are_those_of_the_whole_sequence(tiny, plan, pieces):
    """Under a plan that reads the future, those of the plan with its negative lags cut."""
    model, sites = tiny
    ids = some_ids(66)
    install(sites, PLANS[plan], causal=True)
    whole = model(ids)
    install(sites, PLANS[plan])
    logits = feed(model, ids, pieces)
    assert_close(logits, whole, MODEL)
    assert (relative_l2(model(ids), whole) > 10 * MODEL) == (plan in ("split", "frequency-sparse"))


@torch.no_grad()
def test_a_sequence_may_be_longer_than_the_filters(tiny):
    model, sites = tiny
    install(sites, policies.dense())
    ids = some_ids(400)
    whole = model.lm_head(model.backbone(ids))
    assert_close(feed(model, ids, (1, 40, 150)), whole, MODEL)


@torch.no_grad()
def test_long_input_is_cut_into_pieces(tiny):
    model, _ = tiny
    ids, longest = some_ids(66), []
    model.backbone.ln_f.register_forward_pre_hook(lambda _, inputs: longest.append(inputs[0].shape[-2]))
    logits = feed(model, ids, (66,), piece=7)
    assert max(longest) == 7
    assert_close(logits, model(ids), MODEL)


@torch.no_grad()
def test_streams_of_one_model_are_apart(tiny):
    model, _ = tiny
    ids = some_ids(40)
    one, other = model.stream(2), model.stream(2)
    one.feed(ids[:, :30])
    other.feed(some_ids(11))
    assert_close(one.feed(ids[:, 30:]), model(ids)[:, 30:], MODEL)


@torch.no_grad()
def test_greedy_is_the_prefix_run_again_each_time():
    plain = layouts.DIALECTS["plain"]  # tied to the embedding, random weights would repeat one letter
    model, _ = hyena_dna.build(layouts.dress(layouts.untied(), plain), layouts.config(layouts.TINY, plain))
    ids = some_ids(20)
    again = ids
    for _ in range(40):
        again = torch.cat([again, 7 + model(again)[:, -1, 7:11].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.stream(2).generate(ids, 40), again)
    assert len(again[:, 20:].unique()) > 1  # else a constant would do


def test_draws(tiny):
    model, _ = tiny
    ids = some_ids(5)
    draw = lambda **how: model.stream(2).generate(ids, 40, **how)  # noqa: E731
    drawn = draw(temperature=1.0, seed=1)
    assert drawn.shape == (2, 45) and torch.equal(drawn[:, :5], ids)
    assert set(drawn.unique().tolist()) <= {7, 8, 9, 10}
    assert torch.equal(drawn, draw(temperature=1.0, seed=1))
    assert not torch.equal(drawn, draw(temperature=1.0, seed=2))
    assert torch.equal(draw(temperature=1.0, top_k=1), draw())
    assert set(draw(temperature=9.0, allowed=[11, 8])[:, 5:].unique().tolist()) == {8, 11}


def test_what_generate_returned_is_the_past_of_what_follows(tiny):
    model, _ = tiny
    ids = some_ids(5)
    fed = model.stream(2)
    some = fed.generate(ids, 10)
    more = fed.generate(some[:, -1:], 10)
    assert torch.equal(torch.cat([some, more[:, 1:]], dim=1), model.stream(2).generate(ids, 20))


def test_a_draw_follows_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    draw = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 2), (1.0, 9)):
        drawn = stream.pick(logits.expand(100_000, 4), temperature, top_k, draw).bincount(minlength=4) / 100_000
        kept = torch.tensor([False, True, True, False]) if top_k == 2 else torch.ones(4, dtype=torch.bool)
        p = torch.where(kept, (logits / temperature).exp(), 0.0)
        assert (drawn - p / p.sum()).abs().max() < 0.01
    ties = torch.zeros(1000, 4)
    assert len(stream.pick(ties, 1.0, 3, draw).unique()) == 3
    assert (stream.pick(logits.expand(1000, 4), 1e-300, None, draw) == 2).all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"count": 0}, "count must be at least 1 token, got 0"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": 0}, "top_k must be at least 1 token, got 0"),
        ({"allowed": []}, r"allowed ids must lie in \[0, 16\)"),
        ({"allowed": [7, 16]}, r"allowed ids must lie in \[0, 16\)"),
    ],
)
def test_refuses_to_generate(tiny, how, says):
    with pytest.raises(ValueError, match=says):
        tiny[0].stream(2).generate(some_ids(3), **({"count": 2} | how))


@pytest.mark.parametrize("ids", [torch.zeros(3, 4), torch.zeros(2, 0), torch.zeros(2)])
def test_refuses_other_batches(tiny, ids):
    with pytest.raises(ValueError, match=r"expected \(2, at least 1\)"):
        tiny[0].stream(2).feed(ids.long())


def test_refuses_what_cannot_be_fed_in_pieces(tiny, tmp_path):
    model, sites = tiny
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        model.stream(piece=0)
    sites[0].install(torch.nn.Identity())
    with pytest.raises(ValueError, match="Identity is no LongConv"):
        model.stream()
    classifier = load(layouts.write(tmp_path / "source", "hf classifier")).model
    assert isinstance(classifier, hyena_dna.HyenaDNA)
    with pytest.raises(ValueError, match="a classifier scores whole sequences"):
        classifier.stream()


@torch.no_grad()
def test_real_weights(test_data):
    """HyenaDNA tiny-1k on human chromosome 20, base by base and in pieces, dense and under a split plan's cut."""
    p = load(str(test_data / "hyenadna-tiny-1k"))
    documents = read_documents(test_data / "dna" / "chr20_30-38Mb.txt.gz")
    ids = windows(documents, p.tokenizer.encode, 1024, alphabet="ACGT", limit=2).ids
    for policy in (policies.dense(), policies.split(64, 0.125)):
        install(p.sites, policy, causal=True)
        whole = p.model(ids)
        install(p.sites, policy)
        for pieces in ((1,), (300, 1, 128)):
            assert_close(feed(p.model, ids, pieces), whole, MODEL)


def test_a_copy_would_share_its_memory_so_there_is_none():
    stream = Stream(lambda ids: ids[..., None].float(), 1)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(stream)
