"""What people do with torch and transformers that a fast path might miss: it is seen, or refused in one sentence."""

import logging
import subprocess
import sys
import warnings

import pytest
import torch
from families import FAMILIES, auto, hyenadna, ids, logits, saved, trainer
from helpers import relative_l2
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize
from transformers import AutoModelForCausalLM
from transformers import AutoModelForSequenceClassification as ForClasses

from sparsify import LongConv, fftconv_ref
from sparsify.converters import load
from sparsify.cpu.linear import Linear
from sparsify.freshness import signature
from sparsify.hooks import is_plain

pytestmark = pytest.mark.filterwarnings("ignore:the weights behind a planned convolution have changed")
CAUSAL = ("hyenadna", "hyena_lm")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def sample(length=24, batch=2):
    return ids(length, batch)


def fresh(model, u):
    """Logits that are traced from the weights as they are, without anything prepared."""
    parts = [m for m in model.modules() if hasattr(m, "pos_emb")]
    with torch.enable_grad():
        for part in parts:
            part.requires_grad_(True)
        found = model(u).logits.detach()
        for part in parts:
            part.requires_grad_(False)
    return found


def filter_of(model):
    return next(m for m in model.modules() if hasattr(m, "pos_emb"))


# --- weights that change -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [64, 128, 256])
def test_a_digest_sees_signs(width):
    """Two flipped bits of one place do not cancel, wherever they are."""
    w = torch.randn(width, width)
    before = signature([w])
    assert signature([w.neg()]) != before
    for apart in (2, 32, 64, 128, 256, 512, 1024):
        changed = w.clone().flatten()
        changed[[0, apart]] *= -1
        assert signature([changed]) != before, apart


@torch.no_grad()
def test_linear_layers_follow_their_signs():
    layer, x = Linear(64, 64), torch.randn(1, 600, 64)
    layer.prepare(600)(x)
    layer.weight.neg_()
    assert relative_l2(layer.prepare(600)(x), layer(x)) < 1e-5


@torch.no_grad()
def test_a_fused_optimizer_on_a_large_filter_is_seen(tmp_path):
    """It does not count its changes."""
    from sparsify.converters.models.implicit_filter import ImplicitFilter

    made = ImplicitFilter(768, 20, width=128)
    made.reset_parameters()
    w = made.implicit_filter["6"].weight
    assert w.nbytes > 1 << 18
    from sparsify.swap import signed

    before = signed(made)
    w.grad = torch.ones_like(w)
    torch.optim.AdamW([w], lr=0.1, fused=True).step()
    assert signed(made) != before


class Triple(nn.Module):
    def forward(self, w):
        return 3 * w


@torch.no_grad()
@pytest.mark.parametrize("change", ["hook", "parametrization", "adapter"])
def test_a_filters_layers_may_be_watched_and_wrapped(family, change, tmp_path):
    model, u = auto(family).from_pretrained(saved(family, tmp_path, 9)), sample()
    before, layer = logits(model, u), filter_of(model).implicit_filter["6"]
    fired = []
    if change == "hook":
        layer.register_forward_hook(lambda module, inputs, output: fired.append(0) or 3 * output)
    elif change == "parametrization":
        parametrize.register_parametrization(layer, "weight", Triple(), unsafe=True)
    else:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=r".*implicit_filter\.[0246]", r=4, init_lora_weights=False)
        wrapped = peft.get_peft_model(model, config).eval()
        adapted = wrapped(u).logits
        assert relative_l2(adapted, before) > 1e-3
        with wrapped.disable_adapter():
            assert relative_l2(wrapped(u).logits, before) < 1e-5
        assert torch.equal(wrapped(u).logits, adapted)
        return
    after = logits(model, u)
    assert relative_l2(after, before) > 1e-3
    assert relative_l2(fresh(model, u), after) < 1e-4
    assert change != "hook" or fired


@torch.no_grad()
def test_weights_in_half_precision_may_be_assigned(family, tmp_path):
    folder = saved(family, tmp_path, None)
    model, u = auto(family).from_pretrained(folder), sample()
    logits(model, u)
    other = {
        name: (-t).to(torch.bfloat16) if "implicit_filter" in name else t for name, t in model.state_dict().items()
    }
    model.load_state_dict(other, assign=True)
    found = logits(model.float(), u)
    assert relative_l2(found, fresh(model, u)) < 1e-4


