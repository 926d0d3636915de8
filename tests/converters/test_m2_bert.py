"""M2-BERT in every layout it is published in, against a direct computation in float64."""

import math
from dataclasses import replace

import layouts_m2
import pytest
import torch
from helpers import assert_close, relative_l2
from layouts_m2 import CHECKPOINTS, DIALECTS, TINY, config, dress, extras, shapes, weights

from sparsify import LongConv, fftconv_ref, swap
from sparsify.converters import load, m2_bert, write_folder
from sparsify.converters.models import implicit_filter
from sparsify.converters.models import m2_bert as m2_bert_model
from sparsify.converters.models.m2_bert import M2Bert, M2BertConfig
from sparsify.converters.tokenizers.wordpiece import TextTokenizer
from sparsify.cpu import linear
from sparsify.plan import FilterPlan, Plan, policies

FLOAT32, FLOAT64 = 1e-5, 1e-10


# --- the formulas, once more: direct sums, no FFT ---------------------------------------------------------------------


def oracle_filter(w, at, network):
    """k (D, K) of one direction: network of sinusoids times the decay window."""
    a = w[f"{at}.pos_emb.z"][0]
    freq = w[f"{at}.implicit_filter.1.freq"]
    for i in (0, 2, 4):
        a = torch.sin(freq * (a @ w[f"{at}.{network}.{i}.weight"].T + w[f"{at}.{network}.{i}.bias"]))
    window = torch.exp(-w[f"{at}.pos_emb.t"][0] * w[f"{at}.modulation.deltas"][0].abs())
    return ((a @ w[f"{at}.{network}.6.weight"].T) * window).T


def oracle_conv(w, at, u, networks=("implicit_filter", "implicit_filter_rev")):
    """y[n] = sum kf[t] u[n-t] + sum kr[j] u[n+1+j] + bias u[n].  u: (B, D, L)."""
    forward, reverse = (oracle_filter(w, at, network) for network in networks)
    seqlen = u.shape[-1]
    y = w[f"{at}.bias"][:, None] * u
    for n in range(seqlen):
        for m in range(seqlen):
            y[..., n] += (forward[:, n - m] if m <= n else reverse[:, m - n - 1]) * u[..., m]
    return y


def oracle_norm(w, at, x, eps):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * w[f"{at}.weight"] + w[f"{at}.bias"]


def oracle_gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def oracle_blocks(x, weight):
    """Each piece of the last axis through a matrix of its own."""
    return torch.cat([part @ matrix.T for part, matrix in zip(x.chunk(len(weight), -1), weight, strict=True)], -1)


def oracle_layer(w, at, x, **directions):
    mixer = f"{at}.attention"
    u = oracle_norm(w, f"{mixer}.layernorm", x, 1e-5) if f"{mixer}.layernorm.weight" in w else x
    z = (u @ w[f"{mixer}.in_linear.weight"].T + w[f"{mixer}.in_linear.bias"]).transpose(1, 2)
    s = w[f"{mixer}.short_filter.bias"][:, None] + torch.zeros_like(z)
    for lag in range(3):  # stored last lag first
        s[..., lag:] += w[f"{mixer}.short_filter.weight"][:, 0, 2 - lag, None] * z[..., : z.shape[-1] - lag]
    x1, x2, v = s.chunk(3, dim=1)
    y = x2 * oracle_conv(w, f"{mixer}.filter_fn", x1 * v, **directions)
    y = y + oracle_conv(w, f"{mixer}.filter_fn2", u.transpose(1, 2), **directions)
    s = y.transpose(1, 2) @ w[f"{mixer}.out_linear.weight"].T + w[f"{mixer}.out_linear.bias"]
    gate, h = oracle_blocks(s, w[f"{at}.mlp.gated_layers.weight"]).chunk(2, -1)
    out = oracle_blocks(oracle_gelu(gate) * h, w[f"{at}.mlp.wo.weight"]) + w[f"{at}.mlp.wo.bias"]
    return oracle_norm(w, f"{at}.mlp.layernorm", out + s, 1e-12)


