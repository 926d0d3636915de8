"""HyenaDNA in every layout it is published in, against a direct computation in float64."""

import math

import layouts
import pytest
import torch
from helpers import assert_close, relative_l2
from layouts import CHECKPOINTS, DIALECTS, LABELS, TINY, config, dress, shapes, weights
from oracles import oracle, oracle_filter, oracle_hidden
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsify import fftconv_ref
from sparsify.converters import hyena_dna, load
from sparsify.converters.hyena_dna import HyenaDNA, HyenaDNAConfig
from sparsify.converters.models import hyena, implicit_filter
from sparsify.converters.models import tiled as tiles
from sparsify.converters.models.hyena import State
from sparsify.cpu import linear

FLOAT32, FLOAT64 = 1e-5, 1e-6  # relative L2; in float64 what remains is that stored filters are float32


def some_ids(length=66):
    return torch.randint(7, 12, (2, length))


def build(plain, dialect="plain", shift=None, sizes=TINY, **changed):
    kind = DIALECTS[dialect]
    options = {} if shift is None else {"shift": shift}
    return hyena_dna.build(dress(plain, kind), {**config(sizes, kind), **changed}, options)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_published_size_fits_without_memory(name, dialect):
    sizes, kind = CHECKPOINTS[name], DIALECTS[dialect]
    tensors = {k: torch.empty(shape, device="meta") for k, shape in dress(shapes(sizes), kind).items()}
    model, _ = hyena_dna.build(tensors, config(sizes, kind))
    assert model.config.max_seq_len == sizes.l_max and model.context == sizes.l_max - 2
    assert [s.name for s in hyena_dna.sites(model)] == [f"backbone.layers.{i}.mixer" for i in range(sizes.n_layer)]
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@torch.no_grad()
@pytest.mark.parametrize("dialect", [name for name, d in DIALECTS.items() if d.head != "score"])
def test_every_layout_computes_what_the_formulas_say(dialect, tmp_path):
    p = load(layouts.write(tmp_path / "source", dialect))
    ids = some_ids()
    assert (p.family, p.head, p.context) == ("hyenadna", "lm", 64)
    assert_close(p.model(ids), oracle(weights(TINY), ids), FLOAT32)
    assert not any(w.requires_grad for w in p.model.parameters()) and not p.model.training


@torch.no_grad()
@pytest.mark.parametrize("shift", [0.0, 0.05])
@pytest.mark.parametrize("length", [1, 7, 64, 66])
def test_float64_agrees_with_the_formulas(shift, length):
    plain, ids = layouts.untied(), some_ids(length)
    model, _ = build(plain, shift=shift)
    for site in hyena_dna.sites(model):
        k = site.materialize().k
        site.install(lambda g, k=k: fftconv_ref(g, k[:, : g.shape[-1]]))
    logits = model.double()(ids)
    assert_close(logits, oracle(plain, ids, shift), FLOAT64)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros_like(logits), oracle(plain, ids, shift), FLOAT32)
    if length == 66:  # another window, or a head that is not looked at, is far outside the bar
        assert relative_l2(logits, oracle(plain, ids, 0.05 - shift)) > 100 * FLOAT32
        assert relative_l2(logits, oracle(weights(TINY), ids, shift)) > 100 * FLOAT32


@torch.no_grad()
def test_changing_the_future_leaves_the_past_alone():
    model, _ = build(weights(TINY))
    ids = some_ids()
    changed = ids.clone()
    changed[:, 40:] = 7 + (ids[:, 40:] - 6) % 5
    before, after = model(ids), model(changed)
    assert_close(after[:, :40], before[:, :40], 1e-6)
    assert relative_l2(after[:, 40:], before[:, 40:]) > 0.1


