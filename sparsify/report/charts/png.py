"""Charts as PNG, by matplotlib, which is optional: what draws raises ImportError without it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsify.report.schema import Points

from .chart import Area, Chart, Dots, Line, between

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

HUES = {"kept": "#2563c9", "tail": "#bd5208", "whole": "#77736b", "other": "#17713f"}  # as on the page by day
INK, GROUND = "#1c1b19", {"fc": "white", "lw": 0, "alpha": 0.8, "pad": 1}
FADED = 0.4  # of colours of what is gone
DPI = 144
WIDTH = 8.0  # inches


def drawn(rows: Sequence[Sequence[tuple[str, Chart]]], height: float) -> bytes:
    """Charts in rows, each under a title.  height: inches."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=DPI)
    figure.set_size_inches(WIDTH, height)
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, beside in zip(rows, panels, strict=True):
        for (title, chart), panel in zip(row, beside, strict=True):
            panel.set_title(title, fontsize="small", loc="left")
            draw(panel, chart)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def draw(panel: Axes, chart: Chart) -> None:
    """A chart on axes from 0 to 1, along which it says itself where its values lie."""
    x, y = chart.across.part, chart.up.part
    panel.set(xlim=(0, 1), ylim=(0, 1), xlabel=chart.below, ylabel=chart.caption)
    panel.set_xticks([x(value) for value in chart.across.ticks], list(chart.across.ticks.values()))
    panel.set_yticks([y(value) for value in chart.up.ticks], list(chart.up.ticks.values()))
    panel.grid(axis="y", alpha=0.25)
    if chart.even is not None:
        panel.axhspan(y(max(chart.up.low, -chart.even)), y(chart.even), color="#00000010", lw=0)
    dotted = any(isinstance(mark, Dots) for mark in chart.marks)
    handles = [swatch(kind, name, dotted) for kind, name in chart.legend]
    if chart.limit is not None:
        handles.append(panel.axhline(y(chart.limit[0]), color=INK, lw=1, ls="--", label=chart.limit[1]))
    if chart.cut is not None:
        panel.axvline(x(chart.cut), color=HUES["whole"], lw=1, ls="--")
    for mark in chart.marks:
        color = HUES[mark.kind.split()[0]]
        if isinstance(mark, Dots):
            dot(panel, chart, mark, color)
            continue
        points: Points = [(x(a), y(b)) for a, b in mark.points]
        if isinstance(mark, Area):
            points = between(points, x(mark.start), x(mark.stop))
            panel.fill_between(*zip(*points, strict=True), 0, color=color, alpha=0.3 * strength(mark.kind), lw=0)
        style = ".-" if isinstance(mark, Line) and mark.beads else "-"
        panel.plot(*zip(*points, strict=True), style, color=color, alpha=strength(mark.kind), lw=1, ms=3)
    if handles:
        panel.legend(handles=handles, frameon=False, fontsize="small", loc="best")


def swatch(kind: str, name: str, dotted: bool) -> Artist:
    """What stands in the legend for a kind: a line, a dot, or what an area is filled with."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    color = HUES[kind.split()[0]]
    if "stroke" in kind:
        return Line2D([], [], color=color, marker=".", lw=1, ms=3, label=name)
    if dotted:
        return Line2D([], [], color=color, marker="o", ms=6, ls="", label=name)
    return Patch(color=color, alpha=strength(kind), label=name)


def dot(panel: Axes, chart: Chart, mark: Dots, color: str) -> None:
    """Dots with their whiskers, and a ring and words where there are some."""
    x, y = chart.across.part, chart.up.part
    places = [(x(one.x), y(one.y)) for one in mark.dots]
    errors = [[abs(y(one.y + side * (one.error or 0)) - y(one.y)) for one in mark.dots] for side in (-1, 1)]
    face = "none" if mark.hollow else color
    panel.errorbar(*zip(*places, strict=True), errors, fmt="o", ms=6, mfc=face, capsize=3, color=color)
    for one, place in zip(mark.dots, places, strict=True):
        if one.label:
            panel.plot(*([at] for at in place), "o", ms=12, mfc="none", color=color)
            panel.annotate(one.label, place, (10, -14), textcoords="offset points", bbox=GROUND)


def strength(kind: str) -> float:
    return FADED if "gone" in kind else 1.0
