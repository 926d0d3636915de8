"""The time of a model: of a forward pass by part, end to end, and of every convolution alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sparsify.fftconv import LongConv
from sparsify.report.schema import (
    EXACT,
    LINEARS,
    LOSSLESS,
    MASKS,
    PLANNED,
    PUBLISHED,
    Column,
    Gain,
    ModelBench,
    Parts,
    Speed,
    Timed,
)

from .checkpoints import FLOAT32, Linears, check_linears, described, in_words, operators, running, some_tokens
from .progress import say

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that `sparsify --help` is quick
    from torch import Tensor

    from sparsify.converters import Pretrained
    from sparsify.evals.speed.throughput import Timing
    from sparsify.plan import Plan
    from sparsify.sites import Conv, ConvSite

BASELINES = (
    "dense",
    "torch",
    "published",
)  # prepared once by us; by torch.fft; anew in every call, as the published code does
SITE_BAR = 1e-5  # relative error that a model's convolution may have: a trained filter may cancel most of its input


def timed_parts(
    p: Pretrained, plan: Plan, batch: int, length: int, linears: Linears = FLOAT32, rounds: int = 5
) -> Parts:
    """Where the time of one forward pass goes, by part: before, as published, and after, under the plan."""
    from sparsify.evals.speed.breakdown import Stopwatch, breakdown

    say("timing the parts of a forward pass")
    watch, ids = Stopwatch(), some_tokens(p, batch, length)
    convs = {name: watch.wrap(conv) for name, conv in operators(p, plan).items()}
    runs = {"before": running(p, dict.fromkeys(p.filters)), "after": running(p, convs, linears)}
    found = breakdown(p.model, {name: partial(run, ids) for name, run in runs.items()}, watch, p.sites, rounds)
    return Parts(batch, length, tuple(found["before"]), tuple(found["after"]))


def columns_of_time(
    p: Pretrained, plan: Plan, inputs: tuple[Tensor, ...], linears: Linears = FLOAT32, most_seconds: float = 20.0
) -> Speed:
    """One pass as published, exact, and under the plan, in the same rounds, and what each change brings.

    inputs: what the model reads, ids (B, L) first.  Without a plan, and with linear layers in float32, there are two
    columns.  most_seconds: about as long as all of it may take; three rounds are timed in any case, and eleven at most.
    """
    from sparsify.evals.speed import memory, throughput

    convs: dict[str, Mapping[str, Conv | None]] = {PUBLISHED: dict.fromkeys(p.filters), EXACT: operators(p)}
    precisions: dict[str, Linears] = dict.fromkeys(convs, FLOAT32)
    gains, last, faster_linears = [(LOSSLESS, PUBLISHED, EXACT)], EXACT, linears not in (FLOAT32, {})
    if plan.cuts_filters:
        last = MASKS if faster_linears else PLANNED  # timed, but no column of its own
        convs[last], precisions[last] = operators(p, plan), FLOAT32
        gains.append((MASKS, EXACT, last))
    if faster_linears:
        convs[PLANNED], precisions[PLANNED] = operators(p, plan), linears
        gains.append((LINEARS, last, PLANNED))
    say("timing")
    runs = {name: partial(running(p, some, precisions[name]), *inputs) for name, some in convs.items()}
    run_all(list(runs.values()))  # which prepares the filters
    began = throughput.wall_clock()
    peaks = {name: memory.peak_growth(run, p.device) for name, run in runs.items()}
    one_round = throughput.wall_clock() - began
    taken = throughput.in_rounds(runs, max(3, min(11, int(most_seconds / one_round) - 2)), warmup=1)
    against = {name: taken.against(name) for name in runs}
    batch, length = inputs[0].shape
    columns = tuple(
        Column(
            name=name,
            seconds=row.seconds,
            tokens_per_second=throughput.tokens_per_second(row, batch * length),
            peak_bytes=peak_bytes(peaks[name], convs[name]),
            **faster("speedup", row),
        )
        for name, row in against[PUBLISHED].items()
        if name in (PUBLISHED, EXACT, PLANNED)
    )
    factors = ((name, against[before][after]) for name, before, after in gains)
    return Speed(
        batch=batch,
        length=length,
        columns=columns,
        gains=tuple(Gain(name, row.speedup, [row.speedup_low, row.speedup_high]) for name, row in factors),
    )


def peak_bytes(growth: int | None, convs: Mapping[str, Conv | None]) -> int | None:
    """What a pass adds to the process, and what is kept prepared of the filters for it."""
    if growth is None:
        return None
    return growth + sum(conv.prepared_bytes for conv in convs.values() if isinstance(conv, LongConv))


def timed_model(
    p: Pretrained, base: Pretrained, batch: int, length: int, linears: str | None, rounds: int
) -> ModelBench:
    """A model under its plan against `BASELINES`: end to end, all convolutions, every one; and where the time goes."""
    from sparsify.cpu.linear import layers_of
    from sparsify.evals import results

    check_linears(p, linears, batch * length)
    asked: Linears = p.plan.linears if linears is None else linears
    sparse, dense = operators(p, p.plan), operators(base)
    through_torch = torch_operators(base, batch, length)
    own, own_torch = (dense, through_torch) if base is p else (operators(p), torch_operators(p, batch, length))
    alone = {
        site.name: ways_alone(p, site, (sparse[site.name], own[site.name], own_torch[site.name]), batch, length)
        for site in p.sites
    }
    convs: dict[str, Mapping[str, Conv | None]] = {
        "dense": dense,
        "torch": through_torch,
        "published": dict.fromkeys(base.filters),
    }
    ids = some_tokens(p, batch, length)
    whole = {name: partial(running(base, some), ids) for name, some in convs.items()}
    row = timed("whole model", {**whole, "sparse": partial(running(p, sparse, asked), ids)}, p.plan.policy, rounds)
    together = {way: partial(run_all, [runs[way] for runs in alone.values()]) for way in ("sparse", *BASELINES)}
    return ModelBench(
        **described(p) | vars(row),
        length=length,
        batch=batch,
        linears=in_words(asked, len(layers_of(p.model))),
        tokens_per_second=batch * length / row.seconds,
        parts=timed_parts(p, p.plan, batch, length, asked),
        convolutions=timed("all convolutions", together, p.plan.policy, rounds),
        sites=tuple(timed(name, runs, str(p.plan.filters[name]), rounds) for name, runs in alone.items()),
        conditions=results.conditions(p.device),
    )


def torch_operators(p: Pretrained, batch: int, length: int) -> dict[str, Conv]:
    """Every convolution, dense, by the best of torch.fft for signals of this size."""
    from sparsify.evals.speed import cpu_convolution
    from sparsify.filters.filter import in_memory

    say("finding the best torch.fft")
    return {
        s.name: cpu_convolution.best_torch(some_signal(p, s, batch, length), in_memory(p.filters[s.name]).to(p.device))
        for s in p.sites
    }


def some_signal(p: Pretrained, site: ConvSite, batch: int, length: int) -> Tensor:
    """What a convolution is timed on alone: (batch, channels, length), the same for sites of as many channels."""
    import torch

    draw = torch.Generator(p.device).manual_seed(0)
    return torch.randn(batch, site.channels, length, generator=draw, device=p.device)


def ways_alone(
    p: Pretrained, site: ConvSite, convs: tuple[Conv, Conv, Conv], batch: int, length: int
) -> dict[str, Callable[[], Tensor]]:
    """One convolution as installed, correct before it is timed, and its baselines.  Upstream: but for the network.

    convs: under the plan, dense, and through torch.fft.
    """
    from sparsify.evals.speed import cpu_convolution
    from sparsify.filters.filter import in_memory

    k, kept = p.filters[site.name], p.plan.filters[site.name]
    u = some_signal(p, site, batch, length)
    sparse, dense, through_torch = convs
    cpu_convolution.check(site.name, sparse(u[:1]), u[:1], kept.apply(k), SITE_BAR)
    return {
        "sparse": partial(sparse, u),
        "dense": partial(dense, u),
        "torch": partial(through_torch, u),
        "published": partial(cpu_convolution.reference, u, in_memory(k.felt(length)).to(p.device)),
    }


def run_all(runs: Sequence[Callable[[], object]]) -> None:
    for run in runs:
        run()


def timed(name: str, runs: Mapping[str, Callable[[], object]], plan: str, rounds: int) -> Timed:
    """What the verb says of one thing: seconds under the plan, those of each baseline, and paired ratios."""
    import torch

    from sparsify.evals.speed import throughput

    say(f"timing {name}")
    with torch.no_grad():
        taken = throughput.in_rounds(runs, rounds)
    row: dict[str, Any] = {}
    for baseline in BASELINES:
        against = taken.against(baseline)
        row |= {"seconds": against["sparse"].seconds, f"{baseline}_seconds": against[baseline].seconds}
        row |= faster("speedup" if baseline == "dense" else f"{baseline}_speedup", against["sparse"])
    return Timed(name=name, plan=plan, **row)


def faster(key: str, timing: Timing) -> dict[str, Any]:
    return {key: timing.speedup, f"{key}_quartiles": [timing.speedup_low, timing.speedup_high]}
