"""Whatever requires a gradient gets the right one: of the convolution by itself, and of models, dense and planned."""

import copy

import layouts
import layouts_lm
import layouts_m2
import pytest
import torch
from helpers import assert_close, relative_l2

from sparsify import LongConv, swap
from sparsify.converters import load
from sparsify.cpu import backend as cpu
from sparsify.cpu import native
from sparsify.fftconv import fftconv_ref
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan, policies

N = 64
PLANS = {
    "dense": FilterPlan("dense"),
    "partial": FilterPlan("partial", 9),
    "low-pass": FilterPlan("frequency-sparse", mask=BlockMask.low_pass(N, 1 / 4)),
    "comb": FilterPlan("frequency-sparse", mask=BlockMask.comb(N, 1 / 4)),
    "split": FilterPlan("split", 8, BlockMask.low_pass(N, 1 / 4)),
}
AHEAD = {"causal": 0, "two-sided": 24}


def conv_of(plan, lookahead, dtype):
    k = torch.randn(3, 48, dtype=dtype) * torch.exp(-torch.arange(48) / 10)
    return LongConv(plan.apply(Filter(k, lookahead)))


def signals(dtype, seqlen=40):
    u, gate, pregate = (torch.randn(2, 3, seqlen, dtype=dtype, requires_grad=True) for _ in range(3))
    return u, gate, torch.randn(3, dtype=dtype, requires_grad=True), pregate


@pytest.mark.parametrize("side", AHEAD)
@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("given", ["u", "u gate", "u skip", "u pregate", "u gate skip pregate"])
def test_gradcheck_in_float64(kind, side, given):
    conv = conv_of(PLANS[kind], AHEAD[side], torch.float64)
    names = ("u", "gate", "skip", "pregate")
    inputs = [t if name in given.split() else None for name, t in zip(names, signals(torch.float64, 12), strict=True)]
    assert torch.autograd.gradcheck(conv, inputs)


@pytest.mark.skipif(not native.available(), reason="the kernels are not compiled")
@pytest.mark.parametrize(("lookahead", "taps"), [(0, 4096), (0, 4098), (4096, 8192), (4095, 8191)])
@pytest.mark.parametrize("head", [None, 16])
def test_gradients_at_a_lower_rate(head, lookahead, taps):
    """The lags that a mask holds for end at another one where a filter is reversed."""
    plan = FilterPlan("split" if head else "frequency-sparse", head, BlockMask.low_pass(4096, 1 / 32))
    conv = LongConv(plan.apply(Filter(torch.randn(3, taps), lookahead)))
    u, dy = torch.randn(2, 3, 4096, requires_grad=True), torch.randn(2, 3, 4096)
    for made in (conv.prepare(u), conv.adjoint().prepare(u)):
        assert isinstance(cpu.parts_of(made.tables, made.layout)[-1], native.Decimated)
    (ours,) = torch.autograd.grad(conv(u), u, dy)
    exact = u.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(fftconv_ref(exact, conv.filter), exact, dy.double())
    assert relative_l2(ours, expected) < 2e-6


def test_gradients_of_gradients():
    conv = conv_of(PLANS["split"], 0, torch.float64)
    assert torch.autograd.gradgradcheck(conv, signals(torch.float64, 10))


def test_through_functorch():
    conv = conv_of(PLANS["split"], 0, torch.float64)
    u, gate, skip, pregate = signals(torch.float64)
    ours = torch.func.grad(lambda u: conv(u, gate, skip, pregate).square().sum())(u)
    (expected,) = torch.autograd.grad(conv(u, gate, skip, pregate).square().sum(), u)
    assert_close(ours, expected, 1e-12)


@pytest.mark.parametrize("side", AHEAD)
@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("seqlen", [1, 7, 40, 3000])
def test_float32_against_autograd_in_float64(kind, side, seqlen):
    """By the kernels where they are; a filter that is not reversed in time fails."""
    conv, given = conv_of(PLANS[kind], AHEAD[side], torch.float32), signals(torch.float32, seqlen)
    dy = torch.randn(2, 3, seqlen)
    ours = torch.autograd.grad(conv(*given), given, dy)
    u, gate, skip, pregate = (t.detach().double().requires_grad_() for t in given)
    g = pregate * u
    y_ref = gate * (fftconv_ref(g, conv.filter) + skip[:, None] * g)
    for name, found, expected in zip(
        ("u", "gate", "skip", "pregate"), ours, torch.autograd.grad(y_ref, (u, gate, skip, pregate), dy.double()),
        strict=True,
    ):  # fmt: skip
        assert found.dtype == torch.float32
        assert relative_l2(found, expected) < 2e-6, name
    if seqlen > 7:
        conv._adjoint = [LongConv(conv.filter)]
        wrong, *_ = torch.autograd.grad(conv(*given), given, dy)
        assert relative_l2(wrong, torch.autograd.grad(y_ref_again(conv, given), given, dy)[0].double()) > 1e-2


