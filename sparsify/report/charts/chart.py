"""A chart as data: two axes, what is drawn along them, and the words to it.

What draws one asks it for everything, so a chart looks alike wherever it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsify.report.schema import Points


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


# --- what is drawn -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line through points.  kind: what its colour says, "kept", "tail", "whole" or "other".  beads: a dot at each."""

    kind: str
    points: Points
    beads: bool = False


@dataclass(frozen=True)
class Area:
    """A curve from start to stop, its ends interpolated, and the area under it.

    kind: as of a line; "kept gone" is a faded "kept".
    """

    kind: str
    points: Points
    start: float
    stop: float


@dataclass(frozen=True)
class Dot:
    """One point, with a whisker up and down as long as its error."""

    x: float
    y: float
    error: float | None = None
    label: str = ""  # written beside it; a dot with a label has a ring, too
    note: str = ""  # shown under the pointer


@dataclass(frozen=True)
class Dots:
    """Points of one kind.  hollow: rings."""

    kind: str
    dots: Sequence[Dot]
    radius: float = 4.5  # pixels
    hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """All there is to draw, and to say beside it."""

    title: str
    desc: str  # for those who cannot see it
    caption: str
    across: Axis
    up: Axis
    marks: Sequence[Line | Area | Dots]  # later ones on top
    legend: Sequence[tuple[str, str]]  # kind, name
    height: int = 140  # pixels
    below: str = ""  # what the x axis counts
    cut: float | None = None  # a dashed line upwards
    limit: tuple[float, str] | None = None  # a dashed line across, and its label
    even: float | None = None  # the y axis is even up to here, on a grey strip


@dataclass(frozen=True)
class Frame:
    """Where values lie: x in percent of the width, y in pixels from the top, so that words keep their size."""

    across: Axis
    up: Axis
    height: int = 140

    def x(self, value: float) -> float:
        return round(100 * self.across.part(value), 2)

    def y(self, value: float) -> float:
        return round(self.height * (1 - self.up.part(value)), 1)


def between(points: Points, start: float, stop: float) -> list[tuple[float, float]]:
    """A curve from start to stop, both interpolated.  points: as they are drawn."""
    xs, ys = np.array(points, dtype=float).T
    inside = (xs > start) & (xs < stop)
    ends = np.interp([start, stop], xs, ys)
    return [(start, ends[0]), *zip(xs[inside], ys[inside], strict=True), (stop, ends[1])]


# --- axes ----------------------------------------------------------------------------------------------------------


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


def nice(step: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is at least `step`."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step)


def compact(value: float) -> str:
    """A count in a few characters: 512, 1,024, 16k, 1.05M."""
    if value < 1e4:
        return f"{value:,.0f}"
    return f"{value / 1e3:.0f}k" if value < 1e6 else f"{value / 1e6:.3g}M"
