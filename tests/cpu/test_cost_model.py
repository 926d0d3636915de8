"""What a convolution costs: laws of the reckoning, and which constants count."""

import json
import math
import platform
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from sparsify.cpu import backend as cpu
from sparsify.cpu import cost_model, native
from sparsify.cpu.cost_model import DEFAULT, DIRECT_VECTORS, Costs
from sparsify.filters.monarch import BlockMask
from sparsify.plan import FilterPlan

compiled = pytest.mark.skipif(
    not native.available(), reason="needs the compiled kernels: python -m sparsify.cpu.native.build"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A folder of our own for stored constants, read anew in every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost_model.costs.cache_clear()
    yield tmp_path
    cost_model.costs.cache_clear()


# --- the reckoning -------------------------------------------------------------------------------------------------


def test_transforms_lie_between_the_measured_sizes():
    for bits, ns in DEFAULT.point.items():
        assert DEFAULT.transform(1 << bits) == pytest.approx(ns * (1 << bits))
    two = replace(DEFAULT, point={10: 1.0, 12: 3.0})
    assert two.transform(1 << 11) == pytest.approx((1 << 11) * 2.0)
    assert (
        two.transform(1 << 8) == (1 << 8) * 1.0 and two.transform(1 << 20) == (1 << 20) * 3.0
    )  # no further than known


STEP = DIRECT_VECTORS * native.lanes() if native.available() else 1


@compiled
def test_a_short_signal_costs_a_whole_step_tap_by_tap():
    """A split filter on 70 samples once went tap by tap, at nearly twice the time of a transform."""
    assert DEFAULT.direct(1, 9) == DEFAULT.direct(STEP, 9) < DEFAULT.direct(STEP + 1, 9)


@compiled
def test_more_costs_more():
    sizes = sorted({round(1.07**i) for i in range(1, 220)})
    for one, two in pairwise(sizes):
        assert DEFAULT.transform(one) < DEFAULT.transform(two)
        assert DEFAULT.direct(one, 5) <= DEFAULT.direct(two, 5) and DEFAULT.direct(99, one) < DEFAULT.direct(99, two)
        assert DEFAULT.direct(one, 5) < DEFAULT.direct(one + STEP, 5)
        assert DEFAULT.decimated(one, 512) < DEFAULT.decimated(two, 512)
        assert DEFAULT.comb(one, 512, 2) < DEFAULT.comb(two, 512, 2) < DEFAULT.comb(two, 512, 3)
        assert DEFAULT.blocks(one, 9, 512) < DEFAULT.blocks(two, 9, 512)


@pytest.mark.parametrize(
    "wrong",
    [{"point": {}}, {"point": {10: 0.0}}, {"tap": -1.0}, {"tap": math.nan}, {"window": math.inf}],
)
def test_costs_are_checked(wrong):
    with pytest.raises(ValueError, match="costs are nanoseconds"):
        replace(DEFAULT, **wrong)


# --- which constants count -----------------------------------------------------------------------------------------

DEAR = replace(DEFAULT, tap=7.0)


def test_the_path_is_that_of_the_cache_home(own_cache, monkeypatch):
    assert cost_model.stored() == own_cache / "sparsify" / "costs.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cost_model.stored()) == "/home/somebody/.cache/sparsify/costs.json"


def test_defaults_where_nothing_is_stored():
    assert cost_model.costs() == DEFAULT


@compiled
def test_what_is_kept_counts_at_once(own_cache):
    assert cost_model.costs() == DEFAULT
    path = cost_model.keep(DEAR)
    assert path == cost_model.stored() and cost_model.costs() == DEAR
    assert [p.name for p in path.parent.iterdir()] == ["costs.json"]


@compiled
@pytest.mark.parametrize("other", [{"processor": "Another CPU"}, {"lanes": 1}])
def test_constants_of_another_machine_are_ignored(other):
    path = cost_model.keep(DEAR)
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    cost_model.costs.cache_clear()
    assert cost_model.costs() == DEFAULT


@compiled
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: "",
        lambda data: "[1, 2]",
        lambda data: "\0",
        lambda data: json.dumps(data | {"costs": None}),
        lambda data: json.dumps(data | {"costs": data["costs"] | {"point": {}}}),
        lambda data: json.dumps(data | {"costs": data["costs"] | {"point": {"ten": 1.0}}}),
        lambda data: json.dumps(data | {"costs": data["costs"] | {"tap": "dear"}}),
        lambda data: json.dumps(data | {"costs": data["costs"] | {"tap": -1}}),
        lambda data: json.dumps({**data, "costs": {k: v for k, v in data["costs"].items() if k != "tap"}}),
    ],
)
def test_a_damaged_file_is_ignored(damage):
    path = cost_model.keep(DEAR)
    path.write_text(damage(json.loads(path.read_text())))
    cost_model.costs.cache_clear()
    assert cost_model.costs() == DEFAULT


def test_processor_name(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    assert cost_model.processor(path) == "Some CPU: 3 GHz"
    assert cost_model.processor(tmp_path / "missing") == (platform.processor() or platform.machine())


# --- what they decide, and how they are measured -------------------------------------------------------------------

FREE, DEARLY = 1e-6, 1e6


@compiled
@pytest.mark.parametrize(
    ("costs", "kind"),
    [
        (Costs(dict.fromkeys(DEFAULT.point, FREE), DEARLY, DEARLY, DEARLY, DEARLY), cpu.WHOLE),
        (replace(DEFAULT, tap=FREE), cpu.DIRECT),
        (replace(DEFAULT, tap=DEARLY, window=DEARLY, fold=DEARLY), cpu.HEAD),
        (replace(DEFAULT, tap=DEARLY, sample=DEARLY, window=FREE), cpu.DECIMATED),
        (replace(DEFAULT, tap=DEARLY, sample=FREE, window=DEARLY, fold=FREE), cpu.COMB),
    ],
)
def test_the_way_follows_the_constants(monkeypatch, costs, kind):
    """One filter, which all ways can compute; each is taken where it costs least."""
    monkeypatch.setattr(cpu, "costs", lambda: costs)
    seqlen = n = 1 << 15
    mask = BlockMask((16, n // 16), (1, 1), (0,))  # a single bin: a comb, and a narrow band as well
    k = FilterPlan("frequency-sparse", mask=mask).apply(torch.randn(2, seqlen))
    if kind in (cpu.DIRECT, cpu.HEAD):  # few taps, of the filter just as well as of its plan
        k = FilterPlan("partial", 40).apply(torch.randn(2, seqlen))
    assert cpu.prepare(k, seqlen).layout[0] == kind


@compiled
def test_calibration_measures_every_constant():
    threads, steps = torch.get_num_threads(), []
    found = cost_model.calibrate(steps.append)
    assert found.point.keys() == DEFAULT.point.keys() and len(steps) > len(DEFAULT.point)
    assert torch.get_num_threads() == threads
    for name, ns in asdict(found).items():
        assert name == "point" or 0 <= ns < 1000 * getattr(DEFAULT, name)
