"""Pieces of SVG charts: axes, lines and labels.

Along x everything stands in percent of the width, along y in pixels, so a chart fills the page it finds itself on and
its words keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

Points = Sequence[Sequence[float]]  # [[x, y], ...], x ascending

LETTER = 7  # pixels that a letter of a label is wide, rather more


@dataclass(frozen=True)
class Axis:
    """Values from low to high and where labels stand among them; `shape` says how far apart values are drawn."""

    low: float
    high: float
    ticks: Mapping[float, str]
    shape: Callable[[float], float] = float

    def part(self, value: float) -> float:
        """How far along the axis a value lies: 0 at low, 1 at high."""
        low, high = self.shape(self.low), self.shape(self.high)
        return (self.shape(value) - low) / (high - low)


def decades(end: float) -> Axis:
    """A logarithmic axis from 1 to `end`, a label a decade."""
    end = max(end, 2)
    return Axis(1, end, {10.0**i: compact(10**i) for i in range(int(math.log10(end)) + 1)}, math.log10)


def factors(low: float, high: float) -> Axis:
    """A logarithmic axis for ratios, with round labels."""
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        every = (digit * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                 for digit in digits)  # fmt: skip
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) >= 4:
            break
    else:
        step = nice((high - low) / 5)
        ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(low, high, {tick: f"{tick:.3g}x" for tick in ticks}, math.log10)


def symlog(low: float, high: float, even: float) -> Axis:
    """An axis for relative changes, with labels: in even steps up to `even`, a power of ten, tenfold steps beyond."""

    def shape(value: float) -> float:
        steps = abs(value) / even
        return math.copysign(steps if steps <= 1 else 1 + math.log10(steps), value)

    reach = max(abs(low), abs(high), even)
    sizes = [even * 10.0**i for i in range(round(math.log10(reach / even)) + 2)]
    ticks = [-size for size in reversed(sizes)] + [0.0] + sizes
    return Axis(low, high, {tick: share(tick) for tick in ticks if low <= tick <= high}, shape)


def share(value: float) -> str:
    """0.001 as 0.1 %, with a minus that is as wide as a plus."""
    return f"{100 * value:g} %".replace("-", "−")


@dataclass(frozen=True)
class Frame:
    """Two axes; x in percent of the width, y in pixels from the top."""

    across: Axis
    up: Axis
    height: int = 140

    def x(self, value: float) -> float:
        return round(100 * self.across.part(value), 2)

    def y(self, value: float) -> float:
        return round(self.height * (1 - self.up.part(value)), 1)

    def line(self, points: Points, kind: str = "line") -> str:
        """A path through points."""
        return f'<path class="{kind}" d="M{coordinates((self.x(x), self.y(y)) for x, y in points)}"/>'

    def beads(self, points: Points) -> str:
        """A small dot at every point."""
        return f'<path class="beads" d="{"".join(f"M{self.x(x):g},{self.y(y):g}h0" for x, y in points)}"/>'

    def stretch(self, points: Points, start: float, stop: float, kind: str) -> str:
        """A curve from start to stop, its ends interpolated: a line and the area under it."""
        xs, ys = np.array([(self.x(x), self.y(y)) for x, y in points]).T
        a, b = self.x(start), self.x(stop)
        inside = (xs > a) & (xs < b)
        ends = np.interp([a, b], xs, ys)
        line = coordinates([(a, ends[0]), *zip(xs[inside], ys[inside], strict=True), (b, ends[1])])
        area = f"{line} {coordinates([(b, self.height), (a, self.height)])}Z"
        return f'<g class="{kind}"><path class="area" d="M{area}"/><path class="line" d="M{line}"/></g>'

    def svg(self, title: str, desc: str, lines: str, marks: str = "", behind: str = "") -> str:
        """The whole chart.  lines: paths in the frame's units; marks: pieces from `at`, drawn on top."""
        axes = [f'<line class="grid" x2="100%" y1="{self.y(y):g}" y2="{self.y(y):g}"/>'
                f'<text x="-7" y="{self.y(y) + 4:g}" text-anchor="end">{label}</text>'
                for y, label in self.up.ticks.items()]  # fmt: skip
        axes += [f'<text x="{self.x(x):g}%" y="{self.height + 17}" text-anchor="middle">{label}</text>'
                 for x, label in self.across.ticks.items()]  # fmt: skip
        left = LETTER * max(map(len, self.up.ticks.values()), default=0) + 8
        return (
            f'<div class="chart" style="padding-left:{left}px"><svg role="img" height="{self.height}">'
            f"<title>{escape(title)}</title><desc>{escape(desc)}</desc>{behind}{''.join(axes)}"
            f'<svg viewBox="0 0 100 {self.height}" preserveAspectRatio="none">{lines}</svg>{marks}</svg></div>'
        )


def coordinates(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def at(x: float, body: str) -> str:
    """A piece of a chart at x percent, in pixels from there."""
    return f'<svg x="{x:g}%">{body}</svg>'


def label(words: str, y: float, anchor: str = "start", x: float = 0) -> str:
    return f'<text class="on" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def figure(caption: str, legend: Sequence[tuple[str, str]], chart: str, below: str = "") -> str:
    """A chart under its caption and legend.  legend: (class, label); below: what the x axis counts."""
    swatches = " ".join(f'<span><i class="{kind}"></i>{escape(name)}</span>' for kind, name in legend)
    axis = f'<p class="axis">{escape(below)}</p>' if below else ""
    return f"<figure><figcaption><b>{escape(caption)}</b>{swatches}</figcaption>{chart}{axis}</figure>"


def nice(step: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is at least `step`."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step)


def compact(value: float) -> str:
    """A count in a few characters: 512, 1,024, 16k, 1.05M."""
    if value < 1e4:
        return f"{value:,.0f}"
    return f"{value / 1e3:.0f}k" if value < 1e6 else f"{value / 1e6:.3g}M"