@torch.no_grad()
def test_streams_follow_a_weight_that_is_made_of_others(tmp_path):
    model = load(hyenadna(tmp_path / "source")).model
    parametrizations.weight_norm(model.backbone.layers[0].mixer.in_proj)
    u = sample(batch=1)
    for _ in range(2):
        assert relative_l2(model.stream().feed(u), model(u)) < 1e-4
        model.backbone.layers[0].mixer.in_proj.parametrizations.weight.original0.mul_(2)


@torch.no_grad()
def test_streams_take_layers_of_others(tmp_path):
    model = load(hyenadna(tmp_path / "source")).model
    model.backbone.layers[0].mlp = nn.Identity()
    u = sample(batch=1)
    assert relative_l2(model.stream().feed(u), model(u)) < 1e-4
    model.backbone.layers[1] = nn.Identity()
    with pytest.raises(ValueError, match="Identity has no `begin`"):
        model.stream()


# --- tensors that are more than values -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_changes_nothing(dtype):
    code = (
        "import torch\nfrom sparsify import LongConv\nfrom sparsify.cpu import native\n"
        "u, k = torch.randn(2, 8, 1000), torch.randn(8, 1000) / 30\nexpected = LongConv(k)(u)\n"
        f"torch.set_default_dtype({dtype})\n"
        "for _ in range(20):\n    assert torch.equal(LongConv(k)(u), expected)\n"
        "native.available() and native.to_columns(torch.randn(1, 9, 8, dtype=torch.float32))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Elsewhere(torch.Tensor):
    """A weight whose values lie elsewhere, as quantised ones have them."""

    @staticmethod
    def __new__(cls, values):
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        made.values_ = values
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        given = torch.utils._pytree.tree_map(lambda t: t.values_ if isinstance(t, cls) else t, (args, kwargs or {}))
        found = function(*given[0], **given[1])
        return cls(found) if function is torch.ops.aten.detach.default else found


@torch.no_grad()
def test_a_weight_whose_values_lie_elsewhere(tmp_path):
    model, u = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, None)), sample()
    before, layer = logits(model, u), filter_of(model).implicit_filter["2"]
    layer.weight = nn.Parameter(Elsewhere(layer.weight.detach() * 2), requires_grad=False)
    assert not is_plain(layer.weight)
    after = logits(model, u)
    assert relative_l2(after, before) > 1e-3


@pytest.mark.parametrize("taps", [None, 9])
def test_forward_mode_has_the_right_tangents(family, taps, tmp_path):
    model = auto(family).from_pretrained(saved(family, tmp_path, taps)).eval().requires_grad_(False)
    e = model.get_input_embeddings()(sample(batch=1))
    t = torch.randn_like(e)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(inputs_embeds=forward_ad.make_dual(e, t)).logits).tangent
    ends = [model(inputs_embeds=e + side * 1e-3 * t).logits.double() for side in (1, -1)]
    assert found is not None and relative_l2(found, (ends[0] - ends[1]) / 2e-3) < 2e-2


def test_transforms_of_torch_func(family, tmp_path):
    model = auto(family).from_pretrained(saved(family, tmp_path, 9)).eval().requires_grad_(False)
    e = model.get_input_embeddings()(sample(length=6, batch=3))

    def run(one):
        return model(inputs_embeds=one[None]).logits[0, :, :12]

    expected = torch.stack([run(one) for one in e])
    assert relative_l2(torch.func.vmap(run)(e), expected) < 1e-4
    t = torch.randn_like(e[0])
    _, tangent = torch.func.jvp(run, (e[0],), (t,))
    jacobian = torch.func.jacrev(run)(e[0])
    assert relative_l2(tangent, torch.einsum("abij,ij->ab", jacobian, t)) < 1e-3


def test_tracing_is_refused_in_words():
    with pytest.raises(RuntimeError, match=r"use torch\.compile or torch\.export"):
        torch.jit.trace(LongConv(torch.randn(2, 5)), torch.randn(1, 2, 9))


@torch.no_grad()
def test_a_model_in_double_precision_computes_in_it(tmp_path):
    model, u = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, 9)), sample()
    logits(model, u)
    assert relative_l2(logits(model.double(), u), fresh(model, u)) < 1e-12


