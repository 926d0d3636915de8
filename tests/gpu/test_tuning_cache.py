"""Kernels chosen by the clock: kept whole, taken only where they were timed, and refused where they do not fit."""

import json
from dataclasses import asdict, replace

import emulation
import pytest
import torch
from click.testing import CliRunner

from sparsify.cli.main import main
from sparsify.cpu import cost_model
from sparsify.evals.speed import autotune, gpu_convolution, gpu_machine
from sparsify.evals.speed.gpu_convolution import Case
from sparsify.filters.filter import Filter, Structure
from sparsify.filters.monarch import BlockMask
from sparsify.gpu import dispatch, jit, tuning_cache
from sparsify.gpu.devices import CARDS
from sparsify.gpu.launch_spec import way_from
from sparsify.gpu.tiling import Tiling, TwoLevel
from sparsify.gpu.tuning_cache import Choice
from sparsify.plan import FilterPlan
from sparsify.report.schema import TunedCase

CARD = CARDS["sm_90"]
PLAIN = tuning_cache.Case.plain("float16", 4096, 4, 64, 4096)
FEW = tuning_cache.Case.plain("float16", 4096, 4, 64, 64)
STRUCTURE = Structure(BlockMask.comb(4096, 1 / 8, (32, 128)), None)
HEADED = Structure(STRUCTURE.mask, Filter(torch.zeros(64, 40)))
SHORT = Structure(BlockMask.low_pass(256, 1 / 8), Filter(torch.zeros(64, 40)))
MASKED = tuning_cache.Case.masked("float16", 4096, 4, 64, STRUCTURE)
KERNEL = Choice("plain", Tiling((16, 16, 16), 1, 4), 2)
HISTORY = Choice("plain", Tiling((16, 16), 4, 1, "history"))
LONG = tuning_cache.Case.plain("float16", 65536, 4, 64, 65536)
LONG_STRUCTURE = Structure(BlockMask.comb(65536, 1 / 8, (32, 2048)), Filter(torch.zeros(64, 40)))
LONG_MASKED = tuning_cache.Case.masked("float16", 65536, 4, 64, LONG_STRUCTURE)
TWO_LEVEL = Choice("plain", TwoLevel(16, Tiling((16, 16, 16), 1, 4, "complex")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A folder of our own, and a name for the code that needs no compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning_cache, "code", lambda arch: f"code of {arch}")
    for cached in (tuning_cache.choices, cost_model.costs):
        cached.cache_clear()
    yield
    for cached in (tuning_cache.choices, cost_model.costs):
        cached.cache_clear()


def kept(found):
    return tuning_cache.keep(CARD.name, "sm_90a", found)


# --- what fits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "case", "structure"),
    [
        (KERNEL, PLAIN, None),
        (KERNEL, FEW, None),
        (HISTORY, FEW, None),
        (TWO_LEVEL, LONG, None),
        (Choice("direct"), FEW, None),
        (replace(KERNEL, how="masked"), MASKED, STRUCTURE),
        (replace(TWO_LEVEL, how="masked"), LONG_MASKED, LONG_STRUCTURE),
        (Choice("decimated"), MASKED, STRUCTURE),
        (Choice("plain"), MASKED, STRUCTURE),
    ],
)
def test_what_fits(choice, case, structure):
    assert tuning_cache.fits(choice, CARD, case, structure)


@pytest.mark.parametrize(
    ("choice", "case", "structure", "card"),
    [
        (KERNEL, tuning_cache.Case.plain("float16", 4097, 4, 64, 4097), None, CARD),  # too few points
        (KERNEL, PLAIN, None, replace(CARD, shared_per_block=1 << 10)),
        (replace(KERNEL, resident=0), PLAIN, None, CARD),
        (replace(KERNEL, resident=40), PLAIN, None, CARD),  # no room for so many
        (replace(KERNEL, tiling=Tiling((16, 16, 16), 1, 16)), PLAIN, None, CARD),  # unequal work
        (replace(KERNEL, tiling=Tiling((16, 16, 16), 1, 4, "complex")), PLAIN, None, CARD),  # without its outer level
        (replace(TWO_LEVEL, tiling=TwoLevel(17, Tiling((16, 16, 16), 1, 4, "complex"))), LONG, None, CARD),
        (replace(TWO_LEVEL, tiling=TwoLevel(16, Tiling((16, 16, 16), 1, 4))), LONG, None, CARD),
        (HISTORY, PLAIN, None, CARD),  # a filter of all taps
        (HISTORY, tuning_cache.Case.plain("float16", 50, 4, 64, 64), None, CARD),  # more taps than samples
        (Choice("direct"), PLAIN, None, CARD),
        (TWO_LEVEL, replace(LONG, seqlen=65537), None, CARD),
        (Choice("plain"), PLAIN, None, CARD),
        (replace(KERNEL, how="masked"), PLAIN, None, CARD),
        (Choice("decimated"), PLAIN, None, CARD),
        (Choice("masked"), MASKED, STRUCTURE, CARD),
        (KERNEL, MASKED, STRUCTURE, CARD),
        (Choice("direct"), MASKED, STRUCTURE, CARD),
        (Choice("masked", Tiling((32, 16, 16), 1, 4)), MASKED, STRUCTURE, CARD),  # not the points of the mask
        (Choice("masked", Tiling((16, 16), 4, 1)), replace(MASKED, seqlen=256), SHORT, CARD),  # 16 columns, a head 32
    ],
)
def test_what_does_not_fit(choice, case, structure, card):
    assert not tuning_cache.fits(choice, card, case, structure)


