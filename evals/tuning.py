"""Which kernel is quickest on this card: the planner's best few, compiled in several ways, checked, timed and kept."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch

from sparsify import choosing, gpu, nvrtc, tiling, tuned
from sparsify.cpu import Prepared, Structure, crop
from sparsify.plan import Filter, FilterPlan
from sparsify.policies import HEAD
from sparsify.ways import Build, SlowWay, Way

from .gpu_kernels import (
    BARS,
    DENSE,
    DTYPES,
    SHAPES,
    Case,
    Inputs,
    builds_of,
    error_of,
    kept_by,
    ours,
    plans,
    reason,
    timed,
)
from .gpu_machine import Machine
from .kernels import Shape

CANDIDATES = 8  # of the planner's that are timed
RESIDENT = (1, 2, 3)  # blocks a multiprocessor that each is compiled for, besides what the planner thinks
FINALISTS = 3
BRIEFLY = 5e-3  # seconds of a first timing
TOGETHER = 12  # cases whose kernels are compiled at once


def variants(on: Machine, case: Case, kept: Filter) -> list[tuned.Choice]:
    """What may be quickest for a filter; what the planner takes comes first."""
    (batch, channels, seqlen), dtype = case.shape, case.torch_dtype
    felt, ahead = crop(kept.k, kept.ahead, seqlen)
    taps, sizes = felt.shape[-1], (on.card, dtype, seqlen, batch, channels)
    structure = None if kept.mask is None else Structure(kept.mask, kept.head)
    ranked: list[tuple[float, tuned.Choice]] = []
    if structure is None:
        shape: dict[str, Any] = {"dtype": case.dtype, "rows_total": batch * channels, "batch": batch}
        shape["count"] = CANDIDATES
        found = tiling.solve(on.card, seqlen, **shape) or tiling.two_level(on.card, seqlen, **shape)
        if taps < seqlen:
            found = found[: CANDIDATES // 2] + tiling.partial(on.card, seqlen, taps, **shape)
        extra = 0.0
        if taps <= tuned.DIRECT_TAPS:
            seconds = choosing.direct_seconds(on.card, seqlen, taps, dtype, batch * channels)
            ranked.append((seconds, tuned.Choice("direct")))
    else:
        ways = choosing.structured_ways(*sizes, structure)
        ways["plain"] = choosing.plain_way(*sizes, taps, ahead)
        found = choosing.masked_candidates(*sizes, structure)[:CANDIDATES]
        extra = ways["masked"][0] - found[0].seconds if found else 0.0  # of a head
        ranked += [(ways[how][0], tuned.Choice(how)) for how in ("plain", "slow") if how in ways]
    how = "plain" if structure is None else "masked"
    found = sorted(found, key=lambda c: c.order)
    ranked += [(c.seconds + extra, tuned.Choice(how, c.tiling, c.occupancy)) for c in found]
    made = [choice for _, choice in sorted(ranked, key=lambda pair: pair[0])]
    more = [replace(c, resident=n) for c in made if c.tiling for n in RESIDENT if n != c.resident]
    name = tuned_case(case, kept)
    return [choice for choice in (*made, *more) if tuned.fits(choice, on.card, name, structure)]


def way_for(on: Machine, case: Case, kept: Filter, choice: tuned.Choice) -> Way | SlowWay:
    """This kernel, for a filter."""
    batch, channels, seqlen = case.shape
    felt, ahead = crop(kept.k, kept.ahead, seqlen)
    taps, dtype = felt.shape[-1], case.torch_dtype
    if kept.mask is None:
        return choosing.tuned_way(choice, dtype, seqlen, taps, ahead)
    structure = Structure(kept.mask, kept.head)
    if choice.how == "plain":
        return choosing.plain_way(on.card, dtype, seqlen, batch, channels, taps, ahead)[1]
    if choice.how == "slow":
        slow = choosing.slow_way(on.card, dtype, seqlen, batch, channels, structure)
        assert slow is not None
        return slow[1]
    return replace(choosing.way_of(choice, dtype, seqlen, 0), masked=True, head=choosing.head_taps(kept.head))


def tables_of(on: Machine, case: Case, kept: Filter, choice: tuned.Choice) -> Prepared:
    """Our tables for a filter, of this kernel."""
    way, k = way_for(on, case, kept, choice), kept.k.to(on.device)
    if kept.mask is not None and choice.how != "plain":
        return gpu.make_apart(way, k, kept.ahead, Structure(kept.mask, kept.head))
    assert isinstance(way, Way)
    return gpu.make(way, *crop(k, kept.ahead, case.shape[-1]), on.device)


def tuned_case(case: Case, kept: Filter) -> tuned.Case:
    """As choices are kept under."""
    batch, channels, seqlen = case.shape
    if kept.mask is not None:
        structure = Structure(kept.mask, kept.head)
        return tuned.Case.masked(case.dtype, seqlen, batch, channels, structure)
    return tuned.Case.plain(case.dtype, seqlen, batch, channels, crop(kept.k, kept.ahead, seqlen)[0].shape[-1])


@torch.no_grad()
def tune(on: Machine, case: Case, plan: FilterPlan, rounds: int = 7) -> dict[str, Any]:
    """The quickest kernel for a case, kept for the processes to come, and what every candidate took.

    Each is checked and timed on its own; the best few, and the planner's own, once more in the same rounds.
    """
    inputs = Inputs.of(case, on)
    kept = kept_by(plan, inputs.k)
    choices = variants(on, case, kept)
    rows: list[dict[str, Any]] = []
    seconds: dict[int, float] = {}
    for i, choice in enumerate(choices):
        rows.append(asdict(choice))
        try:
            run = ours(on, inputs, tables_of(on, case, kept, choice))
            rows[i]["error"] = error_of(run, inputs, kept, BARS[case.dtype])
            taken, _, _ = timed(on, {"this": run}, len(inputs.sets), 3, BRIEFLY)
            seconds[i] = rows[i]["seconds"] = statistics.median(taken.seconds["this"])
        except Exception as problem:
            rows[i]["failed"] = reason(problem)
            on.rest()
    if not seconds:
        why = rows[0]["failed"] if rows else "none fits"
        raise RuntimeError(f"{case.name}, {plan}: no kernel is right: {why}")
    finalists = dict.fromkeys(sorted(seconds, key=lambda i: seconds[i])[:FINALISTS])
    finalists |= {0: None} if 0 in seconds else {}
    runs = {str(i): ours(on, inputs, tables_of(on, case, kept, choices[i])) for i in finalists}
    taken, _, _ = timed(on, runs, len(inputs.sets), rounds)
    final = {i: statistics.median(taken.seconds[str(i)]) for i in finalists}
    winner = min(final, key=lambda i: final[i])
    choice = replace(choices[winner], seconds=final[winner])
    name = tuned_case(case, kept)
    path = tuned.keep(on.card.name, on.arch, {name: choice})
    return {
        "case": case.name,
        "plan": str(plan),
        "key": str(name),
        "choice": asdict(choice),
        "faster_than_planned": final[0] / final[winner] if 0 in final else None,
        "candidates": rows,
        "path": str(path),
    }


def tune_all(
    on: Machine, some: Sequence[tuple[Case, str]], rounds: int = 7, progress: Callable[[str], None] = print
) -> Iterator[dict[str, Any]]:
    """What `tune` finds for cases and names of plans; who fails is told, and left out."""
    asked = [(case, plans(case.shape[-1])[name]) for case, name in some]
    for start in range(0, len(asked), TOGETHER):
        now = asked[start : start + TOGETHER]
        progress("compiling")
        builds = dict.fromkeys(build for case, plan in now for build in builds_to_tune(on, case, plan))
        for problem in compile_all(list(builds), on.arch):
            progress(f"does not compile: {problem}")
        for case, plan in now:
            progress(f"{case.name}, {plan}")
            try:
                yield tune(on, case, plan, rounds)
            except RuntimeError as error:
                progress(f"failed: {' '.join(str(error).split())}")
                on.rest()


TUNED_PLANS = (DENSE, f"partial {HEAD}", f"split {HEAD} + 1/8")  # dense first: the others may fall back on it


def tuning_cases(shapes: Sequence[Shape] | None = None, dtypes: Sequence[str] = DTYPES[:2]) -> list[tuple[Case, str]]:
    """What `bench --calibrate` tunes, the likeliest first: many sequences, and one of a model of width 256."""
    if shapes is None:
        shapes = [*SHAPES, *((1, 256, shape[-1]) for shape in SHAPES[1:-1])]
    return [(Case(shape, dtype), name) for name, dtype, shape in product(TUNED_PLANS, dtypes, shapes)]


# --- compiling beforehand --------------------------------------------------------------------------------------------


def builds_to_tune(on: Machine, case: Case, plan: FilterPlan) -> list[Build]:
    """The kernels that `tune` will try."""
    seqlen = case.shape[-1]
    kept = plan.apply(torch.zeros(1, seqlen))
    ways = (way_for(on, case, kept, choice) for choice in variants(on, case, kept))
    return [build for way in ways for build in builds_of(way, seqlen)]


def needed(card: tiling.Card, some: Iterable[Case]) -> list[Build]:
    """Kernels that the planner will choose for these cases, without making a table."""
    found: dict[Build, None] = {}
    for (batch, channels, seqlen), dtype in {(case.shape, case.torch_dtype): None for case in some}:
        shape = dtype, seqlen, batch, channels
        for plan in plans(seqlen).values():
            taps = plan.taps if plan.mask is None and plan.taps else seqlen
            ways: list[Way | SlowWay] = [choosing.plain_way(card, *shape, taps, 0)[1]]
            if plan.mask is not None:
                structure = Structure(plan.mask, None if plan.taps is None else torch.empty(0, plan.taps))
                ways += [way for _, way in choosing.structured_ways(card, *shape, structure).values()]
            found |= dict.fromkeys(build for way in ways for build in builds_of(way, seqlen))
    return list(found)


def compile_one(build: Build, arch: str) -> str | None:
    """None once a kernel lies in the cache, or why it cannot."""
    try:
        nvrtc.binary(gpu.kernel(build), arch)
    except Exception as error:
        return f"{build}: {nvrtc.first_line(error)}"
    return None


def compile_all(builds: Sequence[Build], arch: str, processes: int | None = None) -> list[str]:
    """Kernels put into the cache by several processes, since NVRTC compiles one at a time in each; what went wrong."""
    processes = min(processes or os.cpu_count() or 1, len(builds))
    if processes <= 1:
        return [problem for build in builds if (problem := compile_one(build, arch))]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [problem for problem in pool.map(partial(compile_one, arch=arch), builds) if problem]