def oracle_hidden(plain, ids, additions=False, types=None, **directions):
    """Last states (B, L, D) in float64."""
    w = {name: t.double() for name, t in plain.items() if additions or ".attention.layernorm." not in name}
    e = "bert.embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.position_embeddings.weight"][: ids.shape[1]]
    x = x + w[f"{e}.token_type_embeddings.weight"][torch.zeros_like(ids) if types is None else types]
    x = oracle_norm(w, f"{e}.LayerNorm", x, 1e-12)
    for i in range(TINY.n_layer):
        x = oracle_layer(w, f"bert.encoder.layer.{i}", x, **directions)
    return x


def oracle_words(plain, states):
    w = {name.removeprefix("cls.predictions."): t.double() for name, t in plain.items() if name.startswith("cls.")}
    x = oracle_gelu(states @ w["transform.dense.weight"].T + w["transform.dense.bias"])
    x = oracle_norm(w, "transform.LayerNorm", x, 1e-12)
    return x @ w["decoder.weight"].T + w["decoder.bias"]


def oracle_pooled(plain, pooled):
    return torch.tanh(pooled @ plain["bert.pooler.dense.weight"].double().T + plain["bert.pooler.dense.bias"].double())


def some_ids(length=TINY.k, batch=2):
    return torch.randint(0, TINY.vocab, (batch, length))  # padding, 0, among them


def build(plain=None, dialect="mlm", sizes=TINY, **changed):
    kind = DIALECTS[dialect]
    tensors = dress(weights() if plain is None else plain, kind) | extras(sizes, kind)
    model, notes = m2_bert.build(tensors, config(sizes, kind) | changed)
    return model.eval(), notes


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_published_size_fits_without_memory(name, dialect):
    sizes, kind = CHECKPOINTS[name], DIALECTS[dialect]
    stored = dress(shapes(sizes), kind) | {name: tuple(t.shape) for name, t in extras(sizes, kind).items()}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    model, _ = m2_bert.build(tensors, config(sizes, kind))
    assert model.config.max_position_embeddings == sizes.k and model.context == sizes.k - 2
    assert model.head == (kind.head or "encoder") and (model.bert.pooler is not None) == kind.pooler
    assert [site.name for site in m2_bert.sites(model)] == [
        f"bert.encoder.layer.{i}.attention.{conv}" for i in range(sizes.n_layer) for conv in ("filter_fn", "filter_fn2")
    ]
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@torch.no_grad()
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_layout_computes_what_the_formulas_say(dialect, tmp_path):
    p, kind, plain = load(layouts_m2.write(tmp_path / "source", dialect)), DIALECTS[dialect], weights()
    ids = some_ids(20)
    states = oracle_hidden(plain, ids, kind.additions)
    assert (p.family, p.head, p.context, p.options) == ("m2_bert", kind.head or "encoder", TINY.k - 2, {})
    expected = oracle_words(plain, states) if p.head == "mlm" else states[:, 0]
    if kind.pooler:
        expected = oracle_pooled(plain, expected)
    if p.head == "classifier":
        expected = expected @ plain["classifier.weight"].double().T + plain["classifier.bias"].double()
    assert_close(p.model(ids), expected, FLOAT32)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros_like(expected), expected, FLOAT32)
    assert not any(w.requires_grad for w in p.model.parameters()) and not p.model.training


@torch.no_grad()
@pytest.mark.parametrize("additions", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, TINY.k])
def test_float64_agrees_with_the_formulas(length, additions):
    plain, ids = weights(), some_ids(length)
    model, _ = build(plain, "composer" if additions else "mlm")
    states = model.double().hidden(ids)
    assert_close(states, oracle_hidden(plain, ids, additions), FLOAT64)
    assert_close(model(ids), oracle_words(plain, states), FLOAT64)
    assert relative_l2(states, oracle_hidden(plain, ids, not additions)) > 100 * FLOAT32  # the norm is looked at