# --- kept and taken --------------------------------------------------------------------------------------------------


def test_choices_come_back_as_they_were():
    path = kept({PLAIN: KERNEL})
    masked = replace(TWO_LEVEL, how="masked", resident=3, seconds=1e-5)
    assert kept({LONG_MASKED: masked, FEW: Choice("direct")}) == path and not list(path.parent.glob("tmp*"))
    assert tuning_cache.choice(CARD, PLAIN) == KERNEL
    assert tuning_cache.choice(CARD, FEW) == Choice("direct")
    assert tuning_cache.choice(CARD, LONG_MASKED, LONG_STRUCTURE) == masked
    assert tuning_cache.choice(CARD, tuning_cache.Case.plain("float16", 4096, 4, 63, 4096)) is None  # fewer rows
    assert tuning_cache.choice(replace(CARD, name="another"), PLAIN) is None


def test_cases_differ_by_what_matters():
    case = tuning_cache.Case.plain("float16", 4096, 4, 64, 3000)
    assert case == tuning_cache.Case.plain("float16", 4096, 5, 65, 3000)  # rows and batch by powers of two
    assert case == tuning_cache.Case.plain("float16", 4095, 4, 64, 3000)  # lengths as filters are prepared for
    others = [
        tuning_cache.Case.plain("bfloat16", 4096, 4, 64, 3000),
        tuning_cache.Case.plain("float16", 4097, 4, 64, 3000),
        tuning_cache.Case.plain("float16", 4096, 8, 64, 3000),
        tuning_cache.Case.plain("float16", 4096, 4, 64, 3001),
        tuning_cache.Case.masked("float16", 4096, 4, 64, HEADED),
        MASKED,
    ]
    assert len({str(one) for one in (case, *others)}) == 7
    assert tuning_cache.Case.plain("float16", 4096, 4, 64, 5000) == PLAIN  # all taps are all taps


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.update(schema=0),
        lambda data: data.update(card="another"),
        lambda data: data.update(code="of yesterday"),
        lambda data: data.pop("arch"),
        lambda data: data.update(choices=None),
        lambda data: data["choices"][str(PLAIN)].update(resident=99),
        lambda data: data["choices"][str(PLAIN)].update(surprise=1),
        lambda data: data["choices"][str(PLAIN)].update(how="magic"),
        lambda data: data["choices"][str(PLAIN)].update(resident="two"),
        lambda data: data["choices"][str(PLAIN)]["tiling"].update(factors=[16, 16]),
        lambda data: data["choices"][str(PLAIN)]["tiling"].update(warps=3),
        lambda data: data["choices"][str(PLAIN)].update(tiling="16x16x16"),
    ],
)
def test_stale_foreign_and_edited_entries_are_refused(edit):
    path = kept({PLAIN: KERNEL})
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    tuning_cache.choices.cache_clear()
    assert tuning_cache.choice(CARD, PLAIN) is None


def test_what_is_not_json_is_no_choice():
    path = kept({PLAIN: KERNEL})
    path.write_text(path.read_text()[:-40])
    tuning_cache.choices.cache_clear()
    assert tuning_cache.choice(CARD, PLAIN) is None
    kept({FEW: Choice("direct")})  # and is written anew
    assert tuning_cache.choice(CARD, FEW) and tuning_cache.choice(CARD, PLAIN) is None


def test_other_code_begins_anew(monkeypatch):
    kept({PLAIN: KERNEL})
    monkeypatch.setattr(tuning_cache, "code", lambda arch: "later code")
    assert tuning_cache.choice(CARD, PLAIN) is None
    kept({FEW: Choice("direct")})
    assert tuning_cache.choice(CARD, FEW) and tuning_cache.choice(CARD, PLAIN) is None


@pytest.mark.skipif(not jit.compile_available(), reason="needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc")
def test_code_is_named_by_its_compiler_and_card(monkeypatch):
    monkeypatch.undo()
    assert tuning_cache.code("sm_90a") != tuning_cache.code("sm_80")


def test_the_backend_takes_what_was_timed():
    k = torch.randn(64, 4096)

    def factors():
        way = way_from(tuple(dispatch.prepare(Filter(k), 4096, torch.float16, 4, CARD).layout))
        return way.factors, way.warps, way.resident

    other = Choice("plain", Tiling((16, 8, 32), 1, 2), 1)
    assert tuning_cache.fits(other, CARD, PLAIN) and factors() != ((16, 8, 32), 2, 1)
    kept({PLAIN: other})
    assert factors() == ((16, 8, 32), 2, 1)


