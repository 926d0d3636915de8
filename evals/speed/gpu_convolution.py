"""The convolution alone on a GPU: our ways against torch.fft and other libraries, correct before timed."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.cpu.backend import KERNEL, Prepared, good_size
from sparsify.evals.results import conditions
from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.gpu import backend as gpu
from sparsify.gpu import dispatch, jit, tiling
from sparsify.gpu.devices import Card
from sparsify.gpu.launch_spec import Build, DecimatedWay, Way, way_from
from sparsify.gpu.tiling import type_name
from sparsify.plan import FilterPlan
from sparsify.plan.policies import HEAD, points
from sparsify.report.schema import Ratio
from sparsify.storage.files import first_line, write_whole

from . import baselines as rivals
from .cpu_convolution import Shape, kept_of
from .gpu_machine import Machine, ceilings, high_precision, poisoned
from .throughput import AT_LEAST, Rounds, Work, in_rounds

SCHEMA = 1
SHAPES: tuple[Shape, ...] = (  # up to 0.8 GB of 16-bit signals
    (64, 768, 256),
    (64, 768, 1 << 10),
    (64, 768, 1 << 12),
    (64, 768, 1 << 13),
    (32, 768, 1 << 14),
    (16, 768, 1 << 15),
    (8, 768, 1 << 16),
    (4, 768, 1 << 17),
    (1, 256, 1 << 20),
)
DTYPES = tuple(tiling.DTYPES)
SHARE = 1 / 8  # of the bins that masks keep
TEETH = 32  # a comb of groups of bins, so many bins apart
BARS = {"float16": 5e-3, "bfloat16": 2e-2, "float32": 1e-3}  # relative L2 against float64: above, a time means nothing
DENSE = "dense"
SHORT = 3e-4  # seconds below which calls are replayed from a graph: launching them would take as long
SETS = 16  # of inputs, at most
SEQUENCES = 8  # of a batch that are compared with float64
AT_ONCE = 1 << 26  # points of the reference in float64
CACHES = 4  # times the L2 cache that the inputs together exceed


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is convolved.  gated: gate * (k * g + skip * g), g = pregate * u."""

    shape: Shape
    dtype: str
    gated: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def name(self) -> str:
        batch, channels, seqlen = self.shape
        return f"{batch} x {channels} x {seqlen} {self.dtype}" + " gated" * self.gated

    @property
    def sample_bytes(self) -> int:
        return tiling.kind(self.dtype).bytes

    def layer(self, card: Card) -> dispatch.Layer:
        """As the planner sees it."""
        batch, channels, seqlen = self.shape
        return dispatch.Layer(card, self.torch_dtype, seqlen, batch, channels)

    def bytes(self, density: float = 1.0) -> int:
        """That must be moved: signals once, and once what is kept of the float16 spectrum of `seqlen` complex points.

        density: the share that is kept.
        """
        batch, channels, seqlen = self.shape
        signals = (4 if self.gated else 2) * batch * self.sample_bytes
        return channels * (seqlen * signals + round(4 * density * seqlen))

    def flops(self) -> float:
        """Of a right-angle transform there and back on matrices of 16 or 32, padded to a power of two: the fewest."""
        batch, channels, seqlen = self.shape
        bits = max(8, (seqlen - 1).bit_length())
        return 16.0 * (1 << bits) * radix_work(bits) * batch * channels


