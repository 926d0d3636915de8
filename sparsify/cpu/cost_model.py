"""What a convolution costs on this CPU: the crossovers between ways to compute the same numbers.

Nanoseconds of one core, from a handful of measured constants: those of `sparsify bench --calibrate` where it was run on
this machine, else defaults that keep the order right.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import torch

from sparsify.filters import decimation
from sparsify.storage.files import write_whole

from . import native

DIRECT_VECTORS = 4  # `many` in direct_part of native/parts.h
CALLS = 24  # of which a measurement takes the quickest


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of one core."""

    point: Mapping[int, float]  # log2 of the size -> a point of a transform, there and back
    sample: float  # a sample read and stored in pieces
    tap: float  # a tap of a sample, computed directly
    window: float  # a sample seen at a lower rate, and back
    fold: float  # a sample folded onto one residue, and back

    def __post_init__(self) -> None:
        rest = (getattr(self, field.name) for field in fields(self) if field.name != "point")
        if not self.point or min(self.point.values()) <= 0 or not all(0 <= ns < math.inf for ns in rest):
            raise ValueError(f"costs are nanoseconds, those of a point above zero, got {self}")

    def transform(self, n: int) -> float:
        """Convolution of n complex points, by the nearest measured sizes."""
        bits = math.log2(n)
        below = max((b for b in self.point if b <= bits), default=min(self.point))
        above = min((b for b in self.point if b >= bits), default=max(self.point))
        part = (bits - below) / (above - below) if above > below else 0.0
        return n * ((1 - part) * self.point[below] + part * self.point[above])

    def direct(self, seqlen: int, taps: int) -> float:
        """Tap by tap; the kernel takes samples by `DIRECT_VECTORS` vectors, and computes the last of them whole."""
        step = DIRECT_VECTORS * native.lanes()
        return -(-seqlen // step) * step * (self.sample + taps * self.tap)

    def blocks(self, seqlen: int, taps: int, n: int) -> float:
        """Blocks of n samples that overlap, two to a transform."""
        return seqlen * self.sample + math.ceil(math.ceil(seqlen / (n - taps + 1)) / 2) * self.transform(n)

    def decimated(self, seqlen: int, n: int) -> float:
        """A band-limited filter, by n points at a lower rate."""
        return seqlen * self.window + self.transform(n)

    def comb(self, seqlen: int, n: int, residues: int) -> float:
        return seqlen * self.sample + residues * (seqlen * self.fold + self.transform(n))


DEFAULT = Costs(  # AMD EPYC 9004 (Zen 4), AVX-512
    point={8: 1.3, 10: 1.3, 11: 1.45, 12: 1.5, 13: 1.6, 14: 1.7, 15: 1.9, 16: 2.0, 17: 2.0, 19: 2.15, 20: 2.5},
    sample=0.08,
    tap=0.03,
    window=0.4,
    fold=0.125,
)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the CPU."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def stored() -> Path:
    """Where the constants of this machine are kept."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_home / "sparsify" / "costs.json"


def machine() -> dict[str, str | int]:
    """What the constants hold for: a processor, and the vectors in use on it.  Only where the kernels are."""
    return {"processor": processor(), "lanes": native.lanes()}


@cache
def costs() -> Costs:
    """The constants to reckon with: measured on this processor, or the defaults."""
    try:
        data = json.loads(stored().read_text())
        if not native.available() or any(data[key] != value for key, value in machine().items()):
            return DEFAULT  # a home folder that many machines share
        point, *rest = (data["costs"][field.name] for field in fields(Costs))
        return Costs({int(bits): float(ns) for bits, ns in point.items()}, *map(float, rest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return DEFAULT


def keep(measured: Costs) -> Path:
    """Store the constants for the processes to come; returns where."""
    path = stored()
    write_whole(path, json.dumps({**machine(), "costs": asdict(measured)}, indent=2) + "\n")
    costs.cache_clear()
    return path


def calibrate(progress: Callable[[str], None] = lambda what: None) -> Costs:
    """The constants of this machine, measured on one core within a second or two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock below is that of this thread
    try:
        return measure(progress)
    finally:
        torch.set_num_threads(threads)


def measure(progress: Callable[[str], None]) -> Costs:
    """`calibrate`, on as many threads as there are."""
    point = {}
    for bits in DEFAULT.point:
        n = native.good_size(1 << bits)
        progress(f"transforms of {n:,} points")
        rows = max(1, (1 << 16) >> bits)
        whole = native.Whole(n, native.spectra(torch.randn(rows, n), n))
        point[bits] = nanoseconds(torch.randn(1, rows, n), [whole]) / (rows * n)
    rows, row = 8, 1 << 16
    u = torch.randn(1, rows, row)

    progress("single taps")
    few, some = (nanoseconds(u, [native.Direct(torch.randn(rows, taps))]) / u.numel() for taps in (8, 24))
    tap = max(0.0, some - few) / 16
    plain = Costs(point, max(0.0, few - 8 * tap), tap, 0.0, 0.0)

    progress("a lower rate")
    rate = 8
    low = native.good_size(row // rate + decimation.WIDTH)
    whole = native.Whole(low, native.spectra(torch.randn(rows, low), low))
    taken = nanoseconds(u, [native.Decimated(rate, decimation.WIDTH, decimation.window(rate), whole)]) / rows

    progress("folded rows")
    teeth = 64
    n = native.good_size(row // teeth)
    k_f = native.spectra(torch.randn(rows, n), n, 0, 0.0)
    one, two = (nanoseconds(u, [native.Comb(teeth, n, kept, (k_f,) * len(kept))]) / rows for kept in ((1,), (1, 2)))
    return Costs(
        point=point,
        sample=plain.sample,
        tap=tap,
        window=max(0.0, (taken - plain.transform(low)) / row),
        fold=max(0.0, (two - one - plain.transform(n)) / row),
    )


def nanoseconds(u: torch.Tensor, parts: Sequence[native.Part]) -> float:
    """Time of one call: the quickest of several, which no neighbour has slowed."""
    out = torch.empty_like(u)
    taken = []
    for _ in range(CALLS):
        began = time.thread_time_ns()
        native.convolve(u, parts, out=out)
        taken.append(time.thread_time_ns() - began)
    return float(min(taken))
