"""Measured numbers as people read them, in tables and reports alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from sparsify.storage.files import readable_size

from .schema import COUNTED, PERPLEXITY, Column, Evaluation, ParetoPairs, Part, Point, Search, Speed, Variant

FLOAT32 = "float32"
COUNTED_UNIT = "fewer taps plus bins"


def number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def power(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}e}"


def spread(value: float | None, stderr: float | None) -> str:
    if value is None:
        return ""
    return number(value) + ("" if stderr is None else f" ± {stderr:.4f}")


def percent(change: float, stderr: float | None = None) -> str:
    """A relative change, with its standard error: +0.045 % ± 0.021 %, or more digits where these would say nothing."""
    size = abs(stderr or change)
    digits = max(3, min(6, math.ceil(-2 - math.log10(size)))) if size else 3
    return f"{100 * change:+.{digits}f} %" + ("" if stderr is None else f" ± {100 * stderr:.{digits}f} %")


def ratio(value: float | None, stderr: float | None) -> str:
    """Relative change against dense, with its standard error.  value: the ratio."""
    return "" if value is None else percent(value - 1, stderr)


def may_leak(row: Evaluation | Search | ParetoPairs) -> bool:
    """Whether there is a future that it could read: models that fill in masked tokens look both ways anyhow."""
    return row.figure == PERPLEXITY


FIGURES: Sequence[tuple[str, Callable[[Variant], str]]] = (  # label, cell of one variant
    ("perplexity", lambda r: spread(r.perplexity, r.perplexity_stderr)),
    ("perplexity, negative lags cut", lambda r: spread(r.perplexity_cut, r.perplexity_cut_stderr)),
    ("against dense, paired", lambda r: ratio(r.perplexity_ratio, r.perplexity_ratio_stderr)),
    ("cut against dense, paired", lambda r: ratio(r.perplexity_cut_ratio, r.perplexity_cut_ratio_stderr)),
    ("bits a token", lambda r: number(r.bits_per_token)),
    ("leak (reads the future)", lambda r: power(r.leak)),
    ("KL from dense, nats", lambda r: power(r.kl, 2)),
    ("top-1 agreement", lambda r: "" if r.top1_agreement is None else f"{r.top1_agreement:.2%}"),
)


def speed_columns(speed: Speed) -> tuple[str, ...]:
    """Names of what `speed_rows` has."""
    return f"one pass of {speed.batch} x {speed.length:,} tokens", *(column.name for column in speed.columns)


def speed_rows(speed: Speed) -> list[tuple[str, ...]]:
    """A row a figure: time, throughput, how many times as fast as published, memory; a cell a column."""
    cells: Sequence[tuple[str, Callable[[Column], str]]] = (
        ("time", lambda c: milliseconds(c.seconds)),
        ("tokens a second", lambda c: f"{c.tokens_per_second:,.0f}"),
        ("against published, with quartiles", lambda c: faster(c.speedup, c.speedup_quartiles)),
        ("memory that it takes", lambda c: "" if c.peak_bytes is None else readable_size(c.peak_bytes)),
    )
    rows = [(label, *(cell(column) for column in speed.columns)) for label, cell in cells]
    return [row for row in rows if any(row[1:])]


def multiplied(linears: str) -> str:
    """What the linear layers multiply in, as a sentence; "" for float32, which goes without saying."""
    return "" if linears == FLOAT32 else f"Linear layers on a CPU multiply in {linears}"


def headline(evaluation: Evaluation) -> str:
    """How many times as fast a pass is as by the published code, at what loss, and what brought it; "" if untimed."""
    if (speed := evaluation.speed) is None:
        return ""
    change, stderr = evaluation.honest_ratio
    lost = "" if change is None else f", at {percent(change - 1, stderr)} {evaluation.figure}"
    return f"{times(speed.headline.speedup)} as fast as the published code{lost}: {brought(speed)}"


def brought(speed: Speed) -> str:
    """What made a pass faster than the published code, a factor each."""
    return ", ".join(f"{gain.name} {times(gain.factor)}" for gain in speed.gains)


def variants(evaluation: Evaluation) -> dict[str, Variant]:
    """Name -> what was measured: dense or another baseline and the variant of it, or the one model there is."""
    dense = {evaluation.dense.variant: evaluation.dense} if evaluation.dense else {}
    return {**dense, evaluation.variant: evaluation}


def figure_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """A row a figure that was measured: its label, then a cell a variant."""
    rows = [
        (
            against(label.replace(PERPLEXITY, evaluation.figure), variants(evaluation)),
            *(cell(row) for row in variants(evaluation).values()),
        )
        for label, cell in FIGURES
    ]
    return [row for row in rows if any(row[1:])]


def against(label: str, names: Iterable[str]) -> str:
    """A label with the name that the first variant, which the others are compared with, has here."""
    return label.replace("dense", next(iter(names)))


def position_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """A row a bucket of positions: its tokens, then the perplexity of every variant."""
    columns = [row.perplexity_by_position for row in variants(evaluation).values()]
    return [
        (f"{buckets[0].start:,} - {buckets[0].stop - 1:,}", *(number(b.perplexity) for b in buckets))
        for buckets in zip(*columns, strict=True)
    ]


def gain_unit(target: str) -> str:
    """What a plan made for a target has a number of times of."""
    return COUNTED_UNIT if target == COUNTED else f"faster convolutions on {target}, predicted"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def gain(planned: Search) -> str:
    """What the chosen plan gains, the number alone."""
    return times(planned.chosen.gain)


def promise(planned: Search) -> str:
    """What was asked of a plan, and what was found on data that the search did not see."""
    chosen = planned.chosen
    leak = f", the worst leak {power(chosen.leak)}" if chosen.leak else ""
    return (
        f"{gain(planned)} {gain_unit(planned.target)}, at "
        f"{percent(chosen.increase, chosen.stderr)} {planned.figure} on held-out windows; "
        f"the budget is {100 * planned.budget:g} %{leak}"
    )


def step_columns(planned: Search) -> tuple[str, ...]:
    """Names of what `step_rows` has."""
    leak = ("leak",) if may_leak(planned) else ()
    return "step", "gain, predicted", "density", f"{planned.figure}, predicted", "measured, held out", *leak, "fits"


def step_rows(planned: Search) -> list[tuple[str, ...]]:
    """A row a plan that was measured on the way to one within a budget."""
    return [
        (
            f"{i}" + (" (chosen)" if step == planned.chosen else ""),
            times(step.gain),
            number(step.density, 3),
            percent(step.predicted),
            percent(step.increase, step.stderr),
            *((power(step.leak),) if may_leak(planned) else ()),
            "yes" if step.fits else "no",
        )
        for i, step in enumerate(planned.steps, 1)
    ]


def front_columns(fronts: ParetoPairs) -> tuple[str, ...]:
    """Names of what `front_rows` has."""
    losses = (fronts.figure, "KL", *(("leak",) if may_leak(fronts) else ()))
    return "the same everywhere", "gain, predicted", *losses, "chosen: gain", *losses


def front_rows(fronts: ParetoPairs) -> list[tuple[str, ...]]:
    """A row a mask for every convolution, beside what sensitivity chooses at the same cost."""

    def cells(one: Point) -> tuple[str, ...]:
        return (
            times(fronts.dense_cost / one.cost),
            percent(one.increase, one.stderr),
            power(one.kl),
            *((power(one.leak),) if may_leak(fronts) else ()),
        )

    return [(f"{p.kind} {p.share:g}", *cells(p.uniform), *cells(p.chosen)) for p in fronts.pairs]


def searched(planned: Search) -> str:
    """How a plan within a budget was found, in a sentence."""
    most = f", at most {times(planned.most)} among these candidates" if planned.most else ""
    cut = ", negative lags cut" if may_leak(planned) else ""
    return (
        f"gain of the convolutions alone{most}; found on {planned.calibration_windows} windows in "
        f"{planned.passes:.1f} passes over them, measured on {planned.held_out_windows} others{cut}; "
        f"a step fits if its increase and one standard error do"
    )


def milliseconds(seconds: float) -> str:
    """Three digits and more where it takes long: 0.0123 ms, 1.23 ms, 1,234 ms."""
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def faster(ratio: float, quartiles: Sequence[float]) -> str:
    low, high = quartiles
    return f"{ratio:.2f}x ({low:.2f} - {high:.2f})"


def both_parts(before: Sequence[Part], after: Sequence[Part]) -> list[tuple[str, Part | None, Part | None]]:
    """Parts of a forward pass side by side, the largest before first; None for a part that is not there."""
    then, now = ({part.name: part for part in parts} for parts in (before, after))
    return [(name, then.get(name), now.get(name)) for name in {**then, **now}]


def part_rows(before: Sequence[Part], after: Sequence[Part]) -> list[tuple[str, ...]]:
    """A row a part: its name, then time and share before and after; the sum last."""

    def cells(part: Part | None) -> tuple[str, str]:
        return (milliseconds(part.seconds), f"{part.share:.0%}") if part else ("", "")

    rows = [(name, *cells(then), *cells(now)) for name, then, now in both_parts(before, after)]
    sums = (milliseconds(sum(part.seconds for part in parts)) for parts in (before, after))
    total = [text for one in sums for text in (one, "")]
    return [*rows, ("together", *total)]
