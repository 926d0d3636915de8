"""The bars bite: what is wrong fails, whatever its scale, and what is right passes."""

import pytest
import torch
from helpers import RELATIVE_L2, assert_close


@pytest.mark.parametrize("dtype", RELATIVE_L2)
def test_rounding_passes(dtype):
    y = 1e-3 * torch.randn(2, 3, 640, dtype=torch.float64)
    assert_close(y.to(dtype), y, RELATIVE_L2[dtype])


@pytest.mark.parametrize("dtype", RELATIVE_L2)
@pytest.mark.parametrize(
    "wrong",
    [torch.zeros_like, lambda y: -y, lambda y: y.roll(1, -1), lambda y: 1.02 * y, lambda y: y.flip(1)],
    ids=["zeros", "sign", "shifted", "scaled", "channels"],
)
def test_bars_bite(dtype, wrong):
    y = 1e-3 * torch.randn(2, 3, 640, dtype=torch.float64)
    with pytest.raises(AssertionError, match="relative L2 error"):
        assert_close(wrong(y).to(dtype), y, RELATIVE_L2[dtype])


def test_failure_names_the_worst_element():
    y = torch.randn(2, 3, 640)
    for value in (99.0, torch.nan):
        off = y.clone()
        off[1, 2, 345] = value
        with pytest.raises(AssertionError, match=r"worst at \(1, 2, 345\)"):
            assert_close(off, y, 8e-3)


def test_complex_values_count_with_both_parts():
    y = torch.randn(3, 8, dtype=torch.complex64)
    assert_close(y, y.to(torch.complex128), 1e-12)
    with pytest.raises(AssertionError, match="relative L2"):
        assert_close(y.conj(), y, 1e-3)


def test_refuses_what_cannot_be_compared():
    with pytest.raises(AssertionError, match=r"shape \(1, 4\), expected \(3, 4\)"):
        assert_close(torch.ones(1, 4), torch.ones(3, 4), 1e-3)
    with pytest.raises(AssertionError, match="reference is zero"):
        assert_close(torch.zeros(3), torch.zeros(3), 1e-3)


@pytest.mark.parametrize("dtype", [*RELATIVE_L2, torch.complex64, torch.int64])
def test_unwritten_memory_is_poison(dtype):
    like = torch.ones(64, dtype=dtype)
    for unwritten in (torch.empty(64, dtype=dtype), torch.empty_like(like), like.new_empty(64)):
        poison = unwritten.isnan() if unwritten.is_floating_point() or unwritten.is_complex() else unwritten > 2**62
        assert poison.all()


def test_poison_is_invisible_to_tracers():
    compiled = torch.compile(lambda x: torch.empty_like(x).copy_(x) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(4)), torch.full((4,), 2.0))


@pytest.mark.plain_empty
def test_poison_can_be_left_out():
    assert not torch.are_deterministic_algorithms_enabled()
