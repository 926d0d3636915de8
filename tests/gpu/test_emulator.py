"""The emulator computes what a GPU would, sees what one would not forgive, and counts what it did."""

import ctypes
import re

import emulation
import numpy as np
import pytest
import torch
from emulation import ORDERS, Access, EmulatorError
from helpers import ROOT, assert_close, relative_l2

TOY = "tests/support/kernels/emulator/toy.cu"
ACCUMULATED = 1e-6  # relative L2 of a sum in float32 of exact products


class Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "c")),
        *((name, ctypes.c_int) for name in ("n", "k")),
    )


class Conversions(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("source", "low", "high", "half", "bfloat16"))


class Copies(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "chunks", "pairs", "words", "shorts", "selected")),
        *(("offset", ctypes.c_int), ("selector", ctypes.c_uint)),
    )


class Mistake(ctypes.Structure):
    _fields_ = (("y", ctypes.c_void_p), *((name, ctypes.c_int) for name in ("what", "stride", "readers")))


WHATS = ("nothing", "divergent barrier", "two barriers", "lonely mma", "two mmas", "race", "unwritten")


@pytest.fixture
def toy() -> emulation.Kernels:
    return emulation.build(TOY)


def multiply(kernels, a, b, order="forward", seed=0, watch_races=True):
    """a b by the toy kernel, and what it counted.  a: (M, K), b: (K, N), multiples of 16."""
    c = torch.full((len(a), b.shape[1]), torch.nan)
    params = Product(a.data_ptr(), b.data_ptr(), c.data_ptr(), b.shape[1], b.shape[0])
    grid = b.shape[1] // 16, len(a) // 16
    counters = kernels.run("product", params, grid, 64, 1024, order=order, seed=seed, watch_races=watch_races)
    return c, counters


def mistake(kernels, what, stride=1, readers=64, shared_bytes=1024, **options):
    """What 64 threads made of `what`, and what was counted."""
    y = torch.full((64,), torch.nan)
    params = Mistake(y.data_ptr(), WHATS.index(what), stride, readers)
    return y, kernels.run("mistake", params, 1, 64, shared_bytes, **options)


# What is computed.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_is_right_in_every_order(dtype):
    kernels = emulation.build(TOY, {"TOY_BFLOAT16": int(dtype == torch.bfloat16)})
    a, b = torch.randn(48, 80).to(dtype), torch.randn(80, 32).to(dtype)
    c_ref = a.double() @ b.double()
    c, counters = multiply(kernels, a, b)
    assert_close(c, c_ref, ACCUMULATED)
    assert relative_l2(torch.zeros_like(c), c_ref) > 0.5
    assert relative_l2((a @ b).double(), c_ref) > 10 * ACCUMULATED  # a sum rounded to 16 bits would be seen
    for order, seed in (("reversed", 0), *(("random", seed) for seed in range(5))):
        again, recounted = multiply(kernels, a, b, order, seed)
        assert torch.equal(c, again)
        assert counters == recounted


def test_one_type_is_not_taken_for_the_other(toy):
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    c, _ = multiply(toy, a, b)
    assert not relative_l2(c, a.double() @ b.double()) < 0.5


def test_infinities_and_subnormals_pass_through_a_product(toy):
    a, b = torch.zeros(16, 16).half(), torch.eye(16).half()
    a[0, 0], a[3, 5], a[5, 5] = 2.0**-24, 65504.0, torch.inf
    c, _ = multiply(toy, a, b)
    assert torch.equal(c[:5], a[:5].float())
    assert c[5, 5] == torch.inf
    assert c[5, :5].isnan().all()  # infinity times zero


