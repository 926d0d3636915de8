"""Logits follow the weights, however those were changed: in models of `sparsify.load` and of AutoModel alike."""

import copy
import gc
import importlib
import pickle
import weakref

import pytest
import torch
from families import FAMILIES, hyenadna, saved
from helpers import relative_l2
from torch import nn

from sparsify import swap
from sparsify.converters import load, registry
from sparsify.cpu import native
from sparsify.freshness import LOOKED_THROUGH, signature
from sparsify.plan import policies

pytestmark = pytest.mark.filterwarnings("ignore:the weights behind a planned convolution have changed")


WORLDS = ("ours", "transformers")
TAPS = {"dense": None, "taps": 9}


def model_of(world, family, folder):
    return load(folder).model if world == "ours" else FAMILIES[family][1].from_pretrained(folder)


@torch.no_grad()
def logits(model):
    y = model(torch.arange(48).reshape(2, 24) % 4 + 7)
    return getattr(y, "logits", y)


def other(model):
    """The same weights, changed: what training might have made of them."""
    torch.manual_seed(3)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return moved


# --- ways to change weights: (model, other) -> the model that now has the weights of `other` -------------------------


def load_state_dict(model, other):
    model.load_state_dict(other.state_dict())


def load_assigned(model, other):
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


@torch.no_grad()
def in_place(model, other):
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        weight.copy_(new)


def through_data(model, other):
    """As many EMAs do it; torch counts no change then."""
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        weight.data.copy_(new.data)


def data_replaced(model, other):
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        weight.data = new.data.clone()


def optimizer_step(model, other):
    """Plain gradient descent towards the other weights, which it meets in one step."""
    weights, new = list(model.parameters()), [w.detach() for w in other.parameters()]
    for weight, target in zip(weights, new, strict=True):
        weight.grad = weight.detach() - target
    torch.optim.SGD(weights, lr=1.0).step()
    in_place(model, other)  # to the last bit


def copied_and_edited(model, other):
    twin = copy.deepcopy(model)
    in_place(twin, other)
    return twin


def pickled_and_edited(model, other):
    twin = pickle.loads(pickle.dumps(model))
    in_place(twin, other)
    return twin


def parameters_replaced(model, other):
    for name, part in model.named_modules():
        for key in list(part._parameters):
            if part._parameters[key] is not None:
                setattr(part, key, nn.Parameter(other.get_submodule(name)._parameters[key].detach().clone()))


def vector(model, other):
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(other.parameters()), model.parameters())


def moved_through_another_dtype(model, other):
    model.double()
    in_place(model, other)
    model.float()


