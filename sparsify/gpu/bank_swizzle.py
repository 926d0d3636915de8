"""Where words lie in shared memory so that no two of eight lanes meet at one bank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product

from .tiling import Tiling, core

EIGHTS = [[(2 * q + lane // 4, lane % 4) for lane in range(8)] for q in range(4)]  # (g, t) of a warp's lanes 4 g + t


def accesses(tiling: Tiling, every: bool = True) -> Iterator[tuple[str, list[int]]]:
    """Chunks of 16 bytes that eight consecutive lanes touch at once: (pattern, natural indices).

    every False leaves out what differs by bits that all eight lanes share: enough for a linear swizzle.
    """
    n, behind = tiling.factors, [s // 4 for s in tiling.behind[:-1]]  # in chunks
    # eight lanes of a short row reach into others, and with 48 rows of chunks these do not start at powers of two
    every = every or (n[0] == 48 and behind[0] < 16)

    def some(count: int) -> range:
        return range(count if every else 1)

    eights = EIGHTS if every else EIGHTS[:1]

    def at(axis: int, group: int, digit: int) -> int:
        prefix, column = divmod(group, behind[axis])
        return (prefix * n[axis] + digit) * behind[axis] + column

    for axis in range(len(n) - 1):
        units = tiling.rows * tiling.points // (32 * n[axis])
        for unit, tile, e, lanes in product(some(units), some(n[axis] // 8), some(2), eights):
            yield f"load {axis + 1}", [at(axis, 8 * unit + g, 8 * tile + t + 4 * e) for g, t in lanes]
            if axis > 0 or tiling.source == "complex":
                yield f"store {axis + 1}", [at(axis, 8 * unit + 2 * t + e, 8 * tile + g) for g, t in lanes]
    if tiling.source != "complex":  # 16 columns a lane, two chunks of each group of 8
        for unit, tile, e, c, lanes in product(
            some(tiling.units["stage 1"]), some(n[0] // 8), some(2), some(2), eights
        ):
            yield "store 1", [at(0, 2 * (8 * unit + 2 * t + e) + c, 8 * tile + g) for g, t in lanes]
    for unit, d, step, lanes in product(some(tiling.units["inner"]), some(2), some(n[-1] // 16), eights):
        yield "inner", [(16 * unit + g + 8 * d) * behind[-1] + t + 4 * step for g, t in lanes]
    if core(n, "float16"):  # two prefixes of 16 x 4 chunks at a time; for float32 the patterns above
        for unit, d, lanes in product(some(tiling.rows * tiling.points // 512), some(2), eights):
            yield "core", [(16 * (2 * unit + g % 2) + t) * 4 + g // 2 + 16 * d for g, t in lanes]
            yield "core", [(16 * (2 * unit + d) + g) * 4 + t for g, t in lanes]


def fold(chunk: int, images: Mapping[int, int]) -> int:
    """XOR of the images of a chunk's set bits."""
    found = 0
    for bit, image in images.items():
        found ^= image * (chunk >> bit & 1)
    return found


def swizzle(tiling: Tiling) -> tuple[tuple[int, int], ...]:
    """(bit, image) pairs: chunk q lies at q ^ (XOR of the images of the bits of q), images below 8."""
    return found(replace(few_rows(tiling), warps=1))


def few_rows(tiling: Tiling) -> Tiling:
    """The same kernel as far as banks can tell: eight lanes reach no fifth row."""
    return replace(tiling, rows=min(tiling.rows, 4))


@cache
def found(tiling: Tiling) -> tuple[tuple[int, int], ...]:
    """Images under which fewest of eight lanes meet: two do where the XOR of their chunks is folded to zero.

    Depth first over the bits that matter; the cost of a bit is known once those below it have their images.
    """
    meets: dict[int, Counter[int]] = {}  # top bit -> differences of lanes, and how often each is met
    for _, chunks in accesses(tiling, every=False):
        for a in range(8):
            for difference in {chunks[a] ^ chunk for chunk in chunks[:a]} - {0}:
                meets.setdefault(difference.bit_length() - 1, Counter())[difference] += 1
    bits = sorted(bit for bit in meets if bit > 2)
    images = {0: 1, 1: 2, 2: 4}
    best: tuple[float, dict[int, int]] = (math.inf, {})

    def search(depth: int, cost: float) -> None:
        nonlocal best
        if cost >= best[0]:
            return
        if depth == len(bits):
            best = cost, {bit: images[bit] for bit in bits}
            return
        bit = bits[depth]
        for image in range(8):
            images[bit] = image
            search(depth + 1, cost + sum(n for d, n in meets[bit].items() if not fold(d, images)))
            if best[0] == 0:
                return
        del images[bit]

    search(0, 0)
    return tuple((bit, image) for bit, image in best[1].items() if image)


def conflicts(tiling: Tiling) -> dict[str, float]:
    """Wavefronts of each access pattern over the fewest possible; 1 is free of conflicts."""
    return wavefronts(few_rows(tiling), swizzle(tiling))


def wavefronts(tiling: Tiling, pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The same under these pairs of bits and images."""
    images = dict(pairs)
    met: dict[str, list[int]] = {}
    for name, chunks in accesses(tiling, every=False):
        lines = Counter((chunk ^ fold(chunk, images)) % 8 for chunk in set(chunks))
        met.setdefault(name, []).append(max(lines.values()))
    return {name: sum(counts) / len(counts) for name, counts in met.items()}
