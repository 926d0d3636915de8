"""What the compiler makes of the kernels that the planner picks, for every architecture; no GPU needed."""

from dataclasses import dataclass, replace
from functools import cache

import compile_gate
import pytest
import torch

from sparsify.filters.filter import Filter, Structure
from sparsify.filters.monarch import BlockMask
from sparsify.gpu import backend as gpu
from sparsify.gpu import dispatch, jit, planner
from sparsify.gpu.devices import CARDS, Card
from sparsify.gpu.launch_spec import Build, DecimatedWay
from sparsify.gpu.mma_operands import Stages
from sparsify.gpu.tiling import Tiling

HALF, BFLOAT16, FLOAT = torch.float16, torch.bfloat16, torch.float32
BATCH, CHANNELS = 64, 768
A_THREAD, A_MULTIPROCESSOR = 255, 65536  # registers

pytestmark = pytest.mark.skipif(not jit.compile_available(), reason=str(jit.compile_why_not()))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Nobody's home folder fills up; the kernels of this module are compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSIFY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Problem:
    """A layer, and what is known of its filter."""

    seqlen: int
    dtype: torch.dtype = HALF
    taps: int | None = None
    mask: str | None = None
    head: int = 0
    piece: int = 8

    def __str__(self) -> str:
        parts = [str(self.seqlen), str(self.dtype)[6:], f"{self.taps}taps" if self.taps else "", self.mask or ""]
        return "-".join(
            filter(None, [*parts, f"head{self.head}" if self.head else "", f"by{self.piece}" * (self.piece < 8)])
        )

    def way(self, card: Card):
        if self.mask is None:
            found = planner.best(card, self.seqlen, self.dtype, BATCH * CHANNELS, taps=self.taps, batch=BATCH)
            assert (found.tiling.inner.source == "history") == (self.taps is not None)
            return dispatch.way_of(found.tiling, found.occupancy, self.dtype, self.seqlen)
        mask = {"low-pass": BlockMask.low_pass, "comb": BlockMask.comb}[self.mask](self.seqlen, 1 / 8)
        structure = Structure(mask, Filter(torch.zeros(1, self.head)) if self.head else None)
        return dispatch.masked_way(dispatch.Layer(card, self.dtype, self.seqlen, BATCH, CHANNELS), structure)[1]

    def builds(self, card: Card) -> tuple[Build, ...]:
        return self.way(card).builds(self.piece)


@cache
def compiled_for(card: Card) -> str:
    """The architecture as NVRTC is asked for it."""
    major, minor = divmod(int(card.arch[3:]), 10)
    known = [int(arch[3:].rstrip("a")) for arch in jit.ARCHITECTURES]
    return jit.best_architecture((major, minor), known)


EVERYWHERE = [  # two factors, the last two stages in one, masked with a head, two levels, two planes
    *(Problem(points) for points in (256, 4096, 1 << 17)),
    Problem(8192, mask="low-pass", head=64),
    Problem(1024, FLOAT),
]
ONE_CARD = [  # more, for the card that matters most
    *(Problem(points) for points in (512, 1024, 2048, 8192, 16384, 32768, 1 << 20)),
    *(Problem(points, FLOAT) for points in (8192, 1 << 17)),
    *(Problem(1 << 16, dtype, taps=2000) for dtype in (BFLOAT16, FLOAT)),
    Problem(1024, mask="comb"),
    Problem(1 << 17, mask="comb"),
    Problem(4096, BFLOAT16, piece=2),
    Problem(16384, mask="low-pass", head=64, piece=1),
]
GATED = [(arch, problem) for arch in CARDS for problem in EVERYWHERE] + [("sm_90", problem) for problem in ONE_CARD]


def clean(build: Build, arch: str) -> compile_gate.Taken:
    """What a kernel takes: no spills, no memory of a thread's own, whole pieces of shared memory, tensor cores."""
    taken = compile_gate.taken(gpu.kernel(build), arch)
    assert (taken.spills, taken.stack, taken.local) == (0, 0, 0), build
    assert taken.mmas > 0 and taken.shared == 0
    assert taken.narrow == 0 and (taken.accesses.total() > 0) == (build.entry == "conv")
    return taken


