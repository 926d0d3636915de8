"""The benchmark of the GPU kernels, without a GPU: the emulator computes, and a counter is the clock."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import emulation
import pytest
import torch
from click.testing import CliRunner
from helpers import assert_close

from sparsify.cli.main import main
from sparsify.evals.speed import baselines, gpu_convolution, gpu_machine
from sparsify.evals.speed.gpu_convolution import Case, Inputs
from sparsify.fftconv import fftconv_ref
from sparsify.gpu import planner
from sparsify.gpu.devices import CARDS
from sparsify.gpu.tiling import Tiling
from sparsify.plan import Filter
from sparsify.report.schema import GpuCase

CARD = replace(CARDS["sm_90"], l2=1)
PEAK = {"bytes_per_second": 4e12, "flop_per_second": 8e14}


LAUNCH, CALL = 0.025, 0.1  # seconds, by the clock below, of a kernel and of a rival's call


class FakeClock:
    """Seconds that somebody advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-7
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def on(clock):
    """A machine of the emulator."""
    emulator = emulation.Emulator()

    def launch(build, grid, call):
        clock.now += LAUNCH
        emulator(build, grid, call)

    return gpu_machine.Machine(torch.device("cpu"), CARD, "sm_90a", clock, None, launch)


@pytest.fixture(autouse=True)
def own_rivals(monkeypatch, clock):
    """Two that run anywhere."""

    def timed(rival):
        def made(*arguments):
            run = rival(*arguments)

            def call(i):
                clock.now += CALL
                return run(i)

            return call

        return made

    found = {name: timed(baselines.RIVALS[name]) for name in (baselines.TORCH, baselines.OWN)}
    monkeypatch.setattr(baselines, "RIVALS", found)
    return found


@pytest.fixture
def few(monkeypatch):
    """Leaves the named plans only."""
    plans = gpu_convolution.plans

    def choose(*names):
        monkeypatch.setattr(gpu_convolution, "plans", lambda n: {name: plans(n)[name] for name in names})

    return choose


# --- what must be moved and computed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seqlen", "gigaflop"),
    [(256, 4.8), (1 << 10, 38.7), (1 << 12, 129), (1 << 13, 309), (1 << 14, 825), (1 << 15, 2062), (1 << 16, 2886)],
)
def test_operations_are_those_of_the_stages(seqlen, gigaflop):
    assert Case((64, 768, seqlen), "float16").flops() == pytest.approx(gigaflop * 1e9, rel=0.01)


@pytest.mark.parametrize("factors", [(16, 16), (16, 16, 16), (32, 16, 16), (32, 32, 16)])
def test_operations_are_those_that_a_kernel_counts(factors):
    one = Tiling(factors)
    assert Case((1, 1, one.points), "float16").flops() == sum(one.mmas().values()) * planner.MMA_FLOPS
    assert gpu_convolution.radix_work(11) == 16 / 2 + 16 + 8


def test_bytes_are_signals_once_and_the_spectrum_once():
    plain, gated = Case((4, 3, 1000), "float16"), Case((4, 3, 1000), "float16", gated=True)
    assert plain.bytes() == 2 * 4 * 3 * 1000 * 2 + 3 * 1000 * 4
    assert gated.bytes() - plain.bytes() == 2 * 4 * 3 * 1000 * 2
    assert plain.bytes(0.0) == 2 * 4 * 3 * 1000 * 2
    assert plain.bytes(1 / 8) - plain.bytes(0.0) == 3 * 1000 * 4 // 8  # of what a mask keeps
    assert Case((4, 3, 1000), "float32").bytes(0.0) == 2 * plain.bytes(0.0)


