"""Pictures of what was measured: perplexity by position, and where the time of a forward pass goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from .charts import Axis, Frame, at, compact, figure, label, nice
from .figures import Row, both_parts, milliseconds, part_rows, position_rows, variants
from .tables import table

ROW = 54  # pixels that a part of the time takes in height: its name and two bars
LONGEST = 80  # percent of the width that the longest bar takes, its time beside it


def positions(evaluation: Mapping[str, Any]) -> str:
    """Perplexity by position as a chart, dense as rings and sparse as dots, and as a table."""
    rows = {name: row["perplexity_by_position"] for name, row in variants(evaluation).items()}
    buckets = evaluation["perplexity_by_position"]
    frame = Frame(tokens(buckets), perplexities([bucket["perplexity"] for row in rows.values() for bucket in row]), 200)
    marks = {name: ("whole", "ring", 5.5) if name == "dense" else ("kept", "dot", 3) for name in rows}
    lines, dots = [], []
    for name, (kind, shape, radius) in marks.items():
        points = [(i + 0.5, bucket["perplexity"]) for i, bucket in enumerate(rows[name])]
        lines.append(f'<g class="{kind}">{frame.line(points)}</g>')
        circles = (f'<circle class="{shape}" cx="{frame.x(i):g}%" cy="{frame.y(v):g}" r="{radius}"/>'
                   for i, v in points)  # fmt: skip
        dots.append(f'<g class="{kind}">{"".join(circles)}</g>')
    title = f"perplexity by tokens read so far, {' and '.join(rows)}"
    chart = frame.svg(title, "the same numbers stand in the table", "".join(lines), "".join(dots))
    legend = [(kind, name) for name, (kind, _, _) in marks.items()]
    picture = figure("perplexity as computed", legend, chart, "tokens read so far →")
    return f'<div class="pair positions">{picture}{table(["tokens", *rows], position_rows(evaluation))}</div>'


def tokens(buckets: list[Mapping[str, Any]]) -> Axis:
    """Buckets of positions side by side, with so few labels that they do not touch."""
    edges = [*(bucket["start"] for bucket in buckets), buckets[-1]["stop"]]
    every = 1 + len(buckets) // 7
    return Axis(0, len(buckets), {float(i): compact(edge) for i, edge in enumerate(edges) if i % every == 0})


def perplexities(values: list[float]) -> Axis:
    """Three or four even steps around what was measured."""
    step = nice((max(values) - min(values)) / 3 or 1e-3)
    low, high = math.floor(min(values) / step), math.floor(max(values) / step) + 1
    digits = max(0, -math.floor(math.log10(step)))
    return Axis(low * step, high * step, {i * step: f"{i * step:.{digits}f}" for i in range(low, high + 1)})


def parts(measured: Mapping[str, Any]) -> str:
    """Where the time of one forward pass goes: two bars a part on one scale, and the numbers."""
    before, after = measured["before"], measured["after"]
    rows = both_parts(before, after)
    longest = max(part["seconds"] for part in (*before, *after))
    drawn = [
        f'<text y="{ROW * i + 12}">{escape(name)}</text>'
        + bar("whole", ROW * i + 18, then, longest)
        + bar("kept", ROW * i + 33, now, longest)
        for i, (name, then, now) in enumerate(rows)
    ]
    title = "seconds of a forward pass by part, before and after"
    chart = (f'<svg role="img" height="{ROW * len(rows)}"><title>{title}</title>'
             f"<desc>the same numbers stand in the table</desc>{''.join(drawn)}</svg>")  # fmt: skip
    sums = [sum(part["seconds"] for part in found) for found in (before, after)]
    one = f"one forward pass of {measured['length']:,} tokens"
    caption = f"{one}: {milliseconds(sums[0])} before, {milliseconds(sums[1])} after"
    legend = [("whole", "before"), ("kept", "after")]
    note = (
        "Before is the model's own code, which makes filters and their spectra anew in every pass; after is this plan,"
        " with everything prepared. Taking a pass apart slows it a little."
    )
    head = ["part", "before", "share", "after", "share"]
    numbers = table(head, part_rows(before, after))
    return f'<p class="soft">{note}</p><div class="pair positions">{figure(caption, legend, chart)}{numbers}</div>'


def bar(kind: str, y: int, part: Row | None, longest: float) -> str:
    """One bar with its time at the end; nothing for a part that is not there."""
    if part is None:
        return ""
    width = max(0.3, round(LONGEST * part["seconds"] / longest, 2))  # seen, however short
    shape = f'<g class="{kind}"><rect class="bar" y="{y}" width="{width:g}%" height="12" rx="1"/></g>'
    return shape + at(width, label(milliseconds(part["seconds"]), y + 10, x=5))