def y_ref_again(conv, given):
    u, gate, skip, pregate = given
    g = pregate * u
    return (gate * (fftconv_ref(g, conv.filter) + skip[:, None] * g)).float()


def test_nothing_but_the_inputs_is_saved():
    conv, given = conv_of(PLANS["split"], 0, torch.float32), signals(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), lambda t: t):
        conv(*given)
    assert set(saved) == {t.data_ptr() for t in given} and len(saved) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    conv = conv_of(PLANS["split"], 0, torch.float32)
    given = [t.detach().to(dtype).requires_grad_() for t in signals(torch.float32)]
    exact = [t.detach().double().requires_grad_() for t in given]
    ours = torch.autograd.grad(conv(*given).sum(), given)
    expected = torch.autograd.grad(conv_of_double(conv)(*exact).sum(), exact)
    for found, true in zip(ours, expected, strict=True):
        assert found.dtype == dtype and relative_l2(found, true) < 4e-2


def conv_of_double(conv):
    return LongConv(conv.filter.to(torch.float64))


def test_a_filter_that_changes_before_backward_is_refused():
    conv, (u, *_) = conv_of(PLANS["dense"], 0, torch.float32), signals(torch.float32)
    y = conv(u)
    conv.set_filter(2 * conv.filter.k)
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        y.sum().backward()


# --- models ----------------------------------------------------------------------------------------------------------

FAMILIES = {
    "hyenadna": lambda folder: layouts.write(folder, "hf"),
    "hyena_lm": layouts_lm.write,
    "m2_bert": lambda folder: layouts_m2.write(folder, "safetensors mlm"),
}
POLICIES = {"dense": None, "taps": policies.taps(9), "split": policies.split(4, 1 / 4)}


def loaded(family, tmp_path, policy):
    p = load(FAMILIES[family](tmp_path / "m"))
    if POLICIES[policy] is not None:
        swap.apply_(p.sites, policies.make_plan(p.sites, p.filters, POLICIES[policy]))
    return p


def embedding_of(model):
    return next(part for part in model.modules() if isinstance(part, torch.nn.Embedding))


def numerical(loss, tensor, direction, step):
    with torch.no_grad():
        at = []
        for sign in (1, -1):
            tensor += sign * step * direction
            at.append(loss().item())
            tensor -= sign * step * direction
    return (at[0] - at[1]) / (2 * step)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_learnt_shift_of_a_frozen_models_embeddings(family, policy, tmp_path):
    """As soft prompts, saliency and adversarial inputs need it: no parameter of the model learns."""
    model = loaded(family, tmp_path, policy).model.double()
    u, weights = torch.randint(7, 11, (2, 24)), torch.randn(24, dtype=torch.float64)
    shift = torch.zeros(embedding_of(model).weight.shape[1], dtype=torch.float64, requires_grad=True)
    embedding_of(model).register_forward_hook(lambda module, inputs, output: output + shift)

    def loss():
        logits = model(u)
        return (logits[..., :5].sum(-1).square() * weights).sum()

    (ours,) = torch.autograd.grad(loss(), shift)
    direction = torch.randn_like(shift)
    expected = numerical(loss, shift, direction, 1e-4)
    assert abs(ours @ direction - expected) < 1e-3 * abs(expected)
    assert abs(expected) > 0


@pytest.mark.filterwarnings("ignore:the weights behind a planned convolution have changed")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_filters_that_learn_under_a_plan_too(family, policy, tmp_path):
    """Partly frozen: only one weight behind one filter requires a gradient."""
    p = loaded(family, tmp_path, policy)
    model, u = p.model.double(), torch.randint(7, 11, (2, 24))
    name, weight = next((n, w) for n, w in model.named_parameters() if n.endswith("implicit_filter.2.weight"))
    weight.requires_grad_(True)

    def loss():
        return model(u)[..., :5].square().mean()

    (ours,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    expected = numerical(loss, weight, direction, 1e-3)
    assert abs((ours * direction).sum() - expected) < 5e-3 * abs(expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_prepared_model_are_those_of_its_own_code(family, tmp_path):
    p = loaded(family, tmp_path, "dense")
    own = copy.deepcopy(p.model)
    for part in own.modules():
        if hasattr(part, "set_conv"):
            part.set_conv(None)
    u = torch.randint(7, 11, (2, 24))
    for model in (p.model, own):
        model.requires_grad_(True)
        model(u).square().mean().backward()
    expected = dict(own.named_parameters())
    for name, parameter in p.model.named_parameters():
        assert (parameter.grad is None) == (expected[name].grad is None), name
        if parameter.grad is not None and expected[name].grad.norm() > 1e-9:
            assert relative_l2(parameter.grad, expected[name].grad.double()) < 1e-3, name
