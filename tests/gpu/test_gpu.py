"""The GPU kernels against float64: here on the emulator, which runs the same source; on a GPU where there is one."""

import ctypes
import json
import math
import warnings
from dataclasses import replace
from functools import cache

import emulation
import pytest
import torch
from convolutions import (
    BARS,
    BFLOAT16,
    FLOAT,
    HALF,
    MANY,
    POINTS,
    ROOFLINE,
    SIGNALS,
    VIEWS,
    Case,
    Signals,
    convolved,
    drawn,
    expected,
)
from helpers import assert_close, relative_l2

from sparsify import LongConv, fftconv_ref
from sparsify.cpu import backend as cpu
from sparsify.filters.filter import Filter, Structure
from sparsify.filters.monarch import BlockMask, monarch_conv
from sparsify.gpu import backend as gpu
from sparsify.gpu import dispatch, jit, planner
from sparsify.gpu import tiling as kernel
from sparsify.gpu.devices import CARDS, Card
from sparsify.gpu.launch_spec import Call, DecimatedWay, Way, decimated_length, way_from
from sparsify.gpu.mma_operands import Stages
from sparsify.gpu.tiling import SOURCES, Live, Tiling, TwoLevel
from sparsify.plan import FilterPlan

CARD = CARDS["sm_90"]


# --- what is run -----------------------------------------------------------------------------------------------------


def planned(points: int, dtype: torch.dtype, arch: str = "sm_90") -> Way:
    """The one-block kernel that the planner picks for a large layer.  Resident blocks mean nothing to the emulator."""
    found = planner.solve(CARDS[arch], points, dtype=dtype, rows_total=MANY, batch=64, count=1)[0]
    return dispatch.way_of(found.tiling, 1, dtype, points)


def real(dtype: torch.dtype, factors: tuple[int, ...], rows: int = 1, warps: int = 1, **rest) -> Way:
    return Way("real", dtype, math.prod(factors), factors, rows, warps, **rest)


def sized(case: Case) -> Case:
    """Odd numbers of sequences and channels, fewer where rows are long."""
    batch, channels = (3, 5) if case.way.points <= 1024 else (1, 3) if case.way.points <= 4096 else (1, 1)
    return replace(case, batch=batch, channels=channels)


PICKS = {(points, dtype): planned(points, dtype) for points in POINTS for dtype in BARS}
PLANNED = list(dict.fromkeys(PICKS.values()))  # some are for more samples than were asked for
OTHERS = [  # shapes that no planner picks for these, or one for another card
    real(HALF, (16, 32), rows=8, warps=2),
    real(FLOAT, (32, 32), rows=4),
    real(HALF, (32, 16), rows=16, warps=4),
    real(HALF, (48, 8, 16), warps=2),
    real(BFLOAT16, (48, 8, 32), warps=4),
    real(FLOAT, (48, 16, 16), warps=2),
    real(HALF, (16, 32, 32), warps=8),
    real(HALF, (16, 8, 16, 16), warps=16),
    real(BFLOAT16, (16, 16, 8, 16), warps=2),
    real(BFLOAT16, (16, 16, 16), rows=2, warps=4),
    real(FLOAT, (16, 8, 8, 16), warps=8),
    real(HALF, (32, 32, 32), warps=8),
]
DENSE = [sized(Case(way, signals)) for way in PLANNED for signals in SIGNALS.values()]
DENSE += [sized(Case(way, SIGNALS[name])) for way in OTHERS for name in ("causal", "gated")]


def scattered(factors: tuple[int, ...], share: float) -> BlockMask:
    """Blocks drawn at random, as coarse as the kernels' tiles, and half as coarse on the outer axis."""
    draw = torch.Generator().manual_seed(2)
    whole = BlockMask.full(math.prod(factors), factors, (4, *[8] * (len(factors) - 1)))
    drawn = torch.rand(len(whole.keep), generator=draw) < share
    return replace(whole, keep=tuple(drawn.nonzero().flatten().tolist()))


MASKS = {
    "low-pass": lambda factors: BlockMask.low_pass(math.prod(factors), 1 / 8, factors),
    "narrow": lambda factors: BlockMask.low_pass(math.prod(factors), 1 / 64, factors),
    "comb": lambda factors: BlockMask.comb(math.prod(factors), 1 / 8, factors),
    "scattered": lambda factors: scattered(factors, 0.3),
}
WIDE_MASKED, ODD_MASKED = SIGNALS["causal"], SIGNALS["odd, gated"]


def masked_cases() -> list[Case]:
    cases = []
    for way in PLANNED:
        masked, signals = replace(way, masked=True), ODD_MASKED if way.dtype == BFLOAT16 else WIDE_MASKED
        cases += [sized(Case(masked, signals, mask=mask(way.factors))) for mask in MASKS.values()]
        if math.prod(way.factors[1:]) % 32 == 0 and (way.dtype == HALF or way.points == 2048):
            gated = ODD_MASKED if way.dtype == BFLOAT16 else SIGNALS["gated"]
            narrow = MASKS["low-pass"](way.factors)
            cases.append(sized(Case(replace(masked, head=64), gated, mask=narrow, head=50)))
    for way in OTHERS[1:8:2]:
        masked = replace(way, masked=True)
        cases += [
            sized(Case(masked, SIGNALS["gated"], mask=MASKS[name](way.factors))) for name in ("comb", "scattered")
        ]
    return cases


def history(
    dtype: torch.dtype, factors: tuple[int, ...], rows: int, warps: int, seqlen: int, taps: int, **rest
) -> Case:
    way = Way("history", dtype, seqlen, factors, rows, warps)
    return Case(way, seqlen=seqlen, taps=taps, **rest)


