"""The English Hyena LM in every layout it comes in, against a direct computation in float64."""

import json

import layouts
import layouts_lm
import pytest
import torch
from helpers import assert_close, relative_l2
from layouts_lm import DIALECTS, ROWS, SMALL_150B, TINY, TOKENS, Z, dress, shapes, untied, weights, write
from oracles import oracle, oracle_filter

from sparsify import fftconv_ref, swap
from sparsify.converters import hyena_lm, load, registry, write_folder
from sparsify.converters.hyena_lm import HyenaLMConfig
from sparsify.converters.tensors import read_config, read_tensors
from sparsify.plan import FilterPlan, Plan, policies

FLOAT32, FLOAT64 = 1e-5, 1e-10
FILTERS = ("backbone.layers.0.mixer.filter_fn", "backbone.layers.1.mixer.filter_fn")


def some_ids(length=64, batch=2):
    return torch.randint(0, TOKENS, (batch, length))


def build(plain=None, dialect="published", **config):
    return hyena_lm.build(dress(weights() if plain is None else plain, dialect), config)


def truth(plain, ids, window=False):
    """Logits in float64 by the formulas; HyenaDNA's, but that there is no decay window."""
    return oracle(plain, ids, 0.0 if window else None)


def plan_for(p, taps=5):
    return Plan({site.name: FilterPlan("partial", taps) for site in p.sites}, f"taps {taps}")


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_the_published_file_tensor_by_tensor():
    """508 names; the head is the embedding and freq one parameter, so 615,011,328 bytes of float32 are its own."""
    stored = dress(shapes(SMALL_150B))
    assert len(stored) == 508
    assert {name for name in stored if ".layers." not in name} == {
        "backbone.embeddings.word_embeddings.weight", "backbone.ln_f.weight", "backbone.ln_f.bias", "lm_head.weight",
    }  # fmt: skip
    first = {name: shape for name, shape in stored.items() if name.startswith(FILTERS[0])}
    assert {name.removeprefix(f"{FILTERS[0]}."): shape for name, shape in first.items()} == {
        "bias": (864,), "pos_emb.z": (1, 2048, 33), "pos_emb.t": (1, 2048, 1), "modulation.deltas": (1, 1, 864),
        "implicit_filter.0.weight": (64, 33), "implicit_filter.0.bias": (64,),
        "implicit_filter.1.freq": (1, 64), "implicit_filter.3.freq": (1, 64), "implicit_filter.5.freq": (1, 64),
        "implicit_filter.2.weight": (64, 64), "implicit_filter.2.bias": (64,),
        "implicit_filter.4.weight": (64, 64), "implicit_filter.4.bias": (64,),
        "implicit_filter.6.weight": (864, 64),
    }  # fmt: skip
    assert stored["backbone.layers.17.mlp.fc1.weight"] == (1728, 864)
    own = {
        name: shape for name, shape in stored.items() if not name.endswith(("3.freq", "5.freq")) and "lm_" not in name
    }
    assert 4 * sum(torch.Size(shape).numel() for shape in own.values()) == 615_011_328


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_published_size_fits_without_memory_and_without_a_config(dialect):
    tensors = {name: torch.empty(shape, device="meta") for name, shape in dress(shapes(SMALL_150B), dialect).items()}
    assert registry.find({name: tuple(tensor.shape) for name, tensor in tensors.items()})[0] == "hyena_lm"
    model, _ = hyena_lm.build(tensors, {})
    assert model.config == HyenaLMConfig(
        d_model=864, d_inner=1728, n_layer=18, vocab_rows=ROWS, max_seq_len=2048, emb_dim=33, modulate=False
    )
    assert model.context == 2048 and model.head == "lm" and model.is_tied and model.letters == range(TOKENS)
    assert [s.name for s in hyena_lm.sites(model)] == [f"backbone.layers.{i}.mixer" for i in range(18)]
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@torch.no_grad()
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_layout_computes_what_the_formulas_say(dialect, tmp_path):
    p = load(write(tmp_path / "source", dialect))
    ids = some_ids()
    assert (p.family, p.head, p.context, p.options) == ("hyena_lm", "lm", 64, {})
    assert_close(p.model(ids), truth(weights(), ids), FLOAT32)
    assert not any(w.requires_grad for w in p.model.parameters()) and not p.model.training


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 63, 64])
def test_float64_agrees_with_the_formulas(length):
    plain, ids = untied(), some_ids(length)
    model, _ = build(plain)
    logits, expected = model.double()(ids), truth(plain, ids)
    assert_close(logits, expected, FLOAT64)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros_like(logits), expected, FLOAT32)
    for site in hyena_lm.sites(model):
        k = site.materialize().k
        site.install(lambda g, k=k: fftconv_ref(g, k[:, : g.shape[-1]]))
    assert_close(model(ids), expected, 1e-6)  # what remains is that kept filters are float32


