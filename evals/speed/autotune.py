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

from sparsify.cpu.backend import Prepared
from sparsify.filters.filter import Filter, Structure
from sparsify.gpu import backend as gpu
from sparsify.gpu import dispatch, jit, planner, tuning_cache
from sparsify.gpu.devices import Card
from sparsify.gpu.launch_spec import Build, DecimatedWay, Way
from sparsify.plan import FilterPlan
from sparsify.plan.policies import HEAD
from sparsify.storage.files import first_line

from .cpu_convolution import Shape
from .gpu_convolution import (
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

CANDIDATES = 8  # of the planner's that are timed
RESIDENT = (1, 2, 3)  # blocks a multiprocessor that each is compiled for, besides what the planner thinks
FINALISTS = 3
BRIEFLY = 5e-3  # seconds of a first timing
TOGETHER = 12  # cases whose kernels are compiled at once


def variants(on: Machine, case: Case, kept: Filter) -> list[tuning_cache.Choice]:
    """What may be quickest for a filter; what the planner takes comes first."""
    layer, structure = case.layer(on.card), kept.structure
    felt = kept.felt(layer.seqlen)
    found = plain_variants(layer, felt.taps) if structure is None else masked_variants(layer, felt, structure)
    made = [choice for _, choice in sorted(found, key=lambda pair: pair[0])]
    more = [replace(c, resident=n) for c in made if c.tiling for n in RESIDENT if n != c.resident]
    name = layer.case(felt.taps, structure)
    return [choice for choice in (*made, *more) if tuning_cache.fits(choice, on.card, name, structure)]


Ranked = list[tuple[float, tuning_cache.Choice]]  # predicted seconds first


def ranked(how: str, found: Sequence[planner.Candidate], extra: float = 0.0) -> Ranked:
    """The planner's candidates, best first.  extra: seconds that each takes besides."""
    best_first = sorted(found, key=lambda c: c.order)
    return [(c.seconds + extra, tuning_cache.Choice(how, c.tiling, c.occupancy)) for c in best_first]


def plain_variants(layer: dispatch.Layer, taps: int) -> Ranked:
    """Of a filter of which nothing is known but its taps."""
    card, seqlen = layer.card, layer.seqlen
    shape: dict[str, Any] = {"dtype": layer.dtype, "rows_total": layer.rows, "batch": layer.batch, "count": CANDIDATES}
    found = planner.solve(card, seqlen, **shape) or planner.two_level(card, seqlen, **shape)
    if taps < seqlen:
        found = found[: CANDIDATES // 2] + planner.partial(card, seqlen, taps, **shape)
    few = taps <= planner.DIRECT_TAPS
    direct: Ranked = [(dispatch.direct_seconds(layer, taps), tuning_cache.Choice("direct"))] if few else []
    return direct + ranked("plain", found)


def masked_variants(layer: dispatch.Layer, felt: Filter, structure: Structure) -> Ranked:
    """Of a filter with a mask; the ways that leave it aside, or go slowly, are cases of their own."""
    ways = dispatch.ways(layer, felt.taps, felt.lookahead, structure)
    found = dispatch.masked_candidates(layer, structure)[:CANDIDATES]
    head = ways["masked"][0] - found[0].seconds if found else 0.0
    others = [(ways[how][0], tuning_cache.Choice(how)) for how in ("plain", "decimated") if how in ways]
    return others + ranked("masked", found, head)


def way_for(on: Machine, case: Case, kept: Filter, choice: tuning_cache.Choice) -> Way | DecimatedWay:
    """This kernel, for a filter."""
    layer, structure = case.layer(on.card), kept.structure
    felt = kept.felt(layer.seqlen)
    if structure is None:
        return dispatch.tuned_way(choice, layer, felt.taps, felt.lookahead)
    if choice.tiling is None:
        return dispatch.ways(layer, felt.taps, felt.lookahead, structure)[choice.how][1]
    return dispatch.masked_of(choice.tiling, choice.resident, layer, dispatch.head_taps(structure.head))


def tables_of(on: Machine, case: Case, kept: Filter, choice: tuning_cache.Choice) -> Prepared:
    """Our tables for a filter, of this kernel."""
    return dispatch.tables(way_for(on, case, kept, choice), kept.to(on.device), case.shape[-1])


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
    name = case.layer(on.card).case(kept.felt(case.shape[-1]).taps, kept.structure)
    path = tuning_cache.keep(on.card.name, on.arch, {name: choice})
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


def needed(card: Card, some: Iterable[Case]) -> list[Build]:
    """Kernels that the planner will choose for these cases, without making a table."""
    found: dict[Build, None] = {}
    for layer in dict.fromkeys(case.layer(card) for case in some):
        for plan in plans(layer.seqlen).values():
            taps, structure = plan.taps or layer.seqlen, None
            if plan.mask is not None:
                taps, head = layer.seqlen, None if plan.taps is None else Filter(torch.empty(0, plan.taps))
                structure = Structure(plan.mask, head)
            for _, way in dispatch.ways(layer, taps, 0, structure).values():
                found |= dict.fromkeys(builds_of(way, layer.seqlen))
    return list(found)


def compile_one(build: Build, arch: str) -> str | None:
    """None once a kernel lies in the cache, or why it cannot."""
    try:
        jit.binary(gpu.kernel(gpu.unspilled(build, arch)), arch)
    except Exception as error:
        return f"{build}: {first_line(error)}"
    return None


def compile_all(builds: Sequence[Build], arch: str, processes: int | None = None) -> list[str]:
    """Kernels put into the cache by several processes, since NVRTC compiles one at a time in each; what went wrong."""
    processes = min(processes or os.cpu_count() or 1, len(builds))
    if processes <= 1:
        return [problem for build in builds if (problem := compile_one(build, arch))]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [problem for problem in pool.map(partial(compile_one, arch=arch), builds) if problem]