def test_cases_hold_every_length_type_and_gate():
    cases = gpu_convolution.cases()
    assert len(cases) == len(set(cases)) == 9 * 3 * 2 and set(gpu_convolution.QUICK) < set(cases)
    assert [case.shape[-1] for case in cases[:9]] == [256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 1 << 20]
    for case in cases:
        assert 2 * math.prod(case.shape) <= 1 << 30  # bytes of 16-bit signals
    plans = gpu_convolution.plans(4096)
    assert plans["comb 1/8"].mask.density == plans["low-pass 1/8"].mask.density == 1 / 8
    assert [plans[name].taps for name in ("partial 1/16", "partial 64", "split 64 + 1/8")] == [256, 64, 64]


def test_inputs_exceed_the_cache_together(on):
    case = Case((2, 3, 256), "float16", gated=True)
    inputs = Inputs.of(case, replace(on, card=replace(CARD, l2=10_000)))
    size = sum(t.numel() * 2 for signals in inputs.sets for t in signals)
    assert size > gpu_convolution.CACHES * 10_000 and len(inputs.sets) == 6
    assert len(Inputs.of(case, replace(on, card=replace(CARD, l2=1 << 30))).sets) == gpu_convolution.SETS
    assert not torch.equal(inputs.sets[0][0], inputs.sets[1][0])


# --- correct first ---------------------------------------------------------------------------------------------------


