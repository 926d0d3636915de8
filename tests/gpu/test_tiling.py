"""Which kernel fits: counts by hand, the search against brute force, bank conflicts by simulation, known boundaries."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from convolutions import MANY, ROOFLINE

from sparsify.gpu import devices, mma_operands, planner
from sparsify.gpu.bank_swizzle import accesses, conflicts, fold, swizzle, wavefronts
from sparsify.gpu.devices import CARDS, Card
from sparsify.gpu.planner import Problem, solve
from sparsify.gpu.tiling import DTYPES, FUSED, SOURCES, Live, Tiling, TwoLevel, slot_orders

H200, A6000 = CARDS["sm_90"], CARDS["sm_86"]


def flops(factors):
    """Of a row: four real products a complex one, two where a side is real."""
    return 16 * math.prod(factors) * (sum(factors) - factors[0] // 2)


# --- counts --------------------------------------------------------------------------------------------------------


def test_counts_of_two_factors_by_hand():
    one = Tiling((16, 16), rows=4)
    # a unit of 1 step, 2 tiles and 8 times 8 columns; 4 units of 2 steps and 4 tiles; 2 units of 2 steps and 4 times 8
    assert one.mmas() == {"stage 1": 16, "inner": 32, "inner back": 32, "back 1": 16}
    assert one.units == {"stage 1": 1, "inner": 4, "back 1": 2}
    assert one.shared_bytes("float16") == 4096 and one.shared_bytes(torch.float32) == 8192
    assert one.trips() == 4 and one.results() == 3
    assert sum(one.mmas(dtype="float32").values()) == 3 * sum(one.mmas().values())


def test_counts_of_three_factors_by_hand():
    one = Tiling((16, 16, 16))
    # stage 1: 4 units of 1 x 2 x 8; stage 2: 8 units of 2 x 2 x 4; inner: 16 units of 2 x 4
    assert one.mmas() == {"stage 1": 64, "stage 2": 128, "inner": 128, "inner back": 128, "back 2": 128, "back 1": 64}
    assert one.trips(dtype="float32") == 8 and one.results(dtype="float32") == 5
    assert one.trips() == 4 and one.results() == 2 + 3 * FUSED  # the last two stages stay in registers
    kept = np.zeros((16, 16, 16), dtype=bool)
    kept[0, 0, 0] = True  # one tile on each axis: 8 of 16, all 16, 8 of 16
    live = Live.of(kept)
    assert live.pairs == (1, 1, 1) and Live.dense((16, 16, 16)).pairs == (2, 2, 4)
    # half of stage 1's tiles; half of stage 2's units, whole; half of the inner units with half of their tiles
    assert one.mmas(live) == {"stage 1": 32, "stage 2": 64, "inner": 32, "inner back": 32, "back 2": 64, "back 1": 32}
    assert one.trips(live, "float32") == 4 and one.results(live, "float32") == 2 * (1 / 2 + 1 / 2) + 1 / 4
    assert one.trips(live) == 2 and one.results(live) == 2 / 2 + (2 / 2 + 1 / 4) * FUSED


def test_padding_is_not_multiplied():
    one = Tiling((48, 32), rows=2)  # 16 samples x 32 columns a step
    dense, padded = one.mmas(), one.mmas(seqlen=513)
    assert padded["stage 1"] * 3 == dense["stage 1"] * 2 and padded["back 1"] * 3 == dense["back 1"] * 2
    assert padded["inner"] == dense["inner"]
    assert replace(one, source="history").mmas(seqlen=513) == replace(one, source="history").mmas()


@pytest.mark.parametrize("factors", planner.DOMAIN.factors)
def test_multiplications_add_up(factors):
    one = Tiling(factors, rows=4)
    assert sum(one.mmas().values()) * planner.MMA_FLOPS == 4 * flops(factors)
    m, n = one.points, factors[0]
    complex_ends = 16 * m * sum(factors)  # real ends save half of a stage
    assert sum(replace(one, source="complex").mmas().values()) * planner.MMA_FLOPS == 4 * complex_ends
    assert sum(replace(one, source="history").mmas().values()) * planner.MMA_FLOPS == 4 * (complex_ends - 4 * m * n)


@pytest.mark.parametrize("factors", [(16, 16), (48, 32), (16, 8, 16), (16, 16, 32), (32, 32, 16), (16, 8, 8, 16)])
def test_masked_counts_are_those_of_the_kernels_bit_sets(factors):
    generator = np.random.default_rng(0)
    for share in (0.001, 0.02, 0.3):
        kept = generator.random(factors) < share
        kept.flat[5] = True
        one, behind = Tiling(factors, rows=4), math.prod(factors[1:])
        masks = mma_operands.Stages.natural(factors).live(torch.from_numpy(kept))
        bits = [np.array([int(word).bit_count() for word in table]) for table in masks]
        counted = {"stage 1": 4 * behind // 8 * int(bits[0].sum()) * (factors[0] // 16)}
        for i, size in enumerate(factors[1:-1], 1):  # a word for 8 prefixes of S columns
            counted[f"stage {i + 1}"] = 4 * int(bits[i].sum()) * math.prod(factors[i + 1 :]) * (size // 8)
        counted["inner"] = 4 * int(bits[-1].sum()) * factors[-1] // 4  # a word for 16 rows
        found = one.mmas(Live.of(kept))
        assert {name: found[name] for name in counted} == counted
        assert [found[name.replace("stage", "back")] for name in counted if name != "inner"] == [
            n for name, n in counted.items() if name != "inner"
        ]
        assert found["inner back"] == found["inner"]


def test_bytes_by_hand():
    one = Tiling((16, 16, 16))
    assert one.global_bytes(4000, "float16") == {"read": 8000, "written": 8000, "gates": 0, "spectrum": 16384}
    assert one.global_bytes(4000, "float32", gated=True)["gates"] == 32000
    cut = replace(one, source="history")  # 10000 samples: 3 blocks, of which 2 read the 4096 before them
    found = cut.global_bytes(10000, "float16", gated=True)
    assert found == {"read": 2 * 18192, "written": 20000, "gates": 2 * 28192, "spectrum": 3 * 16384}
    live = Live((1, 1, 1))
    assert one.global_bytes(4000, "float16", live=live)["spectrum"] == 16384 // 4
    assert one.global_bytes(4000, "float16", live=live, skip=True)["read"] == 16000
    assert one.global_bytes(4000, "float16", skip=True)["read"] == 8000  # the spectrum takes it along
    two = TwoLevel(16, replace(one, source="complex"))
    moved = two.global_bytes(65536, "float16")
    assert sum(moved.values()) == 65536 * (2 + 4 + 4 + 4 + 4 + 2 + 4)  # 20 a point, and the spectrum
    assert two.scratch_bytes("float32") == 65536 * 8 and two.points == 65536
    assert two.mmas()["outer"] == 65536 * 16 // 1024 and two.mmas(seqlen=100)["outer"] == 65536 * 16 // 1024


# --- masks ---------------------------------------------------------------------------------------------------------


def low_pass(factors, cut):
    """Bins below and above, by digits: f = f1 + N1 f2 + .."""
    n = math.prod(factors)
    f = np.arange(n).reshape(factors[::-1]).transpose()
    return (f < cut) | (f >= n - cut)


def test_both_ends_of_the_axis_share_tiles():
    kept = low_pass((16, 16, 32), 2 * 256)  # 2 of 32 digits at either end
    assert Live.of(kept).pairs == (2, 2, 4)  # in natural order two tiles of the inner axis under each prefix
    orders = slot_orders(kept)
    assert orders[2][:4] == (0, 1, 30, 31) and orders[0] == orders[1] == tuple(range(16))
    assert Live.of(kept[np.ix_(*orders)]).pairs == (2, 2, 2)  # one


def test_digits_of_one_class_lie_together():
    kept = low_pass((16, 16, 16), 300)  # not a whole number of columns
    orders = slot_orders(kept)
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[2][:2] == (0, 15) and set(orders[2][:4]) == {0, 15, 1, 14}  # the full columns, then parts of columns
    rows = kept[:, :, list(orders[2])]
    assert not rows[:, :, 4:].any() and Live.of(rows).pairs[-1] < Live.of(kept).pairs[-1]
    scattered = np.zeros((16, 16, 16), dtype=bool)
    scattered[1::5, ::3, 2::7] = True  # a product: its digits come first on each axis
    orders = slot_orders(scattered.tolist())
    assert [order[:3] for order in orders] == [(1, 6, 11), (0, 3, 6), (2, 9, 0)]
    assert Live.of(scattered[np.ix_(*orders)]).pairs == (1, 1, 1)


def test_refused_masks():
    with pytest.raises(ValueError, match="keeps nothing"):
        Live.of(np.zeros((16, 16), dtype=bool))
    with pytest.raises(ValueError, match="whole tiles"):
        Live.of(np.ones((16, 12), dtype=bool))


# --- swizzle -------------------------------------------------------------------------------------------------------


def lines(one):
    """Most loaded of the eight lines of banks, for each access of every pattern: simulated, nothing left out."""
    images, worst = dict(swizzle(one)), Counter()
    for name, chunks in accesses(one):
        places = {chunk ^ fold(chunk, images) for chunk in chunks}
        worst[name] = max(worst[name], *Counter(place % 8 for place in places).values())
    return worst


def admissible(limit):
    """Every kernel whose data fit, rows beyond 8 left out: lanes do not reach that far."""
    for factors, source, rows in product(planner.DOMAIN.factors, SOURCES, (1, 2, 4, 8)):
        one = Tiling(factors, rows, 1, source)
        if rows * one.points <= limit and rows * one.behind[0] % one.columns == 0:
            yield one


def test_no_bank_conflicts():
    seen = 0
    for one in admissible(8192):
        worst = lines(one)
        carries = one.factors[0] == 48 and len(one.factors) == 2 and one.rows > 1  # rows that no power of two parts
        assert all(n == 1 for name, n in worst.items() if not (carries and name == "store 1")), one
        assert max(worst.values()) <= 4
        seen += 1
    assert seen > 80


@pytest.mark.parametrize("factors", [(16, 32, 32), (32, 32, 32), (16, 8, 16, 16), (48, 32, 32)])
def test_no_bank_conflicts_in_large_blocks(factors):
    one = Tiling(factors)
    assert max(lines(one).values()) == 1
    images = dict(swizzle(one))
    assert all(bit > 2 and 0 < image < 8 for bit, image in images.items())
    chunks = range(one.points // 4)
    assert len({chunk ^ fold(chunk, images) for chunk in chunks}) == len(chunks)


def test_conflicts_are_seen():
    one = Tiling((16, 16, 16))
    without = wavefronts(one, ())
    assert without["store 2"] > 1 and without["load 1"] == 4 and without["inner"] == 1
    assert set(conflicts(one).values()) == {1.0}
    assert 1 < conflicts(Tiling((48, 16), rows=4))["store 1"] < 2  # the best there is, and told


# --- the search ----------------------------------------------------------------------------------------------------


PROBLEMS = [
    Problem(H200, 256, "float16", 768),
    Problem(H200, 4096, "float16", MANY, batch=64),
    Problem(A6000, 16384, "bfloat16", 30),
    Problem(CARDS["sm_80"], 3000, "float32", 5, gated=True),
    Problem(H200, 100_000, "float16", 768, "history", taps=1000),
    Problem(H200, 2048, "float16", 4096, "complex"),
]


def brute(problem, domain):
    """All kernels that satisfy all constraints, by no other means than asking."""
    found = []
    for factors, rows, warps in product(domain.factors, domain.rows, domain.warps):
        one = Tiling(factors, rows, warps, problem.source)
        if all(c.holds(problem, one) for c in planner.CONSTRAINTS):
            found.append(planner.predict(problem, one))
    return sorted(found, key=lambda c: c.order)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.source}-{p.seqlen}")
@pytest.mark.parametrize(
    "domain", [planner.DOMAIN, replace(planner.DOMAIN, rows=(1, 4), warps=(2,))], ids=["all", "few"]
)
def test_the_search_finds_what_brute_force_finds(problem, domain):
    expected = brute(problem, domain)
    for count in (1, 8):
        assert planner.search(problem, count, domain).candidates == expected[:count]
    everything = planner.search(problem, None, domain)
    assert everything.candidates == expected
    assert everything.refused.total() + len(expected) == domain.size


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.source}-{p.seqlen}")
def test_predictions_add_up(problem):
    for c in planner.search(problem, 8).candidates:
        assert c.exposed >= -1e-12
        assert c.seconds == pytest.approx(max(c.terms.values()) + c.exposed + c.launch)
        assert c.shared_bytes <= problem.card.shared_per_block and 1 <= c.occupancy <= 32
        assert c.occupancy * (c.shared_bytes + 1024) <= problem.card.shared_per_multiprocessor


def test_a_mask_is_part_of_the_objective():
    """A comb shrinks every stage, in tiles of 8 digits: by half where N1 = 16, to a quarter where N1 = 32."""

    def comb(factors):
        kept = np.zeros(factors, dtype=bool)
        kept[: factors[0] // 4] = True
        return Live.of(kept)

    problem = Problem(H200, 8192, "float16", MANY, batch=64)
    dense, sparse = planner.search(problem), planner.search(problem, live=comb)
    masked = [planner.predict(problem, c.tiling, live=comb(c.tiling.factors)) for c in brute(problem, planner.DOMAIN)]
    assert sparse.candidates == sorted(masked, key=lambda c: c.order)[:8]
    assert sparse.candidates[0].seconds < 0.65 * dense.candidates[0].seconds
    ends = [planner.predict(problem, Tiling(f), live=comb(f)).terms["matrix"] for f in ((16, 16, 32), (32, 16, 16))]
    assert ends[1] < 0.6 * ends[0]


@pytest.mark.parametrize("seqlen", [1024, 4096, 8192, 32768])
def test_searches_look_at_few(monkeypatch, seqlen):
    """A bound on what factors can do spares nearly all kernels a prediction."""
    seen = []
    monkeypatch.setattr(
        planner, "predict", lambda *args, real=planner.predict, **rest: seen.append(1) or real(*args, **rest)
    )
    assert solve(H200, seqlen, rows_total=MANY)
    assert 0 < len(seen) <= planner.DOMAIN.size // 20


# --- what is known -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seqlen", ROOFLINE)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_factors_are_as_good_as_those_of_the_roofline(arch, seqlen):
    one = solve(CARDS[arch], seqlen, rows_total=MANY, batch=64)[0].tiling
    assert flops(one.factors) <= 1.15 * flops(ROOFLINE[seqlen])


@pytest.mark.parametrize(
    ("arch", "dtype", "most", "too_much"),
    [
        ("sm_80", "float16", 32768, 49152),
        ("sm_86", "float16", 24576, 32768),
        ("sm_89", "bfloat16", 24576, 32768),
        ("sm_90", "float16", 49152, 65536),
        ("sm_90", "float32", 24576, 32768),
        ("sm_100", "float16", 49152, 65536),
    ],
)
def test_what_one_block_holds(arch, dtype, most, too_much):
    assert planner.longest(CARDS[arch], dtype) == most
    assert solve(CARDS[arch], most, dtype=dtype, rows_total=768)
    assert not solve(CARDS[arch], too_much, dtype=dtype, rows_total=768)
    assert isinstance(planner.best(CARDS[arch], too_much, dtype, 768).tiling, TwoLevel)


@pytest.mark.parametrize(("seqlen", "milliseconds"), [(1 << 16, 15.0), (1 << 17, 30.1), (1 << 20, 240)])
def test_traffic_of_two_levels(seqlen, milliseconds):
    """Three passes over 49152 signals at 4.3 TB/s, as worked out by hand."""
    found = planner.two_level(H200, seqlen, rows_total=MANY, batch=64)[0]
    assert found.terms["memory"] * 1e3 == pytest.approx(milliseconds, rel=0.01)
    assert found.seconds >= found.terms["memory"] and found.tiling.points >= seqlen


def test_two_levels_reach_four_million_samples():
    widest = planner.two_level(H200, 1 << 22, rows_total=768)[0].tiling
    assert widest.points >= 1 << 22 and widest.radix in planner.WIDE
    assert planner.two_level(H200, 1 << 21, rows_total=768)[0].tiling.radix in planner.OUTER
    assert not planner.two_level(A6000, 1 << 22, rows_total=768)


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_filters_are_cut_into_blocks(dtype):
    whole = planner.best(H200, 1 << 16, dtype, 768)
    cut = planner.best(H200, 1 << 16, dtype, 768, taps=1000)
    assert cut.tiling.inner.source == "history" and 1000 <= cut.tiling.points <= 4096 and cut.seconds < whole.seconds
    assert cut == planner.partial(H200, 1 << 16, 1000, dtype=dtype, rows_total=768)[0]
    assert planner.best(H200, 1024, "float16", 768, taps=1024).tiling.source == "real"


# --- saying why ----------------------------------------------------------------------------------------------------


REFUSED = [
    ("enough points", Problem(H200, 300, "float16", 8), Tiling((16, 16), 4)),
    ("registers of a thread", Problem(H200, 4096, "float32", 8, "history", 900), Tiling((48, 32), 2, 1, "history")),
    ("shared memory", Problem(A6000, 256, "float16", 8), Tiling((32, 32, 32))),
    ("whole columns", Problem(H200, 256, "float16", 8), Tiling((16, 16), 2)),
    ("rows there are", Problem(H200, 256, "float16", 3), Tiling((16, 16), 8)),
    ("one spectrum a block", Problem(H200, 256, "float16", 64, "complex"), Tiling((16, 32), 2, 1, "complex")),
    ("rows at powers of two", Problem(H200, 256, "float16", 8), Tiling((48, 16), 4)),
    ("equal work", Problem(H200, 256, "float16", 8), Tiling((16, 16), 4, 2)),
    ("room on a multiprocessor", Problem(H200, 32768, "float16", 8), Tiling((32, 32, 32), 1, 16)),
]


@pytest.mark.parametrize(("name", "problem", "refused"), REFUSED)
def test_a_refusal_has_a_name(name, problem, refused):
    broken = {c.name: c.message(problem, refused) for c in planner.CONSTRAINTS if not c.holds(problem, refused)}
    assert next(iter(broken)) == name and all(broken.values())  # what is too large for a block leaves no room either


def test_every_constraint_is_told_apart():
    assert [name for name, *_ in REFUSED] == [c.name for c in planner.CONSTRAINTS]
    assert {c.on for c in planner.CONSTRAINTS} == {"factors", "rows", "warps"}


def explained(card, seqlen, rows=768, **rest):
    return planner.as_text(planner.facts(card, seqlen, rows_total=rows, **rest))


def test_explanations():
    text = explained(H200, 4096, MANY, batch=64)
    assert "16 x 16 x 16" in text and "refused by equal work" in text and "nominal" in text
    text = explained(A6000, 32768)
    assert "131072 bytes" in text and "gets 101376" in text and "two levels do" in text and " | " in text
    text = explained(A6000, 1 << 23)
    assert "two levels hold up to 3145728" in text
    with pytest.raises(planner.NothingFitsError, match="two levels hold up to 3145728"):
        planner.best(A6000, 1 << 23, "float16", 768)
    found = planner.facts(H200, 1 << 20, rows_total=768, source="history", taps=1 << 19)
    assert not found["candidates"] and "in two levels" in found["advice"]
    assert json.loads(json.dumps(found, allow_nan=False))["kernels"] == planner.DOMAIN.size


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"rows_total": 0}, "rows_total must be at least 1"),
        ({"rows_total": 8, "dtype": torch.float64}, "float64"),
        ({"rows_total": 8, "source": "tape"}, "'tape'"),
        ({"rows_total": 8, "source": "history"}, "taps"),
        ({"rows_total": 8, "source": "history", "taps": 300}, "1 .. seqlen = 256"),
    ],
)
def test_refused_problems(shape, says):
    with pytest.raises(ValueError, match=says):
        solve(H200, 256, **shape)


@pytest.mark.parametrize("shape", [((16,),), ((8, 16),), ((16, 64),), ((16, 12, 16),), ((16, 16), 3), ((16, 16), 1, 5)])
def test_refused_tilings(shape):
    with pytest.raises(ValueError, match="no kernel has"):
        Tiling(*shape)


def test_a_card_at_hand(monkeypatch):
    found = SimpleNamespace(
        name="NVIDIA GeForce RTX 3090", major=8, minor=6, multi_processor_count=82,
        shared_memory_per_block_optin=101376, shared_memory_per_multiprocessor=102400,
        max_threads_per_multi_processor=1536, regs_per_multiprocessor=65536, L2_cache_size=6 << 20,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    card = Card.of()
    assert card.multiprocessors == 82 and card.arch == "sm_86" and "driver" in card.provenance
    assert card.matrix_rate == pytest.approx(A6000.matrix_rate * 82 / 84)
    assert Card.of("cuda:0") == card
    found.major, found.minor = 12, 0
    del found.shared_memory_per_block_optin  # an older torch
    assert Card.of().shared_per_block == CARDS["sm_89"].shared_per_block
    found.major, found.minor = 7, 5
    with pytest.raises(ValueError, match="sm_75"):
        Card.of()


def test_cards_by_name():
    assert devices.card("sm_80") is CARDS["sm_80"] and (torch.cuda.is_available() or devices.card() is H200)
    with pytest.raises(ValueError, match="sm_80"):
        devices.card("sm_70")