WAYS = [
    load_state_dict, load_assigned, in_place, through_data, data_replaced, optimizer_step, copied_and_edited,
    pickled_and_edited, parameters_replaced, vector, moved_through_another_dtype,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("world", WORLDS)
def test_same_weights_same_logits(world, family, taps, way, tmp_path):
    out = saved(family, tmp_path, TAPS[taps])
    model = model_of(world, family, out)
    before = logits(model)  # whatever is prepared is prepared now
    target = other(model)
    expected = fresh_logits(world, family, out, target)
    found = logits(way(model, target) or model)
    assert torch.equal(found, expected), relative_l2(found, expected)
    assert relative_l2(found, before) > 1e-2  # it matters
    if way in (copied_and_edited, pickled_and_edited):
        assert torch.equal(logits(model), before)  # the original is left alone


def sites_of(family, model):
    return importlib.import_module(f"sparsify.converters.{registry.FAMILIES[family]}").sites(model)


def fresh_logits(world, family, out, target):
    """Those of a model whose convolutions are prepared when it has these weights, and never before."""
    model, p = model_of(world, family, out), load(out)
    in_place(model, target)
    swap.apply_(model.sites if world == "transformers" else sites_of(family, model), p.plan)
    return logits(model)


@pytest.mark.parametrize("world", WORLDS)
def test_averages_of_weights(world, tmp_path):
    out = saved("hyenadna", tmp_path, 9)
    model = model_of(world, "hyenadna", out)
    logits(model)
    target = other(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(target)  # the first update copies
    assert torch.equal(logits(averaged.module), fresh_logits(world, "hyenadna", out, target))


def test_functional_call(tmp_path):
    model = load(hyenadna(tmp_path / "m")).model
    before, target = logits(model), other(model)
    ids = torch.arange(48).reshape(2, 24) % 4 + 7
    with torch.no_grad():
        found = torch.func.functional_call(model, dict(target.named_parameters()), (ids,))
    assert torch.equal(found, logits(target)) and torch.equal(logits(model), before)


def test_filters_of_what_was_loaded_follow(tmp_path):
    p = load(hyenadna(tmp_path / "m"))
    before = dict(p.filters)
    assert all(p.filters[name] is k for name, k in before.items())
    in_place(p.model, other(p.model))
    assert all(not torch.equal(k.k, before[name].k) for name, k in p.filters.items())


def test_a_plan_on_changed_weights_is_said_once(tmp_path, recwarn):
    p = load(hyenadna(tmp_path / "m"))
    swap.apply_(p.sites, policies.make_plan(p.sites, p.filters, policies.taps(9)))
    logits(p.model)
    with pytest.warns(UserWarning, match="have changed; its filter follows them") as said:
        for _ in range(3):
            in_place(p.model, other(p.model))
            logits(p.model)
    assert len(said) == 1
    dense = load(tmp_path / "m")
    in_place(dense.model, other(dense.model))
    recwarn.clear()
    logits(dense.model)
    assert not recwarn.list


def test_nothing_is_prepared_anew_for_the_same_numbers(tmp_path):
    p = load(hyenadna(tmp_path / "m"))
    logits(p.model)
    conv = next(part.long_conv for part in p.model.modules() if getattr(part, "long_conv", None) is not None)
    tables = conv._prepared
    in_place(p.model, copy.deepcopy(p.model))
    p.model.double().float()
    logits(p.model)
    assert conv._prepared is tables and tables


# --- the signature ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (64, 64), (LOOKED_THROUGH // 4,)])
def test_every_number_counts(compiled, shape, monkeypatch):
    if compiled and not native.available():
        pytest.skip("the kernels are not compiled")
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    tensors = [torch.randn(7), torch.randn(shape), torch.randn(2, 2, dtype=torch.float64)]
    before, flat = signature(tensors), tensors[1].view(-1)
    seen = {before}
    for i in {0, len(flat) // 2, len(flat) - 1}:
        kept = flat[i].clone()
        flat.data[i] += 1e-6
        seen.add(signature(tensors))
        flat.data[i] = kept
        assert signature(tensors) == before
    assert len(seen) == 1 + len({0, len(flat) // 2, len(flat) - 1})
    assert signature(tensors[::-1]) != before or shape == (7,)


def test_large_and_foreign_tensors_are_told_by_place_and_count():
    large = torch.zeros(LOOKED_THROUGH // 4 + 1)
    before = signature([large])
    assert signature([large]) == before and signature([large.clone()]) != before
    large += 1
    assert signature([large]) != before
    strided = torch.zeros(4, 4).t()[1:]
    before = signature([strided])
    strided[0, 0] = 1
    assert signature([strided]) != before
    with torch.inference_mode():
        assert signature([torch.zeros(LOOKED_THROUGH)]) is not None
    assert signature([torch.empty(3, device="meta")]) is None


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_model_goes_with_its_last_reference(world, family, taps, tmp_path):
    """Not when the collector of cycles comes by, which counts objects and not their gigabytes."""
    model = model_of(world, family, saved(family, tmp_path, TAPS[taps]))
    logits(model)
    conv = next(part.long_conv for part in model.modules() if getattr(part, "long_conv", None) is not None)
    gone = weakref.ref(conv), weakref.ref(next(model.parameters()))
    del conv
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone[0]() is None and gone[1]() is None
    finally:
        gc.enable()
