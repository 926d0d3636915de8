"""Pictures of what was measured: perplexity by position, and where the time of a forward pass goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .charts.chart import Axis, Chart, Dot, Dots, Line, compact, nice
from .charts.svg import at, drawn, figure, label
from .figures import both_parts, milliseconds, part_rows, position_rows, variants
from .schema import Evaluation, Part, Parts, PositionBucket
from .tables import table

ROW = 54  # pixels that a part of the time takes in height: its name and two bars
LONGEST = 80  # percent of the width that the longest bar takes, its time beside it


def positions(evaluation: Evaluation) -> str:
    """Perplexity by position as a chart and as a table."""
    numbers = table(["tokens", *variants(evaluation)], position_rows(evaluation))
    return f'<div class="pair positions">{drawn(position_chart(evaluation))}{numbers}</div>'


def position_chart(evaluation: Evaluation) -> Chart:
    """Perplexity by position, dense as rings and sparse as dots."""
    rows = {name: row.perplexity_by_position for name, row in variants(evaluation).items()}
    first = next(iter(rows))
    marks: list[Line | Dots] = []
    for name, buckets in rows.items():
        kind, radius, hollow = ("whole", 5.5, True) if name == first else ("kept", 3, False)
        dots = [Dot(i + 0.5, bucket.perplexity) for i, bucket in enumerate(buckets)]
        marks += [Line(kind, [(dot.x, dot.y) for dot in dots]), Dots(kind, dots, radius, hollow)]
    return Chart(
        title=f"perplexity by tokens read so far, {' and '.join(rows)}",
        desc="the same numbers stand in the table",
        caption="perplexity as computed",
        across=tokens(evaluation.perplexity_by_position),
        up=perplexities([bucket.perplexity for buckets in rows.values() for bucket in buckets]),
        marks=marks,
        legend=[("whole" if name == first else "kept", name) for name in rows],
        height=200,
        below="tokens read so far →",
    )


def tokens(buckets: Sequence[PositionBucket]) -> Axis:
    """Buckets of positions side by side, with so few labels that they do not touch."""
    edges = [*(bucket.start for bucket in buckets), buckets[-1].stop]
    every = 1 + len(buckets) // 7
    return Axis(0, len(buckets), {float(i): compact(edge) for i, edge in enumerate(edges) if i % every == 0})


def perplexities(values: list[float]) -> Axis:
    """Three or four even steps around what was measured."""
    step = nice((max(values) - min(values)) / 3 or 1e-3)
    low, high = math.floor(min(values) / step), math.floor(max(values) / step) + 1
    digits = max(0, -math.floor(math.log10(step)))
    return Axis(low * step, high * step, {i * step: f"{i * step:.{digits}f}" for i in range(low, high + 1)})


def parts(measured: Parts) -> str:
    """Where the time of one forward pass goes: two bars a part on one scale, and the numbers."""
    before, after = measured.before, measured.after
    rows = both_parts(before, after)
    longest = max(part.seconds for part in (*before, *after))
    bars = [
        f'<text y="{ROW * i + 12}">{escape(name)}</text>'
        + bar("whole", ROW * i + 18, then, longest)
        + bar("kept", ROW * i + 33, now, longest)
        for i, (name, then, now) in enumerate(rows)
    ]
    title = "seconds of a forward pass by part, before and after"
    chart = (f'<svg role="img" height="{ROW * len(rows)}"><title>{title}</title>'
             f"<desc>the same numbers stand in the table</desc>{''.join(bars)}</svg>")  # fmt: skip
    sums = [sum(part.seconds for part in found) for found in (before, after)]
    one = f"one forward pass of {measured.length:,} tokens"
    caption = f"{one}: {milliseconds(sums[0])} before, {milliseconds(sums[1])} after"
    legend = [("whole", "before"), ("kept", "after")]
    note = (
        "Before is the model's own code, which makes filters and their spectra anew in every pass; after is this plan,"
        " with everything prepared. Taking a pass apart slows it a little."
    )
    head = ["part", "before", "share", "after", "share"]
    numbers = table(head, part_rows(before, after))
    return f'<p class="soft">{note}</p><div class="pair positions">{figure(caption, legend, chart)}{numbers}</div>'


def bar(kind: str, y: int, part: Part | None, longest: float) -> str:
    """One bar with its time at the end; nothing for a part that is not there."""
    if part is None:
        return ""
    width = max(0.3, round(LONGEST * part.seconds / longest, 2))  # seen, however short
    shape = f'<g class="{kind}"><rect class="bar" y="{y}" width="{width:g}%" height="12" rx="1"/></g>'
    return shape + at(width, label(milliseconds(part.seconds), y + 10, x=5))