@torch.no_grad()
@pytest.mark.parametrize("silenced", ["implicit_filter", "implicit_filter_rev"])
@pytest.mark.parametrize("own", [False, True])
def test_each_direction_by_itself(silenced, own, tmp_path):
    """With one network of every filter silent, what is left is the other direction, and not its mirror image."""
    plain, ids = weights(), some_ids(11)
    for name in plain:
        if f".{silenced}.6." in name:
            plain[name] = torch.zeros_like(plain[name])
    p = load(layouts_m2.write(tmp_path / "source", plain=plain))
    if own:
        swap.install(p.sites, dict.fromkeys(p.filters))
    states = p.model.hidden(ids)
    assert_close(states, oracle_hidden(plain, ids), FLOAT32)
    swapped = oracle_hidden(plain, ids, networks=("implicit_filter_rev", "implicit_filter"))
    assert relative_l2(states, swapped) > 1000 * FLOAT32


@torch.no_grad()
def test_swapped_directions_are_far_off():
    plain, ids = weights(), some_ids(11)
    model, _ = build(plain)
    swapped = oracle_hidden(plain, ids, networks=("implicit_filter_rev", "implicit_filter"))
    assert relative_l2(model.hidden(ids), swapped) > 1000 * FLOAT32


def test_materialized_filters_are_the_formulas(monkeypatch):
    plain = weights()
    model, _ = build(plain)
    w = {name: tensor.double() for name, tensor in plain.items()}
    for site in m2_bert.sites(model):
        k = site.materialize()
        assert k.k.dtype == torch.float32 and k.k.shape == (site.channels, site.length) and not site.causal
        forward, reverse = (oracle_filter(w, site.name, f"implicit_filter{end}") for end in ("", "_rev"))
        assert_close(k.k[:, k.lookahead :], forward, 1e-7)  # lag 0 first
        assert_close(k.k[:, : k.lookahead].flip(-1), reverse, 1e-7)  # lag -1 first
        monkeypatch.setattr(implicit_filter, "FILTER_ROWS", 5)
        assert torch.equal(site.materialize().k, k.k)
        monkeypatch.undo()


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 13, TINY.k])
def test_the_reference_in_every_site_is_the_model(length):
    plain, ids = weights(), some_ids(length)
    model, _ = build(plain)
    own = model(ids)
    for site in m2_bert.sites(model):
        k = site.materialize()

        def conv(u, gate=None, skip=None, k=k):
            y = fftconv_ref(u, k) + skip[:, None].double() * u
            return (y if gate is None else gate * y).to(u.dtype)

        site.install(conv)
    assert_close(model(ids), own, FLOAT32)
    for site in m2_bert.sites(model):
        site.install(None)
    assert torch.equal(model(ids), own)


# --- tiles -----------------------------------------------------------------------------------------------------------


def with_kernels(plain, dialect="mlm"):
    """A model with the quick operator in every site."""
    model, _ = build(plain, dialect)
    for site in m2_bert.sites(model):
        site.install(LongConv(site.materialize()))
    return model.requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 15, 17, TINY.k])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("additions", [False, True])
def test_tiles_compute_what_the_formulas_say(batch, length, additions, small_tiles, monkeypatch):
    plain, ids = weights(), some_ids(length, batch)
    model = with_kernels(plain, "composer" if additions else "mlm")
    states, truth = model.hidden(ids), oracle_hidden(plain, ids, additions)
    assert_close(states, truth, FLOAT32)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros_like(states), truth, FLOAT32)
    monkeypatch.setattr(m2_bert_model, "takes_tiles", lambda x: False)
    assert_close(states, model.hidden(ids), FLOAT32)  # whole layers