def convert(kernels, words):
    """low, high (float32 bits), half, bfloat16 (two 16-bit numbers each) of uint32 words, a multiple of 256."""
    source = np.ascontiguousarray(words, "u4")
    results = {name: np.zeros_like(source) for name in ("low", "high", "half", "bfloat16")}
    params = Conversions(source.ctypes.data, *(result.ctypes.data for result in results.values()))
    kernels.run("convert", params, len(source) // 256, 256)
    return results


def test_every_half_becomes_its_float(toy):
    codes = np.arange(1 << 16, dtype="u4")
    results = convert(toy, codes | (codes ^ 0xFFFF) << 16)
    for name, part in (("low", codes), ("high", codes ^ 0xFFFF)):
        number, number_ref = results[name].view("f4"), part.astype("u2").view("f2").astype("f4")
        nan = np.isnan(number_ref)
        assert np.array_equal(np.isnan(number), nan)
        assert np.array_equal(results[name][~nan], number_ref.view("u4")[~nan])  # the sign of zero too


def test_floats_round_to_the_nearest_even(toy):
    """All 16-bit numbers, what lies halfway between neighbours, the floats next to both, and any float."""
    bits = [np.random.default_rng(0).integers(0, 1 << 32, 1 << 15, "u4")]
    codes = np.arange(1 << 15, dtype="u4")
    halves = codes[:0x7C00].astype("u2").view("f2").astype("f8")
    for numbers in (halves, (codes[:0x7F80] << 16).view("f4").astype("f8")):
        middles = (numbers[1:] + numbers[:-1]) / 2
        last = np.array([2 * numbers[-1] - middles[-1]])  # half a step above the largest: overflows
        for x in (numbers, middles, last):
            near = x.astype("f4").view("u4")
            bits += [near, near + 1, near[near > 0] - 1]
    bits += [np.array([0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF], "u4")]
    words = np.concatenate(bits)
    words = np.concatenate([words, np.zeros(-len(words) % 256, "u4")])
    results = convert(toy, words)
    with np.errstate(over="ignore", invalid="ignore"):
        half = words.view("f4").astype("f2").view("u2")
    bfloat16 = torch.from_numpy(words.view("f4").copy()).bfloat16().view(torch.int16).numpy().view("u2")
    nan = np.isnan(words.view("f4"))
    for name, expected in (("half", half), ("bfloat16", bfloat16)):
        low, high = results[name] & 0xFFFF, results[name] >> 16
        assert np.array_equal(low[~nan], expected[~nan])
        assert np.array_equal(high[~nan], expected[~nan] ^ 0x8000)
        assert set(low[nan]) | set(high[nan]) == {0x7FFF}  # PTX has one NaN here


def copies(kernels, offset=0, selector=0x3210):
    """x as int32, what each width copied of it, by name, and what was counted."""
    x = torch.randint(-(1 << 31), 1 << 31, (132,)).int()
    sizes = {"chunks": 128, "pairs": 64, "words": 32, "shorts": 16, "selected": 32}
    y = {name: torch.zeros(size, dtype=torch.int32) for name, size in sizes.items()}
    params = Copies(x.data_ptr(), *(part.data_ptr() for part in y.values()), offset, selector)
    return x, y, kernels.run("copy", params)


def test_memory_moves_in_every_width(toy):
    x, y, counters = copies(toy, offset=16)
    for name in ("chunks", "pairs", "words", "shorts"):
        assert torch.equal(y[name], x[4 : 4 + len(y[name])]), name
    assert counters.loaded == 32 * (16 + 8 + 4 + 2 + 4 + 4)
    assert counters.stored == 32 * (16 + 4 + 4 + 4 + 2 + 4)


@pytest.mark.parametrize("offset", [1, 4, 8])
def test_a_crooked_address_is_told(toy, offset):
    with pytest.raises(EmulatorError, match=r"toy.cu:\d+: thread 0 .*load_chunk at 0x\w+, which is no multiple of 16"):
        copies(toy, offset)


def test_bytes_are_selected(toy):
    x, y, _ = copies(toy, selector=0x7104)
    source = x[:2].numpy().tobytes()
    assert y["selected"][0].numpy().tobytes() == bytes(source[i] for i in (4, 0, 1, 7))
    with pytest.raises(EmulatorError, match="copy a sign"):
        copies(toy, selector=0x3218)


# What goes wrong.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "divergent barrier",
            r"\(0, 0, 0\) cannot go on: 40 threads wait at a barrier .*, 24 threads have returned",
        ),
        (
            "two barriers",
            r"toy.cu:\d+: thread \d+ .*to this barrier while other threads wait at that of toy.cu:\d+",
        ),
        ("lonely mma", r"1 thread waits at a barrier \(thread 7 at toy.cu:\d+\), 31 threads wait at an mma"),
        ("two mmas", r"comes to this mma while other lanes of its warp wait at toy.cu:\d+"),
        ("race", r"races: it writes byte \d+ .*, which another lane of its warp reads at toy.cu:\d+"),
    ],
)
def test_a_mistake_is_told(toy, order, what, message):
    with pytest.raises(EmulatorError, match=message):
        mistake(toy, what, order=order)
    y, _ = mistake(toy, "nothing")  # and a failed launch leaves nothing behind
    assert torch.equal(y, torch.arange(64.0))


