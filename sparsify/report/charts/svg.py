"""Charts as SVG within HTML.

Along x everything stands in percent of the width, along y in pixels, so a chart fills the page it finds itself on and
its words keep their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .chart import Area, Chart, Dot, Dots, Frame, Line, between
from .labels import LETTER, placed


def drawn(chart: Chart) -> str:
    """A chart under its caption and legend."""
    frame = Frame(chart.across, chart.up, chart.height)
    behind = strip(frame, chart.even) if chart.even is not None else ""
    axes = [f'<line class="grid" x2="100%" y1="{frame.y(y):g}" y2="{frame.y(y):g}"/>'
            f'<text x="-7" y="{frame.y(y) + 4:g}" text-anchor="end">{words}</text>'
            for y, words in chart.up.ticks.items()]  # fmt: skip
    axes += [f'<text x="{frame.x(x):g}%" y="{frame.height + 17}" text-anchor="middle">{words}</text>'
             for x, words in chart.across.ticks.items()]  # fmt: skip
    lines = "".join(stroke(frame, mark) for mark in chart.marks if not isinstance(mark, Dots))
    marks = ""
    if chart.cut is not None:
        marks += at(frame.x(chart.cut), f'<path class="cut" d="M0,0V{frame.height}"/>')
    if chart.limit is not None:
        y = frame.y(chart.limit[0])
        marks += f'<line class="budget" x2="100%" y1="{y:g}" y2="{y:g}"/>'
    marks += "".join(f'<g class="{mark.kind}">{spot(frame, mark, dot)}</g>'
                     for mark in chart.marks if isinstance(mark, Dots) for dot in mark.dots)  # fmt: skip
    marks += "".join(at(x, label(words, y, anchor, dx)) for words, x, y, anchor, dx in placed(frame, chart))
    left = LETTER * max(map(len, chart.up.ticks.values()), default=0) + 8
    picture = (
        f'<div class="chart" style="padding-left:{left}px"><svg role="img" height="{frame.height}">'
        f"<title>{escape(chart.title)}</title><desc>{escape(chart.desc)}</desc>{behind}{''.join(axes)}"
        f'<svg viewBox="0 0 100 {frame.height}" preserveAspectRatio="none">{lines}</svg>{marks}</svg></div>'
    )
    return figure(chart.caption, chart.legend, picture, chart.below)


def strip(frame: Frame, even: float) -> str:
    """The grey strip on which an axis is even."""
    top, bottom = frame.y(even), frame.y(max(-even, frame.up.low))
    return f'<rect class="even" width="100%" y="{top:g}" height="{bottom - top:g}"/>'


def stroke(frame: Frame, mark: Line | Area) -> str:
    """A line, or a curve and the area under it."""
    points = [(frame.x(x), frame.y(y)) for x, y in mark.points]
    if isinstance(mark, Line):
        beads = f'<path class="beads" d="{"".join(f"M{x:g},{y:g}h0" for x, y in points)}"/>' if mark.beads else ""
        return f'<g class="{mark.kind}"><path class="line" d="M{coordinates(points)}"/>{beads}</g>'
    a, b = frame.x(mark.start), frame.x(mark.stop)
    line = coordinates(between(points, a, b))
    area = f"{line} {coordinates([(b, frame.height), (a, frame.height)])}Z"
    return f'<g class="{mark.kind}"><path class="area" d="M{area}"/><path class="line" d="M{line}"/></g>'


def spot(frame: Frame, mark: Dots, dot: Dot) -> str:
    """A dot with its whiskers, and a ring if it is one to look at."""
    y, shape = frame.y(dot.y), ""
    if dot.error:
        ends = frame.y(dot.y + dot.error), frame.y(dot.y - dot.error)
        shape = f'<path class="line" d="M0,{ends[0]:g}V{ends[1]:g}M-4,{ends[0]:g}h8M-4,{ends[1]:g}h8"/>'
    shape += f'<circle class="{"ring" if mark.hollow else "dot"}" cy="{y:g}" r="{mark.radius:g}"/>'
    if dot.label:
        shape += f'<circle class="ring" cy="{y:g}" r="8"/>'
    note = f"<title>{escape(dot.note)}</title>" if dot.note else ""
    return at(frame.x(dot.x), note + shape)


def coordinates(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def at(x: float, body: str) -> str:
    """A piece of a chart at x percent, in pixels from there."""
    return f'<svg x="{x:g}%">{body}</svg>'


def label(words: str, y: float, anchor: str = "start", x: float = 0) -> str:
    return f'<text class="on" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def figure(caption: str, legend: Sequence[tuple[str, str]], chart: str, below: str = "") -> str:
    """A chart under its caption and legend.  legend: (kind, name); below: what the x axis counts."""
    axis = f'<p class="axis">{escape(below)}</p>' if below else ""
    return f"<figure><figcaption><b>{escape(caption)}</b>{swatches(legend)}</figcaption>{chart}{axis}</figure>"


def swatches(legend: Sequence[tuple[str, str]]) -> str:
    return " ".join(f'<span><i class="{kind}"></i>{escape(name)}</span>' for kind, name in legend)