@torch.no_grad()
def test_classifier_reads_the_state_before_the_first_padding(tmp_path):
    p = load(layouts.write(tmp_path / "source", "hf classifier"))
    ids = some_ids(20)
    ids[0, 15:] = 4  # padding after the sequence
    ids[1, :6] = 4  # padding before it, as the published tokenizer does
    plain = weights(TINY)
    scores = oracle_hidden(plain, ids, 0.0) @ plain["score.weight"].double().T
    assert p.head == "classifier" and p.model(ids).shape == (2, LABELS)
    assert_close(p.model(ids), torch.stack([scores[0, 14], scores[1, 19]]), FLOAT32)


# --- choices ---------------------------------------------------------------------------------------------------------


def test_shift_is_a_choice_that_is_told():
    plain = weights(TINY)
    model, notes = build(plain)
    assert model.config.shift == 0.0 and any("0.05" in note for note in notes)
    for arguments, expected in (({"shift": 0.05}, 0.05), ({"shift": 0.0}, 0.0)):
        model, notes = build(plain, **arguments)
        assert model.config.shift == expected and not any("0.05" in note for note in notes)
    saved = {**config(TINY, DIALECTS["plain"]), "shift": 0.05}
    assert hyena_dna.build(dress(plain, DIALECTS["plain"]), saved)[0].config.shift == 0.05
    assert hyena_dna.build(dress(plain, DIALECTS["plain"]), saved, {"shift": 0.0})[0].config.shift == 0.0


def test_without_modulation_there_is_no_window():
    plain = weights(TINY)
    raw = config(TINY, DIALECTS["plain"])
    bare, _ = hyena_dna.build(dress(plain, DIALECTS["plain"]), {**raw, "layer": {**raw["layer"], "modulate": False}})
    k = hyena_dna.sites(bare)[0].materialize().k
    t, deltas = (layouts.positions(TINY)[name][0] for name in ("pos_emb.t", "modulation.deltas"))
    assert_close(k * torch.exp(-t * deltas.abs()).T, hyena_dna.sites(build(plain)[0])[0].materialize().k, FLOAT64)


def test_materialized_filters_are_the_formulas():
    plain = weights(TINY)
    model, _ = build(plain, shift=0.05)
    arrays = {name: tensor.double().numpy() for name, tensor in plain.items()}
    for i, site in enumerate(hyena_dna.sites(model)):
        k = site.materialize().k
        assert k.dtype == torch.float32 and k.shape == (site.channels, site.length) and site.causal
        assert_close(k, torch.from_numpy(oracle_filter(arrays, i, 0.05)), 1e-7)


def test_filters_are_made_in_pieces_that_fit_together(monkeypatch):
    site = hyena_dna.sites(build(weights(TINY))[0])[0]
    whole = site.materialize().k
    monkeypatch.setattr(implicit_filter, "FILTER_ROWS", 17)
    assert torch.equal(site.materialize().k, whole)


@torch.no_grad()
def test_operators_of_any_kind_go_in_and_out():
    """A plain function after a module is what torch would refuse."""
    model, _ = build(weights(TINY))
    site, ids = hyena_dna.sites(model)[0], some_ids()
    own = model(ids)

    class Module(nn.Module):
        def forward(self, u, gate=None, skip=None):
            return 2 * u

    for conv in (Module(), lambda u, gate, skip: torch.zeros_like(u), Module(), None):
        site.install(conv)
        assert torch.equal(model(ids), own) == (conv is None)


def test_half_precision_weights_are_computed_with_in_float32():
    """Positions in bfloat16 tell too few taps apart, so they are made anew; the rest is taken as stored."""
    sizes = layouts.Sizes(1, 12, 20, 1026, order=8)
    stored = {name: tensor.bfloat16() for name, tensor in weights(sizes).items()}
    assert len(stored["backbone.layers.0.mixer.filter_fn.pos_emb.t"].unique()) < 0.6 * sizes.l_max
    model, notes = build(stored, sizes=sizes)
    assert any("pos_emb.t" in note for note in notes)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    rounded = {name: tensor.float() for name, tensor in stored.items()}
    exact = {f"backbone.layers.0.mixer.filter_fn.{name}": tensor for name, tensor in layouts.positions(sizes).items()}
    ids = some_ids(300)
    with torch.no_grad():
        assert_close(model(ids), oracle({**rounded, **exact}, ids), FLOAT32)


