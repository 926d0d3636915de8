"""Linear layers prepared for a pass: the same numbers, never stale, and only ways that are right."""

import math
import time

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, relative_l2
from torch import nn

from sparsify.cpu import linear
from sparsify.cpu.linear import (
    BARS,
    PAYS_AT,
    WAYS,
    BlockDiagonal,
    Linear,
    by_speed,
    fastest,
    packed,
    plain,
    use_precision,
)

ROWS = 2 * PAYS_AT
PRECISIONS = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def measured_anew():
    """What was found in one test holds for that test only."""
    for cached in (fastest, by_speed):
        cached.cache_clear()
    yield
    for cached in (fastest, by_speed):
        cached.cache_clear()


def layer(inputs=24, outputs=40, bias=True):
    return Linear(inputs, outputs, bias=bias).requires_grad_(False)


def truth(layer, x, gelu=False):
    bias = None if layer.bias is None else layer.bias.double()
    y = F.linear(x.double(), layer.weight.double(), bias)
    return F.gelu(y, approximate="tanh") if gelu else y


# --- ways ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_computes_the_layer(way, bias, gelu, precision):
    own = layer(bias=bias)
    call = way(own.weight.to(precision), own.bias, gelu)
    for shape in [(1,), (3, 7), (2, 300), (1, 1, 777)]:
        x = torch.randn(*shape, own.in_features)
        y, y_ref = call(x), truth(own, x, gelu)
        assert y.dtype == precision and y.shape == y_ref.shape
        assert_close(y, y_ref, BARS[precision])
        with pytest.raises(AssertionError):
            assert_close(torch.zeros_like(y), y_ref, BARS[precision])
        assert relative_l2(y, truth(own, x, not gelu)) > 0.1  # GELU is seen


def patient(weight, bias, gelu):
    call = plain(weight, bias, gelu)
    return lambda x: (time.sleep(0.01), call(x))[1]


def test_the_quickest_right_way_is_taken(monkeypatch):
    def wrong(weight, bias, gelu):
        return lambda x: x.new_zeros(len(x), len(weight))

    def undefined(weight, bias, gelu):
        return lambda x: x.new_full((len(x), len(weight)), torch.nan)

    def absent(weight, bias, gelu):
        return torch.ops.mkldnn._an_operator_of_another_torch(weight)

    def refused(weight, bias, gelu):
        raise RuntimeError("could not create a primitive")

    def found(*ways):
        monkeypatch.setattr(linear, "WAYS", ways)
        fastest.cache_clear(), by_speed.cache_clear()
        return fastest(24, 40, True, False, torch.float32, 1)

    assert found(wrong, undefined, absent, refused, patient, plain) is plain
    assert found(patient, plain) is plain and found(plain, patient) is plain
    assert found(wrong, patient) is patient
    assert found(absent) is plain


def test_a_way_that_is_wrong_for_one_layer_serves_others(monkeypatch):
    def fussy(weight, bias, gelu):
        return plain(weight if len(weight) != 40 else 2 * weight, bias, gelu)

    monkeypatch.setattr(linear, "WAYS", (fussy, patient))
    assert fastest(24, 40, True, False, torch.float32, 1) is patient
    assert fastest(24, 41, True, False, torch.float32, 1) is fussy


def test_ways_are_timed_once(monkeypatch):
    timed = []
    monkeypatch.setattr(linear, "seconds", lambda call, x: timed.append(x.shape) or 1.0)
    for outputs in (40, 41, 40):
        Linear(24, outputs).requires_grad_(False).prepare(ROWS)
    assert timed == [(linear.SAMPLE_ROWS, linear.TYPICAL[0])] * linear.ROUNDS * len(WAYS)


def test_measuring_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    layer_ = layer()
    torch.set_rng_state(before)
    layer_.prepare(ROWS)
    assert torch.equal(torch.get_rng_state(), before)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gelu", [False, True])