@torch.no_grad()
def test_bfloat16_linears_are_close_and_not_closer(small_tiles):
    plain, ids = weights(), some_ids()
    model = with_kernels(plain)
    linear.use_precision(model, "bfloat16")
    assert 1e-4 < relative_l2(model.hidden(ids), oracle_hidden(plain, ids)) < 3e-2
    linear.use_precision(model, "float32")
    assert_close(model.hidden(ids), oracle_hidden(plain, ids), FLOAT32)


@pytest.mark.parametrize("kind", ["none", "gradients", "training", "autocast", "float64", "one bare"])
def test_tiles_step_aside(kind, monkeypatch):
    """Whoever asks for gradients, dropout, another dtype or the model's own convolutions gets whole layers."""
    model, tiled = with_kernels(weights()), []
    monkeypatch.setattr(m2_bert_model.Layer, "run_", lambda layer, x, room: tiled.append(layer) or x)
    if kind == "gradients":
        model.bert.encoder.layer[0].mlp.wo.weight.requires_grad_()
    if kind == "one bare":
        m2_bert.sites(model)[-1].install(None)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        (model.double() if kind == "float64" else model.train(kind == "training"))(some_ids())
    layers = list(model.bert.encoder.layer)
    assert tiled == {"none": layers, "one bare": layers[:-1]}.get(kind, [])


@torch.no_grad()
def test_tiles_leave_their_input_alone(small_tiles):
    model, x = with_kernels(weights()), torch.randn(2, TINY.k, TINY.d)
    before = x.clone()
    model.bert.encoder(x)
    assert torch.equal(x, before)


# --- plans -----------------------------------------------------------------------------------------------------------

