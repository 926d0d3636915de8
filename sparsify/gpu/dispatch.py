"""Which way a filter is computed on a GPU: the quickest by prediction, or by the clock where it was timed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sparsify.cpu import backend as cpu
from sparsify.cpu.backend import Prepared
from sparsify.filters import decimation
from sparsify.filters.filter import Filter, Structure
from sparsify.filters.monarch import BlockMask

from . import backend as gpu
from . import planner, tuning_cache
from . import tiling as kernel
from .devices import Card
from .launch_spec import DecimatedWay, Way, decimated_length
from .planner import DIRECT_TAPS
from .tiling import HEAD_STEP, Kind, Live, Tiling, TwoLevel, type_name


@dataclass(frozen=True)
class Layer:
    """What is convolved, and where: signals (B, H, L) of up to `seqlen` samples.  batch: what to expect."""

    card: Card
    dtype: torch.dtype
    seqlen: int
    batch: int
    channels: int

    @property
    def type_name(self) -> str:
        return type_name(self.dtype)

    @property
    def kind(self) -> Kind:
        return kernel.kind(self.dtype)

    @property
    def rows(self) -> int:
        return self.batch * self.channels

    def case(self, taps: int, structure: Structure | None = None) -> tuning_cache.Case:
        """What choices for a filter are kept under.  taps: of one of which nothing else is known."""
        sizes = self.type_name, self.seqlen, self.batch, self.channels
        return (
            tuning_cache.Case.plain(*sizes, taps) if structure is None else tuning_cache.Case.masked(*sizes, structure)
        )

    def chosen(self, taps: int, structure: Structure | None = None) -> tuning_cache.Choice | None:
        """What the clock said of a filter, if it was asked."""
        return tuning_cache.choice(self.card, self.case(taps, structure), structure)


def prepare(k: Filter, seqlen: int, dtype: torch.dtype, batch: int = 1, card: Card | None = None) -> Prepared:
    """The way that should be the quickest for signals of up to `seqlen` samples, and its tables on the filter's device.

    batch: what to expect; any other works, too.  Signals longer than any kernel takes go through torch.fft, and a
    warning says so, once.
    """
    known = k.structure
    if known is not None and (seqlen > known.mask.n or (known.head and known.head.lookahead)):
        # kernels look at the lags from -n on; a longer signal feels taps that the mask did not touch; no kernel has a
        # head on both sides
        k, known = replace(k, structure=None), None
    layer = Layer(card or Card.of(k.k.device), dtype, seqlen, batch, k.channels)
    felt = k.felt(seqlen)
    found = ways(layer, felt.taps, felt.lookahead, known)
    if not found:
        gpu.warn(planner.facts(layer.card, seqlen, dtype=dtype, rows_total=layer.rows, batch=batch)["advice"])
        return cpu.prepare(k, seqlen)
    chosen = None if known is None else layer.chosen(felt.taps, known)  # `plain_way` asks by itself
    how = chosen.how if chosen and chosen.how in found else min(found, key=lambda how: found[how][0])
    return tables(found[how][1], k, seqlen)


def tables(way: Way | DecimatedWay, k: Filter, seqlen: int) -> Prepared:
    """Tables of a way, on the filter's device."""
    if k.structure is not None and (isinstance(way, DecimatedWay) or way.masked):
        return gpu.make_apart(way, k)
    assert isinstance(way, Way)  # a decimated one needs a mask
    return gpu.make(way, k.felt(seqlen))


Found = tuple[float, Way | DecimatedWay]  # predicted seconds, and what they are of


def ways(layer: Layer, taps: int, lookahead: int, structure: Structure | None = None) -> dict[str, Found]:
    """The quickest way of each name, "masked", "decimated" and "plain", for those that fit."""
    found: dict[str, Found | None] = {}
    if structure is not None:
        found = {"masked": masked_way(layer, structure), "decimated": decimated_way(layer, structure)}
    found["plain"] = plain_way(layer, taps, lookahead)
    return {how: way for how, way in found.items() if way is not None}


def plain_way(layer: Layer, taps: int, lookahead: int) -> tuple[float, Way] | None:
    """The quickest way for a filter of which nothing is known but its taps, and its predicted seconds."""
    cut = taps if taps < layer.seqlen else None
    try:
        best = planner.best(layer.card, layer.seqlen, layer.dtype, layer.rows, taps=cut, batch=layer.batch)
    except planner.NothingFitsError:
        return None
    seconds, choice = best.seconds, tuning_cache.Choice("plain", best.tiling, best.occupancy)
    if taps <= DIRECT_TAPS and (direct := direct_seconds(layer, taps)) < seconds:
        seconds, choice = direct, tuning_cache.Choice("direct")
    return seconds, tuned_way(layer.chosen(taps) or choice, layer, taps, lookahead)


def tuned_way(choice: tuning_cache.Choice, layer: Layer, taps: int, lookahead: int) -> Way:
    """A "plain" or "direct" choice, for a filter of these taps."""
    if choice.tiling is None:
        return direct_way(layer.dtype, layer.seqlen, taps, lookahead)
    return way_of(choice.tiling, choice.resident, layer.dtype, layer.seqlen, lookahead)