def test_embeddings_of_any_layout(family, tmp_path):
    model = auto(family).from_pretrained(saved(family, tmp_path, 9)).eval().requires_grad_(False)
    e = model.get_input_embeddings()(sample(length=20, batch=60))
    turned = e.transpose(0, 1).contiguous().transpose(0, 1)
    assert not turned.is_contiguous()
    assert relative_l2(model(inputs_embeds=turned).logits, model(inputs_embeds=e).logits) < 1e-5


def test_the_convolution_itself_with_a_tangent():
    u, k, t = torch.randn(1, 3, 40), torch.randn(3, 20), torch.randn(1, 3, 40)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(LongConv(k)(forward_ad.make_dual(u, t))).tangent
    assert relative_l2(found, fftconv_ref(t, k)) < 1e-5


# --- transformers --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("evaluated", [True, False])
def test_weights_that_come_after_the_model_bring_its_plan(family, evaluated, tmp_path):
    model, u = auto(family).from_pretrained(saved(family, tmp_path, 3)), sample()
    expected = logits(model, u)
    later = auto(family).from_config(model.config)
    if evaluated:
        with torch.device("meta"):
            later = auto(family).from_config(model.config)
        later.eval()
    for module in later.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    later.load_state_dict(model.state_dict(), assign=evaluated)
    assert relative_l2(later.eval()(u).logits if evaluated else later(u).logits, expected) < 1e-5


def test_a_plan_that_is_left_out_is_said(tmp_path, caplog):
    folder = saved("hyenadna", tmp_path, 3)
    logging.getLogger("transformers").addHandler(caplog.handler)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=None)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "leaves the plan out" in caplog.text


def test_other_labels_than_the_files(tmp_path):
    import layouts

    folder = layouts.write(tmp_path / "source", "hf classifier")
    assert ForClasses.from_pretrained(folder).num_labels == layouts.LABELS
    asked = layouts.LABELS + 3
    with pytest.raises((RuntimeError, ValueError)):
        ForClasses.from_pretrained(folder, num_labels=asked)
    fresh_head = ForClasses.from_pretrained(folder, num_labels=asked, ignore_mismatched_sizes=True)
    assert fresh_head(sample()).logits.shape == (2, asked)


@pytest.mark.parametrize("family", CAUSAL)
def test_label_smoothing_looks_at_the_next_token(family, tmp_path):
    pytest.importorskip("accelerate")
    model, u = auto(family).from_pretrained(saved(family, tmp_path, None)).eval(), sample()
    found = trainer(model, tmp_path / "run", label_smoothing_factor=0.1).compute_loss(
        model, {"input_ids": u, "labels": u.clone()}
    )
    log_p = model(u).logits.detach()[:, :-1].log_softmax(-1)
    hit = -log_p.gather(-1, u[:, 1:, None]).mean()
    assert float(found.detach()) == pytest.approx(float(0.9 * hit - 0.1 * log_p.mean()), rel=1e-5)


@torch.no_grad()
def test_generate_says_that_padding_is_data_and_writes_no_padding(tmp_path, caplog):
    model, u = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, None)).eval(), sample()
    mask = torch.ones_like(u)
    mask[0, :5] = 0
    logging.getLogger("transformers").addHandler(caplog.handler)
    torch.manual_seed(0)
    grown = model.generate(u, attention_mask=mask, max_new_tokens=30, do_sample=True, temperature=50.0)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "padding is data" in caplog.text and int(grown.max()) < 12
    with pytest.raises(ValueError, match="stateful"):
        model.generate(u[:1], max_new_tokens=3, prompt_lookup_num_tokens=2)


@torch.no_grad()
def test_a_classifier_reads_up_to_its_padding(tmp_path):
    import layouts

    model = ForClasses.from_pretrained(layouts.write(tmp_path / "source", "hf classifier"))
    u = sample(length=12, batch=1)
    padded = torch.cat([u, torch.zeros(1, 6, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones_like(u), torch.zeros(1, 6, dtype=torch.long)], dim=1)
    assert relative_l2(model(padded, attention_mask=mask).logits, model(u).logits) < 1e-5


def test_configs_say_none_of_tokens_that_there_are_not(family, tmp_path):
    config = auto(family).from_pretrained(saved(family, tmp_path, None)).config
    assert all(hasattr(config, f"{token}_token_id") for token in ("bos", "eos", "pad"))


@torch.no_grad()
def test_dynamic_quantisation(tmp_path):
    model, u = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, None)).eval(), sample()
    before = logits(model, u)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert relative_l2(smaller(u).logits, before) < 0.5
