"""Where the time goes: every part is seen once, on either way through a model, and the parts add up."""

import time

import pytest
import torch
from layouts import tiny_model
from torch import nn

from sparsify import swap
from sparsify.converters.models import hyena
from sparsify.cpu import native
from sparsify.evals.speed.breakdown import (
    CONVOLUTIONS,
    EMBEDDING,
    FILTERS,
    LINEAR,
    NORMS,
    REST,
    SHORT,
    Stopwatch,
    breakdown,
    part_of,
)
from sparsify.plan import Plan


class Model(nn.Module):
    def __init__(self, watch: Stopwatch):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.conv = watch.wrap(self.slow)

    def slow(self, u):
        time.sleep(0.02)
        return self.linear(u)  # inside a convolution it is one

    def forward(self, u):
        time.sleep(0.01)  # what nothing sees
        return self.conv(self.norm(self.linear(u)))


def test_parts_add_up():
    watch = Stopwatch()
    model = Model(watch)
    parts = breakdown(model, {"run": lambda: model(torch.zeros(2, 8))}, watch, rounds=3)["run"]
    seconds = {part.name: part.seconds for part in parts}
    assert seconds.keys() == {CONVOLUTIONS, REST, LINEAR, NORMS}
    assert seconds[CONVOLUTIONS] >= 0.02 and seconds[REST] >= 0.01  # sleep never returns early
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [part.seconds for part in parts] == sorted(seconds.values(), reverse=True)


def test_of_things_inside_each_other_the_outermost_counts():
    watch = Stopwatch()
    inner = watch.wrap(lambda: time.sleep(0.01), "inner")
    watch.wrap(inner, "outer")()
    assert watch.spent.keys() == {"outer"}
    inner()
    assert watch.spent.keys() == {"outer", "inner"}


def test_a_failure_leaves_the_stopwatch_sound():
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError):
        watch.wrap(lambda: 1 / 0, "broken")()
    watch.wrap(lambda: None, "sound")()
    assert watch.spent.keys() == {"broken", "sound"}


def test_gate_and_skip_pass_through():
    seen = Stopwatch().wrap(lambda u, gate=None, skip=None: (u, gate, skip))
    assert seen(1, gate=2, skip=3) == (1, 2, 3)


def test_hooks_and_wrappers_are_gone_afterwards():
    watch, kernel = Stopwatch(), native.short_gate
    model = Model(watch)
    breakdown(model, {"run": lambda: model(torch.zeros(2, 8))}, watch, rounds=1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert native.short_gate is kernel
    spent = dict(watch.spent)
    torch.nn.functional.gelu(torch.zeros(2))
    assert watch.spent == spent


@pytest.mark.parametrize("kernels", ["1", "0"])
def test_both_ways_through_a_model_show_the_same_parts(monkeypatch, kernels):
    """As published, where filters are made anew, and by tiles, which no hook on a layer would see."""
    monkeypatch.setenv("SPARSIFY_NATIVE", kernels)
    model, sites = tiny_model()
    watch, ids = Stopwatch(), torch.randint(7, 11, (5, 66))  # enough rows for prepared linear layers
    filters = swap.Filters(sites)
    convs = {name: watch.wrap(conv) for name, conv in swap.operators(filters, Plan.dense(filters)).items()}
    ways = {"published": dict.fromkeys(filters), "prepared": convs}
    runs = {name: swap.variant(model, sites, way) for name, way in ways.items()}
    tiled, run_ = [], hyena.Block.run_
    monkeypatch.setattr(hyena.Block, "run_", lambda self, *args: tiled.append(self) or run_(self, *args))
    found = breakdown(model, {name: lambda run=run: run(ids) for name, run in runs.items()}, watch, sites, rounds=1)
    assert len(tiled) == 2 * len(sites)  # a round that warms up, and one that counts: the way that people get
    names = {way: {part.name for part in parts} for way, parts in found.items()}
    both = {LINEAR, CONVOLUTIONS, SHORT, NORMS, EMBEDDING, REST}
    assert names == {"published": both | {FILTERS}, "prepared": both}
    for parts in found.values():
        assert all(part.seconds > 0 for part in parts)


def test_products_of_spectra_are_convolution():
    real, spectrum = torch.zeros(2), torch.zeros(2, dtype=torch.complex64)
    assert part_of("mul", (spectrum, spectrum)) == CONVOLUTIONS
    assert part_of("mul", (real, real)) == SHORT and part_of("add", (real, real)) is None