def test_a_prepared_layer_is_the_layer(way, gelu, monkeypatch):
    monkeypatch.setattr(linear, "WAYS", (way,))
    own, x = layer(), torch.randn(2, ROWS // 2, 24)
    assert_close(own.prepare(ROWS, gelu)(x), truth(own, x, gelu), BARS[torch.float32])


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_changed_weights_are_seen_by_the_next_pass(way, precision, monkeypatch):
    """Also where no version counter tells of the change."""
    monkeypatch.setattr(linear, "WAYS", (way,))
    own, x = layer(), torch.randn(ROWS, 24)
    use_precision(own, precision)
    other = {name: torch.randn_like(tensor) for name, tensor in own.state_dict().items()}
    changes = [
        lambda: own.weight.mul_(-2),
        lambda: own.weight.data.add_(3),
        lambda: own.bias.data.copy_(torch.randn(40)),
        lambda: own.load_state_dict(other),
        lambda: own.load_state_dict({name: -tensor for name, tensor in other.items()}, assign=True),
        lambda: own.double().float(),
    ]
    for change in changes:
        own.prepare(ROWS)(x)
        change()
        assert_close(own.prepare(ROWS)(x).float(), truth(own, x), BARS[own.precision])


def test_a_short_pass_is_the_plain_layer():
    own = layer()
    use_precision(own, "bfloat16")
    x = torch.randn(PAYS_AT - 1, 24)
    assert torch.equal(own.prepare(len(x))(x), own(x))
    assert torch.equal(own.prepare(len(x), gelu=True)(x), F.gelu(own(x), approximate="tanh"))


def test_calls_without_end_are_prepared_however_short():
    """And stay as they began, which a stream relies on."""
    own = layer()
    use_precision(own, "bfloat16")
    x = torch.randn(1, 24)
    call, y_ref = own.prepare(math.inf), truth(own, x)
    own.weight.zero_()
    assert call(x).dtype == torch.bfloat16
    assert_close(call(x), y_ref, BARS[torch.bfloat16])


@pytest.mark.parametrize("change", [lambda own: own.double(), lambda own: own.bfloat16()])
def test_other_dtypes_take_the_plain_layer(change):
    own = change(layer())
    x = torch.randn(ROWS, 24, dtype=own.weight.dtype)
    assert torch.equal(own.prepare(ROWS)(x), own(x))


def test_onednn_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    own, x = layer(), torch.randn(ROWS, 24)
    assert torch.equal(own.prepare(ROWS)(x), own(x))
    assert fastest.cache_info().currsize == 0


def test_it_says_what_it_takes():
    own = layer()
    use_precision(own, "bfloat16")
    assert [own.takes(rows) for rows in (1, ROWS, math.inf)] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert own.half().takes(ROWS) == torch.float16


@pytest.mark.parametrize("rows", [1, ROWS])
def test_hooks_see_every_call(rows):
    own, seen = layer(), []
    own.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    call = own.prepare(rows)
    call(torch.randn(rows, 24)), call(torch.randn(3, 24))
    assert seen == [(rows, 40), (3, 40)]


def test_to_others_it_is_a_linear_layer():
    torch.manual_seed(1)
    theirs = nn.Linear(24, 40)
    torch.manual_seed(1)
    ours, x = Linear(24, 40), torch.randn(5, 24)
    assert isinstance(ours, nn.Linear) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours(x), theirs(x))
    ours(x).sum().backward()
    assert ours.weight.grad is not None


# --- block-diagonal layers -------------------------------------------------------------------------------------------


def blocks(bias=True):
    own = BlockDiagonal(4, 4 * 6, 4 * 10, bias)
    own.reset_parameters()
    if bias:
        nn.init.normal_(own.bias)
    return own.requires_grad_(False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_prepared_block_diagonal_layer_is_the_layer(precision, bias, way, monkeypatch):
    monkeypatch.setattr(linear, "WAYS", (way,))
    own, x, seen = blocks(bias), torch.randn(2, ROWS // 2, 24), []
    use_precision(own, str(precision).removeprefix("torch."))
    whole = torch.block_diag(*own.weight.double())
    y_ref = F.linear(x.double(), whole, own.bias.double() if bias else None)
    own.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    assert_close(own(x), y_ref, BARS[torch.float32])
    assert_close(own.prepare(ROWS)(x), y_ref, BARS[precision])
    assert torch.equal(own.prepare(1)(x), own(x)) and set(seen) == {(2, ROWS // 2, 40)}
    assert relative_l2(own(x.flip(-1)), y_ref) > 0.5  # which piece goes where is seen


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_is_what_was_asked_for(way, monkeypatch):
    """The error is that of rounded weights and inputs, and of the result: neither less nor much more."""
    monkeypatch.setattr(linear, "WAYS", (way,))
    model, x = nn.Sequential(layer(256, 64)), torch.randn(ROWS, 256)
    use_precision(model, "bfloat16")
    y = model[0].prepare(ROWS)(x)
    assert y.dtype == torch.bfloat16
    assert 1e-3 < relative_l2(y, truth(model[0], x)) < 4e-3
    use_precision(model, "float32")
    assert relative_l2(model[0].prepare(ROWS)(x), truth(model[0], x)) < 1e-6


def test_another_precision_is_refused():
    with pytest.raises(ValueError, match="got linears in 'float16'; choose one of float32, bfloat16"):
        use_precision(layer(), "float16")


def test_layers_are_told_by_name():
    """Whatever wraps the model; layers that are not named are in float32, and strangers are refused."""
    inner = nn.ModuleDict({"backbone": nn.ModuleDict({"a": layer(), "b": layer()})})
    model = nn.ModuleDict({"base": nn.ModuleDict({"hyena": inner})})
    assert list(linear.layers_of(model)) == ["backbone.a", "backbone.b"]
    use_precision(model, "bfloat16")
    restore = linear.precisions_of(model)
    use_precision(model, {"backbone.b": "bfloat16"})
    assert (inner["backbone"]["a"].precision, inner["backbone"]["b"].precision) == (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match=r"names the linear layer backbone.c, which the model does not have"):
        use_precision(model, {"backbone.c": "bfloat16"})
    use_precision(model, {"backbone.c": "bfloat16"}, strict=False)
    assert inner["backbone"]["b"].precision == torch.float32
    restore()
    assert inner["backbone"]["a"].precision == torch.bfloat16


def test_onednn_is_there():
    """This torch has the private operators that `packed` calls; a release without them should be noticed here."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    own, x = layer(), torch.randn(ROWS, 24)
    assert_close(packed(own.weight, own.bias, False)(x), truth(own, x), BARS[torch.float32])