@cache
def radix_work(bits: int) -> float:
    """Least r1 + .. + rp - r1 / 2 with r1 .. rp = 2^bits, all 16 or 32; an 8 among them where it does not work out."""
    found = []
    for first, eights, sixteens in product((4, 5), range(3), range(8)):
        rest = bits - first - 3 * eights - 4 * sixteens
        if rest >= 0 and rest % 5 == 0:
            found.append((eights, (1 << first) / 2 + 8 * eights + 16 * sixteens + 32 * (rest // 5)))
    return min(found)[1]


def cases(shapes: Iterable[Shape] = SHAPES, dtypes: Iterable[str] = DTYPES) -> list[Case]:
    """All of them: what tells most comes first."""
    made = [Case(shape, dtype, gated) for gated, dtype, shape in product((False, True), dtypes, shapes)]
    return sorted(made, key=lambda case: DTYPES.index(case.dtype) + 1.5 * case.gated)


QUICK = tuple(Case(shape, "float16") for shape in SHAPES if shape[-1] in (1 << 10, 1 << 12, 1 << 14))


def plans(seqlen: int) -> dict[str, FilterPlan]:
    """What is kept of a filter of `seqlen` taps."""
    n = points(seqlen)
    band = BlockMask.low_pass(n, SHARE)
    made = {
        DENSE: FilterPlan("dense"),
        "low-pass 1/8": FilterPlan("frequency-sparse", mask=band),
        f"split {HEAD} + 1/8": FilterPlan("split", min(HEAD, seqlen), band),
        "partial 1/16": FilterPlan("partial", max(1, seqlen // 16)),
        f"partial {HEAD}": FilterPlan("partial", min(HEAD, seqlen)),
    }
    if n % (8 * TEETH) == 0:
        comb = BlockMask.comb(n, SHARE, (TEETH, n // TEETH))
        made["comb 1/8"] = FilterPlan("frequency-sparse", mask=comb)
    return made


@dataclass(frozen=True)
class Inputs:
    """Signals, in sets that together are far larger than the L2 cache, and a filter."""

    sets: Sequence[tuple[Tensor, Tensor | None, Tensor | None]]  # u, pregate, gate
    k: Tensor  # (H, L) float32
    skip: Tensor | None  # (H,)

    @classmethod
    def of(cls, case: Case, on: Machine, seed: int = 0) -> Inputs:
        draw = torch.Generator(on.device).manual_seed(seed)
        batch, channels, seqlen = case.shape

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, device=on.device)

        signals = 3 if case.gated else 1
        size = signals * batch * channels * seqlen * case.sample_bytes
        number = min(SETS, 1 + max(1, -(-CACHES * on.card.l2 // size)))
        sets: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        for _ in range(number):
            drawn = [random(*case.shape).to(case.torch_dtype) for _ in range(signals)]
            sets.append((drawn[0], drawn[1], drawn[2]) if case.gated else (drawn[0], None, None))
        k = random(channels, seqlen) / seqlen**0.5
        return cls(sets, k, random(channels) if case.gated else None)


def kept_by(plan: FilterPlan, k: Tensor) -> Filter:
    """`plan.apply(k)`; a few channels at a time where that takes room."""
    return plan.apply(k) if plan.mask is None else kept_of(Filter(k), plan)


# --- contenders ------------------------------------------------------------------------------------------------------

Run = Callable[[int], Tensor]  # number of an input set -> y


def prepare(on: Machine, case: Case, kept: Filter) -> Prepared:
    """Our tables for a filter."""
    batch, _, seqlen = case.shape
    made = dispatch.prepare(kept.to(on.device), seqlen, case.torch_dtype, batch, on.card)
    if made.layout[0] != KERNEL:
        raise RuntimeError(f"no kernel takes {seqlen} samples of {case.dtype} on {on.card.name}")
    return made


def ours(on: Machine, inputs: Inputs, prepared: Prepared) -> Run:
    """Our convolution."""

    def run(i: int) -> Tensor:
        u, pregate, gate = inputs.sets[i]
        return gpu.fftconv(u, prepared.tables, prepared.layout, gate, inputs.skip, pregate, on.launch)

    return run


def exact(u: Tensor, k: Filter) -> Tensor:
    """`fftconv_ref` in good sizes, some channels at a time: (H, L) float64."""
    n = good_size(u.shape[-1] + k.taps - 1)
    y = torch.empty(u.shape, dtype=torch.float64, device=u.device)
    step = max(1, AT_ONCE // n)
    for h in range(0, len(u), step):
        some = slice(h, h + step)
        product = torch.fft.rfft(u[some].double(), n) * torch.fft.rfft(k.k[some].double(), n)
        y[some] = torch.fft.irfft(product, n)[..., k.lookahead : k.lookahead + u.shape[-1]]
    return y


def error_of(run: Run, inputs: Inputs, kept: Filter, bar: float) -> float:
    """Relative L2 error of one call against float64, on SEQUENCES of the batch; a RuntimeError where it is too large.

    Memory that nothing was written to is seen everywhere.
    """
    with poisoned():
        y = run(0)
    u, pregate, gate = inputs.sets[0]
    if y.shape != u.shape or y.dtype != u.dtype:
        raise RuntimeError(f"got {y.dtype} {tuple(y.shape)}, expected {u.dtype} {tuple(u.shape)}")
    if not y.isfinite().all():
        raise RuntimeError("not all of the result is a finite number")
    missed = norm = 0.0
    k, skip = kept.to(u.device), inputs.skip
    for b in sorted({i * (len(u) - 1) // (SEQUENCES - 1) for i in range(SEQUENCES)}):  # float64 takes room
        g = u[b] if pregate is None else u[b].double() * pregate[b].double()
        expected = exact(g, k)
        if skip is not None and gate is not None:
            expected = gate[b].double() * (expected + skip.double()[:, None] * g)
        missed += float((y[b].double() - expected).square().sum())
        norm += float(expected.square().sum())
    error = math.sqrt(missed / norm)
    if not error < bar:
        raise RuntimeError(f"off by {error:.1e} of its norm; {bar:.0e} is allowed")
    return error


def reason(error: BaseException) -> str:
    """Of a contender that dropped out."""
    return f"{type(error).__name__}: {first_line(error)}" if isinstance(error, Exception) else repr(error)


# --- a case ----------------------------------------------------------------------------------------------------------


Contender = tuple[Run, Filter, Mapping[str, Any]]  # what runs, the filter that it should be, and facts about it


def entrant(on: Machine, case: Case, inputs: Inputs, plan: FilterPlan, peak: Mapping[str, float]) -> Contender:
    """Our convolution under a plan.  peak: what `ceilings` found."""
    kept = kept_by(plan, inputs.k)
    prepared = prepare(on, case, kept)
    way = way_from(tuple(prepared.layout))
    density = plan.mask.density if plan.mask else 1.0 if plan.kind == DENSE else 0.0  # of the spectrum
    floor = case.bytes(density) / peak["bytes_per_second"]
    if plan.kind == DENSE:
        floor = max(floor, case.flops() / peak["flop_per_second"])
    facts = {
        "kept": str(plan),
        "floor_seconds": floor,
        "predicted_seconds": predicted(on, case, kept, way),
        "way": described(way),
        "builds": [built(on, build) for build in builds_of(way, case.shape[-1])],
    }
    return ours(on, inputs, prepared), kept, facts


@torch.no_grad()
def compare(
    on: Machine,
    case: Case,
    peak: Mapping[str, float],
    rounds: int = 7,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """One case as JSON holds it: every contender checked, then all that are right timed in the same rounds.

    Who fails is named with the reason, and not timed.
    """
    inputs = Inputs.of(case, on)

    def rival(made: rivals.Rival) -> Contender:
        return made(inputs.sets, inputs.k, inputs.skip), Filter(inputs.k), {}

    own = {name: partial(entrant, on, case, inputs, plan, peak) for name, plan in plans(case.shape[-1]).items()}
    others = {name: partial(rival, made) for name, made in rivals.RIVALS.items()}
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    failed: list[dict[str, str]] = []
    for name, contender in (own | others).items():
        progress(f"checking {name}")
        try:
            run, wanted, facts = contender()
            error = error_of(run, inputs, wanted, BARS[case.dtype])
            on.rest()
        except Exception as problem:
            failed.append({"name": name, "reason": reason(problem)})
            on.rest()  # a device that failed ends everything here
            continue
        runs[name], rows[name] = run, {"name": name, "ours": name in own, "error": error, **facts}
    if runs:
        progress("timing")
        timed_rows = times_of(on, runs, len(inputs.sets), rounds, {DENSE, *others})
        rows = {name: {**row, **timed_rows[name]} for name, row in rows.items()}
    for name in rows.keys() & own.keys():
        rows[name]["of_floor"] = rows[name]["floor_seconds"] / rows[name]["seconds"]
    known = {"case": case.name, **asdict(case), "bytes": case.bytes(), "flops": case.flops(), "sets": len(inputs.sets)}
    return {**known, "ways": list(rows.values()), "failed": failed}


def times_of(
    on: Machine, runs: Mapping[str, Run], sets: int, rounds: int, baselines: set[str]
) -> dict[str, dict[str, Any]]:
    """What the clock says of each: its seconds, and how many times faster it is than those of `baselines`."""
    taken, graphs, refused = timed(on, runs, sets, rounds)
    against = {name: taken.against(name) for name in runs if name in baselines}
    rows: dict[str, dict[str, Any]] = {}
    for name in runs:
        low, middle, high = statistics.quantiles(taken.seconds[name], n=4, method="inclusive")
        faster_than = {
            other: asdict(Ratio(t[name].speedup, t[name].speedup_low, t[name].speedup_high))
            for other, t in against.items()
            if other != name
        }
        rows[name] = {"seconds": middle, "quartiles": [low, high], "calls": taken.calls[name], "graph": name in graphs}
        rows[name] |= {"faster_than": faster_than, **({"no_graph": refused[name]} if name in refused else {})}
    return rows


def timed(
    on: Machine, runs: Mapping[str, Run], sets: int, rounds: int, at_least: float = AT_LEAST
) -> tuple[Rounds, set[str], dict[str, str]]:
    """Seconds of one call of each in the same rounds; who was replayed from a graph; and who refused to be.

    All are, where any takes less than SHORT.
    """
    kept = deque[Tensor](maxlen=sets)  # results: they, too, lie in several places

    def rotation(run: Run) -> Work:
        turn = count()
        return lambda: kept.append(run(next(turn) % sets))

    works = {name: rotation(run) for name, run in runs.items()}
    parts = dict.fromkeys(runs, 1)
    refused: dict[str, str] = {}
    if on.capture is not None:
        first = in_rounds(works, 3, warmup=2, at_least=2e-3, clock=on.clock)
        if min(statistics.median(times) for times in first.seconds.values()) < SHORT:
            for name, run in runs.items():
                try:
                    works[name] = on.capture([partial(run, i) for i in range(sets)])
                    on.rest()
                    parts[name] = sets
                except Exception as problem:
                    refused[name] = reason(problem)
                    on.rest()
    taken = in_rounds(works, rounds, warmup=2, at_least=at_least, clock=on.clock)
    seconds = {name: [s / parts[name] for s in times] for name, times in taken.seconds.items()}
    calls = {name: n * parts[name] for name, n in taken.calls.items()}
    return Rounds(seconds, calls), {name for name in runs if parts[name] > 1}, refused


def described(way: Way | DecimatedWay) -> dict[str, Any]:
    """A way as JSON holds it."""
    found = asdict(way)
    for data in (found, found.get("inner", {})):
        if "dtype" in data:
            data["dtype"] = type_name(data["dtype"])
    return found


def builds_of(way: Way | DecimatedWay, seqlen: int) -> tuple[Build, ...]:
    """The kernels of a way, for contiguous signals."""
    piece = gpu.piece(torch.empty(1, 1, seqlen, dtype=way.dtype))
    if isinstance(way, DecimatedWay):
        return way.build("decimate", piece), *way.inner.builds(), way.build("interpolate", piece)
    return way.builds(piece)


def built(on: Machine, build: Build) -> dict[str, Any]:
    """A kernel, and what the compiler says it takes."""
    made = None
    if jit.compile_available():
        build = gpu.unspilled(build, on.arch)
        made = jit.binary(gpu.kernel(build), on.arch).resources
    shape = {"threads": build.threads, "resident": build.resident, "dynamic_shared": build.shared_bytes}
    return {"entry": build.entry, **shape, **(asdict(made) if made else {})}


def predicted(on: Machine, case: Case, kept: Filter, way: Way | DecimatedWay) -> float:
    """Seconds that the planner reckons for ways of this kind, without gates."""
    felt = kept.felt(case.shape[-1])
    how = "decimated" if isinstance(way, DecimatedWay) else "masked" if way.masked else "plain"
    return dispatch.ways(case.layer(on.card), felt.taps, felt.lookahead, kept.structure)[how][0]


# --- a file of cases -------------------------------------------------------------------------------------------------


def versions() -> dict[str, Any]:
    """Of all that a time depends on."""
    cuda = jit.compile_available()
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "driver": jit.driver_version() if cuda and torch.cuda.is_available() else None,
        "nvrtc": ".".join(map(str, jit.nvrtc_version())) if cuda else None,
        "rivals": rivals.versions(),
    }


def opening(on: Machine, peak: Mapping[str, float], rounds: int) -> dict[str, Any]:
    """What stands above the cases."""
    return {
        "schema": SCHEMA,
        "conditions": asdict(conditions(on.device)),
        "versions": versions(),
        "card": asdict(on.card),
        "arch": on.arch,
        "ceilings": dict(peak),
        "rounds": rounds,
        "cases": [],
        "crashed": [],
        "running": None,
    }


def write(path: Path, result: object) -> None:
    """As JSON; whoever stops this process finds the last state."""
    write_whole(path, json.dumps(result, indent=1) + "\n")


def bench(
    on: Machine,
    some: Sequence[Case],
    rounds: int = 7,
    path: Path | None = None,
    seconds: float = math.inf,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """All cases, as JSON holds them.

    path: where the state is written before and after every case; what a file there has is not done again, and a case
    that an earlier process died of is left out.  seconds: after these no further case is begun.
    """
    began = time.monotonic()
    with high_precision():
        result = json.loads(path.read_text()) if path and path.is_file() else None
        if result is None:
            progress("measuring what the card reaches")
            result = opening(on, ceilings(on), rounds)
        if result["running"]:
            result["crashed"].append(result["running"])
        done = {case["case"] for case in result["cases"]} | set(result["crashed"])
        for case in some:
            if case.name in done or time.monotonic() - began > seconds:
                continue
            result["running"] = case.name
            if path:
                write(path, result)

            def tell(what: str, name: str = case.name) -> None:
                progress(f"{name}: {what}")

            try:
                found = compare(on, case, result["ceilings"], rounds, progress=tell)
            except torch.cuda.OutOfMemoryError as error:
                found = {"case": case.name, "ways": [], "failed": [{"name": "all", "reason": reason(error)}]}
            result["cases"].append(found)
            result["running"] = None
            if path:
                write(path, result)
            if on.device.type == "cuda":
                torch.cuda.empty_cache()
    return result