# --- found by the clock ----------------------------------------------------------------------------------------------


class Bench:
    """A machine of the emulator, on whose clock a kernel takes what `seconds` says."""

    def __init__(self, seconds, wrong=lambda build: False):
        self.now, self.emulator = 0.0, emulation.Emulator()
        self.seconds, self.wrong = seconds, wrong

    def __call__(self):
        self.now += 1e-9
        return self.now

    def launch(self, build, grid, call):
        self.now += self.seconds(build)
        if not self.wrong(build):
            self.emulator(build, grid, call)

    @property
    def machine(self):
        card = replace(CARD, l2=1)
        return gpu_machine.Machine(torch.device("cpu"), card, "sm_90a", self, None, self.launch)


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(autotune, "CANDIDATES", 2)
    monkeypatch.setattr(autotune, "RESIDENT", (1,))
    monkeypatch.setattr(autotune, "compile_all", lambda builds, arch: [f"none of {len(builds)}"])


SMALL = Case((1, 2, 256), "float16")


def test_the_quickest_kernel_that_is_right_is_kept(brief):
    plan, shape = FilterPlan("dense"), SMALL
    on = Bench(lambda build: 0.1).machine
    choices = autotune.variants(on, shape, plan.apply(torch.zeros(1, 256)))
    assert choices[0].how == "direct" and sum(choice.how == "plain" for choice in choices) >= 2
    planned, wrong, quickest = choices[0], choices[1], next(c for c in choices[2:] if c.tiling != choices[1].tiling)

    def is_kernel(build, choice):
        one = choice.tiling
        return build.entry == "conv" and (build.factors, build.rows, build.warps) == (one.factors, one.rows, one.warps)

    bench = Bench(lambda build: 0.025 if is_kernel(build, quickest) else 0.1, lambda build: is_kernel(build, wrong))
    found = autotune.tune(bench.machine, shape, plan, 3)
    assert found["faster_than_planned"] == pytest.approx(4, rel=1e-3)
    assert "finite" in next(row["failed"] for row in found["candidates"] if "failed" in row)
    taken = tuning_cache.choice(CARD, tuning_cache.Case.plain("float16", 256, 1, 2, 256))
    assert (taken.how, taken.tiling) == ("plain", quickest.tiling) and taken.seconds == pytest.approx(0.025, rel=1e-3)
    assert json.loads(json.dumps(found))["choice"] == json.loads(json.dumps(asdict(taken))) and planned != taken
    assert TunedCase.from_dict(found).to_dict() == json.loads(json.dumps(found))


def test_who_cannot_be_tuned_is_told_and_left_out(brief):
    said = []
    on = Bench(lambda build: 0.1, lambda build: True).machine
    assert list(autotune.tune_all(on, [(SMALL, "dense")], 3, said.append)) == []
    assert said[0] == "compiling" and said[1].startswith("does not compile") and "no kernel is right" in said[-1]


def test_the_verb_keeps_what_it_finds(brief, monkeypatch):
    monkeypatch.setattr(gpu_machine, "machine", lambda device: Bench(lambda build: 0.1).machine)
    monkeypatch.setattr(autotune, "TUNED_PLANS", ("dense",))
    options = ["bench", "--device", "cuda", "--calibrate", "--shape", "1,2,256", "--rounds", "3"]
    done = CliRunner().invoke(main, options, catch_exceptions=False)
    assert done.exit_code == 0 and "1 x 2 x 256 bfloat16" in done.stdout and "100,000.0" in done.stdout
    path = tuning_cache.stored(CARD.name)
    assert str(path) in done.stdout and len(json.loads(path.read_text())["choices"]) == 2


@pytest.mark.parametrize("plan", ["dense", "partial 64", "split 64 + 1/8", "comb 1/8"])
def test_the_planner_s_own_choice_comes_first(plan):
    case = Case((64, 2, 4096), "float16")
    on, found = Bench(None).machine, gpu_convolution.plans(4096)[plan].apply(torch.randn(2, 4096))
    choices = autotune.variants(on, case, found)
    assert len(choices) == len(set(choices)) > 3
    own = gpu_convolution.prepare(on, case, found).layout
    first, second = (autotune.tables_of(on, case, found, choice).layout for choice in choices[:2])
    assert tuple(first) == tuple(own) != tuple(second)


def test_kernels_are_compiled_beforehand(monkeypatch):
    """Those that the planner takes are among `needed`, and those that `tune` tries among `builds_to_tune`."""
    case, plan = Case((64, 2, 4096), "float16"), gpu_convolution.plans(4096)["comb 1/8"]
    on, kept_of_one = Bench(None).machine, plan.apply(torch.randn(1, 4096))
    layout = tuple(gpu_convolution.prepare(on, case, kept_of_one).layout)
    assert {*gpu_convolution.builds_of(way_from(layout), 4096)} <= {*autotune.needed(on.card, [case])}
    builds = autotune.builds_to_tune(on, case, plan)
    assert {build.masked for build in builds} == {True, False} and len(set(builds)) > 3
