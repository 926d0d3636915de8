"""Where words stand in a chart, so that they cover neither each other nor, if it can be, what is drawn."""

from __future__ import annotations

from collections.abc import Sequence

from .charts import LETTER

NARROW = 270  # pixels of width that labels are placed for; on wider pages they only move apart

Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = tuple[float, float, str, float]  # x in percent, y, the end that stands there, pixels beyond
Placed = tuple[str, float, float, str, float]  # words and their place


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
