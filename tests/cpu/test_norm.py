"""Layer norm with a sum before it and another dtype after."""

import pytest
import torch
from helpers import assert_close
from torch import nn

from sparsify.cpu import native
from sparsify.cpu.norm import PAYS_AT, LayerNorm


def norm(width=24):
    torch.manual_seed(0)
    own = LayerNorm(width)
    nn.init.normal_(own.weight), nn.init.normal_(own.bias)
    return own


@torch.no_grad()
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("rows", [1, PAYS_AT // 24])
def test_it_is_the_norm_of_the_sum(rows, add, dtype, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(native, "available", lambda: False)
    own, x, plus = norm(), torch.randn(2, rows, 24), torch.randn(2, rows, 24)
    before = x.clone()
    y = own(x, plus=plus if add else None, dtype=dtype)
    total = before + plus if add else before
    y_ref = nn.functional.layer_norm(total.double(), (24,), own.weight.double(), own.bias.double(), own.eps)
    assert torch.equal(x, total) and y.dtype == (dtype or torch.float32)
    assert_close(y, y_ref, 3e-3 if dtype == torch.bfloat16 else 1e-6)


def test_to_others_it_is_a_layer_norm():
    own, x = norm(), torch.randn(5, 24)
    theirs = nn.LayerNorm(24)
    theirs.load_state_dict(own.state_dict())
    assert isinstance(own, nn.LayerNorm) and torch.equal(own(x), theirs(x))
    own(x).sum().backward()
    assert own.weight.grad is not None


def test_other_dtypes_need_no_kernel():
    own, x = norm().bfloat16().requires_grad_(False), torch.randn(5, 24).bfloat16()
    assert own(x, plus=x.clone(), dtype=torch.float32).dtype == torch.float32


@torch.no_grad()
def test_hooks_see_every_call():
    own, seen = norm(), []
    own.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    own(torch.randn(3, 24)), own(torch.randn(2, 24), dtype=torch.bfloat16)
    assert seen == [(3, 24), (2, 24)]