@pytest.mark.parametrize(("arch", "problem"), GATED, ids=str)
def test_planned_kernels_keep_to_their_registers(arch, problem):
    """And as many blocks as asked for find room at once.

    Shared memory is read and written 16 bytes a thread.  There are no LDSM: stages leave their results where the next
    product's operands are read, so nothing has to change threads on the way.
    """
    card = CARDS[arch]
    for build in map(lambda build: gpu.unspilled(build, compiled_for(card)), problem.builds(card)):
        taken = clean(build, compiled_for(card))
        handed_out = -(-taken.registers // 8) * 8 * build.threads
        assert taken.registers <= A_THREAD and handed_out * build.resident <= A_MULTIPROCESSOR
        assert build.shared_bytes <= card.shared_per_block


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16, FLOAT])
def test_direct_kernels_keep_to_their_registers(dtype):
    for piece in (8, 2, 1) if dtype == HALF else (8,):
        (build,) = dispatch.direct_way(dtype, 4096, 64, 0).builds(piece)
        clean(build, "sm_90a")


@pytest.mark.parametrize("dtype", [HALF, FLOAT])
def test_slow_kernels_keep_to_their_registers(dtype):
    structure = Structure(BlockMask.low_pass(8192, 1 / 16), Filter(torch.zeros(1, 64)))
    _, way = dispatch.decimated_way(dispatch.Layer(CARDS["sm_90"], dtype, 8192, BATCH, CHANNELS), structure)
    assert isinstance(way, DecimatedWay)
    for entry in ("decimate", "interpolate"):
        clean(way.build(entry, 8 if dtype == HALF else 1), "sm_90a")


def test_a_kernel_that_would_spill_has_fewer_blocks():
    """Asking for more blocks than leave a thread the registers that it needs is undone by the compiler."""
    crowded = Build("conv", HALF, (16, 8, 16), resident=24, warps=1)
    assert compile_gate.taken(gpu.kernel(crowded), "sm_90a").spills > 0
    fits = gpu.unspilled(crowded, "sm_90a")
    assert fits.resident < 24 and replace(fits, resident=24) == crowded
    assert compile_gate.taken(gpu.kernel(fits), "sm_90a").spills == 0
    assert gpu.unspilled(fits, "sm_90a") == fits


@pytest.mark.parametrize(
    ("factors", "masked"),
    [((32, 16), False), ((16, 8, 16), True), ((16, 16, 16), False), ((16, 16, 16), True), ((32, 16, 16), False)],
)
def test_products_stand_in_the_code_once(factors, masked):
    """HMMA instructions of one unit of each stage: a matrix product that is unrolled twice, or lost, would show."""
    build = Build("conv", HALF, factors, rows=64 // min(64, Tiling(factors).behind[0]), masked=masked, warps=1)
    first, *middle, inner = factors
    if Stages.natural(factors).core(HALF):  # of two prefixes at a time; on the way back of each on its own
        middle.pop()
        rest = 16 + 2 * (8 + 8 + 8)
    else:
        rest = 2 * (inner // 8) * (inner // 4)
    outer = first // 16 * (first // 8) * (8 + 4)  # 64 columns in, 32 columns out
    expected = outer + sum(2 * (n // 8) * (n // 8) * 4 for n in middle) + rest
    assert compile_gate.taken(gpu.kernel(build), "sm_90a").mmas == expected


def test_a_kernel_is_compiled_once(tmp_path, monkeypatch):
    """After that it is read."""
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    for problem in (Problem(8192), Problem(32768, mask="low-pass", head=64, piece=1)):
        for build in problem.builds(CARDS["sm_90"]):
            kernel = gpu.kernel(build)
            made = jit.binary(kernel, "sm_90a")
            with monkeypatch.context() as patch:
                patch.setattr(jit, "compile", lambda *_: pytest.fail("compiled again"))
                assert jit.binary(kernel, "sm_90a").image == made.image