def test_positions_stored_in_float32_are_used_as_stored():
    plain = weights(TINY)
    name = "backbone.layers.1.mixer.filter_fn.pos_emb.z"
    plain[name] = plain[name] * 1.5
    assert torch.equal(build(plain)[0].state_dict()[name], plain[name])


def test_positions_left_out_are_made_anew():
    plain = weights(TINY)
    sparse = {name: tensor for name, tensor in plain.items() if "pos_emb" not in name and "deltas" not in name}
    model, notes = build(sparse)
    assert any("recomputed" in note for note in notes)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name
    bare = config(TINY, DIALECTS["plain"])
    del bare["layer"]["l_max"]
    with pytest.raises(ValueError, match="filters' length is unknown"):
        hyena_dna.build(dress(sparse, DIALECTS["plain"]), bare)


def test_no_config_is_needed():
    model, _ = hyena_dna.build(dress(weights(TINY), DIALECTS["raw"]), {})
    assert (model.config.d_inner, model.config.n_layer) == (TINY.d_inner, TINY.n_layer)


def test_a_training_run_reaches_every_parameter():
    model = HyenaDNA(HyenaDNAConfig(d_model=12, d_inner=20, n_layer=2, vocab_rows=16, max_seq_len=66))
    for module in model.modules():
        if isinstance(module, implicit_filter.PositionalEmbedding | implicit_filter.Modulation):
            module.reset_parameters()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model(some_ids(20)).square().mean().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())


# --- by tiles ---------------------------------------------------------------------------------------------------------

TILE = 16


class Direct:
    """The convolution by its definition in float64, from everything that came so far."""

    def __init__(self, k):
        self.k, self.past = k, None

    def __call__(self, u, gate=None, skip=None):
        self.past = u.clone() if self.past is None else torch.cat([self.past, u], dim=-1)
        y = fftconv_ref(self.past, self.k[:, : self.past.shape[-1]])[..., -u.shape[-1] :]
        y = y if skip is None else y + skip[:, None] * u
        return (y if gate is None else y * gate).to(u.dtype)


def with_convs(plain, make=Direct):
    """A model with a convolution of its own in every site, and the filters."""
    model, _ = build(plain)
    model.requires_grad_(False).eval()
    filters = [site.materialize().k for site in hyena_dna.sites(model)]
    for site, k in zip(hyena_dna.sites(model), filters, strict=True):
        site.install(lambda u, gate=None, skip=None, k=k: make(k)(u, gate, skip))
    return model, filters


@pytest.mark.parametrize("seqlen", [0, 1, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_tiles_cover_every_token_once(batch, seqlen, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ROWS", TILE)
    x, reached = torch.zeros(batch, seqlen, 3), [0] * batch
    for b, t in tiles.tiles(batch, seqlen):
        assert x[b, t].is_contiguous() and 0 < x[b, t, 0].numel() <= TILE
        assert all(reached[i] == t.start for i in range(b.start, b.stop)), "a sequence's tiles come in order"
        reached[b] = [t.stop] * (b.stop - b.start)
        x[b, t] += 1
    assert (x == 1).all() and reached == [seqlen] * batch


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, TILE - 1, TILE, TILE + 1, 2 * TILE + 1, 66])
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_compute_what_the_formulas_say(batch, length, small_tiles, monkeypatch):
    plain = layouts.untied()
    model, _ = with_convs(plain)
    ids = torch.randint(7, 12, (batch, length))
    logits, truth = model(ids), oracle(plain, ids)
    assert_close(logits, truth, FLOAT32)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros_like(logits), truth, FLOAT32)
    monkeypatch.setattr(hyena, "takes_tiles", lambda x: False)
    assert_close(logits, model(ids), FLOAT32)  # whole layers
    for site in hyena_dna.sites(model):
        site.install(None)
    assert_close(logits, model(ids), FLOAT32)  # as published


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pieces", [(66,), (1,) * 20, (2, 1, 1, 3, 17, 1, 40, 1), (16, 16, 16, 16), (33, 1, 32)])
@pytest.mark.parametrize("kept", [False, True])
def test_pieces_with_a_state_are_the_whole(pieces, batch, kept, small_tiles, monkeypatch):
    plain = layouts.untied()
    model, filters = with_convs(plain)
    ids = torch.randint(7, 12, (batch, sum(pieces)))
    states = [State(Direct(k)) for k in filters]
    if kept:
        for state, layer in zip(states, model.backbone.layers, strict=True):
            state.calls = layer.prepare(math.inf)
        monkeypatch.setattr(linear.Linear, "prepare", None)  # not again
    hidden = torch.cat([model.backbone(piece, states) for piece in ids.split(pieces, dim=1)], dim=1)
    assert_close(hidden, oracle_hidden(plain, ids, 0.0), FLOAT32)
    assert all(state.history.shape == (batch, 2, 36) for state in states)
    if len(pieces) > 1:  # a state that is forgotten is noticed
        for state in states:
            state.history = None
        assert relative_l2(model.backbone(ids[:, -3:], states), hidden[:, -3:]) > 100 * FLOAT32


