"""Speed against loss: what a plan gains and what it costs, as a chart and as the plain series behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from statistics import median

from .charts.chart import Axis, Chart, Dot, Dots, Line, factors, share, symlog
from .charts.svg import drawn
from .figures import gain_unit, percent, times
from .schema import PERPLEXITY, Pair, ParetoPairs, Point, Search

MOST = 1.0  # a predicted increase above it is not drawn: no prediction holds that far
HEIGHT = 340
UNIFORM, CHOSEN = attrgetter("uniform"), attrgetter("chosen")


@dataclass(frozen=True)
class Series:
    """Plans of one kind, drawn as dots or as a line.

    A dot says how many times quicker than dense a plan is, and what it adds to the perplexity, relative.
    """

    name: str
    kind: str  # class of its colour: kept, tail, whole
    dots: tuple[Dot, ...]
    line: bool = False

    @property
    def in_legend(self) -> bool:
        """Whether its name is not written beside its dot already."""
        return self.name != self.dots[0].label

    @property
    def mark(self) -> Line | Dots:
        """How it is drawn."""
        return Line(self.kind, [(d.x, d.y) for d in self.dots], True) if self.line else Dots(self.kind, self.dots)


def series_of(planned: Search) -> list[Series]:
    """What the search for a plan within a budget found: the predicted front, what was measured, and dense.

    planned: as `sparsify convert` reports it.
    """
    chosen = planned.chosen
    measured: dict[bool, list[Dot]] = {True: [], False: []}
    for i, step in enumerate(planned.steps, 1):
        gain, words = step.gain, percent(step.increase, step.stderr)
        named = f"chosen: {times(gain)}" if step == chosen else ""
        note = f"step {i}: {times(gain)}, {words}, {'fits' if step.fits else 'does not fit'}"
        measured[step.fits].append(Dot(gain, step.increase, step.stderr, named, note))
    front = tuple(Dot(gain, increase) for gain, increase in planned.points)
    found = [
        Series("predicted", "whole", front, line=True),
        Series("measured, does not fit", "whole", tuple(measured[False])),
        Series("measured, fits", "kept", tuple(measured[True])),
        Series("dense", "whole", (Dot(1.0, 0.0, None, "dense", "the model as it came"),)),
    ]
    return [one for one in found if one.dots]


def series_of_fronts(fronts: ParetoPairs) -> list[Series]:
    """One mask for every convolution, a series a kind, and what sensitivity chooses at the same cost.

    fronts: as `sparsify eval front` reports it.
    """
    hues = dict(zip(dict.fromkeys(pair.kind for pair in fronts.pairs), ("tail", "whole", "other"), strict=False))

    def dots(pick: Callable[[Pair], Point], kind: str | None = None) -> tuple[Dot, ...]:
        points = [pick(pair) for pair in fronts.pairs if kind in (None, pair.kind)]
        return tuple(Dot(fronts.dense_cost / point.cost, point.increase, point.stderr)
                     for point in sorted(points, key=lambda point: -point.cost))  # fmt: skip

    uniform = [Series(f"{kind}, the same everywhere", hue, dots(UNIFORM, kind)) for kind, hue in hues.items()]
    return [*uniform, Series("chosen by sensitivity", "kept", tuple(dict.fromkeys(dots(CHOSEN))))]


def drawable(series: Sequence[Series]) -> list[Series]:
    """The same, lines only as far as predictions hold; the last piece of a line ends there."""
    return [replace(one, dots=tuple(below(one.dots))) if one.line else one for one in series]


def below(dots: Iterable[Dot], most: float = MOST) -> Iterator[Dot]:
    """The leading dots of a rising line that lie below `most`, and where it crosses."""
    dots = list(dots)
    yield from dots[:1]
    for a, b in pairwise(dots):
        if b.y > most:
            part = (most - a.y) / (b.y - a.y)
            yield Dot(a.x * (b.x / a.x) ** part, most)
            return
        yield b


def axes(series: Sequence[Series], budget: float | None) -> tuple[Axis, Axis, float]:
    """Gain and increase, with room for every dot and its error, and the increase up to which the axis is even."""
    dots = [dot for one in series for dot in one.dots]
    increases = [abs(dot.y) for dot in dots if dot.y]
    even = 10.0 ** math.floor(math.log10((budget or median(increases or [1e-3])) / 3))
    highest = max(*(dot.y + (dot.error or 0) for dot in dots), 3 * (budget or even))
    lowest = min(*(dot.y - (dot.error or 0) for dot in dots), 0)
    least, most = min(1.0, *(dot.x for dot in dots)), max(1.2, *(dot.x for dot in dots))
    margin = (most / least) ** 0.04
    across = factors(least / margin, most * margin)
    low = 1.5 * lowest if lowest < -even else lowest - even / 4
    return across, symlog(low, 1.5 * highest, even), even


def chart(series: Sequence[Series], budget: float | None, unit: str, what: str = PERPLEXITY) -> Chart:
    """Gain against loss, with error bars.

    series: later ones on top.  budget: largest increase allowed, drawn as a line.  unit: what gains are times of, as
    `figures.gain_unit` says it.  what: increases, as their `figure` has it.
    """
    series = drawable(series)
    across, up, even = axes(series, budget)
    return Chart(
        title=f"increase of {what} against {unit}",
        desc="; ".join(f"{one.name}: {len(one.dots)} plans" for one in series),
        caption=f"increase of {what}",
        across=across,
        up=up,
        marks=[one.mark for one in series],
        legend=[(f"{one.kind} {'stroke' if one.line else ''}".strip(), one.name) for one in series if one.in_legend],
        height=HEIGHT,
        below=f"times {unit} →",
        limit=None if budget is None else (budget, f"budget {share(budget)}"),
        even=even,
    )


def chart_of(planned: Search) -> Chart:
    """The chart of a plan within a budget."""
    return chart(series_of(planned), planned.budget, gain_unit(planned.target), planned.figure)


def section(planned: Search) -> str:
    """The same on the page, with what there is to say of it."""
    found = chart_of(planned)
    return (
        f'{drawn(found)}<p class="soft">Whiskers are standard errors. The grey strip is an even scale, up to '
        f"{share(found.even or 0)} of {planned.figure}; from there on every line is ten times the one before.</p>"
        f'<p class="soft">A plan fits if its increase and one standard error lie within the budget, and if it leaks '
        f"little enough.</p>"
    )
