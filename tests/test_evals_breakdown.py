"""Where the time goes: every part is seen once, and the parts add up."""

import time

import pytest
import torch
from torch import nn

from sparsify.evals.breakdown import CONVOLUTIONS, REST, Stopwatch, breakdown


class Model(nn.Module):
    def __init__(self, watch: Stopwatch):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.conv = watch.wrap(self.slow)

    def slow(self, u):
        time.sleep(0.02)
        return u

    def forward(self, u):
        time.sleep(0.01)  # what no hook sees
        return self.conv(self.norm(self.linear(u)))


def test_parts_add_up():
    watch = Stopwatch()
    model = Model(watch)
    parts = breakdown(model, lambda: model(torch.zeros(2, 8)), watch, rounds=3)
    seconds = {part.name: part.seconds for part in parts}
    assert seconds.keys() == {CONVOLUTIONS, REST, "linear layers", "norms"}
    assert seconds[CONVOLUTIONS] >= 0.02 and seconds[REST] >= 0.01  # sleep never returns early
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [part.seconds for part in parts] == sorted(seconds.values(), reverse=True)


def test_hooks_are_gone_afterwards():
    watch = Stopwatch()
    model = Model(watch)
    breakdown(model, lambda: model(torch.zeros(2, 8)), watch, rounds=1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