@pytest.mark.parametrize("order", [1, 2, 4])
def test_short_filters_of_any_length(order, small_tiles):
    """T - 1 rows of history: none for one tap, more than a short piece holds for four."""
    k, bias, z = torch.randn(36, order), torch.randn(36), torch.randn(2, 20, 36)
    whole = torch.nn.functional.pad(z.double().transpose(1, 2), (order - 1, 0))
    y = torch.nn.functional.conv1d(whole, k.double()[:, None], bias.double(), groups=36)
    first, x1, v = y.chunk(3, dim=1)
    x0, g = torch.empty(2, 12, 20), torch.empty(2, 12, 20)
    before, start = None, 0
    for piece in z.split([1, 1, 2, 13, 3], dim=1):
        piece, t = piece.contiguous(), slice(start, start + piece.shape[1])
        tiles.short_gate(piece, k, bias, before, x0[:, :, t], g[:, :, t])
        before, start = tiles.last_rows(piece, before, order - 1), t.stop
    assert_close(x0, first, FLOAT64)
    assert_close(g, x1 * v, FLOAT64)


@torch.no_grad()
def test_a_pass_by_tiles_leaves_weights_alone(small_tiles):
    """It writes into what the embedding returned, which must not be the embedding."""
    model, _ = with_convs(weights(TINY))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(some_ids())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_weights_that_change_are_used(small_tiles):
    model, _ = with_convs(weights(TINY))
    ids, other = some_ids(), weights(TINY, seed=3)
    model(ids)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(other[name])  # no version counter tells of this
    changed, _ = with_convs(other)
    for site, own in zip(hyena_dna.sites(changed), hyena_dna.sites(model), strict=True):
        own.install(site.install(None))
    assert_close(model(ids), oracle(other, ids), FLOAT32)