PLANS = {
    "dense": policies.dense(),
    "partial": policies.taps(5),
    "frequency-sparse": policies.low_pass(0.25),
    "split": policies.split(4, 0.25),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_survives_its_folder(kind, tmp_path):
    p = load(layouts_m2.write(tmp_path / "source"))
    plan = policies.make_plan(p.sites, p.filters, PLANS[kind])
    assert {kept.kind for kept in plan.filters.values()} == {kind}
    ids, dense = some_ids(), p.model(some_ids())
    swap.apply_(p.sites, plan)
    again = load(write_folder(tmp_path / "out", p, plan, {}))
    assert again.plan == plan and torch.equal(again.model(ids), p.model(ids))
    assert (relative_l2(p.model(ids), dense) > 1e-3) or kind == "dense"
    assert again.tokenizer.encode("a good film") == p.tokenizer.encode("a good film")


@torch.no_grad()
@pytest.mark.parametrize("length", [TINY.k, 9])
@pytest.mark.parametrize("kind", PLANS)
def test_planned_convolutions_are_the_plan_s_filters(kind, length, tmp_path):
    p = load(layouts_m2.write(tmp_path / "source"))
    plan = policies.make_plan(p.sites, p.filters, PLANS[kind])
    u = torch.randn(2, TINY.d, length)
    for name, conv in swap.operators(p.filters, plan).items():
        kept = plan.filters[name].apply(p.filters[name])
        assert_close(conv(u), fftconv_ref(u, kept), 1e-6)
        dense = fftconv_ref(u, p.filters[name])
        assert (relative_l2(conv(u), dense) > 1e-2) == (kind != "dense")


def test_cut_leaves_filters_that_look_both_ways_alone(tmp_path):
    p = load(layouts_m2.write(tmp_path / "source"))
    for cut in (False, True):
        convs = swap.operators(p.filters, Plan.dense(p.filters), cut)
        for name, conv in convs.items():
            assert torch.equal(conv.filter.k, p.filters[name].k) and conv.filter.lookahead == TINY.k


def test_a_full_mask_is_the_dense_filter(tmp_path):
    """The spectrum on K points says all of the lags -K .. K - 1."""
    p = load(layouts_m2.write(tmp_path / "source"))
    plan = policies.make_plan(p.sites, p.filters, policies.low_pass(1.0))
    for name, k in p.filters.items():
        assert plan.filters[name].mask.n == TINY.k
        kept = plan.filters[name].apply(k)
        assert kept.lookahead == TINY.k
        assert_close(kept.k, k.k, 1e-6)


# --- heads -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pooling_by_the_mean_is_all_that_looks_at_the_mask():
    plain, ids = weights(), some_ids(12)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    model, _ = build(plain, "retrieval", pool_all=True)
    states = oracle_hidden(plain, ids)
    means = torch.stack([states[0].mean(0), states[1, :5].mean(0)])
    assert_close(model.embed(ids, mask), oracle_pooled(plain, means), FLOAT32)
    assert_close(model.embed(ids), oracle_pooled(plain, states.mean(1)), FLOAT32)
    first, _ = build(plain, "retrieval")
    assert torch.equal(first(ids, mask), first(ids))


@torch.no_grad()
def test_padding_is_data():
    model, _ = build()
    short = torch.cat([some_ids(8), torch.zeros(2, 4, dtype=torch.long)], dim=1)
    assert relative_l2(model.hidden(short)[:, :8], model.hidden(short[:, :8])) > 1e-3
    assert_close(model.hidden(short)[:, :1], oracle_hidden(weights(), short)[:, :1], FLOAT32)


@torch.no_grad()
def test_words_can_be_predicted_at_some_positions():
    model, _ = build()
    ids = some_ids(12)
    assert_close(model.predict(model.hidden(ids)[:, 3]), model(ids)[:, 3].double(), FLOAT32)
    with pytest.raises(ValueError, match=r"head 'classifier'; with_head\('mlm'\)"):
        build(dialect="retrieval")[0].predict(torch.zeros(1, TINY.d))


@torch.no_grad()
def test_token_types_are_looked_at():
    plain, ids = weights(), some_ids(9)
    types = (torch.arange(9) > 4).long().expand(2, 9)
    model, _ = build(plain)
    assert_close(model.hidden(ids, types), oracle_hidden(plain, ids, types=types), FLOAT32)
    assert relative_l2(model.hidden(ids, types), model.hidden(ids)) > 1e-3


def test_an_encoder_of_texts_leaves_its_placeholder_out(tmp_path):
    targets = {"AutoModelForSequenceClassification": "bert_layers.BertForTextEncoding"}
    p = load(layouts_m2.write(tmp_path / "source", "retrieval", auto_map=targets))
    assert p.head == "encoder" and p.model(some_ids(5)).shape == (2, TINY.d)
    assert any("placeholder" in note for note in p.notes)


def test_the_decoder_is_tied_as_stored():
    model, _ = build()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    apart = weights() | {"cls.predictions.decoder.weight": weights(seed=1)["cls.predictions.decoder.weight"]}
    model, notes = build(apart)
    assert any("not tied" in note for note in notes)
    with torch.no_grad():
        ids = some_ids(5)
        assert_close(model(ids), oracle_words(apart, oracle_hidden(apart, ids)), FLOAT32)


# --- training --------------------------------------------------------------------------------------------------------


def fresh(**changed):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 30}
    return M2Bert(M2BertConfig(**{**sizes, "max_position_embeddings": 16, "hyena_filter_order": 8, **changed}))


@pytest.mark.parametrize("head", ["mlm", "classifier", "encoder"])
def test_a_training_run_reaches_every_parameter(head):
    model = fresh(head=head, pooler=head == "encoder", pool_all=True)
    assert model.training and all(p.isfinite().all() for p in model.state_dict().values())
    model(torch.randint(0, 30, (2, 16)), token_type_ids=torch.randint(0, 2, (2, 16))).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.norm() > 0]
    assert idle == []