def test_the_reference_is_the_reference(monkeypatch):
    monkeypatch.setattr(gpu_convolution, "AT_ONCE", 1)
    u, k = torch.randn(5, 100), Filter(torch.randn(5, 130), 30)
    assert_close(gpu_convolution.exact(u, k), fftconv_ref(u, k), 1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_wrong_answers_are_not_timed(on, gated):
    inputs = Inputs.of(Case((4, 3, 300), "float32", gated), on)
    right, kept = baselines.best_fft(inputs.sets, inputs.k, inputs.skip), Filter(inputs.k)
    assert gpu_convolution.error_of(right, inputs, kept, 1e-6) < 1e-6

    def zeros(i):
        return torch.zeros_like(right(i))

    def unwritten(i):
        y = torch.empty_like(right(i))
        y[:-1] = right(i)[:-1]
        return y

    def one_wrong(i):
        y = right(i).clone()
        y[3, 2, 299] += 1.0
        return y

    for wrong in (zeros, unwritten, one_wrong, lambda i: right(i).half(), lambda i: right(i)[:, :, :-1]):
        with pytest.raises(RuntimeError, match=r"off by|expected|finite"):
            gpu_convolution.error_of(wrong, inputs, kept, 1e-3)
    assert torch.is_deterministic_algorithms_warn_only_enabled()  # as it was


def test_a_large_batch_is_compared_from_end_to_end(on):
    """Some sequences for the error, the first and the last among them; all for what was not written."""
    inputs = Inputs.of(Case((50, 1, 40), "float32"), on)
    right, kept = baselines.best_fft(inputs.sets, inputs.k, None), Filter(inputs.k)

    def wrong(at, value):
        def run(i):
            y = right(i).clone()
            y[at] = value
            return y

        return run

    for at in (0, 49):
        with pytest.raises(RuntimeError, match="off by"):
            gpu_convolution.error_of(wrong(at, 0.0), inputs, kept, 1e-3)
    with pytest.raises(RuntimeError, match="finite"):
        gpu_convolution.error_of(wrong(3, torch.nan), inputs, kept, 1e-3)


def test_a_case_has_every_way_checked_timed_and_described(on, few):
    few("dense", "partial 64")
    case = Case((1, 2, 256), "float16", gated=True)
    found = gpu_convolution.compare(on, case, PEAK, rounds=3)
    assert found["failed"] == []
    read = json.loads(json.dumps(found, allow_nan=False))
    assert GpuCase.from_dict(found).to_dict() == read  # nothing is lost on the way to a report
    ways = {way["name"]: way for way in found["ways"]}
    assert list(ways) == ["dense", "partial 64", baselines.TORCH, baselines.OWN]
    for way in ways.values():
        assert 0 < way["error"] < gpu_convolution.BARS["float16"] and not way["graph"]
    dense = ways["dense"]
    assert dense["seconds"] == pytest.approx(LAUNCH, rel=0.01)
    assert dense["faster_than"].keys() == {baselines.TORCH, baselines.OWN}
    assert dense["faster_than"][baselines.TORCH]["median"] == pytest.approx(CALL / LAUNCH, rel=0.01)
    assert dense["of_floor"] == pytest.approx(case.bytes() / PEAK["bytes_per_second"] / LAUNCH, rel=0.01)
    assert dense["way"]["dtype"] == "float16"
    assert 0 < ways["partial 64"]["predicted_seconds"] < dense["predicted_seconds"] < 1e-4
    assert [build["entry"] for build in dense["builds"]] == ["direct"]


@pytest.mark.parametrize(
    ("batch", "seqlen", "plan", "entries"),
    [(64, 4096, "comb 1/8", ["conv"]), (512, 1 << 14, "low-pass 1/8", ["decimate", "conv", "interpolate"])],
)
def test_sparse_ways_say_what_runs(on, batch, seqlen, plan, entries):
    case, plans = Case((batch, 2, seqlen), "bfloat16"), gpu_convolution.plans(seqlen)
    inputs = Inputs([], torch.randn(2, seqlen), None)
    facts = {name: gpu_convolution.entrant(on, case, inputs, plans[name], PEAK)[2] for name in ("dense", plan)}
    assert [build["entry"] for build in facts[plan]["builds"]] == entries
    assert facts[plan]["way"].get("masked", "inner" in facts[plan]["way"]) and json.dumps(facts)
    assert facts[plan]["predicted_seconds"] < facts["dense"]["predicted_seconds"]
    assert facts[plan]["floor_seconds"] == case.bytes(1 / 8) / PEAK["bytes_per_second"]


def test_who_fails_is_named_and_the_rest_is_timed(on, few, monkeypatch, own_rivals):
    def absent(sets, k, skip):
        raise ImportError("no such library\nmore")

    def wrong(sets, k, skip):
        return lambda i: torch.ones_like(sets[i][0])

    few()
    monkeypatch.setattr(baselines, "RIVALS", {**own_rivals, "absent": absent, "wrong": wrong})
    found = gpu_convolution.compare(on, Case((1, 2, 256), "float16"), PEAK, 3)
    assert [way["name"] for way in found["ways"]] == [baselines.TORCH, baselines.OWN]
    reasons = {row["name"]: row["reason"] for row in found["failed"]}
    assert reasons["absent"] == "ImportError: no such library" and "off by" in reasons["wrong"]


def test_a_lost_device_ends_the_case(on):
    def rest():
        raise RuntimeError("illegal address")

    with pytest.raises(RuntimeError, match="illegal address"):
        gpu_convolution.compare(replace(on, rest=rest), Case((1, 2, 256), "float16"), PEAK, 3)


# --- timing ----------------------------------------------------------------------------------------------------------


def test_short_calls_are_replayed_from_graphs_all_alike(on, clock):
    captured = []

    def capture(calls):
        captured.append(len(calls))
        if len(captured) == 3:
            raise RuntimeError("cannot be captured")

        def replay():
            for call in calls:
                call()

        return replay

    def taking(seconds):
        def run(i):
            clock.now += seconds
            return torch.zeros(1)

        return run

    on = replace(on, capture=capture)
    runs = {"quick": taking(1e-4), "slow": taking(2e-3), "stubborn": taking(1e-3)}
    taken, graphs, refused = gpu_convolution.timed(on, runs, 4, 3)
    assert graphs == {"quick", "slow"} and captured == [4, 4, 4] and "cannot be captured" in refused["stubborn"]
    timings = taken.against("quick")
    assert [timings[name].seconds for name in runs] == pytest.approx([1e-4, 2e-3, 1e-3], rel=0.02)
    assert timings["slow"].speedup == pytest.approx(1 / 20, rel=0.02)
    taken, graphs, _ = gpu_convolution.timed(on, {"slow": runs["slow"]}, 4, 3)
    assert not graphs and len(captured) == 3


def test_calls_go_round_the_inputs(on, clock):
    seen = []

    def run(i):
        clock.now += 1.0
        seen.append(i)
        return torch.zeros(1)

    gpu_convolution.timed(on, {"one": run}, 3, 3)
    assert seen == [i % 3 for i in range(len(seen))] and len(seen) > 5


def test_ceilings_count_what_is_read_and_written(on, clock):
    class Slow(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.copy_.default, torch.ops.aten.mm.default):
                clock.now += 0.5
            return function(*args, **(kwargs or {}))

    with Slow():
        peak = gpu_machine.ceilings(on, size=1 << 12, side=16)
    assert peak["bytes_per_second"] == pytest.approx((1 << 12) / 0.5, rel=1e-3)
    assert peak["flop_per_second"] == pytest.approx(2 * 16**3 / 0.5, rel=1e-3)


# --- rivals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rival", [baselines.best_fft, baselines.own_code])
def test_baselines_convolve(on, rival, gated):
    for dtype, bar in (("float32", 1e-6), ("float16", 3e-3)):
        inputs = Inputs.of(Case((2, 3, 100), dtype, gated), on)
        run = rival(inputs.sets, inputs.k, inputs.skip)
        assert gpu_convolution.error_of(run, inputs, Filter(inputs.k), bar) < bar
        assert not torch.equal(run(0), run(1))


class FlashFFTConv(torch.nn.Module):
    """The interface of the library of that name."""

    transforms = 0

    def __init__(self, seqlen, dtype):
        super().__init__()
        self.seqlen = seqlen

    def forward(self, u, k, pregate=None, postgate=None):
        k_f = torch.fft.fft(k, n=self.seqlen)
        g = (u if pregate is None else u * pregate).float()
        y = torch.fft.ifft(PLAIN_FFT(g, n=self.seqlen) * k_f).real[..., : u.shape[-1]].to(u.dtype)
        return y if postgate is None else y * postgate


PLAIN_FFT = torch.fft.fft


@pytest.mark.parametrize("gated", [False, True])
def test_flash_is_called_as_it_wants_with_and_without_the_filter_s_transform(on, monkeypatch, gated):
    monkeypatch.setitem(sys.modules, "flashfftconv", SimpleNamespace(FlashFFTConv=FlashFFTConv))
    counted = []
    monkeypatch.setattr(torch.fft, "fft", lambda *a, **k: counted.append(1) or PLAIN_FFT(*a, **k))
    ours = torch.fft.fft
    inputs = Inputs.of(Case((2, 3, 128), "float16", gated), on)
    for rival, transforms in ((baselines.flash, 3), (baselines.flash_kept, 1)):
        run = rival(inputs.sets, inputs.k, inputs.skip)
        assert gpu_convolution.error_of(run, inputs, Filter(inputs.k), 3e-3) < 3e-3
        run(0), run(1)
        assert len(counted) == transforms and torch.fft.fft is ours
        counted.clear()
    with pytest.raises(ValueError, match="float16"):
        baselines.flash([(torch.zeros(1, 1, 8), None, None)], torch.zeros(1, 8), None)


def test_libraries_are_given_filters_in_the_signals_type(on, monkeypatch):
    def fft_causal_conv1d(x, weight):
        assert x.dtype == weight.dtype == torch.float16
        return fftconv_ref(x, weight).to(x.dtype)

    monkeypatch.setitem(sys.modules, "some_ops", SimpleNamespace(fft_causal_conv1d=fft_causal_conv1d))
    inputs = Inputs.of(Case((2, 3, 128), "float16", gated=True), on)
    run = baselines.causal_conv("some_ops")(inputs.sets, inputs.k, inputs.skip)
    assert gpu_convolution.error_of(run, inputs, Filter(inputs.k), 3e-3) < 3e-3
    with pytest.raises(ImportError, match="nowhere_at_all"):
        baselines.causal_conv("nowhere_at_all")(inputs.sets, inputs.k, inputs.skip)


def test_half_precision_is_for_powers_of_two(on):
    inputs = Inputs.of(Case((1, 2, 96), "float16"), on)
    with pytest.raises(ValueError, match="powers of two"):
        baselines.half_fft(inputs.sets, inputs.k, None)


# --- a file of cases, and the verb -----------------------------------------------------------------------------------

SOME = [Case((1, 2, 256), "float16"), Case((1, 1, 256), "bfloat16"), Case((1, 1, 300), "float32")]


@pytest.fixture
def quick(monkeypatch, few):
    """Ceilings as if measured, and plans that the emulator has done quickly."""
    monkeypatch.setattr(gpu_convolution, "ceilings", lambda on: dict(PEAK))
    few("dense", "partial 64")


def test_the_file_is_whole_after_every_case_and_goes_on(on, tmp_path, quick):
    path, states = tmp_path / "bench.json", []

    def look(what):
        if path.is_file():
            states.append(json.loads(path.read_text()))

    gpu_convolution.bench(on, SOME[:1], 3, path, progress=look)
    assert states[0]["running"] == SOME[0].name and states[0]["cases"] == []
    first = json.loads(path.read_text())
    assert first["running"] is None and first["ceilings"] == PEAK and first["card"]["name"] == CARD.name
    path.write_text(json.dumps({**first, "running": SOME[1].name}))  # as a process leaves it that died
    result = gpu_convolution.bench(on, SOME, 3, path)
    assert result["crashed"] == [SOME[1].name]
    assert [case["case"] for case in result["cases"]] == [SOME[0].name, SOME[2].name]
    assert result["cases"][0] == first["cases"][0]
    assert torch.get_float32_matmul_precision() == "highest"


def test_no_case_is_begun_too_late(on, quick):
    assert gpu_convolution.bench(on, SOME, 3, seconds=-1.0)["cases"] == []


def test_the_verb_times_on_a_gpu(on, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(gpu_machine, "machine", lambda device: on)
    cases = gpu_convolution.cases
    monkeypatch.setattr(gpu_convolution, "cases", lambda shapes: cases(shapes, ("float16",)))
    options = ["bench", "--device", "cuda", "--shape", "1,2,256", "--rounds", "3", "--save", str(tmp_path / "a.json")]
    done = CliRunner().invoke(main, [*options, "--json"], catch_exceptions=False)
    result = json.loads(done.stdout)
    assert [len(case["ways"]) for case in result["cases"]] == [4, 4]
    assert result == json.loads((tmp_path / "a.json").read_text())
    table = CliRunner().invoke(main, options, catch_exceptions=False).stdout
    assert "1 x 2 x 256 float16 gated" in table and "of the floor" in table and "4.00 TB/s" in table


def test_the_verb_says_that_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for options in (["--quick"], ["--calibrate"]):
        done = CliRunner().invoke(main, ["bench", "--device", "cuda", *options])
        assert done.exit_code == 1 and "no GPU to time kernels on: torch" in done.output
    done = CliRunner().invoke(main, ["bench", "--device", "mps"])
    assert done.exit_code == 1 and "neither cpu nor cuda" in done.output


@pytest.mark.gpu
@pytest.mark.plain_empty
def test_a_case_on_a_gpu():
    on = gpu_machine.machine()
    peak = gpu_machine.ceilings(on, 1 << 24, 512)
    found = gpu_convolution.compare(on, Case((4, 16, 1024), "float16", gated=True), peak, 3)
    ways = {way["name"]: way for way in found["ways"]}
    assert ways.keys() >= {*gpu_convolution.plans(1024), baselines.TORCH, baselines.OWN}, found["failed"]
    assert all(ways[name]["graph"] for name in gpu_convolution.plans(1024)), found