class Largest(TorchDispatchMode):
    """The most elements that a result of any operator had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        if isinstance(y, torch.Tensor):
            self.elements = max(self.elements, y.numel())
        return y


@torch.no_grad()
def test_no_tensor_is_wider_than_the_hidden_states(small_tiles):
    model, _ = with_convs(weights(TINY), lambda k: lambda u, gate, skip: u)
    ids = some_ids(66)
    with Largest() as tiled:
        x = model.backbone(ids)
    assert tiled.elements == x.numel()
    for site in hyena_dna.sites(model):
        site.install(None)
    with Largest() as whole:
        model.backbone(ids)
    assert whole.elements >= 3 * x.numel()


@torch.no_grad()
def test_linear_layers_and_norms_are_seen_by_hooks(small_tiles):
    model, _ = with_convs(weights(TINY))
    rows = dict.fromkeys((name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm)), 0)
    rows = {name: 0 for name in rows if "filter_fn" not in name}
    for name in rows:
        count = lambda module, args, y, name=name: rows.update({name: rows[name] + y[..., 0].numel()})  # noqa: E731
        model.get_submodule(name).register_forward_hook(count)
    model(some_ids(66))
    assert set(rows.values()) == {2 * 66}


@torch.no_grad()
def test_bfloat16_linears_are_close_and_not_closer(small_tiles):
    plain = weights(TINY)
    model, _ = with_convs(plain)
    ids = some_ids()
    linear.use_precision(model, "bfloat16")
    assert 1e-4 < relative_l2(model(ids), oracle(plain, ids)) < 3e-2
    linear.use_precision(model, "float32")
    assert_close(model(ids), oracle(plain, ids), FLOAT32)


@pytest.mark.parametrize("kind", ["none", "gradients", "autocast", "float64", "compiler"])
def test_tiles_step_aside(kind, monkeypatch):
    """Whoever asks for gradients, another dtype or a graph gets whole layers."""
    model, _ = with_convs(weights(TINY))
    tiled = []
    monkeypatch.setattr(hyena.Block, "run_", lambda block, x, state, room: tiled.append(block) or x)
    if kind == "gradients":
        model.backbone.layers[0].mlp.fc1.weight.requires_grad_()
        model(some_ids(20)).square().mean().backward()
        assert model.backbone.layers[0].mlp.fc1.weight.grad.norm() > 0
    elif kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            model(some_ids())
    elif kind == "compiler":
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            model(some_ids())
    else:
        (model.double() if kind == "float64" else model)(some_ids())
    assert tiled == (list(model.backbone.layers) if kind == "none" else [])


def test_pieces_carry_no_gradients():
    model, filters = with_convs(weights(TINY))
    model.requires_grad_(True)
    with pytest.raises(ValueError, match="pieces of a sequence carry no gradients"):
        model.backbone(some_ids(), [State(Direct(k)) for k in filters])


# --- refusals --------------------------------------------------------------------------------------------------------


def test_missing_and_unexpected_keys_are_named_in_one_sentence():
    tensors = dress(weights(TINY), DIALECTS["hf"])
    del tensors["hyena.backbone.layers.1.mlp.fc2.bias"]
    tensors["hyena.backbone.layers.1.mlp.fc3.bias"] = torch.zeros(3)
    tensors["hyena.backbone.ln_f.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as refusal:
        hyena_dna.build(tensors, {})
    for part in ("1 missing", "mlp.fc2.bias", "1 unexpected", "mlp.fc3.bias", "ln_f.bias is (3,)", "expected (12,)"):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("head.output_transform.weight", "head.output_transform.bias"), "research code.* reads the mean over all"),
        (
            ("model.decoder.0.output_transform.weight",),
            "research code.* decoder.0.output_transform.weight.* take these",
        ),
        (
            ("classifier.weight", "classifier.bias"),
            "a head of its own, classifier.bias, classifier.weight, and the file",
        ),
        (("score.bias",), "a head of its own, score.bias"),
    ],
)
def test_a_head_that_computes_something_else_is_not_loaded_as_ours(names, says):
    """Nor is the model loaded without it, as if it had been a language model's."""
    tensors = dress(weights(TINY), DIALECTS["hf base"]) | {name: torch.zeros(LABELS, 12) for name in names}
    with pytest.raises(ValueError, match=says):
        hyena_dna.build(tensors, {})


def test_what_a_training_run_leaves_beside_the_model_is_left_out():
    plain = weights(TINY)
    leftovers = ("model.criterion.weight", "loss_fn.weight", "val_torchmetrics.a.count", "train_acc.tp")
    tensors = dress(plain, DIALECTS["compiled"]) | {name: torch.ones(2) for name in leftovers}
    model, _ = hyena_dna.build(tensors, {})
    assert torch.equal(model.lm_head.weight, plain["lm_head.weight"])