def test_gradients_are_those_of_the_formulas():
    """Through one filter's network, by finite differences in float64."""
    model = fresh(head="encoder").double().eval()
    ids = torch.randint(0, 30, (1, 9))
    conv = model.bert.encoder.layer[1].attention.filter_fn
    direction = torch.randn(16, dtype=torch.float64)
    for weight in (conv.implicit_filter["2"].weight, conv.implicit_filter_rev["4"].weight, conv.pos_emb.z):
        (grad,) = torch.autograd.grad((model(ids) @ direction).sum(), weight)
        at = torch.unravel_index(grad.abs().argmax(), grad.shape)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                weight[at] += step
                values.append((model(ids) @ direction).sum())
        assert ((values[0] - values[1]) / 2e-6 / grad[at] - 1).abs() < 1e-5


@pytest.mark.parametrize("fixed", [True, False])
def test_what_learns_under_a_plan(tmp_path, fixed):
    """Filters given as they are stay, and everything else learns; those that follow their weights learn, too."""
    p = load(layouts_m2.write(tmp_path / "source"))
    plan = policies.make_plan(p.sites, p.filters, policies.low_pass(0.5))
    if fixed:
        swap.install(p.sites, swap.operators(p.filters, plan))
    else:
        swap.apply_(p.sites, plan)
    p.model.requires_grad_(True).train()
    p.model(some_ids(8)).square().mean().backward()
    reached = {name for name, parameter in p.model.named_parameters() if parameter.grad is not None}
    assert "bert.encoder.layer.0.attention.filter_fn.bias" in reached
    assert "bert.encoder.layer.0.attention.in_linear.weight" in reached
    filters = {name for name, _ in p.model.named_parameters() if "implicit_filter" in name or "pos_emb" in name}
    assert filters & reached == (set() if fixed else filters)


def test_dropout_is_for_training_alone():
    model, ids = fresh(head="classifier"), torch.randint(0, 30, (2, 9))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_another_head_on_the_same_trunk(tmp_path):
    p = load(layouts_m2.write(tmp_path / "source"))
    model = p.model.with_head("classifier", 5, pool_all=True)
    ids = some_ids(7)
    assert model(ids).shape == (2, 5) and model.config.pool_all and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_close(model.eval().hidden(ids), p.model.hidden(ids).double(), FLOAT32)
    model.bert.embeddings.word_embeddings.weight.data.zero_()
    assert p.model.bert.embeddings.word_embeddings.weight.norm() > 0  # a copy