def test_warps_race_too(toy):
    with pytest.raises(EmulatorError, match=r"races: .* which another warp reads"):
        mistake(toy, "race", stride=32)


def test_a_thread_does_not_race_with_itself(toy):
    y, _ = mistake(toy, "race", stride=0)
    assert torch.equal(y, torch.arange(64.0))


def test_a_race_shows_in_the_numbers(toy):
    """Where nobody watches, the order decides."""
    forward, _ = mistake(toy, "race", stride=32, watch_races=False)
    reversed_, _ = mistake(toy, "race", stride=32, watch_races=False, order="reversed")
    assert not torch.equal(forward, reversed_)


def test_what_nobody_wrote_is_nan(toy):
    y, _ = mistake(toy, "unwritten")
    assert y.isnan().all()


def test_a_missing_barrier_is_seen():
    kernels = emulation.build(TOY, {"TOY_BARRIER": ""})
    a, b = torch.randn(16, 64).half(), torch.randn(64, 16).half()
    with pytest.raises(EmulatorError, match=r"races: .*toy.cu:\d+"):
        multiply(kernels, a, b)
    products = [multiply(kernels, a, b, order, watch_races=False)[0] for order in ("forward", "reversed")]
    assert all(relative_l2(c, a.double() @ b.double()) > 0.1 or c.isnan().any() for c in products)


def test_an_overrun_is_told_without_a_sanitizer(toy):
    with pytest.raises(EmulatorError, match=r"toy.cu:\d+: thread 63 .*shared_store at byte 1008 of 1008"):
        mistake(toy, "nothing", shared_bytes=1008)
    with pytest.raises(EmulatorError, match=r"thread 0 of block .*shared_store at byte 0 of 8"):
        mistake(toy, "nothing", shared_bytes=8)


SANITIZED = """
import sys, torch
import emulation, test_emulator as test

kernels = emulation.Kernels(emulation.Path(sys.argv[1]))
a, b = torch.randn(32, 64).half(), torch.randn(64, 32).half()
for order in emulation.ORDERS:
    c, _ = test.multiply(kernels, a, b, order)
    test.assert_close(c, a.double() @ b.double(), test.ACCUMULATED)
for what in test.WHATS[1:6]:
    try:
        test.mistake(kernels, what)
    except emulation.EmulatorError:
        continue
    sys.exit(f"{what} was not seen")
print("holds", flush=True)
test.mistake(kernels, "nothing", shared_bytes=1008)
"""


def test_the_sanitizer_names_the_line_of_an_overrun():
    """And finds nothing wrong with what is right."""
    run = emulation.sanitized("-c", SANITIZED, str(emulation.compile_source(TOY, sanitize=True)))
    assert run.stdout == "holds\n", run.stderr[-4000:]
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr
    lines = (ROOT / TOY).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "shared_store(memory + i * call.stride" in text)
    assert f"toy.cu:{line}" in run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 48}, "got 48 threads; a block has a multiple of 32 up to 1024"),
        ({"threads": 128}, "got 128 threads; this kernel is compiled for at most 64"),
        ({"grid": 0}, r"no GPU has a grid of \(0, 1, 1\)"),
        ({"shared_bytes": 1 << 20}, "got 1048576 bytes of shared memory; no GPU has more than 232448 a block"),
    ],
)
def test_an_impossible_launch_is_refused(toy, options, message):
    with pytest.raises(EmulatorError, match=message):
        toy.run("mistake", Mistake(), **options)


def test_other_arguments_are_refused(toy):
    with pytest.raises(EmulatorError, match="got a structure of 32 bytes; the kernel's has 24"):
        toy.run("mistake", Product(), threads=64)
    with pytest.raises(ValueError, match="no order 'sideways'; known: forward, reversed, random"):
        toy.run("mistake", Mistake(), order="sideways")
    with pytest.raises(ValueError, match=r"no kernel 'mistakes' in toy.*; put EXPORT\(mistakes, Call\) behind it"):
        toy.run("mistakes", Mistake())


# What is counted.