def way_of(found: Tiling | TwoLevel, resident: int, dtype: torch.dtype, seqlen: int, lookahead: int = 0) -> Way:
    """A planner's kernel.

    lookahead: samples by which a filter of few taps reads early; a whole one's spectrum has it.
    """
    inner, radix = found.inner, found.radix
    own_lookahead = lookahead if inner.source == "history" else 0
    shape = inner.factors, inner.rows, inner.warps, False, 0, own_lookahead, radix, radix, resident
    return Way(inner.source, dtype, seqlen, *shape)


def direct_way(dtype: torch.dtype, seqlen: int, taps: int, lookahead: int) -> Way:
    return Way("direct", dtype, seqlen, head=whole_steps(taps), lookahead=lookahead)


def direct_seconds(layer: Layer, taps: int) -> float:
    """What a Toeplitz product takes: 8 products of 16 x 8 x 16 a step of 32 taps, for 512 samples."""
    products = 8 * (whole_steps(taps) // HEAD_STEP + 1) * -(-layer.seqlen // 512) * layer.rows * layer.kind.products
    moved = 2 * layer.kind.bytes * layer.seqlen * layer.rows
    return streamed(layer, moved, products) + planner.LAUNCH


def streamed(layer: Layer, moved: int, products: int) -> float:
    """Seconds of a kernel that keeps nothing in shared memory, without its launch.  moved: bytes."""
    return max(moved / layer.card.bandwidth, products * planner.MMA_FLOPS / layer.card.matrix_rate)


def masked_way(layer: Layer, structure: Structure) -> tuple[float, Way] | None:
    """The quickest way that skips what a mask drops, on the mask's own points, and its predicted seconds."""
    found = masked_candidates(layer, structure)
    if not found:
        return None
    best, taps = found[0], head_taps(structure.head)
    seconds = best.seconds + (direct_seconds(layer, taps) if taps else 0.0)
    chosen = layer.chosen(taps, structure)
    if chosen and chosen.how == "masked" and chosen.tiling:
        return seconds, masked_of(chosen.tiling, chosen.resident, layer, taps)
    return seconds, masked_of(best.tiling, best.occupancy, layer, taps)


def masked_of(found: Tiling | TwoLevel, resident: int, layer: Layer, taps: int) -> Way:
    """A planner's kernel under a mask.  taps: as of `head_taps`."""
    return replace(way_of(found, resident, layer.dtype, layer.seqlen), masked=True, head=taps)


def masked_candidates(layer: Layer, structure: Structure) -> list[planner.Candidate]:
    """Kernels that skip what a mask drops, on the mask's own points, the quickest first."""
    mask = structure.mask
    problem = planner.Problem(layer.card, mask.n, layer.type_name, layer.rows, batch=layer.batch)
    own = planner.Domain(tuple(f for f in planner.DOMAIN.factors if math.prod(f) == mask.n))
    found = planner.search(problem, 32, own, lambda factors: left_by(mask, factors)[1]).candidates
    if not found:
        rest: dict[str, Any] = {"dtype": layer.dtype, "rows_total": layer.rows, "batch": layer.batch, "count": 32}
        levels = planner.two_level(layer.card, mask.n, **rest, live=lambda factors: left_by(mask, factors, levels=2))
        found = [candidate for candidate in levels if candidate.tiling.points == mask.n]
    return [candidate for candidate in found if structure.head is None or candidate.tiling.takes_head]


@lru_cache(maxsize=4)
def bins_of(mask: BlockMask) -> Tensor:
    """`mask.bins()`, which is asked for under many factors in a row."""
    return mask.bins()


@lru_cache(maxsize=1024)
def left_by(mask: BlockMask, factors: tuple[int, ...], levels: int = 1) -> tuple[int, Live]:
    """What a mask leaves under these factors: digits of the outer stage, if there is one, and tiles of a row inside.

    Rows inside count as that which keeps any tile that one of them keeps.  Other points than the mask's: everything.
    """
    radix, inside = (factors[0], factors[1:]) if levels == 2 else (1, factors)
    if math.prod(factors) != mask.n:
        return radix, Live.dense(inside)
    kept = gpu.slots(bins_of(mask), factors)[1]
    if levels == 1:
        return 1, Live.of(kept.numpy())
    return gpu.outer_digits(kept), Live.of(kept.any(0).numpy())


def decimated_way(layer: Layer, structure: Structure) -> tuple[float, DecimatedWay] | None:
    """The way through a lower rate, where the mask leaves a narrow band, and its predicted seconds."""
    rate, taps, size = decimation.rate(structure.mask), head_taps(structure.head), layer.kind.bytes
    low = decimated_length(layer.seqlen, rate)
    found = plain_way(replace(layer, seqlen=low), 2 * low - 1, low - 1) if rate >= 4 else None
    if found is None:
        return None
    seconds, inner = found
    moved = size * layer.rows * ((3 if taps else 2) * layer.seqlen + 2 * low)  # u twice where there is a head, y, v, z
    steps = 2 + (taps // HEAD_STEP + 1 if taps else 0)
    products = 8 * layer.kind.products * layer.rows * layer.seqlen // 512 * steps
    return seconds + streamed(layer, moved, products) + 2 * planner.LAUNCH, DecimatedWay(rate, taps, inner)


def head_taps(head: Filter | None) -> int:
    """Taps of a head as the kernels count them."""
    return 0 if head is None else whole_steps(head.taps)


def whole_steps(taps: int) -> int:
    return -(-taps // HEAD_STEP) * HEAD_STEP