@torch.no_grad()
@pytest.mark.parametrize(
    "changed",
    [
        {"head": "mlm"},
        {"head": "classifier", "num_labels": 1, "pool_all": True},
        {"head": "encoder"},
        {"head": "encoder", "pooler": True, "hyena_training_additions": True},
        {"head": "mlm", "residual_long_conv": False, "monarch_mlp_nblocks": 2},
    ],
)
def test_a_model_made_here_is_a_checkpoint(changed, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(layouts_m2.WORDS) + "\n")
    model = fresh(**changed).eval()
    m2_bert.save(model, tmp_path / "out", TextTokenizer(tmp_path))
    p, ids = load(tmp_path / "out"), torch.randint(0, 30, (2, 9))
    assert p.model.config == replace(model.config, pooler=model.bert.pooler is not None)
    assert_close(p.model(ids), model(ids).double(), FLOAT32)
    assert p.tokenizer.encode("the film") == [2, 6, 7, 3]
    with pytest.raises(ValueError, match="is there already"):
        m2_bert.save(model, tmp_path / "out", TextTokenizer(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.txt", "out"}


# --- choices and refusals --------------------------------------------------------------------------------------------


def test_trained_positions_are_used_as_stored():
    plain = weights()
    name = "bert.encoder.layer.1.attention.filter_fn2.pos_emb.z"
    plain[name] = plain[name] * 1.5
    assert torch.equal(build(plain)[0].state_dict()[name], plain[name])
    with pytest.raises(ValueError, match=r"1 missing: bert\.encoder\.layer\.1\.attention\.filter_fn2\.pos_emb\.z"):
        build({key: tensor for key, tensor in plain.items() if key != name})


def test_what_is_never_trained_is_made_anew():
    plain = weights()
    sparse = {name: t for name, t in plain.items() if not name.endswith(("pos_emb.t", "modulation.deltas"))}
    model, notes = build(sparse)
    assert any("recomputed" in note for note in notes)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


def test_half_precision_is_told():
    model, notes = build({name: tensor.bfloat16() for name, tensor in weights().items()})
    assert any("trained positions" in note for note in notes) and any("pos_emb.t" in note for note in notes)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_an_option_of_another_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no option 'shift'; it has none"):
        load(layouts_m2.write(tmp_path / "source"), options={"shift": 0.05})


def test_padding_is_said_to_be_data():
    assert any("padding is data" in note for note in build()[1])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hidden_size": 768}, "hidden_size 768, the weights need 16"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12, the weights need 2"),
        ({"long_conv_l_max": 128}, "long_conv_l_max 128, the weights need 32"),
        ({"intermediate_size": 96}, "intermediate_size 96, the weights need 24"),
        ({"hyena_w_mod": 2}, "hyena_w_mod 2, the weights need 1 .*only one supported"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"residual_long_conv": False}, "residual_long_conv False, the weights need True"),
        ({"vocab_size": 50257}, "vocab_size 50257, the embedding has 40 rows"),
        ({"vocab_size": "40"}, "vocab_size '40', expected a number"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        build(**changed)


def test_a_head_that_is_none_of_ours_is_named():
    tensors = dress(weights(), DIALECTS["mlm"])
    m2_bert.build(tensors | {"loss_fn.weight": torch.ones(2), "train_metrics.f1.tp": torch.ones(1)}, {})
    with pytest.raises(
        ValueError, match=r"a head of its own, head.weight, .*M2-BERT is read here with .*cls.predictions"
    ):
        m2_bert.build(tensors | {"model.head.weight": torch.ones(2, 2)}, {})


def test_missing_and_unexpected_keys_are_named():
    tensors = dress(weights(), DIALECTS["mlm"])
    del tensors["bert.encoder.layer.1.mlp.wo.bias"]
    tensors["bert.encoder.layer.1.mlp.wo.scale"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"1 missing: .*mlp\.wo\.bias; 1 unexpected: .*mlp\.wo\.scale"):
        m2_bert.build(tensors, {})
    del tensors["bert.embeddings.word_embeddings.weight"]
    with pytest.raises(ValueError, match=r"lacks bert\.embeddings\.word_embeddings\.weight"):
        m2_bert.build(tensors, {})


def test_frequencies_that_differ_are_refused():
    tensors = dress(weights(), DIALECTS["mlm"])
    name = "bert.encoder.layer.0.attention.filter_fn.implicit_filter_rev.3.freq"
    tensors[name] = tensors[name] + 1
    with pytest.raises(ValueError, match=r"implicit_filter_rev\.3\.freq are one parameter"):
        m2_bert.build(tensors, {})


@pytest.mark.parametrize(("ids", "says"), [
    (torch.zeros(2, TINY.k + 1, dtype=torch.long), "got 33 tokens, the model takes 32"),
    (torch.zeros(5, dtype=torch.long), r"ids of shape \(5,\)"),
    (torch.zeros(0, 5, dtype=torch.long), r"ids of shape \(0, 5\)"),
])  # fmt: skip
def test_ids_that_do_not_fit_are_refused(ids, says):
    with pytest.raises(ValueError, match=says):
        build()[0](ids)


@pytest.mark.parametrize(
    "changed",
    [{"hidden_size": 0}, {"hyena_emb_dim": 4}, {"monarch_mlp_nblocks": 3}, {"head": "lm"}, {"num_labels": 0}],
)
def test_a_config_that_exists_is_valid(changed):
    with pytest.raises(ValueError):
        fresh(**changed)


def test_density_counts_both_sides():
    assert FilterPlan("partial", 5).density(64, 32) == 9 / 64