HISTORY = [
    case
    for dtype in BARS
    for case in (
        history(dtype, (16, 16), 8, 1, 2000, 256, batch=3),
        history(dtype, (16, 16), 8, 1, 1000, 200, signals=SIGNALS["gated"], batch=3),
        history(dtype, (16, 16), 8, 1, 1001, 101, signals=SIGNALS["odd, two-sided"], batch=3, channels=5),
        history(dtype, (16, 8, 16), 1, 1, 7000, 2048),
        history(dtype, (16, 8, 16), 1, 1, 5000, 1999, signals=replace(SIGNALS["gated"], lookahead=True)),
    )
]
HISTORY += [history(HALF, (16, 16, 16), 1, 4, 4600, 4000, signals=SIGNALS["gated"], channels=1)]
DIRECT = [
    Case(Way("direct", dtype, 2000, head=-(-taps // 32) * 32), signals, seqlen=seqlen, taps=taps, batch=3)
    for dtype in BARS
    for taps, seqlen, signals in (
        (64, 2000, SIGNALS["gated"]),
        (33, 31, SIGNALS["odd, two-sided"]),
        (511, 2600, SIGNALS["two-sided"]),
        *(((1, 2000, SIGNALS["causal"]), (512, 5001, SIGNALS["odd, gated"])) if dtype == HALF else ()),
    )
]


def two_level(dtype: torch.dtype, **rest) -> Way:
    return Way("complex", dtype, 8192, (16, 32), 1, 1, radix=16, **rest)


TWO_LEVEL = [
    Case(two_level(dtype), SIGNALS[name], channels=2)
    for dtype in BARS
    for name in ("causal", "two-sided", "odd, gated")
]
TWO_LEVEL += [
    Case(two_level(dtype, masked=True), WIDE_MASKED, mask=mask((16, 16, 32)), batch=2, channels=2)
    for dtype in BARS
    for mask in MASKS.values()
]
TWO_LEVEL += [
    Case(two_level(dtype, masked=True, head=64), SIGNALS["gated"], mask=mask((16, 16, 32)), head=40, channels=2)
    for dtype in (HALF, FLOAT)
    for mask in (MASKS["low-pass"], MASKS["comb"])
]
CORE = Way("complex", HALF, 1 << 16, (16, 16, 16), 1, 4, radix=16)  # whose last stages run in registers
TWO_LEVEL += [
    Case(CORE, SIGNALS["gated"], channels=1),
    Case(replace(CORE, masked=True), WIDE_MASKED, mask=MASKS["scattered"]((16, 16, 16, 16)), channels=1),
]


def decimated(
    dtype: torch.dtype, rate: int, seqlen: int, inner: tuple[int, ...], rows: int, head: int = 0, **rest
) -> Case:
    """Of 3 channels, for a band of half of 1 / rate of all that 8192 points hold."""
    low = decimated_length(seqlen, rate)
    way = DecimatedWay(rate, -(-head // 32) * 32, Way("real", dtype, low, inner, rows))
    assert low <= way.inner.points
    return Case(way, seqlen=seqlen, mask=BlockMask.low_pass(8192, 1 / (2 * rate)), head=head or None, **rest)


SLOW = [
    case
    for dtype in BARS
    for case in (
        decimated(dtype, 8, 2001, (16, 32), 2, 50, signals=SIGNALS["odd, gated"], batch=3),
        decimated(dtype, 16, 8192, (16, 8, 16), 1, 64, signals=SIGNALS["gated"]),
    )
]
SLOW += [
    decimated(HALF, 4, 2000, (16, 32), 2, batch=3),
    decimated(BFLOAT16, 16, 1, (16, 16), 4, signals=SIGNALS["odd"]),
    decimated(FLOAT, 64, 8191, (16, 16), 4, 1, signals=SIGNALS["odd"], batch=2),
]
CASES = [*DENSE, *masked_cases(), *HISTORY, *DIRECT, *TWO_LEVEL, *SLOW]


def label(case: Case) -> str:
    names = {signals: name for name, signals in SIGNALS.items()}
    masks = {}
    if case.mask and case.source == "real":
        masks = {mask(case.way.factors): name for name, mask in MASKS.items()}
    parts = [str(case), names.get(case.signals, "signals"), masks.get(case.mask, "mask" if case.mask else "")]
    sizes = [f"{case.taps} taps" if case.taps else "", f"{case.length} samples" if case.seqlen else ""]
    return " ".join(filter(None, [*parts, *sizes]))


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> None:
    """The kernels of all selected cases, two or more compilers at a time."""
    items = [item for item in request.session.items if "compiled" in getattr(item, "fixturenames", ())]
    cases = [item.callspec.params["case"] for item in items if "case" in getattr(item, "callspec", pytest).params]
    emulation.compile_all(build for case in cases for build in case.builds)


# --- parity ----------------------------------------------------------------------------------------------------------


@cache
def measured(case: Case) -> emulation.Emulator:
    """The emulator once it has convolved, and rightly so; many tests ask it what that took."""
    emulator = emulation.Emulator()
    y, y_ref = convolved(case, emulator)
    assert_close(y, y_ref, BARS[case.way.dtype])
    return emulator


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_emulated_kernel_is_the_convolution(case):
    measured(case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_kernel_is_the_convolution(case):
    y, y_ref = convolved(case, device="cuda")
    assert_close(y, y_ref, BARS[case.way.dtype])


def test_every_size_and_shape_is_run():
    """One block's kernels of 256 .. 16384 points in every type: each kind of signal, odd ones too, and each mask."""
    assert {way.source for way in PLANNED} == {"real"} and {way.points for way in PLANNED} == set(POINTS)
    assert {len(way.factors) for way in [*PLANNED, *OTHERS]} == {2, 3, 4}
    for (points, dtype), way in PICKS.items():
        mine = [case for case in CASES if case.way == way]
        assert way.points >= points and {case.signals for case in mine} == set(SIGNALS.values())
        masked = {case.mask for case in CASES if case.way == replace(way, masked=True)}
        assert masked == {mask(way.factors) for mask in MASKS.values()} and len(masked) >= 3, (points, dtype)
        assert {case.batch % 2 for case in mine} == {1} and {case.length % 2 for case in mine} == {0, 1}


def test_every_kind_of_core_is_run():
    """The last two stages in registers: in every kind of kernel that may have them so, whatever its masks and gates."""

    def has_core(case: Case) -> bool:
        way = case.way
        return case.source in SOURCES and Stages.natural(way.factors, way.source).core(way.dtype)

    cases = [case for case in CASES if has_core(case)]
    assert {case.way.dtype for case in cases} == {HALF, BFLOAT16} and {case.source for case in cases} == set(SOURCES)
    assert {len(case.way.factors) for case in cases} == {3, 4} and {case.way.rows for case in cases} >= {1, 2}
    for source in ("real", "complex"):
        assert {case.mask is None for case in cases if case.source == source} == {True, False}
        assert any(case.signals.gated for case in cases if case.source == source)
    assert any(case.way.masked and case.way.head for case in cases) and any(case.signals.odd for case in cases)


# --- wrong answers fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_zeros_and_near_misses_fail(dtype, scale):
    way = PICKS[1024, dtype]
    y, y_ref = convolved(Case(way, Signals(scale=scale)), emulation.Emulator())
    assert_close(y, y_ref, BARS[dtype])
    late = torch.nn.functional.pad(y, (1, -1))
    one_wrong = y.clone()
    one_wrong[0, 1, 700] = torch.nan
    one_row_lost = y * torch.tensor([1.0, 0.0, 1.0])[:, None].to(dtype)
    coarse = y.to(torch.float16 if dtype == FLOAT else torch.float8_e4m3fn)  # a type with fewer bits would be seen
    for wrong in (torch.zeros_like(y), late, one_wrong, one_row_lost, coarse, 1.02 * y):
        with pytest.raises(AssertionError, match="relative L2 error"):
            assert_close(wrong, y_ref, BARS[dtype])


def test_what_no_kernel_writes_is_nan():
    with pytest.raises(AssertionError, match="relative L2 error nan"):
        assert_close(*convolved(Case(PLANNED[0]), launch=lambda *_: None), 1.0)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", BARS)
def test_nothing_else_is_written(dtype, monkeypatch):
    """Memory around y, and between its rows, is as it was."""
    way = PICKS[512, dtype]
    around = torch.full((7 * 3, 40 + 501), 7.0).to(dtype)

    def inside(u_shape, *, dtype, device):
        return around.as_strided(u_shape, (3 * 541, 541, 1), 20)

    k, u = torch.randn(3, 501), torch.randn(7, 3, 501).to(dtype)
    prepared = gpu.make(way, Filter(k))
    with monkeypatch.context() as patch:
        patch.setattr(gpu.torch, "empty", inside)
        y = gpu.fftconv(u, prepared.tables, prepared.layout, launch=emulation.Emulator())
    assert y.data_ptr() == around.data_ptr() + 20 * y.element_size()
    assert_close(y, fftconv_ref(u, k), BARS[dtype])
    assert (around[:, :20] == 7).all() and (around[:, 521:] == 7).all()


# --- masks mean what the plan says -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_the_formula(name):
    """Every kept wave of the filter, summed up from its definition, and convolved term by term."""
    way = PICKS[256, HALF]
    m, mask = 256, MASKS[name](way.factors)
    k, u = torch.randn(3, m).double() / 16, torch.randn(1, 3, m).to(HALF)
    f, lag = torch.arange(m).double() + 0.25, torch.arange(m)[:, None] - torch.arange(m)
    k_f = (k.to(torch.complex128) @ torch.exp(-2j * math.pi * torch.arange(m)[:, None] * f / m)) * mask.bins()
    waves = torch.exp(2j * math.pi * f[:, None, None] * lag / m)
    matrix = torch.einsum("hf,fts->hts", k_f, waves).real / m
    y_ref = torch.einsum("hts,bhs->bht", matrix, u.double())
    prepared = gpu.make(replace(way, masked=True), Filter(k), mask.bins())
    emulator = emulation.Emulator()
    y = gpu.fftconv(u, prepared.tables, prepared.layout, launch=emulator)
    assert_close(y, y_ref, BARS[HALF])
    assert relative_l2(fftconv_ref(u, k), y_ref) > 0.1  # the filter without the mask is another one


# --- the public way --------------------------------------------------------------------------------------------------


@pytest.fixture
def on_card(monkeypatch):
    """LongConv prepares for an H200, whatever the machine."""
    monkeypatch.setattr(gpu, "takes", lambda u: True)
    monkeypatch.setattr(Card, "of", classmethod(lambda cls, device=None: CARD))


PLANS = {
    "dense": lambda n: FilterPlan("dense"),
    "partial": lambda n: FilterPlan("partial", n // 8),
    "few taps": lambda n: FilterPlan("partial", 20),
    "low-pass": lambda n: FilterPlan("frequency-sparse", None, BlockMask.low_pass(n, 1 / 8)),
    "comb": lambda n: FilterPlan("frequency-sparse", None, BlockMask.comb(n, 1 / 8)),
    "split": lambda n: FilterPlan("split", 64, BlockMask.low_pass(n, 1 / 16)),
    "split, scattered": lambda n: FilterPlan("split", 100, scattered((16, 16, 16) if n == 4096 else (32, 16, 16), 0.1)),
}


def through_long_conv(
    plan: FilterPlan, seqlen: int, dtype: torch.dtype, batch: int, launch=None, device="cpu", rows=64, backwards=False
):
    """y, y_ref of a LongConv as `swap.operators` makes it, prepared for `rows` sequences, with gates and skip."""
    kept = plan.apply(torch.randn(3, seqlen) / math.sqrt(seqlen))
    kept = kept.reversed() if backwards else kept
    conv = LongConv(kept).to(device)
    u, gate, pregate = (torch.randn(batch, 3, seqlen).to(dtype).to(device) for _ in range(3))
    skip = torch.randn(3, device=device)
    if launch is None:
        y = conv(u, gate, skip, pregate)
    else:
        prepared = conv.prepare(u.expand(rows, -1, -1) if batch == 1 else u)
        assert prepared.layout[0] == cpu.KERNEL
        y = gpu.fftconv(u, prepared.tables, prepared.layout, gate, skip, pregate, launch=launch)
    return y, expected(u.cpu(), kept, gate.cpu(), skip.cpu(), pregate.cpu())


@pytest.mark.usefixtures("on_card")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("seqlen", "dtype"), [(4096, HALF), (8192, BFLOAT16)])
def test_what_long_conv_prepares_is_the_planned_filter(plan, seqlen, dtype):
    emulator = emulation.Emulator()
    y, y_ref = through_long_conv(PLANS[plan](seqlen), seqlen, dtype, 1, emulator)
    assert_close(y, y_ref, BARS[dtype])


@pytest.mark.usefixtures("on_card")
def test_a_planned_mask_is_taken_where_it_pays():
    """In a large layer the kernels chosen for a low-pass filter do less than those for a whole one."""
    work = {}
    for name in ("dense", "low-pass", "comb", "split"):
        emulator = emulation.Emulator()
        y, y_ref = through_long_conv(PLANS[name](8192), 8192, HALF, 1, emulator, rows=MANY // 3)
        assert_close(y, y_ref, BARS[HALF])
        work[name] = emulator.mma
    assert work["low-pass"] < work["dense"] and work["comb"] < work["dense"] / 2
    assert work["split"] <= work["dense"]  # its head may eat up what the mask saves; then all of it is convolved


@pytest.mark.usefixtures("on_card")
@pytest.mark.parametrize("seqlen", [4096, 8192])
@pytest.mark.parametrize("name", ["low-pass", "comb"])
def test_a_planned_mask_is_taken_backwards_too(name, seqlen):
    """A gradient is the convolution with the filter reversed in time, for which the mask holds at other lags."""
    work = {}
    for backwards in (False, True):
        emulator = emulation.Emulator()
        y, y_ref = through_long_conv(PLANS[name](seqlen), seqlen, FLOAT, 1, emulator, rows=MANY, backwards=backwards)
        assert_close(y, y_ref, BARS[FLOAT])  # in half precision, rounding would hide a tap at the wrong end
        work[backwards] = emulator.mma
    assert work[True] == work[False]


@pytest.mark.usefixtures("on_card")
def test_one_preparation_serves_other_lengths_and_batches():
    k = torch.randn(3, 2048) / 32
    prepared = LongConv(k).prepare(torch.zeros(64, 3, 2048, dtype=HALF))
    for batch, seqlen in ((1, 2048), (5, 2047), (2, 1), (3, 8), (1, 1025), (2, 1024)):
        u = torch.randn(batch, 3, seqlen).to(HALF)
        y = gpu.fftconv(u, prepared.tables, prepared.layout, launch=emulation.Emulator())
        assert_close(y, fftconv_ref(u, k), BARS[HALF])


def test_nothing_in_nothing_out():
    prepared = gpu.make(PLANNED[0], Filter(torch.randn(3, 200)))
    for shape in ((0, 3, 200), (2, 3, 0)):
        y = gpu.fftconv(torch.empty(shape, dtype=HALF), prepared.tables, prepared.layout, launch=emulation.Emulator())
        assert y.shape == shape


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(
    ("size", "skip"), [(1e-5, None), (1e-5, 3.0), (1e4, None), (1e4, 1e-3), (0.0, 2.0), (1.0, 300.0)]
)
def test_filters_and_skips_of_any_size(dtype, size, skip):
    """Spectra are stored relative to their largest entry, so a half has room for all of them."""
    way = PICKS[512, dtype]
    k, u = size * torch.randn(3, 500), (10 if size < 1 else 0.02) * torch.randn(1, 3, 500).to(dtype)
    d = None if skip is None else torch.tensor([skip, -skip, 0.5 * skip])
    prepared = gpu.make(way, Filter(k))
    y = gpu.fftconv(u, prepared.tables, prepared.layout, None, d, launch=emulation.Emulator())
    y_ref = fftconv_ref(u, k) + (0 if d is None else d.double()[:, None] * u.double())
    assert_close(y, y_ref, BARS[dtype])


@pytest.mark.parametrize("dtype", BARS)
def test_a_loud_constant_does_not_overflow(dtype):
    """All of a constant's energy meets in a few bins: M / sqrt(M) = 64 times the signal there."""
    way = PICKS[4096, dtype]
    k, u = torch.exp(-torch.arange(4096) / 300.0).expand(3, -1) / 300, torch.full((1, 3, 4096), 200.0).to(dtype)
    prepared = gpu.make(way, Filter(k))
    y = gpu.fftconv(u, prepared.tables, prepared.layout, launch=emulation.Emulator())
    assert_close(y, fftconv_ref(u, k), BARS[dtype])


@pytest.mark.parametrize("dtype", [HALF, FLOAT])
def test_rows_may_lie_gigabytes_apart(dtype, tmp_path, monkeypatch):
    """Addresses are 64 bits wide.  What lies between is a hole in a file, which takes no room."""
    way, apart = PICKS[256, dtype], (1 << 31) + 64
    memory = torch.from_file(str(tmp_path / "rows"), shared=True, size=2 * apart, dtype=dtype)
    u, result = (memory[at:].as_strided((2, 1, 256), (apart, 256, 1)) for at in (0, 4096))
    u.copy_(torch.randn(2, 1, 256))
    k = torch.randn(1, 256)
    prepared = gpu.make(way, Filter(k))
    with monkeypatch.context() as patch:
        patch.setattr(gpu.torch, "empty", lambda shape, dtype, device: result)
        y = gpu.fftconv(u, prepared.tables, prepared.layout, gate=u, launch=emulation.Emulator())
    assert y.data_ptr() == result.data_ptr()
    assert_close(y, fftconv_ref(u, k) * u.double(), BARS[dtype])


# --- no order, no race, no access astray -----------------------------------------------------------------------------

SAMPLE = [  # of every kind of kernel and access
    Case(real(HALF, (16, 16), rows=8, warps=1), SIGNALS["odd, gated"], batch=3, channels=3),
    Case(real(BFLOAT16, (16, 8, 16), warps=2), SIGNALS["gated"]),
    Case(
        real(HALF, (16, 8, 16), warps=2, masked=True, head=64),
        SIGNALS["odd, gated"],
        mask=MASKS["scattered"]((16, 8, 16)),
        head=50,
    ),
    Case(real(FLOAT, (32, 16), rows=4, warps=2), SIGNALS["odd"], batch=3, channels=3),
    HISTORY[1],
    HISTORY[2],
    Case(two_level(HALF), SIGNALS["odd, gated"], channels=2),
    Case(two_level(FLOAT, masked=True), WIDE_MASKED, mask=MASKS["comb"]((16, 16, 32)), channels=2),
    DIRECT[1],
    Case(real(HALF, (32, 32), rows=2, masked=True, head=32), mask=MASKS["comb"]((32, 32)), head=32),
    Case(
        real(HALF, (16, 16, 16), warps=4, masked=True, head=64),
        SIGNALS["odd, gated"],
        mask=MASKS["scattered"]((16, 16, 16)),
        head=50,
        channels=1,
    ),
    SLOW[0],
]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_the_order_of_threads_does_not_matter(case):
    """The emulator watches for races meanwhile."""
    first = emulation.Emulator()
    y, _ = convolved(case, first)
    for order, seed in (("reversed", 0), ("random", 1), ("random", 2)):
        again = emulation.Emulator(order, seed)
        assert torch.equal(convolved(case, again)[0], y)
        assert again.done == first.done


def without_barrier(number: int, folder):
    """The kernels with all barriers but one."""
    for path in (emulation.ROOT / "cuda").glob("*.cu*"):
        text = path.read_text()
        if path.name == "fftconv.cu":
            parts = text.split("barrier();")
            assert number < len(parts) - 1
            text = "barrier();".join(parts[: number + 1]) + "".join(parts[number + 1 : number + 2])
            text += "".join(f"barrier();{part}" for part in parts[number + 2 :])
        (folder / path.name).write_text(text)
    return folder / "fftconv.cu"


BARRIERS = (emulation.ROOT / "cuda" / "fftconv.cu").read_text().count("barrier();")


@pytest.mark.parametrize("number", range(BARRIERS))
def test_every_barrier_is_needed(number, tmp_path, monkeypatch):
    """And a missing one is told."""
    monkeypatch.setattr(emulation, "CONVOLUTION", without_barrier(number, tmp_path))
    monkeypatch.setattr(emulation, "FLAGS", tuple(f for f in emulation.FLAGS if not f.endswith("/cuda")))
    told = 0
    ways = real(HALF, (16, 8, 16), warps=2), real(HALF, (16, 16, 16), warps=2), two_level(HALF)  # the second has a core
    for case in (Case(way, channels=1) for way in ways):
        try:
            convolved(case, emulation.Emulator())
        except emulation.EmulatorError as error:
            assert "races" in str(error)
            told += 1
    assert told


SANITIZED = """
import json, sys
import emulation, test_gpu as test
from helpers import assert_close

libraries = json.loads(sys.argv[1])
for case in test.SAMPLE:
    y, y_ref = test.convolved(case, emulation.Emulator(libraries=libraries))
    assert_close(y, y_ref, test.BARS[case.way.dtype])
print("holds")
"""


def test_sanitizers_have_nothing_to_say():
    """Of reads and writes outside tensors and shared memory, and of undefined arithmetic."""
    libraries = emulation.compile_all((build for case in SAMPLE for build in case.builds), sanitize=True)
    run = emulation.sanitized("-c", SANITIZED, json.dumps(libraries))
    assert (run.returncode, run.stdout) == (0, "holds\n"), run.stderr[-4000:]


# --- work is what the planner reckons with ---------------------------------------------------------------------------


def tiled(way: Way) -> Tiling:
    return Tiling(way.factors, way.rows, way.warps, way.source)


def live_of(case: Case) -> Live | None:
    if case.mask is None:
        return None
    return Live.of(gpu.slots(case.mask.bins(), case.way.factors)[1].numpy())


ONE_BLOCK = [case for case in CASES if case.source == "real"]
COUNTED = [
    case for case in ONE_BLOCK if (not case.way.head and case.way.points <= 4096) or case.signals is SIGNALS["causal"]
]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", COUNTED, ids=label)
def test_multiplications_are_those_predicted(case):
    way, emulator = case.way, measured(case)
    blocks = -(-case.batch * case.channels // way.rows)
    predicted = tiled(way).mmas(live_of(case), way.dtype, case.length)
    assert emulator.mma == blocks * sum(predicted.values())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", HISTORY, ids=label)
def test_multiplications_of_blocks_are_those_predicted(case):
    way, emulator = case.way, measured(case)
    tiling_, rows = tiled(way), case.batch * case.channels * way.blocks(case.length)
    most = -(-rows // way.rows) * sum(tiling_.mmas(None, way.dtype).values())
    assert most - tiling_.mmas(None, way.dtype)["back 1"] * case.batch * case.channels <= emulator.mma <= most


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", [case for case in TWO_LEVEL if not case.way.head], ids=label)
def test_multiplications_in_two_levels_are_those_predicted(case):
    """Outer stages by tiles of 8 digits; below each of these the rows inside keep what any of the 8 does."""
    way, one, emulator = case.way, tiled(case.way), measured(case)
    outer = 2 * TwoLevel(way.radix, one).mmas(None, way.dtype, case.length)["outer"]
    digits, inside = way.radix, way.radix * sum(one.mmas(None, way.dtype).values())
    if case.mask is not None:
        digits, left = dispatch.left_by(case.mask, (way.radix, *way.factors), levels=2)
        most = digits * sum(one.mmas(left, way.dtype).values())  # what the planner reckons with
        tiles = gpu.slots(case.mask.bins(), (way.radix, *way.factors))[1].unflatten(0, (-1, 8)).any(1)
        lives = [Live.of(tile.numpy()) for tile in tiles if tile.any()]
        inside = sum(8 * sum(one.mmas(live, way.dtype).values()) for live in lives)
        assert digits == 8 * len(lives) and inside <= most
    assert emulator.mma == case.batch * case.channels * (outer * digits // way.radix + inside)


@pytest.mark.parametrize("way", [way for way in PLANNED if way.dtype == HALF], ids=lambda way: str(way.points))
def test_less_kept_costs_less(way):
    def work(mask: BlockMask | None) -> int:
        return measured(Case(replace(way, masked=mask is not None), mask=mask)).mma

    dense, full = work(None), work(BlockMask.full(way.points, way.factors))
    low = [work(BlockMask.low_pass(way.points, share, way.factors)) for share in (1 / 2, 1 / 8, 1 / 32)]
    assert dense == full > low[0] >= low[1] >= low[2]
    comb = [work(BlockMask.comb(way.points, share, way.factors)) for share in (1 / 2, 1 / 8)]
    assert dense >= comb[0] >= comb[1]
    if len(way.factors) > 2:  # with two factors of 16 the outer one is a single tile
        assert low[1] < 0.9 * dense and comb[1] < 0.6 * dense


@pytest.mark.parametrize("points", ROOFLINE)
def test_dense_work_is_near_the_roofline(points):
    """Floating-point operations of the emulated kernel, against those of the roofline's radices; fewer are welcome."""
    way, radices = planned(points, HALF), ROOFLINE[points]
    most = 1.15 * 16 * points * (sum(radices) - radices[0] // 2)
    assert 0 < planner.MMA_FLOPS * measured(Case(way, channels=way.rows)).mma / way.rows <= most


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", [case for case in DENSE if case.signals is SIGNALS["causal"]], ids=label)
def test_no_bank_conflicts(case):
    used, ideal = measured(case).done[0][1].wavefronts
    assert used == ideal if case.way.factors[0] != 48 else used <= 1.1 * ideal


TRANSFERRED = [  # all but heads, which read samples once more, and samples that come in words, as a mask's bits do
    case
    for case in CASES
    if (case.source in ("real", "history") or (case.source == "complex" and case.mask is None))
    and not (case.way.head or (case.source == "history" and case.signals.lookahead))
    and case.piece * case.way.dtype.itemsize != 4
    and case.length <= 8192
]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", TRANSFERRED, ids=label)
def test_bytes_are_those_predicted(case):
    """Of samples, gates, scratch and spectra, to the byte; a mask's spectra are as small as what it keeps."""
    way, gated, signals = case.way, case.signals.gated, case.batch * case.channels
    if way.source == "complex":
        two = TwoLevel(way.radix, tiled(way))
        predicted = two.global_bytes(case.length, way.dtype, gated)
    else:
        predicted = tiled(way).global_bytes(case.length, way.dtype, gated, live_of(case), skip=gated)
    blocks = way.blocks(case.length)
    padding = -signals * blocks % way.rows  # rows of the last block that no signal has load a spectrum
    spectra = predicted["spectrum"] * signals + predicted["spectrum"] // blocks * padding
    done = [counters for _, counters in measured(case).done]
    loaded = sum(counters.signals for counters in done)
    assert loaded == signals * (predicted["read"] + predicted["gates"]) + spectra
    assert sum(counters.stored for counters in done) == signals * predicted["written"]


@pytest.mark.parametrize("dtype", BARS)
def test_outer_digits_that_a_mask_drops_are_not_moved(dtype):
    """A comb of 1/8 leaves one tile of 8 outer digits out of two: half the scratch, half the spectra or less."""
    way = two_level(dtype)
    whole, comb = (
        sum(counters.signals + counters.stored for _, counters in measured(case).done)
        for case in (
            Case(way, channels=1),
            Case(replace(way, masked=True), mask=MASKS["comb"]((16, 16, 32)), channels=1),
        )
    )
    samples = 2 * way.points * dtype.itemsize
    assert comb - samples <= 0.5 * (whole - samples)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("case", [case for case in SLOW if case.way.dtype != BFLOAT16], ids=label)
def test_multiplications_of_slow_ways(case):
    """512 decimated samples see pieces of 31 rate + 8 rate, the window's width; 16 make 128 rate samples again."""
    way, emulator, rows = case.way, measured(case), case.batch * case.channels
    work = {build.entry: counters.mma for build, counters in emulator.done}
    low, products = decimated_length(case.length, way.rate), kernel.kind(way.dtype).products
    assert work["decimate"] == rows * products * 8 * -(-low // 512) * -(-39 * way.rate // 32)
    pieces = -(-case.length // (128 * way.rate)) * way.rate // 4
    assert work["interpolate"] == rows * products * 8 * pieces * (1 + (way.head // 32 + 1 if way.head else 0))
    inner = sum(tiled(way.inner).mmas(None, way.dtype, low).values())
    assert work["conv"] == -(-rows // way.inner.rows) * inner
    assert sum(work.values()) == emulator.mma


# --- the kernel's twin in plain tensors ------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "dtype"), [(1 << 15, torch.float64), (1 << 17, FLOAT), (1 << 20, FLOAT)])
def test_the_twin_takes_the_planned_steps(points, dtype):
    """Up to a million points, in the digits of the planner's two levels."""
    found = planner.best(CARD, points, "float16", 64, batch=1).tiling
    factors = found.factors if isinstance(found, Tiling) else (found.radix, *found.inner.factors)
    assert math.prod(factors) == points
    mask = BlockMask.full(points, factors, factors)
    u, k = torch.randn(1, 1, points - 5, dtype=dtype), torch.randn(1, points) / math.sqrt(points)
    assert_close(monarch_conv(u, k, mask), fftconv_ref(u, k), 1e-12 if dtype == torch.float64 else 1e-6)


# --- who takes the kernels -------------------------------------------------------------------------------------------


class OnCuda:
    """As much of a tensor on a GPU as `takes` looks at."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


@pytest.fixture
def no_warning_yet():
    gpu.warn.cache_clear()
    yield
    gpu.warn.cache_clear()


@pytest.fixture
def high_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("no_warning_yet")
def test_kernels_are_for_floats_on_a_gpu(monkeypatch, high_precision):
    monkeypatch.setattr(jit, "why_not", lambda device=None: None)
    monkeypatch.delenv("SPARSIFY_GPU", raising=False)
    assert all(gpu.takes(OnCuda(dtype)) for dtype in BARS)
    assert not gpu.takes(OnCuda(torch.float64)) and not gpu.takes(OnCuda(torch.int32))
    assert not gpu.takes(torch.empty(1, 1, 8, dtype=HALF))
    torch.set_float32_matmul_precision("highest")  # torch's default: two bfloat16 would be less than was asked for
    assert [gpu.takes(OnCuda(dtype)) for dtype in (HALF, BFLOAT16, FLOAT)] == [True, True, False]


@pytest.mark.usefixtures("no_warning_yet")
@pytest.mark.parametrize("missing", ["compiler", "driver", "device"])
def test_what_is_missing_is_told_once(monkeypatch, missing):
    """And nothing else breaks."""
    monkeypatch.delenv("SPARSIFY_GPU", raising=False)
    if missing != "device":
        monkeypatch.setattr(jit, "no_device", lambda: None)
        reason = (
            "cuda.bindings cannot be imported (No module named 'cuda'); pip install cuda-bindings nvidia-cuda-nvrtc"
        )
        compiles = missing == "driver"
        monkeypatch.setattr(jit, "compile_why_not", lambda: None if compiles else reason)
        monkeypatch.setattr(jit, "no_driver", lambda: "the CUDA driver cannot be used (gone); install NVIDIA's")
    elif torch.cuda.is_available():
        monkeypatch.setattr(jit, "no_device", lambda: "torch finds no CUDA device; see whether nvidia-smi does")
    with pytest.warns(RuntimeWarning, match=r"without its GPU kernels, through torch.fft: .*; \w+") as told:
        assert not gpu.takes(OnCuda(HALF))
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu.takes(OnCuda(HALF)) and not gpu.takes(OnCuda(BFLOAT16))


@pytest.mark.usefixtures("no_warning_yet")
def test_kernels_are_switched_off_without_a_word(monkeypatch):
    monkeypatch.setattr(jit, "why_not", lambda device=None: pytest.fail("nobody needs to know"))
    monkeypatch.setenv("SPARSIFY_GPU", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu.takes(OnCuda(HALF))


@pytest.mark.usefixtures("no_warning_yet")
def test_signals_longer_than_any_kernel_takes_go_through_torch():
    """And a warning says so, once."""
    k = torch.randn(1, 1 << 20)
    with pytest.warns(RuntimeWarning, match="through torch.fft: no block holds 1048576 .*up to 786432") as told:
        for _ in range(2):
            prepared = dispatch.prepare(Filter(k), 1 << 20, FLOAT, card=CARDS["sm_86"])
    assert len(told) == 1 and prepared.layout[0] != cpu.KERNEL
    band = Structure(BlockMask.low_pass(1 << 20, 1 / 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for known in (Filter(k[:, :1000]), Filter(k, structure=band)):  # in blocks, or at a lower rate
            prepared = dispatch.prepare(known, 1 << 20, FLOAT, card=CARDS["sm_86"])
            assert prepared.layout[0] == cpu.KERNEL


@pytest.mark.parametrize("case", [CASES[0], HISTORY[2], DIRECT[2], TWO_LEVEL[-1]], ids=label)
def test_a_way_is_numbers_and_back(case):
    way = replace(case.way, lookahead=5, resident=3)
    numbers = way.to_ints()
    assert all(type(number) is int for number in numbers) and numbers[0] == cpu.KERNEL
    assert Way.from_ints(numbers) == way
    assert Way.from_ints(list(numbers)).builds() == way.builds()


def test_structures_are_those_of_the_kernels():
    """The emulator compares sizes at every launch; here one that does not fit is refused."""
    case = Case(PLANNED[0])
    prepared = gpu.make(case.way, Filter(torch.randn(3, 256)))

    class Longer(Call):
        _fields_ = (("more", ctypes.c_int * 2),)

    def launch(build, grid, call):
        emulation.build(emulation.CONVOLUTION, build.macros).run(build.entry, Longer(), grid, build.threads)

    with pytest.raises(emulation.EmulatorError, match="got a structure of"):
        gpu.fftconv(torch.randn(1, 3, 256).half(), prepared.tables, prepared.layout, launch=launch)


def test_signals_that_come_in_pieces():
    """Their size decides which build runs."""

    def half(length: int) -> torch.Tensor:
        return torch.empty(2, 3, length, dtype=HALF)

    assert [gpu.piece(half(length)) for length in (64, 60, 62, 63)] == [8, 2, 2, 1]
    assert gpu.piece(half(65)[..., :64]) == 1 and gpu.piece(half(66)[..., :64]) == 2  # rows at odd places
    assert [gpu.piece(half(72)[..., n : n + 64]) for n in (8, 4, 3)] == [8, 2, 1]
    assert [gpu.piece(half(64), lookahead) for lookahead in (8, 4, 5)] == [8, 2, 1]
    assert [gpu.piece(torch.empty(2, 3, 68)[..., n:]) for n in (4, 2, 1)] == [8, 1, 1]
    assert gpu.rowwise(u := torch.empty(2, 3, 64)[..., 3:]) is u
    for view in VIEWS:
        u = drawn((2, 3, 40), view, HALF)
        assert gpu.rowwise(u).stride(-1) == 1 and torch.equal(gpu.rowwise(u), u)


# --- on a GPU --------------------------------------------------------------------------------------------------------


def layer(seqlen: int, plan: FilterPlan | None = None, channels: int = 8) -> LongConv:
    kept = (plan or FilterPlan("dense")).apply(torch.randn(channels, seqlen) / math.sqrt(seqlen))
    return LongConv(kept)


SOME = {  # every source
    "one block": (4096, None),
    "two levels": (1 << 17, None),
    "partial": (1 << 16, FilterPlan("partial", 2000)),
    "few taps": (4096, FilterPlan("partial", 16)),
    "masked": (8192, FilterPlan("frequency-sparse", None, BlockMask.low_pass(8192, 1 / 8))),
    "split": (8192, FilterPlan("split", 64, BlockMask.low_pass(8192, 1 / 8))),
}


@pytest.fixture
def quiet(high_precision):
    """No gradients, and float32 for the kernels."""
    with torch.no_grad():
        yield


@pytest.mark.gpu
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", [*BARS, torch.float64])
@pytest.mark.parametrize("seqlen", [1, 7, 256, 1000, 4096, 10007, 32768, 100_000, 1 << 20])
def test_long_conv(seqlen, dtype):
    conv = layer(seqlen)
    for batch in (1, 3) if seqlen < 1 << 19 else (1,):
        u = torch.randn(batch, 8, seqlen, device="cuda").to(dtype)
        y = conv(u)
        assert conv.prepare(u).layout[0] == (cpu.KERNEL if dtype in BARS else cpu.TORCH)
        assert y.dtype == dtype and y.device == u.device
        assert_close(y, fftconv_ref(u.cpu(), conv.filter.k), BARS.get(dtype, 1e-5))


@pytest.mark.gpu
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("seqlen", [4096, 8192])
def test_plans_through_long_conv(plan, seqlen, dtype):
    assert_close(*through_long_conv(PLANS[plan](seqlen), seqlen, dtype, 32, device="cuda"), BARS[dtype])


@pytest.mark.gpu
@torch.no_grad()
def test_at_highest_precision_float32_is_left_to_torch():
    assert torch.get_float32_matmul_precision() == "highest"
    conv, u = layer(3000), torch.randn(2, 8, 3000, device="cuda")
    assert conv.prepare(u).layout[0] == cpu.TORCH
    assert_close(conv(u), fftconv_ref(u.cpu(), conv.filter.k), 1e-6)


@pytest.mark.gpu
@pytest.mark.plain_empty
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", SOME)
def test_a_captured_graph_replays(name):
    seqlen, plan = SOME[name]
    conv, u, gate = layer(seqlen, plan), *(torch.randn(4, 8, seqlen, device="cuda").half() for _ in range(2))
    skip = torch.randn(8, device="cuda")
    conv(u, gate, skip, gate)  # compiled and loaded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = conv(u, gate, skip, gate)
    for _ in range(2):
        u.copy_(torch.randn_like(u))
        y.fill_(torch.nan)
        graph.replay()
        assert torch.equal(y, conv(u, gate, skip, gate))
    g = u.cpu().double() * gate.cpu().double()
    y_ref = (fftconv_ref(g, conv.filter.to("cpu")) + skip.cpu().double()[:, None] * g) * gate.cpu().double()
    assert_close(y, y_ref, BARS[HALF])


@pytest.mark.gpu
@pytest.mark.plain_empty
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", SOME)
def test_streams_do_not_meet(name):
    seqlen, plan = SOME[name]
    conv, us = layer(seqlen, plan), torch.randn(2, 16, 8, seqlen, device="cuda").half()
    ys = [conv(u) for u in us]
    streams, found = [torch.cuda.Stream() for _ in us], []
    torch.cuda.synchronize()
    for _ in range(10):
        for stream, u in zip(streams, us, strict=True):
            with torch.cuda.stream(stream):
                found.append(conv(u))
    torch.cuda.synchronize()
    assert all(torch.equal(y, ys[i % 2]) for i, y in enumerate(found))


@pytest.mark.gpu
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("name", SOME)
def test_twice_the_same_to_the_bit(name, dtype):
    seqlen, plan = SOME[name]
    conv, u = layer(seqlen, plan), torch.randn(16, 8, seqlen, device="cuda").to(dtype)
    y = conv(u)
    assert all(torch.equal(conv(u), y) for _ in range(20))


@pytest.mark.gpu
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("case", SAMPLE, ids=label)
def test_a_gpu_computes_as_the_emulator(case):
    """Nearly: a tensor core adds up sums in an order and a precision of its own."""
    y, _ = convolved(case, device="cuda")
    twin, _ = convolved(case, emulation.Emulator())
    assert_close(y, twin, BARS[case.way.dtype] / 2)


@pytest.mark.gpu
@pytest.mark.plain_empty
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", SOME)
def test_the_host_waits_for_nothing(name):
    seqlen, plan = SOME[name]
    conv, u = layer(seqlen, plan), torch.randn(4, 8, seqlen, device="cuda").half()
    skip = torch.randn(8, device="cuda")
    y = conv(u, u, skip, u)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = conv(u, u, skip, u)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(y, again)


@pytest.mark.gpu
@pytest.mark.plain_empty
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", SOME)
def test_nothing_is_allocated_but_the_result(name):
    """And, for two levels, the scratch between them."""
    seqlen, plan = SOME[name]
    conv, u = layer(seqlen, plan), torch.randn(4, 8, seqlen, device="cuda").half()
    skip = torch.randn(8, device="cuda")
    way = way_from(tuple(conv.prepare(u).layout))
    conv(u, u, skip, u)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    y = conv(u, u, skip, u)
    taken = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    result = y.numel() * y.element_size()
    if not isinstance(way, Way):  # a signal at a lower rate goes in and comes out, too
        assert result < taken < 3 * result
    else:
        scratch = 4 * len(u) * 8 * way.points // way.radix * way.outer if way.source == "complex" else 0
        assert taken == result + scratch


@pytest.mark.gpu
@pytest.mark.usefixtures("quiet")
def test_more_rows_than_a_grid_is_high():
    conv = layer(256, channels=7)
    u = torch.randn(10_001, 7, 256, device="cuda").half()
    assert_close(conv(u), fftconv_ref(u.cpu(), conv.filter.k), BARS[HALF])


@pytest.mark.gpu
@pytest.mark.usefixtures("quiet")
def test_compiled_and_cast(monkeypatch):
    conv, u = layer(1000), torch.randn(2, 8, 1000, device="cuda").half()
    y = conv(u)
    assert torch.equal(torch.compile(conv, fullgraph=True)(u), y)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(conv(u), y)
    monkeypatch.setenv("SPARSIFY_GPU", "0")
    assert_close(conv(u), y, BARS[HALF])


@pytest.mark.gpu
def test_gradients_do_without_the_kernels():
    conv, u = layer(500), torch.randn(1, 8, 500, device="cuda", requires_grad=True)
    weight = torch.randn(1, 8, 500, device="cuda")
    (grad,) = torch.autograd.grad((conv(u) * weight).sum(), u)
    assert_close(grad, fftconv_ref(weight.cpu().flip(-1), conv.filter.k).flip(-1), 1e-5)
