"""Where words stand in a chart, so that they cover neither each other nor, if it can be, what is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from .chart import Chart, Dot, Dots, Frame, Line

LETTER = 7  # pixels that a letter of a label is wide, rather more
PIECES = 16  # that a piece of a line is looked at in
NARROW = 270  # pixels of width that labels are placed for; on wider pages they only move apart

Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = tuple[float, float, str, float]  # x in percent, y, the end that stands there, pixels beyond
Placed = tuple[str, float, float, str, float]  # words and their place


def placed(frame: Frame, chart: Chart) -> list[Placed]:
    """Labels of dots beside them, and of the limit at its line.

    One that finds no place is left out; what it says shows under the pointer.
    """
    dots = [dot for mark in chart.marks if isinstance(mark, Dots) for dot in mark.dots]
    spots = [spot(frame, dot) for dot in dots]
    spots += [b for mark in chart.marks if isinstance(mark, Line) for b in traced(frame, mark)]
    asked = [(dot.label, beside(frame, dot)) for dot in dots if dot.label]
    if chart.limit is not None:
        y = frame.y(chart.limit[0])
        spots.append((0, y - 1, NARROW, y + 1))
        ends = [(100.0, "end", -4.0), (0.0, "start", 4.0), (50.0, "middle", 0.0)]
        asked.append((chart.limit[1], [(x, y + dy, a, dx) for x, a, dx in ends for dy in (-6, 15)]))
    return place(asked, spots, frame.height)


def beside(frame: Frame, dot: Dot) -> list[Place]:
    """Places for the label of a dot, the best first."""
    x, y = frame.x(dot.x), frame.y(dot.y)
    sides = [("start", 13.0), ("end", -13.0)]
    return [(x, y + dy, a, dx) for dy in (4, 22, -14, 40, -32) for a, dx in sides]


def spot(frame: Frame, dot: Dot) -> Box:
    """What a dot and its whiskers cover."""
    x, y = NARROW * frame.x(dot.x) / 100, frame.y(dot.y)
    low, high = (frame.y(dot.y + side * (dot.error or 0)) for side in (-1, 1))
    return x - 9, min(y - 9, high), x + 9, max(y + 9, low)


def traced(frame: Frame, line: Line) -> Iterator[Box]:
    """What a line covers, in small pieces."""
    for a, b in pairwise(line.points):
        for part in (i / PIECES for i in range(PIECES + 1)):
            x, y = (
                (1 - part) * start + part * end
                for start, end in ((frame.x(a[0]), frame.x(b[0])), (frame.y(a[1]), frame.y(b[1])))
            )
            yield NARROW * x / 100 - 2, y - 2, NARROW * x / 100 + 2, y + 2


def place(asked: Sequence[tuple[str, Sequence[Place]]], spots: Sequence[Box], height: float) -> list[Placed]:
    """Words at the first of their places that is free, those asked first before others.

    asked: words and places, the best first.  spots: what is drawn, which is covered where there is nowhere else.  Words
    that would cover other words are left out.
    """
    taken: list[Box] = []
    found: list[Placed] = []
    for words, places in asked:
        boxes = {place: box(words, *place) for place in places}
        free = [p for p, b in boxes.items() if inside(b, height) and not any(touch(b, other) for other in taken)]
        clear = [p for p in free if not any(touch(boxes[p], other) for other in spots)]
        if best := (clear or free)[:1]:
            taken.append(boxes[best[0]])
            found.append((words, *best[0]))
    return found


def box(words: str, x: float, y: float, anchor: str, dx: float) -> Box:
    """What words at a place cover."""
    width = LETTER * len(words)
    left = NARROW * x / 100 + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - 11, left + width, y + 4


def inside(b: Box, height: float) -> bool:
    return b[0] >= 0 and b[2] <= NARROW + 8 and b[1] >= 0 and b[3] <= height


def touch(a: Box, b: Box) -> bool:
    """Whether two boxes touch."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