@torch.no_grad()
def test_what_would_be_wrong_is_far_outside_the_bars():
    """Gates the other way round, a decay window, positions as computed, the embedding for an untied head."""
    plain, ids = untied(), some_ids()
    right, d = build(plain)[0].double()(ids), TINY.d_model
    swapped = dict(plain)
    for name in (name for name in plain if "in_proj" in name or "short_filter" in name):
        x0, x1, v = plain[name].split(d)
        swapped[name] = torch.cat([x1, x0, v])
    z = layouts.positions(TINY)["pos_emb.z"].float()
    wrong = {
        "gates": truth(swapped, ids),
        "window": truth(plain, ids, window=True),
        "positions": truth({name: z if name.endswith(Z) else tensor for name, tensor in plain.items()}, ids),
        "head": truth(weights(), ids),
    }
    assert_close(right, truth(plain, ids), FLOAT64)
    for what, logits in wrong.items():
        assert relative_l2(right, logits) > 1e-3, what


@torch.no_grad()
def test_changing_the_future_leaves_the_past_alone():
    model, _ = build()
    ids = some_ids()
    changed = ids.clone()
    changed[:, 40:] = (ids[:, 40:] + 1) % TOKENS
    before, after = model(ids), model(changed)
    assert_close(after[:, :40], before[:, :40], 1e-6)
    assert relative_l2(after[:, 40:], before[:, 40:]) > 0.1


# --- choices ---------------------------------------------------------------------------------------------------------


def test_trained_positions_are_read_and_never_recomputed():
    plain = weights()
    model, _ = build(plain)
    assert f"{FILTERS[0]}.pos_emb.z" in dict(model.named_parameters())
    for name in FILTERS:
        assert torch.equal(model.state_dict()[f"{name}.pos_emb.z"], plain[f"{name}.pos_emb.z"])
    lost = {name: tensor for name, tensor in plain.items() if name != f"{FILTERS[1]}.pos_emb.z"}
    with pytest.raises(ValueError, match=r"1 missing: backbone\.layers\.1\.mixer\.filter_fn\.pos_emb\.z"):
        build(lost)


def test_tables_that_are_not_trained_are_made_anew_where_they_are_missing():
    plain = weights()
    sparse = {name: tensor for name, tensor in plain.items() if not name.endswith(("pos_emb.t", "deltas"))}
    model, notes = build(sparse)
    assert any("recomputed" in note and "pos_emb.z" not in note for note in notes)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


def test_half_precision_is_told():
    model, notes = build({name: tensor.bfloat16() for name, tensor in weights().items()})
    assert any("trained positions" in note for note in notes) and any("pos_emb.t" in note for note in notes)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("config", [{"modulate": True}, {"layer": {"modulate": True}, "modulate": False}])
def test_a_decay_window_on_request_has_no_floor(config):
    plain = weights()
    arrays = {name: tensor.double().numpy() for name, tensor in plain.items()}
    (bare, told), (windowed, silent) = build(plain), build(plain, **config)
    assert any("no decay window" in note for note in told) and silent == ()
    for model, shift in ((bare, None), (windowed, 0.0)):
        for i, site in enumerate(hyena_lm.sites(model)):
            k = site.materialize().k
            assert k.dtype == torch.float32 and k.shape == (12, 64) and site.causal and site.context == 64
            assert_close(k, torch.from_numpy(oracle_filter(arrays, i, shift)), 1e-7)
    made = [hyena_lm.config_overrides(model.config) for model in (bare, windowed)]
    assert made == [{"modulate": False}, {"modulate": True}]


def test_the_head_is_the_embedding_unless_it_has_values_of_its_own():
    model, _ = build()
    assert model.is_tied and model.lm_head.weight is model.backbone.embeddings["word_embeddings"].weight
    model, notes = build(untied())
    assert not model.is_tied and any("not tied" in note for note in notes)
    assert torch.equal(model.lm_head.weight, untied()["lm_head.weight"])


def test_what_the_authors_call_things_is_no_contradiction():
    layer = {"_name_": "hyena", "emb_dim": 9, "filter_order": 8, "local_order": 3, "l_max": 64, "modulate": False}
    model, notes = build(
        _name_="lm", d_model=12, d_inner=20, n_layer=2, vocab_size=50257, embed_dropout=0.0, fused_mlp=True,
        residual_in_fp32=True, pad_vocab_size_multiple=8, layer={**layer, "w": 14},
    )  # fmt: skip
    assert notes == () and not model.config.modulate