def test_the_counters_of_a_product_are_exact(toy):
    """As counted by hand: blocks of 64 threads, 16 by 16 results and 16 terms at a time."""
    rows, columns, terms = 3, 2, 5  # of 16
    a, b = torch.randn(16 * rows, 16 * terms).half(), torch.randn(16 * terms, 16 * columns).half()
    _, counters = multiply(toy, a, b)
    steps = rows * columns * terms
    assert counters.mma == 2 * steps
    assert counters.barriers == 2 * steps
    # 16 rows of 32 bytes each, in lines of 160 or 64: one sector a row, and both warps copy a matrix each
    assert counters.access["load_chunk"] == Access(64 * steps, 1024 * steps, 2 * steps, 32 * steps, 32 * steps)
    # a lane's four results in four instructions: 8 rows of 4 numbers at a distance of 8 bytes
    words = 256 * rows * columns
    assert counters.access["store_word"] == Access(words, 4 * words, words // 32, words // 4, words // 8)
    assert counters.access["shared_store"] == Access(64 * steps, 1024 * steps, 2 * steps, 8 * steps, 8 * steps)
    # 12 numbers a lane, a load each: of a, a quarter's 8 lanes read 2 rows, of b 4 at distances of 64 bytes
    loads = counters.access["shared_load"]
    assert (loads.calls, loads.instructions, loads.ideal) == (64 * 12 * steps, 2 * 12 * steps, 2 * 12 * 4 * steps)
    assert loads.cost == 2 * steps * (8 * 4 + 4 * 4 * 2)
    assert counters.loaded == 1024 * steps
    assert counters.stored == 4 * words


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("stride", "wavefronts"), [(0, 1), (1, 1), (2, 2), (3, 1), (4, 4), (8, 8), (9, 1), (16, 8)])
def test_bank_conflicts_are_counted(toy, stride, wavefronts, order):
    """Chunks at a distance: what of a quarter warp falls on the same banks comes one after another."""
    _, counters = mistake(toy, "nothing", stride, shared_bytes=16 * 1024, watch_races=stride > 0, order=order)
    store, load = counters.access["shared_store"], counters.access["shared_load"]
    assert (store.calls, store.instructions, store.cost, store.ideal) == (64, 2, 8 * wavefronts, 8)
    assert (load.calls, load.instructions, load.cost, load.ideal) == (128, 4, 16 * wavefronts, 16)
    assert counters.wavefronts == (24 * wavefronts, 24)


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_that_sit_out_leave_the_others_together(toy, order):
    _, counters = mistake(toy, "nothing", readers=12, order=order)
    load = counters.access["shared_load"]
    assert (load.calls, load.instructions, load.cost, load.ideal) == (64 + 12, 2 + 1, 8 + 2, 8 + 2)


# How it is compiled.


def test_a_library_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setattr(emulation, "CACHE", tmp_path)
    source = tmp_path / "one.cu"
    text = '#include "ptx.cuh"\nstruct Call { word* y; };\nKERNEL(32, 1) one(Call call) { store_word(call.y, SIZE); }\n'
    source.write_text(text + "EXPORT(one, Call)\n")

    def compiled(**macros):
        emulation._compile.cache_clear()
        return emulation.compile_source(source, macros)

    first = compiled(SIZE=1)
    made = first.stat().st_mtime_ns
    assert compiled(SIZE=1) == first
    assert first.stat().st_mtime_ns == made
    assert compiled(SIZE=2) != first
    source.write_text(text + "\nEXPORT(one, Call)\n")
    assert compiled(SIZE=1) != first
    with pytest.raises(EmulatorError, match="SIZE"):
        compiled()


def test_every_wrapper_has_its_twin():
    """What the kernels may call on a GPU, they may call here, with as many arguments."""
    header = ROOT / "cuda" / "ptx.cuh"
    function = re.compile(r"^(?:DEVICE|inline) (\w+) (\w+)\((.*?)\) \{", re.MULTILINE)

    def declared(text):
        parts = (
            (kind, name, arguments.replace("EMULATOR_SITE", "")) for kind, name, arguments in function.findall(text)
        )
        return {(kind, name, len([a for a in arguments.split(",") if a.strip()])) for kind, name, arguments in parts}

    ours = (emulation.FOLDER / "emulator.h").read_text()
    machine = header.read_text().split("#else", 1)[1]
    assert len(declared(machine)) >= 18
    assert declared(machine) <= declared(ours)
    for kind in (r"^#define (\w+)", r"^struct (.*?);? *(?://.*)?$"):
        assert set(re.findall(kind, machine, re.MULTILINE)) <= set(re.findall(kind, ours, re.MULTILINE))
