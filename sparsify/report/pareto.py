"""Speed against loss: what a plan gains and what it costs, as a chart and as the plain series behind it.

The same series are drawn on the page (here) and in the picture of the model card (`.plots`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from statistics import median
from typing import Any

from .charts import Axis, Frame, at, factors, figure, label, share, symlog
from .figures import PERPLEXITY, gain_unit, percent, times
from .figures import figure as measured_figure
from .labels import NARROW, Box, Place, Placed, place

MOST = 1.0  # a predicted increase above it is not drawn: no prediction holds that far
HEIGHT = 340
PIECES = 16  # that a piece of a line is looked at in


@dataclass(frozen=True)
class Dot:
    """A plan: how many times quicker it is than dense, and what it adds to the perplexity, relative."""

    gain: float
    increase: float
    stderr: float | None = None
    label: str = ""  # written beside it; a dot with a label has a ring, too
    note: str = ""  # shown under the pointer


@dataclass(frozen=True)
class Series:
    """Plans of one kind, drawn as dots or as a line."""

    name: str
    kind: str  # class of its colour: kept, tail, whole
    dots: tuple[Dot, ...]
    line: bool = False

    @property
    def in_legend(self) -> bool:
        """Whether its name is not written beside its dot already."""
        return self.name != self.dots[0].label


def series_of(planned: Mapping[str, Any]) -> list[Series]:
    """What the search for a plan within a budget found: the predicted front, what was measured, and dense.

    planned: as `sparsify convert` reports it.
    """
    chosen = planned["chosen"]
    measured: dict[bool, list[Dot]] = {True: [], False: []}
    for i, step in enumerate(planned["steps"], 1):
        gain, words = step["gain"], percent(step["increase"], step["stderr"])
        named = f"chosen: {times(gain)}" if step == chosen else ""
        note = f"step {i}: {times(gain)}, {words}, {'fits' if step['fits'] else 'does not fit'}"
        measured[step["fits"]].append(Dot(gain, step["increase"], step["stderr"], named, note))
    front = tuple(Dot(gain, increase) for gain, increase in planned["points"])
    found = [
        Series("predicted", "whole", front, line=True),
        Series("measured, does not fit", "whole", tuple(measured[False])),
        Series("measured, fits", "kept", tuple(measured[True])),
        Series("dense", "whole", (Dot(1.0, 0.0, None, "dense", "the model as it came"),)),
    ]
    return [one for one in found if one.dots]


def series_of_fronts(fronts: Mapping[str, Any]) -> list[Series]:
    """One mask for every convolution, a series a kind, and what sensitivity chooses at the same cost.

    fronts: as `sparsify eval front` reports it.
    """
    hues = dict(zip(dict.fromkeys(pair["kind"] for pair in fronts["pairs"]), ("tail", "whole", "other"), strict=False))

    def dots(of: str, kind: str | None = None) -> tuple[Dot, ...]:
        pairs = sorted((p for p in fronts["pairs"] if kind in (None, p["kind"])), key=lambda p: -p[of]["cost"])
        return tuple(Dot(fronts["dense_cost"] / p[of]["cost"], p[of]["increase"], p[of]["stderr"]) for p in pairs)

    uniform = [Series(f"{kind}, the same everywhere", hue, dots("uniform", kind)) for kind, hue in hues.items()]
    return [*uniform, Series("chosen by sensitivity", "kept", tuple(dict.fromkeys(dots("chosen"))))]


def drawable(series: Sequence[Series]) -> list[Series]:
    """The same, lines only as far as predictions hold; the last piece of a line ends there."""
    return [replace(one, dots=tuple(below(one.dots))) if one.line else one for one in series]


def below(dots: Iterable[Dot], most: float = MOST) -> Iterator[Dot]:
    """The leading dots of a rising line that lie below `most`, and where it crosses."""
    dots = list(dots)
    yield from dots[:1]
    for a, b in pairwise(dots):
        if b.increase > most:
            part = (most - a.increase) / (b.increase - a.increase)
            yield Dot(a.gain * (b.gain / a.gain) ** part, most)
            return
        yield b


def axes(series: Sequence[Series], budget: float | None) -> tuple[Axis, Axis, float]:
    """Gain and increase, with room for every dot and its error, and the increase up to which the axis is even."""
    dots = [dot for one in series for dot in one.dots]
    increases = [abs(dot.increase) for dot in dots if dot.increase]
    even = 10.0 ** math.floor(math.log10((budget or median(increases or [1e-3])) / 3))
    highest = max(*(dot.increase + (dot.stderr or 0) for dot in dots), 3 * (budget or even))
    lowest = min(*(dot.increase - (dot.stderr or 0) for dot in dots), 0)
    least, most = min(1.0, *(dot.gain for dot in dots)), max(1.2, *(dot.gain for dot in dots))
    room = (most / least) ** 0.04
    across = factors(least / room, most * room)
    low = 1.5 * lowest if lowest < -even else lowest - even / 4
    return across, symlog(low, 1.5 * highest, even), even


def chart(series: Sequence[Series], budget: float | None, unit: str, what: str = PERPLEXITY) -> str:
    """Gain against loss, with error bars.

    series: later ones on top.  budget: largest increase allowed, drawn as a line.  unit: what gains are times of, as
    `figures.gain_unit` says it.  what: increases, as `figures.figure` says it.
    """
    series = drawable(series)
    across, up, even = axes(series, budget)
    frame = Frame(across, up, HEIGHT)
    lines, marks = [], []
    for one in series:
        if one.line:
            points = [(dot.gain, dot.increase) for dot in one.dots]
            lines.append(f'<g class="{one.kind}">{frame.line(points)}{frame.beads(points)}</g>')
        else:
            marks += [f'<g class="{one.kind}">{mark(frame, dot)}</g>' for dot in one.dots]
    limit = ""
    if budget is not None:
        limit = f'<line class="budget" x2="100%" y1="{frame.y(budget):g}" y2="{frame.y(budget):g}"/>'
    top, bottom = frame.y(even), frame.y(max(-even, up.low))
    strip = f'<rect class="even" width="100%" y="{top:g}" height="{bottom - top:g}"/>'
    words = [at(x, label(text, y, anchor, dx)) for text, x, y, anchor, dx in placed(frame, series, budget)]
    title = f"increase of {what} against {unit}"
    desc = "; ".join(f"{one.name}: {len(one.dots)} plans" for one in series)
    drawn = frame.svg(title, desc, "".join(lines), limit + "".join(marks) + "".join(words), strip)
    shown = [(f"{one.kind} {'stroke' if one.line else ''}".strip(), one.name) for one in series if one.in_legend]
    return figure(f"increase of {what}", shown, drawn, f"times {unit} →") + (
        f'<p class="soft">Whiskers are standard errors. The grey strip is an even scale, up to {share(even)} of '
        f"{what}; from there on every line is ten times the one before.</p>"
    )


def mark(frame: Frame, dot: Dot) -> str:
    """A dot with its whiskers, and a ring if it is one to look at."""
    y, shape = frame.y(dot.increase), ""
    if dot.stderr:
        ends = frame.y(dot.increase + dot.stderr), frame.y(dot.increase - dot.stderr)
        shape = f'<path class="line" d="M0,{ends[0]:g}V{ends[1]:g}M-4,{ends[0]:g}h8M-4,{ends[1]:g}h8"/>'
    shape += f'<circle class="dot" cy="{y:g}" r="4.5"/>'
    if dot.label:
        shape += f'<circle class="ring" cy="{y:g}" r="8"/>'
    note = f"<title>{escape(dot.note)}</title>" if dot.note else ""
    return at(frame.x(dot.gain), note + shape)


def placed(frame: Frame, series: Sequence[Series], budget: float | None) -> list[Placed]:
    """Labels of dots beside them, and of the budget at its line.

    One that finds no place is left out; what it says shows under the pointer.
    """
    dots = [dot for one in series if not one.line for dot in one.dots]
    spots = [spot(frame, dot) for dot in dots] + [b for one in series if one.line for b in traced(frame, one.dots)]
    asked = [(dot.label, beside(frame, dot)) for dot in dots if dot.label]
    if budget is not None:
        y = frame.y(budget)
        spots.append((0, y - 1, NARROW, y + 1))
        ends = [(100.0, "end", -4.0), (0.0, "start", 4.0), (50.0, "middle", 0.0)]
        asked.append((f"budget {share(budget)}", [(x, y + dy, a, dx) for x, a, dx in ends for dy in (-6, 15)]))
    return place(asked, spots, frame.height)


def beside(frame: Frame, dot: Dot) -> list[Place]:
    """Places for the label of a dot, the best first."""
    x, y = frame.x(dot.gain), frame.y(dot.increase)
    sides = [("start", 13.0), ("end", -13.0)]
    return [(x, y + dy, a, dx) for dy in (4, 22, -14, 40, -32) for a, dx in sides]


def spot(frame: Frame, dot: Dot) -> Box:
    """What a dot and its whiskers cover."""
    x, y = NARROW * frame.x(dot.gain) / 100, frame.y(dot.increase)
    low, high = (frame.y(dot.increase + side * (dot.stderr or 0)) for side in (-1, 1))
    return x - 9, min(y - 9, high), x + 9, max(y + 9, low)


def traced(frame: Frame, dots: Sequence[Dot]) -> Iterator[Box]:
    """What a line covers, in small pieces."""
    for a, b in pairwise(dots):
        for part in (i / PIECES for i in range(PIECES + 1)):
            x, y = (
                (1 - part) * start + part * end
                for start, end in ((frame.x(a.gain), frame.x(b.gain)), (frame.y(a.increase), frame.y(b.increase)))
            )
            yield NARROW * x / 100 - 2, y - 2, NARROW * x / 100 + 2, y + 2


def section(planned: Mapping[str, Any]) -> str:
    """The chart of a plan within a budget."""
    drawn = chart(series_of(planned), planned["budget"], gain_unit(planned["target"]), measured_figure(planned))
    fits = "A plan fits if its increase and one standard error lie within the budget, and if it leaks little enough."
    return f'{drawn}<p class="soft">{fits}</p>'