@pytest.mark.parametrize("wrapper", ["base_model.model.", "module._fsdp_wrapped_module.", "_forward_module._orig_mod."])
@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", "module"])
def test_a_fine_tune_in_its_wrappers_is_the_same_classifier(wrapper, key, tmp_path):
    plain = dress(weights(TINY), DIALECTS["hf classifier"])
    found = {}
    for name, tensors in (("plain", plain), ("wrapped", {key: {wrapper + name: w for name, w in plain.items()}})):
        (tmp_path / name).mkdir()
        torch.save(tensors, tmp_path / name / "best.pt")
        found[name] = load(tmp_path / name)
    assert found["plain"].head == found["wrapped"].head == "classifier"
    ids = torch.tensor([[7, 8, 9, 10, 7, 1]])
    assert torch.equal(found["plain"].model(ids), found["wrapped"].model(ids))


def test_a_layer_that_is_gone_is_missed():
    """Its 26 tensors but for the 3 that can be computed."""
    tensors = {k: v for k, v in weights(layouts.Sizes(3, 12, 20, 66, order=8)).items() if ".layers.1." not in k}
    with pytest.raises(ValueError, match=r"23 missing: backbone\.layers\.1\..*26 unexpected: backbone\.layers\.2\."):
        hyena_dna.build(dress(tensors, DIALECTS["plain"]), {})


def test_sizes_cannot_be_read_from_what_is_not_there():
    tensors = dress(weights(TINY), DIALECTS["plain"])
    del tensors["backbone.layers.0.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"lacks backbone\.layers\.0\.mlp\.fc1\.weight"):
        hyena_dna.build(tensors, {})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"d_model": 256}, "d_model 256, the weights need 12"),
        ({"n_layer": 4}, "n_layer 4, the weights need 2"),
        ({"layer": {"l_max": 1026}}, "l_max 1026, the weights need 66"),
        ({"layer": {"order": 3}}, "order 3, the weights need 2"),
        ({"vocab_size": 39818}, "vocab_size 39818"),
        ({"vocab_size": "12"}, "vocab_size '12', expected a number"),
        ({"pad_vocab_size_multiple": 32}, "16 rows"),
        ({"shift": 7.0}, "shift must lie in"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        build(weights(TINY), **changed)


def test_a_classifier_without_labels_is_refused():
    tensors = dress(weights(TINY), DIALECTS["hf classifier"])
    tensors["score.weight"] = tensors["score.weight"][:0]
    with pytest.raises(ValueError, match="at least 1 label, got 0"):
        hyena_dna.build(tensors, {})


def test_another_vocabulary_is_refused():
    plain = weights(TINY)
    for name in ("lm_head.weight", "backbone.embeddings.word_embeddings.weight"):
        plain[name] = torch.randn(32, TINY.d_model)
    with pytest.raises(ValueError, match=r"32 rows, a vocabulary of 12 tokens .* has 16"):
        build(plain)


def test_frequencies_that_differ_are_refused():
    tensors = dress(weights(TINY), DIALECTS["raw"])
    name = "model.backbone.layers.0.mixer.filter_fn.implicit_filter.5.freq"
    tensors[name] = tensors[name] + 1
    with pytest.raises(ValueError, match=r"implicit_filter\.5\.freq are one parameter"):
        hyena_dna.build(tensors, {})


def test_integer_weights_are_refused():
    tensors = dress(weights(TINY), DIALECTS["plain"])
    tensors["backbone.ln_f.weight"] = torch.ones(12, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"ln_f\.weight is \(12,\) torch\.int8"):
        hyena_dna.build(tensors, {})


def test_an_input_beyond_the_filters_is_refused():
    model, _ = build(weights(TINY))
    with pytest.raises(ValueError, match="got 67 tokens, the model takes 66"):
        model(some_ids(67))


@pytest.mark.parametrize("changed", [{"d_model": 0}, {"emb_dim": 4}, {"shift": -0.1}, {"max_seq_len": 2}])
def test_a_config_that_exists_is_valid(changed):
    sizes = {"d_model": 12, "d_inner": 20, "n_layer": 2, "vocab_rows": 16, "max_seq_len": 66}
    with pytest.raises(ValueError):
        HyenaDNAConfig(**{**sizes, **changed})