# --- in pieces -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(64,), (1,) * 20, (2, 1, 3, 17, 1, 40)])
def test_a_stream_is_the_whole(pieces, tmp_path):
    p = load(write(tmp_path / "source", plain=untied()))
    ids = some_ids(sum(pieces))
    for policy in (policies.dense(), policies.split(8, 0.25)):
        plan = policies.make_plan(p.sites, p.filters, policy)
        swap.install(p.sites, swap.operators(p.filters, plan, cut=True))
        whole, stream = p.model(ids), p.model.stream(2)
        assert_close(torch.cat([stream.feed(piece) for piece in ids.split(pieces, dim=1)], dim=1), whole, FLOAT32)
    assert relative_l2(p.model.stream(2).feed(ids[:, -3:]), whole[:, -3:]) > 1e-3 or len(pieces) == 1


@torch.no_grad()
def test_generated_ids_are_tokens():
    """Though the model likes the padding of its vocabulary best."""
    plain = untied()
    model, _ = build(plain)
    model.lm_head.weight[TOKENS:] = 100 * model.backbone(some_ids(4, 1))[0, -4:].repeat(2, 1)[:7]
    ids = some_ids(4)
    assert (model(ids)[:, -1].argmax(-1) >= TOKENS).any()
    for temperature in (0.0, 1.0):
        grown = model.stream(2).generate(ids, 30, temperature=temperature, seed=0)
        assert grown.shape == (2, 34) and grown.max() < TOKENS


# --- out and in again ------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("modulate", [None, True])
def test_what_was_written_loads_as_the_same_model_with_its_plan(tmp_path, modulate):
    said = {} if modulate is None else {"modulate": modulate}
    p, ids = load(write(tmp_path / "source", **said)), some_ids()
    out = write_folder(tmp_path / "out", p, plan_for(p), {})
    again, config = load(out), read_config(out)
    assert (config["model_type"], config["modulate"]) == ("hyena_lm", bool(modulate)) and again.notes == ()
    assert read_tensors(out).keys() == dress(weights()).keys() and again.sha256 == p.sha256
    swap.apply_(p.sites, again.plan)
    assert torch.equal(again.model(ids), p.model(ids)) and again.plan == plan_for(p)
    again_dense = load(write_folder(tmp_path / "twice", again, Plan.dense(again.filters), {}))
    assert torch.equal(again_dense.model(ids), load(tmp_path / "source").model(ids))
    assert relative_l2(again_dense.model(ids), again.model(ids)) > 1e-3


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"d_model": 864}, "d_model 864, the weights need 12"),
        ({"d_inner": 48}, r"d_inner 48, the weights need 20 \(rows of mlp.fc1\)"),
        ({"n_layer": 18}, "n_layer 18, the weights need 2"),
        ({"layer": {"l_max": 2048}}, "l_max 2048, the weights need 64"),
        ({"layer": {"emb_dim": 33}}, "emb_dim 33, the weights need 9"),
        ({"layer": {"order": 3}}, "order 3, the weights need 2"),
        ({"vocab_size": 50277}, "vocab_size 50277, Hyena LM's is 50257"),
        (
            {"pad_vocab_size_multiple": 64},
            "50264 rows, .* padded to a multiple of 64 has 50304",
        ),
        ({"layer": {"shift": 0.05}}, "shift 0.05, the weights need 0.0 .*no floor"),
        ({"modulate": "no"}, "modulate 'no', expected true or false"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(changed, says):
    with pytest.raises(ValueError, match=says) as refusal:
        build(**changed)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("rows", [50257, 50304, 32])
def test_another_vocabulary_is_refused(rows, tmp_path):
    plain = weights(layouts.Sizes(2, 12, 20, 64, emb_dim=9, order=8, rows=rows))
    with pytest.raises(ValueError, match=rf"the embedding has {rows} rows, .* has another vocabulary"):
        load(write(tmp_path / "source", plain=plain))


def test_an_option_of_another_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no option 'shift'; it has none"):
        load(write(tmp_path / "source"), options={"shift": 0.05})


def test_frequencies_that_differ_are_refused():
    tensors = dress(weights())
    name = f"{FILTERS[0]}.implicit_filter.5.freq"
    tensors[name] = tensors[name] + 1
    with pytest.raises(ValueError, match=r"implicit_filter\.5\.freq are one parameter"):
        hyena_lm.build(tensors, {})


def test_an_input_beyond_the_filters_is_refused():
    with pytest.raises(ValueError, match="got 65 tokens, the model takes 64"):
        build()[0](some_ids(65))


def test_two_pickles_are_one_too_many(tmp_path):
    folder = write(tmp_path / "source")
    torch.save({}, folder / "other.ckpt")
    with pytest.raises(ValueError, match=rf"several weight files and no index: {layouts_lm.FILE}, other\.ckpt"):
        load(folder)


def test_nothing_but_weights_is_looked_for(tmp_path):
    """Neither a config.json nor a vocabulary is needed to load, convert and load again."""
    p = load(write(tmp_path / "source"))
    out = write_folder(tmp_path / "out", p, plan_for(p), {})
    assert json.loads((out / "config.json").read_text()).keys() == {"model_type", "modulate", "quantization_config"}
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    assert load(out).tokenizer.id_range == (0, TOKENS)
